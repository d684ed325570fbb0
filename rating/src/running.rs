//! Windows that go on over billing periods (meters.md 5, Window): SLIDING and LIFETIME.
//!
//! Their totals are carried into the next billing window, where they stand beside its own ones under [`CARRIED`] as the start
//! of their segment. What is carried is replaced as a whole whenever the window before it changes, so a late event reaches
//! every later window, and each state stays a function of the set of its events (rule C1).
//!
//! A SLIDING window is kept in steps (`step_of`), so that the state is bounded whatever the number of events: at an
//! event it holds the steps that begin in the `size` before it. Steps are dropped when they are older than twice the size.
//!
//! What counts once is known by its [`crate::sighting`], of which there is one for each value; so it is known when a value was
//! seen last, and not when before. Where that matters (and for FORMULA), an event that comes behind a later one is seen in the
//! window that ends with that one. TIME_WEIGHTED over a SLIDING window has no steps: its reports are kept anyway, those of
//! twice the size, and the value is read from them, up to the latest report.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono::TimeDelta;
use domain::period::Period;
use domain::{BindingId, BindingRole, Instant, MeterFunction, MeterId};

use crate::binding::CompiledBinding;
use crate::entry::{Entry, RatingKey};
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::member::MemberRow;
use crate::meter::MeterState;
use crate::sighting::{News, Share, Sighting, Whose, is_sighted};
use crate::span::Span;
use crate::threshold::FiredThreshold;
use crate::timeline::{self, Chain, Held, Point, Timeline};
use crate::total::combined;
use crate::window::{Place, WindowState, place_of, row_of};

/// Start of the segment of totals that earlier billing windows have counted.
pub(crate) const CARRIED: Instant = Instant::UNIX_EPOCH;

/// Whether a binding of this role can have this window.
///
/// # Errors
/// `Unsupported` with what cannot.
pub(crate) fn supported(span: Span, role: BindingRole) -> Result<()> {
    match (span, role) {
        (Span::Sliding { .. }, BindingRole::Primary | BindingRole::FormulaInput) => Err(RatingError::Unsupported(
            "a SLIDING window, which is for thresholds only, in another role than INFORMATIONAL",
        )),
        (Span::Lifetime, BindingRole::Primary) => Err(RatingError::Unsupported(
            "a LIFETIME window, which would be charged in every period anew, in the role PRIMARY",
        )),
        _ => Ok(()),
    }
}

/// Whether its totals go on over billing periods.
pub(crate) fn is_running(entry: &Entry) -> bool {
    entry.binding.role != BindingRole::Primary && entry.binding.span().is_running()
}

/// The totals of one version put together, in the order in which they come.
pub(crate) fn merged(entries: &[&Entry]) -> Result<Vec<Entry>> {
    let mut merged: Vec<Entry> = Vec::new();
    for entry in entries {
        let versions = |entry: &Entry| (entry.binding.version_id, entry.binding.meter.version_id);
        match merged.iter_mut().find(|known| versions(known) == versions(entry)) {
            Some(known) => known.state.merge(&entry.state)?,
            None => merged.push(Entry::clone(entry)),
        }
    }
    Ok(merged)
}

/// Whether a step of a SLIDING window, or anything of another one, lies in the window that ends at an instant.
pub(crate) fn is_within(entry: &Entry, end: Instant) -> bool {
    match (entry.binding.span(), entry.sub_window) {
        (Span::Sliding { size }, Some(step)) => end - size < step && step <= end,
        _ => true,
    }
}

/// Whether it is read from its reports.
fn is_slid_and_held(binding: &CompiledBinding) -> bool {
    binding.meter.function == MeterFunction::TimeWeighted && matches!(binding.span(), Span::Sliding { .. })
}

/// Whether its SLIDING windows are read up to the latest event only.
pub(crate) fn ends_with_the_latest(binding: &CompiledBinding) -> bool {
    binding.component().is_some() || is_sighted(binding) || is_slid_and_held(binding)
}

impl WindowState {
    /// The end of the SLIDING window of an event.
    pub(crate) fn sliding_end(&self, binding: &CompiledBinding, at: Instant) -> Instant {
        if !ends_with_the_latest(binding) {
            return at;
        }
        let of_binding = self.entries().iter().filter(|entry| entry.binding.binding_id == binding.binding_id);
        let latest = of_binding.filter_map(|entry| entry.sub_window).max();
        latest.max(self.latest_report(binding)).map_or(at, |latest| latest.max(at))
    }

    /// The timelines of a binding that is read from its reports.
    fn slid_timelines(&self, binding_id: Option<BindingId>) -> impl Iterator<Item = (Chain, MeterId, &Timeline, Span)> {
        self.timelines.iter().filter_map(move |(chain, meter_id, timeline)| {
            let binding = &self.entries[self.find(&timeline.last()?.key)?].binding;
            let is_own = binding_id.is_none_or(|id| id == binding.binding_id) && is_slid_and_held(binding);
            is_own.then(|| (*chain, *meter_id, timeline, binding.span()))
        })
    }

    fn latest_report(&self, binding: &CompiledBinding) -> Option<Instant> {
        let timelines = self.slid_timelines(Some(binding.binding_id));
        timelines.filter_map(|(_, _, timeline, _)| timeline.last()).map(|point| point.at.0).max()
    }

    /// The totals as they are at an instant, or at the last report: those that are read from reports, too.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn seen_at(&self, until: Option<Instant>) -> Result<Cow<'_, [Entry]>> {
        let mut held = Vec::new();
        for (_, _, timeline, span) in self.slid_timelines(None) {
            let (Span::Sliding { size }, Some(last)) = (span, timeline.last()) else { continue };
            let end = until.unwrap_or(last.at.0);
            held.append(&mut timeline.held_within(end - size, end)?);
        }
        if held.is_empty() {
            return Ok(Cow::Borrowed(self.entries()));
        }
        let mut entries = self.entries().to_vec();
        for (key, held) in held {
            if let Some(slot) = self.find(&key) {
                entries[slot].state = MeterState::TimeWeighted(held);
            }
        }
        Ok(Cow::Owned(entries))
    }

    /// The value of a SLIDING window that ends at an instant, before and after an event which changes totals; `None` where it is
    /// so late that steps of its window may be gone.
    pub(crate) fn slid(
        &self,
        binding: &CompiledBinding,
        window: Period,
        changed: &[Entry],
    ) -> Result<Option<(Option<Exact>, Exact)>> {
        let of_binding = || self.entries().iter().filter(|entry| entry.binding.binding_id == binding.binding_id);
        let size = window.end - window.start;
        if of_binding().any(|entry| entry.sub_window.is_some_and(|step| step > window.end + size)) {
            return Ok(None);
        }
        let is_inside = |entry: &&Entry| entry.sub_window.is_some() && is_within(entry, window.end);
        let zero_when_empty = binding.component().is_some()
            || matches!(binding.meter.function, MeterFunction::Count | MeterFunction::Sum | MeterFunction::UniqueCount);
        let before = match of_binding().find(is_inside) {
            None => zero_when_empty.then_some(Exact::ZERO),
            Some(_) => Some(combined(of_binding().filter(is_inside))?),
        };
        let is_other = |entry: &&Entry| changed.iter().all(|changed| changed.key() != entry.key());
        let after = of_binding().filter(is_other).chain(changed).filter(is_inside);
        Ok(Some((before, combined(after)?)))
    }

    /// The same for a value that is read from reports: in the window that ended with the latest report before, and in the one
    /// that ends with the latest report after a report has come.
    pub(crate) fn slid_held(
        &self,
        window: Period,
        chain: Chain,
        report: Point,
        entry: &Entry,
    ) -> Result<(Option<Exact>, Exact)> {
        let binding_id = entry.binding.binding_id;
        let value_of = |held: &[(RatingKey, Held)]| -> Result<Exact> {
            let known = self.entries().iter().filter(|known| known.binding.binding_id == binding_id);
            let others = known.filter(|known| known.key() != entry.key());
            let seen = |entry: &Entry| {
                let found = held.iter().find(|(key, _)| *key == entry.key());
                let state = MeterState::TimeWeighted(found.map(|(_, held)| *held).unwrap_or_default());
                Entry { state, ..entry.clone() }
            };
            combined(&others.chain([entry]).map(seen).collect::<Vec<_>>())
        };
        let before = match self.latest_report(&entry.binding) {
            None => Exact::ZERO,
            Some(end) => value_of(&self.held_within(binding_id, end - (window.end - window.start), end)?)?,
        };
        let mut held = self.held_within(binding_id, window.start, window.end)?;
        let known = self.timelines.iter().find(|(known, _, _)| *known == chain);
        let around = known.map(|(_, _, timeline)| timeline.neighbours(report.at)).unwrap_or_default();
        let inside = |at: Instant| at.clamp(window.start, window.end);
        let (from, to) = (inside(report.at.0), inside(around.after.unwrap_or(window.end)));
        if let Some(before) = around.before {
            timeline::add_to(&mut held, before.key, before.value, (to, from))?; // negative: no more
        }
        timeline::add_to(&mut held, report.key, report.value, (from, to))?;
        Ok((Some(before), value_of(&held)?))
    }

    /// What a binding that is read from its reports held between two instants, by running total.
    fn held_within(&self, binding_id: BindingId, from: Instant, to: Instant) -> Result<Vec<(RatingKey, Held)>> {
        let mut held = Vec::new();
        for (_, _, timeline, _) in self.slid_timelines(Some(binding_id)) {
            held.append(&mut timeline.held_within(from, to)?);
        }
        Ok(held)
    }

    /// Whether totals go on over the end of the window.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.entries().iter().any(is_running)
    }

    /// Takes over what goes on after the end of the window before this one; whether anything has changed. It is told what has
    /// changed since the last time, and all at the first time.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn go_on_from(&mut self, before: &mut Self, end: Instant) -> Result<bool> {
        let is_known = matches!((&before.told, &self.heard), (Some(told), Some(heard)) if Arc::ptr_eq(told, heard));
        if !is_known {
            for (meter_id, _) in &self.sightings {
                before.sightings_mut(*meter_id); // where it has none, there are none
            }
            before.sightings.iter_mut().for_each(|(_, sightings)| sightings.tell_all());
            before.timelines.iter_mut().for_each(|(_, _, timeline)| timeline.has_news = true);
            before.told = Some(Arc::new(()));
        }
        self.heard = None; // until all of it is taken over
        let running = before.running(end)?;
        let has_changed = self.carry_running(running)?;
        self.heard.clone_from(&before.told);
        Ok(has_changed)
    }

    /// What goes on after the end of this window, of sightings and reports only what is news.
    fn running(&mut self, end: Instant) -> Result<Running> {
        let mut running = Running::default();
        for entry in self.entries().iter().filter(|entry| is_running(entry)) {
            if let (Span::Sliding { size }, Some(step)) = (entry.binding.span(), entry.sub_window)
                && step <= end - size * 2
            {
                continue;
            }
            let mut carried = Entry { segment_start: CARRIED, is_changed: false, ..entry.clone() };
            if let MeterState::TimeWeighted(held) = carried.state {
                carried.state = MeterState::TimeWeighted(held.closed(end)?); // the next window holds it on
            }
            match running.entries.iter_mut().find(|known| known.key() == carried.key()) {
                Some(known) => {
                    known.state.merge(&carried.state)?;
                    known.event_count += carried.event_count;
                }
                None => running.entries.push(carried),
            }
        }
        running.fired = self.fired_for_life();
        running.sightings =
            self.sightings.iter_mut().map(|(meter_id, sightings)| (*meter_id, sightings.take_news())).collect();
        running.reports = self.slid_reports(|timeline| timeline.has_news, |_| true);
        self.timelines.iter_mut().for_each(|(_, _, timeline)| timeline.has_news = false);
        Ok(running)
    }

    /// Reports that SLIDING windows are read from.
    fn slid_reports(&self, of: impl Fn(&Timeline) -> bool, which: impl Fn(&Point) -> bool) -> Vec<Reports> {
        let timelines = self.slid_timelines(None).filter(|(_, _, timeline, _)| of(timeline));
        let carried = |point: Point| Point { key: RatingKey { segment_start: CARRIED, ..point.key }, ..point };
        let reports = timelines.map(|(chain, meter_id, timeline, _)| {
            (chain, meter_id, timeline.iter().filter(|point| which(point)).map(carried).collect())
        });
        reports.collect()
    }

    /// What was carried in.
    #[must_use]
    pub(crate) fn carried(&self) -> Running {
        let entries = self.entries().iter().filter(|entry| is_running(entry) && entry.segment_start == CARRIED);
        let mut running = Running {
            entries: entries.map(|entry| Entry { is_changed: false, ..entry.clone() }).collect(),
            fired: self.fired_for_life(),
            sightings: self.sightings.iter().map(|(meter_id, sightings)| (*meter_id, sightings.carried())).collect(),
            reports: self.slid_reports(|_| true, |point| point.key.segment_start == CARRIED),
        };
        for entry in &mut running.entries {
            // As it was carried, with what this window has seen later.
            if let Some(share) =
                self.sightings_of(entry.binding.meter.meter_id).and_then(|s| s.superseded(&entry.key()))
            {
                let _ = entry.state.put_in(share); // it was taken out of it
                entry.event_count += events_of(entry, share);
            }
        }
        running
    }

    /// Thresholds of LIFETIME windows that have fired.
    fn fired_for_life(&self) -> Vec<(Place, FiredThreshold)> {
        let places: Vec<BindingId> = self
            .entries()
            .iter()
            .filter(|entry| entry.binding.span() == Span::Lifetime)
            .map(|entry| entry.binding.binding_id)
            .collect();
        let fired = self.fired().filter(|((binding_id, _), _)| places.contains(binding_id));
        fired.map(|(place, fired)| (place, fired.clone())).collect()
    }

    /// Sets what goes on from the window before; whether anything has changed. A threshold that has fired before is taken over
    /// once: it may be re-armed here.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn carry_running(&mut self, running: Running) -> Result<bool> {
        let is_first = !self.entries.iter().any(|entry| is_running(entry) && entry.segment_start == CARRIED);
        let latest = self.latest_steps();
        let is_known = |carried: &Entry| !is_old(carried, &latest);
        let mut carried: Vec<Entry> = running.entries.into_iter().filter(is_known).collect();
        let keys: HashSet<RatingKey> = carried.iter().map(Entry::key).collect();
        let mut moved = Vec::new();
        let mut has_changed = false;
        for (meter_id, news) in running.sightings {
            has_changed |= self.carry_sightings(meter_id, news, &keys, &mut moved)?;
        }
        for entry in &mut carried {
            let share = self.sightings_of(entry.binding.meter.meter_id).and_then(|s| s.superseded(&entry.key()));
            if let Some(share) = share {
                entry.state.take_out(share)?;
                entry.event_count = entry.event_count.saturating_sub(events_of(entry, share));
            }
        }
        let is_gone =
            |entry: &Entry| is_running(entry) && entry.segment_start == CARRIED && !keys.contains(&entry.key());
        let mut places: BTreeSet<Place> = self.entries.iter().filter(|entry| is_gone(entry)).map(place_of).collect();
        self.forget_under(self.entries.iter().filter(|entry| is_gone(entry)).map(Entry::key).collect());
        has_changed |= self.retain(|entry| !is_gone(entry));
        for carried in carried {
            let place = place_of(&carried);
            if self.set(carried) {
                places.insert(place);
                has_changed = true;
            }
        }
        for (sighting, is_in) in moved {
            places.extend(self.shift(&sighting, is_in)?);
        }
        for (chain, meter_id, reports) in running.reports {
            has_changed |= self.carry_reports(chain, meter_id, reports, &keys);
        }
        if is_first {
            self.take_fired(running.fired);
        }
        places.into_iter().try_for_each(|place| self.observe_anew(place))?;
        Ok(has_changed)
    }

    /// Sets what earlier billing windows have seen. Own sightings that count no more, or again, are noted with it.
    fn carry_sightings(
        &mut self,
        meter_id: MeterId,
        mut news: News,
        keys: &HashSet<RatingKey>,
        moved: &mut Vec<(Sighting, bool)>,
    ) -> Result<bool> {
        let sightings = self.sightings_mut(meter_id);
        if news.is_whole {
            let told: HashSet<u128> = news.counting.iter().map(|(hash, _)| *hash).collect();
            let untold = sightings.iter().filter(|(hash, seen)| seen.carried.is_some() && !told.contains(hash));
            let untold: Vec<_> = untold.map(|(hash, _)| (hash, None)).collect();
            news.counting.extend(untold);
        }
        let mut has_changed = false;
        for (hash, sighting) in news.counting {
            let sighting = sighting.and_then(|Sighting { key, value }| {
                let key = RatingKey { segment_start: CARRIED, ..*key };
                keys.contains(&key).then(|| sightings.sighting(key, value))
            });
            let counted = sightings.get(hash).counts_own();
            has_changed |= sightings.set(hash, Whose::Carried, sighting)?;
            let seen = sightings.get(hash);
            if let Some(own) = seen.own.clone().filter(|_| seen.counts_own() != counted) {
                moved.push((own, !counted));
            }
        }
        Ok(has_changed)
    }

    /// Puts what a sighting brings into its total, or takes it out; where.
    fn shift(&mut self, sighting: &Sighting, is_in: bool) -> Result<Option<Place>> {
        let Some(slot) = self.find(&sighting.key) else { return Ok(None) };
        let entry = &mut self.entries[slot];
        let share = Share::of(sighting.value);
        let events = events_of(entry, share);
        if is_in {
            entry.state.put_in(share)?;
            entry.event_count += events;
        } else {
            entry.state.take_out(share)?;
            entry.event_count = entry.event_count.saturating_sub(events);
        }
        let place = place_of(entry);
        self.mark_changed(slot);
        Ok(Some(place))
    }

    /// Sets the reports of earlier billing windows.
    fn carry_reports(
        &mut self,
        chain: Chain,
        meter_id: MeterId,
        reports: Vec<Point>,
        keys: &HashSet<RatingKey>,
    ) -> bool {
        let timeline = self.timeline_mut(chain, meter_id);
        let carried = timeline.iter().filter(|point| point.key.segment_start == CARRIED);
        let mut gone: HashMap<_, Point> = carried.map(|point| (point.at, point)).collect();
        let mut has_changed = false;
        for report in reports.into_iter().filter(|report| keys.contains(&report.key)) {
            if gone.remove(&report.at) != Some(report) {
                timeline.insert(report);
                has_changed = true;
            }
        }
        has_changed |= !gone.is_empty();
        gone.into_keys().for_each(|at| timeline.remove(at));
        has_changed
    }

    /// Drops sightings and reports under totals that go.
    fn forget_under(&mut self, gone: HashSet<RatingKey>) {
        if gone.is_empty() {
            return;
        }
        for (_, sightings) in &mut self.sightings {
            let _ = sightings.forget(|key| gone.contains(key)); // what is taken back fitted in before
        }
        for (_, _, timeline) in &mut self.timelines {
            let reports: Vec<_> =
                timeline.iter().filter(|point| gone.contains(&point.key)).map(|point| point.at).collect();
            reports.into_iter().for_each(|at| timeline.remove(at));
        }
    }

    /// The latest step of each binding with a SLIDING window.
    fn latest_steps(&self) -> HashMap<BindingId, Instant> {
        let mut latest: HashMap<BindingId, Instant> = HashMap::new();
        for entry in self.entries.iter().filter(|entry| is_running(entry)) {
            let Some(step) = entry.sub_window else { continue };
            let known = latest.entry(entry.binding.binding_id).or_insert(step);
            *known = step.max(*known);
        }
        latest
    }

    /// Drops the steps and reports of SLIDING windows that no event can reach any more; their rows are gone.
    pub(crate) fn drop_old_steps(&mut self) {
        let latest = self.latest_steps();
        let is_dropped = |entry: &Entry| is_old(entry, &latest);
        self.forget_under(self.entries.iter().filter(|entry| is_dropped(entry)).map(Entry::key).collect());
        self.retain(|entry| !is_dropped(entry));
        let old = self.slid_timelines(None).filter_map(|(chain, meter_id, timeline, span)| {
            let Span::Sliding { size } = span else { return None };
            Some((chain, meter_id, timeline.before(timeline.last()?.at.0 - size * 2)))
        });
        let old: Vec<_> = old.collect();
        for (chain, meter_id, reports) in old {
            let timeline = self.timeline_mut(chain, meter_id);
            reports.into_iter().for_each(|at| timeline.remove(at));
        }
    }

    /// Keeps some totals; the rows of the others are gone. Whether there are any.
    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) -> bool {
        if self.entries.iter().all(&keep) {
            return false;
        }
        let old = std::mem::take(&mut self.entries);
        self.fingerprints.clear();
        self.changed.clear();
        for entry in old {
            if keep(&entry) {
                let (fingerprint, is_changed) = (entry.key().fingerprint(), entry.is_changed);
                let index = self.push(entry, fingerprint);
                if is_changed {
                    self.changed.push(index);
                }
            } else if entry.is_row() {
                self.gone.push(MemberRow { data: None, ..row_of(&entry, 0) });
            }
        }
        true
    }

    /// Puts a total in the place of the one of its key; whether it is another one.
    fn set(&mut self, new: Entry) -> bool {
        let key = new.key();
        let index = match self.find(&key) {
            Some(index) => {
                let known = &mut self.entries[index];
                if (known.state, known.event_count) == (new.state, new.event_count) {
                    return false;
                }
                (known.state, known.event_count) = (new.state, new.event_count);
                index
            }
            None => self.push(new, key.fingerprint()),
        };
        self.mark_changed(index);
        true
    }
}

/// Whether a step of a SLIDING window is older than twice its size.
fn is_old(entry: &Entry, latest: &HashMap<BindingId, Instant>) -> bool {
    match (entry.binding.span(), entry.sub_window) {
        (Span::Sliding { size }, Some(step)) if is_running(entry) => {
            latest.get(&entry.binding.binding_id).is_some_and(|latest| step <= *latest - size * 2)
        }
        _ => false,
    }
}

/// How many of the events of a total are those of sightings: of distinct values every event counts as one.
fn events_of(entry: &Entry, share: Share) -> u64 {
    if entry.binding.meter.function == MeterFunction::UniqueCount { 0 } else { share.count }
}

/// The reports of a chain, which SLIDING windows are read from.
type Reports = (Chain, MeterId, Vec<Point>);

/// Totals that go on over the end of a billing window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running {
    entries: Vec<Entry>,
    fired: Vec<(Place, FiredThreshold)>,
    sightings: Vec<(MeterId, News)>,
    reports: Vec<Reports>,
}

/// Longest share of a SLIDING window that is counted together.
pub(crate) fn step_of(size: TimeDelta) -> TimeDelta {
    (size / 360).max(TimeDelta::seconds(1))
}
