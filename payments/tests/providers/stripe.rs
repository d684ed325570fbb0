//! Stripe, in the shapes of its API reference.

use payments::gateway::ProviderSettings;
use payments::provider::stripe::Stripe;
use payments::provider::{Gateway, Outcome, Subject};
use payments::words::{FailureCode, PaymentMethodType};
use serde_json::{Value, json};

use crate::server::{Reply, Server, http, nowhere, order, refund_of};

fn intent(status: &str) -> Value {
    json!({"id": "pi_3MtwBwLkdIwHu7ix28a3tqPa", "object": "payment_intent", "amount": 1234, "amount_received": 1234,
        "capture_method": "automatic", "confirmation_method": "automatic", "created": 1680800504, "currency": "eur",
        "customer": "cus_9", "latest_charge": "ch_3MtwBwLkdIwHu7ix28a3tqPa", "livemode": false,
        "metadata": {"transaction_id": "00000000-0000-0000-0000-000000000007"}, "payment_method": "pm_1",
        "payment_method_types": ["card"], "status": status})
}

fn method() -> Reply {
    let card = json!({"brand": "visa", "country": "US", "exp_month": 8, "exp_year": 2026, "funding": "credit", "last4": "4242"});
    Reply::Json(
        200,
        json!({"id": "pm_1", "object": "payment_method", "card": card, "customer": "cus_9", "type": "card"}),
    )
}

fn error(status: u16, error: Value) -> Reply {
    Reply::Json(status, json!({"error": error}))
}

async fn charge(replies: Vec<Reply>, hours_ago: i64) -> (Outcome, Server) {
    let server = Server::answering(replies).await;
    let stripe = Stripe::new(http().to(&server.url), "sk_live_1".to_owned(), ProviderSettings::default());
    let outcome = stripe.charge(&order(PaymentMethodType::CreditCard, "pm_1", hours_ago)).await;
    (outcome, server)
}

fn reference() -> String {
    "pi_3MtwBwLkdIwHu7ix28a3tqPa".to_owned()
}

#[tokio::test]
async fn a_charge_is_one_confirmed_intent_under_our_key() {
    let (outcome, server) = charge(vec![method(), Reply::Json(200, intent("succeeded"))], 0).await;
    assert_eq!(outcome, Outcome::Succeeded { reference: reference() });
    let asked = server.asked();
    assert_eq!(asked[0].line, "GET /v1/payment_methods/pm_1");
    let create = &asked[1];
    assert_eq!(create.line, "POST /v1/payment_intents");
    assert_eq!(create.header("authorization"), "Bearer sk_live_1");
    assert_eq!(create.header("idempotency-key"), "00000000-0000-0000-0000-000000000007");
    assert_eq!(create.header("content-type"), "application/x-www-form-urlencoded");
    assert!(!create.header("stripe-version").is_empty());
    for pair in
        ["amount=1234", "currency=eur", "customer=cus_9", "payment_method=pm_1", "confirm=true", "off_session=true"]
    {
        assert!(create.body.split('&').any(|sent| sent == pair), "{pair} in {}", create.body);
    }
    assert!(create.body.contains("00000000-0000-0000-0000-000000000007"), "{}", create.body);
}

#[tokio::test]
async fn settings_and_kinds_of_methods_travel() {
    let server = Server::answering([method(), Reply::Json(200, intent("processing"))]).await;
    let settings = ProviderSettings { statement_descriptor: Some("SHOP".into()), ..ProviderSettings::default() };
    let stripe = Stripe::new(http().to(&server.url), "sk_live_1".to_owned(), settings);
    let outcome = stripe.charge(&order(PaymentMethodType::SepaDirectDebit, "pm_1", 0)).await;
    assert_eq!(outcome, Outcome::Pending { reference: reference() }, "direct debit takes days");
    let body = &server.asked()[1].body;
    assert!(body.contains("statement_descriptor=SHOP") && body.contains("=sepa_debit"), "{body}");
}

#[tokio::test]
async fn trouble_is_repeated_with_the_same_key() {
    let busy = json!({"type": "idempotency_error", "message": "There is currently another in-progress request"});
    let replies = vec![
        method(),
        error(409, json!({"message": busy["message"]})),
        Reply::Break,
        Reply::Json(200, intent("succeeded")),
    ];
    let (outcome, server) = charge(replies, 0).await;
    assert_eq!(outcome, Outcome::Succeeded { reference: reference() });
    let keys: Vec<_> = server.asked()[1..].iter().map(|asked| asked.header("idempotency-key").to_owned()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]));
    for status in [429, 500, 503] {
        let trouble = || error(status, json!({"type": "api_error", "message": "later"}));
        let (outcome, server) = charge(vec![method(), trouble(), trouble(), trouble()], 0).await;
        assert!(matches!(outcome, Outcome::Unknown { .. }), "{status}: {outcome:?}");
        assert_eq!(server.asked().len(), 4);
    }
}

#[tokio::test]
async fn a_decline_is_final_and_has_its_reason() {
    let declined = json!({"type": "card_error", "code": "card_declined", "decline_code": "insufficient_funds",
        "message": "Your card has insufficient funds.", "payment_intent": intent("requires_payment_method")});
    let (outcome, _) = charge(vec![method(), error(402, declined)], 0).await;
    let Outcome::Declined(decline) = outcome else { panic!("{outcome:?}") };
    assert_eq!((decline.code, decline.reference), (FailureCode::InsufficientFunds, Some(reference())));
    assert_eq!(decline.message, "Your card has insufficient funds. (insufficient_funds)");
    for (status, kind, code) in [(401, "invalid_request_error", ""), (400, "invalid_request_error", "amount_too_small")]
    {
        let refused = json!({"type": kind, "code": code, "message": "No."});
        let (outcome, _) = charge(vec![method(), error(status, refused)], 0).await;
        assert!(matches!(&outcome, Outcome::Declined(d) if d.code == FailureCode::InvalidRequest), "{outcome:?}");
    }
    let (outcome, _) = charge(vec![method(), Reply::Json(200, intent("requires_action"))], 0).await;
    assert!(matches!(&outcome, Outcome::Declined(d) if d.code == FailureCode::AuthenticationRequired), "{outcome:?}");
}

#[tokio::test]
async fn a_key_that_stripe_has_forgotten_is_never_sent_again() {
    let (outcome, server) =
        charge(vec![Reply::Json(200, json!({"object": "search_result", "data": [intent("succeeded")]}))], 24).await;
    assert_eq!(outcome, Outcome::Succeeded { reference: reference() });
    assert!(
        server.asked()[0].line.starts_with("GET /v1/payment_intents/search?query=metadata"),
        "{:?}",
        server.asked()
    );
    let (outcome, _) = charge(vec![Reply::Json(200, json!({"data": []}))], 48).await;
    assert!(
        matches!(&outcome, Outcome::Declined(d) if d.code == FailureCode::NetworkError),
        "it never came: {outcome:?}"
    );
    let trouble = || error(500, json!({}));
    let (outcome, _) = charge(vec![trouble(), trouble(), trouble()], 48).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_key_with_other_parameters_leads_to_what_the_first_call_made() {
    let conflict = || {
        error(
            400,
            json!({"type": "idempotency_error", "message": "Keys for idempotent requests can only be used with the same parameters"}),
        )
    };
    let found = Reply::Json(200, json!({"data": [intent("succeeded")]}));
    let (outcome, _) = charge(vec![method(), conflict(), found], 0).await;
    assert_eq!(outcome, Outcome::Succeeded { reference: reference() });
    let (outcome, _) = charge(vec![method(), conflict(), Reply::Json(200, json!({"data": []}))], 0).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "the search lags behind: {outcome:?}");
}

#[tokio::test]
async fn nobody_there_is_not_the_same_as_no_answer() {
    let stripe = |url: &str| Stripe::new(http().to(url), "sk".to_owned(), ProviderSettings::default());
    let card = order(PaymentMethodType::CreditCard, "pm_1", 0);
    let outcome = stripe(&nowhere().await).charge(&card).await;
    assert!(matches!(outcome, Outcome::NotSent { .. }), "{outcome:?}");
    let (outcome, _) = charge(vec![method(), Reply::Break, Reply::Break, Reply::Break], 0).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
}

#[tokio::test]
async fn references_and_refunds_tell_how_they_are() {
    let refund =
        |status: &str| Reply::Json(200, json!({"id": "re_1", "object": "refund", "amount": 234, "status": status}));
    let replies = [Reply::Json(200, intent("succeeded")), refund("pending"), refund("failed"), error(404, json!({}))];
    let server = Server::answering(replies).await;
    let stripe = Stripe::new(http().to(&server.url), "sk".to_owned(), ProviderSettings::default());
    assert_eq!(stripe.status(Subject::Charge, "pi_1").await, Outcome::Succeeded { reference: reference() });
    let card = order(PaymentMethodType::CreditCard, "pm_1", 0);
    let back = refund_of(&card, "pi_1");
    assert_eq!(stripe.refund(&back).await, Outcome::Pending { reference: "re_1".to_owned() });
    assert!(matches!(stripe.status(Subject::Refund, "re_1").await, Outcome::Declined(_)));
    assert!(matches!(stripe.status(Subject::Charge, "pi_2").await, Outcome::Unknown { .. }));
    let asked = server.asked();
    assert_eq!(asked[1].line, "POST /v1/refunds");
    assert!(
        asked[1].body.contains("payment_intent=pi_1") && asked[1].body.contains("amount=1234"),
        "{}",
        asked[1].body
    );
    assert_eq!(asked[1].header("idempotency-key"), card.transaction_id.to_string());
    assert_eq!(asked[2].line, "GET /v1/refunds/re_1");
}

#[tokio::test]
async fn a_refund_whose_key_is_forgotten_is_looked_for() {
    let ours = json!({"id": "re_1", "status": "succeeded", "metadata": {"transaction_id": "00000000-0000-0000-0000-000000000007"}});
    let other = json!({"id": "re_2", "status": "succeeded", "metadata": {}});
    let listed = |refunds: Value, more: bool| Reply::Json(200, json!({"data": refunds, "has_more": more}));
    let replies = [listed(json!([other, ours]), false), listed(json!([other]), false), listed(json!([other]), true)];
    let server = Server::answering(replies).await;
    let stripe = Stripe::new(http().to(&server.url), "sk".to_owned(), ProviderSettings::default());
    let old = refund_of(&order(PaymentMethodType::CreditCard, "pm_1", 48), "pi_1");
    assert_eq!(stripe.refund(&old).await, Outcome::Succeeded { reference: "re_1".to_owned() });
    assert!(matches!(stripe.refund(&old).await, Outcome::Declined(d) if d.code == FailureCode::NetworkError));
    assert!(matches!(stripe.refund(&old).await, Outcome::Unknown { .. }), "it may be on the next page");
    assert_eq!(server.asked()[0].line, "GET /v1/refunds?limit=100&payment_intent=pi_1");
}
