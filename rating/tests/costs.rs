//! Costs and margins of lines: the worked number of costs.md, and the same figures computed with big integers.

use std::sync::Arc;

use domain::{Currency, Money, Quantity};
use num_bigint::BigInt;
use proptest::prelude::*;
use rating::formula::{FormulaFailure, Place};
use rating::{CostRule, CostedLine, Exact, Formula, LineCost, RatingError, line_cost};
use rust_decimal::Decimal;

const EUR: Currency = Currency::EUR;

fn decimal(text: &str) -> Decimal {
    text.parse().expect("a decimal")
}

fn money(text: &str, currency: Currency) -> Money {
    Money::new(decimal(text), currency).expect("money")
}

fn line<'a>(quantity: &str, revenue: Money, external: &'a [(Quantity, Currency)]) -> CostedLine<'a> {
    CostedLine { quantity: Quantity::parse(quantity).expect("a quantity").into(), revenue, external }
}

fn cost(line: &CostedLine<'_>, rules: &[CostRule]) -> Result<LineCost, RatingError> {
    line_cost(line, rules, |_| None)
}

/// costs.md, decided rule 4.
#[test]
fn the_reference_vector() {
    let rules = [CostRule::PerUnit(decimal("0.02"), EUR), CostRule::Percentage(decimal("2.9"))];
    let found = cost(&line("5000", money("400.00", EUR), &[]), &rules).expect("in range");
    assert_eq!(found.parts, [money("100.00", EUR), money("11.60", EUR)]);
    assert_eq!((found.cost, found.margin), (money("111.60", EUR), Some(decimal("0.721"))));
}

#[test]
fn every_rule_is_rounded_once() {
    let external =
        [(Quantity::parse("0.004").expect("a quantity"), EUR), (Quantity::parse("7").expect("a quantity"), EUR)];
    for (rule, expected) in [
        (CostRule::Fixed(decimal("1.005"), EUR), "1.01"),
        (CostRule::PerUnit(decimal("0.0015"), EUR), "0.02"), // × 10 = 0.015
        (CostRule::Percentage(decimal("0.05")), "0.01"),     // of 10.00 = 0.005
        (CostRule::External, "7.00"),
    ] {
        let found = cost(&line("10", money("10.00", EUR), &external), std::slice::from_ref(&rule)).expect("in range");
        assert_eq!(found.cost, money(expected, EUR), "{rule:?}");
    }
}

/// costs.md, decided rule 2: quantity and revenue, in the currency of the cost or else of the line.
#[test]
fn formulas_read_quantity_and_revenue() {
    let usd = Currency::USD;
    let line = line("5000", money("400.00", EUR), &[]);
    for (expression, currency, expected) in [
        ("quantity * 0.02 + revenue * 0.029", None, "111.60"),
        ("if(quantity > 4999, 12.345, 1)", Some(EUR), "12.35"),
        ("max(revenue - 500, 0 - 7.005)", None, "-7.01"),
        ("clamp(quantity ^ 2 % 7, 0, 100)", Some(usd), "2.00"), // 4 dollars at 0.5
        ("quantity / 7", Some(usd), "357.15"),                  // 714.29 × 0.5 = 357.145
    ] {
        let formula = Formula::compile(expression, Place::Cost, &[]).expect(expression);
        let rules = [CostRule::Formula(Arc::new(formula), currency)];
        let found = line_cost(&line, &rules, |from| (from == usd).then(|| decimal("0.5"))).expect(expression);
        assert_eq!(found.cost, money(expected, EUR), "{expression}");
    }
    let zero = Formula::compile("revenue / (quantity - 5000)", Place::Cost, &[]).expect("compiles");
    let failed = cost(&line, &[CostRule::Formula(Arc::new(zero), None)]);
    assert_eq!(failed, Err(RatingError::Formula(FormulaFailure::DivisionByZero)));
    for (expression, message) in [
        ("price * 2", "a cost reads `quantity` and `revenue`"),
        ("list_price", "a cost reads"),
        ("dim.country", "a cost reads"),
        ("cost.amount", "a cost reads"),
        ("lookup('fees', 'x')", "`lookup` cannot be used in the formula of a cost"),
    ] {
        let errors = Formula::compile(expression, Place::Cost, &[]).expect_err(expression);
        assert!(errors[0].message.contains(message), "{expression}: {errors:?}");
    }
}

#[test]
fn a_line_without_revenue_has_no_margin_and_one_without_cost_a_whole_one() {
    let rules = [CostRule::Fixed(decimal("3"), EUR)];
    let free = cost(&line("1", money("0.00", EUR), &[]), &rules).expect("in range");
    assert_eq!((free.cost, free.margin), (money("3.00", EUR), None));
    assert_eq!(cost(&line("1", money("5.00", EUR), &[]), &[]).expect("in range").margin, Some(Decimal::ONE));
    // A credit: what came back costs nothing, and what was lost on it is below zero.
    let loss = cost(&line("1", money("2.00", EUR), &[]), &rules).expect("in range");
    assert_eq!(loss.margin, Some(decimal("-0.5")));
}

#[test]
fn another_currency_needs_the_rate_of_the_line() {
    let (jpy, kwd) = (Currency::parse("JPY").expect("yen"), Currency::parse("KWD").expect("dinar"));
    let rules = [CostRule::PerUnit(decimal("0.333"), jpy)];
    let line = line("100", money("1.000", kwd), &[]);
    assert_eq!(cost(&line, &rules), Err(RatingError::CurrencyMismatch));
    let rate = |currency| (currency == jpy).then(|| decimal("0.00205"));
    // 33.3 yen are 33 yen; × 0.00205 = 0.06765 dinar.
    assert_eq!(line_cost(&line, &rules, rate).expect("a rate").cost, money("0.068", kwd));
    let back = [CostRule::Fixed(decimal("1.2345"), kwd)];
    let yen = CostedLine { quantity: Exact::ZERO, revenue: money("1000", jpy), external: &[] };
    assert_eq!(line_cost(&yen, &back, |_| Some(decimal("487.5"))).expect("a rate").cost, money("602", jpy)); // 1.235 dinar
}

#[test]
fn what_leaves_the_range_is_an_error() {
    let rules = [CostRule::PerUnit(decimal("999999999999999"), EUR)];
    let huge = line("999999999999999", money("1.00", EUR), &[]);
    assert_eq!(cost(&huge, &rules), Err(RatingError::Overflow("the cost")));
}

fn ten(exponent: u32) -> BigInt {
    BigInt::from(10).pow(exponent)
}

/// Half away from zero.
fn divide(a: &BigInt, b: &BigInt) -> BigInt {
    let magnitude = |x: &BigInt| if *x < BigInt::ZERO { -x } else { x.clone() };
    let quotient: BigInt = (magnitude(a) * 2 + magnitude(b)) / (magnitude(b) * 2);
    if (*a < BigInt::ZERO) != (*b < BigInt::ZERO) { -quotient } else { quotient }
}

fn cents(amount: Money) -> BigInt {
    BigInt::from(amount.amount().mantissa())
}

proptest! {
    #[test]
    fn figures_agree_with_big_integers(
        units in 0_i64..i64::MAX, rate in 0_i64..1_000_000_000_000, scale in 0_u32..=12,
        percentage in 0_i64..1_000_000, revenue in -1_000_000_000_000_i64..1_000_000_000_000,
    ) {
        let revenue = Money::from_minor(i128::from(revenue), EUR).expect("in range");
        let line = CostedLine { quantity: Quantity::from_units(i128::from(units)).into(), revenue, external: &[] };
        let (amount, percent) = (Decimal::new(rate, scale), Decimal::new(percentage, 4));
        let rules = [CostRule::PerUnit(amount, EUR), CostRule::Percentage(percent)];
        let Ok(found) = cost(&line, &rules) else { return Ok(()) };
        let of_units = divide(&(BigInt::from(units) * rate), &ten(12 + scale - 2));
        let of_revenue = divide(&(cents(revenue) * percentage), &ten(6));
        prop_assert_eq!(cents(found.parts[0]), of_units.clone());
        prop_assert_eq!(cents(found.parts[1]), of_revenue.clone());
        prop_assert_eq!(cents(found.cost), of_units + of_revenue);
        match found.margin {
            None => prop_assert!(revenue.is_zero()),
            Some(margin) => {
                let exact = divide(&((cents(revenue) - cents(found.cost)) * ten(12)), &cents(revenue));
                prop_assert_eq!(BigInt::from(margin.mantissa()) * ten(12 - margin.scale()), exact);
            }
        }
    }

    #[test]
    fn costs_add_up_in_any_order(amounts in prop::collection::vec(0_i64..1_000_000_000, 0..8), quantity in 0_i64..1_000_000) {
        let quantity = Quantity::from_units(i128::from(quantity) * 1_000_000_000_000);
        let line = CostedLine { quantity: quantity.into(), revenue: money("100.00", EUR), external: &[] };
        let rules: Vec<_> = amounts.iter().map(|amount| CostRule::PerUnit(Decimal::new(*amount, 6), EUR)).collect();
        let reversed: Vec<_> = rules.iter().rev().cloned().collect();
        let (one, other) = (cost(&line, &rules), cost(&line, &reversed));
        prop_assert_eq!(one.clone().map(|c| c.cost), other.map(|c| c.cost));
        let alone = rules.iter().map(|rule| cents(cost(&line, std::slice::from_ref(rule)).expect("in range").cost)).sum::<BigInt>();
        prop_assert_eq!(cents(one.expect("in range").cost), alone);
    }
}
