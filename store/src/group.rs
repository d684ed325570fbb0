//! Operations that share a transaction (P10): what arrives while one transaction is on its way is done in the next. There
//! is no timer: an operation that comes alone is done alone, and a group grows with the load.
//!
//! Each operation has its own outcome. A group whose transaction fails is done again one by one, so that whatever is wrong
//! with one operation is the trouble of that one.
//!
//! No operation waits for a row that another one waits for: a group takes the rows that are free, and what needs a row that is
//! locked (by a checkpoint, by a finalizing invoice, by another node) goes on in a lane of its own, which waits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::{Error, Result, Scope, WorkspaceId};
use tokio::sync::oneshot;

use crate::{BodyKeys, Claim, Store, Tx};

/// Operations of one transaction, at most: its locks are held for some 50 ms then (P6).
pub const GROUP_MAX: usize = 500;

/// Operations that may wait in one lane; more are refused, as whoever sends them will have given up before their turn.
const WAITING_MAX: usize = 20_000;

/// Groups of a desk that run at once, at most: each is a lane of a workspace, and a lane stays on one connection while it is alone.
const CONNECTIONS_MAX: u32 = 8;

/// The statements of a desk look rows up by their keys, whatever the statistics say: those of tables that were empty a minute ago
/// recommend to read them whole. So one plan does for all groups. Where an index on something else could be taken instead, the guard of
/// the workspace reads `IS NOT DISTINCT FROM`, or the key is asked in a `LATERAL (… OFFSET 0)`.
const BY_KEY: [(&str, &str); 3] =
    [("enable_seqscan", "off"), ("enable_mergejoin", "off"), ("plan_cache_mode", "force_generic_plan")];

/// What to do about a row that another transaction has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Patience {
    /// Leave it: [`Served::Later`].
    Skip,
    /// Wait for it.
    Wait,
}

impl Patience {
    /// The end of a `SELECT ... FOR UPDATE`.
    #[must_use]
    pub fn clause(self) -> &'static str {
        match self {
            Self::Skip => "FOR UPDATE SKIP LOCKED",
            Self::Wait => "FOR UPDATE",
        }
    }
}

/// What became of one operation of a group.
#[derive(Debug)]
pub enum Served<A> {
    /// Done, or refused; nothing of a refused one is written.
    Done(Result<A>),
    /// Not begun: a row is locked, or an earlier operation of the group stands in its way. With [`Patience::Wait`] the first
    /// operation of a group is never answered so.
    Later,
}

/// Whoever does the operations of a group.
pub trait Desk: std::fmt::Debug + Send + Sync + 'static {
    /// What is asked.
    type Operation: std::fmt::Debug + Send + Sync + 'static;
    /// What is answered.
    type Answer: std::fmt::Debug + Send + 'static;
    /// Name of its transactions.
    const NAME: &'static str;

    /// What has to be read on other connections, done before the transaction begins: whoever holds a connection must not wait
    /// for a second one, which others in its place may hold.
    ///
    /// # Errors
    /// As every statement.
    fn prepare(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// Does operations of one workspace in one transaction, which the caller commits; the answers stand in the order of the
    /// operations.
    ///
    /// # Errors
    /// What concerns all of them: as every statement.
    fn serve(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        operations: &[&Self::Operation],
        patience: Patience,
    ) -> impl Future<Output = Result<Vec<Served<Self::Answer>>>> + Send;

    /// Does one operation in a transaction of the caller, waiting for whatever it needs.
    ///
    /// # Errors
    /// What the desk says of it.
    fn serve_alone(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        operation: &Self::Operation,
    ) -> impl Future<Output = Result<Self::Answer>> + Send {
        async move {
            match self.serve(scope, tx, &[operation], Patience::Wait).await?.pop() {
                Some(Served::Done(answer)) => answer,
                _ => Err(Error::invariant("an operation that may wait was put off")),
            }
        }
    }
}

/// The lanes of one desk: two for each workspace that has work, one that skips locked rows and one that waits.
#[derive(Debug)]
pub struct Groups<D: Desk> {
    store: Store,
    desk: D,
    /// Who waits; a lane without an entry is idle.
    waiting: Mutex<HashMap<Lane, Vec<Member<D>>>>,
}

type Lane = (WorkspaceId, Patience);

#[derive(Debug)]
struct Member<D: Desk> {
    operation: D::Operation,
    answer: oneshot::Sender<Result<D::Answer>>,
}

impl<D: Desk> Groups<D> {
    /// A desk whose transactions run on this database.
    #[must_use]
    pub fn new(store: &Store, desk: D) -> Arc<Self> {
        Arc::new(Self { store: store.apart(CONNECTIONS_MAX, &BY_KEY), desk, waiting: Mutex::new(HashMap::new()) })
    }

    /// The desk, for an operation in a transaction of the caller.
    #[must_use]
    pub fn desk(&self) -> &D {
        &self.desk
    }

    /// Does an operation in a group, and answers when that is committed. The group has the scope of its first operation: of a
    /// scope only tenant and clock count, not who asks.
    ///
    /// # Errors
    /// What the desk says; `Unavailable` when the answer to the COMMIT was lost or too many wait.
    pub async fn submit(self: &Arc<Self>, scope: &Scope, operation: D::Operation) -> Result<D::Answer> {
        let lane = (scope.workspace_id, Patience::Skip);
        if self.waiting().get(&lane).is_some_and(|waiting| waiting.len() >= WAITING_MAX) {
            let detail = format!("{WAITING_MAX} operations wait");
            return Err(Error::Unavailable { dependency: "database", detail, retry_after_secs: 1 });
        }
        let (answer, answered) = oneshot::channel();
        self.enqueue(*scope, Patience::Skip, vec![Member { operation, answer }]);
        answered.await.unwrap_or_else(|_| Err(Error::invariant("a group ended without an answer")))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Lane, Vec<Member<D>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(self: &Arc<Self>, scope: Scope, patience: Patience, members: Vec<Member<D>>) {
        match self.waiting().entry((scope.workspace_id, patience)) {
            Entry::Occupied(mut waiting) => waiting.get_mut().extend(members),
            Entry::Vacant(idle) => {
                idle.insert(members);
                tokio::spawn(self.clone().work(scope, patience));
            }
        }
    }

    /// Does group after group until nobody waits.
    async fn work(self: Arc<Self>, scope: Scope, patience: Patience) {
        while let Some(members) = self.next_group((scope.workspace_id, patience)) {
            // A task of its own: a panic ends the group, and its members hear of it, but not the lane.
            if let Err(error) = tokio::spawn(self.clone().serve(scope, patience, members)).await {
                tracing::error!(group = D::NAME, error = %error, "a group broke off");
            }
        }
    }

    fn next_group(&self, lane: Lane) -> Option<Vec<Member<D>>> {
        let mut lanes = self.waiting();
        let waiting = lanes.get_mut(&lane)?;
        if waiting.is_empty() {
            lanes.remove(&lane);
            return None;
        }
        Some(waiting.drain(..waiting.len().min(GROUP_MAX)).collect())
    }

    async fn serve(self: Arc<Self>, scope: Scope, patience: Patience, members: Vec<Member<D>>) {
        let mut groups = vec![members];
        while let Some(mut members) = groups.pop() {
            match self.attempt(&scope, patience, &members).await {
                Ok(served) => self.answer(scope, members, served),
                Err(error) if members.len() > 1 => {
                    tracing::warn!(group = D::NAME, members = members.len(), error = %error, "a group is done one by one");
                    groups.extend(members.drain(..).rev().map(|member| vec![member]));
                }
                Err(error) => {
                    let Some(alone) = members.pop() else { continue };
                    let _ = alone.answer.send(self.once_more(&scope, &alone.operation, error).await);
                }
            }
        }
    }

    /// A COMMIT whose answer was lost may have been done. The operation has its ids already, so a second attempt finds what the first has
    /// done; whoever asked would repeat it with other ids.
    async fn once_more(&self, scope: &Scope, operation: &D::Operation, error: Error) -> Result<D::Answer> {
        if !matches!(error, Error::Unavailable { .. }) {
            return Err(error);
        }
        let mut tx = self.store.begin(D::NAME).await?;
        let outcome = self.desk.serve_alone(scope, &mut tx, operation).await;
        tx.end(outcome).await
    }

    async fn attempt(
        &self,
        scope: &Scope,
        patience: Patience,
        members: &[Member<D>],
    ) -> Result<Vec<Served<D::Answer>>> {
        let operations: Vec<&D::Operation> = members.iter().map(|member| &member.operation).collect();
        self.desk.prepare().await?;
        let mut tx = self.store.begin(D::NAME).await?;
        let outcome = self.desk.serve(scope, &mut tx, &operations, patience).await;
        tx.end(outcome).await
    }

    fn answer(self: &Arc<Self>, scope: Scope, members: Vec<Member<D>>, served: Vec<Served<D::Answer>>) {
        let mut later = Vec::new();
        for (member, served) in members.into_iter().zip(served) {
            match served {
                // Whoever has gone does not hear it.
                Served::Done(answer) => drop(member.answer.send(answer)),
                Served::Later => later.push(member),
            }
        }
        if !later.is_empty() {
            self.enqueue(scope, Patience::Wait, later);
        }
    }
}

/// What becomes of the operations of a group, in their order, while a desk works on them.
#[derive(Debug)]
pub struct Sheet<A>(Vec<Option<Served<A>>>);

impl<A> Sheet<A> {
    /// From the claims of their idempotency keys; `replay` reads what an earlier call has answered.
    pub fn new(claims: Vec<Result<Claim>>, replay: impl Fn(usize, &[u8]) -> Result<A>) -> Self {
        let outcome = |(place, claim)| match claim {
            Err(error) => Some(Served::Done(Err(error))),
            Ok(Claim::Answered(body)) => Some(Served::Done(replay(place, &body))),
            Ok(Claim::Busy) => Some(Served::Later),
            Ok(Claim::New) => None,
        };
        Self(claims.into_iter().enumerate().map(outcome).collect())
    }

    /// Whether an operation has no outcome yet.
    #[must_use]
    pub fn is_open(&self, place: usize) -> bool {
        self.0.get(place).is_some_and(Option::is_none)
    }

    /// Whether every operation has an outcome: nothing is to be locked or read.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.0.iter().all(Option::is_some)
    }

    /// An operation is done, or refused.
    pub fn done(&mut self, place: usize, outcome: Result<A>) {
        self.0[place] = Some(Served::Done(outcome));
    }

    /// An operation has to wait.
    pub fn later(&mut self, place: usize) {
        self.0[place] = Some(Served::Later);
    }

    /// The outcomes; the idempotency keys keep the answers as `body` writes them.
    ///
    /// # Errors
    /// As every statement; `Internal` for an operation without an outcome.
    pub async fn close(
        self,
        tx: &mut Tx,
        keys: BodyKeys<'_>,
        body: impl Fn(&A) -> serde_json::Result<Vec<u8>>,
    ) -> Result<Vec<Served<A>>> {
        let served: Option<Vec<Served<A>>> = self.0.into_iter().collect();
        let served = served.ok_or_else(|| Error::invariant("an operation of a group was forgotten"))?;
        let bodies = served.iter().map(|served| match served {
            Served::Done(Ok(answer)) => body(answer).map(Some),
            Served::Done(Err(_)) | Served::Later => Ok(None),
        });
        let bodies = bodies.collect::<serde_json::Result<Vec<_>>>();
        let bodies = bodies.map_err(|error| Error::internal("writing the result of an idempotency key", error))?;
        keys.complete(tx, &bodies).await?;
        Ok(served)
    }
}
