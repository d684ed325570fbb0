//! Credit notes (credit-notes.md): a finalized invoice never changes; what it charged too much is taken back by a document of
//! its own, with a number from its own series and the tax of the lines that it takes back.
//!
//! They are issued where a window is billed again and costs less than its invoices have charged ([`issue`]), and with refunds, which
//! apply them ([`refund`]). Applying them to invoices and wallets, and credit notes by hand, are not built yet.

mod apply;
mod issue;
mod model;
pub mod read;
mod refund;
mod words;
mod write;

pub use apply::{OpenCredit, apply_refund, open_credit};
pub(crate) use issue::issue;
pub use model::{CreditNoteDTO, CreditNoteLineDTO};
pub use refund::{RefundNote, issue_refund};
pub use words::{CreditNoteReasonCode, CreditNoteStatus};
