//! The state of one metering window of one subscription: meter states by rating key, members, fired thresholds.
//!
//! An event is first prepared against the state (filter, value, new meter state, thresholds), then committed; an error
//! comes out of the first step, so that nothing has changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono_tz::Tz;
use domain::period::Period;
use domain::{BindingId, BindingRole, Instant, MeterFunction, MeterId, Quantity, UsageEvent};
use smallvec::SmallVec;

use crate::binding::CompiledBinding;
use crate::entry::{Entry, RatingKey, Variables, dedup_hash, member_hash};
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::member::{MemberRow, Members};
use crate::meter::MeterState;
use crate::pricing::CompiledPrice;
use crate::state::EntryRecord;
use crate::threshold::{Breach, Evaluation, FiredThreshold, evaluate};
use crate::total::{Accrual, Rated, RatingInput, combined};

/// Where an event goes: resolved by the caller at the event's timestamp.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Binding version of the event's product and metric.
    pub binding: &'a Arc<CompiledBinding>,
    /// Price version that applies; required for a PRIMARY binding, ignored for the others.
    pub price: Option<&'a Arc<CompiledPrice>>,
    /// Start of the segment of the price context that contains the event.
    pub segment_start: Instant,
    /// Total allowance of product and metric, for thresholds in percent of it.
    pub allowance: Option<Quantity>,
    /// The billing period that counts the event.
    pub window: Period,
    /// Time zone of the subscription: calendar windows without a zone of their own are cut in it.
    pub timezone: Tz,
}

/// What became of an event at one binding.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A filter or the dedup key of the meter left it out; it stays in the event store but does not count here.
    Filtered,
    /// It was counted.
    Counted(Counted),
}

/// How an event was counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    /// Under which key.
    pub key: RatingKey,
    /// Thresholds that it crossed, ascending, one per action.
    pub breaches: Vec<Breach>,
}

/// What all entries of one binding and sub-window share.
#[derive(Clone, Debug)]
struct Observed {
    place: Place,
    /// Quantity over all keys; kept only while one version with thresholds judges.
    value: Exact,
    /// Whether several versions judged, so that parts combine and a difference is not enough.
    is_split: bool,
    fired: Vec<FiredThreshold>,
}

/// Where thresholds are evaluated: a binding, and a sub-window where its windows are shorter than the billing period.
pub type Place = (BindingId, Option<Instant>);

/// The state of one metering window of one subscription.
#[derive(Clone, Debug, Default)]
pub struct WindowState {
    entries: Vec<Entry>,
    /// Fingerprints of the keys of `entries`, side by side: a hundred price keys are searched in a few cache lines.
    fingerprints: Vec<u64>,
    observed: Vec<Observed>,
    members: Vec<(MeterId, Members)>,
    /// Keys with rows of their own that changed since the last checkpoint.
    changed: Vec<usize>,
    /// Rows of a state that this one superseded.
    gone: Vec<MemberRow>,
}

/// An event that is ready to be counted.
struct Prepared<'t> {
    key: RatingKey,
    variables: Option<Arc<Variables>>,
    target: Target<'t>,
    /// The window that its thresholds are evaluated over.
    evaluated: Period,
    slot: Option<usize>,
    state: MeterState,
    event_count: u64,
    /// Distinct value and dedup key.
    members: SmallVec<[u128; 2]>,
    /// The binding's observed value after the event, where it has thresholds.
    observed: Option<Exact>,
    evaluation: Evaluation,
}

impl Prepared<'_> {
    fn quantity(&self) -> Result<Exact> {
        Ok(self.target.binding.quantity(&self.state)?.unwrap_or(Exact::ZERO))
    }

    fn entry(&self) -> Entry {
        Entry {
            binding: Arc::clone(self.target.binding),
            price: self.target.price.cloned(),
            segment_start: self.key.segment_start,
            wallet_currency: self.key.wallet_currency,
            unit_currency: self.key.unit_currency,
            sub_window: self.key.sub_window,
            variables: self.variables.clone(),
            state: self.state,
            event_count: self.event_count,
            is_changed: false,
        }
    }

    fn place(&self) -> Place {
        (self.target.binding.binding_id, self.key.sub_window)
    }
}

impl WindowState {
    /// A window without events.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one event at one binding. The caller has sorted out duplicates and late events.
    ///
    /// # Errors
    /// `Value`, `Negative`, `Unpriced`, `Overflow`; nothing has changed then.
    pub fn apply(&mut self, event: &UsageEvent, target: Target<'_>) -> Result<Outcome> {
        Ok(match self.prepare(event, target)? {
            Some(prepared) => Outcome::Counted(self.commit(prepared)),
            None => Outcome::Filtered,
        })
    }

    /// Counts one event at all of its bindings, or at none when one of them refuses it. Outcomes are in the order of the
    /// targets, which name each binding once.
    ///
    /// # Errors
    /// As `apply`.
    pub fn apply_all(&mut self, event: &UsageEvent, targets: &[Target<'_>]) -> Result<SmallVec<[Outcome; 1]>> {
        if let [target] = targets {
            return Ok(SmallVec::from_buf([self.apply(event, *target)?]));
        }
        let prepared: Vec<_> = targets.iter().map(|target| self.prepare(event, *target)).collect::<Result<_>>()?;
        let commit = |prepared: Option<Prepared<'_>>| match prepared {
            Some(prepared) => Outcome::Counted(self.commit(prepared)),
            None => Outcome::Filtered,
        };
        Ok(prepared.into_iter().map(commit).collect())
    }

    /// Whether an event could be counted, without counting it: the same checks as `apply`, for the door.
    ///
    /// # Errors
    /// As `apply`.
    pub fn check(&self, event: &UsageEvent, target: Target<'_>) -> Result<()> {
        self.prepare(event, target).map(drop)
    }

    fn prepare<'t>(&self, event: &UsageEvent, mut target: Target<'t>) -> Result<Option<Prepared<'t>>> {
        let binding = target.binding;
        if !binding.matches(event) {
            return Ok(None);
        }
        target.price = match (binding.role, target.price) {
            (BindingRole::Primary, None) => return Err(RatingError::Unpriced),
            (BindingRole::Primary, price) => price,
            (BindingRole::FormulaInput | BindingRole::Informational, _) => None,
        };
        let part = binding.span().part(event.timestamp, target.window, target.timezone);
        let sub_window = part.map(|part| part.start);
        let meter_id = binding.meter.meter_id;
        let dedup = binding.meter.dedup_key(event).map(|value| dedup_hash(sub_window, value));
        if dedup.is_some_and(|hash| self.member_count(meter_id, hash) > 0) {
            return Ok(None);
        }
        let mut input = binding.meter.input(event)?;
        let variables: Option<Arc<Variables>> = None;
        let key = RatingKey {
            binding_version_id: binding.version_id,
            meter_version_id: binding.meter.version_id,
            price_version_id: target.price.map(|price| price.version_id),
            segment_start: target.segment_start,
            wallet_currency: event.wallet_currency,
            unit_currency: binding.meter.unit_currency(event)?,
            sub_window,
            variables: variables.as_ref().map(|variables| variables.hash()),
        };
        let slot = self.find(&key);
        let (mut state, event_count) = match slot.map(|slot| &self.entries[slot]) {
            Some(entry) => (entry.state, entry.event_count + 1),
            None => (MeterState::new(binding.meter.function)?, 1),
        };
        let distinct = input.distinct.map(|value| member_hash(binding, &key, value));
        input.member_is_new = distinct.is_some_and(|hash| self.member_count(meter_id, hash) == 0);
        state.apply(&input)?;
        let (members, evaluated) = (distinct.into_iter().chain(dedup).collect(), part.unwrap_or(target.window));
        let evaluation = Evaluation::default();
        let mut prepared = Prepared {
            key,
            variables,
            target,
            evaluated,
            slot,
            state,
            event_count,
            members,
            observed: None,
            evaluation,
        };
        if binding.bound_thresholds().is_empty() {
            prepared.quantity()?; // a total that cannot be expressed is refused with the event that causes it
        } else {
            self.observe(&mut prepared)?;
        }
        Ok(Some(prepared))
    }

    /// Evaluates the thresholds of the binding on its value before and after the event (rule C3).
    fn observe(&self, prepared: &mut Prepared<'_>) -> Result<()> {
        let Target { binding, allowance, .. } = prepared.target;
        let known = self.observed_at(prepared.place()).map(|index| &self.observed[index]);
        let after = self.observed_after(prepared, known)?;
        let before = match known {
            Some(known) => Some(known.value),
            None => self.observed_before(binding, prepared.place())?,
        };
        let fired = known.map_or(&[][..], |known| &known.fired);
        prepared.evaluation = evaluate(binding, prepared.evaluated, before, after, allowance, fired)?;
        prepared.observed = Some(after);
        Ok(())
    }

    fn entries_at(&self, place: Place) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| place_of(entry) == place)
    }

    /// The value of a binding that had no thresholds until now; `None` for functions that have none without events.
    fn observed_before(&self, binding: &CompiledBinding, place: Place) -> Result<Option<Exact>> {
        let zero_when_empty =
            matches!(binding.meter.function, MeterFunction::Count | MeterFunction::Sum | MeterFunction::UniqueCount);
        if self.entries_at(place).next().is_none() {
            return Ok(zero_when_empty.then_some(Exact::ZERO));
        }
        combined(self.entries_at(place)).map(Some)
    }

    fn observed_after(&self, prepared: &Prepared<'_>, known: Option<&Observed>) -> Result<Exact> {
        if let Some(known) = known.filter(|known| !known.is_split)
            && let Some(slot) = prepared.slot
        {
            let before = self.entries[slot].quantity()?;
            return known.value.checked_sub(before)?.checked_add(prepared.quantity()?);
        }
        let changed = prepared.entry();
        let others = self.entries_at(prepared.place()).filter(|entry| entry.key() != prepared.key);
        combined(others.chain(std::iter::once(&changed)))
    }

    fn commit(&mut self, prepared: Prepared<'_>) -> Counted {
        for hash in &prepared.members {
            self.members_mut(prepared.target.binding.meter.meter_id).add(*hash);
        }
        let index = match prepared.slot {
            Some(slot) => {
                let entry = &mut self.entries[slot];
                entry.state = prepared.state;
                entry.event_count = prepared.event_count;
                slot
            }
            None => self.push(prepared.entry(), prepared.key.fingerprint()),
        };
        if prepared.key.is_row() && !self.entries[index].is_changed {
            self.entries[index].is_changed = true;
            self.changed.push(index);
        }
        let place = prepared.place();
        let Prepared { key, slot, observed, evaluation, .. } = prepared;
        if let Some(value) = observed {
            let observed = self.observed_slot(place, slot.is_none());
            observed.value = value;
            observed.fired.retain(|fired| !evaluation.rearmed.contains(fired));
            observed.fired.extend(evaluation.fired);
        }
        Counted { key, breaches: evaluation.breaches }
    }

    /// Searched from the end: most events are of the latest sub-window.
    fn observed_at(&self, place: Place) -> Option<usize> {
        self.observed.iter().rposition(|observed| observed.place == place)
    }

    /// What is known of a binding's observed value; `has_new_key` looks again whether several versions judge.
    fn observed_slot(&mut self, place: Place, has_new_key: bool) -> &mut Observed {
        let found = self.observed_at(place);
        let index = found.unwrap_or_else(|| {
            self.observed.push(Observed { place, value: Exact::ZERO, is_split: false, fired: Vec::new() });
            self.observed.len() - 1
        });
        if has_new_key || found.is_none() {
            let mut versions = self.entries_at(place).map(|e| (e.binding.version_id, e.binding.meter.version_id));
            let first = versions.next();
            let is_split = versions.any(|version| Some(version) != first);
            drop(versions);
            self.observed[index].is_split = is_split;
        }
        &mut self.observed[index]
    }

    fn push(&mut self, entry: Entry, fingerprint: u64) -> usize {
        self.entries.push(entry);
        self.fingerprints.push(fingerprint);
        self.entries.len() - 1
    }

    fn find(&self, key: &RatingKey) -> Option<usize> {
        let wanted = key.fingerprint();
        let same = self.fingerprints.iter().enumerate().filter(|(_, fingerprint)| **fingerprint == wanted);
        same.map(|(index, _)| index).find(|index| self.entries[*index].key() == *key)
    }

    fn member_count(&self, meter_id: MeterId, hash: u128) -> u64 {
        self.members.iter().find(|(id, _)| *id == meter_id).map_or(0, |(_, members)| members.count(hash))
    }

    fn members_mut(&mut self, meter_id: MeterId) -> &mut Members {
        let found = self.members.iter().position(|(id, _)| *id == meter_id);
        let index = found.unwrap_or_else(|| {
            self.members.push((meter_id, Members::default()));
            self.members.len() - 1
        });
        &mut self.members[index].1
    }

    /// All running totals.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Thresholds that have fired in this window.
    pub fn fired(&self) -> impl Iterator<Item = (Place, &FiredThreshold)> {
        self.observed.iter().flat_map(|observed| observed.fired.iter().map(|fired| (observed.place, fired)))
    }

    /// Whether parts of this state are rows of their own.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        !self.members.is_empty() || self.entries.iter().any(|entry| entry.key().is_row())
    }

    /// Rows that changed since the last call, with their present counts: what a checkpoint writes (rule C6).
    pub fn take_changed_rows(&mut self) -> Vec<MemberRow> {
        let mut rows = std::mem::take(&mut self.gone);
        for (meter_id, members) in &mut self.members {
            let meter_id = *meter_id;
            let changed = members.take_changed().into_iter();
            rows.extend(changed.map(|(hash, count)| MemberRow { meter_id, hash, count, data: None }));
        }
        for index in std::mem::take(&mut self.changed) {
            let entry = &mut self.entries[index];
            entry.is_changed = false;
            rows.push(row_of(entry, entry.event_count));
        }
        rows
    }

    /// Takes the place of `old`, a state of the same window over other events: rows that are gone get the count 0 at the
    /// next checkpoint, because rows are set and not deleted (rule C6).
    pub fn supersede(&mut self, old: &Self) {
        for (meter_id, members) in &old.members {
            self.members_mut(*meter_id).supersede(members);
        }
        let gone = old.entries.iter().filter(|entry| entry.key().is_row() && self.find(&entry.key()).is_none());
        let gone: Vec<MemberRow> = gone.map(|entry| MemberRow { data: None, ..row_of(entry, 0) }).collect();
        self.gone.extend(gone);
    }

    /// Lines with atoms and tier walks, and the total of each wallet pin.
    ///
    /// # Errors
    /// `Overflow`, `CurrencyMismatch`.
    pub fn rate(&self, input: &RatingInput<'_>) -> Result<Rated> {
        crate::total::rate(input, &self.entries)
    }

    /// Only the total of each wallet pin, the same figures as `rate`: what is accrued after every batch.
    ///
    /// # Errors
    /// As `rate`.
    pub fn accrue(&self, input: &RatingInput<'_>) -> Result<SmallVec<[Accrual; 2]>> {
        crate::total::accrue(input, &self.entries)
    }

    /// Puts stored parts together: entries of distinct keys, all members of their windows, fired thresholds.
    pub(crate) fn assemble(
        entries: Vec<Entry>,
        members: impl IntoIterator<Item = MemberRow>,
        fired: Vec<(Place, FiredThreshold)>,
    ) -> Result<Self> {
        let mut window = Self::default();
        for entry in entries {
            let fingerprint = entry.key().fingerprint();
            window.push(entry, fingerprint);
        }
        for row in members {
            window.members_mut(row.meter_id).load(row.hash, row.count);
        }
        for (place, fired) in fired {
            window.observed_slot(place, false).fired.push(fired);
        }
        let watched = window.entries.iter().filter(|entry| !entry.binding.bound_thresholds().is_empty());
        let watched: BTreeSet<Place> = watched.map(place_of).collect();
        for place in watched {
            let value = combined(window.entries_at(place))?;
            window.observed_slot(place, true).value = value;
        }
        Ok(window)
    }
}

fn place_of(entry: &Entry) -> Place {
    (entry.binding.binding_id, entry.sub_window)
}

/// The row of a key that has one.
fn row_of(entry: &Entry, count: u64) -> MemberRow {
    let (meter_id, hash) = (entry.binding.meter.meter_id, entry.key().row_hash());
    MemberRow { meter_id, hash, count, data: Some(EntryRecord::of(entry).encode()) }
}
