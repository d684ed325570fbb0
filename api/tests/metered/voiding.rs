//! usage.md 5 and rule C5: events are taken back while their invoice is not finalized.

use serde_json::json;

use crate::fixture::{Offer, Shop, Site};

const FIRST: &str = "SELECT event_count FROM usage_window ORDER BY window_start LIMIT 1";

/// Every function can take events back, also those that cannot subtract.
#[tokio::test(flavor = "multi_thread")]
async fn every_function_takes_events_back() {
    takes_events_back(Site::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_function_takes_events_back_from_clickhouse() {
    if let Some(site) = Site::start_on_clickhouse().await {
        takes_events_back(site).await;
    }
}

async fn takes_events_back(site: Site) {
    for (function, before, after) in
        [("SUM", "12", "5"), ("COUNT", "3", "2"), ("MAX", "7", "3"), ("LAST", "7", "2"), ("AVG", "4", "2.5")]
    {
        let shop = Shop::with(&site, Offer { function, ..Offer::default() }).await;
        let mut largest = String::new();
        for (key, quantity) in [("a", "3"), ("b", "2"), ("c", "7")] {
            let at = json!({"timestamp": format!("2026-01-01T00:00:0{}Z", key.bytes().next().unwrap() - b'a')});
            let event = shop.event(&format!("{function}{key}"), quantity, at);
            let sent = shop.client.post("/v1/usage-events", event).await.data(202);
            largest = sent["results"][0]["id"].as_str().unwrap().to_owned();
        }
        // At once, also before it is processed.
        let path = format!("/v1/usage-events/{largest}");
        let body = json!({"reason": "measured twice", "idempotency_key": "v"});
        let voided = shop.client.post(&format!("{path}/void"), body.clone()).await.data(200);
        assert!(voided["voided_at"].is_string(), "{voided}");
        site.eventually("SELECT count(*) FROM usage_void WHERE open", 0).await;
        let used = shop.used().await.unwrap();
        assert_eq!((used.0.as_str(), used.1), (after, 2), "{function}, before {before}");
        let amount: rust_decimal::Decimal = used.2.parse().unwrap();
        let (quantity, rate): (rust_decimal::Decimal, _) = (after.parse().unwrap(), rust_decimal::Decimal::new(1, 1));
        assert_eq!(amount, quantity * rate);
        // A repeat changes nothing.
        assert_eq!(shop.client.post(&format!("{path}/void"), body).await.data(200), voided);
        let again = shop.client.post(&format!("{path}/void"), json!({"reason": "other"})).await.data(200);
        assert_eq!(again["voided_at"], voided["voided_at"]);
        let conflict = json!({"reason": "another", "idempotency_key": "v"});
        shop.client.post(&format!("{path}/void"), conflict).await.problem(409, "IDEMPOTENCY_CONFLICT");
        assert_eq!(shop.client.get(&path).await.data(200)["voided_at"], voided["voided_at"]);
        let listed = shop.client.get(&format!("/v1/usage-events?id={largest}")).await.expect(200);
        assert_eq!(listed["data"][0]["voided_at"], voided["voided_at"]);
    }
    assert_eq!(site.number("SELECT count(*) FROM outbox WHERE event_type = 'usage_event.voided'").await, 5);
    site.end().await;
}

/// Of two events with one value, one is taken back: the value stays. Of the only one with a value, it goes.
#[tokio::test(flavor = "multi_thread")]
async fn distinct_values_are_counted_anew() {
    counts_distinct_values(Site::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn distinct_values_are_counted_anew_from_clickhouse() {
    if let Some(site) = Site::start_on_clickhouse().await {
        counts_distinct_values(site).await;
    }
}

async fn counts_distinct_values(site: Site) {
    let meter = json!({"unique_by_field": "dimension_vars.user"});
    let shop = Shop::with(&site, Offer { function: "UNIQUE_COUNT", meter, ..Offer::default() }).await;
    let mut ids = Vec::new();
    for (key, user) in [("1", "ann"), ("2", "bob"), ("3", "ann"), ("4", "cyd")] {
        let event = shop.event(key, "1", json!({"dimension_vars": {"user": user}}));
        let sent = shop.client.post("/v1/usage-events", event).await.data(202);
        ids.push(sent["results"][0]["id"].as_str().unwrap().to_owned());
    }
    site.eventually(FIRST, 4).await;
    assert_eq!(shop.used().await, Some(("3".into(), 4, "0.30".into())));
    for (id, quantity, events, amount) in
        [(&ids[0], "3", 3, "0.30"), (&ids[1], "2", 2, "0.20"), (&ids[2], "1", 1, "0.10")]
    {
        let _ = shop.client.post(&format!("/v1/usage-events/{id}/void"), json!({"reason": "wrong"})).await.data(200);
        site.eventually("SELECT count(*) FROM usage_void WHERE open", 0).await;
        assert_eq!(shop.used().await, Some((quantity.into(), events, amount.into())));
    }
    // What comes after a rebuild meets the values that are left.
    for (key, user) in [("5", "cyd"), ("6", "bob")] {
        let event = shop.event(key, "1", json!({"dimension_vars": {"user": user}}));
        let _ = shop.client.post("/v1/usage-events", event).await.data(202);
    }
    site.eventually(FIRST, 3).await;
    assert_eq!(shop.used().await, Some(("2".into(), 3, "0.20".into())));
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!((&invoice["status"], &invoice["total"]["value"]), (&json!("finalized"), &json!("0.20")));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_is_in_time_until_the_invoice_is_finalized() {
    void_until_finalized(Site::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_from_clickhouse_is_in_time_until_the_invoice_is_finalized() {
    if let Some(site) = Site::start_on_clickhouse().await {
        void_until_finalized(site).await;
    }
}

async fn void_until_finalized(site: Site) {
    let shop = Shop::open(&site).await;
    let (kept, taken) = (shop.send("kept", "30").await, shop.send("taken", "50").await);
    site.eventually(FIRST, 2).await;
    // In the grace the draft follows.
    shop.advance("2026-02-01T00:30:00Z").await;
    assert_eq!(shop.invoices().await[0]["total"]["value"], json!("8.00"));
    let void = |id: &str| format!("/v1/usage-events/{id}/void");
    let _ = shop.client.post(&void(&taken), json!({"reason": "wrong"})).await.data(200);
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!((&invoice["status"], &invoice["total"]["value"]), (&json!("finalized"), &json!("3.00")));
    shop.client.post(&void(&kept), json!({"reason": "late"})).await.problem(409, "INVALID_TRANSITION");
    let again = shop.client.post(&void(&taken), json!({"reason": "late"})).await.data(200);
    assert!(again["voided_at"].is_string());
    site.end().await;
}

/// Rule C5: the record of a void waits in the outbox while its window is sealed. The seal counts without the event.
#[tokio::test(flavor = "multi_thread")]
async fn c5_a_seal_does_not_complete_with_an_open_void() {
    let mut site = Site::idle().await;
    site.run_ingest().await;
    let shop = Shop::open(&site).await;
    let (_, taken) = (shop.send("kept", "30").await, shop.send("taken", "50").await);
    site.eventually(FIRST, 2).await;
    let _ = shop.client.post(&format!("/v1/usage-events/{taken}/void"), json!({"reason": "wrong"})).await.data(200);
    assert_eq!(site.number("SELECT count(*) FROM usage_void WHERE open").await, 1);
    // The record is lost from the outbox, as if the log had taken it and had not been read yet.
    sqlx::query("DELETE FROM usage_outbox").execute(site.api.app.store.pool()).await.unwrap();
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!((&invoice["status"], &invoice["total"]["value"]), (&json!("finalized"), &json!("3.00")));
    assert_eq!(site.number("SELECT count(*) FROM usage_void WHERE open").await, 0);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_events_and_bad_bodies_are_refused() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    let sent = shop.send("mine", "1").await;
    let nobody = "/v1/usage-events/00000000-0000-5000-8000-000000000000/void";
    shop.client.post(nobody, json!({"reason": "x"})).await.problem(404, "NOT_FOUND");
    let mine = format!("/v1/usage-events/{sent}/void");
    site.api.other_sandbox.post(&mine, json!({"reason": "x"})).await.problem(404, "NOT_FOUND");
    for (body, field, code) in [
        (json!({}), "reason", "REQUIRED"),
        (json!({"reason": ""}), "reason", "TOO_LONG"),
        (json!({"reason": "x", "why": 1}), "why", "UNKNOWN_FIELD"),
    ] {
        let bad = shop.client.post(&mine, body).await.bad_fields();
        assert_eq!(bad[0].0, field, "{code}");
    }
    shop.client.post("/v1/usage-events/x/void", json!({"reason": "x"})).await.problem(400, "BAD_REQUEST");
    let _ = shop.client.post(&mine, json!({"reason": "x"})).await.data(200);
    site.end().await;
}
