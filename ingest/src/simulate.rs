//! `POST /v1/usage-events/simulate`: the usage lines and atoms that the next invoice would get with further events; nothing
//! is stored (usage.md 1).

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use billing::invoice::InvoiceLineDTO;
use billing::invoice::invoiced::Invoiced;
use billing::invoice::preview::usage_lines;
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::{Error, FieldError, Input, Instant, Result, Scope, SubscriptionId, UsageEvent};
use serde_json::Value;
use store::{Store, StoreError};

use crate::door::wire::BATCH_MAX;
use crate::door::{Door, Judged, NewEvent};
use crate::trial::Trial;
use crate::usage::UsageStore;
use crate::view::IngestEventRequest;

/// `SimulateUsageRequest`.
#[derive(Clone, Debug, utoipa::ToSchema)]
pub struct SimulateUsageRequest {
    /// Whose next invoice.
    pub subscription_id: SubscriptionId,
    /// 1 to 1,000 events, all of this subscription.
    #[schema(value_type = Vec<IngestEventRequest>)]
    pub events: Vec<NewEvent>,
}

impl SimulateUsageRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field of every event.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let subscription_id = input.required("subscription_id", Field::id);
        let events = input.required("events", |field| match field.raw().as_array() {
            Some(events) if (1..=BATCH_MAX).contains(&events.len()) => Ok(events.as_slice()),
            Some(_) => field.refuse(Code::OutOfRange, format!("must have 1 to {BATCH_MAX} events")),
            None => field.refuse(Code::InvalidFormat, "must be a list of events"),
        });
        let mut refused = Refused::default();
        let read = |(index, event): (usize, &Value)| {
            NewEvent::read(&event.to_string()).map_err(|error| refused.note(index, error)).ok()
        };
        let events: Vec<NewEvent> = events.unwrap_or_default().iter().enumerate().filter_map(read).collect();
        match (input.finish(), subscription_id) {
            (Ok(()), Some(subscription_id)) => {
                refused.finish()?;
                Ok(Self { subscription_id, events })
            }
            (Err(Error::Validation(mut errors)), _) => {
                errors.append(&mut refused.0);
                Err(Error::Validation(errors))
            }
            (Err(error), _) => Err(error),
            (Ok(()), None) => Err(Error::invariant("a required member passed unread")),
        }
    }
}

/// What is wrong with events, each with its index.
#[derive(Default)]
struct Refused(Vec<FieldError>);

impl Refused {
    fn note(&mut self, index: usize, error: Error) {
        let place = format!("events[{index}]");
        match error {
            Error::Validation(errors) => self.0.extend(
                errors.into_iter().map(|error| FieldError { field: format!("{place}.{}", error.field), ..error }),
            ),
            other => self.0.push(FieldError { field: place, code: Code::NotAllowed, message: other.to_string() }),
        }
    }

    fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Validation(self.0)) }
    }
}

/// What a simulation reads.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Subscriptions and checkpointed windows.
    pub store: &'a Store,
    /// Judges events as it does those that it takes.
    pub door: &'a Door,
    /// Tells repeats of counted events.
    pub usage: &'a Arc<dyn UsageStore>,
}

/// The usage lines of every window that the events fall into, in order of time: usually one, the next to be invoiced.
/// Events that a policy drops and repeats of counted ones change nothing, as when they are sent.
///
/// # Errors
/// `NotFound` for the subscription; `Validation` with the index of every event that could not be billed.
pub async fn simulate(
    scope: &Scope,
    sources: Sources<'_>,
    request: SimulateUsageRequest,
) -> Result<Vec<InvoiceLineDTO>> {
    let Sources { store, door, .. } = sources;
    let id = request.subscription_id;
    let snapshots = door.snapshots();
    let terms = snapshots.terms(scope.workspace_id, id).await?.ok_or_else(|| Error::not_found("subscription", id))?;
    let events = judged(scope, sources, request, terms.home_partition).await?;
    let catalog = snapshots.workspace(scope.workspace_id).await?;
    let mut conn = store.pool().acquire().await.context("simulating usage")?;
    let subscription = billing::subscription::read::get(scope, &mut conn, id).await?.subscription;
    let mut trial = Trial::load(&mut conn, snapshots, catalog.clone(), terms.clone()).await?;
    let (mut starts, mut refused) = (BTreeSet::<Instant>::new(), Refused::default());
    for (index, event) in events {
        match trial.count(&event) {
            Ok(start) => starts.extend(start),
            Err(error) => refused.note(index, error),
        }
    }
    refused.finish()?;
    let mut lines = Vec::new();
    for start in starts {
        let Some(window) = trial.window(start) else { continue };
        let invoiced = Invoiced::load(&mut conn, &[(id, start)]).await?;
        lines.append(&mut usage_lines(&subscription, &terms, &catalog, &window, &invoiced)?);
    }
    Ok(lines)
}

/// The events that would be counted, with their indexes.
async fn judged(
    scope: &Scope,
    sources: Sources<'_>,
    request: SimulateUsageRequest,
    home: u32,
) -> Result<Vec<(usize, UsageEvent)>> {
    let mut refused = Refused::default();
    for (index, event) in request.events.iter().enumerate() {
        if event.subscription_id != request.subscription_id {
            let message = "must be the subscription that is simulated";
            refused.note(index, Error::field("subscription_id", Code::NotAllowed, message));
        }
    }
    let judged = sources.door.judge_all(scope, request.events.into_iter().map(Ok).collect()).await?;
    let mut events = Vec::with_capacity(judged.len());
    let mut seen = HashSet::new();
    for (index, judged) in judged.into_iter().enumerate() {
        match judged {
            Judged::Good { event, .. } if seen.insert(event.id) => events.push((index, *event)),
            Judged::Good { .. } | Judged::Dropped { .. } => {}
            Judged::Unmatched { error, .. } | Judged::Bad(error) => refused.note(index, error),
        }
    }
    let ids: Vec<_> = events.iter().map(|(_, event)| event.id).collect();
    let counted = sources.usage.find(home, &ids).await?;
    events.retain(|(index, event)| match counted.get(&event.id) {
        None => true,
        Some(known) => {
            if known.payload_hash != event.payload_hash() {
                let detail = "the key was accepted earlier with other content; the first event counts";
                refused.note(*index, Error::conflict("IDEMPOTENCY_CONFLICT", detail));
            }
            false
        }
    });
    refused.finish()?;
    Ok(events)
}
