//! Versions of catalog entities: numbered, immutable once active, each with the frozen state (scheduled-changes.md).
//!
//! A version whose start has come is active, whatever word its row still bears: nothing has to run at that instant. In the
//! database, `versions_at` derives the words of an instant and `entity_state` the members that an entity has then; every
//! read of an entity lays them over its row. [`edit`] has the operations that all entities share.

pub mod edit;
mod list;
mod row;
mod versioned;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::{Error, Input, Instant, Result, VersionId, VersionStatus};
use serde::Serialize;
use serde_json::Value;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

pub use list::{get, list, list_of, owners, timeline};
pub use row::{AsOf, NewVersion, Place, end, insert, rewrite_draft, settle};
pub(crate) use row::{from_at, read};
pub use versioned::{Life, Span, Versioned};

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
    /// Cost.
    Cost,
    /// Price formula.
    PriceFormula,
    /// Rate table.
    RateTable,
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
            Self::Cost => "cost",
            Self::PriceFormula => "price_formula",
            Self::RateTable => "rate_table",
        }
    }

    /// Table of the entities.
    #[must_use]
    pub const fn table(self) -> &'static str {
        match self {
            Self::Binding => "product_meter_binding",
            other => other.as_str(),
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
    /// The start that the request of a draft named.
    pub planned_from: Option<DateTime<Utc>>,
    /// The end that its request named; it may end earlier, by a successor.
    pub planned_to: Option<DateTime<Utc>>,
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

/// Body of copy-as-draft routes without overrides.
#[derive(Clone, Copy, Debug, Default, ToSchema)]
pub struct CopyAsDraftRequest {
    /// When the draft shall take effect once it is published; default: at its publication.
    pub effective_at: Option<DateTime<Utc>>,
}

impl CopyAsDraftRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let effective_at = input.optional("effective_at", Field::instant);
        input.finish()?;
        Ok(Self { effective_at })
    }
}

impl From<CopyAsDraftRequest> for EditControls {
    fn from(request: CopyAsDraftRequest) -> Self {
        Self { effective_at: request.effective_at, ..Self::default() }
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

    /// The start that is asked for, when it lies ahead; `None`: now.
    ///
    /// # Errors
    /// `Rule` for a start in the past.
    pub(crate) fn start(&self, now: Instant) -> Result<Option<Instant>> {
        refuse_past(self.effective_at, now)?;
        Ok(self.effective_at.filter(|at| *at > now))
    }

    /// The start that is asked for, when it is not now (`None`).
    pub(crate) fn start_anywhere(&self, now: Instant) -> Option<Instant> {
        self.effective_at.filter(|at| *at > now || is_past(*at, now))
    }

    /// The rules of entities that can only be changed as of now (products and plans): what they need of others is checked
    /// when they are published, and would have to be checked again when the version starts.
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
    if effective_at.is_some_and(|at| at > now) {
        return Err(Error::business_rule(
            "a change of this entity takes effect at once; scheduling it with effective_at is not supported yet",
        ));
    }
    refuse_past(effective_at, now)
}

/// Refuses a start in the past.
fn refuse_past(effective_at: Option<Instant>, now: Instant) -> Result<()> {
    match effective_at {
        Some(at) if is_past(at, now) => Err(Error::business_rule(
            "this change cannot take effect in the past: what was made with the version of its time stays",
        )),
        _ => Ok(()),
    }
}

/// Within a minute it means now.
fn is_past(at: Instant, now: Instant) -> bool {
    now - at > chrono::TimeDelta::minutes(1)
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
