//! A whole API on a fresh database, for tests of every room (feature `testing`).
//!
//! ```ignore
//! let api = api::testing::TestApi::start().await;
//! let customer = api.live.post("/v1/customers", json!({"name": "Acme"})).await.expect(201)["data"].clone();
//! api.live.get("/v1/customers").await.expect(200);
//! api.other.get(&format!("/v1/customers/{}", id(&customer))).await.problem(404, "NOT_FOUND");
//! ```

use std::net::SocketAddr;

use access::{NewOrganization, NewTenant, NewWorkspace};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use domain::{Actor, Clock, Scope};
use engines::testing::TestDatabase;
use serde_json::Value;
use store::Store;
use tower::ServiceExt;

use crate::limit::Rate;
use crate::{App, Settings};

/// The router with two tenants. Rate limits are out of the way unless a test sets its own.
pub struct TestApi {
    /// State of the router.
    pub app: App,
    /// Client of the first tenant's live workspace.
    pub live: Client,
    /// Client of the first tenant's sandbox.
    pub sandbox: Client,
    /// Client of another tenant's live workspace.
    pub other: Client,
    /// Client of that other tenant's sandbox.
    pub other_sandbox: Client,
    /// The first tenant.
    pub tenant: NewTenant,
    // Dropped last: the database goes with it.
    _database: TestDatabase,
}

/// Settings for tests: limits that no test meets by accident.
#[must_use]
pub fn settings() -> Settings {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    Settings { rate_live: rate, rate_sandbox: rate, rate_ingest: rate, ..Settings::default() }
}

impl TestApi {
    /// A fresh database with two tenants.
    pub async fn start() -> Self {
        Self::start_with(settings(), |app| app).await
    }

    /// The same with other settings, and with a state that the caller completes.
    pub async fn start_with(settings: Settings, complete: impl FnOnce(App) -> App) -> Self {
        let database = engines::testing::database().await;
        let store = Store::connect(database.url(), 10).await.expect("the test database answers");
        let vault = payments::Vault::ephemeral().expect("random numbers");
        let payments = payments::Payments::new(store, vault, payments::Endpoints::default());
        let app = complete(App::new(payments, settings, prometheus::Registry::new()));
        let (tenant, other) = (tenant(&app.store, "Test tenant").await, tenant(&app.store, "Other tenant").await);
        let router = crate::router(app.clone());
        let client = |workspace: &NewWorkspace| Client::new(router.clone(), workspace.token.reveal());
        Self {
            live: client(&tenant.live),
            sandbox: client(&tenant.sandbox),
            other: client(&other.live),
            other_sandbox: client(&other.sandbox),
            app,
            tenant,
            _database: database,
        }
    }

    /// The scope of the first tenant's live workspace, acting as the system.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope_of(&self.tenant.live)
    }

    /// The scope of the first tenant's sandbox, acting as the system.
    #[must_use]
    pub fn sandbox_scope(&self) -> Scope {
        self.scope_of(&self.tenant.sandbox)
    }

    fn scope_of(&self, workspace: &NewWorkspace) -> Scope {
        Scope {
            organization_id: self.tenant.organization_id,
            workspace_id: workspace.id,
            mode: workspace.mode,
            actor: Actor::System,
            clock: Clock::System,
        }
    }
}

async fn tenant(store: &Store, name: &str) -> NewTenant {
    let mut tx = store.begin("bootstrap").await.expect("a transaction");
    let tenant =
        access::bootstrap(&mut tx, Clock::System.now(), &NewOrganization::named(name)).await.expect("a tenant");
    enable_currencies(&mut tx, &["USD", "GBP", "JPY", "KWD"]).await;
    tx.commit().await.expect("a commit");
    tenant
}

/// What the tests use beside the default of every workspace.
async fn enable_currencies(tx: &mut store::Tx, codes: &[&str]) {
    sqlx::query(
        "INSERT INTO workspace_currency (workspace_id, currency_code, billing_enabled, catalog_enabled, created_at, updated_at)
         SELECT workspace.id, code, true, true, created_at, created_at FROM workspace CROSS JOIN unnest($1::text[]) AS code
         ON CONFLICT DO NOTHING",
    )
    .bind(codes)
    .execute(tx.conn())
    .await
    .expect("currencies");
}

/// Calls the router with one key.
#[derive(Clone)]
pub struct Client {
    router: Router,
    authorization: String,
    peer: SocketAddr,
    headers: Vec<(String, String)>,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// JSON body; null when empty or no JSON.
    pub body: Value,
    /// Body byte for byte.
    pub bytes: Vec<u8>,
    request: String,
}

impl Client {
    /// With a key's clear text.
    #[must_use]
    pub fn new(router: Router, token: &str) -> Self {
        let peer = SocketAddr::from(([127, 0, 0, 1], 4711));
        Self { router, authorization: format!("Bearer {token}"), peer, headers: Vec::new() }
    }

    /// The same with another key.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        self.with_authorization(&format!("Bearer {token}"))
    }

    /// The same with another `Authorization` header; empty for none.
    #[must_use]
    pub fn with_authorization(&self, value: &str) -> Self {
        Self { authorization: value.to_owned(), ..self.clone() }
    }

    /// The same from another address.
    #[must_use]
    pub fn from_address(&self, address: &str) -> Self {
        Self { peer: SocketAddr::new(address.parse().expect("an IP address"), 4711), ..self.clone() }
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None).await
    }

    /// `POST` with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body)).await
    }

    /// `POST` without a body.
    pub async fn post_empty(&self, path: &str) -> Reply {
        self.send(Method::POST, path, None).await
    }

    /// `PUT` with a JSON body.
    pub async fn put(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PUT, path, Some(body)).await
    }

    /// `PATCH` with a JSON body.
    pub async fn patch(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PATCH, path, Some(body)).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, None).await
    }

    /// Any method, with or without a JSON body.
    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        match body {
            Some(body) => self.send_bytes(method, path, "application/json", body.to_string().into_bytes()).await,
            None => self.send_bytes(method, path, "", Vec::new()).await,
        }
    }

    /// Any method and any bytes; an empty content type is not sent.
    pub async fn send_bytes(&self, method: Method, path: &str, content_type: &str, body: Vec<u8>) -> Reply {
        let mut request = Request::builder().method(method.clone()).uri(path).extension(ConnectInfo(self.peer));
        if !self.authorization.is_empty() {
            request = request.header(header::AUTHORIZATION, &self.authorization);
        }
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let text = format!("{method} {path} {}", String::from_utf8_lossy(&body));
        let request = request.header(header::CONTENT_LENGTH, body.len()).body(Body::from(body)).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("routers do not fail");
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("a body").to_vec();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Reply { status: parts.status, headers: parts.headers, body, bytes, request: text }
    }
}

impl Reply {
    /// The body, after checking the status.
    ///
    /// # Panics
    /// When the status is another one; the message shows request and answer.
    #[must_use = "the body is usually what the test is about; use `let _ =` otherwise"]
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}\n→ {}", self.request, String::from_utf8_lossy(&self.bytes));
        self.body
    }

    /// `data` of the body, after checking the status.
    ///
    /// # Panics
    /// As [`Reply::expect`].
    #[must_use]
    #[track_caller]
    pub fn data(self, status: u16) -> Value {
        self.expect(status)["data"].take()
    }

    /// The problem document, after checking its form, status and code.
    ///
    /// # Panics
    /// When the answer is another one.
    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Value {
        let content_type = self.headers.get(header::CONTENT_TYPE).cloned();
        let id = self.header("x-request-id").map(str::to_owned);
        let body = self.expect(status);
        assert_eq!((&body["code"], &body["status"]), (&Value::from(code), &Value::from(status)), "{body}");
        assert_eq!(content_type.as_ref().and_then(|v| v.to_str().ok()), Some("application/problem+json"));
        assert!(id.is_some() && body["type"].is_string() && body["title"].is_string(), "{body}");
        body
    }

    /// The pairs (field, code) of a `VALIDATION` problem.
    ///
    /// # Panics
    /// When the answer is another one.
    #[must_use]
    #[track_caller]
    pub fn bad_fields(self) -> Vec<(String, String)> {
        let body = self.problem(400, "VALIDATION");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let fields = body["fields"].as_array().cloned().unwrap_or_default();
        fields.iter().map(|field| (text(&field["field"]), text(&field["code"]))).collect()
    }

    /// A header as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The member `id` of an object.
///
/// # Panics
/// When there is none.
#[must_use]
#[track_caller]
pub fn id(object: &Value) -> String {
    object["id"].as_str().unwrap_or_else(|| panic!("no id in {object}")).to_owned()
}
