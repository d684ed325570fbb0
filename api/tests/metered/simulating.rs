//! usage.md, simulate: the figures of the next invoice, and nothing stored.

use serde_json::{Value, json};

use crate::fixture::{Offer, Shop, Site};

async fn simulate(shop: &Shop, events: Value) -> api::testing::Reply {
    let body = json!({"subscription_id": shop.subscription, "events": events});
    shop.client.post("/v1/usage-events/simulate", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_are_those_of_the_next_invoice() {
    let site = Site::start().await;
    let tiers = json!([
        {"tier_order": 1, "up_to": "1000", "unit_amount": "0.10", "flat_amount": "0"},
        {"tier_order": 2, "up_to": null, "unit_amount": "0.08", "flat_amount": "0"},
    ]);
    let shop = Shop::with(&site, Offer { included: "100", tiers, ..Offer::default() }).await;
    shop.send("counted", "600").await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    let events = json!([
        shop.event("a", "500", json!({})),
        shop.event("b", "200", json!({})),
        shop.event("counted", "600", json!({}))
    ]);
    let page = simulate(&shop, events.clone()).await.expect(200);
    assert_eq!(page["pagination"]["has_more"], json!(false));
    let line = &page["data"][0];
    // 1,300 less 100 included: 1,000 at 0.10 and 200 at 0.08.
    assert_eq!((&line["amount"]["value"], &line["quantity"]), (&json!("116.00"), &json!("1300")), "{line}");
    assert_eq!((&line["atoms"][0]["event_count"], &page["data"].as_array().unwrap().len()), (&json!(3), &1));
    assert_eq!(shop.used().await, Some(("600".into(), 1, "50.00".into())), "nothing is stored");
    // What was simulated is what is billed.
    for event in events.as_array().unwrap() {
        let _ = shop.client.post("/v1/usage-events", event.clone()).await.data(202);
    }
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    for member in
        ["amount", "total", "quantity", "unit_amount", "description", "period_start", "period_end", "tax_rate"]
    {
        assert_eq!(invoice["lines"][0][member], line[member], "{member}");
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_event_is_named_with_its_index() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    let other = Shop::open(&site).await;
    shop.send("taken", "5").await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    let events = json!([
        shop.event("good", "1", json!({})),
        shop.event("q", "x", json!({})),
        shop.event("t", "1", json!({"timestamp": "yesterday", "more": 1})),
    ]);
    let bad = simulate(&shop, events).await.bad_fields();
    let bad: Vec<&str> = bad.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(bad, ["events[1].quantity", "events[2].timestamp", "events[2].more"]);
    let events = json!([
        shop.event("good", "1", json!({})),
        other.event("other", "1", json!({})),
        shop.event("m", "1", json!({"metric_key": "unknown"})),
        shop.event("p", "1", json!({"product_id": other.subscription})),
        shop.event("k", "1", json!({"price_key": "eu"})),
        shop.event("n", "-1", json!({})),
        shop.event("f", "1", json!({"timestamp": "2026-01-02T00:00:00Z"})),
        shop.event("taken", "6", json!({})),
    ]);
    let bad = simulate(&shop, events).await.bad_fields();
    let bad: Vec<&str> = bad.iter().map(|(field, _)| field.as_str()).collect();
    let expected = [
        "events[1].subscription_id",
        "events[2]",
        "events[3]",
        "events[4].price_key",
        "events[5]",
        "events[6].timestamp",
        "events[7]",
    ];
    assert_eq!(bad, expected);
    for (body, field) in [
        (json!({"events": [shop.event("a", "1", json!({}))]}), "subscription_id"),
        (json!({"subscription_id": shop.subscription}), "events"),
        (json!({"subscription_id": shop.subscription, "events": []}), "events"),
        (json!({"subscription_id": shop.subscription, "events": {}}), "events"),
    ] {
        let bad = shop.client.post("/v1/usage-events/simulate", body).await.bad_fields();
        assert_eq!(bad.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), [field]);
    }
    let body = json!({"subscription_id": shop.subscription, "events": [shop.event("a", "1", json!({}))]});
    site.api.other_sandbox.post("/v1/usage-events/simulate", body).await.problem(404, "NOT_FOUND");
    site.end().await;
}
