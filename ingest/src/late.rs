//! Late usage of meters with `late_event_policy` `CORRECT` (usage.md 5): an event whose window is sealed is counted in it all
//! the same. Its row is stored with that window and marked as late; the window's own row stays as it was billed. The checkpoint
//! notes it in `usage_correction` and asks billing for the difference, which has the window counted by [`count`].
//!
//! Where the finalization that sealed the window fails, the window is open again: it is counted anew with what came late
//! meanwhile (`partition/twins.rs`), so that of a billed window everything behind its row's position is late usage.

use std::sync::Arc;

use catalog::compiled::{Snapshots, StoredWindow, SubscriptionTerms};
use domain::period::Period;
use domain::{CustomerId, Error, Instant, Position, Result, SubscriptionId, WorkspaceId};
use rating::WindowState;
use serde_json::json;
use sqlx::types::Json;
use store::{Store, StoreError, Tx};

use crate::checkpoint::WindowKey;
use crate::log::Partition;
use crate::subscription::Rebuilt;
use crate::usage::{CountedEvent, UsageStore};

/// Usage that came after its window was sealed and is counted in it.
#[derive(Clone, Copy, Debug)]
pub struct LateUsage {
    subscription_id: SubscriptionId,
    workspace_id: WorkspaceId,
    customer_id: CustomerId,
    window: Period,
    position: Position,
}

impl LateUsage {
    /// An event of a closed window, at a place of the log.
    #[must_use]
    pub fn of(terms: &SubscriptionTerms, window: Period, position: Position) -> Self {
        let SubscriptionTerms { id, workspace_id, customer_id, .. } = *terms;
        Self { subscription_id: id, workspace_id, customer_id, window, position }
    }

    /// Its window.
    #[must_use]
    pub fn key(&self) -> WindowKey {
        (self.subscription_id, self.window.start)
    }
}

/// Rows that are read at a time.
const CHUNK: usize = 10_000;

/// A billed window with the late usage that was counted in it since, up to a position (rule C4); nothing is written.
///
/// # Errors
/// As the usage store; `NotFound` for the subscription; `Internal` for an event that cannot be counted, although it was.
pub async fn count(
    usage: &Arc<dyn UsageStore>,
    snapshots: &Snapshots,
    window: StoredWindow,
    up_to: Position,
) -> Result<StoredWindow> {
    let (id, start) = (window.subscription_id, window.window.start);
    let terms = snapshots.terms(window.workspace_id, id).await?.ok_or_else(|| Error::not_found("subscription", id))?;
    let catalog = snapshots.workspace(window.workspace_id).await?;
    let mut after = window.position;
    let mut counted = Rebuilt::on(window.clone());
    loop {
        let rows = usage.replay(id, start, after, up_to, CHUNK).await?;
        let Some(last) = rows.last() else { break };
        after = last.position;
        for row in rows {
            let refused = |(refused, _, message): (crate::subscription::Incoming, _, String)| {
                let id = refused.event.id;
                Error::invariant(format!("late usage event {id} was counted and cannot be counted again: {message}"))
            };
            counted.count(&catalog, &terms, row).map_err(refused)?;
        }
    }
    let (state, event_count) = counted.into_totals()?;
    Ok(StoredWindow { state, event_count, position: up_to, ..window })
}

/// Notes late usage of closed windows, in the checkpoint that counts it. A period in which nothing was metered was closed
/// without a window: it gets one that is billed, with nothing in it.
pub(crate) async fn note(tx: &mut Tx, partition: Partition, late: &[LateUsage], now: Instant) -> Result<()> {
    if late.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO usage_window (subscription_id, window_start, window_end, workspace_id, customer_id, partition, status,
                                   position, event_count, state, billed, updated_at)
         SELECT DISTINCT ON (s, ws) s, ws, we, w, c, $6, 'sealed', 0, 0, $7, true, $8
         FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::uuid[], $5::uuid[]) AS t (s, ws, we, w, c)
         ORDER BY s, ws ON CONFLICT DO NOTHING",
    )
    .bind(late.iter().map(|usage| usage.subscription_id.0).collect::<Vec<_>>())
    .bind(late.iter().map(|usage| usage.window.start).collect::<Vec<_>>())
    .bind(late.iter().map(|usage| usage.window.end).collect::<Vec<_>>())
    .bind(late.iter().map(|usage| usage.workspace_id.0).collect::<Vec<_>>())
    .bind(late.iter().map(|usage| usage.customer_id.0).collect::<Vec<_>>())
    .bind(partition.cast_signed())
    .bind(WindowState::new().encode())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("making closed usage windows")?;
    sqlx::query(
        "INSERT INTO usage_correction AS c (subscription_id, window_start, position)
         SELECT s, w, max(p) FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[]) AS t (s, w, p) GROUP BY 1, 2 ORDER BY 1, 2
         ON CONFLICT (subscription_id, window_start) DO UPDATE SET position = greatest(c.position, EXCLUDED.position)",
    )
    .bind(late.iter().map(|usage| usage.subscription_id.0).collect::<Vec<_>>())
    .bind(late.iter().map(|usage| usage.window.start).collect::<Vec<_>>())
    .bind(late.iter().map(|usage| usage.position.as_i64()).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .context("noting late usage")?;
    Ok(())
}

/// Windows that are open and have late usage from the time that they were sealed.
///
/// # Errors
/// As every statement.
pub(crate) async fn of_open(store: &Store, windows: &[WindowKey]) -> Result<Vec<WindowKey>> {
    sqlx::query_as(
        "SELECT subscription_id, window_start
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
              JOIN usage_correction USING (subscription_id, window_start)
              JOIN usage_window w USING (subscription_id, window_start)
         WHERE w.status <> 'sealed' AND NOT w.billed",
    )
    .bind(windows.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|(_, start)| *start).collect::<Vec<_>>())
    .fetch_all(store.pool())
    .await
    .context("reading late usage")
}

/// Their windows count it now, in the checkpoint that writes them.
pub(crate) async fn close(tx: &mut Tx, windows: &[WindowKey]) -> Result<()> {
    if windows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM usage_correction c USING unnest($1::uuid[], $2::timestamptz[]) AS done (subscription_id, window_start)
         WHERE c.subscription_id = done.subscription_id AND c.window_start = done.window_start",
    )
    .bind(windows.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|(_, start)| *start).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .context("forgetting late usage of open windows")?;
    Ok(())
}

/// `usage_event.late_received` of every late event of a checkpoint, in one statement.
pub(crate) async fn announce(tx: &mut Tx, events: &[CountedEvent], now: Instant) -> Result<()> {
    let late: Vec<_> = events.iter().filter(|counted| counted.late).collect();
    if late.is_empty() {
        return Ok(());
    }
    let payload = |counted: &&CountedEvent| {
        let event = &counted.event;
        Json(json!({
            "usage_event_id": event.id,
            "customer_id": event.customer_id,
            "subscription_id": event.subscription_id,
            "product_id": event.product_id,
            "metric_key": event.metric_key,
            "quantity": event.quantity,
            "timestamp": event.timestamp,
            "window_start": counted.window_start,
        }))
    };
    sqlx::query(
        "INSERT INTO outbox (id, workspace_id, event_type, entity_type, entity_id, payload, created_at)
         SELECT gen_random_uuid(), workspace_id, 'usage_event.late_received', 'usage_event', id, payload, $4
         FROM unnest($1::uuid[], $2::uuid[], $3::jsonb[]) AS late (workspace_id, id, payload)",
    )
    .bind(late.iter().map(|counted| counted.event.workspace_id.0).collect::<Vec<_>>())
    .bind(late.iter().map(|counted| counted.event.id.0).collect::<Vec<_>>())
    .bind(late.iter().map(payload).collect::<Vec<_>>())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("announcing late usage")?;
    Ok(())
}
