//! What counts once in a window that goes on (`crate::running`): distinct values of UNIQUE_COUNT, and dedup keys of COUNT, SUM
//! and AVG.
//!
//! A [`Sighting`] says under which running total a value or a key counts: in a SLIDING window that of the latest step in which
//! it was seen, in a LIFETIME window that of the earliest billing window. So the totals of all steps within a window add up to
//! what is distinct in it, nothing is searched, and there is one sighting for each value, not for each event. What an
//! earlier billing window has seen is carried beside what this one has seen itself, because either may change alone.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use domain::{MeterFunction, Quantity, UsageEvent};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use crate::binding::CompiledBinding;
use crate::entry::{RatingKey, push_value};
use crate::error::{RatingError, Result};
use crate::member::Identity;
use crate::span::Span;

/// A value or a key, and where it counts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sighting {
    /// The running total.
    pub(crate) key: Arc<RatingKey>,
    /// What its event brought to a sum; 0 for a distinct value.
    pub(crate) value: Quantity,
}

/// What sightings bring to a running total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) count: u64,
    pub(crate) sum: Quantity,
}

impl Share {
    /// That of one sighting.
    pub(crate) fn of(value: Quantity) -> Self {
        Self { count: 1, sum: value }
    }
}

/// Where one value was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// In this billing window; of several the one that counts.
    pub(crate) own: Option<Sighting>,
    /// In earlier billing windows.
    pub(crate) carried: Option<Sighting>,
}

impl Seen {
    /// Whether the own sighting counts: the carried one is as late, or there are no steps.
    pub(crate) fn counts_own(&self) -> bool {
        let step = |sighting: &Sighting| sighting.key.sub_window;
        self.own.as_ref().is_some_and(|own| self.carried.as_ref().is_none_or(|other| step(own) > step(other)))
    }

    /// The one that counts.
    pub(crate) fn counting(&self) -> Option<&Sighting> {
        if self.counts_own() { self.own.as_ref() } else { self.carried.as_ref() }
    }

    /// A carried one that counts no more, because the value was seen later.
    fn superseded(&self) -> Option<&Sighting> {
        self.carried.as_ref().filter(|_| self.counts_own())
    }
}

/// Whose sighting it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Whose {
    Own,
    Carried,
}

/// The sightings of one meter in one billing window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sightings {
    seen: HashMap<u128, Seen, BuildHasherDefault<Identity>>,
    /// Keys that sightings share.
    keys: Vec<Arc<RatingKey>>,
    /// Sightings that are not yet stored, and those that are gone.
    changed: Vec<(u128, Whose)>,
    /// What has changed since it was carried into the next billing window; `None`: too much to tell one by one.
    news: Option<Vec<u128>>,
    /// What carried sightings that count no more have brought to the totals that were carried with them.
    superseded: HashMap<RatingKey, Share>,
}

impl Sightings {
    pub(crate) fn get(&self, hash: u128) -> Seen {
        self.seen.get(&hash).cloned().unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, &Seen)> {
        self.seen.iter().map(|(hash, seen)| (*hash, seen))
    }

    /// A sighting under a key that others may have, too.
    pub(crate) fn sighting(&mut self, key: RatingKey, value: Quantity) -> Sighting {
        let found = self.keys.iter().rposition(|known| **known == key);
        let index = found.unwrap_or_else(|| {
            if self.keys.len() == self.keys.capacity() {
                self.keys.retain(|key| Arc::strong_count(key) > 1);
            }
            self.keys.push(Arc::new(key));
            self.keys.len() - 1
        });
        Sighting { key: Arc::clone(&self.keys[index]), value }
    }

    /// Puts a stored sighting in.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn load(&mut self, hash: u128, whose: Whose, sighting: Sighting) -> Result<()> {
        self.put(hash, whose, Some(sighting)).map(|_| ())
    }

    /// Puts a sighting in the place of the one before; whether it is another one.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn set(&mut self, hash: u128, whose: Whose, sighting: Option<Sighting>) -> Result<bool> {
        let is_changed = self.put(hash, whose, sighting)?;
        if is_changed {
            self.changed.push((hash, whose));
            self.news = self.news.take().filter(|news| news.len() <= self.seen.len());
            if let Some(news) = &mut self.news {
                news.push(hash);
            }
        }
        Ok(is_changed)
    }

    fn put(&mut self, hash: u128, whose: Whose, sighting: Option<Sighting>) -> Result<bool> {
        let old = self.get(hash);
        let mut new = old.clone();
        let place = match whose {
            Whose::Own => &mut new.own,
            Whose::Carried => &mut new.carried,
        };
        if *place == sighting {
            return Ok(false);
        }
        *place = sighting;
        if let Some(gone) = old.superseded() {
            self.supersede(gone, false)?;
        }
        if let Some(more) = new.superseded() {
            self.supersede(more, true)?;
        }
        match new {
            Seen { own: None, carried: None } => self.seen.remove(&hash),
            new => self.seen.insert(hash, new),
        };
        Ok(true)
    }

    fn supersede(&mut self, sighting: &Sighting, is_more: bool) -> Result<()> {
        let share = self.superseded.entry(*sighting.key).or_default();
        let sum = if is_more { share.sum.checked_add(sighting.value) } else { share.sum.checked_sub(sighting.value) };
        share.sum = sum.map_err(|_| RatingError::Overflow("the sum of the meter"))?;
        share.count = if is_more { share.count + 1 } else { share.count.saturating_sub(1) };
        if share.count == 0 {
            self.superseded.remove(&*sighting.key);
        }
        Ok(())
    }

    /// What counts no more of a total that was carried.
    pub(crate) fn superseded(&self, key: &RatingKey) -> Option<Share> {
        self.superseded.get(key).copied()
    }

    /// What is to be carried.
    pub(crate) fn take_news(&mut self) -> News {
        match self.news.replace(Vec::new()) {
            None => News { is_whole: true, counting: self.all() },
            Some(mut news) => {
                news.sort_unstable();
                news.dedup();
                let counting = news.into_iter().map(|hash| (hash, self.get(hash).counting().cloned())).collect();
                News { is_whole: false, counting }
            }
        }
    }

    /// Everything is news, for a window that knows nothing of this one.
    pub(crate) fn tell_all(&mut self) {
        self.news = None;
    }

    fn all(&self) -> Vec<(u128, Option<Sighting>)> {
        self.iter().map(|(hash, seen)| (hash, seen.counting().cloned())).collect()
    }

    /// What earlier billing windows have seen, as this one knows it.
    pub(crate) fn carried(&self) -> News {
        let carried = |(hash, seen): (u128, &Seen)| Some((hash, Some(seen.carried.clone()?)));
        News { is_whole: true, counting: self.iter().filter_map(carried).collect() }
    }

    /// Drops the sightings under totals that are gone.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(&RatingKey) -> bool) -> Result<()> {
        let mut gone = Vec::new();
        for (hash, seen) in &self.seen {
            for (whose, sighting) in [(Whose::Own, &seen.own), (Whose::Carried, &seen.carried)] {
                if sighting.as_ref().is_some_and(|sighting| is_gone(&sighting.key)) {
                    gone.push((*hash, whose));
                }
            }
        }
        gone.into_iter().try_for_each(|(hash, whose)| self.set(hash, whose, None).map(|_| ()))
    }

    /// Sightings to be stored, and those (without one) whose rows are gone.
    pub(crate) fn take_changed(&mut self) -> Vec<(u128, Whose, Option<Sighting>)> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let stored = |(hash, whose)| {
            let seen = self.get(hash);
            (hash, whose, if whose == Whose::Own { seen.own } else { seen.carried })
        };
        changed.into_iter().map(stored).collect()
    }

    /// Sightings that only `old` has are gone, and what it has not stored yet is to be stored from here.
    pub(crate) fn supersede_rows(&mut self, old: &Self) {
        self.changed.extend(&old.changed);
        for (hash, seen) in &old.seen {
            let now = self.get(*hash);
            let is_gone = |old: &Option<Sighting>, now: &Option<Sighting>| old.is_some() && now.is_none();
            if is_gone(&seen.own, &now.own) {
                self.changed.push((*hash, Whose::Own));
            }
            if is_gone(&seen.carried, &now.carried) {
                self.changed.push((*hash, Whose::Carried));
            }
        }
    }
}

/// The sightings of a meter that count where the next billing window begins.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// Whether there are no others.
    pub(crate) is_whole: bool,
    /// By value; `None`: it counts no more.
    pub(crate) counting: Vec<(u128, Option<Sighting>)>,
}

/// What the row of a sighting is stored under.
pub(crate) fn row_hash(hash: u128, whose: Whose) -> u128 {
    match whose {
        Whose::Own => hash,
        Whose::Carried => !hash,
    }
}

/// Whether dedup keys of a binding are members of the billing window. In windows that go on they are sightings where a repeat
/// would change the value; where it would not, as long as it says the same, steps do without them.
pub(crate) fn has_key_members(binding: &CompiledBinding) -> bool {
    match binding.span() {
        Span::Sliding { .. } => false,
        Span::Lifetime => !is_sighted(binding) || binding.meter.function == MeterFunction::UniqueCount,
        Span::BillingPeriod | Span::Calendar { .. } | Span::Tumbling { .. } => true,
    }
}

/// Whether a binding counts values or keys once over billing windows and steps.
pub(crate) fn is_sighted(binding: &CompiledBinding) -> bool {
    let counts_keys = matches!(binding.meter.function, MeterFunction::Count | MeterFunction::Sum | MeterFunction::Avg);
    let is_distinct = binding.meter.function == MeterFunction::UniqueCount;
    binding.span().is_running() && (is_distinct || counts_keys && binding.meter.dedup_key_path.is_some())
}

/// What an event is counted once by at a sighted binding: in all billing windows, steps and versions the same.
pub(crate) fn hash_of(binding: &CompiledBinding, key: &RatingKey, event: &UsageEvent) -> Option<u128> {
    if !is_sighted(binding) {
        return None;
    }
    let mut bytes = SmallVec::<[u8; 128]>::new();
    bytes.extend_from_slice(b"seen");
    bytes.extend_from_slice(binding.binding_id.0.as_bytes());
    if binding.meter.function == MeterFunction::UniqueCount {
        push_value(&mut bytes, binding.meter.input(event).ok()?.distinct?);
        for currency in [&key.wallet_currency, &key.unit_currency] {
            bytes.extend_from_slice(currency.as_ref().map_or("---", domain::Currency::as_str).as_bytes());
        }
        if let Some(component) = binding.component() {
            bytes.extend_from_slice(&component.part_id().to_le_bytes());
        }
    } else {
        bytes.extend_from_slice(b"dedup key");
        push_value(&mut bytes, binding.meter.dedup_key(event)?);
        if let Some(component) = binding.component() {
            bytes.extend_from_slice(&component.id().to_le_bytes());
        }
    }
    Some(xxh3_128(&bytes))
}
