//! Reads. What has lapsed is written off before it is shown, so that a reader never meets a balance that nobody could
//! spend (rule D4): a page costs one statement, and a few more only when something is due on it.

use domain::{CustomerId, Error, HoldId, Result, Scope, WalletId};
use sqlx::{AssertSqlSafe, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, Store, StoreError};

use super::hold::settle_due;
use super::model::{WalletDTO, WalletHold, WalletTransaction};
use super::row::{WALLET_COLUMNS, WALLET_FROM, WalletRow};

const CUSTOMER: ListField = ListField::new("customer_id", ListKind::Id).column("wallet.customer_id");

const WALLETS: ListSpec = ListSpec {
    name: "wallets",
    columns: WALLET_COLUMNS,
    from: WALLET_FROM,
    workspace_column: "wallet.workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("wallet.id"),
        CUSTOMER,
        ListField::new("currency", ListKind::Text).column("wallet.currency"),
        ListField::new("is_primary", ListKind::Bool).column("wallet.is_primary"),
        ListField::new("auto_topup_enabled", ListKind::Bool).column("wallet.auto_topup_enabled"),
        ListField::new("mode", ListKind::Word(&["PREPAID", "POSTPAID"])).column("customer.mode"),
        ListField::new("cash_balance", ListKind::Number).column("wallet.cash_balance").sortable(),
        ListField::new("promotional_balance", ListKind::Number).column("wallet.promotional_balance").sortable(),
        ListField::new("held_balance", ListKind::Number).column("wallet.held_balance").sortable(),
        ListField::new("created_at", ListKind::Instant).column("wallet.created_at").sortable(),
        ListField::new("updated_at", ListKind::Instant).column("wallet.updated_at").sortable(),
    ],
    shorthands: &[("created_after", "created_at", "gte"), ("created_before", "created_at", "lt")],
    order: "wallet.created_at",
    id: "wallet.id",
};

const WALLET: ListField = ListField::new("wallet_id", ListKind::Id);

const TYPES: &[&str] =
    &["CREDIT", "DEBIT", "HOLD", "CAPTURE", "RELEASE", "TRANSFER_IN", "TRANSFER_OUT", "ADJUSTMENT", "TOPUP", "EXPIRY"];

const SOURCES: &[&str] = &[
    "MANUAL",
    "INVOICE",
    "PAYMENT",
    "PROMOTION",
    "REFUND",
    "CREDIT_NOTE",
    "TOPUP",
    "AUTO_TOPUP",
    "TRANSFER",
    "USAGE",
    "MIGRATION",
    "SYSTEM",
];

const TRANSACTIONS: ListSpec = ListSpec {
    name: "wallet_transactions",
    columns: "*",
    from: "wallet_transaction",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("type", ListKind::Word(TYPES)),
        ListField::new("source", ListKind::Word(SOURCES)),
        ListField::new("balance_kind", ListKind::Word(&["CASH", "PROMOTIONAL"])),
        ListField::new("group_id", ListKind::Id),
        ListField::new("hold_id", ListKind::Id),
        ListField::new("reference_type", ListKind::Text),
        ListField::new("reference_id", ListKind::Id),
        ListField::new("idempotency_key", ListKind::Text),
        ListField::new("created_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[("created_after", "created_at", "gte"), ("created_before", "created_at", "lt")],
    order: "created_at",
    id: "id",
};

const HOLDS: ListSpec = ListSpec {
    name: "wallet_holds",
    columns: "*",
    from: "wallet_hold",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("status", ListKind::Word(&["PENDING", "CAPTURED", "RELEASED", "EXPIRED"])),
        ListField::new("reference_type", ListKind::Text),
        ListField::new("reference_id", ListKind::Id),
        ListField::new("expires_at", ListKind::Instant).sortable(),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// `GET /v1/wallets`.
///
/// # Errors
/// `Validation` and `INVALID_CURSOR` for the parameters.
pub async fn list(scope: &Scope, store: &Store, parameters: &[(String, String)]) -> Result<Page<WalletDTO>> {
    page(scope, store, &ListQuery::parse(&WALLETS, &any_of_currencies(parameters))?).await
}

/// Documented shorthand: comma-separated currencies are one of several, as repeated ones are (api/wallets).
fn any_of_currencies(parameters: &[(String, String)]) -> Vec<(String, String)> {
    let mut spelled = Vec::with_capacity(parameters.len());
    for (name, value) in parameters {
        let values = value.split(if name == "currency" { ',' } else { '\0' });
        spelled.extend(values.map(|value| (name.clone(), value.to_owned())));
    }
    spelled
}

/// `GET /v1/customers/{id}/wallets`.
///
/// # Errors
/// `NotFound` for the customer; `Validation` and `INVALID_CURSOR` for the parameters.
pub async fn list_of_customer(
    scope: &Scope,
    store: &Store,
    customer: CustomerId,
    parameters: &[(String, String)],
) -> Result<Page<WalletDTO>> {
    let query = ListQuery::parse(&WALLETS, &any_of_currencies(parameters))?.only(CUSTOMER, customer);
    let known: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM customer WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL)",
    )
    .bind(scope.workspace_id)
    .bind(customer)
    .fetch_one(store.pool())
    .await
    .context("looking for a customer")?;
    if !known {
        return Err(Error::not_found("customer", customer));
    }
    page(scope, store, &query).await
}

async fn page(scope: &Scope, store: &Store, query: &ListQuery) -> Result<Page<WalletDTO>> {
    let mut conn = store.pool().acquire().await.context("listing wallets")?;
    let mut page: Page<WalletRow> = query.fetch(&mut conn, scope).await?;
    let due: Vec<WalletId> = page.data.iter().filter(|row| is_due(row, scope)).map(|row| row.wallet.id).collect();
    if !due.is_empty() {
        drop(conn);
        settle(scope, store, &due).await?;
        let mut conn = store.pool().acquire().await.context("listing wallets")?;
        page = query.fetch(&mut conn, scope).await?;
    }
    let Page { data, pagination } = page;
    let data = data.into_iter().map(WalletRow::into_dto).collect::<Result<_>>()?;
    Ok(Page { data, pagination })
}

fn is_due(row: &WalletRow, scope: &Scope) -> bool {
    let now = row.now(scope);
    row.promotional_is_due(now) || row.holds_are_due(now)
}

async fn settle(scope: &Scope, store: &Store, wallets: &[WalletId]) -> Result<()> {
    let mut tx = store.begin("settle what is due in wallets").await?;
    settle_due(scope, &mut tx, wallets).await?;
    tx.commit().await
}

async fn row(scope: &Scope, conn: &mut PgConnection, id: WalletId) -> Result<WalletRow> {
    let sql = format!("SELECT {WALLET_COLUMNS} FROM {WALLET_FROM} WHERE wallet.workspace_id = $1 AND wallet.id = $2");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a wallet")?
        .ok_or_else(|| Error::not_found("wallet", id))
}

/// A wallet as this connection sees it.
pub(super) async fn read(scope: &Scope, conn: &mut PgConnection, id: WalletId) -> Result<WalletDTO> {
    row(scope, conn, id).await?.into_dto()
}

/// The wallet, after what was due in it has lapsed.
async fn settled(scope: &Scope, store: &Store, id: WalletId) -> Result<WalletRow> {
    let mut conn = store.pool().acquire().await.context("reading a wallet")?;
    let wallet = row(scope, &mut conn, id).await?;
    if !is_due(&wallet, scope) {
        return Ok(wallet);
    }
    drop(conn);
    settle(scope, store, &[id]).await?;
    let mut conn = store.pool().acquire().await.context("reading a wallet")?;
    row(scope, &mut conn, id).await
}

/// `GET /v1/wallets/{id}`.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, store: &Store, id: WalletId) -> Result<WalletDTO> {
    settled(scope, store, id).await?.into_dto()
}

/// `GET /v1/wallets/{id}/transactions`: movements, newest first.
///
/// # Errors
/// `NotFound`; `Validation` and `INVALID_CURSOR` for the parameters.
pub async fn list_transactions(
    scope: &Scope,
    store: &Store,
    id: WalletId,
    parameters: &[(String, String)],
) -> Result<Page<WalletTransaction>> {
    let query = ListQuery::parse(&TRANSACTIONS, parameters)?.only(WALLET, id);
    settled(scope, store, id).await?;
    let mut conn = store.pool().acquire().await.context("listing movements")?;
    query.fetch(&mut conn, scope).await
}

/// `GET /v1/wallets/{id}/holds`: newest first.
///
/// # Errors
/// `NotFound`; `Validation` and `INVALID_CURSOR` for the parameters.
pub async fn list_holds(
    scope: &Scope,
    store: &Store,
    id: WalletId,
    parameters: &[(String, String)],
) -> Result<Page<WalletHold>> {
    let query = ListQuery::parse(&HOLDS, parameters)?.only(WALLET, id);
    settled(scope, store, id).await?;
    let mut conn = store.pool().acquire().await.context("listing holds")?;
    query.fetch(&mut conn, scope).await
}

/// `GET /v1/wallets/{id}/holds/{hold_id}`.
///
/// # Errors
/// `NotFound`.
pub async fn get_hold(scope: &Scope, store: &Store, wallet: WalletId, id: HoldId) -> Result<WalletHold> {
    settled(scope, store, wallet).await?;
    sqlx::query_as("SELECT * FROM wallet_hold WHERE workspace_id = $1 AND wallet_id = $2 AND id = $3")
        .bind(scope.workspace_id)
        .bind(wallet)
        .bind(id)
        .fetch_optional(store.pool())
        .await
        .context("reading a hold")?
        .ok_or_else(|| Error::not_found("wallet_hold", id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::wire::Word;

    #[test]
    fn the_words_of_the_filters_are_those_of_the_enums() {
        let types: Vec<_> = super::super::WalletTransactionType::ALL.iter().map(|word| word.as_str()).collect();
        let sources: Vec<_> = super::super::WalletTransactionSource::ALL.iter().map(|word| word.as_str()).collect();
        assert_eq!((types.as_slice(), sources.as_slice()), (TYPES, SOURCES));
    }
}
