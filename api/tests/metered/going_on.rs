//! SLIDING and LIFETIME windows over HTTP: they are shown and watched, over the end of a month, and never billed.

use api::testing::id;
use serde_json::{Value, json};

use crate::fixture::{Shop, Site, merged};

async fn watch(shop: &Shop, key: &str, window: Value) -> String {
    let meter = json!({
        "key": key, "name": key, "metric_key": "units", "function": "SUM", "window": window,
        "thresholds": [{"name": "ten", "value": "10"}],
    });
    let meter = id(&shop.client.post("/v1/meters", meter).await.data(201));
    let path = format!("/v1/products/{}/meter-bindings", shop.product);
    let primary = json!({"meter_id": meter, "role": "PRIMARY"});
    shop.client.post(&path, primary).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let _ = shop.client.post(&path, json!({"meter_id": meter, "role": "INFORMATIONAL"})).await.data(201);
    meter
}

async fn breaches(shop: &Shop, meter: &str) -> Vec<(Value, Value, Value)> {
    let found = shop.client.get(&format!("/v1/meters/{meter}/breaches")).await.expect(200);
    let of = |breach: &Value| {
        (breach["observed_value"].clone(), breach["window_start"].clone(), breach["window_end"].clone())
    };
    found["data"].as_array().unwrap().iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_go_on_when_a_month_ends() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    let life = watch(&shop, "life", json!({"kind": "LIFETIME"})).await;
    let hour = watch(&shop, "hour", json!({"kind": "SLIDING", "size": "1h"})).await;
    site.engine().snapshots.refresh().await.unwrap();
    let send = |key: &'static str, quantity: &'static str, timestamp: &'static str| {
        let event = shop.event(key, quantity, json!({"timestamp": timestamp}));
        let client = shop.client.clone();
        async move { client.post("/v1/usage-events", event).await.data(202) }
    };
    shop.advance("2026-01-31T23:55:00Z").await;
    let _ = send("a", "1", "2026-01-10T12:00:00Z").await;
    let _ = send("b", "6", "2026-01-31T23:50:00Z").await;
    site.eventually("SELECT event_count FROM usage_window ORDER BY window_start LIMIT 1", 2).await;
    assert_eq!((breaches(&shop, &life).await, breaches(&shop, &hour).await), (vec![], vec![]));
    shop.advance("2026-02-01T00:15:00Z").await;
    let _ = send("c", "4", "2026-02-01T00:10:00Z").await;
    site.eventually("SELECT count(*) FROM meter_breach", 2).await;
    let (start, end) = (json!("2026-01-01T00:00:00Z"), json!("2026-03-01T00:00:00Z"));
    assert_eq!(breaches(&shop, &life).await, [(json!("11"), start, end)]);
    let (start, end) = (json!("2026-01-31T23:10:00Z"), json!("2026-02-01T00:10:00Z"));
    assert_eq!(breaches(&shop, &hour).await, [(json!("10"), start, end)]);
    // Only the meter of the shop is billed.
    let usage = shop.client.get(&format!("/v1/subscriptions/{}/usage", shop.subscription)).await.data(200);
    assert_eq!(usage["metrics"].as_array().map(Vec::len), Some(1), "{usage}");
    assert_eq!(shop.used().await, Some(("4".into(), 1, "0.40".into())));
    let body = json!({"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:30:00Z"});
    let preview = shop.client.post(&format!("/v1/meters/{hour}/preview"), body.clone()).await.data(200);
    assert_eq!((&preview["quantity"], &preview["event_count"]), (&json!("10"), &json!(3)), "of the last hour");
    let preview = shop.client.post(&format!("/v1/meters/{life}/preview"), body).await.data(200);
    assert_eq!(preview["quantity"], json!("11"));
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!(invoice["lines"].as_array().map(Vec::len), Some(1), "{invoice}");
    assert_eq!(invoice["lines"][0]["amount"]["value"], json!("0.70"));
    site.end().await;
}

/// Who was seen counts once in a lifetime, and once in each hour; repeats of a dedup key add nothing. Nobody is billed for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_counts_once() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    let users = json!({"function": "UNIQUE_COUNT", "unique_by_field": "dimension_vars.user"});
    let once = json!({"function": "SUM", "dedup_key_path": "dimension_vars.user"});
    let (life, hour) = (json!({"kind": "LIFETIME"}), json!({"kind": "SLIDING", "size": "1h"}));
    let mut meters = Vec::new();
    for (key, members, window) in [
        ("life_users", &users, &life),
        ("hour_users", &users, &hour),
        ("life_once", &once, &life),
        ("hour_once", &once, &hour),
    ] {
        let meter = json!({
            "key": key, "name": key, "metric_key": "units", "window": window,
            "thresholds": [{"name": "limit", "value": if members == &users { "3" } else { "9" }}],
        });
        let meter = id(&shop.client.post("/v1/meters", merged(meter, members.clone())).await.data(201));
        let path = format!("/v1/products/{}/meter-bindings", shop.product);
        let _ = shop.client.post(&path, json!({"meter_id": meter, "role": "INFORMATIONAL"})).await.data(201);
        meters.push(meter);
    }
    site.engine().snapshots.refresh().await.unwrap();
    let send = async |number: i64, user: &str, quantity: &str, timestamp: &str| {
        let more = json!({"timestamp": timestamp, "dimension_vars": {"user": user}});
        let event = shop.event(&format!("event-{number}"), quantity, more);
        let _ = shop.client.post("/v1/usage-events", event).await.data(202);
        site.eventually("SELECT count(*) FROM usage_event", number).await;
    };
    shop.advance("2026-01-31T23:55:00Z").await;
    send(1, "ann", "5", "2026-01-10T12:00:00Z").await;
    send(2, "ben", "2", "2026-01-31T23:40:00Z").await;
    send(3, "ben", "2", "2026-01-31T23:50:00Z").await;
    shop.advance("2026-02-01T00:30:00Z").await;
    send(4, "ann", "5", "2026-02-01T00:10:00Z").await;
    send(5, "cem", "2", "2026-02-01T00:20:00Z").await;
    site.eventually("SELECT count(*) FROM meter_breach", 4).await;
    let (january, march) = (json!("2026-01-01T00:00:00Z"), json!("2026-03-01T00:00:00Z"));
    let (from, to) = (json!("2026-01-31T23:20:00Z"), json!("2026-02-01T00:20:00Z"));
    for (meter, observed, start, end) in [
        (&meters[0], "3", &january, &march),
        (&meters[1], "3", &from, &to),
        (&meters[2], "9", &january, &march),
        (&meters[3], "9", &from, &to),
    ] {
        assert_eq!(breaches(&shop, meter).await, [(json!(observed), start.clone(), end.clone())]);
    }
    assert_eq!(shop.used().await, Some(("7".into(), 2, "0.70".into())));
    site.end().await;
}
