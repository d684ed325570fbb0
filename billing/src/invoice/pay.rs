//! Money on finalized invoices (manual-payments.md 4, refunds.md 4): what is paid, what was given back, and when an invoice is
//! `paid`, which ends dunning. Who moved the money is `payments`.
//!
//! Locks: the subscription, where dunning may end, then the invoice; wallets and the number row come after them.

use domain::{Currency, CustomerId, Error, InvoiceId, Money, Result, Scope, SubscriptionId, WalletId};
use ledger::WorkspaceAccount;
use rust_decimal::Decimal;
use serde_json::json;
use sqlx::FromRow;
use store::{StoreError, Tx};

use super::topup;
use super::words::InvoiceStatus;
use crate::events::{self, Event};
use crate::subscription::write::store_state;
use crate::subscription::{self, Subscription, SubscriptionStatus};

/// An invoice, locked, as payments see it.
#[derive(Clone, Debug)]
pub struct Payable {
    /// Identity.
    pub id: InvoiceId,
    /// Who pays.
    pub customer_id: CustomerId,
    /// For which agreement.
    pub subscription_id: Option<SubscriptionId>,
    /// State.
    pub status: InvoiceStatus,
    /// Gross.
    pub total: Money,
    /// Still to pay.
    pub due: Money,
    /// What came less what was given back.
    pub paid: Money,
    number: Option<String>,
    /// The wallet whose top-up it asks for.
    topup_wallet: Option<WalletId>,
    /// Its subscription, while that is in dunning.
    dunned: Option<Box<Subscription>>,
}

#[derive(FromRow)]
struct Row {
    customer_id: CustomerId,
    subscription_id: Option<SubscriptionId>,
    invoice_number: Option<String>,
    status: InvoiceStatus,
    currency: Currency,
    total: Decimal,
    amount_due: Decimal,
    amount_paid: Decimal,
    topup_wallet_id: Option<WalletId>,
}

impl Payable {
    /// Locks an invoice.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn lock(scope: &Scope, tx: &mut Tx, id: InvoiceId) -> Result<Self> {
        let dunned = dunned(scope, tx, id).await?;
        let row: Option<Row> = sqlx::query_as(
            "SELECT customer_id, subscription_id, invoice_number, status, currency, total, amount_due, amount_paid,
                 topup_wallet_id FROM invoice
             WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE",
        )
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(tx.conn())
        .await
        .context("locking an invoice")?;
        let row = row.ok_or_else(|| Error::not_found("invoice", id))?;
        Ok(Self {
            id,
            customer_id: row.customer_id,
            subscription_id: row.subscription_id,
            status: row.status,
            total: Money::new(row.total, row.currency)?,
            due: Money::new(row.amount_due, row.currency)?,
            paid: Money::new(row.amount_paid, row.currency)?,
            number: row.invoice_number,
            topup_wallet: row.topup_wallet_id,
            dunned,
        })
    }

    /// Whether it waits for money: finalized, overdue or error.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.status.transitions().contains(&InvoiceStatus::Paid)
    }

    /// The wallet that its money has gone to: that of a top-up, once it is paid.
    #[must_use]
    pub fn filled_wallet(&self) -> Option<WalletId> {
        self.topup_wallet.filter(|_| self.status == InvoiceStatus::Paid)
    }

    /// The account that it was booked against beside tax.
    #[must_use]
    pub fn booked_against(&self) -> WorkspaceAccount {
        match self.topup_wallet {
            Some(_) => WorkspaceAccount::TopupInvoiced,
            None => WorkspaceAccount::Revenue,
        }
    }

    /// Refuses unless it waits for money.
    ///
    /// # Errors
    /// `INVALID_TRANSITION`.
    pub fn check_open(&self) -> Result<()> {
        if self.is_open() {
            return Ok(());
        }
        let allowed: Vec<_> = self.status.transitions().iter().map(|status| status.as_str()).collect();
        Err(Error::invalid_transition("invoice", self.id, self.status.as_str(), "paid", &allowed))
    }

    /// Puts money on it, as much as is due, and answers what is over: all of it, where nothing is due any more. What makes it `paid`
    /// ends dunning, and fills the wallet whose top-up it asks for.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`; as every statement.
    pub async fn pay(&mut self, scope: &Scope, tx: &mut Tx, amount: Money) -> Result<Money> {
        let rest = self.due.sub(amount)?;
        let paid = match self.is_open() {
            true if rest.is_negative() => self.due,
            true => amount,
            false => Money::zero(amount.currency()),
        };
        if paid.is_zero() {
            return Ok(amount);
        }
        self.paid = self.paid.add(paid)?;
        self.due = self.due.sub(paid)?;
        if self.due.is_zero() {
            self.status = InvoiceStatus::Paid;
        }
        self.store(scope, tx).await?;
        let is_paid = self.status == InvoiceStatus::Paid;
        self.tell(scope, tx, if is_paid { "invoice.paid" } else { "invoice.partially_paid" }).await?;
        if is_paid {
            self.recover(scope, tx).await?;
            topup::fill(scope, tx, self).await?;
        }
        Ok(amount.sub(paid)?)
    }

    /// Notes that money of it went back. `is_owed_again`: it is due once more, unless the invoice is paid, which stays so
    /// (refunds.md 4); otherwise a credit note has lowered what is owed.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`; as every statement.
    pub async fn give_back(&mut self, scope: &Scope, tx: &mut Tx, amount: Money, is_owed_again: bool) -> Result<()> {
        self.paid = self.paid.sub(amount)?;
        if is_owed_again && self.is_open() {
            self.due = self.due.add(amount)?;
        }
        self.store(scope, tx).await
    }

    /// Its payment retries are used up (invoices.md 4): an operator charges it by hand, or voids it.
    ///
    /// # Errors
    /// As every statement.
    pub async fn give_up(&mut self, scope: &Scope, tx: &mut Tx) -> Result<()> {
        if !self.status.transitions().contains(&InvoiceStatus::Error) {
            return Ok(());
        }
        self.status = InvoiceStatus::Error;
        self.store(scope, tx).await?;
        self.tell(scope, tx, "invoice.errored").await
    }

    async fn store(&self, scope: &Scope, tx: &mut Tx) -> Result<()> {
        sqlx::query(
            "UPDATE invoice SET status = $3, amount_due = $4, amount_paid = $5, updated_at = $6, version = version + 1,
                 paid_at = CASE WHEN $3 = 'paid' THEN coalesce(paid_at, $6) ELSE paid_at END
             WHERE workspace_id = $1 AND id = $2",
        )
        .bind(scope.workspace_id)
        .bind(self.id)
        .bind(self.status)
        .bind(self.due.amount())
        .bind(self.paid.amount())
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("writing what is paid of an invoice")?;
        Ok(())
    }

    /// Announces something about the invoice, as it is now.
    ///
    /// # Errors
    /// As every statement.
    pub async fn tell(&self, scope: &Scope, tx: &mut Tx, event: &'static str) -> Result<()> {
        let payload = json!({
            "invoice_id": self.id,
            "invoice_number": self.number,
            "customer_id": self.customer_id,
            "subscription_id": self.subscription_id,
            "status": self.status,
            "total": self.total,
            "amount_paid": self.paid,
            "amount_due": self.due,
        });
        let event = Event::new(scope.workspace_id, event, "invoice", self.id, payload, scope.now());
        events::emit(tx.conn(), &[event]).await
    }

    /// A full payment ends dunning, unless another invoice of the subscription is still overdue (dunning.md 4).
    async fn recover(&mut self, scope: &Scope, tx: &mut Tx) -> Result<()> {
        let Some(mut subscription) = self.dunned.take() else { return Ok(()) };
        let is_still_overdue: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM invoice WHERE workspace_id = $1 AND subscription_id = $2 AND deleted_at IS NULL
                 AND status IN ('overdue', 'error'))",
        )
        .bind(scope.workspace_id)
        .bind(subscription.id)
        .fetch_one(tx.conn())
        .await
        .context("looking for overdue invoices")?;
        if is_still_overdue {
            return Ok(());
        }
        subscription.status = SubscriptionStatus::Active;
        subscription.dunning_stage = None;
        store_state(tx.conn(), scope.workspace_id, scope.now(), &[&subscription]).await?;
        tx.subscription_changed(scope.workspace_id, subscription.id);
        let event = subscription.event("subscription.recovered", scope.now());
        events::emit(tx.conn(), &[event]).await
    }
}

/// Locks the subscription of an invoice, if it is in dunning: before the invoice, as everybody does.
async fn dunned(scope: &Scope, tx: &mut Tx, id: InvoiceId) -> Result<Option<Box<Subscription>>> {
    let dunned: Option<SubscriptionId> = sqlx::query_scalar(
        "SELECT subscription.id FROM invoice JOIN subscription ON subscription.id = invoice.subscription_id
         WHERE invoice.workspace_id = $1 AND invoice.id = $2 AND subscription.status = 'DUNNING'",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_optional(tx.conn())
    .await
    .context("looking whether a subscription is in dunning")?;
    let Some(subscription) = dunned else { return Ok(None) };
    let subscription = subscription::read::lock(tx.conn(), scope.workspace_id, subscription).await?;
    Ok((subscription.status == SubscriptionStatus::Dunning).then(|| Box::new(subscription)))
}
