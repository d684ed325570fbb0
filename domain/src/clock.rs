//! Time is a parameter: the only place below `server` that may ask the machine for the time.

use chrono::{DurationRound, TimeDelta, Utc};

use crate::Instant;

/// What time it is for an operation: the machine's clock, or the fixed instant of a test clock or a due work item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// A fixed instant.
    At(Instant),
}

impl Clock {
    /// The present instant of this clock, at microsecond precision (what PostgreSQL stores).
    #[must_use]
    pub fn now(&self) -> Instant {
        match self {
            #[allow(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
            Self::System => micros(Utc::now()),
            Self::At(instant) => *instant,
        }
    }
}

/// Cuts an instant to microseconds, the precision of the wire and of PostgreSQL.
#[must_use]
pub fn micros(instant: Instant) -> Instant {
    instant.duration_trunc(TimeDelta::microseconds(1)).unwrap_or(instant)
}
