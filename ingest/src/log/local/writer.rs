//! The one thread that writes: everything that has queued becomes one write and one sync (group commit, P2).

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant as Moment};

use bytes::Bytes;
use domain::clock::Clock;
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::super::{Append, LogError};
use super::meta::{segment_path, sync_dir};
use super::recovery::Active;
use super::segment::{CHUNK_BODY_MAX, CHUNK_HEADER, ChunkHeader, RECORD_HEADER, SegmentHeader, aligned};
use super::shared::{ChunkRef, Outcomes, Request, Segment, Shared, Spare, View};

/// A busy log begins a group at most this often: the sync, the waking of the writer and of those who wait are shared by
/// what has come meanwhile. A log that has rested for so long waits for nobody.
const GROUP_INTERVAL: Duration = Duration::from_millis(1);

/// The writer's own state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    log: Uuid,
    active: Option<Active>,
    /// Offset that the next record of each partition gets, with what is not synced yet.
    ends: Vec<u64>,
    commit: u64,
    buffer: Vec<u8>,
    /// Chunks in the buffer, visible to nobody yet.
    unsynced: Vec<Unsynced>,
    /// Records of the present group, by partition: reused from group to group.
    sorted: Vec<VecDeque<Placed>>,
    /// When the last group began.
    began: Option<Moment>,
}

struct Unsynced {
    partition: usize,
    place: ChunkRef,
    records: Vec<Bytes>,
}

/// A record and where its outcome goes: number of the request, number within the request.
struct Placed {
    request: usize,
    index: usize,
    payload: Bytes,
}

/// A request that waits for its outcome.
struct Waiting {
    reply: oneshot::Sender<Outcomes>,
    outcomes: Outcomes,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, log: Uuid, active: Option<Active>, ends: Vec<u64>, commit: u64) -> Self {
        let sorted = ends.iter().map(|_| VecDeque::new()).collect();
        Self { shared, log, active, ends, commit, buffer: Vec::new(), unsynced: Vec::new(), sorted, began: None }
    }

    /// Runs until the log is closed and everything that was taken is durable.
    pub fn run(mut self) {
        let _ends = EndsProcess;
        while let Some(requests) = self.wait() {
            let (records, bytes) =
                requests.iter().fold((0, 0), |(r, b), request| (r + request.records.len(), b + request.bytes));
            self.group(requests);
            let mut queue = self.shared.queue.lock();
            queue.records -= records;
            queue.bytes -= bytes;
        }
    }

    /// What has queued when the next group may begin; `None` when nothing will come any more.
    fn wait(&mut self) -> Option<Vec<Request>> {
        let mut queue = self.shared.queue.lock();
        while queue.requests.is_empty() {
            if queue.closed {
                return None;
            }
            self.shared.queued.wait(&mut queue);
        }
        let early = self.began.and_then(|began| GROUP_INTERVAL.checked_sub(began.elapsed()));
        if let Some(early) = early.filter(|_| !queue.closed) {
            MutexGuard::unlocked(&mut queue, || std::thread::sleep(early));
        }
        self.began = Some(Moment::now());
        Some(std::mem::take(&mut queue.requests))
    }

    /// Appends everything that queued, answers each waiter in order.
    fn group(&mut self, requests: Vec<Request>) {
        let mut waiting = self.sort(requests);
        let mut full = None;
        for partition in 0..self.sorted.len() {
            while full.is_none() && !self.sorted[partition].is_empty() {
                full = self.chunk(partition, &mut waiting).err();
            }
            // A log without room keeps the order: nothing that came after is appended either.
            for placed in self.sorted[partition].drain(..) {
                waiting[placed.request].outcomes[placed.index] = Err(LogError::Full);
            }
        }
        if let Some(reason) = full {
            tracing::warn!(reason, log.path = %self.shared.dir.display(), "the event log is full");
        }
        self.sync();
        for Waiting { reply, outcomes } in waiting {
            // Nobody waits any more: the record is in the log all the same.
            let _ = reply.send(outcomes);
        }
    }

    /// Gives every record to its partition, in order of arrival; a record that cannot be appended is answered at once.
    fn sort(&mut self, requests: Vec<Request>) -> Vec<Waiting> {
        let record_max = self.record_max();
        let mut waiting = Vec::with_capacity(requests.len());
        for (request, Request { records, reply, .. }) in requests.into_iter().enumerate() {
            let mut outcomes = Vec::with_capacity(records.len());
            for (index, Append { partition, payload }) in records.into_iter().enumerate() {
                outcomes.push(match self.sorted.get_mut(partition as usize) {
                    None => Err(LogError::Unusable(format!("there is no partition {partition}"))),
                    Some(_) if payload.len() > record_max => {
                        Err(LogError::Unusable(format!("a record of {} bytes: at most {record_max}", payload.len())))
                    }
                    Some(sorted) => {
                        sorted.push_back(Placed { request, index, payload });
                        Ok(0)
                    }
                });
            }
            waiting.push(Waiting { reply, outcomes });
        }
        waiting
    }

    /// What fits into an empty segment.
    fn record_max(&self) -> usize {
        let page = SegmentHeader::len(self.ends.len() as u32);
        self.shared.options.segment_bytes as usize - page - CHUNK_HEADER - RECORD_HEADER - 8
    }

    /// Puts the next records of a partition into the buffer, as one chunk.
    fn chunk(&mut self, partition: usize, waiting: &mut [Waiting]) -> Result<(), String> {
        let room = self.room_for(partition)?;
        let start = self.buffer.len();
        let base = self.ends[partition];
        self.buffer.resize(start + CHUNK_HEADER, 0);
        let mut records = Vec::new();
        let mut body = 0;
        while let Some(next) = self.sorted[partition].front() {
            let length = RECORD_HEADER + next.payload.len();
            if body + length > room || (body + length > CHUNK_BODY_MAX && body > 0) {
                break;
            }
            let Some(Placed { request, index, payload }) = self.sorted[partition].pop_front() else { break };
            self.buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            self.buffer.extend_from_slice(&payload);
            body += length;
            waiting[request].outcomes[index] = Ok(base + records.len() as u64);
            records.push(payload);
        }
        let header = ChunkHeader {
            partition: partition as u32,
            base,
            commit: self.commit + 1,
            count: records.len() as u32,
            body_len: body as u32,
        };
        header.seal(&mut self.buffer[start..], self.shared.seed);
        self.buffer.resize(aligned(self.buffer.len()), 0);
        self.ends[partition] += records.len() as u64;
        let pos = self.active.as_ref().map_or(0, |active| active.pos) + start;
        self.unsynced.push(Unsynced { partition, place: ChunkRef { base, pos: pos as u32 }, records });
        Ok(())
    }

    /// Length of the body that fits; begins a new segment when not even the partition's next record does.
    fn room_for(&mut self, partition: usize) -> Result<usize, String> {
        let needed = self.sorted[partition].front().map_or(0, |next| RECORD_HEADER + next.payload.len());
        if let Some(room) = self.room().filter(|room| *room >= needed) {
            return Ok(room);
        }
        self.sync();
        self.roll()?;
        Ok(self.room().unwrap_or_default())
    }

    /// Length of a body that still fits into the segment behind what is in the buffer.
    fn room(&self) -> Option<usize> {
        let active = self.active.as_ref()?;
        (self.shared.options.segment_bytes as usize).checked_sub(active.pos + self.buffer.len() + CHUNK_HEADER + 8)
    }

    /// Writes the buffer, makes it durable, then lets readers see it.
    fn sync(&mut self) {
        let Some(active) = self.active.as_mut().filter(|_| !self.buffer.is_empty()) else { return };
        let written = active.file.write_all_at(&self.buffer, active.pos as u64).and_then(|()| active.file.sync_data());
        if let Err(error) = written {
            end_process(&self.shared, &error);
        }
        active.pos += self.buffer.len();
        self.buffer.clear();
        self.commit += 1;
        let mut places = active.view.chunks.write();
        for unsynced in &self.unsynced {
            places[unsynced.partition].push(unsynced.place);
        }
        drop(places);
        for Unsynced { partition, records, .. } in self.unsynced.drain(..) {
            let state = &self.shared.partitions[partition];
            let end = {
                let mut tail = state.tail.lock();
                tail.push(records);
                tail.end()
            };
            state.grown.send_replace(end);
        }
    }

    /// Begins the next segment in the file that was made ahead of time.
    fn roll(&mut self) -> Result<(), String> {
        let file = take_spare(&self.shared)?;
        let number = self.shared.segments.read().back().map_or(1, |last| last.header.number + 1);
        let header = SegmentHeader {
            log: self.log,
            number,
            created_ms: Clock::System.now().timestamp_millis(),
            commit: self.commit,
            bases: self.ends.clone(),
        };
        let segment = begin(&self.shared, &file, header);
        let (segment, view) = segment.unwrap_or_else(|error| end_process(&self.shared, &error));
        *self.shared.spare.lock() = Spare::Wanted;
        self.shared.spare_changed.notify_all();
        let pos = SegmentHeader::len(self.ends.len() as u32);
        self.active = Some(Active { file, view, pos });
        self.shared.segments.write().push_back(Arc::new(segment));
        Ok(())
    }
}

/// Waits for the housekeeper's file; the reason when there is no room on the disk.
fn take_spare(shared: &Shared) -> Result<File, String> {
    let mut spare = shared.spare.lock();
    loop {
        match &*spare {
            Spare::Failed(reason) => return Err(reason.clone()),
            Spare::Ready(_) => {
                if let Spare::Ready(file) = std::mem::replace(&mut *spare, Spare::Taken) {
                    return Ok(file);
                }
            }
            Spare::Wanted => {
                *spare = Spare::Overdue;
                shared.spare_changed.notify_all();
            }
            Spare::Overdue | Spare::Taken => shared.spare_changed.wait(&mut spare),
        }
    }
}

/// The header is durable before the file gets the name by which it is found.
fn begin(shared: &Shared, file: &File, header: SegmentHeader) -> std::io::Result<(Segment, Arc<View>)> {
    file.write_all_at(&header.encode(), 0)?;
    file.sync_data()?;
    let path = segment_path(&shared.dir, header.number);
    std::fs::rename(shared.dir.join("spare"), &path)?;
    sync_dir(&shared.dir)?;
    let chunks = RwLock::new(vec![Vec::new(); header.bases.len()]);
    let view = Arc::new(View { map: View::map(file)?, chunks });
    Ok((Segment { path, header, view: Mutex::new(Arc::downgrade(&view)) }, view))
}

/// Ends the process when a thread of the log panics: whoever appends would wait for it for ever.
pub(super) struct EndsProcess;

impl Drop for EndsProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kontorion: a thread of the event log broke off, the process ends");
            std::process::abort()
        }
    }
}

/// Nobody knows what the disk holds after a failed write or sync, and a second sync may lie: the process ends, and the
/// next start finds out (rule A6).
fn end_process(shared: &Shared, error: &std::io::Error) -> ! {
    tracing::error!(error = %error, log.path = %shared.dir.display(), "writing the event log failed: the process ends");
    // The log's own line may be lost with the process.
    eprintln!("kontorion: writing the event log in {} failed, the process ends: {error}", shared.dir.display());
    std::process::abort()
}
