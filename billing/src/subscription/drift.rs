//! Drift: newer versions of the plan or of an item's product than the pinned ones (subscriptions.md 3.2). Computed when it is
//! asked for, never stored.

use std::collections::HashMap;

use domain::{Result, Scope, SubscriptionId};
use serde::Serialize;
use sqlx::{FromRow, PgConnection};
use store::{Page, StoreError};
use utoipa::ToSchema;

use super::model::SubscriptionDTO;

/// How far a subscription is behind its catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SubscriptionDriftSummary {
    /// Whether anything newer exists.
    pub has_drift: bool,
    /// Pinned version of the plan.
    pub current_version: i32,
    /// Its newest version.
    pub head_version: i32,
    /// Versions between them.
    pub versions_behind: i32,
    /// Items whose product has a newer version.
    pub product_drift_count: i32,
}

#[derive(FromRow)]
struct Row {
    id: SubscriptionId,
    current_version: i32,
    head_version: i32,
    product_drift_count: i64,
}

/// Adds drift to one subscription.
///
/// # Errors
/// As every statement.
pub async fn add(scope: &Scope, conn: &mut PgConnection, mut one: SubscriptionDTO) -> Result<SubscriptionDTO> {
    let id = one.subscription.id;
    one.drift = summaries(scope, conn, &[id]).await?.remove(&id);
    Ok(one)
}

/// Adds drift to a page, in one statement.
///
/// # Errors
/// As every statement.
pub async fn add_to_page(
    scope: &Scope,
    conn: &mut PgConnection,
    page: Page<SubscriptionDTO>,
) -> Result<Page<SubscriptionDTO>> {
    let ids: Vec<_> = page.data.iter().map(|row| row.subscription.id).collect();
    let mut found = summaries(scope, conn, &ids).await?;
    Ok(page.map(|mut row| {
        row.drift = found.remove(&row.subscription.id);
        row
    }))
}

async fn summaries(
    scope: &Scope,
    conn: &mut PgConnection,
    ids: &[SubscriptionId],
) -> Result<HashMap<SubscriptionId, SubscriptionDriftSummary>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT subscription.id, subscription.plan_version AS current_version,
                coalesce(head.version, subscription.plan_version) AS head_version,
                (SELECT count(*) FROM subscription_item item JOIN product ON product.id = item.product_id
                 WHERE item.subscription_id = subscription.id AND item.removed_at IS NULL
                   AND item.product_version_id IS DISTINCT FROM product.head_version_id) AS product_drift_count
         FROM subscription JOIN plan ON plan.id = subscription.plan_id
              LEFT JOIN entity_version head ON head.id = plan.head_version_id
         WHERE subscription.workspace_id = $1 AND subscription.id = ANY($2)",
    )
    .bind(scope.workspace_id)
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .context("comparing versions")?;
    let summary = |row: Row| {
        let versions_behind = (row.head_version - row.current_version).max(0);
        let product_drift_count = i32::try_from(row.product_drift_count).unwrap_or(i32::MAX);
        SubscriptionDriftSummary {
            has_drift: versions_behind > 0 || product_drift_count > 0,
            current_version: row.current_version,
            head_version: row.head_version,
            versions_behind,
            product_drift_count,
        }
    };
    Ok(rows.into_iter().map(|row| (row.id, summary(row))).collect())
}
