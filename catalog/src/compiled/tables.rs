//! What expressions need beside prices: formulas by version, rate tables by slug with their timelines.

use std::collections::HashMap;
use std::sync::Arc;

use domain::{Error, Instant, RateTableType, Result, VersionId, WorkspaceId};
use rating::{Formula, RateTable};
use serde::Deserialize;
use sqlx::{FromRow, PgConnection};
use store::StoreError;

use super::{SINCE_EVER, WorkspaceCatalog};
use crate::formula::FormulaSnapshot;
use crate::rate_table::{compile, load_entries, read_snapshot};

/// Every published version of the formulas and rate tables of a workspace.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    formulas: HashMap<VersionId, Arc<Formula>>,
    /// By slug; versions with the span in which they hold, by start.
    rate_tables: HashMap<String, Vec<(Instant, Option<Instant>, Arc<RateTable>)>>,
}

impl WorkspaceCatalog {
    /// A version of a price formula.
    #[must_use]
    pub fn formula(&self, version: VersionId) -> Option<&Arc<Formula>> {
        self.tables.formulas.get(&version)
    }

    /// The version of a rate table that is in effect at an instant.
    #[must_use]
    pub fn rate_table(&self, slug: &str, at: Instant) -> Option<&Arc<RateTable>> {
        let holds = |(from, to, _): &&(Instant, Option<Instant>, _)| *from <= at && to.is_none_or(|to| at < to);
        self.tables.rate_tables.get(slug)?.iter().rev().find(holds).map(|(_, _, table)| table)
    }
}

#[derive(FromRow)]
struct TableVersion {
    slug: String,
    table_type: RateTableType,
    id: VersionId,
    effective_from: Option<Instant>,
    effective_to: Option<Instant>,
    snapshot: serde_json::Value,
}

/// Reads and compiles them: three statements.
pub(super) async fn load(conn: &mut PgConnection, workspace_id: WorkspaceId) -> Result<Tables> {
    let mut tables = Tables { formulas: load_formulas(conn, workspace_id).await?, rate_tables: HashMap::new() };
    let versions: Vec<TableVersion> = sqlx::query_as(
        "SELECT t.slug, t.table_type, v.id, v.effective_from, v.effective_to, v.snapshot
         FROM entity_version v JOIN rate_table t ON t.id = v.entity_id
         WHERE v.workspace_id = $1 AND v.entity_type = 'rate_table' AND v.status <> 'draft' AND v.cancelled_at IS NULL
         ORDER BY t.id, v.effective_from NULLS FIRST, v.version",
    )
    .bind(workspace_id)
    .fetch_all(&mut *conn)
    .await
    .context("reading rate table versions")?;
    let snapshots = versions.iter().map(|v| read_snapshot(v.id, &v.snapshot)).collect::<Result<Vec<_>>>()?;
    let sets: Vec<_> = snapshots.iter().map(|snapshot| snapshot.entry_set_id).collect();
    let stored = load_entries(conn, workspace_id, &sets).await?;
    for (version, snapshot) in versions.into_iter().zip(snapshots) {
        let table = compile(&version.slug, version.table_type, version.id, snapshot, &stored)?;
        let from = version.effective_from.unwrap_or(SINCE_EVER);
        let timeline = tables.rate_tables.entry(version.slug).or_default();
        timeline.push((from, version.effective_to, Arc::new(table)));
    }
    Ok(tables)
}

async fn load_formulas(conn: &mut PgConnection, workspace_id: WorkspaceId) -> Result<HashMap<VersionId, Arc<Formula>>> {
    let rows: Vec<(VersionId, serde_json::Value)> = sqlx::query_as(
        "SELECT id, snapshot FROM entity_version
         WHERE workspace_id = $1 AND entity_type = 'price_formula' AND status <> 'draft' AND cancelled_at IS NULL",
    )
    .bind(workspace_id)
    .fetch_all(conn)
    .await
    .context("reading formula versions")?;
    let compile = |(id, snapshot): (VersionId, serde_json::Value)| {
        let snapshot = FormulaSnapshot::deserialize(&snapshot)
            .map_err(|error| Error::internal(format!("reading formula version {id}"), error))?;
        match snapshot.compile() {
            Ok(formula) => Ok((id, Arc::new(formula))),
            Err(errors) => Err(Error::invariant(format!("formula version {id} does not compile: {errors:?}"))),
        }
    };
    rows.into_iter().map(compile).collect()
}
