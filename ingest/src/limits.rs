//! What a checkpoint writes of the limits of subscriptions: usage that the door refuses from then on, and what is told of
//! allowances (thresholds-and-alerts.md; allowances.md 5.1 rules 7 and 11).

use domain::period::Period;
use domain::{CustomerId, Instant, ProductId, Quantity, Result, SubscriptionId, WorkspaceId};
use rating::{Block, Exact};
use serde_json::{Value, json};
use sqlx::types::Json;
use store::{StoreError, Tx};
use uuid::Uuid;

use crate::checkpoint::{BreachWrite, WindowWrite};

/// What the limits of a subscription found in a window.
#[derive(Clone, Debug, Default)]
pub struct LimitsWrite {
    /// Usage caps that were reached.
    pub breaches: Vec<BreachWrite>,
    /// Parts of allowances that were used up, in order.
    pub alerts: Vec<AllowanceAlert>,
    /// All usage of the window that is refused; `None`: none is, and none was.
    pub blocks: Option<Vec<Block>>,
}

/// A part of an allowance that is used up.
#[derive(Clone, Debug)]
pub struct AllowanceAlert {
    /// UUIDv7 of the event that tells it: alerts are told in the order in which they were found.
    pub id: Uuid,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Owner of the subscription.
    pub customer_id: CustomerId,
    /// Whose allowance.
    pub subscription_id: SubscriptionId,
    /// Of what.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// So many percent; `None`: nothing is left.
    pub percent: Option<u8>,
    /// Total allowance.
    pub total: Quantity,
    /// What is used.
    pub used: Exact,
    /// The window.
    pub window: Period,
}

impl AllowanceAlert {
    fn event_type(&self) -> &'static str {
        if self.percent.is_some() { "allowance.threshold_reached" } else { "allowance.exhausted" }
    }

    fn payload(&self) -> Value {
        let mut payload = json!({
            "subscription_id": self.subscription_id,
            "customer_id": self.customer_id,
            "product_id": self.product_id,
            "metric_key": self.metric_key,
            "total_quantity": self.total,
            "used_quantity": self.used,
            "window_start": self.window.start,
            "window_end": self.window.end,
        });
        if let Some(percent) = self.percent {
            payload["percent"] = percent.into();
        }
        payload
    }
}

/// Sets what is refused of each window, never adds; a row that stays keeps the time since when it stands.
pub(crate) async fn write_blocks(tx: &mut Tx, windows: &[WindowWrite], now: Instant) -> Result<()> {
    let changed: Vec<_> = windows.iter().filter_map(|window| Some((window, window.limits.blocks.as_ref()?))).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = changed.iter().flat_map(|(w, blocks)| blocks.iter().map(move |block| (*w, block))).collect();
    sqlx::query(
        "WITH present AS (
             INSERT INTO usage_block (subscription_id, window_start, product_id, metric_key, starts_at, ends_at, code,
                                      workspace_id, price_key, except_keys, blocked_at)
             SELECT s, ws, p, m, starts_at, ends_at, code, w, key,
                    ARRAY(SELECT jsonb_array_elements_text(except_keys)), $9
             FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::text[], $5::timestamptz[], $6::timestamptz[],
                         $7::text[], $8::uuid[], $12::text[], $13::jsonb[])
                  AS t (s, ws, p, m, starts_at, ends_at, code, w, key, except_keys)
             ON CONFLICT (subscription_id, window_start, product_id, metric_key, price_key, starts_at, code)
             DO UPDATE SET ends_at = EXCLUDED.ends_at, except_keys = EXCLUDED.except_keys
             RETURNING subscription_id, window_start, product_id, metric_key, price_key, starts_at, code)
         DELETE FROM usage_block b USING unnest($10::uuid[], $11::timestamptz[]) AS w (subscription_id, window_start)
         WHERE b.subscription_id = w.subscription_id AND b.window_start = w.window_start
           AND (b.subscription_id, b.window_start, b.product_id, b.metric_key, b.price_key, b.starts_at, b.code)
               NOT IN (SELECT * FROM present)",
    )
    .bind(rows.iter().map(|(w, _)| w.subscription_id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|(w, _)| w.window.start).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, block)| block.product_id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, block)| block.metric_key.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, block)| block.starts_at).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, block)| block.ends_at).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, block)| block.code).collect::<Vec<_>>())
    .bind(rows.iter().map(|(w, _)| w.workspace_id.0).collect::<Vec<_>>())
    .bind(now)
    .bind(changed.iter().map(|(w, _)| w.subscription_id.0).collect::<Vec<_>>())
    .bind(changed.iter().map(|(w, _)| w.window.start).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, block)| block.price_key.as_deref().unwrap_or_default()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, block)| Json(&block.except_keys)).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .context("writing blocked usage")?;
    Ok(())
}

/// Writes the events `allowance.threshold_reached` and `allowance.exhausted`; a checkpoint that is tried again writes none twice.
pub(crate) async fn announce_allowances(tx: &mut Tx, windows: &[WindowWrite], now: Instant) -> Result<()> {
    let alerts: Vec<&AllowanceAlert> = windows.iter().flat_map(|window| &window.limits.alerts).collect();
    if alerts.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO outbox (id, workspace_id, event_type, entity_type, entity_id, payload, created_at)
         SELECT id, w, kind, 'subscription', s, payload, $6
         FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::jsonb[]) AS t (id, w, kind, s, payload)
         WHERE NOT EXISTS (SELECT FROM outbox known WHERE known.id = t.id)",
    )
    .bind(alerts.iter().map(|alert| alert.id).collect::<Vec<_>>())
    .bind(alerts.iter().map(|alert| alert.workspace_id.0).collect::<Vec<_>>())
    .bind(alerts.iter().map(|alert| alert.event_type()).collect::<Vec<_>>())
    .bind(alerts.iter().map(|alert| alert.subscription_id.0).collect::<Vec<_>>())
    .bind(alerts.iter().map(|alert| Json(alert.payload())).collect::<Vec<_>>())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("announcing used allowances")?;
    Ok(())
}
