//! What is asked of a refund, and what is answered (refunds.md, Contract).

use std::collections::BTreeSet;

use billing::credit_note::CreditNoteReasonCode;
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::{CreditNoteId, Error, Input, InvoiceId, InvoiceLineId, JsonMap, Money, Result, TransactionId, WalletId};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::transaction::Transaction;
use crate::words::TransactionStatus;

domain::wire_enum! {
    /// Where refunded money goes.
    pub enum RefundDestination {
        /// Back the way it came.
        Gateway = "GATEWAY",
        /// To a wallet of the customer, as cash.
        Wallet = "WALLET",
        /// By hand: it is written down only.
        Manual = "MANUAL",
    }
}

/// `dto.RefundInvoiceRequest`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RefundInvoiceRequest {
    /// Above zero. Default: the sum of `line_items`, else all that is left.
    pub amount: Option<Money>,
    /// For people; on the credit note.
    pub reason: Option<String>,
    /// On the credit note. Default REFUND.
    #[schema(required = false)]
    pub reason_code: CreditNoteReasonCode,
    /// Default GATEWAY.
    #[schema(required = false)]
    pub destination: RefundDestination,
    /// With WALLET only. Default: the customer's wallet in the invoice's currency.
    pub wallet_id: Option<WalletId>,
    /// Which payment. Default: the newest first.
    pub transaction_id: Option<TransactionId>,
    /// Whether a credit note over the same amount is issued. Default true.
    #[schema(required = false)]
    pub create_credit_note: bool,
    /// What the credit note takes back. Default: every line in proportion.
    #[schema(required = false)]
    pub line_items: Vec<RefundLineItem>,
    /// A repeat with the same key answers 200 with how far the first is.
    pub idempotency_key: Option<String>,
    /// The caller's own; on the movements and the credit note.
    #[schema(value_type = Object, required = false)]
    pub metadata: JsonMap,
}

/// What a refund takes back of one invoice line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RefundLineItem {
    /// The line.
    pub invoice_line_id: InvoiceLineId,
    /// Gross; above zero.
    pub amount: Money,
}

/// How far a refund is.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RefundResult {
    /// The invoice.
    pub invoice_id: InvoiceId,
    /// PENDING or PROCESSING while a movement is, FAILED when one has failed, else SUCCEEDED.
    pub status: TransactionStatus,
    /// One per payment that was touched, the newest payment first.
    pub refund_transactions: Vec<Transaction>,
    /// The credit note that goes with it.
    #[schema(required)]
    pub credit_note_id: Option<CreditNoteId>,
}

impl RefundInvoiceRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field, also for members that do not go together.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self {
            amount: input.optional("amount", Field::money_positive),
            reason: input.optional("reason", |v| v.text(1, 1000)),
            reason_code: input.optional("reason_code", Field::word).unwrap_or(CreditNoteReasonCode::Refund),
            destination: input.optional("destination", Field::word).unwrap_or(RefundDestination::Gateway),
            wallet_id: input.optional("wallet_id", Field::id),
            transaction_id: input.optional("transaction_id", Field::id),
            create_credit_note: input.optional("create_credit_note", Field::boolean).unwrap_or(true),
            line_items: input.optional("line_items", line_items).unwrap_or_default(),
            idempotency_key: input.optional("idempotency_key", |v| v.text(1, 255)),
            metadata: input.optional("metadata", Field::metadata).unwrap_or_default(),
        };
        if request.wallet_id.is_some() && request.destination != RefundDestination::Wallet {
            input.error("wallet_id", Code::NotAllowed, "only the destination WALLET has one");
        }
        if !request.line_items.is_empty() && !request.create_credit_note {
            input.error("line_items", Code::NotAllowed, "are those of the credit note: there is none");
        }
        input.finish()?;
        request.check_sum()?;
        Ok(request)
    }

    fn check_sum(&self) -> Result<()> {
        match (self.amount, self.line_items_sum()?) {
            (Some(amount), Some(sum)) if amount != sum => Err(Error::field(
                "line_items",
                Code::OutOfRange,
                format!("add up to {sum}, not to the amount of {amount}"),
            )),
            _ => Ok(()),
        }
    }

    /// What the line items add up to, if there are any.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH` between them.
    pub(crate) fn line_items_sum(&self) -> Result<Option<Money>> {
        let mut amounts = self.line_items.iter().map(|item| item.amount);
        let Some(first) = amounts.next() else { return Ok(None) };
        Ok(Some(amounts.try_fold(first, Money::add)?))
    }
}

fn line_items(field: Field<'_>) -> domain::input::FieldResult<Vec<RefundLineItem>> {
    let twice = field.refuse(Code::NotAllowed, "names a line twice");
    let items = field.list(0, 1000, |item| {
        item.object(|input| {
            let invoice_line_id = input.required("invoice_line_id", Field::id);
            let amount = input.required("amount", Field::money_positive);
            Some(RefundLineItem { invoice_line_id: invoice_line_id?, amount: amount? })
        })
    })?;
    let distinct: BTreeSet<_> = items.iter().map(|item| item.invoice_line_id).collect();
    if distinct.len() == items.len() { Ok(items) } else { twice }
}
