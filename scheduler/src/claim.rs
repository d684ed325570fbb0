//! Claiming due work, and writing down what went wrong.

use billing::due::DueWork;
use domain::{Error, Instant, Result, TestClockId};
use sqlx::PgPool;
use store::StoreError;
use uuid::Uuid;

/// Whose agenda is worked off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agenda {
    /// Customers in real time, by PostgreSQL's clock (rule E2).
    RealTime,
    /// Customers of a test clock, up to an instant.
    Clock {
        /// The clock.
        id: TestClockId,
        /// Inclusive.
        until: Instant,
    },
}

/// Longest time between two attempts.
const BACKOFF_SECS_MAX: i32 = 3_600;
/// An advance waits for rows that are tried again within this time, and leaves the others to the loop.
const ADVANCE_WAITS_SECS: i32 = 5;

/// Whether `work` is the first row of its customer (rule E1). A subject one of whose rows failed three times holds back only
/// rows of its own: one subscription that cannot be billed does not stop the others (billing-cycles.md 3.4 rule 4). A claim
/// clears the error of the attempt before, so that an attempt under way does not count as failed.
macro_rules! is_first {
    () => {
        "NOT EXISTS (
            SELECT FROM due_work earlier WHERE earlier.customer_id = work.customer_id
               AND (earlier.due_at, earlier.kind_order, earlier.id) < (work.due_at, work.kind_order, work.id)
               AND (earlier.subject_id = work.subject_id OR NOT EXISTS (
                   SELECT FROM due_work stuck
                   WHERE stuck.customer_id = work.customer_id AND stuck.subject_id = earlier.subject_id
                     AND stuck.attempts - (stuck.last_error IS NULL)::integer >= 3)))"
    };
}

const CLAIM_REAL_TIME: &str = concat!(
    "WITH head AS (
        SELECT work.id FROM due_work work
        WHERE work.clock_id IS NULL AND work.due_at <= now() AND (work.retry_at IS NULL OR work.retry_at <= now())
          AND ",
    is_first!(),
    "   ORDER BY work.due_at, work.kind_order, work.id LIMIT $1 FOR UPDATE OF work SKIP LOCKED
    )
    UPDATE due_work SET attempts = attempts + 1, retry_at = now() + make_interval(secs => $2), last_error = NULL
    FROM head WHERE due_work.id = head.id
    RETURNING due_work.id, workspace_id, customer_id, kind, subject_id, due_at, clock_id, payload, attempts"
);

/// Rows of the earliest instant only, whosever they are, so that documents of one instant get their numbers before those of
/// a later one (test-clocks.md 4). What waits after a failure does not hold the clock.
const CLAIM_CLOCK: &str = concat!(
    "WITH first AS MATERIALIZED (
        SELECT work.id, work.due_at, work.last_error, work.retry_at IS NULL OR work.retry_at <= now() AS is_free
        FROM due_work work
        WHERE work.clock_id = $3 AND work.due_at <= $4 AND ",
    is_first!(),
    "), head AS (
        SELECT work.id FROM due_work work JOIN first ON first.id = work.id
        WHERE (work.retry_at IS NULL OR work.retry_at <= now()) -- seen again behind the lock
          AND first.due_at = (SELECT min(due_at) FROM first WHERE is_free OR last_error IS NULL)
        ORDER BY work.kind_order, work.id LIMIT $1 FOR UPDATE OF work SKIP LOCKED
    )
    UPDATE due_work SET attempts = attempts + 1, retry_at = now() + make_interval(secs => $2), last_error = NULL
    FROM head WHERE due_work.id = head.id
    RETURNING due_work.id, workspace_id, customer_id, kind, subject_id, due_at, clock_id, payload, attempts"
);

/// Claims at most `limit` rows for `lease_secs`: of each customer the first, beside those that it does not hold back.
pub(crate) async fn claim(pool: &PgPool, agenda: Agenda, limit: i64, lease_secs: u32) -> Result<Vec<DueWork>> {
    let lease = f64::from(lease_secs);
    let claimed = match agenda {
        Agenda::RealTime => sqlx::query_as(CLAIM_REAL_TIME).bind(limit).bind(lease).fetch_all(pool).await,
        Agenda::Clock { id, until } => {
            sqlx::query_as(CLAIM_CLOCK).bind(limit).bind(lease).bind(id).bind(until).fetch_all(pool).await
        }
    };
    claimed.context("claiming due work")
}

/// Whether an advance still has something to wait for: the first row of a customer that nobody gave up.
pub(crate) async fn has_more(pool: &PgPool, id: TestClockId, until: Instant) -> Result<bool> {
    sqlx::query_scalar(concat!(
        "SELECT EXISTS (
                SELECT FROM due_work work
                WHERE work.clock_id = $1 AND work.due_at <= $2
                  AND (work.last_error IS NULL OR work.retry_at <= now() + make_interval(secs => $3)) AND ",
        is_first!(),
        ")"
    ))
    .bind(id)
    .bind(until)
    .bind(f64::from(ADVANCE_WAITS_SECS))
    .fetch_one(pool)
    .await
    .context("looking for due work of a test clock")
}

/// Writes down why a row could not be done and when it is tried again: soon after trouble that passes, later when the
/// subject itself is at fault.
pub(crate) async fn record_failure(pool: &PgPool, id: Uuid, attempts: i32, error: &Error) -> Result<()> {
    let first = if error.retryable() && !matches!(error, Error::Internal { .. }) { 1 } else { 10 };
    let secs = first * 2_i32.saturating_pow(attempts.saturating_sub(1).clamp(0, 12).unsigned_abs());
    sqlx::query("UPDATE due_work SET last_error = $2, retry_at = now() + make_interval(secs => $3) WHERE id = $1")
        .bind(id)
        .bind(text_of(error))
        .bind(f64::from(secs.min(BACKOFF_SECS_MAX)))
        .execute(pool)
        .await
        .context("recording a failure of due work")?;
    Ok(())
}

/// The error with its causes.
fn text_of(error: &Error) -> String {
    let mut text = format!("{}: {error}", error.code());
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
