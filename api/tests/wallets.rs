//! Wallets over HTTP (wallets.md): some of the test vectors, idempotency keys in the body, and who may do what.

use api::testing::{Client, TestApi, id};
use serde_json::{Value, json};

fn eur(value: &str) -> Value {
    json!({"value": value, "currency": "EUR"})
}

async fn wallet(client: &Client, customer: Value) -> String {
    let mut body = json!({"name": "A", "email": "a@b.example"});
    body.as_object_mut().unwrap().extend(customer.as_object().unwrap().clone());
    let created = client.post("/v1/customers", body).await.data(201);
    format!("/v1/wallets/{}", id(&created["wallet"]))
}

async fn balances(client: &Client, wallet: &str) -> String {
    let dto = client.get(wallet).await.data(200);
    let value = |name: &str| dto[name]["value"].as_str().unwrap().to_owned();
    let [cash, promotional, held, available] =
        ["cash_balance", "promotional_balance", "held_balance", "available_balance"].map(value);
    format!("{cash} / {promotional} / {held}, {available}")
}

#[tokio::test]
async fn w1_w2_credit_then_debit_promotional_first() {
    let api = TestApi::start().await;
    let wallet = wallet(&api.live, json!({"billing_model": "PREPAID"})).await;
    let credit = format!("{wallet}/credit");
    let movement = api.live.post(&credit, json!({"amount": eur("120.00")})).await.data(201);
    assert_eq!((&movement["type"], &movement["source"]), (&json!("CREDIT"), &json!("MANUAL")));
    assert_eq!(balances(&api.live, &wallet).await, "120.00 / 0.00 / 0.00, 120.00");
    let promotion = json!({"amount": eur("30"), "is_promotional": true, "expires_at": "2999-01-01T00:00:00Z", "source": "PROMOTION"});
    let _ = api.live.post(&credit, promotion).await.data(201);
    let movement = api.live.post(&format!("{wallet}/debit"), json!({"amount": eur("50.00")})).await.data(201);
    assert_eq!((&movement["amount"], &movement["cash_balance_after"]), (&eur("-20.00"), &eur("100.00")));
    assert_eq!(balances(&api.live, &wallet).await, "100.00 / 0.00 / 0.00, 100.00");
    let page = api.live.get(&format!("{wallet}/transactions")).await.expect(200);
    let rows = page["data"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0], movement, "newest first");
    assert_eq!(rows[0]["group_id"], rows[1]["group_id"]);
    let debits = api.live.get(&format!("{wallet}/transactions?type=DEBIT&source=MANUAL")).await.expect(200);
    assert_eq!(debits["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn w3_to_w6_holds() {
    let api = TestApi::start().await;
    let wallet = wallet(&api.live, json!({"billing_model": "PREPAID"})).await;
    let _ = api.live.post(&format!("{wallet}/credit"), json!({"amount": eur("100.00")})).await.data(201);
    let hold = api.live.post(&format!("{wallet}/holds"), json!({"amount": eur("60.00")})).await.data(201);
    assert_eq!(balances(&api.live, &wallet).await, "100.00 / 0.00 / 60.00, 40.00");
    let refused = api.live.post(&format!("{wallet}/debit"), json!({"amount": eur("40.01")})).await;
    assert_eq!(refused.problem(422, "INSUFFICIENT_FUNDS")["available"], eur("40.00"));
    let path = format!("{wallet}/holds/{}", id(&hold));
    api.live
        .post(&format!("{path}/capture"), json!({"amount": eur("60.01")}))
        .await
        .problem(422, "AMOUNT_EXCEEDS_HOLD");
    let captured = api.live.post(&format!("{path}/capture"), json!({"amount": eur("45.00")})).await.data(200);
    assert_eq!((&captured["status"], &captured["captured_amount"]), (&json!("CAPTURED"), &eur("45.00")));
    assert_eq!(balances(&api.live, &wallet).await, "55.00 / 0.00 / 0.00, 55.00");
    let problem = api.live.post(&format!("{path}/release"), json!({})).await.problem(409, "INVALID_TRANSITION");
    assert_eq!((&problem["from"], &problem["to"]), (&json!("CAPTURED"), &json!("RELEASED")));
    let second = api.live.post(&format!("{wallet}/holds"), json!({"amount": eur("5.00")})).await.data(201);
    let path = format!("{wallet}/holds/{}", id(&second));
    let released = api.live.post(&format!("{path}/release"), json!({})).await.data(200);
    assert_eq!(api.live.get(&path).await.data(200), released);
    assert_eq!(api.live.get(&format!("{wallet}/holds?status=RELEASED")).await.expect(200)["data"], json!([released]));
    assert_eq!(balances(&api.live, &wallet).await, "55.00 / 0.00 / 0.00, 55.00");
}

#[tokio::test]
async fn w7_w8_postpaid() {
    let api = TestApi::start().await;
    let wallet = wallet(&api.live, json!({"default_credit_limit": "50.00"})).await;
    let _ = api.live.post(&format!("{wallet}/credit"), json!({"amount": eur("10.00")})).await.data(201);
    let _ = api.live.post(&format!("{wallet}/debit"), json!({"amount": eur("60.00")})).await.data(201);
    assert_eq!(balances(&api.live, &wallet).await, "-50.00 / 0.00 / 0.00, 0.00");
    api.live.post(&format!("{wallet}/debit"), json!({"amount": eur("0.01")})).await.problem(422, "INSUFFICIENT_FUNDS");
}

#[tokio::test]
async fn a_key_in_the_body_answers_200_with_the_first_result() {
    let api = TestApi::start().await;
    let path = wallet(&api.live, json!({})).await + "/credit";
    let body = json!({"amount": eur("10.00"), "idempotency_key": "k"});
    let first = api.live.post(&path, body.clone()).await.data(201);
    assert_eq!(api.live.post(&path, body).await.data(200), first);
    let other = json!({"amount": eur("11.00"), "idempotency_key": "k"});
    api.live.post(&path, other).await.problem(409, "IDEMPOTENCY_CONFLICT");
}

#[tokio::test]
async fn secondary_wallets_have_a_currency_each() {
    let api = TestApi::start().await;
    let customer = api.live.post("/v1/customers", json!({"name": "A", "email": "a@b.example"})).await.data(201);
    let path = format!("/v1/customers/{}/wallets", id(&customer));
    let body = json!({"currency": "USD", "max_balance": "100"});
    let dollars = api.live.post(&path, body).await.data(201);
    assert_eq!((&dollars["is_primary"], &dollars["max_balance"]["value"]), (&json!(false), &json!("100.00")));
    let body = json!({"customer_id": id(&customer), "currency": "USD"});
    api.live.post("/v1/wallets", body.clone()).await.problem(409, "DUPLICATE");
    let other = json!({"customer_id": id(&dollars), "currency": "GBP"});
    api.live.post(&path, other).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let missing = api.live.post("/v1/wallets", json!({"currency": "GBP"})).await.bad_fields();
    assert_eq!(missing, [("customer_id".to_owned(), "REQUIRED".to_owned())]);
    let listed = api.live.get("/v1/wallets?currency=USD,GBP&is_primary=false").await.expect(200);
    assert_eq!(listed["data"], json!([dollars]));
    let settings = format!("/v1/wallets/{}/settings", id(&dollars));
    let changed = api.live.patch(&settings, json!({"max_balance": null, "credit_limit": "7"})).await.data(200);
    assert_eq!((&changed["max_balance"], &changed["credit_limit"]["value"]), (&Value::Null, &json!("7.00")));
    api.live.patch(&settings, json!({"mode": "PREPAID"})).await.problem(422, "BUSINESS_RULE_VIOLATION");
}

#[tokio::test]
async fn strangers_get_404_and_readers_may_not_write() {
    let api = TestApi::start().await;
    let path = wallet(&api.live, json!({})).await;
    for stranger in [&api.other, &api.sandbox] {
        stranger.get(&path).await.problem(404, "NOT_FOUND");
        stranger.get(&format!("{path}/transactions")).await.problem(404, "NOT_FOUND");
        stranger.get(&format!("{path}/holds")).await.problem(404, "NOT_FOUND");
        stranger.post(&format!("{path}/credit"), json!({"amount": eur("1.00")})).await.problem(404, "NOT_FOUND");
        stranger.post(&format!("{path}/debit"), json!({"amount": eur("1.00")})).await.problem(404, "NOT_FOUND");
        stranger.patch(&format!("{path}/settings"), json!({})).await.problem(404, "NOT_FOUND");
        assert_eq!(stranger.get("/v1/wallets").await.expect(200)["data"], json!([]));
    }
    let key = api.live.post("/v1/api-keys", json!({"name": "reader", "scopes": ["wallets:read"]})).await.expect(201);
    let reader = api.live.with_token(key["key"].as_str().unwrap_or_default());
    let _ = reader.get(&path).await.expect(200);
    reader.post(&format!("{path}/credit"), json!({"amount": eur("1.00")})).await.problem(403, "FORBIDDEN");
}
