//! Keeps compiled snapshots fresh: `LISTEN` with polling behind it (rule B6).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant as Moment};

use dashmap::DashMap;
use domain::{Error, FastMap, Result, SubscriptionId, WorkspaceId};
use parking_lot::Mutex;
use sqlx::Row;
use store::{Store, StoreError};
use tokio::sync::watch;

use super::{SubscriptionTerms, WorkspaceCatalog};

/// Subscriptions whose terms are kept; beyond that the least recently used are read again when needed.
const TERMS_MAX: usize = 200_000;
/// One reads at a time, one listens; those of readers that were cut off come back a moment later.
const CONNECTIONS_MAX: u32 = 4;
/// Polls behind `LISTEN`, and after every reconnect.
const POLL: Duration = Duration::from_secs(1);

/// The compiled catalogs and terms that this process has read, as of [`Snapshots::revision`].
#[derive(Debug)]
pub struct Snapshots {
    store: Store,
    workspaces: DashMap<WorkspaceId, Arc<WorkspaceCatalog>>,
    terms: quick_cache::sync::Cache<SubscriptionId, Arc<SubscriptionTerms>>,
    revision: watch::Sender<i64>,
    /// Revision of the database after the last read-through: what is at hand may be as new as that.
    loaded: AtomicI64,
    /// Subscriptions that somebody waits for: whoever reads next reads them all. Thousands that are met for the first time
    /// at once cost a few queries, not a queue of thousands.
    wanted: Mutex<HashSet<SubscriptionId>>,
    /// One refresh at a time: revisions are applied in order. Holds when the last reading of changes began.
    refreshing: tokio::sync::Mutex<Option<Moment>>,
}

impl Snapshots {
    /// Starts empty, at the present revision.
    ///
    /// # Errors
    /// As every statement.
    pub async fn start(store: &Store) -> Result<Arc<Self>> {
        // Of its own: transactions wait for what is read here, and would wait for ever if they held all connections.
        let store = store.apart(CONNECTIONS_MAX, &[]);
        let revision = current_revision(&store).await?;
        Ok(Arc::new(Self {
            store,
            workspaces: DashMap::new(),
            terms: quick_cache::sync::Cache::new(TERMS_MAX),
            revision: watch::Sender::new(revision),
            loaded: AtomicI64::new(revision),
            wanted: Mutex::default(),
            refreshing: tokio::sync::Mutex::new(None),
        }))
    }

    /// The revision up to which every change has been applied here.
    #[must_use]
    pub fn revision(&self) -> i64 {
        *self.revision.borrow()
    }

    /// The revision to put on a record that was judged by what is at hand (rule B6): read after judging, it is never
    /// older than the catalog and the terms that judged.
    #[must_use]
    pub fn stamp(&self) -> i64 {
        self.revision().max(self.loaded.load(Ordering::Acquire))
    }

    async fn note_loaded(&self) -> Result<()> {
        self.loaded.fetch_max(current_revision(&self.store).await?, Ordering::AcqRel);
        Ok(())
    }

    /// The compiled catalog of a workspace.
    ///
    /// # Errors
    /// As every statement; `Internal` when a stored version cannot be compiled.
    pub async fn workspace(&self, workspace_id: WorkspaceId) -> Result<Arc<WorkspaceCatalog>> {
        if let Some(found) = self.workspaces.get(&workspace_id) {
            return Ok(found.clone());
        }
        // Under the refresh lock, so that a change cannot slip between the reading and the insertion.
        let _guard = self.refreshing.lock().await;
        if let Some(found) = self.workspaces.get(&workspace_id) {
            return Ok(found.clone());
        }
        let loaded = Arc::new(WorkspaceCatalog::load(&self.store, workspace_id).await?);
        self.note_loaded().await?;
        self.workspaces.insert(workspace_id, loaded.clone());
        Ok(loaded)
    }

    /// The terms of a subscription of this workspace; `None` when it does not exist there.
    ///
    /// # Errors
    /// As every statement.
    pub async fn terms(&self, workspace_id: WorkspaceId, id: SubscriptionId) -> Result<Option<Arc<SubscriptionTerms>>> {
        let found = self.terms_of_many(&[id]).await?.remove(&id);
        Ok(found.filter(|terms| terms.workspace_id == workspace_id))
    }

    /// The terms, if they are at hand.
    #[must_use]
    pub fn cached_terms(&self, id: SubscriptionId) -> Option<Arc<SubscriptionTerms>> {
        self.terms.get(&id)
    }

    /// The catalog of a workspace, if it is at hand.
    #[must_use]
    pub fn cached_workspace(&self, workspace_id: WorkspaceId) -> Option<Arc<WorkspaceCatalog>> {
        self.workspaces.get(&workspace_id).map(|found| found.clone())
    }

    /// The terms of many subscriptions, missing ones in one query (P5). Unknown ids are absent; the caller compares the
    /// workspace.
    ///
    /// # Errors
    /// As every statement.
    pub async fn terms_of_many(
        &self,
        ids: &[SubscriptionId],
    ) -> Result<FastMap<SubscriptionId, Arc<SubscriptionTerms>>> {
        let mut found = FastMap::default();
        found.reserve(ids.len());
        let mut missing = Vec::new();
        for id in ids {
            match self.terms.get(id) {
                Some(terms) => drop(found.insert(*id, terms)),
                None => missing.push(*id),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        self.wanted.lock().extend(&missing);
        let _guard = self.refreshing.lock().await;
        // Whoever had the lock before may have read ours with its own.
        missing.retain(|id| match self.terms.get(id) {
            Some(terms) => {
                found.insert(*id, terms);
                false
            }
            None => true,
        });
        if missing.is_empty() {
            return Ok(found);
        }
        let mut wanted: HashSet<SubscriptionId> = std::mem::take(&mut *self.wanted.lock());
        wanted.extend(&missing);
        let wanted: Vec<SubscriptionId> = wanted.into_iter().collect();
        let mut conn = self.store.pool().acquire().await.context("reading subscription terms")?;
        let loaded = SubscriptionTerms::load(&mut conn, &wanted).await?;
        drop(conn);
        self.note_loaded().await?;
        let loaded: FastMap<_, _> = loaded.into_iter().map(|(id, terms)| (id, Arc::new(terms))).collect();
        found.extend(missing.iter().filter_map(|id| Some((*id, loaded.get(id)?.clone()))));
        for (id, terms) in loaded {
            self.terms.insert(id, terms);
        }
        Ok(found)
    }

    /// Waits until this process has applied a revision (rule B6): a record must not be judged by an older catalog.
    ///
    /// # Errors
    /// As every statement.
    pub async fn reach(&self, revision: i64) -> Result<()> {
        if self.revision() < revision {
            self.refresh().await?;
        }
        if self.revision() < revision {
            return Err(Error::invariant(format!("catalog revision {revision} does not exist")));
        }
        Ok(())
    }

    /// Whether the catalog has moved on since a revision that was read here; what has changed is applied then.
    ///
    /// # Errors
    /// As every statement.
    pub async fn is_behind(&self, revision: i64) -> Result<bool> {
        if self.revision() <= revision {
            self.refresh().await?;
        }
        Ok(self.revision() > revision)
    }

    /// Applies what has changed since the last time.
    ///
    /// # Errors
    /// As every statement; the snapshots stay as they were.
    pub async fn refresh(&self) -> Result<()> {
        let asked = Moment::now();
        let mut last = self.refreshing.lock().await;
        // Whoever had the lock began to read after we asked: many may ask at once, one reading is enough for them.
        if last.is_some_and(|began| began >= asked) {
            return Ok(());
        }
        let began = Moment::now();
        let known = self.revision();
        let rows = sqlx::query(
            "SELECT revision, workspace_id, entity_type, entity_id FROM catalog_change WHERE revision > $1 ORDER BY revision",
        )
        .bind(known)
        .fetch_all(self.store.pool())
        .await
        .context("reading catalog changes")?;
        let mut reached = known;
        // Only the last changes are kept. Who slept longer cannot tell what has changed: everything is read again.
        let next: Option<i64> = match rows.first() {
            Some(row) => Some(row.try_get("revision").context("reading a catalog change")?),
            None => None,
        };
        if next.is_some_and(|next| next > known + 1) {
            self.workspaces.clear();
            self.terms.clear();
        }
        for row in rows {
            let entity_type: String = row.try_get("entity_type").context("reading a catalog change")?;
            let workspace_id: WorkspaceId = row.try_get("workspace_id").context("reading a catalog change")?;
            let entity_id: uuid::Uuid = row.try_get("entity_id").context("reading a catalog change")?;
            reached = row.try_get("revision").context("reading a catalog change")?;
            match entity_type.as_str() {
                "catalog" => drop(self.workspaces.remove(&workspace_id)),
                "subscription" => drop(self.terms.remove(&SubscriptionId(entity_id))),
                // Terms carry the customer's country: those of this customer are read again.
                _ => self.terms.retain(|_, terms| terms.customer_id.0 != entity_id),
            }
        }
        self.revision.send_if_modified(|revision| std::mem::replace(revision, reached) != reached);
        *last = Some(began);
        Ok(())
    }

    /// Listens and polls until the process ends; trouble with the database is logged and tried again.
    pub async fn keep_fresh(self: Arc<Self>) {
        loop {
            if let Err(error) = self.listen().await {
                tracing::warn!(error = %error, "catalog listener lost its connection");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn listen(&self) -> Result<()> {
        let mut listener = sqlx::postgres::PgListener::connect_with(self.store.pool())
            .await
            .context("listening for catalog changes")?;
        listener.listen(store::transaction::CATALOG_CHANNEL).await.context("listening for catalog changes")?;
        loop {
            self.refresh().await?;
            // A notification or a second without one: both lead to a refresh.
            if let Ok(notification) = tokio::time::timeout(POLL, listener.recv()).await {
                notification.context("listening for catalog changes")?;
            }
        }
    }
}

async fn current_revision(store: &Store) -> Result<i64> {
    sqlx::query_scalar("SELECT revision FROM catalog_revision")
        .fetch_one(store.pool())
        .await
        .context("reading the catalog revision")
}
