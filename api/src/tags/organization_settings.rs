//! Organization Settings (organizations.md).

use access::settings::{self, OrganizationSetting, SettingCatalogEntry, UpsertSettingsRequest};
use domain::error::FieldErrorCode as Code;
use domain::{Error, Result};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, PageOf, answer};

const TAG: &str = "Organization Settings";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_organization_settings, upsert_organization_settings))
        .routes(routes!(list_organization_setting_catalog))
}

/// List the effective value of every setting
#[utoipa::path(
    get, path = "/v1/organization-settings", operation_id = "list_organization_settings", tag = TAG,
    params(("category" = Option<String>, Query, description = "Settings of one category only")),
    responses((status = 200, description = "All of them", body = PageOf<OrganizationSetting>))
)]
async fn list_organization_settings(ctx: Ctx) -> Answer {
    ctx.require("organization_settings:read")?;
    let category = category(&ctx)?;
    answer::all(settings::list(&ctx.scope, &mut *ctx.conn().await?, category).await?)
}

/// Write settings, all or none
#[utoipa::path(
    put, path = "/v1/organization-settings", operation_id = "upsert_organization_settings", tag = TAG,
    request_body = UpsertSettingsRequest,
    responses((status = 200, description = "All settings as they are now", body = PageOf<OrganizationSetting>))
)]
async fn upsert_organization_settings(ctx: Ctx) -> Answer {
    ctx.require("organization_settings:write")?;
    let mut write = ctx.write("upsert_organization_settings").await?;
    let request = ctx.body(UpsertSettingsRequest::read)?;
    let all = settings::upsert(&ctx.scope, write.tx(), request).await?;
    write.ok(PageOf::from(store::Page::complete(all))).await
}

/// List the settings that there are
#[utoipa::path(
    get, path = "/v1/organization-settings/catalog", operation_id = "list_organization_setting_catalog", tag = TAG,
    responses((status = 200, description = "All of them", body = PageOf<SettingCatalogEntry>))
)]
async fn list_organization_setting_catalog(ctx: Ctx) -> Answer {
    ctx.require("organization_settings:read")?;
    answer::all(settings::catalog())
}

fn category(ctx: &Ctx) -> Result<Option<&str>> {
    match ctx.query().iter().find(|(name, _)| name != "category" && name != "category.eq") {
        Some((name, _)) => {
            let message = format!("`{name}` is not a known parameter; known is category");
            Err(Error::field(name.clone(), Code::UnknownField, message))
        }
        None => Ok(ctx.query().last().map(|(_, value)| value.as_str())),
    }
}
