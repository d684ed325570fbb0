//! Amounts of money. A `Money` is booked: it has exactly the decimal places of its currency.

use rust_decimal::{Decimal, RoundingStrategy};
use serde::{Deserialize, Serialize, Serializer};

use crate::wide::{U256, power_of_ten, signed};
use crate::{Currency, RoundingMode};

/// A booked amount: a whole number of the currency's minor units, e.g. `{"value":"120.00","currency":"EUR"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Money {
    amount: Decimal,
    currency: Currency,
}

/// An amount that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// More fraction digits than the currency has.
    #[error("{currency} has {exponent} decimal places")]
    TooPrecise {
        /// The currency.
        currency: Currency,
        /// Its decimal places.
        exponent: u32,
    },
    /// Two currencies met in one sum.
    #[error("cannot combine {left} and {right}")]
    CurrencyMismatch {
        /// Currency of the left side.
        left: Currency,
        /// Currency of the right side.
        right: Currency,
    },
    /// The sum leaves the range of 20 integer digits.
    #[error("amount is out of range")]
    OutOfRange,
}

/// Largest magnitude of an amount: far above any bill, far below where `Decimal` starts to round.
const AMOUNT_MAX: Decimal = Decimal::from_parts(0x6310_0000, 0x6BC7_5E2D, 0x5, false, 0); // 10^20

impl Money {
    /// An exact amount.
    ///
    /// # Errors
    /// `TooPrecise` when it has more fraction digits than the currency, `OutOfRange` beyond 20 integer digits.
    pub fn new(amount: Decimal, currency: Currency) -> Result<Self, MoneyError> {
        let exponent = currency.exponent();
        if amount.normalize().scale() > exponent {
            return Err(MoneyError::TooPrecise { currency, exponent });
        }
        Self::round(amount, currency)
    }

    /// An amount in minor units: cents, or whatever the currency's smallest booked unit is.
    ///
    /// # Errors
    /// `OutOfRange` beyond 20 integer digits.
    pub fn from_minor(minor: i128, currency: Currency) -> Result<Self, MoneyError> {
        match Decimal::try_from_i128_with_scale(minor, currency.exponent()) {
            Ok(amount) if amount.abs() < AMOUNT_MAX => Ok(Self { amount, currency }),
            _ => Err(MoneyError::OutOfRange),
        }
    }

    /// Rounds a rated amount, half away from zero, at the currency's exponent (pricing-models.md).
    ///
    /// # Errors
    /// `OutOfRange` beyond 20 integer digits.
    pub fn round(exact: Decimal, currency: Currency) -> Result<Self, MoneyError> {
        Self::round_as(exact, currency, RoundingMode::HalfUp)
    }

    /// Rounds at the currency's exponent in the mode that a workspace has chosen for it (currencies.md 4).
    ///
    /// # Errors
    /// `OutOfRange` beyond 20 integer digits.
    pub fn round_as(exact: Decimal, currency: Currency, mode: RoundingMode) -> Result<Self, MoneyError> {
        let exponent = currency.exponent();
        let strategy = match mode {
            RoundingMode::HalfUp => RoundingStrategy::MidpointAwayFromZero,
            RoundingMode::HalfEven => RoundingStrategy::MidpointNearestEven,
            RoundingMode::Up => RoundingStrategy::AwayFromZero,
            RoundingMode::Down => RoundingStrategy::ToZero,
        };
        let mut amount = exact.round_dp_with_strategy(exponent, strategy);
        if amount.abs() >= AMOUNT_MAX {
            return Err(MoneyError::OutOfRange);
        }
        amount.rescale(exponent);
        if amount.is_zero() {
            amount.set_sign_positive(true);
        }
        Ok(Self { amount, currency })
    }

    /// This amount times `rate` in another currency (fx.md 4): the product is exact however many digits it has (P15) and is
    /// rounded once, at the exponent of `to`.
    ///
    /// # Errors
    /// `OutOfRange` for a rate that is not positive, and beyond 20 integer digits.
    pub fn convert(self, rate: Decimal, to: Currency, mode: RoundingMode) -> Result<Self, MoneyError> {
        if rate.is_sign_negative() || rate.is_zero() {
            return Err(MoneyError::OutOfRange);
        }
        // The product has `scale` fraction digits, of which `to` keeps its own.
        let (scale, kept) = (self.amount.scale() + rate.scale(), to.exponent());
        let magnitude = |number: Decimal| number.mantissa().unsigned_abs();
        let factor = magnitude(rate).checked_mul(power_of_ten(kept.saturating_sub(scale)).unwrap_or(0));
        let product = U256::product(magnitude(self.amount), factor.ok_or(MoneyError::OutOfRange)?);
        let minor = power_of_ten(scale.saturating_sub(kept)).and_then(|divisor| divided(product, divisor, mode));
        let minor = minor.and_then(|minor| signed(minor, self.is_negative())).ok_or(MoneyError::OutOfRange)?;
        Self::from_minor(minor, to)
    }

    /// This amount divided by `rate`: what in `to` is worth as much, where `rate` is the one from `to` to this currency. Exact
    /// before it is rounded once, half away from zero.
    ///
    /// # Errors
    /// `OutOfRange` for a rate that is not positive, and beyond 20 integer digits.
    pub fn convert_back(self, rate: Decimal, to: Currency) -> Result<Self, MoneyError> {
        if rate.is_sign_negative() || rate.is_zero() {
            return Err(MoneyError::OutOfRange);
        }
        let magnitude = |number: Decimal| number.mantissa().unsigned_abs();
        let (more, fewer) = (rate.scale() + to.exponent(), self.amount.scale());
        let power = |exponent: u32| power_of_ten(exponent).ok_or(MoneyError::OutOfRange);
        let numerator = U256::product(magnitude(self.amount), power(more.saturating_sub(fewer))?);
        let divisor = magnitude(rate).checked_mul(power(fewer.saturating_sub(more))?).ok_or(MoneyError::OutOfRange)?;
        let minor = divided(numerator, divisor, RoundingMode::HalfUp);
        let minor = minor.and_then(|minor| signed(minor, self.is_negative())).ok_or(MoneyError::OutOfRange)?;
        Self::from_minor(minor, to)
    }

    /// Nothing, in this currency.
    #[must_use]
    pub fn zero(currency: Currency) -> Self {
        let mut amount = Decimal::ZERO;
        amount.rescale(currency.exponent());
        Self { amount, currency }
    }

    /// The amount, at the currency's exponent.
    #[must_use]
    pub fn amount(&self) -> Decimal {
        self.amount
    }

    /// The currency.
    #[must_use]
    pub fn currency(&self) -> Currency {
        self.currency
    }

    /// The exact sum.
    ///
    /// # Errors
    /// `CurrencyMismatch`, `OutOfRange`.
    #[allow(clippy::should_implement_trait, reason = "a sum of money can fail")]
    pub fn add(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::CurrencyMismatch { left: self.currency, right: other.currency });
        }
        // Exact, and at the same scale: both have at most 20 integer and 4 fraction digits, within the 28 of a Decimal.
        let mut amount = self.amount + other.amount;
        if amount.abs() >= AMOUNT_MAX {
            return Err(MoneyError::OutOfRange);
        }
        if amount.is_zero() {
            amount.set_sign_positive(true);
        }
        Ok(Self { amount, currency: self.currency })
    }

    /// The exact difference.
    ///
    /// # Errors
    /// `CurrencyMismatch`, `OutOfRange`.
    #[allow(clippy::should_implement_trait, reason = "a difference of money can fail")]
    pub fn sub(self, other: Self) -> Result<Self, MoneyError> {
        self.add(other.negate())
    }

    /// The amount with the other sign.
    #[must_use]
    pub fn negate(self) -> Self {
        let amount = if self.amount.is_zero() { self.amount } else { -self.amount };
        Self { amount, currency: self.currency }
    }

    /// Whether it is exactly zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.amount.is_zero()
    }

    /// Whether it is below zero.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.amount.is_sign_negative() && !self.amount.is_zero()
    }
}

/// A magnitude divided and rounded to a whole number.
fn divided(numerator: U256, divisor: u128, mode: RoundingMode) -> Option<u128> {
    let (quotient, remainder) = numerator.div_rem(divisor)?;
    let missing = divisor - remainder; // to the next whole number
    let up = match mode {
        RoundingMode::HalfUp => remainder >= missing,
        RoundingMode::HalfEven => remainder > missing || (remainder == missing && quotient % 2 == 1),
        RoundingMode::Up => remainder > 0,
        RoundingMode::Down => false,
    };
    quotient.checked_add(u128::from(up))
}

impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{} {}", self.amount, self.currency))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MoneyWire {
    value: String,
    currency: Currency,
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        MoneyWire { value: self.amount.to_string(), currency: self.currency }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = MoneyWire::deserialize(deserializer)?;
        let amount = parse_decimal(&wire.value).ok_or_else(|| serde::de::Error::custom("not a decimal string"))?;
        Self::new(amount, wire.currency).map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Money {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .property("value", decimal_schema("Decimal string, padded to the currency's exponent"))
            .required("value")
            .property("currency", <Currency as utoipa::PartialSchema>::schema())
            .required("currency")
            .into()
    }
}

impl utoipa::ToSchema for Money {
    fn name() -> std::borrow::Cow<'static, str> {
        "Money".into()
    }
}

/// Schema of a decimal string.
#[must_use]
pub fn decimal_schema(description: &str) -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::Type::String)
        .description(Some(description))
        .pattern(Some(r"^-?\d+(\.\d+)?$"))
        .into()
}

/// Reads a plain decimal string `-?digits[.digits]` of at most 28 digits, without losing one (conventions.md, wire rules).
#[must_use]
pub fn parse_decimal(text: &str) -> Option<Decimal> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = match digits.split_once('.') {
        Some((whole, fraction)) => !whole.is_empty() && !fraction.is_empty() && digits.len() <= 29,
        None => !digits.is_empty() && digits.len() <= 28,
    };
    if !plain || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    Decimal::from_str_exact(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        parse_decimal(text).expect("a decimal")
    }

    #[test]
    fn rounds_half_away_from_zero_at_the_exponent() {
        let jpy = Currency::parse("JPY").expect("known");
        let kwd = Currency::parse("KWD").expect("known");
        for (exact, currency, text) in [
            ("12.345", Currency::EUR, "12.35 EUR"),
            ("-12.345", Currency::EUR, "-12.35 EUR"),
            ("0.004", Currency::EUR, "0.00 EUR"),
            ("-0.004", Currency::EUR, "0.00 EUR"),
            ("0.5", jpy, "1 JPY"),
            ("1.0005", kwd, "1.001 KWD"),
            ("5", Currency::EUR, "5.00 EUR"),
        ] {
            assert_eq!(Money::round(decimal(exact), currency).map(|m| m.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn rounds_in_the_mode_of_the_currency() {
        use RoundingMode::{Down, HalfEven, HalfUp, Up};
        for (exact, half_up, half_even, up, down) in [
            ("12.345", "12.35", "12.34", "12.35", "12.34"),
            ("12.355", "12.36", "12.36", "12.36", "12.35"),
            ("-12.345", "-12.35", "-12.34", "-12.35", "-12.34"),
            ("12.341", "12.34", "12.34", "12.35", "12.34"),
            ("12.34", "12.34", "12.34", "12.34", "12.34"),
            ("-0.001", "0.00", "0.00", "-0.01", "0.00"),
        ] {
            for (mode, text) in [(HalfUp, half_up), (HalfEven, half_even), (Up, up), (Down, down)] {
                let rounded = Money::round_as(decimal(exact), Currency::EUR, mode).expect("in range");
                assert_eq!(rounded.amount().to_string(), text, "{exact} {mode}");
                // A conversion rounds in the same way.
                let exact = decimal(exact) * decimal("0.1");
                let ten = Money::new(decimal("10"), Currency::USD).expect("in range");
                if exact.is_sign_positive() {
                    let converted = ten.convert(exact, Currency::EUR, mode).expect("in range");
                    assert_eq!(converted, rounded, "{exact} {mode}");
                }
            }
        }
    }

    #[test]
    fn converts_as_the_reference_says() {
        for (amount, from, rate, to, converted) in [
            ("100.00", "EUR", "1.0853", "USD", "108.53"),
            ("19.99", "EUR", "1.0853", "USD", "21.70"),
            ("1000", "JPY", "0.0061", "EUR", "6.10"),
            ("10.00", "EUR", "163.45", "JPY", "1635"),
            ("-10.00", "EUR", "163.45", "JPY", "-1635"),
            ("1", "JPY", "0.0019", "KWD", "0.002"),
            ("0.001", "KWD", "2.9", "EUR", "0.00"),
            ("5", "JPY", "2", "KWD", "10.000"),
            ("0.00", "EUR", "1.0853", "USD", "0.00"),
            // 32 digits: `checked_mul` would round before the end.
            ("99999999999999.99", "EUR", "123456.7890123456", "USD", "12345678901234558765.43"),
        ] {
            let currency = |code| Currency::parse(code).expect("known");
            let money = Money::new(decimal(amount), currency(from)).expect("in range");
            let result = money.convert(decimal(rate), currency(to), RoundingMode::HalfUp).expect("in range");
            assert_eq!(result.to_string(), format!("{converted} {to}"), "{amount} {from} at {rate}");
        }
        let money = Money::new(decimal("99999999999999999999.99"), Currency::EUR).expect("in range");
        for rate in ["0", "-1", "1.01", "999999999.9999999999"] {
            let refused = money.convert(decimal(rate), Currency::USD, RoundingMode::HalfUp);
            assert_eq!(refused, Err(MoneyError::OutOfRange), "{rate}");
        }
    }

    #[test]
    fn converts_back() {
        for (amount, from, rate, to, converted) in [
            ("108.53", "USD", "1.0853", "EUR", "100.00"),
            ("50.00", "USD", "1.0853", "EUR", "46.07"), // 46.0702…
            ("1635", "JPY", "163.45", "EUR", "10.00"),
            ("0.005", "KWD", "2", "JPY", "0"),
            ("7.000", "KWD", "2", "JPY", "4"),
            ("-7.000", "KWD", "2", "JPY", "-4"),
            ("99999999999999.99", "USD", "0.0000000012", "KWD", ""),
        ] {
            let currency = |code| Currency::parse(code).expect("known");
            let money = Money::new(decimal(amount), currency(from)).expect("in range");
            let back = money.convert_back(decimal(rate), currency(to)).map(|money| money.to_string());
            let expected =
                if converted.is_empty() { Err(MoneyError::OutOfRange) } else { Ok(format!("{converted} {to}")) };
            assert_eq!(back, expected, "{amount} {from} at {rate}");
        }
    }

    proptest::proptest! {
        #[test]
        fn conversions_agree_with_big_integers(
            minor in -(10_i128.pow(20))..10_i128.pow(20),
            rate in 1_i128..10_i128.pow(19),
            scale in 0_u32..=10,
            (from, to) in (0_usize..4, 0_usize..4),
            mode in 0_usize..4,
        ) {
            use num_bigint::BigInt;
            use crate::wire::Word;
            let currencies = ["JPY", "EUR", "KWD", "CLF"].map(|code| Currency::parse(code).expect("known"));
            let (from, to, mode) = (currencies[from], currencies[to], RoundingMode::ALL[mode]);
            let Ok(money) = Money::from_minor(minor, from) else { return Ok(()) };
            let converted = money.convert(Decimal::from_i128_with_scale(rate, scale), to, mode);
            let ten = |exponent: u32| BigInt::from(10).pow(exponent);
            // amount × rate in minor units of `to`, as a fraction.
            let numerator = BigInt::from(minor) * BigInt::from(rate) * ten(to.exponent());
            let divisor = ten(from.exponent() + scale);
            let magnitude = BigInt::from(numerator.magnitude().clone());
            let (quotient, rest) = (&magnitude / &divisor, &magnitude % &divisor);
            let twice = &rest * 2;
            let is_odd = &quotient % 2 == BigInt::from(1);
            let up = match mode {
                RoundingMode::HalfUp => twice >= divisor,
                RoundingMode::HalfEven => twice > divisor || (twice == divisor && is_odd),
                RoundingMode::Up => rest > BigInt::from(0),
                RoundingMode::Down => false,
            };
            let expected = (quotient + u8::from(up)) * minor.signum();
            match converted {
                Ok(converted) => proptest::prop_assert_eq!(BigInt::from(converted.amount().mantissa()), expected),
                Err(error) => {
                    proptest::prop_assert_eq!(error, MoneyError::OutOfRange);
                    proptest::prop_assert!(BigInt::from(expected.magnitude().clone()) >= ten(20 + to.exponent()));
                }
            }
        }
    }

    #[test]
    fn refuses_what_cannot_be_booked() {
        assert!(matches!(Money::new(decimal("1.001"), Currency::EUR), Err(MoneyError::TooPrecise { .. })));
        assert!(matches!(Money::new(decimal("100000000000000000000"), Currency::EUR), Err(MoneyError::OutOfRange)));
        assert!(Money::new(decimal("99999999999999999999.99"), Currency::EUR).is_ok());
        let euro = Money::zero(Currency::EUR);
        assert!(matches!(euro.add(Money::zero(Currency::USD)), Err(MoneyError::CurrencyMismatch { .. })));
        for wrong in ["", "-", "1.", ".1", "1e3", "+1", "1,0", "١"] {
            assert_eq!(parse_decimal(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn minor_units_and_sums_are_exact() {
        let jpy = Currency::parse("JPY").expect("known");
        let minor = |minor, currency| Money::from_minor(minor, currency);
        assert_eq!(minor(-1_234_567, Currency::EUR), Money::new(decimal("-12345.67"), Currency::EUR));
        assert_eq!(minor(0, Currency::EUR).map(|m| m.to_string()).as_deref(), Ok("0.00 EUR"));
        let largest = 10_i128.pow(20) - 1;
        let most = minor(largest, jpy).expect("in range");
        assert_eq!(minor(largest + 1, jpy), Err(MoneyError::OutOfRange));
        assert_eq!(minor(i128::MIN, jpy), Err(MoneyError::OutOfRange));
        assert_eq!(most.add(minor(1, jpy).expect("in range")), Err(MoneyError::OutOfRange));
        assert_eq!(most.sub(most).map(|m| m.to_string()).as_deref(), Ok("0 JPY"));
        assert_eq!(minor(-150, Currency::EUR).and_then(|m| m.add(m)), minor(-300, Currency::EUR));
    }

    #[test]
    fn travels_as_value_and_currency() {
        let money = Money::round(decimal("120"), Currency::EUR).expect("in range");
        let json = serde_json::to_string(&money).expect("serializes");
        assert_eq!(json, r#"{"value":"120.00","currency":"EUR"}"#);
        assert_eq!(serde_json::from_str::<Money>(&json).expect("parses"), money);
        assert!(serde_json::from_str::<Money>(r#"{"value":120.00,"currency":"EUR"}"#).is_err());
    }
}
