//! Rate tables in expressions: whether they may be named, and what they hold at an instant.

use std::collections::HashMap;

use domain::{Error, Instant, RateTableType, Result, Scope, VersionId};
use rating::RateTableDefinition;
use rating::formula::TableUse;
use serde::Deserialize;
use sqlx::PgConnection;
use store::{StoreError, Tx};

use super::{RateTable, RateTableSnapshot, Stored, load_entries};

/// What is wrong with the rate tables that an expression names: unknown, withdrawn, or of the other kind. The tables that
/// are there are locked in a transaction, so that none is archived before the expression is stored.
///
/// # Errors
/// As every statement.
pub async fn check_uses(scope: &Scope, conn: &mut PgConnection, uses: &[TableUse]) -> Result<Vec<String>> {
    if uses.is_empty() {
        return Ok(Vec::new());
    }
    let slugs: Vec<&str> = uses.iter().map(|table| table.slug.as_str()).collect();
    let known: Vec<(String, RateTableType)> = sqlx::query_as(
        "SELECT slug, table_type FROM rate_table
         WHERE workspace_id = $1 AND slug = ANY($2) AND status <> 'archived' ORDER BY slug FOR SHARE",
    )
    .bind(scope.workspace_id)
    .bind(slugs)
    .fetch_all(conn)
    .await
    .context("looking for rate tables by slug")?;
    let known: HashMap<String, RateTableType> = known.into_iter().collect();
    let message = |table: &TableUse| match known.get(&table.slug) {
        None => Some(format!("there is no rate table `{}`", table.slug)),
        Some(found) if *found != table.table_type => {
            Some(format!("the rate table `{}` is read with {found}(...), not {}(...)", table.slug, table.table_type))
        }
        Some(_) => None,
    };
    Ok(uses.iter().filter_map(message).collect())
}

/// Whether a version that is in effect or scheduled, of a formula or a price, has an expression that reads the table. The
/// snapshots name in `tables` what their expressions read.
pub(super) async fn is_named(scope: &Scope, tx: &mut Tx, table: &RateTable) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM versions_at($3)
                        WHERE workspace_id = $1 AND entity_type IN ('price_formula', 'price')
                          AND status IN ('active', 'scheduled') AND snapshot -> 'tables' ? $2)",
    )
    .bind(scope.workspace_id)
    .bind(&table.slug)
    .bind(scope.now())
    .fetch_one(tx.conn())
    .await
    .context("looking for expressions that read a rate table")
}

/// The versions of these rate tables that are in effect at an instant, compiled, by slug.
///
/// # Errors
/// As every statement; `Internal` for a stored version that cannot be compiled: it was checked when it was written.
pub async fn in_effect(
    scope: &Scope,
    conn: &mut PgConnection,
    slugs: &[&str],
    at: Instant,
) -> Result<HashMap<String, rating::RateTable>> {
    if slugs.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<(String, RateTableType, VersionId, serde_json::Value)> = sqlx::query_as(
        "SELECT DISTINCT ON (t.id) t.slug, t.table_type, v.id, v.snapshot
         FROM rate_table t JOIN entity_version v ON v.entity_id = t.id
         WHERE t.workspace_id = $1 AND t.slug = ANY($2) AND v.status <> 'draft' AND v.cancelled_at IS NULL
           AND coalesce(v.effective_from <= $3, true) AND coalesce(v.effective_to > $3, true)
         ORDER BY t.id, v.version DESC",
    )
    .bind(scope.workspace_id)
    .bind(slugs)
    .bind(at)
    .fetch_all(&mut *conn)
    .await
    .context("reading rate tables")?;
    let versions: Vec<_> = rows
        .into_iter()
        .map(|(slug, table_type, id, snapshot)| Ok((slug, table_type, id, read_snapshot(id, &snapshot)?)))
        .collect::<Result<_>>()?;
    let sets: Vec<_> = versions.iter().map(|(_, _, _, snapshot)| snapshot.entry_set_id).collect();
    let stored = load_entries(conn, scope.workspace_id, &sets).await?;
    let compile = |(slug, table_type, id, snapshot): (String, RateTableType, VersionId, RateTableSnapshot)| {
        let table = compile(&slug, table_type, id, snapshot, &stored)?;
        Ok((slug, table))
    };
    versions.into_iter().map(compile).collect()
}

/// Compiles a stored version.
pub(crate) fn compile(
    slug: &str,
    table_type: RateTableType,
    version_id: VersionId,
    snapshot: RateTableSnapshot,
    stored: &Stored,
) -> Result<rating::RateTable> {
    let entries = stored.entries(snapshot.entry_set_id, table_type);
    let when_missing = snapshot.when_missing();
    rating::RateTable::compile(RateTableDefinition { slug: slug.to_owned(), version_id, when_missing, entries })
        .map_err(|error| Error::internal(format!("compiling rate table version {version_id}"), error))
}

/// The frozen state of a version.
pub(crate) fn read_snapshot(id: VersionId, snapshot: &serde_json::Value) -> Result<RateTableSnapshot> {
    RateTableSnapshot::deserialize(snapshot)
        .map_err(|error| Error::internal(format!("reading rate table version {id}"), error))
}
