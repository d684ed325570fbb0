//! Invoices: assembly, drafts, finalization, reading (invoices.md).

pub(crate) mod captured;
pub mod collect;
pub mod draft;
pub(crate) mod draw;
pub(crate) mod extra;
pub mod finalize;
pub(crate) mod follow;
pub mod invoiced;
mod issue;
pub(crate) mod leave;
pub mod line;
pub(crate) mod load;
pub mod manual;
pub mod model;
pub(crate) mod paid;
pub mod pay;
pub mod preview;
pub mod read;
pub mod run;
pub(crate) mod save;
pub mod share;
pub mod topup;
pub mod words;

pub use finalize::{FinalizeOptions, RunRef, Seals};
pub use line::{InvoiceLine, InvoiceLineAtom, InvoiceLineAtomDTO, InvoiceLineDTO, StoredLine};
pub use manual::{FinalizeInvoiceRequest, Finalized, GenerateInvoiceRequest};
pub use model::{Invoice, InvoiceDTO, InvoiceTaxBreakdownRow};
pub use pay::Payable;
pub use run::{Run, RunKey, RunReason};
pub use words::{AppliesAt, InvoiceLineType, InvoiceStatus, InvoiceType};
