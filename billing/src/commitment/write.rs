//! Creating, changing and cancelling committed use plans. The lock of all three is the subscription's row.

use domain::period::plus_months;
use domain::{
    CommittedUsePlanId, CommittedUsePlanStatus, Error, PriceId, ProductId, ProductType, Result, Scope, ShortfallPolicy,
    input::merge_metadata,
};
use sqlx::PgConnection;
use sqlx::types::Json;
use store::{StoreError, Tx};

use super::read::stored;
use super::request::check_term;
use super::{
    CancelCommittedUsePlanRequest, CommittedUsePlan, CreateCommittedUsePlanRequest, StoredCommitment,
    UpdateCommittedUsePlanRequest,
};
use crate::billing::{Billing, clocked};
use crate::subscription::{self, Subscription};

impl Billing {
    /// Commits a customer.
    ///
    /// # Errors
    /// `NotFound` for subscription, product or price; 409 when another plan of the same subscription, product and metric
    /// overlaps; 422 for another customer's subscription, one that has ended, a product that is not USAGE or lacks the
    /// metric, a price that cannot charge the overage, and a start in the past.
    pub async fn create_committed_use_plan(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        request: CreateCommittedUsePlanRequest,
    ) -> Result<CommittedUsePlan> {
        self.snapshots.refresh().await?;
        let subscription = subscription::read::lock(tx.conn(), scope.workspace_id, request.subscription_id).await?;
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
        if subscription.customer_id != request.customer_id {
            return Err(Error::business_rule("the subscription belongs to another customer"));
        }
        self.check_product(&scope, request.product_id, &request.metric_key).await?;
        if let Some(price) = request.overage_price_id {
            self.check_overage_price(&scope, &subscription, request.product_id, price).await?;
        }
        let starts_at = request.starts_at.unwrap_or_else(|| scope.now().max(subscription.started_at));
        let mut plan = StoredCommitment {
            id: CommittedUsePlanId::generate(),
            organization_id: scope.organization_id,
            customer_id: subscription.customer_id,
            subscription_id: subscription.id,
            product_id: request.product_id,
            metric_key: request.metric_key,
            currency: subscription.currency,
            committed_quantity: request.committed_quantity,
            commitment_period: request.commitment_period,
            term_months: request.term_months,
            committed_rate: request.committed_rate,
            overage_price_id: request.overage_price_id,
            shortfall_policy: request.shortfall_policy.unwrap_or(ShortfallPolicy::BillPeriod),
            status: CommittedUsePlanStatus::Draft,
            starts_at,
            ends_at: starts_at,
            cancelled_at: None,
            version: 1,
            metadata: Json::default(),
            created_at: scope.now(),
            updated_at: scope.now(),
            as_of: scope.now(),
        };
        merge_metadata(&mut plan.metadata.0, request.metadata.unwrap_or_default())?;
        fix_term(&scope, tx.conn(), &subscription, &mut plan).await?;
        insert(&scope, tx.conn(), &plan).await?;
        tx.subscription_changed(scope.workspace_id, subscription.id);
        self.committed_use_plan(&scope, tx.conn(), plan.id).await
    }

    /// Changes a plan: everything of a DRAFT, metadata, overage price and shortfall policy while it is ACTIVE.
    ///
    /// # Errors
    /// `NotFound`; `VersionConflict`; 409 for a plan that is over, for members that are fixed, and when another plan
    /// overlaps; otherwise as for its creation.
    pub async fn update_committed_use_plan(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: CommittedUsePlanId,
        request: UpdateCommittedUsePlanRequest,
    ) -> Result<CommittedUsePlan> {
        let (scope, subscription, mut plan) = self.locked_plan(scope, tx, id).await?;
        catalog::version::check_expected(request.expected_version, plan.version)?;
        let fixed = request.fixed_members();
        match plan.status {
            CommittedUsePlanStatus::Completed | CommittedUsePlanStatus::Cancelled => return Err(is_over(&plan)),
            CommittedUsePlanStatus::Active if !fixed.is_empty() => {
                let detail = format!("the term has begun: {} can no longer be changed", fixed.join(", "));
                return Err(Error::conflict("CONFLICT", detail).with("fields", fixed));
            }
            CommittedUsePlanStatus::Active | CommittedUsePlanStatus::Draft => {}
        }
        if let domain::Patch::Set(price) = request.overage_price_id {
            self.check_overage_price(&scope, &subscription, plan.product_id, price).await?;
        }
        plan.committed_quantity = request.committed_quantity.unwrap_or(plan.committed_quantity);
        plan.commitment_period = request.commitment_period.unwrap_or(plan.commitment_period);
        plan.term_months = request.term_months.unwrap_or(plan.term_months);
        plan.committed_rate = request.committed_rate.unwrap_or(plan.committed_rate);
        plan.starts_at = request.starts_at.unwrap_or(plan.starts_at);
        plan.shortfall_policy = request.shortfall_policy.unwrap_or(plan.shortfall_policy);
        plan.overage_price_id = request.overage_price_id.apply(plan.overage_price_id);
        merge_metadata(&mut plan.metadata.0, request.metadata.unwrap_or_default())?;
        if !fixed.is_empty() {
            check_term(plan.term_months, plan.commitment_period)?;
            fix_term(&scope, tx.conn(), &subscription, &mut plan).await?;
        }
        plan.updated_at = scope.now();
        update(&scope, tx.conn(), &plan).await?;
        tx.subscription_changed(scope.workspace_id, subscription.id);
        self.committed_use_plan(&scope, tx.conn(), id).await
    }

    /// Ends a plan before its term, now or at an instant ahead within it.
    ///
    /// # Errors
    /// `NotFound`; 409 for a plan that is over; 422 for an instant in the past or behind the term.
    pub async fn cancel_committed_use_plan(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: CommittedUsePlanId,
        request: CancelCommittedUsePlanRequest,
    ) -> Result<CommittedUsePlan> {
        let (scope, subscription, plan) = self.locked_plan(scope, tx, id).await?;
        if matches!(plan.status, CommittedUsePlanStatus::Completed | CommittedUsePlanStatus::Cancelled) {
            return Err(is_over(&plan));
        }
        let effective_at = request.effective_at.unwrap_or_else(|| scope.now());
        if effective_at < scope.now() || effective_at >= plan.ends_at {
            return Err(Error::business_rule("effective_at must be now or ahead, and before the end of the term"));
        }
        sqlx::query(
            "UPDATE committed_use_plan SET cancelled_at = $3, cancel_reason = $4, bill_shortfall = $5, updated_at = $6,
                    version = version + 1
             WHERE workspace_id = $1 AND id = $2",
        )
        .bind(scope.workspace_id)
        .bind(id)
        .bind(effective_at)
        .bind(request.reason)
        .bind(request.bill_shortfall.unwrap_or(true))
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("cancelling a committed use plan")?;
        tx.subscription_changed(scope.workspace_id, subscription.id);
        self.committed_use_plan(&scope, tx.conn(), id).await
    }

    /// A plan with its subscription locked, at the present of that.
    async fn locked_plan(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: CommittedUsePlanId,
    ) -> Result<(Scope, Subscription, StoredCommitment)> {
        self.snapshots.refresh().await?;
        let subscription_id = stored(scope, tx.conn(), id).await?.subscription_id;
        let subscription = subscription::read::lock(tx.conn(), scope.workspace_id, subscription_id).await?;
        let plan = stored(scope, tx.conn(), id).await?;
        Ok((scope.at(plan.as_of), subscription, plan))
    }

    async fn check_product(&self, scope: &Scope, id: ProductId, metric_key: &str) -> Result<()> {
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let product = catalog.product(id).ok_or_else(|| Error::not_found("product", id))?;
        if product.kind != ProductType::Usage {
            return Err(Error::business_rule(format!("product {id} is not a USAGE product")));
        }
        if product.bindings.iter().all(|binding| binding.metric_key != metric_key) {
            return Err(Error::business_rule(format!("no meter is bound to product {id} for metric {metric_key}")));
        }
        Ok(())
    }

    /// What exceeds a commitment is charged by this price instead of the one that each event resolves: it must stand alone.
    async fn check_overage_price(
        &self,
        scope: &Scope,
        subscription: &Subscription,
        product_id: ProductId,
        id: PriceId,
    ) -> Result<()> {
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let price = catalog.product(product_id).and_then(|product| product.prices.iter().find(|price| price.id == id));
        let price = price.ok_or_else(|| Error::not_found("price", id))?;
        if price.currency != subscription.currency {
            let detail = format!("price {id} is in {}, the subscription in {}", price.currency, subscription.currency);
            return Err(Error::rule("CURRENCY_MISMATCH", detail));
        }
        if price.customer_id.is_some_and(|customer| customer != subscription.customer_id) {
            return Err(Error::business_rule(format!("price {id} is another customer's")));
        }
        if price.versions.iter().any(|(_, _, version)| version.has_expressions()) {
            return Err(Error::business_rule("overage_price_id must be a price without expressions"));
        }
        Ok(())
    }
}

fn is_over(plan: &StoredCommitment) -> Error {
    Error::conflict("CONFLICT", format!("the committed use plan is {}", plan.status)).with("status", plan.status)
}

/// Fixes the end of the term and checks where it lies: usage that was rated without the commitment stays as it was, so it
/// begins ahead, or with the running billing period, which is rated from its totals.
async fn fix_term(
    scope: &Scope,
    conn: &mut PgConnection,
    subscription: &Subscription,
    plan: &mut StoredCommitment,
) -> Result<()> {
    let schedule = subscription.schedule()?;
    plan.ends_at = plus_months(plan.starts_at, plan.term_months.unsigned_abs(), schedule.timezone);
    if subscription.ended_at.is_some() || subscription.status.is_terminal() {
        return Err(Error::business_rule("the subscription has ended"));
    }
    if plan.starts_at < subscription.started_at {
        return Err(Error::business_rule("starts_at must not lie before the start of the subscription"));
    }
    let running = schedule.containing(scope.now()).map(|period| period.start);
    if plan.starts_at < scope.now() && running != Some(plan.starts_at) {
        let detail = "starts_at must not lie in the past, unless it is the start of the running billing period";
        return Err(Error::business_rule(detail));
    }
    match overlapping(conn, plan).await? {
        Some(id) => {
            let detail = "a committed use plan of the same subscription, product and metric overlaps";
            Err(Error::conflict("CONFLICT", detail).with("existing_id", id))
        }
        None => Ok(()),
    }
}

async fn overlapping(conn: &mut PgConnection, plan: &StoredCommitment) -> Result<Option<CommittedUsePlanId>> {
    sqlx::query_scalar(
        "SELECT id FROM committed_use_plan
         WHERE subscription_id = $1 AND product_id = $2 AND metric_key = $3 AND id <> $4
           AND starts_at < $6 AND least(ends_at, cancelled_at) > greatest($5, starts_at) LIMIT 1",
    )
    .bind(plan.subscription_id)
    .bind(plan.product_id)
    .bind(&plan.metric_key)
    .bind(plan.id)
    .bind(plan.starts_at)
    .bind(plan.ends_at)
    .fetch_optional(conn)
    .await
    .context("looking for overlapping commitments")
}

async fn insert(scope: &Scope, conn: &mut PgConnection, plan: &StoredCommitment) -> Result<()> {
    sqlx::query(
        "INSERT INTO committed_use_plan (id, organization_id, workspace_id, customer_id, subscription_id, product_id,
             metric_key, currency, committed_quantity, commitment_period, term_months, committed_rate, overage_price_id,
             shortfall_policy, starts_at, ends_at, metadata, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $18)",
    )
    .bind(plan.id)
    .bind(plan.organization_id)
    .bind(scope.workspace_id)
    .bind(plan.customer_id)
    .bind(plan.subscription_id)
    .bind(plan.product_id)
    .bind(&plan.metric_key)
    .bind(plan.currency)
    .bind(plan.committed_quantity)
    .bind(plan.commitment_period)
    .bind(plan.term_months)
    .bind(plan.committed_rate)
    .bind(plan.overage_price_id)
    .bind(plan.shortfall_policy)
    .bind(plan.starts_at)
    .bind(plan.ends_at)
    .bind(&plan.metadata)
    .bind(plan.created_at)
    .execute(conn)
    .await
    .context("creating a committed use plan")?;
    Ok(())
}

async fn update(scope: &Scope, conn: &mut PgConnection, plan: &StoredCommitment) -> Result<()> {
    sqlx::query(
        "UPDATE committed_use_plan SET committed_quantity = $3, commitment_period = $4, term_months = $5,
                committed_rate = $6, overage_price_id = $7, shortfall_policy = $8, starts_at = $9, ends_at = $10,
                metadata = $11, updated_at = $12, version = version + 1
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(plan.id)
    .bind(plan.committed_quantity)
    .bind(plan.commitment_period)
    .bind(plan.term_months)
    .bind(plan.committed_rate)
    .bind(plan.overage_price_id)
    .bind(plan.shortfall_policy)
    .bind(plan.starts_at)
    .bind(plan.ends_at)
    .bind(&plan.metadata)
    .bind(plan.updated_at)
    .execute(conn)
    .await
    .context("changing a committed use plan")?;
    Ok(())
}
