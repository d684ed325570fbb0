//! The command line. Help texts teach by example, because they are read by somebody who wants to get something done.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  kontorion demo --once                      real bills in a minute, nothing to set up
  kontorion serve                            everything in one process, with a PostgreSQL of its own
  kontorion org create \"Acme GmbH\"           a tenant; prints its API keys once
  kontorion serve --roles api,scheduler --set log_kind=kafka --set kafka_brokers=broker:9092
  KONTORION_DATABASE_URL=postgres://… kontorion migrate
  kontorion config --config production.toml  what would be in effect, secrets starred

Exit status: 0 = done, 1 = failed or a difference was found, 2 = the command or the configuration cannot be meant.";

/// Meters usage events, rates them exactly, keeps the money and bills it, behind one HTTP API.
#[derive(Debug, Parser)]
#[command(name = "kontorion", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// Configuration for every command.
    #[command(flatten)]
    pub options: Options,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that set keys of the configuration; the others have `--set`.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Configuration file (TOML) [default: ./kontorion.toml when it exists]
    #[arg(long, global = true, value_name = "FILE", env = "KONTORION_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address of the HTTP API [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Roles of this process, separated by commas [default: api,ingest,scheduler]
    #[arg(long, global = true, value_name = "ROLES")]
    pub roles: Option<String>,
    /// Where the embedded PostgreSQL and the local log live
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// PostgreSQL to use instead of the embedded one
    #[arg(long, global = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Any key of the configuration; `kontorion config` lists them
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the engine until SIGTERM or SIGINT
    #[command(after_help = "\
Without `database_url`, starts PostgreSQL from the system's programs in the data directory (as an unprivileged user when run
as root) and stops it at the end. A killed server leaves it running; the next start adopts it.

Examples:
  kontorion serve
  kontorion serve --listen 0.0.0.0:8080 --database-url postgres://kontorion@db/kontorion
  kontorion serve --roles ingest --set node_name=ingest-2 --set log_kind=kafka --set kafka_brokers=broker:9092")]
    Serve,
    /// Show the whole path from usage events to checked bills, on this machine
    #[command(after_help = "\
Starts a server on a fresh data directory, creates a sample catalog (an LLM API) and customers through the HTTP API, sends a
day of usage, runs a test clock over the end of the month, prints the invoices and recomputes every total by a plain sum of the
input. Then the server stays up for you to look around; --once stops it (exit status 1 when a total differs).

Examples:
  kontorion demo
  kontorion demo --once --customers 200
  kontorion demo --once --trace conversation.csv    (columns TIMESTAMP,ContextTokens,GeneratedTokens)")]
    Demo(DemoArgs),
    /// Apply missing migrations to the database and end
    Migrate,
    /// Print the OpenAPI document (no server or database needed)
    Openapi,
    /// Print the effective configuration as TOML, secrets starred
    Config,
    /// Organizations (tenants)
    #[command(subcommand)]
    Org(OrgCommand),
    /// The books
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Usage events
    #[command(subcommand)]
    Usage(UsageCommand),
}

/// Arguments of the demo.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Stop at the end instead of staying up; exit status 1 when a total differs
    #[arg(long)]
    pub once: bool,
    /// Requests to bill (CSV: TIMESTAMP,ContextTokens,GeneratedTokens) [default: 20,000 generated ones]
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Customers; request i belongs to customer i mod N
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub customers: u32,
}

/// Commands on organizations.
#[derive(Debug, Subcommand)]
pub enum OrgCommand {
    /// Create an organization with a live and a sandbox workspace; prints ids and keys once
    #[command(after_help = "\
Works on the database directly, beside a running server or without one.

Examples:
  kontorion org create \"Acme GmbH\"
  kontorion org create \"Acme GmbH\" --json | jq -r .sandbox.key")]
    Create {
        /// Display name
        name: String,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
}

/// Commands on the books. They work on the database directly, beside a running server or without one.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Recompute every balance from the entries; exit status 1 when something differs
    #[command(after_help = "\
Balances against entries, movements and holds; transfers against zero; invoices and credit notes against their bookings and
numbers; accruals against what was billed; closed periods against what came later. Of all workspaces, in memory that does not
grow with the books, and beside a working server: what is booked meanwhile is left out.

Examples:
  kontorion ledger verify
  kontorion ledger verify --json | jq .differences_total")]
    Verify {
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// What stands on each kind of account of a workspace
    #[command(after_help = "\
Examples:
  kontorion ledger trial-balance
  kontorion ledger trial-balance --before 2026-11-01 --workspace 01933c7e-…")]
    TrialBalance {
        /// Whose
        #[command(flatten)]
        workspace: WorkspaceOption,
        /// Only what is booked before this date (midnight of the organization's time zone) or RFC 3339 instant
        #[arg(long, value_name = "WHEN")]
        before: Option<When>,
        /// Print one JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// What moved on one account in a period, with the balance after each entry
    #[command(after_help = "\
ACCOUNT is wallet_cash, wallet_promotional or wallet_held with --wallet, or with --currency one of receivable, revenue, tax_payable,
gateway_clearing, manual_clearing, promotional_expense, captured_usage, hold_commitment, fx, write_off, …; the names stand in
`kontorion ledger trial-balance`. Balances are debits less credits: Dr or Cr says on which side they stand.

Examples:
  kontorion ledger account wallet_cash --wallet 01933c7e-…
  kontorion ledger account revenue --currency EUR --from 2026-10-01 --to 2026-11-01")]
    Account {
        /// Kind of account
        account: String,
        /// Wallet of a wallet's account
        #[arg(long, value_name = "ID")]
        wallet: Option<uuid::Uuid>,
        /// Currency of a workspace's account
        #[arg(long, value_name = "CODE")]
        currency: Option<domain::Currency>,
        /// Whose
        #[command(flatten)]
        workspace: WorkspaceOption,
        /// First date or instant
        #[arg(long, value_name = "WHEN")]
        from: Option<When>,
        /// End, exclusive
        #[arg(long, value_name = "WHEN")]
        to: Option<When>,
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Close an accounting period: nothing can be booked before its end any more
    #[command(after_help = "\
The database itself refuses from then on; the API answers 422 PERIOD_CLOSED. Corrections are booked in the open period.

Example:
  kontorion ledger close --before 2026-11-01 --note \"October, J. Doe\"")]
    Close {
        /// Whose
        #[command(flatten)]
        workspace: WorkspaceOption,
        /// End of the period, exclusive: a date (midnight of the organization's time zone) or an RFC 3339 instant
        #[arg(long, value_name = "WHEN")]
        before: When,
        /// Kept with the closing
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Open the period of the last closing again; those before it stay closed
    Reopen {
        /// Whose
        #[command(flatten)]
        workspace: WorkspaceOption,
        /// Kept with the closing
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// List the closings, those that were opened again too
    Closings {
        /// Whose
        #[command(flatten)]
        workspace: WorkspaceOption,
        /// Print one JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Which workspace a command is about.
#[derive(Clone, Copy, Debug, Args)]
pub struct WorkspaceOption {
    /// Workspace [default: the live one, when there is one only]
    #[arg(long = "workspace", value_name = "ID")]
    pub id: Option<uuid::Uuid>,
}

/// A day, which begins in the organization's time zone, or an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Its midnight.
    Day(chrono::NaiveDate),
    /// Exactly then.
    Instant(domain::Instant),
}

impl std::str::FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let day = text.parse().map(Self::Day);
        let instant = || chrono::DateTime::parse_from_rfc3339(text).map(|at| Self::Instant(at.to_utc()));
        day.or_else(|_| instant())
            .map_err(|_| "must be a date (2026-11-01) or an instant (2026-11-01T00:00:00Z)".to_owned())
    }
}

/// Commands on usage events.
#[derive(Debug, Subcommand)]
pub enum UsageCommand {
    /// Events that were accepted and then could not be billed
    #[command(subcommand)]
    Rejected(RejectedCommand),
    /// Compare ClickHouse's rows and sums per minute and day; exit status 1 when something differs
    #[command(after_help = "\
Beside a running server or without one. Looks for rows that are stored twice, and recomputes the sums per minute and
per day that analysts read from the rows. With the PostgreSQL store there is nothing to compare: it keeps rows only.

Example:
  kontorion usage audit --config production.toml")]
    Audit,
}

/// Where and as whom a client command asks.
#[derive(Clone, Debug, Args)]
pub struct Access {
    /// Server to ask
    #[arg(long, value_name = "URL", env = "KONTORION_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// API key
    #[arg(long, value_name = "KEY", env = "KONTORION_API_KEY", hide_env_values = true)]
    pub api_key: String,
}

/// Commands on rejected events.
#[derive(Debug, Subcommand)]
pub enum RejectedCommand {
    /// List them, newest first
    #[command(after_help = "\
Examples:
  export KONTORION_API_KEY=sk_test_…
  kontorion usage rejected list
  kontorion usage rejected list --code IDEMPOTENCY_CONFLICT --status open")]
    List {
        /// Server and key
        #[command(flatten)]
        access: Access,
        /// open, replayed or discarded
        #[arg(long, value_name = "STATUS", default_value = "open")]
        status: String,
        /// Only with this reason
        #[arg(long, value_name = "CODE")]
        code: Option<String>,
    },
    /// Send some of them again, as they were, for instance after the catalog was mended
    #[command(after_help = "\
Examples:
  kontorion usage rejected replay 01933c7e-…
  kontorion usage rejected replay --all --code NOT_FOUND")]
    Replay {
        /// Server and key
        #[command(flatten)]
        access: Access,
        /// Ids of rejections
        #[arg(required_unless_present = "all")]
        ids: Vec<uuid::Uuid>,
        /// All open ones
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        /// With --all: only with this reason
        #[arg(long, value_name = "CODE", conflicts_with = "ids")]
        code: Option<String>,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}

impl Options {
    /// The keys that flags set, as text.
    #[must_use]
    pub fn flags(&self) -> BTreeMap<String, String> {
        let mut flags: BTreeMap<String, String> = self.set.iter().cloned().collect();
        let mut set = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                flags.insert(key.to_owned(), value);
            }
        };
        set("listen", self.listen.map(|address| address.to_string()));
        set("roles", self.roles.clone());
        set("data_dir", self.data_dir.as_ref().map(|dir| dir.display().to_string()));
        set("database_url", self.database_url.clone());
        flags
    }

    /// The effective configuration.
    ///
    /// # Errors
    /// As [`crate::config::Config::load`].
    pub fn load(&self) -> Result<crate::config::Config, Failure> {
        crate::config::Config::load(self.config.as_deref(), &self.flags())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_keys() {
        let cli = Cli::parse_from([
            "kontorion",
            "serve",
            "--listen",
            "[::1]:9000",
            "--set",
            "log_filter=info,ingest=debug",
            "--roles",
            "api",
        ]);
        let flags = cli.options.flags();
        assert_eq!(flags["listen"], "[::1]:9000");
        assert_eq!(flags["log_filter"], "info,ingest=debug");
        assert_eq!(flags["roles"], "api");
        assert!(Cli::try_parse_from(["kontorion", "serve", "--set", "partitions"]).is_err());
    }

    #[test]
    fn a_day_or_an_instant_says_when() {
        let day = chrono::NaiveDate::from_ymd_opt(2026, 11, 1).unwrap();
        assert_eq!("2026-11-01".parse(), Ok(When::Day(day)));
        let instant = day.and_hms_opt(23, 0, 0).unwrap().and_utc();
        assert_eq!("2026-11-02T00:00:00+01:00".parse(), Ok(When::Instant(instant)));
        for wrong in ["", "2026-11", "2026-13-01", "2026-11-01T00:00:00", "yesterday"] {
            assert!(wrong.parse::<When>().unwrap_err().contains("2026-11-01T00:00:00Z"), "{wrong}");
        }
    }

    #[test]
    fn replay_wants_ids_or_all() {
        let replay = |rest: &[&str]| {
            let start = ["kontorion", "usage", "rejected", "replay", "--api-key", "sk_test_x"];
            Cli::try_parse_from(start.iter().chain(rest))
        };
        assert!(replay(&[]).is_err());
        assert!(replay(&["--all", "--code", "NOT_FOUND"]).is_ok());
        assert!(replay(&["01933c7e-0000-7000-8000-000000000000"]).is_ok());
        assert!(replay(&["--code", "NOT_FOUND", "01933c7e-0000-7000-8000-000000000000"]).is_err());
    }
}
