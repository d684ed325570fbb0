//! Guards: a rate table whose entries contradict each other, a version that changes after it was used, and a table that
//! goes while an expression reads it.

use api::testing::{Client, TestApi, id};
use catalog::compiled::WorkspaceCatalog;
use domain::Instant;
use rating::formula::Number;
use serde_json::{Value, json};

async fn table(client: &Client, body: Value) -> Value {
    client.post("/v1/rate-tables", body).await.data(201)
}

fn countries() -> Value {
    json!({"lookup_entries": [{"key": "fr", "value": "2.1"}, {"key": "de", "value": "1.9"}]})
}

fn volumes() -> Value {
    json!({"bracket_entries": [
        {"lower_bound": "1000", "upper_bound": null, "value": "0.05"},
        {"upper_bound": "100", "value": "0.10"},
        {"lower_bound": "100", "upper_bound": "1000", "value": "0.08"},
    ]})
}

async fn compiled(api: &TestApi) -> WorkspaceCatalog {
    WorkspaceCatalog::load(&api.app.store, api.tenant.live.id).await.expect("compiles")
}

fn looked_up(catalog: &WorkspaceCatalog, key: &str, at: Instant) -> Option<String> {
    catalog.rate_table("vat", at).and_then(|table| table.look_up(key)).map(Number::to_string)
}

#[tokio::test]
async fn a_container_has_a_stable_name_and_a_policy() {
    let api = TestApi::start().await;
    let made = table(&api.live, json!({"name": "VAT", "slug": "vat", "table_type": "lookup"})).await;
    assert_eq!(
        (&made["lifecycle_status"], &made["version"], &made["on_missing_key"], &made["head_version_id"]),
        (&json!("draft"), &json!(0), &json!("error"), &Value::Null)
    );
    let taken = api.live.post("/v1/rate-tables", json!({"name": "B", "slug": "vat", "table_type": "bracket"})).await;
    assert_eq!(taken.problem(409, "DUPLICATE")["existing_id"], made["id"]);
    let wrong = json!({"name": "B", "slug": "No Slug", "table_type": "map"});
    assert_eq!(api.live.post("/v1/rate-tables", wrong).await.bad_fields().len(), 2);
    let base = json!({"name": "B", "slug": "b", "table_type": "lookup"});
    for (policy, default, code) in [("default_value", Value::Null, "REQUIRED"), ("zero", json!("1"), "NOT_ALLOWED")] {
        let mut body = base.clone();
        (body["on_missing_key"], body["default_value"]) = (json!(policy), default);
        let bad = api.live.post("/v1/rate-tables", body).await.bad_fields();
        assert_eq!(bad, [("default_value".into(), code.into())]);
    }
    let path = format!("/v1/rate-tables/{}", id(&made));
    let change = json!({"name": "Taxes", "on_missing_key": "default_value", "default_value": "1.5"});
    let changed = api.live.put(&path, change).await.data(200);
    assert_eq!(
        (&changed["name"], &changed["default_value"], &changed["version"]),
        (&json!("Taxes"), &json!("1.5"), &json!(0))
    );
    assert_eq!(api.live.put(&path, json!({"on_missing_key": "zero"})).await.data(200)["default_value"], Value::Null);
    api.live
        .put(&path, json!({"name": "X", "effective_at": "2199-01-01T00:00:00Z"}))
        .await
        .problem(422, "BUSINESS_RULE_VIOLATION");
    assert_eq!(api.live.put(&path, json!({"slug": "x"})).await.bad_fields(), [("slug".into(), "UNKNOWN_FIELD".into())]);
    assert_eq!(
        api.live.get("/v1/rate-tables?lifecycle_status=draft&slug=vat").await.expect(200)["data"][0]["id"],
        made["id"]
    );
    api.other.get(&path).await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn entries_fit_the_kind_and_each_other() {
    let api = TestApi::start().await;
    let lookup = table(&api.live, json!({"name": "V", "slug": "vat", "table_type": "lookup"})).await;
    let bracket = table(&api.live, json!({"name": "B", "slug": "volume", "table_type": "bracket"})).await;
    let [lookup, bracket] = [lookup, bracket].map(|table| format!("/v1/rate-tables/{}/versions", id(&table)));
    for (path, body, field) in [
        (&lookup, json!({}), "lookup_entries"),
        (&lookup, json!({"lookup_entries": []}), "lookup_entries"),
        (&lookup, volumes(), "bracket_entries"),
        (&bracket, countries(), "lookup_entries"),
        (
            &lookup,
            json!({"lookup_entries": [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]}),
            "lookup_entries[1].key",
        ),
        (&lookup, json!({"lookup_entries": [{"key": "a", "value": "x"}]}), "lookup_entries[0].value"),
        (
            &bracket,
            json!({"bracket_entries": [{"upper_bound": "10", "value": "1"}, {"lower_bound": "9", "value": "2"}]}),
            "bracket_entries[1].lower_bound",
        ),
        (
            &bracket,
            json!({"bracket_entries": [{"lower_bound": "9", "upper_bound": "9", "value": "2"}]}),
            "bracket_entries[0].upper_bound",
        ),
    ] {
        let bad = api.live.post(path, body.clone()).await.bad_fields();
        assert_eq!(bad[0].0, field, "{body}");
    }
    let made = api.live.post(&bracket, volumes()).await.data(201);
    assert_eq!(
        (&made["version"], &made["status"], &made["effective_from"]),
        (&json!(1), &json!("active"), &Value::Null)
    );
    let bounds: Vec<_> = made["entries"].as_array().unwrap().iter().map(|e| e["upper_bound"].clone()).collect();
    assert_eq!(bounds, [json!("100"), json!("1000"), Value::Null]);
    let many: Vec<_> = (0..10_000).map(|n| json!({"key": format!("k{n}"), "value": n})).collect();
    let made = api.live.post(&lookup, json!({"lookup_entries": many})).await.data(201);
    assert_eq!(made["entries"].as_array().map(Vec::len), Some(10_000));
}

#[tokio::test]
async fn versions_are_scheduled_amended_and_withdrawn() {
    let api = TestApi::start().await;
    let path = table(&api.live, json!({"name": "VAT", "slug": "vat", "table_type": "lookup"})).await;
    let path = format!("/v1/rate-tables/{}", id(&path));
    let versions = format!("{path}/versions");
    let first = api.live.post(&versions, countries()).await.data(201);
    let now = api.live.get(&path).await.data(200);
    assert_eq!((&now["lifecycle_status"], &now["head_version_id"]), (&json!("active"), &first["id"]));
    let mut ahead = json!({"effective_at": "2199-01-01T00:00:00Z", "lookup_entries": [{"key": "de", "value": "7"}]});
    let second = api.live.post(&versions, ahead.clone()).await.data(201);
    assert_eq!((&second["version"], &second["status"]), (&json!(2), &json!("scheduled")));
    ahead["lookup_entries"][0]["value"] = json!("8");
    let amended = api.live.put(&format!("{versions}/2"), ahead).await.data(200);
    assert_eq!((&amended["id"], &amended["entries"][0]["value"]), (&second["id"], &json!("8")));
    api.live.put(&format!("{versions}/1"), countries()).await.problem(409, "CONFLICT");
    let catalog = compiled(&api).await;
    let later = "2199-06-01T00:00:00Z".parse().unwrap();
    assert_eq!(looked_up(&catalog, "de", Instant::UNIX_EPOCH).as_deref(), Some("1.9"));
    assert_eq!(looked_up(&catalog, "de", later).as_deref(), Some("8"));
    assert_eq!(looked_up(&catalog, "fr", later), None);
    // The policy is part of the version: what was rated before stays an error.
    let _ = api.live.put(&path, json!({"on_missing_key": "zero"})).await.expect(200);
    let catalog = compiled(&api).await;
    assert_eq!(looked_up(&catalog, "it", Instant::UNIX_EPOCH), None);
    assert_eq!(looked_up(&catalog, "it", api.scope().now()).as_deref(), Some("0"));
    assert_eq!(looked_up(&catalog, "de", api.scope().now()).as_deref(), Some("1.9"));
    let draft = api.live.post_empty(&format!("{versions}/2/unschedule")).await.data(200);
    assert_eq!((&draft["status"], &draft["effective_from"]), (&json!("draft"), &Value::Null));
    api.live.post_empty(&format!("{versions}/1/copy-as-draft")).await.problem(409, "CONFLICT");
    let mut second_draft = countries();
    second_draft["save_as_draft"] = json!(true);
    api.live.post(&versions, second_draft).await.problem(409, "CONFLICT");
    assert_eq!(api.live.post_empty(&format!("{versions}/2/cancel")).await.data(200)["status"], "archived");
    let copy = api.live.post(&format!("{versions}/1/copy-as-draft"), json!({})).await.data(201);
    assert_eq!((&copy["status"], &copy["entries"][1]["key"]), (&json!("draft"), &json!("fr")));
    let published = api.live.post_empty(&format!("{versions}/{}/publish", id(&copy))).await.data(200);
    assert_eq!(published["status"], "active");
    let drafts = api.live.get(&format!("{versions}?status=archived&status=scheduled")).await.expect(200);
    assert_eq!(drafts["data"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn a_table_stays_while_an_expression_reads_it() {
    let api = TestApi::start().await;
    let made = table(&api.live, json!({"name": "VAT", "slug": "vat", "table_type": "lookup"})).await;
    let path = format!("/v1/rate-tables/{}", id(&made));
    let _ = api.live.post(&format!("{path}/versions"), countries()).await.expect(201);
    let wrong = json!({"name": "F", "expression": "bracket('vat', 1)"});
    let problem = api.live.post("/v1/price-formulas", wrong).await.problem(400, "VALIDATION");
    assert!(problem["fields"][0]["message"].as_str().unwrap().contains("lookup(...)"), "{problem}");
    let formula = json!({"name": "F", "expression": "lookup('vat', dim.country)"});
    let formula = id(&api.live.post("/v1/price-formulas", formula).await.data(201));
    let tried = json!({"expression": "lookup('vat', dim.country) * 2", "bindings": {"dim.country": "de"}});
    assert_eq!(api.live.post("/v1/price-formulas/validate", tried).await.data(200)["result"], "3.8");
    let missing = json!({"expression": "lookup('vat', 'it')"});
    let missing = api.live.post("/v1/price-formulas/validate", missing).await.data(200);
    assert!(missing["errors"][0]["message"].as_str().unwrap().starts_with("RATE_TABLE_KEY_MISSING"), "{missing}");
    let archive = format!("{path}/archive");
    api.live.post_empty(&archive).await.problem(409, "CONFLICT");
    let _ = api.live.put(&format!("/v1/price-formulas/{formula}"), json!({"expression": "1"})).await.expect(200);
    let archived = api.live.post(&archive, json!({"reason": "old"})).await.data(200);
    assert_eq!(archived["lifecycle_status"], "archived");
    api.live.post_empty(&archive).await.problem(409, "INVALID_TRANSITION");
    api.live.post(&format!("{path}/versions"), countries()).await.problem(409, "CONFLICT");
    let late = json!({"name": "G", "expression": "lookup('vat', 'de')"});
    api.live.post("/v1/price-formulas", late).await.problem(400, "VALIDATION");
    let catalog = compiled(&api).await;
    assert_eq!(looked_up(&catalog, "de", Instant::UNIX_EPOCH).as_deref(), Some("1.9"));
    assert_eq!(looked_up(&catalog, "de", api.scope().now()), None);
}
