//! Committed use plans: a least quantity per commitment period over a term, at a discounted rate (allowances.md 2, C1, C2).
//!
//! Their status follows from their dates, their progress from the windows of the subscription. How they are charged:
//! `rating::commitment` and `invoice/draft/commitment.rs`.

mod progress;
mod read;
mod request;
mod write;

use chrono::{DateTime, Utc};
use domain::{
    CommitmentPeriod, CommittedUsePlanId, CommittedUsePlanStatus, Currency, CustomerId, JsonMap, OrganizationId,
    PriceId, ProductId, Quantity, ShortfallPolicy, SubscriptionId,
};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use utoipa::ToSchema;

pub use request::{CancelCommittedUsePlanRequest, CreateCommittedUsePlanRequest, UpdateCommittedUsePlanRequest};

/// What of a committed use plan is stored, with the status that it has now.
#[derive(Clone, Debug, FromRow, Serialize, ToSchema)]
pub struct StoredCommitment {
    /// Identity.
    pub id: CommittedUsePlanId,
    /// Tenant.
    pub organization_id: OrganizationId,
    /// Customer bound by the commitment.
    pub customer_id: CustomerId,
    /// Subscription that it is attached to.
    pub subscription_id: SubscriptionId,
    /// Metered product.
    pub product_id: ProductId,
    /// Its metric.
    pub metric_key: String,
    /// The subscription's.
    pub currency: Currency,
    /// Least quantity per commitment period.
    pub committed_quantity: Quantity,
    /// How long a commitment period is.
    pub commitment_period: CommitmentPeriod,
    /// Length of the term.
    pub term_months: i32,
    /// Discounted rate per unit, in `currency`.
    #[schema(value_type = String)]
    pub committed_rate: Decimal,
    /// Price of what exceeds the commitment; null: the one that resolves.
    #[schema(required)]
    pub overage_price_id: Option<PriceId>,
    /// When what falls short is billed.
    pub shortfall_policy: ShortfallPolicy,
    /// Where it is in its life.
    pub status: CommittedUsePlanStatus,
    /// Start of the term.
    pub starts_at: DateTime<Utc>,
    /// End of the term, exclusive.
    pub ends_at: DateTime<Utc>,
    /// When it ends before its term; a cancellation ahead stands here before it takes effect.
    #[schema(required)]
    pub cancelled_at: Option<DateTime<Utc>>,
    /// Counts the changes.
    pub version: i32,
    /// Free values.
    #[schema(value_type = Object)]
    pub metadata: Json<JsonMap>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed last.
    pub updated_at: DateTime<Utc>,
    /// The present of its subscription, by which the status was told.
    #[serde(skip)]
    #[schema(ignore)]
    pub as_of: DateTime<Utc>,
}

/// A committed use plan with the progress of its current commitment period.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CommittedUsePlan {
    /// What is stored.
    #[serde(flatten)]
    pub stored: StoredCommitment,
    /// Start of the commitment period that runs; null outside the term.
    #[schema(required)]
    pub current_period_start: Option<DateTime<Utc>>,
    /// Its end, exclusive.
    #[schema(required)]
    pub current_period_end: Option<DateTime<Utc>>,
    /// Used of it so far, after allowances; of a plan that is over: of its last period.
    pub used_quantity: Quantity,
    /// What may still be used at the discounted rate; of a plan that is over: nothing.
    pub remaining_quantity: Quantity,
    /// What falls short of the commitment, as far as it is used now.
    pub shortfall_quantity: Quantity,
}
