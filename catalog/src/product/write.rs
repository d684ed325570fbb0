//! Writes of products: create, edit-as-publish and the four-state lifecycle.

use domain::error::FieldErrorCode as Code;
use domain::input::merge_metadata;
use domain::{
    Error, JsonMap, Patch, PricingModel, ProductId, ProductTaxCategory, Result, Scope, SupplyType,
    UnmatchedPriceKeyPolicy,
};
use serde_json::json;
use sqlx::types::Json;
use store::{StoreError, Tx, on_constraint};

use super::request::{pair_is_allowed, pair_message};
use super::{CreateProductRequest, Product, ProductStatus, UpdateProductRequest};
use crate::texts::check_custom_fields;
use crate::version::{self, ArchiveRequest, Entity, NewVersion, Place, PublishVersionRequest};

/// Creates a product: published with version 1, or a draft.
///
/// # Errors
/// `Conflict` with `DUPLICATE` on `external_id`; `NotFound` for a required product; `Rule` for custom fields and costs.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreateProductRequest) -> Result<Product> {
    check_custom_fields(request.custom_fields.as_ref())?;
    if request.costs.as_ref().is_some_and(|costs| !costs.is_empty()) {
        return Err(Error::business_rule("costs are not supported yet; create the product without them"));
    }
    let mut product = new_product(scope, request);
    check_external_id(scope, tx, &product).await?;
    check_requirements(scope, tx, product.id, &product.requires_product_ids).await?;
    let published = product.status == ProductStatus::Published;
    insert(scope, tx, &product).await?;
    let version_id = version::insert(scope, tx, first_version(&product, published)).await?;
    if published {
        product.head_version_id = Some(version_id);
        save(scope, tx, &product).await?;
    }
    changed(scope, tx, "product.created", &product).await?;
    Ok(product)
}

fn new_product(scope: &Scope, request: CreateProductRequest) -> Product {
    let (now, draft) = (scope.now(), request.save_as_draft.unwrap_or_default());
    Product {
        id: ProductId::generate(),
        organization_id: scope.organization_id,
        external_id: request.external_id,
        name: request.name,
        description: request.description,
        public_description: request.public_description,
        r#type: request.r#type,
        pricing_model: request.pricing_model.unwrap_or(PricingModel::Volume),
        tax_category: request.tax_category.unwrap_or(ProductTaxCategory::Default),
        supply_type: request.supply_type.unwrap_or(SupplyType::Services),
        status: if draft { ProductStatus::Draft } else { ProductStatus::Published },
        costs: Vec::new(),
        requires_product_ids: request.requires_product_ids.unwrap_or_default(),
        invoiceable_standalone: request.invoiceable_standalone.unwrap_or_default(),
        requires_continuous_coverage: request.requires_continuous_coverage.unwrap_or_default(),
        price_key_label: request.price_key_label,
        unmatched_price_key_policy: request.unmatched_price_key_policy.unwrap_or(UnmatchedPriceKeyPolicy::Reject),
        default_price_key: request.default_price_key,
        tiers_on_total: request.tiers_on_total.unwrap_or_default(),
        head_version_id: None,
        version: i32::from(!draft),
        translations: request.translations.unwrap_or_default(),
        custom_fields: JsonMap::new(),
        metadata: request.metadata.unwrap_or_default(),
        published_at: (!draft).then_some(now),
        published_by: scope.api_key_id().filter(|_| !draft).map(|id| id.0),
        created_at: now,
        updated_at: now,
        deprecated_at: None,
        archived_at: None,
        deleted_at: None,
    }
}

/// The first version holds since ever, so that backfilled usage finds it.
fn first_version(product: &Product, published: bool) -> NewVersion {
    NewVersion {
        entity: Entity::Product,
        entity_id: product.id.0,
        version: 1,
        place: if published { Place::SINCE_EVER } else { Place::draft(None, None) },
        snapshot: product.snapshot(),
    }
}

/// Changes a product: a draft in place, a published one by publishing the next version at once.
///
/// # Errors
/// `NotFound`, `VersionConflict`, `Conflict` for an archived product, `Validation` for a pair that does not go together,
/// `Rule` for what existing prices forbid.
pub async fn update(scope: &Scope, tx: &mut Tx, id: ProductId, request: UpdateProductRequest) -> Result<Product> {
    check_custom_fields(request.custom_fields.as_ref())?;
    let current = super::lock(scope, tx, id).await?;
    let is_draft = current.status == ProductStatus::Draft;
    request.controls.check(current.version, is_draft, scope.now())?;
    if current.status == ProductStatus::Archived {
        return Err(Error::conflict("CONFLICT", "an archived product cannot be changed"));
    }
    check_with_prices(scope, tx, &current, &request).await?;
    let live_edit = request.is_live_edit;
    let mut product = merged(current, request)?;
    check_external_id(scope, tx, &product).await?;
    check_requirements(scope, tx, product.id, &product.requires_product_ids).await?;
    product.updated_at = scope.now();
    if is_draft {
        version::rewrite_draft(scope, tx, product.id.0, product.snapshot(), false).await?;
    } else if !live_edit {
        publish_next(scope, tx, &mut product).await?;
    }
    save(scope, tx, &product).await?;
    changed(scope, tx, "product.updated", &product).await?;
    Ok(product)
}

async fn publish_next(scope: &Scope, tx: &mut Tx, product: &mut Product) -> Result<()> {
    let now = scope.now();
    product.version += 1;
    product.published_at = Some(now);
    product.published_by = scope.api_key_id().map(|id| id.0);
    let place = Place::published(Some(now), None, now);
    let next = NewVersion { version: product.version, place, ..first_version(product, true) };
    product.head_version_id = Some(version::insert(scope, tx, next).await?);
    version::settle(scope, tx, product.id.0, now).await
}

fn merged(mut product: Product, request: UpdateProductRequest) -> Result<Product> {
    fn set<T>(target: &mut T, sent: Option<T>) {
        if let Some(value) = sent {
            *target = value;
        }
    }
    set(&mut product.name, request.name);
    set(&mut product.pricing_model, request.pricing_model);
    product.external_id = request.external_id.apply(product.external_id);
    product.description = request.description.apply(product.description);
    product.public_description = request.public_description.apply(product.public_description);
    set(&mut product.tax_category, request.tax_category);
    set(&mut product.supply_type, request.supply_type);
    set(&mut product.requires_product_ids, request.requires_product_ids);
    set(&mut product.invoiceable_standalone, request.invoiceable_standalone);
    set(&mut product.requires_continuous_coverage, request.requires_continuous_coverage);
    product.price_key_label = request.price_key_label.apply(product.price_key_label);
    set(&mut product.unmatched_price_key_policy, request.unmatched_price_key_policy);
    product.default_price_key = request.default_price_key.apply(product.default_price_key);
    set(&mut product.tiers_on_total, request.tiers_on_total);
    set(&mut product.translations, request.translations);
    merge_metadata(&mut product.metadata, request.metadata.unwrap_or_default())?;
    if !pair_is_allowed(product.r#type, product.pricing_model) {
        return Err(Error::field("pricing_model", Code::NotAllowed, pair_message(product.r#type)));
    }
    if product.unmatched_price_key_policy == UnmatchedPriceKeyPolicy::UseDefault && product.default_price_key.is_none()
    {
        return Err(Error::field("default_price_key", Code::Required, "is required by the policy use_default"));
    }
    Ok(product)
}

/// What existing prices forbid: they were made for the model, and with or without a key (products.md, rules 4 and 5).
async fn check_with_prices(
    scope: &Scope,
    tx: &mut Tx,
    current: &Product,
    request: &UpdateProductRequest,
) -> Result<()> {
    let other_model = request.pricing_model.is_some_and(|model| model != current.pricing_model);
    let keyed_after = match &request.price_key_label {
        Patch::Keep => current.is_keyed(),
        Patch::Clear => false,
        Patch::Set(_) => true,
    };
    if !other_model && keyed_after == current.is_keyed() {
        return Ok(());
    }
    let has_prices: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM price WHERE workspace_id = $1 AND product_id = $2 AND deleted_at IS NULL)",
    )
    .bind(scope.workspace_id)
    .bind(current.id)
    .fetch_one(tx.conn())
    .await
    .context("looking for prices")?;
    if !has_prices {
        return Ok(());
    }
    Err(Error::business_rule(if other_model {
        "pricing_model cannot change once the product has prices: they are walked with it"
    } else if keyed_after {
        "price_key_label cannot be set once the product has prices without a key"
    } else {
        "price_key_label cannot be cleared once the product has prices"
    }))
}

async fn check_external_id(scope: &Scope, tx: &mut Tx, product: &Product) -> Result<()> {
    let existing: Option<ProductId> = sqlx::query_scalar(
        "SELECT id FROM product WHERE workspace_id = $1 AND external_id = $2 AND id <> $3 AND deleted_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(&product.external_id)
    .bind(product.id)
    .fetch_optional(tx.conn())
    .await
    .context("looking for a product by external id")?;
    existing.map_or(Ok(()), |id| Err(Error::duplicate("external_id", Some(id.to_string()))))
}

async fn check_requirements(scope: &Scope, tx: &mut Tx, own: ProductId, required: &[ProductId]) -> Result<()> {
    if required.contains(&own) {
        return Err(Error::field("requires_product_ids", Code::NotAllowed, "a product cannot require itself"));
    }
    if required.is_empty() {
        return Ok(());
    }
    let found = super::get_many(scope, tx.conn(), required).await?;
    match required.iter().find(|id| !found.iter().any(|product| product.id == **id)) {
        Some(missing) => Err(Error::not_found("product", missing)),
        None => Ok(()),
    }
}

/// Publishes a draft as version 1, or brings a deprecated product back.
///
/// # Errors
/// `NotFound`, `VersionConflict`, `Conflict` with `INVALID_TRANSITION`, `Rule` for a start other than now.
pub async fn publish(scope: &Scope, tx: &mut Tx, id: ProductId, request: &PublishVersionRequest) -> Result<Product> {
    let mut product = super::lock(scope, tx, id).await?;
    version::check_expected(request.expected_version, product.version)?;
    let was_draft = product.status == ProductStatus::Draft;
    transition(&mut product, ProductStatus::Published)?;
    version::check_effective_now(request.effective_at, scope.now())?;
    if was_draft {
        product.version = 1;
        product.published_at = Some(scope.now());
        product.published_by = scope.api_key_id().map(|id| id.0);
        product.head_version_id = version::rewrite_draft(scope, tx, id.0, product.snapshot(), true).await?;
    }
    product.deprecated_at = None;
    finish(scope, tx, product, "product.published").await
}

/// Marks a product as one that should not be sold any more.
///
/// # Errors
/// `NotFound`, `Conflict` with `INVALID_TRANSITION`.
pub async fn deprecate(scope: &Scope, tx: &mut Tx, id: ProductId) -> Result<Product> {
    let mut product = super::lock(scope, tx, id).await?;
    transition(&mut product, ProductStatus::Deprecated)?;
    product.deprecated_at = Some(scope.now());
    finish(scope, tx, product, "product.deprecated").await
}

/// Withdraws a product.
///
/// # Errors
/// `NotFound`, `Conflict` with `INVALID_TRANSITION`, or while a live subscription has it.
pub async fn archive(scope: &Scope, tx: &mut Tx, id: ProductId, request: &ArchiveRequest) -> Result<Product> {
    let mut product = super::lock(scope, tx, id).await?;
    transition(&mut product, ProductStatus::Archived)?;
    let in_use: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM subscription_item i JOIN subscription s ON s.id = i.subscription_id
                        WHERE i.workspace_id = $1 AND i.product_id = $2 AND i.removed_at IS NULL
                          AND s.status NOT IN ('CANCELLED', 'EXPIRED'))",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(tx.conn())
    .await
    .context("looking for subscriptions")?;
    if in_use {
        return Err(Error::conflict("CONFLICT", "a live subscription has this product"));
    }
    version::end(scope, tx, id.0, scope.now(), request.reason.as_deref().unwrap_or("archived")).await?;
    product.archived_at = Some(scope.now());
    finish(scope, tx, product, "product.archived").await
}

/// Deletes a product that nothing refers to.
///
/// # Errors
/// `NotFound`, `Conflict` while it is referenced.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: ProductId) -> Result<()> {
    let product = super::lock(scope, tx, id).await?;
    let referenced: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM plan_product WHERE product_id = $2)
             OR EXISTS (SELECT FROM price WHERE product_id = $2 AND deleted_at IS NULL)
             OR EXISTS (SELECT FROM product_meter_binding WHERE product_id = $2)
             OR EXISTS (SELECT FROM subscription_item WHERE product_id = $2)
             OR EXISTS (SELECT FROM product WHERE workspace_id = $1 AND $2 = ANY(requires_product_ids) AND deleted_at IS NULL)",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(tx.conn())
    .await
    .context("looking for references")?;
    if referenced {
        return Err(Error::conflict("CONFLICT", "plans, prices, bindings, subscriptions or products refer to it"));
    }
    sqlx::query("UPDATE product SET deleted_at = $3, updated_at = $3 WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("deleting a product")?;
    version::end(scope, tx, id.0, scope.now(), "deleted").await?;
    changed(scope, tx, "product.deleted", &product).await
}

/// draft → published → deprecated → archived, published → archived, deprecated → published (plans.md, rule 2).
fn transition(product: &mut Product, to: ProductStatus) -> Result<()> {
    use ProductStatus::{Archived, Deprecated, Draft, Published};
    let allowed: &[ProductStatus] = match product.status {
        Draft => &[Published],
        Published => &[Deprecated, Archived],
        Deprecated => &[Published, Archived],
        Archived => &[],
    };
    if !allowed.contains(&to) {
        let words: Vec<_> = allowed.iter().map(|status| status.as_str()).collect();
        return Err(Error::invalid_transition("product", product.id, product.status.as_str(), to.as_str(), &words));
    }
    product.status = to;
    Ok(())
}

async fn finish(scope: &Scope, tx: &mut Tx, mut product: Product, event: &str) -> Result<Product> {
    product.updated_at = scope.now();
    save(scope, tx, &product).await?;
    changed(scope, tx, event, &product).await?;
    Ok(product)
}

async fn changed(scope: &Scope, tx: &mut Tx, event: &str, product: &Product) -> Result<()> {
    tx.catalog_changed(scope.workspace_id);
    let mut payload = JsonMap::new();
    for (name, value) in [
        ("id", json!(product.id)),
        ("external_id", json!(product.external_id)),
        ("status", json!(product.status)),
        ("version", json!(product.version)),
    ] {
        payload.insert(name.to_owned(), value);
    }
    tx.emit(scope, event, "product", product.id, payload).await
}

async fn insert(scope: &Scope, tx: &mut Tx, product: &Product) -> Result<()> {
    let inserted = sqlx::query(
        "INSERT INTO product (id, organization_id, workspace_id, external_id, name, type, pricing_model, tax_category,
             supply_type, status, unmatched_price_key_policy, version, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13)",
    )
    .bind(product.id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(&product.external_id)
    .bind(&product.name)
    .bind(product.r#type)
    .bind(product.pricing_model)
    .bind(product.tax_category)
    .bind(product.supply_type)
    .bind(product.status)
    .bind(product.unmatched_price_key_policy)
    .bind(product.version)
    .bind(product.created_at)
    .execute(tx.conn())
    .await;
    on_constraint(inserted, "creating a product", duplicate)?;
    save(scope, tx, product).await
}

async fn save(scope: &Scope, tx: &mut Tx, product: &Product) -> Result<()> {
    let required: Vec<uuid::Uuid> = product.requires_product_ids.iter().map(|id| id.0).collect();
    let saved = sqlx::query(
        "UPDATE product SET external_id = $3, name = $4, description = $5, public_description = $6, pricing_model = $7,
             tax_category = $8, supply_type = $9, status = $10, requires_product_ids = $11, invoiceable_standalone = $12,
             requires_continuous_coverage = $13, price_key_label = $14, unmatched_price_key_policy = $15,
             default_price_key = $16, tiers_on_total = $17, head_version_id = $18, version = $19, translations = $20,
             custom_fields = $21, metadata = $22, published_at = $23, published_by = $24, updated_at = $25,
             deprecated_at = $26, archived_at = $27
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(product.id)
    .bind(&product.external_id)
    .bind(&product.name)
    .bind(&product.description)
    .bind(&product.public_description)
    .bind(product.pricing_model)
    .bind(product.tax_category)
    .bind(product.supply_type)
    .bind(product.status)
    .bind(required)
    .bind(product.invoiceable_standalone)
    .bind(product.requires_continuous_coverage)
    .bind(&product.price_key_label)
    .bind(product.unmatched_price_key_policy)
    .bind(&product.default_price_key)
    .bind(product.tiers_on_total)
    .bind(product.head_version_id)
    .bind(product.version)
    .bind(Json(&product.translations))
    .bind(Json(&product.custom_fields))
    .bind(Json(&product.metadata))
    .bind(product.published_at)
    .bind(product.published_by)
    .bind(product.updated_at)
    .bind(product.deprecated_at)
    .bind(product.archived_at)
    .execute(tx.conn())
    .await;
    on_constraint(saved, "saving a product", duplicate).map(drop)
}

fn duplicate(constraint: &str) -> Option<Error> {
    (constraint == "product_external_id").then(|| Error::duplicate("external_id", None))
}
