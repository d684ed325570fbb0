//! Reading one partition: from memory when it keeps up, else through the map of the segments.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::super::{LogError, LogRecord, Origin, Partition, PartitionReader};
use super::segment::{ChunkHeader, payloads};
use super::shared::{ChunkRef, PartitionState, Shared, View, damaged};
use super::tail::Found;

/// The reader in charge of a partition.
pub(super) struct LocalReader {
    shared: Arc<Shared>,
    partition: Partition,
    /// Offset of the next record that is handed out.
    next: u64,
    /// Records from `next` on that were read from a file with those before.
    ahead: VecDeque<Bytes>,
    /// The segment that was read last stays in memory: to map it again and find its chunks is dear.
    view: Option<Arc<View>>,
    /// Ends when another reader took over.
    number: u64,
    grown: watch::Receiver<u64>,
}

impl LocalReader {
    pub fn new(shared: Arc<Shared>, partition: Partition, from: u64) -> Result<Self, LogError> {
        let state = shared.partition(partition)?;
        let number = state.reader.fetch_add(1, Ordering::AcqRel) + 1;
        let grown = state.grown.subscribe();
        // The reader before it is waiting, perhaps: it must see that it was replaced.
        state.grown.send_modify(|_| ());
        Ok(Self { shared, partition, next: from, ahead: VecDeque::new(), view: None, number, grown })
    }

    fn state(&self) -> &PartitionState {
        &self.shared.partitions[self.partition as usize]
    }

    fn in_charge(&self) -> Result<(), LogError> {
        let replaced = self.state().reader.load(Ordering::Acquire) != self.number;
        if replaced || self.shared.stopped.load(Ordering::Acquire) {
            return Err(LogError::Revoked(self.partition));
        }
        Ok(())
    }

    fn hand_out(&mut self, payloads: impl IntoIterator<Item = Bytes>) -> Vec<LogRecord> {
        let first = self.next;
        let numbered = (first..).zip(payloads);
        let records: Vec<LogRecord> = numbered
            .map(|(offset, payload)| LogRecord { offset, payload, origin: Origin::Own, logged_at_ms: None })
            .collect();
        self.next += records.len() as u64;
        records
    }
}

#[async_trait]
impl PartitionReader for LocalReader {
    async fn next(&mut self, max: usize) -> Result<Vec<LogRecord>, LogError> {
        let max = max.max(1);
        loop {
            self.in_charge()?;
            if !self.ahead.is_empty() {
                let ahead: Vec<Bytes> = self.ahead.drain(..max.min(self.ahead.len())).collect();
                return Ok(self.hand_out(ahead));
            }
            self.grown.mark_unchanged();
            let found = self.state().tail.lock().read(self.next, max);
            match found {
                Found::Records(records) => {
                    self.view = None;
                    return Ok(self.hand_out(records));
                }
                Found::InFile => {
                    let (shared, partition, next) = (self.shared.clone(), self.partition, self.next);
                    // Pages that are not in memory block the thread.
                    let read = tokio::task::spawn_blocking(move || read_file(&shared, partition, next, max));
                    let read = read.await.map_err(|error| LogError::Transient {
                        operation: "reading the event log".to_owned(),
                        source: error.into(),
                    })??;
                    self.ahead = read.records;
                    self.view = Some(read.view);
                }
                // The sender lives as long as the log that this reader holds.
                Found::Nothing => drop(self.grown.changed().await),
            }
        }
    }
}

struct Read {
    records: VecDeque<Bytes>,
    view: Arc<View>,
}

/// The records of one segment from an offset on: whole chunks, until there are `wanted`.
fn read_file(shared: &Shared, partition: Partition, from: u64, wanted: usize) -> Result<Read, LogError> {
    let gone = || {
        let (first, end) = (shared.first(partition), shared.partitions[partition as usize].tail.lock().end());
        LogError::OutOfRange { partition, wanted: from, first, end }
    };
    let (segment, next) = shared.segment_of(partition, from).ok_or_else(gone)?;
    let view = segment.view(next.as_deref())?;
    let places = places(&view, partition, from, wanted);
    let mut records = VecDeque::with_capacity(wanted);
    for place in places {
        let chunk = ChunkHeader::read(&view.map, place.pos as usize, shared.seed)
            .filter(|chunk| chunk.partition == partition && chunk.base == place.base)
            .ok_or_else(|| damaged(&segment.path, place.pos as usize))?;
        let range = place.pos as usize..place.pos as usize + chunk.len();
        let bytes = Bytes::from_owner(ChunkBytes { view: view.clone(), range });
        let skip = from.saturating_sub(chunk.base) as usize;
        records.extend(payloads(&bytes).skip(skip).map(|range| bytes.slice(range)));
    }
    if records.is_empty() {
        return Err(damaged(&segment.path, 0));
    }
    Ok(Read { records, view })
}

/// The chunks from the one that holds `from` until `wanted` records are there, as far as the segment goes.
fn places(view: &View, partition: Partition, from: u64, wanted: usize) -> Vec<ChunkRef> {
    let chunks = view.chunks.read();
    let chunks = &chunks[partition as usize];
    let start = chunks.partition_point(|chunk| chunk.base <= from).saturating_sub(1);
    let until = from + wanted as u64;
    chunks[start..].iter().take_while(|chunk| chunk.base < until).copied().collect()
}

/// One chunk of a segment; keeps the segment in memory.
struct ChunkBytes {
    view: Arc<View>,
    range: Range<usize>,
}

impl AsRef<[u8]> for ChunkBytes {
    fn as_ref(&self) -> &[u8] {
        &self.view.map[self.range.clone()]
    }
}
