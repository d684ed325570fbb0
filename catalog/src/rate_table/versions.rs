//! Versions of rate tables with their entries.

use domain::error::FieldErrorCode as Code;
use domain::{Error, RateTableId, RateTableType, Result, Scope, VersionId};
use rating::rate_table::Entries;
use serde_json::Value;
use sqlx::PgConnection;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::{CreateVersionRequest, RateTable, RateTableVersion, UpdateRateTableRequest, entries};
use crate::version::{
    CopyAsDraftRequest, EditControls, Life, PublishVersionRequest, VersionRecord, VersionRef, Versioned, edit,
};

/// Makes a version with its entries: in effect now or from `effective_at`, or a draft. The first version of a table holds
/// since ever unless `effective_at` names its start.
///
/// # Errors
/// `NotFound`; `Validation` for entries of the other kind; `Conflict` for an archived table and when it has a draft that
/// this one would replace; as [`edit::update`].
pub async fn create_version(
    scope: &Scope,
    tx: &mut Tx,
    id: RateTableId,
    request: CreateVersionRequest,
) -> Result<RateTableVersion> {
    RateTable::lock(scope, tx, id.0).await?;
    let table = super::get(scope, tx.conn(), id).await?;
    let is_draft = table.life().1 == Life::Draft;
    if is_draft || request.controls.save_as_draft {
        edit::refuse_second_draft(scope, tx, id.0).await?;
    }
    let EditControls { effective_at, save_as_draft, .. } = request.controls;
    let change = with_entries(scope, tx, &table, request).await?;
    let newest = if is_draft && !save_as_draft {
        // Nothing was rated by a table without a version, so its first one may start in the past.
        let controls = EditControls { effective_at: None, ..change.controls };
        edit::update::<RateTable>(scope, tx, id.0, UpdateRateTableRequest { controls, ..change }).await?;
        let draft = newest_version(scope, tx, id).await?;
        let publication = PublishVersionRequest { effective_at, expected_version: None };
        edit::publish::<RateTable>(scope, tx, id.0, draft, publication).await?;
        draft
    } else {
        edit::update::<RateTable>(scope, tx, id.0, change).await?;
        newest_version(scope, tx, id).await?
    };
    get_version(scope, tx.conn(), id, newest).await
}

/// Replaces the entries of a draft or scheduled version.
///
/// # Errors
/// As [`edit::amend`]; `Validation` for entries of the other kind.
pub async fn amend_version(
    scope: &Scope,
    tx: &mut Tx,
    id: RateTableId,
    version: VersionRef,
    request: CreateVersionRequest,
) -> Result<RateTableVersion> {
    RateTable::lock(scope, tx, id.0).await?;
    let table = super::get(scope, tx.conn(), id).await?;
    let change = with_entries(scope, tx, &table, request).await?;
    edit::amend::<RateTable>(scope, tx, id.0, version, change).await?;
    entries::forget_unnamed(scope, tx, id).await?;
    get_version(scope, tx.conn(), id, version).await
}

/// One version with its entries.
///
/// # Errors
/// `NotFound`.
pub async fn get_version(
    scope: &Scope,
    conn: &mut PgConnection,
    id: RateTableId,
    version: VersionRef,
) -> Result<RateTableVersion> {
    let record = edit::get::<RateTable>(scope, conn, id.0, version).await?;
    with_its_entries(scope, conn, record).await
}

async fn with_its_entries(scope: &Scope, conn: &mut PgConnection, record: VersionRecord) -> Result<RateTableVersion> {
    let set = record.snapshot.get("entry_set_id").and_then(Value::as_str).and_then(|id| Uuid::parse_str(id).ok());
    let entries = match set {
        Some(set) => entries::list(scope, conn, set).await?,
        None => Vec::new(), // a draft that was made without any
    };
    Ok(RateTableVersion { rate_table_id: RateTableId(record.entity_id), row: record.row, entries })
}

/// Stores the entries of a request, as a change of the table.
async fn with_entries(
    scope: &Scope,
    tx: &mut Tx,
    table: &RateTable,
    request: CreateVersionRequest,
) -> Result<UpdateRateTableRequest> {
    let wrong = match (table.table_type, &request.entries) {
        (RateTableType::Lookup, Entries::Bracket(_)) => Some("bracket_entries"),
        (RateTableType::Bracket, Entries::Lookup(_)) => Some("lookup_entries"),
        _ => None,
    };
    if let Some(field) = wrong {
        return Err(Error::field(
            field,
            Code::NotAllowed,
            format!("does not fit: the table is a {} table", table.table_type),
        ));
    }
    let set = entries::insert(scope, tx, table.id, request.entries).await?;
    Ok(UpdateRateTableRequest { entry_set_id: Some(set), ..request.controls.into() })
}

async fn newest_version(scope: &Scope, tx: &mut Tx, id: RateTableId) -> Result<VersionRef> {
    let id: VersionId = sqlx::query_scalar(
        "SELECT id FROM entity_version WHERE workspace_id = $1 AND entity_id = $2 ORDER BY version DESC LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(tx.conn())
    .await
    .context("looking for the newest version of a rate table")?;
    Ok(VersionRef::Id(id))
}

/// Publishes a draft version.
///
/// # Errors
/// As [`edit::publish`].
pub async fn publish_version(
    scope: &Scope,
    tx: &mut Tx,
    id: RateTableId,
    version: VersionRef,
    request: PublishVersionRequest,
) -> Result<RateTableVersion> {
    let record = edit::publish::<RateTable>(scope, tx, id.0, version, request).await?;
    with_its_entries(scope, tx.conn(), record).await
}

/// Turns a scheduled version back into a draft.
///
/// # Errors
/// As [`edit::unschedule`].
pub async fn unschedule_version(
    scope: &Scope,
    tx: &mut Tx,
    id: RateTableId,
    version: VersionRef,
) -> Result<RateTableVersion> {
    let record = edit::unschedule::<RateTable>(scope, tx, id.0, version).await?;
    with_its_entries(scope, tx.conn(), record).await
}

/// Archives a draft or scheduled version.
///
/// # Errors
/// As [`edit::cancel`].
pub async fn cancel_version(
    scope: &Scope,
    tx: &mut Tx,
    id: RateTableId,
    version: VersionRef,
) -> Result<RateTableVersion> {
    let record = edit::cancel::<RateTable>(scope, tx, id.0, version).await?;
    with_its_entries(scope, tx.conn(), record).await
}

/// Makes a draft with the entries of any version.
///
/// # Errors
/// As [`edit::copy_as_draft`].
pub async fn copy_version_as_draft(
    scope: &Scope,
    tx: &mut Tx,
    id: RateTableId,
    version: VersionRef,
    request: CopyAsDraftRequest,
) -> Result<RateTableVersion> {
    let change = EditControls::from(request).into();
    let record = edit::copy_as_draft::<RateTable>(scope, tx, id.0, version, change).await?;
    with_its_entries(scope, tx.conn(), record).await
}
