//! Voids by hand: an event is taken out of billing while its window is not closed (usage.md 5, rule C5).
//!
//! The void and the record that has its window counted anew are written together, under the lock of the window's row. The
//! void is open until a checkpoint has written the window without the event; neither a seal nor an invoice completes
//! meanwhile: a seal counts the windows of open voids anew itself, and finalizing refuses while one is open.

use std::sync::Arc;
use std::time::Duration;

use catalog::compiled::{Snapshots, SubscriptionTerms, WindowStatus};
use domain::{Error, Input, Instant, Position, Result, Scope, UsageEventId};
use serde::Serialize;
use serde_json::{Value, json};
use store::{BodyKey, Store, StoreError, Tx};
use tokio::time::Instant as Deadline;

use crate::checkpoint::WindowKey;
use crate::log::{EventLog, Partition};
use crate::outbox::{self, Outgoing};
use crate::record::{Control, ControlKind, Record};
use crate::usage::{CountedEvent, RowKey, StoredEvent, UsageStore};

/// `VoidUsageEventRequest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct VoidUsageEventRequest {
    /// Why it is not billed; 1 to 500 characters.
    pub reason: String,
    /// A repeat with the same key answers the same.
    pub idempotency_key: Option<String>,
}

impl VoidUsageEventRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let reason = input.required("reason", |v| v.text(1, 500));
        let idempotency_key = input.optional("idempotency_key", |v| v.text(1, 255));
        input.finish()?;
        Ok(Self { reason: reason.unwrap_or_default(), idempotency_key })
    }
}

/// How long an id that is not stored is waited for: the partitions are that far behind at most, or the answer is 503.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Finds an event that may have been accepted a moment ago: an unknown id is waited for until every partition has counted
/// what its log holds at the call.
///
/// # Errors
/// `NotFound`; `Unavailable` when the partitions do not come that far in time.
pub async fn find(
    scope: &Scope,
    store: &Store,
    log: &Arc<dyn EventLog>,
    usage: &Arc<dyn UsageStore>,
    id: UsageEventId,
) -> Result<StoredEvent> {
    if let Some(event) = usage.get(scope, id).await? {
        return Ok(event);
    }
    let until = Deadline::now() + WAIT_MAX;
    // What a capture wrote may still be on its way to the log.
    let newest: Option<i64> = sqlx::query_scalar("SELECT max(id) FROM usage_outbox")
        .fetch_one(store.pool())
        .await
        .context("looking into the usage outbox")?;
    while !relayed(store, newest.unwrap_or(0)).await? {
        pause(until).await?;
    }
    let mut ends = Vec::new();
    for partition in 0..log.identity().partitions {
        let end = log.end(partition).await.map_err(|error| behind(error.to_string()))?;
        if end > 0 {
            ends.push((partition, end));
        }
    }
    while !passed(store, log, &ends).await? {
        pause(until).await?;
    }
    usage.get(scope, id).await?.ok_or_else(|| Error::not_found("usage_event", id))
}

/// Waits for the next look, unless it has taken too long.
async fn pause(until: Deadline) -> Result<()> {
    if Deadline::now() > until {
        return Err(behind("usage that was accepted before is not counted yet".into()));
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

async fn relayed(store: &Store, newest: i64) -> Result<bool> {
    sqlx::query_scalar("SELECT NOT EXISTS (SELECT FROM usage_outbox WHERE id <= $1)")
        .bind(newest)
        .fetch_one(store.pool())
        .await
        .context("looking into the usage outbox")
}

fn behind(detail: String) -> Error {
    Error::Unavailable { dependency: "event_log", detail, retry_after_secs: 1 }
}

async fn passed(store: &Store, log: &Arc<dyn EventLog>, ends: &[(Partition, u64)]) -> Result<bool> {
    let behind: bool = sqlx::query_scalar(
        r#"SELECT EXISTS (SELECT FROM unnest($2::integer[], $3::bigint[]) AS wanted (partition, "end")
           LEFT JOIN partition_checkpoint c ON c.log_id = $1 AND c.partition = wanted.partition
           WHERE coalesce(c.next_offset, 0) < wanted."end")"#,
    )
    .bind(log.identity().id)
    .bind(ends.iter().map(|(partition, _)| partition.cast_signed()).collect::<Vec<_>>())
    .bind(ends.iter().map(|(_, end)| end.cast_signed()).collect::<Vec<_>>())
    .fetch_one(store.pool())
    .await
    .context("looking how far usage is counted")?;
    Ok(!behind)
}

/// Takes an event out of billing. A repeat changes nothing and answers the event with its first `voided_at`.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` when the event's window is closed, or the event is on an interim invoice; `IDEMPOTENCY_CONFLICT`.
pub async fn void(
    scope: &Scope,
    tx: &mut Tx,
    snapshots: &Snapshots,
    event: StoredEvent,
    request: &VoidUsageEventRequest,
) -> Result<StoredEvent> {
    let scope = &scope.at(scope.now()); // one instant for row, answer and event
    let id = event.counted.event.id;
    let key = BodyKey::new(scope, "usage_event.void", id, request.idempotency_key.as_deref(), request)?;
    if let Some(voided_at) = key.claim::<Instant>(scope, tx).await? {
        return Ok(StoredEvent { voided_at: Some(voided_at), ..event });
    }
    let window = lock_window(tx, &event.counted).await?;
    let voided_at = match voided_at(tx, event.counted.key()).await? {
        Some(earlier) => earlier,
        None => {
            let (window_end, is_open) = window;
            if !is_open {
                return Err(Error::invalid_transition("usage_event", id, "billed", "voided", &[]));
            }
            write(scope, tx, &event.counted, &request.reason).await?;
            request_recount(scope, tx, snapshots, &event.counted, window_end).await?;
            announce(scope, tx, &event.counted, &request.reason).await?;
            scope.now()
        }
    };
    key.complete(tx, &voided_at).await?;
    Ok(StoredEvent { voided_at: Some(voided_at), ..event })
}

/// Locks the row of the event's window, so that no seal and no invoice comes in between. Answers its end, and whether the event
/// is on no invoice: the window is open, and no interim invoice has charged it.
async fn lock_window(tx: &mut Tx, counted: &CountedEvent) -> Result<(Instant, bool)> {
    let row: Option<(Instant, WindowStatus, bool, Option<i64>)> = sqlx::query_as(
        "SELECT window_end, status, billed, invoiced_position FROM usage_window WHERE subscription_id = $1 AND window_start = $2 FOR UPDATE",
    )
    .bind(counted.event.subscription_id)
    .bind(counted.window_start)
    .fetch_optional(tx.conn())
    .await
    .context("locking a usage window")?;
    // An event is counted with its window's row; the usage store may show it a moment before.
    let (end, status, billed, invoiced) = row.ok_or_else(|| behind("the event is not counted yet".into()))?;
    let is_invoiced = invoiced.is_some_and(|position| counted.position <= Position::from_i64(position));
    Ok((end, status != WindowStatus::Sealed && !billed && !is_invoiced))
}

async fn voided_at(tx: &mut Tx, (id, partition, position): RowKey) -> Result<Option<Instant>> {
    sqlx::query_scalar("SELECT voided_at FROM usage_void WHERE event_id = $1 AND partition = $2 AND position = $3")
        .bind(id)
        .bind(column(partition))
        .bind(position.as_i64())
        .fetch_optional(tx.conn())
        .await
        .context("reading a void")
}

/// Column `partition` is a smallint; a log has at most 1,024 partitions.
fn column(partition: Partition) -> i16 {
    i16::try_from(partition).unwrap_or(i16::MAX)
}

async fn write(scope: &Scope, tx: &mut Tx, counted: &CountedEvent, reason: &str) -> Result<()> {
    sqlx::query(
        "INSERT INTO usage_void (event_id, partition, position, workspace_id, reason, voided_at, voided_by, subscription_id,
                                 window_start, open)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, true)",
    )
    .bind(counted.event.id)
    .bind(column(counted.partition))
    .bind(counted.position.as_i64())
    .bind(scope.workspace_id)
    .bind(reason)
    .bind(scope.now())
    .bind(scope.api_key_id())
    .bind(counted.event.subscription_id)
    .bind(counted.window_start)
    .execute(tx.conn())
    .await
    .context("voiding a usage event")?;
    Ok(())
}

async fn request_recount(
    scope: &Scope,
    tx: &mut Tx,
    snapshots: &Snapshots,
    counted: &CountedEvent,
    window_end: Instant,
) -> Result<()> {
    let event = &counted.event;
    let terms = SubscriptionTerms::load(tx.conn(), &[event.subscription_id]).await?.remove(&event.subscription_id);
    let terms = terms.ok_or_else(|| Error::not_found("subscription", event.subscription_id))?;
    let control = Control {
        kind: ControlKind::WindowRecount,
        workspace_id: event.workspace_id,
        subscription_id: event.subscription_id,
        customer_id: event.customer_id,
        window_start: counted.window_start,
        window_end,
        catalog_revision: snapshots.revision(),
    };
    let (subscription_id, home) = (terms.id, terms.home_partition);
    outbox::put(tx, &[Outgoing { subscription_id, home, record: Record::Control(control) }], scope.now()).await
}

async fn announce(scope: &Scope, tx: &mut Tx, counted: &CountedEvent, reason: &str) -> Result<()> {
    let event = &counted.event;
    let payload = json!({
        "usage_event_id": event.id,
        "customer_id": event.customer_id,
        "subscription_id": event.subscription_id,
        "product_id": event.product_id,
        "metric_key": event.metric_key,
        "quantity": event.quantity,
        "reason": reason,
    });
    let Value::Object(payload) = payload else { return Err(Error::invariant("a payload is an object")) };
    tx.emit(scope, "usage_event.voided", "usage_event", event.id, payload).await
}

/// A void whose window still counts the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenVoid {
    /// The window.
    pub window: WindowKey,
    /// The row that is voided.
    pub row: RowKey,
}

/// The open voids of windows that are not sealed.
///
/// # Errors
/// As every statement.
pub async fn open(store: &Store, windows: &[WindowKey]) -> Result<Vec<OpenVoid>> {
    let rows: Vec<(domain::SubscriptionId, Instant, UsageEventId, i16, i64)> = sqlx::query_as(
        "SELECT v.subscription_id, v.window_start, v.event_id, v.partition, v.position
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
         JOIN usage_void v USING (subscription_id, window_start)
         JOIN usage_window w USING (subscription_id, window_start)
         WHERE v.open AND w.status <> 'sealed'",
    )
    .bind(windows.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|(_, start)| *start).collect::<Vec<_>>())
    .fetch_all(store.pool())
    .await
    .context("reading open voids")?;
    let void = |(subscription_id, window_start, id, partition, position): (_, _, _, i16, i64)| OpenVoid {
        window: (subscription_id, window_start),
        row: (id, Partition::from(partition.unsigned_abs()), Position::from_i64(position)),
    };
    Ok(rows.into_iter().map(void).collect())
}

/// Closes voids, in the checkpoint that writes their windows without them.
pub(crate) async fn close(tx: &mut Tx, rows: &[RowKey]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE usage_void SET open = false
         FROM unnest($1::uuid[], $2::smallint[], $3::bigint[]) AS done (event_id, partition, position)
         WHERE (usage_void.event_id, usage_void.partition, usage_void.position)
             = (done.event_id, done.partition, done.position)",
    )
    .bind(rows.iter().map(|(id, _, _)| id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, partition, _)| column(*partition)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, position)| position.as_i64()).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .context("closing voids")?;
    Ok(())
}
