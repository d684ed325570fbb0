//! Rating keys and the running totals that are kept per key (rule C1).

use std::sync::Arc;

use domain::{Currency, Instant, ProductId, VersionId};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use crate::binding::CompiledBinding;
use crate::error::Result;
use crate::exact::Exact;
use crate::field::FieldValue;
use crate::meter::MeterState;
use crate::pricing::CompiledPrice;

/// What a running total is kept per (rule C1). Product, metric and price key follow from the versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RatingKey {
    /// Version of the binding: gives product, metric, filters and multiplier.
    pub binding_version_id: VersionId,
    /// Version of the meter that the binding pins.
    pub meter_version_id: VersionId,
    /// Version of the price, gives the price key; none for a binding that is not billed.
    pub price_version_id: Option<VersionId>,
    /// Start of the segment of the subscription's price context in which the event lies.
    pub segment_start: Instant,
    /// Wallet to which the event is pinned.
    pub wallet_currency: Option<Currency>,
}

impl RatingKey {
    /// A quick fingerprint; equal keys have equal ones.
    pub(crate) fn fingerprint(&self) -> u64 {
        let price = self.price_version_id.map_or(0, |id| id.0.as_u128());
        let ids = self.binding_version_id.0.as_u128()
            ^ self.meter_version_id.0.as_u128().rotate_left(23)
            ^ price.rotate_left(46);
        let wallet = self
            .wallet_currency
            .map_or(0, |currency| currency.as_str().bytes().fold(0_u64, |bits, byte| (bits << 8) | u64::from(byte)));
        let mixed =
            ids ^ u128::from(self.segment_start.timestamp_micros().cast_unsigned()) ^ (u128::from(wallet) << 64);
        (mixed as u64) ^ ((mixed >> 64) as u64) // folds the halves, on purpose
    }
}

/// One running total.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub(crate) binding: Arc<CompiledBinding>,
    pub(crate) price: Option<Arc<CompiledPrice>>,
    pub(crate) segment_start: Instant,
    pub(crate) wallet_currency: Option<Currency>,
    pub(crate) state: MeterState,
    pub(crate) event_count: u64,
}

impl Entry {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> RatingKey {
        key_of(&self.binding, self.price.as_ref(), self.segment_start, self.wallet_currency)
    }

    /// Version of the binding that counts.
    #[must_use]
    pub fn binding(&self) -> &Arc<CompiledBinding> {
        &self.binding
    }

    /// Version of the price that rates; `None` when the binding is not billed.
    #[must_use]
    pub fn price(&self) -> Option<&Arc<CompiledPrice>> {
        self.price.as_ref()
    }

    /// The product.
    #[must_use]
    pub fn product_id(&self) -> ProductId {
        self.binding.product_id
    }

    /// The metric.
    #[must_use]
    pub fn metric_key(&self) -> &str {
        &self.binding.meter.metric_key
    }

    /// The price key.
    #[must_use]
    pub fn price_key(&self) -> Option<&str> {
        self.price.as_ref().and_then(|price| price.price_key.as_deref())
    }

    /// The wallet pin.
    #[must_use]
    pub fn wallet_currency(&self) -> Option<Currency> {
        self.wallet_currency
    }

    /// Start of the price segment.
    #[must_use]
    pub fn segment_start(&self) -> Instant {
        self.segment_start
    }

    /// State of the meter.
    #[must_use]
    pub fn state(&self) -> &MeterState {
        &self.state
    }

    /// Events counted.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.event_count
    }

    /// Quantity after the multiplier, 0 when empty.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn quantity(&self) -> Result<Exact> {
        Ok(self.binding.quantity(&self.state)?.unwrap_or(Exact::ZERO))
    }
}

pub(crate) fn key_of(
    binding: &CompiledBinding,
    price: Option<&Arc<CompiledPrice>>,
    segment_start: Instant,
    wallet_currency: Option<Currency>,
) -> RatingKey {
    RatingKey {
        binding_version_id: binding.version_id,
        meter_version_id: binding.meter.version_id,
        price_version_id: price.map(|price| price.version_id),
        segment_start,
        wallet_currency,
    }
}

/// What a distinct value is counted under: the rating key without the versions of binding and meter, because "distinct"
/// holds over both parts of a window that a new version splits (meters.md 5).
pub(crate) fn member_hash(binding: &CompiledBinding, key: &RatingKey, value: FieldValue<'_>) -> u128 {
    let mut bytes = SmallVec::<[u8; 128]>::new();
    bytes.extend_from_slice(binding.binding_id.0.as_bytes());
    bytes.extend_from_slice(key.price_version_id.map(|id| id.0.into_bytes()).unwrap_or_default().as_slice());
    bytes.extend_from_slice(&key.segment_start.timestamp_micros().to_le_bytes());
    bytes.extend_from_slice(key.wallet_currency.as_ref().map_or("---", Currency::as_str).as_bytes());
    match value {
        FieldValue::Bool(value) => bytes.extend_from_slice(&[0, u8::from(value)]),
        FieldValue::Number(value) => {
            bytes.push(1);
            bytes.extend_from_slice(&value.units().to_le_bytes());
        }
        FieldValue::Text(value) => {
            bytes.push(2);
            bytes.extend_from_slice(value.as_bytes());
        }
    }
    xxh3_128(&bytes)
}
