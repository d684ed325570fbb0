//! What a TIME_WEIGHTED meter holds at the end of a window is held where the next one begins (meters.md 5); the totals of
//! SLIDING and LIFETIME windows go on there.

use std::sync::Arc;

use catalog::compiled::{SubscriptionTerms, WindowStatus, WorkspaceCatalog};
use domain::Instant;
use rating::{Carry, CompiledBinding, CompiledPrice, Component};

use super::{Judge, WindowSlot, Windows};

impl Windows {
    /// Carries over what each window holds into the one after it that still counts. Windows are taken in order, so that a
    /// report of the first reaches the last.
    pub(super) fn carry_over(&mut self, judge: &Judge<'_>) {
        if !self.slots.iter().any(|slot| slot.state.holds() || slot.state.goes_on()) {
            return;
        }
        self.slots.sort_by_key(|slot| slot.window.start);
        for index in 1..self.slots.len() {
            let (before, rest) = self.slots.split_at_mut(index);
            let (Some(from), Some(into)) = (before.last_mut(), rest.first_mut()) else { continue };
            if into.status == WindowStatus::Sealed {
                continue;
            }
            match carry(judge, from, into) {
                Ok(changed) => into.is_dirty |= changed,
                Err(error) => {
                    tracing::error!(subscription.id = %judge.terms.id, %error, "a held value cannot be carried over");
                }
            }
        }
    }

    /// The window after one that ends exists as soon as there is something to carry into it.
    pub(super) fn open_next(&mut self, judge: &Judge<'_>, index: usize) {
        let slot = &self.slots[index];
        if !(slot.state.holds() || slot.state.goes_on())
            || judge.terms.ended_at.is_some_and(|ended| ended <= slot.window.end)
        {
            return;
        }
        let (end, position) = (slot.window.end, slot.position);
        if let Some(next) = judge.terms.window_at(end).filter(|next| next.start >= end) {
            let next = self.slot(next);
            self.slots[next].position = self.slots[next].position.max(position);
        }
        self.carry_over(judge);
    }
}

fn carry(judge: &Judge<'_>, from: &mut WindowSlot, into: &mut WindowSlot) -> rating::Result<bool> {
    let start = into.window.start;
    let mut changed = into.state.go_on_from(&mut from.state, from.window.end)?;
    let carries = from.state.carries();
    changed |= into.state.drop_carries(start, &carries)?;
    for carry in carries {
        changed |= into.state.carry_in(start, &at_start(judge, carry, start))?;
    }
    Ok(changed)
}

/// The versions that are in effect where a window begins, of what judged the last report before it.
fn at_start(judge: &Judge<'_>, carry: Carry, start: Instant) -> Carry {
    let binding = binding_at(judge.catalog, &carry, start).unwrap_or_else(|| carry.binding.clone());
    let price = carry.price.as_ref().map(|price| {
        let now = price_at(judge.catalog, judge.terms, &carry, start);
        now.map_or_else(|| (carry.segment_start, price.clone()), |(from, price)| (from, price.clone()))
    });
    let (segment_start, price) = match price {
        Some((from, price)) => (from.max(start), Some(price)),
        None => (start, None),
    };
    Carry { binding, price, segment_start, ..carry }
}

fn binding_at(catalog: &WorkspaceCatalog, carry: &Carry, start: Instant) -> Option<Arc<CompiledBinding>> {
    let product = catalog.product(carry.binding.product_id)?;
    let component = |binding: &CompiledBinding| binding.component().map(Component::id);
    let is_same = |binding: &&Arc<CompiledBinding>| {
        binding.binding_id == carry.binding.binding_id && component(binding) == component(&carry.binding)
    };
    catalog.bindings_of(product, carry.binding.reads(), start).find(is_same).cloned()
}

fn price_at<'a>(
    catalog: &'a WorkspaceCatalog,
    terms: &SubscriptionTerms,
    carry: &Carry,
    start: Instant,
) -> Option<(Instant, &'a Arc<CompiledPrice>)> {
    let price = carry.price.as_ref()?;
    catalog.version_of_price(terms, price.product_id, price.price_id, start)
}
