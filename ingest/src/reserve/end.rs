//! `POST /v1/transaction/{id}/capture` and `/release`: the two ends of a hold on usage.

use std::collections::HashMap;
use std::sync::Arc;

use catalog::compiled::{Snapshots, SubscriptionTerms, WorkspaceCatalog};
use chrono::TimeDelta;
use domain::error::FieldErrorCode as Code;
use domain::period::Period;
use domain::{Error, Instant, Money, Quantity, Result, Scope, SubscriptionId, TransferId, UsageEvent};
use ledger::wallet::{CaptureHoldRequest, Details, HoldStatus, WalletTransactionSource};
use ledger::{Outcome, WalletHold, WorkspaceAccount};
use uuid::Uuid;

use super::Gross;
use super::answer::ReservationOutcome;
use super::context::{Context, WindowKey};
use super::desk::Present;
use super::request::ReleaseReservationRequest;
use super::stored::{Capture, Release, Reservation};
use crate::outbox::Outgoing;
use crate::record::Record;
use crate::trial::Trial;

/// How far ahead of the clock a timestamp may be, as of every event (usage.md 5).
const FUTURE_MAX: TimeDelta = TimeDelta::minutes(5);

/// A hold that is to be charged, before anything is locked.
pub(super) struct Capturing<'a> {
    pub context: Context,
    /// The window of the event.
    pub window: Period,
    pub reserved: Reservation,
    request: &'a CaptureHoldRequest,
    event: UsageEvent,
}

impl<'a> Capturing<'a> {
    pub fn prepare(
        scope: &Scope,
        snapshots: &Snapshots,
        contexts: &HashMap<SubscriptionId, Context>,
        reserved: Reservation,
        request: &'a CaptureHoldRequest,
    ) -> Result<Self> {
        let id = reserved.event.subscription_id;
        let context = contexts.get(&id).ok_or_else(|| Error::not_found("subscription", id))?.clone();
        let event = captured_event(scope, snapshots, &reserved, &context, request)?;
        let window = check_time(&context, event.timestamp)?;
        Ok(Self { context, window, reserved, request, event })
    }

    pub fn window_key(&self) -> WindowKey {
        (self.context.terms.id, self.window.start)
    }

    /// Charges the hold and hands its event to the log (rule D2).
    pub fn decide(self, present: &mut Present) -> Result<Outcome<ReservationOutcome>> {
        let Self { context, reserved, request, event, .. } = self;
        let id = reserved.hold_id;
        let hold = present.hold(id)?;
        if hold.status == HoldStatus::Captured {
            let captured = present.ended(id)?;
            if request.quantity.is_none() || captured.event.quantity == event.quantity {
                return Ok(Outcome::replayed(outcome(captured, &hold)?));
            }
        }
        if hold.status != HoldStatus::Pending {
            let to = HoldStatus::Captured.as_str();
            return Err(Error::invalid_transition("wallet_hold", id, hold.status.as_str(), to, &[]));
        }
        // What is charged must not be refused by the partition afterwards.
        present.trial(&context.terms).count(&event)?;
        let gross = charge(&reserved, present.catalog.clone(), &context.terms, &event)?;
        let amount = gross.in_wallet(reserved.exchange.as_ref())?;
        let mut details = Details {
            description: request.description.clone(),
            idempotency_key: request.idempotency_key.clone(),
            ..Details::of(WalletTransactionSource::Usage).reference("subscription", event.subscription_id)
        };
        if let Some(exchange) = &reserved.exchange {
            details = details.at_rate(&exchange.fx);
        }
        let (transfer_id, counter) = (TransferId(Uuid::new_v5(&id.0, b"capture")), WorkspaceAccount::CapturedUsage);
        let hold = present.wallets.capture_hold(&hold, transfer_id, amount, counter, &details)?;
        let wallet_transaction_id = present.wallets.movement_of(transfer_id);
        let charge = reserved.exchange.is_some().then_some(amount);
        let (event_written, Gross { net, tax, .. }) = (event.clone(), gross);
        let capture = Capture { hold_id: id, event: event_written, net, tax, charge, wallet_transaction_id };
        present.captures.push(capture);
        present.promise_captured(id, &event);
        let (subscription_id, home) = (context.terms.id, context.terms.home_partition);
        let record = Record::Usage(Box::new(event.clone()));
        present.records.push(Outgoing { subscription_id, home, record });
        Ok(Outcome::first(outcome(&Reservation { event, wallet_transaction_id, ..reserved }, &hold)?))
    }
}

/// A hold that is to be given back.
pub(super) struct Releasing<'a> {
    pub reserved: Reservation,
    pub request: &'a ReleaseReservationRequest,
}

impl Releasing<'_> {
    pub fn decide(self, present: &mut Present) -> Result<Outcome<ReservationOutcome>> {
        let id = self.reserved.hold_id;
        let hold = present.hold(id)?;
        if hold.status == HoldStatus::Released {
            return Ok(Outcome::replayed(outcome(present.ended(id)?, &hold)?));
        }
        let transfer_id = TransferId(Uuid::new_v5(&id.0, b"release"));
        let hold = present.wallets.end_hold(&hold, HoldStatus::Released, transfer_id)?;
        let wallet_transaction_id = present.wallets.movement_of(transfer_id);
        let reason = self.request.reason.clone();
        present.releases.push(Release { hold_id: id, wallet_transaction_id, reason });
        present.forget_promise(id, &self.reserved.event);
        Ok(Outcome::first(outcome(&Reservation { wallet_transaction_id, ..self.reserved }, &hold)?))
    }
}

/// The event that the capture writes.
fn captured_event(
    scope: &Scope,
    snapshots: &Snapshots,
    reserved: &Reservation,
    context: &Context,
    request: &CaptureHoldRequest,
) -> Result<UsageEvent> {
    let quantity = request.quantity.map(Quantity::try_from_decimal).transpose()?;
    let cost = request.external_cost_amount.zip(request.external_cost_currency);
    Ok(UsageEvent {
        customer_id: context.terms.customer_id,
        quantity: quantity.unwrap_or(reserved.event.quantity),
        timestamp: request.timestamp.unwrap_or(context.now),
        external_cost: cost.or(reserved.event.external_cost),
        accepted_at: scope.now(),
        catalog_revision: snapshots.stamp(),
        ..reserved.event.clone()
    })
}

/// The window of the event.
fn check_time(context: &Context, timestamp: Instant) -> Result<Period> {
    let Context { terms, now, .. } = context;
    if timestamp > now.checked_add_signed(FUTURE_MAX).unwrap_or(*now) {
        return Err(Error::field("timestamp", Code::OutOfRange, "must be at most 5 minutes in the future"));
    }
    if terms.ended_at.is_some_and(|ended| ended <= timestamp) {
        return Err(Error::business_rule("the subscription ended before the timestamp"));
    }
    let window = terms.window_at(timestamp);
    window.ok_or_else(|| Error::business_rule("the subscription started after the timestamp"))
}

/// What is charged: the amount held for the quantity that was reserved; for another one its own price on the same totals,
/// and never more than the hold for less.
fn charge(
    reserved: &Reservation,
    catalog: Arc<WorkspaceCatalog>,
    terms: &Arc<SubscriptionTerms>,
    event: &UsageEvent,
) -> Result<Gross> {
    let held = Gross { net: reserved.net, tax: reserved.tax, rate: reserved.tax_rate };
    if event.quantity == reserved.event.quantity {
        return Ok(held);
    }
    let start = reserved.window_start;
    let window = terms.window_at(start).ok_or_else(|| Error::invariant("a reservation lies in a window"))?;
    let mut trial = Trial::over(catalog, terms.clone(), window, &reserved.basis)?;
    let before = trial.standing(start, &reserved.event)?;
    trial.add(start, &UsageEvent { quantity: event.quantity, ..reserved.event.clone() })?;
    let net = trial.standing(start, &reserved.event)?.costs_since(&before)?;
    let gross = Gross::at(net, reserved.tax_rate)?;
    let is_less = event.quantity < reserved.event.quantity;
    Ok(if is_less && gross.total()?.amount() > held.total()?.amount() { held } else { gross })
}

fn outcome(reserved: &Reservation, hold: &WalletHold) -> Result<ReservationOutcome> {
    let captured_amount = hold.captured_amount.unwrap_or_else(|| Money::zero(hold.amount.currency()));
    Ok(ReservationOutcome {
        hold_id: hold.id,
        status: hold.status,
        usage_event_id: (hold.status == HoldStatus::Captured).then_some(reserved.event.id),
        captured_amount,
        released_amount: hold.amount.sub(captured_amount)?,
        wallet_transaction_id: reserved.wallet_transaction_id,
    })
}
