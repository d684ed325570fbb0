//! What reserve and capture know of customer and subscription, read in their transaction; and the lock of the window.

use std::sync::Arc;

use catalog::compiled::{SubscriptionTerms, WorkspaceCatalog};
use domain::period::Period;
use domain::{BindingRole, Currency, CustomerId, Error, Instant, ProductId, Result, Scope, SubscriptionId, WalletId};
use rating::WindowState;
use sqlx::PgConnection;
use store::{StoreError, Tx};

use super::answer::BlockedReason;

/// Whose usage it is, and what time it is there.
pub(super) struct Context {
    pub terms: Arc<SubscriptionTerms>,
    /// The scope's instant, or that of the customer's test clock.
    pub now: Instant,
    customer_status: String,
    subscription_status: String,
}

impl Context {
    /// Reads customer and subscription.
    ///
    /// # Errors
    /// `NotFound`; 422 when the subscription is another customer's.
    pub async fn load(
        scope: &Scope,
        conn: &mut PgConnection,
        customer_id: CustomerId,
        id: SubscriptionId,
    ) -> Result<Self> {
        let (customer_status, clock) = customer(scope, conn, customer_id).await?;
        let subscription_status: Option<String> = sqlx::query_scalar(
            "SELECT status FROM subscription WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL",
        )
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(&mut *conn)
        .await
        .context("reading the subscription of a reservation")?;
        let missing = || Error::not_found("subscription", id);
        let subscription_status = subscription_status.ok_or_else(missing)?;
        let terms = SubscriptionTerms::load(conn, &[id]).await?.remove(&id).ok_or_else(missing)?;
        if terms.customer_id != customer_id {
            return Err(Error::business_rule(format!("subscription {id} belongs to another customer")));
        }
        let now = clock.unwrap_or_else(|| scope.now());
        Ok(Self { terms: Arc::new(terms), now, customer_status, subscription_status })
    }

    /// What stands in the way before any price is looked for.
    pub fn blocked(&self) -> Vec<BlockedReason> {
        let mut reasons = Vec::new();
        if self.customer_status != "ACTIVE" {
            reasons.push(BlockedReason::CustomerInactive);
        }
        let is_over = self.terms.ended_at.is_some_and(|ended| ended <= self.now) || self.now < self.terms.started_at;
        match self.subscription_status.as_str() {
            "PAUSED" => reasons.push(BlockedReason::SubscriptionSuspended),
            "TRIALING" | "ACTIVE" | "DUNNING" if !is_over => {}
            _ => reasons.push(BlockedReason::SubscriptionNotActive),
        }
        reasons
    }
}

async fn customer(scope: &Scope, conn: &mut PgConnection, id: CustomerId) -> Result<(String, Option<Instant>)> {
    let row: Option<(String, Option<Instant>)> = sqlx::query_as(
        "SELECT c.status, clock.frozen_at FROM customer c LEFT JOIN test_clock clock ON clock.id = c.test_clock_id
         WHERE c.workspace_id = $1 AND c.id = $2 AND c.deleted_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_optional(conn)
    .await
    .context("reading the customer of a reservation")?;
    row.ok_or_else(|| Error::not_found("customer", id))
}

/// The only running subscription of a customer that has a product.
///
/// # Errors
/// `NotFound` for the customer; 422 `SUBSCRIPTION_REQUIRED` when there is none, or more than one.
pub(super) async fn only_subscription(
    scope: &Scope,
    conn: &mut PgConnection,
    customer_id: CustomerId,
    product_id: ProductId,
) -> Result<SubscriptionId> {
    customer(scope, conn, customer_id).await?;
    let found: Vec<SubscriptionId> = sqlx::query_scalar(
        "SELECT s.id FROM subscription s
         WHERE s.workspace_id = $1 AND s.customer_id = $2 AND s.deleted_at IS NULL
           AND s.status IN ('TRIALING', 'ACTIVE', 'DUNNING')
           AND EXISTS (SELECT FROM subscription_item i
                       WHERE i.subscription_id = s.id AND i.product_id = $3 AND i.removed_at IS NULL)
         LIMIT 2",
    )
    .bind(scope.workspace_id)
    .bind(customer_id)
    .bind(product_id)
    .fetch_all(conn)
    .await
    .context("looking for the subscription of a reservation")?;
    match found.as_slice() {
        [only] => Ok(*only),
        [] => Err(required(format!("no running subscription of customer {customer_id} has product {product_id}"))),
        _ => Err(required(format!("several subscriptions of customer {customer_id} have product {product_id}"))),
    }
}

fn required(detail: String) -> Error {
    Error::rule("SUBSCRIPTION_REQUIRED", format!("{detail}; give subscription_id"))
}

/// The only metric that a product is billed by.
///
/// # Errors
/// 400 for a product with several, 422 for one with none.
pub(super) fn only_metric(catalog: &WorkspaceCatalog, product_id: ProductId, at: Instant) -> Result<String> {
    let product = catalog.product(product_id).filter(|product| product.is_live);
    let product = product.ok_or_else(|| Error::not_found("product", product_id))?;
    let billed = product
        .bindings
        .iter()
        .filter(|binding| binding.at(at).is_some_and(|version| version.role == BindingRole::Primary));
    let mut metrics: Vec<&str> = billed.map(|binding| binding.metric_key.as_str()).collect();
    metrics.sort_unstable();
    metrics.dedup();
    match metrics.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(Error::business_rule(format!("no meter bills product {product_id}"))),
        several => {
            let message = format!("is required: the product is billed by {}", several.join(", "));
            Err(Error::field("metric_key", domain::error::FieldErrorCode::Required, message))
        }
    }
}

/// The wallet in a currency, or the primary one (reserve.md V4).
///
/// # Errors
/// 422 `WALLET_NOT_FOUND`.
pub(super) async fn wallet(
    scope: &Scope,
    conn: &mut PgConnection,
    customer_id: CustomerId,
    currency: Option<Currency>,
) -> Result<(WalletId, Currency)> {
    let found: Option<(WalletId, Currency)> = sqlx::query_as(
        "SELECT id, currency FROM wallet
         WHERE workspace_id = $1 AND customer_id = $2 AND (currency = $3 OR ($3 IS NULL AND is_primary))",
    )
    .bind(scope.workspace_id)
    .bind(customer_id)
    .bind(currency)
    .fetch_optional(conn)
    .await
    .context("looking for the wallet of a reservation")?;
    found.ok_or_else(|| {
        let kind = currency.map_or_else(|| "primary wallet".to_owned(), |currency| format!("wallet in {currency}"));
        Error::rule("WALLET_NOT_FOUND", format!("customer {customer_id} has no {kind}"))
    })
}

/// Locks the row of a window, and makes it where nothing is counted in it yet: while it is locked no checkpoint, no void and
/// no invoice changes what the window holds (rules C5, D1, D3).
pub(super) async fn lock_window(tx: &mut Tx, terms: &SubscriptionTerms, window: Period, now: Instant) -> Result<()> {
    sqlx::query(
        "INSERT INTO usage_window (subscription_id, window_start, window_end, workspace_id, customer_id, partition, status,
                                   position, event_count, state, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, 'open', 0, 0, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(terms.id)
    .bind(window.start)
    .bind(window.end)
    .bind(terms.workspace_id)
    .bind(terms.customer_id)
    .bind(terms.home_partition.cast_signed())
    .bind(WindowState::new().encode())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("making a usage window")?;
    sqlx::query("SELECT FROM usage_window WHERE subscription_id = $1 AND window_start = $2 FOR UPDATE")
        .bind(terms.id)
        .bind(window.start)
        .execute(tx.conn())
        .await
        .context("locking a usage window")?;
    Ok(())
}
