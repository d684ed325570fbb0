//! What lines come to (settlements.md 4).

use domain::{Currency, Error, Money, Result};
use rust_decimal::Decimal;

use super::model::SettlementLineType;

/// The five amounts of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sums {
    pub gross_earnings: Money,
    pub total_fees: Money,
    pub total_fee_tax: Money,
    pub total_withholding: Money,
}

impl Sums {
    /// Of lines, each with its type, amount and tax.
    pub fn of(
        currency: Currency,
        lines: impl IntoIterator<Item = (SettlementLineType, Money, Option<Money>)>,
    ) -> Result<Self> {
        use SettlementLineType as Type;
        let zero = Money::zero(currency);
        let mut sums = Self { gross_earnings: zero, total_fees: zero, total_fee_tax: zero, total_withholding: zero };
        for (line_type, amount, tax) in lines {
            match line_type {
                Type::Earning | Type::Adjustment => sums.gross_earnings = sums.gross_earnings.add(amount)?,
                Type::Refund | Type::Chargeback => sums.gross_earnings = sums.gross_earnings.sub(amount)?,
                Type::Commission | Type::Fee => sums.total_fees = sums.total_fees.add(amount)?,
                Type::Withholding => sums.total_withholding = sums.total_withholding.add(amount)?,
            }
            sums.total_fee_tax = sums.total_fee_tax.add(tax.unwrap_or(zero))?;
        }
        Ok(sums)
    }

    /// What is owed.
    pub fn net_payout(&self) -> Result<Money> {
        Ok(self.gross_earnings.sub(self.total_fees)?.sub(self.total_fee_tax)?.sub(self.total_withholding)?)
    }
}

/// Tax on a fee at a rate in percent: rounded half up, each line by itself.
pub(super) fn tax_on(amount: Money, rate: Decimal) -> Result<Money> {
    let exact = amount.amount().checked_mul(rate).map(|product| product / Decimal::ONE_HUNDRED);
    let exact = exact.ok_or_else(|| Error::business_rule("the tax is out of range"))?;
    Ok(Money::round(exact, amount.currency())?)
}

#[cfg(test)]
mod tests {
    use domain::money::parse_decimal;
    use proptest::prelude::*;

    use super::*;

    fn eur(text: &str) -> Money {
        Money::new(parse_decimal(text).expect("a decimal"), Currency::EUR).expect("cents")
    }

    /// settlements.md, Test vectors.
    #[test]
    fn the_vector_of_the_reference() {
        use SettlementLineType as Type;
        let nineteen = Decimal::from(19);
        let fee = |line_type, amount| (line_type, eur(amount), Some(tax_on(eur(amount), nineteen).expect("in range")));
        let lines = [
            (Type::Earning, eur("1000.00"), None),
            (Type::Refund, eur("50.00"), None),
            fee(Type::Commission, "95.00"),
            fee(Type::Fee, "5.00"),
        ];
        assert_eq!((lines[2].2, lines[3].2), (Some(eur("18.05")), Some(eur("0.95"))));
        let sums = Sums::of(Currency::EUR, lines).expect("in range");
        assert_eq!((sums.gross_earnings, sums.total_fees), (eur("950.00"), eur("100.00")));
        assert_eq!((sums.total_fee_tax, sums.total_withholding), (eur("19.00"), eur("0.00")));
        assert_eq!(sums.net_payout().expect("in range"), eur("831.00"));
    }

    proptest! {
        /// Whatever the order of the lines: every cent of them is in exactly one of the sums.
        #[test]
        fn every_line_counts_once(lines in proptest::collection::vec((0_usize..7, 1_i64..10_000_000, 0_i64..30), 0..20)) {
            use domain::wire::Word;
            let cents = |number: i64| Money::new(Decimal::new(number, 2), Currency::EUR).expect("cents");
            let mut expected = Decimal::ZERO;
            let mut all = Vec::new();
            for (index, amount, rate) in lines {
                let line_type = SettlementLineType::ALL[index];
                let tax = line_type.is_fee().then(|| tax_on(cents(amount), Decimal::from(rate)).expect("in range"));
                let sign = match line_type {
                    SettlementLineType::Earning | SettlementLineType::Adjustment => Decimal::ONE,
                    _ => Decimal::NEGATIVE_ONE,
                };
                expected += sign * cents(amount).amount() - tax.map_or(Decimal::ZERO, |tax| tax.amount());
                all.push((line_type, cents(amount), tax));
            }
            let forth = Sums::of(Currency::EUR, all.clone()).expect("in range");
            all.reverse();
            prop_assert_eq!(forth, Sums::of(Currency::EUR, all).expect("in range"));
            prop_assert_eq!(forth.net_payout().expect("in range").amount(), expected);
        }
    }
}
