//! Subscriptions: standing agreements between one customer and one plan version (subscriptions.md).

pub mod model;
pub mod words;

pub use model::{Subscription, SubscriptionDTO, SubscriptionItem, SubscriptionItemDTO};
pub use words::{BillingPeriodStatus, CancellationReason, DunningStage, ProrationType, SubscriptionStatus, VersionTrackMode};
