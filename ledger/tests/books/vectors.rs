//! Test vectors W1 to W10 of wallets.md.

use domain::WalletMode::{Postpaid, Prepaid};
use domain::{HoldId, WalletId};
use ledger::wallet::{CaptureHoldRequest, HoldStatus, WalletBalanceKind, WalletDefaults, WalletRequest};
use serde_json::json;

use crate::fixture::{Books, code, decimal, eur, euro};

#[tokio::test]
async fn w1_credit_of_cash() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "120.00").await;
    assert_eq!(books.balances(wallet).await, "120.00 / 0.00 / 0.00, 120.00");
    assert_eq!(books.account("manual_clearing").await, "120.00");
    books.assert_verified().await;
}

#[tokio::test]
async fn w2_promotional_credit_is_spent_before_cash() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "120.00").await;
    books.promotional(wallet, "30.00").await;
    let answer = books.debit(wallet, json!({"amount": eur("50.00")})).await.unwrap().value;
    assert_eq!(books.balances(wallet).await, "100.00 / 0.00 / 0.00, 100.00");
    assert_eq!((answer.amount, answer.cash_balance_after), (euro("-20.00"), euro("100.00")));
    let movements = books.movements(wallet).await;
    let [.., promotional, cash] = movements.as_slice() else { panic!("two movements") };
    assert_eq!((promotional.balance_kind, promotional.amount), (WalletBalanceKind::Promotional, euro("-30.00")));
    assert_eq!((cash.balance_kind, cash.amount), (WalletBalanceKind::Cash, euro("-20.00")));
    assert!(promotional.group_id.is_some());
    assert_eq!(promotional.group_id, cash.group_id);
    assert_eq!(books.account("revenue").await, "-50.00");
    assert_eq!(books.account("promotional_expense").await, "30.00");
    books.assert_verified().await;
}

async fn after_w3(books: &Books) -> (WalletId, HoldId) {
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "100.00").await;
    let hold = books.hold(wallet, json!({"amount": eur("60.00")})).await.unwrap().value;
    (wallet, hold.id)
}

#[tokio::test]
async fn w3_w4_a_hold_cannot_be_spent() {
    let books = Books::new().await;
    let (wallet, _) = after_w3(&books).await;
    assert_eq!(books.balances(wallet).await, "100.00 / 0.00 / 60.00, 40.00");
    assert_eq!(code(books.debit(wallet, json!({"amount": eur("40.01")})).await), "INSUFFICIENT_FUNDS");
    assert_eq!(books.balances(wallet).await, "100.00 / 0.00 / 60.00, 40.00");
    books.assert_verified().await;
}

#[tokio::test]
async fn w5_a_smaller_capture_gives_the_rest_back() {
    let books = Books::new().await;
    let (wallet, id) = after_w3(&books).await;
    let request = CaptureHoldRequest::read(&json!({"amount": eur("45.00")})).unwrap();
    let captured = books.ask(wallet, WalletRequest::CaptureHold(id, request)).await.unwrap().hold().unwrap().value;
    assert_eq!((captured.status, captured.captured_amount), (HoldStatus::Captured, Some(euro("45.00"))));
    assert_eq!(books.balances(wallet).await, "55.00 / 0.00 / 0.00, 55.00");
    assert_eq!(code(books.ask(wallet, WalletRequest::ReleaseHold(id)).await), "INVALID_TRANSITION");
    books.assert_verified().await;
}

#[tokio::test]
async fn w6_a_release_gives_all_back() {
    let books = Books::new().await;
    let (wallet, id) = after_w3(&books).await;
    let released = books.ask(wallet, WalletRequest::ReleaseHold(id)).await.unwrap().hold().unwrap().value;
    assert_eq!(released.status, HoldStatus::Released);
    assert_eq!(books.balances(wallet).await, "100.00 / 0.00 / 0.00, 100.00");
    books.assert_verified().await;
}

#[tokio::test]
async fn w7_w8_postpaid_may_go_down_to_its_limit() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Postpaid, Some("50.00")).await;
    books.cash(wallet, "10.00").await;
    books.debit(wallet, json!({"amount": eur("60.00")})).await.unwrap();
    assert_eq!(books.balances(wallet).await, "-50.00 / 0.00 / 0.00, 0.00");
    assert_eq!(code(books.debit(wallet, json!({"amount": eur("0.01")})).await), "INSUFFICIENT_FUNDS");
    assert_eq!(books.balances(wallet).await, "-50.00 / 0.00 / 0.00, 0.00");
    books.assert_verified().await;
}

#[tokio::test]
async fn w9_w10_cash_at_the_threshold_is_not_below_it() {
    let books = Books::new().await;
    let defaults = WalletDefaults {
        auto_topup_enabled: Some(true),
        auto_topup_amount: Some(decimal("100.00")),
        low_balance_threshold: Some(decimal("20.00")),
        ..WalletDefaults::default()
    };
    let wallet = books.wallet(Prepaid, domain::Currency::EUR, defaults).await.wallet;
    assert!(wallet.auto_topup_enabled);
    books.cash(wallet.id, "25.00").await;
    let low = async || {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox WHERE event_type = 'wallet.low_balance_reached'")
            .fetch_one(books.store.pool())
            .await
            .unwrap()
    };
    books.debit(wallet.id, json!({"amount": eur("5.00")})).await.unwrap();
    assert_eq!(low().await, 0, "20.00 is not below 20.00");
    books.debit(wallet.id, json!({"amount": eur("0.01")})).await.unwrap();
    assert_eq!(low().await, 1);
    books.debit(wallet.id, json!({"amount": eur("0.01")})).await.unwrap();
    assert_eq!(low().await, 1, "once per fall");
}
