//! Plans (plans.md): named bundles of products. Publishing freezes a plan into a numbered version; subscriptions pin one.

mod attach;
mod publish;
mod request;
mod snapshot;
mod write;

use chrono::{DateTime, Utc};
use domain::{
    Error, JsonMap, OrganizationId, OveragePolicy, PlanId, PlanProductId, PoolScope, PricingModel, ProductId,
    ProductType, Quantity, Result, Scope, VersionId, VersionStatus,
};
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError, Tx};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::binding::{self, PlanProductMeterBindingSummary};
use crate::cost::{self, Cost, CostScope};
use crate::price::{self, PlanProductPriceSummary};
use crate::product::{self, Product, ProductStatus};
use crate::texts::Translations;
use crate::version::{self, Entity, VersionRecord, VersionRef, VersionRow, VersionWarnDTO};

pub use attach::{add_product, remove_product, update_product};
pub use publish::publish;
pub use request::{
    AddProductRequest, CreatePlanRequest, PublishPlanRequest, UpdatePlanProductRequest, UpdatePlanRequest,
};
pub use snapshot::{ChildVersionPins, PlanVersionProduct, PlanVersionSnapshot};
pub use write::{create, delete, update};

domain::wire_enum! {
    /// State of a plan.
    pub enum PlanStatus {
        /// Being edited; no subscriber sees it.
        Draft = "draft",
        /// New subscriptions can attach.
        Published = "published",
        /// Existing subscribers go on; new ones are discouraged.
        Deprecated = "deprecated",
        /// No new subscriptions; existing ones are billed from their version.
        Archived = "archived",
    }
}

/// A plan.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct Plan {
    /// Plan.
    pub id: PlanId,
    /// Owner.
    pub organization_id: OrganizationId,
    /// Own code.
    #[schema(required)]
    pub external_id: Option<String>,
    /// Name.
    pub name: String,
    /// Internal text.
    #[schema(required)]
    pub description: Option<String>,
    /// Text for customers.
    #[schema(required)]
    pub public_description: Option<String>,
    /// State.
    pub status: PlanStatus,
    /// Number of the active version; 0 before the first publish.
    pub version: i32,
    /// The active version.
    #[schema(required)]
    pub head_version_id: Option<VersionId>,
    /// Timeline flag.
    pub requires_continuous_coverage: bool,
    /// When the active version was published.
    #[schema(required)]
    pub published_at: Option<DateTime<Utc>>,
    /// By which key.
    #[schema(required)]
    pub published_by: Option<Uuid>,
    /// When it was deprecated.
    #[schema(required)]
    pub deprecated_at: Option<DateTime<Utc>>,
    /// When it was withdrawn.
    #[schema(required)]
    pub archived_at: Option<DateTime<Utc>>,
    /// When it was deleted.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
    /// Values of the organization's field definitions.
    #[sqlx(json)]
    #[schema(value_type = Object)]
    pub custom_fields: JsonMap,
    /// Free bag.
    #[sqlx(json)]
    #[schema(value_type = Object)]
    pub metadata: JsonMap,
    /// Texts by locale.
    #[sqlx(json)]
    pub translations: Translations,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
}

/// Attachment of a product to a plan, with its allowance.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct PlanProduct {
    /// Attachment.
    pub id: PlanProductId,
    /// The plan.
    pub plan_id: PlanId,
    /// The product.
    pub product_id: ProductId,
    /// Quantity that the base price covers.
    pub included_quantity: Quantity,
    /// Whether it is multiplied by the subscription's quantity.
    pub included_quantity_per_unit: bool,
    /// Whether what is left is carried over.
    pub rollover_enabled: bool,
    /// Cap of what is carried; null: none.
    #[schema(required)]
    pub rollover_max_quantity: Option<Quantity>,
    /// Periods that a carried quantity lives; null: for ever.
    #[schema(required)]
    pub rollover_expiry_periods: Option<i32>,
    /// What happens beyond the allowance.
    pub overage_policy: OveragePolicy,
    /// Who shares the allowance.
    pub pool_scope: PoolScope,
    /// Position in lists of the plan.
    pub sort_order: i32,
    /// When it was attached.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
}

/// A product as plans show it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PlanProductProductSummary {
    /// Product.
    pub id: ProductId,
    /// Name.
    pub name: String,
    /// Where its quantity comes from.
    pub r#type: ProductType,
    /// How tiers are walked.
    pub pricing_model: PricingModel,
    /// State.
    pub status: ProductStatus,
    /// Label of the key dimension.
    #[schema(required)]
    pub price_key_label: Option<String>,
}

/// A cost as plans show it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PlanProductCostSummary {
    /// Cost.
    pub cost_id: Uuid,
    /// Stable name.
    pub key: String,
    /// Whose it is.
    pub scope: CostScope,
    /// For people.
    #[schema(required)]
    pub description: Option<String>,
    /// Number of its version.
    pub version: i32,
}

impl From<&Cost> for PlanProductCostSummary {
    fn from(cost: &Cost) -> Self {
        Self {
            cost_id: cost.id,
            key: cost.key.clone(),
            scope: cost.scope,
            description: cost.description.clone(),
            version: cost.version,
        }
    }
}

/// An attachment with what belongs to its product.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EnrichedPlanProduct {
    /// The attachment.
    #[serde(flatten)]
    pub attachment: PlanProduct,
    /// Its product.
    pub product: PlanProductProductSummary,
    /// Prices that the plan offers.
    pub prices: Vec<PlanProductPriceSummary>,
    /// Costs of the product.
    pub costs: Vec<PlanProductCostSummary>,
    /// Live bindings of the product.
    pub meter_bindings: Vec<PlanProductMeterBindingSummary>,
}

/// A plan with its products and its active version.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PlanDetailResponse {
    /// The plan.
    #[serde(flatten)]
    pub plan: Plan,
    /// Its products.
    pub products: Vec<EnrichedPlanProduct>,
    /// The active version.
    #[schema(required)]
    pub head_version: Option<PlanVersion>,
}

/// A frozen state of a plan.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PlanVersion {
    /// Version.
    pub id: VersionId,
    /// The plan.
    pub plan_id: PlanId,
    /// Number, from 1.
    pub version: i32,
    /// State.
    pub status: VersionStatus,
    /// Start of its span.
    #[schema(required)]
    pub effective_from: Option<DateTime<Utc>>,
    /// End of its span, exclusive.
    #[schema(required)]
    pub effective_to: Option<DateTime<Utc>>,
    /// When it was published.
    #[schema(required)]
    pub published_at: Option<DateTime<Utc>>,
    /// By which key.
    #[schema(required)]
    pub published_by: Option<Uuid>,
    /// Warnings of a scheduled version.
    pub warnings: Vec<VersionWarnDTO>,
    /// The frozen state.
    pub snapshot: PlanVersionSnapshot,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// By which key.
    #[schema(required)]
    pub created_by: Option<Uuid>,
}

impl TryFrom<VersionRecord> for PlanVersion {
    type Error = Error;

    fn try_from(record: VersionRecord) -> Result<Self> {
        let snapshot = serde_json::from_value(record.snapshot)
            .map_err(|error| Error::internal(format!("reading plan version {}", record.row.id), error))?;
        Ok(Self {
            id: record.row.id,
            plan_id: PlanId(record.entity_id),
            version: record.row.version,
            status: record.row.status,
            effective_from: record.row.effective_from,
            effective_to: record.row.effective_to,
            published_at: record.row.published_at,
            published_by: record.published_by,
            warnings: record.warnings,
            snapshot,
            created_at: record.row.created_at,
            created_by: record.row.created_by,
        })
    }
}

const COLUMNS: &str = "id, organization_id, external_id, name, description, public_description, status, version, \
    head_version_id, requires_continuous_coverage, published_at, published_by, deprecated_at, archived_at, deleted_at, \
    custom_fields, metadata, translations, created_at, updated_at";

const LIST: ListSpec = ListSpec {
    name: "plans",
    columns: COLUMNS,
    from: "plan",
    workspace_column: "workspace_id",
    condition: "deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("external_id", ListKind::Text),
        ListField::new("name", ListKind::Text).sortable(),
        ListField::new("status", ListKind::Word(&["draft", "published", "deprecated", "archived"])),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

const PLAN_ID: ListField = ListField::new("plan_id", ListKind::Id);

const PRODUCTS: ListSpec = ListSpec {
    name: "plan_products",
    columns: "id, plan_id, product_id, included_quantity, included_quantity_per_unit, rollover_enabled, rollover_max_quantity,
        rollover_expiry_periods, overage_policy, pool_scope, sort_order, created_at, updated_at",
    from: "plan_product",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("product_id", ListKind::Id),
        ListField::new("sort_order", ListKind::Number).sortable(),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// Plans of the workspace.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<Plan>> {
    ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await
}

/// One plan, without its products.
///
/// # Errors
/// `NotFound`.
pub async fn find(scope: &Scope, conn: &mut PgConnection, id: PlanId) -> Result<Plan> {
    read(scope, conn, id, "").await
}

/// One plan with its products and its active version.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: PlanId) -> Result<PlanDetailResponse> {
    let plan = find(scope, conn, id).await?;
    let attached = attachments(scope, conn, id).await?;
    let products = enrich(scope, conn, id, attached).await?;
    let head_version = match plan.head_version_id {
        Some(head) => Some(get_version(scope, conn, id, VersionRef::Id(head)).await?),
        None => None,
    };
    Ok(PlanDetailResponse { plan, products, head_version })
}

/// Products of a plan, newest first.
///
/// # Errors
/// `NotFound`, and as [`ListQuery::parse`].
pub async fn list_products(
    scope: &Scope,
    conn: &mut PgConnection,
    id: PlanId,
    parameters: &[(String, String)],
) -> Result<Page<EnrichedPlanProduct>> {
    let query = ListQuery::parse(&PRODUCTS, parameters)?;
    find(scope, conn, id).await?;
    let page: Page<PlanProduct> = query.only(PLAN_ID, id).fetch(conn, scope).await?;
    let data = enrich(scope, conn, id, page.data).await?;
    Ok(Page { data, pagination: page.pagination })
}

/// Versions of a plan, newest first.
///
/// # Errors
/// `NotFound`, and as [`ListQuery::parse`].
pub async fn list_versions(
    scope: &Scope,
    conn: &mut PgConnection,
    id: PlanId,
    parameters: &[(String, String)],
) -> Result<Page<VersionRow>> {
    find(scope, conn, id).await?;
    version::list(scope, conn, id.0, parameters).await
}

/// One version of a plan.
///
/// # Errors
/// `NotFound`.
pub async fn get_version(
    scope: &Scope,
    conn: &mut PgConnection,
    id: PlanId,
    version: VersionRef,
) -> Result<PlanVersion> {
    version::get(scope, conn, Entity::Plan, id.0, version).await?.try_into()
}

async fn lock(scope: &Scope, tx: &mut Tx, id: PlanId) -> Result<Plan> {
    read(scope, tx.conn(), id, "FOR NO KEY UPDATE").await
}

async fn read(scope: &Scope, conn: &mut PgConnection, id: PlanId, lock: &str) -> Result<Plan> {
    let sql = format!("SELECT {COLUMNS} FROM plan WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL {lock}");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a plan")?
        .ok_or_else(|| Error::not_found("plan", id))
}

/// Every attachment of a plan, in the order of the plan.
async fn attachments(scope: &Scope, conn: &mut PgConnection, id: PlanId) -> Result<Vec<PlanProduct>> {
    let sql = format!(
        "SELECT {} FROM plan_product WHERE workspace_id = $1 AND plan_id = $2 ORDER BY sort_order, created_at, id",
        PRODUCTS.columns
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_all(conn)
        .await
        .context("reading the products of a plan")
}

/// Products, prices, bindings and costs of attachments: four statements, however many there are.
async fn enrich(
    scope: &Scope,
    conn: &mut PgConnection,
    plan: PlanId,
    attached: Vec<PlanProduct>,
) -> Result<Vec<EnrichedPlanProduct>> {
    let ids: Vec<ProductId> = attached.iter().map(|attachment| attachment.product_id).collect();
    let products = product::get_many(scope, conn, &ids).await?;
    let prices = price::offered(scope, conn, plan, &ids, scope.now()).await?;
    let bindings = binding::live_of(scope, conn, &ids).await?;
    let costs = cost::active_of(scope, conn, &ids).await?;
    attached
        .into_iter()
        .map(|attachment| {
            let id = attachment.product_id;
            let product = products.iter().find(|product| product.id == id);
            let product = product.ok_or_else(|| Error::invariant(format!("plan {plan} has a missing product {id}")))?;
            Ok(EnrichedPlanProduct {
                attachment,
                product: summary(product),
                prices: prices.iter().filter(|price| price.product_id == id).map(Into::into).collect(),
                costs: costs.iter().filter(|cost| cost.product_id == Some(id)).map(Into::into).collect(),
                meter_bindings: bindings.iter().filter(|binding| binding.product_id == id).map(Into::into).collect(),
            })
        })
        .collect()
}

fn summary(product: &Product) -> PlanProductProductSummary {
    PlanProductProductSummary {
        id: product.id,
        name: product.name.clone(),
        r#type: product.r#type,
        pricing_model: product.pricing_model,
        status: product.status,
        price_key_label: product.price_key_label.clone(),
    }
}
