//! Loads what a batch of runs is computed from: a few statements, whatever the number of subscriptions (DESIGN section 6).

use std::collections::HashMap;
use std::sync::Arc;

use catalog::compiled::{Carried, Snapshots, StoredWindow, SubscriptionTerms, WindowQuery, WorkspaceCatalog};
use domain::{Error, Instant, ProductType, Result, SubscriptionId, WorkspaceId};
use sqlx::PgConnection;

use super::draft::Job;
use super::invoiced::Invoiced;
use super::run::Run;
use crate::control::WindowRef;
use crate::subscription::{self, Subscription};

/// Everything that the drafts of a batch need.
pub(crate) struct Loaded {
    pub(crate) subscriptions: HashMap<SubscriptionId, Subscription>,
    terms: HashMap<SubscriptionId, SubscriptionTerms>,
    /// Of windows that are billed again: what earlier windows had left to them then.
    terms_then: HashMap<(SubscriptionId, Instant), SubscriptionTerms>,
    catalog: Arc<WorkspaceCatalog>,
    windows: HashMap<(SubscriptionId, Instant), StoredWindow>,
    invoiced: HashMap<(SubscriptionId, Instant), Vec<Invoiced>>,
}

impl Loaded {
    /// Subscriptions and their terms, without windows. `lock` when the subscriptions will be changed.
    pub(crate) async fn subscriptions(
        conn: &mut PgConnection,
        catalog: Arc<WorkspaceCatalog>,
        workspace_id: WorkspaceId,
        ids: &[SubscriptionId],
        lock: bool,
    ) -> Result<Self> {
        let subscriptions = subscription::read::load(conn, workspace_id, ids, lock).await?;
        let terms = SubscriptionTerms::load(conn, ids).await?;
        Ok(Self {
            subscriptions,
            terms,
            terms_then: HashMap::new(),
            catalog,
            windows: HashMap::new(),
            invoiced: HashMap::new(),
        })
    }

    /// Adds the windows of these runs, with their totals as they are checkpointed now and what invoices have charged of them.
    pub(crate) async fn add_windows(
        &mut self,
        conn: &mut PgConnection,
        snapshots: &Snapshots,
        runs: &[Run],
    ) -> Result<()> {
        let wanted = runs.iter().filter(|run| self.has_usage(run.subscription_id));
        let wanted: Vec<_> = wanted.filter_map(|run| Some((run.subscription_id, run.usage?.start))).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        for window in StoredWindow::load(&mut *conn, snapshots, WindowQuery::Starting(&wanted)).await? {
            self.put_window(window);
        }
        for line in Invoiced::load(conn, &wanted).await? {
            self.invoiced.entry((line.subscription_id, line.window_start)).or_default().push(line);
        }
        Ok(())
    }

    /// Puts a window with other totals than the stored ones in its place.
    pub(crate) fn put_window(&mut self, window: StoredWindow) {
        self.windows.insert((window.subscription_id, window.window.start), window);
    }

    /// Rates a billed window by what earlier windows had left to it when it was billed.
    pub(crate) async fn recall(
        &mut self,
        conn: &mut PgConnection,
        (id, start): (SubscriptionId, Instant),
    ) -> Result<()> {
        if let Some(terms) = self.terms.get(&id) {
            self.terms_then.insert((id, start), terms.as_of_billed(conn, start).await?);
        }
        Ok(())
    }

    /// A subscription of the batch.
    pub(crate) fn subscription(&self, id: SubscriptionId) -> Result<&Subscription> {
        self.subscriptions.get(&id).ok_or_else(|| Error::not_found("subscription", id))
    }

    /// Whether what earlier windows leave changes the bills of later ones: they must be finalized in order then.
    pub(crate) fn depends_on_earlier(&self, id: SubscriptionId) -> bool {
        self.terms
            .get(&id)
            .is_some_and(|terms| terms.carried != Carried::default() || self.catalog.rollovers(terms).next().is_some())
    }

    /// Whether the subscription meters anything: only then has it windows and control records.
    pub(crate) fn has_usage(&self, id: SubscriptionId) -> bool {
        self.terms.get(&id).is_some_and(|terms| {
            let is_usage = |id| self.catalog.product(id).is_some_and(|product| product.kind == ProductType::Usage);
            terms.items.iter().any(|item| is_usage(item.product_id))
        })
    }

    /// The window that a run seals, if its subscription meters anything.
    pub(crate) fn window_ref(&self, run: &Run) -> Option<WindowRef> {
        let subscription = self.subscriptions.get(&run.subscription_id)?;
        let period = run.sealed_window().filter(|_| self.has_usage(run.subscription_id))?;
        Some(subscription.window(period))
    }

    /// What a draft is computed from.
    pub(crate) fn job(&self, run: Run) -> Result<Job<'_>> {
        let id = run.subscription_id;
        let missing = || Error::not_found("subscription", id);
        let window = run.usage.and_then(|usage| self.windows.get(&(id, usage.start)));
        let then = run.usage.and_then(|usage| self.terms_then.get(&(id, usage.start)));
        Ok(Job {
            subscription: self.subscription(id)?,
            terms: then.or_else(|| self.terms.get(&id)).ok_or_else(missing)?,
            catalog: &self.catalog,
            run,
            window,
            invoiced: run.usage.and_then(|usage| self.invoiced.get(&(id, usage.start))).map_or(&[], Vec::as_slice),
        })
    }
}
