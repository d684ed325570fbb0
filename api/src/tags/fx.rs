//! FX: exchange rates (fx.md).

use currency::overrides::{self, CreateFXOverrideRequest, UpdateFXOverrideRequest};
use currency::{FXOverride, FXSnapshot, FxRate, Pair, rate, snapshot};
use domain::error::FieldErrorCode as Code;
use domain::{Currency, Error, FieldError, FxOverrideId, Instant, Result};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "FX";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_fx_overrides, create_fx_override))
        .routes(routes!(get_fx_override, update_fx_override, delete_fx_override))
        .routes(routes!(list_fx_snapshots))
        .routes(routes!(get_fx_rate))
}

/// List the rates that the workspace has set, newest first
#[utoipa::path(
    get, path = "/v1/fx/overrides", operation_id = "list_fx_overrides", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("source_currency" = Option<String>, Query, description = "eq, ne, in"),
        ("target_currency" = Option<String>, Query, description = "eq, ne, in"),
        ("active_at" = Option<String>, Query, description = "RFC 3339: in effect at that instant"),
    ),
    responses((status = 200, description = "One page", body = PageOf<FXOverride>))
)]
async fn list_fx_overrides(ctx: Ctx) -> Answer {
    ctx.require("fx:read")?;
    answer::page(overrides::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Set a rate that goes before the published one
#[utoipa::path(
    post, path = "/v1/fx/overrides", operation_id = "create_fx_override", tag = TAG,
    request_body = CreateFXOverrideRequest,
    responses((status = 201, description = "The rate", body = Data<FXOverride>))
)]
async fn create_fx_override(ctx: Ctx) -> Answer {
    ctx.require("fx:write")?;
    let mut write = ctx.write("create_fx_override").await?;
    let request = ctx.body(CreateFXOverrideRequest::read)?;
    let set = overrides::create(&ctx.scope, write.tx(), request).await?;
    write.created(Data(set)).await
}

/// Read a rate that the workspace has set
#[utoipa::path(
    get, path = "/v1/fx/overrides/{id}", operation_id = "get_fx_override", tag = TAG,
    params(("id" = FxOverrideId, Path, description = "Override")),
    responses((status = 200, description = "The rate", body = Data<FXOverride>))
)]
async fn get_fx_override(ctx: Ctx) -> Answer {
    ctx.require("fx:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(overrides::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change a rate or its window
#[utoipa::path(
    patch, path = "/v1/fx/overrides/{id}", operation_id = "update_fx_override", tag = TAG,
    request_body = UpdateFXOverrideRequest,
    params(("id" = FxOverrideId, Path, description = "Override")),
    responses((status = 200, description = "The rate", body = Data<FXOverride>))
)]
async fn update_fx_override(ctx: Ctx) -> Answer {
    ctx.require("fx:write")?;
    let mut write = ctx.write("update_fx_override").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateFXOverrideRequest::read)?;
    let changed = overrides::update(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(changed)).await
}

/// Take a rate away
#[utoipa::path(
    delete, path = "/v1/fx/overrides/{id}", operation_id = "delete_fx_override", tag = TAG,
    params(("id" = FxOverrideId, Path, description = "Override")),
    responses((status = 204, description = "Taken away"))
)]
async fn delete_fx_override(ctx: Ctx) -> Answer {
    ctx.require("fx:delete")?;
    let mut write = ctx.write("delete_fx_override").await?;
    let id = ctx.path_id("id")?;
    overrides::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}

/// List the published rates of a day
#[utoipa::path(
    get, path = "/v1/fx/snapshots", operation_id = "list_fx_snapshots", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("date" = Option<String>, Query, description = "YYYY-MM-DD, default today in UTC"),
        ("source_currency" = Option<String>, Query, description = "eq, ne, in"),
        ("target_currency" = Option<String>, Query, description = "eq, ne, in"),
    ),
    responses((status = 200, description = "One page", body = PageOf<FXSnapshot>))
)]
async fn list_fx_snapshots(ctx: Ctx) -> Answer {
    ctx.require("fx:read")?;
    answer::page(snapshot::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Ask for the rate in effect
#[utoipa::path(
    get, path = "/v1/fx/rates", operation_id = "get_fx_rate", tag = TAG,
    params(
        ("source" = Currency, Query, description = "What is converted: ISO 4217, upper case"),
        ("target" = Currency, Query, description = "Into what"),
        ("at" = Option<String>, Query, description = "RFC 3339, default now"),
    ),
    responses((status = 200, description = "The rate", body = Data<FxRate>))
)]
async fn get_fx_rate(ctx: Ctx) -> Answer {
    ctx.require("fx:read")?;
    let (pair, at) = asked(&ctx)?;
    let found = rate::rate(&mut *ctx.conn().await?, ctx.scope.workspace_id, pair, at).await?;
    answer::ok(Data(found))
}

/// Pair and instant of the query, with every bad parameter at once.
fn asked(ctx: &Ctx) -> Result<(Pair, Instant)> {
    let mut errors = Vec::new();
    let mut refuse = |field: &str, code: Code, message: String| {
        errors.push(FieldError { field: field.to_owned(), code, message });
    };
    for (name, _) in ctx.query() {
        if !["source", "target", "at"].contains(&name.as_str()) {
            refuse(
                name,
                Code::UnknownField,
                format!("`{name}` is not a known parameter; known are source, target, at"),
            );
        }
    }
    let [source, target] = ["source", "target"].map(|name| {
        let code = ctx.query_value(name);
        let currency = code.and_then(Currency::parse);
        match (code, currency) {
            (None, _) => refuse(name, Code::Required, "is required".into()),
            (_, None) => refuse(name, Code::InvalidFormat, "must be an ISO 4217 currency code in upper case".into()),
            _ => {}
        }
        currency
    });
    let at = ctx.query_value("at").map(chrono::DateTime::parse_from_rfc3339);
    if matches!(at, Some(Err(_))) {
        let message = "must be an RFC 3339 timestamp such as 2026-01-31T00:00:00Z";
        refuse("at", Code::InvalidFormat, message.into());
    }
    match (source, target, errors.is_empty()) {
        (Some(source), Some(target), true) => {
            let at = at.and_then(std::result::Result::ok).map(|at| domain::clock::micros(at.to_utc()));
            Ok((Pair { source, target }, at.unwrap_or_else(|| ctx.scope.now())))
        }
        _ => Err(Error::Validation(errors)),
    }
}
