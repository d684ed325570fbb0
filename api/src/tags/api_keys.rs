//! API Keys (api-keys.md).

use access::api_key::{
    self, ApiKey, CreateApiKeyRequest, CreateApiKeyResponse, RotateApiKeyRequest, UpdateApiKeyRequest,
};
use axum::http::StatusCode;
use domain::ApiKeyId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::write::to_the_end;
use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "API Keys";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_api_keys, create_api_key))
        .routes(routes!(rotate_api_key))
        .routes(routes!(update_api_key, revoke_api_key))
}

/// List the keys of the workspace, without their clear text
#[utoipa::path(
    get, path = "/v1/api-keys", operation_id = "list_api_keys", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("include_revoked" = Option<bool>, Query, description = "Default false"),
    ),
    responses((status = 200, description = "One page", body = PageOf<ApiKey>))
)]
async fn list_api_keys(ctx: Ctx) -> Answer {
    ctx.require("api_keys:read")?;
    answer::page(api_key::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Mint a key; its clear text is shown this once
#[utoipa::path(
    post, path = "/v1/api-keys", operation_id = "create_api_key", tag = TAG, request_body = CreateApiKeyRequest,
    responses((status = 201, description = "The key", body = CreateApiKeyResponse))
)]
async fn create_api_key(ctx: Ctx) -> Answer {
    ctx.require("api_keys:write")?;
    let mut write = ctx.write("create_api_key").await?;
    let request = ctx.body(CreateApiKeyRequest::read)?;
    let key = api_key::create(&ctx.scope, write.tx(), &ctx.credential, request).await?;
    let masked = key.masked();
    write.secret(StatusCode::CREATED, key, masked).await
}

/// Replace a key by one with the same terms; the old one ends at the same instant
#[utoipa::path(
    post, path = "/v1/api-keys/rotate", operation_id = "rotate_api_key", tag = TAG,
    request_body(content = RotateApiKeyRequest, description = "Default: the calling key"),
    responses((status = 200, description = "The new key", body = CreateApiKeyResponse))
)]
async fn rotate_api_key(ctx: Ctx) -> Answer {
    ctx.require("api_keys:write")?;
    let mut write = ctx.write("rotate_api_key").await?;
    let request = ctx.body_or_empty(RotateApiKeyRequest::read)?;
    let (old, key) = api_key::rotate(&ctx.scope, write.tx(), &ctx.credential, &request).await?;
    let masked = key.masked();
    forgetting(ctx, old, write.secret(StatusCode::OK, key, masked)).await
}

/// Change the sent members of a key
#[utoipa::path(
    patch, path = "/v1/api-keys/{id}", operation_id = "update_api_key", tag = TAG, request_body = UpdateApiKeyRequest,
    params(("id" = ApiKeyId, Path, description = "Key")),
    responses((status = 200, description = "The key", body = Data<ApiKey>))
)]
async fn update_api_key(ctx: Ctx) -> Answer {
    ctx.require("api_keys:write")?;
    let mut write = ctx.write("update_api_key").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateApiKeyRequest::read)?;
    let key = api_key::update(&ctx.scope, write.tx(), &ctx.credential, id, request).await?;
    forgetting(ctx, id, write.ok(Data(key))).await
}

/// Revoke a key; a repeat does nothing
#[utoipa::path(
    delete, path = "/v1/api-keys/{id}", operation_id = "revoke_api_key", tag = TAG,
    params(("id" = ApiKeyId, Path, description = "Key")),
    responses((status = 204, description = "Revoked"))
)]
async fn revoke_api_key(ctx: Ctx) -> Answer {
    ctx.require("api_keys:delete")?;
    let mut write = ctx.write("revoke_api_key").await?;
    let id = ctx.path_id("id")?;
    api_key::revoke(&ctx.scope, write.tx(), id).await?;
    forgetting(ctx, id, write.no_content()).await
}

/// Commits a change of a key, of which this process has to hear at once: also when the client does not wait for it.
async fn forgetting(ctx: Ctx, id: ApiKeyId, commit: impl Future<Output = Answer> + Send + 'static) -> Answer {
    to_the_end(async move {
        let answer = commit.await;
        ctx.app.authenticator.forget(id);
        answer
    })
    .await
}
