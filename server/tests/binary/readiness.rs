//! Guards against a node that says that it is ready while something it needs is away, and against one that does not say
//! what.

use client::OwnServer;
use engines::Kafka;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sqlx::Connection;
use tempfile::TempDir;

use crate::site::{Site, directory, eventually};

/// A broker that no other test needs; it ends with the test.
struct OwnKafka {
    address: String,
    pid: Pid,
    _dir: TempDir,
}

impl OwnKafka {
    async fn start() -> Self {
        let dir = directory();
        let kafka = Kafka::start(dir.path()).await.expect("a broker");
        Self { address: kafka.bootstrap(), pid: Pid::from_raw(kafka.pid()), _dir: dir }
    }

    /// Lets it answer nobody, until it goes on.
    fn freeze(&self, frozen: bool) {
        kill(self.pid, if frozen { Signal::SIGSTOP } else { Signal::SIGCONT }).expect("the broker runs");
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

async fn await_readiness(server: &OwnServer, status: u16, answer: &Value) {
    let look = async || {
        let (status, body) = server.readiness().await?;
        Some((status, serde_json::from_str::<Value>(&body).ok()?))
    };
    let expected = Some((status, answer.clone()));
    eventually("readiness", look, |seen| *seen == expected).await;
}

fn ready(checks: Value) -> Value {
    json!({"status": "ready", "checks": checks})
}

fn not_ready(checks: Value) -> Value {
    json!({"status": "not_ready", "checks": checks})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readyz_names_the_dependency_that_is_away() {
    let Some(_) = engines::testing::kafka().await else { return };
    let kafka = OwnKafka::start().await;
    let site = Site::new().await;
    let settings = ["log_kind=kafka".to_owned(), format!("kafka_brokers={}", kafka.address)];
    let server = site.server("server", &settings).await;
    let all = ready(json!({"database": "ok", "event_log": "ok", "usage_store": "ok"}));
    await_readiness(&server, 200, &all).await;

    kafka.freeze(true);
    let without_log = not_ready(json!({"database": "ok", "event_log": "unavailable", "usage_store": "ok"}));
    await_readiness(&server, 503, &without_log).await;
    kafka.freeze(false);
    await_readiness(&server, 200, &all).await;

    // The usage store is in the database.
    let mut closed = closed_database(&site).await;
    let without_database =
        not_ready(json!({"database": "unavailable", "event_log": "ok", "usage_store": "unavailable"}));
    await_readiness(&server, 503, &without_database).await;
    allow_connections(&site, &mut closed, true).await;
    await_readiness(&server, 200, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readyz_asks_for_what_the_roles_need() {
    let site = Site::new().await;
    let server = site.server("server", &["roles=scheduler".to_owned()]).await;
    await_readiness(&server, 200, &ready(json!({"database": "ok", "event_log": "ok"}))).await;
}

/// Lets nobody in and throws out who is in; the connection that may let them in again.
async fn closed_database(site: &Site) -> sqlx::PgConnection {
    let elsewhere = site.database.url().replace(site.database.name(), "postgres");
    let mut admin = sqlx::PgConnection::connect(&elsewhere).await.expect("a connection");
    allow_connections(site, &mut admin, false).await;
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1")
        .bind(site.database.name())
        .execute(&mut admin)
        .await
        .expect("all are thrown out");
    admin
}

async fn allow_connections(site: &Site, admin: &mut sqlx::PgConnection, allow: bool) {
    let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS {allow}", site.database.name());
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(admin).await.expect("the database is opened or closed");
}
