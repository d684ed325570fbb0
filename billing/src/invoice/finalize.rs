//! Finalizing: the window is sealed, the draft is computed for the last time, the books are written, wallet money is
//! applied, and the number is taken last (rules C2, D3, D4, D6; invoices.md 4).
//!
//! Sealing waits for the log and therefore stands outside of the transaction ([`Billing::seal`], [`Billing::await_seals`]);
//! everything else is one transaction for a whole batch ([`Billing::finalize_in`]). Locks are taken in one order everywhere:
//! due work, followed runs, window rows in id order, invoices, wallets, the number row.

use chrono::NaiveDate;
use domain::{Error, InvoiceId, Position, Result, Scope, SubscriptionId};
use ledger::WorkspaceAccount;
use sqlx::PgConnection;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::captured::{self, Captured};
use super::draft::{Assembled, assemble, assemble_with_credits};
use super::draw;
use super::extra::plan_corrections;
use super::follow::{follow, unfollow};
use super::issue::{Head, Issuer};
use super::leave;
use super::load::Loaded;
use super::paid::Paid;
use super::run::{Run, RunKey};
use super::save::{Computed, Saved, save};
use crate::billing::Billing;
use crate::control::WindowRef;
use crate::credit_note;
use crate::windows::{self, WindowStatus};

/// A run that is to be finalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRef {
    /// Whose.
    pub subscription_id: SubscriptionId,
    /// Its key.
    pub key: RunKey,
    /// Due work that asks for it; it is finished with the effect.
    pub work_id: Option<Uuid>,
}

/// What an operator may say at finalize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinalizeOptions {
    /// Day of issue; the present day in the organization's time zone when left out.
    pub issue_date: Option<NaiveDate>,
    /// Whether the customer's payment method is charged for what wallets do not pay.
    pub is_charged: bool,
}

impl Default for FinalizeOptions {
    fn default() -> Self {
        Self { issue_date: None, is_charged: true }
    }
}

/// Seals that are in the log. Unless their windows are billed they have to be taken back: what is used behind them is late (rule C2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seals {
    windows: Vec<WindowRef>,
    positions: Vec<Position>,
}

impl Billing {
    /// Publishes the seals of these runs. All other checks come first: a run that cannot be computed now is refused before its
    /// window is sealed.
    ///
    /// # Errors
    /// What computing the drafts says; `Unavailable` when the log does not answer in time.
    pub async fn seal(&self, scope: &Scope, refs: &[RunRef]) -> Result<Seals> {
        self.snapshots.refresh().await?;
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let mut conn = self.store.pool().acquire().await.context("sealing windows")?;
        let ids: Vec<_> = refs.iter().map(|run| run.subscription_id).collect();
        let mut loaded = Loaded::subscriptions(&mut conn, catalog, scope.workspace_id, &ids, false).await?;
        let runs = runs_of(&loaded, refs)?;
        let windows: Vec<_> = runs.iter().filter_map(|run| loaded.window_ref(run)).collect();
        if windows.is_empty() {
            return Ok(Seals::default());
        }
        loaded.add_windows(&mut conn, &self.snapshots, &runs).await?;
        for run in runs {
            assemble(&loaded.job(run)?)?;
        }
        leave::refuse_before_earlier(&mut conn, &loaded, &windows).await?;
        drop(conn);
        windows::wait_for_usage(&self.store, &windows, self.window_wait).await?;
        let positions = self.control.seal(&windows).await?;
        Ok(Seals { windows, positions })
    }

    /// Waits until seals are read: the quantities are final then.
    ///
    /// # Errors
    /// `Unavailable` when the log does not answer in time; the windows may be sealed later.
    pub async fn await_seals(&self, seals: &Seals) -> Result<()> {
        if seals.windows.is_empty() {
            return Ok(());
        }
        windows::wait(&self.store, &seals.windows, &seals.positions, WindowStatus::Sealed, self.window_wait).await
    }

    /// Takes seals back because finalizing has failed; those whose windows are billed after all stay.
    ///
    /// # Errors
    /// `Unavailable` when the log does not take the records.
    pub async fn take_back(&self, seals: &Seals) -> Result<()> {
        match seals.windows.is_empty() {
            true => Ok(()),
            false => self.control.reopen(&seals.windows).await,
        }
    }

    /// Finalizes runs of one workspace at one instant, in the caller's transaction. Runs whose due work somebody else
    /// has finished are left out; a run that was finalized before stays as it is.
    ///
    /// # Errors
    /// What computing or booking says; then nothing may be committed.
    pub async fn finalize_in(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        refs: &[RunRef],
        options: FinalizeOptions,
    ) -> Result<Vec<InvoiceId>> {
        let refs = claim(tx.conn(), refs).await?;
        unfollow(tx.conn(), &refs).await?;
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let ids: Vec<_> = refs.iter().map(|run| run.subscription_id).collect();
        let mut loaded = Loaded::subscriptions(tx.conn(), catalog, scope.workspace_id, &ids, false).await?;
        let runs = runs_of(&loaded, &refs)?;
        let windows: Vec<_> = runs.iter().filter_map(|run| loaded.window_ref(run)).collect();
        lock_windows(tx.conn(), &windows).await?;
        captured::refuse_pending(tx.conn(), &windows).await?;
        loaded.add_windows(tx.conn(), &self.snapshots, &runs).await?;
        let computed = compute(&loaded, &runs)?;
        let saved = save(tx.conn(), scope.workspace_id, scope.now(), &computed).await?;
        leave::to_later_windows(scope, tx, &loaded, &computed).await?;
        let free: Vec<_> = runs.iter().filter(|run| run.key.reason.is_free()).collect();
        let uncharged: Vec<_> = free.into_iter().filter_map(|run| loaded.window_ref(run)).collect();
        close_accruals(tx.conn(), &windows, &uncharged).await?;
        let captured = captured::take(tx.conn(), scope, &windows).await?;
        finalize_saved(scope, tx, &saved, captured, options).await?;
        credit_note::issue(scope, tx, &computed).await?;
        plan_corrections(tx.conn(), scope.now(), &windows).await?;
        Ok(saved.iter().map(|saved| saved.id).collect())
    }

    /// Computes and stores the drafts of runs, without finalizing, in the caller's transaction.
    ///
    /// # Errors
    /// What computing says.
    pub async fn draft_in(&self, scope: &Scope, tx: &mut Tx, refs: &[RunRef]) -> Result<Vec<InvoiceId>> {
        let refs = claim(tx.conn(), refs).await?;
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let ids: Vec<_> = refs.iter().map(|run| run.subscription_id).collect();
        let mut loaded = Loaded::subscriptions(tx.conn(), catalog, scope.workspace_id, &ids, false).await?;
        let runs = runs_of(&loaded, &refs)?;
        self.save_drafts(scope, tx, &mut loaded, &runs).await
    }

    /// Computes and stores the drafts of runs from the totals as they are checkpointed now; from here on they follow them.
    pub(crate) async fn save_drafts(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        loaded: &mut Loaded,
        runs: &[Run],
    ) -> Result<Vec<InvoiceId>> {
        loaded.add_windows(tx.conn(), &self.snapshots, runs).await?;
        follow(tx.conn(), scope.workspace_id, loaded, runs).await?;
        let computed = compute(loaded, runs)?;
        let saved = save(tx.conn(), scope.workspace_id, scope.now(), &computed).await?;
        Ok(saved.iter().map(|saved| saved.id).collect())
    }
}

pub(crate) fn runs_of(loaded: &Loaded, refs: &[RunRef]) -> Result<Vec<Run>> {
    refs.iter().map(|run| Run::of(loaded.subscription(run.subscription_id)?, run.key)).collect()
}

pub(crate) fn compute<'a>(loaded: &'a Loaded, runs: &[Run]) -> Result<Vec<Computed<'a>>> {
    let one = |run: &Run| {
        let job = loaded.job(*run)?;
        let Assembled { drafts, credits, rated } = assemble_with_credits(&job)?;
        Ok(Computed {
            subscription: job.subscription,
            run: *run,
            drafts,
            credits,
            rated,
            invoiced: job.invoiced,
            usage_position: job.window.map(|window| window.position.as_i64()),
        })
    };
    runs.iter().map(one).collect()
}

/// Finishes due work first: its row is the lock that keeps a second scheduler out.
async fn claim(conn: &mut PgConnection, refs: &[RunRef]) -> Result<Vec<RunRef>> {
    let asked: Vec<Uuid> = refs.iter().filter_map(|run| run.work_id).collect();
    if asked.is_empty() {
        return Ok(refs.to_vec());
    }
    let claimed: Vec<Uuid> = sqlx::query_scalar("DELETE FROM due_work WHERE id = ANY($1) RETURNING id")
        .bind(asked)
        .fetch_all(conn)
        .await
        .context("finishing due work")?;
    Ok(refs.iter().filter(|run| run.work_id.is_none_or(|id| claimed.contains(&id))).copied().collect())
}

/// Locks window rows in id order (rule D3): no checkpoint changes their accruals while they are closed. Each must be
/// sealed.
async fn lock_windows(conn: &mut PgConnection, windows: &[WindowRef]) -> Result<()> {
    if windows.is_empty() {
        return Ok(());
    }
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "SELECT subscription_id, status FROM usage_window
         WHERE (subscription_id, window_start) IN (SELECT * FROM unnest($1::uuid[], $2::timestamptz[]))
         ORDER BY subscription_id, window_start FOR UPDATE",
    )
    .bind(windows.iter().map(|window| window.subscription_id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.window_start).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .context("locking usage windows")?;
    if rows.len() == windows.len() && rows.iter().all(|(_, status)| status == WindowStatus::Sealed.as_str()) {
        return Ok(());
    }
    let detail = "a usage window has not its final quantities yet".to_owned();
    Err(Error::Unavailable { dependency: "event_log", detail, retry_after_secs: 1 })
}

/// The invoice takes the place of what was accrued, and the windows are closed for good; some of them without an invoice.
async fn close_accruals(conn: &mut PgConnection, windows: &[WindowRef], uncharged: &[WindowRef]) -> Result<()> {
    if windows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH closing AS (
             SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::boolean[]) AS c (subscription_id, window_start, uncharged)),
              billed AS (
             UPDATE usage_window SET billed = true, uncharged = closing.uncharged FROM closing
             WHERE usage_window.subscription_id = closing.subscription_id AND usage_window.window_start = closing.window_start)
         UPDATE usage_accrual SET closed = true FROM closing
         WHERE usage_accrual.subscription_id = closing.subscription_id AND usage_accrual.window_start = closing.window_start",
    )
    .bind(windows.iter().map(|window| window.subscription_id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.window_start).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| uncharged.contains(window)).collect::<Vec<_>>())
    .execute(conn)
    .await
    .context("closing accruals")?;
    Ok(())
}

/// Wallets, books, numbers, heads, events: in this order.
pub(crate) async fn finalize_saved(
    scope: &Scope,
    tx: &mut Tx,
    saved: &[Saved<'_>],
    mut captured: Vec<Captured>,
    options: FinalizeOptions,
) -> Result<()> {
    let mut paid: Vec<Paid> =
        saved.iter().map(|one| captured::settle(one, &mut captured)).collect::<Result<Vec<_>>>()?;
    captured.retain(|one| !one.paid.is_zero());
    if saved.is_empty() && captured.is_empty() {
        return Ok(());
    }
    let customers: Vec<_> = saved.iter().map(|one| one.subscription.customer_id).collect();
    let issuer = Issuer::load(scope, tx.conn(), &customers).await?;
    draw::apply_wallets(scope, tx, saved, &mut paid, &captured, issuer.settings.fx_policy).await?;
    let mut transfers = Vec::with_capacity(2 * saved.len());
    for (one, paid) in saved.iter().zip(&paid) {
        let totals = one.draft.totals;
        let (net, tax) = (totals.subtotal, totals.tax_amount);
        transfers.extend(ledger::invoice_transfer(scope, one.id, WorkspaceAccount::Revenue, net, tax)?);
        transfers.extend(ledger::settlement_transfer(scope, one.id, &paid.settled)?);
    }
    ledger::post(tx, scope, &transfers).await?;
    let heads: Vec<_> = saved.iter().zip(paid).map(|(one, paid)| Head::of(one, paid)).collect();
    issuer.issue(scope, tx, &heads, options).await
}

domain::wire_enum! {
    /// A series of numbers (invoices.md 4, Numbering).
    pub enum DocumentKind {
        /// Invoices.
        Invoice = "invoice",
        /// Credit notes.
        CreditNote = "credit_note",
        /// Settlements.
        Settlement = "settlement",
    }
}

/// Takes consecutive numbers of a series of the workspace; the row stays locked until the commit, so that none is missing and
/// none is given twice (rule D6).
///
/// # Errors
/// As every statement.
pub async fn take_numbers(scope: &Scope, conn: &mut PgConnection, kind: DocumentKind, count: usize) -> Result<i64> {
    sqlx::query_scalar(
        "INSERT INTO document_series (workspace_id, kind, next_number) VALUES ($1, $3, $2 + 1)
         ON CONFLICT (workspace_id, kind) DO UPDATE SET next_number = document_series.next_number + $2
         RETURNING next_number - $2",
    )
    .bind(scope.workspace_id)
    .bind(i64::try_from(count).unwrap_or(i64::MAX))
    .bind(kind)
    .fetch_one(conn)
    .await
    .context("taking numbers of documents")
}
