//! Threshold breaches (thresholds-and-alerts.md). They are written by the checkpoints of ingest and only read here.

use chrono::{DateTime, Days, NaiveDate, Utc};
use domain::error::FieldErrorCode as Code;
use domain::{
    BreachId, Error, MeterId, OrganizationId, ProductId, Quantity, Result, Scope, SubscriptionId, ThresholdActionKind,
    ThresholdComparator,
};
use serde::Serialize;
use sqlx::{FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};
use utoipa::ToSchema;

/// A threshold that was crossed.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct MeterBreach {
    /// Breach.
    pub id: BreachId,
    /// Owner.
    pub organization_id: OrganizationId,
    /// The meter.
    pub meter_id: MeterId,
    /// The product.
    #[schema(required)]
    pub product_id: Option<ProductId>,
    /// Whose usage it was.
    pub subscription_id: SubscriptionId,
    /// Key of the meter.
    pub meter_key: String,
    /// Name of the threshold.
    pub threshold_name: String,
    /// The configured limit.
    pub threshold_value: Quantity,
    /// How it was compared.
    pub comparator: ThresholdComparator,
    /// The value that crossed.
    pub observed_value: Quantity,
    /// Start of the window.
    pub window_start: DateTime<Utc>,
    /// End of the window, exclusive.
    pub window_end: DateTime<Utc>,
    /// When the crossing was found.
    pub occurred_at: DateTime<Utc>,
    /// What it does.
    pub action_kind: ThresholdActionKind,
    /// To whom.
    #[schema(required)]
    pub action_target: Option<String>,
    /// As which event.
    #[schema(required)]
    pub action_event_type: Option<String>,
    /// When it was delivered.
    #[schema(required)]
    pub delivered_at: Option<DateTime<Utc>>,
}

/// Breaches of one UTC day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema, FromRow)]
pub struct BreachDailyCount {
    /// The day.
    #[schema(value_type = String, format = Date)]
    pub date: NaiveDate,
    /// How many.
    pub count: i64,
}

const METER_ID: ListField = ListField::new("meter_id", ListKind::Id);

const LIST: ListSpec = ListSpec {
    name: "meter_breaches",
    columns: "id, organization_id, meter_id, product_id, subscription_id, meter_key, threshold_name, threshold_value, comparator,
        observed_value, window_start, window_end, occurred_at, action_kind, action_target, action_event_type, delivered_at",
    from: "meter_breach",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        METER_ID,
        ListField::new("meter_key", ListKind::Text),
        ListField::new("product_id", ListKind::Id),
        ListField::new("subscription_id", ListKind::Id),
        ListField::new("threshold_name", ListKind::Text),
        ListField::new("occurred_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[("occurred_after", "occurred_at", "gte"), ("occurred_before", "occurred_at", "lt")],
    order: "occurred_at",
    id: "id",
};

/// Breaches of every meter of the workspace, newest first.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(
    scope: &Scope,
    conn: &mut PgConnection,
    parameters: &[(String, String)],
) -> Result<Page<MeterBreach>> {
    ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await
}

/// Breaches of one meter, newest first.
///
/// # Errors
/// `NotFound`, and as [`ListQuery::parse`].
pub async fn list_of_meter(
    scope: &Scope,
    conn: &mut PgConnection,
    meter: MeterId,
    parameters: &[(String, String)],
) -> Result<Page<MeterBreach>> {
    let query = ListQuery::parse(&LIST, parameters)?;
    crate::meter::get(scope, conn, meter).await?;
    query.only(METER_ID, meter).fetch(conn, scope).await
}

/// Breaches of one meter per UTC day, for the last `days` days (1 to 365, default 30), days without any included.
///
/// # Errors
/// `NotFound`; `Validation` for another number of days or another parameter.
pub async fn daily(
    scope: &Scope,
    conn: &mut PgConnection,
    meter: MeterId,
    parameters: &[(String, String)],
) -> Result<Page<BreachDailyCount>> {
    let days = read_days(parameters)?;
    crate::meter::get(scope, conn, meter).await?;
    let today = scope.now().date_naive();
    let first = today.checked_sub_days(Days::new(days - 1)).unwrap_or(today);
    let counts = sqlx::query_as(
        "SELECT day::date AS date, count(b.id) AS count
         FROM generate_series($3::date, $4::date, interval '1 day') AS day
         LEFT JOIN meter_breach b ON b.workspace_id = $1 AND b.meter_id = $2
              AND b.occurred_at >= day AT TIME ZONE 'UTC' AND b.occurred_at < (day + interval '1 day') AT TIME ZONE 'UTC'
         GROUP BY day ORDER BY day",
    )
    .bind(scope.workspace_id)
    .bind(meter)
    .bind(first)
    .bind(today)
    .fetch_all(conn)
    .await
    .context("counting breaches by day")?;
    Ok(Page::complete(counts))
}

fn read_days(parameters: &[(String, String)]) -> Result<u64> {
    let mut days = 30;
    for (name, value) in parameters {
        match (name.as_str(), value.parse()) {
            ("days", Ok(number @ 1..=365)) => days = number,
            ("days", _) => {
                return Err(Error::field("days", Code::OutOfRange, "must be a whole number from 1 to 365"));
            }
            (other, _) => {
                return Err(Error::field(other, Code::UnknownField, "is not a known parameter; known is days"));
            }
        }
    }
    Ok(days)
}
