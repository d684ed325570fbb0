//! What ends a run, as the person at the terminal reads it.

/// A run that cannot go on.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// With this text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<client::server::ServerError> for Failure {
    fn from(error: client::server::ServerError) -> Self {
        Self(error.to_string())
    }
}

/// Says what was being done: `.map_err(failed("reading …"))`.
pub fn failed<E: std::fmt::Display>(doing: impl Into<String>) -> impl FnOnce(E) -> Failure {
    let doing = doing.into();
    move |error| Failure(format!("{doing}: {error}"))
}
