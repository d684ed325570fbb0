//! What expressions need beside prices: formulas by id and rate tables by slug, with their timelines.

use std::collections::HashMap;
use std::sync::Arc;

use domain::{Error, Instant, RateTableType, Result, VersionId, WorkspaceId};
use rating::{PriceFormula, RateTable};
use serde::Deserialize;
use sqlx::{FromRow, PgConnection};
use store::StoreError;

use super::{SINCE_EVER, WorkspaceCatalog};
use crate::formula::FormulaSnapshot;
use crate::rate_table::{compile, load_entries, read_snapshot};

/// Every published version of the formulas and rate tables of a workspace.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    formulas: FormulasOf,
    /// By slug.
    rate_tables: HashMap<String, Timeline<Arc<RateTable>>>,
    /// Also those that were taken off the timeline: a state that was counted before may name them.
    versions: HashMap<VersionId, Arc<RateTable>>,
}

/// Versions with the span in which they hold, by start.
type Timeline<T> = Vec<(Instant, Option<Instant>, T)>;

/// By id of the formula.
type FormulasOf = HashMap<uuid::Uuid, Timeline<PriceFormula>>;

/// The version that holds at an instant.
fn at<T>(timeline: &[(Instant, Option<Instant>, T)], at: Instant) -> Option<&T> {
    let holds = |(from, to, _): &&(Instant, Option<Instant>, T)| *from <= at && to.is_none_or(|to| at < to);
    timeline.iter().rev().find(holds).map(|(_, _, version)| version)
}

impl Tables {
    /// The version of a formula that is in effect at an instant.
    pub(super) fn formula(&self, id: uuid::Uuid, instant: Instant) -> Option<&PriceFormula> {
        at(self.formulas.get(&id)?, instant)
    }

    /// The version of a rate table that is in effect at an instant.
    pub(super) fn rate_table(&self, slug: &str, instant: Instant) -> Option<&Arc<RateTable>> {
        at(self.rate_tables.get(slug)?, instant)
    }

    /// A version of any rate table.
    pub(super) fn rate_table_version(&self, id: VersionId) -> Option<&Arc<RateTable>> {
        self.versions.get(&id)
    }
}

impl WorkspaceCatalog {
    /// The version of a rate table that is in effect at an instant.
    #[must_use]
    pub fn rate_table(&self, slug: &str, at: Instant) -> Option<&Arc<RateTable>> {
        self.tables.rate_table(slug, at)
    }
}

#[derive(FromRow)]
struct TableVersion {
    slug: String,
    table_type: RateTableType,
    id: VersionId,
    effective_from: Option<Instant>,
    effective_to: Option<Instant>,
    is_on_timeline: bool,
    snapshot: serde_json::Value,
}

/// Reads and compiles them: three statements.
pub(super) async fn load(conn: &mut PgConnection, workspace_id: WorkspaceId) -> Result<Tables> {
    let mut tables = Tables { formulas: load_formulas(conn, workspace_id).await?, ..Tables::default() };
    let versions: Vec<TableVersion> = sqlx::query_as(
        "SELECT t.slug, t.table_type, v.id, v.effective_from, v.effective_to,
                v.status <> 'draft' AND v.cancelled_at IS NULL AS is_on_timeline, v.snapshot
         FROM entity_version v JOIN rate_table t ON t.id = v.entity_id
         WHERE v.workspace_id = $1 AND v.entity_type = 'rate_table' AND v.snapshot ->> 'entry_set_id' IS NOT NULL
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
        let table = Arc::new(compile(&version.slug, version.table_type, version.id, snapshot, &stored)?);
        tables.versions.insert(version.id, table.clone());
        if version.is_on_timeline {
            let from = version.effective_from.unwrap_or(SINCE_EVER);
            tables.rate_tables.entry(version.slug).or_default().push((from, version.effective_to, table));
        }
    }
    Ok(tables)
}

async fn load_formulas(conn: &mut PgConnection, workspace_id: WorkspaceId) -> Result<FormulasOf> {
    type Row = (uuid::Uuid, VersionId, Option<Instant>, Option<Instant>, serde_json::Value);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT entity_id, id, effective_from, effective_to, snapshot FROM entity_version
         WHERE workspace_id = $1 AND entity_type = 'price_formula' AND status <> 'draft' AND cancelled_at IS NULL
         ORDER BY entity_id, effective_from NULLS FIRST, version",
    )
    .bind(workspace_id)
    .fetch_all(conn)
    .await
    .context("reading formula versions")?;
    let mut formulas = FormulasOf::new();
    for (formula_id, version_id, from, to, snapshot) in rows {
        let FormulaSnapshot { expression, variables, .. } = FormulaSnapshot::deserialize(&snapshot)
            .map_err(|error| Error::internal(format!("reading formula version {version_id}"), error))?;
        let formula = PriceFormula { version_id, expression, variables };
        formulas.entry(formula_id).or_default().push((from.unwrap_or(SINCE_EVER), to, formula));
    }
    Ok(formulas)
}
