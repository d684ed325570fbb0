//! What tests of every crate ask for. Engines are shared by all test processes of the machine; what a test gets from
//! them (a database, names of topics) is its own.
//!
//! `make test` starts the engines once and tells where they are through the variables below. Without them, the first
//! test that asks starts the engine in a directory under the system's temporary directory, and later ones, also of
//! other processes, find it there. It keeps running until `make stop-engines`.
//!
//! | variable | meaning |
//! |---|---|
//! | `KONTORION_TEST_POSTGRES_URL` | URL of a PostgreSQL superuser, any database |
//! | `KONTORION_TEST_KAFKA` | bootstrap address of Apache Kafka |
//! | `KONTORION_TEST_CLICKHOUSE` | base URL of ClickHouse's HTTP interface |
//! | `CI` | `true`: an engine that is missing fails the test that needs it |

mod database;

use std::path::PathBuf;

use tokio::sync::OnceCell;

use crate::{EmbeddedPostgres, EngineError, PostgresOptions};

pub use database::TestDatabase;

/// A fresh database with the schema of `migrations/postgres`, dropped with the returned value.
///
/// # Panics
/// When PostgreSQL cannot be had: no test of this project makes sense without it.
pub async fn database() -> TestDatabase {
    let url = postgres_url().await.unwrap_or_else(|error| panic!("tests need PostgreSQL: {}", error.chain()));
    match TestDatabase::create(&url).await {
        Ok(database) => database,
        Err(error) => panic!("a fresh test database: {}", error.chain()),
    }
}

/// URL of a superuser on the PostgreSQL that all tests share.
async fn postgres_url() -> Result<String, EngineError> {
    if let Ok(url) = std::env::var("KONTORION_TEST_POSTGRES_URL") {
        return Ok(url);
    }
    // The handle is kept until the process ends: it tells others that the engine is in use.
    static SHARED: OnceCell<EmbeddedPostgres> = OnceCell::const_new();
    let engine = SHARED.get_or_try_init(shared_postgres).await?;
    Ok(engine.url("postgres"))
}

/// Starts or adopts the PostgreSQL of all tests. It survives no power loss, which is what makes it quick.
///
/// # Errors
/// As [`EmbeddedPostgres::start`].
pub async fn shared_postgres() -> Result<EmbeddedPostgres, EngineError> {
    let quick = [
        ("fsync", "off"),
        ("synchronous_commit", "off"),
        ("full_page_writes", "off"),
        ("shared_buffers", "256MB"),
        ("max_connections", "300"),
        ("max_wal_size", "1GB"),
    ];
    let settings = quick.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    EmbeddedPostgres::start(&shared_dir()?.join("postgres"), PostgresOptions { port: 0, settings }).await
}

/// Directory of the shared engines, one per user, so that nobody meets another's files.
fn shared_dir() -> Result<PathBuf, EngineError> {
    let dir = std::env::temp_dir().join(format!("kontorion-test-{}", nix::unistd::geteuid()));
    crate::files::make_dir(&dir, 0o711)?;
    Ok(dir)
}
