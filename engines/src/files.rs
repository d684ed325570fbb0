//! Small files and locks in an engine's directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use crate::EngineError;

/// How much of a log goes into an error message.
const TAIL_BYTES: u64 = 2_000;

/// Makes a directory and its parents. `mode` is set on the directory itself, whatever the umask.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), EngineError> {
    fs::create_dir_all(path).map_err(EngineError::io("creating", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(EngineError::io("setting the mode of", path))
}

/// Writes a file as a whole or not at all: a reader never sees half of it.
pub(crate) fn write_atomically(path: &Path, text: &str, mode: u32) -> Result<(), EngineError> {
    let part = path.with_extension("part");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().map_err(EngineError::io("writing", path))
}

/// A file's text without surrounding white space; `None` when it is absent or unreadable.
pub(crate) fn read_trimmed(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The last lines of a log, for error messages; empty when there is none.
pub(crate) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}

/// A lock that is held until it is dropped, or its process ends.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    fn open(path: &Path) -> Result<File, EngineError> {
        // The file is never written, so several users of the machine may lock the same one.
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(EngineError::io("opening the lock", path))
    }

    /// Waits until this process alone holds the lock.
    // Polls instead of blocking: another task of the same thread may be the holder.
    pub(crate) async fn exclusive(path: &Path) -> Result<Self, EngineError> {
        let file = Self::open(path)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(TryLockError::Error(source)) => return Err(EngineError::io("locking", path)(source)),
            }
        }
    }

    /// Takes a share of the lock. Exclusive holders keep it for moments only, so this may block.
    pub(crate) fn shared(path: &Path) -> Result<Self, EngineError> {
        let file = Self::open(path)?;
        file.lock_shared().map_err(EngineError::io("locking", path))?;
        Ok(Self(file))
    }

    /// Turns a share into the whole lock when nobody else has a share; `false` when somebody has.
    pub(crate) fn try_make_exclusive(&self) -> bool {
        self.0.try_lock().is_ok()
    }
}
