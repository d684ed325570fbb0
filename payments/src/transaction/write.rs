//! Writes of the ledger of payments.

use billing::invoice::Payable;
use chrono::TimeDelta;
use domain::{
    CustomerId, Error, Instant, InvoiceId, JsonMap, Money, PaymentGatewayId, PaymentMethodId, ProviderID, Result,
    Scope, SettlementId, SubscriptionId, TransactionId, WalletId, WorkspaceId,
};
use sqlx::PgPool;
use sqlx::types::Json;
use store::{StoreError, Tx, on_constraint};

use super::model::Transaction;
use crate::words::{FailureCode, ManualPaymentSource, TransactionKind, TransactionStatus};

/// How long a row belongs to whoever asks its gateway: longer than any call takes, which is 139 s at most (three requests of 15 s with
/// their pauses, up to three times).
const LEASE: TimeDelta = TimeDelta::minutes(3);

/// How new money is on its way.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// A gateway is to be asked: the row begins as PENDING, and belongs to its writer for a while.
    Gateway { gateway_id: PaymentGatewayId, provider: ProviderID, payment_method_id: PaymentMethodId },
    /// It went by hand: the row begins as SUCCEEDED.
    Hand(ByHand),
    /// It went at a provider, who told us: the row begins as SUCCEEDED.
    Told { gateway_id: PaymentGatewayId, provider: ProviderID, payment_method_id: Option<PaymentMethodId> },
}

/// Money that no gateway moved.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByHand {
    pub source: Option<ManualPaymentSource>,
    pub reference: Option<String>,
    /// When it arrived; now when left out.
    pub received_at: Option<Instant>,
}

/// A row to be written.
#[derive(Clone, Debug)]
pub(crate) struct NewTransaction {
    pub customer_id: CustomerId,
    pub wallet_id: Option<WalletId>,
    pub invoice: Option<(InvoiceId, Option<SubscriptionId>)>,
    pub settlement: Option<SettlementId>,
    pub parent: Option<TransactionId>,
    pub kind: TransactionKind,
    pub amount: Money,
    pub way: Way,
    pub is_automatic: bool,
    pub attempt: i32,
    pub is_credited: bool,
    pub metadata: JsonMap,
}

impl NewTransaction {
    /// Of a customer; for nothing yet.
    pub fn new(customer_id: CustomerId, kind: TransactionKind, amount: Money, way: Way) -> Self {
        Self {
            customer_id,
            wallet_id: None,
            invoice: None,
            settlement: None,
            parent: None,
            kind,
            amount,
            way,
            is_automatic: false,
            attempt: 1,
            is_credited: false,
            metadata: JsonMap::new(),
        }
    }

    /// Fills a wallet.
    pub fn of_wallet(self, id: WalletId) -> Self {
        Self { wallet_id: Some(id), ..self }
    }

    /// Belongs to an invoice.
    pub fn of_invoice(self, invoice: &Payable) -> Self {
        Self { invoice: Some((invoice.id, invoice.subscription_id)), ..self }
    }

    /// Pays a settlement out.
    pub fn of_settlement(self, id: SettlementId) -> Self {
        Self { settlement: Some(id), ..self }
    }

    /// Gives back a payment, of whatever that was for.
    pub fn back(payment: &Transaction, kind: TransactionKind, amount: Money, way: Way) -> Self {
        Self {
            wallet_id: payment.wallet_id.filter(|_| payment.kind == TransactionKind::WalletTopup),
            invoice: payment.invoice_id.map(|id| (id, payment.subscription_id)),
            parent: Some(payment.id),
            ..Self::new(payment.customer_id, kind, amount, way)
        }
    }
}

/// Writes a row. `scope` has the customer's time, `real` is the machine's.
pub(crate) async fn insert(scope: &Scope, tx: &mut Tx, new: &NewTransaction, real: Instant) -> Result<Transaction> {
    let (gateway, provider, method, is_open) = match &new.way {
        Way::Gateway { gateway_id, provider, payment_method_id } => {
            (Some(*gateway_id), *provider, Some(*payment_method_id), true)
        }
        Way::Hand(_) => (None, ProviderID::External, None, false),
        Way::Told { gateway_id, provider, payment_method_id } => {
            (Some(*gateway_id), *provider, *payment_method_id, false)
        }
    };
    let hand = if let Way::Hand(hand) = &new.way { hand.clone() } else { ByHand::default() };
    let (invoice, subscription) = new.invoice.unzip();
    let now = scope.now();
    let status = if is_open { TransactionStatus::Pending } else { TransactionStatus::Succeeded };
    let inserted = sqlx::query_as(
        "INSERT INTO payment_transaction (id, organization_id, workspace_id, customer_id, wallet_id, invoice_id,
             subscription_id, payment_method_id, gateway_id, parent_transaction_id, provider, direction, kind, status, amount,
             currency, source, reference, is_automatic, attempt, is_credited, processed_at, next_check_at, metadata, created_at,
             updated_at, settlement_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
             $25, $25, $26)
         RETURNING *",
    )
    .bind(TransactionId::generate())
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(new.customer_id)
    .bind(new.wallet_id)
    .bind(invoice)
    .bind(subscription.flatten())
    .bind(method)
    .bind(gateway)
    .bind(new.parent)
    .bind(provider)
    .bind(new.kind.direction())
    .bind(new.kind)
    .bind(status)
    .bind(new.amount.amount())
    .bind(new.amount.currency())
    .bind(hand.source)
    .bind(hand.reference)
    .bind(new.is_automatic)
    .bind(new.attempt)
    .bind(new.is_credited)
    .bind((!is_open).then(|| hand.received_at.unwrap_or(now)))
    .bind(is_open.then_some(real + LEASE))
    .bind(Json(&new.metadata))
    .bind(now)
    .bind(new.settlement)
    .fetch_one(tx.conn())
    .await;
    on_constraint(inserted, "writing a transaction", |constraint| match constraint {
        "payment_transaction_auto_topup" => {
            Some(Error::conflict("CONFLICT", "an automatic top-up of this wallet is under way"))
        }
        "payment_transaction_open_charge" => Some(Error::conflict("CONFLICT", "a charge of this invoice is under way")),
        _ => None,
    })
}

/// Notes that a part of a payment was more than its invoice was owed, and on which wallet that is now; of a movement that takes a
/// payment back, that a part left that wallet instead of the invoice.
pub(crate) async fn note_excess(
    tx: &mut Tx,
    row: &Transaction,
    wallet: WalletId,
    excess: Money,
) -> Result<Transaction> {
    sqlx::query_as("UPDATE payment_transaction SET wallet_id = $2, excess_amount = $3 WHERE id = $1 RETURNING *")
        .bind(row.id)
        .bind(wallet)
        .bind(excess.amount())
        .fetch_one(tx.conn())
        .await
        .context("noting what was paid beyond an invoice")
}

/// What becomes of a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// It stays open; the provider is asked again at an instant of real time.
    Wait { reference: Option<String>, next_check_at: Instant },
    /// The money has moved.
    Succeed { reference: String },
    /// It has not and will not.
    Fail { code: FailureCode, message: String, reference: Option<String> },
    /// So much was given back so far.
    Refunded(Money),
    /// It is contested.
    Disputed,
}

/// Changes a locked row by legal moves only, and says what it is then.
pub(crate) async fn apply(scope: &Scope, tx: &mut Tx, row: &Transaction, change: &Change) -> Result<Transaction> {
    use TransactionStatus as Status;
    let id = row.id;
    // A gateway that answers at once has had the order for a moment, too.
    let taken = |status: Status| if status == Status::Pending { status.go(id, Status::Processing) } else { Ok(status) };
    let mut next = row.clone();
    let mut next_check_at = None;
    match change {
        Change::Wait { reference, next_check_at: at } => {
            if reference.is_some() {
                next.status = taken(row.status)?;
                next.provider_reference = row.provider_reference.clone().or_else(|| reference.clone());
            }
            next_check_at = Some(*at);
            next.checks += 1;
        }
        Change::Succeed { reference } => {
            next.status = taken(row.status)?.go(id, Status::Succeeded)?;
            next.provider_reference = row.provider_reference.clone().or_else(|| Some(reference.clone()));
        }
        Change::Fail { code, message, reference } => {
            next.status = taken(row.status)?.go(id, Status::Failed)?;
            next.failure_code = Some(code.to_string());
            next.failure_message = Some(message.clone());
            next.provider_reference = row.provider_reference.clone().or_else(|| reference.clone());
        }
        Change::Refunded(total) => {
            let to = if *total == row.amount { Status::Refunded } else { Status::PartiallyRefunded };
            next.status = row.status.go(id, to)?;
            next.refunded_amount = *total;
        }
        Change::Disputed => next.status = row.status.go(id, Status::Disputed)?,
    }
    next.updated_at = scope.now();
    if !next.status.is_open() {
        next.processed_at = row.processed_at.or(Some(scope.now()));
    }
    write(tx, &next, next_check_at).await?;
    Ok(next)
}

async fn write(tx: &mut Tx, row: &Transaction, next_check_at: Option<Instant>) -> Result<()> {
    sqlx::query(
        "UPDATE payment_transaction SET status = $2, provider_reference = $3, failure_code = $4, failure_message = $5,
             refunded_amount = $6, processed_at = $7, next_check_at = $8, checks = $9, updated_at = $10
         WHERE id = $1",
    )
    .bind(row.id)
    .bind(row.status)
    .bind(&row.provider_reference)
    .bind(&row.failure_code)
    .bind(&row.failure_message)
    .bind(row.refunded_amount.amount())
    .bind(row.processed_at)
    .bind(next_check_at)
    .bind(row.checks)
    .bind(row.updated_at)
    .execute(tx.conn())
    .await
    .context("writing the outcome of a transaction")?;
    Ok(())
}

/// Takes open rows that nobody works on, in the order in which they are due.
pub(crate) async fn claim_due(pool: &PgPool, real: Instant, limit: i64) -> Result<Vec<(WorkspaceId, TransactionId)>> {
    sqlx::query_as(
        "UPDATE payment_transaction SET next_check_at = $2 WHERE id IN (
             SELECT id FROM payment_transaction
             WHERE status IN ('PENDING', 'PROCESSING') AND next_check_at <= $1
             ORDER BY next_check_at LIMIT $3 FOR UPDATE SKIP LOCKED)
         RETURNING workspace_id, id",
    )
    .bind(real)
    .bind(real + LEASE)
    .bind(limit)
    .fetch_all(pool)
    .await
    .context("claiming open payments")
}

/// Keeps rows that wait for their turn: from here on they belong to their writer for a whole lease.
pub(crate) async fn renew(pool: &PgPool, ids: &[TransactionId], real: Instant) -> Result<()> {
    sqlx::query(
        "UPDATE payment_transaction SET next_check_at = $2 WHERE id = ANY($1) AND status IN ('PENDING', 'PROCESSING')",
    )
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .bind(real + LEASE)
    .execute(pool)
    .await
    .context("keeping open payments")?;
    Ok(())
}

/// Takes one row, if it is open and nobody works on it.
pub(crate) async fn claim_one(pool: &PgPool, id: TransactionId, real: Instant) -> Result<bool> {
    let claimed = sqlx::query(
        "UPDATE payment_transaction SET next_check_at = $3
         WHERE id = $1 AND status IN ('PENDING', 'PROCESSING') AND next_check_at <= $2",
    )
    .bind(id)
    .bind(real)
    .bind(real + LEASE)
    .execute(pool)
    .await
    .context("claiming an open payment")?;
    Ok(claimed.rows_affected() == 1)
}
