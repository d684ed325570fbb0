//! Top-ups: money that a gateway has taken for a wallet, money that a gateway has given back, and which wallets want an
//! automatic top-up (wallets.md, Balances). Who asks the gateways is `payments`.

use std::collections::BTreeSet;

use domain::{Instant, InvoiceId, Money, Result, Scope, TransferId, WalletId, WorkspaceId};
use sqlx::PgConnection;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::batch::{Details, WalletBatch};
use super::entry::{Operation, counter_of_credit, smaller, type_of_credit};
use super::model::{Wallet, WalletBalanceKind, WalletTransaction, WalletTransactionSource};
use super::operation::check_caps;
use crate::account::{Account, WalletAccount, WorkspaceAccount};
use crate::invoice::topup_transfer_id;
use crate::transfer::{Transfer, TransferKind, post};

impl WalletBatch {
    /// Adds cash that has been received from the customer: of a top-up, or what was paid beyond an invoice. The caps of credits
    /// were asked when a top-up was ordered ([`WalletBatch::check_topup`]); now that the money is there none stands in its way.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`.
    pub fn credit_received(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        details: &Details,
    ) -> Result<WalletTransaction> {
        self.credit_from(counter_of_credit(details.source), id, transfer_id, amount, details)
    }

    /// Adds the money of a top-up whose invoice is paid. The caps were asked when the invoice was ordered.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`.
    pub fn credit_invoiced(&mut self, id: WalletId, invoice: InvoiceId, amount: Money) -> Result<WalletTransaction> {
        let details = Details::of(WalletTransactionSource::Topup).reference("invoice", invoice);
        self.credit_from(WorkspaceAccount::TopupInvoiced, id, topup_transfer_id(invoice), amount, &details)
    }

    fn credit_from(
        &mut self,
        counter: WorkspaceAccount,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        details: &Details,
    ) -> Result<WalletTransaction> {
        let mut entry = self.entry(id)?;
        entry.check_currency(amount)?;
        let operation = Operation::new(transfer_id, type_of_credit(details.source), details);
        entry.record(&operation, WalletBalanceKind::Cash, amount)?;
        let transfer = operation
            .draft(TransferKind::WalletCredit, entry.now)
            .debit(Account::Workspace(counter), amount)
            .credit(entry.account(WalletAccount::Cash), amount)
            .balanced()?;
        let movement = entry.movements.last().map(|movement| movement.row.clone());
        self.keep([entry], transfer);
        movement.ok_or_else(|| domain::Error::invariant("an operation without a movement"))
    }

    /// Whether a top-up of this amount could be credited now.
    ///
    /// # Errors
    /// As [`WalletBatch::credit`].
    pub fn check_topup(&self, id: WalletId, amount: Money) -> Result<()> {
        let entry = self.entry(id)?;
        entry.check_currency(amount)?;
        check_caps(&entry.row.wallet, amount)
    }

    /// Takes back what was given back to the customer, as far as the wallet has it; answers what it has not. `counter` is where
    /// the wallet had it from: `GatewayClearing`, or `TopupInvoiced` where an invoice had asked for it.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`.
    pub fn debit_refunded(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        counter: WorkspaceAccount,
        details: &Details,
    ) -> Result<Money> {
        let available = self.wallet(id)?.available_balance;
        self.entry(id)?.check_currency(amount)?;
        let taken = smaller(available, amount);
        if taken.is_zero() || taken.is_negative() {
            return Ok(amount);
        }
        self.take(id, transfer_id, taken, TransferKind::WalletDebit, counter, details)?;
        Ok(amount.sub(taken)?)
    }
}

/// Writes off what was given back and the wallet no longer had; `counter` as of [`WalletBatch::debit_refunded`].
///
/// # Errors
/// As every statement.
pub async fn write_off_refund(
    tx: &mut Tx,
    scope: &Scope,
    transfer_id: TransferId,
    amount: Money,
    counter: WorkspaceAccount,
    transaction_id: impl Into<Uuid>,
) -> Result<()> {
    let transfer = Transfer::draft(transfer_id, TransferKind::PaymentRefund, scope.now())
        .reference("transaction", transaction_id)
        .debit(Account::Workspace(WorkspaceAccount::WriteOff), amount)
        .credit(Account::Workspace(counter), amount)
        .balanced()?;
    post(tx, scope, &[transfer]).await.map(drop)
}

/// Whether an operation took cash of a wallet with automatic top-up, and left it below the threshold.
pub(super) fn is_wanted(before: &Wallet, after: &Wallet) -> bool {
    after.auto_topup_enabled
        && after.cash_balance.amount() < before.cash_balance.amount()
        && after.low_balance_threshold.is_some_and(|threshold| after.cash_balance.amount() < threshold.amount())
}

/// Notes wallets that want an automatic top-up. Under their locks.
pub(super) async fn want(tx: &mut Tx, wallets: &BTreeSet<WalletId>) -> Result<()> {
    if wallets.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = wallets.iter().map(|id| id.0).collect();
    sqlx::query(
        "INSERT INTO wallet_auto_topup (wallet_id, workspace_id, is_wanted)
         SELECT id, workspace_id, true FROM wallet WHERE id = ANY($1) ORDER BY id
         ON CONFLICT (wallet_id) DO UPDATE SET is_wanted = true WHERE NOT wallet_auto_topup.is_wanted",
    )
    .bind(ids)
    .execute(tx.conn())
    .await
    .context("noting wallets that want a top-up")?;
    Ok(())
}

/// Wallets that want an automatic top-up and have none under way.
///
/// # Errors
/// As every statement.
pub async fn wanted(conn: &mut PgConnection, real: Instant, limit: i64) -> Result<Vec<(WorkspaceId, WalletId)>> {
    sqlx::query_as(
        "SELECT workspace_id, wallet_id FROM wallet_auto_topup wanted
         WHERE is_wanted AND not_before <= $1 AND NOT EXISTS (
             SELECT FROM payment_transaction open WHERE open.wallet_id = wanted.wallet_id AND open.is_automatic
                AND open.status IN ('PENDING', 'PROCESSING'))
         ORDER BY not_before, wallet_id LIMIT $2",
    )
    .bind(real)
    .bind(limit)
    .fetch_all(conn)
    .await
    .context("looking for wallets that want a top-up")
}

/// Takes the wish of a locked wallet: false when somebody else took it.
///
/// # Errors
/// As every statement.
pub async fn take_wish(tx: &mut Tx, id: WalletId, real: Instant) -> Result<bool> {
    let taken = sqlx::query(
        "UPDATE wallet_auto_topup SET is_wanted = false WHERE wallet_id = $1 AND is_wanted AND not_before <= $2",
    )
    .bind(id)
    .bind(real)
    .execute(tx.conn())
    .await
    .context("taking the wish of a wallet")?;
    Ok(taken.rows_affected() == 1)
}

/// After a top-up of a locked wallet that failed: none before an instant of real time; `again` makes it try then even if no
/// operation comes.
///
/// # Errors
/// As every statement.
pub async fn pause(tx: &mut Tx, id: WalletId, not_before: Instant, again: bool) -> Result<()> {
    sqlx::query("UPDATE wallet_auto_topup SET not_before = $2, is_wanted = is_wanted OR $3 WHERE wallet_id = $1")
        .bind(id)
        .bind(not_before)
        .bind(again)
        .execute(tx.conn())
        .await
        .context("pausing the top-ups of a wallet")?;
    Ok(())
}
