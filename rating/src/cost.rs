//! Costs of goods and margins of invoice lines (costs.md, decided rule 4).
//!
//! A cost is an amount like any other: formed exactly, rounded once at its currency's exponent, half away from zero. One in
//! another currency than the line is then converted with the rate of the line and rounded there.

use std::sync::Arc;

use domain::{Currency, Money, Quantity};
use rust_decimal::Decimal;

use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::formula::{Environment, Formula, Number, Value, Variable};
use crate::rate_table::RateTable;
use domain::wide::{U256, div_half_up, power_of_ten, signed};

/// Fraction digits of a margin.
const MARGIN_SCALE: u32 = 12;

const COST: RatingError = RatingError::Overflow("the cost");

/// How a cost of a line is computed.
#[derive(Clone, Debug, PartialEq)]
pub enum CostRule {
    /// Amount per line and period.
    Fixed(Decimal, Currency),
    /// Amount per unit of the line's quantity.
    PerUnit(Decimal, Currency),
    /// Percentage of the line's revenue: `2.9` is 2.9 %.
    Percentage(Decimal),
    /// What a formula of [`crate::formula::Place::Cost`] gives: an amount in a currency, or else in that of the line. It may
    /// be negative, as that of a percentage of a credit.
    Formula(Arc<Formula>, Option<Currency>),
    /// What the rated events cost elsewhere.
    External,
}

/// The line whose cost is wanted.
#[derive(Clone, Copy, Debug)]
pub struct CostedLine<'a> {
    /// Units on the line.
    pub quantity: Exact,
    /// What the line brings.
    pub revenue: Money,
    /// Sums of `external_cost_amount` of its events, per currency.
    pub external: &'a [(Quantity, Currency)],
}

/// Cost and margin of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineCost {
    /// Contribution of each rule, in the order of the rules.
    pub parts: Vec<Money>,
    /// Their sum.
    pub cost: Money,
    /// (revenue − cost) / revenue, to 12 fraction digits, half away from zero; `None` without revenue.
    pub margin: Option<Decimal>,
}

/// Cost and margin of a line. `rate` gives the price of one unit of another currency in the line's.
///
/// # Errors
/// `CurrencyMismatch` where a rate is missing; `Formula` where one has no result; `Overflow`.
pub fn line_cost(
    line: &CostedLine<'_>,
    rules: &[CostRule],
    rate: impl Fn(Currency) -> Option<Decimal>,
) -> Result<LineCost> {
    let currency = line.revenue.currency();
    let here = |amount: Money| convert(amount, currency, &rate);
    let mut parts = Vec::with_capacity(rules.len());
    for rule in rules {
        parts.push(match rule {
            CostRule::Fixed(amount, currency) => here(Money::round(*amount, *currency).map_err(|_| COST)?)?,
            CostRule::PerUnit(amount, currency) => here(per_unit(*amount, *currency, line.quantity)?)?,
            CostRule::Percentage(percentage) => {
                product(minor(line.revenue)?, *percentage, power_of_ten(2).ok_or(COST)?, currency)?
            }
            CostRule::Formula(formula, of) => here(rounded(&formula.evaluate(line)?, of.unwrap_or(currency))?)?,
            CostRule::External => {
                let amounts =
                    line.external.iter().map(|(sum, currency)| here(per_unit(Decimal::ONE, *currency, (*sum).into())?));
                sum(currency, amounts)?
            }
        });
    }
    let cost = sum(currency, parts.iter().copied().map(Ok))?;
    Ok(LineCost { margin: margin(line.revenue, cost)?, parts, cost })
}

/// What formulas of costs read (costs.md, decided rule 2).
impl Environment for CostedLine<'_> {
    fn variable(&self, variable: &Variable) -> Option<Value<'_>> {
        match variable.name.as_str() {
            "quantity" => Some(Number::from(self.quantity).into()),
            "revenue" => Some(Number::from(self.revenue.amount()).into()),
            _ => None,
        }
    }

    fn table(&self, _: &str) -> Option<&RateTable> {
        None
    }
}

/// A result as an amount, half away from zero.
fn rounded(result: &Number, currency: Currency) -> Result<Money> {
    let minor = result.rounded(currency.exponent())?.to_units(currency.exponent()).ok_or(COST)?;
    Money::from_minor(minor, currency).map_err(|_| COST)
}

fn sum(currency: Currency, amounts: impl Iterator<Item = Result<Money>>) -> Result<Money> {
    let mut total = Money::zero(currency);
    for amount in amounts {
        total = total.add(amount?).map_err(|_| COST)?;
    }
    Ok(total)
}

/// Amount × quantity.
fn per_unit(amount: Decimal, currency: Currency, quantity: Exact) -> Result<Money> {
    let (units, scale) = quantity.parts();
    let divisor = power_of_ten(scale - currency.exponent()).ok_or(COST)?; // a quantity has 12 digits at least
    product(units, amount, divisor, currency)
}

/// An amount in the currency of the line.
fn convert(amount: Money, to: Currency, rate: impl Fn(Currency) -> Option<Decimal>) -> Result<Money> {
    if amount.currency() == to {
        return Ok(amount);
    }
    let rate = rate(amount.currency()).ok_or(RatingError::CurrencyMismatch)?;
    let (from_exponent, to_exponent) = (amount.currency().exponent(), to.exponent());
    let widen =
        i128::try_from(power_of_ten(to_exponent.saturating_sub(from_exponent)).ok_or(COST)?).map_err(|_| COST)?;
    let units = minor(amount)?.checked_mul(widen).ok_or(COST)?;
    product(units, rate, power_of_ten(from_exponent.saturating_sub(to_exponent)).ok_or(COST)?, to)
}

/// `units × factor / divisor`, in minor units, rounded half away from zero.
fn product(units: i128, factor: Decimal, divisor: u128, currency: Currency) -> Result<Money> {
    let factor = factor.normalize();
    let divisor = power_of_ten(factor.scale()).and_then(|scale| scale.checked_mul(divisor)).ok_or(COST)?;
    let exact = U256::product(units.unsigned_abs(), factor.mantissa().unsigned_abs());
    let negative = (units < 0) != factor.is_sign_negative();
    let minor = div_half_up(exact, divisor).and_then(|minor| signed(minor, negative)).ok_or(COST)?;
    Money::from_minor(minor, currency).map_err(|_| COST)
}

/// An amount in minor units.
fn minor(amount: Money) -> Result<i128> {
    let (value, exponent) = (amount.amount(), amount.currency().exponent());
    let widen = i128::try_from(power_of_ten(exponent.checked_sub(value.scale()).ok_or(COST)?).ok_or(COST)?);
    value.mantissa().checked_mul(widen.map_err(|_| COST)?).ok_or(COST)
}

fn margin(revenue: Money, cost: Money) -> Result<Option<Decimal>> {
    if revenue.is_zero() {
        return Ok(None);
    }
    let (rest, whole) = (minor(revenue)? - minor(cost)?, minor(revenue)?);
    let exact = U256::product(rest.unsigned_abs(), power_of_ten(MARGIN_SCALE).ok_or(COST)?);
    let units = div_half_up(exact, whole.unsigned_abs()).and_then(|units| signed(units, (rest < 0) != (whole < 0)));
    let margin = Decimal::try_from_i128_with_scale(units.ok_or(COST)?, MARGIN_SCALE).map_err(|_| COST)?;
    Ok(Some(margin.normalize()))
}
