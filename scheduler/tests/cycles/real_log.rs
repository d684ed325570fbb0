//! Order of seal and finalization against the real event log (rule C2): what is acknowledged before the seal is in the
//! invoice, however long it waits in the log; what a failed finalization has sealed counts again.
//!
//! A gate before the partitions holds records back that are durable already, so that the order is not left to chance.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use billing::Billing;
use billing::control::{WindowControl, WindowRef};
use billing::invoice::{FinalizeInvoiceRequest, Invoice};
use catalog::compiled::{Snapshots, StoredWindow};
use domain::{Clock, InvoiceId, Position, ProductId, Result, SubscriptionId};
use ingest::control::Controls;
use ingest::dedup::DedupOptions;
use ingest::door::{Door, Entry};
use ingest::log::local::{LocalLog, LocalLogOptions};
use ingest::log::registry::{self, LogKind};
use ingest::log::{Append, Assignment, EventLog, LogError, LogIdentity, LogRecord, PartitionReader};
use ingest::metrics::Metrics;
use ingest::partition::{Settings, Shared};
use ingest::record::{Control, ControlKind};
use ingest::supervisor::Ingest;
use ingest::usage::UsageStore;
use ingest::usage::postgres::PostgresUsage;
use scheduler::Scheduler;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::fixture::{World, at};

const PARTITIONS: u32 = 8;
/// At most five minutes ahead of where the clock begins.
const JANUARY: &str = "2026-01-01T00:04:00Z";

/// A log whose readers stand before a gate.
struct Gated {
    log: LocalLog,
    is_open: watch::Sender<bool>,
}

struct GatedReader {
    reader: Box<dyn PartitionReader>,
    is_open: watch::Receiver<bool>,
}

#[async_trait]
impl PartitionReader for GatedReader {
    async fn next(&mut self, max: usize) -> Result<Vec<LogRecord>, LogError> {
        let records = self.reader.next(max).await;
        let _ = self.is_open.wait_for(|is_open| *is_open).await;
        records
    }
}

#[async_trait]
impl EventLog for Gated {
    fn identity(&self) -> &LogIdentity {
        self.log.identity()
    }
    async fn ping(&self) -> Result<(), LogError> {
        self.log.ping().await
    }
    async fn append(&self, records: Vec<Append>) -> Vec<Result<u64, LogError>> {
        self.log.append(records).await
    }
    async fn join(&self) -> Result<mpsc::Receiver<Assignment>, LogError> {
        self.log.join().await
    }
    async fn reader(&self, partition: u32, from: u64) -> Result<Box<dyn PartitionReader>, LogError> {
        let reader = self.log.reader(partition, from).await?;
        Ok(Box::new(GatedReader { reader, is_open: self.is_open.subscribe() }))
    }
    async fn end(&self, partition: u32) -> Result<u64, LogError> {
        self.log.end(partition).await
    }
    async fn passed(&self, partition: u32, next_offset: u64) {
        self.log.passed(partition, next_offset).await;
    }
    async fn close(&self) {
        self.log.close().await;
    }
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

/// A world whose usage goes through the door, the log and the partitions.
struct Metered {
    world: World,
    log: Arc<Gated>,
    door: Door,
    ingest: Ingest,
    units: ProductId,
    _dir: tempfile::TempDir,
}

impl Metered {
    async fn start(settings: serde_json::Value) -> Self {
        let mut world = World::with("2026-01-01", "UTC", settings).await;
        let units = world.product("USAGE", "1").await;
        let (store, snapshots) = (world.store.clone(), world.billing.snapshots.clone());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let id = LocalLog::prepare(&path, PARTITIONS).unwrap();
        let now = Clock::System.now();
        let identity = registry::register(&store, LogKind::Local, &id.to_string(), PARTITIONS, now).await.unwrap();
        let options = LocalLogOptions { segment_bytes: 1 << 20, ..LocalLogOptions::default() };
        let log = LocalLog::open(&path, identity, options).unwrap();
        let log = Arc::new(Gated { log, is_open: watch::Sender::new(true) });
        let usage: Arc<dyn UsageStore> = Arc::new(PostgresUsage::new(store.clone()));
        let shared = Arc::new(Shared {
            store: store.clone(),
            snapshots: snapshots.clone(),
            log: log.clone(),
            usage: usage.clone(),
            settings: Settings { checkpoint_interval: Duration::from_millis(20), ..Settings::default() },
            metrics: Metrics::new(&prometheus::Registry::new()),
            clock: Clock::System,
            secrets: Default::default(),
        });
        let ingest = Ingest::start(shared, dir.path().join("dedup"), DedupOptions::default()).await.unwrap();
        let control = LogControl(Controls::new(log.clone(), snapshots.clone()), usage, snapshots.clone());
        world.billing = Billing::new(store.clone(), snapshots.clone(), Arc::new(control));
        world.scheduler = Scheduler::new(world.billing.clone());
        let door = Door::new(store, snapshots, log.clone());
        Self { world, log, door, ingest, units, _dir: dir }
    }

    /// A monthly subscription to units at 1 EUR.
    async fn subscribe(&self) -> SubscriptionId {
        let plan = self.world.plan(&[(self.units, "0")]).await;
        self.world.billing.snapshots.refresh().await.unwrap();
        self.world.subscribe(plan, json!({})).await.subscription.id
    }

    /// Sends an event that must be acknowledged.
    async fn acknowledge(&self, id: SubscriptionId, key: &str, quantity: &str) {
        let customer = self.world.subscription(id).await.subscription.customer_id;
        let event = json!({
            "customer_id": customer, "subscription_id": id, "product_id": self.units, "metric_key": "units",
            "quantity": quantity, "timestamp": JANUARY, "idempotency_key": key,
        });
        let entries = self.door.accept(&self.world.scope, &[&event.to_string()]).await.unwrap();
        assert!(matches!(entries[..], [Entry::Accepted(_)]), "{entries:?}");
    }

    async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(self.world.store.pool()).await.unwrap()
    }

    async fn eventually(&self, sql: &'static str, expected: i64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while self.number(sql).await != expected {
            assert!(tokio::time::Instant::now() < deadline, "in vain: {expected} = {sql}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Finalizes by hand, as the API does, and waits that long for the log.
    async fn finalize(&self, id: InvoiceId, window_wait: Duration) -> Result<Invoice> {
        let billing = Billing { window_wait, ..self.world.billing.clone() };
        let mut tx = self.world.store.begin("finalize").await?;
        let request = FinalizeInvoiceRequest::default();
        let done = billing.finalize_invoice(&self.world.scope, &mut tx, id, &request).await?;
        tx.commit().await?;
        Ok(done.invoice.invoice)
    }
}

const PATIENT: Duration = Duration::from_secs(20);
const EVENTS: &str = "SELECT count(*) FROM usage_event";
const LATE: &str = "SELECT count(*) FROM usage_event WHERE late";
const SEALED: &str = "SELECT count(*) FROM usage_window WHERE status = 'sealed'";
const FINAL: &str = "SELECT count(*) FROM invoice WHERE invoice_number IS NOT NULL OR status <> 'draft'";

#[tokio::test(flavor = "multi_thread")]
async fn c2_an_acknowledged_event_that_waits_in_the_log_is_in_the_invoice() {
    let metered = Metered::start(json!({"auto_finalize_invoices": "false"})).await;
    let id = metered.subscribe().await;
    metered.acknowledge(id, "counted", "3").await;
    metered.world.advance("2026-02-10").await;
    let draft = metered.world.invoices(id).await.remove(0).invoice;
    assert_eq!((draft.status.as_str(), draft.total.to_string().as_str()), ("draft", "3.00 EUR"));
    // Acknowledged, durable, and not counted when somebody presses finalize.
    metered.log.is_open.send_replace(false);
    metered.acknowledge(id, "waits", "5").await;
    let refused = metered.finalize(draft.id, Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(refused.code(), "SERVICE_UNAVAILABLE", "there are no final quantities yet");
    assert_eq!((metered.number(FINAL).await, metered.number(EVENTS).await), (0, 1));
    metered.log.is_open.send_replace(true);
    let done = metered.finalize(draft.id, PATIENT).await.unwrap();
    assert_eq!((done.status.as_str(), done.total.to_string().as_str()), ("finalized", "8.00 EUR"));
    assert_eq!((metered.number(EVENTS).await, metered.number(LATE).await), (2, 0));
    // After the seal an event of the window is late.
    metered.acknowledge(id, "late", "7").await;
    metered.eventually(LATE, 1).await;
    assert_eq!(metered.world.invoices(id).await[0].invoice.total.to_string(), "8.00 EUR");
    metered.ingest.stop().await;
}

/// usage.md 5, through door, log, partition and the scheduler's loop: what is counted in the grace is on the draft.
#[tokio::test(flavor = "multi_thread")]
async fn c2_a_draft_follows_what_the_partition_counts() {
    let metered = Metered::start(json!({"auto_finalize_invoices": "false"})).await;
    let id = metered.subscribe().await;
    metered.acknowledge(id, "before", "3").await;
    metered.world.advance("2026-02-10").await;
    let (stop, shutdown) = watch::channel(false);
    let scheduler = tokio::spawn(metered.world.scheduler.clone().run(shutdown));
    metered.acknowledge(id, "grace", "5").await;
    metered.eventually("SELECT total::bigint FROM invoice WHERE deleted_at IS NULL", 8).await;
    let draft = metered.world.invoices(id).await.remove(0);
    assert_eq!((draft.invoice.status.as_str(), draft.lines[0].line.quantity.to_string().as_str()), ("draft", "8"));
    stop.send_replace(true);
    scheduler.await.unwrap();
    metered.ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c2_what_a_failed_finalization_has_sealed_counts_again() {
    for auto_finalize in ["false", "true"] {
        let metered = Metered::start(json!({"auto_finalize_invoices": auto_finalize})).await;
        let id = metered.subscribe().await;
        metered.acknowledge(id, "before", "3").await;
        // The books are away for the moment of the booking.
        let rename = async |sql: &'static str| {
            sqlx::query(sql).execute(metered.world.store.pool()).await.unwrap();
        };
        rename("ALTER TABLE document_series RENAME TO document_series_away").await;
        if auto_finalize == "false" {
            metered.world.advance("2026-02-10").await;
            let draft = metered.world.invoices(id).await.remove(0).invoice;
            let failed = metered.finalize(draft.id, PATIENT).await.unwrap_err();
            assert_eq!(failed.code(), "INTERNAL_ERROR");
        } else {
            assert!(metered.world.try_advance("2026-02-10").await.failed > 0);
        }
        metered.eventually(SEALED, 0).await;
        metered.acknowledge(id, "between", "4").await;
        metered.eventually(EVENTS, 2).await;
        rename("ALTER TABLE document_series_away RENAME TO document_series").await;
        if auto_finalize == "false" {
            let draft = metered.world.invoices(id).await.remove(0).invoice;
            metered.finalize(draft.id, PATIENT).await.unwrap();
        } else {
            rename("UPDATE due_work SET retry_at = NULL").await;
            metered.world.settle().await;
        }
        let invoice = metered.world.invoices(id).await.remove(0).invoice;
        assert_eq!((invoice.status.as_str(), invoice.total.to_string().as_str()), ("finalized", "7.00 EUR"));
        assert_eq!(metered.number(LATE).await, 0);
        metered.ingest.stop().await;
    }
}

/// Rule B5 up to the bill: one key under two customers is on one invoice.
#[tokio::test(flavor = "multi_thread")]
async fn b5_one_key_under_two_customers_is_billed_once() {
    let metered = Metered::start(json!({})).await;
    let first = metered.subscribe().await;
    let home = async |id: SubscriptionId| -> i32 {
        sqlx::query_scalar("SELECT home_partition FROM subscription WHERE id = $1")
            .bind(id)
            .fetch_one(metered.world.store.pool())
            .await
            .unwrap()
    };
    let elsewhere = home(first).await;
    let mut other = metered.subscribe().await;
    while home(other).await == elsewhere {
        other = metered.subscribe().await;
    }
    for (id, key, quantity) in [(first, "shared", "3"), (first, "a", "10"), (other, "shared", "50"), (other, "b", "20")]
    {
        metered.acknowledge(id, key, quantity).await;
    }
    metered.world.advance("2026-02-10").await;
    let total = async |id| metered.world.invoices(id).await.remove(0).invoice.total.to_string();
    assert_eq!((total(first).await, total(other).await), ("13.00 EUR".into(), "20.00 EUR".into()));
    let taken_back = "SELECT count(*) FROM usage_rejection WHERE code = 'IDEMPOTENCY_CONFLICT'";
    assert_eq!(metered.number(taken_back).await, 1);
    let events = at("2026-02-01");
    let accrued: Vec<bool> = sqlx::query_scalar("SELECT closed FROM usage_accrual WHERE window_start < $1")
        .bind(events)
        .fetch_all(metered.world.store.pool())
        .await
        .unwrap();
    assert!(!accrued.is_empty() && accrued.iter().all(|closed| *closed));
    metered.ingest.stop().await;
}
