//! What a partition knows of counted ids: the deduplication index, and what it lacks (rules B2 to B4).

use std::sync::Arc;

use domain::{Error, FastMap, Instant, Position, Result, UsageEvent, UsageEventId};

use super::batch::TermsOf;
use super::{Failure, Patience, Shared, State};
use crate::checkpoint::Ownership;
use crate::dedup::{DedupError, DedupIndex};
use crate::subscription::Incoming;
use crate::usage::{CountedEvent, CountedId};

/// Ids that are fetched from the usage store at a time.
const FILL_CHUNK: usize = 20_000;
/// Chunks that a start waits for; a longer gap is filled beside the work.
const FILL_AT_START: usize = 10;

/// Progress of filling the index with what other nodes have counted (rule B3). While it lasts, an id that the index does
/// not know is looked up in the usage store.
#[derive(Debug)]
pub struct Fill {
    reached: Position,
    target: Position,
}

impl Fill {
    /// Compares the index with the checkpoint and fills a short gap at once. `None`: nothing is missing.
    ///
    /// # Errors
    /// As the usage store and the index.
    pub async fn start(shared: &Shared, owner: &Ownership, index: &Arc<DedupIndex>) -> Result<Option<Self>> {
        // Also what was counted from logs before this one: a repeat may come through another log than its first copy.
        let target = owner.counted_up_to();
        let reached = index.high_water().unwrap_or(Position::START);
        if reached >= target {
            return Ok(None);
        }
        let mut fill = Self { reached, target };
        for _ in 0..FILL_AT_START {
            if fill.advance(shared, owner, index).await? {
                return Ok(None);
            }
        }
        tracing::info!(partition = owner.partition, "filling the deduplication index beside the work");
        Ok(Some(fill))
    }

    /// Fetches the next chunk; true when the index is complete.
    async fn advance(&mut self, shared: &Shared, owner: &Ownership, index: &Arc<DedupIndex>) -> Result<bool> {
        let ids = shared.usage.ids_between(owner.partition, self.reached, self.target, FILL_CHUNK).await?;
        let is_last = ids.len() < FILL_CHUNK;
        let reached = if is_last { self.target } else { ids.last().map_or(self.target, |(_, id)| id.position) };
        insert(index, ids, reached, shared.clock.now()).await?;
        self.reached = reached;
        Ok(is_last)
    }
}

fn translate(error: DedupError) -> Error {
    Error::internal("the deduplication index", error)
}

async fn insert(
    index: &Arc<DedupIndex>,
    entries: Vec<(UsageEventId, CountedId)>,
    high_water: Position,
    now: Instant,
) -> Result<()> {
    let index = index.clone();
    tokio::task::spawn_blocking(move || index.insert(&entries, high_water, now))
        .await
        .map_err(|error| Error::internal("the deduplication index", error))?
        .map_err(translate)
}

impl State {
    /// What is known of the events' ids, whoever counted them.
    pub(super) async fn known(
        &mut self,
        events: &[Incoming],
        terms: &TermsOf,
    ) -> Result<FastMap<UsageEventId, CountedId>, Failure> {
        let ids: Vec<UsageEventId> = events.iter().map(|incoming| incoming.event.id).collect();
        let index = self.index.clone();
        let (ids, found) = tokio::task::spawn_blocking(move || {
            let found = index.lookup(&ids);
            (ids, found)
        })
        .await
        .map_err(|error| Error::internal("the deduplication index", error))?;
        let found = found.map_err(translate)?;
        let mut known = FastMap::default();
        let mut doubtful = Vec::new();
        let oldest = self.shared.clock.now() - self.shared.settings.dedup_horizon.min(self.index.horizon());
        // Rule B4. A test clock's time says nothing about when an event was counted.
        let has_forgotten = self.index.has_forgotten();
        let may_be_old = |event: &UsageEvent| {
            event.timestamp < oldest
                || terms.get(&event.subscription_id).is_some_and(|terms| terms.test_clock_id.is_some())
        };
        for ((incoming, id), found) in events.iter().zip(ids).zip(found) {
            match self.uncommitted.get(&id).copied().or(found) {
                Some(counted) => drop(known.insert(id, counted)),
                None if self.fill.is_some() || has_forgotten && may_be_old(&incoming.event) => doubtful.push(id),
                None => {}
            }
        }
        if !doubtful.is_empty() {
            let mut patience = Patience::default();
            let found = loop {
                match self.shared.usage.find(self.owner.partition, &doubtful).await {
                    Ok(found) => break found,
                    Err(error) => patience.wait(&self.given_up, "looking for counted ids", error).await?,
                }
            };
            known.extend(found);
        }
        Ok(known)
    }

    /// Keeps counted events for the checkpoint.
    pub(super) async fn keep(&mut self, rows: Vec<CountedEvent>) -> Result<(), Failure> {
        if let Some(fill) = &mut self.fill
            && fill.advance(&self.shared, &self.owner, &self.index).await?
        {
            self.fill = None;
        }
        self.uncommitted.extend(rows.iter().map(id_of));
        self.pending.events.extend(rows);
        Ok(())
    }

    /// Makes the events of a checkpoint durable and their ids known, in this order (rule B1). Both at once for all its
    /// batches: the fewer and larger the writes, the less each event costs.
    pub(super) async fn store(&mut self) -> Result<(), Failure> {
        let mut patience = Patience::default();
        while let Err(error) = self.shared.usage.append(self.owner.partition, &self.pending.events).await {
            patience.wait(&self.given_up, "appending to the usage store", error).await?;
        }
        let reached = self.owner.log.position(self.pending.next_offset).before();
        // The index must not claim what the fill has not brought yet.
        let high_water = self.fill.as_ref().map_or(reached, |fill| fill.reached);
        let entries = self.pending.events.iter().map(id_of).collect();
        insert(&self.index, entries, high_water, self.shared.clock.now()).await?;
        self.uncommitted.clear();
        Ok(())
    }
}

fn id_of(row: &CountedEvent) -> (UsageEventId, CountedId) {
    (row.event.id, CountedId { position: row.position, payload_hash: row.payload_hash })
}
