//! Requests that are repeated while the trouble may pass, with the same `Idempotency-Key`, so that a repeat does nothing
//! twice.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::Problem;
use crate::{ClientError, Result};

/// First pause before a repeat; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(20);

/// Longest pause before a repeat.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A connection to one server with one API key. Cheap to clone; clones share the connections.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    key: String,
    patience: Duration,
}

/// `{"data": ...}`.
#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

/// `{"data": [...], "pagination": {...}}`.
#[derive(Deserialize)]
struct Page<T> {
    data: Vec<T>,
    pagination: Pagination,
}

#[derive(Deserialize)]
struct Pagination {
    cursor: Option<String>,
    has_more: bool,
}

impl Api {
    /// For a server at `base`, such as `http://127.0.0.1:8080`, without a slash at its end.
    ///
    /// # Errors
    /// `NoAnswer` when the HTTP client cannot be made.
    pub fn new(base: impl Into<String>, key: impl Into<String>) -> Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(300))
            .connect_timeout(Duration::from_secs(5))
            .pool_max_idle_per_host(256)
            .tcp_nodelay(true)
            .no_proxy()
            .build()
            .map_err(|source| ClientError::NoAnswer { request: "making a client".to_owned(), source })?;
        Ok(Self { http, base: base.into(), key: key.into(), patience: Duration::from_secs(60) })
    }

    /// The same with another limit for the repeats of one request.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Address of the server.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The API key, as it is sent.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The `data` of a GET.
    ///
    /// # Errors
    /// After the last repeat, or at once when a repeat is of no use.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let envelope: Envelope<T> = self.call(Method::GET, path, None).await?;
        Ok(envelope.data)
    }

    /// The `data` of a POST.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let envelope: Envelope<T> = self.call(Method::POST, path, Some(body.to_string())).await?;
        Ok(envelope.data)
    }

    /// The `data` of a POST whose body is JSON text already.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn post_text<T: DeserializeOwned>(&self, path: &str, body: String) -> Result<T> {
        let envelope: Envelope<T> = self.call(Method::POST, path, Some(body)).await?;
        Ok(envelope.data)
    }

    /// Every row of a list, page by page. `path` may carry filters.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut next = format!("{path}{joint}limit=100");
        loop {
            let page: Page<T> = self.call(Method::GET, &next, None).await?;
            rows.extend(page.data);
            match page.pagination.cursor {
                Some(cursor) if page.pagination.has_more => next = format!("{path}{joint}limit=100&cursor={cursor}"),
                _ => return Ok(rows),
            }
        }
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<String>) -> Result<T> {
        let request = || format!("{method} {path}");
        let text = self.text(method.clone(), path, body).await?;
        serde_json::from_str(&text).map_err(|error| ClientError::Unreadable {
            request: request(),
            detail: format!("{error}; it begins with: {}", text.chars().take(200).collect::<String>()),
        })
    }

    /// The body of a successful answer, as text.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn text(&self, method: Method, path: &str, body: Option<String>) -> Result<String> {
        let give_up = Instant::now() + self.patience;
        let idempotency_key = Uuid::new_v4().to_string();
        let mut pause = PAUSE_FIRST;
        loop {
            let mut request = self.http.request(method.clone(), format!("{}{path}", self.base)).bearer_auth(&self.key);
            if let Some(body) = &body {
                request = request
                    .header("Content-Type", "application/json")
                    .header("Idempotency-Key", &idempotency_key)
                    .body(body.clone());
            }
            let (failure, wait) = match attempt(request).await {
                Ok(text) => return Ok(text),
                Err(Attempt::Broken(source)) => {
                    (ClientError::NoAnswer { request: describe(&method, path), source }, None)
                }
                Err(Attempt::Refused(problem, wait)) => {
                    let passes = problem.passes();
                    let failure = ClientError::Refused { request: describe(&method, path), problem };
                    if !passes {
                        return Err(failure);
                    }
                    (failure, wait)
                }
            };
            if Instant::now() >= give_up {
                return Err(failure);
            }
            tokio::time::sleep(with_jitter(wait.unwrap_or(pause).min(PAUSE_MAX))).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn describe(method: &Method, path: &str) -> String {
    format!("{method} {path}")
}

enum Attempt {
    Broken(reqwest::Error),
    Refused(Box<Problem>, Option<Duration>),
}

async fn attempt(request: RequestBuilder) -> Result<String, Attempt> {
    let response = request.send().await.map_err(Attempt::Broken)?;
    let status = response.status();
    let wait = retry_after(&response);
    let text = response.text().await.map_err(Attempt::Broken)?;
    if status.is_success() {
        return Ok(text);
    }
    let mut problem: Box<Problem> =
        serde_json::from_str(&text).unwrap_or_else(|_| Box::new(Problem { detail: text, ..Problem::default() }));
    problem.status = status.as_u16();
    Err(Attempt::Refused(problem, wait))
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get("Retry-After")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// 50 to 150 % of a pause, so that clients refused together do not come back together.
fn with_jitter(pause: Duration) -> Duration {
    let [byte, ..] = *Uuid::new_v4().as_bytes();
    pause / 2 + pause * u32::from(byte) / 256
}
