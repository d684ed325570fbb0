//! From running totals to amounts (rule C1): f(total) per rating key, computed anew each time.
//!
//! One atom per price version and segment: the parts that versions of binding and meter split are put together first
//! (summed; MAX and LAST: the later part wins), then the allowance is drawn, then the tiers are walked from zero on the
//! overage. One line per product, metric, price key and wallet pin.

use std::cell::Cell;
use std::sync::Arc;

use domain::{BindingId, BindingRole, Currency, Instant, MeterFunction, Money, PricingModel, ProductId, Quantity};
use smallvec::SmallVec;

use crate::binding::CompiledBinding;
use crate::commitment::{Commitment, CommittedPart};
use crate::component::{Component, Step};
use crate::entry::{Entry, Variables};
use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::expression::{Basis, Inputs, PeriodFacts};
use crate::pricing::{CompiledPrice, Walk, walk_with};
use crate::running::{CARRIED, is_running, is_within, merged};

/// How the totals of one product and metric are charged.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// Allowance of the period, all sources together, without what price keys have of their own.
    pub allowance: Quantity,
    /// Own allowances of price keys (`pool_scope` ITEM); usage of another key draws `allowance`.
    pub of_price_keys: Vec<(String, Quantity)>,
    /// Whether the price is price(used) - price(allowance) instead of price(overage) (products.md).
    pub tiers_on_total: bool,
    /// Commitment periods that the window meets; they do not overlap.
    pub commitments: Vec<Commitment>,
}

impl Terms {
    /// A shared allowance, walked from zero on the overage, and no commitment.
    #[must_use]
    pub fn new(product_id: ProductId, metric_key: impl Into<String>, allowance: Quantity) -> Self {
        Self {
            product_id,
            metric_key: metric_key.into(),
            allowance,
            of_price_keys: Vec::new(),
            tiers_on_total: false,
            commitments: Vec::new(),
        }
    }

    /// All allowances together: the shared one and those of price keys.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn total_allowance(&self) -> Result<Quantity> {
        self.of_price_keys.iter().try_fold(self.allowance, |sum, (_, own)| {
            sum.checked_add(*own).map_err(|_| RatingError::Overflow("the allowance"))
        })
    }
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
    /// What somebody should look at, though nothing is stopped by it.
    pub findings: Vec<Finding>,
}

/// A FORMULA meter divided by zero, which counts as 0 (meters.md 5, MeterFormula).
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Its binding.
    pub binding: Arc<CompiledBinding>,
    /// Start of the price segment.
    pub segment_start: Instant,
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
    /// The tier walk, up to the end of the billable quantity.
    pub walk: Walk,
    /// Where tiers do not start at zero, the walk up to the start, which is taken off: of the allowance with
    /// `tiers_on_total`, of what earlier windows of a commitment period used.
    pub covered: Option<Walk>,
    /// Part of a commitment; one within it is charged at its rate and not by `price`.
    pub committed: Option<CommittedPart>,
    /// Net amount.
    pub amount: Money,
}

impl Atom {
    /// How its tiers were walked.
    #[must_use]
    pub fn model(&self) -> PricingModel {
        if self.is_discounted() { PricingModel::Volume } else { self.price.model }
    }

    /// Whether it is within a commitment and charged at the rate of that.
    #[must_use]
    pub fn is_discounted(&self) -> bool {
        self.committed.is_some_and(|part| part.is_within)
    }
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
        (segment_of(entry), price.and_then(|price| price.price_key.as_deref()), entry.wallet_currency),
        (entry.unit_currency, price.map(|price| price.version_id)),
        entry.variables.as_ref().map(|variables| (variables.values(), variables.hash())),
    )
}

/// What was carried into a window stands together with its own totals.
pub(crate) fn segment_of(entry: &Entry) -> Instant {
    if is_running(entry) { CARRIED } else { entry.segment_start }
}

fn order_of(entry: &Entry) -> impl Ord + '_ {
    let ids = (entry.binding.version_id, entry.binding.meter.version_id);
    (group_of(entry), entry.sub_window, entry.binding.part_start(), ids)
}

/// How a quantity is read from totals.
#[derive(Default)]
struct Reading {
    /// As in [`RatingInput`].
    until: Option<Instant>,
    /// Set by a FORMULA meter that divides by zero.
    has_divided_by_zero: Cell<bool>,
}

impl From<Option<Instant>> for Reading {
    fn from(until: Option<Instant>) -> Self {
        Self { until, ..Self::default() }
    }
}

/// Quantity of one group: that of its sub-windows, summed (meters.md 5, Window).
fn group_quantity(group: &[&Entry], reading: &Reading) -> Result<Exact> {
    if let [entry] = group
        && entry.binding.component().is_none()
        && !is_running(entry)
    {
        return entry.quantity(reading.until);
    }
    if !group.iter().any(|entry| is_running(entry)) {
        let mut sub_windows = group.chunk_by(|a, b| a.sub_window == b.sub_window);
        return sub_windows.try_fold(Exact::ZERO, |sum, parts| sum.checked_add(sub_window_quantity(parts, reading)?));
    }
    let running = group.iter().copied().filter(|entry| is_running(entry));
    let running: Run<'_> = running.filter(|entry| reading.until.is_none_or(|end| is_within(entry, end))).collect();
    let going_on = if running.is_empty() { Exact::ZERO } else { running_quantity(&running, reading)? };
    // Others are there where a version has changed the kind of window.
    let rest: Run<'_> = group.iter().copied().filter(|entry| !is_running(entry)).collect();
    if rest.is_empty() { Ok(going_on) } else { going_on.checked_add(group_quantity(&rest, reading)?) }
}

/// Quantity of a window that goes on: what was carried and what was counted is one set of events.
fn running_quantity(entries: &[&Entry], reading: &Reading) -> Result<Exact> {
    let merged = merged(entries)?;
    sub_window_quantity(&merged.iter().collect::<Run<'_>>(), reading)
}

fn sub_window_quantity(parts: &[&Entry], reading: &Reading) -> Result<Exact> {
    if parts.iter().any(|entry| entry.binding.component().is_some()) {
        return formula_quantity(parts, 0, reading);
    }
    part_quantity(parts, reading.until)
}

/// The variables of FORMULA meters by which a total is reached.
fn path(entry: &Entry) -> &[Step] {
    entry.binding.component().map_or(&[], Component::path)
}

/// Quantity of one sub-window of a meter that is, or was, a FORMULA meter. `parts` are the totals under it; the variables of
/// their paths from `depth` on are its own. Each version of the meter gives a result, and the results are summed.
fn formula_quantity(parts: &[&Entry], depth: usize, reading: &Reading) -> Result<Exact> {
    let (mut rest, plain): (Run<'_>, Run<'_>) = parts.iter().copied().partition(|entry| path(entry).len() > depth);
    let mut sum = if plain.is_empty() { Exact::ZERO } else { part_quantity(&plain, reading.until)? };
    while let Some(first) = rest.first().copied() {
        let formula = &path(first)[depth].formula;
        let is_of_version = |entry: &&Entry| {
            entry.binding.version_id == first.binding.version_id
                && path(entry)[depth].formula.version_id() == formula.version_id()
        };
        let (own, others): (Run<'_>, Run<'_>) = rest.iter().copied().partition(is_of_version);
        let value_of = |variable: usize| {
            let read: Run<'_> = own.iter().copied().filter(|entry| path(entry)[depth].variable == variable).collect();
            formula_quantity(&read, depth + 1, reading)
        };
        let values: SmallVec<[Exact; 4]> = (0..formula.width()).map(value_of).collect::<Result<_>>()?;
        let result = formula.value(&values, &reading.has_divided_by_zero)?;
        let result = if depth == 0 { first.binding.multiplied(result)? } else { result.into() };
        sum = sum.checked_add(result)?;
        rest = others;
    }
    Ok(sum)
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
    groups.try_fold(Exact::ZERO, |sum, group| sum.checked_add(group_quantity(group, &Reading::default())?))
}

/// A piece of a group that one price charges: all that the allowance left of it, or its part within or beyond a commitment.
struct Billable<'a, 't> {
    /// The latest part, which gives versions and price.
    latest: &'a Entry,
    /// The price of the rating key, or what stands in for it beyond a commitment.
    price: &'t Arc<CompiledPrice>,
    /// What charges it: `price`, or the rate of a commitment.
    charged_by: &'t Arc<CompiledPrice>,
    /// Quantity of the whole group.
    group_quantity: Exact,
    /// Quantity of the piece, before the allowance.
    quantity: Exact,
    drawn: Exact,
    /// Where the tiers start.
    start: Exact,
    /// What is charged.
    billable: Exact,
    event_count: u64,
    committed: Option<CommittedPart>,
    inputs: EntryInputs<'a>,
    period: PeriodFacts,
}

impl Billable<'_, '_> {
    fn basis(&self) -> Basis<'_> {
        Basis {
            quantity: self.group_quantity.floored(),
            included: self.drawn,
            billable: self.billable,
            variables: self.latest.variables.as_deref(),
            bindings: Some(&self.latest.binding.formula_bindings),
            inputs: &self.inputs,
            period: self.period,
        }
    }

    /// price(start + billable) - price(start), and nothing where more usage makes the whole cheaper.
    fn amount_minor(&self) -> Result<u128> {
        let basis = self.basis();
        if self.start.is_zero() {
            return self.charged_by.total_minor(self.billable, &basis);
        }
        let end = self.charged_by.total_minor(self.start.checked_add(self.billable)?, &basis)?;
        Ok(end.saturating_sub(self.charged_by.total_minor(self.start, &basis)?))
    }

    fn amount(&self) -> Result<Money> {
        self.charged_by.money(self.amount_minor()?)
    }

    fn atom(&self) -> Result<Atom> {
        let basis = self.basis();
        let covered = (!self.start.is_zero()).then(|| walk_with(self.charged_by, self.start, &basis)).transpose()?;
        Ok(Atom {
            binding: Arc::clone(&self.latest.binding),
            price: Arc::clone(self.price),
            segment_start: self.latest.segment_start,
            unit_currency: self.latest.unit_currency,
            variables: self.latest.variables.clone(),
            quantity: self.quantity,
            allowance_quantity: self.drawn,
            billable_quantity: self.billable,
            event_count: self.event_count,
            walk: walk_with(self.charged_by, self.start.checked_add(self.billable)?, &basis)?,
            covered,
            committed: self.committed,
            amount: self.amount()?,
        })
    }
}

/// What the groups of one product and metric have taken so far of allowances and commitments.
struct Pool<'t> {
    terms: Option<&'t Terms>,
    allowance: Exact,
    of_price_keys: SmallVec<[(&'t str, Exact); 2]>,
    /// Used of each commitment of the terms.
    used: SmallVec<[Exact; 2]>,
}

impl<'t> Pool<'t> {
    fn new(terms: Option<&'t Terms>) -> Self {
        let Some(some) = terms else {
            return Self { terms, allowance: Exact::ZERO, of_price_keys: SmallVec::new(), used: SmallVec::new() };
        };
        let of_price_keys = some.of_price_keys.iter().map(|(key, quantity)| (key.as_str(), (*quantity).into()));
        Self {
            terms,
            allowance: some.allowance.into(),
            of_price_keys: of_price_keys.collect(),
            used: some.commitments.iter().map(|commitment| commitment.used.into()).collect(),
        }
    }

    /// Takes the group's share of its allowance.
    fn draw(&mut self, entry: &Entry, quantity: Exact) -> Result<Exact> {
        let own = entry.price_key().and_then(|key| self.of_price_keys.iter_mut().find(|(known, _)| *known == key));
        draw(quantity, own.map_or(&mut self.allowance, |(_, own)| own))
    }

    /// The commitment that the group falls under, with what is used of it.
    fn commitment(&mut self, entry: &Entry) -> Option<(&'t Commitment, &mut Exact)> {
        let terms = self.terms?;
        let index = terms.commitments.iter().position(|one| one.period.contains(entry.segment_start))?;
        Some((&terms.commitments[index], &mut self.used[index]))
    }
}

/// Calls `each` for every billed piece of every group in order, with its share of allowance and commitment.
fn for_each_billable<'a, 't>(
    input: &RatingInput<'t>,
    entries: &'a [Entry],
    run: &[&'a Entry],
    mut each: impl FnMut(Billable<'a, '_>) -> Result<()>,
) -> Result<()>
where
    'a: 't,
{
    let same_pool = |a: &&Entry, b: &&Entry| {
        a.binding.product_id == b.binding.product_id && a.binding.meter.metric_key == b.binding.meter.metric_key
    };
    for entries_of_pool in run.chunk_by(same_pool) {
        let mut pool = Pool::new(terms_of(input, entries_of_pool[0]));
        for group in entries_of_pool.chunk_by(|a, b| group_of(a) == group_of(b)) {
            let latest = group[group.len() - 1]; // a chunk is never empty
            let Some(price) = &latest.price else { return Err(RatingError::Unpriced) };
            let quantity = group_quantity(group, &input.until.into())?;
            let drawn = pool.draw(latest, quantity)?;
            let whole = Billable {
                latest,
                price,
                charged_by: price,
                group_quantity: quantity,
                quantity,
                drawn,
                start: if pool.terms.is_some_and(|terms| terms.tiers_on_total) { drawn } else { Exact::ZERO },
                billable: quantity.floored().checked_sub(drawn)?,
                event_count: group.iter().map(|entry| entry.event_count).sum(),
                committed: None,
                inputs: EntryInputs {
                    entries,
                    binding: &latest.binding,
                    wallet_currency: latest.wallet_currency,
                    until: input.until,
                },
                period: input.period,
            };
            match pool.commitment(latest) {
                None => each(whole)?,
                Some((commitment, used)) => each_committed(whole, commitment, used, &mut each)?,
            }
        }
    }
    Ok(())
}

/// Splits a group at its commitment (rule 8): what is within goes at the discounted rate, what exceeds it at the standard
/// price; both go on where earlier groups and windows of the commitment period stopped.
fn each_committed<'a, 't>(
    whole: Billable<'a, 't>,
    commitment: &'t Commitment,
    used: &mut Exact,
    each: &mut impl FnMut(Billable<'a, 't>) -> Result<()>,
) -> Result<()> {
    let before = *used;
    *used = before.checked_add(whole.billable)?;
    let within = whole.billable.min(Exact::from(commitment.committed).checked_sub(before)?.floored());
    let beyond = whole.billable.checked_sub(within)?;
    let part = |is_within| {
        let (plan_id, period_start) = (commitment.plan_id, commitment.period.start);
        Some(CommittedPart { plan_id, period_start, is_within })
    };
    let price = commitment.overage.as_ref().unwrap_or(whole.price);
    let latest = whole.latest;
    // Keys that variables or units of their own tell apart are walked each by itself.
    let is_plain = latest.variables.is_none() && latest.unit_currency.is_none() && !price.has_expressions();
    let earlier = if is_plain { commitment.beyond_of(price.version_id, latest.wallet_currency) } else { Exact::ZERO };
    let is_split = !beyond.is_zero() && !within.is_zero();
    if is_split || beyond.is_zero() {
        each(Billable {
            charged_by: &commitment.rate,
            quantity: whole.quantity.checked_sub(beyond)?,
            start: before,
            billable: within,
            committed: part(true),
            ..whole
        })?;
    }
    if beyond.is_zero() {
        return Ok(());
    }
    // What the first piece has, the second has not again.
    let (drawn, event_count) = if is_split { (Exact::ZERO, 0) } else { (whole.drawn, whole.event_count) };
    each(Billable {
        price,
        charged_by: price,
        quantity: if is_split { beyond } else { whole.quantity },
        drawn,
        start: whole.start.checked_add(earlier)?,
        billable: beyond,
        event_count,
        committed: part(false),
        ..whole
    })
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
        let reading = self.until.into();
        groups.try_fold(Exact::ZERO, |sum, group| sum.checked_add(group_quantity(group, &reading)?)).ok()
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
        add_total(&mut totals, billable.latest.wallet_currency, billable.amount()?)
    })?;
    totals.sort_unstable_by_key(|total: &Accrual| total.wallet_currency);
    Ok(totals)
}

/// The running total of one product and metric: all price keys, wallet pins and price segments together.
#[derive(Clone, Debug, PartialEq)]
pub struct PairTotal {
    /// The binding of its latest part.
    pub binding: Arc<CompiledBinding>,
    /// Quantity, before the allowance; may be negative where the meter allows it.
    pub quantity: Exact,
    /// Total allowance.
    pub allowance: Quantity,
    /// Net amount, where it was asked for.
    pub amount: Option<Money>,
    /// Where price keys have allowances of their own: what is used of each, and of the shared one.
    pub pools: Vec<PoolTotal>,
}

/// The running total of what draws one allowance of a product and metric.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolTotal {
    /// The price key that has it; `None`: all others.
    pub price_key: Option<String>,
    /// Quantity, before the allowance; `None` without usage.
    pub quantity: Option<Exact>,
    /// The allowance.
    pub allowance: Quantity,
}

impl PoolTotal {
    fn of_terms(terms: Option<&Terms>) -> Vec<Self> {
        let Some(terms) = terms.filter(|terms| !terms.of_price_keys.is_empty()) else { return Vec::new() };
        let own = terms.of_price_keys.iter().map(|(key, allowance)| (Some(key.clone()), *allowance));
        let all = own.chain([(None, terms.allowance)]); // the shared one is the last
        all.map(|(price_key, allowance)| Self { price_key, quantity: None, allowance }).collect()
    }

    /// Whether it was used, and nothing is left.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.quantity.is_some_and(|quantity| quantity >= self.allowance.into())
    }
}

impl PairTotal {
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
pub(crate) fn pair_totals(
    input: &RatingInput<'_>,
    entries: &[Entry],
    wants_amount: impl Fn(&CompiledBinding) -> bool,
) -> Result<Vec<PairTotal>> {
    let mut pair_totals: Vec<PairTotal> = Vec::new();
    for_each_billable(input, entries, &billed(entries), |billable| {
        let binding = Arc::clone(&billable.latest.binding);
        let wanted = wants_amount(&binding);
        let amount = if wanted { Some(billable.amount()?) } else { None };
        let pair = (binding.product_id, binding.meter.metric_key.as_str());
        match pair_totals.last_mut().filter(|total| total.pair() == pair) {
            Some(total) => {
                total.binding = binding;
                total.quantity = total.quantity.checked_add(billable.quantity)?;
                total.amount = total.amount.zip(amount).map(|(sum, more)| add(sum, more)).transpose()?;
            }
            None => {
                let terms = terms_of(input, billable.latest);
                pair_totals.push(PairTotal {
                    binding,
                    quantity: billable.quantity,
                    allowance: terms.map_or(Ok(Quantity::ZERO), Terms::total_allowance)?,
                    amount,
                    pools: PoolTotal::of_terms(terms),
                });
            }
        }
        let pools = pair_totals.last_mut().map(|total| &mut total.pools).into_iter().flatten();
        let key = billable.latest.price_key();
        if let Some(pool) = pools.into_iter().find(|pool| pool.price_key.is_none() || pool.price_key.as_deref() == key)
        {
            pool.quantity = Some(pool.quantity.unwrap_or(Exact::ZERO).checked_add(billable.quantity)?);
        }
        Ok(())
    })?;
    Ok(pair_totals)
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
    let (informational, findings) = (informational(input, entries)?, findings(input, entries)?);
    let mut rated = Rated { informational, findings, ..Rated::default() };
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

/// Divisions by zero, once for each binding and segment.
fn findings(input: &RatingInput<'_>, entries: &[Entry]) -> Result<Vec<Finding>> {
    let run = sorted(entries.iter().filter(|entry| entry.binding.component().is_some()));
    let mut findings: Vec<Finding> = Vec::new();
    for group in run.chunk_by(|a, b| group_of(a) == group_of(b)) {
        let reading = Reading::from(input.until);
        group_quantity(group, &reading)?;
        let finding = Finding { binding: Arc::clone(&group[0].binding), segment_start: group[0].segment_start };
        let is_same = |known: &Finding| {
            known.binding.binding_id == finding.binding.binding_id && known.segment_start == finding.segment_start
        };
        if reading.has_divided_by_zero.get() && !findings.iter().any(is_same) {
            findings.push(finding);
        }
    }
    Ok(findings)
}

fn informational(input: &RatingInput<'_>, entries: &[Entry]) -> Result<Vec<InformationalLine>> {
    let run = sorted(entries.iter().filter(|entry| entry.binding.role != BindingRole::Primary));
    let mut lines: Vec<InformationalLine> = Vec::new();
    for group in run.chunk_by(|a, b| group_of(a) == group_of(b)) {
        let (quantity, entry) = (group_quantity(group, &input.until.into())?, group[group.len() - 1]);
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
