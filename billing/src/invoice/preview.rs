//! Lines of an invoice that is not made: what a window of usage would be charged, by the functions that charge it.

use catalog::compiled::{StoredWindow, SubscriptionTerms, WorkspaceCatalog};
use domain::{InvoiceId, InvoiceLineId, JsonMap, Money, Result};
use sqlx::types::Json;
use uuid::Uuid;

use super::draft::{DraftLine, Job, assemble};
use super::invoiced::Invoiced;
use super::line::{InvoiceLine, InvoiceLineAtom, InvoiceLineDTO, StoredLine};
use super::run::{Run, RunKey, RunReason};
use crate::subscription::Subscription;

/// The usage lines that the invoice of this window would get, in its order. Their invoice has no id: it is the nil UUID.
///
/// # Errors
/// What assembling an invoice says.
pub fn usage_lines(
    subscription: &Subscription,
    terms: &SubscriptionTerms,
    catalog: &WorkspaceCatalog,
    window: &StoredWindow,
    invoiced: &[Invoiced],
) -> Result<Vec<InvoiceLineDTO>> {
    let run = Run {
        subscription_id: subscription.id,
        key: RunKey::new(RunReason::Renewal, window.window),
        recurring: None,
        usage: Some(window.window),
    };
    let drafts = assemble(&Job { subscription, terms, catalog, run, window: Some(window), invoiced })?;
    let lines = drafts.into_iter().flat_map(|draft| draft.lines).zip(1..);
    lines.map(|(line, position)| shown(subscription, line, position)).collect()
}

fn shown(subscription: &Subscription, line: DraftLine, position: i32) -> Result<InvoiceLineDTO> {
    let id = InvoiceLineId::generate();
    let total = line.amount.add(line.tax.amount)?;
    let atoms = line.atoms.into_iter().map(|atom| InvoiceLineAtom { id: Uuid::now_v7(), line_id: id, ..atom });
    let atoms = atoms.collect();
    let line = InvoiceLine {
        id,
        invoice_id: InvoiceId(Uuid::nil()),
        position,
        line_type: line.line_type,
        charge_kind: line.charge_kind,
        applies_at: Some(line.applies_at),
        billing_timing: Some(line.billing_timing),
        product_id: Some(line.product_id),
        price_id: line.price_id,
        price_version_id: line.price_version_id,
        plan_version_id: Some(subscription.plan_version_id),
        subscription_item_id: line.subscription_item_id,
        description: line.description,
        quantity: line.quantity,
        unit_amount: line.unit_amount,
        amount: line.amount,
        discount_amount: Money::zero(total.currency()),
        total,
        period_start: Some(line.period.start),
        period_end: Some(line.period.end),
        tax_rate: line.tax.rate,
        tax_type: None,
        tax_amount: line.tax.amount,
        tax_category_code: line.tax.category,
        tax_exemption_code: None,
        tax_exemption_reason: None,
        supply_type: Some(line.supply_type),
        tax_rule_id: None,
        reverse_charge: false,
        fx_rate: None,
        fx_policy: None,
        source_currency: None,
        source_amount: None,
        promotion_id: None,
        proration_record_id: None,
        metadata: Json(JsonMap::new()),
    };
    Ok(StoredLine { line, atoms }.into())
}
