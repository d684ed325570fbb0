//! From a bearer token to the credential behind it.
//!
//! A look-up by hash is kept for [`CACHE_FOR`], so that a busy producer costs no query per request. Revocation and
//! rotation through this process take effect at once; through another process after at most that time.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as Tick};

use dashmap::DashMap;
use domain::{ApiKeyId, Error, Instant, OrganizationId, Result, WorkspaceId, WorkspaceMode};
use sqlx::FromRow;
use store::{Store, StoreError};
use subtle::ConstantTimeEq;

use crate::Network;
use crate::token::{self, TokenHash};

/// How long a look-up is trusted.
pub const CACHE_FOR: Duration = Duration::from_secs(2);
/// How often `last_used_at` of one key is written.
const LAST_USED_EVERY: Duration = Duration::from_secs(60);

/// What a key stands for.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The key.
    pub api_key_id: ApiKeyId,
    /// Its tenant.
    pub organization_id: OrganizationId,
    /// Its data space.
    pub workspace_id: WorkspaceId,
    /// Live or sandbox.
    pub mode: WorkspaceMode,
    /// Granted permissions; empty means all assignable ones.
    pub scopes: Vec<String>,
    allowed_networks: Vec<Network>,
    expires_at: Option<Instant>,
    organization_suspended: bool,
}

#[derive(FromRow)]
struct CredentialRow {
    id: ApiKeyId,
    key_hash: Vec<u8>,
    organization_id: OrganizationId,
    workspace_id: WorkspaceId,
    mode: WorkspaceMode,
    scopes: Vec<String>,
    allowed_ips: Vec<String>,
    expires_at: Option<Instant>,
    suspended: bool,
}

impl Credential {
    /// Whether the key may be used from this address; an unknown address is on no list.
    ///
    /// # Errors
    /// `Forbidden`.
    pub fn check_address(&self, address: Option<IpAddr>) -> Result<()> {
        let listed = |address| self.allowed_networks.iter().any(|network| network.contains(address));
        if self.allowed_networks.is_empty() || address.is_some_and(listed) {
            return Ok(());
        }
        Err(Error::Forbidden { detail: "this address is not on the key's allowlist".into(), required_permission: None })
    }

    /// Whether the organization may work.
    ///
    /// # Errors
    /// `Unauthorized` while it is suspended.
    pub fn check_organization(&self) -> Result<()> {
        if self.organization_suspended { Err(Error::Unauthorized("the organization is suspended")) } else { Ok(()) }
    }

    /// Whether the key holds a permission: no scopes means all assignable ones.
    ///
    /// # Errors
    /// `Forbidden` with `required_permission`.
    pub fn require(&self, permission: &str) -> Result<()> {
        if self.scopes.is_empty() && crate::permission::is_assignable(permission)
            || self.scopes.iter().any(|scope| scope == permission)
        {
            return Ok(());
        }
        Err(Error::Forbidden {
            detail: format!("the key lacks the permission {permission}"),
            required_permission: Some(permission.to_owned()),
        })
    }
}

struct Cached {
    credential: Arc<Credential>,
    read_at: Tick,
}

/// Looks keys up and remembers them for a moment.
#[derive(Clone)]
pub struct Authenticator {
    store: Store,
    cache: Arc<DashMap<TokenHash, Cached>>,
    /// Raised by every [`Authenticator::forget`]: a look-up that began before must not be remembered.
    generation: Arc<AtomicU64>,
    last_used: Arc<DashMap<ApiKeyId, Tick>>,
}

impl Authenticator {
    /// On this database.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, cache: Arc::default(), generation: Arc::default(), last_used: Arc::default() }
    }

    /// The credential behind the value of an `Authorization` header.
    ///
    /// # Errors
    /// `Unauthorized` for everything but a known, unrevoked and unexpired key; `Internal` when the look-up broke.
    pub async fn authenticate(&self, header: Option<&[u8]>, now: Instant) -> Result<Arc<Credential>> {
        let hash = token::hash_presented(bearer(header)?).ok_or(UNKNOWN)?;
        let fresh = self.cache.get(&hash).filter(|c| c.read_at.elapsed() < CACHE_FOR).map(|c| c.credential.clone());
        let credential = match fresh {
            Some(credential) => credential,
            None => self.look_up(hash, now).await?,
        };
        if credential.expires_at.is_some_and(|end| end <= now) {
            return Err(Error::Unauthorized("the key has expired"));
        }
        Ok(credential)
    }

    async fn look_up(&self, hash: TokenHash, now: Instant) -> Result<Arc<Credential>> {
        let generation = self.generation.load(Ordering::Acquire);
        let row: Option<CredentialRow> = sqlx::query_as(
            "SELECT k.id, k.key_hash, k.organization_id, k.workspace_id, w.mode, k.scopes, k.allowed_ips, k.expires_at,
                    o.status = 'suspended' AS suspended
             FROM api_key k JOIN workspace w ON w.id = k.workspace_id JOIN organization o ON o.id = k.organization_id
             WHERE k.key_hash = $1 AND k.revoked_at IS NULL",
        )
        .bind(hash.as_slice())
        .fetch_optional(self.store.pool())
        .await
        .context("looking a key up")?;
        let Some(row) = row.filter(|row| bool::from(row.key_hash.as_slice().ct_eq(&hash))) else {
            self.cache.remove(&hash);
            return Err(UNKNOWN);
        };
        self.note_use(row.id, now);
        let credential = Arc::new(Credential::try_from(row)?);
        let entry = self.cache.entry(hash);
        if self.generation.load(Ordering::Acquire) == generation {
            entry.insert(Cached { credential: credential.clone(), read_at: Tick::now() });
        }
        Ok(credential)
    }

    /// Forgets everything that was remembered of a key: it was changed, rotated or revoked.
    pub fn forget(&self, key: ApiKeyId) {
        // Raised first: an insert that follows sees it, one that went before is removed below.
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.cache.retain(|_, cached| cached.credential.api_key_id != key);
    }

    /// Writes `last_used_at`, at most once a minute and key, beside the request.
    fn note_use(&self, key: ApiKeyId, now: Instant) {
        if self.last_used.get(&key).is_some_and(|at| at.elapsed() < LAST_USED_EVERY) {
            return;
        }
        self.last_used.insert(key, Tick::now());
        let store = self.store.clone();
        tokio::spawn(async move {
            let written = sqlx::query("UPDATE api_key SET last_used_at = $2 WHERE id = $1")
                .bind(key)
                .bind(now)
                .execute(store.pool())
                .await;
            if let Err(error) = written {
                tracing::debug!(api_key.id = %key, %error, "could not note the use of a key");
            }
        });
    }
}

const UNKNOWN: Error = Error::Unauthorized("the key is unknown or revoked");

/// The token of `Bearer <token>`.
fn bearer(header: Option<&[u8]>) -> Result<&str> {
    let header = header.ok_or(Error::Unauthorized("the Authorization header is missing"))?;
    let text = std::str::from_utf8(header).map_err(|_| Error::Unauthorized("the Authorization header is not text"))?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Error::Unauthorized("the scheme of the Authorization header must be Bearer"));
    }
    let token = token.trim();
    if token.is_empty() { Err(Error::Unauthorized("the bearer token is empty")) } else { Ok(token) }
}

impl TryFrom<CredentialRow> for Credential {
    type Error = Error;

    fn try_from(row: CredentialRow) -> Result<Self> {
        let networks: Result<Vec<Network>, _> = row.allowed_ips.iter().map(|text| text.parse()).collect();
        Ok(Self {
            api_key_id: row.id,
            organization_id: row.organization_id,
            workspace_id: row.workspace_id,
            mode: row.mode,
            scopes: row.scopes,
            allowed_networks: networks
                .map_err(|error| Error::internal(format!("allowlist of key {}", row.id), error))?,
            expires_at: row.expires_at,
            organization_suspended: row.suspended,
        })
    }
}
