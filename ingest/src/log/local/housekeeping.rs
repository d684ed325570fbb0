//! The thread beside the writer: makes the next segment ahead of time and drops old ones.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use domain::clock::Clock;

use super::shared::{Shared, Spare};
use super::writer::EndsProcess;

/// How often old segments are looked for, at most; a shorter retention is looked at more often.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// When a segment that could not be made is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What is written and synced of a new segment at a time, and the rest after it: a whole segment at once stands before the
/// log's own syncs in the queue of the disk. Together 50 MB/s, unless the writer waits.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
const REST: Duration = Duration::from_millis(20);

/// Runs until the log is closed.
pub(super) fn run(shared: &Shared) {
    let pause = shared.options.retention.clamp(Duration::from_millis(50), SWEEP_EVERY);
    while let Some(wanted) = wait(shared, pause) {
        if wanted {
            make_spare(shared);
        }
        drop_old(shared);
    }
}

/// Waits until there is something to do; whether a spare segment is wanted. `None` when the log is closed.
fn wait(shared: &Shared, pause: Duration) -> Option<bool> {
    let mut spare = shared.spare.lock();
    // Under the lock that the closing thread takes between setting the flag and waking us.
    let is_stopped = || shared.stopped.load(Ordering::Acquire);
    match *spare {
        _ if is_stopped() => return None,
        Spare::Wanted | Spare::Overdue => return Some(true),
        Spare::Failed(_) => shared.spare_changed.wait_for(&mut spare, RETRY_AFTER),
        Spare::Ready(_) | Spare::Taken => shared.spare_changed.wait_for(&mut spare, pause),
    };
    (!is_stopped()).then(|| matches!(*spare, Spare::Wanted | Spare::Overdue | Spare::Failed(_)))
}

fn make_spare(shared: &Shared) {
    let made = match zeroed(&shared.dir.join("spare"), shared.options.segment_bytes as usize, shared) {
        Ok(file) => Spare::Ready(file),
        Err(error) => {
            tracing::error!(error = %error, log.path = %shared.dir.display(), "cannot make room for the event log");
            Spare::Failed(error.to_string())
        }
    };
    *shared.spare.lock() = made;
    shared.spare_changed.notify_all();
}

/// A file of zeros that were really written: later writes change data only, so that their sync needs no metadata (P2).
fn zeroed(path: &Path, length: usize, shared: &Shared) -> std::io::Result<File> {
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let mut left = length;
    while left > 0 {
        if shared.stopped.load(Ordering::Acquire) {
            return Err(std::io::Error::new(std::io::ErrorKind::Interrupted, "the log is being closed"));
        }
        let part = left.min(ZEROS.len());
        file.write_all(&ZEROS[..part])?;
        file.sync_data()?;
        left -= part;
        rest(shared);
    }
    file.sync_all()?;
    Ok(file)
}

/// Leaves the disk to others, unless the writer has no segment to go on in.
fn rest(shared: &Shared) {
    let mut spare = shared.spare.lock();
    if matches!(*spare, Spare::Wanted) && !shared.stopped.load(Ordering::Acquire) {
        shared.spare_changed.wait_for(&mut spare, REST);
    }
}

/// Drops segments, oldest first, that every partition has passed and that were full longer than the retention (A6).
fn drop_old(shared: &Shared) {
    let now_ms = Clock::System.now().timestamp_millis();
    loop {
        let segments = shared.segments.read();
        let (Some(oldest), Some(next)) = (segments.front().cloned(), segments.get(1).cloned()) else { return };
        drop(segments);
        let passed = shared.partitions.iter().zip(&next.header.bases);
        let is_old = u128::try_from(now_ms - next.header.created_ms)
            .is_ok_and(|age| age >= shared.options.retention.as_millis());
        if !is_old || passed.into_iter().any(|(partition, base)| partition.passed.load(Ordering::Acquire) < *base) {
            return;
        }
        // From here on readers are told that it is gone; the file goes after.
        shared.segments.write().pop_front();
        match std::fs::remove_file(&oldest.path) {
            Ok(()) => tracing::info!(segment.path = %oldest.path.display(), "dropped a segment of the event log"),
            Err(error) => {
                tracing::warn!(error = %error, segment.path = %oldest.path.display(), "cannot drop a segment")
            }
        }
    }
}

/// Starts the thread.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<std::thread::JoinHandle<()>> {
    let shared = shared.clone();
    std::thread::Builder::new().name("log-housekeeper".to_owned()).spawn(move || {
        let _ends = EndsProcess;
        run(&shared);
    })
}
