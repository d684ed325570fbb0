//! From usage events to counted windows: the event log, deduplication, the actors that count, and the usage store.
//!
//! The walk (DESIGN section 3): [`door`] validates and appends to the [`log`]; one partition actor per assigned partition
//! decodes, judges, deduplicates ([`dedup`]), hands each subscription its events, stores the counted rows ([`usage`]) and
//! writes a fenced checkpoint. The rules that keep it exact are A to C of the project's exactness rules; each is named
//! where it is kept.

pub mod allowances;
pub mod caps;
pub mod checkpoint;
pub mod control;
pub mod dedup;
pub mod door;
pub mod late;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod outbox;
pub mod partition;
pub mod preview;
pub mod quote;
pub mod record;
mod recount;
pub mod rejection;
pub mod reserve;
pub mod simulate;
pub mod subscription;
pub mod supervisor;
pub mod trial;
pub mod twins;
pub mod usage;
pub mod view;
pub mod void;
