//! Writes of costs: create, copy, archive, and what their versions need (edit-as-publish).

use domain::{Error, JsonMap, ProductId, Result, Scope};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::{CopyCostRequest, Cost, CostScope, CostStatus, CostVersion, CreateCostRequest, LIST, UpdateCostRequest};
use crate::product::{self, ProductStatus};
use crate::version::{self, ArchiveRequest, AsOf, EditControls, Entity, Life, Span, VersionRecord, Versioned, edit};

/// Creates a cost of the organization: active with version 1, which holds since ever, or a draft.
///
/// # Errors
/// `Conflict` with `DUPLICATE` on `key`.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreateCostRequest) -> Result<Cost> {
    insert(scope, tx, None, request).await
}

/// Creates a cost of a product.
///
/// # Errors
/// `NotFound` for the product; `Rule` when it is archived; `Conflict` with `DUPLICATE` on `key`.
pub async fn create_of_product(
    scope: &Scope,
    tx: &mut Tx,
    product: ProductId,
    request: CreateCostRequest,
) -> Result<Cost> {
    check_product(scope, tx, Some(product)).await?;
    insert(scope, tx, Some(product), request).await
}

/// Creates a cost with the definition that another one has now.
///
/// # Errors
/// `NotFound` for cost and product; as [`create_of_product`].
pub async fn copy(scope: &Scope, tx: &mut Tx, id: Uuid, request: CopyCostRequest) -> Result<Cost> {
    let original = super::get(scope, tx.conn(), id).await?;
    let product = request.product_id.apply(original.product_id);
    check_product(scope, tx, product).await?;
    let request = CreateCostRequest {
        key: request.key,
        description: original.description,
        product_id: None,
        expression: original.expression,
        requires_continuous_coverage: Some(original.requires_continuous_coverage),
        save_as_draft: None,
    };
    insert(scope, tx, product, request).await
}

async fn check_product(scope: &Scope, tx: &mut Tx, product: Option<ProductId>) -> Result<()> {
    let Some(product) = product else { return Ok(()) };
    if product::lock(scope, tx, product).await?.status == ProductStatus::Archived {
        return Err(Error::business_rule("the product is archived"));
    }
    Ok(())
}

async fn insert(scope: &Scope, tx: &mut Tx, product_id: Option<ProductId>, request: CreateCostRequest) -> Result<Cost> {
    if let Some(existing) = find_by_key(scope, tx, product_id, &request.key).await? {
        return Err(Error::duplicate("key", Some(existing.to_string())));
    }
    let (now, is_draft) = (scope.now(), request.save_as_draft.unwrap_or_default());
    let cost = Cost {
        id: Uuid::now_v7(),
        organization_id: scope.organization_id,
        product_id,
        key: request.key,
        description: request.description,
        scope: if product_id.is_some() { CostScope::Product } else { CostScope::Org },
        expression: request.expression,
        status: CostStatus::Draft,
        version: 0,
        head_version_id: None,
        requires_continuous_coverage: request.requires_continuous_coverage.unwrap_or_default(),
        created_at: now,
        updated_at: now,
        archived_at: None,
    };
    edit::create(scope, tx, cost.id, &cost, (is_draft, Span::first(None, None, now)), |constraint| {
        (constraint == "cost_key").then(|| Error::duplicate("key", None))
    })
    .await
}

async fn find_by_key(scope: &Scope, tx: &mut Tx, product: Option<ProductId>, key: &str) -> Result<Option<Uuid>> {
    sqlx::query_scalar(
        "SELECT id FROM cost WHERE workspace_id = $1 AND product_id IS NOT DISTINCT FROM $2 AND key = $3",
    )
    .bind(scope.workspace_id)
    .bind(product)
    .bind(key)
    .fetch_optional(tx.conn())
    .await
    .context("looking for a cost by key")
}

/// Retires a cost.
///
/// # Errors
/// `NotFound`; `Conflict` with `INVALID_TRANSITION` for an archived one.
pub async fn archive(scope: &Scope, tx: &mut Tx, id: Uuid, request: &ArchiveRequest) -> Result<Cost> {
    Cost::lock(scope, tx, id).await?;
    let cost = super::get(scope, tx.conn(), id).await?;
    if cost.status == CostStatus::Archived {
        return Err(Error::invalid_transition("cost", id, "archived", "archived", &[]));
    }
    let now = scope.now();
    version::end(scope, tx, id, now, request.reason.as_deref().unwrap_or("archived")).await?;
    sqlx::query(
        "UPDATE cost SET status = 'archived', archived_at = $3, updated_at = $3 WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("archiving a cost")?;
    let mut payload = JsonMap::new();
    payload.insert("id".into(), json!(id));
    payload.insert("key".into(), json!(cost.key));
    payload.insert("product_id".into(), json!(cost.product_id));
    tx.emit(scope, "cost.archived", "cost", id, payload).await?;
    super::get(scope, tx.conn(), id).await
}

impl Versioned for Cost {
    type Update = UpdateCostRequest;
    type Version = CostVersion;
    const ENTITY: Entity = Entity::Cost;
    const DEFINITION: &'static [&'static str] = &["description", "expression", "requires_continuous_coverage"];

    async fn read(scope: &Scope, conn: &mut PgConnection, id: Uuid, as_of: AsOf) -> Result<Self> {
        version::read(scope, conn, Self::ENTITY, &LIST, id, as_of).await
    }

    fn life(&self) -> (i32, Life) {
        let life = match self.status {
            CostStatus::Draft => Life::Draft,
            CostStatus::Active => Life::Live,
            CostStatus::Archived => Life::Archived,
        };
        (self.version, life)
    }

    fn snapshot(&self) -> Value {
        json!({
            "description": self.description, "expression": self.expression,
            "requires_continuous_coverage": self.requires_continuous_coverage,
        })
    }

    fn controls(update: &UpdateCostRequest) -> EditControls {
        update.controls
    }

    fn merge(mut self, update: UpdateCostRequest) -> Result<Self> {
        self.description = update.description.apply(self.description);
        self.expression = update.expression.unwrap_or(self.expression);
        if let Some(flag) = update.requires_continuous_coverage {
            self.requires_continuous_coverage = flag;
        }
        Ok(self)
    }

    /// An expression is checked when it is read; nothing else is in its way.
    async fn check(&self, _scope: &Scope, _tx: &mut Tx, _span: Option<&mut Span>) -> Result<()> {
        Ok(())
    }

    fn requires_coverage(&self) -> bool {
        self.requires_continuous_coverage
    }

    fn event_members(&self) -> Vec<(&'static str, Value)> {
        vec![("key", json!(self.key)), ("product_id", json!(self.product_id))]
    }

    fn version(self, record: VersionRecord) -> CostVersion {
        CostVersion { row: record.row, cost_id: self.id, expression: self.expression, warnings: record.warnings }
    }
}
