//! Wallets: one customer's balance in one currency (wallets.md).
//!
//! Every operation locks its wallets in id order, lets what is due lapse (rule D4), decides on the locked state, and
//! writes transfers, movements, holds and balances in one transaction. [`WalletBatch`] is that sequence for many
//! operations at once; the functions of [`operation`] and [`hold`] are one operation each, with its idempotency key.

mod batch;
mod create;
mod entry;
pub mod hold;
mod list;
mod model;
pub mod operation;
mod replay;
mod request;
mod row;
mod settings;
pub mod topup;

pub use batch::{Details, WalletBatch, emit_outcome, lock_wallets};
pub use create::{NewWallet, WalletDefaults, create_primary, create_secondary, wallet_for};
pub use list::{get, get_hold, list, list_holds, list_of_customer, list_transactions};
pub use model::{
    HoldStatus, ReservedFor, Wallet, WalletBalanceKind, WalletDTO, WalletHold, WalletTransaction,
    WalletTransactionSource, WalletTransactionType, WalletTransferResult,
};
pub use replay::Outcome;
pub use request::{
    AdjustRequest, CaptureHoldRequest, CreateWalletRequest, CreditRequest, DebitRequest, HoldRequest, TransferRequest,
    UpdateWalletSettingsRequest,
};
pub use settings::update_settings;
