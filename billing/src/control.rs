//! How billing closes usage windows: through control records in the event log (rule C2), so that "everything that was
//! acknowledged before" is a matter of the log's order and not of waiting. And how it has a closed window counted with what came
//! late.
//!
//! The trait is implemented by `ingest` and wired by the server. What a record did is seen in table `usage_window`
//! (see [`crate::windows::wait`]): the row exists after the record was read, also when the window had no event.

use async_trait::async_trait;
use catalog::compiled::StoredWindow;
use domain::{CustomerId, Instant, Position, Result, SubscriptionId, WorkspaceId};

/// One usage window of one subscription, with what leads its control records to its home partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowRef {
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// The subscription whose window it is.
    pub subscription_id: SubscriptionId,
    /// Its customer.
    pub customer_id: CustomerId,
    /// The partition on which every event of the subscription lies (rule A5).
    pub home_partition: i32,
    /// First instant of the window; with the subscription the key of its row.
    pub window_start: Instant,
    /// First instant after the window.
    pub window_end: Instant,
}

/// Publishes control records. Each call returns when the log has the records durably, not when they were read.
///
/// Publishing a record again is harmless: a window that is already ended, sealed or open stays as it is. The positions
/// that are answered, one per window, tell [`crate::windows::wait`] what must have been read.
#[async_trait]
pub trait WindowControl: Send + Sync {
    /// `PeriodEnd`: the windows' totals are checkpointed and the next windows open; status `ended`.
    ///
    /// # Errors
    /// `Unavailable` when the log does not take the records.
    async fn period_end(&self, windows: &[WindowRef]) -> Result<Vec<Position>>;

    /// `WindowSeal`: an event of these windows after it is late, before it never; status `sealed`.
    ///
    /// # Errors
    /// `Unavailable` when the log does not take the records.
    async fn seal(&self, windows: &[WindowRef]) -> Result<Vec<Position>>;

    /// `WindowReopen`: takes a seal back whose finalization failed; status `ended` again. One that comes after all when
    /// the window is billed does nothing.
    ///
    /// # Errors
    /// `Unavailable` when the log does not take the records.
    async fn reopen(&self, windows: &[WindowRef]) -> Result<()>;

    /// A window that is billed, as its row is stored, with the late usage that was counted in it since, up to a position (rule
    /// C4); nothing is written. The answer's position is `up_to`.
    ///
    /// # Errors
    /// As the usage store; `Internal` for an event that cannot be counted, although it was.
    async fn count_late(&self, window: StoredWindow, up_to: Position) -> Result<StoredWindow>;
}
