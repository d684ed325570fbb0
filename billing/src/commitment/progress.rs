//! How far a commitment period is used: what billed windows left, and what those that still count hold.

use std::collections::HashMap;

use catalog::compiled::{CommittedUse, Snapshots, StoredWindow, SubscriptionTerms, WindowQuery, WorkspaceCatalog};
use domain::period::{FAR_FUTURE, Period};
use domain::{CommittedUsePlanStatus, Instant, Quantity, Result, Scope, SubscriptionId};
use rating::{Exact, Rated, RatingInput};
use sqlx::PgConnection;

use super::{CommittedUsePlan, StoredCommitment};
use crate::invoice::draft::commitment::used_in;

/// Puts their progress to plans; a few statements, whatever their number.
pub(super) async fn with_progress(
    scope: &Scope,
    conn: &mut PgConnection,
    snapshots: &Snapshots,
    plans: Vec<StoredCommitment>,
) -> Result<Vec<CommittedUsePlan>> {
    let mut ids: Vec<SubscriptionId> = plans.iter().map(|plan| plan.subscription_id).collect();
    ids.sort_unstable();
    ids.dedup();
    let catalog = snapshots.workspace(scope.workspace_id).await?;
    let terms = SubscriptionTerms::load(conn, &ids).await?;
    let windows = StoredWindow::load(conn, snapshots, WindowQuery::Unsealed(&ids)).await?;
    let mut open: HashMap<SubscriptionId, Vec<(Period, Rated)>> = HashMap::new();
    for window in &windows {
        if let Some(terms) = terms.get(&window.subscription_id) {
            let rated = rate(&catalog, terms, window)?;
            open.entry(window.subscription_id).or_default().push((window.window, rated));
        }
    }
    let one = |stored: StoredCommitment| {
        let windows = open.get(&stored.subscription_id).map(Vec::as_slice).unwrap_or_default();
        let terms = terms.get(&stored.subscription_id);
        let plan = terms.and_then(|terms| {
            let plan = terms.carried.commitments.iter().find(|plan| plan.id == stored.id)?;
            Some((plan, current(plan, terms, &stored)?))
        });
        shown(stored, plan, windows)
    };
    plans.into_iter().map(one).collect()
}

fn rate(catalog: &WorkspaceCatalog, terms: &SubscriptionTerms, window: &StoredWindow) -> Result<Rated> {
    let found = catalog.rating_terms(terms, window.window, &window.state)?;
    let period = terms.period_facts(window.window);
    Ok(window.state.rate(&RatingInput { terms: &found, until: None, period })?)
}

/// The period that runs, or the last of a plan that is over; `None` before the term.
fn current(plan: &CommittedUse, terms: &SubscriptionTerms, stored: &StoredCommitment) -> Option<Period> {
    let at: Instant = stored.as_of.min(plan.ends_at - chrono::TimeDelta::microseconds(1));
    plan.periods(terms.schedule.timezone).find(|period| period.contains(at))
}

fn shown(
    stored: StoredCommitment,
    plan: Option<(&CommittedUse, Period)>,
    windows: &[(Period, Rated)],
) -> Result<CommittedUsePlan> {
    let mut used = Quantity::ZERO;
    if let Some((plan, period)) = plan {
        let mut sum = Exact::from(plan.used_before(period.start, FAR_FUTURE));
        for (_, rated) in windows {
            sum = sum.checked_add(used_in(rated, plan.id, period.start)?)?;
        }
        used = sum.floor_to_quantity();
    }
    let is_over = matches!(stored.status, CommittedUsePlanStatus::Completed | CommittedUsePlanStatus::Cancelled);
    let running = plan.map(|(_, period)| period).filter(|_| !is_over);
    let missing = stored.committed_quantity.saturating_less(used);
    Ok(CommittedUsePlan {
        current_period_start: running.map(|period| period.start),
        current_period_end: running.map(|period| period.end),
        used_quantity: used,
        remaining_quantity: if is_over { Quantity::ZERO } else { missing },
        shortfall_quantity: if plan.is_some() { missing } else { Quantity::ZERO },
        stored,
    })
}
