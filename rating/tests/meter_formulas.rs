//! FORMULA meters: the vectors of their language and of their totals, and a comparison with a naive computation over the
//! whole list. A difference here is a bill that depends on arrival order, or a component that counts for another one.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::*;
use domain::{BindingId, BindingRole, Currency, MeterFunction, MeterId, PricingModel, Quantity, UsageEvent, VersionId};
use num_bigint::BigInt;
use proptest::prelude::*;
use rating::{
    BindingDefinition, CompiledBinding, CompiledMeter, CompiledPrice, Component, MemberRow, MeterDefinition,
    MeterFormula, Outcome, PeriodFacts, RatingError, RatingInput, Span, Step, Target, WindowRecord, WindowState,
};

/// A meter that a formula names: name, metric, and how it counts.
type Named = (&'static str, &'static str, MeterFunction);

/// A version of a FORMULA meter.
fn formula(version: u128, expression: &str, names: &[&str]) -> Arc<MeterFormula> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let negative_allowed = expression.starts_with("0 - ");
    Arc::new(MeterFormula::compile(VersionId(id(version)), expression, names, negative_allowed).expect("compiles"))
}

/// The bound FORMULA meter; its components get what differs.
fn definition() -> BindingDefinition {
    let mut meter = meter_definition(MeterFunction::Formula);
    meter.metric_key = "combined".into();
    meter.key = "combined".into();
    binding_definition(meter)
}

fn component(definition: &BindingDefinition, path: Vec<Step>, (_, metric, function): Named) -> Arc<CompiledBinding> {
    component_of(definition, path, metric, meter_definition(function))
}

fn component_of(
    definition: &BindingDefinition,
    path: Vec<Step>,
    metric: &str,
    own: MeterDefinition,
) -> Arc<CompiledBinding> {
    let part = Component::new(path, definition.version_id, MeterId(id(500)), metric.into());
    let meter = MeterDefinition {
        version_id: part.version_of(own.version_id),
        key: definition.meter.key.clone(),
        metric_key: definition.meter.metric_key.clone(),
        meter_id: definition.meter.meter_id,
        thresholds: definition.meter.thresholds.clone(),
        window: definition.meter.window,
        ..own
    };
    let meter = Arc::new(CompiledMeter::compile(meter).expect("a good meter"));
    let definition = BindingDefinition { meter, ..definition.clone() };
    Arc::new(CompiledBinding::compile_component(definition, part).expect("a good binding"))
}

/// The components of one formula over meters that are none themselves.
fn components(definition: &BindingDefinition, expression: &str, named: &[Named]) -> Vec<Arc<CompiledBinding>> {
    let names: Vec<&str> = named.iter().map(|(name, _, _)| *name).collect();
    let formula = formula(600, expression, &names);
    let step = |variable| vec![Step { formula: formula.clone(), variable }];
    named.iter().enumerate().map(|(index, named)| component(definition, step(index), *named)).collect()
}

fn of(metric: &str, number: u128, amount: &str) -> UsageEvent {
    UsageEvent { metric_key: metric.into(), ..event(number, amount) }
}

/// Counts an event at every component that reads its metric, as the catalog routes it.
fn count(
    window: &mut WindowState,
    bindings: &[Arc<CompiledBinding>],
    price: &Arc<CompiledPrice>,
    event: &UsageEvent,
) -> Result<Vec<Outcome>, RatingError> {
    let readers = bindings.iter().filter(|binding| binding.reads() == event.metric_key);
    let targets: Vec<_> = readers.map(|binding| target(binding, price)).collect();
    window.apply_all(event, &targets).map(|outcomes| outcomes.into_vec())
}

fn flat() -> Arc<CompiledPrice> {
    price(PricingModel::Volume, tiers(&[("", "1", "0")]))
}

fn quantities(window: &WindowState) -> Vec<String> {
    let rated = window.rate(&RatingInput::default()).expect("can be rated");
    rated.lines.iter().map(|line| format!("{}/{}", line.quantity, line.event_count)).collect()
}

const IN_OUT: [Named; 2] = [("a", "in", MeterFunction::Sum), ("b", "out", MeterFunction::Sum)];

/// meters.md 5: `+ - * / min max ceil floor round if`; no value is 0; negative results are 0; half-even at 12 digits.
#[test]
fn formulas_combine_meters() {
    for (expression, expected) in [
        ("a + b * 2", "19"),
        ("a - b", "0"),
        ("0 - a", "-5"),
        ("a * b / 2", "17.5"),
        ("a / b", "0.714285714286"),
        ("min(a, b) + max(a, b, 10)", "15"),
        ("ceil(a / 2) + floor(b / 2) + round(b / 2)", "10"),
        ("round(a / b, 2)", "0.71"),
        ("if(a > b, 1, if(a == 5 and not (b < 5), 2, 3))", "2"),
        ("a < b ? a : b", "5"),
        ("1 / 2000000000000 + a - 5", "0"),              // 5 × 10^-13: to the even one
        ("3 / 2000000000000 + a - 5", "0.000000000002"), // 15 × 10^-13
        ("a / (b - 7)", "0"),
        ("5 + a / (b - 7)", "5"),
    ] {
        let bindings = components(&definition(), expression, &IN_OUT);
        let mut window = WindowState::new();
        for (metric, number, amount) in [("in", 1, "2"), ("out", 2, "7"), ("in", 3, "3")] {
            count(&mut window, &bindings, &flat(), &of(metric, number, amount)).expect("countable");
        }
        assert_eq!(quantities(&window), [format!("{expected}/3")], "{expression}");
        let findings = window.rate(&RatingInput::default()).expect("can be rated").findings;
        assert_eq!(findings.len(), usize::from(expression.contains("(b - 7)")), "{expression}: {findings:?}");
    }
}

#[test]
fn the_language_of_meters_is_smaller() {
    for (expression, position, message) in [
        ("a % 2", 2, "`%` cannot be used in the formula of a meter"),
        ("a ^ 2", 2, "`^` cannot be used"),
        ("abs(a)", 0, "`abs` cannot be used"),
        ("clamp(a, 0, 1)", 0, "`clamp` cannot be used"),
        ("coalesce(a, 1)", 0, "`coalesce` cannot be used"),
        ("lookup('t', a)", 0, "`lookup` cannot be used"),
        ("quantity + a", 0, "`quantity` is not declared"),
        ("a + dim.region", 4, "`dim.region` is not declared"),
        ("a + cost.amount", 4, "`cost.amount` is not declared"),
        ("sum(a)", 0, "there is no function `sum`"),
        ("a > 1", 0, "the result must be a NUMBER"),
        ("a +", 3, "expected a value"),
    ] {
        let errors =
            MeterFormula::compile(VersionId(id(1)), expression, vec!["a".into()], false).expect_err(expression);
        assert_eq!(errors[0].position, position, "{expression}: {errors:?}");
        assert!(errors[0].message.contains(message), "{expression}: {errors:?}");
    }
    let twice = MeterFormula::compile(VersionId(id(1)), "a", vec!["a".into(), "a".into()], false).expect_err("twice");
    assert_eq!(twice[0].variable, Some(1));
    let keyword = MeterFormula::compile(VersionId(id(1)), "1", vec!["and".into()], false).expect_err("a keyword");
    assert_eq!(keyword[0].variable, Some(0));
}

/// One event that several components count is one event; each has its own members, dedup keys and reports.
#[test]
fn components_do_not_share_what_they_have_counted() {
    let with_users = |number: u128, user: &str, amount: &str| with_dimension(of("calls", number, amount), "user", user);
    let named = [
        ("users", "calls", MeterFunction::UniqueCount),
        ("same", "calls", MeterFunction::UniqueCount),
        ("n", "calls", MeterFunction::Count),
        ("s", "calls", MeterFunction::Sum),
        ("top", "calls", MeterFunction::Max),
    ];
    let bindings = components(&definition(), "users * 100000 + same * 10000 + n * 1000 + s * 100 + top", &named);
    let mut window = WindowState::new();
    for event in [with_users(1, "a", "5"), with_users(2, "b", "1"), with_users(3, "a", "2")] {
        count(&mut window, &bindings, &flat(), &event).expect("countable");
    }
    assert_eq!(quantities(&window), ["223805/3"]);

    // The dedup key of one meter leaves the other one alone.
    let formula = formula(600, "a * 10 + b", &["a", "b"]);
    let step = |variable| vec![Step { formula: formula.clone(), variable }];
    let mut once = meter_definition(MeterFunction::Sum);
    once.dedup_key_path = Some("dimension_vars.user".into());
    let definition = definition();
    let bindings = [
        component_of(&definition, step(0), "calls", once),
        component(&definition, step(1), ("b", "calls", MeterFunction::Sum)),
    ];
    let mut window = WindowState::new();
    for event in [with_users(1, "a", "1"), with_users(2, "a", "2")] {
        count(&mut window, &bindings, &flat(), &event).expect("countable");
    }
    assert_eq!(quantities(&window), ["13/2"]);
}

/// A FORMULA meter names another one: the inner value is what that meter alone would have.
#[test]
fn formulas_are_nested() {
    let (outer, inner) = (formula(600, "x * 2 + y", &["x", "y"]), formula(601, "a - b", &["a", "b"]));
    let definition = definition();
    let below =
        |variable| vec![Step { formula: outer.clone(), variable: 0 }, Step { formula: inner.clone(), variable }];
    let bindings = [
        component(&definition, below(0), ("a", "in", MeterFunction::Sum)),
        component(&definition, below(1), ("b", "out", MeterFunction::Sum)),
        component(&definition, vec![Step { formula: outer.clone(), variable: 1 }], ("y", "in", MeterFunction::Count)),
    ];
    let mut window = WindowState::new();
    let mut step = |metric, number, amount, expected: &str| {
        count(&mut window, &bindings, &flat(), &of(metric, number, amount)).expect("countable");
        assert_eq!(quantities(&window), [expected]);
    };
    step("in", 1, "5", "11/1");
    step("out", 2, "7", "1/2"); // a - b is floored at 0
    step("in", 3, "4", "6/3");
}

/// A new version of the formula, of the binding or of a named meter splits the window; the order of events does not matter.
#[test]
fn versions_split_the_window() {
    let first = definition();
    let mut second = definition();
    (second.version_id, second.effective_from, second.multiplier) = (VersionId(id(32)), at(200), decimal("10"));
    let parts = |definition: &BindingDefinition, version, expression, meter: u128, from| {
        let formula = formula(version, expression, &["a", "n"]);
        let step = |variable| vec![Step { formula: formula.clone(), variable }];
        let mut top = meter_definition(MeterFunction::Max);
        (top.version_id, top.effective_from) = (VersionId(id(meter)), at(from));
        let count = ("n", "calls", MeterFunction::Count);
        [component_of(definition, step(0), "calls", top), component(definition, step(1), count)]
    };
    let events = [
        (10, "9", parts(&first, 600, "a * n", 21, 0)),
        (110, "4", parts(&first, 600, "a * n", 22, 100)), // the meter has a new version: MAX is that of the later part
        (120, "1", parts(&first, 600, "a * n", 22, 100)),
        (160, "3", parts(&first, 601, "a + n", 22, 100)), // the formula has one
        (210, "2", parts(&second, 601, "a + n", 22, 100)), // the binding has one
    ];
    // 4 × 3, 3 + 1, and (2 + 1) × 10.
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1]] {
        let mut window = WindowState::new();
        for index in order {
            let (number, amount, bindings) = &events[index];
            count(&mut window, bindings, &flat(), &of("calls", *number, amount)).expect("countable");
        }
        assert_eq!(quantities(&window), ["46/5"], "{order:?}");
    }
}

/// Thresholds see the result, once for each event, also where several components count it; in a sub-window each.
#[test]
fn thresholds_observe_the_result() {
    let mut definition = definition();
    definition.thresholds = vec![threshold("mean", "4"), threshold("high", "6")];
    let named = [("s", "calls", MeterFunction::Sum), ("n", "calls", MeterFunction::Count)];
    let bindings = components(&definition, "s / n", &named);
    let mut window = WindowState::new();
    let mut observe = |number, amount| {
        let outcomes = count(&mut window, &bindings, &flat(), &of("calls", number, amount)).expect("countable");
        let counted = outcomes.into_iter().filter_map(|outcome| match outcome {
            Outcome::Counted(counted) => Some(counted.breaches),
            Outcome::Filtered => None,
        });
        let breaches = counted.flatten();
        breaches.map(|b| format!("{}@{} of {}", b.threshold_name, b.observed_value, b.binding.meter.key)).collect()
    };
    let seen: Vec<Vec<String>> = ["1", "9", "1", "100"].iter().zip(1..).map(|(a, n)| observe(n, *a)).collect();
    let expected: [&[&str]; 4] = [&[], &["mean@5 of combined"], &[], &["high@27.75 of combined"]];
    assert_eq!(seen, expected);
}

/// A result out of range is refused with its event, and nothing has changed; so is an amount.
#[test]
fn results_out_of_range_refuse_the_event() {
    let bindings = components(&definition(), "a * b", &IN_OUT);
    let huge = "999999999999999";
    let mut window = WindowState::new();
    count(&mut window, &bindings, &flat(), &of("in", 1, huge)).expect("countable");
    let before = window.record();
    let refused = count(&mut window, &bindings, &flat(), &of("out", 2, huge));
    assert_eq!(refused, Err(RatingError::Overflow("the result of the meter's formula")));
    assert_eq!(window.record(), before);
    let dear = price(PricingModel::Volume, tiers(&[("", "1000", "0")]));
    let mut window = WindowState::new();
    count(&mut window, &bindings, &dear, &of("in", 1, huge)).expect("alone it is 0");
    let before = window.record();
    let refused = count(&mut window, &bindings, &dear, &of("out", 2, "10"));
    assert_eq!(refused, Err(RatingError::Overflow("the amount")));
    assert_eq!(window.record(), before);
    count(&mut window, &bindings, &dear, &of("out", 3, "0.0001")).expect("countable");
}

/// An INFORMATIONAL binding shows the result without a price.
#[test]
fn results_are_shown() {
    let mut definition = definition();
    (definition.role, definition.binding_id) = (BindingRole::Informational, BindingId(id(77)));
    let bindings = components(&definition, "a - b", &IN_OUT);
    let mut window = WindowState::new();
    for (metric, number, amount) in [("in", 1, "9"), ("out", 2, "2")] {
        count(&mut window, &bindings, &flat(), &of(metric, number, amount)).expect("countable");
    }
    let rated = window.rate(&RatingInput::default()).expect("can be rated");
    assert_eq!((rated.lines.len(), rated.informational.len()), (0, 1));
    assert_eq!((rated.informational[0].quantity.to_string().as_str(), rated.informational[0].event_count), ("7", 2));
}

#[derive(Clone, Debug)]
struct Sample {
    units: i128,
    minute: i64,
    wallet: bool,
    user: u8,
    metric: usize,
}

const METRICS: [&str; 2] = ["calls", "seats"];

fn any_sample() -> impl Strategy<Value = Sample> {
    (0_i128..10_i128.pow(16), 0_i64..200, any::<bool>(), 0_u8..4, 0_usize..2)
        .prop_map(|(units, minute, wallet, user, metric)| Sample { units, minute, wallet, user, metric })
}

const NAMED: [Named; 4] = [
    ("s", "calls", MeterFunction::Sum),
    ("c", "calls", MeterFunction::Count),
    ("m", "seats", MeterFunction::Max),
    ("u", "calls", MeterFunction::UniqueCount),
];
const EXPRESSION: &str = "if(c > 2, s + m * 2, m - s) / u";

fn ten(exponent: u32) -> BigInt {
    BigInt::from(10).pow(exponent)
}

/// The expression over a list, written down once more; at 10^-12, floored at 0.
fn naive(samples: &[&Sample]) -> BigInt {
    let of = |metric: usize| samples.iter().filter(move |sample| sample.metric == metric);
    let sum: BigInt = of(0).map(|sample| BigInt::from(sample.units)).sum();
    let users = BigInt::from(of(0).map(|sample| sample.user).collect::<BTreeSet<_>>().len());
    let top = of(1).map(|sample| BigInt::from(sample.units)).max().unwrap_or_default();
    let value = if of(0).count() > 2 { sum + top * 2 } else { top - sum };
    if users == BigInt::ZERO || value < BigInt::ZERO {
        return BigInt::ZERO;
    }
    let (quotient, twice) = (&value / &users, (&value % &users) * 2);
    let is_up = twice > users || (twice == users && quotient.bit(0));
    quotient + u8::from(is_up)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// In any order, with duplicates left out by the caller, through a checkpoint, over sub-windows, a price change after 100
    /// minutes and two wallets.
    #[test]
    fn c1_results_equal_the_naive_computation(
        (samples, order) in prop::collection::vec(any_sample(), 1..40).prop_flat_map(|samples| {
            let order: Vec<usize> = (0..samples.len()).chain(0..samples.len() / 3).collect();
            (Just(samples), Just(order).prop_shuffle())
        }),
        restart_at in 0_usize..60,
        is_cut in any::<bool>(),
        multiplier in prop::sample::select(vec!["1", "0.001", "2.5"]),
    ) {
        let mut definition = definition();
        let mut meter = MeterDefinition::clone(&definition.meter);
        meter.window = if is_cut { Span::Tumbling { size: chrono::TimeDelta::minutes(70) } } else { Span::BillingPeriod };
        definition.meter = Arc::new(CompiledMeter::compile(meter).expect("a good meter"));
        definition.multiplier = decimal(multiplier);
        definition.thresholds = vec![threshold("ever", "0.5")];
        let bindings = components(&definition, EXPRESSION, &NAMED);
        let prices = [flat(), {
            let mut price = price_definition(PricingModel::Volume, tiers(&[("", "2", "0")]));
            price.version_id = VersionId(id(42));
            Arc::new(CompiledPrice::compile(price).expect("a good price"))
        }];
        let catalog = Catalog { bindings: bindings.clone(), prices: prices.to_vec(), tables: Vec::new() };
        let segment = |sample: &Sample| usize::from(sample.minute >= 100);
        let (mut window, mut rows) = (WindowState::new(), BTreeMap::<u128, MemberRow>::new());
        let mut seen = BTreeSet::new();
        for (step, index) in order.into_iter().enumerate() {
            if step == restart_at {
                for row in window.take_changed_rows() {
                    rows.insert(row.hash, row);
                }
                rows.retain(|_, row| row.count > 0); // as the table
                let record = WindowRecord::decode(&window.encode()).expect("what was written can be read");
                window = record.attach(&catalog, rows.values().cloned()).expect("all versions are known");
            }
            if !seen.insert(index) {
                continue;
            }
            let sample = &samples[index];
            let mut event = with_dimension(of(METRICS[sample.metric], index as u128 + 1, "0"), "user", &sample.user.to_string());
            event.quantity = Quantity::from_units(sample.units);
            event.timestamp = at(sample.minute);
            event.wallet_currency = sample.wallet.then_some(Currency::USD);
            let readers = bindings.iter().filter(|binding| binding.reads() == event.metric_key);
            let targets: Vec<_> = readers.map(|binding| Target {
                segment_start: at(100 * i64::try_from(segment(sample)).expect("small")),
                period: PeriodFacts::default(),
                ..target(binding, &prices[segment(sample)])
            }).collect();
            window.apply_all(&event, &targets).expect("countable");
        }
        let mut groups: BTreeMap<(bool, usize), BTreeMap<i64, Vec<&Sample>>> = BTreeMap::new();
        for sample in &samples {
            let place = if is_cut { at(sample.minute).timestamp() / 60 / 70 } else { 0 };
            groups.entry((sample.wallet, segment(sample))).or_default().entry(place).or_default().push(sample);
        }
        let factor = decimal(multiplier);
        let scaled = |value: BigInt| value * BigInt::from(factor.mantissa()) * ten(12 - factor.scale());
        let expected: BTreeMap<_, _> = groups.into_iter()
            .map(|(key, parts)| (key, scaled(parts.values().map(|samples| naive(samples)).sum::<BigInt>())))
            .collect();
        let rated = window.rate(&RatingInput::default()).expect("can be rated");
        let atoms = rated.lines.iter().flat_map(|line| line.atoms.iter().map(|atom| (line.wallet_currency, atom)));
        let found: BTreeMap<_, _> = atoms.map(|(wallet, atom)| {
            let text = atom.quantity.to_string();
            let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
            let units: BigInt = format!("{whole}{fraction:0<24}").parse().expect("digits");
            ((wallet.is_some(), usize::from(atom.segment_start > at(0))), units)
        }).collect();
        prop_assert_eq!(found, expected);
        let counted: u64 = rated.lines.iter().map(|line| line.event_count).sum();
        prop_assert_eq!(counted, samples.len() as u64);
    }
}
