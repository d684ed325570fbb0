//! Log lines on standard error: text for a person at a terminal, JSON for a collector.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{Config, LogFormat};
use crate::failure::Failure;

/// Sends log lines to standard error, in the configured form. Called once.
///
/// # Errors
/// For directives that cannot be read.
pub fn to_stderr(config: &Config) -> Result<(), Failure> {
    let text = match config.log_format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    start(config, text, std::io::stderr().is_terminal(), BoxMakeWriter::new(std::io::stderr))
}

/// Sends log lines to a file, as text: the demo keeps the terminal for itself. Called once.
///
/// # Errors
/// When the file cannot be made.
pub fn to_file(config: &Config, path: &Path) -> Result<(), Failure> {
    let file = File::create(path).map_err(|error| Failure::work(&format!("creating {}", path.display()), error))?;
    start(config, config.log_format != LogFormat::Json, false, BoxMakeWriter::new(Mutex::new(file)))
}

fn start(config: &Config, text: bool, colours: bool, writer: BoxMakeWriter) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.log_filter)
        .map_err(|error| Failure::usage(format!("configuration: log_filter: {error}")))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    if text {
        lines.with_ansi(colours).with_target(false).init();
    } else {
        lines.json().flatten_event(true).init();
    }
    Ok(())
}
