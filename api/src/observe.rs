//! The outermost layer: request id, problem documents, rate headers, metrics, and the memory of refused repeats.

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::Instant as Tick;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use domain::Error;
use store::{IdempotencyKey, StoredAnswer};

use crate::App;
use crate::limit::RateState;
use crate::problem::{self, Outline};
use crate::refusal::{Failed, Refusal};

/// What is known of one request outside its handler.
#[derive(Debug)]
pub struct RequestInfo {
    /// Correlation id, also in the answer.
    pub request_id: String,
    /// Path with query.
    pub instance: String,
    /// The bucket that was asked, for the headers.
    pub(crate) rate: OnceLock<RateState>,
    /// The key that the handler claimed: a refusal is stored under it.
    pub(crate) idempotency: OnceLock<IdempotencyKey>,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Wraps every route and the fallback.
pub async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Tick::now();
    let info = Arc::new(RequestInfo {
        request_id: request_id(request.headers()),
        instance: request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        rate: OnceLock::new(),
        idempotency: OnceLock::new(),
    });
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    request.extensions_mut().insert(info.clone());
    let mut response = next.run(request).await;
    if let Some(Failed(error)) = response.extensions_mut().remove::<Failed>() {
        response = fail(&app, &info, &error).await;
    } else if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = render(&app, &info, &Outline::method_not_allowed(method.as_str())).0;
        allow.map(|allow| response.headers_mut().insert(header::ALLOW, allow));
    }
    if let Ok(value) = HeaderValue::from_str(&info.request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    info.rate.get().inspect(|rate| rate_headers(response.headers_mut(), rate));
    let status = response.status().as_u16();
    app.http_metrics.answered(method.as_str(), &route, status, started.elapsed().as_secs_f64());
    tracing::debug!(request.id = %info.request_id, http.method = %method, http.route = route, http.status = status, "answered");
    response
}

/// An incoming id of at most 128 visible ASCII characters is taken over.
fn request_id(headers: &HeaderMap) -> String {
    let incoming = headers.get(REQUEST_ID).map(HeaderValue::as_bytes).unwrap_or_default();
    let good = (1..=128).contains(&incoming.len()) && incoming.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(incoming) {
        Ok(text) if good => text.to_owned(),
        _ => uuid::Uuid::now_v7().to_string(),
    }
}

async fn fail(app: &App, info: &RequestInfo, error: &Error) -> Response {
    if let Error::Internal { .. } = error {
        tracing::error!(request.id = %info.request_id, error = problem::chain(error), "request failed");
    }
    let outline = Outline::from(error);
    let (response, body) = render(app, info, &outline);
    if let Some(key) = info.idempotency.get().filter(|_| is_outcome(&outline)) {
        let answer = StoredAnswer { status: outline.status.as_u16().cast_signed(), body };
        if let Err(error) = remember(app, key, &answer).await {
            tracing::warn!(request.id = %info.request_id, %error, "could not store a refusal for its repeats");
        }
    }
    response
}

/// Whether a repeat must get the same refusal: server errors and rate limits may pass, and a conflict about the key
/// itself is no answer of the operation.
fn is_outcome(outline: &Outline) -> bool {
    outline.status.is_client_error()
        && outline.status != StatusCode::TOO_MANY_REQUESTS
        && outline.code != "IDEMPOTENCY_CONFLICT"
}

/// Stores a refusal in a transaction of its own: that of the operation was rolled back.
async fn remember(app: &App, key: &IdempotencyKey, answer: &StoredAnswer) -> domain::Result<()> {
    let mut tx = app.store.begin("store_refusal").await?;
    key.wait(&mut tx).await?;
    match key.claim(&mut tx, domain::Clock::System.now()).await {
        Ok(None) => {
            key.complete(&mut tx, answer).await?;
            tx.commit().await
        }
        others => tx.rollback().await.and(others.map(drop)),
    }
}

fn render(app: &App, info: &RequestInfo, outline: &Outline) -> (Response, Vec<u8>) {
    let body = outline.document(&app.settings.public_base_url, &info.instance, &info.request_id);
    let mut response = (outline.status, Body::from(body.clone())).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
    if let Some(secs) = outline.retry_after_secs {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
    }
    if outline.status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    (response, body)
}

fn rate_headers(headers: &mut HeaderMap, rate: &RateState) {
    headers.insert("x-ratelimit-limit", HeaderValue::from(rate.limit));
    headers.insert("x-ratelimit-remaining", HeaderValue::from(rate.remaining));
    headers.insert("x-ratelimit-reset", HeaderValue::from(rate.reset));
}

/// A panic of a handler is our defect: 500, logged, and the connection lives on.
pub fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without a message".to_owned());
    Refusal::Error(Error::invariant(format!("handler panicked: {text}"))).into_response()
}

/// No route of this path.
pub async fn unknown_route(request: Request) -> Refusal {
    Error::not_found("route", request.uri().path()).into()
}
