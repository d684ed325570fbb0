//! A server of one's own: a separate process of the `kontorion` program, stopped or killed, and started again on what it
//! left.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// How long a start may take, redo of a killed PostgreSQL included.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How long an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// Ports below those that systems hand out for outgoing connections: one of these would be lent to somebody else while
/// its server is dead.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Why the server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServerError(String);

fn failed<E: std::fmt::Display>(doing: impl Into<String>) -> impl FnOnce(E) -> ServerError {
    let doing = doing.into();
    move |error| ServerError(format!("{doing}: {error}"))
}

/// A server that belongs to the caller. Dropping it kills the process and leaves its data.
#[derive(Debug)]
pub struct OwnServer {
    program: PathBuf,
    options: Vec<String>,
    http: reqwest::Client,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Where it listens, whenever it runs.
    pub address: SocketAddr,
    _port: TcpListener,
    child: Option<Child>,
}

/// What `kontorion org create --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Organization {
    /// Its id.
    pub organization_id: String,
    /// The workspace for real money.
    pub live: Workspace,
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
    /// Signs records of foreign producers, in hex.
    pub ingest_secret: String,
}

impl OwnServer {
    /// Starts it and waits until it is ready. `set` are keys of its configuration, as `key=value`.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(program: &Path, data_dir: &Path, set: &[String]) -> Result<Self, ServerError> {
        std::fs::create_dir_all(data_dir).map_err(failed(format!("creating {}", data_dir.display())))?;
        let (address, port) = reserve_address()?;
        let mut options = vec![format!("--data-dir={}", data_dir.display()), format!("--listen={address}")];
        // One client is all the clients here: the limits are for others.
        for limit in ["rate_sandbox_per_second", "rate_sandbox_burst", "rate_events_per_second"] {
            options.push(format!("--set={limit}=10000000"));
        }
        // Nothing here goes to the network.
        options.push("--set=exchange_rates_url=".to_owned());
        options.extend(set.iter().map(|pair| format!("--set={pair}")));
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
        let http = http.map_err(failed("making a client"))?;
        let (program, data_dir) = (program.to_owned(), data_dir.to_owned());
        let mut server = Self { program, options, http, data_dir, address, _port: port, child: None };
        server.start_again().await?;
        Ok(server)
    }

    /// Starts the process after it was stopped or killed, and waits until it is ready. Returns how long that took.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> Result<Duration, ServerError> {
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
        self.child = Some(child);
        loop {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                return Err(ServerError(format!("the server ended ({status}); its log: {}", log_path.display())));
            }
            if self.readiness().await.is_some_and(|(status, _)| status == 200) {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > START_LIMIT {
                return Err(ServerError(format!("the server is not ready; its log: {}", log_path.display())));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops it in order and starts it with other roles.
    ///
    /// # Errors
    /// When it does not stop, or not start again.
    pub async fn restart_with(&mut self, roles: &str) -> Result<(), ServerError> {
        self.stop().await?;
        self.options.retain(|option| !option.starts_with("--roles="));
        self.options.push(format!("--roles={roles}"));
        self.start_again().await.map(drop)
    }

    /// Status and body of `/readyz`; `None` when nobody answers.
    pub async fn readiness(&self) -> Option<(u16, String)> {
        self.page("/readyz").await
    }

    /// Status and body of a page that needs no key; `None` when nobody answers.
    pub async fn page(&self, path: &str) -> Option<(u16, String)> {
        let answer = self.http.get(format!("http://{}{path}", self.address)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill(&mut self) -> Result<(), ServerError> {
        match self.child.take() {
            Some(mut child) => child.kill().await.map_err(failed("killing the server")),
            None => Ok(()),
        }
    }

    /// Kills it with SIGKILL and starts it again; returns how long it was not ready.
    ///
    /// # Errors
    /// When it does not start again.
    pub async fn kill_and_restart(&mut self) -> Result<Duration, ServerError> {
        let begun = Instant::now();
        self.kill().await?;
        self.start_again().await?;
        Ok(begun.elapsed())
    }

    /// Asks it to stop with SIGTERM and waits until it has.
    ///
    /// # Errors
    /// When it does not stop, or not with exit status 0.
    pub async fn stop(&mut self) -> Result<(), ServerError> {
        let Some((pid, mut child)) = self.pid().zip(self.child.take()) else { return Ok(()) };
        let doing = "stopping the server";
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(failed(doing))?;
        let status = timeout(STOP_LIMIT, child.wait()).await.map_err(failed(doing))?.map_err(failed(doing))?;
        match status.success() {
            true => Ok(()),
            false => Err(ServerError(format!("the server stopped with {status}; its log: {}", self.log().display()))),
        }
    }

    /// Its process id; `None` when it was stopped or killed.
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
    pub async fn create_organization(&self, name: &str) -> Result<Organization, ServerError> {
        let output = self.succeed(&["org", "create", name, "--json"]).await?;
        serde_json::from_str(&output).map_err(failed("reading what `org create` printed"))
    }

    /// Runs `ledger verify`; the error is what it found.
    ///
    /// # Errors
    /// When the books differ.
    pub async fn verify_ledger(&self) -> Result<String, ServerError> {
        self.succeed(&["ledger", "verify"]).await
    }

    /// Runs a command of the same program with the same configuration: exit status, standard output and error.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn command(&self, words: &[&str]) -> Result<(ExitStatus, String, String), ServerError> {
        let output = Command::new(&self.program)
            .args(words)
            .args(&self.options)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(failed(format!("running `{}`", words.join(" "))))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok((output.status, text(&output.stdout), text(&output.stderr)))
    }

    /// What a command printed that must succeed.
    async fn succeed(&self, words: &[&str]) -> Result<String, ServerError> {
        let (status, printed, complaint) = self.command(words).await?;
        match status.success() {
            true => Ok(printed),
            false => Err(ServerError(format!("`{}` failed: {printed}\n{complaint}", words.join(" ")))),
        }
    }
}

/// An address for one server, and what keeps others of its kind away from the port while nobody listens on it: the same
/// port, held on a neighbouring address.
fn reserve_address() -> Result<(SocketAddr, TcpListener), ServerError> {
    for _ in 0..1_000 {
        let [high, low, ..] = *Uuid::new_v4().as_bytes();
        let port = PORTS.start + u16::from_be_bytes([high, low]) % (PORTS.end - PORTS.start);
        let Ok(held) = TcpListener::bind(("127.0.0.2", port)) else { continue };
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return Ok((listener.local_addr().map_err(failed("finding a free port"))?, held));
        }
    }
    Err(ServerError(format!("no port from {} to {} is free", PORTS.start, PORTS.end)))
}
