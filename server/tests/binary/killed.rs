//! Guards against usage that a killed server loses or counts twice on the local log, and against a replay of a rejected
//! event that counts never or twice (rules A1, B2; promises 1 and 2).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use client::views::{Created, SubscriptionUsage};
use client::{Api, OwnServer};
use serde_json::{Value, json};

use crate::site::{Site, eventually};
use crate::tenant::{ROUND, Tenant};

const KILLS: usize = 4;

/// So much of it at such a price is more money than there are digits.
const HUGE: &str = "999999999999999";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_counting_loses_nothing() {
    let site = Site::new().await;
    let mut server = site.server("server", &[]).await;
    let tenant = Tenant::create(&server, 20).await;
    let refused = refuse_one(&tenant).await;
    let accepted = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let flowing = tenant.send_until(0, || is_over.load(Ordering::Relaxed), &accepted);
    let killing = async {
        for _ in 0..KILLS {
            let before = accepted.load(Ordering::Relaxed);
            let look = async || accepted.load(Ordering::Relaxed);
            eventually("usage flows", look, |now| *now >= before + ROUND).await;
            server.kill_and_restart().await.expect("the server comes back");
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (sent, ()) = tokio::join!(flowing, killing);
    let sent = sent.expect("the door opens again");
    tenant.await_totals(&tenant.used(0..sent)).await;
    replay_counts_once(&site, &mut server, &tenant, &refused).await;
    tenant.await_totals(&tenant.used(0..sent)).await;
    let and_two_of_gold = i64::try_from(sent + 2).unwrap();
    assert_eq!(site.number("SELECT count(*) FROM usage_event").await, and_two_of_gold);
    server.verify_ledger().await.expect("the books agree");
}

/// Sends an event that no price can be multiplied with, and waits until it is kept with its reason.
async fn refuse_one(tenant: &Tenant) -> Value {
    let api = &tenant.api;
    let product = json!({"name": "Gold", "external_id": "gold", "type": "USAGE", "pricing_model": "VOLUME"});
    let product: Created = api.post("/v1/products", &product).await.expect("a product");
    let meter = json!({"key": "gold", "name": "Gold", "metric_key": "gold", "function": "SUM"});
    let meter: Created = api.post("/v1/meters", &meter).await.expect("a meter");
    let binding = json!({"meter_id": meter.id, "role": "PRIMARY"});
    let path = format!("/v1/products/{}/meter-bindings", product.id);
    let _: Created = api.post(&path, &binding).await.expect("a binding");
    let tiers = json!([{"up_to": null, "unit_amount": HUGE, "flat_amount": "0"}]);
    let price = json!({"product_id": product.id, "currency": "EUR", "tiers": tiers});
    let _: Created = api.post("/v1/prices", &price).await.expect("a price");
    let mut event = serde_json::to_value(tenant.event(0)).expect("JSON");
    event["product_id"] = json!(product.id);
    event["metric_key"] = json!("gold");
    event["quantity"] = json!(HUGE);
    event["idempotency_key"] = json!("gold");
    let _: Value = api.post("/v1/usage-events", &event).await.expect("accepted");
    let look = async || rejections(api, "open").await;
    let kept = eventually("the event is kept", look, |kept| !kept.is_empty()).await;
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0]["payload"]["idempotency_key"], "gold");
    event
}

/// Mends the price, sends the event again with the command line, kills the server, and sends it again like a client that
/// does not know.
async fn replay_counts_once(site: &Site, server: &mut OwnServer, tenant: &Tenant, event: &Value) {
    let tiers = json!([{"up_to": null, "unit_amount": "0.01", "flat_amount": "0"}]);
    let price = json!({
        "product_id": event["product_id"], "customer_id": event["customer_id"], "currency": "EUR", "tiers": tiers,
    });
    let _: Created = tenant.api.post("/v1/prices", &price).await.expect("a price");
    assert_eq!(replay_all(server, tenant).await, "1 of 1 rejected events were sent again");
    server.kill_and_restart().await.expect("the server comes back");
    let path = format!("/v1/subscriptions/{}/usage", tenant.event(0).subscription_id);
    let look = async || gold(&tenant.api, &path).await;
    eventually("the event is counted", look, |gold| gold == &[(HUGE.to_owned(), 1)]).await;
    assert_eq!(replay_all(server, tenant).await, "0 of 0 rejected events were sent again");
    let _: Value = tenant.api.post("/v1/usage-events", event).await.expect("a repeat is accepted");
    // Counted behind the repeat in the same partition.
    let marker = tenant.event(0);
    let mut marker = serde_json::to_value(marker).expect("JSON");
    for member in ["product_id", "metric_key"] {
        marker[member] = event[member].clone();
    }
    marker["idempotency_key"] = json!("gold-marker");
    marker["quantity"] = json!("0");
    let _: Value = tenant.api.post("/v1/usage-events", &marker).await.expect("accepted");
    let counted = "SELECT count(*) FROM usage_event WHERE idempotency_key = 'gold-marker'";
    eventually("the marker is counted", async || site.number(counted).await, |count| *count == 1).await;
    assert_eq!(gold(&tenant.api, &path).await, [(HUGE.to_owned(), 2)]);
    assert!(rejections(&tenant.api, "open").await.is_empty());
    assert_eq!(rejections(&tenant.api, "replayed").await.len(), 1);
}

async fn rejections(api: &Api, status: &str) -> Vec<Value> {
    api.list(&format!("/v1/usage-event-rejections?status={status}")).await.expect("rejections")
}

async fn replay_all(server: &OwnServer, tenant: &Tenant) -> String {
    let (url, key) = (tenant.api.base(), tenant.api.key());
    let words = ["usage", "rejected", "replay", "--all", "--url", url, "--api-key", key];
    let (status, printed, complaint) = server.command(&words).await.expect("the command runs");
    assert!(status.success(), "{printed}\n{complaint}");
    printed
}

/// Quantity and events of the metric.
async fn gold(api: &Api, path: &str) -> Vec<(String, u64)> {
    let usage: SubscriptionUsage = api.get(path).await.expect("the usage");
    let rows = usage.metrics.into_iter().filter(|row| row.metric_key == "gold");
    rows.map(|row| (row.quantity.to_string(), row.event_count)).collect()
}
