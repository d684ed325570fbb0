//! The one configuration of the process: defaults < file < environment < flags, into one typed struct.
//!
//! Every key is flat, so that it has one name everywhere: `kafka_brokers` in the file, `KONTORION_KAFKA_BROKERS` in the
//! environment, `--set kafka_brokers=…` on the command line. A key that is not known stops the start: a misspelt limit that is
//! silently ignored would be found on the invoice.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize};

use crate::failure::Failure;

/// Read when it exists and no other file is named.
const DEFAULT_FILE: &str = "kontorion.toml";

/// Prefix of the environment variables.
const PREFIX: &str = "KONTORION_";

/// Variables with the prefix that are not keys of the configuration: the file itself, what client commands read, where the
/// PostgreSQL programs are, and what tests read.
const OTHER_VARIABLES: [&str; 6] = ["config", "url", "api_key", "pg_bin", "chdb", "test_"];

/// What a process of Kontorion can do; any set of roles may share a process (DESIGN, the house).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves the HTTP API.
    Api,
    /// Consumes partitions of the event log and counts.
    Ingest,
    /// Does due work: cycles, renewals, finalization, test clocks.
    Scheduler,
}

/// Where usage events become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// Segments in the data directory, one node.
    Local,
    /// Apache Kafka, any number of nodes.
    Kafka,
}

/// Where counted events are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// The same database as everything else.
    Postgres,
    /// ClickHouse.
    Clickhouse,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A value that is not printed: a password, or an address that may hold one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The clear value.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The value with its secret parts starred: the password of an address, or everything.
    #[must_use]
    pub fn masked(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return "***".to_owned();
        };
        let (address, query) = rest.split_once('?').map_or((rest, None), |(address, query)| (address, Some(query)));
        let address = match address.rsplit_once('@') {
            Some((user, host)) => format!("{}:***@{host}", user.split(':').next().unwrap_or_default()),
            None => address.to_owned(),
        };
        let query = query.map(mask_query).unwrap_or_default();
        format!("{scheme}://{address}{query}")
    }
}

fn mask_query(query: &str) -> String {
    let mask = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if name.contains("pass") => format!("{name}=***"),
        _ => pair.to_owned(),
    };
    format!("?{}", query.split('&').map(mask).collect::<Vec<_>>().join("&"))
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.masked())
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

/// The effective configuration. The documentation of a field is that of its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the HTTP API; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What this process does.
    #[serde(deserialize_with = "words")]
    pub roles: Vec<Role>,
    /// Name of this node, stable over restarts and different from every other's: a restarted node gets its partitions back
    /// without a rebalance (P3).
    #[serde(deserialize_with = "text")]
    pub node_name: String,
    /// Where the embedded PostgreSQL, the local log and the deduplication index live.
    pub data_dir: PathBuf,
    /// PostgreSQL 15 or newer; without it, Kontorion starts its own in `data_dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_url: Option<Secret>,
    /// Database connections of this process at most, beside up to 20 of its own groups of wallet operations and of its catalog.
    pub database_connections_max: u32,
    /// The event log.
    pub log_kind: LogKind,
    /// Partitions of the event log; fixed when the log is made (rule A5).
    pub partitions: u32,
    /// Bootstrap addresses of Apache Kafka, separated by commas.
    #[serde(deserialize_with = "text")]
    pub kafka_brokers: String,
    /// Topic of the usage events.
    #[serde(deserialize_with = "text")]
    pub kafka_topic: String,
    /// Consumer group that shares the topic's partitions.
    #[serde(deserialize_with = "text")]
    pub kafka_group: String,
    /// Takes foreign Kafka records without a signature: only for a topic that nobody else can write to (rule A7).
    pub trust_topic: bool,
    /// The usage store.
    pub store_kind: StoreKind,
    /// HTTP address of ClickHouse, with user and password if it has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clickhouse_url: Option<Secret>,
    /// Database in ClickHouse.
    #[serde(deserialize_with = "text")]
    pub clickhouse_database: String,
    /// Subscriptions kept in memory at most; the least recently used leave first (P5).
    pub active_subscriptions_max: usize,
    /// Days for which the deduplication index remembers an id; older ones are asked from the usage store (rule B4).
    pub dedup_horizon_days: u32,
    /// Requests per second of an organization in a live workspace.
    pub rate_live_per_second: u32,
    /// Requests that a live workspace may send at once.
    pub rate_live_burst: u32,
    /// Requests per second of an organization in a sandbox workspace.
    pub rate_sandbox_per_second: u32,
    /// Requests that a sandbox workspace may send at once.
    pub rate_sandbox_burst: u32,
    /// Usage events per second of an organization and workspace; their requests count in no other limit (P18).
    pub rate_events_per_second: u32,
    /// Proxies whose `X-Forwarded-For` is believed.
    #[serde(deserialize_with = "words")]
    pub trusted_proxies: Vec<IpAddr>,
    /// Address under which clients reach this API, the base of problem types; without it, `http://` and `listen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Where the scheduler fetches exchange rates: the directory of the documents of the European Central Bank, or of a copy of
    /// them. Empty: nowhere.
    #[serde(deserialize_with = "text")]
    pub exchange_rates_url: String,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Which log lines: a level, or directives such as `info,ingest=debug`.
    #[serde(deserialize_with = "text")]
    pub log_filter: String,
    /// Key under which the credentials of payment gateways are encrypted, 64 hexadecimal digits; without it, one is made in
    /// `data_dir`, which does for one node only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets_key: Option<Secret>,
    /// Address of Stripe's API.
    #[serde(deserialize_with = "text")]
    pub stripe_url: String,
    /// Address of GoCardless' API.
    #[serde(deserialize_with = "text")]
    pub gocardless_url: String,
    /// Seconds that a graceful stop may take before the process ends anyway.
    pub stop_timeout_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            roles: vec![Role::Api, Role::Ingest, Role::Scheduler],
            node_name: "kontorion-1".to_owned(),
            data_dir: default_data_dir(),
            database_url: None,
            database_connections_max: 32,
            log_kind: LogKind::Local,
            partitions: 8,
            kafka_brokers: "127.0.0.1:9092".to_owned(),
            kafka_topic: "usage-events".to_owned(),
            kafka_group: "kontorion".to_owned(),
            trust_topic: false,
            store_kind: StoreKind::Postgres,
            clickhouse_url: None,
            clickhouse_database: "kontorion".to_owned(),
            active_subscriptions_max: 200_000,
            dedup_horizon_days: 40,
            rate_live_per_second: 100,
            rate_live_burst: 200,
            rate_sandbox_per_second: 25,
            rate_sandbox_burst: 50,
            rate_events_per_second: 200_000,
            trusted_proxies: Vec::new(),
            public_url: None,
            exchange_rates_url: "https://www.ecb.europa.eu/stats/eurofxref".to_owned(),
            log_format: LogFormat::Auto,
            // PostgreSQL tells at every start that the table of migrations exists.
            log_filter: "info,sqlx::postgres::notice=warn".to_owned(),
            secrets_key: None,
            stripe_url: payments::Endpoints::default().stripe,
            gocardless_url: payments::Endpoints::default().gocardless,
            stop_timeout_seconds: 60,
        }
    }
}

impl Config {
    /// Reads file and environment, and puts `flags` over them.
    ///
    /// # Errors
    /// Every key that is unknown or has a bad value, with where it stands.
    pub fn load(file: Option<&Path>, flags: &BTreeMap<String, String>) -> Result<Self, Failure> {
        Self::merge(&Source { file: find_file(file)?, environment: true, flags })
    }

    fn merge(source: &Source<'_>) -> Result<Self, Failure> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = &source.file {
            figment = figment.merge(Toml::file_exact(file));
        }
        if source.environment {
            let other = |key: &str| OTHER_VARIABLES.iter().any(|name| key == *name || key.starts_with("test_"));
            figment = figment.merge(Env::prefixed(PREFIX).filter(move |key| !other(&key.as_str().to_lowercase())));
        }
        for (key, value) in source.flags {
            figment = figment.merge(Flag { key, value });
        }
        let config: Self = figment.extract().map_err(|errors| Failure::usage(describe(errors)))?;
        config.check()?;
        Ok(config)
    }

    /// What depends on several keys.
    fn check(&self) -> Result<(), Failure> {
        let problem = if self.roles.is_empty() {
            "roles: at least one of api, ingest, scheduler"
        } else if self.node_name.is_empty() || self.node_name.len() > 100 {
            "node_name: 1 to 100 characters"
        } else if !(1..=1024).contains(&self.partitions) {
            "partitions: 1 to 1024"
        } else if self.database_connections_max < 4 {
            "database_connections_max: at least 4"
        } else if self.store_kind == StoreKind::Clickhouse && self.clickhouse_url.is_none() {
            "clickhouse_url: required with store_kind = \"clickhouse\""
        } else if !is_empty_or_http(&self.exchange_rates_url) {
            "exchange_rates_url: an address that begins with http:// or https://, or nothing"
        } else if self.rate_live_per_second == 0
            || self.rate_sandbox_per_second == 0
            || self.rate_events_per_second == 0
        {
            "rate limits: at least 1 per second"
        } else {
            return Ok(());
        };
        Err(Failure::usage(format!("configuration: {problem}")))
    }

    /// The configuration as TOML, with secrets starred.
    ///
    /// # Errors
    /// When a path is not UTF-8, which TOML requires.
    pub fn to_masked_toml(&self) -> Result<String, Failure> {
        let mut shown = self.clone();
        let secrets = [&mut shown.database_url, &mut shown.clickhouse_url, &mut shown.secrets_key];
        for secret in secrets.into_iter().flatten() {
            *secret = Secret(secret.masked());
        }
        toml::to_string(&shown).map_err(|error| Failure::work("writing the configuration", error))
    }

    /// Directory of the embedded PostgreSQL.
    #[must_use]
    pub fn postgres_dir(&self) -> PathBuf {
        self.data_dir.join("postgres")
    }

    /// Whether this process has a role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

fn is_empty_or_http(url: &str) -> bool {
    url.is_empty() || url.starts_with("https://") || url.starts_with("http://")
}

struct Source<'a> {
    file: Option<PathBuf>,
    environment: bool,
    flags: &'a BTreeMap<String, String>,
}

/// One `key=value` of the command line, read as in the environment.
struct Flag<'a> {
    key: &'a str,
    value: &'a str,
}

impl figment::Provider for Flag<'_> {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(format!("the command line (--{})", self.key.replace('_', "-")))
    }

    fn data(&self) -> Result<figment::value::Map<figment::Profile, figment::value::Dict>, figment::Error> {
        // Never fails: figment reads what is not a TOML-like value as text.
        let value: figment::value::Value = self.value.parse().unwrap_or_else(|never| match never {});
        let dict = figment::value::Dict::from([(self.key.to_owned(), value)]);
        Ok(figment::value::Map::from([(figment::Profile::Default, dict)]))
    }
}

fn find_file(named: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    match named {
        Some(file) if file.is_file() => Ok(Some(file.to_owned())),
        Some(file) => Err(Failure::usage(format!("the configuration file {} does not exist", file.display()))),
        None => Ok(Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.is_file())),
    }
}

/// One line per bad key, each with where it stands.
fn describe(errors: figment::Error) -> String {
    let lines: Vec<String> = errors.into_iter().map(|error| error.to_string()).collect();
    format!("configuration: {}", lines.join("\n  "))
}

/// `/var/lib/kontorion` for root, whose home other users (PostgreSQL does not run as root) may not enter; else the
/// user's own data directory.
fn default_data_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/kontorion");
    }
    let base = var("XDG_DATA_HOME").or_else(|| var("HOME").map(|home| home.join(".local/share")));
    base.unwrap_or_else(|| PathBuf::from(".")).join("kontorion")
}

/// A list, or its members in one text, separated by commas: `api,ingest`.
fn words<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        One(String),
        Many(Vec<String>),
    }
    let words: Vec<String> = match Form::deserialize(deserializer)? {
        Form::One(text) => text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect(),
        Form::Many(words) => words,
    };
    words.into_iter().map(|word| T::deserialize(word.into_deserializer())).collect()
}

/// Text, also where the environment's `7` was read as a number.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Number(i64),
        Flag(bool),
    }
    Ok(match Form::deserialize(deserializer)? {
        Form::Text(text) => text,
        Form::Number(number) => number.to_string(),
        Form::Flag(flag) => flag.to_string(),
    })
}

#[cfg(test)]
mod tests {
    //! Guards against a setting that is read from the wrong place, or ignored.

    use super::*;

    fn merge(file: &str, flags: &[(&str, &str)]) -> Result<Config, String> {
        let path = std::env::temp_dir().join(format!("kontorion-config-{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(&path, file).unwrap();
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let result = Config::merge(&Source { file: Some(path.clone()), environment: false, flags: &flags });
        std::fs::remove_file(path).unwrap();
        result.map_err(|failure| failure.to_string())
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "listen = \"0.0.0.0:9000\"\npartitions = 12\nroles = [\"api\", \"ingest\"]";
        let config = merge(file, &[("partitions", "4"), ("log_kind", "kafka"), ("node_name", "7")]).unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:9000");
        assert_eq!(config.partitions, 4);
        assert_eq!(config.roles, [Role::Api, Role::Ingest]);
        assert_eq!(config.log_kind, LogKind::Kafka);
        assert_eq!(config.node_name, "7");
        assert_eq!(config.kafka_topic, "usage-events");
        assert!(merge("", &[("exchange_rates_url", "")]).unwrap().exchange_rates_url.is_empty(), "nowhere");
    }

    #[test]
    fn lists_come_as_lists_or_with_commas() {
        let config = merge("", &[("roles", "scheduler, api"), ("trusted_proxies", "10.0.0.1,::1")]).unwrap();
        assert_eq!(config.roles, [Role::Scheduler, Role::Api]);
        assert_eq!(config.trusted_proxies.len(), 2);
    }

    #[test]
    fn what_is_unknown_or_wrong_is_refused_with_its_place() {
        let error = merge("partitons = 3", &[]).unwrap_err();
        assert!(error.contains("partitons") && error.contains(".toml"), "{error}");
        let error = merge("", &[("roles", "api,cook")]).unwrap_err();
        assert!(error.contains("cook") && error.contains("scheduler"), "{error}");
        let error = merge("listen = \"nowhere\"", &[]).unwrap_err();
        assert!(error.contains("listen"), "{error}");
        for (file, about) in [
            ("partitions = 0", "partitions"),
            ("roles = []", "roles"),
            ("store_kind = \"clickhouse\"", "clickhouse_url"),
            ("database_connections_max = 1", "database_connections_max"),
            ("exchange_rates_url = \"ecb.europa.eu\"", "exchange_rates_url"),
        ] {
            assert!(merge(file, &[]).unwrap_err().contains(about), "{file}");
        }
    }

    #[test]
    fn no_secret_is_printed() {
        let file = "database_url = \"postgres://kontorion:s3cret@db:5432/k?sslmode=require&password=t0p\"\n\
                    clickhouse_url = \"http://reader:s3cret@clickhouse:8123\"\nsecrets_key = \"s3cret\"";
        let config = merge(file, &[]).unwrap();
        let shown = config.to_masked_toml().unwrap();
        assert!(shown.contains("postgres://kontorion:***@db:5432/k?sslmode=require&password=***"), "{shown}");
        for text in [shown, format!("{config:?}")] {
            assert!(!text.contains("s3cret") && !text.contains("t0p"), "{text}");
        }
        assert_eq!(config.database_url.unwrap().expose().matches("s3cret").count(), 1);
        assert_eq!(Secret("plain".to_owned()).masked(), "***");
    }

    #[test]
    fn the_printed_configuration_reads_back() {
        let config = merge("", &[("partitions", "3")]).unwrap();
        assert_eq!(merge(&config.to_masked_toml().unwrap(), &[]).unwrap(), config);
    }
}
