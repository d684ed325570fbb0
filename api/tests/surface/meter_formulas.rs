//! Guards: a FORMULA meter that cannot be evaluated at some instant, and a meter that goes while a formula names it.

use api::testing::{TestApi, id};
use serde_json::{Value, json};

fn formula(key: &str, expression: &str, variables: &[(&str, &str)]) -> Value {
    let variable = |(name, meter_key): &(&str, &str)| json!({"name": name, "meter_key": meter_key});
    let variables: Vec<_> = variables.iter().map(variable).collect();
    json!({
        "key": key, "name": key, "metric_key": key, "function": "FORMULA",
        "formula": {"expression": expression, "variables": variables},
    })
}

async fn plain(api: &TestApi, key: &str) -> String {
    let body = json!({"key": key, "name": key, "metric_key": key, "function": "SUM"});
    id(&api.live.post("/v1/meters", body).await.data(201))
}

#[tokio::test]
async fn formulas_are_compiled_when_they_are_made() {
    let api = TestApi::start().await;
    plain(&api, "a").await;
    let make = |body: Value| api.live.post("/v1/meters", body);
    let with = |member: &str, value: Value| {
        let mut body = formula("f", "x", &[("x", "a")]);
        body[member] = value;
        body
    };
    let filter = json!({"root": {"field": "price_key", "operator": "EQ", "value": "x"}});
    for (body, field) in [
        (formula("f", "x +", &[("x", "a")]), "formula.expression"),
        (formula("f", "x ^ 2", &[("x", "a")]), "formula.expression"),
        (formula("f", "y", &[("x", "a")]), "formula.expression"),
        (formula("f", "x", &[("x", "a"), ("x", "a")]), "formula.variables[1]"),
        (formula("f", "1", &[]), "formula.variables"),
        (with("formula", json!({"expression": "x"})), "formula.variables"),
        (with("formula", Value::Null), "formula"),
        (with("function", json!("SUM")), "formula"),
        (with("filter", filter), "filter"),
        (with("value_field", json!("quantity")), "value_field"),
        (with("dedup_key_path", json!("dimension_vars.id")), "dedup_key_path"),
        (with("event_schema", json!({"type": "object"})), "event_schema"),
    ] {
        assert_eq!(make(body.clone()).await.bad_fields()[0].0, field, "{body}");
    }
    make(formula("f", "x", &[("x", "nothing")])).await.problem(404, "NOT_FOUND");
    let itself = make(formula("f", "x", &[("x", "f")])).await.problem(422, "BUSINESS_RULE_VIOLATION");
    assert!(itself["detail"].as_str().unwrap().contains("f > f"), "{itself}");
    let mut draft = json!({"key": "d", "name": "d", "metric_key": "d", "function": "SUM", "save_as_draft": true});
    let _ = api.live.post("/v1/meters", draft.take()).await.data(201);
    make(formula("f", "x", &[("x", "d")])).await.problem(422, "BUSINESS_RULE_VIOLATION");
    // Another tenant's meter is not there.
    api.other.post("/v1/meters", formula("f", "x", &[("x", "a")])).await.problem(404, "NOT_FOUND");
    let made = make(formula("f", "if(x > 2, x / 3, 0)", &[("x", "a")])).await.data(201);
    assert_eq!(made["formula"]["variables"], json!([{"name": "x", "meter_key": "a"}]));
    let path = format!("/v1/meters/{}", id(&made));
    let version = api.live.get(&format!("{path}/versions/1")).await.data(200);
    assert_eq!(version["formula"], made["formula"]);
    let plain = api.live.put(&path, json!({"function": "SUM", "formula": null})).await.data(200);
    assert_eq!((&plain["function"], &plain["formula"]), (&json!("SUM"), &Value::Null));
}

#[tokio::test]
async fn formulas_never_go_in_a_circle() {
    let api = TestApi::start().await;
    let first = plain(&api, "a").await;
    let make = |body: Value| api.live.post("/v1/meters", body);
    let second = id(&make(formula("b", "x", &[("x", "a")])).await.data(201));
    let _ = make(formula("c", "x", &[("x", "b")])).await.data(201);
    let edit = |id: &str, body: Value| {
        let (live, path) = (api.live.clone(), format!("/v1/meters/{id}"));
        async move { live.put(&path, body).await }
    };
    let closing = |names: &str| json!({"function": "FORMULA", "formula": formula("", "x", &[("x", names)])["formula"]});
    // A meter that was none becomes one, through a chain of two.
    let circle = edit(&first, closing("c")).await.problem(422, "BUSINESS_RULE_VIOLATION");
    assert!(circle["detail"].as_str().unwrap().contains("circle"), "{circle}");
    assert_eq!(
        api.live.get(&format!("/v1/meters/{first}")).await.data(200)["function"],
        json!("SUM"),
        "nothing changed"
    );
    // Ahead as well; but two versions that do not hold together are no circle.
    let mut later = closing("c");
    later["effective_at"] = json!("2998-01-01T00:00:00Z");
    edit(&first, later.clone()).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let ended = json!({"function": "SUM", "formula": null, "effective_at": "2997-01-01T00:00:00Z"});
    let _ = edit(&second, ended).await.data(200);
    let _ = edit(&first, later).await.data(200);
    // A draft may be in a circle, its publication may not.
    let mut draft = closing("c");
    draft["save_as_draft"] = json!(true);
    let _ = edit(&first, draft).await.data(200);
    let versions = api.live.get(&format!("/v1/meters/{first}/versions?status=draft")).await.expect(200);
    let path = format!("/v1/meters/{first}/versions/{}/publish", versions["data"][0]["id"].as_str().unwrap());
    api.live.post(&path, json!({})).await.problem(422, "BUSINESS_RULE_VIOLATION");
}

#[tokio::test]
async fn formulas_have_bounds() {
    let api = TestApi::start().await;
    plain(&api, "m0").await;
    for level in 1..=5 {
        let below = format!("m{}", level - 1);
        let _ = api.live.post("/v1/meters", formula(&format!("m{level}"), "x", &[("x", &below)])).await.data(201);
    }
    api.live.post("/v1/meters", formula("m6", "x", &[("x", "m5")])).await.problem(422, "BUSINESS_RULE_VIOLATION");
    // The leaf cannot become one level more either.
    plain(&api, "deep").await;
    let meters = api.live.get("/v1/meters?key=m0").await.expect(200);
    let path = format!("/v1/meters/{}", meters["data"][0]["id"].as_str().unwrap());
    let more = json!({"function": "FORMULA", "formula": formula("", "x", &[("x", "deep")])["formula"]});
    api.live.put(&path, more).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let ten: Vec<String> = (0..10).map(|index| format!("x{index}")).collect();
    let variables: Vec<_> = ten.iter().map(|name| (name.as_str(), "deep")).collect();
    let _ = api.live.post("/v1/meters", formula("wide", "x0", &variables)).await.data(201);
    let variables: Vec<_> = ten.iter().take(6).map(|name| (name.as_str(), "wide")).collect();
    api.live.post("/v1/meters", formula("wider", "x0", &variables)).await.problem(422, "BUSINESS_RULE_VIOLATION");
}

#[tokio::test]
async fn what_a_formula_names_stays() {
    let api = TestApi::start().await;
    let named = plain(&api, "a").await;
    let named_path = format!("/v1/meters/{named}");
    let user = id(&api.live.post("/v1/meters", formula("f", "x", &[("x", "a")])).await.data(201));
    let conflict = api.live.delete(&named_path).await.problem(409, "CONFLICT");
    assert!(conflict["detail"].as_str().unwrap().contains('f'), "{conflict}");
    // A meter that is held cannot be cut into days, nor a formula over it; money and no money do not mix.
    let held = json!({"key": "h", "name": "h", "metric_key": "h", "function": "TIME_WEIGHTED"});
    let _ = api.live.post("/v1/meters", held).await.data(201);
    let mut daily = formula("daily", "x", &[("x", "h")]);
    let _ = api.live.post("/v1/meters", daily.clone()).await.data(201);
    daily["key"] = json!("cut");
    daily["window"] = json!({"kind": "CALENDAR", "unit": "DAY"});
    api.live.post("/v1/meters", daily).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let product = json!({"name": "P", "type": "USAGE", "pricing_model": "VOLUME"});
    let product = id(&api.live.post("/v1/products", product).await.data(201));
    let meters = api.live.get("/v1/meters?key=daily").await.expect(200);
    let bind = json!({"meter_id": meters["data"][0]["id"], "window": {"kind": "TUMBLING", "size": "1h"}});
    let path = format!("/v1/products/{product}/meter-bindings");
    api.live.post(&path, bind).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let bind = json!({"meter_id": user, "window": {"kind": "TUMBLING", "size": "1h"}});
    let _ = api.live.post(&path, bind).await.data(201);
    api.live.put(&named_path, json!({"function": "TIME_WEIGHTED"})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    plain(&api, "b").await;
    let _ = api.live.post("/v1/meters", formula("g", "x + y", &[("x", "a"), ("y", "b")])).await.data(201);
    let money = json!({"unit_currency_field": "dimension_vars.currency"});
    api.live.put(&named_path, money).await.problem(422, "BUSINESS_RULE_VIOLATION");
    // When nothing names it any more, it can go.
    for key in ["f", "g"] {
        let meters = api.live.get(&format!("/v1/meters?key={key}")).await.expect(200);
        let path = format!("/v1/meters/{}", meters["data"][0]["id"].as_str().unwrap());
        let changed = api.live.put(&path, json!({"formula": formula("", "x", &[("x", "b")])["formula"]})).await;
        let _ = changed.data(200);
    }
    let _ = api.live.delete(&named_path).await.expect(204);
}
