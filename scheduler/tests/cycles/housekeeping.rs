//! Guards against tables that grow for ever (P13), and against housekeeping that takes what is still promised.

use chrono::{Days, TimeDelta};
use domain::Instant;
use scheduler::housekeeping::{Swept, run_once};
use serde_json::json;
use store::{IdempotencyKey, StoredAnswer};

use crate::fixture::World;

async fn database_time(world: &World) -> Instant {
    sqlx::query_scalar("SELECT now()").fetch_one(world.store.pool()).await.unwrap()
}

async fn number(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(world.store.pool()).await.unwrap()
}

/// An event that was recorded then.
async fn record(world: &World, recorded_at: Instant) {
    sqlx::query(
        "INSERT INTO outbox (id, workspace_id, event_type, entity_type, entity_id, payload, created_at, recorded_at)
         VALUES (gen_random_uuid(), $1, 'test', 'test', $1, '{}', '2031-01-01Z', $2)",
    )
    .bind(world.scope.workspace_id)
    .bind(recorded_at)
    .execute(world.store.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn days_of_the_outbox_are_made_ahead_and_dropped_after_a_month() {
    let world = World::new("2026-01-01").await;
    let now = database_time(&world).await;
    let days_ago = |days: u64| now.checked_sub_days(Days::new(days)).unwrap();
    // Long ago: days were made; one was not, and its event lies in the rest.
    let made = run_once(&world.store, days_ago(34)).await.unwrap();
    assert_eq!(made.days_made, 4);
    for days in [34, 31, 30, 20, 35] {
        record(&world, days_ago(days)).await;
    }
    assert_eq!(number(&world, "SELECT count(*) FROM outbox_rest").await, 3, "30, 20 and 35 days ago");
    let swept = run_once(&world.store, now).await.unwrap();
    assert_eq!(swept, Swept { days_made: 4, days_dropped: 4, rows_deleted: 1 });
    assert_eq!(number(&world, "SELECT count(*) FROM outbox WHERE event_type = 'test'").await, 2, "30 and 20 days ago");
    assert_eq!(run_once(&world.store, now).await.unwrap(), Swept::default(), "repeating it changes nothing");
    // What is written from now on has its day, whatever a test clock says.
    let mut tx = world.store.begin("emit").await.unwrap();
    let id = uuid::Uuid::now_v7();
    let scope = world.scope.at(now + TimeDelta::days(4_000));
    tx.emit(&scope, "customer.created", "customer", id, json!({}).as_object().unwrap().clone()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(world.events(id).await, ["customer.created"]);
    assert_eq!(number(&world, "SELECT count(*) FROM outbox_rest WHERE event_type = 'customer.created'").await, 0);
    // The next day is made although events of today may lie in the rest.
    record(&world, now + TimeDelta::days(4)).await;
    let tomorrow = run_once(&world.store, now + TimeDelta::days(1)).await.unwrap();
    assert_eq!(tomorrow.days_made, 0, "its events are in the rest already: they stay there");
    let after = run_once(&world.store, now + TimeDelta::days(2)).await.unwrap();
    assert_eq!(after.days_made, 1);
}

#[tokio::test]
async fn keys_of_headers_are_forgotten_and_those_of_bodies_never() {
    let world = World::new("2026-01-01").await;
    let now = database_time(&world).await;
    let key = |text: &str| IdempotencyKey::new(world.scope.workspace_id, "POST /v1/things", text, b"request");
    let answer = StoredAnswer { status: 201, body: b"first".to_vec() };
    let hours_ago = |hours| now - TimeDelta::hours(hours);
    let claim = async |key: &IdempotencyKey, at: Instant| {
        let mut tx = world.store.begin("claim").await.unwrap();
        let earlier = key.claim(&mut tx, at).await.unwrap();
        if earlier.is_none() {
            key.complete(&mut tx, &answer).await.unwrap();
            tx.commit().await.unwrap();
        }
        earlier
    };
    let (header, recent, body) = (key("old").lapsing(), key("recent").lapsing(), key("body"));
    for (key, hours) in [(&header, 49), (&recent, 47), (&body, 24 * 4_000)] {
        assert_eq!(claim(key, hours_ago(hours)).await, None);
    }
    assert_eq!(run_once(&world.store, now).await.unwrap().rows_deleted, 1);
    assert_eq!(claim(&recent, now).await.as_ref(), Some(&answer));
    assert_eq!(claim(&body, now).await.as_ref(), Some(&answer));
    assert_eq!(claim(&header, now).await, None);
}

/// Rule B6: changes that are gone must not be missed by a node that slept over them.
#[tokio::test]
async fn a_node_that_slept_over_dropped_catalog_changes_reads_everything_anew() {
    let world = World::new("2026-01-01").await;
    let (snapshots, workspace) = (&world.billing.snapshots, world.scope.workspace_id);
    snapshots.refresh().await.unwrap();
    let before = snapshots.workspace(workspace).await.unwrap();
    let change = async |workspace| {
        let mut tx = world.store.begin("change").await.unwrap();
        tx.catalog_changed(workspace);
        tx.commit().await.unwrap();
    };
    let stranger = domain::WorkspaceId::generate();
    change(stranger).await;
    snapshots.refresh().await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&before, &snapshots.workspace(workspace).await.unwrap()), "not concerned");
    change(workspace).await;
    sqlx::query("UPDATE catalog_revision SET revision = revision + 100000").execute(world.store.pool()).await.unwrap();
    change(stranger).await;
    assert!(run_once(&world.store, database_time(&world).await).await.unwrap().rows_deleted > 0);
    assert_eq!(number(&world, "SELECT count(*) FROM catalog_change").await, 1, "the last one is kept");
    snapshots.refresh().await.unwrap();
    assert_eq!(snapshots.revision(), number(&world, "SELECT revision FROM catalog_revision").await);
    assert!(!std::sync::Arc::ptr_eq(&before, &snapshots.workspace(workspace).await.unwrap()), "read anew");
}
