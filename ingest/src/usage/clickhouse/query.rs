//! Reads. Ids and numbers stand in the text of a query (their types allow nothing else in it), texts are bound.

use std::collections::HashMap;
use std::fmt::Write as _;

use clickhouse::Client;
use clickhouse::query::Query;
use domain::{Instant, Position, Quantity, Result, Scope, SubscriptionId, UsageEventId, WorkspaceId};
use uuid::Uuid;

use super::super::{
    AggregateBucket, AggregateQuery, CountedEvent, CountedId, EventCursor, EventFilter, GroupBy, Touching,
    UsageAggregateMetric, bucket,
};
use super::row::{BucketRow, EventRow, IdRow, PlaceRow, WindowRow};
use super::within;
use crate::checkpoint::WindowKey;
use crate::log::Partition;

/// Ids of one query: their text stays below ClickHouse's default limit of 256 KiB.
const IDS_PER_QUERY: usize = 5_000;
/// ClickHouse's DateTime64 begins with 1900 and ends with 2299.
const EARLIEST_MICROS: i64 = -2_208_988_800_000_000;
const LATEST_MICROS: i64 = 10_413_791_999_999_999;

/// The value of a dimension of an event, empty without it; its key is bound [`DIMENSION_BINDS`] times.
///
/// Numbers raw, because they would else pass through a float; texts not, because only the full parser reads every escape. A
/// raw key is never found inside a text, where its second quote would be escaped.
pub(super) const DIMENSION_VALUE: &str = "if(JSONType(dimension_vars, ?) = 'String', \
    JSONExtractString(dimension_vars, ?), simpleJSONExtractRaw(dimension_vars, ?))";
/// How often [`DIMENSION_VALUE`] names its key.
pub(super) const DIMENSION_BINDS: usize = 3;

/// The largest position stored of a partition, searched from `from` on.
pub(super) async fn largest_from(client: &Client, partition: Partition, from: Position) -> Result<Option<Position>> {
    let sql = format!(
        "SELECT max(position) FROM usage_event WHERE partition = {partition} AND position >= {}",
        from.as_i64()
    );
    one_position(client, "reading the largest position of the usage store", &sql).await
}

/// The first position stored in `(after, up_to]`.
pub(super) async fn first_in(
    client: &Client,
    partition: Partition,
    after: Position,
    up_to: Position,
) -> Result<Option<Position>> {
    let sql = format!("SELECT min(position) FROM usage_event WHERE {}", between(partition, after, up_to));
    one_position(client, "looking for the next position", &sql).await
}

/// An aggregate over nothing is 0, which is no record's position: logs are numbered from 1.
async fn one_position(client: &Client, operation: &str, sql: &str) -> Result<Option<Position>> {
    let position = within(operation, client.query(sql).fetch_one::<i64>()).await?;
    Ok(Some(position).filter(|position| *position > 0).map(Position::from_i64))
}

fn between(partition: Partition, after: Position, up_to: Position) -> String {
    format!("partition = {partition} AND position > {} AND position <= {}", after.as_i64(), up_to.as_i64())
}

/// Which of these records are stored. The writer asks, and goes on asking until there is an answer.
pub(super) async fn stored_positions(
    client: &Client,
    partition: Partition,
    first: Position,
    last: Position,
) -> clickhouse::error::Result<Vec<Position>> {
    let sql = format!(
        "SELECT DISTINCT position FROM usage_event WHERE partition = {partition} AND position BETWEEN {} AND {}",
        first.as_i64(),
        last.as_i64()
    );
    let positions = tokio::time::timeout(super::READ_TIMEOUT, client.query(&sql).fetch_all::<i64>())
        .await
        .map_err(|_| clickhouse::error::Error::TimedOut)??;
    Ok(positions.into_iter().map(Position::from_i64).collect())
}

/// What a partition has counted of ids.
pub(super) async fn find(
    client: &Client,
    partition: Partition,
    ids: &[UsageEventId],
) -> Result<HashMap<UsageEventId, CountedId>> {
    let mut found = HashMap::new();
    for ids in ids.chunks(IDS_PER_QUERY) {
        let sql = format!(
            "SELECT id, min(i.position) AS position, argMin(i.payload_hash, i.position) AS payload_hash
             FROM usage_event_id AS i WHERE id IN ({}) AND i.partition = {partition} GROUP BY id",
            listed(ids.iter().map(|id| id.0))
        );
        let rows = within("looking for ids in the usage store", client.query(&sql).fetch_all::<IdRow>()).await?;
        found.extend(rows.into_iter().map(<(UsageEventId, CountedId)>::from));
    }
    Ok(found)
}

/// Ids in positions `(after, up_to]`, in order.
pub(super) async fn ids_in(
    client: &Client,
    partition: Partition,
    after: Position,
    up_to: Position,
    limit: usize,
) -> Result<Vec<(UsageEventId, CountedId)>> {
    let sql = format!(
        "SELECT id, position, payload_hash FROM usage_event WHERE {}
         ORDER BY position LIMIT 1 BY position LIMIT {limit}",
        between(partition, after, up_to)
    );
    let rows = within("listing ids by position", client.query(&sql).fetch_all::<IdRow>()).await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// Windows with usage that a change of the catalog may have a say in.
pub(super) async fn touched(client: &Client, partition: Partition, touching: &Touching) -> Result<Vec<WindowKey>> {
    let products =
        touching.products.as_ref().map(|ids| format!("AND product_id IN ({})", listed(ids.iter().map(|id| id.0))));
    let sql = format!(
        "SELECT DISTINCT subscription_id, window_start FROM usage_event
         WHERE workspace_id = '{}' AND timestamp >= {} AND partition = {partition} AND position < {} {}",
        touching.workspace_id,
        micros(touching.from),
        touching.before.as_i64(),
        products.unwrap_or_default()
    );
    let rows = within("looking for usage to count anew", client.query(&sql).fetch_all::<WindowRow>()).await?;
    rows.into_iter().map(WindowRow::into_key).collect()
}

/// A window to replay.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) workspace_id: WorkspaceId,
    pub(super) subscription_id: SubscriptionId,
    pub(super) window_start: Instant,
}

/// Events of the window in positions `(after, up_to]`, in order, without mirrored voids.
pub(super) async fn replay(
    client: &Client,
    window: Window,
    mut after: Position,
    up_to: Position,
    limit: usize,
) -> Result<Vec<CountedEvent>> {
    let Window { workspace_id, subscription_id, window_start } = window;
    let mut events: Vec<CountedEvent> = Vec::new();
    while events.len() < limit {
        let wanted = limit - events.len();
        let sql = format!(
            "SELECT ?fields FROM usage_event
             WHERE workspace_id = '{workspace_id}' AND subscription_id = '{subscription_id}'
               AND window_start = {} AND position > {} AND position <= {} AND {}
             ORDER BY position LIMIT {wanted}",
            micros(window_start),
            after.as_i64(),
            up_to.as_i64(),
            not_voided(workspace_id),
        );
        let rows = within("replaying a usage window", client.query(&sql).fetch_all::<EventRow>()).await?;
        let complete = rows.len() < wanted;
        for row in rows {
            let event = row.into_counted()?;
            // A twin that no merge has dropped yet must not be counted twice.
            if event.position > after {
                after = event.position;
                events.push(event);
            }
        }
        if complete {
            break;
        }
    }
    Ok(events)
}

/// The rows of one event of the workspace: usually one.
pub(super) async fn rows_of(client: &Client, scope: &Scope, id: UsageEventId) -> Result<Vec<CountedEvent>> {
    const OPERATION: &str = "reading a usage event";
    let sql = format!("SELECT DISTINCT partition, position FROM usage_event_id WHERE id = '{id}'");
    let places = within(OPERATION, client.query(&sql).fetch_all::<PlaceRow>()).await?;
    at_places(client, OPERATION, &format!("workspace_id = '{}' AND id = '{id}'", scope.workspace_id), &places).await
}

/// The rows that fulfil a condition at these places, each once.
pub(super) async fn at_places(
    client: &Client,
    operation: &str,
    condition: &str,
    places: &[PlaceRow],
) -> Result<Vec<CountedEvent>> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let mut anywhere = String::new();
    for PlaceRow { partition, position } in places {
        let or = if anywhere.is_empty() { "" } else { " OR " };
        // Writing to a string cannot fail.
        let _ = write!(anywhere, "{or}(partition = {partition} AND position = {position})");
    }
    let sql = format!(
        "SELECT ?fields FROM usage_event WHERE {condition} AND ({anywhere})
         ORDER BY id, ingested_at, partition, position LIMIT 1 BY id, partition, position"
    );
    let rows = within(operation, client.query(&sql).fetch_all::<EventRow>()).await?;
    rows.into_iter().map(EventRow::into_counted).collect()
}

/// Conditions of a filter with the texts that are bound to them.
struct Conditions<'a> {
    sql: String,
    texts: Vec<&'a [String]>,
}

impl<'a> Conditions<'a> {
    fn new(scope: &Scope, filter: &'a EventFilter, subscriptions: Option<&[SubscriptionId]>) -> Self {
        let mut conditions = Self { sql: format!("workspace_id = '{}'", scope.workspace_id), texts: Vec::new() };
        if let Some(subscriptions) = subscriptions {
            conditions.and(&format!("subscription_id IN ({})", listed(subscriptions.iter().map(|id| id.0))));
        }
        if let Some(ids) = &filter.ids {
            // The short table knows where they lie: all of the events would be read otherwise.
            let ids = listed(ids.iter().map(|id| id.0));
            conditions.and(&format!(
                "id IN ({ids}) AND (partition, position) IN (SELECT partition, position FROM usage_event_id WHERE id IN ({ids}))"
            ));
        }
        if let Some(products) = &filter.product_ids {
            conditions.and(&format!("product_id IN ({})", listed(products.iter().map(|id| id.0))));
        }
        if !filter.metric_keys.is_empty() {
            conditions.and("has(?, metric_key)");
            conditions.texts.push(&filter.metric_keys);
        }
        conditions
    }

    fn and(&mut self, condition: &str) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
    }

    fn bind(&self, query: Query) -> Query {
        self.texts.iter().fold(query, |query, texts| query.bind(texts))
    }
}

/// Events after the cursor, newest first.
///
/// Ordered by hour first, which changes nothing and lets ClickHouse read backward along the key and stop when the page
/// is full. Ids are compared by their bytes, as everywhere else, not as ClickHouse compares UUIDs.
pub(super) async fn newest(
    client: &Client,
    scope: &Scope,
    filter: &EventFilter,
    subscriptions: Option<&[SubscriptionId]>,
    after: Option<EventCursor>,
    limit: u64,
) -> Result<Vec<CountedEvent>> {
    if subscriptions.is_some_and(<[_]>::is_empty) || filter.names_nothing() {
        return Ok(Vec::new());
    }
    let mut conditions = Conditions::new(scope, filter, subscriptions);
    if let Some(from) = filter.occurred_after {
        conditions.and(&format!("timestamp >= {}", micros(from)));
    }
    if let Some(before) = filter.occurred_before {
        conditions.and(&format!("timestamp < {}", micros(before)));
    }
    if let Some((timestamp, id)) = after {
        let timestamp = micros(timestamp);
        conditions.and(&format!(
            "timestamp <= {timestamp} AND (timestamp, UUIDToNum(id)) < ({timestamp}, UUIDToNum(toUUID('{id}')))"
        ));
    }
    let sql = format!(
        "SELECT ?fields FROM usage_event WHERE {}
         ORDER BY toStartOfHour(timestamp) DESC, timestamp DESC, UUIDToNum(id) DESC LIMIT {limit}",
        conditions.sql
    );
    let query = conditions.bind(client.query(&sql));
    let rows = within("listing usage events", query.fetch_all::<EventRow>()).await?;
    rows.into_iter().map(EventRow::into_counted).collect()
}

/// Non-empty buckets by start and group, without mirrored voids.
pub(super) async fn buckets(
    client: &Client,
    scope: &Scope,
    query: &AggregateQuery,
    subscriptions: Option<&[SubscriptionId]>,
) -> Result<Vec<AggregateBucket>> {
    if subscriptions.is_some_and(<[_]>::is_empty) || query.filter.names_nothing() {
        return Ok(Vec::new());
    }
    let (since, until) = bucket::range(query);
    let mut conditions = Conditions::new(scope, &query.filter, subscriptions);
    conditions.and(&format!("timestamp >= {} AND timestamp < {}", micros(since), micros(until)));
    conditions.and(&not_voided(scope.workspace_id));
    let value = match query.metric {
        UsageAggregateMetric::Count => "toDecimal128(count(), 12)",
        UsageAggregateMetric::SumQuantity => "CAST(sum(quantity) AS Decimal(38, 12))",
    };
    let (series, dimension) = match &query.group_by {
        GroupBy::None => ("''", None),
        GroupBy::MetricKey => ("CAST(metric_key AS String)", None),
        GroupBy::Dimension(key) => (DIMENSION_VALUE, Some(key.as_str())),
    };
    let sql = format!(
        "SELECT intDiv(toUnixTimestamp64Micro(timestamp) - ({origin}), {length}) AS number, {series} AS series, {value} AS value
         FROM usage_event WHERE {conditions} GROUP BY number, series ORDER BY number, series",
        origin = bucket::ORIGIN_MICROS,
        length = bucket::micros(query.bucket),
        conditions = conditions.sql,
    );
    let statement = dimension.into_iter().flat_map(|key| [key; DIMENSION_BINDS]).fold(client.query(&sql), Query::bind);
    let rows = within("aggregating usage events", conditions.bind(statement).fetch_all::<BucketRow>()).await?;
    let grouped = query.group_by != GroupBy::None;
    rows.into_iter()
        .map(|row| {
            Ok(AggregateBucket {
                bucket_start: bucket::start(query.bucket, row.number)?,
                group: grouped.then_some(row.series),
                value: Quantity::from_units(row.value),
            })
        })
        .collect()
}

/// Leaves out events that PostgreSQL has voided, as far as [`super::voids`] has copied them.
pub(super) fn not_voided(workspace_id: WorkspaceId) -> String {
    format!(
        "(id, partition, position) NOT IN (SELECT event_id, partition, position FROM usage_void \
         WHERE workspace_id = '{workspace_id}')"
    )
}

pub(super) fn listed(ids: impl Iterator<Item = Uuid>) -> String {
    let mut text = String::new();
    for id in ids {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}'{id}'");
    }
    text
}

/// SQL of an instant.
pub(super) fn micros(instant: Instant) -> String {
    let micros = instant.timestamp_micros().clamp(EARLIEST_MICROS, LATEST_MICROS);
    format!("fromUnixTimestamp64Micro(toInt64({micros}), 'UTC')")
}
