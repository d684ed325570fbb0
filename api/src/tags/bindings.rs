//! ProductMeterBindings and Bindings (meter-bindings.md).

use catalog::binding::{self, Binding, CreateProductMeterBindingRequest};
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
        .routes(routes!(get_binding))
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
