//! Product-meter bindings (meter-bindings.md): which meter gives a product its quantity.

mod request;
mod write;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::{
    BindingId, BindingRole, Error, MeterFunction, MeterId, OrganizationId, ProductId, Result, Scope, VersionId,
    VersionStatus, WorkspaceId,
};
use rating::{FilterTree, Threshold};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::meter::Window;
use crate::version::{AsOf, VersionWarnDTO, Versioned};

pub use request::{CreateProductMeterBindingRequest, UpdateProductMeterBindingRequest};
pub use write::{archive, create};

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
    /// The meter's version in effect.
    #[serde(skip)]
    #[schema(ignore)]
    pub(crate) meter_version_id: Option<VersionId>,
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

/// A frozen state of a binding: all of the binding with that version's definition, `id` being the version's.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct BindingVersionSnapshot {
    /// The binding at this version.
    #[serde(flatten)]
    pub binding: Binding,
    /// The binding.
    pub binding_id: BindingId,
    /// The meter's version in effect.
    #[schema(value_type = Uuid)]
    pub meter_version_id: Option<VersionId>,
    /// When it was published.
    #[schema(required)]
    pub published_at: Option<DateTime<Utc>>,
    /// By which key.
    #[schema(required)]
    pub published_by: Option<Uuid>,
    /// Warnings of a scheduled version.
    pub warnings: Vec<VersionWarnDTO>,
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
            meter_version_id: row.try_get("meter_version_id")?,
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

/// What a binding shows of its meter, beside its own row and version.
const METER: &str = "JOIN meter m ON m.id = t.meter_id
    CROSS JOIN LATERAL jsonb_populate_record(m, entity_state(m.id)) s";

/// The members of a version are read from the one that is in effect, those of the meter as well.
const LIST: ListSpec = ListSpec {
    name: "bindings",
    columns: "t.id, t.organization_id, t.workspace_id, t.product_id, t.meter_id, e.role, t.metric_key, e.variable,
        e.formula_bindings, e.filter, e.multiplier, e.\"window\", e.thresholds, e.version, e.head_version_id,
        present_status(t.status, e.effective_from, e.effective_to) AS status, e.effective_from, e.effective_to, t.created_at,
        t.updated_at, m.key AS meter_key, s.name AS meter_name, s.function AS meter_function,
        s.unit_label AS meter_unit_label, s.dimensions AS meter_dimensions, s.head_version_id AS meter_version_id",
    from: "product_meter_binding t
        CROSS JOIN LATERAL jsonb_populate_record(t, entity_state(t.id)) e
        JOIN meter m ON m.id = t.meter_id
        CROSS JOIN LATERAL jsonb_populate_record(m, entity_state(m.id)) s",
    workspace_column: "t.workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("t.id"),
        PRODUCT_ID,
        ListField::new("meter_id", ListKind::Id).column("t.meter_id"),
        ListField::new("role", ListKind::Word(&["PRIMARY", "FORMULA_INPUT", "INFORMATIONAL"])).column("e.role"),
        ListField::new("metric_key", ListKind::Text).column("t.metric_key"),
        ListField::new("status", ListKind::Word(&["draft", "scheduled", "active", "archived"]))
            .column("present_status(t.status, e.effective_from, e.effective_to)"),
        ListField::new("created_at", ListKind::Instant).column("t.created_at").sortable(),
        ListField::new("updated_at", ListKind::Instant).column("t.updated_at").sortable(),
    ],
    shorthands: &[],
    order: "t.created_at",
    id: "t.id",
};

const PRODUCT_ID: ListField = ListField::new("product_id", ListKind::Id).column("t.product_id");

/// The same without drafts and archived ones: what a product's list shows by default.
const LIVE: ListSpec = ListSpec {
    name: "live_bindings",
    condition: "present_status(t.status, e.effective_from, e.effective_to) IN ('active', 'scheduled')",
    ..LIST
};

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
    Binding::read(scope, conn, id.0, AsOf::Instant(scope.now())).await
}

/// The live bindings of these products.
///
/// # Errors
/// As every statement.
pub async fn live_of(scope: &Scope, conn: &mut PgConnection, products: &[ProductId]) -> Result<Vec<Binding>> {
    let products: Vec<uuid::Uuid> = products.iter().map(|id| id.0).collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE t.workspace_id = $1 AND t.product_id = ANY($2) AND {} ORDER BY t.created_at, t.id",
        LIVE.columns, LIVE.from, LIVE.condition
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(products)
        .fetch_all(conn)
        .await
        .context("reading the bindings of products")
}
