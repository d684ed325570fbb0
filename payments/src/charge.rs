//! Charging: who takes the payment, asking him, and recording what he said with all that follows from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use billing::invoice::Payable;
use chrono::TimeDelta;
use domain::{
    Clock, Currency, CustomerId, Error, Instant, PaymentMethodId, ProviderID, Result, Scope, TransactionId, TransferId,
    WalletId, WorkspaceId,
};
use ledger::wallet::{Details, WalletTransactionSource, topup};
use serde_json::json;
use sqlx::PgConnection;
use store::{StoreError, Tx};

use crate::gateway::{self, Wanted, choose};
use crate::method;
use crate::provider::{Account, ChargeOrder, Gateway, Outcome, RefundOrder, Subject};
use crate::settle::{payable_of, settle};
use crate::transaction::{self, Change, Transaction, Way};
use crate::words::{FailureCode, GatewayMode, PaymentMethodStatus, PaymentMethodType, TransactionKind};
use crate::{Payments, at_customer, collect, refund};

/// Time between two looks at a payment that its provider has taken: webhooks tell earlier (payment-gateways.md 4).
const POLL: TimeDelta = TimeDelta::minutes(15);
/// The first pause after an answer that was lost; it doubles up to [`POLL`].
const FIRST_RETRY: TimeDelta = TimeDelta::seconds(10);
/// Pause between automatic top-ups of a wallet after one that failed.
pub(crate) const TOPUP_PAUSE: TimeDelta = TimeDelta::minutes(10);

/// Whether this process has just written the payment, so that nobody can have asked its gateway before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It has: an order that has not left is a failure.
    First,
    /// Somebody may have: only the provider's own word counts.
    Again,
}

impl Payments {
    /// Decides who takes a payment of a customer. The gateway cannot be removed before this transaction ends; one that was removed
    /// between the choice and that is not chosen again.
    ///
    /// # Errors
    /// `NotFound` for a method that is not the customer's; `NO_PAYMENT_METHOD`; `NO_GATEWAY_AVAILABLE`; a rule for a method that
    /// cannot be charged.
    pub(crate) async fn route(
        &self,
        scope: &Scope,
        conn: &mut PgConnection,
        customer: CustomerId,
        currency: Currency,
        named: Option<PaymentMethodId>,
    ) -> Result<Way> {
        let method = method::chargeable(scope, conn, customer, named).await?;
        let (preferred, disabled): (Option<ProviderID>, Vec<ProviderID>) = sqlx::query_as(
            "SELECT preferred_provider, disabled_providers FROM customer WHERE workspace_id = $1 AND id = $2",
        )
        .bind(scope.workspace_id)
        .bind(customer)
        .fetch_one(&mut *conn)
        .await
        .context("reading the preferences of a customer")?;
        let wanted = Wanted {
            mode: GatewayMode::of(scope.mode),
            currency,
            method_type: method.method_type,
            method_provider: method.provider,
            preferred,
            disabled: &disabled,
        };
        loop {
            let mut candidates = gateway::candidates(scope, conn).await?;
            candidates.retain(|candidate| self.gateways.can_charge(scope.mode, candidate.provider));
            let Some(gateway) = choose(&candidates, &wanted) else {
                let detail = format!("no gateway that is switched on takes {currency} from {}", method.method_type);
                return Err(Error::rule("NO_GATEWAY_AVAILABLE", detail).with("payment_method_id", method.id));
            };
            match gateway::hold(scope, conn, gateway.id).await {
                Ok(()) => {
                    let (gateway_id, provider) = (gateway.id, gateway.provider);
                    return Ok(Way::Gateway { gateway_id, provider, payment_method_id: method.id });
                }
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Steps 2 and 3 of a payment that is written and committed: asks its gateway and records the answer. Somebody who is at it
    /// already is left alone, and a payment that has its outcome stays as it is: the answer is how far it is.
    ///
    /// # Errors
    /// `NotFound`; as every statement. The payment then stays open, and the sweep goes on with it.
    pub async fn proceed(&self, scope: &Scope, id: TransactionId, attempt: Attempt) -> Result<Transaction> {
        let is_ours = match attempt {
            Attempt::First => true,
            Attempt::Again => transaction::claim_one(self.store.pool(), id, Clock::System.now()).await?,
        };
        if !is_ours {
            let mut conn = self.store.pool().acquire().await.context("waiting for a database connection")?;
            return transaction::get(scope, &mut conn, id).await;
        }
        self.ask(scope, id, attempt).await
    }

    /// The same for a payment that the caller has claimed.
    pub(crate) async fn ask(&self, scope: &Scope, id: TransactionId, attempt: Attempt) -> Result<Transaction> {
        let mut conn = self.store.pool().acquire().await.context("waiting for a database connection")?;
        let row = transaction::get(scope, &mut conn, id).await?;
        if !row.status.is_open() {
            return Ok(row);
        }
        let gateway = self.gateway_of(scope, &mut conn, &row).await?;
        let order = Order::of(scope, &mut conn, &row).await?;
        drop(conn); // a gateway may take its time
        let outcome = match (&row.provider_reference, &order) {
            (Some(reference), order) => gateway.status(order.subject(), reference).await,
            (None, Order::Charge(order)) => gateway.charge(order).await,
            (None, Order::Refund(order)) => gateway.refund(order).await,
        };
        let mut tx = self.store.begin("record_payment").await?;
        let recorded = record(scope, &mut tx, id, &outcome, attempt).await;
        tx.end(recorded).await
    }

    /// The gateway of an open payment.
    async fn gateway_of(&self, scope: &Scope, conn: &mut PgConnection, row: &Transaction) -> Result<Arc<dyn Gateway>> {
        let id = row.gateway_id;
        let id = id.ok_or_else(|| Error::invariant(format!("transaction {} is open and no gateway has it", row.id)))?;
        let gateway = gateway::get(scope, conn, id).await?;
        // Sandboxes ask nobody, so that test data can be copied without the key of its secrets.
        let secrets = match scope.mode {
            domain::WorkspaceMode::Sandbox => BTreeMap::new(),
            domain::WorkspaceMode::Live => gateway::secrets(conn, &self.vault, id).await?,
        };
        let settings = gateway.provider_settings;
        self.gateways.open(&Account { provider: gateway.provider, mode: scope.mode, secrets, settings })
    }
}

/// What a gateway is asked.
#[derive(Clone, Debug)]
enum Order {
    Charge(ChargeOrder),
    Refund(RefundOrder),
}

impl Order {
    async fn of(scope: &Scope, conn: &mut PgConnection, row: &Transaction) -> Result<Self> {
        match row.kind {
            TransactionKind::Refund => Self::refund(scope, conn, row).await.map(Self::Refund),
            _ => Self::charge(conn, row).await.map(Self::Charge),
        }
    }

    async fn charge(conn: &mut PgConnection, row: &Transaction) -> Result<ChargeOrder> {
        let method_id = row.payment_method_id;
        let method_id =
            method_id.ok_or_else(|| Error::invariant(format!("charge {} without an instrument", row.id)))?;
        let (method_type, token): (PaymentMethodType, String) =
            sqlx::query_as("SELECT type, provider_id FROM payment_method WHERE id = $1")
                .bind(method_id)
                .fetch_one(conn)
                .await
                .context("reading the token of a payment method")?;
        Ok(ChargeOrder {
            transaction_id: row.id,
            ordered_at: row.created_at,
            amount: row.amount,
            payment_method_id: method_id,
            method_type,
            token,
        })
    }

    async fn refund(scope: &Scope, conn: &mut PgConnection, row: &Transaction) -> Result<RefundOrder> {
        let parent = row.parent_transaction_id;
        let parent = parent.ok_or_else(|| Error::invariant(format!("refund {} of nothing", row.id)))?;
        let payment = transaction::get(scope, &mut *conn, parent).await?;
        let reference = payment.provider_reference;
        let refunded_total = transaction::refunded_with(scope, conn, row).await?;
        Ok(RefundOrder {
            transaction_id: row.id,
            ordered_at: row.created_at,
            charge_reference: reference
                .ok_or_else(|| Error::invariant(format!("payment {parent} has no reference")))?,
            amount: row.amount,
            refunded_total,
            payment_method_id: row.payment_method_id,
        })
    }

    fn subject(&self) -> Subject {
        match self {
            Self::Charge(_) => Subject::Charge,
            Self::Refund(_) => Subject::Refund,
        }
    }
}

/// Step 3: what the provider said, and everything that follows from it, in the caller's transaction. News of a payment that has
/// its outcome change nothing.
pub(crate) async fn record(
    scope: &Scope,
    tx: &mut Tx,
    id: TransactionId,
    outcome: &Outcome,
    attempt: Attempt,
) -> Result<Transaction> {
    let mut invoice = payable_of(scope, tx, id).await?;
    let row = transaction::lock(scope, tx, id).await?;
    if !row.status.is_open() {
        if matches!(outcome, Outcome::Succeeded { .. }) && row.failure_code.is_some() {
            tracing::error!(transaction.id = %id, "the provider has taken money for a payment that is recorded as failed");
        }
        return Ok(row);
    }
    let scope = at_customer(scope, tx.conn(), row.customer_id).await?;
    let real = Clock::System.now();
    let change = change_of(outcome, attempt, row.checks, real);
    let next = transaction::apply(&scope, tx, &row, &change).await?;
    match &change {
        Change::Succeed { .. } => succeed(&scope, tx, invoice.as_mut(), next).await,
        Change::Fail { code, .. } => {
            fail(&scope, tx, invoice.as_mut(), &next, (*code, real)).await?;
            Ok(next)
        }
        Change::Wait { .. } | Change::Refunded(_) | Change::Disputed => Ok(next),
    }
}

fn change_of(outcome: &Outcome, attempt: Attempt, checks: i32, real: Instant) -> Change {
    let later = || {
        let doubled = FIRST_RETRY * 2_i32.saturating_pow(checks.clamp(0, 10).unsigned_abs());
        Change::Wait { reference: None, next_check_at: real + doubled.min(POLL) }
    };
    match outcome {
        Outcome::Succeeded { reference } => Change::Succeed { reference: reference.clone() },
        Outcome::Pending { reference } => {
            Change::Wait { reference: Some(reference.clone()), next_check_at: real + POLL }
        }
        Outcome::Declined(decline) => {
            Change::Fail { code: decline.code, message: decline.message.clone(), reference: decline.reference.clone() }
        }
        Outcome::NotSent { detail } if attempt == Attempt::First => {
            Change::Fail { code: FailureCode::NetworkError, message: detail.clone(), reference: None }
        }
        Outcome::NotSent { detail } | Outcome::Unknown { detail } => {
            tracing::warn!(detail, "a payment gateway did not tell what became of a payment; it is asked again");
            later()
        }
    }
}

/// Tells that the money of a payment is there.
pub(crate) async fn announce_success(scope: &Scope, tx: &mut Tx, row: &Transaction) -> Result<()> {
    tx.emit(scope, "payment.succeeded", "transaction", row.id, row.payload()).await?;
    tell_wallet(scope, tx, row, "wallet.topup_succeeded").await
}

/// What follows from money that has moved.
async fn succeed(scope: &Scope, tx: &mut Tx, invoice: Option<&mut Payable>, row: Transaction) -> Result<Transaction> {
    match (row.kind, invoice, row.wallet_id) {
        (TransactionKind::WalletTopup, _, Some(wallet)) => {
            credit(scope, tx, wallet, &row).await?;
            announce_success(scope, tx, &row).await?;
            Ok(row)
        }
        (TransactionKind::Charge, Some(invoice), _) => {
            let row = settle(scope, tx, invoice, row).await?;
            announce_success(scope, tx, &row).await?;
            Ok(row)
        }
        (TransactionKind::Refund, Some(invoice), _) => {
            refund::finish(scope, tx, invoice, &row).await?;
            Ok(row)
        }
        _ => Err(Error::invariant(format!("nothing follows from a {} that succeeds", row.kind))),
    }
}

/// The money of a top-up goes to its wallet, booked under the transaction's own id: booking it twice is refused.
async fn credit(scope: &Scope, tx: &mut Tx, wallet: WalletId, row: &Transaction) -> Result<()> {
    let source = match row.is_automatic {
        true => WalletTransactionSource::AutoTopup,
        false => WalletTransactionSource::Topup,
    };
    let mut batch = ledger::lock_wallets(tx, scope, &[wallet]).await?;
    let details = Details::of(source).reference("transaction", row.id);
    batch.credit_received(wallet, TransferId(row.id.0), row.amount, &details)?;
    batch.write(tx, scope).await
}

/// What follows from money that has not moved.
async fn fail(
    scope: &Scope,
    tx: &mut Tx,
    invoice: Option<&mut Payable>,
    row: &Transaction,
    (code, real): (FailureCode, Instant),
) -> Result<()> {
    if row.kind == TransactionKind::Refund {
        return tx.emit(scope, "payment.refund_failed", "transaction", row.id, row.payload()).await;
    }
    if let (true, Some(wallet)) = (row.is_automatic, row.wallet_id) {
        ledger::lock_wallets(tx, scope, &[wallet]).await?; // the wish is written under the wallet's lock
        topup::pause(tx, wallet, real + TOPUP_PAUSE, code.is_soft()).await?;
    }
    if let (FailureCode::ExpiredCard, Some(method)) = (code, row.payment_method_id) {
        method::mark(scope, tx, method, PaymentMethodStatus::Expired).await?;
    }
    tx.emit(scope, "payment.failed", "transaction", row.id, row.payload()).await?;
    if let (TransactionKind::Charge, Some(invoice)) = (row.kind, invoice) {
        collect::failed(scope, tx, invoice, row, (code, real)).await?;
    }
    tell_wallet(scope, tx, row, "wallet.topup_failed").await
}

async fn tell_wallet(scope: &Scope, tx: &mut Tx, row: &Transaction, event: &str) -> Result<()> {
    let Some(wallet) = row.wallet_id.filter(|_| row.kind == TransactionKind::WalletTopup) else { return Ok(()) };
    let payload = json!({
        "wallet_id": wallet, "customer_id": row.customer_id, "transaction_id": row.id, "amount": row.amount,
        "is_automatic": row.is_automatic, "failure_code": row.failure_code, "failure_message": row.failure_message,
    });
    let payload = payload.as_object().cloned().unwrap_or_default();
    tx.emit(scope, event, "wallet", wallet, payload).await
}

/// One open payment of a workspace, as the sweep finds it.
pub(crate) type Open = (WorkspaceId, TransactionId);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Decline;

    #[test]
    fn only_the_first_attempt_may_conclude_from_silence() {
        let real = chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let wait = |secs| Change::Wait { reference: None, next_check_at: real + TimeDelta::seconds(secs) };
        let not_sent = Outcome::NotSent { detail: "refused".into() };
        let unknown = Outcome::Unknown { detail: "lost".into() };
        let failed = Change::Fail { code: FailureCode::NetworkError, message: "refused".into(), reference: None };
        let decline = Decline { code: FailureCode::Fraud, message: "no".into(), reference: Some("pi_1".into()) };
        let refused = Change::Fail { code: FailureCode::Fraud, message: "no".into(), reference: Some("pi_1".into()) };
        let taken = Change::Wait { reference: Some("pi_1".into()), next_check_at: real + POLL };
        for (outcome, attempt, checks, expected) in [
            (&not_sent, Attempt::First, 0, failed),
            (&not_sent, Attempt::Again, 0, wait(10)),
            (&unknown, Attempt::First, 0, wait(10)),
            (&unknown, Attempt::Again, 3, wait(80)),
            (&unknown, Attempt::Again, 99, wait(900)),
            (&Outcome::Declined(decline), Attempt::Again, 5, refused),
            (&Outcome::Pending { reference: "pi_1".into() }, Attempt::First, 0, taken),
        ] {
            assert_eq!(change_of(outcome, attempt, checks, real), expected, "{outcome:?} {attempt:?}");
        }
    }
}
