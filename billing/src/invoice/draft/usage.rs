//! Usage lines: one per product, metric, price key and wallet pin, from the window's running totals (usage.md 5).

use domain::{BillingTiming, ChargeKind, Error, Instant, Result};
use rating::{Atom, Finding, Rated, RatedLine, RatingInput};

use super::difference::less_invoiced;
use super::{DraftLine, Job, LineTax, no_id, rate_of, taken_off, tiers_of, unit_rate};
use crate::invoice::line::InvoiceLineAtom;
use crate::invoice::run::RunReason;
use crate::invoice::words::{AppliesAt, InvoiceLineType};

/// Rates the window by the one function that also made its accruals, so that both are one figure (promise 5).
pub(super) fn rated(job: &Job<'_>) -> Result<Rated> {
    let (Some(period), Some(window)) = (job.run.usage, job.window) else { return Ok(Rated::default()) };
    if job.terms.is_trial(period.start) {
        return Ok(Rated::default()); // counted, never charged (subscriptions.md 3.1)
    }
    // The window as the schedule has it, also where a cancellation cut the billed period.
    let terms = job.catalog.rating_terms(job.terms, window.window, &window.state)?;
    let period_facts = job.terms.period_facts(window.window);
    // What is held counts to the end of the window, or up to the instant at which it is billed in between.
    let until = if job.run.key.reason == RunReason::Interim { period.end } else { window.window.end };
    let input = RatingInput { terms: &terms, until: Some(until), period: period_facts };
    let rated = window.state.rate(&input)?;
    for Finding { binding, segment_start } in &rated.findings {
        tracing::warn!(
            subscription.id = %job.terms.id, meter.key = binding.meter.key, binding.id = %binding.binding_id,
            segment.start = %segment_start, "a FORMULA meter divided by zero, which counts as 0"
        );
    }
    Ok(rated)
}

/// One line for each rated one, less what was charged before.
pub(super) fn lines(job: &Job<'_>, rated: &Rated) -> Result<Vec<DraftLine>> {
    let (Some(period), Some(window)) = (job.run.usage, job.window) else { return Ok(Vec::new()) };
    let lines = rated.lines.iter().map(|line| usage_line(job, line, window.window.start, period.end));
    less_invoiced(lines.collect::<Result<_>>()?, job.invoiced)
}

fn usage_line(job: &Job<'_>, rated: &RatedLine, start: Instant, end: Instant) -> Result<DraftLine> {
    let product = job
        .catalog
        .product(rated.product_id)
        .ok_or_else(|| Error::invariant(format!("product {} is not in the catalog", rated.product_id)))?;
    let latest = rated.atoms.last().ok_or_else(|| Error::invariant("a rated line has an atom"))?;
    let quantity = rated.quantity.shown();
    let unit_amount = match rated.atoms.as_slice() {
        [only] => unit_rate(only.model(), &only.walk, only.amount, only.billable_quantity.shown()),
        _ => rate_of(rated.amount, rated.billable_quantity.shown()),
    };
    let starts: Vec<_> = rated.atoms.iter().map(|atom| atom.segment_start).collect();
    let atoms = rated.atoms.iter().map(|atom| {
        let next = starts.iter().copied().filter(|other| *other > atom.segment_start).min();
        usage_atom(atom, (start, end), next.unwrap_or(end))
    });
    let item = job.terms.item_of(rated.product_id, start).or_else(|| job.terms.item_of(rated.product_id, end));
    Ok(DraftLine {
        line_type: if job.run.key.reason == RunReason::Correction {
            InvoiceLineType::Adjustment
        } else {
            InvoiceLineType::Usage
        },
        charge_kind: ChargeKind::Usage,
        applies_at: applies_at(job),
        billing_timing: BillingTiming::InArrears,
        product_id: rated.product_id,
        price_id: Some(latest.price.price_id),
        price_version_id: Some(latest.price.version_id),
        subscription_item_id: item.map(|item| item.id),
        metric_key: Some(rated.metric_key.clone()),
        price_key: rated.price_key.clone(),
        wallet_currency: rated.wallet_currency,
        description: description(&product.name, rated),
        quantity,
        unit_amount,
        amount: rated.amount,
        period: domain::period::Period { start, end },
        supply_type: product.supply_type,
        tax: LineTax::none(rated.amount.currency()),
        atoms: atoms.collect::<Result<_>>()?,
    })
}

/// In arrears, at the end of what was used.
pub(super) fn applies_at(job: &Job<'_>) -> AppliesAt {
    match job.run.key.reason {
        RunReason::Closing => AppliesAt::Cancellation,
        _ => AppliesAt::PeriodEnd,
    }
}

fn description(product: &str, rated: &RatedLine) -> String {
    match &rated.price_key {
        Some(key) => format!("{product}: {} ({key})", rated.metric_key),
        None => format!("{product}: {}", rated.metric_key),
    }
}

fn usage_atom(atom: &Atom, (start, end): (Instant, Instant), segment_end: Instant) -> Result<InvoiceLineAtom> {
    let mut tiers = tiers_of(&atom.walk)?;
    if let Some(covered) = &atom.covered {
        tiers.extend(taken_off(covered)?);
    }
    let billable = atom.billable_quantity.shown();
    Ok(InvoiceLineAtom {
        id: no_id(),
        line_id: no_id().into(),
        segment_start: atom.segment_start.max(start),
        segment_end,
        quantity: atom.quantity.shown(),
        unit_amount: unit_rate(atom.model(), &atom.walk, atom.amount, billable),
        net_amount: atom.amount,
        proration_numerator: None,
        proration_denominator: None,
        // What is within a commitment is charged at the rate of that.
        price_version_id: (!atom.is_discounted()).then_some(atom.price.version_id),
        fx_rate: None,
        tiers,
        tax_components: Vec::new(),
        binding_id: Some(atom.binding.binding_id),
        meter_id: Some(atom.binding.meter.meter_id),
        meter_version_id: Some(atom.binding.meter_version_id()),
        window_start: Some(start),
        window_end: Some(end),
        allowance_quantity: Some(atom.allowance_quantity.shown()),
        billable_quantity: Some(billable),
        event_count: Some(atom.event_count),
    })
}
