//! Why something cannot be rated.

use domain::{Error, FieldError, VersionId};

use crate::formula::FormulaFailure;
use crate::state::StateError;

/// Result of rating.
pub type Result<T, E = RatingError> = std::result::Result<T, E>;

/// Why a definition cannot be compiled, an event cannot be counted or a total cannot be priced. Every variant is
/// deterministic: the same input fails the same way again (rule A4). Nothing has changed when it is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RatingError {
    /// A definition breaks a rule of the reference; all broken fields are listed.
    #[error("{} field(s) are wrong: {}", .0.len(), .0.iter().map(|f| format!("{}: {}", f.field, f.message)).collect::<Vec<_>>().join("; "))]
    Definition(Vec<FieldError>),
    /// The reference knows it, this version does not: a meter function, a window kind.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The event does not bring the value that the meter reads.
    #[error("{field} {reason}")]
    Value {
        /// Path in the event, e.g. `dimension_vars.bytes`.
        field: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A negative value on a meter without `negative_allowed`.
    #[error("the value must not be negative on this meter")]
    Negative,
    /// The event goes to a PRIMARY binding, but no price was given.
    #[error("no price applies")]
    Unpriced,
    /// A sum, a product or an amount leaves its range: never a lost digit, never a wrap.
    #[error("{0} is out of range")]
    Overflow(&'static str),
    /// Two currencies met in one total.
    #[error("amounts of one wallet pin have different currencies")]
    CurrencyMismatch,
    /// An expression of a price has no result for these values.
    #[error("{0}")]
    Formula(#[from] FormulaFailure),
    /// A stored part of a state cannot be read.
    #[error("a running total cannot be read: {0}")]
    State(StateError),
    /// A stored state names a version that the catalog does not know.
    #[error("{kind} version {id} is not known")]
    UnknownVersion {
        /// `binding`, `meter` or `price`.
        kind: &'static str,
        /// The version.
        id: VersionId,
    },
}

impl RatingError {
    /// Stable code of the problem document and of a kept rejection (conventions.md, Codes).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Definition(_) => "VALIDATION",
            Self::Unsupported(_) | Self::Value { .. } | Self::Negative | Self::Unpriced | Self::Overflow(_) => {
                "BUSINESS_RULE_VIOLATION"
            }
            Self::Formula(failure) => failure.code(),
            Self::CurrencyMismatch => "CURRENCY_MISMATCH",
            Self::State(_) | Self::UnknownVersion { .. } => "INTERNAL_ERROR",
        }
    }
}

impl From<RatingError> for Error {
    fn from(error: RatingError) -> Self {
        match error {
            RatingError::Definition(fields) => Self::Validation(fields),
            RatingError::State(_) | RatingError::UnknownVersion { .. } => {
                Self::internal("reading the state of a window", error)
            }
            other => Self::rule(other.code(), other.to_string()),
        }
    }
}
