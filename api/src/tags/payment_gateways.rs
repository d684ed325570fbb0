//! Payment Gateways (payment-gateways.md), and what their providers tell by themselves.

use domain::{Clock, PaymentGatewayId};
use payments::gateway::{
    self, CreatePaymentGatewayConfigRequest, GatewayCreateResponse, GatewayListResponse, GatewayUpdateResponse,
    PaymentGatewayConfig, UpdatePaymentGatewayConfigRequest, UpdateProviderSettingsRequest,
};
use payments::receive::{GoCardlessEvents, StripeEvent};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::inbound::Inbound;
use crate::{Answer, App, Ctx, Data, answer};

const TAG: &str = "Payment Gateways";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_payment_gateways, create_payment_gateway))
        .routes(routes!(get_payment_gateway, update_payment_gateway, delete_payment_gateway))
        .routes(routes!(update_payment_gateway_provider_settings))
        .routes(routes!(receive_stripe_webhook))
        .routes(routes!(receive_gocardless_webhook))
}

/// List gateways, newest first, without their secrets
#[utoipa::path(
    get, path = "/v1/payment-gateways", operation_id = "list_payment_gateways", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("sort" = Option<String>, Query, description = "created_at or updated_at, after `-` descending"),
        ("id" = Option<String>, Query, description = "eq, ne, in"),
        ("provider" = Option<String>, Query, description = "eq, ne, in"),
        ("mode" = Option<String>, Query, description = "eq, ne, in"),
        ("is_enabled" = Option<String>, Query, description = "eq, ne"),
        ("created_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("updated_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = GatewayListResponse))
)]
async fn list_payment_gateways(ctx: Ctx) -> Answer {
    ctx.require("payments:read")?;
    let query = ctx.list(&gateway::LIST)?;
    let mut conn = ctx.conn().await?;
    answer::ok(gateway::list(&ctx.scope, &mut conn, &query).await?)
}

/// Bind the organization to a processor
///
/// The secrets in `config` are stored encrypted and never answered; `config_keys` has their names.
#[utoipa::path(
    post, path = "/v1/payment-gateways", operation_id = "create_payment_gateway", tag = TAG,
    request_body = CreatePaymentGatewayConfigRequest,
    responses((status = 201, description = "The gateway", body = GatewayCreateResponse))
)]
async fn create_payment_gateway(ctx: Ctx) -> Answer {
    ctx.require("payments:write")?;
    let mut write = ctx.write("create_payment_gateway").await?;
    let request = ctx.body(CreatePaymentGatewayConfigRequest::read)?;
    let data = gateway::create(&ctx.scope, write.tx(), &ctx.app.payments.vault, &request).await?;
    write.created(GatewayCreateResponse { data }).await
}

/// Read one gateway, without its secrets
#[utoipa::path(
    get, path = "/v1/payment-gateways/{id}", operation_id = "get_payment_gateway", tag = TAG,
    params(("id" = PaymentGatewayId, Path, description = "Gateway")),
    responses((status = 200, description = "The gateway", body = Data<PaymentGatewayConfig>))
)]
async fn get_payment_gateway(ctx: Ctx) -> Answer {
    ctx.require("payments:read")?;
    let mut conn = ctx.conn().await?;
    answer::ok(Data(gateway::get(&ctx.scope, &mut conn, ctx.path_id("id")?).await?))
}

/// Change label, mode, capabilities, secrets, whether it is enabled and whether it is the default
#[utoipa::path(
    put, path = "/v1/payment-gateways/{id}", operation_id = "update_payment_gateway", tag = TAG,
    request_body = UpdatePaymentGatewayConfigRequest,
    params(("id" = PaymentGatewayId, Path, description = "Gateway")),
    responses((status = 200, description = "That it was done", body = GatewayUpdateResponse))
)]
async fn update_payment_gateway(ctx: Ctx) -> Answer {
    ctx.require("payments:write")?;
    let mut write = ctx.write("update_payment_gateway").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdatePaymentGatewayConfigRequest::read)?;
    let data = gateway::update(&ctx.scope, write.tx(), &ctx.app.payments.vault, id, &request).await?;
    write.ok(GatewayUpdateResponse { data }).await
}

/// Remove a gateway and its secrets
#[utoipa::path(
    delete, path = "/v1/payment-gateways/{id}", operation_id = "delete_payment_gateway", tag = TAG,
    params(("id" = PaymentGatewayId, Path, description = "Gateway")),
    responses((status = 204, description = "Removed"))
)]
async fn delete_payment_gateway(ctx: Ctx) -> Answer {
    ctx.require("payments:delete")?;
    let mut write = ctx.write("delete_payment_gateway").await?;
    let id = ctx.path_id("id")?;
    gateway::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}

/// Replace the options that are no secrets
#[utoipa::path(
    put, path = "/v1/payment-gateways/{id}/provider-settings", operation_id = "update_payment_gateway_provider_settings",
    tag = TAG, request_body = UpdateProviderSettingsRequest,
    params(("id" = PaymentGatewayId, Path, description = "Gateway")),
    responses((status = 200, description = "The gateway", body = Data<PaymentGatewayConfig>))
)]
async fn update_payment_gateway_provider_settings(ctx: Ctx) -> Answer {
    ctx.require("payments:write")?;
    let mut write = ctx.write("update_payment_gateway_provider_settings").await?;
    let id = ctx.path_id("id")?;
    let body = ctx.json()?;
    let read = |provider| UpdateProviderSettingsRequest::read(&body, provider);
    let changed = gateway::update_provider_settings(&ctx.scope, write.tx(), id, read).await?;
    write.ok(Data(changed)).await
}

/// Take an event from Stripe, signed in the header `Stripe-Signature`
#[utoipa::path(
    post, path = "/v1/webhooks/stripe/{gateway_id}", operation_id = "receive_stripe_webhook", tag = TAG,
    request_body = StripeEvent, security(()),
    params(
        ("gateway_id" = PaymentGatewayId, Path, description = "Gateway"),
        ("Stripe-Signature" = String, Header, description = "t=<unix>,v1=<hex>"),
    ),
    responses((status = 200, description = "Taken; a repeated event has no effect"))
)]
async fn receive_stripe_webhook(inbound: Inbound) -> Answer {
    let (id, signature) = (inbound.path_id("gateway_id")?, inbound.header("stripe-signature"));
    inbound.app.payments.receive_stripe(id, signature, &inbound.body, Clock::System.now()).await?;
    Ok(answer::empty())
}

/// Take events from GoCardless, signed in the header `Webhook-Signature`
#[utoipa::path(
    post, path = "/v1/webhooks/gocardless/{gateway_id}", operation_id = "receive_gocardless_webhook", tag = TAG,
    request_body = GoCardlessEvents, security(()),
    params(
        ("gateway_id" = PaymentGatewayId, Path, description = "Gateway"),
        ("Webhook-Signature" = String, Header, description = "Hexadecimal HMAC-SHA256 of the body"),
    ),
    responses((status = 200, description = "Taken; repeated events have no effect"))
)]
async fn receive_gocardless_webhook(inbound: Inbound) -> Answer {
    let (id, signature) = (inbound.path_id("gateway_id")?, inbound.header("webhook-signature"));
    inbound.app.payments.receive_gocardless(id, signature, &inbound.body, Clock::System.now()).await?;
    Ok(answer::empty())
}
