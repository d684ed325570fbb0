//! What follows from money that went back on an order of ours.

use billing::credit_note;
use billing::invoice::Payable;
use domain::{Error, Money, Result, Scope, TransferId, WalletId};
use ledger::WorkspaceAccount;
use ledger::wallet::{CreditKind, Details, WalletTransactionSource, topup};
use store::Tx;
use uuid::Uuid;

use crate::settle::clearing_of;
use crate::transaction::{self, Change, Transaction};
use crate::words::TransactionStatus;

/// Money of a locked payment of a locked invoice has gone: the payment and the invoice know it, the books have it, the wallet whose
/// top-up it was loses it, and it is announced. Booked under the refund's own id: booking it twice is refused.
pub(super) async fn go(
    scope: &Scope,
    tx: &mut Tx,
    invoice: &mut Payable,
    payment: Transaction,
    refund: &Transaction,
) -> Result<()> {
    let payment = match payment.status {
        TransactionStatus::Succeeded | TransactionStatus::PartiallyRefunded => {
            let total = payment.refunded_amount.add(refund.amount)?;
            transaction::apply(scope, tx, &payment, &Change::Refunded(total)).await?
        }
        status => {
            // The money has gone all the same, and the customer has more of it than he paid: that must be written down.
            tracing::error!(transaction.id = %payment.id, %status, refund.id = %refund.id, "a refund of a payment that was charged back");
            payment
        }
    };
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
    if let Some(wallet) = invoice.filled_wallet() {
        take_from_wallet(scope, tx, wallet, refund.amount, WorkspaceAccount::TopupInvoiced, refund).await?;
    }
    announce(scope, tx, &payment, refund).await
}

/// Takes money of a top-up that went back from the wallet that it had filled, as far as the wallet has it. The rest is written off,
/// so that the books say where the money went. `counter` is where the wallet had it from.
pub(super) async fn take_from_wallet(
    scope: &Scope,
    tx: &mut Tx,
    wallet: WalletId,
    amount: Money,
    counter: WorkspaceAccount,
    back: &Transaction,
) -> Result<()> {
    let mut batch = ledger::lock_wallets(tx, scope, &[wallet]).await?;
    let details = Details::of(WalletTransactionSource::Refund).reference("transaction", back.id);
    let id = |part: &str| TransferId(Uuid::new_v5(&back.id.0, format!("{counter} {part}").as_bytes()));
    let missing = batch.debit_refunded(wallet, id("wallet"), amount, counter, &details)?;
    batch.write(tx, scope).await?;
    if missing.is_zero() {
        return Ok(());
    }
    topup::write_off_refund(tx, scope, id("write off"), missing, counter, back.id).await
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
