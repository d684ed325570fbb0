//! Invoice assembly: a pipeline of pure steps over a typed draft (DESIGN section 6, invoices.md 4 "Order of computation").
//!
//! recurring → proration → usage → commitments → promotions → tax → totals. Promotions and tax rules are not built yet: no step reduces
//! a line, and [`tax`] gives every line what the reference says of an organization without rules, category O at 0 %.
//! Wallet money is applied when the invoice is finalized, never here (rule D4).

pub(crate) mod commitment;
pub(crate) mod difference;
mod recurring;
mod tax;
mod totals;
mod usage;

use catalog::compiled::{StoredWindow, SubscriptionTerms, WorkspaceCatalog};
use domain::period::Period;
use domain::{
    BillingTiming, ChargeKind, Currency, Money, PriceId, PricingModel, ProductId, Result, SubscriptionItemId,
    SupplyType, TaxCategoryCode, VersionId,
};
use rating::{Rated, Walk};
use rust_decimal::{Decimal, RoundingStrategy};
use uuid::Uuid;

use super::invoiced::Invoiced;
use super::line::{InvoiceLineAtom, InvoiceLineAtomTier};
use super::model::InvoiceTaxBreakdownRow;
use super::run::Run;
use super::words::{AppliesAt, InvoiceLineType};
use crate::subscription::Subscription;

/// What one draft is computed from. Everything was loaded before: no step asks a database.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Whose bill.
    pub subscription: &'a Subscription,
    /// Its items and price context.
    pub terms: &'a SubscriptionTerms,
    /// Prices and products.
    pub catalog: &'a WorkspaceCatalog,
    /// What is charged.
    pub run: Run,
    /// Totals of the run's usage window, as checkpointed.
    pub window: Option<&'a StoredWindow>,
    /// What finalized invoices have charged of that window.
    pub invoiced: &'a [Invoiced],
}

/// An invoice that is being computed.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Wallet that its usage is pinned to; none: the customer's cascade.
    pub wallet_currency: Option<Currency>,
    /// Charges, in order.
    pub lines: Vec<DraftLine>,
    /// Sums.
    pub totals: Totals,
    /// Tax per category and rate.
    pub tax_breakdown: Vec<InvoiceTaxBreakdownRow>,
}

/// Sums of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Net after discounts.
    pub subtotal: Money,
    /// Discounts.
    pub discount_total: Money,
    /// Tax.
    pub tax_amount: Money,
    /// Gross.
    pub total: Money,
}

/// A charge that is being computed.
#[derive(Clone, Debug)]
pub struct DraftLine {
    /// What it charges.
    pub line_type: InvoiceLineType,
    /// Every period, from usage, or once.
    pub charge_kind: ChargeKind,
    /// When it falls due.
    pub applies_at: AppliesAt,
    /// In advance or in arrears.
    pub billing_timing: BillingTiming,
    /// Product.
    pub product_id: ProductId,
    /// Price; what falls short of a commitment has its rate from that.
    pub price_id: Option<PriceId>,
    /// Its version.
    pub price_version_id: Option<VersionId>,
    /// Item of the subscription.
    pub subscription_item_id: Option<SubscriptionItemId>,
    /// Metric, of usage.
    pub metric_key: Option<String>,
    /// Sibling of a keyed product.
    pub price_key: Option<String>,
    /// Wallet pin, of usage.
    pub wallet_currency: Option<Currency>,
    /// For the customer.
    pub description: String,
    /// Units before an allowance.
    pub quantity: Decimal,
    /// Rate of one unit.
    pub unit_amount: Decimal,
    /// Net.
    pub amount: Money,
    /// What is charged.
    pub period: Period,
    /// Goods or services.
    pub supply_type: SupplyType,
    /// Tax.
    pub tax: LineTax,
    /// What it is made of; ids of atoms and line are given when it is written.
    pub atoms: Vec<InvoiceLineAtom>,
}

/// Tax of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTax {
    /// EN 16931 category.
    pub category: TaxCategoryCode,
    /// Percent.
    pub rate: Decimal,
    /// Share of the group's tax.
    pub amount: Money,
}

impl LineTax {
    /// What every charge has while there are no tax rules: outside the scope of tax, 0 %.
    #[must_use]
    pub fn none(currency: Currency) -> Self {
        Self { category: TaxCategoryCode::O, rate: Decimal::ZERO, amount: Money::zero(currency) }
    }
}

/// Computes the invoices of a run: one for unpinned charges and one for each wallet that usage is pinned to (usage.md
/// R8). A group without a line makes none.
///
/// # Errors
/// 422 when no price applies, a price is in another currency, or an amount leaves its range.
pub fn assemble(job: &Job<'_>) -> Result<Vec<Draft>> {
    assemble_with_credits(job).map(|assembled| assembled.drafts)
}

/// What a run comes to.
pub(crate) struct Assembled {
    /// The invoices.
    pub(crate) drafts: Vec<Draft>,
    /// Usage lines of which earlier invoices have charged more than they cost now: these are negative, and on credit notes
    /// instead of an invoice.
    pub(crate) credits: Vec<DraftLine>,
    /// The usage that both are made of.
    pub(crate) rated: Rated,
}

/// The same, with credits, and the usage that all is made of.
///
/// # Errors
/// As [`assemble`].
pub(crate) fn assemble_with_credits(job: &Job<'_>) -> Result<Assembled> {
    let mut lines = recurring::lines(job)?;
    recurring::prorate(job, &mut lines)?;
    let rated = usage::rated(job)?;
    let (credits, mut charges): (Vec<_>, Vec<_>) =
        usage::lines(job, &rated)?.into_iter().partition(|line| line.amount.is_negative());
    lines.append(&mut charges);
    // What falls short is seen when the window's own bill is made, and stays as it was seen then.
    if !job.run.key.reason.is_extra() {
        lines.append(&mut commitment::lines(job, &rated)?);
    }
    let mut drafts: Vec<Draft> = Vec::new();
    for line in lines {
        match drafts.iter_mut().find(|draft| draft.wallet_currency == line.wallet_currency) {
            Some(draft) => draft.lines.push(line),
            None => drafts.push(Draft::new(line, job.terms.currency)),
        }
    }
    for draft in &mut drafts {
        tax::apply(draft)?;
        totals::add_up(draft)?;
    }
    Ok(Assembled { drafts, credits, rated })
}

impl Draft {
    fn new(first: DraftLine, currency: Currency) -> Self {
        let zero = Money::zero(currency);
        let totals = Totals { subtotal: zero, discount_total: zero, tax_amount: zero, total: zero };
        Self { wallet_currency: first.wallet_currency, lines: vec![first], totals, tax_breakdown: Vec::new() }
    }
}

/// Tiers of a walk as an atom shows them.
fn tiers_of(walk: &Walk) -> Result<Vec<InvoiceLineAtomTier>> {
    let tier = |tier: &rating::TierContribution| {
        Ok(InvoiceLineAtomTier {
            tier_order: tier.tier_order,
            from: tier.from.to_decimal()?,
            to: tier.to.map(|to| to.to_decimal()).transpose()?,
            quantity: tier.quantity.shown(),
            unit_amount: tier.unit_amount,
            flat_amount: tier.flat_amount,
            amount: tier.amount,
        })
    };
    walk.tiers.iter().map(tier).collect()
}

/// The tiers of a walk that is taken off again, so that the tiers of an atom still add up to it.
fn taken_off(walk: &Walk) -> Result<impl Iterator<Item = InvoiceLineAtomTier>> {
    Ok(tiers_of(walk)?.into_iter().map(|mut tier| {
        tier.quantity = -tier.quantity;
        tier.amount = tier.amount.negate();
        tier
    }))
}

/// Fraction digits of a rate that was divided out of an amount.
const RATE_DIGITS: u32 = 12;

/// The rate of one unit: the tier's own where one plain tier took everything, else amount over quantity.
fn unit_rate(model: PricingModel, walk: &Walk, amount: Money, quantity: Decimal) -> Decimal {
    match walk.tiers.as_slice() {
        [tier] if tier.flat_amount.is_zero() && model != PricingModel::Package => tier.unit_amount,
        _ => rate_of(amount, quantity),
    }
}

/// Amount over quantity; nothing for a quantity of nothing. Shown only: no amount is computed from it.
fn rate_of(amount: Money, quantity: Decimal) -> Decimal {
    let rounded = |rate: Decimal| rate.round_dp_with_strategy(RATE_DIGITS, RoundingStrategy::MidpointAwayFromZero);
    amount.amount().checked_div(quantity).map_or(Decimal::ZERO, |rate| rounded(rate).normalize())
}

/// Ids that are given when a draft is written.
fn no_id() -> Uuid {
    Uuid::nil()
}
