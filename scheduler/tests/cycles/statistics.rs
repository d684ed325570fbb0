//! Guards the first look at tables that fill up.

use scheduler::statistics::look_at_new_tables;
use store::Store;

#[tokio::test]
async fn a_table_that_fills_up_is_looked_at_once() {
    let database = engines::testing::database().await;
    let store = Store::connect(database.url(), 4).await.unwrap();
    assert_eq!(look_at_new_tables(&store).await.unwrap(), <[String; 0]>::default());
    fill(&store, 499).await;
    assert_eq!(look_at_new_tables(&store).await.unwrap(), <[String; 0]>::default());
    fill(&store, 1).await;
    assert_eq!(look_at_new_tables(&store).await.unwrap(), ["public.ledger_transfer"]);
    let expected: f32 = sqlx::query_scalar("SELECT reltuples FROM pg_class WHERE oid = 'ledger_transfer'::regclass")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert!((expected - 500.0).abs() < f32::EPSILON, "{expected}");
    fill(&store, 1_000).await;
    assert_eq!(look_at_new_tables(&store).await.unwrap(), <[String; 0]>::default(), "autovacuum looks after it now");
}

async fn fill(store: &Store, rows: i32) {
    let mut conn = store.pool().acquire().await.unwrap();
    sqlx::query(
        "INSERT INTO ledger_transfer (id, workspace_id, kind, booked_at, created_at)
         SELECT gen_random_uuid(), gen_random_uuid(), 'hold', now(), now() FROM generate_series(1, $1)",
    )
    .bind(rows)
    .execute(&mut *conn)
    .await
    .unwrap();
    // What is counted is told at the end of the next statement.
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(&mut *conn).await.unwrap();
    sqlx::query("SELECT 1").execute(&mut *conn).await.unwrap();
}
