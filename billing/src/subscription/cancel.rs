//! Closing a subscription (subscriptions.md 3.4), and taking a planned closing back.

use domain::period::Period;
use domain::{BillingTiming, Error, Money, Result, Scope, SubscriptionId};
use serde_json::json;
use store::{StoreError, Tx};

use super::lifecycle::{Closing, Consequences, PeriodClosePayload};
use super::model::{Subscription, SubscriptionDTO};
use super::read;
use super::request::CancelSubscriptionRequest;
use super::words::{CancellationReason, ProrationType, SubscriptionStatus};
use super::write::store_state;
use crate::billing::{Billing, clocked};
use crate::due::{DueKind, NewWork, plan, withdraw};
use crate::events::{self, Event};
use crate::invoice::draft::assemble;
use crate::invoice::load::Loaded;
use crate::invoice::run::{Run, RunKey, RunReason, is_open_ended};
use crate::invoice::share::Share;

impl Billing {
    /// Closes a subscription now or at the end of its period. The closing invoice is made by the scheduler: it waits for
    /// the usage window to close.
    ///
    /// In advance with PRORATE the unused prepaid time is announced as `subscription.refund_required` with its amount
    /// (proration.md, P7); the credit note that settles it is not built yet.
    ///
    /// # Errors
    /// `NotFound`; `INVALID_TRANSITION` on a closed subscription; 422 for another instant than now.
    pub async fn cancel_subscription(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: SubscriptionId,
        request: &CancelSubscriptionRequest,
    ) -> Result<SubscriptionDTO> {
        let mut subscription = read::lock(tx.conn(), scope.workspace_id, id).await?;
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
        if subscription.status.is_terminal() {
            return subscription.refuse_transition(SubscriptionStatus::Cancelled);
        }
        if request.effective_at.is_some_and(|at| at != scope.now()) {
            return Err(Error::business_rule(
                "effective_at other than now is not available yet; use cancel_at_period_end",
            ));
        }
        let consequences = if request.cancel_at_period_end && waits_for_period_end(&subscription) {
            subscription.cancel_at_period_end = true;
            subscription.cancellation_reason =
                request.cancellation_reason.or(Some(CancellationReason::CustomerRequest));
            Consequences::default()
        } else {
            self.cancel_now(&scope, tx, &mut subscription, request).await?
        };
        store_state(tx.conn(), scope.workspace_id, scope.now(), &[&subscription]).await?;
        plan(tx.conn(), scope.now(), &consequences.work).await?;
        events::emit(tx.conn(), &consequences.events).await?;
        tx.subscription_changed(scope.workspace_id, id);
        read::get(&scope, tx.conn(), id).await
    }

    async fn cancel_now(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        subscription: &mut Subscription,
        request: &CancelSubscriptionRequest,
    ) -> Result<Consequences> {
        let now = scope.now();
        let kinds = [DueKind::SubscriptionStart, DueKind::TrialEnd, DueKind::PeriodClose];
        withdraw(tx.conn(), scope.workspace_id, subscription.id.0, &kinds).await?;
        let was_charged = matches!(subscription.status, SubscriptionStatus::Active | SubscriptionStatus::Dunning);
        let is_past_term = subscription.is_past_term();
        let open = Period {
            start: subscription.current_period_start.unwrap_or(now),
            end: subscription.current_period_end.unwrap_or(domain::period::FAR_FUTURE),
        };
        let (to, default) = if is_past_term && !is_open_ended(open) {
            (SubscriptionStatus::Expired, CancellationReason::TermEnded)
        } else {
            (SubscriptionStatus::Cancelled, CancellationReason::CustomerRequest)
        };
        let cut = Period { start: open.start, end: now.min(open.end) };
        let refund =
            if was_charged && to == SubscriptionStatus::Cancelled && request.proration_type == ProrationType::Prorate {
                self.unused_prepaid(scope, tx, subscription, open, cut).await?
            } else {
                None
            };
        let mut consequences = subscription.close(to, now, Some(request.cancellation_reason.unwrap_or(default)));
        consequences.events.extend(refund);
        if let (Some(event), Some(comment)) = (consequences.events.first_mut(), &request.comment) {
            event.add("comment", comment);
        }
        // A term that ended was billed at its end; PENDING, TRIALING and PAUSED are not charged (3.4 rule 3).
        if was_charged && to == SubscriptionStatus::Cancelled {
            subscription.current_period_end = Some(cut.end);
            let run = RunKey::new(RunReason::Closing, cut);
            let payload = PeriodClosePayload { closing: Some(Closing { run, invoice_now: request.invoice_now }) };
            consequences.work.push(NewWork::on(subscription, DueKind::PeriodClose, now, payload));
        }
        Ok(consequences)
    }

    /// What was paid in advance for the time after the cut, as an event; `None` when nothing was.
    async fn unused_prepaid(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        subscription: &Subscription,
        open: Period,
        cut: Period,
    ) -> Result<Option<Event>> {
        if subscription.billing_timing != BillingTiming::InAdvance || is_open_ended(open) || open.start >= open.end {
            return Ok(None);
        }
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let loaded = Loaded::subscriptions(tx.conn(), catalog, scope.workspace_id, &[subscription.id], false).await?;
        let run = Run::of(subscription, RunKey::new(RunReason::Activation, open))?;
        let drafts = assemble(&loaded.job(run)?)?;
        let rest = Share::of(cut, open).rest();
        let lines = drafts.iter().flat_map(|draft| &draft.lines);
        let zero = Money::zero(subscription.currency);
        let credit =
            lines.map(|line| rest.apply(line.amount)).try_fold(zero, |sum, part| Ok::<_, Error>(sum.add(part?)?))?;
        if credit.is_zero() {
            return Ok(None);
        }
        let payload =
            json!({"subscription_id": subscription.id, "customer_id": subscription.customer_id, "amount": credit});
        let kind = "subscription.refund_required";
        Ok(Some(Event::new(scope.workspace_id, kind, "subscription", subscription.id, payload, scope.now())))
    }

    /// Withdraws a cancellation that waits for the period's end.
    ///
    /// # Errors
    /// `NotFound`; `INVALID_TRANSITION` on a closed subscription.
    pub async fn reactivate_subscription(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: SubscriptionId,
    ) -> Result<SubscriptionDTO> {
        let mut subscription = read::lock(tx.conn(), scope.workspace_id, id).await?;
        if subscription.status.is_terminal() {
            return subscription.refuse_transition(SubscriptionStatus::Active);
        }
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
        subscription.cancel_at_period_end = false;
        subscription.cancellation_reason = None;
        store_state(tx.conn(), scope.workspace_id, scope.now(), &[&subscription]).await?;
        read::get(&scope, tx.conn(), id).await
    }
}

impl Billing {
    /// Deletes a subscription softly.
    ///
    /// # Errors
    /// `NotFound`; `CONFLICT` unless PENDING, TRIALING, CANCELLED or EXPIRED.
    pub async fn delete_subscription(&self, scope: &Scope, tx: &mut Tx, id: SubscriptionId) -> Result<()> {
        use SubscriptionStatus::{Active, Dunning, Paused};
        let subscription = read::lock(tx.conn(), scope.workspace_id, id).await?;
        if matches!(subscription.status, Active | Dunning | Paused) {
            let detail = format!("a subscription that is {} cannot be deleted; cancel it first", subscription.status);
            return Err(Error::conflict("CONFLICT", detail));
        }
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
        withdraw(tx.conn(), scope.workspace_id, id.0, &[DueKind::SubscriptionStart, DueKind::TrialEnd]).await?;
        sqlx::query("UPDATE subscription SET deleted_at = $3, updated_at = $3 WHERE workspace_id = $1 AND id = $2")
            .bind(scope.workspace_id)
            .bind(id)
            .bind(scope.now())
            .execute(tx.conn())
            .await
            .context("deleting the subscription")?;
        tx.subscription_changed(scope.workspace_id, id);
        Ok(())
    }
}

/// Whether a cancellation at the period's end has an end to wait for.
fn waits_for_period_end(subscription: &Subscription) -> bool {
    let running = matches!(
        subscription.status,
        SubscriptionStatus::Active | SubscriptionStatus::Dunning | SubscriptionStatus::Trialing
    );
    running && subscription.next_billing_date.is_some()
}
