//! Guards the first thing that anybody runs: the demo, on embedded PostgreSQL, ends with exact totals.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::site::{directory, program};

const REQUESTS: u64 = 90;

/// The demo makes a database cluster first.
const LIMIT: Duration = Duration::from_secs(180);

/// Ends the PostgreSQL that a demo which was cut off left in a directory.
struct Leftover(PathBuf);

impl Drop for Leftover {
    fn drop(&mut self) {
        let file = std::fs::read_to_string(self.0.join("demo/postgres/cluster/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = file.lines().next().and_then(|line| line.trim().parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        }
    }
}

/// One request a minute, with more tokens every time.
fn write_trace(path: &Path) {
    let mut trace = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
    for request in 0..REQUESTS {
        let (hour, minute) = (8 + request / 60, request % 60);
        writeln!(trace, "2025-06-16 {hour:02}:{minute:02}:00,{},{}", 1_000 * request, 100 * request).expect("a line");
    }
    std::fs::write(path, trace).expect("a trace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demo_once_ends_with_exact_totals() {
    let dir = directory();
    let trace = dir.path().join("trace.csv");
    write_trace(&trace);
    let data_dir = dir.path().join("data");
    std::fs::create_dir(&data_dir).expect("a directory");
    let _leftover = Leftover(data_dir.clone());
    let mut demo = program();
    demo.args(["demo", "--once", "--customers", "4", "--listen", "127.0.0.1:0", "--trace"]).arg(&trace);
    demo.arg("--data-dir").arg(&data_dir);
    let output = tokio::time::timeout(LIMIT, demo.output()).await.expect("it ends").expect("it runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{printed}\n{complaint}", output.status);
    let last = printed.lines().last().unwrap_or_default();
    assert_eq!(last, format!("demo: {} events, 4 customers, 4 invoices, totals exact", 3 * REQUESTS), "{printed}");
    assert!(!data_dir.join("demo/postgres/cluster/postmaster.pid").exists(), "PostgreSQL was left running");
}
