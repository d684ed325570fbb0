//! The event log on Apache Kafka (being built: signatures are final).

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{Append, Assignment, EventLog, LogError, LogIdentity, Partition, PartitionReader};

/// Where the topic is and how this node takes part.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// `host:port,host:port`.
    pub bootstrap_servers: String,
    /// Topic of usage events.
    pub topic: String,
    /// Consumer group of all `ingest` nodes.
    pub group: String,
    /// The node's configured name (`group.instance.id`): a node that restarts within the session time-out keeps its
    /// partitions (P3).
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
}

/// The event log on Apache Kafka.
pub struct KafkaLog {
    identity: LogIdentity,
}

impl KafkaLog {
    /// Makes the topic if it is missing, checks it, and tells the name under which the log is registered:
    /// `<cluster id>/<topic>` ([`super::registry::register`] with `LogKind::Kafka`).
    ///
    /// # Errors
    /// `Unusable` for another number of partitions (rule A5) or a replicated topic with `min.insync.replicas` = 1
    /// (rule A6); `Transient` when no broker answers.
    pub async fn prepare(options: &KafkaOptions, _partitions: u32) -> Result<String, LogError> {
        Err(LogError::Unusable(format!("topic {} cannot be used yet", options.topic)))
    }

    /// Connects producer and consumer; partitions are taken by [`EventLog::join`].
    ///
    /// # Errors
    /// `Unusable` for a property that librdkafka refuses.
    pub async fn open(options: KafkaOptions, identity: LogIdentity) -> Result<Self, LogError> {
        let _ = Self { identity };
        Err(LogError::Unusable(format!("topic {} cannot be used yet", options.topic)))
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    fn identity(&self) -> &LogIdentity {
        &self.identity
    }
    async fn append(&self, records: Vec<Append>) -> Vec<Result<u64, LogError>> {
        records.iter().map(|_| Err(LogError::Full)).collect()
    }
    async fn join(&self) -> Result<mpsc::Receiver<Assignment>, LogError> {
        Err(LogError::Full)
    }
    async fn reader(&self, _partition: Partition, _from: u64) -> Result<Box<dyn PartitionReader>, LogError> {
        Err(LogError::Full)
    }
    async fn end(&self, _partition: Partition) -> Result<u64, LogError> {
        Err(LogError::Full)
    }
    async fn passed(&self, _partition: Partition, _next_offset: u64) {}
    async fn close(&self) {}
}
