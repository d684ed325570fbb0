//! Guards: a finalized invoice that nobody charges, a subscription that stays in dunning although everything is paid, and usage that is
//! charged again because its money was given back (payment-methods.md 4, manual-payments.md 4, refunds.md 4).

use billing::due::{DueKind, plan_windows};
use domain::{Clock, InvoiceId, SubscriptionId};
use payments::charge::Attempt;
use payments::gateway::{self, CreatePaymentGatewayConfigRequest};
use payments::manual::{self, RecordManualPaymentRequest};
use payments::method::{self, CreatePaymentMethodRequest};
use payments::refund::RefundInvoiceRequest;
use payments::{Endpoints, Payments, Vault};
use serde_json::{Value, json};

use crate::fixture::{World, at};

impl World {
    /// A gateway of the sandbox, where every payment is simulated.
    pub async fn payments(&self) -> Payments {
        let payments = Payments::new(self.store.clone(), Vault::ephemeral().unwrap(), Endpoints::default());
        let body = json!({"provider": "stripe", "mode": "test", "config": {"api_key": "sk"}});
        let request = CreatePaymentGatewayConfigRequest::read(&body).unwrap();
        let mut tx = self.store.begin("gateway").await.unwrap();
        gateway::create(&self.scope, &mut tx, &payments.vault, &request).await.unwrap();
        tx.commit().await.unwrap();
        payments
    }

    /// A card of the subscription's customer.
    pub async fn card(&self, id: SubscriptionId) {
        let customer = self.subscription(id).await.subscription.customer_id;
        let body = json!({"customer_id": customer, "type": "CREDIT_CARD", "provider": "stripe", "provider_id": "pm_1"});
        let mut tx = self.store.begin("method").await.unwrap();
        let request = CreatePaymentMethodRequest::read(&body).unwrap();
        method::create(&self.scope, &mut tx, &request).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn record(&self, id: InvoiceId, body: Value) {
        let request = RecordManualPaymentRequest::read(&body).unwrap();
        let mut tx = self.store.begin("record").await.unwrap();
        manual::record(&self.scope, &mut tx, id, &request).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub async fn assert_verified(&self) {
        let report = ledger::verify(&self.store, &mut |_| {}).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.differences);
    }
}

fn eur(value: &str) -> Value {
    json!({"value": value, "currency": "EUR"})
}

#[tokio::test]
async fn what_wallets_do_not_pay_is_charged() {
    let world = World::new("2026-01-01").await;
    let payments = world.payments().await;
    let fee = world.product("FIXED_CHARGE", "100.00").await;
    let plan = world.plan(&[(fee, "0")]).await;
    let customer = world.customer().await;
    world.wallet(customer, "30.00").await;
    let id = world.try_subscribe(customer, plan, json!({})).await.unwrap().subscription.id;
    world.card(id).await;
    let cardless = world.subscribe(plan, json!({})).await.subscription.id;
    world.advance("2026-01-02").await;
    assert_eq!(payments.sweep(Clock::System.now()).await.unwrap().charges, 1);
    let invoice = world.invoices(id).await.remove(0).invoice;
    assert_eq!((invoice.status.as_str(), invoice.amount_paid.amount().to_string().as_str()), ("paid", "100.00"));
    assert_eq!(invoice.paid_at, Some(at("2026-01-02")), "at the customer's time");
    let charged: Vec<(String, rust_decimal::Decimal)> =
        sqlx::query_as("SELECT kind, amount FROM payment_transaction ORDER BY kind")
            .fetch_all(world.store.pool())
            .await
            .unwrap();
    let euros = |euros| rust_decimal::Decimal::from(euros);
    assert_eq!(charged, [("CHARGE".to_owned(), euros(70)), ("WALLET_PAYMENT".to_owned(), euros(30))]);
    assert_eq!(world.invoices(cardless).await[0].invoice.status.as_str(), "finalized");
    assert_eq!(payments.sweep(Clock::System.now()).await.unwrap(), payments::sweep::Swept::default());
    world.assert_verified().await;
}

#[tokio::test]
async fn dunning_ends_with_the_last_overdue_invoice() {
    let world = World::new("2026-01-01").await;
    let fee = world.product("FIXED_CHARGE", "100.00").await;
    let plan = world.plan(&[(fee, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.advance("2026-03-02").await;
    let invoices = world.invoices(id).await;
    let [one, other, ..] = invoices.as_slice() else { panic!("{} invoices", invoices.len()) };
    let (one, other) = (one.invoice.id, other.invoice.id);
    for sql in [
        "UPDATE subscription SET status = 'DUNNING', dunning_stage = 'GRACED'",
        "UPDATE invoice SET status = 'overdue' WHERE id IN ($1, $2)",
    ] {
        let query = sqlx::query(sql);
        let query = if sql.contains("$1") { query.bind(one).bind(other) } else { query };
        query.execute(world.store.pool()).await.unwrap();
    }
    let status = async || {
        let subscription = world.subscription(id).await.subscription;
        (subscription.status.to_string(), subscription.dunning_stage.is_some())
    };
    world.record(one, json!({"source": "BANK_TRANSFER", "amount": eur("40.00")})).await;
    world.record(one, json!({"source": "CASH"})).await;
    assert_eq!(status().await, ("DUNNING".to_owned(), true), "another invoice is overdue");
    world.record(other, json!({"source": "CASH"})).await;
    assert_eq!(status().await, ("ACTIVE".to_owned(), false));
    let events = world.events(id).await;
    assert_eq!(events.iter().filter(|event| *event == "subscription.recovered").count(), 1);
    world.assert_verified().await;
}

/// The money of usage goes back as goodwill; the usage stays charged: the next invoice of its window has the difference only.
#[tokio::test(flavor = "multi_thread")]
async fn refunded_usage_is_not_charged_again() {
    let world = World::new("2026-01-01").await;
    let payments = world.payments().await;
    let units = world.product("USAGE", "1").await;
    let plan = world.plan(&[(units, "0")]).await;
    let id = world.subscribe(plan, json!({"billing_timing": "IN_ARREARS"})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "60", None)]).await;
    let mut conn = world.store.pool().acquire().await.unwrap();
    let start = at("2026-01-01");
    plan_windows(&mut conn, start, DueKind::InterimInvoice, "test", &[(id, start)]).await.unwrap();
    drop(conn);
    world.settle().await;
    let interim = world.invoices(id).await.remove(0).invoice;
    assert_eq!(interim.total.amount().to_string(), "60.00");
    world.record(interim.id, json!({"source": "CASH"})).await;
    let request = RefundInvoiceRequest::read(&json!({"amount": eur("25.00"), "destination": "MANUAL"})).unwrap();
    let mut tx = world.store.begin("refund").await.unwrap();
    let ordered = payments.refund_invoice(&world.scope, &mut tx, interim.id, &request).await.unwrap().value;
    tx.commit().await.unwrap();
    assert!(ordered.credit_note_id.is_some());
    payments.proceed_with_refund(&world.scope, &ordered, Attempt::First).await.unwrap();
    world.db_usage(id, &[("2026-01-05", units, "60", None), ("2026-01-06", units, "10", None)]).await;
    world.advance("2026-02-02").await;
    let totals: Vec<_> = world.invoices(id).await.iter().map(|one| one.invoice.total.amount().to_string()).collect();
    assert_eq!(totals, ["60.00", "10.00"]);
    world.assert_verified().await;
}
