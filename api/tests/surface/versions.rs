//! Guards the version model (scheduled-changes.md): at each instant one version is in effect, drafts and scheduled ones stand
//! beside it, and nothing has to run when a start comes.

use api::testing::{Client, Reply, TestApi, id};
use catalog::compiled::WorkspaceCatalog;
use chrono::{DateTime, TimeDelta, Utc};
use domain::ProductId;
use serde_json::{Value, json};

/// A USAGE product with a meter, its binding and a price.
struct Catalog {
    product: String,
    meter: String,
    binding: String,
    price: String,
}

async fn catalog(client: &Client) -> Catalog {
    let product = id(&client.post("/v1/products", json!({"name": "Tokens", "type": "USAGE"})).await.data(201));
    let meter = json!({"key": "tokens", "name": "Tokens", "metric_key": "tokens", "function": "SUM"});
    let meter = id(&client.post("/v1/meters", meter).await.data(201));
    let path = format!("/v1/products/{product}/meter-bindings");
    let binding = id(&client.post(&path, json!({"meter_id": meter})).await.data(201));
    let price = json!({"product_id": product, "currency": "EUR", "list_price": "1"});
    let price = id(&client.post("/v1/prices", price).await.data(201));
    Catalog { product, meter, binding, price }
}

impl Catalog {
    /// Path of each kind of entity, and one member of its versions with four values.
    fn kinds(&self) -> [(String, &'static str, [Value; 4]); 3] {
        let texts = |texts: [&str; 4]| texts.map(|text| json!(text));
        [
            (format!("/v1/meters/{}", self.meter), "name", texts(["Tokens", "b", "c", "d"])),
            (format!("/v1/bindings/{}", self.binding), "multiplier", texts(["1", "2", "3", "4"])),
            (format!("/v1/prices/{}", self.price), "list_price", texts(["1", "2", "3", "4"])),
        ]
    }
}

fn hours(hours: i64) -> String {
    stamp(domain::Clock::System.now() + TimeDelta::hours(hours))
}

fn stamp(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// Lets hours pass for the versions of everything.
async fn pass(api: &TestApi, hours: i32) {
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
fn words(page: &Value) -> Vec<(i64, String)> {
    let rows = page["data"].as_array().expect("a page").iter();
    rows.map(|row| (row["version"].as_i64().unwrap(), row["status"].as_str().unwrap().to_owned())).collect()
}

fn word(number: i64, status: &str) -> (i64, String) {
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
        let past = json!({member: second, "effective_at": hours(-1)});
        live.put(&path, past.clone()).await.problem(422, "BUSINESS_RULE_VIOLATION");
        let conflict =
            live.put(&path, json!({member: second, "expected_version": 7})).await.problem(409, "VERSION_CONFLICT");
        assert_eq!((&conflict["expected_version"], &conflict["current_version"]), (&json!(7), &json!(1)));
        let _ = live.put(&path, json!({member: second, "effective_at": hours(1)})).await.data(200);
        let late = json!({"effective_at": hours(2), "expected_version": 2});
        live.put(&format!("{path}/versions/2"), late).await.conflict_if_routed("VERSION_CONFLICT");
        live.put(&format!("{path}/versions/2"), past).await.refused_if_routed();
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

#[tokio::test]
async fn drafts_of_entities_count_nothing_until_they_are_published() {
    let api = TestApi::start().await;
    let live = &api.live;
    let product = id(&live.post("/v1/products", json!({"name": "Tokens", "type": "USAGE"})).await.data(201));
    let bindings = format!("/v1/products/{product}/meter-bindings");
    let body = json!({"key": "m", "name": "M", "metric_key": "m", "function": "SUM", "save_as_draft": true});
    let meter = live.post("/v1/meters", body).await.data(201);
    assert_eq!((&meter["status"], &meter["version"]), (&json!("draft"), &json!(0)));
    assert_eq!(meter["head_version_id"], Value::Null);
    let path = format!("/v1/meters/{}", id(&meter));
    live.post(&bindings, json!({"meter_id": meter["id"]})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    // A draft is edited in place.
    let changed = live.put(&path, json!({"function": "COUNT"})).await.data(200);
    assert_eq!((&changed["status"], &changed["function"]), (&json!("draft"), &json!("COUNT")));
    assert_eq!(words(&live.get(&format!("{path}/versions")).await.expect(200)), [word(1, "draft")]);
    let _ = live.post_empty(&format!("{path}/versions/1/publish")).await.data(200);
    let published = live.get(&path).await.data(200);
    assert_eq!((&published["status"], &published["version"]), (&json!("active"), &json!(1)));
    assert_eq!(live.get(&format!("{path}/versions/1")).await.data(200)["effective_from"], Value::Null, "since ever");

    let body = json!({"meter_id": meter["id"], "save_as_draft": true, "effective_at": hours(3)});
    let binding = live.post(&bindings, body).await.data(201);
    assert_eq!((&binding["status"], &binding["effective_from"]), (&json!("draft"), &Value::Null));
    let price = json!({"product_id": product, "currency": "EUR", "list_price": "1", "save_as_draft": true});
    let price = live.post("/v1/prices", price).await.data(201);
    assert_eq!((&price["status"], &price["version"]), (&json!("draft"), &json!(0)));
    let product_id: ProductId = product.parse().unwrap();
    let of = |catalog: &WorkspaceCatalog| {
        let product = catalog.product(product_id).unwrap();
        let live: usize = product.bindings.iter().map(|binding| binding.versions.len()).sum();
        (live, product.prices.iter().map(|price| price.versions.len()).sum::<usize>())
    };
    let compiled = WorkspaceCatalog::load(&api.app.store, api.tenant.live.id).await.unwrap();
    assert_eq!(of(&compiled), (0, 0));
    assert_eq!(live.get(&bindings).await.expect(200)["data"], json!([]), "drafts with include=all only");
    let _ = live.post_empty(&format!("/v1/bindings/{}/versions/1/publish", id(&binding))).await.data(200);
    assert_eq!(live.get(&format!("/v1/bindings/{}", id(&binding))).await.data(200)["status"], "scheduled");
    let _ = live.post_empty(&format!("/v1/prices/{}/versions/1/publish", id(&price))).await.data(200);
    let compiled = WorkspaceCatalog::load(&api.app.store, api.tenant.live.id).await.unwrap();
    assert_eq!(of(&compiled), (1, 1));
}

#[tokio::test]
async fn a_cancelled_version_never_starts() {
    let api = TestApi::start().await;
    let live = &api.live;
    let made = catalog(live).await;
    let path = format!("/v1/prices/{}", made.price);
    let _ = live.put(&path, json!({"list_price": "5", "effective_at": hours(2)})).await.data(200);
    let cancelled = live.post_empty(&format!("{path}/versions/2/cancel")).await.data(200);
    assert_eq!((&cancelled["status"], &cancelled["archived_reason"]), (&json!("archived"), &json!("cancelled")));
    assert!(cancelled["cancelled_at"].is_string());
    live.post_empty(&format!("{path}/versions/2/cancel")).await.problem(409, "INVALID_TRANSITION");
    live.post_empty(&format!("{path}/versions/1/cancel")).await.problem(409, "INVALID_TRANSITION");
    pass(&api, 3).await;
    let price = live.get(&path).await.data(200);
    assert_eq!((&price["list_price"], &price["effective_to"]), (&json!("1"), &Value::Null));
    let compiled = WorkspaceCatalog::load(&api.app.store, api.tenant.live.id).await.unwrap();
    let product = compiled.product(made.product.parse().unwrap()).unwrap();
    assert_eq!(product.prices[0].versions.len(), 1);
    // The number is not used again, and any version can be copied.
    let copy = json!({"list_price": "6", "effective_at": hours(4)});
    let copy = live.post(&format!("{path}/versions/2/copy-as-draft"), copy).await.data(201);
    assert_eq!((&copy["version"], &copy["list_price"], &copy["status"]), (&json!(3), &json!("6"), &json!("draft")));
    assert_eq!(copy["tiers"][0]["unit_amount"], "6", "the step that the list price made follows it");
    let again = live.post_empty(&format!("{path}/versions/1/copy-as-draft")).await.problem(409, "CONFLICT");
    assert_eq!(again["existing_id"], copy["id"]);
    let _ = live.post_empty(&format!("{path}/versions/3/cancel")).await.data(200);
    let only = json!({"product_id": made.product, "currency": "USD", "list_price": "1", "save_as_draft": true});
    let only = id(&live.post("/v1/prices", only).await.data(201));
    live.post_empty(&format!("/v1/prices/{only}/versions/1/cancel")).await.problem(409, "CONFLICT");
}

#[tokio::test]
async fn prices_change_by_versions_and_their_span_at_once() {
    let api = TestApi::start().await;
    let live = &api.live;
    let made = catalog(live).await;
    let path = format!("/v1/prices/{}", made.price);
    let window = live.put(&path, json!({"valid_to": hours(48)})).await.data(200);
    assert_eq!(window["version"], 1, "no new version");
    live.put(&path, json!({"valid_to": hours(24), "save_as_draft": true}))
        .await
        .problem(422, "BUSINESS_RULE_VIOLATION");
    let _ = live.put(&path, json!({"list_price": "2", "effective_at": hours(1)})).await.data(200);
    live.put(&format!("{path}/versions/2"), json!({"valid_to": hours(24)}))
        .await
        .problem(422, "BUSINESS_RULE_VIOLATION");
    live.put(&path, json!({"tiers": [{"up_to": "5", "unit_amount": "1"}]})).await.problem(400, "VALIDATION");
    live.put(&path, json!({"formula_id": uuid::Uuid::now_v7()})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    live.put(&path, json!({"product_id": made.product})).await.problem(400, "VALIDATION");
    let tiers = json!([{"up_to": "10", "unit_amount": "3"}, {"unit_amount": "2"}]);
    let tiered = live.put(&path, json!({"tiers": tiers, "display_name": "New", "metadata": {"a": 1}})).await.data(200);
    assert_eq!((&tiered["tiers"][1]["unit_amount"], &tiered["list_price"]), (&json!("2"), &json!("1")));
    let headline = live.put(&path, json!({"list_price": "9"})).await.data(200);
    assert_eq!(
        (&headline["tiers"], &headline["list_price"]),
        (&tiered["tiers"], &json!("9")),
        "made by nobody's list price"
    );
    assert_eq!((&headline["display_name"], &headline["metadata"]), (&json!("New"), &json!({"a": 1})));
    // The same calls must never have two prices, whichever version gives the span.
    let _ = live.put(&path, json!({"valid_to": hours(30)})).await.data(200);
    let same = json!({"product_id": made.product, "currency": "EUR", "list_price": "7", "effective_from": hours(29)});
    live.post("/v1/prices", same).await.problem(409, "DUPLICATE");
    let same = json!({"product_id": made.product, "currency": "EUR", "list_price": "7", "effective_from": hours(31)});
    let _ = live.post("/v1/prices", same).await.data(201);
    live.put(&path, json!({"valid_to": null})).await.problem(409, "DUPLICATE");
}

#[tokio::test]
async fn continuous_coverage_leaves_no_gap() {
    let api = TestApi::start().await;
    let live = &api.live;
    let product = catalog(live).await.product;
    let price = |flag: bool, country: &str| {
        json!({"product_id": product, "currency": "EUR", "list_price": "1", "country_code": country, "effective_to": hours(10),
               "requires_continuous_coverage": flag})
    };
    for (flag, country) in [(true, "DE"), (false, "FR")] {
        let path = format!("/v1/prices/{}", id(&live.post("/v1/prices", price(flag, country)).await.data(201)));
        let gap = live.put(&path, json!({"list_price": "2", "effective_at": hours(20), "effective_to": null})).await;
        if flag {
            gap.problem(422, "BUSINESS_RULE_VIOLATION");
        } else {
            let _ = gap.data(200);
        }
        let start = hours(11);
        let backwards = json!({"list_price": "2", "effective_at": start, "effective_to": start});
        live.put(&path, backwards).await.problem(422, "BUSINESS_RULE_VIOLATION");
    }
}

#[tokio::test]
async fn bindings_are_archived_from_an_instant() {
    let api = TestApi::start().await;
    let live = &api.live;
    let made = catalog(live).await;
    let path = format!("/v1/bindings/{}", made.binding);
    live.delete(&format!("{path}?effective_at={}", hours(-1))).await.problem(422, "BUSINESS_RULE_VIOLATION");
    live.delete(&format!("{path}?effective_at=soon")).await.problem(400, "VALIDATION");
    live.delete(&format!("{path}?when=now")).await.problem(400, "VALIDATION");
    api.other.delete(&path).await.problem(404, "NOT_FOUND");
    let end = hours(6);
    let _ = live.put(&path, json!({"multiplier": "2", "effective_at": hours(8)})).await.data(200);
    let _ = live.delete(&format!("{path}?effective_at={end}")).await.expect(204);
    let binding = live.get(&path).await.data(200);
    assert_eq!((&binding["status"], &binding["effective_to"]), (&json!("active"), &json!(end)));
    assert_eq!(words(&live.get(&format!("{path}/timeline")).await.expect(200)), [word(1, "active")]);
    // The place of the PRIMARY binding is free from there, not before.
    let bind = |start: String| {
        let (live, meter) = (api.live.clone(), made.meter.clone());
        let path = format!("/v1/products/{}/meter-bindings", made.product);
        async move { live.post(&path, json!({"meter_id": meter, "effective_at": start})).await }
    };
    bind(hours(5)).await.problem(409, "CONFLICT");
    let next = bind(hours(7)).await.data(201);
    assert_eq!(next["status"], "scheduled");
    live.put(&path, json!({"multiplier": "3", "effective_at": hours(9)})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    live.delete(&format!("/v1/meters/{}", made.meter)).await.problem(409, "CONFLICT");
    pass(&api, 8).await;
    assert_eq!(live.get(&path).await.data(200)["status"], "archived");
    assert_eq!(live.get(&format!("/v1/bindings/{}", id(&next))).await.data(200)["status"], "active");
    live.put(&path, json!({"multiplier": "3"})).await.problem(409, "CONFLICT");
    let _ = live.delete(&path).await.expect(204); // a repeat
    let _ = live.delete(&format!("/v1/bindings/{}", id(&next))).await.expect(204);
    let _ = live.delete(&format!("/v1/meters/{}", made.meter)).await.expect(204);
}
