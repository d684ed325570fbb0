//! The partition actor: the unit of ownership and of failure (rules A1 to A4).
//!
//! A pump reads and decodes the log and hands batches over, at most two ahead. The actor takes each batch through the steps
//! of rule B1 and writes a checkpoint every half second, after 2,000 changed subscriptions, or at a control record (P6).
//! Whatever fails, the actor ends, all subscription actors end with it, and the supervisor takes the partition again from
//! its checkpoint: nothing in memory outlives a doubt.

mod batch;
mod decode;
mod durable;
mod recount;
mod routing;
mod twins;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use catalog::compiled::Snapshots;
use domain::{Clock, FastMap, SubscriptionId, UsageEventId};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use store::Store;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant as Moment;

use crate::checkpoint::{Checkpoint, Ownership, Written};
use crate::dedup::DedupIndex;
use crate::log::{EventLog, LogError, Partition};
use crate::metrics::{Metrics, PartitionMetrics};
use crate::usage::{CountedId, UsageStore};
use decode::Decoded;
pub use decode::Secrets;
use durable::Fill;
use routing::Routed;

/// Bounds and intervals of ingest.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Records of one batch.
    pub batch_records_max: usize,
    /// A change waits at most this long for its checkpoint.
    pub checkpoint_interval: Duration,
    /// Changed subscriptions that force a checkpoint.
    pub checkpoint_subscriptions_max: usize,
    /// While a partition is behind, the two bounds above are so many times as large: what waited long waits a little
    /// longer, and a subscription's state is written once for more of its events.
    pub checkpoint_catch_up: u32,
    /// Counted events that force a checkpoint.
    pub checkpoint_events_max: usize,
    /// Subscription actors per partition; beyond it the least recently used clean ones are passivated.
    pub active_subscriptions_max: usize,
    /// An unknown id with an older timestamp is looked up in the usage store (rule B4).
    pub dedup_horizon: chrono::TimeDelta,
    /// Whether foreign records need no signature (rule A7).
    pub trust_topic: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_records_max: 4_096,
            checkpoint_interval: Duration::from_millis(500),
            checkpoint_subscriptions_max: 2_000,
            checkpoint_catch_up: 3,
            checkpoint_events_max: 50_000,
            active_subscriptions_max: 200_000,
            dedup_horizon: chrono::TimeDelta::days(40),
            trust_topic: false,
        }
    }
}

/// What every partition of a process shares.
pub struct Shared {
    /// Checkpoints.
    pub store: Store,
    /// Compiled catalog.
    pub snapshots: Arc<Snapshots>,
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Counted events.
    pub usage: Arc<dyn UsageStore>,
    /// Bounds.
    pub settings: Settings,
    /// For Prometheus.
    pub metrics: Metrics,
    /// What time it is when a checkpoint is written; events are judged by their own instants (rule B6).
    pub clock: Clock,
    /// Secrets of workspaces that foreign producers sign with.
    pub secrets: decode::Secrets,
}

/// Messages of a partition actor.
#[derive(Debug)]
pub enum PartitionMsg {
    /// Records in order, with the room that they take.
    Batch(Vec<Decoded>, OwnedSemaphorePermit),
    /// The pump cannot go on.
    SourceFailed(LogError),
    /// Time passes.
    Tick,
    /// Write what is counted and end; the sender is dropped when it is done.
    Stop(oneshot::Sender<()>),
    /// The same, after everything that the log holds now is counted, if that takes no longer than [`DRAIN_MAX`].
    Drain(oneshot::Sender<()>),
}

/// Why a partition drops everything.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Somebody else owns it (rule A1).
    #[error("the partition was taken by another node")]
    Fenced,
    /// A subscription actor died or did not answer (rule A2).
    #[error("a subscription actor was lost")]
    ActorLost,
    /// The log.
    #[error("reading the log")]
    Log(#[from] LogError),
    /// Anything else.
    #[error(transparent)]
    Engine(#[from] domain::Error),
    /// The node gives the partition up while a dependency is away.
    #[error("the partition was given up")]
    GivenUp,
}

/// What a partition actor is started with.
pub struct Arguments {
    /// Shared by all partitions.
    pub shared: Arc<Shared>,
    /// Which one.
    pub partition: Partition,
    /// Its index; it stays open while the process lives.
    pub index: Arc<DedupIndex>,
    /// Set when the partition is given up: nothing is insisted on any more.
    pub given_up: Arc<AtomicBool>,
}

/// Takes a partition's records to totals.
pub struct PartitionActor;

/// State of a partition actor.
pub struct State {
    shared: Arc<Shared>,
    given_up: Arc<AtomicBool>,
    myself: ActorRef<PartitionMsg>,
    owner: Ownership,
    index: Arc<DedupIndex>,
    fill: Option<Fill>,
    actors: FastMap<SubscriptionId, Routed>,
    dirty: FastMap<SubscriptionId, domain::WorkspaceId>,
    pending: Checkpoint,
    /// Ids of the events in `pending`: the index learns of them after the usage store (rule B1).
    uncommitted: FastMap<UsageEventId, CountedId>,
    /// Whether the last batch was full, so that more waits in the log.
    is_behind: bool,
    metrics: PartitionMetrics,
    /// When the oldest change that waits for a checkpoint was made.
    waiting_since: Option<Moment>,
    batches: u64,
    /// From which record on events are judged by which revision of the catalog, or a later one (rule B6).
    revisions: recount::Revisions,
    last_lag: Moment,
    draining: Option<Draining>,
}

/// A partition that counts to the end of the log before it ends.
struct Draining {
    end: u64,
    until: Moment,
    done: oneshot::Sender<()>,
}

/// A partition that ends counts for so long what was acknowledged before: the next owner would have to read it again.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(50);
const LAG_INTERVAL: Duration = Duration::from_secs(1);
/// Batches that the pump may be ahead.
const BATCHES_AHEAD: usize = 2;
/// A busy partition begins a batch at most this often, unless the one before was full: what a batch costs as a whole (two
/// hops to a blocking thread, a write to the index, a message per subscription) is shared by what has come meanwhile. A
/// rested partition waits for nobody.
const BATCH_INTERVAL: Duration = Duration::from_millis(25);

impl Actor for PartitionActor {
    type Msg = PartitionMsg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<PartitionMsg>, args: Arguments) -> Result<State, ActorProcessingErr> {
        let Arguments { shared, partition, index, given_up } = args;
        let owner = Ownership::take(&shared.store, shared.log.identity(), partition, shared.clock.now()).await?;
        shared.usage.taken(partition).await?;
        let fill = Fill::start(&shared, &owner, &index).await?;
        spawn_pump(&shared, &owner, &myself).await?;
        // What lies before the checkpoint need not be kept for us, also when nothing new comes.
        shared.log.passed(partition, owner.next_offset).await;
        myself.send_after(TICK, || PartitionMsg::Tick);
        let pending = Checkpoint { next_offset: owner.next_offset, ..Checkpoint::default() };
        tracing::info!(partition, epoch = owner.epoch, offset = owner.next_offset, "took a partition");
        Ok(State {
            metrics: shared.metrics.of(partition),
            shared,
            given_up,
            myself,
            owner,
            index,
            fill,
            actors: FastMap::default(),
            dirty: FastMap::default(),
            pending,
            uncommitted: FastMap::default(),
            is_behind: false,
            waiting_since: None,
            batches: 0,
            revisions: recount::Revisions::default(),
            last_lag: Moment::now(),
            draining: None,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<PartitionMsg>,
        message: PartitionMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PartitionMsg::Batch(records, _room) => {
                let is_forced = state.process(records).await?;
                if is_forced || state.is_checkpoint_due() {
                    state.checkpoint().await?;
                }
                state.end_when_drained().await;
            }
            // A rebalance: the message to end follows, and what is counted until then is still ours to write.
            PartitionMsg::SourceFailed(LogError::Revoked(_)) => {}
            PartitionMsg::SourceFailed(error) => return Err(Failure::from(error).into()),
            PartitionMsg::Tick => {
                if state.is_checkpoint_due() {
                    state.checkpoint().await?;
                }
                state.observe().await;
                state.end_when_drained().await;
                // The next one when this one is through: they must not pile up while a dependency is away.
                state.myself.send_after(TICK, || PartitionMsg::Tick);
            }
            PartitionMsg::Stop(done) => state.end(done).await,
            PartitionMsg::Drain(done) => {
                // An end that nobody tells is not waited for.
                let end = state.shared.log.end(state.owner.partition).await.unwrap_or(0);
                state.draining = Some(Draining { end, until: Moment::now() + DRAIN_MAX, done });
                state.end_when_drained().await;
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<PartitionMsg>,
        event: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            // One lost actor makes the whole partition start again from its checkpoint (rule A2).
            SupervisionEvent::ActorFailed(_, _) => Err(Failure::ActorLost.into()),
            _ => Ok(()),
        }
    }
}

async fn spawn_pump(
    shared: &Arc<Shared>,
    owner: &Ownership,
    actor: &ActorRef<PartitionMsg>,
) -> Result<(), ActorProcessingErr> {
    let mut reader = shared.log.reader(owner.partition, owner.next_offset).await?;
    let (actor, log) = (actor.clone(), owner.log.clone());
    let max = shared.settings.batch_records_max;
    let room = Arc::new(Semaphore::new(BATCHES_AHEAD));
    tokio::spawn(async move {
        let _told = OnPanic(actor.clone());
        let mut due = Moment::now();
        while let Ok(permit) = room.clone().acquire_owned().await {
            tokio::time::sleep_until(due).await;
            let message = match reader.next(max).await {
                Ok(records) => {
                    let batch: Vec<Decoded> = records.into_iter().map(|record| decode::decode(&log, record)).collect();
                    // Whoever ends windows waits for each of them: a row of such records is not slowed down.
                    let hurries = batch.len() >= max || batch.iter().any(Decoded::is_control);
                    due = Moment::now() + if hurries { Duration::ZERO } else { BATCH_INTERVAL };
                    PartitionMsg::Batch(batch, permit)
                }
                Err(error) => PartitionMsg::SourceFailed(error),
            };
            let is_end = matches!(message, PartitionMsg::SourceFailed(_));
            // The actor is gone when it does not take the message: so is the pump.
            if actor.send_message(message).is_err() || is_end {
                return;
            }
        }
    });
    Ok(())
}

/// Tells the actor that its pump has panicked: a partition without one would stand still in silence.
struct OnPanic(ActorRef<PartitionMsg>);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (operation, source) = ("reading the event log".to_owned(), "a panic".into());
            // The actor may have ended already.
            let _ = self.0.send_message(PartitionMsg::SourceFailed(LogError::Transient { operation, source }));
        }
    }
}

impl State {
    /// The last act. A checkpoint that cannot be written now is written by the next owner, from the log.
    async fn end(&mut self, done: oneshot::Sender<()>) {
        if let Err(error) = self.checkpoint().await {
            tracing::warn!(partition = self.owner.partition, error = %error, "stopped without a checkpoint");
        }
        self.myself.stop(None);
        drop(done);
    }

    async fn end_when_drained(&mut self) {
        let counted = self.pending.next_offset;
        let drained = self.draining.take_if(|draining| counted >= draining.end || Moment::now() >= draining.until);
        if let Some(Draining { done, .. }) = drained {
            self.end(done).await;
        }
    }

    fn is_checkpoint_due(&self) -> bool {
        let settings = &self.shared.settings;
        let times = if self.is_behind { settings.checkpoint_catch_up } else { 1 };
        // Where one insert takes what all have, nobody waits for the next one.
        let (interval, share) = match self.shared.usage.takes_together() {
            Some(interval) => (settings.checkpoint_interval.min(interval), (0, 1)),
            None => (settings.checkpoint_interval, (self.owner.partition, self.owner.log.partitions)),
        };
        let interval = interval * times;
        self.dirty.len() >= settings.checkpoint_subscriptions_max * times as usize
            || self.pending.events.len() >= settings.checkpoint_events_max
            || self
                .waiting_since
                .is_some_and(|since| turn_after(since.duration_since(*START), interval, share) <= START.elapsed())
    }

    /// Writes what has been counted; insists while the database is away (rule A4).
    async fn checkpoint(&mut self) -> Result<(), Failure> {
        if self.pending.next_offset == self.owner.next_offset && self.dirty.is_empty() && self.pending.is_empty() {
            self.waiting_since = None;
            return Ok(());
        }
        self.store().await?;
        let mut windows = self.snapshot_dirty().await?;
        self.pending.windows.append(&mut windows);
        let mut patience = Patience::default();
        let written = loop {
            let now = self.shared.clock.now();
            match self.owner.write(&self.shared.store, &self.shared.usage, &self.pending, now).await {
                Ok(written) => break written,
                Err(error) => patience.wait(&self.given_up, "writing a checkpoint", error).await?,
            }
        };
        if written == Written::Fenced {
            return Err(Failure::Fenced);
        }
        self.pending = Checkpoint { next_offset: self.owner.next_offset, ..Checkpoint::default() };
        self.waiting_since = None;
        self.metrics.checkpoints.inc();
        self.shared.log.passed(self.owner.partition, self.owner.next_offset).await;
        self.passivate();
        Ok(())
    }

    async fn observe(&mut self) {
        let age = self.waiting_since.map_or(0, |since| i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX));
        self.metrics.checkpoint_age_ms.set(age);
        if self.last_lag.elapsed() < LAG_INTERVAL {
            return;
        }
        self.last_lag = Moment::now();
        if let Ok(end) = self.shared.log.end(self.owner.partition).await {
            let lag = i64::try_from(end.saturating_sub(self.owner.next_offset)).unwrap_or(i64::MAX);
            self.metrics.lag.set(lag);
        }
        let actors = i64::try_from(self.actors.len()).unwrap_or(i64::MAX);
        self.metrics.actors.set(actors);
    }
}

/// Zero of the turns of all partitions.
static START: LazyLock<Moment> = LazyLock::new(Moment::now);

/// The first turn of a partition at or after `since`: once in an interval, each partition at its own time. If all of them
/// wrote at once, the database would take both cores and the disk from everything else for that moment.
fn turn_after(since: Duration, interval: Duration, (partition, partitions): (Partition, u32)) -> Duration {
    let (since, interval) = (since.as_nanos(), interval.as_nanos().max(1));
    let offset = interval * u128::from(partition) / u128::from(partitions.max(1));
    let turn = offset + since.saturating_sub(offset).div_ceil(interval) * interval;
    Duration::from_nanos(u64::try_from(turn).unwrap_or(u64::MAX))
}

/// Repeats what fails for want of a dependency, without limit and with growing pauses (rule A4).
#[derive(Debug)]
struct Patience {
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { pause: Duration::from_millis(20) }
    }
}

impl Patience {
    /// Waits before the next try.
    ///
    /// # Errors
    /// What cannot be cured by waiting, or `GivenUp` when the node gives the partition up meanwhile.
    async fn wait(&mut self, given_up: &AtomicBool, operation: &str, error: domain::Error) -> Result<(), Failure> {
        if !matches!(error, domain::Error::Unavailable { .. }) {
            return Err(error.into());
        }
        if given_up.load(Ordering::Relaxed) {
            return Err(Failure::GivenUp);
        }
        tracing::warn!(operation, error = %error, pause_ms = self.pause.as_millis(), "trying again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(Duration::from_secs(2));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_take_turns_within_one_interval() {
        let millis = Duration::from_millis;
        let turn = |since, partition| turn_after(millis(since), millis(500), (partition, 4));
        assert_eq!([0, 1, 2, 3].map(|partition| turn(0, partition)), [0, 125, 250, 375].map(millis));
        assert_eq!([0, 1, 2, 3].map(|partition| turn(1_300, partition)), [1_500, 1_625, 1_750, 1_375].map(millis));
        for since in (0..2_000).step_by(7) {
            for partition in 0..4 {
                let waits = turn(since, partition) - millis(since);
                assert!(waits < millis(500), "a change waits for an interval at most: {waits:?}");
            }
        }
    }
}
