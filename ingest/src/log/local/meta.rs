//! The directory of a log: its lock, its id, the names of its files.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::LogError;

/// A process that was just killed, or one that is starting another program, may hold the lock for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// What makes a directory a log. Never changed after it was written.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LogMeta {
    pub id: Uuid,
    pub partitions: u32,
}

/// Held while a process has the log open (rule A1).
pub(super) struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock; the kernel gives it back when the process ends, however it ends.
    pub fn take(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join("lock");
        let unusable =
            |error: &dyn std::fmt::Display| LogError::Unusable(format!("locking {}: {error}", path.display()));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| unusable(&e))?;
        let until = Instant::now() + LOCK_PATIENCE;
        let mut locked = file.try_lock();
        while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LogError::Unusable(format!(
                "the event log in {} is open in another process: only one may use it; stop the other one, or use Kafka to \
                 run more than one",
                dir.display()
            ))),
            Err(TryLockError::Error(error)) => Err(unusable(&error)),
        }
    }
}

impl LogMeta {
    /// Reads what makes the directory a log; `None` when it is none yet.
    pub fn read(dir: &Path) -> Result<Option<Self>, LogError> {
        let path = dir.join("log.json");
        let unusable =
            |error: &dyn std::fmt::Display| LogError::Unusable(format!("reading {}: {error}", path.display()));
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| unusable(&e)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(&error)),
        }
    }

    /// Makes the directory a log with a new id, unless somebody did so at the same time.
    pub fn create(dir: &Path, partitions: u32) -> Result<Self, LogError> {
        let failed = |error: std::io::Error| LogError::Unusable(format!("making the log {}: {error}", dir.display()));
        std::fs::create_dir_all(dir).map_err(failed)?;
        let _lock = DirLock::take(dir)?;
        if let Some(meta) = Self::read(dir)? {
            return Ok(meta);
        }
        let meta = Self { id: Uuid::new_v4(), partitions };
        let text = serde_json::to_vec(&meta).map_err(|error| failed(error.into()))?;
        let new = dir.join("log.json.new");
        let written = File::create(&new).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
        written
            .and_then(|()| std::fs::rename(&new, dir.join("log.json")))
            .and_then(|()| sync_dir(dir))
            .map_err(failed)?;
        Ok(meta)
    }
}

/// Makes new names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Name of a segment.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.seg"))
}

/// Numbers of the segments of a directory, in order.
pub(super) fn segment_numbers(dir: &Path) -> std::io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|n| n.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}
