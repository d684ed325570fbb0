//! The API as a client sees it: requests with retries, pages walked to the end, a sample catalog, usage in batches; and a
//! server of its own to send them to.
//!
//! The demo, the load generator and the tests of the binary act through this crate, so what they prove holds for every client. It knows no
//! room of the engine on purpose: their checks must not share code with what they check.

pub mod api;
pub mod error;
pub mod plain_sum;
pub mod sample;
pub mod server;
pub mod usage;
pub mod views;

pub use api::Api;
pub use error::{ClientError, Result};
pub use server::OwnServer;
