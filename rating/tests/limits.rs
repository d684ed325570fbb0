//! Thresholds and limits: what is told twice, or not, or refused without need, costs trust and money.

mod common;

use common::*;
use domain::error::FieldErrorCode;
use domain::period::Period;
use domain::{
    BlockCode, Currency, MeterFunction, Money, PricingModel, ProductId, Quantity, ThresholdActionKind, ThresholdBasis,
    ThresholdComparator, UsageCapAction, UsageEvent,
};
use proptest::prelude::*;
use rating::limit::{CapLimit, Limit, Limits, NewlyReached, UsageCap};
use rating::threshold::ThresholdAction;
use rating::{Outcome, PriceDefinition, RatingInput, Span, Target, Terms, Threshold, WindowRecord, WindowState};

const UTC: chrono_tz::Tz = chrono_tz::Tz::UTC;

fn product() -> ProductId {
    ProductId(id(10))
}

fn cap(limit: &str, action: UsageCapAction) -> UsageCap {
    let limit = match limit.strip_suffix(" EUR") {
        Some(amount) => CapLimit::Amount(Money::new(decimal(amount), Currency::EUR).expect("cents")),
        None => CapLimit::Quantity(quantity(limit)),
    };
    UsageCap { product_id: product(), metric_key: "calls".into(), limit, action }
}

fn terms(allowance: &str) -> [Terms; 1] {
    [Terms::new(product(), "calls", quantity(allowance))]
}

/// A window of a SUM meter at 0.10 per unit.
struct Counter {
    binding: std::sync::Arc<rating::CompiledBinding>,
    price: std::sync::Arc<rating::CompiledPrice>,
    window: WindowState,
}

impl Counter {
    fn new() -> Self {
        Self::of(Span::BillingPeriod, Vec::new())
    }

    fn of(span: Span, thresholds: Vec<Threshold>) -> Self {
        let mut meter = meter_definition(MeterFunction::Sum);
        (meter.negative_allowed, meter.window, meter.thresholds) = (true, span, thresholds);
        let price = price(PricingModel::Staircase, tiers(&[("", "0.10", "0")]));
        Self { binding: compile(binding_definition(meter)), price, window: WindowState::new() }
    }

    fn count(&mut self, units: &str) -> Vec<rating::Breach> {
        self.count_at(1, units, None)
    }

    fn count_at(&mut self, minute: i64, units: &str, allowance: Option<&str>) -> Vec<rating::Breach> {
        let target = Target { allowance: allowance.map(quantity), ..target(&self.binding, &self.price) };
        let mut event = event(1, units);
        event.timestamp = at(minute);
        match self.window.apply(&event, target).expect("countable") {
            Outcome::Counted(counted) => counted.breaches,
            Outcome::Filtered => panic!("there is no filter"),
        }
    }

    fn review(&mut self, allowance: &str, caps: &[UsageCap], ending: &[ProductId]) -> Vec<NewlyReached> {
        let terms = terms(allowance);
        let input = RatingInput { terms: &terms, ..RatingInput::default() };
        self.window.review(&input, &Limits { caps, ending }, true).expect("in range")
    }

    fn told(&mut self, allowance: &str, caps: &[UsageCap]) -> Vec<String> {
        let shown = |one: NewlyReached| match one.limit {
            Limit::AllowancePercent(percent) => format!("{percent}%@{}", one.pool.quantity),
            Limit::AllowanceExhausted => format!("exhausted@{}", one.pool.quantity),
            Limit::AllowanceEnd => "end".into(),
            Limit::Cap(..) => {
                let breach = one.breach(month()).expect("in range").expect("of a cap");
                format!(
                    "{} {}@{} {}",
                    breach.threshold_name, breach.threshold_value, breach.observed_value, breach.action.kind
                )
            }
        };
        self.review(allowance, caps, &[]).into_iter().map(shown).collect()
    }

    fn codes(&self) -> Vec<BlockCode> {
        self.window.blocks(month(), UTC).into_iter().map(|block| block.code).collect()
    }

    /// As the next owner of the partition finds it.
    fn reload(&mut self) {
        let (bindings, prices) = (vec![self.binding.clone()], vec![self.price.clone()]);
        let catalog = Catalog { bindings, prices, ..Catalog::default() };
        let rows = self.window.take_changed_rows();
        let record = WindowRecord::decode(&self.window.encode()).expect("decodes");
        self.window = record.attach(&catalog, rows).expect("attaches");
    }
}

/// All comparators on both bases: what is compared, before and after, and whether it fires (thresholds-and-alerts.md 4). With
/// an allowance of 50, so many percent are half as many units.
#[test]
fn every_comparator_fires_when_its_limit_is_crossed() {
    use ThresholdComparator::{Eq, Gt, Gte, Lt, Lte};
    for (comparator, first, second, fires) in [
        (Gt, "99", "1", [false, false]),
        (Gt, "99", "1.000000000001", [false, true]),
        (Gt, "101", "-5", [true, false]),
        (Gte, "99", "1", [false, true]),
        (Gte, "100", "0", [true, false]),
        (Lt, "101", "-1", [false, false]),
        (Lt, "101", "-1.000000000001", [false, true]),
        (Lte, "101", "-1", [false, true]),
        (Lte, "101", "-0.999999999999", [false, false]),
        (Eq, "99", "1", [false, true]),
        (Eq, "99", "2", [false, false]),
        (Eq, "100", "0", [true, false]),
    ] {
        for basis in [ThresholdBasis::Absolute, ThresholdBasis::AllowancePercent] {
            let (limit, scale) = match basis {
                ThresholdBasis::Absolute => ("100", "100"),
                ThresholdBasis::AllowancePercent => ("200", "50"),
            };
            let threshold = Threshold { comparator, basis, value: quantity(limit), ..threshold("t", limit) };
            let mut counter = Counter::of(Span::BillingPeriod, vec![threshold]);
            let found = [first, second].map(|units| !counter.count_at(1, units, Some(scale)).is_empty());
            assert_eq!(found, fires, "{comparator} {basis}: {first}, {second}");
        }
    }
}

/// thresholds-and-alerts.md 4: a mail goes to an address.
#[test]
fn targets_of_mails_are_addresses() {
    let read = |kind: &str, target: &str| {
        let body = serde_json::json!({"thresholds": [{"name": "t", "value": "1", "actions": [{"kind": kind, "target": target}]}]});
        let mut input = domain::Input::new(&body).expect("an object");
        let read = input.optional("thresholds", Threshold::read_list);
        input.finish().map(|()| read.expect("read")[0].actions[0].target.clone())
    };
    assert_eq!(read("NOTIFY", "ops@acme.example").expect("good"), Some("ops@acme.example".into()));
    assert_eq!(read("NOTIFY", "").expect("good"), None);
    assert_eq!(read("WEBHOOK", "nobody").expect("good"), Some("nobody".into()));
    match read("NOTIFY", "nobody").expect_err("no address") {
        domain::Error::Validation(fields) => {
            let found = (fields[0].field.as_str(), fields[0].code);
            assert_eq!(found, ("thresholds[0].actions[0].target", FieldErrorCode::InvalidFormat));
        }
        other => panic!("{other}"),
    }
}

/// Of a reservation the part up to the limit is free, what goes past it is refused (vector 4).
#[test]
fn a_block_refuses_what_goes_past_it() {
    let block = |comparator| Threshold {
        comparator,
        actions: vec![ThresholdAction { kind: ThresholdActionKind::Block, target: None, event_type: None }],
        ..threshold("cap", "100")
    };
    for (comparator, units, refuses) in [
        (ThresholdComparator::Gte, "100", false),
        (ThresholdComparator::Gte, "100.000000000001", true),
        (ThresholdComparator::Gt, "100.000000000001", true),
        (ThresholdComparator::Eq, "100", true),
    ] {
        let mut counter = Counter::of(Span::BillingPeriod, vec![block(comparator)]);
        assert_eq!(counter.count(units)[0].refuses(), refuses, "{comparator} {units}");
        assert_eq!(counter.codes(), [BlockCode::UsageCapReached], "afterwards all is refused");
    }
    let day = Span::Tumbling { size: chrono::TimeDelta::minutes(60) };
    let mut counter = Counter::of(day, vec![block(ThresholdComparator::Gte)]);
    counter.count_at(61, "100", None);
    counter.count_at(1, "99", None);
    counter.reload();
    let blocks = counter.window.blocks(month(), UTC);
    assert_eq!(blocks.len(), 1);
    let span = Period { start: blocks[0].starts_at, end: blocks[0].ends_at };
    assert_eq!(span.seconds(), 3_600);
    let of = |metric: &str, minute| UsageEvent { timestamp: at(minute), metric_key: metric.into(), ..event(1, "1") };
    assert!(blocks[0].refuses(&of("calls", 61)) && !blocks[0].refuses(&of("calls", 59)));
    assert!(!blocks[0].refuses(&of("other", 61)));
}

/// allowances.md 5.1 rule 11: at 80 and 100 percent and when nothing is left, each once, whatever is taken back.
#[test]
fn allowances_are_told_once_per_window() {
    let mut counter = Counter::new();
    for (units, expected) in [
        ("79.999999999999", vec![]),
        ("0.000000000001", vec!["80%@80"]),
        ("-10", vec![]),
        ("40", vec!["100%@110", "exhausted@110"]),
        ("-50", vec![]),
        ("60", vec![]),
    ] {
        counter.count(units);
        assert_eq!(counter.told("100", &[]), expected, "{units}");
        counter.reload();
    }
    assert!(counter.codes().is_empty());
    let mut jump = Counter::new();
    jump.count("100");
    assert_eq!(jump.told("100", &[]), ["80%@100", "100%@100", "exhausted@100"]);
    let mut none = Counter::new();
    none.count("100");
    assert_eq!(none.told("0", &[]), [""; 0]);
    assert!(!none.window.has_reached_limits());
}

#[test]
fn caps_hold_as_long_as_they_are_reached() {
    use UsageCapAction::{Block, Notify};
    let mut counter = Counter::new();
    let caps = [cap("9.00 EUR", Block), cap("100", Block), cap("50", Notify)];
    counter.count("89");
    assert_eq!(counter.told("0", &caps), ["usage_cap 50@89 NOTIFY"]);
    counter.count("12");
    assert_eq!(counter.told("0", &caps), ["usage_cap 100@101 BLOCK", "usage_cap_amount 9@10.1 BLOCK"]);
    assert_eq!(counter.told("0", &caps), [""; 0]);
    counter.reload();
    assert_eq!(counter.codes(), [BlockCode::UsageCapReached]);
    assert_eq!(counter.told("0", &caps), [""; 0]);
    // One of two is raised: the other holds. Both: neither.
    assert_eq!(counter.told("0", &[cap("9.00 EUR", Block), cap("102", Block)]), [""; 0]);
    assert_eq!(counter.codes(), [BlockCode::UsageCapReached]);
    assert_eq!(counter.told("0", &[cap("20.00 EUR", Block), cap("102", Block)]), [""; 0]);
    assert!(!counter.window.is_blocking() && counter.codes().is_empty());
    // The allowance costs nothing: an amount is what is charged.
    assert_eq!(counter.told("100", &[cap("0.11 EUR", Block)]).len(), 3, "only what is told of the allowance");
    counter.count("1");
    assert_eq!(counter.told("100", &[cap("0.11 EUR", Block)]), ["usage_cap_amount 0.11@0.2 BLOCK"]);
    // In a trial nothing is charged.
    let mut trial = Counter::new();
    trial.count("100");
    let caps = [cap("1.00 EUR", Block)];
    let found = trial.window.review(&RatingInput::default(), &Limits { caps: &caps, ending: &[] }, false);
    assert!(found.expect("in range").is_empty());
}

#[test]
fn an_allowance_may_end_usage() {
    let mut counter = Counter::new();
    counter.count("99");
    let _ = counter.review("100", &[], &[product()]);
    assert!(counter.codes().is_empty());
    counter.count("1");
    let told = counter.review("100", &[], &[product()]);
    assert!(told.iter().all(|one| one.limit != Limit::AllowanceEnd), "it is told as exhausted");
    counter.reload();
    assert_eq!(counter.codes(), [BlockCode::AllowanceExhausted]);
    counter.count("-1");
    let _ = counter.review("100", &[], &[product()]);
    assert!(counter.codes().is_empty());
    let _ = counter.review("0", &[], &[product()]);
    assert_eq!(counter.codes(), [BlockCode::AllowanceExhausted], "nothing is included");
    let _ = counter.review("0", &[], &[]);
    assert!(counter.codes().is_empty(), "the plan sells more now");
}

/// `pool_scope` ITEM: the price key of the counter has an allowance of its own, or shares what no other key has.
#[test]
fn own_allowances_end_usage_of_their_price_keys() {
    let of = |key: Option<&str>| UsageEvent { price_key: key.map(str::to_owned), timestamp: at(1), ..event(1, "1") };
    for (own, refused) in [(Some("anna"), [true, false, false]), (None, [true, false, true])] {
        let mut counter = Counter::new();
        let price = PriceDefinition {
            price_key: own.map(str::to_owned),
            ..price_definition(PricingModel::Staircase, tiers(&[("", "0.10", "0")]))
        };
        counter.price = std::sync::Arc::new(rating::CompiledPrice::compile(price).expect("a good price"));
        let mut terms = terms("10");
        terms[0].of_price_keys = vec![("ben".into(), quantity("5"))];
        if own.is_some() {
            terms[0].of_price_keys.push(("anna".into(), quantity("100")));
        }
        let review = |counter: &mut Counter| {
            let input = RatingInput { terms: &terms, ..RatingInput::default() };
            let ending = [product()];
            counter.window.review(&input, &Limits { caps: &[], ending: &ending }, true).expect("in range");
            counter.window.blocks(month(), UTC)
        };
        counter.count(if own.is_some() { "99" } else { "9" });
        assert_eq!(review(&mut counter), []);
        counter.count("1");
        let blocks = review(&mut counter);
        counter.reload();
        assert_eq!(counter.window.blocks(month(), UTC), blocks);
        let is_refused = |key| blocks.iter().any(|block| block.refuses(&of(key)));
        let found = [is_refused(own), is_refused(Some("ben")), is_refused(Some("carl"))];
        assert_eq!(found, refused, "{own:?}");
        counter.count("-1");
        assert_eq!(review(&mut counter), []);
    }
}

/// A window that is counted anew without an event knows what it has told, and forgets what re-arms.
#[test]
fn a_window_that_is_counted_anew_remembers() {
    let block = |name: &str, rearm| Threshold {
        rearm,
        actions: vec![ThresholdAction { kind: ThresholdActionKind::Block, target: None, event_type: None }],
        ..threshold(name, "100")
    };
    let start = || Counter::of(Span::BillingPeriod, vec![block("once", false), block("again", true)]);
    let mut old = start();
    assert_eq!(old.count("120").len(), 2);
    let caps = [cap("110", UsageCapAction::Block)];
    assert_eq!(old.told("100", &caps).len(), 4);
    let mut new = start();
    new.count("20");
    new.window.remember(&old.window);
    assert_eq!(new.told("100", &caps), [""; 0]);
    let fired: Vec<_> = new.window.fired().map(|(_, fired)| fired.name.clone()).collect();
    assert_eq!((fired, new.codes().len()), (vec!["once".to_owned()], 1));
    let breaches: Vec<_> = new.count("90").into_iter().map(|breach| breach.threshold_name).collect();
    assert_eq!(breaches, ["again"]);
    assert_eq!(new.told("100", &caps), ["usage_cap 110@110 BLOCK"]);
}

proptest! {
    /// However often it is looked, and whoever looks: every limit that is passed is told once, and none that is not.
    #[test]
    fn what_is_told_does_not_depend_on_when_it_is_looked(
        steps in prop::collection::vec((0_u32..40, any::<bool>(), any::<bool>()), 1..12),
        limits in prop::collection::vec((1_u32..200, any::<bool>()), 0..5), allowance in 0_u32..200,
    ) {
        let mut caps: Vec<UsageCap> = Vec::new();
        for (limit, blocks) in limits {
            let action = if blocks { UsageCapAction::Block } else { UsageCapAction::Notify };
            let one = cap(&limit.to_string(), action);
            if !caps.contains(&one) {
                caps.push(one);
            }
        }
        let (mut counter, mut total, mut told) = (Counter::new(), 0, Vec::new());
        let last = steps.len() - 1;
        for (index, (units, looks, reloads)) in steps.into_iter().enumerate() {
            counter.count(&units.to_string());
            total += units;
            if looks || index == last {
                told.extend(counter.review(&allowance.to_string(), &caps, &[]).into_iter().map(|one| one.limit));
            }
            if reloads {
                counter.reload();
            }
        }
        let mut expected = Vec::new();
        if allowance > 0 {
            let alerts = [Limit::AllowancePercent(80), Limit::AllowancePercent(100), Limit::AllowanceExhausted];
            let reached = [total * 100 >= allowance * 80, total >= allowance, total >= allowance];
            expected.extend(alerts.into_iter().zip(reached).filter(|(_, is)| *is).map(|(limit, _)| limit));
        }
        let is_reached = |cap: &&UsageCap| matches!(cap.limit, CapLimit::Quantity(limit) if Quantity::from_int(total.into()) >= limit);
        expected.extend(caps.iter().filter(is_reached).map(|cap| Limit::Cap(cap.limit, cap.action)));
        let blocks = expected.iter().any(|limit| limit.blocks().is_some());
        prop_assert_eq!(counter.window.is_blocking(), blocks);
        prop_assert_eq!(told.len(), expected.len());
        prop_assert!(expected.iter().all(|limit| told.contains(limit)), "{:?} {:?}", told, expected);
    }
}
