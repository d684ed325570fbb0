//! The usage windows that billing waits for. Ingest writes their rows, billing reads them.

use std::time::Duration;

pub use catalog::compiled::WindowStatus;
use domain::{Error, Position, Result};
use store::{Store, StoreError};
use tokio::time::Instant as Deadline;

use crate::control::WindowRef;

/// First pause between two looks at the table; it doubles up to [`POLL_MAX`].
const POLL_MIN: Duration = Duration::from_millis(2);
/// Longest pause between two looks (P12).
const POLL_MAX: Duration = Duration::from_millis(200);

/// Statuses that are as far as `status`.
fn reached(status: WindowStatus) -> &'static [&'static str] {
    match status {
        WindowStatus::Open => &["open", "ended", "sealed"],
        WindowStatus::Ended => &["ended", "sealed"],
        WindowStatus::Sealed => &["sealed"],
    }
}

/// Waits until the checkpoints have passed `records`, the control records of the windows, and every window is at least as
/// far as `status`: one query per look, whatever the number of windows. The status alone would not do: a window that was
/// sealed, and whose seal is being taken back, still is sealed when it is sealed anew.
///
/// # Errors
/// `Unavailable` for `event_log` when the deadline passes first: the control records are in the log, so that a repeat
/// of the whole operation is safe and finds them read.
pub async fn wait(
    store: &Store,
    windows: &[WindowRef],
    records: &[Position],
    status: WindowStatus,
    deadline: Duration,
) -> Result<()> {
    let until = Deadline::now() + deadline;
    let mut pause = POLL_MIN;
    while !all_reached(store, windows, records, status).await? {
        if Deadline::now() + pause > until {
            let detail = format!("the totals of {} usage window(s) are not checkpointed yet", windows.len());
            return Err(Error::Unavailable { dependency: "event_log", detail, retry_after_secs: 1 });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
    Ok(())
}

/// Waits until the usage outbox holds nothing of these subscriptions, so that what was captured or voided before stands in
/// the log before their seals; and until no change of the catalog is on its way to usage of the windows (rule B6).
///
/// # Errors
/// `Unavailable` for `event_log` when the deadline passes first.
pub async fn wait_for_usage(store: &Store, windows: &[WindowRef], deadline: Duration) -> Result<()> {
    let until = Deadline::now() + deadline;
    let mut pause = POLL_MIN;
    while is_underway(store, windows).await? {
        if Deadline::now() + pause > until {
            let detail = "captured or voided usage, or a change of the catalog, is not counted yet".to_owned();
            return Err(Error::Unavailable { dependency: "event_log", detail, retry_after_secs: 1 });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
    Ok(())
}

async fn is_underway(store: &Store, windows: &[WindowRef]) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM usage_outbox WHERE subscription_id = ANY($1))
             OR EXISTS (SELECT FROM unnest($2::uuid[], $3::timestamptz[]) AS w (workspace_id, window_end)
                        JOIN catalog_recount c USING (workspace_id)
                        WHERE c.done_at IS NULL AND coalesce(c.from_at < w.window_end, true))",
    )
    .bind(windows.iter().map(|window| window.subscription_id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.workspace_id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.window_end).collect::<Vec<_>>())
    .fetch_one(store.pool())
    .await
    .context("looking for usage on its way")
}

async fn all_reached(store: &Store, windows: &[WindowRef], records: &[Position], status: WindowStatus) -> Result<bool> {
    let reached: i64 = sqlx::query_scalar(
        r#"SELECT count(*)
           FROM unnest($1::uuid[], $2::timestamptz[], $3::integer[], $4::smallint[], $5::bigint[])
                AS asked (subscription_id, window_start, home, ordinal, "offset")
           JOIN usage_window USING (subscription_id, window_start)
           JOIN event_log USING (ordinal)
           JOIN partition_checkpoint c ON c.log_id = event_log.id AND c.partition = asked.home
           WHERE usage_window.status = ANY($6) AND c.next_offset > asked."offset""#,
    )
    .bind(windows.iter().map(|window| window.subscription_id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.window_start).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.home_partition).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.log_ordinal().cast_signed()).collect::<Vec<_>>())
    .bind(records.iter().map(|record| record.offset().cast_signed()).collect::<Vec<_>>())
    .bind(reached(status))
    .fetch_one(store.pool())
    .await
    .context("waiting for usage windows")?;
    Ok(usize::try_from(reached).is_ok_and(|reached| reached == windows.len()))
}
