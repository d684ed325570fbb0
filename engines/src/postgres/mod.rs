//! The embedded PostgreSQL: initialised once in a directory, started on a free port, adopted by the next start.
//!
//! Layout of the directory:
//!
//! | name | what |
//! |---|---|
//! | `cluster/` | PostgreSQL's own data directory, owned by the unprivileged user when Kontorion runs as root |
//! | `cluster/kontorion.conf` | the settings of [`settings`], written again at every start |
//! | `password` | password of the superuser `kontorion`, readable by the owner only |
//! | `port` | the port of the last start, taken again when it is free |
//! | `start.lock` | held while starting or stopping |
//! | `users.lock` | shared by every process that uses the engine, so that the last one out stops it |
//!
//! Connections come over 127.0.0.1 with the password; there is no unix socket (its path must be shorter than 108
//! bytes, which a data directory need not be).

mod postmaster;
mod programs;
pub mod settings;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use tracing::info;

use crate::EngineError;
use crate::files::{self, FileLock};
use crate::process::{self, Unprivileged};
use postmaster::{Postmaster, Status};
use programs::Programs;

/// The superuser, the only role.
const SUPERUSER: &str = "kontorion";

/// Redo after a crash reads up to `max_wal_size`, at about 150 MB/s.
const START_LIMIT: Duration = Duration::from_secs(300);

/// A fast stop writes a checkpoint: at most the shared buffers.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// How to run an [`EmbeddedPostgres`]. The default is right for a server.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    /// Port of 127.0.0.1; 0 takes the one of the last start, or any free one.
    pub port: u16,
    /// Settings that win over those of [`settings::defaults`].
    pub settings: Vec<(String, String)>,
}

/// A PostgreSQL that this process started or adopted. Dropping the handle leaves it running.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    dir: PathBuf,
    programs: Programs,
    user: Unprivileged,
    port: u16,
    password: String,
    users: FileLock,
}

impl EmbeddedPostgres {
    /// Starts the engine whose files are in `dir`, making them first if there are none, or adopts the one that runs
    /// there already. Returns when it accepts connections.
    ///
    /// # Errors
    /// [`EngineError::Missing`] without PostgreSQL 15 or newer; the others say what to do.
    pub async fn start(dir: &Path, options: PostgresOptions) -> Result<Self, EngineError> {
        let user = Unprivileged::find().await?;
        // Others may pass through, as the unprivileged user must; what is inside guards itself.
        files::make_dir(dir, 0o711)?;
        let dir = dir.canonicalize().map_err(EngineError::io("resolving", dir))?;
        user.check_can_enter(&dir).await?;
        let _starting = FileLock::exclusive(&dir.join("start.lock")).await?;
        let mut engine = Self::open(dir, user).await?;
        initialise(&engine.dir, &engine.programs, &engine.user).await?;
        engine.password = files::read_trimmed(&engine.dir.join("password")).unwrap_or_default();
        engine.port = match engine.running_port().await? {
            Some(port) => port,
            None => engine.launch(&options).await?,
        };
        Ok(engine)
    }

    /// The engine that runs in `dir`; `None` when none does.
    ///
    /// # Errors
    /// As [`EmbeddedPostgres::start`].
    pub async fn adopt(dir: &Path) -> Result<Option<Self>, EngineError> {
        if !dir.join("cluster").is_dir() {
            return Ok(None);
        }
        let dir = dir.canonicalize().map_err(EngineError::io("resolving", dir))?;
        let _starting = FileLock::exclusive(&dir.join("start.lock")).await?;
        let mut engine = Self::open(dir, Unprivileged::find().await?).await?;
        let Some(port) = engine.running_port().await? else { return Ok(None) };
        engine.port = port;
        Ok(Some(engine))
    }

    async fn open(dir: PathBuf, user: Unprivileged) -> Result<Self, EngineError> {
        let programs = Programs::find().await?;
        let users = FileLock::shared(&dir.join("users.lock"))?;
        let password = files::read_trimmed(&dir.join("password")).unwrap_or_default();
        Ok(Self { dir, programs, user, port: 0, password, users })
    }

    /// The port of 127.0.0.1 that the engine listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connection URL of a database by this name, which need not exist.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// Connection URL of a database by this name, made first if it does not exist.
    ///
    /// # Errors
    /// [`EngineError::Database`] when the engine refuses.
    pub async fn database(&self, name: &str) -> Result<String, EngineError> {
        let doing = || EngineError::database(format!("creating database {name} in the embedded PostgreSQL"));
        let mut admin = PgConnection::connect(&self.url("postgres")).await.map_err(doing())?;
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(name)
            .fetch_one(&mut admin)
            .await
            .map_err(doing())?;
        if !exists {
            let create = format!("CREATE DATABASE {}", quoted(name));
            sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut admin).await.map_err(doing())?;
        }
        Ok(self.url(name))
    }

    /// Stops the engine and waits until it has ended; open transactions are rolled back.
    ///
    /// Returns `false` and leaves it running when another process uses it.
    ///
    /// # Errors
    /// [`EngineError::Program`] when it does not end in time.
    pub async fn stop(self) -> Result<bool, EngineError> {
        let _stopping = FileLock::exclusive(&self.dir.join("start.lock")).await?;
        if !self.users.try_make_exclusive() {
            return Ok(false);
        }
        if Postmaster::read(&self.cluster()).is_none() {
            return Ok(true);
        }
        let mut command = self.user.command(self.programs.path("pg_ctl"));
        command.args(["stop", "--silent", "--mode=fast", "--timeout"]);
        command.arg(STOP_LIMIT.as_secs().to_string()).arg("-D").arg(self.cluster());
        process::run("pg_ctl stop", command).await?;
        Ok(true)
    }

    fn cluster(&self) -> PathBuf {
        self.dir.join("cluster")
    }

    /// The port of a running engine. Waits for one that is starting, and for the end of one that is stopping.
    async fn running_port(&self) -> Result<Option<u16>, EngineError> {
        let deadline = Instant::now() + START_LIMIT;
        while let Some(postmaster) = Postmaster::read(&self.cluster()) {
            match postmaster.status {
                Status::Gone => {
                    postmaster.forget()?;
                    return Ok(None);
                }
                Status::Ready => {
                    info!(port = postmaster.port, "adopted the embedded PostgreSQL that runs already");
                    return Ok(Some(postmaster.port));
                }
                Status::Changing if Instant::now() >= deadline => return Err(self.not_ready(START_LIMIT)),
                Status::Changing => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Ok(None)
    }

    /// Starts the engine, again on another port when somebody was quicker, and after a moment when processes of a
    /// killed postmaster still hold its memory.
    async fn launch(&self, options: &PostgresOptions) -> Result<u16, EngineError> {
        let deadline = Instant::now() + START_LIMIT;
        let lz4 = self.accepts("wal_compression", "lz4").await;
        loop {
            let port = self.choose_port(options.port)?;
            let text = settings::render(port, lz4, &options.settings);
            let file = self.cluster().join("kontorion.conf");
            files::write_atomically(&file, &text, 0o644)?;
            let Err(error) = self.run_pg_ctl_start().await else {
                files::write_atomically(&self.dir.join("port"), &port.to_string(), 0o644)?;
                info!(port, version = self.programs.version(), "started the embedded PostgreSQL");
                return Ok(port);
            };
            let log = files::tail(&self.log());
            let port_taken = options.port == 0 && log.contains("could not bind");
            let still_dying = log.contains("pre-existing shared memory block");
            if Instant::now() >= deadline || !(port_taken || still_dying) {
                tracing::debug!(error = error.chain(), "pg_ctl start");
                return Err(self.not_ready(START_LIMIT));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    // pg_ctl puts the postmaster into a session of its own, which is what lets it outlive us.
    async fn run_pg_ctl_start(&self) -> Result<(), EngineError> {
        let log = self.log();
        fs::write(&log, "").map_err(EngineError::io("writing", &log))?;
        self.user.own(&log)?;
        let mut command = self.user.command(self.programs.path("pg_ctl"));
        command.args(["start", "--silent", "--wait", "--timeout"]).arg(START_LIMIT.as_secs().to_string());
        command.arg("-D").arg(self.cluster()).arg("-l").arg(log);
        process::run("pg_ctl start", command).await.map(drop)
    }

    fn choose_port(&self, wanted: u16) -> Result<u16, EngineError> {
        if wanted != 0 {
            return Ok(wanted);
        }
        let last = files::read_trimmed(&self.dir.join("port")).and_then(|text| text.parse().ok());
        match last {
            Some(port) if port != 0 && process::is_port_free(port) => Ok(port),
            _ => process::free_port(),
        }
    }

    /// Whether these programs were built with a setting's value.
    async fn accepts(&self, setting: &str, value: &str) -> bool {
        let mut command = self.user.command(self.programs.path("postgres"));
        command.arg("-D").arg(self.cluster()).args(["-C", setting, "-c", &format!("{setting}={value}")]);
        process::run("postgres", command).await.is_ok()
    }

    /// What PostgreSQL prints before its own log files are open.
    fn log(&self) -> PathBuf {
        self.dir.join("start.log")
    }

    fn not_ready(&self, limit: Duration) -> EngineError {
        EngineError::NotReady {
            engine: "PostgreSQL",
            seconds: limit.as_secs(),
            log: self.log(),
            tail: files::tail(&self.log()),
        }
    }
}

/// Makes the cluster, in a directory that gets its name only when it is complete.
async fn initialise(dir: &Path, programs: &Programs, user: &Unprivileged) -> Result<(), EngineError> {
    let cluster = dir.join("cluster");
    if let Some(found) = files::read_trimmed(&cluster.join("PG_VERSION")) {
        let wanted = programs.major();
        let same = found == wanted.to_string();
        return if same { Ok(()) } else { Err(EngineError::Version { path: cluster, found, programs: wanted }) };
    }
    let partial = dir.join("cluster.partial");
    let password_file = dir.join("password");
    files::write_atomically(&password_file, &random_password()?, 0o600)?;
    // Without the locale C.UTF-8, C keeps the same order of text and only knows fewer letters.
    let mut result = Ok(());
    for locale in ["C.UTF-8", "C"] {
        result = run_initdb(&partial, &password_file, locale, programs, user).await;
        if result.is_ok() {
            break;
        }
    }
    result?;
    let conf = partial.join("postgresql.conf");
    let text = fs::read_to_string(&conf).map_err(EngineError::io("reading", &conf))?;
    // Programs that look at the settings before the first start find no such file yet.
    files::write_atomically(&conf, &format!("{text}\ninclude_if_exists 'kontorion.conf'\n"), 0o644)?;
    fs::rename(&partial, &cluster).map_err(EngineError::io("creating", &cluster))?;
    info!(dir = %cluster.display(), version = programs.version(), "initialised the embedded PostgreSQL");
    Ok(())
}

async fn run_initdb(
    cluster: &Path,
    password_file: &Path,
    locale: &str,
    programs: &Programs,
    user: &Unprivileged,
) -> Result<(), EngineError> {
    if cluster.exists() {
        fs::remove_dir_all(cluster).map_err(EngineError::io("removing", cluster))?;
    }
    files::make_dir(cluster, 0o700)?;
    user.own(cluster)?;
    // Only the owner may read the password, and initdb runs as another user.
    user.own(password_file)?;
    let mut command = user.command(programs.path("initdb"));
    command.args(["--encoding=UTF8", "--auth=scram-sha-256", "--no-instructions", "--username", SUPERUSER]);
    command.arg(format!("--locale={locale}")).arg("--pwfile").arg(password_file).arg("-D").arg(cluster);
    process::run("initdb", command).await.map(drop)
}

fn random_password() -> Result<String, EngineError> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 24];
    fs::File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(EngineError::io("reading", source))?;
    Ok(hex::encode(bytes))
}

/// A name as SQL wants it, whatever it contains.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
