//! TIME_WEIGHTED: sum of value × time held until the next event, in hours (meters.md 5).
//!
//! A report holds its value until the next one of the same [`Chain`], whatever the order in which they come; what it holds
//! is rated by the versions of its own instant. The sum is kept in the states of the rating keys and corrected by
//! neighbours: a report that comes late takes over from the one before it. A report lasts into the next window, where it is
//! a point at its start.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{Currency, Instant, Quantity, UsageEventId};
use smallvec::SmallVec;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::binding::CompiledBinding;
use crate::entry::RatingKey;
use crate::error::{RatingError, Result};
use crate::meter::LastKey;
use domain::wide::{U256, div_half_even, signed};

/// Microseconds of an hour.
const HOUR: u128 = 3_600_000_000;
const SECOND: i128 = 1_000_000;
const SECOND_MICROS: i64 = 1_000_000;
const AREA: RatingError = RatingError::Overflow("the time-weighted sum");

/// What the reports of one rating key have held: value × time, and the report that still holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Σ units × whole seconds.
    pub(crate) seconds: i128,
    /// Σ units × microseconds beyond whole seconds. Apart, because together they would leave 128 bits.
    pub(crate) micros: i128,
    /// Since when the last report holds which value; `None` when a later report belongs to another key.
    pub(crate) open: Option<(Instant, Quantity)>,
}

impl Held {
    pub(crate) fn add(&mut self, value: Quantity, from: Instant, to: Instant) -> Result<()> {
        let micros = (to - from).num_microseconds().ok_or(AREA)?;
        let part = |time: i64| value.units().checked_mul(time.into());
        let sums = part(micros / SECOND_MICROS) // in 64 bits, where a division is one instruction
            .zip(part(micros % SECOND_MICROS))
            .and_then(|(seconds, micros)| Some((self.seconds.checked_add(seconds)?, self.micros.checked_add(micros)?)));
        (self.seconds, self.micros) = sums.ok_or(AREA)?;
        Ok(())
    }

    /// An upper bound of the hours up to the last report, in units of a quantity.
    pub(crate) fn bound(&self) -> u128 {
        self.seconds.unsigned_abs().saturating_add(self.micros.unsigned_abs())
    }

    /// Puts what was held in two windows together; at most one of them still holds.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn merge(&mut self, other: &Self) -> Result<()> {
        let sums = self.seconds.checked_add(other.seconds).zip(self.micros.checked_add(other.micros));
        (self.seconds, self.micros) = sums.ok_or(AREA)?;
        self.open = self.open.or(other.open);
        Ok(())
    }

    /// What was held up to an instant, where it is taken over by the next window.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn closed(mut self, at: Instant) -> Result<Self> {
        if let Some((since, value)) = self.open.take() {
            self.add(value, since, at.max(since))?;
        }
        Ok(self)
    }

    /// The sum in hours up to an instant, rounded half-even to 12 fraction digits; `None`: up to the last report.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn hours(mut self, until: Option<Instant>) -> Result<Quantity> {
        if let (Some((since, value)), Some(until)) = (self.open, until)
            && until > since
        {
            self.add(value, since, until)?;
        }
        let (mut seconds, mut micros) =
            (self.seconds.checked_add(self.micros / SECOND).ok_or(AREA)?, self.micros % SECOND);
        if seconds > 0 && micros < 0 {
            (seconds, micros) = (seconds - 1, micros + SECOND);
        } else if seconds < 0 && micros > 0 {
            (seconds, micros) = (seconds + 1, micros - SECOND);
        }
        let total = U256::product(seconds.unsigned_abs(), SECOND.unsigned_abs());
        let total = total.checked_add(U256::product(micros.unsigned_abs(), 1)).ok_or(AREA)?;
        let hours = div_half_even(total, HOUR).and_then(|units| signed(units, seconds < 0 || micros < 0));
        hours.map(Quantity::from_units).ok_or(AREA)
    }
}

/// Reports that follow each other: those of one binding (of one component, where it has some) and of the
/// same price key, wallet, unit and variables.
pub(crate) type Chain = u128;

/// The chain of a rating key.
pub(crate) fn chain_of(binding: &CompiledBinding, price_key: Option<&str>, key: &RatingKey) -> Chain {
    let mut bytes = SmallVec::<[u8; 128]>::new();
    bytes.extend_from_slice(b"chain");
    bytes.extend_from_slice(binding.binding_id.0.as_bytes());
    for currency in [&key.wallet_currency, &key.unit_currency] {
        bytes.extend_from_slice(currency.as_ref().map_or("---", Currency::as_str).as_bytes());
    }
    bytes.extend_from_slice(&key.variables.unwrap_or_default().to_le_bytes());
    bytes.extend_from_slice(price_key.unwrap_or_default().as_bytes());
    if let Some(component) = binding.component() {
        bytes.extend_from_slice(&component.id().to_le_bytes());
    }
    xxh3_128(&bytes)
}

/// One report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) at: LastKey,
    pub(crate) value: Quantity,
    /// The rating key that it counts under.
    pub(crate) key: RatingKey,
}

/// Where a window begins: the value that was held before it.
#[must_use]
pub(crate) fn carried_at(window_start: Instant) -> LastKey {
    (window_start, Instant::UNIX_EPOCH, UsageEventId(Uuid::nil()))
}

/// The reports of one chain in one window, in order of time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    /// Value, and place of the running total among `keys`: there are many reports of few totals.
    points: BTreeMap<LastKey, (Quantity, u32)>,
    keys: Vec<RatingKey>,
    /// Reports that are not yet stored, and reports that are gone.
    changed: Vec<LastKey>,
    /// Whether there are others than were carried into the next window.
    pub(crate) has_news: bool,
}

/// The reports before and after an instant.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Neighbours {
    pub(crate) before: Option<Point>,
    pub(crate) after: Option<Instant>,
}

impl Timeline {
    fn point(&self, (at, (value, key)): (&LastKey, &(Quantity, u32))) -> Point {
        Point { at: *at, value: *value, key: self.keys[*key as usize] }
    }

    fn value_of(&mut self, point: &Point) -> (Quantity, u32) {
        let known = self.keys.iter().rposition(|key| *key == point.key);
        let place = known.unwrap_or_else(|| {
            self.keys.push(point.key);
            self.keys.len() - 1
        });
        (point.value, u32::try_from(place).unwrap_or(u32::MAX)) // a window has thousands of keys at most
    }

    /// Whether the running total that came last is this one, so that its chain need not be hashed anew.
    pub(crate) fn is_latest(&self, key: &RatingKey) -> bool {
        self.keys.last() == Some(key)
    }

    pub(crate) fn neighbours(&self, at: LastKey) -> Neighbours {
        // Most reports come behind all others.
        if let Some(last) = self.points.last_key_value().filter(|(last, _)| **last < at) {
            return Neighbours { before: Some(self.point(last)), after: None };
        }
        let after = self.points.range((std::ops::Bound::Excluded(at), std::ops::Bound::Unbounded)).next();
        let before = self.points.range(..at).next_back().map(|found| self.point(found));
        Neighbours { before, after: after.map(|(at, _)| at.0) }
    }

    pub(crate) fn get(&self, at: LastKey) -> Option<Point> {
        self.points.get_key_value(&at).map(|found| self.point(found))
    }

    pub(crate) fn last(&self) -> Option<Point> {
        self.points.last_key_value().map(|found| self.point(found))
    }

    pub(crate) fn insert(&mut self, point: Point) {
        let value = self.value_of(&point);
        self.points.insert(point.at, value);
        self.changed.push(point.at);
        self.has_news = true;
    }

    pub(crate) fn remove(&mut self, at: LastKey) {
        self.points.remove(&at);
        self.changed.push(at);
        self.has_news = true;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Point> {
        self.points.iter().map(|found| self.point(found))
    }

    /// The reports that have a say in windows that begin at an instant or later: those behind it, and the one that holds there.
    fn since(&self, from: Instant) -> impl Iterator<Item = Point> {
        let behind = (from, DateTime::<Utc>::MAX_UTC, UsageEventId(Uuid::max()));
        let first = self.points.range(..=behind).next_back().map_or(behind, |(at, _)| *at);
        self.points.range(first..).map(|found| self.point(found))
    }

    /// What was held between two instants, by the running total of the report that held it.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn held_within(&self, from: Instant, to: Instant) -> Result<Vec<(RatingKey, Held)>> {
        let mut held: Vec<(RatingKey, Held)> = Vec::new();
        let mut reports = self.since(from).take_while(|point| point.at.0 < to).peekable();
        while let Some(point) = reports.next() {
            let until = reports.peek().map_or(to, |next| next.at.0);
            add_to(&mut held, point.key, point.value, (point.at.0.max(from), until.max(from)))?;
        }
        Ok(held)
    }

    /// The reports that no window which begins at an instant or later needs.
    pub(crate) fn before(&self, from: Instant) -> Vec<LastKey> {
        let first = self.since(from).next().map(|point| point.at);
        first.map_or_else(Vec::new, |first| self.points.range(..first).map(|(at, _)| *at).collect())
    }

    /// Puts a stored report in.
    pub(crate) fn load(&mut self, point: Point) {
        let value = self.value_of(&point);
        self.points.insert(point.at, value);
    }

    /// Reports to be stored, and those (without a value) whose rows are gone.
    pub(crate) fn take_changed(&mut self) -> Vec<(LastKey, Option<Point>)> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        changed.into_iter().map(|at| (at, self.get(at))).collect()
    }

    /// Reports that only `old` has are gone; all of these are to be stored.
    pub(crate) fn supersede(&mut self, old: &Self) {
        self.changed.extend(&old.changed);
        self.changed.extend(old.points.keys().filter(|at| !self.points.contains_key(at)));
    }
}

/// Adds a value that was held from one instant to another to what is known of a running total.
///
/// # Errors
/// `Overflow`.
pub(crate) fn add_to(
    held: &mut Vec<(RatingKey, Held)>,
    key: RatingKey,
    value: Quantity,
    (from, to): (Instant, Instant),
) -> Result<()> {
    match held.iter_mut().find(|(known, _)| *known == key) {
        Some((_, known)) => known.add(value, from, to),
        None => {
            held.push((key, Held::default()));
            add_to(held, key, value, (from, to))
        }
    }
}

/// What a row of a report is stored under.
pub(crate) fn point_hash(chain: Chain, at: LastKey) -> u128 {
    let mut bytes = SmallVec::<[u8; 64]>::new();
    bytes.extend_from_slice(b"report");
    bytes.extend_from_slice(&chain.to_le_bytes());
    bytes.extend_from_slice(&at.0.timestamp_micros().to_le_bytes());
    bytes.extend_from_slice(&at.1.timestamp_micros().to_le_bytes());
    bytes.extend_from_slice(at.2.0.as_bytes());
    xxh3_128(&bytes)
}

/// A report takes its place: what it holds, and what the one before it still holds. Times before the start of the window
/// count from there.
///
/// # Errors
/// `Overflow`; nothing has changed then for the caller, who keeps the old states.
pub(crate) fn put(held: &mut Held, at: Instant, value: Quantity, after: Option<Instant>, start: Instant) -> Result<()> {
    match after {
        Some(after) => held.add(value, at.max(start), after.max(start)),
        None => {
            held.open = Some((at.max(start), value));
            Ok(())
        }
    }
}

/// The report before it ends where the new one begins.
pub(crate) fn cut(held: &mut Held, before: &Point, at: Instant, after: Option<Instant>, start: Instant) -> Result<()> {
    match after {
        Some(after) => held.add(before.value, after.max(start), at.max(start)), // negative: what it held behind `at`
        None => {
            held.open = None;
            held.add(before.value, before.at.0.max(start), at.max(start))
        }
    }
}

/// A report is taken out again: the reverse of [`put`].
pub(crate) fn unput(
    held: &mut Held,
    at: Instant,
    value: Quantity,
    after: Option<Instant>,
    start: Instant,
) -> Result<()> {
    match after {
        Some(after) => held.add(value, after.max(start), at.max(start)),
        None => {
            held.open = None;
            Ok(())
        }
    }
}

/// The report before it holds on: the reverse of [`cut`].
pub(crate) fn uncut(
    held: &mut Held,
    before: &Point,
    at: Instant,
    after: Option<Instant>,
    start: Instant,
) -> Result<()> {
    match after {
        Some(after) => held.add(before.value, at.max(start), after.max(start)),
        None => {
            held.add(before.value, at.max(start), before.at.0.max(start))?;
            held.open = Some((before.at.0.max(start), before.value));
            Ok(())
        }
    }
}
