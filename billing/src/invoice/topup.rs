//! Invoices of top-ups (wallets.md 2.2, mode INVOICE): a one-off invoice asks for the money, and the payment that makes it `paid`
//! fills the wallet, in its transaction.
//!
//! What is paid of it is owed to the customer until his wallet is spent. So it is no revenue and bears no tax, which comes with the
//! invoices that the wallet pays, and no wallet pays it.

use currency::Purpose;
use domain::{CustomerId, InvoiceId, InvoiceLineId, Money, Result, Scope, TaxCategoryCode, WalletId};
use ledger::WorkspaceAccount;
use rust_decimal::Decimal;
use serde_json::json;
use sqlx::types::Json;
use store::{StoreError, Tx};

use super::finalize::FinalizeOptions;
use super::issue::{Head, Issuer};
use super::model::InvoiceTaxBreakdownRow;
use super::paid::Paid;
use super::pay::Payable;
use crate::events::{self, Event};

/// What stands in `billing_reason`: no run makes these invoices.
const REASON: &str = "topup";

/// Finalizes an invoice over a top-up of a customer's wallet, and notes that it is to be charged, as every invoice is. `scope` has the
/// customer's time.
///
/// # Errors
/// `CURRENCY_NOT_ENABLED`; `NotFound` for the customer; as every statement.
pub async fn issue_topup(
    scope: &Scope,
    tx: &mut Tx,
    customer_id: CustomerId,
    wallet: WalletId,
    amount: Money,
) -> Result<InvoiceId> {
    currency::require(scope, tx, amount.currency(), Purpose::Billing).await?;
    let id = InvoiceId::generate();
    insert_draft(scope, tx, id, (customer_id, wallet), amount).await?;
    let issuer = Issuer::load(scope, tx.conn(), &[customer_id]).await?;
    let (against, paid) = (WorkspaceAccount::TopupInvoiced, Paid::nothing(amount.currency()));
    let transfer = ledger::invoice_transfer(scope, id, against, amount, Money::zero(amount.currency()))?;
    ledger::post_new(tx, scope, transfer.as_slice()).await?;
    let head = Head { id, customer_id, subscription_id: None, payment_terms_days: None, total: amount, paid };
    issuer.issue(scope, tx, &[head], FinalizeOptions::default()).await?;
    Ok(id)
}

/// Head and line: one, outside the scope of tax.
async fn insert_draft(
    scope: &Scope,
    tx: &mut Tx,
    id: InvoiceId,
    (customer_id, wallet): (CustomerId, WalletId),
    amount: Money,
) -> Result<()> {
    let tax = InvoiceTaxBreakdownRow {
        tax_category_code: TaxCategoryCode::O,
        rate: Decimal::ZERO,
        taxable_amount: amount,
        tax_amount: Money::zero(amount.currency()),
        exemption_code: None,
        exemption_reason: None,
    };
    sqlx::query(
        "INSERT INTO invoice (id, organization_id, workspace_id, customer_id, invoice_type, status, currency, subtotal, total,
             amount_due, billing_reason, topup_wallet_id, tax_breakdown, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 'one_off', 'draft', $5, $6, $6, $6, $7, $8, $9, $10, $10)",
    )
    .bind(id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(customer_id)
    .bind(amount.currency())
    .bind(amount.amount())
    .bind(REASON)
    .bind(wallet)
    .bind(Json([tax]))
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("writing the invoice of a top-up")?;
    sqlx::query(
        "INSERT INTO invoice_line (id, workspace_id, invoice_id, position, line_type, charge_kind, description, quantity,
             unit_amount, amount, total, tax_category_code)
         VALUES ($1, $2, $3, 1, 'ONE_TIME', 'ONE_TIME', $4, 1, $5, $5, $5, $6)",
    )
    .bind(InvoiceLineId::generate())
    .bind(scope.workspace_id)
    .bind(id)
    .bind(format!("Top-up of the wallet in {}", amount.currency()))
    .bind(amount.amount())
    .bind(TaxCategoryCode::O)
    .execute(tx.conn())
    .await
    .context("writing the line of a top-up")?;
    Ok(())
}

/// Fills the wallet of a locked invoice that has just become `paid`, with what was paid of it: a credit note may have taken back a
/// part before. Booked under an id that the invoice has once.
pub(super) async fn fill(scope: &Scope, tx: &mut Tx, invoice: &Payable) -> Result<()> {
    let Some(wallet) = invoice.filled_wallet() else { return Ok(()) };
    let mut batch = ledger::lock_wallets(tx, scope, &[wallet]).await?;
    batch.credit_invoiced(wallet, invoice.id, invoice.paid)?;
    batch.write(tx, scope).await?;
    let payload = json!({
        "wallet_id": wallet, "customer_id": invoice.customer_id, "transaction_id": null, "invoice_id": invoice.id,
        "amount": invoice.paid, "is_automatic": false, "failure_code": null, "failure_message": null,
    });
    let event = Event::new(scope.workspace_id, "wallet.topup_succeeded", "wallet", wallet, payload, scope.now());
    events::emit(tx.conn(), &[event]).await
}
