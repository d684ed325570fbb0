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
