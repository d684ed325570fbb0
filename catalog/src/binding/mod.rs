//! Product-meter bindings (meter-bindings.md): which meter gives a product its quantity.

mod request;
mod write;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::{
    BindingId, BindingRole, Error, MeterFunction, MeterId, OrganizationId, ProductId, Quantity, Result, Scope,
    VersionId, VersionStatus, WorkspaceId,
};
use rating::formula::Number;
use rating::{Bound, FilterTree, Threshold};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};
use utoipa::ToSchema;

use crate::meter::Window;

pub use request::CreateProductMeterBindingRequest;
pub use write::create;

/// Where a variable of a price formula comes from: one of the three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FormulaBinding {
    /// A fixed number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constant: Option<String>,
    /// Another meter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter_key: Option<String>,
    /// A custom field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_field: Option<String>,
}

/// Variable → source.
pub type FormulaBindings = BTreeMap<String, FormulaBinding>;

/// The sources, as rating takes them; constants are numbers.
pub(crate) fn bound(bindings: Option<&FormulaBindings>) -> rating::Bindings {
    let source = |(name, source): (&String, &FormulaBinding)| {
        let constant = source.constant.as_deref().and_then(|text| Quantity::parse(text).ok());
        let constant = constant.map(|number| Bound::Constant(Number::from(number).into()));
        Some((name.clone(), constant.or_else(|| source.meter_key.clone().map(Bound::Meter))?))
    };
    bindings.into_iter().flatten().filter_map(source).collect()
}

/// Short form of the meter inside a binding.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MeterBindingMeterSummary {
    /// Meter.
    pub id: MeterId,
    /// Stable identifier.
    pub key: String,
    /// Name.
    pub name: String,
    /// Metric that it reads.
    pub metric_key: String,
    /// How events combine.
    pub function: MeterFunction,
    /// Unit for people.
    #[schema(required)]
    pub unit_label: Option<String>,
    /// Dimension keys.
    pub dimensions: Vec<String>,
}

/// A binding.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ProductMeterBindingDTO)]
pub struct Binding {
    /// Binding.
    pub id: BindingId,
    /// Owner.
    pub organization_id: OrganizationId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// The product.
    pub product_id: ProductId,
    /// The meter.
    pub meter_id: MeterId,
    /// Its short form.
    pub meter: MeterBindingMeterSummary,
    /// Billed, input of a formula, or only shown.
    pub role: BindingRole,
    /// Copied from the meter.
    pub metric_key: String,
    /// Variable of the formula.
    #[schema(required)]
    pub variable: Option<String>,
    /// Variable → source.
    #[schema(required)]
    pub formula_bindings: Option<FormulaBindings>,
    /// Further filter, ANDed with the meter's.
    #[schema(required)]
    pub filter: Option<FilterTree>,
    /// Unit conversion before the tier walk.
    #[schema(value_type = String)]
    pub multiplier: Decimal,
    /// Overrides the meter's.
    #[schema(required)]
    pub window: Option<Window>,
    /// In addition to the meter's.
    pub thresholds: Vec<Threshold>,
    /// Number of the head version.
    pub version: i32,
    /// The head version.
    #[schema(required)]
    pub head_version_id: Option<VersionId>,
    /// State.
    pub status: VersionStatus,
    /// Start; null: since ever.
    #[schema(required)]
    pub effective_from: Option<DateTime<Utc>>,
    /// End, exclusive.
    #[schema(required)]
    pub effective_to: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
}

/// A binding as plans show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanProductMeterBindingSummary {
    /// Binding.
    pub binding_id: BindingId,
    /// Its meter.
    pub meter_id: MeterId,
    /// Key of the meter.
    pub meter_key: String,
    /// Metric that it reads.
    pub metric_key: String,
    /// Role.
    pub role: BindingRole,
    /// Unit for people.
    #[schema(required)]
    pub unit_label: Option<String>,
    /// Number of the binding's version.
    pub version: i32,
}

impl From<&Binding> for PlanProductMeterBindingSummary {
    fn from(binding: &Binding) -> Self {
        Self {
            binding_id: binding.id,
            meter_id: binding.meter_id,
            meter_key: binding.meter.key.clone(),
            metric_key: binding.metric_key.clone(),
            role: binding.role,
            unit_label: binding.meter.unit_label.clone(),
            version: binding.version,
        }
    }
}

impl Binding {
    /// The frozen state of a version.
    fn snapshot(&self) -> Value {
        json!({
            "meter_id": self.meter_id, "role": self.role, "variable": self.variable,
            "formula_bindings": self.formula_bindings, "filter": self.filter, "multiplier": self.multiplier,
            "window": self.window, "thresholds": self.thresholds,
        })
    }
}

impl FromRow<'_, PgRow> for Binding {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let filter: Option<Value> = row.try_get("filter")?;
        let filter = filter.map(|json| FilterTree::from_json(&json)).transpose().map_err(|errors| {
            sqlx::Error::ColumnDecode { index: "filter".into(), source: Box::new(Error::Validation(errors)) }
        })?;
        let formula: Option<sqlx::types::Json<FormulaBindings>> = row.try_get("formula_bindings")?;
        let window: Option<sqlx::types::Json<Window>> = row.try_get("window")?;
        let thresholds: sqlx::types::Json<Vec<Threshold>> = row.try_get("thresholds")?;
        let meter_id: MeterId = row.try_get("meter_id")?;
        let metric_key: String = row.try_get("metric_key")?;
        Ok(Self {
            id: row.try_get("id")?,
            organization_id: row.try_get("organization_id")?,
            workspace_id: row.try_get("workspace_id")?,
            product_id: row.try_get("product_id")?,
            meter_id,
            meter: MeterBindingMeterSummary {
                id: meter_id,
                key: row.try_get("meter_key")?,
                name: row.try_get("meter_name")?,
                metric_key: metric_key.clone(),
                function: row.try_get("meter_function")?,
                unit_label: row.try_get("meter_unit_label")?,
                dimensions: row.try_get("meter_dimensions")?,
            },
            role: row.try_get("role")?,
            metric_key,
            variable: row.try_get("variable")?,
            formula_bindings: formula.map(|json| json.0),
            filter,
            multiplier: row.try_get::<Decimal, _>("multiplier")?.normalize(),
            window: window.map(|json| json.0),
            thresholds: thresholds.0,
            version: row.try_get("version")?,
            head_version_id: row.try_get("head_version_id")?,
            status: row.try_get("status")?,
            effective_from: row.try_get("effective_from")?,
            effective_to: row.try_get("effective_to")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
        })
    }
}

/// A scheduled binding whose start has come is shown as active.
const LIST: ListSpec = ListSpec {
    name: "bindings",
    columns: "b.id, b.organization_id, b.workspace_id, b.product_id, b.meter_id, b.role, b.metric_key, b.variable,
        b.formula_bindings, b.filter, b.multiplier, b.\"window\", b.thresholds, b.version, b.head_version_id,
        CASE WHEN b.status = 'scheduled' AND b.effective_from <= clock_timestamp() THEN 'active' ELSE b.status END AS status,
        b.effective_from, b.effective_to, b.created_at, b.updated_at, m.key AS meter_key, m.name AS meter_name,
        m.function AS meter_function, m.unit_label AS meter_unit_label, m.dimensions AS meter_dimensions",
    from: "product_meter_binding b JOIN meter m ON m.id = b.meter_id",
    workspace_column: "b.workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("b.id"),
        PRODUCT_ID,
        ListField::new("meter_id", ListKind::Id).column("b.meter_id"),
        ListField::new("role", ListKind::Word(&["PRIMARY", "FORMULA_INPUT", "INFORMATIONAL"])).column("b.role"),
        ListField::new("metric_key", ListKind::Text).column("b.metric_key"),
        ListField::new("status", ListKind::Word(&["draft", "scheduled", "active", "archived"])).column(
            "(CASE WHEN b.status = 'scheduled' AND b.effective_from <= clock_timestamp() THEN 'active' ELSE b.status END)",
        ),
        ListField::new("created_at", ListKind::Instant).column("b.created_at").sortable(),
        ListField::new("updated_at", ListKind::Instant).column("b.updated_at").sortable(),
    ],
    shorthands: &[],
    order: "b.created_at",
    id: "b.id",
};

const PRODUCT_ID: ListField = ListField::new("product_id", ListKind::Id).column("b.product_id");

/// The same without drafts and archived ones: what a product's list shows by default.
const LIVE: ListSpec = ListSpec { name: "live_bindings", condition: "b.status IN ('active', 'scheduled')", ..LIST };

/// Bindings of the workspace.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<Binding>> {
    ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await
}

/// Bindings of one product; `include=all` adds drafts and archived ones.
///
/// # Errors
/// `NotFound`, and as [`ListQuery::parse`].
pub async fn list_of_product(
    scope: &Scope,
    conn: &mut PgConnection,
    product: ProductId,
    parameters: &[(String, String)],
) -> Result<Page<Binding>> {
    let include = parameters.iter().rev().find(|(name, _)| name == "include").map(|(_, value)| value.as_str());
    let spec = match include {
        None => &LIVE,
        Some("all") => &LIST,
        Some(_) => return Err(Error::field("include", Code::InvalidEnum, "must be all, or left out")),
    };
    let query = ListQuery::parse_with(spec, parameters, &["include"])?;
    crate::product::get(scope, conn, product).await?;
    query.only(PRODUCT_ID, product).fetch(conn, scope).await
}

/// One binding.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: BindingId) -> Result<Binding> {
    let sql = format!("SELECT {} FROM {} WHERE b.workspace_id = $1 AND b.id = $2", LIST.columns, LIST.from);
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a binding")?
        .ok_or_else(|| Error::not_found("binding", id))
}

/// The live bindings of these products.
///
/// # Errors
/// As every statement.
pub async fn live_of(scope: &Scope, conn: &mut PgConnection, products: &[ProductId]) -> Result<Vec<Binding>> {
    let products: Vec<uuid::Uuid> = products.iter().map(|id| id.0).collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE b.workspace_id = $1 AND b.product_id = ANY($2) AND {} ORDER BY b.created_at, b.id",
        LIVE.columns, LIVE.from, LIVE.condition
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(products)
        .fetch_all(conn)
        .await
        .context("reading the bindings of products")
}
