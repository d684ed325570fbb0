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
