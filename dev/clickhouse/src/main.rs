//! `dev-clickhouse`: the real ClickHouse engine for tests and load runs, on machines without a ClickHouse server.
//!
//! The engine comes as a library (libchdb, see `fetch.sh`); this program puts ClickHouse's HTTP interface before it,
//! as far as the `clickhouse` crate and curl use it. It is for development: no users, one machine, answers are
//! built in memory before they are sent (as a server does with `wait_end_of_query=1`).
//!
//! | module | what |
//! |---|---|
//! | [`chdb`] | the library's C interface, made safe |
//! | [`insert`] | tells the data of an INSERT from its statement |
//! | [`request`] | the parameters of a request |
//! | [`http`] | routes, answers, headers |

mod chdb;
mod http;
mod insert;
mod request;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// The ClickHouse engine behind ClickHouse's HTTP interface, for development.
#[derive(Debug, Parser)]
struct Arguments {
    /// Directory of the data; one process at a time may use it.
    #[arg(long)]
    path: PathBuf,
    /// libchdb.so, as fetched by dev/clickhouse/fetch.sh.
    #[arg(long, env = "KONTORION_CHDB")]
    library: PathBuf,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one. The address is printed once the server answers.
    #[arg(long, default_value_t = 8123)]
    port: u16,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match serve(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dev-clickhouse: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(&arguments.path)?;
    let engine = chdb::Engine::start(&arguments.library, &arguments.path)?;
    let listener = TcpListener::bind((arguments.host.as_str(), arguments.port)).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    println!("http://{}", listener.local_addr()?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    axum::serve(listener, http::router(engine)).with_graceful_shutdown(stop).await?;
    Ok(())
}
