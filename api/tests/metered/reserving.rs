//! reserve.md and transactions.md: vectors, refusals, allowances, parallel reservations.

use serde_json::{Value, json};

use crate::fixture::{Offer, Shop, Site};

fn amounts(held: &Value) -> (String, String) {
    let of = |name: &str| held[name]["value"].as_str().unwrap_or("null").to_owned();
    (of("held_amount"), of("available_after"))
}

/// reserve.md, Vectors, without tax: no organization has tax rules yet.
#[tokio::test(flavor = "multi_thread")]
async fn vectors_of_reserve() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    shop.credit("15.00").await;
    // 1
    let held = shop.reserve("1", "100").await.expect(201);
    assert_eq!(amounts(&held), ("10.00".into(), "5.00".into()));
    let expected = json!({"net": "10.00", "tax": "0.00", "rate": "0", "currency": "EUR"});
    let found = json!({"net": held["net_amount"]["value"], "tax": held["tax_amount"]["value"], "rate": held["tax_rate"],
        "currency": held["resolved_currency"]});
    assert_eq!((found, &held["expires_at"]), (expected, &json!("2026-01-01T00:15:00Z")));
    assert!(
        held["price_id"].is_string() && held["price_version_id"].is_string() && held["wallet_id"] == json!(shop.wallet)
    );
    assert_eq!(held["hold_id"], held["transaction_id"]);
    let hold = held["hold_id"].as_str().unwrap().to_owned();
    // The same key: the first answer with 200; another body is refused.
    assert_eq!(shop.reserve("1", "100").await.expect(200), held);
    shop.reserve("1", "99").await.problem(409, "IDEMPOTENCY_CONFLICT");
    // 2
    let blocked = shop.reserve("2", "100").await.expect(200);
    assert_eq!(
        (&blocked["status"], &blocked["can_proceed"], &blocked["blocked_reasons"], &blocked["hold_id"]),
        (&json!("blocked"), &json!(false), &json!(["INSUFFICIENT_FUNDS"]), &Value::Null)
    );
    assert_eq!(shop.balances().await, "15.00 / 10.00 / 5.00");
    // 6
    let free = shop.client.post("/v1/usage-events", shop.event("free", "1", json!({}))).await;
    free.problem(422, "BUSINESS_RULE_VIOLATION");
    let other = shop.event("other", "1", json!({"hold_id": shop.subscription}));
    shop.client.post("/v1/usage-events", other).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let named = shop.client.post("/v1/usage-events", shop.event("named", "0", json!({"hold_id": hold}))).await;
    assert_eq!(named.data(202)["accepted"], json!(1));
    // 3
    let done = shop.capture(&hold, json!({"quantity": "60"})).await.data(200);
    assert_eq!(
        (&done["status"], &done["captured_amount"]["value"], &done["released_amount"]["value"]),
        (&json!("CAPTURED"), &json!("6.00"), &json!("4.00"))
    );
    assert_eq!(shop.balances().await, "9.00 / 0.00 / 9.00");
    // Twice with the same result is without effect; other moves are refused.
    assert_eq!(shop.capture(&hold, json!({"quantity": "60.0"})).await.data(200), done);
    shop.capture(&hold, json!({"quantity": "61"})).await.problem(409, "INVALID_TRANSITION");
    shop.release(&hold).await.problem(409, "INVALID_TRANSITION");
    assert_eq!(shop.balances().await, "9.00 / 0.00 / 9.00");
    // Nothing is held any more: events need no hold.
    shop.send("after", "1").await;
    // 4
    let hold = shop.hold("4", "10").await;
    let released = shop.release(&hold).await.data(200);
    assert_eq!((&released["status"], &released["released_amount"]["value"]), (&json!("RELEASED"), &json!("1.00")));
    assert_eq!(shop.release(&hold).await.data(200), released);
    shop.capture(&hold, json!({})).await.problem(409, "INVALID_TRANSITION");
    // 5
    let expiring = shop.reservation("5", "10", json!({"hold_expires_at": "2026-01-01T00:00:30Z"}));
    let held = shop.client.post("/v1/transaction/reserve", expiring).await.expect(201);
    shop.advance("2026-01-01T00:01:00Z").await;
    shop.capture(held["hold_id"].as_str().unwrap(), json!({})).await.problem(409, "INVALID_TRANSITION");
    shop.release(held["hold_id"].as_str().unwrap()).await.problem(409, "INVALID_TRANSITION");
    shop.send("lapsed", "1").await;
    // The captured event is usage like any other.
    site.eventually("SELECT count(*) FROM usage_event", 4).await;
    let event =
        shop.client.get(&format!("/v1/usage-events/{}", done["usage_event_id"].as_str().unwrap())).await.data(200);
    assert_eq!((&event["quantity"], &event["hold_id"].is_string()), (&json!("60"), &true));
    assert!(shop.balances().await.contains(" / 0.00 / "), "the wallet lets it lapse");
    site.eventually(
        "SELECT count(*) FROM outbox WHERE event_type = 'reserve_outcome.recorded' AND payload ->> 'outcome' = 'EXPIRED'",
        1,
    )
    .await;
    let outcomes: Vec<String> = sqlx::query_scalar(
        "SELECT payload ->> 'outcome' FROM outbox WHERE event_type = 'reserve_outcome.recorded' ORDER BY created_at, id",
    )
    .fetch_all(site.api.app.store.pool())
    .await
    .unwrap();
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "HELD").count(), 3);
    assert!(["BLOCKED", "CAPTURED", "RELEASED", "EXPIRED"].iter().all(|wanted| outcomes.iter().any(|o| o == wanted)));
    site.end().await;
}

/// transactions.md, Vectors of the charging flow.
#[tokio::test(flavor = "multi_thread")]
async fn vectors_of_the_charging_flow() {
    let site = Site::start().await;
    for lapses in [false, true] {
        let shop = Shop::open(&site).await;
        shop.credit("10.00").await;
        let held = shop.reserve(&format!("60 {lapses}"), "60").await.expect(201);
        assert_eq!(amounts(&held), ("6.00".into(), "4.00".into()));
        assert_eq!(shop.reserve(&format!("41 {lapses}"), "41").await.expect(200)["can_proceed"], json!(false));
        if lapses {
            shop.advance("2026-01-01T00:15:00Z").await;
            assert_eq!(shop.balances().await, "10.00 / 0.00 / 10.00");
            let holds = shop.client.get(&format!("/v1/wallets/{}/holds", shop.wallet)).await.expect(200);
            assert_eq!(holds["data"][0]["status"], json!("EXPIRED"));
        } else {
            let done = shop.capture(held["hold_id"].as_str().unwrap(), json!({"quantity": "45"})).await.data(200);
            assert_eq!(done["captured_amount"]["value"], json!("4.50"));
            assert_eq!(shop.balances().await, "5.50 / 0.00 / 5.50");
        }
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_clear() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    let bare = Shop::with(
        &site,
        Offer {
            tiers: json!([{"tier_order": 1, "up_to": null, "unit_amount": "1", "flat_amount": "0"}]),
            ..Offer::default()
        },
    )
    .await;
    let reserve = |more: Value| {
        let (client, body) = (shop.client.clone(), shop.reservation(&more.to_string(), "1", more));
        async move { client.post("/v1/transaction/reserve", body).await }
    };
    let nobody = "00000000-0000-7000-8000-000000000000";
    reserve(json!({"customer_id": nobody})).await.problem(404, "NOT_FOUND");
    reserve(json!({"subscription_id": nobody})).await.problem(404, "NOT_FOUND");
    reserve(json!({"product_id": nobody})).await.problem(404, "NOT_FOUND");
    reserve(json!({"subscription_id": bare.subscription})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    reserve(json!({"wallet_currency": "USD"})).await.problem(422, "WALLET_NOT_FOUND");
    let usd = json!({"customer_id": shop.customer, "currency": "USD"});
    let _ = shop.client.post("/v1/wallets", usd).await.data(201);
    reserve(json!({"wallet_currency": "USD", "metadata": {}})).await.problem(422, "FX_RATE_NOT_FOUND");
    reserve(json!({"metric_key": "other"})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    // A product without a price, and a customer without a subscription to it.
    let product = json!({"name": "Free", "type": "USAGE", "pricing_model": "VOLUME"});
    let product = api::testing::id(&shop.client.post("/v1/products", product).await.data(201));
    let meter = json!({"key": "free", "name": "Free", "metric_key": "units", "function": "SUM"});
    let meter = api::testing::id(&shop.client.post("/v1/meters", meter).await.data(201));
    let binding = json!({"meter_id": meter});
    let _ = shop.client.post(&format!("/v1/products/{product}/meter-bindings"), binding).await.data(201);
    reserve(json!({"product_id": product})).await.problem(422, "PRICE_NOT_FOUND");
    reserve(json!({"product_id": product, "subscription_id": null})).await.problem(422, "SUBSCRIPTION_REQUIRED");
    for (more, field, code) in [
        (json!({"quantity": "0"}), "quantity", "OUT_OF_RANGE"),
        (json!({"quantity": "-1"}), "quantity", "OUT_OF_RANGE"),
        (json!({"quantity": null}), "quantity", "REQUIRED"),
        (json!({"idempotency_key": null}), "idempotency_key", "REQUIRED"),
        (json!({"hold_expires_at": "2026-01-01T00:00:00.5Z"}), "hold_expires_at", "OUT_OF_RANGE"),
        (json!({"hold_expires_at": "2026-02-01T00:00:00Z"}), "hold_expires_at", "OUT_OF_RANGE"),
        (json!({"external_cost_amount": "1"}), "external_cost_currency", "REQUIRED"),
        (json!({"dimension_vars": {"A": 1}}), "dimension_vars", "INVALID_FORMAT"),
        (json!({"price_key": "x"}), "price_key", "NOT_ALLOWED"),
        (json!({"amount": "1"}), "amount", "UNKNOWN_FIELD"),
    ] {
        let bad = reserve(more.clone()).await.bad_fields();
        assert_eq!(bad, [(field.to_owned(), code.to_owned())], "{more}");
    }
    // Without subscription and metric, both are found.
    shop.credit("1.00").await;
    let held = reserve(json!({"subscription_id": null, "metric_key": null})).await.expect(201);
    let hold = held["hold_id"].as_str().unwrap().to_owned();
    for (body, field, code) in [
        (json!({"amount": {"value": "1.00", "currency": "EUR"}}), "amount", "NOT_ALLOWED"),
        (json!({"quantity": "0"}), "quantity", "OUT_OF_RANGE"),
        (json!({"external_cost_currency": "EUR"}), "external_cost_amount", "REQUIRED"),
        (json!({"timestamp": "2026-01-01T00:06:00Z"}), "timestamp", "OUT_OF_RANGE"),
    ] {
        assert_eq!(shop.capture(&hold, body).await.bad_fields(), [(field.to_owned(), code.to_owned())]);
    }
    let early = json!({"timestamp": "2025-12-01T00:00:00Z"});
    shop.capture(&hold, early).await.problem(422, "BUSINESS_RULE_VIOLATION");
    shop.capture(&hold, json!({"quantity": "2"})).await.problem(422, "AMOUNT_EXCEEDS_HOLD");
    shop.capture(nobody, json!({})).await.problem(404, "NOT_FOUND");
    shop.release(nobody).await.problem(404, "NOT_FOUND");
    let stranger = &site.api.other_sandbox;
    stranger.post(&format!("/v1/transaction/{hold}/capture"), json!({})).await.problem(404, "NOT_FOUND");
    stranger.post(&format!("/v1/transaction/{hold}/release"), json!({})).await.problem(404, "NOT_FOUND");
    stranger.post("/v1/transaction/reserve", shop.reservation("x", "1", json!({}))).await.problem(404, "NOT_FOUND");
    // By amount it is no revenue: the hold authorizes usage.
    let by_amount = format!("/v1/wallets/{}/holds/{hold}/capture", shop.wallet);
    shop.client.post(&by_amount, json!({})).await.problem(422, "BUSINESS_RULE_VIOLATION");
    // The body's key.
    let first = shop.capture(&hold, json!({"idempotency_key": "c"})).await.data(200);
    assert_eq!(shop.capture(&hold, json!({"idempotency_key": "c"})).await.data(200), first);
    shop.capture(&hold, json!({"idempotency_key": "c", "quantity": "1"})).await.problem(409, "IDEMPOTENCY_CONFLICT");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_use_is_blocked() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    shop.credit("10.00").await;
    let path = format!("/v1/subscriptions/{}", shop.subscription);
    let _ = shop.client.post_empty(&format!("{path}/pause")).await.data(200);
    let blocked = shop.reserve("paused", "1").await.expect(200);
    assert_eq!(blocked["blocked_reasons"], json!(["SUBSCRIPTION_SUSPENDED"]));
    assert_eq!(shop.reserve("paused", "1").await.expect(200), blocked);
    let _ = shop.client.post_empty(&format!("{path}/resume")).await.data(200);
    shop.hold("resumed", "1").await;
    let keyed = Offer {
        product: json!({"price_key_label": "region", "unmatched_price_key_policy": "drop"}),
        price: json!({"price_key": "eu"}),
        ..Offer::default()
    };
    let keyed = Shop::with(&site, keyed).await;
    let dropped =
        keyed.client.post("/v1/transaction/reserve", keyed.reservation("d", "1", json!({"price_key": "mars"}))).await;
    let dropped = dropped.expect(202);
    assert_eq!((&dropped["status"], &dropped["hold_id"]), (&json!("dropped"), &Value::Null));
    // POSTPAID names its limit.
    let credit = Shop::with(&site, Offer { customer: json!({"billing_model": "POSTPAID"}), ..Offer::default() }).await;
    let limit = json!({"credit_limit": "5.00"});
    let _ = credit.client.patch(&format!("/v1/wallets/{}/settings", credit.wallet), limit).await.data(200);
    credit.hold("within", "50").await;
    assert_eq!(credit.reserve("beyond", "1").await.expect(200)["blocked_reasons"], json!(["CREDIT_LIMIT_EXCEEDED"]));
    site.end().await;
}

/// Rule D1: of two parallel reserves of the last included units one is free.
#[tokio::test(flavor = "multi_thread")]
async fn d1_the_last_included_units_are_free_once() {
    let site = Site::start().await;
    let shop = Shop::with(&site, Offer { included: "150", ..Offer::default() }).await;
    shop.credit("20.00").await;
    shop.send("counted", "50").await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    let (one, two) = tokio::join!(shop.reserve("one", "100"), shop.reserve("two", "100"));
    let (one, two) = (one.expect(201), two.expect(201));
    let mut held = [amounts(&one).0, amounts(&two).0];
    held.sort();
    assert_eq!(held, ["0.00", "10.00"]);
    assert_eq!(shop.balances().await, "20.00 / 10.00 / 10.00");
    // A release makes room in the allowance again; a capture that is not counted yet does not.
    let (free, paid) = if amounts(&one).0 == "0.00" { (one, two) } else { (two, one) };
    let id = |held: &Value| held["hold_id"].as_str().unwrap().to_owned();
    let captured = shop.capture(&id(&free), json!({})).await.data(200);
    assert_eq!(
        (&captured["captured_amount"]["value"], &captured["wallet_transaction_id"]),
        (&json!("0.00"), &Value::Null)
    );
    assert_eq!(amounts(&shop.reserve("three", "10").await.expect(201)).0, "1.00");
    assert_eq!(
        shop.capture(&id(&paid), json!({"quantity": "40"})).await.data(200)["captured_amount"]["value"],
        json!("4.00")
    );
    site.eventually("SELECT event_count FROM usage_window", 3).await;
    assert_eq!(shop.used().await, Some(("190".into(), 3, "4.00".into())));
    site.end().await;
}

/// A thousand at once never spend more than the wallet has.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_parallel_reserves_never_overspend() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    shop.credit("50.00").await;
    let held = shop.reserve_at_once(1_000, "INSUFFICIENT_FUNDS").await;
    assert_eq!((held, shop.balances().await.as_str()), (500, "50.00 / 50.00 / 0.00"));
    site.end().await;
}
