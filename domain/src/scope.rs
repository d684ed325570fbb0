//! Who asks, for which tenant, and at what time. No query on tenant data can be built without a scope.

use crate::{Clock, Instant, OrganizationId, WorkspaceId};

wire_enum! {
    /// Whether a workspace holds real or simulated data.
    pub enum WorkspaceMode {
        /// Real money.
        Live = "live",
        /// No real charges, data apart from live.
        Sandbox = "sandbox",
    }
}

/// Who performs an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A program with an API key.
    ApiKey(crate::ApiKeyId),
    /// Kontorion itself: scheduler, ingest, command line.
    System,
}

/// Tenant, actor and clock of one operation (DESIGN section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Top-level tenant.
    pub organization_id: OrganizationId,
    /// Data space: every query is bound to it.
    pub workspace_id: WorkspaceId,
    /// Live or sandbox.
    pub mode: WorkspaceMode,
    /// Who asks.
    pub actor: Actor,
    /// What time it is for this operation.
    pub clock: Clock,
}

impl Scope {
    /// The present instant of this operation.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The same scope at another time: a test clock's, or the due instant of scheduled work.
    #[must_use]
    pub fn at(mut self, instant: Instant) -> Self {
        self.clock = Clock::At(instant);
        self
    }

    /// The id of the acting API key, if one acts.
    #[must_use]
    pub fn api_key_id(&self) -> Option<crate::ApiKeyId> {
        match self.actor {
            Actor::ApiKey(id) => Some(id),
            Actor::System => None,
        }
    }
}
