//! Rates that were published: one per day, source and target, the same for every workspace, never changed (fx.md 3).

use chrono::{DateTime, NaiveDate, Utc};
use domain::{Currency, FxSnapshotId, Instant, Result, Scope};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::{FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};
use utoipa::ToSchema;

use crate::feed::Day;

/// A published rate.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema, FromRow)]
pub struct FXSnapshot {
    /// Snapshot.
    pub id: FxSnapshotId,
    /// What is converted.
    #[schema(value_type = String)]
    pub source_currency: Currency,
    /// Into what.
    #[schema(value_type = String)]
    pub target_currency: Currency,
    /// Units of the target for one of the source.
    #[schema(value_type = String)]
    pub rate: Decimal,
    /// The day for which it was published.
    pub snapshot_date: NaiveDate,
    /// Who published it.
    pub source: String,
    /// When it came in.
    pub created_at: DateTime<Utc>,
}

const DATE: ListField = ListField::new("snapshot_date", ListKind::Date).column("s.snapshot_date").sortable();

/// Every workspace sees every snapshot.
const LIST: ListSpec = ListSpec {
    name: "fx_snapshots",
    columns: "s.*",
    from: "fx_snapshot s CROSS JOIN workspace w",
    workspace_column: "w.id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("s.id"),
        DATE,
        ListField::new("source_currency", ListKind::Text).column("s.source_currency").sortable(),
        ListField::new("target_currency", ListKind::Text).column("s.target_currency").sortable(),
        ListField::new("created_at", ListKind::Instant).column("s.created_at").sortable(),
    ],
    shorthands: &[("date", "snapshot_date", "eq")],
    order: "s.created_at",
    id: "s.id",
};

/// The pairs of one day: of `date`, or today in UTC where no day is asked for.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<FXSnapshot>> {
    let names_day = parameters.iter().any(|(name, _)| name == "date" || name.starts_with(DATE.name));
    let query = ListQuery::parse(&LIST, parameters)?;
    let query = if names_day { query } else { query.only(DATE, scope.now().date_naive()) };
    query.fetch(conn, scope).await
}

/// Keeps what was published of these days, from the euro to every other currency. What is there already stays: documents
/// pin it. Answers how many rates are new.
///
/// # Errors
/// As every statement.
pub async fn keep(conn: &mut PgConnection, source: &str, days: &[Day], now: Instant) -> Result<u64> {
    let rates: Vec<_> = days.iter().flat_map(|day| day.rates.iter().map(move |rate| (day.date, rate))).collect();
    let kept = sqlx::query(
        "INSERT INTO fx_snapshot (id, snapshot_date, source_currency, target_currency, rate, source, created_at)
         SELECT id, day, $5, target, rate, $6, $7
         FROM unnest($1::uuid[], $2::date[], $3::text[], $4::numeric[]) AS t (id, day, target, rate)
         ORDER BY day, target
         ON CONFLICT (source_currency, target_currency, snapshot_date) DO NOTHING",
    )
    .bind(rates.iter().map(|_| FxSnapshotId::generate().0).collect::<Vec<_>>())
    .bind(rates.iter().map(|(date, _)| *date).collect::<Vec<_>>())
    .bind(rates.iter().map(|(_, (currency, _))| *currency).collect::<Vec<_>>())
    .bind(rates.iter().map(|(_, (_, rate))| *rate).collect::<Vec<_>>())
    .bind(Currency::EUR)
    .bind(source)
    .bind(now)
    .execute(conn)
    .await
    .context("keeping exchange rates")?;
    Ok(kept.rows_affected())
}

/// The latest day of which there are rates.
///
/// # Errors
/// As every statement.
pub async fn latest(conn: &mut PgConnection) -> Result<Option<NaiveDate>> {
    sqlx::query_scalar("SELECT max(snapshot_date) FROM fx_snapshot")
        .fetch_one(conn)
        .await
        .context("looking for the latest exchange rates")
}
