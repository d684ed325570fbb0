//! Writes of rate tables: create, edit-as-publish, archive, and what their versions need.

use domain::error::FieldErrorCode as Code;
use domain::{Error, JsonMap, MissingKeyPolicy, RateTableId, Result, Scope};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::{StoreError, Tx, on_constraint};
use uuid::Uuid;

use super::{CreateRateTableRequest, LIST, RateTable, RateTableStatus, UpdateRateTableRequest, uses};
use crate::recount::Touched;
use crate::version::{self, ArchiveRequest, AsOf, EditControls, Entity, Life, Span, VersionRecord, Versioned, edit};

/// Creates a table without a version: it is a draft until its first version is published.
///
/// # Errors
/// `Validation` for a default value that does not go with the policy, `Conflict` with `DUPLICATE` on `slug`.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreateRateTableRequest) -> Result<RateTable> {
    let table = new_table(scope, request);
    check_default(&table)?;
    if let Some(id) = find_by_slug(scope, tx, &table.slug).await? {
        return Err(Error::duplicate("slug", Some(id.to_string())));
    }
    insert(scope, tx, &table).await?;
    changed(scope, tx, "rate_table.created", &table).await?;
    Ok(table)
}

fn new_table(scope: &Scope, request: CreateRateTableRequest) -> RateTable {
    RateTable {
        id: RateTableId::generate(),
        organization_id: scope.organization_id,
        name: request.name,
        slug: request.slug,
        description: request.description,
        table_type: request.table_type,
        on_missing_key: request.on_missing_key.unwrap_or(MissingKeyPolicy::Error),
        default_value: request.default_value,
        lifecycle_status: RateTableStatus::Draft,
        head_version_id: None,
        version: 0,
        requires_continuous_coverage: request.requires_continuous_coverage.unwrap_or_default(),
        created_at: scope.now(),
        updated_at: scope.now(),
        deleted_at: None,
        entry_set_id: None,
    }
}

fn check_default(table: &RateTable) -> Result<()> {
    match (table.on_missing_key == MissingKeyPolicy::DefaultValue, table.default_value.is_some()) {
        (true, false) => {
            Err(Error::field("default_value", Code::Required, "is required by on_missing_key default_value"))
        }
        (false, true) => {
            Err(Error::field("default_value", Code::NotAllowed, "is used by on_missing_key default_value only"))
        }
        _ => Ok(()),
    }
}

impl Versioned for RateTable {
    type Update = UpdateRateTableRequest;
    type Version = VersionRecord;
    const ENTITY: Entity = Entity::RateTable;
    const DEFINITION: &'static [&'static str] =
        &["name", "description", "on_missing_key", "default_value", "requires_continuous_coverage", "entry_set_id"];
    const MAY_START_IN_THE_PAST: bool = true;

    async fn read(scope: &Scope, conn: &mut PgConnection, id: Uuid, as_of: AsOf) -> Result<Self> {
        version::read(scope, conn, Self::ENTITY, &LIST, id, as_of).await
    }

    fn life(&self) -> (i32, Life) {
        let life = match self.lifecycle_status {
            RateTableStatus::Draft => Life::Draft,
            RateTableStatus::Active => Life::Live,
            RateTableStatus::Archived => Life::Archived,
        };
        (self.version, life)
    }

    fn snapshot(&self) -> Value {
        json!({
            "name": self.name, "description": self.description, "on_missing_key": self.on_missing_key,
            "default_value": self.default_value, "requires_continuous_coverage": self.requires_continuous_coverage,
            "entry_set_id": self.entry_set_id,
        })
    }

    fn controls(update: &UpdateRateTableRequest) -> EditControls {
        update.controls
    }

    fn merge(mut self, update: UpdateRateTableRequest) -> Result<Self> {
        self.name = update.name.unwrap_or(self.name);
        self.description = update.description.apply(self.description);
        if let Some(policy) = update.on_missing_key {
            // Another policy has no use for the value that was sent with this one.
            if policy != MissingKeyPolicy::DefaultValue {
                self.default_value = None;
            }
            self.on_missing_key = policy;
        }
        self.default_value = update.default_value.apply(self.default_value);
        if let Some(flag) = update.requires_continuous_coverage {
            self.requires_continuous_coverage = flag;
        }
        self.entry_set_id = update.entry_set_id.or(self.entry_set_id);
        Ok(self)
    }

    async fn check(&self, _scope: &Scope, _tx: &mut Tx, _span: Option<&mut Span>) -> Result<()> {
        check_default(self)
    }

    fn requires_coverage(&self) -> bool {
        self.requires_continuous_coverage
    }

    /// Expressions of any price may read it.
    async fn touched(_scope: &Scope, _tx: &mut Tx, _id: Uuid) -> Result<Touched> {
        Ok(Touched::Everything)
    }

    fn event_members(&self) -> Vec<(&'static str, Value)> {
        vec![("slug", json!(self.slug))]
    }

    fn version(self, record: VersionRecord) -> VersionRecord {
        record
    }
}

/// Changes a table (edit-as-publish): the new version has the entries of the one before. Without any version the table
/// itself is changed.
///
/// # Errors
/// As [`edit::update`] and [`create`]; `Rule` for a start of a table that has no version yet.
pub async fn update(scope: &Scope, tx: &mut Tx, id: RateTableId, request: UpdateRateTableRequest) -> Result<RateTable> {
    RateTable::lock(scope, tx, id.0).await?;
    let current = super::get(scope, tx.conn(), id).await?;
    if current.lifecycle_status != RateTableStatus::Draft || current.entry_set_id.is_some() {
        return edit::update(scope, tx, id.0, request).await;
    }
    version::check_expected(request.controls.expected_version, current.version)?;
    if request.controls.start(scope.now())?.is_some() {
        return Err(Error::business_rule("the rate table has no version yet that could be scheduled"));
    }
    let mut table = current.merge(request)?;
    check_default(&table)?;
    table.updated_at = scope.now();
    save(scope, tx, &table).await?;
    changed(scope, tx, "rate_table.updated", &table).await?;
    Ok(table)
}

/// Retires a table: what was rated with it stays as it was.
///
/// # Errors
/// `NotFound`; `Conflict` with `INVALID_TRANSITION` for an archived one, and while an expression that is in effect or
/// scheduled reads it.
pub async fn archive(scope: &Scope, tx: &mut Tx, id: RateTableId, request: &ArchiveRequest) -> Result<RateTable> {
    RateTable::lock(scope, tx, id.0).await?;
    let mut table = super::get(scope, tx.conn(), id).await?;
    if table.lifecycle_status == RateTableStatus::Archived {
        let archived = RateTableStatus::Archived.as_str();
        return Err(Error::invalid_transition("rate_table", id, archived, archived, &[]));
    }
    if uses::is_named(scope, tx, &table).await? {
        return Err(Error::conflict("CONFLICT", format!("an active expression reads the rate table `{}`", table.slug)));
    }
    let now = scope.now();
    version::end(scope, tx, id.0, now, request.reason.as_deref().unwrap_or("archived")).await?;
    (table.lifecycle_status, table.updated_at) = (RateTableStatus::Archived, now);
    save(scope, tx, &table).await?;
    changed(scope, tx, "rate_table.archived", &table).await?;
    Ok(table)
}

async fn find_by_slug(scope: &Scope, tx: &mut Tx, slug: &str) -> Result<Option<RateTableId>> {
    sqlx::query_scalar("SELECT id FROM rate_table WHERE workspace_id = $1 AND slug = $2")
        .bind(scope.workspace_id)
        .bind(slug)
        .fetch_optional(tx.conn())
        .await
        .context("looking for a rate table by slug")
}

async fn changed(scope: &Scope, tx: &mut Tx, event: &str, table: &RateTable) -> Result<()> {
    tx.catalog_changed(scope.workspace_id);
    let mut payload = JsonMap::new();
    payload.insert("id".into(), json!(table.id));
    payload.insert("slug".into(), json!(table.slug));
    payload.insert("version".into(), json!(table.version));
    tx.emit(scope, event, "rate_table", table.id, payload).await
}

async fn insert(scope: &Scope, tx: &mut Tx, table: &RateTable) -> Result<()> {
    let inserted = sqlx::query(
        "INSERT INTO rate_table (id, organization_id, workspace_id, name, slug, description, table_type, on_missing_key,
                                 default_value, requires_continuous_coverage, status, version, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13)",
    )
    .bind(table.id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(&table.name)
    .bind(&table.slug)
    .bind(&table.description)
    .bind(table.table_type)
    .bind(table.on_missing_key)
    .bind(table.default_value)
    .bind(table.requires_continuous_coverage)
    .bind(table.lifecycle_status)
    .bind(table.version)
    .bind(table.created_at)
    .execute(tx.conn())
    .await;
    on_constraint(inserted, "creating a rate table", |constraint| {
        (constraint == "rate_table_workspace_id_slug_key").then(|| Error::duplicate("slug", None))
    })
    .map(drop)
}

/// Writes what a table has without a version, and its state.
async fn save(scope: &Scope, tx: &mut Tx, table: &RateTable) -> Result<()> {
    sqlx::query(
        "UPDATE rate_table SET name = $3, description = $4, on_missing_key = $5, default_value = $6,
             requires_continuous_coverage = $7, status = $8, updated_at = $9
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(table.id)
    .bind(&table.name)
    .bind(&table.description)
    .bind(table.on_missing_key)
    .bind(table.default_value)
    .bind(table.requires_continuous_coverage)
    .bind(table.lifecycle_status)
    .bind(table.updated_at)
    .execute(tx.conn())
    .await
    .context("saving a rate table")?;
    Ok(())
}
