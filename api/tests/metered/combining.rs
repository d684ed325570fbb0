//! FORMULA meters over HTTP: several metrics become one line, and every figure of it is the same.

use api::testing::id;
use serde_json::{Value, json};

use crate::fixture::{Shop, Site};

/// A shop that also bills `(in - out) * 2 + units`, where `units` is the meter that the product has already.
async fn combined(site: &Site, more: Value) -> (Shop, String) {
    let shop = Shop::open(site).await;
    let units = shop.client.get("/v1/meters").await.expect(200)["data"][0]["key"].clone();
    for metric in ["in", "out"] {
        let meter = json!({"key": metric, "name": metric, "metric_key": metric, "function": "SUM"});
        let _ = shop.client.post("/v1/meters", meter).await.data(201);
    }
    let variables = json!([
        {"name": "i", "meter_key": "in"}, {"name": "o", "meter_key": "out"}, {"name": "u", "meter_key": units},
    ]);
    let mut meter = json!({
        "key": "combined", "name": "Combined", "metric_key": "combined", "function": "FORMULA",
        "formula": {"expression": "(i - o) * 2 + u", "variables": variables},
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        meter[name] = value.clone();
    }
    let made = shop.client.post("/v1/meters", meter.clone()).await.data(201);
    assert_eq!((&made["formula"], &made["function"]), (&meter["formula"], &json!("FORMULA")));
    let path = format!("/v1/products/{}/meter-bindings", shop.product);
    let _ = shop.client.post(&path, json!({"meter_id": id(&made)})).await.data(201);
    site.engine().snapshots.refresh().await.unwrap();
    (shop, id(&made))
}

async fn send(shop: &Shop, key: &str, metric: &str, quantity: &str) -> String {
    let event = shop.event(key, quantity, json!({"metric_key": metric}));
    let sent = shop.client.post("/v1/usage-events", event).await.data(202);
    sent["results"][0]["id"].as_str().unwrap().to_owned()
}

/// Quantity, events and amount of the line.
async fn used(shop: &Shop, metric: &str) -> (Value, Value, Value) {
    let usage = shop.client.get(&format!("/v1/subscriptions/{}/usage", shop.subscription)).await.data(200);
    let metrics = usage["metrics"].as_array().cloned().unwrap_or_default();
    let found = metrics.into_iter().find(|line| line["metric_key"] == json!(metric)).unwrap_or_default();
    (found["quantity"].clone(), found["event_count"].clone(), found["estimated_amount"]["value"].clone())
}

/// The line of the FORMULA meter.
fn line_of(lines: &Value) -> Value {
    let mut lines = lines.as_array().unwrap().iter();
    lines.find(|line| line["description"] == json!("Units: combined")).unwrap_or_else(|| panic!("{lines:?}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn several_metrics_become_one_line() {
    let site = Site::start().await;
    let (shop, meter) = combined(&site, json!({"thresholds": [{"name": "high", "value": "20"}]})).await;
    shop.credit("100").await;
    let nothing = shop.event("x", "1", json!({"metric_key": "combined"}));
    let refused = shop.client.post("/v1/usage-events", nothing).await;
    refused.problem(422, "BUSINESS_RULE_VIOLATION"); // the FORMULA meter reads no event itself
    send(&shop, "a", "in", "9").await;
    send(&shop, "b", "out", "4").await;
    send(&shop, "c", "units", "3").await;
    let large = send(&shop, "d", "in", "7").await;
    site.eventually("SELECT event_count FROM usage_window", 4).await;
    // (16 - 4) × 2 + 3 at 0.10; `units` counts for its own line, too.
    assert_eq!(used(&shop, "combined").await, (json!("27"), json!(4), json!("2.70")));
    assert_eq!(used(&shop, "units").await, (json!("3"), json!(1), json!("0.30")));
    let breaches = shop.client.get(&format!("/v1/meters/{meter}/breaches")).await.expect(200);
    let observed: Vec<_> = breaches["data"].as_array().unwrap().iter().map(|b| b["observed_value"].clone()).collect();
    assert_eq!((observed, &breaches["data"][0]["meter_key"]), (vec![json!("27")], &json!("combined")));
    // What a reservation holds and a simulation shows is what the line would grow by.
    let hold =
        shop.client.post("/v1/transaction/reserve", shop.reservation("h", "5", json!({"metric_key": "in"}))).await;
    let hold = hold.expect(201);
    assert_eq!(hold["held_amount"]["value"], json!("1.00"), "{hold}");
    let hold = hold["hold_id"].as_str().unwrap().to_owned();
    let events = json!([shop.event("s", "2", json!({"metric_key": "out", "hold_id": null}))]);
    let body = json!({"subscription_id": shop.subscription, "events": events});
    let lines = shop.client.post("/v1/usage-events/simulate", body).await.expect(200);
    let line = line_of(&lines["data"]);
    assert_eq!((&line["quantity"], &line["amount"]["value"]), (&json!("23"), &json!("2.30")), "{line}");
    let _ = shop.capture(&hold, json!({"idempotency_key": "cap", "quantity": "5"})).await.expect(200);
    site.eventually("SELECT event_count FROM usage_window", 5).await;
    assert_eq!(used(&shop, "combined").await, (json!("37"), json!(5), json!("3.70")));
    // An event is taken back, and the window is counted anew.
    let _ = shop.client.post(&format!("/v1/usage-events/{large}/void"), json!({"reason": "twice"})).await.data(200);
    site.eventually("SELECT count(*) FROM usage_void WHERE open", 0).await;
    assert_eq!(used(&shop, "combined").await, (json!("23"), json!(4), json!("2.30")));
    let preview = json!({"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z"});
    let path = format!("/v1/meters/{meter}/preview");
    let preview = shop.client.post(&path, preview).await.data(200);
    assert_eq!((&preview["quantity"], &preview["event_count"]), (&json!("23"), &json!(4)), "{preview}");
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    let line = line_of(&invoice["lines"]);
    assert_eq!((&line["quantity"], &line["amount"]["value"]), (&json!("23"), &json!("2.30")), "{line}");
    let of_version = "SELECT count(*) FROM invoice_line l CROSS JOIN jsonb_array_elements(l.atoms) atom
                      JOIN meter m ON m.head_version_id::text = atom ->> 'meter_version_id' WHERE m.key = 'combined'";
    assert_eq!(site.number(of_version).await, 1, "the version of the FORMULA meter");
    let atom = &line["atoms"][0];
    assert_eq!((&atom["meter_id"], &atom["event_count"]), (&json!(meter), &json!(4)), "{atom}");
    site.end().await;
}

/// Sub-windows each give a result; a division by zero is 0 there and stops nothing; a draft is tried on stored events.
#[tokio::test(flavor = "multi_thread")]
async fn each_sub_window_has_its_result() {
    let site = Site::start().await;
    let variables = json!([{"name": "i", "meter_key": "in"}, {"name": "o", "meter_key": "out"}]);
    let more = json!({
        "formula": {"expression": "i / o", "variables": variables}, "window": {"kind": "CALENDAR", "unit": "DAY"},
        "dimensions": ["region"],
    });
    let (shop, meter) = combined(&site, more).await;
    shop.advance("2026-01-03T13:00:00Z").await;
    for (key, metric, quantity, day, region) in [
        ("a", "in", "6", 1, "eu"),
        ("b", "out", "4", 1, "eu"), // 1.5
        ("c", "in", "5", 2, "us"),  // no `out`: 0
        ("d", "in", "1", 3, "us"),
        ("e", "out", "3", 3, "us"), // 0.333333333333
    ] {
        let at = json!({"metric_key": metric, "timestamp": format!("2026-01-0{day}T12:00:00Z"), "dimension_vars": {"region": region}});
        let _ = shop.client.post("/v1/usage-events", shop.event(key, quantity, at)).await.data(202);
    }
    site.eventually("SELECT event_count FROM usage_window", 5).await;
    assert_eq!(used(&shop, "combined").await, (json!("1.833333333333"), json!(5), json!("0.18")));
    let path = format!("/v1/meters/{meter}/preview");
    let preview = |draft: Value| {
        let body = json!({"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z", "draft": draft});
        shop.client.post(&path, body)
    };
    let now = preview(json!({})).await.data(200);
    assert_eq!((&now["quantity"], &now["empty"]), (&json!("1.833333333333"), &json!(false)));
    let groups = json!([
        {"dimension": "region", "value": "eu", "quantity": "1.5"},
        {"dimension": "region", "value": "us", "quantity": "0.333333333333"},
    ]);
    assert_eq!(now["by_dimension"], groups);
    let whole = preview(json!({"window": {"kind": "BILLING_PERIOD"}})).await.data(200);
    assert_eq!(whole["quantity"], json!("1.714285714286"), "12 / 7");
    let wrong = preview(json!({"formula": {"expression": "i / x", "variables": variables}})).await.bad_fields();
    assert_eq!(wrong[0].0, "draft.formula.expression");
    site.end().await;
}
