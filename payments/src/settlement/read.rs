//! Reads of settlements.

use domain::{Error, Result, Scope, SettlementId};
use sqlx::PgConnection;
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError, Tx};

use super::model::{Settlement, SettlementLine};

/// How settlements are listed, newest first.
pub const LIST: ListSpec = ListSpec {
    name: "settlements",
    columns: "*",
    from: "settlement",
    workspace_column: "workspace_id",
    condition: "deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("status", ListKind::Word(&["draft", "finalized", "paid", "void"])),
        ListField::new("customer_id", ListKind::Id),
        ListField::new("currency", ListKind::Text),
        ListField::new("settlement_number", ListKind::Text),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
        ListField::new("finalized_at", ListKind::Instant).sortable(),
        ListField::new("paid_at", ListKind::Instant).sortable(),
        ListField::new("period_start", ListKind::Instant).sortable(),
        ListField::new("period_end", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

const SETTLEMENT: ListField = ListField::new("settlement_id", ListKind::Id);

/// How the lines of a settlement are listed.
pub const LINES: ListSpec = ListSpec {
    name: "settlement_lines",
    columns: "*",
    from: "settlement_line",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        SETTLEMENT,
        ListField::new(
            "type",
            ListKind::Word(&["EARNING", "COMMISSION", "FEE", "REFUND", "CHARGEBACK", "WITHHOLDING", "ADJUSTMENT"]),
        ),
        ListField::new("created_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// `GET /v1/settlements`, newest first.
///
/// # Errors
/// As every statement.
pub async fn list(scope: &Scope, conn: &mut PgConnection, query: &ListQuery) -> Result<Page<Settlement>> {
    query.fetch(conn, scope).await
}

/// `GET /v1/settlements/{id}/lines`.
///
/// # Errors
/// `NotFound` for the settlement; `Validation` and `INVALID_CURSOR` for the parameters.
pub async fn list_lines(
    scope: &Scope,
    conn: &mut PgConnection,
    id: SettlementId,
    parameters: &[(String, String)],
) -> Result<Page<SettlementLine>> {
    let query = ListQuery::parse(&LINES, parameters)?.only(SETTLEMENT, id);
    find(scope, conn, id).await?;
    query.fetch(conn, scope).await
}

/// `GET /v1/settlements/{id}`, with its lines.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: SettlementId) -> Result<Settlement> {
    let settlement = find(scope, conn, id).await?;
    let lines = sqlx::query_as("SELECT * FROM settlement_line WHERE settlement_id = $1 ORDER BY ordinal")
        .bind(id)
        .fetch_all(conn)
        .await
        .context("reading the lines of a settlement")?;
    Ok(settlement.with_lines(lines))
}

async fn find(scope: &Scope, conn: &mut PgConnection, id: SettlementId) -> Result<Settlement> {
    sqlx::query_as("SELECT * FROM settlement WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL")
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a settlement")?
        .ok_or_else(|| Error::not_found("settlement", id))
}

/// The same, locked.
pub(super) async fn lock(scope: &Scope, tx: &mut Tx, id: SettlementId) -> Result<Settlement> {
    sqlx::query_as(
        "SELECT * FROM settlement WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_optional(tx.conn())
    .await
    .context("locking a settlement")?
    .ok_or_else(|| Error::not_found("settlement", id))
}
