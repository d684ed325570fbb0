//! What wallets look like on the wire (wallets.md, Contract). Timestamps are `Instant`s, spelled out for utoipa.

use chrono::{DateTime, Utc};
use domain::{
    CustomerId, HoldId, JsonMap, Money, OrganizationId, SubscriptionId, WalletId, WalletMode, WalletTransactionId,
    wire_enum,
};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

wire_enum! {
    /// Balance that a movement changes.
    pub enum WalletBalanceKind {
        /// Money received.
        Cash = "CASH",
        /// Credit given.
        Promotional = "PROMOTIONAL",
    }
}

wire_enum! {
    /// State of a hold; only PENDING reserves.
    pub enum HoldStatus {
        /// Reserves its amount.
        Pending = "PENDING",
        /// Became a charge.
        Captured = "CAPTURED",
        /// Given back.
        Released = "RELEASED",
        /// Lapsed.
        Expired = "EXPIRED",
    }
}

wire_enum! {
    /// Kind of a movement.
    pub enum WalletTransactionType {
        /// Money or credit in.
        Credit = "CREDIT",
        /// Money or credit out.
        Debit = "DEBIT",
        /// A reservation; moves no balance.
        Hold = "HOLD",
        /// A charged reservation.
        Capture = "CAPTURE",
        /// A reservation given back; moves no balance.
        Release = "RELEASE",
        /// In from another wallet.
        TransferIn = "TRANSFER_IN",
        /// Out to another wallet.
        TransferOut = "TRANSFER_OUT",
        /// Correction.
        Adjustment = "ADJUSTMENT",
        /// Money from a gateway.
        Topup = "TOPUP",
        /// Promotional credit that lapsed.
        Expiry = "EXPIRY",
    }
}

wire_enum! {
    /// What caused a movement.
    pub enum WalletTransactionSource {
        /// A person.
        Manual = "MANUAL",
        /// An invoice.
        Invoice = "INVOICE",
        /// A payment.
        Payment = "PAYMENT",
        /// A promotion.
        Promotion = "PROMOTION",
        /// A refund.
        Refund = "REFUND",
        /// A credit note.
        CreditNote = "CREDIT_NOTE",
        /// A top-up.
        Topup = "TOPUP",
        /// An automatic top-up.
        AutoTopup = "AUTO_TOPUP",
        /// Another wallet.
        Transfer = "TRANSFER",
        /// Captured usage.
        Usage = "USAGE",
        /// Another system.
        Migration = "MIGRATION",
        /// Kontorion itself.
        System = "SYSTEM",
    }
}

/// A wallet as stored (`domain.Wallet`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Wallet {
    /// Identity.
    pub id: WalletId,
    /// Owning organization.
    pub organization_id: OrganizationId,
    /// Owner.
    pub customer_id: CustomerId,
    /// The only currency that it moves.
    #[schema(value_type = String)]
    pub currency: domain::Currency,
    /// The customer's mode.
    pub mode: WalletMode,
    /// Whether it is the customer's one default wallet.
    pub is_primary: bool,
    /// Money received; below zero only when POSTPAID.
    pub cash_balance: Money,
    /// Credit given.
    pub promotional_balance: Money,
    /// When the whole promotional balance lapses.
    #[schema(required)]
    pub promotional_balance_expires_at: Option<DateTime<Utc>>,
    /// Sum of the PENDING holds.
    pub held_balance: Money,
    /// How far below zero cash may go when POSTPAID; none is zero.
    #[schema(required)]
    pub credit_limit: Option<Money>,
    /// Cap of cash and promotional balance after a credit.
    #[schema(required)]
    pub max_balance: Option<Money>,
    /// Cap of one credit.
    #[schema(required)]
    pub max_single_credit: Option<Money>,
    /// Cash below this starts an automatic top-up.
    #[schema(required)]
    pub low_balance_threshold: Option<Money>,
    /// Whether automatic top-up is on.
    pub auto_topup_enabled: bool,
    /// Amount of one automatic top-up.
    #[schema(required)]
    pub auto_topup_amount: Option<Money>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When a balance or a setting changed last.
    pub updated_at: DateTime<Utc>,
}

/// A wallet as reads answer it (`dto.WalletDTO`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct WalletDTO {
    /// The wallet.
    #[serde(flatten)]
    pub wallet: Wallet,
    /// Usage of open periods that will be drawn from this wallet.
    pub accrued_balance: Money,
    /// What can be spent: cash + promotional − held − accrued, and the credit limit when POSTPAID.
    pub available_balance: Money,
}

/// A movement of a wallet (`domain.WalletTransaction`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WalletTransaction {
    /// Identity.
    pub id: WalletTransactionId,
    /// The wallet.
    pub wallet_id: WalletId,
    /// Its owner.
    pub customer_id: CustomerId,
    /// Kind.
    #[serde(rename = "type")]
    pub transaction_type: WalletTransactionType,
    /// Cause.
    pub source: WalletTransactionSource,
    /// Signed; 0 for HOLD and RELEASE, which move no balance (`hold_id` leads to the amount).
    pub amount: Money,
    /// The balance that it changes.
    pub balance_kind: WalletBalanceKind,
    /// Cash after it.
    pub cash_balance_after: Money,
    /// Promotional balance after it.
    pub promotional_balance_after: Money,
    /// Shared by the movements of one operation that touched both balances.
    #[schema(required)]
    pub group_id: Option<Uuid>,
    /// What it belongs to, e.g. `invoice`.
    #[schema(required)]
    pub reference_type: Option<String>,
    /// Its id.
    #[schema(required)]
    pub reference_id: Option<Uuid>,
    /// The hold that it places, charges or gives back.
    #[schema(required)]
    pub hold_id: Option<HoldId>,
    /// For people.
    #[schema(required)]
    pub description: Option<String>,
    /// The key that the caller gave the operation.
    #[schema(required)]
    pub idempotency_key: Option<String>,
    /// The caller's own.
    #[schema(value_type = Object)]
    pub metadata: JsonMap,
    /// When it was booked.
    pub created_at: DateTime<Utc>,
}

/// A reservation (`domain.WalletHold`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WalletHold {
    /// Identity.
    pub id: HoldId,
    /// Owning organization.
    pub organization_id: OrganizationId,
    /// The wallet that holds.
    pub wallet_id: WalletId,
    /// What is reserved.
    pub amount: Money,
    /// What was charged of it.
    #[schema(required)]
    pub captured_amount: Option<Money>,
    /// State.
    pub status: HoldStatus,
    /// What it belongs to.
    #[schema(required)]
    pub reference_type: Option<String>,
    /// Its id.
    #[schema(required)]
    pub reference_id: Option<Uuid>,
    /// For people.
    #[schema(required)]
    pub description: Option<String>,
    /// From this instant on it no longer reserves.
    pub expires_at: DateTime<Utc>,
    /// When it became a charge.
    #[schema(required)]
    pub captured_at: Option<DateTime<Utc>>,
    /// When it was given back or lapsed.
    #[schema(required)]
    pub released_at: Option<DateTime<Utc>>,
    /// When it was placed.
    pub created_at: DateTime<Utc>,
    /// When its state changed last.
    pub updated_at: DateTime<Utc>,
    /// The usage that it authorizes; none for a hold by amount.
    #[serde(skip)]
    #[schema(ignore)]
    pub reserved_for: Option<ReservedFor>,
}

/// What a hold on usage is for: while it is PENDING, usage events of the pair must name it (reserve.md V7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedFor {
    /// The subscription.
    pub subscription_id: SubscriptionId,
    /// Its metric.
    pub metric_key: String,
}

/// Both sides of a transfer between wallets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WalletTransferResult {
    /// Out of the source.
    pub debit: WalletTransaction,
    /// Into the target.
    pub credit: WalletTransaction,
    /// Rate of the conversion; null within one currency.
    #[schema(required, value_type = Option<String>)]
    pub fx_rate: Option<Decimal>,
}
