//! Reads and writes of gateways.

use std::collections::BTreeMap;

use domain::{Error, PaymentGatewayId, ProviderID, Result, Scope};
use sqlx::{AssertSqlSafe, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, StoreError, Tx, on_constraint};

use super::choice::Candidate;
use super::model::{GatewayListResponse, GatewayUpdateAck, PaymentGatewayConfig, json};
use super::request::{
    CreatePaymentGatewayConfigRequest, Secrets, UpdatePaymentGatewayConfigRequest, UpdateProviderSettingsRequest,
};
use super::settings::ProviderSettings;
use crate::vault::Vault;
use crate::words::GatewayMode;

/// How gateways are listed.
pub const LIST: ListSpec = ListSpec {
    name: "payment_gateways",
    columns: "*",
    from: "payment_gateway",
    workspace_column: "workspace_id",
    condition: "deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("provider", ListKind::Word(&["stripe", "gocardless", "mollie", "adyen", "external"])),
        ListField::new("mode", ListKind::Word(&["test", "live"])),
        ListField::new("is_enabled", ListKind::Bool),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// `GET /v1/payment-gateways`, newest first.
///
/// # Errors
/// As every statement.
pub async fn list(scope: &Scope, conn: &mut PgConnection, query: &ListQuery) -> Result<GatewayListResponse> {
    Ok(query.fetch::<PaymentGatewayConfig>(conn, scope).await?.into())
}

/// `GET /v1/payment-gateways/{id}`.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: PaymentGatewayId) -> Result<PaymentGatewayConfig> {
    read(scope, conn, id, "").await
}

async fn read(
    scope: &Scope,
    conn: &mut PgConnection,
    id: PaymentGatewayId,
    lock: &str,
) -> Result<PaymentGatewayConfig> {
    let sql =
        format!("SELECT * FROM payment_gateway WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL {lock}");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a payment gateway")?
        .ok_or_else(|| Error::not_found("payment_gateway", id))
}

/// `POST /v1/payment-gateways`.
///
/// # Errors
/// `DUPLICATE` for a second gateway of one provider, mode and name; `Internal` when the database's secrets have another key.
pub async fn create(
    scope: &Scope,
    tx: &mut Tx,
    vault: &Vault,
    request: &CreatePaymentGatewayConfigRequest,
) -> Result<PaymentGatewayConfig> {
    let now = scope.now();
    let gateway = PaymentGatewayConfig {
        id: PaymentGatewayId::generate(),
        organization_id: scope.organization_id,
        workspace_id: scope.workspace_id,
        provider: request.provider,
        display_name: request.display_name.clone(),
        mode: request.mode,
        config_keys: names(&request.config),
        provider_settings: ProviderSettings::default(),
        supported_currencies: request.supported_currencies.clone(),
        supported_methods: request.supported_methods.clone(),
        is_enabled: true,
        is_default: false,
        created_at: now,
        updated_at: now,
    };
    vault.enter(tx.conn()).await?;
    let sealed = seal(vault, gateway.id, &request.config)?;
    let inserted = sqlx::query(
        "INSERT INTO payment_gateway (id, organization_id, workspace_id, provider, display_name, mode, secrets, config_keys,
             supported_currencies, supported_methods, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
    )
    .bind(gateway.id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(gateway.provider)
    .bind(&gateway.display_name)
    .bind(gateway.mode)
    .bind(sealed)
    .bind(&gateway.config_keys)
    .bind(&gateway.supported_currencies)
    .bind(&gateway.supported_methods)
    .bind(now)
    .execute(tx.conn())
    .await;
    on_constraint(inserted, "making a payment gateway", taken)?;
    Ok(gateway)
}

fn taken(constraint: &str) -> Option<Error> {
    (constraint == "payment_gateway_name").then(|| Error::duplicate("display_name", None))
}

/// `PUT /v1/payment-gateways/{id}`.
///
/// # Errors
/// `NotFound`; `DUPLICATE`; a rule when a gateway would be default and switched off; `GATEWAY_IN_USE` when its mode would
/// change while payments are under way.
pub async fn update(
    scope: &Scope,
    tx: &mut Tx,
    vault: &Vault,
    id: PaymentGatewayId,
    request: &UpdatePaymentGatewayConfigRequest,
) -> Result<GatewayUpdateAck> {
    let mut gateway = read(scope, tx.conn(), id, "FOR UPDATE").await?;
    if let Some(mode) = request.mode.filter(|mode| *mode != gateway.mode) {
        refuse_while_used(scope, tx, &gateway).await?;
        gateway.mode = mode;
    }
    gateway.is_enabled = request.is_enabled.unwrap_or(gateway.is_enabled);
    gateway.is_default = request.is_default.unwrap_or(gateway.is_default);
    if gateway.is_default && !gateway.is_enabled {
        let detail = "a gateway that is switched off cannot be the default: send is_enabled true, or is_default false";
        return Err(Error::business_rule(detail));
    }
    if request.display_name.is_some() {
        gateway.display_name.clone_from(&request.display_name);
    }
    let sealed = match &request.config {
        Some(config) => {
            vault.enter(tx.conn()).await?;
            gateway.config_keys = names(config);
            Some(seal(vault, id, config)?)
        }
        None => None,
    };
    gateway.supported_currencies = request.supported_currencies.clone().unwrap_or(gateway.supported_currencies);
    gateway.supported_methods = request.supported_methods.clone().unwrap_or(gateway.supported_methods);
    gateway.updated_at = scope.now();
    if gateway.is_default {
        clear_default(scope, tx, &gateway).await?;
    }
    write(tx, &gateway, sealed).await?;
    Ok(GatewayUpdateAck { id, updated: true, updated_at: gateway.updated_at })
}

/// At most one default per workspace and mode.
async fn clear_default(scope: &Scope, tx: &mut Tx, gateway: &PaymentGatewayConfig) -> Result<()> {
    sqlx::query(
        "UPDATE payment_gateway SET is_default = false, updated_at = $4
         WHERE workspace_id = $1 AND mode = $2 AND id <> $3 AND is_default AND deleted_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(gateway.mode)
    .bind(gateway.id)
    .bind(gateway.updated_at)
    .execute(tx.conn())
    .await
    .context("taking the default from other gateways")?;
    Ok(())
}

async fn write(tx: &mut Tx, gateway: &PaymentGatewayConfig, sealed: Option<Vec<u8>>) -> Result<()> {
    let written = sqlx::query(
        "UPDATE payment_gateway SET display_name = $2, mode = $3, secrets = coalesce($4, secrets), config_keys = $5,
             provider_settings = $6, supported_currencies = $7, supported_methods = $8, is_enabled = $9, is_default = $10,
             updated_at = $11
         WHERE id = $1",
    )
    .bind(gateway.id)
    .bind(&gateway.display_name)
    .bind(gateway.mode)
    .bind(sealed)
    .bind(&gateway.config_keys)
    .bind(json(&gateway.provider_settings))
    .bind(&gateway.supported_currencies)
    .bind(&gateway.supported_methods)
    .bind(gateway.is_enabled)
    .bind(gateway.is_default)
    .bind(gateway.updated_at)
    .execute(tx.conn())
    .await;
    on_constraint(written, "changing a payment gateway", |constraint| match constraint {
        "payment_gateway_default" => Some(Error::conflict("CONFLICT", "another gateway becomes the default just now")),
        other => taken(other),
    })?;
    Ok(())
}

/// `PUT /v1/payment-gateways/{id}/provider-settings`; `read` gets the provider, which decides what is known.
///
/// # Errors
/// `NotFound`, and as `read`.
pub async fn update_provider_settings(
    scope: &Scope,
    tx: &mut Tx,
    id: PaymentGatewayId,
    read_request: impl FnOnce(ProviderID) -> Result<UpdateProviderSettingsRequest>,
) -> Result<PaymentGatewayConfig> {
    let mut gateway = read(scope, tx.conn(), id, "FOR UPDATE").await?;
    gateway.provider_settings = read_request(gateway.provider)?.settings;
    gateway.updated_at = scope.now();
    write(tx, &gateway, None).await?;
    Ok(gateway)
}

/// `DELETE /v1/payment-gateways/{id}`: erases the secrets; the row stays for the payments that went through it.
///
/// # Errors
/// `NotFound`; `GATEWAY_IN_USE` while payment methods need it or payments are under way.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: PaymentGatewayId) -> Result<()> {
    let gateway = read(scope, tx.conn(), id, "FOR UPDATE").await?;
    refuse_while_used(scope, tx, &gateway).await?;
    sqlx::query(
        "UPDATE payment_gateway SET secrets = NULL, config_keys = '{}', is_enabled = false, is_default = false,
             deleted_at = $2, updated_at = $2 WHERE id = $1",
    )
    .bind(id)
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("removing a payment gateway")?;
    Ok(())
}

/// A payment method names a provider, so the last gateway of its provider in the workspace's mode is the one that it refers to.
async fn refuse_while_used(scope: &Scope, tx: &mut Tx, gateway: &PaymentGatewayConfig) -> Result<()> {
    let (methods, payments): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM payment_method m WHERE m.workspace_id = $1 AND m.provider = $3
                    AND m.status <> 'REMOVED' AND m.type <> 'EXTERNAL' AND $4 = $5
                    AND NOT EXISTS (SELECT FROM payment_gateway other WHERE other.workspace_id = $1
                        AND other.provider = $3 AND other.mode = $4 AND other.id <> $2 AND other.deleted_at IS NULL)),
                (SELECT count(*) FROM payment_transaction t
                 WHERE t.gateway_id = $2 AND t.status IN ('PENDING', 'PROCESSING'))",
    )
    .bind(scope.workspace_id)
    .bind(gateway.id)
    .bind(gateway.provider)
    .bind(gateway.mode)
    .bind(GatewayMode::of(scope.mode))
    .fetch_one(tx.conn())
    .await
    .context("looking for users of a payment gateway")?;
    if methods == 0 && payments == 0 {
        return Ok(());
    }
    let detail =
        format!("{methods} payment method(s) need this gateway, and {payments} payment(s) are under way through it");
    Err(Error::conflict("GATEWAY_IN_USE", detail).with("payment_methods", methods).with("open_transactions", payments))
}

/// The workspace's gateways in the order of their making, to choose from.
pub(crate) async fn candidates(scope: &Scope, conn: &mut PgConnection) -> Result<Vec<Candidate>> {
    let gateways: Vec<PaymentGatewayConfig> = sqlx::query_as(
        "SELECT * FROM payment_gateway WHERE workspace_id = $1 AND deleted_at IS NULL ORDER BY created_at, id",
    )
    .bind(scope.workspace_id)
    .fetch_all(conn)
    .await
    .context("reading payment gateways")?;
    Ok(gateways.iter().map(Candidate::from).collect())
}

/// Keeps a gateway from being removed before this transaction ends.
///
/// # Errors
/// `NotFound` for one that is removed.
pub(crate) async fn hold(scope: &Scope, conn: &mut PgConnection, id: PaymentGatewayId) -> Result<()> {
    read(scope, conn, id, "FOR SHARE").await.map(drop)
}

/// Whether a provider has a gateway in the workspace's mode; it cannot be removed before this transaction ends.
pub(crate) async fn is_configured(scope: &Scope, conn: &mut PgConnection, provider: ProviderID) -> Result<bool> {
    let found: Option<bool> = sqlx::query_scalar(
        "SELECT true FROM payment_gateway
         WHERE workspace_id = $1 AND provider = $2 AND mode = $3 AND deleted_at IS NULL LIMIT 1 FOR SHARE",
    )
    .bind(scope.workspace_id)
    .bind(provider)
    .bind(GatewayMode::of(scope.mode))
    .fetch_optional(conn)
    .await
    .context("looking for a gateway of a provider")?;
    Ok(found.is_some())
}

fn names(secrets: &Secrets) -> Vec<String> {
    secrets.keys().cloned().collect()
}

fn seal(vault: &Vault, id: PaymentGatewayId, secrets: &Secrets) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(secrets).map_err(|error| Error::internal("writing secrets", error))?;
    vault.seal(id, &bytes)
}

/// The secrets of a gateway, for the one who talks to its provider.
///
/// # Errors
/// `NotFound` for a gateway that is gone; `Internal` when they cannot be opened.
pub async fn secrets(conn: &mut PgConnection, vault: &Vault, id: PaymentGatewayId) -> Result<BTreeMap<String, String>> {
    let sealed: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT secrets FROM payment_gateway WHERE id = $1 AND deleted_at IS NULL")
            .bind(id)
            .fetch_optional(conn)
            .await
            .context("reading the secrets of a payment gateway")?
            .ok_or_else(|| Error::not_found("payment_gateway", id))?;
    let sealed = sealed.ok_or_else(|| Error::invariant(format!("gateway {id} has no secrets")))?;
    let bytes = vault.open(id, &sealed)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::internal("reading opened secrets", error))
}
