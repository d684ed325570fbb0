//! Usage per day by metric and dimension for analysts (rule C7): computed from the raw rows and replaced, as
//! [`super::rollup`] does with minutes and under its lock.
//!
//! Dimensions are those that the meters of a metric list (`dimensions` of meters.md, their union): what nobody listed may have
//! any number of values. A day has the dimensions that were listed when it was computed last.
//!
//! A day is computed when nothing of it was noted for a minute: at the latest ten minutes after it was noted first, once it
//! is over. One with more rows than [`PIECE_ROWS`] is computed in pieces of customers, each a transaction and an INSERT of its
//! own, so that none is cut at the time limit of a query; what a crash leaves undone goes on with the next piece.

use std::collections::BTreeSet;

use chrono::NaiveDate;
use clickhouse::Row;
use clickhouse::query::Query;
use domain::{CustomerId, Instant, ProductId, Quantity, Result, WorkspaceId};
use serde::Deserialize;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::query::{DIMENSION_BINDS, DIMENSION_VALUE, not_voided};
use super::rollup::{LOCK_KEY, Minute, Rollups, locked, next_version};
use super::{voids, within};

/// Rows of one piece.
const PIECE_ROWS: u64 = 4_000_000;
const KEY: &str = "workspace_id, day, product_id, metric_key, dimension, value, customer_id";
const UNIX_EPOCH: NaiveDate = NaiveDate::from_epoch_days(0).expect("1970-01-01");

/// A sum per day that is not that of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DayDifference {
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// The day, in UTC.
    pub day: NaiveDate,
    /// The product.
    pub product_id: ProductId,
    /// Kind of consumption.
    pub metric_key: String,
    /// Dimension; empty for all events.
    pub dimension: String,
    /// Its value; empty for events without it.
    pub value: String,
    /// Whose usage.
    pub customer_id: CustomerId,
    /// Events of the rows, less those of the sum.
    pub event_count: i64,
    /// Quantity of the rows, less that of the sum.
    pub quantity: Quantity,
}

/// A day of a workspace.
pub(super) type Day = (WorkspaceId, NaiveDate);

#[derive(sqlx::FromRow)]
struct Due {
    workspace_id: WorkspaceId,
    day: NaiveDate,
    noted: i64,
    started: Option<i64>,
    pieces: Option<i32>,
    done: i32,
}

/// The dimensions of one metric of a workspace.
struct Dimensions {
    workspace_id: WorkspaceId,
    metric_key: String,
    keys: Vec<String>,
}

/// Makes the days of minutes due, again if they are already.
pub(super) async fn note(tx: &mut Tx, minutes: BTreeSet<Minute>) -> Result<()> {
    // In one order, as the minutes.
    let days: BTreeSet<Day> = minutes.into_iter().map(|(id, minute)| (id, minute.date_naive())).collect();
    let (workspaces, days): (Vec<_>, Vec<_>) = days.into_iter().map(|(id, day)| (id.0, day)).unzip();
    sqlx::query(
        "INSERT INTO usage_rollup_day_due (workspace_id, day, noted, noted_at, since)
         SELECT w, d, nextval('usage_rollup_number'), now(), now() FROM unnest($1::uuid[], $2::date[]) AS t (w, d)
         ON CONFLICT (workspace_id, day) DO UPDATE SET noted = EXCLUDED.noted, noted_at = EXCLUDED.noted_at",
    )
    .bind(workspaces)
    .bind(days)
    .execute(tx.conn())
    .await
    .context("noting days of usage")?;
    Ok(())
}

impl Rollups {
    /// Computes the next piece of a day; false when none is due, or another node is at work.
    pub(super) async fn compute_day(&self, now: Instant) -> Result<bool> {
        let Some(mut tx) = locked(&self.store, LOCK_KEY, "computing usage per day").await? else { return Ok(false) };
        let computed = self.compute_day_in(&mut tx, now).await;
        tx.end(computed).await
    }

    async fn compute_day_in(&self, tx: &mut Tx, now: Instant) -> Result<bool> {
        let version = next_version(tx).await?;
        let due: Option<Due> = sqlx::query_as(
            "SELECT workspace_id, day, noted, started, pieces, done FROM usage_rollup_day_due
             WHERE noted_at <= now() - interval '1 minute' OR (day < $1 AND since <= now() - interval '10 minutes')
             ORDER BY workspace_id, day LIMIT 1",
        )
        .bind(now.date_naive())
        .fetch_optional(tx.conn())
        .await
        .context("reading days to compute")?;
        let Some(due) = due else { return Ok(false) };
        voids::mirror(&self.client, &self.store).await?;
        let pieces = match due.pieces {
            Some(pieces) => pieces,
            None => self.pieces(due.workspace_id, due.day).await?,
        };
        let dimensions = self.dimensions(tx, due.workspace_id).await?;
        self.replace_piece(&due, pieces, &dimensions, version).await?;
        finish(tx, &due, pieces).await?;
        Ok(true)
    }

    async fn pieces(&self, workspace_id: WorkspaceId, day: NaiveDate) -> Result<i32> {
        let rows = of_day("timestamp", number_of(day));
        let sql = format!("SELECT count() FROM usage_event WHERE workspace_id = '{workspace_id}' AND {rows}");
        let rows = within("counting the rows of a day", self.client.query(&sql).fetch_one::<u64>()).await?;
        Ok(i32::try_from(rows / PIECE_ROWS).unwrap_or(i32::MAX - 1) + 1)
    }

    /// What the meters of a workspace list.
    async fn dimensions(&self, tx: &mut Tx, workspace_id: WorkspaceId) -> Result<Vec<Dimensions>> {
        let rows: Vec<(String, Vec<String>)> = sqlx::query_as(
            "SELECT metric_key, array_agg(DISTINCT listed.name ORDER BY listed.name) FROM meter, unnest(dimensions) AS listed (name)
             WHERE workspace_id = $1 AND metric_key IS NOT NULL GROUP BY metric_key ORDER BY metric_key",
        )
        .bind(workspace_id)
        .fetch_all(tx.conn())
        .await
        .context("reading the dimensions of meters")?;
        Ok(rows.into_iter().map(|(metric_key, keys)| Dimensions { workspace_id, metric_key, keys }).collect())
    }

    /// Writes a piece of a day anew in one INSERT. Rows are told apart by their places, as in a minute.
    async fn replace_piece(&self, due: &Due, pieces: i32, dimensions: &[Dimensions], version: i64) -> Result<()> {
        let workspace_id = due.workspace_id;
        let piece = format!("cityHash64(customer_id) % {pieces} = {}", due.done);
        let condition = format!(
            "workspace_id = '{workspace_id}' AND {rows} AND {piece} AND {not_voided}",
            rows = of_day("timestamp", number_of(due.day)),
            not_voided = not_voided(workspace_id),
        );
        let summed = Summed::new(due.day, &condition, dimensions);
        let sql = format!(
            "INSERT INTO usage_rollup_day ({KEY}, event_count, quantity, version)
             SELECT {KEY}, sum(events), sum(units), {version} FROM (
                 {sums}
                 UNION ALL
                 SELECT {KEY}, 0 AS events, toDecimal128(0, 12) AS units FROM usage_rollup_day
                 WHERE workspace_id = '{workspace_id}' AND day = {day} AND {piece})
             GROUP BY {KEY}",
            sums = summed.sql,
            day = date_sql(due.day),
        );
        within("computing usage per day", summed.bind(self.client.query(&sql)).execute()).await
    }

    /// Sums of a day that are not those of their rows.
    pub(super) async fn day_differences(&self, day: i64) -> Result<Vec<DayDifference>> {
        let Some(date) = NaiveDate::from_epoch_days(i32::try_from(day).unwrap_or(i32::MAX)) else {
            return Ok(Vec::new());
        };
        let stored = self.stored_dimensions(date).await?;
        let condition = format!(
            "{} AND (workspace_id, id, partition, position) NOT IN
                 (SELECT workspace_id, event_id, partition, position FROM usage_void)",
            of_day("timestamp", day)
        );
        let summed = Summed::new(date, &condition, &stored);
        let sql = format!(
            "SELECT workspace_id, product_id, CAST(metric_key AS String) AS metric_key, CAST(dimension AS String) AS dimension,
                    value, customer_id, sum(toInt64(n)) AS events, CAST(sum(q) AS Decimal(38, 12)) AS units
             FROM (
                 SELECT {KEY}, toInt64(events) AS n, units AS q FROM ({sums})
                 UNION ALL
                 SELECT {KEY}, -toInt64(event_count) AS n, -quantity AS q FROM usage_per_day WHERE day = {day})
             GROUP BY {KEY} HAVING events != 0 OR units != 0
             ORDER BY workspace_id, product_id, metric_key, dimension, value, customer_id",
            sums = summed.sql,
            day = date_sql(date),
        );
        let query = summed.bind(self.client.query(&sql));
        let rows = within("comparing usage per day", query.fetch_all::<DifferenceRow>()).await?;
        Ok(rows.into_iter().map(|row| row.into_difference(date)).collect())
    }

    /// The dimensions that the sums of a day have: which were listed when it was computed is not kept elsewhere.
    async fn stored_dimensions(&self, day: NaiveDate) -> Result<Vec<Dimensions>> {
        let sql = format!(
            "SELECT workspace_id, CAST(metric_key AS String) AS metric_key,
                    arraySort(groupUniqArray(CAST(dimension AS String))) AS keys
             FROM usage_per_day WHERE day = {} AND dimension != '' GROUP BY workspace_id, metric_key
             ORDER BY workspace_id, metric_key",
            date_sql(day)
        );
        let rows = within("reading the dimensions of a day", self.client.query(&sql).fetch_all::<DimensionsRow>());
        let dimensions = |row: DimensionsRow| Dimensions {
            workspace_id: WorkspaceId(row.workspace_id),
            metric_key: row.metric_key,
            keys: row.keys,
        };
        Ok(rows.await?.into_iter().map(dimensions).collect())
    }

    /// Days that the job has not come to.
    pub(super) async fn days_due(&self) -> Result<Vec<Day>> {
        sqlx::query_as("SELECT workspace_id, day FROM usage_rollup_day_due")
            .fetch_all(self.store.pool())
            .await
            .context("reading days that are due")
    }
}

/// The next piece, or the day is done; if it was noted meanwhile, it begins anew.
async fn finish(tx: &mut Tx, due: &Due, pieces: i32) -> Result<()> {
    let started = due.started.unwrap_or(due.noted);
    if due.done + 1 < pieces {
        sqlx::query(
            "UPDATE usage_rollup_day_due SET started = $3, pieces = $4, done = done + 1 WHERE workspace_id = $1 AND day = $2",
        )
        .bind(due.workspace_id)
        .bind(due.day)
        .bind(started)
        .bind(pieces)
        .execute(tx.conn())
        .await
        .context("finishing a piece of a day")?;
        return Ok(());
    }
    let deleted = sqlx::query("DELETE FROM usage_rollup_day_due WHERE workspace_id = $1 AND day = $2 AND noted = $3")
        .bind(due.workspace_id)
        .bind(due.day)
        .bind(started)
        .execute(tx.conn())
        .await
        .context("finishing a computed day")?;
    if deleted.rows_affected() == 0 {
        sqlx::query(
            "UPDATE usage_rollup_day_due SET started = NULL, pieces = NULL, done = 0, since = now()
             WHERE workspace_id = $1 AND day = $2",
        )
        .bind(due.workspace_id)
        .bind(due.day)
        .execute(tx.conn())
        .await
        .context("beginning a day anew")?;
    }
    Ok(())
}

/// SQL of the sums of rows, with what is bound to it, in order.
struct Summed {
    sql: String,
    texts: Vec<String>,
}

impl Summed {
    /// Sums by [`KEY`] as `events` and `units` of the rows of one day that fulfil a condition.
    fn new(day: NaiveDate, condition: &str, dimensions: &[Dimensions]) -> Self {
        let (mut branches, mut texts) = (String::new(), Vec::new());
        for Dimensions { workspace_id, metric_key, keys } in dimensions {
            let pairs = vec![format!("(?, {DIMENSION_VALUE})"); keys.len()].join(", ");
            branches.push_str(&format!("workspace_id = '{workspace_id}' AND metric_key = ?, [{pairs}], "));
            texts.push(metric_key.clone());
            texts.extend(keys.iter().flat_map(|key| vec![key.clone(); 1 + DIMENSION_BINDS]));
        }
        let none = "CAST([], 'Array(Tuple(String, String))')";
        let listed = if branches.is_empty() { none.to_owned() } else { format!("multiIf({branches}{none})") };
        let sql = format!(
            "SELECT workspace_id, {day} AS day, product_id, metric_key, pair.1 AS dimension, pair.2 AS value, customer_id,
                    count() AS events, sum(quantity) AS units
             FROM (
                 SELECT DISTINCT partition, position, workspace_id, product_id, metric_key, customer_id, quantity,
                        arrayConcat([('', '')], {listed}) AS pairs
                 FROM usage_event WHERE {condition})
             ARRAY JOIN pairs AS pair
             GROUP BY {KEY}",
            day = date_sql(day),
        );
        Self { sql, texts }
    }

    fn bind(&self, query: Query) -> Query {
        self.texts.iter().fold(query, |query, text| query.bind(text))
    }
}

#[derive(Row, Deserialize)]
struct DimensionsRow {
    #[serde(with = "clickhouse::serde::uuid")]
    workspace_id: Uuid,
    metric_key: String,
    keys: Vec<String>,
}

#[derive(Row, Deserialize)]
struct DifferenceRow {
    #[serde(with = "clickhouse::serde::uuid")]
    workspace_id: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    product_id: Uuid,
    metric_key: String,
    dimension: String,
    value: String,
    #[serde(with = "clickhouse::serde::uuid")]
    customer_id: Uuid,
    events: i64,
    units: i128,
}

impl DifferenceRow {
    fn into_difference(self, day: NaiveDate) -> DayDifference {
        DayDifference {
            workspace_id: WorkspaceId(self.workspace_id),
            day,
            product_id: ProductId(self.product_id),
            metric_key: self.metric_key,
            dimension: self.dimension,
            value: self.value,
            customer_id: CustomerId(self.customer_id),
            event_count: self.events,
            quantity: Quantity::from_units(self.units),
        }
    }
}

/// Days since 1970.
fn number_of(day: NaiveDate) -> i64 {
    (day - UNIX_EPOCH).num_days()
}

fn date_sql(day: NaiveDate) -> String {
    format!("toDate32('{day}')")
}

/// Condition on an instant: within a day since 1970, in UTC.
pub(super) fn of_day(column: &str, day: i64) -> String {
    let from = |day: i64| format!("toDateTime64({}, 0, 'UTC')", day * 86_400);
    format!("{column} >= {} AND {column} < {}", from(day), from(day + 1))
}
