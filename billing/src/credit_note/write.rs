//! Issuing: credit notes are numbered, booked, written and announced at once, in the caller's transaction.

use domain::{
    CreditNoteId, CreditNoteLineId, Currency, CustomerId, Error, InvoiceId, InvoiceLineId, JsonMap, Money,
    OrganizationId, Result, Scope, SubscriptionId, TaxCategoryCode, TransactionId, WorkspaceId,
};
use ledger::WorkspaceAccount;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::{StoreError, Tx};

use super::words::{CreditNoteReasonCode, CreditNoteStatus};
use crate::events::{self, Event};
use crate::invoice::finalize::{DocumentKind, take_numbers};
use crate::settings::BillingSettings;

/// A part of an invoice line that is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub line_id: InvoiceLineId,
    pub description: String,
    pub net: Money,
    pub tax: Money,
    pub tax_rate: Decimal,
    pub tax_category: TaxCategoryCode,
}

/// A credit note that is to be issued; it has a line.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub customer_id: CustomerId,
    pub subscription_id: Option<SubscriptionId>,
    pub invoice_id: InvoiceId,
    /// The account that the invoice was booked against.
    pub against: WorkspaceAccount,
    pub reason_code: CreditNoteReasonCode,
    pub reason: String,
    /// The refund that it goes with.
    pub refund_transaction_id: Option<TransactionId>,
    pub metadata: JsonMap,
    pub lines: Vec<Taken>,
}

#[derive(Serialize)]
struct HeadRow<'a> {
    id: CreditNoteId,
    organization_id: OrganizationId,
    workspace_id: WorkspaceId,
    customer_id: CustomerId,
    invoice_id: InvoiceId,
    credit_note_number: String,
    sequence_number: i64,
    currency: Currency,
    status: CreditNoteStatus,
    reason_code: CreditNoteReasonCode,
    reason: &'a str,
    refund_transaction_id: Option<TransactionId>,
    subtotal: Decimal,
    tax_amount: Decimal,
    total: Decimal,
    amount_remaining: Decimal,
    version: i32,
    metadata: &'a JsonMap,
    issued_at: domain::Instant,
    created_at: domain::Instant,
    updated_at: domain::Instant,
}

#[derive(Serialize)]
struct LineRow<'a> {
    id: CreditNoteLineId,
    workspace_id: WorkspaceId,
    credit_note_id: CreditNoteId,
    position: usize,
    invoice_line_id: InvoiceLineId,
    description: &'a str,
    quantity: Decimal,
    unit_amount: Decimal,
    amount: Decimal,
    tax_rate: Decimal,
    tax_category_code: TaxCategoryCode,
    tax_amount: Decimal,
}

/// Issues credit notes of one workspace and answers their ids in order. The number row is the last lock.
///
/// # Errors
/// What booking says; then nothing may be committed.
pub(super) async fn issue_all(scope: &Scope, tx: &mut Tx, notes: &[Note]) -> Result<Vec<CreditNoteId>> {
    if notes.is_empty() {
        return Ok(Vec::new());
    }
    let settings = BillingSettings::load(tx.conn(), scope.organization_id).await?;
    let (mut heads, mut lines) = (Vec::new(), Vec::new());
    let (mut transfers, mut events) = (Vec::new(), Vec::new());
    let first = take_numbers(scope, tx.conn(), DocumentKind::CreditNote, notes.len()).await?;
    for (note, sequence) in notes.iter().zip(first..) {
        let head = head_row(scope, note, settings.credit_note_number(sequence), sequence)?;
        let (net, tax) = (Money::new(head.subtotal, head.currency)?, Money::new(head.tax_amount, head.currency)?);
        transfers.push(ledger::credit_note_transfer(scope, head.id, note.against, net, tax)?);
        lines.extend(note.lines.iter().zip(1..).map(|(taken, position)| line_row(&head, taken, position)));
        events.extend(announce(scope, &head, note));
        heads.push(head);
    }
    ledger::post(tx, scope, &transfers).await?;
    write(tx.conn(), &heads, &lines).await?;
    events::emit(tx.conn(), &events).await?;
    Ok(heads.iter().map(|head| head.id).collect())
}

fn head_row<'a>(
    scope: &Scope,
    note: &'a Note,
    credit_note_number: String,
    sequence_number: i64,
) -> Result<HeadRow<'a>> {
    let first = note.lines.first().ok_or_else(|| Error::invariant("a credit note without a line"))?;
    let (currency, zero) = (first.net.currency(), Money::zero(first.net.currency()));
    let subtotal = note.lines.iter().try_fold(zero, |sum, one| sum.add(one.net))?;
    let tax_amount = note.lines.iter().try_fold(zero, |sum, one| sum.add(one.tax))?;
    let (total, now) = (subtotal.add(tax_amount)?.amount(), scope.now());
    Ok(HeadRow {
        id: CreditNoteId::generate(),
        organization_id: scope.organization_id,
        workspace_id: scope.workspace_id,
        customer_id: note.customer_id,
        invoice_id: note.invoice_id,
        credit_note_number,
        sequence_number,
        currency,
        status: CreditNoteStatus::Issued,
        reason_code: note.reason_code,
        reason: &note.reason,
        refund_transaction_id: note.refund_transaction_id,
        subtotal: subtotal.amount(),
        tax_amount: tax_amount.amount(),
        total,
        amount_remaining: total,
        version: 1,
        metadata: &note.metadata,
        issued_at: now,
        created_at: now,
        updated_at: now,
    })
}

/// A part of an amount has no quantity of its own: it is one, at what is taken back.
fn line_row<'a>(head: &HeadRow<'_>, taken: &'a Taken, position: usize) -> LineRow<'a> {
    LineRow {
        id: CreditNoteLineId::generate(),
        workspace_id: head.workspace_id,
        credit_note_id: head.id,
        position,
        invoice_line_id: taken.line_id,
        description: &taken.description,
        quantity: Decimal::ONE,
        unit_amount: taken.net.amount(),
        amount: taken.net.amount(),
        tax_rate: taken.tax_rate,
        tax_category_code: taken.tax_category,
        tax_amount: taken.tax.amount(),
    }
}

fn announce(scope: &Scope, head: &HeadRow<'_>, note: &Note) -> [Event; 2] {
    let payload = json!({
        "credit_note_id": head.id,
        "credit_note_number": head.credit_note_number,
        "invoice_id": head.invoice_id,
        "customer_id": head.customer_id,
        "subscription_id": note.subscription_id,
        "reason_code": head.reason_code,
        "total": Money::new(head.total, head.currency).ok(),
    });
    ["credit_note.created", "credit_note.issued"]
        .map(|kind| Event::new(scope.workspace_id, kind, "credit_note", head.id, payload.clone(), scope.now()))
}

async fn write(conn: &mut PgConnection, heads: &[HeadRow<'_>], lines: &[LineRow<'_>]) -> Result<()> {
    sqlx::query("INSERT INTO credit_note SELECT * FROM jsonb_populate_recordset(NULL::credit_note, $1)")
        .bind(Json(heads))
        .execute(&mut *conn)
        .await
        .context("writing credit notes")?;
    sqlx::query("INSERT INTO credit_note_line SELECT * FROM jsonb_populate_recordset(NULL::credit_note_line, $1)")
        .bind(Json(lines))
        .execute(conn)
        .await
        .context("writing the lines of credit notes")?;
    Ok(())
}
