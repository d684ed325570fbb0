//! A write and its idempotency key: both in one transaction (rule D5).

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use domain::{Clock, Error, Result};
use serde::Serialize;
use store::{Desk, Groups, IdempotencyKey, StoredAnswer, Tx};

use crate::{Answer, Ctx, Refusal, answer};

/// An open write. Every way to answer stores the answer under the request's idempotency key and commits; dropped
/// without an answer, everything is rolled back.
///
/// ```ignore
/// let mut write = ctx.write("create_customer").await?;
/// let request = ctx.body(CreateCustomerRequest::read)?;
/// let customer = customer::create(&ctx.scope, write.tx(), request).await?;
/// write.created(Data(customer)).await
/// ```
#[derive(Debug)]
pub struct Write {
    tx: Tx,
    key: Option<IdempotencyKey>,
}

impl Write {
    pub(crate) async fn begin(ctx: &Ctx, name: &'static str) -> Result<Self, Refusal> {
        let Some(text) = header_key(ctx)? else {
            return Ok(Self { tx: ctx.app.store.begin(name).await?, key: None });
        };
        let operation = format!("{} {}", ctx.method(), ctx.path());
        let key = IdempotencyKey::new(ctx.scope.workspace_id, &operation, text, &fingerprint(ctx)).lapsing();
        let mut tx = ctx.app.store.begin(name).await?;
        if !key.enter(&mut tx, Clock::System.now()).await? {
            let detail = "the first request with this idempotency key is still running";
            return Err(Error::conflict("IDEMPOTENCY_CONFLICT", detail).into());
        }
        // The next repeat may come as soon as this one is answered: the key's lock must be free by then.
        match key.claim(&mut tx, Clock::System.now()).await {
            Ok(None) => {
                let _ = ctx.info.idempotency.set(key.clone());
                Ok(Self { tx, key: Some(key) })
            }
            Ok(Some(answer)) => {
                tx.rollback().await?;
                Err(Refusal::Replayed(answer))
            }
            Err(error) => {
                tx.rollback().await?;
                Err(error.into())
            }
        }
    }

    /// The transaction, for the functions of the domain crates.
    pub fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }

    /// 200 with a body.
    ///
    /// # Errors
    /// `Unavailable` when the answer to the COMMIT was lost; `Internal`.
    pub async fn ok(self, body: impl Serialize) -> Answer {
        self.finish(StatusCode::OK, answer::bytes(&body)?, None).await
    }

    /// 201 with a body.
    ///
    /// # Errors
    /// As [`Write::ok`].
    pub async fn created(self, body: impl Serialize) -> Answer {
        self.finish(StatusCode::CREATED, answer::bytes(&body)?, None).await
    }

    /// 202 with a body.
    ///
    /// # Errors
    /// As [`Write::ok`].
    pub async fn accepted(self, body: impl Serialize) -> Answer {
        self.finish(StatusCode::ACCEPTED, answer::bytes(&body)?, None).await
    }

    /// Any status with a body.
    ///
    /// # Errors
    /// As [`Write::ok`].
    pub async fn status(self, status: StatusCode, body: impl Serialize) -> Answer {
        self.finish(status, answer::bytes(&body)?, None).await
    }

    /// 204.
    ///
    /// # Errors
    /// As [`Write::ok`].
    pub async fn no_content(self) -> Answer {
        self.finish(StatusCode::NO_CONTENT, Vec::new(), None).await
    }

    /// A body with a secret that is shown once: its repeats get `stored` in its place.
    ///
    /// # Errors
    /// As [`Write::ok`].
    pub async fn secret(self, status: StatusCode, body: impl Serialize, stored: impl Serialize) -> Answer {
        let stored = answer::bytes(&stored)?;
        self.finish(status, answer::bytes(&body)?, Some(stored)).await
    }

    async fn finish(mut self, status: StatusCode, body: Vec<u8>, stored: Option<Vec<u8>>) -> Answer {
        if let Some(key) = &self.key {
            let body = stored.unwrap_or_else(|| body.clone());
            key.complete(&mut self.tx, &StoredAnswer { status: status.as_u16().cast_signed(), body }).await?;
        }
        self.tx.commit().await?;
        Ok(answer::raw(status, body))
    }
}

impl Ctx {
    /// Does an operation at a desk: in a group, or alone in a transaction of its own where the request has an idempotency key
    /// in its header, because the answer is kept in it.
    ///
    /// # Errors
    /// What `read`, the desk and `reply` say; as [`Ctx::write`].
    pub async fn operate<D: Desk, B: Serialize>(
        &self,
        groups: &Arc<Groups<D>>,
        name: &'static str,
        read: impl FnOnce(&Self) -> Result<D::Operation, Refusal>,
        reply: impl FnOnce(D::Answer) -> Result<(StatusCode, B)>,
    ) -> Answer {
        if header_key(self)?.is_none() {
            let operation = read(self)?;
            let (status, body) = reply(groups.submit(&self.scope, operation).await?)?;
            return Ok(answer::raw(status, answer::bytes(&body)?));
        }
        groups.desk().prepare().await?;
        let mut write = self.write(name).await?;
        let operation = read(self)?;
        let done = groups.desk().serve_alone(&self.scope, write.tx(), &operation).await?;
        let (status, body) = reply(done)?;
        write.status(status, body).await
    }
}

/// In a task of its own: a client that hangs up stops nothing on the way.
///
/// # Errors
/// Those of the steps; `Internal` after a panic.
pub(crate) async fn to_the_end<R, E>(steps: impl Future<Output = Result<R, E>> + Send + 'static) -> Result<R, E>
where
    R: Send + 'static,
    E: From<Error> + Send + 'static,
{
    tokio::spawn(steps).await.map_err(|error| Error::internal("going on without the client", error))?
}

/// The header of a `POST`; other methods are idempotent by themselves.
fn header_key(ctx: &Ctx) -> Result<Option<&str>> {
    let Some(value) = ctx.headers().get("idempotency-key").filter(|_| ctx.method() == Method::POST) else {
        return Ok(None);
    };
    let good = (1..=255).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    match value.to_str() {
        Ok(text) if good => Ok(Some(text)),
        _ => Err(Error::BadRequest {
            code: "BAD_REQUEST",
            detail: "the header Idempotency-Key must have 1 to 255 visible ASCII characters".into(),
        }),
    }
}

/// What must be the same in a repeat: query and body.
fn fingerprint(ctx: &Ctx) -> Vec<u8> {
    let query = ctx.info.instance.split_once('?').map_or("", |(_, query)| query);
    [query.as_bytes(), b"\n", ctx.bytes()].concat()
}
