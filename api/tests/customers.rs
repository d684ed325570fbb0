//! Customers over HTTP (customers.md): the wallet that comes with one, rules of change, upsert, tenancy.

use api::testing::{TestApi, id};
use serde_json::{Value, json};

fn acme() -> Value {
    json!({
        "name": "Acme GmbH", "email": "billing@acme.example", "external_id": "acme-1", "customer_type": "BUSINESS",
        "preferred_currency": "EUR", "billing_address": {"country": "DE", "city": "Berlin"},
        "tax_identifiers": {"eu_vat": "DE123456789"}, "metadata": {"crm": 7}, "billing_model": "PREPAID",
        "default_credit_limit": "50", "payment_terms_days": 14
    })
}

#[tokio::test]
async fn a_customer_comes_with_its_primary_wallet() {
    let api = TestApi::start().await;
    assert_eq!(api.live.get("/v1/customers").await.expect(200)["data"], json!([]));
    let created = api.live.post("/v1/customers", acme()).await.data(201);
    assert_eq!((&created["mode"], &created["status"]), (&json!("PREPAID"), &json!("ACTIVE")));
    let wallet = &created["wallet"];
    assert_eq!(
        (&wallet["is_primary"], &wallet["currency"], &wallet["mode"]),
        (&json!(true), &json!("EUR"), &json!("PREPAID"))
    );
    assert_eq!(wallet["credit_limit"], json!({"value": "50.00", "currency": "EUR"}));
    assert_eq!(wallet["available_balance"], json!({"value": "0.00", "currency": "EUR"}));
    let path = format!("/v1/customers/{}", id(&created));
    let read = api.live.get(&path).await.data(200);
    let mut expected = created.clone();
    expected.as_object_mut().unwrap().remove("wallet");
    assert_eq!(read, expected);
    assert_eq!(read["billing_address"], json!({"country": "DE", "city": "Berlin"}));
    assert!(read["created_at"].as_str().unwrap().ends_with('Z'));
    let wallets = api.live.get(&format!("{path}/wallets")).await.expect(200);
    assert_eq!(wallets["data"], json!([wallet]));
    // No preferred currency: the organization's.
    let plain = api.live.post("/v1/customers", json!({"name": "B", "email": "b@b.example"})).await.data(201);
    assert_eq!((&plain["wallet"]["currency"], &plain["billing_model"]), (&json!("EUR"), &json!("POSTPAID")));
    assert_eq!(plain["preferred_currency"], Value::Null);
}

#[tokio::test]
async fn an_external_id_is_taken_once() {
    let api = TestApi::start().await;
    let first = api.live.post("/v1/customers", acme()).await.data(201);
    let problem = api.live.post("/v1/customers", acme()).await.problem(409, "DUPLICATE");
    assert_eq!((&problem["field"], &problem["existing_id"]), (&json!("external_id"), &first["id"]));
    let other = api.live.post("/v1/customers", json!({"name": "B", "email": "b@b.example"})).await.data(201);
    let path = format!("/v1/customers/{}", id(&other));
    let problem = api.live.patch(&path, json!({"external_id": "acme-1"})).await.problem(409, "DUPLICATE");
    assert_eq!(problem["existing_id"], first["id"]);
    let _ = api.other.post("/v1/customers", acme()).await.data(201);
    // A deleted customer frees it.
    let _ = api.live.delete(&format!("/v1/customers/{}", id(&first))).await.expect(204);
    api.live.get(&format!("/v1/customers/{}", id(&first))).await.problem(404, "NOT_FOUND");
    let _ = api.live.patch(&path, json!({"external_id": "acme-1"})).await.data(200);
}

#[tokio::test]
async fn a_patch_changes_what_is_sent() {
    let api = TestApi::start().await;
    let created = api.live.post("/v1/customers", acme()).await.data(201);
    let path = format!("/v1/customers/{}", id(&created));
    let change = json!({"name": "Acme AG", "payment_terms_days": null, "billing_model": "HYBRID", "status": "INACTIVE",
        "metadata": {"crm": null, "tier": "gold"}, "tax_identifiers": {}});
    let changed = api.live.patch(&path, change).await.data(200);
    assert_eq!((&changed["name"], &changed["email"]), (&json!("Acme AG"), &json!("billing@acme.example")));
    assert_eq!((&changed["payment_terms_days"], &changed["status"]), (&Value::Null, &json!("INACTIVE")));
    assert_eq!((&changed["metadata"], &changed["tax_identifiers"]), (&json!({"tier": "gold"}), &json!({})));
    assert_eq!((&changed["billing_model"], &changed["mode"]), (&json!("HYBRID"), &json!("PREPAID")));
    assert_eq!(api.live.get(&path).await.data(200), changed);
    for refused in
        [json!({"billing_model": "POSTPAID"}), json!({"status": "ARCHIVED"}), json!({"custom_fields": {"unknown": 1}})]
    {
        api.live.patch(&path, refused).await.problem(422, "BUSINESS_RULE_VIOLATION");
    }
    let bad = json!({"name": null, "email": "nobody", "mode": "POSTPAID", "locale": "d?", "preferred_currency": "eur",
        "billing_address": {"city": "Berlin"}, "default_auto_topup_amount": "0", "payment_terms_days": -1});
    let fields = api.live.patch(&path, bad).await.bad_fields();
    let expected = [
        ("name", "REQUIRED"),
        ("email", "INVALID_FORMAT"),
        ("billing_address.country", "REQUIRED"),
        ("preferred_currency", "INVALID_FORMAT"),
        ("locale", "INVALID_FORMAT"),
        ("payment_terms_days", "OUT_OF_RANGE"),
        ("default_auto_topup_amount", "OUT_OF_RANGE"),
        ("mode", "UNKNOWN_FIELD"),
    ];
    assert_eq!(fields, expected.map(|(field, code)| (field.to_owned(), code.to_owned())));
}

#[tokio::test]
async fn lists_filter_page_and_stay_in_the_workspace() {
    let api = TestApi::start().await;
    for number in 1..=5 {
        let kind = if number % 2 == 0 { "CONSUMER" } else { "BUSINESS" };
        let body = json!({"name": format!("N{number}"), "email": "a@b.example", "customer_type": kind});
        let _ = api.live.post("/v1/customers", body).await.data(201);
    }
    let names = |page: &Value| -> Vec<String> {
        page["data"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    let page = api.live.get("/v1/customers?limit=2").await.expect(200);
    assert_eq!(names(&page), ["N5", "N4"]);
    let cursor = page["pagination"]["cursor"].as_str().unwrap();
    let next = api.live.get(&format!("/v1/customers?limit=2&cursor={cursor}")).await.expect(200);
    assert_eq!(names(&next), ["N3", "N2"]);
    assert_eq!(names(&api.live.get("/v1/customers?customer_type=CONSUMER").await.expect(200)), ["N4", "N2"]);
    assert_eq!(names(&api.live.get("/v1/customers?name.contains=n3").await.expect(200)), ["N3"]);
    assert!(names(&api.live.get("/v1/customers?tags=vip").await.expect(200)).is_empty());
    assert_eq!(names(&api.live.get("/v1/customers?sort=name&limit=1").await.expect(200)), ["N1"]);
    let bad = api.live.get("/v1/customers?status=GONE&colour=red").await.bad_fields();
    assert_eq!(bad.len(), 2);
    assert!(names(&api.other.get("/v1/customers").await.expect(200)).is_empty());
    assert!(names(&api.sandbox.get("/v1/customers").await.expect(200)).is_empty());
}

#[tokio::test]
async fn upsert_by_external_id_creates_then_changes() {
    let api = TestApi::start().await;
    let path = "/v1/customers/by-external-id/acme%201";
    let body = json!({"name": "Acme", "email": "a@acme.example", "customer_type": "BUSINESS"});
    api.live.get(path).await.problem(404, "NOT_FOUND");
    let put = async |body: Value| api.live.send(axum::http::Method::PUT, path, Some(body)).await;
    let created = put(body.clone()).await.data(201);
    assert_eq!(created["external_id"], json!("acme 1"));
    let changed = put(json!({"name": "Acme AG", "email": "a@acme.example"})).await.data(200);
    assert_eq!((&changed["id"], &changed["name"]), (&created["id"], &json!("Acme AG")));
    assert_eq!(api.live.get(path).await.data(200), changed);
    for wrong in [json!({"external_id": "other"}), json!({"customer_type": "CONSUMER"})] {
        let mut merged = body.clone();
        merged.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        put(merged).await.problem(422, "BUSINESS_RULE_VIOLATION");
    }
}

#[tokio::test]
async fn a_test_clock_is_for_sandboxes_and_must_exist() {
    let api = TestApi::start().await;
    let with_clock = |clock: &str| json!({"name": "C", "email": "c@c.example", "test_clock_id": clock});
    let unknown = "019f0000-0000-7000-8000-000000000000";
    api.live.post("/v1/customers", with_clock(unknown)).await.problem(403, "FORBIDDEN");
    api.sandbox.post("/v1/customers", with_clock(unknown)).await.problem(404, "NOT_FOUND");
    let clock = "019f0000-0000-7000-8000-000000000001";
    sqlx::query(
        "INSERT INTO test_clock (id, workspace_id, frozen_at, status, created_at, updated_at)
         VALUES ($1::uuid, $2, '2030-01-01Z', 'active', now(), now())",
    )
    .bind(clock)
    .bind(api.sandbox_scope().workspace_id)
    .execute(api.app.store.pool())
    .await
    .unwrap();
    let created = api.sandbox.post("/v1/customers", with_clock(clock)).await.data(201);
    assert_eq!((&created["test_clock_id"], &created["created_at"]), (&json!(clock), &json!("2030-01-01T00:00:00Z")));
    assert_eq!(created["wallet"]["created_at"], json!("2030-01-01T00:00:00Z"));
}

#[tokio::test]
async fn strangers_get_404() {
    let api = TestApi::start().await;
    let created = api.live.post("/v1/customers", acme()).await.data(201);
    let path = format!("/v1/customers/{}", id(&created));
    for stranger in [&api.other, &api.sandbox] {
        stranger.get(&path).await.problem(404, "NOT_FOUND");
        stranger.patch(&path, json!({"name": "X"})).await.problem(404, "NOT_FOUND");
        stranger.delete(&path).await.problem(404, "NOT_FOUND");
        stranger.get(&format!("{path}/wallets")).await.problem(404, "NOT_FOUND");
        stranger.post(&format!("{path}/wallets"), json!({"currency": "USD"})).await.problem(404, "NOT_FOUND");
        stranger.get("/v1/customers/by-external-id/acme-1").await.problem(404, "NOT_FOUND");
    }
    api.live.get("/v1/customers/not-a-uuid").await.problem(400, "BAD_REQUEST");
}

#[tokio::test]
async fn the_idempotency_header_makes_one_customer() {
    let api = TestApi::start().await;
    let client = api.live.with_header("Idempotency-Key", "once");
    let first = client.post("/v1/customers", acme()).await.data(201);
    let again = client.post("/v1/customers", acme()).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.data(201), first);
    assert_eq!(api.live.get("/v1/customers").await.expect(200)["data"].as_array().unwrap().len(), 1);
}
