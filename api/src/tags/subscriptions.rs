//! Subscriptions (subscriptions.md, billing-cycles.md).

use billing::subscription::{
    self, BillingPeriod, CancelSubscriptionRequest, CreateSubscriptionRequest, PauseSubscriptionRequest,
    ResumeSubscriptionRequest, SubscriptionDTO,
};
use domain::SubscriptionId;
use ingest::allowances::{AllowanceStateResponse, allowance_state};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::usage::read_at;
use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Subscriptions";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_subscriptions, create_subscription))
        .routes(routes!(get_subscription, delete_subscription))
        .routes(routes!(cancel_subscription))
        .routes(routes!(pause_subscription))
        .routes(routes!(resume_subscription))
        .routes(routes!(reactivate_subscription))
        .routes(routes!(list_subscription_billing_periods))
        .routes(routes!(get_subscription_allowances))
}

/// List subscriptions with their items, newest first
#[utoipa::path(
    get, path = "/v1/subscriptions", operation_id = "list_subscriptions", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("sort" = Option<String>, Query, description = "created_at or updated_at, after `-` descending"),
        ("id" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("customer_id" = Option<String>, Query, description = "eq, ne, in"),
        ("plan_id" = Option<String>, Query, description = "eq, ne, in"),
        ("currency" = Option<String>, Query, description = "eq, ne, in"),
        ("billing_interval_unit" = Option<String>, Query, description = "eq, ne, in"),
        ("dunning_stage" = Option<String>, Query, description = "eq, ne, in"),
        ("current_period_end" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("next_billing_date" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("created_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("updated_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("include" = Option<String>, Query, description = "drift: compare the pinned with the present versions"),
    ),
    responses((status = 200, description = "One page", body = PageOf<SubscriptionDTO>))
)]
async fn list_subscriptions(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:read")?;
    let (query, with_drift) = subscription::read::query(ctx.query())?;
    let mut conn = ctx.conn().await?;
    let page = subscription::read::list(&ctx.scope, &mut conn, &query).await?;
    if with_drift {
        return answer::page(subscription::drift::add_to_page(&ctx.scope, &mut conn, page).await?);
    }
    answer::page(page)
}

/// Create a subscription with its items, its first phase and its first period
#[utoipa::path(
    post, path = "/v1/subscriptions", operation_id = "create_subscription", tag = TAG,
    request_body = CreateSubscriptionRequest,
    responses((status = 201, description = "The subscription", body = Data<SubscriptionDTO>))
)]
async fn create_subscription(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:write")?;
    let mut write = ctx.write("create_subscription").await?;
    let request = ctx.body(CreateSubscriptionRequest::read)?;
    let engine = ctx.app.engine()?;
    let partitions = engine.door.partitions();
    let created = engine.billing.create_subscription(&ctx.scope, write.tx(), &request, partitions).await?;
    write.created(Data(created)).await
}

/// Read one subscription with its items
#[utoipa::path(
    get, path = "/v1/subscriptions/{id}", operation_id = "get_subscription", tag = TAG,
    params(
        ("id" = SubscriptionId, Path, description = "Subscription"),
        ("include" = Option<String>, Query, description = "drift: compare the pinned with the present versions"),
    ),
    responses((status = 200, description = "The subscription", body = Data<SubscriptionDTO>))
)]
async fn get_subscription(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:read")?;
    let with_drift = subscription::read::include_drift(ctx.query())?;
    let mut conn = ctx.conn().await?;
    let found = subscription::read::get(&ctx.scope, &mut conn, ctx.path_id("id")?).await?;
    if with_drift {
        return answer::ok(Data(subscription::drift::add(&ctx.scope, &mut conn, found).await?));
    }
    answer::ok(Data(found))
}

/// Delete softly what has not been charged, or is closed
#[utoipa::path(
    delete, path = "/v1/subscriptions/{id}", operation_id = "delete_subscription", tag = TAG,
    params(("id" = SubscriptionId, Path, description = "Subscription")),
    responses((status = 204, description = "Deleted"))
)]
async fn delete_subscription(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:delete")?;
    let mut write = ctx.write("delete_subscription").await?;
    let id = ctx.path_id("id")?;
    ctx.app.engine()?.billing.delete_subscription(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}

/// Cancel now or at the end of the period
#[utoipa::path(
    post, path = "/v1/subscriptions/{id}/cancel", operation_id = "cancel_subscription", tag = TAG,
    request_body = CancelSubscriptionRequest,
    params(("id" = SubscriptionId, Path, description = "Subscription")),
    responses((status = 200, description = "The subscription", body = Data<SubscriptionDTO>))
)]
async fn cancel_subscription(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:write")?;
    let mut write = ctx.write("cancel_subscription").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(CancelSubscriptionRequest::read)?;
    let cancelled = ctx.app.engine()?.billing.cancel_subscription(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(cancelled)).await
}

/// Pause billing: boundaries that are passed make no invoice
#[utoipa::path(
    post, path = "/v1/subscriptions/{id}/pause", operation_id = "pause_subscription", tag = TAG,
    request_body = PauseSubscriptionRequest,
    params(("id" = SubscriptionId, Path, description = "Subscription")),
    responses((status = 200, description = "The subscription", body = Data<SubscriptionDTO>))
)]
async fn pause_subscription(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:write")?;
    let mut write = ctx.write("pause_subscription").await?;
    let id = ctx.path_id("id")?;
    ctx.body_or_empty(PauseSubscriptionRequest::read)?;
    let paused = ctx.app.engine()?.billing.pause_subscription(&ctx.scope, write.tx(), id).await?;
    write.ok(Data(paused)).await
}

/// Resume a paused subscription
#[utoipa::path(
    post, path = "/v1/subscriptions/{id}/resume", operation_id = "resume_subscription", tag = TAG,
    request_body = ResumeSubscriptionRequest,
    params(("id" = SubscriptionId, Path, description = "Subscription")),
    responses((status = 200, description = "The subscription", body = Data<SubscriptionDTO>))
)]
async fn resume_subscription(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:write")?;
    let mut write = ctx.write("resume_subscription").await?;
    let id = ctx.path_id("id")?;
    ctx.body_or_empty(ResumeSubscriptionRequest::read)?;
    let resumed = ctx.app.engine()?.billing.resume_subscription(&ctx.scope, write.tx(), id).await?;
    write.ok(Data(resumed)).await
}

/// Withdraw a cancellation that waits for the period's end
#[utoipa::path(
    post, path = "/v1/subscriptions/{id}/reactivate", operation_id = "reactivate_subscription", tag = TAG,
    params(("id" = SubscriptionId, Path, description = "Subscription")),
    responses((status = 200, description = "The subscription", body = Data<SubscriptionDTO>))
)]
async fn reactivate_subscription(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:write")?;
    let mut write = ctx.write("reactivate_subscription").await?;
    let id = ctx.path_id("id")?;
    let found = ctx.app.engine()?.billing.reactivate_subscription(&ctx.scope, write.tx(), id).await?;
    write.ok(Data(found)).await
}

/// List past, current and next billing periods, newest first
#[utoipa::path(
    get, path = "/v1/subscriptions/{id}/billing-periods", operation_id = "list_subscription_billing_periods", tag = TAG,
    params(
        ("id" = SubscriptionId, Path, description = "Subscription"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
    ),
    responses((status = 200, description = "One page", body = PageOf<BillingPeriod>))
)]
async fn list_subscription_billing_periods(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:read")?;
    let mut conn = ctx.conn().await?;
    answer::page(subscription::periods::list(&ctx.scope, &mut conn, ctx.path_id("id")?, ctx.query()).await?)
}

/// State of every allowance
#[utoipa::path(
    get, path = "/v1/subscriptions/{id}/allowances", operation_id = "get_subscription_allowances", tag = TAG,
    params(
        ("id" = SubscriptionId, Path, description = "Subscription"),
        ("at" = Option<DateTime<Utc>>, Query, description = "Shows the period that contains it; default now"),
    ),
    responses((status = 200, description = "The allowances", body = Data<AllowanceStateResponse>))
)]
async fn get_subscription_allowances(ctx: Ctx) -> Answer {
    ctx.require("subscriptions:read")?;
    let id = ctx.path_id("id")?;
    let at = read_at(ctx.query())?;
    let snapshots = &ctx.app.engine()?.snapshots;
    answer::ok(Data(allowance_state(&ctx.app.store, snapshots, &ctx.scope, id, at).await?))
}
