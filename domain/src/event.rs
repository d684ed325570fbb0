//! The usage event, as it is validated at the door, carried by the log and stored.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{Currency, CustomerId, HoldId, Instant, ProductId, Quantity, SubscriptionId, UsageEventId, WorkspaceId};

/// Value of a dimension or pricing variable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum VarValue {
    /// true or false.
    Bool(bool),
    /// Exact number.
    Number(Quantity),
    /// Text of up to 255 characters.
    Text(String),
}

impl fmt::Display for VarValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(value) => f.write_str(value),
        }
    }
}

/// `dimension_vars` or `pricing_vars` of an event: at most 50 keys `[a-z0-9_]{1,64}`.
pub type Vars = BTreeMap<String, VarValue>;

/// Variables that formulas read: at most 50 keys `[a-z0-9_]{1,64}`; strings up to 255, numbers, booleans.
#[derive(utoipa::ToSchema)]
pub struct PricingVars(#[allow(dead_code, reason = "schema only")] BTreeMap<String, serde_json::Value>);

/// Variables that filters, grouping and price resolution read; as pricing variables.
#[derive(utoipa::ToSchema)]
pub struct DimensionVars(#[allow(dead_code, reason = "schema only")] BTreeMap<String, serde_json::Value>);

/// One usage event, validated at the door (usage.md 2). Equality of content is over these canonical values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEvent {
    /// UUID version 5 of workspace and idempotency key.
    pub id: UsageEventId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Who consumed.
    pub customer_id: CustomerId,
    /// Gives the billing period.
    pub subscription_id: SubscriptionId,
    /// USAGE product.
    pub product_id: ProductId,
    /// Kind of consumption.
    pub metric_key: String,
    /// Amount consumed.
    pub quantity: Quantity,
    /// When it was consumed, at microseconds.
    pub timestamp: Instant,
    /// Makes retries safe.
    pub idempotency_key: String,
    /// Sibling price of a keyed product.
    pub price_key: Option<String>,
    /// Whether an unmatched key was routed to the default key.
    pub price_key_remapped: bool,
    /// Upstream cost.
    pub external_cost: Option<(rust_decimal::Decimal, Currency)>,
    /// Pins the event to the customer's wallet of that currency.
    pub wallet_currency: Option<Currency>,
    /// Hold that the event consumes.
    pub hold_id: Option<HoldId>,
    /// Read by filters, grouping and price resolution.
    pub dimension_vars: Vars,
    /// Read by formulas.
    pub pricing_vars: Vars,
    /// When the door accepted it, at microseconds; rules behind the door use this instant (rule B6).
    pub accepted_at: Instant,
    /// Catalog revision of the accepting node (rule B6).
    pub catalog_revision: i64,
}

impl UsageEvent {
    /// Whether the capture of a hold wrote it: it is paid already, so it is never refused for being late (rule D2).
    #[must_use]
    pub fn is_capture(&self) -> bool {
        self.hold_id.is_some_and(|hold| UsageEventId::of_capture(hold) == self.id)
    }

    /// Fingerprint of the content, without what the door added: two events of one id and another fingerprint are in
    /// conflict (rule B2).
    #[must_use]
    pub fn payload_hash(&self) -> u64 {
        // Gathered first: hashing many short pieces one by one takes several times as long.
        let mut content = SmallVec::<[u8; 512]>::new();
        let mut part = |bytes: &[u8]| {
            content.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            content.extend_from_slice(bytes);
        };
        part(self.customer_id.0.as_bytes());
        part(self.subscription_id.0.as_bytes());
        part(self.product_id.0.as_bytes());
        part(self.metric_key.as_bytes());
        part(&self.quantity.units().to_le_bytes());
        part(&self.timestamp.timestamp_micros().to_le_bytes());
        part(self.price_key.as_deref().unwrap_or_default().as_bytes());
        if let Some((amount, currency)) = &self.external_cost {
            part(amount.normalize().to_string().as_bytes());
            part(currency.as_str().as_bytes());
        }
        part(self.wallet_currency.as_ref().map(Currency::as_str).unwrap_or_default().as_bytes());
        part(self.hold_id.map(|h| h.0.into_bytes()).unwrap_or_default().as_slice());
        for vars in [&self.dimension_vars, &self.pricing_vars] {
            part(&(vars.len() as u64).to_le_bytes());
            for (key, value) in vars {
                part(key.as_bytes());
                match value {
                    VarValue::Bool(value) => part(&[1, u8::from(*value)]),
                    VarValue::Number(value) => part(&value.units().to_le_bytes()),
                    VarValue::Text(value) => part(value.as_bytes()),
                }
            }
        }
        xxhash_rust::xxh3::xxh3_64(&content)
    }
}

/// Place of a record in the log of its home partition: log first (order of creation), then offset (rule A6).
///
/// Packed into 64 bits: 15 bits of log ordinal, 48 bits of offset; positive as an `i64`, so that PostgreSQL and the
/// dedup index compare it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(u64);

impl Position {
    /// Before every record.
    pub const START: Self = Self(0);

    /// Of an offset in the log with this ordinal.
    ///
    /// # Panics
    /// Never for ordinals below 32,768 and offsets below 2⁴⁸; debug builds assert it.
    #[must_use]
    pub fn new(log_ordinal: u16, offset: u64) -> Self {
        debug_assert!(log_ordinal < 1 << 15 && offset < 1 << 48);
        Self((u64::from(log_ordinal) << 48) | (offset & ((1 << 48) - 1)))
    }

    /// Order of creation of the log.
    #[must_use]
    pub fn log_ordinal(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Offset in the partition.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }

    /// The position before this one; before the first of a log it is above all of the logs before.
    #[must_use]
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// As stored.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        self.0.cast_signed()
    }

    /// As read from storage.
    #[must_use]
    pub fn from_i64(value: i64) -> Self {
        Self(value.cast_unsigned())
    }
}
