//! The PostgreSQL of this process: the one that was given, or one that is started here and stopped with us.

use engines::{EmbeddedPostgres, PostgresOptions};
use store::Store;
use tracing::{info, warn};

use crate::config::Config;
use crate::failure::Failure;

/// Name of the database in the embedded PostgreSQL.
const DATABASE: &str = "kontorion";

/// An open database with the current schema.
pub struct Database {
    /// Its connections.
    pub store: Store,
    /// The engine, when it is ours.
    pub engine: Option<EmbeddedPostgres>,
}

impl Database {
    /// Opens the configured database, or starts or adopts the embedded one (P14); applies missing migrations.
    ///
    /// # Errors
    /// When it cannot be had, with what to do.
    pub async fn open(config: &Config) -> Result<Self, Failure> {
        let (url, engine) = match &config.database_url {
            Some(url) => (url.expose().to_owned(), None),
            None => {
                let engine = start_engine(config).await?;
                (database_of(&engine).await?, Some(engine))
            }
        };
        let connecting = format!("connecting to {}", crate::config::Secret::from(url.clone()).masked());
        let store = Store::connect(&url, config.database_connections_max)
            .await
            .map_err(|error| Failure::work(&connecting, error))?;
        store.migrate().await.map_err(|error| Failure::work("migrating the database", error))?;
        Ok(Self { store, engine })
    }

    /// Closes the connections and stops the engine, if it is ours and nobody else uses it.
    pub async fn close(self) {
        self.store.pool().close().await;
        let Some(engine) = self.engine else { return };
        match engine.stop().await {
            Ok(true) => info!("stopped the embedded PostgreSQL"),
            Ok(false) => info!("left the embedded PostgreSQL to another process that uses it"),
            Err(error) => warn!(error = error.chain(), "the embedded PostgreSQL did not stop"),
        }
    }
}

async fn start_engine(config: &Config) -> Result<EmbeddedPostgres, Failure> {
    EmbeddedPostgres::start(&config.postgres_dir(), PostgresOptions::default())
        .await
        .map_err(|error| Failure::work("starting the embedded PostgreSQL", error))
}

async fn database_of(engine: &EmbeddedPostgres) -> Result<String, Failure> {
    engine.database(DATABASE).await.map_err(|error| Failure::work("creating the database", error))
}
