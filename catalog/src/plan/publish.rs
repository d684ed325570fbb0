//! Publishing: freezes a plan into its next version.

use std::collections::BTreeMap;

use domain::{Error, JsonMap, PlanId, ProductId, Result, Scope, VersionId};
use serde_json::json;
use store::Tx;

use super::snapshot::Contents;
use super::{Plan, PlanStatus, PlanVersion, PlanVersionSnapshot, PublishPlanRequest};
use crate::product::ProductStatus;
use crate::version::{self, Entity, NewVersion, Place, VersionRef};
use crate::{binding, price, product};

/// Publishes a plan: the first time as version 1, later as the next one.
///
/// # Errors
/// `NotFound`; `VersionConflict`; `Conflict` for an archived plan; `Rule` when it has no product, a product is not
/// published, has no active price or misses one that it requires, for a wrong pin, or for a start other than now.
pub async fn publish(scope: &Scope, tx: &mut Tx, id: PlanId, request: PublishPlanRequest) -> Result<PlanVersion> {
    let mut plan = super::lock(scope, tx, id).await?;
    version::check_expected(request.expected_version, plan.version)?;
    if plan.status == PlanStatus::Archived {
        return Err(Error::invalid_transition("plan", id, "archived", "published", &[]));
    }
    version::check_effective_now(request.effective_at, scope.now())?;
    let version = next_version(scope, tx, &mut plan, request.product_version_pins.unwrap_or_default()).await?;
    plan.status = PlanStatus::Published;
    plan.deprecated_at = None;
    super::write::save(scope, tx, &plan).await?;
    super::write::changed(scope, tx, "plan.published", &plan).await?;
    super::get_version(scope, tx.conn(), id, VersionRef::Id(version)).await
}

/// Takes the snapshot and makes it the head of the plan; the caller saves the plan.
pub(super) async fn next_version(
    scope: &Scope,
    tx: &mut Tx,
    plan: &mut Plan,
    pins: BTreeMap<ProductId, VersionId>,
) -> Result<VersionId> {
    let contents = contents(scope, tx, plan.id, pins).await?;
    check(&contents)?;
    let (products, pins) = contents.freeze()?;
    let snapshot = PlanVersionSnapshot {
        name: plan.name.clone(),
        description: plan.description.clone(),
        public_description: plan.public_description.clone(),
        products,
        pins,
    };
    let snapshot =
        serde_json::to_value(&snapshot).map_err(|error| Error::internal("writing the snapshot of a plan", error))?;
    let now = scope.now();
    plan.version += 1;
    let new = NewVersion {
        entity: Entity::Plan,
        entity_id: plan.id.0,
        version: plan.version,
        place: Place::published(Some(now), None, now),
        snapshot,
    };
    let id = version::insert(scope, tx, new).await?;
    version::settle(scope, tx, plan.id.0, now).await?;
    plan.head_version_id = Some(id);
    plan.published_at = Some(now);
    plan.published_by = scope.api_key_id().map(|key| key.0);
    plan.updated_at = now;
    Ok(id)
}

async fn contents(
    scope: &Scope,
    tx: &mut Tx,
    plan: PlanId,
    chosen: BTreeMap<ProductId, VersionId>,
) -> Result<Contents> {
    let attached = super::attachments(scope, tx.conn(), plan).await?;
    let ids: Vec<ProductId> = attached.iter().map(|attachment| attachment.product_id).collect();
    check_pins(scope, tx, &ids, &chosen).await?;
    let at = scope.now();
    Ok(Contents {
        products: product::get_many(scope, tx.conn(), &ids).await?,
        prices: price::offered(scope, tx.conn(), plan, &ids, at).await?,
        bindings: binding::live_of(scope, tx.conn(), &ids).await?,
        attached,
        chosen,
        at,
    })
}

/// A pin must name a published version of an attached product.
async fn check_pins(
    scope: &Scope,
    tx: &mut Tx,
    attached: &[ProductId],
    chosen: &BTreeMap<ProductId, VersionId>,
) -> Result<()> {
    if chosen.is_empty() {
        return Ok(());
    }
    let versions: Vec<VersionId> = chosen.values().copied().collect();
    let owners = version::owners(scope, tx.conn(), Entity::Product, &versions).await?;
    for (product, version) in chosen {
        if !attached.contains(product) {
            return Err(Error::business_rule(format!("product {product} is pinned but not part of the plan")));
        }
        if owners.get(version) != Some(&product.0) {
            return Err(Error::business_rule(format!("{version} is no published version of product {product}")));
        }
    }
    Ok(())
}

fn check(contents: &Contents) -> Result<()> {
    if contents.attached.is_empty() {
        return Err(Error::business_rule("a plan without a product cannot be published"));
    }
    for attachment in &contents.attached {
        let id = attachment.product_id;
        let refuse = |reason: &str| Err(Error::business_rule(format!("product {id} {reason}")).with("product_id", id));
        let Some(product) = contents.product(id).filter(|product| product.status == ProductStatus::Published) else {
            return refuse("is not published");
        };
        if contents.prices_of(id).next().is_none() {
            return refuse("has no active price");
        }
        if let Some(missing) = product.requires_product_ids.iter().find(|needed| contents.product(**needed).is_none()) {
            return refuse(&format!("requires product {missing}, which is not part of the plan"));
        }
    }
    Ok(())
}

/// Members of a plan's events.
pub(super) fn payload(plan: &Plan) -> JsonMap {
    let members = [
        ("id", json!(plan.id)),
        ("external_id", json!(plan.external_id)),
        ("status", json!(plan.status)),
        ("version", json!(plan.version)),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
