//! Holds: reservations that become a charge, are given back, or lapse (wallets.md, Holds).
//!
//! A hold is a two-phase transfer: it reserves on the account `wallet_held` and moves no money. Its end takes the
//! reservation back, and a capture charges the wallet in the same transaction.

use std::collections::HashMap;

use domain::{Error, HoldId, Instant, Money, Result, Scope, TransferId, UsageEventId, WalletId};
use store::{StoreError, Tx};

use super::batch::{Details, WalletBatch, lock_wallets};
use super::entry::{Operation, Split};
use super::model::{
    HoldStatus, ReservedFor, WalletBalanceKind, WalletHold, WalletTransactionSource, WalletTransactionType,
};
use super::request::CaptureHoldRequest;
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

    /// Charges a PENDING hold by amount, the whole of it unless the request says less: it becomes revenue.
    ///
    /// # Errors
    /// A rule for a hold that authorizes usage; as [`WalletBatch::capture_hold`].
    pub(super) fn capture_by_amount(
        &mut self,
        hold: &WalletHold,
        transfer_id: TransferId,
        request: &CaptureHoldRequest,
    ) -> Result<WalletHold> {
        let id = hold.id;
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
        self.capture_hold(hold, transfer_id, request.amount.unwrap_or(hold.amount), WorkspaceAccount::Revenue, &details)
    }

    /// Writes the holds that were placed and those that ended.
    pub(super) async fn write_holds(&self, tx: &mut Tx, scope: &Scope) -> Result<()> {
        insert_holds(tx, scope, &self.placed).await?;
        if self.ended.is_empty() {
            return Ok(());
        }
        let ended = &self.ended;
        let changed = sqlx::query(
            "UPDATE wallet_hold SET status = h.status, captured_amount = h.captured, captured_at = h.captured_at,
                 released_at = h.released_at, updated_at = h.updated_at
             FROM unnest($2::uuid[], $3::text[], $4::numeric[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[])
                 AS h (id, status, captured, captured_at, released_at, updated_at)
             WHERE wallet_hold.id = h.id AND wallet_hold.workspace_id = $1
                 AND wallet_hold.status IS NOT DISTINCT FROM 'PENDING'",
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

async fn insert_holds(tx: &mut Tx, scope: &Scope, holds: &[WalletHold]) -> Result<()> {
    if holds.is_empty() {
        return Ok(());
    }
    let usage = || holds.iter().map(|hold| hold.reserved_for.as_ref());
    sqlx::query(
        "INSERT INTO wallet_hold (id, organization_id, workspace_id, wallet_id, amount, currency, status, reference_type,
             reference_id, description, expires_at, created_at, updated_at, subscription_id, metric_key, usage_event_id)
         SELECT h.id, h.organization_id, $1, h.wallet_id, h.amount, h.currency, h.status, h.reference_type, h.reference_id,
             h.description, h.expires_at, h.created_at, h.created_at, h.subscription_id, h.metric_key, h.usage_event_id
         FROM unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::numeric[], $6::text[], $7::text[], $8::text[], $9::uuid[],
             $10::text[], $11::timestamptz[], $12::timestamptz[], $13::uuid[], $14::text[], $15::uuid[])
             AS h (id, organization_id, wallet_id, amount, currency, status, reference_type, reference_id, description,
                 expires_at, created_at, subscription_id, metric_key, usage_event_id)",
    )
    .bind(scope.workspace_id)
    .bind(holds.iter().map(|hold| hold.id.0).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.organization_id.0).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.wallet_id.0).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.amount.amount()).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.amount.currency()).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.status.as_str()).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.reference_type.as_deref()).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.reference_id).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.description.as_deref()).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.expires_at).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.created_at).collect::<Vec<_>>())
    .bind(usage().map(|usage| usage.map(|usage| usage.subscription_id.0)).collect::<Vec<_>>())
    .bind(usage().map(|usage| usage.map(|usage| usage.metric_key.as_str())).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.reserved_for.as_ref().map(|_| UsageEventId::of_capture(hold.id).0)).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .context("placing holds")?;
    Ok(())
}

impl WalletBatch {
    /// Holds of the locked wallets in their present state; others are absent. What has lapsed in this batch is read as lapsed.
    ///
    /// # Errors
    /// As every statement.
    pub async fn holds(&self, tx: &mut Tx, scope: &Scope, ids: &[HoldId]) -> Result<HashMap<HoldId, WalletHold>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let stored: Vec<WalletHold> =
            sqlx::query_as("SELECT * FROM wallet_hold WHERE workspace_id = $1 AND id = ANY($2)")
                .bind(scope.workspace_id)
                .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
                .fetch_all(tx.conn())
                .await
                .context("reading holds")?;
        let present = |hold: WalletHold| self.ended.iter().find(|ended| ended.id == hold.id).cloned().unwrap_or(hold);
        let of_locked = stored.into_iter().filter(|hold| self.is_locked(hold.wallet_id));
        Ok(of_locked.map(present).map(|hold| (hold.id, hold)).collect())
    }
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
