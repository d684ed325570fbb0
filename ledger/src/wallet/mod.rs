//! Wallets: one customer's balance in one currency (wallets.md).
//!
//! Every operation locks its wallets in id order, lets what is due lapse (rule D4), decides on the locked state, and
//! writes transfers, movements, holds and balances in one transaction. [`WalletBatch`] is that sequence for many operations at
//! once; [`WalletDesk`] does what is asked over HTTP by it, with the idempotency keys of the requests.

mod batch;
mod create;
mod desk;
mod entry;
mod hold;
mod list;
mod model;
mod operation;
mod replay;
mod request;
mod row;
mod settings;
pub mod topup;

pub use batch::{Details, WalletBatch, lock_wallets, reserve_outcome};
pub use create::{NewWallet, WalletDefaults, create_primary, create_secondary, wallet_for, wallet_for_received};
pub use desk::{WalletAnswer, WalletDesk, WalletOperation, WalletRequest, perform};
pub use hold::settle_due;
pub use list::{get, get_hold, list, list_holds, list_of_customer, list_transactions};
pub use model::{
    HoldStatus, ReservedFor, Wallet, WalletBalanceKind, WalletDTO, WalletHold, WalletTransaction,
    WalletTransactionSource, WalletTransactionType, WalletTransferResult,
};
pub use operation::CreditKind;
pub use replay::Outcome;
pub use request::{
    AdjustRequest, CaptureHoldRequest, CreateWalletRequest, CreditRequest, DebitRequest, HoldRequest, TransferRequest,
    UpdateWalletSettingsRequest,
};
pub use settings::update_settings;
