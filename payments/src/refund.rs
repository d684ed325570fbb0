//! Money of a payment that its provider says it has given back, or that the customer's bank contests.

use domain::{Clock, Error, Money, Result, Scope, TransactionId, TransferId};
use ledger::wallet::{Details, WalletTransactionSource, topup};
use store::Tx;
use uuid::Uuid;

use crate::at_customer;
use crate::transaction::{self, Change, NewTransaction, Transaction, Way};
use crate::words::{TransactionKind, TransactionStatus};

/// `total` was given back of a payment so far: writes what is new of it as a REFUND, and takes it from the wallet that the
/// payment had filled. What the wallet no longer has is written off, so that the books say where the money went.
pub(crate) async fn given_back(scope: &Scope, tx: &mut Tx, id: TransactionId, total: Money) -> Result<()> {
    let row = transaction::lock(scope, tx, id).await?;
    let is_refundable = matches!(row.status, TransactionStatus::Succeeded | TransactionStatus::PartiallyRefunded);
    let more = total.sub(row.refunded_amount)?;
    if !is_refundable || more.is_zero() || more.is_negative() || total.amount() > row.amount.amount() {
        tracing::info!(transaction.id = %id, status = %row.status, %total, "a refund at the provider changes nothing");
        return Ok(());
    }
    let scope = at_customer(scope, tx.conn(), row.customer_id).await?;
    let refunded = transaction::apply(&scope, tx, &row, &Change::Refunded(total)).await?;
    let refund = transaction::insert(&scope, tx, &refund_of(&row, more)?, Clock::System.now()).await?;
    take_back(&scope, tx, &row, &refund).await?;
    tx.emit(&scope, "payment.refunded", "transaction", refunded.id, refunded.payload()).await
}

fn refund_of(row: &Transaction, amount: Money) -> Result<NewTransaction> {
    let (Some(gateway_id), Some(provider)) = (row.gateway_id, row.provider) else {
        return Err(Error::invariant(format!("no gateway can have given back the payment {}", row.id)));
    };
    Ok(NewTransaction {
        customer_id: row.customer_id,
        wallet_id: row.wallet_id,
        parent: Some(row.id),
        kind: TransactionKind::Refund,
        amount,
        way: Way::Told { gateway_id, provider, payment_method_id: row.payment_method_id },
        is_automatic: false,
    })
}

async fn take_back(scope: &Scope, tx: &mut Tx, row: &Transaction, refund: &Transaction) -> Result<()> {
    let Some(wallet) = row.wallet_id.filter(|_| row.kind == TransactionKind::WalletTopup) else { return Ok(()) };
    let mut batch = ledger::lock_wallets(tx, scope, &[wallet]).await?;
    let details = Details::of(WalletTransactionSource::Refund).reference("transaction", refund.id);
    let missing = batch.debit_refunded(wallet, TransferId(refund.id.0), refund.amount, &details)?;
    batch.write(tx, scope).await?;
    if missing.is_zero() {
        return Ok(());
    }
    let id = TransferId(Uuid::new_v5(&refund.id.0, b"write off"));
    topup::write_off_refund(tx, scope, id, missing, refund.id).await
}

/// The bank contests a payment: it is marked, and people decide.
pub(crate) async fn contested(scope: &Scope, tx: &mut Tx, id: TransactionId, reason: &str) -> Result<()> {
    let row = transaction::lock(scope, tx, id).await?;
    if row.status != TransactionStatus::Succeeded {
        tracing::warn!(transaction.id = %id, status = %row.status, reason, "a dispute of a payment that cannot be disputed");
        return Ok(());
    }
    let scope = at_customer(scope, tx.conn(), row.customer_id).await?;
    let disputed = transaction::apply(&scope, tx, &row, &Change::Disputed).await?;
    let mut payload = disputed.payload();
    payload.insert("reason".to_owned(), reason.into());
    tx.emit(&scope, "payment.disputed", "transaction", id, payload).await
}
