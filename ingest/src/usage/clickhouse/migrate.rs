//! The schema of `migrations/clickhouse`, compiled in, applied in order and recorded in `schema_migration`.
//!
//! ClickHouse has no transaction around a migration, so every statement says IF NOT EXISTS and may be repeated: by a
//! second node, or after a crash between a statement and its record.

use clickhouse::Client;
use domain::Result;

use super::{ClickHouseAddress, within};

const MIGRATIONS: [(&str, &str); 3] = [
    ("0001_usage", include_str!("../../../../migrations/clickhouse/0001_usage.sql")),
    ("0002_rollups", include_str!("../../../../migrations/clickhouse/0002_rollups.sql")),
    ("0003_analysts", include_str!("../../../../migrations/clickhouse/0003_analysts.sql")),
];

pub(super) async fn run(address: &ClickHouseAddress) -> Result<()> {
    let outside = ClickHouseAddress { database: "default".to_owned(), ..address.clone() }.client();
    let create = outside.query("CREATE DATABASE IF NOT EXISTS ?").bind(clickhouse::sql::Identifier(&address.database));
    within("making the database of usage events", create.execute()).await?;
    let client = address.client();
    execute(
        &client,
        "CREATE TABLE IF NOT EXISTS schema_migration (name String, applied_at DateTime DEFAULT now())
         ENGINE = ReplacingMergeTree ORDER BY name SETTINGS fsync_after_insert = 1",
    )
    .await?;
    let read = client.query("SELECT DISTINCT name FROM schema_migration").fetch_all::<String>();
    let applied = within("reading the migrations of ClickHouse", read).await?;
    for (name, sql) in MIGRATIONS.iter().filter(|(name, _)| !applied.iter().any(|done| done == name)) {
        for statement in statements(sql) {
            execute(&client, statement).await?;
        }
        let record = client.query("INSERT INTO schema_migration (name) SELECT ?").bind(name);
        within("recording a migration of ClickHouse", record.execute()).await?;
    }
    Ok(())
}

async fn execute(client: &Client, statement: &str) -> Result<()> {
    within("migrating ClickHouse", client.query_raw(statement).execute()).await
}

/// Statements end with a semicolon at the end of a line.
fn statements(sql: &str) -> impl Iterator<Item = &str> {
    sql.split(";\n").map(str::trim).filter(|statement| !statement.is_empty())
}
