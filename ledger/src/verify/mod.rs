//! `kontorion ledger verify`: everything that the books promise, recomputed (rules D, P10, P13).
//!
//! It walks the tables in chunks by key. Each statement sees one snapshot and compares what is committed together, so it
//! can run beside a working server, and no statement comes near the 30 s limit.

mod accruals;
mod invoices;
mod transfers;
mod wallets;

use domain::{Result, wire_enum};
use store::Store;

wire_enum! {
    /// A promise that is checked.
    pub enum Check {
        /// A wallet's balance equals the entries of its account.
        Balance = "balance",
        /// The movements of a wallet add up to its balances, step by step, and the PENDING holds to what is held.
        Movement = "movement",
        /// A transfer has entries, and they add up to zero in each currency.
        Transfer = "transfer",
        /// The transfer, account and wallet of an entry exist, in its workspace and currency.
        Entry = "entry",
        /// No number of an invoice or credit note is missing.
        InvoiceNumber = "invoice_number",
        /// A finalized invoice, an issued credit note is booked with its total.
        InvoiceBooking = "invoice_booking",
        /// What is paid of a finalized invoice is what came for it less what went back, in the ledger of payments.
        InvoicePaid = "invoice_paid",
        /// What a finalized invoice has billed is no longer accrued, and what interim invoices have charged is taken off.
        Accrual = "accrual",
    }
}

/// Differences that a report lists; the others are counted.
const DIFFERENCES_MAX: usize = 10_000;

/// Something that is not as promised.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// The promise.
    pub check: Check,
    /// What it is about, e.g. `wallet 0199… cash`.
    pub subject: String,
    /// What the books say.
    pub expected: String,
    /// What is stored.
    pub found: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.check, self.subject, self.expected, self.found)
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The check.
    pub check: Check,
    /// Rows of its main table that it has seen: wallets, transfers, workspaces, invoices, accruals.
    pub done: u64,
}

/// What was checked and what differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Wallets whose balances and movements were recomputed.
    pub wallets: u64,
    /// Transfers.
    pub transfers: u64,
    /// Their entries.
    pub entries: u64,
    /// Workspaces whose invoice numbers were counted.
    pub workspaces: u64,
    /// Invoices whose booking was compared.
    pub invoices: u64,
    /// Accruals.
    pub accruals: u64,
    /// The first differences, up to ten thousand.
    pub differences: Vec<Difference>,
    /// All differences.
    pub differences_total: u64,
}

impl Report {
    /// Whether every promise is kept.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.differences_total == 0
    }

    fn add(&mut self, check: Check, subject: String, expected: impl ToString, found: impl ToString) {
        self.differences_total += 1;
        if self.differences.len() < DIFFERENCES_MAX {
            let (expected, found) = (expected.to_string(), found.to_string());
            self.differences.push(Difference { check, subject, expected, found });
        }
    }
}

/// Checks the books of all workspaces and tells its progress after each chunk.
///
/// # Errors
/// When the database does not answer; a broken promise is no error but a difference.
pub async fn verify(store: &Store, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Report> {
    let mut report = Report::default();
    wallets::check(store, &mut report, progress).await?;
    transfers::check(store, &mut report, progress).await?;
    invoices::check_numbers(store, &mut report, progress).await?;
    invoices::check_bookings(store, &mut report, progress).await?;
    invoices::check_paid(store, &mut report).await?;
    invoices::check_credit_notes(store, &mut report).await?;
    accruals::check(store, &mut report, progress).await?;
    Ok(report)
}
