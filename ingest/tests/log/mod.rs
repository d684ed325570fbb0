//! The suite and what it needs of each implementation.

pub mod kafka;
pub mod local;
mod registry;
pub mod suite;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ingest::log::{Append, Assignment, EventLog, LogRecord, Partition, PartitionReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Partitions of every log of the suite.
pub const PARTITIONS: u32 = 3;
/// Nothing in the suite takes this long, except on a broken log.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Opens one log again and again.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Opens the log as a process does when it starts.
    async fn open(&self) -> Arc<dyn EventLog>;
}

/// A log that has joined, with all its partitions assigned. The channel is kept: dropping it would be leaving.
pub struct Joined {
    pub log: Arc<dyn EventLog>,
    _assignments: mpsc::Receiver<Assignment>,
}

/// Opens, joins, and waits until every partition is assigned.
pub async fn joined(harness: &dyn Harness) -> Joined {
    let log = harness.open().await;
    let mut assignments = log.join().await.unwrap();
    let mut assigned = Vec::new();
    while assigned.len() < PARTITIONS as usize {
        match timeout(PATIENCE, assignments.recv()).await.expect("assigned in time") {
            Some(Assignment::Assigned(partition)) => assigned.push(partition),
            other => panic!("unexpected: {other:?}"),
        }
    }
    assigned.sort_unstable();
    assert_eq!(assigned, (0..PARTITIONS).collect::<Vec<_>>());
    Joined { log, _assignments: assignments }
}

/// A record of our own, which begins with a version byte.
pub fn record(partition: Partition, text: &str) -> Append {
    let mut payload = vec![1];
    payload.extend_from_slice(text.as_bytes());
    Append { partition, payload: Bytes::from(payload) }
}

/// What [`record`] was given.
pub fn text(record: &LogRecord) -> String {
    String::from_utf8(record.payload[1..].to_vec()).unwrap()
}

/// Appends one record; its offset.
pub async fn append_one(log: &dyn EventLog, partition: Partition, text: &str) -> u64 {
    let mut outcomes = log.append(vec![record(partition, text)]).await;
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0).unwrap()
}

/// The next `count` records.
pub async fn take(reader: &mut dyn PartitionReader, count: usize) -> Vec<LogRecord> {
    let mut records: Vec<LogRecord> = Vec::new();
    while records.len() < count {
        let wanted = (count - records.len()).min(7);
        let found = timeout(PATIENCE, reader.next(wanted)).await.expect("records in time").unwrap();
        assert!((1..=wanted).contains(&found.len()), "{} records, asked for at most {wanted}", found.len());
        records.extend(found);
    }
    records
}
