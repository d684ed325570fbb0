//! Writes version rows and lays the state of a version over the row of its entity.

use domain::{Error, Instant, Result, Scope, VersionId, VersionStatus};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use store::{ListSpec, StoreError, Tx};
use uuid::Uuid;

use super::{Entity, VersionWarnDTO};

/// A version to be written.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// Kind of entity.
    pub entity: Entity,
    /// The entity.
    pub entity_id: Uuid,
    /// Number, from 1.
    pub version: i32,
    /// Where it stands.
    pub place: Place,
    /// The frozen state.
    pub snapshot: Value,
}

/// Where a version stands on the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// `Draft`, `Scheduled` or `Active`.
    pub status: VersionStatus,
    /// Start; of a draft: the one that it shall have. `None`: since ever.
    pub from: Option<Instant>,
    /// End that was asked for, exclusive.
    pub to: Option<Instant>,
}

impl Place {
    /// In effect since ever.
    pub const SINCE_EVER: Self = Self { status: VersionStatus::Active, from: None, to: None };

    /// A draft, with the span that it shall have.
    #[must_use]
    pub const fn draft(from: Option<Instant>, to: Option<Instant>) -> Self {
        Self { status: VersionStatus::Draft, from, to }
    }

    /// In effect from an instant, which may lie ahead.
    #[must_use]
    pub fn published(from: Option<Instant>, to: Option<Instant>, now: Instant) -> Self {
        let ahead = from.is_some_and(|from| from > now);
        Self { status: if ahead { VersionStatus::Scheduled } else { VersionStatus::Active }, from, to }
    }
}

/// Writes a version. Where it is published, [`settle`] cuts the spans of its neighbours.
///
/// # Errors
/// As every statement.
pub async fn insert(scope: &Scope, tx: &mut Tx, new: NewVersion) -> Result<VersionId> {
    let id = VersionId::generate();
    let is_draft = new.place.status == VersionStatus::Draft;
    sqlx::query(
        "INSERT INTO entity_version (id, workspace_id, entity_type, entity_id, version, status, effective_from, planned_from,
             effective_to, planned_to, published_at, published_by, created_at, created_by, snapshot)
         VALUES ($1, $2, $3, $4, $5, $6, CASE WHEN $7 THEN NULL ELSE $8 END, CASE WHEN $7 THEN $8 END,
             CASE WHEN $7 THEN NULL ELSE $9 END, $9, $10, $11, $12, $13, $14)",
    )
    .bind(id)
    .bind(scope.workspace_id)
    .bind(new.entity.as_str())
    .bind(new.entity_id)
    .bind(new.version)
    .bind(new.place.status)
    .bind(is_draft)
    .bind(new.place.from)
    .bind(new.place.to)
    .bind((!is_draft).then(|| scope.now()))
    .bind(scope.api_key_id().filter(|_| !is_draft))
    .bind(scope.now())
    .bind(scope.api_key_id())
    .bind(new.snapshot)
    .execute(tx.conn())
    .await
    .context("writing a version")?;
    Ok(id)
}

/// Gives a draft or scheduled version another state or another place; its warnings are gone then.
///
/// # Errors
/// As every statement.
pub(super) async fn rewrite(
    scope: &Scope,
    tx: &mut Tx,
    id: VersionId,
    place: Place,
    snapshot: Option<Value>,
) -> Result<()> {
    sqlx::query(
        "UPDATE entity_version SET status = $3, snapshot = coalesce($7, snapshot), warnings = '[]',
             effective_from = CASE WHEN $4 THEN NULL ELSE $5 END, planned_from = CASE WHEN $4 THEN $5 END,
             effective_to = CASE WHEN $4 THEN NULL ELSE $6 END, planned_to = $6,
             published_at = CASE WHEN $4 THEN NULL ELSE coalesce(published_at, $8) END,
             published_by = CASE WHEN $4 THEN NULL WHEN published_at IS NULL THEN $9 ELSE published_by END
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(place.status)
    .bind(place.status == VersionStatus::Draft)
    .bind(place.from)
    .bind(place.to)
    .bind(snapshot)
    .bind(scope.now())
    .bind(scope.api_key_id())
    .execute(tx.conn())
    .await
    .context("rewriting a version")?;
    Ok(())
}

/// Cuts the spans of the published versions of an entity, so that at each instant at most one is in effect: a version ends
/// where its successor starts. Those that ended by `now` are archived.
///
/// # Errors
/// As every statement.
pub async fn settle(scope: &Scope, tx: &mut Tx, entity_id: Uuid, now: Instant) -> Result<()> {
    sqlx::query(
        "UPDATE entity_version v SET effective_to = ending.at,
             status = CASE WHEN ending.at <= $3 THEN 'archived' WHEN v.effective_from > $3 THEN 'scheduled' ELSE 'active' END,
             archived_reason = CASE WHEN ending.at <= $3 AND ending.at = v.planned_to THEN coalesce(v.archived_reason, 'ended')
                                    WHEN ending.at <= $3 THEN 'superseded' ELSE v.archived_reason END
         FROM (SELECT id, LEAST(planned_to, lead(effective_from) OVER (ORDER BY effective_from NULLS FIRST, version)) AS at
               FROM entity_version
               WHERE workspace_id = $1 AND entity_id = $2 AND status <> 'draft' AND cancelled_at IS NULL) ending
         WHERE v.id = ending.id",
    )
    .bind(scope.workspace_id)
    .bind(entity_id)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("cutting the spans of versions")?;
    Ok(())
}

/// Ends an entity at an instant: versions that would start then or later never do, the others end by then.
///
/// # Errors
/// As every statement.
pub async fn end(scope: &Scope, tx: &mut Tx, entity_id: Uuid, at: Instant, reason: &str) -> Result<()> {
    let now = scope.now();
    sqlx::query(
        "UPDATE entity_version SET
             status = CASE WHEN effective_from >= $3 THEN 'archived' ELSE status END,
             cancelled_at = CASE WHEN effective_from >= $3 THEN $5 END,
             planned_to = LEAST(planned_to, $3), archived_reason = $4
         WHERE workspace_id = $1 AND entity_id = $2 AND status IN ('active', 'scheduled')",
    )
    .bind(scope.workspace_id)
    .bind(entity_id)
    .bind(at)
    .bind(reason)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("ending versions")?;
    settle(scope, tx, entity_id, now).await
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
    let id: Option<VersionId> = draft_of(scope, tx, entity_id).await?.map(|(id, _, _)| id);
    if let Some(id) = id {
        let place = if publish { Place::SINCE_EVER } else { Place::draft(None, None) };
        rewrite(scope, tx, id, place, Some(snapshot)).await?;
    }
    Ok(id)
}

/// A draft's id, and the span that it shall have.
type Draft = (VersionId, Option<Instant>, Option<Instant>);

/// The draft of an entity.
pub(super) async fn draft_of(scope: &Scope, tx: &mut Tx, entity_id: Uuid) -> Result<Option<Draft>> {
    sqlx::query_as(
        "SELECT id, planned_from, planned_to FROM entity_version
         WHERE workspace_id = $1 AND entity_id = $2 AND status = 'draft'",
    )
    .bind(scope.workspace_id)
    .bind(entity_id)
    .fetch_optional(tx.conn())
    .await
    .context("looking for a draft")
}

/// What the timeline of an entity says to whoever changes it.
#[derive(Clone, Copy, Debug, FromRow)]
pub(super) struct Timeline {
    /// Number of the next version.
    pub next_number: i32,
    /// Whether another version was published.
    pub is_published: bool,
    /// End that was asked for, of the version that holds at the instant.
    pub planned_to: Option<Instant>,
    /// Another version that starts at the instant.
    pub rival: Option<i32>,
    /// Versions beside a given one that were not cancelled.
    pub others: i64,
}

/// The timeline of an entity at an instant, as seen by one of its versions (or by a new one).
pub(super) async fn timeline(
    scope: &Scope,
    tx: &mut Tx,
    entity_id: Uuid,
    at: Option<Instant>,
    own: Option<VersionId>,
) -> Result<Timeline> {
    sqlx::query_as(
        "SELECT coalesce(max(version), 0) + 1 AS next_number,
                coalesce(bool_or(status <> 'draft' AND cancelled_at IS NULL AND id IS DISTINCT FROM $4), false) AS is_published,
                (array_agg(planned_to ORDER BY effective_from DESC NULLS LAST)
                    FILTER (WHERE status <> 'draft' AND cancelled_at IS NULL AND coalesce(effective_from <= $3, true)))[1]
                    AS planned_to,
                min(version) FILTER (WHERE status <> 'draft' AND cancelled_at IS NULL AND effective_from = $3
                                       AND id IS DISTINCT FROM $4) AS rival,
                count(*) FILTER (WHERE cancelled_at IS NULL AND id IS DISTINCT FROM $4) AS others
         FROM entity_version WHERE workspace_id = $1 AND entity_id = $2",
    )
    .bind(scope.workspace_id)
    .bind(entity_id)
    .bind(at)
    .bind(own)
    .fetch_one(tx.conn())
    .await
    .context("reading a timeline")
}

/// Whether some published version of the entity ends before its successor starts.
pub(super) async fn has_gap(scope: &Scope, tx: &mut Tx, entity_id: Uuid) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT coalesce(bool_or(effective_to < next), false)
         FROM (SELECT effective_to, lead(effective_from) OVER (ORDER BY effective_from NULLS FIRST, version) AS next
               FROM entity_version
               WHERE workspace_id = $1 AND entity_id = $2 AND status <> 'draft' AND cancelled_at IS NULL) spans",
    )
    .bind(scope.workspace_id)
    .bind(entity_id)
    .fetch_one(tx.conn())
    .await
    .context("looking for a gap between versions")
}

/// Withdraws a version for good before it was applied.
pub(super) async fn cancel(scope: &Scope, tx: &mut Tx, id: VersionId) -> Result<()> {
    sqlx::query(
        "UPDATE entity_version SET status = 'archived', archived_reason = 'cancelled', cancelled_at = $3
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("cancelling a version")?;
    Ok(())
}

/// Takes the warnings of a version away.
pub(super) async fn clear_warnings(scope: &Scope, tx: &mut Tx, id: VersionId) -> Result<()> {
    sqlx::query("UPDATE entity_version SET warnings = '[]' WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .execute(tx.conn())
        .await
        .context("clearing the warnings of a version")?;
    Ok(())
}

/// Adds a warning to the versions of entities that start after an instant.
///
/// # Errors
/// As every statement.
pub(crate) async fn warn(
    scope: &Scope,
    tx: &mut Tx,
    entities: &[Uuid],
    after: Instant,
    warning: &VersionWarnDTO,
) -> Result<()> {
    sqlx::query(
        "UPDATE entity_version SET warnings = warnings || $4
         WHERE workspace_id = $1 AND entity_id = ANY($2) AND status = 'scheduled' AND effective_from > $3",
    )
    .bind(scope.workspace_id)
    .bind(entities)
    .bind(after)
    .bind(json!([warning]))
    .execute(tx.conn())
    .await
    .context("warning of an upstream change")?;
    Ok(())
}

/// Which state of an entity is read.
#[derive(Clone, Copy, Debug)]
pub enum AsOf {
    /// The one at an instant.
    Instant(Instant),
    /// That of a version.
    Version(VersionId),
}

/// Reads one entity: its row, with the members of a version laid over it. Columns of the row are those of `t`, of the
/// version those of `e`; `join` adds what they need of others.
///
/// # Errors
/// As every statement.
pub(crate) async fn read<T>(
    scope: &Scope,
    conn: &mut PgConnection,
    entity: Entity,
    (spec, join): (&ListSpec, &str),
    id: Uuid,
    as_of: AsOf,
) -> Result<T>
where
    T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let (at, chosen) = match as_of {
        AsOf::Instant(at) => (Some(at), None),
        AsOf::Version(chosen) => (None, Some(chosen)),
    };
    let sql = format!(
        "SELECT {} FROM {} t CROSS JOIN LATERAL jsonb_populate_record(t, entity_state(t.id, $3, $4)) e {join}
         WHERE t.workspace_id = $1 AND t.id = $2 AND {}",
        spec.columns,
        entity.table(),
        spec.condition
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .bind(at)
        .bind(chosen)
        .fetch_optional(conn)
        .await
        .context("reading an entity")?
        .ok_or_else(|| Error::not_found(entity.as_str(), id))
}

/// Locks the row of an entity: its versions are written under this lock.
///
/// # Errors
/// `NotFound`.
pub(crate) async fn lock(scope: &Scope, tx: &mut Tx, entity: Entity, id: Uuid) -> Result<()> {
    let sql = format!("SELECT id FROM {} WHERE workspace_id = $1 AND id = $2 FOR NO KEY UPDATE", entity.table());
    let found: Option<Uuid> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(tx.conn())
        .await
        .context("locking an entity")?;
    found.map(drop).ok_or_else(|| Error::not_found(entity.as_str(), id))
}

/// Writes the row of a new entity: members have the names of columns.
///
/// # Errors
/// What `on_constraint` makes of a violated constraint.
pub(crate) async fn create(
    scope: &Scope,
    tx: &mut Tx,
    entity: Entity,
    members: &impl Serialize,
    on_constraint: impl FnOnce(&str) -> Option<Error>,
) -> Result<()> {
    let mut row = serde_json::to_value(members).map_err(|error| Error::internal("writing an entity as JSON", error))?;
    row["organization_id"] = json!(scope.organization_id);
    row["workspace_id"] = json!(scope.workspace_id);
    let table = entity.table();
    let sql = format!("INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, $1)");
    let inserted = sqlx::query(AssertSqlSafe(sql)).bind(row).execute(tx.conn()).await;
    store::on_constraint(inserted, "creating an entity", on_constraint).map(drop)
}

/// Copies the state at `now` into the row: for whoever reads tables, and as the state of an entity without versions.
///
/// # Errors
/// As every statement.
pub(super) async fn adopt(
    scope: &Scope,
    tx: &mut Tx,
    entity: Entity,
    definition: &[&str],
    id: Uuid,
    now: Instant,
) -> Result<()> {
    let quoted: Vec<String> = definition.iter().map(|column| format!("\"{column}\"")).collect();
    let columns = [&quoted[..], &["version".into(), "head_version_id".into()]].concat().join(", ");
    let sql = format!(
        "UPDATE {} t SET ({columns}) = (SELECT {columns} FROM jsonb_populate_record(t, entity_state(t.id, $3)) e),
             status = CASE WHEN EXISTS (SELECT FROM entity_version v
                                        WHERE v.entity_id = t.id AND v.status <> 'draft' AND v.cancelled_at IS NULL)
                           THEN 'active' ELSE 'draft' END,
             updated_at = $3
         WHERE t.workspace_id = $1 AND t.id = $2",
        entity.table()
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .bind(now)
        .execute(tx.conn())
        .await
        .context("copying the state of a version into the row of its entity")?;
    Ok(())
}
