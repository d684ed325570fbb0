//! Why a command failed, as the person at the terminal reads it, and the exit status that a script reads.

use std::process::ExitCode;

/// Exit status of a command that was understood and failed, or found a difference.
const FAILED: u8 = 1;

/// Exit status of a command or configuration that cannot be meant.
const USAGE: u8 = 2;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    exit: u8,
    message: String,
}

impl Failure {
    /// The command line or the configuration is wrong; nothing was done.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: USAGE, message: message.into() }
    }

    /// Something failed while doing what `doing` says.
    #[must_use]
    pub fn work(doing: &str, error: impl std::error::Error) -> Self {
        let mut message = format!("{doing}: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            // Several of our errors show their cause in their own text already.
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        Self { exit: FAILED, message }
    }

    /// The command was done and its answer is no.
    #[must_use]
    pub fn found(message: impl Into<String>) -> Self {
        Self { exit: FAILED, message: message.into() }
    }

    /// For the shell.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
