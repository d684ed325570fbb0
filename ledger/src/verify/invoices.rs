//! Numbers of invoices and credit notes without a gap (rule D6), both booked with their totals, and what is paid of invoices.

use std::collections::HashMap;

use domain::{CreditNoteId, InvoiceId, Result, TransferId, WorkspaceId};
use rust_decimal::Decimal;
use store::{Store, StoreError};
use uuid::Uuid;

use super::{Check, Report, Tell};
use crate::invoice::{credit_note_transfer_id, invoice_transfer_id};

const WORKSPACES: i64 = 20;
const INVOICES: i64 = 2_000;

/// Numbers are unique, so that as many as the largest are all from one on. One row per workspace and series.
const NUMBERS: &str = "
SELECT w.id, series.kind, coalesce(s.next_number, 1) - 1, i.numbered, i.largest
FROM (SELECT id FROM workspace WHERE id > $1 ORDER BY id LIMIT $2) AS w
CROSS JOIN (VALUES ('invoice'), ('credit_note')) AS series (kind)
LEFT JOIN document_series s ON s.workspace_id = w.id AND s.kind = series.kind
CROSS JOIN LATERAL (
    SELECT count(number), coalesce(max(number), 0) FROM (
        SELECT sequence_number AS number FROM invoice
        WHERE series.kind = 'invoice' AND invoice.workspace_id = w.id AND sequence_number IS NOT NULL
        UNION ALL
        SELECT sequence_number FROM credit_note
        WHERE series.kind = 'credit_note' AND credit_note.workspace_id = w.id AND sequence_number IS NOT NULL) AS numbers
) AS i (numbered, largest)
ORDER BY w.id, series.kind";

pub(super) async fn check_numbers(store: &Store, report: &mut Report, progress: &mut Tell<'_>) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let rows: Vec<(WorkspaceId, String, i64, i64, i64)> = sqlx::query_as(NUMBERS)
            .bind(after)
            .bind(WORKSPACES)
            .fetch_all(store.pool())
            .await
            .context("counting invoice numbers")?;
        let Some((last, ..)) = rows.last() else { return Ok(()) };
        after = last.0;
        report.workspaces += rows.len() as u64 / 2;
        for (workspace, kind, given, numbered, largest) in rows {
            if given != numbered || given != largest {
                report.add(
                    Check::InvoiceNumber,
                    format!("workspace {workspace} {kind} numbers"),
                    format!("1 to {given}"),
                    format!("{numbered}, up to {largest}"),
                );
            }
        }
        progress(Check::InvoiceNumber, report.workspaces);
    }
}

/// Credit notes are few: as many at a time as invoices.
pub(super) async fn check_credit_notes(store: &Store, report: &mut Report) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let notes: Vec<(CreditNoteId, Decimal)> = sqlx::query_as(
            "SELECT id, total FROM credit_note WHERE id > $1 AND sequence_number IS NOT NULL ORDER BY id LIMIT $2",
        )
        .bind(after)
        .bind(INVOICES)
        .fetch_all(store.pool())
        .await
        .context("walking credit notes")?;
        let Some((last, _)) = notes.last() else { return Ok(()) };
        after = last.0;
        let booked = receivables(store, notes.iter().map(|(id, _)| credit_note_transfer_id(*id))).await?;
        for (note, total) in notes {
            let found = booked.get(&credit_note_transfer_id(note)).copied().unwrap_or_default();
            if found != -total {
                report.add(Check::InvoiceBooking, format!("receivable of credit note {note}"), -total, found);
            }
        }
    }
}

pub(super) async fn check_bookings(store: &Store, report: &mut Report, progress: &mut Tell<'_>) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let invoices: Vec<(InvoiceId, Decimal)> = sqlx::query_as(
            "SELECT id, total FROM invoice WHERE id > $1 AND sequence_number IS NOT NULL AND status <> 'error'
             ORDER BY id LIMIT $2",
        )
        .bind(after)
        .bind(INVOICES)
        .fetch_all(store.pool())
        .await
        .context("walking invoices")?;
        let Some((last, _)) = invoices.last() else { return Ok(()) };
        after = last.0;
        let booked = receivables(store, invoices.iter().map(|(id, _)| invoice_transfer_id(*id))).await?;
        report.invoices += invoices.len() as u64;
        for (invoice, total) in invoices {
            let found = booked.get(&invoice_transfer_id(invoice)).copied().unwrap_or_default();
            if found != total {
                report.add(Check::InvoiceBooking, format!("receivable of invoice {invoice}"), total, found);
            }
        }
        progress(Check::InvoiceBooking, report.invoices);
    }
}

/// What is paid of invoices, and what movements say of it: succeeded inbound less what went back, without what was on a wallet.
const PAID: &str = "
SELECT i.id, i.amount_paid, moved.amount
FROM (SELECT id, amount_paid FROM invoice WHERE id > $1 AND sequence_number IS NOT NULL ORDER BY id LIMIT $2) AS i
CROSS JOIN LATERAL (
    SELECT coalesce(sum(CASE direction WHEN 'INBOUND' THEN 1 ELSE -1 END * (amount - excess_amount)), 0) AS amount
    FROM payment_transaction t
    WHERE t.invoice_id = i.id AND t.status IN ('SUCCEEDED', 'PARTIALLY_REFUNDED', 'REFUNDED', 'DISPUTED')) AS moved
ORDER BY i.id";

pub(super) async fn check_paid(store: &Store, report: &mut Report) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let invoices: Vec<(InvoiceId, Decimal, Decimal)> = sqlx::query_as(PAID)
            .bind(after)
            .bind(INVOICES)
            .fetch_all(store.pool())
            .await
            .context("comparing what is paid of invoices")?;
        let Some((last, ..)) = invoices.last() else { return Ok(()) };
        after = last.0;
        for (invoice, paid, moved) in invoices {
            if paid != moved {
                report.add(Check::InvoicePaid, format!("paid amount of invoice {invoice}"), moved, paid);
            }
        }
    }
}

/// What each transfer booked on the receivable account.
async fn receivables(
    store: &Store,
    transfers: impl Iterator<Item = TransferId>,
) -> Result<HashMap<TransferId, Decimal>> {
    let ids: Vec<Uuid> = transfers.map(|id| id.0).collect();
    let rows: Vec<(TransferId, Decimal)> = sqlx::query_as(
        "SELECT e.transfer_id, sum(e.amount) FROM ledger_entry e JOIN ledger_account a ON a.id = e.account_id
         WHERE e.transfer_id = ANY($1) AND a.kind = 'receivable' GROUP BY e.transfer_id",
    )
    .bind(ids)
    .fetch_all(store.pool())
    .await
    .context("reading the bookings of invoices")?;
    Ok(rows.into_iter().collect())
}
