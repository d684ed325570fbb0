//! The API as a client sees it: requests with retries, pages walked to the end, a sample catalog, usage in batches.
//!
//! The demo and the load generator act through this crate only, so what they prove holds for every client. It knows no
//! room of the engine on purpose: their checks must not share code with what they check.

pub mod api;
pub mod error;
pub mod plain_sum;
pub mod sample;
pub mod usage;
pub mod views;

pub use api::Api;
pub use error::{ClientError, Result};
