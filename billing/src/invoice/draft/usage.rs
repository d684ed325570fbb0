//! Usage lines: one per product, metric, price key and wallet pin, from the window's running totals (usage.md 5).

use domain::{BillingTiming, ChargeKind, Error, Instant, Result};
use rating::{Atom, RatedLine, RatingInput};

use super::difference::less_invoiced;
use super::{DraftLine, Job, LineTax, no_id, rate_of, tiers_of, unit_rate};
use crate::invoice::line::InvoiceLineAtom;
use crate::invoice::run::RunReason;
use crate::invoice::words::{AppliesAt, InvoiceLineType};

/// Rates the window by the one function that also made its accruals, so that both are one figure (promise 5), and takes off
/// what was charged before.
pub(super) fn lines(job: &Job<'_>) -> Result<Vec<DraftLine>> {
    let (Some(period), Some(window)) = (job.run.usage, job.window) else { return Ok(Vec::new()) };
    if job.terms.is_trial(period.start) {
        return Ok(Vec::new()); // counted, never charged (subscriptions.md 3.1)
    }
    // The window as the schedule has it, also where a cancellation cut the billed period.
    let terms = job.catalog.rating_terms(job.terms, window.window, &window.state)?;
    let period_facts = job.terms.period_facts(window.window);
    // What is held counts to the end of the window, or up to the instant at which it is billed in between.
    let until = if job.run.key.reason == RunReason::Interim { period.end } else { window.window.end };
    let input = RatingInput { terms: &terms, until: Some(until), period: period_facts };
    let rated = window.state.rate(&input)?;
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
        [only] => unit_rate(only.price.model, &only.walk, only.amount, only.billable_quantity.shown()),
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
        applies_at: if job.run.key.reason == RunReason::Closing {
            AppliesAt::Cancellation
        } else {
            AppliesAt::PeriodEnd
        },
        billing_timing: BillingTiming::InArrears,
        product_id: rated.product_id,
        price_id: latest.price.price_id,
        price_version_id: latest.price.version_id,
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

fn description(product: &str, rated: &RatedLine) -> String {
    match &rated.price_key {
        Some(key) => format!("{product}: {} ({key})", rated.metric_key),
        None => format!("{product}: {}", rated.metric_key),
    }
}

fn usage_atom(atom: &Atom, (start, end): (Instant, Instant), segment_end: Instant) -> Result<InvoiceLineAtom> {
    let mut tiers = tiers_of(&atom.walk)?;
    // With `tiers_on_total` the walk is over everything and the allowance's own walk is taken off again, so that the
    // tiers still add up to the atom.
    if let Some(covered) = &atom.covered {
        tiers.extend(tiers_of(covered)?.into_iter().map(|mut tier| {
            tier.quantity = -tier.quantity;
            tier.amount = tier.amount.negate();
            tier
        }));
    }
    let billable = atom.billable_quantity.shown();
    Ok(InvoiceLineAtom {
        id: no_id(),
        line_id: no_id().into(),
        segment_start: atom.segment_start.max(start),
        segment_end,
        quantity: atom.quantity.shown(),
        unit_amount: unit_rate(atom.price.model, &atom.walk, atom.amount, billable),
        net_amount: atom.amount,
        proration_numerator: None,
        proration_denominator: None,
        price_version_id: Some(atom.price.version_id),
        fx_rate: None,
        tiers,
        tax_components: Vec::new(),
        binding_id: Some(atom.binding.binding_id),
        meter_id: Some(atom.binding.meter.meter_id),
        meter_version_id: Some(atom.binding.meter.version_id),
        window_start: Some(start),
        window_end: Some(end),
        allowance_quantity: Some(atom.allowance_quantity.shown()),
        billable_quantity: Some(billable),
        event_count: Some(atom.event_count),
    })
}
