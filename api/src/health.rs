//! Outside the tags and without authentication: health, readiness, metrics, the document and its page.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::future::join_all;
use prometheus::TextEncoder;
use serde_json::{Value, json};

use crate::{Answer, App, answer};

/// Routes; `document` is the OpenAPI document as JSON.
pub fn routes(document: Bytes) -> Router<App> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/docs", get(docs))
        .route("/v1/openapi.json", get(move || async move { json_bytes(document) }))
}

fn json_bytes(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// The process lives.
async fn healthz() -> Answer {
    answer::ok(json!({"status": "ok"}))
}

/// The process can work: 200, or 503 naming the dependency that is away.
async fn readyz(State(app): State<App>) -> Answer {
    let answers = join_all(app.dependencies.iter().map(async |asked| (asked.name(), asked.ping().await))).await;
    let mut checks = serde_json::Map::new();
    let mut ready = true;
    for (dependency, answer) in answers {
        if let Err(trouble) = &answer {
            tracing::warn!(dependency, trouble, "not ready");
            ready = false;
        }
        checks.insert(dependency.to_owned(), Value::from(if answer.is_ok() { "ok" } else { "unavailable" }));
    }
    let (status, word) = if ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not_ready") };
    answer::json(status, &json!({"status": word, "checks": checks}))
}

/// Every metric of the process as Prometheus text.
async fn metrics(State(app): State<App>) -> Answer {
    let text = TextEncoder::new().encode_to_string(&app.registry.gather());
    let text = text.map_err(|error| domain::Error::internal("encoding the metrics", error))?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT))], text).into_response())
}

/// A page that shows the document; everything it needs is in it.
async fn docs() -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(
                "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'",
            ),
        ),
    ];
    (headers, include_str!("../assets/docs.html")).into_response()
}
