//! Operations that happen once: by the key in their body (conventions.md, Idempotency) and by the id of their transfer
//! (rule D5).

use domain::{Result, Scope, TransferId};
use store::{StoreError, Tx};

use super::model::WalletTransaction;

/// What an operation answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<T> {
    /// The result, of this call or of the first.
    pub value: T,
    /// Whether an earlier call did it: 200 instead of 201.
    pub replayed: bool,
}

impl<T> Outcome<T> {
    /// Of this call.
    pub fn first(value: T) -> Self {
        Self { value, replayed: false }
    }

    /// Of an earlier call.
    pub fn replayed(value: T) -> Self {
        Self { value, replayed: true }
    }
}

/// The movements of a wallet that a booked transfer made, in order.
pub(super) async fn movements_of(
    tx: &mut Tx,
    scope: &Scope,
    wallet: domain::WalletId,
    transfer: TransferId,
) -> Result<Vec<WalletTransaction>> {
    sqlx::query_as(
        "SELECT * FROM wallet_transaction WHERE workspace_id = $1 AND wallet_id = $2 AND transfer_id = $3
         ORDER BY created_at, id",
    )
    .bind(scope.workspace_id)
    .bind(wallet)
    .bind(transfer)
    .fetch_all(tx.conn())
    .await
    .context("reading what an earlier attempt booked")
}
