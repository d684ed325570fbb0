//! What payment methods look like on the wire and in the database.

use chrono::{DateTime, Utc};
use domain::{CustomerId, JsonMap, OrganizationId, PaymentMethodId, ProviderID};
use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;

use crate::words::{PaymentMethodStatus, PaymentMethodType};

/// A card past its last day reads as expired, by the customer's clock. A macro, so that it can stand inside a constant.
macro_rules! status {
    () => {
        "CASE WHEN m.status IN ('ACTIVE', 'PENDING') AND m.exp_year IS NOT NULL AND m.exp_month IS NOT NULL
                   AND make_date(m.exp_year, m.exp_month, 1) + interval '1 month'
                       <= coalesce(clock.frozen_at, now()) AT TIME ZONE 'UTC'
              THEN 'EXPIRED' ELSE m.status END"
    };
}

/// The status of a method as it reads.
pub(super) const STATUS: &str = status!();

/// Columns of a [`PaymentMethod`], from [`FROM`].
pub(crate) const COLUMNS: &str = concat!(
    "m.id, m.organization_id, m.customer_id, m.type, m.provider, m.provider_id, ",
    status!(),
    " AS status, m.is_default, m.display_brand, m.last4, m.exp_month, m.exp_year, m.bank_name, m.account_last4, m.metadata,
    m.created_at, m.updated_at, m.deleted_at"
);

/// Tables of a [`PaymentMethod`].
pub(crate) const FROM: &str = "payment_method m JOIN customer ON customer.id = m.customer_id
    LEFT JOIN test_clock clock ON clock.id = customer.test_clock_id";

/// A stored instrument (`domain.PaymentMethod`).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema, FromRow)]
pub struct PaymentMethod {
    /// Identity.
    pub id: PaymentMethodId,
    /// Owning organization.
    pub organization_id: OrganizationId,
    /// Owner.
    pub customer_id: CustomerId,
    /// Kind of instrument.
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub method_type: PaymentMethodType,
    /// Who holds the token.
    pub provider: ProviderID,
    /// The provider's token.
    pub provider_id: String,
    /// Whether it can be charged.
    pub status: PaymentMethodStatus,
    /// Whether it is charged where none is named.
    pub is_default: bool,
    /// Brand of a card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_brand: Option<String>,
    /// Last four digits of a card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last4: Option<String>,
    /// Last month of a card, 1 to 12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp_month: Option<i32>,
    /// Year of that month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp_year: Option<i32>,
    /// Bank of an account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bank_name: Option<String>,
    /// Last four digits of an account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_last4: Option<String>,
    /// The caller's own.
    #[schema(value_type = Object, required = false)]
    #[sqlx(json)]
    pub metadata: JsonMap,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
    /// When it was taken away.
    pub deleted_at: Option<DateTime<Utc>>,
}
