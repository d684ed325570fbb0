//! `dev-engines run -- COMMAND…` runs a command, usually the tests, with a PostgreSQL, a Kafka and a ClickHouse of its
//! own, and stops them afterwards. `dev-engines stop` stops the ones that tests without it left running.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use engines::testing::{self, CLICKHOUSE_VARIABLE, KAFKA_VARIABLE, POSTGRES_VARIABLE};
use engines::{ClickHouse, EmbeddedPostgres, EngineError, Kafka};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["run", "--", command @ ..] if !command.is_empty() => run(command).await,
        ["stop"] => stop_shared().await,
        _ => {
            eprintln!("usage: dev-engines run -- COMMAND…\n       dev-engines stop");
            return ExitCode::from(2);
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("dev-engines: {error}");
        ExitCode::FAILURE
    })
}

/// The engines of one run; those that could not be started are `None`.
struct Engines {
    postgres: Option<EmbeddedPostgres>,
    kafka: Option<Kafka>,
    clickhouse: Option<ClickHouse>,
}

impl Engines {
    async fn start(dir: &Path) -> Self {
        let dirs = ["postgres", "kafka", "clickhouse"].map(|name| dir.join(name));
        let (postgres, kafka, clickhouse) = tokio::join!(
            timed("PostgreSQL", testing::postgres_for_tests(&dirs[0])),
            timed("Apache Kafka", Kafka::start(&dirs[1])),
            timed("ClickHouse", ClickHouse::start(&dirs[2])),
        );
        Self { postgres, kafka, clickhouse }
    }

    fn is_complete(&self) -> bool {
        self.postgres.is_some() && self.kafka.is_some() && self.clickhouse.is_some()
    }

    /// Stops what was started, saying what did not stop.
    async fn stop(self) {
        let mut results = Vec::new();
        if let Some(engine) = self.kafka {
            results.push(engine.stop().await);
        }
        if let Some(engine) = self.clickhouse {
            results.push(engine.stop().await);
        }
        if let Some(engine) = self.postgres {
            results.push(engine.stop().await);
        }
        for error in results.into_iter().filter_map(Result::err) {
            eprintln!("dev-engines: {}", error.chain());
        }
    }
}

/// Says how long an engine took to start, or why it is missing.
async fn timed<T>(name: &str, start: impl Future<Output = Result<T, EngineError>>) -> Option<T> {
    let began = Instant::now();
    match start.await {
        Ok(engine) => {
            eprintln!("{name} started in {:.1} s", began.elapsed().as_secs_f64());
            Some(engine)
        }
        Err(error) => {
            eprintln!("{name} is MISSING, tests that need it do not run: {}", error.chain());
            None
        }
    }
}

async fn run(command: &[&str]) -> Result<ExitCode, Box<dyn std::error::Error>> {
    // From here on a signal waits for its turn instead of ending this process and leaving engines behind.
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let dir = std::env::temp_dir().join(format!("kontorion-run-{}", std::process::id()));
    let engines = Engines::start(&dir).await;
    let must_be_complete = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let result = if must_be_complete && !engines.is_complete() {
        Err("with CI=true every engine must be there".into())
    } else {
        run_with(&engines, command, signals).await
    };
    let missing = !engines.is_complete();
    engines.stop().await;
    // Data of a run that has ended: what is left of it hurts nobody.
    let _ = std::fs::remove_dir_all(&dir);
    if missing {
        eprintln!("engines were missing in this run, see above");
    }
    result
}

/// Runs the command to its end. A signal goes to the command's group by itself when it comes from a terminal; from
/// elsewhere it is passed on.
async fn run_with(
    engines: &Engines,
    command: &[&str],
    (mut terminate, mut interrupt): (Signal, Signal),
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let [program, arguments @ ..] = command else { return Err("no command".into()) };
    let postgres = engines.postgres.as_ref().map(|engine| engine.url("postgres"));
    let kafka = engines.kafka.as_ref().map(Kafka::bootstrap);
    let clickhouse = engines.clickhouse.as_ref().map(ClickHouse::url);
    let mut child = Command::new(program)
        .args(arguments)
        .env(POSTGRES_VARIABLE, postgres.ok_or("nothing runs without PostgreSQL")?)
        .env(KAFKA_VARIABLE, kafka.unwrap_or_default())
        .env(CLICKHOUSE_VARIABLE, clickhouse.unwrap_or_default())
        .spawn()?;
    let status = tokio::select! {
        status = child.wait() => status?,
        _ = terminate.recv() => {
            child.start_kill()?;
            child.wait().await?
        }
        _ = interrupt.recv() => child.wait().await?,
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Stops the engines that tests share, where they run and nobody uses them.
async fn stop_shared() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let dir = testing::shared_dir()?;
    let engines = Engines {
        postgres: EmbeddedPostgres::adopt(&dir.join("postgres")).await?,
        kafka: Kafka::adopt(&dir.join("kafka")).await?,
        clickhouse: ClickHouse::adopt(&dir.join("clickhouse")).await?,
    };
    engines.stop().await;
    Ok(ExitCode::SUCCESS)
}
