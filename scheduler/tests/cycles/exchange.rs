//! Guards: usage that is pinned to a wallet of another currency drawn at the wrong rate, twice, or out of the books (fx.md 4).

use currency::feed::Day;
use domain::{Currency, WalletId};
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::fixture::{World, at};

async fn publish(world: &World, date: &str, dollars: &str) {
    let day = Day { date: date.parse().unwrap(), rates: vec![(Currency::USD, dollars.parse().unwrap())] };
    let mut conn = world.store.pool().acquire().await.unwrap();
    currency::snapshot::keep(&mut conn, "ECB", &[day], at("2026-01-01")).await.unwrap();
}

async fn cash(world: &World, wallet: WalletId) -> String {
    let cash: Decimal = sqlx::query_scalar("SELECT cash_balance FROM wallet WHERE id = $1")
        .bind(wallet)
        .fetch_one(world.store.pool())
        .await
        .unwrap();
    domain::Money::new(cash, Currency::USD).unwrap().amount().to_string()
}

#[tokio::test]
async fn pinned_usage_is_drawn_at_the_rate_of_the_policy() {
    for (policy, had, left, paid, due, rate) in [
        ("invoice_issue", "200.00", "91.47", "100.00", "0.00", Some("1.0853")),
        // As much as there is: 50.00 ÷ 1.0853 = 46.0702…
        ("invoice_issue", "50.00", "0.00", "46.07", "53.93", Some("1.0853")),
        ("period_start", "300.00", "100.00", "100.00", "0.00", Some("2")),
        ("per_segment", "300.00", "100.00", "100.00", "0.00", Some("2")),
        ("none", "200.00", "200.00", "0.00", "100.00", None),
    ] {
        let world = World::with("2026-01-01", "UTC", json!({"usage_grace_period": "0", "fx_policy": policy})).await;
        publish(&world, "2025-12-31", "2").await;
        publish(&world, "2026-01-30", "1.0853").await;
        let units = world.product("USAGE", "1").await;
        let plan = world.plan(&[(units, "0")]).await;
        let customer = world.customer().await;
        let wallet = world.wallet_in(customer, Currency::USD, had).await;
        let id = world.try_subscribe(customer, plan, json!({})).await.unwrap().subscription.id;
        world.db_usage(id, &[("2026-01-06", units, "100", Some(Currency::USD))]).await;
        world.advance("2026-02-02").await;
        let invoice = world.invoices(id).await.remove(0).invoice;
        let found = [invoice.total, invoice.amount_paid, invoice.amount_due].map(|money| money.to_string());
        assert_eq!(found, ["100.00 EUR".to_owned(), format!("{paid} EUR"), format!("{due} EUR")], "{policy} {had}");
        assert_eq!(cash(&world, wallet).await, left, "{policy} {had}");
        let pinned: Vec<(Value,)> = sqlx::query_as("SELECT metadata FROM wallet_transaction WHERE source = 'INVOICE'")
            .fetch_all(world.store.pool())
            .await
            .unwrap();
        let pinned: Vec<_> = pinned.iter().map(|(metadata,)| metadata["fx_rate"].as_str().unwrap()).collect();
        assert_eq!(pinned, rate.into_iter().collect::<Vec<_>>(), "{policy}");
        // One payment, in the invoice's currency, at however many rates it was drawn.
        let payments: Vec<_> = world.movements(invoice.id).await.iter().map(|row| row.amount.to_string()).collect();
        let expected: Vec<_> = rate.iter().map(|_| format!("{paid} EUR")).collect();
        assert_eq!(payments, expected, "{policy} {had}");
        let report = ledger::verify(&world.store, &mut |_| {}).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.differences);
    }
}

/// Without a rate the invoice is finalized all the same, and stays to be paid.
#[tokio::test]
async fn without_a_rate_nothing_is_drawn() {
    let world = World::with("2026-01-01", "UTC", json!({"usage_grace_period": "0"})).await;
    publish(&world, "2026-01-20", "1.0853").await; // twelve days before the invoice
    let units = world.product("USAGE", "1").await;
    let plan = world.plan(&[(units, "0")]).await;
    let customer = world.customer().await;
    let wallet = world.wallet_in(customer, Currency::USD, "200.00").await;
    let id = world.try_subscribe(customer, plan, json!({})).await.unwrap().subscription.id;
    world.db_usage(id, &[("2026-01-06", units, "100", Some(Currency::USD))]).await;
    world.advance("2026-02-02").await;
    assert_eq!(world.bills(id).await, [(at("2026-02-01"), "100.00 EUR".to_owned(), "finalized".to_owned())]);
    assert_eq!(cash(&world, wallet).await, "200.00");
}
