//! Gateways, payment methods, simulations, top-ups and the ledger of payments over HTTP, with a second tenant.

#[path = "../../payments/tests/flow/invoice.rs"]
mod invoice;
#[path = "settlements/mod.rs"]
mod settlements;

use api::testing::{Client, TestApi, id};
use axum::http::Method;
use domain::Clock;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};

fn eur(value: &str) -> Value {
    json!({"value": value, "currency": "EUR"})
}

async fn customer(client: &Client, more: Value) -> Value {
    let mut body = json!({"name": "A", "email": "a@b.example", "billing_model": "PREPAID"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post("/v1/customers", body).await.data(201)
}

async fn gateway(client: &Client, provider: &str, mode: &str) -> Value {
    let config = json!({"api_key": "sk_secret", "webhook_secret": "whsec_secret"});
    let body = json!({"provider": provider, "mode": mode, "config": config});
    client.post("/v1/payment-gateways", body).await.data(201)
}

async fn method(client: &Client, customer: &Value, token: &str) -> Value {
    let body = json!({"customer_id": id(customer), "type": "CREDIT_CARD", "provider": "stripe", "provider_id": token});
    client.post("/v1/payment-methods", body).await.data(201)
}

#[tokio::test]
async fn a_gateway_keeps_its_secrets() {
    let api = TestApi::start().await;
    let made = gateway(&api.live, "stripe", "live").await;
    assert_eq!(made["config_keys"], json!(["api_key", "webhook_secret"]));
    assert_eq!(
        (&made["is_enabled"], &made["is_default"], &made["display_name"]),
        (&json!(true), &json!(false), &Value::Null)
    );
    let path = format!("/v1/payment-gateways/{}", id(&made));
    assert_eq!(api.live.get(&path).await.data(200), made);
    let listed = api.live.get("/v1/payment-gateways?provider=stripe&mode=live&is_enabled=true").await;
    let text = String::from_utf8_lossy(&listed.bytes).into_owned();
    assert!(!text.contains("sk_secret") && !text.contains("whsec_secret"), "names only: {text}");
    assert_eq!(listed.expect(200)["data"], json!([made]));
    let ack = api.live.put(&path, json!({"is_default": true, "config": {"api_key": "sk_2"}})).await.data(200);
    assert_eq!((&ack["id"], &ack["updated"]), (&made["id"], &json!(true)));
    assert_eq!(api.live.get(&path).await.data(200)["config_keys"], json!(["api_key"]));
    api.live.put(&path, json!({"is_enabled": false})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    api.live.put(&path, json!({"provider": "adyen"})).await.problem(400, "VALIDATION");
    // A second of the same provider and mode needs a name; the default is one per mode.
    let body = json!({"provider": "stripe", "mode": "live", "config": {"api_key": "x"}});
    api.live.post("/v1/payment-gateways", body.clone()).await.problem(409, "DUPLICATE");
    let mut named = body;
    named["display_name"] = json!("second");
    let second = api.live.post("/v1/payment-gateways", named).await.data(201);
    let second = format!("/v1/payment-gateways/{}", id(&second));
    let _ = api.live.put(&second, json!({"is_default": true})).await.expect(200);
    assert_eq!(api.live.get(&path).await.data(200)["is_default"], json!(false));
    assert_eq!(api.live.get(&second).await.data(200)["is_default"], json!(true));
    let _ = api.live.delete(&second).await.expect(204);
    api.live.get(&second).await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn bad_gateways_name_their_fields() {
    let api = TestApi::start().await;
    let body = json!({"provider": "external", "mode": "sandbox", "config": {"webhook_secret": "x"},
        "supported_currencies": ["EUR", "eur"], "supported_methods": ["card"], "color": 1});
    let fields = api.live.post("/v1/payment-gateways", body).await.bad_fields();
    let expected = [
        ("provider", "INVALID_ENUM"),
        ("mode", "INVALID_ENUM"),
        ("config", "REQUIRED"),
        ("supported_currencies[1]", "INVALID_FORMAT"),
        ("supported_methods[0]", "INVALID_ENUM"),
        ("color", "UNKNOWN_FIELD"),
    ];
    assert_eq!(fields, expected.map(|(field, code)| (field.to_owned(), code.to_owned())));
    let settings = async |provider: &str, settings: Value| {
        let made = gateway(&api.sandbox, provider, "test").await;
        let path = format!("/v1/payment-gateways/{}", id(&made));
        let reply = api.sandbox.put(&format!("{path}/provider-settings"), json!({"settings": settings})).await;
        let _ = api.sandbox.delete(&path).await.expect(204);
        reply
    };
    let good = json!({"statement_descriptor": "A SHOP", "capture_method": "automatic", "retry_on_soft_decline": false});
    assert_eq!(settings("stripe", good.clone()).await.data(200)["provider_settings"], good);
    for (provider, wrong, field) in [
        ("stripe", json!({"creditor_id": "CR1"}), "settings.creditor_id"),
        ("gocardless", json!({"capture_method": "automatic"}), "settings.capture_method"),
        ("stripe", json!({"capture_method": "manual"}), "settings.capture_method"),
        ("stripe", json!({"statement_descriptor": "1234"}), "settings.statement_descriptor"),
        ("gocardless", json!({"sepa_mandate_scheme": "core"}), "settings.sepa_mandate_scheme"),
    ] {
        assert_eq!(settings(provider, wrong).await.bad_fields()[0].0, field);
    }
}

#[tokio::test]
async fn methods_have_one_default_and_stay_when_removed() {
    let api = TestApi::start().await;
    let owner = customer(&api.live, json!({})).await;
    let body = json!({"customer_id": id(&owner), "type": "CREDIT_CARD", "provider": "stripe", "provider_id": "pm_1"});
    api.live.post("/v1/payment-methods", body.clone()).await.problem(422, "GATEWAY_NOT_CONFIGURED");
    // One of the other mode does not count.
    let test_mode = gateway(&api.live, "stripe", "test").await;
    api.live.post("/v1/payment-methods", body.clone()).await.problem(422, "GATEWAY_NOT_CONFIGURED");
    let _ = api.live.delete(&format!("/v1/payment-gateways/{}", id(&test_mode))).await.expect(204);
    let made = gateway(&api.live, "stripe", "live").await;
    let first = api.live.post("/v1/payment-methods", body.clone()).await.data(201);
    assert_eq!((&first["is_default"], &first["status"]), (&json!(true), &json!("ACTIVE")), "the first is the default");
    assert!(first.get("last4").is_none() && first.get("bank_name").is_none(), "{first}");
    assert_eq!(api.live.post("/v1/payment-methods", body).await.problem(409, "DUPLICATE")["existing_id"], first["id"]);
    api.live.delete(&format!("/v1/payment-gateways/{}", id(&made))).await.problem(409, "GATEWAY_IN_USE");
    let second = method(&api.live, &owner, "pm_2").await;
    let third = method(&api.live, &owner, "pm_3").await;
    assert_eq!(second["is_default"], json!(false));
    let path = |method: &Value| format!("/v1/payment-methods/{}", id(method));
    let chosen = api.live.post_empty(&format!("{}/default", path(&second))).await.data(200);
    assert_eq!(chosen["is_default"], json!(true));
    assert_eq!(api.live.get(&path(&first)).await.data(200)["is_default"], json!(false));
    api.live.patch(&path(&second), json!({"is_default": false})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let _ = api.live.delete(&path(&second)).await.expect(204);
    assert_eq!(api.live.get(&path(&third)).await.data(200)["is_default"], json!(true), "the newest active one");
    let removed = api.live.get(&path(&second)).await.data(200);
    assert_eq!((&removed["status"], removed["deleted_at"].is_string()), (&json!("REMOVED"), true));
    let count = async |query: &str| {
        let page = api.live.get(&format!("/v1/payment-methods?customer_id={}{query}", id(&owner))).await.expect(200);
        page["data"].as_array().unwrap().len()
    };
    assert_eq!((count("").await, count("&include_removed=true").await, count("&status=ACTIVE").await), (2, 3, 2));
    api.live.get("/v1/payment-methods?include_removed=maybe").await.problem(400, "VALIDATION");
    api.live.post_empty(&format!("{}/default", path(&second))).await.problem(409, "INVALID_TRANSITION");
    // A token is free again once its method is removed.
    let _ = method(&api.live, &owner, "pm_2").await;
    let external =
        json!({"customer_id": id(&owner), "type": "EXTERNAL", "provider": "external", "provider_id": "bank"});
    let _ = api.live.post("/v1/payment-methods", external).await.data(201);
}

#[tokio::test]
async fn display_fields_belong_to_their_instrument() {
    let api = TestApi::start().await;
    let owner = customer(&api.live, json!({})).await;
    let _ = gateway(&api.live, "stripe", "live").await;
    let path = format!("/v1/payment-methods/{}", id(&method(&api.live, &owner, "pm_1").await));
    let card =
        json!({"display_brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2099, "metadata": {"a": "b"}});
    let shown = api.live.patch(&path, card).await.data(200);
    assert_eq!(
        (&shown["last4"], &shown["exp_year"], &shown["metadata"]["a"]),
        (&json!("4242"), &json!(2099), &json!("b"))
    );
    api.live.patch(&path, json!({"bank_name": "B"})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let fields =
        api.live.patch(&path, json!({"status": "REMOVED", "last4": "42", "exp_month": 13, "type": "PAYPAL"})).await;
    assert_eq!(fields.bad_fields().len(), 4);
    // A card past its last day reads as expired, also for filters.
    let expired = api.live.patch(&path, json!({"exp_month": 1, "exp_year": 2020})).await.data(200);
    assert_eq!(expired["status"], json!("EXPIRED"));
    assert_eq!(api.live.get("/v1/payment-methods?status=EXPIRED").await.expect(200)["data"], json!([expired]));
    let number = json!({"customer_id": id(&owner), "type": "CREDIT_CARD", "provider": "stripe", "provider_id": "4242424242424242"});
    assert_eq!(api.live.post("/v1/payment-methods", number).await.bad_fields()[0].1, "NOT_ALLOWED");
}

#[tokio::test]
async fn simulations_decide_in_a_sandbox_only() {
    let api = TestApi::start().await;
    let _ = gateway(&api.sandbox, "stripe", "test").await;
    let owner = customer(&api.sandbox, json!({})).await;
    let card = method(&api.sandbox, &owner, "pm_1").await;
    let topup = format!("/v1/wallets/{}/topup", id(&owner["wallet"]));
    let simulate = async |outcome: &str| {
        let body = json!({"payment_method_id": id(&card), "outcome": outcome});
        api.sandbox.post("/v1/test-payment-simulations", body).await.data(201)
    };
    let paid = api.sandbox.post(&topup, json!({"amount": eur("10.00")})).await.data(201);
    assert_eq!((&paid["status"], &paid["wallet"]["cash_balance"]), (&json!("SUCCEEDED"), &eur("10.00")));
    let decline = simulate("insufficient_funds").await;
    let problem = api.sandbox.post(&topup, json!({"amount": eur("10.00")})).await.problem(422, "PAYMENT_DECLINED");
    assert_eq!(problem["failure_code"], json!("insufficient_funds"));
    let _ = simulate("network_error").await;
    let away = api.sandbox.post(&topup, json!({"amount": eur("10.00")})).await;
    assert!(away.header("retry-after").is_some());
    assert_eq!(away.problem(503, "SERVICE_UNAVAILABLE")["dependency"], json!("payment_gateway"));
    let listed = api.sandbox.get("/v1/test-payment-simulations?outcome=insufficient_funds").await.expect(200);
    assert_eq!(listed["data"], json!([decline]));
    let path = format!("/v1/test-payment-simulations/{}", id(&decline));
    assert_eq!(api.sandbox.get(&path).await.data(200), decline);
    let _ = api.sandbox.delete(&path).await.expect(204);
    api.sandbox.delete(&path).await.problem(404, "NOT_FOUND");
    let wrong = json!({"payment_method_id": id(&card), "outcome": "pending"});
    assert_eq!(api.sandbox.post("/v1/test-payment-simulations", wrong).await.bad_fields()[0].1, "INVALID_ENUM");
    let body = json!({"payment_method_id": id(&card), "outcome": "success"});
    api.live.post("/v1/test-payment-simulations", body.clone()).await.problem(403, "FORBIDDEN");
    api.other_sandbox.post("/v1/test-payment-simulations", body).await.problem(404, "NOT_FOUND");
    // The ledger of payments has every attempt.
    let rows = api.sandbox.get("/v1/transactions?kind=WALLET_TOPUP&direction=INBOUND").await.expect(200);
    let statuses: Vec<_> = rows["data"].as_array().unwrap().iter().map(|row| row["status"].clone()).collect();
    assert_eq!(statuses, ["FAILED", "FAILED", "SUCCEEDED"], "newest first");
    let failed = api.sandbox.get("/v1/transactions?status=FAILED&sort=amount").await.expect(200);
    assert_eq!(failed["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_repeated_topup_answers_how_far_the_first_is() {
    let api = TestApi::start().await;
    let _ = gateway(&api.sandbox, "stripe", "test").await;
    let owner = customer(&api.sandbox, json!({})).await;
    let card = method(&api.sandbox, &owner, "pm_1").await;
    let wallet = format!("/v1/wallets/{}", id(&owner["wallet"]));
    let topup = format!("{wallet}/topup");
    // By the key in the body.
    let body = json!({"amount": eur("10.00"), "idempotency_key": "k", "payment_method_id": id(&card)});
    let first = api.sandbox.post(&topup, body.clone()).await.data(201);
    assert_eq!(api.sandbox.post(&topup, body.clone()).await.data(200), first);
    let other = json!({"amount": eur("11.00"), "idempotency_key": "k"});
    api.sandbox.post(&topup, other).await.problem(409, "IDEMPOTENCY_CONFLICT");
    // By the key in the header, also of a refusal.
    let client = api.sandbox.with_header("idempotency-key", "h1");
    let first = client.post(&topup, json!({"amount": eur("5.00")})).await.data(201);
    let repeat = client.post(&topup, json!({"amount": eur("5.00")})).await;
    assert_eq!(repeat.header("idempotent-replayed"), Some("true"));
    assert_eq!(repeat.data(201)["transaction_id"], first["transaction_id"]);
    let decline = json!({"payment_method_id": id(&card), "outcome": "decline"});
    let _ = api.sandbox.post("/v1/test-payment-simulations", decline).await.data(201);
    let client = api.sandbox.with_header("idempotency-key", "h2");
    for _ in 0..2 {
        client.post(&topup, json!({"amount": eur("5.00")})).await.problem(422, "PAYMENT_DECLINED");
    }
    assert_eq!(api.sandbox.get(&wallet).await.data(200)["cash_balance"], eur("15.00"));
    let rows = api.sandbox.get("/v1/transactions").await.expect(200);
    assert_eq!(rows["data"].as_array().unwrap().len(), 3, "one per key");
}

#[tokio::test]
async fn a_topup_is_refused_before_anybody_is_charged() {
    let api = TestApi::start().await;
    let owner = customer(&api.sandbox, json!({"default_max_balance": "100"})).await;
    let wallet = format!("/v1/wallets/{}/topup", id(&owner["wallet"]));
    let topup = async |body: Value| api.sandbox.post(&wallet, body).await;
    topup(json!({"amount": eur("10.00")})).await.problem(422, "NO_PAYMENT_METHOD");
    let made = gateway(&api.sandbox, "stripe", "test").await;
    let card = method(&api.sandbox, &owner, "pm_1").await;
    topup(json!({"amount": eur("100.01")})).await.problem(422, "MAX_BALANCE_EXCEEDED");
    topup(json!({"amount": {"value": "1.00", "currency": "USD"}})).await.problem(422, "CURRENCY_MISMATCH");
    assert_eq!(topup(json!({"amount": eur("0.00")})).await.bad_fields()[0].1, "OUT_OF_RANGE");
    let stranger = customer(&api.sandbox, json!({})).await;
    let theirs = method(&api.sandbox, &stranger, "pm_2").await;
    topup(json!({"amount": eur("1.00"), "payment_method_id": id(&theirs)})).await.problem(404, "NOT_FOUND");
    let path = format!("/v1/payment-gateways/{}", id(&made));
    let _ = api.sandbox.put(&path, json!({"supported_currencies": ["USD"]})).await.expect(200);
    topup(json!({"amount": eur("1.00")})).await.problem(422, "NO_GATEWAY_AVAILABLE");
    let _ = api.sandbox.put(&path, json!({"supported_currencies": []})).await.expect(200);
    let _ =
        api.sandbox.patch(&format!("/v1/payment-methods/{}", id(&card)), json!({"status": "FAILED"})).await.expect(200);
    topup(json!({"amount": eur("1.00")})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    assert_eq!(api.sandbox.get("/v1/transactions").await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn customers_are_filled_up_in_any_currency() {
    let api = TestApi::start().await;
    let _ = gateway(&api.sandbox, "stripe", "test").await;
    let owner = customer(&api.sandbox, json!({})).await;
    let _ = method(&api.sandbox, &owner, "pm_1").await;
    let path = format!("/v1/customers/{}/wallets/topup", id(&owner));
    let dollars = json!({"value": "7.00", "currency": "USD"});
    let charged = api.sandbox.post(&path, json!({"amount": dollars})).await.data(201);
    assert_eq!(
        (&charged["mode"], &charged["status"], &charged["invoice_id"]),
        (&json!("CHARGE"), &json!("SUCCEEDED"), &Value::Null)
    );
    let wallet = api.sandbox.get(&format!("/v1/wallets/{}", charged["wallet_id"].as_str().unwrap())).await.data(200);
    assert_eq!((&wallet["cash_balance"], &wallet["is_primary"]), (&dollars, &json!(false)));
    let body = json!({"amount": eur("20.00"), "mode": "MANUAL", "reference": "wire 17", "idempotency_key": "m"});
    let manual = api.sandbox.post(&path, body.clone()).await.data(201);
    assert_eq!((&manual["status"], &manual["wallet_id"]), (&json!("SUCCEEDED"), &owner["wallet"]["id"]));
    assert_eq!(api.sandbox.post(&path, body).await.data(200), manual);
    let row =
        api.sandbox.get(&format!("/v1/transactions/{}", manual["transaction_id"].as_str().unwrap())).await.data(200);
    assert_eq!(
        (&row["kind"], &row["provider"], &row["reference"], &row["gateway_id"]),
        (&json!("WALLET_TOPUP"), &json!("external"), &json!("wire 17"), &Value::Null)
    );
    let wrong = json!({"amount": eur("1.00"), "reference": "x"});
    assert_eq!(api.sandbox.post(&path, wrong).await.bad_fields(), [("reference".to_owned(), "NOT_ALLOWED".to_owned())]);
    let wallets = api.sandbox.get(&format!("/v1/customers/{}/wallets", id(&owner))).await.expect(200);
    assert_eq!(wallets["data"].as_array().unwrap().len(), 2);
    let report = ledger::verify(&api.app.store, &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.differences);
}

#[tokio::test]
async fn an_invoice_asks_for_a_topup() {
    let api = TestApi::start().await;
    let owner = customer(&api.sandbox, json!({"default_max_single_credit": "100"})).await;
    let path = format!("/v1/customers/{}/wallets/topup", id(&owner));
    let body = json!({"amount": eur("20.00"), "mode": "INVOICE", "idempotency_key": "i"});
    let client = api.sandbox.with_header("idempotency-key", "h");
    let first = client.post(&path, body.clone()).await.data(201);
    assert_eq!(
        (&first["mode"], &first["status"], &first["transaction_id"], &first["wallet_id"]),
        (&json!("INVOICE"), &json!("PENDING"), &Value::Null, &owner["wallet"]["id"])
    );
    let repeat = client.post(&path, body.clone()).await;
    assert_eq!(repeat.header("idempotent-replayed"), Some("true"));
    assert_eq!(repeat.data(201), first);
    let bill = format!("/v1/invoices/{}", first["invoice_id"].as_str().unwrap());
    let seen = api.sandbox.get(&bill).await.data(200);
    assert_eq!(
        (&seen["invoice_type"], &seen["status"], &seen["total"], &seen["amount_due"], &seen["invoice_number"]),
        (&json!("one_off"), &json!("finalized"), &eur("20.00"), &eur("20.00"), &json!("INV-000001"))
    );
    assert_eq!(
        (&seen["tax_amount"], &seen["tax_breakdown"][0]["tax_category_code"], &seen["lines"][0]["line_type"]),
        (&eur("0.00"), &json!("O"), &json!("ONE_TIME"))
    );
    let wallet = format!("/v1/wallets/{}", id(&owner["wallet"]));
    assert_eq!(api.sandbox.get(&wallet).await.data(200)["cash_balance"], eur("0.00"));
    let paid = api.sandbox.post(&format!("{bill}/manual-payments"), json!({"source": "CASH"})).await.data(201);
    assert_eq!(api.sandbox.get(&wallet).await.data(200)["cash_balance"], eur("20.00"));
    // How far it is now, under either key.
    for again in [api.sandbox.post(&path, body.clone()).await.data(200), client.post(&path, body).await.data(201)] {
        assert_eq!((&again["status"], &again["invoice_id"]), (&json!("SUCCEEDED"), &first["invoice_id"]));
    }
    let movements = api.sandbox.get(&format!("{wallet}/transactions")).await.expect(200)["data"].clone();
    assert_eq!(
        (movements.as_array().unwrap().len(), &movements[0]["source"], &movements[0]["reference_id"]),
        (1, &json!("TOPUP"), &first["invoice_id"])
    );
    let rows = api.sandbox.get(&format!("{bill}/transactions")).await.expect(200);
    assert_eq!(rows["data"], json!([paid]));
    let more = json!({"amount": eur("100.01"), "mode": "INVOICE"});
    api.sandbox.post(&path, more).await.problem(422, "MAX_SINGLE_CREDIT_EXCEEDED");
    let dear = json!({"amount": {"value": "1.50", "currency": "JPY"}, "mode": "INVOICE"});
    assert_eq!(api.sandbox.post(&path, dear).await.bad_fields()[0].0, "amount.value");
    // The wallet is there, but the workspace makes no invoices in its currency any more.
    let dollars = |mode: &str| json!({"amount": {"value": "1.00", "currency": "USD"}, "mode": mode});
    let _ = api.sandbox.post(&path, dollars("MANUAL")).await.data(201);
    let _ = api.sandbox.patch("/v1/currencies/USD", json!({"billing_enabled": false})).await.expect(200);
    api.sandbox.post(&path, dollars("INVOICE")).await.problem(422, "CURRENCY_NOT_ENABLED");
    let wrong = json!({"amount": eur("1.00"), "mode": "INVOICE", "reference": "x", "payment_method_id": id(&owner)});
    assert_eq!(api.sandbox.post(&path, wrong).await.bad_fields().len(), 2);
    let invoices = api.sandbox.get("/v1/invoices?invoice_type=one_off").await.expect(200);
    assert_eq!(invoices["data"].as_array().unwrap().len(), 1);
    let report = ledger::verify(&api.app.store, &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.differences);
}

#[tokio::test]
async fn automatic_topups_come_by_themselves() {
    let api = TestApi::start().await;
    let _ = gateway(&api.sandbox, "stripe", "test").await;
    let defaults = json!({"default_auto_topup_enabled": true, "default_auto_topup_amount": "100.00", "default_low_balance_threshold": "20.00"});
    let owner = customer(&api.sandbox, defaults).await;
    let _ = method(&api.sandbox, &owner, "pm_1").await;
    let wallet = format!("/v1/wallets/{}", id(&owner["wallet"]));
    let _ = api.sandbox.post(&format!("{wallet}/credit"), json!({"amount": eur("25.00")})).await.data(201);
    let _ = api.sandbox.post(&format!("{wallet}/debit"), json!({"amount": eur("5.00")})).await.data(201);
    assert_eq!(api.app.payments.sweep(Clock::System.now()).await.unwrap().topups, 0, "W9");
    let _ = api.sandbox.post(&format!("{wallet}/debit"), json!({"amount": eur("0.01")})).await.data(201);
    assert_eq!(api.app.payments.sweep(Clock::System.now()).await.unwrap().topups, 1, "W10");
    assert_eq!(api.sandbox.get(&wallet).await.data(200)["cash_balance"], eur("119.99"));
    let rows = api.sandbox.get(&format!("{wallet}/transactions?source=AUTO_TOPUP&type=TOPUP")).await.expect(200);
    assert_eq!(rows["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn providers_speak_with_signatures_and_without_keys() {
    let api = TestApi::start().await;
    let made = gateway(&api.live, "stripe", "live").await;
    let owner = customer(&api.live, json!({})).await;
    let card = method(&api.live, &owner, "pm_1").await;
    let path = format!("/v1/webhooks/stripe/{}", id(&made));
    let body =
        json!({"id": "evt_1", "type": "payment_method.detached", "data": {"object": {"id": "pm_1"}}}).to_string();
    let time = Clock::System.now().timestamp().to_string();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"whsec_secret").unwrap();
    mac.update(format!("{time}.{body}").as_bytes());
    let signature = format!("t={time},v1={}", hex::encode(mac.finalize().into_bytes()));
    let nobody = api.live.with_authorization("");
    let send = |client: Client, body: &str| {
        let (path, body) = (path.clone(), body.as_bytes().to_vec());
        async move { client.send_bytes(Method::POST, &path, "application/json", body).await }
    };
    send(nobody.clone(), &body).await.problem(401, "INVALID_SIGNATURE");
    let signed = nobody.with_header("stripe-signature", &signature);
    send(signed.clone(), "{}").await.problem(401, "INVALID_SIGNATURE");
    for _ in 0..2 {
        let reply = send(signed.clone(), &body).await;
        assert_eq!((reply.status.as_u16(), reply.bytes.len()), (200, 0));
    }
    let seen = api.live.get(&format!("/v1/payment-methods/{}", id(&card))).await.data(200);
    assert_eq!(seen["status"], json!("REMOVED"));
    let unknown = format!("/v1/webhooks/gocardless/{}", id(&made));
    nobody.post(&unknown, json!({"events": []})).await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn strangers_get_404_and_readers_may_not_write() {
    let api = TestApi::start().await;
    let made = gateway(&api.live, "stripe", "live").await;
    let owner = customer(&api.live, json!({})).await;
    let card = method(&api.live, &owner, "pm_1").await;
    let topup = format!("/v1/customers/{}/wallets/topup", id(&owner));
    let manual = api.live.post(&topup, json!({"amount": eur("1.00"), "mode": "MANUAL"})).await.data(201);
    for stranger in [&api.other, &api.sandbox] {
        for path in [
            format!("/v1/payment-gateways/{}", id(&made)),
            format!("/v1/payment-methods/{}", id(&card)),
            format!("/v1/transactions/{}", manual["transaction_id"].as_str().unwrap()),
        ] {
            stranger.get(&path).await.problem(404, "NOT_FOUND");
        }
        for list in ["/v1/payment-gateways", "/v1/payment-methods", "/v1/transactions"] {
            assert_eq!(stranger.get(list).await.expect(200)["data"], json!([]));
        }
        stranger.put(&format!("/v1/payment-gateways/{}", id(&made)), json!({})).await.problem(404, "NOT_FOUND");
        stranger.delete(&format!("/v1/payment-methods/{}", id(&card))).await.problem(404, "NOT_FOUND");
        stranger.post(&topup, json!({"amount": eur("1.00")})).await.problem(404, "NOT_FOUND");
    }
    let no_invoice = format!("/v1/invoices/{}/transactions", id(&owner));
    api.live.get(&no_invoice).await.problem(404, "NOT_FOUND");
    let key = api.live.post("/v1/api-keys", json!({"name": "reader", "scopes": ["payments:read"]})).await.expect(201);
    let reader = api.live.with_token(key["key"].as_str().unwrap_or_default());
    let _ = reader.get("/v1/transactions").await.expect(200);
    reader.delete(&format!("/v1/payment-methods/{}", id(&card))).await.problem(403, "FORBIDDEN");
    reader.post(&topup, json!({"amount": eur("1.00")})).await.problem(403, "FORBIDDEN");
}

/// A finalized invoice of 119.00.
async fn bill(api: &TestApi, customer: &Value) -> String {
    let scope = api.sandbox_scope();
    let customer = domain::CustomerId(id(customer).parse().unwrap());
    format!("/v1/invoices/{}", invoice::finalized(&api.app.store, &scope, customer, invoice::PLAIN).await)
}

#[tokio::test]
async fn invoices_are_paid_by_hand() {
    let api = TestApi::start().await;
    let owner = customer(&api.sandbox, json!({})).await;
    let bill = bill(&api, &owner).await;
    let payments = format!("{bill}/manual-payments");
    let body = json!({"source": "BANK_TRANSFER", "amount": eur("100.00"), "reference": "wire 17", "note": "thanks"});
    let client = api.sandbox.with_header("idempotency-key", "once");
    let first = client.post(&payments, body.clone()).await.data(201);
    assert_eq!(client.post(&payments, body.clone()).await.data(201), first, "a repeat answers the first");
    assert_eq!(
        (&first["kind"], &first["direction"], &first["status"], &first["source"], &first["provider"]),
        (&json!("MANUAL_PAYMENT"), &json!("INBOUND"), &json!("SUCCEEDED"), &json!("BANK_TRANSFER"), &json!("external"))
    );
    assert_eq!(first["metadata"], json!({"note": "thanks"}));
    let seen = api.sandbox.get(&bill).await.data(200);
    assert_eq!((&seen["status"], &seen["amount_due"]), (&json!("finalized"), &eur("19.00")));
    let problem = api.sandbox.post(&payments, body).await.problem(409, "DUPLICATE");
    assert_eq!(problem["existing_id"], first["id"]);
    let more = json!({"source": "CASH", "amount": eur("19.01")});
    let problem = api.sandbox.post(&payments, more.clone()).await.problem(422, "OVERPAYMENT");
    assert_eq!(problem["amount_due"], eur("19.00"));
    let reverse = format!("{payments}/{}/reverse", first["id"].as_str().unwrap());
    let wrong = api.sandbox.post(&reverse, json!({})).await;
    assert_eq!(wrong.bad_fields(), [("reason".to_owned(), "REQUIRED".to_owned())]);
    assert_eq!(
        api.sandbox.post(&reverse, json!({"reason": "wrong invoice"})).await.data(200)["status"],
        json!("REFUNDED")
    );
    let all = json!({"source": "CASH", "amount": eur("120.00"), "credit_excess_to_wallet": true});
    let _ = api.sandbox.post(&payments, all).await.data(201);
    let seen = api.sandbox.get(&bill).await.data(200);
    assert_eq!(
        (&seen["status"], &seen["amount_paid"], &seen["amount_due"]),
        (&json!("paid"), &eur("119.00"), &eur("0.00"))
    );
    assert!(seen["paid_at"].is_string());
    let wallet = api.sandbox.get(&format!("/v1/wallets/{}", id(&owner["wallet"]))).await.data(200);
    assert_eq!(wallet["cash_balance"], eur("1.00"));
    let listed = api.sandbox.get(&payments).await.expect(200);
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    api.sandbox.post(&payments, more).await.problem(409, "INVALID_TRANSITION");
    for stranger in [&api.live, &api.other_sandbox] {
        stranger.get(&payments).await.problem(404, "NOT_FOUND");
        stranger.post(&payments, json!({"source": "CASH"})).await.problem(404, "NOT_FOUND");
        stranger.post(&reverse, json!({"reason": "x"})).await.problem(404, "NOT_FOUND");
    }
    let report = ledger::verify(&api.app.store, &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.differences);
}

#[tokio::test]
async fn invoices_are_charged_and_refunded() {
    let api = TestApi::start().await;
    let _ = gateway(&api.sandbox, "stripe", "test").await;
    let owner = customer(&api.sandbox, json!({})).await;
    let card = method(&api.sandbox, &owner, "pm_1").await;
    let bill = bill(&api, &owner).await;
    let (charge, refund) = (format!("{bill}/charge"), format!("{bill}/refund"));
    api.sandbox.post(&refund, json!({})).await.problem(409, "INVALID_TRANSITION");
    let simulate = async |outcome: &str| {
        let body = json!({"payment_method_id": id(&card), "outcome": outcome});
        let _ = api.sandbox.post("/v1/test-payment-simulations", body).await.data(201);
    };
    simulate("decline").await;
    let problem = api.sandbox.post(&charge, json!({})).await.problem(422, "PAYMENT_DECLINED");
    assert_eq!(problem["failure_code"], json!("decline"));
    simulate("success").await;
    let client = api.sandbox.with_header("idempotency-key", "charge");
    let paid = client.post_empty(&charge).await.data(200);
    assert_eq!((&paid["status"], &paid["amount"]), (&json!("SUCCEEDED"), &eur("119.00")));
    assert_eq!(client.post_empty(&charge).await.data(200), paid, "a repeat charges nobody");
    assert_eq!(api.sandbox.get(&bill).await.data(200)["status"], json!("paid"));
    api.sandbox.post(&charge, json!({})).await.problem(409, "INVALID_TRANSITION");

    let body = json!({"amount": eur("19.00"), "reason": "late", "metadata": {"ticket": "7"}, "idempotency_key": "r"});
    let first = api.sandbox.post(&refund, body.clone()).await.data(201);
    assert_eq!(api.sandbox.post(&refund, body).await.data(200), first);
    let row = &first["refund_transactions"][0];
    assert_eq!(
        (&first["status"], &row["kind"], &row["direction"], &row["parent_transaction_id"], &row["metadata"]["ticket"]),
        (&json!("SUCCEEDED"), &json!("REFUND"), &json!("OUTBOUND"), &paid["transaction_id"], &json!("7"))
    );
    let note =
        api.sandbox.get(&format!("/v1/credit-notes/{}", first["credit_note_id"].as_str().unwrap())).await.data(200);
    assert_eq!(
        (&note["status"], &note["reason_code"], &note["subtotal"], &note["tax_amount"], &note["reason"]),
        (&json!("applied"), &json!("REFUND"), &eur("15.97"), &eur("3.03"), &json!("late"))
    );
    assert_eq!(note["refund_transaction_id"], row["id"]);
    let _ = api.sandbox.post(&refund, json!({})).await.data(201);
    let problem = api.sandbox.post(&refund, json!({"amount": eur("0.01")})).await.problem(422, "REFUND_EXCEEDS_PAID");
    assert_eq!(problem["refundable"], eur("0.00"));
    let listed = api.sandbox.get(&format!("{bill}/refunds")).await.expect(200);
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    let rows = api.sandbox.get(&format!("{bill}/transactions?kind=CHARGE")).await.expect(200);
    let statuses: Vec<_> = rows["data"].as_array().unwrap().iter().map(|row| row["status"].clone()).collect();
    assert_eq!(statuses, ["REFUNDED", "FAILED"]);
    for stranger in [&api.live, &api.other_sandbox] {
        stranger.post(&refund, json!({})).await.problem(404, "NOT_FOUND");
        stranger.post(&charge, json!({})).await.problem(404, "NOT_FOUND");
        stranger.get(&format!("{bill}/refunds")).await.problem(404, "NOT_FOUND");
    }
    let scopes = json!({"name": "clerk", "scopes": ["payments:read", "payments:write"]});
    let key = api.sandbox.post("/v1/api-keys", scopes).await.expect(201);
    let clerk = api.sandbox.with_token(key["key"].as_str().unwrap_or_default());
    clerk.post(&refund, json!({})).await.problem(403, "FORBIDDEN");
    let report = ledger::verify(&api.app.store, &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.differences);
}
