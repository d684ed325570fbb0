//! Reads and the list.

use domain::{CommittedUsePlanId, Error, Result, Scope};
use sqlx::{AssertSqlSafe, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};

use super::progress::with_progress;
use super::{CommittedUsePlan, StoredCommitment};
use crate::billing::Billing;

/// Plans with the status that they have at the present of their subscription.
const PLANS: &str = "(SELECT plan.*, clock.as_of,
        CASE WHEN plan.cancelled_at <= clock.as_of THEN 'CANCELLED' WHEN clock.as_of < plan.starts_at THEN 'DRAFT'
             WHEN clock.as_of < plan.ends_at THEN 'ACTIVE' ELSE 'COMPLETED' END AS status
     FROM committed_use_plan plan JOIN subscription ON subscription.id = plan.subscription_id
          LEFT JOIN test_clock ON test_clock.id = subscription.test_clock_id,
          LATERAL (SELECT coalesce(test_clock.frozen_at, now()) AS as_of) clock) plan";

const LIST: ListSpec = ListSpec {
    name: "committed_use_plans",
    columns: "*",
    from: PLANS,
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("customer_id", ListKind::Id),
        ListField::new("subscription_id", ListKind::Id),
        ListField::new("product_id", ListKind::Id),
        ListField::new("status", ListKind::Word(&["DRAFT", "ACTIVE", "COMPLETED", "CANCELLED"])),
        ListField::new("starts_at", ListKind::Instant).sortable(),
        ListField::new("created_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

impl Billing {
    /// `GET /v1/committed-use-plans`, newest first.
    ///
    /// # Errors
    /// `Validation` and `INVALID_CURSOR` for the parameters.
    pub async fn committed_use_plans(
        &self,
        scope: &Scope,
        conn: &mut PgConnection,
        parameters: &[(String, String)],
    ) -> Result<Page<CommittedUsePlan>> {
        let page: Page<StoredCommitment> = ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await?;
        let mut plans = with_progress(scope, conn, &self.snapshots, page.data).await?.into_iter();
        let pagination = page.pagination;
        Ok(Page { data: plans.by_ref().collect(), pagination })
    }

    /// `GET /v1/committed-use-plans/{id}`.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn committed_use_plan(
        &self,
        scope: &Scope,
        conn: &mut PgConnection,
        id: CommittedUsePlanId,
    ) -> Result<CommittedUsePlan> {
        let stored = stored(scope, conn, id).await?;
        let plan = with_progress(scope, conn, &self.snapshots, vec![stored]).await?.pop();
        plan.ok_or_else(|| Error::not_found("committed_use_plan", id))
    }
}

/// A plan as it is stored.
pub(super) async fn stored(scope: &Scope, conn: &mut PgConnection, id: CommittedUsePlanId) -> Result<StoredCommitment> {
    sqlx::query_as(AssertSqlSafe(format!("SELECT * FROM {PLANS} WHERE workspace_id = $1 AND id = $2")))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a committed use plan")?
        .ok_or_else(|| Error::not_found("committed_use_plan", id))
}
