//! Settlements (settlements.md).

use domain::SettlementId;
use payments::settlement::{
    self, GenerateSettlementRequest, PaySettlementRequest, Settlement, SettlementLine, VoidSettlementRequest,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Settlements";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_settlements))
        .routes(routes!(generate_settlement))
        .routes(routes!(get_settlement, delete_settlement))
        .routes(routes!(list_settlement_lines))
        .routes(routes!(finalize_settlement))
        .routes(routes!(pay_settlement))
        .routes(routes!(void_settlement))
}

/// List settlements, newest first
#[utoipa::path(
    get, path = "/v1/settlements", operation_id = "list_settlements", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("sort" = Option<String>, Query, description = "created_at, updated_at, finalized_at, paid_at, period_start or period_end, after `-` descending"),
        ("id" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("customer_id" = Option<String>, Query, description = "eq, ne, in"),
        ("currency" = Option<String>, Query, description = "eq, ne, in"),
        ("settlement_number" = Option<String>, Query, description = "eq, ne, in"),
        ("created_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("updated_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("finalized_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("paid_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("period_start" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("period_end" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Settlement>))
)]
async fn list_settlements(ctx: Ctx) -> Answer {
    ctx.require("settlements:read")?;
    let query = ctx.list(&settlement::LIST)?;
    let mut conn = ctx.conn().await?;
    answer::page(settlement::list(&ctx.scope, &mut conn, &query).await?)
}

/// Make a draft of what a counterparty is owed for a period
///
/// Without lines it has those of the customer's movements of money in the period. An earlier settlement that came to less than
/// nothing is carried into it as an adjustment.
#[utoipa::path(
    post, path = "/v1/settlements/generate", operation_id = "generate_settlement", tag = TAG,
    request_body = GenerateSettlementRequest,
    responses((status = 201, description = "The draft, with its lines", body = Data<Settlement>))
)]
async fn generate_settlement(ctx: Ctx) -> Answer {
    ctx.require("settlements:write")?;
    let mut write = ctx.write("generate_settlement").await?;
    let request = ctx.body(GenerateSettlementRequest::read)?;
    let made = settlement::generate(&ctx.scope, write.tx(), &request).await?;
    write.created(Data(made)).await
}

/// Read one settlement with its lines
#[utoipa::path(
    get, path = "/v1/settlements/{id}", operation_id = "get_settlement", tag = TAG,
    params(("id" = SettlementId, Path, description = "Settlement")),
    responses((status = 200, description = "The settlement", body = Data<Settlement>))
)]
async fn get_settlement(ctx: Ctx) -> Answer {
    ctx.require("settlements:read")?;
    let mut conn = ctx.conn().await?;
    answer::ok(Data(settlement::get(&ctx.scope, &mut conn, ctx.path_id("id")?).await?))
}

/// List the lines of a settlement, newest first
#[utoipa::path(
    get, path = "/v1/settlements/{id}/lines", operation_id = "list_settlement_lines", tag = TAG,
    params(
        ("id" = SettlementId, Path, description = "Settlement"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("type" = Option<String>, Query, description = "eq, ne, in"),
    ),
    responses((status = 200, description = "One page", body = PageOf<SettlementLine>))
)]
async fn list_settlement_lines(ctx: Ctx) -> Answer {
    ctx.require("settlements:read")?;
    let id = ctx.path_id("id")?;
    let mut conn = ctx.conn().await?;
    answer::page(settlement::list_lines(&ctx.scope, &mut conn, id, ctx.query()).await?)
}

/// Lock a draft for payout: it gets its number, and what is owed is booked
#[utoipa::path(
    post, path = "/v1/settlements/{id}/finalize", operation_id = "finalize_settlement", tag = TAG,
    params(("id" = SettlementId, Path, description = "Settlement")),
    responses((status = 200, description = "The settlement", body = Data<Settlement>))
)]
async fn finalize_settlement(ctx: Ctx) -> Answer {
    ctx.require("settlements:write")?;
    let mut write = ctx.write("finalize_settlement").await?;
    let id = ctx.path_id("id")?;
    let finalized = settlement::finalize(&ctx.scope, write.tx(), id).await?;
    write.ok(Data(finalized)).await
}

/// Note that a finalized settlement was paid out: one OUTBOUND transaction of kind PAYOUT
#[utoipa::path(
    post, path = "/v1/settlements/{id}/pay", operation_id = "pay_settlement", tag = TAG,
    request_body = PaySettlementRequest,
    params(("id" = SettlementId, Path, description = "Settlement")),
    responses((status = 200, description = "The settlement", body = Data<Settlement>))
)]
async fn pay_settlement(ctx: Ctx) -> Answer {
    ctx.require("settlements:write")?;
    let mut write = ctx.write("pay_settlement").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(PaySettlementRequest::read)?;
    let paid = settlement::pay(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(paid)).await
}

/// Cancel a draft or a finalized settlement
#[utoipa::path(
    post, path = "/v1/settlements/{id}/void", operation_id = "void_settlement", tag = TAG,
    request_body = VoidSettlementRequest,
    params(("id" = SettlementId, Path, description = "Settlement")),
    responses((status = 200, description = "The settlement", body = Data<Settlement>))
)]
async fn void_settlement(ctx: Ctx) -> Answer {
    ctx.require("settlements:write")?;
    let mut write = ctx.write("void_settlement").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(VoidSettlementRequest::read)?;
    let voided = settlement::void(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(voided)).await
}

/// Delete a draft
#[utoipa::path(
    delete, path = "/v1/settlements/{id}", operation_id = "delete_settlement", tag = TAG,
    params(("id" = SettlementId, Path, description = "Settlement")),
    responses((status = 204, description = "Deleted"))
)]
async fn delete_settlement(ctx: Ctx) -> Answer {
    ctx.require("settlements:delete")?;
    let mut write = ctx.write("delete_settlement").await?;
    let id = ctx.path_id("id")?;
    settlement::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}
