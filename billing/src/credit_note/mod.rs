//! Credit notes (credit-notes.md): a finalized invoice never changes; what it charged too much is taken back by a document of
//! its own, with a number from its own series and the tax of the lines that it takes back.
//!
//! They are issued where a window is billed again and costs less than its invoices have charged ([`issue`]). Applying them to
//! invoices, wallets and refunds, and credit notes by hand, are not built yet: `amount_remaining` stays the total.

mod issue;
mod model;
pub mod read;
mod words;

pub(crate) use issue::issue;
pub use model::{CreditNoteDTO, CreditNoteLineDTO};
pub use words::{CreditNoteReasonCode, CreditNoteStatus};
