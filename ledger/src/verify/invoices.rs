//! Invoice numbers without a gap (rule D6), and invoices booked with their totals.

use std::collections::HashMap;

use domain::{InvoiceId, Result, TransferId, WorkspaceId};
use rust_decimal::Decimal;
use store::{Store, StoreError};
use uuid::Uuid;

use super::{Check, Progress, Report};
use crate::invoice::invoice_transfer_id;

const WORKSPACES: i64 = 20;
const INVOICES: i64 = 2_000;

/// Numbers are unique, so that as many as the largest are all from one on.
const NUMBERS: &str = "
SELECT w.id, coalesce(s.next_number, 1) - 1, i.numbered, i.largest
FROM workspace w
LEFT JOIN document_series s ON s.workspace_id = w.id AND s.kind = 'invoice'
CROSS JOIN LATERAL (
    SELECT count(sequence_number), coalesce(max(sequence_number), 0) FROM invoice
    WHERE invoice.workspace_id = w.id AND sequence_number IS NOT NULL
) AS i (numbered, largest)
WHERE w.id > $1 ORDER BY w.id LIMIT $2";

pub(super) async fn check_numbers(
    store: &Store,
    report: &mut Report,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let rows: Vec<(WorkspaceId, i64, i64, i64)> = sqlx::query_as(NUMBERS)
            .bind(after)
            .bind(WORKSPACES)
            .fetch_all(store.pool())
            .await
            .context("counting invoice numbers")?;
        let Some((last, ..)) = rows.last() else { return Ok(()) };
        after = last.0;
        report.workspaces += rows.len() as u64;
        for (workspace, given, numbered, largest) in rows {
            if given != numbered || given != largest {
                report.add(
                    Check::InvoiceNumber,
                    format!("workspace {workspace} invoice numbers"),
                    format!("1 to {given}"),
                    format!("{numbered}, up to {largest}"),
                );
            }
        }
        progress(Progress { check: Check::InvoiceNumber, done: report.workspaces });
    }
}

pub(super) async fn check_bookings(
    store: &Store,
    report: &mut Report,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<()> {
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
        let booked = receivables(store, &invoices).await?;
        report.invoices += invoices.len() as u64;
        for (invoice, total) in invoices {
            let found = booked.get(&invoice_transfer_id(invoice)).copied().unwrap_or_default();
            if found != total {
                report.add(Check::InvoiceBooking, format!("receivable of invoice {invoice}"), total, found);
            }
        }
        progress(Progress { check: Check::InvoiceBooking, done: report.invoices });
    }
}

/// What each invoice's transfer booked on the receivable account.
async fn receivables(store: &Store, invoices: &[(InvoiceId, Decimal)]) -> Result<HashMap<TransferId, Decimal>> {
    let ids: Vec<Uuid> = invoices.iter().map(|(id, _)| invoice_transfer_id(*id).0).collect();
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
