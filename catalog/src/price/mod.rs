//! Prices (prices.md): what a product costs, in one currency, for whom, and when.

mod archive;
mod change;
mod request;
mod write;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{
    BillingIntervalUnit, Currency, CustomerId, Instant, JsonMap, OrganizationId, PlanId, PriceId, ProductId,
    ProductType, Quantity, Result, Scope, VersionId,
};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::version::{self, AsOf, VersionRow, VersionWarnDTO, Versioned};

pub use archive::archive;
pub use change::update;
pub use request::{CopyPriceAsDraftRequest, CreatePriceRequest, CreatePriceTierRequest, UpdatePriceRequest};
pub use write::create;

domain::wire_enum! {
    /// What a price is for; information for tools, the resolver does not look at it.
    pub enum PriceKind {
        /// For everybody that its restrictions let in.
        Base = "BASE",
        /// For one customer.
        CustomerOverride = "CUSTOMER_OVERRIDE",
    }
}

domain::wire_enum! {
    /// State of a price.
    pub enum PriceStatus {
        /// Being edited.
        Draft = "draft",
        /// In use, or to be in use from `effective_from`.
        Active = "active",
        /// Withdrawn.
        Archived = "archived",
    }
}

/// One step of a price. Under PACKAGE `unit_amount` is the size of a package and `flat_amount` its price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PriceTier {
    /// Position in the walk, ascending.
    pub tier_order: u32,
    /// Inclusive upper bound; null on the last tier: open-ended.
    #[schema(required)]
    pub up_to: Option<Quantity>,
    /// Rate of a unit.
    #[schema(value_type = String)]
    pub unit_amount: Decimal,
    /// Static fee.
    #[schema(value_type = String)]
    pub flat_amount: Decimal,
    /// Formula in place of `unit_amount`.
    #[schema(required)]
    pub rate_expression: Option<String>,
}

impl From<&PriceTier> for rating::Tier {
    fn from(tier: &PriceTier) -> Self {
        Self {
            tier_order: tier.tier_order,
            up_to: tier.up_to,
            unit_amount: tier.unit_amount,
            flat_amount: tier.flat_amount,
            rate_expression: tier.rate_expression.clone(),
        }
    }
}

/// A price.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct Price {
    /// Price.
    pub id: PriceId,
    /// Owner.
    pub organization_id: OrganizationId,
    /// What is priced.
    pub product_id: ProductId,
    /// Tells which amount a list price is.
    #[serde(skip)]
    #[schema(ignore)]
    pub(crate) product_type: ProductType,
    /// Restricts it to a plan.
    #[schema(required)]
    pub plan_id: Option<PlanId>,
    /// Restricts it to a version of that plan.
    #[schema(required)]
    pub plan_version: Option<i32>,
    /// Restricts it to a customer.
    #[schema(required)]
    pub customer_id: Option<CustomerId>,
    /// Restricts it to a market.
    #[schema(required)]
    pub country_code: Option<String>,
    /// Sets the scale of every amount.
    #[schema(value_type = String)]
    pub currency: Currency,
    /// Key on keyed products.
    #[schema(required)]
    pub price_key: Option<String>,
    /// Base or override.
    pub kind: PriceKind,
    /// Headline price.
    #[schema(required, value_type = Option<String>)]
    pub list_price: Option<Decimal>,
    /// Label for customers.
    #[schema(required)]
    pub display_name: Option<String>,
    /// State.
    pub status: PriceStatus,
    /// Steps of the active version.
    #[sqlx(json)]
    pub tiers: Vec<PriceTier>,
    /// Formula in place of tiers.
    #[schema(required)]
    pub formula_id: Option<Uuid>,
    /// The version of the formula that the version of the price has; none for a draft, which has not chosen yet.
    #[serde(skip)]
    #[schema(ignore)]
    pub(crate) formula_version_id: Option<VersionId>,
    /// Dimension → value, matched in resolution.
    #[sqlx(json)]
    pub custom_dimensions: BTreeMap<String, String>,
    /// Fits only subscriptions of this interval; null: every one.
    #[schema(required)]
    pub billing_interval_unit: Option<BillingIntervalUnit>,
    /// Number of units.
    #[schema(required)]
    pub billing_interval_count: Option<i32>,
    /// Start of the active version; null: since ever.
    #[schema(required)]
    pub effective_from: Option<DateTime<Utc>>,
    /// End of the active version, exclusive.
    #[schema(required)]
    pub effective_to: Option<DateTime<Utc>>,
    /// Start of the price itself.
    #[schema(required)]
    pub valid_from: Option<DateTime<Utc>>,
    /// End of the price itself, exclusive.
    #[schema(required)]
    pub valid_to: Option<DateTime<Utc>>,
    /// Number of the head version.
    pub version: i32,
    /// The head version.
    #[schema(required)]
    pub head_version_id: Option<VersionId>,
    /// Timeline flag.
    pub requires_continuous_coverage: bool,
    /// Free bag.
    #[sqlx(json)]
    #[schema(value_type = Object)]
    pub metadata: JsonMap,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
    /// When it was withdrawn.
    #[schema(required)]
    pub archived_at: Option<DateTime<Utc>>,
    /// When it was deleted.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
}

/// A frozen state of a price.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PriceVersion {
    /// The members of a list row.
    #[serde(flatten)]
    pub row: VersionRow,
    /// The price.
    pub price_id: PriceId,
    /// Headline price.
    #[schema(required, value_type = Option<String>)]
    pub list_price: Option<Decimal>,
    /// Steps.
    pub tiers: Vec<PriceTier>,
    /// Version of the formula in place of tiers.
    #[schema(required)]
    pub formula_version_id: Option<VersionId>,
    /// Warnings of a scheduled version.
    pub warnings: Vec<VersionWarnDTO>,
}

/// A price as plans show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanProductPriceSummary {
    /// Price.
    pub price_id: PriceId,
    /// Its currency.
    #[schema(value_type = String)]
    pub currency: Currency,
    /// Interval that it fits.
    #[schema(required)]
    pub billing_interval_unit: Option<BillingIntervalUnit>,
    /// Number of units.
    #[schema(required)]
    pub billing_interval_count: Option<i32>,
    /// Headline price.
    #[schema(required, value_type = Option<String>)]
    pub list_price: Option<Decimal>,
    /// Key on keyed products.
    #[schema(required)]
    pub price_key: Option<String>,
}

impl From<&Price> for PlanProductPriceSummary {
    fn from(price: &Price) -> Self {
        Self {
            price_id: price.id,
            currency: price.currency,
            billing_interval_unit: price.billing_interval_unit,
            billing_interval_count: price.billing_interval_count,
            list_price: price.list_price,
            price_key: price.price_key.clone(),
        }
    }
}

/// The members of a version are read from the one that is in effect. Its formula is pinned as the compiled catalog does it
/// (`compiled/load.rs`, `formula_of`).
const LIST: ListSpec = ListSpec {
    name: "prices",
    columns: "t.id, t.organization_id, t.product_id, p.type AS product_type, t.plan_id, t.plan_version, t.customer_id,
        t.country_code, t.currency, t.price_key, t.kind, e.list_price, e.display_name, t.status, e.tiers, e.formula_id,
        (SELECT f.id FROM entity_version own
                          CROSS JOIN LATERAL GREATEST(own.effective_from, own.published_at, 'epoch'::timestamptz) pinned_at
                          JOIN entity_version f ON f.entity_id = e.formula_id AND f.status <> 'draft' AND f.cancelled_at IS NULL
                           AND COALESCE(f.effective_from, 'epoch') <= pinned_at
                           AND (f.effective_to IS NULL OR f.effective_to > pinned_at)
         WHERE own.id = e.head_version_id AND own.status <> 'draft'
         ORDER BY f.effective_from DESC NULLS LAST LIMIT 1) AS formula_version_id,
        t.custom_dimensions, t.billing_interval_unit, t.billing_interval_count, e.effective_from, e.effective_to,
        t.valid_from, t.valid_to, e.version, e.head_version_id, e.requires_continuous_coverage, e.metadata, t.created_at,
        t.updated_at, t.archived_at, t.deleted_at",
    from: "price t JOIN product p ON p.id = t.product_id
        CROSS JOIN LATERAL jsonb_populate_record(t, entity_state(t.id)) e",
    workspace_column: "t.workspace_id",
    condition: "t.deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id).column("t.id"),
        ListField::new("product_id", ListKind::Id).column("t.product_id"),
        ListField::new("plan_id", ListKind::Id).column("t.plan_id"),
        ListField::new("customer_id", ListKind::Id).column("t.customer_id"),
        ListField::new("status", ListKind::Word(&["draft", "active", "archived"])).column("t.status"),
        ListField::new("currency", ListKind::Text).column("t.currency"),
        ListField::new("country_code", ListKind::Text).column("t.country_code"),
        ListField::new("price_key", ListKind::Text).column("t.price_key"),
        ListField::new("kind", ListKind::Word(&["BASE", "CUSTOMER_OVERRIDE"])).column("t.kind"),
        ListField::new("created_at", ListKind::Instant).column("t.created_at").sortable(),
        ListField::new("updated_at", ListKind::Instant).column("t.updated_at").sortable(),
    ],
    shorthands: &[],
    order: "t.created_at",
    id: "t.id",
};

/// Prices of the workspace.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<Price>> {
    ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await
}

/// One price.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: PriceId) -> Result<Price> {
    Price::read(scope, conn, id.0, AsOf::Instant(scope.now())).await
}

/// One price, as one of its versions has it.
///
/// # Errors
/// `NotFound`.
pub async fn get_version(scope: &Scope, conn: &mut PgConnection, id: PriceId, version: VersionId) -> Result<Price> {
    Price::read(scope, conn, id.0, AsOf::Version(version)).await
}

/// The prices that a plan offers for these products at an instant: active ones of no other plan and of no customer.
///
/// # Errors
/// As every statement.
pub async fn offered(
    scope: &Scope,
    conn: &mut PgConnection,
    plan: PlanId,
    products: &[ProductId],
    at: Instant,
) -> Result<Vec<Price>> {
    let products: Vec<Uuid> = products.iter().map(|id| id.0).collect();
    let sql = format!(
        "SELECT {} FROM {}
         WHERE t.workspace_id = $1 AND t.product_id = ANY($2) AND t.status = 'active' AND t.deleted_at IS NULL
           AND (t.plan_id IS NULL OR t.plan_id = $3) AND t.customer_id IS NULL
           AND (e.effective_to IS NULL OR e.effective_to > $4) AND (t.valid_to IS NULL OR t.valid_to > $4)
         ORDER BY t.product_id, t.price_key, t.created_at, t.id",
        LIST.columns,
        version::from_at(&LIST, 4)
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(products)
        .bind(plan)
        .bind(at)
        .fetch_all(conn)
        .await
        .context("reading the prices of a plan")
}
