//! The `kontorion` binary: one program for every role and every command.

mod audit;
mod books;
mod cli;
mod config;
mod database;
mod demo;
mod failure;
mod logging;
mod org;
mod rejected;
mod running;
mod serve;
mod table;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, LedgerCommand, OrgCommand, RejectedCommand, UsageCommand};
use crate::config::Config;
use crate::database::Database;
use crate::failure::Failure;

// Many threads free what others allocated (batches, records), which the system's allocator serialises.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kontorion: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("kontorion: {failure}");
            failure.exit_code()
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let config = cli.options.load()?;
    match cli.command {
        Command::Serve => {
            logging::to_stderr(&config)?;
            serve::run(&config).await
        }
        Command::Demo(arguments) => demo::run(&cli.options, config, &arguments).await,
        Command::Migrate => migrate(&config).await,
        Command::Openapi => wiring::print_openapi(),
        Command::Config => {
            print!("{}", config.to_masked_toml()?);
            Ok(())
        }
        Command::Org(OrgCommand::Create { name, json }) => create_organization(&config, &name, json).await,
        Command::Ledger(command) => on_the_books(&config, &command).await,
        Command::Usage(UsageCommand::Audit) => audit_usage(&config).await,
        Command::Usage(UsageCommand::Rejected(command)) => match command {
            RejectedCommand::List { access, status, code } => rejected::list(&access, &status, code.as_deref()).await,
            RejectedCommand::Replay { access, ids, all: _, code } => {
                rejected::replay(&access, ids, code.as_deref()).await
            }
        },
    }
}

async fn migrate(config: &Config) -> Result<(), Failure> {
    logging::to_stderr(config)?;
    Database::open(config).await?.close().await;
    println!("the database has the current schema");
    Ok(())
}

async fn create_organization(config: &Config, name: &str, json: bool) -> Result<(), Failure> {
    logging::to_stderr(config)?;
    let database = Database::open(config).await?;
    let created = org::create(&database.store, name).await;
    database.close().await;
    org::print(&created?, json)
}

async fn audit_usage(config: &Config) -> Result<(), Failure> {
    logging::to_stderr(config)?;
    let database = Database::open(config).await?;
    let audited = audit::run(config, &database.store).await;
    database.close().await;
    audited
}

async fn on_the_books(config: &Config, command: &LedgerCommand) -> Result<(), Failure> {
    logging::to_stderr(config)?;
    let database = Database::open(config).await?;
    let done = books::run(&database.store, command).await;
    database.close().await;
    done
}
