//! `kontorion ledger verify`: recomputes the books beside a working server, and says what differs.

use indicatif::{ProgressBar, ProgressStyle};
use ledger::{Progress, Report};
use store::Store;

use crate::failure::Failure;

/// Differences that are printed; all are counted.
const SHOWN: usize = 50;

/// Walks the books with a progress line, and prints what was checked.
///
/// # Errors
/// When the database does not answer, or a promise of the books is broken.
pub async fn run(store: &Store) -> Result<(), Failure> {
    let bar = ProgressBar::new_spinner();
    // The template is a constant; without it the line is plainer.
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let mut tell = |progress: Progress| bar.set_message(format!("{}: {} checked", progress.check, progress.done));
    let report = ledger::verify(store, &mut tell).await;
    bar.finish_and_clear();
    let report = report.map_err(|error| Failure::work("verifying the books", error))?;
    print(&report);
    if report.is_clean() {
        Ok(())
    } else {
        Err(Failure::found(format!("{} differences in the books", report.differences_total)))
    }
}

fn print(report: &Report) {
    for (count, what) in [
        (report.wallets, "wallets: balances and movements"),
        (report.transfers, "transfers: they add up to zero"),
        (report.entries, "entries: transfer, account and wallet exist"),
        (report.workspaces, "workspaces: no invoice number is missing"),
        (report.invoices, "invoices: booked with their totals"),
        (report.accruals, "accruals: closed when billed"),
    ] {
        println!("{count:>12}  {what}");
    }
    for difference in report.differences.iter().take(SHOWN) {
        println!("DIFFERENCE  {difference}");
    }
    println!("ledger: {}", if report.is_clean() { "no difference" } else { "DIFFERS" });
}
