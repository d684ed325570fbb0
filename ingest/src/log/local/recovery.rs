//! Opening a directory: which segments there are, and where the last one ends.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::super::LogError;
use super::meta::{LogMeta, segment_numbers, segment_path};
use super::segment::{ChunkHeader, SegmentHeader, aligned, seed};
use super::shared::{ChunkRef, Segment, View, damaged};

/// Where writing goes on.
pub(super) struct Recovered {
    pub segments: VecDeque<Arc<Segment>>,
    /// The segment that is being written; `None` for a new log.
    pub active: Option<Active>,
    /// Offset that the next record of each partition gets.
    pub ends: Vec<u64>,
    /// Number of the last group commit.
    pub commit: u64,
}

/// The segment that is being written.
pub(super) struct Active {
    pub file: File,
    pub view: Arc<View>,
    /// Where the next chunk begins.
    pub pos: usize,
}

/// Reads the headers of all segments and the chunks of the last one. A torn tail is cut: the records in it were never
/// acknowledged, because their sync had not returned. Damage before acknowledged records is an error.
pub(super) fn recover(dir: &Path, meta: &LogMeta) -> Result<Recovered, LogError> {
    let failed =
        |error: std::io::Error| LogError::Unusable(format!("opening the event log {}: {error}", dir.display()));
    let mut segments = VecDeque::new();
    for number in segment_numbers(dir).map_err(failed)? {
        let header = read_header(dir, number, meta)?;
        let last = segments.back().map(|last: &Arc<Segment>| &last.header);
        if last
            .is_some_and(|last| last.number + 1 != number || header.bases.iter().zip(&last.bases).any(|(a, b)| a < b))
        {
            return Err(LogError::Unusable(format!(
                "a segment before number {number} of {} is missing",
                dir.display()
            )));
        }
        let path = segment_path(dir, number);
        segments.push_back(Arc::new(Segment { path, header, view: Mutex::new(Weak::new()) }));
    }
    let Some(last) = segments.back().cloned() else {
        return Ok(Recovered { segments, active: None, ends: vec![0; meta.partitions as usize], commit: 0 });
    };
    let found = scan(&last, seed(meta.id)).map_err(failed)?;
    if let Some(pos) = found.damage {
        return Err(damaged(&last.path, pos));
    }
    *last.view.lock() = Arc::downgrade(&found.active.view);
    Ok(Recovered { segments, active: Some(found.active), ends: found.ends, commit: found.commit })
}

fn read_header(dir: &Path, number: u64, meta: &LogMeta) -> Result<SegmentHeader, LogError> {
    let path = segment_path(dir, number);
    let mut page = vec![0; SegmentHeader::len(meta.partitions)];
    File::open(&path)
        .and_then(|file| file.read_exact_at(&mut page, 0))
        .map_err(|error| LogError::Unusable(format!("reading {}: {error}", path.display())))?;
    let header = SegmentHeader::decode(&page, meta.id, meta.partitions)
        .map_err(|error| LogError::Unusable(format!("{}: {error}", path.display())))?;
    if header.number != number {
        return Err(LogError::Unusable(format!("{} is segment {} by its header", path.display(), header.number)));
    }
    Ok(header)
}

struct Scanned {
    active: Active,
    ends: Vec<u64>,
    commit: u64,
    /// Where acknowledged records were damaged.
    damage: Option<usize>,
}

/// Walks over the chunks of the last segment and leaves only zeros behind the last good one, durably.
fn scan(segment: &Segment, seed: u64) -> std::io::Result<Scanned> {
    let file = OpenOptions::new().read(true).write(true).open(&segment.path)?;
    let map = View::map(&file)?;
    let mut ends = segment.header.bases.clone();
    let mut commit = segment.header.commit;
    let mut chunks = vec![Vec::new(); ends.len()];
    let mut pos = SegmentHeader::len(ends.len() as u32);
    while let Some(chunk) = ChunkHeader::read(&map, pos, seed) {
        let Some(end) = ends.get_mut(chunk.partition as usize).filter(|end| **end == chunk.base) else { break };
        *end += u64::from(chunk.count);
        commit = chunk.commit;
        chunks[chunk.partition as usize].push(ChunkRef { base: chunk.base, pos: pos as u32 });
        pos = aligned(pos + chunk.len());
    }
    let pos = pos.min(map.len());
    let used = used(&map, pos);
    let damage = later_commit(&map[..used], pos, commit, seed).then_some(pos);
    if damage.is_none() && used > pos {
        cut(&file, pos, used, segment)?;
    }
    // What survived a killed process may still be in memory only: readers see synced records (rule A6).
    file.sync_data()?;
    let view = Arc::new(View { map, chunks: RwLock::new(chunks) });
    Ok(Scanned { active: Active { file, view, pos }, ends, commit, damage })
}

/// Whether a chunk behind `pos` belongs to a group after the one that can be torn: then the damage is not a torn tail.
fn later_commit(map: &[u8], pos: usize, commit: u64, seed: u64) -> bool {
    (pos..map.len()).step_by(8).any(|at| {
        ChunkHeader::peek(map, at).is_some_and(|chunk| chunk.commit >= commit + 2)
            && ChunkHeader::read(map, at, seed).is_some()
    })
}

/// Where the zeros begin that reach to the end of the segment, not before `pos`.
fn used(map: &[u8], pos: usize) -> usize {
    const BLOCK: usize = 4096;
    let zeros = [0; BLOCK];
    let mut end = map.len();
    // Whole blocks first: a segment is mostly zeros when it is young.
    while end >= pos + BLOCK && map[end - BLOCK..end] == zeros {
        end -= BLOCK;
    }
    map[pos..end].iter().rposition(|byte| *byte != 0).map_or(pos, |last| pos + last + 1)
}

/// Overwrites a torn tail with zeros: a good chunk in it must never follow what is written next.
fn cut(file: &File, pos: usize, used: usize, segment: &Segment) -> std::io::Result<()> {
    tracing::warn!(
        segment.path = %segment.path.display(),
        segment.position_bytes = pos,
        torn_bytes = used - pos,
        "cut a torn tail of the event log: its records were never acknowledged"
    );
    file.write_all_at(&vec![0; used - pos], pos as u64)
}
