//! Guards promise 6: no stranger gets in. Every operation of the document is called with another tenant's key and the
//! first tenant's ids, in its path, its query and its body. Tags that are added later are covered by themselves.

use std::collections::BTreeSet;

use api::testing::{Client, Reply, TestApi, id};
use axum::http::Method;
use serde_json::{Map, Value, json};
use sqlx::Row;

/// Stands in every text of the first tenant that the test writes.
const MARK: &str = "first-tenant-only";

/// The first tenant's catalog: whatever can be made without a running engine.
async fn furnish(client: &Client) {
    let text = |body: Value| body.to_string().replace("MARK", MARK).parse::<Value>().expect("JSON");
    let post = |path: String, body: Value| {
        let (client, body) = (client.clone(), text(body));
        async move { client.post(&path, body).await.data(201) }
    };
    let product = id(&post("/v1/products".into(), json!({"name": "MARK", "type": "USAGE"})).await);
    let _ = post(
        "/v1/prices".into(),
        json!({"product_id": product, "currency": "EUR", "list_price": "1", "display_name": "MARK"}),
    )
    .await;
    let meter =
        id(&post("/v1/meters".into(), json!({"key": "m", "name": "MARK", "metric_key": "m", "function": "SUM"})).await);
    let _ = post(format!("/v1/products/{product}/meter-bindings"), json!({"meter_id": meter})).await;
    let cost = json!({"key": "fee", "description": "MARK", "expression": {"type": "EXTERNAL"}});
    let _ = post(format!("/v1/products/{product}/costs"), cost).await;
    let table = json!({"name": "MARK", "slug": "table", "table_type": "lookup"});
    let table = id(&post("/v1/rate-tables".into(), table).await);
    let entries = json!({"lookup_entries": [{"key": "MARK", "value": "1"}]});
    let _ = post(format!("/v1/rate-tables/{table}/versions"), entries).await;
    let _ = post("/v1/price-formulas".into(), json!({"name": "MARK", "expression": "lookup('table', 'MARK')"})).await;
    let plan = id(&post("/v1/plans".into(), json!({"name": "MARK", "products": [{"product_id": product}]})).await);
    let _ = client.post_empty(&format!("/v1/plans/{plan}/publish")).await.expect(200);
    let _ = client.post("/v1/api-keys", json!({"name": MARK})).await.expect(201);
    // Made by other tags; where the tag is not built the answer is 404, and its rows are not there to be stolen.
    let customer = json!({"name": MARK, "email": "a@example.com", "external_id": MARK});
    let customer = id(&client.post("/v1/customers", customer).await.data(201));
    let gateway = json!({"provider": "stripe", "mode": "live", "display_name": "MARK", "config": {"api_key": "MARK"}});
    let _ = post("/v1/payment-gateways".into(), gateway).await;
    let card = json!({"customer_id": customer, "type": "CREDIT_CARD", "provider": "stripe", "provider_id": "MARK"});
    let _ = post("/v1/payment-methods".into(), card).await;
    let money = json!({"amount": {"value": "1.00", "currency": "EUR"}, "mode": "MANUAL", "reference": "MARK"});
    let _ = post(format!("/v1/customers/{customer}/wallets/topup"), money).await;
}

/// Every row of the workspace as text, except what calls of the workspace itself write.
async fn rows_of(api: &TestApi) -> Vec<String> {
    let mut conn = api.app.store.pool().acquire().await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT c.table_name FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
         WHERE c.table_schema = 'public' AND c.column_name = 'workspace_id' AND t.table_type = 'BASE TABLE'
           AND c.table_name <> 'api_key' ORDER BY 1",
    )
    .fetch_all(&mut *conn)
    .await
    .unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let sql = format!("SELECT t::text AS row FROM {table} t WHERE workspace_id = $1 ORDER BY 1");
        let found = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(api.tenant.live.id).fetch_all(&mut *conn).await.unwrap();
        rows.extend(found.iter().map(|row| format!("{table}: {}", row.get::<String, _>("row"))));
    }
    rows
}

/// Every id that stands in a row of the workspace.
fn ids_in(rows: &[String], workspace: &str) -> BTreeSet<String> {
    let is_id = |part: &&str| uuid::Uuid::parse_str(part).is_ok() && *part != workspace;
    rows.iter()
        .flat_map(|row| row.split(|c: char| !(c.is_ascii_hexdigit() || c == '-')))
        .filter(is_id)
        .map(str::to_owned)
        .collect()
}

/// A body that a schema accepts, with `id` wherever it wants one.
fn sample(document: &Value, schema: &Value, id: &str, depth: usize) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null);
        return sample(document, target, id, depth);
    }
    for group in ["oneOf", "anyOf", "allOf"] {
        let mut parts = schema[group].as_array().into_iter().flatten();
        if let Some(part) = parts.rfind(|part| part["type"] != "null") {
            return sample(document, part, id, depth);
        }
    }
    if let Some(word) = schema["enum"].as_array().and_then(|words| words.first()) {
        return word.clone();
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or("object");
    match (kind, schema["format"].as_str()) {
        ("string", Some("uuid")) => json!(id),
        ("string", Some("date-time")) => json!("2026-01-15T00:00:00Z"),
        ("string", Some("date")) => json!("2026-01-15"),
        ("string", _) if schema["pattern"].is_string() => json!("1"),
        ("string", _) => json!("eur"),
        ("integer" | "number", _) => json!(1),
        ("boolean", _) => json!(false),
        ("array", _) if depth < 6 => json!([sample(document, &schema["items"], id, depth + 1)]),
        ("array", _) => json!([]),
        _ => object(document, schema, id, depth),
    }
}

fn object(document: &Value, schema: &Value, id: &str, depth: usize) -> Value {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut members = Map::new();
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        let value = match name.as_str() {
            "currency" => json!("EUR"),
            "email" => json!("b@example.com"),
            _ => sample(document, member, id, depth + 1),
        };
        // Optional members matter here when they carry an id.
        if depth < 6 && (required.contains(&name.as_str()) || value.to_string().contains(id)) {
            members.insert(name.clone(), value);
        }
    }
    Value::Object(members)
}

/// What one answer to the stranger may look like.
fn check(name: &str, reply: &Reply, has_foreign_path: bool, may_be_forbidden: bool, rows: &BTreeSet<String>) {
    let text = String::from_utf8_lossy(&reply.bytes);
    assert!(!text.contains(MARK), "{name} shows the first tenant's data: {text}");
    let status = reply.status.as_u16();
    assert!(status < 500 || status == 503, "{name}: {status} {text}");
    if reply.status.is_success() {
        assert!(!has_foreign_path || reply.body["data"] == json!([]), "{name} answers {status}: {text}");
        let shown = rows.iter().find(|id| reply.body["data"].to_string().contains(id.as_str()));
        assert!(shown.is_none(), "{name} took over the id {shown:?}: {text}");
    }
    if has_foreign_path && !reply.status.is_success() {
        // Receivers have no key to tell strangers by: they ask for a signature.
        let unsigned = status == 401 && name.contains("/v1/webhooks/");
        let expected = matches!(status, 400 | 404 | 409 | 422 | 503) || (status == 403 && may_be_forbidden) || unsigned;
        assert!(expected, "{name} answers {status}: {text}");
    }
}

#[tokio::test]
async fn another_tenants_ids_lead_nowhere() {
    let api = TestApi::start().await;
    furnish(&api.live).await;
    let before = rows_of(&api).await;
    let ids = ids_in(&before, &api.tenant.live.id.to_string());
    assert!(ids.len() > 10, "the first tenant has something to steal");
    let document = serde_json::to_value(api::document()).unwrap();
    let mut strict = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method: Method = method.to_ascii_uppercase().parse().unwrap();
            for id in &ids {
                strict += call(&api, &document, (path, &method, operation), id, &ids).await;
            }
        }
    }
    assert!(strict > 100, "most calls with a foreign id end in 404, found {strict}");
    assert_eq!(rows_of(&api).await, before, "nothing of the first tenant has changed");
}

/// Calls one operation with one foreign id everywhere, and counts the answers 404 that a path asks for.
async fn call(
    api: &TestApi,
    document: &Value,
    (path, method, operation): (&str, &Method, &Value),
    id: &str,
    ids: &BTreeSet<String>,
) -> usize {
    let filled = path.split('/').map(|part| match part {
        "{external_id}" => "stranger", // the caller's own word, not an id of the first tenant
        part if part.starts_with('{') => id,
        part => part,
    });
    let mut target: String = filled.collect::<Vec<_>>().join("/");
    let foreign_path = target.contains(id);
    let filter = operation["parameters"].as_array().into_iter().flatten().find(|p| {
        p["in"] == "query" && p["name"].as_str().is_some_and(|name| name.ends_with("_id") && name != "external_id")
    });
    if let Some(filter) = filter {
        target.push_str(&format!("?{}={id}", filter["name"].as_str().unwrap_or_default()));
    }
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    let body = (!schema.is_null()).then(|| sample(document, schema, id, 0));
    // Keys of the second tenant itself are not what this test is about: it must keep its own.
    let own_key = path.ends_with("/rotate");
    if own_key && !body.as_ref().is_some_and(|body| body.to_string().contains(id)) {
        return 0;
    }
    let name = format!("{method} {target} {}", body.clone().unwrap_or_default());
    let mut absent = 0;
    // Test tools answer keys of live workspaces with 403 before they look anything up: those of the sandbox tell.
    for (client, may_be_forbidden) in [(&api.other, true), (&api.other_sandbox, false)] {
        let reply = client.send(method.clone(), &target, body.clone()).await;
        check(&name, &reply, foreign_path, may_be_forbidden, ids);
        absent += usize::from(foreign_path && reply.status.as_u16() == 404);
    }
    absent
}

#[tokio::test]
async fn the_sandbox_is_another_workspace() {
    let api = TestApi::start().await;
    furnish(&api.live).await;
    for path in [
        "/v1/products",
        "/v1/plans",
        "/v1/prices",
        "/v1/meters",
        "/v1/bindings",
        "/v1/rate-tables",
        "/v1/price-formulas",
        "/v1/costs",
    ] {
        let live = api.live.get(path).await.expect(200);
        let id = id(&live["data"][0]);
        assert_eq!(api.sandbox.get(path).await.expect(200)["data"], json!([]));
        api.sandbox.get(&format!("{path}/{id}")).await.problem(404, "NOT_FOUND");
    }
}
