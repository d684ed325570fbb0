//! A share of a full amount: exact fractions of seconds, rounded once (proration.md 3.2).

use domain::period::Period;
use domain::{Currency, Error, Money, Result};
use rust_decimal::Decimal;

/// How much of an interval is charged, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Seconds that are charged.
    pub numerator: i64,
    /// Seconds of the interval.
    pub denominator: i64,
}

impl Share {
    /// The share of a period in the interval that its price is for.
    #[must_use]
    pub fn of(period: Period, whole: Period) -> Self {
        Self { numerator: period.seconds(), denominator: whole.seconds() }
    }

    /// Whether everything is charged.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.numerator >= self.denominator
    }

    /// The rest of the interval.
    #[must_use]
    pub fn rest(self) -> Self {
        Self { numerator: self.denominator - self.numerator, denominator: self.denominator }
    }

    /// `full × numerator ÷ denominator`, rounded half away from zero at the currency's exponent; the factor is never
    /// rounded (rule 4).
    ///
    /// # Errors
    /// 422 when the amount leaves the range of money.
    pub fn apply(self, full: Money) -> Result<Money> {
        if self.is_whole() {
            return Ok(full);
        }
        let minor = full.amount().mantissa(); // whole minor units: a Money has its currency's scale
        let out_of_range = || Error::business_rule("the prorated amount is out of range");
        let product = minor.checked_mul(self.numerator.into()).ok_or_else(out_of_range)?;
        let denominator = i128::from(self.denominator.max(1));
        let (quotient, remainder) = (product / denominator, product % denominator);
        let away = if remainder.abs() * 2 >= denominator { product.signum() } else { 0 };
        money_of_minor(quotient + away, full.currency()).ok_or_else(out_of_range)
    }
}

fn money_of_minor(minor: i128, currency: Currency) -> Option<Money> {
    let amount = Decimal::try_from_i128_with_scale(minor, currency.exponent()).ok()?;
    Money::new(amount, currency).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn money(text: &str, currency: &str) -> Money {
        let currency = Currency::parse(currency).expect("known");
        Money::new(domain::money::parse_decimal(text).expect("a decimal"), currency).expect("an amount")
    }

    /// proration.md 3.3: credit and charge of the worked vectors.
    #[test]
    fn prorates_the_vectors() {
        const DAY: i64 = 86_400;
        for (name, full, currency, numerator, denominator, expected) in [
            ("P0 credit", "50.00", "EUR", 18 * DAY, 30 * DAY, "30.00"),
            ("P0 charge", "80.00", "EUR", 18 * DAY, 30 * DAY, "48.00"),
            ("P1", "150.00", "EUR", 15, 30, "75.00"),
            ("P2 credit", "49.00", "EUR", 21, 31, "33.19"),
            ("P2 charge", "99.00", "EUR", 21, 31, "67.06"),
            ("P3", "80.00", "EUR", 14, 28, "40.00"),
            ("P4 credit", "80.00", "EUR", 11, 31, "28.39"),
            ("P4 charge", "50.00", "EUR", 11, 31, "17.74"),
            ("P5", "31.00", "EUR", 12, 31, "12.00"),
            ("P6 credit", "1200.00", "EUR", 184, 365, "604.93"),
            ("P6 charge", "2400.00", "EUR", 184, 365, "1209.86"),
            ("P7", "49.00", "EUR", 20, 30, "32.67"),
            ("P8", "100.00", "EUR", 1_771_200, 2_592_000, "68.33"),
            ("P9", "1000", "JPY", 10, 30, "333"),
            ("P10", "10.000", "KWD", 12, 31, "3.871"),
            ("P11", "29.00", "EUR", 10, 29, "10.00"),
            ("P12 credit", "0.01", "EUR", 15, 30, "0.01"),
            ("P12 charge", "10.02", "EUR", 15, 30, "5.01"),
            ("negative", "-0.01", "EUR", 15, 30, "-0.01"),
        ] {
            let share = Share { numerator, denominator };
            assert_eq!(share.apply(money(full, currency)).expect("in range"), money(expected, currency), "{name}");
        }
    }

    #[test]
    fn the_rest_of_a_share_is_what_it_leaves() {
        assert_eq!(Share { numerator: 12, denominator: 31 }.rest(), Share { numerator: 19, denominator: 31 });
    }
}
