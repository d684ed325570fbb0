//! Test Clocks (test-clocks.md): sandbox only.

use axum::http::StatusCode;
use domain::TestClockId;
use scheduler::test_clock::{self, SYNCHRONOUS_ROWS_MAX, SYNCHRONOUS_TIME_MAX};
use scheduler::{AdvanceTestClockRequest, CreateTestClockRequest, Scheduler, TestClock, TestClockListResponse};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, answer};

const TAG: &str = "Test Clocks";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_test_clocks, create_test_clock))
        .routes(routes!(get_test_clock, delete_test_clock))
        .routes(routes!(advance_test_clock))
}

/// List the clocks of the sandbox, newest first
#[utoipa::path(
    get, path = "/v1/test-clocks", operation_id = "list_test_clocks", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("id" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("frozen_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("created_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("updated_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = TestClockListResponse))
)]
async fn list_test_clocks(ctx: Ctx) -> Answer {
    ctx.require_sandbox()?;
    ctx.require("test_tools:read")?;
    let query = ctx.list(&test_clock::LIST)?;
    let mut conn = ctx.conn().await?;
    answer::ok(test_clock::list(&ctx.scope, &mut conn, &query).await?)
}

/// Make a clock
#[utoipa::path(
    post, path = "/v1/test-clocks", operation_id = "create_test_clock", tag = TAG, request_body = CreateTestClockRequest,
    responses((status = 201, description = "The clock", body = Data<TestClock>))
)]
async fn create_test_clock(ctx: Ctx) -> Answer {
    ctx.require_sandbox()?;
    ctx.require("test_tools:write")?;
    let mut write = ctx.write("create_test_clock").await?;
    let request = ctx.body(CreateTestClockRequest::read)?;
    let clock = test_clock::create(&ctx.scope, write.tx(), &request).await?;
    write.created(Data(clock)).await
}

/// Read one clock
#[utoipa::path(
    get, path = "/v1/test-clocks/{id}", operation_id = "get_test_clock", tag = TAG,
    params(("id" = TestClockId, Path, description = "Clock")),
    responses((status = 200, description = "The clock", body = Data<TestClock>))
)]
async fn get_test_clock(ctx: Ctx) -> Answer {
    ctx.require_sandbox()?;
    ctx.require("test_tools:read")?;
    let mut conn = ctx.conn().await?;
    answer::ok(Data(test_clock::get(&ctx.scope, &mut conn, ctx.path_id("id")?).await?))
}

/// Move the clock, running everything that falls due in between
///
/// The target is stored first, so that a scheduler finishes what a crash interrupts. More than 1,000 due events, or more than
/// ten seconds of work, go on by themselves: the answer is then 202 with status `advancing`.
#[utoipa::path(
    post, path = "/v1/test-clocks/{id}/advance", operation_id = "advance_test_clock", tag = TAG,
    request_body = AdvanceTestClockRequest,
    params(("id" = TestClockId, Path, description = "Clock")),
    responses(
        (status = 200, description = "The clock at its new time", body = Data<TestClock>),
        (status = 202, description = "The clock on its way", body = Data<TestClock>),
    )
)]
async fn advance_test_clock(ctx: Ctx) -> Answer {
    ctx.require_sandbox()?;
    ctx.require("test_tools:write")?;
    let mut write = ctx.write("advance_test_clock").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(AdvanceTestClockRequest::read)?;
    let clock = test_clock::begin_advance(&ctx.scope, write.tx(), id, &request).await?;
    let due = test_clock::due_rows(&ctx.scope, write.tx().conn(), id, request.frozen_at).await?;
    let billing = ctx.app.engine()?.billing.clone();
    let accepted = write.accepted(Data(clock)).await?;
    if due > SYNCHRONOUS_ROWS_MAX {
        return Ok(accepted);
    }
    // A task of its own: neither a client that hangs up nor an answer before the end stops the advance half-way.
    let run = tokio::spawn(async move { Scheduler::new(billing).run_clock(id).await });
    let Ok(done) = tokio::time::timeout(SYNCHRONOUS_TIME_MAX, run).await else { return Ok(accepted) };
    done.map_err(|error| domain::Error::internal("advancing a test clock", error))??;
    let mut conn = ctx.conn().await?;
    answer::json(StatusCode::OK, &Data(test_clock::get(&ctx.scope, &mut conn, id).await?))
}

/// End a clock; its resources stay and stand still
#[utoipa::path(
    delete, path = "/v1/test-clocks/{id}", operation_id = "delete_test_clock", tag = TAG,
    params(("id" = TestClockId, Path, description = "Clock")),
    responses((status = 204, description = "Ended"))
)]
async fn delete_test_clock(ctx: Ctx) -> Answer {
    ctx.require_sandbox()?;
    ctx.require("test_tools:delete")?;
    let mut write = ctx.write("delete_test_clock").await?;
    let id = ctx.path_id("id")?;
    test_clock::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}
