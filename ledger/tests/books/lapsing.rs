//! Rule D4: what is due lapses in the operation that meets it, at the scope's instant, whether or not a sweep has run.

use chrono::{TimeDelta, TimeZone, Utc};
use domain::WalletMode::Prepaid;
use domain::{Clock, Currency, Instant};
use ledger::wallet::{self, DebitRequest, HoldStatus, WalletDefaults, WalletRequest, WalletTransactionType};
use serde_json::json;

use crate::fixture::{Books, code, eur};

fn noon() -> Instant {
    Utc.with_ymd_and_hms(2030, 6, 1, 12, 0, 0).unwrap()
}

async fn at(hours: i64) -> Books {
    let mut books = Books::new().await;
    books.scope.clock = Clock::At(noon() + TimeDelta::hours(hours));
    books
}

#[tokio::test]
async fn d4_a_lapsed_hold_is_free_at_once() {
    let mut books = at(0).await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "100.00").await;
    let body = json!({"amount": eur("60.00"), "expires_at": noon() + TimeDelta::hours(2)});
    let hold = books.hold(wallet, body).await.unwrap().value;
    books.scope.clock = Clock::At(noon() + TimeDelta::hours(2) - TimeDelta::microseconds(1));
    assert_eq!(code(books.debit(wallet, json!({"amount": eur("40.01")})).await), "INSUFFICIENT_FUNDS");
    books.scope.clock = Clock::At(noon() + TimeDelta::hours(2));
    books.debit(wallet, json!({"amount": eur("100.00")})).await.unwrap();
    assert_eq!(books.balances(wallet).await, "0.00 / 0.00 / 0.00, 0.00");
    let lapsed = wallet::get_hold(&books.scope, &books.store, wallet, hold.id).await.unwrap();
    assert_eq!(lapsed.status, HoldStatus::Expired);
    books.assert_verified().await;
}

#[tokio::test]
async fn d4_promotional_credit_lapses_before_it_is_spent() {
    let mut books = at(0).await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "10.00").await;
    let expires_at = noon() + TimeDelta::hours(1);
    let body = json!({"amount": eur("30.00"), "is_promotional": true, "expires_at": expires_at});
    books.credit(wallet, body.clone()).await.unwrap();
    assert_eq!(books.balances(wallet).await, "10.00 / 30.00 / 0.00, 40.00");
    books.scope.clock = Clock::At(expires_at);
    assert_eq!(code(books.debit(wallet, json!({"amount": eur("10.01")})).await), "INSUFFICIENT_FUNDS");
    assert_eq!(code(books.credit(wallet, body).await), "BUSINESS_RULE_VIOLATION");
    // The refusals rolled the expiry back; a read settles it.
    assert_eq!(books.balances(wallet).await, "10.00 / 0.00 / 0.00, 10.00");
    let last = books.movements(wallet).await.pop().unwrap();
    assert_eq!(
        (last.transaction_type, last.amount.to_string().as_str()),
        (WalletTransactionType::Expiry, "-30.00 EUR")
    );
    assert_eq!(last.created_at, expires_at);
    assert_eq!(books.account("promotional_expense").await, "0.00");
    assert_eq!(books.get(wallet).await.wallet.promotional_balance_expires_at, None);
    books.assert_verified().await;
}

#[tokio::test]
async fn no_credit_lapses_before_its_time() {
    let books = at(0).await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    let credit = async |hours: Option<i64>| {
        let mut body = json!({"amount": eur("1.00"), "is_promotional": true});
        if let Some(hours) = hours {
            body["expires_at"] = json!(noon() + TimeDelta::hours(hours));
        }
        books.credit(wallet, body).await.unwrap();
        books.get(wallet).await.wallet.promotional_balance_expires_at.map(|at| (at - noon()).num_hours())
    };
    assert_eq!(credit(Some(5)).await, Some(5));
    assert_eq!(credit(Some(3)).await, Some(5));
    assert_eq!(credit(Some(9)).await, Some(9));
    assert_eq!(credit(None).await, None);
    assert_eq!(credit(Some(2)).await, None);
}

/// The expiry of credit that has been spent must not take credit that comes later.
#[tokio::test]
async fn an_expiry_goes_with_the_last_cent() {
    let mut books = at(0).await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    let body = json!({"amount": eur("5.00"), "is_promotional": true, "expires_at": noon() + TimeDelta::hours(1)});
    books.credit(wallet, body).await.unwrap();
    books.debit(wallet, json!({"amount": eur("5.00")})).await.unwrap();
    assert_eq!(books.get(wallet).await.wallet.promotional_balance_expires_at, None);
    books.promotional(wallet, "7.00").await;
    books.scope.clock = Clock::At(noon() + TimeDelta::hours(2));
    assert_eq!(books.balances(wallet).await, "0.00 / 7.00 / 0.00, 7.00");
    books.assert_verified().await;
}

/// A customer under a test clock lives at its time, also for a request that comes in on the machine's clock.
#[tokio::test]
async fn a_test_clock_stands_in_for_the_machines() {
    let books = Books::new().await;
    let clock = books.db_clock(noon()).await;
    let customer = books.db_customer(Prepaid, Some(clock)).await;
    let wallet = books.primary(customer, Currency::EUR, WalletDefaults::default()).await.wallet;
    assert_eq!(wallet.created_at, noon());
    let body = json!({"amount": eur("30.00"), "is_promotional": true, "expires_at": noon() + TimeDelta::hours(1)});
    books.credit(wallet.id, body).await.unwrap();
    assert_eq!(books.movements(wallet.id).await[0].created_at, noon());
    sqlx::query("UPDATE test_clock SET frozen_at = frozen_at + interval '1 hour'")
        .execute(books.store.pool())
        .await
        .unwrap();
    assert_eq!(books.balances(wallet.id).await, "0.00 / 0.00 / 0.00, 0.00");
    books.assert_verified().await;
}

/// Two nodes whose clocks differ book on one wallet: its movements keep the order of their bookings.
#[tokio::test]
async fn movements_keep_their_order_when_clocks_differ() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "10.00").await;
    let request = DebitRequest::read(&json!({"amount": eur("1.00")})).unwrap();
    let behind = books.scope.at(books.scope.now() - TimeDelta::hours(1));
    books.ask_as(&behind, wallet, WalletRequest::Debit(request)).await.unwrap();
    books.debit(wallet, json!({"amount": eur("2.00")})).await.unwrap();
    let left: Vec<_> =
        books.movements(wallet).await.iter().map(|m| m.cash_balance_after.amount().to_string()).collect();
    assert_eq!(left, ["10.00", "9.00", "7.00"]);
    books.assert_verified().await;
}
