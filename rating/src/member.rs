//! The parts of a window's state that can be many (rule C6): distinct values of UNIQUE_COUNT meters and of dedup keys, and
//! running totals of sub-windows and of event variables. They are rows of their own, and a checkpoint writes those that
//! changed, set and not added.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use domain::MeterId;

/// One row of `meter_member`: how many counted events of the window have this value or this key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// The meter.
    pub meter_id: MeterId,
    /// xxh3 (128 bits) of the rating key, and of the value where it is one.
    pub hash: u128,
    /// Counted events; 0 is a row that can be deleted.
    pub count: u64,
    /// The running total, where the row is one.
    pub data: Option<Vec<u8>>,
}

/// The keys are hashes already: their low half is as good as any further hash.
#[derive(Default)]
pub(crate) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 << 8) | u64::from(byte);
        }
    }
    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64; // the low half, on purpose
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Member {
    count: u64,
    changed: bool,
}

/// The distinct values of one meter in one window, with the list of those that changed since the last checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Members {
    members: HashMap<u128, Member, BuildHasherDefault<Identity>>,
    changed: Vec<u128>,
}

impl Members {
    /// Puts a stored member in; it does not count as changed.
    pub fn load(&mut self, hash: u128, count: u64) {
        self.members.insert(hash, Member { count, changed: false });
    }

    /// Counted events with this value.
    #[must_use]
    pub fn count(&self, hash: u128) -> u64 {
        self.members.get(&hash).map_or(0, |member| member.count)
    }

    /// Counts one more event; `true` when the value is new.
    pub fn add(&mut self, hash: u128) -> bool {
        let member = self.members.entry(hash).or_default();
        member.count += 1;
        if !member.changed {
            member.changed = true;
            self.changed.push(hash);
        }
        member.count == 1
    }

    /// Values that only `old` has are counted no more: they change to 0.
    pub fn supersede(&mut self, old: &Self) {
        for hash in old.members.keys() {
            if self.members.contains_key(hash) {
                continue;
            }
            self.members.insert(*hash, Member { count: 0, changed: true });
            self.changed.push(*hash);
        }
    }

    /// Number of distinct values that were counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.values().filter(|member| member.count > 0).count()
    }

    /// Whether no value was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a checkpoint writes: the members that changed since the last call, with their present counts.
    pub fn take_changed(&mut self) -> Vec<(u128, u64)> {
        let hashes = std::mem::take(&mut self.changed);
        hashes
            .into_iter()
            .filter_map(|hash| {
                let member = self.members.get_mut(&hash)?;
                member.changed = false;
                Some((hash, member.count))
            })
            .collect()
    }
}
