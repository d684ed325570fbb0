//! A usage store that fails when it is told to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use domain::{Error, Instant, Position, Result, Scope, SubscriptionId, UsageEventId};
use ingest::usage::{
    AggregateBucket, AggregateQuery, CountedEvent, CountedId, CountedWindow, EventCursor, EventFilter, StoredEvent,
    Touching, UsageStore,
};
use parking_lot::Mutex;
use store::Tx;

/// What becomes of appends of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is stored.
    Refuse,
    /// Everything is stored, and the caller never hears of it.
    Stall,
    /// The first one panics, before anything is stored.
    Panic,
}

/// Stands before another store.
pub struct Faulty {
    store: Arc<dyn UsageStore>,
    fault: Mutex<Option<Fault>>,
    met: AtomicU32,
}

impl Faulty {
    pub fn before(store: Arc<dyn UsageStore>) -> Arc<Self> {
        Arc::new(Self { store, fault: Mutex::default(), met: AtomicU32::new(0) })
    }

    pub fn set(&self, fault: Option<Fault>) {
        self.met.store(0, SeqCst);
        *self.fault.lock() = fault;
    }

    /// How many appends have met the fault that was set last.
    pub fn met(&self) -> u32 {
        self.met.load(SeqCst)
    }
}

#[async_trait::async_trait]
impl UsageStore for Faulty {
    async fn append(&self, partition: u32, rows: &[CountedEvent]) -> Result<()> {
        let fault = *self.fault.lock();
        let Some(fault) = fault.filter(|_| !rows.is_empty()) else { return self.store.append(partition, rows).await };
        match fault {
            Fault::Refuse => {
                self.met.fetch_add(1, SeqCst);
                Err(Error::Unavailable { dependency: "usage_store", detail: "a fault".into(), retry_after_secs: 1 })
            }
            Fault::Stall => {
                self.store.append(partition, rows).await?;
                self.met.fetch_add(1, SeqCst);
                std::future::pending().await
            }
            Fault::Panic => {
                *self.fault.lock() = None;
                self.met.fetch_add(1, SeqCst);
                panic!("a fault");
            }
        }
    }

    fn takes_together(&self) -> Option<Duration> {
        self.store.takes_together()
    }
    async fn ping(&self) -> Result<()> {
        self.store.ping().await
    }
    async fn taken(&self, partition: u32) -> Result<()> {
        self.store.taken(partition).await
    }
    async fn append_in_checkpoint(&self, tx: &mut Tx, rows: &[CountedEvent]) -> Result<()> {
        self.store.append_in_checkpoint(tx, rows).await
    }
    async fn largest_position(&self, partition: u32) -> Result<Option<Position>> {
        self.store.largest_position(partition).await
    }
    async fn find(&self, partition: u32, ids: &[UsageEventId]) -> Result<HashMap<UsageEventId, CountedId>> {
        self.store.find(partition, ids).await
    }
    async fn twins(&self, tx: &mut Tx, windows: &[CountedWindow]) -> Result<Vec<CountedEvent>> {
        self.store.twins(tx, windows).await
    }
    async fn ids_between(
        &self,
        partition: u32,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<(UsageEventId, CountedId)>> {
        self.store.ids_between(partition, after, up_to, limit).await
    }
    async fn touched(&self, partition: u32, touching: &Touching) -> Result<Vec<(SubscriptionId, Instant)>> {
        self.store.touched(partition, touching).await
    }
    async fn replay(
        &self,
        subscription_id: SubscriptionId,
        window_start: Instant,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<CountedEvent>> {
        self.store.replay(subscription_id, window_start, after, up_to, limit).await
    }
    async fn get(&self, scope: &Scope, id: UsageEventId) -> Result<Option<StoredEvent>> {
        self.store.get(scope, id).await
    }
    async fn list(
        &self,
        scope: &Scope,
        filter: &EventFilter,
        after: Option<EventCursor>,
        limit: u32,
    ) -> Result<(Vec<StoredEvent>, bool)> {
        self.store.list(scope, filter, after, limit).await
    }
    async fn aggregate(&self, scope: &Scope, query: &AggregateQuery) -> Result<Vec<AggregateBucket>> {
        self.store.aggregate(scope, query).await
    }
}
