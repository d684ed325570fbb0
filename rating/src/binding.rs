//! Bindings: a meter tied to a product (meter-bindings.md).

use std::sync::Arc;

use domain::error::FieldErrorCode as Code;
use domain::{BindingId, BindingRole, FieldError, Instant, ProductId, UsageEvent, VersionId};
use rust_decimal::Decimal;

use crate::error::{RatingError, Result};
use crate::exact::{Exact, Factor};
use crate::expression::Bindings;
use crate::filter::FilterTree;
use crate::meter::{CompiledMeter, MeterState, supported};
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
    factor: Factor,
    /// The meter's and the binding's, in ascending value.
    thresholds: Vec<BoundThreshold>,
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
    /// `Definition` for a multiplier or thresholds that break a rule, `Unsupported` for windows to come.
    pub fn compile(definition: BindingDefinition) -> Result<Self> {
        if let Some(window) = definition.window {
            supported(definition.meter.function, window)?;
        }
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
                Ok(Self { definition, factor, thresholds })
            }
            _ => Err(RatingError::Definition(errors)),
        }
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

    /// Start of the part of a window that this version and its meter version judge.
    #[must_use]
    pub fn part_start(&self) -> Instant {
        self.effective_from.max(self.meter.effective_from)
    }
}
