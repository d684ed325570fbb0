//! Manual payments (manual-payments.md): money that arrived outside the gateways and that an operator records on an invoice.

use billing::invoice::Payable;
use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::{Clock, Error, Input, Instant, InvoiceId, JsonMap, Money, Result, Scope, TransactionId, TransferId};
use serde_json::Value;
use sqlx::PgConnection;
use store::{Page, StoreError, Tx};
use utoipa::ToSchema;

use crate::settle::{clearing_of, settle};
use crate::transaction::{self, ByHand, Change, NewTransaction, Transaction, Way};
use crate::words::{ManualPaymentSource, TransactionKind, TransactionStatus};
use crate::{at_customer, refund};

/// Member of a transaction's metadata that holds what the operator noted.
const NOTE: &str = "note";

/// `internal.payment_manual.RecordManualPaymentRequest`.
#[derive(Clone, Debug, PartialEq, ToSchema)]
pub struct RecordManualPaymentRequest {
    /// How the money came.
    pub source: ManualPaymentSource,
    /// Above zero. Default: what is due.
    pub amount: Option<Money>,
    /// The payer's or the bank's name of it; with `source` once per invoice.
    pub reference: Option<String>,
    /// When it arrived, not in the future. Default: now.
    pub received_at: Option<DateTime<Utc>>,
    /// For people; shown as `note` in the metadata.
    pub note: Option<String>,
    /// Whether what is more than is due goes to the customer's wallet. Default false: it is refused.
    #[schema(required = false)]
    pub credit_excess_to_wallet: bool,
    /// The caller's own.
    #[schema(value_type = Object, required = false)]
    pub metadata: JsonMap,
}

/// `ReverseManualPaymentRequest`.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
pub struct ReverseManualPaymentRequest {
    /// Why it is taken back; shown as `reason` in the metadata of the movement that takes it back.
    pub reason: String,
}

impl RecordManualPaymentRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let source = input.required("source", Field::word);
        let amount = input.optional("amount", Field::money_positive);
        let reference = input.optional("reference", |v| v.text(1, 255));
        let received_at = input.optional("received_at", Field::instant);
        let note = input.optional(NOTE, |v| v.text(1, 500));
        let credit_excess_to_wallet = input.optional("credit_excess_to_wallet", Field::boolean).unwrap_or(false);
        let metadata = input.optional("metadata", Field::metadata).unwrap_or_default();
        if note.is_some() && metadata.contains_key(NOTE) {
            input.error("metadata.note", Code::NotAllowed, "is where `note` is shown: send one of them");
        }
        input.finish()?;
        let source = source.ok_or_else(|| Error::invariant("a required member passed unread"))?;
        Ok(Self { source, amount, reference, received_at, note, credit_excess_to_wallet, metadata })
    }

    fn metadata(&self) -> Result<JsonMap> {
        let note = self.note.clone().map(|note| (NOTE.to_owned(), note.into()));
        let mut metadata = JsonMap::new();
        domain::input::merge_metadata(&mut metadata, self.metadata.clone().into_iter().chain(note).collect())?;
        Ok(metadata)
    }
}

impl ReverseManualPaymentRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let reason = input.required("reason", |v| v.text(1, 500));
        input.finish()?;
        let reason = reason.ok_or_else(|| Error::invariant("a required member passed unread"))?;
        Ok(Self { reason })
    }
}

/// `POST /v1/invoices/{id}/manual-payments`.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` unless the invoice waits for money; `CURRENCY_MISMATCH`; `OVERPAYMENT`; `DUPLICATE` for a
/// `(source, reference)` that the invoice has; `Validation` for an arrival in the future.
pub async fn record(
    scope: &Scope,
    tx: &mut Tx,
    id: InvoiceId,
    request: &RecordManualPaymentRequest,
) -> Result<Transaction> {
    let mut invoice = Payable::lock(scope, tx, id).await?;
    let scope = at_customer(scope, tx.conn(), invoice.customer_id).await?;
    invoice.check_open()?;
    check_arrival(request.received_at, scope.now())?;
    let amount = request.amount.unwrap_or(invoice.due);
    if invoice.due.sub(amount)?.is_negative() && !request.credit_excess_to_wallet {
        let detail = format!(
            "{amount} is more than the {} that are due: credit_excess_to_wallet puts the rest on the customer's wallet",
            invoice.due
        );
        return Err(Error::rule("OVERPAYMENT", detail).with("amount_due", invoice.due));
    }
    refuse_repeated(&scope, tx, id, request).await?;
    let way = Way::Hand(ByHand {
        source: Some(request.source),
        reference: request.reference.clone(),
        received_at: request.received_at,
    });
    let new =
        NewTransaction::new(invoice.customer_id, TransactionKind::ManualPayment, amount, way).of_invoice(&invoice);
    let new = NewTransaction { metadata: request.metadata()?, ..new };
    let row = transaction::insert(&scope, tx, &new, Clock::System.now()).await?;
    let row = settle(&scope, tx, &mut invoice, row).await?;
    tx.emit(&scope, "payment.succeeded", "transaction", row.id, row.payload()).await?;
    Ok(row)
}

fn check_arrival(received_at: Option<Instant>, now: Instant) -> Result<()> {
    match received_at {
        Some(at) if at > now => Err(Error::field("received_at", Code::OutOfRange, "must not be in the future")),
        _ => Ok(()),
    }
}

/// Under the invoice's lock, so that no other request stands between the look and the row; a unique index says the same.
async fn refuse_repeated(
    scope: &Scope,
    tx: &mut Tx,
    id: InvoiceId,
    request: &RecordManualPaymentRequest,
) -> Result<()> {
    let Some(reference) = &request.reference else { return Ok(()) };
    let existing: Option<TransactionId> = sqlx::query_scalar(
        "SELECT id FROM payment_transaction WHERE workspace_id = $1 AND invoice_id = $2 AND source = $3 AND reference = $4
             AND kind = 'MANUAL_PAYMENT' AND status IN ('SUCCEEDED', 'PARTIALLY_REFUNDED')",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(request.source)
    .bind(reference)
    .fetch_optional(tx.conn())
    .await
    .context("looking for a payment of the same reference")?;
    match existing {
        Some(existing) => Err(Error::duplicate("reference", Some(existing.to_string()))),
        None => Ok(()),
    }
}

/// `GET /v1/invoices/{id}/manual-payments`, newest first.
///
/// # Errors
/// `NotFound` for the invoice; `Validation` and `INVALID_CURSOR` for the parameters.
pub async fn list(
    scope: &Scope,
    conn: &mut PgConnection,
    id: InvoiceId,
    parameters: &[(String, String)],
) -> Result<Page<Transaction>> {
    transaction::list_of_invoice(scope, conn, id, Some(TransactionKind::ManualPayment), parameters).await
}

/// `POST /v1/invoices/{id}/manual-payments/{payment_id}/reverse`: the payment is REFUNDED by a movement of its own, and its amount
/// is due again.
///
/// # Errors
/// `NotFound` for invoice or payment; `INVALID_TRANSITION` once the invoice is paid, and of a payment that was given back.
pub async fn reverse(
    scope: &Scope,
    tx: &mut Tx,
    id: InvoiceId,
    payment: TransactionId,
    request: &ReverseManualPaymentRequest,
) -> Result<Transaction> {
    let mut invoice = Payable::lock(scope, tx, id).await?;
    let scope = at_customer(scope, tx.conn(), invoice.customer_id).await?;
    let row = transaction::lock(&scope, tx, payment).await?;
    if row.invoice_id != Some(id) || row.kind != TransactionKind::ManualPayment {
        return Err(Error::not_found("manual_payment", payment));
    }
    if !invoice.is_open() {
        let detail = format!("the invoice is {}: refund the payment instead of reversing it", invoice.status);
        let error = Error::conflict("INVALID_TRANSITION", detail);
        return Err(error.with("entity_type", "invoice").with("entity_id", id).with("from", invoice.status));
    }
    if row.status != TransactionStatus::Succeeded {
        return Err(Error::invalid_transition("transaction", payment, row.status.as_str(), "REFUNDED", &[]));
    }
    let way = Way::Hand(ByHand { source: row.source, ..ByHand::default() });
    let mut back = NewTransaction::back(&row, TransactionKind::Refund, row.amount, way);
    back.metadata.insert("reason".to_owned(), request.reason.clone().into());
    let back = transaction::insert(&scope, tx, &back, Clock::System.now()).await?;
    let reversed = transaction::apply(&scope, tx, &row, &Change::Refunded(row.amount)).await?;
    let transfer = ledger::refund_transfer(&scope, TransferId(back.id.0), id, clearing_of(&row), row.amount)?;
    ledger::post_new(tx, &scope, &[transfer]).await?;
    invoice.give_back(&scope, tx, row.amount, true).await?;
    refund::announce(&scope, tx, &reversed, &back).await?;
    Ok(reversed)
}
