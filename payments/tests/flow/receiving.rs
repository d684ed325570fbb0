//! What providers tell by themselves: believed for its signature, had once, and never of another's payments.

use domain::{Clock, PaymentGatewayId, Result, Scope};
use hmac::{Hmac, KeyInit, Mac};
use payments::method;
use payments::transaction::Transaction;
use payments::words::{PaymentMethodStatus, TransactionStatus};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::fixture::{Payer, Shop, Step, eur};

fn hmac(parts: &[&[u8]]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(b"whsec_1").unwrap();
    parts.iter().for_each(|part| mac.update(part));
    hex::encode(mac.finalize().into_bytes())
}

impl Shop {
    async fn stripe_says(&self, gateway: PaymentGatewayId, id: &str, kind: &str, object: Value) -> Result<()> {
        let body = json!({"id": id, "object": "event", "type": kind, "data": {"object": object}}).to_string();
        let now = Clock::System.now();
        let time = now.timestamp().to_string();
        let signature = format!("t={time},v1={}", hmac(&[time.as_bytes(), b".", body.as_bytes()]));
        self.payments.receive_stripe(gateway, Some(&signature), body.as_bytes(), now).await
    }

    async fn gocardless_says(&self, gateway: PaymentGatewayId, events: Value) -> Result<()> {
        let body = json!({"events": events}).to_string();
        let signature = hmac(&[body.as_bytes()]);
        self.payments.receive_gocardless(gateway, Some(&signature), body.as_bytes(), Clock::System.now()).await
    }

    /// GoCardless says that the bank has taken a payment back.
    async fn charged_back(&self, gateway: PaymentGatewayId, event: &str, reference: Option<&str>) {
        let back = json!({"id": event, "resource_type": "payments", "action": "charged_back",
            "links": {"payment": reference}, "details": {"cause": "authorisation_disputed"}});
        self.gocardless_says(gateway, json!([back])).await.unwrap();
    }

    /// A payment that its provider has taken and not decided.
    async fn processing(&self, scope: &Scope, payer: &Payer) -> Transaction {
        self.bank.will([Step::TakeLater]);
        let row = self.topup(scope, payer.wallet, "50.00").await.unwrap();
        assert_eq!(row.status, TransactionStatus::Processing);
        row
    }
}

fn intent(row: &Transaction, status: &str) -> Value {
    json!({"id": row.provider_reference, "object": "payment_intent", "status": status, "amount": 5000, "currency": "eur",
           "metadata": {"transaction_id": row.id}})
}

#[tokio::test]
async fn a_payment_succeeds_once_however_often_it_is_told() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    let row = shop.processing(&shop.live, &payer).await;
    let told = ["evt_1", "evt_1", "evt_2"]
        .map(|id| shop.stripe_says(payer.gateway, id, "payment_intent.succeeded", intent(&row, "succeeded")));
    for outcome in futures::future::join_all(told).await {
        outcome.unwrap();
    }
    // A failure that was overtaken changes nothing.
    let late = json!({"id": row.provider_reference, "status": "requires_payment_method", "last_payment_error": {"code": "card_declined"}});
    shop.stripe_says(payer.gateway, "evt_3", "payment_intent.payment_failed", late).await.unwrap();
    assert_eq!(shop.get(&shop.live, row.id).await.status, TransactionStatus::Succeeded);
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "50.00");
    assert_eq!(shop.events(&shop.live).await["payment.succeeded"], 1);
    let noted: i64 =
        sqlx::query_scalar("SELECT count(*) FROM payment_gateway_event").fetch_one(shop.store.pool()).await.unwrap();
    assert_eq!(noted, 3);
    shop.assert_verified().await;
}

#[tokio::test]
async fn the_message_that_overtakes_the_answer_counts() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    // Our process died before it learned the reference; the metadata leads to the payment.
    shop.bank.will([Step::TakeAndLose]);
    let row = shop.topup(&shop.live, payer.wallet, "50.00").await.unwrap();
    let object = json!({"id": "pi_9", "status": "succeeded", "metadata": {"transaction_id": row.id}});
    shop.stripe_says(payer.gateway, "evt_1", "payment_intent.succeeded", object).await.unwrap();
    let row = shop.get(&shop.live, row.id).await;
    assert_eq!((row.status, row.provider_reference.as_deref()), (TransactionStatus::Succeeded, Some("pi_9")));
    assert_eq!(shop.sweep_in(60).await.asked, 0);
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "50.00");
}

#[tokio::test]
async fn a_failure_is_told_with_its_reason() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    let row = shop.processing(&shop.live, &payer).await;
    let error = json!({"type": "card_error", "code": "card_declined", "decline_code": "insufficient_funds", "message": "No money."});
    let object =
        json!({"id": row.provider_reference, "status": "requires_payment_method", "last_payment_error": error});
    shop.stripe_says(payer.gateway, "evt_1", "payment_intent.payment_failed", object).await.unwrap();
    let row = shop.get(&shop.live, row.id).await;
    assert_eq!((row.status, row.failure_code.as_deref()), (TransactionStatus::Failed, Some("insufficient_funds")));
    assert_eq!(row.failure_message.as_deref(), Some("No money. (insufficient_funds)"));
    assert_eq!(shop.events(&shop.live).await["payment.failed"], 1);
}

#[tokio::test]
async fn refunds_at_the_provider_leave_the_wallet_and_the_rest_is_written_off() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    let row = shop.topup(&shop.live, payer.wallet, "50.00").await.unwrap();
    let refunded = |id: &'static str, total: u64| {
        let object = json!({"id": "ch_1", "payment_intent": row.provider_reference, "amount_refunded": total});
        shop.stripe_says(payer.gateway, id, "charge.refunded", object)
    };
    refunded("evt_1", 2000).await.unwrap();
    refunded("evt_1", 2000).await.unwrap();
    refunded("evt_2", 2000).await.unwrap();
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "30.00", "the same total refunds nothing more");
    assert_eq!(shop.get(&shop.live, row.id).await.status, TransactionStatus::PartiallyRefunded);
    shop.debit(&shop.live, payer.wallet, "25.00").await;
    refunded("evt_3", 5000).await.unwrap();
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "0.00");
    let row = shop.get(&shop.live, row.id).await;
    assert_eq!((row.status, row.refunded_amount), (TransactionStatus::Refunded, row.amount));
    assert_eq!(
        shop.transactions(&shop.live).await,
        ["WALLET_TOPUP REFUNDED 50.00", "REFUND SUCCEEDED 20.00", "REFUND SUCCEEDED 30.00"]
    );
    assert_eq!(shop.balance(&shop.live, "write_off").await, "25.00", "what the wallet no longer had");
    assert_eq!(shop.balance(&shop.live, "gateway_clearing").await, "0.00");
    assert_eq!(shop.events(&shop.live).await["payment.refunded"], 2);
    shop.assert_verified().await;
}

#[tokio::test]
async fn disputes_and_methods_are_marked() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    let row = shop.topup(&shop.live, payer.wallet, "50.00").await.unwrap();
    let dispute = json!({"id": "dp_1", "payment_intent": row.provider_reference, "reason": "fraudulent"});
    shop.stripe_says(payer.gateway, "evt_1", "charge.dispute.created", dispute).await.unwrap();
    assert_eq!(shop.get(&shop.live, row.id).await.status, TransactionStatus::Disputed);
    assert_eq!(shop.events(&shop.live).await["payment.disputed"], 1);
    let token = format!("pm_{}", payer.customer);
    let card = json!({"brand": "visa", "last4": "4242", "exp_month": 8, "exp_year": 2099});
    let shown = json!({"id": token, "object": "payment_method", "card": card});
    shop.stripe_says(payer.gateway, "evt_2", "payment_method.updated", shown).await.unwrap();
    let mut conn = shop.store.pool().acquire().await.unwrap();
    let seen = method::get(&shop.live, &mut conn, payer.method).await.unwrap();
    assert_eq!(
        (seen.display_brand.as_deref(), seen.last4.as_deref(), seen.exp_year),
        (Some("visa"), Some("4242"), Some(2099))
    );
    shop.stripe_says(payer.gateway, "evt_3", "payment_method.detached", json!({"id": token})).await.unwrap();
    let seen = method::get(&shop.live, &mut conn, payer.method).await.unwrap();
    assert_eq!(seen.status, PaymentMethodStatus::Removed);
    shop.stripe_says(payer.gateway, "evt_4", "customer.created", json!({"id": "cus_1"})).await.unwrap();
}

#[tokio::test]
async fn gocardless_tells_many_things_at_once() {
    let shop = Shop::open().await;
    let (customer, wallet) = shop.customer(&shop.live, ledger::WalletDefaults::default()).await;
    let gateway = shop.gateway(&shop.live, "gocardless").await;
    let method = shop.method(&shop.live, customer, "gocardless", "MD123").await;
    let payer = Payer { customer, wallet, gateway, method };
    let (one, other) = (shop.processing(&shop.live, &payer).await, shop.processing(&shop.live, &payer).await);
    let event = |id: &str, resource: &str, action: &str, links: Value, details: Value| {
        json!({"id": id, "created_at": "2026-01-01T00:00:00.000Z", "resource_type": resource, "action": action,
               "links": links, "details": details})
    };
    let payment = |row: &Transaction| json!({"payment": row.provider_reference});
    let failed = json!({"origin": "bank", "cause": "insufficient_funds", "description": "No money"});
    let events = json!([
        event("EV1", "payments", "confirmed", payment(&one), json!({"origin": "gocardless"})),
        event("EV2", "payments", "failed", payment(&other), failed),
        event("EV3", "mandates", "cancelled", json!({"mandate": "MD123"}), json!({})),
        event("EV4", "payouts", "paid", json!({"payout": "PO1"}), json!({})),
    ]);
    shop.gocardless_says(gateway, events.clone()).await.unwrap();
    shop.gocardless_says(gateway, events).await.unwrap();
    assert_eq!(shop.cash(&shop.live, wallet).await, "50.00");
    let other = shop.get(&shop.live, other.id).await;
    assert_eq!((other.status, other.failure_code.as_deref()), (TransactionStatus::Failed, Some("insufficient_funds")));
    let mut conn = shop.store.pool().acquire().await.unwrap();
    assert_eq!(method::get(&shop.live, &mut conn, method).await.unwrap().status, PaymentMethodStatus::Failed);
    let back = event("EV5", "payments", "charged_back", payment(&one), json!({"cause": "refund_requested"}));
    shop.gocardless_says(gateway, json!([back])).await.unwrap();
    assert_eq!(shop.get(&shop.live, one.id).await.status, TransactionStatus::Disputed);
    assert_eq!(shop.cash(&shop.live, wallet).await, "0.00", "the money is gone");
    assert!(shop.transactions(&shop.live).await.contains(&"CHARGEBACK SUCCEEDED 50.00".to_owned()));
    assert_eq!(shop.balance(&shop.live, "gateway_clearing").await, "0.00");
    shop.assert_verified().await;
}

#[tokio::test]
async fn a_refund_that_we_ordered_is_not_counted_again_when_the_provider_tells_of_it() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let (invoice, charge) = shop.paid(scope, &payer).await;
    let reference = shop.get(scope, charge).await.provider_reference;
    let told = |id: &'static str, total: u64| {
        let object = json!({"id": "ch_1", "payment_intent": reference, "amount_refunded": total});
        shop.stripe_says(payer.gateway, id, "charge.refunded", object)
    };
    // While ours is under way, and when it is done.
    shop.bank.will([Step::TakeAndLose]);
    let open = shop.refund(scope, invoice, json!({"amount": eur("19.00")})).await.unwrap();
    assert_eq!(open.status, TransactionStatus::Pending);
    told("evt_1", 1900).await.unwrap();
    shop.sweep_in(20).await;
    told("evt_2", 1900).await.unwrap();
    assert_eq!(shop.bill(invoice).await, "paid paid 100.00 due 0.00");
    // What somebody refunds at the provider is more.
    told("evt_3", 2900).await.unwrap();
    assert_eq!(shop.bill(invoice).await, "paid paid 90.00 due 0.00");
    assert_eq!(
        shop.transactions(scope).await,
        ["CHARGE PARTIALLY_REFUNDED 119.00", "REFUND SUCCEEDED 19.00", "REFUND SUCCEEDED 10.00"]
    );
    assert_eq!(shop.balance(scope, "receivable").await, "10.00", "without a credit note");
    assert_eq!(shop.balance(scope, "gateway_clearing").await, "90.00");
    shop.assert_verified().await;
}

#[tokio::test]
async fn a_charge_back_of_an_invoice_is_taken_off_what_is_paid() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, wallet) = shop.customer(scope, ledger::WalletDefaults::default()).await;
    let gateway = shop.gateway(scope, "gocardless").await;
    let method = shop.method(scope, customer, "gocardless", "MD123").await;
    let (invoice, charge) = shop.paid(scope, &Payer { customer, wallet, gateway, method }).await;
    let reference = shop.get(scope, charge).await.provider_reference;
    shop.charged_back(gateway, "EV1", reference.as_deref()).await;
    shop.charged_back(gateway, "EV1", reference.as_deref()).await;
    assert_eq!(shop.bill(invoice).await, "paid paid 0.00 due 0.00", "paid is terminal");
    assert_eq!(shop.transactions(scope).await, ["CHARGE DISPUTED 119.00", "CHARGEBACK SUCCEEDED 119.00"]);
    assert_eq!(shop.balance(scope, "receivable").await, "119.00");
    assert_eq!(shop.refund(scope, invoice, json!({})).await.unwrap_err().code(), "INVALID_TRANSITION");
    shop.assert_verified().await;
}

#[tokio::test]
async fn a_charge_back_takes_what_refunds_have_left() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, wallet) = shop.customer(scope, ledger::WalletDefaults::default()).await;
    let gateway = shop.gateway(scope, "gocardless").await;
    let method = shop.method(scope, customer, "gocardless", "MD123").await;
    let (invoice, charge) = shop.paid(scope, &Payer { customer, wallet, gateway, method }).await;
    shop.refund(scope, invoice, json!({"amount": eur("19.00")})).await.unwrap();
    let reference = shop.get(scope, charge).await.provider_reference;
    for id in ["EV1", "EV2"] {
        shop.charged_back(gateway, id, reference.as_deref()).await;
    }
    assert_eq!(shop.bill(invoice).await, "paid paid 0.00 due 0.00");
    assert_eq!(
        shop.transactions(scope).await,
        ["CHARGE REFUNDED 119.00", "REFUND SUCCEEDED 19.00", "CHARGEBACK SUCCEEDED 100.00"]
    );
    assert_eq!(shop.balance(scope, "gateway_clearing").await, "0.00");
    assert_eq!(shop.balance(scope, "receivable").await, "100.00", "19.00 are credited");
    assert_eq!(shop.events(scope).await["payment.disputed"], 1);
    assert_eq!(shop.refund(scope, invoice, json!({})).await.unwrap_err().code(), "REFUND_EXCEEDS_PAID");
    shop.assert_verified().await;
}

/// A refund is on its way when the bank takes everything back: the customer has got it twice, and the books say so.
#[tokio::test]
async fn a_refund_that_a_charge_back_overtakes_is_written_down() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, wallet) = shop.customer(scope, ledger::WalletDefaults::default()).await;
    let gateway = shop.gateway(scope, "gocardless").await;
    let method = shop.method(scope, customer, "gocardless", "MD123").await;
    let (invoice, charge) = shop.paid(scope, &Payer { customer, wallet, gateway, method }).await;
    shop.bank.will([Step::TakeLater]);
    shop.refund(scope, invoice, json!({"amount": eur("19.00")})).await.unwrap();
    let reference = shop.get(scope, charge).await.provider_reference;
    shop.charged_back(gateway, "EV1", reference.as_deref()).await;
    shop.sweep_in(16).await;
    assert_eq!(
        shop.transactions(scope).await,
        ["CHARGE DISPUTED 119.00", "REFUND SUCCEEDED 19.00", "CHARGEBACK SUCCEEDED 119.00"]
    );
    assert_eq!(shop.balance(scope, "gateway_clearing").await, "-19.00");
    assert_eq!(shop.bill(invoice).await, "paid paid -19.00 due 0.00");
    shop.assert_verified().await;
}

/// What of a payment was beyond its invoice leaves the wallet, and the ledger of payments says which part that was.
#[tokio::test]
async fn a_charge_back_of_what_was_beyond_the_invoice_leaves_the_wallet() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, wallet) = shop.customer(scope, ledger::WalletDefaults::default()).await;
    let gateway = shop.gateway(scope, "gocardless").await;
    let _ = shop.method(scope, customer, "gocardless", "MD123").await;
    let invoice = shop.invoice(scope, customer, crate::invoice::PLAIN).await;
    shop.bank.will([Step::TakeLater]);
    let charge = shop.charge(scope, invoice).await.unwrap();
    shop.record(scope, invoice, json!({"source": "BANK_TRANSFER", "amount": eur("100.00")})).await.unwrap();
    shop.sweep_in(16).await;
    assert_eq!(shop.cash(scope, wallet).await, "100.00", "19.00 of the charge were due");
    shop.charged_back(gateway, "EV1", charge.provider_reference.as_deref()).await;
    assert_eq!(shop.cash(scope, wallet).await, "0.00");
    assert_eq!(shop.bill(invoice).await, "paid paid 100.00 due 0.00");
    let beyond: Vec<String> =
        sqlx::query_scalar("SELECT kind || ' ' || round(excess_amount, 2) FROM payment_transaction ORDER BY id")
            .fetch_all(shop.store.pool())
            .await
            .unwrap();
    assert_eq!(beyond, ["CHARGE 100.00", "MANUAL_PAYMENT 0.00", "CHARGEBACK 100.00"]);
    shop.assert_verified().await;
}

/// The money of a top-up that an invoice asked for is on the wallet.
#[tokio::test]
async fn a_charge_back_of_an_invoiced_top_up_leaves_the_wallet() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, wallet) = shop.customer(scope, ledger::WalletDefaults::default()).await;
    let gateway = shop.gateway(scope, "gocardless").await;
    let method = shop.method(scope, customer, "gocardless", "MD123").await;
    let (invoice, _) = shop.invoiced(scope, &Payer { customer, wallet, gateway, method }, "50.00").await;
    let charge = shop.charge(scope, invoice).await.unwrap();
    assert_eq!(shop.cash(scope, wallet).await, "50.00");
    shop.debit(scope, wallet, "20.00").await;
    shop.charged_back(gateway, "EV1", charge.provider_reference.as_deref()).await;
    assert_eq!(shop.cash(scope, wallet).await, "0.00");
    assert_eq!(shop.balance(scope, "write_off").await, "20.00");
    assert_eq!(shop.balance(scope, "gateway_clearing").await, "0.00");
    // Owed again, as of every charge-back: a paid invoice stays so.
    assert_eq!(
        (shop.balance(scope, "receivable").await.as_str(), shop.balance(scope, "topup_invoiced").await.as_str()),
        ("50.00", "-50.00")
    );
    shop.assert_verified().await;
}

#[tokio::test]
async fn nobody_speaks_for_a_provider_without_its_secret() {
    let shop = Shop::open().await;
    let payer = shop.payer(&shop.live).await;
    let row = shop.processing(&shop.live, &payer).await;
    let body =
        json!({"id": "evt_1", "type": "payment_intent.succeeded", "data": {"object": intent(&row, "succeeded")}})
            .to_string();
    let now = Clock::System.now();
    let receive = |gateway, signature: Option<String>| {
        let (payments, body) = (shop.payments.clone(), body.clone());
        async move {
            let received = payments.receive_stripe(gateway, signature.as_deref(), body.as_bytes(), now).await;
            received.expect_err("must be refused").code()
        }
    };
    let time = now.timestamp().to_string();
    let good = format!("t={time},v1={}", hmac(&[time.as_bytes(), b".", body.as_bytes()]));
    assert_eq!(receive(payer.gateway, None).await, "INVALID_SIGNATURE");
    assert_eq!(receive(payer.gateway, Some(format!("t={time},v1={}", "0".repeat(64)))).await, "INVALID_SIGNATURE");
    assert_eq!(receive(PaymentGatewayId::generate(), Some(good.clone())).await, "NOT_FOUND");
    // Another gateway with the same secret cannot speak of this one's payments.
    let stranger = shop.gateway(&shop.sandbox, "stripe").await;
    shop.payments.receive_stripe(stranger, Some(&good), body.as_bytes(), now).await.unwrap();
    let sibling = shop.gateway(&shop.live, "stripe").await;
    shop.payments.receive_stripe(sibling, Some(&good), body.as_bytes(), now).await.unwrap();
    assert_eq!(shop.get(&shop.live, row.id).await.status, TransactionStatus::Processing);
    let gocardless = shop.gateway(&shop.live, "gocardless").await;
    assert_eq!(receive(gocardless, Some(good)).await, "NOT_FOUND", "of another provider");
}
