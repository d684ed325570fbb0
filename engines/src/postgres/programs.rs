//! Finds the programs of the newest PostgreSQL on this machine.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::EngineError;
use crate::process;

/// The oldest major version that the schema and the settings work with.
const MAJOR_MIN: u32 = 15;

/// Where distributions put the programs of each version, as `ROOT/VERSION/bin` or `ROOTVERSION/bin`.
const VERSIONED: [(&str, &str); 2] = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")];

/// The programs of one PostgreSQL installation.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    bin: PathBuf,
    major: u32,
    version: String,
}

impl Programs {
    /// `KONTORION_PG_BIN` if set, else the newest of the distribution's directories and of `PATH`.
    pub(crate) async fn find() -> Result<Self, EngineError> {
        if let Some(bin) = std::env::var_os("KONTORION_PG_BIN") {
            let bin = PathBuf::from(bin);
            return Self::at(&bin).await.ok_or_else(|| missing(format!("KONTORION_PG_BIN is {}", bin.display())));
        }
        let mut best: Option<Self> = None;
        for bin in candidates() {
            // Asking every installation for its version costs milliseconds and needs no guess from its path.
            let Some(found) = Self::at(&bin).await else { continue };
            if best.as_ref().is_none_or(|best| found.major > best.major) {
                best = Some(found);
            }
        }
        best.ok_or_else(|| missing("looked in /usr/lib/postgresql, /usr/pgsql-* and PATH".to_owned()))
    }

    async fn at(bin: &Path) -> Option<Self> {
        if !["postgres", "initdb", "pg_ctl"].iter().all(|program| bin.join(program).is_file()) {
            return None;
        }
        let mut command = Command::new(bin.join("postgres"));
        command.arg("--version");
        let printed = process::run("postgres", command).await.ok()?;
        let version = printed.split_whitespace().nth(2)?.to_owned();
        let major = major_of(&version)?;
        (major >= MAJOR_MIN).then(|| Self { bin: bin.to_owned(), major, version })
    }

    pub(crate) fn path(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }

    pub(crate) fn major(&self) -> u32 {
        self.major
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }
}

/// Reads `15` out of `15.12`, `16beta1` or `18`.
fn major_of(version: &str) -> Option<u32> {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn candidates() -> Vec<PathBuf> {
    let mut bins = Vec::new();
    for (root, prefix) in VERSIONED {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let versions = entries.filter(|entry| {
            entry.file_name().to_str().and_then(|name| name.strip_prefix(prefix)).and_then(major_of).is_some()
        });
        bins.extend(versions.map(|entry| entry.path().join("bin")));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    bins.extend(std::env::split_paths(&path));
    bins
}

fn missing(detail: String) -> EngineError {
    EngineError::Missing { engine: "PostgreSQL 15 or newer", detail, remedy: "apt-get install postgresql" }
}

#[cfg(test)]
mod tests {
    use super::major_of;

    #[test]
    fn major_version_of_releases_and_betas() {
        let cases = [("15.12", Some(15)), ("16beta1", Some(16)), ("18", Some(18)), ("main", None), ("", None)];
        for (version, expected) in cases {
            assert_eq!(major_of(version), expected, "{version}");
        }
    }
}
