//! The handlers of due work on subscriptions (billing-cycles.md 3.4). Each takes a batch of one kind, workspace and
//! instant, and answers for every member. Members share a transaction; when it fails they are repeated alone, so that one
//! bad subscription does not stop the others (P11). A handler deletes the due row in the transaction of its effect, so that
//! repeating it is harmless.

use std::collections::HashSet;

use domain::{Error, Position, Result, Scope, SubscriptionId};
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use store::{StoreError, Tx};
use uuid::Uuid;

use crate::billing::Billing;
use crate::control::WindowRef;
use crate::due::{DueKind, DueWork, done, plan};
use crate::events;
use crate::invoice::finalize::{FinalizeOptions, RunRef, runs_of};
use crate::invoice::follow::unfollow_previews;
use crate::invoice::load::Loaded;
use crate::invoice::run::RunKey;
use crate::invoice::save::remove;
use crate::settings::BillingSettings;
use crate::subscription::lifecycle::{Consequences, PeriodClosePayload};
use crate::subscription::write::store_state;
use crate::subscription::{Subscription, SubscriptionStatus};
use crate::windows::{self, WindowStatus};

/// What became of one piece of due work.
pub type Outcome = (Uuid, Result<()>);

impl Billing {
    /// Does a batch of due work of one kind, workspace and instant.
    pub async fn handle(&self, kind: DueKind, works: &[DueWork]) -> Vec<Outcome> {
        let Some(first) = works.first() else { return Vec::new() };
        let scope = match self.system_scope(first.workspace_id, first.due_at).await {
            Ok(scope) => scope,
            Err(error) => return fail_all(works, error),
        };
        match kind {
            DueKind::SubscriptionStart | DueKind::TrialEnd => self.isolate(&scope, works, Self::change_states).await,
            DueKind::PeriodClose => self.isolate(&scope, works, Self::close_periods).await,
            DueKind::InvoiceFinalize => self.isolate(&scope, works, Self::finalize_works).await,
            DueKind::InterimInvoice => self.isolate(&scope, works, Self::bill_interim).await,
            DueKind::UsageCorrection => self.isolate(&scope, works, Self::correct).await,
        }
    }

    /// Runs a batch; when it fails, each member alone.
    async fn isolate<'a, F>(&'a self, scope: &'a Scope, works: &'a [DueWork], batch: F) -> Vec<Outcome>
    where
        F: Fn(&'a Self, &'a Scope, &'a [DueWork]) -> BoxFuture<'a, Result<()>>,
    {
        let outcome = batch(self, scope, works).await;
        if works.len() == 1 {
            return works.iter().map(|work| work.id).zip([outcome]).collect();
        }
        match outcome {
            Ok(()) => works.iter().map(|work| (work.id, Ok(()))).collect(),
            Err(error) => {
                tracing::warn!(error = %error, members = works.len(), "a batch failed; its members are repeated alone");
                let mut outcomes = Vec::with_capacity(works.len());
                for work in works {
                    outcomes.push((work.id, batch(self, scope, std::slice::from_ref(work)).await));
                }
                outcomes
            }
        }
    }

    /// Subscriptions that start, and trials that end.
    fn change_states<'a>(&'a self, scope: &'a Scope, works: &'a [DueWork]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (mut tx, mut loaded) = self.locked(scope, works, "changing states of subscriptions").await?;
            let settings = BillingSettings::load(tx.conn(), scope.organization_id).await?;
            let (mut changed, mut trials) = (Vec::new(), Vec::new());
            let mut left = Consequences::default();
            for work in works {
                let id = SubscriptionId(work.subject_id);
                let has_usage = loaded.has_usage(id);
                let Some(subscription) = loaded.subscriptions.get_mut(&id) else { continue };
                let consequences = match (work.kind, subscription.status) {
                    (DueKind::SubscriptionStart, SubscriptionStatus::Pending) => subscription.start()?,
                    (DueKind::TrialEnd, SubscriptionStatus::Trialing) => {
                        let trial = domain::period::Period { start: subscription.started_at, end: scope.now() };
                        trials.extend(has_usage.then(|| subscription.window(trial)));
                        subscription.end_trial(scope.now(), &settings, has_usage)?
                    }
                    _ => continue, // done before, or closed since
                };
                left.work.extend(consequences.work);
                left.events.extend(consequences.events);
                changed.push(id);
            }
            // Harmless when the transaction fails and it is published again.
            self.publish_period_end(&trials).await?;
            finish(&mut tx, scope, works, &loaded, &changed, left).await?;
            tx.commit().await
        })
    }

    /// Charged periods that end: windows are closed, drafts made, next periods begun.
    fn close_periods<'a>(&'a self, scope: &'a Scope, works: &'a [DueWork]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let windows = self.windows_to_close(scope, works).await?;
            let ends = self.publish_period_end(&windows).await?;
            if !windows.is_empty() {
                windows::wait(&self.store, &windows, &ends, WindowStatus::Ended, self.window_wait).await?;
            }
            let (mut tx, mut loaded) = self.locked(scope, works, "closing billing periods").await?;
            let settings = BillingSettings::load(tx.conn(), scope.organization_id).await?;
            let mut left = Consequences::default();
            let (mut changed, mut drafts, mut closed) = (Vec::new(), Vec::new(), Vec::new());
            for work in works {
                let id = SubscriptionId(work.subject_id);
                let has_usage = loaded.has_usage(id);
                let Some(subscription) = loaded.subscriptions.get_mut(&id) else { continue };
                let Some((start, consequences)) = close(subscription, work, &settings, has_usage)? else { continue };
                drafts.extend(consequences.draft.map(|key| RunRef { subscription_id: id, key, work_id: None }));
                left.work.extend(consequences.work);
                left.events.extend(consequences.events);
                closed.push((id, start));
                changed.push(id);
            }
            self.write_drafts(scope, &mut tx, &mut loaded, &drafts, &closed).await?;
            finish(&mut tx, scope, works, &loaded, &changed, left).await?;
            tx.commit().await
        })
    }

    /// Windows that reach their end: seals them, and finalizes what they cost.
    fn finalize_works<'a>(&'a self, scope: &'a Scope, works: &'a [DueWork]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let read = |work: &DueWork| {
                let key: RunKey = payload(work)?;
                Ok(RunRef { subscription_id: SubscriptionId(work.subject_id), key, work_id: Some(work.id) })
            };
            let mut refs = works.iter().map(read).collect::<Result<Vec<_>>>()?;
            refs = self.existing_only(scope, works, refs).await?;
            refs = self.draft_for_operator(scope, refs).await?;
            let seals = self.seal(scope, &refs).await?;
            self.await_seals(&seals).await?;
            match self.finalize_sealed(scope, &refs).await {
                // When the answer to the COMMIT is lost, the next try finds out whether the invoices are there.
                Ok(tx) => tx.commit().await,
                // Nothing may be late because a finalization failed (rule C2). What an earlier try finalized stays sealed.
                Err(error) => self.take_back(&seals).await.and(Err(error)),
            }
        })
    }

    /// Books everything up to the COMMIT; when this fails, nothing is finalized.
    async fn finalize_sealed(&self, scope: &Scope, refs: &[RunRef]) -> Result<Tx> {
        let mut tx = self.store.begin("finalizing invoices").await?;
        self.finalize_in(scope, &mut tx, refs, FinalizeOptions::default()).await?;
        Ok(tx)
    }

    /// Where invoices are finalized by hand, runs with charges get their drafts only and their windows stay open. Answers
    /// the runs that remain.
    async fn draft_for_operator(&self, scope: &Scope, refs: Vec<RunRef>) -> Result<Vec<RunRef>> {
        self.snapshots.refresh().await?;
        let mut tx = self.store.begin("drafting invoices").await?;
        if BillingSettings::load(tx.conn(), scope.organization_id).await?.auto_finalize {
            return Ok(refs);
        }
        let (free, charged): (Vec<_>, Vec<_>) = refs.into_iter().partition(|run| run.key.reason.is_free());
        self.draft_in(scope, &mut tx, &charged).await?;
        tx.commit().await?;
        Ok(free)
    }

    /// Drops work on subscriptions that are gone: it is done.
    async fn existing_only(&self, scope: &Scope, works: &[DueWork], refs: Vec<RunRef>) -> Result<Vec<RunRef>> {
        let ids: Vec<Uuid> = works.iter().map(|work| work.subject_id).collect();
        let gone: Vec<Uuid> = sqlx::query_scalar(
            "SELECT id FROM subscription WHERE workspace_id = $1 AND id = ANY($2) AND deleted_at IS NOT NULL",
        )
        .bind(scope.workspace_id)
        .bind(ids)
        .fetch_all(self.store.pool())
        .await
        .context("reading subscriptions")?;
        let (dropped, refs): (Vec<_>, Vec<_>) = refs.into_iter().partition(|run| gone.contains(&run.subscription_id.0));
        if !dropped.is_empty() {
            let mut tx = self.store.begin("dropping due work").await?;
            done(tx.conn(), &dropped.iter().filter_map(|run| run.work_id).collect::<Vec<_>>()).await?;
            tx.commit().await?;
        }
        Ok(refs)
    }

    async fn publish_period_end(&self, windows: &[WindowRef]) -> Result<Vec<Position>> {
        if windows.is_empty() { Ok(Vec::new()) } else { self.control.period_end(windows).await }
    }

    /// The windows of the periods that end, of subscriptions that meter something.
    async fn windows_to_close(&self, scope: &Scope, works: &[DueWork]) -> Result<Vec<WindowRef>> {
        self.snapshots.refresh().await?;
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let mut conn = self.store.pool().acquire().await.context("reading subscriptions")?;
        let loaded = Loaded::subscriptions(&mut conn, catalog, scope.workspace_id, &subjects(works), false).await?;
        let mut windows = Vec::new();
        for work in works {
            let id = SubscriptionId(work.subject_id);
            let Some(subscription) = loaded.subscriptions.get(&id).filter(|_| loaded.has_usage(id)) else { continue };
            let payload: PeriodClosePayload = payload(work)?;
            let period = match payload.closing {
                Some(closing) => Some(closing.run.period()),
                None => subscription.period_ending(work.due_at)?,
            };
            windows.extend(period.map(|period| subscription.window(period)));
        }
        Ok(windows)
    }

    /// Opens a transaction with the subscriptions of the batch locked.
    async fn locked(&self, scope: &Scope, works: &[DueWork], name: &'static str) -> Result<(Tx, Loaded)> {
        self.snapshots.refresh().await?;
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let mut tx = self.store.begin(name).await?;
        let loaded = Loaded::subscriptions(tx.conn(), catalog, scope.workspace_id, &subjects(works), true).await?;
        Ok((tx, loaded))
    }

    /// Drafts of the periods that were closed; previews of them that were made by hand are replaced.
    async fn write_drafts(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        loaded: &mut Loaded,
        drafts: &[RunRef],
        closed: &[(SubscriptionId, domain::Instant)],
    ) -> Result<()> {
        unfollow_previews(tx.conn(), closed).await?;
        let previews = previews_of(scope, tx, closed).await?;
        remove(tx.conn(), scope.workspace_id, &previews, scope.now()).await?;
        let runs = runs_of(loaded, drafts)?;
        self.save_drafts(scope, tx, loaded, &runs).await.map(drop)
    }
}

fn subjects(works: &[DueWork]) -> Vec<SubscriptionId> {
    works.iter().map(|work| SubscriptionId(work.subject_id)).collect()
}

pub(crate) fn payload<T: DeserializeOwned>(work: &DueWork) -> Result<T> {
    let read = serde_json::from_value(work.payload.0.clone());
    read.map_err(|error| Error::internal(format!("reading the payload of due work {}", work.id), error))
}

fn fail_all(works: &[DueWork], error: Error) -> Vec<Outcome> {
    let detail = error.to_string();
    works.iter().map(|work| (work.id, Err(Error::invariant(detail.clone())))).collect()
}

/// Closes one period; `None` when that was done before. Answers the start of the closed period.
fn close(
    subscription: &mut Subscription,
    work: &DueWork,
    settings: &BillingSettings,
    has_usage: bool,
) -> Result<Option<(domain::Instant, Consequences)>> {
    let payload: PeriodClosePayload = payload(work)?;
    if let Some(closing) = payload.closing {
        let mut consequences = Consequences::default();
        let settings =
            BillingSettings { auto_finalize: settings.auto_finalize && closing.invoice_now, ..settings.clone() };
        subscription.plan_invoice(closing.run, work.due_at, &settings, has_usage, &mut consequences);
        return Ok(Some((closing.run.start, consequences)));
    }
    let running = !subscription.status.is_terminal() && !subscription.is_past_term();
    let Some(period) = subscription.period_ending(work.due_at)?.filter(|_| running) else { return Ok(None) };
    Ok(Some((period.start, subscription.close_period(period, settings, has_usage)?)))
}

/// Stores states, plans further work, tells others, and finishes the due work.
async fn finish(
    tx: &mut Tx,
    scope: &Scope,
    works: &[DueWork],
    loaded: &Loaded,
    changed: &[SubscriptionId],
    left: Consequences,
) -> Result<()> {
    let mut seen = HashSet::new();
    let changed = changed.iter().filter(|id| seen.insert(**id));
    let changed = changed.map(|id| loaded.subscription(*id)).collect::<Result<Vec<_>>>()?;
    store_state(tx.conn(), scope.workspace_id, scope.now(), &changed).await?;
    // Nodes keep terms, not states: only an end of the agreement concerns them.
    for subscription in changed.iter().filter(|subscription| subscription.ended_at.is_some()) {
        tx.subscription_changed(scope.workspace_id, subscription.id);
    }
    plan(tx.conn(), scope.now(), &left.work).await?;
    events::emit(tx.conn(), &left.events).await?;
    done(tx.conn(), &works.iter().map(|work| work.id).collect::<Vec<_>>()).await
}

/// Drafts that were made by hand over periods that end now.
async fn previews_of(
    scope: &Scope,
    tx: &mut Tx,
    closed: &[(SubscriptionId, domain::Instant)],
) -> Result<Vec<domain::InvoiceId>> {
    let (ids, starts): (Vec<_>, Vec<_>) = closed.iter().map(|(id, start)| (id.0, *start)).unzip();
    sqlx::query_scalar(
        "SELECT invoice.id FROM invoice JOIN unnest($2::uuid[], $3::timestamptz[])
              AS closed (subscription_id, billing_period_start) USING (subscription_id, billing_period_start)
         WHERE invoice.workspace_id = $1 AND deleted_at IS NULL AND status = 'draft' AND billing_reason LIKE 'manual%'",
    )
    .bind(scope.workspace_id)
    .bind(ids)
    .bind(starts)
    .fetch_all(tx.conn())
    .await
    .context("looking for previews")
}
