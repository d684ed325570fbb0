//! What falls short of commitments: a line for each commitment period, beside the usage that was charged at its rate
//! (allowances.md C2 and 5.1 rule 8).

use catalog::compiled::CommittedUse;
use domain::period::Period;
use domain::{BillingTiming, ChargeKind, CommittedUsePlanId, Error, Instant, Result};
use rating::{Exact, Rated, Shortfall};

use super::usage::applies_at;
use super::{DraftLine, Job, LineTax, no_id, taken_off, tiers_of};
use crate::invoice::line::InvoiceLineAtom;
use crate::invoice::words::InvoiceLineType;

/// The shortfalls that are due with the run's window; none of a trial.
pub(super) fn lines(job: &Job<'_>, rated: &Rated) -> Result<Vec<DraftLine>> {
    let Some(window) = job.run.usage.filter(|window| !job.terms.is_trial(window.start)) else { return Ok(Vec::new()) };
    let mut lines = Vec::new();
    for plan in &job.terms.carried.commitments {
        for period in plan.due_in(window, job.subscription.ended_at, job.terms.schedule.timezone) {
            let earlier = Exact::from(plan.used_before(period.start, window.start));
            let used = earlier.checked_add(used_in(rated, plan.id, period.start)?)?;
            if let Some(shortfall) = Shortfall::of(&plan.rate, plan.committed, used)? {
                lines.push(line(job, plan, period, &shortfall)?);
            }
        }
    }
    Ok(lines)
}

/// What a rated window used of a commitment period.
pub(crate) fn used_in(rated: &Rated, plan_id: CommittedUsePlanId, period_start: Instant) -> Result<Exact> {
    let atoms = rated.lines.iter().flat_map(|line| &line.atoms);
    let of = atoms
        .filter(|atom| atom.committed.is_some_and(|part| part.plan_id == plan_id && part.period_start == period_start));
    let mut of = of.map(|atom| atom.billable_quantity);
    Ok(of.try_fold(Exact::ZERO, Exact::checked_add)?)
}

fn line(job: &Job<'_>, plan: &CommittedUse, period: Period, shortfall: &Shortfall) -> Result<DraftLine> {
    let product = job
        .catalog
        .product(plan.product_id)
        .ok_or_else(|| Error::invariant(format!("product {} is not in the catalog", plan.product_id)))?;
    let quantity = shortfall.quantity.shown();
    let mut tiers = tiers_of(&shortfall.whole)?;
    tiers.extend(taken_off(&shortfall.covered)?);
    let atom = InvoiceLineAtom {
        id: no_id(),
        line_id: no_id().into(),
        segment_start: period.start,
        segment_end: period.end,
        quantity,
        unit_amount: plan.committed_rate,
        net_amount: shortfall.amount,
        proration_numerator: None,
        proration_denominator: None,
        price_version_id: None,
        fx_rate: None,
        tiers,
        tax_components: Vec::new(),
        binding_id: None,
        meter_id: None,
        meter_version_id: None,
        window_start: None,
        window_end: None,
        allowance_quantity: None,
        billable_quantity: Some(quantity),
        event_count: None,
    };
    Ok(DraftLine {
        line_type: InvoiceLineType::CommitTrueUp,
        charge_kind: ChargeKind::Usage,
        applies_at: applies_at(job),
        billing_timing: BillingTiming::InArrears,
        product_id: plan.product_id,
        price_id: None,
        price_version_id: None,
        subscription_item_id: job.terms.item_of(plan.product_id, period.start).map(|item| item.id),
        metric_key: Some(plan.metric_key.clone()),
        price_key: None,
        wallet_currency: None,
        description: format!("{}: {} committed and not used", product.name, plan.metric_key),
        quantity,
        unit_amount: plan.committed_rate,
        amount: shortfall.amount,
        period,
        supply_type: product.supply_type,
        tax: LineTax::none(shortfall.amount.currency()),
        atoms: vec![atom],
    })
}
