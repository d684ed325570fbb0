//! Problem documents (RFC 9457): the one place where an error of the engine gets an HTTP status.

use axum::http::StatusCode;
use domain::{Error, JsonMap};
use serde::Serialize;
use serde_json::{Value, json};

/// Media type of a problem document.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// What a refused request gets; extension members depend on the code.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// Class of the error, a stable URI.
    pub r#type: String,
    /// One line; may change.
    pub title: String,
    /// The HTTP status again.
    pub status: u16,
    /// What happened here; may change.
    pub detail: Option<String>,
    /// Path and query of the request.
    pub instance: Option<String>,
    /// What clients switch on; stable.
    pub code: String,
    /// Also in the header `X-Request-Id`.
    pub request_id: String,
    /// Bad fields, on `VALIDATION` only.
    pub fields: Option<Vec<ProblemField>>,
}

/// One bad field of a request.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ProblemField {
    /// JSON path: `billing_address.country`, `tiers[1].up_to`.
    pub field: String,
    /// `REQUIRED`, `INVALID_FORMAT`, `INVALID_ENUM`, `OUT_OF_RANGE`, `TOO_LONG`, `UNKNOWN_FIELD` or `NOT_ALLOWED`.
    pub code: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// The parts of a problem document that come from the error.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code.
    pub code: &'static str,
    /// One line.
    pub title: &'static str,
    /// For the caller.
    pub detail: String,
    /// Further members.
    pub members: JsonMap,
    /// Header `Retry-After`, whole seconds.
    pub retry_after_secs: Option<u64>,
}

impl Outline {
    /// 405, which no handler ever sees.
    #[must_use]
    pub fn method_not_allowed(method: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "METHOD_NOT_ALLOWED",
            "Method not allowed",
            format!("this resource does not take {method}; see the Allow header"),
        )
    }

    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, title, detail: detail.into(), members: JsonMap::new(), retry_after_secs: None }
    }

    fn with(mut self, name: &str, value: Value) -> Self {
        self.members.insert(name.to_owned(), value);
        self
    }

    fn with_all(mut self, members: &JsonMap) -> Self {
        self.members.extend(members.clone());
        self
    }

    fn retry_after(mut self, secs: u64) -> Self {
        self.retry_after_secs = Some(secs);
        self
    }

    /// The document of one occurrence.
    #[must_use]
    pub fn document(&self, base_url: &str, instance: &str, request_id: &str) -> Vec<u8> {
        let class = self.code.to_ascii_lowercase().replace('_', "-");
        let mut document = self.members.clone();
        let own = [
            ("type", json!(format!("{}/errors#{class}", base_url.trim_end_matches('/')))),
            ("title", json!(self.title)),
            ("status", json!(self.status.as_u16())),
            ("detail", json!(self.detail)),
            ("instance", json!(instance)),
            ("code", json!(self.code)),
            ("request_id", json!(request_id)),
        ];
        document.extend(own.map(|(name, value)| (name.to_owned(), value)));
        Value::Object(document).to_string().into_bytes()
    }
}

/// How an error looks outside: every variant, no `_` arm, no internal cause (conventions.md, Codes).
impl From<&Error> for Outline {
    fn from(error: &Error) -> Self {
        let code = error.code();
        match error {
            Error::Validation(fields) => {
                let detail = match fields.as_slice() {
                    [one] => format!("{}: {}", one.field, one.message),
                    many => format!("{} fields are wrong; see `fields`", many.len()),
                };
                Self::new(StatusCode::BAD_REQUEST, code, "Invalid request", detail).with("fields", json!(fields))
            }
            Error::BadRequest { detail, .. } => Self::new(StatusCode::BAD_REQUEST, code, "Bad request", detail),
            Error::Unauthorized(detail) => Self::new(StatusCode::UNAUTHORIZED, code, "Unauthorized", *detail),
            Error::InvalidSignature(detail) => Self::new(StatusCode::UNAUTHORIZED, code, "Invalid signature", *detail),
            Error::Forbidden { detail, required_permission } => {
                let outline = Self::new(StatusCode::FORBIDDEN, code, "Forbidden", detail);
                match required_permission {
                    Some(name) => outline.with("required_permission", json!(name)),
                    None => outline,
                }
            }
            Error::NotFound { entity_type, entity_id } => {
                Self::new(StatusCode::NOT_FOUND, code, "Not found", error.to_string())
                    .with("entity_type", json!(entity_type))
                    .with("entity_id", json!(entity_id))
            }
            Error::Conflict { detail, extensions, .. } => {
                Self::new(StatusCode::CONFLICT, code, "Conflict", detail).with_all(extensions)
            }
            Error::VersionConflict { expected_version, current_version } => {
                Self::new(StatusCode::CONFLICT, code, "Version conflict", error.to_string())
                    .with("expected_version", json!(expected_version))
                    .with("current_version", json!(current_version))
            }
            Error::TooLarge(detail) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, "Payload too large", detail),
            Error::Rule { detail, extensions, .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, "Refused by a rule", detail).with_all(extensions)
            }
            Error::RateLimited { retry_after_secs } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, code, "Too many requests", "the rate limit is reached")
                    .retry_after(*retry_after_secs)
            }
            Error::Unavailable { dependency, detail, retry_after_secs } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, code, "Service unavailable", detail)
                    .with("dependency", json!(dependency))
                    .retry_after(*retry_after_secs)
            }
            Error::Internal { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                code,
                "Internal error",
                "something broke on our side; please report the request_id",
            ),
        }
    }
}

/// The message of an error and of everything that caused it.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stay_inside() {
        let error = Error::internal("reading customer 7", std::io::Error::other("password is hunter2"));
        let outline = Outline::from(&error);
        let document = String::from_utf8(outline.document("https://x/", "/v1/customers/7", "r-1")).expect("text");
        assert_eq!(outline.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!document.contains("hunter2") && !document.contains("reading customer"), "{document}");
        assert!(document.contains(r#""type":"https://x/errors#internal-error""#), "{document}");
        assert_eq!(chain(&error), "reading customer 7: password is hunter2");
    }

    #[test]
    fn extensions_stand_at_the_top_and_cannot_replace_members() {
        let error = Error::invalid_transition("invoice", "i", "paid", "void", &[]).with("status", "x");
        let document: Value = serde_json::from_slice(&Outline::from(&error).document("b", "/", "r")).expect("JSON");
        assert_eq!(
            (&document["status"], &document["from"], &document["code"]),
            (&json!(409), &json!("paid"), &json!("INVALID_TRANSITION"))
        );
    }
}
