//! Apache Kafka on this machine: one broker that is its own controller, for tests and load runs.
//!
//! The jars come from Maven Central (`dev/kafka/fetch.sh`). Topics are not made on first use, as in production.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Daemon, Engine};
use crate::{EngineError, files, process};

const SERVER_PROPERTIES: &str = include_str!("../../dev/kafka/server.properties");
const LOG_PROPERTIES: &str = include_str!("../../dev/kafka/log4j2.properties");

/// Identity of the cluster, in Kafka's own form: 16 bytes as base64. Nothing joins this cluster, so one will do.
const CLUSTER_ID: &str = "a29udG9yaW9uLWRldi0wMQ";

/// A Kafka that this process started or adopted. Dropping the handle leaves it running.
#[derive(Debug)]
pub struct Kafka(Daemon);

impl Kafka {
    /// Adopts the broker that runs in `dir`, or starts one; its topics stay in `dir` from start to start. Fetches the
    /// jars first if need be.
    ///
    /// # Errors
    /// [`EngineError::Missing`] without Java; [`EngineError::Program`] when the jars cannot be fetched.
    pub async fn start(dir: &Path) -> Result<Self, EngineError> {
        let java = java()?;
        let libs = process::run_script("dev/kafka/fetch.sh").await?;
        Daemon::start(dir, Broker { java, libs }).await.map(Self)
    }

    /// The broker that runs in `dir`; `None` when none does.
    ///
    /// # Errors
    /// When its files cannot be used.
    pub async fn adopt(dir: &Path) -> Result<Option<Self>, EngineError> {
        Ok(Daemon::adopt(dir).await?.map(Self))
    }

    /// Address that clients start from.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.0.port())
    }

    /// The number of the broker's process, for measuring what it costs.
    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Stops the broker and waits until it has ended; `false` when another process uses it.
    ///
    /// # Errors
    /// When its files cannot be used.
    pub async fn stop(self) -> Result<bool, EngineError> {
        self.0.stop().await
    }
}

struct Broker {
    java: PathBuf,
    libs: String,
}

impl Broker {
    /// A Java program of the jars, with a heap that leaves the machine to what is measured.
    fn java(&self, dir: &Path, main_class: &str) -> Command {
        let mut command = Command::new(&self.java);
        command.args(["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.awt.headless=true"]);
        command.arg(format!("-Dlog4j2.configurationFile={}", dir.join("log4j2.properties").display()));
        command.arg("-cp").arg(format!("{}/*", self.libs)).arg(main_class);
        command
    }
}

impl Engine for Broker {
    const NAME: &'static str = "Apache Kafka";
    const START_LIMIT: Duration = Duration::from_secs(60);

    async fn prepare(&mut self, dir: &Path) -> Result<(), EngineError> {
        files::write_atomically(&dir.join("log4j2.properties"), LOG_PROPERTIES, 0o644)?;
        if dir.join("data/meta.properties").exists() {
            return Ok(());
        }
        // Formatting reads the listeners but opens none of them.
        let properties = write_properties(dir, 1, 2)?;
        let mut format = self.java(dir, "kafka.tools.StorageTool");
        format.args(["format", "--ignore-formatted", "-t", CLUSTER_ID, "-c"]).arg(properties);
        process::run("kafka.tools.StorageTool", format.into()).await.map(drop)
    }

    fn command(&self, dir: &Path, port: u16) -> Result<Command, EngineError> {
        let properties = write_properties(dir, port, process::free_port()?)?;
        let mut command = self.java(dir, "kafka.Kafka");
        command.arg(properties);
        Ok(command)
    }

    async fn answers(port: u16) -> bool {
        let answer = tokio::time::timeout(Duration::from_secs(5), ask_api_versions(port)).await;
        matches!(answer, Ok(Ok(())))
    }
}

fn write_properties(dir: &Path, port: u16, controller_port: u16) -> Result<PathBuf, EngineError> {
    let path = dir.join("server.properties");
    let text = SERVER_PROPERTIES
        .replace("@PORT@", &port.to_string())
        .replace("@CONTROLLER_PORT@", &controller_port.to_string())
        .replace("@DIR@", &dir.display().to_string());
    files::write_atomically(&path, &text, 0o644)?;
    Ok(path)
}

fn java() -> Result<PathBuf, EngineError> {
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut bins = home.into_iter().chain(std::env::split_paths(&path));
    bins.find_map(|bin| Some(bin.join("java")).filter(|java| java.is_file())).ok_or_else(|| EngineError::Missing {
        engine: "Java 17 or newer",
        detail: "looked in JAVA_HOME and PATH".to_owned(),
        remedy: "apt-get install openjdk-17-jdk-headless",
    })
}

/// Asks the broker which requests it knows. Its port is open before it serves, so connecting alone would prove nothing.
async fn ask_api_versions(port: u16) -> std::io::Result<()> {
    // Length, then header version 1 (api key 18, version 0, correlation id 1, no client id); the body is empty.
    const REQUEST: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff];
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(&REQUEST).await?;
    let _length = stream.read_i32().await?;
    let correlation = stream.read_i32().await?;
    let error_code = stream.read_i16().await?;
    if (correlation, error_code) == (1, 0) { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}
