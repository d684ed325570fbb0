//! The event log of one node: segments on disk, group commit with fsync (P2).
//!
//! ```text
//! DIR/lock                    held while the log is open: a second process is refused (rule A1)
//! DIR/log.json                the log's id and its number of partitions
//! DIR/00000000000000000001.seg, …   segments, numbered without a gap; the last one is being written
//! DIR/spare                   the next segment, written with zeros ahead of time
//! ```
//!
//! All partitions share the segments, so that a group commit is one write and one `fdatasync` whatever it touches; a file
//! per partition was rejected because sixteen partitions would cost sixteen syncs (0.2 ms each) per group. What belongs to
//! one partition stands together in a chunk ([`segment`]); the header of a segment says which offset each partition has
//! reached, so a reader finds its place without a scan. New records are read from memory ([`tail`]), old ones through a
//! memory map.
//!
//! A record is visible and acknowledged when the sync that covers it has returned. A failed write or sync ends the
//! process (rule A6): after it nobody knows what the disk holds.

mod housekeeping;
mod meta;
mod reader;
mod recovery;
mod segment;
mod shared;
mod tail;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{Append, Assignment, EventLog, LogError, LogIdentity, Partition, PartitionReader};
use meta::{DirLock, LogMeta};
use reader::LocalReader;
use segment::SegmentHeader;
use shared::{Outcomes, Request, Shared, Spare};
use writer::Writer;

/// Room for chunks that a segment must have.
const SEGMENT_BYTES_MIN: usize = 32 << 10;

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
    shared: Arc<Shared>,
    /// Kept open, so that the channel of assignments stays open; `None` before somebody joined.
    joined: Mutex<Option<mpsc::Sender<Assignment>>>,
    threads: Mutex<Threads>,
    /// Given back when the threads are through.
    lock: Mutex<Option<DirLock>>,
}

impl LocalLog {
    /// Makes the directory a log if it is none yet, and tells its id: the name under which it is registered
    /// ([`super::registry::register`] with `LogKind::Local`).
    ///
    /// # Errors
    /// `Unusable` when the directory cannot be used, or holds a log with another number of partitions (rule A5).
    pub fn prepare(dir: &Path, partitions: u32) -> Result<Uuid, LogError> {
        let meta = match LogMeta::read(dir)? {
            Some(meta) => meta,
            None => LogMeta::create(dir, partitions)?,
        };
        check_partitions(dir, &meta, partitions)?;
        Ok(meta.id)
    }

    /// Locks the directory, cuts a torn tail and starts the writer. Blocks while it reads the last segment.
    ///
    /// # Errors
    /// `Unusable` when the directory is locked by another process, is damaged or was not prepared.
    pub fn open(dir: &Path, identity: LogIdentity, options: LocalLogOptions) -> Result<Self, LogError> {
        let meta =
            LogMeta::read(dir)?.ok_or_else(|| LogError::Unusable(format!("{} is not an event log", dir.display())))?;
        check_partitions(dir, &meta, identity.partitions)?;
        if (options.segment_bytes as usize) < SegmentHeader::len(meta.partitions) + SEGMENT_BYTES_MIN {
            return Err(LogError::Unusable(format!("segments of {} bytes are too short", options.segment_bytes)));
        }
        let lock = DirLock::take(dir)?;
        let recovered = recovery::recover(dir, &meta)?;
        let shared = Arc::new(Shared::new(dir, &meta, options, &recovered));
        let writer = Writer::new(shared.clone(), meta.id, recovered.active, recovered.ends, recovered.commit);
        let log = Self {
            identity,
            shared,
            joined: Mutex::new(None),
            threads: Mutex::default(),
            lock: Mutex::new(Some(lock)),
        };
        log.start(writer).map_err(|error| LogError::Unusable(format!("starting the event log's threads: {error}")))?;
        Ok(log)
    }

    fn start(&self, writer: Writer) -> std::io::Result<()> {
        let mut threads = self.threads.lock();
        threads.housekeeper = Some(housekeeping::start(&self.shared)?);
        threads.writer = Some(std::thread::Builder::new().name("log-writer".to_owned()).spawn(move || writer.run())?);
        Ok(())
    }

    /// Hands the records to the writer, or says why not.
    fn enqueue(&self, records: Vec<Append>) -> Result<oneshot::Receiver<Outcomes>, LogError> {
        let bytes: usize = records.iter().map(|record| record.payload.len()).sum();
        let options = &self.shared.options;
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            return Err(closed());
        }
        let is_full = queue.records + records.len() > options.queued_records_max
            || queue.bytes + bytes > options.queued_bytes_max;
        // A batch larger than the bounds gets in when nothing else waits: it could never be appended otherwise.
        if is_full && queue.records > 0 {
            return Err(LogError::Full);
        }
        let (reply, outcomes) = oneshot::channel();
        queue.records += records.len();
        queue.bytes += bytes;
        queue.requests.push(Request { records, bytes, reply });
        self.shared.queued.notify_one();
        Ok(outcomes)
    }
}

impl Drop for LocalLog {
    fn drop(&mut self) {
        stop(&self.shared, std::mem::take(&mut *self.threads.lock()));
    }
}

#[derive(Default)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    housekeeper: Option<JoinHandle<()>>,
}

/// Lets the writer finish what it was given, then ends both threads.
fn stop(shared: &Shared, threads: Threads) {
    shared.queue.lock().closed = true;
    shared.queued.notify_all();
    // The writer first: the housekeeper may still owe it a segment.
    end_thread(threads.writer);
    shared.stop();
    end_thread(threads.housekeeper);
}

fn end_thread(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("a thread of the event log ended by a panic");
    }
}

fn check_partitions(dir: &Path, meta: &LogMeta, partitions: u32) -> Result<(), LogError> {
    if meta.partitions == partitions {
        return Ok(());
    }
    Err(LogError::Unusable(format!(
        "the event log in {} was made with {} partitions and is now to have {partitions}; homes of subscriptions depend on the \
         number, so it can never change: set it back to {}, or begin a new log in another directory",
        dir.display(),
        meta.partitions,
        meta.partitions,
    )))
}

fn closed() -> LogError {
    LogError::Transient { operation: "appending to the event log".to_owned(), source: "the log is closed".into() }
}

#[async_trait]
impl EventLog for LocalLog {
    fn identity(&self) -> &LogIdentity {
        &self.identity
    }

    /// A failed disk ends the process, so only a log that was closed, or has no room for its next segment, is in trouble.
    async fn ping(&self) -> Result<(), LogError> {
        if self.shared.queue.lock().closed {
            return Err(closed());
        }
        match &*self.shared.spare.lock() {
            Spare::Failed(reason) => Err(LogError::Transient {
                operation: "making room for the event log".to_owned(),
                source: reason.clone().into(),
            }),
            _ => Ok(()),
        }
    }

    async fn append(&self, records: Vec<Append>) -> Vec<Result<u64, LogError>> {
        let count = records.len();
        match self.enqueue(records) {
            Ok(outcomes) => outcomes.await.unwrap_or_else(|_| (0..count).map(|_| Err(closed())).collect()),
            Err(LogError::Full) => (0..count).map(|_| Err(LogError::Full)).collect(),
            Err(_) => (0..count).map(|_| Err(closed())).collect(),
        }
    }

    async fn join(&self) -> Result<mpsc::Receiver<Assignment>, LogError> {
        let partitions = self.identity.partitions;
        let (sender, receiver) = mpsc::channel(partitions as usize);
        let mut joined = self.joined.lock();
        if joined.is_some() {
            return Err(LogError::Unusable("this process has joined the event log already".to_owned()));
        }
        for partition in 0..partitions {
            // There is room for all of them, and the receiver is still here.
            let _ = sender.try_send(Assignment::Assigned(partition));
        }
        *joined = Some(sender);
        Ok(receiver)
    }

    async fn reader(&self, partition: Partition, from: u64) -> Result<Box<dyn PartitionReader>, LogError> {
        let end = self.end(partition).await?;
        let first = self.shared.first(partition);
        if !(first..=end).contains(&from) {
            tracing::error!(
                log.partition = partition,
                wanted = from,
                first,
                end,
                "a partition stops: its offset is not in the log"
            );
            return Err(LogError::OutOfRange { partition, wanted: from, first, end });
        }
        Ok(Box::new(LocalReader::new(self.shared.clone(), partition, from)?))
    }

    async fn end(&self, partition: Partition) -> Result<u64, LogError> {
        Ok(self.shared.partition(partition)?.tail.lock().end())
    }

    async fn passed(&self, partition: Partition, next_offset: u64) {
        if let Ok(state) = self.shared.partition(partition) {
            state.passed.fetch_max(next_offset, Ordering::AcqRel);
        }
    }

    async fn close(&self) {
        let (shared, threads) = (self.shared.clone(), std::mem::take(&mut *self.threads.lock()));
        if tokio::task::spawn_blocking(move || stop(&shared, threads)).await.is_err() {
            tracing::error!("closing the event log failed");
        }
        self.joined.lock().take();
        self.lock.lock().take();
    }
}
