//! Newest events first (usage.md R11).
//!
//! Three plans: named events are looked up; of named subscriptions, each is walked backward along its index; of a whole
//! workspace, time ranges are read from the newest backward, four times longer each, until the page is full. The ranges never overlap, so the rows of all
//! of them are in order, and events that are inserted meanwhile shift nothing: the place is a (timestamp, id), not a count.

use chrono::{NaiveDate, TimeDelta};
use domain::{Instant, ProductId, Result, Scope, SubscriptionId, UsageEventId};
use store::{Store, StoreError};
use uuid::Uuid;

use super::super::{CountedEvent, EventCursor, EventFilter, derived};
use super::days::{Span, midnight};
use super::row::{EventRow, columns};

/// Length of the first time range of a walk through a workspace.
const FIRST_RANGE: TimeDelta = TimeDelta::minutes(1);
/// How much longer each next range is.
const GROWTH: i32 = 4;

/// What every plan asks for: rows before `(before, before_id)` and at or after `from`.
struct Wanted<'a> {
    scope: &'a Scope,
    before: Instant,
    before_id: Uuid,
    from: Instant,
    product_ids: Option<&'a [ProductId]>,
    metric_keys: &'a [String],
}

/// At most `limit` events after the cursor.
pub(super) async fn newest(
    store: &Store,
    scope: &Scope,
    filter: &EventFilter,
    after: Option<EventCursor>,
    limit: i64,
) -> Result<Vec<CountedEvent>> {
    let subscriptions = derived::subscriptions(store, scope, filter).await?;
    // No id is below the nil UUID: (instant, nil) is "before this instant".
    let before_filter = (filter.occurred_before.unwrap_or(Instant::MAX_UTC), Uuid::nil());
    let (before, before_id) = after.map(|(instant, id)| (instant, id.0)).unwrap_or(before_filter).min(before_filter);
    let wanted = Wanted {
        scope,
        before,
        before_id,
        from: filter.occurred_after.unwrap_or(Instant::MIN_UTC),
        product_ids: filter.product_ids.as_deref(),
        metric_keys: &filter.metric_keys,
    };
    let rows = match (&filter.ids, subscriptions) {
        (Some(ids), subscriptions) => {
            of_ids(store, wanted.within(&earliest(), &latest()), ids, subscriptions.as_deref(), limit).await?
        }
        (None, Some(subscriptions)) => {
            of_subscriptions(store, wanted.within(&earliest(), &latest()), &subscriptions, limit).await?
        }
        (None, None) => of_workspace(store, wanted, limit).await?,
    };
    rows.into_iter().map(EventRow::into_counted).collect()
}

/// The years that both chrono and PostgreSQL can tell.
fn earliest() -> Instant {
    midnight(NaiveDate::from_ymd_opt(1, 1, 1).unwrap_or_default())
}

fn latest() -> Instant {
    midnight(NaiveDate::from_ymd_opt(9999, 12, 31).unwrap_or_default())
}

impl Wanted<'_> {
    /// Narrowed to `[from, before)`.
    fn within(mut self, from: &Instant, before: &Instant) -> Self {
        self.from = self.from.max(*from);
        if self.before > *before {
            (self.before, self.before_id) = (*before, Uuid::nil());
        }
        self
    }
}

async fn of_ids(
    store: &Store,
    wanted: Wanted<'_>,
    ids: &[UsageEventId],
    subscriptions: Option<&[SubscriptionId]>,
    limit: i64,
) -> Result<Vec<EventRow>> {
    sqlx::query_as(concat!(
        "SELECT ",
        columns!(),
        " FROM usage_event e
         WHERE id = ANY($1) AND workspace_id = $2
           AND (\"timestamp\", id) < ($3, $4) AND \"timestamp\" >= $5
           AND ($6::uuid[] IS NULL OR product_id = ANY($6))
           AND (cardinality($7::text[]) = 0 OR metric_key = ANY($7))
           AND ($8::uuid[] IS NULL OR subscription_id = ANY($8))
         ORDER BY \"timestamp\" DESC, id DESC LIMIT $9"
    ))
    .bind(ids)
    .bind(wanted.scope.workspace_id)
    .bind(wanted.before)
    .bind(wanted.before_id)
    .bind(wanted.from)
    .bind(wanted.product_ids)
    .bind(wanted.metric_keys)
    .bind(subscriptions)
    .bind(limit)
    .fetch_all(store.pool())
    .await
    .context("listing usage events by id")
}

async fn of_subscriptions(
    store: &Store,
    wanted: Wanted<'_>,
    subscriptions: &[SubscriptionId],
    limit: i64,
) -> Result<Vec<EventRow>> {
    if subscriptions.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as(concat!(
        "SELECT ",
        columns!(),
        " FROM unnest($1::uuid[]) AS wanted (wanted_id) CROSS JOIN LATERAL (
             SELECT * FROM usage_event e
             WHERE e.subscription_id = wanted_id AND e.workspace_id = $2
               AND (e.\"timestamp\", e.id) < ($3, $4) AND e.\"timestamp\" >= $5
               AND ($6::uuid[] IS NULL OR e.product_id = ANY($6))
               AND (cardinality($7::text[]) = 0 OR e.metric_key = ANY($7))
             ORDER BY e.\"timestamp\" DESC, e.id DESC LIMIT $8
         ) AS newest
         ORDER BY \"timestamp\" DESC, id DESC LIMIT $8"
    ))
    .bind(subscriptions)
    .bind(wanted.scope.workspace_id)
    .bind(wanted.before)
    .bind(wanted.before_id)
    .bind(wanted.from)
    .bind(wanted.product_ids)
    .bind(wanted.metric_keys)
    .bind(limit)
    .fetch_all(store.pool())
    .await
    .context("listing usage events of subscriptions")
}

async fn of_workspace(store: &Store, wanted: Wanted<'_>, limit: i64) -> Result<Vec<EventRow>> {
    let days: Vec<(NaiveDate, NaiveDate, NaiveDate)> =
        sqlx::query_as("SELECT day, first_day, last_day FROM usage_event_day")
            .fetch_all(store.pool())
            .await
            .context("reading the days of usage")?;
    let days: Vec<_> = days.into_iter().map(|(day, first_day, last_day)| (day, Span { first_day, last_day })).collect();
    let first = days.iter().map(|(_, span)| span.first_day).min();
    let last = days.iter().filter_map(|(_, span)| span.last_day.succ_opt()).max();
    let (Some(first), Some(last)) = (first, last) else { return Ok(Vec::new()) };
    let mut range = wanted.within(&midnight(first), &midnight(last));
    let (floor, mut length, mut rows) = (range.from, FIRST_RANGE, Vec::new());
    while range.before > floor || (range.before == floor && !range.before_id.is_nil()) {
        range.from = floor.max(range.before.checked_sub_signed(length).unwrap_or(floor));
        let missing = limit - i64::try_from(rows.len()).unwrap_or(i64::MAX);
        if missing <= 0 {
            break;
        }
        if let Some(days) = overlapping(&days, &range) {
            rows.extend(of_range(store, &range, days, missing).await?);
        }
        (range.before, range.before_id) = (range.from, Uuid::nil());
        length = length.checked_mul(GROWTH).unwrap_or(length);
    }
    Ok(rows)
}

/// The first and the last day partition, both inclusive, that can hold a timestamp of the range.
fn overlapping(days: &[(NaiveDate, Span)], range: &Wanted<'_>) -> Option<(NaiveDate, NaiveDate)> {
    let (from, to) = (range.from.date_naive(), range.before.date_naive());
    let holds = |span: &Span| span.first_day <= to && span.last_day >= from;
    let mut found = days.iter().filter(|(_, span)| holds(span)).map(|(day, _)| *day);
    let one = found.next()?;
    Some(found.fold((one, one), |(first, last), day| (first.min(day), last.max(day))))
}

async fn of_range(
    store: &Store,
    wanted: &Wanted<'_>,
    (first_day, last_day): (NaiveDate, NaiveDate),
    limit: i64,
) -> Result<Vec<EventRow>> {
    sqlx::query_as(concat!(
        "SELECT ",
        columns!(),
        " FROM usage_event e
         WHERE ingested_at >= $1 AND ingested_at < $2 AND workspace_id = $3
           AND \"timestamp\" <= $4 AND (\"timestamp\", id) < ($4, $5) AND \"timestamp\" >= $6
           AND ($7::uuid[] IS NULL OR product_id = ANY($7))
           AND (cardinality($8::text[]) = 0 OR metric_key = ANY($8))
         ORDER BY \"timestamp\" DESC, id DESC LIMIT $9"
    ))
    .bind(midnight(first_day))
    .bind(midnight(last_day.succ_opt().unwrap_or(last_day)))
    .bind(wanted.scope.workspace_id)
    .bind(wanted.before)
    .bind(wanted.before_id)
    .bind(wanted.from)
    .bind(wanted.product_ids)
    .bind(wanted.metric_keys)
    .bind(limit)
    .fetch_all(store.pool())
    .await
    .context("listing usage events")
}
