//! Windows that go on over billing periods (meters.md 5, Window): SLIDING and LIFETIME.
//!
//! Their totals are carried into the next billing window, where they stand beside its own ones under [`CARRIED`] as the start
//! of their segment. What is carried is replaced as a whole whenever the window before it changes, so a late event reaches
//! every later window, and each state stays a function of the set of its events (rule C1).
//!
//! A SLIDING window is kept in steps (`Span::step`), so that the state is bounded whatever the number of events: at an
//! event it holds the steps that begin in the `size` before it. Steps are dropped when they are older than twice the size.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::TimeDelta;
use domain::period::Period;
use domain::{BindingId, BindingRole, Instant, MeterFunction};

use crate::binding::CompiledBinding;
use crate::entry::{Entry, RatingKey};
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::member::MemberRow;
use crate::meter::MeterDefinition;
use crate::span::Span;
use crate::threshold::FiredThreshold;
use crate::total::combined;
use crate::window::{Place, WindowState, place_of, row_of};

/// Start of the segment of totals that earlier billing windows have counted.
pub(crate) const CARRIED: Instant = Instant::UNIX_EPOCH;

/// Whether a meter and a role can have a window that goes on.
///
/// # Errors
/// `Unsupported` with what cannot.
pub(crate) fn supported(meter: &MeterDefinition, span: Span, role: Option<BindingRole>) -> Result<()> {
    if !span.is_running() {
        return Ok(());
    }
    let unsupported = |what| Err(RatingError::Unsupported(what));
    match meter.function {
        MeterFunction::UniqueCount | MeterFunction::TimeWeighted | MeterFunction::Formula => {
            unsupported("UNIQUE_COUNT, TIME_WEIGHTED or FORMULA over a window of the kind SLIDING or LIFETIME")
        }
        _ if meter.dedup_key_path.is_some() => {
            unsupported("dedup_key_path with a window of the kind SLIDING or LIFETIME")
        }
        _ => match (span, role) {
            (Span::Sliding { .. }, Some(BindingRole::Primary | BindingRole::FormulaInput)) => {
                unsupported("a SLIDING window, which is for thresholds only, in another role than INFORMATIONAL")
            }
            (Span::Lifetime, Some(BindingRole::Primary)) => {
                unsupported("a LIFETIME window, which would be charged in every period anew, in the role PRIMARY")
            }
            _ => Ok(()),
        },
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

impl WindowState {
    /// The value of a SLIDING window that ends at an instant, before and after an event; `None` where it is so late that steps
    /// of its window may be gone.
    pub(crate) fn slid(
        &self,
        binding: &CompiledBinding,
        window: Period,
        changed: &Entry,
    ) -> Result<Option<(Option<Exact>, Exact)>> {
        let of_binding = || self.entries().iter().filter(|entry| entry.binding.binding_id == binding.binding_id);
        let size = window.end - window.start;
        if of_binding().any(|entry| entry.sub_window.is_some_and(|step| step > window.end + size)) {
            return Ok(None);
        }
        let inside = || of_binding().filter(|entry| entry.sub_window.is_some() && is_within(entry, window.end));
        let zero_when_empty = matches!(binding.meter.function, MeterFunction::Count | MeterFunction::Sum);
        let before = match inside().next() {
            None => zero_when_empty.then_some(Exact::ZERO),
            Some(_) => Some(combined(inside())?),
        };
        let others = inside().filter(|entry| entry.key() != changed.key());
        Ok(Some((before, combined(others.chain([changed]))?)))
    }

    /// Whether totals go on over the end of the window.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.entries().iter().any(is_running)
    }

    /// What goes on after the end of this window.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn running(&self, end: Instant) -> Result<Running> {
        let mut running = Running::default();
        for entry in self.entries().iter().filter(|entry| is_running(entry)) {
            if let (Span::Sliding { size }, Some(step)) = (entry.binding.span(), entry.sub_window)
                && step <= end - size * 2
            {
                continue;
            }
            let carried = Entry { segment_start: CARRIED, is_changed: false, ..entry.clone() };
            match running.entries.iter_mut().find(|known| known.key() == carried.key()) {
                Some(known) => {
                    known.state.merge(&carried.state)?;
                    known.event_count += carried.event_count;
                }
                None => running.entries.push(carried),
            }
        }
        running.fired = self.fired_for_life();
        Ok(running)
    }

    /// What was carried in.
    #[must_use]
    pub(crate) fn carried(&self) -> Running {
        let entries = self.entries().iter().filter(|entry| is_running(entry) && entry.segment_start == CARRIED);
        Running { entries: entries.cloned().collect(), fired: self.fired_for_life() }
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
    pub fn carry_running(&mut self, running: Running) -> Result<bool> {
        let is_first = self.carried().is_empty();
        let latest = self.latest_steps();
        let is_known = |carried: &Entry| !is_old(carried, &latest);
        let carried: Vec<Entry> = running.entries.into_iter().filter(is_known).collect();
        let keys: HashSet<RatingKey> = carried.iter().map(Entry::key).collect();
        let is_gone =
            |entry: &Entry| is_running(entry) && entry.segment_start == CARRIED && !keys.contains(&entry.key());
        let mut places: BTreeSet<Place> = self.entries.iter().filter(|entry| is_gone(entry)).map(place_of).collect();
        let mut has_changed = self.retain(|entry| !is_gone(entry));
        for carried in carried {
            let place = place_of(&carried);
            if self.set(carried) {
                places.insert(place);
                has_changed = true;
            }
        }
        if is_first {
            self.take_fired(running.fired);
        }
        places.into_iter().try_for_each(|place| self.observe_anew(place))?;
        Ok(has_changed)
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

    /// Drops the steps of SLIDING windows that no event can reach any more; their rows are gone.
    pub(crate) fn drop_old_steps(&mut self) {
        let latest = self.latest_steps();
        if !latest.is_empty() {
            self.retain(|entry| !is_old(entry, &latest));
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

/// Totals that go on over the end of a billing window.
#[derive(Clone, Debug, Default)]
pub struct Running {
    entries: Vec<Entry>,
    fired: Vec<(Place, FiredThreshold)>,
}

impl Running {
    /// Whether nothing goes on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Longest share of a SLIDING window that is counted together.
pub(crate) fn step_of(size: TimeDelta) -> TimeDelta {
    (size / 360).max(TimeDelta::seconds(1))
}
