//! The one error that reaches a caller. Each variant exists because a caller acts on it; HTTP appears only in `api`,
//! which turns it into a problem document in one exhaustive match (conventions.md, Errors).

use serde::Serialize;

use crate::JsonMap;

/// Result of an operation of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

wire_enum! {
    /// What is wrong with one field (conventions.md, Problem document).
    pub enum FieldErrorCode {
        /// Absent or null.
        Required = "REQUIRED",
        /// Not of the form.
        InvalidFormat = "INVALID_FORMAT",
        /// Not one of the words.
        InvalidEnum = "INVALID_ENUM",
        /// Outside the bounds.
        OutOfRange = "OUT_OF_RANGE",
        /// More characters or entries than allowed.
        TooLong = "TOO_LONG",
        /// No such member.
        UnknownField = "UNKNOWN_FIELD",
        /// Known, but not here.
        NotAllowed = "NOT_ALLOWED",
    }
}

/// One bad field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// JSON path: `billing_address.country`, `tiers[1].up_to`.
    pub field: String,
    /// What is wrong.
    pub code: FieldErrorCode,
    /// What is wrong and what is allowed, for people.
    pub message: String,
}

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400 `VALIDATION`: fields of the request are wrong; all of them are listed.
    #[error("{} field(s) are wrong: {}", .0.len(), .0.iter().map(|f| format!("{}: {}", f.field, f.message)).collect::<Vec<_>>().join("; "))]
    Validation(Vec<FieldError>),
    /// 400 with the given code: the request as a whole cannot be read.
    #[error("{detail}")]
    BadRequest {
        /// `BAD_REQUEST`, `INVALID_CURSOR`, …
        code: &'static str,
        /// For the caller.
        detail: String,
    },
    /// 401 `UNAUTHORIZED`.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// 401 `INVALID_SIGNATURE`: a provider's message that is not signed with the shared secret.
    #[error("{0}")]
    InvalidSignature(&'static str),
    /// 403 `FORBIDDEN`.
    #[error("{detail}")]
    Forbidden {
        /// For the caller.
        detail: String,
        /// The permission that is missing, if that is the reason.
        required_permission: Option<String>,
    },
    /// 404 `NOT_FOUND`: absent, or another tenant's.
    #[error("{entity_type} {entity_id} was not found")]
    NotFound {
        /// e.g. `customer`.
        entity_type: &'static str,
        /// As given by the caller.
        entity_id: String,
    },
    /// 409 with the given code: `CONFLICT`, `IDEMPOTENCY_CONFLICT`, ….
    #[error("{detail}")]
    Conflict {
        /// Stable code.
        code: &'static str,
        /// For the caller.
        detail: String,
        /// Extension members of the problem document.
        extensions: JsonMap,
    },
    /// 409 `VERSION_CONFLICT`.
    #[error("version {expected_version} was expected, the current version is {current_version}")]
    VersionConflict {
        /// What the caller sent.
        expected_version: i64,
        /// What is stored.
        current_version: i64,
    },
    /// 413 `PAYLOAD_TOO_LARGE`.
    #[error("{0}")]
    TooLarge(String),
    /// 422 with the given code: well-formed, but a rule refuses it.
    #[error("{detail}")]
    Rule {
        /// `BUSINESS_RULE_VIOLATION` or a narrower code.
        code: &'static str,
        /// For the caller.
        detail: String,
        /// Extension members of the problem document.
        extensions: JsonMap,
    },
    /// 429 `RATE_LIMITED`.
    #[error("too many requests")]
    RateLimited {
        /// Whole seconds until it is worth trying again.
        retry_after_secs: u64,
    },
    /// 503 `SERVICE_UNAVAILABLE`: nothing was done; safe to repeat.
    #[error("{dependency} is unavailable: {detail}")]
    Unavailable {
        /// What is away: `event_log`, `database`, ….
        dependency: &'static str,
        /// For the caller.
        detail: String,
        /// Whole seconds until it is worth trying again.
        retry_after_secs: u64,
    },
    /// 500 `INTERNAL_ERROR`: our defect; the source is logged, never shown.
    #[error("{context}")]
    Internal {
        /// The operation and its subject.
        context: String,
        /// The cause.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// One bad field.
    pub fn field(field: impl Into<String>, code: FieldErrorCode, message: impl Into<String>) -> Self {
        Self::Validation(vec![FieldError { field: field.into(), code, message: message.into() }])
    }

    /// 404 for an entity, e.g. `Error::not_found("customer", id)`.
    pub fn not_found(entity_type: &'static str, entity_id: impl ToString) -> Self {
        Self::NotFound { entity_type, entity_id: entity_id.to_string() }
    }

    /// 422 with a code of the reference.
    pub fn rule(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Rule { code, detail: detail.into(), extensions: JsonMap::new() }
    }

    /// 422 `BUSINESS_RULE_VIOLATION`.
    pub fn business_rule(detail: impl Into<String>) -> Self {
        Self::rule("BUSINESS_RULE_VIOLATION", detail)
    }

    /// 422 `BUSINESS_RULE_VIOLATION` of single fields, which the problem document lists under `fields`.
    pub fn rule_of_fields(detail: &str, fields: Vec<FieldError>) -> Self {
        let listed: Vec<_> = fields.iter().map(|f| format!("{}: {}", f.field, f.message)).collect();
        Self::business_rule(format!("{detail}: {}", listed.join("; "))).with("fields", fields)
    }

    /// 409 with a code of the reference.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Conflict { code, detail: detail.into(), extensions: JsonMap::new() }
    }

    /// 409 `DUPLICATE` with the documented extensions.
    pub fn duplicate(field: &'static str, existing_id: Option<String>) -> Self {
        Self::conflict("DUPLICATE", format!("{field} is already taken"))
            .with("field", field)
            .with_optional("existing_id", existing_id)
    }

    /// 409 `INVALID_TRANSITION` with the documented extensions.
    pub fn invalid_transition(
        entity_type: &'static str,
        entity_id: impl ToString,
        from: &str,
        to: &str,
        allowed: &[&str],
    ) -> Self {
        Self::conflict("INVALID_TRANSITION", format!("{entity_type} cannot go from {from} to {to}"))
            .with("entity_type", entity_type)
            .with("entity_id", entity_id.to_string())
            .with("from", from)
            .with("to", to)
            .with("allowed", allowed.to_vec())
    }

    /// 500 with its cause.
    pub fn internal(context: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal { context: context.into(), source: Some(source.into()) }
    }

    /// 500 without a cause: a broken invariant.
    pub fn invariant(context: impl Into<String>) -> Self {
        Self::Internal { context: context.into(), source: None }
    }

    /// Adds an extension member to a conflict or a rule.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        if let Self::Conflict { extensions, .. } | Self::Rule { extensions, .. } = &mut self {
            extensions.insert(name.to_owned(), serde_json::to_value(value).unwrap_or_default());
        }
        self
    }

    fn with_optional(self, name: &str, value: Option<impl Serialize>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The stable code of the problem document.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Validation(_) => "VALIDATION",
            Self::BadRequest { code, .. } | Self::Conflict { code, .. } | Self::Rule { code, .. } => code,
            Self::Unauthorized(_) => "UNAUTHORIZED",
            Self::InvalidSignature(_) => "INVALID_SIGNATURE",
            Self::Forbidden { .. } => "FORBIDDEN",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::VersionConflict { .. } => "VERSION_CONFLICT",
            Self::TooLarge(_) => "PAYLOAD_TOO_LARGE",
            Self::RateLimited { .. } => "RATE_LIMITED",
            Self::Unavailable { .. } => "SERVICE_UNAVAILABLE",
            Self::Internal { .. } => "INTERNAL_ERROR",
        }
    }

    /// Whether the same call may succeed later without a change.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Unavailable { .. } | Self::Internal { .. } => true,
            Self::Validation(_)
            | Self::BadRequest { .. }
            | Self::Unauthorized(_)
            | Self::InvalidSignature(_)
            | Self::Forbidden { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::VersionConflict { .. }
            | Self::TooLarge(_)
            | Self::Rule { .. } => false,
        }
    }
}

impl From<crate::money::MoneyError> for Error {
    fn from(error: crate::money::MoneyError) -> Self {
        match error {
            crate::money::MoneyError::CurrencyMismatch { .. } => Self::rule("CURRENCY_MISMATCH", error.to_string()),
            other => Self::business_rule(other.to_string()),
        }
    }
}

impl From<crate::quantity::QuantityError> for Error {
    fn from(error: crate::quantity::QuantityError) -> Self {
        Self::business_rule(error.to_string())
    }
}
