//! The ledger of payments (transactions.md): one row is one movement of money between a customer and the organization. Rows
//! are written before anybody is asked for money, and only their outcome changes.

mod model;
mod read;
mod write;

pub use model::Transaction;
pub use read::{LIST, get, list, list_of_invoice};

pub(crate) use read::{by_reference, lock, refunded_with};
pub(crate) use write::{ByHand, Change, NewTransaction, Way, apply, claim_due, claim_one, insert, note_excess, renew};
