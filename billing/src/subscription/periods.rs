//! The billing periods of a subscription: past, current and next, newest first (billing-cycles.md 1).

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::period::Period;
use domain::{Error, Instant, InvoiceId, Result, Scope, SubscriptionId};
use serde::Serialize;
use sqlx::PgConnection;
use store::list::PageResponse;
use store::{Page, StoreError};
use utoipa::ToSchema;

use super::model::Subscription;
use super::read;
use super::words::{BillingPeriodStatus, SubscriptionStatus};
use crate::invoice::run::is_open_ended;

/// Marks cursors of this list.
const CURSOR_PREFIX: &str = "period-";

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
    let (limit, before) = read_parameters(parameters)?;
    let subscription = read::get(scope, conn, id).await?.subscription;
    let periods = periods(&subscription)?;
    let newest = before.unwrap_or(periods.len()).min(periods.len());
    let oldest = newest.saturating_sub(limit as usize);
    let page = &periods[oldest..newest];
    let invoices = invoices(scope, conn, id, page).await?;
    let data = page.iter().rev().map(|(period, status)| BillingPeriod {
        period_start: period.start,
        period_end: period.end,
        status: *status,
        invoice_id: invoices.get(&period.start).copied(),
    });
    let has_more = oldest > 0;
    let cursor = has_more.then(|| format!("{CURSOR_PREFIX}{oldest}"));
    Ok(Page { data: data.collect(), pagination: PageResponse { cursor, has_more, limit } })
}

fn read_parameters(parameters: &[(String, String)]) -> Result<(u32, Option<usize>)> {
    let (mut limit, mut before) = (25, None);
    for (name, value) in parameters {
        match name.as_str() {
            "limit" => match value.parse() {
                Ok(asked @ 1..=100) => limit = asked,
                _ => return Err(Error::field("limit", Code::OutOfRange, "must be a whole number from 1 to 100")),
            },
            "cursor" => {
                let index = value.strip_prefix(CURSOR_PREFIX).and_then(|index| index.parse().ok());
                let detail = "the cursor belongs to another list".to_owned();
                before = Some(index.ok_or(Error::BadRequest { code: "INVALID_CURSOR", detail })?);
            }
            _ => {
                let message = "is not a known parameter; known are limit, cursor";
                return Err(Error::field(name.clone(), Code::UnknownField, message));
            }
        }
    }
    Ok((limit, before))
}

/// Every period from the first to the next one, oldest first.
fn periods(subscription: &Subscription) -> Result<Vec<(Period, BillingPeriodStatus)>> {
    let Some(start) = subscription.current_period_start.filter(|_| subscription.activated_at.is_some()) else {
        return Ok(Vec::new());
    };
    let schedule = subscription.schedule()?;
    let Some((current, scheduled)) = schedule.containing(start) else { return Ok(Vec::new()) };
    let mut periods: Vec<_> = (0..current).map(|index| (schedule.period(index), BillingPeriodStatus::Past)).collect();
    let end = subscription.current_period_end.unwrap_or(scheduled.end);
    let over = subscription.status.is_terminal() || subscription.is_past_term() && !is_open_ended(scheduled);
    let status = if over { BillingPeriodStatus::Past } else { BillingPeriodStatus::Current };
    periods.push((Period { start, end }, status));
    let renews = subscription.auto_renew && !subscription.cancel_at_period_end && !over;
    if renews && subscription.status != SubscriptionStatus::Paused {
        periods.push((schedule.period(current + 1), BillingPeriodStatus::Next));
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
