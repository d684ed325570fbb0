//! Rule D6 (numbers are a locked row per series, taken in the finalizing transaction) and P11 (members of a failed batch
//! are repeated alone).

use serde_json::json;

use crate::fixture::World;

async fn numbers(world: &World) -> Vec<i64> {
    sqlx::query_scalar("SELECT sequence_number FROM invoice WHERE sequence_number IS NOT NULL ORDER BY 1")
        .fetch_all(world.store.pool())
        .await
        .unwrap()
}

/// Four schedulers at once, and members whose price disappeared: every number from 1 is there, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_no_number_is_missing() {
    let world = World::new("2026-01-01").await;
    let good = world.product("FIXED_CHARGE", "1.00").await;
    let bad = world.product("FIXED_CHARGE", "2.00").await;
    let plan = world.plan(&[(good, "0")]).await;
    let broken = world.plan(&[(bad, "0")]).await;
    for number in 0..40 {
        world.subscribe(if number % 8 == 3 { broken } else { plan }, json!({})).await;
    }
    sqlx::query("UPDATE price SET status = 'draft' WHERE product_id = $1")
        .bind(bad)
        .execute(world.store.pool())
        .await
        .unwrap();
    let mut tx = world.store.begin("change the catalog").await.unwrap();
    tx.catalog_changed(world.scope.workspace_id);
    tx.commit().await.unwrap();
    let options = scheduler::SchedulerOptions { batch_rows_max: 5, ..Default::default() };
    let runs = (0..4).map(|_| {
        let scheduler = world.scheduler.clone().with_options(options);
        tokio::spawn(async move { scheduler.run_due_once().await.unwrap() })
    });
    let mut failed = 0;
    for run in runs.collect::<Vec<_>>() {
        failed += run.await.unwrap().failed;
    }
    assert_eq!(failed, 5);
    assert_eq!(numbers(&world).await, (1..=35).collect::<Vec<_>>());
    let errors = world.errors().await;
    assert_eq!(errors.len(), 5);
    assert!(errors[0].starts_with("BUSINESS_RULE_VIOLATION: no price"), "{}", errors[0]);
    // Mended, they are billed with the next numbers.
    sqlx::query("UPDATE price SET status = 'active'").execute(world.store.pool()).await.unwrap();
    sqlx::query("UPDATE due_work SET retry_at = NULL").execute(world.store.pool()).await.unwrap();
    let mut tx = world.store.begin("change the catalog").await.unwrap();
    tx.catalog_changed(world.scope.workspace_id);
    tx.commit().await.unwrap();
    world.settle().await;
    assert_eq!(numbers(&world).await, (1..=40).collect::<Vec<_>>());
}

/// A transaction that fails after its number was taken gives the number back.
#[tokio::test]
async fn d6_a_failed_transaction_gives_its_number_back() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "1.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    sqlx::query("ALTER TABLE outbox RENAME TO outbox_away").execute(world.store.pool()).await.unwrap();
    assert_eq!(world.scheduler.run_due_once().await.unwrap().failed, 1);
    sqlx::query("ALTER TABLE outbox_away RENAME TO outbox").execute(world.store.pool()).await.unwrap();
    assert!(world.invoices(id).await.is_empty(), "nothing of it stays");
    sqlx::query("UPDATE due_work SET retry_at = NULL").execute(world.store.pool()).await.unwrap();
    world.settle().await;
    assert_eq!(numbers(&world).await, [1]);
}
