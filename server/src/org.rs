//! `kontorion org create`, and the same for the demo: a tenant with a live and a sandbox workspace and their first keys.

use access::NewOrganization;
use domain::Clock;
use serde::Serialize;
use store::{Store, StoreError};

use crate::failure::Failure;
use crate::table::print_json;

/// What is shown once after the creation. The keys and secrets cannot be read again.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Top-level tenant.
    pub organization_id: String,
    /// Its workspace for real money.
    pub live: ShownWorkspace,
    /// Its workspace for simulated data.
    pub sandbox: ShownWorkspace,
}

/// A workspace with what opens it.
#[derive(Debug, Serialize)]
pub struct ShownWorkspace {
    /// Its id, the value of the Kafka header `kontorion-workspace`.
    pub workspace_id: String,
    /// The API key.
    pub key: String,
    /// Signs foreign Kafka records (hex; the header `kontorion-signature`).
    pub ingest_secret: String,
}

/// Creates the organization.
///
/// # Errors
/// For a bad name, or when the database refuses.
pub async fn create(store: &Store, name: &str) -> Result<Shown, Failure> {
    create_in(store, name).await.map_err(|error| Failure::work("creating the organization", error))
}

async fn create_in(store: &Store, name: &str) -> domain::Result<Shown> {
    let mut tx = store.begin("creating an organization").await?;
    let tenant = access::bootstrap(&mut tx, Clock::System.now(), &NewOrganization::named(name)).await?;
    let mut shown = Vec::new();
    for workspace in [&tenant.live, &tenant.sandbox] {
        let secret: String = sqlx::query_scalar("SELECT encode(ingest_secret, 'hex') FROM workspace WHERE id = $1")
            .bind(workspace.id)
            .fetch_one(tx.conn())
            .await
            .context("reading the ingest secret")?;
        shown.push(ShownWorkspace {
            workspace_id: workspace.id.to_string(),
            key: workspace.token.reveal().to_owned(),
            ingest_secret: secret,
        });
    }
    tx.commit().await?;
    let [live, sandbox] = <[ShownWorkspace; 2]>::try_from(shown).unwrap_or_else(|_| unreachable!("two were pushed"));
    Ok(Shown { organization_id: tenant.organization_id.to_string(), live, sandbox })
}

/// Prints it, the only time that the keys are seen.
///
/// # Errors
/// When JSON cannot be written, which plain text never causes.
pub fn print(shown: &Shown, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(shown);
    }
    println!("organization   {}", shown.organization_id);
    for (mode, workspace) in [("live", &shown.live), ("sandbox", &shown.sandbox)] {
        println!("\n{mode} workspace  {}", workspace.workspace_id);
        println!("  API key        {}", workspace.key);
        println!("  ingest secret  {}", workspace.ingest_secret);
    }
    println!("\nKeep the keys: they are stored as hashes only and cannot be shown again.");
    Ok(())
}
