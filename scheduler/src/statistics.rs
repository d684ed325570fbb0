//! The first look at tables that fill up: until then PostgreSQL takes them for nearly empty and reads them whole, and keeps the
//! plans that it makes of that. Its own autovacuum comes by once a minute, and looks after the tables from then on.

use domain::Result;
use sqlx::AssertSqlSafe;
use store::{Store, StoreError};

/// Tables with rows at which nobody has looked, as SQL names.
const UNSEEN: &str = "
SELECT format('%I.%I', schemaname, relname) FROM pg_stat_user_tables
WHERE schemaname = 'public' AND last_analyze IS NULL AND last_autoanalyze IS NULL AND n_live_tup >= 500
ORDER BY n_live_tup DESC";

/// Looks at each of them, and says which they were. Several schedulers do no harm.
///
/// # Errors
/// As every statement; the next call does the rest.
pub async fn look_at_new_tables(store: &Store) -> Result<Vec<String>> {
    let tables: Vec<String> =
        sqlx::query_scalar(UNSEEN).fetch_all(store.pool()).await.context("looking for tables without statistics")?;
    for table in &tables {
        sqlx::query(AssertSqlSafe(format!("ANALYZE {table}")))
            .execute(store.pool())
            .await
            .context("gathering the statistics of a table")?;
    }
    Ok(tables)
}
