//! Prices, and Scheduling/Prices (prices.md, scheduled-changes.md).

use catalog::price::{self, CopyPriceAsDraftRequest, CreatePriceRequest, Price, PriceVersion, UpdatePriceRequest};
use catalog::version::{self, ArchiveRequest, Entity, PublishVersionRequest, VersionRow, edit};
use domain::PriceId;
use ingest::quote::{self, ComputePriceRequest, ComputePriceResponse, ResolvePriceRequest, ResolvedPrice};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Prices";
const SCHEDULING: &str = "Scheduling/Prices";

/// Routes of both tags.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_prices, create_price))
        .routes(routes!(get_price, update_price))
        .routes(routes!(archive_price))
        .routes(routes!(resolve_price))
        .routes(routes!(compute_price))
        .routes(routes!(list_price_versions))
        .routes(routes!(get_price_version, update_price_version))
        .routes(routes!(publish_price_version))
        .routes(routes!(copy_price_version_as_draft))
        .routes(routes!(get_price_timeline))
        .routes(routes!(reconfirm_price_version))
        .routes(routes!(unschedule_price_version))
        .routes(routes!(cancel_price_version))
}

/// List prices with filters and cursor pagination
#[utoipa::path(
    get, path = "/v1/prices", operation_id = "list_prices", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("product_id" = Option<String>, Query, description = "eq, ne, in"),
        ("plan_id" = Option<String>, Query, description = "eq, ne, in"),
        ("customer_id" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("currency" = Option<String>, Query, description = "eq, ne, in"),
        ("country_code" = Option<String>, Query, description = "eq, ne, in"),
        ("price_key" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("kind" = Option<String>, Query, description = "eq, ne, in"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Price>))
)]
async fn list_prices(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    answer::page(price::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Find the price that applies
#[utoipa::path(
    post, path = "/v1/prices/resolve", operation_id = "resolve_price", tag = TAG, request_body = ResolvePriceRequest,
    responses((status = 200, description = "The price that applies", body = Data<ResolvedPrice>))
)]
async fn resolve_price(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let request = ctx.body(ResolvePriceRequest::read)?;
    let engine = ctx.app.engine()?;
    answer::ok(Data(quote::resolve(&ctx.scope, &mut *ctx.conn().await?, &engine.snapshots, &request).await?))
}

/// Compute the amount of a quantity
#[utoipa::path(
    post, path = "/v1/prices/compute", operation_id = "compute_price", tag = TAG, request_body = ComputePriceRequest,
    responses((status = 200, description = "The amount and how it came about", body = Data<ComputePriceResponse>))
)]
async fn compute_price(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let request = ctx.body(ComputePriceRequest::read)?;
    let engine = ctx.app.engine()?;
    answer::ok(Data(quote::compute(&ctx.scope, &mut *ctx.conn().await?, &engine.snapshots, &request).await?))
}

/// Create a price
#[utoipa::path(
    post, path = "/v1/prices", operation_id = "create_price", tag = TAG, request_body = CreatePriceRequest,
    responses((status = 201, description = "The price", body = Data<Price>))
)]
async fn create_price(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("create_price").await?;
    let request = ctx.body(CreatePriceRequest::read)?;
    let price = price::create(&ctx.scope, write.tx(), request).await?;
    write.created(Data(price)).await
}

/// Read one price
#[utoipa::path(
    get, path = "/v1/prices/{id}", operation_id = "get_price", tag = TAG,
    params(("id" = PriceId, Path, description = "Price")),
    responses((status = 200, description = "The price", body = Data<Price>))
)]
async fn get_price(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(price::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Retire a price that no live subscription is charged by
#[utoipa::path(
    post, path = "/v1/prices/{id}/archive", operation_id = "archive_price", tag = TAG, request_body = ArchiveRequest,
    params(("id" = PriceId, Path, description = "Price")),
    responses((status = 200, description = "The price", body = Data<Price>))
)]
async fn archive_price(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("archive_price").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(ArchiveRequest::read)?;
    let price = price::archive(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(price)).await
}

/// Change a price by publishing its next version, now or from an instant ahead
#[utoipa::path(
    put, path = "/v1/prices/{id}", operation_id = "update_price", tag = TAG, request_body = UpdatePriceRequest,
    params(("id" = PriceId, Path, description = "Price")),
    responses((status = 200, description = "The price", body = Data<Price>))
)]
async fn update_price(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("update_price").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdatePriceRequest::read)?;
    let price = price::update(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(price)).await
}

/// List the versions of a price, newest first
#[utoipa::path(
    get, path = "/v1/prices/{id}/versions", operation_id = "list_price_versions", tag = TAG,
    params(
        ("id" = PriceId, Path, description = "Price"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "Repeatable"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn list_price_versions(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let id = ctx.path_id("id")?;
    answer::page(version::list_of(&ctx.scope, &mut *ctx.conn().await?, Entity::Price, id, ctx.query()).await?)
}

/// Read one version of a price, by its number or its id
#[utoipa::path(
    get, path = "/v1/prices/{id}/versions/{version}", operation_id = "get_price_version", tag = TAG,
    params(("id" = PriceId, Path, description = "Price"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<PriceVersion>))
)]
async fn get_price_version(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    answer::ok(Data(edit::get::<Price>(&ctx.scope, &mut *ctx.conn().await?, id, version).await?))
}

/// Amend a version that is not yet active
#[utoipa::path(
    put, path = "/v1/prices/{id}/versions/{version}", operation_id = "update_price_version", tag = TAG, request_body = UpdatePriceRequest,
    params(("id" = PriceId, Path, description = "Price"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<PriceVersion>))
)]
async fn update_price_version(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("update_price_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    let request = ctx.body(UpdatePriceRequest::read)?;
    let version = edit::amend::<Price>(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}

/// Publish a draft version, now or from an instant ahead
#[utoipa::path(
    post, path = "/v1/prices/{id}/versions/{vid}/publish", operation_id = "publish_price_version", tag = TAG, request_body = PublishVersionRequest,
    params(("id" = PriceId, Path, description = "Price"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<PriceVersion>))
)]
async fn publish_price_version(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("publish_price_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(PublishVersionRequest::read)?;
    let version = edit::publish::<Price>(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}

/// Copy a version into a new draft
#[utoipa::path(
    post, path = "/v1/prices/{id}/versions/{vid}/copy-as-draft", operation_id = "copy_price_version_as_draft", tag = TAG, request_body = CopyPriceAsDraftRequest,
    params(("id" = PriceId, Path, description = "Price"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 201, description = "The version", body = Data<PriceVersion>))
)]
async fn copy_price_version_as_draft(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("copy_price_version_as_draft").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(CopyPriceAsDraftRequest::read)?;
    let version = edit::copy_as_draft::<Price>(&ctx.scope, write.tx(), id, version, request.into()).await?;
    write.created(Data(version)).await
}

/// List the versions of a price by their start
#[utoipa::path(
    get, path = "/v1/prices/{id}/timeline", operation_id = "get_price_timeline", tag = SCHEDULING,
    params(
        ("id" = PriceId, Path, description = "Price"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("include" = Option<String>, Query, description = "`all` adds drafts and archived ones"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn get_price_timeline(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let id = ctx.path_id("id")?;
    answer::page(version::timeline(&ctx.scope, &mut *ctx.conn().await?, Entity::Price, id, ctx.query()).await?)
}

/// Clear the warnings of a scheduled version
#[utoipa::path(
    post, path = "/v1/prices/{id}/versions/{vid}/reconfirm", operation_id = "reconfirm_price_version", tag = SCHEDULING,
    params(("id" = PriceId, Path, description = "Price"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<PriceVersion>))
)]
async fn reconfirm_price_version(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("reconfirm_price_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::reconfirm::<Price>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}

/// Return a scheduled version to draft
#[utoipa::path(
    post, path = "/v1/prices/{id}/versions/{vid}/unschedule", operation_id = "unschedule_price_version", tag = SCHEDULING,
    params(("id" = PriceId, Path, description = "Price"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<PriceVersion>))
)]
async fn unschedule_price_version(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("unschedule_price_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::unschedule::<Price>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}

/// Archive a version before it becomes active
#[utoipa::path(
    post, path = "/v1/prices/{id}/versions/{vid}/cancel", operation_id = "cancel_price_version", tag = SCHEDULING,
    params(("id" = PriceId, Path, description = "Price"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<PriceVersion>))
)]
async fn cancel_price_version(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("cancel_price_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::cancel::<Price>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}
