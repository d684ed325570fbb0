//! Money of a payment that its provider says it has given back, that the customer's bank contests, or that it has taken.

use billing::invoice::Payable;
use domain::{Clock, Error, Money, Result, Scope, TransactionId, TransferId};
use ledger::WorkspaceAccount;
use rust_decimal::Decimal;
use store::{StoreError, Tx};

use super::finish::{announce, take_from_wallet};
use crate::at_customer;
use crate::settle::{clearing_of, payable_of};
use crate::transaction::{self, Change, NewTransaction, Transaction, Way};
use crate::words::{TransactionKind, TransactionStatus};

/// `total` was given back of a payment so far: writes what is new of it as a REFUND. Refunds that we have ordered and whose outcome
/// is open count already: they are told of, too.
pub(crate) async fn given_back(scope: &Scope, tx: &mut Tx, id: TransactionId, total: Money) -> Result<()> {
    let mut invoice = payable_of(scope, tx, id).await?;
    let row = transaction::lock(scope, tx, id).await?;
    let is_refundable = matches!(row.status, TransactionStatus::Succeeded | TransactionStatus::PartiallyRefunded);
    let known = row.refunded_amount.add(ordered(scope, tx, &row).await?)?;
    let more = total.sub(known)?;
    if !is_refundable || more.is_zero() || more.is_negative() || total.amount() > row.amount.amount() {
        tracing::info!(transaction.id = %id, status = %row.status, %total, "a refund at the provider changes nothing");
        return Ok(());
    }
    let scope = at_customer(scope, tx.conn(), row.customer_id).await?;
    let change = Change::Refunded(row.refunded_amount.add(more)?);
    let refunded = transaction::apply(&scope, tx, &row, &change).await?;
    let refund = told(&scope, tx, &row, TransactionKind::Refund, more).await?;
    take_back(&scope, tx, invoice.as_mut(), &row, &refund).await?;
    announce(&scope, tx, &refunded, &refund).await
}

/// The sum of refunds of a payment that have no outcome yet.
async fn ordered(scope: &Scope, tx: &mut Tx, row: &Transaction) -> Result<Money> {
    let sum: Decimal = sqlx::query_scalar(
        "SELECT coalesce(sum(amount), 0) FROM payment_transaction
         WHERE workspace_id = $1 AND parent_transaction_id = $2 AND kind = 'REFUND' AND status IN ('PENDING', 'PROCESSING')",
    )
    .bind(scope.workspace_id)
    .bind(row.id)
    .fetch_one(tx.conn())
    .await
    .context("reading the open refunds of a payment")?;
    Ok(Money::new(sum, row.amount.currency())?)
}

/// The movement that a provider tells of.
async fn told(
    scope: &Scope,
    tx: &mut Tx,
    row: &Transaction,
    kind: TransactionKind,
    amount: Money,
) -> Result<Transaction> {
    let (Some(gateway_id), Some(provider)) = (row.gateway_id, row.provider) else {
        return Err(Error::invariant(format!("no gateway can have given back the payment {}", row.id)));
    };
    let way = Way::Told { gateway_id, provider, payment_method_id: row.payment_method_id };
    transaction::insert(scope, tx, &NewTransaction::back(row, kind, amount, way), Clock::System.now()).await
}

/// Takes money that is gone from where the payment had put it: the invoice is owed it again, and a wallet loses what it has of what
/// was beyond the invoice.
async fn take_back(
    scope: &Scope,
    tx: &mut Tx,
    invoice: Option<&mut Payable>,
    row: &Transaction,
    back: &Transaction,
) -> Result<()> {
    let mut rest = back.amount;
    if let Some(invoice) = invoice {
        let kept = row.kept()?;
        let of_invoice = if kept.amount() <= rest.amount() { kept } else { rest };
        if !of_invoice.is_zero() {
            let (id, clearing) = (TransferId(back.id.0), clearing_of(back));
            let transfer = ledger::refund_transfer(scope, id, invoice.id, clearing, of_invoice)?;
            ledger::post_new(tx, scope, &[transfer]).await?;
            invoice.give_back(scope, tx, of_invoice, true).await?;
            if let Some(wallet) = invoice.filled_wallet() {
                take_from_wallet(scope, tx, wallet, of_invoice, WorkspaceAccount::TopupInvoiced, back).await?;
            }
            rest = rest.sub(of_invoice)?;
        }
    }
    let Some(wallet) = row.wallet_id.filter(|_| !rest.is_zero()) else { return Ok(()) };
    if back.invoice_id.is_some() {
        transaction::note_excess(tx, back, wallet, rest).await?;
    }
    take_from_wallet(scope, tx, wallet, rest, clearing_of(back), back).await
}

/// The bank contests a payment: it is marked, and people decide.
pub(crate) async fn contested(scope: &Scope, tx: &mut Tx, id: TransactionId, reason: &str) -> Result<()> {
    let row = transaction::lock(scope, tx, id).await?;
    dispute(scope, tx, &row, reason, false).await.map(drop)
}

/// Marks a locked payment as contested and announces it; the scope of its customer, or `None` where it cannot be. A payment that was
/// refunded in part cannot be DISPUTED (transactions.md 3): it is REFUNDED when the rest of its money has gone.
async fn dispute(scope: &Scope, tx: &mut Tx, row: &Transaction, reason: &str, is_gone: bool) -> Result<Option<Scope>> {
    let change = match row.status {
        TransactionStatus::Succeeded => Change::Disputed,
        TransactionStatus::PartiallyRefunded if is_gone => Change::Refunded(row.amount),
        status => {
            tracing::warn!(transaction.id = %row.id, %status, reason, "a dispute of a payment that cannot be disputed");
            return Ok(None);
        }
    };
    let scope = at_customer(scope, tx.conn(), row.customer_id).await?;
    let disputed = transaction::apply(&scope, tx, row, &change).await?;
    let mut payload = disputed.payload();
    payload.insert("reason".to_owned(), reason.into());
    tx.emit(&scope, "payment.disputed", "transaction", row.id, payload).await?;
    Ok(Some(scope))
}

/// The bank has taken a payment back: it is marked as contested, and what is left of its money leaves as a CHARGEBACK.
pub(crate) async fn charged_back(scope: &Scope, tx: &mut Tx, id: TransactionId, reason: &str) -> Result<()> {
    let mut invoice = payable_of(scope, tx, id).await?;
    let row = transaction::lock(scope, tx, id).await?;
    let Some(scope) = dispute(scope, tx, &row, reason, true).await? else { return Ok(()) };
    let left = row.amount.sub(row.refunded_amount)?;
    let back = told(&scope, tx, &row, TransactionKind::Chargeback, left).await?;
    take_back(&scope, tx, invoice.as_mut(), &row, &back).await
}
