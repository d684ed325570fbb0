//! What a settlement looks like on the wire and in the database.

use chrono::{DateTime, Utc};
use domain::{
    Currency, CustomerId, InvoiceId, JsonMap, Money, OrganizationId, SettlementId, SettlementLineId, TransactionId,
    wire_enum,
};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use store::{money, optional_money};
use utoipa::ToSchema;

wire_enum! {
    /// How far a settlement is (`internal.payment_settlement.SettlementStatus`).
    pub enum SettlementStatus {
        /// Made, and not locked.
        Draft = "draft",
        /// Locked for payout.
        Finalized = "finalized",
        /// Paid out.
        Paid = "paid",
        /// Cancelled.
        Void = "void",
    }
}

wire_enum! {
    /// What a line of a settlement is (`internal.payment_settlement.SettlementLineType`).
    pub enum SettlementLineType {
        /// Money that was earned.
        Earning = "EARNING",
        /// The platform's part of it.
        Commission = "COMMISSION",
        /// What the platform asks for besides.
        Fee = "FEE",
        /// Money that went back to a buyer.
        Refund = "REFUND",
        /// Money that a bank took back.
        Chargeback = "CHARGEBACK",
        /// Tax that is kept for the authorities.
        Withholding = "WITHHOLDING",
        /// A correction; the only line that may be negative.
        Adjustment = "ADJUSTMENT",
    }
}

impl SettlementStatus {
    /// Where it may go from here (settlements.md 4).
    #[must_use]
    pub fn next(self) -> &'static [Self] {
        match self {
            Self::Draft => &[Self::Finalized, Self::Void],
            Self::Finalized => &[Self::Paid, Self::Void],
            Self::Paid | Self::Void => &[],
        }
    }
}

impl SettlementLineType {
    /// Whether it is a fee: those have tax.
    #[must_use]
    pub fn is_fee(self) -> bool {
        matches!(self, Self::Commission | Self::Fee)
    }
}

/// A settlement (`internal.payment_settlement.Settlement`). Amounts are in its currency.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Settlement {
    /// Identity.
    pub id: SettlementId,
    /// Owning organization.
    pub organization_id: OrganizationId,
    /// The counterparty.
    pub customer_id: CustomerId,
    /// Given when it is finalized; consecutive.
    #[schema(required)]
    pub settlement_number: Option<String>,
    /// Of every amount.
    #[schema(value_type = String)]
    pub currency: Currency,
    /// First instant of the period.
    pub period_start: DateTime<Utc>,
    /// First instant after it.
    pub period_end: DateTime<Utc>,
    /// How far it is.
    pub status: SettlementStatus,
    /// Earnings and adjustments less refunds and chargebacks.
    pub gross_earnings: Money,
    /// Fees and commissions.
    pub total_fees: Money,
    /// Tax on them.
    pub total_fee_tax: Money,
    /// Tax that is kept for the authorities.
    pub total_withholding: Money,
    /// What is owed; may be negative.
    pub net_payout: Money,
    /// What it consists of; in answers about one settlement.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub lines: Option<Vec<SettlementLine>>,
    /// When it was locked.
    #[schema(required)]
    pub finalized_at: Option<DateTime<Utc>>,
    /// When it was paid out.
    #[schema(required)]
    pub paid_at: Option<DateTime<Utc>>,
    /// The bank's name of the payout.
    #[schema(required)]
    pub payout_reference: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
    /// When it was deleted.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
    /// The later settlement that takes its negative payout over.
    #[serde(skip)]
    #[schema(ignore)]
    pub carried_into: Option<SettlementId>,
}

/// A line (`internal.payment_settlement.SettlementLine`).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SettlementLine {
    /// Identity.
    pub id: SettlementLineId,
    /// The settlement.
    pub settlement_id: SettlementId,
    /// What it is.
    #[serde(rename = "type")]
    pub line_type: SettlementLineType,
    /// For people.
    pub description: String,
    /// Above zero but for adjustments.
    pub amount: Money,
    /// Of what; null where only an amount is known.
    #[schema(required, value_type = Option<String>)]
    pub quantity: Option<Decimal>,
    /// For one of it; null where only an amount is known.
    #[schema(required, value_type = Option<String>)]
    pub unit_amount: Option<Decimal>,
    /// Percent, of a fee.
    #[schema(required, value_type = Option<String>)]
    pub tax_rate: Option<Decimal>,
    /// Tax on a fee.
    #[schema(required)]
    pub tax_amount: Option<Money>,
    /// The movement of money that it is about.
    #[schema(required)]
    pub transaction_id: Option<TransactionId>,
    /// The invoice that it is about.
    #[schema(required)]
    pub invoice_id: Option<InvoiceId>,
    /// The caller's name of it.
    #[schema(required)]
    pub reference: Option<String>,
    /// The caller's own.
    #[schema(value_type = Object)]
    pub metadata: JsonMap,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

impl FromRow<'_, PgRow> for Settlement {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        Ok(Self {
            id: row.try_get("id")?,
            organization_id: row.try_get("organization_id")?,
            customer_id: row.try_get("customer_id")?,
            settlement_number: row.try_get("settlement_number")?,
            currency,
            period_start: row.try_get("period_start")?,
            period_end: row.try_get("period_end")?,
            status: row.try_get("status")?,
            gross_earnings: money(row, "gross_earnings", currency)?,
            total_fees: money(row, "total_fees", currency)?,
            total_fee_tax: money(row, "total_fee_tax", currency)?,
            total_withholding: money(row, "total_withholding", currency)?,
            net_payout: money(row, "net_payout", currency)?,
            lines: None,
            finalized_at: row.try_get("finalized_at")?,
            paid_at: row.try_get("paid_at")?,
            payout_reference: row.try_get("payout_reference")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            deleted_at: row.try_get("deleted_at")?,
            carried_into: row.try_get("carried_into")?,
        })
    }
}

impl FromRow<'_, PgRow> for SettlementLine {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        let metadata: sqlx::types::Json<JsonMap> = row.try_get("metadata")?;
        Ok(Self {
            id: row.try_get("id")?,
            settlement_id: row.try_get("settlement_id")?,
            line_type: row.try_get("type")?,
            description: row.try_get("description")?,
            amount: money(row, "amount", currency)?,
            quantity: None,
            unit_amount: None,
            tax_rate: row.try_get("tax_rate")?,
            tax_amount: optional_money(row, "tax_amount", currency)?,
            transaction_id: row.try_get("transaction_id")?,
            invoice_id: row.try_get("invoice_id")?,
            reference: row.try_get("reference")?,
            metadata: metadata.0,
            created_at: row.try_get("created_at")?,
        })
    }
}

impl Settlement {
    /// With its lines.
    pub(crate) fn with_lines(self, lines: Vec<SettlementLine>) -> Self {
        Self { lines: Some(lines), ..self }
    }
}
