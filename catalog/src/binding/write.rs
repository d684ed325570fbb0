//! Writes of bindings: create, archive, and what their versions need (edit-as-publish).

use std::sync::Arc;

use domain::error::FieldErrorCode as Code;
use domain::{BindingId, BindingRole, Error, Instant, ProductId, ProductType, Result, Scope, VersionId, VersionStatus};
use rating::{BindingDefinition, CompiledBinding, CompiledMeter};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::{
    Binding, BindingVersionSnapshot, CreateProductMeterBindingRequest, FormulaBindings, LIST, MeterBindingMeterSummary,
    UpdateProductMeterBindingRequest,
};
use crate::meter::{self, Meter, MeterStatus, Window};
use crate::product::{self, Product};
use crate::recount::{self, Touched};
use crate::version::{self, AsOf, EditControls, Entity, Life, Span, VersionRecord, Versioned, edit};

/// Binds a meter to a product: live since ever, or from `effective_at`; or a draft.
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
    // Locked: two calls cannot both find the place of the PRIMARY binding free.
    let product = product::lock(scope, tx, product_id).await?;
    let meter = meter::lock(scope, tx, request.meter_id).await?;
    check_product_and_meter(&product, &meter)?;
    let is_draft = request.save_as_draft.unwrap_or_default();
    let binding = new_binding(scope, &product, &meter, request);
    let span = Span::first(binding.effective_from, None, binding.created_at);
    edit::create(scope, tx, binding.id.0, &binding, (is_draft, span), |_| None).await
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
        meter_version_id: meter.head_version_id,
        role: request.role.unwrap_or(BindingRole::Primary),
        metric_key: meter.metric_key.clone(),
        variable: request.variable,
        formula_bindings: request.formula_bindings,
        filter: request.filter,
        multiplier: request.multiplier.unwrap_or(Decimal::ONE).normalize(),
        window: request.window,
        thresholds: request.thresholds.unwrap_or_default(),
        version: 0,
        head_version_id: None,
        status: VersionStatus::Draft,
        effective_from: request.effective_at,
        effective_to: None,
        created_at: now,
        updated_at: now,
    }
}

impl Versioned for Binding {
    type Update = UpdateProductMeterBindingRequest;
    type Version = BindingVersionSnapshot;
    const ENTITY: Entity = Entity::Binding;
    const DEFINITION: &'static [&'static str] = &[
        "role",
        "variable",
        "formula_bindings",
        "filter",
        "multiplier",
        "window",
        "thresholds",
        "effective_from",
        "effective_to",
    ];
    const MAY_START_IN_THE_PAST: bool = true;

    /// As whoever creates bindings of the product: one at a time.
    async fn lock(scope: &Scope, tx: &mut Tx, id: Uuid) -> Result<()> {
        let product_id = super::get(scope, tx.conn(), BindingId(id)).await?.product_id;
        product::lock(scope, tx, product_id).await.map(drop)
    }

    async fn read(scope: &Scope, conn: &mut PgConnection, id: Uuid, as_of: AsOf) -> Result<Self> {
        version::read(scope, conn, Self::ENTITY, &LIST, id, as_of).await
    }

    fn life(&self) -> (i32, Life) {
        let life = match self.status {
            VersionStatus::Draft => Life::Draft,
            VersionStatus::Scheduled | VersionStatus::Active => Life::Live,
            VersionStatus::Archived => Life::Archived,
        };
        (self.version, life)
    }

    fn snapshot(&self) -> Value {
        json!({
            "meter_id": self.meter_id, "role": self.role, "variable": self.variable,
            "formula_bindings": self.formula_bindings, "filter": self.filter, "multiplier": self.multiplier,
            "window": self.window, "thresholds": self.thresholds,
        })
    }

    fn controls(update: &UpdateProductMeterBindingRequest) -> EditControls {
        update.controls
    }

    fn merge(mut self, update: UpdateProductMeterBindingRequest) -> Result<Self> {
        self.formula_bindings = update.formula_bindings.or(self.formula_bindings);
        self.role = update.role.unwrap_or(self.role);
        let is_input = self.role == BindingRole::FormulaInput;
        if !is_input && update.variable.is_some() {
            return Err(Error::field("variable", Code::NotAllowed, "is used by the role FORMULA_INPUT only"));
        }
        self.variable = update.variable.or(self.variable).filter(|_| is_input);
        if is_input && self.variable.is_none() {
            return Err(Error::field("variable", Code::Required, "is required by the role FORMULA_INPUT"));
        }
        self.filter = update.filter.apply(self.filter);
        self.multiplier = update.multiplier.unwrap_or(self.multiplier).normalize();
        self.window = update.window.apply(self.window);
        self.thresholds = update.thresholds.unwrap_or(self.thresholds);
        Ok(self)
    }

    /// Compiles once with the meter of its start, so that no stored version fails later.
    async fn check(&self, scope: &Scope, tx: &mut Tx, span: Option<&mut Span>) -> Result<()> {
        check_formula_bindings(scope, tx, self.formula_bindings.as_ref()).await?;
        let start = span.as_ref().and_then(|span| span.from).unwrap_or_else(|| scope.now());
        let meter = Meter::read(scope, tx.conn(), self.meter_id.0, AsOf::Instant(start)).await?;
        if span.is_some_and(|span| span.is_first) {
            check_product_and_meter(&product::find(scope, tx.conn(), self.product_id).await?, &meter)?;
        }
        compile(self, meter.compile(start)?)?;
        meter::formula::check_bound(scope, tx, &meter, self.window.as_ref()).await
    }

    /// One live PRIMARY binding per product and metric, at every instant.
    async fn check_timeline(&self, scope: &Scope, tx: &mut Tx) -> Result<()> {
        let existing: Option<BindingId> = sqlx::query_scalar(
            "SELECT b.id
             FROM product_meter_binding own
                  JOIN entity_version o ON o.entity_id = own.id AND o.status <> 'draft' AND o.cancelled_at IS NULL
                  JOIN product_meter_binding b
                    ON b.product_id = own.product_id AND b.metric_key = own.metric_key AND b.id <> own.id
                  JOIN entity_version v ON v.entity_id = b.id AND v.status <> 'draft' AND v.cancelled_at IS NULL
             WHERE own.workspace_id = $1 AND own.id = $2
               AND o.snapshot ->> 'role' = 'PRIMARY' AND v.snapshot ->> 'role' = 'PRIMARY'
               AND GREATEST(o.effective_from, v.effective_from, '-infinity') < LEAST(o.effective_to, v.effective_to, 'infinity')
             LIMIT 1",
        )
        .bind(scope.workspace_id)
        .bind(self.id)
        .fetch_optional(tx.conn())
        .await
        .context("looking for the PRIMARY binding")?;
        match existing {
            None => Ok(()),
            Some(id) => Err(Error::conflict("CONFLICT", "the product has a live PRIMARY binding with this metric_key")
                .with("field", "metric_key")
                .with("existing_id", id)),
        }
    }

    async fn touched(scope: &Scope, tx: &mut Tx, id: Uuid) -> Result<Touched> {
        let binding = super::get(scope, tx.conn(), BindingId(id)).await?;
        Ok(Touched::Products(vec![binding.product_id]))
    }

    fn event_members(&self) -> Vec<(&'static str, Value)> {
        vec![("product_id", json!(self.product_id)), ("meter_id", json!(self.meter_id))]
    }

    fn version(mut self, record: VersionRecord) -> BindingVersionSnapshot {
        let (binding_id, meter_version_id) = (self.id, self.meter_version_id);
        self.id = BindingId(record.row.id.0);
        self.status = record.row.status;
        BindingVersionSnapshot {
            binding: self,
            binding_id,
            meter_version_id,
            published_at: record.row.published_at,
            published_by: record.published_by,
            warnings: record.warnings,
        }
    }
}

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

/// Archives a binding from an instant (`effective_at`, default now): later events are refused at the door. One that has
/// ended by then stays as it is.
///
/// # Errors
/// `NotFound`; `Validation` for the parameters; `Rule` for an instant in the past; `Conflict` while a live subscription has
/// the product and needs the binding for its bill.
pub async fn archive(scope: &Scope, tx: &mut Tx, id: BindingId, parameters: &[(String, String)]) -> Result<()> {
    let sent = EditControls { effective_at: super::request::read_end(parameters)?, ..EditControls::default() };
    Binding::lock(scope, tx, id.0).await?;
    let now = scope.now();
    let binding = super::get(scope, tx.conn(), id).await?;
    let at = sent.start(now)?.unwrap_or(now);
    if binding.status == VersionStatus::Archived {
        return Ok(());
    }
    let is_billed = binding.status != VersionStatus::Draft && binding.role != BindingRole::Informational;
    if is_billed && is_needed(scope, tx, &binding).await? {
        return Err(Error::conflict("CONFLICT", "live subscriptions to a plan with the product need this binding"));
    }
    version::end(scope, tx, id.0, at, "archived").await?;
    sqlx::query(
        "UPDATE product_meter_binding SET status = CASE WHEN $3 THEN 'archived' ELSE status END, updated_at = $4
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(at <= now)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("archiving a binding")?;
    recount::request(scope, tx, Some(at), Touched::Products(vec![binding.product_id])).await?;
    tx.catalog_changed(scope.workspace_id);
    let members = [("id", json!(id)), ("product_id", json!(binding.product_id)), ("archived_from", json!(at))];
    let payload = members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    tx.emit(scope, "binding.archived", "binding", id, payload).await
}

/// Whether a live subscription is billed by the binding's product.
async fn is_needed(scope: &Scope, tx: &mut Tx, binding: &Binding) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM subscription_item i JOIN subscription s ON s.id = i.subscription_id
                        WHERE i.workspace_id = $1 AND i.product_id = $2 AND (i.removed_at IS NULL OR i.removed_at > $3)
                          AND s.deleted_at IS NULL AND s.status NOT IN ('CANCELLED', 'EXPIRED'))",
    )
    .bind(scope.workspace_id)
    .bind(binding.product_id)
    .bind(scope.now())
    .fetch_one(tx.conn())
    .await
    .context("looking for subscriptions to the product")
}
