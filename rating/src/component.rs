//! FORMULA meters (meters.md 5, MeterFormula): a formula over the values of other meters in the same window.
//!
//! A FORMULA meter reads no event. Each meter that it names, directly or through further FORMULA meters, is a [`Component`]
//! of its binding: it reads the events of its own metric with its own function, filter and dedup key, and its running totals
//! stand under the binding and the rating key of the FORMULA meter. From them the quantity of a sub-window is computed anew
//! each time, so it is a function of the set of events, as every other one (rule C1).

use std::cell::Cell;
use std::sync::Arc;

use domain::{FormulaVarType, MeterId, Quantity, VersionId};
use smallvec::SmallVec;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::formula::{Environment, Formula, FormulaError, FormulaVariable, Number, Place, Value, Variable};
use crate::rate_table::RateTable;

/// A version of a FORMULA meter, ready to be evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct MeterFormula {
    version_id: VersionId,
    negative_allowed: bool,
    formula: Formula,
    /// Of the variables, in the order of their declaration.
    names: Vec<String>,
}

impl MeterFormula {
    /// Compiles the expression of a meter over the variables with these names.
    ///
    /// # Errors
    /// Everything that is wrong with it; `variable` is the index of a name that is wrong.
    pub fn compile(
        version_id: VersionId,
        expression: &str,
        names: Vec<String>,
        negative_allowed: bool,
    ) -> Result<Self, Vec<FormulaError>> {
        let declare = |name: &String| FormulaVariable {
            name: name.clone(),
            var_type: FormulaVarType::Number,
            default: None,
            required: true,
            description: None,
        };
        let declared: Vec<_> = names.iter().map(declare).collect();
        let formula = Formula::compile(expression, Place::Meter, &declared)?;
        Ok(Self { version_id, negative_allowed, formula, names })
    }

    /// The version of the FORMULA meter.
    #[must_use]
    pub fn version_id(&self) -> VersionId {
        self.version_id
    }

    /// Number of its variables.
    pub(crate) fn width(&self) -> usize {
        self.names.len()
    }

    /// The value for the values of its variables: half-even at 12 fraction digits, floored at 0 unless the meter allows
    /// negative ones. Notes a division by zero, which is 0.
    ///
    /// # Errors
    /// `Formula`, `Overflow`.
    pub(crate) fn value(&self, values: &[Exact], has_divided_by_zero: &Cell<bool>) -> Result<Quantity> {
        let result = self.formula.evaluate(&Values { names: &self.names, values, has_divided_by_zero })?;
        let value = result.to_quantity().ok_or(RatingError::Overflow("the result of the meter's formula"))?;
        Ok(if value.is_negative() && !self.negative_allowed { Quantity::ZERO } else { value })
    }
}

/// What a formula reads.
struct Values<'a> {
    names: &'a [String],
    values: &'a [Exact],
    has_divided_by_zero: &'a Cell<bool>,
}

impl Environment for Values<'_> {
    fn variable(&self, variable: &Variable) -> Option<Value<'_>> {
        let index = self.names.iter().position(|name| *name == variable.name)?;
        self.values.get(index).map(|value| Number::from(*value).into())
    }

    fn table(&self, _: &str) -> Option<&RateTable> {
        None
    }

    fn divided_by_zero(&self) {
        self.has_divided_by_zero.set(true);
    }
}

/// One variable of a FORMULA meter.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The meter.
    pub formula: Arc<MeterFormula>,
    /// Index of the variable.
    pub variable: usize,
}

/// The part that a meter has in a FORMULA meter.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    path: Vec<Step>,
    metric_key: String,
    id: u128,
    part_id: u128,
}

impl Component {
    /// The meter at the end of a path of variables from the FORMULA meter down, which is never empty.
    #[must_use]
    pub fn new(path: Vec<Step>, binding_version: VersionId, meter_id: MeterId, metric_key: String) -> Self {
        let mut bytes = SmallVec::<[u8; 256]>::new();
        bytes.extend_from_slice(meter_id.0.as_bytes());
        for Step { formula, variable } in &path {
            bytes.extend_from_slice(formula.names[*variable].as_bytes());
            bytes.push(0);
        }
        let id = xxh3_128(&bytes);
        bytes.extend_from_slice(binding_version.0.as_bytes());
        for Step { formula, .. } in &path {
            bytes.extend_from_slice(formula.version_id.0.as_bytes());
        }
        Self { path, metric_key, id, part_id: xxh3_128(&bytes) }
    }

    /// The variables on the way from the FORMULA meter that is bound to this one.
    #[must_use]
    pub fn path(&self) -> &[Step] {
        &self.path
    }

    /// Metric of the events that it reads.
    #[must_use]
    pub fn metric_key(&self) -> &str {
        &self.metric_key
    }

    /// The same in all versions: which meter, by which names. Dedup keys and reports last over new versions by it.
    #[must_use]
    pub fn id(&self) -> u128 {
        self.id
    }

    /// The same in all versions of the component alone: the totals from which one result of the formulas is computed.
    /// Distinct values are counted within it, so that each result is a function of the set of its events.
    #[must_use]
    pub(crate) fn part_id(&self) -> u128 {
        self.part_id
    }

    /// What stands for the version of the meter in rating keys, with this version of the component.
    #[must_use]
    pub fn version_of(&self, meter_version: VersionId) -> VersionId {
        let mut bytes = SmallVec::<[u8; 32]>::new();
        bytes.extend_from_slice(&self.part_id.to_le_bytes());
        bytes.extend_from_slice(meter_version.0.as_bytes());
        VersionId(Uuid::from_u128(xxh3_128(&bytes)))
    }
}
