//! Versions of catalog entities: numbered, immutable once active, each with the frozen state (scheduled-changes.md).
//!
//! A version whose start has come is active, whatever word its row still bears: nothing has to run at that instant.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::{Error, Input, Instant, Result, Scope, VersionId, VersionStatus};
use serde::Serialize;
use serde_json::Value;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError, Tx};
use utoipa::ToSchema;
use uuid::Uuid;

/// Entities that have versions here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entity {
    /// Product.
    Product,
    /// Plan.
    Plan,
    /// Price.
    Price,
    /// Meter.
    Meter,
    /// Product-meter binding.
    Binding,
}

impl Entity {
    /// As stored in `entity_version.entity_type` and named in problem documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Product => "product",
            Self::Plan => "plan",
            Self::Price => "price",
            Self::Meter => "meter",
            Self::Binding => "binding",
        }
    }
}

/// A warning on a scheduled version.
#[derive(Clone, Debug, Serialize, serde::Deserialize, ToSchema)]
pub struct VersionWarnDTO {
    /// Stable code.
    pub code: String,
    /// For people.
    pub message: String,
    /// What changed.
    pub entity_type: String,
    /// Which one.
    pub entity_id: Uuid,
    /// When it was found.
    pub created_at: DateTime<Utc>,
}

/// A version in a list.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct VersionRow {
    /// Version.
    pub id: VersionId,
    /// Number, from 1.
    pub version: i32,
    /// State.
    pub status: VersionStatus,
    /// Start of its span; null: since ever.
    #[schema(required)]
    pub effective_from: Option<DateTime<Utc>>,
    /// End of its span, exclusive; null: open.
    #[schema(required)]
    pub effective_to: Option<DateTime<Utc>>,
    /// When it was published.
    #[schema(required)]
    pub published_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Who made it: an API key, or null for the system.
    #[schema(required)]
    pub created_by: Option<Uuid>,
    /// Why it was archived; `superseded` when a later one took its place.
    #[schema(required)]
    pub archived_reason: Option<String>,
    /// When it was cancelled before it was applied.
    #[schema(required)]
    pub cancelled_at: Option<DateTime<Utc>>,
    /// Subscriptions that are pinned to it.
    pub usage_count: i64,
}

/// A version with its frozen state.
#[derive(Clone, Debug, FromRow)]
pub struct VersionRecord {
    /// The members of a list row.
    #[sqlx(flatten)]
    pub row: VersionRow,
    /// The entity.
    pub entity_id: Uuid,
    /// Who published it.
    pub published_by: Option<Uuid>,
    /// Warnings of a scheduled version.
    #[sqlx(json)]
    pub warnings: Vec<VersionWarnDTO>,
    /// The frozen state.
    pub snapshot: Value,
}

/// A version to be written.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// Kind of entity.
    pub entity: Entity,
    /// The entity.
    pub entity_id: Uuid,
    /// Number, from 1.
    pub version: i32,
    /// `Draft`, `Scheduled` or `Active`.
    pub status: VersionStatus,
    /// Start of its span; `None`: since ever.
    pub effective_from: Option<Instant>,
    /// End of its span, exclusive.
    pub effective_to: Option<Instant>,
    /// The frozen state.
    pub snapshot: Value,
}

/// Writes a version.
///
/// # Errors
/// As every statement.
pub async fn insert(scope: &Scope, tx: &mut Tx, new: NewVersion) -> Result<VersionId> {
    let id = VersionId::generate();
    let published = new.status != VersionStatus::Draft;
    sqlx::query(
        "INSERT INTO entity_version (id, workspace_id, entity_type, entity_id, version, status, effective_from, effective_to,
                                     published_at, published_by, created_at, created_by, snapshot)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(id)
    .bind(scope.workspace_id)
    .bind(new.entity.as_str())
    .bind(new.entity_id)
    .bind(new.version)
    .bind(new.status)
    .bind(new.effective_from)
    .bind(new.effective_to)
    .bind(published.then(|| scope.now()))
    .bind(scope.api_key_id().filter(|_| published))
    .bind(scope.now())
    .bind(scope.api_key_id())
    .bind(new.snapshot)
    .execute(tx.conn())
    .await
    .context("writing a version")?;
    Ok(id)
}

/// Ends the version that is in effect at `at`: it is archived as superseded.
///
/// # Errors
/// As every statement.
pub async fn supersede(scope: &Scope, tx: &mut Tx, entity_id: Uuid, at: Instant) -> Result<()> {
    end(scope, tx, entity_id, at, "superseded").await
}

/// Ends every version that has not ended by `at`, with a reason.
///
/// # Errors
/// As every statement.
pub async fn end(scope: &Scope, tx: &mut Tx, entity_id: Uuid, at: Instant, reason: &str) -> Result<()> {
    sqlx::query(
        "UPDATE entity_version SET status = 'archived', effective_to = LEAST(effective_to, $3), archived_reason = $4
         WHERE workspace_id = $1 AND entity_id = $2 AND status IN ('active', 'scheduled')",
    )
    .bind(scope.workspace_id)
    .bind(entity_id)
    .bind(at)
    .bind(reason)
    .execute(tx.conn())
    .await
    .context("ending a version")?;
    Ok(())
}

/// Replaces the frozen state of a draft, or turns it into the active version when `publish` is given a start.
///
/// # Errors
/// As every statement.
pub async fn rewrite_draft(
    scope: &Scope,
    tx: &mut Tx,
    entity_id: Uuid,
    snapshot: Value,
    publish: bool,
) -> Result<Option<VersionId>> {
    sqlx::query_scalar(
        "UPDATE entity_version
         SET snapshot = $3, status = CASE WHEN $4 THEN 'active' ELSE status END,
             published_at = CASE WHEN $4 THEN $5 ELSE published_at END,
             published_by = CASE WHEN $4 THEN $6 ELSE published_by END
         WHERE workspace_id = $1 AND entity_id = $2 AND status = 'draft' RETURNING id",
    )
    .bind(scope.workspace_id)
    .bind(entity_id)
    .bind(snapshot)
    .bind(publish)
    .bind(scope.now())
    .bind(scope.api_key_id())
    .fetch_optional(tx.conn())
    .await
    .context("rewriting a draft version")
}

const ENTITY_ID: ListField = ListField::new("entity_id", ListKind::Id).column("v.entity_id");

/// A scheduled version whose start has come is shown as active.
const LIST: ListSpec = ListSpec {
    name: "versions",
    columns: "v.id, v.version,
        CASE WHEN v.status = 'scheduled' AND v.effective_from <= clock_timestamp() THEN 'active' ELSE v.status END AS status,
        v.effective_from, v.effective_to, v.published_at, v.created_at, v.created_by, v.archived_reason, v.cancelled_at,
        (SELECT count(*) FROM subscription s WHERE s.plan_version_id = v.id) AS usage_count",
    from: "entity_version v",
    workspace_column: "v.workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("v.id"),
        ListField::new("version", ListKind::Number).column("v.version").sortable(),
        ListField::new("status", ListKind::Word(&["draft", "scheduled", "active", "archived"])).column(
            "CASE WHEN v.status = 'scheduled' AND v.effective_from <= clock_timestamp() THEN 'active' ELSE v.status END",
        ),
        ListField::new("effective_from", ListKind::Instant).column("v.effective_from"),
        ListField::new("created_at", ListKind::Instant).column("v.created_at").sortable(),
    ],
    shorthands: &[],
    order: "v.created_at",
    id: "v.id",
};

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

/// How a path addresses a version: by its number or by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionRef {
    /// Number, from 1.
    Number(i32),
    /// Id.
    Id(VersionId),
}

impl std::str::FromStr for VersionRef {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Uuid::parse_str(text) {
            Ok(id) => Ok(Self::Id(VersionId(id))),
            Err(_) => text.parse().map(Self::Number),
        }
    }
}

impl std::fmt::Display for VersionRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Id(id) => id.fmt(f),
        }
    }
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
        "SELECT {}, v.entity_id, v.published_by, v.warnings, v.snapshot FROM entity_version v
         WHERE v.workspace_id = $1 AND v.entity_type = $2 AND v.entity_id = $3 AND (v.version = $4 OR v.id = $5)",
        LIST.columns
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

/// Body of publish routes.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct PublishVersionRequest {
    /// When it takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Refused when the entity is at another version.
    pub expected_version: Option<i64>,
}

impl PublishVersionRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let effective_at = input.optional("effective_at", Field::instant);
        let expected_version = read_expected_version(&mut input);
        input.finish()?;
        Ok(Self { effective_at, expected_version })
    }
}

/// Body of archive routes.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct ArchiveRequest {
    /// Why.
    pub reason: Option<String>,
}

impl ArchiveRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let reason = input.optional("reason", |v| v.text(0, 500));
        input.finish()?;
        Ok(Self { reason })
    }
}

/// Edit-as-publish controls of an update request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EditControls {
    /// When the new version takes effect; default now.
    pub effective_at: Option<Instant>,
    /// Whether it stays a draft.
    pub save_as_draft: bool,
    /// Refused when the entity is at another version.
    pub expected_version: Option<i64>,
}

impl EditControls {
    /// Reads `effective_at`, `save_as_draft` and `expected_version`.
    pub fn read(input: &mut Input<'_>) -> Self {
        Self {
            effective_at: input.optional("effective_at", Field::instant),
            save_as_draft: input.optional("save_as_draft", Field::boolean).unwrap_or_default(),
            expected_version: read_expected_version(input),
        }
    }

    /// The rules that every edit shares. An entity that is not a draft can only be changed as of now: versions beside
    /// the active one are made by scheduled changes.
    ///
    /// # Errors
    /// `VersionConflict`; `Rule` for a future or past start and for a second draft.
    pub fn check(&self, current_version: i32, is_draft: bool, now: Instant) -> Result<()> {
        check_expected(self.expected_version, current_version)?;
        if !is_draft && self.save_as_draft {
            return Err(Error::business_rule(
                "a draft beside the active version is not supported yet; leave out save_as_draft",
            ));
        }
        check_effective_now(self.effective_at, now)
    }
}

fn read_expected_version(input: &mut Input<'_>) -> Option<i64> {
    input.optional("expected_version", |v| v.integer(0, i64::from(i32::MAX)))
}

/// Optimistic locking (conventions.md, Updates).
///
/// # Errors
/// `VersionConflict`.
pub fn check_expected(expected: Option<i64>, current: i32) -> Result<()> {
    match expected {
        Some(expected_version) if expected_version != i64::from(current) => {
            Err(Error::VersionConflict { expected_version, current_version: i64::from(current) })
        }
        _ => Ok(()),
    }
}

/// Refuses a start other than now.
///
/// # Errors
/// `Rule`.
pub fn check_effective_now(effective_at: Option<Instant>, now: Instant) -> Result<()> {
    match effective_at {
        Some(at) if at > now => Err(Error::business_rule(
            "a change of an existing entity takes effect at once; scheduling it with effective_at is not supported yet",
        )),
        Some(at) if now - at > chrono::TimeDelta::minutes(1) => Err(Error::business_rule(
            "a change cannot take effect in the past: usage was rated by the version of its time",
        )),
        _ => Ok(()),
    }
}

/// Refuses a draft of an entity that no operation could publish yet.
///
/// # Errors
/// `Rule`.
pub(crate) fn refuse_draft(save_as_draft: Option<bool>) -> Result<()> {
    match save_as_draft {
        Some(true) => Err(Error::business_rule("drafts of this entity are not supported yet; leave out save_as_draft")),
        _ => Ok(()),
    }
}

/// An end that does not lie behind its start is refused.
pub(crate) fn check_span(input: &mut Input<'_>, end_name: &str, start: Option<Instant>, end: Option<Instant>) {
    if let (Some(start), Some(end)) = (start, end)
        && end <= start
    {
        input.error(end_name, Code::OutOfRange, "must lie after the start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_addressed_by_number_or_id() {
        let id = Uuid::now_v7();
        assert_eq!("7".parse(), Ok(VersionRef::Number(7)));
        assert_eq!(id.to_string().parse(), Ok(VersionRef::Id(VersionId(id))));
        assert!("seven".parse::<VersionRef>().is_err());
    }
}
