//! Currencies of the workspace (currencies.md).

use ::currency::allowlist::{
    self, CreateWorkspaceCurrencyRequest, CurrencyReferences, UpdateWorkspaceCurrencyRequest, WorkspaceCurrency,
};
use domain::Currency;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Currencies";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_currencies, create_currency))
        .routes(routes!(get_currency, update_currency, delete_currency))
        .routes(routes!(get_currency_references))
}

/// List the currencies of the workspace by code
#[utoipa::path(
    get, path = "/v1/currencies", operation_id = "list_currencies", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("billing_enabled" = Option<bool>, Query, description = "eq, ne"),
        ("catalog_enabled" = Option<bool>, Query, description = "eq, ne"),
    ),
    responses((status = 200, description = "One page", body = PageOf<WorkspaceCurrency>))
)]
async fn list_currencies(ctx: Ctx) -> Answer {
    ctx.require("workspaces:read")?;
    answer::page(allowlist::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Enable a currency
#[utoipa::path(
    post, path = "/v1/currencies", operation_id = "create_currency", tag = TAG,
    request_body = CreateWorkspaceCurrencyRequest,
    responses((status = 201, description = "The currency", body = WorkspaceCurrency))
)]
async fn create_currency(ctx: Ctx) -> Answer {
    ctx.require("workspaces:write")?;
    let mut write = ctx.write("create_currency").await?;
    let request = ctx.body(CreateWorkspaceCurrencyRequest::read)?;
    let created = allowlist::create(&ctx.scope, write.tx(), request).await?;
    write.created(created).await
}

/// Read one currency
#[utoipa::path(
    get, path = "/v1/currencies/{code}", operation_id = "get_currency", tag = TAG,
    params(("code" = Currency, Path, description = "ISO 4217, upper case")),
    responses((status = 200, description = "The currency", body = WorkspaceCurrency))
)]
async fn get_currency(ctx: Ctx) -> Answer {
    ctx.require("workspaces:read")?;
    let code = ctx.path_id("code")?;
    answer::ok(allowlist::get(&ctx.scope, &mut *ctx.conn().await?, code).await?)
}

/// Change switches, default and rounding of a currency
#[utoipa::path(
    patch, path = "/v1/currencies/{code}", operation_id = "update_currency", tag = TAG,
    request_body = UpdateWorkspaceCurrencyRequest,
    params(("code" = Currency, Path, description = "ISO 4217, upper case")),
    responses((status = 200, description = "The currency", body = WorkspaceCurrency))
)]
async fn update_currency(ctx: Ctx) -> Answer {
    ctx.require("workspaces:write")?;
    let mut write = ctx.write("update_currency").await?;
    let code = ctx.path_id("code")?;
    let request = ctx.body(UpdateWorkspaceCurrencyRequest::read)?;
    let changed = allowlist::update(&ctx.scope, write.tx(), code, request).await?;
    write.ok(changed).await
}

/// Remove a currency that nothing refers to
#[utoipa::path(
    delete, path = "/v1/currencies/{code}", operation_id = "delete_currency", tag = TAG,
    params(("code" = Currency, Path, description = "ISO 4217, upper case")),
    responses((status = 204, description = "Removed"))
)]
async fn delete_currency(ctx: Ctx) -> Answer {
    ctx.require("workspaces:delete")?;
    let mut write = ctx.write("delete_currency").await?;
    let code = ctx.path_id("code")?;
    allowlist::delete(&ctx.scope, write.tx(), code).await?;
    write.no_content().await
}

/// Count what is in a currency
#[utoipa::path(
    get, path = "/v1/currencies/{code}/references", operation_id = "get_currency_references", tag = TAG,
    params(("code" = Currency, Path, description = "ISO 4217, upper case")),
    responses((status = 200, description = "The counts", body = Data<CurrencyReferences>))
)]
async fn get_currency_references(ctx: Ctx) -> Answer {
    ctx.require("workspaces:read")?;
    let code = ctx.path_id("code")?;
    answer::ok(Data(allowlist::get(&ctx.scope, &mut *ctx.conn().await?, code).await?.references))
}
