//! Reads a workspace's catalog and compiles it: a few statements, whatever its size.

use std::collections::HashMap;
use std::sync::Arc;

use domain::{
    BillingIntervalUnit, BindingId, Currency, Error, Instant, JsonMap, MeterFunction, OveragePolicy, PlanId, PoolScope,
    PriceId, PricingModel, ProductId, Quantity, Result, VersionId, WorkspaceId,
};
use rating::allowance::Rollover;
use rating::{
    BindingDefinition, CompiledBinding, CompiledMeter, CompiledPrice, Component, FilterTree, PriceDefinition,
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
use crate::meter::formula::{Leaf, MeterTimeline, MeterVersion, Meters};

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
    /// Drafts and cancelled versions judge nothing. They may have (a version that was to start within minutes, and was
    /// withdrawn), so that states which still name them can be read until their windows are counted anew.
    is_on_timeline: bool,
    snapshot: serde_json::Value,
}

impl Version {
    /// What failed is the fault of this version; a version that judges nothing may be left out.
    fn tolerate<T>(&self, made: Result<T>) -> Result<Option<T>> {
        tolerate(self.is_on_timeline, made)
    }
}

fn tolerate<T>(is_on_timeline: bool, made: Result<T>) -> Result<Option<T>> {
    match made {
        Err(_) if !is_on_timeline => Ok(None),
        made => made.map(Some),
    }
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
        let plans = versions.remove("plan").unwrap_or_default().into_values().flatten();
        for version in plans.filter(|version| version.is_on_timeline) {
            catalog.plan_versions.insert(version.id, compile_plan(version)?);
        }
        load_prices(tx.conn(), &mut catalog, versions.remove("price").unwrap_or_default()).await?;
        let meters = Meters::load(tx.conn(), workspace_id).await?;
        load_bindings(tx.conn(), &mut catalog, &meters, versions.remove("binding").unwrap_or_default()).await?;
        tx.commit().await?;
        Ok(catalog)
    }
}

type VersionsOf = HashMap<uuid::Uuid, Vec<Version>>;

async fn load_versions(conn: &mut PgConnection, workspace_id: WorkspaceId) -> Result<HashMap<String, VersionsOf>> {
    let rows = sqlx::query(
        "SELECT id, entity_type, entity_id, version, effective_from, effective_to, published_at,
                status <> 'draft' AND cancelled_at IS NULL AS is_on_timeline, snapshot
         FROM entity_version
         WHERE workspace_id = $1 AND entity_type IN ('plan', 'price', 'binding')
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
        is_on_timeline: row.try_get("is_on_timeline")?,
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
                billing_interval_unit, billing_interval_count, valid_from,
                LEAST(valid_to, archived_at, deleted_at) AS valid_to, status <> 'draft' AS is_live
         FROM price WHERE workspace_id = $1 ORDER BY id",
    )
    .bind(catalog.workspace_id)
    .fetch_all(conn)
    .await
    .context("reading prices")?;
    for row in rows {
        let (product_id, mut price) = price_from_row(&row).context("reading a price")?;
        let Some(product) = catalog.products.get_mut(&product_id) else { continue };
        for version in versions.remove(&price.id.0).unwrap_or_default() {
            let made = compile_price((product_id, product.pricing_model), &price, &version, &catalog.tables);
            let Some(compiled) = version.tolerate(made)? else { continue };
            catalog.prices.insert(version.id, compiled.clone());
            if version.is_on_timeline {
                price.versions.push((version.from, version.to, compiled));
            }
        }
        let is_live: bool = row.try_get("is_live").context("reading a price")?;
        if is_live {
            product.prices.push(price);
        }
    }
    Ok(())
}

fn compile_price(
    (product_id, model): (ProductId, PricingModel),
    price: &PriceTimeline,
    version: &Version,
    tables: &Tables,
) -> Result<Arc<CompiledPrice>> {
    let snapshot: PriceSnapshot = read("price", version)?;
    let definition = PriceDefinition {
        price_id: price.id,
        version_id: version.id,
        product_id,
        price_key: price.price_key.clone(),
        currency: price.currency,
        model,
        tiers: snapshot.tiers,
        list_price: snapshot.list_price,
        formula: formula_of(tables, snapshot.formula_id, version)?,
    };
    compiled("price", version.id, CompiledPrice::compile(definition)).map(Arc::new)
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
    /// Of FORMULA_INPUT.
    variable: Option<String>,
    meter_key: String,
}

async fn load_bindings(
    conn: &mut PgConnection,
    catalog: &mut WorkspaceCatalog,
    meters: &Meters,
    mut versions: VersionsOf,
) -> Result<()> {
    let rows = sqlx::query(
        "SELECT b.id, b.product_id, CASE WHEN b.status <> 'draft' THEN b.variable END AS variable, m.key AS meter_key
         FROM product_meter_binding b JOIN meter m ON m.id = b.meter_id
         WHERE b.workspace_id = $1 ORDER BY b.role = 'PRIMARY' DESC, b.id",
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
        let Some(meter) = meters.get(&binding.meter_key) else { continue };
        let own = versions.remove(&binding.id.0).unwrap_or_default();
        let inputs = inputs.get(&binding.product_id).map(Vec::as_slice).unwrap_or_default();
        let timelines = compile_binding(catalog, &binding, inputs, (meters, meter), &own)?;
        if let Some(product) = catalog.products.get_mut(&binding.product_id) {
            product.bindings.extend(timelines);
        }
    }
    Ok(())
}

fn binding_from_row(row: &PgRow) -> Result<BindingRow, sqlx::Error> {
    Ok(BindingRow {
        id: row.try_get("id")?,
        product_id: row.try_get("product_id")?,
        variable: row.try_get("variable")?,
        meter_key: row.try_get("meter_key")?,
    })
}

/// Every pair of a binding version and a meter version whose spans overlap is one entry of a timeline. A FORMULA meter has a
/// timeline for each meter that reads events for it. Other pairs are kept for states that were counted when the timeline was
/// another one.
fn compile_binding(
    catalog: &mut WorkspaceCatalog,
    binding: &BindingRow,
    inputs: &[String],
    (meters, meter): (&Meters, &MeterTimeline),
    versions: &[Version],
) -> Result<Vec<BindingTimeline>> {
    let mut timelines: Vec<BindingTimeline> = Vec::new();
    for meter_version in &meter.versions {
        if meter_version.snapshot.function == MeterFunction::Formula {
            combine(catalog, &mut timelines, (binding, inputs, versions), (meters, meter), meter_version)?;
            continue;
        }
        let is_on_timeline = meter_version.is_on_timeline;
        let made = meter.definition(meter_version).and_then(|definition| {
            compiled("meter", meter_version.id, CompiledMeter::compile(definition)).map(Arc::new)
        });
        let Some(meter) = tolerate(is_on_timeline, made)? else { continue };
        let _ = tolerate(is_on_timeline, add_schema(catalog, meter_version, meter.version_id))?;
        for version in versions {
            let made = define(binding, inputs, version, meter.clone())
                .and_then(|definition| compiled("binding", version.id, CompiledBinding::compile(definition)));
            let Some(compiled) = version.tolerate(made)? else { continue };
            let shared = overlap(version, meter_version.from, meter_version.to).filter(|_| is_on_timeline);
            add(catalog, &mut timelines, shared, compiled);
        }
    }
    timelines.iter_mut().for_each(|timeline| timeline.versions.sort_by_key(|(from, _, _)| *from));
    Ok(timelines)
}

/// The versions of a binding of a FORMULA meter, for each meter that reads events for it.
fn combine(
    catalog: &mut WorkspaceCatalog,
    timelines: &mut Vec<BindingTimeline>,
    (binding, inputs, versions): (&BindingRow, &[String], &[Version]),
    (meters, meter): (&Meters, &MeterTimeline),
    meter_version: &MeterVersion,
) -> Result<()> {
    let definition = tolerate(meter_version.is_on_timeline, meter.definition(meter_version))?;
    let Some(definition) = definition else { return Ok(()) };
    let pair = |version: &Version, leaf: &Leaf<'_>| {
        let (meter, component) = leaf.compile(&definition, version.id)?;
        let definition = define(binding, inputs, version, Arc::new(meter))?;
        compiled("binding", version.id, CompiledBinding::compile_component(definition, component))
    };
    if meter_version.is_on_timeline {
        for leaf in meters.components(meter, meter_version)? {
            for version in versions {
                let Some(shared) = overlap(version, leaf.from, leaf.to) else { continue };
                let compiled = pair(version, &leaf)?;
                add_schema(catalog, leaf.version, compiled.meter.version_id)?;
                add(catalog, timelines, Some(shared), compiled);
            }
        }
    }
    for leaf in meters.ever(meter, meter_version) {
        for version in versions {
            if let Ok(compiled) = pair(version, &leaf)
                && !catalog.bindings.contains_key(&(compiled.version_id, compiled.meter.version_id))
            {
                add(catalog, timelines, None, compiled);
            }
        }
    }
    Ok(())
}

/// The part of a span in which a version of a binding holds; a withdrawn one never does.
fn overlap(version: &Version, from: Instant, to: Option<Instant>) -> Option<(Instant, Option<Instant>)> {
    let (from, to) = (version.from.max(from), [version.to, to].into_iter().flatten().min());
    (version.is_on_timeline && to.is_none_or(|to| from < to)).then_some((from, to))
}

fn define(
    binding: &BindingRow,
    inputs: &[String],
    version: &Version,
    meter: Arc<CompiledMeter>,
) -> Result<BindingDefinition> {
    let snapshot: BindingSnapshot = read("binding", version)?;
    Ok(BindingDefinition {
        binding_id: binding.id,
        version_id: version.id,
        effective_from: version.from,
        product_id: binding.product_id,
        meter,
        role: snapshot.role,
        filter: snapshot.filter,
        multiplier: snapshot.multiplier,
        thresholds: snapshot.thresholds,
        window: snapshot.window.map(|window| span("binding", version.id, &window)).transpose()?,
        variable: snapshot.variable,
        formula_bindings: formula_bindings(snapshot.formula_bindings.as_ref(), inputs),
    })
}

/// Keeps a compiled version, and puts it into the timeline of what reads the same events if it holds at some time.
fn add(
    catalog: &mut WorkspaceCatalog,
    timelines: &mut Vec<BindingTimeline>,
    span: Option<(Instant, Option<Instant>)>,
    compiled: CompiledBinding,
) {
    let compiled = Arc::new(compiled);
    catalog.bindings.insert((compiled.version_id, compiled.meter.version_id), compiled.clone());
    let Some((from, to)) = span else { return };
    let component = compiled.component().map(Component::id);
    let found = timelines.iter().position(|timeline| timeline.component == component);
    let index = found.unwrap_or_else(|| {
        let (id, metric_key) = (compiled.binding_id, compiled.reads().to_owned());
        timelines.push(BindingTimeline { id, component, metric_key, versions: Vec::new() });
        timelines.len() - 1
    });
    timelines[index].versions.push((from, to, compiled));
}

/// The shape of the events of a meter version, under the version that stands in its bindings.
fn add_schema(catalog: &mut WorkspaceCatalog, version: &MeterVersion, id: VersionId) -> Result<()> {
    let Some(schema) = &version.snapshot.event_schema else { return Ok(()) };
    let schema = match catalog.schemas.get(&version.id) {
        Some(schema) => schema.clone(),
        None => {
            let schema = EventSchema::compile(schema).map_err(|error| RatingError::Definition(vec![error]));
            Arc::new(compiled("meter", version.id, schema)?)
        }
    };
    catalog.schemas.insert(version.id, schema.clone());
    catalog.schemas.insert(id, schema);
    Ok(())
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
