//! Payments: gateways, payment methods, the ledger of payments, charging invoices, top-ups of wallets, and refunds.
//!
//! Money is asked for in three steps, so that a crash at any point neither charges twice nor loses a charge:
//!
//! 1. The transaction is written as PENDING, with all that is needed, and committed ([`topup`], [`collect`],
//!    [`refund`]).
//! 2. The gateway is asked; the transaction's id is the provider's idempotency key ([`provider`]).
//! 3. The outcome is recorded with its effects, in one transaction ([`charge`]).
//!
//! What stays open after step 1 is picked up by [`Payments::sweep`], which asks again: by the provider's reference where there
//! is one, else with the same idempotency key. What providers tell by themselves takes step 3 as well ([`receive`]).

pub mod charge;
pub mod collect;
pub mod gateway;
pub mod manual;
pub mod method;
pub mod provider;
pub mod receive;
pub mod refund;
pub(crate) mod settle;
pub mod settlement;
pub mod simulation;
pub mod sweep;
pub mod topup;
pub mod transaction;
pub mod vault;
pub mod words;

use std::sync::Arc;

use domain::{Actor, Clock, CustomerId, Error, Instant, OrganizationId, Result, Scope, WorkspaceId, WorkspaceMode};
use sqlx::PgConnection;
use store::{Store, StoreError};

pub use provider::{Adapters, Endpoints, Gateways};
pub use vault::Vault;

/// The payments room. Cheap to clone.
#[derive(Clone)]
pub struct Payments {
    /// PostgreSQL.
    pub store: Store,
    /// Opens the secrets of gateways.
    pub vault: Vault,
    /// Talks to providers.
    pub gateways: Arc<dyn Gateways>,
}

impl std::fmt::Debug for Payments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Payments").field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl Payments {
    /// With the providers of this house.
    #[must_use]
    pub fn new(store: Store, vault: Vault, endpoints: Endpoints) -> Self {
        let gateways = Arc::new(Adapters::new(store.clone(), endpoints));
        Self { store, vault, gateways }
    }

    /// The same, with other providers.
    #[must_use]
    pub fn with_gateways(self, gateways: Arc<dyn Gateways>) -> Self {
        Self { gateways, ..self }
    }

    /// The scope of Kontorion itself in a workspace.
    pub(crate) async fn system_scope(&self, workspace_id: WorkspaceId) -> Result<Scope> {
        let row: Option<(OrganizationId, WorkspaceMode)> =
            sqlx::query_as("SELECT organization_id, mode FROM workspace WHERE id = $1")
                .bind(workspace_id)
                .fetch_optional(self.store.pool())
                .await
                .context("reading the workspace")?;
        let (organization_id, mode) = row.ok_or_else(|| Error::not_found("workspace", workspace_id))?;
        Ok(Scope { organization_id, workspace_id, mode, actor: Actor::System, clock: Clock::System })
    }
}

/// The same scope at the customer's time, if a test clock stands in for the machine's.
pub(crate) async fn at_customer(scope: &Scope, conn: &mut PgConnection, customer: CustomerId) -> Result<Scope> {
    let frozen: Option<Instant> = sqlx::query_scalar(
        "SELECT clock.frozen_at FROM customer JOIN test_clock clock ON clock.id = customer.test_clock_id
         WHERE customer.workspace_id = $1 AND customer.id = $2",
    )
    .bind(scope.workspace_id)
    .bind(customer)
    .fetch_optional(conn)
    .await
    .context("reading the clock of a customer")?;
    Ok(frozen.map_or(*scope, |at| scope.at(at)))
}
