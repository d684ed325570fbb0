//! One request: who asks, for which tenant, and what was sent. Extracting it runs the checks that come before any
//! handler, in the order of conventions.md.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use access::Credential;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use bytes::{Bytes, BytesMut};
use domain::{Actor, Clock, Error, Result, Scope};
use futures::StreamExt;
use serde_json::Value;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use store::{ListQuery, ListSpec, StoreError};

use crate::limit::Bucket;
use crate::observe::RequestInfo;
use crate::{App, Refusal, Write, address, json};

/// How long a client may take to send its body.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// An authenticated request. Take it as the last argument of a handler: it reads the body.
pub struct Ctx {
    /// State of the router.
    pub app: App,
    /// Tenant, actor and clock.
    pub scope: Scope,
    /// The calling key.
    pub credential: Arc<Credential>,
    pub(crate) info: Arc<RequestInfo>,
    method: Method,
    path: String,
    headers: HeaderMap,
    path_params: Vec<(String, String)>,
    query: Vec<(String, String)>,
    body: Bytes,
}

/// The same for usage ingest: larger bodies, and a bucket that is counted in events (P18). The handler must call
/// [`Ctx::take_ingest`] as soon as it knows how many events there are.
pub struct IngestCtx(pub Ctx);

impl FromRequest<App> for Ctx {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        Ok(admit(request, app, Bucket::Requests).await?)
    }
}

impl FromRequest<App> for IngestCtx {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        Ok(Self(admit(request, app, Bucket::Ingest).await?))
    }
}

/// Body size → authentication → allowlist → organization → rate limit.
async fn admit(request: Request, app: &App, bucket: Bucket) -> Result<Ctx> {
    let (mut parts, body) = request.into_parts();
    let limit = match bucket {
        Bucket::Requests => app.settings.body_bytes_max,
        Bucket::Ingest => app.settings.ingest_body_bytes_max,
    };
    // A declared length is judged before anybody is asked who they are; a body without one when it is read.
    check_declared_length(&parts.headers, limit)?;
    let info = parts.extensions.get::<Arc<RequestInfo>>().cloned();
    let info = info.ok_or_else(|| Error::invariant("the router has no outer layer"))?;
    let clock = Clock::System;
    let header = parts.headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let credential = app.authenticator.authenticate(header, clock.now()).await?;
    credential.check_address(address::client(&parts, &app.settings.trusted_proxies))?;
    credential.check_organization()?;
    let scope = Scope {
        organization_id: credential.organization_id,
        workspace_id: credential.workspace_id,
        mode: credential.mode,
        actor: Actor::ApiKey(credential.api_key_id),
        clock,
    };
    let path_params = path_params(&mut parts).await?;
    let query = query(&parts)?;
    let mut ctx = Ctx {
        app: app.clone(),
        scope,
        credential,
        info,
        method: parts.method,
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        path_params,
        query,
        body: Bytes::new(),
    };
    if bucket == Bucket::Requests {
        ctx.take(bucket, 1)?;
    }
    ctx.body = read_body(body, limit).await?;
    Ok(ctx)
}

impl Ctx {
    /// Refuses unless the key holds a permission of the catalog, e.g. `customers:write`. The first line of a handler.
    ///
    /// # Errors
    /// `Forbidden` with `required_permission`.
    pub fn require(&self, permission: &str) -> Result<()> {
        debug_assert!(access::permission::exists(permission), "{permission} is not in the catalog");
        self.credential.require(permission)
    }

    /// Refuses live workspaces, for test tools (conventions.md, Live and sandbox).
    ///
    /// # Errors
    /// `Forbidden`.
    pub fn require_sandbox(&self) -> Result<()> {
        match self.scope.mode {
            domain::WorkspaceMode::Sandbox => Ok(()),
            domain::WorkspaceMode::Live => Err(Error::Forbidden {
                detail: "this operation needs a key of a sandbox workspace".into(),
                required_permission: None,
            }),
        }
    }

    /// Takes that many events from the workspace's ingest bucket, all or none.
    ///
    /// # Errors
    /// `RateLimited`.
    pub fn take_ingest(&self, events: usize) -> Result<()> {
        self.take(Bucket::Ingest, u32::try_from(events).unwrap_or(u32::MAX))
    }

    fn take(&self, bucket: Bucket, tokens: u32) -> Result<()> {
        let settings = &self.app.settings;
        let rate = match (bucket, self.scope.mode) {
            (Bucket::Ingest, _) => settings.rate_ingest,
            (Bucket::Requests, domain::WorkspaceMode::Live) => settings.rate_live,
            (Bucket::Requests, domain::WorkspaceMode::Sandbox) => settings.rate_sandbox,
        };
        let state = self.app.limiter.take(self.scope.workspace_id, bucket, rate, tokens, self.scope.now());
        let _ = self.info.rate.set(state);
        match state.retry_after_secs {
            Some(retry_after_secs) => Err(Error::RateLimited { retry_after_secs }),
            None => Ok(()),
        }
    }

    /// Begins a write: one transaction in which the operation, its outbox events and its idempotency key live. On a
    /// `POST` whose key was used before, the first answer returns through the error.
    ///
    /// # Errors
    /// `BadRequest` for a malformed key, `Conflict` with `IDEMPOTENCY_CONFLICT`, `Unavailable`.
    pub async fn write(&self, name: &'static str) -> Result<Write, Refusal> {
        Write::begin(self, name).await
    }

    /// A connection for reads.
    ///
    /// # Errors
    /// `Unavailable` when none is to be had.
    pub async fn conn(&self) -> Result<PoolConnection<Postgres>> {
        self.app.store.pool().acquire().await.context("waiting for a database connection")
    }

    /// A value of the path, e.g. `ctx.path_id::<CustomerId>("id")?`.
    ///
    /// # Errors
    /// `BadRequest` for a malformed value.
    pub fn path_id<T: FromStr>(&self, name: &str) -> Result<T> {
        let text = self.path_text(name)?;
        text.parse().map_err(|_| bad_request(format!("`{text}` in the path is not a valid {name}")))
    }

    /// A value of the path as text.
    ///
    /// # Errors
    /// `Internal` when the route has no such parameter.
    pub fn path_text(&self, name: &str) -> Result<&str> {
        let found = self.path_params.iter().find(|(param, _)| param == name);
        found.map(|(_, value)| value.as_str()).ok_or_else(|| Error::invariant(format!("route without {{{name}}}")))
    }

    /// The query parameters, decoded, in order.
    #[must_use]
    pub fn query(&self) -> &[(String, String)] {
        &self.query
    }

    /// The last value of a query parameter.
    #[must_use]
    pub fn query_value(&self, name: &str) -> Option<&str> {
        self.query.iter().rev().find(|(param, _)| param == name).map(|(_, value)| value.as_str())
    }

    /// The query parameters as a list request.
    ///
    /// # Errors
    /// As [`ListQuery::parse`].
    pub fn list(&self, spec: &ListSpec) -> Result<ListQuery> {
        ListQuery::parse(spec, &self.query)
    }

    /// The body, through the reader of its request type: `ctx.body(CreateCustomerRequest::read)?`.
    ///
    /// # Errors
    /// `BadRequest` for what is not JSON, `Validation` from the reader.
    pub fn body<T>(&self, read: impl FnOnce(&Value) -> Result<T>) -> Result<T> {
        read(&self.json()?)
    }

    /// The same where no body means `{}`.
    ///
    /// # Errors
    /// As [`Ctx::body`].
    pub fn body_or_empty<T>(&self, read: impl FnOnce(&Value) -> Result<T>) -> Result<T> {
        if self.body.is_empty() { read(&Value::Object(serde_json::Map::new())) } else { self.body(read) }
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// `BadRequest` for another content type, broken JSON, repeated members or inexact numbers.
    pub fn json(&self) -> Result<Value> {
        match self.content_type() {
            None => {}
            Some(media) if media == "application/json" || media.ends_with("+json") => {}
            Some(other) => return Err(bad_request(format!("the content type must be application/json, not {other}"))),
        }
        json::parse(&self.body)
    }

    /// The body byte for byte.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.body
    }

    /// The media type of the body in lower case, without parameters.
    #[must_use]
    pub fn content_type(&self) -> Option<String> {
        let value = self.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
    }

    /// A request header as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The correlation id.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.info.request_id
    }

    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

pub(crate) fn bad_request(detail: String) -> Error {
    Error::BadRequest { code: "BAD_REQUEST", detail }
}

fn too_large(limit: usize) -> Error {
    Error::TooLarge(format!("the body must have at most {limit} bytes"))
}

fn check_declared_length(headers: &HeaderMap, limit: usize) -> Result<()> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match declared {
        Some(length) if length > limit as u64 => Err(too_large(limit)),
        _ => Ok(()),
    }
}

/// A whole body of at most `limit` bytes.
pub(crate) async fn body_of(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes> {
    check_declared_length(headers, limit)?;
    read_body(body, limit).await
}

async fn read_body(body: Body, limit: usize) -> Result<Bytes> {
    match tokio::time::timeout(BODY_WITHIN, collect(body, limit)).await {
        Ok(read) => read,
        Err(_) => Err(bad_request(format!("the body did not arrive within {} s", BODY_WITHIN.as_secs()))),
    }
}

/// Reads the body; the usual one that comes in one piece is not copied.
async fn collect(body: Body, limit: usize) -> Result<Bytes> {
    let mut chunks = body.into_data_stream();
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| bad_request(format!("the body could not be read: {error}")))?;
        if first.len() + rest.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        if first.is_empty() && rest.is_empty() {
            first = chunk;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&chunk);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

pub(crate) async fn path_params(parts: &mut Parts) -> Result<Vec<(String, String)>> {
    let params = RawPathParams::from_request_parts(parts, &()).await;
    let params = params.map_err(|error| bad_request(format!("the path cannot be read: {error}")))?;
    Ok(params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn query(parts: &Parts) -> Result<Vec<(String, String)>> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
    query.map(|Query(pairs)| pairs).map_err(|error| bad_request(format!("the query cannot be read: {error}")))
}
