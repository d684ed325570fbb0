//! Bodies of the operations.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{Currency, CustomerId, Error, Input, InvoiceId, JsonMap, Money, Result, TransactionId};
use rust_decimal::Decimal;
use serde_json::Value;
use utoipa::ToSchema;

use super::model::SettlementLineType;

/// Lines of one settlement that a request may have.
const LINES_MAX: usize = 1_000;

/// `internal.payment_settlement.GenerateSettlementRequest`.
#[derive(Clone, Debug, PartialEq, ToSchema)]
pub struct GenerateSettlementRequest {
    /// The counterparty.
    pub customer_id: CustomerId,
    /// Of every amount.
    #[schema(value_type = String)]
    pub currency: Currency,
    /// First instant of the period.
    pub period_start: DateTime<Utc>,
    /// First instant after it.
    pub period_end: DateTime<Utc>,
    /// Default: the customer's movements of money in the period.
    #[schema(nullable = false)]
    pub lines: Option<Vec<GenerateSettlementLine>>,
}

/// `internal.payment_settlement.GenerateSettlementLine`.
#[derive(Clone, Debug, PartialEq, ToSchema)]
pub struct GenerateSettlementLine {
    /// What it is.
    #[schema(rename = "type")]
    pub line_type: SettlementLineType,
    /// For people.
    pub description: String,
    /// Above zero but for adjustments.
    pub amount: Money,
    /// Percent; of fees and commissions only.
    #[schema(value_type = Option<String>)]
    pub tax_rate: Option<Decimal>,
    /// The movement of money that it is about.
    pub transaction_id: Option<TransactionId>,
    /// The invoice that it is about.
    pub invoice_id: Option<InvoiceId>,
    /// The caller's name of it.
    pub reference: Option<String>,
    /// The caller's own.
    #[schema(value_type = Object, required = false)]
    pub metadata: JsonMap,
}

/// `PaySettlementRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, ToSchema)]
pub struct PaySettlementRequest {
    /// When the money left, not in the future. Default: now.
    pub paid_at: Option<DateTime<Utc>>,
    /// The bank's name of the payout.
    pub reference: Option<String>,
}

/// `VoidSettlementRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, ToSchema)]
pub struct VoidSettlementRequest {
    /// Why.
    pub reason: Option<String>,
}

fn missing() -> Error {
    Error::invariant("a required member passed unread")
}

impl GenerateSettlementRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field; `CURRENCY_MISMATCH` for a line in another currency.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let customer_id = input.required("customer_id", Field::id);
        let currency = input.required("currency", Field::currency);
        let period_start = input.required("period_start", Field::instant);
        let period_end = input.required("period_end", Field::instant);
        let lines = input.optional("lines", |v| v.list(0, LINES_MAX, GenerateSettlementLine::field));
        if period_start.zip(period_end).is_some_and(|(start, end)| start >= end) {
            input.error("period_end", Code::OutOfRange, "must be after period_start");
        }
        input.finish()?;
        let request = Self {
            customer_id: customer_id.ok_or_else(missing)?,
            currency: currency.ok_or_else(missing)?,
            period_start: period_start.ok_or_else(missing)?,
            period_end: period_end.ok_or_else(missing)?,
            lines,
        };
        for line in request.lines.iter().flatten() {
            Money::zero(request.currency).add(line.amount)?;
        }
        Ok(request)
    }
}

impl GenerateSettlementLine {
    fn field(field: Field<'_>) -> FieldResult<Self> {
        field.object(|input| {
            let line_type: Option<SettlementLineType> = input.required("type", Field::word);
            let description = input.required("description", |v| v.text(1, 500));
            let amount = match line_type {
                Some(SettlementLineType::Adjustment) => input.required("amount", Field::money),
                _ => input.required("amount", Field::money_positive),
            };
            let tax_rate = input.optional("tax_rate", Field::rate);
            let transaction_id = input.optional("transaction_id", Field::id);
            let invoice_id = input.optional("invoice_id", Field::id);
            let reference = input.optional("reference", |v| v.text(1, 255));
            let metadata = input.optional("metadata", Field::metadata).unwrap_or_default();
            if tax_rate.is_some_and(|rate| rate > Decimal::ONE_HUNDRED) {
                input.error("tax_rate", Code::OutOfRange, "is in percent: at most 100");
            }
            if tax_rate.is_some() && line_type.is_some_and(|line_type| !line_type.is_fee()) {
                input.error("tax_rate", Code::NotAllowed, "only COMMISSION and FEE have tax");
            }
            Some(Self {
                line_type: line_type?,
                description: description?,
                amount: amount?,
                tax_rate,
                transaction_id,
                invoice_id,
                reference,
                metadata,
            })
        })
    }
}

impl PaySettlementRequest {
    /// Reads the body; none is an empty one.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let paid_at = input.optional("paid_at", Field::instant);
        let reference = input.optional("reference", |v| v.text(1, 255));
        input.finish()?;
        Ok(Self { paid_at, reference })
    }
}

impl VoidSettlementRequest {
    /// Reads the body; none is an empty one.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let reason = input.optional("reason", |v| v.text(1, 500));
        input.finish()?;
        Ok(Self { reason })
    }
}
