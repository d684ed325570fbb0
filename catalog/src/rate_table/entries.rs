//! Entries in their own table: written once as a set, which versions name.

use std::collections::HashMap;

use domain::{Quantity, RateTableId, RateTableType, Result, Scope, WorkspaceId};
use rating::rate_table::{BracketEntry, Entries, LookupEntry};
use serde::Serialize;
use sqlx::{FromRow, PgConnection};
use store::{StoreError, Tx};
use utoipa::ToSchema;
use uuid::Uuid;

/// An entry of a version. A lookup entry has a key, a bracket entry bounds.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct RateTableEntry {
    /// Entry.
    pub id: Uuid,
    /// Compared exactly.
    #[schema(required)]
    pub key: Option<String>,
    /// Exclusive; null: no lower bound.
    #[schema(required, value_type = Option<String>)]
    pub lower_bound: Option<Quantity>,
    /// Inclusive; null: open.
    #[schema(required, value_type = Option<String>)]
    pub upper_bound: Option<Quantity>,
    /// What it stands for.
    #[schema(value_type = String)]
    pub value: Quantity,
}

/// Writes checked entries as a new set, in the order of keys or bounds.
pub(super) async fn insert(scope: &Scope, tx: &mut Tx, table: RateTableId, entries: Entries) -> Result<Uuid> {
    let set = Uuid::now_v7();
    let columns = Columns::from(entries);
    let ids: Vec<Uuid> = columns.values.iter().map(|_| Uuid::now_v7()).collect();
    sqlx::query(
        "INSERT INTO rate_table_entry (id, workspace_id, rate_table_id, entry_set_id, position, key, lower_bound, upper_bound,
                                       value)
         SELECT id, $1, $2, $3, position, key, lower_bound, upper_bound, value
         FROM UNNEST($4::uuid[], $5::text[], $6::numeric[], $7::numeric[], $8::numeric[]) WITH ORDINALITY
              AS entry (id, key, lower_bound, upper_bound, value, position)",
    )
    .bind(scope.workspace_id)
    .bind(table)
    .bind(set)
    .bind(ids)
    .bind(columns.keys)
    .bind(columns.lower_bounds)
    .bind(columns.upper_bounds)
    .bind(columns.values)
    .execute(tx.conn())
    .await
    .context("writing the entries of a rate table")?;
    Ok(set)
}

/// Entries by column.
#[derive(Default)]
struct Columns {
    keys: Vec<Option<String>>,
    lower_bounds: Vec<Option<Quantity>>,
    upper_bounds: Vec<Option<Quantity>>,
    values: Vec<Quantity>,
}

impl From<Entries> for Columns {
    fn from(entries: Entries) -> Self {
        let mut columns = Self::default();
        match entries {
            Entries::Lookup(mut entries) => {
                entries.sort_by(|a, b| a.key.cmp(&b.key));
                for entry in entries {
                    columns.push(Some(entry.key), None, None, entry.value);
                }
            }
            Entries::Bracket(mut entries) => {
                entries.sort_by_key(|entry| entry.lower_bound); // no bound comes first
                for entry in entries {
                    columns.push(None, entry.lower_bound, entry.upper_bound, entry.value);
                }
            }
        }
        columns
    }
}

impl Columns {
    fn push(&mut self, key: Option<String>, lower: Option<Quantity>, upper: Option<Quantity>, value: Quantity) {
        self.keys.push(key);
        self.lower_bounds.push(lower);
        self.upper_bounds.push(upper);
        self.values.push(value);
    }
}

/// Forgets the sets that no version of the table names any more: those that a draft or a scheduled version had.
pub(super) async fn forget_unnamed(scope: &Scope, tx: &mut Tx, table: RateTableId) -> Result<()> {
    sqlx::query(
        "DELETE FROM rate_table_entry entry
         WHERE entry.workspace_id = $1 AND entry.rate_table_id = $2
           AND NOT EXISTS (SELECT FROM entity_version v
                           WHERE v.entity_id = $2 AND v.snapshot ->> 'entry_set_id' = entry.entry_set_id::text)",
    )
    .bind(scope.workspace_id)
    .bind(table)
    .execute(tx.conn())
    .await
    .context("forgetting replaced entries of a rate table")?;
    Ok(())
}

/// The entries of a set, in order.
pub(super) async fn list(scope: &Scope, conn: &mut PgConnection, set: Uuid) -> Result<Vec<RateTableEntry>> {
    sqlx::query_as(
        "SELECT id, key, lower_bound, upper_bound, value FROM rate_table_entry
         WHERE workspace_id = $1 AND entry_set_id = $2 ORDER BY position",
    )
    .bind(scope.workspace_id)
    .bind(set)
    .fetch_all(conn)
    .await
    .context("reading the entries of a rate table")
}

#[derive(FromRow)]
struct EntryRow {
    entry_set_id: Uuid,
    key: Option<String>,
    lower_bound: Option<Quantity>,
    upper_bound: Option<Quantity>,
    value: Quantity,
}

/// Sets of entries as rating takes them; the key tells of what kind one is.
#[derive(Default)]
pub(crate) struct Stored(HashMap<Uuid, (Vec<LookupEntry>, Vec<BracketEntry>)>);

impl Stored {
    /// The entries of a set of a table of this kind.
    pub fn entries(&self, set: Uuid, table_type: RateTableType) -> Entries {
        let (lookup, bracket) = self.0.get(&set).cloned().unwrap_or_default();
        match table_type {
            RateTableType::Lookup => Entries::Lookup(lookup),
            RateTableType::Bracket => Entries::Bracket(bracket),
        }
    }
}

/// Reads several sets at once.
pub(crate) async fn load_entries(conn: &mut PgConnection, workspace_id: WorkspaceId, sets: &[Uuid]) -> Result<Stored> {
    let rows: Vec<EntryRow> = sqlx::query_as(
        "SELECT entry_set_id, key, lower_bound, upper_bound, value FROM rate_table_entry
         WHERE workspace_id = $1 AND entry_set_id = ANY($2) ORDER BY entry_set_id, position",
    )
    .bind(workspace_id)
    .bind(sets)
    .fetch_all(conn)
    .await
    .context("reading the entries of rate tables")?;
    let mut stored = Stored::default();
    for row in rows {
        let (lookup, bracket) = stored.0.entry(row.entry_set_id).or_default();
        match row.key {
            Some(key) => lookup.push(LookupEntry { key, value: row.value }),
            None => bracket.push(BracketEntry {
                lower_bound: row.lower_bound,
                upper_bound: row.upper_bound,
                value: row.value,
            }),
        }
    }
    Ok(stored)
}
