//! Locked wallets and what is about to be booked on them, written in a few statements however many operations there are
//! (DESIGN section 5, Throughput).

use std::collections::{BTreeMap, BTreeSet};

use domain::{Clock, Error, HoldId, Instant, JsonMap, Money, Result, Scope, TransferId, WalletId, WalletTransactionId};
use sqlx::AssertSqlSafe;
use store::{DomainEvent, Patience, StoreError, Tx};
use uuid::Uuid;

use super::entry::{Movement, Operation, WalletEntry};
use super::model::{HoldStatus, Wallet, WalletBalanceKind, WalletDTO, WalletHold, WalletTransactionSource};
use super::row::{WALLET_COLUMNS, WALLET_FROM, WalletRow};
use super::topup;
use crate::account::{Account, WalletAccount, WorkspaceAccount};
use crate::transfer::{Transfer, TransferKind, post_new};
use crate::wallet::WalletTransactionType;

/// What a movement says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Details {
    /// Cause.
    pub source: WalletTransactionSource,
    /// For people.
    pub description: Option<String>,
    /// What it belongs to, e.g. `invoice`.
    pub reference_type: Option<String>,
    /// Its id.
    pub reference_id: Option<Uuid>,
    /// The key that the caller gave.
    pub idempotency_key: Option<String>,
    /// The caller's own.
    pub metadata: JsonMap,
}

impl Details {
    /// Nothing but a cause.
    #[must_use]
    pub fn of(source: WalletTransactionSource) -> Self {
        Self {
            source,
            description: None,
            reference_type: None,
            reference_id: None,
            idempotency_key: None,
            metadata: JsonMap::new(),
        }
    }

    /// Names what the movement belongs to.
    #[must_use]
    pub fn reference(mut self, reference_type: &str, reference_id: impl Into<Uuid>) -> Self {
        self.reference_type = Some(reference_type.to_owned());
        self.reference_id = Some(reference_id.into());
        self
    }
}

#[derive(Clone, Debug)]
struct Locked {
    row: WalletRow,
    now: Instant,
    changed: bool,
}

/// Wallets locked in this transaction, and what operations decided on them. Nothing is stored before
/// [`WalletBatch::write`].
#[derive(Debug)]
pub struct WalletBatch {
    wallets: BTreeMap<WalletId, Locked>,
    transfers: Vec<Transfer>,
    movements: Vec<Movement>,
    pub(super) placed: Vec<WalletHold>,
    pub(super) ended: Vec<WalletHold>,
    /// Wallets at the operations that took their cash below their threshold.
    fell: Vec<Wallet>,
    /// Wallets that an operation left wanting an automatic top-up.
    wanting: BTreeSet<WalletId>,
}

/// The guard of the workspace `$1`, in a form that no index takes: only its id is to lead to a wallet (`store::group`).
const OWN: &str = "wallet.workspace_id IS NOT DISTINCT FROM $1";

/// Locks wallets in id order and lets what is due lapse, at the scope's instant (rule D4).
///
/// # Errors
/// `NotFound` for a wallet that is not of this workspace.
pub async fn lock_wallets(tx: &mut Tx, scope: &Scope, ids: &[WalletId]) -> Result<WalletBatch> {
    let batch = WalletBatch::lock(tx, scope, ids, Patience::Wait).await?;
    if let Some(missing) = ids.iter().find(|id| !batch.is_locked(**id)) {
        return Err(Error::not_found("wallet", missing));
    }
    Ok(batch)
}

impl WalletBatch {
    /// Locks wallets in id order, all or those that are free, and lets what is due lapse, at the scope's instant (rule D4).
    /// Wallets that are not of this workspace are absent.
    ///
    /// # Errors
    /// As every statement.
    pub async fn lock(tx: &mut Tx, scope: &Scope, ids: &[WalletId], patience: Patience) -> Result<Self> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        // Two statements: what is read beside the locked row must be as new as the lock, and only a statement that begins
        // after it sees that.
        let sql = format!("SELECT id FROM wallet WHERE {OWN} AND id = ANY($2) ORDER BY id {}", patience.clause());
        let locked: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(scope.workspace_id)
            .bind(&ids)
            .fetch_all(tx.conn())
            .await
            .context("locking wallets")?;
        let sql = format!(
            "SELECT {WALLET_COLUMNS} FROM {WALLET_FROM} WHERE {OWN} AND wallet.id = ANY($2) ORDER BY wallet.id"
        );
        let rows: Vec<WalletRow> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(scope.workspace_id)
            .bind(&locked)
            .fetch_all(tx.conn())
            .await
            .context("reading locked wallets")?;
        let mut batch = Self::of(rows, scope);
        batch.lapse(tx, scope).await?;
        Ok(batch)
    }

    /// Whether a wallet is locked, and operations can be decided on it.
    #[must_use]
    pub fn is_locked(&self, id: WalletId) -> bool {
        self.wallets.contains_key(&id)
    }

    fn of(rows: Vec<WalletRow>, scope: &Scope) -> Self {
        let wallets = rows.into_iter().map(|mut row| {
            let now = booking_instant(&row, scope);
            if row.wallet.promotional_balance.is_zero() && row.expiry_has_passed(now) {
                row.wallet.promotional_balance_expires_at = None;
            }
            (row.wallet.id, Locked { now, changed: false, row })
        });
        Self {
            wallets: wallets.collect(),
            transfers: Vec::new(),
            movements: Vec::new(),
            placed: Vec::new(),
            ended: Vec::new(),
            fell: Vec::new(),
            wanting: BTreeSet::new(),
        }
    }

    /// A wallet as the operations so far leave it.
    ///
    /// # Errors
    /// `Internal` for a wallet that is not locked.
    pub fn wallet(&self, id: WalletId) -> Result<WalletDTO> {
        self.locked(id)?.row.clone().into_dto()
    }

    /// The instant at which this batch books on a wallet.
    ///
    /// # Errors
    /// `Internal` for a wallet that is not locked.
    pub fn now(&self, id: WalletId) -> Result<Instant> {
        Ok(self.locked(id)?.now)
    }

    /// The movement that an operation of this batch made, the last where it made two; none where no money was at stake.
    #[must_use]
    pub fn movement_of(&self, transfer_id: TransferId) -> Option<WalletTransactionId> {
        self.movements.iter().rfind(|movement| movement.transfer_id == transfer_id).map(|movement| movement.row.id)
    }

    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.transfers.is_empty()
    }

    fn locked(&self, id: WalletId) -> Result<&Locked> {
        self.wallets.get(&id).ok_or_else(|| Error::invariant(format!("wallet {id} is not locked")))
    }

    /// A copy for one operation to work on.
    pub(super) fn entry(&self, id: WalletId) -> Result<WalletEntry> {
        let locked = self.locked(id)?;
        Ok(WalletEntry { row: locked.row.clone(), now: locked.now, movements: Vec::new() })
    }

    /// Keeps what an operation did to its copies.
    pub(super) fn keep(&mut self, entries: impl IntoIterator<Item = WalletEntry>, transfer: Transfer) {
        for entry in entries {
            self.movements.extend(entry.movements);
            if let Some(locked) = self.wallets.get_mut(&entry.row.wallet.id) {
                if has_fallen(&locked.row.wallet, &entry.row.wallet) {
                    self.fell.push(entry.row.wallet.clone());
                }
                if topup::is_wanted(&locked.row.wallet, &entry.row.wallet) {
                    self.wanting.insert(entry.row.wallet.id);
                }
                locked.row = entry.row;
                locked.changed = true;
            }
        }
        self.transfers.push(transfer);
    }

    /// Expires holds, then promotional credit.
    async fn lapse(&mut self, tx: &mut Tx, scope: &Scope) -> Result<()> {
        let due: Vec<Uuid> =
            self.wallets.iter().filter(|(_, l)| l.row.holds_are_due(l.now)).map(|(id, _)| id.0).collect();
        if !due.is_empty() {
            let holds: Vec<WalletHold> = sqlx::query_as(
                "SELECT * FROM wallet_hold WHERE workspace_id = $1 AND wallet_id = ANY($2) AND status = 'PENDING'
                 ORDER BY expires_at, id",
            )
            .bind(scope.workspace_id)
            .bind(due)
            .fetch_all(tx.conn())
            .await
            .context("reading holds that are due")?;
            for hold in &holds {
                if self.locked(hold.wallet_id)?.now >= hold.expires_at {
                    self.end_hold(hold, HoldStatus::Expired, TransferId::generate())?;
                }
            }
        }
        let wallets = self.wallets.iter().filter(|(_, locked)| locked.row.promotional_is_due(locked.now));
        for id in wallets.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.expire_promotional(id)?;
        }
        Ok(())
    }

    fn expire_promotional(&mut self, id: WalletId) -> Result<()> {
        let mut entry = self.entry(id)?;
        let amount = entry.row.wallet.promotional_balance;
        let details = Details::of(WalletTransactionSource::System);
        let operation = Operation::new(TransferId::generate(), WalletTransactionType::Expiry, &details);
        entry.record(&operation, WalletBalanceKind::Promotional, amount.negate())?;
        let transfer = operation
            .draft(TransferKind::PromotionalExpiry, entry.now)
            .debit(entry.account(WalletAccount::Promotional), amount)
            .credit(Account::Workspace(WorkspaceAccount::PromotionalExpense), amount)
            .balanced()?;
        self.keep([entry], transfer);
        Ok(())
    }

    /// Writes everything: entries, movements, balances, holds and their events.
    ///
    /// # Errors
    /// `Conflict` when a transfer of the batch is already booked: an earlier attempt was committed, nothing may be
    /// written again, and the caller reads what it left.
    pub async fn write(self, tx: &mut Tx, scope: &Scope) -> Result<()> {
        post_new(tx, scope, &self.transfers).await?;
        self.write_balances(tx, scope).await?;
        self.write_holds(tx, scope).await?;
        self.emit(tx, scope).await
    }

    async fn write_balances(&self, tx: &mut Tx, scope: &Scope) -> Result<()> {
        let changed: Vec<&Locked> = self.wallets.values().filter(|locked| locked.changed).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let m = MovementColumns::of(&self.movements);
        sqlx::query(MOVE)
            .bind(scope.workspace_id)
            .bind(m.ids)
            .bind(m.wallets)
            .bind(m.customers)
            .bind(m.transfers)
            .bind(m.types)
            .bind(m.sources)
            .bind(m.amounts)
            .bind(m.currencies)
            .bind(m.kinds)
            .bind(m.cash_after)
            .bind(m.promotional_after)
            .bind(m.groups)
            .bind(m.reference_types)
            .bind(m.reference_ids)
            .bind(m.holds)
            .bind(m.descriptions)
            .bind(m.keys)
            .bind(m.metadata)
            .bind(m.created_at)
            .bind(changed.iter().map(|l| l.row.wallet.id.0).collect::<Vec<_>>())
            .bind(changed.iter().map(|l| l.row.wallet.cash_balance.amount()).collect::<Vec<_>>())
            .bind(changed.iter().map(|l| l.row.wallet.promotional_balance.amount()).collect::<Vec<_>>())
            .bind(changed.iter().map(|l| l.row.wallet.promotional_balance_expires_at).collect::<Vec<_>>())
            .bind(changed.iter().map(|l| l.row.wallet.held_balance.amount()).collect::<Vec<_>>())
            .bind(changed.iter().map(|l| l.now).collect::<Vec<_>>())
            .execute(tx.conn())
            .await
            .context("writing movements and balances of wallets")?;
        Ok(())
    }

    /// One event per movement of money and per hold, and one for each operation that took cash below the wallet's threshold.
    async fn emit(&self, tx: &mut Tx, scope: &Scope) -> Result<()> {
        let mut events = Vec::new();
        for movement in &self.movements {
            let Some(event_type) = event_of(movement) else { continue };
            events.push(wallet_event(event_type, movement.row.wallet_id, &movement.row)?);
        }
        for hold in self.placed.iter().chain(&self.ended) {
            events.push(wallet_event(event_of_hold(hold.status), hold.wallet_id, hold)?);
            if hold.reserved_for.is_some() {
                let outcome = if hold.status == HoldStatus::Pending { "HELD" } else { hold.status.as_str() };
                let amount = hold.captured_amount.unwrap_or(hold.amount);
                events.push(reserve_outcome(Some(hold.id), outcome, &[], Some(amount))?);
            }
        }
        topup::want(tx, &self.wanting).await?;
        for wallet in &self.fell {
            events.push(wallet_event("wallet.low_balance_reached", wallet.id, wallet)?);
        }
        tx.emit_all(scope, &events).await
    }
}

fn wallet_event(
    event_type: &'static str,
    id: WalletId,
    payload: &impl serde::Serialize,
) -> Result<DomainEvent<'static>> {
    Ok(DomainEvent { event_type, entity_type: "wallet", entity_id: id.0, payload: store::payload(payload)? })
}

/// Whether an operation took cash from the threshold or above to below it.
fn has_fallen(before: &Wallet, after: &Wallet) -> bool {
    before.low_balance_threshold.is_some_and(|threshold| {
        before.cash_balance.amount() >= threshold.amount() && after.cash_balance.amount() < threshold.amount()
    })
}

/// `reserve_outcome.recorded`: what became of an attempt to authorize usage (reserve.md 5).
///
/// # Errors
/// `Internal` for an amount that cannot be written.
pub fn reserve_outcome(
    hold_id: Option<HoldId>,
    outcome: &str,
    reasons: &[&str],
    amount: Option<Money>,
) -> Result<DomainEvent<'static>> {
    let payload = serde_json::json!({ "hold_id": hold_id, "outcome": outcome, "reasons": reasons, "amount": amount });
    let entity_id = hold_id.map_or_else(Uuid::now_v7, |hold| hold.0);
    let (event_type, entity_type) = ("reserve_outcome.recorded", "reserve_outcome");
    Ok(DomainEvent { event_type, entity_type, entity_id, payload: store::payload(&payload)? })
}

/// The instant at which operations on this wallet are booked: never before its last change, so that its movements keep
/// the order of their bookings even when the clocks of two nodes differ; on the machine's clock never the same.
fn booking_instant(row: &WalletRow, scope: &Scope) -> Instant {
    let (now, last) = (row.now(scope), row.wallet.updated_at);
    let ticking = scope.clock == Clock::System && row.clock_at.is_none();
    if now > last || (now == last && !ticking) {
        return now;
    }
    if ticking { last + chrono::TimeDelta::microseconds(1) } else { last }
}

/// Holds have events of their own.
fn event_of(movement: &Movement) -> Option<&'static str> {
    match movement.row.transaction_type {
        WalletTransactionType::Hold | WalletTransactionType::Capture | WalletTransactionType::Release => None,
        _ if movement.row.amount.is_negative() => Some("wallet.debited"),
        _ => Some("wallet.credited"),
    }
}

fn event_of_hold(status: HoldStatus) -> &'static str {
    match status {
        HoldStatus::Pending => "wallet.hold_created",
        HoldStatus::Captured => "wallet.hold_captured",
        HoldStatus::Released => "wallet.hold_released",
        HoldStatus::Expired => "wallet.hold_expired",
    }
}

/// Movements and the balances that they leave, in one statement.
const MOVE: &str = "
WITH moved AS (
    INSERT INTO wallet_transaction (id, workspace_id, wallet_id, customer_id, transfer_id, type, source, amount, currency,
        balance_kind, cash_balance_after, promotional_balance_after, group_id, reference_type, reference_id, hold_id,
        description, idempotency_key, metadata, created_at)
    SELECT m.id, $1, m.wallet_id, m.customer_id, m.transfer_id, m.type, m.source, m.amount, m.currency, m.balance_kind,
        m.cash_after, m.promotional_after, m.group_id, m.reference_type, m.reference_id, m.hold_id, m.description,
        m.idempotency_key, m.metadata, m.created_at
    FROM unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::numeric[], $9::text[],
        $10::text[], $11::numeric[], $12::numeric[], $13::uuid[], $14::text[], $15::uuid[], $16::uuid[], $17::text[],
        $18::text[], $19::jsonb[], $20::timestamptz[])
        AS m (id, wallet_id, customer_id, transfer_id, type, source, amount, currency, balance_kind, cash_after,
            promotional_after, group_id, reference_type, reference_id, hold_id, description, idempotency_key, metadata,
            created_at)
)
UPDATE wallet SET cash_balance = w.cash, promotional_balance = w.promotional,
    promotional_balance_expires_at = w.expires_at, held_balance = w.held, updated_at = w.now
FROM unnest($21::uuid[], $22::numeric[], $23::numeric[], $24::timestamptz[], $25::numeric[], $26::timestamptz[])
    AS w (id, cash, promotional, expires_at, held, now)
WHERE wallet.id = w.id AND wallet.workspace_id IS NOT DISTINCT FROM $1";

/// Movements as one array per column.
#[derive(Default)]
struct MovementColumns {
    ids: Vec<Uuid>,
    wallets: Vec<Uuid>,
    customers: Vec<Uuid>,
    transfers: Vec<Uuid>,
    types: Vec<&'static str>,
    sources: Vec<&'static str>,
    amounts: Vec<rust_decimal::Decimal>,
    currencies: Vec<domain::Currency>,
    kinds: Vec<&'static str>,
    cash_after: Vec<rust_decimal::Decimal>,
    promotional_after: Vec<rust_decimal::Decimal>,
    groups: Vec<Option<Uuid>>,
    reference_types: Vec<Option<String>>,
    reference_ids: Vec<Option<Uuid>>,
    holds: Vec<Option<Uuid>>,
    descriptions: Vec<Option<String>>,
    keys: Vec<Option<String>>,
    metadata: Vec<sqlx::types::Json<JsonMap>>,
    created_at: Vec<Instant>,
}

impl MovementColumns {
    fn of(movements: &[Movement]) -> Self {
        let mut columns = Self::default();
        for Movement { transfer_id, row } in movements {
            columns.ids.push(row.id.0);
            columns.wallets.push(row.wallet_id.0);
            columns.customers.push(row.customer_id.0);
            columns.transfers.push(transfer_id.0);
            columns.types.push(row.transaction_type.as_str());
            columns.sources.push(row.source.as_str());
            columns.amounts.push(row.amount.amount());
            columns.currencies.push(row.amount.currency());
            columns.kinds.push(row.balance_kind.as_str());
            columns.cash_after.push(row.cash_balance_after.amount());
            columns.promotional_after.push(row.promotional_balance_after.amount());
            columns.groups.push(row.group_id);
            columns.reference_types.push(row.reference_type.clone());
            columns.reference_ids.push(row.reference_id);
            columns.holds.push(row.hold_id.map(Into::into));
            columns.descriptions.push(row.description.clone());
            columns.keys.push(row.idempotency_key.clone());
            columns.metadata.push(sqlx::types::Json(row.metadata.clone()));
            columns.created_at.push(row.created_at);
        }
        columns
    }
}
