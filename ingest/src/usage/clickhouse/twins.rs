//! Rows of one id under several positions (rule B5).

use std::fmt::Write as _;

use clickhouse::{Client, Row};
use domain::Result;
use serde::Deserialize;
use uuid::Uuid;

use super::super::{CountedEvent, CountedWindow};
use super::query::{self, listed};
use super::row::PlaceRow;
use super::within;

/// Windows of one query: their text stays below ClickHouse's default limit of 256 KiB.
const WINDOWS_AT_ONCE: usize = 1_000;
/// Ids that one query holds in memory, about.
const EVENTS_AT_ONCE: u64 = 2_000_000;
/// Doubled ids that are read at once.
const IDS_AT_ONCE: usize = 500;

#[derive(Row, Deserialize)]
struct IdRow {
    #[serde(with = "clickhouse::serde::uuid")]
    id: Uuid,
}

/// [`super::super::UsageStore::twins`].
pub(super) async fn of(client: &Client, windows: &[CountedWindow]) -> Result<Vec<CountedEvent>> {
    let mut ids = Vec::new();
    for windows in windows.chunks(WINDOWS_AT_ONCE) {
        let events: u64 = windows.iter().map(|window| window.event_count).sum();
        let parts = events / EVENTS_AT_ONCE + 1;
        for part in 0..parts {
            ids.extend(doubled(client, windows, part, parts).await?);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    let mut rows = Vec::new();
    for ids in ids.chunks(IDS_AT_ONCE) {
        rows.extend(rows_of(client, windows, ids).await?);
    }
    rows.sort_by_key(|row| (row.event.id, row.precedence()));
    Ok(rows)
}

/// Ids of a part of the windows' events that several places have.
async fn doubled(client: &Client, windows: &[CountedWindow], part: u64, parts: u64) -> Result<Vec<Uuid>> {
    let mut pairs = String::new();
    for window in windows {
        let comma = if pairs.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(pairs, "{comma}('{}',{})", window.subscription_id, query::micros(window.window_start));
    }
    let sql = format!(
        "SELECT id FROM usage_event_id
         WHERE id IN (SELECT id FROM usage_event
                      WHERE workspace_id IN ({}) AND (subscription_id, window_start) IN ({pairs})
                        AND position % {parts} = {part})
         GROUP BY id HAVING min((partition, position)) < max((partition, position))",
        workspaces(windows),
    );
    let rows = within("looking for doubled ids", client.query(&sql).fetch_all::<IdRow>()).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

async fn rows_of(client: &Client, windows: &[CountedWindow], ids: &[Uuid]) -> Result<Vec<CountedEvent>> {
    const OPERATION: &str = "reading the rows of doubled ids";
    let ids = listed(ids.iter().copied());
    let sql = format!("SELECT DISTINCT partition, position FROM usage_event_id WHERE id IN ({ids})");
    let places = within(OPERATION, client.query(&sql).fetch_all::<PlaceRow>()).await?;
    let condition = format!("workspace_id IN ({}) AND id IN ({ids})", workspaces(windows));
    query::at_places(client, OPERATION, &condition, &places).await
}

fn workspaces(windows: &[CountedWindow]) -> String {
    let mut ids: Vec<Uuid> = windows.iter().map(|window| window.workspace_id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    listed(ids.into_iter())
}
