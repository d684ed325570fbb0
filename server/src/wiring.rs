//! Which rooms run in this process and how they are tied together. Each room that is started is added to [`Running`]
//! with the way to stop it; the order of starting is the order of dependence (what is fed before what feeds it).

use std::sync::Arc;

use api::app::Engine;
use api::limit::Rate;
use api::{App, Dependency, Settings};
use async_trait::async_trait;
use axum::Router;
use billing::Billing;
use billing::control::{WindowControl, WindowRef};
use catalog::compiled::{Snapshots, StoredWindow};
use domain::{Clock, Position};
use ingest::control::Controls;
use ingest::dedup::DedupOptions;
use ingest::door::Door;
use ingest::log::kafka::{KafkaLog, KafkaOptions};
use ingest::log::local::{LocalLog, LocalLogOptions};
use ingest::log::registry::{self, LogKind as RegisteredKind};
use ingest::log::{EventLog, LogError, LogIdentity};
use ingest::metrics::Metrics;
use ingest::outbox::Relay;
use ingest::partition::Shared;
use ingest::record::{Control, ControlKind};
use ingest::reserve::ReservationDesk;
use ingest::supervisor::Ingest;
use ingest::usage::UsageStore;
use ingest::usage::clickhouse::{ClickHouseAddress, ClickHouseUsage, Rollups};
use ingest::usage::postgres::PostgresUsage;
use payments::{Endpoints, Payments, Vault};
use scheduler::Scheduler;
use scheduler::exchange_rates::{RatesFeed, RatesOptions};
use store::{Groups, Store};
use tokio::sync::watch;

use crate::config::{Config, LogKind, Role, StoreKind};
use crate::failure::Failure;
use crate::running::{Running, start_job};

/// Starts the rooms of the configured roles and returns what HTTP serves.
///
/// # Errors
/// When a room does not start.
pub async fn start_rooms(config: &Config, store: &Store, running: &mut Running) -> Result<Router, Failure> {
    let snapshots = start_snapshots(store, running).await?;
    let log = open_log(config, store).await?;
    let (watched, alarm) = (log.clone(), running.alarm());
    let watching = tokio::spawn(async move { alarm.raise("event log", watched.failed().await) });
    let closing = log.clone();
    running.add("event log", || async move {
        watching.abort();
        closing.close().await;
    });
    let (usage, rollups) = open_usage(config, store).await?;
    let registry = prometheus::Registry::new();
    if config.has(Role::Ingest) {
        start_ingest(config, store, &snapshots, &log, &usage, &registry, running).await?;
        start_rollups(rollups, &snapshots, running);
    }
    let controls = Controls::new(log.clone(), snapshots.clone());
    let control = Arc::new(LogControl { controls, usage: usage.clone(), snapshots: snapshots.clone() });
    let billing = Billing::new(store.clone(), snapshots.clone(), control);
    let payments = open_payments(config, store).await?;
    if config.has(Role::Scheduler) {
        start_scheduler(billing.clone(), running);
        start_payments(payments.clone(), running);
        start_exchange_rates(config, store, running);
    }
    let mut app = App::new(payments, settings(config)?, registry);
    app.dependencies = dependencies(config, store, &log, &usage);
    let relay = Arc::new(Relay::new(store.clone(), log.clone()));
    start_relay(&relay, running);
    let door = Arc::new(Door::new(store.clone(), snapshots.clone(), log));
    let reservations = Groups::new(store, ReservationDesk::new(snapshots.clone()));
    app.engine = Some(Engine { snapshots, door, usage, relay, reservations, billing });
    // Without the role `api`, only health and metrics are served.
    Ok(if config.has(Role::Api) { api::router(app) } else { api::health_router(app) })
}

/// What the roles of this process cannot work without.
fn dependencies(
    config: &Config,
    store: &Store,
    log: &Arc<dyn EventLog>,
    usage: &Arc<dyn UsageStore>,
) -> Vec<Dependency> {
    let mut needed = vec![Dependency::Database(store.clone()), Dependency::EventLog(log.clone())];
    // The scheduler ends windows through the log and bills their totals; events it reads only of late usage, which waits.
    if config.has(Role::Api) || config.has(Role::Ingest) {
        needed.push(Dependency::UsageStore(usage.clone()));
    }
    needed
}

async fn start_snapshots(store: &Store, running: &mut Running) -> Result<Arc<Snapshots>, Failure> {
    let snapshots =
        Snapshots::start(store).await.map_err(|error| Failure::work("reading the catalog revision", error))?;
    let fresh = snapshots.clone();
    let listener = start_job("catalog listener", move || fresh.clone().keep_fresh());
    running.add("catalog listener", || async move { listener.abort() });
    Ok(snapshots)
}

fn log_failure(doing: &'static str) -> impl Fn(LogError) -> Failure {
    move |error| Failure::work(doing, error)
}

async fn register(store: &Store, kind: RegisteredKind, name: &str, partitions: u32) -> Result<LogIdentity, Failure> {
    registry::register(store, kind, name, partitions, Clock::System.now())
        .await
        .map_err(|error| Failure::work("registering the event log", error))
}

async fn open_log(config: &Config, store: &Store) -> Result<Arc<dyn EventLog>, Failure> {
    let failed = log_failure("opening the event log");
    match config.log_kind {
        LogKind::Local => {
            let dir = config.data_dir.join("log");
            let id = LocalLog::prepare(&dir, config.partitions).map_err(&failed)?;
            let identity = register(store, RegisteredKind::Local, &id.to_string(), config.partitions).await?;
            let opened =
                tokio::task::spawn_blocking(move || LocalLog::open(&dir, identity, LocalLogOptions::default()));
            let log = opened.await.map_err(|error| Failure::work("opening the event log", error))?.map_err(&failed)?;
            Ok(Arc::new(log))
        }
        LogKind::Kafka => {
            let options =
                KafkaOptions::new(&config.kafka_brokers, &config.kafka_topic, &config.kafka_group, &config.node_name);
            let name = KafkaLog::prepare(&options, config.partitions).await.map_err(&failed)?;
            let identity = register(store, RegisteredKind::Kafka, &name, config.partitions).await?;
            let seal = registry::seal(store, &identity).await;
            let seal = seal.map_err(|error| Failure::work("opening the event log", error))?;
            Ok(Arc::new(KafkaLog::open(options, identity, seal).await.map_err(&failed)?))
        }
    }
}

/// The usage store, and the job beside it that only ClickHouse has.
///
/// # Errors
/// When ClickHouse does not answer.
pub async fn open_usage(config: &Config, store: &Store) -> Result<(Arc<dyn UsageStore>, Option<Rollups>), Failure> {
    let url = match (config.store_kind, &config.clickhouse_url) {
        (StoreKind::Clickhouse, Some(url)) => url.expose(),
        _ => return Ok((Arc::new(PostgresUsage::new(store.clone())), None)),
    };
    let address = clickhouse_address(url, &config.clickhouse_database);
    let failed = |error| Failure::work("opening ClickHouse", error);
    ClickHouseUsage::migrate(&address).await.map_err(failed)?;
    let usage = ClickHouseUsage::connect(&address, store.clone()).await.map_err(failed)?;
    let rollups = usage.rollups();
    Ok((Arc::new(usage), Some(rollups)))
}

/// User and password stand in the address, as everywhere: `http://user:password@host:8123`.
fn clickhouse_address(url: &str, database: &str) -> ClickHouseAddress {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (login, host) = rest.rsplit_once('@').map_or((None, rest), |(login, host)| (Some(login), host));
    let (user, password) = login.map_or((None, None), |login| match login.split_once(':') {
        Some((user, password)) => (Some(user.to_owned()), Some(password.to_owned())),
        None => (Some(login.to_owned()), None),
    });
    ClickHouseAddress { url: format!("{scheme}://{host}"), database: database.to_owned(), user, password }
}

async fn start_ingest(
    config: &Config,
    store: &Store,
    snapshots: &Arc<Snapshots>,
    log: &Arc<dyn EventLog>,
    usage: &Arc<dyn UsageStore>,
    registry: &prometheus::Registry,
    running: &mut Running,
) -> Result<(), Failure> {
    let horizon = chrono::TimeDelta::days(i64::from(config.dedup_horizon_days));
    let settings = ingest::partition::Settings {
        active_subscriptions_max: (config.active_subscriptions_max / config.partitions as usize).max(1),
        dedup_horizon: horizon,
        trust_topic: config.trust_topic,
        ..ingest::partition::Settings::default()
    };
    let shared = Arc::new(Shared {
        store: store.clone(),
        snapshots: snapshots.clone(),
        log: log.clone(),
        usage: usage.clone(),
        settings,
        metrics: Metrics::new(registry),
        clock: Clock::System,
        secrets: ingest::partition::Secrets::default(),
    });
    let dedup = DedupOptions { horizon, ..DedupOptions::default() };
    let ingest = Ingest::start(shared, config.data_dir.join("dedup"), dedup)
        .await
        .map_err(|error| Failure::work("starting ingest", error))?;
    running.add("ingest", || ingest.stop());
    Ok(())
}

/// What analysts read (rule C7): sums per minute and day, rated usage and breaches.
fn start_rollups(rollups: Option<Rollups>, snapshots: &Arc<Snapshots>, running: &mut Running) {
    let Some(rollups) = rollups else { return };
    let (stop, stopped) = watch::channel(false);
    let (copies, stopped_copies) = (rollups.copies(snapshots.clone()), stopped.clone());
    let copies = start_job("rated usage for analysts", move || copies.clone().run(stopped_copies.clone()));
    let sums = start_job("sums for analysts", move || rollups.clone().run(stopped.clone()));
    running.add("usage for analysts", move || async move {
        // The jobs may have ended by themselves, which is a stop as well.
        let _ = stop.send(true);
        let _ = tokio::join!(sums, copies);
    });
}

/// Captured and voided usage on its way to the log: every process takes its share.
fn start_relay(relay: &Arc<Relay>, running: &mut Running) {
    let relay = relay.clone();
    running.add_job("usage outbox", move |stopped| relay.clone().run(stopped));
}

fn start_scheduler(billing: Billing, running: &mut Running) {
    running.add_job("scheduler", move |stopped| Scheduler::new(billing.clone()).run(stopped));
}

/// Gateways and the key of their secrets: a start with another key than the database's says so.
async fn open_payments(config: &Config, store: &Store) -> Result<Payments, Failure> {
    let vault = match &config.secrets_key {
        Some(key) => Vault::from_hex(key.expose()),
        None => Vault::from_file(&config.data_dir.join("secrets.key")),
    };
    let vault = vault.map_err(|error| Failure::usage(format!("secrets_key: {error}")))?;
    vault.check(store).await.map_err(|error| Failure::work("checking secrets_key", error))?;
    let endpoints = Endpoints { stripe: config.stripe_url.clone(), gocardless: config.gocardless_url.clone() };
    Ok(Payments::new(store.clone(), vault, endpoints))
}

/// Payments whose outcome is open, and automatic top-ups.
fn start_payments(payments: Payments, running: &mut Running) {
    running.add_job("payments", move |stopped| scheduler::payments::run(payments.clone(), stopped));
}

/// Rates of the day, fetched once they are published.
fn start_exchange_rates(config: &Config, store: &Store, running: &mut Running) {
    if config.exchange_rates_url.is_empty() {
        return;
    }
    let feed = RatesFeed::new(store.clone(), &RatesOptions::new(&config.exchange_rates_url));
    let (stop, stopped) = watch::channel(false);
    let job = start_job("exchange rates", move || feed.clone().run(stopped.clone()));
    running.add("exchange rates", move || async move {
        // A document that does not come must not hold up the stop: what is taken is taken in one transaction.
        let _ = stop.send(true);
        job.abort();
    });
}

fn settings(config: &Config) -> Result<Settings, Failure> {
    let network = |ip: &std::net::IpAddr| ip.to_string().parse();
    let proxies = config.trusted_proxies.iter().map(network).collect::<Result<_, _>>();
    Ok(Settings {
        public_base_url: config.public_url.clone().unwrap_or_else(|| format!("http://{}", config.listen)),
        trusted_proxies: proxies.map_err(|_| Failure::usage("configuration: trusted_proxies: not an address"))?,
        rate_live: Rate { per_second: config.rate_live_per_second, burst: config.rate_live_burst },
        rate_sandbox: Rate { per_second: config.rate_sandbox_per_second, burst: config.rate_sandbox_burst },
        rate_ingest: Rate { per_second: config.rate_events_per_second, burst: config.rate_events_per_second },
        ..Settings::default()
    })
}

/// Billing's control records, published through the event log, and late usage from the usage store.
struct LogControl {
    controls: Controls,
    usage: Arc<dyn UsageStore>,
    snapshots: Arc<Snapshots>,
}

impl LogControl {
    async fn publish(&self, kind: ControlKind, windows: &[WindowRef]) -> domain::Result<Vec<Position>> {
        let records = windows.iter().map(|window| {
            let control = Control {
                kind,
                workspace_id: window.workspace_id,
                subscription_id: window.subscription_id,
                customer_id: window.customer_id,
                window_start: window.window_start,
                window_end: window.window_end,
                catalog_revision: 0, // set by the publisher
            };
            (window.home_partition.unsigned_abs(), control)
        });
        self.controls.publish(records).await
    }
}

#[async_trait]
impl WindowControl for LogControl {
    async fn period_end(&self, windows: &[WindowRef]) -> domain::Result<Vec<Position>> {
        self.publish(ControlKind::PeriodEnd, windows).await
    }

    async fn seal(&self, windows: &[WindowRef]) -> domain::Result<Vec<Position>> {
        self.publish(ControlKind::WindowSeal, windows).await
    }

    async fn reopen(&self, windows: &[WindowRef]) -> domain::Result<()> {
        self.publish(ControlKind::WindowReopen, windows).await.map(drop)
    }

    async fn count_late(&self, window: StoredWindow, up_to: Position) -> domain::Result<StoredWindow> {
        ingest::late::count(&self.usage, &self.snapshots, window, up_to).await
    }
}

/// Prints the OpenAPI document.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn print_openapi() -> Result<(), Failure> {
    let json =
        api::document().to_pretty_json().map_err(|error| Failure::work("writing the OpenAPI document", error))?;
    println!("{json}");
    Ok(())
}
