//! Making wallets: the primary with its customer, secondaries one per further currency (wallets.md, Ownership).

use currency::Purpose;
use domain::{Currency, CustomerId, Error, Money, Result, Scope, WalletId};
use rust_decimal::Decimal;
use sqlx::{AssertSqlSafe, FromRow};
use store::{StoreError, Tx, on_constraint};

use super::model::WalletDTO;
use super::request::CreateWalletRequest;
use super::row::{WALLET_COLUMNS, WALLET_FROM, WalletRow};

/// The six values that a new wallet takes from the create request, else from the customer, else from the organization's
/// settings, else not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRow)]
pub struct WalletDefaults {
    /// Whether automatic top-up is on.
    pub auto_topup_enabled: Option<bool>,
    /// Amount of one automatic top-up.
    pub auto_topup_amount: Option<Decimal>,
    /// How far below zero cash may go when POSTPAID.
    pub credit_limit: Option<Decimal>,
    /// Cash below this starts an automatic top-up.
    pub low_balance_threshold: Option<Decimal>,
    /// Cap of cash and promotional balance after a credit.
    pub max_balance: Option<Decimal>,
    /// Cap of one credit.
    pub max_single_credit: Option<Decimal>,
}

impl WalletDefaults {
    /// These values, and `other`'s where there are none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            auto_topup_enabled: self.auto_topup_enabled.or(other.auto_topup_enabled),
            auto_topup_amount: self.auto_topup_amount.or(other.auto_topup_amount),
            credit_limit: self.credit_limit.or(other.credit_limit),
            low_balance_threshold: self.low_balance_threshold.or(other.low_balance_threshold),
            max_balance: self.max_balance.or(other.max_balance),
            max_single_credit: self.max_single_credit.or(other.max_single_credit),
        }
    }

    /// Inherited values know no currency: they are rounded to that of the wallet.
    fn in_currency(self, currency: Currency) -> Result<Self> {
        let round = |value: Option<Decimal>| -> Result<Option<Decimal>> {
            Ok(value.map(|value| Money::round(value, currency)).transpose()?.map(|money| money.amount()))
        };
        Ok(Self {
            auto_topup_enabled: self.auto_topup_enabled,
            auto_topup_amount: round(self.auto_topup_amount)?.filter(|amount| !amount.is_zero()),
            credit_limit: round(self.credit_limit)?,
            low_balance_threshold: round(self.low_balance_threshold)?,
            max_balance: round(self.max_balance)?,
            max_single_credit: round(self.max_single_credit)?,
        })
    }

    fn topup_is_complete(&self) -> bool {
        self.auto_topup_amount.is_some() && self.low_balance_threshold.is_some()
    }
}

/// What a wallet is made of.
#[derive(Clone, Copy, Debug)]
pub struct NewWallet {
    /// Owner.
    pub customer_id: CustomerId,
    /// Its only currency.
    pub currency: Currency,
    /// Limits and automatic top-up.
    pub defaults: WalletDefaults,
}

/// Makes the primary wallet of a customer that this transaction creates.
///
/// # Errors
/// `CURRENCY_NOT_ENABLED` for a currency in which the workspace bills nothing.
pub async fn create_primary(scope: &Scope, tx: &mut Tx, new: NewWallet) -> Result<WalletDTO> {
    currency::require(scope, tx, new.currency, Purpose::Billing).await?;
    let organization = organization_defaults(scope, tx).await?;
    let defaults = inherited(new.defaults.or(organization), new.currency)?;
    insert(scope, tx, NewWallet { defaults, ..new }, true).await
}

/// `POST /v1/wallets` and `POST /v1/customers/{id}/wallets`: makes a secondary wallet.
///
/// # Errors
/// `NotFound` for the customer; `DUPLICATE` for a second wallet in one currency; a rule when `in_path` names another
/// customer than the body, or automatic top-up is on without amount and threshold; `CURRENCY_NOT_ENABLED`.
pub async fn create_secondary(
    scope: &Scope,
    tx: &mut Tx,
    in_path: Option<CustomerId>,
    request: &CreateWalletRequest,
) -> Result<WalletDTO> {
    let customer_id = match (in_path, request.customer_id) {
        (Some(path), Some(body)) if path != body => {
            return Err(Error::business_rule("customer_id must be the customer of the path"));
        }
        (Some(id), _) | (None, Some(id)) => id,
        (None, None) => {
            return Err(Error::field("customer_id", domain::error::FieldErrorCode::Required, "is required"));
        }
    };
    let customer = customer_defaults(scope, tx, customer_id).await?;
    let customer = customer.ok_or_else(|| Error::not_found("customer", customer_id))?;
    let sent = WalletDefaults {
        auto_topup_enabled: request.auto_topup_enabled,
        auto_topup_amount: request.auto_topup_amount,
        credit_limit: request.credit_limit,
        low_balance_threshold: request.low_balance_threshold,
        max_balance: request.max_balance,
        max_single_credit: request.max_single_credit,
    };
    let organization = organization_defaults(scope, tx).await?;
    let defaults = inherited(sent.or(customer).or(organization), request.currency)?;
    if request.auto_topup_enabled == Some(true) && !defaults.topup_is_complete() {
        return Err(incomplete_topup());
    }
    refuse_second(scope, tx, customer_id, request.currency).await?;
    currency::require(scope, tx, request.currency, Purpose::Billing).await?;
    insert(scope, tx, NewWallet { customer_id, currency: request.currency, defaults }, false).await
}

/// The wallet for money that was received from a customer, made when it is missing. The money is there: neither a currency in which
/// the workspace bills nothing any more nor a customer who was deleted stands in its way.
///
/// # Errors
/// As every statement.
pub async fn wallet_for_received(
    scope: &Scope,
    tx: &mut Tx,
    customer_id: CustomerId,
    currency: Currency,
) -> Result<WalletId> {
    if let Some(id) = wallet_for(scope, tx, customer_id, currency).await? {
        return Ok(id);
    }
    let customer = customer_defaults(scope, tx, customer_id).await?.unwrap_or_default();
    let organization = organization_defaults(scope, tx).await?;
    let defaults = inherited(customer.or(organization), currency)?;
    Ok(insert(scope, tx, NewWallet { customer_id, currency, defaults }, false).await?.wallet.id)
}

async fn refuse_second(scope: &Scope, tx: &mut Tx, customer: CustomerId, currency: Currency) -> Result<()> {
    match wallet_for(scope, tx, customer, currency).await? {
        Some(existing) => Err(Error::duplicate("currency", Some(existing.to_string()))),
        None => Ok(()),
    }
}

pub(super) fn incomplete_topup() -> Error {
    Error::business_rule("automatic top-up needs auto_topup_amount and low_balance_threshold")
}

/// Automatic top-up that was inherited without its amount or threshold stays off.
fn inherited(defaults: WalletDefaults, currency: Currency) -> Result<WalletDefaults> {
    let mut defaults = defaults.in_currency(currency)?;
    defaults.auto_topup_enabled = defaults.auto_topup_enabled.filter(|_| defaults.topup_is_complete());
    Ok(defaults)
}

async fn insert(scope: &Scope, tx: &mut Tx, new: NewWallet, is_primary: bool) -> Result<WalletDTO> {
    let id = WalletId::generate();
    let defaults = new.defaults;
    let inserted = sqlx::query(
        "INSERT INTO wallet (id, organization_id, workspace_id, customer_id, currency, is_primary, credit_limit,
             max_balance, max_single_credit, low_balance_threshold, auto_topup_enabled, auto_topup_amount, created_at,
             updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13)",
    )
    .bind(id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(new.customer_id)
    .bind(new.currency)
    .bind(is_primary)
    .bind(defaults.credit_limit)
    .bind(defaults.max_balance)
    .bind(defaults.max_single_credit)
    .bind(defaults.low_balance_threshold)
    .bind(defaults.auto_topup_enabled.unwrap_or(false))
    .bind(defaults.auto_topup_amount)
    .bind(clock_of(scope, tx, new.customer_id).await?)
    .execute(tx.conn())
    .await;
    on_constraint(inserted, "making a wallet", |constraint| match constraint {
        "wallet_customer_id_currency_key" => Some(Error::duplicate("currency", None)),
        _ => None,
    })?;
    take_over_accruals(tx, id, new).await?;
    let sql = format!("SELECT {WALLET_COLUMNS} FROM {WALLET_FROM} WHERE wallet.workspace_id = $1 AND wallet.id = $2");
    let row: WalletRow = sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_one(tx.conn())
        .await
        .context("reading a new wallet")?;
    row.into_dto()
}

/// What was accrued before its invoice would draw from the new wallet (rule D3). Locked in the order of checkpoints.
async fn take_over_accruals(tx: &mut Tx, id: WalletId, new: NewWallet) -> Result<()> {
    sqlx::query(
        "WITH open AS (
             SELECT subscription_id, window_start, wallet_currency FROM usage_accrual
             WHERE subscription_id IN (SELECT id FROM subscription WHERE customer_id = $2)
               AND coalesce(nullif(wallet_currency, ''), currency) = $3 AND NOT closed
               AND (currency = $3 OR fx_rate IS NOT NULL)
             ORDER BY subscription_id, window_start, wallet_currency FOR UPDATE)
         UPDATE usage_accrual SET wallet_id = $1 FROM open
         WHERE usage_accrual.subscription_id = open.subscription_id AND usage_accrual.window_start = open.window_start
           AND usage_accrual.wallet_currency = open.wallet_currency",
    )
    .bind(id)
    .bind(new.customer_id)
    .bind(new.currency)
    .execute(tx.conn())
    .await
    .context("taking over accruals")?;
    Ok(())
}

/// What time it is for the customer: a test clock stands in for the machine's.
async fn clock_of(scope: &Scope, tx: &mut Tx, customer: CustomerId) -> Result<domain::Instant> {
    if let domain::Clock::At(instant) = scope.clock {
        return Ok(instant);
    }
    let frozen: Option<domain::Instant> = sqlx::query_scalar(
        "SELECT test_clock.frozen_at FROM customer JOIN test_clock ON test_clock.id = customer.test_clock_id
         WHERE customer.workspace_id = $1 AND customer.id = $2",
    )
    .bind(scope.workspace_id)
    .bind(customer)
    .fetch_optional(tx.conn())
    .await
    .context("reading the clock of a customer")?;
    Ok(frozen.unwrap_or_else(|| scope.now()))
}

async fn customer_defaults(scope: &Scope, tx: &mut Tx, customer: CustomerId) -> Result<Option<WalletDefaults>> {
    sqlx::query_as(
        "SELECT default_auto_topup_enabled AS auto_topup_enabled, default_auto_topup_amount AS auto_topup_amount,
             default_credit_limit AS credit_limit, default_low_balance_threshold AS low_balance_threshold,
             default_max_balance AS max_balance, default_max_single_credit AS max_single_credit
         FROM customer WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(customer)
    .fetch_optional(tx.conn())
    .await
    .context("reading the wallet defaults of a customer")
}

/// The organization's `wallet_default_*` settings; an empty or unreadable value is none (organizations.md).
async fn organization_defaults(scope: &Scope, tx: &mut Tx) -> Result<WalletDefaults> {
    let settings: sqlx::types::Json<domain::JsonMap> =
        sqlx::query_scalar("SELECT settings FROM organization WHERE id = $1")
            .bind(scope.organization_id)
            .fetch_one(tx.conn())
            .await
            .context("reading the organization's settings")?;
    let text = |name: &str| settings.get(name).and_then(|value| value.as_str().map(str::to_owned));
    let amount =
        |name: &str| text(name).and_then(|text| domain::money::parse_decimal(&text)).filter(|a| !a.is_sign_negative());
    let enabled = settings.get("wallet_default_auto_topup_enabled");
    Ok(WalletDefaults {
        auto_topup_enabled: enabled.and_then(|value| value.as_bool().or(value.as_str().map(|text| text == "true"))),
        auto_topup_amount: amount("wallet_default_auto_topup_amount"),
        credit_limit: amount("wallet_default_credit_limit"),
        low_balance_threshold: amount("wallet_default_low_balance_threshold"),
        max_balance: amount("wallet_default_max_balance"),
        max_single_credit: amount("wallet_default_max_single_credit"),
    })
}

/// The customer's wallet in a currency, if there is one.
///
/// # Errors
/// As every statement.
pub async fn wallet_for(
    scope: &Scope,
    tx: &mut Tx,
    customer: CustomerId,
    currency: Currency,
) -> Result<Option<WalletId>> {
    sqlx::query_scalar("SELECT id FROM wallet WHERE workspace_id = $1 AND customer_id = $2 AND currency = $3")
        .bind(scope.workspace_id)
        .bind(customer)
        .bind(currency)
        .fetch_optional(tx.conn())
        .await
        .context("looking for a customer's wallet")
}
