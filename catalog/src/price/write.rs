//! Creates prices.

use currency::Purpose;
use domain::error::FieldErrorCode as Code;
use domain::{Error, FieldError, PriceFormulaId, PriceId, PricingModel, ProductType, Result, Scope, VersionId};
use rating::formula::Place;
use rating::{CompiledPrice, Formula, PriceDefinition, PriceFormula};
use rust_decimal::Decimal;
use store::{StoreError, Tx};

use super::request::numbered;
use super::{CreatePriceRequest, Price, PriceKind, PriceStatus, PriceTier};
use crate::product::{self, Product};
use crate::version::{Span, edit};
use crate::{formula, rate_table};

/// Creates a price: active with version 1, which is scheduled when `effective_from` lies ahead; or a draft.
///
/// # Errors
/// `NotFound` for product, plan or customer; `Validation` for tiers and for a `price_key` that does not fit the product;
/// `Conflict` with `DUPLICATE` when the same price exists in an overlapping window; `Rule` for formulas and archived
/// products, and with `CURRENCY_NOT_ENABLED`.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreatePriceRequest) -> Result<Price> {
    // Locked: two calls cannot both find no duplicate.
    let product = product::lock(scope, tx, request.product_id).await?;
    currency::require(scope, tx, request.currency, Purpose::Catalog).await?;
    check_price_key(&product, &request)?;
    let is_draft = request.save_as_draft.unwrap_or_default();
    let price = new_price(scope, &product, request)?;
    check_references(scope, tx, &price).await?;
    let span = Span::first(price.effective_from, price.effective_to, price.created_at);
    edit::create(scope, tx, price.id.0, &price, (is_draft, span), |_| None).await
}

/// The formula of a price as it is now; what it declares is bound when usage is rated.
pub(super) async fn formula_of(scope: &Scope, tx: &mut Tx, price: &Price) -> Result<Option<PriceFormula>> {
    let Some(id) = price.formula_id else { return Ok(None) };
    let formula = formula::get(scope, tx.conn(), PriceFormulaId(id)).await?;
    let version_id = formula.head_version_id.unwrap_or_else(VersionId::generate);
    Ok(Some(PriceFormula { version_id, expression: formula.expression, variables: formula.variables }))
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
        product_type: product.r#type,
        plan_id: request.plan_id,
        plan_version: None,
        customer_id: request.customer_id,
        country_code: request.country_code,
        currency: request.currency,
        price_key: request.price_key,
        kind: request.kind.unwrap_or(default_kind),
        list_price: request.list_price,
        display_name: request.display_name,
        status: PriceStatus::Draft,
        tiers,
        formula_id: request.formula_id,
        formula_version_id: None,
        custom_dimensions: request.custom_dimensions.unwrap_or_default(),
        billing_interval_unit: request.billing_interval_unit,
        billing_interval_count: count,
        effective_from: request.effective_from,
        effective_to: request.effective_to,
        valid_from: request.valid_from,
        valid_to: request.valid_to,
        version: 0,
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
        return Ok(numbered(sent));
    }
    if request.formula_id.is_some() {
        // The formula gives the amount; the one tier that a price must have is not walked.
        let unit_amount = if product.pricing_model == PricingModel::Package { Decimal::ONE } else { Decimal::ZERO };
        return Ok(vec![PriceTier { unit_amount, ..single_tier(ProductType::FixedCharge, Decimal::ZERO) }]);
    }
    if product.pricing_model == PricingModel::Package {
        // Under PACKAGE a unit amount is a size, so one amount alone says nothing about it.
        return Err(Error::field("tiers", Code::Required, "is required: a PACKAGE price needs a size and an amount"));
    }
    Ok(vec![single_tier(product.r#type, request.list_price.unwrap_or_default())])
}

/// The step that a list price makes.
pub(super) fn single_tier(product_type: ProductType, amount: Decimal) -> PriceTier {
    let (unit_amount, flat_amount) = match product_type {
        ProductType::FixedCharge => (Decimal::ZERO, amount),
        ProductType::Seat | ProductType::Usage => (amount, Decimal::ZERO),
    };
    PriceTier { tier_order: 1, up_to: None, unit_amount, flat_amount, rate_expression: None }
}

/// Slugs of the rate tables that the tiers read, kept with each version: a table that is read cannot be archived.
pub(super) fn tables_read(tiers: &[PriceTier]) -> Vec<String> {
    let expressions = tiers.iter().filter_map(|tier| tier.rate_expression.as_deref());
    let compiled = expressions.filter_map(|text| Formula::compile(text, Place::Tier, &[]).ok());
    compiled.flat_map(|formula| formula.tables().iter().map(|table| table.slug.clone()).collect::<Vec<_>>()).collect()
}

/// Every rate table that the tiers read is there, and of the kind that they read.
pub(super) async fn check_tables(scope: &Scope, tx: &mut Tx, tiers: &[PriceTier]) -> Result<()> {
    let mut errors = Vec::new();
    for (index, tier) in tiers.iter().enumerate() {
        let Some(text) = &tier.rate_expression else { continue };
        let Ok(formula) = Formula::compile(text, Place::Tier, &[]) else { continue }; // compiling the price says why
        let messages = rate_table::check_uses(scope, tx.conn(), formula.tables()).await?;
        errors.extend(messages.into_iter().map(|message| FieldError {
            field: format!("tiers[{index}].rate_expression"),
            code: Code::InvalidFormat,
            message,
        }));
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::Validation(errors)) }
}

/// Compiles once, so that no stored version fails later.
pub(super) fn compile(product: &Product, price: &Price, formula: Option<PriceFormula>) -> Result<()> {
    let definition = PriceDefinition {
        price_id: price.id,
        version_id: VersionId::generate(),
        product_id: price.product_id,
        price_key: price.price_key.clone(),
        currency: price.currency,
        model: product.pricing_model,
        tiers: price.tiers.iter().map(rating::Tier::from).collect(),
        list_price: price.list_price,
        formula,
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

/// A further price of a product that subscriptions have begins now, unless its start is named: in the past it applies to
/// usage that is counted by another price, whose open windows are counted anew then (rule B6).
pub(super) async fn begin_from_now(scope: &Scope, tx: &mut Tx, price: &Price, span: &mut Span) -> Result<()> {
    let start = [span.from, price.valid_from].into_iter().flatten().max();
    if start.is_none() && is_in_use(scope, tx, price).await? {
        span.from = Some(span.now);
    }
    Ok(())
}

/// Whether the product has another price in this currency, and a subscription has the product.
async fn is_in_use(scope: &Scope, tx: &mut Tx, price: &Price) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM price WHERE workspace_id = $1 AND product_id = $2 AND currency = $3 AND id <> $4
                           AND status = 'active' AND deleted_at IS NULL)
            AND EXISTS (SELECT FROM subscription_item WHERE product_id = $2)",
    )
    .bind(scope.workspace_id)
    .bind(price.product_id)
    .bind(price.currency.as_str())
    .bind(price.id)
    .fetch_one(tx.conn())
    .await
    .context("looking for subscriptions to the product")
}

/// Another price that would be chosen for exactly the same calls at some instant.
pub(super) async fn check_duplicate(scope: &Scope, tx: &mut Tx, price: &Price) -> Result<()> {
    let existing: Option<PriceId> = sqlx::query_scalar(
        "SELECT p.id
         FROM price own JOIN entity_version o ON o.entity_id = own.id AND o.status <> 'draft' AND o.cancelled_at IS NULL
              JOIN price p ON p.product_id = own.product_id AND p.id <> own.id
              JOIN entity_version v ON v.entity_id = p.id AND v.status <> 'draft' AND v.cancelled_at IS NULL
         WHERE own.workspace_id = $1 AND own.id = $2 AND p.status <> 'archived' AND p.deleted_at IS NULL
           AND (p.plan_id, p.plan_version, p.customer_id, p.country_code, p.price_key, p.currency, p.custom_dimensions,
                p.billing_interval_unit, p.billing_interval_count)
               IS NOT DISTINCT FROM
               (own.plan_id, own.plan_version, own.customer_id, own.country_code, own.price_key, own.currency,
                own.custom_dimensions, own.billing_interval_unit, own.billing_interval_count)
           AND GREATEST(v.effective_from, p.valid_from, o.effective_from, own.valid_from, '-infinity')
             < LEAST(v.effective_to, p.valid_to, o.effective_to, own.valid_to, 'infinity')
         LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(price.id)
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

/// Refuses a price that can be chosen at no instant.
pub(super) fn check_window(price: &Price, span: &Span) -> Result<()> {
    let start = [span.from, price.valid_from].into_iter().flatten().max();
    let end = [span.to, price.valid_to].into_iter().flatten().min();
    if start.zip(end).is_some_and(|(start, end)| end <= start) {
        let message = "effective and valid window have no instant in common".to_owned();
        let field = if span.to == end { "effective_to" } else { "valid_to" };
        return Err(Error::Validation(vec![FieldError { field: field.into(), code: Code::OutOfRange, message }]));
    }
    Ok(())
}
