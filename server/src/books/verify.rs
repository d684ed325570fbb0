//! `kontorion ledger verify`: recomputes the books beside a working server, and says what differs.

use indicatif::{ProgressBar, ProgressStyle};
use ledger::{Progress, Report};
use store::Store;

use crate::failure::Failure;
use crate::table::{grouped, print_json};

/// Differences that are printed; all are counted.
const SHOWN: usize = 50;

/// Walks the books with a progress bar for each check, and prints what was checked.
///
/// # Errors
/// When the database does not answer, or a promise of the books is broken.
pub async fn run(store: &Store, json: bool) -> Result<(), Failure> {
    let bar = ProgressBar::new(0);
    // The template is a constant; without it the line is plainer.
    if let Ok(style) = ProgressStyle::with_template("  {msg:16} {bar:30} {human_pos} of about {human_len} ({elapsed})")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let mut tell = |progress: Progress| {
        bar.set_message(progress.check.as_str());
        bar.set_length(progress.of);
        bar.set_position(progress.done);
    };
    let report = ledger::verify(store, &mut tell).await;
    bar.finish_and_clear();
    let report = report.map_err(|error| Failure::work("verifying the books", error))?;
    if json {
        print_json(&report)?
    } else {
        print(&report)
    };
    if report.is_clean() {
        Ok(())
    } else {
        Err(Failure::found(format!("{} differences in the books", report.differences_total)))
    }
}

fn print(report: &Report) {
    for (count, what) in [
        (report.wallets, "wallets: balances equal entries, movements and holds"),
        (report.movements, "movements: each follows from those before it"),
        (report.transfers, "transfers: they add up to zero"),
        (report.entries, "entries: transfer, account and wallet exist"),
        (report.workspaces, "workspaces: no invoice number is missing"),
        (report.invoices, "invoices: booked with their totals"),
        (report.accruals, "accruals: closed when billed"),
    ] {
        println!("{:>15}  {what}", grouped(count));
    }
    for difference in report.differences.iter().take(SHOWN) {
        println!("DIFFERENCE  {difference}");
    }
    println!("ledger: {}", if report.is_clean() { "no difference" } else { "DIFFERS" });
}
