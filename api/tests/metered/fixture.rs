//! A sandbox that sells units at 0.10, with ingest on the local log.

use std::sync::Arc;
use std::time::Duration;

use api::App;
use api::app::Engine;
pub use api::testing::id;
use api::testing::{Client, Reply, TestApi, settings};
use async_trait::async_trait;
use billing::Billing;
use billing::control::{WindowControl, WindowRef};
use catalog::compiled::{Snapshots, StoredWindow};
use domain::{Clock, Position, Result};
use futures::StreamExt;
use ingest::control::Controls;
use ingest::dedup::DedupOptions;
use ingest::door::Door;
use ingest::log::EventLog;
use ingest::log::local::{LocalLog, LocalLogOptions};
use ingest::log::registry::{self, LogKind};
use ingest::metrics::Metrics;
use ingest::outbox::Relay;
use ingest::partition::{Settings, Shared};
use ingest::record::{Control, ControlKind};
use ingest::reserve::ReservationDesk;
use ingest::supervisor::Ingest;
use ingest::usage::UsageStore;
use ingest::usage::clickhouse::{ClickHouseAddress, ClickHouseUsage, Rollups};
use ingest::usage::postgres::PostgresUsage;
use serde_json::{Value, json};
use store::Groups;
use tokio::sync::watch;

const PARTITIONS: u32 = 2;
/// Where every test clock begins.
pub const START: &str = "2026-01-01T00:00:00Z";

/// The API with a running ingest.
pub struct Site {
    pub api: TestApi,
    ingest: Option<Ingest>,
    dir: tempfile::TempDir,
    stop: watch::Sender<bool>,
    /// Where counted events are, if not in PostgreSQL.
    clickhouse: Option<ClickHouseAddress>,
}

/// Billing's control records on their way into the log, as the server ties them.
struct LogControl(Controls, Arc<dyn UsageStore>, Arc<Snapshots>);

impl LogControl {
    async fn publish(&self, kind: ControlKind, windows: &[WindowRef]) -> Result<Vec<Position>> {
        let record = |window: &WindowRef| Control {
            kind,
            workspace_id: window.workspace_id,
            subscription_id: window.subscription_id,
            customer_id: window.customer_id,
            window_start: window.window_start,
            window_end: window.window_end,
            catalog_revision: 0,
        };
        self.0.publish(windows.iter().map(|window| (window.home_partition.unsigned_abs(), record(window)))).await
    }
}

#[async_trait]
impl WindowControl for LogControl {
    async fn period_end(&self, windows: &[WindowRef]) -> Result<Vec<Position>> {
        self.publish(ControlKind::PeriodEnd, windows).await
    }
    async fn seal(&self, windows: &[WindowRef]) -> Result<Vec<Position>> {
        self.publish(ControlKind::WindowSeal, windows).await
    }
    async fn reopen(&self, windows: &[WindowRef]) -> Result<()> {
        self.publish(ControlKind::WindowReopen, windows).await.map(drop)
    }
    async fn count_late(&self, window: StoredWindow, up_to: Position) -> Result<StoredWindow> {
        ingest::late::count(&self.1, &self.2, window, up_to).await
    }
}

async fn with_engine(mut app: App, dir: &std::path::Path, clickhouse: Option<&ClickHouseAddress>) -> App {
    let path = dir.join("log");
    let log_id = LocalLog::prepare(&path, PARTITIONS).unwrap();
    let (store, now) = (app.store.clone(), Clock::System.now());
    let identity = registry::register(&store, LogKind::Local, &log_id.to_string(), PARTITIONS, now).await.unwrap();
    let options = LocalLogOptions { segment_bytes: 1 << 20, ..LocalLogOptions::default() };
    let log: Arc<dyn EventLog> = Arc::new(LocalLog::open(&path, identity, options).unwrap());
    let snapshots = Snapshots::start(&store).await.unwrap();
    let usage: Arc<dyn UsageStore> = match clickhouse {
        Some(address) => Arc::new(ClickHouseUsage::connect(address, store.clone()).await.unwrap()),
        None => Arc::new(PostgresUsage::new(store.clone())),
    };
    let controls = Controls::new(log.clone(), snapshots.clone());
    let control = Arc::new(LogControl(controls, usage.clone(), snapshots.clone()));
    app.dependencies.push(api::Dependency::EventLog(log.clone()));
    app.engine = Some(Engine {
        door: Arc::new(Door::new(store.clone(), snapshots.clone(), log.clone())),
        usage,
        relay: Arc::new(Relay::new(store.clone(), log)),
        reservations: Groups::new(&store, ReservationDesk::new(snapshots.clone())),
        billing: Billing::new(store, snapshots.clone(), control),
        snapshots,
    });
    app
}

impl Site {
    /// Everything runs.
    pub async fn start() -> Self {
        Self::idle().await.running().await
    }

    /// The same with counted events in ClickHouse; `None` when there is none on this machine.
    pub async fn start_on_clickhouse() -> Option<Self> {
        let url = engines::testing::clickhouse().await?;
        let database = format!("api_test_{}", uuid::Uuid::new_v4().simple());
        let address = ClickHouseAddress { url, database, user: None, password: None };
        ClickHouseUsage::migrate(&address).await.unwrap();
        Some(Self::idle_on(Some(address)).await.running().await)
    }

    async fn running(mut self) -> Self {
        self.run_ingest().await;
        self.run_relay();
        self
    }

    /// Nothing takes the outbox to the log, and nothing counts.
    pub async fn idle() -> Self {
        Self::idle_on(None).await
    }

    async fn idle_on(clickhouse: Option<ClickHouseAddress>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let api = TestApi::start_with(settings(), |app| {
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(with_engine(app, &path, clickhouse.as_ref()))
            })
        })
        .await;
        Self { api, ingest: None, dir, stop: watch::Sender::new(false), clickhouse }
    }

    /// ClickHouse itself, as an analyst reads it.
    pub fn clickhouse(&self) -> clickhouse::Client {
        let address = self.clickhouse.as_ref().expect("a site on ClickHouse");
        clickhouse::Client::default().with_url(&address.url).with_database(&address.database)
    }

    /// Where ClickHouse answers, and the database.
    pub fn clickhouse_address(&self) -> (String, String) {
        let address = self.clickhouse.as_ref().expect("a site on ClickHouse");
        (address.url.clone(), address.database.clone())
    }

    /// The jobs for analysts.
    pub async fn rollups(&self) -> Rollups {
        let address = self.clickhouse.as_ref().expect("a site on ClickHouse");
        ClickHouseUsage::connect(address, self.api.app.store.clone()).await.unwrap().rollups()
    }

    pub fn engine(&self) -> &Engine {
        self.api.app.engine().unwrap()
    }

    pub fn client(&self) -> &Client {
        &self.api.sandbox
    }

    fn log(&self) -> Arc<dyn EventLog> {
        let log = self.api.app.dependencies.iter().find_map(|dependency| match dependency {
            api::Dependency::EventLog(log) => Some(log.clone()),
            _ => None,
        });
        log.unwrap()
    }

    pub async fn run_ingest(&mut self) {
        let engine = self.engine();
        let shared = Arc::new(Shared {
            store: self.api.app.store.clone(),
            snapshots: engine.snapshots.clone(),
            log: self.log(),
            usage: engine.usage.clone(),
            settings: Settings { checkpoint_interval: Duration::from_millis(20), ..Settings::default() },
            metrics: Metrics::new(&prometheus::Registry::new()),
            clock: Clock::System,
            secrets: Default::default(),
        });
        self.ingest =
            Some(Ingest::start(shared, self.dir.path().join("dedup"), DedupOptions::default()).await.unwrap());
    }

    pub fn run_relay(&self) {
        tokio::spawn(self.engine().relay.clone().run(self.stop.subscribe()));
    }

    /// Takes the seal of a window back, as billing does after a finalization that failed.
    pub async fn reopen(&self, window: WindowRef) {
        let engine = self.engine();
        let controls = Controls::new(self.log(), engine.snapshots.clone());
        LogControl(controls, engine.usage.clone(), engine.snapshots.clone()).reopen(&[window]).await.unwrap();
    }

    /// Stops what runs and checks the books.
    pub async fn end(mut self) {
        self.stop.send_replace(true);
        if let Some(ingest) = self.ingest.take() {
            ingest.stop().await;
        }
        if let Some(address) = &self.clickhouse {
            let sql = format!("DROP DATABASE {}", address.database);
            self.clickhouse().query(&sql).execute().await.unwrap();
        }
        let report = ledger::verify(&self.api.app.store, &mut |_| {}).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.differences);
    }

    /// What a query answers; 0 without a row.
    pub async fn number(&self, sql: &'static str) -> i64 {
        let found: Option<i64> = sqlx::query_scalar(sql).fetch_optional(self.api.app.store.pool()).await.unwrap();
        found.unwrap_or_default()
    }

    /// Waits until a query answers a number.
    pub async fn eventually(&self, sql: &'static str, expected: i64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let found = self.number(sql).await;
            if found == expected {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "in vain: {found}, not {expected} = {sql}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What is sold.
pub struct Offer<'a> {
    pub included: &'a str,
    /// Further allowance members of the plan's product.
    pub allowance: Value,
    pub tiers: Value,
    pub currency: &'a str,
    pub model: &'a str,
    pub function: &'a str,
    /// Further members of the meter.
    pub meter: Value,
    pub product: Value,
    pub price: Value,
    /// Price keys of further prices like it.
    pub siblings: &'a [&'a str],
    /// Members of the items, beside their product.
    pub items: Value,
    pub customer: Value,
}

impl Default for Offer<'_> {
    fn default() -> Self {
        Self {
            included: "0",
            allowance: json!({}),
            tiers: json!([{"tier_order": 1, "up_to": null, "unit_amount": "0.10", "flat_amount": "0"}]),
            currency: "EUR",
            model: "STAIRCASE",
            function: "SUM",
            meter: json!({}),
            product: json!({}),
            price: json!({}),
            siblings: &[],
            items: json!([{}]),
            customer: json!({"billing_model": "PREPAID"}),
        }
    }
}

/// A customer on a test clock with a subscription to units.
pub struct Shop {
    pub client: Client,
    pub clock: String,
    pub customer: String,
    pub subscription: String,
    pub product: String,
    pub meter: String,
    pub wallet: String,
    pub currency: String,
}

pub fn merged(mut base: Value, more: Value) -> Value {
    for (name, value) in more.as_object().into_iter().flatten() {
        base[name] = value.clone();
    }
    base
}

impl Shop {
    pub async fn open(site: &Site) -> Self {
        Self::with(site, Offer::default()).await
    }

    pub async fn with(site: &Site, offer: Offer<'_>) -> Self {
        let client = site.client().clone();
        let post = |path: String, body: Value| {
            let client = client.clone();
            async move { client.post(&path, body).await.data(201) }
        };
        let clock = id(&post("/v1/test-clocks".into(), json!({"frozen_at": START, "name": "clock"})).await);
        let product = json!({"name": "Units", "type": "USAGE", "pricing_model": offer.model});
        let product = id(&post("/v1/products".into(), merged(product, offer.product)).await);
        let meter = json!({"key": format!("m{}", product.replace('-', "")), "name": "Units", "metric_key": "units", "function": offer.function});
        let meter = id(&post("/v1/meters".into(), merged(meter, offer.meter)).await);
        let _ = post(format!("/v1/products/{product}/meter-bindings"), json!({"meter_id": meter})).await;
        let attached = merged(json!({"product_id": product, "included_quantity": offer.included}), offer.allowance);
        let plan = json!({"name": "Units", "products": [attached]});
        let plan = id(&post("/v1/plans".into(), plan).await);
        let price = json!({"product_id": product, "currency": offer.currency, "tiers": offer.tiers});
        let price = merged(price, offer.price);
        for key in offer.siblings {
            let _ = post("/v1/prices".into(), merged(price.clone(), json!({"price_key": key}))).await;
        }
        let _ = post("/v1/prices".into(), price).await;
        let _ = client.post(&format!("/v1/plans/{plan}/publish"), json!({})).await.data(200);
        site.engine().snapshots.refresh().await.unwrap();
        let body = json!({"name": "Acme", "email": "a@acme.example", "preferred_currency": offer.currency, "test_clock_id": clock});
        let customer = post("/v1/customers".into(), merged(body, offer.customer)).await;
        let wallet = id(&client.get(&format!("/v1/customers/{}/wallets", id(&customer))).await.expect(200)["data"][0]);
        let item = |item: &Value| merged(item.clone(), json!({"product_id": product}));
        let items: Vec<Value> = offer.items.as_array().into_iter().flatten().map(item).collect();
        let subscription = json!({
            "customer_id": id(&customer), "plan_id": plan, "billing_interval_unit": "monthly",
            "billing_interval_count": 1, "currency": offer.currency, "billing_timing": "IN_ARREARS", "items": items
        });
        let subscription = id(&post("/v1/subscriptions".into(), subscription).await);
        Self {
            client,
            clock,
            customer: id(&customer),
            subscription,
            product,
            meter,
            wallet,
            currency: offer.currency.to_owned(),
        }
    }

    pub async fn credit(&self, amount: &str) {
        let body = json!({"amount": {"value": amount, "currency": self.currency}});
        let _ = self.client.post(&format!("/v1/wallets/{}/credit", self.wallet), body).await.data(201);
    }

    /// Cash, held and available.
    pub async fn balances(&self) -> String {
        let wallet = self.client.get(&format!("/v1/wallets/{}", self.wallet)).await.data(200);
        let of = |name: &str| wallet[name]["value"].as_str().unwrap_or_default().to_owned();
        format!("{} / {} / {}", of("cash_balance"), of("held_balance"), of("available_balance"))
    }

    pub fn reservation(&self, key: &str, quantity: &str, more: Value) -> Value {
        let body = json!({
            "customer_id": self.customer, "subscription_id": self.subscription, "product_id": self.product,
            "metric_key": "units", "quantity": quantity, "idempotency_key": key,
        });
        merged(body, more)
    }

    pub async fn reserve(&self, key: &str, quantity: &str) -> Reply {
        self.client.post("/v1/transaction/reserve", self.reservation(key, quantity, json!({}))).await
    }

    /// Reserves one unit after the other, many of them at once; how many are held. The others must be refused for this reason.
    pub async fn reserve_at_once(&self, number: i32, refused: &str) -> i32 {
        let reserve = |number: i32| {
            let (client, body) = (self.client.clone(), self.reservation(&format!("r{number}"), "1", json!({})));
            async move { client.post("/v1/transaction/reserve", body).await }
        };
        let replies: Vec<_> = futures::stream::iter(0..number).map(reserve).buffer_unordered(32).collect().await;
        let mut held = 0;
        for reply in replies {
            match reply.status.as_u16() {
                201 => held += 1,
                _ => assert_eq!(reply.expect(200)["blocked_reasons"], json!([refused])),
            }
        }
        held
    }

    /// A hold that must be placed; its id.
    pub async fn hold(&self, key: &str, quantity: &str) -> String {
        let held = self.reserve(key, quantity).await.expect(201);
        assert_eq!((&held["status"], &held["can_proceed"]), (&json!("held"), &json!(true)), "{held}");
        held["hold_id"].as_str().unwrap().to_owned()
    }

    pub async fn capture(&self, hold: &str, body: Value) -> Reply {
        self.client.post(&format!("/v1/transaction/{hold}/capture"), body).await
    }

    pub async fn release(&self, hold: &str) -> Reply {
        self.client.post_empty(&format!("/v1/transaction/{hold}/release")).await
    }

    pub fn event(&self, key: &str, quantity: &str, more: Value) -> Value {
        let body = json!({
            "customer_id": self.customer, "subscription_id": self.subscription, "product_id": self.product,
            "metric_key": "units", "quantity": quantity, "timestamp": START, "idempotency_key": key,
        });
        merged(body, more)
    }

    /// Sends an event that must be accepted; its id.
    pub async fn send(&self, key: &str, quantity: &str) -> String {
        self.send_at(key, quantity, START).await
    }

    /// The same at another instant.
    pub async fn send_at(&self, key: &str, quantity: &str, timestamp: &str) -> String {
        let event = self.event(key, quantity, json!({"timestamp": timestamp}));
        let sent = self.client.post("/v1/usage-events", event).await.data(202);
        assert_eq!(sent["accepted"], json!(1), "{sent}");
        sent["results"][0]["id"].as_str().unwrap().to_owned()
    }

    pub async fn advance(&self, to: &str) {
        let path = format!("/v1/test-clocks/{}", self.clock);
        let reply = self.client.post(&format!("{path}/advance"), json!({"frozen_at": to})).await;
        assert!(matches!(reply.status.as_u16(), 200 | 202), "{}", reply.body);
        // On a busy machine it goes on behind the answer.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut clock = reply.body["data"].clone();
        while clock["status"] == json!("advancing") && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
            clock = self.client.get(&path).await.data(200);
        }
        assert_eq!(clock["status"], json!("active"), "{clock}");
    }

    /// Quantity, events and estimated amount of the running window.
    pub async fn used(&self) -> Option<(String, u64, String)> {
        let usage = self.client.get(&format!("/v1/subscriptions/{}/usage", self.subscription)).await.data(200);
        let metric = usage["metrics"].get(0)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let count = metric["event_count"].as_u64()?;
        Some((text(&metric["quantity"]), count, text(&metric["estimated_amount"]["value"])))
    }

    pub async fn invoices(&self) -> Vec<Value> {
        let path = format!("/v1/invoices?subscription_id={}", self.subscription);
        let heads = self.client.get(&path).await.expect(200)["data"].take();
        let mut invoices = Vec::new();
        for head in heads.as_array().into_iter().flatten() {
            invoices.push(self.client.get(&format!("/v1/invoices/{}", id(head))).await.data(200));
        }
        invoices
    }
}
