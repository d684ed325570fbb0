//! Buckets from the raw rows: the figures stay right at any volume because nothing is kept beside the rows.

use domain::{Instant, Quantity, Result, Scope};
use sqlx::AssertSqlSafe;
use sqlx::postgres::types::PgInterval;
use store::{Store, StoreError};

use super::super::{AggregateBucket, AggregateQuery, GroupBy, UsageAggregateMetric, bucket, derived};
use super::row::not_voided;

/// Non-empty buckets by start and group, without voided events.
pub(super) async fn buckets(store: &Store, scope: &Scope, query: &AggregateQuery) -> Result<Vec<AggregateBucket>> {
    let subscriptions = derived::subscriptions(store, scope, &query.filter).await?;
    // Whole numbers of 10⁻¹² as text: a sum may have more digits than a Decimal.
    let value = match query.metric {
        UsageAggregateMetric::Count => "(count(*) * 1000000000000::numeric)::text",
        UsageAggregateMetric::SumQuantity => "trunc(sum(quantity) * 1000000000000)::text",
    };
    let (group, dimension) = match &query.group_by {
        GroupBy::None => ("NULL::text", None),
        GroupBy::MetricKey => ("metric_key", None),
        GroupBy::Dimension(key) => ("coalesce(dimension_vars::jsonb ->> $9, '')", Some(key.as_str())),
    };
    // Only the fixed pieces above enter the text.
    let sql = format!(
        "SELECT date_bin($1, \"timestamp\", $2), {group}, {value} FROM usage_event e
         WHERE workspace_id = $3 AND \"timestamp\" >= $4 AND \"timestamp\" < $5
           AND ($6::uuid[] IS NULL OR subscription_id = ANY($6))
           AND ($7::uuid[] IS NULL OR product_id = ANY($7))
           AND (cardinality($8::text[]) = 0 OR metric_key = ANY($8))
           AND {}
         GROUP BY 1, 2",
        not_voided!()
    );
    let (since, until) = bucket::range(query);
    let mut statement = sqlx::query_as(AssertSqlSafe(sql))
        .bind(PgInterval { months: 0, days: 0, microseconds: bucket::micros(query.bucket) })
        .bind(bucket::start(query.bucket, 0)?)
        .bind(scope.workspace_id)
        .bind(since)
        .bind(until)
        .bind(subscriptions)
        .bind(&query.filter.product_ids)
        .bind(&query.filter.metric_keys);
    if let Some(dimension) = dimension {
        statement = statement.bind(dimension);
    }
    let rows: Vec<(Instant, Option<String>, String)> =
        statement.fetch_all(store.pool()).await.context("aggregating usage events")?;
    let bucket = |(bucket_start, group, value): (_, _, String)| {
        Ok(AggregateBucket { bucket_start, group, value: quantity(&value)? })
    };
    let mut buckets = rows.into_iter().map(bucket).collect::<Result<Vec<_>>>()?;
    // By the bytes of the group, in whatever collation the database was made.
    buckets.sort_unstable_by(|a, b| (a.bucket_start, &a.group).cmp(&(b.bucket_start, &b.group)));
    Ok(buckets)
}

fn quantity(units: &str) -> Result<Quantity> {
    let units =
        units.parse().map_err(|error| domain::Error::internal(format!("the sum {units} is out of range"), error))?;
    Ok(Quantity::from_units(units))
}
