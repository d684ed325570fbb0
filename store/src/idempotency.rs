//! Idempotency keys, written and completed in the transaction of their effect (rule D5): a crash releases them, a
//! concurrent repeat waits for the first call and then reads its answer.

use std::collections::{BTreeMap, HashMap, HashSet};

use domain::{Error, Instant, Result, Scope, WorkspaceId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Digest;
use uuid::Uuid;

use crate::{Patience, StoreError, Tx};

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
            return Err(used_for_another());
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
    /// Of an operation that knows no key.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

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
        key.claim(tx, scope.now()).await?.map(|answer| kept(&answer.body)).transpose()
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

/// The keys of operations that share a transaction: a lock on each until it ends, and one row for each answer, written at the end.
/// Only who holds a key's lock writes its row.
#[derive(Debug)]
pub struct BodyKeys<'a> {
    keys: &'a [BodyKey],
    scope: Scope,
    /// For each key whether this transaction does its operation.
    own: Vec<bool>,
}

/// What is known of the key of one operation of a group.
#[derive(Debug)]
pub enum Claim {
    /// Nothing: this transaction does the operation.
    New,
    /// An earlier call has done it, and answered this body.
    Answered(Vec<u8>),
    /// An earlier operation of the group, or another transaction, has the same key: that has to be done first.
    Busy,
}

/// Locks of keys that are free, with the places of those that were.
const TRY: &str = "
SELECT k.place - 1 FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS k (operation, key, place)
WHERE pg_try_advisory_xact_lock(hashtextextended($1::uuid::text || ' ' || k.operation || ' ' || k.key, 0))";

/// Locks of keys in the order of the locks, so that nobody waits in a circle.
const WAIT: &str = "
SELECT locked.place - 1 FROM (
    SELECT ordered.place, pg_advisory_xact_lock(ordered.lock) FROM (
        SELECT k.place, hashtextextended($1::uuid::text || ' ' || k.operation || ' ' || k.key, 0) AS lock
        FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS k (operation, key, place) ORDER BY lock OFFSET 0) AS ordered
    OFFSET 0) AS locked";

impl<'a> BodyKeys<'a> {
    /// Claims keys of one workspace, those that are free or waiting for the others; the claims stand in the order of the keys.
    ///
    /// # Errors
    /// As every statement; for a single key `Conflict` with `IDEMPOTENCY_CONFLICT` when it was used for another request.
    pub async fn claim(
        scope: &Scope,
        tx: &mut Tx,
        keys: &'a [BodyKey],
        patience: Patience,
    ) -> Result<(Self, Vec<Result<Claim>>)> {
        let mut all = Self { keys, scope: *scope, own: vec![false; keys.len()] };
        let mut first = BTreeMap::new();
        for (place, key) in keys.iter().enumerate() {
            if let Some(key) = &key.0 {
                first.entry((key.operation.as_str(), key.key.as_str())).or_insert(place);
            }
        }
        let places: Vec<usize> = first.into_values().collect();
        let locked = all.lock(tx, &places, patience).await?;
        // A statement that begins after the lock is held sees what its last holder has written.
        let mut stored = all.read(tx, &locked).await?;
        let locked: HashSet<usize> = locked.into_iter().collect();
        let claims = keys.iter().enumerate().map(|(place, key)| {
            let Some(key) = &key.0 else { return Ok(Claim::New) };
            if !locked.contains(&place) {
                return Ok(Claim::Busy);
            }
            match stored.remove(&(key.operation.clone(), key.key.clone())) {
                None => {
                    all.own[place] = true;
                    Ok(Claim::New)
                }
                Some((hash, body)) if hash == key.request_hash => Ok(Claim::Answered(body)),
                Some(_) => Err(used_for_another()),
            }
        });
        let claims = claims.collect();
        Ok((all, claims))
    }

    /// The places whose keys are locked now.
    async fn lock(&self, tx: &mut Tx, places: &[usize], patience: Patience) -> Result<Vec<usize>> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let (operations, names, _) = self.columns(places);
        let sql = match patience {
            Patience::Skip => TRY,
            Patience::Wait => WAIT,
        };
        let locked: Vec<i64> = sqlx::query_scalar(sql)
            .bind(self.scope.workspace_id)
            .bind(operations)
            .bind(names)
            .fetch_all(tx.conn())
            .await
            .context("locking idempotency keys")?;
        let at = |index: i64| usize::try_from(index).ok().and_then(|index| places.get(index).copied());
        Ok(locked.into_iter().filter_map(at).collect())
    }

    fn columns(&self, places: &[usize]) -> (Vec<&'a str>, Vec<&'a str>, Vec<&'a [u8]>) {
        let keys = places.iter().filter_map(|place| self.keys[*place].0.as_ref());
        let (mut operations, mut names, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            operations.push(key.operation.as_str());
            names.push(key.key.as_str());
            hashes.push(key.request_hash.as_slice());
        }
        (operations, names, hashes)
    }

    /// What is stored under keys: hash of the request and body of the answer.
    async fn read(&self, tx: &mut Tx, places: &[usize]) -> Result<HashMap<(String, String), (Vec<u8>, Vec<u8>)>> {
        if places.is_empty() {
            return Ok(HashMap::new());
        }
        let (operations, names, _) = self.columns(places);
        let rows: Vec<(String, String, Vec<u8>, Vec<u8>)> = sqlx::query_as(
            "SELECT operation, key, request_hash, body FROM unnest($2::text[], $3::text[]) AS k (operation, key)
             JOIN idempotency_key USING (operation, key) WHERE workspace_id = $1",
        )
        .bind(self.scope.workspace_id)
        .bind(operations)
        .bind(names)
        .fetch_all(tx.conn())
        .await
        .context("reading idempotency keys")?;
        Ok(rows.into_iter().map(|(operation, key, hash, body)| ((operation, key), (hash, body))).collect())
    }

    /// Stores what the operations answer, in their order; the key of one that answers nothing stays free.
    ///
    /// # Errors
    /// As every statement.
    pub async fn complete(self, tx: &mut Tx, answers: &[Option<Vec<u8>>]) -> Result<()> {
        let done: Vec<usize> =
            (0..self.keys.len()).filter(|place| self.own[*place] && answers[*place].is_some()).collect();
        if done.is_empty() {
            return Ok(());
        }
        let (operations, names, hashes) = self.columns(&done);
        sqlx::query(
            "INSERT INTO idempotency_key (workspace_id, operation, key, request_hash, status, body, created_at, lapses)
             SELECT $1, k.operation, k.key, k.hash, 200, k.body, $6, false
             FROM unnest($2::text[], $3::text[], $4::bytea[], $5::bytea[]) AS k (operation, key, hash, body)",
        )
        .bind(self.scope.workspace_id)
        .bind(operations)
        .bind(names)
        .bind(hashes)
        .bind(done.iter().filter_map(|place| answers[*place].as_deref()).collect::<Vec<_>>())
        .bind(self.scope.now())
        .execute(tx.conn())
        .await
        .context("storing the answers of idempotency keys")?;
        Ok(())
    }
}

fn used_for_another() -> Error {
    Error::conflict("IDEMPOTENCY_CONFLICT", "this idempotency key was used for another request")
}

/// Reads the result that a key of a body keeps.
///
/// # Errors
/// `Internal` for a result of another form.
pub fn kept<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|error| Error::internal("reading the first result of an idempotency key", error))
}
