//! Guards: a catalog that rating cannot read, and rules of the reference pages that do not hold.

use api::testing::{Client, TestApi, id};
use serde_json::{Value, json};

async fn product(client: &Client, body: Value) -> Value {
    client.post("/v1/products", body).await.data(201)
}

async fn usage_product(client: &Client, model: &str) -> String {
    id(&product(client, json!({"name": "Tokens", "type": "USAGE", "pricing_model": model})).await)
}

fn open_tier(unit: &str) -> Value {
    json!([{"up_to": null, "unit_amount": unit}])
}

/// An item of a subscription, without the subscription around it.
async fn db_item(api: &TestApi, product: &str) {
    let mut tx = api.app.store.begin("test item").await.unwrap();
    sqlx::query("SET LOCAL session_replication_role = replica").execute(tx.conn()).await.unwrap();
    sqlx::query(
        "INSERT INTO subscription_item (id, workspace_id, subscription_id, product_id, charge_kind, billing_timing, added_at,
             created_at, updated_at)
         VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), $1::text::uuid, 'USAGE', 'IN_ARREARS', now(), now(),
             now())",
    )
    .bind(product)
    .execute(tx.conn())
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn type_and_model_must_go_together() {
    let api = TestApi::start().await;
    for (kind, model, good) in [
        ("FIXED_CHARGE", "VOLUME", true),
        ("FIXED_CHARGE", "STAIRCASE", false),
        ("FIXED_CHARGE", "PACKAGE", false),
        ("SEAT", "VOLUME", true),
        ("SEAT", "STAIRCASE", true),
        ("SEAT", "PACKAGE", false),
        ("USAGE", "VOLUME", true),
        ("USAGE", "STAIRCASE", true),
        ("USAGE", "PACKAGE", true),
    ] {
        let reply = api.live.post("/v1/products", json!({"name": "x", "type": kind, "pricing_model": model})).await;
        if good {
            assert_eq!(reply.data(201)["pricing_model"], model);
        } else {
            assert_eq!(reply.bad_fields(), [("pricing_model".into(), "NOT_ALLOWED".into())], "{kind} {model}");
        }
    }
}

#[tokio::test]
async fn a_product_lives_through_its_states() {
    let api = TestApi::start().await;
    let made =
        product(&api.live, json!({"name": "A", "type": "SEAT", "external_id": "seats", "metadata": {"a": 1, "b": 2}}))
            .await;
    assert_eq!((&made["status"], &made["version"], &made["costs"]), (&json!("published"), &json!(1), &json!([])));
    assert!(made["head_version_id"].is_string() && made["deleted_at"].is_null());
    let taken = api.live.post("/v1/products", json!({"name": "B", "type": "SEAT", "external_id": "seats"})).await;
    let taken = taken.problem(409, "DUPLICATE");
    assert_eq!((&taken["field"], &taken["existing_id"]), (&json!("external_id"), &made["id"]));
    let path = format!("/v1/products/{}", id(&made));
    let changed = api
        .live
        .put(&path, json!({"name": "B", "metadata": {"a": null, "c": 3}, "expected_version": 1}))
        .await
        .data(200);
    assert_eq!((&changed["version"], &changed["metadata"]), (&json!(2), &json!({"b": 2, "c": 3})));
    assert_ne!(changed["head_version_id"], made["head_version_id"]);
    let conflict =
        api.live.put(&path, json!({"name": "C", "expected_version": 1})).await.problem(409, "VERSION_CONFLICT");
    assert_eq!((&conflict["expected_version"], &conflict["current_version"]), (&json!(1), &json!(2)));
    let live = api.live.put(&path, json!({"invoiceable_standalone": true})).await.data(200);
    assert_eq!((&live["version"], &live["invoiceable_standalone"]), (&json!(2), &json!(true)));
    assert_eq!(
        api.live.put(&path, json!({"type": "USAGE"})).await.bad_fields(),
        [("type".into(), "UNKNOWN_FIELD".into())]
    );
    assert_eq!(api.live.post_empty(&format!("{path}/deprecate")).await.data(200)["status"], "deprecated");
    assert_eq!(api.live.post_empty(&format!("{path}/publish")).await.data(200)["status"], "published");
    assert_eq!(
        api.live.post(&format!("{path}/archive"), json!({"reason": "old"})).await.data(200)["status"],
        "archived"
    );
    let refused = api.live.post_empty(&format!("{path}/publish")).await.problem(409, "INVALID_TRANSITION");
    assert_eq!(
        (&refused["from"], &refused["to"], &refused["allowed"]),
        (&json!("archived"), &json!("published"), &json!([]))
    );
    let _ = api.live.delete(&path).await.expect(204);
    api.live.get(&path).await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn a_draft_becomes_version_one() {
    let api = TestApi::start().await;
    let draft = product(&api.live, json!({"name": "A", "type": "USAGE", "save_as_draft": true})).await;
    assert_eq!(
        (&draft["status"], &draft["version"], &draft["head_version_id"]),
        (&json!("draft"), &json!(0), &Value::Null)
    );
    let path = format!("/v1/products/{}", id(&draft));
    assert_eq!(api.live.put(&path, json!({"name": "B", "pricing_model": "PACKAGE"})).await.data(200)["version"], 0);
    let published = api.live.post_empty(&format!("{path}/publish")).await.data(200);
    assert_eq!((&published["version"], &published["name"]), (&json!(1), &json!("B")));
    let snapshot: Value = sqlx::query_scalar("SELECT snapshot FROM entity_version WHERE id = $1")
        .bind(published["head_version_id"].as_str().unwrap().parse::<uuid::Uuid>().unwrap())
        .fetch_one(api.app.store.pool())
        .await
        .unwrap();
    assert_eq!((&snapshot["name"], &snapshot["pricing_model"]), (&json!("B"), &json!("PACKAGE")));
}

#[tokio::test]
async fn custom_fields_are_refused_and_not_lost() {
    let api = TestApi::start().await;
    let fields = json!({"name": "x", "type": "SEAT", "custom_fields": {"color": "red"}});
    api.live.post("/v1/products", fields).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let _ = product(&api.live, json!({"name": "x", "type": "SEAT", "custom_fields": {}, "costs": []})).await;
}

#[tokio::test]
async fn tiers_are_checked_with_their_paths() {
    let api = TestApi::start().await;
    let staircase = usage_product(&api.live, "STAIRCASE").await;
    let price = |tiers: Value| {
        let (live, body) = (api.live.clone(), json!({"product_id": staircase, "currency": "EUR", "tiers": tiers}));
        async move { live.post("/v1/prices", body).await }
    };
    for (tiers, field) in [
        (json!([]), "tiers"),
        (json!([{"up_to": "1000", "unit_amount": "0.10"}]), "tiers[0].up_to"),
        (
            json!([{"up_to": "9", "unit_amount": "1"}, {"up_to": "5", "unit_amount": "1"}, {"up_to": null}]),
            "tiers[1].up_to",
        ),
        (json!([{"up_to": null, "unit_amount": "-1"}]), "tiers[0].unit_amount"),
        (json!([{"up_to": null, "unit_amount": "x"}]), "tiers[0].unit_amount"),
        (json!([{"up_to": null, "rate": "1"}]), "tiers[0].rate"),
    ] {
        let fields = price(tiers.clone()).await.bad_fields();
        assert_eq!(fields[0].0, field, "{tiers}: {fields:?}");
    }
    let good = price(json!([{"up_to": "1000", "unit_amount": "0.10"}, {"up_to": 10000, "unit_amount": "0.08"},
                            {"up_to": null, "unit_amount": "0.05"}]))
    .await
    .data(201);
    assert_eq!(
        good["tiers"][1],
        json!({"tier_order": 2, "up_to": "10000", "unit_amount": "0.08", "flat_amount": "0", "rate_expression": null})
    );
    assert_eq!((&good["kind"], &good["status"], &good["version"]), (&json!("BASE"), &json!("active"), &json!(1)));
    let read = api.live.get(&format!("/v1/prices/{}", id(&good))).await.data(200);
    assert_eq!(read, good);
    let wrong = price(json!([{"up_to": null, "rate_expression": "2 *"}])).await.problem(400, "VALIDATION");
    assert_eq!(wrong["fields"][0]["field"], json!("tiers[0].rate_expression"));
    price(json!([{"rate_expression": "lookup('none', 'x')"}])).await.problem(400, "VALIDATION");
}

#[tokio::test]
async fn a_list_price_alone_is_the_amount() {
    let api = TestApi::start().await;
    for (kind, unit, flat) in [("FIXED_CHARGE", "0", "49.00"), ("SEAT", "49.00", "0"), ("USAGE", "49.00", "0")] {
        let product = product(&api.live, json!({"name": kind, "type": kind})).await;
        let body = json!({"product_id": product["id"], "currency": "USD", "list_price": "49.00"});
        let price = api.live.post("/v1/prices", body).await.data(201);
        let (unit_amount, flat_amount) =
            (decimal(&price["tiers"][0]["unit_amount"]), decimal(&price["tiers"][0]["flat_amount"]));
        assert_eq!((unit_amount, flat_amount), (decimal(&json!(unit)), decimal(&json!(flat))), "{kind}");
    }
    let package = usage_product(&api.live, "PACKAGE").await;
    let body = json!({"product_id": package, "currency": "USD", "list_price": "49.00"});
    assert_eq!(api.live.post("/v1/prices", body).await.bad_fields(), [("tiers".into(), "REQUIRED".into())]);
    let nothing = json!({"product_id": package, "currency": "usd", "tiers": null});
    assert_eq!(api.live.post("/v1/prices", nothing).await.bad_fields()[0].0, "currency");
}

fn decimal(value: &Value) -> rust_decimal::Decimal {
    value.as_str().expect("a decimal string").parse().expect("a decimal")
}

#[tokio::test]
async fn keyed_products_and_prices_agree() {
    let api = TestApi::start().await;
    let keyed = product(&api.live, json!({"name": "Domains", "type": "USAGE", "price_key_label": "tld"})).await;
    let plain = usage_product(&api.live, "VOLUME").await;
    let post = |product: &Value, key: Value| {
        let body = json!({"product_id": product, "currency": "USD", "tiers": open_tier("9.99"), "price_key": key});
        let live = api.live.clone();
        async move { live.post("/v1/prices", body).await }
    };
    assert_eq!(post(&keyed["id"], Value::Null).await.bad_fields(), [("price_key".into(), "REQUIRED".into())]);
    assert_eq!(post(&json!(plain), json!("com")).await.bad_fields(), [("price_key".into(), "NOT_ALLOWED".into())]);
    let _ = post(&keyed["id"], json!("com")).await.expect(201);
    let _ = post(&keyed["id"], json!("de")).await.expect(201);
    post(&keyed["id"], json!("com")).await.problem(409, "DUPLICATE");
    let path = format!("/v1/products/{}", id(&keyed));
    api.live.put(&path, json!({"price_key_label": null})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    api.live.put(&path, json!({"pricing_model": "STAIRCASE"})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    assert_eq!(api.live.put(&path, json!({"price_key_label": "zone"})).await.data(200)["price_key_label"], "zone");
}

#[tokio::test]
async fn the_same_price_twice_is_a_duplicate_unless_windows_part() {
    let api = TestApi::start().await;
    let product = usage_product(&api.live, "VOLUME").await;
    let price = |more: Value| {
        let mut body = json!({"product_id": product, "currency": "EUR", "tiers": open_tier("1")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let live = api.live.clone();
        async move { live.post("/v1/prices", body).await }
    };
    let first = price(json!({"effective_to": "2026-07-01T00:00:00Z"})).await.data(201);
    let again = price(json!({})).await.problem(409, "DUPLICATE");
    assert_eq!(again["existing_id"], first["id"]);
    price(json!({"effective_from": "2026-06-30T23:59:59Z"})).await.problem(409, "DUPLICATE");
    let _ = price(json!({"effective_from": "2026-07-01T00:00:00Z"})).await.expect(201); // half-open windows meet
    for different in [
        json!({"currency": "USD"}),
        json!({"country_code": "DE"}),
        json!({"billing_interval_unit": "monthly"}),
        json!({"billing_interval_unit": "monthly", "billing_interval_count": 3}),
        json!({"custom_dimensions": {"region": "eu"}}),
    ] {
        let _ = price(different.clone()).await.expect(201);
        price(different).await.problem(409, "DUPLICATE");
    }
    assert_eq!(price(json!({"country_code": "de"})).await.bad_fields()[0].0, "country_code");
    let backwards = json!({"effective_from": "2026-02-01T00:00:00Z", "effective_to": "2026-01-01T00:00:00Z"});
    assert_eq!(price(backwards).await.bad_fields(), [("effective_to".into(), "OUT_OF_RANGE".into())]);
    price(json!({"plan_id": uuid::Uuid::now_v7()})).await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn meters_are_compiled_when_they_are_made() {
    let api = TestApi::start().await;
    let meter = |more: Value| {
        let mut body = json!({"key": "tokens", "name": "Tokens", "metric_key": "tokens", "function": "SUM"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let live = api.live.clone();
        async move { live.post("/v1/meters", body).await }
    };
    for (more, field) in [
        (json!({"key": "9x"}), "key"),
        (json!({"function": "TOTAL"}), "function"),
        (json!({"value_field": "secret"}), "value_field"),
        (json!({"function": "UNIQUE_COUNT"}), "unique_by_field"),
        (json!({"dimensions": ["ok", "Not Ok"]}), "dimensions[1]"),
        (json!({"window": {"kind": "CALENDAR"}}), "window.unit"),
        (
            json!({"filter": {"root": {"op": "AND", "children": [{"field": "x", "operator": "EQ", "value": 1}]}}}),
            "filter.root.children[0].field",
        ),
        (json!({"thresholds": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]}), "thresholds[1].name"),
        (json!({"thresholds": [{"name": "a", "value": "much"}]}), "thresholds[0].value"),
        (json!({"function": "FORMULA"}), "formula"),
    ] {
        let fields = meter(more.clone()).await.bad_fields();
        assert_eq!(fields[0].0, field, "{more}: {fields:?}");
    }
    for going_on in [
        json!({"key": "slides", "window": {"kind": "SLIDING", "size": "1h"}, "dedup_key_path": "dimension_vars.id"}),
        json!({"key": "lasts", "window": {"kind": "LIFETIME"}, "function": "TIME_WEIGHTED"}),
        json!({"key": "seen", "window": {"kind": "LIFETIME"}, "function": "UNIQUE_COUNT",
               "unique_by_field": "dimension_vars.id"}),
    ] {
        let _ = meter(going_on).await.data(201);
    }
    // What is held has no steps in which a formula could find it.
    let formula = json!({"expression": "a + 1", "variables": [{"name": "a", "meter_key": "lasts"}]});
    let sliding = json!({"key": "mixed", "function": "FORMULA", "formula": formula,
                         "window": {"kind": "SLIDING", "size": "1h"}});
    meter(sliding).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let filter = json!({"root": {"field": "dimension_vars.model", "operator": "IN", "value": ["large", "small"]}});
    let made = meter(
        json!({"filter": filter, "thresholds": [{"name": "high", "value": 80, "actions": [{"kind": "WEBHOOK"}]}]}),
    )
    .await
    .data(201);
    assert_eq!((&made["filter"], &made["window"]), (&filter, &json!({"kind": "BILLING_PERIOD"})));
    let threshold = json!({"name": "high", "comparator": "GTE", "value": "80", "basis": "ABSOLUTE",
                           "actions": [{"kind": "WEBHOOK"}], "rearm": false});
    assert_eq!(made["thresholds"], json!([threshold]));
    assert_eq!(meter(json!({})).await.problem(409, "DUPLICATE")["existing_id"], made["id"]);
    let path = format!("/v1/meters/{}", id(&made));
    assert_eq!(api.live.get(&path).await.data(200), made);
    let changed = api.live.put(&path, json!({"name": "T", "filter": null})).await.data(200);
    assert_eq!((&changed["version"], &changed["filter"]), (&json!(2), &Value::Null));
    let fixed = api.live.put(&path, json!({"key": "x", "metric_key": "y"})).await.bad_fields();
    assert_eq!(fixed.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), ["key", "metric_key"]);
}

#[tokio::test]
async fn bindings_keep_one_live_primary_per_metric() {
    let api = TestApi::start().await;
    let product = usage_product(&api.live, "VOLUME").await;
    let seat = id(&self::product(&api.live, json!({"name": "Seats", "type": "SEAT"})).await);
    let meter = |key: &'static str| {
        let live = api.live.clone();
        let body = json!({"key": key, "name": key, "metric_key": "bytes", "function": "SUM", "unit_label": "B"});
        async move { id(&live.post("/v1/meters", body).await.data(201)) }
    };
    let (first, second) = (meter("first").await, meter("second").await);
    let bind = |product: &str, body: Value| {
        let (live, path) = (api.live.clone(), format!("/v1/products/{product}/meter-bindings"));
        async move { live.post(&path, body).await }
    };
    bind(&seat, json!({"meter_id": first})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    bind(&product, json!({"meter_id": uuid::Uuid::now_v7()})).await.problem(404, "NOT_FOUND");
    assert_eq!(bind(&product, json!({"meter_id": first, "multiplier": "0"})).await.bad_fields()[0].0, "multiplier");
    assert_eq!(bind(&product, json!({"meter_id": first, "role": "FORMULA_INPUT"})).await.bad_fields()[0].0, "variable");
    let made = bind(&product, json!({"meter_id": first, "multiplier": "0.000000001"})).await.data(201);
    assert_eq!(
        (&made["role"], &made["multiplier"], &made["metric_key"]),
        (&json!("PRIMARY"), &json!("0.000000001"), &json!("bytes"))
    );
    assert_eq!(made["meter"]["key"], "first");
    assert_eq!(api.live.get(&format!("/v1/bindings/{}", id(&made))).await.data(200), made);
    let taken = bind(&product, json!({"meter_id": second})).await.problem(409, "CONFLICT");
    assert_eq!(taken["existing_id"], made["id"]);
    let _ = bind(&product, json!({"meter_id": second, "role": "INFORMATIONAL"})).await.expect(201);
    let listed = api.live.get(&format!("/v1/products/{product}/meter-bindings")).await.expect(200);
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(2));
    let primary = api.live.get("/v1/bindings?role=PRIMARY").await.expect(200);
    assert_eq!(primary["data"], json!([made]));
    api.live.delete(&format!("/v1/meters/{first}")).await.problem(409, "CONFLICT");
}

#[tokio::test]
async fn concurrent_bindings_leave_one_primary() {
    let api = TestApi::start().await;
    let product = usage_product(&api.live, "VOLUME").await;
    let meter = json!({"key": "m", "name": "M", "metric_key": "m", "function": "COUNT"});
    let meter = id(&api.live.post("/v1/meters", meter).await.data(201));
    let path = format!("/v1/products/{product}/meter-bindings");
    let calls = (0..6).map(|_| api.live.post(&path, json!({"meter_id": meter})));
    let made = futures::future::join_all(calls).await.into_iter().filter(|reply| reply.status == 201).count();
    assert_eq!(made, 1);
}

#[tokio::test]
async fn a_plan_is_published_only_when_it_can_be_sold() {
    let api = TestApi::start().await;
    let plan = api.live.post("/v1/plans", json!({"name": "Team", "external_id": "team"})).await.data(201);
    assert_eq!((&plan["status"], &plan["version"]), (&json!("draft"), &json!(0)));
    let path = format!("/v1/plans/{}", id(&plan));
    let publish = format!("{path}/publish");
    api.live.post_empty(&publish).await.problem(422, "BUSINESS_RULE_VIOLATION"); // no product
    let seats = product(&api.live, json!({"name": "Seats", "type": "SEAT"})).await;
    let add = json!({"product_id": seats["id"], "included_quantity": 3});
    let attached = api.live.post(&format!("{path}/products"), add.clone()).await.data(201);
    assert_eq!((&attached["included_quantity"], &attached["overage_policy"]), (&json!("3"), &json!("CHARGE")));
    assert_eq!((&attached["rollover_enabled"], &attached["rollover_max_quantity"]), (&json!(false), &Value::Null));
    api.live.post(&format!("{path}/products"), add).await.problem(409, "CONFLICT");
    let refused = api.live.post_empty(&publish).await.problem(422, "BUSINESS_RULE_VIOLATION"); // no price
    assert_eq!(refused["product_id"], seats["id"]);
    let price = json!({"product_id": seats["id"], "currency": "EUR", "tiers": open_tier("10.00")});
    let price = api.live.post("/v1/prices", price).await.data(201);
    let first = api.live.post_empty(&publish).await.data(200);
    assert_eq!((&first["version"], &first["status"], &first["plan_id"]), (&json!(1), &json!("active"), &plan["id"]));
    let frozen = &first["snapshot"]["products"][0];
    assert_eq!((&frozen["product_id"], &frozen["included_quantity"]), (&seats["id"], &json!("3")));
    assert_eq!(frozen["prices"][0]["price_id"], price["id"]);
    assert_eq!(first["snapshot"]["pins"]["products"][id(&seats)], seats["head_version_id"]);
    assert_eq!(first["snapshot"]["pins"]["prices"][id(&price)], price["head_version_id"]);
    let second = api.live.post(&publish, json!({"expected_version": 1})).await.data(200);
    assert_eq!(second["version"], 2);
    api.live.post(&publish, json!({"expected_version": 1})).await.problem(409, "VERSION_CONFLICT");
    let versions = api.live.get(&format!("{path}/versions")).await.expect(200);
    let rows: Vec<_> = versions["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["version"].clone(), row["status"].clone()))
        .collect();
    assert_eq!(rows, [(json!(2), json!("active")), (json!(1), json!("archived"))]);
    assert_eq!(versions["data"][1]["archived_reason"], "superseded");
    for version in ["1".to_owned(), id(&first)] {
        let read = api.live.get(&format!("{path}/versions/{version}")).await.data(200);
        assert_eq!(read["snapshot"], first["snapshot"]);
    }
    let detail = api.live.get(&path).await.data(200);
    assert_eq!((&detail["status"], &detail["head_version"]["id"]), (&json!("published"), &second["id"]));
    assert_eq!(detail["products"][0]["product"]["name"], "Seats");
    api.live.delete(&path).await.problem(409, "CONFLICT");
}

/// Allowances of items may be carried on and may end usage.
#[tokio::test]
async fn items_may_have_any_policy() {
    let api = TestApi::start().await;
    let seats = product(&api.live, json!({"name": "Seats", "type": "SEAT"})).await;
    let plan = id(&api.live.post("/v1/plans", json!({"name": "Team"})).await.data(201));
    let path = format!("/v1/plans/{plan}/products");
    let _ = api.live.post(&path, json!({"product_id": seats["id"]})).await.expect(201);
    let term = json!({"pool_scope": "ITEM", "rollover_enabled": true, "overage_policy": "BLOCK"});
    let _ = api.live.put(&format!("{path}/{}", id(&seats)), term).await.data(200);
}

/// docs/api.md: a further price of a product that a subscription has begins now, unless its start is named.
#[tokio::test]
async fn a_further_price_of_a_product_in_use_begins_now() {
    let api = TestApi::start().await;
    let units = usage_product(&api.live, "VOLUME").await;
    let body = json!({"product_id": units, "currency": "EUR", "tiers": open_tier("1")});
    assert_eq!(api.live.post("/v1/prices", body.clone()).await.data(201)["effective_from"], Value::Null);
    let price = |more: Value| {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let live = api.live.clone();
        async move { live.post("/v1/prices", body).await }
    };
    let _ = price(json!({"country_code": "DE", "effective_from": "2020-01-01T00:00:00Z"})).await.expect(201);
    db_item(&api, &units).await;
    let past = json!({"country_code": "AT", "effective_from": "2020-01-01T00:00:00Z"});
    assert_eq!(price(past).await.data(201)["effective_from"], "2020-01-01T00:00:00Z");
    let past = json!({"country_code": "BE", "valid_from": "2020-01-01T00:00:00Z"});
    assert_eq!(price(past).await.data(201)["effective_from"], Value::Null);
    let now = price(json!({"country_code": "FR"})).await.data(201);
    assert_eq!(now["effective_from"], now["created_at"]);
    let ahead = price(json!({"country_code": "IT", "effective_from": "2100-01-01T00:00:00Z"})).await.data(201);
    assert_eq!(ahead["effective_from"], "2100-01-01T00:00:00Z");
    assert_eq!(price(json!({"currency": "USD"})).await.data(201)["effective_from"], Value::Null);
}

#[tokio::test]
async fn plan_edits_and_transitions() {
    let api = TestApi::start().await;
    let seats = product(&api.live, json!({"name": "Seats", "type": "SEAT"})).await;
    let price = json!({"product_id": seats["id"], "currency": "EUR", "list_price": "10"});
    let _ = api.live.post("/v1/prices", price).await.expect(201);
    let body = json!({"name": "Team", "products": [{"product_id": seats["id"]}]});
    let path = format!("/v1/plans/{}", id(&api.live.post("/v1/plans", body).await.data(201)));
    api.live.put(&path, json!({"status": "published"})).await.problem(409, "INVALID_TRANSITION");
    assert_eq!(api.live.put(&path, json!({"name": "Crew"})).await.data(200)["version"], 0);
    let _ = api.live.post_empty(&format!("{path}/publish")).await.expect(200);
    assert_eq!(api.live.put(&path, json!({"description": "x"})).await.data(200)["version"], 2);
    let product_path = format!("{path}/products/{}", id(&seats));
    let changed = api.live.put(&product_path, json!({"included_quantity": "5"})).await.data(200);
    assert_eq!((&changed["included_quantity"], &changed["overage_policy"]), (&json!("5"), &json!("CHARGE")));
    let frozen = api.live.get(&format!("{path}/versions/2")).await.data(200);
    assert_eq!(frozen["snapshot"]["products"][0]["included_quantity"], "0", "a published version is immutable");
    for (status, good) in
        [("deprecated", true), ("published", true), ("draft", false), ("archived", true), ("published", false)]
    {
        let reply = api.live.put(&path, json!({"status": status})).await;
        if good {
            let plan = reply.data(200);
            assert_eq!((&plan["status"], &plan["version"]), (&json!(status), &json!(2)));
        } else {
            reply.problem(409, "INVALID_TRANSITION");
        }
    }
    api.live.post_empty(&format!("{path}/publish")).await.problem(409, "INVALID_TRANSITION");
    api.live.post(&format!("{path}/products"), json!({"product_id": seats["id"]})).await.problem(409, "CONFLICT");
    let twice = json!({"name": "x", "products": [{"product_id": seats["id"]}, {"product_id": seats["id"]}]});
    assert_eq!(
        api.live.post("/v1/plans", twice).await.bad_fields(),
        [("products[1].product_id".into(), "NOT_ALLOWED".into())]
    );
}

#[tokio::test]
async fn required_products_come_together() {
    let api = TestApi::start().await;
    let base = product(&api.live, json!({"name": "Base", "type": "SEAT"})).await;
    let extra =
        product(&api.live, json!({"name": "Extra", "type": "SEAT", "requires_product_ids": [base["id"]]})).await;
    for product in [&base, &extra] {
        let price = json!({"product_id": product["id"], "currency": "EUR", "list_price": "1"});
        let _ = api.live.post("/v1/prices", price).await.expect(201);
    }
    let plan =
        api.live.post("/v1/plans", json!({"name": "P", "products": [{"product_id": extra["id"]}]})).await.data(201);
    let path = format!("/v1/plans/{}", id(&plan));
    api.live.post_empty(&format!("{path}/publish")).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let _ = api.live.post(&format!("{path}/products"), json!({"product_id": base["id"]})).await.expect(201);
    let _ = api.live.post_empty(&format!("{path}/publish")).await.expect(200);
    api.live.delete(&format!("/v1/products/{}", id(&base))).await.problem(409, "CONFLICT");
    let unknown = json!({"name": "x", "type": "SEAT", "requires_product_ids": [uuid::Uuid::now_v7()]});
    api.live.post("/v1/products", unknown).await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn what_is_written_can_be_compiled() {
    let api = TestApi::start().await;
    let product = usage_product(&api.live, "STAIRCASE").await;
    let price = json!({"product_id": product, "currency": "EUR", "tiers": [
        {"up_to": "1000", "unit_amount": "0.10"}, {"up_to": null, "unit_amount": "0.08", "flat_amount": "1"}]});
    let _ = api.live.post("/v1/prices", price).await.expect(201);
    let meter = json!({"key": "t", "name": "T", "metric_key": "t", "function": "MAX", "thresholds": [{"name": "a", "value": "1"}]});
    let meter = id(&api.live.post("/v1/meters", meter).await.data(201));
    let binding = json!({"meter_id": meter, "multiplier": "0.5", "thresholds": [{"name": "b", "value": "2"}]});
    let _ = api.live.post(&format!("/v1/products/{product}/meter-bindings"), binding).await.expect(201);
    let plan = json!({"name": "P", "products": [{"product_id": product, "included_quantity": "10"}]});
    let plan = id(&api.live.post("/v1/plans", plan).await.data(201));
    let _ = api.live.post_empty(&format!("/v1/plans/{plan}/publish")).await.expect(200);
    let compiled = catalog::compiled::WorkspaceCatalog::load(&api.app.store, api.tenant.live.id).await;
    assert!(compiled.is_ok(), "{:?}", compiled.err());
}

#[tokio::test]
async fn breaches_are_listed_and_counted_by_day() {
    let api = TestApi::start().await;
    let meter = json!({"key": "m", "name": "M", "metric_key": "m", "function": "COUNT"});
    let meter = id(&api.live.post("/v1/meters", meter).await.data(201));
    for name in ["a", "b"] {
        sqlx::query(
            "INSERT INTO meter_breach (id, organization_id, workspace_id, meter_id, subscription_id, meter_key, threshold_name,
                 threshold_value, comparator, observed_value, window_start, window_end, occurred_at, action_kind)
             VALUES ($1, $2, $3, $4, $1, 'm', $5, 80, 'GTE', 85, now(), now(), now(), 'WEBHOOK')",
        )
        .bind(uuid::Uuid::now_v7())
        .bind(api.tenant.organization_id)
        .bind(api.tenant.live.id)
        .bind(meter.parse::<uuid::Uuid>().unwrap())
        .bind(name)
        .execute(api.app.store.pool())
        .await
        .unwrap();
    }
    let all = api.live.get("/v1/meter-breaches").await.expect(200);
    assert_eq!(all["data"].as_array().map(Vec::len), Some(2));
    assert_eq!((&all["data"][0]["threshold_value"], &all["data"][0]["observed_value"]), (&json!("80"), &json!("85")));
    let one = api.live.get(&format!("/v1/meters/{meter}/breaches?threshold_name=a")).await.expect(200);
    assert_eq!(one["data"].as_array().map(Vec::len), Some(1));
    let daily = api.live.get(&format!("/v1/meters/{meter}/breaches/daily?days=7")).await.expect(200);
    let days = daily["data"].as_array().unwrap();
    assert_eq!((days.len(), &days[6]["count"], &days[0]["count"]), (7, &json!(2), &json!(0)));
    assert_eq!(api.live.get(&format!("/v1/meters/{meter}/breaches/daily?days=366")).await.bad_fields()[0].0, "days");
    assert_eq!(api.other.get("/v1/meter-breaches").await.expect(200)["data"], json!([]));
    api.other.get(&format!("/v1/meters/{meter}/breaches")).await.problem(404, "NOT_FOUND");
}
