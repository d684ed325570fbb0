//! Charging invoices (payment-gateways.md 4, payment-methods.md 4): step 1 of a payment for what is due, asked for by an operator or
//! wanted since the invoice was finalized. Wallet money is applied at finalization, so what is due then is what wallets did not pay.
//!
//! A charge that failed for a reason that may pass is tried again after the pauses of the setting
//! `dunning_retry_schedule_seconds`; when they are used up the invoice becomes `error` (dunning.md 4).

use billing::invoice::{Payable, collect};
use billing::settings::BillingSettings;
use domain::input::Field;
use domain::{
    Clock, Error, Input, Instant, InvoiceId, Money, PaymentMethodId, Result, Scope, TransactionId, WorkspaceId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{StoreError, Tx};
use utoipa::ToSchema;

use crate::charge::Attempt;
use crate::transaction::{self, NewTransaction, Transaction};
use crate::words::{FailureCode, TransactionKind, TransactionStatus};
use crate::{Payments, at_customer};

/// `ChargeInvoiceRequest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ToSchema)]
pub struct ChargeInvoiceRequest {
    /// Default: the customer's default method.
    pub payment_method_id: Option<PaymentMethodId>,
}

/// `handler.chargeInvoiceResponse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ChargeInvoiceResponse {
    /// The invoice.
    pub invoice_id: InvoiceId,
    /// The payment.
    pub transaction_id: TransactionId,
    /// How far it is.
    pub status: TransactionStatus,
    /// What is charged.
    pub amount: Money,
}

/// A charge that is written down: what its idempotency key remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charged {
    /// The invoice.
    pub invoice_id: InvoiceId,
    /// The payment.
    pub transaction_id: TransactionId,
}

impl ChargeInvoiceRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let payment_method_id = input.optional("payment_method_id", Field::id);
        input.finish()?;
        Ok(Self { payment_method_id })
    }
}

impl Payments {
    /// Step 1 of `POST /v1/invoices/{id}/charge`; after the commit comes [`Payments::proceed`].
    ///
    /// # Errors
    /// `NotFound` for invoice or method; `INVALID_TRANSITION` unless the invoice waits for money; `CONFLICT` while a charge is under
    /// way; `NO_PAYMENT_METHOD`, `NO_GATEWAY_AVAILABLE`.
    pub async fn charge_invoice(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: InvoiceId,
        request: &ChargeInvoiceRequest,
    ) -> Result<Charged> {
        let invoice = Payable::lock(scope, tx, id).await?;
        let row = self.order_charge(scope, tx, &invoice, request.payment_method_id, false).await?;
        Ok(Charged { invoice_id: id, transaction_id: row.id })
    }

    /// Writes the payment of what is due of a locked invoice.
    async fn order_charge(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        invoice: &Payable,
        named: Option<PaymentMethodId>,
        is_automatic: bool,
    ) -> Result<Transaction> {
        invoice.check_open()?;
        let way = self.route(scope, tx.conn(), invoice.customer_id, invoice.due.currency(), named).await?;
        let scope = at_customer(scope, tx.conn(), invoice.customer_id).await?;
        let new =
            NewTransaction::new(invoice.customer_id, TransactionKind::Charge, invoice.due, way).of_invoice(invoice);
        let attempt = 1 + charges(tx, invoice.id, false).await?;
        let new = NewTransaction { is_automatic, attempt, ..new };
        let row = transaction::insert(&scope, tx, &new, Clock::System.now()).await?;
        tx.emit(&scope, "payment.initiated", "transaction", row.id, row.payload()).await?;
        Ok(row)
    }

    /// Starts the charge that an invoice wants, if it still does, and asks for it; false when it does not.
    ///
    /// One that cannot be started (no method, no gateway) is announced, and is not tried again by itself.
    pub(crate) async fn collect(&self, workspace: WorkspaceId, id: InvoiceId, real: Instant) -> Result<bool> {
        let scope = self.system_scope(workspace).await?;
        let mut tx = self.store.begin("charge_invoice").await?;
        let started = self.start_charge(&scope, &mut tx, id, real).await;
        let Some(row) = tx.end(started).await? else { return Ok(false) };
        self.proceed(&scope, row.id, Attempt::First).await?;
        Ok(true)
    }

    async fn start_charge(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: InvoiceId,
        real: Instant,
    ) -> Result<Option<Transaction>> {
        let invoice = Payable::lock(scope, tx, id).await?;
        if !collect::take_wish(tx, id, real).await? || !invoice.is_open() {
            return Ok(None);
        }
        match self.order_charge(scope, tx, &invoice, None, true).await {
            Ok(row) => Ok(Some(row)),
            Err(refused @ Error::Rule { .. }) => {
                tracing::info!(invoice.id = %id, code = refused.code(), "an invoice could not be charged");
                let scope = at_customer(scope, tx.conn(), invoice.customer_id).await?;
                invoice.tell(&scope, tx, "invoice.payment_failed").await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// How often an invoice was charged; `automatic`: by itself.
async fn charges(tx: &mut Tx, id: InvoiceId, automatic: bool) -> Result<i32> {
    let count: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM payment_transaction WHERE invoice_id = $1 AND kind = 'CHARGE' AND (is_automatic OR NOT $2)",
    )
    .bind(id)
    .bind(automatic)
    .fetch_one(tx.conn())
    .await
    .context("counting the charges of an invoice")?;
    i32::try_from(count).map_err(|error| Error::internal("counting the charges of an invoice", error))
}

/// What follows for a locked invoice from a charge that failed. Those that an operator asks for are his to repeat.
pub(crate) async fn failed(
    scope: &Scope,
    tx: &mut Tx,
    invoice: &mut Payable,
    row: &Transaction,
    (code, real): (FailureCode, Instant),
) -> Result<()> {
    invoice.tell(scope, tx, "invoice.payment_failed").await?;
    if !row.is_automatic || !invoice.is_open() {
        return Ok(());
    }
    if let Some(subscription) = invoice.subscription_id {
        let payload = json!({
            "subscription_id": subscription, "customer_id": row.customer_id, "invoice_id": invoice.id,
            "transaction_id": row.id, "attempt": row.attempt, "failure_code": row.failure_code,
            "failure_message": row.failure_message,
        });
        let payload = payload.as_object().cloned().unwrap_or_default();
        tx.emit(scope, "subscription.payment_failed", "subscription", subscription, payload).await?;
    }
    if !code.is_soft() {
        return Ok(());
    }
    let retries = BillingSettings::load(tx.conn(), scope.organization_id).await?.payment_retries;
    let failures = usize::try_from(charges(tx, invoice.id, true).await?).unwrap_or(usize::MAX);
    match failures.checked_sub(1).and_then(|last| retries.get(last)) {
        Some(pause) => collect::want_again(scope, tx, invoice.id, real + *pause).await,
        None => invoice.give_up(scope, tx).await,
    }
}
