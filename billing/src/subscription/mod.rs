//! Subscriptions: standing agreements between one customer and one plan version (subscriptions.md).

mod cancel;
mod create;
pub mod drift;
pub(crate) mod lifecycle;
pub mod model;
mod pause;
pub mod periods;
pub mod read;
pub mod request;
pub mod words;
pub(crate) mod write;

pub use drift::SubscriptionDriftSummary;
pub use model::{Subscription, SubscriptionDTO, SubscriptionItem, SubscriptionItemDTO};
pub use periods::BillingPeriod;
pub use request::{
    CancelSubscriptionRequest, CreateSubscriptionRequest, PauseSubscriptionRequest, ResumeSubscriptionRequest,
    SubscriptionItemInput,
};
pub use words::{
    BillingPeriodStatus, CancellationReason, DunningStage, ProrationType, SubscriptionStatus, VersionTrackMode,
};
