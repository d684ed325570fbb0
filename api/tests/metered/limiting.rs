//! thresholds-and-alerts.md and allowances.md 5.1 rules 7 and 11: breaches, mails, blocked usage, usage caps, alerts.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Offer, Shop, Site};

fn threshold(name: &str, value: &str, action: Value) -> Value {
    json!({"name": name, "value": value, "actions": [action]})
}

/// A shop whose meter has these thresholds.
async fn watched(site: &Site, thresholds: Value) -> Shop {
    Shop::with(site, Offer { meter: json!({ "thresholds": thresholds }), ..Offer::default() }).await
}

async fn eighty_and_hundred(site: &Site) -> Shop {
    watched(
        site,
        json!([threshold("80", "80", json!({"kind": "WEBHOOK"})), threshold("100", "100", json!({"kind": "WEBHOOK"}))]),
    )
    .await
}

/// A shop whose plan includes 100 units and sells none beyond.
async fn ending_at_hundred(site: &Site) -> Shop {
    let allowance = json!({"overage_policy": "BLOCK"});
    Shop::with(site, Offer { included: "100", allowance, ..Offer::default() }).await
}

impl Shop {
    /// The breaches of the subscription, oldest first: name, limit and observed value.
    async fn breaches(&self) -> Vec<(String, String, String)> {
        let path = format!("/v1/meter-breaches?subscription_id={}&sort=occurred_at", self.subscription);
        let page = self.client.get(&path).await.expect(200);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let breach = |b: &Value| (text(&b["threshold_name"]), text(&b["threshold_value"]), text(&b["observed_value"]));
        page["data"].as_array().unwrap().iter().map(breach).collect()
    }

    async fn post_event(&self, key: &str, quantity: &str, at: &str) -> api::testing::Reply {
        self.client.post("/v1/usage-events", self.event(key, quantity, json!({ "timestamp": at }))).await
    }

    /// Sends nothing until it is refused; the problem.
    async fn refused(&self, code: &str) -> Value {
        self.probed(&format!("refused with {code}"), |reply| reply.body["code"] == json!(code)).await
    }

    /// Sends nothing until it is taken again.
    async fn taken(&self) {
        let _ = self.probed("taken", |reply| reply.status.as_u16() == 202).await;
    }

    async fn probed(&self, what: &str, is_wanted: impl Fn(&api::testing::Reply) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let key = uuid::Uuid::new_v4().to_string();
            let reply = self.post_event(&key, "0", "2026-01-01T00:00:00Z").await;
            if is_wanted(&reply) {
                return reply.body;
            }
            assert!(tokio::time::Instant::now() < deadline, "never {what}: {}", reply.body);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn set_caps(&self, caps: Value) -> api::testing::Reply {
        self.client.put(&format!("/v1/subscriptions/{}/usage-caps", self.subscription), json!({ "caps": caps })).await
    }

    fn cap(&self, action: &str, member: &str, limit: Value) -> Value {
        let mut cap = json!({"product_id": self.product, "metric_key": "units", "action": action});
        cap[member] = limit;
        cap
    }

    async fn void(&self, event: &str) {
        let path = format!("/v1/usage-events/{event}/void");
        let _ = self.client.post(&path, json!({"reason": "measured twice"})).await.data(200);
    }

    async fn refused_reasons(&self, key: &str, quantity: &str) -> Value {
        let blocked = self.reserve(key, quantity).await.expect(200);
        assert_eq!((&blocked["can_proceed"], &blocked["hold_id"]), (&json!(false), &Value::Null), "{blocked}");
        blocked["blocked_reasons"].clone()
    }
}

fn breach(name: &str, limit: &str, observed: &str) -> (String, String, String) {
    (name.into(), limit.into(), observed.into())
}

/// thresholds-and-alerts.md, Vectors 1 to 3, with the counts of the day.
#[tokio::test(flavor = "multi_thread")]
async fn vectors_of_thresholds() {
    let site = Site::start().await;
    // 1
    let first = eighty_and_hundred(&site).await;
    for (key, quantity) in [("1a", "50"), ("1b", "35"), ("1c", "20")] {
        first.send(key, quantity).await;
    }
    site.eventually("SELECT count(*) FROM meter_breach", 2).await;
    assert_eq!(first.breaches().await, [breach("80", "80", "85"), breach("100", "100", "105")]);
    // 2
    let second = eighty_and_hundred(&site).await;
    second.send("2", "120").await;
    site.eventually("SELECT count(*) FROM meter_breach", 4).await;
    let mut both = second.breaches().await;
    both.sort();
    assert_eq!(both, [breach("100", "100", "120"), breach("80", "80", "120")]);
    // 3
    let third = watched(&site, json!([threshold("80", "80", json!({"kind": "WEBHOOK"}))])).await;
    third.send("3a", "85").await;
    third.send("3b", "10").await;
    third.advance("2026-02-01T00:00:00Z").await;
    let next = third.post_event("3c", "85", "2026-02-01T00:00:00Z").await;
    assert_eq!(next.data(202)["accepted"], json!(1));
    site.eventually("SELECT count(*) FROM meter_breach", 6).await;
    assert_eq!(third.breaches().await, [breach("80", "80", "85"), breach("80", "80", "85")]);
    site.eventually("SELECT count(DISTINCT window_start) FROM meter_breach WHERE threshold_name = '80'", 2).await;
    // Per meter, and per day.
    let path = format!("/v1/meters/{}/breaches", first.meter);
    assert_eq!(first.client.get(&path).await.expect(200)["data"].as_array().map(Vec::len), Some(2));
    let days = first.client.get(&format!("{path}/daily?days=7")).await.expect(200);
    let counts: Vec<_> = days["data"].as_array().unwrap().iter().map(|day| day["count"].as_i64().unwrap()).collect();
    assert_eq!((counts.len(), counts.iter().sum::<i64>()), (7, 2), "{counts:?}");
    site.end().await;
}

/// thresholds-and-alerts.md, Vector 4: exact for reservations, soft at the door, until the window ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_ends_usage_of_the_window() {
    let site = Site::start().await;
    let shop = watched(&site, json!([threshold("cap", "100", json!({"kind": "BLOCK"}))])).await;
    shop.credit("100.00").await;
    let hold = shop.hold("90", "90").await;
    assert_eq!(shop.refused_reasons("promised", "20").await, json!(["USAGE_CAP_REACHED"]));
    let _ = shop.capture(&hold, json!({})).await.data(200);
    assert_eq!(shop.refused_reasons("20", "20").await, json!(["USAGE_CAP_REACHED"]), "would reach 110");
    // Exactly up to the limit is the last that may be used; a capture is never refused.
    let last = shop.hold("10", "10").await;
    assert_eq!(shop.refused_reasons("more", "0.1").await, json!(["USAGE_CAP_REACHED"]));
    let _ = shop.capture(&last, json!({})).await.data(200);
    let refused = shop.refused("USAGE_CAP_REACHED").await;
    assert_eq!((&refused["status"], &refused["blocked_until"]), (&json!(422), &json!("2026-02-01T00:00:00Z")));
    assert_eq!(shop.breaches().await, [breach("cap", "100", "100")]);
    let breaches = shop.client.get(&format!("/v1/meters/{}/breaches", shop.meter)).await.expect(200);
    let breach = &breaches["data"][0];
    assert!(breach["action_kind"] == json!("BLOCK") && breach["delivered_at"].is_string(), "{breach}");
    // Others are not touched, in one batch.
    let other = eighty_and_hundred(&site).await;
    let batch = json!({"events": [shop.event("x", "1", json!({})), other.event("y", "1", json!({}))]});
    let results = shop.client.post("/v1/usage-events", batch).await.data(202);
    assert_eq!((&results["accepted"], &results["rejected"]), (&json!(1), &json!(1)), "{results}");
    assert_eq!(results["results"][0]["error"]["code"], json!("USAGE_CAP_REACHED"));
    // The next window begins anew: what is late is refused by its timestamp, what is of the new window is not.
    shop.advance("2026-02-01T00:00:00Z").await;
    shop.post_event("late", "1", "2026-01-31T23:59:59Z").await.problem(422, "USAGE_CAP_REACHED");
    assert_eq!(shop.post_event("new", "1", "2026-02-01T00:00:00Z").await.data(202)["accepted"], json!(1));
    shop.advance("2026-02-03T00:00:00Z").await;
    site.eventually("SELECT count(*) FROM usage_block", 0).await;
    assert_eq!(shop.invoices().await[0]["total"]["value"], json!("10.00"));
    site.end().await;
}

/// A block of a sub-window ends with it; what a void takes back below a limit that re-arms lifts it, another limit stays.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_end_with_their_window_or_a_void() {
    let site = Site::start().await;
    let daily = Offer {
        meter: json!({
            "window": {"kind": "CALENDAR", "unit": "DAY"},
            "thresholds": [threshold("daily", "10", json!({"kind": "BLOCK"}))],
        }),
        ..Offer::default()
    };
    let daily = Shop::with(&site, daily).await;
    daily.send("today", "10").await;
    let refused = daily.refused("USAGE_CAP_REACHED").await;
    assert_eq!(refused["blocked_until"], json!("2026-01-02T00:00:00Z"));
    daily.advance("2026-01-02T00:00:00Z").await;
    let tomorrow = daily.post_event("tomorrow", "5", "2026-01-02T00:00:00Z").await;
    assert_eq!(tomorrow.data(202)["accepted"], json!(1));

    let block = |rearm: bool| json!([{"name": "cap", "value": "100", "rearm": rearm, "actions": [{"kind": "BLOCK"}]}]);
    let (again, once) = (watched(&site, block(true)).await, watched(&site, block(false)).await);
    for (shop, is_lifted) in [(&again, true), (&once, false)] {
        shop.send(&format!("a{is_lifted}"), "60").await;
        let taken = shop.send(&format!("b{is_lifted}"), "50").await;
        let _ = shop.refused("USAGE_CAP_REACHED").await;
        shop.void(&taken).await;
        site.eventually("SELECT count(*) FROM usage_void WHERE open", 0).await;
        if is_lifted {
            shop.taken().await;
            shop.send(&format!("c{is_lifted}"), "40").await;
            let _ = shop.refused("USAGE_CAP_REACHED").await;
            assert_eq!(shop.breaches().await, [breach("cap", "100", "110"), breach("cap", "100", "100")]);
        } else {
            let _ = shop.refused("USAGE_CAP_REACHED").await;
            shop.credit("10.00").await;
            assert_eq!(shop.refused_reasons("once", "1").await, json!(["USAGE_CAP_REACHED"]));
            assert_eq!(shop.breaches().await, [breach("cap", "100", "110")], "once per window");
        }
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_waits_as_mail() {
    let site = Site::start().await;
    let thresholds = json!([
        threshold("own", "5", json!({"kind": "NOTIFY"})),
        threshold("ops", "5", json!({"kind": "NOTIFY", "target": "ops@acme.example"})),
    ]);
    let shop = watched(&site, thresholds).await;
    shop.send("six", "6").await;
    site.eventually("SELECT count(*) FROM mail_outbox WHERE sent_at IS NULL AND template = 'meter_breach'", 2).await;
    let mails: Vec<(String, Value)> = sqlx::query_as(
        "SELECT recipient, payload || jsonb_build_object('breach', b.id = m.entity_id AND b.delivered_at IS NULL)
         FROM mail_outbox m JOIN meter_breach b USING (id) ORDER BY recipient",
    )
    .fetch_all(site.api.app.store.pool())
    .await
    .unwrap();
    let shown: Vec<_> =
        mails.iter().map(|(to, mail)| (to.as_str(), &mail["threshold_name"], &mail["breach"])).collect();
    let (own, ops, yes) = (json!("own"), json!("ops"), json!(true));
    assert_eq!(shown, [("a@acme.example", &own, &yes), ("ops@acme.example", &ops, &yes)]);
    assert_eq!(mails[0].1["observed_value"], json!("6"));
    let bad = json!({"key": "bad", "name": "Bad", "metric_key": "units", "function": "SUM",
        "thresholds": [threshold("t", "5", json!({"kind": "NOTIFY", "target": "nobody"}))]});
    let fields = shop.client.post("/v1/meters", bad).await.bad_fields();
    assert_eq!(fields, [("thresholds[0].actions[0].target".to_owned(), "INVALID_FORMAT".to_owned())]);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_caps_are_set_and_read() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    let path = format!("/v1/subscriptions/{}/usage-caps", shop.subscription);
    let euros = |value: &str, currency: &str| json!({"value": value, "currency": currency});
    assert_eq!(shop.client.get(&path).await.data(200)["caps"], json!([]));
    let caps = json!([
        shop.cap("BLOCK", "limit_quantity", json!("100.50")),
        shop.cap("NOTIFY", "limit_amount", euros("5.00", "EUR")),
    ]);
    let set = shop.set_caps(caps).await.data(200);
    assert_eq!(set["subscription_id"], json!(shop.subscription));
    assert_eq!((&set["caps"][0]["limit_quantity"], &set["caps"][0]["limit_amount"]), (&json!("100.5"), &Value::Null));
    assert_eq!(set["caps"][1]["limit_amount"], euros("5.00", "EUR"));
    assert_eq!(shop.client.get(&path).await.data(200), set);
    // Every bad field at once.
    let bad = json!([
        {"product_id": "x", "metric_key": "", "limit_quantity": "0", "action": "STOP"},
        {"product_id": shop.product, "metric_key": "units", "action": "BLOCK"},
        {"product_id": shop.product, "metric_key": "units", "limit_quantity": "1", "limit_amount": euros("1.00", "EUR"), "action": "BLOCK"},
        {"product_id": shop.product, "metric_key": "units", "limit_amount": euros("1000000000000000.00", "EUR"), "action": "BLOCK", "x": 1},
    ]);
    let fields: Vec<_> = shop.set_caps(bad).await.bad_fields().into_iter().map(|(f, c)| format!("{f} {c}")).collect();
    let expected = [
        "caps[0].product_id INVALID_FORMAT",
        "caps[0].metric_key OUT_OF_RANGE",
        "caps[0].limit_quantity OUT_OF_RANGE",
        "caps[0].action INVALID_ENUM",
        "caps[1].limit_quantity REQUIRED",
        "caps[2].limit_amount NOT_ALLOWED",
        "caps[3].limit_amount OUT_OF_RANGE",
        "caps[3].x UNKNOWN_FIELD",
    ];
    assert_eq!(fields, expected);
    let cap = shop.cap("BLOCK", "limit_quantity", json!("1"));
    let twice = shop.set_caps(json!([cap, shop.cap("BLOCK", "limit_quantity", json!("1.0"))])).await.bad_fields();
    assert_eq!(twice, [("caps[1]".to_owned(), "NOT_ALLOWED".to_owned())]);
    // What no meter bills, another currency, and what is not there.
    let mut other = shop.cap("BLOCK", "limit_amount", euros("1.00", "USD"));
    other["metric_key"] = json!("other");
    let refused = shop.set_caps(json!([other])).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let fields: Vec<_> = refused["fields"].as_array().unwrap().iter().map(|field| &field["field"]).collect();
    assert_eq!(fields, [&json!("caps[0].metric_key"), &json!("caps[0].limit_amount.currency")]);
    let mut absent = shop.cap("BLOCK", "limit_quantity", json!("1"));
    absent["product_id"] = json!(shop.customer);
    shop.set_caps(json!([absent])).await.problem(404, "NOT_FOUND");
    assert_eq!(shop.client.get(&path).await.data(200), set, "a refused call changes nothing");
    // Another tenant.
    for stranger in [&site.api.other_sandbox, &site.api.live] {
        stranger.get(&path).await.problem(404, "NOT_FOUND");
        stranger.put(&path, json!({"caps": []})).await.problem(404, "NOT_FOUND");
    }
    site.end().await;
}

/// A cap below what is used already holds at once; raising or removing it, or a void, lifts it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cap_holds_as_long_as_it_is_reached() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    shop.credit("100.00").await;
    shop.send("a", "70").await;
    let last = shop.send("b", "50").await;
    site.eventually("SELECT event_count FROM usage_window", 2).await;
    let block = |limit: &str| json!([shop.cap("BLOCK", "limit_quantity", json!(limit))]);
    let _ = shop.set_caps(block("100")).await.data(200);
    assert_eq!(shop.refused_reasons("r1", "1").await, json!(["USAGE_CAP_REACHED"]), "exact, without a wait");
    let _ = shop.refused("USAGE_CAP_REACHED").await;
    assert_eq!(shop.breaches().await, [breach("usage_cap", "100", "120")]);
    // Raised.
    let _ = shop.set_caps(block("130")).await.data(200);
    let hold = shop.hold("r2", "10").await;
    let _ = shop.release(&hold).await.data(200);
    assert_eq!(shop.refused_reasons("r3", "11").await, json!(["USAGE_CAP_REACHED"]));
    shop.taken().await;
    // By amount: 12.00 are used.
    let by_amount =
        |limit: &str| json!([shop.cap("BLOCK", "limit_amount", json!({"value": limit, "currency": "EUR"}))]);
    let _ = shop.set_caps(by_amount("12.50")).await.data(200);
    shop.taken().await;
    assert_eq!(shop.refused_reasons("r4", "6").await, json!(["USAGE_CAP_REACHED"]));
    let _ = shop.set_caps(by_amount("11.99")).await.data(200);
    let _ = shop.refused("USAGE_CAP_REACHED").await;
    assert_eq!(shop.breaches().await[1], breach("usage_cap_amount", "11.99", "12"));
    // A void brings it below.
    shop.void(&last).await;
    shop.taken().await;
    shop.send("c", "60").await;
    let _ = shop.refused("USAGE_CAP_REACHED").await;
    assert_eq!(shop.breaches().await[2], breach("usage_cap_amount", "11.99", "13"));
    // Removed.
    let _ = shop.set_caps(json!([])).await.data(200);
    shop.taken().await;
    site.eventually("SELECT count(*) FROM usage_block", 0).await;
    shop.hold("r5", "1").await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_that_notify_refuse_nothing() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    shop.credit("100.00").await;
    let caps = json!([
        shop.cap("NOTIFY", "limit_quantity", json!("80")),
        shop.cap("NOTIFY", "limit_quantity", json!("50")),
        shop.cap("BLOCK", "limit_quantity", json!("1000")),
    ]);
    let _ = shop.set_caps(caps).await.data(200);
    shop.send("a", "100").await;
    site.eventually("SELECT count(*) FROM mail_outbox WHERE recipient = 'a@acme.example'", 2).await;
    let mut told = shop.breaches().await;
    told.sort();
    assert_eq!(told, [breach("usage_cap", "50", "100"), breach("usage_cap", "80", "100")]);
    shop.taken().await;
    shop.hold("r", "10").await;
    site.end().await;
}

/// Rule D1: whatever comes at once, a cap is never passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_parallel_reserves_never_pass_a_cap() {
    let site = Site::start().await;
    let shop = Shop::open(&site).await;
    shop.credit("1000.00").await;
    let _ = shop.set_caps(json!([shop.cap("BLOCK", "limit_quantity", json!("250"))])).await.data(200);
    let held = shop.reserve_at_once(1_000, "USAGE_CAP_REACHED").await;
    assert_eq!((held, shop.balances().await.as_str()), (250, "1000.00 / 25.00 / 975.00"));
    site.end().await;
}

const ALERTS: &str = "SELECT count(*) FROM outbox WHERE event_type LIKE 'allowance.%'";

async fn alerts(site: &Site, shop: &Shop) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT concat_ws(' ', event_type, payload ->> 'percent', payload ->> 'used_quantity', payload ->> 'total_quantity')
         FROM outbox WHERE event_type LIKE 'allowance.%' AND entity_id = $1 ORDER BY id",
    )
    .bind(uuid::Uuid::parse_str(&shop.subscription).unwrap())
    .fetch_all(site.api.app.store.pool())
    .await
    .unwrap()
}

/// allowances.md 5.1 rule 11: once per window, in order, all that one event passes.
#[tokio::test(flavor = "multi_thread")]
async fn used_allowances_are_told_once() {
    let site = Site::start().await;
    let shop = Shop::with(&site, Offer { included: "100", ..Offer::default() }).await;
    shop.send("a", "79.9").await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    assert_eq!(site.number(ALERTS).await, 0);
    let last = shop.send("b", "5.1").await;
    site.eventually(ALERTS, 1).await;
    assert_eq!(alerts(&site, &shop).await, ["allowance.threshold_reached 80 85 100"]);
    shop.void(&last).await;
    site.eventually("SELECT count(*) FROM usage_void WHERE open", 0).await;
    shop.send("c", "25.1").await;
    site.eventually(ALERTS, 3).await;
    let told = [
        "allowance.threshold_reached 80 85 100",
        "allowance.threshold_reached 100 105 100",
        "allowance.exhausted 105 100",
    ];
    assert_eq!(alerts(&site, &shop).await, told, "80 percent are told once");
    shop.send("d", "1").await;
    // The next window begins anew, and one event may pass all of them.
    shop.advance("2026-02-01T00:00:00Z").await;
    assert_eq!(shop.post_event("e", "120", "2026-02-01T00:00:00Z").await.data(202)["accepted"], json!(1));
    site.eventually(ALERTS, 6).await;
    let jump = [
        "allowance.threshold_reached 80 120 100",
        "allowance.threshold_reached 100 120 100",
        "allowance.exhausted 120 100",
    ];
    assert_eq!(alerts(&site, &shop).await[3..], jump);
    let payload: Value =
        sqlx::query_scalar("SELECT payload FROM outbox WHERE event_type = 'allowance.exhausted' LIMIT 1")
            .fetch_one(site.api.app.store.pool())
            .await
            .unwrap();
    let of = |name: &str| payload[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (of("customer_id"), of("product_id"), of("metric_key")),
        (shop.customer.clone(), shop.product.clone(), "units".into())
    );
    assert!(of("window_start").starts_with("2026-0") && of("window_end").starts_with("2026-0"));
    // Without an allowance there is nothing to tell.
    let bare = Shop::open(&site).await;
    bare.send("bare", "100").await;
    site.eventually("SELECT count(*) FROM usage_event", 6).await;
    assert_eq!(alerts(&site, &bare).await, [""; 0]);
    site.end().await;
}

/// allowances.md 5.1 rules 6 and 7.
#[tokio::test(flavor = "multi_thread")]
async fn an_allowance_may_end_usage() {
    let site = Site::start().await;
    let shop = ending_at_hundred(&site).await;
    shop.credit("10.00").await;
    shop.send("a", "60").await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    assert_eq!(shop.refused_reasons("r1", "41").await, json!(["ALLOWANCE_EXHAUSTED"]));
    let hold = shop.hold("r2", "40").await;
    assert_eq!(shop.refused_reasons("r3", "1").await, json!(["ALLOWANCE_EXHAUSTED"]));
    let _ = shop.release(&hold).await.data(200);
    let last = shop.send("b", "40").await;
    let refused = shop.refused("ALLOWANCE_EXHAUSTED").await;
    assert_eq!(refused["blocked_until"], json!("2026-02-01T00:00:00Z"));
    // Its quantity comes back to the allowance.
    shop.void(&last).await;
    shop.taken().await;
    shop.hold("r4", "40").await;
    // A new period has a new allowance.
    shop.advance("2026-02-01T00:00:00Z").await;
    assert_eq!(shop.post_event("c", "1", "2026-02-01T00:00:00Z").await.data(202)["accepted"], json!(1));
    shop.advance("2026-02-03T00:00:00Z").await;
    assert_eq!(shop.invoices().await[0]["total"]["value"], json!("0.00"));
    site.end().await;
}
