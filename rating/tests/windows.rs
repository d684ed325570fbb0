//! The window state: an error changes nothing, versions that split a window combine as meters.md says, thresholds fire
//! once and re-arm, members survive a checkpoint.

mod common;

use std::sync::Arc;

use common::*;
use domain::event::VarValue;
use domain::{
    BindingId, BindingRole, Currency, MeterFunction, PricingModel, Quantity, ThresholdActionKind, ThresholdBasis,
    ThresholdComparator, UsageEventId, VersionId, WindowUnit,
};
use rating::{
    CompiledBinding, CompiledMeter, Outcome, RatingError, RatingInput, Span, Target, ThresholdAction, WindowRecord,
    WindowState,
};

fn names(outcome: Outcome) -> Vec<String> {
    match outcome {
        Outcome::Counted(counted) => {
            counted.breaches.into_iter().map(|b| format!("{}@{}", b.threshold_name, b.observed_value)).collect()
        }
        Outcome::Filtered => vec!["filtered".into()],
    }
}

#[test]
fn an_error_changes_nothing() {
    let price = price(PricingModel::Volume, reference_tiers());
    let mut meter = meter_definition(MeterFunction::Sum);
    meter.value_field = Some("pricing_vars.tokens".into());
    let by_tokens = compile(binding_definition(meter));
    let mut window = WindowState::new();
    let good = |tokens: VarValue| {
        let mut event = event(1, "1");
        event.pricing_vars.insert("tokens".into(), tokens);
        event
    };
    window.apply(&good(VarValue::Number(quantity("5"))), target(&by_tokens, &price)).expect("countable");
    window.apply(&good(VarValue::Text("2.5".into())), target(&by_tokens, &price)).expect("decimal text is a number");
    let before = window.record();
    let value_error = |reason| RatingError::Value { field: "pricing_vars.tokens".into(), reason };
    for (event, error) in [
        (event(2, "1"), value_error("is missing")),
        (good(VarValue::Text("many".into())), value_error("is not a number")),
        (good(VarValue::Bool(true)), value_error("is not a number")),
        (good(VarValue::Number(quantity("-1"))), RatingError::Negative),
    ] {
        assert_eq!(window.apply(&event, target(&by_tokens, &price)), Err(error));
        assert_eq!(window.record(), before);
    }
    let unpriced = Target { price: None, ..target(&by_tokens, &price) };
    assert_eq!(window.apply(&good(VarValue::Number(Quantity::ONE)), unpriced), Err(RatingError::Unpriced));
    assert_eq!(window.record(), before);
}

#[test]
fn overflow_of_a_sum_or_a_product_refuses_the_event_alone() {
    let price = price(PricingModel::Volume, reference_tiers());
    let huge = "999999999999999.999999999999";
    let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
    definition.multiplier = decimal("999.999999999999");
    let binding = compile(definition);
    let mut window = WindowState::new();
    window.apply(&event(1, "1"), target(&binding, &price)).expect("countable");
    let before = window.record();
    let error = window.apply(&event(2, huge), target(&binding, &price));
    assert_eq!(error, Err(RatingError::Overflow("the quantity")));
    assert_eq!(window.record(), before);

    // Amounts beyond 20 integer digits are refused when they are rated, not wrapped.
    let dear = common::price(PricingModel::Volume, tiers(&[("", "999999999999999", "0")]));
    let sum = common::binding(MeterFunction::Sum);
    let mut window = WindowState::new();
    window.apply(&event(1, huge), target(&sum, &dear)).expect("countable");
    assert_eq!(window.rate(&RatingInput::default()), Err(RatingError::Overflow("the amount")));
}

#[test]
fn last_is_the_largest_of_timestamp_acceptance_and_id() {
    let price = price(PricingModel::Volume, reference_tiers());
    let binding = binding(MeterFunction::Last);
    let make = |minute, accepted, number: u128, units: &str| {
        let mut event = event(1, units);
        event.timestamp = at(minute);
        event.accepted_at = at(accepted);
        event.id = UsageEventId(id(number));
        event
    };
    let events = [make(1, 9, 9, "1"), make(2, 1, 1, "2"), make(2, 3, 1, "3"), make(2, 3, 2, "4")];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 3, 0, 2]] {
        let mut window = WindowState::new();
        for index in order {
            window.apply(&events[index], target(&binding, &price)).expect("countable");
        }
        assert_eq!(window.entries()[0].quantity(None).expect("in range").to_string(), "4");
    }
}

/// meters.md 5: the parts are summed; of MAX and LAST the later part wins; UNIQUE_COUNT is distinct over both.
#[test]
fn a_new_meter_version_splits_the_window() {
    let price = price(PricingModel::Volume, reference_tiers());
    for (function, expected) in [
        (MeterFunction::Count, "3"),
        (MeterFunction::Sum, "12"),
        (MeterFunction::Max, "4"),
        (MeterFunction::Last, "3"),
        (MeterFunction::UniqueCount, "2"),
    ] {
        let first = binding(function);
        let mut second = meter_definition(function);
        second.version_id = VersionId(id(1)); // smaller id, later start: the start decides
        second.effective_from = at(100);
        let second = compile(binding_definition(second));
        let events = [(1, "5", "a", &first), (101, "4", "a", &second), (102, "3", "b", &second)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let mut window = WindowState::new();
            for (number, units, user, binding) in order.map(|index| events[index]) {
                let event = with_dimension(event(number, units), "user", user);
                window.apply(&event, target(binding, &price)).expect("countable");
            }
            let rated = window.rate(&RatingInput::default()).expect("rates");
            assert_eq!(rated.lines.len(), 1);
            assert_eq!(
                (rated.lines[0].quantity.to_string().as_str(), rated.lines[0].event_count),
                (expected, 3),
                "{function}"
            );
            assert_eq!(rated.lines[0].atoms.len(), 1);
        }
    }
}

#[test]
fn informational_bindings_are_shown_and_never_billed() {
    let price = price(PricingModel::Volume, reference_tiers());
    let primary = binding(MeterFunction::Sum);
    let mut definition = binding_definition(meter_definition(MeterFunction::Max));
    definition.binding_id = BindingId(id(50));
    definition.version_id = VersionId(id(51));
    definition.role = BindingRole::Informational;
    let shown = compile(definition);
    let targets = [target(&primary, &price), Target { price: None, ..target(&shown, &price) }];
    let mut window = WindowState::new();
    for units in ["3", "2"] {
        assert_eq!(window.apply_all(&event(1, units), &targets).expect("countable").len(), 2);
    }
    let rated = window.rate(&RatingInput::default()).expect("rates");
    assert_eq!((rated.lines.len(), rated.lines[0].amount.amount().to_string()), (1, "0.50".into()));
    assert_eq!((rated.informational.len(), rated.informational[0].quantity.to_string()), (1, "3".into()));

    // One binding that refuses the event keeps it out of all of them.
    let mut meter = meter_definition(MeterFunction::Sum);
    meter.value_field = Some("dimension_vars.absent".into());
    let mut definition = binding_definition(meter);
    definition.binding_id = BindingId(id(60));
    let refusing = compile(definition);
    let before = window.record();
    assert!(window.apply_all(&event(1, "1"), &[target(&primary, &price), target(&refusing, &price)]).is_err());
    assert_eq!(window.record(), before);
}

#[test]
fn thresholds_fire_once_and_rearm() {
    let price = price(PricingModel::Volume, reference_tiers());
    let mut meter = meter_definition(MeterFunction::Sum);
    meter.negative_allowed = true;
    meter.thresholds = vec![threshold("once", "80")];
    let mut definition = binding_definition(meter);
    let mut again = threshold("again", "80");
    again.rearm = true;
    let mut low = threshold("low", "10");
    low.comparator = ThresholdComparator::Lt;
    definition.thresholds = vec![again, low];
    let binding = compile(definition);
    let mut window = WindowState::new();
    for (units, expected) in [
        ("85", vec!["once@85", "again@85"]),
        ("1", vec![]),
        ("-10", vec![]),
        ("5", vec!["again@81"]),
        ("-75", vec!["low@6"]),
        ("-1", vec![]),
    ] {
        let outcome = window.apply(&event(1, units), target(&binding, &price)).expect("countable");
        assert_eq!(names(outcome), expected, "{units}");
    }
    let fired: Vec<_> = window.fired().map(|(_, fired)| fired.name.as_str()).collect();
    assert_eq!(fired, ["once", "low"]);
}

/// INVOICE closes the usage so far and starts a new count: the limit is reached again after as much usage, in a state that was
/// stored meanwhile as well; also with a fraction of a unit that only the multiplier has.
#[test]
fn a_threshold_that_invoices_starts_a_new_count() {
    let price = price(PricingModel::Volume, reference_tiers());
    let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
    definition.multiplier = "1.000000000001".parse().expect("a decimal");
    let action = ThresholdAction { kind: ThresholdActionKind::Invoice, target: None, event_type: None };
    definition.thresholds = vec![rating::Threshold { actions: vec![action], ..threshold("close", "100") }];
    let binding = compile(definition);
    let catalog =
        Catalog { bindings: vec![Arc::clone(&binding)], prices: vec![Arc::clone(&price)], ..Catalog::default() };
    let mut window = WindowState::new();
    for (units, expected) in [
        ("99", vec![]),
        ("0.5", vec![]),
        ("2.123456789", vec!["close@101.623456789101623456789"]),
        ("99.9", vec![]),
        ("1000", vec!["close@1201.523456790201523456789"]),
        ("99", vec![]),
        ("1", vec!["close@1301.523456790301523456789"]),
    ] {
        let outcome = window.apply(&event(1, units), target(&binding, &price)).expect("countable");
        assert_eq!(names(outcome), expected, "{units}");
        let record = WindowRecord::decode(&window.encode()).expect("written by us");
        assert_eq!(record, window.record());
        window = record.attach(&catalog, []).expect("known versions");
    }
}

#[test]
fn a_threshold_has_one_breach_per_action_and_may_be_in_percent() {
    let price = price(PricingModel::Volume, reference_tiers());
    let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
    let mut half = threshold("half", "50");
    half.basis = ThresholdBasis::AllowancePercent;
    half.actions = vec![
        ThresholdAction { kind: ThresholdActionKind::Block, target: None, event_type: None },
        ThresholdAction {
            kind: ThresholdActionKind::Notify,
            target: Some("ops@acme.example".into()),
            event_type: None,
        },
    ];
    definition.thresholds = vec![half];
    let binding = compile(definition);
    let with = |allowance: &str| Target { allowance: Some(quantity(allowance)), ..target(&binding, &price) };
    let mut window = WindowState::new();
    assert!(names(window.apply(&event(1, "1.499999999999"), with("3")).expect("countable")).is_empty());
    let Outcome::Counted(counted) = window.apply(&event(2, "0.000000000002"), with("3")).expect("countable") else {
        panic!("there is no filter");
    };
    let kinds: Vec<_> = counted.breaches.iter().map(|b| (b.action.kind, b.observed_value.to_string())).collect();
    let observed = "50.000000000033".to_owned(); // 1.500000000001 of 3
    assert_eq!(kinds, [(ThresholdActionKind::Block, observed.clone()), (ThresholdActionKind::Notify, observed)]);
    assert!(
        names(WindowState::new().apply(&event(3, "5"), target(&binding, &price)).expect("no allowance")).is_empty()
    );
}

/// A cap that is set below what was already used acts with the next event, also over several keys and versions.
#[test]
fn a_threshold_added_in_mid_window_sees_what_was_counted_before() {
    let price = price(PricingModel::Volume, reference_tiers());
    let first = binding(MeterFunction::Sum);
    let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
    definition.version_id = VersionId(id(32));
    definition.effective_from = at(50);
    definition.thresholds = vec![threshold("cap", "100"), threshold("more", "200")];
    let second = compile(definition);
    let mut window = WindowState::new();
    for wallet in [None, Some(Currency::USD)] {
        let mut event = event(1, "75");
        event.wallet_currency = wallet;
        window.apply(&event, target(&first, &price)).expect("countable");
    }
    assert_eq!(names(window.apply(&event(51, "1"), target(&second, &price)).expect("countable")), ["cap@151"]);
    assert_eq!(names(window.apply(&event(52, "49"), target(&second, &price)).expect("countable")), ["more@200"]);
    let mut late = event(2, "10");
    late.wallet_currency = Some(Currency::USD);
    assert!(names(window.apply(&late, target(&first, &price)).expect("countable")).is_empty());
    assert_eq!(window.accrue(&RatingInput::default()).expect("rates").len(), 2);
}

/// Rule C6: a checkpoint writes the members that changed, set and not added.
#[test]
fn c6_members_are_rows_that_are_set() {
    let (binding, price) = (binding(MeterFunction::UniqueCount), price(PricingModel::Volume, reference_tiers()));
    let by = |user: &str| with_dimension(event(1, "1"), "user", user);
    let mut window = WindowState::new();
    for user in ["a", "b", "a"] {
        window.apply(&by(user), target(&binding, &price)).expect("countable");
    }
    window.apply(&event(2, "1"), target(&binding, &price)).expect("an event without the field counts no value");
    let mut rows = window.take_changed_rows();
    rows.sort_by_key(|row| row.count);
    assert_eq!(rows.iter().map(|row| row.count).collect::<Vec<_>>(), [1, 2]);
    assert!(window.take_changed_rows().is_empty());

    let record = WindowRecord::decode(&window.encode()).expect("decodes");
    assert!(record.has_rows);
    let catalog =
        Catalog { bindings: vec![Arc::clone(&binding)], prices: vec![Arc::clone(&price)], ..Catalog::default() };
    let mut window = record.attach(&catalog, rows).expect("attaches");
    for user in ["a", "c"] {
        window.apply(&by(user), target(&binding, &price)).expect("countable");
    }
    assert_eq!(window.entries()[0].quantity(None).expect("in range").to_string(), "3");
    let mut counts: Vec<_> = window.take_changed_rows().iter().map(|row| row.count).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 3]);
}

#[test]
fn definitions_that_cannot_be_evaluated_are_refused() {
    // A FORMULA meter reads events by its components alone.
    let price = price(PricingModel::Volume, reference_tiers());
    let refused = WindowState::new().apply(&event(1, "1"), target(&binding(MeterFunction::Formula), &price));
    assert!(matches!(refused, Err(RatingError::Unsupported(_))));
    let fields = |error: RatingError| match error {
        RatingError::Definition(fields) => fields.into_iter().map(|f| f.field).collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    let mut meter = meter_definition(MeterFunction::Sum);
    meter.value_field = Some("price_key".into());
    meter.thresholds = vec![threshold("same", "1"), threshold("same", "2")];
    let error = CompiledMeter::compile(meter).expect_err("refused");
    assert_eq!(fields(error), ["thresholds[1].name", "value_field"]);
    let mut meter = meter_definition(MeterFunction::UniqueCount);
    meter.unique_by_field = None;
    assert_eq!(fields(CompiledMeter::compile(meter).expect_err("refused")), ["unique_by_field"]);
    let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
    definition.multiplier = decimal("0");
    assert_eq!(fields(CompiledBinding::compile(definition).expect_err("refused")), ["multiplier"]);
}

#[test]
fn tiers_that_cannot_be_walked_are_refused() {
    let errors = |model, steps: &[(&str, &str, &str)]| {
        let fields = rating::pricing::check_tiers(model, &tiers(steps));
        fields.into_iter().map(|f| f.field).collect::<Vec<_>>()
    };
    for (steps, expected) in [
        (&[][..], vec!["tiers"]),
        (&[("10", "1", "0")], vec!["tiers[0].up_to"]),
        (&[("", "1", "0"), ("", "1", "0")], vec!["tiers[0].up_to"]),
        (&[("0", "1", "0"), ("", "1", "0")], vec!["tiers[0].up_to"]),
        (&[("10", "1", "0"), ("10", "1", "0"), ("", "1", "0")], vec!["tiers[1].up_to"]),
        (&[("", "-1", "-0.01")], vec!["tiers[0].unit_amount", "tiers[0].flat_amount"]),
        (&[("", "0.0000000000001", "1000000000000000")], vec!["tiers[0].unit_amount", "tiers[0].flat_amount"]),
    ] {
        assert_eq!(errors(PricingModel::Staircase, steps), expected, "{steps:?}");
    }
    assert_eq!(errors(PricingModel::Package, &[("", "0", "5")]), ["tiers[0].unit_amount"]);
    let mut same_order = reference_tiers();
    same_order[2].tier_order = 2;
    assert_eq!(rating::pricing::check_tiers(PricingModel::Volume, &same_order)[0].field, "tiers[2].tier_order");
}

/// Daily peaks over two days are added up (meters.md 5, Window); in each day the threshold fires once, with that day's value.
#[test]
fn sub_windows_are_evaluated_alone_and_summed() {
    let mut meter = meter_definition(MeterFunction::Max);
    meter.window = Span::Calendar { unit: WindowUnit::Day, timezone: None };
    meter.thresholds = vec![threshold("high", "6")];
    let binding = compile(binding_definition(meter));
    let price = price(PricingModel::Volume, reference_tiers());
    let mut window = WindowState::new();
    let mut breaches = Vec::new();
    for (number, minutes, amount) in [(1, 60, "5"), (2, 1_500, "7"), (3, 120, "8"), (4, 1_600, "9"), (5, 90, "2")] {
        let mut event = event(number, amount);
        event.timestamp = at(minutes);
        let Outcome::Counted(counted) = window.apply(&event, target(&binding, &price)).expect("countable") else {
            panic!("there is no filter")
        };
        breaches.extend(counted.breaches.iter().map(|b| (b.window.start, b.window.end, b.observed_value.to_string())));
    }
    let day = |number: i64| at(number * 24 * 60);
    assert_eq!(breaches, [(day(1), day(2), "7".to_owned()), (day(0), day(1), "8".to_owned())]);
    let rated = window.rate(&RatingInput::default()).expect("priced");
    assert_eq!(rated.lines[0].quantity.to_string(), "17", "8 and 9");
    assert_eq!(window.record().entries, [], "sub-windows are rows");
    assert_eq!(window.take_changed_rows().len(), 2);
    assert_eq!(window.take_changed_rows(), []);
    window.apply(&event(6, "1"), target(&binding, &price)).expect("countable");
    assert_eq!(window.take_changed_rows().len(), 1, "only what changed");
}

/// usage.md, Meter-level dedup: the value at `dedup_key_path` counts once per meter, subscription and window.
#[test]
fn a_dedup_key_counts_once_per_window() {
    let mut meter = meter_definition(MeterFunction::Sum);
    meter.dedup_key_path = Some("dimension_vars.request".into());
    meter.window = Span::Calendar { unit: WindowUnit::Day, timezone: None };
    let binding = compile(binding_definition(meter));
    let price = price(PricingModel::Volume, reference_tiers());
    let mut window = WindowState::new();
    for (number, minutes, request) in
        [(1, 10, Some("a")), (2, 20, Some("a")), (3, 1_500, Some("a")), (4, 30, None), (5, 40, None)]
    {
        let mut event = event(number, "10");
        event.timestamp = at(minutes);
        let event = request.map_or(event.clone(), |request| with_dimension(event, "request", request));
        let outcome = window.apply(&event, target(&binding, &price)).expect("countable");
        assert_eq!(outcome == Outcome::Filtered, number == 2, "event {number}");
    }
    let rated = window.rate(&RatingInput::default()).expect("priced");
    assert_eq!(rated.lines[0].quantity.to_string(), "40");
}

/// meters.md 5, unit_currency_field: each currency is rated apart, and an event without one is refused.
#[test]
fn values_of_two_currencies_are_rated_apart() {
    let mut meter = meter_definition(MeterFunction::Sum);
    meter.unit_currency_field = Some("dimension_vars.currency".into());
    let binding = compile(binding_definition(meter));
    let price = price(PricingModel::Staircase, reference_tiers());
    let mut window = WindowState::new();
    for (number, currency) in [(1, "EUR"), (2, "USD"), (3, "EUR")] {
        let event = with_dimension(event(number, "800"), "currency", currency);
        window.apply(&event, target(&binding, &price)).expect("countable");
    }
    for currency in ["euro", "XYZ"] {
        let wrong = with_dimension(event(4, "1"), "currency", currency);
        assert!(matches!(window.apply(&wrong, target(&binding, &price)), Err(RatingError::Value { .. })), "{currency}");
    }
    assert!(matches!(window.apply(&event(5, "1"), target(&binding, &price)), Err(RatingError::Value { .. })));
    let rated = window.rate(&RatingInput::default()).expect("priced");
    let atoms: Vec<_> = rated.lines[0]
        .atoms
        .iter()
        .map(|atom| (atom.unit_currency.map(|c| c.to_string()), atom.amount.to_string()))
        .collect();
    // 1,600 EUR in two tiers, 800 USD in the first.
    let expected =
        [("EUR", "148.00 EUR"), ("USD", "80.00 EUR")].map(|(unit, amount)| (Some(unit.to_owned()), amount.to_owned()));
    assert_eq!(atoms, expected);
}

fn time_weighted() -> Arc<CompiledBinding> {
    compile(binding_definition(meter_definition(MeterFunction::TimeWeighted)))
}

fn hours_until(window: &WindowState, minutes: i64) -> String {
    let input = RatingInput { until: Some(at(minutes)), ..RatingInput::default() };
    let rated = window.rate(&input).expect("priced");
    rated.lines.first().map_or_else(|| "nothing".into(), |line| line.quantity.to_string())
}

/// meters.md 5, vectors: 5 × 1 + 2 × 1 + 7 × 2 over 08:00 to 12:00, in every order of arrival.
#[test]
fn values_are_weighted_by_the_time_that_they_are_held() {
    let (binding, price) = (time_weighted(), price(PricingModel::Volume, reference_tiers()));
    let reports = [(1, 480, "5"), (2, 540, "2"), (3, 600, "7")];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut window = WindowState::new();
        for (number, minutes, value) in order.map(|index| reports[index]) {
            let mut event = event(number, value);
            event.timestamp = at(minutes);
            window.apply(&event, target(&binding, &price)).expect("countable");
        }
        assert_eq!(hours_until(&window, 720), "21", "{order:?}");
        assert_eq!(hours_until(&window, 600), "7", "{order:?}");
        assert_eq!(window.rate(&RatingInput::default()).expect("priced").lines[0].quantity.to_string(), "7");
    }
}

/// A value lasts into the next window, is corrected there when the report before it changes, and survives a checkpoint.
#[test]
fn a_held_value_is_carried_into_the_next_window() {
    let (binding, price) = (time_weighted(), price(PricingModel::Volume, reference_tiers()));
    let (start, mut first, mut next) = (month().end, WindowState::new(), WindowState::new());
    let report = |number: u128, timestamp, value: &str| {
        let mut event = event(number, value);
        event.timestamp = timestamp;
        event
    };
    let later = Target {
        window: domain::period::Period { start, end: start + chrono::TimeDelta::days(30) },
        ..target(&binding, &price)
    };
    let hours = |window: &WindowState, hours: i64| {
        let input = RatingInput { until: Some(start + chrono::TimeDelta::hours(hours)), ..RatingInput::default() };
        window.rate(&input).expect("priced").lines.first().map(|line| line.quantity.to_string())
    };
    first.apply(&report(1, start - chrono::TimeDelta::hours(10), "4"), target(&binding, &price)).expect("countable");
    assert!(next.carry_in(start, &first.carries()[0]).expect("in range"));
    assert!(!next.carry_in(start, &first.carries()[0]).expect("in range"), "nothing changes twice");
    assert_eq!(hours(&next, 5).as_deref(), Some("20"));
    next.apply(&report(2, start + chrono::TimeDelta::hours(3), "1"), later).expect("countable");
    assert_eq!(hours(&next, 5).as_deref(), Some("14"), "3 x 4 and 2 x 1");
    // Another report of the first window arrives after that.
    first.apply(&report(3, start - chrono::TimeDelta::hours(1), "6"), target(&binding, &price)).expect("countable");
    assert!(next.carry_in(start, &first.carries()[0]).expect("in range"));
    assert_eq!(hours(&next, 5).as_deref(), Some("20"), "3 x 6 and 2 x 1");

    let catalog =
        Catalog { bindings: vec![Arc::clone(&binding)], prices: vec![Arc::clone(&price)], ..Catalog::default() };
    let record = WindowRecord::decode(&next.encode()).expect("readable");
    assert!(record.has_rows);
    let mut read = record.attach(&catalog, next.take_changed_rows()).expect("attached");
    assert_eq!(hours(&read, 5).as_deref(), Some("20"));
    read.apply(&report(4, start + chrono::TimeDelta::hours(1), "0"), later).expect("countable");
    assert_eq!(hours(&read, 5).as_deref(), Some("8"), "1 x 6, 2 x 0 and 2 x 1");
    // A late report of an earlier time changes nothing: a later one was held at the start.
    read.apply(&report(5, start - chrono::TimeDelta::hours(2), "100"), later).expect("countable");
    assert_eq!(hours(&read, 5).as_deref(), Some("8"));
    // Nor does it where the window is counted anew, and what was held comes after its own reports.
    let mut anew = WindowState::new();
    for (number, hour, value) in [(2, 3, "1"), (4, 1, "0"), (5, -2, "100")] {
        let event = report(number, start + chrono::TimeDelta::hours(hour), value);
        anew.apply(&event, later).expect("countable");
    }
    anew.inherit(&read, start).expect("in range");
    assert_eq!(hours(&anew, 5).as_deref(), Some("8"));
    assert!(read.drop_carries(start, &[]).expect("in range"));
    assert_eq!(hours(&read, 5).as_deref(), Some("102"), "1 x 100 of the late report, 2 x 0 and 2 x 1");
}
