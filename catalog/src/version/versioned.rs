//! What the operations on versions need to know of an entity.

use std::future::Future;

use domain::{Instant, Patch, Result, Scope};
use serde_json::Value;
use sqlx::PgConnection;
use store::Tx;
use uuid::Uuid;

use super::row::{self, AsOf, Place};
use super::{EditControls, Entity, VersionRecord};
use crate::recount::Touched;

/// Life of an entity, as far as its versions are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Never published.
    Draft,
    /// Has published versions.
    Live,
    /// Withdrawn: its versions stay as they are.
    Archived,
}

/// Span in which a version shall hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Start; `None`: since ever.
    pub from: Option<Instant>,
    /// End that was asked for, exclusive.
    pub to: Option<Instant>,
    /// Whether no version of the entity was published before.
    pub is_first: bool,
    /// The present, taken once.
    pub now: Instant,
}

impl Span {
    /// Of the first version of an entity that is made now.
    #[must_use]
    pub const fn first(from: Option<Instant>, to: Option<Instant>, now: Instant) -> Self {
        Self { from, to, is_first: true, now }
    }

    pub(super) fn place(&self) -> Place {
        Place::published(self.from, self.to, self.now)
    }
}

/// An entity with versions.
pub trait Versioned: Sized + Send {
    /// Body of an update.
    type Update: Send;
    /// A version as on the wire.
    type Version: Send;
    /// Kind of entity.
    const ENTITY: Entity;
    /// Columns of the row that follow the version in effect, beside its number and id.
    const DEFINITION: &'static [&'static str];
    /// Whether a version may start in the past: usage of windows that are not billed is counted anew then (rule B6).
    const MAY_START_IN_THE_PAST: bool = false;

    /// Takes the lock under which the entity's versions are written.
    fn lock(scope: &Scope, tx: &mut Tx, id: Uuid) -> impl Future<Output = Result<()>> + Send {
        row::lock(scope, tx, Self::ENTITY, id)
    }

    /// The entity with the definition of an instant or of a version.
    fn read(scope: &Scope, conn: &mut PgConnection, id: Uuid, as_of: AsOf)
    -> impl Future<Output = Result<Self>> + Send;

    /// Number of the version whose definition it has, and where it is in its life.
    fn life(&self) -> (i32, Life);

    /// The frozen state of a version with this definition.
    fn snapshot(&self) -> Value;

    /// The edit-as-publish controls of an update.
    fn controls(update: &Self::Update) -> EditControls;

    /// The end of the version that an update asks for.
    fn end(_update: &Self::Update) -> Patch<Instant> {
        Patch::Keep
    }

    /// The definition with the members that were sent.
    ///
    /// # Errors
    /// `Validation` for members that do not go together.
    fn merge(self, update: Self::Update) -> Result<Self>;

    /// Refuses a definition that could not be evaluated, and one that is not allowed in the span in which it shall be
    /// published. A first version may be given another start.
    fn check(&self, scope: &Scope, tx: &mut Tx, span: Option<&mut Span>) -> impl Future<Output = Result<()>> + Send;

    /// Refuses a timeline that another entity is in the way of.
    fn check_timeline(&self, _scope: &Scope, _tx: &mut Tx) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(Ok(()))
    }

    /// Whether a gap between two versions is refused (`requires_continuous_coverage`).
    fn requires_coverage(&self) -> bool {
        false
    }

    /// Entities of other kinds whose scheduled versions build on this one.
    fn dependents(_scope: &Scope, _tx: &mut Tx, _id: Uuid) -> impl Future<Output = Result<Vec<Uuid>>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// Usage that its versions have a say in, by the instant of the usage.
    fn touched(_scope: &Scope, _tx: &mut Tx, _id: Uuid) -> impl Future<Output = Result<Touched>> + Send {
        std::future::ready(Ok(Touched::Nothing))
    }

    /// Members of its events beside its id and version.
    fn event_members(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    /// A version as on the wire; `self` has its definition.
    fn version(self, record: VersionRecord) -> Self::Version;
}
