//! The event log of one node (being built: signatures are final).

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Append, Assignment, EventLog, LogError, LogIdentity, Partition, PartitionReader};

/// How a local log uses disk and memory.
#[derive(Clone, Debug)]
pub struct LocalLogOptions {
    /// Length of a segment, preallocated. At least 64 KiB.
    pub segment_bytes: u32,
    /// Bytes that may wait for the writer; beyond, appends answer `Full`.
    pub queued_bytes_max: usize,
    /// Records that may wait for the writer; beyond, appends answer `Full`.
    pub queued_records_max: usize,
    /// How long records are kept after every partition has passed them (rule A6).
    pub retention: Duration,
    /// Memory for the newest records, which readers that keep up never fetch from the files. Of all partitions together.
    pub tail_bytes: usize,
}

impl Default for LocalLogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            queued_bytes_max: 64 << 20,
            queued_records_max: 200_000,
            retention: Duration::from_secs(7 * 24 * 3600),
            tail_bytes: 64 << 20,
        }
    }
}

/// The event log of one node.
pub struct LocalLog {
    identity: LogIdentity,
}

impl LocalLog {
    /// Makes the directory a log if it is none yet, and tells its id: the name under which it is registered
    /// ([`super::registry::register`] with `LogKind::Local`).
    ///
    /// # Errors
    /// `Unusable` when the directory cannot be used, or holds a log with another number of partitions (rule A5).
    pub fn prepare(dir: &Path, _partitions: u32) -> Result<Uuid, LogError> {
        Err(LogError::Unusable(format!("{} cannot be a log yet", dir.display())))
    }

    /// Locks the directory, cuts a torn tail and starts the writer. Blocks while it reads the last segment.
    ///
    /// # Errors
    /// `Unusable` when the directory is locked by another process, is damaged or was not prepared.
    pub fn open(dir: &Path, identity: LogIdentity, _options: LocalLogOptions) -> Result<Self, LogError> {
        let _ = Self { identity };
        Err(LogError::Unusable(format!("{} cannot be a log yet", dir.display())))
    }
}

#[async_trait]
impl EventLog for LocalLog {
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
