//! The outbox of usage records: what a transaction wants the log to have (the usage event of a capture, the call to count a
//! window without what was voided) is written with it and appended to the home partition afterwards (rules C5, D2).
//!
//! Any number of relays work side by side: each takes rows that no other has locked. A row is deleted after the log has its
//! record durably, so a crash in between appends it twice: the second usage event is a duplicate, and a window that is
//! counted anew again stays what it is.

use std::sync::Arc;
use std::time::Duration;

use domain::{Instant, Result, SubscriptionId};
use sqlx::FromRow;
use store::{Store, StoreError, Tx};
use tokio::sync::{Notify, watch};

use crate::log::{Append, EventLog, Partition};
use crate::record::Record;
use crate::recount;

/// Records of one append.
const BATCH: i64 = 500;
/// Pause between two looks when nobody nudges: what other processes write is found by it.
const POLL: Duration = Duration::from_millis(200);

/// A record for the log, and where it goes.
#[derive(Debug)]
pub struct Outgoing {
    /// Whose record.
    pub subscription_id: SubscriptionId,
    /// The partition of the subscription.
    pub home: Partition,
    /// What the log gets.
    pub record: Record,
}

/// Writes records in the transaction of their cause.
///
/// # Errors
/// As every statement.
pub async fn put(tx: &mut Tx, records: &[Outgoing], now: Instant) -> Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO usage_outbox (subscription_id, home_partition, record, created_at)
         SELECT *, $4 FROM unnest($1::uuid[], $2::int[], $3::bytea[])",
    )
    .bind(records.iter().map(|one| one.subscription_id.0).collect::<Vec<_>>())
    .bind(records.iter().map(|one| one.home.cast_signed()).collect::<Vec<_>>())
    .bind(records.iter().map(|one| one.record.encode().to_vec()).collect::<Vec<_>>())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("writing to the usage outbox")?;
    Ok(())
}

#[derive(FromRow)]
struct Row {
    id: i64,
    home_partition: i32,
    record: Vec<u8>,
}

/// Takes records from the outbox to the log.
pub struct Relay {
    store: Store,
    log: Arc<dyn EventLog>,
    nudged: Notify,
}

impl Relay {
    /// A relay to this log.
    #[must_use]
    pub fn new(store: Store, log: Arc<dyn EventLog>) -> Self {
        Self { store, log, nudged: Notify::new() }
    }

    /// Says that a transaction which wrote records has been committed.
    pub fn nudge(&self) {
        self.nudged.notify_one();
    }

    /// Works until `shutdown` turns true. Trouble is logged and tried again.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        while !*shutdown.borrow() {
            match self.relay_once().await {
                Ok(moved) if moved == BATCH.unsigned_abs() as usize => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!(error = %error, "usage records wait in the outbox"),
            }
            if let Err(error) = recount::step(&self.store, &self.log).await {
                tracing::warn!(error = %error, "a change of the catalog waits to be applied to counted usage");
            }
            tokio::select! {
                () = self.nudged.notified() => {}
                () = tokio::time::sleep(POLL) => {}
                changed = shutdown.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Moves one batch and says how many records it had.
    ///
    /// # Errors
    /// As every statement; what the log does not take stays where it is.
    pub async fn relay_once(&self) -> Result<usize> {
        let mut tx = self.store.begin("relaying usage records").await?;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, home_partition, record FROM usage_outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED",
        )
        .bind(BATCH)
        .fetch_all(tx.conn())
        .await
        .context("reading the usage outbox")?;
        if rows.is_empty() {
            return Ok(0);
        }
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        let records = rows
            .into_iter()
            .map(|row| Append { partition: row.home_partition.unsigned_abs(), payload: row.record.into() });
        let outcomes = self.log.append(records.collect()).await;
        let (mut done, mut failed) = (Vec::with_capacity(ids.len()), None);
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => done.push(id),
                Err(error) => failed = Some(error),
            }
        }
        sqlx::query("DELETE FROM usage_outbox WHERE id = ANY($1)")
            .bind(&done)
            .execute(tx.conn())
            .await
            .context("clearing the usage outbox")?;
        tx.commit().await?;
        if let Some(error) = failed {
            tracing::warn!(error = %error, "the event log did not take every usage record of the outbox");
        }
        Ok(done.len())
    }
}
