//! Every worked number of the reference pages that rating answers for. A wrong one is a wrong bill.

mod common;

use common::*;
use domain::{Currency, MeterFunction, PricingModel, ProductId, Quantity, UsageEvent};
use rating::allowance::{Allowance, AllowancePart, included_quantity, prorated};
use rating::{CompiledBinding, FilterTree, Outcome, RatingInput, Terms, WindowState, total, walk};
use serde_json::json;
use std::sync::Arc;

/// pricing-models.md, "Further vectors for the same tiers".
#[test]
fn volume_and_staircase() {
    let volume = price(PricingModel::Volume, reference_tiers());
    let staircase = price(PricingModel::Staircase, reference_tiers());
    for (units, of_volume, of_staircase) in [
        ("0", "0.00", "0.00"),
        ("1", "0.10", "0.10"),
        ("1000", "100.00", "100.00"),
        ("1000.5", "80.04", "100.04"),
        ("1001", "80.08", "100.08"),
        ("5000", "400.00", "420.00"),
        ("10000", "800.00", "820.00"),
        ("10001", "500.05", "820.05"),
        ("15000", "750.00", "1070.00"),
        ("25000", "1250.00", "1570.00"),
    ] {
        for (price, expected) in [(&volume, of_volume), (&staircase, of_staircase)] {
            let walk = walk(price, quantity(units)).expect("walks");
            assert_eq!(walk.total.amount().to_string(), expected, "{units}");
            assert_eq!(total(price, quantity(units)), Ok(walk.total), "{units}");
        }
    }
    let walked = walk(&staircase, quantity("5000")).expect("walks");
    let atoms: Vec<_> =
        walked.tiers.iter().map(|t| (t.tier_order, t.quantity.to_string(), t.amount.to_string())).collect();
    assert_eq!(atoms, [(1, "1000".into(), "100.00 EUR".into()), (2, "4000".into(), "320.00 EUR".into())]);
}

/// pricing-models.md, PACKAGE computation.
#[test]
fn package() {
    let price = price(PricingModel::Package, tiers(&[("", "1000", "5.00")]));
    for (units, expected) in [("0", "0.00"), ("1", "5.00"), ("1000", "5.00"), ("1001", "10.00"), ("2500", "15.00")] {
        assert_eq!(total(&price, quantity(units)).expect("in range").amount().to_string(), expected, "{units}");
    }
}

/// pricing-models.md, decided rules: flat fee per tier that takes something, sub-cent rates, scale of the currency.
#[test]
fn fees_rates_and_scales() {
    let staircase = price(PricingModel::Staircase, tiers(&[("10", "0", "2.00"), ("", "0", "3.00")]));
    let volume = price(PricingModel::Volume, tiers(&[("10", "0", "2.00"), ("", "0", "3.00")]));
    for (units, of_staircase, of_volume) in [("0", "0.00", "0.00"), ("10", "2.00", "2.00"), ("10.1", "5.00", "3.00")] {
        assert_eq!(total(&staircase, quantity(units)).expect("in range").amount().to_string(), of_staircase);
        assert_eq!(total(&volume, quantity(units)).expect("in range").amount().to_string(), of_volume);
    }
    for (currency, units, expected) in [
        ("EUR", "49", "0.00"),
        ("EUR", "50", "0.01"),
        ("JPY", "4999", "0"),
        ("JPY", "5000", "1"),
        ("KWD", "5", "0.001"),
    ] {
        let mut definition = price_definition(PricingModel::Volume, tiers(&[("", "0.0001", "0")]));
        definition.currency = Currency::parse(currency).expect("known");
        let price = rating::CompiledPrice::compile(definition).expect("a good price");
        assert_eq!(
            total(&price, quantity(units)).expect("in range").amount().to_string(),
            expected,
            "{units} {currency}"
        );
    }
    assert!(total(&volume, quantity("-1")).is_err());
}

/// usage.md 5: CORRECT bills price(1,500) - price(1,000) = 40.00.
#[test]
fn difference_of_a_correction() {
    let price = price(PricingModel::Staircase, reference_tiers());
    let of = |units| total(&price, quantity(units)).expect("in range");
    assert_eq!(of("1500").sub(of("1000")).expect("one currency").amount().to_string(), "40.00");
}

fn quantity_of(binding: &Arc<CompiledBinding>, events: &[UsageEvent]) -> String {
    let price = price(PricingModel::Volume, reference_tiers());
    let mut window = WindowState::new();
    for event in events {
        window.apply(event, target(binding, &price)).expect("countable");
    }
    window.entries().first().map_or("0".into(), |entry| entry.quantity(None).expect("in range").to_string())
}

/// meters.md 5, vectors for the functions; the duplicate of 09:30 was sorted out before.
#[test]
fn meter_functions() {
    let events = [(480, "5", "a"), (540, "2", "b"), (600, "7", "a")]
        .map(|(minute, units, user)| with_dimension(event(minute, units), "user", user));
    for (function, expected) in [
        (MeterFunction::Count, "3"),
        (MeterFunction::Sum, "14"),
        (MeterFunction::Max, "7"),
        (MeterFunction::Min, "2"),
        (MeterFunction::Avg, "4.666666666667"),
        (MeterFunction::Last, "7"),
        (MeterFunction::UniqueCount, "2"),
    ] {
        let mut reversed = events.clone();
        reversed.reverse();
        assert_eq!(quantity_of(&binding(function), &events), expected, "{function}");
        assert_eq!(quantity_of(&binding(function), &reversed), expected, "{function} in reverse");
    }
    let tree = json!({"root": {"field": "dimension_vars.user", "operator": "EQ", "value": "a"}});
    let mut meter = meter_definition(MeterFunction::Count);
    meter.filter = Some(FilterTree::from_json(&tree).expect("a good filter"));
    assert_eq!(quantity_of(&compile(binding_definition(meter)), &events), "2");
}

/// meter-bindings.md 5, rule 6.
#[test]
fn bytes_become_gigabytes() {
    let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
    definition.multiplier = decimal("0.000000001");
    let events = [event(1, "1500000000"), event(2, "500000000")];
    assert_eq!(quantity_of(&compile(definition), &events), "2");
}

fn charged(
    tiers_on_total: bool,
    allowance: &str,
    model_tiers: Vec<rating::Tier>,
    used: &str,
) -> (String, String, String) {
    let (binding, price) = (binding(MeterFunction::Sum), price(PricingModel::Staircase, model_tiers));
    let mut window = WindowState::new();
    window.apply(&event(1, used), target(&binding, &price)).expect("countable");
    let terms = [Terms { tiers_on_total, ..Terms::new(ProductId(id(10)), "calls", quantity(allowance)) }];
    let input = RatingInput { terms: &terms, until: None, period: rating::PeriodFacts::default() };
    let rated = window.rate(&input).expect("rates");
    let line = &rated.lines[0];
    assert_eq!(window.accrue(&input).expect("rates")[0].amount, line.amount);
    (line.included_quantity.to_string(), line.billable_quantity.to_string(), line.amount.amount().to_string())
}

/// allowances.md 5.2, vectors 1, 2, 5 and 8, and rule 2 with `tiers_on_total`.
#[test]
fn allowances() {
    let flat = || tiers(&[("", "0.02", "0")]);
    let text = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(charged(false, "1000", flat(), "800"), text("800", "0", "0.00"));
    assert_eq!(charged(false, "1000", flat(), "1250"), text("1000", "250", "5.00"));
    assert_eq!(charged(false, "1000", reference_tiers(), "2500"), text("1000", "1500", "140.00"));
    assert_eq!(charged(true, "1000", reference_tiers(), "2500"), text("1000", "1500", "120.00"));
    assert_eq!(charged(true, "1000", reference_tiers(), "800"), text("800", "0", "0.00"));

    let day = 86_400;
    let parts = [
        AllowancePart { quantity: quantity("1000"), seconds: 15 * day },
        AllowancePart { quantity: quantity("3000"), seconds: 15 * day },
    ];
    let total = prorated(&parts, 30 * day).expect("in range");
    assert_eq!(total, quantity("2000"));
    assert_eq!(charged(false, &total.to_string(), flat(), "1900"), text("1900", "0", "0.00"));
    let stub = [AllowancePart { quantity: quantity("1000"), seconds: 12 * day }];
    assert_eq!(prorated(&stub, 31 * day).expect("in range"), quantity("387.096774"));
    let tie = [AllowancePart { quantity: quantity("0.000001"), seconds: 1 }];
    assert_eq!(prorated(&tie, 2), Ok(Quantity::ZERO)); // half to even
    assert_eq!(prorated(&tie, 0), Ok(Quantity::ZERO));
}

/// allowances.md 5.1 rule 1 and `included_quantity_per_unit`.
#[test]
fn allowance_sources() {
    let allowance = Allowance { rolled_over: quantity("200"), included: quantity("1000"), granted: quantity("50") };
    for (used, expected) in [
        ("150", ["1250", "1100", "0", "150", "0", "0"]),
        ("1210", ["1250", "40", "0", "200", "1000", "10"]),
        ("1300", ["1250", "0", "50", "200", "1000", "50"]),
        ("-3", ["1250", "1250", "0", "0", "0", "0"]),
    ] {
        let drawn = allowance.draw(quantity(used).into()).expect("in range");
        let found = [drawn.remaining, drawn.overage, drawn.from_rolled_over, drawn.from_included, drawn.from_granted];
        assert_eq!(drawn.total.to_string(), expected[0]);
        assert_eq!(found.map(|q| q.to_string()), expected[1..], "{used}");
    }
    assert_eq!(included_quantity(quantity("100"), false, quantity("5")), Ok(quantity("100")));
    assert_eq!(included_quantity(quantity("100"), true, quantity("5")), Ok(quantity("500")));
    assert_eq!(included_quantity(quantity("0.5"), true, quantity("2.5")), Ok(quantity("1.25")));
}

/// thresholds-and-alerts.md 4, vectors 1, 2 and 3; rule C3: evaluated after each event, not after the batch.
#[test]
fn c3_thresholds_are_evaluated_after_each_event() {
    let price = price(PricingModel::Volume, reference_tiers());
    let watch = |limits: &[&str]| {
        let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
        definition.thresholds = limits.iter().map(|limit| threshold(limit, limit)).collect();
        compile(definition)
    };
    let breaches = |binding: &Arc<CompiledBinding>, units: &[&str]| {
        let mut window = WindowState::new();
        let mut found = Vec::new();
        for (number, units) in units.iter().enumerate() {
            match window.apply(&event(number as u128, units), target(binding, &price)).expect("countable") {
                Outcome::Counted(counted) => {
                    found.extend(
                        counted.breaches.into_iter().map(|b| format!("{}@{}", b.threshold_name, b.observed_value)),
                    );
                }
                Outcome::Filtered => panic!("there is no filter"),
            }
        }
        found
    };
    assert_eq!(breaches(&watch(&["80", "100"]), &["50", "35", "20"]), ["80@85", "100@105"]);
    assert_eq!(breaches(&watch(&["100", "80"]), &["120"]), ["80@120", "100@120"]);
    assert_eq!(breaches(&watch(&["80"]), &["85", "10"]), ["80@85"]);
    assert_eq!(breaches(&watch(&["80"]), &["85"]), ["80@85"]);
}
