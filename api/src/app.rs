//! What every handler shares.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use access::{Authenticator, Network};
use ingest::log::EventLog;
use ingest::reserve::ReservationDesk;
use ingest::usage::UsageStore;
use ledger::wallet::WalletDesk;
use payments::Payments;
use store::{Groups, Store};

use crate::limit::{Limiter, Rate};
use crate::metrics::HttpMetrics;

/// How long `/readyz` waits for each dependency: less than orchestrators wait for `/readyz`.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// What the operator decides about the HTTP side.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What clients see before the path; stands in problem types.
    pub public_base_url: String,
    /// Peers whose `X-Forwarded-For` is believed (api-keys.md, rule 9).
    pub trusted_proxies: Vec<Network>,
    /// Requests of a live workspace.
    pub rate_live: Rate,
    /// Requests of a sandbox workspace.
    pub rate_sandbox: Rate,
    /// Usage events of a workspace.
    pub rate_ingest: Rate,
    /// Largest body, in bytes.
    pub body_bytes_max: usize,
    /// Largest body of usage ingest, in bytes (usage.md: 5 MiB).
    pub ingest_body_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            public_base_url: "http://localhost:8080".into(),
            trusted_proxies: Vec::new(),
            rate_live: Rate { per_second: 100, burst: 200 },
            rate_sandbox: Rate { per_second: 25, burst: 50 },
            rate_ingest: Rate { per_second: 200_000, burst: 200_000 },
            body_bytes_max: 1 << 20,
            ingest_body_bytes_max: 5 << 20,
        }
    }
}

/// What a process needs to do its work; `/readyz` asks it.
#[derive(Clone)]
pub enum Dependency {
    /// PostgreSQL.
    Database(Store),
    /// Where usage events become durable.
    EventLog(Arc<dyn EventLog>),
    /// Where counted events are kept.
    UsageStore(Arc<dyn UsageStore>),
}

impl Dependency {
    /// Name in answers, the same as in problem documents.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Database(_) => "database",
            Self::EventLog(_) => "event_log",
            Self::UsageStore(_) => "usage_store",
        }
    }

    /// Asks it.
    ///
    /// # Errors
    /// Why it cannot be worked with now.
    pub async fn ping(&self) -> Result<(), String> {
        let answer = async {
            match self {
                Self::Database(store) => {
                    sqlx::query("SELECT 1").execute(store.pool()).await.map(drop).map_err(|e| e.to_string())
                }
                Self::EventLog(log) => log.ping().await.map_err(|error| error.to_string()),
                Self::UsageStore(usage) => usage.ping().await.map_err(|error| error.to_string()),
            }
        };
        let late = |_| Err(format!("no answer within {} s", PING_TIMEOUT.as_secs()));
        tokio::time::timeout(PING_TIMEOUT, answer).await.unwrap_or_else(late)
    }
}

/// The parts of ingest that the API calls.
#[derive(Clone)]
pub struct Engine {
    /// Compiled catalog.
    pub snapshots: Arc<catalog::compiled::Snapshots>,
    /// Takes usage events.
    pub door: Arc<ingest::door::Door>,
    /// Counted events.
    pub usage: Arc<dyn UsageStore>,
    /// Takes what transactions want the log to have.
    pub relay: Arc<ingest::outbox::Relay>,
    /// Reserves, captures and releases.
    pub reservations: Arc<Groups<ReservationDesk>>,
    /// Subscriptions and invoices, with the way to close usage windows.
    pub billing: billing::Billing,
}

/// State of the router, shared by all requests; every one of them takes a copy.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What the state holds. Public and plain: `server` fills it before it serves; a change later is seen by the changed
/// copy alone.
#[derive(Clone)]
pub struct Parts {
    /// PostgreSQL.
    pub store: Store,
    /// The operator's choices.
    pub settings: Arc<Settings>,
    /// Keys and their cache.
    pub authenticator: Authenticator,
    /// Token buckets.
    pub limiter: Arc<Limiter>,
    /// Every metric of the process; `/metrics` prints it.
    pub registry: prometheus::Registry,
    /// Metrics of HTTP, registered there.
    pub http_metrics: HttpMetrics,
    /// What `/readyz` asks.
    pub dependencies: Vec<Dependency>,
    /// Moves money of wallets.
    pub wallets: Arc<Groups<WalletDesk>>,
    /// Gateways, payment methods, and charging.
    pub payments: Payments,
    /// Ingest; `None` where a process prints the document only, and in tests that need none.
    pub engine: Option<Engine>,
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl DerefMut for App {
    fn deref_mut(&mut self) -> &mut Parts {
        Arc::make_mut(&mut self.0)
    }
}

impl App {
    /// With the database of `payments` as its only dependency, and metrics in `registry`.
    #[must_use]
    pub fn new(payments: Payments, settings: Settings, registry: prometheus::Registry) -> Self {
        let store = payments.store.clone();
        Self(Arc::new(Parts {
            authenticator: Authenticator::new(store.clone()),
            limiter: Arc::default(),
            http_metrics: HttpMetrics::registered(&registry),
            settings: Arc::new(settings),
            dependencies: vec![Dependency::Database(store.clone())],
            wallets: Groups::new(&store, WalletDesk),
            engine: None,
            payments,
            registry,
            store,
        }))
    }

    /// Ingest.
    ///
    /// # Errors
    /// `Unavailable` in a process without it.
    pub fn engine(&self) -> domain::Result<&Engine> {
        self.engine.as_ref().ok_or_else(|| domain::Error::Unavailable {
            dependency: "event_log",
            detail: "this node has no event log".into(),
            retry_after_secs: 5,
        })
    }
}
