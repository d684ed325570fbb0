//! What customers look like on the wire and in the database: members and columns have the same names, and a record is
//! written from its JSON.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::{CustomerId, JsonMap, OrganizationId, ProviderID, TestClockId, WalletMode, wire_enum};
use ledger::{WalletDTO, WalletDefaults};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

wire_enum! {
    /// Business or consumer; affects tax and the form of invoices.
    pub enum CustomerType {
        /// The overview's company.
        Business = "BUSINESS",
        /// The overview's individual.
        Consumer = "CONSUMER",
        /// Not known.
        Unknown = "UNKNOWN",
    }
}

wire_enum! {
    /// When charges are paid.
    pub enum BillingModel {
        /// Before: wallet mode PREPAID.
        Prepaid = "PREPAID",
        /// After: wallet mode POSTPAID.
        Postpaid = "POSTPAID",
        /// Wallet first, the rest invoiced; goes with either mode.
        Hybrid = "HYBRID",
    }
}

wire_enum! {
    /// State of a customer.
    pub enum CustomerStatus {
        /// In use.
        Active = "ACTIVE",
        /// Not in use.
        Inactive = "INACTIVE",
        /// Put away.
        Archived = "ARCHIVED",
        /// Merged into another.
        Merged = "MERGED",
    }
}

wire_enum! {
    /// Result of the VAT check.
    pub enum VatValidationStatus {
        /// Not asked.
        Unvalidated = "UNVALIDATED",
        /// Asked.
        Pending = "PENDING",
        /// Valid.
        Valid = "VALID",
        /// Invalid.
        Invalid = "INVALID",
        /// The service did not answer.
        Unavailable = "UNAVAILABLE",
        /// Declared valid by hand.
        ManualValid = "MANUAL_VALID",
        /// Declared invalid by hand.
        ManualInvalid = "MANUAL_INVALID",
    }
}

/// Address that decides tax and is printed (`domain.BillingAddress`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BillingAddress {
    /// Street.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line1: Option<String>,
    /// More of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line2: Option<String>,
    /// City.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
    /// State or region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Postal code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postal_code: Option<String>,
    /// ISO 3166-1 alpha-2, upper case.
    pub country: String,
}

/// A customer (`domain.Customer`).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema, FromRow)]
pub struct Customer {
    /// Identity.
    pub id: CustomerId,
    /// Owning organization.
    pub organization_id: OrganizationId,
    /// The caller's own id, unique in the workspace.
    #[schema(required)]
    pub external_id: Option<String>,
    /// Main contact: invoices and dunning go there.
    pub email: String,
    /// Printed on invoices.
    pub name: String,
    /// Business or consumer.
    pub customer_type: CustomerType,
    /// When charges are paid.
    pub billing_model: BillingModel,
    /// Mode of the wallets.
    pub mode: WalletMode,
    /// State.
    pub status: CustomerStatus,
    /// Decides tax.
    #[schema(required)]
    #[sqlx(json(nullable))]
    pub billing_address: Option<BillingAddress>,
    /// Tax id by type, e.g. `eu_vat`.
    #[sqlx(json)]
    pub tax_identifiers: BTreeMap<String, String>,
    /// Billing currency; null is the organization's default.
    #[schema(required, value_type = Option<String>)]
    pub preferred_currency: Option<domain::Currency>,
    /// Language of documents.
    #[schema(required)]
    pub locale: Option<String>,
    /// Days until an invoice is due.
    #[schema(required)]
    pub payment_terms_days: Option<i32>,
    /// E-invoice routing.
    #[schema(required)]
    pub peppol_id: Option<String>,
    /// E-invoice address.
    #[schema(required)]
    pub einvoice_email: Option<String>,
    /// Whether e-invoices are preferred.
    pub prefer_einvoice: bool,
    /// Gateway to use.
    #[schema(required)]
    pub preferred_provider: Option<ProviderID>,
    /// Gateways not to use.
    pub disabled_providers: Vec<ProviderID>,
    /// Wallet default.
    #[schema(required)]
    pub default_auto_topup_enabled: Option<bool>,
    /// Wallet default, in the currency of the wallet that takes it.
    #[schema(required, value_type = Option<String>)]
    pub default_auto_topup_amount: Option<Decimal>,
    /// Wallet default.
    #[schema(required, value_type = Option<String>)]
    pub default_credit_limit: Option<Decimal>,
    /// Wallet default.
    #[schema(required, value_type = Option<String>)]
    pub default_low_balance_threshold: Option<Decimal>,
    /// Wallet default.
    #[schema(required, value_type = Option<String>)]
    pub default_max_balance: Option<Decimal>,
    /// Wallet default.
    #[schema(required, value_type = Option<String>)]
    pub default_max_single_credit: Option<Decimal>,
    /// Result of the VAT check.
    pub vat_validation_status: VatValidationStatus,
    /// Opt-out of VAT checks.
    pub vat_validation_disabled: bool,
    /// Why.
    #[schema(required)]
    pub vat_validation_disabled_reason: Option<String>,
    /// Tags.
    pub tag_ids: Vec<Uuid>,
    /// Clock that it lives by; set at creation only.
    #[schema(required)]
    pub test_clock_id: Option<TestClockId>,
    /// The survivor of a merge.
    #[schema(required)]
    pub merged_into_id: Option<CustomerId>,
    /// Values of the organization's field definitions.
    #[schema(value_type = Object)]
    #[sqlx(json)]
    pub custom_fields: JsonMap,
    /// The caller's own.
    #[schema(value_type = Object)]
    #[sqlx(json)]
    pub metadata: JsonMap,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
    /// When it was deleted.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
}

impl Customer {
    /// What its wallets take.
    #[must_use]
    pub fn wallet_defaults(&self) -> WalletDefaults {
        WalletDefaults {
            auto_topup_enabled: self.default_auto_topup_enabled,
            auto_topup_amount: self.default_auto_topup_amount,
            credit_limit: self.default_credit_limit,
            low_balance_threshold: self.default_low_balance_threshold,
            max_balance: self.default_max_balance,
            max_single_credit: self.default_max_single_credit,
        }
    }
}

/// A new customer with its wallet (`handler.createCustomerResponse`).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct CreateCustomerResponse {
    /// The customer.
    #[serde(flatten)]
    pub customer: Customer,
    /// Its primary wallet.
    pub wallet: WalletDTO,
}
