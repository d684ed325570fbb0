//! Entries never change, not even by a statement that somebody types: the database refuses.

use domain::WalletMode::Prepaid;

use crate::fixture::Books;

#[tokio::test]
async fn entries_transfers_and_movements_refuse_every_change() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "10.00").await;
    for statement in [
        "UPDATE ledger_entry SET amount = amount * 2",
        "DELETE FROM ledger_entry",
        "TRUNCATE ledger_entry",
        "UPDATE ledger_transfer SET kind = 'x'",
        "DELETE FROM ledger_transfer",
        "TRUNCATE ledger_transfer",
        "UPDATE wallet_transaction SET amount = 0",
        "DELETE FROM wallet_transaction",
        "TRUNCATE wallet_transaction",
    ] {
        let error = sqlx::query(statement).execute(books.store.pool()).await.expect_err(statement);
        assert!(error.to_string().contains("append-only"), "{statement}: {error}");
    }
    books.assert_verified().await;
}

#[tokio::test]
async fn unbalanced_entries_are_refused() {
    let books = Books::new().await;
    let insert = |amounts: &'static str| {
        let sql = format!(
            "INSERT INTO ledger_entry (transfer_id, seq, workspace_id, account_id, currency, amount)
             SELECT '00000000-0000-0000-0000-000000000001', seq, '{0}', '{0}', currency, amount FROM (VALUES {amounts})
                 AS e (seq, currency, amount)",
            books.scope.workspace_id
        );
        let pool = books.store.pool().clone();
        async move { sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await }
    };
    for amounts in ["(1, 'EUR', 5.00)", "(1, 'EUR', 5.00), (2, 'USD', -5.00)", "(1, 'EUR', 5.00), (2, 'EUR', -4.99)"] {
        let error = insert(amounts).await.expect_err(amounts);
        assert!(error.to_string().contains("add up to zero"), "{amounts}: {error}");
    }
    insert("(1, 'EUR', 5.00), (2, 'EUR', -5.00)").await.unwrap();
}
