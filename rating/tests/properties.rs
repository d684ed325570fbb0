//! Running totals against a naive re-computation of the whole list with big integers: in any order, duplicates ignored,
//! through a checkpoint in the middle. A difference here is a bill that depends on arrival order or loses a digit.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::*;
use domain::{Currency, MeterFunction, PriceId, PricingModel, ProductId, Quantity, UsageEvent, VersionId};
use num_bigint::BigInt;
use proptest::prelude::*;
use rating::{
    CompiledBinding, CompiledPrice, MemberRow, PeriodFacts, RatingInput, Span, Target, Terms, Tier, WindowRecord,
    WindowState, total, walk,
};

const FUNCTIONS: [MeterFunction; 7] = [
    MeterFunction::Count,
    MeterFunction::Sum,
    MeterFunction::Max,
    MeterFunction::Min,
    MeterFunction::Avg,
    MeterFunction::Last,
    MeterFunction::UniqueCount,
];
const MODELS: [PricingModel; 3] = [PricingModel::Volume, PricingModel::Staircase, PricingModel::Package];

fn ten(exponent: u32) -> BigInt {
    BigInt::from(10).pow(exponent)
}

/// `a / b` rounded half away from zero or half to even; both positive or a negative.
fn divide(a: &BigInt, b: &BigInt, to_even: bool) -> BigInt {
    let negative = *a < BigInt::ZERO;
    let a = if negative { -a } else { a.clone() };
    let (quotient, twice) = (&a / b, (&a % b) * 2);
    let odd = &quotient % BigInt::from(2) == BigInt::from(1);
    let up = twice > *b || (twice == *b && (!to_even || odd));
    let rounded = if up { quotient + 1 } else { quotient };
    if negative { -rounded } else { rounded }
}

/// Units at 10^-24 to minor units of a currency, written down once more from pricing-models.md.
fn naive_total(model: PricingModel, tiers: &[Tier], exponent: u32, units: &BigInt) -> BigInt {
    let at_24 = |q: Quantity| BigInt::from(q.units()) * ten(12);
    let rate = |d: rust_decimal::Decimal| BigInt::from(d.mantissa()) * ten(12 - d.scale()); // 10^-12
    let round = |amount: BigInt| divide(&amount, &ten(36 - exponent), false); // from 10^-36
    if *units == BigInt::ZERO {
        return BigInt::ZERO;
    }
    let (mut lower, mut sum) = (BigInt::ZERO, BigInt::ZERO);
    for tier in tiers {
        let upper = tier.up_to.map(at_24);
        let holds_all = upper.as_ref().is_none_or(|upper| units <= upper);
        match model {
            PricingModel::Staircase => {
                let top = if holds_all { units } else { upper.as_ref().expect("bounded") };
                sum += round((top - &lower) * rate(tier.unit_amount) + rate(tier.flat_amount) * ten(24));
            }
            PricingModel::Volume if holds_all => {
                return round(units * rate(tier.unit_amount) + rate(tier.flat_amount) * ten(24));
            }
            PricingModel::Package if holds_all => {
                let size = rate(tier.unit_amount) * ten(12);
                let packages: BigInt = (units + &size - 1) / &size;
                return round(packages * rate(tier.flat_amount) * ten(24));
            }
            _ => {}
        }
        if holds_all {
            break;
        }
        lower = upper.expect("bounded");
    }
    sum
}

prop_compose! {
    fn any_tiers()(
        mut bounds in prop::collection::btree_set(1_i128..10_i128.pow(22), 0..6),
        rates in prop::collection::vec((0_i64..10_i64.pow(9), 0_u32..=12, 0_i64..10_i64.pow(6), 0_u32..=12), 7),
    ) -> Vec<Tier> {
        let bounds: Vec<_> = std::mem::take(&mut bounds).into_iter().collect();
        (0..=bounds.len()).map(|index| {
            let (unit, unit_scale, flat, flat_scale) = rates[index];
            Tier {
                tier_order: u32::try_from(index).expect("small") + 1,
                up_to: bounds.get(index).map(|units| Quantity::from_units(*units)),
                unit_amount: rust_decimal::Decimal::new(unit + 1, unit_scale),
                flat_amount: rust_decimal::Decimal::new(flat, flat_scale),
                rate_expression: None,
            }
        }).collect()
    }
}

fn any_currency() -> impl Strategy<Value = Currency> {
    prop::sample::select(vec!["EUR", "JPY", "KWD", "CLF"]).prop_map(|code| Currency::parse(code).expect("known"))
}

fn minor(money: domain::Money) -> BigInt {
    BigInt::from(money.amount().mantissa())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn tiers_agree_with_big_rationals(
        tiers in any_tiers(), currency in any_currency(), model in prop::sample::select(&MODELS), pick in any::<prop::sample::Index>(),
        units in prop_oneof![0_i128..10_i128.pow(27), 0_i128..10_i128.pow(22)], offset in -1_i128..=1,
    ) {
        let mut definition = price_definition(model, tiers.clone());
        definition.currency = currency;
        let price = CompiledPrice::compile(definition).expect("a good price");
        // Half of the time a boundary, or one unit beside it.
        let bounds: Vec<_> = tiers.iter().filter_map(|tier| tier.up_to).collect();
        let on_boundary = units % 2 == 0 && !bounds.is_empty();
        let units = if on_boundary { bounds[pick.index(bounds.len())].units() + offset } else { units };
        let exact = naive_total(model, &tiers, currency.exponent(), &(BigInt::from(units) * ten(12)));
        match total(&price, Quantity::from_units(units)) {
            Ok(amount) => {
                prop_assert_eq!(minor(amount), exact);
                let walk = walk(&price, Quantity::from_units(units)).expect("what has a total can be walked");
                prop_assert_eq!(walk.total, amount);
                let sum: BigInt = walk.tiers.iter().map(|tier| minor(tier.amount)).sum();
                prop_assert_eq!(sum, minor(amount));
            }
            Err(_) => prop_assert!(exact >= ten(20 + currency.exponent()), "{} was refused", exact),
        }
    }
}

/// What one generated event varies in.
#[derive(Clone, Debug)]
struct Sample {
    units: i128,
    minute: i64,
    key: usize,
    wallet: bool,
    user: u8,
}

fn any_sample(negative: bool) -> impl Strategy<Value = Sample> {
    let least = if negative { -(10_i128.pow(16)) } else { 0 };
    (least..10_i128.pow(16), 0_i64..200, 0_usize..2, any::<bool>(), 0_u8..4)
        .prop_map(|(units, minute, key, wallet, user)| Sample { units, minute, key, wallet, user })
}

fn any_span() -> impl Strategy<Value = Span> {
    let zone = Some(chrono_tz::Asia::Kathmandu); // 5:45 ahead, so that its days begin within the 200 minutes
    prop_oneof![
        2 => Just(Span::BillingPeriod),
        1 => Just(Span::Tumbling { size: chrono::TimeDelta::minutes(70) }),
        1 => Just(Span::Calendar { unit: domain::WindowUnit::Hour, timezone: zone }),
    ]
}

/// Which sub-window a minute belongs to, written down once more.
fn naive_sub_window(span: Span, minute: i64) -> i64 {
    let epoch = at(minute).timestamp() / 60;
    match span {
        Span::Tumbling { .. } => epoch / 70,
        Span::Calendar { .. } => (epoch + 345) / 60,
        _ => 0,
    }
}

/// One product with two price keys, each with a price change after 100 minutes.
struct Setting {
    binding: Arc<CompiledBinding>,
    /// By segment, then key.
    prices: [[Arc<CompiledPrice>; 2]; 2],
    terms: [Terms; 1],
    multiplier: rust_decimal::Decimal,
}

impl Setting {
    fn new(
        function: MeterFunction,
        model: PricingModel,
        multiplier: &str,
        allowance: i128,
        tiers: &[Vec<Tier>],
        on_total: bool,
        span: Span,
    ) -> Self {
        let mut meter = meter_definition(function);
        meter.negative_allowed = true;
        meter.window = span;
        let mut definition = binding_definition(meter);
        definition.multiplier = decimal(multiplier);
        let price = |segment: usize, key: usize| {
            let mut definition = price_definition(model, tiers[segment * 2 + key].clone());
            definition.price_id = PriceId(id(40 + key as u128));
            definition.version_id = VersionId(id(1_000 - (segment * 2 + key) as u128)); // against the order of segments
            definition.price_key = Some(["gpt", "claude"][key].into());
            Arc::new(CompiledPrice::compile(definition).expect("a good price"))
        };
        let terms = Terms {
            tiers_on_total: on_total,
            ..Terms::new(ProductId(id(10)), "calls", Quantity::from_units(allowance))
        };
        let multiplier = definition.multiplier;
        Self {
            binding: compile(definition),
            prices: [[price(0, 0), price(0, 1)], [price(1, 0), price(1, 1)]],
            terms: [terms],
            multiplier,
        }
    }

    fn event(&self, index: usize, sample: &Sample) -> UsageEvent {
        let mut event = with_dimension(event(index as u128 + 1, "0"), "user", &sample.user.to_string());
        event.quantity = Quantity::from_units(sample.units);
        event.timestamp = at(sample.minute);
        event.price_key = Some(["gpt", "claude"][sample.key].into());
        event.wallet_currency = sample.wallet.then_some(Currency::USD);
        event
    }

    fn target(&self, sample: &Sample) -> Target<'_> {
        let segment = segment_of(sample);
        Target {
            binding: &self.binding,
            price: Some(&self.prices[segment][sample.key]),
            segment_start: at(100 * i64::try_from(segment).expect("small")),
            allowance: None,
            window: month(),
            timezone: chrono_tz::Tz::UTC,
            tables: &(),
            period: PeriodFacts::default(),
        }
    }

    fn catalog(&self) -> Catalog {
        Catalog {
            bindings: vec![Arc::clone(&self.binding)],
            prices: self.prices.iter().flatten().cloned().collect(),
            tables: Vec::new(),
        }
    }
}

fn segment_of(sample: &Sample) -> usize {
    usize::from(sample.minute >= 100)
}

/// (segment, price key, wallet) in the order in which an allowance is shared; "claude" sorts before "gpt".
type NaiveKey = (usize, &'static str, Option<&'static str>);

fn naive_key(sample: &Sample) -> NaiveKey {
    (segment_of(sample), ["gpt", "claude"][sample.key], sample.wallet.then_some("USD"))
}

/// Quantity of one key at 10^-24.
fn naive_quantity(function: MeterFunction, samples: &[(usize, &Sample)], multiplier: rust_decimal::Decimal) -> BigInt {
    let units = || samples.iter().map(|(_, sample)| BigInt::from(sample.units));
    let value = match function {
        MeterFunction::Count => BigInt::from(samples.len()) * ten(12),
        MeterFunction::Max => units().max().unwrap_or_default(),
        MeterFunction::Min => units().min().unwrap_or_default(),
        MeterFunction::Avg => divide(&units().sum(), &BigInt::from(samples.len()), true),
        MeterFunction::Last => {
            let latest = samples.iter().max_by_key(|(index, sample)| (sample.minute, *index));
            latest.map(|(_, sample)| BigInt::from(sample.units)).unwrap_or_default()
        }
        MeterFunction::UniqueCount => {
            BigInt::from(samples.iter().map(|(_, sample)| sample.user).collect::<BTreeSet<_>>().len()) * ten(12)
        }
        _ => units().sum(),
    };
    value * BigInt::from(multiplier.mantissa()) * ten(12 - multiplier.scale())
}

/// Amount in minor units per wallet pin, from the whole list.
fn naive_amounts(setting: &Setting, samples: &[Sample]) -> BTreeMap<Option<&'static str>, BigInt> {
    let mut keys: BTreeMap<NaiveKey, Vec<(usize, &Sample)>> = BTreeMap::new();
    for (index, sample) in samples.iter().enumerate() {
        keys.entry(naive_key(sample)).or_default().push((index, sample));
    }
    let mut allowance = BigInt::from(setting.terms[0].allowance.units()) * ten(12);
    let mut amounts = BTreeMap::new();
    for ((segment, name, wallet), samples) in keys {
        let mut sub_windows: BTreeMap<i64, Vec<(usize, &Sample)>> = BTreeMap::new();
        for (index, sample) in samples {
            let place = naive_sub_window(setting.binding.meter.window, sample.minute);
            sub_windows.entry(place).or_default().push((index, sample));
        }
        let function = setting.binding.meter.function;
        let parts = sub_windows.values().map(|samples| naive_quantity(function, samples, setting.multiplier));
        let quantity = parts.sum::<BigInt>().max(BigInt::ZERO);
        let drawn = quantity.clone().min(allowance.clone());
        allowance -= &drawn;
        let price = &setting.prices[segment][usize::from(name == "claude")];
        let of = |units: &BigInt| naive_total(price.model, &price.tiers, 2, units);
        let amount = if setting.terms[0].tiers_on_total {
            (of(&quantity) - of(&drawn)).max(BigInt::ZERO)
        } else {
            of(&(quantity - drawn))
        };
        *amounts.entry(wallet).or_default() += amount;
    }
    amounts
}

/// Drops the state and reads it back, as a checkpoint and a restart do.
fn restart(window: &mut WindowState, rows: &mut BTreeMap<u128, MemberRow>, catalog: &Catalog) {
    for row in window.take_changed_rows() {
        rows.insert(row.hash, row);
    }
    let record = WindowRecord::decode(&window.encode()).expect("what was written can be read");
    *window = record.attach(catalog, rows.values().cloned()).expect("all versions are known");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn c1_running_totals_equal_rating_the_whole_list(
        function in prop::sample::select(&FUNCTIONS),
        model in prop::sample::select(&MODELS),
        multiplier in prop::sample::select(vec!["1", "0.001", "1000", "0.000277777778", "2.5"]),
        allowance in prop_oneof![Just(0_i128), 0_i128..10_i128.pow(17)],
        on_total in any::<bool>(),
        tiers in prop::collection::vec(any_tiers(), 4),
        (samples, order) in any::<bool>().prop_flat_map(|negative| prop::collection::vec(any_sample(negative), 1..40))
            .prop_flat_map(|samples| {
                // Every event at least once, some twice, in any order.
                let order: Vec<usize> = (0..samples.len()).chain(0..samples.len() / 3).collect();
                (Just(samples), Just(order).prop_shuffle())
            }),
        restart_at in 0_usize..60,
        span in any_span(),
    ) {
        let setting = Setting::new(function, model, multiplier, allowance, &tiers, on_total, span);
        let (mut window, mut rows) = (WindowState::new(), BTreeMap::new());
        let mut seen = BTreeSet::new();
        for (step, index) in order.into_iter().enumerate() {
            if step == restart_at {
                restart(&mut window, &mut rows, &setting.catalog());
            }
            if seen.insert(index) { // deduplication is the partition's; here it is this set
                window.apply(&setting.event(index, &samples[index]), setting.target(&samples[index])).expect("countable");
            }
        }
        let input = RatingInput { terms: &setting.terms, until: None, period: PeriodFacts::default() };
        let expected = naive_amounts(&setting, &samples);
        match window.accrue(&input) {
            Ok(accruals) => {
                let found: BTreeMap<_, _> = accruals.iter()
                    .map(|accrual| (accrual.wallet_currency.map(|_| "USD"), minor(accrual.amount)))
                    .collect();
                prop_assert_eq!(&found, &expected);
                let rated = window.rate(&input).expect("what accrues can be rated");
                prop_assert_eq!(&rated.totals, &accruals);
                for line in &rated.lines {
                    let sum: BigInt = line.atoms.iter().map(|atom| minor(atom.amount)).sum();
                    prop_assert_eq!(sum, minor(line.amount));
                }
                let counted: u64 = rated.lines.iter().map(|line| line.event_count).sum();
                prop_assert_eq!(counted, samples.len() as u64);
            }
            Err(_) => prop_assert!(expected.values().any(|amount| *amount >= ten(22))),
        }
    }

    /// The observed value of a binding, kept by differences, is the sum over its keys.
    #[test]
    fn thresholds_see_the_sum_over_all_keys(samples in prop::collection::vec(any_sample(false), 1..40), limit in 1_i128..10_i128.pow(17)) {
        let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
        let mut watch = threshold("limit", "0");
        watch.value = Quantity::from_units(limit);
        definition.thresholds = vec![watch];
        let binding = compile(definition);
        let setting = Setting::new(MeterFunction::Sum, PricingModel::Volume, "1", 0, &vec![reference_tiers(); 4], false, Span::BillingPeriod);
        let (mut window, mut sum, mut fired) = (WindowState::new(), 0_i128, false);
        for (index, sample) in samples.iter().enumerate() {
            let target = Target { binding: &binding, ..setting.target(sample) };
            let outcome = window.apply(&setting.event(index, sample), target).expect("countable");
            let rating::Outcome::Counted(counted) = outcome else { panic!("there is no filter") };
            sum += sample.units;
            let crosses = sum >= limit && !fired;
            prop_assert_eq!(counted.breaches.len(), usize::from(crosses));
            if crosses {
                prop_assert_eq!(counted.breaches[0].observed_value, Quantity::from_units(sum).into());
            }
            fired |= crosses;
        }
    }

    /// TIME_WEIGHTED against a walk over the sorted list, over a price change in the middle, in any order.
    #[test]
    fn held_values_do_not_depend_on_the_order_of_reports(
        (samples, order) in prop::collection::vec(any_sample(true), 1..40).prop_flat_map(|samples| {
            let order: Vec<usize> = (0..samples.len()).collect();
            (Just(samples), Just(order).prop_shuffle())
        }),
        restart_at in 0_usize..60,
    ) {
        let tiers = vec![reference_tiers(); 4];
        let setting = Setting::new(
            MeterFunction::TimeWeighted, PricingModel::Volume, "1", 0, &tiers, false, Span::BillingPeriod,
        );
        let (mut window, mut rows) = (WindowState::new(), BTreeMap::new());
        for (step, index) in order.into_iter().enumerate() {
            if step == restart_at {
                restart(&mut window, &mut rows, &setting.catalog());
            }
            window.apply(&setting.event(index, &samples[index]), setting.target(&samples[index])).expect("countable");
        }
        // By price key and wallet, each sorted by time, each report until the next one or minute 300, by segment.
        let mut chains: BTreeMap<(usize, bool), Vec<(i64, usize)>> = BTreeMap::new();
        for (index, sample) in samples.iter().enumerate() {
            chains.entry((sample.key, sample.wallet)).or_default().push((sample.minute, index));
        }
        let mut expected: BTreeMap<(&str, bool, usize), BigInt> = BTreeMap::new();
        for ((key, wallet), mut reports) in chains {
            reports.sort_unstable();
            for (place, (minute, index)) in reports.iter().enumerate() {
                let until = reports.get(place + 1).map_or(300, |(next, _)| *next);
                let held = BigInt::from(samples[*index].units) * BigInt::from(until - minute);
                let name = ["gpt", "claude"][key];
                *expected.entry((name, wallet, segment_of(&samples[*index]))).or_default() += held;
            }
        }
        for entry in window.entries() {
            let segment = usize::from(entry.segment_start() > at(0));
            let held = &expected[&(entry.price_key().expect("keyed"), entry.wallet_currency().is_some(), segment)];
            let hours = divide(held, &BigInt::from(60), true);
            let found = entry.quantity(Some(at(300))).expect("in range").to_quantity().expect("12 digits");
            prop_assert_eq!(BigInt::from(found.units()), hours);
        }
        prop_assert_eq!(window.entries().len(), expected.len());
    }
}
