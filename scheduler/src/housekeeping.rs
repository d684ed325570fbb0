//! Tables that would grow for ever (P13): days of the outbox are made ahead and dropped, idempotency keys that have lapsed and
//! old catalog changes are deleted, in batches that hold no lock for long.
//!
//! | table | kept | why as long |
//! |---|---|---|
//! | `outbox` | 30 days | deliveries of webhooks are repeated for days |
//! | `idempotency_key` | those of headers: 2 days; those of bodies: for ever | the header's promise is 24 hours |
//! | `payment_gateway_event` | 90 days | providers repeat their events for days |
//! | `catalog_change` | the last 100,000 revisions | a node that was away for less need not read everything anew |

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use domain::{Instant, Result};
use sqlx::AssertSqlSafe;
use store::{Store, StoreError, Tx};

/// Days of the outbox that are made ahead of today.
const DAYS_AHEAD: u64 = 3;
/// Days of the outbox that are kept.
const OUTBOX_DAYS: u64 = 30;
/// A lapsing key is deleted after twice the day that is promised.
const KEY_KEPT: TimeDelta = TimeDelta::days(2);
/// Events of payment providers are known for so long.
const PROVIDER_EVENT_KEPT: TimeDelta = TimeDelta::days(90);
/// Catalog revisions that are kept.
const REVISIONS_KEPT: i64 = 100_000;
/// Rows of one DELETE.
const BATCH: i64 = 5_000;
/// Batches of one table in one run: due work waits meanwhile.
const BATCHES_MAX: usize = 10;
const MAKING: &str = "making a day of the outbox";
const DROPPING: &str = "dropping a day of the outbox";
/// Advisory lock under which days are made and dropped: "outbox".
const LOCK_KEY: i64 = 0x6f75_7462_6f78;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Days of the outbox that were made.
    pub days_made: usize,
    /// Days of the outbox that were dropped.
    pub days_dropped: usize,
    /// Rows that were deleted, of all tables.
    pub rows_deleted: u64,
}

/// Makes and drops what is due at `now` in real time. Any number of schedulers may do so.
///
/// # Errors
/// As every statement; the rest is done by the next run.
pub async fn run_once(store: &Store, now: Instant) -> Result<Swept> {
    let today = now.date_naive();
    let mut swept = Swept::default();
    for day in (0..=DAYS_AHEAD).filter_map(|ahead| today.checked_add_days(Days::new(ahead))) {
        swept.days_made += usize::from(make_day(store, day).await?);
    }
    let oldest = today.checked_sub_days(Days::new(OUTBOX_DAYS)).unwrap_or(today);
    for day in days(store).await?.into_iter().filter(|day| *day < oldest) {
        swept.days_dropped += usize::from(drop_day(store, day).await?);
    }
    for (sql, before) in [
        (
            "DELETE FROM outbox_rest WHERE id IN (SELECT id FROM outbox_rest WHERE recorded_at < $1 LIMIT $2)",
            midnight(oldest),
        ),
        (
            "DELETE FROM idempotency_key WHERE ctid = ANY(ARRAY(
                 SELECT ctid FROM idempotency_key WHERE lapses AND created_at < $1 ORDER BY created_at LIMIT $2))",
            now - KEY_KEPT,
        ),
        (
            "DELETE FROM payment_gateway_event WHERE ctid = ANY(ARRAY(
                 SELECT ctid FROM payment_gateway_event WHERE received_at < $1 ORDER BY received_at LIMIT $2))",
            now - PROVIDER_EVENT_KEPT,
        ),
    ] {
        swept.rows_deleted += delete(store, |batch| sqlx::query(sql).bind(before).bind(batch)).await?;
    }
    let sql = "DELETE FROM catalog_change WHERE ctid = ANY(ARRAY(
                   SELECT ctid FROM catalog_change
                   WHERE revision <= (SELECT revision FROM catalog_revision) - $1 ORDER BY revision LIMIT $2))";
    swept.rows_deleted += delete(store, |batch| sqlx::query(sql).bind(REVISIONS_KEPT).bind(batch)).await?;
    Ok(swept)
}

type Statement = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Deletes in batches, each a transaction of its own.
async fn delete(store: &Store, statement: impl Fn(i64) -> Statement) -> Result<u64> {
    let mut deleted = 0;
    for _ in 0..BATCHES_MAX {
        let rows = statement(BATCH).execute(store.pool()).await.context("deleting old rows")?.rows_affected();
        deleted += rows;
        if rows < BATCH.unsigned_abs() {
            break;
        }
    }
    Ok(deleted)
}

/// Days of the outbox that have a partition.
async fn days(store: &Store) -> Result<Vec<NaiveDate>> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'outbox'::regclass ORDER BY 1",
    )
    .fetch_all(store.pool())
    .await
    .context("reading the days of the outbox")?;
    let day = |name: &String| NaiveDate::parse_from_str(name.strip_prefix("outbox_")?, "%Y%m%d").ok();
    Ok(names.iter().filter_map(day).collect())
}

/// Makes a day; false when it is there, or when its events are in the rest already.
async fn make_day(store: &Store, day: NaiveDate) -> Result<bool> {
    let (from, to) = (midnight(day), midnight(day.checked_add_days(Days::new(1)).unwrap_or(day)));
    if days(store).await?.contains(&day) {
        return Ok(false);
    }
    let mut tx = store.begin(MAKING).await?;
    let made = make_day_in(&mut tx, day, (from, to)).await;
    // Ended, not dropped: a transaction that is dropped holds the lock until its connection is used again.
    tx.end(made).await
}

async fn make_day_in(tx: &mut Tx, day: NaiveDate, (from, to): (Instant, Instant)) -> Result<bool> {
    let may_make: bool = sqlx::query_scalar(
        "SELECT pg_try_advisory_xact_lock($1)
            AND NOT EXISTS (SELECT FROM outbox_rest WHERE recorded_at >= $2 AND recorded_at < $3)",
    )
    .bind(LOCK_KEY)
    .bind(from)
    .bind(to)
    .fetch_one(tx.conn())
    .await
    .context(MAKING)?;
    if !may_make {
        return Ok(false);
    }
    // Attached, not created in place: attaching lets others write to the other days meanwhile. Only digits enter the text.
    let name = name(day);
    let sql = format!(
        "SET LOCAL lock_timeout = '1s';
         CREATE TABLE IF NOT EXISTS {name} (LIKE outbox INCLUDING ALL);
         ALTER TABLE outbox ATTACH PARTITION {name} FOR VALUES FROM ('{}') TO ('{}')",
        from.to_rfc3339(),
        to.to_rfc3339(),
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx.conn()).await.context(MAKING)?;
    Ok(true)
}

/// Drops a day; false when somebody else is at it.
async fn drop_day(store: &Store, day: NaiveDate) -> Result<bool> {
    let mut tx = store.begin(DROPPING).await?;
    let dropped = drop_day_in(&mut tx, day).await;
    tx.end(dropped).await
}

async fn drop_day_in(tx: &mut Tx, day: NaiveDate) -> Result<bool> {
    let is_ours: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
        .bind(LOCK_KEY)
        .fetch_one(tx.conn())
        .await
        .context(DROPPING)?;
    if !is_ours {
        return Ok(false);
    }
    // It locks the whole table: who waits for long transactions would hold up all others, so it rather comes again.
    let sql = format!("SET LOCAL lock_timeout = '200ms'; DROP TABLE IF EXISTS {}", name(day));
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx.conn()).await.context(DROPPING)?;
    Ok(true)
}

fn name(day: NaiveDate) -> String {
    format!("outbox_{}", day.format("%Y%m%d"))
}

/// Start of a day in UTC.
fn midnight(day: NaiveDate) -> Instant {
    DateTime::from_naive_utc_and_offset(day.and_time(chrono::NaiveTime::MIN), Utc)
}
