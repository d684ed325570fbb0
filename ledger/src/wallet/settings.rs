//! `PATCH /v1/wallets/{id}/settings`.

use domain::error::FieldErrorCode as Code;
use domain::{Error, FieldError, Money, Patch, Result, Scope, WalletId};
use rust_decimal::Decimal;
use store::{StoreError, Tx};

use super::batch::lock_wallets;
use super::create::incomplete_topup;
use super::model::WalletDTO;
use super::request::UpdateWalletSettingsRequest;

/// Changes the members that were sent.
///
/// # Errors
/// `NotFound`; `Validation` for an amount with more decimals than the wallet's currency; a rule when automatic top-up
/// would be on without amount and threshold, or promotional credit would lapse in the past.
pub async fn update_settings(
    scope: &Scope,
    tx: &mut Tx,
    id: WalletId,
    request: &UpdateWalletSettingsRequest,
) -> Result<WalletDTO> {
    let batch = lock_wallets(tx, scope, &[id]).await?;
    let now = batch.now(id)?;
    let mut dto = batch.wallet(id)?;
    batch.write(tx, scope).await?;
    let wallet = &mut dto.wallet;
    let mut errors = Vec::new();
    for (name, patch, member) in [
        ("auto_topup_amount", &request.auto_topup_amount, &mut wallet.auto_topup_amount),
        ("low_balance_threshold", &request.low_balance_threshold, &mut wallet.low_balance_threshold),
        ("credit_limit", &request.credit_limit, &mut wallet.credit_limit),
        ("max_balance", &request.max_balance, &mut wallet.max_balance),
        ("max_single_credit", &request.max_single_credit, &mut wallet.max_single_credit),
    ] {
        match amount_of(patch, wallet.currency) {
            Ok(Patch::Set(money)) if name == "auto_topup_amount" && money.is_zero() => {
                errors.push(bad_field(name, "must be above zero"));
            }
            Ok(patch) => *member = patch.apply(*member),
            Err(message) => errors.push(bad_field(name, message)),
        }
    }
    if !errors.is_empty() {
        return Err(Error::Validation(errors));
    }
    wallet.auto_topup_enabled = request.auto_topup_enabled.unwrap_or(wallet.auto_topup_enabled);
    if wallet.auto_topup_enabled && (wallet.auto_topup_amount.is_none() || wallet.low_balance_threshold.is_none()) {
        return Err(incomplete_topup());
    }
    if let Patch::Set(expires_at) = request.promotional_balance_expires_at
        && expires_at <= now
    {
        return Err(Error::business_rule("promotional_balance_expires_at must be in the future"));
    }
    wallet.promotional_balance_expires_at =
        request.promotional_balance_expires_at.clone().apply(wallet.promotional_balance_expires_at);
    wallet.updated_at = now;
    write(scope, tx, &dto).await?;
    dto.available_balance = super::list::read(scope, tx.conn(), id).await?.available_balance;
    Ok(dto)
}

fn bad_field(name: &str, message: impl Into<String>) -> FieldError {
    FieldError { field: name.to_owned(), code: Code::OutOfRange, message: message.into() }
}

fn amount_of(patch: &Patch<Decimal>, currency: domain::Currency) -> Result<Patch<Money>, String> {
    match patch {
        Patch::Keep => Ok(Patch::Keep),
        Patch::Clear => Ok(Patch::Clear),
        Patch::Set(amount) => Money::new(*amount, currency).map(Patch::Set).map_err(|error| error.to_string()),
    }
}

async fn write(scope: &Scope, tx: &mut Tx, dto: &WalletDTO) -> Result<()> {
    let wallet = &dto.wallet;
    let amount = |money: Option<Money>| money.map(|money| money.amount());
    sqlx::query(
        "UPDATE wallet SET auto_topup_enabled = $3, auto_topup_amount = $4, low_balance_threshold = $5, credit_limit = $6,
             max_balance = $7, max_single_credit = $8, promotional_balance_expires_at = $9, updated_at = $10
         WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(wallet.id)
    .bind(wallet.auto_topup_enabled)
    .bind(amount(wallet.auto_topup_amount))
    .bind(amount(wallet.low_balance_threshold))
    .bind(amount(wallet.credit_limit))
    .bind(amount(wallet.max_balance))
    .bind(amount(wallet.max_single_credit))
    .bind(wallet.promotional_balance_expires_at)
    .bind(wallet.updated_at)
    .execute(tx.conn())
    .await
    .context("changing the settings of a wallet")?;
    Ok(())
}
