//! Guards: money that an operator records counted twice, lost beyond the invoice, or taken back from an invoice that is paid
//! (manual-payments.md 4).

use chrono::TimeDelta;
use domain::{Clock, InvoiceId, Result, Scope, TransactionId};
use payments::manual::{self, RecordManualPaymentRequest, ReverseManualPaymentRequest};
use payments::transaction::Transaction;
use payments::words::TransactionStatus;
use serde_json::{Value, json};

use crate::fixture::{Shop, Step, eur};
use crate::invoice::PLAIN;

impl Shop {
    pub async fn record(&self, scope: &Scope, id: InvoiceId, body: Value) -> Result<Transaction> {
        let request = RecordManualPaymentRequest::read(&body)?;
        let mut tx = self.store.begin("record").await?;
        let recorded = manual::record(scope, &mut tx, id, &request).await;
        tx.end(recorded).await
    }

    pub async fn reverse(&self, scope: &Scope, id: InvoiceId, payment: TransactionId) -> Result<Transaction> {
        let request = ReverseManualPaymentRequest::read(&json!({"reason": "typing error"}))?;
        let mut tx = self.store.begin("reverse").await?;
        let reversed = manual::reverse(scope, &mut tx, id, payment, &request).await;
        tx.end(reversed).await
    }
}

fn transfer(value: &str) -> Value {
    json!({"source": "BANK_TRANSFER", "amount": eur(value)})
}

#[tokio::test]
async fn the_vectors_of_the_reference() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, wallet) = shop.customer(scope, Default::default()).await;
    let exact = shop.invoice(scope, customer, PLAIN).await;
    let paid = shop.record(scope, exact, transfer("100.00")).await.unwrap();
    assert_eq!((paid.status, paid.kind.as_str()), (TransactionStatus::Succeeded, "MANUAL_PAYMENT"));
    assert_eq!(shop.bill(exact).await, "finalized paid 100.00 due 19.00");
    let refused = shop.record(scope, exact, transfer("19.01")).await.unwrap_err();
    assert_eq!(refused.code(), "OVERPAYMENT");
    shop.record(scope, exact, transfer("19.00")).await.unwrap();
    assert_eq!(shop.bill(exact).await, "paid paid 119.00 due 0.00");
    assert_eq!(shop.record(scope, exact, transfer("0.01")).await.unwrap_err().code(), "INVALID_TRANSITION");

    let more = shop.invoice(scope, customer, PLAIN).await;
    shop.record(scope, more, transfer("100.00")).await.unwrap();
    let mut body = transfer("19.01");
    body["credit_excess_to_wallet"] = json!(true);
    let paid = shop.record(scope, more, body).await.unwrap();
    assert_eq!((paid.amount.to_string().as_str(), paid.wallet_id), ("19.01 EUR", Some(wallet)));
    assert_eq!(shop.bill(more).await, "paid paid 119.00 due 0.00");
    assert_eq!(shop.cash(scope, wallet).await, "0.01");

    let all = shop.invoice(scope, customer, PLAIN).await;
    shop.record(scope, all, json!({"source": "CASH"})).await.unwrap();
    assert_eq!(shop.bill(all).await, "paid paid 119.00 due 0.00", "the default is what is due");
    assert_eq!(shop.balance(scope, "receivable").await, "0.00");
    assert_eq!(shop.balance(scope, "manual_clearing").await, "357.01");
    let events = shop.events_like(scope, "invoice.%").await;
    assert_eq!((events["invoice.partially_paid"], events["invoice.paid"]), (2, 3));
    assert_eq!(shop.events(scope).await["payment.succeeded"], 5);
    shop.assert_verified().await;
}

#[tokio::test]
async fn a_payment_is_taken_back_once_and_only_while_the_invoice_is_open() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, _) = shop.customer(scope, Default::default()).await;
    let invoice = shop.invoice(scope, customer, PLAIN).await;
    let mut body = transfer("100.00");
    body["reference"] = json!("wire 17");
    let first = shop.record(scope, invoice, body.clone()).await.unwrap();
    let repeated = shop.record(scope, invoice, body.clone()).await.unwrap_err();
    assert_eq!(repeated.code(), "DUPLICATE");
    // Another way, or another invoice, may have the same reference.
    let other = shop.invoice(scope, customer, PLAIN).await;
    shop.record(scope, other, body.clone()).await.unwrap();
    let reversed = shop.reverse(scope, invoice, first.id).await.unwrap();
    assert_eq!((reversed.status, reversed.refunded_amount), (TransactionStatus::Refunded, first.amount));
    assert_eq!(shop.bill(invoice).await, "finalized paid 0.00 due 119.00");
    assert_eq!(shop.reverse(scope, invoice, first.id).await.unwrap_err().code(), "INVALID_TRANSITION");
    assert_eq!(shop.reverse(scope, other, first.id).await.unwrap_err().code(), "NOT_FOUND");
    // What was taken back may be recorded anew.
    let again = shop.record(scope, invoice, body).await.unwrap();
    shop.record(scope, invoice, transfer("19.00")).await.unwrap();
    assert_eq!(shop.reverse(scope, invoice, again.id).await.unwrap_err().code(), "INVALID_TRANSITION");
    assert_eq!(shop.balance(scope, "receivable").await, "19.00", "of the other invoice");
    assert_eq!(shop.balance(scope, "manual_clearing").await, "219.00");
    assert_eq!(shop.events(scope).await["payment.refunded"], 1);
    shop.assert_verified().await;
}

#[tokio::test]
async fn bad_payments_are_refused_with_their_reason() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, _) = shop.customer(scope, Default::default()).await;
    let invoice = shop.invoice(scope, customer, PLAIN).await;
    let soon = (Clock::System.now() + TimeDelta::hours(1)).to_rfc3339();
    for (body, code) in [
        (json!({}), "VALIDATION"),
        (json!({"source": "WIRE"}), "VALIDATION"),
        (json!({"source": "CASH", "amount": eur("0.00")}), "VALIDATION"),
        (json!({"source": "CASH", "amount": eur("1.001")}), "VALIDATION"),
        (json!({"source": "CASH", "received_at": soon}), "VALIDATION"),
        (json!({"source": "CASH", "note": "a", "metadata": {"note": "b"}}), "VALIDATION"),
        (json!({"source": "CASH", "amount": {"value": "1.00", "currency": "USD"}}), "CURRENCY_MISMATCH"),
    ] {
        assert_eq!(shop.record(scope, invoice, body.clone()).await.unwrap_err().code(), code, "{body}");
    }
    let body = json!({"source": "CASH", "received_at": "2020-01-01T00:00:00Z", "note": "in an envelope", "metadata": {"a": 1}});
    assert_eq!(shop.record(&shop.sandbox, invoice, body.clone()).await.unwrap_err().code(), "NOT_FOUND");
    let row = shop.record(scope, invoice, body).await.unwrap();
    assert_eq!(row.processed_at.unwrap().to_rfc3339(), "2020-01-01T00:00:00+00:00");
    assert_eq!(json!(row.metadata), json!({"note": "in an envelope", "a": 1}));
}

#[tokio::test]
async fn many_recorders_never_pay_more_than_is_due() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, _) = shop.customer(scope, Default::default()).await;
    let invoice = shop.invoice(scope, customer, PLAIN).await;
    let body = |n: usize| json!({"source": "CHECK", "amount": eur("50.00"), "reference": format!("check {}", n % 3)});
    let recorded = futures::future::join_all((0..6).map(|n| shop.record(scope, invoice, body(n)))).await;
    assert_eq!(recorded.iter().filter(|one| one.is_ok()).count(), 2);
    assert_eq!(shop.bill(invoice).await, "finalized paid 100.00 due 19.00");
    shop.assert_verified().await;
}

/// The workspace bills nothing in this currency any more, and the customer has been deleted: the money was taken all the same.
#[tokio::test]
async fn money_beyond_an_invoice_is_credited_in_any_case() {
    for is_charged in [true, false] {
        let shop = Shop::open().await;
        let scope = &shop.live;
        let payer = shop.payer(scope).await;
        let invoice = shop.invoice(scope, payer.customer, PLAIN).await;
        shop.bank.will([Step::TakeLater]);
        let charge = shop.charge(scope, invoice).await.unwrap();
        // The only wallet of the customer is in another currency by now.
        for sql in [
            "UPDATE wallet SET currency = 'USD'",
            "UPDATE workspace_currency SET is_default = false",
            "UPDATE workspace_currency SET billing_enabled = false",
            "UPDATE customer SET deleted_at = now()",
        ] {
            sqlx::query(sql).execute(shop.store.pool()).await.unwrap();
        }
        let mut body = transfer(if is_charged { "119.00" } else { "120.00" });
        body["credit_excess_to_wallet"] = json!(true);
        let recorded = shop.record(scope, invoice, body).await.unwrap();
        shop.sweep_in(16).await;
        assert_eq!(shop.sweep_in(60).await, payments::sweep::Swept::default(), "nothing fails for ever");
        let charged = shop.get(scope, charge.id).await;
        assert_eq!(charged.status, TransactionStatus::Succeeded);
        let (wallet, cash) = match is_charged {
            true => (charged.wallet_id.unwrap(), "119.00"),
            false => (recorded.wallet_id.unwrap(), "120.00"),
        };
        assert_eq!((shop.cash(scope, wallet).await.as_str(), wallet == payer.wallet), (cash, false));
        shop.assert_verified().await;
    }
}
