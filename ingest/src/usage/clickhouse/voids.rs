//! Copies voids from PostgreSQL, where they are recorded with the money they change.
//!
//! A row is marked as mirrored after ClickHouse has it, so a crash between the two copies it again, which changes
//! nothing: readers ask whether an id is there. Called before every sum and replay, so both see all voids that were
//! committed before them; usually one look at an empty index.

use clickhouse::Client;
use domain::{Instant, Result, UsageEventId, WorkspaceId};
use store::{Store, StoreError};

use super::{encode, writer};

/// Voids that are copied at once.
const CHUNK: i64 = 10_000;

pub(super) async fn mirror(client: &Client, store: &Store) -> Result<()> {
    loop {
        let voids: Vec<(WorkspaceId, UsageEventId, String, Instant)> = sqlx::query_as(
            "SELECT workspace_id, event_id, reason, voided_at FROM usage_void WHERE NOT mirrored ORDER BY event_id LIMIT $1",
        )
        .bind(CHUNK)
        .fetch_all(store.pool())
        .await
        .context("reading voids to mirror")?;
        if voids.is_empty() {
            return Ok(());
        }
        let mut body = Vec::new();
        for (workspace_id, event_id, reason, voided_at) in &voids {
            encode::uuid(&mut body, workspace_id.0);
            encode::uuid(&mut body, event_id.0);
            encode::text(&mut body, reason);
            encode::instant(&mut body, *voided_at);
        }
        writer::insert(client, "usage_void", "workspace_id, event_id, reason, voided_at", body.into())
            .await
            .map_err(|error| super::failed("mirroring voids", error))?;
        let ids: Vec<UsageEventId> = voids.into_iter().map(|(_, id, _, _)| id).collect();
        sqlx::query("UPDATE usage_void SET mirrored = true WHERE event_id = ANY($1)")
            .bind(ids)
            .execute(store.pool())
            .await
            .context("marking mirrored voids")?;
    }
}
