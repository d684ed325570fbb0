//! Bodies of the wallet operations (wallets.md, Contract). Timestamps are `Instant`s, spelled out for utoipa. Amounts have at most the decimals of their currency: more is
//! refused, never rounded.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{Currency, CustomerId, Input, JsonMap, Money, Patch, Result, WalletId};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::batch::Details;
use super::model::{WalletBalanceKind, WalletTransactionSource};

const DESCRIPTION_MAX: usize = 1000;

/// `domain.CreateWalletRequest`.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
pub struct CreateWalletRequest {
    /// Owner; may be left out when it is in the path.
    #[schema(required = false)]
    pub customer_id: Option<CustomerId>,
    /// ISO 4217, upper case.
    #[schema(value_type = String)]
    pub currency: Currency,
    /// Default false.
    pub auto_topup_enabled: Option<bool>,
    /// Amount of one automatic top-up, in `currency`.
    #[schema(value_type = Option<String>)]
    pub auto_topup_amount: Option<Decimal>,
    /// Cash below this starts an automatic top-up.
    #[schema(value_type = Option<String>)]
    pub low_balance_threshold: Option<Decimal>,
    /// How far below zero cash may go when POSTPAID.
    #[schema(value_type = Option<String>)]
    pub credit_limit: Option<Decimal>,
    /// Cap of cash and promotional balance after a credit.
    #[schema(value_type = Option<String>)]
    pub max_balance: Option<Decimal>,
    /// Cap of one credit.
    #[schema(value_type = Option<String>)]
    pub max_single_credit: Option<Decimal>,
}

impl CreateWalletRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let customer_id = input.optional("customer_id", Field::id);
        let currency = input.required("currency", Field::currency);
        // An unreadable currency is reported; the amounts are then read as if it had two decimals.
        let governed = currency.unwrap_or(Currency::EUR);
        let request = Self {
            customer_id,
            currency: governed,
            auto_topup_enabled: input.optional("auto_topup_enabled", Field::boolean),
            auto_topup_amount: input.optional("auto_topup_amount", |v| positive_amount(v, governed)),
            low_balance_threshold: input.optional("low_balance_threshold", |v| amount(v, governed)),
            credit_limit: input.optional("credit_limit", |v| amount(v, governed)),
            max_balance: input.optional("max_balance", |v| amount(v, governed)),
            max_single_credit: input.optional("max_single_credit", |v| amount(v, governed)),
        };
        input.finish()?;
        Ok(request)
    }
}

/// `domain.UpdateWalletSettingsRequest`: sent members change, null clears.
#[derive(Clone, Debug, Default, PartialEq, Eq, ToSchema)]
pub struct UpdateWalletSettingsRequest {
    /// Whether automatic top-up is on.
    pub auto_topup_enabled: Option<bool>,
    /// Amount of one automatic top-up.
    #[schema(value_type = Option<String>)]
    pub auto_topup_amount: Patch<Decimal>,
    /// Cash below this starts an automatic top-up.
    #[schema(value_type = Option<String>)]
    pub low_balance_threshold: Patch<Decimal>,
    /// How far below zero cash may go when POSTPAID.
    #[schema(value_type = Option<String>)]
    pub credit_limit: Patch<Decimal>,
    /// Cap of cash and promotional balance after a credit.
    #[schema(value_type = Option<String>)]
    pub max_balance: Patch<Decimal>,
    /// Cap of one credit.
    #[schema(value_type = Option<String>)]
    pub max_single_credit: Patch<Decimal>,
    /// When the whole promotional balance lapses.
    #[schema(value_type = Option<DateTime<Utc>>)]
    pub promotional_balance_expires_at: Patch<DateTime<Utc>>,
}

impl UpdateWalletSettingsRequest {
    /// Reads the body. Decimals are checked against the wallet's currency when it is known.
    ///
    /// # Errors
    /// `Rule` for `mode` or `currency`, which are no settings; `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        for (name, why) in [("mode", "is changed on the customer"), ("currency", "of a wallet never changes")] {
            if input.has(name) {
                return Err(domain::Error::business_rule(format!("{name} {why}")).with("field", name));
            }
        }
        let request = Self {
            auto_topup_enabled: input.optional("auto_topup_enabled", Field::boolean),
            auto_topup_amount: input.patch("auto_topup_amount", Field::rate),
            low_balance_threshold: input.patch("low_balance_threshold", Field::rate),
            credit_limit: input.patch("credit_limit", Field::rate),
            max_balance: input.patch("max_balance", Field::rate),
            max_single_credit: input.patch("max_single_credit", Field::rate),
            promotional_balance_expires_at: input.patch("promotional_balance_expires_at", Field::instant),
        };
        input.finish()?;
        Ok(request)
    }
}

/// `domain.CreditRequest`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct CreditRequest {
    /// What is added; above zero.
    pub amount: Money,
    /// Whether it is promotional credit. Default false: cash.
    #[schema(required = false)]
    pub is_promotional: bool,
    /// Cause. Default MANUAL.
    #[schema(required = false)]
    pub source: WalletTransactionSource,
    /// For people.
    pub description: Option<String>,
    /// What it belongs to.
    pub reference_type: Option<String>,
    /// Its id.
    pub reference_id: Option<Uuid>,
    /// When promotional credit lapses.
    pub expires_at: Option<DateTime<Utc>>,
    /// A repeat with the same key answers 200 with the first result.
    pub idempotency_key: Option<String>,
    /// The caller's own.
    #[schema(value_type = Object, required = false)]
    pub metadata: JsonMap,
}

impl CreditRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let amount = input.required("amount", Field::money_positive);
        let is_promotional = input.optional("is_promotional", Field::boolean).unwrap_or(false);
        let expires_at = input.optional("expires_at", Field::instant);
        if expires_at.is_some() && !is_promotional {
            input.error("expires_at", Code::NotAllowed, "only promotional credit expires");
        }
        let common = Common::read(&mut input);
        input.finish()?;
        Ok(Self {
            amount: checked(amount)?,
            is_promotional,
            source: common.source,
            description: common.description,
            reference_type: common.reference_type,
            reference_id: common.reference_id,
            expires_at,
            idempotency_key: common.idempotency_key,
            metadata: common.metadata,
        })
    }

    pub(super) fn details(&self) -> Details {
        Details {
            source: self.source,
            description: self.description.clone(),
            reference_type: self.reference_type.clone(),
            reference_id: self.reference_id,
            idempotency_key: self.idempotency_key.clone(),
            metadata: self.metadata.clone(),
        }
    }
}

/// `domain.DebitRequest`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct DebitRequest {
    /// What is taken; above zero.
    pub amount: Money,
    /// Cause. Default MANUAL.
    #[schema(required = false)]
    pub source: WalletTransactionSource,
    /// For people.
    pub description: Option<String>,
    /// What it belongs to.
    pub reference_type: Option<String>,
    /// Its id.
    pub reference_id: Option<Uuid>,
    /// A repeat with the same key answers 200 with the first result.
    pub idempotency_key: Option<String>,
    /// The caller's own.
    #[schema(value_type = Object, required = false)]
    pub metadata: JsonMap,
}

impl DebitRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let amount = input.required("amount", Field::money_positive);
        let common = Common::read(&mut input);
        input.finish()?;
        Ok(Self {
            amount: checked(amount)?,
            source: common.source,
            description: common.description,
            reference_type: common.reference_type,
            reference_id: common.reference_id,
            idempotency_key: common.idempotency_key,
            metadata: common.metadata,
        })
    }

    pub(super) fn details(&self) -> Details {
        Details {
            source: self.source,
            description: self.description.clone(),
            reference_type: self.reference_type.clone(),
            reference_id: self.reference_id,
            idempotency_key: self.idempotency_key.clone(),
            metadata: self.metadata.clone(),
        }
    }
}

/// `domain.AdjustRequest`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct AdjustRequest {
    /// Signed; not zero.
    pub amount: Money,
    /// Why.
    pub reason: String,
    /// Which balance. Default CASH.
    #[schema(required = false)]
    pub balance: WalletBalanceKind,
    /// A repeat with the same key answers 200 with the first result.
    pub idempotency_key: Option<String>,
    /// The caller's own.
    #[schema(value_type = Object, required = false)]
    pub metadata: JsonMap,
}

impl AdjustRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let amount = input.required("amount", money_not_zero);
        let reason = input.required("reason", |v| v.text(1, DESCRIPTION_MAX));
        let balance = input.optional("balance", Field::word);
        let idempotency_key = input.optional("idempotency_key", |v| v.text(1, 255));
        let metadata = metadata(&mut input);
        input.finish()?;
        Ok(Self {
            amount: checked(amount)?,
            reason: checked(reason)?,
            balance: balance.unwrap_or(WalletBalanceKind::Cash),
            idempotency_key,
            metadata,
        })
    }

    pub(super) fn details(&self) -> Details {
        Details {
            description: Some(self.reason.clone()),
            idempotency_key: self.idempotency_key.clone(),
            metadata: self.metadata.clone(),
            ..Details::of(WalletTransactionSource::Manual)
        }
    }
}

/// `domain.TransferRequest`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TransferRequest {
    /// Target.
    pub to_wallet_id: WalletId,
    /// In the currency of the source; above zero.
    pub amount: Money,
    /// Units of the target's currency for one of the source's; default: the rate in effect (fx.md 4).
    #[schema(value_type = Option<String>)]
    pub fx_rate: Option<Decimal>,
    /// For people.
    pub description: Option<String>,
    /// A repeat with the same key answers 200 with the first result.
    pub idempotency_key: Option<String>,
}

impl TransferRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let to_wallet_id = input.required("to_wallet_id", Field::id);
        let amount = input.required("amount", Field::money_positive);
        let fx_rate = input.optional("fx_rate", Field::exchange_rate);
        let description = input.optional("description", |v| v.text(0, DESCRIPTION_MAX));
        let idempotency_key = input.optional("idempotency_key", |v| v.text(1, 255));
        input.finish()?;
        Ok(Self {
            to_wallet_id: checked(to_wallet_id)?,
            amount: checked(amount)?,
            fx_rate,
            description,
            idempotency_key,
        })
    }

    pub(super) fn details(&self) -> Details {
        Details {
            description: self.description.clone(),
            idempotency_key: self.idempotency_key.clone(),
            ..Details::of(WalletTransactionSource::Transfer)
        }
    }
}

/// `domain.HoldRequest`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct HoldRequest {
    /// What is reserved; above zero.
    pub amount: Money,
    /// From this instant on it no longer reserves. Default now + 7 days.
    pub expires_at: Option<DateTime<Utc>>,
    /// What it belongs to.
    pub reference_type: Option<String>,
    /// Its id.
    pub reference_id: Option<Uuid>,
    /// For people.
    pub description: Option<String>,
    /// A repeat with the same key answers 200 with the first result.
    pub idempotency_key: Option<String>,
}

impl HoldRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let amount = input.required("amount", Field::money_positive);
        let expires_at = input.optional("expires_at", Field::instant);
        let reference_type = input.optional("reference_type", |v| v.text(1, 64));
        let reference_id = input.optional("reference_id", Field::id);
        let description = input.optional("description", |v| v.text(0, DESCRIPTION_MAX));
        let idempotency_key = input.optional("idempotency_key", |v| v.text(1, 255));
        input.finish()?;
        Ok(Self { amount: checked(amount)?, expires_at, reference_type, reference_id, description, idempotency_key })
    }

    pub(super) fn details(&self) -> Details {
        Details {
            description: self.description.clone(),
            reference_type: self.reference_type.clone(),
            reference_id: self.reference_id,
            idempotency_key: self.idempotency_key.clone(),
            ..Details::of(WalletTransactionSource::Manual)
        }
    }
}

/// `domain.CaptureHoldRequest`. The members about usage belong to reservations; a hold by amount refuses them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct CaptureHoldRequest {
    /// What is charged; default the whole hold.
    pub amount: Option<Money>,
    /// Of a reservation.
    #[schema(value_type = Option<String>)]
    pub quantity: Option<Decimal>,
    /// Of a reservation.
    #[schema(value_type = Option<String>)]
    pub external_cost_amount: Option<Decimal>,
    /// Of a reservation.
    #[schema(value_type = Option<String>)]
    pub external_cost_currency: Option<Currency>,
    /// Of a reservation.
    pub timestamp: Option<DateTime<Utc>>,
    /// For people.
    pub description: Option<String>,
    /// A repeat with the same key answers 200 with the first result.
    pub idempotency_key: Option<String>,
}

impl CaptureHoldRequest {
    /// Reads the body of a capture by amount.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let amount = input.optional("amount", Field::money_positive);
        for name in ["quantity", "external_cost_amount", "external_cost_currency", "timestamp"] {
            input.optional(name, |v| v.refuse::<()>(Code::NotAllowed, "is for reservations; give amount"));
        }
        let description = input.optional("description", |v| v.text(0, DESCRIPTION_MAX));
        let idempotency_key = input.optional("idempotency_key", |v| v.text(1, 255));
        input.finish()?;
        Ok(Self { amount, description, idempotency_key, ..Self::default() })
    }

    /// Reads the body of a capture of reserved usage: quantity in the place of an amount.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read_usage(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        input.optional("amount", |v| v.refuse::<()>(Code::NotAllowed, "is for holds by amount; give quantity"));
        let quantity = input.optional("quantity", Field::rate_positive);
        let cost = input.optional("external_cost_amount", Field::rate);
        let cost_currency = input.optional("external_cost_currency", Field::currency);
        match (cost, cost_currency) {
            (Some(_), None) if !input.has("external_cost_currency") => {
                input.error("external_cost_currency", Code::Required, "is required beside external_cost_amount");
            }
            (None, Some(_)) if !input.has("external_cost_amount") => {
                input.error("external_cost_amount", Code::Required, "is required beside external_cost_currency");
            }
            _ => {}
        }
        let timestamp = input.optional("timestamp", Field::instant);
        let description = input.optional("description", |v| v.text(0, DESCRIPTION_MAX));
        let idempotency_key = input.optional("idempotency_key", |v| v.text(1, 255));
        input.finish()?;
        Ok(Self {
            quantity,
            external_cost_amount: cost,
            external_cost_currency: cost_currency,
            timestamp,
            description,
            idempotency_key,
            ..Self::default()
        })
    }
}

/// Members that credit and debit share.
struct Common {
    source: WalletTransactionSource,
    description: Option<String>,
    reference_type: Option<String>,
    reference_id: Option<Uuid>,
    idempotency_key: Option<String>,
    metadata: JsonMap,
}

impl Common {
    fn read(input: &mut Input<'_>) -> Self {
        Self {
            source: input.optional("source", Field::word).unwrap_or(WalletTransactionSource::Manual),
            description: input.optional("description", |v| v.text(0, DESCRIPTION_MAX)),
            reference_type: input.optional("reference_type", |v| v.text(1, 64)),
            reference_id: input.optional("reference_id", Field::id),
            idempotency_key: input.optional("idempotency_key", |v| v.text(1, 255)),
            metadata: metadata(input),
        }
    }
}

/// Metadata of something new: a null removes nothing and is left out.
fn metadata(input: &mut Input<'_>) -> JsonMap {
    let sent = input.optional("metadata", Field::metadata).unwrap_or_default();
    sent.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

/// `finish` has refused a missing member.
fn checked<T>(value: Option<T>) -> Result<T> {
    value.ok_or_else(|| domain::Error::invariant("a required member passed unread"))
}

fn money_not_zero(field: Field<'_>) -> FieldResult<Money> {
    let refused = field.refuse(Code::OutOfRange, "must not be zero");
    let money = field.money()?;
    if money.is_zero() { refused } else { Ok(money) }
}

/// A plain decimal that is an amount of `currency`: not negative, no decimals beyond the currency's.
fn amount(field: Field<'_>, currency: Currency) -> FieldResult<Decimal> {
    let refused: FieldResult<Decimal> =
        field.refuse(Code::OutOfRange, format!("{currency} has {} decimal places", currency.exponent()));
    let value = field.rate()?;
    if Money::new(value, currency).is_ok() { Ok(value) } else { refused }
}

fn positive_amount(field: Field<'_>, currency: Currency) -> FieldResult<Decimal> {
    let refused: FieldResult<Decimal> = field.refuse(Code::OutOfRange, "must be above zero");
    let value = amount(field, currency)?;
    if value.is_zero() { refused } else { Ok(value) }
}
