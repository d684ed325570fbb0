//! Drafts follow the totals of their window until they are finalized (rule C2; usage.md 5, "Grace before finalize").
//!
//! A run that has its drafts is a row of `followed_run`, which says what window they charge and which writing of it they were
//! computed from. The scheduler looks every few seconds for rows whose window was written since. A checkpoint knows nothing of
//! this, so that counting does not pay for it, and a run without a draft is followed as well: usage in the grace may be its
//! first.

use domain::period::Period;
use domain::{Error, Instant, Result, Scope, SubscriptionId, TestClockId, WorkspaceId};
use serde_json::json;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use store::StoreError;

use super::finalize::RunRef;
use super::load::Loaded;
use super::run::{Run, RunKey, RunReason};
use crate::billing::Billing;

/// Runs of one transaction.
const BATCH: i64 = 250;

/// Runs that have one clock: what is written about them bears one instant.
#[derive(Clone, Copy, FromRow)]
struct Group {
    workspace_id: WorkspaceId,
    test_clock_id: Option<TestClockId>,
    frozen_at: Option<Instant>,
}

#[derive(Clone, Copy, FromRow)]
struct Followed {
    subscription_id: SubscriptionId,
    reason: RunReason,
    period_start: Instant,
    period_end: Instant,
}

impl Followed {
    fn run(&self) -> RunRef {
        let key = RunKey::new(self.reason, Period { start: self.period_start, end: self.period_end });
        RunRef { subscription_id: self.subscription_id, key, work_id: None }
    }
}

impl Billing {
    /// Computes the drafts anew whose usage has changed; `now` is the time of customers without a test clock. Answers the
    /// number of runs. Any number of nodes may do so at a time.
    ///
    /// # Errors
    /// Trouble with the database. A run that cannot be computed stays as it is until its usage changes again; finalizing it
    /// says why.
    pub async fn recompute_drafts(&self, now: Instant) -> Result<usize> {
        let mut recomputed = 0;
        for group in self.stale_groups().await? {
            self.snapshots.refresh().await?;
            let scope = self.system_scope(group.workspace_id, group.frozen_at.unwrap_or(now)).await?;
            let mut batch = self.recompute_batch(&scope, group, None).await?;
            while let Some(last) = batch.last() {
                recomputed += batch.len();
                batch = self.recompute_batch(&scope, group, Some(*last)).await?;
            }
        }
        Ok(recomputed)
    }

    /// A clock that is advancing computes its drafts by itself.
    async fn stale_groups(&self) -> Result<Vec<Group>> {
        sqlx::query_as(
            "SELECT DISTINCT run.workspace_id, subscription.test_clock_id, clock.frozen_at
             FROM followed_run run JOIN usage_window w USING (subscription_id, window_start)
                  JOIN subscription ON subscription.id = run.subscription_id
                  LEFT JOIN test_clock clock ON clock.id = subscription.test_clock_id
             WHERE w.updated_at IS DISTINCT FROM run.window_read_at AND w.status <> 'sealed'
               AND clock.status IS DISTINCT FROM 'advancing'",
        )
        .fetch_all(self.store.pool())
        .await
        .context("looking for drafts whose usage has changed")
    }

    /// The batch behind `after`, so that a look comes to its end however fast usage flows. One transaction; when it fails,
    /// one for each run.
    async fn recompute_batch(&self, scope: &Scope, group: Group, after: Option<Followed>) -> Result<Vec<Followed>> {
        let mut tx = self.store.begin("recomputing drafts").await?;
        let stale = claim_stale(tx.conn(), group, after).await?;
        let refs: Vec<_> = stale.iter().map(Followed::run).collect();
        let error = match self.draft_in(scope, &mut tx, &refs).await {
            Ok(_) => return tx.commit().await.map(|()| stale),
            Err(error) => error,
        };
        // Waited for: whoever tries them alone would pass over rows that are locked still.
        tx.rollback().await?;
        tracing::warn!(error = %error, members = refs.len(), "drafts could not be recomputed; they are repeated alone");
        for run in &refs {
            self.recompute_alone(scope, run).await?;
        }
        Ok(stale)
    }

    async fn recompute_alone(&self, scope: &Scope, run: &RunRef) -> Result<()> {
        let mut tx = self.store.begin("recomputing a draft").await?;
        if !lock(tx.conn(), run).await? {
            return Ok(()); // finalized since, or in other hands
        }
        match self.draft_in(scope, &mut tx, std::slice::from_ref(run)).await {
            Ok(_) => return tx.commit().await,
            Err(error @ Error::Unavailable { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(subscription.id = %run.subscription_id, error = %error, "a draft could not be recomputed");
            }
        }
        tx.rollback().await?;
        let mut tx = self.store.begin("leaving a draft").await?;
        leave(tx.conn(), run).await?;
        tx.commit().await
    }
}

/// Locks runs whose usage has changed and that nobody else has in hand.
async fn claim_stale(conn: &mut PgConnection, group: Group, after: Option<Followed>) -> Result<Vec<Followed>> {
    sqlx::query_as(
        "SELECT run.subscription_id, run.reason, run.period_start, run.period_end
         FROM followed_run run JOIN usage_window w USING (subscription_id, window_start)
              JOIN subscription ON subscription.id = run.subscription_id
         WHERE run.workspace_id = $1 AND subscription.test_clock_id IS NOT DISTINCT FROM $2
           AND w.updated_at IS DISTINCT FROM run.window_read_at AND w.status <> 'sealed'
           AND ($4::uuid IS NULL
                OR (run.subscription_id, run.reason, run.period_start, run.period_end) > ($4, $5, $6, $7))
         ORDER BY run.subscription_id, run.reason, run.period_start, run.period_end
         LIMIT $3 FOR UPDATE OF run SKIP LOCKED",
    )
    .bind(group.workspace_id)
    .bind(group.test_clock_id)
    .bind(BATCH)
    .bind(after.map(|run| run.subscription_id))
    .bind(after.map(|run| run.reason))
    .bind(after.map(|run| run.period_start))
    .bind(after.map(|run| run.period_end))
    .fetch_all(conn)
    .await
    .context("claiming drafts whose usage has changed")
}

/// Has runs that charge usage followed, from the windows that were loaded for them. Comes before the first invoice is locked.
pub(crate) async fn follow(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    loaded: &Loaded,
    runs: &[Run],
) -> Result<()> {
    let mut rows = Vec::new();
    for run in runs.iter().filter(|run| loaded.has_usage(run.subscription_id)) {
        let Some(usage) = run.usage else { continue };
        let RunKey { reason, start, end, .. } = run.key;
        let window_read_at = loaded.job(*run)?.window.map(|window| window.written_at);
        rows.push(json!({
            "subscription_id": run.subscription_id, "reason": reason, "period_start": start, "period_end": end,
            "workspace_id": workspace_id, "window_start": usage.start, "window_read_at": window_read_at,
        }));
    }
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO followed_run SELECT * FROM jsonb_populate_recordset(NULL::followed_run, $1)
         ORDER BY subscription_id, reason, period_start, period_end
         ON CONFLICT (subscription_id, reason, period_start, period_end)
         DO UPDATE SET window_start = EXCLUDED.window_start, window_read_at = EXCLUDED.window_read_at",
    )
    .bind(Json(rows))
    .execute(conn)
    .await
    .context("following the usage of drafts")?;
    Ok(())
}

/// These runs are finalized: their invoices change no more.
pub(crate) async fn unfollow(conn: &mut PgConnection, refs: &[RunRef]) -> Result<()> {
    sqlx::query(
        "DELETE FROM followed_run run USING unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[])
              AS asked (subscription_id, reason, period_start, period_end)
         WHERE run.subscription_id = asked.subscription_id AND run.reason = asked.reason
           AND run.period_start = asked.period_start AND run.period_end = asked.period_end",
    )
    .bind(refs.iter().map(|run| run.subscription_id.0).collect::<Vec<_>>())
    .bind(refs.iter().map(|run| run.key.reason.as_str()).collect::<Vec<_>>())
    .bind(refs.iter().map(|run| run.key.start).collect::<Vec<_>>())
    .bind(refs.iter().map(|run| run.key.end).collect::<Vec<_>>())
    .execute(conn)
    .await
    .context("leaving the usage of invoices")?;
    Ok(())
}

/// The previews of periods that are closed now give way to the runs of their ends.
pub(crate) async fn unfollow_previews(conn: &mut PgConnection, closed: &[(SubscriptionId, Instant)]) -> Result<()> {
    let (ids, starts): (Vec<_>, Vec<_>) = closed.iter().map(|(id, start)| (id.0, *start)).unzip();
    sqlx::query(
        "DELETE FROM followed_run run USING unnest($1::uuid[], $2::timestamptz[]) AS closed (subscription_id, period_start)
         WHERE run.subscription_id = closed.subscription_id AND run.period_start = closed.period_start AND reason = $3",
    )
    .bind(ids)
    .bind(starts)
    .bind(RunReason::Manual)
    .execute(conn)
    .await
    .context("leaving the usage of previews")?;
    Ok(())
}

/// A subscription that is deleted has nothing left to bill.
pub(crate) async fn unfollow_all(conn: &mut PgConnection, id: SubscriptionId) -> Result<()> {
    sqlx::query("DELETE FROM followed_run WHERE subscription_id = $1")
        .bind(id)
        .execute(conn)
        .await
        .context("leaving the usage of a subscription")?;
    Ok(())
}

/// Locks one run; false when it is finalized or in other hands.
async fn lock(conn: &mut PgConnection, run: &RunRef) -> Result<bool> {
    let found = sqlx::query(
        "SELECT FROM followed_run WHERE subscription_id = $1 AND reason = $2 AND period_start = $3 AND period_end = $4
         FOR UPDATE SKIP LOCKED",
    )
    .bind(run.subscription_id)
    .bind(run.key.reason)
    .bind(run.key.start)
    .bind(run.key.end)
    .fetch_optional(conn)
    .await
    .context("claiming a draft whose usage has changed")?;
    Ok(found.is_some())
}

/// Has a run that cannot be computed looked at again when its usage changes.
async fn leave(conn: &mut PgConnection, run: &RunRef) -> Result<()> {
    sqlx::query(
        "UPDATE followed_run run SET window_read_at = w.updated_at FROM usage_window w
         WHERE run.subscription_id = $1 AND reason = $2 AND period_start = $3 AND period_end = $4
           AND w.subscription_id = run.subscription_id AND w.window_start = run.window_start",
    )
    .bind(run.subscription_id)
    .bind(run.key.reason)
    .bind(run.key.start)
    .bind(run.key.end)
    .execute(conn)
    .await
    .context("leaving a draft that cannot be computed")?;
    Ok(())
}
