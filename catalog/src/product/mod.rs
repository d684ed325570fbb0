//! Products (products.md): what everything billable points at.

mod request;
mod write;

use chrono::{DateTime, Utc};
use domain::{
    Error, JsonMap, OrganizationId, PricingModel, ProductId, ProductTaxCategory, ProductType, Result, Scope,
    SupplyType, UnmatchedPriceKeyPolicy, VersionId,
};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError, Tx};
use utoipa::ToSchema;

use crate::cost::{self, Cost};
use crate::texts::Translations;

pub use request::{CreateProductRequest, UpdateProductRequest};
pub use write::{archive, create, delete, deprecate, publish, update};

domain::wire_enum! {
    /// State of a product.
    pub enum ProductStatus {
        /// Being edited.
        Draft = "draft",
        /// Sold.
        Published = "published",
        /// Sold no more to new customers by custom; existing ones go on.
        Deprecated = "deprecated",
        /// Withdrawn.
        Archived = "archived",
    }
}

/// A product.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct Product {
    /// Product.
    pub id: ProductId,
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
    /// Where its quantity comes from.
    pub r#type: ProductType,
    /// How tiers are walked.
    pub pricing_model: PricingModel,
    /// Input of the tax determination.
    pub tax_category: ProductTaxCategory,
    /// Tax discriminator.
    pub supply_type: SupplyType,
    /// State.
    pub status: ProductStatus,
    /// Active costs.
    #[sqlx(skip)]
    pub costs: Vec<Cost>,
    /// Products that must be bought with it.
    pub requires_product_ids: Vec<ProductId>,
    /// Whether it may stand on a manual invoice line.
    pub invoiceable_standalone: bool,
    /// Timeline flag.
    pub requires_continuous_coverage: bool,
    /// Label of the key dimension; not null: keyed.
    #[schema(required)]
    pub price_key_label: Option<String>,
    /// What happens to an event whose key has no price.
    pub unmatched_price_key_policy: UnmatchedPriceKeyPolicy,
    /// Key used by `use_default`.
    #[schema(required)]
    pub default_price_key: Option<String>,
    /// Whether tiers are walked by total instead of billable quantity (allowances.md).
    pub tiers_on_total: bool,
    /// The active version.
    #[schema(required)]
    pub head_version_id: Option<VersionId>,
    /// Its number; 0 for a draft that was never published.
    pub version: i32,
    /// Texts by locale.
    #[sqlx(json)]
    pub translations: Translations,
    /// Values of the organization's field definitions.
    #[sqlx(json)]
    #[schema(value_type = Object)]
    pub custom_fields: JsonMap,
    /// Free bag.
    #[sqlx(json)]
    #[schema(value_type = Object)]
    pub metadata: JsonMap,
    /// When the active version was published.
    #[schema(required)]
    pub published_at: Option<DateTime<Utc>>,
    /// By which key.
    #[schema(required, value_type = Option<uuid::Uuid>)]
    pub published_by: Option<uuid::Uuid>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
    /// When it was deprecated.
    #[schema(required)]
    pub deprecated_at: Option<DateTime<Utc>>,
    /// When it was withdrawn.
    #[schema(required)]
    pub archived_at: Option<DateTime<Utc>>,
    /// When it was deleted.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
}

impl Product {
    /// Whether prices are told apart by a key.
    #[must_use]
    pub fn is_keyed(&self) -> bool {
        self.price_key_label.is_some()
    }

    /// The frozen state of a version.
    fn snapshot(&self) -> Value {
        json!({
            "name": self.name, "description": self.description, "public_description": self.public_description,
            "type": self.r#type, "pricing_model": self.pricing_model, "tax_category": self.tax_category,
            "supply_type": self.supply_type, "requires_product_ids": self.requires_product_ids,
            "price_key_label": self.price_key_label, "unmatched_price_key_policy": self.unmatched_price_key_policy,
            "default_price_key": self.default_price_key, "tiers_on_total": self.tiers_on_total,
        })
    }
}

const COLUMNS: &str = "id, organization_id, external_id, name, description, public_description, type, pricing_model, \
    tax_category, supply_type, status, requires_product_ids, invoiceable_standalone, requires_continuous_coverage, \
    price_key_label, unmatched_price_key_policy, default_price_key, tiers_on_total, head_version_id, version, \
    translations, custom_fields, metadata, published_at, published_by, created_at, updated_at, deprecated_at, \
    archived_at, deleted_at";

const LIST: ListSpec = ListSpec {
    name: "products",
    columns: COLUMNS,
    from: "product",
    workspace_column: "workspace_id",
    condition: "deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("external_id", ListKind::Text),
        ListField::new("name", ListKind::Text).sortable(),
        ListField::new("type", ListKind::Word(&["FIXED_CHARGE", "SEAT", "USAGE"])),
        ListField::new("pricing_model", ListKind::Word(&["VOLUME", "STAIRCASE", "PACKAGE"])),
        ListField::new("tax_category", ListKind::Word(&["DEFAULT", "REDUCED", "ZERO", "EXEMPT"])),
        ListField::new("status", ListKind::Word(&["draft", "published", "deprecated", "archived"])),
        ListField::new("invoiceable_standalone", ListKind::Bool),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// Products of the workspace, with their active costs.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<Product>> {
    let mut page: Page<Product> = ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await?;
    let ids: Vec<ProductId> = page.data.iter().map(|product| product.id).collect();
    for cost in cost::active_of(scope, conn, &ids).await? {
        if let Some(product) = page.data.iter_mut().find(|product| cost.product_id == Some(product.id)) {
            product.costs.push(cost);
        }
    }
    Ok(page)
}

/// One product with its active costs.
///
/// # Errors
/// `NotFound`, also for a deleted one.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: ProductId) -> Result<Product> {
    let product = find(scope, conn, id).await?;
    with_costs(scope, conn, product).await
}

/// The same product with its active costs.
async fn with_costs(scope: &Scope, conn: &mut PgConnection, mut product: Product) -> Result<Product> {
    product.costs = cost::active_of(scope, conn, &[product.id]).await?;
    Ok(product)
}

/// One product, without its costs.
///
/// # Errors
/// `NotFound`, also for a deleted one.
pub async fn find(scope: &Scope, conn: &mut PgConnection, id: ProductId) -> Result<Product> {
    read(scope, conn, id, "").await
}

/// One product, locked: what depends on its prices, bindings or state is written under this lock.
///
/// # Errors
/// `NotFound`.
pub async fn lock(scope: &Scope, tx: &mut Tx, id: ProductId) -> Result<Product> {
    read(scope, tx.conn(), id, "FOR NO KEY UPDATE").await
}

async fn read(scope: &Scope, conn: &mut PgConnection, id: ProductId, lock: &str) -> Result<Product> {
    let sql =
        format!("SELECT {COLUMNS} FROM product WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL {lock}");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a product")?
        .ok_or_else(|| Error::not_found("product", id))
}

/// The products with these ids, in no order; missing ones are left out.
///
/// # Errors
/// As every statement.
pub async fn get_many(scope: &Scope, conn: &mut PgConnection, ids: &[ProductId]) -> Result<Vec<Product>> {
    let ids: Vec<uuid::Uuid> = ids.iter().map(|id| id.0).collect();
    let sql = format!("SELECT {COLUMNS} FROM product WHERE workspace_id = $1 AND id = ANY($2) AND deleted_at IS NULL");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(ids)
        .fetch_all(conn)
        .await
        .context("reading products")
}
