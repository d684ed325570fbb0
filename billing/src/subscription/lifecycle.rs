//! The life of a subscription as pure changes of state (subscriptions.md 3.1, billing-cycles.md 3): each answers what it
//! leaves to be done and told. The callers store them.

use chrono::TimeDelta;
use domain::period::Period;
use domain::{Error, Instant, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::model::Subscription;
use super::words::{CancellationReason, SubscriptionStatus};
use crate::due::{DueKind, NewWork, Nothing};
use crate::events::Event;
use crate::invoice::run::{RunKey, RunReason, at_boundary, is_billed_in_advance, is_open_ended};
use crate::settings::BillingSettings;

/// What a change of state leaves to others.
#[derive(Debug, Default)]
pub(crate) struct Consequences {
    /// Due work to plan.
    pub(crate) work: Vec<NewWork>,
    /// Events to emit.
    pub(crate) events: Vec<Event>,
    /// A run whose draft is made at once, because it is finalized later.
    pub(crate) draft: Option<RunKey>,
}

/// Payload of [`DueKind::PeriodClose`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeriodClosePayload {
    /// The last run of a subscription that was closed in mid-period; left out at a boundary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) closing: Option<Closing>,
}

/// The end of a subscription in mid-period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Closing {
    /// The run of the cut period.
    pub(crate) run: RunKey,
    /// Whether its invoice is finalized by itself.
    pub(crate) invoice_now: bool,
}

impl Subscription {
    pub(crate) fn event(&self, kind: &'static str, now: Instant) -> Event {
        let payload = json!({
            "subscription_id": self.id,
            "customer_id": self.customer_id,
            "plan_id": self.plan_id,
            "status": self.status,
        });
        Event::new(self.workspace_id, kind, "subscription", self.id, payload, now)
    }

    /// PENDING reaches `started_at`, or a new subscription starts at once: to TRIALING or ACTIVE.
    pub(crate) fn start(&mut self) -> Result<Consequences> {
        match self.trial_ends_at {
            Some(trial_ends_at) => {
                self.status = SubscriptionStatus::Trialing;
                self.current_period_start = Some(self.started_at);
                self.current_period_end = Some(trial_ends_at);
                self.next_billing_date = Some(trial_ends_at);
                let work = vec![NewWork::on(self, DueKind::TrialEnd, trial_ends_at, Nothing {})];
                Ok(Consequences { work, ..Consequences::default() })
            }
            None => self.activate(self.started_at),
        }
    }

    /// The first charged period begins at `first_period_start`, which is `now`.
    fn activate(&mut self, now: Instant) -> Result<Consequences> {
        self.status = SubscriptionStatus::Active;
        self.activated_at = self.activated_at.or(Some(now));
        let mut consequences = self.begin_periods(self.first_period_start)?;
        consequences.events.push(self.event("subscription.activated", now));
        Ok(consequences)
    }

    /// Enters the period that begins a schedule, or begins it anew; in advance its charges are billed at once (3.3, first
    /// invoice).
    pub(crate) fn begin_periods(&mut self, start: Instant) -> Result<Consequences> {
        let period = self.schedule()?.containing(start);
        let period = period.ok_or_else(|| Error::invariant(format!("subscription {}: no period begins", self.id)))?;
        let mut consequences = Consequences::default();
        if is_billed_in_advance(self) {
            let run = RunKey::new(RunReason::Activation, period);
            consequences.work.push(NewWork::on(self, DueKind::InvoiceFinalize, period.start, run));
        }
        self.enter(period, &mut consequences);
        Ok(consequences)
    }

    fn enter(&mut self, period: Period, consequences: &mut Consequences) {
        self.current_period_start = Some(period.start);
        let end = (!is_open_ended(period)).then_some(period.end);
        self.current_period_end = end;
        self.next_billing_date = end;
        if let Some(end) = end {
            consequences.work.push(NewWork::on(self, DueKind::PeriodClose, end, PeriodClosePayload::default()));
        }
    }

    /// The trial is over: its window is sealed after the grace, and the first charged period begins (3.4 rule 6).
    pub(crate) fn end_trial(
        &mut self,
        now: Instant,
        settings: &BillingSettings,
        has_usage: bool,
    ) -> Result<Consequences> {
        let trial = Period { start: self.started_at, end: now };
        let mut consequences = if self.cancel_at_period_end {
            self.close(SubscriptionStatus::Cancelled, now, self.cancellation_reason)
        } else {
            self.activate(now)?
        };
        if has_usage {
            consequences.work.push(self.seal_unbilled(RunKey::new(RunReason::Trial, trial), settings));
        }
        Ok(consequences)
    }

    /// A window that nobody pays for is sealed after the grace all the same: what it accrued stands open until then.
    pub(crate) fn seal_unbilled(&self, run: RunKey, settings: &BillingSettings) -> NewWork {
        NewWork::on(self, DueKind::InvoiceFinalize, run.end + settings.usage_grace, run)
    }

    /// The period or window that ends at an instant: the current period, or, in a pause that goes on behind its end, a
    /// window of the schedule.
    pub(crate) fn period_ending(&self, at: Instant) -> Result<Option<Period>> {
        let current = self.current_period().filter(|period| period.end <= at);
        if self.status != SubscriptionStatus::Paused || current.is_some_and(|period| period.end == at) {
            return Ok(current.filter(|period| period.end == at));
        }
        let scheduled = self.schedule()?.containing(at - TimeDelta::microseconds(1));
        Ok(scheduled.filter(|period| current.is_some() && period.end == at))
    }

    /// A pause that goes on at the end of its period: the window that runs at an instant, as far as it has come.
    pub(crate) fn paused_window(&self, now: Instant) -> Result<Option<Period>> {
        let passed = self.status == SubscriptionStatus::Paused && self.current_period_end.is_some_and(|end| end <= now);
        if !passed || self.is_past_term() {
            return Ok(None);
        }
        let window = self.schedule()?.containing(now).filter(|window| window.start < now);
        Ok(window.map(|window| Period { start: window.start, end: now }))
    }

    /// A boundary is passed in a pause (3.4 rule 5): no invoice, and `current_period_end` stays. The windows behind it end
    /// one after the other until the pause does.
    fn pass_in_pause(&mut self, passed: Period, settings: &BillingSettings, has_usage: bool) -> Result<Consequences> {
        let mut consequences = Consequences::default();
        if has_usage {
            consequences.work.push(self.seal_unbilled(RunKey::new(RunReason::Paused, passed), settings));
        }
        if !self.auto_renew {
            self.end_term(passed.end);
        } else if let Some(next) = self.schedule()?.containing(passed.end).filter(|_| has_usage) {
            consequences.work.push(NewWork::on(self, DueKind::PeriodClose, next.end, PeriodClosePayload::default()));
        }
        Ok(consequences)
    }

    /// The term is over: it stays as it is until it is closed, and usage of later instants is refused (3.1, EXPIRED).
    fn end_term(&mut self, at: Instant) {
        self.next_billing_date = None;
        self.ended_at = Some(at);
    }

    /// A charged period ends (3.4 rule 2): what it and the next one cost is put on a run, and the next one begins.
    pub(crate) fn close_period(
        &mut self,
        closed: Period,
        settings: &BillingSettings,
        has_usage: bool,
    ) -> Result<Consequences> {
        if self.status == SubscriptionStatus::Paused && !self.cancel_at_period_end {
            return self.pass_in_pause(closed, settings, has_usage);
        }
        let mut consequences = Consequences::default();
        let next =
            if self.cancel_at_period_end || !self.auto_renew { None } else { self.schedule()?.containing(closed.end) };
        let run = at_boundary(self, closed, next);
        match next {
            Some(next) => self.enter(next, &mut consequences),
            None if self.cancel_at_period_end => {
                let closing = self.close(SubscriptionStatus::Cancelled, closed.end, self.cancellation_reason);
                consequences.events.extend(closing.events);
            }
            None => self.end_term(closed.end),
        }
        self.plan_invoice(run, closed.end, settings, has_usage, &mut consequences);
        Ok(consequences)
    }

    /// When a run is finalized: at once without usage, after the grace with it, by hand when the settings say so.
    pub(crate) fn plan_invoice(
        &self,
        run: RunKey,
        now: Instant,
        settings: &BillingSettings,
        has_usage: bool,
        consequences: &mut Consequences,
    ) {
        let grace = if has_usage { settings.usage_grace } else { TimeDelta::zero() };
        if !settings.auto_finalize || !grace.is_zero() {
            consequences.draft = Some(run);
        }
        if settings.auto_finalize {
            consequences.work.push(NewWork::on(self, DueKind::InvoiceFinalize, now + grace, run));
        }
    }

    /// The end of the agreement; usage that a term's end refuses stays refused.
    pub(crate) fn close(
        &mut self,
        to: SubscriptionStatus,
        now: Instant,
        reason: Option<CancellationReason>,
    ) -> Consequences {
        self.status = to;
        self.ended_at = self.ended_at.or(Some(now));
        self.next_billing_date = None;
        self.dunning_stage = None;
        self.current_phase_id = None;
        self.cancel_at_period_end = false;
        self.cancellation_reason = reason;
        let kind = if to == SubscriptionStatus::Expired {
            self.expired_at = Some(now);
            "subscription.expired"
        } else {
            self.cancelled_at = Some(now);
            "subscription.cancelled"
        };
        Consequences { events: vec![self.event(kind, now)], ..Consequences::default() }
    }
}
