//! Credit, debit, adjust and transfer: each as a step of a [`WalletBatch`], and as one operation with its idempotency key.

use domain::{Error, Instant, Money, Result, Scope, TransferId, WalletId};
use rust_decimal::Decimal;
use store::{BodyKey, Tx};

use super::batch::{Details, WalletBatch, lock_wallets};
use super::entry::{Operation, Split, counter_of_credit, counter_of_debit, smaller};
use super::model::{
    WalletBalanceKind, WalletTransaction, WalletTransactionSource, WalletTransactionType, WalletTransferResult,
};
use super::replay::{Outcome, movements_of};
use super::request::{AdjustRequest, CreditRequest, DebitRequest, TransferRequest};
use crate::account::{Account, WalletAccount, WorkspaceAccount};
use crate::transfer::TransferKind;

/// Which balance a credit goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreditKind {
    /// Money received.
    Cash,
    /// Credit given, until an instant if one is named.
    Promotional {
        /// When it lapses.
        expires_at: Option<Instant>,
    },
}

impl WalletBatch {
    /// Adds money or credit.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`, `MAX_SINGLE_CREDIT_EXCEEDED`, `MAX_BALANCE_EXCEEDED`; a rule when the expiry has passed.
    pub fn credit(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        kind: CreditKind,
        details: &Details,
    ) -> Result<WalletTransaction> {
        let mut entry = self.entry(id)?;
        entry.check_currency(amount)?;
        check_caps(&entry.row.wallet, amount)?;
        let transaction_type = match details.source {
            WalletTransactionSource::Topup | WalletTransactionSource::AutoTopup => WalletTransactionType::Topup,
            _ => WalletTransactionType::Credit,
        };
        let operation = Operation::new(transfer_id, transaction_type, details);
        let (balance, account, counter) = match kind {
            CreditKind::Cash => (WalletBalanceKind::Cash, WalletAccount::Cash, counter_of_credit(details.source)),
            CreditKind::Promotional { expires_at } => {
                let wallet = &mut entry.row.wallet;
                if expires_at.is_some_and(|expires_at| expires_at <= entry.now) {
                    return Err(Error::business_rule("expires_at must be in the future"));
                }
                wallet.promotional_balance_expires_at =
                    later_expiry(wallet.promotional_balance, wallet.promotional_balance_expires_at, expires_at);
                (WalletBalanceKind::Promotional, WalletAccount::Promotional, WorkspaceAccount::PromotionalExpense)
            }
        };
        entry.record(&operation, balance, amount)?;
        let transfer = operation
            .draft(TransferKind::WalletCredit, entry.now)
            .debit(Account::Workspace(counter), amount)
            .credit(entry.account(account), amount)
            .balanced()?;
        let movement = last_movement(&entry.movements)?;
        self.keep([entry], transfer);
        Ok(movement)
    }

    /// Takes money: promotional credit first, then cash; two movements with one `group_id` when it takes both.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`, `INSUFFICIENT_FUNDS` beyond what is available.
    pub fn debit(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        details: &Details,
    ) -> Result<Vec<WalletTransaction>> {
        let entry = self.entry(id)?;
        entry.check_currency(amount)?;
        entry.check_funds(amount, entry.row.available()?)?;
        self.take(id, transfer_id, amount, TransferKind::WalletDebit, details)
    }

    /// Takes what an invoice may have, at most `amount_max`: balances without what is held, and the credit limit when
    /// POSTPAID. Zero, without a movement, when there is nothing.
    ///
    /// Accruals do not bound it: they are what invoices like this one will draw.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`.
    pub fn charge_for_invoice(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount_max: Money,
        invoice_id: domain::InvoiceId,
    ) -> Result<Money> {
        let entry = self.entry(id)?;
        entry.check_currency(amount_max)?;
        let free = entry.row.available()?.add(entry.row.accrued)?;
        let amount = smaller(free, amount_max);
        if amount.is_zero() || amount.is_negative() {
            return Ok(Money::zero(amount.currency()));
        }
        let details = Details::of(WalletTransactionSource::Invoice).reference("invoice", invoice_id);
        self.take(id, transfer_id, amount, TransferKind::InvoicePayment, &details)?;
        Ok(amount)
    }

    /// Gives back what captures took and no invoice shows: it was the customer's own money, so no cap stands in its way.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`.
    pub fn return_captured(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        subscription_id: domain::SubscriptionId,
    ) -> Result<()> {
        let mut entry = self.entry(id)?;
        entry.check_currency(amount)?;
        let details = Details::of(WalletTransactionSource::Usage).reference("subscription", subscription_id);
        let operation = Operation::new(transfer_id, WalletTransactionType::Credit, &details);
        entry.record(&operation, WalletBalanceKind::Cash, amount)?;
        let transfer = operation
            .draft(TransferKind::WalletCredit, entry.now)
            .debit(Account::Workspace(counter_of_credit(details.source)), amount)
            .credit(entry.account(WalletAccount::Cash), amount)
            .balanced()?;
        self.keep([entry], transfer);
        Ok(())
    }

    fn take(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        kind: TransferKind,
        details: &Details,
    ) -> Result<Vec<WalletTransaction>> {
        let mut entry = self.entry(id)?;
        let operation = Operation::new(transfer_id, WalletTransactionType::Debit, details);
        let split = Split::of(&entry.row, amount)?;
        entry.take(&operation, split)?;
        let draft = operation.draft(kind, entry.now);
        let transfer = entry.draft_take(draft, split, counter_of_debit(details.source))?.balanced()?;
        let movements = entry.movements.iter().map(|movement| movement.row.clone()).collect();
        self.keep([entry], transfer);
        Ok(movements)
    }

    /// Corrects a balance by a signed amount.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`; `INSUFFICIENT_FUNDS` when cash would pass the limit (zero when PREPAID) or promotional
    /// credit zero.
    pub fn adjust(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        balance: WalletBalanceKind,
        details: &Details,
    ) -> Result<WalletTransaction> {
        let mut entry = self.entry(id)?;
        entry.check_currency(amount)?;
        let wallet = &entry.row.wallet;
        let (limit, account, counter) = match balance {
            WalletBalanceKind::Cash => {
                let limit = wallet.cash_balance.add(entry.row.credit())?;
                (limit, WalletAccount::Cash, WorkspaceAccount::WriteOff)
            }
            WalletBalanceKind::Promotional => {
                (wallet.promotional_balance, WalletAccount::Promotional, WorkspaceAccount::PromotionalExpense)
            }
        };
        if amount.is_negative() {
            entry.check_funds(amount.negate(), limit)?;
        }
        let operation = Operation::new(transfer_id, WalletTransactionType::Adjustment, details);
        entry.record(&operation, balance, amount)?;
        let transfer = operation
            .draft(TransferKind::WalletAdjustment, entry.now)
            .debit(Account::Workspace(counter), amount)
            .credit(entry.account(account), amount)
            .balanced()?;
        let movement = last_movement(&entry.movements)?;
        self.keep([entry], transfer);
        Ok(movement)
    }

    /// Moves cash to another wallet of the same customer, converted at `fx_rate` when the currencies differ.
    ///
    /// # Errors
    /// A rule when the wallets are one, have two owners, or need a rate that is not given (or the other way round);
    /// `CURRENCY_MISMATCH`; `INSUFFICIENT_FUNDS` beyond the cash that is available.
    pub fn transfer(
        &mut self,
        from: WalletId,
        to: WalletId,
        transfer_id: TransferId,
        amount: Money,
        fx_rate: Option<Decimal>,
        details: &Details,
    ) -> Result<WalletTransferResult> {
        if from == to {
            return Err(Error::business_rule("a wallet cannot transfer to itself"));
        }
        let (mut source, mut target) = (self.entry(from)?, self.entry(to)?);
        if source.row.wallet.customer_id != target.row.wallet.customer_id {
            return Err(Error::business_rule("both wallets must belong to one customer"));
        }
        source.check_currency(amount)?;
        // Promotional credit is not transferable, and a transfer is no way to borrow.
        let cash = source.row.available()?.sub(source.row.credit())?;
        source.check_funds(amount, smaller(cash, source.row.wallet.cash_balance))?;
        let arriving = convert(amount, target.row.wallet.currency, fx_rate)?;
        let out = Operation::new(transfer_id, WalletTransactionType::TransferOut, details);
        let into = Operation::new(transfer_id, WalletTransactionType::TransferIn, details);
        source.record(&Operation { grouped: true, ..out }, WalletBalanceKind::Cash, amount.negate())?;
        target.record(&Operation { grouped: true, ..into }, WalletBalanceKind::Cash, arriving)?;
        let mut draft = out
            .draft(TransferKind::WalletTransfer, source.now.max(target.now))
            .debit(source.account(WalletAccount::Cash), amount)
            .credit(target.account(WalletAccount::Cash), arriving);
        if amount.currency() != arriving.currency() {
            let fx = Account::Workspace(WorkspaceAccount::Fx);
            draft = draft.credit(fx, amount).debit(fx, arriving);
        }
        let transfer = draft.balanced()?;
        let result = WalletTransferResult {
            debit: last_movement(&source.movements)?,
            credit: last_movement(&target.movements)?,
            fx_rate: fx_rate.filter(|_| amount.currency() != arriving.currency()),
        };
        self.keep([source, target], transfer);
        Ok(result)
    }
}

fn last_movement(movements: &[super::entry::Movement]) -> Result<WalletTransaction> {
    let movement = movements.last().ok_or_else(|| Error::invariant("an operation without a movement"))?;
    Ok(movement.row.clone())
}

/// Refuses a credit beyond the caps of a wallet.
pub(super) fn check_caps(wallet: &super::Wallet, amount: Money) -> Result<()> {
    if let Some(cap) = wallet.max_single_credit.filter(|cap| amount.amount() > cap.amount()) {
        let detail = format!("one credit may be at most {cap}, this is {amount}");
        return Err(Error::rule("MAX_SINGLE_CREDIT_EXCEEDED", detail).with("max_single_credit", cap));
    }
    let after = wallet.cash_balance.add(wallet.promotional_balance)?.add(amount)?;
    if let Some(cap) = wallet.max_balance.filter(|cap| after.amount() > cap.amount()) {
        let detail = format!("the balance may be at most {cap}, it would be {after}");
        return Err(Error::rule("MAX_BALANCE_EXCEEDED", detail).with("max_balance", cap));
    }
    Ok(())
}

/// The whole promotional balance lapses at one instant: the latest that any credit in it was given until, so that none
/// lapses before its time. A credit without an expiry keeps the balance for ever, unless the settings of the wallet named
/// one while it was empty.
fn later_expiry(balance: Money, current: Option<Instant>, given: Option<Instant>) -> Option<Instant> {
    if balance.is_zero() { given.or(current) } else { current.zip(given).map(|(current, given)| current.max(given)) }
}

fn convert(amount: Money, to: domain::Currency, fx_rate: Option<Decimal>) -> Result<Money> {
    if amount.currency() == to {
        return match fx_rate {
            Some(rate) if rate != Decimal::ONE => {
                Err(Error::business_rule("both wallets have one currency: no fx_rate"))
            }
            _ => Ok(amount),
        };
    }
    let Some(rate) = fx_rate.filter(|rate| rate.is_sign_positive() && !rate.is_zero()) else {
        let detail = format!("no rate is known from {} to {to}: give fx_rate", amount.currency());
        return Err(Error::rule("FX_RATE_NOT_FOUND", detail));
    };
    // `checked_mul` rounds in silence when the 28 digits are full: a product that is not exact is refused (P15).
    let scale = amount.amount().scale() + rate.scale();
    let product = amount.amount().mantissa().checked_mul(rate.mantissa());
    let exact = product.and_then(|product| Decimal::try_from_i128_with_scale(product, scale).ok());
    let arriving = Money::round(exact.ok_or(domain::money::MoneyError::OutOfRange)?, to)?;
    if arriving.is_zero() {
        return Err(Error::business_rule("nothing would arrive at this rate"));
    }
    Ok(arriving)
}

/// `POST /v1/wallets/{id}/credit`.
///
/// # Errors
/// `NotFound`, `IDEMPOTENCY_CONFLICT`, and as [`WalletBatch::credit`].
pub async fn credit(
    scope: &Scope,
    tx: &mut Tx,
    id: WalletId,
    transfer_id: TransferId,
    request: &CreditRequest,
) -> Result<Outcome<WalletTransaction>> {
    let key = BodyKey::new(scope, "wallet.credit", id, request.idempotency_key.as_deref(), request)?;
    if let Some(earlier) = key.claim(scope, tx).await? {
        return Ok(Outcome::replayed(earlier));
    }
    let mut batch = lock_wallets(tx, scope, &[id]).await?;
    if let Some(booked) = movements_of(tx, scope, id, transfer_id).await?.pop() {
        return Ok(Outcome::replayed(booked));
    }
    let kind = match request.is_promotional {
        true => CreditKind::Promotional { expires_at: request.expires_at },
        false => CreditKind::Cash,
    };
    let movement = batch.credit(id, transfer_id, request.amount, kind, &request.details())?;
    batch.write(tx, scope).await?;
    key.complete(tx, &movement).await?;
    Ok(Outcome::first(movement))
}

/// `POST /v1/wallets/{id}/debit`; answers the last of its movements, which bears the balances after it.
///
/// # Errors
/// `NotFound`, `IDEMPOTENCY_CONFLICT`, and as [`WalletBatch::debit`].
pub async fn debit(
    scope: &Scope,
    tx: &mut Tx,
    id: WalletId,
    transfer_id: TransferId,
    request: &DebitRequest,
) -> Result<Outcome<WalletTransaction>> {
    let key = BodyKey::new(scope, "wallet.debit", id, request.idempotency_key.as_deref(), request)?;
    if let Some(earlier) = key.claim(scope, tx).await? {
        return Ok(Outcome::replayed(earlier));
    }
    let mut batch = lock_wallets(tx, scope, &[id]).await?;
    if let Some(booked) = movements_of(tx, scope, id, transfer_id).await?.pop() {
        return Ok(Outcome::replayed(booked));
    }
    let movement = batch.debit(id, transfer_id, request.amount, &request.details())?.pop();
    let movement = movement.ok_or_else(|| Error::invariant("a debit without a movement"))?;
    batch.write(tx, scope).await?;
    key.complete(tx, &movement).await?;
    Ok(Outcome::first(movement))
}

/// `POST /v1/wallets/{id}/adjust`.
///
/// # Errors
/// `NotFound`, `IDEMPOTENCY_CONFLICT`, and as [`WalletBatch::adjust`].
pub async fn adjust(
    scope: &Scope,
    tx: &mut Tx,
    id: WalletId,
    transfer_id: TransferId,
    request: &AdjustRequest,
) -> Result<Outcome<WalletTransaction>> {
    let key = BodyKey::new(scope, "wallet.adjust", id, request.idempotency_key.as_deref(), request)?;
    if let Some(earlier) = key.claim(scope, tx).await? {
        return Ok(Outcome::replayed(earlier));
    }
    let mut batch = lock_wallets(tx, scope, &[id]).await?;
    if let Some(booked) = movements_of(tx, scope, id, transfer_id).await?.pop() {
        return Ok(Outcome::replayed(booked));
    }
    let movement = batch.adjust(id, transfer_id, request.amount, request.balance, &request.details())?;
    batch.write(tx, scope).await?;
    key.complete(tx, &movement).await?;
    Ok(Outcome::first(movement))
}

/// `POST /v1/wallets/{id}/transfer`.
///
/// # Errors
/// `NotFound`, `IDEMPOTENCY_CONFLICT`, and as [`WalletBatch::transfer`].
pub async fn transfer(
    scope: &Scope,
    tx: &mut Tx,
    id: WalletId,
    transfer_id: TransferId,
    request: &TransferRequest,
) -> Result<Outcome<WalletTransferResult>> {
    let key = BodyKey::new(scope, "wallet.transfer", id, request.idempotency_key.as_deref(), request)?;
    if let Some(earlier) = key.claim(scope, tx).await? {
        return Ok(Outcome::replayed(earlier));
    }
    let to = request.to_wallet_id;
    let mut batch = lock_wallets(tx, scope, &[id, to]).await?;
    let (sent, received) =
        (movements_of(tx, scope, id, transfer_id).await?, movements_of(tx, scope, to, transfer_id).await?);
    if let (Some(debit), Some(credit)) = (sent.into_iter().next(), received.into_iter().next()) {
        return Ok(Outcome::replayed(WalletTransferResult { debit, credit, fx_rate: request.fx_rate }));
    }
    let result = batch.transfer(id, to, transfer_id, request.amount, request.fx_rate, &request.details())?;
    batch.write(tx, scope).await?;
    key.complete(tx, &result).await?;
    Ok(Outcome::first(result))
}
