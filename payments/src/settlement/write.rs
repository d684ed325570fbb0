//! What is done with settlements. The row is locked first; of several of one customer, the customer before.

use billing::invoice::finalize::{DocumentKind, take_numbers};
use domain::error::FieldErrorCode as Code;
use domain::{
    Clock, Currency, CustomerId, Error, Instant, InvoiceId, JsonMap, Money, Result, Scope, SettlementId,
    SettlementLineId, TransactionId, TransferId,
};
use rust_decimal::Decimal;
use sqlx::FromRow;
use sqlx::types::Json;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::model::{Settlement, SettlementLineType, SettlementStatus};
use super::read::{get, lock};
use super::request::{GenerateSettlementRequest, PaySettlementRequest, VoidSettlementRequest};
use super::sum::{Sums, tax_on};
use crate::at_customer;
use crate::transaction::{self, ByHand, NewTransaction, Way};
use crate::words::TransactionKind;

/// A line to be written.
#[derive(Clone, Debug)]
struct NewLine {
    line_type: SettlementLineType,
    description: String,
    amount: Money,
    tax_rate: Option<Decimal>,
    tax_amount: Option<Money>,
    transaction_id: Option<TransactionId>,
    invoice_id: Option<InvoiceId>,
    reference: Option<String>,
    carried_from: Option<SettlementId>,
    metadata: JsonMap,
}

impl NewLine {
    fn new(line_type: SettlementLineType, description: String, amount: Money) -> Self {
        Self {
            line_type,
            description,
            amount,
            tax_rate: None,
            tax_amount: None,
            transaction_id: None,
            invoice_id: None,
            reference: None,
            carried_from: None,
            metadata: JsonMap::new(),
        }
    }
}

/// `POST /v1/settlements/generate`: a draft of the given lines or of the customer's movements in the period, and of what is to
/// be carried from earlier ones.
///
/// # Errors
/// `NotFound` for the customer, and for a transaction or invoice that a line names; `PERIOD_OVERLAP`.
pub async fn generate(scope: &Scope, tx: &mut Tx, request: &GenerateSettlementRequest) -> Result<Settlement> {
    lock_customer(scope, tx, request.customer_id).await?;
    let scope = &at_customer(scope, tx.conn(), request.customer_id).await?;
    refuse_overlap(scope, tx, request).await?;
    let mut lines = match &request.lines {
        Some(_) => given(scope, tx, request).await?,
        None => of_transactions(scope, tx, request).await?,
    };
    let carried = carried(scope, tx, request.customer_id, request.currency).await?;
    lines.extend(carried.iter().map(carry));
    let id = SettlementId::generate();
    insert(scope, tx, id, request, &lines).await?;
    sqlx::query("UPDATE settlement SET carried_into = $2, updated_at = $3 WHERE id = ANY($1)")
        .bind(carried.iter().map(|one| one.id.0).collect::<Vec<_>>())
        .bind(id)
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("carrying settlements")?;
    tell(scope, tx, id, "settlement.generated").await
}

/// Generations for one customer take turns: no two of them miss each other's period.
async fn lock_customer(scope: &Scope, tx: &mut Tx, id: CustomerId) -> Result<()> {
    let known: Option<bool> = sqlx::query_scalar(
        "SELECT true FROM customer WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_optional(tx.conn())
    .await
    .context("locking the customer of a settlement")?;
    known.map(|_| ()).ok_or_else(|| Error::not_found("customer", id))
}

async fn refuse_overlap(scope: &Scope, tx: &mut Tx, request: &GenerateSettlementRequest) -> Result<()> {
    let other: Option<SettlementId> = sqlx::query_scalar(
        "SELECT id FROM settlement WHERE workspace_id = $1 AND customer_id = $2 AND currency = $3 AND status <> 'void'
             AND deleted_at IS NULL AND period_start < $5 AND period_end > $4 ORDER BY period_start LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(request.customer_id)
    .bind(request.currency)
    .bind(request.period_start)
    .bind(request.period_end)
    .fetch_optional(tx.conn())
    .await
    .context("looking for settlements of the period")?;
    let Some(other) = other else { return Ok(()) };
    let detail = format!("settlement {other} of this customer and currency has a part of the period");
    Err(Error::conflict("PERIOD_OVERLAP", detail).with("settlement_id", other))
}

async fn given(scope: &Scope, tx: &mut Tx, request: &GenerateSettlementRequest) -> Result<Vec<NewLine>> {
    let lines = request.lines.as_deref().unwrap_or_default();
    let transactions: Vec<Uuid> = lines.iter().filter_map(|line| line.transaction_id).map(|id| id.0).collect();
    let invoices: Vec<Uuid> = lines.iter().filter_map(|line| line.invoice_id).map(|id| id.0).collect();
    let unknown: Option<(String, Uuid)> = sqlx::query_as(
        "SELECT 'transaction', id FROM unnest($2::uuid[]) AS asked (id)
         WHERE NOT EXISTS (SELECT FROM payment_transaction t WHERE t.workspace_id = $1 AND t.id = asked.id)
         UNION ALL
         SELECT 'invoice', id FROM unnest($3::uuid[]) AS asked (id)
         WHERE NOT EXISTS (SELECT FROM invoice i WHERE i.workspace_id = $1 AND i.id = asked.id AND i.deleted_at IS NULL)
         LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(transactions)
    .bind(invoices)
    .fetch_optional(tx.conn())
    .await
    .context("looking for what lines of a settlement name")?;
    if let Some((entity, id)) = unknown {
        return Err(Error::not_found(if entity == "invoice" { "invoice" } else { "transaction" }, id));
    }
    let line = |given: &super::GenerateSettlementLine| {
        Ok(NewLine {
            tax_rate: given.tax_rate,
            tax_amount: given.tax_rate.map(|rate| tax_on(given.amount, rate)).transpose()?,
            transaction_id: given.transaction_id,
            invoice_id: given.invoice_id,
            reference: given.reference.clone(),
            metadata: given.metadata.clone(),
            ..NewLine::new(given.line_type, given.description.clone(), given.amount)
        })
    };
    lines.iter().map(line).collect()
}

#[derive(FromRow)]
struct MovementRow {
    id: TransactionId,
    invoice_id: Option<InvoiceId>,
    kind: TransactionKind,
    amount: Decimal,
    reference: Option<String>,
}

/// One line per movement of the period that had an outcome in it. Money for wallets is nobody's earning yet, and what is given
/// back of it is none either: it is one when the wallet pays an invoice with it, so that nothing is counted twice.
async fn of_transactions(scope: &Scope, tx: &mut Tx, request: &GenerateSettlementRequest) -> Result<Vec<NewLine>> {
    let rows: Vec<MovementRow> = sqlx::query_as(
        "SELECT t.id, t.invoice_id, t.kind, t.amount - t.excess_amount AS amount, coalesce(t.reference, t.provider_reference) AS reference
         FROM payment_transaction t LEFT JOIN payment_transaction parent ON parent.id = t.parent_transaction_id
             LEFT JOIN invoice ON invoice.id = t.invoice_id
         WHERE t.workspace_id = $1 AND t.customer_id = $2 AND t.currency = $3 AND t.processed_at >= $4 AND t.processed_at < $5
           AND t.status IN ('SUCCEEDED', 'PARTIALLY_REFUNDED', 'REFUNDED', 'DISPUTED')
           AND t.kind IN ('CHARGE', 'MANUAL_PAYMENT', 'WALLET_PAYMENT', 'REFUND', 'CHARGEBACK')
           AND parent.kind IS DISTINCT FROM 'WALLET_TOPUP' AND invoice.topup_wallet_id IS NULL
           AND t.amount > t.excess_amount
         ORDER BY t.processed_at, t.id",
    )
    .bind(scope.workspace_id)
    .bind(request.customer_id)
    .bind(request.currency)
    .bind(request.period_start)
    .bind(request.period_end)
    .fetch_all(tx.conn())
    .await
    .context("reading the movements of a settlement")?;
    let line = |row: MovementRow| {
        let (line_type, description) = match row.kind {
            TransactionKind::Refund => (SettlementLineType::Refund, "Refund"),
            TransactionKind::Chargeback => (SettlementLineType::Chargeback, "Charge-back"),
            _ => (SettlementLineType::Earning, "Payment"),
        };
        let amount = Money::new(row.amount, request.currency)?;
        Ok(NewLine {
            transaction_id: Some(row.id),
            invoice_id: row.invoice_id,
            reference: row.reference,
            ..NewLine::new(line_type, description.to_owned(), amount)
        })
    };
    rows.into_iter().map(line).collect()
}

/// Finalized settlements that come to less than nothing and are in no later one yet.
async fn carried(scope: &Scope, tx: &mut Tx, customer: CustomerId, currency: Currency) -> Result<Vec<Settlement>> {
    sqlx::query_as(
        "SELECT * FROM settlement WHERE workspace_id = $1 AND customer_id = $2 AND currency = $3 AND status = 'finalized'
             AND net_payout < 0 AND carried_into IS NULL ORDER BY period_start, id FOR NO KEY UPDATE",
    )
    .bind(scope.workspace_id)
    .bind(customer)
    .bind(currency)
    .fetch_all(tx.conn())
    .await
    .context("looking for settlements to carry")
}

fn carry(earlier: &Settlement) -> NewLine {
    let number = earlier.settlement_number.clone();
    let description = format!("Carried from {}", number.as_deref().unwrap_or("an earlier settlement"));
    NewLine {
        reference: number,
        carried_from: Some(earlier.id),
        ..NewLine::new(SettlementLineType::Adjustment, description, earlier.net_payout)
    }
}

async fn insert(
    scope: &Scope,
    tx: &mut Tx,
    id: SettlementId,
    request: &GenerateSettlementRequest,
    lines: &[NewLine],
) -> Result<()> {
    let sums = Sums::of(request.currency, lines.iter().map(|line| (line.line_type, line.amount, line.tax_amount)))?;
    sqlx::query(
        "INSERT INTO settlement (id, organization_id, workspace_id, customer_id, currency, period_start, period_end, status,
             gross_earnings, total_fees, total_fee_tax, total_withholding, net_payout, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'draft', $8, $9, $10, $11, $12, $13, $13)",
    )
    .bind(id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(request.customer_id)
    .bind(request.currency)
    .bind(request.period_start)
    .bind(request.period_end)
    .bind(sums.gross_earnings.amount())
    .bind(sums.total_fees.amount())
    .bind(sums.total_fee_tax.amount())
    .bind(sums.total_withholding.amount())
    .bind(sums.net_payout()?.amount())
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("writing a settlement")?;
    insert_lines(scope, tx, id, lines).await
}

async fn insert_lines(scope: &Scope, tx: &mut Tx, id: SettlementId, lines: &[NewLine]) -> Result<()> {
    sqlx::query(
        "INSERT INTO settlement_line (id, workspace_id, settlement_id, ordinal, type, description, amount, currency, tax_rate,
             tax_amount, transaction_id, invoice_id, reference, carried_from, metadata, created_at)
         SELECT l.id, $1, $2, l.ordinal, l.type, l.description, l.amount, l.currency, l.tax_rate, l.tax_amount,
             l.transaction_id, l.invoice_id, l.reference, l.carried_from, l.metadata, $15
         FROM unnest($3::uuid[], $4::int[], $5::text[], $6::text[], $7::numeric[], $8::text[], $9::numeric[], $10::numeric[],
             $11::uuid[], $12::uuid[], $13::text[], $14::uuid[], $16::jsonb[])
             AS l (id, ordinal, type, description, amount, currency, tax_rate, tax_amount, transaction_id, invoice_id,
                 reference, carried_from, metadata)",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(lines.iter().map(|_| SettlementLineId::generate().0).collect::<Vec<_>>())
    .bind((0..).take(lines.len()).collect::<Vec<i32>>())
    .bind(lines.iter().map(|line| line.line_type.as_str()).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.description.as_str()).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.amount.amount()).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.amount.currency()).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.tax_rate).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.tax_amount.map(|tax| tax.amount())).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.transaction_id.map(|id| id.0)).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.invoice_id.map(|id| id.0)).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.reference.as_deref()).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.carried_from.map(|id| id.0)).collect::<Vec<_>>())
    .bind(scope.now())
    .bind(lines.iter().map(|line| Json(&line.metadata)).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .context("writing the lines of a settlement")?;
    Ok(())
}

/// Announces what became of a settlement, and answers it with its lines.
async fn tell(scope: &Scope, tx: &mut Tx, id: SettlementId, event: &'static str) -> Result<Settlement> {
    let settlement = get(scope, tx.conn(), id).await?;
    tx.emit(scope, event, "settlement", id, store::payload(&settlement)?).await?;
    Ok(settlement)
}

/// The locked settlement at its customer's time, if it may go there.
async fn going(scope: &Scope, tx: &mut Tx, id: SettlementId, to: SettlementStatus) -> Result<(Scope, Settlement)> {
    let settlement = lock(scope, tx, id).await?;
    let next = settlement.status.next();
    if !next.contains(&to) {
        let allowed: Vec<_> = next.iter().map(|status| status.as_str()).collect();
        let (from, to) = (settlement.status.as_str(), to.as_str());
        return Err(Error::invalid_transition("settlement", id, from, to, &allowed));
    }
    Ok((at_customer(scope, tx.conn(), settlement.customer_id).await?, settlement))
}

/// What this settlement adds to what is owed: what it carries from earlier ones was booked with those.
async fn own_part(tx: &mut Tx, settlement: &Settlement) -> Result<Money> {
    let carried: Decimal = sqlx::query_scalar(
        "SELECT coalesce(sum(amount), 0) FROM settlement_line WHERE settlement_id = $1 AND carried_from IS NOT NULL",
    )
    .bind(settlement.id)
    .fetch_one(tx.conn())
    .await
    .context("reading what a settlement carries")?;
    Ok(settlement.net_payout.sub(Money::new(carried, settlement.currency)?)?)
}

/// `POST /v1/settlements/{id}/finalize`: gives the number and books what is owed.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` unless it is a draft.
pub async fn finalize(scope: &Scope, tx: &mut Tx, id: SettlementId) -> Result<Settlement> {
    let (scope, settlement) = going(scope, tx, id, SettlementStatus::Finalized).await?;
    let owed = own_part(tx, &settlement).await?;
    let transfer = ledger::settlement::owed(&scope, TransferId(Uuid::new_v5(&id.0, b"finalized")), id, owed)?;
    ledger::post_new(tx, &scope, transfer.as_slice()).await?;
    // The number last: its row is locked until the commit (rule D6).
    let number = take_numbers(&scope, tx.conn(), DocumentKind::Settlement, 1).await?;
    sqlx::query(
        "UPDATE settlement SET status = 'finalized', settlement_number = $2, finalized_at = $3, updated_at = $3 WHERE id = $1",
    )
    .bind(id)
    .bind(format!("SET-{number:06}"))
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("finalizing a settlement")?;
    tell(&scope, tx, id, "settlement.finalized").await
}

/// `POST /v1/settlements/{id}/pay`: the money has left; nothing leaves for a payout of zero.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` unless it is finalized; a rule for a negative payout; `Validation` for a payout in the future.
pub async fn pay(scope: &Scope, tx: &mut Tx, id: SettlementId, request: &PaySettlementRequest) -> Result<Settlement> {
    let (scope, settlement) = going(scope, tx, id, SettlementStatus::Paid).await?;
    let paid_at = request.paid_at.unwrap_or_else(|| scope.now());
    if paid_at > scope.now() {
        return Err(Error::field("paid_at", Code::OutOfRange, "must not be in the future"));
    }
    if settlement.net_payout.is_negative() {
        let detail =
            format!("the counterparty owes {}: it is carried into the next settlement", settlement.net_payout.negate());
        return Err(Error::business_rule(detail).with("net_payout", settlement.net_payout));
    }
    if !settlement.net_payout.is_zero() {
        pay_out(&scope, tx, &settlement, paid_at, request.reference.clone()).await?;
    }
    sqlx::query(
        "UPDATE settlement SET status = 'paid', paid_at = $2, payout_reference = $3, updated_at = $4 WHERE id = $1",
    )
    .bind(id)
    .bind(paid_at)
    .bind(&request.reference)
    .bind(scope.now())
    .execute(tx.conn())
    .await
    .context("paying a settlement out")?;
    tell(&scope, tx, id, "settlement.paid").await
}

async fn pay_out(
    scope: &Scope,
    tx: &mut Tx,
    settlement: &Settlement,
    paid_at: Instant,
    reference: Option<String>,
) -> Result<()> {
    let way = Way::Hand(ByHand { source: None, reference, received_at: Some(paid_at) });
    let (customer, amount) = (settlement.customer_id, settlement.net_payout);
    let new = NewTransaction::new(customer, TransactionKind::Payout, amount, way).of_settlement(settlement.id);
    let row = transaction::insert(scope, tx, &new, Clock::System.now()).await?;
    let transfer = ledger::settlement::payout(scope, TransferId(row.id.0), settlement.id, amount)?;
    ledger::post_new(tx, scope, &[transfer]).await
}

/// `POST /v1/settlements/{id}/void`: takes back what was booked, and what it had carried is to be carried again.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` of a paid or void one, and of one that a later one has taken over.
pub async fn void(scope: &Scope, tx: &mut Tx, id: SettlementId, request: &VoidSettlementRequest) -> Result<Settlement> {
    let (scope, settlement) = going(scope, tx, id, SettlementStatus::Void).await?;
    if let Some(later) = settlement.carried_into {
        let detail = format!("settlement {later} has taken its negative payout over: void or delete that first");
        return Err(Error::conflict("INVALID_TRANSITION", detail).with("settlement_id", later));
    }
    if settlement.status == SettlementStatus::Finalized {
        let owed = own_part(tx, &settlement).await?.negate();
        let transfer = ledger::settlement::owed(&scope, TransferId(Uuid::new_v5(&id.0, b"void")), id, owed)?;
        ledger::post_new(tx, &scope, transfer.as_slice()).await?;
    }
    release(tx, id).await?;
    sqlx::query("UPDATE settlement SET status = 'void', void_reason = $2, updated_at = $3 WHERE id = $1")
        .bind(id)
        .bind(&request.reason)
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("voiding a settlement")?;
    tell(&scope, tx, id, "settlement.voided").await
}

/// `DELETE /v1/settlements/{id}`: sets `deleted_at` of a draft.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` unless it is a draft.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: SettlementId) -> Result<()> {
    let settlement = lock(scope, tx, id).await?;
    if settlement.status != SettlementStatus::Draft {
        return Err(Error::invalid_transition("settlement", id, settlement.status.as_str(), "deleted", &[]));
    }
    let scope = at_customer(scope, tx.conn(), settlement.customer_id).await?;
    release(tx, id).await?;
    sqlx::query("UPDATE settlement SET deleted_at = $2, updated_at = $2 WHERE id = $1")
        .bind(id)
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("deleting a settlement")?;
    tx.emit(&scope, "settlement.deleted", "settlement", id, store::payload(&settlement)?).await
}

/// What the settlement has carried is in none again.
async fn release(tx: &mut Tx, id: SettlementId) -> Result<()> {
    sqlx::query("UPDATE settlement SET carried_into = NULL WHERE carried_into = $1")
        .bind(id)
        .execute(tx.conn())
        .await
        .context("releasing carried settlements")?;
    Ok(())
}
