//! Due work: what billing asks the scheduler to do at an instant (rules E). Rows are written in the transaction of their
//! cause and deleted in the transaction of their effect, so that each is done once.

use domain::{CustomerId, Error, Instant, Result, Scope, SubscriptionId, TestClockId, WorkspaceId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use store::StoreError;
use uuid::Uuid;

use crate::subscription::Subscription;

domain::wire_enum! {
    /// What is due. The order of kinds that fall on one instant is that of billing-cycles.md 3.4 rule 7. Holds that expire
    /// come first without a row of their own: every operation on a wallet lets them lapse at its instant (rule D4).
    pub enum DueKind {
        /// A PENDING subscription starts.
        SubscriptionStart = "subscription_start",
        /// A trial ends.
        TrialEnd = "trial_end",
        /// A charged period ends: its window is closed, drafts are made, the next period begins.
        PeriodClose = "period_close",
        /// A threshold closes the usage so far of a window into an interim invoice.
        InterimInvoice = "interim_invoice",
        /// The grace is over: the window is sealed, the drafts are computed for the last time and finalized.
        InvoiceFinalize = "invoice_finalize",
        /// Late usage was counted in a window that is billed: the difference is.
        UsageCorrection = "usage_correction",
    }
}

impl DueKind {
    /// Place among kinds of one instant; gaps are the kinds that other rooms bring.
    #[must_use]
    pub fn order(self) -> i16 {
        match self {
            Self::SubscriptionStart => 20,
            Self::TrialEnd => 30,
            Self::PeriodClose => 60,
            Self::InterimInvoice => 75,
            Self::InvoiceFinalize => 80,
            Self::UsageCorrection => 85,
        }
    }
}

/// One row of the agenda.
#[derive(Clone, Debug, FromRow)]
pub struct DueWork {
    /// Identity.
    pub id: Uuid,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Whose agenda.
    pub customer_id: CustomerId,
    /// What is due.
    pub kind: DueKind,
    /// On what: a subscription for every kind here.
    pub subject_id: Uuid,
    /// When; the handler's "now".
    pub due_at: Instant,
    /// Its simulated time.
    pub clock_id: Option<TestClockId>,
    /// What the handler needs beside the subject.
    pub payload: Json<Value>,
    /// Times it was claimed.
    pub attempts: i32,
}

/// A row to be written.
#[derive(Clone, Debug)]
pub struct NewWork {
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Whose agenda.
    pub customer_id: CustomerId,
    /// What is due.
    pub kind: DueKind,
    /// On what.
    pub subject_id: Uuid,
    /// When.
    pub due_at: Instant,
    /// Simulated time.
    pub clock_id: Option<TestClockId>,
    /// For the handler.
    pub payload: Value,
}

impl NewWork {
    /// Work on a subscription.
    #[must_use]
    pub fn on(subscription: &Subscription, kind: DueKind, due_at: Instant, payload: impl Serialize) -> Self {
        Self {
            workspace_id: subscription.workspace_id,
            customer_id: subscription.customer_id,
            kind,
            subject_id: subscription.id.0,
            due_at,
            clock_id: subscription.test_clock_id,
            payload: serde_json::to_value(payload).unwrap_or_default(),
        }
    }
}

/// Plain payload of kinds that need nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing {}

#[derive(Serialize)]
struct Row<'a> {
    id: Uuid,
    workspace_id: WorkspaceId,
    customer_id: CustomerId,
    kind: DueKind,
    kind_order: i16,
    subject_id: Uuid,
    due_at: Instant,
    clock_id: Option<TestClockId>,
    payload: &'a Value,
    attempts: i32,
    created_at: Instant,
}

impl<'a> Row<'a> {
    fn new(work: &'a NewWork, now: Instant) -> Self {
        Self {
            id: Uuid::now_v7(),
            workspace_id: work.workspace_id,
            customer_id: work.customer_id,
            kind: work.kind,
            kind_order: work.kind.order(),
            subject_id: work.subject_id,
            due_at: work.due_at,
            clock_id: work.clock_id,
            payload: &work.payload,
            attempts: 0,
            created_at: now,
        }
    }
}

/// Writes rows in one statement; one that is already planned (kind, subject, instant, reason of its run)
/// stays as it is.
///
/// # Errors
/// As every statement.
pub async fn plan(conn: &mut PgConnection, now: Instant, work: &[NewWork]) -> Result<()> {
    if work.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = work.iter().map(|work| Row::new(work, now)).collect();
    sqlx::query(
        "INSERT INTO due_work SELECT * FROM jsonb_populate_recordset(NULL::due_work, $1)
         ON CONFLICT (kind, subject_id, due_at, (coalesce(payload ->> 'reason', ''))) DO NOTHING",
    )
    .bind(Json(rows))
    .execute(conn)
    .await
    .context("planning due work")?;
    Ok(())
}

/// Has usage windows billed now: at `now`, or what the customer's test clock shows. `cause` tells rows of one instant apart;
/// one that is there already is locked, so that it is not done before the caller commits. Comes before the first window is
/// locked.
///
/// # Errors
/// As every statement.
pub async fn plan_windows(
    conn: &mut PgConnection,
    now: Instant,
    kind: DueKind,
    cause: &str,
    windows: &[(SubscriptionId, Instant)],
) -> Result<()> {
    if windows.is_empty() {
        return Ok(());
    }
    let (ids, starts): (Vec<_>, Vec<_>) = windows.iter().map(|(id, start)| (id.0, *start)).unzip();
    sqlx::query(
        "INSERT INTO due_work (id, workspace_id, customer_id, kind, kind_order, subject_id, due_at, clock_id, payload, created_at)
         SELECT gen_random_uuid(), s.workspace_id, s.customer_id, $3, $4, s.id, coalesce(clock.frozen_at, $5), s.test_clock_id,
                jsonb_build_object('reason', $6 || ' ' || w.start, 'window_start', w.start), $5
         FROM (SELECT DISTINCT * FROM unnest($1::uuid[], $2::timestamptz[])) AS w (id, start)
              JOIN subscription s USING (id) LEFT JOIN test_clock clock ON clock.id = s.test_clock_id
         ORDER BY s.id, w.start
         ON CONFLICT (kind, subject_id, due_at, (coalesce(payload ->> 'reason', '')))
         DO UPDATE SET payload = due_work.payload",
    )
    .bind(ids)
    .bind(starts)
    .bind(kind)
    .bind(kind.order())
    .bind(now)
    .bind(cause)
    .execute(conn)
    .await
    .context("planning the billing of usage windows")?;
    Ok(())
}

/// Payload of work on a usage window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct WindowPayload {
    /// First instant of the window.
    pub(crate) window_start: Instant,
}

/// Takes rows of these kinds off the agenda of a subject: they will not be done.
///
/// # Errors
/// As every statement.
pub async fn withdraw(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    subject_id: Uuid,
    kinds: &[DueKind],
) -> Result<()> {
    let kinds: Vec<_> = kinds.iter().map(|kind| kind.as_str()).collect();
    sqlx::query("DELETE FROM due_work WHERE workspace_id = $1 AND subject_id = $2 AND kind = ANY($3)")
        .bind(workspace_id)
        .bind(subject_id)
        .bind(kinds)
        .execute(conn)
        .await
        .context("withdrawing due work")?;
    Ok(())
}

/// A boundary of a subscription that was passed and is not worked off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRow)]
pub(crate) struct PassedBoundary {
    /// What it is.
    pub(crate) kind: DueKind,
    /// When it was.
    pub(crate) due_at: Instant,
    /// Whether working it off failed three times: it may go on failing for ever.
    pub(crate) is_stuck: bool,
}

/// Refuses to change a subscription while something waits that was due before: a boundary that was passed and is not
/// worked off yet would find another subscription than the one that it was due for, and its period would not be billed.
///
/// # Errors
/// `CONFLICT`: the scheduler catches up, and the call can be repeated.
pub(crate) async fn refuse_overtaking(
    scope: &Scope,
    conn: &mut PgConnection,
    subscription: &Subscription,
) -> Result<()> {
    match passed_boundary(scope, conn, subscription).await? {
        None => Ok(()),
        Some(_) => Err(overtaking()),
    }
}

/// The boundary that keeps failing, if there is one; others are refused as [`refuse_overtaking`] does.
///
/// # Errors
/// `CONFLICT`, as there.
pub(crate) async fn stuck_boundary(
    scope: &Scope,
    conn: &mut PgConnection,
    subscription: &Subscription,
) -> Result<Option<PassedBoundary>> {
    match passed_boundary(scope, conn, subscription).await? {
        Some(passed) if !passed.is_stuck => Err(overtaking()),
        passed => Ok(passed),
    }
}

fn overtaking() -> Error {
    Error::conflict("CONFLICT", "a boundary of the subscription is being worked off; try again")
}

/// The first one. While the test clock is advancing any boundary may be passed next: refused.
async fn passed_boundary(
    scope: &Scope,
    conn: &mut PgConnection,
    subscription: &Subscription,
) -> Result<Option<PassedBoundary>> {
    let is_advancing: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM test_clock WHERE id = $1 AND status = 'advancing')")
            .bind(subscription.test_clock_id)
            .fetch_one(&mut *conn)
            .await
            .context("reading the test clock")?;
    if is_advancing {
        return Err(overtaking());
    }
    // A claim clears the error of the attempt before: the attempt under way does not count as failed.
    sqlx::query_as(
        "SELECT kind, due_at, attempts - (last_error IS NULL)::integer >= 3 AS is_stuck FROM due_work
         WHERE workspace_id = $1 AND subject_id = $2 AND due_at <= $3
           AND kind IN ('subscription_start', 'trial_end', 'period_close')
         ORDER BY due_at, kind_order, id LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(subscription.id)
    .bind(scope.now())
    .fetch_optional(conn)
    .await
    .context("looking for due work")
}

/// Marks rows as done, in the transaction of their effect. A row that is gone was done by somebody else.
///
/// # Errors
/// As every statement.
pub async fn done(conn: &mut PgConnection, ids: &[Uuid]) -> Result<()> {
    sqlx::query("DELETE FROM due_work WHERE id = ANY($1)")
        .bind(ids)
        .execute(conn)
        .await
        .context("finishing due work")?;
    Ok(())
}
