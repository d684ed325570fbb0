//! Totals: what the lines add up to.

use domain::{Money, Result};

use super::{Draft, Totals};

/// Adds the lines up.
pub(super) fn add_up(draft: &mut Draft) -> Result<()> {
    let zero = Money::zero(draft.totals.total.currency());
    let mut totals = Totals { subtotal: zero, discount_total: zero, tax_amount: zero, total: zero };
    for line in &draft.lines {
        totals.subtotal = totals.subtotal.add(line.amount)?;
        totals.tax_amount = totals.tax_amount.add(line.tax.amount)?;
    }
    totals.total = totals.subtotal.add(totals.tax_amount)?;
    draft.totals = totals;
    Ok(())
}
