//! Calls to providers: blocking, on threads of their own, under a deadline, repeated where the provider says so.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

/// Longest wait for one connection and for one answer.
const CONNECT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(15);

/// How HTTP is spoken to all providers. Cheap to clone.
#[derive(Clone)]
pub struct Http {
    agent: Agent,
    /// Pauses before the second, third, … try.
    pauses: Arc<[Duration]>,
}

impl Default for Http {
    fn default() -> Self {
        Self::with_pauses(&[Duration::from_millis(300), Duration::from_millis(900)])
    }
}

impl Http {
    /// With these pauses before the second, third, … try.
    #[must_use]
    pub fn with_pauses(pauses: &[Duration]) -> Self {
        let agent = Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(CALL))
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent("kontorion")
            .build()
            .into();
        Self { agent, pauses: pauses.into() }
    }

    /// The same, speaking to one server.
    #[must_use]
    pub fn to(&self, base_url: &str) -> Server {
        let base_url = base_url.trim_end_matches('/').to_owned();
        Server { http: self.clone(), base_url, is_repeated: Answer::is_transient }
    }
}

/// One server that is spoken to.
#[derive(Clone)]
pub struct Server {
    http: Http,
    base_url: String,
    is_repeated: fn(&Answer) -> bool,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Call {
    /// `GET` or `POST`.
    pub method: Method,
    /// With query.
    pub path: String,
    /// Beside the content type.
    pub headers: Vec<(&'static str, String)>,
}

/// How a call is sent.
#[derive(Clone, Debug)]
pub enum Method {
    /// Without a body.
    Get,
    /// With a form.
    Form(Vec<(String, String)>),
    /// With JSON.
    Json(Value),
}

/// A provider's name of something, as it can stand in a path: names have letters, digits and `_` only.
#[must_use]
pub fn in_path(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// An answer of any status.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body; null when it is no JSON.
    pub body: Value,
}

/// No answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The request did not leave.
    #[error("the server cannot be reached: {0}")]
    NotSent(String),
    /// It left; whether it arrived is not known.
    #[error("the answer was lost: {0}")]
    Lost(String),
}

impl Answer {
    /// Whether the same call may get another answer later: too many requests, or the server's own trouble.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.status, 429 | 500..=599)
    }
}

impl Server {
    /// The same, repeating calls after other answers.
    #[must_use]
    pub fn repeating(self, is_repeated: fn(&Answer) -> bool) -> Self {
        Self { is_repeated, ..self }
    }

    /// Calls, and calls again as long as it makes sense; the last answer or failure counts. A failure counts as not sent only
    /// if no try has left.
    ///
    /// # Errors
    /// As [`CallError`].
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        let mut pauses = self.http.pauses.iter();
        let mut has_left = false;
        loop {
            let outcome = self.once(call.clone()).await;
            let is_final = match &outcome {
                Ok(answer) => {
                    has_left = true;
                    !(self.is_repeated)(answer)
                }
                Err(CallError::Lost(_)) => {
                    has_left = true;
                    false
                }
                Err(CallError::NotSent(_)) => false,
            };
            match pauses.next().filter(|_| !is_final) {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => {
                    return outcome.map_err(|error| match error {
                        CallError::NotSent(detail) if has_left => CallError::Lost(detail),
                        other => other,
                    });
                }
            }
        }
    }

    async fn once(&self, call: Call) -> Result<Answer, CallError> {
        let (agent, url) = (self.http.agent.clone(), format!("{}{}", self.base_url, call.path));
        let sent = tokio::task::spawn_blocking(move || send(&agent, &url, &call));
        sent.await.unwrap_or_else(|error| Err(CallError::Lost(error.to_string())))
    }
}

fn send(agent: &Agent, url: &str, call: &Call) -> Result<Answer, CallError> {
    let mut answer = match &call.method {
        Method::Get => with_headers(agent.get(url), call).call(),
        Method::Form(pairs) => {
            with_headers(agent.post(url), call).send_form(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())))
        }
        Method::Json(body) => {
            with_headers(agent.post(url), call).content_type("application/json").send(body.to_string().as_bytes())
        }
    }
    .map_err(lost)?;
    let status = answer.status().as_u16();
    let text = answer.body_mut().read_to_string().map_err(|error| CallError::Lost(error.to_string()))?;
    Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or_default() })
}

fn with_headers<B>(request: ureq::RequestBuilder<B>, call: &Call) -> ureq::RequestBuilder<B> {
    call.headers.iter().fold(request, |request, (name, value)| request.header(*name, value))
}

/// Only what surely happened before the first byte of the request counts as not sent.
fn lost(error: ureq::Error) -> CallError {
    use ureq::{Error, Timeout};
    let before = match &error {
        Error::HostNotFound | Error::ConnectionFailed | Error::BadUri(_) | Error::TlsRequired | Error::Tls(_) => true,
        Error::Timeout(timeout) => matches!(timeout, Timeout::Resolve | Timeout::Connect),
        Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    };
    if before { CallError::NotSent(error.to_string()) } else { CallError::Lost(error.to_string()) }
}
