//! Guards the version model (scheduled-changes.md): at each instant one version is in effect, drafts and scheduled ones stand
//! beside it, and nothing has to run when a start comes.

use api::testing::{Client, Reply, TestApi, id};
use catalog::compiled::WorkspaceCatalog;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

/// A USAGE product with a meter, its binding, a price and a cost.
pub struct Catalog {
    pub product: String,
    pub meter: String,
    pub binding: String,
    pub price: String,
    pub cost: String,
}

pub async fn catalog(client: &Client) -> Catalog {
    let product = id(&client.post("/v1/products", json!({"name": "Tokens", "type": "USAGE"})).await.data(201));
    let meter = json!({"key": "tokens", "name": "Tokens", "metric_key": "tokens", "function": "SUM"});
    let meter = id(&client.post("/v1/meters", meter).await.data(201));
    let path = format!("/v1/products/{product}/meter-bindings");
    let binding = id(&client.post(&path, json!({"meter_id": meter})).await.data(201));
    let price = json!({"product_id": product, "currency": "EUR", "list_price": "1"});
    let price = id(&client.post("/v1/prices", price).await.data(201));
    let cost = json!({"key": "fee", "expression": {"type": "PERCENTAGE", "percentage": "1"}});
    let cost = id(&client.post(&format!("/v1/products/{product}/costs"), cost).await.data(201));
    Catalog { product, meter, binding, price, cost }
}

impl Catalog {
    /// Path of each kind of entity, and one member of its versions with four values.
    fn kinds(&self) -> [(String, &'static str, [Value; 4]); 4] {
        let texts = |texts: [&str; 4]| texts.map(|text| json!(text));
        [
            (format!("/v1/meters/{}", self.meter), "name", texts(["Tokens", "b", "c", "d"])),
            (format!("/v1/bindings/{}", self.binding), "multiplier", texts(["1", "2", "3", "4"])),
            (format!("/v1/prices/{}", self.price), "list_price", texts(["1", "2", "3", "4"])),
            (format!("/v1/costs/{}", self.cost), "expression", ["1", "2", "3", "4"].map(percentage)),
        ]
    }
}

fn percentage(percentage: &str) -> Value {
    json!({"type": "PERCENTAGE", "percentage": percentage, "currency": null, "amount": null, "expression": null})
}

pub fn hours(hours: i64) -> String {
    stamp(domain::Clock::System.now() + TimeDelta::hours(hours))
}

fn stamp(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// Lets hours pass for the versions of everything.
pub async fn pass(api: &TestApi, hours: i32) {
    sqlx::query(
        "UPDATE entity_version SET effective_from = effective_from - make_interval(hours => $1),
             effective_to = effective_to - make_interval(hours => $1), planned_to = planned_to - make_interval(hours => $1)",
    )
    .bind(hours)
    .execute(api.app.store.pool())
    .await
    .unwrap();
}

/// `(number, status)` of each row.
pub fn words(page: &Value) -> Vec<(i64, String)> {
    let rows = page["data"].as_array().expect("a page").iter();
    rows.map(|row| (row["version"].as_i64().unwrap(), row["status"].as_str().unwrap().to_owned())).collect()
}

pub fn word(number: i64, status: &str) -> (i64, String) {
    (number, status.to_owned())
}

#[tokio::test]
async fn a_version_lives_from_draft_to_superseded() {
    let api = TestApi::start().await;
    for (path, member, [first, second, third, _]) in catalog(&api.live).await.kinds() {
        let live = &api.live;
        let before = live.get(&path).await.data(200);
        assert_eq!((&before[member], &before["version"]), (&first, &json!(1)), "{path}");
        // A draft beside the active version changes nothing; another one takes its place.
        let draft = json!({member: third, "save_as_draft": true});
        let kept = live.put(&path, draft).await.data(200);
        assert_eq!((&kept[member], &kept["version"]), (&first, &json!(1)));
        let _ = live.put(&path, json!({member: second, "save_as_draft": true})).await.data(200);
        let versions = live.get(&format!("{path}/versions")).await.expect(200);
        assert_eq!(words(&versions), [word(2, "draft"), word(1, "active")]);
        assert_eq!(versions["data"][0]["effective_from"], Value::Null);
        let frozen = live.get(&format!("{path}/versions/2")).await.data(200);
        assert_eq!((&frozen[member], &frozen["published_at"]), (&second, &Value::Null));
        // Published ahead it is scheduled, and ends the version before it there.
        let start = hours(12);
        let publish = json!({"effective_at": start, "expected_version": 1});
        let draft = versions["data"][0]["id"].as_str().unwrap();
        let scheduled = live.post(&format!("{path}/versions/{draft}/publish"), publish).await.data(200);
        assert_eq!((&scheduled[member], &scheduled["version"]), (&second, &json!(2)));
        assert!(scheduled["published_at"].is_string());
        assert_eq!(live.get(&path).await.data(200)[member], first, "nothing has come yet");
        let timeline = live.get(&format!("{path}/timeline")).await.expect(200);
        assert_eq!(words(&timeline), [word(1, "active"), word(2, "scheduled")]);
        assert_eq!(timeline["data"][0]["effective_to"], json!(start));
        assert_eq!(timeline["data"][1]["effective_from"], json!(start));
    }
    pass(&api, 13).await;
    let kinds = catalog_of(&api).await.kinds();
    for (path, member, [_, second, _, fourth]) in kinds {
        let live = &api.live;
        let now = live.get(&path).await.data(200);
        assert_eq!((&now[member], &now["version"]), (&second, &json!(2)), "{path}: nothing had to run");
        assert_eq!(now["head_version_id"], live.get(&format!("{path}/versions")).await.expect(200)["data"][0]["id"]);
        let (list, own) = (path.rsplit_once('/').unwrap().0, path.rsplit_once('/').unwrap().1);
        assert_eq!(live.get(&format!("{list}?id={own}")).await.expect(200)["data"], json!([now]), "lists as well");
        let versions = live.get(&format!("{path}/versions")).await.expect(200);
        assert_eq!(words(&versions), [word(2, "active"), word(1, "archived")]);
        assert_eq!(versions["data"][1]["archived_reason"], "superseded");
        let archived = live.get(&format!("{path}/versions?status=archived&status=draft")).await.expect(200);
        assert_eq!(words(&archived), [word(1, "archived")]);
        // At once: without effective_at.
        let changed = live.put(&path, json!({member: fourth, "expected_version": 2})).await.data(200);
        assert_eq!((&changed[member], &changed["version"]), (&fourth, &json!(3)));
        let timeline = live.get(&format!("{path}/timeline?include=all")).await.expect(200);
        assert_eq!(words(&timeline), [word(1, "archived"), word(2, "archived"), word(3, "active")]);
        assert_eq!(timeline["data"][1]["effective_to"], timeline["data"][2]["effective_from"]);
    }
    let compiled = WorkspaceCatalog::load(&api.app.store, api.tenant.live.id).await;
    assert!(compiled.is_ok(), "{:?}", compiled.err());
}

/// The catalog that a test has made before.
async fn catalog_of(api: &TestApi) -> Catalog {
    let first = |path: &'static str| {
        let live = api.live.clone();
        async move { id(&live.get(path).await.expect(200)["data"][0]) }
    };
    Catalog {
        product: first("/v1/products").await,
        meter: first("/v1/meters").await,
        binding: first("/v1/bindings").await,
        price: first("/v1/prices").await,
        cost: first("/v1/costs").await,
    }
}

#[tokio::test]
async fn several_scheduled_versions_cut_each_other() {
    let api = TestApi::start().await;
    let live = &api.live;
    for (path, member, [first, second, third, fourth]) in catalog(live).await.kinds() {
        let (near, far) = (hours(10), hours(20));
        let _ = live.put(&path, json!({member: third, "effective_at": far})).await.data(200);
        let _ = live.put(&path, json!({member: second, "effective_at": near})).await.data(200);
        let timeline = live.get(&format!("{path}/timeline")).await.expect(200);
        assert_eq!(words(&timeline), [word(1, "active"), word(3, "scheduled"), word(2, "scheduled")], "{path}");
        let spans: Vec<_> =
            timeline["data"].as_array().unwrap().iter().map(|row| row["effective_to"].clone()).collect();
        assert_eq!(spans, [json!(near), json!(far), Value::Null]);
        let same = live.put(&path, json!({member: fourth, "effective_at": far})).await;
        same.problem(409, "CONFLICT");
        // Amended to a later start it gives the time before it back (bindings have no route for that).
        if !path.contains("bindings") {
            let later = hours(15);
            let amend = json!({member: fourth, "effective_at": later});
            let amended = live.put(&format!("{path}/versions/3"), amend).await.data(200);
            assert_eq!(amended[member], fourth);
            assert_eq!(amended["effective_from"], json!(later));
        }
        // Unscheduled it leaves the timeline, without a start.
        let back = live.post_empty(&format!("{path}/versions/3/unschedule")).await.data(200);
        assert_eq!((&back["effective_from"], &back["published_at"]), (&Value::Null, &Value::Null));
        let timeline = live.get(&format!("{path}/timeline")).await.expect(200);
        assert_eq!(words(&timeline), [word(1, "active"), word(2, "scheduled")]);
        assert_eq!(timeline["data"][0]["effective_to"], json!(far));
        live.post_empty(&format!("{path}/versions/2/unschedule")).await.problem(409, "CONFLICT"); // a second draft
        assert_eq!(live.get(&path).await.data(200)[member], first);
    }
    pass(&api, 16).await;
    for (path, member, [first, ..]) in catalog_of(&api).await.kinds() {
        assert_eq!(api.live.get(&path).await.data(200)[member], first, "{path}: an unscheduled version does not start");
    }
}

#[tokio::test]
async fn an_edit_ahead_builds_on_the_version_of_its_start() {
    let api = TestApi::start().await;
    let path = format!("/v1/meters/{}", catalog(&api.live).await.meter);
    let _ = api.live.put(&path, json!({"unit_label": "kB", "effective_at": hours(10)})).await.data(200);
    let _ = api.live.put(&path, json!({"name": "Later", "effective_at": hours(20)})).await.data(200);
    let third = api.live.get(&format!("{path}/versions/3")).await.data(200);
    assert_eq!((&third["name"], &third["unit_label"]), (&json!("Later"), &json!("kB")));
    let draft = json!({"name": "Draft", "save_as_draft": true});
    let _ = api.live.put(&path, draft).await.data(200);
    let draft = api.live.get(&format!("{path}/versions/4")).await.data(200);
    assert_eq!((&draft["name"], &draft["unit_label"]), (&json!("Draft"), &Value::Null), "built on the present");
}

/// The start of a draft is the default of its publication.
#[tokio::test]
async fn a_draft_keeps_the_start_that_it_shall_have() {
    let api = TestApi::start().await;
    let live = &api.live;
    for (path, member, [_, second, third, _]) in catalog(live).await.kinds() {
        let start = hours(5);
        let _ = live.put(&path, json!({member: second, "save_as_draft": true, "effective_at": start})).await.data(200);
        let published = live.post_empty(&format!("{path}/versions/2/publish")).await.data(200);
        assert_eq!(published["effective_from"], json!(start), "{path}");
        let _ = live.put(&path, json!({member: third, "save_as_draft": true})).await.data(200);
        let published = live.post_empty(&format!("{path}/versions/3/publish")).await.data(200);
        assert_eq!(live.get(&path).await.data(200)["version"], published["version"], "at once");
    }
}

#[tokio::test]
async fn versions_refuse_what_would_change_the_past() {
    let api = TestApi::start().await;
    let live = &api.live;
    for (path, member, [_, second, third, _]) in catalog(live).await.kinds() {
        // Usage is counted anew by what starts in the past; what else was made with a version stays.
        let past = json!({member: second, "effective_at": hours(-1)});
        let is_fixed = path.contains("costs");
        if is_fixed {
            live.put(&path, past.clone()).await.problem(422, "BUSINESS_RULE_VIOLATION");
        }
        let conflict =
            live.put(&path, json!({member: second, "expected_version": 7})).await.problem(409, "VERSION_CONFLICT");
        assert_eq!((&conflict["expected_version"], &conflict["current_version"]), (&json!(7), &json!(1)));
        let _ = live.put(&path, json!({member: second, "effective_at": hours(1)})).await.data(200);
        let late = json!({"effective_at": hours(2), "expected_version": 2});
        live.put(&format!("{path}/versions/2"), late).await.conflict_if_routed("VERSION_CONFLICT");
        if is_fixed {
            live.put(&format!("{path}/versions/2"), past).await.problem(422, "BUSINESS_RULE_VIOLATION");
        }
        live.put(&format!("{path}/versions/1"), json!({member: third})).await.conflict_if_routed("CONFLICT");
        let draft = json!({member: third, "save_as_draft": true});
        live.put(&format!("{path}/versions/2"), draft).await.refused_if_routed();
        for version in ["1", "2"] {
            let refused = live.post_empty(&format!("{path}/versions/{version}/publish")).await;
            let refused = refused.problem(409, "INVALID_TRANSITION");
            assert_eq!((&refused["entity_type"], &refused["to"]), (&json!("version"), &json!("active")));
        }
        live.post_empty(&format!("{path}/versions/1/unschedule")).await.problem(409, "INVALID_TRANSITION");
        live.post_empty(&format!("{path}/versions/1/reconfirm")).await.problem(409, "CONFLICT");
        live.get(&format!("{path}/versions/9")).await.problem(404, "NOT_FOUND");
        live.get(&format!("{path}/versions/x")).await.problem(400, "BAD_REQUEST");
        live.get(&format!("{path}/timeline?include=some")).await.problem(400, "VALIDATION");
        let stranger = path.rsplit_once('/').unwrap().0.to_owned() + "/" + &uuid::Uuid::now_v7().to_string();
        live.get(&format!("{stranger}/versions")).await.problem(404, "NOT_FOUND");
        live.get(&format!("{stranger}/timeline")).await.problem(404, "NOT_FOUND");
    }
}

/// Bindings have no route that amends a version.
trait Routed {
    fn conflict_if_routed(self, code: &str);
    fn refused_if_routed(self);
}

impl Routed for Reply {
    fn conflict_if_routed(self, code: &str) {
        if self.status != 405 {
            self.problem(409, code);
        }
    }

    fn refused_if_routed(self) {
        if self.status != 405 {
            self.problem(422, "BUSINESS_RULE_VIOLATION");
        }
    }
}

#[tokio::test]
async fn another_tenant_sees_no_version() {
    let api = TestApi::start().await;
    for (path, member, [_, second, ..]) in catalog(&api.live).await.kinds() {
        let _ = api.live.put(&path, json!({member: second, "effective_at": hours(1)})).await.data(200);
        let version = id(&api.live.get(&format!("{path}/versions/2")).await.data(200));
        for other in [&api.other, &api.sandbox] {
            for read in ["versions", "timeline", "versions/2", &format!("versions/{version}")] {
                other.get(&format!("{path}/{read}")).await.problem(404, "NOT_FOUND");
            }
            other.put(&path, json!({member: second})).await.problem(404, "NOT_FOUND");
            for act in ["publish", "reconfirm", "unschedule"] {
                other.post_empty(&format!("{path}/versions/{version}/{act}")).await.problem(404, "NOT_FOUND");
            }
        }
        assert_eq!(api.live.get(&format!("{path}/versions/2")).await.data(200)["id"], json!(version));
    }
}

#[tokio::test]
async fn an_upstream_change_warns_until_it_is_confirmed() {
    let api = TestApi::start().await;
    let live = &api.live;
    let made = catalog(live).await;
    for (path, member, [_, second, third, _]) in made.kinds() {
        let _ = live.put(&path, json!({member: second, "effective_at": hours(10)})).await.data(200);
        let _ = live.put(&path, json!({member: third})).await.data(200);
        let scheduled = live.get(&format!("{path}/versions/2")).await.data(200);
        let codes: Vec<_> = scheduled["warnings"].as_array().unwrap().iter().map(|w| w["code"].clone()).collect();
        assert!(codes.contains(&json!("PREDECESSOR_CHANGED")), "{path}: {codes:?}");
        let confirmed = live.post_empty(&format!("{path}/versions/2/reconfirm")).await.data(200);
        assert_eq!(confirmed["warnings"], json!([]));
        assert_eq!(words(&live.get(&format!("{path}/timeline")).await.expect(200)).len(), 2);
    }
    let _ = live.put(&format!("/v1/meters/{}", made.meter), json!({"function": "MAX"})).await.data(200);
    let binding = live.get(&format!("/v1/bindings/{}/versions/2", made.binding)).await.data(200);
    let warning = &binding["warnings"][0];
    assert_eq!((&warning["code"], &warning["entity_type"]), (&json!("UPSTREAM_CHANGED"), &json!("meter")));
    assert_eq!(warning["entity_id"], json!(made.meter));
}

/// Else: two edits at once leave two versions in effect, or lose one.
#[tokio::test]
async fn concurrent_edits_follow_each_other() {
    let api = TestApi::start().await;
    for (path, member, [_, second, third, fourth]) in catalog(&api.live).await.kinds() {
        let edits = [second, third, fourth].into_iter().cycle().take(9).enumerate().map(|(index, value)| {
            let hour = i64::try_from(index).unwrap();
            let mut body = json!({member: value});
            match index % 3 {
                0 => body["effective_at"] = json!(hours(hour + 1)),
                1 => body["save_as_draft"] = json!(true),
                _ => {}
            }
            let (live, path) = (api.live.clone(), path.clone());
            async move { live.put(&path, body).await.expect(200) }
        });
        let _ = futures::future::join_all(edits).await;
        let versions = api.live.get(&format!("{path}/versions?status=draft")).await.expect(200);
        assert_eq!(words(&versions).len(), 1, "{path}: one draft");
        let timeline = api.live.get(&format!("{path}/timeline?include=all")).await.expect(200);
        let rows = timeline["data"].as_array().unwrap();
        let published: Vec<_> = rows.iter().filter(|row| row["status"] != "draft").collect();
        assert_eq!(published.len(), 7, "{path}");
        for pair in published.windows(2) {
            assert_eq!(pair[0]["effective_to"], pair[1]["effective_from"], "{path}: spans meet");
        }
        assert_eq!(published.iter().filter(|row| row["status"] == "active").count(), 1, "{path}");
    }
}

/// Else: the versions of one entity cost a walk over those of everybody.
#[tokio::test]
async fn versions_are_found_by_an_index() {
    let api = TestApi::start().await;
    let mut tx = api.app.store.begin("explaining").await.unwrap();
    sqlx::query("SET LOCAL enable_seqscan = off").execute(tx.conn()).await.unwrap();
    for sql in [
        "EXPLAIN SELECT v.id FROM versions_at(statement_timestamp()) v
         WHERE v.workspace_id = gen_random_uuid() AND v.entity_id = '00000000-0000-0000-0000-000000000000'
         ORDER BY v.created_at DESC, v.id DESC LIMIT 26",
        "EXPLAIN SELECT e.name FROM meter t CROSS JOIN LATERAL jsonb_populate_record(t, entity_state(t.id)) e
         WHERE t.workspace_id = '00000000-0000-0000-0000-000000000000' ORDER BY t.created_at DESC, t.id DESC LIMIT 26",
    ] {
        let plan: Vec<String> = sqlx::query_scalar(sql).fetch_all(tx.conn()).await.unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains("Index Scan") || plan.contains("Index Only Scan"), "{plan}");
        assert!(!plan.contains("Seq Scan") && !plan.contains("on versions_at"), "{plan}");
    }
}
