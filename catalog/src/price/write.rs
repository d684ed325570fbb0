//! Creates prices.

use domain::error::FieldErrorCode as Code;
use domain::{
    Error, FieldError, Instant, JsonMap, PriceId, PricingModel, ProductType, Result, Scope, VersionId, VersionStatus,
};
use rating::{CompiledPrice, PriceDefinition};
use rust_decimal::Decimal;
use serde_json::json;
use sqlx::types::Json;
use store::{StoreError, Tx};

use super::{CreatePriceRequest, Price, PriceKind, PriceStatus, PriceTier};
use crate::product::{self, Product, ProductStatus};
use crate::version::{self, Entity, NewVersion};

/// Creates a price: active with version 1, which is scheduled when `effective_from` lies ahead.
///
/// # Errors
/// `NotFound` for product, plan or customer; `Validation` for tiers and for a `price_key` that does not fit the product;
/// `Conflict` with `DUPLICATE` when the same price exists in an overlapping window; `Rule` for formulas, archived
/// products, and a start in the past when the product is in use.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreatePriceRequest) -> Result<Price> {
    refuse_formulas(&request)?;
    version::refuse_draft(request.save_as_draft)?;
    // Locked: two calls cannot both find no duplicate.
    let product = product::lock(scope, tx, request.product_id).await?;
    check_price_key(&product, &request)?;
    let mut price = new_price(scope, &product, request)?;
    compile(&product, &price)?;
    check_references(scope, tx, &price).await?;
    if product.status == ProductStatus::Archived {
        return Err(Error::business_rule("the product is archived"));
    }
    begin_from_now(scope, tx, &mut price).await?;
    check_duplicate(scope, tx, &price).await?;
    insert(scope, tx, &price).await?;
    let version_id = version::insert(scope, tx, first_version(&price, scope.now())).await?;
    set_head(tx, price.id, version_id).await?;
    price.head_version_id = Some(version_id);
    tx.catalog_changed(scope.workspace_id);
    let mut payload = JsonMap::new();
    payload.insert("id".into(), json!(price.id));
    payload.insert("product_id".into(), json!(price.product_id));
    tx.emit(scope, "price.created", "price", price.id, payload).await?;
    Ok(price)
}

fn refuse_formulas(request: &CreatePriceRequest) -> Result<()> {
    if request.formula_id.is_some() {
        return Err(Error::business_rule("price formulas are not supported yet"));
    }
    Ok(())
}

fn check_price_key(product: &Product, request: &CreatePriceRequest) -> Result<()> {
    match (product.is_keyed(), &request.price_key) {
        (true, None) => Err(Error::field("price_key", Code::Required, "is required: the product is keyed")),
        (false, Some(_)) => {
            Err(Error::field("price_key", Code::NotAllowed, "is not allowed: the product has no price_key_label"))
        }
        _ => Ok(()),
    }
}

fn new_price(scope: &Scope, product: &Product, request: CreatePriceRequest) -> Result<Price> {
    let now = scope.now();
    let tiers = tiers(product, &request)?;
    let default_kind = if request.customer_id.is_some() { PriceKind::CustomerOverride } else { PriceKind::Base };
    let count = request.billing_interval_unit.map(|_| request.billing_interval_count.unwrap_or(1));
    Ok(Price {
        id: PriceId::generate(),
        organization_id: scope.organization_id,
        product_id: product.id,
        plan_id: request.plan_id,
        plan_version: None,
        customer_id: request.customer_id,
        country_code: request.country_code,
        currency: request.currency,
        price_key: request.price_key,
        kind: request.kind.unwrap_or(default_kind),
        list_price: request.list_price,
        display_name: request.display_name,
        status: PriceStatus::Active,
        tiers,
        formula_id: None,
        custom_dimensions: request.custom_dimensions.unwrap_or_default(),
        billing_interval_unit: request.billing_interval_unit,
        billing_interval_count: count,
        effective_from: request.effective_from,
        effective_to: request.effective_to,
        valid_from: request.valid_from,
        valid_to: request.valid_to,
        version: 1,
        head_version_id: None,
        requires_continuous_coverage: request.requires_continuous_coverage.unwrap_or_default(),
        metadata: request.metadata.unwrap_or_default(),
        created_at: now,
        updated_at: now,
        archived_at: None,
        deleted_at: None,
    })
}

/// The steps as sent, with their defaults; without any, one open step made of `list_price`.
fn tiers(product: &Product, request: &CreatePriceRequest) -> Result<Vec<PriceTier>> {
    if let Some(sent) = &request.tiers {
        let numbered = sent.iter().zip(1_u32..).map(|(tier, position)| PriceTier {
            tier_order: tier.tier_order.unwrap_or(position),
            up_to: tier.up_to,
            unit_amount: tier.unit_amount.unwrap_or_default(),
            flat_amount: tier.flat_amount.unwrap_or_default(),
            rate_expression: tier.rate_expression.clone(),
        });
        return Ok(numbered.collect());
    }
    if product.pricing_model == PricingModel::Package {
        // Under PACKAGE a unit amount is a size, so one amount alone says nothing about it.
        return Err(Error::field("tiers", Code::Required, "is required: a PACKAGE price needs a size and an amount"));
    }
    let amount = request.list_price.unwrap_or_default();
    let (unit_amount, flat_amount) = match product.r#type {
        ProductType::FixedCharge => (Decimal::ZERO, amount),
        ProductType::Seat | ProductType::Usage => (amount, Decimal::ZERO),
    };
    Ok(vec![PriceTier { tier_order: 1, up_to: None, unit_amount, flat_amount, rate_expression: None }])
}

/// Compiles once, so that no stored version fails later.
fn compile(product: &Product, price: &Price) -> Result<()> {
    let definition = PriceDefinition {
        price_id: price.id,
        version_id: VersionId::generate(),
        product_id: price.product_id,
        price_key: price.price_key.clone(),
        currency: price.currency,
        model: product.pricing_model,
        tiers: price.tiers.iter().map(rating::Tier::from).collect(),
        list_price: price.list_price,
        formula: None,
    };
    Ok(CompiledPrice::compile(definition).map(drop)?)
}

async fn check_references(scope: &Scope, tx: &mut Tx, price: &Price) -> Result<()> {
    let (plan, customer): (bool, bool) = sqlx::query_as(
        "SELECT $2::uuid IS NULL OR EXISTS (SELECT FROM plan WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL),
                $3::uuid IS NULL OR EXISTS (SELECT FROM customer WHERE workspace_id = $1 AND id = $3 AND deleted_at IS NULL)",
    )
    .bind(scope.workspace_id)
    .bind(price.plan_id)
    .bind(price.customer_id)
    .fetch_one(tx.conn())
    .await
    .context("looking for plan and customer")?;
    match (price.plan_id.filter(|_| !plan), price.customer_id.filter(|_| !customer)) {
        (Some(missing), _) => Err(Error::not_found("plan", missing)),
        (_, Some(missing)) => Err(Error::not_found("customer", missing)),
        _ => Ok(()),
    }
}

/// A further price of a product that subscriptions have begins now or later. In the past it would apply to usage that is
/// counted by another price, and open windows cannot be rated anew yet (rule B6): the bill would depend on what came first.
async fn begin_from_now(scope: &Scope, tx: &mut Tx, price: &mut Price) -> Result<()> {
    let start = [price.effective_from, price.valid_from].into_iter().flatten().max();
    if start.is_some_and(|start| start >= scope.now()) || !is_in_use(scope, tx, price).await? {
        return Ok(());
    }
    if start.is_some() {
        return Err(Error::business_rule("a further price of a product that is in use cannot begin in the past"));
    }
    price.effective_from = Some(price.created_at);
    Ok(())
}

/// Whether the product has a price in this currency already, and a subscription has the product.
async fn is_in_use(scope: &Scope, tx: &mut Tx, price: &Price) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM price WHERE workspace_id = $1 AND product_id = $2 AND currency = $3
                           AND status = 'active' AND deleted_at IS NULL)
            AND EXISTS (SELECT FROM subscription_item WHERE product_id = $2)",
    )
    .bind(scope.workspace_id)
    .bind(price.product_id)
    .bind(price.currency.as_str())
    .fetch_one(tx.conn())
    .await
    .context("looking for subscriptions to the product")
}

/// Another price that would be chosen for exactly the same calls at some instant.
async fn check_duplicate(scope: &Scope, tx: &mut Tx, price: &Price) -> Result<()> {
    let existing: Option<PriceId> = sqlx::query_scalar(
        "SELECT id FROM price
         WHERE workspace_id = $1 AND product_id = $2 AND status <> 'archived' AND deleted_at IS NULL
           AND plan_id IS NOT DISTINCT FROM $3 AND plan_version IS NOT DISTINCT FROM $4
           AND customer_id IS NOT DISTINCT FROM $5 AND country_code IS NOT DISTINCT FROM $6
           AND price_key IS NOT DISTINCT FROM $7 AND currency = $8 AND custom_dimensions = $9
           AND billing_interval_unit IS NOT DISTINCT FROM $10 AND billing_interval_count IS NOT DISTINCT FROM $11
           AND tstzrange(NULLIF(GREATEST(COALESCE(effective_from, '-infinity'), COALESCE(valid_from, '-infinity')), '-infinity'),
                         LEAST(effective_to, valid_to))
               && tstzrange($12, $13)
         LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(price.product_id)
    .bind(price.plan_id)
    .bind(price.plan_version)
    .bind(price.customer_id)
    .bind(&price.country_code)
    .bind(&price.price_key)
    .bind(price.currency.as_str())
    .bind(Json(&price.custom_dimensions))
    .bind(price.billing_interval_unit)
    .bind(price.billing_interval_count)
    .bind([price.effective_from, price.valid_from].into_iter().flatten().max())
    .bind(window_end(price)?)
    .fetch_optional(tx.conn())
    .await
    .context("looking for the same price")?;
    match existing {
        None => Ok(()),
        Some(id) => Err(Error::conflict("DUPLICATE", "the same price exists in an overlapping window")
            .with("field", "product_id")
            .with("existing_id", id)),
    }
}

/// End of the span in which the price can be chosen; a span without an instant is refused.
fn window_end(price: &Price) -> Result<Option<Instant>> {
    let start = [price.effective_from, price.valid_from].into_iter().flatten().max();
    let end = [price.effective_to, price.valid_to].into_iter().flatten().min();
    if start.zip(end).is_some_and(|(start, end)| end <= start) {
        let message = "effective and valid window have no instant in common".to_owned();
        let field = if price.effective_to == end { "effective_to" } else { "valid_to" };
        return Err(Error::Validation(vec![FieldError { field: field.into(), code: Code::OutOfRange, message }]));
    }
    Ok(end)
}

fn first_version(price: &Price, now: Instant) -> NewVersion {
    let ahead = price.effective_from.is_some_and(|from| from > now);
    NewVersion {
        entity: Entity::Price,
        entity_id: price.id.0,
        version: 1,
        status: if ahead { VersionStatus::Scheduled } else { VersionStatus::Active },
        effective_from: price.effective_from,
        effective_to: price.effective_to,
        snapshot: json!({"list_price": price.list_price, "tiers": price.tiers, "formula_version_id": null}),
    }
}

async fn insert(scope: &Scope, tx: &mut Tx, price: &Price) -> Result<()> {
    sqlx::query(
        "INSERT INTO price (id, organization_id, workspace_id, product_id, plan_id, plan_version, customer_id, country_code,
             currency, price_key, kind, list_price, display_name, status, tiers, custom_dimensions, billing_interval_unit,
             billing_interval_count, effective_from, effective_to, valid_from, valid_to, version,
             requires_continuous_coverage, metadata, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,
             $24, $25, $26, $26)",
    )
    .bind(price.id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(price.product_id)
    .bind(price.plan_id)
    .bind(price.plan_version)
    .bind(price.customer_id)
    .bind(&price.country_code)
    .bind(price.currency.as_str())
    .bind(&price.price_key)
    .bind(price.kind)
    .bind(price.list_price)
    .bind(&price.display_name)
    .bind(price.status)
    .bind(Json(&price.tiers))
    .bind(Json(&price.custom_dimensions))
    .bind(price.billing_interval_unit)
    .bind(price.billing_interval_count)
    .bind(price.effective_from)
    .bind(price.effective_to)
    .bind(price.valid_from)
    .bind(price.valid_to)
    .bind(price.version)
    .bind(price.requires_continuous_coverage)
    .bind(Json(&price.metadata))
    .bind(price.created_at)
    .execute(tx.conn())
    .await
    .context("creating a price")?;
    Ok(())
}

async fn set_head(tx: &mut Tx, price: PriceId, version: VersionId) -> Result<()> {
    sqlx::query("UPDATE price SET head_version_id = $2 WHERE id = $1")
        .bind(price)
        .bind(version)
        .execute(tx.conn())
        .await
        .context("naming the head version of a price")?;
    Ok(())
}
