//! Amounts as Stripe counts them (https://docs.stripe.com/currencies): in the smallest unit, with exceptions.

use domain::{Currency, Money};
use rust_decimal::Decimal;

/// The amount in Stripe's units; `None` when it has more decimals than those.
///
/// | currency | exponent of Stripe |
/// |---|---|
/// | MGA | 0, although ISO 4217 counts fifths of it in two decimals |
/// | ISK, UGX | 2, although they have none: whole amounts only |
/// | BHD, JOD, KWD, OMR, TND | 3, and the last digit must be 0 |
/// | any other | that of ISO 4217 |
#[must_use]
pub fn minor_units(amount: Money) -> Option<u64> {
    let (exponent, step) = unit_of(amount.currency());
    let units = amount.amount().checked_mul(Decimal::from(10_u64.pow(exponent)))?.normalize();
    let units = u64::try_from(units).ok().filter(|_| units.scale() == 0)?;
    units.is_multiple_of(step).then_some(units)
}

/// The amount that so many of Stripe's units are; `None` for one that cannot be booked.
pub(crate) fn from_minor_units(units: u64, currency: Currency) -> Option<Money> {
    let amount = Decimal::try_from_i128_with_scale(i128::from(units), unit_of(currency).0).ok()?;
    Money::new(amount, currency).ok()
}

/// Stripe's exponent of a currency, and what an amount must be a multiple of.
fn unit_of(currency: Currency) -> (u32, u64) {
    match currency.as_str() {
        "MGA" => (0, 1),
        "ISK" | "UGX" => (2, 100),
        "BHD" | "JOD" | "KWD" | "OMR" | "TND" => (3, 10),
        _ => (currency.exponent(), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripe_counts_as_it_documents() {
        for (value, currency, expected) in [
            ("10.00", "EUR", Some(1000)),
            ("0.01", "USD", Some(1)),
            ("500", "JPY", Some(500)),
            ("7", "ISK", Some(700)),
            ("100", "UGX", Some(10_000)),
            ("5.120", "KWD", Some(5120)),
            ("5.124", "KWD", None),
            ("300.00", "MGA", Some(300)),
            ("300.20", "MGA", None),
            ("1.50", "HUF", Some(150)),
        ] {
            let currency = domain::Currency::parse(currency).unwrap();
            let amount = Money::new(domain::money::parse_decimal(value).unwrap(), currency).unwrap();
            assert_eq!(minor_units(amount), expected, "{amount}");
            let back = expected.map(|units| from_minor_units(units, currency));
            assert_eq!(back, expected.map(|_| Some(amount)), "{amount}");
        }
    }
}
