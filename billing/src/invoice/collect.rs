//! Which finalized invoices are to be charged (payment-methods.md 4, invoices.md, Collection). Who asks the gateways is `payments`.

use domain::{Instant, InvoiceId, Result, Scope, WorkspaceId};
use sqlx::PgConnection;
use store::{StoreError, Tx};

/// Notes invoices of which something is due and whose customers have a default payment method that a gateway can charge, in the
/// transaction that finalizes them.
pub(super) async fn want(scope: &Scope, conn: &mut PgConnection, ids: &[InvoiceId]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO invoice_charge (invoice_id, workspace_id)
         SELECT invoice.id, invoice.workspace_id FROM invoice
         JOIN payment_method method ON method.customer_id = invoice.customer_id AND method.is_default
              AND method.type <> 'EXTERNAL'
         WHERE invoice.workspace_id = $1 AND invoice.id = ANY($2) ORDER BY invoice.id
         ON CONFLICT DO NOTHING",
    )
    .bind(scope.workspace_id)
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .execute(conn)
    .await
    .context("noting invoices that are to be charged")?;
    Ok(())
}

/// Invoices that are to be charged at an instant of real time and have no charge under way.
///
/// # Errors
/// As every statement.
pub async fn wanted(conn: &mut PgConnection, real: Instant, limit: i64) -> Result<Vec<(WorkspaceId, InvoiceId)>> {
    sqlx::query_as(
        "SELECT workspace_id, invoice_id FROM invoice_charge wanted
         WHERE not_before <= $1 AND NOT EXISTS (
             SELECT FROM payment_transaction open WHERE open.invoice_id = wanted.invoice_id AND open.kind = 'CHARGE'
                AND open.status IN ('PENDING', 'PROCESSING'))
         ORDER BY not_before, invoice_id LIMIT $2",
    )
    .bind(real)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("looking for invoices that are to be charged")
}

/// Takes the wish of a locked invoice: false when somebody else took it.
///
/// # Errors
/// As every statement.
pub async fn take_wish(tx: &mut Tx, id: InvoiceId, real: Instant) -> Result<bool> {
    let taken = sqlx::query("DELETE FROM invoice_charge WHERE invoice_id = $1 AND not_before <= $2")
        .bind(id)
        .bind(real)
        .execute(tx.conn())
        .await
        .context("taking the wish of an invoice")?;
    Ok(taken.rows_affected() == 1)
}

/// After a charge of a locked invoice that failed: it is charged again at an instant of real time.
///
/// # Errors
/// As every statement.
pub async fn want_again(scope: &Scope, tx: &mut Tx, id: InvoiceId, not_before: Instant) -> Result<()> {
    sqlx::query(
        "INSERT INTO invoice_charge (invoice_id, workspace_id, not_before) VALUES ($1, $2, $3)
         ON CONFLICT (invoice_id) DO UPDATE SET not_before = $3",
    )
    .bind(id)
    .bind(scope.workspace_id)
    .bind(not_before)
    .execute(tx.conn())
    .await
    .context("noting when an invoice is charged again")?;
    Ok(())
}
