//! Committed use plans, tag Usage (allowances.md 1).

use billing::commitment::{
    CancelCommittedUsePlanRequest, CommittedUsePlan, CreateCommittedUsePlanRequest, UpdateCommittedUsePlanRequest,
};
use domain::CommittedUsePlanId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Usage";

/// Routes of committed use plans.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_committed_use_plans, create_committed_use_plan))
        .routes(routes!(get_committed_use_plan, update_committed_use_plan))
        .routes(routes!(cancel_committed_use_plan))
}

/// List committed use plans, newest first
#[utoipa::path(
    get, path = "/v1/committed-use-plans", operation_id = "list_committed_use_plans", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("customer_id" = Option<String>, Query, description = "eq, ne, in"),
        ("subscription_id" = Option<String>, Query, description = "eq, ne, in"),
        ("product_id" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("starts_at" = Option<String>, Query, description = "eq, ne, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = PageOf<CommittedUsePlan>))
)]
async fn list_committed_use_plans(ctx: Ctx) -> Answer {
    ctx.require("committed_use_plans:read")?;
    let billing = &ctx.app.engine()?.billing;
    answer::page(billing.committed_use_plans(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Commit a customer to a quantity per period
#[utoipa::path(
    post, path = "/v1/committed-use-plans", operation_id = "create_committed_use_plan", tag = TAG,
    request_body = CreateCommittedUsePlanRequest,
    responses((status = 201, description = "The plan", body = Data<CommittedUsePlan>))
)]
async fn create_committed_use_plan(ctx: Ctx) -> Answer {
    ctx.require("committed_use_plans:write")?;
    let mut write = ctx.write("create_committed_use_plan").await?;
    let request = ctx.body(CreateCommittedUsePlanRequest::read)?;
    let plan = ctx.app.engine()?.billing.create_committed_use_plan(&ctx.scope, write.tx(), request).await?;
    write.created(Data(plan)).await
}

/// Read a committed use plan with the progress of its current period
#[utoipa::path(
    get, path = "/v1/committed-use-plans/{id}", operation_id = "get_committed_use_plan", tag = TAG,
    params(("id" = CommittedUsePlanId, Path, description = "Committed use plan")),
    responses((status = 200, description = "The plan", body = Data<CommittedUsePlan>))
)]
async fn get_committed_use_plan(ctx: Ctx) -> Answer {
    ctx.require("committed_use_plans:read")?;
    let id = ctx.path_id("id")?;
    let billing = &ctx.app.engine()?.billing;
    answer::ok(Data(billing.committed_use_plan(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change a committed use plan
#[utoipa::path(
    put, path = "/v1/committed-use-plans/{id}", operation_id = "update_committed_use_plan", tag = TAG,
    request_body = UpdateCommittedUsePlanRequest,
    params(("id" = CommittedUsePlanId, Path, description = "Committed use plan")),
    responses((status = 200, description = "The plan", body = Data<CommittedUsePlan>))
)]
async fn update_committed_use_plan(ctx: Ctx) -> Answer {
    ctx.require("committed_use_plans:write")?;
    let mut write = ctx.write("update_committed_use_plan").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateCommittedUsePlanRequest::read)?;
    let plan = ctx.app.engine()?.billing.update_committed_use_plan(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(plan)).await
}

/// End a committed use plan before its term
#[utoipa::path(
    post, path = "/v1/committed-use-plans/{id}/cancel", operation_id = "cancel_committed_use_plan", tag = TAG,
    request_body = CancelCommittedUsePlanRequest,
    params(("id" = CommittedUsePlanId, Path, description = "Committed use plan")),
    responses((status = 200, description = "The plan", body = Data<CommittedUsePlan>))
)]
async fn cancel_committed_use_plan(ctx: Ctx) -> Answer {
    ctx.require("committed_use_plans:write")?;
    let mut write = ctx.write("cancel_committed_use_plan").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(CancelCommittedUsePlanRequest::read)?;
    let plan = ctx.app.engine()?.billing.cancel_committed_use_plan(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(plan)).await
}
