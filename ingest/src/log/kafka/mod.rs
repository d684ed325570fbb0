//! The event log on Apache Kafka: a topic, read by the `ingest` nodes as one consumer group (P3).
//!
//! A record is acknowledged with `acks=all` by an idempotent producer. The group only decides who reads which partition;
//! where reading begins is said by the checkpoint, and offsets committed to Kafka are a hint for operators' tools. Each
//! partition has a queue of its own in librdkafka: a partition that stands still fills its queue and is fetched no
//! further, while the thread that polls the group keeps the others and the membership alive (rule A1). That is what
//! pausing would do, without throwing away what was fetched.

mod fatal;
mod group;
mod producer;
mod reader;
mod seal;
mod topic;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Append, Assignment, EventLog, LogError, LogIdentity, Partition, PartitionReader};
use fatal::Fatal;
use group::Membership;
use producer::LogProducer;
pub use seal::Seal;

/// How long a question to the broker may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the hint of a partition is committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Where the topic is and how this node takes part.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// `host:port,host:port`.
    pub bootstrap_servers: String,
    /// Topic of usage events.
    pub topic: String,
    /// Consumer group of all `ingest` nodes.
    pub group: String,
    /// The node's configured name, from which it has its `group.instance.id`: a node that restarts within the session time-out
    /// keeps its partitions (P3).
    pub instance: String,
    /// Replication of a topic that has to be created; `None` = 3, or as many as there are brokers.
    pub replication: Option<u16>,
    /// How long the group waits for a silent node (P3).
    pub session_timeout: Duration,
    /// Records of this node that may be on their way to the broker; beyond, appends answer `Full`.
    pub in_flight_records_max: usize,
    /// Bytes of this node that may be on their way to the broker; beyond, appends answer `Full`.
    pub in_flight_bytes_max: usize,
    /// More properties for librdkafka, of producer and consumer: security, mostly.
    pub properties: Vec<(String, String)>,
}

impl KafkaOptions {
    /// With the defaults of P3.
    #[must_use]
    pub fn new(bootstrap_servers: &str, topic: &str, group: &str, instance: &str) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.to_owned(),
            topic: topic.to_owned(),
            group: group.to_owned(),
            instance: instance.to_owned(),
            replication: None,
            session_timeout: Duration::from_secs(6),
            in_flight_records_max: 200_000,
            in_flight_bytes_max: 128 << 20,
            properties: Vec::new(),
        }
    }

    /// The name of the static member: of the node and the topic. A static member that comes back gets the partitions that it
    /// had, whatever it subscribes to: with another topic it must not be taken for the one before.
    fn group_instance(&self) -> String {
        let topic = Uuid::new_v5(&Uuid::NAMESPACE_OID, self.topic.as_bytes()).simple().to_string();
        format!("{}.{}", self.instance, &topic[..12])
    }

    /// What producer, consumer and administration have in common.
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", format!("kontorion-{}", self.instance));
        config.set("socket.nagle.disable", "true");
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config
    }
}

/// The event log on Apache Kafka.
pub struct KafkaLog {
    identity: LogIdentity,
    options: KafkaOptions,
    producer: Arc<LogProducer>,
    seal: Seal,
    fatal: Fatal,
    membership: Mutex<Option<Arc<Membership>>>,
    /// When each partition's hint was committed last.
    committed: Mutex<Vec<Option<Instant>>>,
}

impl KafkaLog {
    /// Makes the topic if it is missing, checks it, and tells the name under which the log is registered:
    /// `<cluster id>/<topic>` ([`super::registry::register`] with `LogKind::Kafka`).
    ///
    /// # Errors
    /// `Unusable` for another number of partitions (rule A5), for a replicated topic with `min.insync.replicas` = 1
    /// (rule A6), for a compacted topic; `Transient` when no broker answers.
    pub async fn prepare(options: &KafkaOptions, partitions: u32) -> Result<String, LogError> {
        topic::prepare(options, partitions).await
    }

    /// Connects the producer; partitions are taken by [`EventLog::join`].
    ///
    /// # Errors
    /// `Unusable` for a property that librdkafka refuses.
    pub async fn open(options: KafkaOptions, identity: LogIdentity, seal: Seal) -> Result<Self, LogError> {
        let fatal = Fatal::default();
        let producer = Arc::new(LogProducer::new(&options, identity.partitions, seal.clone(), fatal.clone())?);
        let committed = Mutex::new(vec![None; identity.partitions as usize]);
        Ok(Self { identity, options, producer, seal, fatal, membership: Mutex::new(None), committed })
    }

    fn membership(&self, partition: Partition) -> Result<Arc<Membership>, LogError> {
        self.membership.lock().clone().ok_or(LogError::Revoked(partition))
    }

    /// Whether the partition's hint may be committed now.
    fn commit_is_due(&self, partition: Partition) -> bool {
        let mut committed = self.committed.lock();
        let Some(last) = committed.get_mut(partition as usize) else { return false };
        if last.is_some_and(|last| last.elapsed() < COMMIT_EVERY) {
            return false;
        }
        *last = Some(Instant::now());
        true
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    fn identity(&self) -> &LogIdentity {
        &self.identity
    }

    /// Asks the leader of one partition: metadata could be an answer from memory, and asking for it may make a topic.
    async fn ping(&self) -> Result<(), LogError> {
        self.end(0).await.map(drop)
    }

    async fn append(&self, records: Vec<Append>) -> Vec<Result<u64, LogError>> {
        self.producer.append(records).await
    }

    async fn join(&self) -> Result<mpsc::Receiver<Assignment>, LogError> {
        let mut membership = self.membership.lock();
        if membership.is_some() {
            return Err(LogError::Unusable("this process has joined the event log already".to_owned()));
        }
        let (joined, assignments) = Membership::join(&self.options, self.identity.partitions, self.fatal.clone())?;
        *membership = Some(Arc::new(joined));
        Ok(assignments)
    }

    async fn reader(&self, partition: Partition, from: u64) -> Result<Box<dyn PartitionReader>, LogError> {
        let membership = self.membership(partition)?;
        let slot = membership.slot(partition)?;
        let seal = self.seal.clone();
        // Seeking waits for the broker.
        let reader =
            tokio::task::spawn_blocking(move || reader::KafkaReader::seek(&membership, slot, seal, from)).await;
        Ok(Box::new(reader.map_err(|error| transient("seeking", error))??))
    }

    async fn end(&self, partition: Partition) -> Result<u64, LogError> {
        let (producer, topic) = (self.producer.clone(), self.options.topic.clone());
        let asked = tokio::task::spawn_blocking(move || watermarks(producer.client(), &topic, partition)).await;
        asked.map_err(|error| transient("asking for the end of a partition", error))?.map(|(_, end)| end)
    }

    async fn passed(&self, partition: Partition, next_offset: u64) {
        let Some(membership) = self.membership.lock().clone() else { return };
        if !membership.slot(partition).is_ok_and(|slot| slot.is_assigned()) || !self.commit_is_due(partition) {
            return;
        }
        let mut offsets = TopicPartitionList::new();
        let offset = Offset::Offset(next_offset.cast_signed());
        let hinted = offsets
            .add_partition_offset(&self.options.topic, partition.cast_signed(), offset)
            .and_then(|()| membership.consumer().commit(&offsets, CommitMode::Async));
        if let Err(error) = hinted {
            tracing::debug!(error = %error, log.partition = partition, "the committed offset, a hint, is not up to date");
        }
    }

    async fn failed(&self) -> String {
        self.fatal.wait().await
    }

    async fn close(&self) {
        let producer = self.producer.clone();
        let membership = self.membership.lock().take();
        let closed = tokio::task::spawn_blocking(move || {
            if let Err(error) = producer.client_producer().flush(ANSWER_TIMEOUT) {
                tracing::warn!(error = %error, "records were still on their way to Kafka: their appenders were told nothing");
            }
            if let Some(membership) = membership {
                membership.leave();
            }
        });
        if closed.await.is_err() {
            tracing::error!("closing the event log failed");
        }
    }
}

/// Lines of librdkafka go where ours go.
fn forward(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(facility, "librdkafka: {message}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(facility, "librdkafka: {message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, "librdkafka: {message}"),
        RDKafkaLogLevel::Debug => tracing::debug!(facility, "librdkafka: {message}"),
    }
}

/// First offset and end of a partition, by its leader.
fn watermarks<C: ClientContext>(
    client: &rdkafka::client::Client<C>,
    topic: &str,
    partition: Partition,
) -> Result<(u64, u64), LogError> {
    let (first, end) = client
        .fetch_watermarks(topic, partition.cast_signed(), ANSWER_TIMEOUT)
        .map_err(|error| kafka_error("asking for the end of a partition", error))?;
    Ok((first.cast_unsigned(), end.cast_unsigned()))
}

fn transient(operation: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LogError {
    LogError::Transient { operation: format!("event log, {operation}"), source: source.into() }
}

/// Tells trouble that passes from trouble that does not.
fn kafka_error(operation: &str, error: KafkaError) -> LogError {
    use RDKafkaErrorCode as Code;
    match (&error, error.rdkafka_error_code()) {
        (_, Some(Code::QueueFull)) => LogError::Full,
        (KafkaError::MessageConsumptionFatal(_) | KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_), _)
        | (_, Some(Code::Fatal | Code::MessageSizeTooLarge | Code::UnknownPartition | Code::UnknownTopic))
        | (_, Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed | Code::FencedInstanceId)) => {
            LogError::Unusable(format!("event log, {operation}: {error}"))
        }
        _ => transient(operation, error),
    }
}
