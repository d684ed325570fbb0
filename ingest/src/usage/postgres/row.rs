//! A row of `usage_event` and what it means.

use domain::{
    Currency, CustomerId, Error, HoldId, Instant, Position, ProductId, Quantity, Result, SubscriptionId, UsageEvent,
    UsageEventId, WorkspaceId,
};
use rust_decimal::Decimal;

use super::super::{CountedEvent, CountedId, vars};
use crate::log::Partition;

/// Columns of [`EventRow`], in the order in which [`super::copy`] writes them.
macro_rules! columns {
    () => {
        "id, workspace_id, customer_id, subscription_id, product_id, metric_key, quantity, \"timestamp\", ingested_at, \
         idempotency_key, price_key, price_key_remapped, external_cost_amount, external_cost_currency, wallet_currency, \
         hold_id, pricing_vars, dimension_vars, late, window_start, partition, position, payload_hash"
    };
}
pub(super) use columns;

/// Condition on a row `e` of `usage_event`.
macro_rules! not_voided {
    () => {
        "NOT EXISTS (SELECT FROM usage_void v
                     WHERE (v.event_id, v.partition, v.position) = (e.id, e.partition, e.position))"
    };
}
pub(super) use not_voided;

#[derive(sqlx::FromRow)]
pub(super) struct EventRow {
    id: UsageEventId,
    workspace_id: WorkspaceId,
    customer_id: CustomerId,
    subscription_id: SubscriptionId,
    product_id: ProductId,
    metric_key: String,
    quantity: Quantity,
    timestamp: Instant,
    ingested_at: Instant,
    idempotency_key: String,
    price_key: Option<String>,
    price_key_remapped: bool,
    external_cost_amount: Option<Decimal>,
    external_cost_currency: Option<Currency>,
    wallet_currency: Option<Currency>,
    hold_id: Option<HoldId>,
    pricing_vars: Option<String>,
    dimension_vars: Option<String>,
    late: bool,
    window_start: Instant,
    partition: i16,
    position: i64,
    payload_hash: i64,
}

impl EventRow {
    /// The counted event. Its catalog revision is not stored (nothing behind the store asks for it) and is 0.
    ///
    /// # Errors
    /// `Internal` for a damaged row.
    pub(super) fn into_counted(self) -> Result<CountedEvent> {
        let damaged = |_| Error::invariant(format!("usage event {} has partition {}", self.id, self.partition));
        Ok(CountedEvent {
            window_start: self.window_start,
            late: self.late,
            partition: Partition::try_from(self.partition).map_err(damaged)?,
            position: Position::from_i64(self.position),
            payload_hash: self.payload_hash.cast_unsigned(),
            event: Box::new(UsageEvent {
                id: self.id,
                workspace_id: self.workspace_id,
                customer_id: self.customer_id,
                subscription_id: self.subscription_id,
                product_id: self.product_id,
                metric_key: self.metric_key,
                quantity: self.quantity,
                timestamp: self.timestamp,
                idempotency_key: self.idempotency_key,
                price_key: self.price_key,
                price_key_remapped: self.price_key_remapped,
                external_cost: self.external_cost_amount.zip(self.external_cost_currency),
                wallet_currency: self.wallet_currency,
                hold_id: self.hold_id,
                dimension_vars: vars::from_json(self.dimension_vars.as_deref().unwrap_or_default())?,
                pricing_vars: vars::from_json(self.pricing_vars.as_deref().unwrap_or_default())?,
                accepted_at: self.ingested_at,
                catalog_revision: 0,
            }),
        })
    }
}

/// From (id, position, payload hash) as stored.
pub(super) fn counted_id((id, position, payload_hash): (UsageEventId, i64, i64)) -> (UsageEventId, CountedId) {
    (id, CountedId { position: Position::from_i64(position), payload_hash: payload_hash.cast_unsigned() })
}
