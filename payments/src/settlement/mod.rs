//! Settlements (settlements.md): what the organization owes a counterparty, for example the seller of a marketplace, for a period.
//!
//! A draft has all its lines from the beginning; what they come to is stored with it. Finalizing gives it a number and books
//! what is owed; paying it out books the money that left. A finalized settlement that comes to less than nothing is carried
//! into the next draft of the customer and currency as an adjustment.

mod model;
mod read;
mod request;
mod sum;
mod write;

pub use model::{Settlement, SettlementLine, SettlementLineType, SettlementStatus};
pub use read::{LINES, LIST, get, list, list_lines};
pub use request::{GenerateSettlementLine, GenerateSettlementRequest, PaySettlementRequest, VoidSettlementRequest};
pub use write::{delete, finalize, generate, pay, void};
