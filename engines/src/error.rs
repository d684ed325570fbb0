//! The one error type of this crate. Each variant tells a person at a terminal what to do next.

use std::path::{Path, PathBuf};

/// Why an engine could not be started, adopted or stopped.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The programs of the engine are not on this machine. `remedy` is the command that installs them.
    #[error("{engine} is not installed ({detail}); install it with: {remedy}")]
    Missing {
        /// Name of the engine as people say it.
        engine: &'static str,
        /// Where it was looked for.
        detail: String,
        /// A command that installs it.
        remedy: &'static str,
    },
    /// A file or directory could not be used.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done, as the beginning of a sentence.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// A program of the engine ended with an error.
    #[error("{program} failed: {output}")]
    Program {
        /// Name of the program.
        program: String,
        /// What it printed, shortened.
        output: String,
    },
    /// The engine was started but does not answer.
    #[error("{engine} did not answer within {seconds} s; the end of its log {}:\n{tail}", log.display())]
    NotReady {
        /// Name of the engine.
        engine: &'static str,
        /// How long it was waited for.
        seconds: u64,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The process runs as root, the engine refuses to, and its user cannot enter the directory.
    #[error(
        "user {user} cannot enter {}: PostgreSQL does not run as root, so choose a data directory that \
         others may enter (for example /var/lib/kontorion), or run as an ordinary user",
        path.display()
    )]
    Unreachable {
        /// The directory.
        path: PathBuf,
        /// The unprivileged user.
        user: String,
    },
    /// No unprivileged user exists or can be made.
    #[error("PostgreSQL does not run as root and no unprivileged user could be had: {0}")]
    NoUser(String),
    /// The data directory belongs to another major version of the engine.
    #[error(
        "{} was made by PostgreSQL {found}, but the newest programs found are {programs}; \
         set KONTORION_PG_BIN to the programs of version {found}, or upgrade the directory with pg_upgrade",
        path.display()
    )]
    Version {
        /// The data directory.
        path: PathBuf,
        /// The major version that made it.
        found: String,
        /// The major version of the programs.
        programs: u32,
    },
    /// The engine answers, but not as it should.
    #[error("{doing}")]
    Database {
        /// What was being done.
        doing: String,
        /// What the database answered.
        #[source]
        source: sqlx::Error,
    },
}

impl EngineError {
    /// Names what was being done to which file, for use in `map_err`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// Names what was asked of the database, for use in `map_err`.
    pub(crate) fn database(doing: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Database { doing, source }
    }

    /// The whole chain of causes in one line, for messages that end up on a terminal.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
