//! Which usage events were counted, and where (being built: signatures are final).

use std::path::Path;

use chrono::TimeDelta;
use domain::{Instant, Position, UsageEventId};

use crate::usage::CountedId;

/// How large an index becomes.
#[derive(Clone, Debug)]
pub struct DedupOptions {
    /// Ids that are expected within the horizon: sizes the first filter. More are taken too.
    pub capacity: u64,
    /// How long ids are kept at least (rule B4).
    pub horizon: TimeDelta,
    /// Memory for blocks of the index.
    pub cache_bytes: u64,
}

impl Default for DedupOptions {
    fn default() -> Self {
        Self { capacity: 4_000_000, horizon: TimeDelta::days(40), cache_bytes: 16 << 20 }
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

/// The ids that one partition has counted. Its calls block: call it from a blocking thread, or for small batches.
pub struct DedupIndex {
    horizon: TimeDelta,
}

impl DedupIndex {
    /// Opens the index of a directory, or makes an empty one.
    ///
    /// # Errors
    /// When the directory cannot be used, or is open already.
    pub fn open(_dir: &Path, options: DedupOptions, _now: Instant) -> Result<Self, DedupError> {
        Ok(Self { horizon: options.horizon })
    }

    /// What is known of each id, in the order asked. `None` means "not counted" only for an event whose timestamp is
    /// younger than the [`Self::horizon`], and only up to [`Self::high_water`] (rules B3, B4).
    ///
    /// # Errors
    /// Trouble of the disk.
    pub fn lookup(&self, ids: &[UsageEventId]) -> Result<Vec<Option<CountedId>>, DedupError> {
        Ok(vec![None; ids.len()])
    }

    /// Writes ids and the high-water position in one atomic batch (rule B3). An id that is known with a smaller position
    /// keeps it (rule B2). The high-water position never goes back.
    ///
    /// # Errors
    /// Trouble of the disk: nothing was written.
    pub fn insert(
        &self,
        _entries: &[(UsageEventId, CountedId)],
        _high_water: Position,
        _now: Instant,
    ) -> Result<(), DedupError> {
        Ok(())
    }

    /// Every id counted at or below this position is in the index (within the horizon); `None` for a new index.
    #[must_use]
    pub fn high_water(&self) -> Option<Position> {
        None
    }

    /// Drops what is older than the horizon; returns the number of days dropped. Cheap when there is nothing to do.
    ///
    /// # Errors
    /// Trouble of the disk.
    pub fn forget(&self, _now: Instant) -> Result<usize, DedupError> {
        Ok(0)
    }

    /// Unknown ids with a timestamp before `now - horizon` are looked up in the usage store (rule B4).
    #[must_use]
    pub fn horizon(&self) -> TimeDelta {
        self.horizon
    }

    /// About how many ids are held.
    #[must_use]
    pub fn approximate_len(&self) -> u64 {
        0
    }

    /// Bytes of memory in use: filters, pinned blocks, caches.
    #[must_use]
    pub fn memory(&self) -> u64 {
        0
    }
}
