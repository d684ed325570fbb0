//! Rows in ClickHouse's RowBinary format, encoded once, by the caller of `append`, so that the writer only sorts and joins.

use std::ops::Range;

use chrono::Datelike;
use domain::quantity::SCALE;
use domain::{Instant, Position};
use rust_decimal::Decimal;
use uuid::Uuid;

use super::super::{CountedEvent, vars};
use crate::log::Partition;

/// Columns in the order of [`row`].
pub(super) const EVENT_COLUMNS: &str = "id, workspace_id, customer_id, subscription_id, product_id, metric_key, quantity, \
    timestamp, ingested_at, idempotency_key, price_key, price_key_remapped, external_cost_amount, external_cost_currency, \
    wallet_currency, hold_id, pricing_vars, dimension_vars, late, window_start, partition, position, payload_hash";
/// Columns in the order of [`id_row`].
pub(super) const ID_COLUMNS: &str = "id, partition, position, payload_hash";

/// Bytes of a row with short texts; a first guess for the buffer.
const ROW_BYTES: usize = 320;
const HOUR_MICROS: i64 = 3_600_000_000;

/// Rows of one append.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) heads: Vec<Head>,
    bytes: Vec<u8>,
}

impl Rows {
    pub(super) fn body(&self, head: &Head) -> &[u8] {
        &self.bytes[head.body.clone()]
    }
}

/// What the writer needs to know of a row.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// Order of the table; positions last, so that twins are neighbours.
    pub(super) order: Order,
    /// ClickHouse partition.
    pub(super) month: i32,
    pub(super) id: Uuid,
    pub(super) payload_hash: u64,
    /// Whether it may be stored already.
    pub(super) suspect: bool,
    body: Range<usize>,
}

/// The table's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    workspace: (u64, u64),
    hour: i64,
    subscription: (u64, u64),
    timestamp: i64,
    id: (u64, u64),
    pub(super) partition: Partition,
    pub(super) position: Position,
}

/// Encodes rows; those at or before `known` are marked as suspects.
pub(super) fn rows(events: &[CountedEvent], known: Position) -> Rows {
    let mut bytes = Vec::with_capacity(events.len() * ROW_BYTES);
    let heads = events
        .iter()
        .map(|counted| {
            let start = bytes.len();
            row(&mut bytes, counted);
            head(counted, known, start..bytes.len())
        })
        .collect();
    Rows { heads, bytes }
}

fn head(counted: &CountedEvent, known: Position, body: Range<usize>) -> Head {
    let event = &counted.event;
    let timestamp = event.timestamp.timestamp_micros();
    Head {
        order: Order {
            workspace: uuid_order(event.workspace_id.0),
            hour: timestamp.div_euclid(HOUR_MICROS),
            subscription: uuid_order(event.subscription_id.0),
            timestamp,
            id: uuid_order(event.id.0),
            partition: counted.partition,
            position: counted.position,
        },
        month: event.accepted_at.year() * 12 + event.accepted_at.month0().cast_signed(),
        id: event.id.0,
        payload_hash: counted.payload_hash,
        suspect: counted.position <= known,
        body,
    }
}

/// ClickHouse compares UUIDs by their second half first.
pub(super) fn uuid_order(id: Uuid) -> (u64, u64) {
    let (first, second) = id.as_u64_pair();
    (second, first)
}

fn row(bytes: &mut Vec<u8>, counted: &CountedEvent) {
    let event = &counted.event;
    for id in [event.id.0, event.workspace_id.0, event.customer_id.0, event.subscription_id.0, event.product_id.0] {
        uuid(bytes, id);
    }
    text(bytes, &event.metric_key);
    bytes.extend_from_slice(&event.quantity.units().to_le_bytes());
    instant(bytes, event.timestamp);
    instant(bytes, event.accepted_at);
    text(bytes, &event.idempotency_key);
    text(bytes, event.price_key.as_deref().unwrap_or_default());
    bytes.push(u8::from(event.price_key_remapped));
    match &event.external_cost {
        Some((amount, currency)) => {
            text(bytes, &amount.to_string());
            text(bytes, currency.as_str());
        }
        None => bytes.extend_from_slice(&[0, 0]),
    }
    text(bytes, event.wallet_currency.as_ref().map(|currency| currency.as_str()).unwrap_or_default());
    uuid(bytes, event.hold_id.map(|id| id.0).unwrap_or_default());
    text(bytes, &vars::to_json(&event.pricing_vars).unwrap_or_default());
    text(bytes, &vars::to_json(&event.dimension_vars).unwrap_or_default());
    bytes.push(u8::from(counted.late));
    instant(bytes, counted.window_start);
    place(bytes, counted.partition, counted.position, counted.payload_hash);
}

/// A row of `usage_event_id`.
pub(super) fn id_row(bytes: &mut Vec<u8>, head: &Head) {
    uuid(bytes, head.id);
    place(bytes, head.order.partition, head.order.position, head.payload_hash);
}

fn place(bytes: &mut Vec<u8>, partition: Partition, position: Position, payload_hash: u64) {
    // A log has at most 1,024 partitions.
    bytes.extend_from_slice(&u16::try_from(partition).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend_from_slice(&position.as_i64().to_le_bytes());
    bytes.extend_from_slice(&payload_hash.to_le_bytes());
}

/// Two halves, each a little-endian number.
pub(super) fn uuid(bytes: &mut Vec<u8>, id: Uuid) {
    let (first, second) = id.as_u64_pair();
    bytes.extend_from_slice(&first.to_le_bytes());
    bytes.extend_from_slice(&second.to_le_bytes());
}

/// Its length in groups of seven bits, then its bytes.
pub(super) fn text(bytes: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(text.as_bytes());
}

pub(super) fn instant(bytes: &mut Vec<u8>, instant: Instant) {
    bytes.extend_from_slice(&instant.timestamp_micros().to_le_bytes());
}

/// `Decimal(38, 12)`; `None` for a number that it does not hold exactly.
pub(super) fn decimal(bytes: &mut Vec<u8>, number: Decimal) -> Option<()> {
    let number = number.normalize();
    let power = 10_i128.checked_pow(SCALE.checked_sub(number.scale())?)?;
    let units = number.mantissa().checked_mul(power).filter(|units| units.unsigned_abs() < 10_u128.pow(38))?;
    bytes.extend_from_slice(&units.to_le_bytes());
    Some(())
}
