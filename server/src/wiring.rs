//! Which rooms run in this process and how they are tied together. Each room that is started is added to [`Running`]
//! with the way to stop it; the order of starting is the order of dependence (what is fed before what feeds it).

use axum::Router;
use store::Store;

use crate::config::Config;
use crate::failure::Failure;
use crate::running::Running;

/// Starts the rooms of the configured roles and returns what HTTP serves.
///
/// # Errors
/// When a room does not start.
pub async fn start_rooms(_config: &Config, _store: &Store, _running: &mut Running) -> Result<Router, Failure> {
    Ok(Router::new())
}

/// Prints the OpenAPI document.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn print_openapi() -> Result<(), Failure> {
    Ok(())
}
