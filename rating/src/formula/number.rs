//! Numbers of formulas: exact decimals of any size (price-formulas.md, Limits).
//!
//! Sums, products, remainders and whole powers are exact. A quotient is exact where 28 significant digits hold it, else
//! rounded half-even to 28. What fits stays in 128 bits; the rest is kept in a `BigInt`. A number of more than about
//! 1,000 digits, before and after the point together, or more than 1,000 after it, is an error: with it the cost of one
//! step is bounded, and with the steps the cost of a formula.

mod power;
mod quotient;

use std::cmp::Ordering;
use std::fmt;

use domain::Quantity;
use num_bigint::{BigInt, Sign};
use rust_decimal::Decimal;

use super::{FormulaFailure, Result};
use crate::exact::Exact;
use domain::wide::power_of_ten;

/// Bits of a mantissa: 999 digits always fit, 1,001 never.
pub(super) const BITS_MAX: u64 = 3_322;
/// Fraction digits.
pub(super) const SCALE_MAX: u32 = 1_000;

const TOO_LARGE: FormulaFailure = FormulaFailure::LimitExceeded("a number has more than 1,000 digits");

/// An exact decimal.
#[derive(Clone, Debug)]
pub struct Number(Repr);

/// `mantissa × 10^-scale`. Big only where 128 bits do not hold it without its trailing zeros.
#[derive(Clone, Debug)]
enum Repr {
    Small { mantissa: i128, scale: u32 },
    Big(Box<Big>),
}

#[derive(Clone, Debug)]
struct Big {
    mantissa: BigInt,
    scale: u32,
}

/// Where a number between two neighbours goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// To the smaller one.
    Floor,
    /// To the larger one.
    Ceil,
    /// To the nearer one, from the middle away from zero.
    HalfAway,
    /// To the nearer one, from the middle to the even one.
    HalfEven,
}

impl Number {
    /// Nothing.
    pub const ZERO: Self = Self::small(0, 0);
    /// One.
    pub const ONE: Self = Self::small(1, 0);

    const fn small(mantissa: i128, scale: u32) -> Self {
        Self(Repr::Small { mantissa, scale })
    }

    /// Reads `-?digits[.digits]`; `None` for any other text and for more than 1,000 digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return None;
        }
        let fraction = fraction.trim_end_matches('0');
        let scale = u32::try_from(fraction.len()).ok().filter(|scale| *scale <= SCALE_MAX)?;
        let mantissa: String = [&text[..text.len() - unsigned.len()], whole, fraction].concat();
        match mantissa.parse() {
            Ok(mantissa) => Some(Self::small(mantissa, scale)),
            Err(_) => Self::settle(mantissa.parse().ok()?, scale).ok(),
        }
    }

    /// The shortest form of a large number.
    fn settle(mantissa: BigInt, scale: u32) -> Result<Self> {
        let (mantissa, scale) = trim_big(mantissa, scale);
        if scale > SCALE_MAX || mantissa.bits() > BITS_MAX {
            return Err(TOO_LARGE);
        }
        Ok(match i128::try_from(&mantissa) {
            Ok(mantissa) => Self::small(mantissa, scale),
            Err(_) => Self(Repr::Big(Box::new(Big { mantissa, scale }))),
        })
    }

    fn to_big(&self) -> (BigInt, u32) {
        match &self.0 {
            Repr::Small { mantissa, scale } => (BigInt::from(*mantissa), *scale),
            Repr::Big(big) => (big.mantissa.clone(), big.scale),
        }
    }

    /// Both mantissas at the larger of both scales.
    fn aligned(&self, other: &Self) -> (BigInt, BigInt, u32) {
        let ((a, a_scale), (b, b_scale)) = (self.to_big(), other.to_big());
        let scale = a_scale.max(b_scale);
        (a * ten(scale - a_scale), b * ten(scale - b_scale), scale)
    }

    /// As `aligned`, where 128 bits hold it.
    fn aligned_small(&self, other: &Self) -> Option<(i128, i128, u32)> {
        let (Repr::Small { mantissa: a, scale: a_scale }, Repr::Small { mantissa: b, scale: b_scale }) =
            (&self.0, &other.0)
        else {
            return None;
        };
        match a_scale.cmp(b_scale) {
            Ordering::Equal => Some((*a, *b, *a_scale)),
            Ordering::Less => Some((a.checked_mul(ten_small(b_scale - a_scale)?)?, *b, *b_scale)),
            Ordering::Greater => Some((*a, b.checked_mul(ten_small(a_scale - b_scale)?)?, *a_scale)),
        }
    }

    /// The exact sum.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub fn add(&self, other: &Self) -> Result<Self> {
        if let Some((a, b, scale)) = self.aligned_small(other)
            && let Some(sum) = a.checked_add(b)
        {
            return Ok(Self::small(sum, scale));
        }
        let (a, b, scale) = self.aligned(other);
        Self::settle(a + b, scale)
    }

    /// The exact difference.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub fn sub(&self, other: &Self) -> Result<Self> {
        if let Some((a, b, scale)) = self.aligned_small(other)
            && let Some(difference) = a.checked_sub(b)
        {
            return Ok(Self::small(difference, scale));
        }
        let (a, b, scale) = self.aligned(other);
        Self::settle(a - b, scale)
    }

    /// The exact product.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub fn mul(&self, other: &Self) -> Result<Self> {
        if let (Repr::Small { mantissa: a, scale: a_scale }, Repr::Small { mantissa: b, scale: b_scale }) =
            (&self.0, &other.0)
            && let Some(product) = a.checked_mul(*b).filter(|_| a_scale + b_scale <= SCALE_MAX)
        {
            return Ok(Self::small(product, a_scale + b_scale));
        }
        let ((a, a_scale), (b, b_scale)) = (self.to_big(), other.to_big());
        Self::settle(a * b, a_scale + b_scale)
    }

    /// The exact remainder of the quotient that is cut to a whole number; it has the sign of `self`.
    ///
    /// # Errors
    /// `DivisionByZero`, `LimitExceeded`.
    pub fn rem(&self, other: &Self) -> Result<Self> {
        if other.is_zero() {
            return Err(FormulaFailure::DivisionByZero);
        }
        if let Some((a, b, scale)) = self.aligned_small(other) {
            return Ok(Self::small(a.wrapping_rem(b), scale)); // only MIN % -1 would wrap, and that is 0
        }
        let (a, b, scale) = self.aligned(other);
        Self::settle(a % b, scale)
    }

    /// The opposite.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub fn neg(&self) -> Result<Self> {
        Self::ZERO.sub(self)
    }

    /// The magnitude.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub fn abs(&self) -> Result<Self> {
        if self.is_negative() { self.neg() } else { Ok(self.clone()) }
    }

    /// This number at most `digits` fraction digits; negative `digits` round before the point.
    pub(super) fn round(&self, digits: i32, rounding: Rounding) -> Result<Self> {
        let cut = i64::from(self.scale()) - i64::from(digits);
        let Some(cut) = u32::try_from(cut).ok().filter(|cut| *cut > 0) else {
            return Ok(self.clone());
        };
        if let Repr::Small { mantissa, .. } = &self.0
            && let Some(power) = ten_small(cut)
            && let Ok(scale) = u32::try_from(digits)
        {
            let (quotient, rest) = (mantissa / power, mantissa % power);
            let half = rest.unsigned_abs().cmp(&(power.unsigned_abs() - rest.unsigned_abs()));
            let step = rounding.step(rest.signum(), half, quotient % 2 != 0);
            return Ok(Self::small(quotient + i128::from(step), scale));
        }
        let (mantissa, _) = self.to_big();
        let power = ten(cut);
        let (quotient, rest) = (&mantissa / &power, &mantissa % &power);
        let half = (rest.magnitude() * 2_u32).cmp(power.magnitude());
        let step = rounding.step(sign(&rest), half, quotient.bit(0));
        let rounded = quotient + step;
        match u32::try_from(digits) {
            Ok(scale) => Self::settle(rounded, scale),
            Err(_) => Self::settle(rounded * ten(digits.unsigned_abs()), 0),
        }
    }

    /// The nearest number of at most `digits` fraction digits, half away from zero.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub fn rounded(&self, digits: u32) -> Result<Self> {
        self.round(i32::try_from(digits).unwrap_or(i32::MAX), Rounding::HalfAway)
    }

    /// As the value of a meter: half-even at 12 fraction digits (meters.md 5, Precision); `None` beyond the range.
    #[must_use]
    pub fn to_quantity(&self) -> Option<Quantity> {
        let scale = domain::quantity::SCALE;
        let rounded = self.round(i32::try_from(scale).ok()?, Rounding::HalfEven).ok()?;
        rounded.to_units(scale).map(Quantity::from_units)
    }

    /// Whether it is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        matches!(self.0, Repr::Small { mantissa: 0, .. })
    }

    /// Whether it is below zero.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        match &self.0 {
            Repr::Small { mantissa, .. } => *mantissa < 0,
            Repr::Big(big) => big.mantissa.sign() == Sign::Minus,
        }
    }

    fn scale(&self) -> u32 {
        match &self.0 {
            Repr::Small { scale, .. } => *scale,
            Repr::Big(big) => big.scale,
        }
    }

    /// The shortest form: whole numbers of 10^-scale, and the scale; `None` beyond 128 bits.
    #[must_use]
    pub fn parts(&self) -> Option<(i128, u32)> {
        match &self.0 {
            Repr::Small { mantissa, scale } => Some(trim_small(*mantissa, *scale)),
            Repr::Big(_) => None,
        }
    }

    /// The shortest form, of any size.
    pub(super) fn big_parts(&self) -> (BigInt, u32) {
        match &self.0 {
            Repr::Small { mantissa, scale } => {
                let (mantissa, scale) = trim_small(*mantissa, *scale);
                (BigInt::from(mantissa), scale)
            }
            Repr::Big(_) => self.to_big(),
        }
    }

    /// From whole numbers of 10^-`scale`.
    pub(super) fn from_big(mantissa: BigInt, scale: u32) -> Result<Self> {
        Self::settle(mantissa, scale)
    }

    /// The whole number that it is, where 64 bits hold it.
    pub(super) fn to_whole(&self) -> Option<i64> {
        let (mantissa, scale) = self.parts()?;
        i64::try_from(mantissa).ok().filter(|_| scale == 0)
    }

    /// The same number as a `Decimal`; `None` when its 28 digits cannot hold it.
    #[must_use]
    pub fn to_decimal(&self) -> Option<Decimal> {
        let (mantissa, scale) = self.parts()?;
        Decimal::try_from_i128_with_scale(mantissa, scale).ok()
    }

    /// The same number in whole 10^-`scale`; `None` when it has further digits or leaves 128 bits.
    #[must_use]
    pub fn to_units(&self, scale: u32) -> Option<i128> {
        let (mantissa, own) = self.parts()?;
        mantissa.checked_mul(ten_small(scale.checked_sub(own)?)?)
    }
}

impl Rounding {
    /// What is added to a quotient that was cut towards zero, when `sign` is that of the rest, `half` how the rest compares
    /// with one half, and `is_odd` whether the quotient is.
    fn step(self, sign: i128, half: Ordering, is_odd: bool) -> i8 {
        let is_up = match self {
            Self::Floor => sign < 0,
            Self::Ceil => sign > 0,
            Self::HalfAway => half != Ordering::Less,
            Self::HalfEven => half == Ordering::Greater || (half == Ordering::Equal && is_odd),
        };
        match sign {
            1 if is_up => 1,
            -1 if is_up => -1,
            _ => 0,
        }
    }
}

fn sign(number: &BigInt) -> i128 {
    match number.sign() {
        Sign::Minus => -1,
        Sign::NoSign => 0,
        Sign::Plus => 1,
    }
}

fn ten(exponent: u32) -> BigInt {
    match power_of_ten(exponent) {
        Some(power) => BigInt::from(power),
        None => BigInt::from(10).pow(exponent),
    }
}

fn ten_small(exponent: u32) -> Option<i128> {
    power_of_ten(exponent).and_then(|power| i128::try_from(power).ok())
}

/// Powers by which up to 47 trailing zeros are taken off; a number that ends in n zeros ends in n binary zeros as well.
const ZEROS: [u32; 6] = [16, 16, 8, 4, 2, 1];

fn trim_small(mut mantissa: i128, mut scale: u32) -> (i128, u32) {
    if mantissa == 0 {
        return (0, 0);
    }
    for zeros in ZEROS.into_iter().filter_map(|zeros| ten_small(zeros).map(|power| (zeros, power))) {
        if scale >= zeros.0 && mantissa.trailing_zeros() >= zeros.0 && mantissa % zeros.1 == 0 {
            mantissa /= zeros.1;
            scale -= zeros.0;
        }
    }
    (mantissa, scale)
}

fn trim_big(mut mantissa: BigInt, mut scale: u32) -> (BigInt, u32) {
    let mut zeros = 16;
    while scale > 0 && zeros > 0 {
        let may_end_so = zeros <= scale && mantissa.trailing_zeros().is_some_and(|bits| bits >= u64::from(zeros));
        let power = 10_u64.pow(zeros);
        if may_end_so && (&mantissa % power) == BigInt::ZERO {
            mantissa /= power;
            scale -= zeros;
        } else {
            zeros /= 2;
        }
    }
    if mantissa == BigInt::ZERO { (mantissa, 0) } else { (mantissa, scale) }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Number {}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    /// By value: 1.0 equals 1.
    fn cmp(&self, other: &Self) -> Ordering {
        if let Some((a, b, _)) = self.aligned_small(other) {
            return a.cmp(&b);
        }
        let (a, b, _) = self.aligned(other);
        a.cmp(&b)
    }
}

impl From<i64> for Number {
    fn from(whole: i64) -> Self {
        Self::small(whole.into(), 0)
    }
}

impl From<Quantity> for Number {
    fn from(quantity: Quantity) -> Self {
        let (mantissa, scale) = trim_small(quantity.units(), domain::quantity::SCALE);
        Self::small(mantissa, scale)
    }
}

impl From<Exact> for Number {
    fn from(quantity: Exact) -> Self {
        let (units, scale) = quantity.parts();
        let (mantissa, scale) = trim_small(units, scale);
        Self::small(mantissa, scale)
    }
}

impl From<Decimal> for Number {
    fn from(decimal: Decimal) -> Self {
        Self::small(decimal.mantissa(), decimal.scale())
    }
}

impl fmt::Display for Number {
    /// The canonical form of the wire: no trailing zeros, no exponent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mantissa, scale) = self.big_parts();
        let sign = if mantissa.sign() == Sign::Minus { "-" } else { "" };
        let scale = scale as usize;
        let digits = format!("{:0>width$}", mantissa.magnitude(), width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        f.pad(&if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
    }
}
