//! The head of an invoice as it is stored and shown (invoices.md 3).

use chrono::{DateTime, NaiveDate, Utc};
use currency::FXSnapshot;
use domain::{
    Currency, CustomerId, InvoiceId, JsonMap, Money, OrganizationId, SubscriptionId, TaxCategoryCode, WorkspaceId,
};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, Row};
use store::money;
use utoipa::ToSchema;
use uuid::Uuid;

use super::line::InvoiceLineDTO;
use super::words::{InvoiceStatus, InvoiceType};

/// Columns of [`Invoice`].
pub(crate) const COLUMNS: &str = "id, organization_id, workspace_id, customer_id, subscription_id, invoice_number, \
     invoice_type, status, currency, subtotal, discount_total, tax_amount, total, amount_due, amount_paid, \
     billing_period_start, billing_period_end, billing_reason, delivery_date, due_date, payment_terms_days, \
     buyer_reference, customer_profile_at_issue, issued_at, finalized_at, sent_at, paid_at, voided_at, void_reason, notes, \
     locale, template_id, approval_request_id, seller_snapshot, buyer_snapshot, tax_breakdown, version, custom_fields, \
     metadata, created_at, updated_at, deleted_at";

/// The document by which the organization asks one customer for money.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Invoice {
    /// Identity.
    pub id: InvoiceId,
    /// Tenant.
    pub organization_id: OrganizationId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Who pays.
    pub customer_id: CustomerId,
    /// For which agreement.
    #[schema(required)]
    pub subscription_id: Option<SubscriptionId>,
    /// Given at finalize; no number is missing.
    #[schema(required)]
    pub invoice_number: Option<String>,
    /// Kind of document.
    pub invoice_type: InvoiceType,
    /// State.
    pub status: InvoiceStatus,
    /// Of every amount.
    pub currency: Currency,
    /// Net before tax, after discounts.
    pub subtotal: Money,
    /// Sum of the discounts.
    pub discount_total: Money,
    /// Tax.
    pub tax_amount: Money,
    /// Gross.
    pub total: Money,
    /// Still to pay.
    pub amount_due: Money,
    /// Paid so far.
    pub amount_paid: Money,
    /// First instant of the service period billed.
    #[schema(required)]
    pub billing_period_start: Option<DateTime<Utc>>,
    /// First instant after it.
    #[schema(required)]
    pub billing_period_end: Option<DateTime<Utc>>,
    /// What the run made it for; with the period the key of the run.
    #[serde(skip)]
    #[schema(ignore)]
    pub billing_reason: String,
    /// Day of the supply.
    #[schema(required)]
    pub delivery_date: Option<NaiveDate>,
    /// Day on which it is due.
    #[schema(required)]
    pub due_date: Option<NaiveDate>,
    /// Days from issue to due date.
    #[schema(required)]
    pub payment_terms_days: Option<i32>,
    /// Routing id or order number.
    #[schema(required)]
    pub buyer_reference: Option<String>,
    /// The buyer's type, pinned at finalize.
    #[schema(required)]
    pub customer_profile_at_issue: Option<String>,
    /// Issued.
    #[schema(required)]
    pub issued_at: Option<DateTime<Utc>>,
    /// Finalized.
    #[schema(required)]
    pub finalized_at: Option<DateTime<Utc>>,
    /// Sent.
    #[schema(required)]
    pub sent_at: Option<DateTime<Utc>>,
    /// Fully paid.
    #[schema(required)]
    pub paid_at: Option<DateTime<Utc>>,
    /// Voided.
    #[schema(required)]
    pub voided_at: Option<DateTime<Utc>>,
    /// Why.
    #[schema(required)]
    pub void_reason: Option<String>,
    /// For the customer.
    #[schema(required)]
    pub notes: Option<String>,
    /// Language.
    #[schema(required)]
    pub locale: Option<String>,
    /// Template.
    #[schema(required)]
    pub template_id: Option<Uuid>,
    /// Open approval.
    #[schema(required)]
    pub approval_request_id: Option<Uuid>,
    /// Seller, frozen at finalize.
    #[serde(skip)]
    #[schema(ignore)]
    pub seller_snapshot: Option<Json<Value>>,
    /// Buyer, frozen at finalize.
    #[serde(skip)]
    #[schema(ignore)]
    pub buyer_snapshot: Option<Json<Value>>,
    /// Tax per category and rate.
    #[serde(skip)]
    #[schema(ignore)]
    pub tax_breakdown: Json<Vec<InvoiceTaxBreakdownRow>>,
    /// Optimistic lock.
    pub version: i32,
    /// Typed values.
    #[schema(value_type = Object)]
    pub custom_fields: Json<JsonMap>,
    /// Free values.
    #[schema(value_type = Object)]
    pub metadata: Json<JsonMap>,
    /// Creation.
    pub created_at: DateTime<Utc>,
    /// Last change.
    pub updated_at: DateTime<Utc>,
    /// Soft deletion.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
}

impl FromRow<'_, PgRow> for Invoice {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        Ok(Self {
            id: row.try_get("id")?,
            organization_id: row.try_get("organization_id")?,
            workspace_id: row.try_get("workspace_id")?,
            customer_id: row.try_get("customer_id")?,
            subscription_id: row.try_get("subscription_id")?,
            invoice_number: row.try_get("invoice_number")?,
            invoice_type: row.try_get("invoice_type")?,
            status: row.try_get("status")?,
            currency,
            subtotal: money(row, "subtotal", currency)?,
            discount_total: money(row, "discount_total", currency)?,
            tax_amount: money(row, "tax_amount", currency)?,
            total: money(row, "total", currency)?,
            amount_due: money(row, "amount_due", currency)?,
            amount_paid: money(row, "amount_paid", currency)?,
            billing_period_start: row.try_get("billing_period_start")?,
            billing_period_end: row.try_get("billing_period_end")?,
            billing_reason: row.try_get("billing_reason")?,
            delivery_date: row.try_get("delivery_date")?,
            due_date: row.try_get("due_date")?,
            payment_terms_days: row.try_get("payment_terms_days")?,
            buyer_reference: row.try_get("buyer_reference")?,
            customer_profile_at_issue: row.try_get("customer_profile_at_issue")?,
            issued_at: row.try_get("issued_at")?,
            finalized_at: row.try_get("finalized_at")?,
            sent_at: row.try_get("sent_at")?,
            paid_at: row.try_get("paid_at")?,
            voided_at: row.try_get("voided_at")?,
            void_reason: row.try_get("void_reason")?,
            notes: row.try_get("notes")?,
            locale: row.try_get("locale")?,
            template_id: row.try_get("template_id")?,
            approval_request_id: row.try_get("approval_request_id")?,
            seller_snapshot: row.try_get("seller_snapshot")?,
            buyer_snapshot: row.try_get("buyer_snapshot")?,
            tax_breakdown: row.try_get("tax_breakdown")?,
            version: row.try_get("version")?,
            custom_fields: row.try_get("custom_fields")?,
            metadata: row.try_get("metadata")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            deleted_at: row.try_get("deleted_at")?,
        })
    }
}

/// Tax of one category and rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceTaxBreakdownRow {
    /// EN 16931 category.
    pub tax_category_code: TaxCategoryCode,
    /// Percent.
    #[schema(value_type = String)]
    pub rate: Decimal,
    /// Sum of the rounded net amounts.
    pub taxable_amount: Money,
    /// Rounded once for the group.
    pub tax_amount: Money,
    /// Code of an exemption.
    #[schema(required)]
    pub exemption_code: Option<String>,
    /// Text of an exemption.
    #[schema(required)]
    pub exemption_reason: Option<String>,
}

/// An invoice with its lines and what was frozen with it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct InvoiceDTO {
    /// The head.
    #[serde(flatten)]
    pub invoice: Invoice,
    /// In the order of `position`.
    pub lines: Vec<InvoiceLineDTO>,
    /// Tax per category and rate.
    pub tax_breakdown: Vec<InvoiceTaxBreakdownRow>,
    /// Promotions that reduced it.
    #[schema(value_type = Vec<Object>)]
    pub applied_promotions: Vec<JsonMap>,
    /// Exchange rates, where a line was converted.
    #[schema(required)]
    pub fx_snapshot: Option<FXSnapshot>,
    /// Seller, frozen at finalize.
    #[schema(required, value_type = Option<Object>)]
    pub seller_snapshot: Option<Value>,
    /// Buyer, frozen at finalize.
    #[schema(required, value_type = Option<Object>)]
    pub buyer_snapshot: Option<Value>,
    /// Credit notes on it.
    pub credit_note_ids: Vec<Uuid>,
}

impl InvoiceDTO {
    /// Puts head and lines together.
    #[must_use]
    pub fn new(invoice: Invoice, lines: Vec<InvoiceLineDTO>) -> Self {
        Self {
            lines,
            tax_breakdown: invoice.tax_breakdown.0.clone(),
            applied_promotions: Vec::new(),
            fx_snapshot: None,
            seller_snapshot: invoice.seller_snapshot.as_ref().map(|json| json.0.clone()),
            buyer_snapshot: invoice.buyer_snapshot.as_ref().map(|json| json.0.clone()),
            credit_note_ids: Vec::new(),
            invoice,
        }
    }
}
