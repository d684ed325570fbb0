//! What a quantity would cost (prices.md): which price applies, and what it comes to, by the functions that rate usage.

mod request;

use catalog::compiled::{PriceQuery, PriceResolution, Snapshots, SubscriptionTerms, Unpriced, WorkspaceCatalog};
use catalog::price::{self, Price};
use domain::event::Vars;
use domain::{
    CustomerId, Error, Instant, Money, PlanId, PriceId, PricingModel, Quantity, Result, Scope, UsageEvent,
    UsageEventId, VersionId,
};
use rating::{Basis, CompiledPrice, Walk, walk_with};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::PgConnection;
use store::StoreError;
use utoipa::ToSchema;
use uuid::Uuid;

pub use request::{ComputePriceRequest, ResolvePriceRequest};

/// The price that applies.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResolvedPrice {
    /// With the tiers of the version that applies.
    #[serde(flatten)]
    pub price: Price,
    /// The version that applies.
    pub price_version_id: VersionId,
    /// Why it was chosen.
    pub resolved_by: PriceResolution,
}

/// The amount of a quantity.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ComputePriceResponse {
    /// Net amount.
    pub amount: Money,
    /// The price.
    pub price_id: PriceId,
    /// Its version.
    pub price_version_id: VersionId,
    /// How the amount came about.
    pub breakdown: PriceBreakdown,
}

/// How an amount came about: `list_amount` and the adjustments make `net_amount`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PriceBreakdown {
    /// The line that it explains; null for a computed price.
    #[schema(required)]
    pub invoice_line_id: Option<Uuid>,
    /// The price.
    pub price_id: PriceId,
    /// Its version.
    pub price_version_id: VersionId,
    /// How the tiers were walked.
    pub pricing_model: PricingModel,
    /// What was priced.
    pub quantity: Quantity,
    /// Sum of the tiers.
    pub list_amount: Money,
    /// The tiers that took more than nothing.
    pub tiers: Vec<PriceBreakdownTier>,
    /// What was added and taken off.
    pub adjustments: Vec<BreakdownAdjustment>,
    /// What is left.
    pub net_amount: Money,
}

/// The part of a quantity that one tier took.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PriceBreakdownTier {
    /// Position of the tier.
    pub tier_order: u32,
    /// Units that it took.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// Rate, or what its expression gave; under PACKAGE the size.
    #[schema(value_type = String)]
    pub unit_amount: Decimal,
    /// Fee; under PACKAGE the price of a package.
    #[schema(value_type = String)]
    pub flat_amount: Decimal,
    /// Rounded contribution.
    pub amount: Money,
}

/// One change of an amount.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct BreakdownAdjustment {
    /// Kind.
    #[serde(rename = "type")]
    pub adjustment_type: AdjustmentType,
    /// For people.
    pub label: String,
    /// What caused it.
    #[schema(required)]
    pub reference_id: Option<Uuid>,
    /// Added; negative where taken off.
    pub amount: Money,
}

domain::wire_enum! {
    /// Kind of an adjustment.
    pub enum AdjustmentType {
        /// Another rate was fixed.
        Override = "OVERRIDE",
        /// Covered by the allowance.
        Allowance = "ALLOWANCE",
        /// A promotion.
        Promotion = "PROMOTION",
        /// A part of a period.
        Proration = "PRORATION",
        /// Converted into another currency.
        FxConversion = "FX_CONVERSION",
        /// Raised to a minimum.
        Minimum = "MINIMUM",
        /// Lowered to a maximum.
        Maximum = "MAXIMUM",
    }
}

/// Which price applies.
///
/// # Errors
/// `NotFound` for unknown references and when nothing matches; 422 `CURRENCY_MISMATCH` when rows match in another currency.
pub async fn resolve(
    scope: &Scope,
    conn: &mut PgConnection,
    snapshots: &Snapshots,
    request: &ResolvePriceRequest,
) -> Result<ResolvedPrice> {
    snapshots.refresh().await?; // what was created a moment ago is found
    let catalog = snapshots.workspace(scope.workspace_id).await?;
    let found = Caller::read(scope, conn, snapshots, &catalog, request).await?.resolve(&catalog, request)?;
    let (price_id, price_version_id, resolved_by) = (found.0.price_id, found.0.version_id, found.1);
    let price = price::get_version(scope, conn, price_id, price_version_id).await?;
    Ok(ResolvedPrice { price, price_version_id, resolved_by })
}

/// What a quantity comes to, by a named price or the one that applies.
///
/// # Errors
/// As [`resolve`]; 422 for a negative quantity and where an expression has no result.
pub async fn compute(
    scope: &Scope,
    conn: &mut PgConnection,
    snapshots: &Snapshots,
    request: &ComputePriceRequest,
) -> Result<ComputePriceResponse> {
    snapshots.refresh().await?;
    let catalog = snapshots.workspace(scope.workspace_id).await?;
    let at = request.at_time.unwrap_or_else(|| scope.now());
    let price = match (&request.resolve, request.price_id) {
        (Some(wanted), _) => {
            let wanted = ResolvePriceRequest { at_time: wanted.at_time.or(request.at_time), ..wanted.clone() };
            let caller = Caller::read(scope, conn, snapshots, &catalog, &wanted).await?;
            caller.resolve(&catalog, &wanted)?.0.clone()
        }
        (None, Some(id)) => {
            let version = catalog.version_at(id, at).cloned();
            version.ok_or_else(|| Error::not_found("price", id))?
        }
        (None, None) => return Err(Error::invariant("a request has a price or asks for one")),
    };
    let event = imagined(scope, request, &price, at);
    let variables = price.variables(&event, catalog.as_ref());
    let quantity = request.quantity.into();
    let basis = Basis { variables: variables.as_ref(), ..Basis::of(quantity) };
    let walk = walk_with(&price, quantity, &basis)?;
    Ok(answer(&price, request.quantity, &walk))
}

/// Who asks for a price.
struct Caller {
    terms: Option<std::sync::Arc<SubscriptionTerms>>,
    plan_version_id: Option<VersionId>,
    country: Option<String>,
    at: Instant,
}

impl Caller {
    async fn read(
        scope: &Scope,
        conn: &mut PgConnection,
        snapshots: &Snapshots,
        catalog: &WorkspaceCatalog,
        request: &ResolvePriceRequest,
    ) -> Result<Self> {
        if catalog.product(request.product_id).is_none() {
            return Err(Error::not_found("product", request.product_id));
        }
        let terms = match request.subscription_id {
            None => None,
            Some(id) => {
                let terms = snapshots.terms(scope.workspace_id, id).await?;
                Some(terms.ok_or_else(|| Error::not_found("subscription", id))?)
            }
        };
        let plan_version_id = match request.plan_id {
            None => None,
            Some(plan) => plan_version(scope, conn, plan, request.plan_version).await?,
        };
        let billing_country = match request.customer_id {
            None => None,
            Some(customer) => country_of(scope, conn, customer).await?,
        };
        let country = request.country_code.clone().or(billing_country);
        Ok(Self { terms, plan_version_id, country, at: request.at_time.unwrap_or_else(|| scope.now()) })
    }

    fn resolve<'c>(
        &self,
        catalog: &'c WorkspaceCatalog,
        request: &ResolvePriceRequest,
    ) -> Result<(&'c std::sync::Arc<CompiledPrice>, PriceResolution)> {
        let key = request.price_key.as_deref();
        let found = match &self.terms {
            Some(terms) => catalog.resolve_for(terms, request.product_id, key, &request.custom_dimensions, self.at),
            None => catalog.resolve(&PriceQuery {
                product_id: request.product_id,
                price_key: key,
                plan_id: request.plan_id,
                plan_version_id: self.plan_version_id,
                customer_id: request.customer_id,
                country: self.country.as_deref(),
                currency: request.currency,
                interval: None,
                dimensions: &request.custom_dimensions,
                at: self.at,
            }),
        };
        match found {
            Ok(resolved) => Ok((resolved.price, resolved.resolved_by)),
            Err(Unpriced::NoPrice) => Err(Error::not_found("price", format!("of product {}", request.product_id))),
            Err(other) => Err(other.into_error(request.product_id)),
        }
    }
}

/// The version of a plan with this number, or its published one.
async fn plan_version(
    scope: &Scope,
    conn: &mut PgConnection,
    plan: PlanId,
    number: Option<i32>,
) -> Result<Option<VersionId>> {
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM plan WHERE workspace_id = $1 AND id = $2)")
        .bind(scope.workspace_id)
        .bind(plan)
        .fetch_one(&mut *conn)
        .await
        .context("looking for a plan")?;
    if !exists {
        return Err(Error::not_found("plan", plan));
    }
    let version: Option<VersionId> = sqlx::query_scalar(
        "SELECT id FROM entity_version
         WHERE workspace_id = $1 AND entity_type = 'plan' AND entity_id = $2 AND status <> 'draft'
           AND ($3::int IS NULL OR version = $3) ORDER BY version DESC LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(plan)
    .bind(number)
    .fetch_optional(conn)
    .await
    .context("looking for a plan version")?;
    match (version, number) {
        (None, Some(number)) => Err(Error::not_found("plan version", number)),
        (version, _) => Ok(version),
    }
}

async fn country_of(scope: &Scope, conn: &mut PgConnection, customer: CustomerId) -> Result<Option<String>> {
    sqlx::query_scalar(
        "SELECT billing_address ->> 'country' FROM customer WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(customer)
    .fetch_optional(conn)
    .await
    .context("reading the country of a customer")?
    .ok_or_else(|| Error::not_found("customer", customer))
}

/// The event that a request imagines, for the variables that the expressions of a price read.
fn imagined(scope: &Scope, request: &ComputePriceRequest, price: &CompiledPrice, at: Instant) -> UsageEvent {
    UsageEvent {
        id: UsageEventId(Uuid::nil()),
        workspace_id: scope.workspace_id,
        customer_id: CustomerId(Uuid::nil()),
        subscription_id: domain::SubscriptionId(Uuid::nil()),
        product_id: price.product_id,
        metric_key: String::new(),
        quantity: request.quantity,
        timestamp: at,
        idempotency_key: String::new(),
        price_key: price.price_key.clone(),
        price_key_remapped: false,
        external_cost: request.external_cost_amount.zip(request.external_cost_currency),
        wallet_currency: None,
        hold_id: None,
        dimension_vars: Vars::clone(&request.dimension_vars),
        pricing_vars: Vars::clone(&request.pricing_vars),
        accepted_at: at,
        catalog_revision: 0,
    }
}

fn answer(price: &CompiledPrice, quantity: Quantity, walk: &Walk) -> ComputePriceResponse {
    let tier = |tier: &rating::TierContribution| PriceBreakdownTier {
        tier_order: tier.tier_order,
        quantity: tier.quantity.shown(),
        unit_amount: tier.unit_amount,
        flat_amount: tier.flat_amount,
        amount: tier.amount,
    };
    ComputePriceResponse {
        amount: walk.total,
        price_id: price.price_id,
        price_version_id: price.version_id,
        breakdown: PriceBreakdown {
            invoice_line_id: None,
            price_id: price.price_id,
            price_version_id: price.version_id,
            pricing_model: price.model,
            quantity,
            list_amount: walk.total,
            tiers: walk.tiers.iter().map(tier).collect(),
            adjustments: Vec::new(),
            net_amount: walk.total,
        },
    }
}
