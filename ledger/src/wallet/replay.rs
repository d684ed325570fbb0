//! Operations that happen once: by the key in their body (conventions.md, Idempotency) and by the id of their transfer
//! (rule D5).

use domain::{Error, Result, Scope, TransferId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{IdempotencyKey, StoreError, StoredAnswer, Tx};
use uuid::Uuid;

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
    pub(super) fn first(value: T) -> Self {
        Self { value, replayed: false }
    }

    pub(super) fn replayed(value: T) -> Self {
        Self { value, replayed: true }
    }
}

/// The key of a body, if it has one. Unique per workspace, operation, subject and key; it does not lapse.
pub(super) struct BodyKey(Option<IdempotencyKey>);

impl BodyKey {
    pub fn new(
        scope: &Scope,
        operation: &str,
        subject: impl Into<Uuid>,
        key: Option<&str>,
        request: &impl Serialize,
    ) -> Result<Self> {
        let Some(key) = key else { return Ok(Self(None)) };
        let request = serde_json::to_vec(request)
            .map_err(|error| Error::internal("writing a request for its idempotency key", error))?;
        let operation = format!("{operation}/{}", subject.into());
        Ok(Self(Some(IdempotencyKey::new(scope.workspace_id, operation, key, &request))))
    }

    /// Claims the key; `Some` is the result of the first call.
    pub async fn claim<T: DeserializeOwned>(&self, scope: &Scope, tx: &mut Tx) -> Result<Option<T>> {
        let Some(key) = &self.0 else { return Ok(None) };
        let Some(answer) = key.claim(tx, scope.now()).await? else { return Ok(None) };
        let value = serde_json::from_slice(&answer.body)
            .map_err(|error| Error::internal("reading the first result of an idempotency key", error))?;
        Ok(Some(value))
    }

    /// Stores the result.
    pub async fn complete(&self, tx: &mut Tx, value: &impl Serialize) -> Result<()> {
        let Some(key) = &self.0 else { return Ok(()) };
        let body = serde_json::to_vec(value)
            .map_err(|error| Error::internal("writing the result of an idempotency key", error))?;
        key.complete(tx, &StoredAnswer { status: 200, body }).await
    }
}

/// The movements of a wallet that a transfer booked, in order; none when it is not booked. Asked under the wallet's lock,
/// so that an earlier attempt has either committed or gone.
pub(super) async fn movements_of(
    tx: &mut Tx,
    scope: &Scope,
    wallet: domain::WalletId,
    transfer: TransferId,
) -> Result<Vec<WalletTransaction>> {
    // The transfer first: it is found by its key, while the movements have to be searched for among the wallet's.
    let booked: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM ledger_transfer WHERE id = $1 AND workspace_id = $2)")
            .bind(transfer)
            .bind(scope.workspace_id)
            .fetch_one(tx.conn())
            .await
            .context("looking for an earlier attempt")?;
    if !booked {
        return Ok(Vec::new());
    }
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
