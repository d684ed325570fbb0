//! Guards: wallet money on an invoice that the ledger of payments does not know, or knows twice, and that cannot be given back
//! (transactions.md 4, refunds.md 4).

use domain::{Error, InvoiceId, WalletId};
use payments::Payments;
use payments::charge::Attempt;
use payments::refund::RefundInvoiceRequest;
use payments::transaction::{self, Transaction};
use serde_json::{Value, json};

use crate::fixture::World;

impl World {
    /// What moved for an invoice, the newest first.
    pub async fn movements(&self, id: InvoiceId) -> Vec<Transaction> {
        let mut conn = self.store.pool().acquire().await.unwrap();
        transaction::list_of_invoice(&self.scope, &mut conn, id, None, &[]).await.unwrap().data
    }

    async fn refund(&self, payments: &Payments, id: InvoiceId, body: Value) -> domain::Result<()> {
        let request = RefundInvoiceRequest::read(&body)?;
        let mut tx = self.store.begin("refund").await?;
        let ordered = payments.refund_invoice(&self.scope, &mut tx, id, &request).await;
        let ordered = tx.end(ordered).await?.value;
        payments.proceed_with_refund(&self.scope, &ordered, Attempt::First).await.map(drop)
    }

    async fn cash(&self, wallet: WalletId) -> String {
        let wallet = ledger::wallet::get(&self.scope, &self.store, wallet).await.unwrap().wallet;
        wallet.cash_balance.amount().to_string()
    }
}

fn eur(value: &str) -> Value {
    json!({"value": value, "currency": "EUR"})
}

/// Kind, status and amount of each movement.
fn shown(movements: &[Transaction]) -> Vec<String> {
    movements.iter().map(|row| format!("{} {} {}", row.kind, row.status, row.amount)).collect()
}

#[tokio::test]
async fn what_a_wallet_pays_is_a_payment_of_the_invoice() {
    let world = World::new("2026-01-31").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    for (cash, paid) in [("100.00", Some("31.00")), ("10.50", Some("10.50")), ("0.01", Some("0.01")), ("", None)] {
        let customer = world.customer().await;
        let wallet = if cash.is_empty() { None } else { Some(world.wallet(customer, cash).await) };
        let id = world.try_subscribe(customer, plan, json!({})).await.unwrap().subscription.id;
        world.settle().await;
        world.settle().await;
        let invoice = world.invoices(id).await.remove(0).invoice;
        let movements = world.movements(invoice.id).await;
        let expected: Vec<_> = paid.iter().map(|paid| format!("WALLET_PAYMENT SUCCEEDED {paid} EUR")).collect();
        assert_eq!(shown(&movements), expected, "with {cash}");
        for row in movements {
            assert_eq!((row.wallet_id, row.subscription_id, row.customer_id), (wallet, Some(id), customer));
            assert_eq!((row.direction.as_str(), row.processed_at), ("INBOUND", invoice.finalized_at));
        }
    }
    world.assert_verified().await;
}

#[tokio::test]
async fn an_invoice_that_wallets_alone_paid_can_be_refunded() {
    let world = World::new("2026-01-31").await;
    let payments = world.payments().await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let customer = world.customer().await;
    let wallet = world.wallet(customer, "100.00").await;
    let id = world.try_subscribe(customer, plan, json!({})).await.unwrap().subscription.id;
    world.settle().await;
    let invoice = world.invoices(id).await.remove(0).invoice.id;
    let refused = world.refund(&payments, invoice, json!({"amount": eur("5.00")})).await.unwrap_err();
    let Error::Rule { extensions, .. } = &refused else { panic!("{refused}") };
    assert_eq!((refused.code(), &extensions["not_through_gateway"]), ("BUSINESS_RULE_VIOLATION", &eur("5.00")));
    let part = json!({"amount": eur("11.00"), "destination": "MANUAL"});
    world.refund(&payments, invoice, part).await.unwrap();
    assert_eq!(world.cash(wallet).await, "69.00", "by hand");
    world.refund(&payments, invoice, json!({"destination": "WALLET"})).await.unwrap();
    assert_eq!(world.cash(wallet).await, "89.00");
    for destination in ["WALLET", "MANUAL", "GATEWAY"] {
        let more = json!({"amount": eur("0.01"), "destination": destination});
        let refused = world.refund(&payments, invoice, more).await.unwrap_err();
        assert_eq!(refused.code(), "REFUND_EXCEEDS_PAID", "{destination}");
    }
    let shown = shown(&world.movements(invoice).await);
    assert!(shown.contains(&"WALLET_PAYMENT REFUNDED 31.00 EUR".to_owned()), "{shown:?}");
    assert_eq!(shown.len(), 3, "{shown:?}");
    let paid = world.invoices(id).await.remove(0).invoice;
    assert_eq!((paid.status.as_str(), paid.amount_paid.is_zero()), ("paid", true), "paid is terminal");
    let sums: Vec<(String, rust_decimal::Decimal)> = sqlx::query_as(
        "SELECT kind, sum(amount) FROM ledger_entry JOIN ledger_account account ON account.id = account_id
         WHERE kind IN ('receivable', 'revenue', 'manual_clearing') GROUP BY kind ORDER BY kind",
    )
    .fetch_all(world.store.pool())
    .await
    .unwrap();
    let sums: Vec<_> = sums.iter().map(|(kind, sum)| format!("{kind} {}", sum.normalize())).collect();
    assert_eq!(sums, ["manual_clearing 89", "receivable 0", "revenue 0"], "100.00 came by hand, 11.00 went");
    world.assert_verified().await;
}

/// The newest payment goes back first, and that is the charge: wallets pay before.
#[tokio::test]
async fn of_a_wallet_and_a_card_the_card_is_refunded_first() {
    let world = World::new("2026-01-01").await;
    let payments = world.payments().await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "100.00").await, "0")]).await;
    let customer = world.customer().await;
    let wallet = world.wallet(customer, "30.00").await;
    let id = world.try_subscribe(customer, plan, json!({})).await.unwrap().subscription.id;
    world.card(id).await;
    world.advance("2026-01-02").await;
    assert_eq!(payments.sweep(domain::Clock::System.now()).await.unwrap().charges, 1);
    let invoice = world.invoices(id).await.remove(0).invoice.id;
    let refused = world.refund(&payments, invoice, json!({})).await.unwrap_err();
    assert!(refused.to_string().contains("30.00 EUR of it did not come through a gateway"), "{refused}");
    world.refund(&payments, invoice, json!({"amount": eur("70.00")})).await.unwrap();
    world.refund(&payments, invoice, json!({"destination": "WALLET"})).await.unwrap();
    assert_eq!(world.cash(wallet).await, "30.00");
    world.assert_verified().await;
}
