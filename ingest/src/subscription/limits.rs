//! The limits of a subscription, compared with each window that a checkpoint writes (`rating/src/limit.rs`). The marks of what was
//! reached are part of the window's state, so blocks, breaches and alerts are as durable as the totals that they are of.

use catalog::compiled::{SubscriptionTerms, WindowStatus, WorkspaceCatalog};
use domain::{BreachId, ProductId, Result};
use rating::limit::{Limit, Limits, NewlyReached};
use rating::{RatingInput, Terms};
use smallvec::SmallVec;
use uuid::Uuid;

use super::WindowSlot;
use crate::checkpoint::BreachWrite;
use crate::limits::{AllowanceAlert, LimitsWrite};

/// Compares a window with the limits; what is found is told by the checkpoint. A window that cannot be rated keeps what was
/// reached before.
pub(super) fn review(
    catalog: &WorkspaceCatalog,
    terms: &SubscriptionTerms,
    rating_terms: &Result<Vec<Terms>>,
    slot: &mut WindowSlot,
) -> LimitsWrite {
    let mut write = LimitsWrite::default();
    let reached = match rating_terms {
        Ok(found) => reached(catalog, terms, found, slot),
        Err(_) => Ok(Vec::new()), // its accruals say so
    };
    match reached {
        Ok(reached) => reached.iter().for_each(|one| tell(&mut write, terms, slot, one)),
        Err(error) => {
            tracing::error!(subscription.id = %terms.id, window.start = %slot.window.start, %error, "limits cannot be compared");
        }
    }
    let was_blocking = slot.is_blocking;
    slot.is_blocking = slot.status != WindowStatus::Sealed && slot.state.is_blocking();
    if was_blocking || slot.is_blocking {
        let blocks = slot.is_blocking.then(|| slot.state.blocks(slot.window, terms.schedule.timezone));
        write.blocks = Some(blocks.unwrap_or_default());
    }
    write
}

fn reached(
    catalog: &WorkspaceCatalog,
    terms: &SubscriptionTerms,
    rating_terms: &[Terms],
    slot: &mut WindowSlot,
) -> rating::Result<Vec<NewlyReached>> {
    let ending: SmallVec<[ProductId; 4]> = catalog.products_ending_at_allowance(terms).collect();
    let has_limits = !terms.caps.is_empty()
        || !ending.is_empty()
        || slot.state.has_reached_limits()
        || rating_terms.iter().any(|one| !one.allowance.is_zero() || !one.of_price_keys.is_empty());
    if !has_limits {
        return Ok(Vec::new());
    }
    let input =
        RatingInput { terms: rating_terms, until: slot.counts_until(), period: terms.period_facts(slot.window) };
    let limits = Limits { caps: &terms.caps, ending: &ending };
    slot.state.review(&input, &limits, !terms.is_trial(slot.window.start))
}

fn tell(write: &mut LimitsWrite, terms: &SubscriptionTerms, slot: &WindowSlot, reached: &NewlyReached) {
    let (product_id, metric_key) = reached.pool.pair();
    let percent = match reached.limit {
        Limit::AllowancePercent(percent) => Some(percent),
        Limit::AllowanceExhausted => None,
        Limit::AllowanceEnd => return,
        Limit::Cap(limit, action) => {
            let place = (slot.window.start.timestamp_micros(), slot.position.as_i64());
            let name = format!("{place:?}:{product_id}:{metric_key}:{limit:?}:{action}");
            let id = BreachId(Uuid::new_v5(&terms.id.0, name.as_bytes()));
            match reached.breach(slot.window) {
                Ok(Some(breach)) => write.breaches.push(BreachWrite {
                    id,
                    organization_id: terms.organization_id,
                    workspace_id: terms.workspace_id,
                    breach,
                    subscription_id: terms.id,
                    occurred_at: None,
                }),
                Ok(None) => {}
                Err(error) => tracing::error!(subscription.id = %terms.id, %error, "a usage cap cannot be told"),
            }
            return;
        }
    };
    write.alerts.push(AllowanceAlert {
        id: Uuid::now_v7(),
        workspace_id: terms.workspace_id,
        customer_id: terms.customer_id,
        subscription_id: terms.id,
        product_id,
        metric_key: metric_key.to_owned(),
        percent,
        total: reached.pool.allowance,
        used: reached.pool.quantity,
        window: slot.window,
    });
}
