//! Guards: an invoice that is charged twice, not at all, or beyond what is due, and retries without end (payment-methods.md 4,
//! dunning.md 4).

use domain::{InvoiceId, Result, Scope};
use payments::charge::Attempt;
use payments::collect::ChargeInvoiceRequest;
use payments::transaction::Transaction;
use payments::words::{FailureCode, TransactionStatus};
use serde_json::json;

use crate::fixture::{Shop, Step, eur};
use crate::invoice::PLAIN;

impl Shop {
    /// All steps of a charge by hand.
    pub async fn charge(&self, scope: &Scope, id: InvoiceId) -> Result<Transaction> {
        let mut tx = self.store.begin("charge").await?;
        let charged = self.payments.charge_invoice(scope, &mut tx, id, &ChargeInvoiceRequest::default()).await;
        let charged = tx.end(charged).await?;
        self.payments.proceed(scope, charged.transaction_id, Attempt::First).await
    }

    /// What finalizing leaves for the sweep.
    async fn db_want(&self, scope: &Scope, id: InvoiceId) {
        sqlx::query("INSERT INTO invoice_charge (invoice_id, workspace_id) VALUES ($1, $2)")
            .bind(id)
            .bind(scope.workspace_id)
            .execute(self.store.pool())
            .await
            .unwrap();
    }
}

async fn assert_paid_once(shop: &Shop, invoice: InvoiceId, what: &str) {
    assert_eq!(shop.bank.charges(), 1, "{what}: charged once");
    assert_eq!(shop.transactions(&shop.live).await, ["CHARGE SUCCEEDED 119.00"], "{what}");
    assert_eq!(shop.bill(invoice).await, "paid paid 119.00 due 0.00", "{what}");
    assert_eq!(shop.balance(&shop.live, "receivable").await, "0.00", "{what}");
    assert_eq!(shop.balance(&shop.live, "gateway_clearing").await, "119.00", "{what}");
    let events = shop.events(&shop.live).await;
    assert_eq!(
        (events["payment.initiated"], events["payment.succeeded"], events.len()),
        (1, 1, 2),
        "{what}: {events:?}"
    );
    assert_eq!(shop.events_like(&shop.live, "invoice.%").await["invoice.paid"], 1, "{what}");
    assert_eq!(shop.sweep_in(600).await, payments::sweep::Swept::default(), "{what}: nothing is left to do");
    shop.assert_verified().await;
}

#[tokio::test]
async fn a_finalized_invoice_is_charged_once_whenever_a_process_dies() {
    for what in ["nobody dies", "during the call", "the answer is lost", "recording", "many sweep"] {
        let shop = Shop::open().await;
        let payer = shop.payer(&shop.live).await;
        let invoice = shop.invoice(&shop.live, payer.customer, PLAIN).await;
        shop.db_want(&shop.live, invoice).await;
        match what {
            "nobody dies" => assert_eq!(shop.sweep_in(0).await.charges, 1),
            "during the call" => {
                shop.bank.will([Step::TakeAndHang]);
                let payments = shop.payments.clone();
                let process = tokio::spawn(async move { payments.sweep(domain::Clock::System.now()).await });
                shop.bank.hanging.notified().await;
                process.abort();
                assert!(process.await.unwrap_err().is_cancelled());
            }
            "the answer is lost" => {
                shop.bank.will([Step::TakeAndLose]);
                shop.sweep_in(0).await;
            }
            "recording" => {
                shop.fail_at("payment.succeeded").await;
                assert_eq!(shop.sweep_in(0).await.failed, 1);
                assert_eq!(shop.bill(invoice).await, "finalized paid 0.00 due 119.00", "no half of an outcome");
                shop.fail_no_more().await;
            }
            _ => {
                let swept = tokio::join!(shop.sweep_in(0), shop.sweep_in(0), shop.sweep_in(0));
                assert_eq!(swept.0.charges + swept.1.charges + swept.2.charges, 1);
            }
        }
        shop.sweep_in(4).await;
        shop.sweep_in(20).await;
        assert_paid_once(&shop, invoice, what).await;
    }
}

#[tokio::test]
async fn soft_failures_are_retried_after_the_pauses_of_the_setting_and_then_given_up() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let invoice = shop.invoice(scope, payer.customer, PLAIN).await;
    shop.db_want(scope, invoice).await;
    shop.bank.will([Step::Refuse(FailureCode::InsufficientFunds); 4]);
    // 2, 12 and 24 hours after each failure, which all happen now.
    for (minutes, charges) in [(0, 1), (119, 0), (121, 1), (719, 0), (721, 1), (1439, 0)] {
        assert_eq!(shop.sweep_in(minutes).await.charges, charges, "after {minutes} minutes");
    }
    assert_eq!(shop.bill(invoice).await, "finalized paid 0.00 due 119.00");
    assert_eq!(shop.sweep_in(1441).await.charges, 1);
    assert_eq!(shop.bill(invoice).await, "error paid 0.00 due 119.00", "used up");
    assert_eq!(shop.sweep_in(100_000).await.charges, 0);
    let attempts: Vec<i32> = sqlx::query_scalar("SELECT attempt FROM payment_transaction ORDER BY id")
        .fetch_all(shop.store.pool())
        .await
        .unwrap();
    assert_eq!(attempts, [1, 2, 3, 4]);
    let events = shop.events_like(scope, "invoice.%").await;
    assert_eq!((events["invoice.payment_failed"], events["invoice.errored"]), (4, 1));
    // An operator may still charge it.
    assert_eq!(shop.charge(scope, invoice).await.unwrap().status, TransactionStatus::Succeeded);
    assert_eq!(shop.bill(invoice).await, "paid paid 119.00 due 0.00");
    shop.assert_verified().await;
}

#[tokio::test]
async fn hard_failures_and_what_cannot_start_wait_for_people() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let hard = shop.invoice(scope, payer.customer, PLAIN).await;
    shop.db_want(scope, hard).await;
    shop.bank.will([Step::Refuse(FailureCode::Fraud)]);
    assert_eq!(shop.sweep_in(0).await.charges, 1);
    let (nobody, _) = shop.customer(scope, Default::default()).await;
    let methodless = shop.invoice(scope, nobody, PLAIN).await;
    shop.db_want(scope, methodless).await;
    assert_eq!(shop.sweep_in(1).await.charges, 0);
    assert_eq!(shop.sweep_in(100_000).await, payments::sweep::Swept::default());
    for invoice in [hard, methodless] {
        assert_eq!(shop.bill(invoice).await, "finalized paid 0.00 due 119.00");
    }
    assert_eq!(shop.events_like(scope, "invoice.%").await["invoice.payment_failed"], 2);
    assert_eq!(shop.charge(scope, methodless).await.unwrap_err().code(), "NO_PAYMENT_METHOD");
}

#[tokio::test]
async fn money_that_comes_twice_is_kept_for_the_customer() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let invoice = shop.invoice(scope, payer.customer, PLAIN).await;
    shop.bank.will([Step::TakeLater]);
    let charge = shop.charge(scope, invoice).await.unwrap();
    assert_eq!(charge.status, TransactionStatus::Processing);
    assert_eq!(shop.charge(scope, invoice).await.unwrap_err().code(), "CONFLICT", "one is under way");
    // The customer sends the money, too, before the direct debit is confirmed.
    shop.record(scope, invoice, json!({"source": "BANK_TRANSFER", "amount": eur("100.00")})).await.unwrap();
    shop.sweep_in(16).await;
    assert_eq!(shop.bill(invoice).await, "paid paid 119.00 due 0.00");
    assert_eq!(shop.cash(scope, payer.wallet).await, "100.00", "19.00 of the charge were due");
    assert_eq!(shop.get(scope, charge.id).await.wallet_id, Some(payer.wallet));
    // Of the invoice only what it has can be refunded.
    let more = shop.refund(scope, invoice, json!({"amount": eur("19.01")})).await.unwrap_err();
    assert_eq!(more.code(), "BUSINESS_RULE_VIOLATION");
    let more =
        shop.refund(scope, invoice, json!({"amount": eur("119.01"), "destination": "MANUAL"})).await.unwrap_err();
    assert_eq!(more.code(), "REFUND_EXCEEDS_PAID");
    assert_eq!(
        (shop.balance(scope, "receivable").await, shop.balance(scope, "gateway_clearing").await),
        ("0.00".into(), "119.00".into())
    );
    shop.assert_verified().await;
}

#[tokio::test]
async fn a_paid_or_foreign_invoice_is_not_charged() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let (paid, _) = shop.paid(scope, &payer).await;
    assert_eq!(shop.charge(scope, paid).await.unwrap_err().code(), "INVALID_TRANSITION");
    shop.db_want(scope, paid).await;
    assert_eq!(shop.sweep_in(0).await.charges, 0, "paid meanwhile");
    let open = shop.invoice(scope, payer.customer, PLAIN).await;
    assert_eq!(shop.charge(&shop.sandbox, open).await.unwrap_err().code(), "NOT_FOUND");
    assert_eq!(shop.bank.charges(), 1);
}
