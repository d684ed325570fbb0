//! From running totals to amounts (rule C1): f(total) per rating key, computed anew each time.
//!
//! One atom per price version and segment: the parts that versions of binding and meter split are put together first
//! (summed; MAX and LAST: the later part wins), then the allowance is drawn, then the tiers are walked from zero on the
//! overage. One line per product, metric, price key and wallet pin.

use std::sync::Arc;

use domain::{BindingId, BindingRole, Currency, Instant, MeterFunction, Money, ProductId, Quantity};
use smallvec::SmallVec;

use crate::binding::CompiledBinding;
use crate::entry::{Entry, Variables};
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::expression::{Basis, Inputs, PeriodFacts};
use crate::pricing::{CompiledPrice, Walk, walk_with};

/// How the totals of one product and metric are charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// Total allowance of the period, all sources together.
    pub allowance: Quantity,
    /// Whether the price is price(used) - price(allowance) instead of price(overage) (products.md).
    pub tiers_on_total: bool,
}

/// What rating needs beside the totals. A product and metric without terms has no allowance.
#[derive(Clone, Copy, Debug, Default)]
pub struct RatingInput<'a> {
    /// At most one entry per product and metric.
    pub terms: &'a [Terms],
    /// Up to when TIME_WEIGHTED meters count what they still hold: the end of the window for its bill, the present for a
    /// running figure; `None`: up to the last report.
    pub until: Option<Instant>,
    /// What the billing period supplies to expressions.
    pub period: PeriodFacts,
}

/// A window, rated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rated {
    /// Billed lines, sorted by product, metric, price key and wallet pin.
    pub lines: Vec<RatedLine>,
    /// Bindings that are shown or feed formulas, and are never billed themselves.
    pub informational: Vec<InformationalLine>,
    /// Sum of the lines per wallet pin, none first.
    pub totals: SmallVec<[Accrual; 2]>,
}

/// The usage of one product, metric, price key and wallet pin.
#[derive(Clone, Debug, PartialEq)]
pub struct RatedLine {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// Sibling price of a keyed product.
    pub price_key: Option<String>,
    /// Wallet pin.
    pub wallet_currency: Option<Currency>,
    /// Quantity, before the allowance; may be negative where the meter allows it.
    pub quantity: Exact,
    /// Drawn from the allowance.
    pub included_quantity: Exact,
    /// What the tiers were walked on: the overage.
    pub billable_quantity: Exact,
    /// Events counted.
    pub event_count: u64,
    /// Net amount: sum of the atoms.
    pub amount: Money,
    /// One per price version and segment, in order of segments.
    pub atoms: Vec<Atom>,
}

/// The smallest rated piece: one price version in one segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Atom {
    /// Binding and meter version (the latest, where several judged).
    pub binding: Arc<CompiledBinding>,
    /// Price version.
    pub price: Arc<CompiledPrice>,
    /// Start of the segment.
    pub segment_start: Instant,
    /// The currency of the value, where the meter counts money.
    pub unit_currency: Option<Currency>,
    /// The event variables that the price reads.
    pub variables: Option<Arc<Variables>>,
    /// Quantity, before the allowance.
    pub quantity: Exact,
    /// Drawn from the allowance.
    pub allowance_quantity: Exact,
    /// Quantity less allowance, at least 0.
    pub billable_quantity: Exact,
    /// Events counted.
    pub event_count: u64,
    /// The tier walk: on the billable quantity, or on the whole quantity with `tiers_on_total`.
    pub walk: Walk,
    /// With `tiers_on_total`: the walk of the allowance, which is taken off.
    pub covered: Option<Walk>,
    /// Net amount.
    pub amount: Money,
}

/// The quantity of a binding that is not billed.
#[derive(Clone, Debug, PartialEq)]
pub struct InformationalLine {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// The binding.
    pub binding_id: BindingId,
    /// Its role.
    pub role: BindingRole,
    /// Wallet pin.
    pub wallet_currency: Option<Currency>,
    /// Quantity.
    pub quantity: Exact,
    /// Events counted.
    pub event_count: u64,
}

/// Total of one wallet pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accrual {
    /// The pin; `None`: the customer's cascade.
    pub wallet_currency: Option<Currency>,
    /// Sum of the amounts.
    pub amount: Money,
}

type Run<'a> = SmallVec<[&'a Entry; 8]>;

/// Entries in the order in which they share an allowance: segment start, price key, wallet currency (none first).
fn sorted<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Run<'a> {
    let mut run: Run<'a> = entries.into_iter().collect();
    if run.len() > 1 {
        run.sort_unstable_by(|a, b| order_of(a).cmp(&order_of(b)));
    }
    run
}

fn group_of(entry: &Entry) -> impl Ord + '_ {
    let binding = &entry.binding;
    // A binding that is not billed is a line of its own; all PRIMARY ones of a product and metric are one.
    let unbilled = (binding.role != BindingRole::Primary).then_some(binding.binding_id);
    let price = entry.price.as_ref();
    (
        (unbilled, binding.product_id, binding.meter.metric_key.as_str()),
        (entry.segment_start, price.and_then(|price| price.price_key.as_deref()), entry.wallet_currency),
        (entry.unit_currency, price.map(|price| price.version_id)),
        entry.variables.as_ref().map(|variables| (variables.values(), variables.hash())),
    )
}

fn order_of(entry: &Entry) -> impl Ord + '_ {
    let ids = (entry.binding.version_id, entry.binding.meter.version_id);
    (group_of(entry), entry.sub_window, entry.binding.part_start(), ids)
}

/// Quantity of one group: that of its sub-windows, summed (meters.md 5, Window).
fn group_quantity(group: &[&Entry], until: Option<Instant>) -> Result<Exact> {
    if let [entry] = group {
        return entry.quantity(until);
    }
    let mut sub_windows = group.chunk_by(|a, b| a.sub_window == b.sub_window);
    sub_windows.try_fold(Exact::ZERO, |sum, parts| sum.checked_add(part_quantity(parts, until)?))
}

/// Quantity of one sub-window: the parts that versions split are summed; of MAX and LAST the later part wins.
fn part_quantity(parts: &[&Entry], until: Option<Instant>) -> Result<Exact> {
    for function in [MeterFunction::Max, MeterFunction::Last] {
        if parts.iter().all(|entry| entry.binding.meter.function == function) {
            return parts.last().map_or(Ok(Exact::ZERO), |latest| latest.quantity(until));
        }
    }
    parts.iter().try_fold(Exact::ZERO, |sum, entry| sum.checked_add(entry.quantity(until)?))
}

/// Quantity of several keys of one binding together: the sum of its groups.
pub(crate) fn combined<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Exact> {
    let run = sorted(entries);
    let mut groups = run.chunk_by(|a, b| group_of(a) == group_of(b));
    groups.try_fold(Exact::ZERO, |sum, group| sum.checked_add(group_quantity(group, None)?))
}

/// One group with its share of the allowance.
struct Billable<'a> {
    /// The latest part, which gives versions and price.
    latest: &'a Entry,
    price: &'a Arc<CompiledPrice>,
    quantity: Exact,
    drawn: Exact,
    overage: Exact,
    event_count: u64,
    tiers_on_total: bool,
    inputs: EntryInputs<'a>,
    period: PeriodFacts,
}

impl Billable<'_> {
    fn basis(&self) -> Basis<'_> {
        Basis {
            quantity: self.quantity.floored(),
            included: self.drawn,
            billable: self.overage,
            variables: self.latest.variables.as_deref(),
            bindings: Some(&self.latest.binding.formula_bindings),
            inputs: &self.inputs,
            period: self.period,
        }
    }

    fn amount_minor(&self) -> Result<u128> {
        let basis = self.basis();
        if self.tiers_on_total {
            let used = self.price.total_minor(self.quantity.floored(), &basis)?;
            return Ok(used.saturating_sub(self.price.total_minor(self.drawn, &basis)?));
        }
        self.price.total_minor(self.overage, &basis)
    }

    fn atom(&self) -> Result<Atom> {
        let basis = self.basis();
        let walked = if self.tiers_on_total { self.quantity.floored() } else { self.overage };
        Ok(Atom {
            binding: Arc::clone(&self.latest.binding),
            price: Arc::clone(self.price),
            segment_start: self.latest.segment_start,
            unit_currency: self.latest.unit_currency,
            variables: self.latest.variables.clone(),
            quantity: self.quantity,
            allowance_quantity: self.drawn,
            billable_quantity: self.overage,
            event_count: self.event_count,
            walk: walk_with(self.price, walked, &basis)?,
            covered: if self.tiers_on_total { Some(walk_with(self.price, self.drawn, &basis)?) } else { None },
            amount: self.price.money(self.amount_minor()?)?,
        })
    }
}

/// Calls `each` for every billed group in order, with its share of the allowance.
fn for_each_billable<'a>(
    input: &RatingInput<'_>,
    entries: &'a [Entry],
    run: &[&'a Entry],
    mut each: impl FnMut(Billable<'a>) -> Result<()>,
) -> Result<()> {
    let same_pool = |a: &&Entry, b: &&Entry| {
        a.binding.product_id == b.binding.product_id && a.binding.meter.metric_key == b.binding.meter.metric_key
    };
    for pool in run.chunk_by(same_pool) {
        let terms = terms_of(input, pool[0]);
        let mut allowance = terms.map_or(Quantity::ZERO, |terms| terms.allowance).into();
        for group in pool.chunk_by(|a, b| group_of(a) == group_of(b)) {
            let latest = group[group.len() - 1]; // a chunk is never empty
            let Some(price) = &latest.price else { return Err(RatingError::Unpriced) };
            let quantity = group_quantity(group, input.until)?;
            let drawn = draw(quantity, &mut allowance)?;
            each(Billable {
                latest,
                price,
                quantity,
                drawn,
                overage: quantity.floored().checked_sub(drawn)?,
                event_count: group.iter().map(|entry| entry.event_count).sum(),
                tiers_on_total: terms.is_some_and(|terms| terms.tiers_on_total),
                inputs: EntryInputs {
                    entries,
                    binding: &latest.binding,
                    wallet_currency: latest.wallet_currency,
                    until: input.until,
                },
                period: input.period,
            })?;
        }
    }
    Ok(())
}

/// Quantities of other meters of the same product and wallet pin, for the formulas of its prices.
#[derive(Clone, Copy)]
pub(crate) struct EntryInputs<'a> {
    pub(crate) entries: &'a [Entry],
    pub(crate) binding: &'a CompiledBinding,
    pub(crate) wallet_currency: Option<Currency>,
    pub(crate) until: Option<Instant>,
}

impl EntryInputs<'_> {
    fn sum(&self, of: impl Fn(&CompiledBinding) -> bool) -> Option<Exact> {
        let mine = |entry: &&Entry| {
            entry.product_id() == self.binding.product_id
                && entry.wallet_currency == self.wallet_currency
                && of(&entry.binding)
        };
        let run = sorted(self.entries.iter().filter(mine));
        let mut groups = run.chunk_by(|a, b| group_of(a) == group_of(b));
        groups.try_fold(Exact::ZERO, |sum, group| sum.checked_add(group_quantity(group, self.until)?)).ok()
    }
}

impl Inputs for EntryInputs<'_> {
    fn of_meter(&self, meter_key: &str) -> Option<Exact> {
        self.sum(|binding| binding.meter.key == meter_key)
    }

    fn of_variable(&self, name: &str) -> Option<Exact> {
        self.sum(|binding| binding.role == BindingRole::FormulaInput && binding.variable.as_deref() == Some(name))
    }
}

fn terms_of<'t>(input: &RatingInput<'t>, entry: &Entry) -> Option<&'t Terms> {
    let matches = |terms: &&Terms| terms.product_id == entry.product_id() && terms.metric_key == entry.metric_key();
    input.terms.iter().find(matches)
}

/// Takes from what is left of an allowance.
fn draw(quantity: Exact, allowance: &mut Exact) -> Result<Exact> {
    let drawn = quantity.min(*allowance).floored();
    *allowance = allowance.checked_sub(drawn)?;
    Ok(drawn)
}

fn billed(entries: &[Entry]) -> Run<'_> {
    sorted(entries.iter().filter(|entry| entry.binding.role == BindingRole::Primary))
}

/// Only the totals per wallet pin; allocates nothing for a window of up to eight keys.
///
/// # Errors
/// `Overflow`, `CurrencyMismatch`, `Unpriced`.
pub fn accrue(input: &RatingInput<'_>, entries: &[Entry]) -> Result<SmallVec<[Accrual; 2]>> {
    let mut totals = SmallVec::new();
    for_each_billable(input, entries, &billed(entries), |billable| {
        let amount = billable.price.money(billable.amount_minor()?)?;
        add_total(&mut totals, billable.latest.wallet_currency, amount)
    })?;
    totals.sort_unstable_by_key(|total: &Accrual| total.wallet_currency);
    Ok(totals)
}

/// The running total of one product and metric: all price keys, wallet pins and price segments together.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// The binding of its latest part.
    pub binding: Arc<CompiledBinding>,
    /// Quantity, before the allowance; may be negative where the meter allows it.
    pub quantity: Exact,
    /// Total allowance.
    pub allowance: Quantity,
    /// Net amount, where it was asked for.
    pub amount: Option<Money>,
}

impl Pool {
    /// Product and metric.
    #[must_use]
    pub fn pair(&self) -> (ProductId, &str) {
        (self.binding.product_id, &self.binding.meter.metric_key)
    }
}

/// What is used of each product and metric, and its amount where it is wanted.
///
/// # Errors
/// `Overflow`, `CurrencyMismatch`, `Unpriced`.
pub(crate) fn pools(
    input: &RatingInput<'_>,
    entries: &[Entry],
    wants_amount: impl Fn(&CompiledBinding) -> bool,
) -> Result<Vec<Pool>> {
    let mut pools: Vec<Pool> = Vec::new();
    for_each_billable(input, entries, &billed(entries), |billable| {
        let binding = Arc::clone(&billable.latest.binding);
        let wanted = wants_amount(&binding);
        let amount = if wanted { Some(billable.price.money(billable.amount_minor()?)?) } else { None };
        match pools.last_mut().filter(|pool| pool.pair() == (binding.product_id, &binding.meter.metric_key)) {
            Some(pool) => {
                pool.binding = binding;
                pool.quantity = pool.quantity.checked_add(billable.quantity)?;
                pool.amount = pool.amount.zip(amount).map(|(sum, more)| add(sum, more)).transpose()?;
            }
            None => pools.push(Pool {
                binding,
                quantity: billable.quantity,
                allowance: terms_of(input, billable.latest).map_or(Quantity::ZERO, |terms| terms.allowance),
                amount,
            }),
        }
        Ok(())
    })?;
    Ok(pools)
}

fn add_total(totals: &mut SmallVec<[Accrual; 2]>, wallet_currency: Option<Currency>, amount: Money) -> Result<()> {
    match totals.iter_mut().find(|total| total.wallet_currency == wallet_currency) {
        Some(total) => total.amount = add(total.amount, amount)?,
        None => totals.push(Accrual { wallet_currency, amount }),
    }
    Ok(())
}

fn add(a: Money, b: Money) -> Result<Money> {
    a.add(b).map_err(|error| match error {
        domain::money::MoneyError::CurrencyMismatch { .. } => RatingError::CurrencyMismatch,
        _ => RatingError::Overflow("the amount"),
    })
}

/// Lines with their atoms and tier walks, and the totals per wallet pin.
///
/// # Errors
/// `Overflow`, `CurrencyMismatch`, `Unpriced`.
pub fn rate(input: &RatingInput<'_>, entries: &[Entry]) -> Result<Rated> {
    let mut rated = Rated { informational: informational(input, entries)?, ..Rated::default() };
    for_each_billable(input, entries, &billed(entries), |billable| {
        add_atom(&mut rated.lines, billable.atom()?, billable.latest)
    })?;
    rated.lines.sort_by(|a, b| line_order(a).cmp(&line_order(b)));
    for line in &rated.lines {
        add_total(&mut rated.totals, line.wallet_currency, line.amount)?;
    }
    rated.totals.sort_unstable_by_key(|total| total.wallet_currency);
    Ok(rated)
}

fn line_order(line: &RatedLine) -> impl Ord + '_ {
    (line.product_id, line.metric_key.as_str(), line.price_key.as_deref(), line.wallet_currency)
}

fn add_atom(lines: &mut Vec<RatedLine>, atom: Atom, entry: &Entry) -> Result<()> {
    let same = |line: &&mut RatedLine| {
        line.product_id == entry.product_id()
            && line.metric_key == entry.metric_key()
            && line.price_key.as_deref() == entry.price_key()
            && line.wallet_currency == entry.wallet_currency
    };
    if let Some(line) = lines.iter_mut().find(same) {
        line.quantity = line.quantity.checked_add(atom.quantity)?;
        line.included_quantity = line.included_quantity.checked_add(atom.allowance_quantity)?;
        line.billable_quantity = line.billable_quantity.checked_add(atom.billable_quantity)?;
        line.event_count += atom.event_count;
        line.amount = add(line.amount, atom.amount)?;
        line.atoms.push(atom);
        return Ok(());
    }
    lines.push(RatedLine {
        product_id: entry.product_id(),
        metric_key: entry.metric_key().to_owned(),
        price_key: entry.price_key().map(str::to_owned),
        wallet_currency: entry.wallet_currency,
        quantity: atom.quantity,
        included_quantity: atom.allowance_quantity,
        billable_quantity: atom.billable_quantity,
        event_count: atom.event_count,
        amount: atom.amount,
        atoms: vec![atom],
    });
    Ok(())
}

fn informational(input: &RatingInput<'_>, entries: &[Entry]) -> Result<Vec<InformationalLine>> {
    let run = sorted(entries.iter().filter(|entry| entry.binding.role != BindingRole::Primary));
    let mut lines: Vec<InformationalLine> = Vec::new();
    for group in run.chunk_by(|a, b| group_of(a) == group_of(b)) {
        let (quantity, entry) = (group_quantity(group, input.until)?, group[group.len() - 1]);
        let event_count: u64 = group.iter().map(|entry| entry.event_count).sum();
        let key = (entry.binding.binding_id, entry.wallet_currency);
        if let Some(line) = lines.iter_mut().find(|line| (line.binding_id, line.wallet_currency) == key) {
            line.quantity = line.quantity.checked_add(quantity)?;
            line.event_count += event_count;
            continue;
        }
        lines.push(InformationalLine {
            product_id: entry.product_id(),
            metric_key: entry.metric_key().to_owned(),
            binding_id: entry.binding.binding_id,
            role: entry.binding.role,
            wallet_currency: entry.wallet_currency,
            quantity,
            event_count,
        });
    }
    Ok(lines)
}
