//! Quantities that are granted on top of an allowance (allowances.md 5.1 rule 10): promotions and add-ons call it.

use domain::{AllowanceGrantId, Error, Instant, ProductId, Quantity, Result, Scope, SubscriptionId};
use store::{StoreError, Tx};
use uuid::Uuid;

domain::wire_enum! {
    /// Who grants.
    pub enum GrantSource {
        /// An add-on.
        AddOn = "ADD_ON",
        /// A promotion.
        Promotion = "PROMOTION",
    }
}

/// A quantity that is to be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGrant {
    /// To whom.
    pub subscription_id: SubscriptionId,
    /// Of which product.
    pub product_id: ProductId,
    /// And which metric.
    pub metric_key: String,
    /// How much, once for the whole validity; larger than 0.
    pub quantity: Quantity,
    /// Who grants.
    pub source: GrantSource,
    /// The add-on or promotion.
    pub source_id: Option<Uuid>,
    /// From when it may be drawn.
    pub starts_at: Instant,
    /// When it lapses; `None`: never.
    pub expires_at: Option<Instant>,
}

/// Grants a quantity. The usage of every billing period that meets its validity draws it, after carried and included
/// quantities; what one period drew is not there again in the next.
///
/// # Errors
/// `NotFound` for the subscription; 422 for a quantity that is not positive or a validity that is empty.
pub async fn grant(scope: &Scope, tx: &mut Tx, grant: NewGrant) -> Result<AllowanceGrantId> {
    if grant.quantity <= Quantity::ZERO || grant.expires_at.is_some_and(|end| end <= grant.starts_at) {
        return Err(Error::business_rule("a grant has a quantity above 0 and expires after its start"));
    }
    let id = AllowanceGrantId::generate();
    let inserted = sqlx::query(
        "INSERT INTO allowance_grant (id, organization_id, workspace_id, subscription_id, product_id, metric_key, quantity,
             source, source_id, starts_at, expires_at, created_at)
         SELECT $3, organization_id, workspace_id, id, $4, $5, $6, $7, $8, $9, $10, $11
         FROM subscription WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(grant.subscription_id)
    .bind(id)
    .bind(grant.product_id)
    .bind(grant.metric_key)
    .bind(grant.quantity)
    .bind(grant.source)
    .bind(grant.source_id)
    .bind(grant.starts_at)
    .bind(grant.expires_at)
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("granting an allowance")?;
    if inserted.rows_affected() == 0 {
        return Err(Error::not_found("subscription", grant.subscription_id));
    }
    tx.subscription_changed(scope.workspace_id, grant.subscription_id);
    Ok(id)
}
