//! A row of `usage_event` and what it means.

use clickhouse::Row;
use domain::{
    Currency, CustomerId, Error, HoldId, Instant, Position, ProductId, Quantity, Result, SubscriptionId, UsageEvent,
    UsageEventId, WorkspaceId,
};
use rust_decimal::Decimal;
use serde::Deserialize;
use uuid::Uuid;

use super::super::{CountedEvent, CountedId, vars};
use crate::checkpoint::WindowKey;
use crate::log::Partition;

#[derive(Row, Deserialize)]
pub(super) struct EventRow {
    #[serde(with = "clickhouse::serde::uuid")]
    id: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    workspace_id: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    customer_id: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    subscription_id: Uuid,
    #[serde(with = "clickhouse::serde::uuid")]
    product_id: Uuid,
    metric_key: String,
    quantity: i128,
    timestamp: i64,
    ingested_at: i64,
    idempotency_key: String,
    price_key: String,
    price_key_remapped: bool,
    external_cost_amount: String,
    external_cost_currency: String,
    wallet_currency: String,
    #[serde(with = "clickhouse::serde::uuid")]
    hold_id: Uuid,
    pricing_vars: String,
    dimension_vars: String,
    late: bool,
    window_start: i64,
    partition: u16,
    position: i64,
    payload_hash: u64,
}

impl EventRow {
    /// The counted event. Its catalog revision is not stored (nothing behind the store asks for it) and is 0.
    ///
    /// # Errors
    /// `Internal` for a damaged row.
    pub(super) fn into_counted(self) -> Result<CountedEvent> {
        let id = self.id;
        let damaged = move |what: &str| Error::invariant(format!("usage event {id} is stored with a wrong {what}"));
        let instant = |micros, what| Instant::from_timestamp_micros(micros).ok_or_else(|| damaged(what));
        let currency = |code: &str, what| Currency::parse(code).ok_or_else(|| damaged(what));
        let external_cost = match self.external_cost_currency.as_str() {
            "" => None,
            code => {
                let amount: Decimal = self.external_cost_amount.parse().map_err(|_| damaged("external_cost_amount"))?;
                Some((amount, currency(code, "external_cost_currency")?))
            }
        };
        let wallet_currency = match self.wallet_currency.as_str() {
            "" => None,
            code => Some(currency(code, "wallet_currency")?),
        };
        Ok(CountedEvent {
            window_start: instant(self.window_start, "window_start")?,
            late: self.late,
            partition: Partition::from(self.partition),
            position: Position::from_i64(self.position),
            payload_hash: self.payload_hash,
            event: Box::new(UsageEvent {
                id: UsageEventId(self.id),
                workspace_id: WorkspaceId(self.workspace_id),
                customer_id: CustomerId(self.customer_id),
                subscription_id: SubscriptionId(self.subscription_id),
                product_id: ProductId(self.product_id),
                metric_key: self.metric_key,
                quantity: Quantity::from_units(self.quantity),
                timestamp: instant(self.timestamp, "timestamp")?,
                idempotency_key: self.idempotency_key,
                price_key: Some(self.price_key).filter(|key| !key.is_empty()),
                price_key_remapped: self.price_key_remapped,
                external_cost,
                wallet_currency,
                hold_id: Some(self.hold_id).filter(|id| !id.is_nil()).map(HoldId),
                dimension_vars: vars::from_json(&self.dimension_vars)?,
                pricing_vars: vars::from_json(&self.pricing_vars)?,
                accepted_at: instant(self.ingested_at, "ingested_at")?,
                catalog_revision: 0,
            }),
        })
    }
}

/// An id and what counted it.
#[derive(Row, Deserialize)]
pub(super) struct IdRow {
    #[serde(with = "clickhouse::serde::uuid")]
    id: Uuid,
    position: i64,
    payload_hash: u64,
}

impl From<IdRow> for (UsageEventId, CountedId) {
    fn from(row: IdRow) -> Self {
        let counted = CountedId { position: Position::from_i64(row.position), payload_hash: row.payload_hash };
        (UsageEventId(row.id), counted)
    }
}

/// The window of a row.
#[derive(Row, Deserialize)]
pub(super) struct WindowRow {
    #[serde(with = "clickhouse::serde::uuid")]
    subscription_id: Uuid,
    window_start: i64,
}

impl WindowRow {
    pub(super) fn into_key(self) -> Result<WindowKey> {
        let start = Instant::from_timestamp_micros(self.window_start)
            .ok_or_else(|| Error::invariant("a usage event is stored with a wrong window_start"))?;
        Ok((SubscriptionId(self.subscription_id), start))
    }
}

/// Where a record is.
#[derive(Row, Deserialize)]
pub(super) struct PlaceRow {
    pub(super) partition: u16,
    pub(super) position: i64,
}

/// A bucket of an aggregate.
#[derive(Row, Deserialize)]
pub(super) struct BucketRow {
    pub(super) number: i64,
    pub(super) series: String,
    pub(super) value: i128,
}
