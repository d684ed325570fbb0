//! Price formulas (price-formulas.md).

use catalog::formula::{
    self, CreatePriceFormulaRequest, PriceFormula, PriceFormulaVersion, UpdatePriceFormulaRequest,
    ValidateFormulaRequest, ValidateFormulaResult,
};
use catalog::version::{self, Entity, PublishVersionRequest, VersionRow, edit};
use domain::PriceFormulaId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Price Formulas";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_price_formulas, create_price_formula))
        .routes(routes!(get_price_formula, update_price_formula, delete_price_formula))
        .routes(routes!(validate_price_formula))
        .routes(routes!(list_price_formula_versions))
        .routes(routes!(get_price_formula_version))
        .routes(routes!(publish_price_formula_version))
}

/// List price formulas with filters and cursor pagination
#[utoipa::path(
    get, path = "/v1/price-formulas", operation_id = "list_price_formulas", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("name" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("is_system" = Option<bool>, Query, description = "eq, ne"),
    ),
    responses((status = 200, description = "One page", body = PageOf<PriceFormula>))
)]
async fn list_price_formulas(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    answer::page(formula::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Create a price formula; version 1 is published at once
#[utoipa::path(
    post, path = "/v1/price-formulas", operation_id = "create_price_formula", tag = TAG,
    request_body = CreatePriceFormulaRequest,
    responses((status = 201, description = "The formula", body = Data<PriceFormula>))
)]
async fn create_price_formula(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("create_price_formula").await?;
    let request = ctx.body(CreatePriceFormulaRequest::read)?;
    let formula = formula::create(&ctx.scope, write.tx(), request).await?;
    write.created(Data(formula)).await
}

/// Read one price formula
#[utoipa::path(
    get, path = "/v1/price-formulas/{id}", operation_id = "get_price_formula", tag = TAG,
    params(("id" = PriceFormulaId, Path, description = "Formula")),
    responses((status = 200, description = "The formula", body = Data<PriceFormula>))
)]
async fn get_price_formula(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(formula::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change a price formula by publishing its next version, now or from an instant ahead
#[utoipa::path(
    put, path = "/v1/price-formulas/{id}", operation_id = "update_price_formula", tag = TAG,
    request_body = UpdatePriceFormulaRequest, params(("id" = PriceFormulaId, Path, description = "Formula")),
    responses((status = 200, description = "The formula", body = Data<PriceFormula>))
)]
async fn update_price_formula(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("update_price_formula").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdatePriceFormulaRequest::read)?;
    let formula = formula::update(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(formula)).await
}

/// Delete a price formula that no price refers to
#[utoipa::path(
    delete, path = "/v1/price-formulas/{id}", operation_id = "delete_price_formula", tag = TAG,
    params(("id" = PriceFormulaId, Path, description = "Formula")),
    responses((status = 204, description = "Deleted"))
)]
async fn delete_price_formula(ctx: Ctx) -> Answer {
    ctx.require("prices:delete")?;
    let mut write = ctx.write("delete_price_formula").await?;
    let id = ctx.path_id("id")?;
    formula::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}

/// Check an expression, and evaluate it when its bindings are complete
#[utoipa::path(
    post, path = "/v1/price-formulas/validate", operation_id = "validate_price_formula", tag = TAG,
    request_body = ValidateFormulaRequest,
    responses((status = 200, description = "What is wrong, or the result", body = Data<ValidateFormulaResult>))
)]
async fn validate_price_formula(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let mut write = ctx.write("validate_price_formula").await?;
    let request = ctx.body(ValidateFormulaRequest::read)?;
    let result = formula::validate(&ctx.scope, write.tx().conn(), request).await?;
    write.ok(Data(result)).await
}

/// List the versions of a price formula, newest first
#[utoipa::path(
    get, path = "/v1/price-formulas/{id}/versions", operation_id = "list_price_formula_versions", tag = TAG,
    params(
        ("id" = PriceFormulaId, Path, description = "Formula"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "Repeatable"),
    ),
    responses((status = 200, description = "One page", body = PageOf<VersionRow>))
)]
async fn list_price_formula_versions(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let id = ctx.path_id("id")?;
    let (conn, entity) = (&mut *ctx.conn().await?, Entity::PriceFormula);
    answer::page(version::list_of(&ctx.scope, conn, entity, id, ctx.query()).await?)
}

/// Read one version of a price formula, by its number or its id
#[utoipa::path(
    get, path = "/v1/price-formulas/{id}/versions/{version}", operation_id = "get_price_formula_version", tag = TAG,
    params(
        ("id" = PriceFormulaId, Path, description = "Formula"),
        ("version" = String, Path, description = "Number or id"),
    ),
    responses((status = 200, description = "The version", body = Data<PriceFormulaVersion>))
)]
async fn get_price_formula_version(ctx: Ctx) -> Answer {
    ctx.require("prices:read")?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("version")?);
    answer::ok(Data(edit::get::<PriceFormula>(&ctx.scope, &mut *ctx.conn().await?, id, version).await?))
}

/// Publish a draft version of a price formula
#[utoipa::path(
    post, path = "/v1/price-formulas/{id}/versions/{vid}/publish", operation_id = "publish_price_formula_version", tag = TAG,
    request_body = PublishVersionRequest,
    params(
        ("id" = PriceFormulaId, Path, description = "Formula"),
        ("vid" = String, Path, description = "Number or id"),
    ),
    responses((status = 200, description = "The version", body = Data<PriceFormulaVersion>))
)]
async fn publish_price_formula_version(ctx: Ctx) -> Answer {
    ctx.require("prices:write")?;
    let mut write = ctx.write("publish_price_formula_version").await?;
    let (id, version) = (ctx.path_id("id")?, ctx.path_id("vid")?);
    let request = ctx.body_or_empty(PublishVersionRequest::read)?;
    let version = edit::publish::<PriceFormula>(&ctx.scope, write.tx(), id, version, request).await?;
    write.ok(Data(version)).await
}
