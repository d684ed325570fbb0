//! Whether workspaces have any row of something that hinders usage. Most have none, and their events must not pay for those that
//! do: it is asked once a second, and what this process makes is known at once.

use std::time::Duration;

use dashmap::DashMap;
use domain::{Result, Scope, WorkspaceId};
use store::{Store, StoreError};
use tokio::time::Instant as Moment;

/// How long an answer is believed.
const BELIEVED: Duration = Duration::from_secs(1);

/// Which workspaces have any, as far as this process knows.
#[derive(Debug)]
pub(super) struct Presence {
    known: DashMap<WorkspaceId, (bool, Moment)>,
    /// Answers a boolean for the workspace `$1`.
    sql: &'static str,
}

impl Presence {
    pub(super) fn new(sql: &'static str) -> Self {
        Self { known: DashMap::new(), sql }
    }

    /// One was made in this process.
    pub(super) fn note(&self, workspace_id: WorkspaceId) {
        self.known.insert(workspace_id, (true, Moment::now()));
    }

    pub(super) async fn has_any(&self, scope: &Scope, store: &Store) -> Result<bool> {
        let known = self.known.get(&scope.workspace_id).map(|known| *known);
        if let Some((has_any, at)) = known
            && at.elapsed() < BELIEVED
        {
            return Ok(has_any);
        }
        let asked = Moment::now();
        let has_any: bool = sqlx::query_scalar(self.sql)
            .bind(scope.workspace_id)
            .fetch_one(store.pool())
            .await
            .context("looking for what hinders usage")?;
        // One that was made while we asked is not forgotten.
        self.known
            .entry(scope.workspace_id)
            .and_modify(|known| {
                if known.1 < asked {
                    *known = (has_any, asked);
                }
            })
            .or_insert((has_any, asked));
        Ok(has_any)
    }
}
