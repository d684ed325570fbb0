//! Pausing and resuming (subscriptions.md 3.1, billing-cycles.md 3.4 rule 5).

use domain::{Result, Scope, SubscriptionId};
use store::Tx;

use super::lifecycle::Consequences;
use super::model::SubscriptionDTO;
use super::read;
use super::words::SubscriptionStatus;
use super::write::store_state;
use crate::billing::{Billing, clocked};
use crate::due::plan;
use crate::events;

impl Billing {
    /// ACTIVE to PAUSED: boundaries that are passed make no invoice.
    ///
    /// # Errors
    /// `NotFound`; `INVALID_TRANSITION` unless ACTIVE.
    pub async fn pause_subscription(&self, scope: &Scope, tx: &mut Tx, id: SubscriptionId) -> Result<SubscriptionDTO> {
        let mut subscription = read::lock(tx.conn(), scope.workspace_id, id).await?;
        if subscription.status != SubscriptionStatus::Active {
            return subscription.refuse_transition(SubscriptionStatus::Paused);
        }
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
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
    /// `NotFound`; `INVALID_TRANSITION` unless PAUSED.
    pub async fn resume_subscription(&self, scope: &Scope, tx: &mut Tx, id: SubscriptionId) -> Result<SubscriptionDTO> {
        let mut subscription = read::lock(tx.conn(), scope.workspace_id, id).await?;
        if subscription.status != SubscriptionStatus::Paused {
            return subscription.refuse_transition(SubscriptionStatus::Active);
        }
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
        subscription.status = SubscriptionStatus::Active;
        subscription.resumed_at = Some(scope.now());
        let passed = subscription.current_period_end.is_some_and(|end| end <= scope.now());
        let mut consequences = if passed {
            subscription.first_period_start = scope.now();
            subscription.begin_first_period()?
        } else {
            Consequences::default()
        };
        consequences.events.push(subscription.event("subscription.resumed", scope.now()));
        store_state(tx.conn(), scope.workspace_id, scope.now(), &[&subscription]).await?;
        plan(tx.conn(), scope.now(), &consequences.work).await?;
        events::emit(tx.conn(), &consequences.events).await?;
        tx.subscription_changed(scope.workspace_id, id);
        read::get(&scope, tx.conn(), id).await
    }
}
