//! Reading invoices: lists, one with its lines, the atoms of a line.

use domain::{Error, InvoiceId, InvoiceLineId, Result, Scope};
use sqlx::{AssertSqlSafe, PgConnection};
use store::list::ListField;
use store::{ListKind, ListQuery, ListSpec, Page, StoreError};

use super::line::{self, InvoiceLineAtom, InvoiceLineDTO, StoredLine};
use super::model::{self, Invoice, InvoiceDTO};
use crate::pages;

/// How invoices are listed.
pub const LIST: ListSpec = ListSpec {
    name: "invoices",
    columns: model::COLUMNS,
    from: "invoice",
    workspace_column: "workspace_id",
    condition: "deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new(
            "status",
            ListKind::Word(&["draft", "pending_approval", "finalized", "overdue", "paid", "void", "error"]),
        ),
        ListField::new("customer_id", ListKind::Id),
        ListField::new("subscription_id", ListKind::Id),
        ListField::new("currency", ListKind::Text),
        ListField::new("invoice_number", ListKind::Text),
        ListField::new("invoice_type", ListKind::Word(&["subscription", "one_off", "credit_note"])),
        ListField::new("void_reason", ListKind::Text),
        ListField::new("due_date", ListKind::Date),
        ListField::new("issued_at", ListKind::Instant),
        ListField::new("paid_at", ListKind::Instant),
        ListField::new("sent_at", ListKind::Instant),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// One page of heads.
///
/// # Errors
/// As every statement.
pub async fn list(scope: &Scope, conn: &mut PgConnection, query: &ListQuery) -> Result<Page<Invoice>> {
    query.fetch(conn, scope).await
}

/// One invoice with its lines and their atoms in short.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: InvoiceId) -> Result<InvoiceDTO> {
    let head = head(scope, conn, id, false).await?;
    let sql = format!(
        "SELECT {} FROM invoice_line line JOIN invoice ON invoice.id = line.invoice_id
         WHERE line.workspace_id = $1 AND line.invoice_id = $2 ORDER BY line.position",
        line::COLUMNS
    );
    let lines: Vec<StoredLine> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_all(&mut *conn)
        .await
        .context("reading lines")?;
    let credit_note_ids = sqlx::query_scalar(
        "SELECT id FROM credit_note WHERE workspace_id = $1 AND invoice_id = $2 AND deleted_at IS NULL ORDER BY id",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_all(conn)
    .await
    .context("reading the credit notes of the invoice")?;
    let lines = lines.into_iter().map(InvoiceLineDTO::from).collect();
    Ok(InvoiceDTO { credit_note_ids, ..InvoiceDTO::new(head, lines) })
}

/// The head of an invoice.
pub(crate) async fn head(scope: &Scope, conn: &mut PgConnection, id: InvoiceId, lock: bool) -> Result<Invoice> {
    let lock = if lock { "FOR UPDATE" } else { "" };
    let sql = format!(
        "SELECT {} FROM invoice WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL {lock}",
        model::COLUMNS
    );
    let head: Option<Invoice> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading the invoice")?;
    head.ok_or_else(|| Error::not_found("invoice", id))
}

/// One page of the atoms of a line, in full. Parameters are `limit` and `cursor`.
///
/// # Errors
/// `NotFound`, `Validation`, `INVALID_CURSOR`.
pub async fn atoms(
    scope: &Scope,
    conn: &mut PgConnection,
    invoice_id: InvoiceId,
    line_id: InvoiceLineId,
    parameters: &[(String, String)],
) -> Result<Page<InvoiceLineAtom>> {
    let sql = format!(
        "SELECT {} FROM invoice_line line JOIN invoice ON invoice.id = line.invoice_id
         WHERE line.workspace_id = $1 AND line.invoice_id = $2 AND line.id = $3 AND invoice.deleted_at IS NULL",
        line::COLUMNS
    );
    let line: Option<StoredLine> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(invoice_id)
        .bind(line_id)
        .fetch_optional(conn)
        .await
        .context("reading the line")?;
    let line = line.ok_or_else(|| Error::not_found("invoice_line", line_id))?;
    pages::cut("atom", line.atoms, parameters)
}
