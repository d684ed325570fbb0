//! Usage (usage.md): ingest, events, aggregates, running totals, rejections.

use billing::invoice::InvoiceLineDTO;
use domain::error::FieldErrorCode as Code;
use domain::wire::Word;
use domain::{CustomerId, Error, Instant, ProductId, RejectionId, Result, SubscriptionId, UsageEventId};
use ingest::door::{Entry, Submission, cloud_events};
use ingest::rejection::{
    self, DiscardRejectedEventRequest, RejectedUsageEvent, RejectedUsageEventStatus, ReplayRejectedEventRequest,
};
use ingest::simulate::{SimulateUsageRequest, Sources, simulate};
use ingest::usage::{
    AggregateQuery, EventCursor, EventFilter, GroupBy, UsageAggregateBucketSize, UsageAggregateMetric,
};
use ingest::view::{self, IngestEventRequest, SubscriptionUsage, UsageAggregateResponse, UsageEventView};
use ingest::void::{self, VoidUsageEventRequest};
use serde::Serialize;
use utoipa::openapi::schema::{OneOfBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::problem::{Outline, Problem};
use crate::{Answer, App, Ctx, Data, IngestCtx, PageOf, answer};

const TAG: &str = "Usage";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_usage_events, ingest_usage_events))
        .routes(routes!(ingest_usage_events_alias))
        .routes(routes!(aggregate_usage_events))
        .routes(routes!(simulate_usage_events))
        .routes(routes!(get_usage_event))
        .routes(routes!(void_usage_event))
        .routes(routes!(list_usage_event_rejections))
        .routes(routes!(get_usage_event_rejection))
        .routes(routes!(replay_usage_event_rejection))
        .routes(routes!(discard_usage_event_rejection))
        .routes(routes!(get_subscription_usage))
}

/// Up to 1,000 events; each stands alone.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "schema of a body that ingest reads without building it")]
pub struct IngestEventBatchRequest {
    /// The events.
    events: Vec<IngestEventRequest>,
}

/// Either form of the body. Written by hand: ingest reads it without building it, so there is no enum to derive from.
pub struct IngestBody;

impl PartialSchema for IngestBody {
    fn schema() -> RefOr<Schema> {
        let form = |name: String| Ref::from_schema_name(name);
        OneOfBuilder::new()
            .item(form(IngestEventRequest::name().into_owned()))
            .item(form(IngestEventBatchRequest::name().into_owned()))
            .into()
    }
}

impl ToSchema for IngestBody {
    fn name() -> std::borrow::Cow<'static, str> {
        "IngestBody".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((IngestEventRequest::name().into_owned(), IngestEventRequest::schema()));
        schemas.push((IngestEventBatchRequest::name().into_owned(), IngestEventBatchRequest::schema()));
        IngestEventRequest::schemas(schemas);
    }
}

/// What became of each event.
#[derive(Serialize, utoipa::ToSchema)]
pub struct IngestEventsResponse {
    /// Durable in the log.
    accepted: usize,
    /// Dropped by a policy.
    dropped: usize,
    /// Refused with a reason.
    rejected: usize,
    /// One entry per event, in order.
    results: Vec<IngestEventResult>,
}

/// What became of one event.
#[derive(Serialize, utoipa::ToSchema)]
pub struct IngestEventResult {
    /// Place in the request, from 0.
    index: usize,
    /// What became of it.
    status: IngestEventStatus,
    /// Event id; new and repeated events have the same.
    id: Option<UsageEventId>,
    /// Why it was dropped.
    reason: Option<String>,
    /// Why it was refused.
    #[schema(value_type = Option<Problem>)]
    error: Option<Box<serde_json::value::RawValue>>,
}

domain::wire_enum! {
    /// What became of an event at the door.
    pub enum IngestEventStatus {
        /// Durable, new or repeated.
        Accepted = "ACCEPTED",
        /// Dropped by a policy.
        Dropped = "DROPPED",
        /// Refused.
        Rejected = "REJECTED",
    }
}

/// Record usage: one event, or a batch in which each event stands alone
///
/// Also takes CloudEvents 1.0 (`application/cloudevents+json`, `application/cloudevents-batch+json`).
#[utoipa::path(
    post, path = "/v1/usage-events", operation_id = "ingest_usage_events", tag = TAG, request_body = IngestBody,
    responses((status = 202, description = "Durable in the event log", body = Data<IngestEventsResponse>))
)]
async fn ingest_usage_events(ctx: IngestCtx) -> Answer {
    ingest(ctx).await
}

/// Record usage (alias)
#[utoipa::path(
    post, path = "/v1/transaction/ingest", operation_id = "ingest_usage_events_alias", tag = "Transactions",
    request_body = IngestBody,
    responses((status = 202, description = "Durable in the event log", body = Data<IngestEventsResponse>))
)]
async fn ingest_usage_events_alias(ctx: IngestCtx) -> Answer {
    ingest(ctx).await
}

async fn ingest(IngestCtx(ctx): IngestCtx) -> Answer {
    ctx.require("usage:ingest")?;
    let engine = ctx.app.engine()?;
    let body = std::str::from_utf8(ctx.bytes()).map_err(|_| bad_request("the body must be UTF-8"))?;
    let (events, is_batch) = read_events(&ctx, body)?;
    ctx.take_ingest(events.len())?;
    let entries = match events {
        Events::Plain(events) => engine.door.accept(&ctx.scope, &events).await?,
        Events::Cloud(events) => {
            let read = |json: &str| ingest::door::NewEvent::read(&cloud_events::to_usage_event(json)?);
            engine.door.accept_read(&ctx.scope, events.into_iter().map(read).collect()).await?
        }
    };
    respond(&ctx, entries, is_batch)
}

enum Events<'a> {
    Plain(Vec<&'a str>),
    Cloud(Vec<&'a str>),
}

impl Events<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Plain(events) | Self::Cloud(events) => events.len(),
        }
    }
}

fn read_events<'a>(ctx: &Ctx, body: &'a str) -> Result<(Events<'a>, bool)> {
    match ctx.content_type().as_deref() {
        Some(cloud_events::SINGLE) => Ok((Events::Cloud(vec![body]), false)),
        Some(cloud_events::BATCH) => {
            let list: Vec<&serde_json::value::RawValue> = serde_json::from_str(body)
                .map_err(|error| bad_request(format!("the body must be a JSON list: {error}")))?;
            let max = ingest::door::wire::BATCH_MAX;
            if list.is_empty() || list.len() > max {
                return Err(bad_request(format!("a batch must have 1 to {max} events, has {}", list.len())));
            }
            Ok((Events::Cloud(list.into_iter().map(serde_json::value::RawValue::get).collect()), true))
        }
        None | Some("application/json") => match Submission::read(body)? {
            Submission::Single(event) => Ok((Events::Plain(vec![event]), false)),
            Submission::Batch(events) => Ok((Events::Plain(events), true)),
        },
        Some(other) => Err(bad_request(format!(
            "the content type must be application/json, {} or {}, not {other}",
            cloud_events::SINGLE,
            cloud_events::BATCH
        ))),
    }
}

fn bad_request(detail: impl Into<String>) -> Error {
    Error::BadRequest { code: "BAD_REQUEST", detail: detail.into() }
}

/// A single refused event is answered with its problem; a batch answers 202 whatever became of its members.
fn respond(ctx: &Ctx, entries: Vec<Entry>, is_batch: bool) -> Answer {
    let mut response =
        IngestEventsResponse { accepted: 0, dropped: 0, rejected: 0, results: Vec::with_capacity(entries.len()) };
    for (index, entry) in entries.into_iter().enumerate() {
        let (status, id, reason, error) = match entry {
            Entry::Accepted(id) => (IngestEventStatus::Accepted, Some(id), None, None),
            Entry::Dropped { id, reason } => (IngestEventStatus::Dropped, Some(id), Some(reason), None),
            Entry::Rejected(error) if !is_batch => return Err(error.into()),
            Entry::Rejected(error) => (IngestEventStatus::Rejected, None, None, Some(problem(ctx, &error)?)),
        };
        match status {
            IngestEventStatus::Accepted => response.accepted += 1,
            IngestEventStatus::Dropped => response.dropped += 1,
            IngestEventStatus::Rejected => response.rejected += 1,
        }
        response.results.push(IngestEventResult { index, status, id, reason, error });
    }
    answer::accepted(Data(response))
}

fn problem(ctx: &Ctx, error: &Error) -> Result<Box<serde_json::value::RawValue>> {
    let document =
        Outline::from(error).document(&ctx.app.settings.public_base_url, "/v1/usage-events", ctx.request_id());
    let text = String::from_utf8_lossy(&document).into_owned();
    serde_json::value::RawValue::from_string(text).map_err(|error| Error::internal("writing a problem document", error))
}

/// List usage events, newest first
#[utoipa::path(
    get, path = "/v1/usage-events", operation_id = "list_usage_events", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("sort" = Option<String>, Query, description = "-timestamp, which is the order in any case"),
        ("id" = Option<UsageEventId>, Query, description = "eq, in"),
        ("customer_id" = Option<CustomerId>, Query, description = "Who consumed: eq, in"),
        ("product_id" = Option<ProductId>, Query, description = "USAGE product: eq, in"),
        ("subscription_id" = Option<SubscriptionId>, Query, description = "Subscription: eq, in"),
        ("metric_key" = Option<String>, Query, description = "Repeatable or comma-separated: any of them"),
        ("timestamp" = Option<DateTime<Utc>>, Query, description = "eq, gt, gte, lt, lte"),
        ("occurred_after" = Option<DateTime<Utc>>, Query, description = "Timestamp at or after"),
        ("occurred_before" = Option<DateTime<Utc>>, Query, description = "Timestamp before"),
    ),
    responses((status = 200, description = "One page", body = PageOf<UsageEventView>))
)]
async fn list_usage_events(ctx: Ctx) -> Answer {
    ctx.require("usage:read")?;
    let parameters = Parameters::read(ctx.query(), &["limit", "cursor", "id", "sort"])?;
    let after = parameters.cursor()?;
    let (events, has_more) =
        ctx.app.engine()?.usage.list(&ctx.scope, &parameters.filter, after, parameters.limit).await?;
    let last = events.last().filter(|_| has_more).map(|e| (e.counted.event.timestamp, e.counted.event.id));
    let pagination = store::list::PageResponse {
        cursor: last.map(|last| parameters.write_cursor(last)),
        has_more,
        limit: parameters.limit,
    };
    answer::ok(PageOf { data: events.into_iter().map(UsageEventView::from).collect(), pagination })
}

/// One usage event; 404 until it has been processed
#[utoipa::path(
    get, path = "/v1/usage-events/{id}", operation_id = "get_usage_event", tag = TAG,
    params(("id" = UsageEventId, Path, description = "Event")),
    responses((status = 200, description = "The event", body = Data<UsageEventView>))
)]
async fn get_usage_event(ctx: Ctx) -> Answer {
    ctx.require("usage:read")?;
    let id: UsageEventId = ctx.path_id("id")?;
    let event = ctx.app.engine()?.usage.get(&ctx.scope, id).await?;
    let event = event.ok_or_else(|| Error::not_found("usage_event", id))?;
    answer::ok(Data(UsageEventView::from(event)))
}

/// Take an event out of billing
#[utoipa::path(
    post, path = "/v1/usage-events/{id}/void", operation_id = "void_usage_event", tag = TAG,
    params(("id" = UsageEventId, Path, description = "Event")), request_body = VoidUsageEventRequest,
    responses((status = 200, description = "The event, with `voided_at`", body = Data<UsageEventView>))
)]
async fn void_usage_event(ctx: Ctx) -> Answer {
    ctx.require("usage:write")?;
    let engine = ctx.app.engine()?;
    let id: UsageEventId = ctx.path_id("id")?;
    let request = ctx.body(VoidUsageEventRequest::read)?;
    // It may wait for the partitions, so the transaction begins afterwards.
    let event = engine.door.find(&ctx.scope, &engine.usage, id).await?;
    let mut write = ctx.write("void_usage_event").await?;
    let voided = void::void(&ctx.scope, write.tx(), &engine.snapshots, event, &request).await?;
    let answer = write.ok(Data(UsageEventView::from(voided))).await;
    engine.relay.nudge();
    answer
}

/// Time-bucketed totals
#[utoipa::path(
    get, path = "/v1/usage-events/aggregate", operation_id = "aggregate_usage_events", tag = TAG,
    params(
        ("bucket" = UsageAggregateBucketSize, Query, description = "hour, day or week, in UTC; weeks start on Monday"),
        ("since" = Option<DateTime<Utc>>, Query, description = "Default: 24 hours, 30 days or 26 weeks before `until`"),
        ("until" = Option<DateTime<Utc>>, Query, description = "Default: now"),
        ("metric" = Option<UsageAggregateMetric>, Query, description = "Default: count"),
        ("group_by" = Option<String>, Query, description = "none (default), metric_key or dim:<key>"),
        ("customer_id" = Option<CustomerId>, Query, description = "Who consumed: eq, in"),
        ("product_id" = Option<ProductId>, Query, description = "USAGE product: eq, in"),
        ("subscription_id" = Option<SubscriptionId>, Query, description = "Subscription: eq, in"),
        ("metric_key" = Option<String>, Query, description = "Repeatable or comma-separated: any of them"),
        ("top" = Option<u32>, Query, description = "Largest series kept apart, default 8; 0 keeps all"),
    ),
    responses((status = 200, description = "The buckets", body = Data<UsageAggregateResponse>))
)]
async fn aggregate_usage_events(ctx: Ctx) -> Answer {
    ctx.require("usage:read")?;
    let parameters = Parameters::read(ctx.query(), &["bucket", "since", "until", "metric", "group_by", "top"])?;
    let (query, top) = parameters.aggregate(ctx.scope.now())?;
    let found = ctx.app.engine()?.usage.aggregate(&ctx.scope, &query).await?;
    answer::ok(Data(UsageAggregateResponse::assemble(&query, found, top)?))
}

/// The usage lines that the next invoice would get with these events; nothing is stored
#[utoipa::path(
    post, path = "/v1/usage-events/simulate", operation_id = "simulate_usage_events", tag = TAG,
    request_body = SimulateUsageRequest,
    responses((status = 200, description = "The lines, all on one page", body = PageOf<InvoiceLineDTO>))
)]
async fn simulate_usage_events(ctx: Ctx) -> Answer {
    ctx.require("usage:read")?;
    let request = ctx.body(SimulateUsageRequest::read)?;
    let engine = ctx.app.engine()?;
    let sources = Sources { store: &ctx.app.store, door: &engine.door, usage: &engine.usage };
    answer::all(simulate(&ctx.scope, sources, request).await?)
}

/// Events that were accepted and then could not be billed
#[utoipa::path(
    get, path = "/v1/usage-event-rejections", operation_id = "list_usage_event_rejections", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<RejectedUsageEventStatus>, Query, description = "open, replayed or discarded"),
        ("code" = Option<String>, Query, description = "Reason"),
        ("customer_id" = Option<CustomerId>, Query, description = "Customer"),
        ("subscription_id" = Option<SubscriptionId>, Query, description = "Subscription"),
    ),
    responses((status = 200, description = "One page", body = PageOf<RejectedUsageEvent>))
)]
async fn list_usage_event_rejections(ctx: Ctx) -> Answer {
    ctx.require("usage:read")?;
    let query = ctx.list(&rejection::LIST)?;
    answer::page(query.fetch::<RejectedUsageEvent>(&mut *ctx.conn().await?, &ctx.scope).await?)
}

/// One rejected event with its reason
#[utoipa::path(
    get, path = "/v1/usage-event-rejections/{id}", operation_id = "get_usage_event_rejection", tag = TAG,
    params(("id" = RejectionId, Path, description = "Rejection")),
    responses((status = 200, description = "The rejection", body = Data<RejectedUsageEvent>))
)]
async fn get_usage_event_rejection(ctx: Ctx) -> Answer {
    ctx.require("usage:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(rejection::get(&mut *ctx.conn().await?, &ctx.scope, id).await?))
}

/// Send a rejected event again, as it was or mended
#[utoipa::path(
    post, path = "/v1/usage-event-rejections/{id}/replay", operation_id = "replay_usage_event_rejection", tag = TAG,
    params(("id" = RejectionId, Path, description = "Rejection")), request_body = ReplayRejectedEventRequest,
    responses((status = 202, description = "Sent again", body = Data<RejectedUsageEvent>))
)]
async fn replay_usage_event_rejection(ctx: Ctx) -> Answer {
    ctx.require("usage:ingest")?;
    let mut write = ctx.write("replay_usage_event_rejection").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(ReplayRejectedEventRequest::read)?;
    let replayed = rejection::resolve(&ctx.scope, write.tx(), id, RejectedUsageEventStatus::Replayed, None).await?;
    // Appended before the commit: when the commit fails, the event is sent again under the same id, and counts once.
    let payload = request.payload(&replayed)?;
    let entries = ctx.app.engine()?.door.accept(&ctx.scope, &[&payload]).await?;
    if let Some(Entry::Rejected(error)) = entries.into_iter().next() {
        return Err(error.into());
    }
    write.accepted(Data(replayed)).await
}

/// Close a rejected event without billing it
#[utoipa::path(
    post, path = "/v1/usage-event-rejections/{id}/discard", operation_id = "discard_usage_event_rejection", tag = TAG,
    params(("id" = RejectionId, Path, description = "Rejection")), request_body = DiscardRejectedEventRequest,
    responses((status = 200, description = "Closed", body = Data<RejectedUsageEvent>))
)]
async fn discard_usage_event_rejection(ctx: Ctx) -> Answer {
    ctx.require("usage:write")?;
    let mut write = ctx.write("discard_usage_event_rejection").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(DiscardRejectedEventRequest::read)?;
    let status = RejectedUsageEventStatus::Discarded;
    let discarded = rejection::resolve(&ctx.scope, write.tx(), id, status, Some(&request.reason)).await?;
    write.ok(Data(discarded)).await
}

/// Running totals of a subscription
#[utoipa::path(
    get, path = "/v1/subscriptions/{id}/usage", operation_id = "get_subscription_usage", tag = TAG,
    params(
        ("id" = SubscriptionId, Path, description = "Subscription"),
        ("at" = Option<DateTime<Utc>>, Query, description = "Shows the window that contains it; default now"),
    ),
    responses((status = 200, description = "The totals", body = Data<SubscriptionUsage>))
)]
async fn get_subscription_usage(ctx: Ctx) -> Answer {
    ctx.require("usage:read")?;
    let id = ctx.path_id("id")?;
    let at = read_at(ctx.query())?;
    let engine = ctx.app.engine()?;
    let usage = view::subscription_usage(&ctx.app.store, &engine.snapshots, &ctx.scope, id, at).await?;
    answer::ok(Data(usage))
}

/// The only parameter of running figures.
pub(super) fn read_at(pairs: &[(String, String)]) -> Result<Option<Instant>> {
    let mut at = None;
    for (name, value) in pairs {
        if name != "at" {
            return Err(Error::field(name.clone(), Code::UnknownField, "is not a known parameter; known is at"));
        }
        at = Some(instant(value).map_err(|(code, message)| Error::field("at", code, message))?);
    }
    Ok(at)
}

/// Query parameters of events and aggregates.
struct Parameters<'a> {
    filter: EventFilter,
    limit: u32,
    pairs: &'a [(String, String)],
}

impl<'a> Parameters<'a> {
    fn read(pairs: &'a [(String, String)], own: &[&str]) -> Result<Self> {
        let mut read = Self { filter: EventFilter::default(), limit: 25, pairs };
        let mut errors = Vec::new();
        for (name, value) in pairs {
            if let Err((code, message)) = read.one(name, value, own) {
                errors.push(domain::FieldError { field: name.clone(), code, message });
            }
        }
        if errors.is_empty() { Ok(read) } else { Err(Error::Validation(errors)) }
    }

    fn one(&mut self, name: &str, value: &str, own: &[&str]) -> Result<(), (Code, String)> {
        let filter = &mut self.filter;
        match name {
            "id" | "id.eq" | "id.in" if own.contains(&"id") => narrow(&mut filter.ids, name, value)?,
            "customer_id" | "customer_id.eq" | "customer_id.in" => narrow(&mut filter.customer_ids, name, value)?,
            "product_id" | "product_id.eq" | "product_id.in" => narrow(&mut filter.product_ids, name, value)?,
            "subscription_id" | "subscription_id.eq" | "subscription_id.in" => {
                narrow(&mut filter.subscription_ids, name, value)?;
            }
            "metric_key" | "metric_key.eq" | "metric_key.in" => {
                filter.metric_keys.extend(value.split(',').map(str::to_owned));
            }
            "occurred_after" | "timestamp.gte" => since(filter, instant(value)?),
            "occurred_before" | "timestamp.lt" => before(filter, instant(value)?),
            "timestamp.gt" => since(filter, next(instant(value)?)),
            "timestamp.lte" => before(filter, next(instant(value)?)),
            "timestamp" | "timestamp.eq" => {
                since(filter, instant(value)?);
                before(filter, next(instant(value)?));
            }
            "limit" if own.contains(&"limit") => match value.parse() {
                Ok(limit @ 1..=100) => self.limit = limit,
                _ => return Err((Code::OutOfRange, "must be a whole number from 1 to 100".into())),
            },
            "sort" if own.contains(&"sort") && value != "-timestamp" => {
                return Err((Code::InvalidEnum, "must be -timestamp: events are listed newest first".into()));
            }
            other if own.contains(&other) => {}
            _ => {
                let known =
                    "customer_id, product_id, subscription_id, metric_key, timestamp, occurred_after, occurred_before";
                return Err((
                    Code::UnknownField,
                    format!("is not a known parameter; known are {known}, {}", own.join(", ")),
                ));
            }
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// What a cursor is bound to (conventions.md, Pagination 3).
    fn fingerprint(&self) -> String {
        let mut parts: Vec<String> = self
            .pairs
            .iter()
            .filter(|(name, _)| name != "cursor" && name != "limit")
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        parts.sort();
        parts.join("&")
    }

    fn write_cursor(&self, (timestamp, id): EventCursor) -> String {
        hex::encode(serde_json::json!([self.fingerprint(), timestamp.timestamp_micros(), id]).to_string())
    }

    fn cursor(&self) -> Result<Option<EventCursor>> {
        let Some(text) = self.value("cursor") else { return Ok(None) };
        let read = || {
            let (fingerprint, micros, id): (String, i64, UsageEventId) =
                serde_json::from_slice(&hex::decode(text).ok()?).ok()?;
            let timestamp = chrono::DateTime::from_timestamp_micros(micros)?;
            (fingerprint == self.fingerprint()).then_some((timestamp, id))
        };
        let detail = "the cursor belongs to another list or filter".to_owned();
        read().map(Some).ok_or(Error::BadRequest { code: "INVALID_CURSOR", detail })
    }

    /// The query and the number of series that are kept apart; every bad parameter is named.
    fn aggregate(self, now: Instant) -> Result<(AggregateQuery, usize)> {
        let mut errors = Vec::new();
        let mut checked = |field: &str, code, message: String| {
            errors.push(domain::FieldError { field: field.into(), code, message });
        };
        if self.value("bucket").is_none() {
            let message = format!("is required: one of {}", UsageAggregateBucketSize::allowed());
            checked("bucket", Code::Required, message);
        }
        let bucket = self.word::<UsageAggregateBucketSize>("bucket", &mut checked);
        let metric = self.word("metric", &mut checked).unwrap_or(UsageAggregateMetric::Count);
        let group_by = match self.value("group_by") {
            None | Some("none") => GroupBy::None,
            Some("metric_key") => GroupBy::MetricKey,
            Some(other) => match other.strip_prefix("dim:").filter(|key| is_dimension(key)) {
                Some(key) => GroupBy::Dimension(key.to_owned()),
                None => {
                    checked("group_by", Code::InvalidEnum, "must be none, metric_key or dim:<key>".into());
                    GroupBy::None
                }
            },
        };
        let top = self.value("top").map_or(Ok(view::TOP_DEFAULT), str::parse).unwrap_or_else(|_| {
            checked("top", Code::OutOfRange, "must be a whole number, 0 keeps all".into());
            0
        });
        let mut time = |name: &str| match self.value(name).map(instant) {
            Some(Err((code, message))) => {
                checked(name, code, message);
                None
            }
            found => found.and_then(Result::ok),
        };
        let (until, since) = (time("until").unwrap_or(now), time("since"));
        if since.is_some_and(|since| since >= until) {
            checked("since", Code::OutOfRange, "must be before `until`".into());
        }
        let Some(bucket) = bucket.filter(|_| errors.is_empty()) else { return Err(Error::Validation(errors)) };
        let (since, until) = bucket.window(since, until);
        Ok((AggregateQuery { filter: self.filter, bucket, metric, group_by, since, until }, top))
    }

    /// A word that is sent and known; another one is named.
    fn word<T: Word>(&self, name: &str, checked: &mut impl FnMut(&str, Code, String)) -> Option<T> {
        let text = self.value(name)?;
        let word = T::from_wire(text);
        if word.is_none() {
            checked(name, Code::InvalidEnum, format!("must be one of {}", T::allowed()));
        }
        word
    }
}

fn is_dimension(key: &str) -> bool {
    (1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// One id, or with `in` any of several; conditions on one field are ANDed as all others.
fn narrow<T: From<uuid::Uuid> + PartialEq>(
    known: &mut Option<Vec<T>>,
    name: &str,
    value: &str,
) -> Result<(), (Code, String)> {
    let texts: Vec<&str> = if name.ends_with(".in") { value.split(',').collect() } else { vec![value] };
    let mut ids = texts.into_iter().map(|text| id(text).map(T::from)).collect::<Result<Vec<T>, _>>()?;
    if let Some(known) = known {
        ids.retain(|id| known.contains(id));
    }
    *known = Some(ids);
    Ok(())
}

fn since(filter: &mut EventFilter, instant: Instant) {
    filter.occurred_after = Some(filter.occurred_after.map_or(instant, |known| known.max(instant)));
}

fn before(filter: &mut EventFilter, instant: Instant) {
    filter.occurred_before = Some(filter.occurred_before.map_or(instant, |known| known.min(instant)));
}

/// The first instant after: timestamps have microseconds.
fn next(instant: Instant) -> Instant {
    instant.checked_add_signed(chrono::TimeDelta::microseconds(1)).unwrap_or(instant)
}

fn id(value: &str) -> Result<uuid::Uuid, (Code, String)> {
    uuid::Uuid::parse_str(value).map_err(|_| (Code::InvalidFormat, "must be a UUID".into()))
}

fn instant(value: &str) -> Result<Instant, (Code, String)> {
    let instant = chrono::DateTime::parse_from_rfc3339(value);
    instant
        .map(|instant| instant.to_utc())
        .map_err(|_| (Code::InvalidFormat, "must be an RFC 3339 timestamp such as 2026-01-31T00:00:00Z".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<EventFilter, Vec<(String, Code)>> {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        match Parameters::read(&pairs, &["limit", "cursor", "id", "sort"]) {
            Ok(parameters) => Ok(parameters.filter),
            Err(Error::Validation(fields)) => Err(fields.into_iter().map(|field| (field.field, field.code)).collect()),
            Err(other) => panic!("{other}"),
        }
    }

    /// conventions.md, Filters: ids with eq and in, timestamps with every order, everything ANDed.
    #[test]
    fn filters_of_events_follow_the_grammar() {
        let ids: Vec<uuid::Uuid> = (1..=3_u128).map(uuid::Uuid::from_u128).collect();
        let (first, two) = (ids[0].to_string(), format!("{},{}", ids[0], ids[1]));
        for (name, of) in [
            (
                "id",
                (|filter| filter.ids.unwrap().into_iter().map(|id| id.0).collect())
                    as fn(EventFilter) -> Vec<uuid::Uuid>,
            ),
            ("customer_id", |filter| filter.customer_ids.unwrap().into_iter().map(|id| id.0).collect()),
            ("product_id", |filter| filter.product_ids.unwrap().into_iter().map(|id| id.0).collect()),
            ("subscription_id", |filter| filter.subscription_ids.unwrap().into_iter().map(|id| id.0).collect()),
        ] {
            let (eq, any) = (format!("{name}.eq"), format!("{name}.in"));
            assert_eq!(of(read(&[(name, &first)]).unwrap()), ids[..1]);
            assert_eq!(of(read(&[(&eq, &first)]).unwrap()), ids[..1]);
            assert_eq!(of(read(&[(&any, &two)]).unwrap()), ids[..2]);
            assert_eq!(of(read(&[(&any, &two), (name, &first)]).unwrap()), ids[..1], "ANDed");
            assert!(of(read(&[(&any, &two), (name, &ids[2].to_string())]).unwrap()).is_empty());
            assert_eq!(read(&[(name, &two)]).unwrap_err(), [(name.to_owned(), Code::InvalidFormat)]);
            assert_eq!(read(&[(&format!("{name}.gt"), &first)]).unwrap_err()[0].1, Code::UnknownField);
        }
        assert!(read(&[("sort", "-timestamp")]).is_ok());
        assert_eq!(read(&[("sort", "timestamp")]).unwrap_err()[0].1, Code::InvalidEnum);
        let at = instant("2026-01-31T00:00:00Z").unwrap();
        let span = |pairs: &[(&str, &str)]| read(pairs).map(|f| (f.occurred_after, f.occurred_before)).unwrap();
        let text = "2026-01-31T00:00:00Z";
        assert_eq!(span(&[("timestamp.gte", text)]), (Some(at), None));
        assert_eq!(span(&[("timestamp.gt", text)]), (Some(next(at)), None));
        assert_eq!(span(&[("timestamp.lt", text)]), (None, Some(at)));
        assert_eq!(span(&[("timestamp.lte", text)]), (None, Some(next(at))));
        assert_eq!(span(&[("timestamp", text)]), (Some(at), Some(next(at))));
        let earlier = "2026-01-01T00:00:00Z";
        assert_eq!(span(&[("occurred_after", text), ("timestamp.gte", earlier)]), (Some(at), None), "ANDed");
        assert_eq!(span(&[("occurred_before", text), ("timestamp.lt", earlier)]).1, instant(earlier).ok());
    }
}
