//! A process dies at every point of a payment: the customer is charged once and the wallet filled once, whoever goes on.

use payments::charge::Attempt;
use payments::words::{FailureCode, TransactionStatus};

use crate::fixture::{Shop, Step};

/// What must be true of one payment of 50.00, however it went.
async fn assert_paid_once(shop: &Shop, wallet: domain::WalletId, what: &str) {
    assert_eq!(shop.bank.charges(), 1, "{what}: charged once");
    assert_eq!(shop.transactions(&shop.live).await, ["WALLET_TOPUP SUCCEEDED 50.00"], "{what}");
    assert_eq!(shop.cash(&shop.live, wallet).await, "50.00", "{what}: credited once");
    assert_eq!(shop.balance(&shop.live, "gateway_clearing").await, "50.00", "{what}: booked once");
    let events = shop.events(&shop.live).await;
    for event in ["payment.initiated", "payment.succeeded", "wallet.topup_succeeded"] {
        assert_eq!(events.get(event), Some(&1), "{what}: {event} of {events:?}");
    }
    assert_eq!(events.len(), 3, "{what}: {events:?}");
    shop.assert_verified().await;
}

#[tokio::test]
async fn killed_before_the_gateway_was_asked() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    shop.order(&shop.live, payer.wallet, "50.00").await.unwrap();
    assert_eq!(shop.sweep_in(0).await.asked, 0, "its writer may be at it");
    assert_eq!(shop.sweep_in(4).await.asked, 1);
    assert_paid_once(&shop, payer.wallet, "before the call").await;
}

#[tokio::test]
async fn killed_while_the_gateway_was_asked() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    shop.bank.will([Step::TakeAndHang]);
    let id = shop.order(&shop.live, payer.wallet, "50.00").await.unwrap().transaction_id;
    let (payments, scope) = (shop.payments.clone(), shop.live);
    let process = tokio::spawn(async move { payments.proceed(&scope, id, Attempt::First).await });
    shop.bank.hanging.notified().await;
    process.abort();
    assert!(process.await.unwrap_err().is_cancelled());
    assert_eq!(shop.get(&shop.live, id).await.status, TransactionStatus::Pending);
    shop.sweep_in(4).await;
    assert_paid_once(&shop, payer.wallet, "during the call").await;
}

#[tokio::test]
async fn the_answer_is_lost_and_then_the_question() {
    for (step, what) in [(Step::TakeAndLose, "the answer"), (Step::Miss, "the question")] {
        let shop = Shop::open().await;
        let payer = shop.payer(&shop.live).await;
        shop.bank.will([step]);
        let open = shop.topup(&shop.live, payer.wallet, "50.00").await.unwrap();
        assert_eq!(open.status, TransactionStatus::Pending, "{what} was lost: nobody knows");
        open.refusal().expect("an open payment is no refusal");
        // The gateway cannot be reached when it is asked again: that says nothing of the first time.
        shop.bank.will(if step == Step::Miss { vec![Step::Unreachable] } else { vec![] });
        shop.sweep_in(4).await;
        shop.sweep_in(20).await;
        assert_paid_once(&shop, payer.wallet, what).await;
    }
}

#[tokio::test]
async fn killed_while_the_outcome_was_recorded() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    // Whatever is last in the transaction fails: everything before it must go, too.
    shop.fail_at("wallet.topup_succeeded").await;
    let failed = shop.topup(&shop.live, payer.wallet, "50.00").await.unwrap_err();
    assert_eq!(failed.code(), "INTERNAL_ERROR");
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "0.00", "no half of an outcome");
    assert_eq!(shop.sweep_in(4).await.failed, 1, "and it fails again");
    shop.fail_no_more().await;
    shop.sweep_in(8).await;
    assert_paid_once(&shop, payer.wallet, "recording").await;
}

#[tokio::test]
async fn everybody_goes_on_at_once() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    let id = shop.order(&shop.live, payer.wallet, "50.00").await.unwrap().transaction_id;
    // The writer itself, three sweeps, and the caller who repeats his request.
    let first = shop.payments.proceed(&shop.live, id, Attempt::First);
    let again = shop.payments.proceed(&shop.live, id, Attempt::Again);
    let (a, b, c, d, e) = tokio::join!(shop.sweep_in(4), first, shop.sweep_in(4), again, shop.sweep_in(4));
    assert_eq!((a.failed, c.failed, e.failed), (0, 0, 0));
    assert_eq!(b.unwrap().status, TransactionStatus::Succeeded);
    d.unwrap();
    assert_paid_once(&shop, payer.wallet, "all at once").await;
    assert_eq!(shop.sweep_in(60).await.asked, 0, "nothing is open");
}

#[tokio::test]
async fn a_gateway_that_takes_its_time_is_asked_by_its_reference() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    shop.bank.will([Step::TakeLater]);
    let taken = shop.topup(&shop.live, payer.wallet, "50.00").await.unwrap();
    assert_eq!(taken.status, TransactionStatus::Processing);
    assert!(taken.provider_reference.is_some());
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "0.00", "nothing is credited before it is there");
    assert_eq!(shop.sweep_in(10).await.asked, 0);
    assert_eq!(shop.sweep_in(16).await.asked, 1);
    assert_paid_once(&shop, payer.wallet, "later").await;
}

#[tokio::test]
async fn what_is_refused_moves_nothing() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    for (step, code, refusal) in [
        (Step::Refuse(FailureCode::InsufficientFunds), "insufficient_funds", "PAYMENT_DECLINED"),
        (Step::Unreachable, "network_error", "SERVICE_UNAVAILABLE"),
    ] {
        shop.bank.will([step]);
        let failed = shop.topup(&shop.live, payer.wallet, "50.00").await.unwrap();
        assert_eq!((failed.status, failed.failure_code.as_deref()), (TransactionStatus::Failed, Some(code)));
        assert_eq!(failed.refusal().unwrap_err().code(), refusal);
    }
    assert_eq!((shop.bank.charges(), shop.cash(&shop.live, payer.wallet).await.as_str()), (0, "0.00"));
    let events = shop.events(&shop.live).await;
    assert_eq!((events["payment.failed"], events["wallet.topup_failed"]), (2, 2));
    assert_eq!(shop.sweep_in(600).await.asked, 0, "a refusal is final");
}

#[tokio::test]
async fn the_database_keeps_the_ledger_append_only() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    let id = shop.topup(&shop.live, payer.wallet, "50.00").await.unwrap().id;
    for change in [
        "UPDATE payment_transaction SET amount = 49 WHERE id = $1",
        "UPDATE payment_transaction SET wallet_id = NULL, kind = 'CHARGE' WHERE id = $1",
        "UPDATE payment_transaction SET provider_reference = 'another' WHERE id = $1",
        "UPDATE payment_transaction SET status = 'PENDING', processed_at = NULL, next_check_at = now() WHERE id = $1",
        "UPDATE payment_transaction SET status = 'REFUNDED' WHERE id = $1",
        "UPDATE payment_transaction SET status = 'FAILED' WHERE id = $1",
        "DELETE FROM payment_transaction WHERE id = $1",
    ] {
        assert!(sqlx::query(change).bind(id).execute(shop.store.pool()).await.is_err(), "{change}");
    }
}
