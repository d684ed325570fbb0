//! `kontorion usage audit`: compares what ClickHouse keeps of usage with itself, beside a working server.

use indicatif::{ProgressBar, ProgressStyle};
use ingest::usage::clickhouse::Audit;
use store::Store;

use crate::config::Config;
use crate::failure::Failure;
use crate::wiring::open_usage;

/// Walks the days with a progress line, and prints what was found.
///
/// # Errors
/// When a database does not answer, a row is stored twice, or a sum is not that of its rows.
pub async fn run(config: &Config, store: &Store) -> Result<(), Failure> {
    let (_, rollups) = open_usage(config, store).await?;
    let Some(rollups) = rollups else {
        println!("usage: the PostgreSQL store keeps rows only, there is nothing to compare");
        return Ok(());
    };
    let bar = ProgressBar::new_spinner();
    // The template is a constant; without it the line is plainer.
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let mut tell = |second: i64| {
        let day = chrono::DateTime::from_timestamp(second, 0).unwrap_or_default();
        bar.set_message(format!("compared up to {}", day.date_naive()));
    };
    let audit = rollups.audit(&mut tell).await;
    bar.finish_and_clear();
    let audit = audit.map_err(|error| Failure::work("auditing usage", error))?;
    print(&audit);
    if audit.is_clean() {
        Ok(())
    } else {
        let Audit { doubled_rows, differences_total, day_differences_total, .. } = audit;
        Err(Failure::found(format!(
            "{doubled_rows} rows are stored twice, {differences_total} sums per minute and {day_differences_total} per day differ"
        )))
    }
}

fn print(audit: &Audit) {
    println!("{:>12}  rows", audit.rows);
    println!("{:>12}  of them stored twice, until they are merged", audit.doubled_rows);
    println!("{:>12}  minutes not computed yet", audit.minutes_due);
    println!("{:>12}  days not computed yet", audit.days_due);
    println!("{:>12}  sums per minute that differ from their rows", audit.differences_total);
    println!("{:>12}  sums per day that differ from their rows", audit.day_differences_total);
    for difference in &audit.differences {
        println!(
            "DIFFERENCE  workspace {} minute {} subscription {} metric {:?}: rows less sum = {} events, quantity {}",
            difference.workspace_id,
            difference.minute.format("%Y-%m-%dT%H:%MZ"),
            difference.subscription_id,
            difference.metric_key,
            difference.event_count,
            difference.quantity,
        );
    }
    for difference in &audit.day_differences {
        println!(
            "DIFFERENCE  workspace {} day {} customer {} metric {:?} {:?} = {:?}: rows less sum = {} events, quantity {}",
            difference.workspace_id,
            difference.day,
            difference.customer_id,
            difference.metric_key,
            difference.dimension,
            difference.value,
            difference.event_count,
            difference.quantity,
        );
    }
    println!("usage: {}", if audit.is_clean() { "no difference" } else { "DIFFERS" });
}
