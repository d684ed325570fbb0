//! Currencies without cents and with a thousand of them (JPY, KWD): price, usage, reservation, wallet, invoice.

use serde_json::{Value, json};

use crate::fixture::{Offer, Shop, Site};

const COUNTED: &str = "SELECT count(*) FROM usage_event";

#[tokio::test(flavor = "multi_thread")]
async fn amounts_have_the_places_of_their_currency() {
    for (currency, unit, credit, estimated, available, held, left) in [
        ("JPY", "0.35", "1000", "4", "1000 / 0 / 996", "1000 / 35 / 961", "1000 / 0 / 996"),
        ("KWD", "0.00375", "5.5", "0.038", "5.500 / 0.000 / 5.462", "5.500 / 0.375 / 5.087", "5.500 / 0.000 / 5.462"),
    ] {
        let site = Site::start().await;
        let tiers = json!([{"tier_order": 1, "up_to": null, "unit_amount": unit, "flat_amount": "0"}]);
        let shop = Shop::with(&site, Offer { currency, tiers, ..Offer::default() }).await;
        shop.credit(credit).await;
        let too_fine = json!({"amount": {"value": "1.0005", "currency": currency}});
        let refused = shop.client.post(&format!("/v1/wallets/{}/credit", shop.wallet), too_fine).await.bad_fields();
        assert_eq!(refused, [("amount.value".to_owned(), "OUT_OF_RANGE".to_owned())]);
        shop.send("e", "10").await; // 3.5 and 0.0375: rounded half up
        site.eventually(COUNTED, 1).await;
        assert_eq!(shop.used().await, Some(("10".into(), 1, estimated.into())));
        assert_eq!(shop.balances().await, available, "{currency}");
        let hold = shop.hold("h", "100").await;
        assert_eq!(shop.balances().await, held, "{currency}");
        let _ = shop.release(&hold).await;
        assert_eq!(shop.balances().await, left, "{currency}");
        shop.advance("2026-02-02T00:00:00Z").await;
        let invoice = shop.invoices().await.remove(0);
        let amount = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        assert_eq!((&invoice["currency"], &invoice["status"]), (&json!(currency), &json!("paid")));
        for found in [&invoice["total"], &invoice["amount_paid"], &invoice["lines"][0]["amount"]] {
            assert_eq!(amount(found), estimated, "{currency}");
        }
        assert_eq!(invoice["lines"][0]["unit_amount"].as_str(), Some(unit), "unit rates keep their own places");
        assert_eq!(invoice["lines"][0]["fx_rate"], Value::Null, "nothing was converted");
        let zero = if currency == "JPY" { "0" } else { "0.000" };
        let cash = left.rsplit(" / ").next().unwrap_or_default();
        assert_eq!(shop.balances().await, format!("{cash} / {zero} / {cash}"));
        site.end().await;
    }
}

/// Usage that is pinned to a wallet of another currency is accrued there while it is counted, and drawn from it.
#[tokio::test(flavor = "multi_thread")]
async fn pinned_usage_counts_on_a_wallet_of_another_currency() {
    let site = Site::start().await;
    let today = domain::Clock::System.now().date_naive();
    for date in [today, "2026-01-30".parse().unwrap()] {
        let day = currency::feed::Day { date, rates: vec![(domain::Currency::USD, "1.25".parse().unwrap())] };
        let mut conn = site.api.app.store.pool().acquire().await.unwrap();
        currency::snapshot::keep(&mut conn, "ECB", &[day], domain::Clock::System.now()).await.unwrap();
    }
    let shop = Shop::open(&site).await;
    let pinned = async |key: &str, quantity: &str| {
        let event = shop.event(key, quantity, json!({"wallet_currency": "USD"}));
        assert_eq!(shop.client.post("/v1/usage-events", event).await.data(202)["accepted"], json!(1));
    };
    pinned("a", "100").await; // 10.00 EUR
    site.eventually(COUNTED, 1).await;
    let wallet = json!({"customer_id": shop.customer, "currency": "USD"});
    let wallet = format!("/v1/wallets/{}", api::testing::id(&shop.client.post("/v1/wallets", wallet).await.data(201)));
    let credit = json!({"amount": {"value": "20.00", "currency": "USD"}});
    let _ = shop.client.post(&format!("{wallet}/credit"), credit).await.data(201);
    let of = async |name: &str| shop.client.get(&wallet).await.data(200)[name]["value"].as_str().unwrap().to_owned();
    assert_eq!(
        (of("accrued_balance").await, of("available_balance").await),
        ("12.50".into(), "7.50".into()),
        "taken over"
    );
    pinned("b", "20").await;
    site.eventually(COUNTED, 2).await;
    assert_eq!((of("accrued_balance").await, of("available_balance").await), ("15.00".into(), "5.00".into()));
    assert_eq!(shop.balances().await, "0.00 / 0.00 / 0.00", "the primary wallet has nothing to do with it");
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!((&invoice["status"], &invoice["total"]["value"]), (&json!("paid"), &json!("12.00")));
    assert_eq!((of("cash_balance").await, of("accrued_balance").await), ("5.00".into(), "0.00".into()));
    site.end().await;
}

/// A customer with a wallet of 20.00 USD beside the one in euros.
struct Traveller {
    shop: Shop,
    wallet: String,
}

impl Traveller {
    async fn with(site: &Site, offer: Offer<'_>) -> Self {
        let shop = Shop::with(site, offer).await;
        let wallet = json!({"customer_id": shop.customer, "currency": "USD"});
        let wallet =
            format!("/v1/wallets/{}", api::testing::id(&shop.client.post("/v1/wallets", wallet).await.data(201)));
        let credit = json!({"amount": {"value": "20.00", "currency": "USD"}});
        let _ = shop.client.post(&format!("{wallet}/credit"), credit).await.data(201);
        Self { shop, wallet }
    }

    async fn reserve(&self, key: &str, quantity: &str) -> api::testing::Reply {
        let body = self.shop.reservation(key, quantity, json!({"wallet_currency": "USD"}));
        self.shop.client.post("/v1/transaction/reserve", body).await
    }

    async fn dollars(&self) -> String {
        let wallet = self.shop.client.get(&self.wallet).await.data(200);
        let of = |name: &str| wallet[name]["value"].as_str().unwrap().to_owned();
        format!("{} / {} / {}", of("cash_balance"), of("held_balance"), of("available_balance"))
    }

    async fn rate(&self, rate: &str, from: &str) {
        let rate = json!({"source_currency": "EUR", "target_currency": "USD", "rate": rate, "valid_from": from});
        let _ = self.shop.client.post("/v1/fx/overrides", rate).await.data(201);
    }
}

async fn sum_of(site: &Site, kind: &'static str, currency: &str) -> String {
    let sum: Option<sqlx::types::Decimal> = sqlx::query_scalar(
        "SELECT sum(e.amount) FROM ledger_entry e JOIN ledger_account a ON a.id = e.account_id
         WHERE a.kind = $1 AND a.currency = $2",
    )
    .bind(kind)
    .bind(currency)
    .fetch_one(site.api.app.store.pool())
    .await
    .unwrap();
    sum.unwrap_or_default().normalize().to_string()
}

/// reserve.md 5, Amount held, and fx.md 4: converted at the rate of the reservation, which the capture keeps.
#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_on_a_wallet_of_another_currency_keeps_its_rate() {
    let site = Site::start().await;
    let traveller = Traveller::with(&site, Offer::default()).await;
    let (shop, client) = (&traveller.shop, &traveller.shop.client);
    traveller.reserve("too early", "100").await.problem(422, "FX_RATE_NOT_FOUND");
    traveller.rate("1.25", "2026-01-01T00:00:00Z").await;
    let held = traveller.reserve("first", "100").await.expect(201);
    let amount = |name: &str| (held[name]["value"].as_str().unwrap_or_default(), held[name]["currency"].as_str());
    assert_eq!((amount("net_amount"), amount("held_amount")), (("10.00", Some("EUR")), ("12.50", Some("USD"))));
    assert_eq!((&held["resolved_currency"], amount("available_after").0), (&json!("EUR"), "7.50"));
    let rates = client.get("/v1/fx/overrides").await.expect(200);
    assert_eq!(held["fx_rate_id"], rates["data"][0]["id"]);
    let blocked = traveller.reserve("second", "100").await.expect(200);
    assert_eq!(blocked["blocked_reasons"], json!(["INSUFFICIENT_FUNDS"]));
    // Twice as much for what comes later; the hold and its capture have their rate.
    traveller.rate("2.5", "2026-01-01T00:00:00Z").await;
    let done = shop.capture(held["hold_id"].as_str().unwrap(), json!({"quantity": "60"})).await.data(200);
    assert_eq!(
        (&done["captured_amount"]["value"], &done["released_amount"]["value"]),
        (&json!("7.50"), &json!("5.00"))
    );
    let movements = client.get(&format!("{}/transactions", traveller.wallet)).await.expect(200);
    assert_eq!(movements["data"][0]["metadata"]["fx_rate"], json!("1.25"));
    site.eventually(COUNTED, 1).await;
    // Six euros are counted and paid: nothing is accrued of them.
    assert_eq!(traveller.dollars().await, "12.50 / 0.00 / 12.50");
    let held = traveller.reserve("third", "10").await.expect(201);
    assert_eq!(held["held_amount"]["value"], json!("2.50"));
    let _ = shop.capture(held["hold_id"].as_str().unwrap(), json!({})).await.data(200);
    site.eventually(COUNTED, 2).await;
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    let paid = [&invoice["status"], &invoice["total"]["value"], &invoice["amount_paid"]["value"]];
    assert_eq!(paid, [&json!("paid"), &json!("7.00"), &json!("7.00")]);
    assert_eq!(traveller.dollars().await, "10.00 / 0.00 / 10.00", "nobody pays twice");
    let open = [sum_of(&site, "captured_usage", "USD").await, sum_of(&site, "receivable", "EUR").await];
    assert_eq!(open, ["0", "0"]);
    let exchanged = [sum_of(&site, "fx", "USD").await, sum_of(&site, "fx", "EUR").await];
    assert_eq!(exchanged, ["-10", "7"]);
    site.end().await;
}

/// What captures took and no invoice shows goes back in proportion to what was paid for it, to the last cent.
#[tokio::test(flavor = "multi_thread")]
async fn captures_in_another_currency_give_back_what_is_over() {
    let site = Site::start().await;
    let tiers = json!([
        {"tier_order": 1, "up_to": "100", "unit_amount": "0.10", "flat_amount": "0"},
        {"tier_order": 2, "up_to": null, "unit_amount": "0.05", "flat_amount": "0"},
    ]);
    let traveller = Traveller::with(&site, Offer { tiers, model: "VOLUME", ..Offer::default() }).await;
    let shop = &traveller.shop;
    traveller.rate("1.25", "2026-01-01T00:00:00Z").await;
    for (key, quantity, amount) in [("first", "100", "12.50"), ("second", "10", "0.00")] {
        let held = traveller.reserve(key, quantity).await.expect(201);
        assert_eq!(held["held_amount"]["value"], json!(amount), "110 units cost less than 100");
        let _ = shop.capture(held["hold_id"].as_str().unwrap(), json!({})).await.data(200);
    }
    site.eventually(COUNTED, 2).await;
    shop.advance("2026-02-02T00:00:00Z").await;
    let invoice = shop.invoices().await.remove(0);
    assert_eq!((&invoice["status"], &invoice["amount_paid"]["value"]), (&json!("paid"), &json!("5.50")));
    // 12.50 × 5.50 ÷ 10.00 = 6.875 have paid it: 5.62 come back.
    assert_eq!(traveller.dollars().await, "13.12 / 0.00 / 13.12");
    let open = [sum_of(&site, "captured_usage", "USD").await, sum_of(&site, "receivable", "EUR").await];
    assert_eq!(open, ["0", "0"]);
    site.end().await;
}

/// Where the organization converts nothing, nothing is held.
#[tokio::test(flavor = "multi_thread")]
async fn without_conversions_there_is_no_reservation_in_another_currency() {
    let site = Site::start().await;
    let traveller = Traveller::with(&site, Offer::default()).await;
    traveller.rate("1.25", "2026-01-01T00:00:00Z").await;
    let none = json!({"settings": {"fx_policy": "none"}});
    let _ = traveller.shop.client.put("/v1/organization-settings", none).await.expect(200);
    traveller.reserve("first", "100").await.problem(422, "FX_RATE_NOT_FOUND");
    assert_eq!(traveller.dollars().await, "20.00 / 0.00 / 20.00");
    site.end().await;
}
