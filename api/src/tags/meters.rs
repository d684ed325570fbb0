//! Meters and their breaches (meters.md, thresholds-and-alerts.md).

use catalog::breach::{self, BreachDailyCount, MeterBreach};
use catalog::meter::{self, CreateMeterRequest, Meter, MeterVersionSnapshot, UpdateMeterRequest};
use catalog::version::{self, CopyAsDraftRequest, Entity, PublishVersionRequest, VersionRow, edit};
use domain::{MeterId, SubscriptionId};
use ingest::caps::{self, SetUsageCapsRequest, UsageCaps};
use ingest::preview::{self, MeterPreview, MeterPreviewRequest};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Meters";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_meters, create_meter))
        .routes(routes!(get_meter, update_meter, archive_meter))
        .routes(routes!(preview_meter))
        .routes(routes!(list_meter_breaches))
        .routes(routes!(list_breaches_of_meter))
        .routes(routes!(list_meter_breach_daily_counts))
        .routes(routes!(get_subscription_usage_caps, set_subscription_usage_caps))
        .routes(routes!(list_meter_versions))
        .routes(routes!(get_meter_version, update_meter_version))
        .routes(routes!(get_meter_timeline))
        .routes(routes!(publish_meter_version))
        .routes(routes!(reconfirm_meter_version))
        .routes(routes!(unschedule_meter_version))
        .routes(routes!(copy_meter_version_as_draft))
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

/// Change a meter by publishing its next version, now or from an instant ahead
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
    let meter = edit::update::<Meter>(&ctx.scope, write.tx(), id, request).await?;
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

/// Evaluate a meter, or changes of it, over stored events
#[utoipa::path(
    post, path = "/v1/meters/{id}/preview", operation_id = "preview_meter", tag = TAG, request_body = MeterPreviewRequest,
    params(("id" = MeterId, Path, description = "Meter")),
    responses((status = 200, description = "What it makes of them", body = Data<MeterPreview>))
)]
async fn preview_meter(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(MeterPreviewRequest::read)?;
    let usage = &ctx.app.engine()?.usage;
    answer::ok(Data(preview::preview(&ctx.scope, &mut *ctx.conn().await?, usage, id, request).await?))
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

/// List the versions of a meter, newest first
#[utoipa::path(
    get, path = "/v1/meters/{id}/versions", operation_id = "list_meter_versions", tag = TAG,
    params(
        ("id" = MeterId, Path, description = "Meter"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "Repeatable"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn list_meter_versions(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    answer::page(version::list_of(&ctx.scope, &mut *ctx.conn().await?, Entity::Meter, id, ctx.query()).await?)
}

/// Read one version of a meter, by its number or its id
#[utoipa::path(
    get, path = "/v1/meters/{id}/versions/{version}", operation_id = "get_meter_version", tag = TAG,
    params(("id" = MeterId, Path, description = "Meter"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<MeterVersionSnapshot>))
)]
async fn get_meter_version(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    answer::ok(Data(edit::get::<Meter>(&ctx.scope, &mut *ctx.conn().await?, id, version).await?))
}

/// Amend a version that is not yet active
#[utoipa::path(
    put, path = "/v1/meters/{id}/versions/{version}", operation_id = "update_meter_version", tag = TAG, request_body = UpdateMeterRequest,
    params(("id" = MeterId, Path, description = "Meter"), ("version" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<MeterVersionSnapshot>))
)]
async fn update_meter_version(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("update_meter_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    let request = ctx.body(UpdateMeterRequest::read)?;
    let version = edit::amend::<Meter>(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}

/// List the versions of a meter by their start
#[utoipa::path(
    get, path = "/v1/meters/{id}/timeline", operation_id = "get_meter_timeline", tag = TAG,
    params(
        ("id" = MeterId, Path, description = "Meter"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("include" = Option<String>, Query, description = "`all` adds drafts and archived ones"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn get_meter_timeline(ctx: Ctx) -> Answer {
    ctx.require("meters:read")?;
    let id = ctx.path_id("id")?;
    answer::page(version::timeline(&ctx.scope, &mut *ctx.conn().await?, Entity::Meter, id, ctx.query()).await?)
}

/// Publish a draft version, now or from an instant ahead
#[utoipa::path(
    post, path = "/v1/meters/{id}/versions/{vid}/publish", operation_id = "publish_meter_version", tag = TAG, request_body = PublishVersionRequest,
    params(("id" = MeterId, Path, description = "Meter"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<MeterVersionSnapshot>))
)]
async fn publish_meter_version(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("publish_meter_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(PublishVersionRequest::read)?;
    let version = edit::publish::<Meter>(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}

/// Clear the warnings of a scheduled version
#[utoipa::path(
    post, path = "/v1/meters/{id}/versions/{vid}/reconfirm", operation_id = "reconfirm_meter_version", tag = TAG,
    params(("id" = MeterId, Path, description = "Meter"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<MeterVersionSnapshot>))
)]
async fn reconfirm_meter_version(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("reconfirm_meter_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::reconfirm::<Meter>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}

/// Return a scheduled version to draft
#[utoipa::path(
    post, path = "/v1/meters/{id}/versions/{vid}/unschedule", operation_id = "unschedule_meter_version", tag = TAG,
    params(("id" = MeterId, Path, description = "Meter"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 200, description = "The version", body = Data<MeterVersionSnapshot>))
)]
async fn unschedule_meter_version(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("unschedule_meter_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let version = edit::unschedule::<Meter>(&ctx.scope, write.tx(), id, version).await?;
    write.ok(Data(version)).await
}

/// Copy a version into a new draft
#[utoipa::path(
    post, path = "/v1/meters/{id}/versions/{vid}/copy-as-draft", operation_id = "copy_meter_version_as_draft", tag = TAG, request_body = CopyAsDraftRequest,
    params(("id" = MeterId, Path, description = "Meter"), ("vid" = String, Path, description = "Number or id")),
    responses((status = 201, description = "The version", body = Data<MeterVersionSnapshot>))
)]
async fn copy_meter_version_as_draft(ctx: Ctx) -> Answer {
    ctx.require("meters:write")?;
    let mut write = ctx.write("copy_meter_version_as_draft").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(CopyAsDraftRequest::read)?;
    let version = edit::copy_as_draft::<Meter>(&ctx.scope, write.tx(), id, version, request.into()).await?;
    write.created(Data(version)).await
}

/// Read the usage caps of a subscription
#[utoipa::path(
    get, path = "/v1/subscriptions/{id}/usage-caps", operation_id = "get_subscription_usage_caps", tag = TAG,
    params(("id" = SubscriptionId, Path, description = "Subscription")),
    responses((status = 200, description = "Its caps", body = Data<UsageCaps>))
)]
async fn get_subscription_usage_caps(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:read")?;
    answer::ok(Data(caps::get(&ctx.scope, &mut *ctx.conn().await?, ctx.path_id("id")?).await?))
}

/// Replace the usage caps of a subscription
#[utoipa::path(
    put, path = "/v1/subscriptions/{id}/usage-caps", operation_id = "set_subscription_usage_caps", tag = TAG,
    params(("id" = SubscriptionId, Path, description = "Subscription")), request_body = SetUsageCapsRequest,
    responses((status = 200, description = "Its caps", body = Data<UsageCaps>))
)]
async fn set_subscription_usage_caps(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:write")?;
    let engine = ctx.app.engine()?;
    let mut write = ctx.write("set_subscription_usage_caps").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(SetUsageCapsRequest::read)?;
    let caps = caps::set(&ctx.scope, write.tx(), &engine.snapshots, id, request).await?;
    let answer = write.ok(Data(caps)).await;
    engine.relay.nudge();
    answer
}
