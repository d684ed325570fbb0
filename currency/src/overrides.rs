//! Rates that a workspace sets for itself: they go before what was published, for a pair, within a window of time (fx.md 3).

use chrono::{DateTime, NaiveDate, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::{Currency, Error, FxOverrideId, Input, OrganizationId, Patch, Result, Scope, WorkspaceId};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError, Tx};
use utoipa::ToSchema;

/// Longest reason.
const REASON_MAX: usize = 500;

/// A rate that a workspace has set.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema, FromRow)]
pub struct FXOverride {
    /// Override.
    pub id: FxOverrideId,
    /// Owner.
    pub organization_id: OrganizationId,
    /// Where it holds.
    pub workspace_id: WorkspaceId,
    /// What is converted.
    #[schema(value_type = String)]
    pub source_currency: Currency,
    /// Into what.
    #[schema(value_type = String)]
    pub target_currency: Currency,
    /// Units of the target for one of the source.
    #[schema(value_type = String)]
    pub rate: Decimal,
    /// The one day (UTC) on which it holds, where it is tied to the snapshot of a day.
    #[schema(required)]
    pub snapshot_date: Option<NaiveDate>,
    /// From when it holds.
    pub valid_from: DateTime<Utc>,
    /// Until when, exclusive; null: for ever.
    #[schema(required)]
    pub valid_to: Option<DateTime<Utc>>,
    /// Why it was set.
    #[schema(required)]
    pub reason: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
    /// When it was taken away.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
}

/// `domain.CreateFXOverrideRequest`.
#[derive(Clone, Debug, PartialEq, ToSchema)]
pub struct CreateFXOverrideRequest {
    /// What is converted.
    #[schema(value_type = String)]
    pub source_currency: Currency,
    /// Into what; another currency.
    #[schema(value_type = String)]
    pub target_currency: Currency,
    /// Units of the target for one of the source: above 0 and below 1,000,000,000, with at most 10 decimal places.
    #[schema(value_type = String)]
    pub rate: Decimal,
    /// Ties the override to one day (UTC).
    pub snapshot_date: Option<NaiveDate>,
    /// Default: now; for a `snapshot_date` that is over, the start of that day.
    pub valid_from: Option<DateTime<Utc>>,
    /// Default: for ever.
    pub valid_to: Option<DateTime<Utc>>,
    /// At most 500 characters.
    pub reason: Option<String>,
}

impl CreateFXOverrideRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let source = input.required("source_currency", Field::currency);
        let target = input.required("target_currency", Field::currency);
        let rate = input.required("rate", Field::exchange_rate);
        let snapshot_date = input.optional("snapshot_date", Field::date);
        let valid_from = input.optional("valid_from", Field::instant);
        let valid_to = input.optional("valid_to", Field::instant);
        let reason = input.optional("reason", |v| v.text(0, REASON_MAX));
        if source.is_some() && source == target {
            input.error("target_currency", Code::NotAllowed, "must be another currency than source_currency");
        }
        input.finish()?;
        let ((source_currency, target_currency), rate) =
            source.zip(target).zip(rate).ok_or_else(|| Error::invariant("a required field was read"))?;
        Ok(Self { source_currency, target_currency, rate, snapshot_date, valid_from, valid_to, reason })
    }
}

/// `domain.UpdateFXOverrideRequest`: the pair stays as it is.
#[derive(Clone, Debug, Default, PartialEq, ToSchema)]
pub struct UpdateFXOverrideRequest {
    /// Units of the target for one of the source.
    #[schema(value_type = Option<String>)]
    pub rate: Option<Decimal>,
    /// Null: no longer tied to a day.
    #[schema(value_type = Option<NaiveDate>)]
    pub snapshot_date: Patch<NaiveDate>,
    /// From when it holds.
    pub valid_from: Option<DateTime<Utc>>,
    /// Null: for ever.
    #[schema(value_type = Option<DateTime<Utc>>)]
    pub valid_to: Patch<DateTime<Utc>>,
    /// Null: none.
    #[schema(value_type = Option<String>)]
    pub reason: Patch<String>,
}

impl UpdateFXOverrideRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field; the pair is one.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self {
            rate: input.optional("rate", Field::exchange_rate),
            snapshot_date: input.patch("snapshot_date", Field::date),
            valid_from: input.optional("valid_from", Field::instant),
            valid_to: input.patch("valid_to", Field::instant),
            reason: input.patch("reason", |v| v.text(0, REASON_MAX)),
        };
        for name in ["source_currency", "target_currency"] {
            if input.optional(name, |_| Ok(())).is_some() {
                input.error(name, Code::NotAllowed, "the pair of an override cannot be changed: make another one");
            }
        }
        input.finish()?;
        Ok(request)
    }
}

const COLUMNS: &str = "id, organization_id, workspace_id, source_currency, target_currency, rate, snapshot_date, valid_from, \
     valid_to, reason, created_at, updated_at, deleted_at";

const LIST: ListSpec = ListSpec {
    name: "fx_overrides",
    columns: COLUMNS,
    from: "fx_override",
    workspace_column: "workspace_id",
    condition: "deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("source_currency", ListKind::Text).sortable(),
        ListField::new("target_currency", ListKind::Text).sortable(),
        ListField::new("active_at", ListKind::Span).column("active"),
        ListField::new("valid_from", ListKind::Instant).sortable(),
        ListField::new("valid_to", ListKind::Instant),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// Overrides of the workspace, newest first, without those that were taken away.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<FXOverride>> {
    ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await
}

/// One override.
///
/// # Errors
/// `NotFound`, also for one that was taken away.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: FxOverrideId) -> Result<FXOverride> {
    find(scope, conn, id, "").await
}

async fn find(scope: &Scope, conn: &mut PgConnection, id: FxOverrideId, lock: &str) -> Result<FXOverride> {
    let sql =
        format!("SELECT {COLUMNS} FROM fx_override WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL {lock}");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading an exchange rate")?
        .ok_or_else(|| Error::not_found("fx_override", id))
}

/// Sets a rate.
///
/// # Errors
/// `Validation` for a window that ends before it begins.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreateFXOverrideRequest) -> Result<FXOverride> {
    let now = scope.now();
    let set = FXOverride {
        id: FxOverrideId::generate(),
        organization_id: scope.organization_id,
        workspace_id: scope.workspace_id,
        source_currency: request.source_currency,
        target_currency: request.target_currency,
        rate: request.rate,
        snapshot_date: request.snapshot_date,
        valid_from: request.valid_from.unwrap_or_else(|| default_start(request.snapshot_date, now)),
        valid_to: request.valid_to,
        reason: request.reason,
        created_at: now,
        updated_at: now,
        deleted_at: None,
    };
    check_window(&set)?;
    sqlx::query(
        "INSERT INTO fx_override (id, organization_id, workspace_id, source_currency, target_currency, rate, snapshot_date,
             valid_from, valid_to, reason, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
    )
    .bind(set.id)
    .bind(set.organization_id)
    .bind(set.workspace_id)
    .bind(set.source_currency)
    .bind(set.target_currency)
    .bind(set.rate)
    .bind(set.snapshot_date)
    .bind(set.valid_from)
    .bind(set.valid_to)
    .bind(&set.reason)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("setting an exchange rate")?;
    Ok(set)
}

/// Changes a rate or its window. What was converted before stays as it is.
///
/// # Errors
/// `NotFound`; `Validation` for a window that ends before it begins.
pub async fn update(
    scope: &Scope,
    tx: &mut Tx,
    id: FxOverrideId,
    request: UpdateFXOverrideRequest,
) -> Result<FXOverride> {
    let mut set = find(scope, tx.conn(), id, "FOR UPDATE").await?;
    set.rate = request.rate.unwrap_or(set.rate);
    set.snapshot_date = request.snapshot_date.apply(set.snapshot_date);
    set.valid_from = request.valid_from.unwrap_or(set.valid_from);
    set.valid_to = request.valid_to.apply(set.valid_to);
    set.reason = request.reason.apply(set.reason);
    set.updated_at = scope.now();
    check_window(&set)?;
    sqlx::query(
        "UPDATE fx_override SET rate = $3, snapshot_date = $4, valid_from = $5, valid_to = $6, reason = $7, updated_at = $8
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(set.rate)
    .bind(set.snapshot_date)
    .bind(set.valid_from)
    .bind(set.valid_to)
    .bind(&set.reason)
    .bind(set.updated_at)
    .execute(tx.conn())
    .await
    .context("changing an exchange rate")?;
    Ok(set)
}

/// Takes a rate away; its row stays, because documents may have pinned it.
///
/// # Errors
/// `NotFound`.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: FxOverrideId) -> Result<()> {
    find(scope, tx.conn(), id, "FOR UPDATE").await?;
    sqlx::query("UPDATE fx_override SET deleted_at = $3 WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("taking an exchange rate away")?;
    Ok(())
}

fn check_window(set: &FXOverride) -> Result<()> {
    if set.valid_to.is_some_and(|end| end <= set.valid_from) {
        return Err(Error::field("valid_to", Code::OutOfRange, "must lie after valid_from"));
    }
    Ok(())
}

/// Now; of an override for a day that is over, the start of that day: from now on it would never hold.
fn default_start(snapshot_date: Option<NaiveDate>, now: DateTime<Utc>) -> DateTime<Utc> {
    let start = snapshot_date.map(|date| date.and_time(chrono::NaiveTime::MIN).and_utc());
    start.filter(|start| start.date_naive() < now.date_naive()).unwrap_or(now)
}
