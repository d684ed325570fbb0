//! The currencies that a workspace may use (currencies.md). Exactly one is the default, with both switches on: the
//! database makes it with the workspace.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::{Currency, Error, Input, Result, RoundingMode, Scope, WorkspaceId};
use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, PgConnection, Row};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError, Tx};
use utoipa::ToSchema;

/// A currency of a workspace.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema, FromRow)]
pub struct WorkspaceCurrency {
    /// Where it is allowed.
    pub workspace_id: WorkspaceId,
    /// ISO 4217.
    #[schema(value_type = String)]
    pub currency_code: Currency,
    /// Whether subscriptions, invoices and wallets may be made in it.
    pub billing_enabled: bool,
    /// Whether prices may be made in it.
    pub catalog_enabled: bool,
    /// Whether it is taken where nothing names another.
    pub is_default: bool,
    /// How converted amounts in it are rounded.
    pub rounding_mode: RoundingMode,
    /// What is in it.
    #[sqlx(skip)]
    pub references: CurrencyReferences,
    /// When it was enabled.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
}

/// How many objects of a workspace are in a currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct CurrencyReferences {
    /// Prices.
    pub prices: i64,
    /// Plans that have prices of their own in it.
    pub plans: i64,
    /// Subscriptions.
    pub subscriptions: i64,
    /// Invoices.
    pub invoices: i64,
    /// Wallets.
    pub wallets: i64,
    /// Customers that prefer it.
    pub customers: i64,
}

/// What a currency is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A price.
    Catalog,
    /// A subscription, an invoice or a wallet.
    Billing,
}

/// `domain.CreateWorkspaceCurrencyRequest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
pub struct CreateWorkspaceCurrencyRequest {
    /// ISO 4217, upper case.
    #[schema(value_type = String)]
    pub currency_code: Currency,
    /// Default true.
    pub billing_enabled: Option<bool>,
    /// Default true.
    pub catalog_enabled: Option<bool>,
}

impl CreateWorkspaceCurrencyRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let code = input.required("currency_code", Field::currency);
        let billing_enabled = input.optional("billing_enabled", Field::boolean);
        let catalog_enabled = input.optional("catalog_enabled", Field::boolean);
        input.finish()?;
        let currency_code = code.ok_or_else(|| Error::invariant("a required field was read"))?;
        Ok(Self { currency_code, billing_enabled, catalog_enabled })
    }
}

/// `domain.UpdateWorkspaceCurrencyRequest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ToSchema)]
pub struct UpdateWorkspaceCurrencyRequest {
    /// Off: no new subscriptions, invoices and wallets; running subscriptions go on.
    pub billing_enabled: Option<bool>,
    /// Off: no new prices.
    pub catalog_enabled: Option<bool>,
    /// True moves the default here and switches both switches on.
    pub is_default: Option<bool>,
    /// How converted amounts are rounded.
    pub rounding_mode: Option<RoundingMode>,
}

impl UpdateWorkspaceCurrencyRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self {
            billing_enabled: input.optional("billing_enabled", Field::boolean),
            catalog_enabled: input.optional("catalog_enabled", Field::boolean),
            is_default: input.optional("is_default", Field::boolean),
            rounding_mode: input.optional("rounding_mode", Field::word),
        };
        for name in ["billing_enabled", "catalog_enabled", "is_default", "rounding_mode"] {
            if body.get(name).is_some_and(Value::is_null) {
                input.error(name, Code::NotAllowed, "must not be null");
            }
        }
        input.finish()?;
        Ok(request)
    }
}

/// By code; the workspace breaks no tie, since a code stands once in it.
const LIST: ListSpec = ListSpec {
    name: "currencies",
    columns: "*",
    from: "workspace_currency",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("currency_code", ListKind::Text).sortable(),
        ListField::new("billing_enabled", ListKind::Bool),
        ListField::new("catalog_enabled", ListKind::Bool),
        ListField::new("is_default", ListKind::Bool),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "workspace_id",
};

/// The allowlist, sorted by code.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(
    scope: &Scope,
    conn: &mut PgConnection,
    parameters: &[(String, String)],
) -> Result<Page<WorkspaceCurrency>> {
    let mut parameters = parameters.to_vec();
    if !parameters.iter().any(|(name, _)| name == "sort") {
        parameters.push(("sort".to_owned(), "currency_code".to_owned()));
    }
    let page: Page<WorkspaceCurrency> = ListQuery::parse(&LIST, &parameters)?.fetch(conn, scope).await?;
    let codes: Vec<_> = page.data.iter().map(|row| row.currency_code).collect();
    let references = references_of(conn, scope.workspace_id, &codes).await?;
    Ok(page.map(|row| {
        let references = references.get(&row.currency_code).copied().unwrap_or_default();
        WorkspaceCurrency { references, ..row }
    }))
}

/// One currency of the allowlist.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, code: Currency) -> Result<WorkspaceCurrency> {
    let row: Option<WorkspaceCurrency> =
        sqlx::query_as("SELECT * FROM workspace_currency WHERE workspace_id = $1 AND currency_code = $2")
            .bind(scope.workspace_id)
            .bind(code)
            .fetch_optional(&mut *conn)
            .await
            .context("reading a currency")?;
    let row = row.ok_or_else(|| Error::not_found("currency", code))?;
    let references = references_of(conn, scope.workspace_id, &[code]).await?;
    Ok(WorkspaceCurrency { references: references.get(&code).copied().unwrap_or_default(), ..row })
}

/// Enables a currency.
///
/// # Errors
/// `DUPLICATE` when it is on the allowlist.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreateWorkspaceCurrencyRequest) -> Result<WorkspaceCurrency> {
    let made = sqlx::query(
        "INSERT INTO workspace_currency (workspace_id, currency_code, billing_enabled, catalog_enabled, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT DO NOTHING",
    )
    .bind(scope.workspace_id)
    .bind(request.currency_code)
    .bind(request.billing_enabled.unwrap_or(true))
    .bind(request.catalog_enabled.unwrap_or(true))
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("enabling a currency")?;
    if made.rows_affected() == 0 {
        return Err(Error::duplicate("currency_code", Some(request.currency_code.to_string())));
    }
    get(scope, tx.conn(), request.currency_code).await
}

fn default_required(detail: &str) -> Error {
    Error::rule("DEFAULT_CURRENCY_REQUIRED", detail)
}

/// Changes switches, rounding and default.
///
/// # Errors
/// `NotFound`; `DEFAULT_CURRENCY_REQUIRED` where the workspace would be left without a default that has both switches on.
pub async fn update(
    scope: &Scope,
    tx: &mut Tx,
    code: Currency,
    request: UpdateWorkspaceCurrencyRequest,
) -> Result<WorkspaceCurrency> {
    lock(scope, tx).await?;
    let before = get(scope, tx.conn(), code).await?;
    if before.is_default && request.is_default == Some(false) {
        return Err(default_required("a workspace has one default: make another currency the default instead"));
    }
    let is_default = before.is_default || request.is_default == Some(true);
    if is_default && (request.billing_enabled == Some(false) || request.catalog_enabled == Some(false)) {
        return Err(default_required("the default has both switches on: make another currency the default first"));
    }
    if is_default && !before.is_default {
        sqlx::query(
            "UPDATE workspace_currency SET is_default = false, updated_at = $2 WHERE workspace_id = $1 AND is_default",
        )
        .bind(scope.workspace_id)
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("moving the default currency")?;
    }
    sqlx::query(
        "UPDATE workspace_currency SET billing_enabled = $3, catalog_enabled = $4, is_default = $5, rounding_mode = $6,
             updated_at = $7
         WHERE workspace_id = $1 AND currency_code = $2",
    )
    .bind(scope.workspace_id)
    .bind(code)
    .bind(is_default || request.billing_enabled.unwrap_or(before.billing_enabled))
    .bind(is_default || request.catalog_enabled.unwrap_or(before.catalog_enabled))
    .bind(is_default)
    .bind(request.rounding_mode.unwrap_or(before.rounding_mode))
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("changing a currency")?;
    get(scope, tx.conn(), code).await
}

/// Removes a currency that nothing refers to.
///
/// # Errors
/// `NotFound`; `DEFAULT_CURRENCY_REQUIRED`; `CURRENCY_IN_USE` with the counts.
pub async fn delete(scope: &Scope, tx: &mut Tx, code: Currency) -> Result<()> {
    // Whoever makes something in the currency shares its row: counted after them.
    lock(scope, tx).await?;
    let row = get(scope, tx.conn(), code).await?;
    if row.is_default {
        return Err(default_required("the default cannot be removed: make another currency the default first"));
    }
    if row.references != CurrencyReferences::default() {
        let detail = format!("{code} is in use; switch it off to keep new objects out of it");
        return Err(Error::conflict("CURRENCY_IN_USE", detail).with("references", row.references));
    }
    sqlx::query("DELETE FROM workspace_currency WHERE workspace_id = $1 AND currency_code = $2")
        .bind(scope.workspace_id)
        .bind(code)
        .execute(tx.conn())
        .await
        .context("removing a currency")?;
    Ok(())
}

/// All currencies of the workspace: two calls cannot both move the default.
async fn lock(scope: &Scope, tx: &mut Tx) -> Result<()> {
    sqlx::query("SELECT FROM workspace_currency WHERE workspace_id = $1 ORDER BY currency_code FOR UPDATE")
        .bind(scope.workspace_id)
        .execute(tx.conn())
        .await
        .context("locking currencies")?;
    Ok(())
}

/// Refuses a currency that is not enabled for a purpose; its row is shared until the commit, so that nobody removes it
/// meanwhile.
///
/// # Errors
/// `CURRENCY_NOT_ENABLED`.
pub async fn require(scope: &Scope, tx: &mut Tx, currency: Currency, purpose: Purpose) -> Result<()> {
    let switches: Option<(bool, bool)> = sqlx::query_as(
        "SELECT billing_enabled, catalog_enabled FROM workspace_currency
         WHERE workspace_id = $1 AND currency_code = $2 FOR KEY SHARE",
    )
    .bind(scope.workspace_id)
    .bind(currency)
    .fetch_optional(tx.conn())
    .await
    .context("looking for a currency")?;
    let (billing, catalog) = switches.unwrap_or_default();
    let (is_enabled, switch) = match purpose {
        Purpose::Billing => (billing, "billing"),
        Purpose::Catalog => (catalog, "the catalog"),
    };
    if is_enabled {
        return Ok(());
    }
    let how = match switches {
        Some(_) => format!("PATCH /v1/currencies/{currency}"),
        None => "POST /v1/currencies".to_owned(),
    };
    let detail = format!("{currency} is not enabled for {switch} in this workspace: enable it with {how}");
    Err(Error::rule("CURRENCY_NOT_ENABLED", detail).with("currency", currency))
}

/// The default of the workspace, taken where nothing names another currency.
///
/// # Errors
/// As every statement.
pub async fn default_currency(scope: &Scope, conn: &mut PgConnection) -> Result<Currency> {
    sqlx::query_scalar("SELECT currency_code FROM workspace_currency WHERE workspace_id = $1 AND is_default")
        .bind(scope.workspace_id)
        .fetch_one(conn)
        .await
        .context("reading the default currency of the workspace")
}

/// How these currencies are rounded; a currency that the workspace does not have is not among them.
///
/// # Errors
/// As every statement.
pub async fn rounding_modes(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    currencies: &[Currency],
) -> Result<HashMap<Currency, RoundingMode>> {
    let modes: Vec<(Currency, RoundingMode)> = sqlx::query_as(
        "SELECT currency_code, rounding_mode FROM workspace_currency WHERE workspace_id = $1 AND currency_code = ANY($2)",
    )
    .bind(workspace)
    .bind(currencies)
    .fetch_all(conn)
    .await
    .context("reading how currencies are rounded")?;
    Ok(modes.into_iter().collect())
}

/// What is in these currencies, counted in one statement.
async fn references_of(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    codes: &[Currency],
) -> Result<HashMap<Currency, CurrencyReferences>> {
    let rows = sqlx::query(
        "SELECT 'prices' AS kind, currency AS code, count(*) FROM price
         WHERE workspace_id = $1 AND currency = ANY($2) AND deleted_at IS NULL GROUP BY currency
         UNION ALL SELECT 'plans', currency, count(DISTINCT plan_id) FROM price
         WHERE workspace_id = $1 AND currency = ANY($2) AND deleted_at IS NULL AND plan_id IS NOT NULL GROUP BY currency
         UNION ALL SELECT 'subscriptions', currency, count(*) FROM subscription
         WHERE workspace_id = $1 AND currency = ANY($2) AND deleted_at IS NULL GROUP BY currency
         UNION ALL SELECT 'invoices', currency, count(*) FROM invoice
         WHERE workspace_id = $1 AND currency = ANY($2) AND deleted_at IS NULL GROUP BY currency
         UNION ALL SELECT 'wallets', currency, count(*) FROM wallet
         WHERE workspace_id = $1 AND currency = ANY($2) GROUP BY currency
         UNION ALL SELECT 'customers', preferred_currency, count(*) FROM customer
         WHERE workspace_id = $1 AND preferred_currency = ANY($2) AND deleted_at IS NULL GROUP BY preferred_currency",
    )
    .bind(workspace)
    .bind(codes)
    .fetch_all(conn)
    .await
    .context("counting what is in a currency")?;
    let mut references: HashMap<Currency, CurrencyReferences> = HashMap::new();
    for row in rows {
        let (kind, code, count): (&str, Currency, i64) = read(&row).context("counting what is in a currency")?;
        let of_code = references.entry(code).or_default();
        match kind {
            "prices" => of_code.prices = count,
            "plans" => of_code.plans = count,
            "subscriptions" => of_code.subscriptions = count,
            "invoices" => of_code.invoices = count,
            "wallets" => of_code.wallets = count,
            _ => of_code.customers = count,
        }
    }
    Ok(references)
}

fn read(row: &sqlx::postgres::PgRow) -> sqlx::Result<(&str, Currency, i64)> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}
