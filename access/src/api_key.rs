//! API keys: mint, list, change, rotate, revoke (api-keys.md).

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{ApiKeyId, Error, Input, Instant, JsonMap, OrganizationId, Patch, Result, Scope, WorkspaceId};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{FromRow, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError, Tx};
use utoipa::ToSchema;

use crate::token::{ApiKeyType, Token};
use crate::{Credential, Network, permission};

/// Active keys of one workspace (rule 10).
pub const ACTIVE_KEYS_MAX: i64 = 50;
/// Entries of an allowlist (rule 10).
const ALLOWED_IPS_MAX: usize = 100;

/// A key as lists show it; never with its clear text.
#[derive(Clone, Debug, Serialize, ToSchema, FromRow)]
pub struct ApiKey {
    /// Key.
    pub id: ApiKeyId,
    /// Its data space.
    pub workspace_id: WorkspaceId,
    /// Type and first 8 hexadecimal digits.
    pub key_prefix: String,
    /// What the prefix says.
    pub key_type: ApiKeyType,
    /// Label.
    pub name: String,
    /// Granted permissions; empty = all.
    pub scopes: Vec<String>,
    /// Allowed source addresses; empty = any.
    pub allowed_ips: Vec<String>,
    /// End of validity.
    #[schema(required)]
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    #[schema(required)]
    pub revoked_at: Option<DateTime<Utc>>,
    /// Last use, to about a minute.
    #[schema(required)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// A new key with its clear text, which is shown this once.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = CreateAPIKeyResponse)]
pub struct CreateApiKeyResponse {
    /// Key.
    pub id: ApiKeyId,
    /// Clear text.
    pub key: String,
    /// Type and first 8 hexadecimal digits.
    pub key_prefix: String,
    /// What the prefix says.
    pub key_type: ApiKeyType,
    /// Label.
    pub name: String,
    /// Granted permissions; empty = all.
    pub scopes: Vec<String>,
    /// Allowed source addresses; empty = any.
    pub allowed_ips: Vec<String>,
    /// End of validity.
    #[schema(required)]
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

impl CreateApiKeyResponse {
    /// The same without the secret, for the stored answer of an idempotency key: the clear text is never persisted.
    #[must_use]
    pub fn masked(&self) -> Self {
        Self { key: format!("{}…", self.key_prefix), ..self.clone() }
    }
}

/// What a key may do, from where, and how long.
#[derive(Clone, Debug)]
pub struct KeyTerms {
    /// Label.
    pub name: String,
    /// Permission names; empty = all.
    pub scopes: Vec<String>,
    /// Addresses and blocks; empty = any.
    pub allowed_ips: Vec<String>,
    /// End of validity.
    pub expires_at: Option<Instant>,
}

/// Body of `POST /v1/api-keys`.
#[derive(Clone, Debug, ToSchema)]
#[schema(as = CreateAPIKeyRequest)]
pub struct CreateApiKeyRequest {
    /// Label, 1–100 characters.
    pub name: String,
    /// Default: the type of the workspace.
    pub key_type: Option<ApiKeyType>,
    /// Permission names; null or empty = all.
    pub scopes: Option<Vec<String>>,
    /// Addresses and CIDR blocks; null or empty = any.
    pub allowed_ips: Option<Vec<String>>,
    /// End of validity, in the future; null = never.
    pub expires_at: Option<DateTime<Utc>>,
}

impl CreateApiKeyRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let name = input.required("name", |v| v.text(1, 100));
        let key_type = input.optional("key_type", Field::word);
        let scopes = input.optional("scopes", read_scopes);
        let allowed_ips = input.optional("allowed_ips", read_allowed_ips);
        let expires_at = input.optional("expires_at", Field::instant);
        input.finish()?;
        Ok(Self { name: name.unwrap_or_default(), key_type, scopes, allowed_ips, expires_at })
    }
}

/// Body of `PATCH /v1/api-keys/{id}`.
#[derive(Clone, Debug, ToSchema)]
pub struct UpdateApiKeyRequest {
    /// Label.
    #[schema(value_type = Option<String>)]
    pub name: Patch<String>,
    /// Permission names; null or empty = all.
    #[schema(value_type = Option<Vec<String>>)]
    pub scopes: Patch<Vec<String>>,
    /// Addresses and CIDR blocks; null or empty = any.
    #[schema(value_type = Option<Vec<String>>)]
    pub allowed_ips: Patch<Vec<String>>,
    /// End of validity; null = never.
    #[schema(value_type = Option<DateTime<Utc>>)]
    pub expires_at: Patch<DateTime<Utc>>,
}

impl UpdateApiKeyRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let name = input.patch("name", |v| v.text(1, 100));
        if name == Patch::Clear {
            input.error("name", Code::Required, "cannot be cleared");
        }
        let scopes = input.patch("scopes", read_scopes);
        let allowed_ips = input.patch("allowed_ips", read_allowed_ips);
        let expires_at = input.patch("expires_at", Field::instant);
        input.finish()?;
        Ok(Self { name, scopes, allowed_ips, expires_at })
    }
}

/// Optional body of `POST /v1/api-keys/rotate`.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct RotateApiKeyRequest {
    /// Another key of the workspace; default: the calling one.
    pub id: Option<ApiKeyId>,
}

impl RotateApiKeyRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let id = input.optional("id", Field::id);
        input.finish()?;
        Ok(Self { id })
    }
}

fn read_scopes(field: Field<'_>) -> FieldResult<Vec<String>> {
    field.list(0, 200, |v| v.text(1, 100))
}

fn read_allowed_ips(field: Field<'_>) -> FieldResult<Vec<String>> {
    field.list(0, ALLOWED_IPS_MAX, |v| {
        let bad = v.raw().as_str().is_none_or(|text| text.parse::<Network>().is_err());
        if bad { v.refuse(Code::InvalidFormat, crate::allowlist::NetworkError.to_string()) } else { v.text(1, 64) }
    })
}

/// Mints a key. `granter` is the calling key: a narrowed key cannot grant more than it has.
///
/// # Errors
/// `Validation` for an `expires_at` in the past; `Rule` for a type of the other mode, an unknown scope or the 51st key;
/// `Forbidden` for a scope that the granter lacks.
pub async fn create(
    scope: &Scope,
    tx: &mut Tx,
    granter: &Credential,
    request: CreateApiKeyRequest,
) -> Result<CreateApiKeyResponse> {
    check_expiry(request.expires_at, scope.now())?;
    let key_type = ApiKeyType::of(scope.mode);
    if request.key_type.is_some_and(|wanted| wanted != key_type) {
        let mode = scope.mode;
        return Err(Error::business_rule(format!("a {mode} workspace has keys of the type {key_type}")));
    }
    let terms = KeyTerms {
        name: request.name,
        scopes: request.scopes.unwrap_or_default(),
        allowed_ips: request.allowed_ips.unwrap_or_default(),
        expires_at: request.expires_at,
    };
    check_scopes(granter, &terms.scopes)?;
    check_room(scope, tx).await?;
    let (id, token) = insert(tx, (scope.organization_id, scope.workspace_id), key_type, &terms, scope.now()).await?;
    announce(scope, tx, "api_key.created", id, &token.prefix()).await?;
    Ok(with_clear_text(id, &token, key_type, terms, scope.now()))
}

/// Replaces a key by one with the same terms and new clear text; the old one ends in the same transaction.
///
/// # Errors
/// `NotFound`; `Conflict` for a revoked key; `Forbidden` when the target may do more than the calling key.
pub async fn rotate(
    scope: &Scope,
    tx: &mut Tx,
    granter: &Credential,
    request: &RotateApiKeyRequest,
) -> Result<(ApiKeyId, CreateApiKeyResponse)> {
    let old_id = request.id.unwrap_or(granter.api_key_id);
    let old = lock(scope, tx, old_id).await?;
    if old.revoked_at.is_some() {
        return Err(Error::invalid_transition("api_key", old_id, "revoked", "active", &[]));
    }
    check_scopes(granter, &old.scopes)?;
    revoke_row(scope, tx, old_id).await?;
    let terms =
        KeyTerms { name: old.name, scopes: old.scopes, allowed_ips: old.allowed_ips, expires_at: old.expires_at };
    let (id, token) =
        insert(tx, (scope.organization_id, scope.workspace_id), old.key_type, &terms, scope.now()).await?;
    announce(scope, tx, "api_key.rotated", id, &token.prefix()).await?;
    Ok((old_id, with_clear_text(id, &token, old.key_type, terms, scope.now())))
}

/// Changes the sent members of a key.
///
/// # Errors
/// `NotFound`, `Conflict` for a revoked key, and as [`create`].
pub async fn update(
    scope: &Scope,
    tx: &mut Tx,
    granter: &Credential,
    id: ApiKeyId,
    request: UpdateApiKeyRequest,
) -> Result<ApiKey> {
    if let Patch::Set(end) = &request.expires_at {
        check_expiry(Some(*end), scope.now())?;
    }
    let mut key = lock(scope, tx, id).await?;
    if key.revoked_at.is_some() {
        return Err(Error::conflict("CONFLICT", "the key is revoked"));
    }
    if request.scopes.is_sent() {
        let scopes = request.scopes.apply(Some(key.scopes)).unwrap_or_default();
        check_scopes(granter, &scopes)?;
        key.scopes = scopes;
    }
    key.name = request.name.apply(Some(key.name)).unwrap_or_default();
    key.allowed_ips = request.allowed_ips.apply(Some(key.allowed_ips)).unwrap_or_default();
    key.expires_at = request.expires_at.apply(key.expires_at);
    sqlx::query(
        "UPDATE api_key SET name = $3, scopes = $4, allowed_ips = $5, expires_at = $6, updated_at = $7
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(&key.name)
    .bind(&key.scopes)
    .bind(&key.allowed_ips)
    .bind(key.expires_at)
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("changing a key")?;
    announce(scope, tx, "api_key.updated", id, &key.key_prefix).await?;
    Ok(key)
}

/// Revokes a key; a repeat does nothing.
///
/// # Errors
/// `NotFound`.
pub async fn revoke(scope: &Scope, tx: &mut Tx, id: ApiKeyId) -> Result<()> {
    let key = lock(scope, tx, id).await?;
    if key.revoked_at.is_none() {
        revoke_row(scope, tx, id).await?;
        announce(scope, tx, "api_key.revoked", id, &key.key_prefix).await?;
    }
    Ok(())
}

const COLUMNS: &str = "id, workspace_id, key_prefix, key_type, name, scopes, allowed_ips, expires_at, revoked_at, \
                       last_used_at, created_at";

const ALL: ListSpec = ListSpec {
    name: "api_keys",
    columns: COLUMNS,
    from: "api_key",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("name", ListKind::Text).sortable(),
        ListField::new("key_prefix", ListKind::Text),
        ListField::new("key_type", ListKind::Word(&["sk_live", "sk_test"])),
        ListField::new("expires_at", ListKind::Instant),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

const UNREVOKED: ListSpec = ListSpec { name: "api_keys_unrevoked", condition: "revoked_at IS NULL", ..ALL };

/// Keys of the workspace, without revoked ones unless `include_revoked=true`.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<ApiKey>> {
    let include = parameters.iter().rev().find(|(name, _)| name == "include_revoked").map(|(_, value)| value.as_str());
    let spec = match include {
        Some("true") => &ALL,
        None | Some("false") => &UNREVOKED,
        Some(_) => return Err(Error::field("include_revoked", Code::InvalidFormat, "must be true or false")),
    };
    ListQuery::parse_with(spec, parameters, &["include_revoked"])?.fetch(conn, scope).await
}

fn check_expiry(end: Option<Instant>, now: Instant) -> Result<()> {
    if end.is_some_and(|end| end <= now) {
        return Err(Error::field("expires_at", Code::OutOfRange, "must lie in the future"));
    }
    Ok(())
}

/// Every scope must be in the catalog, and a narrowed key can pass on only what it has.
fn check_scopes(granter: &Credential, scopes: &[String]) -> Result<()> {
    let unknown: Vec<_> = scopes.iter().filter(|name| !permission::is_assignable(name)).cloned().collect();
    if !unknown.is_empty() {
        let detail = format!("these scopes are not in the catalog of permissions: {}", unknown.join(", "));
        return Err(Error::business_rule(detail).with("unknown_scopes", unknown));
    }
    if scopes.is_empty() && !granter.scopes.is_empty() {
        return Err(Error::Forbidden {
            detail: "a key with scopes cannot manage a key without".into(),
            required_permission: None,
        });
    }
    scopes.iter().try_for_each(|name| granter.require(name))
}

/// Locks the workspace, so that two calls cannot both make the 50th key.
async fn check_room(scope: &Scope, tx: &mut Tx) -> Result<()> {
    sqlx::query("SELECT id FROM workspace WHERE id = $1 FOR UPDATE")
        .bind(scope.workspace_id)
        .execute(tx.conn())
        .await
        .context("locking the workspace")?;
    let active: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM api_key
         WHERE workspace_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)",
    )
    .bind(scope.workspace_id)
    .bind(scope.now())
    .fetch_one(tx.conn())
    .await
    .context("counting the keys")?;
    if active >= ACTIVE_KEYS_MAX {
        return Err(Error::rule("LIMIT_EXCEEDED", format!("a workspace has at most {ACTIVE_KEYS_MAX} active keys")));
    }
    Ok(())
}

async fn lock(scope: &Scope, tx: &mut Tx, id: ApiKeyId) -> Result<ApiKey> {
    let sql = format!("SELECT {COLUMNS} FROM api_key WHERE workspace_id = $1 AND id = $2 FOR UPDATE");
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(tx.conn())
        .await
        .context("reading a key")?
        .ok_or_else(|| Error::not_found("api_key", id))
}

async fn revoke_row(scope: &Scope, tx: &mut Tx, id: ApiKeyId) -> Result<()> {
    sqlx::query("UPDATE api_key SET revoked_at = $3, updated_at = $3 WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("revoking a key")?;
    Ok(())
}

/// Writes a new key and gives its clear text, which exists from here to the answer only.
pub(crate) async fn insert(
    tx: &mut Tx,
    (organization_id, workspace_id): (OrganizationId, WorkspaceId),
    key_type: ApiKeyType,
    terms: &KeyTerms,
    now: Instant,
) -> Result<(ApiKeyId, Token)> {
    let (id, token) = (ApiKeyId::generate(), Token::generate(key_type));
    sqlx::query(
        "INSERT INTO api_key (id, organization_id, workspace_id, key_hash, key_prefix, key_type, name, scopes, allowed_ips,
                              expires_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
    )
    .bind(id)
    .bind(organization_id)
    .bind(workspace_id)
    .bind(token.hash().as_slice())
    .bind(token.prefix())
    .bind(key_type)
    .bind(&terms.name)
    .bind(&terms.scopes)
    .bind(&terms.allowed_ips)
    .bind(terms.expires_at)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("creating a key")?;
    Ok((id, token))
}

fn with_clear_text(
    id: ApiKeyId,
    token: &Token,
    key_type: ApiKeyType,
    terms: KeyTerms,
    now: Instant,
) -> CreateApiKeyResponse {
    CreateApiKeyResponse {
        id,
        key: token.reveal().to_owned(),
        key_prefix: token.prefix(),
        key_type,
        name: terms.name,
        scopes: terms.scopes,
        allowed_ips: terms.allowed_ips,
        expires_at: terms.expires_at,
        created_at: now,
    }
}

async fn announce(scope: &Scope, tx: &mut Tx, event: &str, id: ApiKeyId, prefix: &str) -> Result<()> {
    let mut payload = JsonMap::new();
    payload.insert("id".into(), json!(id));
    payload.insert("key_prefix".into(), json!(prefix));
    tx.emit(scope, event, "api_key", id, payload).await
}
