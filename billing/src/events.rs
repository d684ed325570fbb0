//! Domain events of many subjects in one statement (webhooks.md).

use domain::{Instant, JsonMap, Result, WorkspaceId};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::StoreError;
use uuid::Uuid;

/// One event for the outbox.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event {
    id: Uuid,
    workspace_id: WorkspaceId,
    event_type: &'static str,
    entity_type: &'static str,
    entity_id: Uuid,
    payload: JsonMap,
    created_at: Instant,
}

impl Event {
    /// An event whose payload is this object.
    pub(crate) fn new(
        workspace_id: WorkspaceId,
        event_type: &'static str,
        entity_type: &'static str,
        entity_id: impl Into<Uuid>,
        payload: serde_json::Value,
        now: Instant,
    ) -> Self {
        let payload = match payload {
            serde_json::Value::Object(map) => map,
            _ => JsonMap::new(),
        };
        Self {
            id: Uuid::now_v7(),
            workspace_id,
            event_type,
            entity_type,
            entity_id: entity_id.into(),
            payload,
            created_at: now,
        }
    }

    /// Adds a member to the payload.
    pub(crate) fn add(&mut self, name: &str, value: &str) {
        self.payload.insert(name.to_owned(), value.into());
    }
}

/// Writes events in the transaction of their cause.
pub(crate) async fn emit(conn: &mut PgConnection, events: &[Event]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO outbox (id, workspace_id, event_type, entity_type, entity_id, payload, created_at)
         SELECT id, workspace_id, event_type, entity_type, entity_id, payload, created_at
         FROM jsonb_populate_recordset(NULL::outbox, $1)",
    )
    .bind(Json(events))
    .execute(conn)
    .await
    .context("writing to the outbox")?;
    Ok(())
}
