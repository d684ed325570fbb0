//! Payment Methods (payment-methods.md).

use domain::PaymentMethodId;
use payments::method::{self, CreatePaymentMethodRequest, PaymentMethod, UpdatePaymentMethodRequest};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Payment Methods";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_payment_methods, create_payment_method))
        .routes(routes!(get_payment_method, update_payment_method, delete_payment_method))
        .routes(routes!(set_default_payment_method))
}

/// List payment methods, newest first
#[utoipa::path(
    get, path = "/v1/payment-methods", operation_id = "list_payment_methods", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("sort" = Option<String>, Query, description = "created_at or updated_at, after `-` descending"),
        ("include_removed" = Option<bool>, Query, description = "Also those that were removed; default false"),
        ("id" = Option<String>, Query, description = "eq, ne, in"),
        ("customer_id" = Option<String>, Query, description = "eq, ne, in"),
        ("type" = Option<String>, Query, description = "eq, ne, in"),
        ("provider" = Option<String>, Query, description = "eq, ne, in"),
        ("provider_id" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("is_default" = Option<String>, Query, description = "eq, ne"),
        ("created_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("updated_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = PageOf<PaymentMethod>))
)]
async fn list_payment_methods(ctx: Ctx) -> Answer {
    ctx.require("payments:read")?;
    let mut conn = ctx.conn().await?;
    answer::page(method::list(&ctx.scope, &mut conn, ctx.query()).await?)
}

/// Store the token of an instrument; the first of a customer becomes the default
#[utoipa::path(
    post, path = "/v1/payment-methods", operation_id = "create_payment_method", tag = TAG,
    request_body = CreatePaymentMethodRequest,
    responses((status = 201, description = "The payment method", body = Data<PaymentMethod>))
)]
async fn create_payment_method(ctx: Ctx) -> Answer {
    ctx.require("payments:write")?;
    let mut write = ctx.write("create_payment_method").await?;
    let request = ctx.body(CreatePaymentMethodRequest::read)?;
    let created = method::create(&ctx.scope, write.tx(), &request).await?;
    write.created(Data(created)).await
}

/// Read one payment method, also one that was removed
#[utoipa::path(
    get, path = "/v1/payment-methods/{id}", operation_id = "get_payment_method", tag = TAG,
    params(("id" = PaymentMethodId, Path, description = "Payment method")),
    responses((status = 200, description = "The payment method", body = Data<PaymentMethod>))
)]
async fn get_payment_method(ctx: Ctx) -> Answer {
    ctx.require("payments:read")?;
    let mut conn = ctx.conn().await?;
    answer::ok(Data(method::get(&ctx.scope, &mut conn, ctx.path_id("id")?).await?))
}

/// Change status, display fields, metadata, or make it the default
#[utoipa::path(
    patch, path = "/v1/payment-methods/{id}", operation_id = "update_payment_method", tag = TAG,
    request_body = UpdatePaymentMethodRequest,
    params(("id" = PaymentMethodId, Path, description = "Payment method")),
    responses((status = 200, description = "The payment method", body = Data<PaymentMethod>))
)]
async fn update_payment_method(ctx: Ctx) -> Answer {
    ctx.require("payments:write")?;
    let mut write = ctx.write("update_payment_method").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdatePaymentMethodRequest::read)?;
    let changed = method::update(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(changed)).await
}

/// Remove a payment method; the row stays
#[utoipa::path(
    delete, path = "/v1/payment-methods/{id}", operation_id = "delete_payment_method", tag = TAG,
    params(("id" = PaymentMethodId, Path, description = "Payment method")),
    responses((status = 204, description = "Removed"))
)]
async fn delete_payment_method(ctx: Ctx) -> Answer {
    ctx.require("payments:delete")?;
    let mut write = ctx.write("delete_payment_method").await?;
    let id = ctx.path_id("id")?;
    method::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}

/// Make it the customer's default
#[utoipa::path(
    post, path = "/v1/payment-methods/{id}/default", operation_id = "set_default_payment_method", tag = TAG,
    params(("id" = PaymentMethodId, Path, description = "Payment method")),
    responses((status = 200, description = "The payment method", body = Data<PaymentMethod>))
)]
async fn set_default_payment_method(ctx: Ctx) -> Answer {
    ctx.require("payments:write")?;
    let mut write = ctx.write("set_default_payment_method").await?;
    let id = ctx.path_id("id")?;
    let changed = method::set_default(&ctx.scope, write.tx(), id).await?;
    write.ok(Data(changed)).await
}
