//! Membership of the consumer group: one thread polls, a rebalance becomes messages that are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::{Notify, mpsc, oneshot};

use super::fatal::Fatal;
use super::{KafkaOptions, forward, kafka_error};
use crate::log::{Assignment, LogError, Partition};

/// How long the polling thread sleeps when nothing happens.
const POLL: Duration = Duration::from_millis(100);
/// Kilobytes that are fetched ahead of each partition's reader.
const AHEAD_KBYTES: &str = "8192";

/// A node's place in the group.
pub(super) struct Membership {
    consumer: Arc<BaseConsumer<Rebalances>>,
    topic: String,
    slots: Vec<Arc<Slot>>,
    stop: Arc<AtomicBool>,
    poller: Mutex<Option<JoinHandle<()>>>,
}

/// A partition, with the queue that librdkafka fills for it alone.
pub(super) struct Slot {
    pub partition: Partition,
    pub state: Arc<SlotState>,
    pub queue: Mutex<PartitionQueue<Rebalances>>,
}

/// What a reader of the partition must know.
#[derive(Default)]
pub(super) struct SlotState {
    assigned: AtomicBool,
    /// Number of the reader that is in charge; a rebalance or a new reader raises it.
    reader: AtomicU64,
    /// Records did not come through the partition's own queue: the reader must seek again.
    astray: AtomicBool,
    /// Something came, or the reader was replaced.
    pub changed: Notify,
}

impl SlotState {
    /// Takes the partition over from the reader before; the new reader's number.
    pub fn replace_reader(&self) -> u64 {
        let number = self.reader.fetch_add(1, Ordering::AcqRel) + 1;
        self.changed.notify_waiters();
        number
    }

    pub fn is_in_charge(&self, number: u64) -> bool {
        self.assigned.load(Ordering::Acquire) && self.reader.load(Ordering::Acquire) == number
    }

    /// Whether records were missed since the last seek.
    pub fn is_astray(&self) -> bool {
        self.astray.load(Ordering::Acquire)
    }

    /// Records come the right way again, from the seek on that follows.
    pub fn set_right(&self) {
        self.astray.store(false, Ordering::Release);
    }

    fn assign(&self, assigned: bool) {
        self.assigned.store(assigned, Ordering::Release);
        self.replace_reader();
    }
}

impl Slot {
    pub fn is_assigned(&self) -> bool {
        self.state.assigned.load(Ordering::Acquire)
    }
}

impl Membership {
    /// Subscribes and starts the polling thread.
    pub fn join(
        options: &KafkaOptions,
        partitions: u32,
        fatal: Fatal,
    ) -> Result<(Self, mpsc::Receiver<Assignment>), LogError> {
        let states: Vec<Arc<SlotState>> = (0..partitions).map(|_| Arc::default()).collect();
        // Room for a whole rebalance, so that the polling thread need not wait for a busy reader of it.
        let (sender, assignments) = mpsc::channel(2 * partitions as usize + 8);
        let stop = Arc::new(AtomicBool::new(false));
        let context = Rebalances {
            topic: options.topic.clone(),
            states: states.clone(),
            assignments: sender,
            patience: options.session_timeout,
            stop: stop.clone(),
        };
        let consumer = BaseConsumer::from_config_and_context(&config(options), context)
            .map_err(|error| kafka_error("making the consumer", error))?;
        let consumer = Arc::new(consumer);
        let slots =
            states.into_iter().zip(0..).map(|(state, partition)| slot(&consumer, &options.topic, partition, state));
        let slots = slots.collect::<Result<Vec<_>, _>>()?;
        consumer.subscribe(&[&options.topic]).map_err(|error| kafka_error("joining the group", error))?;
        let poller = {
            let poller = Poller {
                consumer: consumer.clone(),
                topic: options.topic.clone(),
                slots: slots.clone(),
                stop: stop.clone(),
                fatal,
            };
            std::thread::Builder::new().name("log-group".to_owned()).spawn(move || poller.run())
        };
        let poller = poller.map_err(|error| LogError::Unusable(format!("starting the group's thread: {error}")))?;
        let topic = options.topic.clone();
        Ok((Self { consumer, topic, slots, stop, poller: Mutex::new(Some(poller)) }, assignments))
    }

    pub fn consumer(&self) -> &BaseConsumer<Rebalances> {
        &self.consumer
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub fn slot(&self, partition: Partition) -> Result<Arc<Slot>, LogError> {
        let slot = self.slots.get(partition as usize).cloned();
        slot.ok_or_else(|| LogError::Unusable(format!("there is no partition {partition}")))
    }

    /// Gives the partitions up and ends the thread. As a static member the node keeps its claim until its session ends,
    /// so that a restart changes nothing for the others.
    pub fn leave(&self) {
        self.stop.store(true, Ordering::Release);
        if self.poller.lock().take().is_some_and(|poller| poller.join().is_err()) {
            tracing::error!("the thread of the consumer group ended by a panic");
        }
        for slot in &self.slots {
            slot.state.assign(false);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.leave();
    }
}

fn config(options: &KafkaOptions) -> rdkafka::ClientConfig {
    let mut config = options.client();
    config
        .set("group.id", &options.group)
        .set("group.instance.id", options.group_instance())
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", options.session_timeout.as_millis().to_string())
        .set("heartbeat.interval.ms", (options.session_timeout.as_millis() / 4).to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        .set("queued.max.messages.kbytes", AHEAD_KBYTES)
        // A partition whose queue was full is fetched again soon after its reader has made room.
        .set("fetch.queue.backoff.ms", "5")
        // A partition that was sought joins the next fetch: the one before may wait this long for records.
        .set("fetch.wait.max.ms", "100");
    config
}

fn slot(
    consumer: &Arc<BaseConsumer<Rebalances>>,
    topic: &str,
    partition: Partition,
    state: Arc<SlotState>,
) -> Result<Arc<Slot>, LogError> {
    let queue = split(consumer, topic, partition, &state)?;
    Ok(Arc::new(Slot { partition, state, queue: Mutex::new(queue) }))
}

/// The partition's own queue. Split off before the group assigns anything, it stays split: librdkafka respects what the
/// application forwarded.
fn split(
    consumer: &Arc<BaseConsumer<Rebalances>>,
    topic: &str,
    partition: Partition,
    state: &Arc<SlotState>,
) -> Result<PartitionQueue<Rebalances>, LogError> {
    let mut queue = consumer
        .split_partition_queue(topic, partition.cast_signed())
        .ok_or_else(|| LogError::Unusable(format!("{topic} is not a name for a topic")))?;
    let woken = state.clone();
    queue.set_nonempty_callback(move || woken.changed.notify_waiters());
    Ok(queue)
}

/// The thread that serves the group until the log is closed.
struct Poller {
    consumer: Arc<BaseConsumer<Rebalances>>,
    topic: String,
    slots: Vec<Arc<Slot>>,
    stop: Arc<AtomicBool>,
    fatal: Fatal,
}

impl Poller {
    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            self.serve();
        }
        // Closing gives the partitions up, by the same messages as a rebalance.
        if let Err(error) = self.consumer.close_queue() {
            tracing::warn!(error = %error, "leaving the consumer group");
            return;
        }
        while !self.consumer.closed() {
            self.serve();
        }
    }

    fn serve(&self) {
        match self.consumer.poll(POLL) {
            None => {}
            Some(Ok(message)) => self.astray(&message),
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                self.fatal.raise(format!("this node cannot be in the consumer group any more: {error}"));
                std::thread::sleep(POLL);
            }
            Some(Err(error)) => tracing::warn!(error = %error, "consumer group"),
        }
    }

    /// A record that did not come through its partition's queue: librdkafka forgot the partition (its topic was reported
    /// as missing for a moment) and made it anew. Its reader must seek again, or the record would be lost.
    fn astray(&self, message: &BorrowedMessage<'_>) {
        let Some(slot) = self.slots.get(message.partition() as usize) else { return };
        if slot.state.is_astray() {
            return;
        }
        tracing::warn!(log.partition = slot.partition, log.offset = message.offset(), "seeking a partition again");
        let mut queue = slot.queue.lock();
        slot.state.astray.store(true, Ordering::Release);
        match split(&self.consumer, &self.topic, slot.partition, &slot.state) {
            Ok(split) => *queue = split,
            Err(error) => tracing::error!(error = %error, log.partition = slot.partition, "a partition cannot be read"),
        }
        drop(queue);
        slot.state.changed.notify_waiters();
    }
}

/// Turns rebalances into assignments. Runs on the polling thread.
pub(super) struct Rebalances {
    topic: String,
    states: Vec<Arc<SlotState>>,
    assignments: mpsc::Sender<Assignment>,
    /// How long a revocation waits for its answer.
    patience: Duration,
    /// Set when the log is closed.
    stop: Arc<AtomicBool>,
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        forward(level, facility, message);
    }
}

impl ConsumerContext for Rebalances {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, changed: &mut TopicPartitionList) {
        let partitions: Vec<Partition> =
            changed.elements_for_topic(&self.topic).iter().map(|element| element.partition().cast_unsigned()).collect();
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, changed, &partitions);
        } else {
            self.revoke(consumer, changed, &partitions);
        }
    }
}

impl Rebalances {
    fn assign(&self, consumer: &BaseConsumer<Self>, changed: &mut TopicPartitionList, partitions: &[Partition]) {
        // Nothing is fetched before a reader has sought its checkpoint, so any offset will do that needs no question to the
        // broker: an answer to such a question that comes after the seek sends librdkafka (2.12) to what was asked first,
        // and all records between would be skipped in silence.
        let assigned = consumer
            .pause(changed)
            .and_then(|()| changed.set_all_offsets(Offset::Offset(0)))
            .and_then(|()| consumer.incremental_assign(changed));
        if let Err(error) = assigned {
            tracing::error!(error = %error, "taking partitions");
        }
        for partition in partitions {
            if let Some(state) = self.states.get(*partition as usize) {
                tracing::info!(log.partition = partition, "took a partition");
                state.assign(true);
                self.tell(Assignment::Assigned(*partition));
            }
        }
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, changed: &TopicPartitionList, partitions: &[Partition]) {
        let until = Instant::now() + self.patience;
        let mut waiting = Vec::new();
        for partition in partitions {
            if let Some(state) = self.states.get(*partition as usize) {
                state.assign(false);
                let (done, gone) = oneshot::channel();
                self.tell(Assignment::Revoked { partition: *partition, done });
                waiting.push((*partition, gone));
            }
        }
        // Partitions that were lost belong to others already: their fence stops us (rule A1), waiting helps nobody. Those of
        // a node that closes stay its own until its session ends.
        if !consumer.assignment_lost() && !self.stop.load(Ordering::Acquire) {
            for (partition, gone) in waiting {
                await_answer(partition, gone, until);
            }
        }
        if let Err(error) = consumer.incremental_unassign(changed) {
            tracing::error!(error = %error, "giving partitions up");
        }
    }

    fn tell(&self, assignment: Assignment) {
        // Nobody listens any more: the node is closing.
        let _ = self.assignments.blocking_send(assignment);
    }
}

fn await_answer(partition: Partition, mut gone: oneshot::Receiver<()>, until: Instant) {
    use oneshot::error::TryRecvError;
    while gone.try_recv() == Err(TryRecvError::Empty) {
        if Instant::now() > until {
            tracing::error!(
                log.partition = partition,
                "a partition's actors did not end in time: its fence will stop them"
            );
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    tracing::info!(log.partition = partition, "gave a partition up");
}
