//! The stored form of a window: what is written is read back, anything else is an error and never a panic.

mod common;

use common::*;
use domain::event::VarValue;
use domain::{
    BindingId, Currency, Instant, MeterFunction, Money, PricingModel, ProductId, Quantity, UsageCapAction,
    UsageEventId, VersionId,
};
use proptest::prelude::*;
use rating::limit::{CapLimit, Limit, ReachedLimits};
use rating::state::{EntryRecord, VariablesRecord};
use rating::threshold::FiredThreshold;
use rating::window::Place;
use rating::{Exact, MeterState, RatingKey, StateError, ThresholdOwner, WindowRecord, WindowState};

fn any_version() -> impl Strategy<Value = VersionId> {
    prop_oneof![any::<u128>(), 0_u128..3].prop_map(|number| VersionId(id(number)))
}

fn any_instant() -> impl Strategy<Value = Instant> {
    (-62_135_596_800_000_000_i64..253_402_300_800_000_000)
        .prop_map(|micros| Instant::from_timestamp_micros(micros).expect("in range"))
}

fn any_quantity() -> impl Strategy<Value = Quantity> {
    prop_oneof![any::<i128>(), -1_000_i128..1_000].prop_map(Quantity::from_units)
}

fn any_state() -> impl Strategy<Value = MeterState> {
    let last = ((any_instant(), any_instant(), any::<u128>()), any_quantity())
        .prop_map(|((timestamp, accepted, number), value)| ((timestamp, accepted, UsageEventId(id(number))), value));
    prop_oneof![
        any::<u64>().prop_map(MeterState::Count),
        any_quantity().prop_map(MeterState::Sum),
        prop::option::of(any_quantity()).prop_map(MeterState::Max),
        prop::option::of(any_quantity()).prop_map(MeterState::Min),
        (any_quantity(), any::<u64>()).prop_map(|(sum, count)| MeterState::Avg { sum, count }),
        prop::option::of(last).prop_map(MeterState::Last),
        any::<u64>().prop_map(MeterState::UniqueCount),
    ]
}

prop_compose! {
    fn any_entry()(
        versions in (any_version(), any_version()), price_version_id in prop::option::of(any_version()), segment_start in any_instant(),
        currencies in (any_currency(), any_currency()), state in any_state(), event_count in any::<u64>(),
        sub_window in prop::option::of(any_instant()), variables in prop::option::of(any_variables()),
    ) -> EntryRecord {
        let (binding_version_id, meter_version_id) = versions;
        let key = RatingKey {
            binding_version_id, meter_version_id, price_version_id, segment_start, wallet_currency: currencies.0,
            unit_currency: currencies.1, sub_window, variables: variables.as_ref().map(|variables| variables.hash),
        };
        EntryRecord { key, variables, state, event_count }
    }
}

fn any_currency() -> impl Strategy<Value = Option<Currency>> {
    prop::option::of(prop::sample::select(vec![Currency::EUR, Currency::USD]))
}

fn any_variables() -> impl Strategy<Value = VariablesRecord> {
    let value = prop_oneof![
        any::<bool>().prop_map(VarValue::Bool),
        any_quantity().prop_map(VarValue::Number),
        ".{0,20}".prop_map(VarValue::Text),
    ];
    let values = prop::collection::vec(("[a-z.]{1,12}", value), 0..4);
    (any::<u128>(), values, prop::collection::vec(any_version(), 0..3))
        .prop_map(|(hash, values, tables)| VariablesRecord { hash, values, tables })
}

prop_compose! {
    fn any_fired()(
        number in any::<u128>(), sub_window in prop::option::of(any_instant()), of_meter in any::<bool>(), name in ".{0,40}",
        blocks in any::<bool>(), at in prop::option::of(any_quantity().prop_map(Exact::from)),
    ) -> (Place, FiredThreshold) {
        let owner = if of_meter { ThresholdOwner::Meter } else { ThresholdOwner::Binding };
        ((BindingId(id(number)), sub_window), FiredThreshold { owner, name, blocks, at })
    }
}

fn any_limit() -> impl Strategy<Value = Limit> {
    let action = || prop::sample::select(vec![UsageCapAction::Block, UsageCapAction::Notify]);
    let amount = any::<i64>().prop_map(|minor| Money::from_minor(minor.into(), Currency::EUR).expect("in range"));
    prop_oneof![
        any::<u8>().prop_map(Limit::AllowancePercent),
        Just(Limit::AllowanceExhausted),
        Just(Limit::AllowanceEnd),
        (any_quantity(), action()).prop_map(|(limit, action)| Limit::Cap(CapLimit::Quantity(limit), action)),
        (amount, action()).prop_map(|(limit, action)| Limit::Cap(CapLimit::Amount(limit), action)),
    ]
}

prop_compose! {
    fn any_reached()(
        number in any::<u128>(), metric_key in "[a-z_]{1,64}", limits in prop::collection::vec(any_limit(), 0..6),
        own_keys in prop::collection::vec(("[a-z_]{1,64}", any::<bool>()), 0..3),
    ) -> ReachedLimits {
        ReachedLimits { product_id: ProductId(id(number)), metric_key, limits: limits.into(), own_keys }
    }
}

prop_compose! {
    fn any_record()(
        entries in prop::collection::vec(any_entry(), 0..8), fired in prop::collection::vec(any_fired(), 0..4),
        has_rows in any::<bool>(), reached in prop::collection::vec(any_reached(), 0..3),
    ) -> WindowRecord {
        WindowRecord { entries, fired, has_rows, reached }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(record in any_record()) {
        prop_assert_eq!(WindowRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn a_cut_or_longer_state_is_an_error(record in any_record(), cut in any::<prop::sample::Index>()) {
        let mut bytes = record.encode();
        let cut = cut.index(bytes.len());
        prop_assert!(WindowRecord::decode(&bytes[..cut]).is_err());
        bytes.push(0);
        prop_assert_eq!(WindowRecord::decode(&bytes), Err(StateError::Damaged("bytes after its end")));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), record in any_record(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        drop(WindowRecord::decode(&bytes));
        bytes.insert(0, 1);
        drop(WindowRecord::decode(&bytes));
        let mut damaged = record.encode();
        let at = at.index(damaged.len());
        damaged[at] = byte;
        drop(WindowRecord::decode(&damaged));
    }
}

#[test]
fn unknown_versions_are_refused() {
    assert_eq!(WindowRecord::decode(&[]), Err(StateError::Truncated));
    for version in [0, 3, b'{'] {
        assert_eq!(WindowRecord::decode(&[version, 0, 0]), Err(StateError::UnknownVersion(version)));
    }
    assert_eq!(WindowRecord::decode(&[1, 0, 0]), Ok(WindowRecord::default()));
    assert_eq!(WindowRecord::decode(&[2, 0, 0, 0]), Ok(WindowRecord::default()));
    assert_eq!(WindowState::new().encode(), [2, 0, 0, 0]);
}

/// Bytes of version 1, written down once: a later program must still read them.
#[test]
fn version_1_stays_readable() {
    let key = RatingKey {
        binding_version_id: VersionId(id(1)),
        meter_version_id: VersionId(id(2)),
        price_version_id: Some(VersionId(id(3))),
        segment_start: Instant::from_timestamp_micros(64).expect("in range"),
        wallet_currency: Some(Currency::EUR),
        unit_currency: None,
        sub_window: None,
        variables: None,
    };
    let sum = EntryRecord { key, variables: None, state: MeterState::Sum(Quantity::from_units(-1)), event_count: 5 };
    let fired = FiredThreshold { owner: ThresholdOwner::Binding, name: "cap".into(), blocks: false, at: None };
    let record =
        WindowRecord { entries: vec![sum], fired: vec![((BindingId(id(4)), None), fired)], ..WindowRecord::default() };
    let id = |number: u8| [[0; 15].as_slice(), &[number]].concat();
    let bytes = [&[1, 1, 0x31][..], &id(1), &id(2), &id(3), b"EUR", &[0x80, 0x01, 5, 1], &[1], &id(4), &[1, 3], b"cap"]
        .concat();
    assert_eq!(WindowRecord::decode(&bytes), Ok(record.clone()));
    let bytes = [&[2, 0, 1, 0x31, 0][..], &bytes[3..]].concat();
    assert_eq!(record.encode(), bytes, "version 2 has a byte for rows and a second byte of flags");
}

/// PERFORMANCE P6: three meters in one `bytea` of about 450 bytes, smaller is better.
#[test]
fn three_meters_are_small() {
    let price = price(PricingModel::Volume, reference_tiers());
    let mut window = WindowState::new();
    for (number, function) in [MeterFunction::Sum, MeterFunction::Count, MeterFunction::Last].into_iter().enumerate() {
        let number = number as u128;
        let mut meter = meter_definition(function);
        meter.version_id = VersionId(id(100 + number));
        let mut definition = binding_definition(meter);
        definition.binding_id = BindingId(id(200 + number));
        definition.version_id = VersionId(id(300 + number));
        definition.thresholds = vec![threshold("eighty percent", "80")];
        let binding = compile(definition);
        for _ in 0..1_000 {
            window.apply(&event(number, "123456.789"), target(&binding, &price)).expect("countable");
        }
    }
    let size = window.encode().len();
    assert!(size < 320, "{size} bytes");
}
