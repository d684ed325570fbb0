//! What `postmaster.pid` says about a running PostgreSQL.

use std::fs;
use std::path::{Path, PathBuf};

use crate::EngineError;
use crate::process;

/// Lines of the file, counted from 0 (PostgreSQL's `miscadmin.h`, `LOCK_FILE_LINE_*`).
const LINE_PID: usize = 0;
const LINE_PORT: usize = 3;
const LINE_STATUS: usize = 7;

/// The postmaster of a data directory.
#[derive(Debug)]
pub(super) struct Postmaster {
    file: PathBuf,
    pub(super) port: u16,
    pub(super) status: Status,
}

/// What a postmaster is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Accepts connections.
    Ready,
    /// Is starting or stopping, or its file is half written.
    Changing,
    /// Has ended without removing its file.
    Gone,
}

impl Postmaster {
    /// `None` when no postmaster has written its file.
    pub(super) fn read(cluster: &Path) -> Option<Self> {
        let file = cluster.join("postmaster.pid");
        let text = fs::read_to_string(&file).ok()?;
        let (pid, port, status) = parse(&text);
        let status = match pid {
            // A file without a number is being written this moment.
            None => Status::Changing,
            Some(pid) if !runs_in(pid, cluster) => Status::Gone,
            Some(_) => status,
        };
        Some(Self { file, port, status })
    }

    /// Removes the file of a postmaster that has ended. PostgreSQL would do so itself, unless its number has been
    /// given to another process since.
    pub(super) fn forget(&self) -> Result<(), EngineError> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(EngineError::io("removing", &self.file)(error))
            }
            _ => Ok(()),
        }
    }
}

fn parse(text: &str) -> (Option<i32>, u16, Status) {
    let line = |number: usize| text.lines().nth(number).unwrap_or_default().trim();
    let pid = line(LINE_PID).parse().ok();
    match line(LINE_PORT).parse() {
        Ok(port) if line(LINE_STATUS) == "ready" => (pid, port, Status::Ready),
        port => (pid, port.unwrap_or_default(), Status::Changing),
    }
}

/// Whether the process runs and works in this directory. A process that may not be asked counts as ours: starting a
/// second postmaster on one directory is the worse mistake, and PostgreSQL refuses it.
fn runs_in(pid: i32, cluster: &Path) -> bool {
    process::is_alive(pid) && fs::read_link(format!("/proc/{pid}/cwd")).map_or(true, |cwd| cwd == cluster)
}

#[cfg(test)]
mod tests {
    use super::{Status, parse};

    #[test]
    fn reads_each_stage_of_the_file() {
        let full = "4711\n/data/cluster\n1700000000\n5433\n\n127.0.0.1\n  5433001  98304\nready   \n";
        assert_eq!(parse(full), (Some(4711), 5433, Status::Ready));
        assert_eq!(parse(&full.replace("ready   ", "stopping")), (Some(4711), 5433, Status::Changing));
        assert_eq!(parse("4711\n/data/cluster\n"), (Some(4711), 0, Status::Changing));
        assert_eq!(parse(""), (None, 0, Status::Changing));
    }
}
