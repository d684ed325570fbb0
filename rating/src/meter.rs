//! Meters: how the events of a window become one number (meters.md 5).
//!
//! The state of every function is a function of the *set* of counted events: their order does not matter.

use domain::error::FieldErrorCode as Code;
use domain::{
    Currency, FieldError, Instant, LateEventPolicy, MeterFunction, MeterId, Quantity, UsageEvent, UsageEventId,
    VersionId,
};

use crate::error::{RatingError, Result};
use crate::field::{FieldPath, FieldValue};
use crate::filter::FilterTree;
use crate::sighting::Share;
use crate::span::Span;
use crate::threshold::Threshold;
use crate::timeline::Held;
use domain::wide::{U256, div_half_even, signed};

/// A version of a meter as the catalog stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct MeterDefinition {
    /// The meter.
    pub meter_id: MeterId,
    /// This version of it.
    pub version_id: VersionId,
    /// Start of this version: where a window is split, the later part is the one with the later start.
    pub effective_from: Instant,
    /// Stable identifier.
    pub key: String,
    /// Metric of the events that it reads.
    pub metric_key: String,
    /// How events combine.
    pub function: MeterFunction,
    /// Path of the number to combine; absent: `quantity`.
    pub value_field: Option<String>,
    /// Path whose distinct values UNIQUE_COUNT counts.
    pub unique_by_field: Option<String>,
    /// Which events count.
    pub filter: Option<FilterTree>,
    /// Whether negative values are allowed.
    pub negative_allowed: bool,
    /// What happens to late events.
    pub late_event_policy: LateEventPolicy,
    /// Limits on the observed value.
    pub thresholds: Vec<Threshold>,
    /// Shape of the window.
    pub window: Span,
    /// Path whose value counts once per meter, subscription and window.
    pub dedup_key_path: Option<String>,
    /// Path of the currency, where the value is money.
    pub unit_currency_field: Option<String>,
}

/// A meter version that is ready to evaluate events.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledMeter {
    definition: MeterDefinition,
    source: Source,
    dedup_key: Option<FieldPath>,
    unit_currency: Option<FieldPath>,
}

/// What a meter takes from an event.
#[derive(Clone, Debug, PartialEq)]
enum Source {
    /// The event itself: COUNT.
    Event,
    /// A number.
    Value(FieldPath),
    /// A value that is counted once.
    Distinct(FieldPath),
}

impl std::ops::Deref for CompiledMeter {
    type Target = MeterDefinition;
    fn deref(&self) -> &MeterDefinition {
        &self.definition
    }
}

impl CompiledMeter {
    /// Checks and compiles a definition.
    ///
    /// # Errors
    /// `Definition` for paths and thresholds that break a rule.
    pub fn compile(definition: MeterDefinition) -> Result<Self> {
        let mut errors = crate::threshold::check(&definition.thresholds);
        let source = compile_source(&definition, &mut errors);
        let dedup_key = optional_path("dedup_key_path", definition.dedup_key_path.as_deref(), &mut errors);
        let unit_currency =
            optional_path("unit_currency_field", definition.unit_currency_field.as_deref(), &mut errors);
        if unit_currency == Some(FieldPath::Quantity) {
            let message = "must be the path of a text".into();
            errors.push(FieldError { field: "unit_currency_field".into(), code: Code::NotAllowed, message });
        }
        match source {
            Some(source) if errors.is_empty() => Ok(Self { definition, source, dedup_key, unit_currency }),
            _ => Err(RatingError::Definition(errors)),
        }
    }

    /// The value that an event is counted once by, beside its id (usage.md, Meter-level dedup).
    #[must_use]
    pub fn dedup_key<'e>(&self, event: &'e UsageEvent) -> Option<FieldValue<'e>> {
        self.dedup_key.as_ref().and_then(|path| path.read(event))
    }

    /// The currency of the value of an event, where the meter counts money: events of one currency are rated together.
    ///
    /// # Errors
    /// `Value` when the event has none, or no currency of ISO 4217.
    pub fn unit_currency(&self, event: &UsageEvent) -> Result<Option<Currency>> {
        let Some(path) = &self.unit_currency else { return Ok(None) };
        match path.read(event) {
            Some(FieldValue::Text(code)) => Currency::parse(code)
                .map(Some)
                .ok_or_else(|| RatingError::Value { field: path.to_string(), reason: "is no currency of ISO 4217" }),
            Some(_) => Err(RatingError::Value { field: path.to_string(), reason: "is no currency of ISO 4217" }),
            None => Err(RatingError::Value { field: path.to_string(), reason: "is missing" }),
        }
    }

    /// What an event brings to this meter, without looking at filters.
    ///
    /// # Errors
    /// `Value` when the field that it reads is missing or no number, `Negative`.
    pub fn input<'e>(&self, event: &'e UsageEvent) -> Result<MeterInput<'e>> {
        let (value, distinct) = match &self.source {
            Source::Event => (Quantity::ZERO, None),
            Source::Value(path) => (path.number(event)?, None),
            Source::Distinct(path) => (Quantity::ZERO, path.read(event)),
        };
        if !self.negative_allowed && (value.is_negative() || event.quantity.is_negative()) {
            return Err(RatingError::Negative);
        }
        Ok(MeterInput {
            value,
            distinct,
            member_is_new: false,
            timestamp: event.timestamp,
            accepted_at: event.accepted_at,
            event_id: event.id,
        })
    }
}

fn optional_path(field: &str, text: Option<&str>, errors: &mut Vec<FieldError>) -> Option<FieldPath> {
    let text = text?;
    let path = FieldPath::parse(text);
    if path.is_none() {
        let message = crate::field::ALLOWED_PATHS.into();
        errors.push(FieldError { field: field.into(), code: Code::InvalidFormat, message });
    }
    path
}

fn compile_source(definition: &MeterDefinition, errors: &mut Vec<FieldError>) -> Option<Source> {
    let mut refuse = |field: &str, code, message: &str| {
        errors.push(FieldError { field: field.into(), code, message: message.into() });
        None
    };
    match definition.function {
        // What a FORMULA meter combines reads the events (`crate::component`).
        MeterFunction::Count | MeterFunction::Formula => Some(Source::Event),
        MeterFunction::UniqueCount => match definition.unique_by_field.as_deref() {
            None => refuse("unique_by_field", Code::Required, "is required by UNIQUE_COUNT"),
            Some(text) => FieldPath::parse(text)
                .map(Source::Distinct)
                .or_else(|| refuse("unique_by_field", Code::InvalidFormat, crate::field::ALLOWED_PATHS)),
        },
        _ => {
            let path = definition.value_field.as_deref().map_or(Some(FieldPath::Quantity), FieldPath::parse);
            path.filter(FieldPath::may_be_number).map(Source::Value).or_else(|| {
                refuse(
                    "value_field",
                    Code::InvalidFormat,
                    "must be quantity, dimension_vars.<key> or pricing_vars.<key>",
                )
            })
        }
    }
}

/// What one event brings to a meter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeterInput<'e> {
    /// The number to combine; zero where the function reads none.
    pub value: Quantity,
    /// The value to count once; `None` where the function counts none, or the event has none.
    pub distinct: Option<FieldValue<'e>>,
    /// Set by the keeper of the members: `distinct` was not counted in this key before.
    pub member_is_new: bool,
    /// When it was consumed.
    pub timestamp: Instant,
    /// When the door accepted it.
    pub accepted_at: Instant,
    /// Breaks ties of LAST.
    pub event_id: UsageEventId,
}

/// Order of events for LAST: largest (timestamp, accepted_at, id) wins.
pub type LastKey = (Instant, Instant, UsageEventId);

/// The state of one meter function for one rating key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeterState {
    /// COUNT: counted events.
    Count(u64),
    /// SUM.
    Sum(Quantity),
    /// MAX; `None` before the first event.
    Max(Option<Quantity>),
    /// MIN; `None` before the first event.
    Min(Option<Quantity>),
    /// AVG.
    Avg {
        /// Sum of values.
        sum: Quantity,
        /// Number of values.
        count: u64,
    },
    /// LAST; `None` before the first event.
    Last(Option<(LastKey, Quantity)>),
    /// UNIQUE_COUNT: number of distinct values; the values themselves are in [`crate::Members`].
    UniqueCount(u64),
    /// TIME_WEIGHTED: what the reports have held; the reports themselves are rows.
    TimeWeighted(Held),
}

const SUM_OVERFLOW: RatingError = RatingError::Overflow("the sum of the meter");

impl MeterState {
    /// The state before the first event.
    ///
    /// # Errors
    /// `Unsupported` for FORMULA, which has no state of its own.
    pub fn new(function: MeterFunction) -> Result<Self> {
        Ok(match function {
            MeterFunction::Count => Self::Count(0),
            MeterFunction::Max => Self::Max(None),
            MeterFunction::Min => Self::Min(None),
            MeterFunction::Avg => Self::Avg { sum: Quantity::ZERO, count: 0 },
            MeterFunction::Last => Self::Last(None),
            MeterFunction::UniqueCount => Self::UniqueCount(0),
            MeterFunction::TimeWeighted => Self::TimeWeighted(Held::default()),
            MeterFunction::Sum => Self::Sum(Quantity::ZERO),
            MeterFunction::Formula => return Err(RatingError::Unsupported("the state of a FORMULA meter")),
        })
    }

    /// The function whose state this is.
    #[must_use]
    pub fn function(&self) -> MeterFunction {
        match self {
            Self::Count(_) => MeterFunction::Count,
            Self::Sum(_) => MeterFunction::Sum,
            Self::Max(_) => MeterFunction::Max,
            Self::Min(_) => MeterFunction::Min,
            Self::Avg { .. } => MeterFunction::Avg,
            Self::Last(_) => MeterFunction::Last,
            Self::UniqueCount(_) => MeterFunction::UniqueCount,
            Self::TimeWeighted(_) => MeterFunction::TimeWeighted,
        }
    }

    /// Puts one event in. A report of TIME_WEIGHTED is put in by the keeper of the timeline, who knows its neighbours.
    ///
    /// # Errors
    /// `Overflow`; the state is unchanged then.
    pub fn apply(&mut self, input: &MeterInput<'_>) -> Result<()> {
        match self {
            Self::Count(count) => *count += 1,
            Self::Sum(sum) => *sum = sum.checked_add(input.value).map_err(|_| SUM_OVERFLOW)?,
            Self::Max(max) => *max = Some(max.map_or(input.value, |max| max.max(input.value))),
            Self::Min(min) => *min = Some(min.map_or(input.value, |min| min.min(input.value))),
            Self::Avg { sum, count } => {
                *sum = sum.checked_add(input.value).map_err(|_| SUM_OVERFLOW)?;
                *count += 1;
            }
            Self::Last(last) => {
                let key = (input.timestamp, input.accepted_at, input.event_id);
                if last.is_none_or(|(latest, _)| key > latest) {
                    *last = Some((key, input.value));
                }
            }
            Self::UniqueCount(count) => *count += u64::from(input.member_is_new),
            Self::TimeWeighted(_) => {}
        }
        Ok(())
    }

    /// Puts the totals of two sets of events together.
    ///
    /// # Errors
    /// `Overflow`; `Unsupported` for totals of different functions.
    pub(crate) fn merge(&mut self, other: &Self) -> Result<()> {
        let larger = |a: Option<Quantity>, b: Option<Quantity>| a.max(b);
        let smaller = |a: Option<Quantity>, b: Option<Quantity>| a.zip(b).map(|(a, b)| a.min(b)).or(a).or(b);
        match (self, other) {
            (Self::Count(own), Self::Count(more)) => *own += more,
            (Self::Sum(own), Self::Sum(more)) => *own = own.checked_add(*more).map_err(|_| SUM_OVERFLOW)?,
            (Self::Max(own), Self::Max(more)) => *own = larger(*own, *more),
            (Self::Min(own), Self::Min(more)) => *own = smaller(*own, *more),
            (Self::Avg { sum, count }, Self::Avg { sum: more, count: further }) => {
                *sum = sum.checked_add(*more).map_err(|_| SUM_OVERFLOW)?;
                *count += further;
            }
            (Self::Last(own), Self::Last(more)) => *own = (*own).max(*more),
            // Each value is counted in one of them (`crate::sighting`).
            (Self::UniqueCount(own), Self::UniqueCount(more)) => *own += more,
            (Self::TimeWeighted(own), Self::TimeWeighted(more)) => own.merge(more)?,
            _ => return Err(RatingError::Unsupported("a total of this meter in a window that goes on")),
        }
        Ok(())
    }

    /// Takes out what sightings have put in.
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn take_out(&mut self, share: Share) -> Result<()> {
        let less = |sum: Quantity| sum.checked_sub(share.sum).map_err(|_| SUM_OVERFLOW);
        match self {
            Self::Count(count) | Self::UniqueCount(count) => *count = count.saturating_sub(share.count),
            Self::Sum(sum) => *sum = less(*sum)?,
            Self::Avg { sum, count } => (*sum, *count) = (less(*sum)?, count.saturating_sub(share.count)),
            Self::Max(_) | Self::Min(_) | Self::Last(_) | Self::TimeWeighted(_) => {}
        }
        Ok(())
    }

    /// Puts in what a sighting brings: the reverse of [`MeterState::take_out`].
    ///
    /// # Errors
    /// `Overflow`.
    pub(crate) fn put_in(&mut self, share: Share) -> Result<()> {
        let more = |sum: Quantity| sum.checked_add(share.sum).map_err(|_| SUM_OVERFLOW);
        match self {
            Self::Count(count) | Self::UniqueCount(count) => *count += share.count,
            Self::Sum(sum) => *sum = more(*sum)?,
            Self::Avg { sum, count } => (*sum, *count) = (more(*sum)?, *count + share.count),
            Self::Max(_) | Self::Min(_) | Self::Last(_) | Self::TimeWeighted(_) => {}
        }
        Ok(())
    }

    /// The meter's value; `None` for MAX, MIN, AVG and LAST without an event (a preview says `empty`, a bill 0).
    ///
    /// AVG and TIME_WEIGHTED are rounded half-even to 12 fraction digits; everything else is exact. What TIME_WEIGHTED still
    /// holds counts up to `until`, or up to the last report.
    ///
    /// # Errors
    /// `Overflow` for a count beyond what a quantity holds.
    pub fn value(&self, until: Option<Instant>) -> Result<Option<Quantity>> {
        match *self {
            Self::Count(count) | Self::UniqueCount(count) => {
                i64::try_from(count).map(|count| Some(Quantity::from_int(count))).map_err(|_| SUM_OVERFLOW)
            }
            Self::Sum(sum) => Ok(Some(sum)),
            Self::Max(value) | Self::Min(value) => Ok(value),
            Self::Avg { sum, count } => Ok(mean(sum, count)),
            Self::Last(last) => Ok(last.map(|(_, value)| value)),
            Self::TimeWeighted(held) => held.hours(until).map(Some),
        }
    }
}

/// `None` for no values; otherwise the quotient always fits, being no larger than the sum.
fn mean(sum: Quantity, count: u64) -> Option<Quantity> {
    let units = sum.units();
    let quotient = div_half_even(U256::product(units.unsigned_abs(), 1), u128::from(count))?;
    signed(quotient, units < 0).map(Quantity::from_units)
}
