//! The ingest supervisor: takes and gives up partitions as the log assigns them, and starts a fallen partition again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::{Error, Result};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use crate::dedup::{DedupIndex, DedupOptions};
use crate::log::{Assignment, Partition};
use crate::partition::{Arguments, DRAIN_MAX, PartitionActor, PartitionMsg, Shared};

/// First pause before a fallen partition starts again; it doubles up to [`RESTART_MAX`].
const RESTART_MIN: Duration = Duration::from_millis(50);
const RESTART_MAX: Duration = Duration::from_secs(10);
/// A partition that has lived this long starts again after the first pause.
const HEALTHY: Duration = Duration::from_secs(30);
/// A partition that is given up writes its last checkpoint within this time, or is cut off: the next owner reads the log.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Ingest of this process.
pub struct Ingest {
    supervisor: ActorRef<SupervisorMsg>,
    shared: Arc<Shared>,
}

impl Ingest {
    /// Joins the log's group and counts what it assigns. `data_dir` holds one deduplication index per partition.
    ///
    /// # Errors
    /// `Internal` when the group cannot be joined.
    pub async fn start(shared: Arc<Shared>, data_dir: PathBuf, dedup: DedupOptions) -> Result<Self> {
        let mut assignments =
            shared.log.join().await.map_err(|error| Error::internal("joining the event log's group", error))?;
        let arguments = SupervisorArguments { shared: shared.clone(), data_dir, dedup };
        let (supervisor, _) = Actor::spawn(None, Supervisor, arguments)
            .await
            .map_err(|error| Error::internal("starting the ingest supervisor", error))?;
        let target = supervisor.clone();
        tokio::spawn(async move {
            while let Some(assignment) = assignments.recv().await {
                if target.send_message(SupervisorMsg::Assignment(assignment)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { supervisor, shared })
    }

    /// Ends everything at once, as a crash would: nothing is written any more, and what was not checkpointed is counted
    /// again from the log by whoever takes the partitions next.
    pub fn kill(self) {
        self.supervisor.kill();
    }

    /// Counts what the log holds, writes the last checkpoints and leaves the group.
    pub async fn stop(self) {
        let (done, stopped) = oneshot::channel();
        if self.supervisor.send_message(SupervisorMsg::Stop(done)).is_ok() {
            let _ = stopped.await;
        }
        self.shared.log.close().await;
    }
}

/// Messages of the supervisor.
#[derive(Debug)]
pub enum SupervisorMsg {
    /// The log gives or takes a partition.
    Assignment(Assignment),
    /// A pause is over.
    Restart(Partition),
    /// End all partitions; the sender is dropped when they have ended.
    Stop(oneshot::Sender<()>),
}

struct Supervisor;

struct SupervisorArguments {
    shared: Arc<Shared>,
    data_dir: PathBuf,
    dedup: DedupOptions,
}

struct SupervisorState {
    shared: Arc<Shared>,
    data_dir: PathBuf,
    dedup: DedupOptions,
    /// Open while the process lives, whoever owns the partition.
    indexes: HashMap<Partition, Arc<DedupIndex>>,
    partitions: HashMap<Partition, Held>,
}

/// A partition that the log has assigned.
struct Held {
    actor: Option<ActorRef<PartitionMsg>>,
    given_up: Arc<AtomicBool>,
    pause: Duration,
    started: tokio::time::Instant,
}

impl Actor for Supervisor {
    type Msg = SupervisorMsg;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        _: ActorRef<SupervisorMsg>,
        args: SupervisorArguments,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let SupervisorArguments { shared, data_dir, dedup } = args;
        Ok(SupervisorState { shared, data_dir, dedup, indexes: HashMap::new(), partitions: HashMap::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMsg>,
        message: SupervisorMsg,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::Assignment(Assignment::Assigned(partition)) => state.take(&myself, partition).await,
            SupervisorMsg::Assignment(Assignment::Revoked { partition, done }) => {
                state.give_up(partition).await;
                drop(done);
            }
            SupervisorMsg::Restart(partition) => state.start(&myself, partition).await,
            SupervisorMsg::Stop(done) => {
                let partitions: Vec<Partition> = state.partitions.keys().copied().collect();
                let limit = DRAIN_MAX + STOP_MAX;
                let ended = partitions.iter().filter_map(|p| state.release(*p, PartitionMsg::Drain, limit));
                futures::future::join_all(ended).await;
                myself.stop(None);
                drop(done);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMsg>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => state.fallen(&myself, cell.get_id(), &error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, _) => state.fallen(&myself, cell.get_id(), "it ended"),
            _ => {}
        }
        Ok(())
    }
}

impl SupervisorState {
    async fn take(&mut self, myself: &ActorRef<SupervisorMsg>, partition: Partition) {
        let given_up = Arc::new(AtomicBool::new(false));
        let held = Held { actor: None, given_up, pause: RESTART_MIN, started: tokio::time::Instant::now() };
        self.partitions.insert(partition, held);
        self.start(myself, partition).await;
    }

    async fn start(&mut self, myself: &ActorRef<SupervisorMsg>, partition: Partition) {
        if self.partitions.get(&partition).is_none_or(|held| held.actor.is_some()) {
            return; // given up meanwhile, or alive
        }
        match self.spawn(myself, partition).await {
            Ok(actor) => {
                if let Some(held) = self.partitions.get_mut(&partition) {
                    held.actor = Some(actor);
                    held.started = tokio::time::Instant::now();
                }
            }
            Err(error) => self.restart_later(myself, partition, &error),
        }
    }

    async fn spawn(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        partition: Partition,
    ) -> Result<ActorRef<PartitionMsg>, String> {
        let index = self.index(partition)?;
        let Some(held) = self.partitions.get(&partition) else { return Err("it was given up".to_owned()) };
        let arguments = Arguments { shared: self.shared.clone(), partition, index, given_up: held.given_up.clone() };
        let spawned = PartitionActor::spawn_linked(None, PartitionActor, arguments, myself.get_cell()).await;
        spawned.map(|(actor, _)| actor).map_err(|error| error.to_string())
    }

    fn index(&mut self, partition: Partition) -> Result<Arc<DedupIndex>, String> {
        match self.indexes.get(&partition) {
            Some(index) if !index.is_broken() => return Ok(index.clone()),
            // Its partition has fallen, so nobody else holds it: dropped, it gives its directory free.
            _ => drop(self.indexes.remove(&partition)),
        }
        let dir = self.data_dir.join(format!("{}-{partition}", self.shared.log.identity().id));
        let index = DedupIndex::open(&dir, self.dedup.clone(), self.shared.clock.now()).map_err(|e| e.to_string())?;
        Ok(self.indexes.entry(partition).or_insert_with(|| Arc::new(index)).clone())
    }

    /// Everything of the partition is dropped already (rule A2); it starts again from its checkpoint.
    fn fallen(&mut self, myself: &ActorRef<SupervisorMsg>, actor: ActorId, reason: &str) {
        let fallen =
            self.partitions.iter_mut().find(|(_, held)| held.actor.as_ref().is_some_and(|a| a.get_id() == actor));
        let Some((partition, held)) = fallen else { return };
        let partition = *partition;
        held.actor = None;
        if held.given_up.load(Ordering::Relaxed) {
            return;
        }
        if held.started.elapsed() >= HEALTHY {
            held.pause = RESTART_MIN;
        }
        self.restart_later(myself, partition, reason);
    }

    fn restart_later(&mut self, myself: &ActorRef<SupervisorMsg>, partition: Partition, reason: &str) {
        let Some(held) = self.partitions.get_mut(&partition) else { return };
        tracing::error!(
            partition,
            reason,
            pause_ms = held.pause.as_millis(),
            "a partition fell and will be loaded again"
        );
        self.shared.metrics.reloads.with_label_values(&[&partition.to_string()]).inc();
        myself.send_after(held.pause, move || SupervisorMsg::Restart(partition));
        held.pause = (held.pause * 2).min(RESTART_MAX);
    }

    async fn give_up(&mut self, partition: Partition) {
        if let Some(ended) = self.release(partition, PartitionMsg::Stop, STOP_MAX) {
            ended.await;
        }
    }

    /// Asks a partition to end and gives what to wait for.
    fn release(
        &mut self,
        partition: Partition,
        message: fn(oneshot::Sender<()>) -> PartitionMsg,
        limit: Duration,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let held = self.partitions.remove(&partition)?;
        held.given_up.store(true, Ordering::Relaxed);
        let actor = held.actor?;
        let (done, ended) = oneshot::channel();
        actor.send_message(message(done)).ok()?;
        let metrics = self.shared.metrics.clone();
        Some(async move {
            if tokio::time::timeout(limit, ended).await.is_err() {
                tracing::warn!(partition, "a partition did not end in time and is cut off");
            }
            actor.kill();
            metrics.forget(partition);
        })
    }
}
