//! Tax. Rules are not built yet; an organization without rules has no tax: category O ("outside the scope"), 0 %.
//!
//! The shape is that of the rules to come: tax is computed per group of category and rate on the sum of the rounded net
//! amounts, rounded once, and shared out to the lines by largest remainder (invoices.md 4, Rounding).

use domain::{Currency, Money, Result, TaxCategoryCode};
use rust_decimal::Decimal;

use super::{Draft, DraftLine};
use crate::invoice::model::InvoiceTaxBreakdownRow;

/// Gives every line its tax, and the draft its breakdown.
pub(super) fn apply(draft: &mut Draft) -> Result<()> {
    let currency = draft.totals.total.currency();
    let mut groups: Vec<(TaxCategoryCode, Decimal)> = Vec::new();
    for line in &draft.lines {
        let group = (line.tax.category, line.tax.rate);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    for (category, rate) in groups {
        let in_group = |line: &&mut DraftLine| (line.tax.category, line.tax.rate) == (category, rate);
        let mut lines: Vec<_> = draft.lines.iter_mut().filter(in_group).collect();
        let nets: Vec<_> = lines.iter().map(|line| line.amount).collect();
        let (tax, shares) = group_tax(&nets, rate, currency)?;
        for (line, share) in lines.iter_mut().zip(shares) {
            line.tax.amount = share;
        }
        let taxable_amount = nets.into_iter().try_fold(Money::zero(currency), Money::add)?;
        draft.tax_breakdown.push(InvoiceTaxBreakdownRow {
            tax_category_code: category,
            rate,
            taxable_amount,
            tax_amount: tax,
            exemption_code: None,
            exemption_reason: None,
        });
    }
    Ok(())
}

/// Tax of one group and each line's share of it: the shares add up to the tax exactly.
fn group_tax(nets: &[Money], rate: Decimal, currency: Currency) -> Result<(Money, Vec<Money>)> {
    let percent = rate / Decimal::ONE_HUNDRED;
    let net = nets.iter().try_fold(Money::zero(currency), |sum, net| sum.add(*net))?;
    let tax = Money::round(net.amount() * percent, currency)?;
    let unit = Decimal::new(1, currency.exponent());
    let exact: Vec<_> = nets.iter().map(|net| net.amount() * percent).collect();
    let floor = |amount: &Decimal| {
        amount.round_dp_with_strategy(currency.exponent(), rust_decimal::RoundingStrategy::ToNegativeInfinity)
    };
    let mut shares: Vec<_> = exact.iter().map(floor).collect();
    let mut order: Vec<_> = (0..nets.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse((exact[*index] - shares[*index], std::cmp::Reverse(*index))));
    let mut missing = tax.amount() - shares.iter().sum::<Decimal>();
    for index in order {
        if missing < unit {
            break;
        }
        shares[index] += unit;
        missing -= unit;
    }
    let shares = shares.into_iter().map(|share| Ok(Money::new(share, currency)?));
    Ok((tax, shares.collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::money::parse_decimal;

    fn euros(texts: &[&str]) -> Vec<Money> {
        texts
            .iter()
            .map(|text| Money::round(parse_decimal(text).expect("a decimal"), Currency::EUR).expect("small"))
            .collect()
    }

    /// invoices.md 4, test vectors: tax is rounded once per group and shared out without losing a cent.
    #[test]
    fn tax_is_rounded_once_per_group() {
        for (nets, rate, tax, shares) in [
            (vec!["49.00"], "19", "9.31", vec!["9.31"]),
            (vec!["0.33", "0.33", "0.33"], "19", "0.19", vec!["0.07", "0.06", "0.06"]),
            (vec!["49.00", "12.345"], "19", "11.66", vec!["9.31", "2.35"]),
            (vec!["20.00"], "7", "1.40", vec!["1.40"]),
            (vec!["400.00"], "19", "76.00", vec!["76.00"]),
            (vec!["420.00"], "19", "79.80", vec!["79.80"]),
            (vec!["10.00"], "0", "0.00", vec!["0.00"]),
        ] {
            let rate = parse_decimal(rate).expect("a rate");
            let found = group_tax(&euros(&nets), rate, Currency::EUR).expect("in range");
            assert_eq!(found, (euros(&[tax])[0], euros(&shares)), "{nets:?}");
        }
    }
}
