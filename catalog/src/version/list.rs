//! Reads versions: lists, timelines, one.

use std::collections::HashMap;

use domain::error::FieldErrorCode as Code;
use domain::{Error, Result, Scope, VersionId};
use sqlx::{AssertSqlSafe, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};
use uuid::Uuid;

use super::{Entity, VersionRecord, VersionRef, VersionRow};

const ENTITY_ID: ListField = ListField::new("entity_id", ListKind::Id).column("v.entity_id");

/// Order of a timeline: since ever first, drafts (which have no start) last.
const START: ListField = ListField::new("effective_from", ListKind::Instant)
    .column("CASE WHEN v.status = 'draft' THEN '9999-12-31Z' ELSE coalesce(v.effective_from, '0001-01-01Z') END")
    .sortable();

const LIST: ListSpec = ListSpec {
    name: "versions",
    columns: "v.id, v.version, v.status, v.effective_from, v.effective_to, v.published_at, v.created_at, v.created_by,
        v.archived_reason, v.cancelled_at,
        (SELECT count(*) FROM subscription s WHERE s.plan_version_id = v.id) AS usage_count",
    from: "version_now v",
    workspace_column: "v.workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("v.id"),
        ListField::new("version", ListKind::Number).column("v.version").sortable(),
        ListField::new("status", ListKind::Word(&["draft", "scheduled", "active", "archived"])).column("v.status"),
        ListField::new("effective_from", ListKind::Instant).column("v.effective_from"),
        ListField::new("created_at", ListKind::Instant).column("v.created_at").sortable(),
    ],
    shorthands: &[],
    order: "v.created_at",
    id: "v.id",
};

/// The timeline with drafts and archived versions.
const WHOLE_TIMELINE: ListSpec = ListSpec { name: "whole_timeline", fields: &[START], ..LIST };

/// The timeline by default.
const TIMELINE: ListSpec =
    ListSpec { name: "timeline", condition: "v.status IN ('active', 'scheduled')", ..WHOLE_TIMELINE };

/// Versions of one entity, newest first. The caller has checked that the entity is there.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(
    scope: &Scope,
    conn: &mut PgConnection,
    entity_id: Uuid,
    parameters: &[(String, String)],
) -> Result<Page<VersionRow>> {
    ListQuery::parse(&LIST, parameters)?.only(ENTITY_ID, entity_id).fetch(conn, scope).await
}

/// Versions of one entity, newest first.
///
/// # Errors
/// `NotFound`, and as [`ListQuery::parse`].
pub async fn list_of(
    scope: &Scope,
    conn: &mut PgConnection,
    entity: Entity,
    entity_id: Uuid,
    parameters: &[(String, String)],
) -> Result<Page<VersionRow>> {
    let query = ListQuery::parse(&LIST, parameters)?;
    check_exists(scope, conn, entity, entity_id).await?;
    query.only(ENTITY_ID, entity_id).fetch(conn, scope).await
}

/// Active and scheduled versions of one entity by their start; `include=all` adds drafts and archived ones.
///
/// # Errors
/// `NotFound`, and as [`ListQuery::parse`].
pub async fn timeline(
    scope: &Scope,
    conn: &mut PgConnection,
    entity: Entity,
    entity_id: Uuid,
    parameters: &[(String, String)],
) -> Result<Page<VersionRow>> {
    let value_of = |wanted: &str| parameters.iter().rev().find(|(name, _)| name == wanted).map(|(_, v)| v.as_str());
    let spec = match value_of("include") {
        None => &TIMELINE,
        Some("all") => &WHOLE_TIMELINE,
        Some(_) => return Err(Error::field("include", Code::InvalidEnum, "must be all, or left out")),
    };
    let mut parameters = parameters.to_vec();
    if value_of("sort").is_none() {
        parameters.push(("sort".into(), START.name.into()));
    }
    let query = ListQuery::parse_with(spec, &parameters, &["include"])?;
    check_exists(scope, conn, entity, entity_id).await?;
    query.only(ENTITY_ID, entity_id).fetch(conn, scope).await
}

async fn check_exists(scope: &Scope, conn: &mut PgConnection, entity: Entity, id: Uuid) -> Result<()> {
    let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE workspace_id = $1 AND id = $2)", entity.table());
    let exists: bool = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_one(conn)
        .await
        .context("looking for an entity")?;
    if exists { Ok(()) } else { Err(Error::not_found(entity.as_str(), id)) }
}

/// One version of an entity.
///
/// # Errors
/// `NotFound`.
pub async fn get(
    scope: &Scope,
    conn: &mut PgConnection,
    entity: Entity,
    entity_id: Uuid,
    version: VersionRef,
) -> Result<VersionRecord> {
    let (number, id) = match version {
        VersionRef::Number(number) => (Some(number), None),
        VersionRef::Id(id) => (None, Some(id)),
    };
    let sql = format!(
        "SELECT {}, v.entity_id, v.published_by, v.warnings, v.snapshot, v.planned_from, v.planned_to FROM {}
         WHERE v.workspace_id = $1 AND v.entity_type = $2 AND v.entity_id = $3 AND (v.version = $4 OR v.id = $5)",
        LIST.columns, LIST.from
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(entity.as_str())
        .bind(entity_id)
        .bind(number)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a version")?
        .ok_or_else(|| Error::not_found("version", version))
}

/// Which entity of this kind each of these versions belongs to; versions of others are left out.
///
/// # Errors
/// As every statement.
pub async fn owners(
    scope: &Scope,
    conn: &mut PgConnection,
    entity: Entity,
    versions: &[VersionId],
) -> Result<HashMap<VersionId, Uuid>> {
    let ids: Vec<Uuid> = versions.iter().map(|id| id.0).collect();
    let rows: Vec<(VersionId, Uuid)> = sqlx::query_as(
        "SELECT id, entity_id FROM entity_version
         WHERE workspace_id = $1 AND entity_type = $2 AND id = ANY($3) AND status IN ('active', 'archived')
           AND cancelled_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(entity.as_str())
    .bind(ids)
    .fetch_all(conn)
    .await
    .context("reading pinned versions")?;
    Ok(rows.into_iter().collect())
}
