//! Guards: a second postmaster on one directory, data that a restart loses, and an engine that ends with its parent.

use engines::{EmbeddedPostgres, PostgresOptions};
use sqlx::{Connection, PgConnection};

/// A directory that the unprivileged user may enter, as `tempfile`'s own are not.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    dir
}

async fn one(url: &str, sql: &'static str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
}

async fn execute(url: &str, sql: &'static str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn starts_once_is_adopted_and_keeps_its_data() {
    let dir = directory();
    let start = || EmbeddedPostgres::start(dir.path(), PostgresOptions::default());
    assert!(EmbeddedPostgres::adopt(dir.path()).await.unwrap().is_none());

    // Two at once: one starts, the other adopts.
    let (first, second) = tokio::join!(start(), start());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.port(), second.port());
    let url = first.database("kontorion").await.unwrap();
    assert_eq!(second.database("kontorion").await.unwrap(), url);
    execute(&url, "CREATE TABLE kept AS SELECT 'yes' AS value").await;

    assert!(!second.stop().await.unwrap(), "the first still uses it");
    let port = first.port();
    assert!(first.stop().await.unwrap());
    assert!(PgConnection::connect(&url).await.is_err());

    // The port is remembered, so an address that somebody noted stays good.
    let again = start().await.unwrap();
    assert_eq!(again.port(), port);
    assert_eq!(one(&url, "SELECT value FROM kept").await, "yes");
    assert!(again.stop().await.unwrap());
}

#[tokio::test]
async fn comes_back_after_its_processes_were_killed() {
    let dir = directory();
    let engine = EmbeddedPostgres::start(dir.path(), PostgresOptions::default()).await.unwrap();
    let url = engine.url("postgres");
    execute(&url, "CREATE TABLE kept AS SELECT 'yes' AS value").await;
    // A connection whose process outlives the postmaster for a moment.
    let _held = PgConnection::connect(&url).await.unwrap();

    let pid_file = std::fs::read_to_string(dir.path().join("cluster/postmaster.pid")).unwrap();
    let pid: i32 = pid_file.lines().next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();

    drop(engine);

    let engine = EmbeddedPostgres::start(dir.path(), PostgresOptions::default()).await.unwrap();
    assert_eq!(one(&engine.url("postgres"), "SELECT value FROM kept").await, "yes");
    assert!(engine.stop().await.unwrap());
}

#[tokio::test]
async fn is_durable_and_lets_nobody_in_without_its_password() {
    let dir = directory();
    let engine = EmbeddedPostgres::start(dir.path(), PostgresOptions::default()).await.unwrap();
    let url = engine.url("postgres");
    assert_eq!(one(&url, "SELECT current_setting('fsync')").await, "on");
    assert_eq!(one(&url, "SELECT current_setting('jit')").await, "off");
    assert_eq!(one(&url, "SELECT current_setting('max_wal_size')").await, "4GB");
    let mut session = PgConnection::connect(&url).await.unwrap();
    let compression = one(&url, "SELECT current_setting('wal_compression')").await;
    let has_lz4 = sqlx::raw_sql("SET wal_compression = 'lz4'").execute(&mut session).await.is_ok();
    assert_eq!(compression, if has_lz4 { "lz4" } else { "pglz" });
    assert_eq!(one(&url, "SELECT pg_encoding_to_char(encoding)::text FROM pg_database LIMIT 1").await, "UTF8");

    let stranger = format!("postgres://kontorion:guess@127.0.0.1:{}/postgres", engine.port());
    assert!(PgConnection::connect(&stranger).await.is_err());
    let mode = std::fs::metadata(dir.path().join("password")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    assert!(engine.stop().await.unwrap());
}
