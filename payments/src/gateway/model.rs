//! What gateways look like on the wire. Secrets are no member of any type here: they are read where they are used.

use chrono::{DateTime, Utc};
use domain::{Currency, OrganizationId, PaymentGatewayId, ProviderID, WorkspaceId};
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use store::Page;
use store::list::PageResponse;
use utoipa::ToSchema;

use super::settings::ProviderSettings;
use crate::words::{GatewayMode, PaymentMethodType};

/// A gateway (`internal.payment.PaymentGatewayConfig`), without its secrets.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema, FromRow)]
pub struct PaymentGatewayConfig {
    /// Identity.
    pub id: PaymentGatewayId,
    /// Owning organization.
    pub organization_id: OrganizationId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// The processor; never changes.
    pub provider: ProviderID,
    /// Label for operators.
    #[schema(required)]
    pub display_name: Option<String>,
    /// Which world its credentials belong to.
    pub mode: GatewayMode,
    /// Names of the secrets that are set.
    pub config_keys: Vec<String>,
    /// Options that are no secrets.
    #[schema(value_type = Object)]
    #[sqlx(json)]
    pub provider_settings: ProviderSettings,
    /// What it charges in; empty: anything.
    #[schema(value_type = Vec<String>)]
    pub supported_currencies: Vec<Currency>,
    /// What it can charge; empty: anything.
    pub supported_methods: Vec<PaymentMethodType>,
    /// Whether payments may go through it.
    pub is_enabled: bool,
    /// Whether it is asked where no preference matches.
    pub is_default: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
}

/// `handler.gatewayCreateResponse`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct GatewayCreateResponse {
    /// The gateway.
    pub data: PaymentGatewayConfig,
}

/// `handler.gatewayListResponse`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct GatewayListResponse {
    /// The gateways.
    pub data: Vec<PaymentGatewayConfig>,
    /// How to go on.
    pub pagination: PageResponse,
}

impl From<Page<PaymentGatewayConfig>> for GatewayListResponse {
    fn from(page: Page<PaymentGatewayConfig>) -> Self {
        Self { data: page.data, pagination: page.pagination }
    }
}

/// `handler.gatewayUpdateAck`: that an update was done, not the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct GatewayUpdateAck {
    /// The gateway.
    pub id: PaymentGatewayId,
    /// Always true: a refusal is a problem document.
    pub updated: bool,
    /// When.
    pub updated_at: DateTime<Utc>,
}

/// `handler.gatewayUpdateResponse`.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct GatewayUpdateResponse {
    /// The acknowledgement.
    pub data: GatewayUpdateAck,
}

pub(super) fn json(settings: &ProviderSettings) -> Json<&ProviderSettings> {
    Json(settings)
}
