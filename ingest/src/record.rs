//! Records of the event log in their compact binary form (P1): decoded once at the door, carried ever after without JSON.
//!
//! Layout: version byte (never `{`, by which foreign JSON records are told apart), kind byte, fields in order; integers are
//! little-endian, texts have a LEB128 length. A reader refuses versions and kinds that it does not know.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use domain::event::{VarValue, Vars};
use domain::{
    Currency, CustomerId, HoldId, Instant, ProductId, Quantity, SubscriptionId, UsageEvent, UsageEventId, WorkspaceId,
};
use uuid::Uuid;

const VERSION: u8 = 1;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A usage event that the door has validated.
    Usage(Box<UsageEvent>),
    /// A control record (rule C2).
    Control(Control),
    /// The catalog has changed for usage that may be counted already (rule B6).
    CatalogChange(CatalogChange),
}

/// Windows of the partition that a change of a workspace's catalog touches are counted anew (rule B6). What was changed stands
/// in the table `catalog_recount`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogChange {
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// A revision that has the change.
    pub catalog_revision: i64,
}

/// Kind of a control record (rule C2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// Opens the next window; drafts are computed from here on.
    PeriodEnd,
    /// Ends the window for good: what comes after it is late.
    WindowSeal,
    /// Takes a seal back after a finalization that failed.
    WindowReopen,
    /// Counts the window anew without the events that were voided (rule C5).
    WindowRecount,
    /// Usage caps of the subscription were set: its windows are compared with them. It names no window.
    LimitsChanged,
}

/// What happens to a window, as a record of the window's home partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// What happens to the window.
    pub kind: ControlKind,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Whose window.
    pub subscription_id: SubscriptionId,
    /// Owner of the subscription.
    pub customer_id: CustomerId,
    /// The window: start and end.
    pub window_start: Instant,
    /// End, exclusive; earlier than the schedule's after a cancellation.
    pub window_end: Instant,
    /// Catalog revision of the publishing node (rule B6).
    pub catalog_revision: i64,
}

/// A record that cannot be read: a deterministic failure of this one offset (rule A4).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not one of ours, and not JSON.
    #[error("record version {0} is not known")]
    Version(u8),
    /// Of our version, but not of a kind that we know.
    #[error("record kind {0} is not known")]
    Kind(u8),
    /// It has no headers of a foreign producer, and its seal is not ours (rule A7).
    #[error("the record is not JSON, has no header kontorion-workspace, and no node of this installation wrote it")]
    Forged,
    /// Ends early, or holds bytes that cannot be.
    #[error("the record is damaged at byte {0}")]
    Damaged(usize),
}

impl Record {
    /// The bytes of the record.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Usage(event) => encode_usage(event),
            Self::Control(control) => encode_control(control),
            Self::CatalogChange(change) => encode_catalog_change(*change),
        }
    }

    /// Reads a record of ours.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader { payload, at: 0 };
        match reader.u8()? {
            VERSION => {}
            other => return Err(RecordError::Version(other)),
        }
        let record = match reader.u8()? {
            0 => Self::Usage(Box::new(decode_usage(&mut reader)?)),
            kind @ 1..=5 => Self::Control(decode_control(&mut reader, kind)?),
            CATALOG_CHANGE => Self::CatalogChange(CatalogChange {
                workspace_id: WorkspaceId(reader.uuid()?),
                catalog_revision: reader.i64()?,
            }),
            other => return Err(RecordError::Kind(other)),
        };
        if reader.at == payload.len() { Ok(record) } else { Err(RecordError::Damaged(reader.at)) }
    }
}

const HAS_PRICE_KEY: u8 = 1;
const REMAPPED: u8 = 1 << 1;
const HAS_COST: u8 = 1 << 2;
const HAS_WALLET: u8 = 1 << 3;
const HAS_HOLD: u8 = 1 << 4;
const HAS_DIMENSIONS: u8 = 1 << 5;
const HAS_PRICING: u8 = 1 << 6;

/// The bytes of a usage event, without building a [`Record`] first: the door's hot path.
#[must_use]
pub fn encode_usage(event: &UsageEvent) -> Bytes {
    let mut out = Vec::with_capacity(192 + event.metric_key.len() + event.idempotency_key.len());
    out.extend_from_slice(&[VERSION, 0]);
    for id in [event.id.0, event.workspace_id.0, event.customer_id.0, event.subscription_id.0, event.product_id.0] {
        out.extend_from_slice(id.as_bytes());
    }
    out.extend_from_slice(&event.quantity.units().to_le_bytes());
    for number in [event.timestamp.timestamp_micros(), event.accepted_at.timestamp_micros(), event.catalog_revision] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    out.push(
        flag(event.price_key.is_some(), HAS_PRICE_KEY)
            | flag(event.price_key_remapped, REMAPPED)
            | flag(event.external_cost.is_some(), HAS_COST)
            | flag(event.wallet_currency.is_some(), HAS_WALLET)
            | flag(event.hold_id.is_some(), HAS_HOLD)
            | flag(!event.dimension_vars.is_empty(), HAS_DIMENSIONS)
            | flag(!event.pricing_vars.is_empty(), HAS_PRICING),
    );
    put_text(&mut out, &event.metric_key);
    put_text(&mut out, &event.idempotency_key);
    if let Some(key) = &event.price_key {
        put_text(&mut out, key);
    }
    if let Some((amount, currency)) = &event.external_cost {
        out.extend_from_slice(&amount.serialize());
        out.extend_from_slice(currency.as_str().as_bytes());
    }
    if let Some(currency) = &event.wallet_currency {
        out.extend_from_slice(currency.as_str().as_bytes());
    }
    if let Some(hold) = &event.hold_id {
        out.extend_from_slice(hold.0.as_bytes());
    }
    for vars in [&event.dimension_vars, &event.pricing_vars] {
        if !vars.is_empty() {
            put_vars(&mut out, vars);
        }
    }
    out.into()
}

fn decode_usage(reader: &mut Reader<'_>) -> Result<UsageEvent, RecordError> {
    let id = UsageEventId(reader.uuid()?);
    let workspace_id = WorkspaceId(reader.uuid()?);
    let customer_id = CustomerId(reader.uuid()?);
    let subscription_id = SubscriptionId(reader.uuid()?);
    let product_id = ProductId(reader.uuid()?);
    let quantity = Quantity::from_units(i128::from_le_bytes(reader.array()?));
    let timestamp = reader.instant()?;
    let accepted_at = reader.instant()?;
    let catalog_revision = reader.i64()?;
    let flags = reader.u8()?;
    let has = |bit| flags & bit != 0;
    Ok(UsageEvent {
        id,
        workspace_id,
        customer_id,
        subscription_id,
        product_id,
        quantity,
        timestamp,
        accepted_at,
        catalog_revision,
        metric_key: reader.text()?,
        idempotency_key: reader.text()?,
        price_key: if has(HAS_PRICE_KEY) { Some(reader.text()?) } else { None },
        price_key_remapped: has(REMAPPED),
        external_cost: if has(HAS_COST) { Some((reader.decimal()?, reader.currency()?)) } else { None },
        wallet_currency: if has(HAS_WALLET) { Some(reader.currency()?) } else { None },
        hold_id: if has(HAS_HOLD) { Some(HoldId(reader.uuid()?)) } else { None },
        dimension_vars: if has(HAS_DIMENSIONS) { reader.vars()? } else { Vars::new() },
        pricing_vars: if has(HAS_PRICING) { reader.vars()? } else { Vars::new() },
    })
}

/// Kind byte, behind those of the control records.
const CATALOG_CHANGE: u8 = 6;

fn encode_catalog_change(change: CatalogChange) -> Bytes {
    let mut out = Vec::with_capacity(26);
    out.extend_from_slice(&[VERSION, CATALOG_CHANGE]);
    out.extend_from_slice(change.workspace_id.0.as_bytes());
    out.extend_from_slice(&change.catalog_revision.to_le_bytes());
    out.into()
}

fn encode_control(control: &Control) -> Bytes {
    let mut out = Vec::with_capacity(80);
    let kind = match control.kind {
        ControlKind::PeriodEnd => 1,
        ControlKind::WindowSeal => 2,
        ControlKind::WindowReopen => 3,
        ControlKind::WindowRecount => 4,
        ControlKind::LimitsChanged => 5,
    };
    out.extend_from_slice(&[VERSION, kind]);
    for id in [control.workspace_id.0, control.subscription_id.0, control.customer_id.0] {
        out.extend_from_slice(id.as_bytes());
    }
    for number in
        [control.window_start.timestamp_micros(), control.window_end.timestamp_micros(), control.catalog_revision]
    {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.into()
}

fn decode_control(reader: &mut Reader<'_>, kind: u8) -> Result<Control, RecordError> {
    Ok(Control {
        kind: match kind {
            1 => ControlKind::PeriodEnd,
            2 => ControlKind::WindowSeal,
            3 => ControlKind::WindowReopen,
            4 => ControlKind::WindowRecount,
            _ => ControlKind::LimitsChanged,
        },
        workspace_id: WorkspaceId(reader.uuid()?),
        subscription_id: SubscriptionId(reader.uuid()?),
        customer_id: CustomerId(reader.uuid()?),
        window_start: reader.instant()?,
        window_end: reader.instant()?,
        catalog_revision: reader.i64()?,
    })
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_vars(out: &mut Vec<u8>, vars: &Vars) {
    put_length(out, vars.len());
    for (key, value) in vars {
        put_text(out, key);
        match value {
            VarValue::Bool(value) => out.extend_from_slice(&[0, u8::from(*value)]),
            VarValue::Number(value) => {
                out.push(1);
                out.extend_from_slice(&value.units().to_le_bytes());
            }
            VarValue::Text(value) => {
                out.push(2);
                put_text(out, value);
            }
        }
    }
}

struct Reader<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn damaged(&self) -> RecordError {
        RecordError::Damaged(self.at)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let end = self.at.checked_add(length).ok_or_else(|| self.damaged())?;
        let bytes = self.payload.get(self.at..end).ok_or_else(|| self.damaged())?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| self.damaged())
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(self.array::<1>()?[0])
    }

    fn i64(&mut self) -> Result<i64, RecordError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn uuid(&mut self) -> Result<Uuid, RecordError> {
        Ok(Uuid::from_bytes(self.array()?))
    }

    fn instant(&mut self) -> Result<Instant, RecordError> {
        let micros = self.i64()?;
        DateTime::<Utc>::from_timestamp_micros(micros).ok_or_else(|| self.damaged())
    }

    fn length(&mut self) -> Result<usize, RecordError> {
        let (mut value, mut shift) = (0_usize, 0);
        loop {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
            shift += 7;
            if shift > 28 {
                return Err(self.damaged());
            }
        }
    }

    fn text(&mut self) -> Result<String, RecordError> {
        let length = self.length()?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| self.damaged())
    }

    fn decimal(&mut self) -> Result<rust_decimal::Decimal, RecordError> {
        Ok(rust_decimal::Decimal::deserialize(self.array()?))
    }

    fn currency(&mut self) -> Result<Currency, RecordError> {
        let bytes = self.take(3)?;
        std::str::from_utf8(bytes).ok().and_then(Currency::parse).ok_or_else(|| self.damaged())
    }

    fn vars(&mut self) -> Result<Vars, RecordError> {
        let length = self.length()?;
        let mut vars = Vars::new();
        for _ in 0..length {
            let key = self.text()?;
            let value = match self.u8()? {
                0 => VarValue::Bool(self.u8()? != 0),
                1 => VarValue::Number(Quantity::from_units(i128::from_le_bytes(self.array()?))),
                2 => VarValue::Text(self.text()?),
                _ => return Err(self.damaged()),
            };
            vars.insert(key, value);
        }
        Ok(vars)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vars() -> impl Strategy<Value = Vars> {
        let value = prop_oneof![
            any::<bool>().prop_map(VarValue::Bool),
            any::<i64>().prop_map(|n| VarValue::Number(Quantity::from_int(n))),
            ".{0,20}".prop_map(VarValue::Text),
        ];
        prop::collection::btree_map("[a-z0-9_]{1,64}", value, 0..5)
    }

    prop_compose! {
        pub(crate) fn any_event()(
            ids in any::<[u128; 5]>(), quantity in -(10_i128.pow(26))..10_i128.pow(26), times in any::<[u32; 2]>(),
            revision in any::<i64>(), metric_key in ".{1,64}", idempotency_key in ".{1,300}",
            price_key in prop::option::of(".{1,9}"), remapped in any::<bool>(),
            cost in prop::option::of(any::<u64>()), wallet in any::<bool>(), hold in prop::option::of(any::<u128>()),
            dimension_vars in vars(), pricing_vars in vars(),
        ) -> UsageEvent {
            let instant = |secs: u32| DateTime::from_timestamp(i64::from(secs), 0).expect("in range");
            UsageEvent {
                id: Uuid::from_u128(ids[0]).into(), workspace_id: Uuid::from_u128(ids[1]).into(),
                customer_id: Uuid::from_u128(ids[2]).into(), subscription_id: Uuid::from_u128(ids[3]).into(),
                product_id: Uuid::from_u128(ids[4]).into(), metric_key, quantity: Quantity::from_units(quantity),
                timestamp: instant(times[0]), idempotency_key, price_key, price_key_remapped: remapped,
                external_cost: cost.map(|c| (rust_decimal::Decimal::new(c.cast_signed(), 4), Currency::USD)),
                wallet_currency: wallet.then_some(Currency::EUR), hold_id: hold.map(|h| Uuid::from_u128(h).into()),
                dimension_vars, pricing_vars, accepted_at: instant(times[1]), catalog_revision: revision,
            }
        }
    }

    proptest! {
        #[test]
        fn usage_round_trips(event in any_event()) {
            let record = Record::Usage(Box::new(event));
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn damaged_bytes_are_an_error_and_never_a_panic(event in any_event(), cut in 0_usize..400, flip in any::<(usize, u8)>()) {
            let bytes = Record::Usage(Box::new(event)).encode();
            prop_assert!(Record::decode(&bytes[..cut.min(bytes.len() - 1)]).is_err());
            let mut bytes = bytes.to_vec();
            let at = flip.0 % bytes.len();
            bytes[at] ^= flip.1;
            let _ = Record::decode(&bytes);
        }
    }

    #[test]
    fn control_round_trips() {
        for kind in [
            ControlKind::PeriodEnd,
            ControlKind::WindowSeal,
            ControlKind::WindowReopen,
            ControlKind::WindowRecount,
            ControlKind::LimitsChanged,
        ] {
            let control = Control {
                kind,
                workspace_id: WorkspaceId::generate(),
                subscription_id: SubscriptionId::generate(),
                customer_id: CustomerId::generate(),
                window_start: DateTime::UNIX_EPOCH,
                window_end: domain::period::FAR_FUTURE,
                catalog_revision: 7,
            };
            let record = Record::Control(control);
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
        assert_eq!(Record::decode(b"{\"a\":1}"), Err(RecordError::Version(b'{')));
    }
}
