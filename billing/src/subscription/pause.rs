//! Pausing and resuming (subscriptions.md 3.1, billing-cycles.md 3.4 rule 5).

use domain::{Instant, Result, Scope, SubscriptionId};
use store::Tx;

use super::lifecycle::Consequences;
use super::model::{Subscription, SubscriptionDTO};
use super::read;
use super::words::SubscriptionStatus;
use super::write::store_state;
use crate::billing::{Billing, clocked};
use crate::due::{DueKind, plan, refuse_overtaking, withdraw};
use crate::events;
use crate::invoice::run::{RunKey, RunReason};
use crate::settings::BillingSettings;

impl Billing {
    /// ACTIVE to PAUSED: boundaries that are passed make no invoice.
    ///
    /// # Errors
    /// `NotFound`; `INVALID_TRANSITION` unless ACTIVE; `CONFLICT` while a boundary is being worked off.
    pub async fn pause_subscription(&self, scope: &Scope, tx: &mut Tx, id: SubscriptionId) -> Result<SubscriptionDTO> {
        let mut subscription = read::lock(tx.conn(), scope.workspace_id, id).await?;
        if subscription.status != SubscriptionStatus::Active {
            return subscription.refuse_transition(SubscriptionStatus::Paused);
        }
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
        refuse_overtaking(&scope, tx.conn(), &subscription).await?;
        subscription.status = SubscriptionStatus::Paused;
        subscription.paused_at = Some(scope.now());
        store_state(tx.conn(), scope.workspace_id, scope.now(), &[&subscription]).await?;
        events::emit(tx.conn(), &[subscription.event("subscription.paused", scope.now())]).await?;
        tx.subscription_changed(scope.workspace_id, id);
        read::get(&scope, tx.conn(), id).await
    }

    /// PAUSED to ACTIVE. Within the period it goes on; when a boundary was passed, a new period runs from now to the next
    /// anchor day, charged as a stub.
    ///
    /// # Errors
    /// `NotFound`; `INVALID_TRANSITION` unless PAUSED; `CONFLICT` while a boundary is being worked off.
    pub async fn resume_subscription(&self, scope: &Scope, tx: &mut Tx, id: SubscriptionId) -> Result<SubscriptionDTO> {
        let mut subscription = read::lock(tx.conn(), scope.workspace_id, id).await?;
        if subscription.status != SubscriptionStatus::Paused {
            return subscription.refuse_transition(SubscriptionStatus::Active);
        }
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
        refuse_overtaking(&scope, tx.conn(), &subscription).await?;
        let passed = subscription.current_period_end.is_some_and(|end| end <= scope.now());
        let mut consequences = if passed && !subscription.is_past_term() {
            withdraw(tx.conn(), scope.workspace_id, id.0, &[DueKind::PeriodClose]).await?;
            let settings = BillingSettings::load(tx.conn(), scope.organization_id).await?;
            subscription.begin_anew(scope.now(), &settings)?
        } else {
            Consequences::default()
        };
        subscription.status = SubscriptionStatus::Active;
        subscription.resumed_at = Some(scope.now());
        consequences.events.push(subscription.event("subscription.resumed", scope.now()));
        store_state(tx.conn(), scope.workspace_id, scope.now(), &[&subscription]).await?;
        plan(tx.conn(), scope.now(), &consequences.work).await?;
        events::emit(tx.conn(), &consequences.events).await?;
        tx.subscription_changed(scope.workspace_id, id);
        read::get(&scope, tx.conn(), id).await
    }
}

impl Subscription {
    /// Begins a new period now; the window that the pause leaves behind is not billed. Earlier periods keep their starts.
    fn begin_anew(&mut self, now: Instant, settings: &BillingSettings) -> Result<Consequences> {
        let left = self.paused_window(now)?;
        self.schedule_restarts.push(now);
        let mut consequences = self.begin_periods(now)?;
        let left = left.map(|window| self.seal_unbilled(RunKey::new(RunReason::Paused, window), settings));
        consequences.work.extend(left);
        Ok(consequences)
    }
}
