//! Rate tables (rate-tables.md): numbers by key or range that pricing expressions consult.

mod entries;
mod request;
mod uses;
mod versions;
mod write;

use chrono::{DateTime, Utc};
use domain::{MissingKeyPolicy, OrganizationId, Quantity, RateTableId, RateTableType, Result, Scope, VersionId};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::version::{AsOf, VersionRow, Versioned};

pub use entries::RateTableEntry;
use entries::Stored;
pub(crate) use entries::load_entries;
pub use request::{CreateRateTableRequest, CreateVersionRequest, CreateVersionWire, UpdateRateTableRequest};
pub use uses::{check_uses, in_effect};
pub(crate) use uses::{compile, read_snapshot};
pub use versions::{
    amend_version, cancel_version, copy_version_as_draft, create_version, get_version, publish_version,
    unschedule_version,
};
pub use write::{archive, create, update};

domain::wire_enum! {
    /// State of a rate table.
    pub enum RateTableStatus {
        /// Without a published version.
        Draft = "draft",
        /// In use.
        Active = "active",
        /// Withdrawn.
        Archived = "archived",
    }
}

/// A rate table without its entries, which belong to its versions.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct RateTable {
    /// Table.
    pub id: RateTableId,
    /// Owner.
    pub organization_id: OrganizationId,
    /// Name.
    pub name: String,
    /// Stable name in expressions.
    pub slug: String,
    /// Text for people.
    #[schema(required)]
    pub description: Option<String>,
    /// How it is read.
    pub table_type: RateTableType,
    /// What it answers for a key that it lacks.
    pub on_missing_key: MissingKeyPolicy,
    /// The answer under `default_value`.
    #[schema(required, value_type = Option<String>)]
    pub default_value: Option<Quantity>,
    /// State.
    pub lifecycle_status: RateTableStatus,
    /// The head version.
    #[schema(required)]
    pub head_version_id: Option<VersionId>,
    /// Number of the head version; 0 before the first one is published.
    pub version: i32,
    /// Timeline flag.
    pub requires_continuous_coverage: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
    /// When it was deleted.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
    /// The entries of the version in effect.
    #[serde(skip)]
    #[schema(ignore)]
    pub entry_set_id: Option<Uuid>,
}

/// A version with its entries.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RateTableVersion {
    /// The version.
    #[serde(flatten)]
    pub row: VersionRow,
    /// The table.
    pub rate_table_id: RateTableId,
    /// In the order of keys or bounds.
    pub entries: Vec<RateTableEntry>,
}

/// The members of a version's snapshot that evaluation needs.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct RateTableSnapshot {
    pub on_missing_key: MissingKeyPolicy,
    pub default_value: Option<Quantity>,
    pub entry_set_id: Uuid,
}

impl RateTableSnapshot {
    /// What it gives back for a missing key.
    pub fn when_missing(&self) -> Option<Quantity> {
        match self.on_missing_key {
            MissingKeyPolicy::Error => None,
            MissingKeyPolicy::Zero => Some(Quantity::ZERO),
            MissingKeyPolicy::DefaultValue => self.default_value,
        }
    }
}

/// The members of a version are read from the one that is in effect.
const LIST: ListSpec = ListSpec {
    name: "rate_tables",
    columns: "t.id, t.organization_id, e.name, t.slug, e.description, t.table_type, e.on_missing_key, e.default_value,
        t.status AS lifecycle_status, e.head_version_id, e.version, e.requires_continuous_coverage, t.created_at,
        t.updated_at, t.deleted_at, e.entry_set_id",
    from: "rate_table t CROSS JOIN LATERAL jsonb_populate_record(t, entity_state(t.id)) e",
    workspace_column: "t.workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("t.id"),
        ListField::new("name", ListKind::Text).column("e.name").sortable(),
        ListField::new("slug", ListKind::Text).column("t.slug").sortable(),
        ListField::new("table_type", ListKind::Word(&["lookup", "bracket"])).column("t.table_type"),
        ListField::new("lifecycle_status", ListKind::Word(&["draft", "active", "archived"])).column("t.status"),
        ListField::new("created_at", ListKind::Instant).column("t.created_at").sortable(),
        ListField::new("updated_at", ListKind::Instant).column("t.updated_at").sortable(),
    ],
    shorthands: &[],
    order: "t.created_at",
    id: "t.id",
};

/// Rate tables of the workspace.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<RateTable>> {
    ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await
}

/// One rate table.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: RateTableId) -> Result<RateTable> {
    RateTable::read(scope, conn, id.0, AsOf::Instant(scope.now())).await
}
