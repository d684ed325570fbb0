//! Day partitions of `usage_event`, made ahead, and what is known of each.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Days as Count, NaiveDate, Utc};
use domain::{Instant, Result};
use parking_lot::RwLock;
use sqlx::AssertSqlSafe;
use store::{Store, StoreError, Tx};
use tokio::sync::Mutex;

use super::super::CountedEvent;

/// Advisory lock under which partitions are made: "usageday".
const LOCK_KEY: i64 = 0x7573_6167_6564_6179;

/// Days of the timestamps in a day partition, both inclusive. Bounds are whole days, so that they move once a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Span {
    pub(super) first_day: NaiveDate,
    pub(super) last_day: NaiveDate,
}

impl Span {
    fn of(day: NaiveDate) -> Self {
        Self { first_day: day, last_day: day }
    }

    fn covers(self, other: Self) -> bool {
        self.first_day <= other.first_day && self.last_day >= other.last_day
    }

    fn join(self, other: Self) -> Self {
        Self { first_day: self.first_day.min(other.first_day), last_day: self.last_day.max(other.last_day) }
    }
}

/// Makes partitions and remembers those that exist.
#[derive(Debug)]
pub(super) struct Days {
    store: Store,
    known: RwLock<HashMap<NaiveDate, Span>>,
    /// One at a time: at midnight all checkpoints want the same, and each would take a second connection for it.
    making: Mutex<()>,
}

impl Days {
    pub(super) fn new(store: Store) -> Self {
        Self { store, known: RwLock::default(), making: Mutex::default() }
    }

    /// Makes sure that the rows have their days, that the last of them has a successor, and that their timestamps are
    /// within what is known of the day. In a transaction of its own: a partition that no checkpoint comes to use is no
    /// harm, and a checkpoint holds no lock on the table's shape.
    pub(super) async fn make(&self, rows: &[CountedEvent]) -> Result<()> {
        let spans = spans(rows);
        if self.missing(&spans).is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.making.lock().await;
        let missing = self.missing(&spans);
        if missing.is_empty() {
            return Ok(());
        }
        let mut tx = self.store.begin("making days of usage").await?;
        let made = make(&mut tx, &missing).await?;
        tx.commit().await?;
        self.known.write().extend(made);
        Ok(())
    }

    fn missing(&self, spans: &BTreeMap<NaiveDate, Span>) -> Vec<(NaiveDate, Span)> {
        let known = self.known.read();
        let is_known = |day: &NaiveDate, span: Span| known.get(day).is_some_and(|known| known.covers(span));
        spans.iter().filter(|(day, span)| !is_known(day, **span)).map(|(day, span)| (*day, *span)).collect()
    }
}

fn spans(rows: &[CountedEvent]) -> BTreeMap<NaiveDate, Span> {
    let mut spans: BTreeMap<NaiveDate, Span> = BTreeMap::new();
    for row in rows {
        let span = Span::of(row.event.timestamp.date_naive());
        spans.entry(row.event.accepted_at.date_naive()).and_modify(|known| *known = known.join(span)).or_insert(span);
    }
    let tomorrow = spans.last_key_value().and_then(|(day, _)| day.checked_add_days(Count::new(1)));
    if let Some(tomorrow) = tomorrow {
        spans.insert(tomorrow, Span::of(tomorrow));
    }
    spans
}

/// Makes or widens days and returns what is known of each now.
async fn make(tx: &mut Tx, days: &[(NaiveDate, Span)]) -> Result<Vec<(NaiveDate, Span)>> {
    const OPERATION: &str = "making a day of usage";
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK_KEY).execute(tx.conn()).await.context(OPERATION)?;
    let mut made = Vec::with_capacity(days.len());
    for (day, span) in days {
        let is_new: bool = sqlx::query_scalar("SELECT NOT EXISTS (SELECT FROM usage_event_day WHERE day = $1)")
            .bind(day)
            .fetch_one(tx.conn())
            .await
            .context(OPERATION)?;
        if is_new {
            sqlx::raw_sql(AssertSqlSafe(partition_sql(*day))).execute(tx.conn()).await.context(OPERATION)?;
        }
        let known: Span = sqlx::query_as(
            "INSERT INTO usage_event_day AS d (day, first_day, last_day) VALUES ($1, $2, $3)
             ON CONFLICT (day) DO UPDATE SET first_day = LEAST(d.first_day, EXCLUDED.first_day),
                                             last_day = GREATEST(d.last_day, EXCLUDED.last_day)
             RETURNING first_day, last_day",
        )
        .bind(day)
        .bind(span.first_day)
        .bind(span.last_day)
        .fetch_one(tx.conn())
        .await
        .context(OPERATION)?;
        made.push((*day, known));
    }
    Ok(made)
}

/// Attached, not created in place: attaching lets others read and write the table meanwhile. Only digits enter the text.
fn partition_sql(day: NaiveDate) -> String {
    let name = format!("usage_event_{}", day.format("%Y%m%d"));
    let (from, to) = (midnight(day), midnight(day.checked_add_days(Count::new(1)).unwrap_or(day)));
    format!(
        "CREATE TABLE {name} (LIKE usage_event INCLUDING ALL);
         ALTER TABLE usage_event ATTACH PARTITION {name} FOR VALUES FROM ('{}') TO ('{}')",
        from.to_rfc3339(),
        to.to_rfc3339(),
    )
}

/// Start of a day in UTC.
pub(super) fn midnight(day: NaiveDate) -> Instant {
    DateTime::from_naive_utc_and_offset(day.and_time(chrono::NaiveTime::MIN), Utc)
}
