//! Rating keys and the running totals that are kept per key (rule C1).

use std::sync::Arc;

use domain::event::VarValue;
use domain::{Currency, Instant, ProductId, VersionId};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use crate::binding::CompiledBinding;
use crate::error::Result;
use crate::exact::Exact;
use crate::field::FieldValue;
use crate::meter::MeterState;
use crate::pricing::CompiledPrice;
use crate::rate_table::RateTable;

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
    /// Currency of the value, where the meter counts money.
    pub unit_currency: Option<Currency>,
    /// Start of the sub-window, where the window of the meter is shorter than the billing period.
    pub sub_window: Option<Instant>,
    /// Fingerprint of the event variables that the expressions of the price read.
    pub variables: Option<u128>,
}

impl RatingKey {
    /// A quick fingerprint; equal keys have equal ones.
    pub(crate) fn fingerprint(&self) -> u64 {
        let price = self.price_version_id.map_or(0, |id| id.0.as_u128());
        let ids = self.binding_version_id.0.as_u128()
            ^ self.meter_version_id.0.as_u128().rotate_left(23)
            ^ price.rotate_left(46)
            ^ self.variables.unwrap_or_default();
        let code = |currency: Option<Currency>| {
            currency
                .map_or(0, |currency| currency.as_str().bytes().fold(0_u64, |bits, byte| (bits << 8) | u64::from(byte)))
        };
        let micros = |instant: Instant| u128::from(instant.timestamp_micros().cast_unsigned());
        let mixed = ids
            ^ micros(self.segment_start)
            ^ self.sub_window.map_or(0, micros).rotate_left(17)
            ^ (u128::from(code(self.wallet_currency)) << 64)
            ^ (u128::from(code(self.unit_currency)) << 96);
        (mixed as u64) ^ ((mixed >> 64) as u64) // folds the halves, on purpose
    }

    /// What the row of this key is stored under.
    pub(crate) fn row_hash(&self) -> u128 {
        let mut bytes = SmallVec::<[u8; 128]>::new();
        bytes.extend_from_slice(b"running total");
        bytes.extend_from_slice(self.binding_version_id.0.as_bytes());
        bytes.extend_from_slice(self.meter_version_id.0.as_bytes());
        bytes.extend_from_slice(self.price_version_id.map(|id| id.0.into_bytes()).unwrap_or_default().as_slice());
        bytes.extend_from_slice(&self.segment_start.timestamp_micros().to_le_bytes());
        for currency in [&self.wallet_currency, &self.unit_currency] {
            bytes.extend_from_slice(currency.as_ref().map_or("---", Currency::as_str).as_bytes());
        }
        bytes.extend_from_slice(&self.sub_window.map_or(i64::MIN, |start| start.timestamp_micros()).to_le_bytes());
        bytes.extend_from_slice(&self.variables.unwrap_or_default().to_le_bytes());
        xxh3_128(&bytes)
    }
}

/// The values of the event variables that the expressions of a price read: events with the same values are rated together
/// (rule C1).
#[derive(Clone, Debug, PartialEq)]
pub struct Variables {
    /// Fingerprint of the values.
    hash: u128,
    /// Name as expressions have it, and value; sorted by name.
    values: Vec<(String, VarValue)>,
    /// Versions of rate tables at the instant of the event, by slug.
    tables: Vec<Arc<RateTable>>,
}

impl Variables {
    /// Of values, whatever their order.
    #[must_use]
    pub fn new(mut values: Vec<(String, VarValue)>) -> Self {
        values.sort_by(|a, b| a.0.cmp(&b.0));
        let mut bytes = SmallVec::<[u8; 256]>::new();
        for (name, value) in &values {
            bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
            match value {
                VarValue::Bool(value) => bytes.extend_from_slice(&[0, u8::from(*value)]),
                VarValue::Number(value) => {
                    bytes.push(1);
                    bytes.extend_from_slice(&value.units().to_le_bytes());
                }
                VarValue::Text(value) => {
                    bytes.push(2);
                    bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
                    bytes.extend_from_slice(value.as_bytes());
                }
            }
        }
        Self { hash: xxh3_128(&bytes), values, tables: Vec::new() }
    }

    /// The same with the versions of the rate tables that are consulted: another version is another rating key.
    #[must_use]
    pub fn with_tables(mut self, mut tables: Vec<Arc<RateTable>>) -> Self {
        if tables.is_empty() {
            return self;
        }
        tables.sort_by(|a, b| a.slug().cmp(b.slug()));
        let mut bytes = SmallVec::<[u8; 128]>::new();
        bytes.extend_from_slice(&self.hash.to_le_bytes());
        for table in &tables {
            bytes.extend_from_slice(table.version_id().0.as_bytes());
        }
        self.hash = xxh3_128(&bytes);
        self.tables = tables;
        self
    }

    /// Versions of rate tables, by slug.
    #[must_use]
    pub fn tables(&self) -> &[Arc<RateTable>] {
        &self.tables
    }

    /// The version of a rate table.
    #[must_use]
    pub fn table(&self, slug: &str) -> Option<&RateTable> {
        self.tables.iter().find(|table| table.slug() == slug).map(Arc::as_ref)
    }

    /// Fingerprint of the values.
    #[must_use]
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Names and values, by name.
    #[must_use]
    pub fn values(&self) -> &[(String, VarValue)] {
        &self.values
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&VarValue> {
        self.values.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok().map(|index| &self.values[index].1)
    }
}

/// One running total.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub(crate) binding: Arc<CompiledBinding>,
    pub(crate) price: Option<Arc<CompiledPrice>>,
    pub(crate) segment_start: Instant,
    pub(crate) wallet_currency: Option<Currency>,
    pub(crate) unit_currency: Option<Currency>,
    pub(crate) sub_window: Option<Instant>,
    pub(crate) variables: Option<Arc<Variables>>,
    pub(crate) state: MeterState,
    pub(crate) event_count: u64,
    /// Whether its row has to be written: only for keys that are rows.
    pub(crate) is_changed: bool,
}

impl Entry {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> RatingKey {
        RatingKey {
            binding_version_id: self.binding.version_id,
            meter_version_id: self.binding.meter.version_id,
            price_version_id: self.price.as_ref().map(|price| price.version_id),
            segment_start: self.segment_start,
            wallet_currency: self.wallet_currency,
            unit_currency: self.unit_currency,
            sub_window: self.sub_window,
            variables: self.variables.as_ref().map(|variables| variables.hash()),
        }
    }

    /// Whether a window can have any number of keys like this one, so that each is a row of its own (rule C6).
    #[must_use]
    pub fn is_row(&self) -> bool {
        self.sub_window.is_some() || self.variables.is_some()
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

    /// The currency of the value, where the meter counts money.
    #[must_use]
    pub fn unit_currency(&self) -> Option<Currency> {
        self.unit_currency
    }

    /// Start of the sub-window, where the billing period is cut.
    #[must_use]
    pub fn sub_window(&self) -> Option<Instant> {
        self.sub_window
    }

    /// The event variables that the price reads.
    #[must_use]
    pub fn variables(&self) -> Option<&Arc<Variables>> {
        self.variables.as_ref()
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

    /// Quantity after the multiplier, 0 when empty; what is still held counts up to `until`, or up to the last report.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn quantity(&self, until: Option<Instant>) -> Result<Exact> {
        Ok(self.binding.quantity(&self.state, until)?.unwrap_or(Exact::ZERO))
    }
}

/// What a distinct value is counted under: the rating key without the versions of binding and meter, because "distinct"
/// holds over both parts of a window that a new version splits (meters.md 5); in each sub-window anew.
pub(crate) fn member_hash(binding: &CompiledBinding, key: &RatingKey, value: FieldValue<'_>) -> u128 {
    let mut bytes = SmallVec::<[u8; 128]>::new();
    bytes.extend_from_slice(binding.binding_id.0.as_bytes());
    bytes.extend_from_slice(key.price_version_id.map(|id| id.0.into_bytes()).unwrap_or_default().as_slice());
    bytes.extend_from_slice(&key.segment_start.timestamp_micros().to_le_bytes());
    bytes.extend_from_slice(key.wallet_currency.as_ref().map_or("---", Currency::as_str).as_bytes());
    push_value(&mut bytes, value);
    // Windows without these members have the same hashes as before there were any.
    if let Some(start) = key.sub_window {
        bytes.extend_from_slice(&start.timestamp_micros().to_le_bytes());
    }
    if let Some(currency) = &key.unit_currency {
        bytes.extend_from_slice(currency.as_str().as_bytes());
    }
    if let Some(variables) = key.variables {
        bytes.extend_from_slice(&variables.to_le_bytes());
    }
    if let Some(component) = binding.component() {
        bytes.extend_from_slice(&component.part_id().to_le_bytes());
    }
    xxh3_128(&bytes)
}

/// What a value of `dedup_key_path` is counted once under: per meter, subscription and window (usage.md), whichever the
/// binding; for each component of a FORMULA meter apart.
pub(crate) fn dedup_hash(binding: &CompiledBinding, sub_window: Option<Instant>, value: FieldValue<'_>) -> u128 {
    let mut bytes = SmallVec::<[u8; 128]>::new();
    bytes.extend_from_slice(b"dedup key");
    bytes.extend_from_slice(&sub_window.map_or(i64::MIN, |start| start.timestamp_micros()).to_le_bytes());
    push_value(&mut bytes, value);
    if let Some(component) = binding.component() {
        bytes.extend_from_slice(&component.id().to_le_bytes());
    }
    xxh3_128(&bytes)
}

pub(crate) fn push_value(bytes: &mut SmallVec<[u8; 128]>, value: FieldValue<'_>) {
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
}
