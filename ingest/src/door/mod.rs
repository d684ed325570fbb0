//! The door: what runs before acceptance. It reads events, compares them with the cached catalog, appends them to the log
//! and answers when they are durable (usage.md 3.1).

mod blocks;
pub mod cloud_events;
mod facts;
mod holds;
mod judge;
mod presence;
pub mod wire;

use std::sync::Arc;

use catalog::compiled::{Snapshots, SubscriptionTerms, WorkspaceCatalog};
use domain::{Error, FastMap, Result, Scope, SubscriptionId, UsageEventId};
use store::Store;
use tokio::sync::Semaphore;

pub use facts::Facts;
pub use judge::{Judged, Verdict, judge};
pub use wire::{NewEvent, Submission};

use crate::checkpoint::{DROPPED, Dropped, announce_dropped};
use crate::log::{Append, EventLog, LogError};
use crate::record;

/// What became of one event at the door.
#[derive(Debug)]
pub enum Entry {
    /// Durable in the log, new or replayed alike.
    Accepted(UsageEventId),
    /// The policy of the product or meter says so.
    Dropped {
        /// Id that the event would have had.
        id: UsageEventId,
        /// For people.
        reason: String,
    },
    /// Refused, with a reason; nothing was kept.
    Rejected(Error),
}

/// Accepts usage events for every workspace of this process.
pub struct Door {
    store: Store,
    snapshots: Arc<Snapshots>,
    log: Arc<dyn EventLog>,
    /// Events that are in flight to the log; a batch reserves its room whole (rule B7).
    room: Semaphore,
    /// Which workspaces reserve usage.
    holds: holds::Holds,
    /// Which usage is refused until its window ends.
    blocks: blocks::Blocks,
}

/// What a batch is compared with.
struct Basis {
    /// Changes up to here were applied before anything was read: what is missing may have been made after it.
    applied: i64,
    /// What events are stamped with: everything that was read is at most as new (rule B6).
    revision: i64,
    catalog: Arc<WorkspaceCatalog>,
    terms: FastMap<SubscriptionId, Arc<SubscriptionTerms>>,
    facts: Facts,
}

impl Basis {
    fn judge(&self, scope: &Scope, event: &NewEvent) -> Verdict {
        judge(scope, &self.catalog, self.terms.get(&event.subscription_id), &self.facts, event)
    }
}

/// Events in flight to the log before the door answers 503.
const IN_FLIGHT_MAX: usize = 200_000;

impl Door {
    /// A door before this log.
    #[must_use]
    pub fn new(store: Store, snapshots: Arc<Snapshots>, log: Arc<dyn EventLog>) -> Self {
        let (holds, blocks) = (holds::Holds::default(), blocks::Blocks::default());
        Self { store, snapshots, log, room: Semaphore::new(IN_FLIGHT_MAX), holds, blocks }
    }

    /// The same door with room for so many events in flight.
    #[must_use]
    pub fn with_room(mut self, events: usize) -> Self {
        self.room = Semaphore::new(events);
        self
    }

    /// A hold on usage was placed: from now on events of its subscription and metric must name it (R7).
    pub fn expect_holds(&self, workspace_id: domain::WorkspaceId) {
        self.holds.note(workspace_id);
    }

    /// Number of home partitions: new subscriptions get one of them (rule A5).
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.log.identity().partitions
    }

    /// What it judges by.
    #[must_use]
    pub fn snapshots(&self) -> &Arc<Snapshots> {
        &self.snapshots
    }

    /// A counted event, also one that was accepted a moment ago.
    ///
    /// # Errors
    /// As [`crate::void::find`].
    pub async fn find(
        &self,
        scope: &Scope,
        usage: &Arc<dyn crate::usage::UsageStore>,
        id: UsageEventId,
    ) -> Result<crate::usage::StoredEvent> {
        crate::void::find(scope, &self.store, &self.log, usage, id).await
    }

    /// Takes events that are JSON texts; one entry each, in order. Events stand alone: one bad event refuses no other.
    ///
    /// # Errors
    /// `Unavailable` when the log takes no more at all: nothing was accepted. `Internal` and `Unavailable` of the database
    /// while events are compared with the catalog: nothing was accepted either.
    pub async fn accept(&self, scope: &Scope, events: &[&str]) -> Result<Vec<Entry>> {
        let read = events.iter().map(|json| NewEvent::read(json)).collect();
        self.accept_read(scope, read).await
    }

    /// Takes events that have been read already, or could not be.
    ///
    /// # Errors
    /// As [`Door::accept`].
    pub async fn accept_read(&self, scope: &Scope, events: Vec<Result<NewEvent>>) -> Result<Vec<Entry>> {
        let mut judged = self.judge_all(scope, events).await?;
        self.holds.require(scope, &self.store, &mut judged).await?;
        self.blocks.refuse(scope, &self.store, &mut judged).await?;
        let wanted =
            u32::try_from(judged.iter().filter(|j| matches!(j, Judged::Good { .. })).count()).unwrap_or(u32::MAX);
        let _room = self.room.try_acquire_many(wanted).map_err(|_| full())?;
        self.announce_dropped(scope, &judged).await?;
        self.append(judged).await
    }

    /// Compares events with the catalog, without taking them; one answer each, in order.
    ///
    /// # Errors
    /// `Internal` and `Unavailable` of the database.
    pub async fn judge_all(&self, scope: &Scope, events: Vec<Result<NewEvent>>) -> Result<Vec<Judged>> {
        let basis = self.basis(scope, events.iter().flatten()).await?;
        let judge = |event| (basis.judge(scope, &event), event, basis.revision);
        let mut judged: Vec<Result<_>> = events.into_iter().map(|event| event.map(judge)).collect();
        let is_doubtful = |(verdict, _, _): &&(Verdict, NewEvent, i64)| !verdict.is_certain();
        if judged.iter().flatten().any(|one| is_doubtful(&one)) && self.snapshots.is_behind(basis.applied).await? {
            let doubtful = judged.iter().flatten().filter(is_doubtful);
            let newer = self.basis(scope, doubtful.map(|(_, event, _)| event)).await?;
            for (verdict, event, revision) in judged.iter_mut().flatten().filter(|one| is_doubtful(&&**one)) {
                (*verdict, *revision) = (newer.judge(scope, event), newer.revision);
            }
        }
        let mut first_of_key = FastMap::default();
        let last_word = |one| match one {
            Ok((verdict, event, revision)) => {
                refuse_conflict(&mut first_of_key, Verdict::on(verdict, scope, event, revision))
            }
            Err(error) => Judged::Bad(error),
        };
        Ok(judged.into_iter().map(last_word).collect())
    }

    async fn basis<'a>(&self, scope: &Scope, events: impl Iterator<Item = &'a NewEvent> + Clone) -> Result<Basis> {
        let mut ids: Vec<SubscriptionId> = events.clone().map(|event| event.subscription_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let applied = self.snapshots.revision();
        let mut terms = self.snapshots.terms_of_many(&ids).await?;
        terms.retain(|_, terms| terms.workspace_id == scope.workspace_id);
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let revision = self.snapshots.stamp();
        let facts = Facts::load(scope, &self.store, &terms, events).await?;
        Ok(Basis { applied, revision, catalog, terms, facts })
    }

    /// Tells the workspace of usage that no price matches (usage.md R6): it is not billed, so it is not silent either.
    async fn announce_dropped(&self, scope: &Scope, judged: &[Judged]) -> Result<()> {
        let workspace_id = scope.workspace_id;
        let of = |event_id: UsageEventId, code, message: String| {
            Some(Dropped { workspace_id, event_id, code, message: message.into() })
        };
        let dropped: Vec<Dropped> = judged
            .iter()
            .filter_map(|one| match one {
                Judged::Dropped { id, reason } => of(*id, DROPPED, reason.clone()),
                Judged::Unmatched { id, error } => of(*id, error.code(), error.to_string()),
                Judged::Good { .. } | Judged::Bad(_) => None,
            })
            .collect();
        if dropped.is_empty() {
            return Ok(());
        }
        let mut tx = self.store.begin("announcing dropped usage").await?;
        announce_dropped(&mut tx, &dropped, scope.now()).await?;
        tx.commit().await
    }

    async fn append(&self, judged: Vec<Judged>) -> Result<Vec<Entry>> {
        let mut records = Vec::with_capacity(judged.len());
        let mut entries: Vec<Entry> = Vec::with_capacity(judged.len());
        let mut places = Vec::with_capacity(judged.len());
        for one in judged {
            entries.push(match one {
                Judged::Good { event, home } => {
                    places.push(entries.len());
                    records.push(Append { partition: home, payload: record::encode_usage(&event) });
                    Entry::Accepted(event.id)
                }
                Judged::Dropped { id, reason } => Entry::Dropped { id, reason },
                Judged::Bad(error) | Judged::Unmatched { error, .. } => Entry::Rejected(error),
            });
        }
        let outcomes = self.log.append(records).await;
        if !places.is_empty()
            && places.len() == entries.len()
            && outcomes.iter().all(|o| matches!(o, Err(LogError::Full)))
        {
            return Err(full());
        }
        for (place, outcome) in places.into_iter().zip(outcomes) {
            if let Err(error) = outcome {
                entries[place] = Entry::Rejected(unavailable(&error));
            }
        }
        Ok(entries)
    }
}

/// Two events of one batch with the same key and different content: the first stands (usage.md 3.1).
fn refuse_conflict(first_of_key: &mut FastMap<UsageEventId, u64>, judged: Judged) -> Judged {
    let Judged::Good { event, home } = judged else { return judged };
    let hash = event.payload_hash();
    match *first_of_key.entry(event.id).or_insert(hash) {
        known if known == hash => Judged::Good { event, home },
        _ => {
            let detail = format!("idempotency_key {:?} has other content earlier in the batch", event.idempotency_key);
            Judged::Bad(Error::conflict("IDEMPOTENCY_CONFLICT", detail))
        }
    }
}

fn full() -> Error {
    Error::Unavailable {
        dependency: "event_log",
        detail: "the event log takes no more at present; nothing was accepted".into(),
        retry_after_secs: 1,
    }
}

/// Safe to retry: the event keeps its key (rule B7).
fn unavailable(error: &LogError) -> Error {
    tracing::warn!(error = %error, "an event could not be appended");
    Error::Unavailable {
        dependency: "event_log",
        detail: "the event was not accepted; send it again".into(),
        retry_after_secs: 1,
    }
}
