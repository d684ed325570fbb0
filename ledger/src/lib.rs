//! The books: double entry, wallets, holds, invoices as booked facts (DESIGN section 5, EXACTNESS D).
//!
//! Every movement of money is a [`Transfer`], a set of entries that add up to zero per currency. An amount is a debit
//! when it is positive and a credit when it is negative. Transfers and entries never change; a correction is a new
//! transfer. A wallet's three balances are the locked balances of its three accounts and are written in the
//! transaction of the entries that change them; [`verify::verify`] recomputes them.
//!
//! # Accounts
//!
//! | account | kind | owner | normal side | meaning |
//! |---|---|---|---|---|
//! | `wallet_cash` | liability | wallet | credit | money received that the customer may still spend; a debit balance is what a POSTPAID customer owes |
//! | `wallet_promotional` | liability | wallet | credit | credit given |
//! | `wallet_held` | memorandum | wallet | credit | what PENDING holds reserve |
//! | `hold_commitment` | memorandum | workspace | debit | the other side of `wallet_held` |
//! | `receivable` | asset | workspace | debit | finalized invoices that are not paid |
//! | `revenue` | income | workspace | credit | net of finalized invoices, one-off charges of wallets |
//! | `tax_payable` | liability | workspace | credit | tax of finalized invoices |
//! | `captured_usage` | liability | workspace | credit | captured before the invoice that shows it (rule D2) |
//! | `gateway_clearing` | asset | workspace | debit | money that a gateway holds for us |
//! | `manual_clearing` | asset | workspace | debit | money received or paid outside a gateway |
//! | `promotional_expense` | expense | workspace | debit | credit given, less what expired |
//! | `write_off` | expense | workspace | debit | corrections of wallets |
//! | `topup_invoiced` | liability | workspace | credit | top-ups that invoices ask for and that no wallet has yet |
//! | `settlement_payable` | liability | workspace | credit | what finalized settlements owe and was not paid out |
//! | `settlement_expense` | expense | workspace | debit | what counterparties have earned of our income |
//! | `fx` | clearing | workspace | either | conversions between currencies |
//!
//! # Entries of each operation
//!
//! | operation | debit | credit |
//! |---|---|---|
//! | credit of cash, source `PAYMENT`, `TOPUP`, `AUTO_TOPUP` | `gateway_clearing` | `wallet_cash` |
//! | credit of cash, source `REFUND`, `CREDIT_NOTE`, `INVOICE` | `receivable` | `wallet_cash` |
//! | credit of cash, source `TRANSFER` | `fx` | `wallet_cash` |
//! | credit of cash, source `USAGE` | `captured_usage` | `wallet_cash` |
//! | credit of cash, any other source | `manual_clearing` | `wallet_cash` |
//! | promotional credit | `promotional_expense` | `wallet_promotional` |
//! | debit, source `INVOICE` | `wallet_promotional`, then `wallet_cash` | `receivable` |
//! | debit, source `PAYMENT`, `REFUND`, `TOPUP`, `AUTO_TOPUP` | the same | `gateway_clearing` |
//! | debit, source `USAGE` | the same | `captured_usage` |
//! | debit, source `TRANSFER` | the same | `fx` |
//! | debit, source `MIGRATION`, `SYSTEM` | the same | `manual_clearing` |
//! | debit, any other source (a one-off charge) | the same | `revenue` |
//! | adjustment of cash (signed) | `write_off` | `wallet_cash` |
//! | adjustment of promotional credit (signed) | `promotional_expense` | `wallet_promotional` |
//! | expiry of promotional credit | `wallet_promotional` | `promotional_expense` |
//! | transfer in one currency | `wallet_cash` of the source | `wallet_cash` of the target |
//! | transfer between currencies, in each currency | `wallet_cash` of the source; `fx` | `fx`; `wallet_cash` of the target |
//! | hold | `hold_commitment` | `wallet_held` |
//! | release or expiry of a hold | `wallet_held` | `hold_commitment` |
//! | capture of a hold: a release of the whole, and | `wallet_promotional`, then `wallet_cash` | `captured_usage` (usage) or `revenue` |
//! | invoice finalized | `receivable` (total) | `revenue` (net), `tax_payable` (tax) |
//! | invoice settled by captures before it | `captured_usage` | `receivable` |
//! | invoice settled by captures from a wallet of another currency, in each currency | `captured_usage`; `fx` | `fx`; `receivable` |
//! | captured more than the invoice shows | `captured_usage` | `wallet_cash` |
//! | credit note issued | `revenue` (net), `tax_payable` (tax) | `receivable` (total) |
//! | invoice paid through a gateway, by hand | `gateway_clearing`, `manual_clearing` | `receivable` |
//! | the same, more than was due | the same | `wallet_cash` |
//! | invoice refunded through the gateway, by hand, to a wallet | `receivable` | `gateway_clearing`, `manual_clearing`, `wallet_cash` |
//! | top-up refunded or charged back at the gateway: what the wallet has; the rest | `wallet_promotional`, then `wallet_cash`; `write_off` | `gateway_clearing` |
//! | invoice drawn from a wallet | `wallet_promotional`, then `wallet_cash` | `receivable` |
//! | invoice drawn from a wallet of another currency, in each currency | the same; `fx` | `fx`; `receivable` |
//! | invoice of a top-up finalized; its credit note | `receivable`; `topup_invoiced` | `topup_invoiced`; `receivable` |
//! | invoice of a top-up paid in full, beside its payment | `topup_invoiced` | `wallet_cash` |
//! | the same, refunded or charged back, beside its refund: what the wallet has; the rest | `wallet_promotional`, then `wallet_cash`; `write_off` | `topup_invoiced` |
//! | settlement finalized (what it carries from earlier ones was booked with those) | `settlement_expense` | `settlement_payable` |
//! | finalized settlement void | `settlement_payable` | `settlement_expense` |
//! | settlement paid out | `settlement_payable` | `manual_clearing` |

pub mod account;
pub mod closing;
pub mod invoice;
mod picture;
pub mod settlement;
pub mod statement;
pub mod transfer;
pub mod trial_balance;
pub mod verify;
pub mod wallet;

pub use account::{Account, WalletAccount, WorkspaceAccount};
pub use closing::{Closing, close, closings, reopen};
pub use invoice::{
    Settlement, book_invoice, charge_for_invoice, credit_note_transfer, invoice_transfer, payment_transfer,
    refund_transfer, settlement_transfer,
};
pub use statement::{Span, Statement, StatementAccount, StatementLine};
pub use transfer::{Posted, Transfer, TransferKind, post, post_new};
pub use trial_balance::{TrialBalanceRow, trial_balance};
pub use verify::{Difference, Progress, Report, verify};
pub use wallet::{
    NewWallet, Outcome, Wallet, WalletBatch, WalletDTO, WalletDefaults, WalletHold, WalletTransaction, lock_wallets,
    wallet_for, wallet_for_received,
};
