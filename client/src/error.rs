//! Why a request did not succeed, after all its retries.

use serde::Deserialize;

/// Result of a request.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// Why a request failed for good.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answered, or the connection broke, until patience was over.
    #[error("{request}: no answer: {source}")]
    NoAnswer {
        /// Method and path.
        request: String,
        /// The last failure.
        #[source]
        source: reqwest::Error,
    },
    /// The server answered with a problem document.
    #[error("{request}: {problem}")]
    Refused {
        /// Method and path.
        request: String,
        /// What the server said.
        problem: Box<Problem>,
    },
    /// The answer is not what the reference promises.
    #[error("{request}: the answer cannot be read: {detail}")]
    Unreadable {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// The members of a problem document (RFC 9457) that a client acts on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: String,
    /// For people.
    pub detail: String,
    /// Every bad field.
    pub fields: Vec<ProblemField>,
    /// Finds the request in the server's log.
    pub request_id: String,
}

/// One bad field of a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ProblemField {
    /// JSON path.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl Problem {
    /// Whether the same request may succeed a little later.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self.status, 429 | 503)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status, self.code, self.detail)?;
        for field in &self.fields {
            write!(f, "; {}: {}", field.field, field.message)?;
        }
        if !self.request_id.is_empty() {
            write!(f, " (request {})", self.request_id)?;
        }
        Ok(())
    }
}
