//! Thresholds on a meter's observed value (thresholds-and-alerts.md), evaluated after each event (rule C3).
//!
//! GT and GTE fire when the value is found above the limit, however it came there. LT, LTE and EQ fire when the value
//! comes to the limit from outside; a window without events has no value for MAX, MIN, AVG and LAST, and 0 for the
//! other functions. A threshold fires once per window; `rearm` allows it again after the value went back, and one that closes
//! usage into an interim invoice starts a new count: it fires again when the value has grown by its limit since it fired. Every
//! event has a SLIDING window of its own: there, each comparison fires when the event takes the value of that window to the limit.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::period::Period;
use domain::{FieldError, Quantity, ThresholdActionKind, ThresholdBasis, ThresholdComparator};
use serde::{Deserialize, Serialize};

use crate::binding::CompiledBinding;
use crate::error::Result;
use crate::exact::Exact;
use crate::span::Span;
use domain::wide::{U256, power_of_ten};

/// Thresholds of one meter or binding.
pub const THRESHOLDS_MAX: usize = 20;
/// Actions of one threshold.
pub const ACTIONS_MAX: usize = 10;
/// Event type of a WEBHOOK action that names none.
pub const DEFAULT_EVENT_TYPE: &str = "meter.threshold_breached";

/// A limit on the observed value of a meter, in the wire form of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Unique in its meter or binding.
    pub name: String,
    /// How the observed value is compared with `value`.
    #[serde(default = "default_comparator")]
    #[schema(required = true)]
    pub comparator: ThresholdComparator,
    /// The limit: units, or percent of the allowance.
    pub value: Quantity,
    /// What `value` is measured in.
    #[serde(default = "default_basis")]
    #[schema(required = true)]
    pub basis: ThresholdBasis,
    /// What happens when it is crossed, one breach each. Without an action: a webhook to all subscribers.
    #[serde(default)]
    #[schema(required = true)]
    pub actions: Vec<ThresholdAction>,
    /// Whether it may fire again in the same window after the value went back.
    #[serde(default)]
    #[schema(required = true)]
    pub rearm: bool,
}

/// What a crossed threshold does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ThresholdAction {
    /// Kind of action.
    pub kind: ThresholdActionKind,
    /// Endpoint id or mail address; absent: all subscribers, the customer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub target: Option<String>,
    /// Event type of a WEBHOOK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub event_type: Option<String>,
}

fn default_comparator() -> ThresholdComparator {
    ThresholdComparator::Gte
}

fn default_basis() -> ThresholdBasis {
    ThresholdBasis::Absolute
}

impl Threshold {
    /// Reads one threshold of a request, with the defaults GTE and ABSOLUTE.
    ///
    /// # Errors
    /// The bad fields.
    pub fn read(field: Field<'_>) -> FieldResult<Self> {
        field.object(|input| {
            let name = input.required("name", |v| v.text(1, 120));
            let comparator = input.optional("comparator", Field::word);
            let value = input.required("value", Field::quantity);
            let basis = input.optional("basis", Field::word);
            let actions = input.optional("actions", |v| v.list(0, ACTIONS_MAX, ThresholdAction::read));
            let rearm = input.optional("rearm", Field::boolean);
            Some(Self {
                name: name?,
                comparator: comparator.unwrap_or_else(default_comparator),
                value: value?,
                basis: basis.unwrap_or_else(default_basis),
                actions: actions.unwrap_or_default(),
                rearm: rearm.unwrap_or_default(),
            })
        })
    }

    /// Reads the member `thresholds` of a meter or binding: at most 20. Unique names are checked when it is compiled.
    ///
    /// # Errors
    /// The bad fields.
    pub fn read_list(field: Field<'_>) -> FieldResult<Vec<Self>> {
        field.list(0, THRESHOLDS_MAX, Self::read)
    }

    /// Whether the observed value fulfils the comparison; never for a percentage of no allowance.
    #[must_use]
    pub fn holds(&self, observed: Exact, allowance: Option<Quantity>) -> bool {
        let order = match self.basis {
            ThresholdBasis::Absolute => observed.cmp(&Exact::from(self.value)),
            ThresholdBasis::AllowancePercent => match allowance.filter(|total| *total > Quantity::ZERO) {
                Some(total) => compare_percent(observed, self.value, total),
                None => return false,
            },
        };
        match self.comparator {
            ThresholdComparator::Gt => order == Ordering::Greater,
            ThresholdComparator::Gte => order != Ordering::Less,
            ThresholdComparator::Lt => order == Ordering::Less,
            ThresholdComparator::Lte => order != Ordering::Greater,
            ThresholdComparator::Eq => order == Ordering::Equal,
        }
    }

    fn is_upward(&self) -> bool {
        matches!(self.comparator, ThresholdComparator::Gt | ThresholdComparator::Gte)
    }

    /// Whether it starts a new count where it fires (action INVOICE). A limit of nothing is reached by every event.
    fn counts_anew(&self) -> bool {
        let invoices = self.actions.iter().any(|action| action.kind == ThresholdActionKind::Invoice);
        invoices && self.is_upward() && self.value > Quantity::ZERO
    }
}

/// Compares `observed ÷ total × 100` with `percent`, without dividing; `total` is positive.
pub(crate) fn compare_percent(observed: Exact, percent: Quantity, total: Quantity) -> Ordering {
    let (units, scale) = observed.parts();
    let (left_sign, right_sign) = (units.signum(), percent.units().signum());
    if left_sign != right_sign {
        return left_sign.cmp(&right_sign);
    }
    // |observed| × 100 at 10^-scale, against |percent| × total at 10^-24: both at 10^-24. A scale is 12 to 24.
    let widen = power_of_ten(24 - scale).unwrap_or(1) * 100;
    let left = U256::product(units.unsigned_abs(), widen);
    let right = U256::product(percent.units().unsigned_abs(), total.units().unsigned_abs());
    if left_sign < 0 { right.cmp(&left) } else { left.cmp(&right) }
}

impl ThresholdAction {
    /// What a threshold without actions does.
    #[must_use]
    pub fn default_webhook() -> Self {
        Self { kind: ThresholdActionKind::Webhook, target: None, event_type: None }
    }

    fn read(field: Field<'_>) -> FieldResult<Self> {
        field.object(|input| {
            let kind = input.required("kind", Field::word);
            let is_address = |v: &Field<'_>| kind == Some(ThresholdActionKind::Notify) && v.raw() != "";
            let target = input.optional("target", |v| if is_address(&v) { v.email() } else { v.text(0, 255) });
            let target = target.filter(|text| !text.is_empty());
            let event_type = input.optional("event_type", |v| v.text(0, 120)).filter(|text| !text.is_empty());
            Some(Self { kind: kind?, target, event_type })
        })
    }
}

/// The rules of a list of thresholds that no single one can see.
#[must_use]
pub fn check(thresholds: &[Threshold]) -> Vec<FieldError> {
    let mut names = HashSet::new();
    let mut errors = Vec::new();
    if thresholds.len() > THRESHOLDS_MAX {
        let message = format!("must have at most {THRESHOLDS_MAX} entries");
        errors.push(FieldError { field: "thresholds".into(), code: Code::TooLong, message });
    }
    for (index, threshold) in thresholds.iter().enumerate() {
        if !names.insert(threshold.name.as_str()) {
            let message = "must be unique within the list".into();
            errors.push(FieldError { field: format!("thresholds[{index}].name"), code: Code::NotAllowed, message });
        }
    }
    errors
}

/// Whose threshold it is; names are unique within one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ThresholdOwner {
    /// The meter's.
    Meter,
    /// The binding's.
    Binding,
}

/// A threshold as it applies to a binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundThreshold {
    /// Where it was written.
    pub owner: ThresholdOwner,
    /// The threshold.
    pub threshold: Threshold,
}

/// A threshold that has fired in this window.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FiredThreshold {
    /// Where it was written.
    pub owner: ThresholdOwner,
    /// Its name.
    pub name: String,
    /// Whether one of its actions was BLOCK: further usage is refused as long as it stands here.
    pub blocks: bool,
    /// The value at which it fired, where it starts a new count there.
    pub at: Option<Exact>,
}

/// One crossing and one of its actions: a row of `meter_breach`.
#[derive(Clone, Debug, PartialEq)]
pub struct Breach {
    /// Meter, product and binding that it belongs to.
    pub binding: Arc<CompiledBinding>,
    /// The window over which it was evaluated: the billing period, or a sub-window.
    pub window: Period,
    /// Where the threshold was written.
    pub owner: ThresholdOwner,
    /// Its name.
    pub threshold_name: String,
    /// Its limit.
    pub threshold_value: Quantity,
    /// What limit and observed value are measured in.
    pub basis: ThresholdBasis,
    /// Comparison used.
    pub comparator: ThresholdComparator,
    /// Value that crossed, in the same measure as the limit: units, or percent rounded to 12 fraction digits.
    pub observed_value: Exact,
    /// What is to be done.
    pub action: ThresholdAction,
}

impl FiredThreshold {
    /// Whether it is this threshold that has fired.
    pub(crate) fn is(&self, bound: &BoundThreshold) -> bool {
        self.owner == bound.owner && self.name == bound.threshold.name
    }
}

impl Breach {
    /// Whether the threshold may fire again in the same window.
    #[must_use]
    pub fn rearms(&self) -> bool {
        let is_own = |bound: &&BoundThreshold| bound.owner == self.owner && bound.threshold.name == self.threshold_name;
        self.binding.bound_thresholds().iter().find(is_own).is_some_and(|bound| bound.threshold.rearm)
    }

    /// Whether usage that makes this breach is refused where it is authorized before it is delivered: the action is BLOCK, and
    /// the value goes past the limit. What comes exactly up to an upper limit is the last that may be used.
    #[must_use]
    pub fn refuses(&self) -> bool {
        let is_past = match self.comparator {
            ThresholdComparator::Gt | ThresholdComparator::Gte => self.observed_value > self.threshold_value.into(),
            ThresholdComparator::Lt | ThresholdComparator::Lte | ThresholdComparator::Eq => true,
        };
        self.action.kind == ThresholdActionKind::Block && is_past
    }
}

/// What one change of an observed value did to the thresholds of a binding.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evaluation {
    pub(crate) breaches: Vec<Breach>,
    pub(crate) fired: Vec<FiredThreshold>,
    pub(crate) rearmed: Vec<FiredThreshold>,
}

/// Compares before and after one event; nothing is written, the caller applies the evaluation.
pub(crate) fn evaluate(
    binding: &Arc<CompiledBinding>,
    window: Period,
    before: Option<Exact>,
    after: Exact,
    allowance: Option<Quantity>,
    fired: &[FiredThreshold],
) -> Result<Evaluation> {
    let mut evaluation = Evaluation::default();
    for bound in binding.bound_thresholds() {
        let BoundThreshold { owner, threshold } = bound;
        let last = || fired.iter().find(|fired| fired.is(bound));
        if !threshold.holds(after, allowance) {
            evaluation.rearmed.extend(last().filter(|_| threshold.rearm).cloned());
            continue;
        }
        let is_kept = threshold.is_upward() && !matches!(binding.span(), Span::Sliding { .. });
        let from_outside = is_kept || before.is_none_or(|before| !threshold.holds(before, allowance));
        let last = if from_outside { last() } else { continue };
        let fires = match last.map(|last| last.at) {
            None => true,
            Some(None) => false,
            Some(Some(at)) => threshold.holds(after.checked_sub(at)?, allowance),
        };
        if fires {
            push_breaches(&mut evaluation.breaches, binding, window, bound, after, allowance)?;
            let blocks = threshold.actions.iter().any(|action| action.kind == ThresholdActionKind::Block);
            let at = threshold.counts_anew().then_some(after);
            evaluation.rearmed.extend(last.cloned());
            evaluation.fired.push(FiredThreshold { owner: *owner, name: threshold.name.clone(), blocks, at });
        }
    }
    Ok(evaluation)
}

fn push_breaches(
    breaches: &mut Vec<Breach>,
    binding: &Arc<CompiledBinding>,
    window: Period,
    bound: &BoundThreshold,
    observed: Exact,
    allowance: Option<Quantity>,
) -> Result<()> {
    let threshold = &bound.threshold;
    let observed_value = match (threshold.basis, allowance) {
        (ThresholdBasis::AllowancePercent, Some(total)) => observed.percent_of(total)?,
        _ => observed,
    };
    let mut push = |action: ThresholdAction| {
        breaches.push(Breach {
            binding: Arc::clone(binding),
            window,
            owner: bound.owner,
            threshold_name: threshold.name.clone(),
            threshold_value: threshold.value,
            basis: threshold.basis,
            comparator: threshold.comparator,
            observed_value,
            action,
        });
    };
    if threshold.actions.is_empty() {
        push(ThresholdAction::default_webhook());
    } else {
        threshold.actions.iter().cloned().for_each(push);
    }
    Ok(())
}
