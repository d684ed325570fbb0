//! Writing what a change of state leaves: many subscriptions in one statement.

use domain::{Instant, PhaseId, Result, SubscriptionId, WorkspaceId};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::StoreError;

use super::model::Subscription;
use super::words::{CancellationReason, DunningStage, SubscriptionStatus};

/// Every column that a change of state may write.
#[derive(Serialize)]
struct StateRow<'a> {
    id: SubscriptionId,
    status: SubscriptionStatus,
    schedule_restarts: &'a [Instant],
    activated_at: Option<Instant>,
    current_period_start: Option<Instant>,
    current_period_end: Option<Instant>,
    next_billing_date: Option<Instant>,
    ended_at: Option<Instant>,
    cancel_at_period_end: bool,
    cancelled_at: Option<Instant>,
    expired_at: Option<Instant>,
    cancellation_reason: Option<CancellationReason>,
    paused_at: Option<Instant>,
    resumed_at: Option<Instant>,
    dunning_stage: Option<DunningStage>,
    current_phase_id: Option<PhaseId>,
}

impl<'a> From<&'a Subscription> for StateRow<'a> {
    fn from(subscription: &'a Subscription) -> Self {
        Self {
            id: subscription.id,
            status: subscription.status,
            schedule_restarts: &subscription.schedule_restarts,
            activated_at: subscription.activated_at,
            current_period_start: subscription.current_period_start,
            current_period_end: subscription.current_period_end,
            next_billing_date: subscription.next_billing_date,
            ended_at: subscription.ended_at,
            cancel_at_period_end: subscription.cancel_at_period_end,
            cancelled_at: subscription.cancelled_at,
            expired_at: subscription.expired_at,
            cancellation_reason: subscription.cancellation_reason,
            paused_at: subscription.paused_at,
            resumed_at: subscription.resumed_at,
            dunning_stage: subscription.dunning_stage,
            current_phase_id: subscription.current_phase_id,
        }
    }
}

/// Stores the state of subscriptions that the caller has locked; each gets its next version.
///
/// # Errors
/// As every statement.
pub(crate) async fn store_state(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    now: Instant,
    subscriptions: &[&Subscription],
) -> Result<()> {
    if subscriptions.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = subscriptions.iter().map(|subscription| StateRow::from(*subscription)).collect();
    sqlx::query(
        "UPDATE subscription SET status = new.status, schedule_restarts = new.schedule_restarts,
                activated_at = new.activated_at, current_period_start = new.current_period_start,
                current_period_end = new.current_period_end, next_billing_date = new.next_billing_date,
                ended_at = new.ended_at, cancel_at_period_end = new.cancel_at_period_end,
                cancelled_at = new.cancelled_at, expired_at = new.expired_at,
                cancellation_reason = new.cancellation_reason, paused_at = new.paused_at, resumed_at = new.resumed_at,
                dunning_stage = new.dunning_stage, current_phase_id = new.current_phase_id, updated_at = $3,
                version = subscription.version + 1
         FROM jsonb_populate_recordset(NULL::subscription, $2) AS new
         WHERE subscription.workspace_id = $1 AND subscription.id = new.id",
    )
    .bind(workspace_id)
    .bind(Json(rows))
    .bind(now)
    .execute(conn)
    .await
    .context("storing the state of subscriptions")?;
    Ok(())
}
