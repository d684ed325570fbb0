//! Test clocks: simulated time for the resources of a sandbox (test-clocks.md).

use chrono::{DateTime, Months, Utc};
use domain::input::Field;
use domain::{Error, Input, Result, Scope, TestClockId, WorkspaceId};
use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, PgConnection};
use store::list::{ListField, PageResponse};
use store::{ListKind, ListQuery, ListSpec, Page, StoreError, Tx};
use utoipa::ToSchema;

/// Longest advance of one call.
const ADVANCE_MONTHS_MAX: u32 = 24;
/// More due rows than this, and an advance answers before it is done.
pub const SYNCHRONOUS_ROWS_MAX: i64 = 1_000;
/// And so does one that takes longer: rows that are due make others, which nobody can count beforehand.
pub const SYNCHRONOUS_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(10);

domain::wire_enum! {
    /// What a clock is doing.
    pub enum TestClockStatus {
        /// Standing still; can be advanced.
        Active = "active",
        /// Running up to its target.
        Advancing = "advancing",
        /// Ended.
        Completed = "completed",
    }
}

/// A simulated clock.
#[derive(Clone, Debug, PartialEq, Eq, FromRow, Serialize, ToSchema)]
pub struct TestClock {
    /// Identity.
    pub id: TestClockId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Label.
    #[schema(required)]
    pub name: Option<String>,
    /// Its present instant.
    pub frozen_at: DateTime<Utc>,
    /// What it is doing.
    pub status: TestClockStatus,
    /// Creation, in real time.
    pub created_at: DateTime<Utc>,
    /// Last change, in real time.
    pub updated_at: DateTime<Utc>,
}

const COLUMNS: &str = "id, workspace_id, name, frozen_at, status, created_at, updated_at";

/// `domain.CreateTestClockRequest`.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
pub struct CreateTestClockRequest {
    /// The instant at which it begins.
    pub frozen_at: DateTime<Utc>,
    /// Label.
    pub name: Option<String>,
}

/// `domain.AdvanceTestClockRequest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
pub struct AdvanceTestClockRequest {
    /// The new time.
    pub frozen_at: DateTime<Utc>,
}

/// One page of clocks.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TestClockListResponse {
    /// The clocks.
    pub data: Vec<TestClock>,
    /// How to go on.
    pub pagination: PageResponse,
}

impl From<Page<TestClock>> for TestClockListResponse {
    fn from(page: Page<TestClock>) -> Self {
        Self { data: page.data, pagination: page.pagination }
    }
}

impl CreateTestClockRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// `Validation` with every field that is wrong.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let frozen_at = input.required("frozen_at", Field::instant);
        let name = input.optional("name", |v| v.text(1, 255));
        input.finish()?;
        let frozen_at = frozen_at.ok_or_else(|| Error::invariant("a required field was read"))?;
        Ok(Self { frozen_at, name })
    }
}

impl AdvanceTestClockRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// `Validation` with every field that is wrong.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let frozen_at = input.required("frozen_at", Field::instant);
        input.finish()?;
        Ok(Self { frozen_at: frozen_at.ok_or_else(|| Error::invariant("a required field was read"))? })
    }
}

/// How test clocks are listed.
pub const LIST: ListSpec = ListSpec {
    name: "test_clocks",
    columns: COLUMNS,
    from: "test_clock",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("status", ListKind::Word(&["active", "advancing", "completed"])),
        ListField::new("frozen_at", ListKind::Instant),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// Makes a clock.
///
/// # Errors
/// As every statement.
pub async fn create(scope: &Scope, tx: &mut Tx, request: &CreateTestClockRequest) -> Result<TestClock> {
    sqlx::query_as(
        "INSERT INTO test_clock (id, workspace_id, name, frozen_at, status, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 'active', $5, $5)
         RETURNING id, workspace_id, name, frozen_at, status, created_at, updated_at",
    )
    .bind(TestClockId::generate())
    .bind(scope.workspace_id)
    .bind(&request.name)
    .bind(request.frozen_at)
    .bind(scope.now())
    .fetch_one(tx.conn())
    .await
    .context("creating the test clock")
}

/// One clock.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: TestClockId) -> Result<TestClock> {
    let clock: Option<TestClock> = sqlx::query_as(
        "SELECT id, workspace_id, name, frozen_at, status, created_at, updated_at
         FROM test_clock WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_optional(conn)
    .await
    .context("reading the test clock")?;
    clock.ok_or_else(|| Error::not_found("test_clock", id))
}

/// One page of clocks.
///
/// # Errors
/// As every statement.
pub async fn list(scope: &Scope, conn: &mut PgConnection, query: &ListQuery) -> Result<TestClockListResponse> {
    query.fetch::<TestClock>(conn, scope).await.map(TestClockListResponse::from)
}

async fn lock(scope: &Scope, tx: &mut Tx, id: TestClockId) -> Result<TestClock> {
    sqlx::query("SELECT FROM test_clock WHERE workspace_id = $1 AND id = $2 FOR UPDATE")
        .bind(scope.workspace_id)
        .bind(id)
        .execute(tx.conn())
        .await
        .context("locking the test clock")?;
    get(scope, tx.conn(), id).await
}

/// Sets the target of an advance; [`crate::Scheduler::run_clock`] runs it, or any scheduler after a crash (rule E3).
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` unless active; 422 for an instant that is not later, or more than two years ahead.
pub async fn begin_advance(
    scope: &Scope,
    tx: &mut Tx,
    id: TestClockId,
    request: &AdvanceTestClockRequest,
) -> Result<TestClock> {
    let clock = lock(scope, tx, id).await?;
    if clock.status != TestClockStatus::Active {
        return refuse(&clock, TestClockStatus::Advancing);
    }
    if request.frozen_at <= clock.frozen_at {
        return Err(Error::business_rule(format!("frozen_at must be later than the clock's time {}", clock.frozen_at)));
    }
    let furthest = clock.frozen_at.checked_add_months(Months::new(ADVANCE_MONTHS_MAX));
    if furthest.is_none_or(|furthest| request.frozen_at > furthest) {
        return Err(Error::business_rule("a clock is advanced by at most two years in one call"));
    }
    set(
        scope,
        tx,
        id,
        "UPDATE test_clock SET status = 'advancing', target = $4, updated_at = $3 WHERE workspace_id = $1 AND id = $2",
        Some(request.frozen_at),
    )
    .await?;
    get(scope, tx.conn(), id).await
}

/// Ends a clock: its resources stay and stand still. A repeat does nothing.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` while it advances.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: TestClockId) -> Result<()> {
    let clock = lock(scope, tx, id).await?;
    match clock.status {
        TestClockStatus::Completed => Ok(()),
        TestClockStatus::Advancing => refuse(&clock, TestClockStatus::Completed),
        TestClockStatus::Active => {
            set(
                scope,
                tx,
                id,
                "UPDATE test_clock SET status = 'completed', updated_at = $3 WHERE workspace_id = $1 AND id = $2",
                None,
            )
            .await
        }
    }
}

async fn set(
    scope: &Scope,
    tx: &mut Tx,
    id: TestClockId,
    sql: &'static str,
    target: Option<DateTime<Utc>>,
) -> Result<()> {
    let query = sqlx::query(sql).bind(scope.workspace_id).bind(id).bind(scope.now());
    let query = if target.is_some() { query.bind(target) } else { query };
    query.execute(tx.conn()).await.context("changing the test clock")?;
    Ok(())
}

fn refuse<T>(clock: &TestClock, to: TestClockStatus) -> Result<T> {
    let allowed: &[&str] = match clock.status {
        TestClockStatus::Active => &["advancing", "completed"],
        TestClockStatus::Advancing => &["active"],
        TestClockStatus::Completed => &[],
    };
    Err(Error::invalid_transition("test_clock", clock.id, clock.status.as_str(), to.as_str(), allowed))
}

/// Rows that an advance will run at least.
///
/// # Errors
/// As every statement.
pub async fn due_rows(scope: &Scope, conn: &mut PgConnection, id: TestClockId, until: DateTime<Utc>) -> Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM due_work WHERE workspace_id = $1 AND clock_id = $2 AND due_at <= $3")
        .bind(scope.workspace_id)
        .bind(id)
        .bind(until)
        .fetch_one(conn)
        .await
        .context("counting due work")
}
