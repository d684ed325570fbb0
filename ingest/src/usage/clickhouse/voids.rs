//! Copies voids from PostgreSQL, where they are recorded with the money they change.
//!
//! A row is marked as mirrored after ClickHouse has it, so a crash between the two copies it again, which changes
//! nothing: readers ask whether a row is there. Called before every sum and replay, so both see all voids that were
//! committed before them; usually one look at an empty index.

use std::fmt::Write as _;

use clickhouse::Client;
use domain::{Instant, Result, UsageEventId, WorkspaceId};
use store::{Store, StoreError};

use super::{encode, query, rollup, writer};

/// Voids that are copied at once.
const CHUNK: i64 = 2_000;
const COLUMNS: &str = "workspace_id, event_id, partition, position, reason, voided_at";

#[derive(sqlx::FromRow)]
struct Void {
    workspace_id: WorkspaceId,
    event_id: UsageEventId,
    partition: i16,
    position: i64,
    reason: String,
    voided_at: Instant,
}

pub(super) async fn mirror(client: &Client, store: &Store) -> Result<()> {
    loop {
        let voids: Vec<Void> = sqlx::query_as(
            "SELECT workspace_id, event_id, partition, position, reason, voided_at FROM usage_void WHERE NOT mirrored
             ORDER BY event_id LIMIT $1",
        )
        .bind(CHUNK)
        .fetch_all(store.pool())
        .await
        .context("reading voids to mirror")?;
        if voids.is_empty() {
            return Ok(());
        }
        let mut body = Vec::new();
        for void in &voids {
            encode::uuid(&mut body, void.workspace_id.0);
            encode::uuid(&mut body, void.event_id.0);
            body.extend_from_slice(&void.partition.to_le_bytes());
            body.extend_from_slice(&void.position.to_le_bytes());
            encode::text(&mut body, &void.reason);
            encode::instant(&mut body, void.voided_at);
        }
        writer::insert(client, "usage_void", COLUMNS, body.into())
            .await
            .map_err(|error| super::failed("mirroring voids", error))?;
        // A sum per minute that was computed before must not outlive the void.
        let minutes = rollup::minutes_of(client, &places(&voids)).await?;
        let mut tx = store.begin("marking mirrored voids").await?;
        sqlx::query(
            "UPDATE usage_void SET mirrored = true
             FROM unnest($1::uuid[], $2::smallint[], $3::bigint[]) AS copied (event_id, partition, position)
             WHERE (usage_void.event_id, usage_void.partition, usage_void.position)
                 = (copied.event_id, copied.partition, copied.position)",
        )
        .bind(voids.iter().map(|void| void.event_id.0).collect::<Vec<_>>())
        .bind(voids.iter().map(|void| void.partition).collect::<Vec<_>>())
        .bind(voids.iter().map(|void| void.position).collect::<Vec<_>>())
        .execute(tx.conn())
        .await
        .context("marking mirrored voids")?;
        rollup::note(&mut tx, &minutes).await?;
        tx.commit().await?;
    }
}

/// Condition on the rows that are voided.
fn places(voids: &[Void]) -> String {
    let mut workspaces: Vec<_> = voids.iter().map(|void| void.workspace_id.0).collect();
    workspaces.sort_unstable();
    workspaces.dedup();
    let mut places = String::new();
    for Void { partition, position, .. } in voids {
        let comma = if places.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(places, "{comma}({partition},{position})");
    }
    let workspaces = query::listed(workspaces.into_iter());
    format!("workspace_id IN ({workspaces}) AND (partition, position) IN ({places})")
}
