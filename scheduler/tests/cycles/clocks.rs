//! Test clocks (test-clocks.md) and rules E1, E3.

use scheduler::{AdvanceTestClockRequest, test_clock};
use serde_json::json;

use crate::fixture::{World, at};

/// E3: an advance that was interrupted is resumed by any scheduler, and a rerun creates nothing twice.
#[tokio::test]
async fn e3_an_interrupted_advance_is_resumed() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.begin_advance("2026-04-01").await; // and the process ends here
    let report = world.scheduler.run_due_once().await.unwrap();
    assert_eq!(report.failed, 0);
    assert_eq!(world.bills(id).await.len(), 4);
    let mut conn = world.store.pool().acquire().await.unwrap();
    let clock = test_clock::get(&world.scope, &mut conn, world.clock).await.unwrap();
    assert_eq!((clock.status.as_str(), clock.frozen_at), ("active", at("2026-04-01")));
    assert_eq!(world.scheduler.run_clock(world.clock).await.unwrap().done, 0);
    assert_eq!(world.scheduler.run_due_once().await.unwrap().done, 0);
    assert_eq!(world.bills(id).await.len(), 4);
}

/// A row that was done but whose lease looks free again is not done twice: its effect deleted it.
#[tokio::test]
async fn a_rerun_creates_nothing_twice() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    let rows: Vec<billing::due::DueWork> = sqlx::query_as(
        "SELECT id, workspace_id, customer_id, kind, subject_id, due_at, clock_id, payload, attempts FROM due_work
         WHERE kind = 'invoice_finalize'",
    )
    .fetch_all(world.store.pool())
    .await
    .unwrap();
    for _ in 0..2 {
        let outcomes = world.billing.handle(billing::due::DueKind::InvoiceFinalize, &rows).await;
        assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
    }
    assert_eq!(world.bills(id).await.len(), 1);
    world.advance("2026-02-01").await;
    let closed: Vec<billing::due::DueWork> = rows
        .iter()
        .cloned()
        .map(|mut row| {
            row.kind = billing::due::DueKind::PeriodClose;
            row.due_at = at("2026-02-01");
            row.payload = sqlx::types::Json(json!({}));
            row
        })
        .collect();
    let outcomes = world.billing.handle(billing::due::DueKind::PeriodClose, &closed).await;
    assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
    assert_eq!(world.bills(id).await.len(), 2, "the period was closed before");
}

/// E1: of one customer nothing overtakes; a failing first row holds the others back, other customers go on.
#[tokio::test]
async fn e1_a_customers_agenda_keeps_its_order() {
    let world = World::new("2026-01-01").await;
    let good = world.plan(&[(world.product("FIXED_CHARGE", "1.00").await, "0")]).await;
    let usage = world.plan(&[(world.product("USAGE", "1").await, "0")]).await;
    let customer = world.customer().await;
    let first = world
        .try_subscribe(customer, usage, json!({"started_at": "2025-12-31T00:00:00Z", "billing_anchor_day": 31 - 30}))
        .await
        .unwrap();
    let second = world.try_subscribe(customer, good, json!({})).await.unwrap().subscription.id;
    let other = world.subscribe(good, json!({})).await.subscription.id;
    *world.log.down.lock().unwrap() = true; // the first subscription's period cannot be closed
    let report = world.scheduler.run_due_once().await.unwrap();
    assert!(report.failed >= 1);
    assert_eq!((world.bills(second).await.len(), world.bills(other).await.len()), (0, 1));
    *world.log.down.lock().unwrap() = false;
    sqlx::query("UPDATE due_work SET retry_at = NULL").execute(world.store.pool()).await.unwrap();
    world.settle().await;
    assert_eq!(world.bills(second).await.len(), 1);
    assert_eq!(
        world.subscription(first.subscription.id).await.subscription.current_period_start,
        Some(at("2026-01-01"))
    );
}

/// billing-cycles.md 3.4 rule 4: a subscription that cannot be billed stops its customer's others for three attempts only.
#[tokio::test]
async fn one_subscription_does_not_stop_its_customer() {
    let world = World::new("2026-01-01").await;
    let (good, bad) = (world.product("FIXED_CHARGE", "1.00").await, world.product("FIXED_CHARGE", "2.00").await);
    let (plan, broken) = (world.plan(&[(good, "0")]).await, world.plan(&[(bad, "0")]).await);
    let customer = world.customer().await;
    let first = world.try_subscribe(customer, broken, json!({})).await.unwrap().subscription.id;
    let second = world.try_subscribe(customer, plan, json!({})).await.unwrap().subscription.id;
    world.db_catalog(&format!("UPDATE price SET status = 'draft' WHERE product_id = '{bad}'")).await;
    for bills in [0, 0, 1] {
        world.scheduler.run_due_once().await.unwrap();
        assert_eq!((world.bills(first).await.len(), world.bills(second).await.len()), (0, bills));
        sqlx::query("UPDATE due_work SET retry_at = NULL").execute(world.store.pool()).await.unwrap();
    }
    world.try_advance("2026-02-01").await;
    assert_eq!((world.bills(first).await.len(), world.bills(second).await.len()), (0, 2));
    assert_eq!(world.errors().await.len(), 1, "its own later rows wait behind it");
}

/// test-clocks.md 4: in time order, whosever the work is, so that numbers follow the dates of the invoices.
#[tokio::test]
async fn numbers_follow_simulated_time() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "1.00").await, "0")]).await;
    for unit in ["daily", "monthly", "weekly"] {
        world.subscribe(plan, json!({"billing_interval_unit": unit})).await;
    }
    world.advance("2026-02-02").await;
    let issued: Vec<domain::Instant> = sqlx::query_scalar("SELECT issued_at FROM invoice ORDER BY sequence_number")
        .fetch_all(world.store.pool())
        .await
        .unwrap();
    assert_eq!((issued.len(), issued.is_sorted()), (33 + 2 + 5, true));
}

/// test-clocks.md 4: only forward, at most two years, only while active.
#[tokio::test]
async fn a_clock_moves_forward_only() {
    let world = World::new("2026-01-01").await;
    for (to, code) in [
        ("2026-01-01", "BUSINESS_RULE_VIOLATION"),
        ("2025-01-01", "BUSINESS_RULE_VIOLATION"),
        ("2028-01-02", "BUSINESS_RULE_VIOLATION"),
    ] {
        let mut tx = world.store.begin("advance").await.unwrap();
        let request = AdvanceTestClockRequest { frozen_at: at(to) };
        let refused = test_clock::begin_advance(&world.scope, &mut tx, world.clock, &request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{to}");
    }
    world.begin_advance("2026-01-02").await;
    let mut tx = world.store.begin("advance").await.unwrap();
    let request = AdvanceTestClockRequest { frozen_at: at("2026-01-03") };
    let refused = test_clock::begin_advance(&world.scope, &mut tx, world.clock, &request).await.unwrap_err();
    assert_eq!(refused.code(), "INVALID_TRANSITION");
    assert_eq!(test_clock::delete(&world.scope, &mut tx, world.clock).await.unwrap_err().code(), "INVALID_TRANSITION");
    drop(tx);
    world.scheduler.run_clock(world.clock).await.unwrap();
    let mut tx = world.store.begin("delete").await.unwrap();
    test_clock::delete(&world.scope, &mut tx, world.clock).await.unwrap();
    let refused = test_clock::begin_advance(&world.scope, &mut tx, world.clock, &request).await.unwrap_err();
    assert_eq!(refused.code(), "INVALID_TRANSITION");
}

/// A year of daily cycles takes seconds (E4), however the log is asked.
#[tokio::test]
async fn a_year_of_daily_cycles_is_quick() {
    let world = World::with("2026-01-01", "UTC", json!({"usage_grace_period": "0"})).await;
    let (fee, units) = (world.product("FIXED_CHARGE", "1.00").await, world.product("USAGE", "1").await);
    let plan = world.plan(&[(fee, "0"), (units, "0")]).await;
    let id = world.subscribe(plan, json!({"billing_interval_unit": "daily"})).await.subscription.id;
    let began = std::time::Instant::now();
    world.advance("2027-01-01").await;
    assert_eq!(world.bills(id).await.len(), 366);
    assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", began.elapsed());
}
