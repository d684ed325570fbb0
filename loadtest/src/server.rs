//! An own server: started as a separate process, killed without warning, started again on what it left.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::failure::{Failure, failed};
use crate::http::Connection;

/// How long a start may take, redo of a killed PostgreSQL included.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How long an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// A server that belongs to this run.
#[derive(Debug)]
pub struct OwnServer {
    program: PathBuf,
    options: Vec<String>,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Whether the directory was made for this run.
    own_dir: bool,
    /// Where it listens.
    pub address: SocketAddr,
    child: Option<Child>,
}

/// What `kontorion org create --json` prints, as far as it is needed.
#[derive(Clone, Debug, Deserialize)]
pub struct Organization {
    /// The workspace with test clocks.
    pub sandbox: Workspace,
}

/// A workspace and what opens it.
#[derive(Clone, Debug, Deserialize)]
pub struct Workspace {
    /// Its id.
    pub workspace_id: String,
    /// API key.
    pub key: String,
    /// Signs records of foreign producers.
    pub ingest_secret: String,
}

impl OwnServer {
    /// Starts it and waits until it is ready. `set` are keys of its configuration.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(program: &Path, data_dir: Option<&Path>, set: &[String]) -> Result<Self, Failure> {
        let own_dir = data_dir.is_none();
        let data_dir = match data_dir {
            Some(dir) => dir.to_owned(),
            None => std::env::temp_dir().join(format!("kontorion-load-{}", uuid::Uuid::new_v4().simple())),
        };
        std::fs::create_dir_all(&data_dir).map_err(failed(format!("creating {}", data_dir.display())))?;
        let address = free_address()?;
        let mut options = vec![format!("--data-dir={}", data_dir.display()), format!("--listen={address}")];
        // One client is all the clients here: the limits are for others.
        for limit in ["rate_sandbox_per_second", "rate_sandbox_burst", "rate_events_per_second"] {
            options.push(format!("--set={limit}=10000000"));
        }
        options.extend(set.iter().map(|pair| format!("--set={pair}")));
        let mut server = Self { program: program.to_owned(), options, data_dir, own_dir, address, child: None };
        server.spawn().await?;
        Ok(server)
    }

    /// Starts the process and waits until it is ready. Returns how long that took.
    async fn spawn(&mut self) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let log_path = self.log();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(failed(format!("opening {}", log_path.display())))?;
        let child = Command::new(&self.program)
            .arg("serve")
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed(format!("starting {}", self.program.display())))?;
        let child = self.child.insert(child);
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Failure::new(format!("the server ended ({status}); its log: {}", log_path.display())));
            }
            if is_ready(self.address).await {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > START_LIMIT {
                return Err(Failure::new(format!("the server is not ready; its log: {}", log_path.display())));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it with SIGKILL and starts it again; returns how long it was not ready.
    ///
    /// # Errors
    /// When it does not start again.
    pub async fn kill_and_restart(&mut self) -> Result<Duration, Failure> {
        let begun = Instant::now();
        if let Some(mut child) = self.child.take() {
            child.kill().await.map_err(failed("killing the server"))?;
        }
        self.spawn().await?;
        Ok(begun.elapsed())
    }

    /// Stops it in order and starts it with other roles.
    ///
    /// # Errors
    /// When it does not stop, or not start again.
    pub async fn restart_with(&mut self, roles: &str) -> Result<(), Failure> {
        self.end().await?;
        self.options.retain(|option| !option.starts_with("--roles="));
        self.options.push(format!("--roles={roles}"));
        self.spawn().await.map(drop)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref()?.id().and_then(|id| i32::try_from(id).ok())
    }

    /// Where it logs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.data_dir.join("kontorion.log")
    }

    /// Creates a tenant with the command line.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn create_organization(&self) -> Result<Organization, Failure> {
        let output = self.command(&["org", "create", "Load", "--json"]).await?;
        serde_json::from_str(&output).map_err(failed("reading what `org create` printed"))
    }

    /// Runs `ledger verify`; the error is what it found.
    ///
    /// # Errors
    /// When the books differ.
    pub async fn verify_ledger(&self) -> Result<String, Failure> {
        self.command(&["ledger", "verify"]).await
    }

    /// Runs a command of the same program on the same data.
    async fn command(&self, words: &[&str]) -> Result<String, Failure> {
        let what = words.join(" ");
        let output = Command::new(&self.program)
            .args(words)
            .args(&self.options)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(failed(format!("running {what}")))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(Failure::new(format!("`{what}` failed: {}\n{}", text(&output.stdout), text(&output.stderr))))
        }
    }

    /// Stops it in order; a directory made for the run is removed unless `keep`.
    ///
    /// # Errors
    /// When it does not stop, or not with exit status 0.
    pub async fn stop(mut self, keep: bool) -> Result<(), Failure> {
        self.end().await?;
        if self.own_dir && !keep {
            std::fs::remove_dir_all(&self.data_dir).map_err(failed("removing the data directory"))?;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Failure> {
        if let (Some(pid), Some(mut child)) = (self.pid(), self.child.take()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(failed("stopping the server"))?;
            let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await.map_err(failed("stopping the server"))?;
            let status = ended.map_err(failed("stopping the server"))?;
            if !status.success() {
                return Err(Failure::new(format!("the server stopped with {status}; log: {}", self.log().display())));
            }
        }
        Ok(())
    }
}

async fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut connection) = Connection::open(address).await else { return false };
    let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection.exchange(request).await.is_ok_and(|answer| answer.status == 200)
}

fn free_address() -> Result<SocketAddr, Failure> {
    let doing = "finding a free port";
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(failed(doing))
}
