//! What follows for an invoice from money that came for it.

use billing::invoice::Payable;
use domain::{Result, Scope, TransactionId, TransferId};
use ledger::WorkspaceAccount;
use ledger::wallet::{Details, WalletTransactionSource};
use store::Tx;
use uuid::Uuid;

use crate::transaction::{self, Transaction};

/// The account of whoever has the money of a payment.
pub(crate) fn clearing_of(row: &Transaction) -> WorkspaceAccount {
    if row.gateway_id.is_some() { WorkspaceAccount::GatewayClearing } else { WorkspaceAccount::ManualClearing }
}

/// Puts money that is there on its locked invoice, and what is more than is due on the customer's wallet in that currency: it was
/// received, so neither a cap of credits nor a currency that is switched off stands in its way. Booked under the transaction's own
/// id: booking it twice is refused.
pub(crate) async fn settle(scope: &Scope, tx: &mut Tx, invoice: &mut Payable, row: Transaction) -> Result<Transaction> {
    let excess = invoice.pay(scope, tx, row.amount).await?;
    let paid = row.amount.sub(excess)?;
    if !paid.is_zero() {
        let transfer = ledger::payment_transfer(scope, TransferId(row.id.0), invoice.id, clearing_of(&row), paid)?;
        ledger::post_new(tx, scope, &[transfer]).await?;
    }
    if excess.is_zero() {
        return Ok(row);
    }
    let wallet = ledger::wallet_for_received(scope, tx, row.customer_id, excess.currency()).await?;
    let mut batch = ledger::lock_wallets(tx, scope, &[wallet]).await?;
    let source = match clearing_of(&row) {
        WorkspaceAccount::GatewayClearing => WalletTransactionSource::Payment,
        _ => WalletTransactionSource::Manual,
    };
    let details = Details::of(source).reference("transaction", row.id);
    batch.credit_received(wallet, TransferId(Uuid::new_v5(&row.id.0, b"excess")), excess, &details)?;
    batch.write(tx, scope).await?;
    transaction::note_excess(tx, &row, wallet, excess).await
}

/// Locks the invoice that a transaction belongs to, if it does to one: before the transaction, as everybody does.
pub(crate) async fn payable_of(scope: &Scope, tx: &mut Tx, id: TransactionId) -> Result<Option<Payable>> {
    match transaction::get(scope, tx.conn(), id).await?.invoice_id {
        Some(invoice) => Payable::lock(scope, tx, invoice).await.map(Some),
        None => Ok(None),
    }
}
