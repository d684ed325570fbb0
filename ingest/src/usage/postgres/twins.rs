//! Rows of one id under several positions (rule B5).

use chrono::NaiveDate;
use domain::{Instant, Result, UsageEventId};
use store::{StoreError, Tx};

use super::super::{CountedEvent, CountedWindow};
use super::days::midnight;
use super::row::{EventRow, columns};

/// Events of windows that one statement compares; more are compared day by day, so that no statement lives too long (P13).
const EVENTS_AT_ONCE: u64 = 50_000;

/// [`super::super::UsageStore::twins`].
pub(super) async fn of(tx: &mut Tx, windows: &[CountedWindow]) -> Result<Vec<CountedEvent>> {
    let mut ids = Vec::new();
    if windows.iter().map(|window| window.event_count).sum::<u64>() <= EVENTS_AT_ONCE {
        ids = doubled(tx, windows, None).await?;
    } else {
        let days: Vec<NaiveDate> = sqlx::query_scalar("SELECT day FROM usage_event_day ORDER BY day")
            .fetch_all(tx.conn())
            .await
            .context("reading the days of usage")?;
        for day in days {
            ids.extend(doubled(tx, windows, Some(day)).await?);
        }
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<EventRow> = sqlx::query_as(concat!(
        "SELECT ",
        columns!(),
        " FROM usage_event WHERE id = ANY($1) ORDER BY id, ingested_at, partition, position"
    ))
    .bind(ids)
    .fetch_all(tx.conn())
    .await
    .context("reading the rows of doubled ids")?;
    rows.into_iter().map(EventRow::into_counted).collect()
}

/// Ids of the windows, or of those of their events that were accepted on one day, that other rows have too.
async fn doubled(tx: &mut Tx, windows: &[CountedWindow], day: Option<NaiveDate>) -> Result<Vec<UsageEventId>> {
    let bounds: Option<(Instant, Instant)> =
        day.map(|day| (midnight(day), midnight(day.succ_opt().unwrap_or(NaiveDate::MAX))));
    sqlx::query_scalar(
        "SELECT DISTINCT e.id
         FROM unnest($1::uuid[], $2::timestamptz[]) AS w (subscription_id, window_start)
         JOIN usage_event e ON e.subscription_id = w.subscription_id AND e.window_start = w.window_start
         JOIN usage_event t ON t.id = e.id AND (t.partition <> e.partition OR t.position <> e.position)
         WHERE e.ingested_at >= coalesce($3, '-infinity') AND e.ingested_at < coalesce($4, 'infinity')",
    )
    .bind(windows.iter().map(|window| window.subscription_id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.window_start).collect::<Vec<_>>())
    .bind(bounds.map(|(from, _)| from))
    .bind(bounds.map(|(_, to)| to))
    .fetch_all(tx.conn())
    .await
    .context("looking for doubled ids")
}
