//! The chart of accounts of a workspace.
//!
//! Ids are derived (UUIDv5), so that nobody has to look an account up before booking on it: a wallet has one account per
//! kind, a workspace has [`STRIPES`] per kind and currency, so that parallel transfers do not meet on one row (P10).

use domain::{AccountId, Currency, TransferId, WalletId, WorkspaceId, wire_enum};
use uuid::Uuid;

/// Rows over which a workspace account is spread; its balance is their sum.
pub const STRIPES: u8 = 16;

wire_enum! {
    /// Accounts that every wallet has one of.
    pub enum WalletAccount {
        /// Money received.
        Cash = "wallet_cash",
        /// Credit given.
        Promotional = "wallet_promotional",
        /// What holds reserve.
        Held = "wallet_held",
    }
}

wire_enum! {
    /// Accounts of a workspace; their meaning is in the crate's documentation.
    pub enum WorkspaceAccount {
        /// Finalized invoices that are not paid.
        Receivable = "receivable",
        /// Income.
        Revenue = "revenue",
        /// Tax of finalized invoices.
        TaxPayable = "tax_payable",
        /// Money at a gateway.
        GatewayClearing = "gateway_clearing",
        /// Money received or paid by hand.
        ManualClearing = "manual_clearing",
        /// Credit given, less what expired.
        PromotionalExpense = "promotional_expense",
        /// Captured before its invoice.
        CapturedUsage = "captured_usage",
        /// The other side of what holds reserve.
        HoldCommitment = "hold_commitment",
        /// Conversions.
        Fx = "fx",
        /// Corrections.
        WriteOff = "write_off",
        /// Top-ups that invoices ask for.
        TopupInvoiced = "topup_invoiced",
        /// What settlements owe.
        SettlementPayable = "settlement_payable",
        /// What counterparties of settlements have earned.
        SettlementExpense = "settlement_expense",
    }
}

impl WalletAccount {
    /// Of a wallet.
    pub(crate) fn id(self, wallet: WalletId) -> AccountId {
        AccountId(Uuid::new_v5(&wallet.0, self.as_str().as_bytes()))
    }
}

impl WorkspaceAccount {
    /// One stripe of it.
    pub(crate) fn id(self, workspace: WorkspaceId, currency: Currency, stripe: u8) -> AccountId {
        AccountId(Uuid::new_v5(&workspace.0, format!("{self}/{currency}/{stripe}").as_bytes()))
    }
}

/// An account that an entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// One of the three of a wallet.
    Wallet(WalletId, WalletAccount),
    /// One of the workspace; the transfer's id chooses the stripe.
    Workspace(WorkspaceAccount),
}

/// A row of `ledger_account`, as an entry needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccountRow {
    pub(crate) id: AccountId,
    pub(crate) kind: &'static str,
    pub(crate) currency: Currency,
    pub(crate) wallet_id: Option<WalletId>,
    pub(crate) stripe: i16,
}

impl Account {
    /// The row that an entry of this transfer books on.
    pub(crate) fn row(self, workspace: WorkspaceId, currency: Currency, transfer: TransferId) -> AccountRow {
        match self {
            Self::Wallet(wallet_id, kind) => {
                let id = kind.id(wallet_id);
                AccountRow { id, kind: kind.as_str(), currency, wallet_id: Some(wallet_id), stripe: 0 }
            }
            Self::Workspace(kind) => {
                let stripe = stripe_of(transfer);
                let id = kind.id(workspace, currency, stripe);
                AccountRow { id, kind: kind.as_str(), currency, wallet_id: None, stripe: i16::from(stripe) }
            }
        }
    }
}

/// The last byte is random in version 7 and hashed in version 5.
fn stripe_of(transfer: TransferId) -> u8 {
    transfer.0.as_bytes()[15] % STRIPES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_workspaces_kinds_currencies_and_stripes_apart() {
        let (one, other) = (WorkspaceId(Uuid::from_u128(1)), WorkspaceId(Uuid::from_u128(2)));
        let mut ids = std::collections::HashSet::new();
        for workspace in [one, other] {
            for kind in [WorkspaceAccount::Revenue, WorkspaceAccount::Receivable] {
                for currency in [Currency::EUR, Currency::USD] {
                    for stripe in 0..16_u128 {
                        let transfer = TransferId(Uuid::from_u128(stripe));
                        ids.insert(Account::Workspace(kind).row(workspace, currency, transfer).id);
                    }
                }
            }
        }
        assert_eq!(ids.len(), 2 * 2 * 2 * 16);
    }
}
