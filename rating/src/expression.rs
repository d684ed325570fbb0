//! What the expressions of a price are evaluated with (price-formulas.md, Variables supplied and Binding order).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use domain::event::VarValue;
use domain::{Instant, Quantity, UsageEvent};
use rust_decimal::Decimal;

use crate::entry::Variables;
use crate::exact::Exact;
use crate::formula::{Environment, Formula, Number, Source, Supplied, Value, Variable};
use crate::rate_table::RateTable;

/// The rate tables of a workspace.
pub trait RateTables: fmt::Debug {
    /// The version of a table that is in effect at an instant.
    fn table_at(&self, slug: &str, at: Instant) -> Option<&Arc<RateTable>>;
}

/// No tables at all.
impl RateTables for () {
    fn table_at(&self, _: &str, _: Instant) -> Option<&Arc<RateTable>> {
        None
    }
}

/// Where a variable of a product's formulas comes from (meter-bindings.md, FormulaBindings).
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// A fixed value.
    Constant(Value<'static>),
    /// The quantity of another meter of the product, by the key of the meter; 0 without an event.
    Meter(String),
    /// The quantity of the FORMULA_INPUT binding of the product that gives this variable; 0 without an event.
    Input,
}

/// Variable → source.
pub type Bindings = BTreeMap<String, Bound>;

/// The quantity of a meter or of a FORMULA_INPUT binding, for formulas that read it.
pub trait Inputs {
    /// Of the meter with this key; `None` beyond the range.
    fn of_meter(&self, meter_key: &str) -> Option<Exact>;
    /// Of the FORMULA_INPUT binding with this variable; `None` beyond the range.
    fn of_variable(&self, name: &str) -> Option<Exact>;
}

/// No inputs: a price that is computed by itself.
impl Inputs for () {
    fn of_meter(&self, _: &str) -> Option<Exact> {
        None
    }
    fn of_variable(&self, _: &str) -> Option<Exact> {
        None
    }
}

/// What the billing period supplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeriodFacts {
    /// Whole days of the billing period.
    pub days: u32,
    /// Count of the billing interval, e.g. 3 for every third month.
    pub interval_count: u32,
}

impl Default for PeriodFacts {
    /// A month of 30 days.
    fn default() -> Self {
        Self { days: 30, interval_count: 1 }
    }
}

/// What a price is walked with.
#[derive(Clone, Copy)]
pub struct Basis<'a> {
    /// Everything that was consumed, with what is included.
    pub quantity: Exact,
    /// What of it is included.
    pub included: Exact,
    /// What is left to be billed.
    pub billable: Exact,
    /// Event variables and rate tables of the rating key.
    pub variables: Option<&'a Variables>,
    /// Formula bindings of the product-meter binding.
    pub bindings: Option<&'a Bindings>,
    /// Quantities of other meters.
    pub inputs: &'a dyn Inputs,
    /// What the billing period supplies.
    pub period: PeriodFacts,
}

impl Basis<'static> {
    /// Of a quantity alone.
    #[must_use]
    pub fn of(quantity: Exact) -> Self {
        Self {
            quantity,
            included: Exact::ZERO,
            billable: quantity,
            variables: None,
            bindings: None,
            inputs: &(),
            period: PeriodFacts::default(),
        }
    }
}

/// What one tier adds to the basis.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TierFacts {
    pub(crate) unit_amount: Decimal,
    pub(crate) flat_amount: Decimal,
    pub(crate) order: u32,
    pub(crate) quantity: Option<Exact>,
    pub(crate) list_price: Option<Decimal>,
}

/// The values that the names of an expression have for one rating key and tier.
pub(crate) struct Scope<'a> {
    pub(crate) basis: &'a Basis<'a>,
    pub(crate) tier: TierFacts,
}

impl Scope<'_> {
    fn supplied(&self, supplied: Supplied) -> Option<Number> {
        let Self { basis, tier } = self;
        match supplied {
            Supplied::Quantity => Some(Number::from(basis.quantity)),
            Supplied::IncludedQuantity => Some(Number::from(basis.included)),
            Supplied::BillableQuantity => Some(Number::from(basis.billable)),
            Supplied::UnitAmount => Some(Number::from(tier.unit_amount)),
            Supplied::FlatAmount => Some(Number::from(tier.flat_amount)),
            Supplied::TierOrder => Some(Number::from(Quantity::from_int(tier.order.into()))),
            Supplied::TierQuantity => Some(Number::from(tier.quantity.unwrap_or(basis.billable))),
            Supplied::ListPrice => tier.list_price.map(Number::from),
            Supplied::DaysInPeriod => Some(Number::from(Quantity::from_int(basis.period.days.into()))),
            Supplied::BillingIntervalCount => {
                Some(Number::from(Quantity::from_int(basis.period.interval_count.into())))
            }
        }
    }

    fn bound(&self, name: &str) -> Option<Value<'_>> {
        let basis = self.basis;
        let quantity = match basis.bindings.and_then(|bindings| bindings.get(name))? {
            Bound::Constant(value) => return Some(value.clone()),
            Bound::Meter(key) => basis.inputs.of_meter(key),
            Bound::Input => basis.inputs.of_variable(name),
        };
        quantity.map(|quantity| Number::from(quantity).into())
    }
}

impl Environment for Scope<'_> {
    fn variable(&self, variable: &Variable) -> Option<Value<'_>> {
        if let Source::Supplied(supplied) = variable.source {
            return self.supplied(supplied).map(Into::into);
        }
        let of_event = self.basis.variables.and_then(|variables| variables.get(&variable.name)).map(Value::from);
        match variable.source {
            Source::Named(supplied) => of_event
                .or_else(|| self.bound(&variable.name))
                .or_else(|| supplied.and_then(|supplied| self.supplied(supplied)).map(Into::into)),
            _ => of_event,
        }
    }

    fn table(&self, slug: &str) -> Option<&RateTable> {
        self.basis.variables.and_then(|variables| variables.table(slug))
    }
}

/// What expressions read of each event, and which tables: it belongs to the rating key (rule C1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    /// Names as in the expressions, each once.
    names: Vec<String>,
    /// Slugs of rate tables, each once.
    tables: Vec<String>,
}

impl Reads {
    pub(crate) fn of<'f>(formulas: impl Iterator<Item = &'f Formula> + Clone) -> Self {
        let mut names: Vec<String> =
            formulas.clone().flat_map(|formula| formula.event_variables().into_iter().map(str::to_owned)).collect();
        let mut tables: Vec<String> = formulas.flat_map(|f| f.tables().iter().map(|used| used.slug.clone())).collect();
        names.sort_unstable();
        names.dedup();
        tables.sort_unstable();
        tables.dedup();
        Self { names, tables }
    }

    pub(crate) fn tables(&self) -> &[String] {
        &self.tables
    }

    /// The values that an event brings and the table versions of its instant; `None` when nothing is read of it.
    pub(crate) fn variables(&self, event: &UsageEvent, tables: &dyn RateTables) -> Option<Variables> {
        if self.names.is_empty() && self.tables.is_empty() {
            return None;
        }
        let value = |name: &String| read(event, name).map(|value| (name.clone(), value));
        let found = self.tables.iter().filter_map(|slug| tables.table_at(slug, event.timestamp).cloned());
        Some(Variables::new(self.names.iter().filter_map(value).collect()).with_tables(found.collect()))
    }
}

fn read(event: &UsageEvent, name: &str) -> Option<VarValue> {
    match name {
        "cost.amount" => {
            let (amount, _) = event.external_cost.as_ref()?;
            Quantity::try_from_decimal(*amount).ok().map(VarValue::Number)
        }
        "cost.currency" => event.external_cost.as_ref().map(|(_, currency)| VarValue::Text(currency.to_string())),
        _ => match name.strip_prefix("dim.") {
            Some(key) => event.dimension_vars.get(key).cloned(),
            None => event.pricing_vars.get(name).cloned(),
        },
    }
}
