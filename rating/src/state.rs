//! The state of a window as bytes: one `bytea` per (subscription, window) (PERFORMANCE P6).
//!
//! A version byte; since version 2 a byte of flags; the number of entries and each entry; the number of fired thresholds and each
//! of them; where the flags say so the products and metrics whose limits were reached.
//! Integers are LEB128, signed ones zigzag; ids are 16 bytes, left out where an entry shares those of the entry before.
//! Set members and the running totals of sub-windows and event variables are rows of their own (rule C6). Reading is in two steps, because the versions that a state names may
//! have to be loaded first: [`WindowRecord::decode`], then [`WindowRecord::attach`].

use std::sync::Arc;

use domain::event::VarValue;
use domain::{BindingId, Currency, Instant, Money, ProductId, Quantity, UsageCapAction, UsageEventId, VersionId};
use smallvec::SmallVec;
use uuid::Uuid;

use crate::binding::CompiledBinding;
use crate::entry::{Entry, RatingKey, Variables};
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::limit::{CapLimit, Limit, ReachedLimits};
use crate::member::MemberRow;
use crate::meter::{LastKey, MeterState};
use crate::pricing::CompiledPrice;
use crate::rate_table::RateTable;
use crate::sighting::{Sighting, Whose};
use crate::threshold::{FiredThreshold, ThresholdOwner};
use crate::timeline::{Chain, Held, Point};
use crate::window::{Place, WindowState};

/// The version that is written. A reader keeps knowing all earlier ones: version 1 has no byte that says whether there are
/// rows, one byte of flags per entry, and no sub-windows.
const VERSION: u8 = 2;

/// Bytes that are no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Written by a newer program, or not a state at all.
    #[error("the state has version {0}, known are 1 and 2")]
    UnknownVersion(u8),
    /// It ends too early.
    #[error("the state is cut off")]
    Truncated,
    /// A value that is never written.
    #[error("the state is damaged: {0}")]
    Damaged(&'static str),
}

/// Where compiled versions come from: a catalog snapshot.
pub trait Versions {
    /// A binding version with the meter version that it was compiled with.
    fn binding(&self, binding_version: VersionId, meter_version: VersionId) -> Option<Arc<CompiledBinding>>;
    /// A price version.
    fn price(&self, price_version: VersionId) -> Option<Arc<CompiledPrice>>;
    /// A version of a rate table.
    fn rate_table(&self, version: VersionId) -> Option<Arc<RateTable>>;
}

/// One stored running total.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRecord {
    /// Its key.
    pub key: RatingKey,
    /// The event variables that its price reads.
    pub variables: Option<VariablesRecord>,
    /// State of the meter.
    pub state: MeterState,
    /// Events counted.
    pub event_count: u64,
}

/// Stored event variables, before the versions of their rate tables are attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VariablesRecord {
    /// Their fingerprint in the rating key.
    pub hash: u128,
    /// Names and values.
    pub values: Vec<(String, VarValue)>,
    /// Versions of rate tables.
    pub tables: Vec<VersionId>,
}

impl From<&Variables> for VariablesRecord {
    fn from(variables: &Variables) -> Self {
        let tables = variables.tables().iter().map(|table| table.version_id()).collect();
        Self { hash: variables.hash(), values: variables.values().to_vec(), tables }
    }
}

impl VariablesRecord {
    fn attach(self, versions: &impl Versions) -> Result<Variables> {
        let table = |id| versions.rate_table(id).ok_or(RatingError::UnknownVersion { kind: "rate table", id });
        let tables = self.tables.into_iter().map(table).collect::<Result<Vec<_>>>()?;
        Ok(Variables::new(self.values).with_tables(tables))
    }
}

impl EntryRecord {
    pub(crate) fn of(entry: &Entry) -> Self {
        Self {
            key: entry.key(),
            variables: entry.variables.as_deref().map(VariablesRecord::from),
            state: entry.state,
            event_count: entry.event_count,
        }
    }

    /// The bytes of a running total that is a row of its own.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(128));
        out.byte(VERSION);
        out.byte(row::TOTAL);
        out.entry(self, None);
        out.0
    }
}

/// The bytes of a report of TIME_WEIGHTED; the key that it counts under is that of a running total of the state.
pub(crate) fn encode_report(chain: Chain, point: &Point) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(96));
    out.byte(VERSION);
    out.byte(row::REPORT);
    out.id(Uuid::from_u128(chain));
    out.id(Uuid::from_u128(point.key.row_hash()));
    out.report_at(&point.at);
    out.signed(point.value.units());
    out.0
}

/// The bytes of a sighting; the key that it counts under is that of a running total of the state.
pub(crate) fn encode_sighting(hash: u128, whose: Whose, sighting: &Sighting) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(48));
    out.byte(VERSION);
    out.byte(match whose {
        Whose::Own => row::SEEN,
        Whose::Carried => row::SEEN_BEFORE,
    });
    out.id(Uuid::from_u128(hash));
    out.id(Uuid::from_u128(sighting.key.row_hash()));
    out.signed(sighting.value.units());
    out.0
}

/// Kinds of rows that carry data.
mod row {
    pub(super) const TOTAL: u8 = 0;
    pub(super) const REPORT: u8 = 1;
    /// A sighting of this billing window.
    pub(super) const SEEN: u8 = 2;
    /// A sighting of earlier ones.
    pub(super) const SEEN_BEFORE: u8 = 3;
}

/// A sighting, before it is known which running total it counts under.
pub(crate) struct SightingRecord {
    pub(crate) hash: u128,
    pub(crate) whose: Whose,
    pub(crate) key_hash: u128,
    pub(crate) value: Quantity,
}

/// A report, before it is known which running total it counts under.
pub(crate) struct ReportRecord {
    pub(crate) chain: Chain,
    pub(crate) key_hash: u128,
    pub(crate) at: LastKey,
    pub(crate) value: Quantity,
}

/// A row that carries data.
enum RowRecord {
    Total(EntryRecord),
    Report(ReportRecord),
    Sighting(SightingRecord),
}

impl RowRecord {
    fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut input = Reader::new(bytes)?;
        let record = match input.byte()? {
            row::TOTAL => Self::Total(input.entry(None)?),
            row::REPORT => Self::Report(ReportRecord {
                chain: input.id()?.as_u128(),
                key_hash: input.id()?.as_u128(),
                at: (input.instant(0)?, input.instant(0)?, UsageEventId(input.id()?)),
                value: input.quantity()?,
            }),
            kind @ (row::SEEN | row::SEEN_BEFORE) => Self::Sighting(SightingRecord {
                hash: input.id()?.as_u128(),
                whose: if kind == row::SEEN { Whose::Own } else { Whose::Carried },
                key_hash: input.id()?.as_u128(),
                value: input.quantity()?,
            }),
            _ => return Err(StateError::Damaged("an unknown kind of row")),
        };
        input.end()?;
        Ok(record)
    }
}

/// The decoded state of a window, before its versions are attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WindowRecord {
    /// Running totals, without those that are rows.
    pub entries: Vec<EntryRecord>,
    /// Thresholds that have fired, by binding and sub-window.
    pub fired: Vec<(Place, FiredThreshold)>,
    /// Whether parts of the state are rows, which must be loaded before it is attached.
    pub has_rows: bool,
    /// Usage caps and parts of allowances that are reached, or were told.
    pub reached: Vec<ReachedLimits>,
}

impl WindowState {
    /// The bytes of this state, without its members.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.record().encode()
    }

    /// The running totals that are wanted, also those that are rows, without members, reports and fired thresholds: enough to
    /// rate further events on top of them.
    #[must_use]
    pub fn record_of(&self, wanted: impl Fn(&Entry) -> bool) -> WindowRecord {
        let entries = self.entries().iter().filter(|entry| wanted(entry)).map(EntryRecord::of).collect();
        WindowRecord { entries, ..WindowRecord::default() }
    }

    /// This state without what the catalog gives, and without its rows.
    #[must_use]
    pub fn record(&self) -> WindowRecord {
        WindowRecord {
            entries: self.entries().iter().filter(|entry| !entry.is_row()).map(EntryRecord::of).collect(),
            fired: self.fired().map(|(place, fired)| (place, fired.clone())).collect(),
            has_rows: self.has_rows(),
            reached: self.reached.clone(),
        }
    }
}

impl WindowRecord {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(16 + 72 * self.entries.len()));
        out.byte(VERSION);
        let rows = if self.has_rows { head::ROWS } else { 0 };
        out.byte(rows | if self.reached.is_empty() { 0 } else { head::REACHED });
        out.unsigned(self.entries.len() as u128);
        let mut previous = None;
        for entry in &self.entries {
            out.entry(entry, previous.replace(&entry.key));
        }
        out.unsigned(self.fired.len() as u128);
        for ((binding_id, sub_window), fired) in &self.fired {
            out.id(binding_id.0);
            let owner = match fired.owner {
                ThresholdOwner::Meter => 0,
                ThresholdOwner::Binding => 1,
            };
            let bit = |set: bool, bit: u8| if set { bit } else { 0 };
            let place = bit(sub_window.is_some(), FIRED_SUB_WINDOW);
            out.byte(owner | place | bit(fired.blocks, FIRED_BLOCKS) | bit(fired.at.is_some(), FIRED_AT));
            if let Some(start) = sub_window {
                out.signed(start.timestamp_micros().into());
            }
            if let Some(at) = fired.at {
                let (units, scale) = at.parts();
                out.signed(units);
                out.unsigned(scale.into());
            }
            out.text(&fired.name);
        }
        if !self.reached.is_empty() {
            out.reached(&self.reached);
        }
        out.0
    }

    /// Reads the bytes of any known version.
    ///
    /// # Errors
    /// `UnknownVersion`, `Truncated`, `Damaged`.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut input = Reader::new(bytes)?;
        let head = if input.version > 1 { input.byte()? } else { 0 };
        if head & !head::ALL != 0 {
            return Err(StateError::Damaged("unknown flags"));
        }
        let mut record = Self { has_rows: head & head::ROWS != 0, ..Self::default() };
        for _ in 0..input.unsigned64()? {
            let previous = record.entries.last().map(|entry| entry.key);
            record.entries.push(input.entry(previous)?);
        }
        for _ in 0..input.unsigned64()? {
            record.fired.push(input.fired()?);
        }
        if head & head::REACHED != 0 {
            record.reached = input.reached()?;
        }
        input.end()?;
        if input.version == 1 {
            record.has_rows = record.entries.iter().any(|entry| matches!(entry.state, MeterState::UniqueCount(_)));
        }
        Ok(record)
    }

    /// Puts the state together with its versions and all stored rows of the window.
    ///
    /// # Errors
    /// `UnknownVersion` when the catalog lacks a version, `Overflow` for numbers that were never written, `State` for a row
    /// that cannot be read.
    pub fn attach(self, versions: &impl Versions, rows: impl IntoIterator<Item = MemberRow>) -> Result<WindowState> {
        let mut entries = self.entries;
        let (mut members, mut reports, mut sightings) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            match row.data.as_deref().map(RowRecord::decode).transpose().map_err(RatingError::State)? {
                Some(RowRecord::Total(record)) => entries.push(record),
                Some(RowRecord::Report(report)) => reports.push(report),
                Some(RowRecord::Sighting(sighting)) => sightings.push((row.meter_id, sighting)),
                None if row.count > 0 => members.push(row),
                None => {}
            }
        }
        let entries = entries.into_iter().map(|record| attach_entry(record, versions)).collect::<Result<Vec<_>>>()?;
        let mut window = WindowState::assemble(entries, members, reports, sightings, self.fired)?;
        window.reached = self.reached;
        Ok(window)
    }
}

fn attach_entry(record: EntryRecord, versions: &impl Versions) -> Result<Entry> {
    let EntryRecord { key, variables, state, event_count } = record;
    let binding = versions
        .binding(key.binding_version_id, key.meter_version_id)
        .ok_or(RatingError::UnknownVersion { kind: "binding", id: key.binding_version_id })?;
    let price = key
        .price_version_id
        .map(|id| versions.price(id).ok_or(RatingError::UnknownVersion { kind: "price", id }))
        .transpose()?;
    let variables = variables.map(|variables| variables.attach(versions)).transpose()?.map(Arc::new);
    let RatingKey { segment_start, wallet_currency, unit_currency, sub_window, .. } = key;
    Ok(Entry {
        binding,
        price,
        segment_start,
        wallet_currency,
        unit_currency,
        sub_window,
        variables,
        state,
        event_count,
        is_changed: false,
    })
}

/// Bit of the byte of a fired threshold: the start of a sub-window follows.
const FIRED_SUB_WINDOW: u8 = 0x80;
/// Bit of the byte of a fired threshold: further usage is refused.
const FIRED_BLOCKS: u8 = 0x40;
/// Bit of the same byte: the value at which it fired follows.
const FIRED_AT: u8 = 0x20;

/// Bits of the byte behind the version.
mod head {
    /// Parts of the state are rows.
    pub(super) const ROWS: u8 = 0x01;
    /// Limits that were reached follow at the end.
    pub(super) const REACHED: u8 = 0x02;
    pub(super) const ALL: u8 = 0x03;
}

/// Tags of limits; numbers are never used again for another one.
mod limit {
    pub(super) const ALLOWANCE_PERCENT: u8 = 0;
    pub(super) const ALLOWANCE_EXHAUSTED: u8 = 1;
    pub(super) const ALLOWANCE_END: u8 = 2;
    pub(super) const QUANTITY: u8 = 3;
    pub(super) const AMOUNT: u8 = 4;
    /// No limit: a price key with an allowance of its own.
    pub(super) const OWN_KEY: u8 = 5;
    /// Bit of a cap that blocks, and of an own allowance that is used up.
    pub(super) const BLOCKS: u8 = 0x80;
}

/// Bits of the flags byte of an entry; the tag of the function is in the low four.
mod flag {
    pub(super) const PRICE: u8 = 0x10;
    pub(super) const WALLET: u8 = 0x20;
    /// Binding and meter version are those of the entry before.
    pub(super) const SAME_BINDING: u8 = 0x40;
    /// MAX, MIN or LAST has a value; the last report of TIME_WEIGHTED still holds.
    pub(super) const VALUE: u8 = 0x80;
}

/// Bits of the second flags byte of an entry, since version 2.
mod more {
    pub(super) const SUB_WINDOW: u8 = 0x01;
    pub(super) const VARIABLES: u8 = 0x02;
    pub(super) const UNIT_CURRENCY: u8 = 0x04;
    pub(super) const ALL: u8 = 0x07;
}

/// Tag of a function; numbers are never used again for another one.
fn tag(state: &MeterState) -> u8 {
    match state {
        MeterState::Count(_) => 0,
        MeterState::Sum(_) => 1,
        MeterState::Max(None) => 2,
        MeterState::Max(Some(_)) => 2 | flag::VALUE,
        MeterState::Min(None) => 3,
        MeterState::Min(Some(_)) => 3 | flag::VALUE,
        MeterState::Avg { .. } => 4,
        MeterState::Last(None) => 5,
        MeterState::Last(Some(_)) => 5 | flag::VALUE,
        MeterState::UniqueCount(_) => 6,
        MeterState::TimeWeighted(Held { open: None, .. }) => 7,
        MeterState::TimeWeighted(Held { open: Some(_), .. }) => 7 | flag::VALUE,
    }
}

fn zigzag(value: i128) -> u128 {
    ((value << 1) ^ (value >> 127)).cast_unsigned()
}

fn unzigzag(value: u128) -> i128 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn id(&mut self, id: Uuid) {
        self.0.extend_from_slice(id.as_bytes());
    }

    fn unsigned(&mut self, mut value: u128) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80); // seven bits at a time, on purpose
            value >>= 7;
        }
        self.0.push((value & 0x7f) as u8);
    }

    fn signed(&mut self, value: i128) {
        self.unsigned(zigzag(value));
    }

    fn entry(&mut self, entry: &EntryRecord, previous: Option<&RatingKey>) {
        let key = &entry.key;
        let versions = |key: &RatingKey| (key.binding_version_id, key.meter_version_id);
        let same = previous.is_some_and(|previous| versions(previous) == versions(key));
        let mut flags = tag(&entry.state);
        flags |= if key.price_version_id.is_some() { flag::PRICE } else { 0 };
        flags |= if key.wallet_currency.is_some() { flag::WALLET } else { 0 };
        flags |= if same { flag::SAME_BINDING } else { 0 };
        let mut further = if key.sub_window.is_some() { more::SUB_WINDOW } else { 0 };
        further |= if entry.variables.is_some() { more::VARIABLES } else { 0 };
        further |= if key.unit_currency.is_some() { more::UNIT_CURRENCY } else { 0 };
        self.byte(flags);
        self.byte(further);
        if !same {
            self.id(key.binding_version_id.0);
            self.id(key.meter_version_id.0);
        }
        if let Some(id) = key.price_version_id {
            self.id(id.0);
        }
        if let Some(currency) = &key.wallet_currency {
            self.0.extend_from_slice(currency.as_str().as_bytes());
        }
        let base = previous.map_or(0, |previous| previous.segment_start.timestamp_micros());
        self.signed(i128::from(key.segment_start.timestamp_micros()) - i128::from(base));
        if let Some(start) = key.sub_window {
            self.signed(start.timestamp_micros().into());
        }
        if let Some(variables) = &entry.variables {
            self.variables(variables);
        }
        if let Some(currency) = &key.unit_currency {
            self.0.extend_from_slice(currency.as_str().as_bytes());
        }
        self.unsigned(entry.event_count.into());
        self.state(&entry.state);
    }

    fn reached(&mut self, pools: &[ReachedLimits]) {
        self.unsigned(pools.len() as u128);
        for ReachedLimits { product_id, metric_key, limits, own_keys } in pools {
            self.id(product_id.0);
            self.text(metric_key);
            self.unsigned((limits.len() + own_keys.len()) as u128);
            limits.iter().for_each(|limit| self.limit(*limit));
            for (key, is_used_up) in own_keys {
                self.byte(limit::OWN_KEY | if *is_used_up { limit::BLOCKS } else { 0 });
                self.text(key);
            }
        }
    }

    fn limit(&mut self, limit: Limit) {
        match limit {
            Limit::AllowancePercent(percent) => {
                self.byte(limit::ALLOWANCE_PERCENT);
                self.byte(percent);
            }
            Limit::AllowanceExhausted => self.byte(limit::ALLOWANCE_EXHAUSTED),
            Limit::AllowanceEnd => self.byte(limit::ALLOWANCE_END),
            Limit::Cap(cap, action) => {
                let blocks = if action == UsageCapAction::Block { limit::BLOCKS } else { 0 };
                match cap {
                    CapLimit::Quantity(quantity) => {
                        self.byte(limit::QUANTITY | blocks);
                        self.signed(quantity.units());
                    }
                    CapLimit::Amount(amount) => {
                        self.byte(limit::AMOUNT | blocks);
                        self.0.extend_from_slice(amount.currency().as_str().as_bytes());
                        self.signed(amount.amount().mantissa()); // minor units: an amount is at its currency's exponent
                    }
                }
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.unsigned(text.len() as u128);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn variables(&mut self, variables: &VariablesRecord) {
        self.id(Uuid::from_u128(variables.hash));
        self.unsigned(variables.tables.len() as u128);
        for table in &variables.tables {
            self.id(table.0);
        }
        self.unsigned(variables.values.len() as u128);
        for (name, value) in &variables.values {
            self.text(name);
            match value {
                VarValue::Bool(value) => self.byte(u8::from(*value)),
                VarValue::Number(value) => {
                    self.byte(2);
                    self.signed(value.units());
                }
                VarValue::Text(value) => {
                    self.byte(3);
                    self.text(value);
                }
            }
        }
    }

    fn state(&mut self, state: &MeterState) {
        match state {
            MeterState::Count(count) | MeterState::UniqueCount(count) => self.unsigned((*count).into()),
            MeterState::Sum(sum) => self.signed(sum.units()),
            MeterState::Max(value) | MeterState::Min(value) => {
                if let Some(value) = value {
                    self.signed(value.units());
                }
            }
            MeterState::Avg { sum, count } => {
                self.signed(sum.units());
                self.unsigned((*count).into());
            }
            MeterState::Last(last) => {
                if let Some(((timestamp, accepted_at, id), value)) = last {
                    self.signed(timestamp.timestamp_micros().into());
                    self.signed(i128::from(accepted_at.timestamp_micros()) - i128::from(timestamp.timestamp_micros()));
                    self.id(id.0);
                    self.signed(value.units());
                }
            }
            MeterState::TimeWeighted(held) => {
                self.signed(held.seconds);
                self.signed(held.micros);
                if let Some((since, value)) = held.open {
                    self.signed(since.timestamp_micros().into());
                    self.signed(value.units());
                }
            }
        }
    }

    fn report_at(&mut self, (timestamp, accepted_at, id): &LastKey) {
        self.signed(timestamp.timestamp_micros().into());
        self.signed(accepted_at.timestamp_micros().into());
        self.id(id.0);
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    version: u8,
}

impl<'a> Reader<'a> {
    /// Reads the version.
    fn new(bytes: &'a [u8]) -> Result<Self, StateError> {
        match bytes.split_first() {
            Some((version @ 1..=VERSION, rest)) => Ok(Self { rest, version: *version }),
            Some((other, _)) => Err(StateError::UnknownVersion(*other)),
            None => Err(StateError::Truncated),
        }
    }

    fn end(&self) -> Result<(), StateError> {
        if self.rest.is_empty() { Ok(()) } else { Err(StateError::Damaged("bytes after its end")) }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(StateError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn fired(&mut self) -> Result<(Place, FiredThreshold), StateError> {
        let binding_id = BindingId(self.id()?);
        let bits = self.byte()?;
        let owner = match bits & !(FIRED_SUB_WINDOW | FIRED_BLOCKS | FIRED_AT) {
            0 => ThresholdOwner::Meter,
            1 => ThresholdOwner::Binding,
            _ => return Err(StateError::Damaged("an unknown threshold owner")),
        };
        let sub_window = if bits & FIRED_SUB_WINDOW == 0 { None } else { Some(self.instant(0)?) };
        let blocks = bits & FIRED_BLOCKS != 0;
        let at = if bits & FIRED_AT == 0 { None } else { Some(self.exact()?) };
        Ok(((binding_id, sub_window), FiredThreshold { owner, name: self.text()?, blocks, at }))
    }

    fn reached(&mut self) -> Result<Vec<ReachedLimits>, StateError> {
        let mut pools = Vec::new();
        for _ in 0..self.unsigned64()? {
            let (product_id, metric_key) = (ProductId(self.id()?), self.text()?);
            let mut pool = ReachedLimits { product_id, metric_key, limits: SmallVec::new(), own_keys: Vec::new() };
            for _ in 0..self.unsigned64()? {
                let bits = self.byte()?;
                if bits & !limit::BLOCKS == limit::OWN_KEY {
                    pool.own_keys.push((self.text()?, bits & limit::BLOCKS != 0));
                } else {
                    pool.limits.push(self.limit(bits)?);
                }
            }
            pools.push(pool);
        }
        Ok(pools)
    }

    fn limit(&mut self, bits: u8) -> Result<Limit, StateError> {
        let action = if bits & limit::BLOCKS == 0 { UsageCapAction::Notify } else { UsageCapAction::Block };
        Ok(match bits & !limit::BLOCKS {
            limit::ALLOWANCE_PERCENT => Limit::AllowancePercent(self.byte()?),
            limit::ALLOWANCE_EXHAUSTED => Limit::AllowanceExhausted,
            limit::ALLOWANCE_END => Limit::AllowanceEnd,
            limit::QUANTITY => Limit::Cap(CapLimit::Quantity(self.quantity()?), action),
            limit::AMOUNT => {
                let currency = self.currency()?;
                let amount = Money::from_minor(self.signed()?, currency);
                Limit::Cap(CapLimit::Amount(amount.map_err(|_| StateError::Damaged("an amount out of range"))?), action)
            }
            _ => return Err(StateError::Damaged("an unknown limit")),
        })
    }

    fn exact(&mut self) -> Result<Exact, StateError> {
        let units = self.signed()?;
        let scale = u32::try_from(self.unsigned()?).ok();
        scale.and_then(|scale| Exact::from_parts(units, scale)).ok_or(StateError::Damaged("a scale out of range"))
    }

    fn variables(&mut self) -> Result<VariablesRecord, StateError> {
        let mut record = VariablesRecord { hash: self.id()?.as_u128(), ..VariablesRecord::default() };
        for _ in 0..self.unsigned64()? {
            record.tables.push(VersionId(self.id()?));
        }
        for _ in 0..self.unsigned64()? {
            let name = self.text()?;
            let value = match self.byte()? {
                0 => VarValue::Bool(false),
                1 => VarValue::Bool(true),
                2 => VarValue::Number(self.quantity()?),
                3 => VarValue::Text(self.text()?),
                _ => return Err(StateError::Damaged("an unknown kind of variable")),
            };
            record.values.push((name, value));
        }
        Ok(record)
    }

    fn byte(&mut self) -> Result<u8, StateError> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn id(&mut self) -> Result<Uuid, StateError> {
        Uuid::from_slice(self.take(16)?).map_err(|_| StateError::Truncated)
    }

    fn unsigned(&mut self) -> Result<u128, StateError> {
        // Most numbers are short: 64 bits are enough for the first nine bytes.
        let mut value = 0_u64;
        for (index, byte) in self.rest.iter().take(9).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return Ok(value.into());
            }
        }
        self.unsigned_long()
    }

    fn unsigned_long(&mut self) -> Result<u128, StateError> {
        let mut value = 0_u128;
        for shift in (0..).step_by(7) {
            let byte = self.byte()?;
            let bits = u128::from(byte & 0x7f);
            if shift > 126 || (shift == 126 && bits > 3) {
                return Err(StateError::Damaged("a number of more than 128 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(value)
    }

    fn unsigned64(&mut self) -> Result<u64, StateError> {
        u64::try_from(self.unsigned()?).map_err(|_| StateError::Damaged("a count of more than 64 bits"))
    }

    fn signed(&mut self) -> Result<i128, StateError> {
        self.unsigned().map(unzigzag)
    }

    fn quantity(&mut self) -> Result<Quantity, StateError> {
        self.signed().map(Quantity::from_units)
    }

    /// An instant as the difference to `base`, in microseconds.
    fn instant(&mut self, base: i64) -> Result<Instant, StateError> {
        let micros = self.signed()?.checked_add(base.into()).and_then(|micros| i64::try_from(micros).ok());
        micros.and_then(Instant::from_timestamp_micros).ok_or(StateError::Damaged("an instant out of range"))
    }

    fn text(&mut self) -> Result<String, StateError> {
        let length = usize::try_from(self.unsigned64()?).map_err(|_| StateError::Truncated)?;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| StateError::Damaged("a name that is no UTF-8"))
    }

    fn entry(&mut self, previous: Option<RatingKey>) -> Result<EntryRecord, StateError> {
        let flags = self.byte()?;
        let further = if self.version > 1 { self.byte()? } else { 0 };
        if further & !more::ALL != 0 {
            return Err(StateError::Damaged("unknown flags of an entry"));
        }
        let versions = if flags & flag::SAME_BINDING == 0 {
            (VersionId(self.id()?), VersionId(self.id()?))
        } else {
            let previous = previous.ok_or(StateError::Damaged("a first entry that refers to one before"))?;
            (previous.binding_version_id, previous.meter_version_id)
        };
        let price_version_id = if flags & flag::PRICE == 0 { None } else { Some(VersionId(self.id()?)) };
        let wallet_currency = if flags & flag::WALLET == 0 { None } else { Some(self.currency()?) };
        let base = previous.map_or(0, |previous| previous.segment_start.timestamp_micros());
        let segment_start = self.instant(base)?;
        let sub_window = if further & more::SUB_WINDOW == 0 { None } else { Some(self.instant(0)?) };
        let variables = if further & more::VARIABLES == 0 { None } else { Some(self.variables()?) };
        let unit_currency = if further & more::UNIT_CURRENCY == 0 { None } else { Some(self.currency()?) };
        let event_count = self.unsigned64()?;
        let state = self.state(flags & 0x0f, flags & flag::VALUE != 0)?;
        let (binding_version_id, meter_version_id) = versions;
        let key = RatingKey {
            binding_version_id,
            meter_version_id,
            price_version_id,
            segment_start,
            wallet_currency,
            unit_currency,
            sub_window,
            variables: variables.as_ref().map(|variables| variables.hash),
        };
        Ok(EntryRecord { key, variables, state, event_count })
    }

    fn currency(&mut self) -> Result<Currency, StateError> {
        let code = std::str::from_utf8(self.take(3)?).ok();
        code.and_then(Currency::parse).ok_or(StateError::Damaged("an unknown currency"))
    }

    fn state(&mut self, tag: u8, has_value: bool) -> Result<MeterState, StateError> {
        Ok(match (tag, has_value) {
            (0, false) => MeterState::Count(self.unsigned64()?),
            (1, false) => MeterState::Sum(self.quantity()?),
            (2, false) => MeterState::Max(None),
            (2, true) => MeterState::Max(Some(self.quantity()?)),
            (3, false) => MeterState::Min(None),
            (3, true) => MeterState::Min(Some(self.quantity()?)),
            (4, false) => MeterState::Avg { sum: self.quantity()?, count: self.unsigned64()? },
            (5, false) => MeterState::Last(None),
            (5, true) => {
                let timestamp = self.instant(0)?;
                let accepted_at = self.instant(timestamp.timestamp_micros())?;
                MeterState::Last(Some(((timestamp, accepted_at, UsageEventId(self.id()?)), self.quantity()?)))
            }
            (6, false) => MeterState::UniqueCount(self.unsigned64()?),
            (7, is_open) => {
                let (seconds, micros) = (self.signed()?, self.signed()?);
                let open = if is_open { Some((self.instant(0)?, self.quantity()?)) } else { None };
                MeterState::TimeWeighted(Held { seconds, micros, open })
            }
            _ => return Err(StateError::Damaged("an unknown meter function")),
        })
    }
}
