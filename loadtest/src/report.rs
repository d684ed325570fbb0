//! One table at the end.

use std::time::Duration;

use comfy_table::{CellAlignment, LineStyle, Table, presets};
use hdrhistogram::Histogram;

use crate::moving::Moved;
use crate::plan::Plan;
use crate::reserve::Reserved;
use crate::tally::Sent;

/// What a run found.
#[derive(Debug)]
pub struct Outcome {
    /// What was sent.
    pub sent: Sent,
    /// From the first request until everything was counted.
    pub counted_in: Duration,
    /// CPU seconds of each group of processes over that time; empty when processes were killed.
    pub cpu: Vec<(&'static str, f64)>,
    /// MiB that the server has had resident at most, when it was started here.
    pub server_memory: Option<u64>,
    /// Kills, with the time until the server was ready again.
    pub restarts: Vec<Duration>,
    /// From an event to the total that shows it, in microseconds, when that was measured.
    pub visible: Option<Histogram<u64>>,
    /// Reservations and captures, when there were any.
    pub reserved: Option<Reserved>,
    /// Credits and debits, when there were any.
    pub moved: Option<Moved>,
    /// Invoices, when they were made.
    pub invoices: Option<usize>,
    /// Whether every total, and the invoices and books if they were checked, are right.
    pub exact: bool,
}

/// Prints the table.
pub fn print(outcome: &Outcome, plan: &Plan) {
    let (distinct, repeats) = outcome.sent.split(plan);
    let tally = &outcome.sent.tally;
    let per_second = |events: u64, time: Duration| format!("{:.0}", events as f64 / time.as_secs_f64().max(1e-9));
    let millis = |micros: u64| format!("{:.2} ms", micros as f64 / 1e3);
    let mut rows: Vec<(String, String)> = vec![
        ("sent".into(), outcome.sent.positions.to_string()),
        ("accepted".into(), tally.accepted.to_string()),
        ("duplicates among them".into(), repeats.to_string()),
        ("rejected".into(), tally.refused.to_string()),
        ("requests repeated".into(), tally.retries.to_string()),
        ("acknowledged/s".into(), per_second(tally.accepted, outcome.sent.elapsed)),
        ("counted/s".into(), per_second(distinct, outcome.counted_in)),
        ("sending took".into(), format!("{:.2} s", outcome.sent.elapsed.as_secs_f64())),
        ("counting took".into(), format!("{:.2} s", outcome.counted_in.as_secs_f64())),
    ];
    for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
        rows.push((format!("latency {name}"), millis(tally.latency.value_at_quantile(quantile))));
    }
    rows.push(("latency max".into(), millis(tally.latency.max())));
    if let Some(visible) = &outcome.visible {
        rows.push(("events watched until seen".into(), visible.len().to_string()));
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            rows.push((format!("event to visible total {name}"), millis(visible.value_at_quantile(quantile))));
        }
    }
    if let Some(reserved) = &outcome.reserved {
        rows.push(("pairs of reserve and capture".into(), reserved.capture.accepted.to_string()));
        rows.push(("pairs/s".into(), per_second(reserved.capture.accepted, reserved.elapsed)));
        for (what, tally) in [("reserve", &reserved.reserve), ("capture", &reserved.capture)] {
            for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
                rows.push((format!("{what} {name}"), millis(tally.latency.value_at_quantile(quantile))));
            }
        }
        rows.push(("pairs refused".into(), reserved.reserve.refused.to_string()));
        rows.push(("requests of pairs repeated".into(), reserved.reserve.retries.to_string()));
    }
    if let Some(Moved { tally, elapsed, .. }) = &outcome.moved {
        rows.push(("wallet operations".into(), tally.accepted.to_string()));
        rows.push(("wallet operations/s".into(), per_second(tally.accepted, *elapsed)));
        for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
            rows.push((format!("wallet operation {name}"), millis(tally.latency.value_at_quantile(quantile))));
        }
        rows.push(("wallet operations refused".into(), tally.refused.to_string()));
        rows.push(("wallet operations repeated".into(), tally.retries.to_string()));
    }
    for (name, seconds) in &outcome.cpu {
        rows.push((
            format!("core-µs per event: {name}"),
            format!("{:.2}", seconds * 1e6 / outcome.sent.positions as f64),
        ));
    }
    if outcome.cpu.len() > 1 {
        let all: f64 = outcome.cpu.iter().map(|(_, seconds)| seconds).sum();
        rows.push(("core-µs per event: all".into(), format!("{:.2}", all * 1e6 / outcome.sent.positions as f64)));
    }
    if let Some(mib) = outcome.server_memory {
        rows.push(("server memory at its peak".into(), format!("{mib} MiB")));
    }
    if !outcome.restarts.is_empty() {
        let longest = outcome.restarts.iter().max().copied().unwrap_or_default();
        rows.push(("kills".into(), outcome.restarts.len().to_string()));
        rows.push(("longest time to be ready again".into(), format!("{:.2} s", longest.as_secs_f64())));
    }
    if let Some(invoices) = outcome.invoices {
        rows.push(("invoices".into(), invoices.to_string()));
    }
    rows.push(("totals exact".into(), if outcome.exact { "yes" } else { "NO" }.into()));
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    for (name, value) in rows {
        table.add_row([name, value]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    let of_pairs = outcome.reserved.as_ref().and_then(|reserved| reserved.reserve.first_problem.as_ref());
    let of_wallets = outcome.moved.as_ref().and_then(|moved| moved.tally.first_problem.as_ref());
    for problem in tally.first_problem.iter().chain(of_pairs).chain(of_wallets) {
        println!("first problem: {problem}");
    }
}
