//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::plan::Shape;

const EXAMPLES: &str = "\
Examples:
  # batches of 500 against an own server, 20,000 events/s for ten seconds
  kontorion-loadtest --spawn --mode batch --rate 20000 --duration 10s

  # single events as fast as they are taken, 20,000 customers, against a running server
  kontorion-loadtest --url http://127.0.0.1:8080 --key sk_test_… --mode single --rate 0 --customers 20000

  # kill the server five times while sending, then check totals, books and invoice numbers
  kontorion-loadtest --spawn --chaos 5 --duration 30s --rate 5000

  # the pipeline without the door: collect events in the log, then count them with both cores
  kontorion-loadtest --spawn --drain --rate 0 --duration 10s --customers 20000

  # how long an event takes to be seen in its total, beside 20,000 others per second
  kontorion-loadtest --spawn --visible --rate 20000 --duration 30s

  # ten meters per subscription, half of them filtered
  kontorion-loadtest --spawn --drain --rate 0 --duration 8s --meters 10

  # 1,000 reservations and captures per second over 1,000 wallets, beside 20,000 events/s
  kontorion-loadtest --spawn --rate 20000 --duration 30s --warm-up 5s --reserve 1000 --wallets 1000

  # 5,000 credits and debits per second over 1,000 wallets
  kontorion-loadtest --spawn --rate 500 --duration 10s --wallet-operations 5000 --wallets 1000

  # through Kafka, like a foreign producer
  kontorion-loadtest --spawn --mode kafka --brokers 127.0.0.1:9092 --rate 0 --duration 20s

Latency is measured from the instant at which a request was due, not from when a connection was free to send it, so a server that
stalls cannot hide it. Exit status: 0 = every total is exact, 1 = something differs or failed, 2 = wrong usage.";

/// Sends usage to Kontorion at a given rate, and proves that every event was counted exactly once.
#[derive(Clone, Debug, Parser)]
#[command(name = "kontorion-loadtest", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Args {
    /// Server to load
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", conflicts_with = "spawn")]
    pub url: String,
    /// API key of a sandbox workspace
    #[arg(
        long,
        value_name = "KEY",
        env = "KONTORION_API_KEY",
        hide_env_values = true,
        required_unless_present = "spawn"
    )]
    pub key: Option<String>,
    /// Start an own server for the run
    #[arg(long)]
    pub spawn: bool,
    /// Program of the own server [default: `kontorion` beside this program, else of the PATH]
    #[arg(long, value_name = "FILE", requires = "spawn")]
    pub server: Option<PathBuf>,
    /// Directory of the own server, emptied never [default: a new one, removed at the end]
    #[arg(long, value_name = "DIR", requires = "spawn")]
    pub data_dir: Option<PathBuf>,
    /// Configuration of the own server
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "spawn")]
    pub set: Vec<String>,

    /// How events travel
    #[arg(long, value_enum, default_value_t = Mode::Batch)]
    pub mode: Mode,
    /// Events of one HTTP request, with --mode batch
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub batch: u64,
    /// Events per second; 0 = as fast as they are taken (then latency starts when a request is sent)
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub rate: u64,
    /// How long events become due: 500ms, 10s, 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Leave the latencies of the first while out, when everything is met for the first time
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub warm_up: Duration,
    /// Meters of each subscription; of more than three, half count one region only
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with_all = ["chaos", "invoices"],
          value_parser = clap::value_parser!(u8).range(3..=50))]
    pub meters: u8,
    /// Customers, each with one subscription
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub customers: u64,
    /// Share of events that are sent again: 5%, 0.5%
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = per_mille)]
    pub duplicates: PerMille,
    /// Connections, each with one request under way
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub connections: u64,
    /// Repeats a run: the same events for the same customers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Kill the own server this many times with SIGKILL while sending
    #[arg(long, value_name = "N", default_value_t = 0, requires = "spawn")]
    pub chaos: u32,
    /// Collect everything in the log of the own server first, then count it: measures the pipeline without the door
    #[arg(long, requires = "spawn", conflicts_with = "chaos")]
    pub drain: bool,
    /// Measure how long an event takes to be seen in its total, with one more customer
    #[arg(long, conflicts_with_all = ["chaos", "invoices", "drain"])]
    pub visible: bool,
    /// Reserve and capture usage this many times per second beside the load, from wallets of further customers
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["chaos", "invoices", "drain"])]
    pub reserve: u64,
    /// Credit and debit wallets of further customers this many times per second beside the load
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["chaos", "invoices", "drain", "reserve"])]
    pub wallet_operations: u64,
    /// Wallets of those two, one per customer
    #[arg(long, value_name = "N", default_value_t = 1_000,
          value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub wallets: u64,
    /// Run a test clock over the end of a month after the load and check the invoices (always with --chaos)
    #[arg(long)]
    pub invoices: bool,
    /// How long a total may stand still below its target
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub patience: Duration,
    /// Processes whose CPU time is measured, with their children, besides the own server and its PostgreSQL
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub pids: Vec<i32>,

    /// Bootstrap addresses, with --mode kafka
    #[arg(long, value_name = "HOSTS", default_value = "127.0.0.1:9092")]
    pub brokers: String,
    /// Topic, with --mode kafka [default: usage-events, or a new one for an own server]
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Workspace id for the header kontorion-workspace (known of an own server)
    #[arg(long, value_name = "ID")]
    pub workspace: Option<String>,
    /// Ingest secret in hex for the header kontorion-signature (known of an own server)
    #[arg(long, value_name = "HEX", hide_env_values = true, env = "KONTORION_INGEST_SECRET")]
    pub ingest_secret: Option<String>,
}

/// How events travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One event per HTTP request.
    Single,
    /// Batches over HTTP.
    Batch,
    /// JSON records in the topic.
    Kafka,
}

/// A share in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerMille(pub u64);

impl Args {
    /// What the meters of the run are.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape { meters: usize::from(self.meters) }
    }

    /// Whether invoices are made and checked.
    #[must_use]
    pub fn bills(&self) -> bool {
        self.invoices || self.chaos > 0
    }

    /// Program of the own server.
    #[must_use]
    pub fn server_program(&self) -> PathBuf {
        let beside =
            || std::env::current_exe().ok().map(|own| own.with_file_name("kontorion")).filter(|file| file.is_file());
        self.server.clone().or_else(beside).unwrap_or_else(|| PathBuf::from("kontorion"))
    }

    /// Events of one request.
    #[must_use]
    pub fn events_per_request(&self) -> u64 {
        if self.mode == Mode::Batch { self.batch } else { 1 }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| "must be a time such as 10s".to_owned())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" | "" => number,
        "m" => number * 60.0,
        _ => return Err("the unit must be ms, s or m".to_owned()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn per_mille(text: &str) -> Result<PerMille, String> {
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| "must be a share such as 5%".to_owned())?;
    if (0.0..=50.0).contains(&percent) {
        Ok(PerMille((percent * 10.0).round() as u64))
    } else {
        Err("0% to 50%".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
        assert!(Args::try_parse_from(["x"]).is_err(), "a key is needed without --spawn");
        assert!(Args::try_parse_from(["x", "--key", "k", "--chaos", "2"]).is_err(), "only an own server is killed");
        assert!(Args::try_parse_from(["x", "--spawn", "--chaos", "2"]).unwrap().bills());
        let billed = ["x", "--spawn", "--invoices", "--meters", "10"];
        assert!(Args::try_parse_from(billed).is_err(), "the plain sum of invoices knows three meters");
    }

    #[test]
    fn times_and_shares() {
        assert_eq!(duration("1500ms").unwrap(), Duration::from_millis(1_500));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        assert!(duration("10x").is_err() && duration("-1s").is_err());
        assert_eq!(per_mille("0.5%").unwrap(), PerMille(5));
        assert!(per_mille("60%").is_err());
    }
}
