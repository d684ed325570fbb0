//! Money in more than one currency.
//!
//! * [`allowlist`]: the currencies that a workspace may use, its default and how their amounts are rounded (currencies.md).
//! * [`rate`]: what one currency is worth in another at an instant, by one function (fx.md 4). It looks at
//!   [`overrides`], which a workspace sets for itself, and at [`snapshot`]s, which are published for all.
//! * [`feed`] reads the documents of the European Central Bank; the scheduler fetches them.
//! * [`policy`]: which instant counts.

pub mod allowlist;
pub mod feed;
pub mod overrides;
pub mod policy;
pub mod rate;
pub mod snapshot;

pub use allowlist::{Purpose, WorkspaceCurrency, default_currency, require};
pub use overrides::FXOverride;
pub use policy::FXPolicy;
pub use rate::{FxRate, FxRateKind, Pair};
pub use snapshot::FXSnapshot;
