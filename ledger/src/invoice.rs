//! Invoices and credit notes as booked facts: the receivable at finalization, the wallet money that is applied to it (rule
//! D4), and what is taken back of it.
//!
//! Their transfers have ids derived from the invoice, so that a finalization that is repeated after a lost answer cannot
//! book twice (rule D5).

use domain::{CreditNoteId, Currency, InvoiceId, Money, Result, Scope, TransferId, WalletId};
use store::{StoreError, Tx};
use uuid::Uuid;

use crate::account::{Account, WorkspaceAccount};
use crate::transfer::{Transfer, TransferKind, post};
use crate::wallet::lock_wallets;

/// Id of the transfer that books an invoice.
#[must_use]
pub fn invoice_transfer_id(invoice: InvoiceId) -> TransferId {
    TransferId(Uuid::new_v5(&invoice.0, b"invoice"))
}

/// Id of the transfer that fills a wallet with the money of its paid invoice.
#[must_use]
pub fn topup_transfer_id(invoice: InvoiceId) -> TransferId {
    TransferId(Uuid::new_v5(&invoice.0, b"top-up"))
}

/// Id of the transfer that draws an invoice from a wallet.
#[must_use]
pub fn charge_transfer_id(invoice: InvoiceId, wallet: WalletId) -> TransferId {
    TransferId(Uuid::new_v5(&invoice.0, wallet.0.as_bytes()))
}

/// The booking of a finalized invoice: receivable against `against` and tax. That is `Revenue`, or `TopupInvoiced` for a top-up,
/// which is owed to the customer. `None` for an invoice over nothing.
///
/// # Errors
/// `CURRENCY_MISMATCH` between net and tax.
pub fn invoice_transfer(
    scope: &Scope,
    invoice: InvoiceId,
    against: WorkspaceAccount,
    net: Money,
    tax: Money,
) -> Result<Option<Transfer>> {
    let total = net.add(tax)?;
    if net.is_zero() && tax.is_zero() {
        return Ok(None);
    }
    let transfer = Transfer::draft(invoice_transfer_id(invoice), TransferKind::Invoice, scope.now())
        .reference("invoice", invoice)
        .debit(Account::Workspace(WorkspaceAccount::Receivable), total)
        .credit(Account::Workspace(against), net)
        .credit(Account::Workspace(WorkspaceAccount::TaxPayable), tax)
        .balanced()?;
    Ok(Some(transfer))
}

/// Id of the transfer that settles an invoice from captured usage.
#[must_use]
pub fn settlement_transfer_id(invoice: InvoiceId) -> TransferId {
    TransferId(Uuid::new_v5(&invoice.0, b"captured usage"))
}

/// What captures have paid of an invoice (rule D2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// All of it, in the invoice's currency.
    pub amount: Money,
    /// What of it wallets of other currencies have paid: the part in the invoice's currency, and what was taken for it.
    pub exchanged: Vec<(Money, Money)>,
}

impl Settlement {
    /// Nothing is paid yet.
    #[must_use]
    pub fn none(currency: Currency) -> Self {
        Self { amount: Money::zero(currency), exchanged: Vec::new() }
    }

    /// Adds a part that was paid with what was taken from a wallet, in the wallet's currency.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH` for a part in another currency than the invoice's.
    pub fn add(&mut self, part: Money, taken: Money) -> Result<()> {
        self.amount = self.amount.add(part)?;
        if part.currency() != taken.currency() {
            self.exchanged.push((part, taken));
        }
        Ok(())
    }
}

/// Settles the part of an invoice that captures have paid before: the line shows it, nobody is charged again (rule D2).
/// `None` when there is none.
///
/// # Errors
/// `CURRENCY_MISMATCH`; `Internal` for entries that do not add up.
pub fn settlement_transfer(scope: &Scope, invoice: InvoiceId, settlement: &Settlement) -> Result<Option<Transfer>> {
    let Settlement { amount, exchanged } = settlement;
    if amount.is_zero() {
        return Ok(None);
    }
    let (captured, fx) =
        (Account::Workspace(WorkspaceAccount::CapturedUsage), Account::Workspace(WorkspaceAccount::Fx));
    let mut draft = Transfer::draft(settlement_transfer_id(invoice), TransferKind::UsageSettlement, scope.now())
        .reference("invoice", invoice)
        .credit(Account::Workspace(WorkspaceAccount::Receivable), *amount);
    let mut direct = *amount;
    for (part, taken) in exchanged {
        direct = direct.sub(*part)?;
        draft = draft.debit(captured, *taken).credit(fx, *taken).debit(fx, *part);
    }
    Ok(Some(draft.debit(captured, direct).balanced()?))
}

/// Id of the transfer that books a credit note.
#[must_use]
pub fn credit_note_transfer_id(credit_note: CreditNoteId) -> TransferId {
    TransferId(Uuid::new_v5(&credit_note.0, b"credit note"))
}

/// The booking of an issued credit note: an invoice taken back, `against` the account that the invoice was booked against. What is
/// over on `receivable` is the customer's until it is applied.
///
/// # Errors
/// `CURRENCY_MISMATCH` between net and tax; `Internal` for a credit over nothing.
pub fn credit_note_transfer(
    scope: &Scope,
    credit_note: CreditNoteId,
    against: WorkspaceAccount,
    net: Money,
    tax: Money,
) -> Result<Transfer> {
    let total = net.add(tax)?;
    let draft = Transfer::draft(credit_note_transfer_id(credit_note), TransferKind::CreditNote, scope.now())
        .reference("credit_note", credit_note)
        .debit(Account::Workspace(against), net)
        .debit(Account::Workspace(WorkspaceAccount::TaxPayable), tax)
        .credit(Account::Workspace(WorkspaceAccount::Receivable), total);
    Ok(draft.balanced()?)
}

/// The booking of money that came for an invoice: on `clearing`, the account of whoever has it.
///
/// # Errors
/// `Internal` for a payment of nothing.
pub fn payment_transfer(
    scope: &Scope,
    id: TransferId,
    invoice: InvoiceId,
    clearing: WorkspaceAccount,
    amount: Money,
) -> Result<Transfer> {
    let draft = Transfer::draft(id, TransferKind::InvoicePayment, scope.now())
        .reference("invoice", invoice)
        .debit(Account::Workspace(clearing), amount)
        .credit(Account::Workspace(WorkspaceAccount::Receivable), amount);
    Ok(draft.balanced()?)
}

/// The booking of money of an invoice that went back the way it came: what is not credited is owed again.
///
/// # Errors
/// `Internal` for a refund of nothing.
pub fn refund_transfer(
    scope: &Scope,
    id: TransferId,
    invoice: InvoiceId,
    clearing: WorkspaceAccount,
    amount: Money,
) -> Result<Transfer> {
    let draft = Transfer::draft(id, TransferKind::PaymentRefund, scope.now())
        .reference("invoice", invoice)
        .debit(Account::Workspace(WorkspaceAccount::Receivable), amount)
        .credit(Account::Workspace(clearing), amount);
    Ok(draft.balanced()?)
}

/// Books a finalized invoice. A repeat changes nothing.
///
/// # Errors
/// `CURRENCY_MISMATCH` when an amount is not in `currency`, and as every statement.
pub async fn book_invoice(
    tx: &mut Tx,
    scope: &Scope,
    invoice: InvoiceId,
    currency: Currency,
    net: Money,
    tax: Money,
) -> Result<()> {
    Money::zero(currency).add(net)?;
    let transfer = invoice_transfer(scope, invoice, WorkspaceAccount::Revenue, net, tax)?;
    post(tx, scope, transfer.as_slice()).await?;
    Ok(())
}

/// Draws at most `amount_max` for an invoice from a wallet and answers what was drawn: promotional credit first, then
/// cash, down to zero (PREPAID) or minus the credit limit (POSTPAID), and never what is held. A repeat answers what the
/// first call drew.
///
/// For many invoices in one transaction use [`crate::WalletBatch::charge_for_invoice`].
///
/// # Errors
/// `NotFound`, `CURRENCY_MISMATCH`, and as every statement.
pub async fn charge_for_invoice(
    tx: &mut Tx,
    scope: &Scope,
    wallet: WalletId,
    amount_max: Money,
    invoice: InvoiceId,
) -> Result<Money> {
    let mut batch = lock_wallets(tx, scope, &[wallet]).await?;
    let transfer_id = charge_transfer_id(invoice, wallet);
    let drawn = match drawn_before(tx, scope, transfer_id, amount_max.currency()).await? {
        Some(drawn) => drawn,
        None => batch.charge_for_invoice(wallet, transfer_id, amount_max, invoice)?,
    };
    batch.write(tx, scope).await?;
    Ok(drawn)
}

/// What an earlier attempt drew.
async fn drawn_before(tx: &mut Tx, scope: &Scope, id: TransferId, currency: Currency) -> Result<Option<Money>> {
    let drawn: Option<rust_decimal::Decimal> = sqlx::query_scalar(
        "SELECT sum(amount) FROM ledger_entry WHERE transfer_id = $1 AND workspace_id = $2 AND amount > 0",
    )
    .bind(id)
    .bind(scope.workspace_id)
    .fetch_one(tx.conn())
    .await
    .context("looking for an earlier charge of an invoice")?;
    Ok(drawn.map(|drawn| Money::new(drawn, currency)).transpose()?)
}
