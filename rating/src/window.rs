//! The state of one metering window of one subscription: meter states by rating key, members, fired thresholds.
//!
//! An event is first prepared against the state (filter, value, new meter state, thresholds), then committed; an error
//! comes out of the first step, so that nothing has changed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono_tz::Tz;
use domain::period::Period;
use domain::{BindingId, BindingRole, Currency, Instant, MeterFunction, MeterId, Quantity, UsageEvent};
use smallvec::SmallVec;

use crate::binding::CompiledBinding;
use crate::entry::{Entry, RatingKey, Variables, dedup_hash, member_hash};
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::expression::{Basis, PeriodFacts, RateTables};
use crate::limit::ReachedLimits;
use crate::member::{MemberRow, Members};
use crate::meter::{LastKey, MeterInput, MeterState};
use crate::pricing::CompiledPrice;
use crate::sighting::{self, Share, Sightings, Whose, is_sighted};
use crate::span::Span;
use crate::state::{EntryRecord, ReportRecord, SightingRecord, StateError, encode_report, encode_sighting};
use crate::threshold::{Breach, Evaluation, FiredThreshold, evaluate};
use crate::timeline::{self, Chain, Held, Neighbours, Point, Timeline};
use crate::total::{Accrual, EntryInputs, Rated, RatingInput, combined, segment_of};

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
    /// Rate tables that the expressions of the price may consult.
    pub tables: &'a dyn RateTables,
    /// What the billing period supplies to expressions.
    pub period: PeriodFacts,
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

/// Amount of one key with expressions, in minor units, from which on its events are refused: far from the range of money, so
/// that hundreds of keys together stay in it.
const AMOUNT_MINOR_MAX: u128 = 100_000_000_000_000_000;

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
    pub(crate) entries: Vec<Entry>,
    /// Fingerprints of the keys of `entries`, side by side: a hundred price keys are searched in a few cache lines.
    pub(crate) fingerprints: Vec<u64>,
    observed: Vec<Observed>,
    members: Vec<(MeterId, Members)>,
    /// Keys with rows of their own that changed since the last checkpoint.
    pub(crate) changed: Vec<usize>,
    /// Rows of a state that this one superseded.
    pub(crate) gone: Vec<MemberRow>,
    /// Reports of TIME_WEIGHTED meters.
    pub(crate) timelines: Vec<(Chain, MeterId, Timeline)>,
    /// What counts once in windows that go on.
    pub(crate) sightings: Vec<(MeterId, Sightings)>,
    /// Agreement with the window that was told last what goes on there: it has all but what is news.
    pub(crate) told: Option<Arc<()>>,
    /// Agreement with the window before.
    pub(crate) heard: Option<Arc<()>>,
    /// Usage caps and parts of allowances that are reached, or were told.
    pub(crate) reached: Vec<ReachedLimits>,
}

/// What a TIME_WEIGHTED meter held at the end of a window: it is carried into the next one.
#[derive(Clone, Debug)]
pub struct Carry {
    /// Version that judged the last report.
    pub binding: Arc<CompiledBinding>,
    /// Price of the last report.
    pub price: Option<Arc<CompiledPrice>>,
    /// Start of the price segment.
    pub segment_start: Instant,
    /// Wallet pin of the last report.
    pub wallet_currency: Option<Currency>,
    /// Currency of its value.
    pub unit_currency: Option<Currency>,
    /// Its event variables.
    pub variables: Option<Arc<Variables>>,
    /// What it holds.
    pub value: Quantity,
}

impl Carry {
    fn key(&self) -> RatingKey {
        RatingKey {
            binding_version_id: self.binding.version_id,
            meter_version_id: self.binding.meter.version_id,
            price_version_id: self.price.as_ref().map(|price| price.version_id),
            segment_start: self.segment_start,
            wallet_currency: self.wallet_currency,
            unit_currency: self.unit_currency,
            sub_window: None,
            variables: self.variables.as_ref().map(|variables| variables.hash()),
        }
    }

    fn chain(&self) -> Chain {
        let price_key = self.price.as_ref().and_then(|price| price.price_key.as_deref());
        timeline::chain_of(&self.binding, price_key, &self.key())
    }
}

/// A report on its way into its timeline.
struct Report {
    chain: Chain,
    at: LastKey,
    value: Quantity,
}

/// What an event makes of the running total of another key: of the one whose report it ends, or where its value was seen before.
#[derive(Clone, Copy)]
struct Neighbour {
    slot: usize,
    state: MeterState,
    event_count: u64,
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
    report: Option<Report>,
    neighbour: Option<Neighbour>,
    /// That its value is seen here, where it counts once.
    sighting: Option<(u128, Quantity)>,
    /// The binding's observed value after the event, where it has thresholds.
    observed: Option<Exact>,
    evaluation: Evaluation,
}

impl Prepared<'_> {
    fn quantity(&self) -> Result<Exact> {
        Ok(self.target.binding.quantity(&self.state, None)?.unwrap_or(Exact::ZERO))
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

    fn is_component_of(&self, binding_id: BindingId) -> bool {
        self.target.binding.component().is_some() && self.target.binding.binding_id == binding_id
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
        let mut prepared = None;
        self.prepare(event, target, &mut prepared)?;
        if target.binding.component().is_some() {
            self.complete(std::slice::from_mut(&mut prepared))?;
        }
        Ok(match &mut prepared {
            Some(prepared) => Outcome::Counted(self.commit(prepared)),
            None => Outcome::Filtered,
        })
    }

    /// Counts one event at all of its bindings, or at none when one of them refuses it. Outcomes are in the order of the
    /// targets, which name each binding once, and of a FORMULA meter each component.
    ///
    /// # Errors
    /// As `apply`.
    pub fn apply_all(&mut self, event: &UsageEvent, targets: &[Target<'_>]) -> Result<SmallVec<[Outcome; 1]>> {
        if let [target] = targets {
            return Ok(SmallVec::from_buf([self.apply(event, *target)?]));
        }
        let mut prepared: Vec<_> = targets.iter().map(|_| None).collect();
        for (target, prepared) in targets.iter().zip(&mut prepared) {
            self.prepare(event, *target, prepared)?;
        }
        self.complete(&mut prepared)?;
        let commit = |prepared: &mut Option<Prepared<'_>>| match prepared {
            Some(prepared) => Outcome::Counted(self.commit(prepared)),
            None => Outcome::Filtered,
        };
        Ok(prepared.iter_mut().map(commit).collect())
    }

    /// Whether an event could be counted, without counting it: the same checks as `apply`, for the door.
    ///
    /// # Errors
    /// As `apply`.
    pub fn check(&self, event: &UsageEvent, target: Target<'_>) -> Result<()> {
        let mut prepared = None;
        self.prepare(event, target, &mut prepared)?;
        self.complete(std::slice::from_mut(&mut prepared))
    }

    /// Fills `place`, which is empty, if the event counts at this binding. What is prepared is large: it is made where it stays.
    fn prepare<'t>(&self, event: &UsageEvent, mut target: Target<'t>, place: &mut Option<Prepared<'t>>) -> Result<()> {
        let binding = target.binding;
        if !binding.matches(event) {
            return Ok(());
        }
        target.price = match (binding.role, target.price) {
            (BindingRole::Primary, None) => return Err(RatingError::Unpriced),
            (BindingRole::Primary, price) => price,
            (BindingRole::FormulaInput | BindingRole::Informational, _) => None,
        };
        // What a value held over sub-windows adds up to is what it held over all of them.
        let is_held = binding.meter.function == MeterFunction::TimeWeighted;
        let part = binding.span().part(event.timestamp, target.window, target.timezone).filter(|_| !is_held);
        let sub_window = part.map(|part| part.start);
        let meter_id = binding.meter.meter_id;
        let dedup = binding.meter.dedup_key(event).filter(|_| sighting::has_key_members(binding));
        let dedup = dedup.map(|value| dedup_hash(binding, sub_window, value));
        if dedup.is_some_and(|hash| self.member_count(meter_id, hash) > 0) {
            return Ok(());
        }
        let input = binding.meter.input(event)?;
        let variables = target.price.and_then(|price| price.variables(event, target.tables)).map(Arc::new);
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
        let (state, event_count) = match slot.map(|slot| &self.entries[slot]) {
            Some(entry) => (entry.state, entry.event_count + 1),
            None => (MeterState::new(binding.meter.function)?, 1),
        };
        let evaluated = match binding.span() {
            Span::Sliding { size } => {
                let end = self.sliding_end(binding, event.timestamp);
                Period { start: end - size, end }
            }
            _ => part.unwrap_or(target.window),
        };
        let prepared = place.insert(Prepared {
            key,
            variables,
            target,
            evaluated,
            slot,
            state,
            event_count,
            members: dedup.into_iter().collect(),
            report: None,
            neighbour: None,
            sighting: None,
            observed: None,
            evaluation: Evaluation::default(),
        });
        if is_held {
            self.report(prepared, &input)?;
        } else if is_sighted(binding) {
            if !self.sight(prepared, event, input)? {
                *place = None;
                return Ok(());
            }
        } else {
            self.put_in(prepared, input)?;
        }
        if binding.component().is_some() {
            return Ok(()); // its formula is evaluated when all of its components are prepared
        }
        self.check_expressions(prepared)?;
        if binding.bound_thresholds().is_empty() {
            binding.check_quantity(&prepared.state)?; // a total that cannot be expressed is refused with its event
        } else {
            self.observe(prepared)?;
        }
        Ok(())
    }

    /// An event for which the expressions of its price have no result is refused when it comes, not with the bill.
    fn check_expressions(&self, prepared: &Prepared<'_>) -> Result<()> {
        match prepared.target.price.filter(|price| price.has_expressions()) {
            Some(price) => self.check_amount(prepared, price, prepared.quantity()?.floored()),
            None => Ok(()),
        }
    }

    fn check_amount(&self, prepared: &Prepared<'_>, price: &CompiledPrice, quantity: Exact) -> Result<()> {
        let binding = prepared.target.binding;
        let basis = Basis {
            variables: prepared.variables.as_deref(),
            bindings: Some(&binding.formula_bindings),
            inputs: &EntryInputs {
                entries: &self.entries,
                binding,
                wallet_currency: prepared.key.wallet_currency,
                until: None,
            },
            period: prepared.target.period,
            ..Basis::of(quantity)
        };
        match price.total_minor(quantity, &basis)? {
            minor if minor < AMOUNT_MINOR_MAX => Ok(()),
            _ => Err(RatingError::Overflow("the amount")),
        }
    }

    /// Evaluates the FORMULA meters that an event changes, once for all of their components. A result that cannot be expressed
    /// or charged is refused with the event that causes it.
    fn complete(&self, prepared: &mut [Option<Prepared<'_>>]) -> Result<()> {
        for last in 0..prepared.len() {
            let Some(binding) = prepared[last].as_ref().map(|prepared| prepared.target.binding) else { continue };
            let is_part = |other: &Prepared<'_>| other.is_component_of(binding.binding_id);
            if binding.component().is_none() || prepared[last + 1..].iter().flatten().any(is_part) {
                continue; // the last component speaks for all
            }
            let mut changed = Vec::new();
            for (index, part) in prepared[..=last].iter_mut().flatten().filter(|other| is_part(other)).enumerate() {
                part.event_count = part.event_count.saturating_sub(u64::from(index > 0)); // the event is one, however many components count it
                changed.extend(self.changed_by(part));
            }
            if let Some(own) = &mut prepared[last] {
                self.complete_formula(own, &changed)?;
            }
        }
        Ok(())
    }

    /// What an event makes of its own running total, and of the one whose report it ends.
    fn changed_by<'p>(&'p self, prepared: &'p Prepared<'_>) -> impl Iterator<Item = Entry> + 'p {
        let ended = prepared.neighbour.map(|Neighbour { slot, state, event_count }| Entry {
            state,
            event_count,
            ..self.entries[slot].clone()
        });
        std::iter::once(prepared.entry()).chain(ended)
    }

    /// The totals of a place, with those that an event changes.
    fn with_changed<'c>(&'c self, place: Place, changed: &'c [Entry]) -> impl Iterator<Item = &'c Entry> {
        let others = self.entries_at(place);
        others.filter(|entry| changed.iter().all(|changed| changed.key() != entry.key())).chain(changed)
    }

    fn complete_formula(&self, prepared: &mut Prepared<'_>, changed: &[Entry]) -> Result<()> {
        let place = prepared.place();
        if matches!(prepared.target.binding.span(), Span::Sliding { .. }) {
            return self.judge_slid(prepared, changed);
        }
        if !prepared.target.binding.bound_thresholds().is_empty() {
            let after = combined(self.with_changed(place, changed))?;
            self.judge(prepared, after)?;
        }
        for (index, entry) in changed.iter().enumerate() {
            let is_same = |other: &&Entry| is_rated_together(entry, other);
            if changed[..index].iter().any(|other| is_same(&other)) {
                continue;
            }
            let quantity = combined(self.with_changed(place, changed).filter(is_same))?.floored();
            if let Some(price) = &entry.price {
                self.check_amount(prepared, price, quantity)?;
            }
        }
        Ok(())
    }

    /// Puts a value into the state, and a distinct one among the members.
    fn put_in(&self, prepared: &mut Prepared<'_>, mut input: MeterInput<'_>) -> Result<()> {
        let binding = prepared.target.binding;
        let distinct = input.distinct.map(|value| member_hash(binding, &prepared.key, value));
        let is_new = |hash| self.member_count(binding.meter.meter_id, hash) == 0;
        input.member_is_new = distinct.is_some_and(is_new);
        prepared.members.extend(distinct);
        prepared.state.apply(&input)
    }

    /// Puts a value in that counts once in a window that goes on, and takes it out of the total where it was seen before. A
    /// repeated dedup key is left out, `false`; an event with a repeated value counts among the events.
    fn sight(&self, prepared: &mut Prepared<'_>, event: &UsageEvent, mut input: MeterInput<'_>) -> Result<bool> {
        let binding = prepared.target.binding;
        let is_distinct = binding.meter.function == MeterFunction::UniqueCount;
        let Some(hash) = sighting::hash_of(binding, &prepared.key, event) else {
            prepared.state.apply(&input)?; // no dedup key, or nothing to be distinct
            return Ok(true);
        };
        let seen = self.sightings_of(binding.meter.meter_id).map(|known| known.get(hash)).unwrap_or_default();
        if seen.own.as_ref().is_some_and(|own| own.key.sub_window >= prepared.key.sub_window) {
            return Ok(is_distinct);
        }
        prepared.sighting = Some((hash, input.value));
        if seen.carried.as_ref().is_some_and(|carried| carried.key.sub_window >= prepared.key.sub_window) {
            prepared.event_count -= u64::from(!is_distinct);
            return Ok(true);
        }
        input.member_is_new = true;
        prepared.state.apply(&input)?;
        if let Some(before) = seen.counting()
            && let Some(slot) = self.find(&before.key)
        {
            let Entry { mut state, event_count, .. } = self.entries[slot];
            state.take_out(Share::of(before.value))?;
            let event_count = event_count.saturating_sub(u64::from(!is_distinct));
            prepared.neighbour = Some(Neighbour { slot, state, event_count });
        }
        Ok(true)
    }

    /// Puts a report into the state and finds what it changes of the report before it. Where a SLIDING window is read from
    /// reports, the states say nothing.
    fn report(&self, prepared: &mut Prepared<'_>, input: &MeterInput<'_>) -> Result<()> {
        let Prepared { target, key, state, report, neighbour, .. } = prepared;
        let chain = self.timelines.iter().find(|(_, _, timeline)| timeline.is_latest(key)).map(|(chain, _, _)| *chain);
        let chain = chain.unwrap_or_else(|| {
            let price_key = target.price.and_then(|price| price.price_key.as_deref());
            timeline::chain_of(target.binding, price_key, key)
        });
        let at = (input.timestamp, input.accepted_at, input.event_id);
        *report = Some(Report { chain, at, value: input.value });
        if let Span::Sliding { size } = target.binding.span() {
            // Held for the whole window, which is the most that it can come to.
            let mut most = Held::default();
            most.add(input.value, at.0 - size, at.0)?;
            return target.binding.check_quantity(&MeterState::TimeWeighted(most));
        }
        let known = self.timelines.iter().find(|(known, _, _)| *known == chain);
        let Neighbours { before, after } = known.map(|(_, _, timeline)| timeline.neighbours(at)).unwrap_or_default();
        let start = target.window.start;
        if let Some(before) = &before {
            if before.key == *key {
                timeline::cut(held(state)?, before, at.0, after, start)?;
            } else if let Some(slot) = self.find(&before.key) {
                let Entry { state: mut other, event_count, .. } = self.entries[slot];
                timeline::cut(held(&mut other)?, before, at.0, after, start)?;
                *neighbour = Some(Neighbour { slot, state: other, event_count });
            }
        }
        timeline::put(held(state)?, at.0, input.value, after, start)
    }

    /// What TIME_WEIGHTED meters hold at the end of this window.
    #[must_use]
    pub fn carries(&self) -> Vec<Carry> {
        self.timelines.iter().filter_map(|(_, _, timeline)| self.carry_of(&timeline.last()?)).collect()
    }

    fn carry_of(&self, point: &Point) -> Option<Carry> {
        let entry = &self.entries[self.find(&point.key)?];
        if matches!(entry.binding.span(), Span::Sliding { .. }) {
            return None; // goes on with its reports
        }
        Some(Carry {
            binding: Arc::clone(&entry.binding),
            price: entry.price.clone(),
            segment_start: entry.segment_start,
            wallet_currency: entry.wallet_currency,
            unit_currency: entry.unit_currency,
            variables: entry.variables.clone(),
            value: point.value,
        })
    }

    /// Whether TIME_WEIGHTED meters have reported.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.timelines.is_empty()
    }

    /// Takes over what `old`, another state of the same window, had where it begins.
    ///
    /// # Errors
    /// As [`WindowState::carry_in`].
    pub fn inherit(&mut self, old: &Self, window_start: Instant) -> Result<()> {
        self.carry_running(old.carried())?;
        self.heard.clone_from(&old.heard);
        let at = timeline::carried_at(window_start);
        for (_, _, timeline) in &old.timelines {
            if let Some(carry) = timeline.get(at).and_then(|point| old.carry_of(&point)) {
                self.carry_in(window_start, &carry)?;
            }
        }
        Ok(())
    }

    /// Sets what is held where the window begins; binding, price and segment are those that are in effect there. Whether
    /// anything has changed.
    ///
    /// # Errors
    /// `Overflow`; nothing has changed then.
    pub fn carry_in(&mut self, window_start: Instant, carry: &Carry) -> Result<bool> {
        let (key, chain) = (carry.key(), carry.chain());
        let at = timeline::carried_at(window_start);
        let known = self.timelines.iter().find(|(known, _, _)| *known == chain);
        let (around, old) = known.map_or_else(Default::default, |(_, _, t)| (t.neighbours(at), t.get(at)));
        let Neighbours { before, after } = around;
        if old.is_some_and(|old| old.key == key && old.value == carry.value) {
            return Ok(false);
        }
        if let Some(old) = old
            && let Some(slot) = self.find(&old.key)
        {
            let mut state = self.entries[slot].state;
            timeline::unput(held(&mut state)?, window_start, old.value, after, window_start)?;
            self.entries[slot].state = state;
            self.mark_changed(slot);
        } else if let (None, Some(before)) = (old, before)
            && let Some(slot) = self.find(&before.key)
        {
            // A late report of an earlier window held on from the start until now.
            let mut state = self.entries[slot].state;
            timeline::cut(held(&mut state)?, &before, window_start, after, window_start)?;
            self.entries[slot].state = state;
            self.mark_changed(slot);
        }
        let slot = self.find(&key);
        let mut state = slot.map_or(MeterState::TimeWeighted(Held::default()), |slot| self.entries[slot].state);
        timeline::put(held(&mut state)?, window_start, carry.value, after, window_start)?;
        match slot {
            Some(slot) => {
                self.entries[slot].state = state;
                self.mark_changed(slot);
            }
            None => {
                let Carry { binding, price, segment_start, wallet_currency, unit_currency, variables, .. } =
                    carry.clone();
                let entry = Entry {
                    binding,
                    price,
                    segment_start,
                    wallet_currency,
                    unit_currency,
                    sub_window: None,
                    variables,
                    state,
                    event_count: 0,
                    is_changed: false,
                };
                let slot = self.push(entry, key.fingerprint());
                self.mark_changed(slot);
            }
        }
        self.timeline_mut(chain, carry.binding.meter.meter_id).insert(Point { at, value: carry.value, key });
        Ok(true)
    }

    /// Takes back what was held where the window begins by reports that are gone: everything but `carries`. Whether anything
    /// has changed.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn drop_carries(&mut self, window_start: Instant, carries: &[Carry]) -> Result<bool> {
        let at = timeline::carried_at(window_start);
        let kept: Vec<Chain> = carries.iter().map(Carry::chain).collect();
        let held_no_more = |(chain, _, timeline): &(Chain, MeterId, Timeline)| {
            let old = timeline.get(at).filter(|_| !kept.contains(chain))?;
            Some((*chain, old, timeline.neighbours(at)))
        };
        let gone: Vec<_> = self.timelines.iter().filter_map(held_no_more).collect();
        for (chain, old, Neighbours { before, after }) in &gone {
            if let Some(slot) = self.find(&old.key) {
                let mut state = self.entries[slot].state;
                timeline::unput(held(&mut state)?, window_start, old.value, *after, window_start)?;
                self.entries[slot].state = state;
                self.mark_changed(slot);
            }
            if let Some(before) = before
                && let Some(slot) = self.find(&before.key)
            {
                let mut state = self.entries[slot].state;
                timeline::uncut(held(&mut state)?, before, window_start, *after, window_start)?;
                self.entries[slot].state = state;
                self.mark_changed(slot);
            }
            let meter_id = self.timelines.iter().find(|(known, _, _)| known == chain).map(|(_, meter_id, _)| *meter_id);
            if let Some(meter_id) = meter_id {
                self.timeline_mut(*chain, meter_id).remove(at);
            }
        }
        Ok(!gone.is_empty())
    }

    pub(crate) fn timeline_mut(&mut self, chain: Chain, meter_id: MeterId) -> &mut Timeline {
        let found = self.timelines.iter().position(|(known, _, _)| *known == chain);
        let index = found.unwrap_or_else(|| {
            self.timelines.push((chain, meter_id, Timeline::default()));
            self.timelines.len() - 1
        });
        &mut self.timelines[index].2
    }

    /// Evaluates the thresholds of the binding on its value before and after the event (rule C3).
    fn observe(&self, prepared: &mut Prepared<'_>) -> Result<()> {
        let binding = prepared.target.binding;
        if matches!(binding.span(), Span::Sliding { .. }) {
            let changed: SmallVec<[Entry; 2]> = self.changed_by(prepared).collect();
            return self.judge_slid(prepared, &changed);
        }
        let known = self.observed_at(prepared.place()).map(|index| &self.observed[index]);
        let after = self.observed_after(prepared, known)?;
        self.judge(prepared, after)
    }

    /// Compares the SLIDING window of the event with what it was without it. A value that cannot be expressed is refused with the
    /// event that causes it.
    fn judge_slid(&self, prepared: &mut Prepared<'_>, changed: &[Entry]) -> Result<()> {
        let Target { binding, allowance, .. } = prepared.target;
        let window = prepared.evaluated;
        let slid = match &prepared.report {
            Some(Report { chain, at, value }) if binding.component().is_none() => {
                let report = Point { at: *at, value: *value, key: prepared.key };
                Some(self.slid_held(window, *chain, report, &prepared.entry())?)
            }
            _ => self.slid(binding, window, changed)?,
        };
        if let Some((before, after)) = slid {
            prepared.evaluation = evaluate(binding, window, before, after, allowance, &[])?;
        }
        Ok(())
    }

    /// Compares the value after the event with the one before it.
    fn judge(&self, prepared: &mut Prepared<'_>, after: Exact) -> Result<()> {
        let Target { binding, allowance, .. } = prepared.target;
        let known = self.observed_at(prepared.place()).map(|index| &self.observed[index]);
        let before = match known {
            Some(known) => Some(known.value),
            None => self.observed_before(binding, prepared.place())?,
        };
        let fired = known.map_or(&[][..], |known| &known.fired);
        prepared.evaluation = evaluate(binding, prepared.evaluated, before, after, allowance, fired)?;
        prepared.observed = Some(after);
        Ok(())
    }

    pub(crate) fn entries_at(&self, place: Place) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| place_of(entry) == place)
    }

    /// The value of a binding that had no thresholds until now; `None` for functions that have none without events.
    fn observed_before(&self, binding: &CompiledBinding, place: Place) -> Result<Option<Exact>> {
        let zero_when_empty = binding.component().is_some()
            || matches!(binding.meter.function, MeterFunction::Count | MeterFunction::Sum | MeterFunction::UniqueCount);
        if self.entries_at(place).next().is_none() {
            return Ok(zero_when_empty.then_some(Exact::ZERO));
        }
        combined(self.entries_at(place)).map(Some)
    }

    fn observed_after(&self, prepared: &Prepared<'_>, known: Option<&Observed>) -> Result<Exact> {
        let is_sum = |known: &&Observed| !known.is_split && !prepared.target.binding.span().is_running();
        if let Some(known) = known.filter(is_sum).filter(|_| prepared.neighbour.is_none())
            && let Some(slot) = prepared.slot
        {
            let before = self.entries[slot].quantity(None)?;
            return known.value.checked_sub(before)?.checked_add(prepared.quantity()?);
        }
        let changed: SmallVec<[Entry; 2]> = self.changed_by(prepared).collect();
        combined(self.with_changed(prepared.place(), &changed))
    }

    /// Keeps what an event makes of the states. By reference: what is prepared is large, and moving it costs as much as counting.
    fn commit(&mut self, prepared: &mut Prepared<'_>) -> Counted {
        let meter_id = prepared.target.binding.meter.meter_id;
        for hash in &prepared.members {
            self.members_mut(meter_id).add(*hash);
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
        self.mark_changed(index);
        if let Some(Neighbour { slot, state, event_count }) = prepared.neighbour {
            let entry = &mut self.entries[slot];
            (entry.state, entry.event_count) = (state, event_count);
            self.mark_changed(slot);
        }
        if let Some(Report { chain, at, value }) = &prepared.report {
            self.timeline_mut(*chain, meter_id).insert(Point { at: *at, value: *value, key: prepared.key });
        }
        if let Some((hash, value)) = prepared.sighting {
            let sightings = self.sightings_mut(meter_id);
            let sighting = sightings.sighting(prepared.key, value);
            // The share of a total that it was a part of can be taken back.
            let _ = sightings.set(hash, Whose::Own, Some(sighting));
        }
        let evaluation = std::mem::take(&mut prepared.evaluation);
        if let Some(value) = prepared.observed {
            let observed = self.observed_slot(prepared.place(), prepared.slot.is_none());
            observed.value = value;
            observed.fired.retain(|fired| !evaluation.rearmed.contains(fired));
            observed.fired.extend(evaluation.fired);
        }
        Counted { key: prepared.key, breaches: evaluation.breaches }
    }

    pub(crate) fn mark_changed(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        if entry.is_row() && !entry.is_changed {
            entry.is_changed = true;
            self.changed.push(index);
        }
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

    /// Notes that a threshold has fired, unless it is known.
    pub(crate) fn keep_fired(&mut self, place: Place, fired: &FiredThreshold) {
        let known = &mut self.observed_slot(place, false).fired;
        if !known.iter().any(|known| known.owner == fired.owner && known.name == fired.name) {
            known.push(fired.clone());
        }
    }

    pub(crate) fn push(&mut self, entry: Entry, fingerprint: u64) -> usize {
        self.entries.push(entry);
        self.fingerprints.push(fingerprint);
        self.entries.len() - 1
    }

    pub(crate) fn find(&self, key: &RatingKey) -> Option<usize> {
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

    pub(crate) fn sightings_of(&self, meter_id: MeterId) -> Option<&Sightings> {
        self.sightings.iter().find(|(id, _)| *id == meter_id).map(|(_, sightings)| sightings)
    }

    pub(crate) fn sightings_mut(&mut self, meter_id: MeterId) -> &mut Sightings {
        let found = self.sightings.iter().position(|(id, _)| *id == meter_id);
        let index = found.unwrap_or_else(|| {
            self.sightings.push((meter_id, Sightings::default()));
            self.sightings.len() - 1
        });
        &mut self.sightings[index].1
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
        !self.members.is_empty()
            || !self.timelines.is_empty()
            || self.sightings.iter().any(|(_, sightings)| !sightings.is_empty())
            || self.entries.iter().any(Entry::is_row)
    }

    /// Rows that changed since the last call, with their present counts: what a checkpoint writes (rule C6).
    pub fn take_changed_rows(&mut self) -> Vec<MemberRow> {
        self.drop_old_steps();
        let mut rows = Vec::new();
        for (meter_id, members) in &mut self.members {
            let meter_id = *meter_id;
            let changed = members.take_changed().into_iter();
            rows.extend(changed.map(|(hash, count)| MemberRow { meter_id, hash, count, data: None }));
        }
        for (meter_id, sightings) in &mut self.sightings {
            let meter_id = *meter_id;
            rows.extend(sightings.take_changed().into_iter().map(|(hash, whose, sighting)| MemberRow {
                meter_id,
                hash: sighting::row_hash(hash, whose),
                count: u64::from(sighting.is_some()),
                data: sighting.map(|sighting| encode_sighting(hash, whose, &sighting)),
            }));
        }
        for (chain, meter_id, timeline) in &mut self.timelines {
            rows.extend(timeline.take_changed().into_iter().map(|(at, point)| MemberRow {
                meter_id: *meter_id,
                hash: timeline::point_hash(*chain, at),
                count: u64::from(point.is_some()),
                data: point.map(|point| encode_report(*chain, &point)),
            }));
        }
        for index in std::mem::take(&mut self.changed) {
            let entry = &mut self.entries[index];
            entry.is_changed = false;
            rows.push(row_of(entry, entry.event_count.max(1))); // 0 is a row that is gone
        }
        let mut gone = std::mem::take(&mut self.gone);
        if !gone.is_empty() {
            let written: HashSet<u128> = rows.iter().map(|row| row.hash).collect();
            gone.retain(|row| !written.contains(&row.hash)); // it is back
            gone.sort_unstable_by_key(|row| row.hash);
            gone.dedup_by_key(|row| row.hash);
            rows.append(&mut gone);
        }
        rows
    }

    /// Takes the place of `old`, a state of the same window over other events: rows that are gone get the count 0 at the
    /// next checkpoint, because rows are set and not deleted (rule C6).
    pub fn supersede(&mut self, old: &Self) {
        for (meter_id, members) in &old.members {
            self.members_mut(*meter_id).supersede(members);
        }
        for (chain, meter_id, timeline) in &old.timelines {
            self.timeline_mut(*chain, *meter_id).supersede(timeline);
        }
        for (meter_id, sightings) in &old.sightings {
            self.sightings_mut(*meter_id).supersede_rows(sightings);
        }
        let gone = old.entries.iter().filter(|entry| entry.is_row() && self.find(&entry.key()).is_none());
        let gone: Vec<MemberRow> = gone.map(|entry| MemberRow { data: None, ..row_of(entry, 0) }).collect();
        self.gone.extend(gone);
        // Rows that `old` has dropped, and which no checkpoint has deleted yet.
        self.gone.extend(old.gone.iter().cloned());
    }

    /// Lines with atoms and tier walks, and the total of each wallet pin.
    ///
    /// # Errors
    /// `Overflow`, `CurrencyMismatch`.
    pub fn rate(&self, input: &RatingInput<'_>) -> Result<Rated> {
        crate::total::rate(input, &self.seen_at(input.until)?)
    }

    /// Only the total of each wallet pin, the same figures as `rate`: what is accrued after every batch.
    ///
    /// # Errors
    /// As `rate`.
    pub fn accrue(&self, input: &RatingInput<'_>) -> Result<SmallVec<[Accrual; 2]>> {
        crate::total::accrue(input, &self.seen_at(input.until)?)
    }

    /// Puts stored parts together: entries of distinct keys, all members of their windows, fired thresholds.
    pub(crate) fn assemble(
        entries: Vec<Entry>,
        members: impl IntoIterator<Item = MemberRow>,
        reports: impl IntoIterator<Item = ReportRecord>,
        sightings: impl IntoIterator<Item = (MeterId, SightingRecord)>,
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
        window.load_reports(reports)?;
        window.load_sightings(sightings)?;
        for (place, fired) in fired {
            window.observed_slot(place, false).fired.push(fired);
        }
        let is_watched = |entry: &&Entry| {
            !entry.binding.bound_thresholds().is_empty() && !matches!(entry.binding.span(), Span::Sliding { .. })
        };
        let watched: BTreeSet<Place> = window.entries.iter().filter(is_watched).map(place_of).collect();
        for place in watched {
            let value = combined(window.entries_at(place))?;
            window.observed_slot(place, true).value = value;
        }
        Ok(window)
    }
}

impl WindowState {
    /// Reads the observed value of a place from the totals again, where it is kept.
    pub(crate) fn observe_anew(&mut self, place: Place) -> Result<()> {
        if self.observed_at(place).is_some() {
            let value = combined(self.entries_at(place))?;
            self.observed_slot(place, true).value = value;
        }
        Ok(())
    }

    /// Takes over thresholds that have fired.
    pub(crate) fn take_fired(&mut self, fired: Vec<(Place, FiredThreshold)>) {
        for (place, fired) in fired {
            let known = &mut self.observed_slot(place, false).fired;
            if !known.contains(&fired) {
                known.push(fired);
            }
        }
    }

    fn load_reports(&mut self, reports: impl IntoIterator<Item = ReportRecord>) -> Result<()> {
        let mut keys: HashMap<u128, (RatingKey, MeterId)> = HashMap::new();
        for ReportRecord { chain, key_hash, at, value } in reports {
            if keys.is_empty() {
                let key_of = |entry: &Entry| (entry.key().row_hash(), (entry.key(), entry.binding.meter.meter_id));
                keys = self.entries.iter().map(key_of).collect();
            }
            let known = keys.get(&key_hash).copied();
            let (key, meter_id) =
                known.ok_or(RatingError::State(StateError::Damaged("a report of no running total")))?;
            self.timeline_mut(chain, meter_id).load(Point { at, value, key });
        }
        Ok(())
    }
}

impl WindowState {
    fn load_sightings(&mut self, records: impl IntoIterator<Item = (MeterId, SightingRecord)>) -> Result<()> {
        let mut keys: HashMap<u128, RatingKey> = HashMap::new();
        for (meter_id, SightingRecord { hash, whose, key_hash, value }) in records {
            if keys.is_empty() {
                keys = self.entries.iter().map(|entry| (entry.key().row_hash(), entry.key())).collect();
            }
            let key = keys.get(&key_hash).copied();
            let key = key.ok_or(RatingError::State(StateError::Damaged("a sighting of no running total")))?;
            let sightings = self.sightings_mut(meter_id);
            let sighting = sightings.sighting(key, value);
            sightings.load(hash, whose, sighting)?;
        }
        Ok(())
    }
}

/// The state of a TIME_WEIGHTED meter.
fn held(state: &mut MeterState) -> Result<&mut Held> {
    match state {
        MeterState::TimeWeighted(held) => Ok(held),
        _ => Err(RatingError::State(StateError::Damaged("a report of another meter function"))),
    }
}

/// Whether two totals of one binding give one quantity: that of a FORMULA meter, or the parts that versions split.
fn is_rated_together(a: &Entry, b: &Entry) -> bool {
    let RatingKey { binding_version_id, meter_version_id, .. } = a.key();
    let of = |entry: &Entry| RatingKey { segment_start: segment_of(entry), ..entry.key() };
    RatingKey { binding_version_id, meter_version_id, ..of(b) } == of(a)
}

pub(crate) fn place_of(entry: &Entry) -> Place {
    (entry.binding.binding_id, entry.sub_window)
}

/// The row of a key that has one.
pub(crate) fn row_of(entry: &Entry, count: u64) -> MemberRow {
    let (meter_id, hash) = (entry.binding.meter.meter_id, entry.key().row_hash());
    MemberRow { meter_id, hash, count, data: Some(EntryRecord::of(entry).encode()) }
}
