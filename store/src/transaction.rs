//! The pool and the named transaction: one wrapper through which every write goes.

use domain::{Error, JsonMap, Result, Scope, WorkspaceId};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgTransactionManager};
use sqlx::{PgConnection, PgPool, Postgres};
use sqlx_core::transaction::TransactionManager; // `sqlx` does not name it
use uuid::Uuid;

use crate::StoreError;
use crate::socket;

/// Channel on which catalog transactions announce their revision (P12: catalog transactions only).
pub const CATALOG_CHANNEL: &str = "kontorion_catalog";

/// The database of this process.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
}

impl Store {
    /// Connects; connections are opened when needed, up to `connections_max`. Statements are cut after 30 s (P13).
    ///
    /// # Errors
    /// `BadRequest` for an address that cannot be read, `Unavailable` when nobody answers.
    pub async fn connect(url: &str, connections_max: u32) -> Result<Self> {
        let options: PgConnectOptions = url
            .parse()
            .map_err(|error| Error::BadRequest { code: "BAD_REQUEST", detail: format!("database address: {error}") })?;
        let options = options.application_name("kontorion").options([
            ("statement_timeout", "30s"),
            ("idle_in_transaction_session_timeout", "30s"),
            ("lock_timeout", "10s"),
            ("timezone", "UTC"),
        ]);
        let pool =
            pool_of(connections_max, &options).connect_with(options).await.context("connecting to the database")?;
        Ok(Self { pool })
    }

    /// Connections of its own to the same database, opened when needed, with these settings of PostgreSQL. Whoever is waited for by
    /// those who hold a connection must not wait for one of theirs; and what runs one after the other stays on one connection, which
    /// knows its statements.
    #[must_use]
    pub fn apart(&self, connections_max: u32, settings: &[(&str, &str)]) -> Self {
        let options = (*self.pool.connect_options()).clone().options(settings.iter().copied());
        Self { pool: pool_of(connections_max, &options).connect_lazy_with(options) }
    }

    /// For statements outside a transaction.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Applies what is missing of the migrations, under PostgreSQL's advisory lock.
    ///
    /// # Errors
    /// `Internal` with the migration that failed.
    pub async fn migrate(&self) -> Result<()> {
        crate::MIGRATIONS.run(&self.pool).await.map_err(|error| Error::internal("migrating the database", error))
    }

    /// Begins a transaction; `name` appears in logs and in `pg_stat_activity` trouble reports.
    ///
    /// # Errors
    /// `Unavailable` when no connection is to be had.
    pub async fn begin(&self, name: &'static str) -> Result<Tx> {
        let conn = self.pool.acquire().await.context(name)?;
        let mut tx = Tx { conn, name, catalog_changes: Vec::new(), is_torn: true };
        PgTransactionManager::begin(&mut tx.conn, None).await.context(name)?;
        tx.is_torn = false;
        Ok(tx)
    }
}

fn pool_of(connections_max: u32, options: &PgConnectOptions) -> PgPoolOptions {
    let port = options.get_port();
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(std::time::Duration::from_secs(10))
        .test_before_acquire(false)
        .after_connect(move |_, _| {
            if let Err(error) = socket::set_up(port) {
                tracing::warn!(%error, "a connection to the database may be slower than it could be");
            }
            Box::pin(std::future::ready(Ok(())))
        })
}

/// A transaction. Dropped without [`Tx::commit`], it is rolled back.
#[derive(Debug)]
pub struct Tx {
    conn: PoolConnection<Postgres>,
    name: &'static str,
    catalog_changes: Vec<CatalogChange>,
    /// Whether sqlx, cancelled now, would misjudge the connection: while the transaction begins it knows of none to roll back, and
    /// the answers to a COPY it takes for those to the next statement.
    is_torn: bool,
}

impl Drop for Tx {
    fn drop(&mut self) {
        if self.is_torn {
            self.conn.close_on_drop();
        } else {
            PgTransactionManager::start_rollback(&mut self.conn); // nothing to do after a commit
        }
    }
}

/// Something that happened, as webhooks will tell it.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainEvent<'a> {
    /// `wallet.credited`.
    pub event_type: &'a str,
    /// `wallet`.
    pub entity_type: &'a str,
    /// Whom it happened to.
    pub entity_id: Uuid,
    /// The entity, or what is told of it.
    pub payload: JsonMap,
}

#[derive(Debug)]
struct CatalogChange {
    workspace_id: WorkspaceId,
    entity_type: &'static str,
    entity_id: Uuid,
}

impl Tx {
    /// The connection, for sqlx: `.execute(tx.conn())`.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.conn
    }

    /// Says that a COPY begins or is over. A connection that is dropped in between is closed: nobody else could use it.
    pub fn set_copying(&mut self, is_copying: bool) {
        self.is_torn = is_copying;
    }

    /// The compiled catalog of this workspace changes with the commit (products, plans, prices, meters, bindings).
    pub fn catalog_changed(&mut self, workspace_id: WorkspaceId) {
        self.changed(workspace_id, "catalog", workspace_id.0);
    }

    /// A subscription that nodes may have cached changes with the commit. Creation needs no call: a miss reads through.
    pub fn subscription_changed(&mut self, workspace_id: WorkspaceId, subscription_id: domain::SubscriptionId) {
        self.changed(workspace_id, "subscription", subscription_id.0);
    }

    /// A customer that nodes may have cached changes with the commit.
    pub fn customer_changed(&mut self, workspace_id: WorkspaceId, customer_id: domain::CustomerId) {
        self.changed(workspace_id, "customer", customer_id.0);
    }

    fn changed(&mut self, workspace_id: WorkspaceId, entity_type: &'static str, entity_id: Uuid) {
        if !self.catalog_changes.iter().any(|c| c.entity_type == entity_type && c.entity_id == entity_id) {
            self.catalog_changes.push(CatalogChange { workspace_id, entity_type, entity_id });
        }
    }

    /// Writes a domain event (webhooks-events) in the transaction of its cause.
    ///
    /// # Errors
    /// As every statement.
    pub async fn emit(
        &mut self,
        scope: &Scope,
        event_type: &str,
        entity_type: &str,
        entity_id: impl Into<Uuid>,
        payload: JsonMap,
    ) -> Result<()> {
        self.emit_all(scope, &[DomainEvent { event_type, entity_type, entity_id: entity_id.into(), payload }]).await
    }

    /// Writes domain events, in their order.
    ///
    /// # Errors
    /// As every statement.
    pub async fn emit_all(&mut self, scope: &Scope, events: &[DomainEvent<'_>]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO outbox (id, workspace_id, event_type, entity_type, entity_id, payload, created_at)
             SELECT e.id, $1, e.event_type, e.entity_type, e.entity_id, e.payload, $7
             FROM unnest($2::uuid[], $3::text[], $4::text[], $5::uuid[], $6::jsonb[])
                 AS e (id, event_type, entity_type, entity_id, payload)",
        )
        .bind(scope.workspace_id)
        .bind(events.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.event_type).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.entity_type).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.entity_id).collect::<Vec<_>>())
        .bind(events.iter().map(|event| sqlx::types::Json(&event.payload)).collect::<Vec<_>>())
        .bind(scope.now())
        .execute(self.conn())
        .await
        .context("writing to the outbox")?;
        Ok(())
    }

    /// Commits; catalog changes get their revision last, so that revisions are numbered in commit order (rule B6).
    ///
    /// # Errors
    /// `Unavailable` when the answer to the COMMIT was lost: the caller repeats with the same ids and keys (rule D5).
    pub async fn commit(mut self) -> Result<()> {
        if !self.catalog_changes.is_empty() {
            self.number_revision().await?;
        }
        PgTransactionManager::commit(&mut self.conn).await.context(self.name)
    }

    /// Rolls back and waits for it, where a lock of the transaction must be free before the caller goes on: dropped, it
    /// is rolled back a moment later.
    ///
    /// # Errors
    /// As every statement.
    pub async fn rollback(mut self) -> Result<()> {
        PgTransactionManager::rollback(&mut self.conn).await.context(self.name)
    }

    /// Commits, or rolls back and waits for it after an error: either way the locks of the transaction are free then.
    ///
    /// # Errors
    /// The one that came out, and as [`Tx::commit`].
    pub async fn end<T>(self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(done) => self.commit().await.map(|()| done),
            Err(error) => self.rollback().await.and(Err(error)),
        }
    }

    async fn number_revision(&mut self) -> Result<()> {
        let changes = std::mem::take(&mut self.catalog_changes);
        let revision: i64 =
            sqlx::query_scalar("UPDATE catalog_revision SET revision = revision + 1 RETURNING revision")
                .fetch_one(self.conn())
                .await
                .context("numbering the catalog revision")?;
        let (mut workspaces, mut types, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for change in &changes {
            workspaces.push(change.workspace_id.0);
            types.push(change.entity_type);
            ids.push(change.entity_id);
        }
        sqlx::query(
            "INSERT INTO catalog_change (revision, workspace_id, entity_type, entity_id)
             SELECT $1, * FROM unnest($2::uuid[], $3::text[], $4::uuid[])",
        )
        .bind(revision)
        .bind(workspaces)
        .bind(types)
        .bind(ids)
        .execute(self.conn())
        .await
        .context("recording the catalog change")?;
        sqlx::query("SELECT pg_notify($1, $2)")
            .bind(CATALOG_CHANNEL)
            .bind(revision.to_string())
            .execute(self.conn())
            .await
            .context("announcing the catalog revision")?;
        Ok(())
    }
}
