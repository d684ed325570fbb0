//! The bytes of a segment.
//!
//! A segment begins with a header page: what it belongs to, and which offset each partition had reached. Chunks follow,
//! each aligned to eight bytes, the rest is zeros:
//!
//! | bytes | header of a chunk, little-endian |
//! |---|---|
//! | 8 | XXH3 of all that follows in the chunk, seeded with the log's id |
//! | 4 | `KTNC` |
//! | 4 | partition |
//! | 8 | offset of the first record |
//! | 8 | number of the group commit, growing by one per sync |
//! | 4 | number of records |
//! | 4 | length of the body: per record four bytes of length and the payload |

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::{LogError, Partition};

/// Length of a chunk's header.
pub(super) const CHUNK_HEADER: usize = 40;
/// Bytes that a record takes beside its payload.
pub(super) const RECORD_HEADER: usize = 4;
/// A body is cut at this length, so that a reader need not take in more at once.
pub(super) const CHUNK_BODY_MAX: usize = 1 << 20;
const SEGMENT_MAGIC: &[u8; 8] = b"KTNLOG01";
const CHUNK_MAGIC: u32 = u32::from_le_bytes(*b"KTNC");
const PAGE: usize = 4096;
/// Bytes of the header page before the offsets of the partitions.
const FIXED: usize = 56;

/// Rounds up to where the next chunk may begin.
pub(super) fn aligned(pos: usize) -> usize {
    pos.next_multiple_of(8)
}

/// Seed of all checksums of a log: what another log wrote is never taken for one's own.
pub(super) fn seed(log: Uuid) -> u64 {
    xxh3_64_with_seed(log.as_bytes(), 0)
}

/// What the header page of a segment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub log: Uuid,
    /// From 1, without a gap.
    pub number: u64,
    /// When the segment before it was full, in milliseconds since 1970.
    pub created_ms: i64,
    /// Number of the last group commit before it.
    pub commit: u64,
    /// The offset that the next record of each partition gets.
    pub bases: Vec<u64>,
}

impl SegmentHeader {
    /// Length of the header page of a log with so many partitions.
    pub fn len(partitions: u32) -> usize {
        (FIXED + 8 * partitions as usize + 8).next_multiple_of(PAGE)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(FIXED + 8 * self.bases.len() + 8);
        page.extend_from_slice(SEGMENT_MAGIC);
        page.extend_from_slice(self.log.as_bytes());
        page.extend_from_slice(&self.number.to_le_bytes());
        page.extend_from_slice(&self.created_ms.to_le_bytes());
        page.extend_from_slice(&self.commit.to_le_bytes());
        page.extend_from_slice(&(self.bases.len() as u64).to_le_bytes());
        for base in &self.bases {
            page.extend_from_slice(&base.to_le_bytes());
        }
        let checksum = xxh3_64_with_seed(&page, seed(self.log));
        page.extend_from_slice(&checksum.to_le_bytes());
        page
    }

    /// Reads the header page of the log with this id and number of partitions.
    pub fn decode(page: &[u8], log: Uuid, partitions: u32) -> Result<Self, LogError> {
        let length = FIXED + 8 * partitions as usize;
        let damaged = |what: &str| LogError::Unusable(format!("the header of a segment {what}"));
        let body = page.get(..length).ok_or_else(|| damaged("is cut"))?;
        if page.get(length..length + 8) != Some(&xxh3_64_with_seed(body, seed(log)).to_le_bytes()[..]) {
            return Err(damaged("is damaged or belongs to another log"));
        }
        if &body[..8] != SEGMENT_MAGIC || u64_at(body, 48) != u64::from(partitions) {
            return Err(damaged("has another format"));
        }
        Ok(Self {
            log,
            number: u64_at(body, 24),
            created_ms: u64_at(body, 32).cast_signed(),
            commit: u64_at(body, 40),
            bases: body[FIXED..].chunks_exact(8).map(|bytes| u64_at(bytes, 0)).collect(),
        })
    }
}

/// Header of a chunk, without its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkHeader {
    pub partition: Partition,
    pub base: u64,
    pub commit: u64,
    pub count: u32,
    pub body_len: u32,
}

impl ChunkHeader {
    /// Writes the header before a body that stands in `chunk` already, after `CHUNK_HEADER` bytes of room.
    pub fn seal(&self, chunk: &mut [u8], seed: u64) {
        chunk[8..12].copy_from_slice(&CHUNK_MAGIC.to_le_bytes());
        chunk[12..16].copy_from_slice(&self.partition.to_le_bytes());
        chunk[16..24].copy_from_slice(&self.base.to_le_bytes());
        chunk[24..32].copy_from_slice(&self.commit.to_le_bytes());
        chunk[32..36].copy_from_slice(&self.count.to_le_bytes());
        chunk[36..40].copy_from_slice(&self.body_len.to_le_bytes());
        let checksum = xxh3_64_with_seed(&chunk[8..], seed);
        chunk[..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// What stands at `pos`, if it looks like a chunk that ends within `bytes`. The checksum is not looked at.
    pub fn peek(bytes: &[u8], pos: usize) -> Option<Self> {
        let header = bytes.get(pos..)?.get(..CHUNK_HEADER)?;
        if u32_at(header, 8) != CHUNK_MAGIC {
            return None;
        }
        let found = Self {
            partition: u32_at(header, 12),
            base: u64_at(header, 16),
            commit: u64_at(header, 24),
            count: u32_at(header, 32),
            body_len: u32_at(header, 36),
        };
        (found.len() <= bytes.len() - pos).then_some(found)
    }

    /// As [`Self::peek`], with a checksum that is right.
    pub fn read(bytes: &[u8], pos: usize, seed: u64) -> Option<Self> {
        let found = Self::peek(bytes, pos)?;
        let chunk = &bytes[pos..pos + found.len()];
        (xxh3_64_with_seed(&chunk[8..], seed) == u64_at(chunk, 0)).then_some(found)
    }

    /// Length of header and body.
    pub fn len(&self) -> usize {
        CHUNK_HEADER + self.body_len as usize
    }
}

/// The places of the payloads in a chunk whose checksum was found right.
pub(super) fn payloads(chunk: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut pos = CHUNK_HEADER;
    std::iter::from_fn(move || {
        let start = pos + RECORD_HEADER;
        let length = u32_at(chunk.get(pos..start)?, 0) as usize;
        pos = start + length;
        (pos <= chunk.len()).then_some(start..pos)
    })
}

// The slices below are cut to length by their callers; a short one is a defect and may panic.

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_header_reads_back_and_knows_its_log() {
        let log = Uuid::now_v7();
        let header = SegmentHeader { log, number: 7, created_ms: 1_700_000_000_000, commit: 99, bases: vec![1, 0, 5] };
        let page = header.encode();
        assert!(page.len() <= SegmentHeader::len(3));
        assert_eq!(SegmentHeader::decode(&page, log, 3).unwrap(), header);
        assert!(SegmentHeader::decode(&page, Uuid::now_v7(), 3).is_err());
        assert!(SegmentHeader::decode(&page, log, 2).is_err());
        let mut bent = page;
        bent[33] ^= 1;
        assert!(SegmentHeader::decode(&bent, log, 3).is_err());
    }

    #[test]
    fn a_chunk_is_refused_after_any_flip_of_a_bit() {
        let mut chunk = vec![0; CHUNK_HEADER];
        for payload in [&b"first"[..], b"", b"third"] {
            chunk.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            chunk.extend_from_slice(payload);
        }
        let header =
            ChunkHeader { partition: 3, base: 41, commit: 8, count: 3, body_len: (chunk.len() - CHUNK_HEADER) as u32 };
        header.seal(&mut chunk, 5);
        assert_eq!(ChunkHeader::read(&chunk, 0, 5), Some(header));
        let found: Vec<&[u8]> = payloads(&chunk).map(|range| &chunk[range]).collect();
        assert_eq!(found, [&b"first"[..], b"", b"third"]);
        for bit in 0..chunk.len() * 8 {
            chunk[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ChunkHeader::read(&chunk, 0, 5), None, "bit {bit}");
            chunk[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
