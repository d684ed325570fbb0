//! Rated usage and breaches for analysts, copied from PostgreSQL, where they are written with what they depend on.
//!
//! | what | how changes are found | what remembers that it was copied |
//! |---|---|---|
//! | windows that are not billed | another `updated_at` than the one that was rated | `rated_usage_copy`, written after ClickHouse has the rows |
//! | billed windows | not marked | the mark, set after ClickHouse has the rows; they never change again |
//! | breaches | not marked | the same |
//!
//! A crash between the two copies the batch again, which changes nothing: rows are replaced by key (rule C7). The version of
//! rated rows is a number that is taken under the job's lock before the window is read, so that a node that was held up
//! cannot put old figures above newer ones. A line that its window has no more is written as gone.
//!
//! Figures come from [`crate::view::rate`], the one function behind the running usage of the API.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use catalog::compiled::{Snapshots, StoredWindow, SubscriptionTerms, WindowQuery, WindowStatus};
use clickhouse::{Client, Row};
use domain::{
    BreachId, Clock, Error, FastMap, Instant, MeterId, ProductId, Result, SubscriptionId, TestClockId, WorkspaceId,
};
use rating::RatedLine;
use rust_decimal::Decimal;
use serde::Deserialize;
use store::{Store, StoreError, Tx};
use tokio::sync::watch;
use uuid::Uuid;

use super::rollup::{locked, next_version};
use super::{encode, query, within, writer};
use crate::view;

/// Time between two runs, or [`REST`] times what the run took, if that is longer: each one rates all that is in use again.
const INTERVAL: Duration = Duration::from_secs(30);
const REST: u32 = 20;
/// Windows of one step.
const WINDOWS: usize = 500;
/// Breaches of one step.
const BREACHES: usize = 5_000;
/// Advisory lock of the job: "copies".
const LOCK_KEY: i64 = 0x636f_7069_6573;
const RATED_COLUMNS: &str = "workspace_id, subscription_id, window_start, product_id, metric_key, price_key, wallet_currency, \
    customer_id, window_end, status, is_trial, quantity, included_quantity, billable_quantity, event_count, amount, currency, \
    rated_at, is_gone, version";
const BREACH_COLUMNS: &str = "workspace_id, occurred_at, id, meter_id, meter_key, product_id, subscription_id, threshold_name, \
    threshold_value, comparator, observed_value, window_start, window_end, action_kind";

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Windows that were rated and copied.
    pub windows: usize,
    /// Breaches that were copied.
    pub breaches: usize,
}

/// Copies rated usage and breaches into a ClickHouse database.
#[derive(Clone)]
pub struct Copies {
    pub(super) client: Client,
    pub(super) store: Store,
    pub(super) snapshots: Arc<Snapshots>,
}

type WindowKey = (SubscriptionId, Instant);

/// What tells the lines of a window apart: product, metric, price key and wallet currency, empty for none.
type LineKey = (Uuid, String, String, String);

impl Copies {
    /// Runs until `stop` turns true. Any number of nodes may do so.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let begun = tokio::time::Instant::now();
            if let Err(error) = self.run_once(Clock::System.now()).await {
                tracing::warn!(error = %error, "rated usage could not be copied; trying again");
            }
            let rest = INTERVAL.max(begun.elapsed() * REST);
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                changed = stop.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Copies everything that has changed; `now` is the time of customers without a test clock.
    ///
    /// # Errors
    /// As every statement and query; what was not copied is copied the next time.
    pub async fn run_once(&self, now: Instant) -> Result<CopyReport> {
        let mut report = CopyReport::default();
        while let Some(copied) = self.step(async |tx| self.breaches(tx).await).await?.filter(|copied| *copied > 0) {
            report.breaches += copied;
        }
        let mut last = None;
        while let Some(batch) = self.step(async |tx| self.open_windows(tx, last, now).await).await? {
            let Some(key) = batch.last() else { break };
            (last, report.windows) = (Some(*key), report.windows + batch.len());
        }
        while let Some(copied) = self.step(async |tx| self.billed_windows(tx, now).await).await?.filter(|n| *n > 0) {
            report.windows += copied;
        }
        Ok(report)
    }

    /// One transaction that only one node has at a time; `None` when another has it.
    async fn step<T>(&self, work: impl AsyncFnOnce(&mut Tx) -> Result<T>) -> Result<Option<T>> {
        let Some(mut tx) = locked(&self.store, LOCK_KEY, "copying for analysts").await? else { return Ok(None) };
        let done = work(&mut tx).await;
        tx.end(done).await.map(Some)
    }

    /// The next windows after `last` that count still and have changed since they were rated.
    async fn open_windows(&self, tx: &mut Tx, last: Option<WindowKey>, now: Instant) -> Result<Vec<WindowKey>> {
        let version = next_version(tx).await?;
        let changed: Vec<WindowKey> = sqlx::query_as(
            "SELECT w.subscription_id, w.window_start
             FROM usage_window w LEFT JOIN rated_usage_copy c USING (subscription_id, window_start)
             WHERE NOT w.billed AND c.window_updated_at IS DISTINCT FROM w.updated_at
               AND ($1::uuid IS NULL OR (w.subscription_id, w.window_start) > ($1, $2))
             ORDER BY w.subscription_id, w.window_start LIMIT $3",
        )
        .bind(last.map(|(id, _)| id))
        .bind(last.map(|(_, start)| start))
        .bind(WINDOWS as i64)
        .fetch_all(tx.conn())
        .await
        .context("looking for usage windows to rate")?;
        let windows = self.rate_and_write(tx, &changed, false, now, version).await?;
        sqlx::query(
            "INSERT INTO rated_usage_copy (subscription_id, window_start, window_updated_at)
             SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[])
             ON CONFLICT (subscription_id, window_start) DO UPDATE SET window_updated_at = EXCLUDED.window_updated_at",
        )
        .bind(windows.iter().map(|window| window.subscription_id.0).collect::<Vec<_>>())
        .bind(windows.iter().map(|window| window.window.start).collect::<Vec<_>>())
        .bind(windows.iter().map(|window| window.written_at).collect::<Vec<_>>())
        .execute(tx.conn())
        .await
        .context("remembering rated usage windows")?;
        Ok(changed)
    }

    /// The next windows that are billed and not copied as such.
    async fn billed_windows(&self, tx: &mut Tx, now: Instant) -> Result<usize> {
        let version = next_version(tx).await?;
        let billed: Vec<WindowKey> = sqlx::query_as(
            "SELECT subscription_id, window_start FROM usage_window WHERE billed AND NOT mirrored
             ORDER BY subscription_id, window_start LIMIT $1",
        )
        .bind(WINDOWS as i64)
        .fetch_all(tx.conn())
        .await
        .context("looking for billed usage windows")?;
        self.rate_and_write(tx, &billed, true, now, version).await?;
        let (ids, starts): (Vec<_>, Vec<_>) = billed.iter().map(|(id, start)| (id.0, *start)).unzip();
        sqlx::query(
            "WITH done AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS d (subscription_id, window_start)),
                  forgotten AS (DELETE FROM rated_usage_copy c USING done
                                WHERE (c.subscription_id, c.window_start) = (done.subscription_id, done.window_start))
             UPDATE usage_window w SET mirrored = true FROM done
             WHERE (w.subscription_id, w.window_start) = (done.subscription_id, done.window_start)",
        )
        .bind(ids)
        .bind(starts)
        .execute(tx.conn())
        .await
        .context("marking copied usage windows")?;
        Ok(billed.len())
    }

    /// Rates windows and replaces their rows in ClickHouse. Answers what was read.
    async fn rate_and_write(
        &self,
        tx: &mut Tx,
        keys: &[WindowKey],
        is_billed: bool,
        now: Instant,
        version: i64,
    ) -> Result<Vec<StoredWindow>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        self.snapshots.refresh().await?;
        let windows = StoredWindow::load(tx.conn(), &self.snapshots, WindowQuery::Starting(keys)).await?;
        let ids: Vec<SubscriptionId> = windows.iter().map(|window| window.subscription_id).collect();
        let terms = self.snapshots.terms_of_many(&ids).await?;
        let clocks = frozen(tx, terms.values()).await?;
        let mut gone = self.stored_lines(&windows).await?;
        let mut rows = Rows { bytes: Vec::new(), version };
        for window in &windows {
            let Some(terms) = terms.get(&window.subscription_id) else { continue };
            let rated_at = terms.test_clock_id.and_then(|clock| clocks.get(&clock).copied()).unwrap_or(now);
            let terms_then = view::terms_of(tx.conn(), terms, window).await?;
            let lines = self.rated(window, &terms_then, rated_at).await?;
            let written = Written { window, is_billed, is_trial: terms.is_trial(window.window.start), rated_at };
            let stored = gone.remove(&(window.subscription_id, window.window.start)).unwrap_or_default();
            for line in rows.lines(&written, &lines, stored) {
                rows.gone(&written, &line);
            }
        }
        if !rows.bytes.is_empty() {
            writer::insert(&self.client, "rated_usage_version", RATED_COLUMNS, rows.bytes.into())
                .await
                .map_err(|error| super::failed("writing rated usage", error))?;
        }
        Ok(windows)
    }

    /// A window that cannot be rated has no lines until it changes; its billing says why.
    async fn rated(&self, window: &StoredWindow, terms: &SubscriptionTerms, at: Instant) -> Result<Vec<RatedLine>> {
        let catalog = self.snapshots.workspace(window.workspace_id).await?;
        // After its end, a window is what its invoice will say.
        let as_of = if window.status == WindowStatus::Open { at } else { window.window.end };
        match view::rate(&catalog, terms, window, as_of) {
            Ok(rated) => Ok(rated.lines),
            Err(error @ Error::Unavailable { .. }) => Err(error),
            Err(error) => {
                let (id, start) = (window.subscription_id, window.window.start);
                tracing::warn!(subscription.id = %id, window.start = %start, error = %error, "a window cannot be rated");
                Ok(Vec::new())
            }
        }
    }

    /// The lines that ClickHouse has of windows.
    async fn stored_lines(&self, windows: &[StoredWindow]) -> Result<HashMap<WindowKey, HashSet<LineKey>>> {
        let starts = || windows.iter().map(|window| window.window.start);
        let (Some(first), Some(last)) = (starts().min(), starts().max()) else { return Ok(HashMap::new()) };
        let distinct = |ids: &mut Vec<Uuid>| {
            ids.sort_unstable();
            ids.dedup();
            query::listed(ids.iter().copied())
        };
        let sql = format!(
            "SELECT subscription_id, toUnixTimestamp64Micro(window_start) AS start, product_id,
                    CAST(metric_key AS String) AS metric_key, CAST(price_key AS String) AS price_key,
                    CAST(wallet_currency AS String) AS wallet_currency
             FROM rated_usage WHERE workspace_id IN ({workspaces}) AND subscription_id IN ({subscriptions})
               AND window_start >= {first} AND window_start <= {last}",
            workspaces = distinct(&mut windows.iter().map(|window| window.workspace_id.0).collect()),
            subscriptions = distinct(&mut windows.iter().map(|window| window.subscription_id.0).collect()),
            first = query::micros(first),
            last = query::micros(last),
        );
        let rows = within("reading rated usage", self.client.query(&sql).fetch_all::<LineRow>()).await?;
        let mut lines: HashMap<WindowKey, HashSet<LineKey>> = HashMap::new();
        for row in rows {
            let start = Instant::from_timestamp_micros(row.start).unwrap_or_default();
            let key = (row.product_id, row.metric_key, row.price_key, row.wallet_currency);
            lines.entry((SubscriptionId(row.subscription_id), start)).or_default().insert(key);
        }
        Ok(lines)
    }

    /// The next breaches that are not copied.
    async fn breaches(&self, tx: &mut Tx) -> Result<usize> {
        let breaches: Vec<Breach> = sqlx::query_as(
            "SELECT id, workspace_id, meter_id, product_id, subscription_id, meter_key, threshold_name, threshold_value, comparator,
                    observed_value, window_start, window_end, occurred_at, action_kind
             FROM meter_breach WHERE NOT mirrored ORDER BY id LIMIT $1",
        )
        .bind(BREACHES as i64)
        .fetch_all(tx.conn())
        .await
        .context("reading breaches to copy")?;
        if breaches.is_empty() {
            return Ok(0);
        }
        let mut body = Vec::new();
        for breach in &breaches {
            breach.encode(&mut body).ok_or_else(|| {
                Error::invariant(format!("the numbers of breach {} do not fit into ClickHouse", breach.id))
            })?;
        }
        writer::insert(&self.client, "meter_breach_copy", BREACH_COLUMNS, body.into())
            .await
            .map_err(|error| super::failed("copying breaches", error))?;
        sqlx::query("UPDATE meter_breach SET mirrored = true WHERE id = ANY($1)")
            .bind(breaches.iter().map(|breach| breach.id.0).collect::<Vec<_>>())
            .execute(tx.conn())
            .await
            .context("marking copied breaches")?;
        Ok(breaches.len())
    }
}

/// What the test clocks of subscriptions show.
async fn frozen<'a>(
    tx: &mut Tx,
    terms: impl Iterator<Item = &'a Arc<SubscriptionTerms>>,
) -> Result<FastMap<TestClockId, Instant>> {
    let clocks: HashSet<Uuid> = terms.filter_map(|terms| terms.test_clock_id.map(|id| id.0)).collect();
    if clocks.is_empty() {
        return Ok(FastMap::default());
    }
    let rows: Vec<(TestClockId, Instant)> = sqlx::query_as("SELECT id, frozen_at FROM test_clock WHERE id = ANY($1)")
        .bind(clocks.into_iter().collect::<Vec<_>>())
        .fetch_all(tx.conn())
        .await
        .context("reading test clocks")?;
    Ok(rows.into_iter().collect())
}

/// What all lines of a window have in common.
struct Written<'a> {
    window: &'a StoredWindow,
    is_billed: bool,
    is_trial: bool,
    rated_at: Instant,
}

impl Written<'_> {
    fn status(&self) -> &'static str {
        if self.is_billed { "billed" } else { self.window.status.as_str() }
    }
}

/// Rows of `rated_usage_version`.
struct Rows {
    bytes: Vec<u8>,
    version: i64,
}

impl Rows {
    /// Appends the lines of a window; answers those that were stored and are no more.
    fn lines(&mut self, of: &Written<'_>, lines: &[RatedLine], mut stored: HashSet<LineKey>) -> HashSet<LineKey> {
        for line in lines {
            let key = line_key(line);
            let start = self.bytes.len();
            if self.line(of, &key, line).is_some() {
                stored.remove(&key);
            } else {
                // Numbers beyond 26 integer digits: no bill has them.
                self.bytes.truncate(start);
                tracing::warn!(subscription.id = %of.window.subscription_id, "a rated line is too large for analysts");
            }
        }
        stored
    }

    fn line(&mut self, of: &Written<'_>, key: &LineKey, line: &RatedLine) -> Option<()> {
        self.head(of, key);
        let quantities = [line.quantity, line.included_quantity, line.billable_quantity].map(|exact| exact.shown());
        self.numbers(quantities, line.event_count, line.amount.amount(), line.amount.currency().as_str())?;
        self.tail(of, false);
        Some(())
    }

    fn gone(&mut self, of: &Written<'_>, key: &LineKey) {
        self.head(of, key);
        // Zeros fit.
        let _ = self.numbers([Decimal::ZERO; 3], 0, Decimal::ZERO, "");
        self.tail(of, true);
    }

    fn head(&mut self, of: &Written<'_>, (product, metric, price_key, wallet): &LineKey) {
        let (out, window) = (&mut self.bytes, of.window);
        encode::uuid(out, window.workspace_id.0);
        encode::uuid(out, window.subscription_id.0);
        encode::instant(out, window.window.start);
        encode::uuid(out, *product);
        for text in [metric, price_key, wallet] {
            encode::text(out, text);
        }
        encode::uuid(out, window.customer_id.0);
        encode::instant(out, window.window.end);
        encode::text(out, of.status());
        out.push(u8::from(of.is_trial));
    }

    fn numbers(&mut self, quantities: [Decimal; 3], events: u64, amount: Decimal, currency: &str) -> Option<()> {
        for quantity in quantities {
            encode::decimal(&mut self.bytes, quantity)?;
        }
        self.bytes.extend_from_slice(&events.to_le_bytes());
        encode::decimal(&mut self.bytes, amount)?;
        encode::text(&mut self.bytes, currency);
        Some(())
    }

    fn tail(&mut self, of: &Written<'_>, is_gone: bool) {
        encode::instant(&mut self.bytes, of.rated_at);
        self.bytes.push(u8::from(is_gone));
        self.bytes.extend_from_slice(&self.version.to_le_bytes());
    }
}

fn line_key(line: &RatedLine) -> LineKey {
    let wallet = line.wallet_currency.map(|currency| currency.to_string()).unwrap_or_default();
    (line.product_id.0, line.metric_key.clone(), line.price_key.clone().unwrap_or_default(), wallet)
}

#[derive(Row, Deserialize)]
struct LineRow {
    #[serde(with = "clickhouse::serde::uuid")]
    subscription_id: Uuid,
    start: i64,
    #[serde(with = "clickhouse::serde::uuid")]
    product_id: Uuid,
    metric_key: String,
    price_key: String,
    wallet_currency: String,
}

#[derive(sqlx::FromRow)]
struct Breach {
    id: BreachId,
    workspace_id: WorkspaceId,
    meter_id: MeterId,
    product_id: Option<ProductId>,
    subscription_id: SubscriptionId,
    meter_key: String,
    threshold_name: String,
    threshold_value: Decimal,
    comparator: String,
    observed_value: Decimal,
    window_start: Instant,
    window_end: Instant,
    occurred_at: Instant,
    action_kind: String,
}

impl Breach {
    fn encode(&self, out: &mut Vec<u8>) -> Option<()> {
        encode::uuid(out, self.workspace_id.0);
        encode::instant(out, self.occurred_at);
        encode::uuid(out, self.id.0);
        encode::uuid(out, self.meter_id.0);
        encode::text(out, &self.meter_key);
        encode::uuid(out, self.product_id.map(|id| id.0).unwrap_or_default());
        encode::uuid(out, self.subscription_id.0);
        encode::text(out, &self.threshold_name);
        encode::decimal(out, self.threshold_value)?;
        encode::text(out, &self.comparator);
        encode::decimal(out, self.observed_value)?;
        encode::instant(out, self.window_start);
        encode::instant(out, self.window_end);
        encode::text(out, &self.action_kind);
        Some(())
    }
}
