//! Why a handler did not answer with its own result.

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use store::StoredAnswer;

/// What every handler returns.
pub type Answer = Result<Response, Refusal>;

/// Ends a handler early through `?`.
#[derive(Debug)]
pub enum Refusal {
    /// Becomes a problem document in [`crate::observe`], which knows the request.
    Error(domain::Error),
    /// The idempotency key was used before: the first answer, again.
    Replayed(StoredAnswer),
}

/// The error of a response that has no body yet.
#[derive(Clone, Debug)]
pub(crate) struct Failed(pub Arc<domain::Error>);

impl From<domain::Error> for Refusal {
    fn from(error: domain::Error) -> Self {
        Self::Error(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Error(error) => {
                let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
                response.extensions_mut().insert(Failed(Arc::new(error)));
                response
            }
            Self::Replayed(answer) => replay(answer),
        }
    }
}

fn replay(answer: StoredAnswer) -> Response {
    let status = u16::try_from(answer.status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let mut response = match status {
        Some(status) => (status, answer.body).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    let content_type = if response.status().is_success() { "application/json" } else { crate::problem::CONTENT_TYPE };
    if response.status() == StatusCode::NO_CONTENT {
        response.headers_mut().remove(header::CONTENT_TYPE);
    } else {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    crate::answer::mark_replayed(&mut response);
    response
}
