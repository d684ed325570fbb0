//! The one writer of a node.
//!
//! **Batches.** Appends that wait while a batch is written go into the next one. A batch starts at once while the node is
//! idle, so that a forced checkpoint costs one round trip; under load it starts when it has [`ROWS_WANTED`] rows or
//! [`INTERVAL`] after the one before. Partitions append in the same rhythm, so the batch of an idle node waits up to [`GATHERING`]
//! for as many appends as the one before had. Small inserts cost ten times more per row and leave ClickHouse with more parts than
//! it can merge. A batch is one insert of ids and, beside it, one insert of events per month of `ingested_at`, sorted by
//! the table's key: such an insert makes one part, which is there whole or not at all.
//!
//! **Once (rule C7).** A row can come again when an answer was lost, when the checkpoint behind it failed, or when another
//! node had the partition. A row is *suspect* when its position is not above everything that is known to have been sent;
//! suspects are looked up by position, and what is stored is skipped. After a failed insert all its rows are suspects.
//! An insert that takes effect only after that look-up (a time-out, not a refusal) is caught by ClickHouse itself: it
//! knows the blocks of the last inserts by their content. Rows that both miss, because two owners of a partition wrote at
//! the same moment, are equal in the table's key and merge into one.
//!
//! Ids are written for skipped rows too: the crash may have come between the two inserts. The same id at the same
//! position says nothing new to whoever asks, so ids need no look-up.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use clickhouse::Client;
use clickhouse::error::{Error as ClickHouseError, Result as ClickHouseResult};
use domain::Position;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::encode::{self, Head, Rows};
use super::query;
use crate::log::Partition;

/// Rows that start a batch before its time.
const ROWS_WANTED: usize = 50_000;
/// Rows after which a batch takes no further append: one block of ClickHouse stays far above it.
const ROWS_MAX: usize = 250_000;
/// Time between batches under load: four parts per second and table are far below what ClickHouse merges.
pub(super) const INTERVAL: Duration = Duration::from_millis(250);
/// How long a batch that could start waits for the appends that usually come with it.
const GATHERING: Duration = Duration::from_millis(30);
/// Batches that a rested node may start without waiting: forced checkpoints come in rows (rule E4).
const BURST: u32 = 128;
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Rows of one partition that somebody waits for.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) rows: Rows,
    /// Answered when they are durable.
    pub(super) done: oneshot::Sender<()>,
}

/// The task.
pub(super) struct Writer {
    client: Client,
    appends: mpsc::UnboundedReceiver<Append>,
    pace: Pace,
    /// Appends in the last batch.
    usual: usize,
}

impl Writer {
    pub(super) fn new(client: Client, appends: mpsc::UnboundedReceiver<Append>) -> Self {
        Self { client, appends, pace: Pace { next: Instant::now() }, usual: 1 }
    }

    /// Writes until the store is dropped.
    pub(super) async fn run(mut self) {
        while let Some(batch) = self.collect().await {
            let mut rows: Vec<Row<'_>> = Vec::new();
            for append in &batch {
                rows.extend(append.rows.heads.iter().map(|head| Row { head, body: append.rows.body(head) }));
            }
            // Twins in one batch (an append that was given up and came again) are neighbours after sorting.
            rows.sort_unstable_by_key(|row| row.head.order);
            rows.dedup_by_key(|row| (row.head.order.partition, row.head.order.position));
            let abandoned = || self.appends.is_closed() && batch.iter().all(|append| append.done.is_closed());
            let writing = Writing { client: &self.client, abandoned: &abandoned };
            tokio::join!(writing.ids(&rows), writing.events(&rows));
            for append in batch {
                // Nobody may be waiting any more.
                let _ = append.done.send(());
            }
        }
    }

    async fn collect(&mut self) -> Option<Vec<Append>> {
        let first = self.appends.recv().await?;
        let (mut rows, mut batch) = (first.rows.heads.len(), vec![first]);
        let start = self.pace.start();
        let gathered = start.max(Instant::now() + GATHERING);
        while rows < ROWS_WANTED {
            let until = if batch.len() < self.usual { gathered } else { start };
            let Ok(Some(append)) = timeout_at(until, self.appends.recv()).await else { break };
            rows += append.rows.heads.len();
            batch.push(append);
        }
        while rows < ROWS_MAX {
            let Ok(append) = self.appends.try_recv() else { break };
            rows += append.rows.heads.len();
            batch.push(append);
        }
        self.pace.started(Instant::now());
        self.usual = batch.len();
        Some(batch)
    }
}

/// At most one batch per [`INTERVAL`] in the long run, [`BURST`] at once after a rest.
struct Pace {
    /// When the next batch would start if all had kept the interval.
    next: Instant,
}

impl Pace {
    fn start(&self) -> Instant {
        self.next.checked_sub(INTERVAL * BURST).unwrap_or(self.next)
    }

    fn started(&mut self, now: Instant) {
        // Full batches may come faster. They use up the burst, but nobody waits longer than an interval for them.
        self.next = (self.next.max(now) + INTERVAL).min(now + INTERVAL * (BURST + 1));
    }
}

#[derive(Clone, Copy)]
struct Row<'a> {
    head: &'a Head,
    body: &'a [u8],
}

/// One batch on its way.
struct Writing<'a, F> {
    client: &'a Client,
    /// Whether nobody waits for the batch and nobody will come again: the process is ending.
    abandoned: &'a F,
}

impl<F: Fn() -> bool> Writing<'_, F> {
    async fn ids(&self, rows: &[Row<'_>]) {
        let mut heads: Vec<&Head> = rows.iter().map(|row| row.head).collect();
        heads.sort_unstable_by_key(|head| (encode::uuid_order(head.id), head.order.position));
        let mut body = Vec::with_capacity(heads.len() * 34);
        heads.into_iter().for_each(|head| encode::id_row(&mut body, head));
        let body = Bytes::from(body);
        let mut backoff = Backoff::new("writing ids of usage events");
        while let Err(error) = insert(self.client, "usage_event_id", encode::ID_COLUMNS, body.clone()).await {
            if (self.abandoned)() {
                return;
            }
            backoff.wait(&error).await;
        }
    }

    async fn events(&self, rows: &[Row<'_>]) {
        let mut months: HashMap<i32, Vec<Row<'_>>> = HashMap::new();
        for row in rows {
            months.entry(row.head.month).or_default().push(*row);
        }
        for rows in months.into_values() {
            self.month(rows).await;
        }
    }

    async fn month(&self, mut rows: Vec<Row<'_>>) {
        let mut suspicious = rows.iter().any(|row| row.head.suspect);
        let mut backoff = Backoff::new("writing usage events");
        loop {
            match self.attempt(&mut rows, suspicious).await {
                Ok(()) => return,
                Err(_) if (self.abandoned)() => return,
                Err(error) => backoff.wait(&error).await,
            }
            suspicious = true;
        }
    }

    /// Writes what is not stored. On failure it is not known what is.
    async fn attempt(&self, rows: &mut Vec<Row<'_>>, suspicious: bool) -> ClickHouseResult<()> {
        if suspicious {
            let stored = self.stored(rows).await?;
            rows.retain(|row| !stored.contains(&(row.head.order.partition, row.head.order.position)));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut body = Vec::with_capacity(rows.iter().map(|row| row.body.len()).sum());
        rows.iter().for_each(|row| body.extend_from_slice(row.body));
        insert(self.client, "usage_event", encode::EVENT_COLUMNS, body.into()).await
    }

    async fn stored(&self, rows: &[Row<'_>]) -> ClickHouseResult<HashSet<(Partition, Position)>> {
        let mut ranges: HashMap<Partition, (Position, Position)> = HashMap::new();
        for encode::Order { partition, position, .. } in rows.iter().map(|row| row.head.order) {
            let range = ranges.entry(partition).or_insert((position, position));
            *range = (range.0.min(position), range.1.max(position));
        }
        let mut stored = HashSet::new();
        for (partition, (first, last)) in ranges {
            let positions = query::stored_positions(self.client, partition, first, last).await?;
            stored.extend(positions.into_iter().map(|position| (partition, position)));
        }
        Ok(stored)
    }
}

/// Waits longer after each failure in a row.
struct Backoff {
    operation: &'static str,
    wait: Duration,
}

impl Backoff {
    fn new(operation: &'static str) -> Self {
        Self { operation, wait: BACKOFF_FIRST }
    }

    // Without limit: a failure of I/O rejects nothing (rule A4), and a refused insert is for the operator to see.
    async fn wait(&mut self, error: &ClickHouseError) {
        tracing::warn!(operation = self.operation, %error, wait_ms = self.wait.as_millis() as u64, "trying again");
        sleep(self.wait).await;
        self.wait = (self.wait * 2).min(BACKOFF_MAX);
    }
}

/// One insert in RowBinary; it has taken effect when this is `Ok`, and may have when it is not.
pub(super) async fn insert(client: &Client, table: &str, columns: &str, body: Bytes) -> ClickHouseResult<()> {
    let sql = format!("INSERT INTO {table} ({columns}) FORMAT RowBinary");
    let mut insert = client.insert_formatted_with(sql).with_timeouts(Some(SEND_TIMEOUT), Some(ANSWER_TIMEOUT));
    match insert.send(body).await {
        Ok(()) => insert.end().await,
        // The server hung up: its answer, if there is one, says why.
        Err(error @ ClickHouseError::Network(_)) => insert.end().await.and(Err(error)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rested_writer_starts_at_once_and_a_busy_one_keeps_the_interval() {
        let now = Instant::now();
        let mut pace = Pace { next: now };
        for _ in 0..=BURST {
            assert!(pace.start() <= now);
            pace.started(now);
        }
        // However many full batches follow each other, the next one waits for one interval at most.
        for _ in 0..1_000 {
            assert_eq!(pace.start(), now + INTERVAL);
            pace.started(now);
        }
        let rested = now + INTERVAL * (BURST + 1);
        pace.started(rested);
        assert!(pace.start() <= now + INTERVAL * 2);
    }
}
