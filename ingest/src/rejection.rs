//! Events that were accepted and then could not be billed: listed, replayed, discarded (usage.md 3.1). Nothing is lost in
//! silence (promise 2).

use chrono::{DateTime, Utc};
use domain::{CustomerId, Error, JsonMap, ProductId, RejectionId, Result, Scope, SubscriptionId, UsageEventId};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::{ListField, ListKind, ListSpec, StoreError, Tx};

use crate::view::IngestEventRequest;

domain::wire_enum! {
    /// What became of a refused event.
    pub enum RejectedUsageEventStatus {
        /// Waits for an operator.
        Open = "open",
        /// Was sent again, or counts again because the catalog was mended.
        Replayed = "replayed",
        /// Closed without billing.
        Discarded = "discarded",
    }
}

/// A refused usage event.
#[derive(Clone, Debug, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct RejectedUsageEvent {
    /// This row.
    pub id: RejectionId,
    /// The event's id.
    pub event_id: UsageEventId,
    /// As sent.
    pub customer_id: Option<CustomerId>,
    /// As sent.
    pub subscription_id: Option<SubscriptionId>,
    /// As sent.
    pub product_id: Option<ProductId>,
    /// As sent.
    pub metric_key: Option<String>,
    /// Why, stable.
    pub code: String,
    /// Why, for people.
    pub message: String,
    /// The event as it was sent.
    #[schema(value_type = Object)]
    pub payload: Json<serde_json::Value>,
    /// What became of it.
    pub status: RejectedUsageEventStatus,
    /// When it was refused.
    pub rejected_at: DateTime<Utc>,
    /// When it was replayed or discarded, or counted again.
    pub resolved_at: Option<DateTime<Utc>>,
    /// By which key; null where it counts again.
    pub resolved_by: Option<uuid::Uuid>,
}

/// The list, newest first.
pub const LIST: ListSpec = ListSpec {
    name: "usage_event_rejections",
    columns: COLUMNS,
    from: "usage_rejection",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("event_id", ListKind::Id),
        ListField::new("status", ListKind::Word(&["open", "replayed", "discarded"])),
        ListField::new("code", ListKind::Text),
        ListField::new("customer_id", ListKind::Id),
        ListField::new("subscription_id", ListKind::Id),
        ListField::new("rejected_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "rejected_at",
    id: "id",
};

const COLUMNS: &str =
    "id, event_id, customer_id, subscription_id, product_id, metric_key, code, message, payload, status,
                       rejected_at, resolved_at, resolved_by";

/// One rejection of the scope's workspace.
///
/// # Errors
/// `NotFound`; as every statement.
pub async fn get(conn: &mut PgConnection, scope: &Scope, id: RejectionId) -> Result<RejectedUsageEvent> {
    sqlx::query_as(
        "SELECT id, event_id, customer_id, subscription_id, product_id, metric_key, code, message, payload, status,
                rejected_at, resolved_at, resolved_by
         FROM usage_rejection WHERE id = $1 AND workspace_id = $2",
    )
    .bind(id)
    .bind(scope.workspace_id)
    .fetch_optional(conn)
    .await
    .context("reading a usage rejection")?
    .ok_or_else(|| Error::not_found("usage_event_rejection", id))
}

/// Closes an open rejection.
///
/// # Errors
/// `NotFound`, `Conflict` with `INVALID_TRANSITION` when it is closed already; as every statement.
pub async fn resolve(
    scope: &Scope,
    tx: &mut Tx,
    id: RejectionId,
    status: RejectedUsageEventStatus,
    reason: Option<&str>,
) -> Result<RejectedUsageEvent> {
    let changed = sqlx::query(
        "UPDATE usage_rejection SET status = $3, reason = $4, resolved_at = $5, resolved_by = $6
         WHERE id = $1 AND workspace_id = $2 AND status = 'open'",
    )
    .bind(id)
    .bind(scope.workspace_id)
    .bind(status)
    .bind(reason)
    .bind(scope.now())
    .bind(scope.api_key_id())
    .execute(tx.conn())
    .await
    .context("closing a usage rejection")?;
    let rejection = get(tx.conn(), scope, id).await?;
    if changed.rows_affected() == 1 {
        return Ok(rejection);
    }
    Err(Error::invalid_transition("usage_event_rejection", id, rejection.status.as_str(), status.as_str(), &[]))
}

/// `ReplayRejectedEventRequest`: the mended event, or none to send it as it was.
#[derive(Clone, Debug, utoipa::ToSchema)]
pub struct ReplayRejectedEventRequest {
    /// The mended event, with the same `idempotency_key`.
    #[schema(value_type = Option<IngestEventRequest>)]
    pub event: Option<JsonMap>,
}

impl ReplayRejectedEventRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &serde_json::Value) -> Result<Self> {
        let mut input = domain::Input::new(body)?;
        let event = input.optional("event", domain::input::Field::json_object);
        input.finish()?;
        Ok(Self { event })
    }

    /// The event to send: its key must be that of the refused one, so that it stays one event.
    ///
    /// # Errors
    /// `Validation` for another key.
    pub fn payload(&self, rejection: &RejectedUsageEvent) -> Result<String> {
        let Some(event) = &self.event else { return Ok(rejection.payload.0.to_string()) };
        let key = |payload: Option<&serde_json::Value>| payload.and_then(|v| v.as_str()).map(str::to_owned);
        let known = key(rejection.payload.0.get("idempotency_key"));
        if known.is_some() && key(event.get("idempotency_key")) != known {
            return Err(Error::field(
                "event.idempotency_key",
                domain::error::FieldErrorCode::NotAllowed,
                "must be the idempotency_key of the refused event",
            ));
        }
        Ok(serde_json::Value::Object(event.clone()).to_string())
    }
}

/// `DiscardRejectedEventRequest`.
#[derive(Clone, Debug, utoipa::ToSchema)]
pub struct DiscardRejectedEventRequest {
    /// Why it is not billed.
    pub reason: String,
}

impl DiscardRejectedEventRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &serde_json::Value) -> Result<Self> {
        let mut input = domain::Input::new(body)?;
        let reason = input.required("reason", |v| v.text(1, 500));
        input.finish()?;
        Ok(Self { reason: reason.unwrap_or_default() })
    }
}
