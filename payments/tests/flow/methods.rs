//! Payment methods that payments have an effect on, and which ones are charged.

use payments::method;
use payments::simulation::{self, CreateTestPaymentSimulationRequest};
use payments::words::{FailureCode, PaymentMethodStatus, TransactionStatus};
use serde_json::json;

use crate::fixture::{Shop, Step};

#[tokio::test]
async fn an_expired_card_is_marked_and_not_charged_again() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    shop.bank.will([Step::Refuse(FailureCode::ExpiredCard)]);
    shop.topup(&shop.live, payer.wallet, "5.00").await.unwrap();
    let mut conn = shop.store.pool().acquire().await.unwrap();
    let method = method::get(&shop.live, &mut conn, payer.method).await.unwrap();
    assert_eq!(method.status, PaymentMethodStatus::Expired);
    let refused = shop.topup(&shop.live, payer.wallet, "5.00").await.unwrap_err();
    assert_eq!(refused.code(), "BUSINESS_RULE_VIOLATION");
    assert_eq!(shop.bank.charges(), 0);
}

#[tokio::test]
async fn the_newest_simulation_decides_in_a_sandbox() {
    let shop = Shop::with_adapters().await;
    let payer = shop.payer(&shop.sandbox).await;
    let simulate = async |outcome: &str| {
        let body = json!({"payment_method_id": payer.method, "outcome": outcome});
        let request = CreateTestPaymentSimulationRequest::read(&body).unwrap();
        let mut tx = shop.store.begin("simulate").await.unwrap();
        simulation::create(&shop.sandbox, &mut tx, &request).await.unwrap();
        tx.commit().await.unwrap();
    };
    let paid = shop.topup(&shop.sandbox, payer.wallet, "10.00").await.unwrap();
    assert_eq!(paid.status, TransactionStatus::Succeeded, "without a simulation");
    for outcome in ["decline", "insufficient_funds", "fraud", "processing_error", "network_error"] {
        simulate(outcome).await;
        let failed = shop.topup(&shop.sandbox, payer.wallet, "10.00").await.unwrap();
        assert_eq!((failed.status, failed.failure_code.as_deref()), (TransactionStatus::Failed, Some(outcome)));
        let code = if outcome == "network_error" { "SERVICE_UNAVAILABLE" } else { "PAYMENT_DECLINED" };
        assert_eq!(failed.refusal().unwrap_err().code(), code);
    }
    simulate("success").await;
    assert_eq!(shop.topup(&shop.sandbox, payer.wallet, "10.00").await.unwrap().status, TransactionStatus::Succeeded);
    assert_eq!(shop.cash(&shop.sandbox, payer.wallet).await, "20.00");
    simulate("expired_card").await;
    shop.topup(&shop.sandbox, payer.wallet, "10.00").await.unwrap();
    let mut conn = shop.store.pool().acquire().await.unwrap();
    let method = method::get(&shop.sandbox, &mut conn, payer.method).await.unwrap();
    assert_eq!(method.status, PaymentMethodStatus::Expired);
    shop.assert_verified().await;
}

#[tokio::test]
async fn many_hands_leave_one_default() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    let tokens = ["pm_a", "pm_b", "pm_c", "pm_d"];
    let others = tokens.map(|token| shop.method(&shop.live, payer.customer, "stripe", token));
    let others = futures::future::join_all(others).await;
    let make_default = |id| {
        let shop = &shop;
        async move {
            let mut tx = shop.store.begin("default").await.unwrap();
            method::set_default(&shop.live, &mut tx, id).await.unwrap();
            tx.commit().await.unwrap();
        }
    };
    futures::future::join_all(others.iter().map(|id| make_default(*id))).await;
    let defaults: i64 = sqlx::query_scalar("SELECT count(*) FROM payment_method WHERE customer_id = $1 AND is_default")
        .bind(payer.customer)
        .fetch_one(shop.store.pool())
        .await
        .unwrap();
    assert_eq!(defaults, 1);
}
