//! Statements of accounts and trial balances of periods, over more entries than one statement of the database reads.

use chrono::{TimeDelta, TimeZone, Utc};
use domain::WalletMode::Prepaid;
use domain::{Currency, Instant, WalletId};
use ledger::{
    Span, Statement, StatementAccount, Transfer, TransferKind, WalletAccount, WorkspaceAccount, trial_balance,
};
use rust_decimal::Decimal;

use crate::fixture::{Books, decimal, euro, workspace};

fn day(day: u32) -> Instant {
    Utc.with_ymd_and_hms(2025, 10, day, 12, 0, 0).unwrap()
}

async fn statement(books: &Books, account: StatementAccount, span: Span) -> Statement {
    Statement::read(&books.store, &books.scope, account, span).await.unwrap()
}

/// Books 1.00 from `write_off` to `fx` at each instant.
async fn book(books: &Books, at: impl Iterator<Item = Instant>) {
    let transfers: Vec<Transfer> = at
        .map(|at| {
            Transfer::draft(domain::TransferId::generate(), TransferKind::WalletAdjustment, at)
                .debit(ledger::Account::Workspace(WorkspaceAccount::Fx), euro("1.00"))
                .credit(ledger::Account::Workspace(WorkspaceAccount::WriteOff), euro("1.00"))
                .balanced()
                .unwrap()
        })
        .collect();
    let mut tx = books.store.begin("book").await.unwrap();
    ledger::post(&mut tx, &books.scope, &transfers).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_statement_runs_from_its_opening_to_its_closing_balance() {
    let books = Books::new().await;
    // In no order, over all stripes.
    book(&books, [9, 1, 5, 3, 7, 5, 2, 8, 4, 6].into_iter().map(day)).await;
    let fx = StatementAccount::Workspace(WorkspaceAccount::Fx, Currency::EUR);
    let all = statement(&books, fx, Span::default()).await;
    assert_eq!((all.opening, all.lines.len(), all.closing), (Decimal::ZERO, 10, decimal("10.00")));
    assert!(all.lines.is_sorted_by_key(|line| line.booked_at));
    let middle = statement(&books, fx, Span { from: Some(day(3)), to: Some(day(6)) }).await;
    assert_eq!((middle.opening, middle.closing), (decimal("2.00"), decimal("6.00")));
    let balances: Vec<String> = middle.lines.iter().map(|line| line.balance.to_string()).collect();
    assert_eq!(balances, ["3.00", "4.00", "5.00", "6.00"]);
    let empty = statement(&books, fx, Span { from: Some(day(20)), to: None }).await;
    assert_eq!((empty.opening, empty.lines.len(), empty.closing), (decimal("10.00"), 0, decimal("10.00")));
    let dollars = StatementAccount::Workspace(WorkspaceAccount::Fx, Currency::USD);
    assert_eq!(statement(&books, dollars, Span::default()).await.lines, []);
}

#[tokio::test]
async fn a_wallets_statement_names_what_moved() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "10.00").await;
    books
        .debit(wallet, serde_json::json!({"amount": crate::fixture::eur("4.00"), "description": "a fee"}))
        .await
        .unwrap();
    let cash = statement(&books, StatementAccount::Wallet(wallet, WalletAccount::Cash), Span::default()).await;
    let lines: Vec<_> = cash.lines.iter().map(|l| format!("{} {} {}", l.kind, l.amount, l.balance)).collect();
    assert_eq!(lines, ["wallet_credit -10.00 -10.00", "wallet_debit 4.00 -6.00"]);
    assert_eq!((cash.kind.as_str(), cash.lines[1].description.as_deref()), ("wallet_cash", Some("a fee")));

    let other = workspace(&books.store).await;
    for (scope, id) in [(&other, wallet), (&books.scope, WalletId::generate())] {
        let account = StatementAccount::Wallet(id, WalletAccount::Cash);
        let refused = Statement::read(&books.store, scope, account, Span::default()).await;
        assert_eq!(crate::fixture::code(refused), "NOT_FOUND");
    }
}

/// More entries on one account than a page has, and pages that end within a transfer of several entries.
#[tokio::test]
async fn pages_lose_and_double_nothing() {
    let books = Books::new().await;
    let id = |index: u32| domain::TransferId(uuid::Uuid::from_u128((u128::from(index) << 8) | 7)); // all on one stripe
    let fx = ledger::Account::Workspace(WorkspaceAccount::Fx);
    let transfers: Vec<Transfer> = (0..4_100)
        .map(|index| {
            let at = day(1) + TimeDelta::seconds(i64::from(index));
            let draft = Transfer::draft(id(index), TransferKind::WalletAdjustment, at);
            let three = (1..=3).fold(draft, |draft, _| draft.debit(fx, euro("1.00")));
            three.credit(ledger::Account::Workspace(WorkspaceAccount::WriteOff), euro("3.00")).balanced().unwrap()
        })
        .collect();
    let mut tx = books.store.begin("book").await.unwrap();
    for group in transfers.chunks(500) {
        ledger::post(&mut tx, &books.scope, group).await.unwrap();
    }
    tx.commit().await.unwrap();
    let account = StatementAccount::Workspace(WorkspaceAccount::Fx, Currency::EUR);
    let all = statement(&books, account, Span::default()).await;
    assert_eq!((all.lines.len(), all.closing), (12_300, decimal("12300.00")));
    let mut read = 0;
    let rows = trial_balance(&books.store, &books.scope, None, &mut |entries| read += entries).await.unwrap();
    assert_eq!(read, 16_400);
    let shown: Vec<_> = rows.iter().map(|r| format!("{} {} {} {}", r.kind, r.debits, r.credits, r.balance)).collect();
    assert_eq!(shown, ["fx 12300.00 0 12300.00", "write_off 0 12300.00 -12300.00"]);
    let half =
        trial_balance(&books.store, &books.scope, Some(day(1) + TimeDelta::seconds(10)), &mut |_| {}).await.unwrap();
    assert_eq!(half[0].balance, decimal("30.00"));
}

/// A wallet with more movements than a page, and a walk beside bookings that go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_is_exact_beside_a_wallet_that_moves() {
    let books = std::sync::Arc::new(Books::new().await);
    let wallet = books.euro_wallet(Prepaid, None).await;
    for _ in 0..3 {
        let tasks = (0..50).map(|_| {
            let books = books.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    books.cash(wallet, "1.00").await;
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
            let report = ledger::verify(&books.store, &mut |_| {}).await.unwrap();
            assert!(report.is_clean(), "{:#?}", report.differences);
        }
        for task in tasks {
            task.await.unwrap();
        }
    }
    let report = ledger::verify(&books.store, &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.differences);
    assert_eq!((report.wallets, report.movements, report.transfers, report.entries), (1, 1_500, 1_500, 3_000));
}
