//! The ClickHouse engine on this machine, for tests and load runs: `dev/clickhouse` behind ClickHouse's HTTP interface.
//!
//! The engine comes as a library from an npm package (`dev/clickhouse/fetch.sh`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::daemon::{Daemon, Engine};
use crate::{EngineError, process};

/// Name of the program that speaks HTTP for the library.
const PROGRAM: &str = "dev-clickhouse";

/// A ClickHouse engine that this process started or adopted. Dropping the handle leaves it running.
#[derive(Debug)]
pub struct ClickHouse(Daemon);

impl ClickHouse {
    /// Adopts the engine that runs in `dir`, or starts one; its tables stay in `dir` from start to start. Fetches the
    /// library and builds the program first if need be.
    ///
    /// # Errors
    /// [`EngineError::Program`] when the library cannot be fetched or the program cannot be built.
    pub async fn start(dir: &Path) -> Result<Self, EngineError> {
        let library = library().await?;
        let program = program().await?;
        Daemon::start(dir, Server { library, program }).await.map(Self)
    }

    /// The engine that runs in `dir`; `None` when none does.
    ///
    /// # Errors
    /// When its files cannot be used.
    pub async fn adopt(dir: &Path) -> Result<Option<Self>, EngineError> {
        Ok(Daemon::adopt(dir).await?.map(Self))
    }

    /// Base URL of the HTTP interface.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port())
    }

    /// The number of the engine's process, for measuring what it costs.
    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Stops the engine and waits until it has ended; `false` when another process uses it.
    ///
    /// # Errors
    /// When its files cannot be used.
    pub async fn stop(self) -> Result<bool, EngineError> {
        self.0.stop().await
    }
}

/// The engine's library, fetched if need be.
///
/// # Errors
/// [`EngineError::Program`] when it cannot be fetched.
pub async fn library() -> Result<PathBuf, EngineError> {
    process::run_script("dev/clickhouse/fetch.sh").await.map(PathBuf::from)
}

/// The program beside this one, as cargo lays them out; built when it is not there yet.
async fn program() -> Result<PathBuf, EngineError> {
    let here = Path::new("/proc/self/exe");
    let own = here.read_link().map_err(EngineError::io("resolving", here))?;
    // A test lies one folder deeper than a program.
    if let Some(found) = own.ancestors().skip(1).take(2).map(|dir| dir.join(PROGRAM)).find(|path| path.is_file()) {
        return Ok(found);
    }
    let target = own.ancestors().skip(1).find(|dir| dir.join(".fingerprint").is_dir());
    let Some(target) = target else {
        return Err(EngineError::Missing {
            engine: PROGRAM,
            detail: format!("looked beside {}", own.display()),
            remedy: "cargo build -p dev-clickhouse",
        });
    };
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "-p", PROGRAM]).current_dir(process::workspace());
    if target.ends_with("release") {
        build.arg("--release");
    }
    process::run("cargo build", build.into()).await?;
    Ok(target.join(PROGRAM))
}

struct Server {
    library: PathBuf,
    program: PathBuf,
}

impl Engine for Server {
    const NAME: &'static str = "ClickHouse";
    const START_LIMIT: Duration = Duration::from_secs(60);

    async fn prepare(&mut self, _dir: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    fn command(&self, dir: &Path, port: u16) -> Result<Command, EngineError> {
        let mut command = Command::new(&self.program);
        command.arg("--library").arg(&self.library).arg("--path").arg(dir.join("data"));
        command.arg("--port").arg(port.to_string());
        Ok(command)
    }

    async fn answers(port: u16) -> bool {
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/ping")).await;
        answer.is_ok_and(|response| response.status().is_success())
    }
}
