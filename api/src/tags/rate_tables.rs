//! Rate tables (rate-tables.md).

use catalog::rate_table::{
    self, CreateRateTableRequest, CreateVersionRequest, CreateVersionWire, RateTable, RateTableVersion,
    UpdateRateTableRequest,
};
use catalog::version::{self, ArchiveRequest, CopyAsDraftRequest, Entity, PublishVersionRequest, VersionRow};
use domain::RateTableId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "RateTables";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_rate_tables, create_rate_table))
        .routes(routes!(get_rate_table, update_rate_table))
        .routes(routes!(archive_rate_table))
        .routes(routes!(list_rate_table_versions, create_rate_table_version))
        .routes(routes!(get_rate_table_version, update_rate_table_version))
        .routes(routes!(publish_rate_table_version))
        .routes(routes!(unschedule_rate_table_version))
        .routes(routes!(cancel_rate_table_version))
        .routes(routes!(copy_rate_table_version_as_draft))
}

/// List rate tables with filters and cursor pagination
#[utoipa::path(
    get, path = "/v1/rate-tables", operation_id = "list_rate_tables", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("table_type" = Option<String>, Query, description = "eq, ne, in"),
        ("lifecycle_status" = Option<String>, Query, description = "eq, ne, in"),
        ("slug" = Option<String>, Query, description = "eq, ne, in, contains"),
    ),
    responses((status = 200, description = "One page", body = PageOf<RateTable>))
)]
async fn list_rate_tables(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:read")?;
    answer::page(rate_table::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Create a rate table; its entries come with its versions
#[utoipa::path(
    post, path = "/v1/rate-tables", operation_id = "create_rate_table", tag = TAG, request_body = CreateRateTableRequest,
    responses((status = 201, description = "The table", body = Data<RateTable>))
)]
async fn create_rate_table(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:write")?;
    let mut write = ctx.write("create_rate_table").await?;
    let request = ctx.body(CreateRateTableRequest::read)?;
    let table = rate_table::create(&ctx.scope, write.tx(), request).await?;
    write.created(Data(table)).await
}

/// Read one rate table
#[utoipa::path(
    get, path = "/v1/rate-tables/{id}", operation_id = "get_rate_table", tag = TAG,
    params(("id" = RateTableId, Path, description = "Table")),
    responses((status = 200, description = "The table", body = Data<RateTable>))
)]
async fn get_rate_table(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(rate_table::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change a rate table; the next version keeps the entries
#[utoipa::path(
    put, path = "/v1/rate-tables/{id}", operation_id = "update_rate_table", tag = TAG,
    request_body = UpdateRateTableRequest, params(("id" = RateTableId, Path, description = "Table")),
    responses((status = 200, description = "The table", body = Data<RateTable>))
)]
async fn update_rate_table(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:write")?;
    let mut write = ctx.write("update_rate_table").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateRateTableRequest::read)?;
    let table = rate_table::update(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(table)).await
}

/// Retire a rate table that no active expression reads
#[utoipa::path(
    post, path = "/v1/rate-tables/{id}/archive", operation_id = "archive_rate_table", tag = TAG,
    request_body = ArchiveRequest, params(("id" = RateTableId, Path, description = "Table")),
    responses((status = 200, description = "The table", body = Data<RateTable>))
)]
async fn archive_rate_table(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:write")?;
    let mut write = ctx.write("archive_rate_table").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(ArchiveRequest::read)?;
    let table = rate_table::archive(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(table)).await
}

/// List the versions of a rate table, newest first
#[utoipa::path(
    get, path = "/v1/rate-tables/{id}/versions", operation_id = "list_rate_table_versions", tag = TAG,
    params(
        ("id" = RateTableId, Path, description = "Table"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "Repeatable"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn list_rate_table_versions(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:read")?;
    let id = ctx.path_id("id")?;
    let (conn, entity) = (&mut *ctx.conn().await?, Entity::RateTable);
    answer::page(version::list_of(&ctx.scope, conn, entity, id, ctx.query()).await?)
}

/// Make a version with its entries
#[utoipa::path(
    post, path = "/v1/rate-tables/{id}/versions", operation_id = "create_rate_table_version", tag = TAG,
    request_body = CreateVersionWire, params(("id" = RateTableId, Path, description = "Table")),
    responses((status = 201, description = "The version", body = Data<RateTableVersion>))
)]
async fn create_rate_table_version(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:write")?;
    let mut write = ctx.write("create_rate_table_version").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(CreateVersionRequest::read)?;
    let version = rate_table::create_version(&ctx.scope, write.tx(), id, request).await?;
    write.created(Data(version)).await
}

/// Read one version of a rate table with its entries, by its number or its id
#[utoipa::path(
    get, path = "/v1/rate-tables/{id}/versions/{version}", operation_id = "get_rate_table_version", tag = TAG,
    params(("id" = RateTableId, Path, description = "Table"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<RateTableVersion>))
)]
async fn get_rate_table_version(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:read")?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    answer::ok(Data(rate_table::get_version(&ctx.scope, &mut *ctx.conn().await?, id, version).await?))
}

/// Replace the entries of a draft or scheduled version
#[utoipa::path(
    put, path = "/v1/rate-tables/{id}/versions/{version}", operation_id = "update_rate_table_version", tag = TAG,
    request_body = CreateVersionWire,
    params(("id" = RateTableId, Path, description = "Table"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<RateTableVersion>))
)]
async fn update_rate_table_version(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:write")?;
    let mut write = ctx.write("update_rate_table_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    let request = ctx.body(CreateVersionRequest::read)?;
    let version = rate_table::amend_version(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}

/// Publish a draft version
#[utoipa::path(
    post, path = "/v1/rate-tables/{id}/versions/{vid}/publish", operation_id = "publish_rate_table_version", tag = TAG,
    request_body = PublishVersionRequest,
    params(("id" = RateTableId, Path, description = "Table"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<RateTableVersion>))
)]
async fn publish_rate_table_version(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:write")?;
    let mut write = ctx.write("publish_rate_table_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(PublishVersionRequest::read)?;
    let version = rate_table::publish_version(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}

/// Turn a scheduled version back into a draft
#[utoipa::path(
    post, path = "/v1/rate-tables/{id}/versions/{vid}/unschedule", operation_id = "unschedule_rate_table_version", tag = TAG,
    params(("id" = RateTableId, Path, description = "Table"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<RateTableVersion>))
)]
async fn unschedule_rate_table_version(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:write")?;
    let mut write = ctx.write("unschedule_rate_table_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = rate_table::unschedule_version(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}

/// Withdraw a version before it takes effect
#[utoipa::path(
    post, path = "/v1/rate-tables/{id}/versions/{vid}/cancel", operation_id = "cancel_rate_table_version", tag = TAG,
    params(("id" = RateTableId, Path, description = "Table"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<RateTableVersion>))
)]
async fn cancel_rate_table_version(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:write")?;
    let mut write = ctx.write("cancel_rate_table_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = rate_table::cancel_version(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}

/// Make a draft with the entries of a version
#[utoipa::path(
    post, path = "/v1/rate-tables/{id}/versions/{vid}/copy-as-draft", operation_id = "copy_rate_table_version_as_draft", tag = TAG,
    request_body = CopyAsDraftRequest,
    params(("id" = RateTableId, Path, description = "Table"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 201, description = "The version", body = Data<RateTableVersion>))
)]
async fn copy_rate_table_version_as_draft(ctx: Ctx) -> Answer {
    ctx.require("rate_tables:write")?;
    let mut write = ctx.write("copy_rate_table_version_as_draft").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(CopyAsDraftRequest::read)?;
    let version = rate_table::copy_version_as_draft(&ctx.scope, write.tx(), id, version, request).await?;
    write.created(Data(version)).await
}
