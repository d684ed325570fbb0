//! Powers: exact for whole exponents, for fractions only where the result is exact.

use num_bigint::{BigInt, Sign};

use super::{BITS_MAX, Number};
use crate::formula::{FormulaFailure, Result};

const TOO_LARGE: FormulaFailure = FormulaFailure::LimitExceeded("a power has more than 1,000 digits");
const NOT_EXACT: FormulaFailure =
    FormulaFailure::LimitExceeded("a power with a fraction as its exponent has no exact result");

impl Number {
    /// `self ^ exponent`. A whole exponent multiplies; a negative one then divides 1 by it, at 28 significant digits;
    /// 0 ^ 0 is 1. A fraction gives the positive root of a positive number where that is exact: 4 ^ 0.5 is 2, 2 ^ 0.5
    /// fails, and so does a negative number.
    ///
    /// # Errors
    /// `DivisionByZero` for zero with a negative exponent, `LimitExceeded` for too many digits.
    pub fn pow(&self, exponent: &Self) -> Result<Self> {
        if self.is_zero() && exponent.is_negative() {
            return Err(FormulaFailure::DivisionByZero);
        }
        let power = if exponent.rem(&Self::ONE)?.is_zero() {
            self.whole_power(&exponent.abs()?)?
        } else {
            self.root_power(&exponent.abs()?)?
        };
        if exponent.is_negative() { Self::ONE.div(&power) } else { Ok(power) }
    }

    fn whole_power(&self, exponent: &Self) -> Result<Self> {
        if self.abs()? == Self::ONE {
            let is_odd = !exponent.rem(&Self::from(2))?.is_zero();
            return if is_odd { Ok(self.clone()) } else { Ok(Self::ONE) };
        }
        if self.is_zero() && !exponent.is_zero() {
            return Ok(Self::ZERO);
        }
        // Any other number doubles its bits or its fraction digits at the latest after as many steps.
        let mut rest = exponent.to_whole().filter(|n| n.unsigned_abs() <= BITS_MAX).ok_or(TOO_LARGE)?;
        let (mut result, mut square) = (Self::ONE, self.clone());
        while rest > 0 {
            if rest % 2 == 1 {
                result = result.mul(&square)?;
            }
            rest /= 2;
            if rest > 0 {
                square = square.mul(&square)?;
            }
        }
        Ok(result)
    }

    /// A positive exponent p / q that is not whole: the q-th root to the power of p.
    fn root_power(&self, exponent: &Self) -> Result<Self> {
        if self.is_zero() || *self == Self::ONE {
            return Ok(self.clone());
        }
        let (p, q) = exponent.parts().and_then(|(mantissa, scale)| reduced(mantissa, scale)).ok_or(NOT_EXACT)?;
        let root = self.exact_root(q).ok_or(NOT_EXACT)?;
        root.whole_power(&p)
    }

    /// The decimal whose `degree`-th power this is. In its shortest form the fraction digits multiply as the exponents do.
    fn exact_root(&self, degree: u32) -> Option<Self> {
        let (mantissa, scale) = self.big_parts();
        if mantissa.sign() != Sign::Plus || u64::from(degree) > BITS_MAX || scale % degree != 0 {
            return None;
        }
        let root: BigInt = mantissa.nth_root(degree);
        (root.pow(degree) == mantissa).then(|| Self::from_big(root, scale / degree).ok()).flatten()
    }
}

/// `mantissa / 10^scale` in lowest terms; `None` when the denominator is beyond any root that could be exact.
fn reduced(mantissa: i128, scale: u32) -> Option<(Number, u32)> {
    let (mut p, mut q) = (mantissa, 10_i128.checked_pow(scale)?);
    for prime in [2, 5] {
        while p % prime == 0 && q % prime == 0 {
            p /= prime;
            q /= prime;
        }
    }
    Some((Number::from(i64::try_from(p).ok()?), u32::try_from(q).ok()?))
}
