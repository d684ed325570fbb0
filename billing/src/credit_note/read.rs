//! Reading credit notes: lists, one with its lines.

use domain::{CreditNoteId, Error, Result, Scope};
use sqlx::{AssertSqlSafe, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};

use super::model::{COLUMNS, CreditNoteDTO, LINE_COLUMNS};

/// How credit notes are listed.
pub const LIST: ListSpec = ListSpec {
    name: "credit_notes",
    columns: COLUMNS,
    from: "credit_note",
    workspace_column: "workspace_id",
    condition: "deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("status", ListKind::Word(&["draft", "issued", "partially_applied", "applied", "void"])),
        ListField::new("customer_id", ListKind::Id),
        ListField::new("invoice_id", ListKind::Id),
        ListField::new("currency", ListKind::Text),
        ListField::new("credit_note_number", ListKind::Text),
        ListField::new(
            "reason_code",
            ListKind::Word(&[
                "REFUND",
                "VOID",
                "BILLING_ERROR",
                "OVERPAYMENT",
                "CANCELLATION",
                "DOWNGRADE",
                "GOODWILL",
                "SERVICE_CREDIT",
                "OTHER",
            ]),
        ),
        ListField::new("issued_at", ListKind::Instant),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// One page, without lines.
///
/// # Errors
/// As every statement.
pub async fn list(scope: &Scope, conn: &mut PgConnection, query: &ListQuery) -> Result<Page<CreditNoteDTO>> {
    query.fetch(conn, scope).await
}

/// One credit note with its lines.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: CreditNoteId) -> Result<CreditNoteDTO> {
    let sql = format!("SELECT {COLUMNS} FROM credit_note WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL");
    let head: Option<CreditNoteDTO> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(&mut *conn)
        .await
        .context("reading the credit note")?;
    let head = head.ok_or_else(|| Error::not_found("credit_note", id))?;
    let sql = format!(
        "SELECT {LINE_COLUMNS} FROM credit_note_line line JOIN credit_note ON credit_note.id = line.credit_note_id
         WHERE line.workspace_id = $1 AND line.credit_note_id = $2 ORDER BY line.position"
    );
    let lines = sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_all(conn)
        .await
        .context("reading the lines of the credit note")?;
    Ok(CreditNoteDTO { lines: Some(lines), ..head })
}
