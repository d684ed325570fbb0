//! The state of every allowance of a subscription (allowances.md 2), by the function that rates its invoice.

use std::borrow::Cow;

use catalog::compiled::{MetricAllowance, Snapshots, StoredWindow, SubscriptionTerms, WindowQuery, WorkspaceCatalog};
use chrono::{DateTime, TimeDelta, Utc};
use domain::period::Period;
use domain::{
    Error, IncludedQuantitySource, Instant, Money, ProductId, ProductType, Quantity, Result, Scope, SubscriptionId,
};
use rating::{Exact, Rated, RatedLine};
use serde::Serialize;
use store::{Store, StoreError};

use crate::view::{present_of, rate, terms_of};

/// Allowances of a subscription in one period.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct AllowanceStateResponse {
    /// The subscription.
    pub subscription_id: SubscriptionId,
    /// Start of the period that is shown.
    pub period_start: DateTime<Utc>,
    /// Its end, exclusive.
    pub period_end: DateTime<Utc>,
    /// Instant whose period is shown.
    pub as_of: DateTime<Utc>,
    /// One per metered product and metric.
    pub products: Vec<ProductAllowanceState>,
}

/// The allowance of one product and metric.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ProductAllowanceState {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// Of the plan or the items, with their share of a partial period.
    pub included_quantity: Quantity,
    /// Where it comes from.
    pub included_quantity_source: IncludedQuantitySource,
    /// Carried over from earlier periods.
    pub rolled_over_quantity: Quantity,
    /// Of add-ons and promotions.
    pub granted_quantity: Quantity,
    /// All of them.
    pub total_quantity: Quantity,
    /// Used in the period.
    #[schema(value_type = String)]
    pub used_quantity: Exact,
    /// What is left of the total.
    #[schema(value_type = String)]
    pub remaining_quantity: Exact,
    /// Used beyond it.
    #[schema(value_type = String)]
    pub overage_quantity: Exact,
    /// What the overage would cost now.
    pub estimated_overage: Money,
    /// Whether what is left is carried on.
    pub rollover_enabled: bool,
    /// When the first of what was carried lapses; null when nothing was, or it never does.
    #[schema(required)]
    pub rollover_expires_at: Option<DateTime<Utc>>,
}

/// Reads the allowances of the period that contains `at` (default: the scope's instant, or its test clock's). Before the
/// start it is the first period, behind the end the last one.
///
/// # Errors
/// `NotFound`; 422 when a quantity leaves its range; as every statement.
pub async fn allowance_state(
    store: &Store,
    snapshots: &Snapshots,
    scope: &Scope,
    id: SubscriptionId,
    at: Option<Instant>,
) -> Result<AllowanceStateResponse> {
    let terms = snapshots.terms(scope.workspace_id, id).await?.ok_or_else(|| Error::not_found("subscription", id))?;
    let mut conn = store.pool().acquire().await.context("reading allowances")?;
    let as_of = present_of(scope, &mut conn, &terms, at).await?;
    let last = terms.ended_at.map_or(as_of, |end| as_of.min(end - TimeDelta::microseconds(1)));
    let window = terms.window_at(last.max(terms.started_at));
    let window = window.ok_or_else(|| Error::invariant(format!("subscription {id} has no first period")))?;
    let stored = StoredWindow::load(&mut conn, snapshots, WindowQuery::Starting(&[(id, window.start)])).await?;
    let stored = stored.into_iter().next();
    let window = stored.as_ref().map_or(window, |stored| stored.window);
    let catalog = snapshots.workspace(scope.workspace_id).await?;
    let (terms, rated) = match &stored {
        Some(stored) => {
            let terms = terms_of(&mut conn, &terms, stored).await?;
            let rated = rate(&catalog, &terms, stored, as_of)?;
            (terms, rated)
        }
        None => (Cow::Borrowed(&*terms), Rated::default()),
    };
    let mut products = Vec::new();
    for (product_id, metric_key) in metered(&catalog, &terms, window) {
        let allowance = catalog.allowance(&terms, product_id, metric_key, window)?;
        let at = last.clamp(window.start, window.end - TimeDelta::microseconds(1));
        let period = (window, at);
        products.push(state(&catalog, &terms, period, (product_id, metric_key), allowance, &rated)?);
    }
    let (period_start, period_end) = (window.start, window.end);
    Ok(AllowanceStateResponse { subscription_id: id, period_start, period_end, as_of, products })
}

/// The metered products of the plan and the items, with their metrics.
fn metered<'a>(catalog: &'a WorkspaceCatalog, terms: &SubscriptionTerms, window: Period) -> Vec<(ProductId, &'a str)> {
    let planned = catalog.plan_version(terms.plan_version_id).map(|plan| plan.products.as_slice());
    let planned = planned.unwrap_or_default().iter().map(|product| product.product_id);
    let mut ids: Vec<ProductId> = planned.chain(terms.items.iter().map(|item| item.product_id)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| catalog.product(*id).is_some_and(|product| product.kind == ProductType::Usage));
    let metrics = |id: ProductId| catalog.metrics_of(id, window).into_iter().map(move |metric| (id, metric));
    ids.into_iter().flat_map(metrics).collect()
}

fn state(
    catalog: &WorkspaceCatalog,
    terms: &SubscriptionTerms,
    (window, at): (Period, Instant),
    (product_id, metric_key): (ProductId, &str),
    allowance: MetricAllowance,
    rated: &Rated,
) -> Result<ProductAllowanceState> {
    let lines: Vec<&RatedLine> =
        rated.lines.iter().filter(|line| line.product_id == product_id && line.metric_key == metric_key).collect();
    let sum = |of: fn(&RatedLine) -> Exact| lines.iter().try_fold(Exact::ZERO, |sum, line| sum.checked_add(of(line)));
    let sources = allowance.sources()?;
    let remaining = allowance
        .pools()
        .try_fold(Exact::ZERO, |sum, pool| sum.checked_add(allowance.drawn(pool, lines.iter().copied())?.remaining))?;
    let cost = lines.iter().try_fold(Money::zero(terms.currency), |sum, line| sum.add(line.amount))?;
    // Usage of a trial is counted and never charged.
    let cost = if terms.is_trial(window.start) { Money::zero(terms.currency) } else { cost };
    Ok(ProductAllowanceState {
        product_id,
        metric_key: metric_key.to_owned(),
        included_quantity: sources.included,
        included_quantity_source: catalog.included_source(terms, product_id, at),
        rolled_over_quantity: sources.rolled_over,
        granted_quantity: sources.granted,
        total_quantity: sources.total()?,
        used_quantity: sum(|line| line.quantity)?,
        remaining_quantity: remaining,
        overage_quantity: sum(|line| line.billable_quantity)?,
        estimated_overage: cost,
        rollover_enabled: catalog.rollovers(terms).any(|(id, _)| id == product_id),
        rollover_expires_at: allowance.first_expiry(),
    })
}
