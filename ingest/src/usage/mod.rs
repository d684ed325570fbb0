//! The usage store: counted usage events, one row per id for ever, each with the position that counted it.
//!
//! Two implementations held to one conformance suite: [`postgres::PostgresUsage`] (P7: rows are written by the
//! checkpoint's own transaction) and [`self::clickhouse::ClickHouseUsage`] (P8: rows are durable before the checkpoint passes
//! them, and a row is written once because the writer skips positions that are stored already).

pub mod clickhouse;
pub mod postgres;

mod bucket;
mod derived;
mod positions;
mod vars;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use domain::{
    CustomerId, Instant, InvoiceId, OrganizationId, Position, ProductId, Quantity, Result, Scope, SubscriptionId,
    UsageEvent, UsageEventId, WorkspaceId,
};
use serde::Serialize;
use store::Tx;

use crate::checkpoint::WindowKey;
use crate::log::Partition;

/// An event that changed a total, with the place that counted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedEvent {
    /// The event.
    pub event: Box<UsageEvent>,
    /// Window in which it is counted; not the one of its timestamp when it is late.
    pub window_start: Instant,
    /// Whether its own window was sealed before it came.
    pub late: bool,
    /// Home partition.
    pub partition: Partition,
    /// Place of its record.
    pub position: Position,
    /// [`UsageEvent::payload_hash`].
    pub payload_hash: u64,
}

/// Which counted row: one id may be counted in several partitions until its windows are sealed (rule B5).
pub type RowKey = (UsageEventId, Partition, Position);

impl CountedEvent {
    /// Which row it is.
    #[must_use]
    pub fn key(&self) -> RowKey {
        (self.event.id, self.partition, self.position)
    }

    /// Which of the rows of one id stands: the smallest. Every partition orders them alike (rule B5).
    #[must_use]
    pub fn precedence(&self) -> (Instant, Partition, Position) {
        (self.event.accepted_at, self.partition, self.position)
    }
}

/// A window whose events are compared with everybody's (rule B5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedWindow {
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Whose window.
    pub subscription_id: SubscriptionId,
    /// Its first instant.
    pub window_start: Instant,
    /// About how many events it has: what is asked at once is bounded by it.
    pub event_count: u64,
}

/// Usage that a change of the catalog may have a say in (rule B6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touching {
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Of these products; `None`: of every one.
    pub products: Option<Vec<ProductId>>,
    /// Timestamp at or after.
    pub from: Instant,
    /// Counted before.
    pub before: Position,
}

/// What is remembered of a counted id (rule B2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedId {
    /// Smallest position that counted it.
    pub position: Position,
    /// Hash of the content that was counted.
    pub payload_hash: u64,
}

/// A counted event as the API shows it (`UsageEvent` of usage.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// What was counted, and where.
    pub counted: CountedEvent,
    /// Owner.
    pub organization_id: OrganizationId,
    /// When it was taken out of billing.
    pub voided_at: Option<Instant>,
    /// Invoice that billed it: derived from its window, never stored on events (P8).
    pub invoice_id: Option<InvoiceId>,
}

/// Filters of the event list (usage.md R11); all are ANDed. A list of ids means any of them, and `None` all.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Events.
    pub ids: Option<Vec<UsageEventId>>,
    /// Who consumed.
    pub customer_ids: Option<Vec<CustomerId>>,
    /// USAGE products.
    pub product_ids: Option<Vec<ProductId>>,
    /// Subscriptions.
    pub subscription_ids: Option<Vec<SubscriptionId>>,
    /// Any of these metrics; empty = all.
    pub metric_keys: Vec<String>,
    /// Timestamp at or after.
    pub occurred_after: Option<Instant>,
    /// Timestamp before.
    pub occurred_before: Option<Instant>,
}

impl EventFilter {
    /// Whether a list of ids is empty: no event is any of them.
    #[must_use]
    pub fn names_nothing(&self) -> bool {
        self.ids.as_ref().is_some_and(Vec::is_empty)
            || self.customer_ids.as_ref().is_some_and(Vec::is_empty)
            || self.product_ids.as_ref().is_some_and(Vec::is_empty)
            || self.subscription_ids.as_ref().is_some_and(Vec::is_empty)
    }
}

/// Where a page of the event list goes on: after this (timestamp, id), newest first.
pub type EventCursor = (Instant, UsageEventId);

domain::wire_enum! {
    /// Length of an aggregate bucket, aligned in UTC; weeks start on Monday.
    pub enum UsageAggregateBucketSize {
        /// Hour.
        Hour = "hour",
        /// Day.
        Day = "day",
        /// Week.
        Week = "week",
    }
}

domain::wire_enum! {
    /// What is aggregated.
    pub enum UsageAggregateMetric {
        /// Number of events.
        Count = "count",
        /// Sum of quantities.
        SumQuantity = "sum_quantity",
    }
}

/// How aggregate series are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// One series.
    None,
    /// One per metric key.
    MetricKey,
    /// One per value of a dimension; events without it form the group "".
    Dimension(String),
}

/// A request for buckets; `since` is aligned to a bucket, `until` may cut the last one.
#[derive(Clone, Debug)]
pub struct AggregateQuery {
    /// Which events.
    pub filter: EventFilter,
    /// Bucket length.
    pub bucket: UsageAggregateBucketSize,
    /// What to add up.
    pub metric: UsageAggregateMetric,
    /// Series.
    pub group_by: GroupBy,
    /// First instant.
    pub since: Instant,
    /// First instant after.
    pub until: Instant,
}

/// One non-empty bucket of one series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AggregateBucket {
    /// Start of the bucket.
    pub bucket_start: Instant,
    /// Series; `None` without grouping.
    pub group: Option<String>,
    /// Count or sum.
    pub value: Quantity,
}

/// Durable home of counted events.
#[async_trait]
pub trait UsageStore: Send + Sync + 'static {
    /// Whether it answers now; for `/readyz`.
    async fn ping(&self) -> Result<()>;

    /// Called when this node takes a partition, before anything is appended to it: the writer learns what is stored.
    async fn taken(&self, partition: Partition) -> Result<()>;

    /// Makes rows durable before the checkpoint may pass them. A row that is stored under its position already is skipped.
    /// A store that writes in the checkpoint's transaction does nothing here.
    async fn append(&self, partition: Partition, rows: &[CountedEvent]) -> Result<()>;

    /// How often the store takes what all partitions of the node append at the same time. `None`: each partition writes by
    /// itself, and the fewer at a time the better.
    fn takes_together(&self) -> Option<Duration> {
        None
    }

    /// Writes rows in the checkpoint's transaction; a store that has made them durable in `append` does nothing here.
    async fn append_in_checkpoint(&self, tx: &mut Tx, rows: &[CountedEvent]) -> Result<()>;

    /// The largest position stored of a partition.
    async fn largest_position(&self, partition: Partition) -> Result<Option<Position>>;

    /// What a partition has counted of these ids, in one query; ids that it has not counted are absent. Positions of other
    /// partitions say nothing about its order (rule A6): what they have counted is found by [`UsageStore::twins`].
    async fn find(&self, partition: Partition, ids: &[UsageEventId]) -> Result<HashMap<UsageEventId, CountedId>>;

    /// All rows of those ids of these windows that are stored under more than one (partition, position), by id and then by
    /// [`CountedEvent::precedence`]; voided ones too. Usually none (rule B5). In the caller's transaction where the rows are
    /// in its database.
    async fn twins(&self, tx: &mut Tx, windows: &[CountedWindow]) -> Result<Vec<CountedEvent>>;

    /// Ids counted by a partition in positions `(after, up_to]`, in order of position, at most `limit` (rule B3).
    async fn ids_between(
        &self,
        partition: Partition,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<(UsageEventId, CountedId)>>;

    /// Events counted in a window, without voided ones, positions `<= up_to`, in order of position, in chunks: at most
    /// `limit` after position `after` (rule C4: by window and position, never by timestamp).
    async fn replay(
        &self,
        subscription_id: SubscriptionId,
        window_start: Instant,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<CountedEvent>>;

    /// Windows that hold usage of a partition which a change of the catalog may have a say in.
    async fn touched(&self, partition: Partition, touching: &Touching) -> Result<Vec<WindowKey>>;

    /// One event of the scope's workspace; of several rows of its id the one that is not voided.
    async fn get(&self, scope: &Scope, id: UsageEventId) -> Result<Option<StoredEvent>>;

    /// A page of events, newest first by (timestamp, id), at most `limit`; the flag says whether there are more.
    async fn list(
        &self,
        scope: &Scope,
        filter: &EventFilter,
        after: Option<EventCursor>,
        limit: u32,
    ) -> Result<(Vec<StoredEvent>, bool)>;

    /// Non-empty buckets of every series, by bucket start and group.
    async fn aggregate(&self, scope: &Scope, query: &AggregateQuery) -> Result<Vec<AggregateBucket>>;
}
