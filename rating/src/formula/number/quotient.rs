//! Quotients: 28 significant digits.

use std::cmp::Ordering;

use num_bigint::BigInt;

use super::{Number, Repr, TOO_LARGE, ten};
use crate::formula::{FormulaFailure, Result};
use domain::wide::power_of_ten;

/// Significant digits of a quotient that is not exact.
const QUOTIENT_DIGITS: u32 = 28;

impl Number {
    /// The quotient: exact where 28 significant digits hold it, else rounded half-even to 28.
    ///
    /// # Errors
    /// `DivisionByZero`, `LimitExceeded`.
    pub fn div(&self, other: &Self) -> Result<Self> {
        if other.is_zero() {
            return Err(FormulaFailure::DivisionByZero);
        }
        if self.is_zero() {
            return Ok(Self::ZERO);
        }
        let ((a, a_scale), (b, b_scale)) = (self.to_parts(), other.to_parts());
        // 29 to 32 digits, so that at least one is cut.
        let shift = i64::from(QUOTIENT_DIGITS) + 2 - a.log10_at_least() + b.log10_at_least();
        let (quotient, is_exact) = a.shifted_quotient(shift, &b).ok_or(TOO_LARGE)?;
        let (quotient, cut) = round_to_digits(quotient, is_exact);
        let (quotient, scale) = (BigInt::from(quotient), i64::from(a_scale) - i64::from(b_scale) + shift - cut);
        let quotient = if self.is_negative() == other.is_negative() { quotient } else { -quotient };
        match u32::try_from(scale) {
            Ok(scale) => Self::settle(quotient, scale),
            Err(_) => Self::settle(quotient * ten(u32::try_from(-scale).map_err(|_| TOO_LARGE)?), 0),
        }
    }

    fn to_parts(&self) -> (Magnitude<'_>, u32) {
        match &self.0 {
            Repr::Small { mantissa, scale } => (Magnitude::Small(mantissa.unsigned_abs()), *scale),
            Repr::Big(big) => (Magnitude::Big(&big.mantissa), big.scale),
        }
    }
}

/// A mantissa without its sign.
enum Magnitude<'n> {
    Small(u128),
    Big(&'n BigInt),
}

impl Magnitude<'_> {
    /// An n with 10^n <= this number < 10^(n + 2), from 2^(bits - 1) <= it < 2^bits.
    fn log10_at_least(&self) -> i64 {
        let bits = match self {
            Self::Small(magnitude) => i64::from(u128::BITS - magnitude.leading_zeros()),
            Self::Big(mantissa) => i64::try_from(mantissa.bits()).unwrap_or(i64::MAX),
        };
        (bits - 1) * 30_102 / 100_000 // log10 of 2, a little less
    }

    fn to_big(&self) -> BigInt {
        match self {
            Self::Small(magnitude) => BigInt::from(*magnitude),
            Self::Big(mantissa) => BigInt::from(mantissa.magnitude().clone()),
        }
    }

    /// `self × 10^shift / divisor` without its fraction, and whether there was none. The quotient has at most 32 digits.
    fn shifted_quotient(&self, shift: i64, divisor: &Self) -> Option<(u128, bool)> {
        if let (Self::Small(a), Self::Small(b)) = (self, divisor)
            && let Some(power) = u32::try_from(shift).ok().and_then(power_of_ten)
            && let Some(a) = a.checked_mul(power)
        {
            let quotient = a / b;
            return Some((quotient, quotient * b == a));
        }
        let (mut a, mut b) = (self.to_big(), divisor.to_big());
        let power = ten(u32::try_from(shift.unsigned_abs()).ok()?);
        if shift < 0 {
            b *= power
        } else {
            a *= power
        }
        let quotient = &a / &b;
        let is_exact = &quotient * &b == a;
        u128::try_from(quotient).ok().map(|quotient| (quotient, is_exact))
    }
}

/// Cuts a quotient of more than 28 digits to 28, half-even; how many digits were cut.
fn round_to_digits(quotient: u128, is_exact: bool) -> (u128, i64) {
    let limit = power_of_ten(QUOTIENT_DIGITS).unwrap_or(u128::MAX);
    let (mut power, mut cut) = (1, 0);
    while quotient / power >= limit {
        power *= 10;
        cut += 1;
    }
    let (kept, rest) = (quotient / power, quotient % power);
    let is_up = match (rest * 2).cmp(&power) {
        Ordering::Less => false,
        Ordering::Equal => !is_exact || kept % 2 == 1,
        Ordering::Greater => true,
    };
    (kept + u128::from(is_up), cut)
}
