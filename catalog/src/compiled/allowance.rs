//! What covers the usage of a window, and what is committed of it (allowances.md 5.1): the one place that makes the terms by
//! which actors, reservations, simulations, drafts and views rate.

use domain::period::Period;
use domain::{BindingRole, IncludedQuantitySource, Instant, PoolScope, PriceId, ProductId, Quantity, Result};
use rating::allowance::{AllowancePart, Drawn, Lot, Rollover, included_quantity, prorated, sum_of};
use rating::{Allowance, Commitment, Exact, RatedLine, RatingError, Terms, WindowState};

use super::terms::ItemTerms;
use super::{PlanProductTerms, SubscriptionTerms, WorkspaceCatalog};

/// What the plan or the items include of a product in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncludedQuantity {
    /// Shared by the usage of the whole subscription, or, with `pool_scope` ITEM, of items without a price key.
    pub shared: Quantity,
    /// With `pool_scope` ITEM: of the items of each price key.
    pub of_price_keys: Vec<(String, Quantity)>,
}

/// The allowance of a product and metric in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricAllowance {
    /// Shared by all usage without an allowance of its own.
    pub shared: AllowancePool,
    /// Own allowances of price keys (`pool_scope` ITEM).
    pub of_price_keys: Vec<(String, AllowancePool)>,
}

/// One allowance, and what it is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowancePool {
    /// By source.
    pub sources: Allowance,
    /// What `sources.rolled_over` is made of, in the order in which it is drawn.
    pub lots: Vec<Lot>,
}

impl AllowancePool {
    fn new(lots: Vec<Lot>, included: Quantity, granted: Quantity) -> Result<Self, RatingError> {
        Ok(Self { sources: Allowance { rolled_over: sum_of(&lots)?, included, granted }, lots })
    }
}

impl MetricAllowance {
    /// Each allowance with the price key that has it; first the shared one.
    pub fn pools(&self) -> impl Iterator<Item = (Option<&str>, &AllowancePool)> {
        let own = self.of_price_keys.iter().map(|(key, pool)| (Some(key.as_str()), pool));
        [(None, &self.shared)].into_iter().chain(own)
    }

    /// All of them together, by source.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn sources(&self) -> Result<Allowance, RatingError> {
        let sum = |of: fn(&Allowance) -> Quantity| {
            let mut quantities = self.pools().map(|(_, pool)| of(&pool.sources));
            let sum = quantities.try_fold(Quantity::ZERO, |sum, quantity| sum.checked_add(quantity));
            sum.map_err(|_| RatingError::Overflow("the allowance"))
        };
        let sources = Allowance {
            rolled_over: sum(|sources| sources.rolled_over)?,
            included: sum(|sources| sources.included)?,
            granted: sum(|sources| sources.granted)?,
        };
        sources.total()?;
        Ok(sources)
    }

    /// When the first of what was carried lapses.
    #[must_use]
    pub fn first_expiry(&self) -> Option<Instant> {
        self.pools().flat_map(|(_, pool)| &pool.lots).filter_map(|lot| lot.expires_at).min()
    }

    /// The price key whose own allowance usage of this price key draws; `None`: it draws the shared one.
    #[must_use]
    pub fn pool_of<'k>(&self, price_key: Option<&'k str>) -> Option<&'k str> {
        price_key.filter(|key| self.of_price_keys.iter().any(|(known, _)| known == key))
    }

    /// What the rated lines of the product and metric have taken of one of them, by source.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn drawn<'a>(
        &self,
        (of, pool): (Option<&str>, &AllowancePool),
        lines: impl IntoIterator<Item = &'a RatedLine>,
    ) -> Result<Drawn, RatingError> {
        let mut lines = lines.into_iter().filter(|line| self.pool_of(line.price_key.as_deref()) == of);
        let taken = lines.try_fold(Exact::ZERO, |sum, line| sum.checked_add(line.included_quantity))?;
        pool.sources.draw(taken)
    }
}

impl WorkspaceCatalog {
    fn planned(&self, terms: &SubscriptionTerms, product_id: ProductId) -> Option<&PlanProductTerms> {
        let plan = self.plan_version(terms.plan_version_id)?;
        plan.products.iter().find(|product| product.product_id == product_id)
    }

    /// The metrics that are billed of a product in a window.
    #[must_use]
    pub fn metrics_of(&self, product_id: ProductId, window: Period) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for binding in self.product(product_id).map(|product| product.bindings.as_slice()).unwrap_or_default() {
            let is_billed = binding.versions.iter().any(|(from, to, version)| {
                version.role == BindingRole::Primary && *from < window.end && to.is_none_or(|to| to > window.start)
            });
            if is_billed && !found.contains(&binding.metric_key.as_str()) {
                found.push(&binding.metric_key);
            }
        }
        found
    }

    /// The plan's products whose unused quantities are carried on, with the rule.
    pub fn rollovers(&self, terms: &SubscriptionTerms) -> impl Iterator<Item = (ProductId, Rollover)> {
        let products = self.plan_version(terms.plan_version_id).map(|plan| plan.products.as_slice());
        products.unwrap_or_default().iter().filter_map(|product| Some((product.product_id, product.rollover?)))
    }

    /// Where the included quantity of a product comes from, at an instant.
    #[must_use]
    pub fn included_source(
        &self,
        terms: &SubscriptionTerms,
        product_id: ProductId,
        at: Instant,
    ) -> IncludedQuantitySource {
        if terms.item_of(product_id, at).is_some_and(|item| item.included_quantity.is_some()) {
            return IncludedQuantitySource::SubscriptionItem;
        }
        match self.planned(terms, product_id) {
            Some(planned) if !planned.included_quantity.is_zero() => IncludedQuantitySource::Plan,
            _ => IncludedQuantitySource::None,
        }
    }

    /// The included quantity of a product in a window of a subscription: the items' own, else the plan's. What changes inside
    /// the window counts by its seconds, and a partial first or last period has its share (rule 3, A6).
    ///
    /// # Errors
    /// 422 when a product of quantities leaves the range.
    pub fn included(
        &self,
        terms: &SubscriptionTerms,
        product_id: ProductId,
        window: Period,
    ) -> Result<IncludedQuantity> {
        let planned = self.planned(terms, product_id);
        let items: Vec<&ItemTerms> = terms.items.iter().filter(|item| item.product_id == product_id).collect();
        let pool = Pool { terms, planned, window };
        if planned.is_none_or(|planned| planned.pool_scope == PoolScope::Subscription) {
            return Ok(IncludedQuantity { shared: pool.included(&items)?, of_price_keys: Vec::new() });
        }
        let (keyed, shared): (Vec<&ItemTerms>, Vec<&ItemTerms>) =
            items.iter().partition(|item| item.price_key.is_some());
        let mut included = IncludedQuantity::default();
        if !shared.is_empty() || keyed.is_empty() {
            included.shared = pool.included(&shared)?;
        }
        for key in keyed.iter().filter_map(|item| item.price_key.as_deref()) {
            if !included.of_price_keys.iter().any(|(known, _)| known == key) {
                let own: Vec<_> = keyed.iter().copied().filter(|item| item.price_key.as_deref() == Some(key)).collect();
                included.of_price_keys.push((key.to_owned(), pool.included(&own)?));
            }
        }
        Ok(included)
    }

    /// The allowance of a product and metric in a window, by source (rule 1).
    ///
    /// # Errors
    /// 422 when a quantity leaves the range.
    pub fn allowance(
        &self,
        terms: &SubscriptionTerms,
        product_id: ProductId,
        metric_key: &str,
        window: Period,
    ) -> Result<MetricAllowance> {
        let included = self.included(terms, product_id, window)?;
        let grants = terms.carried.grants_of(product_id, metric_key).map(|grant| grant.left_in(window));
        let granted = grants.into_iter().try_fold(Quantity::ZERO, |sum, left| sum.checked_add(left));
        let granted = granted.map_err(|_| RatingError::Overflow("the allowance"))?;
        let mut lots = terms.carried.lots_of(product_id, metric_key, window.start);
        let mut of_price_keys = Vec::with_capacity(included.of_price_keys.len());
        for (key, quantity) in included.of_price_keys {
            let (own, rest) = lots.into_iter().partition(|(of, _)| *of == key);
            lots = rest;
            of_price_keys.push((key, AllowancePool::new(one_per_source(own)?, quantity, Quantity::ZERO)?));
        }
        // What price keys without an item have left belongs to all.
        let shared = AllowancePool::new(one_per_source(lots)?, included.shared, granted)?;
        let allowance = MetricAllowance { shared, of_price_keys };
        allowance.sources()?;
        Ok(allowance)
    }

    /// What rating needs beside the totals: allowance and commitments of every product and metric that the window has
    /// counted.
    ///
    /// # Errors
    /// As [`WorkspaceCatalog::allowance`].
    pub fn rating_terms(&self, terms: &SubscriptionTerms, window: Period, state: &WindowState) -> Result<Vec<Terms>> {
        let mut found: Vec<Terms> = Vec::new();
        for entry in state.entries().iter().filter(|entry| entry.binding().role == BindingRole::Primary) {
            let (product_id, metric_key) = (entry.product_id(), entry.metric_key());
            if !found.iter().any(|terms| terms.product_id == product_id && terms.metric_key == metric_key) {
                found.push(self.terms_of(terms, product_id, metric_key, window)?);
            }
        }
        Ok(found)
    }

    fn terms_of(
        &self,
        terms: &SubscriptionTerms,
        product_id: ProductId,
        metric_key: &str,
        window: Period,
    ) -> Result<Terms> {
        let allowance = self.allowance(terms, product_id, metric_key, window)?;
        let own = allowance.of_price_keys.iter().map(|(key, pool)| Ok((key.clone(), pool.sources.total()?)));
        Ok(Terms {
            of_price_keys: own.collect::<Result<_, RatingError>>()?,
            tiers_on_total: self.product(product_id).is_some_and(|product| product.tiers_on_total),
            commitments: self.commitments(terms, product_id, metric_key, window),
            ..Terms::new(product_id, metric_key, allowance.shared.sources.total()?)
        })
    }

    /// The commitment periods that a window meets.
    fn commitments(
        &self,
        terms: &SubscriptionTerms,
        product_id: ProductId,
        metric_key: &str,
        window: Period,
    ) -> Vec<Commitment> {
        if terms.carried.commitments.is_empty() || terms.is_trial(window.start) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for plan in terms.carried.commitments_of(product_id, metric_key) {
            let periods = plan.periods(terms.schedule.timezone);
            let met = periods.skip_while(|one| one.end <= window.start).take_while(|one| one.start < window.end);
            found.extend(met.map(|period| {
                let version =
                    |id: PriceId| self.version_of_price(terms, product_id, id, window.start.max(period.start));
                let overage = plan.overage_price_id.and_then(version).map(|(_, price)| price.clone());
                plan.in_window(period, window.start, overage)
            }));
        }
        found
    }
}

/// Lots of one source as one.
fn one_per_source(lots: Vec<(String, Lot)>) -> Result<Vec<Lot>, RatingError> {
    let mut merged: Vec<Lot> = Vec::with_capacity(lots.len());
    for (_, lot) in lots {
        match merged.iter_mut().find(|known| known.source_start == lot.source_start) {
            Some(known) => known.quantity = sum_of(&[*known, lot])?,
            None => merged.push(lot),
        }
    }
    Ok(merged)
}

/// Whom an allowance is computed for.
struct Pool<'a> {
    terms: &'a SubscriptionTerms,
    planned: Option<&'a PlanProductTerms>,
    window: Period,
}

impl Pool<'_> {
    /// What these items include over the window; without any item, what the plan includes.
    fn included(&self, items: &[&ItemTerms]) -> Result<Quantity> {
        let Period { start, end } = self.window;
        let changes = items.iter().flat_map(|item| [Some(item.added_at), item.removed_at]).flatten();
        let mut cuts: Vec<Instant> = changes.filter(|at| start < *at && *at < end).collect();
        cuts.extend([start, end]);
        cuts.sort_unstable();
        cuts.dedup();
        let is_trial = self.terms.is_trial(start);
        // A window that a cancellation has cut short is a part of the one that was scheduled.
        let scheduled = self.terms.schedule.whole(self.terms.window_at(start).unwrap_or(self.window));
        let full = if is_trial { self.window.seconds() } else { scheduled.seconds().max(self.window.seconds()) };
        let mut parts = Vec::with_capacity(cuts.len());
        for span in cuts.windows(2) {
            let offset = |at| Period { start, end: at }.seconds();
            let quantity = self.included_at(items, span[0])?;
            parts.push(AllowancePart { quantity, seconds: offset(span[1]).abs_diff(offset(span[0])) });
        }
        match parts.as_slice() {
            [] => Ok(Quantity::ZERO), // a window that a cancellation has left empty
            [only] if only.quantity.is_zero() || self.window.seconds() >= full => Ok(only.quantity),
            parts => Ok(prorated(parts, full.unsigned_abs())?),
        }
    }

    /// What the items of an instant include together: each its own quantity, and those without one what the plan includes,
    /// once, or per unit of theirs.
    fn included_at(&self, items: &[&ItemTerms], at: Instant) -> Result<Quantity> {
        let out_of_range = |_| RatingError::Overflow("the allowance");
        let in_effect = |item: &&&ItemTerms| item.added_at <= at && item.removed_at.is_none_or(|removed| at < removed);
        let (mut own, mut units, mut is_planned) = (Quantity::ZERO, Quantity::ZERO, false);
        for item in items.iter().filter(in_effect) {
            match item.included_quantity {
                Some(quantity) => own = own.checked_add(quantity).map_err(out_of_range)?,
                None => (units, is_planned) = (units.checked_add(item.quantity).map_err(out_of_range)?, true),
            }
        }
        if items.is_empty() {
            (units, is_planned) = (Quantity::ONE, true);
        }
        let Some(planned) = self.planned.filter(|_| is_planned) else { return Ok(own) };
        let planned = included_quantity(planned.included_quantity, planned.included_quantity_per_unit, units)?;
        Ok(own.checked_add(planned).map_err(out_of_range)?)
    }
}
