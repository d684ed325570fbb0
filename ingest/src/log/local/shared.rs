//! What writer, housekeeper and readers share.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use memmap2::Mmap;
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use super::super::{Append, LogError, Partition};
use super::LocalLogOptions;
use super::meta::LogMeta;
use super::recovery::Recovered;
use super::segment::{ChunkHeader, SegmentHeader, aligned, seed};
use super::tail::Tail;

/// Outcome per record of an append.
pub(super) type Outcomes = Vec<Result<u64, LogError>>;

/// An append that waits for the writer.
pub(super) struct Request {
    pub records: Vec<Append>,
    pub bytes: usize,
    pub reply: oneshot::Sender<Outcomes>,
}

/// What waits for the writer; the counts include what it is writing.
#[derive(Default)]
pub(super) struct Queue {
    pub requests: Vec<Request>,
    pub records: usize,
    pub bytes: usize,
    pub closed: bool,
}

/// The segment that is made ahead of time.
pub(super) enum Spare {
    Wanted,
    /// The writer waits for it.
    Overdue,
    Ready(File),
    /// The writer is giving it the name of a segment: the next one must not be made in its place yet.
    Taken,
    /// Made again in a while: the disk is full, most likely.
    Failed(String),
}

/// One partition, as its reader and the writer see it.
pub(super) struct PartitionState {
    pub tail: Mutex<Tail>,
    /// The end, for readers that wait.
    pub grown: watch::Sender<u64>,
    /// Number of the reader that is in charge: a new one replaces it.
    pub reader: AtomicU64,
    /// Records below are not read again.
    pub passed: AtomicU64,
}

/// A segment of the directory.
pub(super) struct Segment {
    pub path: PathBuf,
    pub header: SegmentHeader,
    /// Alive while somebody reads or writes it.
    pub view: Mutex<Weak<View>>,
}

/// Place of a chunk in its segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkRef {
    pub base: u64,
    pub pos: u32,
}

/// A segment in memory, with the places of each partition's chunks.
pub(super) struct View {
    pub map: Mmap,
    pub chunks: RwLock<Vec<Vec<ChunkRef>>>,
}

/// The state of an open log.
pub(super) struct Shared {
    pub dir: PathBuf,
    pub options: LocalLogOptions,
    pub seed: u64,
    pub queue: Mutex<Queue>,
    pub queued: Condvar,
    pub spare: Mutex<Spare>,
    pub spare_changed: Condvar,
    pub partitions: Vec<PartitionState>,
    /// Oldest first, never empty; the last one is being written.
    pub segments: RwLock<VecDeque<Arc<Segment>>>,
    pub stopped: AtomicBool,
}

impl Shared {
    /// The state of a log that was just recovered, with the housekeeper's first segment to be made.
    pub fn new(dir: &Path, meta: &LogMeta, options: LocalLogOptions, recovered: &Recovered) -> Self {
        let tail_bytes = options.tail_bytes / meta.partitions.max(1) as usize;
        let partitions = recovered.ends.iter().map(|end| PartitionState {
            tail: Mutex::new(Tail::new(*end, tail_bytes)),
            grown: watch::Sender::new(*end),
            reader: AtomicU64::new(0),
            passed: AtomicU64::new(0),
        });
        Self {
            dir: dir.to_owned(),
            options,
            seed: seed(meta.id),
            queue: Mutex::default(),
            queued: Condvar::new(),
            spare: Mutex::new(Spare::Wanted),
            spare_changed: Condvar::new(),
            partitions: partitions.collect(),
            segments: RwLock::new(recovered.segments.clone()),
            stopped: AtomicBool::new(false),
        }
    }

    /// Ends the housekeeper and all readers.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // Under the lock: the housekeeper either sees the flag or is waiting already.
        drop(self.spare.lock());
        self.spare_changed.notify_all();
        for partition in &self.partitions {
            partition.grown.send_modify(|_| ());
        }
    }

    pub fn partition(&self, partition: Partition) -> Result<&PartitionState, LogError> {
        self.partitions.get(partition as usize).ok_or_else(|| {
            LogError::Unusable(format!("there is no partition {partition}: the log has {}", self.partitions.len()))
        })
    }

    /// The first offset that is still there.
    pub fn first(&self, partition: Partition) -> u64 {
        self.segments.read().front().map_or(0, |segment| segment.header.bases[partition as usize])
    }

    /// The segment in which an offset is, and the offsets at which the next one begins.
    pub fn segment_of(&self, partition: Partition, offset: u64) -> Option<(Arc<Segment>, Option<Arc<Segment>>)> {
        let segments = self.segments.read();
        let after = segments.partition_point(|segment| segment.header.bases[partition as usize] <= offset);
        let found = segments.get(after.checked_sub(1)?)?;
        Some((found.clone(), segments.get(after).cloned()))
    }
}

impl View {
    /// Maps a file; the places are filled in by who knows them.
    pub fn map(file: &File) -> std::io::Result<Mmap> {
        // SAFETY: the directory's lock keeps other processes of ours away; segments are never truncated, and bytes that
        // were handed out are never written again (a new chunk only fills zeros behind the last one).
        unsafe { Mmap::map(file) }
    }

    /// The places of the chunks of a full segment, found by walking over their headers. Which offsets it must reach is
    /// known from its successor, so damage to a header cannot hide records.
    pub fn of_full(path: &Path, header: &SegmentHeader, ends: &[u64]) -> Result<Self, LogError> {
        let transient = |source: std::io::Error| LogError::Transient {
            operation: format!("opening segment {}", path.display()),
            source: source.into(),
        };
        let map = File::open(path).and_then(|file| Self::map(&file)).map_err(transient)?;
        let mut reached = header.bases.clone();
        let mut chunks = vec![Vec::new(); reached.len()];
        let mut pos = SegmentHeader::len(reached.len() as u32);
        while let Some(chunk) = ChunkHeader::peek(&map, pos) {
            let partition = chunk.partition as usize;
            if reached.get(partition) != Some(&chunk.base) {
                break;
            }
            reached[partition] += u64::from(chunk.count);
            chunks[partition].push(ChunkRef { base: chunk.base, pos: pos as u32 });
            pos = aligned(pos + chunk.len());
        }
        if reached != ends {
            return Err(damaged(path, pos));
        }
        Ok(Self { map, chunks: RwLock::new(chunks) })
    }
}

impl Segment {
    /// The segment in memory; shared by all that read it at the same time. `next` is the segment after it.
    pub fn view(&self, next: Option<&Segment>) -> Result<Arc<View>, LogError> {
        let mut slot = self.view.lock();
        if let Some(view) = slot.upgrade() {
            return Ok(view);
        }
        // Without a successor it is the one that is being written, which the writer keeps alive.
        let ends = next.map(|next| &next.header.bases).ok_or_else(|| LogError::Transient {
            operation: "reading the event log".to_owned(),
            source: "the log is closed".into(),
        })?;
        let view = Arc::new(View::of_full(&self.path, &self.header, ends)?);
        *slot = Arc::downgrade(&view);
        Ok(view)
    }
}

/// Acknowledged records cannot be read: for an operator, never skipped.
pub(super) fn damaged(path: &Path, pos: usize) -> LogError {
    tracing::error!(segment.path = %path.display(), segment.position_bytes = pos, "the event log is damaged");
    LogError::Unusable(format!("segment {} of the event log is damaged at byte {pos}", path.display()))
}
