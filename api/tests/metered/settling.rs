//! Captured usage up to the invoice: counted once, charged once (rules D2, D3).

use serde_json::{Value, json};

use crate::fixture::{Offer, Shop, Site};

const RELAYED: &str = "SELECT count(*) FROM usage_outbox";
const COUNTED: &str = "SELECT count(*) FROM usage_event";

fn paid(invoice: &Value) -> [String; 4] {
    ["status", "total", "amount_paid", "amount_due"].map(|name| match &invoice[name] {
        Value::String(text) => text.clone(),
        money => money["value"].as_str().unwrap_or_default().to_owned(),
    })
}

async fn accounts(site: &Site, kind: &str) -> String {
    let sum: Option<sqlx::types::Decimal> = sqlx::query_scalar(
        "SELECT sum(e.amount) FROM ledger_entry e JOIN ledger_account a ON a.id = e.account_id WHERE a.kind = $1",
    )
    .bind(kind)
    .fetch_one(site.api.app.store.pool())
    .await
    .unwrap();
    sum.unwrap_or_default().normalize().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_after_captures_charges_nothing_twice() {
    let site = Site::start().await;
    let shop = Shop::with(&site, Offer { included: "10", ..Offer::default() }).await;
    shop.credit("20.00").await;
    shop.send("free", "20").await; // 10 beyond the allowance
    site.eventually(COUNTED, 1).await;
    assert_eq!(shop.balances().await, "20.00 / 0.00 / 19.00");
    let hold = shop.hold("h", "100").await;
    assert_eq!(shop.balances().await, "20.00 / 10.00 / 9.00");
    let _ = shop.capture(&hold, json!({"quantity": "70"})).await.data(200);
    assert_eq!(shop.balances().await, "13.00 / 0.00 / 12.00");
    site.eventually(COUNTED, 2).await;
    // The window costs 8.00, of which 7.00 are paid: 1.00 is accrued.
    assert_eq!(shop.used().await, Some(("90".into(), 2, "8.00".into())));
    assert_eq!(shop.balances().await, "13.00 / 0.00 / 12.00");
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!(paid(&invoice), ["paid", "8.00", "8.00", "0.00"]);
    assert_eq!(
        (&invoice["lines"][0]["amount"]["value"], &invoice["lines"][0]["quantity"]),
        (&json!("8.00"), &json!("90"))
    );
    assert_eq!(shop.balances().await, "12.00 / 0.00 / 12.00");
    // 7.00 of captures and 1.00 that was drawn: one payment of one wallet.
    let path = format!("/v1/invoices/{}/transactions", invoice["id"].as_str().unwrap());
    let rows = shop.client.get(&path).await.expect(200)["data"].clone();
    let row = &rows[0];
    assert_eq!(
        (rows.as_array().unwrap().len(), &row["kind"], &row["status"], &row["direction"], &row["amount"]["value"]),
        (1, &json!("WALLET_PAYMENT"), &json!("SUCCEEDED"), &json!("INBOUND"), &json!("8.00"))
    );
    assert_eq!(
        (&row["invoice_id"], &row["provider"], &row["gateway_id"]),
        (&invoice["id"], &json!(null), &json!(null))
    );
    // It is what a counterparty has earned.
    let body = json!({"customer_id": row["customer_id"], "currency": "EUR", "period_start": "2026-01-01T00:00:00Z",
        "period_end": "2026-03-01T00:00:00Z"});
    let settlement = shop.client.post("/v1/settlements/generate", body).await.data(201);
    assert_eq!(
        (
            &settlement["lines"][0]["type"],
            &settlement["lines"][0]["transaction_id"],
            &settlement["net_payout"]["value"]
        ),
        (&json!("EARNING"), &row["id"], &json!("8.00"))
    );
    assert_eq!(
        (accounts(&site, "captured_usage").await, accounts(&site, "receivable").await),
        ("0".into(), "0".into())
    );
    assert_eq!(accounts(&site, "revenue").await, "-8");
    site.end().await;
}

/// The tiers get cheaper, an event is voided: what captures took too much goes back to the wallet.
#[tokio::test(flavor = "multi_thread")]
async fn what_captures_took_too_much_goes_back() {
    let site = Site::start().await;
    let tiers = json!([
        {"tier_order": 1, "up_to": "100", "unit_amount": "0.10", "flat_amount": "0"},
        {"tier_order": 2, "up_to": null, "unit_amount": "0.05", "flat_amount": "0"},
    ]);
    let shop = Shop::with(&site, Offer { tiers, model: "VOLUME", ..Offer::default() }).await;
    shop.credit("20.00").await;
    let hold = shop.hold("first", "100").await;
    let first = shop.capture(&hold, json!({})).await.data(200);
    // 110 units cost 5.50, less than the 100 alone: the next 10 are free.
    let held = shop.reserve("second", "10").await.expect(201);
    assert_eq!(held["held_amount"]["value"], json!("0.00"));
    let _ = shop.capture(held["hold_id"].as_str().unwrap(), json!({})).await.data(200);
    site.eventually(COUNTED, 2).await;
    let void = format!("/v1/usage-events/{}/void", first["usage_event_id"].as_str().unwrap());
    shop.advance("2026-02-01T00:00:00Z").await;
    let _ = shop.client.post(&void, json!({"reason": "not delivered"})).await.data(200);
    site.eventually("SELECT event_count FROM usage_window ORDER BY window_start LIMIT 1", 1).await;
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!(paid(&invoice), ["paid", "1.00", "1.00", "0.00"]);
    assert_eq!(shop.balances().await, "19.00 / 0.00 / 19.00");
    assert_eq!(accounts(&site, "captured_usage").await, "0");
    let _ = shop.client.post(&void, json!({"reason": "again"})).await.expect(200);
    site.end().await;
}

/// Nothing is left to bill: the money comes back all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_without_usage_gives_captures_back() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    shop.credit("20.00").await;
    let hold = shop.hold("only", "100").await;
    let done = shop.capture(&hold, json!({})).await.data(200);
    let void = format!("/v1/usage-events/{}/void", done["usage_event_id"].as_str().unwrap());
    let _ = shop.client.post(&void, json!({"reason": "not delivered"})).await.data(200);
    shop.advance("2026-02-02T00:00:00Z").await;
    assert_eq!(shop.balances().await, "20.00 / 0.00 / 20.00");
    assert_eq!(accounts(&site, "captured_usage").await, "0");
    site.end().await;
}

/// Rule D2: killed between the capture and the log. The row waits; it is relayed twice and counted once.
#[tokio::test(flavor = "multi_thread")]
async fn d2_a_capture_whose_relay_was_killed_is_counted_once() {
    let mut site = Site::idle().await;
    site.run_ingest().await;
    let shop = Shop::open(&site).await;
    shop.credit("20.00").await;
    let hold = shop.hold("h", "100").await;
    let done = shop.capture(&hold, json!({})).await.data(200);
    assert_eq!((site.number(RELAYED).await, site.number(COUNTED).await), (1, 0));
    // Not counted yet, and no longer PENDING: still promised (rule D1).
    let more = shop.reserve("more", "100").await.expect(201);
    assert_eq!(more["held_amount"]["value"], json!("10.00"));
    // Killed after the append and before the row was cleared: the row is appended again.
    sqlx::query("CREATE TABLE kept AS TABLE usage_outbox").execute(site.api.app.store.pool()).await.unwrap();
    assert_eq!(site.engine().relay.relay_once().await.unwrap(), 1);
    sqlx::query(
        "INSERT INTO usage_outbox (subscription_id, home_partition, record, created_at)
         SELECT subscription_id, home_partition, record, created_at FROM kept",
    )
    .execute(site.api.app.store.pool())
    .await
    .unwrap();
    let (one, two) = tokio::join!(site.engine().relay.relay_once(), site.engine().relay.relay_once());
    assert_eq!(one.unwrap() + two.unwrap(), 1, "relays share the rows");
    site.eventually("SELECT count(*) FROM usage_reservation WHERE counted_in IS NOT NULL", 1).await;
    let _ = shop.release(more["hold_id"].as_str().unwrap()).await.expect(200);
    shop.send("after", "1").await;
    site.eventually(COUNTED, 2).await;
    assert_eq!(shop.used().await, Some(("101".into(), 2, "10.10".into())));
    let event =
        shop.client.get(&format!("/v1/usage-events/{}", done["usage_event_id"].as_str().unwrap())).await.data(200);
    assert_eq!(event["hold_id"], json!(hold));
    site.end().await;
}

/// A capture that waits in the outbox when its period ends is in the invoice of the period.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_waits_for_captures_on_their_way() {
    let mut site = Site::idle().await;
    site.run_ingest().await;
    let shop = Shop::open(&site).await;
    shop.credit("20.00").await;
    let hold = shop.hold("h", "100").await;
    let _ = shop.capture(&hold, json!({})).await.data(200);
    let relay = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        site.run_relay();
    };
    tokio::join!(shop.advance("2026-02-02T00:00:00Z"), relay);
    let invoice = shop.invoices().await.remove(0);
    assert_eq!(paid(&invoice), ["paid", "10.00", "10.00", "0.00"]);
    assert_eq!(shop.balances().await, "10.00 / 0.00 / 10.00");
    site.end().await;
}

/// Rules C2, D3: an invoice is not made over a capture that is not counted yet, and its window counts again meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn no_invoice_is_finalized_before_a_capture_is_counted() {
    let mut site = Site::idle().await;
    site.run_ingest().await;
    let shop = Shop::open(&site).await;
    shop.credit("20.00").await;
    let hold = shop.hold("h", "100").await;
    let _ = shop.capture(&hold, json!({})).await.data(200);
    // Out of sight, as a record that the log has taken and no partition has read.
    let execute = async |sql: &'static str| {
        sqlx::query(sql).execute(site.api.app.store.pool()).await.unwrap();
    };
    execute("CREATE TABLE kept AS TABLE usage_outbox").await;
    execute("DELETE FROM usage_outbox").await;
    shop.advance("2026-02-02T00:00:00Z").await;
    assert_eq!(site.number("SELECT count(*) FROM invoice WHERE invoice_number IS NOT NULL").await, 0);
    assert_eq!(site.number("SELECT count(*) FROM due_work WHERE last_error LIKE '%captured%'").await, 1);
    site.eventually("SELECT count(*) FROM usage_window WHERE status = 'sealed'", 0).await;
    execute(
        "INSERT INTO usage_outbox (subscription_id, home_partition, record, created_at)
         SELECT subscription_id, home_partition, record, created_at FROM kept",
    )
    .await;
    site.run_relay();
    site.eventually(COUNTED, 1).await;
    execute("UPDATE due_work SET retry_at = NULL, attempts = 0").await;
    shop.advance("2026-02-02T00:00:01Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!(paid(&invoice), ["paid", "10.00", "10.00", "0.00"]);
    assert_eq!(site.number("SELECT count(*) FROM usage_event WHERE late").await, 0);
    assert_eq!(shop.balances().await, "10.00 / 0.00 / 10.00");
    site.end().await;
}

/// Rule C2: whoever hangs up when the window is sealed leaves no seal without its invoice, behind which usage would be late.
#[tokio::test(flavor = "multi_thread")]
async fn c2_a_client_that_hangs_up_leaves_no_sealed_window() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    let settings = "UPDATE organization SET settings = settings || '{\"auto_finalize_invoices\": \"false\"}'";
    sqlx::query(settings).execute(site.api.app.store.pool()).await.unwrap();
    let _ = shop.send("used", "30").await;
    site.eventually(COUNTED, 1).await;
    shop.advance("2026-02-02T00:00:00Z").await;
    let draft = shop.invoices().await.remove(0);
    assert_eq!(draft["status"], json!("draft"));
    let path = format!("/v1/invoices/{}/finalize", draft["id"].as_str().unwrap_or_default());
    tokio::select! {
        _ = shop.client.post(&path, json!({})) => {}
        () = site.eventually("SELECT count(*) FROM usage_window WHERE status = 'sealed'", 1) => {}
    }
    site.eventually("SELECT count(*) FROM usage_window WHERE status = 'sealed' AND NOT billed", 0).await;
    site.eventually("SELECT count(*) FROM invoice WHERE status = 'draft'", 0).await;
    site.end().await;
}
