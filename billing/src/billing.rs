//! What billing works with: the database, the compiled catalog and the way to close usage windows.

use std::sync::Arc;
use std::time::Duration;

use catalog::compiled::Snapshots;
use domain::{Actor, Clock, Error, Instant, OrganizationId, Result, Scope, WorkspaceId, WorkspaceMode};
use sqlx::PgConnection;
use store::{Store, StoreError};

use crate::control::WindowControl;

/// How long billing waits for the log to pass its control records: shorter than the 30 s of a transaction (P13).
const WINDOW_WAIT: Duration = Duration::from_secs(15);

/// The billing room. Cheap to clone.
#[derive(Clone)]
pub struct Billing {
    /// PostgreSQL.
    pub store: Store,
    /// Compiled catalogs.
    pub snapshots: Arc<Snapshots>,
    /// The event log, for control records.
    pub control: Arc<dyn WindowControl>,
    /// Longest wait for a control record to be read.
    pub window_wait: Duration,
}

impl std::fmt::Debug for Billing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Billing").field("window_wait", &self.window_wait).finish_non_exhaustive()
    }
}

impl Billing {
    /// Ties the parts together.
    #[must_use]
    pub fn new(store: Store, snapshots: Arc<Snapshots>, control: Arc<dyn WindowControl>) -> Self {
        Self { store, snapshots, control, window_wait: WINDOW_WAIT }
    }

    /// The scope of scheduled work: Kontorion itself, at the instant at which the work is due.
    ///
    /// # Errors
    /// `NotFound` without the workspace.
    pub async fn system_scope(&self, workspace_id: WorkspaceId, at: Instant) -> Result<Scope> {
        let row: Option<(OrganizationId, WorkspaceMode)> =
            sqlx::query_as("SELECT organization_id, mode FROM workspace WHERE id = $1")
                .bind(workspace_id)
                .fetch_optional(self.store.pool())
                .await
                .context("reading the workspace")?;
        let (organization_id, mode) = row.ok_or_else(|| Error::not_found("workspace", workspace_id))?;
        Ok(Scope { organization_id, workspace_id, mode, actor: Actor::System, clock: Clock::At(at) })
    }
}

/// What time it is for a customer's operation: that of the test clock, if there is one (test-clocks.md 4).
///
/// # Errors
/// As every statement.
pub async fn clocked(scope: &Scope, conn: &mut PgConnection, clock: Option<domain::TestClockId>) -> Result<Scope> {
    let Some(clock) = clock else { return Ok(*scope) };
    let frozen_at: Option<Instant> =
        sqlx::query_scalar("SELECT frozen_at FROM test_clock WHERE workspace_id = $1 AND id = $2")
            .bind(scope.workspace_id)
            .bind(clock)
            .fetch_optional(conn)
            .await
            .context("reading the test clock")?;
    frozen_at.map(|at| scope.at(at)).ok_or_else(|| Error::not_found("test_clock", clock))
}
