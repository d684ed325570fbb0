//! A window that is billed again is charged f(totals now) less what finalized invoices have charged of it, per product,
//! metric, price key and wallet pin: so tiers and allowance go on exactly, and the customer pays the same however often the
//! window was billed.

use domain::{BillingTiming, ChargeKind, Money, Result};
use rust_decimal::Decimal;

use super::{DraftLine, LineTax, no_id, rate_of};
use crate::invoice::invoiced::Invoiced;
use crate::invoice::line::InvoiceLineAtom;
use crate::invoice::words::{AppliesAt, InvoiceLineType};

/// Takes what was charged off the lines of the whole window. A negative line is owed to the customer; one that nothing is
/// left of is none.
pub(super) fn less_invoiced(mut lines: Vec<DraftLine>, invoiced: &[Invoiced]) -> Result<Vec<DraftLine>> {
    for earlier in invoiced {
        let index = lines.iter().position(|line| has_charged(earlier, line));
        let index = index.unwrap_or_else(|| {
            lines.push(without_usage(earlier));
            lines.len() - 1
        });
        subtract(&mut lines[index], earlier)?;
    }
    if !invoiced.is_empty() {
        lines.retain(|line| !line.amount.is_zero() || !line.quantity.is_zero());
    }
    Ok(lines)
}

/// Whether an earlier line charged the same usage.
pub(crate) fn has_charged(earlier: &Invoiced, line: &DraftLine) -> bool {
    earlier.product_id == line.product_id
        && earlier.metric_key == line.metric_key
        && earlier.price_key == line.price_key
        && earlier.wallet_currency == line.wallet_currency
}

/// The line of usage that is gone: all that is left of it is what was charged.
fn without_usage(earlier: &Invoiced) -> DraftLine {
    DraftLine {
        line_type: InvoiceLineType::Usage,
        charge_kind: ChargeKind::Usage,
        applies_at: AppliesAt::PeriodEnd,
        billing_timing: BillingTiming::InArrears,
        product_id: earlier.product_id,
        price_id: Some(earlier.price_id),
        price_version_id: Some(earlier.price_version_id),
        subscription_item_id: earlier.subscription_item_id,
        metric_key: earlier.metric_key.clone(),
        price_key: earlier.price_key.clone(),
        wallet_currency: earlier.wallet_currency,
        description: earlier.description.clone(),
        quantity: Decimal::ZERO,
        unit_amount: earlier.unit_amount,
        amount: Money::zero(earlier.amount.currency()),
        period: earlier.period,
        supply_type: earlier.supply_type,
        tax: LineTax::none(earlier.amount.currency()),
        atoms: Vec::new(),
    }
}

/// One negative atom per earlier line, so that the atoms add up to the line and show which invoice charged how much.
fn subtract(line: &mut DraftLine, earlier: &Invoiced) -> Result<()> {
    let charged = earlier.charged()?;
    line.amount = line.amount.sub(charged)?;
    line.quantity -= earlier.quantity;
    line.atoms.push(InvoiceLineAtom {
        id: no_id(),
        line_id: no_id().into(),
        segment_start: earlier.period.start,
        segment_end: earlier.period.end,
        quantity: -earlier.quantity,
        unit_amount: earlier.unit_amount,
        net_amount: charged.negate(),
        proration_numerator: None,
        proration_denominator: None,
        price_version_id: Some(earlier.price_version_id),
        fx_rate: None,
        tiers: Vec::new(),
        tax_components: Vec::new(),
        binding_id: None,
        meter_id: None,
        meter_version_id: None,
        window_start: Some(earlier.window_start),
        window_end: Some(line.period.end),
        allowance_quantity: None,
        billable_quantity: Some(-earlier.billable_quantity),
        event_count: None,
    });
    // One rate of all that was and is charged stays the rate of the line.
    if earlier.unit_amount != line.unit_amount {
        let billable = line.atoms.iter().filter_map(|atom| atom.billable_quantity).sum();
        line.unit_amount = rate_of(line.amount, billable);
    }
    Ok(())
}
