//! Holds: reservations that become a charge, are given back, or lapse (wallets.md, Holds).
//!
//! A hold is a two-phase transfer: it reserves on the account `wallet_held` and moves no money. Its end takes the
//! reservation back, and a capture charges the wallet in the same transaction.

use domain::{Error, HoldId, Instant, Money, Result, Scope, TransferId, UsageEventId, WalletId};
use store::{BodyKey, StoreError, Tx};

use super::batch::{Details, WalletBatch, lock_wallets};
use super::entry::{Operation, Split};
use super::model::{
    HoldStatus, ReservedFor, WalletBalanceKind, WalletHold, WalletTransactionSource, WalletTransactionType,
};
use super::replay::Outcome;
use super::request::{CaptureHoldRequest, HoldRequest};
use crate::account::{Account, WalletAccount, WorkspaceAccount};
use crate::transfer::TransferKind;

/// Life of a hold that names no end (wallets.md 2.2).
const LIFE_DEFAULT_DAYS: i64 = 7;

impl WalletBatch {
    /// Reserves an amount. The hold's id is its transfer's. A hold on usage that costs nothing is placed without a booking.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH`, `INSUFFICIENT_FUNDS` beyond what is available; a rule when the expiry has passed.
    pub fn hold(
        &mut self,
        id: WalletId,
        transfer_id: TransferId,
        amount: Money,
        expires_at: Option<Instant>,
        reserved_for: Option<ReservedFor>,
        details: &Details,
    ) -> Result<WalletHold> {
        let mut entry = self.entry(id)?;
        entry.check_currency(amount)?;
        if !amount.is_zero() {
            entry.check_funds(amount, entry.row.available()?)?;
        }
        let expires_at = expires_at.unwrap_or(entry.now + chrono::TimeDelta::days(LIFE_DEFAULT_DAYS));
        if expires_at <= entry.now {
            return Err(Error::business_rule("expires_at must be in the future"));
        }
        let hold = WalletHold {
            id: HoldId(transfer_id.0),
            organization_id: entry.row.wallet.organization_id,
            wallet_id: id,
            amount,
            captured_amount: None,
            status: HoldStatus::Pending,
            reference_type: details.reference_type.clone(),
            reference_id: details.reference_id,
            description: details.description.clone(),
            expires_at,
            captured_at: None,
            released_at: None,
            created_at: entry.now,
            updated_at: entry.now,
            reserved_for,
        };
        if amount.is_zero() {
            self.placed.push(hold.clone());
            return Ok(hold);
        }
        entry.row.wallet.held_balance = entry.row.wallet.held_balance.add(amount)?;
        let mut operation = Operation::new(transfer_id, WalletTransactionType::Hold, details);
        operation.hold_id = Some(hold.id);
        entry.record(&operation, WalletBalanceKind::Cash, Money::zero(amount.currency()))?;
        let transfer = operation
            .draft(TransferKind::Hold, entry.now)
            .debit(Account::Workspace(WorkspaceAccount::HoldCommitment), amount)
            .credit(entry.account(WalletAccount::Held), amount)
            .balanced()?;
        self.keep([entry], transfer);
        self.placed.push(hold.clone());
        Ok(hold)
    }

    /// Gives a PENDING hold back, by hand or because it lapsed.
    ///
    /// # Errors
    /// `INVALID_TRANSITION` when it is not PENDING.
    pub fn end_hold(&mut self, hold: &WalletHold, to: HoldStatus, transfer_id: TransferId) -> Result<WalletHold> {
        check_pending(hold, to)?;
        let mut entry = self.entry(hold.wallet_id)?;
        let ended = WalletHold { status: to, released_at: Some(entry.now), updated_at: entry.now, ..hold.clone() };
        if hold.amount.is_zero() {
            self.ended.push(ended.clone());
            return Ok(ended);
        }
        let source = match to {
            HoldStatus::Expired => WalletTransactionSource::System,
            _ => WalletTransactionSource::Manual,
        };
        let details = Details::of(source).reference("hold", hold.id);
        let mut operation = Operation::new(transfer_id, WalletTransactionType::Release, &details);
        operation.hold_id = Some(hold.id);
        entry.row.wallet.held_balance = entry.row.wallet.held_balance.sub(hold.amount)?;
        entry.record(&operation, WalletBalanceKind::Cash, Money::zero(hold.amount.currency()))?;
        let transfer = operation
            .draft(TransferKind::HoldRelease, entry.now)
            .debit(entry.account(WalletAccount::Held), hold.amount)
            .credit(Account::Workspace(WorkspaceAccount::HoldCommitment), hold.amount)
            .balanced()?;
        self.keep([entry], transfer);
        self.ended.push(ended.clone());
        Ok(ended)
    }

    /// Charges a PENDING hold, in full or in part; the rest is given back in the same transfer.
    ///
    /// The hold reserved the money, so accruals and other holds do not stand in its way; the wallet's floor does (zero,
    /// or minus the credit limit when POSTPAID): promotional credit that backed it may have lapsed.
    ///
    /// # Errors
    /// `INVALID_TRANSITION`, `CURRENCY_MISMATCH`, `AMOUNT_EXCEEDS_HOLD`, `INSUFFICIENT_FUNDS` at the floor.
    pub fn capture_hold(
        &mut self,
        hold: &WalletHold,
        transfer_id: TransferId,
        amount: Money,
        counter: WorkspaceAccount,
        details: &Details,
    ) -> Result<WalletHold> {
        check_pending(hold, HoldStatus::Captured)?;
        let mut entry = self.entry(hold.wallet_id)?;
        entry.check_currency(amount)?;
        if amount.amount() > hold.amount.amount() {
            let detail = format!("the hold is {}, {amount} is too much", hold.amount);
            return Err(Error::rule("AMOUNT_EXCEEDS_HOLD", detail).with("amount", hold.amount));
        }
        let captured = WalletHold {
            status: HoldStatus::Captured,
            captured_amount: Some(amount),
            captured_at: Some(entry.now),
            updated_at: entry.now,
            ..hold.clone()
        };
        if hold.amount.is_zero() {
            self.ended.push(captured.clone());
            return Ok(captured);
        }
        let wallet = &entry.row.wallet;
        let floor = wallet.cash_balance.add(wallet.promotional_balance)?.add(entry.row.credit())?;
        entry.check_funds(amount, floor)?;
        entry.row.wallet.held_balance = entry.row.wallet.held_balance.sub(hold.amount)?;
        let mut operation = Operation::new(transfer_id, WalletTransactionType::Capture, details);
        operation.hold_id = Some(hold.id);
        let split = Split::of(&entry.row, amount)?;
        entry.take(&operation, split)?;
        let draft = operation
            .draft(TransferKind::HoldCapture, entry.now)
            .debit(entry.account(WalletAccount::Held), hold.amount)
            .credit(Account::Workspace(WorkspaceAccount::HoldCommitment), hold.amount);
        let transfer = entry.draft_take(draft, split, counter)?.balanced()?;
        self.keep([entry], transfer);
        self.ended.push(captured.clone());
        Ok(captured)
    }

    /// Writes the holds that were placed and those that ended.
    pub(super) async fn write_holds(&self, tx: &mut Tx, scope: &Scope) -> Result<()> {
        for hold in &self.placed {
            insert_hold(tx, scope, hold).await?;
        }
        if self.ended.is_empty() {
            return Ok(());
        }
        let ended = &self.ended;
        let changed = sqlx::query(
            "UPDATE wallet_hold SET status = h.status, captured_amount = h.captured, captured_at = h.captured_at,
                 released_at = h.released_at, updated_at = h.updated_at
             FROM unnest($2::uuid[], $3::text[], $4::numeric[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[])
                 AS h (id, status, captured, captured_at, released_at, updated_at)
             WHERE wallet_hold.id = h.id AND wallet_hold.workspace_id = $1 AND wallet_hold.status = 'PENDING'",
        )
        .bind(scope.workspace_id)
        .bind(ended.iter().map(|hold| hold.id.0).collect::<Vec<_>>())
        .bind(ended.iter().map(|hold| hold.status.as_str()).collect::<Vec<_>>())
        .bind(ended.iter().map(|hold| hold.captured_amount.map(|money| money.amount())).collect::<Vec<_>>())
        .bind(ended.iter().map(|hold| hold.captured_at).collect::<Vec<_>>())
        .bind(ended.iter().map(|hold| hold.released_at).collect::<Vec<_>>())
        .bind(ended.iter().map(|hold| hold.updated_at).collect::<Vec<_>>())
        .execute(tx.conn())
        .await
        .context("ending holds")?;
        if changed.rows_affected() != ended.len() as u64 {
            return Err(Error::invariant("a hold changed while its wallet was locked"));
        }
        Ok(())
    }
}

fn check_pending(hold: &WalletHold, to: HoldStatus) -> Result<()> {
    if hold.status == HoldStatus::Pending {
        return Ok(());
    }
    Err(Error::invalid_transition("wallet_hold", hold.id, hold.status.as_str(), to.as_str(), &[]))
}

async fn insert_hold(tx: &mut Tx, scope: &Scope, hold: &WalletHold) -> Result<()> {
    sqlx::query(
        "INSERT INTO wallet_hold (id, organization_id, workspace_id, wallet_id, amount, currency, status, reference_type,
             reference_id, description, expires_at, created_at, updated_at, subscription_id, metric_key, usage_event_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13, $14, $15)",
    )
    .bind(hold.id)
    .bind(hold.organization_id)
    .bind(scope.workspace_id)
    .bind(hold.wallet_id)
    .bind(hold.amount.amount())
    .bind(hold.amount.currency())
    .bind(hold.status)
    .bind(&hold.reference_type)
    .bind(hold.reference_id)
    .bind(&hold.description)
    .bind(hold.expires_at)
    .bind(hold.created_at)
    .bind(hold.reserved_for.as_ref().map(|usage| usage.subscription_id))
    .bind(hold.reserved_for.as_ref().map(|usage| usage.metric_key.as_str()))
    .bind(hold.reserved_for.as_ref().map(|_| UsageEventId::of_capture(hold.id)))
    .execute(tx.conn())
    .await
    .context("placing a hold")?;
    Ok(())
}

/// A hold of a locked wallet, as the database has it (what has lapsed stands in the batch).
async fn read_hold(tx: &mut Tx, scope: &Scope, wallet: WalletId, id: HoldId) -> Result<Option<WalletHold>> {
    sqlx::query_as("SELECT * FROM wallet_hold WHERE workspace_id = $1 AND wallet_id = $2 AND id = $3")
        .bind(scope.workspace_id)
        .bind(wallet)
        .bind(id)
        .fetch_optional(tx.conn())
        .await
        .context("reading a hold")
}

/// Locks the wallet and finds the hold in its present state.
///
/// # Errors
/// `NotFound`, and as every statement.
pub async fn locked_hold(
    tx: &mut Tx,
    scope: &Scope,
    wallet: WalletId,
    id: HoldId,
) -> Result<(WalletBatch, WalletHold)> {
    let batch = lock_wallets(tx, scope, &[wallet]).await?;
    let stored = read_hold(tx, scope, wallet, id).await?.ok_or_else(|| Error::not_found("wallet_hold", id))?;
    let hold = batch.ended.iter().find(|hold| hold.id == id).cloned().unwrap_or(stored);
    Ok((batch, hold))
}

/// `POST /v1/wallets/{id}/holds`. The hold's id is `transfer_id`.
///
/// # Errors
/// `NotFound`, `IDEMPOTENCY_CONFLICT`, and as [`WalletBatch::hold`].
pub async fn create(
    scope: &Scope,
    tx: &mut Tx,
    id: WalletId,
    transfer_id: TransferId,
    request: &HoldRequest,
) -> Result<Outcome<WalletHold>> {
    let key = BodyKey::new(scope, "wallet.hold", id, request.idempotency_key.as_deref(), request)?;
    if let Some(earlier) = key.claim(scope, tx).await? {
        return Ok(Outcome::replayed(earlier));
    }
    let mut batch = lock_wallets(tx, scope, &[id]).await?;
    if let Some(booked) = read_hold(tx, scope, id, HoldId(transfer_id.0)).await? {
        return Ok(Outcome::replayed(booked));
    }
    let details = Details {
        description: request.description.clone(),
        reference_type: request.reference_type.clone(),
        reference_id: request.reference_id,
        idempotency_key: request.idempotency_key.clone(),
        ..Details::of(WalletTransactionSource::Manual)
    };
    let hold = batch.hold(id, transfer_id, request.amount, request.expires_at, None, &details)?;
    batch.write(tx, scope).await?;
    key.complete(tx, &hold).await?;
    Ok(Outcome::first(hold))
}

/// `POST /v1/wallets/{id}/holds/{hold_id}/capture`: a hold by amount becomes revenue.
///
/// # Errors
/// `NotFound`, `IDEMPOTENCY_CONFLICT`, and as [`WalletBatch::capture_hold`].
pub async fn capture(
    scope: &Scope,
    tx: &mut Tx,
    wallet: WalletId,
    id: HoldId,
    transfer_id: TransferId,
    request: &CaptureHoldRequest,
) -> Result<Outcome<WalletHold>> {
    let key = BodyKey::new(scope, "wallet.hold.capture", id, request.idempotency_key.as_deref(), request)?;
    if let Some(earlier) = key.claim(scope, tx).await? {
        return Ok(Outcome::replayed(earlier));
    }
    let (mut batch, hold) = locked_hold(tx, scope, wallet, id).await?;
    if hold.reserved_for.is_some() {
        let detail = format!("hold {id} authorizes usage: capture it with POST /v1/transaction/{id}/capture");
        return Err(Error::business_rule(detail));
    }
    let details = Details {
        description: request.description.clone().or_else(|| hold.description.clone()),
        reference_type: hold.reference_type.clone(),
        reference_id: hold.reference_id,
        idempotency_key: request.idempotency_key.clone(),
        ..Details::of(WalletTransactionSource::Manual)
    };
    let amount = request.amount.unwrap_or(hold.amount);
    let captured = batch.capture_hold(&hold, transfer_id, amount, WorkspaceAccount::Revenue, &details)?;
    batch.write(tx, scope).await?;
    key.complete(tx, &captured).await?;
    Ok(Outcome::first(captured))
}

/// `POST /v1/wallets/{id}/holds/{hold_id}/release`.
///
/// # Errors
/// `NotFound`, `INVALID_TRANSITION`.
pub async fn release(
    scope: &Scope,
    tx: &mut Tx,
    wallet: WalletId,
    id: HoldId,
    transfer_id: TransferId,
) -> Result<WalletHold> {
    let (mut batch, hold) = locked_hold(tx, scope, wallet, id).await?;
    let released = batch.end_hold(&hold, HoldStatus::Released, transfer_id)?;
    batch.write(tx, scope).await?;
    Ok(released)
}

/// Lets what is due lapse in these wallets, and says whether anything did. Sweeps and reads call it; an operation does
/// the same by itself (rule D4).
///
/// # Errors
/// `NotFound`, and as every statement.
pub async fn settle_due(scope: &Scope, tx: &mut Tx, wallets: &[WalletId]) -> Result<bool> {
    let batch = lock_wallets(tx, scope, wallets).await?;
    let changed = !batch.is_empty();
    batch.write(tx, scope).await?;
    Ok(changed)
}
