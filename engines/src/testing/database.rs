//! A fresh database per test, copied from a template that is made once per state of the migrations.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::sync::OnceCell;

use crate::EngineError;
use crate::postgres::quoted;

/// Databases of tests are `kontorion_test_<process>_<number>`.
const TEST_PREFIX: &str = "kontorion_test_";

/// Templates are `kontorion_template_<hash of the migrations>`.
const TEMPLATE_PREFIX: &str = "kontorion_template_";

/// Advisory lock of database `postgres` under which templates are made and old databases swept.
const LOCK_KEY: i64 = 0x6b6f_6e74_6f72_696f;

/// A database of one test. Dropping it drops the database soon, also from under connections that are still open.
#[derive(Debug)]
pub struct TestDatabase {
    name: String,
    admin: PgConnectOptions,
    url: String,
}

impl TestDatabase {
    /// Makes a database on the PostgreSQL that `admin_url` leads to.
    ///
    /// # Errors
    /// When the server refuses, or a migration is wrong.
    pub(super) async fn create(admin_url: &str) -> Result<Self, EngineError> {
        let admin: PgConnectOptions = admin_url.parse().map_err(EngineError::database("reading the test URL"))?;
        let template = template(&admin).await?;
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEST_PREFIX}{}_{number}", std::process::id());
        let mut connection = connect(&admin).await?;
        let create = format!("CREATE DATABASE {} TEMPLATE {}", quoted(&name), quoted(template));
        execute(&mut connection, &create).await?;
        let url = admin.clone().database(&name).to_url_lossy().to_string();
        Ok(Self { name, admin, url })
    }

    /// Connection URL of the database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Name of the database.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A pool of at most ten connections, opened when they are needed.
    pub fn pool(&self) -> PgPool {
        let options = self.admin.clone().database(&self.name);
        PgPoolOptions::new().max_connections(10).acquire_timeout(Duration::from_secs(30)).connect_lazy_with(options)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        drop_beside(self.admin.clone(), vec![self.name.clone()]);
    }
}

/// Drops databases on a thread with a runtime of its own that nobody waits for: the server may take a minute for it (every
/// one of its processes must confirm that it has let go of the files), and what is left is swept by the next process.
fn drop_beside(admin: PgConnectOptions, names: Vec<String>) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let dropping = async {
            for name in &names {
                let _ = drop_database(&admin, name).await;
            }
        };
        let _ = runtime.map(|runtime| runtime.block_on(dropping));
    });
}

/// The name of the template for the migrations as they are now, made on the first call of the process if need be.
async fn template(admin: &PgConnectOptions) -> Result<&'static str, EngineError> {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let made = TEMPLATE.get_or_try_init(|| async {
        let migrations = migrations_dir();
        let name = format!("{TEMPLATE_PREFIX}{}", hash_of(&migrations)?);
        let mut connection = connect(admin).await?;
        execute(&mut connection, &format!("SELECT pg_advisory_lock({LOCK_KEY})")).await?;
        sweep(&mut connection, admin, &name).await?;
        if !exists(&mut connection, &name).await? {
            make_template(&mut connection, admin, &name, &migrations).await?;
        }
        Ok(name)
    });
    made.await.map(String::as_str)
}

fn migrations_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/postgres")
}

/// Changes when a file of the directory changes, comes or goes.
fn hash_of(migrations: &Path) -> Result<String, EngineError> {
    let mut hasher = Sha256::new();
    let entries = std::fs::read_dir(migrations).map_err(EngineError::io("reading", migrations))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "sql")) {
        let text = std::fs::read(file).map_err(EngineError::io("reading", file))?;
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(&text);
    }
    Ok(hex::encode(&hasher.finalize()[..8]))
}

/// Applies the migrations as the server does, with sqlx's migrator, so that a test's database looks like a real one.
/// The database gets its name when it is complete.
async fn make_template(
    connection: &mut PgConnection,
    admin: &PgConnectOptions,
    name: &str,
    migrations: &Path,
) -> Result<(), EngineError> {
    let making = format!("{name}_making");
    execute(connection, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(&making))).await?;
    execute(connection, &format!("CREATE DATABASE {} TEMPLATE template0 ENCODING UTF8", quoted(&making))).await?;
    let doing = || EngineError::database(format!("applying {}", migrations.display()));
    let migrator = Migrator::new(migrations).await.map_err(sqlx::Error::from).map_err(doing())?;
    let mut inside = connect(&admin.clone().database(&making)).await?;
    migrator.run(&mut inside).await.map_err(sqlx::Error::from).map_err(doing())?;
    inside.close().await.map_err(doing())?;
    // A connection to a template would make copying it fail.
    execute(connection, &format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", quoted(&making))).await?;
    execute(connection, &format!("ALTER DATABASE {} RENAME TO {}", quoted(&making), quoted(name))).await
}

/// Drops databases of processes that have ended, and templates that are older than a day and not `keep`.
async fn sweep(connection: &mut PgConnection, admin: &PgConnectOptions, keep: &str) -> Result<(), EngineError> {
    let tests: Vec<String> = sqlx::query_scalar("SELECT datname FROM pg_database WHERE datname LIKE $1")
        .bind(format!("{TEST_PREFIX}%"))
        .fetch_all(&mut *connection)
        .await
        .map_err(EngineError::database("looking for databases of earlier tests"))?;
    let templates: Vec<String> = sqlx::query_scalar(
        "SELECT datname FROM pg_database WHERE datname LIKE $1 AND datname <> $2 \
         AND (pg_stat_file('base/' || oid || '/PG_VERSION')).modification < now() - interval '1 day'",
    )
    .bind(format!("{TEMPLATE_PREFIX}%"))
    .bind(keep)
    .fetch_all(&mut *connection)
    .await
    .map_err(EngineError::database("looking for old templates"))?;
    // Another process may be dropping them too, which is no matter.
    drop_beside(admin.clone(), tests.into_iter().filter(|name| is_abandoned(name)).chain(templates).collect());
    Ok(())
}

fn is_abandoned(name: &str) -> bool {
    let owner = name.strip_prefix(TEST_PREFIX).and_then(|rest| rest.split('_').next());
    owner.and_then(|pid| pid.parse().ok()).is_some_and(|pid: i32| !crate::process::is_alive(pid))
}

async fn drop_database(admin: &PgConnectOptions, name: &str) -> Result<(), EngineError> {
    let mut connection = connect(admin).await?;
    execute(&mut connection, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name))).await
}

async fn exists(connection: &mut PgConnection, name: &str) -> Result<bool, EngineError> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(connection)
        .await
        .map_err(EngineError::database("looking for the template"))
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, EngineError> {
    options.connect().await.map_err(EngineError::database("connecting to the tests' PostgreSQL"))
}

async fn execute(connection: &mut PgConnection, sql: &str) -> Result<(), EngineError> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .map(drop)
        .map_err(EngineError::database(sql.to_owned()))
}
