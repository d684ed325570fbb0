//! What a transaction looks like on the wire and in the database.

use chrono::{DateTime, Utc};
use domain::{
    Currency, CustomerId, Error, HoldId, InvoiceId, JsonMap, Money, OrganizationId, PaymentGatewayId, PaymentMethodId,
    ProviderID, Result, SettlementId, SubscriptionId, TransactionId, WalletId, WorkspaceId,
};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use store::money;
use utoipa::ToSchema;

use crate::words::{FailureCode, ManualPaymentSource, TransactionDirection, TransactionKind, TransactionStatus};

/// A movement of money (`domain.Transaction`).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Transaction {
    /// Identity.
    pub id: TransactionId,
    /// Owning organization.
    pub organization_id: OrganizationId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Whose money.
    pub customer_id: CustomerId,
    /// The invoice that is paid.
    #[schema(required)]
    pub invoice_id: Option<InvoiceId>,
    /// Its subscription.
    #[schema(required)]
    pub subscription_id: Option<SubscriptionId>,
    /// The settlement that is paid out.
    #[schema(required)]
    pub settlement_id: Option<SettlementId>,
    /// The wallet that is filled, or that pays.
    #[schema(required)]
    pub wallet_id: Option<WalletId>,
    /// The hold that is charged.
    #[schema(required)]
    pub hold_id: Option<HoldId>,
    /// The instrument.
    #[schema(required)]
    pub payment_method_id: Option<PaymentMethodId>,
    /// Through which it goes.
    #[schema(required)]
    pub gateway_id: Option<PaymentGatewayId>,
    /// The payment that is given or taken back.
    #[schema(required)]
    pub parent_transaction_id: Option<TransactionId>,
    /// The processor; `external` for what no gateway took.
    #[schema(required)]
    pub provider: Option<ProviderID>,
    /// The processor's name of it; unique per gateway.
    #[schema(required)]
    pub provider_reference: Option<String>,
    /// Which way the money goes.
    pub direction: TransactionDirection,
    /// What it is.
    pub kind: TransactionKind,
    /// How far it is.
    pub status: TransactionStatus,
    /// How much; above zero.
    pub amount: Money,
    /// How much of it was given back.
    pub refunded_amount: Money,
    /// How money came that no gateway took.
    #[schema(required)]
    pub source: Option<ManualPaymentSource>,
    /// The caller's name of it.
    #[schema(required)]
    pub reference: Option<String>,
    /// Why it failed, in one vocabulary for all providers.
    #[schema(required)]
    pub failure_code: Option<String>,
    /// Why, in the provider's words.
    #[schema(required)]
    pub failure_message: Option<String>,
    /// Which attempt to pay the same thing it is, from 1.
    pub attempt: i32,
    /// When its outcome was recorded.
    #[schema(required)]
    pub processed_at: Option<DateTime<Utc>>,
    /// The caller's own.
    #[schema(value_type = Object)]
    pub metadata: JsonMap,
    /// When it was written.
    pub created_at: DateTime<Utc>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
    /// Whether Kontorion started it by itself.
    #[serde(skip)]
    #[schema(ignore)]
    pub is_automatic: bool,
    /// What came beyond what its invoice was owed, and is on the wallet.
    #[serde(skip)]
    #[schema(ignore)]
    pub excess_amount: Money,
    /// Of a refund: whether a credit note was issued over it.
    #[serde(skip)]
    #[schema(ignore)]
    pub is_credited: bool,
    /// Times that the provider was asked.
    #[serde(skip)]
    #[schema(ignore)]
    pub checks: i32,
}

impl Transaction {
    /// What a caller who waited for the payment is told: nothing while it is open or has succeeded.
    ///
    /// # Errors
    /// `PAYMENT_DECLINED` with `failure_code`; `Unavailable` when the gateway could not be reached.
    pub fn refusal(&self) -> Result<()> {
        let Some(code) = &self.failure_code else { return Ok(()) };
        let message = self.failure_message.as_deref().unwrap_or("the gateway gave no reason");
        if *code == FailureCode::NetworkError.as_str() {
            let detail = format!("the payment gateway cannot be reached, nothing was charged: {message}");
            return Err(Error::Unavailable { dependency: "payment_gateway", detail, retry_after_secs: 30 });
        }
        let detail = format!("the payment was declined: {message}");
        Err(Error::rule("PAYMENT_DECLINED", detail).with("failure_code", code).with("transaction_id", self.id))
    }

    /// What its invoice still has of it: neither given back nor beyond what was due; zero at least.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`.
    pub(crate) fn kept(&self) -> Result<Money> {
        let kept = self.amount.sub(self.excess_amount)?.sub(self.refunded_amount)?;
        Ok(if kept.is_negative() { Money::zero(kept.currency()) } else { kept })
    }

    /// As the payload of an event.
    pub(crate) fn payload(&self) -> JsonMap {
        store::payload(self).unwrap_or_default()
    }
}

impl FromRow<'_, PgRow> for Transaction {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        let metadata: sqlx::types::Json<JsonMap> = row.try_get("metadata")?;
        Ok(Self {
            id: row.try_get("id")?,
            organization_id: row.try_get("organization_id")?,
            workspace_id: row.try_get("workspace_id")?,
            customer_id: row.try_get("customer_id")?,
            invoice_id: row.try_get("invoice_id")?,
            subscription_id: row.try_get("subscription_id")?,
            settlement_id: row.try_get("settlement_id")?,
            wallet_id: row.try_get("wallet_id")?,
            hold_id: row.try_get("hold_id")?,
            payment_method_id: row.try_get("payment_method_id")?,
            gateway_id: row.try_get("gateway_id")?,
            parent_transaction_id: row.try_get("parent_transaction_id")?,
            provider: row.try_get("provider")?,
            provider_reference: row.try_get("provider_reference")?,
            direction: row.try_get("direction")?,
            kind: row.try_get("kind")?,
            status: row.try_get("status")?,
            amount: money(row, "amount", currency)?,
            refunded_amount: money(row, "refunded_amount", currency)?,
            source: row.try_get("source")?,
            reference: row.try_get("reference")?,
            failure_code: row.try_get("failure_code")?,
            failure_message: row.try_get("failure_message")?,
            attempt: row.try_get("attempt")?,
            processed_at: row.try_get("processed_at")?,
            metadata: metadata.0,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            is_automatic: row.try_get("is_automatic")?,
            excess_amount: money(row, "excess_amount", currency)?,
            is_credited: row.try_get("is_credited")?,
            checks: row.try_get("checks")?,
        })
    }
}
