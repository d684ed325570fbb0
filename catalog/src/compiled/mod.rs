//! The catalog, compiled: immutable snapshots that the door, the actors and invoice assembly read without a query.
//!
//! A [`WorkspaceCatalog`] holds every version of a workspace's products, bindings, prices, formulas and rate tables; [`SubscriptionTerms`] hold
//! what a subscription adds to it. Both are read through [`Snapshots`], which keeps them as fresh as the catalog revision
//! says (rule B6).

mod allowance;
mod carried;
mod load;
mod schema;
mod snapshots;
mod tables;
mod terms;
mod window;
mod workspace;

pub use allowance::{AllowancePool, IncludedQuantity, MetricAllowance};
pub use carried::{Carried, CarriedLot, CommittedUse, CommittedUseRow, Grant};
pub use schema::{EventSchema, EventShape};
pub use snapshots::Snapshots;
pub use terms::{ItemTerms, SubscriptionTerms};
pub use window::{StoredWindow, WindowQuery, WindowStatus};
pub use workspace::{
    BindingTimeline, PlanProductTerms, PlanVersionTerms, PriceQuery, PriceResolution, PriceTimeline, ProductTerms,
    ResolvedPrice, Unpriced, WorkspaceCatalog,
};

/// Start of a first version without an effective time: it holds since ever.
pub const SINCE_EVER: domain::Instant = chrono::DateTime::<chrono::Utc>::UNIX_EPOCH;
