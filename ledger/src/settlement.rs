//! Settlements as booked facts: what is owed to a counterparty when one is finalized, and what left when it is paid out.

use domain::{Money, Result, Scope, SettlementId, TransferId};

use crate::account::{Account, WorkspaceAccount};
use crate::transfer::{Transfer, TransferKind};

/// The booking of what a settlement adds to what is owed; negative for what is taken back. `None` for nothing.
///
/// # Errors
/// `Internal` for entries that do not add up.
pub fn owed(scope: &Scope, id: TransferId, settlement: SettlementId, amount: Money) -> Result<Option<Transfer>> {
    if amount.is_zero() {
        return Ok(None);
    }
    let draft = Transfer::draft(id, TransferKind::Settlement, scope.now())
        .reference("settlement", settlement)
        .debit(Account::Workspace(WorkspaceAccount::SettlementExpense), amount)
        .credit(Account::Workspace(WorkspaceAccount::SettlementPayable), amount);
    Ok(Some(draft.balanced()?))
}

/// The booking of a payout.
///
/// # Errors
/// `Internal` for a payout of nothing.
pub fn payout(scope: &Scope, id: TransferId, settlement: SettlementId, amount: Money) -> Result<Transfer> {
    let draft = Transfer::draft(id, TransferKind::Payout, scope.now())
        .reference("settlement", settlement)
        .debit(Account::Workspace(WorkspaceAccount::SettlementPayable), amount)
        .credit(Account::Workspace(WorkspaceAccount::ManualClearing), amount);
    Ok(draft.balanced()?)
}
