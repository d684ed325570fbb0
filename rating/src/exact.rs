//! A quantity after the multiplier of its binding: exact, with as many fraction digits as the product needs.
//!
//! Sums of events have 12 fraction digits and a multiplier has up to 12 more; "no rounding before the tier walk"
//! (meters.md 5), and refusing 12.345 seconds × 0.000277777778 would lose revenue. So the product is kept with up to 24
//! fraction digits. A number that needs more than the 38 digits of an `i128` is an error.

use std::cmp::Ordering;
use std::fmt;

use domain::Quantity;
use domain::quantity::SCALE;
use rust_decimal::Decimal;
use serde::{Serialize, Serializer};

use crate::error::{RatingError, Result};
use domain::wide::{U256, div_half_even, power_of_ten, signed};

/// An exact decimal with 12 to 24 fraction digits, in its shortest form: more than 12 only where they are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exact {
    units: i128,
    scale: u32,
}

const OVERFLOW: RatingError = RatingError::Overflow("the quantity");

/// 10^`exponent` for the small exponents that occur between two scales.
fn ten(exponent: u32) -> Option<i128> {
    power_of_ten(exponent).and_then(|power| i128::try_from(power).ok())
}

impl Exact {
    /// Nothing.
    pub const ZERO: Self = Self { units: 0, scale: SCALE };

    /// Whole numbers of 10^-`scale`, and that scale.
    pub(crate) fn parts(self) -> (i128, u32) {
        (self.units, self.scale)
    }

    /// What [`Exact::parts`] gave.
    pub(crate) fn from_parts(units: i128, scale: u32) -> Option<Self> {
        (SCALE..=2 * SCALE).contains(&scale).then(|| Self::canonical(units, scale))
    }

    /// The shortest form of `units` at a `scale` of at least 12.
    fn canonical(mut units: i128, mut scale: u32) -> Self {
        if scale > SCALE
            && let Some(power) = ten(scale - SCALE)
            && units % power == 0
        {
            return Self { units: units / power, scale: SCALE };
        }
        while scale > SCALE && units % 10 == 0 {
            units /= 10;
            scale -= 1;
        }
        Self { units, scale }
    }

    fn at(self, scale: u32) -> Option<i128> {
        self.units.checked_mul(ten(scale - self.scale)?)
    }

    /// The exact sum.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn checked_add(self, other: Self) -> Result<Self> {
        if self.scale == SCALE && other.scale == SCALE {
            let units = self.units.checked_add(other.units).ok_or(OVERFLOW)?;
            return Ok(Self { units, scale: SCALE });
        }
        let scale = self.scale.max(other.scale);
        let sum = self.at(scale).zip(other.at(scale)).and_then(|(a, b)| a.checked_add(b)).ok_or(OVERFLOW)?;
        Ok(Self::canonical(sum, scale))
    }

    /// The exact difference.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn checked_sub(self, other: Self) -> Result<Self> {
        self.checked_add(Self { units: other.units.checked_neg().ok_or(OVERFLOW)?, scale: other.scale })
    }

    /// This quantity, or zero when it is negative.
    #[must_use]
    pub fn floored(self) -> Self {
        if self.units < 0 { Self::ZERO } else { self }
    }

    /// Whether it is zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.units == 0
    }

    /// Whether it is below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.units < 0
    }

    /// As a `Quantity`, when 12 fraction digits are enough.
    #[must_use]
    pub fn to_quantity(self) -> Option<Quantity> {
        (self.scale == SCALE).then(|| Quantity::from_units(self.units))
    }

    /// The largest `Quantity` that is not above it, for a number that is not negative.
    #[must_use]
    pub fn floor_to_quantity(self) -> Quantity {
        Quantity::from_units(self.units / ten(self.scale - SCALE).unwrap_or(i128::MAX))
    }

    /// A decimal with at most 24 fraction digits, such as an amount.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn from_decimal(value: Decimal) -> Result<Self> {
        let value = value.normalize();
        let missing = SCALE.saturating_sub(value.scale());
        let units = ten(missing).and_then(|power| value.mantissa().checked_mul(power)).ok_or(OVERFLOW)?;
        Ok(Self::canonical(units, value.scale() + missing))
    }

    /// As a decimal without trailing zeros, for a `numeric` column.
    ///
    /// # Errors
    /// `Overflow` when it has more than the 28 digits of a `Decimal`.
    pub fn to_decimal(self) -> Result<Decimal> {
        let (mut units, mut scale) = (self.units, self.scale);
        while scale > 0 && units % 10 == 0 {
            units /= 10;
            scale -= 1;
        }
        Decimal::try_from_i128_with_scale(units, scale).map_err(|_| OVERFLOW)
    }

    /// To be shown beside an amount that was computed exactly: at most 12 fraction digits (the most that the API has), and
    /// fewer where a `Decimal` would not hold them; half away from zero.
    #[must_use]
    pub fn shown(self) -> Decimal {
        (0..=SCALE).rev().find_map(|scale| self.rounded(scale)).unwrap_or_default()
    }

    fn rounded(self, scale: u32) -> Option<Decimal> {
        let power = power_of_ten(self.scale - scale)?;
        let units = self.units.unsigned_abs();
        let rounded = units / power + u128::from(units % power >= power.div_ceil(2) && power > 1);
        let signed = i128::try_from(rounded).ok()? * self.units.signum();
        Decimal::try_from_i128_with_scale(signed, scale).ok().map(|decimal| decimal.normalize())
    }

    /// `self × 100 ÷ whole`, rounded half-even to 12 fraction digits: the observed value of a threshold in percent.
    pub(crate) fn percent_of(self, whole: Quantity) -> Result<Self> {
        let divisor = power_of_ten(self.scale - SCALE).and_then(|p| p.checked_mul(whole.units().unsigned_abs()));
        let numerator = U256::product(self.units.unsigned_abs(), 100 * 1_000_000_000_000);
        let units = divisor
            .and_then(|divisor| div_half_even(numerator, divisor))
            .and_then(|units| signed(units, (self.units < 0) != (whole.units() < 0)))
            .ok_or(OVERFLOW)?;
        Ok(Self { units, scale: SCALE })
    }
}

impl From<Quantity> for Exact {
    fn from(quantity: Quantity) -> Self {
        Self { units: quantity.units(), scale: SCALE }
    }
}

impl Ord for Exact {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.scale == other.scale {
            return self.units.cmp(&other.units);
        }
        let scale = self.scale.max(other.scale);
        match (self.at(scale), other.at(scale)) {
            (Some(a), Some(b)) => a.cmp(&b),
            // Only the side with fewer fraction digits is widened; when it overflows, it is the larger in magnitude.
            (None, _) => self.units.cmp(&0),
            (_, None) => 0.cmp(&other.units),
        }
    }
}

impl PartialOrd for Exact {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Exact {
    /// The canonical form of the wire: no trailing zeros, no exponent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.units < 0 { "-" } else { "" };
        let one = power_of_ten(self.scale).unwrap_or(u128::MAX); // a scale is at most 24
        let (whole, fraction) = (self.units.unsigned_abs() / one, self.units.unsigned_abs() % one);
        if fraction == 0 {
            return f.pad(&format!("{sign}{whole}"));
        }
        let digits = format!("{fraction:0width$}", width = self.scale as usize);
        f.pad(&format!("{sign}{whole}.{}", digits.trim_end_matches('0')))
    }
}

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The multiplier of a binding: a positive factor with at most 15 integer and 12 fraction digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Factor {
    mantissa: i128,
    scale: u32,
}

impl Factor {
    /// Leaves everything as it is.
    pub(crate) const ONE: Self = Self { mantissa: 1, scale: 0 };

    /// `None` when it is not positive or has too many digits.
    pub(crate) fn new(value: Decimal) -> Option<Self> {
        let units = Quantity::try_from_decimal(value).ok()?.units();
        let value = value.normalize();
        let in_range = 0 < units && units < 1_000_000_000_000_000 * Quantity::ONE.units();
        in_range.then_some(Self { mantissa: value.mantissa(), scale: value.scale() })
    }

    /// The exact product.
    pub(crate) fn apply(self, quantity: Quantity) -> Result<Exact> {
        if self.scale == 0 {
            let units = quantity.units().checked_mul(self.mantissa).ok_or(OVERFLOW)?;
            return Ok(Exact { units, scale: SCALE });
        }
        match quantity.units().checked_mul(self.mantissa) {
            Some(units) => Ok(Exact::canonical(units, SCALE + self.scale)),
            None => self.apply_wide(quantity),
        }
    }

    /// Whether the product with a quantity of at most so many units is in the range without a look at it.
    pub(crate) fn is_safe(self, units: u128) -> bool {
        units.checked_mul(self.mantissa.unsigned_abs()).is_some_and(|product| product < i128::MAX.unsigned_abs())
    }

    /// The product leaves 128 bits: it can still be kept when it ends in zeros.
    fn apply_wide(self, quantity: Quantity) -> Result<Exact> {
        let product = U256::product(quantity.units().unsigned_abs(), self.mantissa.unsigned_abs());
        (1..=self.scale)
            .rev()
            .find_map(|digits| {
                let (units, rest) = product.div_rem(power_of_ten(digits)?)?;
                let units = signed(units, quantity.is_negative()).filter(|_| rest == 0)?;
                Some(Exact { units, scale: SCALE + self.scale - digits })
            })
            .ok_or(OVERFLOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigInt;
    use proptest::prelude::*;

    fn exact(text: &str, factor: &str) -> Result<String> {
        let factor = Factor::new(factor.parse().expect("a decimal")).expect("a factor");
        factor.apply(Quantity::parse(text).expect("a quantity")).map(|e| e.to_string())
    }

    #[test]
    fn products_lose_no_digit() {
        for (quantity, factor, product) in [
            ("2000000000", "0.000000001", "2"),
            ("12.345", "0.000277777778", "0.00342916666941"),
            ("0.000000000001", "0.000000000001", "0.000000000000000000000001"),
            ("999999999999999.999999999999", "1000", "999999999999999999.999999999"),
            ("-7", "1.50", "-10.5"),
        ] {
            assert_eq!(exact(quantity, factor).as_deref(), Ok(product), "{quantity} x {factor}");
        }
        assert_eq!(exact("999999999999999", "999999999999999.5"), Err(OVERFLOW)); // 31 and 12 digits
        for wrong in ["0", "-1", "0.0000000000001", "1000000000000000"] {
            assert_eq!(Factor::new(wrong.parse().expect("a decimal")), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_has_as_many_digits_as_fit() {
        let exact = |units: i128, scale: u32| Exact::canonical(units, scale).shown().to_string();
        assert_eq!(exact(5, 13), "0.000000000001", "half away from zero");
        assert_eq!(exact(-15, 13), "-0.000000000002");
        assert_eq!(exact(4, 13), "0");
        assert_eq!(exact(1_500_000_000_000, 12), "1.5");
        assert_eq!(exact(79_229_123_456_789_012_345_678_901_234, 24), "79229.123456789012");
        assert_eq!(exact(i128::MAX, 12), "170141183460469231731687303.72", "as a decimal holds");
        assert_eq!(exact(-i128::MAX, 24), "-170141183460469.231731687304");
    }

    fn big(value: Exact) -> BigInt {
        BigInt::from(value.units) * BigInt::from(10).pow(24 - value.scale)
    }

    prop_compose! {
        fn any_exact()(units in any::<i64>(), scale in 12_u32..=24) -> Exact {
            Exact::canonical(i128::from(units), scale)
        }
    }

    proptest! {
        #[test]
        fn arithmetic_agrees_with_big_integers(a in any_exact(), b in any_exact()) {
            prop_assert_eq!(big(a.checked_add(b).expect("in range")), big(a) + big(b));
            prop_assert_eq!(big(a.checked_sub(b).expect("in range")), big(a) - big(b));
            prop_assert_eq!(a.cmp(&b), big(a).cmp(&big(b)));
            prop_assert_eq!(a == b, big(a) == big(b));
        }

        #[test]
        fn products_agree_with_big_integers(units in -(10_i128.pow(30))..10_i128.pow(30), mantissa in 1_i64..i64::MAX, scale in 0_u32..=12) {
            let factor = Decimal::new(mantissa, scale);
            let Some(compiled) = Factor::new(factor) else { return Ok(()) };
            let exact = BigInt::from(units) * BigInt::from(mantissa) * BigInt::from(10).pow(12 - scale);
            match compiled.apply(Quantity::from_units(units)) {
                Ok(product) => prop_assert_eq!(big(product), exact),
                Err(error) => {
                    prop_assert_eq!(error, OVERFLOW);
                    prop_assert!(exact.magnitude().bits() > 127); // at 24 fraction digits
                }
            }
        }
    }
}
