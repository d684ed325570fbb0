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
//! | `KONTORION_TEST_STRIPE_MOCK` | path of stripe-mock, which `dev/stripe-mock/fetch.sh` builds |
//! | `CI` | `true`: what is missing fails the test that needs it |

mod database;

use std::io::Write;
use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;

use crate::{ClickHouse, EmbeddedPostgres, EngineError, Kafka, PostgresOptions};

pub use database::TestDatabase;

/// Variable with the URL of a PostgreSQL superuser.
pub const POSTGRES_VARIABLE: &str = "KONTORION_TEST_POSTGRES_URL";
/// Variable with the bootstrap address of Apache Kafka.
pub const KAFKA_VARIABLE: &str = "KONTORION_TEST_KAFKA";
/// Variable with the base URL of ClickHouse's HTTP interface.
pub const CLICKHOUSE_VARIABLE: &str = "KONTORION_TEST_CLICKHOUSE";
/// Variable with the path of stripe-mock.
pub const STRIPE_MOCK_VARIABLE: &str = "KONTORION_TEST_STRIPE_MOCK";

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
    if let Ok(url) = std::env::var(POSTGRES_VARIABLE) {
        return Ok(url);
    }
    // The handle is kept until the process ends: it tells others that the engine is in use.
    static SHARED: OnceCell<EmbeddedPostgres> = OnceCell::const_new();
    let start = async || postgres_for_tests(&shared_dir()?.join("postgres")).await;
    let engine = SHARED.get_or_try_init(start).await?;
    Ok(engine.url("postgres"))
}

/// Bootstrap address of the Apache Kafka that all tests share: name your topics after a new UUID.
///
/// `None`, with a line that says which test did not run, when it cannot be had.
///
/// # Panics
/// With `CI=true`, when it cannot be had.
pub async fn kafka() -> Option<String> {
    if let Ok(bootstrap) = std::env::var(KAFKA_VARIABLE) {
        return available("Apache Kafka", address(bootstrap));
    }
    static SHARED: OnceCell<Result<Kafka, String>> = OnceCell::const_new();
    let start = async || Kafka::start(&shared_dir()?.join("kafka")).await;
    let shared = SHARED.get_or_init(async || start().await.map_err(|error| error.chain())).await;
    available("Apache Kafka", shared.as_ref().map(Kafka::bootstrap).map_err(Clone::clone))
}

/// Base URL of the ClickHouse that all tests share: make a database of your own in it.
///
/// `None`, with a line that says which test did not run, when it cannot be had.
///
/// # Panics
/// With `CI=true`, when it cannot be had.
pub async fn clickhouse() -> Option<String> {
    if let Ok(url) = std::env::var(CLICKHOUSE_VARIABLE) {
        return available("ClickHouse", address(url));
    }
    static SHARED: OnceCell<Result<ClickHouse, String>> = OnceCell::const_new();
    let start = async || ClickHouse::start(&shared_dir()?.join("clickhouse")).await;
    let shared = SHARED.get_or_init(async || start().await.map_err(|error| error.chain())).await;
    available("ClickHouse", shared.as_ref().map(ClickHouse::url).map_err(Clone::clone))
}

/// Path of the ClickHouse engine's library, for the tests of the program that serves it. As [`clickhouse`].
///
/// # Panics
/// With `CI=true`, when it cannot be had.
pub async fn clickhouse_library() -> Option<PathBuf> {
    let library = crate::clickhouse::library().await.map_err(|error| error.chain());
    available("the ClickHouse library", library)
}

/// Path of kcat, a Kafka client that shares no code with ours. As [`kafka`].
///
/// # Panics
/// With `CI=true`, when it is not installed.
pub fn kcat() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("kcat"));
    available("kcat", found.find(|kcat| kcat.is_file()).ok_or_else(|| "it is not installed".to_owned()))
}

/// Path of stripe-mock, Stripe's own server for tests. As [`kafka`].
///
/// # Panics
/// With `CI=true`, when no path is given.
pub fn stripe_mock() -> Option<PathBuf> {
    let path = std::env::var_os(STRIPE_MOCK_VARIABLE).filter(|path| !path.is_empty());
    available("stripe-mock", path.map(PathBuf::from).ok_or_else(|| format!("{STRIPE_MOCK_VARIABLE} names no program")))
}

/// An address given from outside; an empty one says that the engine could not be started there.
fn address(value: String) -> Result<String, String> {
    if value.is_empty() { Err("it could not be started for this run".to_owned()) } else { Ok(value) }
}

/// Answers what a test needs, or says that the test did not run.
fn available<T>(engine: &str, result: Result<T, String>) -> Option<T> {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    match result {
        Ok(engine) => Some(engine),
        Err(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("{test} needs {engine}, which must be there when CI=true: {reason}")
        }
        Err(reason) => {
            // Not with a macro: the test runner would keep the line of a test that passes to itself.
            let _ = writeln!(std::io::stderr(), "did not run: {test}, which needs {engine}: {reason}");
            None
        }
    }
}

/// Starts or adopts the PostgreSQL of tests in a directory. It survives no power loss, which is what makes it quick.
///
/// # Errors
/// As [`EmbeddedPostgres::start`].
pub async fn postgres_for_tests(dir: &Path) -> Result<EmbeddedPostgres, EngineError> {
    let quick = [
        ("fsync", "off"),
        ("synchronous_commit", "off"),
        ("full_page_writes", "off"),
        // Databases of tests do not live long enough to need it.
        ("autovacuum", "off"),
        ("shared_buffers", "256MB"),
        ("max_connections", "300"),
        ("max_wal_size", "1GB"),
    ];
    let settings = quick.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    EmbeddedPostgres::start(dir, PostgresOptions { port: 0, settings }).await
}

/// Directory of the shared engines, one per user, so that nobody meets another's files.
///
/// # Errors
/// When it cannot be made.
pub fn shared_dir() -> Result<PathBuf, EngineError> {
    let dir = std::env::temp_dir().join(format!("kontorion-test-{}", nix::unistd::geteuid()));
    crate::files::make_dir(&dir, 0o711)?;
    Ok(dir)
}
