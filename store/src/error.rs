//! From a database failure to the error that a caller sees.

use domain::Error;

/// Turns a failed statement into [`Error`]: connection trouble and lock time-outs are safe to repeat, the rest is ours.
pub trait StoreError<T> {
    /// Names the operation that failed, e.g. `"reading customer"`.
    ///
    /// # Errors
    /// `Unavailable` for a lost connection, an exhausted pool, a deadlock or a time-out; else `Internal`.
    fn context(self, operation: &str) -> Result<T, Error>;
}

impl<T> StoreError<T> for Result<T, sqlx::Error> {
    fn context(self, operation: &str) -> Result<T, Error> {
        self.map_err(|error| translate(error, operation))
    }
}

fn translate(error: sqlx::Error, operation: &str) -> Error {
    if is_transient(&error) {
        tracing::warn!(operation, error = %error, "the database did not answer");
        return Error::Unavailable { dependency: "database", detail: operation.to_owned(), retry_after_secs: 1 };
    }
    Error::internal(operation.to_owned(), error)
}

/// Whether the same statement may succeed later: lost connections, deadlocks, serialization, shutdown, lock and
/// statement time-outs.
#[must_use]
pub fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(db) => db.code().is_some_and(|code| {
            matches!(code.as_ref(), "40001" | "40P01" | "55P03" | "57014" | "57P01" | "57P02" | "57P03" | "53300")
                || code.starts_with("08")
        }),
        _ => false,
    }
}

/// Translates a violated constraint by its name, right at the statement; every other failure goes through
/// [`StoreError::context`].
///
/// # Errors
/// What `translate` makes of the constraint, or as [`StoreError::context`].
pub fn on_constraint<T>(
    result: Result<T, sqlx::Error>,
    operation: &str,
    translate_constraint: impl FnOnce(&str) -> Option<Error>,
) -> Result<T, Error> {
    let translated = match &result {
        Err(sqlx::Error::Database(db)) => db.constraint().and_then(translate_constraint),
        _ => None,
    };
    translated.map_or_else(|| result.context(operation), Err)
}
