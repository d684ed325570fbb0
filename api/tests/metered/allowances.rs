//! allowances.md end to end: what is carried, granted and committed, from the event to the invoice. A wrong figure is a wrong
//! bill, and a quantity that is carried twice is given away.

use serde_json::{Value, json};

use crate::fixture::{Offer, Shop, Site};

const COUNTED: &str = "SELECT count(*) FROM usage_event";
const CARRIED: &str = "SELECT count(*) FROM outbox WHERE event_type = 'allowance.rolled_over'";

fn flat(rate: &str) -> Value {
    json!([{"tier_order": 1, "up_to": null, "unit_amount": rate, "flat_amount": "0"}])
}

async fn shop_with(site: &Site, allowance: Value) -> Shop {
    let offer = Offer { included: "1000", tiers: flat("0.02"), allowance, ..Offer::default() };
    Shop::with(site, offer).await
}

/// Moves the clock; what was finalized on the way is known then, as it is within a second elsewhere.
async fn advance(site: &Site, shop: &Shop, day: &str) {
    shop.advance(&format!("{day}T00:00:00Z")).await;
    site.engine().snapshots.refresh().await.unwrap();
}

/// Sends usage and waits until it is counted.
async fn use_units(site: &Site, shop: &Shop, number: i64, quantity: &str, day: &str) {
    let key = format!("event-{number}");
    let _ = shop.send_at(&key, quantity, &format!("{day}T00:00:00Z")).await;
    site.eventually(COUNTED, number).await;
}

/// (included, billable, amount) of the usage lines by period.
async fn billed(shop: &Shop) -> Vec<(String, String, String)> {
    let mut invoices = shop.invoices().await;
    invoices.sort_by_key(|invoice| invoice["billing_period_start"].as_str().unwrap_or_default().to_owned());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for invoice in invoices {
        for line in invoice["lines"].as_array().into_iter().flatten().filter(|line| line["line_type"] == "USAGE") {
            let path = format!("/v1/invoices/{}/lines/{}/atoms", text(&invoice["id"]), text(&line["id"]));
            let atoms = shop.client.get(&path).await.expect(200)["data"].take();
            let atom = &atoms[0];
            let amount = text(&line["amount"]["value"]);
            found.push((text(&atom["allowance_quantity"]), text(&atom["billable_quantity"]), amount));
        }
    }
    found
}

fn line(included: &str, billable: &str, amount: &str) -> (String, String, String) {
    (included.into(), billable.into(), amount.into())
}

async fn payloads(site: &Site) -> Vec<Value> {
    sqlx::query_scalar("SELECT payload FROM outbox WHERE event_type = 'allowance.rolled_over' ORDER BY created_at, id")
        .fetch_all(site.api.app.store.pool())
        .await
        .unwrap()
}

/// Vector 3: at most 150 of the 200 that are left are carried, for one period.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_carried_up_to_the_cap() {
    let site = Site::start().await;
    let allowance = json!({"rollover_enabled": true, "rollover_max_quantity": "150", "rollover_expiry_periods": 1});
    let shop = shop_with(&site, allowance).await;
    use_units(&site, &shop, 1, "800", "2026-01-01").await;
    advance(&site, &shop, "2026-02-02").await;
    site.eventually(CARRIED, 1).await;
    let carried = payloads(&site).await.remove(0);
    assert_eq!((&carried["quantity"], &carried["product_id"]), (&json!("150"), &json!(shop.product)), "{carried}");
    assert_eq!(carried["subscription_id"], json!(shop.subscription));
    assert_eq!(carried["from_period"], json!({"start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"}));
    assert_eq!(carried["to_period"], json!({"start": "2026-02-01T00:00:00Z", "end": "2026-03-01T00:00:00Z"}));
    assert_eq!(carried["expires_at"], json!("2026-03-01T00:00:00Z"));
    use_units(&site, &shop, 2, "1100", "2026-02-02").await;
    assert_eq!(shop.used().await, Some(("1100".into(), 1, "0.00".into())));
    advance(&site, &shop, "2026-03-02").await;
    assert_eq!(billed(&shop).await, [line("800", "0", "0.00"), line("1100", "0", "0.00")]);
    // Of 150 carried and 1,000 included 50 are left.
    assert_eq!(payloads(&site).await[1]["quantity"], json!("50"));
    site.end().await;
}

/// Vector 4: what was carried is drawn first and lives one period; a void gives back to what it was drawn from (rule 6).
#[tokio::test(flavor = "multi_thread")]
async fn what_was_carried_is_drawn_first_and_lapses() {
    let site = Site::start().await;
    let shop = shop_with(&site, json!({"rollover_enabled": true, "rollover_expiry_periods": 1})).await;
    use_units(&site, &shop, 1, "800", "2026-01-01").await;
    let voided = shop.send("mistake", "100").await;
    site.eventually(COUNTED, 2).await;
    let _ = shop.client.post(&format!("/v1/usage-events/{voided}/void"), json!({"reason": "mistake"})).await.data(200);
    site.eventually("SELECT event_count FROM usage_window ORDER BY window_start LIMIT 1", 1).await;
    advance(&site, &shop, "2026-02-02").await;
    use_units(&site, &shop, 3, "1000", "2026-02-02").await;
    advance(&site, &shop, "2026-03-02").await;
    use_units(&site, &shop, 4, "1300", "2026-03-02").await;
    assert_eq!(shop.used().await, Some(("1300".into(), 1, "2.00".into())));
    advance(&site, &shop, "2026-04-02").await;
    let expected = [line("800", "0", "0.00"), line("1000", "0", "0.00"), line("1200", "100", "2.00")];
    assert_eq!(billed(&shop).await, expected);
    let quantities: Vec<_> = payloads(&site).await.iter().map(|carried| carried["quantity"].clone()).collect();
    assert_eq!(quantities, [json!("200"), json!("200")], "nothing is left of the third period");
    // A further period without any usage carries everything that is included.
    advance(&site, &shop, "2026-05-02").await;
    assert_eq!(payloads(&site).await[2]["quantity"], json!("1000"));
    site.end().await;
}

/// Rule 5: late usage of a billed period draws the allowance of the one that counts it. What was carried is carried once,
/// and out of an agreement that is over nothing is.
#[tokio::test(flavor = "multi_thread")]
async fn late_usage_draws_the_next_allowance_and_nothing_is_carried_in_the_end() {
    let site = Site::start().await;
    let shop = shop_with(&site, json!({"rollover_enabled": true})).await;
    use_units(&site, &shop, 1, "800", "2026-01-01").await;
    advance(&site, &shop, "2026-02-02").await;
    use_units(&site, &shop, 2, "1150", "2026-01-20").await; // late
    use_units(&site, &shop, 3, "100", "2026-02-02").await;
    assert_eq!(shop.used().await, Some(("1250".into(), 2, "1.00".into())));
    let body = json!({"cancel_at_period_end": false});
    let path = format!("/v1/subscriptions/{}/cancel", shop.subscription);
    let _ = shop.client.post(&path, body).await.data(200);
    advance(&site, &shop, "2026-03-02").await;
    let lots = site.number("SELECT count(*) FROM allowance_lot").await;
    assert_eq!((lots, site.number(CARRIED).await), (1, 1));
    site.end().await;
}

/// A period that is finalized before an earlier one would lack what that leaves: it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn periods_are_finalized_in_order() {
    let site = Site::start().await;
    let settings = "UPDATE organization SET settings = settings || '{\"auto_finalize_invoices\": \"false\"}'";
    let shop = shop_with(&site, json!({"rollover_enabled": true})).await;
    sqlx::query(settings).execute(site.api.app.store.pool()).await.unwrap();
    use_units(&site, &shop, 1, "800", "2026-01-01").await;
    advance(&site, &shop, "2026-02-02").await;
    use_units(&site, &shop, 2, "1100", "2026-02-02").await;
    advance(&site, &shop, "2026-03-02").await;
    let mut drafts = shop.invoices().await;
    drafts.sort_by_key(|draft| draft["billing_period_start"].as_str().unwrap_or_default().to_owned());
    let finalize = |draft: &Value| format!("/v1/invoices/{}/finalize", draft["id"].as_str().unwrap_or_default());
    assert_eq!(drafts.len(), 2, "{drafts:?}");
    shop.client.post(&finalize(&drafts[1]), json!({})).await.problem(409, "CONFLICT");
    let _ = shop.client.post(&finalize(&drafts[0]), json!({})).await.data(200);
    let second = shop.client.post(&finalize(&drafts[1]), json!({})).await.data(200);
    assert_eq!(second["total"]["value"], json!("0.00"));
    assert_eq!(billed(&shop).await, [line("800", "0", "0.00"), line("1100", "0", "0.00")]);
    site.end().await;
}

/// A committed use plan of the shop's units, from the start of its clock; its id.
async fn commit(shop: &Shop, body: Value) -> String {
    let made = shop.client.post("/v1/committed-use-plans", promise(shop, body)).await.data(201);
    made["id"].as_str().unwrap_or_default().to_owned()
}

fn promise(shop: &Shop, body: Value) -> Value {
    let mut promise = json!({
        "customer_id": shop.customer, "subscription_id": shop.subscription, "product_id": shop.product,
        "metric_key": "units", "committed_quantity": "10000", "commitment_period": "month", "term_months": 12,
        "committed_rate": "0.008",
    });
    for (name, value) in body.as_object().into_iter().flatten() {
        promise[name] = value.clone();
    }
    promise
}

/// (type of line, quantity, amount) of the invoices by period.
async fn lines(shop: &Shop) -> Vec<Vec<(String, String, String)>> {
    let mut invoices = shop.invoices().await;
    invoices.sort_by_key(|invoice| invoice["billing_period_start"].as_str().unwrap_or_default().to_owned());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |line: &Value| (text(&line["line_type"]), text(&line["quantity"]), text(&line["amount"]["value"]));
    invoices.iter().map(|invoice| invoice["lines"].as_array().into_iter().flatten().map(of).collect()).collect()
}

fn usage(quantity: &str, amount: &str) -> (String, String, String) {
    line("USAGE", quantity, amount)
}

fn shortfall(quantity: &str, amount: &str) -> (String, String, String) {
    line("COMMIT_TRUE_UP", quantity, amount)
}

async fn priced_shop(site: &Site) -> Shop {
    Shop::with(site, Offer { tiers: flat("0.010"), ..Offer::default() }).await
}

/// Vectors 6 and 7, one month after the other; a reservation within the commitment holds the discounted price.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_charged_in_any_case() {
    let site = Site::start().await;
    let shop = priced_shop(&site).await;
    let plan = commit(&shop, json!({})).await;
    shop.credit("500.00").await;
    use_units(&site, &shop, 1, "7000", "2026-01-01").await;
    assert_eq!(shop.used().await, Some(("7000".into(), 1, "56.00".into())));
    let held = shop.reserve("hold", "4000").await.expect(201);
    assert_eq!(held["held_amount"]["value"], json!("34.00"), "3,000 at 0.008 and 1,000 at 0.010: {held}");
    let _ = shop.release(held["hold_id"].as_str().unwrap_or_default()).await.data(200);
    let body = json!({"subscription_id": shop.subscription, "events": [shop.event("try", "3500", json!({}))]});
    let simulated = shop.client.post("/v1/usage-events/simulate", body).await.expect(200);
    assert_eq!(simulated["data"][0]["amount"]["value"], json!("85.00"), "{simulated}");
    let path = format!("/v1/committed-use-plans/{plan}");
    let running = shop.client.get(&path).await.data(200);
    let progress =
        ["status", "used_quantity", "remaining_quantity", "shortfall_quantity"].map(|name| running[name].clone());
    assert_eq!(progress, [json!("ACTIVE"), json!("7000"), json!("3000"), json!("3000")]);
    assert_eq!(
        (&running["current_period_start"], &running["ends_at"]),
        (&json!(crate::fixture::START), &json!("2027-01-01T00:00:00Z"))
    );
    advance(&site, &shop, "2026-02-02").await;
    use_units(&site, &shop, 2, "12000", "2026-02-02").await;
    advance(&site, &shop, "2026-03-02").await;
    advance(&site, &shop, "2026-04-02").await;
    let expected = [
        vec![usage("7000", "56.00"), shortfall("3000", "24.00")],
        vec![usage("12000", "100.00")],
        vec![shortfall("10000", "80.00")],
    ];
    assert_eq!(lines(&shop).await, expected);
    site.end().await;
}

/// A quarter over three monthly bills: each goes on where the one before stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_commitment_period_may_span_billing_periods() {
    let site = Site::start().await;
    let shop = priced_shop(&site).await;
    let plan = commit(&shop, json!({"commitment_period": "quarter", "term_months": 6})).await;
    use_units(&site, &shop, 1, "4000", "2026-01-01").await;
    advance(&site, &shop, "2026-02-02").await;
    use_units(&site, &shop, 2, "7000", "2026-02-02").await;
    assert_eq!(shop.used().await, Some(("7000".into(), 1, "58.00".into())));
    let path = format!("/v1/committed-use-plans/{plan}");
    assert_eq!(shop.client.get(&path).await.data(200)["used_quantity"], json!("11000"));
    advance(&site, &shop, "2026-03-02").await;
    use_units(&site, &shop, 3, "500", "2026-03-02").await;
    advance(&site, &shop, "2026-04-02").await;
    use_units(&site, &shop, 4, "1000", "2026-04-02").await;
    advance(&site, &shop, "2026-07-02").await;
    let expected = [
        vec![usage("4000", "32.00")],
        vec![usage("7000", "58.00")],
        vec![usage("500", "5.00")],
        vec![usage("1000", "8.00")],
        vec![shortfall("9000", "72.00")],
    ];
    assert_eq!(lines(&shop).await, expected, "what falls short is billed with the last month of the quarter");
    let over = shop.client.get(&path).await.data(200);
    assert_eq!((&over["status"], &over["current_period_start"]), (&json!("COMPLETED"), &Value::Null));
    assert_eq!((&over["used_quantity"], &over["shortfall_quantity"]), (&json!("1000"), &json!("9000")));
    // The term is over: the standard price again.
    use_units(&site, &shop, 5, "100", "2026-07-02").await;
    assert_eq!(shop.used().await, Some(("100".into(), 1, "1.00".into())));
    site.end().await;
}

/// A commitment that begins in mid-period takes in the usage from its start on, and ends where it is cancelled.
#[tokio::test(flavor = "multi_thread")]
async fn a_commitment_begins_and_ends_in_mid_period() {
    let site = Site::start().await;
    let shop = priced_shop(&site).await;
    let plan = commit(&shop, json!({"starts_at": "2026-01-16T00:00:00Z"})).await;
    let path = format!("/v1/committed-use-plans/{plan}");
    assert_eq!(shop.client.get(&path).await.data(200)["status"], json!("DRAFT"));
    use_units(&site, &shop, 1, "1000", "2026-01-01").await;
    advance(&site, &shop, "2026-01-20").await;
    use_units(&site, &shop, 2, "1000", "2026-01-20").await;
    assert_eq!(shop.used().await, Some(("2000".into(), 2, "18.00".into())));
    advance(&site, &shop, "2026-02-10").await;
    use_units(&site, &shop, 3, "2000", "2026-02-10").await;
    advance(&site, &shop, "2026-02-20").await;
    use_units(&site, &shop, 4, "500", "2026-02-20").await;
    let cancel = json!({"reason": "moved away", "bill_shortfall": false});
    let cancelled = shop.client.post(&format!("{path}/cancel"), cancel.clone()).await.data(200);
    assert_eq!(
        (&cancelled["status"], &cancelled["cancelled_at"]),
        (&json!("CANCELLED"), &json!("2026-02-20T00:00:00Z"))
    );
    shop.client.post(&format!("{path}/cancel"), cancel).await.problem(409, "CONFLICT");
    shop.client.put(&path, json!({"metadata": {"a": 1}})).await.problem(409, "CONFLICT");
    use_units(&site, &shop, 5, "100", "2026-02-20").await; // at the end of the plan, which is exclusive
    advance(&site, &shop, "2026-03-02").await;
    let expected = [
        vec![usage("2000", "18.00")],
        // 3,000 of the first commitment period are used; nothing is billed of the second.
        vec![usage("2600", "21.00"), shortfall("7000", "56.00")],
    ];
    assert_eq!(lines(&shop).await, expected);
    site.end().await;
}

/// Shortfalls wait for the end of the term, also where the subscription ends before it.
#[tokio::test(flavor = "multi_thread")]
async fn shortfalls_may_wait_for_the_end_of_the_term() {
    let site = Site::start().await;
    let shop = priced_shop(&site).await;
    let _ = commit(&shop, json!({"shortfall_policy": "BILL_TERM_END", "term_months": 3})).await;
    use_units(&site, &shop, 1, "7000", "2026-01-01").await;
    advance(&site, &shop, "2026-02-02").await;
    use_units(&site, &shop, 2, "12000", "2026-02-02").await;
    advance(&site, &shop, "2026-03-02").await;
    let path = format!("/v1/subscriptions/{}/cancel", shop.subscription);
    let _ = shop.client.post(&path, json!({"cancel_at_period_end": false})).await.data(200);
    advance(&site, &shop, "2026-03-03").await;
    let expected = [
        vec![usage("7000", "56.00")],
        vec![usage("12000", "100.00")],
        vec![shortfall("3000", "24.00"), shortfall("10000", "80.00")],
    ];
    assert_eq!(lines(&shop).await, expected);
    site.end().await;
}

/// Errors, filters, versions and repeats.
#[tokio::test(flavor = "multi_thread")]
async fn committed_use_plans_are_kept_apart_and_fixed_with_their_term() {
    let site = Site::start().await;
    let shop = priced_shop(&site).await;
    let other = priced_shop(&site).await;
    let (client, path) = (&shop.client, "/v1/committed-use-plans");
    let mut bad = client
        .post(path, json!({"committed_quantity": "0", "commitment_period": "week", "term_months": 0}))
        .await
        .bad_fields();
    bad.sort();
    let names: Vec<_> = bad.iter().map(|(name, _)| name.as_str()).collect();
    let required = [
        "commitment_period",
        "committed_quantity",
        "committed_rate",
        "customer_id",
        "metric_key",
        "product_id",
        "subscription_id",
        "term_months",
    ];
    assert_eq!(names, required);
    let refused = client.post(path, promise(&shop, json!({"commitment_period": "quarter", "term_months": 4}))).await;
    assert_eq!(refused.bad_fields()[0].0, "term_months");
    for (body, status, code) in [
        (json!({"customer_id": other.customer}), 422, "BUSINESS_RULE_VIOLATION"),
        (json!({"metric_key": "calls"}), 422, "BUSINESS_RULE_VIOLATION"),
        (json!({"starts_at": "2025-12-01T00:00:00Z"}), 422, "BUSINESS_RULE_VIOLATION"),
        (json!({"product_id": shop.subscription}), 404, "NOT_FOUND"),
        (json!({"subscription_id": shop.product}), 404, "NOT_FOUND"),
        (json!({"overage_price_id": shop.product}), 404, "NOT_FOUND"),
    ] {
        client.post(path, promise(&shop, body)).await.problem(status, code);
    }
    let once = client.with_header("Idempotency-Key", "once");
    let first = once.post(path, promise(&shop, json!({"metadata": {"deal": "a"}}))).await.data(201);
    let again = once.post(path, promise(&shop, json!({"metadata": {"deal": "a"}}))).await.data(201);
    assert_eq!(first, again);
    let one = format!("{path}/{}", first["id"].as_str().unwrap_or_default());
    let overlap =
        client.post(path, promise(&shop, json!({"starts_at": "2026-12-01T00:00:00Z"}))).await.problem(409, "CONFLICT");
    assert_eq!(overlap["existing_id"], first["id"]);
    let next = commit(&shop, json!({"starts_at": "2027-01-01T00:00:00Z"})).await;

    client.put(&one, json!({"committed_rate": "0.007"})).await.problem(409, "CONFLICT");
    client.put(&one, json!({"expected_version": 7})).await.problem(409, "VERSION_CONFLICT");
    let change =
        json!({"shortfall_policy": "BILL_TERM_END", "metadata": {"deal": null, "by": "me"}, "expected_version": 1});
    let changed = client.put(&one, change).await.data(200);
    assert_eq!((&changed["version"], &changed["metadata"]), (&json!(2), &json!({"by": "me"})));
    let draft = format!("{path}/{next}");
    client.put(&draft, json!({"starts_at": "2026-06-01T00:00:00Z"})).await.problem(409, "CONFLICT");
    let changed = client.put(&draft, json!({"committed_rate": "0.007", "term_months": 24})).await.data(200);
    assert_eq!((&changed["committed_rate"], &changed["ends_at"]), (&json!("0.007"), &json!("2029-01-01T00:00:00Z")));
    client
        .post(&format!("{draft}/cancel"), json!({"effective_at": "2030-01-01T00:00:00Z"}))
        .await
        .problem(422, "BUSINESS_RULE_VIOLATION");

    let _ = commit(&other, json!({})).await;
    for (query, expected) in [
        (String::new(), 3),
        (format!("?subscription_id={}", shop.subscription), 2),
        ("?status=DRAFT".into(), 1),
        (format!("?status=ACTIVE&customer_id={}", other.customer), 1),
        (format!("?product_id={}&starts_at.gte=2026-06-01T00:00:00Z", shop.product), 1),
        ("?status=COMPLETED,CANCELLED".into(), 0),
    ] {
        let page = client.get(&format!("{path}{query}")).await.expect(200);
        assert_eq!(page["data"].as_array().map(Vec::len), Some(expected), "{query}: {page}");
    }
    client.get(&format!("{path}/{}", shop.product)).await.problem(404, "NOT_FOUND");
    let _ = client.post_empty(&format!("{draft}/cancel")).await.data(200);
    advance(&site, &shop, "2027-02-02").await;
    // The shortfalls of the first plan wait for its end; one that was cancelled before its start charges nothing.
    assert_eq!(lines(&shop).await, [vec![shortfall("10000", "80.00"); 12]]);
    site.end().await;
}

/// Each figure of the state by source; a grant is drawn last and is not there again.
#[tokio::test(flavor = "multi_thread")]
async fn the_state_shows_every_source() {
    let site = Site::start().await;
    let shop = shop_with(&site, json!({"rollover_enabled": true, "rollover_expiry_periods": 2})).await;
    let path = format!("/v1/subscriptions/{}/allowances", shop.subscription);
    let state = |at: &'static str| {
        let (client, path) = (shop.client.clone(), path.clone());
        async move {
            let state = client.get(&format!("{path}{at}")).await.data(200);
            let product = state["products"][0].clone();
            let names = [
                "included_quantity",
                "rolled_over_quantity",
                "granted_quantity",
                "total_quantity",
                "used_quantity",
                "remaining_quantity",
                "overage_quantity",
                "rollover_expires_at",
            ];
            let figures = names.map(|name| product[name].as_str().unwrap_or("-").to_owned()).join(" ");
            format!("{figures} {}", product["estimated_overage"]["value"].as_str().unwrap_or_default())
        }
    };
    let whole = shop.client.get(&path).await.data(200);
    assert_eq!(
        (&whole["period_start"], &whole["period_end"]),
        (&json!("2026-01-01T00:00:00Z"), &json!("2026-02-01T00:00:00Z"))
    );
    assert_eq!(whole["products"][0]["included_quantity_source"], json!("PLAN"));
    assert_eq!(whole["products"][0]["rollover_enabled"], json!(true));
    use_units(&site, &shop, 1, "800", "2026-01-01").await;
    assert_eq!(state("").await, "1000 0 0 1000 800 200 0 - 0.00");
    advance(&site, &shop, "2026-02-02").await;
    grant(&site, &shop, "300", "2026-02-01T00:00:00Z", "2026-05-01T00:00:00Z").await;
    use_units(&site, &shop, 2, "1400", "2026-02-02").await;
    assert_eq!(state("").await, "1000 200 300 1500 1400 100 0 2026-04-01T00:00:00Z 0.00");
    advance(&site, &shop, "2026-03-02").await;
    use_units(&site, &shop, 3, "1200", "2026-03-02").await;
    assert_eq!(state("").await, "1000 0 100 1100 1200 0 100 - 2.00");
    assert_eq!(state("?at=2026-02-15T00:00:00Z").await, "1000 200 300 1500 1400 100 0 2026-04-01T00:00:00Z 0.00");
    advance(&site, &shop, "2026-04-02").await;
    let expected = [line("800", "0", "0.00"), line("1400", "0", "0.00"), line("1100", "100", "2.00")];
    assert_eq!(billed(&shop).await, expected);
    assert_eq!(state("").await, "1000 0 0 1000 0 1000 0 - 0.00", "the grant is spent");
    let bad = shop.client.get(&format!("{path}?at=soon")).await.bad_fields();
    assert_eq!(bad[0].0, "at");
    shop.client.get(&format!("/v1/subscriptions/{}/allowances", shop.product)).await.problem(404, "NOT_FOUND");
    site.end().await;
}

/// What a promotion or an add-on gives.
async fn grant(site: &Site, shop: &Shop, quantity: &str, starts_at: &str, expires_at: &str) {
    let grant = billing::allowance::NewGrant {
        subscription_id: domain::SubscriptionId(shop.subscription.parse().unwrap()),
        product_id: domain::ProductId(shop.product.parse().unwrap()),
        metric_key: "units".into(),
        quantity: domain::Quantity::parse(quantity).unwrap(),
        source: billing::allowance::GrantSource::Promotion,
        source_id: None,
        starts_at: starts_at.parse().unwrap(),
        expires_at: Some(expires_at.parse().unwrap()),
    };
    let store = &site.api.app.store;
    let mut tx = store.begin("grant an allowance").await.unwrap();
    billing::allowance::grant(&site.api.sandbox_scope(), &mut tx, grant).await.unwrap();
    tx.commit().await.unwrap();
    site.engine().snapshots.refresh().await.unwrap();
}

/// A9: each line has its own minutes; usage of a line without an item has none.
#[tokio::test(flavor = "multi_thread")]
async fn items_have_allowances_of_their_own() {
    let site = Site::start().await;
    let offer = Offer {
        included: "1000",
        allowance: json!({"pool_scope": "ITEM"}),
        tiers: flat("0.02"),
        product: json!({"price_key_label": "line"}),
        price: json!({"price_key": "anna"}),
        siblings: &["ben", "carl"],
        items: json!([{"price_key": "anna"}, {"price_key": "ben", "included_quantity": "500"}]),
        ..Offer::default()
    };
    let shop = Shop::with(&site, offer).await;
    for (number, (key, quantity)) in (1..).zip([("anna", "900"), ("ben", "700"), ("carl", "50")]) {
        let event = shop.event(&format!("event-{number}"), quantity, json!({"price_key": key}));
        let _ = shop.client.post("/v1/usage-events", event).await.data(202);
        site.eventually(COUNTED, number).await;
    }
    let state = shop.client.get(&format!("/v1/subscriptions/{}/allowances", shop.subscription)).await.data(200);
    let product = &state["products"][0];
    let figures = ["total_quantity", "used_quantity", "remaining_quantity", "overage_quantity"];
    assert_eq!(figures.map(|name| product[name].clone()), ["1500", "1650", "100", "250"].map(|text| json!(text)));
    // 80 and 100 percent of all lines together, and exhausted.
    assert_eq!(site.number("SELECT count(*) FROM outbox WHERE event_type LIKE 'allowance.%'").await, 3);
    advance(&site, &shop, "2026-02-02").await;
    let expected = [line("900", "0", "0.00"), line("500", "200", "4.00"), line("0", "50", "1.00")];
    assert_eq!(billed(&shop).await, expected);
    site.end().await;
}

/// A shop with an item for the line of Anna, which has what the plan includes, and one for Ben's.
async fn lines_shop(site: &Site, included: &str, of_ben: &str, allowance: Value) -> Shop {
    let offer = Offer {
        included,
        allowance,
        tiers: flat("0.02"),
        product: json!({"price_key_label": "line"}),
        price: json!({"price_key": "anna"}),
        siblings: &["ben", "carl"],
        items: json!([{"price_key": "anna"}, {"price_key": "ben", "included_quantity": of_ben}]),
        ..Offer::default()
    };
    Shop::with(site, offer).await
}

/// Each line carries its own rest, and draws it first.
#[tokio::test(flavor = "multi_thread")]
async fn items_carry_their_own_rest() {
    let site = Site::start().await;
    let allowance = json!({"pool_scope": "ITEM", "rollover_enabled": true, "rollover_expiry_periods": 1});
    let shop = lines_shop(&site, "1000", "500", allowance).await;
    let send = async |number: i64, line: &str, quantity: &str, day: &str| {
        let more = json!({"price_key": line, "timestamp": format!("{day}T00:00:00Z")});
        let event = shop.event(&format!("event-{number}"), quantity, more);
        let _ = shop.client.post("/v1/usage-events", event).await.data(202);
        site.eventually(COUNTED, number).await;
    };
    send(1, "anna", "900", "2026-01-01").await;
    send(2, "ben", "100", "2026-01-01").await;
    advance(&site, &shop, "2026-02-02").await;
    let path = format!("/v1/subscriptions/{}/allowances", shop.subscription);
    let state = shop.client.get(&path).await.data(200);
    let product = &state["products"][0];
    let figures = ["included_quantity", "rolled_over_quantity", "total_quantity"];
    assert_eq!(figures.map(|name| product[name].clone()), ["1500", "500", "2000"].map(|text| json!(text)));
    assert_eq!(product["rollover_expires_at"], json!("2026-03-01T00:00:00Z"));
    send(3, "anna", "1200", "2026-02-02").await;
    send(4, "ben", "850", "2026-02-02").await;
    let state = shop.client.get(&path).await.data(200);
    let product = &state["products"][0];
    let figures = ["used_quantity", "remaining_quantity", "overage_quantity"];
    assert_eq!(figures.map(|name| product[name].clone()), ["2050", "50", "100"].map(|text| json!(text)));
    advance(&site, &shop, "2026-03-02").await;
    let expected =
        [line("900", "0", "0.00"), line("100", "0", "0.00"), line("1100", "100", "2.00"), line("850", "0", "0.00")];
    assert_eq!(billed(&shop).await, expected);
    // One event per product; Ben has drawn what was carried, and 50 of his own are left.
    let quantities: Vec<_> = payloads(&site).await.iter().map(|carried| carried["quantity"].clone()).collect();
    assert_eq!(quantities, [json!("500"), json!("50")]);
    assert_eq!(site.number("SELECT count(*) FROM allowance_lot WHERE price_key = 'ben'").await, 2);
    site.end().await;
}

/// Nothing is sold beyond the allowance of a line; the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn items_end_their_own_usage() {
    let site = Site::start().await;
    let shop = lines_shop(&site, "100", "50", json!({"pool_scope": "ITEM", "overage_policy": "BLOCK"})).await;
    shop.credit("10.00").await;
    let post = async |key: &str, line: &str, quantity: &str| {
        shop.client.post("/v1/usage-events", shop.event(key, quantity, json!({"price_key": line}))).await
    };
    let is_refused = async |line: &str| {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let reply = post(&uuid::Uuid::new_v4().to_string(), line, "0").await;
            if reply.status.as_u16() == 422 {
                return reply.body["code"] == json!("ALLOWANCE_EXHAUSTED");
            }
            assert!(tokio::time::Instant::now() < deadline, "never refused: {}", reply.body);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let reserve = async |key: &str, line: &str, quantity: &str| {
        let body = shop.reservation(key, quantity, json!({"price_key": line}));
        let reply = shop.client.post("/v1/transaction/reserve", body).await;
        (reply.body["can_proceed"].clone(), reply.body["blocked_reasons"].clone())
    };
    let _ = post("a", "anna", "100").await.data(202);
    assert!(is_refused("anna").await);
    let _ = post("b", "ben", "10").await.data(202);
    site.eventually("SELECT count(*) FROM usage_event WHERE quantity = 10", 1).await;
    let exhausted = json!(["ALLOWANCE_EXHAUSTED"]);
    assert_eq!(reserve("r1", "ben", "41").await, (json!(false), exhausted.clone()));
    assert_eq!(reserve("r2", "anna", "1").await, (json!(false), exhausted.clone()));
    // A line without an item shares what no line has for itself: nothing, which the first event shows.
    let _ = post("c", "carl", "1").await.data(202);
    assert!(is_refused("carl").await);
    let _ = post("d", "ben", "1").await.data(202);
    site.eventually("SELECT count(*) FROM usage_event WHERE idempotency_key = 'd'", 1).await;
    assert_eq!(site.number("SELECT count(*) FROM usage_block").await, 2);
    assert_eq!(reserve("r3", "ben", "40").await, (json!(false), exhausted));
    assert_eq!(reserve("r4", "ben", "39").await.0, json!(true));
    site.end().await;
}

/// Vector 5: from 1,000 to 3,000 at day 15 of 30. What was used before stays used.
#[tokio::test(flavor = "multi_thread")]
async fn an_allowance_that_changes_in_mid_period_counts_by_its_seconds() {
    let site = Site::start().await;
    let shop = shop_with(&site, json!({})).await;
    advance(&site, &shop, "2026-04-10").await;
    use_units(&site, &shop, 1, "900", "2026-04-10").await;
    advance(&site, &shop, "2026-04-16").await;
    let mut tx = site.api.app.store.begin("change an item").await.unwrap();
    let swap = "WITH old AS (UPDATE subscription_item SET removed_at = '2026-04-16Z' RETURNING *)
        INSERT INTO subscription_item (id, workspace_id, subscription_id, product_id, included_quantity, charge_kind,
            billing_timing, added_at, created_at, updated_at)
        SELECT gen_random_uuid(), workspace_id, subscription_id, product_id, 3000, charge_kind, billing_timing,
            '2026-04-16Z', created_at, updated_at FROM old";
    sqlx::query(swap).execute(tx.conn()).await.unwrap();
    let subscription = domain::SubscriptionId(shop.subscription.parse().unwrap());
    tx.subscription_changed(site.api.sandbox_scope().workspace_id, subscription);
    tx.commit().await.unwrap();
    site.engine().snapshots.refresh().await.unwrap();
    use_units(&site, &shop, 2, "1000", "2026-04-16").await;
    let state = shop.client.get(&format!("/v1/subscriptions/{}/allowances", shop.subscription)).await.data(200);
    let product = &state["products"][0];
    let figures = ["included_quantity", "included_quantity_source", "used_quantity", "overage_quantity"];
    assert_eq!(
        figures.map(|name| product[name].clone()),
        [json!("2000"), json!("SUBSCRIPTION_ITEM"), json!("1900"), json!("0")]
    );
    advance(&site, &shop, "2026-05-02").await;
    assert_eq!(billed(&shop).await, [line("1900", "0", "0.00")]);
    // The next period has all of the new allowance.
    let state = shop.client.get(&format!("/v1/subscriptions/{}/allowances", shop.subscription)).await.data(200);
    assert_eq!(state["products"][0]["included_quantity"], json!("3000"));
    site.end().await;
}
