//! Writes of meters: create, edit-as-publish, archive.

use domain::{Error, Instant, JsonMap, LateEventPolicy, MeterId, Result, Scope, ThresholdActionKind, VersionStatus};
use rating::Threshold;
use serde_json::{Value, json};
use sqlx::types::Json;
use store::{StoreError, Tx, on_constraint};

use super::{CreateMeterRequest, Meter, MeterStatus, UpdateMeterRequest};
use crate::version::{self, Entity, NewVersion};

/// Creates a meter: active with version 1. It is compiled here once.
///
/// # Errors
/// `Conflict` with `DUPLICATE` on `key`; `Validation` for paths, filter and thresholds; `Rule` for functions, windows and
/// actions of thresholds that cannot be evaluated.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreateMeterRequest) -> Result<Meter> {
    version::refuse_draft(request.save_as_draft)?;
    refuse_unevaluated(request.thresholds.as_deref().unwrap_or_default())?;
    let mut meter = new_meter(scope, request);
    meter.compile(scope.now())?;
    if let Some(id) = find_by_key(scope, tx, &meter.key).await? {
        return Err(Error::duplicate("key", Some(id.to_string())));
    }
    insert(scope, tx, &meter).await?;
    meter.head_version_id = Some(version::insert(scope, tx, new_version(&meter, None)).await?);
    save(scope, tx, &meter).await?;
    changed(scope, tx, "meter.created", &meter).await?;
    Ok(meter)
}

/// A threshold that is crossed is recorded, and nothing else is done about it yet.
pub(crate) fn refuse_unevaluated(thresholds: &[Threshold]) -> Result<()> {
    let kinds = thresholds.iter().flat_map(|threshold| &threshold.actions).map(|action| action.kind);
    match kinds.into_iter().find(|kind| *kind != ThresholdActionKind::Webhook) {
        Some(kind) => Err(Error::business_rule(format!("the action {kind} of thresholds is not evaluated yet"))),
        None => Ok(()),
    }
}

fn new_meter(scope: &Scope, request: CreateMeterRequest) -> Meter {
    Meter {
        id: MeterId::generate(),
        organization_id: scope.organization_id,
        workspace_id: scope.workspace_id,
        key: request.key,
        name: request.name,
        metric_key: request.metric_key,
        function: request.function,
        value_field: request.value_field,
        unique_by_field: request.unique_by_field,
        unit_label: request.unit_label,
        unit_currency_field: request.unit_currency_field,
        dimensions: request.dimensions.unwrap_or_default(),
        event_schema: request.event_schema.map(Value::Object),
        dedup_key_path: request.dedup_key_path,
        negative_allowed: request.negative_allowed.unwrap_or_default(),
        late_event_policy: request.late_event_policy.unwrap_or(LateEventPolicy::NextPeriod),
        window: request.window.unwrap_or_default(),
        filter: request.filter,
        formula: request.formula,
        thresholds: request.thresholds.unwrap_or_default(),
        status: MeterStatus::Active,
        version: 1,
        head_version_id: None,
        created_at: scope.now(),
        updated_at: scope.now(),
        archived_at: None,
    }
}

/// The first version holds since ever, so that backfilled usage finds it.
fn new_version(meter: &Meter, effective_from: Option<Instant>) -> NewVersion {
    NewVersion {
        entity: Entity::Meter,
        entity_id: meter.id.0,
        version: meter.version,
        status: VersionStatus::Active,
        effective_from,
        effective_to: None,
        snapshot: meter.snapshot(),
    }
}

/// Changes a meter by publishing its next version at once. Events are rated by the version of their timestamp, so what
/// was counted stays as it is.
///
/// # Errors
/// `NotFound`, `VersionConflict`, `Conflict` for an archived meter, and as [`create`].
pub async fn update(scope: &Scope, tx: &mut Tx, id: MeterId, request: UpdateMeterRequest) -> Result<Meter> {
    let current = super::lock(scope, tx, id).await?;
    request.controls.check(current.version, false, scope.now())?;
    if current.status == MeterStatus::Archived {
        return Err(Error::conflict("CONFLICT", "an archived meter cannot be changed"));
    }
    refuse_unevaluated(request.thresholds.as_deref().unwrap_or_default())?;
    let mut meter = merged(current, request);
    meter.compile(scope.now())?;
    meter.updated_at = scope.now();
    version::supersede(scope, tx, id.0, meter.updated_at).await?;
    meter.version += 1;
    let next = new_version(&meter, Some(meter.updated_at));
    meter.head_version_id = Some(version::insert(scope, tx, next).await?);
    save(scope, tx, &meter).await?;
    changed(scope, tx, "meter.updated", &meter).await?;
    Ok(meter)
}

fn merged(mut meter: Meter, request: UpdateMeterRequest) -> Meter {
    fn set<T>(target: &mut T, sent: Option<T>) {
        if let Some(value) = sent {
            *target = value;
        }
    }
    set(&mut meter.name, request.name);
    set(&mut meter.function, request.function);
    meter.value_field = request.value_field.apply(meter.value_field);
    meter.unique_by_field = request.unique_by_field.apply(meter.unique_by_field);
    meter.unit_label = request.unit_label.apply(meter.unit_label);
    meter.unit_currency_field = request.unit_currency_field.apply(meter.unit_currency_field);
    set(&mut meter.dimensions, request.dimensions);
    meter.event_schema = match request.event_schema {
        domain::Patch::Keep => meter.event_schema,
        domain::Patch::Clear => None,
        domain::Patch::Set(schema) => Some(Value::Object(schema)),
    };
    meter.dedup_key_path = request.dedup_key_path.apply(meter.dedup_key_path);
    set(&mut meter.negative_allowed, request.negative_allowed);
    set(&mut meter.late_event_policy, request.late_event_policy);
    set(&mut meter.window, request.window);
    meter.filter = request.filter.apply(meter.filter);
    meter.formula = request.formula.apply(meter.formula);
    set(&mut meter.thresholds, request.thresholds);
    meter
}

/// Withdraws a meter; a repeat does nothing.
///
/// # Errors
/// `NotFound`, `Conflict` while a live binding exists.
pub async fn archive(scope: &Scope, tx: &mut Tx, id: MeterId) -> Result<()> {
    let mut meter = super::lock(scope, tx, id).await?;
    if meter.status == MeterStatus::Archived {
        return Ok(());
    }
    let bound: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM product_meter_binding
                        WHERE workspace_id = $1 AND meter_id = $2 AND status IN ('active', 'scheduled'))",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(tx.conn())
    .await
    .context("looking for bindings")?;
    if bound {
        return Err(Error::conflict("CONFLICT", "a live binding uses this meter"));
    }
    version::end(scope, tx, id.0, scope.now(), "archived").await?;
    meter.status = MeterStatus::Archived;
    meter.archived_at = Some(scope.now());
    meter.updated_at = scope.now();
    save(scope, tx, &meter).await?;
    changed(scope, tx, "meter.archived", &meter).await
}

async fn find_by_key(scope: &Scope, tx: &mut Tx, key: &str) -> Result<Option<MeterId>> {
    sqlx::query_scalar("SELECT id FROM meter WHERE workspace_id = $1 AND key = $2")
        .bind(scope.workspace_id)
        .bind(key)
        .fetch_optional(tx.conn())
        .await
        .context("looking for a meter by key")
}

async fn changed(scope: &Scope, tx: &mut Tx, event: &str, meter: &Meter) -> Result<()> {
    tx.catalog_changed(scope.workspace_id);
    let mut payload = JsonMap::new();
    payload.insert("id".into(), json!(meter.id));
    payload.insert("key".into(), json!(meter.key));
    payload.insert("version".into(), json!(meter.version));
    tx.emit(scope, event, "meter", meter.id, payload).await
}

async fn insert(scope: &Scope, tx: &mut Tx, meter: &Meter) -> Result<()> {
    let inserted = sqlx::query(
        "INSERT INTO meter (id, organization_id, workspace_id, key, name, metric_key, function, \"window\", status, version,
                            created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
    )
    .bind(meter.id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(&meter.key)
    .bind(&meter.name)
    .bind(&meter.metric_key)
    .bind(meter.function)
    .bind(Json(&meter.window))
    .bind(meter.status)
    .bind(meter.version)
    .bind(meter.created_at)
    .execute(tx.conn())
    .await;
    on_constraint(inserted, "creating a meter", |constraint| {
        (constraint == "meter_workspace_id_key_key").then(|| Error::duplicate("key", None))
    })?;
    save(scope, tx, meter).await
}

async fn save(scope: &Scope, tx: &mut Tx, meter: &Meter) -> Result<()> {
    sqlx::query(
        "UPDATE meter SET name = $3, function = $4, value_field = $5, unique_by_field = $6, unit_label = $7,
             unit_currency_field = $8, dimensions = $9, event_schema = $10, dedup_key_path = $11, negative_allowed = $12,
             late_event_policy = $13, \"window\" = $14, filter = $15, formula = $16, thresholds = $17, status = $18,
             version = $19, head_version_id = $20, updated_at = $21, archived_at = $22
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(meter.id)
    .bind(&meter.name)
    .bind(meter.function)
    .bind(&meter.value_field)
    .bind(&meter.unique_by_field)
    .bind(&meter.unit_label)
    .bind(&meter.unit_currency_field)
    .bind(&meter.dimensions)
    .bind(&meter.event_schema)
    .bind(&meter.dedup_key_path)
    .bind(meter.negative_allowed)
    .bind(meter.late_event_policy)
    .bind(Json(&meter.window))
    .bind(meter.filter.as_ref().map(Json))
    .bind(meter.formula.as_ref().map(Json))
    .bind(Json(&meter.thresholds))
    .bind(meter.status)
    .bind(meter.version)
    .bind(meter.head_version_id)
    .bind(meter.updated_at)
    .bind(meter.archived_at)
    .execute(tx.conn())
    .await
    .context("saving a meter")?;
    Ok(())
}
