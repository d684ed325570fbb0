//! A gate before the event log: records wait at it while it is closed, and some are lost there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ingest::log::{Append, Assignment, EventLog, LogError, LogIdentity, PartitionReader};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

pub struct Gate {
    log: Arc<dyn EventLog>,
    is_open: watch::Sender<bool>,
    /// Records that have come to the gate.
    seen: AtomicUsize,
    /// Places in the next append whose records are lost.
    to_lose: Mutex<Vec<usize>>,
}

impl Gate {
    /// An open one.
    pub fn before(log: Arc<dyn EventLog>) -> Arc<Self> {
        let (is_open, _) = watch::channel(true);
        Arc::new(Self { log, is_open, seen: AtomicUsize::new(0), to_lose: Mutex::default() })
    }

    pub fn open(&self, is_open: bool) {
        self.is_open.send_replace(is_open);
    }

    pub fn seen(&self) -> usize {
        self.seen.load(SeqCst)
    }

    /// The records at these places of the next append are not appended.
    pub fn lose(&self, places: &[usize]) {
        *self.to_lose.lock() = places.to_vec();
    }
}

#[async_trait::async_trait]
impl EventLog for Gate {
    async fn append(&self, records: Vec<Append>) -> Vec<Result<u64, LogError>> {
        self.seen.fetch_add(records.len(), SeqCst);
        let lost = std::mem::take(&mut *self.to_lose.lock());
        self.is_open.subscribe().wait_for(|is_open| *is_open).await.expect("the gate stands");
        let mut outcomes = Vec::with_capacity(records.len());
        for (place, record) in records.into_iter().enumerate() {
            if lost.contains(&place) {
                let operation = "appending".to_owned();
                outcomes.push(Err(LogError::Transient { operation, source: "a fault".into() }));
            } else {
                outcomes.extend(self.log.append(vec![record]).await);
            }
        }
        outcomes
    }

    fn identity(&self) -> &LogIdentity {
        self.log.identity()
    }
    async fn ping(&self) -> Result<(), LogError> {
        self.log.ping().await
    }
    async fn join(&self) -> Result<mpsc::Receiver<Assignment>, LogError> {
        self.log.join().await
    }
    async fn reader(&self, partition: u32, from: u64) -> Result<Box<dyn PartitionReader>, LogError> {
        self.log.reader(partition, from).await
    }
    async fn end(&self, partition: u32) -> Result<u64, LogError> {
        self.log.end(partition).await
    }
    async fn passed(&self, partition: u32, next_offset: u64) {
        self.log.passed(partition, next_offset).await;
    }
    async fn close(&self) {
        self.log.close().await;
    }
}
