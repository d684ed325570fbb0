//! Closing of accounting periods: what is booked before an instant stands, and nothing can be booked there any more.
//!
//! The database itself refuses (`refuse_closed_period` in the migrations), so that no path around [`crate::post`] can
//! book back in time. A correction of a closed period is a transfer in the open one.

use domain::{Error, Instant, Result, Scope};
use serde::Serialize;
use store::{StoreError, Tx};
use uuid::Uuid;

/// The code of a booking in a closed period.
pub const PERIOD_CLOSED: &str = "PERIOD_CLOSED";

/// The name under which the database refuses it.
pub(crate) const CONSTRAINT: &str = "ledger_period_closed";

/// What is being booked now must still find its period open: a transaction lives for 30 s at most (P13).
const SETTLING: chrono::TimeDelta = chrono::TimeDelta::seconds(60);

/// One closing of the books of a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Closing {
    /// Its id.
    pub id: Uuid,
    /// End of the closed period, exclusive.
    pub closed_before: Instant,
    /// Why, or by whom.
    pub note: Option<String>,
    /// When it was closed.
    pub closed_at: Instant,
    /// When it was opened again; it has no effect since then.
    pub reopened_at: Option<Instant>,
    /// Why.
    pub reopened_note: Option<String>,
}

/// Closes everything before an instant. It waits for what is being booked.
///
/// # Errors
/// `Validation` when the instant is not at least a minute ago, `Conflict` `ALREADY_CLOSED` when the books are closed up to it.
pub async fn close(scope: &Scope, tx: &mut Tx, closed_before: Instant, note: Option<&str>) -> Result<Closing> {
    let latest = scope.now() - SETTLING;
    if closed_before > latest {
        let latest = latest.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let message = format!("must be at least a minute ago, {latest} or earlier");
        return Err(Error::field("closed_before", domain::error::FieldErrorCode::OutOfRange, message));
    }
    lock(scope, tx).await?;
    if let Some(last) = last_effective(scope, tx).await?.filter(|last| last.closed_before >= closed_before) {
        let detail = format!("the books are closed for everything before {}", last.closed_before.to_rfc3339());
        return Err(Error::conflict("ALREADY_CLOSED", detail).with("closed_before", last.closed_before));
    }
    sqlx::query_as(
        "INSERT INTO ledger_closing (id, workspace_id, closed_before, note, closed_at) VALUES ($1, $2, $3, $4, $5)
         RETURNING *",
    )
    .bind(Uuid::now_v7())
    .bind(scope.workspace_id)
    .bind(closed_before)
    .bind(note)
    .bind(scope.now())
    .fetch_one(tx.conn())
    .await
    .context("closing the books")
}

/// Opens the period of the last closing again; those before it stay closed.
///
/// # Errors
/// `Conflict` `NOT_CLOSED` when nothing is closed.
pub async fn reopen(scope: &Scope, tx: &mut Tx, note: Option<&str>) -> Result<Closing> {
    lock(scope, tx).await?;
    let Some(last) = last_effective(scope, tx).await? else {
        return Err(Error::conflict("NOT_CLOSED", "no period of this workspace is closed"));
    };
    sqlx::query_as("UPDATE ledger_closing SET reopened_at = $2, reopened_note = $3 WHERE id = $1 RETURNING *")
        .bind(last.id)
        .bind(scope.now())
        .bind(note)
        .fetch_one(tx.conn())
        .await
        .context("opening the books again")
}

/// All closings of a workspace, newest first, those that were opened again too.
///
/// # Errors
/// As every statement.
pub async fn closings(scope: &Scope, tx: &mut Tx) -> Result<Vec<Closing>> {
    sqlx::query_as("SELECT * FROM ledger_closing WHERE workspace_id = $1 ORDER BY closed_at DESC, id DESC")
        .bind(scope.workspace_id)
        .fetch_all(tx.conn())
        .await
        .context("reading closings")
}

async fn last_effective(scope: &Scope, tx: &mut Tx) -> Result<Option<Closing>> {
    sqlx::query_as(
        "SELECT * FROM ledger_closing WHERE workspace_id = $1 AND reopened_at IS NULL ORDER BY closed_before DESC LIMIT 1",
    )
    .bind(scope.workspace_id)
    .fetch_optional(tx.conn())
    .await
    .context("reading the last closing")
}

/// Against bookings, which share this lock, and other closings.
async fn lock(scope: &Scope, tx: &mut Tx) -> Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1::uuid::text, 28))")
        .bind(scope.workspace_id)
        .execute(tx.conn())
        .await
        .context("waiting for what is being booked")?;
    Ok(())
}
