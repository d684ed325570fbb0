//! One key under two customers (rule B5): their homes are two partitions, neither of which sees what the other counts, so
//! both count the id. When a window is sealed, its ids are compared with all that are stored, and all rows of an id but one
//! are taken back.
//!
//! Which one stays must be the same wherever it is asked. Usually it is the first by [`CountedEvent::precedence`]. A row in
//! a window that was compared before ([`is_checked`]: `usage_window.checked_position`) is final, so it stays whatever is
//! found later. The comparison of a partition comes after its own rows are stored, therefore of two rows at least the one
//! compared last is compared with the other in sight.
//!
//! | lock of the workspace | for | excludes |
//! |---|---|---|
//! | shared | comparing, and noting that nothing was found: the usual case | a decision meanwhile |
//! | exclusive | comparing again, deciding, noting | every other comparison: each row is either final or will see this one |
//!
//! Both end with one short transaction. It needs no fence: an owner that was overtaken comes to the decision that its
//! successor comes to, and its checkpoint is refused afterwards. Repeating it after a crash finds the same rows again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use domain::{Instant, Position, Result, SubscriptionId, WorkspaceId};
use store::{Store, StoreError, Tx};

use crate::log::Partition;
use crate::usage::{CountedEvent, CountedWindow, RowKey, UsageStore};

/// A window that is about to be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Whose window.
    pub subscription_id: SubscriptionId,
    /// Its first instant.
    pub window_start: Instant,
    /// Place of the seal; every event of the window lies before it.
    pub position: Position,
}

/// What a window is known by.
type Window = (SubscriptionId, Instant);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lock {
    Shared,
    Exclusive,
}

/// Compares the ids of windows with all that are stored, and takes back what stands elsewhere. Answers every row of these
/// windows that is taken back, also those of an earlier try: their windows must be counted anew. The partition's rows up to
/// the seals are stored, and nothing after them is counted.
///
/// # Errors
/// As every statement and the usage store; repeating it is harmless.
pub async fn take_back(
    store: &Store,
    usage: &Arc<dyn UsageStore>,
    partition: Partition,
    seals: &[Seal],
    now: Instant,
) -> Result<Vec<CountedEvent>> {
    let windows = counted_windows(store, seals).await?;
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    let comparison = Comparison { store, usage, partition, seals, windows: &windows, now };
    match comparison.attempt(Lock::Shared).await? {
        Some(taken_back) => Ok(taken_back),
        None => Ok(comparison.attempt(Lock::Exclusive).await?.unwrap_or_default()),
    }
}

/// The windows that have events and are not sealed yet.
async fn counted_windows(store: &Store, seals: &[Seal]) -> Result<Vec<CountedWindow>> {
    let rows: Vec<(WorkspaceId, SubscriptionId, Instant, i64)> = sqlx::query_as(
        "SELECT workspace_id, subscription_id, window_start, event_count
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
         JOIN usage_window USING (subscription_id, window_start) WHERE status <> 'sealed' AND event_count > 0
         ORDER BY subscription_id, window_start",
    )
    .bind(seals.iter().map(|seal| seal.subscription_id.0).collect::<Vec<_>>())
    .bind(seals.iter().map(|seal| seal.window_start).collect::<Vec<_>>())
    .fetch_all(store.pool())
    .await
    .context("reading windows to seal")?;
    let window = |(workspace_id, subscription_id, window_start, event_count): (_, _, _, i64)| CountedWindow {
        workspace_id,
        subscription_id,
        window_start,
        event_count: event_count.unsigned_abs(),
    };
    Ok(rows.into_iter().map(window).collect())
}

struct Comparison<'a> {
    store: &'a Store,
    usage: &'a Arc<dyn UsageStore>,
    partition: Partition,
    seals: &'a [Seal],
    windows: &'a [CountedWindow],
    now: Instant,
}

impl Comparison<'_> {
    /// `None`: there is something to decide, which the shared lock does not allow.
    async fn attempt(&self, lock: Lock) -> Result<Option<Vec<CountedEvent>>> {
        let mut tx = self.store.begin("comparing usage ids").await?;
        self.lock(&mut tx, lock).await?;
        let rows = self.usage.twins(&mut tx, self.windows).await?;
        if !rows.is_empty() && lock == Lock::Shared {
            return Ok(None);
        }
        let taken_back = self.decide(&mut tx, rows).await?;
        void(&mut tx, &taken_back, self.now).await?;
        self.note(&mut tx).await?;
        tx.commit().await?;
        Ok(Some(taken_back))
    }

    async fn lock(&self, tx: &mut Tx, lock: Lock) -> Result<()> {
        let sql = match lock {
            Lock::Shared => {
                "SELECT pg_advisory_xact_lock_shared(hashtextextended('usage twins ' || w, 0)) FROM unnest($1::uuid[]) w"
            }
            Lock::Exclusive => {
                "SELECT pg_advisory_xact_lock(hashtextextended('usage twins ' || w, 0)) FROM unnest($1::uuid[]) w"
            }
        };
        let mut workspaces: Vec<_> = self.windows.iter().map(|window| window.workspace_id.0).collect();
        workspaces.sort_unstable();
        workspaces.dedup();
        sqlx::query(sql).bind(workspaces).execute(tx.conn()).await.context("locking usage ids")?;
        Ok(())
    }

    /// The rows of the windows that are taken back, before or now.
    async fn decide(&self, tx: &mut Tx, rows: Vec<CountedEvent>) -> Result<Vec<CountedEvent>> {
        if rows.is_empty() {
            return Ok(rows);
        }
        let seals: HashMap<Window, Position> =
            self.seals.iter().map(|seal| ((seal.subscription_id, seal.window_start), seal.position)).collect();
        let is_own = |row: &CountedEvent| {
            row.partition == self.partition && seals.get(&window_of(row)).is_some_and(|seal| row.position <= *seal)
        };
        let mut voided = voided(tx, &rows).await?;
        let checked = checked(tx, &rows).await?;
        let mut taken_back = Vec::new();
        for copies in rows.chunk_by(|a, b| a.event.id == b.event.id) {
            // The last first, should one window have two.
            for row in copies.iter().rev().filter(|row| is_own(row)) {
                let yields_to = |other: &CountedEvent| {
                    other.key() != row.key()
                        && !voided.contains(&other.key())
                        && (is_checked(&checked, other) || other.precedence() < row.precedence())
                };
                if voided.contains(&row.key()) || copies.iter().any(yields_to) {
                    voided.insert(row.key());
                    taken_back.push(row.clone());
                }
            }
        }
        Ok(taken_back)
    }

    /// From here on the events of the windows are final unless they are taken back.
    async fn note(&self, tx: &mut Tx) -> Result<()> {
        let mut seals = self.seals.to_vec();
        seals.sort_unstable_by_key(|seal| (seal.subscription_id, seal.window_start)); // the order of locks (rule D3)
        sqlx::query(
            "UPDATE usage_window SET checked_position = greatest(checked_position, p)
             FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[]) AS seal (s, w, p)
             WHERE subscription_id = s AND window_start = w",
        )
        .bind(seals.iter().map(|seal| seal.subscription_id.0).collect::<Vec<_>>())
        .bind(seals.iter().map(|seal| seal.window_start).collect::<Vec<_>>())
        .bind(seals.iter().map(|seal| seal.position.as_i64()).collect::<Vec<_>>())
        .execute(tx.conn())
        .await
        .context("noting compared windows")?;
        Ok(())
    }
}

fn window_of(row: &CountedEvent) -> Window {
    (row.event.subscription_id, row.window_start)
}

/// Whether a row was compared, so that nothing takes it back any more.
fn is_checked(checked: &HashMap<Window, Position>, row: &CountedEvent) -> bool {
    checked.get(&window_of(row)).is_some_and(|checked| row.position <= *checked)
}

async fn voided(tx: &mut Tx, rows: &[CountedEvent]) -> Result<HashSet<RowKey>> {
    let mut ids: Vec<_> = rows.iter().map(|row| row.event.id).collect();
    ids.dedup();
    let found: Vec<(domain::UsageEventId, i16, i64)> =
        sqlx::query_as("SELECT event_id, partition, position FROM usage_void WHERE event_id = ANY($1)")
            .bind(ids)
            .fetch_all(tx.conn())
            .await
            .context("reading voids")?;
    let key = |(id, partition, position): (_, i16, _)| {
        (id, Partition::from(partition.unsigned_abs()), Position::from_i64(position))
    };
    Ok(found.into_iter().map(key).collect())
}

/// How far the windows of these rows were compared.
async fn checked(tx: &mut Tx, rows: &[CountedEvent]) -> Result<HashMap<Window, Position>> {
    let found: Vec<(SubscriptionId, Instant, i64)> = sqlx::query_as(
        "SELECT DISTINCT subscription_id, window_start, checked_position
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
         JOIN usage_window USING (subscription_id, window_start) WHERE checked_position IS NOT NULL",
    )
    .bind(rows.iter().map(|row| row.event.subscription_id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.window_start).collect::<Vec<_>>())
    .fetch_all(tx.conn())
    .await
    .context("reading compared windows")?;
    Ok(found.into_iter().map(|(id, start, position)| ((id, start), Position::from_i64(position))).collect())
}

async fn void(tx: &mut Tx, rows: &[CountedEvent], now: Instant) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let column = |partition: Partition| i16::try_from(partition).unwrap_or(i16::MAX); // at most 1,024 partitions
    sqlx::query(
        "INSERT INTO usage_void (event_id, partition, position, workspace_id, reason, voided_at)
         SELECT e, p, pos, w, 'its idempotency_key counts for another customer', $5
         FROM unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::uuid[]) AS t (e, p, pos, w)
         ON CONFLICT DO NOTHING",
    )
    .bind(rows.iter().map(|row| row.event.id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| column(row.partition)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.position.as_i64()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.event.workspace_id.0).collect::<Vec<_>>())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("taking usage events back")?;
    Ok(())
}
