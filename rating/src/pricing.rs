//! Prices: how a quantity becomes an amount (pricing-models.md).
//!
//! Each tier's contribution is rounded half away from zero at the currency's exponent and the total is the sum of the
//! rounded contributions, so that a breakdown always adds up. Products are exact: what leaves 128 bits is computed in
//! 256, what leaves the range of money is an error.

use domain::error::FieldErrorCode as Code;
use domain::{Currency, FieldError, Money, PriceId, PricingModel, ProductId, Quantity, UsageEvent, VersionId};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::entry::Variables;
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::expression::{Basis, RateTables, Reads, Scope, TierFacts};
use crate::formula::{Formula, FormulaError, FormulaVariable, Number, Place};
use domain::wide::{U256, div_half_up, power_of_ten};

/// Tiers of one price.
pub const TIERS_MAX: usize = 100;

/// One step of a price. Under PACKAGE `unit_amount` is the size of a package and `flat_amount` its price.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// Position in the walk, ascending.
    pub tier_order: u32,
    /// Inclusive upper bound; `None` on the last tier only: open-ended.
    pub up_to: Option<Quantity>,
    /// Rate of a unit.
    pub unit_amount: Decimal,
    /// Static fee.
    pub flat_amount: Decimal,
    /// Takes the place of the rate: of `unit_amount`, under PACKAGE of the price of a package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_expression: Option<String>,
}

/// A stored formula that gives the amount of the whole billable quantity, instead of a walk of the tiers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PriceFormula {
    /// Version of the formula, pinned by the price version.
    pub version_id: VersionId,
    /// The expression.
    pub expression: String,
    /// Its declared variables.
    pub variables: Vec<FormulaVariable>,
}

/// A version of a price as the catalog stores it, with the product's pricing model.
#[derive(Clone, Debug, PartialEq)]
pub struct PriceDefinition {
    /// The price.
    pub price_id: PriceId,
    /// This version of it.
    pub version_id: VersionId,
    /// What is priced.
    pub product_id: ProductId,
    /// Sibling of a keyed product.
    pub price_key: Option<String>,
    /// Sets the scale that amounts are rounded to.
    pub currency: Currency,
    /// How the tiers are walked.
    pub model: PricingModel,
    /// The steps, ascending.
    pub tiers: Vec<Tier>,
    /// Headline price, for expressions that read it.
    pub list_price: Option<Decimal>,
    /// Gives the amount instead of the tiers.
    pub formula: Option<PriceFormula>,
}

/// A price version that is ready to be walked.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledPrice {
    definition: PriceDefinition,
    steps: Vec<Step>,
    /// Of the tiers, side by side with `steps`; empty when none has one.
    rates: Vec<Option<Formula>>,
    /// Of the whole amount.
    amount: Option<Formula>,
    reads: Reads,
    /// Decimal places of the currency.
    exponent: u32,
    /// Scale of all rates and fees in `steps`; at least `exponent`, at most 12.
    scale: u32,
}

/// A tier in whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// Lower bound, exclusive.
    from: Quantity,
    /// Upper bound, inclusive; the largest number there is on the last tier.
    up_to: Quantity,
    rate: u128,
    flat: u128,
    /// STAIRCASE: rounded contributions of all tiers before this one, in minor units; `None` beyond the range.
    before: Option<u128>,
}

const AMOUNT: RatingError = RatingError::Overflow("the amount");

impl std::ops::Deref for CompiledPrice {
    type Target = PriceDefinition;
    fn deref(&self) -> &PriceDefinition {
        &self.definition
    }
}

/// The part of a quantity that one tier took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TierContribution {
    /// Position of the tier.
    pub tier_order: u32,
    /// Lower bound of the tier, exclusive.
    pub from: Quantity,
    /// Upper bound of the tier, inclusive; `None` when it is open-ended.
    pub to: Option<Quantity>,
    /// Units that it took.
    pub quantity: Exact,
    /// As in the tier.
    pub unit_amount: Decimal,
    /// As in the tier.
    pub flat_amount: Decimal,
    /// Rounded contribution.
    pub amount: Money,
}

/// A quantity taken through the tiers of a price.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Walk {
    /// What was walked.
    pub quantity: Exact,
    /// The tiers that took more than nothing.
    pub tiers: Vec<TierContribution>,
    /// Sum of their amounts.
    pub total: Money,
}

impl CompiledPrice {
    /// Checks and compiles a definition.
    ///
    /// # Errors
    /// `Definition` with every tier field that breaks a rule: ascending, last one open, nothing negative, at most 15
    /// integer and 12 fraction digits, a package size above 0.
    pub fn compile(definition: PriceDefinition) -> Result<Self> {
        let mut errors = check_tiers(definition.model, &definition.tiers);
        let rates = compile_rates(&definition.tiers, &mut errors);
        let amount = definition.formula.as_ref().and_then(|formula| compile_amount(formula, &mut errors));
        if !errors.is_empty() {
            return Err(RatingError::Definition(errors));
        }
        let reads = Reads::of(rates.iter().flatten().chain(&amount));
        let exponent = definition.currency.exponent();
        let scales = definition.tiers.iter().flat_map(|tier| [tier.unit_amount, tier.flat_amount]);
        let scale = scales.map(|amount| amount.normalize().scale()).max().unwrap_or(0).max(exponent);
        let steps = Vec::with_capacity(definition.tiers.len());
        let mut price = Self { steps, definition, rates, amount, reads, exponent, scale };
        price.push_steps();
        Ok(price)
    }

    /// Whether its rates depend on more than the quantity and the tiers.
    #[must_use]
    pub fn has_expressions(&self) -> bool {
        self.amount.is_some() || !self.rates.is_empty()
    }

    /// Whether it reads the external cost, which events must then bring (usage.md R9).
    #[must_use]
    pub fn reads_cost(&self) -> bool {
        self.rates.iter().flatten().chain(&self.amount).any(Formula::reads_cost)
    }

    /// Slugs of the rate tables that it reads.
    #[must_use]
    pub fn tables(&self) -> &[String] {
        self.reads.tables()
    }

    /// The values of an event that its expressions read, with the table versions of its instant; `None` when they read
    /// nothing of it.
    #[must_use]
    pub fn variables(&self, event: &UsageEvent, tables: &dyn RateTables) -> Option<Variables> {
        self.reads.variables(event, tables)
    }

    fn push_steps(&mut self) {
        let (mut from, mut before) = (Quantity::ZERO, Some(0_u128));
        for tier in &self.definition.tiers {
            let rate = match self.definition.model {
                PricingModel::Package => quantity_of(tier.unit_amount).units().unsigned_abs(),
                PricingModel::Volume | PricingModel::Staircase => at_scale(tier.unit_amount, self.scale),
            };
            let up_to = tier.up_to.unwrap_or(Quantity::from_units(i128::MAX));
            let step = Step { from, up_to, rate, flat: at_scale(tier.flat_amount, self.scale), before };
            let full = up_to.checked_sub(from).ok().and_then(|size| self.contribution(&step, size.into()));
            before = before.zip(full).and_then(|(sum, full)| sum.checked_add(full));
            from = up_to;
            self.steps.push(step);
        }
    }

    /// Index of the tier with `from < quantity <= up_to`; the quantity is positive.
    fn step_of(&self, quantity: Exact) -> usize {
        let bounded = self.steps.len() - 1; // never empty, and the last one is open
        self.steps[..bounded].iter().position(|step| quantity <= step.up_to.into()).unwrap_or(bounded)
    }

    /// Rounded contribution of a tier in minor units; `None` beyond 128 bits.
    fn contribution(&self, step: &Step, quantity: Exact) -> Option<u128> {
        let (units, scale) = quantity.parts();
        let units = units.unsigned_abs();
        if self.definition.model == PricingModel::Package {
            let divisor = power_of_ten(scale - domain::quantity::SCALE)?.checked_mul(step.rate);
            // A package so large that its size at this scale overflows holds any quantity.
            let packages = divisor.map_or(1, |divisor| units.div_ceil(divisor));
            return div_half_up(U256::product(packages, step.flat), power_of_ten(self.scale - self.exponent)?);
        }
        let divisor = power_of_ten(scale + self.scale - self.exponent)?;
        let one = power_of_ten(scale)?;
        let narrow = units.checked_mul(step.rate).zip(step.flat.checked_mul(one)).and_then(|(a, b)| a.checked_add(b));
        if let Some(exact) = narrow {
            let quotient = exact / divisor;
            let remainder = exact - quotient * divisor; // a second division would cost as much as everything else
            return Some(quotient + u128::from(remainder >= divisor - remainder));
        }
        div_half_up(U256::product(units, step.rate).checked_add(U256::product(step.flat, one))?, divisor)
    }

    /// Total in minor units.
    pub(crate) fn total_minor(&self, quantity: Exact, basis: &Basis<'_>) -> Result<u128> {
        if quantity.is_negative() {
            return Err(RatingError::Value { field: "quantity".into(), reason: "must not be negative" });
        }
        if quantity.is_zero() {
            return Ok(0);
        }
        if self.has_expressions() {
            return self.evaluated_total(quantity, basis);
        }
        let step = &self.steps[self.step_of(quantity)];
        if self.definition.model != PricingModel::Staircase {
            return self.contribution(step, quantity).ok_or(AMOUNT);
        }
        let last = self.contribution(step, quantity.checked_sub(step.from.into())?);
        last.zip(step.before).and_then(|(last, before)| last.checked_add(before)).ok_or(AMOUNT)
    }

    /// The same for a price with expressions, whose tiers cannot be summed beforehand.
    fn evaluated_total(&self, quantity: Exact, basis: &Basis<'_>) -> Result<u128> {
        if let Some(amount) = &self.amount {
            let tier = TierFacts { list_price: self.definition.list_price, ..TierFacts::default() };
            return self.minor(&amount.evaluate_rate(&Scope { basis, tier })?);
        }
        let mut total = 0_u128;
        for (index, taken) in self.taken(quantity)? {
            let (amount, _) = self.evaluated(index, taken, basis)?;
            total = total.checked_add(amount).ok_or(AMOUNT)?;
        }
        Ok(total)
    }

    /// What each tier takes of a positive quantity.
    fn taken(&self, quantity: Exact) -> Result<SmallVec<[(usize, Exact); 4]>> {
        let last = self.step_of(quantity);
        if self.definition.model != PricingModel::Staircase {
            return Ok(SmallVec::from_iter([(last, quantity)]));
        }
        let mut taken = SmallVec::new();
        for (index, step) in self.steps[..last].iter().enumerate() {
            taken.push((index, Exact::from(step.up_to).checked_sub(step.from.into())?));
        }
        taken.push((last, quantity.checked_sub(self.steps[last].from.into())?));
        Ok(taken)
    }

    /// Rounded contribution of a tier in minor units, and the rate that its expression gave.
    fn evaluated(&self, index: usize, quantity: Exact, basis: &Basis<'_>) -> Result<(u128, Option<Number>)> {
        let (step, tier) = (&self.steps[index], &self.definition.tiers[index]);
        let Some(formula) = self.rates.get(index).and_then(Option::as_ref) else {
            return Ok((self.contribution(step, quantity).ok_or(AMOUNT)?, None));
        };
        let facts = TierFacts {
            unit_amount: tier.unit_amount,
            flat_amount: tier.flat_amount,
            order: tier.tier_order,
            quantity: Some(quantity),
            list_price: self.definition.list_price,
        };
        let rate = formula.evaluate_rate(&Scope { basis, tier: facts })?;
        let exact = if self.definition.model == PricingModel::Package {
            let (units, scale) = quantity.parts();
            let divisor = power_of_ten(scale - domain::quantity::SCALE).and_then(|p| p.checked_mul(step.rate));
            let packages = divisor.map_or(1, |divisor| units.unsigned_abs().div_ceil(divisor));
            let packages = i128::try_from(packages).ok().and_then(|p| Decimal::try_from_i128_with_scale(p, 0).ok());
            rate.mul(&Number::from(packages.ok_or(AMOUNT)?))?
        } else {
            rate.mul(&Number::from(quantity))?.add(&Number::from(tier.flat_amount))?
        };
        Ok((self.minor(&exact)?, Some(rate)))
    }

    /// A rate or amount that is not negative, rounded half away from zero to minor units.
    fn minor(&self, amount: &Number) -> Result<u128> {
        let minor = amount.rounded(self.exponent)?.to_units(self.exponent);
        minor.and_then(|minor| u128::try_from(minor).ok()).ok_or(AMOUNT)
    }

    /// Minor units as money.
    pub(crate) fn money(&self, minor: u128) -> Result<Money> {
        let minor = i128::try_from(minor).map_err(|_| AMOUNT)?;
        Money::from_minor(minor, self.definition.currency).map_err(|_| AMOUNT)
    }

    fn tier_contribution(&self, index: usize, quantity: Exact, basis: &Basis<'_>) -> Result<TierContribution> {
        let (step, tier) = (&self.steps[index], &self.definition.tiers[index]);
        let (amount, rate) = self.evaluated(index, quantity, basis)?;
        let rate = rate.map(|rate| shown(&rate)).transpose()?;
        let is_package = self.definition.model == PricingModel::Package;
        Ok(TierContribution {
            tier_order: tier.tier_order,
            from: step.from,
            to: tier.up_to,
            quantity,
            unit_amount: rate.filter(|_| !is_package).unwrap_or(tier.unit_amount),
            flat_amount: rate.filter(|_| is_package).unwrap_or(tier.flat_amount),
            amount: self.money(amount)?,
        })
    }

    /// What a formula price shows as its only step: everything, for the amount that the formula gave.
    fn formula_contribution(&self, quantity: Exact, amount: Money) -> TierContribution {
        TierContribution {
            tier_order: 1,
            from: Quantity::ZERO,
            to: None,
            quantity,
            unit_amount: Decimal::ZERO,
            flat_amount: amount.amount(),
            amount,
        }
    }
}

/// A rate beside the amount that was computed with it exactly: at most 12 fraction digits, as the API has.
fn shown(rate: &Number) -> Result<Decimal> {
    rate.rounded(domain::quantity::SCALE)?.to_decimal().ok_or(AMOUNT)
}

/// The amount of a quantity with its breakdown by tier.
///
/// # Errors
/// `Value` for a negative quantity, `Overflow` for an amount beyond 20 integer digits, `Formula` where an expression has no
/// result.
pub fn walk(price: &CompiledPrice, quantity: impl Into<Exact>) -> Result<Walk> {
    let quantity = quantity.into();
    walk_with(price, quantity, &Basis::of(quantity))
}

/// The same for a rating key, whose variables, allowance and period the expressions of the price may read.
///
/// # Errors
/// As [`walk`].
pub fn walk_with(price: &CompiledPrice, quantity: Exact, basis: &Basis<'_>) -> Result<Walk> {
    let total = price.money(price.total_minor(quantity, basis)?)?;
    let mut tiers = Vec::new();
    if price.amount.is_some() {
        tiers.push(price.formula_contribution(quantity, total));
    } else if !quantity.is_zero() {
        for (index, taken) in price.taken(quantity)? {
            tiers.push(price.tier_contribution(index, taken, basis)?);
        }
    }
    Ok(Walk { quantity, tiers, total })
}

/// The amount of a quantity; the same figure as [`walk`], without its breakdown.
///
/// # Errors
/// As [`walk`].
pub fn total(price: &CompiledPrice, quantity: impl Into<Exact>) -> Result<Money> {
    let quantity = quantity.into();
    price.money(price.total_minor(quantity, &Basis::of(quantity))?)
}

fn compile_rates(tiers: &[Tier], errors: &mut Vec<FieldError>) -> Vec<Option<Formula>> {
    if tiers.iter().all(|tier| tier.rate_expression.is_none()) {
        return Vec::new();
    }
    let mut compile = |(index, tier): (usize, &Tier)| {
        let compiled = Formula::compile(tier.rate_expression.as_deref()?, Place::Tier, &[]);
        compiled.map_err(|found| refuse_expression(&format!("tiers[{index}].rate_expression"), found, errors)).ok()
    };
    tiers.iter().enumerate().map(&mut compile).collect()
}

fn compile_amount(formula: &PriceFormula, errors: &mut Vec<FieldError>) -> Option<Formula> {
    let compiled = Formula::compile(&formula.expression, Place::Price, &formula.variables);
    compiled.map_err(|found| refuse_expression("expression", found, errors)).ok()
}

fn refuse_expression(field: &str, found: Vec<FormulaError>, errors: &mut Vec<FieldError>) {
    errors.extend(found.into_iter().map(|error| FieldError {
        field: field.to_owned(),
        code: Code::InvalidFormat,
        message: format!("at character {}: {}", error.position, error.message),
    }));
}

/// A checked amount in whole numbers of 10^-`scale`.
fn at_scale(amount: Decimal, scale: u32) -> u128 {
    let amount = amount.normalize();
    // Checked before: at most 15 integer and 12 fraction digits, so 27 digits at any scale up to 12.
    amount.mantissa().unsigned_abs() * power_of_ten(scale - amount.scale()).unwrap_or(1)
}

/// A checked amount as a quantity.
fn quantity_of(amount: Decimal) -> Quantity {
    Quantity::try_from_decimal(amount).unwrap_or_default() // checked before: at most 12 fraction digits
}

/// Checks a list of tiers; an empty answer means that it compiles.
#[must_use]
pub fn check_tiers(model: PricingModel, tiers: &[Tier]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut refuse = |field: String, code, message: &str| {
        errors.push(FieldError { field, code, message: message.into() });
    };
    if tiers.is_empty() || tiers.len() > TIERS_MAX {
        refuse("tiers".into(), Code::OutOfRange, "must have 1 to 100 entries");
    }
    let (mut order, mut lower) = (None, Quantity::ZERO);
    for (index, tier) in tiers.iter().enumerate() {
        let path = |name: &str| format!("tiers[{index}].{name}");
        if order.is_some_and(|order| tier.tier_order <= order) {
            refuse(path("tier_order"), Code::OutOfRange, "must be larger than that of the tier before");
        }
        order = Some(tier.tier_order);
        let is_last = index + 1 == tiers.len();
        match tier.up_to {
            None if !is_last => refuse(path("up_to"), Code::Required, "is required on every tier but the last"),
            Some(_) if is_last => refuse(path("up_to"), Code::NotAllowed, "must be null on the last tier"),
            Some(up_to) if up_to <= lower => {
                refuse(path("up_to"), Code::OutOfRange, "must be larger than that of the tier before, and than 0");
            }
            Some(up_to) => lower = up_to,
            None => {}
        }
        for (name, amount) in [("unit_amount", tier.unit_amount), ("flat_amount", tier.flat_amount)] {
            if !is_rate(amount) {
                let message = "must not be negative and have at most 15 integer and 12 fraction digits";
                refuse(path(name), Code::OutOfRange, message);
            }
        }
        if model == PricingModel::Package && tier.unit_amount.is_zero() {
            refuse(path("unit_amount"), Code::OutOfRange, "is the size of a package and must be larger than 0");
        }
    }
    errors
}

fn is_rate(amount: Decimal) -> bool {
    let limit = 1_000_000_000_000_000 * Quantity::ONE.units();
    Quantity::try_from_decimal(amount).is_ok_and(|amount| (0..limit).contains(&amount.units()))
}
