//! Recurring and one-time charges: one line per item of the period, and its share where the period is not a whole one.

use std::sync::Arc;

use catalog::compiled::{ItemTerms, ProductTerms};
use domain::{BillingIntervalUnit, ChargeKind, Error, PricingModel, ProductType, Quantity, Result};
use rating::{Basis, CompiledPrice, PriceDefinition, Tier, walk_with};

use super::{DraftLine, Job, LineTax, no_id, tiers_of, unit_rate};
use crate::invoice::line::InvoiceLineAtom;
use crate::invoice::run::{RecurringCharge, RunReason, is_billed_in_advance};
use crate::invoice::share::Share;
use crate::invoice::words::{AppliesAt, InvoiceLineType};

/// The full price of every item that the charged period has.
pub(super) fn lines(job: &Job<'_>) -> Result<Vec<DraftLine>> {
    let Some(charge) = job.run.recurring else { return Ok(Vec::new()) };
    let mut lines = Vec::new();
    for item in &job.terms.items {
        let product = job
            .catalog
            .product(item.product_id)
            .ok_or_else(|| Error::invariant(format!("product {} is not in the catalog", item.product_id)))?;
        let in_period =
            item.added_at < charge.period.end && item.removed_at.is_none_or(|end| end > charge.period.start);
        if in_period && product.kind != ProductType::Usage {
            lines.push(line(job, charge, item, product)?);
        }
    }
    Ok(lines)
}

fn line(job: &Job<'_>, charge: RecurringCharge, item: &ItemTerms, product: &ProductTerms) -> Result<DraftLine> {
    let price = price_of(job, charge, item)?;
    // A FIXED_CHARGE is always one (products.md).
    let quantity = if product.kind == ProductType::FixedCharge { Quantity::ONE } else { item.quantity };
    let variables = job.catalog.tables_of(&price, charge.period.start);
    let basis = Basis {
        variables: variables.as_ref(),
        period: job.terms.period_facts(charge.whole),
        ..Basis::of(quantity.into())
    };
    let walk = walk_with(&price, quantity.into(), &basis)?;
    let quantity = quantity.to_decimal()?;
    let unit_amount = unit_rate(price.model, &walk, walk.total, quantity);
    let one_time = job.subscription.billing_interval_unit == BillingIntervalUnit::OneTime;
    let (line_type, charge_kind) = if one_time {
        (InvoiceLineType::OneTime, ChargeKind::OneTime)
    } else {
        (InvoiceLineType::Recurring, ChargeKind::Recurring)
    };
    let atom = InvoiceLineAtom {
        id: no_id(),
        line_id: no_id().into(),
        segment_start: charge.period.start,
        segment_end: charge.period.end,
        quantity,
        unit_amount,
        net_amount: walk.total,
        proration_numerator: None,
        proration_denominator: None,
        price_version_id: Some(price.version_id),
        fx_rate: None,
        tiers: tiers_of(&walk)?,
        tax_components: Vec::new(),
        binding_id: None,
        meter_id: None,
        meter_version_id: None,
        window_start: None,
        window_end: None,
        allowance_quantity: None,
        billable_quantity: None,
        event_count: None,
    };
    Ok(DraftLine {
        line_type,
        charge_kind,
        applies_at: applies_at(job),
        billing_timing: job.subscription.billing_timing,
        product_id: product.id,
        price_id: Some(price.price_id),
        price_version_id: Some(price.version_id),
        subscription_item_id: Some(item.id),
        metric_key: None,
        price_key: price.price_key.clone(),
        wallet_currency: None,
        description: product.name.clone(),
        quantity,
        unit_amount,
        amount: walk.total,
        period: charge.period,
        supply_type: product.supply_type,
        tax: LineTax::none(walk.total.currency()),
        atoms: vec![atom],
    })
}

fn applies_at(job: &Job<'_>) -> AppliesAt {
    match job.run.key.reason {
        RunReason::Activation => AppliesAt::Activation,
        RunReason::Closing if job.subscription.cancelled_at.is_some() => AppliesAt::Cancellation,
        _ if is_billed_in_advance(job.subscription) => AppliesAt::PeriodStart,
        _ => AppliesAt::PeriodEnd,
    }
}

/// The price version of the period's start; an item's own rate takes the place of the tiers.
fn price_of(job: &Job<'_>, charge: RecurringCharge, item: &ItemTerms) -> Result<Arc<CompiledPrice>> {
    // An item that was added in mid-period has no price before.
    let at = charge.period.start.max(item.added_at);
    let key = item.price_key.as_deref();
    let resolved = job
        .catalog
        .resolve_for(job.terms, item.product_id, key, &Default::default(), at)
        .map_err(|unpriced| unpriced.into_error(item.product_id))?;
    let Some(unit_amount) = item.unit_amount else { return Ok(Arc::clone(resolved.price)) };
    let tier = Tier { tier_order: 1, unit_amount, ..Tier::default() };
    let definition = PriceDefinition {
        price_id: resolved.price.price_id,
        version_id: resolved.price.version_id,
        product_id: item.product_id,
        price_key: item.price_key.clone(),
        currency: resolved.price.currency,
        model: PricingModel::Volume,
        tiers: vec![tier],
        list_price: None,
        formula: None,
    };
    Ok(Arc::new(CompiledPrice::compile(definition)?))
}

/// Charges stubs and periods that were cut short by their seconds (proration.md 3.2); a share of nothing is no line.
pub(super) fn prorate(job: &Job<'_>, lines: &mut Vec<DraftLine>) -> Result<()> {
    let Some(charge) = job.run.recurring else { return Ok(()) };
    let share = Share::of(charge.period, charge.whole);
    if share.is_whole() || lines.iter().all(|line| line.charge_kind == ChargeKind::OneTime) {
        return Ok(());
    }
    if share.numerator <= 0 {
        lines.clear();
        return Ok(());
    }
    for line in lines.iter_mut() {
        line.amount = share.apply(line.amount)?;
        for atom in &mut line.atoms {
            atom.net_amount = line.amount; // a recurring line is one atom
            atom.proration_numerator = Some(share.numerator);
            atom.proration_denominator = Some(share.denominator);
        }
    }
    Ok(())
}
