//! `kontorion serve`: database, rooms, HTTP; until a signal or a failure beyond mending; then all of it backwards.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info};

use crate::config::Config;
use crate::database::Database;
use crate::failure::Failure;
use crate::running::{Alarm, Running};
use crate::wiring;

/// A server that runs in this process.
pub struct Server {
    /// Where the HTTP API listens.
    pub address: SocketAddr,
    /// Its database.
    pub store: Store,
    running: Running,
    stop_limit: Duration,
}

/// Starts everything that the configuration asks for. Returns when it is ready.
///
/// # Errors
/// When a part does not start; what was started before it is stopped again.
pub async fn start(config: &Config) -> Result<Server, Failure> {
    let mut running = Running::default();
    let stop_limit = Duration::from_secs(config.stop_timeout_seconds);
    match start_parts(config, &mut running).await {
        Ok((address, store)) => Ok(Server { address, store, running, stop_limit }),
        Err(failure) => {
            running.stop(stop_limit).await;
            Err(failure)
        }
    }
}

async fn start_parts(config: &Config, running: &mut Running) -> Result<(SocketAddr, Store), Failure> {
    // Bound first: an address that is taken is found before anything else was started.
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| Failure::work(&format!("listening on {}", config.listen), error))?;
    let address = listener.local_addr().map_err(|error| Failure::work("reading the own address", error))?;
    let database = Database::open(config).await?;
    let store = database.store.clone();
    running.add("database", || database.close());
    let router = wiring::start_rooms(config, &store, running).await?;
    serve_http(listener, router, running);
    info!(%address, roles = ?config.roles, node = config.node_name, "serving");
    Ok((address, store))
}

fn serve_http(listener: TcpListener, router: Router, running: &mut Running) {
    let (stop, stopped) = oneshot::channel::<()>();
    let alarm: Alarm = running.alarm();
    // Small answers leave at once instead of waiting for the acknowledgement of the ones before.
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let serving = tokio::spawn(async move {
        let until = async {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stopped.await;
        };
        if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(until).await {
            alarm.raise("http", error.to_string());
        }
    });
    running.add("http", move || async move {
        let _ = stop.send(());
        let _ = serving.await;
    });
}

impl Server {
    /// Waits for SIGTERM, SIGINT or a failure beyond mending; the latter is returned.
    ///
    /// # Errors
    /// The failure, or signals that cannot be listened to.
    pub async fn wait(&mut self) -> Result<(), Failure> {
        let failed = |error| Failure::work("listening to signals", error);
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        tokio::select! {
            _ = terminate.recv() => info!("stopping on SIGTERM"),
            _ = interrupt.recv() => info!("stopping on SIGINT"),
            fatal = self.running.fatal() => {
                error!(part = fatal.part, reason = fatal.reason, "cannot go on");
                return Err(Failure::found(format!("{} cannot go on: {}", fatal.part, fatal.reason)));
            }
        }
        Ok(())
    }

    /// Stops everything in order: accepts no more, answers what came in, drains, checkpoints, closes the log and the
    /// database. A second signal ends the process at once.
    ///
    /// # Errors
    /// Names the parts that did not stop in time.
    pub async fn stop(self) -> Result<(), Failure> {
        let impatient = tokio::spawn(end_on_signal());
        let late = self.running.stop(self.stop_limit).await;
        impatient.abort();
        if late.is_empty() { Ok(()) } else { Err(Failure::found(format!("did not stop in time: {}", late.join(", ")))) }
    }
}

/// Everything acknowledged is durable, so ending at once loses nothing; the next start has more to redo.
async fn end_on_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    eprintln!("ended at once by a second signal");
    std::process::exit(1);
}

/// The command.
///
/// # Errors
/// As [`start`], [`Server::wait`] and [`Server::stop`].
pub async fn run(config: &Config) -> Result<(), Failure> {
    let mut server = start(config).await?;
    let outcome = server.wait().await;
    let stopped = server.stop().await;
    outcome.and(stopped)
}
