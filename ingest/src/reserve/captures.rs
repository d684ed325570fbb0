//! Captured usage on its way through the log: the checkpoint that counts its event notes it (rule D2).

use domain::{HoldId, Instant, Result, UsageEventId};
use store::{StoreError, Tx};
use uuid::Uuid;

use crate::checkpoint::RejectionWrite;
use crate::usage::CountedEvent;

/// Notes which captures are counted, and in which window; one whose event could not be counted at all is settled with the
/// window that it was priced in. A replay changes nothing.
pub(crate) async fn note(tx: &mut Tx, events: &[CountedEvent], rejections: &[RejectionWrite]) -> Result<()> {
    let counted = events.iter().filter(|row| row.event.is_capture());
    let mut noted: Vec<(Option<HoldId>, Option<Instant>)> =
        counted.map(|row| (row.event.hold_id, Some(row.window_start))).collect();
    noted.extend(rejections.iter().filter_map(refused).map(|hold| (Some(hold), None)));
    if noted.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE usage_reservation SET counted_in = coalesce(noted.window_start, usage_reservation.window_start)
         FROM unnest($1::uuid[], $2::timestamptz[]) AS noted (hold_id, window_start)
         WHERE usage_reservation.hold_id = noted.hold_id AND counted_in IS NULL",
    )
    .bind(noted.iter().map(|(hold, _)| hold.map(|hold| hold.0)).collect::<Vec<_>>())
    .bind(noted.iter().map(|(_, window)| *window).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .context("noting counted captures")?;
    Ok(())
}

/// The hold of a refused event, if a capture wrote it.
fn refused(rejection: &RejectionWrite) -> Option<HoldId> {
    let hold = rejection.payload.get("hold_id")?.as_str()?;
    let hold = HoldId(Uuid::parse_str(hold).ok()?);
    (UsageEventId::of_capture(hold) == rejection.event_id).then_some(hold)
}
