//! The state of one metering window of one subscription: meter states by rating key, members, fired thresholds.
//!
//! An event is first prepared against the state (filter, value, new meter state, thresholds), then committed; an error
//! comes out of the first step, so that nothing has changed.

use std::sync::Arc;

use domain::{BindingId, BindingRole, Currency, Instant, MeterId, ProductId, Quantity, UsageEvent, VersionId};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use crate::binding::CompiledBinding;
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::field::FieldValue;
use crate::member::{MemberRow, Members};
use crate::meter::MeterState;
use crate::pricing::CompiledPrice;
use crate::threshold::{Breach, Evaluation, FiredThreshold, evaluate};
use crate::total::{Accrual, Rated, RatingInput, combined};

/// What a running total is kept per (rule C1). Product, metric and price key follow from the versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RatingKey {
    /// Version of the binding: gives product, metric, filters and multiplier.
    pub binding_version_id: VersionId,
    /// Version of the meter that the binding pins.
    pub meter_version_id: VersionId,
    /// Version of the price, gives the price key; none for a binding that is not billed.
    pub price_version_id: Option<VersionId>,
    /// Start of the segment of the subscription's price context in which the event lies.
    pub segment_start: Instant,
    /// Wallet to which the event is pinned.
    pub wallet_currency: Option<Currency>,
}

impl RatingKey {
    /// A quick fingerprint; equal keys have equal ones.
    fn fingerprint(&self) -> u64 {
        let price = self.price_version_id.map_or(0, |id| id.0.as_u128());
        let ids = self.binding_version_id.0.as_u128()
            ^ self.meter_version_id.0.as_u128().rotate_left(23)
            ^ price.rotate_left(46);
        let wallet = self
            .wallet_currency
            .map_or(0, |currency| currency.as_str().bytes().fold(0_u64, |bits, byte| (bits << 8) | u64::from(byte)));
        let mixed =
            ids ^ u128::from(self.segment_start.timestamp_micros().cast_unsigned()) ^ (u128::from(wallet) << 64);
        (mixed as u64) ^ ((mixed >> 64) as u64) // folds the halves, on purpose
    }
}

/// One running total.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub(crate) binding: Arc<CompiledBinding>,
    pub(crate) price: Option<Arc<CompiledPrice>>,
    pub(crate) segment_start: Instant,
    pub(crate) wallet_currency: Option<Currency>,
    pub(crate) state: MeterState,
    pub(crate) event_count: u64,
}

impl Entry {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> RatingKey {
        key_of(&self.binding, self.price.as_ref(), self.segment_start, self.wallet_currency)
    }

    /// Version of the binding that counts.
    #[must_use]
    pub fn binding(&self) -> &Arc<CompiledBinding> {
        &self.binding
    }

    /// Version of the price that rates; `None` when the binding is not billed.
    #[must_use]
    pub fn price(&self) -> Option<&Arc<CompiledPrice>> {
        self.price.as_ref()
    }

    /// The product.
    #[must_use]
    pub fn product_id(&self) -> ProductId {
        self.binding.product_id
    }

    /// The metric.
    #[must_use]
    pub fn metric_key(&self) -> &str {
        &self.binding.meter.metric_key
    }

    /// The price key.
    #[must_use]
    pub fn price_key(&self) -> Option<&str> {
        self.price.as_ref().and_then(|price| price.price_key.as_deref())
    }

    /// The wallet pin.
    #[must_use]
    pub fn wallet_currency(&self) -> Option<Currency> {
        self.wallet_currency
    }

    /// Start of the price segment.
    #[must_use]
    pub fn segment_start(&self) -> Instant {
        self.segment_start
    }

    /// State of the meter.
    #[must_use]
    pub fn state(&self) -> &MeterState {
        &self.state
    }

    /// Events counted.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.event_count
    }

    /// Quantity after the multiplier, 0 when empty.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn quantity(&self) -> Result<Exact> {
        Ok(self.binding.quantity(&self.state)?.unwrap_or(Exact::ZERO))
    }
}

fn key_of(
    binding: &CompiledBinding,
    price: Option<&Arc<CompiledPrice>>,
    segment_start: Instant,
    wallet_currency: Option<Currency>,
) -> RatingKey {
    RatingKey {
        binding_version_id: binding.version_id,
        meter_version_id: binding.meter.version_id,
        price_version_id: price.map(|price| price.version_id),
        segment_start,
        wallet_currency,
    }
}

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
struct Prepared {
    key: RatingKey,
    entry: Entry,
    slot: Option<usize>,
    member: Option<u128>,
    /// The binding's observed value after the event, where it has thresholds.
    observed: Option<Exact>,
    evaluation: Evaluation,
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
        let commit = |prepared: Option<Prepared>| match prepared {
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

    fn prepare(&self, event: &UsageEvent, target: Target<'_>) -> Result<Option<Prepared>> {
        let binding = target.binding;
        if !binding.matches(event) {
            return Ok(None);
        }
        let price = match (binding.role, target.price) {
            (BindingRole::Primary, None) => return Err(RatingError::Unpriced),
            (BindingRole::Primary, price) => price,
            (BindingRole::FormulaInput | BindingRole::Informational, _) => None,
        };
        let mut input = binding.meter.input(event)?;
        let key = key_of(binding, price, target.segment_start, event.wallet_currency);
        let slot = self.find(&key);
        let mut entry = match slot {
            Some(slot) => self.entries[slot].clone(),
            None => Entry {
                binding: Arc::clone(binding),
                price: price.cloned(),
                segment_start: target.segment_start,
                wallet_currency: event.wallet_currency,
                state: MeterState::new(binding.meter.function)?,
                event_count: 0,
            },
        };
        let member = input.distinct.map(|value| member_hash(binding, &key, value));
        input.member_is_new = member.is_some_and(|hash| self.member_count(binding.meter.meter_id, hash) == 0);
        entry.state.apply(&input)?;
        entry.event_count += 1;
        let mut prepared = Prepared { key, entry, slot, member, observed: None, evaluation: Evaluation::default() };
        if !binding.bound_thresholds().is_empty() {
            self.observe(&mut prepared, target)?;
        } else {
            prepared.entry.quantity()?; // a total that cannot be expressed is refused with the event that causes it
        }
        Ok(Some(prepared))
    }

    /// Evaluates the thresholds of the binding on its value before and after the event.
    fn observe(&self, prepared: &mut Prepared, target: Target<'_>) -> Result<()> {
        let binding = target.binding;
        let known = self.observed.iter().find(|observed| observed.binding_id == binding.binding_id);
        let after = self.observed_after(prepared, known)?;
        let before = match (known, &prepared.entry.state) {
            (Some(known), _) => Some(known.value),
            (None, MeterState::Count(_) | MeterState::Sum(_) | MeterState::UniqueCount(_)) => Some(Exact::ZERO),
            (None, _) => None,
        };
        let fired = known.map_or(&[][..], |known| &known.fired);
        prepared.evaluation = evaluate(binding, before, after, target.allowance, fired)?;
        prepared.observed = Some(after);
        Ok(())
    }

    fn observed_after(&self, prepared: &Prepared, known: Option<&Observed>) -> Result<Exact> {
        let after = prepared.entry.quantity()?;
        let Some(known) = known else { return Ok(after) };
        if !known.is_split
            && let Some(slot) = prepared.slot
        {
            return known.value.checked_add(after)?.checked_sub(self.entries[slot].quantity()?);
        }
        let others = self
            .entries
            .iter()
            .enumerate()
            .filter(|(index, entry)| entry.binding.binding_id == known.binding_id && prepared.slot != Some(*index));
        combined(others.map(|(_, entry)| entry).chain(std::iter::once(&prepared.entry)))
    }

    fn commit(&mut self, prepared: Prepared) -> Counted {
        let Prepared { key, entry, slot, member, observed, evaluation } = prepared;
        if let Some(hash) = member {
            self.members_mut(entry.binding.meter.meter_id).add(hash);
        }
        self.commit_observed(&entry, observed, &evaluation);
        match slot {
            Some(slot) => self.entries[slot] = entry,
            None => self.push(entry, key.fingerprint()),
        }
        Counted { key, breaches: evaluation.breaches }
    }

    fn commit_observed(&mut self, entry: &Entry, observed: Option<Exact>, evaluation: &Evaluation) {
        let Some(value) = observed else { return };
        let same_version = |other: &Entry| {
            other.binding.version_id == entry.binding.version_id
                && other.binding.meter.version_id == entry.binding.meter.version_id
        };
        let id = entry.binding.binding_id;
        let is_split = self.entries.iter().any(|other| other.binding.binding_id == id && !same_version(other));
        let slot = self.observed_slot(id);
        slot.value = value;
        slot.is_split = is_split;
        slot.fired.retain(|fired| !evaluation.rearmed.contains(fired));
        slot.fired.extend(evaluation.fired.iter().cloned());
    }

    fn observed_slot(&mut self, binding_id: BindingId) -> &mut Observed {
        let found = self.observed.iter().position(|observed| observed.binding_id == binding_id);
        let index = found.unwrap_or_else(|| {
            self.observed.push(Observed { binding_id, value: Exact::ZERO, is_split: false, fired: Vec::new() });
            self.observed.len() - 1
        });
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
            window.observed_slot(binding_id).fired.push(fired);
        }
        for index in 0..window.entries.len() {
            let entry = window.entries[index].clone();
            if !entry.binding.bound_thresholds().is_empty() {
                let id = entry.binding.binding_id;
                let value = combined(window.entries.iter().filter(|other| other.binding.binding_id == id))?;
                window.commit_observed(&entry, Some(value), &Evaluation::default());
            }
        }
        Ok(window)
    }
}

/// What a distinct value is counted under: the rating key without the versions of binding and meter, because "distinct"
/// holds over both parts of a window that a new version splits (meters.md 5).
fn member_hash(binding: &CompiledBinding, key: &RatingKey, value: FieldValue<'_>) -> u128 {
    let mut bytes = SmallVec::<[u8; 128]>::new();
    bytes.extend_from_slice(binding.binding_id.0.as_bytes());
    bytes.extend_from_slice(key.price_version_id.map(|id| id.0.into_bytes()).unwrap_or_default().as_slice());
    bytes.extend_from_slice(&key.segment_start.timestamp_micros().to_le_bytes());
    bytes.extend_from_slice(key.wallet_currency.as_ref().map_or("---", Currency::as_str).as_bytes());
    match value {
        FieldValue::Bool(value) => bytes.extend_from_slice(&[0, u8::from(value)]),
        FieldValue::Number(value) => {
            bytes.push(1);
            bytes.extend_from_slice(&value.units().to_le_bytes());
        }
        FieldValue::Text(value) => {
            bytes.push(2);
            bytes.extend_from_slice(value.as_bytes());
        }
    }
    xxh3_128(&bytes)
}
