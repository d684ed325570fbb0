//! Windows that are billed more than once: interim invoices of thresholds, and late usage that is corrected (usage.md 5,
//! thresholds-and-alerts.md 4; rules C2, C4, D3).

use serde_json::{Value, json};

use crate::fixture::{Offer, Shop, Site, merged};

const COUNTED: &str = "SELECT count(*) FROM usage_event";
const LATE: &str = "SELECT count(*) FROM usage_event WHERE late";

/// 0 to 1,000 at 0.10, to 10,000 at 0.08, then 0.05 (usage.md, worked numbers).
fn tiers() -> Value {
    json!([
        {"tier_order": 1, "up_to": "1000", "unit_amount": "0.10", "flat_amount": "0"},
        {"tier_order": 2, "up_to": "10000", "unit_amount": "0.08", "flat_amount": "0"},
        {"tier_order": 3, "up_to": null, "unit_amount": "0.05", "flat_amount": "0"},
    ])
}

fn closes_at(limit: &str) -> Value {
    json!({"thresholds": [{"name": "close", "value": limit, "actions": [{"kind": "INVOICE"}]}]})
}

fn corrects() -> Value {
    json!({"late_event_policy": "CORRECT"})
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Total, status, and each line's kind, quantity and amount; oldest invoice first.
async fn bills(shop: &Shop) -> Vec<String> {
    let mut invoices = shop.invoices().await;
    invoices.sort_by_key(|invoice| text(&invoice["invoice_number"]));
    let line = |line: &Value| {
        format!("{} {} {}", text(&line["line_type"]), text(&line["quantity"]), text(&line["amount"]["value"]))
    };
    let bill = |invoice: &Value| {
        let lines: Vec<_> = invoice["lines"].as_array().unwrap().iter().map(line).collect();
        format!("{} {}: {}", text(&invoice["total"]["value"]), text(&invoice["status"]), lines.join(", "))
    };
    invoices.iter().map(bill).collect()
}

async fn credit_notes(shop: &Shop) -> Vec<Value> {
    let heads = shop.client.get("/v1/credit-notes").await.expect(200)["data"].take();
    let mut notes = Vec::new();
    for head in heads.as_array().into_iter().flatten() {
        notes.push(shop.client.get(&format!("/v1/credit-notes/{}", text(&head["id"]))).await.data(200));
    }
    notes
}

async fn send_at(shop: &Shop, key: &str, quantity: &str, timestamp: &str) -> String {
    let event = shop.event(key, quantity, json!({"timestamp": timestamp}));
    let sent = shop.client.post("/v1/usage-events", event).await.data(202);
    assert_eq!(sent["accepted"], json!(1), "{sent}");
    text(&sent["results"][0]["id"])
}

/// Every line is the sum of its atoms, and every invoice that of its lines.
async fn adds_up(site: &Site) {
    let wrong = "SELECT count(*) FROM invoice_line l WHERE l.amount <>
        (SELECT sum((atom -> 'net_amount' ->> 'value')::numeric) FROM jsonb_array_elements(l.atoms) atom)
        OR l.quantity <> (SELECT sum((atom ->> 'quantity')::numeric) FROM jsonb_array_elements(l.atoms) atom)";
    assert_eq!(site.number(wrong).await, 0);
}

/// usage.md 5, the vector: 1,000 units of May are billed, 500 come late.
#[tokio::test(flavor = "multi_thread")]
async fn late_usage_is_billed_as_an_adjustment() {
    let site = Site::start().await;
    let shop = Shop::with(&site, Offer { tiers: tiers(), meter: corrects(), ..Offer::default() }).await;
    shop.credit("120.00").await;
    shop.send("in time", "1000").await;
    site.eventually(COUNTED, 1).await;
    shop.advance("2026-02-02T00:00:00Z").await;
    assert_eq!(bills(&shop).await, ["100.00 paid: USAGE 1000 100.00"]);
    let late = shop.send("late", "500").await;
    site.eventually(LATE, 1).await;
    shop.advance("2026-02-02T00:01:00Z").await;
    assert_eq!(bills(&shop).await, ["100.00 paid: USAGE 1000 100.00", "40.00 finalized: ADJUSTMENT 500 40.00"],);
    let mut invoices = shop.invoices().await;
    invoices.sort_by_key(|invoice| text(&invoice["invoice_number"]));
    assert_eq!(
        (&invoices[1]["amount_paid"]["value"], &invoices[1]["amount_due"]["value"]),
        (&json!("20.00"), &json!("20.00"))
    );
    let line = &invoices[1]["lines"][0];
    let atoms: Vec<_> =
        line["atoms"].as_array().unwrap().iter().map(|atom| text(&atom["net_amount"]["value"])).collect();
    assert_eq!((atoms, &line["unit_amount"]), (vec!["140.00".to_owned(), "-100.00".to_owned()], &json!("0.08")));
    // The event is on the adjustment, the one in time on its invoice; the next period has nothing of it.
    let event = shop.client.get(&format!("/v1/usage-events/{late}")).await.data(200);
    assert_eq!((&event["late"], &event["invoice_id"]), (&json!(true), &invoices[1]["id"]));
    assert_eq!(shop.used().await, None);
    assert_eq!(site.number("SELECT count(*) FROM outbox WHERE event_type = 'usage_event.late_received'").await, 1);
    assert_eq!(site.number("SELECT count(*) FROM usage_correction").await, 0);
    // A repeat is a duplicate; more of it is the next difference, tiers and all.
    shop.send("late", "500").await;
    shop.send("later", "9000").await;
    site.eventually(LATE, 2).await;
    shop.advance("2026-02-02T00:02:00Z").await;
    assert_eq!(bills(&shop).await[2], "705.00 finalized: ADJUSTMENT 9000 705.00");
    shop.advance("2026-03-02T00:00:00Z").await;
    assert_eq!(bills(&shop).await.len(), 3);
    adds_up(&site).await;
    site.end().await;
}

/// VOLUME: with more usage all units get cheaper, and the window costs less than was charged: the difference is a credit note,
/// and the next one counts on from there.
#[tokio::test(flavor = "multi_thread")]
async fn late_usage_that_makes_the_window_cheaper_is_credited() {
    let site = Site::start().await;
    let shop =
        Shop::with(&site, Offer { tiers: tiers(), model: "VOLUME", meter: corrects(), ..Offer::default() }).await;
    shop.send("in time", "1000").await;
    site.eventually(COUNTED, 1).await;
    shop.advance("2026-02-02T00:00:00Z").await;
    shop.send("late", "100").await;
    site.eventually(LATE, 1).await;
    shop.advance("2026-02-02T00:01:00Z").await;
    assert_eq!(bills(&shop).await, ["100.00 finalized: USAGE 1000 100.00"]);
    let invoice = shop.invoices().await.remove(0);
    let note = credit_notes(&shop).await.remove(0);
    for (member, expected) in [
        ("status", json!("issued")),
        ("reason_code", json!("BILLING_ERROR")),
        ("credit_note_number", json!("CN-000001")),
        ("invoice_id", invoice["id"].clone()),
        ("subtotal", json!({"value": "12.00", "currency": "EUR"})),
        ("total", json!({"value": "12.00", "currency": "EUR"})),
        ("amount_remaining", json!({"value": "12.00", "currency": "EUR"})),
    ] {
        assert_eq!(note[member], expected, "{member} of {note}");
    }
    assert_eq!(note["lines"][0]["invoice_line_id"], invoice["lines"][0]["id"]);
    assert_eq!(invoice["credit_note_ids"], json!([note["id"]]));
    // 2,000 units cost 160.00, of which 88.00 stand.
    shop.send("later", "900").await;
    site.eventually(LATE, 2).await;
    shop.advance("2026-02-02T00:02:00Z").await;
    assert_eq!(bills(&shop).await[1], "72.00 finalized: ADJUSTMENT 1000 72.00");
    // Another tenant sees none of it.
    let path = format!("/v1/credit-notes/{}", text(&note["id"]));
    let _ = site.api.other.get(&path).await.expect(404);
    assert_eq!(site.api.other.get("/v1/credit-notes").await.expect(200)["data"], json!([]));
    adds_up(&site).await;
    site.end().await;
}

/// INVOICE closes the usage so far; the period's invoice has the rest, and together they cost what one invoice would.
#[tokio::test(flavor = "multi_thread")]
async fn a_threshold_closes_the_usage_so_far_into_an_invoice() {
    let site = Site::start().await;
    let offer = Offer { tiers: tiers(), included: "100", meter: closes_at("1000"), ..Offer::default() };
    let shop = Shop::with(&site, offer).await;
    shop.credit("500.00").await;
    for (key, quantity) in [("a", "700"), ("b", "350"), ("c", "10")] {
        shop.send(key, quantity).await;
    }
    site.eventually(COUNTED, 3).await;
    assert_eq!(shop.balances().await, "500.00 / 0.00 / 404.00");
    shop.advance("2026-01-01T00:01:00Z").await;
    // 1,060 units, 100 of them included.
    assert_eq!(bills(&shop).await, ["96.00 paid: USAGE 1060 96.00"]);
    assert_eq!(shop.balances().await, "404.00 / 0.00 / 404.00");
    let breach = shop.client.get("/v1/meter-breaches").await.expect(200)["data"][0].take();
    assert_eq!((&breach["action_kind"], &breach["observed_value"]), (&json!("INVOICE"), &json!("1050")));
    assert!(breach["delivered_at"].is_string(), "{breach}");
    // What an invoice shows is not voided any more.
    let first = shop.client.get("/v1/usage-events").await.expect(200)["data"][0].take();
    assert_eq!(first["invoice_id"], shop.invoices().await[0]["id"]);
    let void = format!("/v1/usage-events/{}/void", text(&first["id"]));
    let refused = shop.client.post(&void, json!({"reason": "wrong"})).await.expect(409);
    assert_eq!(refused["code"], json!("INVALID_TRANSITION"));
    // The new count begins at 1,050: 2,049 is not enough.
    shop.send("d", "989").await;
    site.eventually(COUNTED, 4).await;
    shop.advance("2026-01-01T00:02:00Z").await;
    assert_eq!(bills(&shop).await.len(), 1);
    assert_eq!(shop.balances().await, "404.00 / 0.00 / 324.08");
    let open = shop.send("e", "1").await;
    site.eventually(COUNTED, 5).await;
    shop.advance("2026-01-01T00:03:00Z").await;
    assert_eq!(bills(&shop).await[1], "80.00 paid: USAGE 990 80.00");
    // Of what no invoice shows a void is taken as ever; the draft of the running period shows the rest.
    assert_eq!(
        shop.client.get(&format!("/v1/usage-events/{open}")).await.data(200)["invoice_id"],
        shop.invoices().await[0]["id"]
    );
    let taken_back = shop.send("f", "500").await;
    shop.send("g", "50").await;
    site.eventually(COUNTED, 7).await;
    let _ =
        shop.client.post(&format!("/v1/usage-events/{taken_back}/void"), json!({"reason": "wrong"})).await.data(200);
    site.eventually("SELECT event_count FROM usage_window", 6).await;
    let preview =
        shop.client.post("/v1/invoices/generate", json!({"subscription_id": shop.subscription})).await.data(201);
    assert_eq!((&preview["status"], &preview["total"]["value"]), (&json!("draft"), &json!("4.00")));
    shop.advance("2026-02-02T00:00:00Z").await;
    // 2,100 units: 2,000 beyond the allowance cost 180.00 in all.
    assert_eq!(bills(&shop).await[2..], ["4.00 paid: USAGE 50 4.00"]);
    assert_eq!(shop.used().await, None);
    assert_eq!(shop.balances().await, "320.00 / 0.00 / 320.00");
    assert_eq!(site.number("SELECT count(*) FROM due_work WHERE kind = 'interim_invoice'").await, 0);
    adds_up(&site).await;
    site.end().await;
}

/// Captures settle the interim invoice as they do the period's; nothing is charged twice and nothing is left on the books.
#[tokio::test(flavor = "multi_thread")]
async fn captures_settle_an_interim_invoice() {
    let site = Site::start().await;
    let shop = Shop::with(&site, Offer { meter: closes_at("100"), ..Offer::default() }).await;
    shop.credit("50.00").await;
    let hold = shop.hold("h", "70").await;
    let _ = shop.capture(&hold, json!({})).await.data(200);
    shop.send("a", "50").await;
    site.eventually(COUNTED, 2).await;
    assert_eq!(shop.balances().await, "43.00 / 0.00 / 38.00");
    shop.advance("2026-01-01T00:01:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!((text(&invoice["total"]["value"]), text(&invoice["status"])), ("12.00".into(), "paid".into()));
    assert_eq!(shop.balances().await, "38.00 / 0.00 / 38.00");
    let hold = shop.hold("i", "30").await;
    let _ = shop.capture(&hold, json!({})).await.data(200);
    shop.send("b", "10").await;
    site.eventually(COUNTED, 4).await;
    assert_eq!(shop.balances().await, "35.00 / 0.00 / 34.00");
    shop.advance("2026-02-02T00:00:00Z").await;
    assert_eq!(bills(&shop).await, ["12.00 paid: USAGE 120 12.00", "4.00 paid: USAGE 40 4.00"]);
    assert_eq!(shop.balances().await, "34.00 / 0.00 / 34.00");
    let open = "SELECT count(*) FROM (SELECT FROM ledger_entry e JOIN ledger_account a ON a.id = e.account_id
        WHERE a.kind IN ('captured_usage', 'receivable') GROUP BY a.kind HAVING sum(e.amount) <> 0) AS open";
    assert_eq!(site.number(open).await, 0);
    site.end().await;
}

/// An interim invoice of a price that falls with the volume may have charged more than the period costs: the rest is credited.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_interim_invoice_charged_too_much_is_credited() {
    let site = Site::start().await;
    let offer = Offer { tiers: tiers(), model: "VOLUME", meter: closes_at("1000"), ..Offer::default() };
    let shop = Shop::with(&site, offer).await;
    shop.send("a", "1000").await;
    site.eventually(COUNTED, 1).await;
    shop.advance("2026-01-01T00:01:00Z").await;
    shop.send("b", "100").await;
    site.eventually(COUNTED, 2).await;
    shop.advance("2026-02-02T00:00:00Z").await;
    assert_eq!(bills(&shop).await, ["100.00 finalized: USAGE 1000 100.00"]);
    assert_eq!(credit_notes(&shop).await[0]["total"]["value"], json!("12.00"));
    adds_up(&site).await;
    site.end().await;
}

/// Two wallet pins have an interim invoice each, and an event over a late period goes on being refused or moved where its
/// meter says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_has_an_interim_invoice_of_its_own() {
    let site = Site::start().await;
    let meter = merged(closes_at("100"), json!({"late_event_policy": "REJECT"}));
    let shop = Shop::with(&site, Offer { meter, ..Offer::default() }).await;
    let pinned = shop.event("a", "60", json!({"wallet_currency": "EUR"}));
    let _ = shop.client.post("/v1/usage-events", pinned).await.data(202);
    shop.send("b", "50").await;
    site.eventually(COUNTED, 2).await;
    shop.advance("2026-01-01T00:01:00Z").await;
    let mut totals = bills(&shop).await;
    totals.sort();
    assert_eq!(totals, ["5.00 finalized: USAGE 50 5.00", "6.00 finalized: USAGE 60 6.00"]);
    shop.advance("2026-02-02T00:00:00Z").await;
    assert_eq!(bills(&shop).await.len(), 2);
    let _ = shop.client.post("/v1/usage-events", shop.event("late", "1", json!({}))).await.data(202);
    site.eventually("SELECT count(*) FROM usage_rejection WHERE code = 'LATE_EVENT'", 1).await;
    let _ = send_at(&shop, "february", "1", "2026-02-01T12:00:00Z").await;
    site.eventually(COUNTED, 3).await;
    site.end().await;
}
