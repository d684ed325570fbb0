//! What follows from money that went back on an order of ours.

use billing::credit_note;
use billing::invoice::Payable;
use domain::{Error, Result, Scope, TransferId};
use ledger::wallet::{CreditKind, Details, WalletTransactionSource};
use store::Tx;

use crate::settle::clearing_of;
use crate::transaction::{self, Change, Transaction};

/// Money of a locked payment of a locked invoice has gone: the payment and the invoice know it, the books have it, and it is
/// announced. Booked under the refund's own id: booking it twice is refused.
pub(super) async fn go(
    scope: &Scope,
    tx: &mut Tx,
    invoice: &mut Payable,
    payment: Transaction,
    refund: &Transaction,
) -> Result<()> {
    let total = payment.refunded_amount.add(refund.amount)?;
    let payment = transaction::apply(scope, tx, &payment, &Change::Refunded(total)).await?;
    let id = TransferId(refund.id.0);
    match refund.wallet_id {
        Some(wallet) => {
            let mut batch = ledger::lock_wallets(tx, scope, &[wallet]).await?;
            let details = Details::of(WalletTransactionSource::Refund).reference("transaction", refund.id);
            batch.credit(wallet, id, refund.amount, CreditKind::Cash, &details)?;
            batch.write(tx, scope).await?;
        }
        None => {
            let transfer = ledger::refund_transfer(scope, id, invoice.id, clearing_of(refund), refund.amount)?;
            ledger::post_new(tx, scope, &[transfer]).await?;
        }
    }
    invoice.give_back(scope, tx, refund.amount, !refund.is_credited).await?;
    announce(scope, tx, &payment, refund).await
}

/// The provider has given the money back.
pub(crate) async fn finish(scope: &Scope, tx: &mut Tx, invoice: &mut Payable, refund: &Transaction) -> Result<()> {
    let parent = refund.parent_transaction_id;
    let parent = parent.ok_or_else(|| Error::invariant(format!("refund {} of nothing", refund.id)))?;
    let payment = transaction::lock(scope, tx, parent).await?;
    go(scope, tx, invoice, payment, refund).await?;
    if refund.is_credited {
        credit_note::apply_refund(scope, tx, invoice, refund.id, refund.amount).await?;
    }
    Ok(())
}

/// Tells that money of a payment went back, and by which movement.
pub(crate) async fn announce(scope: &Scope, tx: &mut Tx, payment: &Transaction, refund: &Transaction) -> Result<()> {
    let mut payload = payment.payload();
    payload.insert("refund_transaction_id".to_owned(), refund.id.to_string().into());
    tx.emit(scope, "payment.refunded", "transaction", payment.id, payload).await
}
