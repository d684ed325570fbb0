//! Guards costs (costs.md): whose they are, what their expressions need, and that products and plans show them.

use api::testing::{Client, Reply, TestApi, id};
use serde_json::{Value, json};

async fn seats(client: &Client) -> String {
    id(&client.post("/v1/products", json!({"name": "Seats", "type": "SEAT"})).await.data(201))
}

fn fee(key: &str) -> Value {
    json!({"key": key, "expression": {"type": "FIXED", "currency": "EUR", "amount": "0.30"}})
}

async fn post(client: &Client, path: &str, body: Value) -> Reply {
    client.post(path, body).await
}

#[tokio::test]
async fn a_cost_is_a_products_or_the_organizations() {
    let api = TestApi::start().await;
    let product = seats(&api.live).await;
    let of_product = format!("/v1/products/{product}/costs");
    let own = post(&api.live, &of_product, fee("processor")).await.data(201);
    assert_eq!(
        (&own["scope"], &own["product_id"], &own["status"]),
        (&json!("PRODUCT"), &json!(product), &json!("active"))
    );
    assert_eq!((&own["version"], &own["expression"]["amount"]), (&json!(1), &json!("0.3")));
    let org = post(&api.live, "/v1/costs", fee("processor")).await.data(201);
    assert_eq!((&org["scope"], &org["product_id"]), (&json!("ORG"), &Value::Null));
    for (path, known) in [(of_product.as_str(), &own), ("/v1/costs", &org)] {
        let taken = post(&api.live, path, fee("processor")).await.problem(409, "DUPLICATE");
        assert_eq!((&taken["field"], &taken["existing_id"]), (&json!("key"), &known["id"]));
        let mut named = fee("other");
        named["product_id"] = json!(product);
        let fields = post(&api.live, path, named).await.bad_fields();
        assert_eq!(fields, [("product_id".to_owned(), "NOT_ALLOWED".to_owned())]);
    }
    let stranger = format!("/v1/products/{}/costs", uuid::Uuid::now_v7());
    post(&api.live, &stranger, fee("x")).await.problem(404, "NOT_FOUND");
    api.live.get(&stranger).await.problem(404, "NOT_FOUND");
    let all = api.live.get("/v1/costs").await.expect(200);
    assert_eq!(all["data"], json!([org, own]));
    assert_eq!(api.live.get("/v1/costs?scope=ORG").await.expect(200)["data"], json!([org]));
    assert_eq!(api.live.get(&of_product).await.expect(200)["data"], json!([own]));
    api.live.get("/v1/costs?scope=MINE").await.problem(400, "VALIDATION");
    assert_eq!(api.other.get("/v1/costs").await.expect(200)["data"], json!([]));
    api.other.get(&of_product).await.problem(404, "NOT_FOUND");
    let draft = json!({"key": "later", "save_as_draft": true, "expression": {"type": "EXTERNAL"}});
    let draft = post(&api.live, "/v1/costs", draft).await.data(201);
    assert_eq!((&draft["status"], &draft["version"]), (&json!("draft"), &json!(0)));
    assert_eq!(api.live.get("/v1/costs").await.expect(200)["data"].as_array().map(Vec::len), Some(2), "active ones");
    assert_eq!(api.live.get("/v1/costs?status=draft").await.expect(200)["data"], json!([draft]));
}

#[tokio::test]
async fn expressions_have_what_their_type_needs_and_nothing_else() {
    let api = TestApi::start().await;
    let bad = |expression: Value| {
        let (live, body) = (api.live.clone(), json!({"key": "a", "expression": expression}));
        async move { post(&live, "/v1/costs", body).await.bad_fields() }
    };
    for (expression, field, code) in [
        (json!({"type": "CHEAP"}), "expression.type", "INVALID_ENUM"),
        (json!({"type": "FIXED", "amount": "1"}), "expression.currency", "REQUIRED"),
        (json!({"type": "PER_UNIT", "currency": "EUR"}), "expression.amount", "REQUIRED"),
        (json!({"type": "PER_UNIT", "currency": "EUR", "amount": "-1"}), "expression.amount", "OUT_OF_RANGE"),
        (json!({"type": "PERCENTAGE"}), "expression.percentage", "REQUIRED"),
        (json!({"type": "PERCENTAGE", "percentage": "1", "amount": "1"}), "expression.amount", "NOT_ALLOWED"),
        (json!({"type": "FORMULA"}), "expression.expression", "REQUIRED"),
        (json!({"type": "FORMULA", "expression": ""}), "expression.expression", "OUT_OF_RANGE"),
        (json!({"type": "FORMULA", "expression": "q".repeat(4_097)}), "expression.expression", "TOO_LONG"),
        (json!({"type": "FORMULA", "expression": "quantity * price"}), "expression.expression", "INVALID_FORMAT"),
        (json!({"type": "FORMULA", "expression": "quantity *"}), "expression.expression", "INVALID_FORMAT"),
        (json!({"type": "EXTERNAL", "percentage": "1"}), "expression.percentage", "NOT_ALLOWED"),
        (json!({"type": "EXTERNAL", "factor": "1"}), "expression.factor", "UNKNOWN_FIELD"),
    ] {
        assert_eq!(bad(expression.clone()).await, [(field.to_owned(), code.to_owned())], "{expression}");
    }
    for (key, expression) in [
        ("0", json!({"type": "FIXED", "currency": "EUR", "amount": "0.30"})),
        ("1", json!({"type": "PER_UNIT", "currency": "USD", "amount": 0.002})),
        ("2", json!({"type": "PERCENTAGE", "percentage": "2.9"})),
        ("3", json!({"type": "FORMULA", "expression": "quantity * 0.5 + revenue / 100"})),
        ("4", json!({"type": "EXTERNAL"})),
    ] {
        let made = post(&api.live, "/v1/costs", json!({"key": key, "expression": expression})).await.data(201);
        assert_eq!(made["expression"]["type"], expression["type"]);
    }
    for key in ["", "Big", "a-b", &"k".repeat(65)] {
        let body = json!({"key": key, "expression": {"type": "EXTERNAL"}});
        assert_eq!(post(&api.live, "/v1/costs", body).await.bad_fields()[0].0, "key", "{key:?}");
    }
}

#[tokio::test]
async fn costs_are_changed_copied_and_retired() {
    let api = TestApi::start().await;
    let live = &api.live;
    let product = seats(live).await;
    let cost = post(live, &format!("/v1/products/{product}/costs"), fee("fee")).await.data(201);
    let path = format!("/v1/costs/{}", id(&cost));
    let change = json!({"expression": {"type": "PERCENTAGE", "percentage": "2.9"}, "description": "Card"});
    let changed = live.put(&path, change).await.data(200);
    assert_eq!((&changed["version"], &changed["expression"]["percentage"]), (&json!(2), &json!("2.9")));
    assert_eq!(changed["expression"]["amount"], Value::Null, "an expression is replaced whole");
    let first = live.get(&format!("{path}/versions/1")).await.data(200);
    assert_eq!((&first["cost_id"], &first["expression"]["amount"]), (&cost["id"], &json!("0.3")));
    assert_eq!((&first["status"], &first["archived_reason"]), (&json!("archived"), &json!("superseded")));
    live.put(&path, json!({"key": "x"})).await.problem(400, "VALIDATION");
    // Copies: as the original, of the organization, of another product.
    let copy = |body: Value| {
        let (live, path) = (api.live.clone(), format!("{path}/copy"));
        async move { post(&live, &path, body).await }
    };
    copy(json!({})).await.problem(400, "VALIDATION");
    copy(json!({"key": "fee"})).await.problem(409, "DUPLICATE");
    let beside = copy(json!({"key": "fee_2"})).await.data(201);
    assert_eq!((&beside["product_id"], &beside["version"]), (&json!(product), &json!(1)));
    assert_eq!((&beside["expression"], &beside["description"]), (&changed["expression"], &changed["description"]));
    let org = copy(json!({"key": "fee", "product_id": null})).await.data(201);
    assert_eq!(org["scope"], "ORG");
    copy(json!({"key": "fee", "product_id": uuid::Uuid::now_v7()})).await.problem(404, "NOT_FOUND");
    let _ = copy(json!({"key": "fee", "product_id": seats(live).await})).await.data(201);
    // Retired.
    let archived = post(live, &format!("{path}/archive"), json!({"reason": "cheaper"})).await.data(200);
    assert_eq!(archived["status"], "archived");
    assert!(archived["archived_at"].is_string());
    post(live, &format!("{path}/archive"), json!({})).await.problem(409, "INVALID_TRANSITION");
    live.put(&path, json!({"description": "x"})).await.problem(409, "CONFLICT");
    live.post_empty(&format!("{path}/versions/1/copy-as-draft")).await.problem(409, "CONFLICT");
    let second = live.get(&format!("{path}/versions/2")).await.data(200);
    assert_eq!((&second["status"], &second["archived_reason"]), (&json!("archived"), &json!("cheaper")));
    let listed = live.get(&format!("/v1/products/{product}/costs")).await.expect(200);
    assert_eq!(listed["data"], json!([beside]));
    for path in [path.clone(), format!("{path}/versions"), format!("{path}/timeline"), format!("{path}/versions/1")] {
        api.other.get(&path).await.problem(404, "NOT_FOUND");
        api.sandbox.get(&path).await.problem(404, "NOT_FOUND");
    }
}

#[tokio::test]
async fn products_and_plans_show_their_active_costs() {
    let api = TestApi::start().await;
    let live = &api.live;
    let body = json!({"name": "Seats", "type": "SEAT", "costs": [fee("a"), fee("b")]});
    let product = live.post("/v1/products", body).await.data(201);
    let keys = |product: &Value| -> Vec<Value> {
        product["costs"].as_array().expect("costs").iter().map(|cost| cost["key"].clone()).collect()
    };
    assert_eq!(keys(&product), ["a", "b"]);
    let path = format!("/v1/products/{}", id(&product));
    assert_eq!(live.get(&path).await.data(200), product);
    assert_eq!(live.get("/v1/products").await.expect(200)["data"], json!([product]));
    assert_eq!(keys(&live.put(&path, json!({"description": "x"})).await.data(200)), ["a", "b"]);
    let twice = json!({"name": "x", "type": "SEAT", "costs": [fee("a"), fee("a")]});
    live.post("/v1/products", twice).await.problem(409, "DUPLICATE");
    let bad = json!({"name": "x", "type": "SEAT", "costs": [{"key": "a", "expression": {"type": "FIXED"}}]});
    let fields = live.post("/v1/products", bad).await.bad_fields();
    assert_eq!(fields[0].0, "costs[0].expression.currency");
    assert_eq!(
        live.get("/v1/products").await.expect(200)["data"].as_array().map(Vec::len),
        Some(1),
        "whole or not at all"
    );
    let plan = json!({"name": "Team", "products": [{"product_id": product["id"]}]});
    let plan = id(&live.post("/v1/plans", plan).await.data(201));
    let shown = live.get(&format!("/v1/plans/{plan}")).await.data(200);
    assert_eq!(keys(&shown["products"][0]), ["a", "b"]);
    live.delete(&path).await.problem(409, "CONFLICT");
    let first = product["costs"][0]["id"].as_str().expect("an id");
    let _ = post(live, &format!("/v1/costs/{first}/archive"), json!({})).await.data(200);
    assert_eq!(keys(&live.get(&path).await.data(200)), ["b"]);
}
