//! The subscription actor: owns the open windows of one subscription and counts its events, one after the other.
//!
//! It is created by its partition with the state of the last checkpoint, never writes anything itself, and can be dropped
//! and rebuilt at any time (rule A2). Refusals travel in the answer; its death means that its state cannot be trusted.

mod carry;
mod initial;
mod limits;
mod rebuild;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use catalog::compiled::{CommittedUse, SubscriptionTerms, Unpriced, WindowStatus, WorkspaceCatalog};
use domain::period::Period;
use domain::{
    BindingRole, Instant, LateEventPolicy, MeterFunction, Position, PricingModel, ProductId, Quantity, UsageEvent,
    VersionId,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use rating::{Breach, CompiledBinding, Outcome, RatingError, RatingInput, Span, Target, WindowState};
use smallvec::SmallVec;
use tokio::sync::mpsc::UnboundedSender;

use crate::checkpoint::{AccrualWrite, WindowWrite};
use crate::record::{Control, ControlKind};
pub use initial::Initial;
pub use rebuild::Rebuilt;

/// An event that was read from the log and is no duplicate.
#[derive(Debug)]
pub struct Incoming {
    /// The event; boxed, because it is handed on many times.
    pub event: Box<UsageEvent>,
    /// Place of its record.
    pub position: Position,
    /// Hash of its content.
    pub payload_hash: u64,
    /// Foreign records have not passed a door: they are judged in full here (rule A7).
    pub is_foreign: bool,
}

/// What became of an event.
#[derive(Debug)]
pub enum Verdict {
    /// It changed a total, or a filter left it out of every total; it occupies its id either way.
    Counted {
        /// Window in which it is counted.
        window_start: Instant,
        /// Whether its own window was sealed before.
        late: bool,
        /// Thresholds that it crossed.
        breaches: Vec<Breach>,
    },
    /// It is counted in its own window, which is closed: billing corrects what was charged (`LateEventPolicy::Correct`).
    Correcting {
        /// The closed window.
        window: Period,
    },
    /// Kept with a reason.
    Rejected {
        /// Stable code.
        code: &'static str,
        /// For people.
        message: String,
    },
    /// The product's or meter's policy says so; announced, not counted.
    Dropped {
        /// For people.
        reason: Cow<'static, str>,
    },
}

/// The events of one subscription in one batch, and what became of them.
#[derive(Debug)]
pub struct Answer {
    /// In the order of the message.
    pub verdicts: Vec<(Incoming, Verdict)>,
    /// Tenant of the events.
    pub terms: Arc<SubscriptionTerms>,
}

/// Messages of a subscription actor.
#[derive(Debug)]
pub enum SubscriptionMsg {
    /// Counts events, in order.
    Count {
        /// Catalog at or after the revision of every event (rule B6).
        catalog: Arc<WorkspaceCatalog>,
        /// Terms at the same revision.
        terms: Arc<SubscriptionTerms>,
        /// In order of position.
        events: Vec<Incoming>,
        /// Takes the answer of the batch.
        reply: UnboundedSender<Answer>,
    },
    /// Applies a control record (rule C2).
    Control {
        /// Catalog at or after the revision of the record.
        catalog: Arc<WorkspaceCatalog>,
        /// Terms at the record's revision.
        terms: Arc<SubscriptionTerms>,
        /// What happens.
        control: Control,
        /// Place of the record.
        position: Position,
        /// Answered when it is done.
        reply: UnboundedSender<()>,
    },
    /// Puts a window that was counted anew in the place of the one at hand.
    Replace {
        /// Catalog that it was counted by.
        catalog: Arc<WorkspaceCatalog>,
        /// Terms that it was counted by.
        terms: Arc<SubscriptionTerms>,
        /// The window.
        rebuilt: Box<Rebuilt>,
        /// Answered when it is done.
        reply: UnboundedSender<()>,
    },
    /// Gives what has changed since the last time, for a checkpoint.
    Snapshot {
        /// Catalog for the allowance.
        catalog: Arc<WorkspaceCatalog>,
        /// Terms for the allowance.
        terms: Arc<SubscriptionTerms>,
        /// Takes the changed windows.
        reply: UnboundedSender<Vec<WindowWrite>>,
    },
}

/// A window that is not sealed, or was sealed since the last checkpoint.
#[derive(Clone, Debug)]
pub struct WindowSlot {
    /// Start and end.
    pub window: Period,
    /// How far it is closed.
    pub status: WindowStatus,
    /// Position of the record that changed it last.
    pub position: Position,
    /// Counted events.
    pub event_count: u64,
    /// Running totals.
    pub state: WindowState,
    /// Upper bound of what the meters of this window can show, in whole units.
    pub magnitude: u128,
    /// Products whose allowance in this window is within the range.
    pub allowed: SmallVec<[ProductId; 4]>,
    /// Whether a checkpoint has to write it.
    pub is_dirty: bool,
    /// Whether it was counted anew since the last checkpoint, so that amounts may be gone.
    pub is_rebuilt: bool,
    /// Whether the last checkpoint has written usage of it that is refused.
    pub is_blocking: bool,
}

impl WindowSlot {
    /// Up to when held values count: the actor has no clock (rule B6), so until the window has ended, up to the last report.
    fn counts_until(&self) -> Option<Instant> {
        (self.status != WindowStatus::Open).then_some(self.window.end)
    }
}

/// Counts the events of one subscription.
pub struct SubscriptionActor;

impl Actor for SubscriptionActor {
    type Msg = SubscriptionMsg;
    type State = Windows;
    type Arguments = Initial;

    async fn pre_start(&self, _: ActorRef<Self::Msg>, initial: Initial) -> Result<Windows, ActorProcessingErr> {
        Ok(initial.into())
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: SubscriptionMsg,
        windows: &mut Windows,
    ) -> Result<(), ActorProcessingErr> {
        // A reply that nobody waits for belongs to a partition that is being dropped.
        match message {
            SubscriptionMsg::Count { catalog, terms, events, reply } => {
                let judge = Judge { catalog: &catalog, terms: &terms };
                let verdicts = events
                    .into_iter()
                    .map(|incoming| {
                        let verdict = windows.count(&judge, &incoming);
                        (incoming, verdict)
                    })
                    .collect();
                let _ = reply.send(Answer { verdicts, terms });
            }
            SubscriptionMsg::Control { catalog, terms, control, position, reply } => {
                windows.control(&Judge { catalog: &catalog, terms: &terms }, &control, position);
                let _ = reply.send(());
            }
            SubscriptionMsg::Replace { catalog, terms, rebuilt, reply } => {
                windows.replace(&Judge { catalog: &catalog, terms: &terms }, *rebuilt);
                let _ = reply.send(());
            }
            SubscriptionMsg::Snapshot { catalog, terms, reply } => {
                let _ = reply.send(windows.snapshot(&catalog, &terms));
            }
        }
        Ok(())
    }
}

/// The windows of one subscription that still count.
#[derive(Debug)]
pub struct Windows {
    slots: Vec<WindowSlot>,
    sealed_until: Option<Instant>,
    rates: Rates,
}

/// Largest rate or fee of the prices that were met, in whole units.
type Rates = SmallVec<[(VersionId, u128); 4]>;

/// What an event is judged by: the catalog and the terms as of its acceptance (rule B6).
pub(crate) struct Judge<'a> {
    pub(crate) catalog: &'a WorkspaceCatalog,
    pub(crate) terms: &'a SubscriptionTerms,
}

/// The bindings and prices of one event.
struct Resolved<'a> {
    binding: &'a Arc<CompiledBinding>,
    price: Option<(&'a Arc<rating::CompiledPrice>, Instant)>,
}

fn rejected(code: &'static str, message: impl Into<String>) -> Verdict {
    Verdict::Rejected { code, message: message.into() }
}

impl Judge<'_> {
    fn resolve<'a>(&'a self, event: &'a UsageEvent) -> Result<SmallVec<[Resolved<'a>; 2]>, Verdict> {
        let Some(product) = self.catalog.product(event.product_id) else {
            return Err(rejected("NOT_FOUND", format!("product {} was not found", event.product_id)));
        };
        let mut resolved = SmallVec::new();
        for binding in self.catalog.bindings_of(product, &event.metric_key, event.timestamp) {
            let price = match binding.role {
                BindingRole::Primary => Some(self.price(event)?),
                BindingRole::FormulaInput | BindingRole::Informational => None,
            };
            resolved.push(Resolved { binding, price });
        }
        if resolved.is_empty() {
            let message = format!("no meter is bound to product {} for metric {}", event.product_id, event.metric_key);
            return Err(rejected("BUSINESS_RULE_VIOLATION", message));
        }
        Ok(resolved)
    }

    /// Total allowance of an event's product and metric.
    fn allowance(&self, event: &UsageEvent, window: Period) -> domain::Result<Quantity> {
        let allowance = self.catalog.allowance(self.terms, event.product_id, &event.metric_key, window)?;
        Ok(allowance.sources()?.total()?)
    }

    /// Largest rate of the commitments that an event may fall under, in whole units.
    fn committed_rate(&self, event: &UsageEvent) -> u128 {
        if self.terms.carried.commitments.is_empty() {
            return 0;
        }
        let rate = |one: &CommittedUse| {
            let at = |id| self.catalog.version_of_price(self.terms, event.product_id, id, event.timestamp);
            let overage = one.overage_price_id.and_then(at).map_or(0, |(_, price)| largest_rate(price));
            whole(one.committed_rate).max(overage)
        };
        self.terms.carried.commitments_of(event.product_id, &event.metric_key).map(rate).max().unwrap_or(0)
    }

    /// Where the segment of an event's commitment begins, or else its window: late usage counts where its window starts.
    fn commitment_boundary(&self, event: &UsageEvent, window: Period) -> Instant {
        let at = event.timestamp.max(window.start);
        let found = self.terms.commitment_boundary(event.product_id, &event.metric_key, at);
        found.map_or(window.start, |boundary| boundary.max(window.start))
    }

    fn price(&self, event: &UsageEvent) -> Result<(&Arc<rating::CompiledPrice>, Instant), Verdict> {
        let (key, dimensions) = (event.price_key.as_deref(), &event.dimension_vars);
        match self.catalog.resolve_for(self.terms, event.product_id, key, dimensions, event.timestamp) {
            Ok(price) => Ok((price.price, price.effective_from)),
            Err(error @ Unpriced::NoPrice) => Err(rejected("BUSINESS_RULE_VIOLATION", error.to_string())),
            Err(error @ Unpriced::OtherCurrency(_)) => Err(rejected("CURRENCY_MISMATCH", error.to_string())),
        }
    }
}

impl Windows {
    pub(crate) fn count(&mut self, judge: &Judge<'_>, incoming: &Incoming) -> Verdict {
        // A panic in rating is poison when it comes again on the event alone (rule A4); nothing has changed, because
        // rating prepares an event before it commits it.
        for _ in 0..2 {
            if let Ok(verdict) = catch_unwind(AssertUnwindSafe(|| self.count_once(judge, incoming))) {
                return verdict;
            }
        }
        rejected("INTERNAL_ERROR", "the event could not be rated")
    }

    fn count_once(&mut self, judge: &Judge<'_>, incoming: &Incoming) -> Verdict {
        let event = &incoming.event;
        if event.customer_id != judge.terms.customer_id {
            let message = format!("subscription {} belongs to another customer", event.subscription_id);
            return rejected("BUSINESS_RULE_VIOLATION", message);
        }
        if incoming.is_foreign && judge.terms.ended_at.is_some_and(|ended| ended <= event.timestamp) {
            return rejected("BUSINESS_RULE_VIOLATION", "the subscription ended before the timestamp");
        }
        let resolved = match judge.resolve(event) {
            Ok(resolved) => resolved,
            Err(verdict) => return verdict,
        };
        let verdict = match self.place(judge.terms, event, &resolved) {
            Ok((index, late)) if resolved.iter().any(|one| goes_on(one.binding)) => {
                let start = self.slots[index].window.start;
                self.carry_over(judge); // its thresholds see what was counted before this window
                let index = self.slots.iter().position(|slot| slot.window.start == start).unwrap_or(index);
                let verdict = self.apply(judge, incoming, &resolved, index, late);
                let verdict = self.once_in_a_life(judge.terms, index, verdict);
                self.carry_over(judge);
                verdict
            }
            Ok((index, late)) => self.apply(judge, incoming, &resolved, index, late),
            Err(Verdict::Correcting { window }) => correcting(judge, incoming, &resolved, window),
            Err(verdict) => verdict,
        };
        if resolved.iter().any(|one| one.binding.meter.function == MeterFunction::TimeWeighted) {
            self.carry_over(judge);
        }
        verdict
    }

    /// The window in which an event counts: its own, or the open one when its own is sealed (usage.md, late events).
    fn place(
        &mut self,
        terms: &SubscriptionTerms,
        event: &UsageEvent,
        resolved: &[Resolved<'_>],
    ) -> Result<(usize, bool), Verdict> {
        let Some(window) = terms.window_at(event.timestamp) else {
            return Err(rejected("BUSINESS_RULE_VIOLATION", "the subscription started after the timestamp"));
        };
        // By window, not by timestamp: after a cancellation the last window reaches beyond what was sealed of it.
        let Some(sealed_until) = self.sealed_until.filter(|sealed| window.start < *sealed) else {
            return Ok((self.slot(window), false));
        };
        // A reopened window counts again, although a later one may be sealed.
        if let Some(index) = self.counting(window.start) {
            return Ok((index, false));
        }
        // What a capture wrote is paid already: it is counted wherever it can be (rule D2).
        let policy = resolved
            .first()
            .filter(|_| !event.is_capture())
            .map_or(LateEventPolicy::NextPeriod, |r| r.binding.meter.late_event_policy);
        match policy {
            LateEventPolicy::Drop => Err(Verdict::Dropped { reason: "the window of the event is billed".into() }),
            LateEventPolicy::Reject => Err(rejected("LATE_EVENT", "the window of the event is billed")),
            LateEventPolicy::Correct => Err(Verdict::Correcting { window }),
            LateEventPolicy::NextPeriod => match terms.window_at(sealed_until) {
                Some(open) if open.start >= sealed_until && terms.ended_at.is_none_or(|ended| open.start < ended) => {
                    Ok((self.slot(open), true))
                }
                _ => Err(rejected("LATE_EVENT", "the last window of the subscription is billed")),
            },
        }
    }

    /// The window that starts there, if it is at hand.
    pub(crate) fn starting(&self, start: Instant) -> Option<&WindowSlot> {
        self.slots.iter().find(|slot| slot.window.start == start)
    }

    /// The slot of a window that has not been sealed.
    fn counting(&self, start: Instant) -> Option<usize> {
        self.slots.iter().position(|slot| slot.window.start == start && slot.status != WindowStatus::Sealed)
    }

    fn slot(&mut self, window: Period) -> usize {
        if let Some(index) = self.slots.iter().position(|slot| slot.window.start == window.start) {
            return index;
        }
        self.slots.push(WindowSlot {
            window,
            status: WindowStatus::Open,
            position: Position::START,
            event_count: 0,
            state: WindowState::new(),
            magnitude: 0,
            allowed: SmallVec::new(),
            is_dirty: false,
            is_rebuilt: false,
            is_blocking: false,
        });
        self.slots.len() - 1
    }

    fn apply(
        &mut self,
        judge: &Judge<'_>,
        incoming: &Incoming,
        resolved: &[Resolved<'_>],
        index: usize,
        late: bool,
    ) -> Verdict {
        let slot = &mut self.slots[index];
        let event = &incoming.event;
        let commitment = judge.commitment_boundary(event, slot.window);
        let mut targets = SmallVec::<[Target<'_>; 2]>::new();
        for one in resolved {
            if one.price.is_some() && !slot.allowed.contains(&event.product_id) {
                // An allowance out of range would make the window impossible to bill: found with its first event.
                if let Err(error) = judge.allowance(event, slot.window) {
                    return rejected(error.code(), format!("the allowance cannot be computed: {error}"));
                }
                slot.allowed.push(event.product_id);
            }
            // Thresholds in percent read the allowance; others do not pay for it.
            let allowance =
                if one.binding.bound_thresholds().is_empty() { None } else { judge.allowance(event, slot.window).ok() };
            targets.push(Target {
                binding: one.binding,
                price: one.price.map(|(price, _)| price),
                segment_start: one
                    .price
                    .map_or(slot.window.start, |(_, from)| from.max(slot.window.start).max(commitment)),
                allowance,
                window: slot.window,
                timezone: judge.terms.schedule.timezone,
                tables: judge.catalog,
                period: judge.terms.period_facts(slot.window),
            });
        }
        let magnitude = slot.magnitude.saturating_add(units(incoming.event.quantity));
        let committed = judge.committed_rate(event);
        let is_safe = targets.iter().all(|target| is_safe(magnitude, target, committed, &mut self.rates));
        let outcomes = if is_safe {
            slot.state.apply_all(&incoming.event, &targets)
        } else {
            apply_large(judge, slot, &incoming.event, &targets)
        };
        match outcomes {
            Ok(outcomes) => {
                slot.magnitude = magnitude;
                slot.event_count += 1;
                slot.position = incoming.position;
                slot.is_dirty = true;
                let mut breaches = Vec::new();
                for outcome in outcomes {
                    if let Outcome::Counted(counted) = outcome {
                        breaches.extend(counted.breaches);
                    }
                }
                Verdict::Counted { window_start: slot.window.start, late, breaches }
            }
            Err(error) => rejected(error.code(), error.to_string()),
        }
    }

    /// A LIFETIME window begins with the subscription. Where several billing windows are open, a threshold that has fired in
    /// one of them does not fire in another one.
    fn once_in_a_life(&self, terms: &SubscriptionTerms, index: usize, verdict: Verdict) -> Verdict {
        let Verdict::Counted { window_start, late, mut breaches } = verdict else { return verdict };
        let has_fired = |breach: &Breach| {
            let others =
                self.slots.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, slot)| &slot.state);
            let mut fired = others.flat_map(WindowState::fired);
            fired.any(|((binding_id, _), fired)| {
                binding_id == breach.binding.binding_id
                    && (fired.owner, fired.name.as_str()) == (breach.owner, breach.threshold_name.as_str())
            })
        };
        breaches.retain_mut(|breach| {
            if breach.binding.span() != Span::Lifetime {
                return true;
            }
            breach.window.start = terms.started_at;
            breach.rearms() || !has_fired(breach)
        });
        Verdict::Counted { window_start, late, breaches }
    }

    fn control(&mut self, judge: &Judge<'_>, control: &Control, position: Position) {
        if control.kind == ControlKind::LimitsChanged {
            // The checkpoint that the record forces compares what it writes.
            self.slots.iter_mut().for_each(|slot| slot.is_dirty = true);
            return;
        }
        let window = Period { start: control.window_start, end: control.window_end };
        let is_known = self.slots.iter().any(|slot| slot.window.start == window.start);
        // Published again after the window was sealed and checkpointed: it stays as it is.
        if !is_known && control.kind != ControlKind::WindowReopen && self.sealed_until.is_some_and(|s| window.start < s)
        {
            return;
        }
        let index = self.slot(window);
        let slot = &mut self.slots[index];
        slot.status = match (control.kind, slot.status) {
            (ControlKind::WindowSeal, _) => WindowStatus::Sealed,
            (ControlKind::PeriodEnd, WindowStatus::Open) | (ControlKind::WindowReopen, _) => WindowStatus::Ended,
            (ControlKind::PeriodEnd | ControlKind::WindowRecount | ControlKind::LimitsChanged, other) => other,
        };
        slot.window.end = window.end;
        slot.position = position;
        slot.is_dirty = true;
        if slot.status == WindowStatus::Sealed {
            // The scheduled end: after a cancellation, events between it and the real end are late, too.
            let scheduled = judge.terms.window_at(window.start).map_or(window.end, |scheduled| scheduled.end);
            let end =
                if judge.terms.ended_at.is_some_and(|ended| ended <= window.end) { scheduled } else { window.end };
            self.sealed_until = Some(self.sealed_until.map_or(end, |known| known.max(end)));
        }
        self.open_next(judge, index);
    }

    /// Changed windows for the checkpoint; sealed ones leave the actor with it.
    fn snapshot(&mut self, catalog: &WorkspaceCatalog, terms: &SubscriptionTerms) -> Vec<WindowWrite> {
        let mut writes = Vec::new();
        for slot in self.slots.iter_mut().filter(|slot| slot.is_dirty) {
            let rating_terms = catalog.rating_terms(terms, slot.window, &slot.state);
            let limits = limits::review(catalog, terms, &rating_terms, slot);
            writes.push(WindowWrite {
                subscription_id: terms.id,
                workspace_id: terms.workspace_id,
                customer_id: terms.customer_id,
                window: slot.window,
                status: slot.status,
                position: slot.position,
                event_count: slot.event_count,
                state: slot.state.encode(),
                rows: slot.state.take_changed_rows(),
                accruals: accruals(terms, &rating_terms, slot),
                is_rebuilt: slot.is_rebuilt,
                limits,
            });
            (slot.is_dirty, slot.is_rebuilt) = (false, false);
        }
        self.slots.retain(|slot| slot.status != WindowStatus::Sealed);
        writes
    }
}

/// Whether its totals go on over billing windows.
fn goes_on(binding: &CompiledBinding) -> bool {
    binding.role != BindingRole::Primary && binding.span().is_running()
}

/// Whether an event can be counted is seen on an empty window: the totals of its own are not at hand.
fn correcting(judge: &Judge<'_>, incoming: &Incoming, resolved: &[Resolved<'_>], window: Period) -> Verdict {
    let mut alone = Windows { slots: Vec::new(), sealed_until: None, rates: Rates::new() };
    let index = alone.slot(window);
    match alone.apply(judge, incoming, resolved, index, true) {
        Verdict::Counted { .. } => Verdict::Correcting { window },
        refused => refused,
    }
}

/// Below this an amount cannot come near the range of money (10²⁰), whatever the tiers do.
const AMOUNT_SAFE: u128 = 100_000_000_000_000_000;

/// Whole units of a quantity, rounded up, and one for the event itself.
fn units(quantity: Quantity) -> u128 {
    quantity.units().unsigned_abs() / Quantity::ONE.units().unsigned_abs() + 2
}

/// Whether no amount of this binding can overflow with a quantity of this magnitude: a quick upper bound, so that the exact
/// check is paid for by large events only.
fn is_safe(magnitude: u128, target: &Target<'_>, committed: u128, rates: &mut Rates) -> bool {
    let Some(price) = target.price else { return true };
    if price.has_expressions() || target.binding.component().is_some() {
        return true; // rating evaluates the key of each such event, and refuses amounts that are as large
    }
    if target.binding.meter.value_field.as_deref().is_some_and(|field| field != "quantity") {
        return false;
    }
    let rate = match rates.iter().find(|(id, _)| *id == price.version_id) {
        Some((_, rate)) => *rate,
        None => {
            let rate = largest_rate(price);
            rates.push((price.version_id, rate));
            rate
        }
    };
    let multiplier = whole(target.binding.multiplier);
    magnitude.saturating_mul(multiplier).saturating_mul(rate.max(committed)) < AMOUNT_SAFE
}

fn largest_rate(price: &rating::CompiledPrice) -> u128 {
    let tiers = price.tiers.iter().map(|tier| match price.model {
        // Packages of less than a unit multiply the number of packages.
        PricingModel::Package if tier.unit_amount < rust_decimal::Decimal::ONE => u128::MAX,
        PricingModel::Package => whole(tier.flat_amount),
        PricingModel::Volume | PricingModel::Staircase => {
            whole(tier.unit_amount).saturating_add(whole(tier.flat_amount))
        }
    });
    tiers.max().unwrap_or(0)
}

fn whole(amount: rust_decimal::Decimal) -> u128 {
    u128::try_from(amount.ceil()).unwrap_or(u128::MAX).max(1)
}

/// Counts an event only if the window can still be rated with it.
fn apply_large(
    judge: &Judge<'_>,
    slot: &mut WindowSlot,
    event: &UsageEvent,
    targets: &[Target<'_>],
) -> Result<SmallVec<[Outcome; 1]>, RatingError> {
    let mut trial = slot.state.clone();
    let outcomes = trial.apply_all(event, targets)?;
    let terms = judge
        .catalog
        .rating_terms(judge.terms, slot.window, &trial)
        .map_err(|_| RatingError::Overflow("the allowance"))?;
    let period = judge.terms.period_facts(slot.window);
    trial.accrue(&RatingInput { terms: &terms, until: None, period })?;
    slot.state = trial;
    Ok(outcomes)
}

/// What the window would cost now. A window that cannot be rated (an item was changed so that its allowance leaves the
/// range) keeps the accrual that it had: its billing says why, and the partition goes on (rule A4).
fn accruals(
    terms: &SubscriptionTerms,
    rating_terms: &domain::Result<Vec<rating::Terms>>,
    slot: &WindowSlot,
) -> Vec<AccrualWrite> {
    if terms.is_trial(slot.window.start) {
        return Vec::new();
    }
    let (until, period) = (slot.counts_until(), terms.period_facts(slot.window));
    let rated = rating_terms.as_ref().map_err(ToString::to_string).and_then(|found| {
        slot.state.accrue(&RatingInput { terms: found, until, period }).map_err(|error| error.to_string())
    });
    let totals = rated.unwrap_or_else(|error| {
        tracing::error!(subscription.id = %terms.id, window.start = %slot.window.start, error, "a window cannot be rated");
        SmallVec::new()
    });
    let accrual = |total: rating::Accrual| AccrualWrite {
        wallet_currency: total.wallet_currency,
        currency: total.amount.currency(),
        net: total.amount.amount(),
    };
    totals.into_iter().map(accrual).collect()
}
