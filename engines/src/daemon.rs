//! An engine's process in the background, found again through what its directory remembers.
//!
//! | name in the directory | what |
//! |---|---|
//! | `process.json` | number, start time and address of the process |
//! | `log` | what it printed since its start |
//! | `start.lock`, `users.lock` | as in [`crate::postgres`] |

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::files::{self, FileLock};
use crate::{EngineError, process};

/// How long a stopped engine may take to put its data away before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Starts that lost their port to another process before they gave up.
const STARTS_MAX: u32 = 3;

/// What an engine needs to be started and recognised.
pub(crate) trait Engine {
    /// Its name as people say it.
    const NAME: &'static str;
    /// How long a start may take.
    const START_LIMIT: Duration;

    /// Prepares the directory, for instance formats its storage. Runs before the first start attempt.
    fn prepare(&mut self, dir: &Path) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// The command that runs the engine in the foreground on this port.
    fn command(&self, dir: &Path, port: u16) -> Result<Command, EngineError>;

    /// Whether the engine answers on this port.
    fn answers(port: u16) -> impl Future<Output = bool> + Send;
}

/// A running process of an engine. Dropping the handle leaves it running.
#[derive(Debug)]
pub(crate) struct Daemon {
    dir: PathBuf,
    state: State,
    users: FileLock,
}

/// What `process.json` holds. Number and start time together name a process for as long as the machine is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    pid: i32,
    started: u64,
    port: u16,
}

impl Daemon {
    /// The engine that runs in `dir`; `None` when none does.
    pub(crate) async fn adopt(dir: &Path) -> Result<Option<Self>, EngineError> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let dir = dir.canonicalize().map_err(EngineError::io("resolving", dir))?;
        let _starting = FileLock::exclusive(&dir.join("start.lock")).await?;
        let users = FileLock::shared(&dir.join("users.lock"))?;
        let state = State::read(&dir).filter(State::is_alive);
        Ok(state.map(|state| Self { dir, state, users }))
    }

    /// Adopts the engine that runs in `dir`, or starts one. Returns when it answers.
    pub(crate) async fn start<E: Engine>(dir: &Path, mut engine: E) -> Result<Self, EngineError> {
        files::make_dir(dir, 0o755)?;
        let dir = dir.canonicalize().map_err(EngineError::io("resolving", dir))?;
        let _starting = FileLock::exclusive(&dir.join("start.lock")).await?;
        let users = FileLock::shared(&dir.join("users.lock"))?;
        if let Some(state) = State::read(&dir).filter(State::is_alive) {
            wait_until_ready::<E>(&dir, &state).await?;
            return Ok(Self { dir, state, users });
        }
        engine.prepare(&dir).await?;
        let mut attempt = 1;
        loop {
            let state = launch(&dir, &engine)?;
            match wait_until_ready::<E>(&dir, &state).await {
                Ok(()) => return Ok(Self { dir, state, users }),
                Err(error) => {
                    end(&state).await;
                    let port_taken =
                        files::tail(&dir.join("log")).to_ascii_lowercase().contains("address already in use");
                    if attempt == STARTS_MAX || !port_taken {
                        return Err(error);
                    }
                }
            }
            attempt += 1;
        }
    }

    /// The port of 127.0.0.1 that the engine listens on.
    pub(crate) fn port(&self) -> u16 {
        self.state.port
    }

    /// The number of the engine's process, for measuring what it costs.
    pub(crate) fn pid(&self) -> i32 {
        self.state.pid
    }

    /// Stops the engine; `false`, and it goes on, when another process uses it.
    pub(crate) async fn stop(self) -> Result<bool, EngineError> {
        let _stopping = FileLock::exclusive(&self.dir.join("start.lock")).await?;
        if !self.users.try_make_exclusive() {
            return Ok(false);
        }
        end(&self.state).await;
        Ok(true)
    }
}

impl State {
    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_str(&files::read_trimmed(&dir.join("process.json"))?).ok()
    }

    fn is_alive(&self) -> bool {
        process::is_alive(self.pid) && process::start_time(self.pid) == Some(self.started)
    }
}

/// Starts the process in a session of its own, so that no signal to ours reaches it.
fn launch<E: Engine>(dir: &Path, engine: &E) -> Result<State, EngineError> {
    let port = process::free_port()?;
    let log_path = dir.join("log");
    let log = File::create(&log_path).map_err(EngineError::io("creating", &log_path))?;
    let errors = log.try_clone().map_err(EngineError::io("opening", &log_path))?;
    let mut command = engine.command(dir, port)?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    process::in_own_session(&mut command);
    let program = PathBuf::from(command.get_program());
    let child = command.spawn().map_err(EngineError::io("running", &program))?;
    // Process numbers are at most 2^22.
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    let state = State { pid, started: process::start_time(pid).unwrap_or_default(), port };
    let text = serde_json::json!(state).to_string();
    files::write_atomically(&dir.join("process.json"), &text, 0o644)?;
    Ok(state)
}

async fn wait_until_ready<E: Engine>(dir: &Path, state: &State) -> Result<(), EngineError> {
    let start = Instant::now();
    while !E::answers(state.port).await {
        if !state.is_alive() || start.elapsed() >= E::START_LIMIT {
            let log = dir.join("log");
            let tail = files::tail(&log);
            return Err(EngineError::NotReady { engine: E::NAME, seconds: start.elapsed().as_secs(), log, tail });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Asks the process to end, and ends it when it does not.
async fn end(state: &State) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if !state.is_alive() {
            return;
        }
        process::signal(state.pid, signal);
        process::wait_until_gone(state.pid, STOP_LIMIT).await;
    }
}
