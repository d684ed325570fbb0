//! Retires prices.

use domain::{Error, JsonMap, PriceId, Result, Scope};
use serde_json::json;
use store::{StoreError, Tx};

use super::{Price, PriceStatus};
use crate::product;
use crate::recount::{self, Touched};
use crate::version::{self, ArchiveRequest};

/// Retires a price: it applies to nothing from now on, and to usage of before as it did.
///
/// # Errors
/// `NotFound`; `Conflict` with `INVALID_TRANSITION` for an archived one, and while a live subscription can be charged by it:
/// its next bill would find no price, or another one (bulk-archive.md, "still referenced by an active subscription").
pub async fn archive(scope: &Scope, tx: &mut Tx, id: PriceId, request: &ArchiveRequest) -> Result<Price> {
    let product_id = super::get(scope, tx.conn(), id).await?.product_id;
    // As whoever creates prices and changes the product: one at a time.
    product::lock(scope, tx, product_id).await?;
    let price = super::get(scope, tx.conn(), id).await?;
    if price.status == PriceStatus::Archived {
        let (from, to) = (price.status.as_str(), PriceStatus::Archived.as_str());
        return Err(Error::invalid_transition("price", id, from, to, &[]));
    }
    if charges_somebody(scope, tx, &price).await? {
        return Err(Error::conflict("CONFLICT", "a live subscription is charged by this price"));
    }
    let reason = request.reason.as_deref().unwrap_or("archived");
    let now = scope.now();
    version::end(scope, tx, id.0, now, reason).await?;
    sqlx::query("UPDATE price SET status = $3, archived_at = $4, updated_at = $4 WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .bind(PriceStatus::Archived)
        .bind(now)
        .execute(tx.conn())
        .await
        .context("archiving a price")?;
    recount::request(scope, tx, Some(now), Touched::Products(vec![product_id])).await?;
    tx.catalog_changed(scope.workspace_id);
    let mut payload = JsonMap::new();
    payload.insert("id".into(), json!(id));
    payload.insert("product_id".into(), json!(product_id));
    tx.emit(scope, "price.archived", "price", id, payload).await?;
    super::get(scope, tx.conn(), id).await
}

/// Whether the price, now or later, is one that the resolution chooses from for a live subscription, or that an item names.
/// What a more specific price takes away is not asked: with that price gone this one would be charged. Dimensions are those
/// of events that nobody knows yet.
pub(super) async fn charges_somebody(scope: &Scope, tx: &mut Tx, price: &Price) -> Result<bool> {
    let end = [price.effective_to, price.valid_to].into_iter().flatten().min();
    if end.is_some_and(|end| end <= scope.now()) {
        return Ok(false);
    }
    sqlx::query_scalar(
        "SELECT EXISTS (
             SELECT FROM subscription_item item
                  JOIN subscription s ON s.id = item.subscription_id
                  JOIN customer c ON c.id = s.customer_id
                  JOIN price p ON p.id = $2
                  LEFT JOIN price fixed ON fixed.id = item.price_id
             WHERE item.workspace_id = $1 AND item.product_id = p.product_id AND s.deleted_at IS NULL
               AND (item.removed_at IS NULL OR item.removed_at > $3) AND s.status NOT IN ('CANCELLED', 'EXPIRED')
               AND (item.price_id = p.id
                    OR (item.price_id IS NULL OR fixed.price_key IS DISTINCT FROM p.price_key)
                       AND p.currency = s.currency
                       AND (p.customer_id IS NULL OR p.customer_id = s.customer_id)
                       AND (p.plan_id IS NULL OR p.plan_id = s.plan_id)
                       AND (p.plan_version IS NULL OR p.plan_version = s.plan_version)
                       AND (p.country_code IS NULL OR p.country_code = c.billing_address ->> 'country')
                       AND (p.billing_interval_unit IS NULL
                            OR (p.billing_interval_unit, coalesce(p.billing_interval_count, 1))
                             = (s.billing_interval_unit, s.billing_interval_count))))",
    )
    .bind(scope.workspace_id)
    .bind(price.id)
    .bind(scope.now())
    .fetch_one(tx.conn())
    .await
    .context("looking for subscriptions to the price")
}
