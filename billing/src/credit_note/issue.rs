//! Issues credit notes over usage that its invoices charged too high: the totals of a window that is billed again cost less
//! (a unit price that falls with the volume, usage that was taken back).

use domain::{
    CreditNoteId, CreditNoteLineId, Currency, InvoiceId, InvoiceLineId, Money, OrganizationId, Result, Scope,
    TaxCategoryCode, WorkspaceId,
};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::{StoreError, Tx};

use super::words::{CreditNoteReasonCode, CreditNoteStatus};
use crate::events::{self, Event};
use crate::invoice::draft::DraftLine;
use crate::invoice::draft::difference::has_charged;
use crate::invoice::finalize::{DocumentKind, take_numbers};
use crate::invoice::invoiced::Invoiced;
use crate::invoice::save::Computed;
use crate::settings::BillingSettings;
use crate::subscription::Subscription;

/// A part of an invoice line that is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    invoice_id: InvoiceId,
    line_id: InvoiceLineId,
    description: String,
    net: Money,
    tax: Money,
    tax_rate: Decimal,
    tax_category: TaxCategoryCode,
}

#[derive(Serialize)]
struct HeadRow {
    id: CreditNoteId,
    organization_id: OrganizationId,
    workspace_id: WorkspaceId,
    customer_id: domain::CustomerId,
    invoice_id: InvoiceId,
    credit_note_number: String,
    sequence_number: i64,
    currency: Currency,
    status: CreditNoteStatus,
    reason_code: CreditNoteReasonCode,
    reason: &'static str,
    subtotal: Decimal,
    tax_amount: Decimal,
    total: Decimal,
    amount_remaining: Decimal,
    version: i32,
    metadata: serde_json::Value,
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

/// Issues what these runs owe, one credit note for each invoice that is taken back a part of: numbered and booked at once, in
/// the caller's transaction. The number row is the last lock.
///
/// # Errors
/// What booking says; then nothing may be committed.
pub(crate) async fn issue(scope: &Scope, tx: &mut Tx, computed: &[Computed<'_>]) -> Result<()> {
    let mut notes: Vec<(&Subscription, Vec<Taken>)> = Vec::new();
    for Computed { subscription, credits, invoiced, .. } in computed {
        for taken in take_back(credits, invoiced)? {
            match notes.iter_mut().find(|(_, lines)| lines[0].invoice_id == taken.invoice_id) {
                Some((_, lines)) => lines.push(taken),
                None => notes.push((subscription, vec![taken])),
            }
        }
    }
    if notes.is_empty() {
        return Ok(());
    }
    let settings = BillingSettings::load(tx.conn(), scope.organization_id).await?;
    let (mut heads, mut lines) = (Vec::new(), Vec::new());
    let (mut transfers, mut events) = (Vec::new(), Vec::new());
    let first = take_numbers(scope, tx.conn(), DocumentKind::CreditNote, notes.len()).await?;
    for ((subscription, taken), sequence) in notes.iter().zip(first..) {
        let head = head_row(scope, subscription, taken, settings.credit_note_number(sequence), sequence)?;
        let (net, tax) = (Money::new(head.subtotal, head.currency)?, Money::new(head.tax_amount, head.currency)?);
        transfers.push(ledger::credit_note_transfer(scope, head.id, net, tax)?);
        lines.extend(taken.iter().zip(1..).map(|(taken, position)| line_row(&head, taken, position)));
        events.extend(announce(scope, &head, subscription));
        heads.push(head);
    }
    ledger::post(tx, scope, &transfers).await?;
    write(tx.conn(), &heads, &lines).await?;
    events::emit(tx.conn(), &events).await
}

/// What negative lines take back of which earlier lines: the latest first, of each at most what stands of it.
fn take_back(credits: &[DraftLine], invoiced: &[Invoiced]) -> Result<Vec<Taken>> {
    let mut taken = Vec::new();
    for credit in credits {
        let mut open = credit.amount.negate();
        for earlier in invoiced.iter().rev().filter(|earlier| has_charged(earlier, credit)) {
            let standing = earlier.standing()?;
            let net = if standing.amount() <= open.amount() { standing } else { open };
            if net.is_zero() || net.is_negative() {
                continue;
            }
            taken.push(part_of(earlier, net, net == standing)?);
            open = open.sub(net)?;
        }
    }
    Ok(taken)
}

/// The last credit of a line takes the remaining cents of its tax, so that both together leave exactly none (credit-notes.md
/// 4, Tax).
fn part_of(earlier: &Invoiced, net: Money, is_last: bool) -> Result<Taken> {
    let tax = if is_last {
        earlier.tax_amount.sub(earlier.tax_credited)?
    } else {
        Money::round(earlier.tax_amount.amount() * net.amount() / earlier.amount.amount(), net.currency())?
    };
    Ok(Taken {
        invoice_id: earlier.invoice_id,
        line_id: earlier.line_id,
        description: earlier.description.clone(),
        net,
        tax,
        tax_rate: earlier.tax_rate,
        tax_category: earlier.tax_category,
    })
}

fn head_row(
    scope: &Scope,
    subscription: &Subscription,
    taken: &[Taken],
    credit_note_number: String,
    sequence_number: i64,
) -> Result<HeadRow> {
    let zero = Money::zero(subscription.currency);
    let subtotal = taken.iter().try_fold(zero, |sum, one| sum.add(one.net))?;
    let tax_amount = taken.iter().try_fold(zero, |sum, one| sum.add(one.tax))?;
    let (total, now) = (subtotal.add(tax_amount)?.amount(), scope.now());
    Ok(HeadRow {
        id: CreditNoteId::generate(),
        organization_id: subscription.organization_id,
        workspace_id: subscription.workspace_id,
        customer_id: subscription.customer_id,
        invoice_id: taken[0].invoice_id,
        credit_note_number,
        sequence_number,
        currency: subscription.currency,
        status: CreditNoteStatus::Issued,
        reason_code: CreditNoteReasonCode::BillingError,
        reason: "the usage of the period costs less than was charged",
        subtotal: subtotal.amount(),
        tax_amount: tax_amount.amount(),
        total,
        amount_remaining: total,
        version: 1,
        metadata: json!({}),
        issued_at: now,
        created_at: now,
        updated_at: now,
    })
}

/// A part of an amount has no quantity of its own: it is one, at what is taken back.
fn line_row<'a>(head: &HeadRow, taken: &'a Taken, position: usize) -> LineRow<'a> {
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

fn announce(scope: &Scope, head: &HeadRow, subscription: &Subscription) -> [Event; 2] {
    let payload = json!({
        "credit_note_id": head.id,
        "credit_note_number": head.credit_note_number,
        "invoice_id": head.invoice_id,
        "customer_id": head.customer_id,
        "subscription_id": subscription.id,
        "reason_code": head.reason_code,
        "total": Money::new(head.total, head.currency).ok(),
    });
    ["credit_note.created", "credit_note.issued"]
        .map(|kind| Event::new(scope.workspace_id, kind, "credit_note", head.id, payload.clone(), scope.now()))
}

async fn write(conn: &mut PgConnection, heads: &[HeadRow], lines: &[LineRow<'_>]) -> Result<()> {
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
