//! SLIDING and LIFETIME windows: what goes on over the end of a billing window. A difference here is an alarm that is missed
//! when a month begins, or one that depends on arrival order.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::TimeDelta;
use common::*;
use domain::period::Period;
use domain::{BindingRole, MeterFunction, MeterId, Quantity, UsageEvent, VersionId};
use proptest::prelude::*;
use rating::{
    BindingDefinition, Breach, CompiledBinding, CompiledMeter, Component, MemberRow, MeterDefinition, MeterFormula,
    Outcome, PeriodFacts, RatingError, RatingInput, Span, Step, Target, WindowRecord, WindowState,
};
use rust_decimal::{Decimal, RoundingStrategy};

const HOUR: Span = Span::Sliding { size: TimeDelta::hours(1) };

fn watched(function: MeterFunction, span: Span, limits: &[&str]) -> Arc<CompiledBinding> {
    let mut meter = meter_definition(function);
    (meter.window, meter.negative_allowed) = (span, true);
    let mut definition = binding_definition(meter);
    definition.role = BindingRole::Informational;
    definition.thresholds = limits.iter().map(|limit| threshold(limit, limit)).collect();
    compile(definition)
}

/// The billing window, from minute to minute.
fn window_of(from: i64, to: i64) -> Period {
    Period { start: at(from), end: at(to) }
}

fn target_of(binding: &Arc<CompiledBinding>, window: Period) -> Target<'_> {
    Target {
        binding,
        price: None,
        segment_start: window.start,
        allowance: None,
        window,
        timezone: chrono_tz::Tz::UTC,
        tables: &(),
        period: PeriodFacts::default(),
    }
}

fn count(state: &mut WindowState, binding: &Arc<CompiledBinding>, window: Period, event: &UsageEvent) -> Vec<Breach> {
    match state.apply(event, target_of(binding, window)).expect("countable") {
        Outcome::Counted(counted) => counted.breaches,
        Outcome::Filtered => Vec::new(), // a repeated dedup key
    }
}

fn at_minute(number: u128, minute: i64, units: &str) -> UsageEvent {
    UsageEvent { timestamp: at(minute), ..event(number, units) }
}

fn shown(state: &WindowState) -> String {
    let rated = state.rate(&RatingInput::default()).expect("can be rated");
    rated.informational.iter().map(|line| format!("{}/{}", line.quantity, line.event_count)).collect()
}

/// A threshold fires when an event takes its own window to the limit, and again after it was below; also when only time has
/// taken it below.
#[test]
fn a_sliding_window_ends_at_each_event() {
    let binding = watched(MeterFunction::Count, HOUR, &["3", "5"]);
    let mut state = WindowState::new();
    let mut seen = Vec::new();
    for (number, minute) in [0, 10, 20, 30, 35, 100, 110, 115, 300, 301, 302].into_iter().enumerate() {
        for breach in count(&mut state, &binding, month(), &at_minute(number as u128, minute, "1")) {
            assert_eq!(breach.window, window_of(minute - 60, minute));
            seen.push(format!("{}@{minute}", breach.threshold_name));
        }
    }
    assert_eq!(seen, ["3@20", "5@35", "3@115", "3@302"]);
    // An event that is a little late has the window that ends at it; one that is older than an hour is not evaluated.
    let late = count(&mut state, &binding, month(), &at_minute(20, 303, "1"));
    assert_eq!(late.len(), 0, "3 before, 4 after");
    for number in 30..40 {
        assert_eq!(count(&mut state, &binding, month(), &at_minute(number, 200, "1")), []);
    }
    for (function, expected) in [
        (MeterFunction::Sum, "7"),
        (MeterFunction::Max, "4"),
        (MeterFunction::Min, "1"),
        (MeterFunction::Avg, "2.333333333333"),
        (MeterFunction::Last, "2"),
    ] {
        let binding = watched(function, HOUR, &["0.5"]);
        let mut state = WindowState::new();
        for (number, minute, units) in [(1, 0, "9"), (2, 70, "4"), (3, 80, "1"), (4, 90, "2")] {
            count(&mut state, &binding, month(), &at_minute(number, minute, units));
        }
        let input = RatingInput { until: Some(at(95)), ..RatingInput::default() };
        let rated = state.rate(&input).expect("can be rated");
        assert_eq!(rated.informational[0].quantity.to_string(), expected, "{function}");
    }
}

/// The number of totals is bounded by the steps, not by the events; rows of old steps go.
#[test]
fn old_steps_are_dropped() {
    let binding = watched(MeterFunction::Sum, HOUR, &["1000000"]);
    let (mut state, mut rows) = (WindowState::new(), BTreeMap::<u128, MemberRow>::new());
    for number in 0..20_000_u128 {
        let mut event = event(number, "1");
        event.timestamp = at(0) + TimeDelta::seconds(i64::try_from(number).expect("small") * 3);
        count(&mut state, &binding, month(), &event);
        if number % 1_000 == 0 {
            for row in state.take_changed_rows() {
                rows.insert(row.hash, row);
            }
            rows.retain(|_, row| row.count > 0);
            assert_eq!(rows.len(), state.entries().len());
        }
    }
    state.take_changed_rows();
    assert!(state.entries().len() <= 721, "{} steps of ten seconds in two hours", state.entries().len());
}

/// What was seen, and reports, of twice the size are kept, whatever came before.
#[test]
fn what_nobody_can_see_any_more_is_dropped() {
    for (function, rows_max) in [(MeterFunction::UniqueCount, 721 + 2_401), (MeterFunction::TimeWeighted, 2_402)] {
        let binding = watched(function, HOUR, &["1000000"]);
        let (mut state, mut rows) = (WindowState::new(), BTreeMap::<u128, MemberRow>::new());
        for number in 0..6_000_u128 {
            let mut event = with_dimension(event(number, "1"), "user", &number.to_string());
            event.timestamp = at(0) + TimeDelta::seconds(i64::try_from(number).expect("small") * 3);
            count(&mut state, &binding, month(), &event);
            if number % 500 == 499 {
                rows.extend(state.take_changed_rows().into_iter().map(|row| (row.hash, row)));
                rows.retain(|_, row| row.count > 0);
                assert!(rows.len() <= rows_max, "{function}: {} rows", rows.len());
            }
        }
        assert!(rows.len() > 2_000, "{function}: {} rows", rows.len());
    }
}

/// A LIFETIME window goes on in the next month, with what a late event adds to the month before, and fires once.
#[test]
fn a_lifetime_goes_on_in_the_next_window() {
    let (first, second) = (window_of(0, 100), window_of(100, 200));
    for (function, before, after, late) in [
        (MeterFunction::Count, "2", "3/3", "4/4"),
        (MeterFunction::Sum, "11", "14/3", "114/4"),
        (MeterFunction::Max, "6", "6/3", "100/4"),
        (MeterFunction::Min, "5", "3/3", "3/4"),
        (MeterFunction::Avg, "5.5", "4.666666666667/3", "28.5/4"),
        (MeterFunction::Last, "6", "3/3", "3/4"),
    ] {
        let binding = watched(function, Span::Lifetime, &[]);
        let (mut one, mut two) = (WindowState::new(), WindowState::new());
        count(&mut one, &binding, first, &at_minute(1, 10, "5"));
        count(&mut one, &binding, first, &at_minute(2, 20, "6"));
        assert!(two.go_on_from(&mut one, first.end).expect("in range"), "{function}");
        assert!(!two.go_on_from(&mut one, first.end).expect("in range"), "a repeat changes nothing");
        assert_eq!(shown(&two), format!("{before}/2"), "{function}");
        count(&mut two, &binding, second, &at_minute(3, 150, "3"));
        assert_eq!(shown(&two), after, "{function}");
        count(&mut one, &binding, first, &at_minute(4, 15, "100"));
        assert!(two.go_on_from(&mut one, first.end).expect("in range"), "{function}");
        assert_eq!(shown(&two), late, "{function}");
        let catalog = Catalog { bindings: vec![binding], ..Catalog::default() };
        let record = WindowRecord::decode(&two.encode()).expect("what was written can be read");
        assert_eq!(shown(&record.attach(&catalog, []).expect("all versions are known")), late);
    }
}

#[test]
fn a_threshold_fires_once_in_a_lifetime() {
    let (first, second) = (window_of(0, 100), window_of(100, 200));
    let binding = watched(MeterFunction::Sum, Span::Lifetime, &["10", "20"]);
    let (mut one, mut two) = (WindowState::new(), WindowState::new());
    let names = |breaches: Vec<Breach>| -> Vec<String> {
        breaches.iter().map(|breach| format!("{}@{}", breach.threshold_name, breach.observed_value)).collect()
    };
    assert_eq!(names(count(&mut one, &binding, first, &at_minute(1, 10, "6"))), [""; 0]);
    assert_eq!(names(count(&mut one, &binding, first, &at_minute(2, 20, "6"))), ["10@12"]);
    two.go_on_from(&mut one, first.end).expect("in range");
    assert_eq!(names(count(&mut two, &binding, second, &at_minute(3, 110, "1"))), [""; 0]);
    // Counted anew, it goes on from where it began.
    let mut anew = WindowState::new();
    anew.inherit(&two, second.start).expect("in range");
    for state in [&mut two, &mut anew] {
        let after = count(state, &binding, second, &at_minute(4, 120, "8"));
        assert_eq!(names(after).len(), 1);
        assert_eq!(names(count(state, &binding, second, &at_minute(5, 130, "50"))), [""; 0]);
    }
}

#[test]
fn windows_that_go_on_are_not_billed() {
    let refused = |function, span, role| {
        let definition =
            BindingDefinition { role, window: Some(span), ..binding_definition(meter_definition(function)) };
        matches!(CompiledBinding::compile(definition), Err(RatingError::Unsupported(_)))
    };
    for function in
        [MeterFunction::Sum, MeterFunction::UniqueCount, MeterFunction::TimeWeighted, MeterFunction::Formula]
    {
        for (span, role, expected) in [
            (HOUR, BindingRole::Informational, false),
            (HOUR, BindingRole::Primary, true),
            (HOUR, BindingRole::FormulaInput, true),
            (Span::Lifetime, BindingRole::Informational, false),
            (Span::Lifetime, BindingRole::Primary, true),
            (Span::Lifetime, BindingRole::FormulaInput, false),
        ] {
            assert_eq!(refused(function, span, role), expected, "{function} {span:?} {role}");
        }
    }
}

/// What one meter makes of one billing window after the other.
fn go_on(states: &mut [WindowState; 2], first: Period) {
    let [before, after] = states;
    after.go_on_from(before, first.end).expect("in range");
}

/// Everything is written and read again, as a checkpoint and a new owner do.
fn restart(states: &mut [WindowState; 2], rows: &mut [BTreeMap<u128, MemberRow>; 2], catalog: &Catalog) {
    for (state, rows) in states.iter_mut().zip(rows) {
        let changed = state.take_changed_rows();
        let hashes: BTreeSet<u128> = changed.iter().map(|row| row.hash).collect();
        assert_eq!(hashes.len(), changed.len(), "one statement writes each row once");
        rows.extend(changed.into_iter().map(|row| (row.hash, row)));
        rows.retain(|_, row| row.count > 0);
        let record = WindowRecord::decode(&state.encode()).expect("what was written can be read");
        *state = record.attach(catalog, rows.values().cloned()).expect("all versions are known");
    }
}

/// A distinct value counts in the window while it was seen in it; a repeated dedup key adds nothing.
#[test]
fn a_sliding_window_counts_what_it_has_seen() {
    let binding = watched(MeterFunction::UniqueCount, HOUR, &["2", "3"]);
    let mut state = WindowState::new();
    let mut seen = Vec::new();
    for (number, minute, user) in [
        (1, 0, "a"),
        (2, 10, "a"),
        (3, 40, "b"),
        (4, 65, "c"),
        (5, 69, "a"),
        (6, 140, "b"),
        (7, 60, "d"),
        (8, 141, "a"),
    ] {
        let event = with_dimension(at_minute(number, minute, "1"), "user", user);
        for breach in count(&mut state, &binding, month(), &event) {
            seen.push(format!("{}@{minute}", breach.threshold_name));
        }
    }
    // a and b at 40; with c at 65, since a was seen at 10; b alone at 140, d is too late to be seen; a again at 141.
    assert_eq!(seen, ["2@40", "3@65", "2@141"]);
    let input = RatingInput { until: Some(at(150)), ..RatingInput::default() };
    let rated = state.rate(&input).expect("can be rated");
    assert_eq!(rated.informational[0].quantity.to_string(), "2");
}

/// What was held in the hour before a report, in units × hours.
#[test]
fn a_sliding_window_of_held_values_is_read_from_its_reports() {
    let binding = watched(MeterFunction::TimeWeighted, HOUR, &["10"]);
    let mut state = WindowState::new();
    let mut fired = Vec::new();
    for (number, minute, units) in [(1, 0, "6"), (2, 90, "18"), (3, 120, "0"), (4, 240, "1"), (5, 105, "18")] {
        for breach in count(&mut state, &binding, month(), &at_minute(number, minute, units)) {
            fired.push((minute, breach.observed_value.to_string()));
        }
    }
    assert_eq!(fired, [(120, "12".to_owned())], "6 for half an hour and 18 for the other one");
    for (minute, expected) in [(60, "6"), (100, "8"), (150, "9"), (240, "0"), (300, "1"), (1_000, "1")] {
        let input = RatingInput { until: Some(at(minute)), ..RatingInput::default() };
        let rated = state.rate(&input).expect("can be rated");
        assert_eq!(rated.informational[0].quantity.to_string(), expected, "at {minute}");
    }
}

/// Calls per user, over the hour before the latest event and over a lifetime.
#[test]
fn formulas_go_on() {
    for (span, limits, expected) in [(HOUR, "2", "2/4"), (Span::Lifetime, "2", "2.5/5")] {
        let mut meter = meter_definition(MeterFunction::Formula);
        meter.window = span;
        let mut definition = binding_definition(meter);
        definition.role = BindingRole::Informational;
        definition.thresholds = vec![threshold(limits, limits)];
        let names = vec!["calls".to_owned(), "users".to_owned()];
        let formula = MeterFormula::compile(VersionId(id(600)), "calls / users", names, false).expect("compiles");
        let formula = Arc::new(formula);
        let bindings = [MeterFunction::Count, MeterFunction::UniqueCount].map(|function| {
            let variable = usize::from(function == MeterFunction::UniqueCount);
            let path = vec![Step { formula: formula.clone(), variable }];
            let part = Component::new(path, definition.version_id, MeterId(id(500)), "calls".into());
            let own = meter_definition(function);
            let own = MeterDefinition { version_id: part.version_of(own.version_id), window: span, ..own };
            let meter = Arc::new(CompiledMeter::compile(own).expect("a good meter"));
            let definition = BindingDefinition { meter, ..definition.clone() };
            Arc::new(CompiledBinding::compile_component(definition, part).expect("a good binding"))
        });
        let windows = [window_of(0, 100), window_of(100, 200)];
        let mut states = [WindowState::new(), WindowState::new()];
        let mut fired = Vec::new();
        for (number, minute, user) in [(1, 10, "a"), (2, 90, "a"), (3, 95, "b"), (4, 110, "b"), (5, 120, "a")] {
            let event = with_dimension(at_minute(number, minute, "1"), "user", user);
            let place = usize::from(minute >= 100);
            if place == 1 {
                go_on(&mut states, windows[0]);
            }
            let targets: Vec<Target<'_>> = bindings.iter().map(|binding| target_of(binding, windows[place])).collect();
            for outcome in states[place].apply_all(&event, &targets).expect("countable") {
                if let Outcome::Counted(counted) = outcome {
                    fired.extend(counted.breaches.iter().map(|breach| format!("{}@{minute}", breach.observed_value)));
                }
            }
        }
        let expected_fired: &[&str] = if span == HOUR { &["2@120"] } else { &["2@90"] };
        assert_eq!(fired, expected_fired, "{span:?}");
        let rated = states[1].rate(&RatingInput { until: Some(at(121)), ..RatingInput::default() });
        let line = &rated.expect("can be rated").informational[0];
        let events = if span == HOUR { 4 } else { line.event_count };
        assert_eq!(format!("{}/{events}", line.quantity), expected);
    }
}

#[derive(Clone, Debug)]
struct Sample {
    units: i64,
    second: i64,
    /// Distinct value, or dedup key.
    who: u8,
}

impl Sample {
    fn event(&self, index: usize) -> UsageEvent {
        let event = event(index as u128 + 1, &self.units.to_string());
        let event = UsageEvent { timestamp: at(0) + TimeDelta::seconds(self.second), ..event };
        with_dimension(event, "user", &self.who.to_string())
    }

    fn step(&self) -> i64 {
        self.second.div_euclid(STEP) * STEP
    }
}

/// A meter whose windows that go on count a value or a key once.
fn once(function: MeterFunction, span: Span, limits: &[&str]) -> Arc<CompiledBinding> {
    let mut meter = meter_definition(function);
    (meter.window, meter.negative_allowed) = (span, true);
    if function != MeterFunction::UniqueCount {
        meter.dedup_key_path = Some("dimension_vars.user".into());
    }
    let mut definition = binding_definition(meter);
    definition.role = BindingRole::Informational;
    definition.thresholds = limits.iter().map(|limit| threshold(limit, limit)).collect();
    compile(definition)
}

fn any_once() -> impl Strategy<Value = MeterFunction> {
    prop::sample::select(vec![MeterFunction::UniqueCount, MeterFunction::Count, MeterFunction::Sum, MeterFunction::Avg])
}

/// The value over events that stand for their values, as numerator and denominator.
fn naive_once(function: MeterFunction, samples: &[&Sample]) -> Option<(i64, i64)> {
    let sum = samples.iter().map(|sample| sample.units).sum();
    let count = i64::try_from(samples.len()).expect("small");
    match function {
        MeterFunction::Sum => Some((sum, 1)),
        MeterFunction::Avg => (count > 0).then_some((sum, count)),
        _ => Some((count, 1)),
    }
}

/// As meters show a quotient: half-even at 12 fraction digits.
fn quotient((numerator, denominator): (i64, i64)) -> String {
    let exact = Decimal::from(numerator) / Decimal::from(denominator);
    exact.round_dp_with_strategy(12, RoundingStrategy::MidpointNearestEven).normalize().to_string()
}

const BOUNDARY: i64 = 100; // minutes

/// Seconds of a step of an hour.
const STEP: i64 = 10;

fn any_samples() -> impl Strategy<Value = (Vec<Sample>, Vec<usize>)> {
    let sample = (0_i64..50, 0_i64..200 * 60, 0_u8..8).prop_map(|(units, second, who)| Sample { units, second, who });
    prop::collection::vec(sample, 1..60).prop_flat_map(|samples| {
        let order: Vec<usize> = (0..samples.len()).collect();
        (Just(samples), Just(order).prop_shuffle())
    })
}

/// The value over a list, and whether it has one; written down once more.
fn naive(function: MeterFunction, samples: &[&Sample]) -> Option<i64> {
    let units = || samples.iter().map(|sample| sample.units);
    match function {
        MeterFunction::Max => units().max(),
        MeterFunction::Min => units().min(),
        MeterFunction::Count => i64::try_from(samples.len()).ok(),
        _ => Some(units().sum()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Two billing windows, events in any order, checkpoints in between.
    #[test]
    fn c3_sliding_windows_equal_the_naive_ones(
        (samples, order) in any_samples(),
        function in prop::sample::select(vec![MeterFunction::Count, MeterFunction::Sum, MeterFunction::Max, MeterFunction::Min]),
        limit in 1_i64..60,
        restart_at in 0_usize..60,
    ) {
        let limit_text = limit.to_string();
        let binding = watched(function, HOUR, &[&limit_text]);
        let catalog = Catalog { bindings: vec![binding.clone()], ..Catalog::default() };
        let windows = [window_of(0, BOUNDARY), window_of(BOUNDARY, 200)];
        let mut states = [WindowState::new(), WindowState::new()];
        let mut rows: [BTreeMap<u128, MemberRow>; 2] = Default::default();
        let mut applied: Vec<usize> = Vec::new();
        for (step, index) in order.into_iter().enumerate() {
            if step == restart_at {
                restart(&mut states, &mut rows, &catalog);
            }
            let sample = &samples[index];
            let place = usize::from(sample.second >= BOUNDARY * 60);
            let mut event = event(index as u128 + 1, &sample.units.to_string());
            event.timestamp = at(0) + TimeDelta::seconds(sample.second);
            go_on(&mut states, windows[0]);
            let breaches = count(&mut states[place], &binding, windows[place], &event);
            let known = |other: &&usize| place == 1 || samples[**other].second < BOUNDARY * 60;
            let others: Vec<&Sample> = applied.iter().filter(known).map(|other| &samples[*other]).collect();
            applied.push(index);
            let is_too_late = others.iter().any(|other| other.step() > sample.second + 3_600);
            let inside = |other: &&&Sample| sample.second - 3_600 < other.step() && other.step() <= sample.second;
            let mut held: Vec<&Sample> = others.iter().filter(inside).copied().collect();
            let before = naive(function, &held).filter(|_| !held.is_empty() || function != MeterFunction::Max);
            held.push(sample);
            let after = naive(function, &held).expect("there is an event");
            let fires = !is_too_late && after >= limit && before.is_none_or(|before| before < limit);
            prop_assert_eq!(breaches.len(), usize::from(fires), "{:?} {:?}: {:?} to {}", function, sample, before, after);
            if fires {
                let observed = Quantity::from_int(after);
                prop_assert_eq!(breaches[0].observed_value, observed.into());
            }
        }
    }

    /// Each value counts by its latest sighting; an event that comes behind a later one is seen in the window of that.
    #[test]
    fn c3_what_slides_counts_once(
        (samples, order) in any_samples(),
        function in any_once(),
        limit in 1_i64..60,
        restart_at in 0_usize..60,
        recount_at in 0_usize..60,
    ) {
        let limit_text = limit.to_string();
        let binding = once(function, HOUR, &[&limit_text]);
        let catalog = Catalog { bindings: vec![binding.clone()], ..Catalog::default() };
        let windows = [window_of(0, BOUNDARY), window_of(BOUNDARY, 200)];
        let mut states = [WindowState::new(), WindowState::new()];
        let mut rows: [BTreeMap<u128, MemberRow>; 2] = Default::default();
        let mut applied: Vec<usize> = Vec::new();
        let place_of = |sample: &Sample| usize::from(sample.second >= BOUNDARY * 60);
        for (number, index) in order.into_iter().enumerate() {
            if number == restart_at {
                restart(&mut states, &mut rows, &catalog);
            }
            if number == recount_at {
                for place in [0, 1] {
                    let mut anew = WindowState::new();
                    for index in applied.iter().filter(|index| place_of(&samples[**index]) == place) {
                        count(&mut anew, &binding, windows[place], &samples[*index].event(*index));
                    }
                    anew.inherit(&states[place], windows[place].start).expect("in range");
                    anew.supersede(&states[place]);
                    states[place] = anew;
                }
            }
            let sample = &samples[index];
            let place = place_of(sample);
            go_on(&mut states, windows[0]);
            let breaches = count(&mut states[place], &binding, windows[place], &sample.event(index));
            let known = |other: &&usize| place == 1 || place_of(&samples[**other]) == 0;
            let mut others: Vec<&Sample> = applied.iter().filter(known).map(|other| &samples[*other]).collect();
            applied.push(index);
            let end = others.iter().map(|other| other.step()).max().unwrap_or(0).max(sample.second);
            // The latest step; of one step what an earlier billing window has, then what came first.
            let latest = |known: &[&Sample]| -> Vec<(i64, i64)> {
                let standing = |who: u8| {
                    let own = known.iter().enumerate().filter(|(_, other)| other.who == who);
                    let best = own.max_by_key(|(place, other)| (other.step(), std::cmp::Reverse((place_of(other), *place))));
                    best.map(|(_, other)| *other)
                };
                let standing = (0..8).filter_map(standing);
                let inside = standing.filter(|other| end - 3_600 < other.step() && other.step() <= end);
                inside.map(|other| (other.units, other.second)).collect()
            };
            let value = |known: &[&Sample]| -> Option<(i64, i64)> {
                let standing: Vec<Sample> = latest(known).into_iter().map(|(units, second)| Sample { units, second, who: 0 }).collect();
                naive_once(function, &standing.iter().collect::<Vec<_>>())
            };
            let before = value(&others);
            others.push(sample);
            let after = value(&others);
            let holds = |value: Option<(i64, i64)>| value.is_some_and(|(sum, count)| sum >= limit * count);
            let fires = holds(after) && !holds(before);
            prop_assert_eq!(breaches.len(), usize::from(fires), "{:?} {:?}: {:?} to {:?}", function, sample, before, after);
        }
    }

    /// What was held in the hour before the latest report, over the end of a billing window.
    #[test]
    fn c3_what_slides_is_held(
        (samples, order) in any_samples(),
        limit in 1_i64..40,
        restart_at in 0_usize..60,
    ) {
        let limit_text = limit.to_string();
        let binding = watched(MeterFunction::TimeWeighted, HOUR, &[&limit_text]);
        let catalog = Catalog { bindings: vec![binding.clone()], ..Catalog::default() };
        let windows = [window_of(0, BOUNDARY), window_of(BOUNDARY, 200)];
        let mut states = [WindowState::new(), WindowState::new()];
        let mut rows: [BTreeMap<u128, MemberRow>; 2] = Default::default();
        let mut applied: Vec<usize> = Vec::new();
        for (number, index) in order.into_iter().enumerate() {
            if number == restart_at {
                restart(&mut states, &mut rows, &catalog);
            }
            let sample = &samples[index];
            let place = usize::from(sample.second >= BOUNDARY * 60);
            go_on(&mut states, windows[0]);
            let breaches = count(&mut states[place], &binding, windows[place], &sample.event(index));
            let known = |other: &&usize| place == 1 || samples[**other].second < BOUNDARY * 60;
            let mut others: Vec<(i64, usize)> = applied.iter().filter(known).map(|other| (samples[*other].second, *other)).collect();
            applied.push(index);
            let held = |reports: &mut Vec<(i64, usize)>| -> i64 {
                reports.sort_unstable();
                let end = reports.last().map_or(0, |last| last.0);
                let inside = |second: i64| second.clamp(end - 3_600, end);
                reports.windows(2).map(|two| samples[two[0].1].units * (inside(two[1].0) - inside(two[0].0))).sum()
            };
            let before = held(&mut others);
            others.push((sample.second, index));
            let after = held(&mut others);
            let fires = after >= limit * 3_600 && before < limit * 3_600;
            prop_assert_eq!(breaches.len(), usize::from(fires), "{:?}: {} to {}", sample, before, after);
        }
    }

    /// In a lifetime each value counts once, in any order and counted anew.
    #[test]
    fn c1_lifetimes_count_once(
        (samples, order) in any_samples(),
        function in any_once(),
        restart_at in 0_usize..60,
    ) {
        let binding = once(function, Span::Lifetime, &["3"]);
        let catalog = Catalog { bindings: vec![binding.clone()], ..Catalog::default() };
        let windows = [window_of(0, BOUNDARY), window_of(BOUNDARY, 200)];
        let mut states = [WindowState::new(), WindowState::new()];
        let mut rows: [BTreeMap<u128, MemberRow>; 2] = Default::default();
        let place_of = |sample: &Sample| usize::from(sample.second >= BOUNDARY * 60);
        for (number, index) in order.iter().enumerate() {
            if number == restart_at {
                restart(&mut states, &mut rows, &catalog);
            }
            let place = place_of(&samples[*index]);
            count(&mut states[place], &binding, windows[place], &samples[*index].event(*index));
            go_on(&mut states, windows[0]);
        }
        let first = |who: u8| {
            let mut of_window = [0, 1].into_iter().filter_map(|place| {
                let mut own = order.iter().map(|index| &samples[*index]);
                own.find(|sample| sample.who == who && place_of(sample) == place)
            });
            of_window.next()
        };
        let counted: Vec<&Sample> = (0..8).filter_map(first).collect();
        let expected = naive_once(function, &counted).expect("there is an event");
        let events = if function == MeterFunction::UniqueCount { samples.len() } else { counted.len() };
        let mut anew = WindowState::new();
        for index in order.iter().filter(|index| place_of(&samples[**index]) == 1) {
            count(&mut anew, &binding, windows[1], &samples[*index].event(*index));
        }
        anew.inherit(&states[1], windows[1].start).expect("in range");
        for state in [&states[1], &anew] {
            prop_assert_eq!(shown(state), format!("{}/{events}", quotient(expected)));
        }
    }

    /// In a lifetime a value is held over the end of billing windows.
    #[test]
    fn c1_lifetimes_hold(
        (samples, order) in any_samples(),
        restart_at in 0_usize..60,
    ) {
        let binding = watched(MeterFunction::TimeWeighted, Span::Lifetime, &["3"]);
        let catalog = Catalog { bindings: vec![binding.clone()], ..Catalog::default() };
        let windows = [window_of(0, BOUNDARY), window_of(BOUNDARY, 200)];
        let mut states = [WindowState::new(), WindowState::new()];
        let mut rows: [BTreeMap<u128, MemberRow>; 2] = Default::default();
        for (number, index) in order.iter().enumerate() {
            if number == restart_at {
                restart(&mut states, &mut rows, &catalog);
            }
            let sample = &samples[*index];
            let place = usize::from(sample.second >= BOUNDARY * 60);
            count(&mut states[place], &binding, windows[place], &sample.event(*index));
            go_on(&mut states, windows[0]);
            let carries = states[0].carries();
            states[1].drop_carries(windows[1].start, &carries).expect("in range");
            for mut carry in carries {
                carry.segment_start = windows[1].start;
                states[1].carry_in(windows[1].start, &carry).expect("in range");
            }
        }
        let mut reports: Vec<(i64, usize)> = samples.iter().enumerate().map(|(index, sample)| (sample.second, index)).collect();
        reports.sort_unstable();
        let mut area: i64 = reports.windows(2).map(|two| samples[two[0].1].units * (two[1].0 - two[0].0)).sum();
        let (last, index) = *reports.last().expect("there is an event");
        area += samples[index].units * (200 * 60 - last);
        let rated = states[1].rate(&RatingInput { until: Some(windows[1].end), ..RatingInput::default() });
        let shown = rated.expect("can be rated").informational[0].quantity.to_string();
        prop_assert_eq!(shown, quotient((area, 3_600)));
    }

    /// A lifetime over two billing windows is the meter over all events, in any order.
    #[test]
    fn c1_lifetimes_equal_the_whole_list(
        (samples, order) in any_samples(),
        function in prop::sample::select(vec![MeterFunction::Count, MeterFunction::Sum, MeterFunction::Max, MeterFunction::Min]),
    ) {
        let binding = watched(function, Span::Lifetime, &[]);
        let windows = [window_of(0, BOUNDARY), window_of(BOUNDARY, 200)];
        let mut states = [WindowState::new(), WindowState::new()];
        for index in order {
            let sample = &samples[index];
            let place = usize::from(sample.second >= BOUNDARY * 60);
            let mut event = event(index as u128 + 1, &sample.units.to_string());
            event.timestamp = at(0) + TimeDelta::seconds(sample.second);
            count(&mut states[place], &binding, windows[place], &event);
            go_on(&mut states, windows[0]);
        }
        let all: Vec<&Sample> = samples.iter().collect();
        let expected = naive(function, &all).expect("there is an event");
        prop_assert_eq!(shown(&states[1]), format!("{expected}/{}", samples.len()));
    }
}
