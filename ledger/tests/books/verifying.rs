//! `ledger verify` must find what somebody broke: each test breaks one promise, past the database's own guards.

use domain::WalletMode::Prepaid;
use domain::{Currency, InvoiceId, SubscriptionId, WalletId};
use ledger::verify::Check;
use sqlx::AssertSqlSafe;

use crate::fixture::{Books, euro};

/// Runs statements as a superuser with all triggers off.
async fn tamper(books: &Books, statements: &[String]) {
    let mut conn = books.store.pool().acquire().await.unwrap();
    sqlx::query("SET session_replication_role = replica").execute(&mut *conn).await.unwrap();
    for statement in statements {
        sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut *conn).await.unwrap();
    }
    sqlx::query("SET session_replication_role = DEFAULT").execute(&mut *conn).await.unwrap();
}

async fn found(books: &Books) -> Vec<Check> {
    let report = ledger::verify(&books.store, &mut |_| {}).await.unwrap();
    assert_eq!(report.differences.len() as u64, report.differences_total);
    let mut checks: Vec<_> = report.differences.iter().map(|difference| difference.check).collect();
    checks.dedup();
    checks
}

async fn with_wallet() -> (Books, WalletId) {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "10.00").await;
    books.promotional(wallet, "5.00").await;
    books.assert_verified().await;
    (books, wallet)
}

#[tokio::test]
async fn a_tampered_balance_is_found() {
    for column in ["cash_balance", "promotional_balance", "held_balance"] {
        let (books, wallet) = with_wallet().await;
        tamper(&books, &[format!("UPDATE wallet SET {column} = {column} + 1 WHERE id = '{wallet}'")]).await;
        assert_eq!(found(&books).await, [Check::Balance, Check::Movement], "{column}");
        let report = ledger::verify(&books.store, &mut |_| {}).await.unwrap();
        let difference = report.differences.iter().find(|d| d.subject.contains(column)).unwrap().to_string();
        assert!(difference.contains(&wallet.to_string()), "{difference}");
    }
}

#[tokio::test]
async fn tampered_entries_are_found() {
    let (books, _) = with_wallet().await;
    tamper(&books, &["UPDATE ledger_entry SET amount = amount + 1 WHERE amount = 10".into()]).await;
    assert_eq!(found(&books).await, [Check::Transfer]);
    let (books, _) = with_wallet().await;
    tamper(&books, &["DELETE FROM ledger_entry WHERE amount IN (10, -10)".into()]).await;
    assert_eq!(found(&books).await, [Check::Balance, Check::Transfer]);
    let (books, _) = with_wallet().await;
    tamper(&books, &["DELETE FROM ledger_transfer".into()]).await;
    assert_eq!(found(&books).await, [Check::Movement, Check::Entry]);
    let (books, _) = with_wallet().await;
    tamper(&books, &["DELETE FROM ledger_account WHERE kind = 'manual_clearing'".into()]).await;
    assert_eq!(found(&books).await, [Check::Entry]);
}

#[tokio::test]
async fn a_tampered_movement_is_found() {
    let (books, _) = with_wallet().await;
    tamper(&books, &["UPDATE wallet_transaction SET cash_balance_after = 11".into()]).await;
    assert_eq!(found(&books).await, [Check::Movement]);
    let (books, _) = with_wallet().await;
    tamper(&books, &["DELETE FROM wallet_transaction".into()]).await;
    assert_eq!(found(&books).await, [Check::Movement]);
}

async fn db_invoice(books: &Books, number: i64, total: &str, subscription: SubscriptionId) -> InvoiceId {
    let id = InvoiceId::generate();
    let sql = format!(
        "INSERT INTO invoice (id, organization_id, workspace_id, customer_id, subscription_id, invoice_number,
             sequence_number, invoice_type, status, currency, subtotal, total, amount_due, billing_reason, created_at, updated_at)
         VALUES ('{id}', '{}', '{}', '{id}', '{subscription}', 'INV-{number}', {number}, 'subscription', 'finalized', 'EUR',
             {total}, {total}, {total}, 'renewal', now(), now())",
        books.scope.organization_id, books.scope.workspace_id
    );
    tamper(books, &[sql]).await;
    id
}

async fn db_series(books: &Books, next: i64) {
    let sql = format!(
        "INSERT INTO document_series VALUES ('{}', 'invoice', {next}) ON CONFLICT (workspace_id, kind) DO UPDATE SET next_number = {next}",
        books.scope.workspace_id
    );
    tamper(books, &[sql]).await;
}

#[tokio::test]
async fn d6_a_missing_invoice_number_is_found() {
    let books = Books::new().await;
    let mut tx = books.store.begin("book").await.unwrap();
    for number in 1..=2 {
        let id = db_invoice(&books, number, "10.00", SubscriptionId::generate()).await;
        ledger::book_invoice(&mut tx, &books.scope, id, Currency::EUR, euro("10.00"), euro("0.00")).await.unwrap();
    }
    tx.commit().await.unwrap();
    db_series(&books, 3).await;
    books.assert_verified().await;
    db_series(&books, 4).await;
    assert_eq!(found(&books).await, [Check::InvoiceNumber], "a number was given and no invoice has it");
    db_series(&books, 3).await;
    tamper(&books, &["UPDATE invoice SET sequence_number = 5 WHERE sequence_number = 1".into()]).await;
    assert_eq!(found(&books).await, [Check::InvoiceNumber], "a gap");
}

#[tokio::test]
async fn money_of_an_invoice_that_never_moved_is_found() {
    let books = Books::new().await;
    let mut tx = books.store.begin("book").await.unwrap();
    let id = db_invoice(&books, 1, "10.00", SubscriptionId::generate()).await;
    ledger::book_invoice(&mut tx, &books.scope, id, Currency::EUR, euro("10.00"), euro("0.00")).await.unwrap();
    tx.commit().await.unwrap();
    db_series(&books, 2).await;
    books.assert_verified().await;
    tamper(&books, &["UPDATE invoice SET amount_paid = 4".into()]).await;
    assert_eq!(found(&books).await, [Check::InvoicePaid]);
}

#[tokio::test]
async fn an_invoice_that_is_not_booked_is_found() {
    let books = Books::new().await;
    db_invoice(&books, 1, "10.00", SubscriptionId::generate()).await;
    db_series(&books, 2).await;
    assert_eq!(found(&books).await, [Check::InvoiceBooking]);
}

#[tokio::test]
async fn d3_an_accrual_that_survived_its_invoice_is_found() {
    let books = Books::new().await;
    let subscription = SubscriptionId::generate();
    let id = db_invoice(&books, 1, "0", subscription).await;
    db_series(&books, 2).await;
    let workspace = books.scope.workspace_id;
    let line = format!(
        "INSERT INTO invoice_line (id, workspace_id, invoice_id, position, line_type, charge_kind, description, quantity,
             unit_amount, amount, total, period_start, tax_category_code)
         VALUES ('{id}', '{workspace}', '{id}', 1, 'usage', 'USAGE', 'x', 1, 0, 0, 0, '2030-01-01Z', 'S')"
    );
    let accrual = format!(
        "INSERT INTO usage_accrual VALUES ('{subscription}', '2030-01-01Z', '', '{workspace}', '{id}', NULL, 'EUR', 1, 0, 1, true)"
    );
    tamper(&books, &[line, accrual]).await;
    books.assert_verified().await;
    tamper(&books, &["UPDATE usage_accrual SET closed = false".into()]).await;
    assert_eq!(found(&books).await, [Check::Accrual]);
}

#[tokio::test]
async fn progress_is_told_per_check() {
    let (books, _) = with_wallet().await;
    let mut seen = Vec::new();
    let report =
        ledger::verify(&books.store, &mut |progress| seen.push((progress.check, progress.done))).await.unwrap();
    assert_eq!((report.wallets, report.movements, report.transfers, report.entries), (1, 2, 2, 4));
    assert_eq!(seen[..2], [(Check::Balance, 2), (Check::Transfer, 2)]);
}
