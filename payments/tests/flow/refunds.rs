//! Guards: more given back than was paid, money that goes back twice or that nobody knows of, and credit notes that do not match the
//! money (refunds.md 4).

use billing::credit_note::{self, CreditNoteDTO};
use domain::{InvoiceId, Result, Scope, TransactionId};
use ledger::Outcome;
use payments::charge::Attempt;
use payments::refund::{Ordered, RefundInvoiceRequest, RefundResult};
use payments::transaction::Transaction;
use payments::words::{FailureCode, TransactionStatus};
use serde_json::{Value, json};

use crate::fixture::{Payer, Shop, Step, eur};
use crate::invoice::PLAIN;

impl Shop {
    /// Step 1.
    pub async fn order_refund(&self, scope: &Scope, id: InvoiceId, body: Value) -> Result<Outcome<Ordered>> {
        let request = RefundInvoiceRequest::read(&body)?;
        let mut tx = self.store.begin("refund").await?;
        let ordered = self.payments.refund_invoice(scope, &mut tx, id, &request).await;
        tx.end(ordered).await
    }

    /// All steps.
    pub async fn refund(&self, scope: &Scope, id: InvoiceId, body: Value) -> Result<RefundResult> {
        let ordered = self.order_refund(scope, id, body).await?;
        let attempt = if ordered.replayed { Attempt::Again } else { Attempt::First };
        self.payments.proceed_with_refund(scope, &ordered.value, attempt).await
    }

    /// An invoice of 119.00 that one charge has paid.
    pub async fn paid(&self, scope: &Scope, payer: &Payer) -> (InvoiceId, TransactionId) {
        let invoice = self.invoice(scope, payer.customer, PLAIN).await;
        let charge = self.charge(scope, invoice).await.unwrap();
        assert_eq!(self.bill(invoice).await, "paid paid 119.00 due 0.00");
        (invoice, charge.id)
    }

    /// (total, net, tax, status, remaining) of the invoice's credit notes.
    pub async fn notes(&self, scope: &Scope, id: InvoiceId) -> Vec<[String; 5]> {
        let mut conn = self.store.pool().acquire().await.unwrap();
        let ids: Vec<domain::CreditNoteId> =
            sqlx::query_scalar("SELECT id FROM credit_note WHERE invoice_id = $1 ORDER BY id")
                .bind(id)
                .fetch_all(&mut *conn)
                .await
                .unwrap();
        let mut notes = Vec::new();
        for id in ids {
            let note: CreditNoteDTO = credit_note::read::get(scope, &mut conn, id).await.unwrap();
            let amounts = [note.total, note.subtotal, note.tax_amount].map(|money| money.amount().to_string());
            let [total, net, tax] = amounts;
            notes.push([total, net, tax, note.status.to_string(), note.amount_remaining.amount().to_string()]);
        }
        notes
    }

    /// Refunds and credit notes of the paid invoices of a customer go together, so nobody owes anything.
    async fn assert_even(&self, scope: &Scope, bank: &str) {
        assert_eq!(self.balance(scope, "receivable").await, "0.00");
        assert_eq!(self.balance(scope, "gateway_clearing").await, bank);
        self.assert_verified().await;
    }
}

fn note(texts: [&str; 5]) -> [String; 5] {
    texts.map(str::to_owned)
}

fn statuses(result: &RefundResult) -> Vec<TransactionStatus> {
    result.refund_transactions.iter().map(|row: &Transaction| row.status).collect()
}

#[tokio::test]
async fn the_vectors_of_the_reference() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let (invoice, charge) = shop.paid(scope, &payer).await;
    let part = shop.refund(scope, invoice, json!({"amount": eur("19.00"), "reason": "late"})).await.unwrap();
    assert_eq!((part.status, statuses(&part)), (TransactionStatus::Succeeded, vec![TransactionStatus::Succeeded]));
    assert_eq!(part.refund_transactions[0].parent_transaction_id, Some(charge));
    let row = shop.get(scope, charge).await;
    assert_eq!(
        (row.status, row.refunded_amount.amount().to_string().as_str()),
        (TransactionStatus::PartiallyRefunded, "19.00")
    );
    assert_eq!(shop.notes(scope, invoice).await, [note(["19.00", "15.97", "3.03", "applied", "0.00"])]);
    assert_eq!(shop.bill(invoice).await, "paid paid 100.00 due 0.00", "paid is terminal");

    let rest = shop.refund(scope, invoice, json!({})).await.unwrap();
    assert_eq!(rest.refund_transactions[0].amount.amount().to_string(), "100.00");
    assert_eq!(shop.get(scope, charge).await.status, TransactionStatus::Refunded);
    assert_eq!(shop.notes(scope, invoice).await[1], note(["100.00", "84.03", "15.97", "applied", "0.00"]));
    for body in [json!({"amount": eur("0.01")}), json!({})] {
        assert_eq!(shop.refund(scope, invoice, body).await.unwrap_err().code(), "REFUND_EXCEEDS_PAID");
    }
    assert_eq!(shop.bank.returned(), ["19.00", "100.00"]);
    assert_eq!(shop.events(scope).await["payment.refunded"], 2);
    let events = shop.events_like(scope, "credit_note.%").await;
    assert_eq!((events["credit_note.issued"], events["credit_note.applied"]), (2, 2));
    assert_eq!(
        (shop.balance(scope, "revenue").await, shop.balance(scope, "tax_payable").await),
        ("0.00".into(), "0.00".into())
    );
    shop.assert_even(scope, "0.00").await;
}

#[tokio::test]
async fn a_refund_waits_for_its_provider_and_can_be_repeated_when_it_fails() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let (invoice, charge) = shop.paid(scope, &payer).await;
    shop.bank.will([Step::RefuseLater]);
    let open = shop.refund(scope, invoice, json!({"amount": eur("19.00")})).await.unwrap();
    assert_eq!(open.status, TransactionStatus::Processing);
    assert_eq!(shop.get(scope, charge).await.status, TransactionStatus::Succeeded, "nothing has gone yet");
    assert_eq!(shop.notes(scope, invoice).await[0], note(["19.00", "15.97", "3.03", "issued", "19.00"]));
    let most = shop.refund(scope, invoice, json!({"amount": eur("100.01")})).await.unwrap_err();
    assert_eq!(most.code(), "REFUND_EXCEEDS_PAID", "what is under way is not left");
    shop.sweep_in(16).await;
    let failed = shop.get(scope, open.refund_transactions[0].id).await;
    assert_eq!((failed.status, failed.failure_code.as_deref()), (TransactionStatus::Failed, Some("decline")));
    assert_eq!(shop.events(scope).await["payment.refund_failed"], 1);
    assert_eq!(shop.events(scope).await.get("payment.failed"), None);
    // The credit note is open: the next refund of the invoice applies it, and only what is more is credited anew.
    let again = shop.refund(scope, invoice, json!({"amount": eur("19.00")})).await.unwrap();
    assert_eq!((again.status, again.credit_note_id), (TransactionStatus::Succeeded, open.credit_note_id));
    shop.bank.will([Step::Refuse(FailureCode::InvalidRequest)]);
    let refused = shop.refund(scope, invoice, json!({"amount": eur("50.00")})).await.unwrap();
    assert_eq!(refused.status, TransactionStatus::Failed);
    let all = shop.refund(scope, invoice, json!({})).await.unwrap();
    assert_eq!(all.status, TransactionStatus::Succeeded);
    let notes = shop.notes(scope, invoice).await;
    let totals: Vec<_> = notes.iter().map(|note| (note[0].as_str(), note[3].as_str())).collect();
    assert_eq!(totals, [("19.00", "applied"), ("50.00", "applied"), ("50.00", "applied")]);
    assert_eq!(shop.bank.returned(), ["19.00", "100.00"]);
    shop.assert_even(scope, "0.00").await;
}

#[tokio::test]
async fn the_newest_payment_goes_back_first() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let invoice = shop.invoice(scope, payer.customer, PLAIN).await;
    let transfer = json!({"source": "BANK_TRANSFER", "amount": eur("50.00"), "reference": "1"});
    let first = shop.record(scope, invoice, transfer).await.unwrap();
    let charge = shop.charge(scope, invoice).await.unwrap();
    assert_eq!(charge.amount.amount().to_string(), "69.00");
    // Through the gateway only what came through one.
    let refused = shop.refund(scope, invoice, json!({"amount": eur("69.01")})).await.unwrap_err();
    assert_eq!(refused.code(), "BUSINESS_RULE_VIOLATION");
    assert!(refused.to_string().contains("0.01 EUR of it did not come through a gateway"), "{refused}");
    let both = shop.refund(scope, invoice, json!({"amount": eur("80.00"), "destination": "MANUAL"})).await.unwrap();
    let parts: Vec<_> = both
        .refund_transactions
        .iter()
        .map(|row| (row.parent_transaction_id, row.amount.amount().to_string()))
        .collect();
    assert_eq!(parts, [(Some(charge.id), "69.00".to_owned()), (Some(first.id), "11.00".to_owned())]);
    // By name.
    let body = json!({"transaction_id": charge.id, "destination": "MANUAL"});
    assert_eq!(shop.refund(scope, invoice, body).await.unwrap_err().code(), "REFUND_EXCEEDS_PAID");
    let body = json!({"transaction_id": TransactionId::generate()});
    assert_eq!(shop.refund(scope, invoice, body).await.unwrap_err().code(), "NOT_FOUND");
    let wallet = shop.refund(scope, invoice, json!({"destination": "WALLET"})).await.unwrap();
    assert_eq!(wallet.refund_transactions[0].wallet_id, Some(payer.wallet));
    assert_eq!(shop.cash(scope, payer.wallet).await, "39.00");
    assert_eq!(shop.balance(scope, "manual_clearing").await, "-30.00", "50.00 came, 80.00 went");
    assert_eq!(shop.bank.returned(), Vec::<String>::new());
    shop.assert_even(scope, "69.00").await;
}

#[tokio::test]
async fn without_a_credit_note_an_open_invoice_is_owed_again() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let (customer, wallet) = shop.customer(scope, Default::default()).await;
    let invoice = shop.invoice(scope, customer, PLAIN).await;
    let transfer = |value: &str| json!({"source": "CASH", "amount": eur(value)});
    shop.record(scope, invoice, transfer("100.00")).await.unwrap();
    let back = |more: Value| {
        let mut body = json!({"amount": eur("30.00"), "destination": "MANUAL"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let owed = shop.refund(scope, invoice, back(json!({"create_credit_note": false}))).await.unwrap();
    assert_eq!((owed.credit_note_id, shop.bill(invoice).await.as_str()), (None, "finalized paid 70.00 due 49.00"));
    shop.refund(scope, invoice, back(json!({}))).await.unwrap();
    assert_eq!(shop.bill(invoice).await, "finalized paid 40.00 due 49.00", "30.00 are credited");
    shop.record(scope, invoice, transfer("49.00")).await.unwrap();
    assert_eq!(shop.bill(invoice).await, "paid paid 89.00 due 0.00");
    assert_eq!(
        (shop.balance(scope, "receivable").await.as_str(), shop.cash(scope, wallet).await.as_str()),
        ("0.00", "0.00")
    );
    assert_eq!(shop.balance(scope, "manual_clearing").await, "89.00");
    shop.assert_verified().await;
}

#[tokio::test]
async fn lines_are_credited_as_asked_or_in_proportion() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let lines = [("10.00", "1.90", "19"), ("10.00", "0.70", "7"), ("10.00", "0.00", "0")];
    let invoice = shop.invoice(scope, payer.customer, &lines).await;
    let _ = shop.charge(scope, invoice).await.unwrap();
    let ids: Vec<uuid::Uuid> =
        sqlx::query_scalar("SELECT id FROM invoice_line WHERE invoice_id = $1 ORDER BY position")
            .bind(invoice)
            .fetch_all(shop.store.pool())
            .await
            .unwrap();
    let item = |line: usize, value: &str| json!({"invoice_line_id": ids[line], "amount": eur(value)});
    for (body, code) in [
        (json!({"line_items": [item(0, "11.91")]}), "CREDIT_EXCEEDS_INVOICE"),
        (json!({"line_items": [item(0, "1.00")], "amount": eur("2.00")}), "VALIDATION"),
        (json!({"line_items": [item(0, "1.00"), item(0, "1.00")]}), "VALIDATION"),
        (json!({"line_items": [item(0, "1.00")], "create_credit_note": false}), "VALIDATION"),
        (
            json!({"line_items": [{"invoice_line_id": uuid::Uuid::now_v7(), "amount": eur("1.00")}]}),
            "CREDIT_EXCEEDS_INVOICE",
        ),
        (json!({"wallet_id": payer.wallet}), "VALIDATION"),
        (json!({"amount": {"value": "1.00", "currency": "USD"}}), "CURRENCY_MISMATCH"),
        (json!({"destination": "CASH"}), "VALIDATION"),
    ] {
        assert_eq!(shop.refund(scope, invoice, body.clone()).await.unwrap_err().code(), code, "{body}");
    }
    assert_eq!(shop.bank.returned(), Vec::<String>::new(), "a refusal moves nothing");
    shop.refund(scope, invoice, json!({"line_items": [item(1, "10.70")]})).await.unwrap();
    assert_eq!(shop.notes(scope, invoice).await, [note(["10.70", "10.00", "0.70", "applied", "0.00"])]);
    shop.refund(scope, invoice, json!({})).await.unwrap();
    assert_eq!(shop.notes(scope, invoice).await[1], note(["21.90", "20.00", "1.90", "applied", "0.00"]));
    shop.assert_even(scope, "0.00").await;
}

#[tokio::test]
async fn what_cannot_be_refunded_is_refused() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let unpaid = shop.invoice(scope, payer.customer, PLAIN).await;
    assert_eq!(shop.refund(scope, unpaid, json!({})).await.unwrap_err().code(), "INVALID_TRANSITION");
    assert_eq!(shop.refund(scope, InvoiceId::generate(), json!({})).await.unwrap_err().code(), "NOT_FOUND");
    let (invoice, _) = shop.paid(scope, &payer).await;
    assert_eq!(shop.refund(&shop.sandbox, invoice, json!({})).await.unwrap_err().code(), "NOT_FOUND");
    let (_, stranger) = shop.customer(scope, Default::default()).await;
    let body = json!({"destination": "WALLET", "wallet_id": stranger});
    assert_eq!(shop.refund(scope, invoice, body).await.unwrap_err().code(), "NOT_FOUND");
    let mut tx = shop.store.begin("cap").await.unwrap();
    sqlx::query("UPDATE wallet SET max_single_credit = 100 WHERE id = $1")
        .bind(payer.wallet)
        .execute(tx.conn())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let capped = shop.refund(scope, invoice, json!({"destination": "WALLET"})).await.unwrap_err();
    assert_eq!(capped.code(), "MAX_SINGLE_CREDIT_EXCEEDED");
    assert_eq!(shop.notes(scope, invoice).await, Vec::<[String; 5]>::new());
    assert_eq!(shop.balance(scope, "receivable").await, "119.00", "the unpaid one");
    shop.assert_verified().await;
}

/// A process dies at every point of a refund: the money goes back once.
#[tokio::test]
async fn a_refund_survives_a_crash_at_every_point() {
    for what in ["before the call", "during the call", "the answer is lost", "recording"] {
        let shop = Shop::open().await;
        let scope = shop.live;
        let payer = shop.payer(&scope).await;
        let (invoice, charge) = shop.paid(&scope, &payer).await;
        match what {
            "before the call" => {
                drop(shop.order_refund(&scope, invoice, json!({"amount": eur("19.00")})).await.unwrap())
            }
            "during the call" => {
                shop.bank.will([Step::TakeAndHang]);
                let ordered = shop.order_refund(&scope, invoice, json!({"amount": eur("19.00")})).await.unwrap().value;
                let payments = shop.payments.clone();
                let process =
                    tokio::spawn(async move { payments.proceed_with_refund(&scope, &ordered, Attempt::First).await });
                shop.bank.hanging.notified().await;
                process.abort();
                assert!(process.await.unwrap_err().is_cancelled());
            }
            "the answer is lost" => {
                shop.bank.will([Step::TakeAndLose]);
                let open = shop.refund(&scope, invoice, json!({"amount": eur("19.00")})).await.unwrap();
                assert_eq!(open.status, TransactionStatus::Pending);
            }
            _ => {
                shop.fail_at("credit_note.applied").await;
                let failed = shop.refund(&scope, invoice, json!({"amount": eur("19.00")})).await.unwrap_err();
                assert_eq!(failed.code(), "INTERNAL_ERROR");
                shop.fail_no_more().await;
            }
        }
        shop.sweep_in(4).await;
        shop.sweep_in(20).await;
        assert_eq!(shop.bank.returned(), ["19.00"], "{what}: went back once");
        assert_eq!(
            shop.transactions(&scope).await,
            ["CHARGE PARTIALLY_REFUNDED 119.00", "REFUND SUCCEEDED 19.00"],
            "{what}"
        );
        assert_eq!(shop.get(&scope, charge).await.refunded_amount.amount().to_string(), "19.00", "{what}");
        assert_eq!(shop.notes(&scope, invoice).await, [note(["19.00", "15.97", "3.03", "applied", "0.00"])], "{what}");
        assert_eq!(shop.events(&scope).await["payment.refunded"], 1, "{what}");
        shop.assert_even(&scope, "100.00").await;
    }
}

#[tokio::test]
async fn many_refunds_at_once_give_back_no_more_than_was_paid() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let (invoice, _) = shop.paid(scope, &payer).await;
    let body = |n: usize| match n % 3 {
        0 => json!({"amount": eur("40.00")}),
        1 => json!({"amount": eur("40.00"), "destination": "WALLET"}),
        _ => json!({"amount": eur("40.00"), "destination": "MANUAL"}),
    };
    let done = futures::future::join_all((0..6).map(|n| shop.refund(scope, invoice, body(n)))).await;
    assert_eq!(done.iter().filter(|one| one.is_ok()).count(), 2, "{done:?}");
    assert_eq!(shop.bill(invoice).await, "paid paid 39.00 due 0.00");
    assert_eq!(shop.balance(scope, "receivable").await, "0.00");
    shop.assert_verified().await;
}

#[tokio::test]
async fn a_repeat_with_the_same_key_is_the_same_refund() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let (invoice, _) = shop.paid(scope, &payer).await;
    let body = json!({"amount": eur("19.00"), "idempotency_key": "k"});
    let first = shop.refund(scope, invoice, body.clone()).await.unwrap();
    assert_eq!(shop.refund(scope, invoice, body).await.unwrap(), first);
    let other = json!({"amount": eur("20.00"), "idempotency_key": "k"});
    assert_eq!(shop.refund(scope, invoice, other).await.unwrap_err().code(), "IDEMPOTENCY_CONFLICT");
    assert_eq!(shop.bank.returned(), ["19.00"]);
}
