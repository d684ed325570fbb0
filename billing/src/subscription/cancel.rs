//! Closing a subscription (subscriptions.md 3.4), and taking a planned closing back.

use domain::period::{FAR_FUTURE, Period};
use domain::{BillingTiming, Error, Instant, Money, Result, Scope, SubscriptionId};
use serde_json::json;
use sqlx::PgConnection;
use store::{StoreError, Tx};

use super::lifecycle::{Closing, Consequences, PeriodClosePayload};
use super::model::{Subscription, SubscriptionDTO};
use super::read;
use super::request::CancelSubscriptionRequest;
use super::words::{CancellationReason, ProrationType, SubscriptionStatus};
use super::write::store_state;
use crate::billing::{Billing, clocked};
use crate::due::{DueKind, NewWork, PassedBoundary, plan, stuck_boundary, withdraw};
use crate::events::{self, Event};
use crate::invoice::draft::assemble;
use crate::invoice::follow::unfollow_all;
use crate::invoice::load::Loaded;
use crate::invoice::run::{Run, RunKey, RunReason, is_open_ended};
use crate::invoice::share::Share;
use crate::settings::BillingSettings;

impl Billing {
    /// Closes a subscription now or at the end of its period. The closing invoice is made by the scheduler: it waits for
    /// the usage window to close.
    ///
    /// In advance with PRORATE the unused prepaid time is announced as `subscription.refund_required` with its amount
    /// (proration.md, P7); the credit note that settles it is not built yet.
    ///
    /// # Errors
    /// `NotFound`; `INVALID_TRANSITION` on a closed subscription; `CONFLICT` while a boundary is being worked off that has not
    /// failed three times; 422 for another instant than now.
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
        let consequences = if request.cancel_at_period_end && waits_for_period_end(&subscription, scope.now()) {
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
        let stuck = stuck_boundary(scope, tx.conn(), subscription).await?;
        let kinds = [DueKind::SubscriptionStart, DueKind::TrialEnd, DueKind::PeriodClose];
        withdraw(tx.conn(), scope.workspace_id, subscription.id.0, &kinds).await?;
        let passed = match stuck {
            Some(stuck) => self.pass_stuck(scope, tx, subscription, stuck).await?,
            None => Consequences::default(),
        };
        if subscription.status.is_terminal() {
            return Ok(passed); // the boundary was its end
        }
        let is_past_term = subscription.is_past_term();
        let (to, default) = if is_past_term {
            (SubscriptionStatus::Expired, CancellationReason::TermEnded)
        } else {
            (SubscriptionStatus::Cancelled, CancellationReason::CustomerRequest)
        };
        let left = subscription.paused_window(now)?;
        let open = charged_period(subscription, now).filter(|_| !is_past_term);
        let refund = match open {
            Some(open) if request.proration_type == ProrationType::Prorate => {
                self.unused_prepaid(scope, tx, subscription, open, Period { start: open.start, end: now }).await?
            }
            _ => None,
        };
        let mut consequences = subscription.close(to, now, Some(request.cancellation_reason.unwrap_or(default)));
        consequences.events.extend(refund);
        if let (Some(event), Some(comment)) = (consequences.events.first_mut(), &request.comment) {
            event.add("comment", comment);
        }
        if let Some(open) = open {
            subscription.current_period_end = Some(now);
            let run = RunKey::new(RunReason::Closing, Period { start: open.start, end: now });
            let payload = PeriodClosePayload { closing: Some(Closing { run, invoice_now: request.invoice_now }) };
            consequences.work.push(NewWork::on(subscription, DueKind::PeriodClose, now, payload));
        }
        if let Some(left) = left {
            let settings = BillingSettings::load(tx.conn(), scope.organization_id).await?;
            consequences.work.push(subscription.seal_unbilled(RunKey::new(RunReason::Paused, left), &settings));
        }
        consequences.work.extend(passed.work);
        consequences.events.extend(passed.events);
        Ok(consequences)
    }

    /// Passes boundaries that the scheduler fails to work off, up to now: a subscription that cannot be billed can be
    /// cancelled all the same. What was to be billed there stays on the agenda, one run for each period, and is finalized
    /// when whatever is wrong with it is mended; no draft is made here, since that is what fails.
    async fn pass_stuck(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        subscription: &mut Subscription,
        stuck: PassedBoundary,
    ) -> Result<Consequences> {
        let mut passed = Consequences::default();
        if stuck.kind != DueKind::PeriodClose {
            return Ok(passed); // nothing is charged before the first period (3.4 rule 3)
        }
        let settings = BillingSettings::load(tx.conn(), scope.organization_id).await?;
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let ids = [subscription.id];
        let has_usage =
            Loaded::subscriptions(tx.conn(), catalog, scope.workspace_id, &ids, false).await?.has_usage(ids[0]);
        // Planned also where invoices are finalized by hand: it makes the draft then.
        let settings = BillingSettings { auto_finalize: true, ..settings };
        let mut boundary = Some(stuck.due_at);
        while let Some(at) = boundary.filter(|at| *at <= scope.now()) {
            let Some(period) = subscription.period_ending(at)? else { break };
            let Consequences { work, events, .. } = subscription.close_period(period, &settings, has_usage)?;
            let (next, runs): (Vec<_>, Vec<_>) = work.into_iter().partition(|work| work.kind == DueKind::PeriodClose);
            boundary = next.first().map(|next| next.due_at);
            passed.work.extend(runs);
            passed.events.extend(events);
        }
        Ok(passed)
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
    /// `NotFound`; `CONFLICT` unless PENDING, TRIALING, CANCELLED or EXPIRED, and while its last invoice is not finalized.
    pub async fn delete_subscription(&self, scope: &Scope, tx: &mut Tx, id: SubscriptionId) -> Result<()> {
        use SubscriptionStatus::{Active, Dunning, Paused};
        let subscription = read::lock(tx.conn(), scope.workspace_id, id).await?;
        if matches!(subscription.status, Active | Dunning | Paused) {
            let detail = format!("a subscription that is {} cannot be deleted; cancel it first", subscription.status);
            return Err(Error::conflict("CONFLICT", detail));
        }
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
        refuse_unbilled(&scope, tx.conn(), id).await?;
        withdraw(tx.conn(), scope.workspace_id, id.0, &[DueKind::SubscriptionStart, DueKind::TrialEnd]).await?;
        unfollow_all(tx.conn(), id).await?;
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

/// The charged period that runs at an instant. PENDING and TRIALING are not charged (3.4 rule 3), and neither is a pause
/// behind the end of its period.
fn charged_period(subscription: &Subscription, now: Instant) -> Option<Period> {
    use SubscriptionStatus::{Active, Dunning, Paused};
    let start = subscription.current_period_start?;
    let end = subscription.current_period_end.unwrap_or(FAR_FUTURE);
    let is_charged = matches!(subscription.status, Active | Dunning | Paused) && now < end;
    is_charged.then_some(Period { start, end })
}

/// Whether a cancellation at the period's end has an end to wait for.
fn waits_for_period_end(subscription: &Subscription, now: Instant) -> bool {
    use SubscriptionStatus::{Active, Dunning, Paused, Trialing};
    match subscription.status {
        Active | Dunning | Trialing => subscription.next_billing_date.is_some(),
        Paused => subscription.current_period_end.is_some_and(|end| now < end),
        _ => false,
    }
}

/// Refuses to delete a subscription whose usage is not billed yet: nobody could bill it afterwards.
async fn refuse_unbilled(scope: &Scope, conn: &mut PgConnection, id: SubscriptionId) -> Result<()> {
    let is_unbilled: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM due_work WHERE workspace_id = $1 AND subject_id = $2
                           AND kind IN ('period_close', 'invoice_finalize', 'interim_invoice', 'usage_correction'))
             OR EXISTS (SELECT FROM invoice WHERE workspace_id = $1 AND subscription_id = $2 AND deleted_at IS NULL
                           AND status IN ('draft', 'pending_approval') AND billing_reason NOT LIKE 'manual%')",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(conn)
    .await
    .context("looking for what is not billed")?;
    if is_unbilled {
        return Err(Error::conflict("CONFLICT", "the last invoice of the subscription is not finalized yet"));
    }
    Ok(())
}
