//! Envelopes and the small ways to answer (conventions.md, Envelopes).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::Error;
use serde::Serialize;
use store::Page;
use store::list::PageResponse;
use utoipa::ToSchema;

use crate::Answer;

/// `{"data": {...}}`: a single resource or result.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Data<T> {
    /// The resource.
    pub data: T,
}

/// Puts a resource into its envelope: `Data(customer)` reads better than the struct literal.
#[allow(non_snake_case, reason = "constructor in the place of a tuple struct, so that the schema is an object")]
pub fn Data<T>(data: T) -> Data<T> {
    Data { data }
}

/// `{"data": [...], "pagination": {...}}`: one page of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PageOf<T> {
    /// Rows in order.
    pub data: Vec<T>,
    /// How to go on.
    pub pagination: PageResponse,
}

impl<T> From<Page<T>> for PageOf<T> {
    fn from(page: Page<T>) -> Self {
        Self { data: page.data, pagination: page.pagination }
    }
}

/// 200 with a body: `ok(Data(customer))`, `ok(PageOf::from(page))`, or a bare component.
///
/// # Errors
/// `Internal` when the body cannot be written as JSON.
pub fn ok(body: impl Serialize) -> Answer {
    json(StatusCode::OK, &body)
}

/// 200 with one page of a list.
///
/// # Errors
/// As [`ok`].
pub fn page<T: Serialize>(page: Page<T>) -> Answer {
    ok(PageOf::from(page))
}

/// 202 with a body.
///
/// # Errors
/// As [`ok`].
pub fn accepted(body: impl Serialize) -> Answer {
    json(StatusCode::ACCEPTED, &body)
}

/// Any status with a JSON body.
///
/// # Errors
/// As [`ok`].
pub fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    Ok(raw(status, bytes(body)?))
}

pub(crate) fn bytes(body: &impl Serialize) -> domain::Result<Vec<u8>> {
    serde_json::to_vec(body).map_err(|error| Error::internal("writing an answer as JSON", error))
}

pub(crate) fn raw(status: StatusCode, body: Vec<u8>) -> Response {
    if status == StatusCode::NO_CONTENT {
        return status.into_response();
    }
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
