//! Which usage events were counted, and where (rules B2 to B4, P4).
//!
//! One index per partition, in a directory of its own:
//!
//! ```text
//! DIR/index/             fjall: keyspace `meta` (high-water position) and one keyspace of ids per bucket
//! DIR/BUCKET.N.filter    Bloom filters of a bucket, each twice as large as the one before
//! ```
//!
//! New ids, nearly all there are, pay one probe per filter in memory and no disk read. A bucket takes the ids that are
//! counted in some days, so that forgetting drops whole keyspaces and rewrites nothing. An event is counted after it
//! happened, so what is younger than the horizon is always here; a day is added for clocks that run ahead. A bucket also
//! ends before its tables would be merged: merging random ids rewrites them again and again (measured: 3 core-µs an id at
//! 8 million, more than all the rest), a filter more to probe costs hardly anything. Rejected: one keyspace with a time in
//! the key (every look-up would need it), deletion id by id (compaction would rewrite the rest).

mod bucket;
mod filter;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use chrono::TimeDelta;
use domain::{Instant, Position, UsageEventId};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions};
use parking_lot::{Mutex, RwLock};

use crate::usage::CountedId;
use bucket::{Bucket, Days};
use filter::Hashed;

/// Into how many buckets the horizon is cut: more give disk back earlier, fewer make look-ups cheaper.
const BUCKETS: i64 = 5;
/// Tables of the index of which a bucket consists at most, so that they are never merged.
const BUCKET_TABLES_MAX: u64 = bucket::L0_TABLES as u64 - 2;
/// What an id takes while it is in memory (measured: 88).
const MEMTABLE_BYTES_PER_ID: u64 = 96;
/// Days that a clock of a producer may run ahead.
const AHEAD_DAYS: i64 = 1;
/// Journal of the index: bounds what a start has to read again.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
const HIGH_WATER: &[u8] = b"high_water";
/// There once ids have been dropped.
const FORGOTTEN: &[u8] = b"forgotten";

/// How large an index becomes.
#[derive(Clone, Debug)]
pub struct DedupOptions {
    /// Ids that are expected within the horizon: sizes the first filters. More are taken too.
    pub capacity: u64,
    /// How long ids are kept at least (rule B4).
    pub horizon: TimeDelta,
    /// Memory for blocks of the index.
    pub cache_bytes: u64,
    /// Memory for ids that are not yet in a table of the index; there may be a few times as much for a moment.
    pub memtable_bytes: u64,
}

impl Default for DedupOptions {
    fn default() -> Self {
        Self { capacity: 4_000_000, horizon: TimeDelta::days(40), cache_bytes: 16 << 20, memtable_bytes: 16 << 20 }
    }
}

/// Why the index did not answer: trouble of the disk. Nothing is known about the ids that were asked for.
#[derive(Debug, thiserror::Error)]
#[error("deduplication index, {operation}: {source}")]
pub struct DedupError {
    /// What was being done.
    pub operation: String,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

fn failed(operation: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DedupError {
    DedupError { operation: operation.to_owned(), source: source.into() }
}

/// The ids that one partition has counted. Its calls block: call it from a blocking thread, or for small batches.
pub struct DedupIndex {
    dir: PathBuf,
    options: DedupOptions,
    db: Database,
    meta: Keyspace,
    /// Oldest first. New ids go to the last one.
    buckets: RwLock<Vec<Arc<Bucket>>>,
    /// Held while writing: one batch at a time.
    high_water: Mutex<Option<Position>>,
    has_forgotten: AtomicBool,
    /// Set by the first trouble of the disk: the storage under the index takes no more writes after one that failed.
    is_broken: AtomicBool,
    stop: Arc<AtomicBool>,
    filling: Mutex<Option<JoinHandle<()>>>,
}

impl DedupIndex {
    /// Opens the index of a directory, or makes an empty one. After a power loss the filters are filled again in the
    /// background, while look-ups read the index.
    ///
    /// # Errors
    /// When the directory cannot be used, or is open already.
    pub fn open(dir: &Path, options: DedupOptions, now: Instant) -> Result<Self, DedupError> {
        std::fs::create_dir_all(dir).map_err(|error| failed("making the directory", error))?;
        let db = Database::builder(dir.join("index"))
            .cache_size(options.cache_bytes)
            .worker_threads(1)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .journal_compression(CompressionType::None)
            .open()
            .map_err(|error| failed("opening the index", error))?;
        let meta = db.keyspace("meta", KeyspaceCreateOptions::default).map_err(|e| failed("opening the index", e))?;
        let high_water = read_high_water(&meta)?;
        let has_forgotten =
            meta.contains_key(FORGOTTEN).map_err(|error| failed("reading whether ids were dropped", error))?;
        let index = Self {
            dir: dir.to_owned(),
            options,
            db,
            meta,
            buckets: RwLock::default(),
            high_water: Mutex::new(high_water),
            has_forgotten: AtomicBool::new(has_forgotten),
            is_broken: AtomicBool::new(false),
            stop: Arc::default(),
            filling: Mutex::default(),
        };
        index.open_buckets()?;
        index.forget(now)?;
        index.fill();
        Ok(index)
    }

    fn open_buckets(&self) -> Result<(), DedupError> {
        let mut days: Vec<Days> = self.db.list_keyspace_names().iter().filter_map(|name| Days::parse(name)).collect();
        days.sort_unstable();
        let mut buckets = self.buckets.write();
        for days in days {
            buckets.push(Arc::new(self.bucket(days)?));
        }
        Ok(())
    }

    fn bucket(&self, days: Days) -> Result<Bucket, DedupError> {
        let capacity = (self.options.capacity / BUCKETS.unsigned_abs()).min(self.bucket_ids_max());
        Bucket::open(&self.db, &self.dir, days, self.options.memtable_bytes, capacity)
    }

    /// Fills filters that cannot be trusted, in the background.
    fn fill(&self) {
        let hollow: Vec<Arc<Bucket>> = self.buckets.read().iter().filter(|b| !b.is_whole()).cloned().collect();
        if hollow.is_empty() {
            return;
        }
        tracing::warn!(index.path = %self.dir.display(), "filling the filters of the deduplication index again");
        let stop = self.stop.clone();
        let thread = std::thread::Builder::new().name("dedup-filter".to_owned()).spawn(move || {
            for bucket in hollow {
                if let Err(error) = bucket.fill(&stop) {
                    // Look-ups go on reading the index: slower, not wrong.
                    tracing::error!(error = %error, "a filter stays unused until the next start");
                }
            }
        });
        match thread {
            Ok(thread) => *self.filling.lock() = Some(thread),
            Err(error) => tracing::error!(error = %error, "filters stay unused until the next start"),
        }
    }

    /// What is known of each id, in the order asked. `None` means "not counted" only for an event whose timestamp is
    /// younger than the [`Self::horizon`], and only up to [`Self::high_water`] (rules B3, B4).
    ///
    /// # Errors
    /// Trouble of the disk.
    pub fn lookup(&self, ids: &[UsageEventId]) -> Result<Vec<Option<CountedId>>, DedupError> {
        self.watched(self.lookup_in_buckets(ids))
    }

    fn watched<T>(&self, outcome: Result<T, DedupError>) -> Result<T, DedupError> {
        self.is_broken.fetch_or(outcome.is_err(), Ordering::AcqRel);
        outcome
    }

    /// Whether it must be opened anew before it is used again.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    fn lookup_in_buckets(&self, ids: &[UsageEventId]) -> Result<Vec<Option<CountedId>>, DedupError> {
        let hashed: Vec<Hashed> = ids.iter().map(|id| Hashed::new(*id)).collect();
        let mut found: Vec<Option<CountedId>> = vec![None; ids.len()];
        let mut may = Vec::with_capacity(ids.len());
        let mut candidates: Vec<usize> = Vec::new();
        for bucket in self.buckets.read().iter() {
            bucket.probe(&hashed, &mut may);
            candidates.clear();
            candidates.extend((0..ids.len()).filter(|at| may[*at]));
            // In order of keys: neighbours share blocks.
            candidates.sort_unstable_by_key(|at| ids[*at]);
            for at in &candidates {
                if let Some(counted) = bucket.get(ids[*at])? {
                    keep_smallest(&mut found[*at], counted);
                }
            }
        }
        Ok(found)
    }

    /// Writes ids and the high-water position in one atomic batch (rule B3). An id that is known with a smaller position
    /// keeps it (rule B2). The high-water position never goes back.
    ///
    /// # Errors
    /// Trouble of the disk: nothing was written.
    pub fn insert(
        &self,
        entries: &[(UsageEventId, CountedId)],
        high_water: Position,
        now: Instant,
    ) -> Result<(), DedupError> {
        self.watched(self.write(entries, high_water, now))
    }

    fn write(
        &self,
        entries: &[(UsageEventId, CountedId)],
        high_water: Position,
        now: Instant,
    ) -> Result<(), DedupError> {
        let mut reached = self.high_water.lock();
        let high_water = reached.map_or(high_water, |before| before.max(high_water));
        let mut batch = self.db.batch();
        if !entries.is_empty() {
            let bucket = self.newest(day(now))?;
            for (id, counted) in new_in(&bucket, entries)? {
                batch.insert(&bucket.keyspace, *id.0.as_bytes(), bucket::encode(counted));
            }
        }
        batch.insert(&self.meta, HIGH_WATER, high_water.as_i64().to_le_bytes());
        batch.commit().map_err(|error| failed("writing ids", error))?;
        *reached = Some(high_water);
        Ok(())
    }

    /// Ids after which a bucket ends before its days are over.
    fn bucket_ids_max(&self) -> u64 {
        (BUCKET_TABLES_MAX * self.options.memtable_bytes / MEMTABLE_BYTES_PER_ID).max(1)
    }

    /// The bucket for ids that are counted on this day. Called by one writer at a time.
    fn newest(&self, today: i64) -> Result<Arc<Bucket>, DedupError> {
        let newest = self.buckets.read().last().cloned();
        if let Some(newest) = newest.as_ref().filter(|b| today < b.days.end && b.count() < self.bucket_ids_max()) {
            return Ok(newest.clone());
        }
        let number = newest.as_ref().map_or(0, |newest| newest.days.number + 1);
        let length = (self.options.horizon.num_days() / BUCKETS).max(1);
        let bucket = Arc::new(self.bucket(Days { number, start: today, end: today + length })?);
        self.buckets.write().push(bucket.clone());
        if let Some(full) = newest {
            // It takes no more ids: its memory is better spent on the new one.
            full.keyspace.rotate_memtable().map_err(|error| failed("ending a bucket", error))?;
        }
        self.forget_before(today)?;
        Ok(bucket)
    }

    /// Every id counted at or below this position is in the index (within the horizon); `None` for a new index.
    #[must_use]
    pub fn high_water(&self) -> Option<Position> {
        *self.high_water.lock()
    }

    /// Drops what is older than the horizon; returns the number of buckets dropped. Cheap when there is nothing to do.
    ///
    /// # Errors
    /// Trouble of the disk.
    pub fn forget(&self, now: Instant) -> Result<usize, DedupError> {
        self.forget_before(day(now))
    }

    fn forget_before(&self, today: i64) -> Result<usize, DedupError> {
        let kept_from = today - self.options.horizon.num_days() - AHEAD_DAYS;
        let mut buckets = self.buckets.write();
        if buckets.iter().any(|bucket| bucket.days.end <= kept_from) {
            self.meta.insert(FORGOTTEN, []).map_err(|error| failed("noting that ids are dropped", error))?;
            self.has_forgotten.store(true, Ordering::Release);
        }
        let (old, kept) = buckets.drain(..).partition::<Vec<_>, _>(|bucket| bucket.days.end <= kept_from);
        *buckets = kept;
        for bucket in &old {
            tracing::info!(index.path = %self.dir.display(), days = ?bucket.days, "dropping ids beyond the horizon");
            self.db.delete_keyspace(bucket.keyspace.clone()).map_err(|error| failed("dropping old ids", error))?;
            bucket.remove_filters().map_err(|error| failed("dropping an old filter", error))?;
        }
        Ok(old.len())
    }

    /// Unknown ids with a timestamp before `now - horizon` are looked up in the usage store (rule B4).
    #[must_use]
    pub fn horizon(&self) -> TimeDelta {
        self.options.horizon
    }

    /// Whether an id may have been counted that is not here any more; what is missing otherwise was never counted.
    #[must_use]
    pub fn has_forgotten(&self) -> bool {
        self.has_forgotten.load(Ordering::Acquire)
    }

    /// Whether filters are being filled after a power loss, so that every look-up reads the index.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        self.buckets.read().iter().any(|bucket| !bucket.is_whole())
    }

    /// About how many ids are held.
    #[must_use]
    pub fn approximate_len(&self) -> u64 {
        self.buckets.read().iter().map(|bucket| bucket.count()).sum()
    }

    /// About how many bytes of memory are in use: filters, caches, what is not yet in a table.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let filters: u64 = self.buckets.read().iter().map(|bucket| bucket.memory()).sum();
        filters + self.db.cache_size() + self.db.write_buffer_size()
    }
}

impl Drop for DedupIndex {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.filling.lock().take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("filling a filter ended by a panic");
        }
        self.buckets.read().iter().for_each(|bucket| bucket.close());
    }
}

/// What of a batch is to be written to a bucket, in order of ids, each once with its smallest position. The bucket's
/// filter knows the ids before the index does: a process killed between the two leaves bits without ids, never ids
/// without bits.
fn new_in(
    bucket: &Bucket,
    entries: &[(UsageEventId, CountedId)],
) -> Result<Vec<(UsageEventId, CountedId)>, DedupError> {
    let mut entries = entries.to_vec();
    entries.sort_unstable_by_key(|(id, counted)| (*id, counted.position));
    entries.dedup_by_key(|(id, _)| *id);
    let hashed: Vec<Hashed> = entries.iter().map(|(id, _)| Hashed::new(*id)).collect();
    let mut may = Vec::with_capacity(entries.len());
    bucket.probe(&hashed, &mut may);
    let mut new = Vec::with_capacity(entries.len());
    let mut unannounced = Vec::with_capacity(entries.len());
    for ((entry, hashed), may) in entries.into_iter().zip(hashed).zip(may) {
        let known = if may { bucket.get(entry.0)? } else { None };
        if known.is_some_and(|known| known.position <= entry.1.position) {
            continue;
        }
        if known.is_none() {
            unannounced.push(hashed);
        }
        new.push(entry);
    }
    bucket.announce(&unannounced)?;
    Ok(new)
}

fn keep_smallest(found: &mut Option<CountedId>, counted: CountedId) {
    if found.is_none_or(|found| counted.position < found.position) {
        *found = Some(counted);
    }
}

fn read_high_water(meta: &Keyspace) -> Result<Option<Position>, DedupError> {
    let Some(value) = meta.get(HIGH_WATER).map_err(|error| failed("reading the high-water position", error))? else {
        return Ok(None);
    };
    let number = value[..].try_into().map(i64::from_le_bytes);
    number
        .map(|number| Some(Position::from_i64(number)))
        .map_err(|error| failed("reading the high-water position", error))
}

fn day(instant: Instant) -> i64 {
    instant.timestamp().div_euclid(86_400)
}
