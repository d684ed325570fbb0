//! Messages of outside systems, which sign their bodies and have no key: the receivers below `/v1/webhooks/`.

use std::str::FromStr;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use bytes::Bytes;
use domain::Result;

use crate::ctx::{bad_request, body_of, path_params};
use crate::{App, Refusal};

/// A message whose signature the handler must check before it believes a word of it.
pub struct Inbound {
    /// State of the router.
    pub app: App,
    /// The body byte for byte: what is signed.
    pub body: Bytes,
    headers: HeaderMap,
    path_params: Vec<(String, String)>,
}

impl FromRequest<App> for Inbound {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        let (mut parts, body) = request.into_parts();
        let path_params = path_params(&mut parts).await?;
        let body = body_of(&parts.headers, body, app.settings.body_bytes_max).await?;
        Ok(Self { app: app.clone(), body, headers: parts.headers, path_params })
    }
}

impl Inbound {
    /// A value of the path.
    ///
    /// # Errors
    /// `BadRequest` for a malformed value.
    pub fn path_id<T: FromStr>(&self, name: &str) -> Result<T> {
        let value = self.path_params.iter().find(|(param, _)| param == name).map_or("", |(_, value)| value.as_str());
        value.parse().map_err(|_| bad_request(format!("`{value}` in the path is not a valid {name}")))
    }

    /// A request header as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
