//! Guards what single kinds of entities add to the version model: drafts of new ones, spans and ends of prices, the place of the
//! PRIMARY binding (prices.md, meters.md, meter-bindings.md).

use api::testing::{TestApi, id};
use catalog::compiled::WorkspaceCatalog;
use domain::ProductId;
use serde_json::{Value, json};

use crate::versions::{catalog, hours, pass, word, words};

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
    live.put(&path, json!({"formula_id": uuid::Uuid::now_v7()})).await.problem(404, "NOT_FOUND");
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

#[tokio::test]
async fn a_meter_that_is_bound_keeps_a_published_version() {
    let api = TestApi::start().await;
    let live = &api.live;
    let product = id(&live.post("/v1/products", json!({"name": "Tokens", "type": "USAGE"})).await.data(201));
    let body = json!({"key": "m", "name": "M", "metric_key": "m", "function": "SUM", "save_as_draft": true});
    let meter = id(&live.post("/v1/meters", body).await.data(201));
    let version = format!("/v1/meters/{meter}/versions/1");
    let _ = live.post(&format!("{version}/publish"), json!({"effective_at": hours(4)})).await.data(200);
    let bindings = format!("/v1/products/{product}/meter-bindings");
    let binding = id(&live.post(&bindings, json!({"meter_id": meter})).await.data(201));
    live.post_empty(&format!("{version}/unschedule")).await.problem(409, "CONFLICT");
    let _ = live.delete(&format!("/v1/bindings/{binding}")).await.expect(204);
    let _ = live.post_empty(&format!("{version}/unschedule")).await.data(200);
    let meter = live.get(&format!("/v1/meters/{meter}")).await.data(200);
    assert_eq!((&meter["status"], &meter["version"]), (&json!("draft"), &json!(0)));
}

/// Else: a price of next year is charged from the publication of the plan on.
#[tokio::test]
async fn a_plan_pins_only_what_has_started() {
    let api = TestApi::start().await;
    let live = &api.live;
    let made = catalog(live).await;
    let ahead = json!({"product_id": made.product, "currency": "EUR", "list_price": "9", "country_code": "DE",
                       "effective_from": hours(9)});
    let ahead = id(&live.post("/v1/prices", ahead).await.data(201));
    let change = json!({"list_price": "5", "effective_at": hours(8)});
    let _ = live.put(&format!("/v1/prices/{}", made.price), change).await.data(200);
    let plan = json!({"name": "Team", "products": [{"product_id": made.product}]});
    let plan = id(&live.post("/v1/plans", plan).await.data(201));
    let version = live.post_empty(&format!("/v1/plans/{plan}/publish")).await.data(200);
    let first = id(&live.get(&format!("/v1/prices/{}/versions/1", made.price)).await.data(200));
    let mut pins = serde_json::Map::new();
    pins.insert(made.price, json!(first));
    assert_eq!(version["snapshot"]["pins"]["prices"], Value::Object(pins), "and not {ahead}");
}
