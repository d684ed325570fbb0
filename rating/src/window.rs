//! The state of one metering window of one subscription: meter states by rating key, members, fired thresholds.
//!
//! An event is first prepared against the state (filter, value, new meter state, thresholds), then committed; an error
//! comes out of the first step, so that nothing has changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use domain::{BindingId, BindingRole, Instant, MeterFunction, MeterId, Quantity, UsageEvent};
use smallvec::SmallVec;

use crate::binding::CompiledBinding;
use crate::entry::{Entry, RatingKey, key_of, member_hash};
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::member::{MemberRow, Members};
use crate::meter::MeterState;
use crate::pricing::CompiledPrice;
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
}

/// What became of an event at one binding.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A filter left it out; it stays in the event store but does not count here.
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

/// What all entries of one binding share.
#[derive(Clone, Debug)]
struct Observed {
    binding_id: BindingId,
    /// Quantity over all keys; kept only while one version with thresholds judges.
    value: Exact,
    /// Whether several versions judged, so that parts combine and a difference is not enough.
    is_split: bool,
    fired: Vec<FiredThreshold>,
}

/// The state of one metering window of one subscription.
#[derive(Clone, Debug, Default)]
pub struct WindowState {
    entries: Vec<Entry>,
    /// Fingerprints of the keys of `entries`, side by side: a hundred price keys are searched in a few cache lines.
    fingerprints: Vec<u64>,
    observed: Vec<Observed>,
    members: Vec<(MeterId, Members)>,
}

/// An event that is ready to be counted.
struct Prepared<'t> {
    key: RatingKey,
    target: Target<'t>,
    slot: Option<usize>,
    state: MeterState,
    event_count: u64,
    member: Option<u128>,
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
            state: self.state,
            event_count: self.event_count,
        }
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
        let mut input = binding.meter.input(event)?;
        let key = key_of(binding, target.price, target.segment_start, event.wallet_currency);
        let slot = self.find(&key);
        let (mut state, event_count) = match slot.map(|slot| &self.entries[slot]) {
            Some(entry) => (entry.state, entry.event_count),
            None => (MeterState::new(binding.meter.function)?, 0),
        };
        let member = input.distinct.map(|value| member_hash(binding, &key, value));
        input.member_is_new = member.is_some_and(|hash| self.member_count(binding.meter.meter_id, hash) == 0);
        state.apply(&input)?;
        let evaluation = Evaluation::default();
        let event_count = event_count + 1;
        let mut prepared = Prepared { key, target, slot, state, event_count, member, observed: None, evaluation };
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
        let known = self.observed.iter().find(|observed| observed.binding_id == binding.binding_id);
        let after = self.observed_after(prepared, known)?;
        let before = match known {
            Some(known) => Some(known.value),
            None => self.observed_before(binding)?,
        };
        let fired = known.map_or(&[][..], |known| &known.fired);
        prepared.evaluation = evaluate(binding, before, after, allowance, fired)?;
        prepared.observed = Some(after);
        Ok(())
    }

    fn entries_of(&self, binding_id: BindingId) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.binding.binding_id == binding_id)
    }

    /// The value of a binding that had no thresholds until now; `None` for functions that have none without events.
    fn observed_before(&self, binding: &CompiledBinding) -> Result<Option<Exact>> {
        let zero_when_empty =
            matches!(binding.meter.function, MeterFunction::Count | MeterFunction::Sum | MeterFunction::UniqueCount);
        if self.entries_of(binding.binding_id).next().is_none() {
            return Ok(zero_when_empty.then_some(Exact::ZERO));
        }
        combined(self.entries_of(binding.binding_id)).map(Some)
    }

    fn observed_after(&self, prepared: &Prepared<'_>, known: Option<&Observed>) -> Result<Exact> {
        if let Some(known) = known.filter(|known| !known.is_split)
            && let Some(slot) = prepared.slot
        {
            let before = self.entries[slot].quantity()?;
            return known.value.checked_sub(before)?.checked_add(prepared.quantity()?);
        }
        let changed = prepared.entry();
        let others = self.entries_of(changed.binding.binding_id).filter(|entry| entry.key() != prepared.key);
        combined(others.chain(std::iter::once(&changed)))
    }

    fn commit(&mut self, prepared: Prepared<'_>) -> Counted {
        if let Some(hash) = prepared.member {
            self.members_mut(prepared.target.binding.meter.meter_id).add(hash);
        }
        match prepared.slot {
            Some(slot) => {
                let entry = &mut self.entries[slot];
                entry.state = prepared.state;
                entry.event_count = prepared.event_count;
            }
            None => self.push(prepared.entry(), prepared.key.fingerprint()),
        }
        let Prepared { key, target, slot, observed, evaluation, .. } = prepared;
        if let Some(value) = observed {
            let observed = self.observed_slot(target.binding.binding_id, slot.is_none());
            observed.value = value;
            observed.fired.retain(|fired| !evaluation.rearmed.contains(fired));
            observed.fired.extend(evaluation.fired);
        }
        Counted { key, breaches: evaluation.breaches }
    }

    /// What is known of a binding's observed value; `has_new_key` looks again whether several versions judge.
    fn observed_slot(&mut self, binding_id: BindingId, has_new_key: bool) -> &mut Observed {
        let found = self.observed.iter().position(|observed| observed.binding_id == binding_id);
        let index = found.unwrap_or_else(|| {
            self.observed.push(Observed { binding_id, value: Exact::ZERO, is_split: false, fired: Vec::new() });
            self.observed.len() - 1
        });
        if has_new_key || found.is_none() {
            let mut versions = self.entries_of(binding_id).map(|e| (e.binding.version_id, e.binding.meter.version_id));
            let first = versions.next();
            let is_split = versions.any(|version| Some(version) != first);
            drop(versions);
            self.observed[index].is_split = is_split;
        }
        &mut self.observed[index]
    }

    fn push(&mut self, entry: Entry, fingerprint: u64) {
        self.entries.push(entry);
        self.fingerprints.push(fingerprint);
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
    pub fn fired(&self) -> impl Iterator<Item = (BindingId, &FiredThreshold)> {
        self.observed.iter().flat_map(|observed| observed.fired.iter().map(|fired| (observed.binding_id, fired)))
    }

    /// Set members that changed since the last call, with their present counts: what a checkpoint writes (rule C6).
    pub fn take_changed_members(&mut self) -> Vec<MemberRow> {
        let rows = self.members.iter_mut().flat_map(|(meter_id, members)| {
            let meter_id = *meter_id;
            members.take_changed().into_iter().map(move |(hash, count)| MemberRow { meter_id, hash, count })
        });
        rows.collect()
    }

    /// Takes the place of `old`, a state of the same window over other events: members that are gone become rows with
    /// count 0 at the next checkpoint, because rows are set and not deleted (rule C6).
    pub fn supersede(&mut self, old: &Self) {
        for (meter_id, members) in &old.members {
            self.members_mut(*meter_id).supersede(members);
        }
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
        fired: Vec<(BindingId, FiredThreshold)>,
    ) -> Result<Self> {
        let mut window = Self::default();
        for entry in entries {
            let fingerprint = entry.key().fingerprint();
            window.push(entry, fingerprint);
        }
        for row in members {
            window.members_mut(row.meter_id).load(row.hash, row.count);
        }
        for (binding_id, fired) in fired {
            window.observed_slot(binding_id, false).fired.push(fired);
        }
        let watched = window.entries.iter().filter(|entry| !entry.binding.bound_thresholds().is_empty());
        let watched: BTreeSet<BindingId> = watched.map(|entry| entry.binding.binding_id).collect();
        for id in watched {
            let value = combined(window.entries_of(id))?;
            window.observed_slot(id, true).value = value;
        }
        Ok(window)
    }
}
