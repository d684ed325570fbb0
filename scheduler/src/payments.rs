//! The sweep of payments, in a loop of its own: a gateway that answers slowly must not hold up due work.

use std::time::Duration;

use domain::Clock;
use payments::Payments;
use payments::sweep::Swept;
use tokio::sync::watch;

/// Pause between two sweeps.
const PAUSE: Duration = Duration::from_secs(1);

/// Sweeps until `shutdown` turns true; the sweep at hand is finished first. Any number of processes may do so.
pub async fn run(payments: Payments, mut shutdown: watch::Receiver<bool>) {
    while !*shutdown.borrow() {
        match payments.sweep(Clock::System.now()).await {
            Ok(swept) if swept == Swept::default() => {}
            Ok(swept) => {
                let payments::sweep::Swept { asked, topups, charges, failed } = swept;
                tracing::info!(asked, topups, charges, failed, "swept payments");
            }
            Err(error) => tracing::warn!(%error, "the sweep of payments could not look for work; it will be repeated"),
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            changed = shutdown.changed() => if changed.is_err() { return },
        }
    }
}
