//! The table `event_log`: which logs there are, in which order they were made, and with how many partitions.
//!
//! Positions compare by the ordinal given here (rule A6), and homes of subscriptions depend on the number of partitions,
//! so neither ever changes (rule A5).

use domain::{Error, Instant, Result};
use sqlx::Row;
use store::{Store, StoreError, Tx};
use uuid::Uuid;

use super::LogIdentity;
use super::kafka::Seal;

/// Which implementation a log is of, as `event_log.kind` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// [`super::local::LocalLog`]; the name is the id that its directory holds.
    Local,
    /// [`super::kafka::KafkaLog`]; the name is `<cluster id>/<topic>`.
    Kafka,
}

impl LogKind {
    /// As stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Kafka => "kafka",
        }
    }
}

/// Finds the log's row, or creates it with the next ordinal.
///
/// # Errors
/// `Conflict` with code `LOG_PARTITIONS` when the log is known with another number of partitions: the process must not
/// start (rule A5). `Unavailable` or `Internal` as every statement.
pub async fn register(store: &Store, kind: LogKind, name: &str, partitions: u32, now: Instant) -> Result<LogIdentity> {
    let mut tx = store.begin("registering the event log").await?;
    // Two nodes that start at the same time must agree on one row; the table sees a write once in a log's life.
    sqlx::query("LOCK TABLE event_log IN SHARE ROW EXCLUSIVE MODE")
        .execute(tx.conn())
        .await
        .context("locking the table of event logs")?;
    let found = match find(&mut tx, kind, name).await? {
        Some(found) => found,
        None => create(&mut tx, kind, name, partitions, now).await?,
    };
    tx.commit().await?;
    if found.partitions == partitions {
        return Ok(found);
    }
    Err(Error::conflict(
        "LOG_PARTITIONS",
        format!(
            "the {} event log {name} was made with {} partitions and is now to have {partitions}; homes of subscriptions \
             depend on the number, so it can never change: set it back to {}, or begin a new log",
            kind.as_str(),
            found.partitions,
            found.partitions,
        ),
    ))
}

/// What the nodes seal their own records of a log with (rule A7).
///
/// # Errors
/// As every statement.
pub async fn seal(store: &Store, log: &LogIdentity) -> Result<Seal> {
    let secret: Vec<u8> = sqlx::query_scalar("SELECT secret FROM event_log WHERE id = $1")
        .bind(log.id)
        .fetch_one(store.pool())
        .await
        .context("reading the event log's secret")?;
    let secret = secret.try_into().map_err(|_| Error::invariant("the event log's secret must have 16 bytes"))?;
    Ok(Seal::new(secret))
}

async fn find(tx: &mut Tx, kind: LogKind, name: &str) -> Result<Option<LogIdentity>> {
    sqlx::query(
        "SELECT id, ordinal, partitions FROM event_log WHERE kind = $1 AND name = $2 ORDER BY ordinal DESC LIMIT 1",
    )
    .bind(kind.as_str())
    .bind(name)
    .fetch_optional(tx.conn())
    .await
    .context("reading the event log's row")?
    .map(|row| identity(&row))
    .transpose()
}

async fn create(tx: &mut Tx, kind: LogKind, name: &str, partitions: u32, now: Instant) -> Result<LogIdentity> {
    refuse_homeless(tx, partitions).await?;
    let row = sqlx::query(
        "INSERT INTO event_log (id, kind, name, partitions, created_at) VALUES ($1, $2, $3, $4, $5)
         RETURNING id, ordinal, partitions",
    )
    .bind(Uuid::now_v7())
    .bind(kind.as_str())
    .bind(name)
    .bind(partitions.cast_signed())
    .bind(now)
    .fetch_one(tx.conn())
    .await
    .context("creating the event log's row")?;
    identity(&row)
}

/// Homes are for life, also when the log changes (rule A5): a new log has a partition for each of them.
async fn refuse_homeless(tx: &mut Tx, partitions: u32) -> Result<()> {
    let largest: Option<i32> = sqlx::query_scalar("SELECT max(home_partition) FROM subscription")
        .fetch_one(tx.conn())
        .await
        .context("reading the homes of subscriptions")?;
    match largest.map(i32::cast_unsigned) {
        Some(largest) if largest >= partitions => Err(Error::conflict(
            "LOG_PARTITIONS",
            format!(
                "the new event log is to have {partitions} partitions, but subscriptions live on partition {largest} of the \
                 log before, for life: give the new one at least {}",
                largest + 1
            ),
        )),
        _ => Ok(()),
    }
}

fn identity(row: &sqlx::postgres::PgRow) -> Result<LogIdentity> {
    let ordinal: i16 = row.try_get("ordinal").context("reading the event log's ordinal")?;
    let partitions: i32 = row.try_get("partitions").context("reading the event log's partitions")?;
    Ok(LogIdentity {
        id: row.try_get("id").context("reading the event log's id")?,
        // The table's checks keep both within their types.
        ordinal: ordinal.cast_unsigned(),
        partitions: partitions.cast_unsigned(),
    })
}
