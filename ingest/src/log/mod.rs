//! The event log: records in partitions, durable when acknowledged (promise 2).
//!
//! Two implementations held to one conformance suite: [`local::LocalLog`] (segments on disk, one node) and
//! [`kafka::KafkaLog`] (Apache Kafka, scaled out). Positions of one partition grow by one per record without a gap that a
//! reader could mistake for a loss; offsets never repeat within a log id (rule A6).

pub mod kafka;
pub mod local;
pub mod registry;

use async_trait::async_trait;
use bytes::Bytes;
use domain::Position;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Number of a partition, from 0.
pub type Partition = u32;

/// What makes a log itself: a new directory or topic is a new log (rule A6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// Row of `event_log`.
    pub id: Uuid,
    /// Order of creation among the logs of this installation.
    pub ordinal: u16,
    /// Number of partitions; stored with the id, never changed.
    pub partitions: u32,
}

impl LogIdentity {
    /// The position of an offset of this log.
    #[must_use]
    pub fn position(&self, offset: u64) -> Position {
        Position::new(self.ordinal, offset)
    }
}

/// A record to append.
#[derive(Clone, Debug)]
pub struct Append {
    /// Home partition, chosen by the caller (rule A5).
    pub partition: Partition,
    /// Encoded by [`crate::record`].
    pub payload: Bytes,
}

/// A record as read.
#[derive(Clone, Debug)]
pub struct LogRecord {
    /// Offset in its partition.
    pub offset: u64,
    /// Our own records start with a version byte; foreign ones should be JSON.
    pub payload: Bytes,
    /// Who wrote it.
    pub origin: Origin,
    /// When the log took it, in milliseconds since 1970 (Kafka's record timestamp); `None` for the local log.
    pub logged_at_ms: Option<i64>,
}

/// Who wrote a record (rule A7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A node of this installation: the door has judged it.
    Own,
    /// A foreign producer: its Kafka headers `kontorion-workspace` and `kontorion-signature`.
    Foreign(ForeignHeaders),
    /// Somebody who gives himself out for a node of this installation.
    Forged,
}

/// What a foreign producer says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignHeaders {
    /// Value of `kontorion-workspace`.
    pub workspace: Option<Bytes>,
    /// Value of `kontorion-signature`: hex HMAC-SHA256 of the payload.
    pub signature: Option<Bytes>,
}

/// Why a log did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log takes no more at present: answer 503 with `Retry-After`. Nothing was appended.
    #[error("the event log is full at present")]
    Full,
    /// The offset is not in the log any more, or not yet: the partition stops and raises an alarm, it never resets (A6).
    #[error("offset {wanted} of partition {partition} is outside [{first}, {end})")]
    OutOfRange {
        /// Partition.
        partition: Partition,
        /// Offset asked for.
        wanted: u64,
        /// First offset that is there.
        first: u64,
        /// Offset that the next record will get.
        end: u64,
    },
    /// The partition belongs to somebody else now; its actors are dropped.
    #[error("partition {0} was taken away")]
    Revoked(Partition),
    /// Trouble that passes: repeat.
    #[error("{operation}: {source}")]
    Transient {
        /// What was being done.
        operation: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration or the stored log is wrong: the process must not start.
    #[error("{0}")]
    Unusable(String),
}

/// Which partitions this node consumes.
#[derive(Debug)]
pub enum Assignment {
    /// Take it: raise its epoch, load its checkpoint, read from there.
    Assigned(Partition),
    /// Give it up: stop publishing, then drop `done`. The group waits for it, within the session time-out.
    Revoked {
        /// Partition.
        partition: Partition,
        /// Dropped or sent when the partition's actors are gone.
        done: oneshot::Sender<()>,
    },
}

/// A durable, partitioned log of records.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Who it is.
    fn identity(&self) -> &LogIdentity;

    /// Whether it can be worked with now; for `/readyz`.
    ///
    /// # Errors
    /// Why not.
    async fn ping(&self) -> Result<(), LogError>;

    /// Appends and waits until the records are durable (Kafka `acks=all`, or fsync). One outcome per record, in order:
    /// the offset, or why it is not there. Records of one partition keep their order.
    async fn append(&self, records: Vec<Append>) -> Vec<Result<u64, LogError>>;

    /// Joins the consumer group (the local log: takes every partition). Called once per process.
    ///
    /// # Errors
    /// `Unusable` or `Transient`.
    async fn join(&self) -> Result<mpsc::Receiver<Assignment>, LogError>;

    /// Reads an assigned partition from an offset on; a new reader of a partition replaces the one before (seek).
    ///
    /// # Errors
    /// `OutOfRange`, `Revoked`, `Transient`.
    async fn reader(&self, partition: Partition, from: u64) -> Result<Box<dyn PartitionReader>, LogError>;

    /// The offset that the next record of the partition will get.
    ///
    /// # Errors
    /// `Transient`.
    async fn end(&self, partition: Partition) -> Result<u64, LogError>;

    /// Records below this offset will not be read again by this group: the local log may drop segments that are older than
    /// its retention; Kafka commits it as a hint for operators' tools.
    async fn passed(&self, partition: Partition, next_offset: u64);

    /// Leaves the group and flushes what is in flight.
    async fn close(&self);

    /// Waits until the log can never be worked with again in this process, and says why: the process must end, so that it
    /// is started anew. Most logs have no such state, or end the process themselves.
    async fn failed(&self) -> String {
        std::future::pending().await
    }
}

/// Reads one partition in order.
#[async_trait]
pub trait PartitionReader: Send {
    /// The next records, at least one, at most `max`; waits while there is none. Sees durable records only (A6).
    /// Cancel-safe: a dropped call loses no record.
    ///
    /// # Errors
    /// `Revoked`, `OutOfRange`, `Transient`.
    async fn next(&mut self, max: usize) -> Result<Vec<LogRecord>, LogError>;
}
