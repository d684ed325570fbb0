//! Writes of plans: create, edit-as-publish, transitions, delete.

use domain::input::merge_metadata;
use domain::{Error, JsonMap, PlanId, Result, Scope};
use sqlx::types::Json;
use store::{StoreError, Tx, on_constraint};

use super::{CreatePlanRequest, Plan, PlanStatus, UpdatePlanRequest};
use crate::texts::check_custom_fields;
use crate::version;

/// Creates a plan in `draft`, with its first products.
///
/// # Errors
/// `Conflict` with `DUPLICATE` on `external_id`; `NotFound` for a product; `Rule` for custom fields.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreatePlanRequest) -> Result<Plan> {
    check_custom_fields(request.custom_fields.as_ref())?;
    let now = scope.now();
    let plan = Plan {
        id: PlanId::generate(),
        organization_id: scope.organization_id,
        external_id: request.external_id,
        name: request.name,
        description: request.description,
        public_description: request.public_description,
        status: PlanStatus::Draft,
        version: 0,
        head_version_id: None,
        requires_continuous_coverage: request.requires_continuous_coverage.unwrap_or_default(),
        published_at: None,
        published_by: None,
        deprecated_at: None,
        archived_at: None,
        deleted_at: None,
        custom_fields: JsonMap::new(),
        metadata: request.metadata.unwrap_or_default(),
        translations: request.translations.unwrap_or_default(),
        created_at: now,
        updated_at: now,
    };
    check_external_id(scope, tx, &plan).await?;
    insert(scope, tx, &plan).await?;
    for product in request.products.unwrap_or_default() {
        super::attach::attach(scope, tx, plan.id, product).await?;
    }
    changed(scope, tx, "plan.created", &plan).await?;
    Ok(plan)
}

/// Changes a plan: a draft in place; a published one by publishing its next version, unless only `status` is sent.
///
/// # Errors
/// `NotFound`, `VersionConflict`, `Conflict` with `INVALID_TRANSITION` or `DUPLICATE`, and as publishing.
pub async fn update(scope: &Scope, tx: &mut Tx, id: PlanId, request: UpdatePlanRequest) -> Result<Plan> {
    check_custom_fields(request.custom_fields.as_ref())?;
    let mut plan = super::lock(scope, tx, id).await?;
    let is_draft = plan.status == PlanStatus::Draft;
    request.controls.check(plan.version, is_draft, scope.now())?;
    if plan.status == PlanStatus::Archived && !request.is_transition_only {
        return Err(Error::conflict("CONFLICT", "an archived plan cannot be changed"));
    }
    let status = request.status.filter(|status| *status != plan.status);
    let (transition_only, pins) = (request.is_transition_only, request.product_version_pins.clone());
    merge(&mut plan, request)?;
    plan.updated_at = scope.now();
    check_external_id(scope, tx, &plan).await?;
    if !is_draft && !transition_only {
        super::publish::next_version(scope, tx, &mut plan, pins.unwrap_or_default()).await?;
    }
    if let Some(to) = status {
        transition(scope, &mut plan, to)?;
    }
    save(scope, tx, &plan).await?;
    changed(scope, tx, "plan.updated", &plan).await?;
    Ok(plan)
}

fn merge(plan: &mut Plan, request: UpdatePlanRequest) -> Result<()> {
    plan.name = request.name.unwrap_or_else(|| std::mem::take(&mut plan.name));
    plan.description = request.description.apply(plan.description.take());
    plan.public_description = request.public_description.apply(plan.public_description.take());
    plan.external_id = request.external_id.apply(plan.external_id.take());
    if let Some(flag) = request.requires_continuous_coverage {
        plan.requires_continuous_coverage = flag;
    }
    if let Some(translations) = request.translations {
        plan.translations = translations;
    }
    merge_metadata(&mut plan.metadata, request.metadata.unwrap_or_default())
}

/// published → deprecated → archived, published → archived, deprecated → published (rule 2); the first publish has its
/// own operation.
fn transition(scope: &Scope, plan: &mut Plan, to: PlanStatus) -> Result<()> {
    use PlanStatus::{Archived, Deprecated, Draft, Published};
    let allowed: &[PlanStatus] = match plan.status {
        Draft | Archived => &[],
        Published => &[Deprecated, Archived],
        Deprecated => &[Published, Archived],
    };
    if !allowed.contains(&to) {
        let words: Vec<_> = allowed.iter().map(|status| status.as_str()).collect();
        return Err(Error::invalid_transition("plan", plan.id, plan.status.as_str(), to.as_str(), &words));
    }
    match to {
        Deprecated => plan.deprecated_at = Some(scope.now()),
        Archived => plan.archived_at = Some(scope.now()),
        Published | Draft => plan.deprecated_at = None,
    }
    plan.status = to;
    Ok(())
}

/// Deletes a draft.
///
/// # Errors
/// `NotFound`, `Conflict` for a plan that was published or that prices name.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: PlanId) -> Result<()> {
    let plan = super::lock(scope, tx, id).await?;
    if plan.status != PlanStatus::Draft {
        return Err(Error::conflict("CONFLICT", format!("only a draft can be deleted, this plan is {}", plan.status)));
    }
    let priced: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM price WHERE workspace_id = $1 AND plan_id = $2 AND deleted_at IS NULL)",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(tx.conn())
    .await
    .context("looking for prices of a plan")?;
    if priced {
        return Err(Error::conflict("CONFLICT", "prices refer to this plan"));
    }
    sqlx::query("UPDATE plan SET deleted_at = $3, updated_at = $3 WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("deleting a plan")?;
    version::end(scope, tx, id.0, scope.now(), "deleted").await?;
    changed(scope, tx, "plan.deleted", &plan).await
}

pub(super) async fn changed(scope: &Scope, tx: &mut Tx, event: &str, plan: &Plan) -> Result<()> {
    tx.catalog_changed(scope.workspace_id);
    tx.emit(scope, event, "plan", plan.id, super::publish::payload(plan)).await
}

async fn check_external_id(scope: &Scope, tx: &mut Tx, plan: &Plan) -> Result<()> {
    let existing: Option<PlanId> = sqlx::query_scalar(
        "SELECT id FROM plan WHERE workspace_id = $1 AND external_id = $2 AND id <> $3 AND deleted_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(&plan.external_id)
    .bind(plan.id)
    .fetch_optional(tx.conn())
    .await
    .context("looking for a plan by external id")?;
    existing.map_or(Ok(()), |id| Err(Error::duplicate("external_id", Some(id.to_string()))))
}

async fn insert(scope: &Scope, tx: &mut Tx, plan: &Plan) -> Result<()> {
    let inserted = sqlx::query(
        "INSERT INTO plan (id, organization_id, workspace_id, external_id, name, status, version, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
    )
    .bind(plan.id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(&plan.external_id)
    .bind(&plan.name)
    .bind(plan.status)
    .bind(plan.version)
    .bind(plan.created_at)
    .execute(tx.conn())
    .await;
    on_constraint(inserted, "creating a plan", duplicate)?;
    save(scope, tx, plan).await
}

pub(super) async fn save(scope: &Scope, tx: &mut Tx, plan: &Plan) -> Result<()> {
    let saved = sqlx::query(
        "UPDATE plan SET external_id = $3, name = $4, description = $5, public_description = $6, status = $7, version = $8,
             head_version_id = $9, requires_continuous_coverage = $10, translations = $11, custom_fields = $12,
             metadata = $13, published_at = $14, published_by = $15, deprecated_at = $16, archived_at = $17,
             updated_at = $18
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(plan.id)
    .bind(&plan.external_id)
    .bind(&plan.name)
    .bind(&plan.description)
    .bind(&plan.public_description)
    .bind(plan.status)
    .bind(plan.version)
    .bind(plan.head_version_id)
    .bind(plan.requires_continuous_coverage)
    .bind(Json(&plan.translations))
    .bind(Json(&plan.custom_fields))
    .bind(Json(&plan.metadata))
    .bind(plan.published_at)
    .bind(plan.published_by)
    .bind(plan.deprecated_at)
    .bind(plan.archived_at)
    .bind(plan.updated_at)
    .execute(tx.conn())
    .await;
    on_constraint(saved, "saving a plan", duplicate).map(drop)
}

fn duplicate(constraint: &str) -> Option<Error> {
    (constraint == "plan_external_id").then(|| Error::duplicate("external_id", None))
}
