//! A blocked Bloom filter in a memory-mapped file: whether an id may be in the index, for one cache miss (P4).
//!
//! Every id sets one bit in each of the eight words of one 64-byte block; at twelve bits an id about one absent id in
//! two hundred looks present. Bits live in the page cache, so they survive a killed process; after a power loss pages of
//! any age may be missing, so the header remembers whether the file was closed in order, and under which boot of the
//! machine it was written.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use domain::UsageEventId;
use memmap2::MmapRaw;

const MAGIC: u64 = u64::from_le_bytes(*b"KTNBLM01");
const PAGE: usize = 4096;
const BLOCK: usize = 64;
const WORDS: usize = BLOCK / 8;
const BITS_PER_ID: u64 = 12;

// Words of the header page.
const AT_MAGIC: usize = 0;
const AT_CAPACITY: usize = 1;
const AT_BOOT: usize = 2;
const AT_STATE: usize = 3;
const AT_COUNT: usize = 4;

/// Ids are missing: the filter is being filled from the index.
const FILLING: u64 = 0;
/// Written under the boot that the header names.
const IN_USE: u64 = 1;
/// Closed in order: whole, whatever happened since.
const CLOSED: u64 = 2;

/// Place of an id in any filter.
#[derive(Clone, Copy)]
pub(super) struct Hashed {
    block: u64,
    bits: u64,
}

impl Hashed {
    pub fn new(id: UsageEventId) -> Self {
        let (high, low) = id.0.as_u64_pair();
        let block = folded(high ^ 0x9e37_79b9_7f4a_7c15, low ^ 0xd1b5_4a32_d192_ed03);
        Self { block, bits: folded(block ^ 0x8cb9_2ba7_2f3d_8dd7, low ^ 0xa076_1d64_78bd_642f) }
    }

    /// The bit in word `word` of the block.
    fn mask(self, word: usize) -> u64 {
        1 << ((self.bits >> (6 * word)) & 63)
    }
}

/// Both halves of the product: every bit of the input reaches every bit of the result.
fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Where a filter is made.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// One file of bits.
pub(super) struct Filter {
    path: PathBuf,
    map: MmapRaw,
    blocks: u64,
    capacity: u64,
    /// Whether absent bits mean absent ids.
    whole: AtomicBool,
}

impl Filter {
    /// Makes an empty filter for so many ids. A `whole` one belongs to an empty index; one that is not is filled with what
    /// the index holds, then [`Self::filled`].
    pub fn create(path: &Path, capacity: u64, whole: bool) -> std::io::Result<Self> {
        let blocks = blocks(capacity);
        let length = PAGE as u64 + blocks * BLOCK as u64;
        // It gets its name when it is one: of a process that is killed before, nothing is left that looks like a torn filter.
        let unfinished = unfinished(path);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&unfinished)?;
        // Room is taken now: a write to a map without room behind it would kill the process.
        // SAFETY: the call takes a descriptor that is open and two numbers.
        let code = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length.cast_signed()) };
        if code != 0 {
            return Err(std::io::Error::from_raw_os_error(code));
        }
        let map = MmapRaw::map_raw(&file)?;
        let filter = Self { path: path.to_owned(), map, blocks, capacity, whole: AtomicBool::new(whole) };
        filter.word(AT_CAPACITY).store(capacity, Ordering::Relaxed);
        filter.word(AT_MAGIC).store(MAGIC, Ordering::Relaxed);
        filter.mark(if whole { IN_USE } else { FILLING })?;
        std::fs::rename(unfinished, path)?;
        Ok(filter)
    }

    /// Opens a filter; `None` when it does not hold every id that was added: absent, torn, or hit by a power loss.
    pub fn open(path: &Path) -> std::io::Result<Option<Self>> {
        let file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        if length < (PAGE + BLOCK) as u64 {
            return Ok(None);
        }
        let filter = Self {
            path: path.to_owned(),
            map: MmapRaw::map_raw(&file)?,
            blocks: (length - PAGE as u64) / BLOCK as u64,
            capacity: 0,
            whole: AtomicBool::new(true),
        };
        let capacity = filter.word(AT_CAPACITY).load(Ordering::Relaxed);
        let is_ours = filter.word(AT_MAGIC).load(Ordering::Relaxed) == MAGIC && blocks(capacity) == filter.blocks;
        let is_whole = match filter.word(AT_STATE).load(Ordering::Relaxed) {
            CLOSED => true,
            IN_USE => filter.word(AT_BOOT).load(Ordering::Relaxed) == boot()?,
            _ => false,
        };
        if !is_ours || !is_whole {
            return Ok(None);
        }
        // Durable before the first bit changes: from here on only an orderly end, or this boot, vouches for the bits.
        filter.mark(IN_USE)?;
        Ok(Some(Self { capacity, ..filter }))
    }

    /// Writes the state and makes it durable.
    fn mark(&self, state: u64) -> std::io::Result<()> {
        self.word(AT_BOOT).store(boot()?, Ordering::Relaxed);
        self.word(AT_STATE).store(state, Ordering::Release);
        self.map.flush_range(0, PAGE)
    }

    /// Everything the index holds has been added.
    pub fn filled(&self) -> std::io::Result<()> {
        self.mark(IN_USE)?;
        self.whole.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends in order: the next open need not fill it again.
    pub fn close(&self) -> std::io::Result<()> {
        if !self.is_whole() {
            return Ok(());
        }
        self.map.flush()?;
        self.mark(CLOSED)
    }

    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ids that it was made for.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Ids that were added.
    pub fn count(&self) -> u64 {
        self.word(AT_COUNT).load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Adds an id.
    pub fn add(&self, id: Hashed) {
        let first = self.block(id);
        for word in 0..WORDS {
            self.word(first + word).fetch_or(id.mask(word), Ordering::Relaxed);
        }
        self.word(AT_COUNT).fetch_add(1, Ordering::Relaxed);
    }

    /// Whether an id may have been added; without a branch between the words, so that the probes of a batch overlap.
    pub fn may_contain(&self, id: Hashed) -> bool {
        let first = self.block(id);
        let missing = (0..WORDS)
            .fold(0, |missing, word| missing | (id.mask(word) & !self.word(first + word).load(Ordering::Relaxed)));
        missing == 0
    }

    /// Number of the first word of an id's block.
    fn block(&self, id: Hashed) -> usize {
        let block = (u128::from(id.block) * u128::from(self.blocks)) >> 64;
        PAGE / 8 + block as usize * WORDS
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!((index + 1) * 8 <= self.map.len());
        // SAFETY: the index is within the map (a header word, or a block below `blocks`, from which the length of the file
        // was computed), a map begins at a page, and all access to it goes through atomics.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(index)) }
    }
}

fn blocks(capacity: u64) -> u64 {
    capacity.saturating_mul(BITS_PER_ID).div_ceil(8 * BLOCK as u64).max(1)
}

/// Names this boot of the machine.
fn boot() -> std::io::Result<u64> {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id")?;
    Ok(xxhash_rust::xxh3::xxh3_64(&id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn hashed(number: u128) -> Hashed {
        Hashed::new(UsageEventId(Uuid::new_v5(&Uuid::nil(), &number.to_le_bytes())))
    }

    #[test]
    fn finds_what_was_added_and_little_else() {
        let dir = tempfile::tempdir().unwrap();
        let filter = Filter::create(&dir.path().join("f"), 50_000, true).unwrap();
        (0..50_000).for_each(|number| filter.add(hashed(number)));
        assert!((0..50_000).all(|number| filter.may_contain(hashed(number))));
        let wrong = (50_000..150_000).filter(|number| filter.may_contain(hashed(*number))).count();
        assert!(wrong < 1000, "{wrong} of 100,000 absent ids look present");
        assert_eq!(filter.count(), 50_000);
    }

    #[test]
    fn ids_that_differ_in_few_bits_spread() {
        let dir = tempfile::tempdir().unwrap();
        let filter = Filter::create(&dir.path().join("f"), 10_000, true).unwrap();
        let hashed = |number: u128| Hashed::new(UsageEventId(Uuid::from_u128((0x0199_0000_0000_7000 << 64) + number)));
        (0..10_000).for_each(|number| filter.add(hashed(number)));
        let wrong = (10_000..110_000).filter(|number| filter.may_contain(hashed(*number))).count();
        assert!(wrong < 1500, "{wrong} of 100,000 absent ids look present");
    }

    #[test]
    fn only_this_boot_or_an_orderly_end_vouches_for_the_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(Filter::open(&path).unwrap().is_none());
        let filter = Filter::create(&path, 100, true).unwrap();
        filter.add(hashed(1));
        // A killed process: nothing is written in order, the boot is the same.
        drop(filter);
        let filter = Filter::open(&path).unwrap().unwrap();
        assert!(filter.may_contain(hashed(1)) && filter.count() == 1 && filter.capacity() == 100);
        // A power loss: another boot.
        filter.word(AT_BOOT).fetch_add(1, Ordering::Relaxed);
        drop(filter);
        assert!(Filter::open(&path).unwrap().is_none());
        // An orderly end before the power loss.
        let filter = Filter::create(&path, 100, true).unwrap();
        filter.close().unwrap();
        filter.word(AT_BOOT).fetch_add(1, Ordering::Relaxed);
        drop(filter);
        assert!(Filter::open(&path).unwrap().is_some());
        // A filter that was being filled.
        Filter::create(&path, 100, false).unwrap().close().unwrap();
        assert!(Filter::open(&path).unwrap().is_none());
    }
}
