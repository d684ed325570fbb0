//! Envelopes and the small ways to answer (conventions.md, Envelopes).

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::Error;
use serde::Serialize;
use store::Page;
use store::list::PageResponse;
use utoipa::__dev::ComposeSchema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::Answer;

/// `{"data": {...}}`: a single resource or result.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub struct PageOf<T> {
    /// Rows in order.
    pub data: Vec<T>,
    /// How to go on.
    pub pagination: PageResponse,
}

// By hand: the derived schemas of generic types repeat the resource in place, and clients then see a type per envelope
// and not the component of the reference.
impl<T: ToSchema> ComposeSchema for Data<T> {
    fn compose(_: Vec<RefOr<Schema>>) -> RefOr<Schema> {
        let data = Ref::from_schema_name(T::name());
        ObjectBuilder::new().property("data", data).required("data").into()
    }
}

impl<T: ToSchema> ToSchema for Data<T> {
    fn name() -> Cow<'static, str> {
        "Data".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
}

impl<T: ToSchema> ComposeSchema for PageOf<T> {
    fn compose(_: Vec<RefOr<Schema>>) -> RefOr<Schema> {
        let rows = ArrayBuilder::new().items(Ref::from_schema_name(T::name()));
        ObjectBuilder::new()
            .property("data", rows)
            .required("data")
            .property("pagination", Ref::from_schema_name(PageResponse::name()))
            .required("pagination")
            .into()
    }
}

impl<T: ToSchema> ToSchema for PageOf<T> {
    fn name() -> Cow<'static, str> {
        "PageOf".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into_owned(), T::schema()));
        schemas.push((PageResponse::name().into_owned(), PageResponse::schema()));
        T::schemas(schemas);
    }
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

/// 200 with a list that is computed whole: one page, whatever its length.
///
/// # Errors
/// As [`ok`].
pub fn all<T: Serialize>(data: Vec<T>) -> Answer {
    let limit = u32::try_from(data.len()).unwrap_or(u32::MAX);
    ok(PageOf { data, pagination: PageResponse { cursor: None, has_more: false, limit } })
}

/// 202 with a body.
///
/// # Errors
/// As [`ok`].
pub fn accepted(body: impl Serialize) -> Answer {
    json(StatusCode::ACCEPTED, &body)
}

/// 200 without a body.
#[must_use]
pub fn empty() -> Response {
    StatusCode::OK.into_response()
}

/// Says that an earlier call was answered for.
pub(crate) fn mark_replayed(response: &mut Response) {
    response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
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
