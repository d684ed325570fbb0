//! The audit of rule C7: rows that are stored twice, and sums per minute and per day that are not those of the rows.

use std::collections::HashSet;

use clickhouse::Row;
use domain::{Instant, Quantity, Result, SubscriptionId, WorkspaceId};
use serde::Deserialize;
use store::StoreError;
use uuid::Uuid;

use super::days::{Day, DayDifference, of_day};
use super::rollup::{KEY, MINUTE_SQL, Minute, OTHER_KEYS, Rollups, minutes_of};
use super::within;

/// Differences that are kept; all are counted.
const KEPT: usize = 100;
/// How often a difference is looked at before it is believed: the job may be at work on its minute.
const LOOKS: usize = 3;

/// A sum per minute that is not that of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Start of the minute.
    pub minute: Instant,
    /// Whose usage.
    pub subscription_id: SubscriptionId,
    /// Kind of consumption.
    pub metric_key: String,
    /// Events of the rows, less those of the sum.
    pub event_count: i64,
    /// Quantity of the rows, less that of the sum.
    pub quantity: Quantity,
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Rows as a plain read sees them.
    pub rows: u64,
    /// Rows that a plain read sees twice: they were written twice and are not merged yet.
    pub doubled_rows: u64,
    /// Minutes that are not computed yet, and were not compared.
    pub minutes_due: usize,
    /// Days that are not computed yet, and were not compared.
    pub days_due: usize,
    /// Sums per minute that are not those of their rows.
    pub differences_total: usize,
    /// The first of them.
    pub differences: Vec<Difference>,
    /// Sums per day that are not those of their rows.
    pub day_differences_total: usize,
    /// The first of them.
    pub day_differences: Vec<DayDifference>,
}

impl Audit {
    /// Whether every row is there once and every sum is right.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.doubled_rows == 0 && self.differences_total == 0 && self.day_differences_total == 0
    }
}

#[derive(Row, Deserialize)]
struct DifferenceRow {
    #[serde(with = "clickhouse::serde::uuid")]
    workspace_id: Uuid,
    minute: i64,
    #[serde(with = "clickhouse::serde::uuid")]
    subscription_id: Uuid,
    metric_key: String,
    events: i64,
    units: i128,
}

impl Rollups {
    /// Compares plain reads with FINAL, and the sums per minute and per day with the rows: day by day of the events' timestamps, beside
    /// the working job. `tell` hears of every day (as its first second since 1970) that is done.
    ///
    /// # Errors
    /// As every statement and query.
    pub async fn audit(&self, tell: &mut (dyn FnMut(i64) + Send)) -> Result<Audit> {
        self.note_all().await?;
        let mut audit = Audit::default();
        for day in self.days().await? {
            self.count(day, &mut audit).await?;
            self.compare(day, &mut audit).await?;
            self.compare_day(day, &mut audit).await?;
            tell(day * 86_400);
        }
        audit.minutes_due = self.due().await?.len();
        audit.days_due = self.days_due().await?.len();
        Ok(audit)
    }

    /// Days (since 1970, in UTC) on which events happened or sums are kept.
    async fn days(&self) -> Result<Vec<i64>> {
        let sql = "SELECT DISTINCT day FROM (
                       SELECT toInt64(toDate32(timestamp)) AS day FROM usage_event
                       UNION ALL SELECT toInt64(toDate32(minute)) FROM usage_per_minute
                       UNION ALL SELECT toInt64(day) FROM usage_per_day) ORDER BY day";
        within("reading the days of usage", self.client.query(sql).fetch_all::<i64>()).await
    }

    async fn count(&self, day: i64, audit: &mut Audit) -> Result<()> {
        let (mut rows, mut doubled) = (0, u64::MAX);
        for _ in 0..LOOKS {
            // Rows that come in between the two counts are no doubles: they are not there the next time.
            let merged = self.rows_of(day, "FINAL").await?;
            rows = self.rows_of(day, "").await?;
            doubled = doubled.min(rows.saturating_sub(merged));
            if doubled == 0 {
                break;
            }
        }
        audit.rows += rows;
        audit.doubled_rows += doubled;
        Ok(())
    }

    async fn rows_of(&self, day: i64, modifier: &str) -> Result<u64> {
        let sql = format!("SELECT count() FROM usage_event {modifier} WHERE {}", of_day("timestamp", day));
        within("counting rows of usage", self.client.query(&sql).fetch_one::<u64>()).await
    }

    async fn compare(&self, day: i64, audit: &mut Audit) -> Result<()> {
        let mut found = self.differences(day).await?;
        for _ in 1..LOOKS {
            if found.is_empty() {
                return Ok(());
            }
            let open = self.open(day).await?;
            found.retain(|difference| !open.contains(&(difference.workspace_id, difference.minute)));
            let again = self.differences(day).await?;
            found.retain(|difference| again.contains(difference));
        }
        audit.differences_total += found.len();
        found.truncate(KEPT.saturating_sub(audit.differences.len()));
        audit.differences.append(&mut found);
        Ok(())
    }

    /// The same with the sums per day.
    async fn compare_day(&self, day: i64, audit: &mut Audit) -> Result<()> {
        let mut found = self.day_differences(day).await?;
        for _ in 1..LOOKS {
            if found.is_empty() {
                return Ok(());
            }
            let open = self.open_days(day).await?;
            found.retain(|difference| !open.contains(&(difference.workspace_id, difference.day)));
            let again = self.day_differences(day).await?;
            found.retain(|difference| again.contains(difference));
        }
        audit.day_differences_total += found.len();
        found.truncate(KEPT.saturating_sub(audit.day_differences.len()));
        audit.day_differences.append(&mut found);
        Ok(())
    }

    /// Days that the job has not come to, or some of whose rows it has not seen.
    async fn open_days(&self, day: i64) -> Result<HashSet<Day>> {
        let mut open: HashSet<Day> = self.days_due().await?.into_iter().collect();
        open.extend(self.unseen(day).await?.into_iter().map(|(id, minute)| (id, minute.date_naive())));
        Ok(open)
    }

    async fn differences(&self, day: i64) -> Result<Vec<Difference>> {
        let sql = format!(
            "SELECT workspace_id, toInt64(toUnixTimestamp64Second(minute)) AS minute, subscription_id,
                    CAST(metric_key AS String) AS metric_key, sum(n) AS events, CAST(sum(q) AS Decimal(38, 12)) AS units
             FROM (
                 SELECT {KEY}, toInt64(count()) AS n, sum(quantity) AS q FROM (
                     SELECT DISTINCT partition, position, {MINUTE_SQL} AS minute, {OTHER_KEYS}, quantity FROM usage_event
                     WHERE {rows} AND (workspace_id, id, partition, position) NOT IN
                           (SELECT workspace_id, event_id, partition, position FROM usage_void))
                 GROUP BY {KEY}
                 UNION ALL
                 SELECT {KEY}, -toInt64(event_count) AS n, -quantity AS q FROM usage_per_minute WHERE {sums})
             GROUP BY {KEY} HAVING events != 0 OR units != 0
             ORDER BY workspace_id, minute, subscription_id, metric_key",
            rows = of_day("timestamp", day),
            sums = of_day("minute", day),
        );
        let rows = within("comparing usage per minute", self.client.query(&sql).fetch_all::<DifferenceRow>()).await?;
        let difference = |row: DifferenceRow| Difference {
            workspace_id: WorkspaceId(row.workspace_id),
            minute: Instant::from_timestamp(row.minute, 0).unwrap_or_default(),
            subscription_id: SubscriptionId(row.subscription_id),
            metric_key: row.metric_key,
            event_count: row.events,
            quantity: Quantity::from_units(row.units),
        };
        Ok(rows.into_iter().map(difference).collect())
    }

    /// Minutes of a day that the job has not come to, or whose rows it has not seen.
    async fn open(&self, day: i64) -> Result<HashSet<Minute>> {
        let mut open: HashSet<Minute> = self.due().await?.into_iter().collect();
        open.extend(self.unseen(day).await?);
        Ok(open)
    }

    /// Minutes of a day with rows that the job has not seen.
    async fn unseen(&self, day: i64) -> Result<Vec<Minute>> {
        let noted: Vec<(i16, i64)> = sqlx::query_as("SELECT partition, next_position FROM usage_rollup_position")
            .fetch_all(self.store.pool())
            .await
            .context("reading how far usage is rolled up")?;
        let mut unseen = String::new();
        for (partition, next) in &noted {
            unseen.push_str(&format!("(partition = {partition} AND position >= {next}) OR "));
        }
        let listed = noted.iter().map(|(partition, _)| partition.to_string()).collect::<Vec<_>>().join(",");
        let elsewhere = if noted.is_empty() { "1".to_owned() } else { format!("partition NOT IN ({listed})") };
        let condition = format!("{} AND ({unseen}{elsewhere})", of_day("timestamp", day));
        minutes_of(&self.client, &condition).await
    }

    async fn due(&self) -> Result<Vec<Minute>> {
        sqlx::query_as("SELECT workspace_id, minute FROM usage_rollup_due")
            .fetch_all(self.store.pool())
            .await
            .context("reading minutes that are due")
    }
}
