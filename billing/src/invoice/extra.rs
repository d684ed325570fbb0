//! Invoices beside those of the periods: a usage window may be billed any number of times, each time the difference to what
//! its invoices have charged.
//!
//! | run | when | from which totals |
//! |---|---|---|
//! | interim | a threshold with the action `INVOICE` was crossed in a window that still counts | as checkpointed; what comes later is in the next difference, so nothing is sealed and nothing becomes late |
//! | correction | late usage was counted in a window that is billed (`late_event_policy` `CORRECT`) | of the closed window with its late events; the row stays as it was billed |
//!
//! Both are asked for by the checkpoint that counts the event, in its transaction, and both are finalized at once: number,
//! books and wallet money in the transaction that deletes their due work. Locks are taken in the order of finalizing.

use std::collections::HashMap;

use catalog::compiled::{StoredWindow, WindowQuery};
use domain::{Error, Instant, Position, Result, Scope, SubscriptionId};
use futures::future::BoxFuture;
use sqlx::{FromRow, PgConnection};
use store::{StoreError, Tx};
use uuid::Uuid;

use super::captured;
use super::finalize::{FinalizeOptions, compute, finalize_saved};
use super::load::Loaded;
use super::run::{Run, RunKey, RunReason};
use super::save::{Computed, Saved, save};
use crate::billing::Billing;
use crate::control::WindowRef;
use crate::credit_note;
use crate::cycle::payload;
use crate::due::{DueKind, DueWork, WindowPayload, plan_windows};

/// What a window is known by.
type WindowKey = (SubscriptionId, Instant);

/// A window that is to be billed, locked.
#[derive(Clone, Copy, FromRow)]
struct Asked {
    work_id: Uuid,
    subscription_id: SubscriptionId,
    window_start: Instant,
    window_end: Instant,
    /// Whether an invoice has closed it.
    billed: bool,
    /// Whether nothing is charged for it.
    uncharged: bool,
}

impl Asked {
    fn key(&self) -> WindowKey {
        (self.subscription_id, self.window_start)
    }

    fn run(&self, loaded: &Loaded, reason: RunReason, end: Instant) -> Result<Run> {
        let key = RunKey { reason, start: self.window_start, end, occurrence: Some(self.work_id) };
        Run::of(loaded.subscription(self.subscription_id)?, key)
    }
}

impl Billing {
    /// Bills the usage so far of windows whose thresholds ask for it. A window that is sealed is left to its own invoice.
    pub(crate) fn bill_interim<'a>(&'a self, scope: &'a Scope, works: &'a [DueWork]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.snapshots.refresh().await?;
            let mut tx = self.store.begin("billing usage so far").await?;
            let outcome = self.interim_in(scope, &mut tx, works).await;
            tx.end(outcome).await
        })
    }

    async fn interim_in(&self, scope: &Scope, tx: &mut Tx, works: &[DueWork]) -> Result<()> {
        let asked = claim(tx.conn(), works).await?;
        let open = counting(tx.conn(), &asked).await?;
        let mut loaded = self.loaded(scope, tx, &open).await?;
        let end = |asked: &Asked| scope.now().clamp(asked.window_start, asked.window_end);
        let runs = open.iter().map(|one| one.run(&loaded, RunReason::Interim, end(one))).collect::<Result<Vec<_>>>()?;
        loaded.add_windows(tx.conn(), &self.snapshots, &runs).await?;
        let computed = worth_a_document(compute(&loaded, &runs)?);
        let saved = save(tx.conn(), scope.workspace_id, scope.now(), &computed).await?;
        let charged = computed.iter().filter(|computed| !computed.drafts.is_empty());
        let charged: Vec<WindowRef> = charged.filter_map(|computed| loaded.window_ref(&computed.run)).collect();
        let captured = captured::take(tx.conn(), scope, &charged).await?;
        finalize_saved(scope, tx, &saved, captured, FinalizeOptions::default()).await?;
        note_interim(tx.conn(), &saved).await?;
        deliver(tx.conn(), scope, &open).await
    }

    /// Bills what late usage has changed of windows that are billed. A window that is not, or is open again, is left as it is:
    /// its invoice asks anew, or counts the late usage itself.
    pub(crate) fn correct<'a>(&'a self, scope: &'a Scope, works: &'a [DueWork]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.snapshots.refresh().await?;
            // Counted without a lock: it takes as long as there is late usage.
            let counted = self.count_late(works).await?;
            let mut tx = self.store.begin("correcting billed usage").await?;
            let outcome = self.correct_in(scope, &mut tx, works, counted).await;
            tx.end(outcome).await
        })
    }

    /// The windows of these works that are billed and have late usage, with their totals up to its last event.
    async fn count_late(&self, works: &[DueWork]) -> Result<HashMap<WindowKey, StoredWindow>> {
        let keys = works.iter().map(key_of).collect::<Result<Vec<_>>>()?;
        let mut conn = self.store.pool().acquire().await.context("reading late usage")?;
        let mut late: HashMap<WindowKey, Position> = pending(&mut conn, &keys).await?.into_iter().collect();
        let keys: Vec<WindowKey> = late.keys().copied().collect();
        let windows = StoredWindow::load(&mut conn, &self.snapshots, WindowQuery::Starting(&keys)).await?;
        drop(conn);
        let mut counted = HashMap::new();
        for window in windows {
            let key = (window.subscription_id, window.window.start);
            if let Some(up_to) = late.remove(&key) {
                counted.insert(key, self.control.count_late(window, up_to).await?);
            }
        }
        Ok(counted)
    }

    async fn correct_in(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        works: &[DueWork],
        mut counted: HashMap<WindowKey, StoredWindow>,
    ) -> Result<()> {
        let asked = claim(tx.conn(), works).await?;
        let billed: Vec<Asked> = asked.into_iter().filter(|asked| asked.billed).collect();
        let late: HashMap<WindowKey, Position> =
            pending(tx.conn(), &billed.iter().map(Asked::key).collect::<Vec<_>>()).await?.into_iter().collect();
        let charged: Vec<Asked> =
            billed.into_iter().filter(|asked| !asked.uncharged && late.contains_key(&asked.key())).collect();
        let mut loaded = self.loaded(scope, tx, &charged).await?;
        let run = |one: &Asked| one.run(&loaded, RunReason::Correction, one.window_end);
        let runs = charged.iter().map(run).collect::<Result<Vec<_>>>()?;
        loaded.add_windows(tx.conn(), &self.snapshots, &runs).await?;
        for one in &charged {
            // Billed since it was counted, or not read then: counted anew with the next try.
            let window = counted.remove(&one.key()).filter(|window| late.get(&one.key()) == Some(&window.position));
            loaded.put_window(window.ok_or_else(not_counted)?);
            loaded.recall(tx.conn(), one.key()).await?;
        }
        let computed = worth_a_document(compute(&loaded, &runs)?);
        let saved = save(tx.conn(), scope.workspace_id, scope.now(), &computed).await?;
        finalize_saved(scope, tx, &saved, Vec::new(), FinalizeOptions::default()).await?;
        credit_note::issue(scope, tx, &computed).await?;
        settle(tx.conn(), late).await
    }

    async fn loaded(&self, scope: &Scope, tx: &mut Tx, asked: &[Asked]) -> Result<Loaded> {
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let ids: Vec<_> = asked.iter().map(|asked| asked.subscription_id).collect();
        Loaded::subscriptions(tx.conn(), catalog, scope.workspace_id, &ids, false).await
    }
}

fn key_of(work: &DueWork) -> Result<WindowKey> {
    let WindowPayload { window_start } = payload(work)?;
    Ok((SubscriptionId(work.subject_id), window_start))
}

fn not_counted() -> Error {
    let detail = "late usage of a billed window is being counted".to_owned();
    Error::Unavailable { dependency: "event_log", detail, retry_after_secs: 1 }
}

/// Finishes due work first: its row is the lock that keeps a second scheduler out. Then its windows are locked.
async fn claim(conn: &mut PgConnection, works: &[DueWork]) -> Result<Vec<Asked>> {
    let claimed: Vec<Uuid> = sqlx::query_scalar("DELETE FROM due_work WHERE id = ANY($1) RETURNING id")
        .bind(works.iter().map(|work| work.id).collect::<Vec<_>>())
        .fetch_all(&mut *conn)
        .await
        .context("finishing due work")?;
    let claimed = works.iter().filter(|work| claimed.contains(&work.id));
    let windows = claimed.map(|work| Ok((work.id, key_of(work)?))).collect::<Result<Vec<_>>>()?;
    lock(conn, &windows).await
}

/// Locks the windows in the order of their key (rule D3); those of deleted subscriptions have nothing to bill.
async fn lock(conn: &mut PgConnection, works: &[(Uuid, WindowKey)]) -> Result<Vec<Asked>> {
    sqlx::query_as(
        "SELECT asked.work_id, subscription_id, window_start, w.window_end, w.billed, w.uncharged
         FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS asked (work_id, subscription_id, window_start)
              JOIN usage_window w USING (subscription_id, window_start)
              JOIN subscription s ON s.id = subscription_id AND s.deleted_at IS NULL
         ORDER BY subscription_id, window_start FOR UPDATE OF w",
    )
    .bind(works.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(works.iter().map(|(_, (id, _))| id.0).collect::<Vec<_>>())
    .bind(works.iter().map(|(_, (_, start))| *start).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .context("locking usage windows")
}

/// Those of locked windows that still count and that their period's invoice will charge: not of a trial, and in a pause nobody
/// knows yet, since a boundary that it passes makes no invoice (billing-cycles.md 3.4 rule 5).
async fn counting(conn: &mut PgConnection, asked: &[Asked]) -> Result<Vec<Asked>> {
    let rows: Vec<WindowKey> = sqlx::query_as(
        "SELECT subscription_id, window_start
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
              JOIN usage_window w USING (subscription_id, window_start) JOIN subscription s ON s.id = subscription_id
         WHERE w.status <> 'sealed' AND NOT w.billed
           AND s.status <> 'PAUSED'
           AND NOT EXISTS (SELECT FROM due_work free WHERE free.subject_id = s.id AND free.kind = 'invoice_finalize'
                               AND free.payload ->> 'reason' IN ('paused', 'trial')
                               AND (free.payload ->> 'start')::timestamptz = window_start)",
    )
    .bind(asked.iter().map(|asked| asked.subscription_id.0).collect::<Vec<_>>())
    .bind(asked.iter().map(|asked| asked.window_start).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .context("looking for windows that count")?;
    Ok(asked.iter().filter(|asked| rows.contains(&asked.key())).copied().collect())
}

/// Late usage of windows that no document shows yet: the position of its last event.
async fn pending(conn: &mut PgConnection, windows: &[WindowKey]) -> Result<Vec<(WindowKey, Position)>> {
    let rows: Vec<(SubscriptionId, Instant, i64)> = sqlx::query_as(
        "SELECT subscription_id, window_start, c.position
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
              JOIN usage_correction c USING (subscription_id, window_start)
              JOIN usage_window w USING (subscription_id, window_start)
         WHERE w.billed",
    )
    .bind(windows.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|(_, start)| *start).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .context("reading late usage of billed windows")?;
    Ok(rows.into_iter().map(|(id, start, position)| ((id, start), Position::from_i64(position))).collect())
}

/// Documents show this usage now; what came meanwhile has asked for a run of its own.
async fn settle(conn: &mut PgConnection, late: HashMap<WindowKey, Position>) -> Result<()> {
    sqlx::query(
        "DELETE FROM usage_correction c USING unnest($1::uuid[], $2::timestamptz[], $3::bigint[])
              AS done (subscription_id, window_start, position)
         WHERE c.subscription_id = done.subscription_id AND c.window_start = done.window_start
           AND c.position <= done.position",
    )
    .bind(late.keys().map(|(id, _)| id.0).collect::<Vec<_>>())
    .bind(late.keys().map(|(_, start)| *start).collect::<Vec<_>>())
    .bind(late.values().map(|position| position.as_i64()).collect::<Vec<_>>())
    .execute(conn)
    .await
    .context("finishing corrections")?;
    Ok(())
}

/// Windows that are billed now may have late usage that came after their seals: from here on it can be corrected.
pub(crate) async fn plan_corrections(conn: &mut PgConnection, now: Instant, windows: &[WindowRef]) -> Result<()> {
    let keys: Vec<WindowKey> = windows.iter().map(|window| (window.subscription_id, window.window_start)).collect();
    let late: Vec<WindowKey> = pending(conn, &keys).await?.into_iter().map(|(key, _)| key).collect();
    plan_windows(conn, now, DueKind::UsageCorrection, "billed", &late).await
}

/// A difference without an amount needs no document: its quantities are in the next one.
fn worth_a_document(mut computed: Vec<Computed<'_>>) -> Vec<Computed<'_>> {
    for one in &mut computed {
        one.drafts.retain(|draft| draft.lines.iter().any(|line| !line.amount.is_zero()));
    }
    computed
}

/// What interim invoices have charged is not accrued any more (rule D3), and drafts of the window are computed anew.
async fn note_interim(conn: &mut PgConnection, saved: &[Saved<'_>]) -> Result<()> {
    if saved.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH charged AS (
             SELECT invoice.subscription_id, line.period_start AS window_start, coalesce(line.wallet_currency, '') AS pin,
                    sum(line.total) AS gross
             FROM invoice JOIN invoice_line line ON line.invoice_id = invoice.id WHERE invoice.id = ANY($1)
             GROUP BY 1, 2, 3),
              noted AS (
             UPDATE usage_window w SET invoiced_position = w.position, updated_at = clock_timestamp() FROM charged
             WHERE w.subscription_id = charged.subscription_id AND w.window_start = charged.window_start)
         UPDATE usage_accrual a SET invoiced = a.invoiced + charged.gross,
                accrued = greatest(a.net - a.invoiced - charged.gross, 0)
         FROM charged
         WHERE a.subscription_id = charged.subscription_id AND a.window_start = charged.window_start
           AND a.wallet_currency = charged.pin AND NOT a.closed",
    )
    .bind(saved.iter().map(|one| one.id.0).collect::<Vec<_>>())
    .execute(conn)
    .await
    .context("noting what interim invoices have charged")?;
    Ok(())
}

/// The action of the breaches is done.
async fn deliver(conn: &mut PgConnection, scope: &Scope, open: &[Asked]) -> Result<()> {
    if open.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE meter_breach b SET delivered_at = $4
         FROM unnest($2::uuid[], $3::timestamptz[], $5::timestamptz[]) AS w (subscription_id, start, \"end\")
         WHERE b.workspace_id = $1 AND b.subscription_id = w.subscription_id AND b.action_kind = 'INVOICE'
           AND b.delivered_at IS NULL AND b.window_start >= w.start AND b.window_start < w.\"end\"",
    )
    .bind(scope.workspace_id)
    .bind(open.iter().map(|asked| asked.subscription_id.0).collect::<Vec<_>>())
    .bind(open.iter().map(|asked| asked.window_start).collect::<Vec<_>>())
    .bind(scope.now())
    .bind(open.iter().map(|asked| asked.window_end).collect::<Vec<_>>())
    .execute(conn)
    .await
    .context("noting that thresholds have invoiced")?;
    Ok(())
}
