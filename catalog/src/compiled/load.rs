//! Reads a workspace's catalog and compiles it: a few statements, whatever its size.

use std::collections::HashMap;
use std::sync::Arc;

use domain::{
    BillingIntervalUnit, BindingId, Currency, Error, Instant, JsonMap, MeterFunction, MeterId, OveragePolicy, PlanId,
    PoolScope, PriceId, ProductId, Quantity, Result, VersionId, WorkspaceId,
};
use rating::allowance::Rollover;
use rating::{
    BindingDefinition, CompiledBinding, CompiledMeter, CompiledPrice, FilterTree, MeterDefinition, PriceDefinition,
    PriceFormula, RatingError, Span, Threshold, Tier,
};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use store::{Store, StoreError};

use crate::binding::{self, FormulaBindings};
use crate::meter::Window;

use super::SINCE_EVER;
use super::schema::EventSchema;
use super::tables::{self, Tables};
use super::workspace::{
    BindingTimeline, PlanProductTerms, PlanVersionTerms, PriceTimeline, ProductTerms, WorkspaceCatalog,
};

/// A stored version of an entity, and the span in which it holds.
struct Version {
    id: VersionId,
    number: i32,
    from: Instant,
    to: Option<Instant>,
    published_at: Option<Instant>,
    snapshot: serde_json::Value,
}

/// The members of a meter's snapshot that counting needs.
#[derive(Deserialize)]
struct MeterSnapshot {
    function: MeterFunction,
    value_field: Option<String>,
    unique_by_field: Option<String>,
    #[serde(default)]
    negative_allowed: bool,
    late_event_policy: domain::LateEventPolicy,
    window: Window,
    dedup_key_path: Option<String>,
    unit_currency_field: Option<String>,
    event_schema: Option<serde_json::Value>,
    filter: Option<FilterTree>,
    #[serde(default)]
    thresholds: Vec<Threshold>,
}

/// The members of a binding's snapshot that counting needs.
#[derive(Deserialize)]
struct BindingSnapshot {
    role: domain::BindingRole,
    filter: Option<FilterTree>,
    multiplier: Decimal,
    window: Option<Window>,
    variable: Option<String>,
    formula_bindings: Option<FormulaBindings>,
    #[serde(default)]
    thresholds: Vec<Threshold>,
}

#[derive(Deserialize)]
struct PriceSnapshot {
    tiers: Vec<Tier>,
    list_price: Option<Decimal>,
    formula_id: Option<uuid::Uuid>,
}

/// The members of a plan version's snapshot that rating needs.
#[derive(Deserialize)]
struct PlanSnapshot {
    products: Vec<PlanSnapshotProduct>,
    #[serde(default)]
    pins: PlanSnapshotPins,
}

#[derive(Deserialize)]
struct PlanSnapshotProduct {
    product_id: ProductId,
    included_quantity: Quantity,
    #[serde(default)]
    included_quantity_per_unit: bool,
    overage_policy: OveragePolicy,
    #[serde(default)]
    rollover_enabled: bool,
    rollover_max_quantity: Option<Quantity>,
    rollover_expiry_periods: Option<u32>,
    pool_scope: Option<PoolScope>,
}

#[derive(Default, Deserialize)]
struct PlanSnapshotPins {
    #[serde(default)]
    prices: HashMap<PriceId, VersionId>,
}

impl WorkspaceCatalog {
    /// Reads and compiles everything that is not a draft.
    ///
    /// # Errors
    /// As every statement; `Internal` for a stored version that cannot be compiled: it was checked when it was written.
    pub async fn load(store: &Store, workspace_id: WorkspaceId) -> Result<Self> {
        // One snapshot of the database, so that prices and products belong together.
        let mut tx = store.begin("compiling a catalog").await?;
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(tx.conn())
            .await
            .context("compiling a catalog")?;
        let mut versions = load_versions(tx.conn(), workspace_id).await?;
        let mut catalog = Self {
            workspace_id,
            products: load_products(tx.conn(), workspace_id).await?,
            plan_versions: HashMap::new(),
            bindings: HashMap::new(),
            prices: HashMap::new(),
            schemas: HashMap::new(),
            tables: tables::load(tx.conn(), workspace_id).await?,
        };
        for version in versions.remove("plan").unwrap_or_default().into_values().flatten() {
            catalog.plan_versions.insert(version.id, compile_plan(version)?);
        }
        load_prices(tx.conn(), &mut catalog, versions.remove("price").unwrap_or_default()).await?;
        let meters = versions.remove("meter").unwrap_or_default();
        load_bindings(tx.conn(), &mut catalog, meters, versions.remove("binding").unwrap_or_default()).await?;
        tx.commit().await?;
        Ok(catalog)
    }
}

type VersionsOf = HashMap<uuid::Uuid, Vec<Version>>;

async fn load_versions(conn: &mut PgConnection, workspace_id: WorkspaceId) -> Result<HashMap<String, VersionsOf>> {
    let rows = sqlx::query(
        "SELECT id, entity_type, entity_id, version, effective_from, effective_to, published_at, snapshot
         FROM entity_version
         WHERE workspace_id = $1 AND entity_type IN ('plan', 'price', 'meter', 'binding') AND status <> 'draft'
           AND cancelled_at IS NULL
         ORDER BY entity_id, effective_from NULLS FIRST, version",
    )
    .bind(workspace_id)
    .fetch_all(conn)
    .await
    .context("reading catalog versions")?;
    let mut found: HashMap<String, VersionsOf> = HashMap::new();
    for row in rows {
        let (entity_type, entity_id, version) = version_from_row(&row).context("reading a catalog version")?;
        found.entry(entity_type).or_default().entry(entity_id).or_default().push(version);
    }
    Ok(found)
}

fn version_from_row(row: &PgRow) -> Result<(String, uuid::Uuid, Version), sqlx::Error> {
    let from: Option<Instant> = row.try_get("effective_from")?;
    let number = row.try_get("version")?;
    let version = Version {
        id: row.try_get("id")?,
        number,
        from: from.unwrap_or(SINCE_EVER),
        to: row.try_get("effective_to")?,
        published_at: row.try_get("published_at")?,
        snapshot: row.try_get("snapshot")?,
    };
    Ok((row.try_get("entity_type")?, row.try_get("entity_id")?, version))
}

fn read<T: DeserializeOwned>(what: &str, version: &Version) -> Result<T> {
    T::deserialize(&version.snapshot)
        .map_err(|error| Error::internal(format!("reading {what} version {}", version.id), error))
}

fn compiled<T>(what: &str, id: VersionId, result: Result<T, RatingError>) -> Result<T> {
    result.map_err(|error| Error::internal(format!("compiling {what} version {id}"), error))
}

async fn load_products(conn: &mut PgConnection, workspace_id: WorkspaceId) -> Result<HashMap<ProductId, ProductTerms>> {
    let rows = sqlx::query(
        "SELECT id, name, type, pricing_model, status, deleted_at IS NULL AS exists, price_key_label,
                unmatched_price_key_policy, default_price_key, tiers_on_total, tax_category, supply_type
         FROM product WHERE workspace_id = $1",
    )
    .bind(workspace_id)
    .fetch_all(conn)
    .await
    .context("reading products")?;
    let products = rows.iter().map(product_from_row).collect::<Result<Vec<_>, _>>().context("reading a product")?;
    Ok(products.into_iter().map(|product| (product.id, product)).collect())
}

fn product_from_row(row: &PgRow) -> Result<ProductTerms, sqlx::Error> {
    let (status, exists): (String, bool) = (row.try_get("status")?, row.try_get("exists")?);
    Ok(ProductTerms {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        kind: row.try_get("type")?,
        pricing_model: row.try_get("pricing_model")?,
        is_live: exists && matches!(status.as_str(), "published" | "deprecated"),
        price_key_label: row.try_get("price_key_label")?,
        unmatched_price_key_policy: row.try_get("unmatched_price_key_policy")?,
        default_price_key: row.try_get("default_price_key")?,
        tiers_on_total: row.try_get("tiers_on_total")?,
        tax_category: row.try_get("tax_category")?,
        supply_type: row.try_get("supply_type")?,
        bindings: Vec::new(),
        prices: Vec::new(),
    })
}

fn compile_plan(version: Version) -> Result<PlanVersionTerms> {
    let snapshot: PlanSnapshot = read("plan", &version)?;
    let products = snapshot.products.into_iter().map(|product| PlanProductTerms {
        product_id: product.product_id,
        included_quantity: product.included_quantity,
        included_quantity_per_unit: product.included_quantity_per_unit,
        overage_policy: product.overage_policy,
        rollover: product.rollover_enabled.then_some(Rollover {
            max_quantity: product.rollover_max_quantity,
            expiry_periods: product.rollover_expiry_periods,
        }),
        pool_scope: product.pool_scope.unwrap_or(PoolScope::Subscription),
    });
    Ok(PlanVersionTerms { version: version.number, products: products.collect(), price_pins: snapshot.pins.prices })
}

async fn load_prices(conn: &mut PgConnection, catalog: &mut WorkspaceCatalog, mut versions: VersionsOf) -> Result<()> {
    let rows = sqlx::query(
        "SELECT id, product_id, plan_id, plan_version, customer_id, country_code, currency, price_key, custom_dimensions,
                billing_interval_unit, billing_interval_count, valid_from, LEAST(valid_to, archived_at, deleted_at) AS valid_to
         FROM price WHERE workspace_id = $1 AND status <> 'draft' ORDER BY id",
    )
    .bind(catalog.workspace_id)
    .fetch_all(conn)
    .await
    .context("reading prices")?;
    for row in rows {
        let (product_id, mut price) = price_from_row(&row).context("reading a price")?;
        let Some(product) = catalog.products.get_mut(&product_id) else { continue };
        for version in versions.remove(&price.id.0).unwrap_or_default() {
            let snapshot: PriceSnapshot = read("price", &version)?;
            let definition = PriceDefinition {
                price_id: price.id,
                version_id: version.id,
                product_id,
                price_key: price.price_key.clone(),
                currency: price.currency,
                model: product.pricing_model,
                tiers: snapshot.tiers,
                list_price: snapshot.list_price,
                formula: formula_of(&catalog.tables, snapshot.formula_id, &version)?,
            };
            let compiled = Arc::new(compiled("price", version.id, CompiledPrice::compile(definition))?);
            catalog.prices.insert(version.id, compiled.clone());
            price.versions.push((version.from, version.to, compiled));
        }
        product.prices.push(price);
    }
    Ok(())
}

/// A price version has the version of its formula that is in effect when it starts, or when it was published, if that is
/// later: an edit of the formula is an edit of no price.
fn formula_of(tables: &Tables, formula_id: Option<uuid::Uuid>, version: &Version) -> Result<Option<PriceFormula>> {
    let Some(id) = formula_id else { return Ok(None) };
    let at = version.published_at.map_or(version.from, |published| published.max(version.from));
    let missing =
        || Error::invariant(format!("the formula {id} of price version {} is not in effect at {at}", version.id));
    tables.formula(id, at).cloned().ok_or_else(missing).map(Some)
}

fn price_from_row(row: &PgRow) -> Result<(ProductId, PriceTimeline), sqlx::Error> {
    let unit: Option<BillingIntervalUnit> = row.try_get("billing_interval_unit")?;
    let count: Option<i32> = row.try_get("billing_interval_count")?;
    let dimensions: sqlx::types::Json<JsonMap> = row.try_get("custom_dimensions")?;
    let text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let price = PriceTimeline {
        id: row.try_get("id")?,
        plan_id: row.try_get::<Option<PlanId>, _>("plan_id")?,
        plan_version: row.try_get("plan_version")?,
        customer_id: row.try_get("customer_id")?,
        country_code: row.try_get("country_code")?,
        custom_dimensions: dimensions.0.into_iter().map(|(name, value)| (name, text(value))).collect(),
        currency: row.try_get::<Currency, _>("currency")?,
        price_key: row.try_get("price_key")?,
        interval: unit.map(|unit| (unit, count.unwrap_or(1).unsigned_abs())),
        valid_from: row.try_get("valid_from")?,
        valid_to: row.try_get("valid_to")?,
        versions: Vec::new(),
    };
    Ok((row.try_get("product_id")?, price))
}

/// A binding as stored: which meter, which product, until when.
struct BindingRow {
    id: BindingId,
    product_id: ProductId,
    meter_id: MeterId,
    /// Of FORMULA_INPUT.
    variable: Option<String>,
    meter_key: String,
    metric_key: String,
}

async fn load_bindings(
    conn: &mut PgConnection,
    catalog: &mut WorkspaceCatalog,
    meters: VersionsOf,
    mut versions: VersionsOf,
) -> Result<()> {
    let rows = sqlx::query(
        "SELECT b.id, b.product_id, b.meter_id, b.variable, m.key AS meter_key, m.metric_key
         FROM product_meter_binding b JOIN meter m ON m.id = b.meter_id
         WHERE b.workspace_id = $1 AND b.status <> 'draft' ORDER BY b.role = 'PRIMARY' DESC, b.id",
    )
    .bind(catalog.workspace_id)
    .fetch_all(conn)
    .await
    .context("reading bindings")?;
    let bindings = rows.iter().map(binding_from_row).collect::<Result<Vec<_>, _>>().context("reading a binding")?;
    let mut inputs: HashMap<ProductId, Vec<String>> = HashMap::new();
    for binding in &bindings {
        inputs.entry(binding.product_id).or_default().extend(binding.variable.clone());
    }
    for binding in bindings {
        let Some(meter_versions) = meters.get(&binding.meter_id.0) else { continue };
        let own = versions.remove(&binding.id.0).unwrap_or_default();
        let inputs = inputs.get(&binding.product_id).map(Vec::as_slice).unwrap_or_default();
        let timeline = compile_binding(catalog, &binding, inputs, meter_versions, &own)?;
        if let Some(product) = catalog.products.get_mut(&binding.product_id) {
            product.bindings.push(timeline);
        }
    }
    Ok(())
}

fn binding_from_row(row: &PgRow) -> Result<BindingRow, sqlx::Error> {
    Ok(BindingRow {
        id: row.try_get("id")?,
        product_id: row.try_get("product_id")?,
        meter_id: row.try_get("meter_id")?,
        variable: row.try_get("variable")?,
        meter_key: row.try_get("meter_key")?,
        metric_key: row.try_get("metric_key")?,
    })
}

/// Every pair of a binding version and a meter version whose spans overlap is one entry of the timeline.
fn compile_binding(
    catalog: &mut WorkspaceCatalog,
    binding: &BindingRow,
    inputs: &[String],
    meters: &[Version],
    versions: &[Version],
) -> Result<BindingTimeline> {
    let mut timeline = BindingTimeline { id: binding.id, metric_key: binding.metric_key.clone(), versions: Vec::new() };
    for meter_version in meters {
        let snapshot: MeterSnapshot = read("meter", meter_version)?;
        if let Some(schema) = &snapshot.event_schema
            && !catalog.schemas.contains_key(&meter_version.id)
        {
            let schema = EventSchema::compile(schema).map_err(|error| RatingError::Definition(vec![error]));
            catalog.schemas.insert(meter_version.id, compiled("meter", meter_version.id, schema)?);
        }
        let meter = Arc::new(compile_meter(binding, meter_version, snapshot)?);
        for version in versions {
            let from = version.from.max(meter_version.from);
            let to = [version.to, meter_version.to].into_iter().flatten().min();
            if to.is_some_and(|to| to <= from) {
                continue;
            }
            let snapshot: BindingSnapshot = read("binding", version)?;
            let definition = BindingDefinition {
                binding_id: binding.id,
                version_id: version.id,
                effective_from: version.from,
                product_id: binding.product_id,
                meter: meter.clone(),
                role: snapshot.role,
                filter: snapshot.filter,
                multiplier: snapshot.multiplier,
                thresholds: snapshot.thresholds,
                window: snapshot.window.map(|window| span("binding", version.id, &window)).transpose()?,
                variable: snapshot.variable,
                formula_bindings: formula_bindings(snapshot.formula_bindings.as_ref(), inputs),
            };
            let compiled = Arc::new(compiled("binding", version.id, CompiledBinding::compile(definition))?);
            catalog.bindings.insert((version.id, meter_version.id), compiled.clone());
            timeline.versions.push((from, to, compiled));
        }
    }
    timeline.versions.sort_by_key(|(from, _, _)| *from);
    Ok(timeline)
}

/// What is bound by name, and the FORMULA_INPUT bindings of the product.
fn formula_bindings(bound: Option<&FormulaBindings>, inputs: &[String]) -> rating::Bindings {
    let mut bindings: rating::Bindings = inputs.iter().map(|name| (name.clone(), rating::Bound::Input)).collect();
    bindings.extend(binding::bound(bound));
    bindings
}

fn span(what: &str, id: VersionId, window: &Window) -> Result<Span> {
    compiled(what, id, window.span().map_err(RatingError::Definition))
}

fn compile_meter(binding: &BindingRow, version: &Version, snapshot: MeterSnapshot) -> Result<CompiledMeter> {
    let definition = MeterDefinition {
        meter_id: binding.meter_id,
        version_id: version.id,
        effective_from: version.from,
        key: binding.meter_key.clone(),
        metric_key: binding.metric_key.clone(),
        function: snapshot.function,
        value_field: snapshot.value_field,
        unique_by_field: snapshot.unique_by_field,
        filter: snapshot.filter,
        negative_allowed: snapshot.negative_allowed,
        late_event_policy: snapshot.late_event_policy,
        thresholds: snapshot.thresholds,
        window: span("meter", version.id, &snapshot.window)?,
        dedup_key_path: snapshot.dedup_key_path,
        unit_currency_field: snapshot.unit_currency_field,
    };
    compiled("meter", version.id, CompiledMeter::compile(definition))
}
