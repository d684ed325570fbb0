//! Time: due work in order, by PostgreSQL's clock or by test clocks (rules E, DESIGN section 6).
//!
//! Due work is claimed by customer agenda: of each customer only the first row by (due_at, kind, id) can be claimed, so
//! that a customer's rows run in order whatever the number of schedulers; a row that fails for the third time holds back
//! its own subject only. A test clock works off one instant after the other. A claim is a lease: a row that is claimed gets
//! its `retry_at` moved ahead in a short transaction and is deleted in the transaction of its effect. A scheduler that dies
//! leaves rows whose lease runs out.
//!
//! Rejected: holding the claimed rows locked while they are handled. A period's end waits for the event log, and no
//! transaction may live that long (P13).

mod claim;
pub mod exchange_rates;
pub mod housekeeping;
pub mod payments;
mod run;
pub mod statistics;
pub mod test_clock;

pub use run::{Report, Scheduler, SchedulerOptions};
pub use test_clock::{
    AdvanceTestClockRequest, CreateTestClockRequest, TestClock, TestClockListResponse, TestClockStatus,
};
