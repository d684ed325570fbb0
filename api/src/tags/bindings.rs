//! ProductMeterBindings and Bindings (meter-bindings.md).

use catalog::binding::{
    self, Binding, BindingVersionSnapshot, CreateProductMeterBindingRequest, UpdateProductMeterBindingRequest,
};
use catalog::version::{self, Entity, PublishVersionRequest, VersionRow, edit};
use domain::{BindingId, ProductId};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const OF_PRODUCTS: &str = "ProductMeterBindings";
const TAG: &str = "Bindings";

/// Routes of both tags.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_product_meter_bindings, create_product_meter_binding))
        .routes(routes!(list_bindings))
        .routes(routes!(get_binding, update_binding, archive_binding))
        .routes(routes!(list_binding_versions))
        .routes(routes!(get_binding_version))
        .routes(routes!(get_binding_timeline))
        .routes(routes!(publish_binding_version))
        .routes(routes!(reconfirm_binding_version))
        .routes(routes!(unschedule_binding_version))
}

/// List the bindings of a product
#[utoipa::path(
    get, path = "/v1/products/{id}/meter-bindings", operation_id = "list_product_meter_bindings", tag = OF_PRODUCTS,
    params(
        ("id" = ProductId, Path, description = "Product"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("include" = Option<String>, Query, description = "`all` adds drafts and archived ones"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Binding>))
)]
async fn list_product_meter_bindings(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    answer::page(binding::list_of_product(&ctx.scope, &mut *ctx.conn().await?, id, ctx.query()).await?)
}

/// Bind a meter to a product
#[utoipa::path(
    post, path = "/v1/products/{id}/meter-bindings", operation_id = "create_product_meter_binding", tag = OF_PRODUCTS,
    request_body = CreateProductMeterBindingRequest,
    params(("id" = ProductId, Path, description = "Product")),
    responses((status = 201, description = "The binding", body = Data<Binding>))
)]
async fn create_product_meter_binding(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("create_product_meter_binding").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(CreateProductMeterBindingRequest::read)?;
    let binding = binding::create(&ctx.scope, write.tx(), id, request).await?;
    write.created(Data(binding)).await
}

/// List all bindings
#[utoipa::path(
    get, path = "/v1/bindings", operation_id = "list_bindings", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("product_id" = Option<String>, Query, description = "eq, ne, in"),
        ("meter_id" = Option<String>, Query, description = "eq, ne, in"),
        ("role" = Option<String>, Query, description = "eq, ne, in"),
        ("metric_key" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Binding>))
)]
async fn list_bindings(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    answer::page(binding::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Read one binding
#[utoipa::path(
    get, path = "/v1/bindings/{id}", operation_id = "get_binding", tag = TAG,
    params(("id" = BindingId, Path, description = "Binding")),
    responses((status = 200, description = "The binding", body = Data<Binding>))
)]
async fn get_binding(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(binding::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change a binding by publishing its next version, now or from an instant ahead
#[utoipa::path(
    put, path = "/v1/bindings/{id}", operation_id = "update_binding", tag = TAG,
    request_body = UpdateProductMeterBindingRequest,
    params(("id" = BindingId, Path, description = "Binding")),
    responses((status = 200, description = "The binding", body = Data<Binding>))
)]
async fn update_binding(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("update_binding").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateProductMeterBindingRequest::read)?;
    let binding = edit::update::<Binding>(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(binding)).await
}

/// Archive a binding, now or from an instant ahead
#[utoipa::path(
    delete, path = "/v1/bindings/{id}", operation_id = "archive_binding", tag = TAG,
    params(
        ("id" = BindingId, Path, description = "Binding"),
        ("effective_at" = Option<String>, Query, description = "Default: now"),
    ),
    responses((status = 204, description = "Archived"))
)]
async fn archive_binding(ctx: Ctx) -> Answer {
    ctx.require("meters:delete")?;
    let mut write = ctx.write("archive_binding").await?;
    let id = ctx.path_id("id")?;
    binding::archive(&ctx.scope, write.tx(), id, ctx.query()).await?;
    write.no_content().await
}

/// List the versions of a binding, newest first
#[utoipa::path(
    get, path = "/v1/bindings/{id}/versions", operation_id = "list_binding_versions", tag = TAG,
    params(
        ("id" = BindingId, Path, description = "Binding"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "Repeatable"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn list_binding_versions(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    answer::page(version::list_of(&ctx.scope, &mut *ctx.conn().await?, Entity::Binding, id, ctx.query()).await?)
}

/// Read one version of a binding, by its number or its id
#[utoipa::path(
    get, path = "/v1/bindings/{id}/versions/{version}", operation_id = "get_binding_version", tag = TAG,
    params(("id" = BindingId, Path, description = "Binding"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<BindingVersionSnapshot>))
)]
async fn get_binding_version(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    answer::ok(Data(edit::get::<Binding>(&ctx.scope, &mut *ctx.conn().await?, id, version).await?))
}

/// List the versions of a binding by their start
#[utoipa::path(
    get, path = "/v1/bindings/{id}/timeline", operation_id = "get_binding_timeline", tag = TAG,
    params(
        ("id" = BindingId, Path, description = "Binding"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("include" = Option<String>, Query, description = "`all` adds drafts and archived ones"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn get_binding_timeline(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    answer::page(version::timeline(&ctx.scope, &mut *ctx.conn().await?, Entity::Binding, id, ctx.query()).await?)
}

/// Publish a draft version, now or from an instant ahead
#[utoipa::path(
    post, path = "/v1/bindings/{id}/versions/{vid}/publish", operation_id = "publish_binding_version", tag = TAG, request_body = PublishVersionRequest,
    params(("id" = BindingId, Path, description = "Binding"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<BindingVersionSnapshot>))
)]
async fn publish_binding_version(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("publish_binding_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(PublishVersionRequest::read)?;
    let version = edit::publish::<Binding>(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}

/// Clear the warnings of a scheduled version
#[utoipa::path(
    post, path = "/v1/bindings/{id}/versions/{vid}/reconfirm", operation_id = "reconfirm_binding_version", tag = TAG,
    params(("id" = BindingId, Path, description = "Binding"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<BindingVersionSnapshot>))
)]
async fn reconfirm_binding_version(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("reconfirm_binding_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::reconfirm::<Binding>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}

/// Return a scheduled version to draft
#[utoipa::path(
    post, path = "/v1/bindings/{id}/versions/{vid}/unschedule", operation_id = "unschedule_binding_version", tag = TAG,
    params(("id" = BindingId, Path, description = "Binding"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<BindingVersionSnapshot>))
)]
async fn unschedule_binding_version(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("unschedule_binding_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::unschedule::<Binding>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}
