//! Plans (plans.md).

use catalog::plan::{
    self, AddProductRequest, CreatePlanRequest, EnrichedPlanProduct, Plan, PlanDetailResponse, PlanProduct,
    PlanVersion, PublishPlanRequest, UpdatePlanProductRequest, UpdatePlanRequest,
};
use catalog::version::VersionRow;
use domain::{PlanId, ProductId};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Plans";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_plans, create_plan))
        .routes(routes!(get_plan, update_plan, delete_plan))
        .routes(routes!(publish_plan))
        .routes(routes!(list_plan_products, add_plan_product))
        .routes(routes!(update_plan_product, remove_plan_product))
        .routes(routes!(list_plan_versions))
        .routes(routes!(get_plan_version))
}

/// List plans with filters and cursor pagination
#[utoipa::path(
    get, path = "/v1/plans", operation_id = "list_plans", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("external_id" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("name" = Option<String>, Query, description = "eq, ne, in, contains"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Plan>))
)]
async fn list_plans(ctx: Ctx) -> Answer {
    ctx.require("plans:read")?;
    answer::page(plan::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Create a plan as a draft
#[utoipa::path(
    post, path = "/v1/plans", operation_id = "create_plan", tag = TAG, request_body = CreatePlanRequest,
    responses((status = 201, description = "The plan", body = Data<Plan>))
)]
async fn create_plan(ctx: Ctx) -> Answer {
    ctx.require("plans:write")?;
    let mut write = ctx.write("create_plan").await?;
    let request = ctx.body(CreatePlanRequest::read)?;
    let plan = plan::create(&ctx.scope, write.tx(), request).await?;
    write.created(Data(plan)).await
}

/// Read one plan with its products and its active version
#[utoipa::path(
    get, path = "/v1/plans/{id}", operation_id = "get_plan", tag = TAG,
    params(("id" = PlanId, Path, description = "Plan")),
    responses((status = 200, description = "The plan", body = Data<PlanDetailResponse>))
)]
async fn get_plan(ctx: Ctx) -> Answer {
    ctx.require("plans:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(plan::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change a plan or make a transition; a published plan gets its next version
#[utoipa::path(
    put, path = "/v1/plans/{id}", operation_id = "update_plan", tag = TAG, request_body = UpdatePlanRequest,
    params(("id" = PlanId, Path, description = "Plan")),
    responses((status = 200, description = "The plan", body = Data<Plan>))
)]
async fn update_plan(ctx: Ctx) -> Answer {
    ctx.require("plans:write")?;
    let mut write = ctx.write("update_plan").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdatePlanRequest::read)?;
    let plan = plan::update(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(plan)).await
}

/// Delete a draft
#[utoipa::path(
    delete, path = "/v1/plans/{id}", operation_id = "delete_plan", tag = TAG,
    params(("id" = PlanId, Path, description = "Plan")),
    responses((status = 204, description = "Deleted"))
)]
async fn delete_plan(ctx: Ctx) -> Answer {
    ctx.require("plans:delete")?;
    let mut write = ctx.write("delete_plan").await?;
    let id = ctx.path_id("id")?;
    plan::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}

/// Freeze the plan into its next version
#[utoipa::path(
    post, path = "/v1/plans/{id}/publish", operation_id = "publish_plan", tag = TAG, request_body = PublishPlanRequest,
    params(("id" = PlanId, Path, description = "Plan")),
    responses((status = 200, description = "The version", body = Data<PlanVersion>))
)]
async fn publish_plan(ctx: Ctx) -> Answer {
    ctx.require("plans:publish")?;
    let mut write = ctx.write("publish_plan").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(PublishPlanRequest::read)?;
    let version = plan::publish(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(version)).await
}

/// List the products of a plan with prices and bindings
#[utoipa::path(
    get, path = "/v1/plans/{id}/products", operation_id = "list_plan_products", tag = TAG,
    params(
        ("id" = PlanId, Path, description = "Plan"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
    ),
    responses((status = 200, description = "One page", body = PageOf<EnrichedPlanProduct>))
)]
async fn list_plan_products(ctx: Ctx) -> Answer {
    ctx.require("plans:read")?;
    let id = ctx.path_id("id")?;
    answer::page(plan::list_products(&ctx.scope, &mut *ctx.conn().await?, id, ctx.query()).await?)
}

/// Attach a product with its allowance
#[utoipa::path(
    post, path = "/v1/plans/{id}/products", operation_id = "add_plan_product", tag = TAG, request_body = AddProductRequest,
    params(("id" = PlanId, Path, description = "Plan")),
    responses((status = 201, description = "The attachment", body = Data<PlanProduct>))
)]
async fn add_plan_product(ctx: Ctx) -> Answer {
    ctx.require("plans:write")?;
    let mut write = ctx.write("add_plan_product").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(AddProductRequest::read)?;
    let attachment = plan::add_product(&ctx.scope, write.tx(), id, request).await?;
    write.created(Data(attachment)).await
}

/// Change the allowance of an attached product
#[utoipa::path(
    put, path = "/v1/plans/{id}/products/{productId}", operation_id = "update_plan_product", tag = TAG,
    request_body = UpdatePlanProductRequest,
    params(("id" = PlanId, Path, description = "Plan"), ("productId" = ProductId, Path, description = "Product")),
    responses((status = 200, description = "The attachment", body = Data<PlanProduct>))
)]
async fn update_plan_product(ctx: Ctx) -> Answer {
    ctx.require("plans:write")?;
    let mut write = ctx.write("update_plan_product").await?;
    let (id, product) = (ctx.path_id("id")?, ctx.path_id("productId")?);
    let request = ctx.body(UpdatePlanProductRequest::read)?;
    let attachment = plan::update_product(&ctx.scope, write.tx(), id, product, request).await?;
    write.ok(Data(attachment)).await
}

/// Detach a product
#[utoipa::path(
    delete, path = "/v1/plans/{id}/products/{productId}", operation_id = "remove_plan_product", tag = TAG,
    params(("id" = PlanId, Path, description = "Plan"), ("productId" = ProductId, Path, description = "Product")),
    responses((status = 204, description = "Detached"))
)]
async fn remove_plan_product(ctx: Ctx) -> Answer {
    ctx.require("plans:write")?;
    let mut write = ctx.write("remove_plan_product").await?;
    let (id, product) = (ctx.path_id("id")?, ctx.path_id("productId")?);
    plan::remove_product(&ctx.scope, write.tx(), id, product).await?;
    write.no_content().await
}

/// List the versions of a plan, newest first
#[utoipa::path(
    get, path = "/v1/plans/{id}/versions", operation_id = "list_plan_versions", tag = TAG,
    params(
        ("id" = PlanId, Path, description = "Plan"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "Repeatable"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn list_plan_versions(ctx: Ctx) -> Answer {
    ctx.require("plans:read")?;
    let id = ctx.path_id("id")?;
    answer::page(plan::list_versions(&ctx.scope, &mut *ctx.conn().await?, id, ctx.query()).await?)
}

/// Read one version of a plan, by its number or its id
#[utoipa::path(
    get, path = "/v1/plans/{id}/versions/{version}", operation_id = "get_plan_version", tag = TAG,
    params(("id" = PlanId, Path, description = "Plan"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<PlanVersion>))
)]
async fn get_plan_version(ctx: Ctx) -> Answer {
    ctx.require("plans:read")?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    answer::ok(Data(plan::get_version(&ctx.scope, &mut *ctx.conn().await?, id, version).await?))
}
