//! Attaches, changes and detaches products of a plan. On a published plan this takes effect with the next publish.

use domain::{Error, OveragePolicy, PlanId, PlanProductId, PoolScope, ProductId, Quantity, Result, Scope};
use store::{StoreError, Tx, on_constraint};

use super::request::{AllowanceEdit, PRODUCTS_MAX};
use super::{AddProductRequest, Plan, PlanProduct, PlanStatus, UpdatePlanProductRequest};
use crate::product::{self, ProductStatus};

/// Attaches a product.
///
/// # Errors
/// `NotFound` for plan or product; `Conflict` when it is attached already or the plan is archived; `Rule` for an archived
/// product, too many products, or terms that are not evaluated yet.
pub async fn add_product(scope: &Scope, tx: &mut Tx, plan: PlanId, request: AddProductRequest) -> Result<PlanProduct> {
    let plan = editable(scope, tx, plan).await?;
    let attached = super::attachments(scope, tx.conn(), plan.id).await?;
    if let Some(existing) = attached.iter().find(|attachment| attachment.product_id == request.product_id) {
        return Err(already_attached().with("existing_id", existing.id));
    }
    if attached.len() >= PRODUCTS_MAX {
        return Err(Error::rule("LIMIT_EXCEEDED", format!("a plan has at most {PRODUCTS_MAX} products")));
    }
    attach(scope, tx, plan.id, request).await
}

/// Attaches a product to a plan that the caller has locked.
pub(super) async fn attach(
    scope: &Scope,
    tx: &mut Tx,
    plan: PlanId,
    request: AddProductRequest,
) -> Result<PlanProduct> {
    let product = product::find(scope, tx.conn(), request.product_id).await?;
    if product.status == ProductStatus::Archived {
        return Err(Error::business_rule(format!("product {} is archived", product.id)));
    }
    let now = scope.now();
    let mut attachment = PlanProduct {
        id: PlanProductId::generate(),
        plan_id: plan,
        product_id: product.id,
        included_quantity: Quantity::ZERO,
        included_quantity_per_unit: false,
        rollover_enabled: false,
        rollover_max_quantity: None,
        rollover_expiry_periods: None,
        overage_policy: OveragePolicy::Charge,
        pool_scope: PoolScope::Subscription,
        sort_order: 0,
        created_at: now,
        updated_at: now,
    };
    apply(&mut attachment, request.allowance);
    insert(scope, tx, &attachment).await?;
    tx.catalog_changed(scope.workspace_id);
    Ok(attachment)
}

/// Changes the allowance of an attached product.
///
/// # Errors
/// `NotFound`, `Conflict` for an archived plan; `Rule` for terms that are not evaluated yet.
pub async fn update_product(
    scope: &Scope,
    tx: &mut Tx,
    plan: PlanId,
    product: ProductId,
    request: UpdatePlanProductRequest,
) -> Result<PlanProduct> {
    let plan = editable(scope, tx, plan).await?;
    let attached = super::attachments(scope, tx.conn(), plan.id).await?;
    let found = attached.into_iter().find(|attachment| attachment.product_id == product);
    let mut attachment = found.ok_or_else(|| Error::not_found("plan_product", product))?;
    apply(&mut attachment, request.allowance);
    attachment.updated_at = scope.now();
    save(scope, tx, &attachment).await?;
    tx.catalog_changed(scope.workspace_id);
    Ok(attachment)
}

/// Detaches a product.
///
/// # Errors
/// `NotFound`, `Conflict` for an archived plan.
pub async fn remove_product(scope: &Scope, tx: &mut Tx, plan: PlanId, product: ProductId) -> Result<()> {
    let plan = editable(scope, tx, plan).await?;
    let removed = sqlx::query("DELETE FROM plan_product WHERE workspace_id = $1 AND plan_id = $2 AND product_id = $3")
        .bind(scope.workspace_id)
        .bind(plan.id)
        .bind(product)
        .execute(tx.conn())
        .await
        .context("detaching a product")?;
    if removed.rows_affected() == 0 {
        return Err(Error::not_found("plan_product", product));
    }
    tx.catalog_changed(scope.workspace_id);
    Ok(())
}

/// The plan, locked, unless it is archived.
async fn editable(scope: &Scope, tx: &mut Tx, id: PlanId) -> Result<Plan> {
    let plan = super::lock(scope, tx, id).await?;
    match plan.status {
        PlanStatus::Archived => Err(Error::conflict("CONFLICT", "an archived plan cannot be changed")),
        PlanStatus::Draft | PlanStatus::Published | PlanStatus::Deprecated => Ok(plan),
    }
}

fn apply(attachment: &mut PlanProduct, edit: AllowanceEdit) {
    fn set<T>(target: &mut T, sent: Option<T>) {
        if let Some(value) = sent {
            *target = value;
        }
    }
    // Both numbers were read within the range of i32.
    let narrow = |number: i64| i32::try_from(number).unwrap_or(i32::MAX);
    set(&mut attachment.included_quantity, edit.included_quantity);
    set(&mut attachment.included_quantity_per_unit, edit.included_quantity_per_unit);
    set(&mut attachment.rollover_enabled, edit.rollover_enabled);
    attachment.rollover_max_quantity = edit.rollover_max_quantity.apply(attachment.rollover_max_quantity);
    let periods = attachment.rollover_expiry_periods.map(i64::from);
    attachment.rollover_expiry_periods = edit.rollover_expiry_periods.apply(periods).map(narrow);
    set(&mut attachment.overage_policy, edit.overage_policy);
    set(&mut attachment.pool_scope, edit.pool_scope);
    set(&mut attachment.sort_order, edit.sort_order.map(narrow));
}

fn already_attached() -> Error {
    Error::conflict("CONFLICT", "the product is already part of the plan").with("field", "product_id")
}

async fn insert(scope: &Scope, tx: &mut Tx, attachment: &PlanProduct) -> Result<()> {
    let inserted = sqlx::query(
        "INSERT INTO plan_product (id, workspace_id, plan_id, product_id, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $5)",
    )
    .bind(attachment.id)
    .bind(scope.workspace_id)
    .bind(attachment.plan_id)
    .bind(attachment.product_id)
    .bind(attachment.created_at)
    .execute(tx.conn())
    .await;
    on_constraint(inserted, "attaching a product", |constraint| {
        (constraint == "plan_product_plan_id_product_id_key").then(already_attached)
    })?;
    save(scope, tx, attachment).await
}

async fn save(scope: &Scope, tx: &mut Tx, attachment: &PlanProduct) -> Result<()> {
    sqlx::query(
        "UPDATE plan_product SET included_quantity = $3, included_quantity_per_unit = $4, rollover_enabled = $5,
             rollover_max_quantity = $6, rollover_expiry_periods = $7, overage_policy = $8, pool_scope = $9, sort_order = $10,
             updated_at = $11
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(attachment.id)
    .bind(attachment.included_quantity)
    .bind(attachment.included_quantity_per_unit)
    .bind(attachment.rollover_enabled)
    .bind(attachment.rollover_max_quantity)
    .bind(attachment.rollover_expiry_periods)
    .bind(attachment.overage_policy)
    .bind(attachment.pool_scope)
    .bind(attachment.sort_order)
    .bind(attachment.updated_at)
    .execute(tx.conn())
    .await
    .context("saving the allowance of a product")?;
    Ok(())
}
