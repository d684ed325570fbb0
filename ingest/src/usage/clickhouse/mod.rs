//! Counted events in ClickHouse (P8): rows are durable before the checkpoint passes them, and each is written once.
//!
//! * One [`writer`] task per node writes for all its partitions, one batch at a time.
//! * What makes "once" hold when answers are lost and nodes die is described there (rule C7).
//! * Ids have a table of their own, ordered by id, because a batch of unknown ids must cost neither a scan nor a random
//!   read per day of history (rule B3).
//! * Voids are recorded in PostgreSQL with the money they change; [`voids`] copies them before sums and replays.
//! * Sums per minute ([`rollup`]) and per day ([`days`]) for analysts are computed from the rows by a job.
//! * Rated usage and breaches for analysts are copied from PostgreSQL by another ([`copies`]).
//! * `late` is a column of the row: it is known when the event is counted and never changes.
//!
//! | read | plan | bounded by |
//! |---|---|---|
//! | `find` | key of `usage_event_id` | 256 short rows per id and part |
//! | `get` | the same, then the block whose positions hold it | events of about an hour |
//! | `list` | backward along the key (workspace, hour) until the page is full, one hour sorted at a time | the hours that the page spans |
//! | `aggregate` | hours of the range; with subscriptions, their blocks in each hour | events in the range |
//! | `twins` | the windows' blocks for their ids, then the blocks of `usage_event_id` that hold them | events of the windows' time, all ids |
//! | `replay` | blocks of the workspace's window that hold the subscription | events of the window in those blocks |
//! | `ids_between` | blocks whose positions overlap the step | events of about an hour per step |

mod audit;
mod copies;
mod days;
mod encode;
mod migrate;
mod query;
mod rollup;
mod row;
mod twins;
mod voids;
mod writer;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use clickhouse::Client;
use clickhouse::error::Error as ClickHouseError;
use domain::{Error, Instant, Position, Result, Scope, SubscriptionId, UsageEventId};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use store::{Store, StoreError, Tx};
use tokio::sync::{mpsc, oneshot};

pub use self::audit::{Audit, Difference};
pub use self::copies::{Copies, CopyReport};
pub use self::days::DayDifference;
pub use self::rollup::{RollupReport, Rollups};
use self::writer::{Append, Writer};
use super::positions::{self, ByPosition};
use super::{
    AggregateBucket, AggregateQuery, CountedEvent, CountedId, CountedWindow, EventCursor, EventFilter, StoredEvent,
    Touching, UsageStore, derived,
};
use crate::checkpoint::WindowKey;
use crate::log::Partition;

/// Longest read; PostgreSQL statements are cut at the same (P13).
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection without traffic asks after this time whether the other end is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// ClickHouse closes connections that nobody has used for 3 s; ours are given up before.
const IDLE_MAX: Duration = Duration::from_secs(2);

/// Where ClickHouse is.
#[derive(Clone)]
pub struct ClickHouseAddress {
    /// Base URL of its HTTP interface, e.g. `http://localhost:8123`.
    pub url: String,
    /// Database; [`ClickHouseUsage::migrate`] makes it.
    pub database: String,
    /// User, if not the default one.
    pub user: Option<String>,
    /// Password of the user.
    pub password: Option<String>,
}

impl fmt::Debug for ClickHouseAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, database, user, password: _ } = self;
        f.debug_struct("ClickHouseAddress").field("url", url).field("database", database).field("user", user).finish()
    }
}

impl ClickHouseAddress {
    fn client(&self) -> Client {
        let mut client = client()
            .with_url(&self.url)
            .with_database(&self.database)
            // An error after the first rows would else arrive as a short answer.
            .with_setting("wait_end_of_query", "1")
            .with_setting("async_insert", "0")
            .with_setting("optimize_on_insert", "0");
        if let Some(user) = &self.user {
            client = client.with_user(user);
        }
        if let Some(password) = &self.password {
            client = client.with_password(password);
        }
        client
    }
}

/// As the library's own, but it sends at once: the end of an insert else waits 40 ms until its rows are acknowledged.
fn client() -> Client {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEPALIVE));
    let mut http = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    Client::with_http_client(http.pool_idle_timeout(IDLE_MAX).build(connector))
}

/// The usage store in ClickHouse.
pub struct ClickHouseUsage {
    client: Client,
    store: Store,
    writer: mpsc::UnboundedSender<Append>,
    /// Per taken partition: rows up to here may be stored already and are looked up before they are written.
    known: Mutex<HashMap<Partition, Position>>,
}

impl fmt::Debug for ClickHouseUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouseUsage").field("database", &self.client.database()).finish_non_exhaustive()
    }
}

impl ClickHouseUsage {
    /// Brings the database to the schema of `migrations/clickhouse`. May be repeated, also by several nodes at once.
    ///
    /// # Errors
    /// `Unavailable` when nobody answers, `Internal` with the statement that was refused.
    pub async fn migrate(address: &ClickHouseAddress) -> Result<()> {
        migrate::run(address).await
    }

    /// Connects and starts the writer of this node; it ends when the value is dropped. `store` is the database that holds
    /// checkpoints, subscriptions, voids and invoices.
    ///
    /// # Errors
    /// `Unavailable` when nobody answers, `Internal` when the tables are not there.
    pub async fn connect(address: &ClickHouseAddress, store: Store) -> Result<Self> {
        let client = address.client();
        within("connecting to ClickHouse", client.query("SELECT count() FROM usage_event WHERE 0").fetch_one::<u64>())
            .await?;
        let (writer, appends) = mpsc::unbounded_channel();
        tokio::spawn(Writer::new(client.clone(), appends).run());
        Ok(Self { client, store, writer, known: Mutex::default() })
    }

    /// The job that fills the sums per minute and day of this database, and the audit of them.
    #[must_use]
    pub fn rollups(&self) -> Rollups {
        Rollups { client: self.client.clone(), store: self.store.clone() }
    }

    /// The largest position stored after the partition's checkpoint, and the checkpoint itself. What lies before the
    /// checkpoint is stored and never appended again, so it need not be searched.
    async fn largest_after_checkpoint(&self, partition: Partition) -> Result<(Option<Position>, Position)> {
        let checkpoint: Option<i64> = sqlx::query_scalar(
            "SELECT max((l.ordinal::bigint << 48) | c.next_offset)
             FROM partition_checkpoint c JOIN event_log l ON l.id = c.log_id WHERE c.partition = $1",
        )
        .bind(i32::try_from(partition).unwrap_or(i32::MAX))
        .fetch_one(self.store.pool())
        .await
        .context("reading the checkpoint of a partition")?;
        let checkpoint = Position::from_i64(checkpoint.unwrap_or(0));
        let largest = query::largest_from(&self.client, partition, checkpoint).await?;
        Ok((largest, checkpoint))
    }
}

/// Runs a read for at most [`READ_TIMEOUT`].
async fn within<T>(operation: &str, read: impl Future<Output = clickhouse::error::Result<T>>) -> Result<T> {
    match tokio::time::timeout(READ_TIMEOUT, read).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(operation, error)),
        Err(_) => Err(failed(operation, ClickHouseError::TimedOut)),
    }
}

/// Codes of ClickHouse that pass by themselves: time-out, too many queries, network, memory, too many parts, shutdown.
const PASSING_CODES: [&str; 8] =
    ["Code: 159.", "Code: 202.", "Code: 209.", "Code: 210.", "Code: 236.", "Code: 241.", "Code: 252.", "Code: 394."];

fn failed(operation: &str, error: ClickHouseError) -> Error {
    let passes = match &error {
        ClickHouseError::Network(_) | ClickHouseError::TimedOut => true,
        ClickHouseError::BadResponse(answer) => PASSING_CODES.iter().any(|code| answer.contains(code)),
        _ => false,
    };
    if passes {
        tracing::warn!(operation, error = %error, "ClickHouse did not answer");
        return Error::Unavailable { dependency: "usage_store", detail: operation.to_owned(), retry_after_secs: 1 };
    }
    Error::internal(operation.to_owned(), error)
}

#[async_trait]
impl UsageStore for ClickHouseUsage {
    async fn ping(&self) -> Result<()> {
        within("asking the usage store", self.client.query("SELECT 1").fetch_one::<u8>()).await.map(drop)
    }

    fn takes_together(&self) -> Option<Duration> {
        Some(writer::INTERVAL)
    }

    async fn taken(&self, partition: Partition) -> Result<()> {
        let (largest, checkpoint) = self.largest_after_checkpoint(partition).await?;
        let known = largest.map_or(checkpoint, |largest| largest.max(checkpoint));
        // Rows that this node has sent itself may be on their way still.
        let mut all = self.known.lock();
        let own = all.entry(partition).or_insert(known);
        *own = known.max(*own);
        Ok(())
    }

    async fn append(&self, partition: Partition, rows: &[CountedEvent]) -> Result<()> {
        let Some(last) = rows.iter().map(|row| row.position).max() else { return Ok(()) };
        let known = {
            let mut all = self.known.lock();
            let own = all.get_mut(&partition).ok_or_else(|| {
                Error::invariant(format!("usage of partition {partition} is appended before the partition is taken"))
            })?;
            std::mem::replace(own, last.max(*own))
        };
        let (done, stored) = oneshot::channel();
        let append = Append { rows: encode::rows(rows, known), done };
        let gone = || Error::invariant("the writer of usage events has ended");
        self.writer.send(append).map_err(|_| gone())?;
        stored.await.map_err(|_| gone())
    }

    async fn append_in_checkpoint(&self, _tx: &mut Tx, _rows: &[CountedEvent]) -> Result<()> {
        Ok(())
    }

    async fn largest_position(&self, partition: Partition) -> Result<Option<Position>> {
        match self.largest_after_checkpoint(partition).await? {
            (Some(largest), _) => Ok(Some(largest)),
            (None, _) => query::largest_from(&self.client, partition, Position::START).await,
        }
    }

    async fn find(&self, partition: Partition, ids: &[UsageEventId]) -> Result<HashMap<UsageEventId, CountedId>> {
        query::find(&self.client, partition, ids).await
    }

    async fn twins(&self, _tx: &mut Tx, windows: &[CountedWindow]) -> Result<Vec<CountedEvent>> {
        twins::of(&self.client, windows).await
    }

    async fn ids_between(
        &self,
        partition: Partition,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<(UsageEventId, CountedId)>> {
        positions::ids_between(self, partition, after, up_to, limit).await
    }

    async fn replay(
        &self,
        subscription_id: SubscriptionId,
        window_start: Instant,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<CountedEvent>> {
        let workspace_id = sqlx::query_scalar("SELECT workspace_id FROM subscription WHERE id = $1")
            .bind(subscription_id)
            .fetch_optional(self.store.pool())
            .await
            .context("reading the subscription of a usage window")?;
        let Some(workspace_id) = workspace_id else { return Ok(Vec::new()) };
        voids::mirror(&self.client, &self.store).await?;
        let window = query::Window { workspace_id, subscription_id, window_start };
        query::replay(&self.client, window, after, up_to, limit).await
    }

    async fn touched(&self, partition: Partition, touching: &Touching) -> Result<Vec<WindowKey>> {
        query::touched(&self.client, partition, touching).await
    }

    async fn get(&self, scope: &Scope, id: UsageEventId) -> Result<Option<StoredEvent>> {
        let rows = query::rows_of(&self.client, scope, id).await?;
        let counted = derived::standing(&self.store, scope, rows).await?;
        Ok(derived::complete(&self.store, scope, counted.into_iter().collect()).await?.pop())
    }

    async fn list(
        &self,
        scope: &Scope,
        filter: &EventFilter,
        after: Option<EventCursor>,
        limit: u32,
    ) -> Result<(Vec<StoredEvent>, bool)> {
        let subscriptions = derived::subscriptions(&self.store, scope, filter).await?;
        let mut events =
            query::newest(&self.client, scope, filter, subscriptions.as_deref(), after, u64::from(limit) + 1).await?;
        let more = events.len() > limit as usize;
        events.truncate(limit as usize);
        Ok((derived::complete(&self.store, scope, events).await?, more))
    }

    async fn aggregate(&self, scope: &Scope, query: &AggregateQuery) -> Result<Vec<AggregateBucket>> {
        let subscriptions = derived::subscriptions(&self.store, scope, &query.filter).await?;
        voids::mirror(&self.client, &self.store).await?;
        query::buckets(&self.client, scope, query, subscriptions.as_deref()).await
    }
}

#[async_trait]
impl ByPosition for ClickHouseUsage {
    async fn ids_in(
        &self,
        partition: Partition,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<(UsageEventId, CountedId)>> {
        query::ids_in(&self.client, partition, after, up_to, limit).await
    }

    async fn first_in(&self, partition: Partition, after: Position, up_to: Position) -> Result<Option<Position>> {
        query::first_in(&self.client, partition, after, up_to).await
    }
}
