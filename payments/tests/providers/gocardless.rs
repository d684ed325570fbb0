//! GoCardless, in the shapes of its API reference.

use payments::gateway::ProviderSettings;
use payments::provider::gocardless::Gocardless;
use payments::provider::{Gateway, Outcome, Subject};
use payments::words::{FailureCode, PaymentMethodType};
use serde_json::{Value, json};

use crate::server::{Reply, Server, http, order, refund_of};

fn payment(status: &str) -> Value {
    json!({"payments": {"id": "PM123", "created_at": "2026-01-08T17:01:06.000Z", "charge_date": "2026-01-15", "amount": 1234,
        "currency": "EUR", "status": status, "amount_refunded": 0, "links": {"mandate": "MD123", "creditor": "CR123"},
        "metadata": {"transaction_id": "00000000-0000-0000-0000-000000000007"}}})
}

async fn charge(replies: Vec<Reply>, hours_ago: i64) -> (Outcome, Server) {
    let server = Server::answering(replies).await;
    let settings = ProviderSettings { statement_descriptor: Some("A shop".into()), ..ProviderSettings::default() };
    let gocardless = Gocardless::new(http().to(&server.url), "token".to_owned(), settings);
    let outcome = gocardless.charge(&order(PaymentMethodType::SepaDirectDebit, "MD123", hours_ago)).await;
    (outcome, server)
}

fn reference() -> String {
    "PM123".to_owned()
}

#[tokio::test]
async fn a_payment_is_taken_from_the_mandate_under_our_key() {
    let (outcome, server) = charge(vec![Reply::Json(201, payment("pending_submission"))], 0).await;
    assert_eq!(outcome, Outcome::Pending { reference: reference() });
    let asked = &server.asked()[0];
    assert_eq!(asked.line, "POST /payments");
    assert_eq!(asked.header("authorization"), "Bearer token");
    assert_eq!(asked.header("gocardless-version"), "2015-07-06");
    assert_eq!(asked.header("idempotency-key"), "00000000-0000-0000-0000-000000000007");
    let body: Value = serde_json::from_str(&asked.body).unwrap();
    let sent = &body["payments"];
    assert_eq!(
        (&sent["amount"], &sent["currency"], &sent["links"]["mandate"]),
        (&json!(1234), &json!("EUR"), &json!("MD123"))
    );
    assert_eq!(
        (&sent["description"], &sent["metadata"]["transaction_id"]),
        (&json!("A shop"), &json!("00000000-0000-0000-0000-000000000007"))
    );
}

#[tokio::test]
async fn a_repeated_key_leads_to_what_the_first_call_made() {
    let conflict = json!({"error": {"message": "A resource has already been created with this idempotency key",
        "type": "invalid_state", "code": 409, "errors": [{"reason": "idempotent_creation_conflict",
        "message": "A resource has already been created with this idempotency key",
        "links": {"conflicting_resource_id": "PM123"}}]}});
    let (outcome, server) = charge(vec![Reply::Json(409, conflict), Reply::Json(200, payment("confirmed"))], 0).await;
    assert_eq!(outcome, Outcome::Succeeded { reference: reference() });
    assert_eq!(server.asked()[1].line, "GET /payments/PM123");
}

#[tokio::test]
async fn refusals_trouble_and_states_are_told_apart() {
    let refused = json!({"error": {"message": "Validation failed", "type": "validation_failed", "code": 422,
        "errors": [{"field": "amount", "message": "is less than the minimum amount permitted"}]}});
    let (outcome, _) = charge(vec![Reply::Json(422, refused)], 0).await;
    let Outcome::Declined(decline) = outcome else { panic!("{outcome:?}") };
    assert_eq!(decline.code, FailureCode::InvalidRequest);
    assert!(decline.message.contains("minimum amount"), "{}", decline.message);
    let inactive = json!({"error": {"message": "Mandate is not active", "type": "invalid_state", "code": 422,
        "errors": [{"reason": "mandate_is_inactive", "message": "..."}]}});
    let (outcome, _) = charge(vec![Reply::Json(422, inactive)], 0).await;
    assert!(matches!(&outcome, Outcome::Declined(d) if d.code == FailureCode::Decline), "{outcome:?}");
    let trouble = || Reply::Json(503, json!({}));
    let (outcome, _) = charge(vec![trouble(), trouble(), trouble()], 0).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    let (outcome, _) = charge(vec![Reply::Json(201, payment("failed"))], 0).await;
    assert!(matches!(outcome, Outcome::Declined(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_key_that_is_forgotten_is_looked_for() {
    let listed = |payments: Value| Reply::Json(200, json!({"payments": payments, "meta": {"limit": 500}}));
    let (outcome, server) = charge(vec![listed(json!([payment("paid_out")["payments"]]))], 24 * 31).await;
    assert_eq!(outcome, Outcome::Succeeded { reference: reference() });
    assert_eq!(server.asked()[0].line, "GET /payments?limit=500&mandate=MD123");
    let (outcome, _) = charge(vec![listed(json!([]))], 24 * 31).await;
    assert!(matches!(&outcome, Outcome::Declined(d) if d.code == FailureCode::NetworkError), "{outcome:?}");
}

#[tokio::test]
async fn refunds_confirm_their_total() {
    let refund =
        |status: &str| json!({"refunds": {"id": "RF123", "amount": 1234, "currency": "EUR", "status": status}});
    let server = Server::answering([Reply::Json(201, refund("created")), Reply::Json(200, refund("paid"))]).await;
    let gocardless = Gocardless::new(http().to(&server.url), "token".to_owned(), ProviderSettings::default());
    let paid = order(PaymentMethodType::SepaDirectDebit, "MD123", 0);
    let back = refund_of(&paid, "PM123");
    let reference = "RF123".to_owned();
    assert_eq!(gocardless.refund(&back).await, Outcome::Pending { reference: reference.clone() });
    assert_eq!(gocardless.status(Subject::Refund, "RF123").await, Outcome::Succeeded { reference });
    let body: Value = serde_json::from_str(&server.asked()[0].body).unwrap();
    assert_eq!(body["refunds"]["total_amount_confirmation"], 1234);
}

#[tokio::test]
async fn a_refund_whose_key_is_forgotten_is_looked_for() {
    let ours = json!({"id": "RF1", "status": "submitted", "metadata": {"transaction_id": "00000000-0000-0000-0000-000000000007"}});
    let listed = |refunds: Value| Reply::Json(200, json!({"refunds": refunds}));
    let other = json!({"id": "RF2", "status": "paid", "metadata": {}});
    let server = Server::answering([listed(json!([other, ours])), listed(json!([other]))]).await;
    let gocardless = Gocardless::new(http().to(&server.url), "token".to_owned(), ProviderSettings::default());
    let old = refund_of(&order(PaymentMethodType::SepaDirectDebit, "MD123", 24 * 31), "PM123");
    assert_eq!(gocardless.refund(&old).await, Outcome::Pending { reference: "RF1".to_owned() });
    assert!(matches!(gocardless.refund(&old).await, Outcome::Declined(d) if d.code == FailureCode::NetworkError));
    assert_eq!(server.asked()[0].line, "GET /refunds?limit=500&payment=PM123");
}
