//! A new tenant: an organization with a live and a sandbox workspace and a first key of each.

use domain::error::FieldErrorCode as Code;
use domain::{ApiKeyId, Currency, Error, Instant, OrganizationId, Result, WorkspaceId, WorkspaceMode};
use store::{StoreError, Tx};

use crate::Token;
use crate::api_key::{self, KeyTerms};
use crate::token::ApiKeyType;

/// What a new organization is made of.
#[derive(Clone, Debug)]
pub struct NewOrganization {
    /// Display name, 1–255 characters.
    pub name: String,
    /// IANA time zone of its calendar.
    pub timezone: String,
    /// Currency where nothing else names one.
    pub default_currency: Currency,
}

impl NewOrganization {
    /// With the defaults of organization-settings: UTC and EUR.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), timezone: "UTC".into(), default_currency: Currency::EUR }
    }
}

/// A workspace of a new tenant, with its first key.
#[derive(Clone, Debug)]
pub struct NewWorkspace {
    /// Data space.
    pub id: WorkspaceId,
    /// Live or sandbox.
    pub mode: WorkspaceMode,
    /// Id of the first key, which may do everything.
    pub api_key_id: ApiKeyId,
    /// Its clear text, to be shown once.
    pub token: Token,
}

/// A new tenant.
#[derive(Clone, Debug)]
pub struct NewTenant {
    /// The organization.
    pub organization_id: OrganizationId,
    /// Real money.
    pub live: NewWorkspace,
    /// Simulated data and test clocks.
    pub sandbox: NewWorkspace,
}

/// Makes an organization with a live and a sandbox workspace and one unrestricted key of each.
///
/// # Errors
/// `Validation` for an empty or overlong name; as every statement.
pub async fn bootstrap(tx: &mut Tx, now: Instant, request: &NewOrganization) -> Result<NewTenant> {
    if !(1..=255).contains(&request.name.trim().chars().count()) {
        return Err(Error::field("name", Code::OutOfRange, "must have 1 to 255 characters"));
    }
    let organization_id = OrganizationId::generate();
    sqlx::query(
        "INSERT INTO organization (id, name, timezone, default_currency, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $5)",
    )
    .bind(organization_id)
    .bind(request.name.trim())
    .bind(&request.timezone)
    .bind(request.default_currency.as_str())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("creating the organization")?;
    Ok(NewTenant {
        organization_id,
        live: workspace(tx, now, organization_id, WorkspaceMode::Live).await?,
        sandbox: workspace(tx, now, organization_id, WorkspaceMode::Sandbox).await?,
    })
}

async fn workspace(
    tx: &mut Tx,
    now: Instant,
    organization_id: OrganizationId,
    mode: WorkspaceMode,
) -> Result<NewWorkspace> {
    let id = WorkspaceId::generate();
    let mut ingest_secret = [0_u8; 32];
    rand::fill(&mut ingest_secret);
    sqlx::query(
        "INSERT INTO workspace (id, organization_id, name, mode, ingest_secret, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id)
    .bind(organization_id)
    .bind(match mode {
        WorkspaceMode::Live => "Live",
        WorkspaceMode::Sandbox => "Sandbox",
    })
    .bind(mode)
    .bind(ingest_secret.as_slice())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("creating the workspace")?;
    let terms = KeyTerms { name: "Initial key".into(), scopes: vec![], allowed_ips: vec![], expires_at: None };
    let (api_key_id, token) = api_key::insert(tx, (organization_id, id), ApiKeyType::of(mode), &terms, now).await?;
    Ok(NewWorkspace { id, mode, api_key_id, token })
}
