//! Usage per minute for analysts (rule C7): computed from the raw rows, minute by minute, and replaced, never added to.
//!
//! | step | one transaction in PostgreSQL, one node at a time | in ClickHouse |
//! |---|---|---|
//! | note | the minutes of the rows between a partition's last noted position and its checkpoint are due | read |
//! | compute | finished minutes are not due any more | replaced before that is committed |
//!
//! A crash between the two columns leaves minutes due, and computing them again changes nothing. Every computation takes a
//! number under the lock before it reads; the number is the version of its rows, so that a node that was held up in between
//! cannot put old figures above newer ones. Late rows and voids ([`super::voids`]) make their minute due again.
//!
//! Finished is a minute whose time is over, or, since test clocks run ahead, one that was not noted for a minute. The days
//! of noted minutes are due, too: [`super::days`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use catalog::compiled::Snapshots;
use chrono::TimeDelta;
use clickhouse::{Client, Row};
use domain::{Clock, Error, Instant, Result, WorkspaceId};
use serde::Deserialize;
use store::{Store, StoreError, Tx};
use tokio::sync::watch;
use uuid::Uuid;

use super::super::bucket;
use super::{Copies, days, query, voids, within};

/// Time between two runs.
const INTERVAL: Duration = Duration::from_secs(10);
/// Positions of one partition that are looked at in one step.
const POSITIONS_AT_ONCE: i64 = 2_000_000;
/// Minutes of one step; after trouble, for instance with memory, one at a time.
const MINUTES_AT_ONCE: i64 = 30;
const MINUTE: TimeDelta = TimeDelta::minutes(1);
const MINUTE_MICROS: i64 = 60_000_000;
/// Advisory lock of the job: "rollups".
pub(super) const LOCK_KEY: i64 = 0x72_6f6c_6c75_7073;

/// A minute of a workspace.
pub(super) type Minute = (WorkspaceId, Instant);

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RollupReport {
    /// Minutes that were found to be due, some of them perhaps again.
    pub noted: usize,
    /// Minutes that were computed.
    pub computed: usize,
    /// Days that were computed, pieces of big ones each.
    pub days: usize,
}

/// Fills the rollups of a ClickHouse database.
#[derive(Clone)]
pub struct Rollups {
    pub(super) client: Client,
    pub(super) store: Store,
}

#[derive(Row, Deserialize)]
struct MinuteRow {
    #[serde(with = "clickhouse::serde::uuid")]
    workspace_id: Uuid,
    number: i64,
}

impl Rollups {
    /// The job beside it that copies rated usage and breaches into the same database.
    #[must_use]
    pub fn copies(&self, snapshots: Arc<Snapshots>) -> Copies {
        Copies { client: self.client.clone(), store: self.store.clone(), snapshots }
    }

    /// Runs every ten seconds until `stop` turns true. Any number of nodes may do so.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            if let Err(error) = self.run_once(Clock::System.now()).await {
                tracing::warn!(error = %error, "usage per minute could not be computed; trying again");
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                changed = stop.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Computes every minute and every day that is finished at `now` and due.
    ///
    /// # Errors
    /// As every statement and query; what was not done is due still.
    pub async fn run_once(&self, now: Instant) -> Result<RollupReport> {
        let mut report = RollupReport { noted: self.note_all().await?, ..RollupReport::default() };
        let mut limit = MINUTES_AT_ONCE;
        loop {
            match self.compute(now, limit).await {
                Ok(0) => break,
                Ok(computed) => report.computed += computed,
                Err(Error::Unavailable { .. }) if limit > 1 => limit = 1,
                Err(error) => return Err(error),
            }
        }
        while self.compute_day(now).await? {
            report.days += 1;
        }
        Ok(report)
    }

    /// Notes the minutes of all rows that a checkpoint has passed, and of all voids.
    ///
    /// # Errors
    /// As every statement and query.
    pub async fn note_all(&self) -> Result<usize> {
        voids::mirror(&self.client, &self.store).await?;
        let mut noted = 0;
        for (partition, checkpoint) in self.behind().await? {
            while let Some(minutes) = self.note(partition, checkpoint).await? {
                noted += minutes;
            }
        }
        Ok(noted)
    }

    /// Partitions with rows that have not been noted, and the first position that their checkpoints have not passed.
    async fn behind(&self) -> Result<Vec<(i16, i64)>> {
        sqlx::query_as(
            "SELECT c.partition::smallint, max((l.ordinal::bigint << 48) | c.next_offset)
             FROM partition_checkpoint c JOIN event_log l ON l.id = c.log_id
                  LEFT JOIN usage_rollup_position r ON r.partition = c.partition
             GROUP BY c.partition, r.next_position
             HAVING max((l.ordinal::bigint << 48) | c.next_offset) > coalesce(r.next_position, 0)
             ORDER BY c.partition",
        )
        .fetch_all(self.store.pool())
        .await
        .context("reading how far usage is rolled up")
    }

    /// One step of a partition; `None` when it has reached the checkpoint, or another node is at work.
    async fn note(&self, partition: i16, checkpoint: i64) -> Result<Option<usize>> {
        let Some(mut tx) = locked(&self.store, LOCK_KEY, "noting minutes of usage").await? else { return Ok(None) };
        let noted = self.note_in(&mut tx, partition, checkpoint).await;
        // A lock that is given back later would be taken for another node's by the next try.
        tx.end(noted).await
    }

    async fn note_in(&self, tx: &mut Tx, partition: i16, checkpoint: i64) -> Result<Option<usize>> {
        let from: Option<i64> =
            sqlx::query_scalar("SELECT next_position FROM usage_rollup_position WHERE partition = $1")
                .bind(partition)
                .fetch_optional(tx.conn())
                .await
                .context("reading how far usage is rolled up")?;
        let Some(from) = self.first_row(partition, from.unwrap_or(0), checkpoint).await? else {
            advance(tx, partition, checkpoint).await?;
            return Ok(None);
        };
        let to = checkpoint.min(from.saturating_add(POSITIONS_AT_ONCE));
        let condition = format!("partition = {partition} AND position >= {from} AND position < {to}");
        let minutes = minutes_of(&self.client, &condition).await?;
        note(tx, &minutes).await?;
        advance(tx, partition, to).await?;
        Ok(Some(minutes.len()))
    }

    /// The first stored position in `[from, to)`: gaps between logs are long.
    async fn first_row(&self, partition: i16, from: i64, to: i64) -> Result<Option<i64>> {
        if from >= to {
            return Ok(None);
        }
        let sql = format!(
            "SELECT min(position) FROM usage_event WHERE partition = {partition} AND position >= {from} AND position < {to}"
        );
        let first = within("looking for rows to roll up", self.client.query(&sql).fetch_one::<i64>()).await?;
        Ok(Some(first).filter(|position| *position > 0)) // an aggregate over nothing is 0, which is no record's position
    }

    /// Computes the next minutes of one workspace; 0 when none is due, or another node is at work.
    async fn compute(&self, now: Instant, limit: i64) -> Result<usize> {
        let Some(mut tx) = locked(&self.store, LOCK_KEY, "computing usage per minute").await? else { return Ok(0) };
        let computed = self.compute_in(&mut tx, now, limit).await;
        tx.end(computed).await
    }

    async fn compute_in(&self, tx: &mut Tx, now: Instant, limit: i64) -> Result<usize> {
        let version = next_version(tx).await?;
        let due: Vec<(WorkspaceId, Instant, i64)> = sqlx::query_as(
            "SELECT workspace_id, minute, noted FROM usage_rollup_due
             WHERE workspace_id = (SELECT workspace_id FROM usage_rollup_due
                                   WHERE minute <= $1 OR noted_at <= now() - interval '1 minute'
                                   ORDER BY workspace_id LIMIT 1)
               AND (minute <= $1 OR noted_at <= now() - interval '1 minute')
             ORDER BY minute LIMIT $2",
        )
        .bind(now - MINUTE)
        .bind(limit)
        .fetch_all(tx.conn())
        .await
        .context("reading minutes to compute")?;
        let Some((workspace_id, _, _)) = due.first() else { return Ok(0) };
        voids::mirror(&self.client, &self.store).await?;
        let minutes: Vec<Instant> = due.iter().map(|(_, minute, _)| *minute).collect();
        self.replace(*workspace_id, &minutes, version).await?;
        sqlx::query(
            "DELETE FROM usage_rollup_due d USING unnest($1::uuid[], $2::timestamptz[], $3::bigint[]) AS done (w, m, n)
             WHERE d.workspace_id = w AND d.minute = m AND d.noted = n",
        )
        .bind(due.iter().map(|(workspace_id, _, _)| workspace_id.0).collect::<Vec<_>>())
        .bind(minutes)
        .bind(due.iter().map(|(_, _, noted)| *noted).collect::<Vec<_>>())
        .execute(tx.conn())
        .await
        .context("finishing computed minutes")?;
        Ok(due.len())
    }

    /// Writes minutes anew in one INSERT. Rows are told apart by their places, because one that two owners of a partition
    /// wrote must count once before it is merged, too.
    async fn replace(&self, workspace_id: WorkspaceId, minutes: &[Instant], version: i64) -> Result<()> {
        let (Some(first), Some(last)) = (minutes.iter().min(), minutes.iter().max()) else { return Ok(()) };
        let mut listed = String::new();
        for minute in minutes {
            let comma = if listed.is_empty() { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(listed, "{comma}{}", number_of(*minute));
        }
        let sql = format!(
            "INSERT INTO usage_rollup_minute ({KEY}, event_count, quantity, version)
             SELECT {KEY}, sum(events), sum(units), {version} FROM (
                 SELECT {KEY}, count() AS events, sum(quantity) AS units FROM (
                     SELECT DISTINCT partition, position, {MINUTE_SQL} AS minute, {OTHER_KEYS}, quantity FROM usage_event
                     WHERE workspace_id = '{workspace_id}' AND timestamp >= {from} AND timestamp < {to}
                       AND {NUMBER_SQL} IN ({listed}) AND {not_voided})
                 GROUP BY {KEY}
                 UNION ALL
                 SELECT minute, {OTHER_KEYS}, 0 AS events, toDecimal128(0, 12) AS units FROM usage_rollup_minute
                 WHERE workspace_id = '{workspace_id}' AND minute >= {from} AND minute < {to}
                   AND {STORED_NUMBER_SQL} IN ({listed}))
             GROUP BY {KEY}",
            from = query::micros(*first),
            to = query::micros(*last + MINUTE),
            not_voided = query::not_voided(workspace_id),
        );
        within("computing usage per minute", self.client.query(&sql).execute()).await
    }
}

/// Begins a transaction that only one node has at a time for this key; `None` when another has it.
pub(super) async fn locked(store: &Store, key: i64, name: &'static str) -> Result<Option<Tx>> {
    let mut tx = store.begin(name).await?;
    let is_ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
        .bind(key)
        .fetch_one(tx.conn())
        .await
        .context(name)?;
    Ok(is_ours.then_some(tx))
}

/// A number that is larger than all before it: the version of what is written with it. Taken under the lock of the job,
/// before anything is read.
pub(super) async fn next_version(tx: &mut Tx) -> Result<i64> {
    sqlx::query_scalar("SELECT nextval('usage_rollup_number')")
        .fetch_one(tx.conn())
        .await
        .context("numbering a computation")
}

/// Columns of a rollup that tell rows apart, but the minute.
pub(super) const OTHER_KEYS: &str = "workspace_id, subscription_id, customer_id, product_id, metric_key, price_key";
/// All of them.
pub(super) const KEY: &str = "minute, workspace_id, subscription_id, customer_id, product_id, metric_key, price_key";
/// Number of an event's minute since 1900: whole numbers that are divided towards zero are divided downwards there.
const NUMBER_SQL: &str = "intDiv(toUnixTimestamp64Micro(timestamp) + 2208988800000000, 60000000)";
/// The same of a rollup's minute.
const STORED_NUMBER_SQL: &str =
    "intDiv(toUnixTimestamp64Micro(toDateTime64(minute, 6, 'UTC')) + 2208988800000000, 60000000)";
/// An event's minute.
pub(super) const MINUTE_SQL: &str = "toDateTime64(fromUnixTimestamp64Micro(
    intDiv(toUnixTimestamp64Micro(timestamp) + 2208988800000000, 60000000) * 60000000 - 2208988800000000, 'UTC'), 0, 'UTC')";

fn number_of(minute: Instant) -> i64 {
    (minute.timestamp_micros() - bucket::ORIGIN_MICROS).div_euclid(MINUTE_MICROS)
}

/// The minutes in which the rows that fulfil a condition happened.
pub(super) async fn minutes_of(client: &Client, condition: &str) -> Result<Vec<Minute>> {
    let sql = format!("SELECT DISTINCT workspace_id, {NUMBER_SQL} AS number FROM usage_event WHERE {condition}");
    let rows = within("reading minutes to compute", client.query(&sql).fetch_all::<MinuteRow>()).await?;
    let minute = |number: i64| {
        let micros = number.checked_mul(MINUTE_MICROS).and_then(|micros| micros.checked_add(bucket::ORIGIN_MICROS));
        let instant = micros.and_then(Instant::from_timestamp_micros);
        instant.ok_or_else(|| Error::invariant(format!("minute {number} of usage has no start")))
    };
    rows.into_iter().map(|row| Ok((WorkspaceId(row.workspace_id), minute(row.number)?))).collect()
}

/// Makes minutes due, and their days; again if they are already.
pub(super) async fn note(tx: &mut Tx, minutes: &[Minute]) -> Result<()> {
    // One row per minute, in one order: two that note the same do not wait for each other in a circle.
    let in_order: BTreeSet<Minute> = minutes.iter().copied().collect();
    let (workspaces, minutes): (Vec<_>, Vec<_>) = in_order.iter().map(|(id, minute)| (id.0, *minute)).unzip();
    sqlx::query(
        "INSERT INTO usage_rollup_due (workspace_id, minute, noted, noted_at)
         SELECT w, m, nextval('usage_rollup_number'), now() FROM unnest($1::uuid[], $2::timestamptz[]) AS t (w, m)
         ON CONFLICT (workspace_id, minute) DO UPDATE SET noted = EXCLUDED.noted, noted_at = EXCLUDED.noted_at",
    )
    .bind(workspaces)
    .bind(minutes)
    .execute(tx.conn())
    .await
    .context("noting minutes of usage")?;
    days::note(tx, in_order).await
}

async fn advance(tx: &mut Tx, partition: i16, next_position: i64) -> Result<()> {
    sqlx::query(
        "INSERT INTO usage_rollup_position AS r (partition, next_position) VALUES ($1, $2)
         ON CONFLICT (partition) DO UPDATE SET next_position = greatest(r.next_position, EXCLUDED.next_position)",
    )
    .bind(partition)
    .bind(next_position)
    .execute(tx.conn())
    .await
    .context("noting how far usage is rolled up")?;
    Ok(())
}
