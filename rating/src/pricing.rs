//! Prices: how a quantity becomes an amount (pricing-models.md).
//!
//! Each tier's contribution is rounded half away from zero at the currency's exponent and the total is the sum of the
//! rounded contributions, so that a breakdown always adds up. Products are exact: what leaves 128 bits is computed in
//! 256, what leaves the range of money is an error.

use domain::error::FieldErrorCode as Code;
use domain::{Currency, FieldError, Money, PriceId, PricingModel, ProductId, Quantity, VersionId};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::wide::{U256, div_half_up, power_of_ten};

/// Tiers of one price.
pub const TIERS_MAX: usize = 100;

/// One step of a price. Under PACKAGE `unit_amount` is the size of a package and `flat_amount` its price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// Position in the walk, ascending.
    pub tier_order: u32,
    /// Inclusive upper bound; `None` on the last tier only: open-ended.
    pub up_to: Option<Quantity>,
    /// Rate of a unit.
    pub unit_amount: Decimal,
    /// Static fee.
    pub flat_amount: Decimal,
}

/// A version of a price as the catalog stores it, with the product's pricing model.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A price version that is ready to be walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledPrice {
    definition: PriceDefinition,
    steps: Vec<Step>,
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
        let errors = check_tiers(definition.model, &definition.tiers);
        if !errors.is_empty() {
            return Err(RatingError::Definition(errors));
        }
        let exponent = definition.currency.exponent();
        let scales = definition.tiers.iter().flat_map(|tier| [tier.unit_amount, tier.flat_amount]);
        let scale = scales.map(|amount| amount.normalize().scale()).max().unwrap_or(0).max(exponent);
        let mut price = Self { steps: Vec::with_capacity(definition.tiers.len()), definition, exponent, scale };
        price.push_steps();
        Ok(price)
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
    pub(crate) fn total_minor(&self, quantity: Exact) -> Result<u128> {
        if quantity.is_negative() {
            return Err(RatingError::Value { field: "quantity".into(), reason: "must not be negative" });
        }
        if quantity.is_zero() {
            return Ok(0);
        }
        let step = &self.steps[self.step_of(quantity)];
        if self.definition.model != PricingModel::Staircase {
            return self.contribution(step, quantity).ok_or(AMOUNT);
        }
        let last = self.contribution(step, quantity.checked_sub(step.from.into())?);
        last.zip(step.before).and_then(|(last, before)| last.checked_add(before)).ok_or(AMOUNT)
    }

    /// Minor units as money.
    pub(crate) fn money(&self, minor: u128) -> Result<Money> {
        let minor = i128::try_from(minor).map_err(|_| AMOUNT)?;
        Money::from_minor(minor, self.definition.currency).map_err(|_| AMOUNT)
    }

    fn tier_contribution(&self, index: usize, quantity: Exact) -> Result<TierContribution> {
        let (step, tier) = (&self.steps[index], &self.definition.tiers[index]);
        Ok(TierContribution {
            tier_order: tier.tier_order,
            from: step.from,
            to: tier.up_to,
            quantity,
            unit_amount: tier.unit_amount,
            flat_amount: tier.flat_amount,
            amount: self.money(self.contribution(step, quantity).ok_or(AMOUNT)?)?,
        })
    }
}

/// The amount of a quantity with its breakdown by tier.
///
/// # Errors
/// `Value` for a negative quantity, `Overflow` for an amount beyond 20 integer digits.
pub fn walk(price: &CompiledPrice, quantity: impl Into<Exact>) -> Result<Walk> {
    let quantity = quantity.into();
    let total = price.money(price.total_minor(quantity)?)?;
    let mut tiers = Vec::new();
    if !quantity.is_zero() {
        let last = price.step_of(quantity);
        if price.model == PricingModel::Staircase {
            for index in 0..last {
                let step = &price.steps[index];
                tiers.push(price.tier_contribution(index, Exact::from(step.up_to).checked_sub(step.from.into())?)?);
            }
            let rest = quantity.checked_sub(price.steps[last].from.into())?;
            tiers.push(price.tier_contribution(last, rest)?);
        } else {
            tiers.push(price.tier_contribution(last, quantity)?);
        }
    }
    Ok(Walk { quantity, tiers, total })
}

/// The amount of a quantity; the same figure as [`walk`], without its breakdown.
///
/// # Errors
/// As [`walk`].
pub fn total(price: &CompiledPrice, quantity: impl Into<Exact>) -> Result<Money> {
    price.money(price.total_minor(quantity.into())?)
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
