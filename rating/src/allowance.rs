//! Allowances: the quantity of a product and metric that a plan already covers (allowances.md 5).
//!
//! Consumption draws rolled-over quantity first, then the included one, then what promotions granted; what exceeds them
//! is overage and is priced. Several rating keys share one allowance in the order segment start, price key, wallet
//! currency (none first), never in order of arrival.

use domain::Quantity;

use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::wide::{U256, div_half_even, signed};

/// What covers consumption of one product and metric in one period, by source, in the order in which it is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Carried over from earlier periods.
    pub rolled_over: Quantity,
    /// Of the plan, the subscription item or the phase.
    pub included: Quantity,
    /// Of add-ons and promotions.
    pub granted: Quantity,
}

/// How much of an allowance a quantity has drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// All sources together.
    pub total: Quantity,
    /// What is left: `max(0, total - used)`.
    pub remaining: Exact,
    /// What exceeds it: `max(0, used - total)`.
    pub overage: Exact,
    /// Taken from carried-over quantity.
    pub from_rolled_over: Exact,
    /// Taken from included quantity.
    pub from_included: Exact,
    /// Taken from granted quantity.
    pub from_granted: Exact,
}

const OVERFLOW: RatingError = RatingError::Overflow("the allowance");

impl Allowance {
    /// Only an included quantity.
    #[must_use]
    pub fn included(included: Quantity) -> Self {
        Self { included, ..Self::default() }
    }

    /// All sources together.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn total(&self) -> Result<Quantity> {
        self.rolled_over.checked_add(self.included).and_then(|sum| sum.checked_add(self.granted)).map_err(|_| OVERFLOW)
    }

    /// What a used quantity has taken from which source; a negative one takes nothing.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn draw(&self, used: Exact) -> Result<Drawn> {
        let total = self.total()?;
        let used = used.floored();
        let (from_rolled_over, rest) = take(used, self.rolled_over)?;
        let (from_included, rest) = take(rest, self.included)?;
        let (from_granted, overage) = take(rest, self.granted)?;
        let remaining = Exact::from(total).checked_sub(used)?.floored();
        Ok(Drawn { total, remaining, overage, from_rolled_over, from_included, from_granted })
    }
}

/// Takes what is there: (taken, what is still wanted).
fn take(wanted: Exact, available: Quantity) -> Result<(Exact, Exact)> {
    let taken = wanted.min(Exact::from(available)).floored();
    Ok((taken, wanted.checked_sub(taken)?))
}

/// The included quantity of a subscription: per unit it is multiplied by the subscription's quantity.
///
/// # Errors
/// `Overflow` when the product needs more than 12 fraction digits or leaves the range.
pub fn included_quantity(included: Quantity, per_unit: bool, subscription_quantity: Quantity) -> Result<Quantity> {
    if !per_unit {
        return Ok(included);
    }
    let product = U256::product(included.units().unsigned_abs(), subscription_quantity.units().unsigned_abs());
    let (units, rest) = product.div_rem(Quantity::ONE.units().unsigned_abs()).ok_or(OVERFLOW)?;
    let negative = included.is_negative() != subscription_quantity.is_negative();
    signed(units, negative).filter(|_| rest == 0).map(Quantity::from_units).ok_or(OVERFLOW)
}

/// An allowance that holds for a part of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowancePart {
    /// Allowance of a whole period.
    pub quantity: Quantity,
    /// Seconds of the period in which it holds.
    pub seconds: u64,
}

/// Fraction digits of a prorated allowance.
const PRORATED_DIGITS: i128 = 1_000_000;

/// Total of an allowance that changes inside a period, or of a partial period: Σ quantity × seconds ÷ seconds of the full
/// period, rounded once, half-even, to 6 fraction digits (rule 3). A period of no length covers nothing.
///
/// # Errors
/// `Overflow`.
pub fn prorated(parts: &[AllowancePart], period_seconds: u64) -> Result<Quantity> {
    if period_seconds == 0 {
        return Ok(Quantity::ZERO);
    }
    let weighted = parts.iter().try_fold(0_i128, |sum, part| {
        part.quantity.units().checked_mul(i128::from(part.seconds)).and_then(|product| sum.checked_add(product))
    });
    let weighted = weighted.ok_or(OVERFLOW)?;
    let divisor = u128::from(period_seconds) * (Quantity::ONE.units() / PRORATED_DIGITS).unsigned_abs();
    let rounded = div_half_even(U256::product(weighted.unsigned_abs(), 1), divisor).ok_or(OVERFLOW)?;
    let units =
        signed(rounded, weighted < 0).and_then(|units| units.checked_mul(Quantity::ONE.units() / PRORATED_DIGITS));
    units.map(Quantity::from_units).ok_or(OVERFLOW)
}
