//! What a meter, or a draft of it, would make of stored events (meters.md 1, preview); nothing is stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use catalog::meter::{self, Meter, UpdateMeterRequest};
use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::event::VarValue;
use domain::input::Field;
use domain::period::Period;
use domain::{
    BindingId, BindingRole, CustomerId, Error, Input, Instant, MeterFunction, MeterId, ProductId, Result, Scope,
    SubscriptionId, UsageEvent, VersionId,
};
use rating::{
    BindingDefinition, Bindings, CompiledBinding, CompiledMeter, Component, Exact, Outcome, PeriodFacts, RatingInput,
    Target, WindowState,
};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::usage::{EventFilter, UsageStore};

/// Events that one preview looks at.
const EVENTS_MAX: usize = 100_000;
/// Events that are read at a time.
const PAGE: u32 = 1_000;

/// Body of `POST /v1/meters/{id}/preview`.
#[derive(Clone, Debug, ToSchema)]
pub struct MeterPreviewRequest {
    /// Only events of this subscription.
    pub subscription_id: Option<SubscriptionId>,
    /// Only events of this customer.
    pub customer_id: Option<CustomerId>,
    /// From this timestamp on.
    pub since: DateTime<Utc>,
    /// Before this timestamp; default: now.
    pub until: Option<DateTime<Utc>>,
    /// Changes of the meter that are tried.
    pub draft: Option<UpdateMeterRequest>,
}

impl MeterPreviewRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let subscription_id = input.optional("subscription_id", Field::id);
        let customer_id = input.optional("customer_id", Field::id);
        let since = input.required("since", Field::instant);
        let until = input.optional("until", Field::instant);
        let draft = input.optional("draft", Field::json_object);
        if let (Some(since), Some(until)) = (since, until)
            && until <= since
        {
            input.error("until", Code::OutOfRange, "must lie after since");
        }
        input.finish()?;
        let draft = draft.map(|draft| UpdateMeterRequest::read(&Value::Object(draft))).transpose();
        let since = since.ok_or_else(|| Error::field("since", Code::Required, "is required"))?;
        Ok(Self { subscription_id, customer_id, since, until, draft: draft.map_err(of_draft)? })
    }
}

/// Errors of a draft stand under its name.
fn of_draft(error: Error) -> Error {
    match error {
        Error::Validation(mut fields) => {
            fields.iter_mut().for_each(|field| field.field = format!("draft.{}", field.field));
            Error::Validation(fields)
        }
        other => other,
    }
}

/// What a meter makes of events.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MeterPreview {
    /// Value of the meter, 0 when empty.
    #[schema(value_type = String)]
    pub quantity: Exact,
    /// Whether the function has no value without an event.
    pub empty: bool,
    /// Events that count.
    pub event_count: u64,
    /// Events of the metric that do not: left out by filter or dedup key, or without the value that the meter reads.
    pub excluded_count: u64,
    /// By value of each dimension of the meter.
    pub by_dimension: Vec<MeterPreviewGroup>,
}

/// The events with one value of a dimension.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MeterPreviewGroup {
    /// Key of the dimension.
    pub dimension: String,
    /// Its value.
    pub value: String,
    /// Value of the meter over these events.
    #[schema(value_type = String)]
    pub quantity: Exact,
}

/// Evaluates a meter over stored events, by the code that counts them.
///
/// # Errors
/// `NotFound` for the meter; `Validation` and `Rule` for a draft that cannot be evaluated; 422 for more than 100,000 events.
pub async fn preview(
    scope: &Scope,
    conn: &mut PgConnection,
    usage: &Arc<dyn UsageStore>,
    id: MeterId,
    request: MeterPreviewRequest,
) -> Result<MeterPreview> {
    let (meter, readers) = meter::compiled(scope, conn, id, request.draft).await.map_err(of_draft)?;
    let bindings = readers.into_iter().map(|reader| bind(reader, request.since)).collect::<Result<Vec<_>>>()?;
    let window = Period { start: request.since, end: request.until.unwrap_or_else(|| scope.now()) };
    let filter = EventFilter {
        customer_ids: request.customer_id.map(|id| vec![id]),
        subscription_ids: request.subscription_id.map(|id| vec![id]),
        metric_keys: bindings.iter().map(|binding| binding.reads().to_owned()).collect(),
        occurred_after: Some(window.start),
        occurred_before: Some(window.end),
        ..EventFilter::default()
    };
    let events = stored(scope, usage, &filter).await?;
    evaluate(&meter, &bindings, window, &events)
}

/// In the order in which they were accepted, which decides about dedup keys; without voided ones.
async fn stored(scope: &Scope, usage: &Arc<dyn UsageStore>, filter: &EventFilter) -> Result<Vec<UsageEvent>> {
    let (mut events, mut after) = (Vec::new(), None);
    loop {
        let (page, has_more) = usage.list(scope, filter, after, PAGE).await?;
        after = page.last().map(|row| (row.counted.event.timestamp, row.counted.event.id));
        events.extend(page.into_iter().filter(|row| row.voided_at.is_none()).map(|row| *row.counted.event));
        if events.len() > EVENTS_MAX {
            let detail = format!("more than {EVENTS_MAX} events: choose a shorter time, a customer or a subscription");
            return Err(Error::business_rule(detail));
        }
        if !has_more {
            events.sort_by_key(|event| (event.accepted_at, event.id));
            return Ok(events);
        }
    }
}

/// A binding of its own for what reads the events.
fn bind((meter, component): (CompiledMeter, Option<Component>), since: Instant) -> Result<Arc<CompiledBinding>> {
    let definition = BindingDefinition {
        binding_id: BindingId(Uuid::nil()),
        version_id: VersionId(Uuid::nil()),
        effective_from: since,
        product_id: ProductId(Uuid::nil()),
        meter: Arc::new(meter),
        role: BindingRole::Informational,
        filter: None,
        multiplier: Decimal::ONE,
        thresholds: Vec::new(),
        window: None,
        variable: None,
        formula_bindings: Bindings::new(),
    };
    Ok(Arc::new(match component {
        Some(component) => CompiledBinding::compile_component(definition, component)?,
        None => CompiledBinding::compile(definition)?,
    }))
}

fn evaluate(
    meter: &Meter,
    bindings: &[Arc<CompiledBinding>],
    window: Period,
    events: &[UsageEvent],
) -> Result<MeterPreview> {
    let target = |binding| Target {
        binding,
        price: None,
        segment_start: window.start,
        allowance: None,
        window,
        timezone: chrono_tz::Tz::UTC,
        tables: &(),
        period: PeriodFacts::default(),
    };
    let (mut whole, mut excluded_count) = (WindowState::new(), 0);
    let mut groups: BTreeMap<(usize, String), WindowState> = BTreeMap::new();
    for event in events {
        let readers = bindings.iter().filter(|binding| binding.reads() == event.metric_key);
        let targets: Vec<Target<'_>> = readers.map(target).collect();
        let outcomes = whole.apply_all(event, &targets).unwrap_or_default();
        if !outcomes.iter().any(|outcome| matches!(outcome, Outcome::Counted(_))) {
            excluded_count += 1;
            continue;
        }
        for (place, dimension) in meter.dimensions.iter().enumerate() {
            let Some(value) = event.dimension_vars.get(dimension).map(VarValue::to_string) else { continue };
            groups.entry((place, value)).or_default().apply_all(event, &targets)?;
        }
    }
    let event_count = events.len() as u64 - excluded_count;
    let needs_event =
        matches!(meter.function, MeterFunction::Max | MeterFunction::Min | MeterFunction::Avg | MeterFunction::Last);
    let group = |((place, value), state): ((usize, String), WindowState)| {
        let dimension = meter.dimensions[place].clone();
        Ok(MeterPreviewGroup { dimension, value, quantity: quantity(&state, window.end)? })
    };
    Ok(MeterPreview {
        quantity: quantity(&whole, window.end)?,
        empty: event_count == 0 && needs_event,
        event_count,
        excluded_count,
        by_dimension: groups.into_iter().map(group).collect::<Result<_>>()?,
    })
}

/// All wallet pins and units together.
fn quantity(state: &WindowState, until: Instant) -> Result<Exact> {
    let rated = state.rate(&RatingInput { until: Some(until), ..RatingInput::default() })?;
    let mut lines = rated.informational.iter();
    Ok(lines.try_fold(Exact::ZERO, |sum, line| sum.checked_add(line.quantity))?)
}
