//! `kontorion demo`: from usage events to bills that are checked to the cent. The server runs in this process; everything
//! else here is a client of its HTTP API, and the check (`client::plain_sum`) shares no code with the engine.

mod feed;
mod report;
mod trace;
mod used;
mod world;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use client::Api;
use client::views::{Breach, Invoice};
use engines::{EmbeddedPostgres, PostgresOptions};

use self::world::World;
use crate::cli::{DemoArgs, Options};
use crate::config::Config;
use crate::failure::Failure;
use crate::serve::{self, Server};
use crate::{logging, org};

/// Marks a directory as ours: only such a one is emptied.
const MARKER: &str = ".kontorion-demo";

/// The result of the comparison.
struct Outcome {
    events: usize,
    customers: usize,
    invoices: usize,
    exact: bool,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { events, customers, invoices, exact } = self;
        let totals = if *exact { "exact" } else { "DIFFER" };
        write!(f, "demo: {events} events, {customers} customers, {invoices} invoices, totals {totals}")
    }
}

/// The command.
///
/// # Errors
/// When something fails, or with `--once` a total differs.
pub async fn run(options: &Options, config: Config, arguments: &DemoArgs) -> Result<(), Failure> {
    let requests = match &arguments.trace {
        Some(path) => trace::read(path)?,
        None => trace::generate(trace::GENERATED_REQUESTS),
    };
    let config = demo_config(options, config)?;
    empty(&config.data_dir).await?;
    let log = config.data_dir.join("kontorion.log");
    logging::to_file(&config, &log)?;
    println!("Starting Kontorion in {} (log: {})", config.data_dir.display(), log.display());
    let mut server = serve::start(&config).await?;
    let shown = show(&server, arguments, &requests).await;
    let outcome = match (&shown, arguments.once) {
        (Ok(outcome), false) => {
            println!("{outcome}");
            server.wait().await
        }
        _ => Ok(()),
    };
    let stopped = server.stop().await;
    let shown = shown?;
    if arguments.once {
        println!("{shown}");
        if !shown.exact {
            return Err(Failure::found("the invoices differ from the plain sum of the input"));
        }
    }
    outcome.and(stopped)
}

/// Embedded defaults in a directory of its own, and no limits for the one client.
fn demo_config(options: &Options, mut config: Config) -> Result<Config, Failure> {
    config.data_dir = config.data_dir.join("demo");
    for limit in
        [&mut config.rate_sandbox_per_second, &mut config.rate_sandbox_burst, &mut config.rate_events_per_second]
    {
        *limit = 10_000_000;
    }
    let chosen = options.flags().contains_key("listen");
    if !chosen && TcpListener::bind(config.listen).is_err() {
        config.listen = SocketAddr::new(config.listen.ip(), 0);
    }
    Ok(config)
}

/// Makes the directory new: stops the PostgreSQL that a killed demo left in it, removes what is there.
async fn empty(dir: &Path) -> Result<(), Failure> {
    let failed = |doing: &str| {
        let doing = format!("{doing} {}", dir.display());
        move |error| Failure::work(&doing, error)
    };
    if dir.exists() {
        if !dir.join(MARKER).exists() {
            return Err(Failure::usage(format!(
                "{} was not made by the demo; choose another --data-dir",
                dir.display()
            )));
        }
        let postgres = dir.join("postgres");
        if postgres.join("cluster/postmaster.pid").exists() {
            stop_left_over(&postgres).await?;
        }
        std::fs::remove_dir_all(dir).map_err(failed("emptying"))?;
    }
    std::fs::create_dir_all(dir).map_err(failed("creating"))?;
    std::fs::write(dir.join(MARKER), "Emptied by the next `kontorion demo`.\n").map_err(failed("writing to"))
}

async fn stop_left_over(postgres: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::work("stopping the PostgreSQL of an earlier demo", error);
    let engine = EmbeddedPostgres::start(postgres, PostgresOptions::default()).await.map_err(failed)?;
    match engine.stop().await.map_err(failed)? {
        true => Ok(()),
        false => Err(Failure::usage("another demo is running there; stop it, or choose another --data-dir")),
    }
}

async fn show(server: &Server, arguments: &DemoArgs, requests: &[trace::Request]) -> Result<Outcome, Failure> {
    let failed = |error| Failure::work("asking the server", error);
    let organization = org::create(&server.store, "Demo").await?;
    let base = format!("http://{}", server.address);
    let api = Api::new(&base, &organization.sandbox.key).map_err(failed)?;
    let customers = usize::try_from(arguments.customers).unwrap_or(usize::MAX);
    let targets = used::by_customer(requests, customers);
    println!("Creating the sample catalog and {customers} customers through the API");
    let world = World::create(api, requests, customers).await?;
    println!("Sending the usage of {} requests", requests.len());
    let fed = feed::feed(&world, requests, &targets).await?;
    report::running_totals(&fed);
    let breaches: Vec<Breach> = world.api.list("/v1/meter-breaches").await.map_err(failed)?;
    report::breaches(&world, &breaches);
    report::wallet(&fed);
    report::speed(&fed);
    for customer in &fed.wrong {
        println!("DIFFERENCE  the usage of customer {customer} is not what was sent: {:?}", targets[*customer]);
    }
    let now = world.end_period().await?;
    println!("\nThe test clock stands at {now}: the month is over and its invoices are final.");
    let invoices: Vec<Invoice> = world.api.list("/v1/invoices").await.map_err(failed)?;
    let agree = report::invoices(&world, &invoices, &targets);
    if !arguments.once {
        println!("\nThe server stays up until you press Ctrl-C:");
        println!("  API          {base}/v1/\n  reference    {base}/docs\n  metrics      {base}/metrics");
        println!("  sandbox key  {}\n  live key     {}\n", organization.sandbox.key, organization.live.key);
    }
    let exact = agree && fed.wrong.is_empty();
    Ok(Outcome { events: fed.events, customers, invoices: invoices.len(), exact })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_exactly_as_promised() {
        let outcome = Outcome { events: 58_098, customers: 50, invoices: 50, exact: true };
        assert_eq!(outcome.to_string(), "demo: 58098 events, 50 customers, 50 invoices, totals exact");
        let outcome = Outcome { exact: false, ..outcome };
        assert_eq!(outcome.to_string(), "demo: 58098 events, 50 customers, 50 invoices, totals DIFFER");
    }

    #[tokio::test]
    async fn a_strange_directory_is_left_alone() {
        let dir = std::env::temp_dir().join(format!("kontorion-demo-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("theirs"), "1").unwrap();
        assert!(empty(&dir).await.is_err());
        assert!(dir.join("theirs").exists());
        std::fs::write(dir.join(MARKER), "").unwrap();
        empty(&dir).await.unwrap();
        assert!(!dir.join("theirs").exists() && dir.join(MARKER).exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
