//! Guards: tests that see each other's rows, and databases that pile up.

use engines::testing;

#[tokio::test]
async fn each_test_has_a_database_of_its_own() {
    let (one, two) = tokio::join!(testing::database(), testing::database());
    assert_ne!(one.name(), two.name());
    let pool = one.pool();
    sqlx::query("CREATE TABLE seen (id int)").execute(&pool).await.unwrap();
    let other = two.pool();
    let found: Option<String> = sqlx::query_scalar("SELECT to_regclass('seen')::text").fetch_one(&other).await.unwrap();
    assert_eq!(found, None);
}

#[tokio::test]
async fn the_schema_is_there_with_its_migrations_recorded() {
    let database = testing::database().await;
    let recorded: i64 = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations WHERE success")
        .fetch_one(&database.pool())
        .await
        .unwrap();
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/postgres");
    let files = std::fs::read_dir(dir).unwrap().flatten();
    let count = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "sql")).count();
    assert_eq!(recorded, i64::try_from(count).unwrap());
}

#[tokio::test]
async fn a_dropped_database_is_gone_even_while_connected() {
    let kept = testing::database().await;
    let database = testing::database().await;
    let pool = database.pool();
    sqlx::query("SELECT 1").execute(&pool).await.unwrap();
    let name = database.name().to_owned();
    drop(database);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(150);
    while is_there(&kept.pool(), &name).await {
        assert!(std::time::Instant::now() < deadline, "{name} is still there");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn is_there(pool: &sqlx::PgPool, name: &str) -> bool {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(pool)
        .await
        .unwrap()
}
