//! The compiled catalog of one workspace: which binding counts an event, which price rates it, what is included.

use std::collections::HashMap;
use std::sync::Arc;

use domain::{
    BillingIntervalUnit, BindingId, Currency, CustomerId, Error, FieldError, Instant, OveragePolicy, PlanId, PoolScope,
    PriceId, PricingModel, ProductId, ProductTaxCategory, ProductType, Quantity, Result, SupplyType,
    UnmatchedPriceKeyPolicy, VersionId, WorkspaceId,
};
use rating::allowance::Rollover;
use rating::{CompiledBinding, CompiledPrice, RateTable, RateTables, Variables};

use super::tables::Tables;
use super::{EventSchema, EventShape, SubscriptionTerms};

/// A product, as rating and invoice assembly need it.
#[derive(Clone, Debug)]
pub struct ProductTerms {
    /// The product.
    pub id: ProductId,
    /// Name on the invoice line.
    pub name: String,
    /// Where its quantity comes from.
    pub kind: ProductType,
    /// How its tiers are walked.
    pub pricing_model: PricingModel,
    /// Deleted or archived products take no new usage.
    pub is_live: bool,
    /// Label of the key dimension; any makes the product keyed.
    pub price_key_label: Option<String>,
    /// What happens to unknown keys.
    pub unmatched_price_key_policy: UnmatchedPriceKeyPolicy,
    /// Key used by `use_default`.
    pub default_price_key: Option<String>,
    /// Price of the total less price of the allowance (allowances.md rule 2).
    pub tiers_on_total: bool,
    /// Tax category of its lines.
    pub tax_category: ProductTaxCategory,
    /// Tax discriminator of its lines.
    pub supply_type: SupplyType,
    /// Bindings, in order of their ids.
    pub bindings: Vec<BindingTimeline>,
    /// Prices, in order of their ids.
    pub prices: Vec<PriceTimeline>,
}

impl ProductTerms {
    /// Whether the product has sibling prices told apart by `price_key`.
    #[must_use]
    pub fn is_keyed(&self) -> bool {
        self.price_key_label.is_some()
    }
}

/// The versions of one binding.
#[derive(Clone, Debug)]
pub struct BindingTimeline {
    /// The binding.
    pub id: BindingId,
    /// Which of the meters that a FORMULA meter names it is about.
    pub component: Option<u128>,
    /// Metric that it reads.
    pub metric_key: String,
    /// Versions with the span in which they hold, by start. A new version of the meter makes a new entry, too.
    pub versions: Vec<(Instant, Option<Instant>, Arc<CompiledBinding>)>,
}

impl BindingTimeline {
    /// The version that is live at an instant.
    #[must_use]
    pub fn at(&self, instant: Instant) -> Option<&Arc<CompiledBinding>> {
        self.versions
            .iter()
            .rev()
            .find(|(from, to, _)| *from <= instant && to.is_none_or(|to| instant < to))
            .map(|(_, _, binding)| binding)
    }
}

/// The versions of one price, and whom it is for.
#[derive(Clone, Debug)]
pub struct PriceTimeline {
    /// The price.
    pub id: PriceId,
    /// Restricted to a plan.
    pub plan_id: Option<PlanId>,
    /// Restricted to a version of that plan.
    pub plan_version: Option<i32>,
    /// Restricted to a customer.
    pub customer_id: Option<CustomerId>,
    /// Restricted to a billing country.
    pub country_code: Option<String>,
    /// Restricted to these values of dimensions.
    pub custom_dimensions: Vec<(String, String)>,
    /// Currency of every version.
    pub currency: Currency,
    /// Sibling of a keyed product.
    pub price_key: Option<String>,
    /// Restricted to a billing interval.
    pub interval: Option<(BillingIntervalUnit, u32)>,
    /// The price itself is valid from here,
    pub valid_from: Option<Instant>,
    /// and until here, exclusive: `valid_to`, or when it was archived.
    pub valid_to: Option<Instant>,
    /// Versions with the span in which they hold, by start.
    pub versions: Vec<(Instant, Option<Instant>, Arc<CompiledPrice>)>,
}

/// A plan version: what it includes and which versions it pins.
#[derive(Clone, Debug, Default)]
pub struct PlanVersionTerms {
    /// Number of the version.
    pub version: i32,
    /// Products with their allowances.
    pub products: Vec<PlanProductTerms>,
    /// Pinned price versions.
    pub price_pins: HashMap<PriceId, VersionId>,
}

/// Allowance of one product of a plan version.
#[derive(Clone, Debug)]
pub struct PlanProductTerms {
    /// The product.
    pub product_id: ProductId,
    /// Included per period.
    pub included_quantity: Quantity,
    /// Whether it is multiplied by the item's quantity.
    pub included_quantity_per_unit: bool,
    /// What happens beyond.
    pub overage_policy: OveragePolicy,
    /// What is carried into the next period, if anything.
    pub rollover: Option<Rollover>,
    /// Who shares it.
    pub pool_scope: PoolScope,
}

/// For whom and when a price is wanted (prices.md, Resolution).
#[derive(Clone, Copy, Debug)]
pub struct PriceQuery<'a> {
    /// What is priced.
    pub product_id: ProductId,
    /// Key on a keyed product.
    pub price_key: Option<&'a str>,
    /// Plan of the caller.
    pub plan_id: Option<PlanId>,
    /// Version of that plan; its pins fix the version of a price.
    pub plan_version_id: Option<VersionId>,
    /// Customer of the caller.
    pub customer_id: Option<CustomerId>,
    /// Billing country of the caller.
    pub country: Option<&'a str>,
    /// Currency that the price must have.
    pub currency: Option<Currency>,
    /// Billing interval of the caller.
    pub interval: Option<(BillingIntervalUnit, u32)>,
    /// Dimensions of the caller.
    pub dimensions: &'a domain::event::Vars,
    /// When.
    pub at: Instant,
}

domain::wire_enum! {
    /// Why a price was chosen.
    pub enum PriceResolution {
        /// The active phase's price of the item.
        PhaseItem = "PHASE_ITEM",
        /// It is the customer's own.
        Customer = "CUSTOMER",
        /// It is the plan's.
        Plan = "PLAN",
        /// It is for the country.
        Country = "COUNTRY",
        /// It matches dimensions.
        Dimensions = "DIMENSIONS",
        /// It is the general one.
        Base = "BASE",
    }
}

/// The price that applies.
#[derive(Clone, Debug)]
pub struct ResolvedPrice<'a> {
    /// Version that applies.
    pub price: &'a Arc<CompiledPrice>,
    /// Start of that version.
    pub effective_from: Instant,
    /// Why.
    pub resolved_by: PriceResolution,
}

/// Why no price applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpriced {
    /// No row matches.
    #[error("no price applies")]
    NoPrice,
    /// Rows match, but in another currency.
    #[error("the price is in {0}")]
    OtherCurrency(Currency),
}

impl Unpriced {
    /// As the API answers it: 404 when nothing matches, 422 on a currency mismatch.
    #[must_use]
    pub fn into_error(self, product_id: ProductId) -> Error {
        match self {
            Self::NoPrice => Error::business_rule(format!("no price of product {product_id} applies")),
            Self::OtherCurrency(currency) => {
                Error::rule("CURRENCY_MISMATCH", format!("the price of product {product_id} is in {currency}"))
            }
        }
    }
}

/// Every version of everything that a workspace sells and meters.
#[derive(Clone, Debug)]
pub struct WorkspaceCatalog {
    /// Data space.
    pub workspace_id: WorkspaceId,
    pub(super) products: HashMap<ProductId, ProductTerms>,
    pub(super) plan_versions: HashMap<VersionId, PlanVersionTerms>,
    pub(super) bindings: HashMap<(VersionId, VersionId), Arc<CompiledBinding>>,
    pub(super) prices: HashMap<VersionId, Arc<CompiledPrice>>,
    /// Shape of events by version of the meter, where it asks for one.
    pub(super) schemas: HashMap<VersionId, Arc<EventSchema>>,
    pub(super) tables: Tables,
}

impl rating::Versions for WorkspaceCatalog {
    fn binding(&self, binding_version: VersionId, meter_version: VersionId) -> Option<Arc<CompiledBinding>> {
        self.bindings.get(&(binding_version, meter_version)).cloned()
    }

    fn price(&self, price_version: VersionId) -> Option<Arc<CompiledPrice>> {
        self.prices.get(&price_version).cloned()
    }

    fn rate_table(&self, version: VersionId) -> Option<Arc<RateTable>> {
        self.tables.rate_table_version(version).cloned()
    }
}

impl RateTables for WorkspaceCatalog {
    fn table_at(&self, slug: &str, at: Instant) -> Option<&Arc<RateTable>> {
        self.tables.rate_table(slug, at)
    }
}

impl WorkspaceCatalog {
    /// A product.
    #[must_use]
    pub fn product(&self, id: ProductId) -> Option<&ProductTerms> {
        self.products.get(&id)
    }

    /// A plan version.
    #[must_use]
    pub fn plan_version(&self, id: VersionId) -> Option<&PlanVersionTerms> {
        self.plan_versions.get(&id)
    }

    /// The bindings of a product that read a metric and are live at an instant, PRIMARY first.
    pub fn bindings_of<'a>(
        &'a self,
        product: &'a ProductTerms,
        metric_key: &'a str,
        at: Instant,
    ) -> impl Iterator<Item = &'a Arc<CompiledBinding>> {
        product.bindings.iter().filter(move |binding| binding.metric_key == metric_key).filter_map(move |b| b.at(at))
    }

    /// What the meters of a product and metric ask of their events, and the event breaks.
    #[must_use]
    pub fn schema_violations(&self, binding: &CompiledBinding, event: EventShape<'_>) -> Vec<FieldError> {
        let schema = self.schemas.get(&binding.meter.version_id);
        schema.map(|schema| schema.violations(event)).unwrap_or_default()
    }

    /// The price that applies: one ordered decision, the most specific row wins (prices.md, Resolution).
    ///
    /// # Errors
    /// `NoPrice`, or `OtherCurrency` when rows match in another currency only.
    pub fn resolve(&self, query: &PriceQuery<'_>) -> Result<ResolvedPrice<'_>, Unpriced> {
        let product = self.products.get(&query.product_id).ok_or(Unpriced::NoPrice)?;
        let plan = query.plan_version_id.and_then(|id| self.plan_versions.get(&id));
        let candidates = product.prices.iter().filter(|price| price.fits(query, plan));
        let versions = candidates.filter_map(|price| price.version(query.at, plan).map(|version| (price, version)));
        let (mut best, mut other): (Option<(Specificity, _)>, _) = (None, None);
        for (price, (from, version)) in versions {
            if query.currency.is_some_and(|currency| currency != price.currency) {
                other = Some(price.currency);
                continue;
            }
            let specificity = price.specificity(from);
            if best.as_ref().is_none_or(|(known, _)| specificity > *known) {
                let resolved_by = price.resolution();
                best = Some((specificity, ResolvedPrice { price: version, effective_from: from, resolved_by }));
            }
        }
        match (best, other) {
            (Some((_, resolved)), _) => Ok(resolved),
            (None, Some(currency)) => Err(Unpriced::OtherCurrency(currency)),
            (None, None) => Err(Unpriced::NoPrice),
        }
    }

    /// Whether a price that is named, not resolved, can be the caller's: it has the key, customer, plan, interval and time
    /// of the query. Country and dimensions need not match, since nothing is chosen by them.
    #[must_use]
    pub fn can_be_fixed(&self, query: &PriceQuery<'_>, price: &PriceTimeline) -> bool {
        let plan = query.plan_version_id.and_then(|id| self.plan_versions.get(&id));
        price.is_for(query, plan) && price.version(query.at, plan).is_some()
    }

    /// The price of a subscription's product at an instant: the item's fixed price, or what resolves.
    ///
    /// # Errors
    /// As [`WorkspaceCatalog::resolve`].
    pub fn resolve_for<'a>(
        &'a self,
        terms: &SubscriptionTerms,
        product_id: ProductId,
        price_key: Option<&str>,
        dimensions: &domain::event::Vars,
        at: Instant,
    ) -> Result<ResolvedPrice<'a>, Unpriced> {
        if let Some(fixed) = terms.item_of(product_id, at).and_then(|item| item.price_id)
            && let Some(price) = self.products.get(&product_id).and_then(|p| p.prices.iter().find(|p| p.id == fixed))
            && price.price_key.as_deref() == price_key
        {
            let plan = self.plan_versions.get(&terms.plan_version_id);
            let (effective_from, version) = price.version(at, plan).ok_or(Unpriced::NoPrice)?;
            if price.currency != terms.currency {
                return Err(Unpriced::OtherCurrency(price.currency));
            }
            return Ok(ResolvedPrice { price: version, effective_from, resolved_by: price.resolution() });
        }
        self.resolve(&PriceQuery {
            product_id,
            price_key,
            plan_id: Some(terms.plan_id),
            plan_version_id: Some(terms.plan_version_id),
            customer_id: Some(terms.customer_id),
            country: terms.country.as_deref(),
            currency: Some(terms.currency),
            interval: Some((terms.schedule.unit, terms.schedule.count)),
            dimensions,
            at,
        })
    }

    /// The version of any price of the workspace that is in effect at an instant.
    #[must_use]
    pub fn version_at(&self, price_id: PriceId, at: Instant) -> Option<&Arc<CompiledPrice>> {
        let price = self.products.values().flat_map(|product| &product.prices).find(|price| price.id == price_id)?;
        price.version(at, None).map(|(_, version)| version)
    }

    /// The rate tables that the expressions of a price read, as they are at an instant; for a price that is not rated by
    /// events.
    #[must_use]
    pub fn tables_of(&self, price: &CompiledPrice, at: Instant) -> Option<Variables> {
        let tables: Vec<_> = price.tables().iter().filter_map(|slug| self.table_at(slug, at).cloned()).collect();
        (!tables.is_empty()).then(|| Variables::new(Vec::new()).with_tables(tables))
    }

    /// The version of a price that is in effect for a subscription at an instant, and its start.
    #[must_use]
    pub fn version_of_price(
        &self,
        terms: &SubscriptionTerms,
        product_id: ProductId,
        price_id: PriceId,
        at: Instant,
    ) -> Option<(Instant, &Arc<CompiledPrice>)> {
        let price = self.products.get(&product_id)?.prices.iter().find(|price| price.id == price_id)?;
        price.version(at, self.plan_versions.get(&terms.plan_version_id))
    }

    /// Products of which the plan of a subscription sells nothing beyond the allowance.
    pub fn products_ending_at_allowance(&self, terms: &SubscriptionTerms) -> impl Iterator<Item = ProductId> + '_ {
        let plan = self.plan_versions.get(&terms.plan_version_id);
        let ending = plan.into_iter().flat_map(|plan| &plan.products);
        ending.filter(|product| product.overage_policy == OveragePolicy::Block).map(|product| product.product_id)
    }
}

/// Compared level by level: customer, plan, country, matching dimensions, start of the version, then the id.
type Specificity = (bool, bool, bool, usize, Instant, PriceId);

impl PriceTimeline {
    /// Whether nothing that the row names is denied by the caller.
    fn fits(&self, query: &PriceQuery<'_>, plan: Option<&PlanVersionTerms>) -> bool {
        self.is_for(query, plan)
            && self.country_code.as_deref().is_none_or(|country| query.country == Some(country))
            && self
                .custom_dimensions
                .iter()
                .all(|(name, value)| query.dimensions.get(name).is_some_and(|given| given.to_string() == *value))
    }

    /// Whether key, customer, plan, interval and time are those of the caller.
    fn is_for(&self, query: &PriceQuery<'_>, plan: Option<&PlanVersionTerms>) -> bool {
        self.price_key.as_deref() == query.price_key
            && self.customer_id.is_none_or(|id| query.customer_id == Some(id))
            && self.plan_id.is_none_or(|id| query.plan_id == Some(id))
            && self.plan_version.is_none_or(|version| plan.is_some_and(|plan| plan.version == version))
            && self.interval.is_none_or(|interval| query.interval == Some(interval))
            && self.valid_from.is_none_or(|from| from <= query.at)
            && self.valid_to.is_none_or(|to| query.at < to)
    }

    /// The version that the plan version pins, else the one in effect at an instant.
    fn version(&self, at: Instant, plan: Option<&PlanVersionTerms>) -> Option<(Instant, &Arc<CompiledPrice>)> {
        let pinned = plan.and_then(|plan| plan.price_pins.get(&self.id));
        self.versions
            .iter()
            .rev()
            .find(|(from, to, version)| match pinned {
                Some(pin) => version.version_id == *pin,
                None => *from <= at && to.is_none_or(|to| at < to),
            })
            .map(|(from, _, version)| (*from, version))
    }

    fn specificity(&self, from: Instant) -> Specificity {
        (
            self.customer_id.is_some(),
            self.plan_id.is_some(),
            self.country_code.is_some(),
            self.custom_dimensions.len(),
            from,
            self.id,
        )
    }

    fn resolution(&self) -> PriceResolution {
        if self.customer_id.is_some() {
            PriceResolution::Customer
        } else if self.plan_id.is_some() {
            PriceResolution::Plan
        } else if self.country_code.is_some() {
            PriceResolution::Country
        } else if self.custom_dimensions.is_empty() {
            PriceResolution::Base
        } else {
            PriceResolution::Dimensions
        }
    }
}

#[cfg(test)]
mod tests;
