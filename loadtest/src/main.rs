//! Open-loop load generator that also proves the totals: it knows from its seed what every subscription must have, waits until
//! everything is counted, compares every one, and with a test clock every invoice.

mod args;
mod body;
mod caller;
mod cpu;
mod door;
mod failure;
mod http;
mod kafka;
mod metering;
mod moving;
mod plan;
mod report;
mod reserve;
mod run;
mod tally;
mod verify;
mod visible;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kontorion-loadtest: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("kontorion-loadtest: {failure}");
            ExitCode::FAILURE
        }
    }
}
