//! Wallet operations in groups: a handful of statements for all of them (P10).
//!
//! Locks are taken in the order idempotency keys, wallets, each sorted. Then every operation is decided on the locked state, one
//! after the other, and everything is written; what one of them is refused leaves the others as they are.

use std::collections::{BTreeSet, HashMap, HashSet};

use currency::Pair;
use domain::{Error, HoldId, Result, Scope, TransferId, WalletId};
use store::{BodyKey, BodyKeys, Desk, Patience, Served, Sheet, StoreError, Tx, kept};

use super::batch::WalletBatch;
use super::model::{HoldStatus, WalletHold, WalletTransaction, WalletTransferResult};
use super::operation::{CreditKind, pinned_rate, transfer_rate};
use super::replay::{Outcome, movements_of};
use super::request::{AdjustRequest, CaptureHoldRequest, CreditRequest, DebitRequest, HoldRequest, TransferRequest};

/// An operation on a wallet, with the id that its transfer gets: chosen before the first attempt, so that a repeat is seen
/// (rule D5).
#[derive(Clone, Debug)]
pub struct WalletOperation {
    /// Id of the transfer; of a hold its own.
    pub transfer_id: TransferId,
    /// The wallet.
    pub wallet_id: WalletId,
    /// What is asked.
    pub request: WalletRequest,
}

/// What can be asked of a wallet. Errors of all: `NotFound`, `IDEMPOTENCY_CONFLICT`, and those of the step of [`WalletBatch`]
/// that each names.
#[derive(Clone, Debug)]
pub enum WalletRequest {
    /// `POST /v1/wallets/{id}/credit`, [`WalletBatch::credit`].
    Credit(CreditRequest),
    /// `POST /v1/wallets/{id}/debit`, [`WalletBatch::debit`]; answers the last of its movements, which bears the balances
    /// after it.
    Debit(DebitRequest),
    /// `POST /v1/wallets/{id}/adjust`, [`WalletBatch::adjust`].
    Adjust(AdjustRequest),
    /// `POST /v1/wallets/{id}/transfer`, [`WalletBatch::transfer`].
    Transfer(TransferRequest),
    /// `POST /v1/wallets/{id}/holds`, [`WalletBatch::hold`].
    Hold(HoldRequest),
    /// `POST /v1/wallets/{id}/holds/{hold_id}/capture`, [`WalletBatch::capture_hold`]: a hold by amount becomes revenue.
    CaptureHold(HoldId, CaptureHoldRequest),
    /// `POST /v1/wallets/{id}/holds/{hold_id}/release`, [`WalletBatch::end_hold`].
    ReleaseHold(HoldId),
}

/// What a wallet operation answers.
#[derive(Clone, Debug)]
pub enum WalletAnswer {
    /// Of a credit, a debit, an adjustment.
    Movement(Outcome<WalletTransaction>),
    /// Of a transfer.
    Transfer(Box<Outcome<WalletTransferResult>>),
    /// Of an operation on a hold.
    Hold(Outcome<WalletHold>),
}

impl WalletAnswer {
    /// Of a credit, a debit, an adjustment.
    ///
    /// # Errors
    /// `Internal` for another answer.
    pub fn movement(self) -> Result<Outcome<WalletTransaction>> {
        match self {
            Self::Movement(outcome) => Ok(outcome),
            _ => Err(Error::invariant("a wallet operation was answered without a movement")),
        }
    }

    /// Of a transfer.
    ///
    /// # Errors
    /// `Internal` for another answer.
    pub fn transfer(self) -> Result<Outcome<WalletTransferResult>> {
        match self {
            Self::Transfer(outcome) => Ok(*outcome),
            _ => Err(Error::invariant("a transfer was answered without its result")),
        }
    }

    /// Of an operation on a hold.
    ///
    /// # Errors
    /// `Internal` for another answer.
    pub fn hold(self) -> Result<Outcome<WalletHold>> {
        match self {
            Self::Hold(outcome) => Ok(outcome),
            _ => Err(Error::invariant("an operation on a hold was answered without it")),
        }
    }

    fn kept(&self) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Movement(outcome) => serde_json::to_vec(&outcome.value),
            Self::Transfer(outcome) => serde_json::to_vec(&outcome.value),
            Self::Hold(outcome) => serde_json::to_vec(&outcome.value),
        }
    }
}

impl WalletOperation {
    fn key(&self, scope: &Scope) -> Result<BodyKey> {
        let id = self.wallet_id;
        match &self.request {
            WalletRequest::Credit(r) => BodyKey::new(scope, "wallet.credit", id, r.idempotency_key.as_deref(), r),
            WalletRequest::Debit(r) => BodyKey::new(scope, "wallet.debit", id, r.idempotency_key.as_deref(), r),
            WalletRequest::Adjust(r) => BodyKey::new(scope, "wallet.adjust", id, r.idempotency_key.as_deref(), r),
            WalletRequest::Transfer(r) => BodyKey::new(scope, "wallet.transfer", id, r.idempotency_key.as_deref(), r),
            WalletRequest::Hold(r) => BodyKey::new(scope, "wallet.hold", id, r.idempotency_key.as_deref(), r),
            WalletRequest::CaptureHold(hold, r) => {
                BodyKey::new(scope, "wallet.hold.capture", *hold, r.idempotency_key.as_deref(), r)
            }
            WalletRequest::ReleaseHold(_) => Ok(BodyKey::none()),
        }
    }

    fn replayed(&self, body: &[u8]) -> Result<WalletAnswer> {
        Ok(match &self.request {
            WalletRequest::Credit(_) | WalletRequest::Debit(_) | WalletRequest::Adjust(_) => {
                WalletAnswer::Movement(Outcome::replayed(kept(body)?))
            }
            WalletRequest::Transfer(_) => WalletAnswer::Transfer(Box::new(Outcome::replayed(kept(body)?))),
            WalletRequest::Hold(_) | WalletRequest::CaptureHold(..) | WalletRequest::ReleaseHold(_) => {
                WalletAnswer::Hold(Outcome::replayed(kept(body)?))
            }
        })
    }

    fn wallets(&self) -> impl Iterator<Item = WalletId> {
        let target = match &self.request {
            WalletRequest::Transfer(request) => Some(request.to_wallet_id),
            _ => None,
        };
        std::iter::once(self.wallet_id).chain(target)
    }

    /// The hold that it needs: the one to be ended, or the one that an earlier attempt may have placed.
    fn hold_id(&self) -> Option<HoldId> {
        match &self.request {
            WalletRequest::Hold(_) => Some(HoldId(self.transfer_id.0)),
            WalletRequest::CaptureHold(id, _) | WalletRequest::ReleaseHold(id) => Some(*id),
            _ => None,
        }
    }

    /// Decides it on the locked state, as the operations before it left that.
    async fn decide(&self, scope: &Scope, tx: &mut Tx, present: &mut Present) -> Result<WalletAnswer> {
        let (id, transfer_id, batch) = (self.wallet_id, self.transfer_id, &mut present.batch);
        if let Some(missing) = self.wallets().find(|id| !batch.is_locked(*id)) {
            return Err(Error::not_found("wallet", missing));
        }
        let first = Outcome::first;
        Ok(match &self.request {
            WalletRequest::Credit(request) => {
                let kind = match request.is_promotional {
                    true => CreditKind::Promotional { expires_at: request.expires_at },
                    false => CreditKind::Cash,
                };
                let credited = batch.credit(id, transfer_id, request.amount, kind, &request.details())?;
                WalletAnswer::Movement(first(credited))
            }
            WalletRequest::Debit(request) => {
                let movement = batch.debit(id, transfer_id, request.amount, &request.details())?.pop();
                let movement = movement.ok_or_else(|| Error::invariant("a debit without a movement"))?;
                WalletAnswer::Movement(first(movement))
            }
            WalletRequest::Adjust(request) => {
                let adjusted = batch.adjust(id, transfer_id, request.amount, request.balance, &request.details())?;
                WalletAnswer::Movement(first(adjusted))
            }
            WalletRequest::Transfer(r) => {
                let currency = |id| batch.wallet(id).map(|dto| dto.wallet.currency);
                let pair = Pair { source: currency(id)?, target: currency(r.to_wallet_id)? };
                let fx = transfer_rate(scope, tx, (pair, batch.now(id)?), r.fx_rate).await?;
                let moved = batch.transfer(id, r.to_wallet_id, transfer_id, r.amount, &fx, &r.details())?;
                WalletAnswer::Transfer(Box::new(Outcome::first(moved)))
            }
            WalletRequest::Hold(request) => {
                let (amount, expires_at) = (request.amount, request.expires_at);
                let hold = batch.hold(id, transfer_id, amount, expires_at, None, &request.details())?;
                WalletAnswer::Hold(Outcome::first(hold))
            }
            WalletRequest::CaptureHold(hold_id, request) => {
                let hold = present.hold_of(id, *hold_id)?;
                let captured = present.batch.capture_by_amount(&hold, transfer_id, request)?;
                WalletAnswer::Hold(Outcome::first(captured))
            }
            WalletRequest::ReleaseHold(hold_id) => {
                let hold = present.hold_of(id, *hold_id)?;
                let released = present.batch.end_hold(&hold, HoldStatus::Released, transfer_id)?;
                WalletAnswer::Hold(Outcome::first(released))
            }
        })
    }

    /// What an earlier attempt has booked under the same transfer id.
    async fn booked(&self, scope: &Scope, tx: &mut Tx, present: &Present) -> Result<WalletAnswer> {
        if let Some(hold_id) = self.hold_id() {
            return Ok(WalletAnswer::Hold(Outcome::replayed(present.hold_of(self.wallet_id, hold_id)?)));
        }
        let of_another = || Error::conflict("CONFLICT", "this operation has been booked already");
        let mut movements = movements_of(tx, scope, self.wallet_id, self.transfer_id).await?;
        let last = movements.pop().ok_or_else(of_another)?;
        let WalletRequest::Transfer(request) = &self.request else {
            return Ok(WalletAnswer::Movement(Outcome::replayed(last)));
        };
        let credit = movements_of(tx, scope, request.to_wallet_id, self.transfer_id).await?.pop();
        let fx_rate = pinned_rate(&last);
        let result = WalletTransferResult { debit: last, credit: credit.ok_or_else(of_another)?, fx_rate };
        Ok(WalletAnswer::Transfer(Box::new(Outcome::replayed(result))))
    }
}

/// The locked state of a group, and the holds that it names.
struct Present {
    batch: WalletBatch,
    holds: HashMap<HoldId, WalletHold>,
}

impl Present {
    fn hold_of(&self, wallet_id: WalletId, id: HoldId) -> Result<WalletHold> {
        let hold = self.holds.get(&id).filter(|hold| hold.wallet_id == wallet_id);
        hold.cloned().ok_or_else(|| Error::not_found("wallet_hold", id))
    }
}

/// Does wallet operations.
#[derive(Clone, Copy, Debug)]
pub struct WalletDesk;

impl Desk for WalletDesk {
    type Operation = WalletOperation;
    type Answer = WalletAnswer;
    const NAME: &'static str = "moving money of wallets";

    async fn serve(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        operations: &[&WalletOperation],
        patience: Patience,
    ) -> Result<Vec<Served<WalletAnswer>>> {
        let keys = operations.iter().map(|operation| operation.key(scope)).collect::<Result<Vec<_>>>()?;
        let (keys, claims) = BodyKeys::claim(scope, tx, &keys, patience).await?;
        let mut sheet = Sheet::new(claims, |place, body| operations[place].replayed(body));
        if sheet.is_settled() {
            return sheet.close(tx, keys, WalletAnswer::kept).await;
        }
        let open: Vec<(usize, &WalletOperation)> =
            operations.iter().copied().enumerate().filter(|(place, _)| sheet.is_open(*place)).collect();
        let ids: BTreeSet<WalletId> = open.iter().flat_map(|(_, operation)| operation.wallets()).collect();
        let batch = WalletBatch::lock(tx, scope, &ids.into_iter().collect::<Vec<_>>(), patience).await?;
        let holds: Vec<HoldId> = open.iter().filter_map(|(_, operation)| operation.hold_id()).collect();
        let holds = batch.holds(tx, scope, &holds).await?;
        let booked = booked(scope, tx, &open).await?;
        let mut present = Present { batch, holds };
        let mut ended = HashSet::new();
        for (place, operation) in open {
            let is_free = operation.wallets().all(|id| present.batch.is_locked(id));
            let is_second = operation.hold_id().is_some_and(|id| !ended.insert(id));
            match () {
                // Skipped, or not there: whoever waits will see.
                () if is_second || (patience == Patience::Skip && !is_free) => sheet.later(place),
                () if booked.contains(&operation.transfer_id) => {
                    sheet.done(place, operation.booked(scope, tx, &present).await);
                }
                () => sheet.done(place, operation.decide(scope, tx, &mut present).await),
            }
        }
        present.batch.write(tx, scope).await?;
        sheet.close(tx, keys, WalletAnswer::kept).await
    }
}

/// Transfers that earlier attempts have booked.
async fn booked(scope: &Scope, tx: &mut Tx, open: &[(usize, &WalletOperation)]) -> Result<HashSet<TransferId>> {
    let ids: Vec<_> = open.iter().map(|(_, operation)| operation.transfer_id.0).collect();
    let booked: Vec<TransferId> =
        sqlx::query_scalar("SELECT id FROM ledger_transfer WHERE id = ANY($1) AND workspace_id = $2")
            .bind(ids)
            .bind(scope.workspace_id)
            .fetch_all(tx.conn())
            .await
            .context("looking for earlier attempts")?;
    Ok(booked.into_iter().collect())
}

/// Does one operation in a transaction of the caller.
///
/// # Errors
/// As [`WalletRequest`].
pub async fn perform(scope: &Scope, tx: &mut Tx, operation: WalletOperation) -> Result<WalletAnswer> {
    WalletDesk.serve_alone(scope, tx, &operation).await
}
