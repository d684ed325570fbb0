//! A workspace with a catalog, and ingest on the local log and PostgreSQL, for tests of counting.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use catalog::compiled::Snapshots;
use domain::{
    Actor, BindingId, Clock, CustomerId, Instant, MeterId, OrganizationId, PlanId, PriceId, ProductId, Scope,
    SubscriptionId, UsageEventId, VersionId, WorkspaceId, WorkspaceMode,
};
use engines::testing::TestDatabase;
use ingest::dedup::{DedupIndex, DedupOptions};
use ingest::door::{Door, Entry};
use ingest::log::local::{LocalLog, LocalLogOptions};
use ingest::log::registry::{self, LogKind};
use ingest::log::{Append, EventLog};
use ingest::metrics::Metrics;
use ingest::partition::{Settings, Shared};
use ingest::record::{Control, ControlKind, Record};
use ingest::supervisor::Ingest;
use ingest::usage::UsageStore;
use ingest::usage::clickhouse::{ClickHouseAddress, ClickHouseUsage};
use ingest::usage::postgres::PostgresUsage;
use ingest::view::{self, SubscriptionUsage};
use serde_json::{Value, json};
use store::Store;

pub const PARTITIONS: u32 = 2;

/// A workspace that sells tokens: SUM, STAIRCASE 0–1,000 at 0.10, –10,000 at 0.08, above 0.05 EUR; 100 included.
pub struct World {
    pub store: Store,
    pub snapshots: Arc<Snapshots>,
    pub log: Arc<dyn EventLog>,
    pub usage: Arc<dyn UsageStore>,
    pub door: Door,
    pub ingest: Option<Ingest>,
    pub scope: Scope,
    pub product: ProductId,
    pub customer: CustomerId,
    pub subscription: SubscriptionId,
    plan: PlanId,
    plan_version: VersionId,
    pub settings: Settings,
    dir: tempfile::TempDir,
    database: TestDatabase,
}

/// First instant of the running period of every subscription.
pub fn period_start() -> Instant {
    at("2026-01-01T00:00:00Z")
}

pub fn at(text: &str) -> Instant {
    chrono::DateTime::parse_from_rfc3339(text).expect("a timestamp").to_utc()
}

impl World {
    /// A fresh database, a fresh log, a running ingest.
    pub async fn start() -> Self {
        let mut world = Self::idle(json!({}), json!({})).await;
        world.run().await;
        world
    }

    /// The same without ingest; members of the meter's and the price's snapshot can be replaced.
    pub async fn idle(meter: Value, price: Value) -> Self {
        let database = engines::testing::database().await;
        let store = Store::connect(database.url(), 10).await.expect("the test database answers");
        let dir = tempfile::tempdir().expect("a directory");
        let log = open_log(&store, dir.path()).await;
        let snapshots = Snapshots::start(&store).await.expect("snapshots");
        let usage: Arc<dyn UsageStore> = Arc::new(PostgresUsage::new(store.clone()));
        let scope = Scope {
            organization_id: OrganizationId::generate(),
            workspace_id: WorkspaceId::generate(),
            mode: WorkspaceMode::Live,
            actor: Actor::System,
            clock: Clock::System,
        };
        let door = Door::new(store.clone(), snapshots.clone(), log.clone());
        let mut world = Self {
            store,
            snapshots,
            log,
            usage,
            door,
            ingest: None,
            scope,
            product: ProductId::generate(),
            customer: CustomerId::generate(),
            subscription: SubscriptionId::generate(),
            plan: PlanId::generate(),
            plan_version: VersionId::generate(),
            settings: Settings { checkpoint_interval: Duration::from_millis(20), ..Settings::default() },
            dir,
            database,
        };
        world.catalog(meter, price).await;
        (world.customer, world.subscription) = world.subscribe().await;
        world
    }

    /// Counted events go to ClickHouse; `None` when there is none on this machine.
    pub async fn with_clickhouse(mut self) -> Option<Self> {
        let url = engines::testing::clickhouse().await?;
        let database = format!("ingest_test_{}", uuid::Uuid::new_v4().simple());
        let address = ClickHouseAddress { url, database, user: None, password: None };
        ClickHouseUsage::migrate(&address).await.expect("ClickHouse migrates");
        self.usage =
            Arc::new(ClickHouseUsage::connect(&address, self.store.clone()).await.expect("ClickHouse answers"));
        Some(self)
    }

    /// Starts ingest.
    pub async fn run(&mut self) {
        self.run_with(self.shared()).await;
    }

    /// Starts ingest with parts of its own.
    pub async fn run_with(&mut self, shared: impl Into<Arc<Shared>>) {
        let indexes = self.dir.path().join("dedup");
        let started = Ingest::start(shared.into(), indexes, DedupOptions::default()).await;
        self.ingest = Some(started.expect("ingest starts"));
    }

    pub fn shared(&self) -> Shared {
        Shared {
            store: self.store.clone(),
            snapshots: self.snapshots.clone(),
            log: self.log.clone(),
            usage: self.usage.clone(),
            settings: self.settings.clone(),
            metrics: Metrics::new(&prometheus::Registry::new()),
            clock: Clock::System,
            secrets: Default::default(),
        }
    }

    /// Address of the database.
    pub fn database_url(&self) -> &str {
        self.database.url()
    }

    /// Ends ingest and the log, gracefully or as a crash would, and opens the log again.
    pub async fn restart(&mut self, gracefully: bool) {
        if gracefully {
            self.ingest.take().expect("ingest runs").stop().await;
        } else {
            self.crash().await;
        }
        self.reopen().await;
    }

    /// Ends ingest and the log as a crash would.
    pub async fn crash(&mut self) {
        self.ingest.take().expect("ingest runs").kill();
        self.log.close().await;
    }

    /// The first subscription's index of counted ids, as the next owner will find it at an instant; nobody may own it now.
    pub async fn index_at(&self, now: Instant) -> DedupIndex {
        let dir = self.dir.path().join(format!("dedup/{}-{}", self.log.identity().id, self.home()));
        let open = || DedupIndex::open(&dir, DedupOptions::default(), now);
        // Whoever was killed gives it free when his tasks are gone.
        self.eventually("the index is free", async || open().is_ok()).await;
        open().expect("the index opens")
    }

    /// Deletes the deduplication indexes, as if the partitions came from another node.
    pub fn forget_indexes(&self) {
        std::fs::remove_dir_all(self.dir.path().join("dedup")).expect("the indexes are there");
    }

    /// Goes on with a new, empty log, as when an operator moves to another one.
    pub async fn move_to_a_new_log(&mut self) {
        self.ingest.take().expect("ingest runs").stop().await;
        std::fs::remove_dir_all(self.dir.path().join("log")).expect("the log is there");
        self.reopen().await;
    }

    /// Ends the first subscription, as a cancellation does.
    pub async fn end(&self, at: &str) {
        let mut tx = self.store.begin("ending a subscription").await.expect("a transaction");
        sqlx::query("UPDATE subscription SET ended_at = $2 WHERE id = $1")
            .bind(self.subscription)
            .bind(self::at(at))
            .execute(tx.conn())
            .await
            .expect("an end");
        tx.subscription_changed(self.scope.workspace_id, self.subscription);
        tx.commit().await.expect("a commit");
        self.snapshots.refresh().await.expect("a refresh");
    }

    /// Puts the first subscription on a test clock that shows an instant.
    pub async fn live_on_a_test_clock(&self, frozen_at: &str) {
        let (clock, w, subscription) = (uuid::Uuid::now_v7(), self.scope.workspace_id, self.subscription);
        self.execute(&format!(
            "INSERT INTO test_clock (id, workspace_id, frozen_at, status, created_at, updated_at)
             VALUES ('{clock}', '{w}', '{frozen_at}', 'active', now(), now());
             UPDATE subscription SET test_clock_id = '{clock}' WHERE id = '{subscription}'"
        ))
        .await;
    }

    /// Opens the log again and starts ingest.
    pub async fn reopen(&mut self) {
        self.reopen_log().await;
        self.run().await;
    }

    /// Opens the log again: nobody counts until [`World::run`].
    pub async fn reopen_log(&mut self) {
        let empty: Arc<dyn EventLog> = Arc::new(Closed(self.log.identity().clone()));
        self.log = empty.clone();
        self.door = Door::new(self.store.clone(), self.snapshots.clone(), empty);
        self.log = open_log_when_free(&self.store, self.dir.path()).await;
        self.door = Door::new(self.store.clone(), self.snapshots.clone(), self.log.clone());
    }

    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(self.store.pool()).await.expect("a fixture");
    }

    async fn version(&self, id: VersionId, entity_type: &str, entity_id: uuid::Uuid, snapshot: Value) {
        sqlx::query(
            "INSERT INTO entity_version (id, workspace_id, entity_type, entity_id, version, status, created_at, snapshot)
             VALUES ($1, $2, $3, $4, 1, 'active', now(), $5)",
        )
        .bind(id)
        .bind(self.scope.workspace_id)
        .bind(entity_type)
        .bind(entity_id)
        .bind(snapshot)
        .execute(self.store.pool())
        .await
        .expect("a version");
    }

    /// A further meter of the workspace, bound to nothing.
    pub async fn meter(&self, key: &str, function: &str) {
        let (o, w, meter) = (self.scope.organization_id, self.scope.workspace_id, MeterId::generate());
        self.execute(&format!(
            "INSERT INTO meter (id, organization_id, workspace_id, key, name, metric_key, function, \"window\", status, version,
                 created_at, updated_at)
             VALUES ('{meter}', '{o}', '{w}', '{key}', '{key}', '{key}', '{function}', '{{}}', 'active', 1, now(), now());"
        ))
        .await;
        let window = json!({"kind": "BILLING_PERIOD"});
        let snapshot = json!({"function": function, "late_event_policy": "NEXT_PERIOD", "window": window});
        self.version(VersionId::generate(), "meter", meter.0, snapshot).await;
    }

    async fn catalog(&self, meter_members: Value, price_members: Value) {
        let (o, w, product, plan) = (self.scope.organization_id, self.scope.workspace_id, self.product, self.plan);
        let (meter, binding, price) = (MeterId::generate(), BindingId::generate(), PriceId::generate());
        self.execute(&format!(
            "INSERT INTO organization (id, name, created_at, updated_at) VALUES ('{o}', 'Test', now(), now());
             INSERT INTO workspace VALUES ('{w}', '{o}', 'Test', 'live', decode('00112233', 'hex'), now());
             INSERT INTO product (id, organization_id, workspace_id, name, type, pricing_model, tax_category, supply_type, status,
                 unmatched_price_key_policy, version, created_at, updated_at)
             VALUES ('{product}', '{o}', '{w}', 'Tokens', 'USAGE', 'STAIRCASE', 'DEFAULT', 'SERVICES', 'published', 'reject', 1,
                 now(), now());
             INSERT INTO plan (id, organization_id, workspace_id, name, status, version, created_at, updated_at)
             VALUES ('{plan}', '{o}', '{w}', 'Plan', 'published', 1, now(), now());
             INSERT INTO meter (id, organization_id, workspace_id, key, name, metric_key, function, \"window\", status, version,
                 created_at, updated_at)
             VALUES ('{meter}', '{o}', '{w}', 'tokens', 'Tokens', 'tokens', 'SUM', '{{}}', 'active', 1, now(), now());
             INSERT INTO product_meter_binding (id, organization_id, workspace_id, product_id, meter_id, role, metric_key, version,
                 status, created_at, updated_at)
             VALUES ('{binding}', '{o}', '{w}', '{product}', '{meter}', 'PRIMARY', 'tokens', 1, 'active', now(), now());
             INSERT INTO price (id, organization_id, workspace_id, product_id, currency, kind, status, tiers, version, created_at,
                 updated_at)
             VALUES ('{price}', '{o}', '{w}', '{product}', 'EUR', 'BASE', 'active', '[]', 1, now(), now());"
        ))
        .await;
        let mut snapshot = json!({
            "function": "SUM", "late_event_policy": "NEXT_PERIOD", "window": {"kind": "BILLING_PERIOD"},
            "thresholds": [
                {"name": "80", "comparator": "GTE", "value": "80", "basis": "ABSOLUTE", "rearm": false,
                 "actions": [{"kind": "WEBHOOK", "event_type": "meter.threshold_breached"}]},
                {"name": "100", "comparator": "GTE", "value": "100", "basis": "ABSOLUTE", "rearm": false,
                 "actions": [{"kind": "WEBHOOK", "event_type": "meter.threshold_breached"}]},
            ],
        });
        merge(&mut snapshot, meter_members);
        self.version(VersionId::generate(), "meter", meter.0, snapshot).await;
        let binding_snapshot = json!({"role": "PRIMARY", "multiplier": "1", "thresholds": []});
        self.version(VersionId::generate(), "binding", binding.0, binding_snapshot).await;
        let tier = |order: u32, up_to: Value, rate: &str| json!({"tier_order": order, "up_to": up_to, "unit_amount": rate, "flat_amount": "0"});
        let mut tiers = json!({"tiers": [tier(1, json!("1000"), "0.10"), tier(2, json!("10000"), "0.08"), tier(3, Value::Null, "0.05")]});
        merge(&mut tiers, price_members);
        self.version(VersionId::generate(), "price", price.0, tiers).await;
        let snapshot =
            json!({"products": [{"product_id": product, "included_quantity": "100", "overage_policy": "CHARGE"}]});
        self.version(self.plan_version, "plan", plan.0, snapshot).await;
    }

    /// A further SUM meter of the product, over another metric; members of its snapshot can be replaced. Before the catalog
    /// is read for the first time.
    pub async fn bind_meter(&self, metric_key: &str, meter_members: Value) {
        self.bind(metric_key, metric_key, "PRIMARY", meter_members).await;
    }

    /// A further meter over the usage of the product that is shown only.
    pub async fn watch(&self, key: &str, meter_members: Value) -> BindingId {
        self.bind(key, "tokens", "INFORMATIONAL", meter_members).await
    }

    async fn bind(&self, key: &str, metric_key: &str, role: &str, meter_members: Value) -> BindingId {
        let (o, w, product) = (self.scope.organization_id, self.scope.workspace_id, self.product);
        let (meter, binding) = (MeterId::generate(), BindingId::generate());
        self.execute(&format!(
            "INSERT INTO meter (id, organization_id, workspace_id, key, name, metric_key, function, \"window\", status, version,
                 created_at, updated_at)
             VALUES ('{meter}', '{o}', '{w}', '{key}', '{key}', '{metric_key}', 'SUM', '{{}}', 'active', 1, now(), now());
             INSERT INTO product_meter_binding (id, organization_id, workspace_id, product_id, meter_id, role, metric_key, version,
                 status, created_at, updated_at)
             VALUES ('{binding}', '{o}', '{w}', '{product}', '{meter}', '{role}', '{metric_key}', 1, 'active', now(), now());"
        ))
        .await;
        let mut snapshot =
            json!({"function": "SUM", "late_event_policy": "NEXT_PERIOD", "window": {"kind": "BILLING_PERIOD"}});
        merge(&mut snapshot, meter_members);
        self.version(VersionId::generate(), "meter", meter.0, snapshot).await;
        let snapshot = json!({"role": role, "multiplier": "1", "thresholds": []});
        self.version(VersionId::generate(), "binding", binding.0, snapshot).await;
        binding
    }

    /// A further customer with a monthly subscription that began on 2026-01-01.
    pub async fn subscribe(&self) -> (CustomerId, SubscriptionId) {
        let (customer, subscription) = (CustomerId::generate(), SubscriptionId::generate());
        let (o, w, plan, version) = (self.scope.organization_id, self.scope.workspace_id, self.plan, self.plan_version);
        let home = domain::home::partition(customer, PARTITIONS);
        let (item, wallet, product) = (uuid::Uuid::now_v7(), uuid::Uuid::now_v7(), self.product);
        self.execute(&format!(
            "INSERT INTO customer (id, organization_id, workspace_id, email, name, customer_type, billing_model, mode, status,
                 created_at, updated_at)
             VALUES ('{customer}', '{o}', '{w}', 'a@example.com', 'A', 'BUSINESS', 'POSTPAID', 'POSTPAID', 'ACTIVE', now(), now());
             INSERT INTO wallet (id, organization_id, workspace_id, customer_id, currency, is_primary, created_at, updated_at)
             VALUES ('{wallet}', '{o}', '{w}', '{customer}', 'EUR', true, now(), now());
             INSERT INTO subscription (id, organization_id, workspace_id, customer_id, home_partition, plan_id, plan_version,
                 plan_version_id, currency, billing_interval_unit, billing_interval_count, billing_anchor_day, billing_timing,
                 timezone, auto_renew, started_at, first_period_start, status, created_at, updated_at)
             VALUES ('{subscription}', '{o}', '{w}', '{customer}', {home}, '{plan}', 1, '{version}', 'EUR', 'monthly', 1, 1,
                 'IN_ARREARS', 'UTC', true, '2026-01-01Z', '2026-01-01Z', 'ACTIVE', now(), now());
             INSERT INTO subscription_item (id, workspace_id, subscription_id, product_id, charge_kind, billing_timing, added_at,
                 created_at, updated_at)
             VALUES ('{item}', '{w}', '{subscription}', '{product}', 'USAGE', 'IN_ARREARS', '2026-01-01Z', now(), now());"
        ))
        .await;
        (customer, subscription)
    }

    /// A further customer whose events have another home than the first one's.
    pub async fn subscribe_elsewhere(&self) -> (CustomerId, SubscriptionId) {
        self.subscribe_where(|home| home != self.home()).await
    }

    /// A further customer whose events have the first one's home.
    pub async fn subscribe_beside(&self) -> (CustomerId, SubscriptionId) {
        self.subscribe_where(|home| home == self.home()).await
    }

    async fn subscribe_where(&self, fits: impl Fn(u32) -> bool) -> (CustomerId, SubscriptionId) {
        loop {
            let (customer, subscription) = self.subscribe().await;
            if fits(domain::home::partition(customer, PARTITIONS)) {
                return (customer, subscription);
            }
        }
    }

    /// An event of the first subscription.
    pub fn event(&self, key: &str, quantity: impl Into<Value>, timestamp: &str) -> Value {
        json!({
            "customer_id": self.customer, "subscription_id": self.subscription, "product_id": self.product,
            "metric_key": "tokens", "quantity": quantity.into(), "timestamp": timestamp, "idempotency_key": key,
        })
    }

    /// Sends events through the door.
    pub async fn send(&self, events: &[Value]) -> Vec<Entry> {
        let texts: Vec<String> = events.iter().map(Value::to_string).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        self.door.accept(&self.scope, &texts).await.expect("the door is open")
    }

    /// Sends events that must all be accepted.
    pub async fn accept(&self, events: &[Value]) -> Vec<UsageEventId> {
        let accepted = self.send(events).await.into_iter().map(|entry| match entry {
            Entry::Accepted(id) => id,
            other => panic!("must be accepted: {other:?}"),
        });
        accepted.collect()
    }

    pub async fn usage_at(&self, subscription: SubscriptionId, instant: Instant) -> SubscriptionUsage {
        view::subscription_usage(&self.store, &self.snapshots, &self.scope, subscription, Some(instant))
            .await
            .expect("usage can be read")
    }

    /// Waits until every record of the log is in a checkpoint.
    pub async fn settle(&self) {
        for partition in 0..PARTITIONS {
            let end = self.log.end(partition).await.expect("an end");
            self.eventually("the log is counted", async || {
                let next: Option<i64> = sqlx::query_scalar(
                    "SELECT next_offset FROM partition_checkpoint WHERE log_id = $1 AND partition = $2",
                )
                .bind(self.log.identity().id)
                .bind(partition.cast_signed())
                .fetch_optional(self.store.pool())
                .await
                .expect("a checkpoint");
                next.unwrap_or(0).unsigned_abs() >= end
            })
            .await;
        }
    }

    /// Looks again until it holds.
    pub async fn eventually(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !holds().await {
            assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Quantity, counted events and amount of the first subscription's window at an instant.
    pub async fn totals(&self, instant: Instant) -> (String, u64, String) {
        self.totals_of(self.subscription, instant).await
    }

    pub async fn totals_of(&self, subscription: SubscriptionId, instant: Instant) -> (String, u64, String) {
        let usage = self.usage_at(subscription, instant).await;
        usage.metrics.first().map_or(("0".into(), 0, "0.00 EUR".into()), |metric| {
            (metric.quantity.to_string(), metric.event_count, metric.estimated_amount.to_string())
        })
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(self.store.pool()).await.expect("a count")
    }

    /// Publishes a control record for the first subscription's window.
    pub async fn control(&self, kind: ControlKind, start: &str, end: &str) {
        self.control_of((self.customer, self.subscription), kind, start, end).await;
    }

    pub async fn control_of(
        &self,
        (customer_id, subscription_id): (CustomerId, SubscriptionId),
        kind: ControlKind,
        start: &str,
        end: &str,
    ) {
        let control = Control {
            kind,
            workspace_id: self.scope.workspace_id,
            subscription_id,
            customer_id,
            window_start: at(start),
            window_end: at(end),
            catalog_revision: self.snapshots.revision(),
        };
        let partition = domain::home::partition(customer_id, PARTITIONS);
        self.append(partition, Record::Control(control)).await;
    }

    /// Puts a record into the log past the door.
    pub async fn append(&self, partition: u32, record: Record) {
        self.append_raw(partition, record.encode()).await;
    }

    pub async fn append_raw(&self, partition: u32, payload: bytes::Bytes) {
        for outcome in self.log.append(vec![Append { partition, payload }]).await {
            outcome.expect("durable");
        }
    }

    pub fn home(&self) -> u32 {
        domain::home::partition(self.customer, PARTITIONS)
    }
}

fn merge(target: &mut Value, members: Value) {
    if let (Some(target), Value::Object(members)) = (target.as_object_mut(), members) {
        target.extend(members);
    }
}

async fn open_log(store: &Store, dir: &Path) -> Arc<dyn EventLog> {
    Arc::new(try_open(store, dir).await.expect("the log opens"))
}

async fn try_open(store: &Store, dir: &Path) -> Result<LocalLog, ingest::log::LogError> {
    let dir = dir.join("log");
    let id = LocalLog::prepare(&dir, PARTITIONS)?;
    let identity = registry::register(store, LogKind::Local, &id.to_string(), PARTITIONS, Clock::System.now())
        .await
        .expect("the log is registered");
    let options = LocalLogOptions { segment_bytes: 1 << 20, ..LocalLogOptions::default() };
    LocalLog::open(&dir, identity, options)
}

/// The threads of the log before it give its lock back when they are through.
async fn open_log_when_free(store: &Store, dir: &Path) -> Arc<dyn EventLog> {
    for _ in 0..1_000 {
        if let Ok(log) = try_open(store, dir).await {
            return Arc::new(log);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    open_log(store, dir).await
}

/// Stands in while a log is being opened again.
struct Closed(ingest::log::LogIdentity);

#[async_trait::async_trait]
impl EventLog for Closed {
    fn identity(&self) -> &ingest::log::LogIdentity {
        &self.0
    }
    async fn ping(&self) -> Result<(), ingest::log::LogError> {
        Err(ingest::log::LogError::Full)
    }
    async fn append(&self, records: Vec<Append>) -> Vec<Result<u64, ingest::log::LogError>> {
        records.iter().map(|_| Err(ingest::log::LogError::Full)).collect()
    }
    async fn join(&self) -> Result<tokio::sync::mpsc::Receiver<ingest::log::Assignment>, ingest::log::LogError> {
        Err(ingest::log::LogError::Full)
    }
    async fn reader(
        &self,
        partition: u32,
        _: u64,
    ) -> Result<Box<dyn ingest::log::PartitionReader>, ingest::log::LogError> {
        Err(ingest::log::LogError::Revoked(partition))
    }
    async fn end(&self, _: u32) -> Result<u64, ingest::log::LogError> {
        Ok(0)
    }
    async fn passed(&self, _: u32, _: u64) {}
    async fn close(&self) {}
}
