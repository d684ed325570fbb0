//! Allowances: the quantity of a product and metric that a plan already covers (allowances.md 5).
//!
//! Consumption draws rolled-over quantity first, then the included one, then what promotions granted; what exceeds them
//! is overage and is priced. Several rating keys share one allowance in the order segment start, price key, wallet
//! currency (none first), never in order of arrival.

use domain::{Instant, Quantity};

use crate::error::{RatingError, Result};
use crate::exact::Exact;
use domain::wide::{U256, div_half_even, signed};

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

/// What was left of an allowance and carried into a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lot {
    /// Start of the period that included it.
    pub source_start: Instant,
    /// What is left of it.
    pub quantity: Quantity,
    /// Periods that it has lived when the one that it was carried into is over, at least 1.
    pub periods_lived: u32,
    /// When it lapses; `None`: never.
    pub expires_at: Option<Instant>,
}

/// What of an allowance is carried on (rule 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rollover {
    /// Most that is carried; `None`: all.
    pub max_quantity: Option<Quantity>,
    /// Periods that a carried quantity lives; `None`: for ever.
    pub expiry_periods: Option<u32>,
}

/// The sum of lots.
///
/// # Errors
/// `Overflow`.
pub fn sum_of(lots: &[Lot]) -> Result<Quantity> {
    lots.iter().try_fold(Quantity::ZERO, |sum, lot| sum.checked_add(lot.quantity)).map_err(|_| OVERFLOW)
}

impl Rollover {
    /// What is carried out of a period: of the carried quantity, which is drawn by oldest expiry, what has not lived its
    /// periods; of the included one, as a lot of this period. Where the cap holds, what would lapse first stays behind.
    /// Lots come back in the order in which they are drawn; `expiry_of` tells when a lot lapses that may live so many
    /// periods from the next one on.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn carry(
        &self,
        period_start: Instant,
        lots: &[Lot],
        drawn: &Drawn,
        included: Quantity,
        expiry_of: impl Fn(u32) -> Instant,
    ) -> Result<Vec<Lot>> {
        let left_of_included = rest(included, drawn.from_included)?;
        let mut wanted = drawn.from_rolled_over;
        let mut kept = Vec::with_capacity(lots.len() + 1);
        for lot in in_draw_order(lots) {
            let (taken, still) = take(wanted, lot.quantity)?;
            wanted = still;
            if self.expiry_periods.is_none_or(|limit| lot.periods_lived < limit) {
                kept.push(Lot { quantity: rest(lot.quantity, taken)?, periods_lived: lot.periods_lived + 1, ..lot });
            }
        }
        let expiring = |lived: u32| self.expiry_periods.map(|limit| expiry_of(limit.saturating_sub(lived - 1)));
        kept.push(Lot { source_start: period_start, quantity: left_of_included, periods_lived: 1, expires_at: None });
        for lot in &mut kept {
            lot.expires_at = expiring(lot.periods_lived);
        }
        let mut room = self.max_quantity.unwrap_or(Quantity::from_units(i128::MAX));
        for lot in kept.iter_mut().rev() {
            lot.quantity = lot.quantity.min(room);
            room = room.checked_sub(lot.quantity).map_err(|_| OVERFLOW)?;
        }
        kept.retain(|lot| lot.quantity > Quantity::ZERO);
        Ok(kept)
    }
}

/// By oldest expiry, those without one last; among equals the older one first.
fn in_draw_order(lots: &[Lot]) -> Vec<Lot> {
    let mut sorted = lots.to_vec();
    sorted.sort_by_key(|lot| (lot.expires_at.is_none(), lot.expires_at, lot.source_start));
    sorted
}

/// What is left of a quantity; what was drawn of it has no more digits than it.
fn rest(quantity: Quantity, drawn: Exact) -> Result<Quantity> {
    let left = Exact::from(quantity).checked_sub(drawn)?.floored();
    // A meter may count in more digits than an allowance has: less than 10^-12 of a unit is not carried.
    Ok(left.floor_to_quantity())
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
