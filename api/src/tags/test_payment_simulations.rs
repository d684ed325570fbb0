//! Test Payment Simulations (test-payment-simulations.md): sandbox only.

use domain::PaymentSimulationId;
use payments::simulation::{
    self, CreateTestPaymentSimulationRequest, TestPaymentSimulation, TestPaymentSimulationListResponse,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, answer};

const TAG: &str = "Test Payment Simulations";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_test_payment_simulations, create_test_payment_simulation))
        .routes(routes!(get_test_payment_simulation, delete_test_payment_simulation))
}

/// List the simulations of the sandbox, newest first
#[utoipa::path(
    get, path = "/v1/test-payment-simulations", operation_id = "list_test_payment_simulations", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("sort" = Option<String>, Query, description = "created_at, after `-` descending"),
        ("id" = Option<String>, Query, description = "eq, ne, in"),
        ("payment_method_id" = Option<String>, Query, description = "eq, ne, in"),
        ("outcome" = Option<String>, Query, description = "eq, ne, in"),
        ("created_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = TestPaymentSimulationListResponse))
)]
async fn list_test_payment_simulations(ctx: Ctx) -> Answer {
    ctx.require_sandbox()?;
    ctx.require("test_tools:read")?;
    let query = ctx.list(&simulation::LIST)?;
    let mut conn = ctx.conn().await?;
    answer::ok(simulation::list(&ctx.scope, &mut conn, &query).await?)
}

/// Decide how the payments with a method end, until another simulation is made
#[utoipa::path(
    post, path = "/v1/test-payment-simulations", operation_id = "create_test_payment_simulation", tag = TAG,
    request_body = CreateTestPaymentSimulationRequest,
    responses((status = 201, description = "The simulation", body = Data<TestPaymentSimulation>))
)]
async fn create_test_payment_simulation(ctx: Ctx) -> Answer {
    ctx.require_sandbox()?;
    ctx.require("test_tools:write")?;
    let mut write = ctx.write("create_test_payment_simulation").await?;
    let request = ctx.body(CreateTestPaymentSimulationRequest::read)?;
    let created = simulation::create(&ctx.scope, write.tx(), &request).await?;
    write.created(Data(created)).await
}

/// Read one simulation
#[utoipa::path(
    get, path = "/v1/test-payment-simulations/{id}", operation_id = "get_test_payment_simulation", tag = TAG,
    params(("id" = PaymentSimulationId, Path, description = "Simulation")),
    responses((status = 200, description = "The simulation", body = Data<TestPaymentSimulation>))
)]
async fn get_test_payment_simulation(ctx: Ctx) -> Answer {
    ctx.require_sandbox()?;
    ctx.require("test_tools:read")?;
    let mut conn = ctx.conn().await?;
    answer::ok(Data(simulation::get(&ctx.scope, &mut conn, ctx.path_id("id")?).await?))
}

/// Remove a simulation; the one before it decides again
#[utoipa::path(
    delete, path = "/v1/test-payment-simulations/{id}", operation_id = "delete_test_payment_simulation", tag = TAG,
    params(("id" = PaymentSimulationId, Path, description = "Simulation")),
    responses((status = 204, description = "Removed"))
)]
async fn delete_test_payment_simulation(ctx: Ctx) -> Answer {
    ctx.require_sandbox()?;
    ctx.require("test_tools:delete")?;
    let mut write = ctx.write("delete_test_payment_simulation").await?;
    let id = ctx.path_id("id")?;
    simulation::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}
