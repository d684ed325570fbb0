//! The HTTP API: thin handlers, one file per tag, over mechanisms that exist once (DESIGN section 7).
//!
//! A request passes, in the order of conventions.md ("Order of checks"): [`observe`] (request id, problem documents,
//! metrics) → [`Ctx`] (body size, authentication, allowlist, organization, rate limit) → [`Ctx::require`] (permission) →
//! [`Ctx::write`] (idempotency) → [`Ctx::body`] and [`Ctx::path_id`] (validation) → one function of a domain crate →
//! [`answer`]. `docs/api.md` shows how a tag file is written.

pub mod address;
pub mod answer;
pub mod app;
pub(crate) mod begun;
pub mod ctx;
pub mod document;
pub mod health;
pub mod inbound;
pub mod json;
pub mod limit;
pub mod metrics;
pub mod observe;
pub mod problem;
pub mod refusal;
pub mod tags;
#[cfg(feature = "testing")]
pub mod testing;
pub mod write;

pub use answer::{Data, PageOf};
pub use app::{App, Dependency, Parts, Settings};
pub use ctx::{Ctx, IngestCtx};
pub use document::{document, health_router, router};
pub use refusal::{Answer, Refusal};
pub use write::Write;
