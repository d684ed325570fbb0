//! The billing periods of a subscription: past, current and next, newest first (billing-cycles.md 1).

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use domain::period::Period;
use domain::{Instant, InvoiceId, Result, Scope, SubscriptionId};
use serde::Serialize;
use sqlx::PgConnection;
use store::{Page, StoreError};
use utoipa::ToSchema;

use super::model::Subscription;
use super::read;
use super::words::{BillingPeriodStatus, SubscriptionStatus};
use crate::pages;

/// One charged period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct BillingPeriod {
    /// First instant.
    pub period_start: DateTime<Utc>,
    /// First instant after it.
    pub period_end: DateTime<Utc>,
    /// Where it lies.
    pub status: BillingPeriodStatus,
    /// The invoice over it, once there is one.
    #[schema(required)]
    pub invoice_id: Option<InvoiceId>,
}

/// Lists the periods; parameters are `limit` and `cursor`.
///
/// # Errors
/// `NotFound`, `Validation`, `INVALID_CURSOR`.
pub async fn list(
    scope: &Scope,
    conn: &mut PgConnection,
    id: SubscriptionId,
    parameters: &[(String, String)],
) -> Result<Page<BillingPeriod>> {
    let subscription = read::get(scope, conn, id).await?.subscription;
    let mut periods = periods(&subscription)?;
    periods.reverse();
    let page = pages::cut("period", periods, parameters)?;
    let invoices = invoices(scope, conn, id, &page.data).await?;
    Ok(page.map(|(period, status)| BillingPeriod {
        period_start: period.start,
        period_end: period.end,
        status,
        invoice_id: invoices.get(&period.start).copied(),
    }))
}

/// Every period from the first to the next one, oldest first.
fn periods(subscription: &Subscription) -> Result<Vec<(Period, BillingPeriodStatus)>> {
    let Some(start) = subscription.current_period_start.filter(|_| subscription.activated_at.is_some()) else {
        return Ok(Vec::new());
    };
    let schedule = subscription.schedule()?;
    let Some(scheduled) = schedule.containing(start) else { return Ok(Vec::new()) };
    let past = schedule.periods().take_while(|period| period.start < start);
    let mut periods: Vec<_> = past.map(|period| (period, BillingPeriodStatus::Past)).collect();
    let end = subscription.current_period_end.unwrap_or(scheduled.end);
    let over = subscription.status.is_terminal() || subscription.is_past_term();
    let status = if over { BillingPeriodStatus::Past } else { BillingPeriodStatus::Current };
    periods.push((Period { start, end }, status));
    let renews = subscription.auto_renew && !subscription.cancel_at_period_end && !over;
    if renews && subscription.status != SubscriptionStatus::Paused {
        periods.extend(schedule.containing(scheduled.end).map(|next| (next, BillingPeriodStatus::Next)));
    }
    Ok(periods)
}

async fn invoices(
    scope: &Scope,
    conn: &mut PgConnection,
    id: SubscriptionId,
    page: &[(Period, BillingPeriodStatus)],
) -> Result<HashMap<Instant, InvoiceId>> {
    let rows: Vec<(Instant, InvoiceId)> = sqlx::query_as(
        "SELECT billing_period_start, id FROM invoice
         WHERE workspace_id = $1 AND subscription_id = $2 AND billing_period_start = ANY($3) AND deleted_at IS NULL
           AND status <> 'void' ORDER BY billing_reason DESC",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(page.iter().map(|(period, _)| period.start).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .context("reading the invoices of periods")?;
    Ok(rows.into_iter().collect())
}
