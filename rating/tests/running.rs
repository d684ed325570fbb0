//! SLIDING and LIFETIME windows: what goes on over the end of a billing window. A difference here is an alarm that is missed
//! when a month begins, or one that depends on arrival order.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::TimeDelta;
use common::*;
use domain::period::Period;
use domain::{BindingRole, MeterFunction, Quantity, UsageEvent};
use proptest::prelude::*;
use rating::{
    BindingDefinition, Breach, CompiledBinding, CompiledMeter, MemberRow, MeterDefinition, Outcome, PeriodFacts,
    RatingError, RatingInput, Span, Target, WindowRecord, WindowState,
};

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

fn count(state: &mut WindowState, binding: &Arc<CompiledBinding>, window: Period, event: &UsageEvent) -> Vec<Breach> {
    let target = Target {
        binding,
        price: None,
        segment_start: window.start,
        allowance: None,
        window,
        timezone: chrono_tz::Tz::UTC,
        tables: &(),
        period: PeriodFacts::default(),
    };
    match state.apply(event, target).expect("countable") {
        Outcome::Counted(counted) => counted.breaches,
        Outcome::Filtered => panic!("there is no filter"),
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
        let carry = |one: &WindowState, two: &mut WindowState| {
            two.carry_running(one.running(first.end).expect("in range")).expect("in range")
        };
        assert!(carry(&one, &mut two), "{function}");
        assert!(!carry(&one, &mut two), "a repeat changes nothing");
        assert_eq!(shown(&two), format!("{before}/2"), "{function}");
        count(&mut two, &binding, second, &at_minute(3, 150, "3"));
        assert_eq!(shown(&two), after, "{function}");
        count(&mut one, &binding, first, &at_minute(4, 15, "100"));
        assert!(carry(&one, &mut two), "{function}");
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
    two.carry_running(one.running(first.end).expect("in range")).expect("in range");
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
    let refused = |function, span, role, dedup: bool| {
        let mut meter = meter_definition(function);
        meter.dedup_key_path = dedup.then(|| "dimension_vars.id".into());
        let definition = BindingDefinition { role, window: Some(span), ..binding_definition(meter) };
        matches!(CompiledBinding::compile(definition), Err(RatingError::Unsupported(_)))
    };
    let (sum, shown) = (MeterFunction::Sum, BindingRole::Informational);
    for (function, span, role, dedup, expected) in [
        (sum, HOUR, shown, false, false),
        (sum, HOUR, BindingRole::Primary, false, true),
        (sum, HOUR, BindingRole::FormulaInput, false, true),
        (sum, Span::Lifetime, BindingRole::Primary, false, true),
        (sum, Span::Lifetime, BindingRole::FormulaInput, false, false),
        (sum, Span::Lifetime, shown, true, true),
        (MeterFunction::UniqueCount, HOUR, shown, false, true),
        (MeterFunction::TimeWeighted, Span::Lifetime, shown, false, true),
        (MeterFunction::Formula, Span::Lifetime, shown, false, true),
    ] {
        assert_eq!(refused(function, span, role, dedup), expected, "{function} {span:?} {role} {dedup}");
    }
    let definition = MeterDefinition { window: HOUR, ..meter_definition(MeterFunction::UniqueCount) };
    assert!(matches!(CompiledMeter::compile(definition), Err(RatingError::Unsupported(_))));
}

#[derive(Clone, Debug)]
struct Sample {
    units: i64,
    second: i64,
}

const BOUNDARY: i64 = 100; // minutes

/// Seconds of a step of an hour.
const STEP: i64 = 10;

fn any_samples() -> impl Strategy<Value = (Vec<Sample>, Vec<usize>)> {
    let sample = (0_i64..50, 0_i64..200 * 60).prop_map(|(units, second)| Sample { units, second });
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
                for (state, rows) in states.iter_mut().zip(&mut rows) {
                    for row in state.take_changed_rows() {
                        rows.insert(row.hash, row);
                    }
                    rows.retain(|_, row| row.count > 0);
                    let record = WindowRecord::decode(&state.encode()).expect("what was written can be read");
                    *state = record.attach(&catalog, rows.values().cloned()).expect("all versions are known");
                }
            }
            let sample = &samples[index];
            let place = usize::from(sample.second >= BOUNDARY * 60);
            let mut event = event(index as u128 + 1, &sample.units.to_string());
            event.timestamp = at(0) + TimeDelta::seconds(sample.second);
            let running = states[0].running(windows[0].end).expect("in range");
            states[1].carry_running(running).expect("in range");
            let breaches = count(&mut states[place], &binding, windows[place], &event);
            let known = |other: &&usize| place == 1 || samples[**other].second < BOUNDARY * 60;
            let others: Vec<&Sample> = applied.iter().filter(known).map(|other| &samples[*other]).collect();
            let step_of = |sample: &Sample| sample.second.div_euclid(STEP) * STEP;
            applied.push(index);
            let is_too_late = others.iter().any(|other| step_of(other) > sample.second + 3_600);
            let inside = |other: &&&Sample| sample.second - 3_600 < step_of(other) && step_of(other) <= sample.second;
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
            let running = states[0].running(windows[0].end).expect("in range");
            states[1].carry_running(running).expect("in range");
        }
        let all: Vec<&Sample> = samples.iter().collect();
        let expected = naive(function, &all).expect("there is an event");
        prop_assert_eq!(shown(&states[1]), format!("{expected}/{}", samples.len()));
    }
}
