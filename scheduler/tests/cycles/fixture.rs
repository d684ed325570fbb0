//! A database with a sandbox, a test clock and shorthand for what tests say often. Catalog rows are written directly
//! (`db_`); everything else goes through billing.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use billing::Billing;
use billing::control::{WindowControl, WindowRef};
use billing::invoice::InvoiceDTO;
use billing::subscription::{CancelSubscriptionRequest, CreateSubscriptionRequest, SubscriptionDTO};
use catalog::compiled::{Snapshots, StoredWindow, SubscriptionTerms};
use domain::{
    Actor, Clock, Currency, CustomerId, Error, Instant, InvoiceId, OrganizationId, PlanId, Position, PriceId,
    ProductId, Quantity, Result, Scope, SubscriptionId, TestClockId, UsageEvent, UsageEventId, VersionId, WalletId,
    WorkspaceId, WorkspaceMode,
};
use engines::testing::TestDatabase;
use rating::{Target, WindowState};
use scheduler::{AdvanceTestClockRequest, Report, Scheduler, test_clock};
use serde_json::{Value, json};
use store::Store;
use uuid::Uuid;

/// Test double of the event log: what a partition does with control records, done at once on `usage_window`.
pub struct PromptLog {
    store: Store,
    /// Refuses the next seals, as a log that is down.
    pub down: Mutex<bool>,
    /// Every call, for assertions on order.
    pub calls: Mutex<Vec<(&'static str, WindowRef)>>,
}

impl PromptLog {
    async fn set(
        &self,
        call: &'static str,
        windows: &[WindowRef],
        status: &str,
        from: &[&str],
    ) -> Result<Vec<Position>> {
        if *self.down.lock().unwrap() {
            return Err(Error::Unavailable { dependency: "event_log", detail: "down".into(), retry_after_secs: 1 });
        }
        for window in windows {
            self.calls.lock().unwrap().push((call, *window));
            sqlx::query(
                "INSERT INTO usage_window (subscription_id, window_start, window_end, workspace_id, customer_id, partition,
                     status, position, event_count, state, updated_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, 1, 0, $8, now())
                 ON CONFLICT (subscription_id, window_start) DO UPDATE SET status = $7, window_end = $3
                 WHERE usage_window.status = ANY($9)",
            )
            .bind(window.subscription_id)
            .bind(window.window_start)
            .bind(window.window_end)
            .bind(window.workspace_id)
            .bind(window.customer_id)
            .bind(window.home_partition)
            .bind(status)
            .bind(WindowState::new().encode())
            .bind(from)
            .execute(self.store.pool())
            .await
            .unwrap();
        }
        Ok(vec![Position::new(1, 0); windows.len()])
    }

    /// A log whose checkpoints have always passed what was just published.
    async fn prepare(&self) {
        sqlx::raw_sql(
            "INSERT INTO event_log (id, kind, name, partitions, created_at)
             VALUES (gen_random_uuid(), 'local', 'prompt', 64, now());
             INSERT INTO partition_checkpoint (log_id, partition, epoch, next_offset, updated_at)
             SELECT id, generate_series(0, 63), 1, 1, now() FROM event_log",
        )
        .execute(self.store.pool())
        .await
        .unwrap();
    }
}

#[async_trait]
impl WindowControl for PromptLog {
    async fn period_end(&self, windows: &[WindowRef]) -> Result<Vec<Position>> {
        self.set("period_end", windows, "ended", &["open"]).await
    }
    async fn seal(&self, windows: &[WindowRef]) -> Result<Vec<Position>> {
        self.set("seal", windows, "sealed", &["open", "ended"]).await
    }
    async fn reopen(&self, windows: &[WindowRef]) -> Result<()> {
        self.set("reopen", windows, "ended", &["sealed"]).await.map(drop)
    }
    /// The totals that the test left behind: no event is stored here.
    async fn count_late(&self, window: StoredWindow, up_to: Position) -> Result<StoredWindow> {
        Ok(StoredWindow { position: up_to, ..window })
    }
}

pub struct World {
    pub store: Store,
    pub scope: Scope,
    pub clock: TestClockId,
    pub log: Arc<PromptLog>,
    pub billing: Billing,
    pub scheduler: Scheduler,
    // Dropped last: the database goes with it.
    _database: TestDatabase,
}

pub fn at(text: &str) -> Instant {
    let text = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    chrono::DateTime::parse_from_rfc3339(&text).unwrap().to_utc()
}

impl World {
    /// A sandbox whose clock stands at this instant.
    pub async fn new(frozen_at: &str) -> Self {
        Self::with(frozen_at, "UTC", json!({})).await
    }

    pub async fn with(frozen_at: &str, timezone: &str, settings: Value) -> Self {
        let database = engines::testing::database().await;
        let store = Store::connect(database.url(), 20).await.unwrap();
        let scope = workspace(&store, timezone, settings).await;
        let snapshots = Snapshots::start(&store).await.unwrap();
        let log = Arc::new(PromptLog { store: store.clone(), down: Mutex::new(false), calls: Mutex::new(Vec::new()) });
        log.prepare().await;
        let billing = Billing::new(store.clone(), snapshots, log.clone());
        let scheduler = Scheduler::new(billing.clone());
        let mut tx = store.begin("make a clock").await.unwrap();
        let request = test_clock::CreateTestClockRequest { frozen_at: at(frozen_at), name: None };
        let clock = test_clock::create(&scope, &mut tx, &request).await.unwrap().id;
        tx.commit().await.unwrap();
        Self { store, scope, clock, log, billing, scheduler, _database: database }
    }

    /// Moves the clock, running everything in between; nothing may fail.
    pub async fn advance(&self, to: &str) -> Report {
        let report = self.try_advance(to).await;
        assert_eq!((report.failed, self.errors().await), (0, Vec::new()));
        report
    }

    pub async fn try_advance(&self, to: &str) -> Report {
        self.begin_advance(to).await;
        self.scheduler.run_clock(self.clock).await.unwrap()
    }

    pub async fn begin_advance(&self, to: &str) {
        let mut tx = self.store.begin("advance").await.unwrap();
        let request = AdvanceTestClockRequest { frozen_at: at(to) };
        test_clock::begin_advance(&self.scope, &mut tx, self.clock, &request).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Does what is due at the clock's present time.
    pub async fn settle(&self) {
        let report = self.scheduler.run_due_once().await.unwrap();
        assert_eq!((report.failed, self.errors().await), (0, Vec::new()));
    }

    pub async fn errors(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT last_error FROM due_work WHERE last_error IS NOT NULL ORDER BY id")
            .fetch_all(self.store.pool())
            .await
            .unwrap()
    }

    /// A product with one open tier, in euro; `flat` for FIXED_CHARGE, a rate otherwise.
    pub async fn product(&self, kind: &str, amount: &str) -> ProductId {
        let (unit, flat) = if kind == "FIXED_CHARGE" { ("0", amount) } else { (amount, "0") };
        let tiers = json!([{"tier_order": 1, "up_to": null, "unit_amount": unit, "flat_amount": flat}]);
        self.product_with(kind, "VOLUME", "EUR", tiers).await
    }

    pub async fn product_with(&self, kind: &str, model: &str, currency: &str, tiers: Value) -> ProductId {
        let id = ProductId::generate();
        sqlx::query(
            "INSERT INTO product (id, organization_id, workspace_id, name, type, pricing_model, tax_category, supply_type,
                 status, unmatched_price_key_policy, version, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $4, $5, 'DEFAULT', 'SERVICES', 'published', 'reject', 1, now(), now())",
        )
        .bind(id)
        .bind(self.scope.organization_id)
        .bind(self.scope.workspace_id)
        .bind(kind)
        .bind(model)
        .execute(self.store.pool())
        .await
        .unwrap();
        self.db_price(id, currency, tiers).await;
        if kind == "USAGE" {
            self.db_meter(id).await;
        }
        id
    }

    pub async fn db_price(&self, product_id: ProductId, currency: &str, tiers: Value) -> PriceId {
        let id = PriceId::generate();
        let version = self.db_version("price", id.0, json!({"tiers": tiers})).await;
        sqlx::query(
            "INSERT INTO price (id, organization_id, workspace_id, product_id, currency, kind, status, tiers, version,
                 head_version_id, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, 'BASE', 'active', $6, 1, $7, now(), now())",
        )
        .bind(id)
        .bind(self.scope.organization_id)
        .bind(self.scope.workspace_id)
        .bind(product_id)
        .bind(currency)
        .bind(sqlx::types::Json(tiers))
        .bind(version)
        .execute(self.store.pool())
        .await
        .unwrap();
        id
    }

    /// A SUM meter on metric `units`, bound as PRIMARY.
    async fn db_meter(&self, product_id: ProductId) {
        let (meter, binding) = (Uuid::now_v7(), Uuid::now_v7());
        let snapshot = json!({
            "function": "SUM", "value_field": "quantity", "late_event_policy": "NEXT_PERIOD",
            "window": {"kind": "BILLING_PERIOD"}
        });
        self.db_version("meter", meter, snapshot).await;
        self.db_version("binding", binding, json!({"role": "PRIMARY", "multiplier": "1"})).await;
        sqlx::query(
            "INSERT INTO meter (id, organization_id, workspace_id, key, name, metric_key, function, \"window\", status, version,
                 created_at, updated_at)
             VALUES ($1, $2, $3, $4, 'Units', 'units', 'SUM', '{}', 'active', 1, now(), now())",
        )
        .bind(meter)
        .bind(self.scope.organization_id)
        .bind(self.scope.workspace_id)
        .bind(meter.to_string())
        .execute(self.store.pool())
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO product_meter_binding (id, organization_id, workspace_id, product_id, meter_id, role, metric_key,
                 version, status, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, 'PRIMARY', 'units', 1, 'active', now(), now())",
        )
        .bind(binding)
        .bind(self.scope.organization_id)
        .bind(self.scope.workspace_id)
        .bind(product_id)
        .bind(meter)
        .execute(self.store.pool())
        .await
        .unwrap();
    }

    async fn db_version(&self, entity_type: &str, entity_id: Uuid, snapshot: Value) -> VersionId {
        let id = VersionId::generate();
        sqlx::query(
            "INSERT INTO entity_version (id, workspace_id, entity_type, entity_id, version, status, created_at, snapshot)
             VALUES ($1, $2, $3, $4, 1, 'active', now(), $5)",
        )
        .bind(id)
        .bind(self.scope.workspace_id)
        .bind(entity_type)
        .bind(entity_id)
        .bind(sqlx::types::Json(snapshot))
        .execute(self.store.pool())
        .await
        .unwrap();
        id
    }

    /// A published plan of these products, with what each includes.
    pub async fn plan(&self, products: &[(ProductId, &str)]) -> PlanId {
        let id = PlanId::generate();
        let product = |(product_id, included): &(ProductId, &str)| json!({"product_id": product_id, "included_quantity": included, "overage_policy": "CHARGE"});
        let snapshot = json!({"products": products.iter().map(product).collect::<Vec<_>>()});
        let version = self.db_version("plan", id.0, snapshot).await;
        sqlx::query(
            "INSERT INTO plan (id, organization_id, workspace_id, name, status, version, head_version_id, created_at, updated_at)
             VALUES ($1, $2, $3, 'Plan', 'published', 1, $4, now(), now())",
        )
        .bind(id)
        .bind(self.scope.organization_id)
        .bind(self.scope.workspace_id)
        .bind(version)
        .execute(self.store.pool())
        .await
        .unwrap();
        let mut tx = self.store.begin("change the catalog").await.unwrap();
        tx.catalog_changed(self.scope.workspace_id);
        tx.commit().await.unwrap();
        id
    }

    /// A customer on the clock.
    pub async fn customer(&self) -> CustomerId {
        let id = CustomerId::generate();
        sqlx::query(
            "INSERT INTO customer (id, organization_id, workspace_id, email, name, customer_type, billing_model, mode, status,
                 test_clock_id, created_at, updated_at)
             VALUES ($1, $2, $3, 'a@b.example', 'A', 'BUSINESS', 'PREPAID', 'PREPAID', 'ACTIVE', $4, now(), now())",
        )
        .bind(id)
        .bind(self.scope.organization_id)
        .bind(self.scope.workspace_id)
        .bind(self.clock)
        .execute(self.store.pool())
        .await
        .unwrap();
        id
    }

    /// Their wallet with cash in it.
    pub async fn wallet(&self, customer_id: CustomerId, cash: &str) -> WalletId {
        self.wallet_in(customer_id, Currency::EUR, cash).await
    }

    /// The same in another currency.
    pub async fn wallet_in(&self, customer_id: CustomerId, currency: Currency, cash: &str) -> WalletId {
        let mut tx = self.store.begin("make a wallet").await.unwrap();
        let new = ledger::NewWallet { customer_id, currency, defaults: ledger::WalletDefaults::default() };
        let wallet = ledger::wallet::create_primary(&self.scope, &mut tx, new).await.unwrap().wallet.id;
        let body = json!({"amount": {"value": cash, "currency": currency}, "source": "MANUAL"});
        let request = ledger::wallet::CreditRequest::read(&body).unwrap();
        let (transfer_id, request) = (domain::TransferId::generate(), ledger::wallet::WalletRequest::Credit(request));
        let operation = ledger::wallet::WalletOperation { transfer_id, wallet_id: wallet, request };
        ledger::wallet::perform(&self.scope, &mut tx, operation).await.unwrap();
        tx.commit().await.unwrap();
        wallet
    }

    /// A subscription of a new customer: monthly, EUR, and what `body` says.
    pub async fn subscribe(&self, plan_id: PlanId, body: Value) -> SubscriptionDTO {
        let customer = self.customer().await;
        self.try_subscribe(customer, plan_id, body).await.unwrap()
    }

    pub async fn try_subscribe(&self, customer: CustomerId, plan_id: PlanId, body: Value) -> Result<SubscriptionDTO> {
        let mut whole = json!({
            "customer_id": customer, "plan_id": plan_id, "currency": "EUR", "billing_interval_unit": "monthly"
        });
        for (name, value) in body.as_object().unwrap() {
            whole[name] = value.clone();
        }
        let request = CreateSubscriptionRequest::read(&whole)?;
        let mut tx = self.store.begin("subscribe").await?;
        let subscription = self.billing.create_subscription(&self.scope, &mut tx, &request, 8).await?;
        tx.commit().await?;
        Ok(subscription)
    }

    pub async fn cancel(&self, id: SubscriptionId, body: Value) -> Result<SubscriptionDTO> {
        let request = CancelSubscriptionRequest::read(&body)?;
        let mut tx = self.store.begin("cancel").await?;
        let subscription = self.billing.cancel_subscription(&self.scope, &mut tx, id, &request).await?;
        tx.commit().await?;
        Ok(subscription)
    }

    pub async fn subscription(&self, id: SubscriptionId) -> SubscriptionDTO {
        let mut conn = self.store.pool().acquire().await.unwrap();
        billing::subscription::read::get(&self.scope, &mut conn, id).await.unwrap()
    }

    /// Live invoices of a subscription, oldest period first.
    pub async fn invoices(&self, id: SubscriptionId) -> Vec<InvoiceDTO> {
        let ids: Vec<InvoiceId> = sqlx::query_scalar(
            "SELECT id FROM invoice WHERE subscription_id = $1 AND deleted_at IS NULL ORDER BY created_at, sequence_number, id",
        )
        .bind(id)
        .fetch_all(self.store.pool())
        .await
        .unwrap();
        let mut conn = self.store.pool().acquire().await.unwrap();
        let mut invoices = Vec::new();
        for id in ids {
            invoices.push(billing::invoice::read::get(&self.scope, &mut conn, id).await.unwrap());
        }
        invoices
    }

    /// (period start, total, status) of the invoices.
    pub async fn bills(&self, id: SubscriptionId) -> Vec<(Instant, String, String)> {
        let bill = |invoice: InvoiceDTO| {
            let head = invoice.invoice;
            (head.billing_period_start.unwrap(), head.total.to_string(), head.status.to_string())
        };
        self.invoices(id).await.into_iter().map(bill).collect()
    }

    /// What a partition would have counted for the subscription's window at `at`: events through `rating`, stored.
    pub async fn db_usage(&self, id: SubscriptionId, events: &[(&str, ProductId, &str, Option<Currency>)]) {
        let mut conn = self.store.pool().acquire().await.unwrap();
        let terms = SubscriptionTerms::load(&mut conn, &[id]).await.unwrap().remove(&id).unwrap();
        self.billing.snapshots.refresh().await.unwrap();
        let catalog = self.billing.snapshots.workspace(self.scope.workspace_id).await.unwrap();
        let (mut state, mut window) = (WindowState::new(), None);
        for (index, (timestamp, product_id, quantity, wallet_currency)) in events.iter().enumerate() {
            let timestamp = at(timestamp);
            window = terms.window_at(timestamp);
            let key = format!("{id}-{index}");
            let event = UsageEvent {
                id: UsageEventId::of(self.scope.workspace_id, &key),
                workspace_id: self.scope.workspace_id,
                customer_id: terms.customer_id,
                subscription_id: id,
                product_id: *product_id,
                metric_key: "units".into(),
                quantity: Quantity::parse(quantity).unwrap(),
                timestamp,
                idempotency_key: key,
                price_key: None,
                price_key_remapped: false,
                external_cost: None,
                wallet_currency: *wallet_currency,
                hold_id: None,
                dimension_vars: Default::default(),
                pricing_vars: Default::default(),
                accepted_at: timestamp,
                catalog_revision: 1,
            };
            let product = catalog.product(*product_id).unwrap();
            let binding = catalog.bindings_of(product, "units", timestamp).next().unwrap();
            let resolved = catalog.resolve_for(&terms, *product_id, None, &Default::default(), timestamp).unwrap();
            let segment_start = resolved.effective_from;
            let target = Target {
                binding,
                price: Some(resolved.price),
                segment_start,
                allowance: None,
                window: window.unwrap(),
                timezone: terms.schedule.timezone,
                tables: &(),
                period: Default::default(),
            };
            state.apply(&event, target).unwrap();
        }
        let window = window.unwrap();
        sqlx::query(
            "INSERT INTO usage_window (subscription_id, window_start, window_end, workspace_id, customer_id, partition, status,
                 position, event_count, state, updated_at)
             VALUES ($1, $2, $3, $4, $5, 0, 'open', 1, $6, $7, now())
             ON CONFLICT (subscription_id, window_start) DO UPDATE SET state = $7, event_count = $6,
                 updated_at = clock_timestamp()",
        )
        .bind(id)
        .bind(window.start)
        .bind(window.end)
        .bind(self.scope.workspace_id)
        .bind(terms.customer_id)
        .bind(i64::try_from(events.len()).unwrap())
        .bind(state.encode())
        .execute(self.store.pool())
        .await
        .unwrap();
    }

    pub async fn events(&self, entity_id: impl Into<Uuid>) -> Vec<String> {
        sqlx::query_scalar("SELECT event_type FROM outbox WHERE entity_id = $1 ORDER BY created_at, id")
            .bind(entity_id.into())
            .fetch_all(self.store.pool())
            .await
            .unwrap()
    }
}

impl World {
    pub async fn pause(&self, id: SubscriptionId) -> Result<SubscriptionDTO> {
        let mut tx = self.store.begin("pause").await?;
        let subscription = self.billing.pause_subscription(&self.scope, &mut tx, id).await?;
        tx.commit().await?;
        Ok(subscription)
    }

    pub async fn resume(&self, id: SubscriptionId) -> Result<SubscriptionDTO> {
        let mut tx = self.store.begin("resume").await?;
        let subscription = self.billing.resume_subscription(&self.scope, &mut tx, id).await?;
        tx.commit().await?;
        Ok(subscription)
    }

    pub async fn delete(&self, id: SubscriptionId) -> Result<()> {
        let mut tx = self.store.begin("delete").await?;
        self.billing.delete_subscription(&self.scope, &mut tx, id).await?;
        tx.commit().await
    }

    /// What nodes know of a subscription.
    pub async fn terms(&self, id: SubscriptionId) -> SubscriptionTerms {
        let mut conn = self.store.pool().acquire().await.unwrap();
        SubscriptionTerms::load(&mut conn, &[id]).await.unwrap().remove(&id).unwrap()
    }

    /// What the checkpoints would have accrued in the window that begins at `at`.
    pub async fn db_accrual(&self, id: SubscriptionId, start: &str) {
        sqlx::query(
            "INSERT INTO usage_accrual (subscription_id, window_start, wallet_currency, workspace_id, customer_id, currency, net,
                 accrued)
             SELECT id, $2, '', workspace_id, customer_id, currency, 1, 1 FROM subscription WHERE id = $1",
        )
        .bind(id)
        .bind(at(start))
        .execute(self.store.pool())
        .await
        .unwrap();
    }

    /// Starts of windows whose accruals still wait for an invoice.
    pub async fn open_accruals(&self) -> Vec<Instant> {
        sqlx::query_scalar("SELECT window_start FROM usage_accrual WHERE NOT closed ORDER BY window_start")
            .fetch_all(self.store.pool())
            .await
            .unwrap()
    }

    /// Changes the catalog behind its back, and says so.
    pub async fn db_catalog(&self, sql: &str) {
        let mut tx = self.store.begin("change the catalog").await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(tx.conn()).await.unwrap();
        tx.catalog_changed(self.scope.workspace_id);
        tx.commit().await.unwrap();
    }
}

async fn workspace(store: &Store, timezone: &str, settings: Value) -> Scope {
    let (organization_id, workspace_id) = (OrganizationId::generate(), WorkspaceId::generate());
    sqlx::query(
        "INSERT INTO organization (id, name, timezone, settings, created_at, updated_at) VALUES ($1, 'O', $2, $3, now(), now())",
    )
    .bind(organization_id)
    .bind(timezone)
    .bind(sqlx::types::Json(settings))
    .execute(store.pool())
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO workspace (id, organization_id, name, mode, ingest_secret, created_at)
         VALUES ($1, $2, 'W', 'sandbox', '', now())",
    )
    .bind(workspace_id)
    .bind(organization_id)
    .execute(store.pool())
    .await
    .unwrap();
    // Beside the default, which the database gives every workspace.
    sqlx::query(
        "INSERT INTO workspace_currency (workspace_id, currency_code, billing_enabled, catalog_enabled, created_at, updated_at)
         SELECT $1, unnest(ARRAY['USD', 'GBP', 'JPY', 'KWD']), true, true, now(), now()",
    )
    .bind(workspace_id)
    .execute(store.pool())
    .await
    .unwrap();
    let mode = WorkspaceMode::Sandbox;
    Scope { organization_id, workspace_id, mode, actor: Actor::System, clock: Clock::System }
}
