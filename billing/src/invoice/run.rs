//! What one invoice run charges: the table of billing-cycles.md 3.3 as data.

use chrono::TimeDelta;
use domain::period::{FAR_FUTURE, Period};
use domain::{BillingIntervalUnit, BillingTiming, Currency, Instant, Result, SubscriptionId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::subscription::Subscription;

domain::wire_enum! {
    /// What a run makes an invoice for; with subscription and period its key (billing-cycles.md 3.4 rule 2).
    pub enum RunReason {
        /// A first period in advance, also after a pause; a charge that is made once.
        Activation = "activation",
        /// A boundary between two periods.
        Renewal = "renewal",
        /// The end of the last period: cancellation, or no renewal.
        Closing = "closing",
        /// A preview of the running period, made by hand; the run at the period's end replaces it.
        Manual = "manual",
        /// The end of a trial: its window is sealed and nothing is charged.
        Trial = "trial",
        /// The end of a window in a pause: it is sealed and nothing is charged (3.4 rule 5).
        Paused = "paused",
        /// The usage so far of a window that goes on, closed by a threshold.
        Interim = "interim",
        /// Late usage of a window that is billed.
        Correction = "correction",
    }
}

impl RunReason {
    /// Whether nothing is charged: the run seals a window that no invoice has.
    #[must_use]
    pub fn is_free(self) -> bool {
        matches!(self, Self::Trial | Self::Paused)
    }

    /// Whether it bills a window beside the run of its period, any number of times.
    #[must_use]
    pub fn is_extra(self) -> bool {
        matches!(self, Self::Interim | Self::Correction)
    }
}

/// The key of a run as due work carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunKey {
    /// What for.
    pub reason: RunReason,
    /// First instant of the head's period.
    pub start: Instant,
    /// First instant after it.
    pub end: Instant,
    /// Tells runs of one window and reason apart: the due work that asked for it. None for a reason that a period has once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occurrence: Option<Uuid>,
}

impl RunKey {
    /// The key of a run over a period.
    #[must_use]
    pub fn new(reason: RunReason, period: Period) -> Self {
        Self { reason, start: period.start, end: period.end, occurrence: None }
    }

    /// What stands in `billing_reason` for every invoice of the run.
    #[must_use]
    pub fn name(&self) -> String {
        self.occurrence.map_or_else(|| self.reason.to_string(), |id| format!("{}.{id}", self.reason))
    }

    /// The period of the invoice's head.
    #[must_use]
    pub fn period(&self) -> Period {
        Period { start: self.start, end: self.end }
    }

    /// `billing_reason` of the invoice of one wallet pin: pinned usage is routed to an invoice of its own (usage.md R8).
    #[must_use]
    pub fn billing_reason(&self, wallet_currency: Option<Currency>) -> String {
        wallet_currency.map_or_else(|| self.name(), |currency| format!("{}:{currency}", self.name()))
    }
}

/// Reads the column `billing_reason`.
#[must_use]
pub fn parse_billing_reason(text: &str) -> Option<(RunReason, Option<Currency>)> {
    use domain::wire::Word;
    let (name, pin) = text.split_once(':').map_or((text, None), |(name, pin)| (name, Some(pin)));
    let reason = RunReason::from_wire(name.split_once('.').map_or(name, |(reason, _)| reason))?;
    match pin {
        None => Some((reason, None)),
        Some(pin) => Some((reason, Some(Currency::parse(pin)?))),
    }
}

/// A recurring charge: a period, and the interval whose full price it is a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurringCharge {
    /// What is charged.
    pub period: Period,
    /// What the price is for; the period itself unless it is a stub or was cut short.
    pub whole: Period,
}

/// One run of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub subscription_id: SubscriptionId,
    /// Its key.
    pub key: RunKey,
    /// Recurring charges on it.
    pub recurring: Option<RecurringCharge>,
    /// Usage window on it.
    pub usage: Option<Period>,
}

impl Run {
    /// What the table of 3.3 puts on the invoice with this key.
    ///
    /// # Errors
    /// `Internal` for a subscription whose time zone is unknown.
    pub fn of(subscription: &Subscription, key: RunKey) -> Result<Self> {
        let schedule = subscription.schedule()?;
        let head = key.period();
        // The period as the schedule has it: a head that was cut by a cancellation is a share of it.
        let scheduled = schedule.containing(head.start).unwrap_or(head);
        let charge = RecurringCharge { period: head, whole: schedule.whole(scheduled) };
        let in_advance = is_billed_in_advance(subscription);
        let before = || schedule.containing(head.start - TimeDelta::microseconds(1));
        let (recurring, usage) = match (key.reason, in_advance) {
            (RunReason::Activation, _) => (Some(charge), None),
            (RunReason::Renewal, true) => (Some(charge), before()),
            (RunReason::Renewal | RunReason::Closing | RunReason::Manual, false) => (Some(charge), Some(head)),
            (RunReason::Closing | RunReason::Manual, true) => (None, Some(head)),
            (RunReason::Interim | RunReason::Correction, _) => (None, Some(head)),
            (RunReason::Trial | RunReason::Paused, _) => (None, None),
        };
        Ok(Self { subscription_id: subscription.id, key, recurring, usage })
    }

    /// The window that finalizing seals: the usage on the invoice, or that of a trial or a pause, which no invoice has.
    #[must_use]
    pub fn sealed_window(&self) -> Option<Period> {
        if self.key.reason.is_free() { Some(self.key.period()) } else { self.usage }
    }
}

/// Whether recurring charges are billed when their period starts. A `one_time` subscription has a single period without
/// an end, so its charges are billed at its start under both timings.
#[must_use]
pub fn is_billed_in_advance(subscription: &Subscription) -> bool {
    subscription.billing_timing == BillingTiming::InAdvance
        || subscription.billing_interval_unit == BillingIntervalUnit::OneTime
}

/// The run at the end of a period; `next` is the period that begins there.
#[must_use]
pub fn at_boundary(subscription: &Subscription, closed: Period, next: Option<Period>) -> RunKey {
    match (is_billed_in_advance(subscription), next) {
        (true, Some(next)) => RunKey::new(RunReason::Renewal, next),
        (false, Some(_)) => RunKey::new(RunReason::Renewal, closed),
        (_, None) => RunKey::new(RunReason::Closing, closed),
    }
}

/// Whether a period has an end that time reaches.
#[must_use]
pub fn is_open_ended(period: Period) -> bool {
    period.end >= FAR_FUTURE
}
