//! Guards: an expression that is stored but cannot be evaluated, and a formula that goes while a price needs it.

use api::testing::{Client, TestApi, id};
use serde_json::{Value, json};

async fn validate(client: &Client, body: Value) -> Value {
    client.post("/v1/price-formulas/validate", body).await.data(200)
}

fn discount() -> Value {
    json!({"name": "Discount", "expression": "base_price * (1 - volume_discount)", "variables": [
        {"name": "volume_discount", "type": "NUMBER", "default": "0.15", "description": "share"},
    ]})
}

#[tokio::test]
async fn a_formula_is_published_and_edited_by_versions() {
    let api = TestApi::start().await;
    let made = api.live.post("/v1/price-formulas", discount()).await.data(201);
    assert_eq!((&made["version"], &made["is_system"]), (&json!(1), &json!(false)));
    assert!(made["head_version_id"].is_string() && made.get("status").is_none());
    let variable = json!({"name": "volume_discount", "type": "NUMBER", "default": "0.15", "required": false,
                          "description": "share"});
    assert_eq!(made["variables"], json!([variable]));
    let path = format!("/v1/price-formulas/{}", id(&made));
    let changed = api.live.put(&path, json!({"expression": "base_price", "expected_version": 1})).await.data(200);
    assert_eq!((&changed["version"], &changed["expression"]), (&json!(2), &json!("base_price")));
    assert_eq!(changed["variables"], json!([variable]));
    api.live.put(&path, json!({"name": "X", "expected_version": 1})).await.problem(409, "VERSION_CONFLICT");
    let first = api.live.get(&format!("{path}/versions/1")).await.data(200);
    assert_eq!(
        (&first["status"], &first["archived_reason"], &first["expression"], &first["formula_id"]),
        (&json!("archived"), &json!("superseded"), &discount()["expression"], &made["id"])
    );
    let draft = json!({"expression": "list_price * 2", "save_as_draft": true});
    assert_eq!(api.live.put(&path, draft).await.data(200)["expression"], "base_price");
    let listed = api.live.get(&format!("{path}/versions")).await.expect(200);
    let statuses: Vec<_> = listed["data"].as_array().unwrap().iter().map(|row| row["status"].clone()).collect();
    assert_eq!(statuses, [json!("draft"), json!("active"), json!("archived")]);
    let published = api.live.post_empty(&format!("{path}/versions/3/publish")).await.data(200);
    assert_eq!((&published["status"], &published["expression"]), (&json!("active"), &json!("list_price * 2")));
    assert_eq!(api.live.get(&path).await.data(200)["expression"], "list_price * 2");
    let ahead = json!({"expression": "list_price * 3", "effective_at": "2199-01-01T00:00:00Z"});
    assert_eq!(api.live.put(&path, ahead).await.data(200)["expression"], "list_price * 2");
    assert_eq!(api.live.get(&format!("{path}/versions/4")).await.data(200)["status"], "scheduled");
    let _ = api.live.delete(&path).await.expect(204);
    api.live.get(&path).await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn what_cannot_be_evaluated_is_refused_when_it_is_saved() {
    let api = TestApi::start().await;
    let create = |body: Value| {
        let live = api.live.clone();
        async move { live.post("/v1/price-formulas", body).await }
    };
    let good = create(json!({"name": "Good", "expression": "quantity"})).await.data(201);
    let path = format!("/v1/price-formulas/{}", id(&good));
    for (expression, message) in [
        ("1 +", "expected a value, found the end (at position 3)"),
        ("nope(1)", "no function `nope`"),
        ("round(1, 2, 3)", "takes 1 to 2"),
        ("factor", "`factor` is not declared"),
        ("1 + 'a'", "a NUMBER is needed"),
        ("lookup('nowhere', 1)", "there is no rate table `nowhere`"),
    ] {
        for reply in [
            create(json!({"name": "Bad", "expression": expression})).await,
            api.live.put(&path, json!({"expression": expression})).await,
        ] {
            let problem = reply.problem(400, "VALIDATION");
            assert_eq!(problem["fields"][0]["field"], "expression");
            assert!(problem["fields"][0]["message"].as_str().unwrap().contains(message), "{problem}");
        }
    }
    let variables = json!([{"name": "a", "type": "NUMBER"}, {"name": "a", "type": "NUMBER"}]);
    let twice = create(json!({"name": "Bad", "expression": "a", "variables": variables})).await;
    assert_eq!(twice.bad_fields(), [("variables[1]".into(), "INVALID_FORMAT".into())]);
    let wrong = json!({"name": "", "expression": "1", "variables": [{"name": "a", "type": "MONEY"}], "more": 1});
    let fields: Vec<_> = create(wrong).await.bad_fields().into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["name", "variables[0].type", "more"]);
}

/// A version of a price shows which version of its formula it has: an edit of the formula changes none.
#[tokio::test]
async fn a_version_of_a_price_names_the_version_of_its_formula() {
    let api = TestApi::start().await;
    let post = |path: &'static str, body: Value| {
        let live = api.live.clone();
        async move { live.post(path, body).await.data(201) }
    };
    let product = post("/v1/products", json!({"name": "P", "type": "USAGE", "pricing_model": "VOLUME"})).await;
    let formula = post("/v1/price-formulas", discount()).await;
    let price = json!({"product_id": product["id"], "currency": "EUR", "list_price": "2", "formula_id": formula["id"]});
    let price = format!("/v1/prices/{}", id(&post("/v1/prices", price).await));
    let formula_path = format!("/v1/price-formulas/{}", id(&formula));
    let changed = api.live.put(&formula_path, json!({"expression": "base_price"})).await.data(200);
    assert_ne!(changed["head_version_id"], formula["head_version_id"]);
    let pinned = |version: u32| {
        let (live, path) = (api.live.clone(), format!("{price}/versions/{version}"));
        async move { live.get(&path).await.data(200)["formula_version_id"].clone() }
    };
    assert_eq!(pinned(1).await, formula["head_version_id"]);
    let _ = api.live.put(&price, json!({"list_price": "3"})).await.data(200);
    assert_eq!(
        (pinned(1).await, pinned(2).await),
        (formula["head_version_id"].clone(), changed["head_version_id"].clone())
    );
    let _ = api.live.put(&price, json!({"list_price": "4", "save_as_draft": true})).await.data(200);
    assert_eq!(pinned(3).await, Value::Null, "a draft has chosen none yet");
    let _ = api
        .live
        .put(&price, json!({"formula_id": null, "list_price": "5", "effective_at": "2199-01-01T00:00:00Z"}))
        .await
        .data(200);
    assert_eq!(pinned(4).await, Value::Null, "it has no formula");
}

#[tokio::test]
async fn a_formula_stays_while_a_price_refers_to_it() {
    let api = TestApi::start().await;
    let formula = id(&api.live.post("/v1/price-formulas", discount()).await.data(201));
    let product = id(&api.live.post("/v1/products", json!({"name": "P", "type": "USAGE"})).await.data(201));
    let price = json!({"product_id": product, "currency": "EUR", "list_price": "1"});
    let price = id(&api.live.post("/v1/prices", price).await.data(201));
    let db = |sql: &'static str, value: String| {
        let (store, formula) = (api.app.store.clone(), formula.clone());
        async move {
            let query = sqlx::query(sql).bind(formula).bind(value);
            query.execute(store.pool()).await.unwrap();
        }
    };
    db("UPDATE price SET formula_id = $1::text::uuid WHERE id = $2::text::uuid", price).await;
    let path = format!("/v1/price-formulas/{formula}");
    api.live.delete(&path).await.problem(409, "CONFLICT");
    db("UPDATE price_formula SET is_system = $2::boolean WHERE id = $1::text::uuid", "true".into()).await;
    api.live.delete(&path).await.problem(403, "FORBIDDEN");
    api.live.put(&path, json!({"name": "Mine"})).await.problem(403, "FORBIDDEN");
    assert_eq!(api.live.get("/v1/price-formulas?is_system=true").await.expect(200)["data"][0]["id"], json!(formula));
}

/// price-formulas.md, Vectors.
#[tokio::test]
async fn expressions_are_tried_without_being_stored() {
    let api = TestApi::start().await;
    for (expression, bindings, result) in [
        ("if(quantity > 1000, 0.08, 0.10)", json!({"quantity": 1000}), "0.1"),
        ("if(quantity > 1000, 0.08, 0.10)", json!({"quantity": "1001"}), "0.08"),
        ("round(2.345, 2)", json!({}), "2.35"),
        ("ceil(2500 / 1000) * 5", json!({}), "15"),
        ("min(quantity * 0.01, 50)", json!({"quantity": 9000}), "50"),
        ("cost.amount * 1.2", json!({"cost.amount": "10.00"}), "12"),
        ("if(dim.region == 'eu', 1, 2)", json!({"dim.region": "eu"}), "1"),
        ("2 ^ 3 ^ 2", json!({}), "512"),
    ] {
        let answer = validate(&api.live, json!({"expression": expression, "bindings": bindings})).await;
        assert_eq!(answer, json!({"valid": true, "errors": [], "result": result}), "{expression}");
    }
    let tried = validate(
        &api.live,
        json!({"expression": discount()["expression"], "variables": discount()["variables"],
                                           "bindings": {"base_price": "100"}}),
    );
    assert_eq!(tried.await["result"], "85");
    let open = validate(&api.live, json!({"expression": "quantity * 2"})).await;
    assert_eq!(open, json!({"valid": true, "errors": []}));
    let wrong = validate(&api.live, json!({"expression": "1 + * 2"})).await;
    assert_eq!((&wrong["valid"], &wrong["errors"][0]["position"]), (&json!(false), &json!(4)));
    for (expression, code) in [("1 / 0", "FORMULA_DIVISION_BY_ZERO"), ("-2 ^ 2", "FORMULA_NEGATIVE_RESULT")] {
        let failed = validate(&api.live, json!({"expression": expression})).await;
        assert!(failed["errors"][0]["message"].as_str().unwrap().starts_with(code), "{failed}");
        assert_eq!((&failed["valid"], failed.get("result")), (&json!(false), None));
    }
    assert_eq!(api.live.get("/v1/price-formulas").await.expect(200)["data"], json!([]));
}
