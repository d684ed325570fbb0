//! What the API shows of usage: events, aggregates and the running totals of a subscription (usage.md).

use std::borrow::Cow;
use std::collections::BTreeMap;

use catalog::compiled::{Snapshots, StoredWindow, SubscriptionTerms, WindowQuery, WindowStatus, WorkspaceCatalog};
use chrono::{DateTime, Datelike, DurationRound, TimeDelta, Utc};
use domain::event::{DimensionVars, PricingVars};
use domain::{
    Currency, CustomerId, Error, HoldId, Instant, InvoiceId, Money, OrganizationId, ProductId, Quantity, Result, Scope,
    SubscriptionId, UsageEventId,
};
use rating::{Exact, Rated, RatedLine, RatingInput};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::PgConnection;
use store::{Store, StoreError};

use crate::door::wire::vars_to_json;
use crate::usage::{
    AggregateBucket, AggregateQuery, GroupBy, StoredEvent, UsageAggregateBucketSize, UsageAggregateMetric,
};

/// A counted usage event.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = UsageEvent)]
pub struct UsageEventView {
    /// Event id.
    pub id: UsageEventId,
    /// Owner.
    pub organization_id: OrganizationId,
    /// Who consumed.
    pub customer_id: CustomerId,
    /// Gives the billing period.
    pub subscription_id: SubscriptionId,
    /// USAGE product fed by the event.
    pub product_id: ProductId,
    /// Kind of consumption.
    pub metric_key: String,
    /// Amount consumed.
    pub quantity: Quantity,
    /// When it was consumed.
    pub timestamp: DateTime<Utc>,
    /// When the server accepted it.
    pub ingested_at: DateTime<Utc>,
    /// Deduplication key.
    pub idempotency_key: String,
    /// Sibling price of a keyed product.
    pub price_key: Option<String>,
    /// Whether an unmatched key was routed to the default key.
    pub price_key_remapped: bool,
    /// Upstream cost.
    #[schema(value_type = Option<String>)]
    pub external_cost_amount: Option<Decimal>,
    /// Its currency.
    pub external_cost_currency: Option<Currency>,
    /// Pin to the customer's wallet of that currency.
    pub wallet_currency: Option<Currency>,
    /// Hold that it consumed.
    pub hold_id: Option<HoldId>,
    /// Read by formulas.
    #[schema(value_type = Option<PricingVars>)]
    pub pricing_vars: Option<serde_json::Value>,
    /// Read by filters.
    #[schema(value_type = Option<DimensionVars>)]
    pub dimension_vars: Option<serde_json::Value>,
    /// Counted in a later window, because its own was billed.
    pub late: bool,
    /// When it was taken out of billing.
    pub voided_at: Option<DateTime<Utc>>,
    /// Invoice that bills it.
    pub invoice_id: Option<InvoiceId>,
}

/// One usage event (usage.md 2).
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "schema of a body that ingest reads without building it")]
pub struct IngestEventRequest {
    /// Who consumed.
    customer_id: CustomerId,
    /// Gives the billing period.
    subscription_id: SubscriptionId,
    /// USAGE product with a meter for `metric_key`.
    product_id: ProductId,
    /// Kind of consumption, e.g. `api_calls`.
    metric_key: String,
    /// Amount consumed: decimal string or number.
    quantity: domain::Quantity,
    /// When it was consumed; at most 5 minutes ahead.
    timestamp: DateTime<Utc>,
    /// Makes retries safe; 1 to 255 characters.
    idempotency_key: String,
    /// Required on keyed products, forbidden on others.
    price_key: Option<String>,
    /// Upstream cost.
    external_cost_amount: Option<String>,
    /// Its currency.
    external_cost_currency: Option<domain::Currency>,
    /// Read by formulas.
    #[schema(value_type = Option<PricingVars>)]
    pricing_vars: Option<PricingVars>,
    /// Read by filters, grouping and price resolution.
    #[schema(value_type = Option<DimensionVars>)]
    dimension_vars: Option<DimensionVars>,
    /// Active hold that the event consumes.
    hold_id: Option<domain::HoldId>,
    /// Pins the event to a wallet.
    wallet_id: Option<domain::WalletId>,
    /// The same by currency.
    wallet_currency: Option<domain::Currency>,
}

impl From<StoredEvent> for UsageEventView {
    fn from(stored: StoredEvent) -> Self {
        let StoredEvent { counted, organization_id, voided_at, invoice_id } = stored;
        let event = counted.event;
        let vars = |vars: &domain::event::Vars| (!vars.is_empty()).then(|| vars_to_json(vars));
        Self {
            id: event.id,
            organization_id,
            customer_id: event.customer_id,
            subscription_id: event.subscription_id,
            product_id: event.product_id,
            metric_key: event.metric_key,
            quantity: event.quantity,
            timestamp: event.timestamp,
            ingested_at: event.accepted_at,
            idempotency_key: event.idempotency_key,
            price_key: event.price_key,
            price_key_remapped: event.price_key_remapped,
            external_cost_amount: event.external_cost.map(|(amount, _)| amount),
            external_cost_currency: event.external_cost.map(|(_, currency)| currency),
            wallet_currency: event.wallet_currency,
            hold_id: event.hold_id,
            pricing_vars: vars(&event.pricing_vars),
            dimension_vars: vars(&event.dimension_vars),
            late: counted.late,
            voided_at,
            invoice_id,
        }
    }
}

/// Time-bucketed totals.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct UsageAggregateResponse {
    /// Length of a bucket.
    pub bucket: UsageAggregateBucketSize,
    /// What was added up.
    pub metric: UsageAggregateMetric,
    /// `none`, `metric_key` or `dim:<key>`.
    pub group_by: String,
    /// First instant: aligned, and moved forward where the window was capped.
    pub since: DateTime<Utc>,
    /// First instant after.
    pub until: DateTime<Utc>,
    /// Every bucket of every series, also empty ones.
    pub buckets: Vec<UsageAggregateBucket>,
    /// Sum of all.
    pub total: Quantity,
}

/// One bucket of one series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UsageAggregateBucket {
    /// Start of the bucket, UTC.
    pub bucket_start: DateTime<Utc>,
    /// Series; null without grouping.
    pub group: Option<String>,
    /// Whether it is the folded tail, and not a value that is called `Other`.
    pub is_other: bool,
    /// Count or sum.
    pub value: Quantity,
}

/// Most buckets of a window: 90 days of hours (usage.md 5).
pub const AGGREGATE_BUCKETS_MAX: i64 = 2_160;
/// Largest series that are kept apart when `top` is not given.
pub const TOP_DEFAULT: usize = 8;

impl UsageAggregateBucketSize {
    fn length(self) -> TimeDelta {
        match self {
            Self::Hour => TimeDelta::hours(1),
            Self::Day => TimeDelta::days(1),
            Self::Week => TimeDelta::weeks(1),
        }
    }

    /// Start of the bucket that contains an instant: UTC; weeks start on Monday.
    fn align(self, instant: Instant) -> Instant {
        let day = instant.duration_trunc(TimeDelta::days(1)).unwrap_or(instant);
        match self {
            Self::Hour => instant.duration_trunc(TimeDelta::hours(1)).unwrap_or(instant),
            Self::Day => day,
            Self::Week => day - TimeDelta::days(i64::from(day.weekday().num_days_from_monday())),
        }
    }

    fn default_since(self, until: Instant) -> Instant {
        match self {
            Self::Hour => until - TimeDelta::hours(24),
            Self::Day => until - TimeDelta::days(30),
            Self::Week => until - TimeDelta::weeks(26),
        }
    }

    /// The window that is computed: aligned, and capped at [`AGGREGATE_BUCKETS_MAX`] buckets before its end.
    #[must_use]
    pub fn window(self, since: Option<Instant>, until: Instant) -> (Instant, Instant) {
        let since = self.align(since.unwrap_or_else(|| self.default_since(until)));
        let last = self.align(until - TimeDelta::microseconds(1));
        let count = i32::try_from(AGGREGATE_BUCKETS_MAX - 1).unwrap_or(i32::MAX);
        (since.max(last - self.length() * count), until)
    }
}

impl UsageAggregateResponse {
    /// Fills empty buckets and folds all but the `top` largest series (0 keeps all); ties by name.
    ///
    /// # Errors
    /// 422 when a sum leaves the range.
    pub fn assemble(query: &AggregateQuery, found: Vec<AggregateBucket>, top: usize) -> Result<Self> {
        let mut series: BTreeMap<Option<String>, BTreeMap<Instant, Quantity>> = BTreeMap::new();
        let mut total = Quantity::ZERO;
        for bucket in found {
            total = total.checked_add(bucket.value)?;
            series.entry(bucket.group).or_default().insert(bucket.bucket_start, bucket.value);
        }
        if query.group_by == GroupBy::None {
            series.entry(None).or_default();
        }
        let (kept, folded) = fold(series, if query.group_by == GroupBy::None { 0 } else { top })?;
        let mut buckets = Vec::new();
        let mut start = query.since;
        while start < query.until {
            for (group, values) in &kept {
                let value = values.get(&start).copied().unwrap_or_default();
                buckets.push(UsageAggregateBucket {
                    bucket_start: start,
                    group: group.clone(),
                    is_other: false,
                    value,
                });
            }
            if let Some(values) = &folded {
                let value = values.get(&start).copied().unwrap_or_default();
                let group = Some("Other".to_owned());
                buckets.push(UsageAggregateBucket { bucket_start: start, group, is_other: true, value });
            }
            start += query.bucket.length();
        }
        let group_by = match &query.group_by {
            GroupBy::None => "none".to_owned(),
            GroupBy::MetricKey => "metric_key".to_owned(),
            GroupBy::Dimension(key) => format!("dim:{key}"),
        };
        let (bucket, metric, since, until) = (query.bucket, query.metric, query.since, query.until);
        Ok(Self { bucket, metric, group_by, since, until, buckets, total })
    }
}

type Series = BTreeMap<Instant, Quantity>;
type Ranked = Vec<(Option<String>, Series)>;

fn fold(series: BTreeMap<Option<String>, Series>, top: usize) -> Result<(Ranked, Option<Series>)> {
    let mut ranked = Vec::with_capacity(series.len());
    for (group, values) in series {
        let total = values.values().try_fold(Quantity::ZERO, |sum, value| sum.checked_add(*value))?;
        ranked.push((total, group, values));
    }
    ranked.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let keep = if top == 0 { ranked.len() } else { top.min(ranked.len()) };
    let tail = ranked.split_off(keep);
    let kept = ranked.into_iter().map(|(_, group, values)| (group, values)).collect();
    if tail.is_empty() {
        return Ok((kept, None));
    }
    let mut other = Series::new();
    for (start, value) in tail.into_iter().flat_map(|(_, _, values)| values) {
        let sum = other.entry(start).or_default();
        *sum = sum.checked_add(value)?;
    }
    Ok((kept, Some(other)))
}

/// Running totals of a subscription.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SubscriptionUsage {
    /// The subscription.
    pub subscription_id: SubscriptionId,
    /// Instant whose window is shown.
    pub as_of: DateTime<Utc>,
    /// One per product, metric, price key and wallet pin.
    pub metrics: Vec<SubscriptionUsageMetric>,
}

/// Running total of one product, metric, price key and wallet pin: the same function as the invoice's.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SubscriptionUsageMetric {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// Sibling price.
    pub price_key: Option<String>,
    /// Wallet pin.
    pub wallet_currency: Option<Currency>,
    /// Start of the window.
    pub window_start: DateTime<Utc>,
    /// End of the window, exclusive.
    pub window_end: DateTime<Utc>,
    /// Quantity so far.
    #[schema(value_type = String)]
    pub quantity: Exact,
    /// Drawn from the allowance.
    #[schema(value_type = String)]
    pub included_quantity: Exact,
    /// Beyond the allowance.
    #[schema(value_type = String)]
    pub overage_quantity: Exact,
    /// Counted events.
    pub event_count: u64,
    /// What it would cost now.
    pub estimated_amount: Money,
}

/// Reads the running totals of the window that contains `at` (default: the scope's instant, or its test clock's).
///
/// # Errors
/// `NotFound`; as every statement.
pub async fn subscription_usage(
    store: &Store,
    snapshots: &Snapshots,
    scope: &Scope,
    id: SubscriptionId,
    at: Option<Instant>,
) -> Result<SubscriptionUsage> {
    let terms = snapshots.terms(scope.workspace_id, id).await?.ok_or_else(|| Error::not_found("subscription", id))?;
    let mut conn = store.pool().acquire().await.context("reading subscription usage")?;
    let as_of = present_of(scope, &mut conn, &terms, at).await?;
    let mut usage = SubscriptionUsage { subscription_id: id, as_of, metrics: Vec::new() };
    let Some(window) = terms.window_at(as_of) else { return Ok(usage) };
    let stored = StoredWindow::load(&mut conn, snapshots, WindowQuery::Starting(&[(id, window.start)])).await?;
    let Some(stored) = stored.into_iter().next() else { return Ok(usage) };
    let catalog = snapshots.workspace(scope.workspace_id).await?;
    let rated = rate(&catalog, &*terms_of(&mut conn, &terms, &stored).await?, &stored, as_of)?;
    usage.metrics = rated.lines.into_iter().map(|line| metric(line, &stored)).collect();
    Ok(usage)
}

/// The terms that a window is rated by: once it is sealed, with what earlier windows had left to it then.
pub(crate) async fn terms_of<'t>(
    conn: &mut PgConnection,
    terms: &'t SubscriptionTerms,
    stored: &StoredWindow,
) -> Result<Cow<'t, SubscriptionTerms>> {
    Ok(match stored.status {
        WindowStatus::Sealed => Cow::Owned(terms.as_of_billed(conn, stored.window.start).await?),
        WindowStatus::Open | WindowStatus::Ended => Cow::Borrowed(terms),
    })
}

/// The running figures of a window as of an instant: what the API shows and analysts read.
pub(crate) fn rate(
    catalog: &WorkspaceCatalog,
    terms: &SubscriptionTerms,
    stored: &StoredWindow,
    as_of: Instant,
) -> Result<Rated> {
    let rating_terms = catalog.rating_terms(terms, stored.window, &stored.state)?;
    let input = RatingInput {
        terms: &rating_terms,
        until: Some(as_of.min(stored.window.end)),
        period: terms.period_facts(stored.window),
    };
    Ok(stored.state.rate(&input)?)
}

/// The instant that is asked for, else the present of the subscription: its test clock's, or the scope's.
pub(crate) async fn present_of(
    scope: &Scope,
    conn: &mut PgConnection,
    terms: &SubscriptionTerms,
    at: Option<Instant>,
) -> Result<Instant> {
    match (at, terms.test_clock_id) {
        (Some(at), _) => Ok(at),
        (None, None) => Ok(scope.now()),
        (None, Some(clock)) => sqlx::query_scalar("SELECT frozen_at FROM test_clock WHERE id = $1")
            .bind(clock)
            .fetch_one(conn)
            .await
            .context("reading a test clock"),
    }
}

fn metric(line: RatedLine, stored: &StoredWindow) -> SubscriptionUsageMetric {
    SubscriptionUsageMetric {
        product_id: line.product_id,
        metric_key: line.metric_key,
        price_key: line.price_key,
        wallet_currency: line.wallet_currency,
        window_start: stored.window.start,
        window_end: stored.window.end,
        quantity: line.quantity,
        included_quantity: line.included_quantity,
        overage_quantity: line.billable_quantity,
        event_count: line.event_count,
        estimated_amount: line.amount,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Instant {
        DateTime::parse_from_rfc3339(text).expect("a timestamp").with_timezone(&Utc)
    }

    #[test]
    fn buckets_are_aligned_in_utc_and_capped() {
        use UsageAggregateBucketSize::{Day, Hour, Week};
        let until = at("2026-03-11T10:30:00Z"); // a Wednesday
        assert_eq!(Hour.window(None, until).0, at("2026-03-10T10:00:00Z"));
        assert_eq!(Day.window(None, until).0, at("2026-02-09T00:00:00Z"));
        assert_eq!(Week.window(Some(until), until).0, at("2026-03-09T00:00:00Z"));
        let capped = Hour.window(Some(at("2020-01-01T00:00:00Z")), until).0;
        assert_eq!((until - capped).num_hours(), AGGREGATE_BUCKETS_MAX - 1);
    }

    #[test]
    fn the_tail_is_folded_and_told_apart_from_a_value_of_its_name() {
        let query = AggregateQuery {
            filter: crate::usage::EventFilter::default(),
            bucket: UsageAggregateBucketSize::Day,
            metric: UsageAggregateMetric::Count,
            group_by: GroupBy::MetricKey,
            since: at("2026-01-01T00:00:00Z"),
            until: at("2026-01-03T00:00:00Z"),
        };
        let bucket = |group: &str, value: i64| AggregateBucket {
            bucket_start: query.since,
            group: Some(group.to_owned()),
            value: Quantity::from_int(value),
        };
        let found = vec![bucket("Other", 9), bucket("b", 5), bucket("a", 5), bucket("c", 1)];
        let response = UsageAggregateResponse::assemble(&query, found, 2).expect("in range");
        let names: Vec<_> = response
            .buckets
            .iter()
            .map(|b| (b.bucket_start.day(), b.group.as_deref().unwrap_or("-"), b.is_other, b.value.to_string()))
            .collect();
        let expected = [
            (1, "Other", false, "9"),
            (1, "a", false, "5"),
            (1, "Other", true, "6"),
            (2, "Other", false, "0"),
            (2, "a", false, "0"),
            (2, "Other", true, "0"),
        ];
        assert_eq!(names, expected.map(|(day, group, other, value)| (day, group, other, value.to_owned())));
        assert_eq!(response.total.to_string(), "20");
    }
}
