//! Changes of the catalog that may apply to usage which was counted without them (rule B6): a version that starts in the
//! past; usage that lies up to five minutes ahead, or on a test clock anywhere; usage that a node judged in the moment before
//! it heard of the change. `catalog::recount` writes what may be touched with the change; from there a call goes to every
//! partition, which counts anew what it finds. No window that is touched is sealed or billed meanwhile.

use std::collections::HashSet;
use std::sync::Arc;

use catalog::compiled::SubscriptionTerms;
use chrono::TimeDelta;
use domain::period::Period;
use domain::{Instant, Position, ProductId, RejectionId, Result, SubscriptionId, WorkspaceId};
use sqlx::FromRow;
use store::{Store, StoreError};
use uuid::Uuid;

use crate::checkpoint::WindowKey;
use crate::log::{Append, EventLog, Partition};
use crate::record::{CatalogChange, Record};
use crate::usage::{Touching, UsageStore};

/// Changes of one call.
const BATCH: i64 = 1_000;
/// A change that begins longer ago than this has whole windows counted anew, without looking for their events.
const RECENT: TimeDelta = TimeDelta::days(1);

/// Calls the partitions for changes that were committed, and notes which calls they have all passed. Any number of processes
/// may do so: a partition that is called twice finds the same again.
///
/// # Errors
/// As every statement; `Unavailable` when the log does not take a call.
pub(crate) async fn step(store: &Store, log: &Arc<dyn EventLog>) -> Result<()> {
    call(store, log).await?;
    sqlx::query(
        r#"UPDATE catalog_recount c SET done_at = now()
           WHERE done_at IS NULL AND log_id = $1
             AND NOT EXISTS (SELECT FROM unnest(c.offsets) WITH ORDINALITY AS called ("offset", number)
                             LEFT JOIN partition_checkpoint p ON p.log_id = c.log_id AND p.partition = called.number - 1
                             WHERE coalesce(p.next_offset, 0) <= called."offset")"#,
    )
    .bind(log.identity().id)
    .execute(store.pool())
    .await
    .context("looking how far usage is counted anew")?;
    Ok(())
}

async fn call(store: &Store, log: &Arc<dyn EventLog>) -> Result<()> {
    let waiting: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM catalog_recount WHERE done_at IS NULL AND log_id IS DISTINCT FROM $1)",
    )
    .bind(log.identity().id)
    .fetch_one(store.pool())
    .await
    .context("looking for changes of the catalog")?;
    if !waiting {
        return Ok(());
    }
    let mut tx = store.begin("calling for usage to be counted anew").await?;
    sqlx::query("DELETE FROM catalog_recount WHERE done_at < now() - interval '1 day'")
        .execute(tx.conn())
        .await
        .context("forgetting old changes of the catalog")?;
    let changes: Vec<(i64, WorkspaceId)> = sqlx::query_as(
        "SELECT id, workspace_id FROM catalog_recount WHERE done_at IS NULL AND log_id IS DISTINCT FROM $1
         ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED",
    )
    .bind(log.identity().id)
    .bind(BATCH)
    .fetch_all(tx.conn())
    .await
    .context("reading changes of the catalog")?;
    // Read after the changes: it has all of them.
    let catalog_revision: i64 = sqlx::query_scalar("SELECT revision FROM catalog_revision")
        .fetch_one(tx.conn())
        .await
        .context("reading the catalog revision")?;
    let mut workspaces: Vec<WorkspaceId> = changes.iter().map(|(_, workspace)| *workspace).collect();
    workspaces.sort_unstable();
    workspaces.dedup();
    for workspace_id in workspaces {
        let record = Record::CatalogChange(CatalogChange { workspace_id, catalog_revision });
        let offsets = append_to_all(log, &record).await?;
        let ids = changes.iter().filter(|(_, workspace)| *workspace == workspace_id).map(|(id, _)| *id);
        sqlx::query("UPDATE catalog_recount SET log_id = $2, offsets = $3 WHERE id = ANY($1)")
            .bind(ids.collect::<Vec<_>>())
            .bind(log.identity().id)
            .bind(offsets)
            .execute(tx.conn())
            .await
            .context("noting the calls to count usage anew")?;
    }
    tx.commit().await
}

/// The offset of the record in each partition.
async fn append_to_all(log: &Arc<dyn EventLog>, record: &Record) -> Result<Vec<i64>> {
    let payload = record.encode();
    let partitions = 0..log.identity().partitions;
    let appends = partitions.map(|partition| Append { partition, payload: payload.clone() }).collect();
    let unavailable = |error: crate::log::LogError| domain::Error::Unavailable {
        dependency: "event_log",
        detail: error.to_string(),
        retry_after_secs: 1,
    };
    let offsets = log.append(appends).await.into_iter();
    offsets.map(|outcome| outcome.map(u64::cast_signed).map_err(unavailable)).collect()
}

#[derive(FromRow)]
struct Change {
    from_at: Option<Instant>,
    product_ids: Option<Vec<Uuid>>,
}

/// Windows of a partition that are not sealed and have usage, counted before a position, which changes of the workspace's
/// catalog may have a say in. Each once; rather one too many.
///
/// # Errors
/// As every statement and the usage store.
pub(crate) async fn touched(
    store: &Store,
    usage: &Arc<dyn UsageStore>,
    partition: Partition,
    (workspace_id, before): (WorkspaceId, Position),
    now: Instant,
) -> Result<Vec<(SubscriptionId, Period)>> {
    let changes: Vec<Change> =
        sqlx::query_as("SELECT from_at, product_ids FROM catalog_recount WHERE workspace_id = $1 AND done_at IS NULL")
            .bind(workspace_id)
            .fetch_all(store.pool())
            .await
            .context("reading changes of the catalog")?;
    let mut windows = Vec::new();
    for change in changes {
        let mut found = match change.from_at.filter(|from| *from > now - RECENT) {
            None => whole_windows(store, partition, workspace_id, change.from_at).await?,
            Some(from) => {
                let products = change.product_ids.map(|ids| ids.into_iter().map(ProductId).collect());
                let touching = Touching { workspace_id, products, from, before };
                unsealed(store, &usage.touched(partition, &touching).await?).await?
            }
        };
        windows.append(&mut found);
    }
    windows.sort_unstable_by_key(|(id, window)| (*id, window.start));
    windows.dedup();
    Ok(windows)
}

type WindowRow = (SubscriptionId, Instant, Instant);

fn window((id, start, end): WindowRow) -> (SubscriptionId, Period) {
    (id, Period { start, end })
}

/// Late usage lies before its window, but then a change that begins before it begins before the window.
async fn whole_windows(
    store: &Store,
    partition: Partition,
    workspace_id: WorkspaceId,
    from: Option<Instant>,
) -> Result<Vec<(SubscriptionId, Period)>> {
    let rows: Vec<WindowRow> = sqlx::query_as(
        "SELECT subscription_id, window_start, window_end FROM usage_window
         WHERE workspace_id = $1 AND partition = $2 AND status <> 'sealed' AND ($3::timestamptz IS NULL OR window_end > $3)",
    )
    .bind(workspace_id)
    .bind(partition.cast_signed())
    .bind(from)
    .fetch_all(store.pool())
    .await
    .context("looking for windows to count anew")?;
    Ok(rows.into_iter().map(window).collect())
}

async fn unsealed(store: &Store, windows: &[WindowKey]) -> Result<Vec<(SubscriptionId, Period)>> {
    let rows: Vec<WindowRow> = sqlx::query_as(
        "SELECT subscription_id, window_start, window_end
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
         JOIN usage_window USING (subscription_id, window_start) WHERE status <> 'sealed'",
    )
    .bind(windows.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|(_, start)| *start).collect::<Vec<_>>())
    .fetch_all(store.pool())
    .await
    .context("looking for windows to count anew")?;
    Ok(rows.into_iter().map(window).collect())
}

/// Those of these windows that changes of the last day may touch.
///
/// # Errors
/// As every statement.
pub(crate) async fn changed(store: &Store, windows: &[WindowKey]) -> Result<Vec<WindowKey>> {
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as(
        "SELECT DISTINCT subscription_id, window_start
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
         JOIN usage_window w USING (subscription_id, window_start)
         JOIN catalog_recount c ON c.workspace_id = w.workspace_id AND coalesce(c.from_at < w.window_end, true)",
    )
    .bind(windows.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|(_, start)| *start).collect::<Vec<_>>())
    .fetch_all(store.pool())
    .await
    .context("reading changes of the catalog")
}

/// Open rejections of a subscription in a partition.
///
/// # Errors
/// As every statement.
pub(crate) async fn open_rejections(
    store: &Store,
    partition: Partition,
    terms: &SubscriptionTerms,
) -> Result<HashSet<RejectionId>> {
    let ids: Vec<RejectionId> = sqlx::query_scalar(
        "SELECT id FROM usage_rejection
         WHERE workspace_id = $1 AND status = 'open' AND subscription_id = $2 AND partition = $3",
    )
    .bind(terms.workspace_id)
    .bind(terms.id)
    .bind(partition.cast_signed())
    .fetch_all(store.pool())
    .await
    .context("reading rejections of a subscription")?;
    Ok(ids.into_iter().collect())
}
