//! Invoices: assembly, drafts, finalization, reading (invoices.md).

pub mod draft;
pub mod line;
pub mod model;
pub mod run;
pub mod share;
pub mod words;
