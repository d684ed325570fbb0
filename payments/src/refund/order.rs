//! Ordering a refund: which payments of the invoice it gives back, and the first of the three steps for each of them.

use std::collections::HashMap;

use billing::credit_note::{self, RefundNote};
use billing::invoice::Payable;
use domain::{Clock, CreditNoteId, Error, InvoiceId, Money, Result, Scope, TransactionId, WalletId};
use ledger::Outcome;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use store::{BodyKey, StoreError, Tx};

use super::finish::go;
use super::request::{RefundDestination, RefundInvoiceRequest, RefundResult};
use crate::charge::Attempt;
use crate::topup::wallet_of;
use crate::transaction::{self, ByHand, NewTransaction, Transaction, Way};
use crate::words::{TransactionKind, TransactionStatus};
use crate::{Payments, at_customer, gateway};

/// A refund that is written down: what its idempotency key remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// Of which invoice.
    pub invoice_id: InvoiceId,
    /// Its movements.
    pub refunds: Vec<TransactionId>,
    /// The credit note that goes with it.
    pub credit_note_id: Option<CreditNoteId>,
}

/// A payment of the invoice, locked, and what of it can be given back.
#[derive(Clone, Debug)]
struct Source {
    payment: Transaction,
    left: Money,
}

impl Payments {
    /// Step 1 of `POST /v1/invoices/{id}/refund`, and all of it where no gateway has to be asked; after the commit comes
    /// [`Payments::proceed_with_refund`].
    ///
    /// # Errors
    /// `NotFound` for invoice, payment, wallet or line; `INVALID_TRANSITION` of an invoice without payments; `CURRENCY_MISMATCH`;
    /// `REFUND_EXCEEDS_PAID`; `CREDIT_EXCEEDS_INVOICE`; a rule for money that the destination cannot reach; the caps of credits;
    /// `IDEMPOTENCY_CONFLICT`.
    pub async fn refund_invoice(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: InvoiceId,
        request: &RefundInvoiceRequest,
    ) -> Result<Outcome<Ordered>> {
        let key = BodyKey::new(scope, "invoice.refund", id, request.idempotency_key.as_deref(), request)?;
        if let Some(earlier) = key.claim(scope, tx).await? {
            return Ok(Outcome::replayed(earlier));
        }
        let ordered = order(scope, tx, id, request).await?;
        key.complete(tx, &ordered).await?;
        Ok(Outcome::first(ordered))
    }

    /// Steps 2 and 3 of the movements that gateways have to be asked for, and how far the refund is then.
    ///
    /// # Errors
    /// As [`Payments::proceed`].
    pub async fn proceed_with_refund(
        &self,
        scope: &Scope,
        ordered: &Ordered,
        attempt: Attempt,
    ) -> Result<RefundResult> {
        let mut refunds = Vec::with_capacity(ordered.refunds.len());
        for (place, id) in ordered.refunds.iter().enumerate() {
            if attempt == Attempt::First && place > 0 {
                // The one before may have taken its time, and the sweep must not ask for what is not asked for yet.
                transaction::renew(self.store.pool(), &ordered.refunds[place..], Clock::System.now()).await?;
            }
            refunds.push(self.proceed(scope, *id, attempt).await?);
        }
        Ok(RefundResult {
            invoice_id: ordered.invoice_id,
            status: status_of(&refunds),
            refund_transactions: refunds,
            credit_note_id: ordered.credit_note_id,
        })
    }
}

/// Of the whole: what is open is not decided, and what has failed is no success.
fn status_of(refunds: &[Transaction]) -> TransactionStatus {
    let statuses = || refunds.iter().map(|refund| refund.status);
    let first = |wanted: fn(&TransactionStatus) -> bool| statuses().find(wanted);
    first(|status| status.is_open())
        .or_else(|| first(|status| *status == TransactionStatus::Failed))
        .unwrap_or(TransactionStatus::Succeeded)
}

async fn order(scope: &Scope, tx: &mut Tx, id: InvoiceId, request: &RefundInvoiceRequest) -> Result<Ordered> {
    let mut invoice = Payable::lock(scope, tx, id).await?;
    let scope = &at_customer(scope, tx.conn(), invoice.customer_id).await?;
    let sources = sources(scope, tx, &invoice, request.transaction_id).await?;
    let amount = amount_of(&invoice, request, &sources)?;
    if let (RefundDestination::Wallet, Some(wallet)) = (request.destination, invoice.filled_wallet()) {
        let detail = "the money of this top-up is on its wallet: give it back through the GATEWAY, or by hand (MANUAL)";
        return Err(Error::business_rule(detail).with("wallet_id", wallet));
    }
    let wallet = match request.destination {
        RefundDestination::Wallet => Some(wallet(scope, tx, &invoice, request.wallet_id).await?),
        RefundDestination::Gateway | RefundDestination::Manual => None,
    };
    let mut refunds = Vec::new();
    for (payment, part) in parts(amount, sources, request.destination)? {
        let way = way_of(scope, tx, &payment, request.destination).await?;
        let new = NewTransaction::back(&payment, TransactionKind::Refund, part, way);
        let new = NewTransaction {
            wallet_id: wallet,
            is_credited: request.create_credit_note,
            metadata: request.metadata.clone(),
            ..new
        };
        let refund = transaction::insert(scope, tx, &new, Clock::System.now()).await?;
        if !refund.status.is_open() {
            go(scope, tx, &mut invoice, payment, &refund).await?;
        }
        refunds.push(refund);
    }
    let credit_note_id = match request.create_credit_note {
        true => Some(credit(scope, tx, &invoice, request, &refunds).await?),
        false => None,
    };
    Ok(Ordered { invoice_id: id, refunds: refunds.iter().map(|refund| refund.id).collect(), credit_note_id })
}

/// Payments of a locked invoice, the newest first.
async fn sources(scope: &Scope, tx: &mut Tx, invoice: &Payable, named: Option<TransactionId>) -> Result<Vec<Source>> {
    let payments: Vec<Transaction> = sqlx::query_as(
        "SELECT * FROM payment_transaction WHERE workspace_id = $1 AND invoice_id = $2 AND direction = 'INBOUND'
             AND status IN ('SUCCEEDED', 'PARTIALLY_REFUNDED', 'REFUNDED')
         ORDER BY created_at DESC, id DESC FOR NO KEY UPDATE",
    )
    .bind(scope.workspace_id)
    .bind(invoice.id)
    .fetch_all(tx.conn())
    .await
    .context("reading the payments of an invoice")?;
    let under_way = under_way(scope, tx, invoice).await?;
    if payments.is_empty() {
        let detail = "there is no payment of this invoice that could be refunded";
        let error = Error::conflict("INVALID_TRANSITION", detail);
        return Err(error.with("entity_type", "invoice").with("entity_id", invoice.id).with("from", invoice.status));
    }
    let mut sources = Vec::with_capacity(payments.len());
    for payment in payments.into_iter().filter(|payment| named.is_none_or(|id| id == payment.id)) {
        let back = under_way.get(&payment.id).copied().unwrap_or_default();
        let left = payment.kept()?.sub(Money::new(back, payment.amount.currency())?)?;
        sources.push(Source { payment, left });
    }
    match (named, sources.is_empty()) {
        (Some(id), true) => Err(Error::not_found("transaction", id)),
        _ => Ok(sources),
    }
}

/// What refunds that have no outcome yet are giving back, by payment.
async fn under_way(scope: &Scope, tx: &mut Tx, invoice: &Payable) -> Result<HashMap<TransactionId, Decimal>> {
    let rows: Vec<(TransactionId, Decimal)> = sqlx::query_as(
        "SELECT parent_transaction_id, sum(amount) FROM payment_transaction
         WHERE workspace_id = $1 AND invoice_id = $2 AND kind = 'REFUND' AND status IN ('PENDING', 'PROCESSING') GROUP BY 1",
    )
    .bind(scope.workspace_id)
    .bind(invoice.id)
    .fetch_all(tx.conn())
    .await
    .context("reading the refunds of an invoice that are under way")?;
    Ok(rows.into_iter().collect())
}

fn sum(sources: &[Source], currency: domain::Currency) -> Result<Money> {
    Ok(sources.iter().try_fold(Money::zero(currency), |sum, source| sum.add(source.left))?)
}

fn amount_of(invoice: &Payable, request: &RefundInvoiceRequest, sources: &[Source]) -> Result<Money> {
    let left = sum(sources, invoice.total.currency())?;
    let asked = request.amount.map_or_else(|| request.line_items_sum(), |amount| Ok(Some(amount)))?;
    let amount = asked.unwrap_or(left);
    if amount.is_zero() || left.sub(amount)?.is_negative() {
        let detail = format!("{left} of what was paid can be refunded");
        return Err(Error::rule("REFUND_EXCEEDS_PAID", detail).with("refundable", left));
    }
    Ok(amount)
}

/// What is given back of which payment: the newest first. Only what a gateway took can go back through one.
fn parts(amount: Money, sources: Vec<Source>, destination: RefundDestination) -> Result<Vec<(Transaction, Money)>> {
    let can_go = |source: &Source| destination != RefundDestination::Gateway || source.payment.gateway_id.is_some();
    let (mut rest, mut parts) = (amount, Vec::new());
    for source in sources.into_iter().filter(can_go) {
        let part = if source.left.amount() <= rest.amount() { source.left } else { rest };
        if part.is_zero() || part.is_negative() {
            continue;
        }
        rest = rest.sub(part)?;
        parts.push((source.payment, part));
    }
    if rest.is_zero() {
        return Ok(parts);
    }
    let detail = format!("{rest} of it did not come through a gateway: give it back to a WALLET, or by hand (MANUAL)");
    Err(Error::business_rule(detail).with("not_through_gateway", rest))
}

async fn way_of(scope: &Scope, tx: &mut Tx, payment: &Transaction, destination: RefundDestination) -> Result<Way> {
    match (destination, payment.gateway_id, payment.provider, payment.payment_method_id) {
        (RefundDestination::Gateway, Some(gateway_id), Some(provider), Some(payment_method_id)) => {
            let held = gateway::hold(scope, tx.conn(), gateway_id).await;
            held.map_err(|error| match error {
                Error::NotFound { .. } => {
                    let detail =
                        "the gateway of the payment was removed: give the money back to a WALLET, or by hand (MANUAL)";
                    Error::business_rule(detail).with("transaction_id", payment.id)
                }
                other => other,
            })?;
            Ok(Way::Gateway { gateway_id, provider, payment_method_id })
        }
        (RefundDestination::Gateway, ..) => Err(Error::invariant(format!("no gateway has taken {}", payment.id))),
        (RefundDestination::Wallet | RefundDestination::Manual, ..) => {
            Ok(Way::Hand(ByHand { source: payment.source, ..ByHand::default() }))
        }
    }
}

/// The wallet that a refund fills: one of the customer's in the invoice's currency.
async fn wallet(scope: &Scope, tx: &mut Tx, invoice: &Payable, named: Option<WalletId>) -> Result<WalletId> {
    let Some(id) = named else { return wallet_of(scope, tx, invoice.customer_id, invoice.total.currency()).await };
    let batch = ledger::lock_wallets(tx, scope, &[id]).await?;
    match batch.wallet(id)?.wallet.customer_id == invoice.customer_id {
        true => Ok(id),
        false => Err(Error::not_found("wallet", id)),
    }
}

/// The credit note of a refund. What an earlier refund that failed has left open comes first; a new one is issued over the rest.
async fn credit(
    scope: &Scope,
    tx: &mut Tx,
    invoice: &Payable,
    request: &RefundInvoiceRequest,
    refunds: &[Transaction],
) -> Result<CreditNoteId> {
    let open = credit_note::open_credit(scope, tx, invoice).await?;
    let zero = Money::zero(invoice.total.currency());
    // Whatever is under way and credited, these refunds with it, is to be covered; those that are done apply theirs below.
    let wanted = credited_under_way(scope, tx, invoice).await?;
    let done = refunds.iter().filter(|refund| !refund.status.is_open());
    let wanted = done.clone().try_fold(wanted, |sum, refund| sum.add(refund.amount))?;
    let missing = wanted.sub(open.map_or(zero, |open| open.amount))?;
    let id = match open {
        Some(open) if missing.is_zero() || missing.is_negative() => open.credit_note_id,
        _ => {
            let first = refunds.first().ok_or_else(|| Error::invariant("a refund without a movement"))?;
            let lines: Vec<_> = request.line_items.iter().map(|item| (item.invoice_line_id, item.amount)).collect();
            let asked = request.line_items_sum()?;
            if asked.is_some_and(|asked| asked != missing) {
                let detail = format!(
                    "a credit note of an earlier refund is open: of this refund only {missing} is not credited yet; \
                                      leave line_items out"
                );
                return Err(Error::business_rule(detail).with("not_credited", missing));
            }
            let note = RefundNote {
                invoice,
                gross: missing,
                lines: &lines,
                reason_code: request.reason_code,
                reason: request.reason.clone(),
                refund_transaction_id: first.id,
                metadata: request.metadata.clone(),
            };
            credit_note::issue_refund(scope, tx, note).await?
        }
    };
    for refund in done {
        credit_note::apply_refund(scope, tx, invoice, refund.id, refund.amount).await?;
    }
    Ok(id)
}

/// What credited refunds of the invoice that have no outcome yet will apply.
async fn credited_under_way(scope: &Scope, tx: &mut Tx, invoice: &Payable) -> Result<Money> {
    let sum: Decimal = sqlx::query_scalar(
        "SELECT coalesce(sum(amount), 0) FROM payment_transaction
         WHERE workspace_id = $1 AND invoice_id = $2 AND is_credited AND status IN ('PENDING', 'PROCESSING')",
    )
    .bind(scope.workspace_id)
    .bind(invoice.id)
    .fetch_one(tx.conn())
    .await
    .context("reading the credited refunds of an invoice that are under way")?;
    Ok(Money::new(sum, invoice.total.currency())?)
}
