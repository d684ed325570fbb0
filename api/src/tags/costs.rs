//! Costs, and Scheduling/Costs (costs.md, scheduled-changes.md).

use catalog::cost::{self, CopyCostRequest, Cost, CostVersion, CreateCostRequest, UpdateCostRequest};
use catalog::version::{self, ArchiveRequest, CopyAsDraftRequest, Entity, PublishVersionRequest, VersionRow, edit};
use domain::ProductId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Costs";
const SCHEDULING: &str = "Scheduling/Costs";

/// Routes of both tags.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_costs, create_cost))
        .routes(routes!(list_product_costs, create_product_cost))
        .routes(routes!(get_cost, update_cost))
        .routes(routes!(archive_cost))
        .routes(routes!(copy_cost))
        .routes(routes!(list_cost_versions))
        .routes(routes!(get_cost_version, update_cost_version))
        .routes(routes!(publish_cost_version))
        .routes(routes!(copy_cost_version_as_draft))
        .routes(routes!(get_cost_timeline))
        .routes(routes!(reconfirm_cost_version))
        .routes(routes!(unschedule_cost_version))
        .routes(routes!(cancel_cost_version))
}

/// List the active costs of the organization
#[utoipa::path(
    get, path = "/v1/costs", operation_id = "list_costs", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("scope" = Option<String>, Query, description = "eq, ne, in"),
        ("product_id" = Option<String>, Query, description = "eq, ne, in"),
        ("key" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("status" = Option<String>, Query, description = "eq, ne, in; default: active"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Cost>))
)]
async fn list_costs(ctx: Ctx) -> Answer {
    ctx.require("costs:read")?;
    answer::page(cost::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Create a cost of the organization
#[utoipa::path(
    post, path = "/v1/costs", operation_id = "create_cost", tag = TAG, request_body = CreateCostRequest,
    responses((status = 201, description = "The cost", body = Data<Cost>))
)]
async fn create_cost(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("create_cost").await?;
    let request = ctx.body(CreateCostRequest::read)?;
    let cost = cost::create(&ctx.scope, write.tx(), request).await?;
    write.created(Data(cost)).await
}

/// List the costs of a product
#[utoipa::path(
    get, path = "/v1/products/{productId}/costs", operation_id = "list_product_costs", tag = TAG,
    params(
        ("productId" = ProductId, Path, description = "Product"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("scope" = Option<String>, Query, description = "eq, ne, in"),
        ("key" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("status" = Option<String>, Query, description = "eq, ne, in; default: active"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Cost>))
)]
async fn list_product_costs(ctx: Ctx) -> Answer {
    ctx.require("costs:read")?;
    let product = ctx.path_id("productId")?;
    answer::page(cost::list_of_product(&ctx.scope, &mut *ctx.conn().await?, product, ctx.query()).await?)
}

/// Create a cost of a product
#[utoipa::path(
    post, path = "/v1/products/{productId}/costs", operation_id = "create_product_cost", tag = TAG,
    request_body = CreateCostRequest,
    params(("productId" = ProductId, Path, description = "Product")),
    responses((status = 201, description = "The cost", body = Data<Cost>))
)]
async fn create_product_cost(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("create_product_cost").await?;
    let product = ctx.path_id("productId")?;
    let request = ctx.body(CreateCostRequest::read)?;
    let cost = cost::create_of_product(&ctx.scope, write.tx(), product, request).await?;
    write.created(Data(cost)).await
}

/// Read one cost
#[utoipa::path(
    get, path = "/v1/costs/{id}", operation_id = "get_cost", tag = TAG,
    params(("id" = Uuid, Path, description = "Cost")),
    responses((status = 200, description = "The cost", body = Data<Cost>))
)]
async fn get_cost(ctx: Ctx) -> Answer {
    ctx.require("costs:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(cost::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change a cost by publishing its next version, now or from an instant ahead
#[utoipa::path(
    put, path = "/v1/costs/{id}", operation_id = "update_cost", tag = TAG, request_body = UpdateCostRequest,
    params(("id" = Uuid, Path, description = "Cost")),
    responses((status = 200, description = "The cost", body = Data<Cost>))
)]
async fn update_cost(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("update_cost").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateCostRequest::read)?;
    let cost = edit::update::<Cost>(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(cost)).await
}

/// Retire a cost
#[utoipa::path(
    post, path = "/v1/costs/{id}/archive", operation_id = "archive_cost", tag = TAG, request_body = ArchiveRequest,
    params(("id" = Uuid, Path, description = "Cost")),
    responses((status = 200, description = "The cost", body = Data<Cost>))
)]
async fn archive_cost(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("archive_cost").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(ArchiveRequest::read)?;
    let cost = cost::archive(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(cost)).await
}

/// Make a new cost from this one
#[utoipa::path(
    post, path = "/v1/costs/{id}/copy", operation_id = "copy_cost", tag = TAG, request_body = CopyCostRequest,
    params(("id" = Uuid, Path, description = "Cost")),
    responses((status = 201, description = "The copy", body = Data<Cost>))
)]
async fn copy_cost(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("copy_cost").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(CopyCostRequest::read)?;
    let cost = cost::copy(&ctx.scope, write.tx(), id, request).await?;
    write.created(Data(cost)).await
}

/// List the versions of a cost, newest first
#[utoipa::path(
    get, path = "/v1/costs/{id}/versions", operation_id = "list_cost_versions", tag = TAG,
    params(
        ("id" = Uuid, Path, description = "Cost"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "Repeatable"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn list_cost_versions(ctx: Ctx) -> Answer {
    ctx.require("costs:read")?;
    let id = ctx.path_id("id")?;
    answer::page(version::list_of(&ctx.scope, &mut *ctx.conn().await?, Entity::Cost, id, ctx.query()).await?)
}

/// Read one version of a cost, by its number or its id
#[utoipa::path(
    get, path = "/v1/costs/{id}/versions/{version}", operation_id = "get_cost_version", tag = TAG,
    params(("id" = Uuid, Path, description = "Cost"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<CostVersion>))
)]
async fn get_cost_version(ctx: Ctx) -> Answer {
    ctx.require("costs:read")?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    answer::ok(Data(edit::get::<Cost>(&ctx.scope, &mut *ctx.conn().await?, id, version).await?))
}

/// Amend a version that is not yet active
#[utoipa::path(
    put, path = "/v1/costs/{id}/versions/{version}", operation_id = "update_cost_version", tag = TAG, request_body = UpdateCostRequest,
    params(("id" = Uuid, Path, description = "Cost"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<CostVersion>))
)]
async fn update_cost_version(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("update_cost_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    let request = ctx.body(UpdateCostRequest::read)?;
    let version = edit::amend::<Cost>(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}

/// Publish a draft version, now or from an instant ahead
#[utoipa::path(
    post, path = "/v1/costs/{id}/versions/{vid}/publish", operation_id = "publish_cost_version", tag = TAG, request_body = PublishVersionRequest,
    params(("id" = Uuid, Path, description = "Cost"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<CostVersion>))
)]
async fn publish_cost_version(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("publish_cost_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(PublishVersionRequest::read)?;
    let version = edit::publish::<Cost>(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}

/// Copy a version into a new draft
#[utoipa::path(
    post, path = "/v1/costs/{id}/versions/{vid}/copy-as-draft", operation_id = "copy_cost_version_as_draft", tag = TAG, request_body = CopyAsDraftRequest,
    params(("id" = Uuid, Path, description = "Cost"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 201, description = "The version", body = Data<CostVersion>))
)]
async fn copy_cost_version_as_draft(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("copy_cost_version_as_draft").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(CopyAsDraftRequest::read)?;
    let version = edit::copy_as_draft::<Cost>(&ctx.scope, write.tx(), id, version, request.into()).await?;
    write.created(Data(version)).await
}

/// List the versions of a cost by their start
#[utoipa::path(
    get, path = "/v1/costs/{id}/timeline", operation_id = "get_cost_timeline", tag = SCHEDULING,
    params(
        ("id" = Uuid, Path, description = "Cost"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("include" = Option<String>, Query, description = "`all` adds drafts and archived ones"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn get_cost_timeline(ctx: Ctx) -> Answer {
    ctx.require("costs:read")?;
    let id = ctx.path_id("id")?;
    answer::page(version::timeline(&ctx.scope, &mut *ctx.conn().await?, Entity::Cost, id, ctx.query()).await?)
}

/// Clear the warnings of a scheduled version
#[utoipa::path(
    post, path = "/v1/costs/{id}/versions/{vid}/reconfirm", operation_id = "reconfirm_cost_version", tag = SCHEDULING,
    params(("id" = Uuid, Path, description = "Cost"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<CostVersion>))
)]
async fn reconfirm_cost_version(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("reconfirm_cost_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::reconfirm::<Cost>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}

/// Return a scheduled version to draft
#[utoipa::path(
    post, path = "/v1/costs/{id}/versions/{vid}/unschedule", operation_id = "unschedule_cost_version", tag = SCHEDULING,
    params(("id" = Uuid, Path, description = "Cost"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<CostVersion>))
)]
async fn unschedule_cost_version(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("unschedule_cost_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::unschedule::<Cost>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}

/// Archive a version before it becomes active
#[utoipa::path(
    post, path = "/v1/costs/{id}/versions/{vid}/cancel", operation_id = "cancel_cost_version", tag = SCHEDULING,
    params(("id" = Uuid, Path, description = "Cost"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<CostVersion>))
)]
async fn cancel_cost_version(ctx: Ctx) -> Answer {
    ctx.require("costs:write")?;
    let mut write = ctx.write("cancel_cost_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::cancel::<Cost>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}
