//! What becomes of the credit of refunds: money that went back applies it. A refund that fails leaves its credit note open, and the
//! next refund of the invoice is the one that applies it, so that no credit is given twice.

use domain::{CreditNoteId, Currency, InvoiceId, Money, Result, Scope, TransactionId};
use rust_decimal::Decimal;
use serde_json::json;
use sqlx::FromRow;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::words::CreditNoteStatus;
use crate::events::{self, Event};
use crate::invoice::Payable;

/// Credit of refunds that no money has followed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenCredit {
    /// The oldest credit note with some.
    pub credit_note_id: CreditNoteId,
    /// Of all of them.
    pub amount: Money,
}

#[derive(FromRow)]
struct Open {
    id: CreditNoteId,
    credit_note_number: String,
    currency: Currency,
    amount_remaining: Decimal,
}

/// What is open of the credit notes that went with refunds of a locked invoice; `None` when nothing is.
///
/// # Errors
/// As every statement.
pub async fn open_credit(scope: &Scope, tx: &mut Tx, invoice: &Payable) -> Result<Option<OpenCredit>> {
    let notes = open_notes(scope, tx, invoice.id).await?;
    let Some(first) = notes.first() else { return Ok(None) };
    let sum: Decimal = notes.iter().map(|note| note.amount_remaining).sum();
    Ok(Some(OpenCredit { credit_note_id: first.id, amount: Money::new(sum, first.currency)? }))
}

/// Locked, the oldest first.
async fn open_notes(scope: &Scope, tx: &mut Tx, id: InvoiceId) -> Result<Vec<Open>> {
    sqlx::query_as(
        "SELECT id, credit_note_number, currency, amount_remaining FROM credit_note
         WHERE workspace_id = $1 AND invoice_id = $2 AND refund_transaction_id IS NOT NULL AND amount_remaining > 0
             AND status IN ('issued', 'partially_applied')
         ORDER BY id FOR NO KEY UPDATE",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_all(tx.conn())
    .await
    .context("reading the open credit of an invoice")
}

/// Applies credit of a locked invoice to a refund whose money has gone, the oldest credit note first.
///
/// # Errors
/// As every statement.
pub async fn apply_refund(
    scope: &Scope,
    tx: &mut Tx,
    invoice: &Payable,
    refund: TransactionId,
    amount: Money,
) -> Result<()> {
    let mut rest = amount.amount();
    let mut events = Vec::new();
    for note in open_notes(scope, tx, invoice.id).await? {
        let part = rest.min(note.amount_remaining);
        if part.is_zero() {
            break;
        }
        rest -= part;
        let remaining = note.amount_remaining - part;
        let status = if remaining.is_zero() { CreditNoteStatus::Applied } else { CreditNoteStatus::PartiallyApplied };
        apply(scope, tx, &note, (part, remaining, status), refund).await?;
        let payload = json!({
            "credit_note_id": note.id, "credit_note_number": note.credit_note_number, "invoice_id": invoice.id,
            "customer_id": invoice.customer_id, "subscription_id": invoice.subscription_id, "target": "REFUND",
            "transaction_id": refund, "status": status, "amount": Money::new(part, note.currency)?,
            "amount_remaining": Money::new(remaining, note.currency)?,
        });
        events.push(Event::new(
            scope.workspace_id,
            "credit_note.applied",
            "credit_note",
            note.id,
            payload,
            scope.now(),
        ));
    }
    if !rest.is_zero() {
        // The money is gone in any case: that must be written down.
        tracing::error!(transaction.id = %refund, %rest, "a refund went with credit that is not open any more");
    }
    events::emit(tx.conn(), &events).await
}

async fn apply(
    scope: &Scope,
    tx: &mut Tx,
    note: &Open,
    (part, remaining, status): (Decimal, Decimal, CreditNoteStatus),
    refund: TransactionId,
) -> Result<()> {
    sqlx::query(
        "WITH applied AS (
             INSERT INTO credit_note_application (id, workspace_id, credit_note_id, target, transaction_id, amount, currency,
                 applied_at)
             VALUES ($3, $1, $2, 'REFUND', $4, $5, $6, $9))
         UPDATE credit_note SET amount_remaining = $7, status = $8, updated_at = $9, version = version + 1
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(note.id)
    .bind(Uuid::now_v7())
    .bind(refund)
    .bind(part)
    .bind(note.currency)
    .bind(remaining)
    .bind(status)
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("applying a credit note to a refund")?;
    Ok(())
}
