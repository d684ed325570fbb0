//! `kontorion ledger verify`: everything that the books promise, recomputed (rules D, P10, P13).
//!
//! It walks the tables in chunks by key, in memory that does not grow with them. Each statement sees one snapshot and compares what
//! is committed together, or reads a page of one [picture](crate::picture), so it can run beside a working server, and no
//! statement comes near the 30 s limit.

mod accruals;
mod invoices;
mod transfers;
mod wallets;

use domain::{Result, wire_enum};
use store::{Store, StoreError};

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
        /// Nothing was booked in a period after it was closed.
        Closing = "closing",
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
    /// Rows of its main table that it has seen: movements, transfers, workspaces, invoices, accruals.
    pub done: u64,
    /// About how many there are, by the statistics of the database; 0 when it has none yet.
    pub of: u64,
}

/// Who is told of the rows that a check has seen.
type Tell<'a> = dyn FnMut(Check, u64) + Send + 'a;

/// What was checked and what differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Wallets whose balances and movements were recomputed.
    pub wallets: u64,
    /// Their movements.
    pub movements: u64,
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
    let expected = expected_rows(store).await?;
    let mut tell = |check: Check, done| {
        let of = expected.iter().find(|(name, _)| name == main_table(check)).map_or(0, |(_, rows)| rows.unsigned_abs());
        progress(Progress { check, done, of: of.max(done) });
    };
    let mut report = Report::default();
    wallets::check(store, &mut report, &mut tell).await?;
    transfers::check(store, &mut report, &mut tell).await?;
    invoices::check_numbers(store, &mut report, &mut tell).await?;
    invoices::check_bookings(store, &mut report, &mut tell).await?;
    invoices::check_paid(store, &mut report).await?;
    invoices::check_credit_notes(store, &mut report).await?;
    accruals::check(store, &mut report, &mut tell).await?;
    Ok(report)
}

/// Whose rows the progress of a check counts.
fn main_table(check: Check) -> &'static str {
    match check {
        Check::Balance | Check::Movement => "wallet_transaction",
        Check::Transfer | Check::Entry | Check::Closing => "ledger_transfer",
        Check::InvoiceNumber => "workspace",
        Check::InvoiceBooking | Check::InvoicePaid => "invoice",
        Check::Accrual => "usage_accrual",
    }
}

/// Rows of each table that is walked, as the last ANALYZE has estimated them.
async fn expected_rows(store: &Store) -> Result<Vec<(String, i64)>> {
    sqlx::query_as(
        "SELECT relname::text, greatest(reltuples, 0)::bigint FROM pg_class
         WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
             AND relname IN ('wallet_transaction', 'ledger_transfer', 'workspace', 'invoice', 'usage_accrual')",
    )
    .fetch_all(store.pool())
    .await
    .context("estimating the size of the books")
}
