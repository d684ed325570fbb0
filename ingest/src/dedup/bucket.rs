//! The ids that were counted within some days: one keyspace of the index and its filters, dropped together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::{Position, UsageEventId};
use fjall::compaction::Leveled;
use fjall::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PartitioningPolicy, PinningPolicy,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use parking_lot::RwLock;

use super::filter::{Filter, Hashed, unfinished};
use super::{DedupError, failed};
use crate::usage::CountedId;

/// Bits an id in the index's own filters, which serve while ours is being filled.
const INDEX_FILTER_BITS: f32 = 10.0;
/// The smallest filter: one page.
const FILTER_CAPACITY_MIN: u64 = 2_500;

/// Tables that gather before they are merged: the index slows writers down at twenty.
pub(super) const L0_TABLES: u8 = 16;

/// Days, counted from 1970, whose ids a bucket takes; the end is exclusive. Several buckets may share days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Days {
    /// Order of creation.
    pub number: u64,
    pub start: i64,
    pub end: i64,
}

impl Days {
    /// As the keyspace is called.
    fn name(self) -> String {
        format!("ids-{}-{}-{}", self.number, self.start, self.end)
    }

    /// From the name of a keyspace; `None` for another one.
    pub fn parse(name: &str) -> Option<Self> {
        let (number, days) = name.strip_prefix("ids-")?.split_once('-')?;
        let (start, end) = days.split_once('-')?;
        Some(Self { number: number.parse().ok()?, start: start.parse().ok()?, end: end.parse().ok()? })
    }
}

pub(super) struct Bucket {
    pub days: Days,
    pub keyspace: Keyspace,
    dir: PathBuf,
    /// The last one takes new ids; never empty.
    filters: RwLock<Vec<Arc<Filter>>>,
}

impl Bucket {
    /// Opens a bucket, or makes it. Its filter is empty and not whole when the one it had cannot be trusted: then
    /// [`Self::fill`] it.
    pub fn open(db: &Database, dir: &Path, days: Days, memtable_bytes: u64, capacity: u64) -> Result<Self, DedupError> {
        let is_new = !db.keyspace_exists(&days.name());
        let keyspace =
            db.keyspace(&days.name(), || options(memtable_bytes)).map_err(|e| failed("opening a bucket", e))?;
        let bucket = Self { days, keyspace, dir: dir.to_owned(), filters: RwLock::default() };
        let filters = bucket.open_filters(is_new, capacity).map_err(|e| failed("opening a filter", e))?;
        *bucket.filters.write() = filters;
        Ok(bucket)
    }

    fn open_filters(&self, is_new: bool, capacity: u64) -> std::io::Result<Vec<Arc<Filter>>> {
        let mut filters = Vec::new();
        let mut is_whole = !is_new;
        // The stack ends where a file is missing; one of them untrusted means that none knows all ids.
        while is_whole && (filters.is_empty() || self.filter_path(filters.len()).exists()) {
            match Filter::open(&self.filter_path(filters.len()))? {
                Some(filter) => filters.push(Arc::new(filter)),
                None => is_whole = false,
            }
        }
        if !is_whole {
            filters.clear();
            let known = self.keyspace.approximate_len() as u64;
            let capacity = capacity.max(known.saturating_mul(2)).max(FILTER_CAPACITY_MIN);
            self.remove_filters()?;
            filters.push(Arc::new(Filter::create(&self.filter_path(0), capacity, is_new)?));
        }
        Ok(filters)
    }

    fn filter_path(&self, level: usize) -> PathBuf {
        self.dir.join(format!("{}.{level}.filter", self.days.name()))
    }

    pub fn is_whole(&self) -> bool {
        self.filters.read().iter().all(|filter| filter.is_whole())
    }

    /// Adds every id of the index to the filter, until it is whole or `stop` is set. New ids may be added meanwhile.
    pub fn fill(&self, stop: &AtomicBool) -> Result<(), DedupError> {
        let Some(filter) = self.filters.read().first().cloned() else { return Ok(()) };
        for (number, entry) in self.keyspace.iter().enumerate() {
            if number % 1024 == 0 && stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let key = entry.key().map_err(|error| failed("filling the filter", error))?;
            if let Some(id) = id_of(&key) {
                filter.add(Hashed::new(id));
            }
        }
        filter.filled().map_err(|error| failed("filling the filter", error))
    }

    /// Marks in `may` which of the ids this bucket may hold.
    pub fn probe(&self, ids: &[Hashed], may: &mut Vec<bool>) {
        may.clear();
        let filters = self.filters.read();
        if !filters.iter().all(|filter| filter.is_whole()) {
            may.resize(ids.len(), true);
            return;
        }
        may.extend(ids.iter().map(|id| filters.iter().fold(false, |found, filter| found | filter.may_contain(*id))));
    }

    /// Adds ids to the newest filter, before they are written to the index; begins a larger filter when it is full.
    pub fn announce(&self, ids: &[Hashed]) -> Result<(), DedupError> {
        let filters = self.filters.read();
        let newest = filters.last().cloned();
        let level = filters.len();
        drop(filters);
        let Some(mut newest) = newest else { return Ok(()) };
        if newest.is_whole() && newest.count() >= newest.capacity() {
            let larger = Filter::create(&self.filter_path(level), newest.capacity().saturating_mul(2), true);
            newest = Arc::new(larger.map_err(|error| failed("enlarging the filter", error))?);
            self.filters.write().push(newest.clone());
        }
        ids.iter().for_each(|id| newest.add(*id));
        Ok(())
    }

    pub fn get(&self, id: UsageEventId) -> Result<Option<CountedId>, DedupError> {
        let found = self.keyspace.get(id.0.as_bytes()).map_err(|error| failed("looking up an id", error))?;
        found.map(|value| decode(&value)).transpose()
    }

    pub fn count(&self) -> u64 {
        self.filters.read().iter().map(|filter| filter.count()).sum()
    }

    /// Memory of the filters, ours and the index's.
    pub fn memory(&self) -> u64 {
        let ours: u64 = self.filters.read().iter().map(|filter| filter.bytes()).sum();
        ours + (self.count() as f64 * f64::from(INDEX_FILTER_BITS) / 8.0) as u64
    }

    /// Closes the filters in order.
    pub fn close(&self) {
        for filter in self.filters.read().iter() {
            if let Err(error) = filter.close() {
                tracing::warn!(error = %error, filter.path = %filter.path().display(), "the filter will be filled again");
            }
        }
        // A stack of which a file were lost with the power would deny ids: their names are durable too.
        if let Err(error) = std::fs::File::open(&self.dir).and_then(|dir| dir.sync_all()) {
            tracing::warn!(error = %error, index.path = %self.dir.display(), "the names of the filters may not be durable");
        }
    }

    /// Deletes the files of the filters.
    pub fn remove_filters(&self) -> std::io::Result<()> {
        self.filters.write().clear();
        for level in 0.. {
            // Left by a process that was killed, if it is there.
            let _ = std::fs::remove_file(unfinished(&self.filter_path(level)));
            match std::fs::remove_file(self.filter_path(level)) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn options(memtable_bytes: u64) -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(memtable_bytes)
        .compaction_strategy(Arc::new(Leveled::default().with_l0_threshold(L0_TABLES)))
        .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(
            INDEX_FILTER_BITS,
        ))))
        .filter_block_pinning_policy(PinningPolicy::all(true))
        .index_block_pinning_policy(PinningPolicy::all(true))
        .filter_block_partitioning_policy(PartitioningPolicy::all(false))
        .index_block_partitioning_policy(PartitioningPolicy::all(false))
        .data_block_compression_policy(CompressionPolicy::disabled())
        .index_block_compression_policy(CompressionPolicy::disabled())
}

/// What is stored of an id: position and hash, little-endian.
pub(super) fn encode(counted: CountedId) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&counted.position.as_i64().to_le_bytes());
    value[8..].copy_from_slice(&counted.payload_hash.to_le_bytes());
    value
}

fn decode(value: &[u8]) -> Result<CountedId, DedupError> {
    let (position, hash) = value.split_at_checked(8).ok_or_else(|| failed("reading an id", "a value is cut"))?;
    let number =
        |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).map_err(|error| failed("reading an id", error));
    Ok(CountedId { position: Position::from_i64(number(position)?.cast_signed()), payload_hash: number(hash)? })
}

fn id_of(key: &[u8]) -> Option<UsageEventId> {
    uuid::Uuid::from_slice(key).ok().map(UsageEventId)
}
