//! Credit, debit, adjust and transfer as steps of a [`WalletBatch`].

use currency::{FxRate, FxRateKind, Pair};
use domain::{Error, Instant, Money, Result, Scope, TransferId, WalletId};
use rust_decimal::Decimal;
use store::Tx;

use super::batch::{Details, WalletBatch};
use super::entry::{Operation, Split, counter_of_credit, counter_of_debit, smaller, type_of_credit};
use super::model::{
    WalletBalanceKind, WalletTransaction, WalletTransactionSource, WalletTransactionType, WalletTransferResult,
};
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
        let operation = Operation::new(transfer_id, type_of_credit(details.source), details);
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
        self.take(id, transfer_id, amount, TransferKind::WalletDebit, counter_of_debit(details.source), details)
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
        let counter = counter_of_debit(details.source);
        self.take(id, transfer_id, amount, TransferKind::InvoicePayment, counter, &details)?;
        Ok(amount)
    }

    /// The same from a wallet of another currency than the invoice: takes what `amount_max` is worth at `fx`, the rate from the
    /// invoice's currency to the wallet's, or as much of it as there is, and answers what that pays in the invoice's currency.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`; a rule for an amount that leaves its range.
    pub fn charge_for_invoice_at(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount_max: Money,
        fx: &FxRate,
        invoice_id: domain::InvoiceId,
    ) -> Result<Money> {
        let mut entry = self.entry(id)?;
        let worth = fx.convert(amount_max)?;
        entry.check_currency(worth)?;
        let free = entry.row.available()?.add(entry.row.accrued)?;
        let amount = smaller(free, worth);
        if amount.is_zero() || amount.is_negative() {
            return Ok(Money::zero(amount_max.currency()));
        }
        let paid = match amount == worth {
            true => amount_max,
            false => smaller(amount.convert_back(fx.rate, amount_max.currency())?, amount_max),
        };
        if paid.is_zero() {
            return Ok(paid); // less than the smallest amount of the invoice's currency
        }
        let details = Details::of(WalletTransactionSource::Invoice).reference("invoice", invoice_id).at_rate(fx);
        let operation = Operation::new(transfer_id, WalletTransactionType::Debit, &details);
        let split = Split::of(&entry.row, amount)?;
        entry.take(&operation, split)?;
        let transfer = entry
            .draft_take(operation.draft(TransferKind::InvoicePayment, entry.now), split, WorkspaceAccount::Fx)?
            .debit(Account::Workspace(WorkspaceAccount::Fx), paid)
            .credit(Account::Workspace(counter_of_debit(details.source)), paid)
            .balanced()?;
        self.keep([entry], transfer);
        Ok(paid)
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

    /// Takes an amount that is there, for the account `counter`.
    pub(super) fn take(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        kind: TransferKind,
        counter: WorkspaceAccount,
        details: &Details,
    ) -> Result<Vec<WalletTransaction>> {
        let mut entry = self.entry(id)?;
        let operation = Operation::new(transfer_id, WalletTransactionType::Debit, details);
        let split = Split::of(&entry.row, amount)?;
        entry.take(&operation, split)?;
        let draft = operation.draft(kind, entry.now);
        let transfer = entry.draft_take(draft, split, counter)?.balanced()?;
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

    /// Moves cash to another wallet of the same customer, converted at `fx`; both movements pin that rate.
    ///
    /// # Errors
    /// A rule when the wallets are one, have two owners, or nothing would arrive; `CURRENCY_MISMATCH`;
    /// `INSUFFICIENT_FUNDS` beyond the cash that is available.
    pub fn transfer(
        &mut self,
        from: WalletId,
        to: WalletId,
        transfer_id: TransferId,
        amount: Money,
        fx: &FxRate,
        details: &Details,
    ) -> Result<WalletTransferResult> {
        if from == to {
            return Err(Error::business_rule("a wallet cannot transfer to itself"));
        }
        let details = &details.clone().at_rate(fx);
        let (mut source, mut target) = (self.entry(from)?, self.entry(to)?);
        if source.row.wallet.customer_id != target.row.wallet.customer_id {
            return Err(Error::business_rule("both wallets must belong to one customer"));
        }
        source.check_currency(amount)?;
        // Promotional credit is not transferable, and a transfer is no way to borrow.
        let cash = source.row.available()?.sub(source.row.credit())?;
        source.check_funds(amount, smaller(cash, source.row.wallet.cash_balance))?;
        let arriving = fx.convert(amount)?;
        if arriving.is_zero() {
            return Err(Error::business_rule("nothing would arrive at this rate"));
        }
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
            fx_rate: (fx.kind != FxRateKind::Identity).then_some(fx.rate),
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

/// Member of a movement's metadata that holds the rate at which it was converted.
const FX_RATE: &str = "fx_rate";

impl Details {
    /// The same details with the rate that was used, where one was: whatever becomes of rates later, the movement keeps its own
    /// (fx.md 4).
    #[must_use]
    pub fn at_rate(mut self, fx: &FxRate) -> Self {
        if fx.kind != FxRateKind::Identity {
            self.metadata.insert(FX_RATE.to_owned(), fx.rate.to_string().into());
            self.metadata.insert("fx_rate_kind".to_owned(), fx.kind.as_str().into());
            let more = [
                ("fx_rate_id", fx.id.map(|id| id.to_string())),
                ("fx_snapshot_date", fx.snapshot_date.map(|date| date.to_string())),
            ];
            self.metadata.extend(more.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into()))));
        }
        self
    }
}

/// The rate at which a movement of a transfer was converted, if it was.
pub(super) fn pinned_rate(movement: &WalletTransaction) -> Option<Decimal> {
    movement.metadata.get(FX_RATE).and_then(serde_json::Value::as_str).and_then(domain::money::parse_decimal)
}

/// The rate of a transfer: the one in the request, else the one that is in effect.
pub(super) async fn transfer_rate(
    scope: &Scope,
    tx: &mut Tx,
    (pair, at): (Pair, Instant),
    given: Option<Decimal>,
) -> Result<FxRate> {
    if pair.source == pair.target && given.is_some_and(|rate| rate != Decimal::ONE) {
        return Err(Error::business_rule("both wallets have one currency: no fx_rate"));
    }
    match given {
        Some(rate) if pair.source != pair.target => {
            FxRate::given(tx.conn(), scope.workspace_id, (pair, at), rate).await
        }
        _ => currency::rate::rate(tx.conn(), scope.workspace_id, pair, at).await,
    }
}
