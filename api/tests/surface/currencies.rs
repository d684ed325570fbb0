//! Guards: money in a currency that nobody has allowed, a workspace without a default, a currency that is taken away under
//! what is in it (currencies.md).

use access::NewOrganization;
use api::testing::{Client, TestApi, id};
use domain::{Clock, Currency};
use serde_json::{Value, json};

/// A tenant as `kontorion org create` makes it: nobody has touched its currencies.
async fn untouched(api: &TestApi, currency: Currency) -> Client {
    let mut tx = api.app.store.begin("bootstrap").await.unwrap();
    let new = NewOrganization { default_currency: currency, ..NewOrganization::named("Third") };
    let tenant = access::bootstrap(&mut tx, Clock::System.now(), &new).await.unwrap();
    tx.commit().await.unwrap();
    api.live.with_token(tenant.live.token.reveal())
}

async fn codes(client: &Client, query: &str) -> Vec<String> {
    let page = client.get(&format!("/v1/currencies{query}")).await.expect(200);
    page["data"].as_array().unwrap().iter().map(|row| row["currency_code"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_workspace_begins_with_its_default() {
    let api = TestApi::start().await;
    let client = untouched(&api, Currency::parse("CHF").unwrap()).await;
    let page = client.get("/v1/currencies").await.expect(200);
    let row = &page["data"][0];
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
    for (name, value) in [
        ("currency_code", json!("CHF")),
        ("billing_enabled", json!(true)),
        ("catalog_enabled", json!(true)),
        ("is_default", json!(true)),
        ("rounding_mode", json!("HALF_UP")),
        (
            "references",
            json!({"prices": 0, "plans": 0, "subscriptions": 0, "invoices": 0, "wallets": 0, "customers": 0}),
        ),
    ] {
        assert_eq!(row[name], value, "{name}");
    }
    let customer = client.post("/v1/customers", json!({"name": "A", "email": "a@b.example"})).await.data(201);
    assert_eq!(customer["wallet"]["currency"], "CHF", "the workspace's default");
    let references = client.get("/v1/currencies/CHF/references").await.data(200);
    assert_eq!((&references["wallets"], &references["customers"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn what_is_not_enabled_is_refused_where_money_begins() {
    let api = TestApi::start().await;
    let client = untouched(&api, Currency::EUR).await;
    let product = json!({"name": "Units", "type": "FIXED_CHARGE", "pricing_model": "VOLUME"});
    let product = id(&client.post("/v1/products", product).await.data(201));
    let price = json!({"product_id": product, "currency": "USD", "list_price": "5"});
    let customer = client.post("/v1/customers", json!({"name": "A", "email": "a@b.example"})).await.data(201);
    let wallet = json!({"customer_id": id(&customer), "currency": "USD"});
    let dollar_customer = json!({"name": "B", "email": "b@b.example", "preferred_currency": "USD"});
    for (path, body) in [("/v1/prices", &price), ("/v1/wallets", &wallet), ("/v1/customers", &dollar_customer)] {
        let problem = client.post(path, body.clone()).await.problem(422, "CURRENCY_NOT_ENABLED");
        assert_eq!(problem["currency"], "USD");
        assert!(problem["detail"].as_str().unwrap().contains("POST /v1/currencies"), "{problem}");
    }
    let prefers = (format!("/v1/customers/{}", id(&customer)), json!({"preferred_currency": "USD"}));
    client.patch(&prefers.0, prefers.1.clone()).await.problem(422, "CURRENCY_NOT_ENABLED");
    // For the catalog only, then for both; off again leaves what is there.
    let _ = client.post("/v1/currencies", json!({"currency_code": "USD", "billing_enabled": false})).await.expect(201);
    let _ = client.post("/v1/prices", price.clone()).await.data(201);
    client.post("/v1/wallets", wallet.clone()).await.problem(422, "CURRENCY_NOT_ENABLED");
    let changed = client.patch("/v1/currencies/USD", json!({"billing_enabled": true, "catalog_enabled": false})).await;
    assert_eq!(changed.expect(200)["references"]["prices"], 1);
    let _ = client.patch(&prefers.0, prefers.1).await.expect(200);
    let _ = client.post("/v1/wallets", wallet).await.data(201);
    let other = json!({"product_id": product, "currency": "USD", "list_price": "5", "country_code": "US"});
    client.post("/v1/prices", other).await.problem(422, "CURRENCY_NOT_ENABLED");
    assert_eq!(client.get("/v1/prices?currency=USD").await.expect(200)["data"].as_array().unwrap().len(), 1);
    let problem = client.delete("/v1/currencies/USD").await.problem(409, "CURRENCY_IN_USE");
    let counts = json!({"prices": 1, "plans": 0, "subscriptions": 0, "invoices": 0, "wallets": 1, "customers": 1});
    assert_eq!(problem["references"], counts);
}

#[tokio::test]
async fn there_is_always_one_default() {
    let api = TestApi::start().await;
    let client = &untouched(&api, Currency::EUR).await;
    let created =
        client.post("/v1/currencies", json!({"currency_code": "USD", "catalog_enabled": false})).await.expect(201);
    assert_eq!((&created["is_default"], &created["catalog_enabled"]), (&json!(false), &json!(false)));
    for body in [json!({"is_default": false}), json!({"billing_enabled": false}), json!({"catalog_enabled": false})] {
        client.patch("/v1/currencies/EUR", body).await.problem(422, "DEFAULT_CURRENCY_REQUIRED");
    }
    let both = json!({"is_default": true, "catalog_enabled": false});
    client.patch("/v1/currencies/USD", both).await.problem(422, "DEFAULT_CURRENCY_REQUIRED");
    client.delete("/v1/currencies/EUR").await.problem(422, "DEFAULT_CURRENCY_REQUIRED");
    let moved =
        client.patch("/v1/currencies/USD", json!({"is_default": true, "rounding_mode": "DOWN"})).await.expect(200);
    for name in ["is_default", "billing_enabled", "catalog_enabled"] {
        assert_eq!(moved[name], true, "{name}");
    }
    assert_eq!(moved["rounding_mode"], "DOWN");
    let before = client.get("/v1/currencies/EUR").await.expect(200);
    assert_eq!((&before["is_default"], &before["billing_enabled"]), (&json!(false), &json!(true)));
    let _ = client.delete("/v1/currencies/EUR").await.expect(204);
    client.get("/v1/currencies/EUR").await.problem(404, "NOT_FOUND");
    assert_eq!(codes(client, "").await, ["USD"]);
    // Two calls that both move the default leave one.
    for code in ["CHF", "SEK"] {
        let _ = client.post("/v1/currencies", json!({"currency_code": code})).await.expect(201);
    }
    let makes_default = |code: &'static str| async move {
        client.patch(&format!("/v1/currencies/{code}"), json!({"is_default": true})).await.expect(200)
    };
    let _ = futures::join!(makes_default("CHF"), makes_default("SEK"));
    assert_eq!(codes(client, "?is_default=true").await.len(), 1);
}

#[tokio::test]
async fn bad_input_is_named_and_lists_are_sorted() {
    let api = TestApi::start().await;
    let client = &api.live;
    for (body, field, code) in [
        (json!({}), "currency_code", "REQUIRED"),
        (json!({"currency_code": "eur"}), "currency_code", "INVALID_FORMAT"),
        (json!({"currency_code": "XXX"}), "currency_code", "INVALID_FORMAT"),
        (json!({"currency_code": "CHF", "billing_enabled": "yes"}), "billing_enabled", "INVALID_FORMAT"),
        (json!({"currency_code": "CHF", "is_default": true}), "is_default", "UNKNOWN_FIELD"),
    ] {
        assert_eq!(client.post("/v1/currencies", body).await.bad_fields(), [(field.to_owned(), code.to_owned())]);
    }
    for (body, field, code) in [
        (json!({"rounding_mode": "half_up"}), "rounding_mode", "INVALID_ENUM"),
        (json!({"is_default": null}), "is_default", "NOT_ALLOWED"),
        (json!({"currency_code": "USD"}), "currency_code", "UNKNOWN_FIELD"),
    ] {
        let refused = client.patch("/v1/currencies/EUR", body).await.bad_fields();
        assert_eq!(refused, [(field.to_owned(), code.to_owned())]);
    }
    client.post("/v1/currencies", json!({"currency_code": "USD"})).await.problem(409, "DUPLICATE");
    client.get("/v1/currencies/eur").await.problem(400, "BAD_REQUEST");
    for path in ["/v1/currencies/SEK", "/v1/currencies/SEK/references"] {
        client.get(path).await.problem(404, "NOT_FOUND");
    }
    client.patch("/v1/currencies/SEK", json!({})).await.problem(404, "NOT_FOUND");
    client.delete("/v1/currencies/SEK").await.problem(404, "NOT_FOUND");
    let _ = client.post("/v1/currencies", json!({"currency_code": "CHF", "catalog_enabled": false})).await.expect(201);
    assert_eq!(codes(client, "").await, ["CHF", "EUR", "GBP", "JPY", "KWD", "USD"]);
    assert_eq!(codes(client, "?catalog_enabled=false").await, ["CHF"]);
    assert_eq!(codes(client, "?sort=-currency_code&limit=1").await, ["USD"]);
    let page = client.get("/v1/currencies?limit=4").await.expect(200);
    let cursor = page["pagination"]["cursor"].as_str().unwrap();
    assert_eq!(codes(client, &format!("?limit=4&cursor={cursor}")).await, ["KWD", "USD"]);
    assert_eq!(codes(&api.other, "?catalog_enabled=false").await, [] as [&str; 0], "another tenant's list is its own");
    let key = client.post("/v1/api-keys", json!({"name": "reader", "scopes": ["workspaces:read"]})).await.expect(201);
    let reader = client.with_token(key["key"].as_str().unwrap());
    let _ = reader.get("/v1/currencies").await.expect(200);
    reader.post("/v1/currencies", json!({"currency_code": "SEK"})).await.problem(403, "FORBIDDEN");
    let unused: Value = reader.get("/v1/currencies/CHF/references").await.data(200);
    assert!(unused.as_object().unwrap().values().all(|count| count == 0));
}
