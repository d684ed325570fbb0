//! Starts, adopts and stops the engines that Kontorion stands on.
//!
//! * [`postgres`]: the embedded PostgreSQL of a server that was given no database (design page, "Running it").
//! * [`kafka`] and [`clickhouse`]: real engines for tests and load runs on one machine.
//! * [`testing`]: what every crate's tests ask for: a fresh database, a broker, a ClickHouse.
//!
//! Every engine runs in its own session, so it outlives a killed parent, and is found again through what its
//! directory remembers. Starting is guarded by a file lock: any number of processes may ask at the same time, and
//! one of them starts.

pub mod clickhouse;
mod daemon;
pub mod error;
mod files;
pub mod kafka;
pub mod postgres;
mod process;
pub mod testing;

pub use clickhouse::ClickHouse;
pub use error::EngineError;
pub use kafka::Kafka;
pub use postgres::{EmbeddedPostgres, PostgresOptions};
