//! Quantities and running sums: whole numbers of 10⁻¹² in an `i128`.
//!
//! `Decimal::checked_add` rounds in silence when its 28 digits are full (PERFORMANCE P15), so sums are kept here: addition
//! is exact or an error. One quantity of an event has at most 15 integer and 12 fraction digits (conventions.md); a sum may
//! grow to 26 integer digits.

use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Fraction digits of a quantity.
pub const SCALE: u32 = 12;
const ONE: i128 = 1_000_000_000_000;
/// Largest magnitude of one event's quantity: 15 integer digits.
const INPUT_MAX: i128 = 1_000_000_000_000_000 * ONE;

/// An exact decimal with 12 fraction digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(i128);

/// A number that is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form `-?digits[.digits]`.
    #[error("must be a decimal number such as \"2.5\"")]
    Format,
    /// More than 15 integer or 12 fraction digits, or a sum that leaves the range.
    #[error("must have at most 15 integer and 12 fraction digits")]
    OutOfRange,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One unit.
    pub const ONE: Self = Self(ONE);

    /// From whole numbers of 10⁻¹².
    #[must_use]
    pub const fn from_units(units: i128) -> Self {
        Self(units)
    }

    /// Whole numbers of 10⁻¹².
    #[must_use]
    pub const fn units(self) -> i128 {
        self.0
    }

    /// A whole number.
    #[must_use]
    pub const fn from_int(value: i64) -> Self {
        Self(value as i128 * ONE)
    }

    /// Reads a decimal number with at most 15 integer and 12 fraction digits; `1e3` is accepted as JSON numbers are.
    ///
    /// # Errors
    /// `Format` for anything that is no decimal number, `OutOfRange` for too many digits.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let value = Self::parse_plain(text.as_bytes()).or_else(|error| match error {
            QuantityError::Format if text.contains(['e', 'E']) => Self::parse_scientific(text),
            other => Err(other),
        })?;
        if value.0.abs() >= INPUT_MAX { Err(QuantityError::OutOfRange) } else { Ok(value) }
    }

    fn parse_plain(text: &[u8]) -> Result<Self, QuantityError> {
        let (negative, digits) = match text.split_first() {
            Some((b'-', rest)) => (true, rest),
            _ => (false, text),
        };
        let (mut units, mut integer, mut fraction) = (0_i128, 0_u32, None::<u32>);
        for &byte in digits {
            match byte {
                b'0'..=b'9' => {
                    match &mut fraction {
                        None => integer += 1,
                        Some(count) if *count == SCALE => {
                            if byte == b'0' {
                                continue; // further zeros add nothing
                            }
                            return Err(QuantityError::OutOfRange);
                        }
                        Some(count) => *count += 1,
                    }
                    units = units
                        .checked_mul(10)
                        .and_then(|u| u.checked_add(i128::from(byte - b'0')))
                        .ok_or(QuantityError::OutOfRange)?;
                }
                b'.' if fraction.is_none() && integer > 0 => fraction = Some(0),
                _ => return Err(QuantityError::Format),
            }
        }
        if integer == 0 || fraction == Some(0) {
            return Err(QuantityError::Format);
        }
        let missing = SCALE - fraction.unwrap_or(0);
        let units = units.checked_mul(10_i128.pow(missing)).ok_or(QuantityError::OutOfRange)?;
        Ok(Self(if negative { -units } else { units }))
    }

    fn parse_scientific(text: &str) -> Result<Self, QuantityError> {
        let decimal = Decimal::from_scientific(text).map_err(|_| QuantityError::Format)?;
        Self::try_from_decimal(decimal)
    }

    /// From a decimal with at most 12 significant fraction digits.
    ///
    /// # Errors
    /// `OutOfRange` when a digit would be lost.
    pub fn try_from_decimal(value: Decimal) -> Result<Self, QuantityError> {
        let value = value.normalize();
        let missing = SCALE.checked_sub(value.scale()).ok_or(QuantityError::OutOfRange)?;
        value.mantissa().checked_mul(10_i128.pow(missing)).map(Self).ok_or(QuantityError::OutOfRange)
    }

    /// As a decimal, without trailing zeros.
    ///
    /// # Errors
    /// `OutOfRange` when the number has more digits than a `Decimal` holds (28).
    pub fn to_decimal(self) -> Result<Decimal, QuantityError> {
        let (mut units, mut scale) = (self.0, SCALE);
        while scale > 0 && units % 10 == 0 {
            units /= 10;
            scale -= 1;
        }
        Decimal::try_from_i128_with_scale(units, scale).map_err(|_| QuantityError::OutOfRange)
    }

    /// The exact sum.
    ///
    /// # Errors
    /// `OutOfRange` when it leaves the range of `i128`.
    pub fn checked_add(self, other: Self) -> Result<Self, QuantityError> {
        self.0.checked_add(other.0).map(Self).ok_or(QuantityError::OutOfRange)
    }

    /// The exact difference.
    ///
    /// # Errors
    /// `OutOfRange` when it leaves the range of `i128`.
    pub fn checked_sub(self, other: Self) -> Result<Self, QuantityError> {
        self.0.checked_sub(other.0).map(Self).ok_or(QuantityError::OutOfRange)
    }

    /// `self - other`, at least zero.
    #[must_use]
    pub fn saturating_less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0).max(0))
    }

    /// Whether it is below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// Whether it is zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no trailing zeros, no exponent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let units = self.0.unsigned_abs();
        let (whole, fraction) = (units / ONE.unsigned_abs(), units % ONE.unsigned_abs());
        if fraction == 0 {
            return f.pad(&format!("{sign}{whole}"));
        }
        let digits = format!("{fraction:012}");
        f.pad(&format!("{sign}{whole}.{}", digits.trim_end_matches('0')))
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl From<i64> for Quantity {
    fn from(value: i64) -> Self {
        Self::from_int(value)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a decimal string")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                Quantity::parse(text).map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Quantity, E> {
                Quantity::parse(&value.to_string()).map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Quantity, E> {
                Quantity::parse(&value.to_string()).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl sqlx::Type<sqlx::Postgres> for Quantity {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        <Decimal as sqlx::Type<sqlx::Postgres>>::type_info()
    }
}

impl sqlx::postgres::PgHasArrayType for Quantity {
    fn array_type_info() -> sqlx::postgres::PgTypeInfo {
        <Decimal as sqlx::postgres::PgHasArrayType>::array_type_info()
    }
}

impl sqlx::Encode<'_, sqlx::Postgres> for Quantity {
    fn encode_by_ref(
        &self,
        buf: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        <Decimal as sqlx::Encode<'_, sqlx::Postgres>>::encode_by_ref(&self.to_decimal()?, buf)
    }
}

impl<'r> sqlx::Decode<'r, sqlx::Postgres> for Quantity {
    fn decode(value: sqlx::postgres::PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        Ok(Self::try_from_decimal(<Decimal as sqlx::Decode<'r, sqlx::Postgres>>::decode(value)?)?)
    }
}

impl utoipa::PartialSchema for Quantity {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        crate::money::decimal_schema("Decimal string, at most 15 integer and 12 fraction digits")
    }
}

impl utoipa::ToSchema for Quantity {
    fn name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }
}

#[cfg(test)]
mod tests {
    use super::{Quantity, QuantityError};
    use num_bigint::BigInt;
    use proptest::prelude::*;

    #[test]
    fn reads_and_prints_the_canonical_form() {
        for (input, output) in [
            ("1", "1"),
            ("2.50", "2.5"),
            ("-0.000000000001", "-0.000000000001"),
            ("3600", "3600"),
            ("0", "0"),
            ("-0", "0"),
            ("999999999999999.999999999999", "999999999999999.999999999999"),
            ("1e3", "1000"),
            ("1.0000000000000", "1"),
        ] {
            assert_eq!(Quantity::parse(input).map(|q| q.to_string()).as_deref(), Ok(output), "{input}");
        }
        for wrong in ["", "-", ".5", "5.", "1,5", "abc", "+1", "0x1", "1 "] {
            assert_eq!(Quantity::parse(wrong), Err(QuantityError::Format), "{wrong}");
        }
        for large in ["1000000000000000", "0.0000000000001", "99999999999999999999999999999999999999999"] {
            assert_eq!(Quantity::parse(large), Err(QuantityError::OutOfRange), "{large}");
        }
    }

    #[test]
    fn the_eighty_first_sum_loses_no_digit() {
        let one = Quantity::parse("999999999999999.999999999999").expect("in range");
        let sum = (0..81).try_fold(Quantity::ZERO, |sum, _| sum.checked_add(one)).expect("in range");
        assert_eq!(sum.to_string(), "80999999999999999.999999999919");
    }

    proptest! {
        #[test]
        fn sums_agree_with_big_integers(values in prop::collection::vec(-INPUT..INPUT, 1..200)) {
            let sum = values.iter().try_fold(Quantity::ZERO, |sum, v| sum.checked_add(Quantity::from_units(*v))).expect("in range");
            let exact: BigInt = values.iter().map(|v| BigInt::from(*v)).sum();
            prop_assert_eq!(BigInt::from(sum.units()), exact);
        }

        #[test]
        fn text_round_trips(units in -INPUT..INPUT) {
            let quantity = Quantity::from_units(units);
            prop_assert_eq!(Quantity::parse(&quantity.to_string()), Ok(quantity));
        }
    }

    const INPUT: i128 = super::INPUT_MAX;
}
