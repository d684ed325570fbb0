//! The routing map: which actor has which subscription. Only the partition adds and removes (rule A3).

use std::collections::HashMap;
use std::sync::Arc;

use catalog::compiled::WorkspaceCatalog;
use domain::{FastMap, SubscriptionId, WorkspaceId};
use futures::future::try_join_all;
use ractor::{Actor, ActorRef};
use store::StoreError;
use tokio::sync::mpsc;

use super::batch::TermsOf;
use super::{Failure, Patience, Shared, State};
use crate::checkpoint::WindowWrite;
use crate::subscription::{Initial, SubscriptionActor, SubscriptionMsg};

/// An actor and when it was needed last.
#[derive(Debug)]
pub struct Routed {
    /// The actor.
    pub actor: ActorRef<SubscriptionMsg>,
    /// Number of the batch that used it last.
    pub last_batch: u64,
}

/// Catalogs of the workspaces that a batch or a checkpoint touches.
pub(super) type Catalogs = FastMap<WorkspaceId, Arc<WorkspaceCatalog>>;

impl State {
    /// Makes sure that these subscriptions have actors: states of missing ones are loaded in one query (P5).
    pub(super) async fn route(&mut self, ids: &[SubscriptionId]) -> Result<(), Failure> {
        let mut missing: Vec<SubscriptionId> = ids.iter().filter(|id| !self.actors.contains_key(id)).copied().collect();
        missing.sort_unstable();
        missing.dedup();
        for id in ids {
            if let Some(routed) = self.actors.get_mut(id) {
                routed.last_batch = self.batches;
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let mut patience = Patience::default();
        let mut initial = loop {
            match load(&self.shared, &missing).await {
                Ok(initial) => break initial,
                Err(error) => patience.wait(&self.given_up, "loading usage windows", error).await?,
            }
        };
        // Together: each start waits for a task of its own.
        let spawned = try_join_all(missing.iter().map(|id| {
            let windows = initial.remove(id).unwrap_or_default();
            SubscriptionActor::spawn_linked(None, SubscriptionActor, windows, self.myself.get_cell())
        }));
        let spawned = spawned.await.map_err(|_| Failure::ActorLost)?;
        let routed = spawned.into_iter().map(|(actor, _)| Routed { actor, last_batch: self.batches });
        self.actors.extend(missing.into_iter().zip(routed));
        Ok(())
    }

    /// Puts a message into an actor's mailbox.
    pub(super) fn tell(&self, id: SubscriptionId, message: SubscriptionMsg) -> Result<(), Failure> {
        let routed = self.actors.get(&id).ok_or(Failure::ActorLost)?;
        routed.actor.send_message(message).map_err(|_| Failure::ActorLost)
    }

    /// Takes what dirty actors have changed since the last checkpoint.
    pub(super) async fn snapshot_dirty(&mut self) -> Result<Vec<WindowWrite>, Failure> {
        let ids: Vec<SubscriptionId> = self.dirty.keys().copied().collect();
        let terms = self.terms_of(&ids).await?;
        let (reply, mut answers) = mpsc::unbounded_channel();
        let mut asked = 0;
        let mut catalogs = Catalogs::default();
        for (id, workspace_id) in &self.dirty {
            let Some(terms) = terms.get(id) else { return Err(Failure::ActorLost) };
            let catalog = self.catalog_once(&mut catalogs, *workspace_id).await?;
            self.tell(*id, SubscriptionMsg::Snapshot { catalog, terms: terms.clone(), reply: reply.clone() })?;
            asked += 1;
        }
        drop(reply);
        let mut windows = Vec::with_capacity(asked);
        for _ in 0..asked {
            let answer = answers.recv().await.ok_or(Failure::ActorLost)?;
            windows.extend(answer);
        }
        self.dirty.clear();
        Ok(windows)
    }

    /// Stops the least recently used actors beyond the bound. All are clean: a checkpoint has just been committed.
    pub(super) fn passivate(&mut self) {
        let max = self.shared.settings.active_subscriptions_max;
        if self.actors.len() <= max {
            return;
        }
        let mut by_use: Vec<(u64, SubscriptionId)> = self.actors.iter().map(|(id, r)| (r.last_batch, *id)).collect();
        let surplus = by_use.len() - max;
        by_use.select_nth_unstable(surplus - 1);
        for (_, id) in by_use.into_iter().take(surplus) {
            // Out of the map first: no message can follow into a closing mailbox (rule A3).
            if let Some(routed) = self.actors.remove(&id) {
                routed.actor.stop(None);
            }
        }
    }

    /// Drops an actor whose windows are read again from the checkpoint at its next message.
    pub(super) fn forget_actor(&mut self, id: SubscriptionId) {
        if let Some(routed) = self.actors.remove(&id) {
            routed.actor.stop(None);
        }
    }

    pub(super) async fn terms_of(&self, ids: &[SubscriptionId]) -> Result<TermsOf, Failure> {
        let mut patience = Patience::default();
        loop {
            match self.shared.snapshots.terms_of_many(ids).await {
                Ok(terms) => return Ok(terms),
                Err(error) => patience.wait(&self.given_up, "reading subscription terms", error).await?,
            }
        }
    }

    /// The catalog of a workspace, looked up once for all subscriptions of a batch or a checkpoint.
    pub(super) async fn catalog_once(
        &self,
        catalogs: &mut Catalogs,
        workspace_id: WorkspaceId,
    ) -> Result<Arc<WorkspaceCatalog>, Failure> {
        if let Some(catalog) = catalogs.get(&workspace_id) {
            return Ok(catalog.clone());
        }
        let catalog = self.catalog_of(workspace_id).await?;
        catalogs.insert(workspace_id, catalog.clone());
        Ok(catalog)
    }

    pub(super) async fn catalog_of(&self, workspace_id: WorkspaceId) -> Result<Arc<WorkspaceCatalog>, Failure> {
        let mut patience = Patience::default();
        loop {
            match self.shared.snapshots.workspace(workspace_id).await {
                Ok(catalog) => return Ok(catalog),
                Err(error) => patience.wait(&self.given_up, "compiling a catalog", error).await?,
            }
        }
    }
}

async fn load(shared: &Shared, ids: &[SubscriptionId]) -> domain::Result<HashMap<SubscriptionId, Initial>> {
    let mut conn = shared.store.pool().acquire().await.context("loading usage windows")?;
    Initial::load(&mut conn, &shared.snapshots, ids).await
}
