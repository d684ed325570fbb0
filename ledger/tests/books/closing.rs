//! Closed periods: nothing is booked in them, by no way, and what is being booked is waited for.

use chrono::{TimeDelta, TimeZone, Utc};
use domain::WalletMode::Prepaid;
use domain::{Clock, Instant, Result, Scope, WalletId};
use ledger::verify::Check;
use ledger::wallet::{CreditRequest, WalletRequest};
use ledger::{Closing, WorkspaceAccount};
use serde_json::json;

use crate::fixture::{Books, code, eur, euro, workspace};

fn october() -> Instant {
    Utc.with_ymd_and_hms(2025, 11, 1, 0, 0, 0).unwrap()
}

async fn close(books: &Books, scope: &Scope, before: Instant) -> Result<Closing> {
    let mut tx = books.store.begin("close").await?;
    let closed = ledger::close(scope, &mut tx, before, Some("by a test")).await;
    tx.end(closed).await
}

async fn reopen(books: &Books) -> Result<Closing> {
    let mut tx = books.store.begin("reopen").await?;
    let reopened = ledger::reopen(&books.scope, &mut tx, Some("a receipt was missing")).await;
    tx.end(reopened).await
}

/// A wallet whose customer lives in September: the time of a wallet never runs back.
async fn september_wallet(books: &Books) -> WalletId {
    let wallet = books.euro_wallet(Prepaid, None).await;
    sqlx::query("UPDATE wallet SET updated_at = '2025-09-01T00:00:00Z' WHERE id = $1")
        .bind(wallet)
        .execute(books.store.pool())
        .await
        .unwrap();
    wallet
}

async fn credit_at(books: &Books, wallet: WalletId, at: Instant) -> Result<()> {
    let credit = WalletRequest::Credit(CreditRequest::read(&json!({"amount": eur("1.00")}))?);
    books.ask_as(&books.scope.at(at), wallet, credit).await.map(|_| ())
}

#[tokio::test]
async fn nothing_is_booked_before_the_end_of_a_closed_period() {
    let books = Books::new().await;
    let wallet = september_wallet(&books).await;
    credit_at(&books, wallet, october() - TimeDelta::days(3)).await.unwrap();
    let closing = close(&books, &books.scope, october()).await.unwrap();
    assert_eq!((closing.closed_before, closing.note.as_deref()), (october(), Some("by a test")));

    let before = books.balances(wallet).await;
    let last_instant = october() - TimeDelta::microseconds(1);
    assert_eq!(code(credit_at(&books, wallet, last_instant).await), "PERIOD_CLOSED");
    assert_eq!(books.balances(wallet).await, before, "a refusal leaves nothing");
    credit_at(&books, wallet, october()).await.unwrap();
    books.cash(wallet, "5.00").await;

    // Another workspace has its own periods.
    let other = workspace(&books.store).await;
    let transfer = ledger::Transfer::draft(
        domain::TransferId::generate(),
        ledger::TransferKind::WalletAdjustment,
        october() - TimeDelta::days(1),
    )
    .debit(ledger::Account::Workspace(WorkspaceAccount::Fx), euro("1.00"))
    .credit(ledger::Account::Workspace(WorkspaceAccount::WriteOff), euro("1.00"))
    .balanced()
    .unwrap();
    let mut tx = books.store.begin("book").await.unwrap();
    ledger::post(&mut tx, &other, &[transfer]).await.unwrap();
    tx.commit().await.unwrap();
    books.assert_verified().await;
}

#[tokio::test]
async fn the_database_refuses_whoever_asks() {
    let books = Books::new().await;
    close(&books, &books.scope, october()).await.unwrap();
    let refused = sqlx::query(
        "INSERT INTO ledger_transfer (id, workspace_id, kind, booked_at, created_at)
         VALUES (gen_random_uuid(), $1, 'wallet_credit', '2025-10-31T23:59:59Z', now())",
    )
    .bind(books.scope.workspace_id)
    .execute(books.store.pool())
    .await
    .unwrap_err()
    .to_string();
    assert!(refused.contains("the books are closed for everything before 2025-11-01T00:00:00Z"), "{refused}");
}

#[tokio::test]
async fn periods_are_closed_in_order_and_opened_again_from_the_last() {
    let books = Books::new().await;
    let wallet = september_wallet(&books).await;
    let (first, second) = (october(), october() + TimeDelta::days(30));
    close(&books, &books.scope, first).await.unwrap();
    close(&books, &books.scope, second).await.unwrap();
    for again in [first, second] {
        assert_eq!(code(close(&books, &books.scope, again).await), "ALREADY_CLOSED");
    }
    assert_eq!(code(credit_at(&books, wallet, first).await), "PERIOD_CLOSED");

    let reopened = reopen(&books).await.unwrap();
    assert_eq!((reopened.closed_before, reopened.reopened_note.as_deref()), (second, Some("a receipt was missing")));
    assert_eq!(code(credit_at(&books, wallet, first - TimeDelta::seconds(1)).await), "PERIOD_CLOSED");
    credit_at(&books, wallet, first).await.unwrap();
    reopen(&books).await.unwrap();
    credit_at(&books, september_wallet(&books).await, first - TimeDelta::seconds(1)).await.unwrap();
    assert_eq!(code(reopen(&books).await), "NOT_CLOSED");

    let mut tx = books.store.begin("read").await.unwrap();
    let kept = ledger::closings(&books.scope, &mut tx).await.unwrap();
    assert_eq!(kept.iter().map(|closing| closing.closed_before).collect::<Vec<_>>(), [second, first]);
    assert!(kept.iter().all(|closing| closing.reopened_at.is_some()));
}

#[tokio::test]
async fn only_a_period_that_has_ended_can_be_closed() {
    let books = Books::new().await;
    let now = october();
    let scope = Scope { clock: Clock::At(now), ..books.scope };
    for early in [now, now + TimeDelta::days(1), now - TimeDelta::seconds(59)] {
        assert_eq!(code(close(&books, &scope, early).await), "VALIDATION");
    }
    close(&books, &scope, now - TimeDelta::seconds(60)).await.unwrap();
}

/// Without the lock that both share, the closing would be committed while the booking is on its way.
#[tokio::test]
async fn a_closing_waits_for_what_is_being_booked() {
    let books = Books::new().await;
    let wallet = september_wallet(&books).await;
    let scope = books.scope.at(october() - TimeDelta::days(1));
    let mut booking = books.store.begin("book").await.unwrap();
    let request = CreditRequest::read(&json!({"amount": eur("7.00")})).unwrap();
    let operation = ledger::wallet::WalletOperation {
        transfer_id: domain::TransferId::generate(),
        wallet_id: wallet,
        request: WalletRequest::Credit(request),
    };
    ledger::wallet::perform(&scope, &mut booking, operation).await.unwrap();

    let mut impatient = books.store.begin("close").await.unwrap();
    sqlx::query("SET LOCAL lock_timeout = '200ms'").execute(impatient.conn()).await.unwrap();
    let waited = ledger::close(&books.scope, &mut impatient, october(), None).await;
    assert!(matches!(waited, Err(domain::Error::Unavailable { .. })), "{waited:?}");
    drop(impatient);

    booking.commit().await.unwrap();
    close(&books, &books.scope, october()).await.unwrap();
    assert_eq!(books.balances(wallet).await, "7.00 / 0.00 / 0.00, 7.00");
    books.assert_verified().await;
}

#[tokio::test]
async fn verify_finds_what_was_booked_behind_a_closing() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    close(&books, &books.scope, october()).await.unwrap();
    books.cash(wallet, "3.00").await;
    books.assert_verified().await;
    let mut conn = books.store.pool().acquire().await.unwrap();
    for statement in [
        "SET session_replication_role = replica",
        "UPDATE ledger_transfer SET booked_at = '2025-10-15T00:00:00Z'",
        "SET session_replication_role = DEFAULT",
    ] {
        sqlx::query(statement).execute(&mut *conn).await.unwrap();
    }
    let report = ledger::verify(&books.store, &mut |_| {}).await.unwrap();
    assert_eq!(report.differences.iter().map(|d| d.check).collect::<Vec<_>>(), [Check::Closing]);
}
