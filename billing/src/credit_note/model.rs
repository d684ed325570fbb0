//! A credit note as it is stored and shown (credit-notes.md 3).

use chrono::{DateTime, Utc};
use domain::{
    CreditNoteId, CreditNoteLineId, Currency, CustomerId, InvoiceId, InvoiceLineId, JsonMap, Money, OrganizationId,
    TaxCategoryCode,
};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, Row};
use utoipa::ToSchema;
use uuid::Uuid;

use super::words::{CreditNoteReasonCode, CreditNoteStatus};
use store::money;

/// Columns of [`CreditNoteDTO`].
pub(super) const COLUMNS: &str = "id, organization_id, customer_id, invoice_id, credit_note_number, currency, status, \
     reason_code, reason, subtotal, tax_amount, total, amount_remaining, template_id, refund_transaction_id, version, \
     metadata, issued_at, voided_at, created_at, updated_at, deleted_at";

/// Columns of [`CreditNoteLineDTO`], from `credit_note_line line` joined with `credit_note`.
pub(super) const LINE_COLUMNS: &str = "line.id, line.invoice_line_id, line.description, line.quantity, line.unit_amount, \
     line.amount, line.tax_rate, line.tax_category_code, line.tax_rule_id, line.tax_amount, credit_note.currency";

/// What reverses or adjusts an invoice.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CreditNoteDTO {
    /// Identity.
    pub id: CreditNoteId,
    /// Tenant.
    pub organization_id: OrganizationId,
    /// Whose credit.
    pub customer_id: CustomerId,
    /// Invoice that it is on; null when it stands alone.
    #[schema(required)]
    pub invoice_id: Option<InvoiceId>,
    /// Given when it is issued; no number is missing.
    #[schema(required)]
    pub credit_note_number: Option<String>,
    /// Of every amount.
    pub currency: Currency,
    /// State.
    pub status: CreditNoteStatus,
    /// What it is for.
    pub reason_code: CreditNoteReasonCode,
    /// For people.
    #[schema(required)]
    pub reason: Option<String>,
    /// Net.
    pub subtotal: Money,
    /// Tax of the lines that it takes back.
    pub tax_amount: Money,
    /// Gross.
    pub total: Money,
    /// What is not applied yet; the total when it is issued.
    pub amount_remaining: Money,
    /// Template.
    #[schema(required)]
    pub template_id: Option<Uuid>,
    /// Lines, where one credit note is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub lines: Option<Vec<CreditNoteLineDTO>>,
    /// Refund that paid it out.
    #[schema(required)]
    pub refund_transaction_id: Option<Uuid>,
    /// Optimistic lock.
    pub version: i32,
    /// Free values.
    #[schema(value_type = Object)]
    pub metadata: Json<JsonMap>,
    /// Issued.
    #[schema(required)]
    pub issued_at: Option<DateTime<Utc>>,
    /// Voided.
    #[schema(required)]
    pub voided_at: Option<DateTime<Utc>>,
    /// Creation.
    pub created_at: DateTime<Utc>,
    /// Last change.
    pub updated_at: DateTime<Utc>,
    /// Soft deletion.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
}

/// What a credit note takes back.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CreditNoteLineDTO {
    /// Identity.
    pub id: CreditNoteLineId,
    /// Line of the invoice that it takes back a part of.
    #[schema(required)]
    pub invoice_line_id: Option<InvoiceLineId>,
    /// For the customer.
    pub description: String,
    /// Units.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// Rate of one unit.
    #[schema(value_type = String)]
    pub unit_amount: Decimal,
    /// Net, positive.
    pub amount: Money,
    /// Percent.
    #[schema(value_type = String)]
    pub tax_rate: Decimal,
    /// EN 16931 category.
    pub tax_category_code: TaxCategoryCode,
    /// Pinned rule of the invoice's line.
    #[schema(required)]
    pub tax_rule_id: Option<Uuid>,
    /// Tax.
    pub tax_amount: Money,
}

impl FromRow<'_, PgRow> for CreditNoteDTO {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        Ok(Self {
            id: row.try_get("id")?,
            organization_id: row.try_get("organization_id")?,
            customer_id: row.try_get("customer_id")?,
            invoice_id: row.try_get("invoice_id")?,
            credit_note_number: row.try_get("credit_note_number")?,
            currency,
            status: row.try_get("status")?,
            reason_code: row.try_get("reason_code")?,
            reason: row.try_get("reason")?,
            subtotal: money(row, "subtotal", currency)?,
            tax_amount: money(row, "tax_amount", currency)?,
            total: money(row, "total", currency)?,
            amount_remaining: money(row, "amount_remaining", currency)?,
            template_id: row.try_get("template_id")?,
            lines: None,
            refund_transaction_id: row.try_get("refund_transaction_id")?,
            version: row.try_get("version")?,
            metadata: row.try_get("metadata")?,
            issued_at: row.try_get("issued_at")?,
            voided_at: row.try_get("voided_at")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            deleted_at: row.try_get("deleted_at")?,
        })
    }
}

impl FromRow<'_, PgRow> for CreditNoteLineDTO {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        Ok(Self {
            id: row.try_get("id")?,
            invoice_line_id: row.try_get("invoice_line_id")?,
            description: row.try_get("description")?,
            quantity: row.try_get("quantity")?,
            unit_amount: row.try_get("unit_amount")?,
            amount: money(row, "amount", currency)?,
            tax_rate: row.try_get("tax_rate")?,
            tax_category_code: row.try_get("tax_category_code")?,
            tax_rule_id: row.try_get("tax_rule_id")?,
            tax_amount: money(row, "tax_amount", currency)?,
        })
    }
}
