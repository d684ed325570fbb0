//! Creates bindings.

use std::sync::Arc;

use domain::{
    BindingId, BindingRole, Error, Instant, JsonMap, ProductId, ProductType, Result, Scope, VersionId, VersionStatus,
};
use rating::{BindingDefinition, CompiledBinding, CompiledMeter};
use rust_decimal::Decimal;
use serde_json::json;
use sqlx::types::Json;
use store::{StoreError, Tx, on_constraint};

use super::{Binding, CreateProductMeterBindingRequest, FormulaBindings, MeterBindingMeterSummary};
use crate::meter::{self, Meter, MeterStatus, Window};
use crate::product::{self, Product};
use crate::version::{self, Entity, NewVersion};

/// Binds a meter to a product: live since ever, or from `effective_at`.
///
/// # Errors
/// `NotFound` for product or meter; `Conflict` when a live PRIMARY binding has the same metric; `Rule` when the product is
/// not USAGE, the meter is not active, or window or thresholds cannot be evaluated; `Validation` for multiplier and thresholds.
pub async fn create(
    scope: &Scope,
    tx: &mut Tx,
    product_id: ProductId,
    request: CreateProductMeterBindingRequest,
) -> Result<Binding> {
    version::refuse_draft(request.save_as_draft)?;
    meter::refuse_unevaluated(request.thresholds.as_deref().unwrap_or_default())?;
    check_formula_bindings(scope, tx, request.formula_bindings.as_ref()).await?;
    // Locked: two calls cannot both find the place of the PRIMARY binding free.
    let product = product::lock(scope, tx, product_id).await?;
    let meter = meter::lock(scope, tx, request.meter_id).await?;
    check_product_and_meter(&product, &meter)?;
    let mut binding = new_binding(scope, &product, &meter, request);
    compile(&binding, meter.compile(scope.now())?)?;
    if binding.role == BindingRole::Primary {
        check_primary(scope, tx, &binding).await?;
    }
    insert(scope, tx, &binding).await?;
    let version_id = version::insert(scope, tx, first_version(&binding)).await?;
    set_head(tx, binding.id, version_id).await?;
    binding.head_version_id = Some(version_id);
    tx.catalog_changed(scope.workspace_id);
    let mut payload = JsonMap::new();
    for (name, value) in
        [("id", json!(binding.id)), ("product_id", json!(binding.product_id)), ("meter_id", json!(binding.meter_id))]
    {
        payload.insert(name.to_owned(), value);
    }
    tx.emit(scope, "product_meter_binding.created", "binding", binding.id, payload).await?;
    Ok(binding)
}

/// Every source is there: a meter of the workspace, or a constant.
async fn check_formula_bindings(scope: &Scope, tx: &mut Tx, bindings: Option<&FormulaBindings>) -> Result<()> {
    for (name, source) in bindings.into_iter().flatten() {
        if source.custom_field.is_some() {
            let detail = format!("formula_bindings.{name}.custom_field: no custom fields are defined");
            return Err(Error::business_rule(detail));
        }
        let Some(key) = &source.meter_key else { continue };
        let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM meter WHERE workspace_id = $1 AND key = $2)")
            .bind(scope.workspace_id)
            .bind(key)
            .fetch_one(tx.conn())
            .await
            .context("looking for the meter of a formula binding")?;
        if !known {
            return Err(Error::not_found("meter", key));
        }
    }
    Ok(())
}

fn check_product_and_meter(product: &Product, meter: &Meter) -> Result<()> {
    if product.r#type != ProductType::Usage {
        return Err(Error::business_rule("only products of the type USAGE take their quantity from events"));
    }
    if product.status == product::ProductStatus::Archived {
        return Err(Error::business_rule("the product is archived"));
    }
    if meter.status != MeterStatus::Active {
        return Err(Error::business_rule(format!("the meter is {}", meter.status)));
    }
    Ok(())
}

fn new_binding(scope: &Scope, product: &Product, meter: &Meter, request: CreateProductMeterBindingRequest) -> Binding {
    let now = scope.now();
    let ahead = request.effective_at.is_some_and(|start| start > now);
    Binding {
        id: BindingId::generate(),
        organization_id: scope.organization_id,
        workspace_id: scope.workspace_id,
        product_id: product.id,
        meter_id: meter.id,
        meter: MeterBindingMeterSummary {
            id: meter.id,
            key: meter.key.clone(),
            name: meter.name.clone(),
            metric_key: meter.metric_key.clone(),
            function: meter.function,
            unit_label: meter.unit_label.clone(),
            dimensions: meter.dimensions.clone(),
        },
        role: request.role.unwrap_or(BindingRole::Primary),
        metric_key: meter.metric_key.clone(),
        variable: request.variable,
        formula_bindings: request.formula_bindings,
        filter: request.filter,
        multiplier: request.multiplier.unwrap_or(Decimal::ONE).normalize(),
        window: request.window,
        thresholds: request.thresholds.unwrap_or_default(),
        version: 1,
        head_version_id: None,
        status: if ahead { VersionStatus::Scheduled } else { VersionStatus::Active },
        effective_from: request.effective_at,
        effective_to: None,
        created_at: now,
        updated_at: now,
    }
}

/// Compiles once, so that no stored version fails later.
fn compile(binding: &Binding, meter: CompiledMeter) -> Result<()> {
    let definition = BindingDefinition {
        binding_id: binding.id,
        version_id: VersionId::generate(),
        effective_from: binding.effective_from.unwrap_or(Instant::UNIX_EPOCH),
        product_id: binding.product_id,
        meter: Arc::new(meter),
        role: binding.role,
        filter: binding.filter.clone(),
        multiplier: binding.multiplier,
        thresholds: binding.thresholds.clone(),
        window: binding.window.as_ref().map(Window::span).transpose().map_err(Error::Validation)?,
        variable: binding.variable.clone(),
        formula_bindings: super::bound(binding.formula_bindings.as_ref()),
    };
    Ok(CompiledBinding::compile(definition).map(drop)?)
}

async fn check_primary(scope: &Scope, tx: &mut Tx, binding: &Binding) -> Result<()> {
    let existing: Option<BindingId> = sqlx::query_scalar(
        "SELECT id FROM product_meter_binding
         WHERE workspace_id = $1 AND product_id = $2 AND metric_key = $3 AND role = 'PRIMARY'
           AND status IN ('active', 'scheduled') LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(binding.product_id)
    .bind(&binding.metric_key)
    .fetch_optional(tx.conn())
    .await
    .context("looking for the PRIMARY binding")?;
    match existing {
        Some(id) => Err(taken().with("existing_id", id)),
        None => Ok(()),
    }
}

fn taken() -> Error {
    Error::conflict("CONFLICT", "the product has a live PRIMARY binding with this metric_key")
        .with("field", "metric_key")
}

fn first_version(binding: &Binding) -> NewVersion {
    NewVersion {
        entity: Entity::Binding,
        entity_id: binding.id.0,
        version: 1,
        status: binding.status,
        effective_from: binding.effective_from,
        effective_to: None,
        snapshot: binding.snapshot(),
    }
}

async fn insert(scope: &Scope, tx: &mut Tx, binding: &Binding) -> Result<()> {
    let inserted = sqlx::query(
        "INSERT INTO product_meter_binding (id, organization_id, workspace_id, product_id, meter_id, role, metric_key, variable,
             filter, multiplier, \"window\", thresholds, version, status, effective_from, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $16)",
    )
    .bind(binding.id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(binding.product_id)
    .bind(binding.meter_id)
    .bind(binding.role)
    .bind(&binding.metric_key)
    .bind(&binding.variable)
    .bind(binding.filter.as_ref().map(Json))
    .bind(binding.multiplier)
    .bind(binding.window.as_ref().map(Json))
    .bind(Json(&binding.thresholds))
    .bind(binding.version)
    .bind(binding.status)
    .bind(binding.effective_from)
    .bind(binding.created_at)
    .execute(tx.conn())
    .await;
    on_constraint(inserted, "creating a binding", |constraint| {
        (constraint == "product_meter_binding_primary").then(taken)
    })?;
    Ok(())
}

async fn set_head(tx: &mut Tx, binding: BindingId, version: VersionId) -> Result<()> {
    sqlx::query("UPDATE product_meter_binding SET head_version_id = $2 WHERE id = $1")
        .bind(binding)
        .bind(version)
        .execute(tx.conn())
        .await
        .context("naming the head version of a binding")?;
    Ok(())
}
