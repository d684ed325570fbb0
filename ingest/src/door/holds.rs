//! Rule R7: while a hold is active for a subscription and metric, an event of the pair must name one of the active ones.

use std::collections::HashSet;

use domain::{Error, Result, Scope, SubscriptionId, WorkspaceId};
use store::{Store, StoreError};

use super::Judged;
use super::presence::Presence;

/// Which workspaces have holds on usage.
#[derive(Debug)]
pub(super) struct Holds(Presence);

impl Default for Holds {
    fn default() -> Self {
        Self(Presence::new(
            "SELECT EXISTS (SELECT FROM wallet_hold
                            WHERE workspace_id = $1 AND status = 'PENDING' AND subscription_id IS NOT NULL)",
        ))
    }
}

impl Holds {
    /// A hold on usage was placed in this process.
    pub(super) fn note(&self, workspace_id: WorkspaceId) {
        self.0.note(workspace_id);
    }

    /// Refuses good events without a hold where one is active.
    pub(super) async fn require(&self, scope: &Scope, store: &Store, judged: &mut [Judged]) -> Result<()> {
        let mut ids: Vec<_> = judged.iter().filter_map(free_event).map(|event| event.subscription_id).collect();
        if ids.is_empty() || !self.0.has_any(scope, store).await? {
            return Ok(());
        }
        ids.sort_unstable();
        ids.dedup();
        let held: Vec<(SubscriptionId, String)> = sqlx::query_as(
            "SELECT DISTINCT h.subscription_id, h.metric_key
             FROM wallet_hold h JOIN wallet w ON w.id = h.wallet_id JOIN customer c ON c.id = w.customer_id
             LEFT JOIN test_clock clock ON clock.id = c.test_clock_id
             WHERE h.workspace_id = $1 AND h.subscription_id = ANY($2) AND h.status = 'PENDING'
               AND h.expires_at > coalesce(clock.frozen_at, $3)",
        )
        .bind(scope.workspace_id)
        .bind(ids.into_iter().map(|id| id.0).collect::<Vec<_>>())
        .bind(scope.now())
        .fetch_all(store.pool())
        .await
        .context("looking for holds on the usage of subscriptions")?;
        let held: HashSet<_> = held.into_iter().collect();
        for one in judged {
            let is_held =
                |event: &domain::UsageEvent| held.contains(&(event.subscription_id, event.metric_key.clone()));
            if free_event(one).is_some_and(is_held) {
                let detail = "a hold is active for this subscription and metric: name it in hold_id";
                *one = Judged::Bad(Error::business_rule(detail));
            }
        }
        Ok(())
    }
}

/// A good event that names no hold.
fn free_event(judged: &Judged) -> Option<&domain::UsageEvent> {
    match judged {
        Judged::Good { event, .. } if event.hold_id.is_none() => Some(event),
        _ => None,
    }
}
