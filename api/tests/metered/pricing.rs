//! Expressions, rate tables and meters through the API: the preview, the running total and the invoice are one figure.

use serde_json::{Value, json};

use crate::fixture::{Offer, Shop, Site};

fn rated(expression: &str) -> Value {
    json!([{"tier_order": 1, "up_to": null, "rate_expression": expression}])
}

async fn compute(shop: &Shop, more: Value) -> api::testing::Reply {
    let mut body = json!({"resolve": {"product_id": shop.product, "subscription_id": shop.subscription}});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    shop.client.post("/v1/prices/compute", body).await
}

/// price-formulas.md: cost plus 20 %; events of one cost are rated together, and the cost is required (usage.md R9).
#[tokio::test(flavor = "multi_thread")]
async fn costs_are_passed_on() {
    let site = Site::start().await;
    let shop = Shop::with(&site, Offer { tiers: rated("cost.amount * 1.2"), ..Offer::default() }).await;
    let cost = |amount: &str| json!({"external_cost_amount": amount, "external_cost_currency": "EUR"});
    let mut wanted = cost("10.00");
    wanted["quantity"] = json!("1");
    let computed = compute(&shop, wanted).await.data(200);
    assert_eq!(computed["amount"]["value"], json!("12.00"));
    assert_eq!(computed["breakdown"]["tiers"][0]["unit_amount"], json!("12"));
    let missing = shop.client.post("/v1/usage-events", shop.event("x", "1", json!({}))).await;
    let missing = missing.problem(422, "BUSINESS_RULE_VIOLATION");
    assert_eq!(missing["fields"][0]["field"], json!("external_cost_amount"), "{missing}");
    for (key, quantity, amount) in [("a", "1", "10.00"), ("b", "2", "0.333"), ("c", "3", "0.333")] {
        let _ = shop.client.post("/v1/usage-events", shop.event(key, quantity, cost(amount))).await.data(202);
    }
    site.eventually("SELECT event_count FROM usage_window", 3).await;
    // 12.00 and 5 × 0.3996 = 1.998.
    assert_eq!(shop.used().await, Some(("6".into(), 3, "14.00".into())));
    assert_eq!(site.number("SELECT count(*) FROM meter_member WHERE data IS NOT NULL").await, 2, "a row for each cost");
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!(invoice["lines"][0]["amount"]["value"], json!("14.00"), "{invoice}");
    assert_eq!(invoice["lines"][0]["atoms"].as_array().map(Vec::len), Some(2));
    site.end().await;
}

/// rate-tables.md: the version of the event's time is read; an unknown key is refused with its code.
#[tokio::test(flavor = "multi_thread")]
async fn rates_are_looked_up() {
    let site = Site::start().await;
    let client = site.client();
    let table = json!({"name": "Roaming", "slug": "roaming", "table_type": "lookup"});
    let table = client.post("/v1/rate-tables", table).await.data(201)["id"].as_str().unwrap().to_owned();
    let entries =
        json!({"lookup_entries": [{"key": "de|voice", "value": "0.10"}, {"key": "fr|voice", "value": "0.20"}]});
    let _ = client.post(&format!("/v1/rate-tables/{table}/versions"), entries).await.data(201);
    let unknown = json!({"product_id": uuid::Uuid::nil(), "currency": "EUR", "tiers": rated("lookup('nothing', 'x')")});
    let _ = client.post("/v1/prices", unknown).await.problem(404, "NOT_FOUND"); // the product comes first
    let tiers = rated("lookup('roaming', dim.country, dim.service)");
    let shop = Shop::with(&site, Offer { tiers, ..Offer::default() }).await;
    let to = |country: &str| json!({"dimension_vars": {"country": country, "service": "voice"}});
    let mut wanted = to("fr");
    wanted["quantity"] = json!("10");
    assert_eq!(compute(&shop, wanted).await.data(200)["amount"]["value"], json!("2.00"));
    for (key, country) in [("a", "de"), ("b", "fr"), ("c", "de")] {
        let _ = shop.client.post("/v1/usage-events", shop.event(key, "10", to(country))).await.data(202);
    }
    site.eventually("SELECT event_count FROM usage_window", 3).await;
    assert_eq!(shop.used().await, Some(("30".into(), 3, "4.00".into())));
    // Behind the door: the event is kept with the code, and the total stays.
    let _ = shop.client.post("/v1/usage-events", shop.event("d", "10", to("it"))).await.data(202);
    site.eventually("SELECT count(*) FROM usage_rejection WHERE code = 'RATE_TABLE_KEY_MISSING'", 1).await;
    assert_eq!(shop.used().await, Some(("30".into(), 3, "4.00".into())));
    let archive = client.post(&format!("/v1/rate-tables/{table}/archive"), json!({})).await;
    let _ = archive.problem(409, "CONFLICT");
    site.end().await;
}

/// A formula gives the amount; it is pinned by the version of the price.
#[tokio::test(flavor = "multi_thread")]
async fn formulas_give_amounts() {
    let site = Site::start().await;
    let variables = json!([{"name": "volume_discount", "type": "NUMBER", "default": "0"}]);
    let formula = json!({"name": "Discounted", "expression": "quantity * list_price * (1 - volume_discount)", "variables": variables});
    let formula = site.client().post("/v1/price-formulas", formula).await.data(201)["id"].clone();
    let price = json!({"formula_id": formula, "list_price": "2", "tiers": null});
    let shop = Shop::with(&site, Offer { price, tiers: Value::Null, ..Offer::default() }).await;
    let discount = |text: &str| json!({"pricing_vars": {"volume_discount": text}, "quantity": "10"});
    assert_eq!(compute(&shop, discount("0.15")).await.data(200)["amount"]["value"], json!("17.00"));
    let _ = compute(&shop, discount("2")).await.problem(422, "FORMULA_NEGATIVE_RESULT");
    let path = format!("/v1/price-formulas/{}", formula.as_str().unwrap());
    let _ = site.client().put(&path, json!({"expression": "quantity * 1000", "variables": []})).await.expect(200);
    assert_eq!(compute(&shop, json!({"quantity": "10"})).await.data(200)["amount"]["value"], json!("20.00"), "pinned");
    shop.send("a", "5").await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    assert_eq!(shop.used().await, Some(("5".into(), 1, "10.00".into())));
    let _ = site.client().delete(&path).await.problem(409, "CONFLICT");
    site.end().await;
}

/// meters.md 5, TIME_WEIGHTED: what is held lasts over the end of the month, also without an event.
#[tokio::test(flavor = "multi_thread")]
async fn held_values_are_billed_in_every_month() {
    let site = Site::start().await;
    let shop = Shop::with(&site, Offer { function: "TIME_WEIGHTED", ..Offer::default() }).await;
    shop.send("disk", "4").await; // 2026-01-01T00:00:00Z
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    shop.advance("2026-03-02T00:00:00Z").await;
    let mut amounts: Vec<_> =
        shop.invoices().await.iter().map(|invoice| invoice["lines"][0]["amount"]["value"].clone()).collect();
    amounts.sort_by_key(ToString::to_string);
    // 4 for 672 and for 744 hours at 0.10.
    assert_eq!(amounts, [json!("268.80"), json!("297.60")]);
    site.end().await;
}

/// Which price applies, in the order of specificity, and why none does.
#[tokio::test(flavor = "multi_thread")]
async fn the_most_specific_price_applies() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    let own = json!({
        "product_id": shop.product, "currency": "EUR", "customer_id": shop.customer,
        "tiers": [{"tier_order": 1, "up_to": null, "unit_amount": "0.05", "flat_amount": "0"}],
    });
    let start = "2026-06-01T00:00:00Z";
    let mut later = own.clone();
    later["effective_from"] = json!("2999-06-01T00:00:00Z");
    let _ = site.client().post("/v1/prices", later).await.data(201);
    let ask = |more: Value| {
        let mut body = json!({"product_id": shop.product, "at_time": start});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        site.client().post("/v1/prices/resolve", body)
    };
    let base = ask(json!({"customer_id": shop.customer})).await.data(200);
    assert_eq!((&base["resolved_by"], &base["tiers"][0]["unit_amount"]), (&json!("BASE"), &json!("0.1")), "{base}");
    let own = ask(json!({"customer_id": shop.customer, "at_time": "2999-07-01T00:00:00Z"})).await.data(200);
    assert_eq!((&own["resolved_by"], &own["tiers"][0]["unit_amount"]), (&json!("CUSTOMER"), &json!("0.05")), "{own}");
    let _ = ask(json!({"currency": "USD"})).await.problem(422, "CURRENCY_MISMATCH");
    let _ = ask(json!({"price_key": "none"})).await.problem(404, "NOT_FOUND");
    let _ = ask(json!({"customer_id": uuid::Uuid::nil()})).await.problem(404, "NOT_FOUND");
    let _ = ask(json!({"plan_version": 1})).await.problem(400, "VALIDATION");
    site.end().await;
}

/// meters.md 5, event_schema: a violation is refused at the door with its field.
#[tokio::test(flavor = "multi_thread")]
async fn events_are_compared_with_the_schema_of_their_meter() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    let meters = site.client().get("/v1/meters").await.expect(200);
    let path = format!("/v1/meters/{}", meters["data"][0]["id"].as_str().unwrap());
    let schema =
        json!({"properties": {"dimension_vars": {"required": ["region"], "properties": {"region": {"enum": ["eu"]}}}}});
    let wrong = site.client().put(&path, json!({"event_schema": {"type": "nothing"}})).await.problem(400, "VALIDATION");
    assert_eq!(wrong["fields"][0]["field"], json!("event_schema.type"), "{wrong}");
    let meter = site.client().put(&path, json!({"event_schema": schema})).await.data(200);
    assert_eq!(meter["version"], json!(2));
    site.engine().snapshots.refresh().await.unwrap();
    let now = domain::Clock::System.now().to_rfc3339(); // the new version holds from now on
    let at = |region: &str| json!({"dimension_vars": {"region": region}, "timestamp": now});
    let _ = shop.advance(&now).await;
    let refused = shop.client.post("/v1/usage-events", shop.event("a", "1", at("mars"))).await;
    let refused = refused.problem(422, "BUSINESS_RULE_VIOLATION");
    assert_eq!(refused["fields"][0]["field"], json!("dimension_vars.region"), "{refused}");
    let _ = shop.client.post("/v1/usage-events", shop.event("b", "1", at("eu"))).await.data(202);
    site.end().await;
}

/// meters.md 1, preview: another function and filter over stored events, in all and by dimension; nothing is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_draft_of_a_meter_is_tried_on_stored_events() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    for (key, quantity, region) in [("a", "5", "eu"), ("b", "7", "us"), ("c", "2", "eu")] {
        let event = shop.event(key, quantity, json!({"dimension_vars": {"region": region}}));
        let _ = shop.client.post("/v1/usage-events", event).await.data(202);
    }
    site.eventually("SELECT event_count FROM usage_window", 3).await;
    let meters = site.client().get("/v1/meters").await.expect(200);
    let path = format!("/v1/meters/{}", meters["data"][0]["id"].as_str().unwrap());
    let tried = format!("{path}/preview");
    let preview = |draft: Value| {
        let body = json!({"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z", "draft": draft});
        site.client().post(&tried, body)
    };
    let now = preview(json!({})).await.data(200);
    assert_eq!((&now["quantity"], &now["event_count"], &now["by_dimension"]), (&json!("14"), &json!(3), &json!([])));
    let filter = json!({"root": {"field": "quantity", "operator": "GT", "value": 2}});
    let draft = preview(json!({"function": "MAX", "dimensions": ["region"], "filter": filter})).await.data(200);
    assert_eq!(
        (&draft["quantity"], &draft["event_count"], &draft["excluded_count"]),
        (&json!("7"), &json!(2), &json!(1))
    );
    let groups = json!([
        {"dimension": "region", "value": "eu", "quantity": "5"}, {"dimension": "region", "value": "us", "quantity": "7"},
    ]);
    assert_eq!(draft["by_dimension"], groups);
    let nothing = json!({"root": {"field": "quantity", "operator": "GT", "value": 100}});
    let empty = preview(json!({"function": "MIN", "filter": nothing})).await.data(200);
    assert_eq!((&empty["quantity"], &empty["empty"], &empty["excluded_count"]), (&json!("0"), &json!(true), &json!(3)));
    let wrong = preview(json!({"function": "UNIQUE_COUNT"})).await.problem(400, "VALIDATION");
    assert_eq!(wrong["fields"][0]["field"], json!("draft.unique_by_field"), "{wrong}");
    assert_eq!(site.client().get(&path).await.data(200)["version"], json!(1), "nothing is stored");
    site.end().await;
}
