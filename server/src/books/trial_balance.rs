//! `kontorion ledger trial-balance`.

use indicatif::ProgressBar;
use store::Store;

use super::{Workspace, sided};
use crate::cli::When;
use crate::failure::Failure;
use crate::table::{grouped, print_json, table};

/// Prints what stands on each kind of account.
///
/// # Errors
/// When the database does not answer.
pub async fn run(store: &Store, workspace: &Workspace, before: Option<When>, json: bool) -> Result<(), Failure> {
    let before = before.map(|when| workspace.instant(when));
    let bar = ProgressBar::new_spinner().with_message("summing entries");
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let mut read = 0;
    let mut tell = |entries: u64| {
        read += entries;
        bar.set_message(format!("{} entries", grouped(read)));
    };
    let rows = ledger::trial_balance(store, &workspace.scope, before, &mut tell).await;
    bar.finish_and_clear();
    let rows = rows.map_err(|error| Failure::work("summing the trial balance", error))?;
    if json {
        return print_json(&rows);
    }
    let until = before.map(|before| format!(", booked before {}", workspace.local(before))).unwrap_or_default();
    println!("{}{until}", workspace.name);
    let mut shown = table(&["currency", "account", "debits", "credits", "balance"], 2);
    for currency in rows.chunk_by(|one, next| one.currency == next.currency) {
        for row in currency {
            shown.add_row([
                row.currency.to_string(),
                row.kind.clone(),
                grouped(row.debits),
                grouped(row.credits),
                sided(row.balance),
            ]);
        }
        let debits: rust_decimal::Decimal = currency.iter().map(|row| row.debits).sum();
        let credits: rust_decimal::Decimal = currency.iter().map(|row| row.credits).sum();
        let code = currency[0].currency.to_string();
        shown.add_row([code, "total".to_owned(), grouped(debits), grouped(credits), sided(debits - credits)]);
    }
    println!("{shown}");
    Ok(())
}
