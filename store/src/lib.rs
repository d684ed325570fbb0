//! PostgreSQL for every room: the connection pool, named transactions, list queries with the filter grammar,
//! idempotency keys, the outbox and the catalog revision. It knows tables only where every room shares them.

pub mod error;
pub mod group;
pub mod idempotency;
pub mod list;
pub mod row;
mod socket;
pub mod transaction;

pub use error::{StoreError, on_constraint};
pub use group::{Desk, Groups, Patience, Served, Sheet};
pub use idempotency::{BodyKey, BodyKeys, Claim, IdempotencyKey, StoredAnswer, kept};
pub use list::{ListField, ListKind, ListQuery, ListSpec, Page};
pub use row::{money, optional_money, payload};
pub use transaction::{DomainEvent, Store, Tx};

/// The migrations of `migrations/postgres`, compiled in.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations/postgres");
