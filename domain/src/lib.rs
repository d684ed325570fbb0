//! The words that every room shares: ids, money, quantities, periods, the clock, errors and the usage event.
//!
//! No I/O happens here. Types that are stored derive their PostgreSQL mapping, so that a column, a struct
//! member and a JSON member of one thing carry one name and one type.

#[macro_use]
pub mod wire;

pub mod clock;
pub mod currency;
pub mod error;
pub mod event;
pub mod home;
pub mod ids;
pub mod input;
pub mod money;
pub mod period;
pub mod quantity;
pub mod scope;
pub mod wide;
pub mod words;

pub use clock::Clock;
pub use currency::Currency;
pub use error::{Error, FieldError, Result};
pub use event::{Position, UsageEvent};
pub use ids::*;
pub use input::{Input, Patch};
pub use money::Money;
pub use quantity::Quantity;
pub use scope::{Actor, Scope, WorkspaceMode};
pub use words::*;

/// An instant in UTC. Wire form: RFC 3339 with `Z`, at most microseconds.
pub type Instant = chrono::DateTime<chrono::Utc>;

/// A map of the hot paths: a seeded hash that is several times faster than the standard one on keys as short as ids.
pub type FastMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// Metadata, custom fields and other free JSON maps.
pub type JsonMap = serde_json::Map<String, serde_json::Value>;
