//! Prices (prices.md).

use catalog::price::{self, CreatePriceRequest, Price};
use catalog::version::ArchiveRequest;
use domain::PriceId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Prices";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_prices, create_price))
        .routes(routes!(get_price))
        .routes(routes!(archive_price))
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
