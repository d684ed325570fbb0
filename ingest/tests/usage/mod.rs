//! What the tests of the usage stores stand on: a store over a database of its own, events, and a model to compare with.

mod days;
mod lost_answers;
mod proxy;
mod rates;
mod rollups;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta};
use domain::{
    Actor, Clock, CustomerId, Instant, OrganizationId, Position, ProductId, Quantity, Scope, SubscriptionId,
    UsageEvent, UsageEventId, WorkspaceId, WorkspaceMode,
};
use engines::testing::{self, TestDatabase};
use ingest::usage::clickhouse::{ClickHouseAddress, ClickHouseUsage};
use ingest::usage::postgres::PostgresUsage;
use ingest::usage::{CountedEvent, CountedWindow, UsageStore};
use store::Store;
use uuid::Uuid;

/// Partition of most test events.
pub const PARTITION: u32 = 3;

/// A usage store and the database beside it.
pub struct Bed {
    pub usage: Arc<dyn UsageStore>,
    pub store: Store,
    /// Where ClickHouse is, if the store is there.
    pub clickhouse: Option<ClickHouseAddress>,
    pub people: People,
    _database: TestDatabase,
}

/// Who appears in the tests: two customers of one workspace with two subscriptions each, and a neighbour.
#[derive(Clone, Copy)]
pub struct People {
    pub scope: Scope,
    pub stranger: Scope,
    pub customers: [CustomerId; 2],
    /// The first two are the first customer's.
    pub subscriptions: [SubscriptionId; 4],
    pub products: [ProductId; 2],
}

impl Bed {
    pub async fn postgres() -> Option<Self> {
        let (database, store) = database().await;
        let usage: Arc<dyn UsageStore> = Arc::new(PostgresUsage::new(store.clone()));
        Some(Self::over(usage, None, database, store).await)
    }

    /// `None` when there is no ClickHouse on this machine.
    pub async fn clickhouse() -> Option<Self> {
        let url = testing::clickhouse().await?;
        Some(Self::clickhouse_at(&url, &url).await)
    }

    /// A store that reaches ClickHouse at `via`, with tables made at `url`.
    pub async fn clickhouse_at(url: &str, via: &str) -> Self {
        let (database, store) = database().await;
        let name = format!("usage_test_{}", Uuid::new_v4().simple());
        let address = ClickHouseAddress { url: url.to_owned(), database: name, user: None, password: None };
        ClickHouseUsage::migrate(&address).await.unwrap();
        ClickHouseUsage::migrate(&address).await.unwrap(); // may be repeated
        let through = ClickHouseAddress { url: via.to_owned(), ..address.clone() };
        let usage = ClickHouseUsage::connect(&through, store.clone()).await.unwrap();
        Self::over(Arc::new(usage), Some(address), database, store).await
    }

    async fn over(
        usage: Arc<dyn UsageStore>,
        clickhouse: Option<ClickHouseAddress>,
        database: TestDatabase,
        store: Store,
    ) -> Self {
        let people = people();
        for (index, subscription) in people.subscriptions.iter().enumerate() {
            subscribe(&store, people.scope, people.customers[index / 2], *subscription).await;
        }
        usage.taken(PARTITION).await.unwrap();
        Self { usage, store, clickhouse, people, _database: database }
    }

    /// As a partition does: durable first, then in the checkpoint.
    pub async fn write(&self, rows: &[CountedEvent]) {
        self.write_to(PARTITION, rows).await;
    }

    pub async fn write_to(&self, partition: u32, rows: &[CountedEvent]) {
        self.usage.append(partition, rows).await.unwrap();
        let mut tx = self.store.begin("test checkpoint").await.unwrap();
        self.usage.append_in_checkpoint(&mut tx, rows).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub async fn void(&self, row: &CountedEvent, at: Instant) {
        sqlx::query(
            "INSERT INTO usage_void (event_id, partition, position, workspace_id, reason, voided_at)
             VALUES ($1, $2, $3, $4, 'it''s wrong', $5)",
        )
        .bind(row.event.id)
        .bind(i16::try_from(row.partition).unwrap())
        .bind(row.position.as_i64())
        .bind(self.people.scope.workspace_id)
        .bind(at)
        .execute(self.store.pool())
        .await
        .unwrap();
    }

    /// [`UsageStore::twins`] of windows of the first workspace.
    pub async fn twins(&self, windows: &[(SubscriptionId, Instant)], event_count: u64) -> Vec<CountedEvent> {
        let workspace_id = self.people.scope.workspace_id;
        let window = |(subscription_id, window_start): &(SubscriptionId, Instant)| CountedWindow {
            workspace_id,
            subscription_id: *subscription_id,
            window_start: *window_start,
            event_count,
        };
        let mut tx = self.store.begin("test comparison").await.unwrap();
        self.usage.twins(&mut tx, &windows.iter().map(window).collect::<Vec<_>>()).await.unwrap()
    }

    /// Statements on PostgreSQL.
    pub async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(self.store.pool()).await.unwrap();
    }

    /// A number from PostgreSQL.
    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(self.store.pool()).await.unwrap()
    }

    /// ClickHouse itself, not through the store.
    pub fn clickhouse_client(&self) -> clickhouse::Client {
        let address = self.clickhouse.as_ref().expect("a test of ClickHouse");
        clickhouse::Client::default().with_url(&address.url).with_database(&address.database)
    }

    /// A number from ClickHouse itself.
    pub async fn clickhouse_number(&self, sql: &str) -> u64 {
        self.clickhouse_client().query(sql).fetch_one().await.unwrap()
    }
}

impl Bed {
    /// An invoice over the month from `period` with one line over that from `charged`; a draft without a number.
    pub async fn invoice(
        &self,
        period: &str,
        number: Option<i64>,
        charge_kind: &str,
        charged: &str,
    ) -> domain::InvoiceId {
        let id = domain::InvoiceId::generate();
        let mut tx = self.store.begin("test invoice").await.unwrap();
        sqlx::query("SET LOCAL session_replication_role = replica").execute(tx.conn()).await.unwrap();
        sqlx::query(
            "INSERT INTO invoice (id, organization_id, workspace_id, customer_id, subscription_id, invoice_type, status, currency,
                subtotal, total, amount_due, billing_period_start, billing_period_end, billing_reason, invoice_number,
                sequence_number, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, 'subscription', CASE WHEN $7::bigint IS NULL THEN 'draft' ELSE 'finalized' END, 'EUR',
                0, 0, 0, $6::text::timestamptz, $6::text::timestamptz + interval '1 month', 'renewal', 'INV-' || $7, $7, now(),
                now())",
        )
        .bind(id)
        .bind(self.people.scope.organization_id)
        .bind(self.people.scope.workspace_id)
        .bind(self.people.customers[0])
        .bind(self.people.subscriptions[0])
        .bind(format!("{period}Z"))
        .bind(number)
        .execute(tx.conn())
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO invoice_line (id, workspace_id, invoice_id, position, line_type, charge_kind, description, quantity,
                unit_amount, amount, total, period_start, tax_category_code)
             VALUES (gen_random_uuid(), $1, $2, 1, 'USAGE', $3, 'x', 1, 1, 1, 1, $4::text::timestamptz, 'O')",
        )
        .bind(self.people.scope.workspace_id)
        .bind(id)
        .bind(charge_kind)
        .bind(format!("{charged}Z"))
        .execute(tx.conn())
        .await
        .unwrap();
        tx.commit().await.unwrap();
        id
    }
}

impl Drop for Bed {
    // Failing is no matter: the data of the tests' engine is thrown away with it.
    fn drop(&mut self) {
        let Some(address) = self.clickhouse.take() else { return };
        let dropping = std::thread::spawn(move || {
            let client = clickhouse::Client::default().with_url(&address.url);
            let sql = format!("DROP DATABASE IF EXISTS {}", address.database);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let _ = runtime.map(|runtime| runtime.block_on(client.query(&sql).execute()));
        });
        let _ = dropping.join();
    }
}

async fn database() -> (TestDatabase, Store) {
    let database = testing::database().await;
    let store = Store::connect(database.url(), 10).await.unwrap();
    (database, store)
}

fn people() -> People {
    let scope = |workspace| Scope {
        organization_id: OrganizationId(Uuid::from_u128(1)),
        workspace_id: WorkspaceId(workspace),
        mode: WorkspaceMode::Live,
        actor: Actor::System,
        clock: Clock::At(instant("2026-06-01T00:00:00Z")),
    };
    People {
        scope: scope(Uuid::from_u128(2)),
        stranger: scope(Uuid::from_u128(3)),
        customers: [CustomerId(Uuid::from_u128(10)), CustomerId(Uuid::from_u128(11))],
        subscriptions: [20, 21, 22, 23].map(|id| SubscriptionId(Uuid::from_u128(id << 64 | 7))),
        products: [ProductId(Uuid::from_u128(30)), ProductId(Uuid::from_u128(31))],
    }
}

/// A subscription without the catalog around it, which no usage store looks at.
pub async fn subscribe(store: &Store, scope: Scope, customer: CustomerId, subscription: SubscriptionId) {
    let mut tx = store.begin("test subscription").await.unwrap();
    sqlx::query("SET LOCAL session_replication_role = replica").execute(tx.conn()).await.unwrap();
    sqlx::query(
        "INSERT INTO subscription (id, organization_id, workspace_id, customer_id, home_partition, plan_id, plan_version,
            plan_version_id, currency, billing_interval_unit, billing_interval_count, billing_anchor_day, billing_timing,
            timezone, auto_renew, started_at, first_period_start, status, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 3, $1, 1, $1, 'EUR', 'monthly', 1, 1, 'IN_ARREARS', 'UTC', true, $5, $5, 'ACTIVE', $5, $5)",
    )
    .bind(subscription)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(customer)
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

pub fn instant(text: &str) -> Instant {
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

pub fn quantity(text: &str) -> Quantity {
    Quantity::parse(text).unwrap()
}

impl People {
    /// A plain event at an offset; tests change what they are about.
    pub fn event(&self, offset: u64, timestamp: Instant) -> CountedEvent {
        let key = format!("key-{offset}");
        let event = UsageEvent {
            id: UsageEventId::of(self.scope.workspace_id, &key),
            workspace_id: self.scope.workspace_id,
            customer_id: self.customers[0],
            subscription_id: self.subscriptions[0],
            product_id: self.products[0],
            metric_key: "api_calls".into(),
            quantity: Quantity::ONE,
            timestamp,
            idempotency_key: key,
            price_key: None,
            price_key_remapped: false,
            external_cost: None,
            wallet_currency: None,
            hold_id: None,
            dimension_vars: Default::default(),
            pricing_vars: Default::default(),
            accepted_at: timestamp + TimeDelta::seconds(1),
            catalog_revision: 0,
        };
        counted(event, offset)
    }

    /// Events that differ in everything a list or a sum looks at, some at the same instant, over five weeks.
    pub fn crowd(&self, count: u64) -> Vec<CountedEvent> {
        let begin = instant("2026-04-27T00:00:00Z");
        (0..count)
            .map(|n| {
                // A fixed scatter: 7,919 is prime.
                let minutes = i64::try_from(n * 7_919 % 50_400).unwrap();
                let mut row = self.event(n + 1, begin + TimeDelta::minutes(minutes / 10 * 10));
                let pick = usize::try_from(n * 31 % 97).unwrap();
                row.event.subscription_id = self.subscriptions[pick % 4];
                row.event.customer_id = self.customers[pick % 4 / 2];
                row.event.product_id = self.products[pick % 2];
                row.event.metric_key = ["api_calls", "storage_gb", "o'clock \"x\""][pick % 3].into();
                row.event.quantity = quantity(["1", "2.5", "0.000000000001", "999999999999999.999999999999"][pick % 4]);
                if pick % 5 > 0 {
                    let region = ["eu", "us", "Größe \u{1F600}\n\t\"\\", "2.5"][pick % 5 - 1];
                    row.event.dimension_vars.insert("region".into(), domain::event::VarValue::Text(region.into()));
                }
                if n % 40 == 39 {
                    // Backfilled: accepted weeks after it happened.
                    row.event.accepted_at = instant("2026-06-03T10:00:00Z");
                }
                counted(row.event, n + 1)
            })
            .collect()
    }
}

/// Counted at an offset of the first log, in the window of its month.
pub fn counted(event: impl Into<Box<UsageEvent>>, offset: u64) -> CountedEvent {
    let event = event.into();
    CountedEvent {
        window_start: instant(&event.timestamp.format("%Y-%m-01T00:00:00Z").to_string()),
        late: false,
        partition: PARTITION,
        position: position(offset),
        payload_hash: event.payload_hash(),
        event,
    }
}

pub fn position(offset: u64) -> Position {
    Position::new(1, offset)
}
