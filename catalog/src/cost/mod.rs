//! Costs (costs.md): named costs of goods of one product or of the organization, for margins.

mod request;
mod write;

use chrono::{DateTime, Utc};
use domain::{Currency, OrganizationId, ProductId, Result, Scope, VersionId};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::product;
use crate::version::{self, AsOf, VersionRow, VersionWarnDTO, Versioned};

pub use request::{CopyCostRequest, CreateCostRequest, UpdateCostRequest, check_formula};
pub use write::{archive, copy, create, create_of_product};

domain::wire_enum! {
    /// Whose cost it is.
    pub enum CostScope {
        /// One product's.
        Product = "PRODUCT",
        /// The organization's.
        Org = "ORG",
    }
}

domain::wire_enum! {
    /// State of a cost.
    pub enum CostStatus {
        /// Being edited.
        Draft = "draft",
        /// In effect.
        Active = "active",
        /// Withdrawn.
        Archived = "archived",
    }
}

domain::wire_enum! {
    /// How a cost is computed.
    pub enum CostExpressionType {
        /// Amount per line and period.
        Fixed = "FIXED",
        /// Amount times quantity.
        PerUnit = "PER_UNIT",
        /// Percentage of the line's revenue.
        Percentage = "PERCENTAGE",
        /// A formula over quantity and revenue.
        Formula = "FORMULA",
        /// Sum of the external costs of the rated events.
        External = "EXTERNAL",
    }
}

/// How a cost is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CostExpression {
    /// Which computation.
    pub r#type: CostExpressionType,
    /// Currency of `amount`.
    #[schema(value_type = Option<String>)]
    pub currency: Option<Currency>,
    /// Decimal string.
    #[schema(value_type = Option<String>)]
    pub amount: Option<Decimal>,
    /// Percentage as a decimal string.
    #[schema(value_type = Option<String>)]
    pub percentage: Option<Decimal>,
    /// Formula.
    pub expression: Option<String>,
}

/// A named cost.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct Cost {
    /// Cost.
    pub id: Uuid,
    /// Owner.
    pub organization_id: OrganizationId,
    /// Its product; null for the organization's.
    #[schema(required)]
    pub product_id: Option<ProductId>,
    /// Stable name.
    pub key: String,
    /// For people.
    #[schema(required)]
    pub description: Option<String>,
    /// Whose it is.
    pub scope: CostScope,
    /// How it is computed.
    #[sqlx(json)]
    pub expression: CostExpression,
    /// State.
    pub status: CostStatus,
    /// Number of the active version.
    pub version: i32,
    /// The active version.
    #[schema(required)]
    pub head_version_id: Option<VersionId>,
    /// Timeline flag.
    pub requires_continuous_coverage: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
    /// When it was withdrawn.
    #[schema(required)]
    pub archived_at: Option<DateTime<Utc>>,
}

/// A frozen state of a cost.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CostVersion {
    /// The members of a list row.
    #[serde(flatten)]
    pub row: VersionRow,
    /// The cost.
    pub cost_id: Uuid,
    /// How it is computed.
    pub expression: CostExpression,
    /// Warnings of a scheduled version.
    pub warnings: Vec<VersionWarnDTO>,
}

const PRODUCT_ID: ListField = ListField::new("product_id", ListKind::Id).column("t.product_id");

/// Every cost, where `status` is asked for. The members of a version are read from the one that is in effect.
const LIST: ListSpec = ListSpec {
    name: "costs",
    columns: "t.id, t.organization_id, t.product_id, t.key, e.description, t.scope, e.expression, t.status, e.version,
        e.head_version_id, e.requires_continuous_coverage, t.created_at, t.updated_at, t.archived_at",
    from: "cost t CROSS JOIN LATERAL jsonb_populate_record(t, entity_state(t.id)) e",
    workspace_column: "t.workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("t.id"),
        PRODUCT_ID,
        ListField::new("scope", ListKind::Word(&["PRODUCT", "ORG"])).column("t.scope"),
        ListField::new("key", ListKind::Text).column("t.key").sortable(),
        ListField::new("status", ListKind::Word(&["draft", "active", "archived"])).column("t.status"),
        ListField::new("created_at", ListKind::Instant).column("t.created_at").sortable(),
        ListField::new("updated_at", ListKind::Instant).column("t.updated_at").sortable(),
    ],
    shorthands: &[],
    order: "t.created_at",
    id: "t.id",
};

/// What lists show by default (costs.md, rule 3).
const ACTIVE: ListSpec = ListSpec { name: "active_costs", condition: "t.status = 'active'", ..LIST };

fn query(parameters: &[(String, String)]) -> Result<ListQuery> {
    let asks_for_status = parameters.iter().any(|(name, _)| name == "status" || name.starts_with("status."));
    ListQuery::parse(if asks_for_status { &LIST } else { &ACTIVE }, parameters)
}

/// Costs of the workspace: the active ones, unless `status` is asked for.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<Cost>> {
    query(parameters)?.fetch(conn, scope).await
}

/// Costs of one product: the active ones, unless `status` is asked for.
///
/// # Errors
/// `NotFound`, and as [`ListQuery::parse`].
pub async fn list_of_product(
    scope: &Scope,
    conn: &mut PgConnection,
    product: ProductId,
    parameters: &[(String, String)],
) -> Result<Page<Cost>> {
    let query = query(parameters)?;
    product::find(scope, conn, product).await?;
    query.only(PRODUCT_ID, product).fetch(conn, scope).await
}

/// One cost.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: Uuid) -> Result<Cost> {
    Cost::read(scope, conn, id, AsOf::Instant(scope.now())).await
}

/// The active costs of these products, in the order in which they were made.
///
/// # Errors
/// As every statement.
pub async fn active_of(scope: &Scope, conn: &mut PgConnection, products: &[ProductId]) -> Result<Vec<Cost>> {
    let products: Vec<Uuid> = products.iter().map(|id| id.0).collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE t.workspace_id = $1 AND t.product_id = ANY($2) AND {} ORDER BY t.created_at, t.id",
        ACTIVE.columns,
        version::from_at(&ACTIVE, 3),
        ACTIVE.condition
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(products)
        .bind(scope.now())
        .fetch_all(conn)
        .await
        .context("reading the costs of products")
}
