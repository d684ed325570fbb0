//! One operation on one wallet before it is kept: a copy of the locked state that movements change. Whatever fails on
//! the way leaves the batch as it was, so that each operation of a group has its own outcome.

use domain::{Instant, Money, Result, TransferId, WalletTransactionId};

use super::batch::Details;
use super::model::{Wallet, WalletBalanceKind, WalletTransaction, WalletTransactionSource, WalletTransactionType};
use super::row::WalletRow;
use crate::account::{Account, WalletAccount, WorkspaceAccount};
use crate::transfer::{Transfer, TransferDraft, TransferKind};

/// What a movement takes from each balance: promotional before cash (wallets.md, Order of payment).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub promotional: Money,
    pub cash: Money,
}

impl Split {
    pub fn of(row: &WalletRow, amount: Money) -> Result<Self> {
        let promotional = smaller(row.wallet.promotional_balance, amount);
        Ok(Self { promotional, cash: amount.sub(promotional)? })
    }

    pub fn touches_both(&self) -> bool {
        !self.promotional.is_zero() && !self.cash.is_zero()
    }
}

/// The smaller of two amounts of one currency.
pub(super) fn smaller(one: Money, other: Money) -> Money {
    if one.amount() <= other.amount() { one } else { other }
}

/// What all movements of an operation share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation<'a> {
    pub transfer_id: TransferId,
    pub transaction_type: WalletTransactionType,
    pub details: &'a Details,
    pub hold_id: Option<domain::HoldId>,
    /// Whether its movements share a `group_id`.
    pub grouped: bool,
}

impl<'a> Operation<'a> {
    pub fn new(transfer_id: TransferId, transaction_type: WalletTransactionType, details: &'a Details) -> Self {
        Self { transfer_id, transaction_type, details, hold_id: None, grouped: false }
    }

    pub fn draft(&self, kind: TransferKind, at: Instant) -> TransferDraft {
        let draft = Transfer::draft(self.transfer_id, kind, at).description(self.details.description.as_deref());
        match (&self.details.reference_type, self.details.reference_id) {
            (Some(reference_type), Some(reference_id)) => draft.reference(reference_type, reference_id),
            _ => draft,
        }
    }
}

/// A movement with the transfer that books it.
#[derive(Clone, Debug)]
pub(super) struct Movement {
    pub transfer_id: TransferId,
    pub row: WalletTransaction,
}

/// A locked wallet's state and what one operation does to it.
#[derive(Clone, Debug)]
pub(super) struct WalletEntry {
    pub row: WalletRow,
    pub now: Instant,
    pub movements: Vec<Movement>,
}

impl WalletEntry {
    /// Changes a balance by a signed amount and notes the movement.
    pub fn record(&mut self, operation: &Operation<'_>, kind: WalletBalanceKind, amount: Money) -> Result<()> {
        let wallet = &mut self.row.wallet;
        match kind {
            WalletBalanceKind::Cash => wallet.cash_balance = wallet.cash_balance.add(amount)?,
            WalletBalanceKind::Promotional => change_promotional(wallet, amount)?,
        }
        let details = operation.details;
        let row = WalletTransaction {
            id: WalletTransactionId::generate(),
            wallet_id: wallet.id,
            customer_id: wallet.customer_id,
            transaction_type: operation.transaction_type,
            source: details.source,
            amount,
            balance_kind: kind,
            cash_balance_after: wallet.cash_balance,
            promotional_balance_after: wallet.promotional_balance,
            group_id: operation.grouped.then_some(operation.transfer_id.0),
            reference_type: details.reference_type.clone(),
            reference_id: details.reference_id,
            hold_id: operation.hold_id,
            description: details.description.clone(),
            idempotency_key: details.idempotency_key.clone(),
            metadata: details.metadata.clone(),
            created_at: self.now,
        };
        self.movements.push(Movement { transfer_id: operation.transfer_id, row });
        Ok(())
    }

    /// Takes a split from both balances, one movement each.
    pub fn take(&mut self, operation: &Operation<'_>, split: Split) -> Result<()> {
        let operation = Operation { grouped: split.touches_both(), ..*operation };
        if !split.promotional.is_zero() {
            self.record(&operation, WalletBalanceKind::Promotional, split.promotional.negate())?;
        }
        if !split.cash.is_zero() {
            self.record(&operation, WalletBalanceKind::Cash, split.cash.negate())?;
        }
        Ok(())
    }

    /// The entries of a split against a workspace account.
    pub fn draft_take(&self, draft: TransferDraft, split: Split, counter: WorkspaceAccount) -> Result<TransferDraft> {
        let total = split.promotional.add(split.cash)?;
        Ok(draft
            .debit(self.account(WalletAccount::Promotional), split.promotional)
            .debit(self.account(WalletAccount::Cash), split.cash)
            .credit(Account::Workspace(counter), total))
    }

    pub fn account(&self, kind: WalletAccount) -> Account {
        Account::Wallet(self.row.wallet.id, kind)
    }

    /// Refuses an amount of another currency.
    pub fn check_currency(&self, amount: Money) -> Result<()> {
        let own = self.row.wallet.currency;
        if amount.currency() == own {
            return Ok(());
        }
        let detail = format!("the wallet holds {own}, the amount is in {}", amount.currency());
        Err(domain::Error::rule("CURRENCY_MISMATCH", detail))
    }

    /// Refuses to spend more than `limit`.
    pub fn check_funds(&self, amount: Money, limit: Money) -> Result<()> {
        if amount.amount() <= limit.amount() {
            return Ok(());
        }
        let detail = format!("{amount} is wanted, {limit} is available");
        Err(domain::Error::rule("INSUFFICIENT_FUNDS", detail).with("available", limit).with("requested", amount))
    }
}

/// An expiry belongs to the credit that is in the balance: with its last cent it goes, or else it would take what comes
/// in later.
fn change_promotional(wallet: &mut Wallet, amount: Money) -> Result<()> {
    wallet.promotional_balance = wallet.promotional_balance.add(amount)?;
    if wallet.promotional_balance.is_zero() {
        wallet.promotional_balance_expires_at = None;
    }
    Ok(())
}

/// The other side of cash that comes in (crate documentation, table of entries).
pub(super) fn counter_of_credit(source: WalletTransactionSource) -> WorkspaceAccount {
    use WalletTransactionSource as Source;
    match source {
        Source::Payment | Source::Topup | Source::AutoTopup => WorkspaceAccount::GatewayClearing,
        Source::Refund | Source::CreditNote | Source::Invoice => WorkspaceAccount::Receivable,
        Source::Transfer => WorkspaceAccount::Fx,
        Source::Usage => WorkspaceAccount::CapturedUsage,
        Source::Manual | Source::Promotion | Source::Migration | Source::System => WorkspaceAccount::ManualClearing,
    }
}

/// What a credit is called.
pub(super) fn type_of_credit(source: WalletTransactionSource) -> WalletTransactionType {
    match source {
        WalletTransactionSource::Topup | WalletTransactionSource::AutoTopup => WalletTransactionType::Topup,
        _ => WalletTransactionType::Credit,
    }
}

/// The other side of what goes out.
pub(super) fn counter_of_debit(source: WalletTransactionSource) -> WorkspaceAccount {
    use WalletTransactionSource as Source;
    match source {
        Source::Invoice => WorkspaceAccount::Receivable,
        Source::Payment | Source::Refund | Source::Topup | Source::AutoTopup => WorkspaceAccount::GatewayClearing,
        Source::Usage => WorkspaceAccount::CapturedUsage,
        Source::Transfer => WorkspaceAccount::Fx,
        Source::Migration | Source::System => WorkspaceAccount::ManualClearing,
        Source::Manual | Source::Promotion | Source::CreditNote => WorkspaceAccount::Revenue,
    }
}
