//! Changes of the catalog that lie before counted usage: windows that are not billed are counted anew (rule B6).

use api::testing::id;
use billing::control::WindowRef;
use serde_json::{Value, json};

use crate::fixture::{Offer, START, Shop, Site};

const PENDING: &str = "SELECT count(*) FROM catalog_recount WHERE done_at IS NULL";

fn used(quantity: &str, events: u64, amount: &str) -> Option<(String, u64, String)> {
    Some((quantity.to_owned(), events, amount.to_owned()))
}

/// The id of what the shop's product has.
async fn first(shop: &Shop, path: &str) -> String {
    let found = shop.client.get(path).await.expect(200);
    found["data"][0]["id"].as_str().unwrap_or_default().to_owned()
}

fn tier(amount: &str) -> Value {
    json!({"tier_order": 1, "up_to": null, "unit_amount": amount})
}

/// A price of the customer's own, which goes before the plan's; its id.
async fn own_price(shop: &Shop, tier: Value, effective_from: Option<&str>) -> String {
    let body = json!({
        "product_id": shop.product, "customer_id": shop.customer, "currency": "EUR", "tiers": [tier],
        "effective_from": effective_from,
    });
    id(&shop.client.post("/v1/prices", body).await.data(201))
}

async fn change_price(shop: &Shop, price: &str, tier: Value, effective_at: &str) {
    let change = json!({"tiers": [tier], "effective_at": effective_at});
    let _ = shop.client.put(&format!("/v1/prices/{price}"), change).await.data(200);
}

async fn send_at(shop: &Shop, key: &str, quantity: &str, timestamp: &str) {
    let event = shop.event(key, quantity, json!({"timestamp": timestamp}));
    let _ = shop.client.post("/v1/usage-events", event).await.data(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_from_the_past_rates_open_windows_anew_and_billed_ones_never() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    shop.advance("2026-01-25T00:00:00Z").await;
    send_at(&shop, "a", "100", START).await;
    send_at(&shop, "b", "10", "2026-01-20T00:00:00Z").await;
    site.eventually("SELECT event_count FROM usage_window", 2).await;
    assert_eq!(shop.used().await, used("110", 2, "11.00"));
    let price = own_price(&shop, tier("0.50"), Some("2026-01-15T00:00:00Z")).await;
    site.eventually(PENDING, 0).await;
    assert_eq!(shop.used().await, used("110", 2, "15.00"));
    change_price(&shop, &price, tier("0.60"), "2026-01-18T00:00:00Z").await;
    site.eventually(PENDING, 0).await;
    assert_eq!(shop.used().await, used("110", 2, "16.00"));
    shop.advance("2026-02-02T00:00:00Z").await;
    let total = async || shop.invoices().await.remove(0)["total"]["value"].clone();
    assert_eq!(total().await, json!("16.00"));
    change_price(&shop, &price, tier("9"), "2026-01-19T00:00:00Z").await;
    site.eventually(PENDING, 0).await;
    assert_eq!(total().await, json!("16.00"));
    assert_eq!(site.number("SELECT count(*) FROM usage_window WHERE billed AND event_count = 2").await, 1);
    site.end().await;
}

/// SUM up to the 15th, COUNT from then on: 5 and 1; then everything twice.
#[tokio::test(flavor = "multi_thread")]
async fn meters_and_bindings_from_the_past_count_anew() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    shop.advance("2026-01-25T00:00:00Z").await;
    send_at(&shop, "a", "5", "2026-01-10T00:00:00Z").await;
    send_at(&shop, "b", "7", "2026-01-20T00:00:00Z").await;
    site.eventually("SELECT event_count FROM usage_window", 2).await;
    let meter = first(&shop, "/v1/meters").await;
    let change = json!({"function": "COUNT", "effective_at": "2026-01-15T00:00:00Z"});
    let _ = shop.client.put(&format!("/v1/meters/{meter}"), change).await.data(200);
    site.eventually(PENDING, 0).await;
    assert_eq!(shop.used().await, used("6", 2, "0.60"));
    let binding = first(&shop, &format!("/v1/bindings?product_id={}", shop.product)).await;
    let change = json!({"multiplier": "2", "effective_at": START});
    let _ = shop.client.put(&format!("/v1/bindings/{binding}"), change).await.data(200);
    site.eventually(PENDING, 0).await;
    assert_eq!(shop.used().await, used("12", 2, "1.20"));
    site.end().await;
}

/// Events may lie five minutes ahead: a version that starts now applies to those that were counted before it was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_from_now_on_rates_usage_that_lies_ahead() {
    let site = Site::start().await;
    let customer = json!({"billing_model": "POSTPAID", "test_clock_id": null});
    let shop = Shop::with(&site, Offer { customer, ..Offer::default() }).await;
    let now = domain::Clock::System.now();
    let ahead = now + chrono::TimeDelta::minutes(3);
    let counted = "SELECT coalesce(sum(event_count), 0)::bigint FROM usage_window";
    send_at(&shop, "now", "100", &now.to_rfc3339()).await;
    send_at(&shop, "ahead", "10", &ahead.to_rfc3339()).await;
    site.eventually(counted, 2).await;
    let _ = own_price(&shop, tier("0.50"), None).await;
    site.eventually(PENDING, 0).await;
    // 100 at 0.10 and 10 at 0.50, in one window or in two.
    let net = "SELECT (sum(net) * 100)::bigint FROM usage_accrual";
    site.eventually(net, 1_500).await;
    site.end().await;
}

/// No invoice is made over usage that a change has not reached; the seal waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_waits_for_a_change_on_its_way() {
    let mut site = Site::idle().await;
    site.run_ingest().await;
    let shop = Shop::open(&site).await;
    send_at(&shop, "a", "100", START).await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    let _ = own_price(&shop, tier("0.50"), Some(START)).await;
    assert_eq!(site.number(PENDING).await, 1);
    let relay = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        site.run_relay();
    };
    tokio::join!(shop.advance("2026-02-02T00:00:00Z"), relay);
    assert_eq!(shop.invoices().await.remove(0)["total"]["value"], json!("50.00"));
    site.end().await;
}

/// A change that comes between the seal and the invoice: the window counts again, by the change, before it is billed.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_was_sealed_meanwhile_is_counted_by_the_change() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    send_at(&shop, "a", "100", START).await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    // As if the call had passed while the window was sealed: nothing is left to do but at the opening.
    let _ = own_price(&shop, tier("0.50"), Some(START)).await;
    site.eventually(PENDING, 0).await;
    let execute = async |sql: &'static str| {
        sqlx::query(sql).execute(site.api.app.store.pool()).await.unwrap();
    };
    execute("UPDATE usage_window SET status = 'sealed'").await;
    execute("UPDATE usage_accrual SET net = 1").await;
    let window = sqlx::query_as(
        "SELECT workspace_id, subscription_id, customer_id, partition, window_start, window_end FROM usage_window",
    );
    let (workspace_id, subscription_id, customer_id, home_partition, window_start, window_end) =
        window.fetch_one(site.api.app.store.pool()).await.unwrap();
    let window = WindowRef { workspace_id, subscription_id, customer_id, home_partition, window_start, window_end };
    site.reopen(window).await;
    site.eventually("SELECT (sum(net) * 100)::bigint FROM usage_accrual", 5_000).await;
    site.end().await;
}

/// What the catalog of today cannot bill is told, and counts again when the catalog is mended.
#[tokio::test(flavor = "multi_thread")]
async fn usage_that_a_change_makes_unbillable_is_kept_as_a_rejection() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    send_at(&shop, "a", "100", START).await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    // A variable that the event does not have.
    let unknown = json!({"tier_order": 1, "up_to": null, "rate_expression": "size * 2"});
    let price = own_price(&shop, unknown.clone(), Some("2025-12-01T00:00:00Z")).await;
    site.eventually("SELECT count(*) FROM usage_rejection", 1).await;
    site.eventually(PENDING, 0).await;
    assert_eq!(site.number("SELECT event_count FROM usage_window").await, 0);
    change_price(&shop, &price, tier("0.20"), "2025-12-02T00:00:00Z").await;
    site.eventually(PENDING, 0).await;
    assert_eq!(shop.used().await, used("100", 1, "20.00"));
    // It is closed with that, and open again when the change of the catalog is no good after all.
    const OPEN: &str = "SELECT count(*) FROM usage_rejection WHERE status = 'open'";
    assert_eq!(site.number(OPEN).await, 0);
    let page = shop.client.get("/v1/usage-event-rejections?status=replayed").await.expect(200);
    assert_eq!(page["data"].as_array().map(Vec::len), Some(1), "{page}");
    assert!(page["data"][0]["resolved_at"].is_string() && page["data"][0]["resolved_by"].is_null(), "{page}");
    change_price(&shop, &price, unknown, "2025-12-03T00:00:00Z").await;
    site.eventually(PENDING, 0).await;
    assert_eq!((site.number(OPEN).await, site.number("SELECT event_count FROM usage_window").await), (1, 0));
    change_price(&shop, &price, tier("0.30"), "2025-12-04T00:00:00Z").await;
    site.eventually(PENDING, 0).await;
    assert_eq!((site.number(OPEN).await, shop.used().await), (0, used("100", 1, "30.00")));
    site.end().await;
}
