//! The operations on versions, once for all versioned entities (scheduled-changes.md, Routes of versioned entities).
//!
//! Every write goes the same way: lock, check, write a version, [`row::settle`] the spans of the timeline, copy the present
//! state into the entity's row, tell the compiled catalogs.

use domain::{Error, Instant, JsonMap, Result, Scope, VersionId, VersionStatus};
use serde_json::json;
use sqlx::PgConnection;
use store::Tx;
use uuid::Uuid;

use super::row::{self, AsOf, NewVersion, Place};
use super::{EditControls, PublishVersionRequest, VersionRecord, VersionRef, VersionWarnDTO, check_expected};
use super::{Life, Span, Versioned};
use crate::recount;

/// Writes a new entity: published in `span`, or a draft that shall have it.
///
/// # Errors
/// As [`Versioned::check`], and what `on_constraint` makes of a violated constraint.
pub(crate) async fn create<E: Versioned + serde::Serialize>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    entity: &E,
    (is_draft, mut span): (bool, Span),
    on_constraint: impl FnOnce(&str) -> Option<Error> + Send,
) -> Result<E> {
    entity.check(scope, tx, (!is_draft).then_some(&mut span)).await?;
    check_span(&span)?;
    row::create(scope, tx, E::ENTITY, entity, on_constraint).await?;
    let place = if is_draft { Place::draft(span.from, span.to) } else { span.place() };
    let new = NewVersion { entity: E::ENTITY, entity_id: id, version: 1, place, snapshot: entity.snapshot() };
    let version = row::insert(scope, tx, new).await?;
    entity.check_timeline(scope, tx).await?;
    if !is_draft {
        let touched = E::touched(scope, tx, id).await?;
        recount::request(scope, tx, span.from, touched).await?;
    }
    finish::<E>(scope, tx, id, scope.now(), ("created", version)).await
}

/// Edit-as-publish: an entity that is a draft is edited in place; otherwise the edit becomes a new version, from now on or
/// from `effective_at`; with `save_as_draft` it makes or replaces the draft beside the version in effect. An edit builds on
/// the version that is in effect when it starts.
///
/// # Errors
/// `NotFound`, `VersionConflict`; `Conflict` for an archived entity, and when another version starts at the same instant;
/// `Rule` for a start in the past where none may be, and for a gap where none may be; as [`Versioned::merge`] and
/// [`Versioned::check`].
pub async fn update<E: Versioned>(scope: &Scope, tx: &mut Tx, id: Uuid, update: E::Update) -> Result<E> {
    let controls = E::controls(&update);
    let (now, current) = enter::<E>(scope, tx, id, controls.expected_version).await?;
    let start = start_of::<E>(&controls, now)?;
    if current.life().1 == Life::Draft || controls.save_as_draft {
        let version = save_draft(scope, tx, id, current, update, start).await?;
        return finish::<E>(scope, tx, id, now, ("draft_saved", version)).await;
    }
    let from = start.unwrap_or(now);
    let base = E::read(scope, tx.conn(), id, AsOf::Instant(from)).await?;
    let timeline = row::timeline(scope, tx, id, Some(from), None).await?;
    let to = E::end(&update).apply(timeline.planned_to);
    let entity = base.merge(update)?;
    let mut span = Span { from: Some(from), to, is_first: false, now };
    check_publication(scope, tx, id, &entity, &mut span, None).await?;
    let place = span.place();
    let snapshot = entity.snapshot();
    let new = NewVersion { entity: E::ENTITY, entity_id: id, version: timeline.next_number, place, snapshot };
    let version = row::insert(scope, tx, new).await?;
    published::<E>(scope, tx, id, &entity, (version, place, now), place.from).await
}

/// The draft of an entity in the place of the one that it may have. The entity's own draft keeps what was not sent.
async fn save_draft<E: Versioned>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    current: E,
    update: E::Update,
    start: Option<Instant>,
) -> Result<VersionId> {
    let draft = row::draft_of(scope, tx, id).await?;
    let own = draft.filter(|_| current.life().1 == Life::Draft);
    let (planned_from, planned_to) = own.map_or((None, None), |(_, from, to)| (from, to));
    let to = E::end(&update).apply(planned_to);
    let place = Place::draft(start.or(planned_from), to);
    let entity = current.merge(update)?;
    entity.check(scope, tx, None).await?;
    match draft {
        Some((version, _, _)) => {
            row::rewrite(scope, tx, version, place, Some(entity.snapshot())).await?;
            Ok(version)
        }
        None => insert_draft(scope, tx, id, &entity, place).await,
    }
}

async fn insert_draft<E: Versioned>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    entity: &E,
    place: Place,
) -> Result<VersionId> {
    let version = row::timeline(scope, tx, id, None, None).await?.next_number;
    let new = NewVersion { entity: E::ENTITY, entity_id: id, version, place, snapshot: entity.snapshot() };
    row::insert(scope, tx, new).await
}

/// One version with its frozen state.
///
/// # Errors
/// `NotFound`.
pub async fn get<E: Versioned>(
    scope: &Scope,
    conn: &mut PgConnection,
    id: Uuid,
    version: VersionRef,
) -> Result<E::Version> {
    let record = super::get(scope, conn, E::ENTITY, id, version).await?;
    let entity = E::read(scope, conn, id, AsOf::Version(record.row.id)).await?;
    Ok(entity.version(record))
}

/// Amends a draft or scheduled version; `effective_at` moves its start. Its warnings are gone then.
///
/// # Errors
/// As [`update`]; `Conflict` for a version that is or was in effect; `Rule` for `save_as_draft` on a scheduled one.
pub async fn amend<E: Versioned>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    version: VersionRef,
    update: E::Update,
) -> Result<E::Version> {
    let controls = E::controls(&update);
    let (now, _) = enter::<E>(scope, tx, id, controls.expected_version).await?;
    let record = super::get(scope, tx.conn(), E::ENTITY, id, version).await?;
    let (own, status) = (record.row.id, record.row.status);
    let start = start_of::<E>(&controls, now)?;
    let to = E::end(&update).apply(record.planned_to);
    let entity = E::read(scope, tx.conn(), id, AsOf::Version(own)).await?.merge(update)?;
    match status {
        VersionStatus::Draft => {
            entity.check(scope, tx, None).await?;
            let place = Place::draft(start.or(record.planned_from), to);
            row::rewrite(scope, tx, own, place, Some(entity.snapshot())).await?;
            finish::<E>(scope, tx, id, now, ("draft_saved", own)).await?;
        }
        VersionStatus::Scheduled if controls.save_as_draft => {
            return Err(Error::business_rule("a scheduled version becomes a draft by unscheduling it"));
        }
        VersionStatus::Scheduled => {
            // A start that is sent as now applies the version at once.
            let from = if controls.effective_at.is_some() { start.or(Some(now)) } else { record.row.effective_from };
            let mut span = Span { from, to, is_first: false, now };
            check_publication(scope, tx, id, &entity, &mut span, Some(own)).await?;
            let place = span.place();
            row::rewrite(scope, tx, own, place, Some(entity.snapshot())).await?;
            let touched_from = place.from.min(record.row.effective_from); // `None` is since ever, and the least
            published::<E>(scope, tx, id, &entity, (own, place, now), touched_from).await?;
        }
        VersionStatus::Active | VersionStatus::Archived => {
            let detail = format!("version {} is {status}: what was in effect stays as it was", record.row.version);
            return Err(Error::conflict("CONFLICT", detail));
        }
    }
    get::<E>(scope, tx.conn(), id, VersionRef::Id(own)).await
}

/// Publishes a draft version: from `effective_at`, else from the start that its own request named, else from now on; the
/// first version of an entity since ever.
///
/// # Errors
/// As [`update`]; `Conflict` with `INVALID_TRANSITION` when it is no draft.
pub async fn publish<E: Versioned>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    version: VersionRef,
    request: PublishVersionRequest,
) -> Result<E::Version> {
    let (now, current) = enter::<E>(scope, tx, id, request.expected_version).await?;
    let record = super::get(scope, tx.conn(), E::ENTITY, id, version).await?;
    expect(&record, &[VersionStatus::Draft], VersionStatus::Active)?;
    let own = record.row.id;
    let is_first = current.life().1 == Life::Draft;
    let sent = EditControls { effective_at: request.effective_at, ..EditControls::default() };
    let from = match (is_first, request.effective_at) {
        // Nothing can have been counted or rated by an entity that had no version: its first one may start in the past.
        (true, sent) => sent.or(record.planned_from),
        (false, Some(_)) => Some(start_of::<E>(&sent, now)?.unwrap_or(now)),
        (false, None) => Some(record.planned_from.filter(|planned| *planned > now).unwrap_or(now)),
    };
    let entity = E::read(scope, tx.conn(), id, AsOf::Version(own)).await?;
    let mut span = Span { from, to: record.planned_to, is_first, now };
    check_publication(scope, tx, id, &entity, &mut span, Some(own)).await?;
    let place = span.place();
    row::rewrite(scope, tx, own, place, None).await?;
    published::<E>(scope, tx, id, &entity, (own, place, now), place.from).await?;
    get::<E>(scope, tx.conn(), id, VersionRef::Id(own)).await
}

/// Clears the warnings of a scheduled version: what has changed since does not invalidate it.
///
/// # Errors
/// `NotFound`; `Conflict` for an archived entity, and when the version is not scheduled.
pub async fn reconfirm<E: Versioned>(scope: &Scope, tx: &mut Tx, id: Uuid, version: VersionRef) -> Result<E::Version> {
    enter::<E>(scope, tx, id, None).await?;
    let record = super::get(scope, tx.conn(), E::ENTITY, id, version).await?;
    if record.row.status != VersionStatus::Scheduled {
        let detail =
            format!("version {} is {}, only a scheduled one is confirmed", record.row.version, record.row.status);
        return Err(Error::conflict("CONFLICT", detail));
    }
    row::clear_warnings(scope, tx, record.row.id).await?;
    get::<E>(scope, tx.conn(), id, VersionRef::Id(record.row.id)).await
}

/// Turns a scheduled version back into a draft without a start.
///
/// # Errors
/// `NotFound`; `Conflict` for an archived entity, when the entity has another draft, and with `INVALID_TRANSITION` when the
/// version is not scheduled.
pub async fn unschedule<E: Versioned>(scope: &Scope, tx: &mut Tx, id: Uuid, version: VersionRef) -> Result<E::Version> {
    let (now, entity) = enter::<E>(scope, tx, id, None).await?;
    let record = super::get(scope, tx.conn(), E::ENTITY, id, version).await?;
    expect(&record, &[VersionStatus::Scheduled], VersionStatus::Draft)?;
    refuse_second_draft(scope, tx, id).await?;
    let own = record.row.id;
    row::rewrite(scope, tx, own, Place::draft(None, record.planned_to), None).await?;
    withdrawn::<E>(scope, tx, id, &entity, ("unscheduled", own, now), record.row.effective_from).await?;
    get::<E>(scope, tx.conn(), id, VersionRef::Id(own)).await
}

/// Archives a draft or scheduled version, so that it never goes active.
///
/// # Errors
/// `NotFound`; `Conflict` for an archived entity, for its only version, and with `INVALID_TRANSITION` when the version is or
/// was in effect.
pub async fn cancel<E: Versioned>(scope: &Scope, tx: &mut Tx, id: Uuid, version: VersionRef) -> Result<E::Version> {
    let (now, entity) = enter::<E>(scope, tx, id, None).await?;
    let record = super::get(scope, tx.conn(), E::ENTITY, id, version).await?;
    expect(&record, &[VersionStatus::Draft, VersionStatus::Scheduled], VersionStatus::Archived)?;
    let own = record.row.id;
    if row::timeline(scope, tx, id, None, Some(own)).await?.others == 0 {
        let kind = E::ENTITY.as_str();
        return Err(Error::conflict("CONFLICT", format!("it is the only version of the {kind}: archive the {kind}")));
    }
    row::cancel(scope, tx, own).await?;
    withdrawn::<E>(scope, tx, id, &entity, ("cancelled", own, now), record.row.effective_from).await?;
    get::<E>(scope, tx.conn(), id, VersionRef::Id(own)).await
}

/// Makes a draft from any version, with the members of `overrides`.
///
/// # Errors
/// `NotFound`; `Conflict` for an archived entity, and when it has a draft; `Rule` for a start in the past; as
/// [`Versioned::check`].
pub async fn copy_as_draft<E: Versioned>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    version: VersionRef,
    overrides: E::Update,
) -> Result<E::Version> {
    let controls = E::controls(&overrides);
    let (now, _) = enter::<E>(scope, tx, id, controls.expected_version).await?;
    let record = super::get(scope, tx.conn(), E::ENTITY, id, version).await?;
    let start = start_of::<E>(&controls, now)?;
    refuse_second_draft(scope, tx, id).await?;
    let entity = E::read(scope, tx.conn(), id, AsOf::Version(record.row.id)).await?.merge(overrides)?;
    entity.check(scope, tx, None).await?;
    let draft = insert_draft(scope, tx, id, &entity, Place::draft(start, None)).await?;
    finish::<E>(scope, tx, id, now, ("draft_saved", draft)).await?;
    get::<E>(scope, tx.conn(), id, VersionRef::Id(draft)).await
}

/// The start that is asked for; `None`: now.
fn start_of<E: Versioned>(controls: &EditControls, now: Instant) -> Result<Option<Instant>> {
    if E::MAY_START_IN_THE_PAST { Ok(controls.start_anywhere(now)) } else { controls.start(now) }
}

/// Locks an entity that may be changed, and reads what it is now. The present is taken once, under the lock.
async fn enter<E: Versioned>(scope: &Scope, tx: &mut Tx, id: Uuid, expected: Option<i64>) -> Result<(Instant, E)> {
    E::lock(scope, tx, id).await?;
    let now = scope.now();
    let entity = E::read(scope, tx.conn(), id, AsOf::Instant(now)).await?;
    let (version, life) = entity.life();
    check_expected(expected, version)?;
    if life == Life::Archived {
        let detail = format!("an archived {} cannot be changed", E::ENTITY.as_str());
        return Err(Error::conflict("CONFLICT", detail));
    }
    Ok((now, entity))
}

fn expect(record: &VersionRecord, from: &[VersionStatus], to: VersionStatus) -> Result<()> {
    use VersionStatus::{Active, Archived, Draft, Scheduled};
    let status = record.row.status;
    if from.contains(&status) {
        return Ok(());
    }
    let allowed: &[&str] = match status {
        Draft => &[Scheduled.as_str(), Active.as_str(), Archived.as_str()],
        Scheduled => &[Draft.as_str(), Archived.as_str()],
        Active | Archived => &[],
    };
    Err(Error::invalid_transition("version", record.row.id, status.as_str(), to.as_str(), allowed))
}

/// A draft that is there is not replaced.
pub(crate) async fn refuse_second_draft(scope: &Scope, tx: &mut Tx, id: Uuid) -> Result<()> {
    match row::draft_of(scope, tx, id).await? {
        None => Ok(()),
        Some((draft, _, _)) => {
            let detail = "there is a draft already: publish it, or change it instead";
            Err(Error::conflict("CONFLICT", detail).with("existing_id", draft))
        }
    }
}

async fn check_publication<E: Versioned>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    entity: &E,
    span: &mut Span,
    own: Option<VersionId>,
) -> Result<()> {
    check_span(span)?;
    let timeline = row::timeline(scope, tx, id, span.from, own).await?;
    if let Some(rival) = timeline.rival {
        return Err(Error::conflict("CONFLICT", format!("version {rival} starts at the same instant")));
    }
    span.is_first = !timeline.is_published;
    entity.check(scope, tx, Some(span)).await
}

fn check_span(span: &Span) -> Result<()> {
    match (span.from, span.to) {
        (Some(from), Some(to)) if to <= from => {
            Err(Error::business_rule(format!("the version would end at {}, before it starts", to.to_rfc3339())))
        }
        _ => Ok(()),
    }
}

/// A version has come onto the timeline: cuts its neighbours, and warns those behind it, which were made without it.
async fn published<E: Versioned>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    entity: &E,
    (version, place, now): (VersionId, Place, Instant),
    touched_from: Option<Instant>,
) -> Result<E> {
    row::settle(scope, tx, id, now).await?;
    let touched = E::touched(scope, tx, id).await?;
    recount::request(scope, tx, touched_from, touched).await?;
    check_coverage(scope, tx, id, entity).await?;
    entity.check_timeline(scope, tx).await?;
    let from = place.from.unwrap_or(now);
    let warning = |code: &str, message: &str| VersionWarnDTO {
        code: code.into(),
        message: message.into(),
        entity_type: E::ENTITY.as_str().into(),
        entity_id: id,
        created_at: now,
    };
    let message = "another version was published before this one starts; this one does not have its changes";
    row::warn(scope, tx, &[id], from, &warning("PREDECESSOR_CHANGED", message)).await?;
    let dependents = E::dependents(scope, tx, id).await?;
    let message = format!("the {} that this version builds on has changed", E::ENTITY.as_str());
    row::warn(scope, tx, &dependents, from, &warning("UPSTREAM_CHANGED", &message)).await?;
    let event = if place.status == VersionStatus::Scheduled { "scheduled" } else { "updated" };
    finish::<E>(scope, tx, id, now, (event, version)).await
}

/// A version has left the timeline: its predecessor goes on to its own end.
async fn withdrawn<E: Versioned>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    entity: &E,
    (event, version, now): (&str, VersionId, Instant),
    from: Option<Instant>,
) -> Result<E> {
    row::settle(scope, tx, id, now).await?;
    // Usage may lie ahead of the present, and have been judged by what was to hold then.
    let touched = E::touched(scope, tx, id).await?;
    recount::request(scope, tx, from, touched).await?;
    check_coverage(scope, tx, id, entity).await?;
    entity.check_timeline(scope, tx).await?;
    finish::<E>(scope, tx, id, now, (event, version)).await
}

async fn check_coverage<E: Versioned>(scope: &Scope, tx: &mut Tx, id: Uuid, entity: &E) -> Result<()> {
    if entity.requires_coverage() && row::has_gap(scope, tx, id).await? {
        return Err(Error::business_rule(
            "requires_continuous_coverage: a version would end before the next one starts",
        ));
    }
    Ok(())
}

/// Brings the row up to date, tells the compiled catalogs and the outbox, and gives the entity as it is now.
async fn finish<E: Versioned>(
    scope: &Scope,
    tx: &mut Tx,
    id: Uuid,
    now: Instant,
    (event, version): (&str, VersionId),
) -> Result<E> {
    row::adopt(scope, tx, E::ENTITY, E::DEFINITION, id, now).await?;
    tx.catalog_changed(scope.workspace_id);
    let kind = E::ENTITY.as_str();
    let name = match event {
        "scheduled" | "cancelled" => format!("version.{event}"),
        other => format!("{kind}.{other}"),
    };
    let entity = E::read(scope, tx.conn(), id, AsOf::Instant(now)).await?;
    let mut payload: JsonMap =
        entity.event_members().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    payload.insert("id".into(), json!(id));
    payload.insert("entity_type".into(), json!(kind));
    payload.insert("version".into(), json!(entity.life().0));
    payload.insert("version_id".into(), json!(version));
    tx.emit(scope, &name, kind, id, payload).await?;
    Ok(entity)
}
