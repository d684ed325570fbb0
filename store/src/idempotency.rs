//! Idempotency keys, written and completed in the transaction of their effect (rule D5): a crash releases them, a
//! concurrent repeat waits for the first call and then reads its answer.

use domain::{Error, Instant, Result, Scope, WorkspaceId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Digest;
use uuid::Uuid;

use crate::{StoreError, Tx};

/// One key of one operation of one workspace.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    workspace_id: WorkspaceId,
    operation: String,
    key: String,
    request_hash: Vec<u8>,
    lapses: bool,
}

/// The answer that the first call got.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct StoredAnswer {
    /// HTTP status, or what the operation uses in its place.
    pub status: i16,
    /// Body, byte for byte.
    pub body: Vec<u8>,
}

impl IdempotencyKey {
    /// `operation` is the method and path (`POST /v1/customers`) or the name of an operation with a key in its body;
    /// `request` is what must be the same in a repeat. The key does not lapse.
    #[must_use]
    pub fn new(
        workspace_id: WorkspaceId,
        operation: impl Into<String>,
        key: impl Into<String>,
        request: &[u8],
    ) -> Self {
        let request_hash = sha2::Sha256::digest(request).to_vec();
        Self { workspace_id, operation: operation.into(), key: key.into(), request_hash, lapses: false }
    }

    /// The same key, to be forgotten after a day: those of the header `Idempotency-Key`.
    #[must_use]
    pub fn lapsing(self) -> Self {
        Self { lapses: true, ..self }
    }

    /// Takes the key's lock until the transaction ends, and forgets what was stored under it for longer than a day.
    /// False: another call holds the lock, which means that it is still running.
    ///
    /// # Errors
    /// As every statement.
    pub async fn enter(&self, tx: &mut Tx, now: Instant) -> Result<bool> {
        sqlx::query_scalar(
            "WITH forgotten AS (
                 DELETE FROM idempotency_key
                 WHERE workspace_id = $1 AND operation = $2 AND key = $3 AND created_at < $4::timestamptz - interval '24 hours'
             )
             SELECT pg_try_advisory_xact_lock(hashtextextended($1::text || ' ' || $2 || ' ' || $3, 0))",
        )
        .bind(self.workspace_id)
        .bind(&self.operation)
        .bind(&self.key)
        .bind(now)
        .fetch_one(tx.conn())
        .await
        .context("entering the idempotency key")
    }

    /// Takes the key's lock, waiting for whoever has it. PostgreSQL releases it a moment after the rest of a transaction
    /// that was rolled back: whoever answers for such a call waits for that moment too, or a prompt repeat would meet it.
    ///
    /// # Errors
    /// As every statement.
    pub async fn wait(&self, tx: &mut Tx) -> Result<()> {
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1::text || ' ' || $2 || ' ' || $3, 0))")
            .bind(self.workspace_id)
            .bind(&self.operation)
            .bind(&self.key)
            .execute(tx.conn())
            .await
            .context("waiting for the idempotency key")?;
        Ok(())
    }

    /// Claims the key in this transaction. `Some` is the answer of an earlier call: do nothing, return it.
    ///
    /// # Errors
    /// `Conflict` with `IDEMPOTENCY_CONFLICT` when the key was used for another request.
    pub async fn claim(&self, tx: &mut Tx, now: Instant) -> Result<Option<StoredAnswer>> {
        let claimed = sqlx::query(
            "INSERT INTO idempotency_key (workspace_id, operation, key, request_hash, status, body, created_at, lapses)
             VALUES ($1, $2, $3, $4, 0, '', $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(self.workspace_id)
        .bind(&self.operation)
        .bind(&self.key)
        .bind(&self.request_hash)
        .bind(now)
        .bind(self.lapses)
        .execute(tx.conn())
        .await
        .context("claiming the idempotency key")?;
        if claimed.rows_affected() == 1 {
            return Ok(None);
        }
        let (hash, status, body): (Vec<u8>, i16, Vec<u8>) = sqlx::query_as(
            "SELECT request_hash, status, body FROM idempotency_key WHERE workspace_id = $1 AND operation = $2 AND key = $3",
        )
        .bind(self.workspace_id)
        .bind(&self.operation)
        .bind(&self.key)
        .fetch_one(tx.conn())
        .await
        .context("reading the idempotency key")?;
        if hash != self.request_hash {
            return Err(Error::conflict("IDEMPOTENCY_CONFLICT", "this idempotency key was used for another request"));
        }
        Ok(Some(StoredAnswer { status, body }))
    }

    /// Stores the answer, in the transaction that claimed the key.
    ///
    /// # Errors
    /// As every statement.
    pub async fn complete(&self, tx: &mut Tx, answer: &StoredAnswer) -> Result<()> {
        sqlx::query(
            "UPDATE idempotency_key SET status = $4, body = $5 WHERE workspace_id = $1 AND operation = $2 AND key = $3",
        )
        .bind(self.workspace_id)
        .bind(&self.operation)
        .bind(&self.key)
        .bind(answer.status)
        .bind(&answer.body)
        .execute(tx.conn())
        .await
        .context("storing the answer of the idempotency key")?;
        Ok(())
    }
}

/// The key of a body, if it has one. Unique per workspace, operation, subject and key; it does not lapse.
#[derive(Clone, Debug)]
pub struct BodyKey(Option<IdempotencyKey>);

impl BodyKey {
    /// The key of one operation on one subject; `request` is what must be the same in a repeat.
    ///
    /// # Errors
    /// `Internal` for a request that cannot be written as JSON.
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
    ///
    /// # Errors
    /// `Conflict` with `IDEMPOTENCY_CONFLICT` when the key was used for another request.
    pub async fn claim<T: DeserializeOwned>(&self, scope: &Scope, tx: &mut Tx) -> Result<Option<T>> {
        let Some(key) = &self.0 else { return Ok(None) };
        let Some(answer) = key.claim(tx, scope.now()).await? else { return Ok(None) };
        let value = serde_json::from_slice(&answer.body)
            .map_err(|error| Error::internal("reading the first result of an idempotency key", error))?;
        Ok(Some(value))
    }

    /// Stores the result.
    ///
    /// # Errors
    /// As every statement.
    pub async fn complete(&self, tx: &mut Tx, value: &impl Serialize) -> Result<()> {
        let Some(key) = &self.0 else { return Ok(()) };
        let body = serde_json::to_vec(value)
            .map_err(|error| Error::internal("writing the result of an idempotency key", error))?;
        key.complete(tx, &StoredAnswer { status: 200, body }).await
    }
}
