//! What a plan version freezes, as on the wire.

use std::collections::BTreeMap;

use domain::{
    BindingId, Error, Instant, OveragePolicy, PoolScope, PriceId, PricingModel, ProductId, Quantity, Result, VersionId,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::PlanProduct;
use crate::binding::{Binding, PlanProductMeterBindingSummary};
use crate::price::{PlanProductPriceSummary, Price};
use crate::product::Product;

/// The frozen state of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanVersionSnapshot {
    /// Name.
    pub name: String,
    /// Internal text.
    #[schema(required)]
    pub description: Option<String>,
    /// Text for customers.
    #[schema(required)]
    pub public_description: Option<String>,
    /// Products with their allowances.
    pub products: Vec<PlanVersionProduct>,
    /// Versions of what belongs to it.
    pub pins: ChildVersionPins,
}

/// A product in a plan version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanVersionProduct {
    /// The product.
    pub product_id: ProductId,
    /// Its version.
    pub product_version_id: VersionId,
    /// How tiers are walked.
    pub pricing_model: PricingModel,
    /// Quantity that the base price covers.
    pub included_quantity: Quantity,
    /// Whether it is multiplied by the subscription's quantity.
    pub included_quantity_per_unit: bool,
    /// Whether what is left is carried over.
    pub rollover_enabled: bool,
    /// Cap of what is carried.
    #[schema(required)]
    pub rollover_max_quantity: Option<Quantity>,
    /// Periods that a carried quantity lives.
    #[schema(required)]
    pub rollover_expiry_periods: Option<i32>,
    /// What happens beyond the allowance.
    pub overage_policy: OveragePolicy,
    /// Who shares the allowance.
    pub pool_scope: PoolScope,
    /// Prices that the plan offers.
    pub prices: Vec<PlanProductPriceSummary>,
    /// Live bindings.
    pub meter_bindings: Vec<PlanProductMeterBindingSummary>,
}

/// Entity → version, of everything that belongs to a plan version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChildVersionPins {
    /// Product → version.
    #[schema(value_type = std::collections::HashMap<String, uuid::Uuid>)]
    pub products: BTreeMap<ProductId, VersionId>,
    /// Price → version.
    #[schema(value_type = std::collections::HashMap<String, uuid::Uuid>)]
    pub prices: BTreeMap<PriceId, VersionId>,
    /// Binding → version.
    #[schema(value_type = std::collections::HashMap<String, uuid::Uuid>)]
    pub bindings: BTreeMap<BindingId, VersionId>,
}

/// What a plan is made of at the moment of publishing.
pub(super) struct Contents {
    pub attached: Vec<PlanProduct>,
    pub products: Vec<Product>,
    pub prices: Vec<Price>,
    pub bindings: Vec<Binding>,
    /// Product → version, where the caller chose one.
    pub chosen: BTreeMap<ProductId, VersionId>,
    /// That moment.
    pub at: Instant,
}

impl Contents {
    pub fn product(&self, id: ProductId) -> Option<&Product> {
        self.products.iter().find(|product| product.id == id)
    }

    pub fn prices_of(&self, id: ProductId) -> impl Iterator<Item = &Price> {
        self.prices.iter().filter(move |price| price.product_id == id)
    }

    fn bindings_of(&self, id: ProductId) -> impl Iterator<Item = &Binding> {
        self.bindings.iter().filter(move |binding| binding.product_id == id)
    }

    fn version_of(&self, product: &Product) -> Result<VersionId> {
        let version = self.chosen.get(&product.id).copied().or(product.head_version_id);
        version.ok_or_else(|| Error::invariant(format!("published product {} has no version", product.id)))
    }

    /// The products and pins of a snapshot.
    pub fn freeze(&self) -> Result<(Vec<PlanVersionProduct>, ChildVersionPins)> {
        let mut pins = ChildVersionPins::default();
        let mut products = Vec::with_capacity(self.attached.len());
        for attachment in &self.attached {
            let id = attachment.product_id;
            let product =
                self.product(id).ok_or_else(|| Error::invariant(format!("attached product {id} is missing")))?;
            let version = self.version_of(product)?;
            pins.products.insert(id, version);
            // What starts later is not pinned: it would hold from now on.
            let has_started = |start: Option<Instant>| start.is_none_or(|start| start <= self.at);
            let prices = self.prices_of(id).filter(|price| has_started(price.effective_from));
            pins.prices.extend(prices.filter_map(|price| Some((price.id, price.head_version_id?))));
            let bindings = self.bindings_of(id).filter(|binding| has_started(binding.effective_from));
            pins.bindings.extend(bindings.filter_map(|binding| Some((binding.id, binding.head_version_id?))));
            products.push(PlanVersionProduct {
                product_id: id,
                product_version_id: version,
                pricing_model: product.pricing_model,
                included_quantity: attachment.included_quantity,
                included_quantity_per_unit: attachment.included_quantity_per_unit,
                rollover_enabled: attachment.rollover_enabled,
                rollover_max_quantity: attachment.rollover_max_quantity,
                rollover_expiry_periods: attachment.rollover_expiry_periods,
                overage_policy: attachment.overage_policy,
                pool_scope: attachment.pool_scope,
                prices: self.prices_of(id).map(Into::into).collect(),
                meter_bindings: self.bindings_of(id).map(Into::into).collect(),
            });
        }
        Ok((products, pins))
    }
}
