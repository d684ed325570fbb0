//! A subscription and its items as they are stored and shown (subscriptions.md 2).

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use domain::period::{Period, Schedule};
use domain::{
    BillingIntervalUnit, BillingTiming, ChargeKind, Currency, CustomerId, Error, JsonMap, OrganizationId, PhaseId,
    PlanId, PriceId, PricingModel, ProductId, ProductType, Result, SubscriptionId, SubscriptionItemId, TestClockId,
    VersionId, WorkspaceId,
};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;
use utoipa::ToSchema;

use super::drift::SubscriptionDriftSummary;
use super::words::{CancellationReason, DunningStage, SubscriptionStatus, VersionTrackMode};
use crate::control::WindowRef;

/// Columns of [`Subscription`].
pub(crate) const COLUMNS: &str = "id, organization_id, workspace_id, customer_id, home_partition, name, description, \
     public_description, plan_id, plan_version, plan_version_id, currency, billing_interval_unit, billing_interval_count, \
     billing_anchor_day, anchor_is_explicit, billing_timing, timezone, auto_renew, trial_duration_days, trial_ends_at, \
     started_at, first_period_start, schedule_restarts, activated_at, current_period_start, current_period_end, next_billing_date, ended_at, status, \
     cancel_at_period_end, cancelled_at, expired_at, cancellation_reason, paused_at, resumed_at, dunning_stage, \
     current_phase_id, payment_terms_days, version_track, test_clock_id, version, custom_fields, metadata, created_at, \
     updated_at, deleted_at";

/// A standing agreement between one customer and one plan version. Members that are not of the contract stay inside.
#[derive(Clone, Debug, FromRow, Serialize, ToSchema)]
pub struct Subscription {
    /// Identity.
    pub id: SubscriptionId,
    /// Tenant.
    pub organization_id: OrganizationId,
    /// Data space.
    #[serde(skip)]
    #[schema(ignore)]
    pub workspace_id: WorkspaceId,
    /// Owner.
    pub customer_id: CustomerId,
    /// The partition of its usage events for life (rule A5).
    #[serde(skip)]
    #[schema(ignore)]
    pub home_partition: i32,
    /// Label.
    #[schema(required)]
    pub name: Option<String>,
    /// For the team.
    #[schema(required)]
    pub description: Option<String>,
    /// For the customer.
    #[schema(required)]
    pub public_description: Option<String>,
    /// Plan.
    pub plan_id: PlanId,
    /// The pinned version; never the mutable plan.
    pub plan_version: i32,
    /// The same version by id.
    pub plan_version_id: VersionId,
    /// Of every item, invoice and credit note.
    pub currency: Currency,
    /// Unit of a period's length.
    pub billing_interval_unit: BillingIntervalUnit,
    /// Multiplier of the unit.
    pub billing_interval_count: i32,
    /// Day of month 1 to 28 on which periods begin.
    pub billing_anchor_day: i32,
    /// Whether that day was asked for.
    #[serde(skip)]
    #[schema(ignore)]
    pub anchor_is_explicit: bool,
    /// When recurring charges are billed.
    pub billing_timing: BillingTiming,
    /// Of the organization at creation: boundaries are at its midnight.
    #[serde(skip)]
    #[schema(ignore)]
    pub timezone: String,
    /// Whether a new period starts at the end of one.
    pub auto_renew: bool,
    /// Length of the trial.
    #[schema(required)]
    pub trial_duration_days: Option<i32>,
    /// End of the trial.
    #[schema(required)]
    pub trial_ends_at: Option<DateTime<Utc>>,
    /// Start.
    pub started_at: DateTime<Utc>,
    /// Start of the first charged period.
    #[serde(skip)]
    #[schema(ignore)]
    pub first_period_start: DateTime<Utc>,
    /// When periods began anew after a pause, in order.
    #[serde(skip)]
    #[schema(ignore)]
    pub schedule_restarts: Vec<DateTime<Utc>>,
    /// First entry into ACTIVE.
    #[schema(required)]
    pub activated_at: Option<DateTime<Utc>>,
    /// First instant of the running period; of the trial while TRIALING.
    #[schema(required)]
    pub current_period_start: Option<DateTime<Utc>>,
    /// The instant at which the next charge is cut.
    #[schema(required)]
    pub current_period_end: Option<DateTime<Utc>>,
    /// Null when nothing will be billed by itself.
    #[schema(required)]
    pub next_billing_date: Option<DateTime<Utc>>,
    /// Events at or after it are refused.
    #[serde(skip)]
    #[schema(ignore)]
    pub ended_at: Option<DateTime<Utc>>,
    /// State.
    pub status: SubscriptionStatus,
    /// Statuses reachable now.
    #[sqlx(skip)]
    pub allowed_transitions: Vec<SubscriptionStatus>,
    /// A cancellation waits for the period's end.
    pub cancel_at_period_end: bool,
    /// Entry into CANCELLED.
    #[schema(required)]
    pub cancelled_at: Option<DateTime<Utc>>,
    /// Entry into EXPIRED.
    #[schema(required)]
    pub expired_at: Option<DateTime<Utc>>,
    /// Why it was closed.
    #[schema(required)]
    pub cancellation_reason: Option<CancellationReason>,
    /// Last entry into PAUSED.
    #[schema(required)]
    pub paused_at: Option<DateTime<Utc>>,
    /// Last return from PAUSED.
    #[schema(required)]
    pub resumed_at: Option<DateTime<Utc>>,
    /// Only while DUNNING.
    #[schema(required)]
    pub dunning_stage: Option<DunningStage>,
    /// Active phase; null only when the subscription is closed.
    #[schema(required)]
    pub current_phase_id: Option<PhaseId>,
    /// Own terms over those of the organization.
    #[schema(required)]
    pub payment_terms_days: Option<i32>,
    /// Whether it follows new plan versions.
    pub version_track: VersionTrackMode,
    /// Its simulated time.
    #[schema(required)]
    pub test_clock_id: Option<TestClockId>,
    /// Optimistic lock.
    pub version: i32,
    /// Typed values.
    #[schema(value_type = Object)]
    pub custom_fields: Json<JsonMap>,
    /// Free values.
    #[schema(value_type = Object)]
    pub metadata: Json<JsonMap>,
    /// Creation.
    pub created_at: DateTime<Utc>,
    /// Last change.
    pub updated_at: DateTime<Utc>,
    /// Soft deletion.
    #[schema(required)]
    pub deleted_at: Option<DateTime<Utc>>,
}

impl Subscription {
    /// Fills what is computed and not stored. Every read goes through here.
    #[must_use]
    pub(crate) fn ready(mut self) -> Self {
        self.allowed_transitions = self.status.transitions(self.is_past_term());
        self
    }

    /// Whether its last period was closed and no new one starts. The only period of a `one_time` subscription has no end.
    #[must_use]
    pub fn is_past_term(&self) -> bool {
        self.ended_at.is_some() && !self.status.is_terminal()
    }

    /// The arithmetic of its charged periods.
    ///
    /// # Errors
    /// `Internal` for a time zone that this build does not know.
    pub fn schedule(&self) -> Result<Schedule> {
        let timezone: Tz = self
            .timezone
            .parse()
            .map_err(|_| Error::invariant(format!("subscription {}: unknown time zone {}", self.id, self.timezone)))?;
        Ok(Schedule {
            first_start: self.first_period_start,
            unit: self.billing_interval_unit,
            count: self.billing_interval_count.unsigned_abs(),
            anchor_day: self.billing_anchor_day.unsigned_abs(),
            is_anchor_explicit: self.anchor_is_explicit,
            restarts: self.schedule_restarts.clone(),
            timezone,
        })
    }

    /// The running charged period; none before the first and after the last.
    #[must_use]
    pub fn current_period(&self) -> Option<Period> {
        self.current_period_start.zip(self.current_period_end).map(|(start, end)| Period { start, end })
    }

    /// Its usage window over this period.
    #[must_use]
    pub fn window(&self, period: Period) -> WindowRef {
        WindowRef {
            workspace_id: self.workspace_id,
            subscription_id: self.id,
            customer_id: self.customer_id,
            home_partition: self.home_partition,
            window_start: period.start,
            window_end: period.end,
        }
    }

    /// Refuses a change of state that the state machine does not know.
    ///
    /// # Errors
    /// `Conflict` with `INVALID_TRANSITION` and its documented extensions.
    pub(crate) fn refuse_transition<T>(&self, to: SubscriptionStatus) -> Result<T> {
        let allowed = self.status.transitions(self.is_past_term());
        let allowed: Vec<_> = allowed.into_iter().map(SubscriptionStatus::as_str).collect();
        Err(Error::invalid_transition("subscription", self.id, self.status.as_str(), to.as_str(), &allowed))
    }
}

/// Columns of [`SubscriptionItemDTO`], from `subscription_item` joined with `product`.
pub(crate) const ITEM_COLUMNS: &str = "item.id, item.workspace_id, item.subscription_id, item.product_id, \
     item.product_version_id, item.price_id, item.price_version_id, item.price_key, item.quantity, item.unit_amount, \
     item.included_quantity, item.charge_kind, item.billing_timing, item.added_at, item.removed_at, item.metadata, \
     item.created_at, item.updated_at, product.name AS product_name, product.type AS product_type, product.pricing_model";

/// What of a subscription is charged.
#[derive(Clone, Debug, FromRow, Serialize, ToSchema)]
pub struct SubscriptionItem {
    /// Identity.
    pub id: SubscriptionItemId,
    /// Its subscription.
    pub subscription_id: SubscriptionId,
    /// What is charged.
    pub product_id: ProductId,
    /// Pinned version of the product.
    #[schema(required)]
    pub product_version_id: Option<VersionId>,
    /// Price that was asked for, or that applied at creation.
    #[schema(required)]
    pub price_id: Option<PriceId>,
    /// Its version then.
    #[schema(required)]
    pub price_version_id: Option<VersionId>,
    /// Sibling of a keyed product.
    #[schema(required)]
    pub price_key: Option<String>,
    /// Units, seats.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// Rate for this subscription only.
    #[schema(required, value_type = Option<String>)]
    pub unit_amount: Option<Decimal>,
    /// Allowance for this subscription only.
    #[schema(required, value_type = Option<String>)]
    pub included_quantity: Option<Decimal>,
    /// Every period, from usage, or once.
    pub charge_kind: ChargeKind,
    /// When it is billed.
    pub billing_timing: BillingTiming,
    /// Since when.
    pub added_at: DateTime<Utc>,
    /// Until when.
    #[schema(required)]
    pub removed_at: Option<DateTime<Utc>>,
    /// Free values.
    #[schema(value_type = Object)]
    pub metadata: Json<JsonMap>,
    /// Creation.
    pub created_at: DateTime<Utc>,
    /// Last change.
    pub updated_at: DateTime<Utc>,
}

/// An item with what its product says.
#[derive(Clone, Debug, FromRow, Serialize, ToSchema)]
pub struct SubscriptionItemDTO {
    /// The item.
    #[serde(flatten)]
    #[sqlx(flatten)]
    pub item: SubscriptionItem,
    /// Name of the product.
    pub product_name: String,
    /// Type of the product.
    pub product_type: ProductType,
    /// How its tiers are walked.
    pub pricing_model: PricingModel,
}

/// A subscription with its items.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SubscriptionDTO {
    /// The record.
    #[serde(flatten)]
    pub subscription: Subscription,
    /// What is charged, in the order of creation.
    pub items: Vec<SubscriptionItemDTO>,
    /// Only when it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<SubscriptionDriftSummary>,
}
