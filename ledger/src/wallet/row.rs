//! From rows of the database to the types of the wire. A row that breaks a rule (an amount with too many decimals) is
//! an error of its column, never a panic.

use domain::{Clock, Currency, Instant, Money, Scope, SubscriptionId, WalletMode};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use store::{money, optional_money};

use super::model::{ReservedFor, Wallet, WalletDTO, WalletHold, WalletTransaction};

/// Columns of a [`WalletRow`], from [`WALLET_FROM`].
pub(super) const WALLET_COLUMNS: &str = "wallet.*, customer.mode, test_clock.frozen_at AS clock_at,
    (SELECT coalesce(round(sum(usage_accrual.accrued * coalesce(usage_accrual.fx_rate, 1)), 12), 0) FROM usage_accrual
     WHERE usage_accrual.wallet_id = wallet.id AND NOT usage_accrual.closed) AS accrued,
    (SELECT min(wallet_hold.expires_at) FROM wallet_hold
     WHERE wallet_hold.wallet_id = wallet.id AND wallet_hold.status = 'PENDING') AS next_hold_expiry";

/// Tables of a [`WalletRow`].
pub(super) const WALLET_FROM: &str = "wallet JOIN customer ON customer.id = wallet.customer_id
    LEFT JOIN test_clock ON test_clock.id = customer.test_clock_id";

/// A wallet with what decides about its money.
#[derive(Clone, Debug)]
pub(super) struct WalletRow {
    pub wallet: Wallet,
    /// Sum of the open accruals.
    pub accrued: Money,
    /// Time of the customer's test clock, if it has one.
    pub clock_at: Option<Instant>,
    /// The earliest expiry of a PENDING hold.
    pub next_hold_expiry: Option<Instant>,
}

impl WalletRow {
    /// What time it is for this wallet: the given instant, or that of the customer's test clock, which stands in for
    /// the machine's.
    pub fn now(&self, scope: &Scope) -> Instant {
        match (scope.clock, self.clock_at) {
            (Clock::System, Some(frozen)) => frozen,
            _ => scope.now(),
        }
    }

    /// Whether promotional credit has lapsed that is still in the balance.
    pub fn promotional_is_due(&self, now: Instant) -> bool {
        !self.wallet.promotional_balance.is_zero() && self.expiry_has_passed(now)
    }

    /// Whether the expiry lies behind; settings may have named it while the balance was empty.
    pub fn expiry_has_passed(&self, now: Instant) -> bool {
        self.wallet.promotional_balance_expires_at.is_some_and(|expires_at| expires_at <= now)
    }

    /// Whether a hold has lapsed that is still PENDING.
    pub fn holds_are_due(&self, now: Instant) -> bool {
        self.next_hold_expiry.is_some_and(|expires_at| expires_at <= now)
    }

    /// How far below zero cash may go: the credit limit when POSTPAID, else nothing.
    pub fn credit(&self) -> Money {
        let none = Money::zero(self.wallet.currency);
        match self.wallet.mode {
            WalletMode::Postpaid => self.wallet.credit_limit.unwrap_or(none),
            WalletMode::Prepaid => none,
        }
    }

    /// What can be spent; what has lapsed must have been written off before.
    pub fn available(&self) -> domain::Result<Money> {
        let wallet = &self.wallet;
        let own = wallet.cash_balance.add(wallet.promotional_balance)?;
        Ok(own.sub(wallet.held_balance)?.sub(self.accrued)?.add(self.credit())?)
    }

    pub fn into_dto(self) -> domain::Result<WalletDTO> {
        let available_balance = self.available()?;
        Ok(WalletDTO { wallet: self.wallet, accrued_balance: self.accrued, available_balance })
    }
}

/// Running totals may carry more decimals than can be booked; only the invoice books.
fn accrued(row: &PgRow, currency: Currency) -> sqlx::Result<Money> {
    Money::round(row.try_get("accrued")?, currency)
        .map_err(|error| sqlx::Error::ColumnDecode { index: "accrued".to_owned(), source: Box::new(error) })
}

impl FromRow<'_, PgRow> for WalletRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        let wallet = Wallet {
            id: row.try_get("id")?,
            organization_id: row.try_get("organization_id")?,
            customer_id: row.try_get("customer_id")?,
            currency,
            mode: row.try_get("mode")?,
            is_primary: row.try_get("is_primary")?,
            cash_balance: money(row, "cash_balance", currency)?,
            promotional_balance: money(row, "promotional_balance", currency)?,
            promotional_balance_expires_at: row.try_get("promotional_balance_expires_at")?,
            held_balance: money(row, "held_balance", currency)?,
            credit_limit: optional_money(row, "credit_limit", currency)?,
            max_balance: optional_money(row, "max_balance", currency)?,
            max_single_credit: optional_money(row, "max_single_credit", currency)?,
            low_balance_threshold: optional_money(row, "low_balance_threshold", currency)?,
            auto_topup_enabled: row.try_get("auto_topup_enabled")?,
            auto_topup_amount: optional_money(row, "auto_topup_amount", currency)?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
        };
        Ok(Self {
            wallet,
            accrued: accrued(row, currency)?,
            clock_at: row.try_get("clock_at")?,
            next_hold_expiry: row.try_get("next_hold_expiry")?,
        })
    }
}

impl FromRow<'_, PgRow> for WalletTransaction {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        let metadata: sqlx::types::Json<domain::JsonMap> = row.try_get("metadata")?;
        Ok(Self {
            id: row.try_get("id")?,
            wallet_id: row.try_get("wallet_id")?,
            customer_id: row.try_get("customer_id")?,
            transaction_type: row.try_get("type")?,
            source: row.try_get("source")?,
            amount: money(row, "amount", currency)?,
            balance_kind: row.try_get("balance_kind")?,
            cash_balance_after: money(row, "cash_balance_after", currency)?,
            promotional_balance_after: money(row, "promotional_balance_after", currency)?,
            group_id: row.try_get("group_id")?,
            reference_type: row.try_get("reference_type")?,
            reference_id: row.try_get("reference_id")?,
            hold_id: row.try_get("hold_id")?,
            description: row.try_get("description")?,
            idempotency_key: row.try_get("idempotency_key")?,
            metadata: metadata.0,
            created_at: row.try_get("created_at")?,
        })
    }
}

impl FromRow<'_, PgRow> for WalletHold {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        let subscription_id: Option<SubscriptionId> = row.try_get("subscription_id")?;
        let metric_key: Option<String> = row.try_get("metric_key")?;
        let reserved_for = subscription_id.zip(metric_key);
        Ok(Self {
            id: row.try_get("id")?,
            organization_id: row.try_get("organization_id")?,
            wallet_id: row.try_get("wallet_id")?,
            amount: money(row, "amount", currency)?,
            captured_amount: optional_money(row, "captured_amount", currency)?,
            status: row.try_get("status")?,
            reference_type: row.try_get("reference_type")?,
            reference_id: row.try_get("reference_id")?,
            description: row.try_get("description")?,
            expires_at: row.try_get("expires_at")?,
            captured_at: row.try_get("captured_at")?,
            released_at: row.try_get("released_at")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            reserved_for: reserved_for.map(|(subscription_id, metric_key)| ReservedFor { subscription_id, metric_key }),
        })
    }
}
