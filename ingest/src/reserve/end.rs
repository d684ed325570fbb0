//! `POST /v1/transaction/{id}/capture` and `/release`: the two ends of a hold on usage.

use std::sync::Arc;

use catalog::compiled::{Snapshots, SubscriptionTerms, WorkspaceCatalog};
use chrono::TimeDelta;
use domain::error::FieldErrorCode as Code;
use domain::period::Period;
use domain::{Error, HoldId, Instant, Money, Quantity, Result, Scope, TransferId, UsageEvent};
use ledger::wallet::hold::locked_hold;
use ledger::wallet::{CaptureHoldRequest, Details, HoldStatus, WalletTransactionSource};
use ledger::{Outcome, WalletHold, WorkspaceAccount};
use store::{BodyKey, StoreError, Tx};
use uuid::Uuid;

use super::Gross;
use super::answer::ReservationOutcome;
use super::context::lock_window;
use super::request::ReleaseReservationRequest;
use super::stored::{Capture, Reservation, note_release};
use crate::outbox;
use crate::record::Record;
use crate::trial::Trial;

/// How far ahead of the clock a timestamp may be, as of every event (usage.md 5).
const FUTURE_MAX: TimeDelta = TimeDelta::minutes(5);

/// Charges a hold and writes its usage event. A capture that was done before with the same quantity answers the same.
///
/// # Errors
/// `NotFound`, `Validation`, `IDEMPOTENCY_CONFLICT`; `INVALID_TRANSITION` unless PENDING; 422 `AMOUNT_EXCEEDS_HOLD`, and
/// when the event could not be billed.
pub async fn capture(
    scope: &Scope,
    tx: &mut Tx,
    snapshots: &Snapshots,
    id: HoldId,
    request: &CaptureHoldRequest,
) -> Result<Outcome<ReservationOutcome>> {
    let key = BodyKey::new(scope, "transaction.capture", id, request.idempotency_key.as_deref(), request)?;
    if let Some(earlier) = key.claim(scope, tx).await? {
        return Ok(Outcome::replayed(earlier));
    }
    let reserved = Reservation::get(scope, tx.conn(), id).await?;
    let terms = terms_of(tx, &reserved).await?;
    let now = now_of(scope, tx, &terms).await?;
    let event = captured_event(scope, snapshots, &reserved, &terms, now, request)?;
    let window = check_time(&terms, now, event.timestamp)?;
    lock_window(tx, &terms, window, scope.now()).await?;
    let (mut batch, hold) = locked_hold(tx, scope, reserved.wallet_id, id).await?;
    if hold.status == HoldStatus::Captured {
        // Captured meanwhile: read again what that call has left.
        let captured = Reservation::get(scope, tx.conn(), id).await?;
        if request.quantity.is_none() || captured.event.quantity == event.quantity {
            return Ok(Outcome::replayed(outcome(&captured, &hold)?));
        }
    }
    if hold.status != HoldStatus::Pending {
        let to = HoldStatus::Captured.as_str();
        return Err(Error::invalid_transition("wallet_hold", id, hold.status.as_str(), to, &[]));
    }
    let catalog = snapshots.workspace(scope.workspace_id).await?;
    // What is charged must not be refused by the partition afterwards.
    Trial::load(tx.conn(), snapshots, catalog.clone(), terms.clone()).await?.count(&event)?;
    let gross = charge(&reserved, catalog, &terms, &event)?;
    let details = Details {
        description: request.description.clone(),
        idempotency_key: request.idempotency_key.clone(),
        ..Details::of(WalletTransactionSource::Usage).reference("subscription", event.subscription_id)
    };
    let transfer_id = TransferId(Uuid::new_v5(&id.0, b"capture"));
    let hold = batch.capture_hold(&hold, transfer_id, gross.total()?, WorkspaceAccount::CapturedUsage, &details)?;
    let wallet_transaction_id = batch.movement_of(transfer_id);
    batch.write(tx, scope).await?;
    Capture { hold_id: id, event: &event, net: gross.net, tax: gross.tax, wallet_transaction_id }
        .write(tx, scope)
        .await?;
    let record = Record::Usage(Box::new(event.clone()));
    outbox::put(tx, terms.id, terms.home_partition, &record, scope.now()).await?;
    let done = outcome(&Reservation { event, wallet_transaction_id, ..reserved }, &hold)?;
    key.complete(tx, &done).await?;
    Ok(Outcome::first(done))
}

async fn terms_of(tx: &mut Tx, reserved: &Reservation) -> Result<Arc<SubscriptionTerms>> {
    let id = reserved.event.subscription_id;
    let terms = SubscriptionTerms::load(tx.conn(), &[id]).await?.remove(&id);
    terms.map(Arc::new).ok_or_else(|| Error::not_found("subscription", id))
}

/// The scope's instant, or that of the subscription's test clock.
async fn now_of(scope: &Scope, tx: &mut Tx, terms: &SubscriptionTerms) -> Result<Instant> {
    let Some(clock) = terms.test_clock_id else { return Ok(scope.now()) };
    sqlx::query_scalar("SELECT frozen_at FROM test_clock WHERE id = $1")
        .bind(clock)
        .fetch_one(tx.conn())
        .await
        .context("reading a test clock")
}

/// The event that the capture writes.
fn captured_event(
    scope: &Scope,
    snapshots: &Snapshots,
    reserved: &Reservation,
    terms: &SubscriptionTerms,
    now: Instant,
    request: &CaptureHoldRequest,
) -> Result<UsageEvent> {
    let quantity = request.quantity.map(Quantity::try_from_decimal).transpose()?;
    let cost = request.external_cost_amount.zip(request.external_cost_currency);
    Ok(UsageEvent {
        customer_id: terms.customer_id,
        quantity: quantity.unwrap_or(reserved.event.quantity),
        timestamp: request.timestamp.unwrap_or(now),
        external_cost: cost.or(reserved.event.external_cost),
        accepted_at: scope.now(),
        catalog_revision: snapshots.stamp(),
        ..reserved.event.clone()
    })
}

/// The window of the event.
fn check_time(terms: &SubscriptionTerms, now: Instant, timestamp: Instant) -> Result<Period> {
    if timestamp > now.checked_add_signed(FUTURE_MAX).unwrap_or(now) {
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
    let net = trial.price(start, &UsageEvent { quantity: event.quantity, ..reserved.event.clone() })?.net;
    let gross = Gross::at(net, reserved.tax_rate)?;
    let is_less = event.quantity < reserved.event.quantity;
    Ok(if is_less && gross.total()?.amount() > held.total()?.amount() { held } else { gross })
}

/// Gives a hold back. A release that was done before answers the same.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` unless PENDING.
pub async fn release(
    scope: &Scope,
    tx: &mut Tx,
    id: HoldId,
    request: &ReleaseReservationRequest,
) -> Result<ReservationOutcome> {
    let reserved = Reservation::get(scope, tx.conn(), id).await?;
    let (mut batch, hold) = locked_hold(tx, scope, reserved.wallet_id, id).await?;
    if hold.status == HoldStatus::Released {
        return outcome(&Reservation::get(scope, tx.conn(), id).await?, &hold);
    }
    let transfer_id = TransferId(Uuid::new_v5(&id.0, b"release"));
    let hold = batch.end_hold(&hold, HoldStatus::Released, transfer_id)?;
    let movement = batch.movement_of(transfer_id);
    batch.write(tx, scope).await?;
    note_release(scope, tx, id, movement, request.reason.as_deref()).await?;
    outcome(&Reservation { wallet_transaction_id: movement, ..reserved }, &hold)
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
