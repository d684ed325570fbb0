//! Counted events in PostgreSQL (P7): rows are written by the checkpoint's own transaction, so they and the totals that
//! hold them appear together or not at all.
//!
//! `usage_event` is partitioned by day of `ingested_at`; `usage_event_day` knows the partitions that exist and the days
//! that their timestamps span. Indexes are (id) and (subscription_id, timestamp, id), and block ranges (BRIN) of timestamp
//! and position; every further index would cost each event 7 to 10 core-µs.
//!
//! | read | plan | bounded by |
//! |---|---|---|
//! | `find`, `get` | index on id in every day | ids × days |
//! | list of subscriptions or a customer | one backward index walk per subscription | subscriptions × page |
//! | list of a workspace | newest timestamps first, in time ranges that grow fourfold until the page is full; BRIN of the days that hold them | all events of about four times the time that the page spans |
//! | `aggregate` | as the filter, over the whole range | events in the range, or of the subscriptions |
//! | `twins` | index walk of the subscriptions, for each row the index on id in every day | events of the windows × days |
//! | `replay` | index walk of the subscription | all events of the subscription |
//! | `ids_between` | BRIN of position | blocks that hold the range |
//! | `largest_position` | whole table | all events: for audits, a start-up does not need it here |

mod aggregate;
mod copy;
mod days;
mod list;
mod row;
mod twins;

use std::collections::HashMap;

use async_trait::async_trait;
use domain::{Instant, Position, Result, Scope, SubscriptionId, UsageEventId};
use store::{Store, StoreError, Tx};

use self::days::Days;
use self::row::{EventRow, columns, not_voided};
use super::positions::{self, ByPosition};
use super::{
    AggregateBucket, AggregateQuery, CountedEvent, CountedId, CountedWindow, EventCursor, EventFilter, StoredEvent,
    Touching, UsageStore, derived,
};
use crate::checkpoint::WindowKey;
use crate::log::Partition;

/// The usage store in PostgreSQL.
#[derive(Debug)]
pub struct PostgresUsage {
    store: Store,
    days: Days,
}

impl PostgresUsage {
    /// Over the database that holds the checkpoints: rows are written in their transactions.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { days: Days::new(store.clone()), store }
    }
}

/// Column `partition` is a smallint; a log has at most 1,024 partitions.
fn partition_column(partition: Partition) -> i16 {
    i16::try_from(partition).unwrap_or(i16::MAX)
}

#[async_trait]
impl UsageStore for PostgresUsage {
    async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(self.store.pool()).await.map(drop).context("asking the usage store")
    }

    async fn taken(&self, _partition: Partition) -> Result<()> {
        Ok(())
    }

    /// Writes nothing, but makes sure that the rows' days exist while no transaction is open.
    async fn append(&self, _partition: Partition, rows: &[CountedEvent]) -> Result<()> {
        self.days.make(rows).await
    }

    async fn append_in_checkpoint(&self, tx: &mut Tx, rows: &[CountedEvent]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.days.make(rows).await?;
        copy::write(tx, rows).await
    }

    async fn largest_position(&self, partition: Partition) -> Result<Option<Position>> {
        let position: Option<i64> = sqlx::query_scalar("SELECT max(position) FROM usage_event WHERE partition = $1")
            .bind(partition_column(partition))
            .fetch_one(self.store.pool())
            .await
            .context("reading the largest position of the usage store")?;
        Ok(position.map(Position::from_i64))
    }

    async fn find(&self, partition: Partition, ids: &[UsageEventId]) -> Result<HashMap<UsageEventId, CountedId>> {
        let rows: Vec<(UsageEventId, i64, i64)> = sqlx::query_as(
            "SELECT DISTINCT ON (id) id, position, payload_hash FROM usage_event
             WHERE id = ANY($1) AND partition = $2 ORDER BY id, position",
        )
        .bind(ids)
        .bind(partition_column(partition))
        .fetch_all(self.store.pool())
        .await
        .context("looking for ids in the usage store")?;
        Ok(rows.into_iter().map(row::counted_id).collect())
    }

    async fn twins(&self, tx: &mut Tx, windows: &[CountedWindow]) -> Result<Vec<CountedEvent>> {
        twins::of(tx, windows).await
    }

    async fn ids_between(
        &self,
        partition: Partition,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<(UsageEventId, CountedId)>> {
        positions::ids_between(self, partition, after, up_to, limit).await
    }

    async fn replay(
        &self,
        subscription_id: SubscriptionId,
        window_start: Instant,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<CountedEvent>> {
        let rows: Vec<EventRow> = sqlx::query_as(concat!(
            "SELECT ",
            columns!(),
            " FROM usage_event e
             WHERE subscription_id = $1 AND window_start = $2 AND position > $3 AND position <= $4
               AND ",
            not_voided!(),
            " ORDER BY position LIMIT $5"
        ))
        .bind(subscription_id)
        .bind(window_start)
        .bind(after.as_i64())
        .bind(up_to.as_i64())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(self.store.pool())
        .await
        .context("replaying a usage window")?;
        rows.into_iter().map(EventRow::into_counted).collect()
    }

    async fn touched(&self, partition: Partition, touching: &Touching) -> Result<Vec<WindowKey>> {
        sqlx::query_as(
            "SELECT DISTINCT subscription_id, window_start FROM usage_event
             WHERE workspace_id = $1 AND \"timestamp\" >= $2 AND partition = $3 AND position < $4
               AND ($5::uuid[] IS NULL OR product_id = ANY($5))",
        )
        .bind(touching.workspace_id)
        .bind(touching.from)
        .bind(partition_column(partition))
        .bind(touching.before.as_i64())
        .bind(touching.products.as_deref())
        .fetch_all(self.store.pool())
        .await
        .context("looking for usage to count anew")
    }

    async fn get(&self, scope: &Scope, id: UsageEventId) -> Result<Option<StoredEvent>> {
        let rows: Vec<EventRow> =
            sqlx::query_as(concat!("SELECT ", columns!(), " FROM usage_event WHERE id = $1 AND workspace_id = $2"))
                .bind(id)
                .bind(scope.workspace_id)
                .fetch_all(self.store.pool())
                .await
                .context("reading a usage event")?;
        let rows = rows.into_iter().map(EventRow::into_counted).collect::<Result<_>>()?;
        let counted = derived::standing(&self.store, scope, rows).await?;
        Ok(derived::complete(&self.store, scope, counted.into_iter().collect()).await?.pop())
    }

    async fn list(
        &self,
        scope: &Scope,
        filter: &EventFilter,
        after: Option<EventCursor>,
        limit: u32,
    ) -> Result<(Vec<StoredEvent>, bool)> {
        let mut events = list::newest(&self.store, scope, filter, after, i64::from(limit) + 1).await?;
        let more = events.len() > limit as usize;
        events.truncate(limit as usize);
        Ok((derived::complete(&self.store, scope, events).await?, more))
    }

    async fn aggregate(&self, scope: &Scope, query: &AggregateQuery) -> Result<Vec<AggregateBucket>> {
        aggregate::buckets(&self.store, scope, query).await
    }
}

#[async_trait]
impl ByPosition for PostgresUsage {
    async fn ids_in(
        &self,
        partition: Partition,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<(UsageEventId, CountedId)>> {
        let rows: Vec<(UsageEventId, i64, i64)> = sqlx::query_as(
            "SELECT id, position, payload_hash FROM usage_event
             WHERE partition = $1 AND position > $2 AND position <= $3 ORDER BY position LIMIT $4",
        )
        .bind(partition_column(partition))
        .bind(after.as_i64())
        .bind(up_to.as_i64())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(self.store.pool())
        .await
        .context("listing ids by position")?;
        Ok(rows.into_iter().map(row::counted_id).collect())
    }

    async fn first_in(&self, partition: Partition, after: Position, up_to: Position) -> Result<Option<Position>> {
        let position: Option<i64> = sqlx::query_scalar(
            "SELECT min(position) FROM usage_event WHERE partition = $1 AND position > $2 AND position <= $3",
        )
        .bind(partition_column(partition))
        .bind(after.as_i64())
        .bind(up_to.as_i64())
        .fetch_one(self.store.pool())
        .await
        .context("looking for the next position")?;
        Ok(position.map(Position::from_i64))
    }
}
