//! Reading subscriptions: one, many, lists.

use std::collections::HashMap;

use domain::error::FieldErrorCode as Code;
use domain::{Error, Result, Scope, SubscriptionId, WorkspaceId};
use sqlx::{AssertSqlSafe, PgConnection};
use store::list::ListField;
use store::{ListKind, ListQuery, ListSpec, Page, StoreError};

use super::model::{COLUMNS, ITEM_COLUMNS, Subscription, SubscriptionDTO, SubscriptionItemDTO};

/// How subscriptions are listed.
pub const LIST: ListSpec = ListSpec {
    name: "subscriptions",
    columns: COLUMNS,
    from: "subscription",
    workspace_column: "workspace_id",
    condition: "deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new(
            "status",
            ListKind::Word(&["PENDING", "TRIALING", "ACTIVE", "PAUSED", "DUNNING", "CANCELLED", "EXPIRED"]),
        ),
        ListField::new("customer_id", ListKind::Id),
        ListField::new("plan_id", ListKind::Id),
        ListField::new("currency", ListKind::Text),
        ListField::new("billing_interval_unit", ListKind::Word(&["daily", "weekly", "monthly", "yearly", "one_time"])),
        ListField::new("current_period_end", ListKind::Instant),
        ListField::new("next_billing_date", ListKind::Instant),
        ListField::new("dunning_stage", ListKind::Word(&["WARNED", "GRACED", "SUSPENDED"])),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// Reads the parameters of the list: filters, order and page, and whether drift was asked for.
///
/// # Errors
/// `Validation`, `INVALID_CURSOR`.
pub fn query(parameters: &[(String, String)]) -> Result<(ListQuery, bool)> {
    let included: Vec<_> = parameters.iter().filter(|(name, _)| name == "include").cloned().collect();
    Ok((ListQuery::parse_with(&LIST, parameters, &["include"])?, include_drift(&included)?))
}

/// Reads the parameters of one subscription: only `include=drift`.
///
/// # Errors
/// `Validation`.
pub fn include_drift(parameters: &[(String, String)]) -> Result<bool> {
    for (name, value) in parameters {
        if name != "include" {
            let message = "is not a known parameter; known is include";
            return Err(Error::field(name.clone(), Code::UnknownField, message));
        }
        if value != "drift" {
            return Err(Error::field("include", Code::InvalidEnum, "must be drift"));
        }
    }
    Ok(!parameters.is_empty())
}

/// One page of subscriptions with their items, in two statements.
///
/// # Errors
/// As every statement.
pub async fn list(scope: &Scope, conn: &mut PgConnection, query: &ListQuery) -> Result<Page<SubscriptionDTO>> {
    let page: Page<Subscription> = query.fetch(conn, scope).await?;
    let ids: Vec<_> = page.data.iter().map(|subscription| subscription.id).collect();
    let mut items = items_of(conn, scope.workspace_id, &ids).await?;
    Ok(page.map(|subscription| {
        let items = items.remove(&subscription.id).unwrap_or_default();
        SubscriptionDTO { subscription: subscription.ready(), items, drift: None }
    }))
}

/// One subscription with its items.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: SubscriptionId) -> Result<SubscriptionDTO> {
    let subscription = load(conn, scope.workspace_id, &[id], false).await?.remove(&id);
    let subscription = subscription.ok_or_else(|| Error::not_found("subscription", id))?;
    with_items(conn, subscription).await
}

/// Puts the items to a subscription.
pub(crate) async fn with_items(conn: &mut PgConnection, subscription: Subscription) -> Result<SubscriptionDTO> {
    let mut items = items_of(conn, subscription.workspace_id, &[subscription.id]).await?;
    let items = items.remove(&subscription.id).unwrap_or_default();
    Ok(SubscriptionDTO { subscription, items, drift: None })
}

/// Subscriptions of a workspace by id, locked in id order when they will be changed.
pub(crate) async fn load(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    ids: &[SubscriptionId],
    lock: bool,
) -> Result<HashMap<SubscriptionId, Subscription>> {
    let lock = if lock { "FOR UPDATE" } else { "" };
    let sql = format!(
        "SELECT {COLUMNS} FROM subscription WHERE workspace_id = $1 AND id = ANY($2) AND deleted_at IS NULL ORDER BY id {lock}"
    );
    let rows: Vec<Subscription> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(workspace_id)
        .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
        .context("reading subscriptions")?;
    Ok(rows.into_iter().map(|row| (row.id, row.ready())).collect())
}

/// One subscription, locked.
pub(crate) async fn lock(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    id: SubscriptionId,
) -> Result<Subscription> {
    load(conn, workspace_id, &[id], true).await?.remove(&id).ok_or_else(|| Error::not_found("subscription", id))
}

async fn items_of(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    ids: &[SubscriptionId],
) -> Result<HashMap<SubscriptionId, Vec<SubscriptionItemDTO>>> {
    let sql = format!(
        "SELECT {ITEM_COLUMNS} FROM subscription_item item JOIN product ON product.id = item.product_id
         WHERE item.workspace_id = $1 AND item.subscription_id = ANY($2) ORDER BY item.id"
    );
    let rows: Vec<SubscriptionItemDTO> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(workspace_id)
        .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
        .context("reading subscription items")?;
    let mut items: HashMap<SubscriptionId, Vec<SubscriptionItemDTO>> = HashMap::new();
    for row in rows {
        items.entry(row.item.subscription_id).or_default().push(row);
    }
    Ok(items)
}
