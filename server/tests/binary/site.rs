//! Where a test takes place: a fresh database, a directory, servers whose logs are shown when the test fails.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use client::OwnServer;
use engines::testing::TestDatabase;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_kontorion");

/// Nothing takes this long, except what never comes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Lines of a server's log that a failed test shows.
const LOG_LINES: usize = 40;

/// The place of one test.
pub struct Site {
    pub database: TestDatabase,
    pub dir: TempDir,
}

impl Site {
    pub async fn new() -> Self {
        Self { database: engines::testing::database().await, dir: directory() }
    }

    /// Starts a server on the site's database, with a directory and a node name of its own.
    pub async fn server(&self, name: &str, settings: &[String]) -> OwnServer {
        let mut all = vec![format!("database_url={}", self.database.url()), format!("node_name={name}")];
        all.extend_from_slice(settings);
        OwnServer::start(Path::new(PROGRAM), &self.dir.path().join(name), &all).await.expect("the server starts")
    }

    /// One number from the database.
    pub async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.database.pool()).await.expect("a number")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let Ok(log) = std::fs::read_to_string(entry.path().join("kontorion.log")) else { continue };
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!("--- log of {}\n{}", entry.file_name().display(), last.join("\n"));
        }
    }
}

/// A directory that PostgreSQL's user may enter, as `tempfile`'s own are not.
pub fn directory() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("an open directory");
    dir
}

/// The program in an environment that sets none of its keys.
pub fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KONTORION_") {
            command.env_remove(name);
        }
    }
    command.kill_on_drop(true);
    command
}

/// Looks until it holds; fails with what was seen last.
pub async fn eventually<T: Debug>(what: &str, look: impl AsyncFn() -> T, holds: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look().await;
        if holds(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "in vain: {what}; seen last: {seen:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Values of a metric of a server, one for each partition that it has.
pub async fn metric(server: &OwnServer, name: &str) -> Vec<u64> {
    let Some((_, text)) = server.page("/metrics").await else { return Vec::new() };
    let values = text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).map(|line| {
        let (_, value) = line.rsplit_once(' ').expect("a value");
        value.parse::<u64>().expect("a whole number")
    });
    values.collect()
}
