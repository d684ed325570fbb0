//! Bindings: a meter tied to a product (meter-bindings.md).

use std::sync::Arc;

use domain::error::FieldErrorCode as Code;
use domain::{BindingId, BindingRole, FieldError, Instant, ProductId, Quantity, UsageEvent, VersionId};
use rust_decimal::Decimal;

use crate::component::Component;
use crate::error::{RatingError, Result};
use crate::exact::{Exact, Factor};
use crate::expression::Bindings;
use crate::filter::FilterTree;
use crate::meter::{CompiledMeter, MeterState};
use crate::running::supported;
use crate::span::Span;
use crate::threshold::{BoundThreshold, Threshold, ThresholdOwner};

/// A version of a binding as the catalog stores it, with the meter version that it pins.
#[derive(Clone, Debug, PartialEq)]
pub struct BindingDefinition {
    /// The binding.
    pub binding_id: BindingId,
    /// This version of it.
    pub version_id: VersionId,
    /// Start of this version.
    pub effective_from: Instant,
    /// The USAGE product.
    pub product_id: ProductId,
    /// The meter, at the version that is live with this version.
    pub meter: Arc<CompiledMeter>,
    /// Billed, input of a formula, or only shown.
    pub role: BindingRole,
    /// Further filter, ANDed with the meter's.
    pub filter: Option<FilterTree>,
    /// Unit conversion before the tier walk, e.g. bytes to GB 0.000000001.
    pub multiplier: Decimal,
    /// Thresholds beside the meter's.
    pub thresholds: Vec<Threshold>,
    /// Overrides the meter's window.
    pub window: Option<Span>,
    /// Variable of the price formula that it gives, for FORMULA_INPUT.
    pub variable: Option<String>,
    /// Where further variables of the price formula come from.
    pub formula_bindings: Bindings,
}

/// A binding version that is ready to evaluate events.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledBinding {
    definition: BindingDefinition,
    /// What the state of the meter is multiplied with.
    factor: Factor,
    /// Of a FORMULA meter: `meter` then is the FORMULA meter with function, filter and paths of one of those that it names.
    component: Option<Box<PartOfFormula>>,
    /// The meter's and the binding's, in ascending value.
    thresholds: Vec<BoundThreshold>,
}

/// A component, and what the result of its formula is multiplied with.
#[derive(Clone, Debug, PartialEq)]
struct PartOfFormula {
    component: Component,
    factor: Factor,
}

impl std::ops::Deref for CompiledBinding {
    type Target = BindingDefinition;
    fn deref(&self) -> &BindingDefinition {
        &self.definition
    }
}

impl CompiledBinding {
    /// Checks and compiles a definition.
    ///
    /// # Errors
    /// `Definition` for a multiplier or thresholds that break a rule, `Unsupported` for a window that does not go with the role.
    pub fn compile(definition: BindingDefinition) -> Result<Self> {
        let window = definition.window.unwrap_or(definition.meter.window);
        supported(window, definition.role)?;
        let mut errors = crate::threshold::check(&definition.thresholds);
        let factor = Factor::new(definition.multiplier);
        if factor.is_none() {
            let message = "must be positive, with at most 15 integer and 12 fraction digits".into();
            errors.push(FieldError { field: "multiplier".into(), code: Code::OutOfRange, message });
        }
        match factor {
            Some(factor) if errors.is_empty() => {
                let bound = |owner| move |threshold: &Threshold| BoundThreshold { owner, threshold: threshold.clone() };
                let mut thresholds: Vec<_> =
                    definition.meter.thresholds.iter().map(bound(ThresholdOwner::Meter)).collect();
                thresholds.extend(definition.thresholds.iter().map(bound(ThresholdOwner::Binding)));
                thresholds.sort_by_key(|bound| bound.threshold.value); // stable: the meter's first
                Ok(Self { definition, factor, component: None, thresholds })
            }
            _ => Err(RatingError::Definition(errors)),
        }
    }

    /// The same for one component of a binding of a FORMULA meter: its totals are multiplied after the formula.
    ///
    /// # Errors
    /// As [`CompiledBinding::compile`].
    pub fn compile_component(definition: BindingDefinition, component: Component) -> Result<Self> {
        let Self { definition, factor, thresholds, .. } = Self::compile(definition)?;
        let part = PartOfFormula { component, factor };
        Ok(Self { definition, factor: Factor::ONE, component: Some(Box::new(part)), thresholds })
    }

    /// Its part in a FORMULA meter; `None` for a meter that is bound itself.
    #[must_use]
    pub fn component(&self) -> Option<&Component> {
        self.component.as_ref().map(|part| &part.component)
    }

    /// Metric of the events that it reads. The lines are those of `meter.metric_key`.
    #[must_use]
    pub fn reads(&self) -> &str {
        self.component().map_or(&self.meter.metric_key, Component::metric_key)
    }

    /// The version of the meter that is bound.
    #[must_use]
    pub fn meter_version_id(&self) -> VersionId {
        let formula = self.component().and_then(|component| component.path().first());
        formula.map_or(self.meter.version_id, |step| step.formula.version_id())
    }

    /// Result of the formula × multiplier, exactly.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn multiplied(&self, result: Quantity) -> Result<Exact> {
        self.component.as_ref().map_or(self.factor, |part| part.factor).apply(result)
    }

    /// Whether meter filter and binding filter hold.
    #[must_use]
    pub fn matches(&self, event: &UsageEvent) -> bool {
        let passes = |filter: &Option<FilterTree>| filter.as_ref().is_none_or(|filter| filter.matches(event));
        passes(&self.meter.filter) && passes(&self.filter)
    }

    /// Over which windows it is evaluated: its own, else those of its meter.
    #[must_use]
    pub fn span(&self) -> Span {
        self.window.unwrap_or(self.meter.window)
    }

    /// All thresholds of this binding, the meter's among them, in ascending value.
    #[must_use]
    pub fn bound_thresholds(&self) -> &[BoundThreshold] {
        &self.thresholds
    }

    /// Meter value × multiplier, exactly; `None` for MAX, MIN, AVG and LAST without an event. A meter without negative
    /// values is floored at 0.
    /// What TIME_WEIGHTED still holds counts up to `until`, or up to the last report.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn quantity(&self, state: &MeterState, until: Option<Instant>) -> Result<Option<Exact>> {
        let Some(value) = state.value(until)? else { return Ok(None) };
        let exact = self.factor.apply(value)?;
        Ok(Some(if self.meter.negative_allowed { exact } else { exact.floored() }))
    }

    /// Whether the quantity can be expressed. What was held needs divisions, which only what is near the limit is worth.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn check_quantity(&self, state: &MeterState) -> Result<()> {
        match state {
            MeterState::TimeWeighted(held) if self.factor.is_safe(held.bound()) => Ok(()),
            _ => self.quantity(state, None).map(drop),
        }
    }

    /// Start of the part of a window that this version and its meter version judge.
    #[must_use]
    pub fn part_start(&self) -> Instant {
        self.effective_from.max(self.meter.effective_from)
    }
}
