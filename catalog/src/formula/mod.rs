//! Price formulas (price-formulas.md): stored, versioned expressions that compute a price.

mod request;
mod validate;
mod write;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::{FieldError, OrganizationId, PriceFormulaId, Result, Scope, VersionId};
use rating::{FormulaError, FormulaVariable};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page};
use utoipa::ToSchema;

use crate::version::{AsOf, VersionRow, Versioned};

pub use request::{CreatePriceFormulaRequest, UpdatePriceFormulaRequest, ValidateFormulaRequest};
pub use validate::{ValidateFormulaResult, validate};
pub use write::{create, delete, update};

domain::wire_enum! {
    /// State of a formula; the API shows that of its versions.
    pub enum PriceFormulaStatus {
        /// Without a published version.
        Draft = "draft",
        /// In use.
        Active = "active",
    }
}

/// A price formula.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct PriceFormula {
    /// Formula.
    pub id: PriceFormulaId,
    /// Owner.
    pub organization_id: OrganizationId,
    /// Name.
    pub name: String,
    /// Expression of the version in effect.
    pub expression: String,
    /// Variables of the version in effect.
    #[sqlx(json)]
    pub variables: Vec<FormulaVariable>,
    /// Provided by the system: read-only.
    pub is_system: bool,
    /// Number of the head version.
    pub version: i32,
    /// The head version.
    #[schema(required)]
    pub head_version_id: Option<VersionId>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
    /// Where it is in its life.
    #[serde(skip)]
    #[schema(ignore)]
    pub status: PriceFormulaStatus,
}

/// A frozen state of a formula.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PriceFormulaVersion {
    /// The version.
    #[serde(flatten)]
    pub row: VersionRow,
    /// The formula.
    pub formula_id: PriceFormulaId,
    /// Its expression.
    pub expression: String,
    /// Its variables.
    pub variables: Vec<FormulaVariable>,
}

/// The members of a version's snapshot that evaluation needs.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct FormulaSnapshot {
    pub expression: String,
    pub variables: Vec<FormulaVariable>,
}

/// Errors of an expression as bad fields of a request: of the expression at `path`, or of its declarations.
#[must_use]
pub fn field_errors(path: &str, errors: Vec<FormulaError>) -> Vec<FieldError> {
    let field_error = |error: FormulaError| match error.variable {
        Some(index) => {
            FieldError { field: format!("variables[{index}]"), code: Code::InvalidFormat, message: error.message }
        }
        None => FieldError {
            field: path.into(),
            code: Code::InvalidFormat,
            message: format!("{} (at position {})", error.message, error.position),
        },
    };
    errors.into_iter().map(field_error).collect()
}

/// The members of a version are read from the one that is in effect.
const LIST: ListSpec = ListSpec {
    name: "price_formulas",
    columns: "t.id, t.organization_id, e.name, e.expression, e.variables, t.is_system, e.version, e.head_version_id,
        t.created_at, t.updated_at, t.status",
    from: "price_formula t CROSS JOIN LATERAL jsonb_populate_record(t, entity_state(t.id)) e",
    workspace_column: "t.workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("t.id"),
        ListField::new("name", ListKind::Text).column("e.name").sortable(),
        ListField::new("is_system", ListKind::Bool).column("t.is_system"),
        ListField::new("created_at", ListKind::Instant).column("t.created_at").sortable(),
        ListField::new("updated_at", ListKind::Instant).column("t.updated_at").sortable(),
    ],
    shorthands: &[],
    order: "t.created_at",
    id: "t.id",
};

/// Formulas of the workspace.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(
    scope: &Scope,
    conn: &mut PgConnection,
    parameters: &[(String, String)],
) -> Result<Page<PriceFormula>> {
    ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await
}

/// One formula.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: PriceFormulaId) -> Result<PriceFormula> {
    PriceFormula::read(scope, conn, id.0, AsOf::Instant(scope.now())).await
}
