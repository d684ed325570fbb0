//! What reservations answer (reserve.md 2).

use chrono::{DateTime, Utc};
use domain::{Currency, HoldId, Money, PriceId, Result, UsageEventId, VersionId, WalletId, WalletTransactionId};
use ledger::wallet::{HoldStatus, reserve_outcome};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use store::DomainEvent;
use uuid::Uuid;

domain::wire_enum! {
    /// How a reservation ended.
    pub enum ReserveStatus {
        /// The hold is placed.
        Held = "held",
        /// The service must not be delivered; nothing is held.
        Blocked = "blocked",
        /// The product's policy drops usage of this key; nothing is held.
        Dropped = "dropped",
    }
}

domain::wire_enum! {
    /// Why the service must not be delivered.
    pub enum BlockedReason {
        /// The prepaid wallet has not enough.
        InsufficientFunds = "INSUFFICIENT_FUNDS",
        /// The postpaid wallet would pass its limit.
        CreditLimitExceeded = "CREDIT_LIMIT_EXCEEDED",
        /// Nothing is left of an allowance that ends the usage.
        AllowanceExhausted = "ALLOWANCE_EXHAUSTED",
        /// A usage cap is reached.
        UsageCapReached = "USAGE_CAP_REACHED",
        /// The subscription has not begun, or is over.
        SubscriptionNotActive = "SUBSCRIPTION_NOT_ACTIVE",
        /// The subscription is paused.
        SubscriptionSuspended = "SUBSCRIPTION_SUSPENDED",
        /// The customer is not in use.
        CustomerInactive = "CUSTOMER_INACTIVE",
    }
}

/// `internal.reserve.ReserveResponse`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReserveResponse {
    /// How it ended.
    pub status: ReserveStatus,
    /// Whether the service may be delivered.
    pub can_proceed: bool,
    /// Why not.
    pub blocked_reasons: Vec<BlockedReason>,
    /// The hold.
    #[schema(required)]
    pub hold_id: Option<HoldId>,
    /// The same id.
    #[schema(required)]
    pub transaction_id: Option<Uuid>,
    /// The wallet that holds.
    #[schema(required)]
    pub wallet_id: Option<WalletId>,
    /// End of the hold.
    #[schema(required)]
    pub expires_at: Option<DateTime<Utc>>,
    /// Currency of the price.
    #[schema(required)]
    pub resolved_currency: Option<Currency>,
    /// The price.
    #[schema(required)]
    pub price_id: Option<PriceId>,
    /// Its version.
    #[schema(required)]
    pub price_version_id: Option<VersionId>,
    /// What the quantity costs on top of what is counted and promised.
    #[schema(required)]
    pub net_amount: Option<Money>,
    /// Tax on it.
    #[schema(required)]
    pub tax_amount: Option<Money>,
    /// Both, as held.
    #[schema(required)]
    pub held_amount: Option<Money>,
    /// What the wallet has left.
    #[schema(required)]
    pub available_after: Option<Money>,
    /// Percent.
    #[schema(required, value_type = Option<String>)]
    pub tax_rate: Option<Decimal>,
    /// Tax rule; null where none applies.
    #[schema(required)]
    pub tax_rule_id: Option<Uuid>,
    /// Exchange rate; null where nothing was converted.
    #[schema(required)]
    pub fx_rate_id: Option<Uuid>,
}

impl ReserveResponse {
    /// An answer without a hold and without a price.
    pub(super) fn without_hold(status: ReserveStatus, blocked_reasons: Vec<BlockedReason>) -> Self {
        Self {
            status,
            can_proceed: false,
            blocked_reasons,
            hold_id: None,
            transaction_id: None,
            wallet_id: None,
            expires_at: None,
            resolved_currency: None,
            price_id: None,
            price_version_id: None,
            net_amount: None,
            tax_amount: None,
            held_amount: None,
            available_after: None,
            tax_rate: None,
            tax_rule_id: None,
            fx_rate_id: None,
        }
    }

    /// What is told of a reservation without a hold.
    pub(super) fn refusal(&self) -> Result<DomainEvent<'static>> {
        let outcome = if self.status == ReserveStatus::Dropped { "DROPPED" } else { "BLOCKED" };
        let reasons: Vec<&str> = self.blocked_reasons.iter().map(|reason| reason.as_str()).collect();
        let amount = self.net_amount.zip(self.tax_amount).map(|(net, tax)| net.add(tax)).transpose()?;
        reserve_outcome(None, outcome, &reasons, amount)
    }
}

/// What became of a reservation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReservationOutcome {
    /// The hold.
    pub hold_id: HoldId,
    /// Its state.
    #[schema(value_type = HoldStatus)]
    pub status: HoldStatus,
    /// The usage event of the capture.
    #[schema(required)]
    pub usage_event_id: Option<UsageEventId>,
    /// What was charged.
    pub captured_amount: Money,
    /// What was given back.
    pub released_amount: Money,
    /// Movement of the wallet; null where no money was at stake.
    #[schema(required)]
    pub wallet_transaction_id: Option<WalletTransactionId>,
}
