//! Products (products.md).

use catalog::product::{self, CreateProductRequest, Product, UpdateProductRequest};
use catalog::version::{ArchiveRequest, PublishVersionRequest};
use domain::ProductId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Products";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_products, create_product))
        .routes(routes!(get_product, update_product, delete_product))
        .routes(routes!(publish_product))
        .routes(routes!(deprecate_product))
        .routes(routes!(archive_product))
}

/// List products with filters and cursor pagination
#[utoipa::path(
    get, path = "/v1/products", operation_id = "list_products", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("type" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("invoiceable_standalone" = Option<bool>, Query, description = "eq, ne"),
        ("external_id" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("name" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("pricing_model" = Option<String>, Query, description = "eq, ne, in"),
        ("tax_category" = Option<String>, Query, description = "eq, ne, in"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Product>))
)]
async fn list_products(ctx: Ctx) -> Answer {
    ctx.require("products:read")?;
    answer::page(product::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Create a product
#[utoipa::path(
    post, path = "/v1/products", operation_id = "create_product", tag = TAG, request_body = CreateProductRequest,
    responses((status = 201, description = "The product", body = Data<Product>))
)]
async fn create_product(ctx: Ctx) -> Answer {
    ctx.require("products:write")?;
    let mut write = ctx.write("create_product").await?;
    let request = ctx.body(CreateProductRequest::read)?;
    let product = product::create(&ctx.scope, write.tx(), request).await?;
    write.created(Data(product)).await
}

/// Read one product with its costs
#[utoipa::path(
    get, path = "/v1/products/{id}", operation_id = "get_product", tag = TAG,
    params(("id" = ProductId, Path, description = "Product")),
    responses((status = 200, description = "The product", body = Data<Product>))
)]
async fn get_product(ctx: Ctx) -> Answer {
    ctx.require("products:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(product::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change a product; a published one gets its next version
#[utoipa::path(
    put, path = "/v1/products/{id}", operation_id = "update_product", tag = TAG, request_body = UpdateProductRequest,
    params(("id" = ProductId, Path, description = "Product")),
    responses((status = 200, description = "The product", body = Data<Product>))
)]
async fn update_product(ctx: Ctx) -> Answer {
    ctx.require("products:write")?;
    let mut write = ctx.write("update_product").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateProductRequest::read)?;
    let product = product::update(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(product)).await
}

/// Delete a product that nothing refers to
#[utoipa::path(
    delete, path = "/v1/products/{id}", operation_id = "delete_product", tag = TAG,
    params(("id" = ProductId, Path, description = "Product")),
    responses((status = 204, description = "Deleted"))
)]
async fn delete_product(ctx: Ctx) -> Answer {
    ctx.require("products:delete")?;
    let mut write = ctx.write("delete_product").await?;
    let id = ctx.path_id("id")?;
    product::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}

/// Publish a draft, or bring a deprecated product back
#[utoipa::path(
    post, path = "/v1/products/{id}/publish", operation_id = "publish_product", tag = TAG,
    request_body = PublishVersionRequest,
    params(("id" = ProductId, Path, description = "Product")),
    responses((status = 200, description = "The product", body = Data<Product>))
)]
async fn publish_product(ctx: Ctx) -> Answer {
    ctx.require("products:write")?;
    let mut write = ctx.write("publish_product").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(PublishVersionRequest::read)?;
    let product = product::publish(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(product)).await
}

/// Mark a product as one that should not be sold any more
#[utoipa::path(
    post, path = "/v1/products/{id}/deprecate", operation_id = "deprecate_product", tag = TAG,
    params(("id" = ProductId, Path, description = "Product")),
    responses((status = 200, description = "The product", body = Data<Product>))
)]
async fn deprecate_product(ctx: Ctx) -> Answer {
    ctx.require("products:write")?;
    let mut write = ctx.write("deprecate_product").await?;
    let id = ctx.path_id("id")?;
    let product = product::deprecate(&ctx.scope, write.tx(), id).await?;
    write.ok(Data(product)).await
}

/// Withdraw a product
#[utoipa::path(
    post, path = "/v1/products/{id}/archive", operation_id = "archive_product", tag = TAG, request_body = ArchiveRequest,
    params(("id" = ProductId, Path, description = "Product")),
    responses((status = 200, description = "The product", body = Data<Product>))
)]
async fn archive_product(ctx: Ctx) -> Answer {
    ctx.require("products:write")?;
    let mut write = ctx.write("archive_product").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(ArchiveRequest::read)?;
    let product = product::archive(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(product)).await
}
