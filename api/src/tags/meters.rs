//! Meters and their breaches (meters.md, thresholds-and-alerts.md).

use catalog::breach::{self, BreachDailyCount, MeterBreach};
use catalog::meter::{self, CreateMeterRequest, Meter, UpdateMeterRequest};
use domain::MeterId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Meters";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_meters, create_meter))
        .routes(routes!(get_meter, update_meter, archive_meter))
        .routes(routes!(list_meter_breaches))
        .routes(routes!(list_breaches_of_meter))
        .routes(routes!(list_meter_breach_daily_counts))
}

/// List meters with filters and cursor pagination
#[utoipa::path(
    get, path = "/v1/meters", operation_id = "list_meters", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("key" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("metric_key" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("function" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Meter>))
)]
async fn list_meters(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    answer::page(meter::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Create a meter that any product can use
#[utoipa::path(
    post, path = "/v1/meters", operation_id = "create_meter", tag = TAG, request_body = CreateMeterRequest,
    responses((status = 201, description = "The meter", body = Data<Meter>))
)]
async fn create_meter(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("create_meter").await?;
    let request = ctx.body(CreateMeterRequest::read)?;
    let meter = meter::create(&ctx.scope, write.tx(), request).await?;
    write.created(Data(meter)).await
}

/// Read one meter
#[utoipa::path(
    get, path = "/v1/meters/{id}", operation_id = "get_meter", tag = TAG,
    params(("id" = MeterId, Path, description = "Meter")),
    responses((status = 200, description = "The meter", body = Data<Meter>))
)]
async fn get_meter(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(meter::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change a meter by publishing its next version
#[utoipa::path(
    put, path = "/v1/meters/{id}", operation_id = "update_meter", tag = TAG, request_body = UpdateMeterRequest,
    params(("id" = MeterId, Path, description = "Meter")),
    responses((status = 200, description = "The meter", body = Data<Meter>))
)]
async fn update_meter(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("update_meter").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateMeterRequest::read)?;
    let meter = meter::update(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(meter)).await
}

/// Withdraw a meter that no live binding uses
#[utoipa::path(
    delete, path = "/v1/meters/{id}", operation_id = "archive_meter", tag = TAG,
    params(("id" = MeterId, Path, description = "Meter")),
    responses((status = 204, description = "Withdrawn"))
)]
async fn archive_meter(ctx: Ctx) -> Answer {
    ctx.require("meters:delete")?;
    let mut write = ctx.write("archive_meter").await?;
    let id = ctx.path_id("id")?;
    meter::archive(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}

/// List threshold breaches of every meter, newest first
#[utoipa::path(
    get, path = "/v1/meter-breaches", operation_id = "list_meter_breaches", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("meter_id" = Option<String>, Query, description = "eq, ne, in"),
        ("meter_key" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("product_id" = Option<String>, Query, description = "eq, ne, in"),
        ("subscription_id" = Option<String>, Query, description = "eq, ne, in"),
        ("threshold_name" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("occurred_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = PageOf<MeterBreach>))
)]
async fn list_meter_breaches(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    answer::page(breach::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// List threshold breaches of one meter, newest first
#[utoipa::path(
    get, path = "/v1/meters/{id}/breaches", operation_id = "list_breaches_of_meter", tag = TAG,
    params(
        ("id" = MeterId, Path, description = "Meter"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("subscription_id" = Option<String>, Query, description = "eq, ne, in"),
        ("occurred_after" = Option<String>, Query, description = "Inclusive"),
        ("occurred_before" = Option<String>, Query, description = "Exclusive"),
    ),
    responses((status = 200, description = "One page", body = PageOf<MeterBreach>))
)]
async fn list_breaches_of_meter(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    answer::page(breach::list_of_meter(&ctx.scope, &mut *ctx.conn().await?, id, ctx.query()).await?)
}

/// Count threshold breaches of one meter per UTC day
#[utoipa::path(
    get, path = "/v1/meters/{id}/breaches/daily", operation_id = "list_meter_breach_daily_counts", tag = TAG,
    params(
        ("id" = MeterId, Path, description = "Meter"),
        ("days" = Option<u32>, Query, description = "1 to 365, default 30"),
    ),
    responses((status = 200, description = "Every day, those without a breach included", body = PageOf<BreachDailyCount>))
)]
async fn list_meter_breach_daily_counts(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    answer::page(breach::daily(&ctx.scope, &mut *ctx.conn().await?, id, ctx.query()).await?)
}
