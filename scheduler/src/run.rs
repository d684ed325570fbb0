//! The loop: claims, hands groups to billing, writes failures down; resumes test clocks; has drafts recomputed; lets holds
//! lapse.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use billing::Billing;
use billing::due::{DueKind, DueWork};
use chrono::TimeDelta;
use domain::{Clock, Error, Instant, Result, TestClockId, WalletId, WorkspaceId};
use futures::{FutureExt, StreamExt};
use sqlx::PgPool;
use store::StoreError;
use tokio::sync::watch;
use uuid::Uuid;

use crate::claim::{Agenda, claim, has_more, record_failure};
use crate::housekeeping::{self, Swept};
use crate::statistics;

/// How the loop works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Rows of one claim, and so the most members of one transaction (P11: 100 to 500).
    pub batch_rows_max: u32,
    /// How long a claimed row belongs to its scheduler.
    pub lease_secs: u32,
    /// Groups that are handled at the same time.
    pub concurrency: usize,
    /// Pause between two looks for due work (P12).
    pub poll: Duration,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self { batch_rows_max: 250, lease_secs: 60, concurrency: 2, poll: Duration::from_millis(200) }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that were done.
    pub done: usize,
    /// Rows that failed; each has its reason in `due_work.last_error`.
    pub failed: usize,
}

/// Largest difference between this node's clock and PostgreSQL's (rule E2).
const DRIFT_MAX: TimeDelta = TimeDelta::seconds(1);
/// Pause while somebody else handles what a test clock waits for.
const WAIT: Duration = Duration::from_millis(20);
/// Wallets of one sweep.
const SWEEP_WALLETS_MAX: i64 = 200;

/// Time between two looks for drafts whose totals have changed.
const DRAFTS: Duration = Duration::from_secs(5);

/// Time between two sweeps of tables that would grow for ever.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// Time between two looks for tables that have filled up.
const STATISTICS: Duration = Duration::from_secs(2);

/// A scheduler. Any number of them work side by side.
#[derive(Clone, Debug)]
pub struct Scheduler {
    billing: Billing,
    options: SchedulerOptions,
}

impl Scheduler {
    /// A scheduler with the usual options.
    #[must_use]
    pub fn new(billing: Billing) -> Self {
        Self { billing, options: SchedulerOptions::default() }
    }

    /// The same with other options.
    #[must_use]
    pub fn with_options(mut self, options: SchedulerOptions) -> Self {
        self.options = options;
        self
    }

    fn pool(&self) -> &PgPool {
        self.billing.store.pool()
    }

    /// Works until `shutdown` turns true; the batch at hand is finished first.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        let mut drifting = false;
        let [mut swept, mut recomputed, mut looked]: [Option<tokio::time::Instant>; 3] = [None; 3];
        while !*shutdown.borrow() {
            if swept.is_none_or(|swept| swept.elapsed() >= HOUSEKEEPING) {
                swept = Some(tokio::time::Instant::now());
                self.sweep_tables().await;
            }
            if recomputed.is_none_or(|recomputed| recomputed.elapsed() >= DRAFTS) {
                recomputed = Some(tokio::time::Instant::now());
                if let Err(error) = self.billing.recompute_drafts(Clock::System.now()).await {
                    tracing::warn!(error = %error, "drafts could not be recomputed; the next look makes it good");
                }
            }
            if looked.is_none_or(|looked| looked.elapsed() >= STATISTICS) {
                looked = Some(tokio::time::Instant::now());
                if let Err(error) = statistics::look_at_new_tables(&self.billing.store).await {
                    tracing::warn!(error = %error, "tables without statistics stay so until the next look");
                }
            }
            match self.tick(&mut drifting).await {
                Ok(report) if report.failed > 0 => {
                    tracing::warn!(
                        done = report.done,
                        failed = report.failed,
                        "due work failed; see due_work.last_error"
                    );
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(error = %error, "the scheduler could not look for due work"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.options.poll) => {}
                changed = shutdown.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Failing is no matter for due work; the next sweep makes it good.
    async fn sweep_tables(&self) {
        let swept = match self.database_time().await {
            Ok(now) => housekeeping::run_once(&self.billing.store, now).await,
            Err(error) => Err(error),
        };
        match swept {
            Ok(swept) if swept == Swept::default() => {}
            Ok(swept) => tracing::info!(
                days_made = swept.days_made,
                days_dropped = swept.days_dropped,
                rows_deleted = swept.rows_deleted,
                "kept house"
            ),
            Err(error) => tracing::warn!(error = %error, "housekeeping did not come to its end; it will be repeated"),
        }
    }

    /// Real time is PostgreSQL's (rule E2).
    async fn database_time(&self) -> Result<Instant> {
        sqlx::query_scalar("SELECT clock_timestamp()")
            .fetch_one(self.pool())
            .await
            .context("asking PostgreSQL for the time")
    }

    async fn tick(&self, drifting: &mut bool) -> Result<Report> {
        let drift = self.drift().await?;
        if drift > DRIFT_MAX {
            if !*drifting {
                tracing::error!(
                    drift_ms = drift.num_milliseconds(),
                    "this node's clock differs from PostgreSQL's: it claims no due work"
                );
            }
            *drifting = true;
            return Ok(Report::default());
        }
        *drifting = false;
        self.run_due_once().await
    }

    async fn drift(&self) -> Result<TimeDelta> {
        let before = Clock::System.now();
        let theirs = self.database_time().await?;
        let after = Clock::System.now();
        // Their instant lies between ours: only what leaves that span is drift.
        Ok((before - theirs).max(theirs - after).max(TimeDelta::zero()))
    }

    /// Does everything that is due now: in real time, and on test clocks that have work left, resuming interrupted
    /// advances (rule E3).
    ///
    /// # Errors
    /// When due work cannot be looked for; failures of single rows are in the report.
    pub async fn run_due_once(&self) -> Result<Report> {
        let mut report = self.drain(Agenda::RealTime).await?;
        for (id, until, advancing) in self.clocks_with_work().await? {
            let more =
                if advancing { self.run_clock(id).await? } else { self.drain(Agenda::Clock { id, until }).await? };
            report.done += more.done;
            report.failed += more.failed;
        }
        self.sweep_holds().await?;
        Ok(report)
    }

    async fn clocks_with_work(&self) -> Result<Vec<(TestClockId, Instant, bool)>> {
        sqlx::query_as(
            "SELECT id, coalesce(target, frozen_at), status = 'advancing' FROM test_clock clock
             WHERE status = 'advancing' OR (status = 'active' AND EXISTS (
                 SELECT FROM due_work WHERE due_work.clock_id = clock.id AND due_at <= clock.frozen_at
                    AND (retry_at IS NULL OR retry_at <= now())))
             ORDER BY id",
        )
        .fetch_all(self.pool())
        .await
        .context("looking for test clocks")
    }

    /// Claims and handles until nothing can be claimed.
    async fn drain(&self, agenda: Agenda) -> Result<Report> {
        let mut report = Report::default();
        loop {
            let works = claim(self.pool(), agenda, self.options.batch_rows_max.into(), self.options.lease_secs).await?;
            if works.is_empty() {
                return Ok(report);
            }
            let part = self.handle(works).await?;
            report.done += part.done;
            report.failed += part.failed;
        }
    }

    /// Handles claimed rows: groups of one kind, workspace and instant side by side; no order is at stake
    /// between the rows of one claim.
    async fn handle(&self, works: Vec<DueWork>) -> Result<Report> {
        let mut groups: BTreeMap<(Instant, DueKind, WorkspaceId), Vec<DueWork>> = BTreeMap::new();
        let attempts: BTreeMap<Uuid, i32> = works.iter().map(|work| (work.id, work.attempts)).collect();
        for work in works {
            groups.entry((work.due_at, work.kind, work.workspace_id)).or_default().push(work);
        }
        let groups = groups.into_iter().map(|((_, kind, _), works)| self.handle_group(kind, works));
        let outcomes: Vec<_> = futures::stream::iter(groups).buffer_unordered(self.options.concurrency).collect().await;
        let mut report = Report::default();
        for (id, outcome) in outcomes.into_iter().flatten() {
            match outcome {
                Ok(()) => report.done += 1,
                Err(error) => {
                    report.failed += 1;
                    record_failure(self.pool(), id, attempts.get(&id).copied().unwrap_or(1), &error).await?;
                }
            }
        }
        Ok(report)
    }

    /// A panic is the failure of these rows, and not the end of the scheduler.
    async fn handle_group(&self, kind: DueKind, works: Vec<DueWork>) -> Vec<billing::cycle::Outcome> {
        let handled = AssertUnwindSafe(self.billing.handle(kind, &works)).catch_unwind().await;
        handled.unwrap_or_else(|_| {
            tracing::error!(kind = kind.as_str(), rows = works.len(), "due work broke off");
            works.iter().map(|work| (work.id, Err(Error::invariant("due work broke off")))).collect()
        })
    }

    /// Runs everything between a clock's time and the target of its advance, then sets its time. Repeating it after a
    /// crash goes on where it stopped.
    ///
    /// # Errors
    /// `NotFound`; when due work cannot be looked for.
    pub async fn run_clock(&self, id: TestClockId) -> Result<Report> {
        let target: Option<Option<Instant>> = sqlx::query_scalar("SELECT target FROM test_clock WHERE id = $1")
            .bind(id)
            .fetch_optional(self.pool())
            .await
            .context("reading the test clock")?;
        let Some(until) = target.ok_or_else(|| Error::not_found("test_clock", id))? else {
            return Ok(Report::default()); // somebody else finished it
        };
        let mut report = self.drain(Agenda::Clock { id, until }).await?;
        while has_more(self.pool(), id, until).await? {
            tokio::time::sleep(WAIT).await;
            let part = self.drain(Agenda::Clock { id, until }).await?;
            report.done += part.done;
            report.failed += part.failed;
        }
        sqlx::query(
            "UPDATE test_clock SET frozen_at = target, target = NULL, status = 'active', updated_at = $3
             WHERE id = $1 AND status = 'advancing' AND target = $2",
        )
        .bind(id)
        .bind(until)
        .bind(Clock::System.now())
        .execute(self.pool())
        .await
        .context("finishing the advance of a test clock")?;
        Ok(report)
    }

    /// Announces holds that have lapsed; their amounts count as available from their expiry on in any case (rule D4).
    async fn sweep_holds(&self) -> Result<()> {
        let wallets: Vec<(WorkspaceId, WalletId)> = sqlx::query_as(
            "SELECT DISTINCT wallet.workspace_id, wallet.id
             FROM wallet_hold hold JOIN wallet ON wallet.id = hold.wallet_id JOIN customer ON customer.id = wallet.customer_id
                  LEFT JOIN test_clock clock ON clock.id = customer.test_clock_id
             WHERE hold.status = 'PENDING' AND hold.expires_at <= coalesce(clock.frozen_at, now()) LIMIT $1",
        )
        .bind(SWEEP_WALLETS_MAX)
        .fetch_all(self.pool())
        .await
        .context("looking for holds that have lapsed")?;
        let mut by_workspace: BTreeMap<WorkspaceId, Vec<WalletId>> = BTreeMap::new();
        for (workspace, wallet) in wallets {
            by_workspace.entry(workspace).or_default().push(wallet);
        }
        for (workspace, wallets) in by_workspace {
            let mut scope = self.billing.system_scope(workspace, Clock::System.now()).await?;
            scope.clock = Clock::System; // wallets of a test clock take its time
            let mut tx = self.billing.store.begin("expiring holds").await?;
            ledger::wallet::settle_due(&scope, &mut tx, &wallets).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}
