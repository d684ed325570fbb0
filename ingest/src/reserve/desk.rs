//! Reservations, captures and releases in groups: a handful of statements for all of them (P10).
//!
//! Locks are taken in the order idempotency keys, windows, wallets, each sorted. Then everything is read, decided in memory one
//! operation after the other, and written. Captures and releases come first: what is reserved in the same group is priced on
//! top of what they leave.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use catalog::compiled::{Snapshots, SubscriptionTerms, WorkspaceCatalog};
use domain::period::Period;
use domain::{Error, HoldId, Instant, Result, Scope, SubscriptionId, UsageEvent, WalletId};
use ledger::wallet::{CaptureHoldRequest, HoldStatus};
use ledger::{Outcome, WalletBatch, WalletHold};
use store::{BodyKey, BodyKeys, Desk, DomainEvent, Patience, Served, Sheet, Tx, kept};

use super::answer::{ReservationOutcome, ReserveResponse, ReserveStatus};
use super::context::{Context, Wallets, WindowKey, lock_windows, subscriptions_of};
use super::end::{Capturing, Releasing};
use super::place::{Prepared, Reserving, exchange};
use super::request::{ReleaseReservationRequest, ReserveRequest};
use super::stored::{Capture, Promised, Promises, Release, Reservation, UsageKey, promised};
use crate::outbox::{self, Outgoing};
use crate::subscription::Initial;
use crate::trial::{Standing, Trial};

/// One of the three operations.
#[derive(Clone, Debug)]
pub enum ReservationOperation {
    /// `POST /v1/transaction/reserve`: prices usage and holds what it costs. Nothing is held when it is blocked or dropped.
    ///
    /// Errors: `Validation`, `NotFound`; 422 `SUBSCRIPTION_REQUIRED`, `PRICE_NOT_FOUND`, `WALLET_NOT_FOUND`, `FX_RATE_NOT_FOUND`
    /// and as for a usage event; `IDEMPOTENCY_CONFLICT`.
    Reserve(ReserveRequest),
    /// `POST /v1/transaction/{id}/capture`: charges a hold and writes its usage event. A capture that was done before with the
    /// same quantity answers the same.
    ///
    /// Errors: `NotFound`, `Validation`, `IDEMPOTENCY_CONFLICT`; `INVALID_TRANSITION` unless PENDING; 422 `AMOUNT_EXCEEDS_HOLD`,
    /// and when the event could not be billed.
    Capture(HoldId, CaptureHoldRequest),
    /// `POST /v1/transaction/{id}/release`: gives a hold back. A release that was done before answers the same.
    ///
    /// Errors: `NotFound`; `INVALID_TRANSITION` unless PENDING.
    Release(HoldId, ReleaseReservationRequest),
}

impl ReservationOperation {
    fn key(&self, scope: &Scope) -> Result<BodyKey> {
        match self {
            Self::Reserve(request) => {
                let (subject, key) = (scope.workspace_id, Some(request.idempotency_key.as_str()));
                BodyKey::new(scope, "transaction.reserve", subject, key, request)
            }
            Self::Capture(id, request) => {
                BodyKey::new(scope, "transaction.capture", *id, request.idempotency_key.as_deref(), request)
            }
            Self::Release(..) => Ok(BodyKey::none()),
        }
    }

    fn replayed(&self, body: &[u8]) -> Result<ReservationAnswer> {
        Ok(match self {
            Self::Reserve(_) => ReservationAnswer::Reserved(Outcome::replayed(kept(body)?)),
            Self::Capture(..) | Self::Release(..) => ReservationAnswer::Ended(Outcome::replayed(kept(body)?)),
        })
    }

    /// The hold that it ends.
    fn hold_id(&self) -> Option<HoldId> {
        match self {
            Self::Reserve(_) => None,
            Self::Capture(id, _) | Self::Release(id, _) => Some(*id),
        }
    }
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum ReservationAnswer {
    /// Of a reservation.
    Reserved(Outcome<ReserveResponse>),
    /// Of a capture or a release.
    Ended(Outcome<ReservationOutcome>),
}

impl ReservationAnswer {
    /// Of a reservation.
    ///
    /// # Errors
    /// `Internal` for another answer.
    pub fn reserved(self) -> Result<Outcome<ReserveResponse>> {
        match self {
            Self::Reserved(outcome) => Ok(outcome),
            Self::Ended(_) => Err(Error::invariant("a reservation was answered like a capture")),
        }
    }

    /// Of a capture or a release.
    ///
    /// # Errors
    /// `Internal` for another answer.
    pub fn ended(self) -> Result<Outcome<ReservationOutcome>> {
        match self {
            Self::Ended(outcome) => Ok(outcome),
            Self::Reserved(_) => Err(Error::invariant("a capture was answered like a reservation")),
        }
    }

    fn kept(&self) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Reserved(outcome) => serde_json::to_vec(&outcome.value),
            Self::Ended(outcome) => serde_json::to_vec(&outcome.value),
        }
    }
}

/// Does reservations, captures and releases.
#[derive(Clone, Debug)]
pub struct ReservationDesk {
    snapshots: Arc<Snapshots>,
}

impl ReservationDesk {
    /// A desk that prices by this catalog.
    #[must_use]
    pub fn new(snapshots: Arc<Snapshots>) -> Self {
        Self { snapshots }
    }
}

impl Desk for ReservationDesk {
    type Operation = ReservationOperation;
    type Answer = ReservationAnswer;
    const NAME: &'static str = "reserving usage";

    /// Catalog and terms as of now, for all of the group.
    async fn prepare(&self) -> Result<()> {
        self.snapshots.refresh().await
    }

    async fn serve(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        operations: &[&ReservationOperation],
        patience: Patience,
    ) -> Result<Vec<Served<ReservationAnswer>>> {
        let keys = operations.iter().map(|operation| operation.key(scope)).collect::<Result<Vec<_>>>()?;
        let (keys, claims) = BodyKeys::claim(scope, tx, &keys, patience).await?;
        let mut sheet = Sheet::new(claims, |place, body| operations[place].replayed(body));
        if sheet.is_settled() {
            return sheet.close(tx, keys, ReservationAnswer::kept).await;
        }
        put_off_second_ends(operations, &mut sheet);
        let mut group = Group::prepare(scope, tx, &self.snapshots, operations, &mut sheet).await?;
        let wallets = group.lock(scope, tx, patience, &mut sheet).await?;
        let mut present = Present::read(scope, tx, &self.snapshots, &group, wallets).await?;
        group.decide(&mut present, &mut sheet);
        present.write(scope, tx).await?;
        sheet.close(tx, keys, ReservationAnswer::kept).await
    }
}

/// A hold is ended by one operation of a group; the next one finds it ended.
fn put_off_second_ends(operations: &[&ReservationOperation], sheet: &mut Sheet<ReservationAnswer>) {
    let mut holds = HashSet::new();
    for (place, operation) in operations.iter().enumerate() {
        if sheet.is_open(place) && operation.hold_id().is_some_and(|id| !holds.insert(id)) {
            sheet.later(place);
        }
    }
}

/// Operations, each with its place.
#[derive(Default)]
struct Group<'a> {
    reserving: Vec<(usize, Reserving<'a>)>,
    capturing: Vec<(usize, Capturing<'a>)>,
    releasing: Vec<(usize, Releasing<'a>)>,
    /// Reservations that are blocked or dropped already.
    answered: Vec<(usize, ReserveResponse)>,
}

impl<'a> Group<'a> {
    /// Reads what stands fast without a lock, and answers what needs none.
    async fn prepare(
        scope: &Scope,
        tx: &mut Tx,
        snapshots: &Snapshots,
        operations: &[&'a ReservationOperation],
        sheet: &mut Sheet<ReservationAnswer>,
    ) -> Result<Self> {
        let open = || operations.iter().enumerate().filter(|(place, _)| sheet.is_open(*place));
        let reserves: Vec<(usize, &ReserveRequest)> = open()
            .filter_map(|(place, operation)| match operation {
                ReservationOperation::Reserve(request) => Some((place, request)),
                _ => None,
            })
            .collect();
        let ends: Vec<(usize, &ReservationOperation, HoldId)> =
            open().filter_map(|(place, operation)| Some((place, *operation, operation.hold_id()?))).collect();
        let mut subscriptions = subscriptions_of(scope, tx.conn(), &reserves).await?;
        let ids: Vec<HoldId> = ends.iter().map(|(_, _, id)| *id).collect();
        let mut reservations = Reservation::load(scope, tx.conn(), &ids).await?;
        let named = subscriptions.values().filter_map(|chosen| chosen.as_ref().ok());
        let named = named.copied().chain(reservations.values().map(|reserved| reserved.event.subscription_id));
        let contexts = Context::load(scope, tx.conn(), snapshots, &named.collect()).await?;
        let customers = reserves.iter().map(|(_, request)| request.customer_id).collect();
        let wallets = Wallets::load(scope, tx.conn(), &customers).await?;

        let mut group = Self::default();
        for (place, request) in reserves {
            let chosen =
                subscriptions.remove(&place).ok_or_else(|| Error::invariant("a reservation was passed over"))?;
            let prepared = match chosen {
                Ok(id) => Reserving::prepare(scope, tx, snapshots, (&contexts, &wallets), request, id).await,
                Err(error) => Err(error),
            };
            match prepared {
                Ok(Prepared::Ready(ready)) => group.reserving.push((place, *ready)),
                Ok(Prepared::Answered(response)) => group.answered.push((place, *response)),
                Err(error) => sheet.done(place, Err(error)),
            }
        }
        for (place, error) in exchange(scope, tx, &mut group.reserving).await? {
            sheet.done(place, Err(error));
        }
        for (place, operation, id) in ends {
            let Some(reserved) = reservations.remove(&id) else {
                sheet.done(place, Err(Error::not_found("reservation", id)));
                continue;
            };
            match operation {
                ReservationOperation::Release(_, request) => {
                    group.releasing.push((place, Releasing { reserved, request }));
                }
                ReservationOperation::Capture(_, request) => {
                    match Capturing::prepare(scope, snapshots, &contexts, reserved, request) {
                        Ok(ready) => group.capturing.push((place, ready)),
                        Err(error) => sheet.done(place, Err(error)),
                    }
                }
                ReservationOperation::Reserve(_) => {}
            }
        }
        Ok(group)
    }

    /// Locks the windows, then the wallets (rule D3), and puts off what has to wait for either.
    async fn lock(
        &mut self,
        scope: &Scope,
        tx: &mut Tx,
        patience: Patience,
        sheet: &mut Sheet<ReservationAnswer>,
    ) -> Result<WalletBatch> {
        let reserved = self.reserving.iter().map(|(_, one)| (&one.context.terms, one.window));
        let captured = self.capturing.iter().map(|(_, one)| (&one.context.terms, one.window));
        let windows: HashMap<WindowKey, (Arc<SubscriptionTerms>, Period)> = reserved
            .chain(captured)
            .map(|(terms, window)| ((terms.id, window.start), (terms.clone(), window)))
            .collect();
        let locked = lock_windows(tx, &windows, scope.now(), patience).await?;
        let mut keep = |place: usize, is_locked: bool| {
            if !is_locked {
                sheet.later(place);
            }
            is_locked
        };
        self.reserving.retain(|(place, one)| keep(*place, locked.contains(&one.window_key())));
        self.capturing.retain(|(place, one)| keep(*place, locked.contains(&one.window_key())));
        let ids: BTreeSet<WalletId> = (self.reserving.iter().map(|(_, one)| one.wallet_id))
            .chain(self.capturing.iter().map(|(_, one)| one.reserved.wallet_id))
            .chain(self.releasing.iter().map(|(_, one)| one.reserved.wallet_id))
            .collect();
        let wallets = WalletBatch::lock(tx, scope, &ids.into_iter().collect::<Vec<_>>(), patience).await?;
        self.reserving.retain(|(place, one)| keep(*place, wallets.is_locked(one.wallet_id)));
        self.capturing.retain(|(place, one)| keep(*place, wallets.is_locked(one.reserved.wallet_id)));
        self.releasing.retain(|(place, one)| keep(*place, wallets.is_locked(one.reserved.wallet_id)));
        Ok(wallets)
    }

    fn decide(self, present: &mut Present, sheet: &mut Sheet<ReservationAnswer>) {
        for (place, one) in self.capturing {
            sheet.done(place, one.decide(present).map(ReservationAnswer::Ended));
        }
        for (place, one) in self.releasing {
            sheet.done(place, one.decide(present).map(ReservationAnswer::Ended));
        }
        let reserving = self.reserving.into_iter().map(|(place, one)| (place, one.decide(present)));
        let reserved: Vec<_> = reserving.collect();
        let answered = self.answered.into_iter().map(|(place, response)| (place, Ok(response)));
        for (place, response) in answered.chain(reserved) {
            let told = response.and_then(|response| present.tell(response));
            sheet.done(place, told.map(|response| ReservationAnswer::Reserved(Outcome::first(response))));
        }
    }
}

/// The locked state of a group as the operations so far leave it, and what is to be written.
pub(super) struct Present {
    pub wallets: WalletBatch,
    pub catalog: Arc<WorkspaceCatalog>,
    holds: HashMap<HoldId, WalletHold>,
    /// Reservations that had ended before the group.
    ended: HashMap<HoldId, Reservation>,
    windows: HashMap<SubscriptionId, Initial>,
    promises: HashMap<UsageKey, Promises>,
    /// Windows with what is promised of one metric counted on top, as far as a reservation has asked for them.
    tops: HashMap<UsageKey, Top>,
    /// Windows on which captures are tried.
    trials: HashMap<SubscriptionId, Trial>,
    pub reservations: Vec<Reservation>,
    pub captures: Vec<Capture>,
    pub releases: Vec<Release>,
    pub records: Vec<Outgoing>,
    /// What is told of reservations without a hold.
    refusals: Vec<DomainEvent<'static>>,
}

/// What a reservation is priced on top of.
pub(super) struct Top {
    pub trial: Trial,
    pub standing: Standing,
}

impl Present {
    async fn read(
        scope: &Scope,
        tx: &mut Tx,
        snapshots: &Snapshots,
        group: &Group<'_>,
        wallets: WalletBatch,
    ) -> Result<Self> {
        let ends = group.capturing.iter().map(|(_, one)| one.reserved.hold_id);
        let ends: Vec<HoldId> = ends.chain(group.releasing.iter().map(|(_, one)| one.reserved.hold_id)).collect();
        let holds = wallets.holds(tx, scope, &ends).await?;
        let over = holds.values().filter(|hold| hold.status != HoldStatus::Pending).map(|hold| hold.id);
        let ended = Reservation::load(scope, tx.conn(), &over.collect::<Vec<_>>()).await?;
        let reserving = group.reserving.iter().map(|(_, one)| one.context.terms.id);
        let ids: BTreeSet<SubscriptionId> =
            reserving.chain(group.capturing.iter().map(|(_, one)| one.context.terms.id)).collect();
        let windows = Initial::load(tx.conn(), snapshots, &ids.into_iter().collect::<Vec<_>>()).await?;
        let asked: BTreeMap<UsageKey, Instant> =
            group.reserving.iter().map(|(_, one)| (one.usage_key(), one.context.now)).collect();
        let promises = promised(tx.conn(), &asked).await?;
        Ok(Self {
            wallets,
            catalog: snapshots.workspace(scope.workspace_id).await?,
            holds,
            ended,
            windows,
            promises,
            tops: HashMap::new(),
            trials: HashMap::new(),
            reservations: Vec::new(),
            captures: Vec::new(),
            releases: Vec::new(),
            records: Vec::new(),
            refusals: Vec::new(),
        })
    }

    /// A hold of the group in its present state.
    pub fn hold(&self, id: HoldId) -> Result<WalletHold> {
        self.holds.get(&id).cloned().ok_or_else(|| Error::not_found("wallet_hold", id))
    }

    /// A reservation, as an earlier call has left it.
    pub fn ended(&self, id: HoldId) -> Result<&Reservation> {
        self.ended.get(&id).ok_or_else(|| Error::not_found("reservation", id))
    }

    /// The windows of a subscription, for captures.
    pub fn trial(&mut self, terms: &Arc<SubscriptionTerms>) -> &mut Trial {
        let windows = self.windows.get(&terms.id);
        let fresh = || Trial::from(self.catalog.clone(), terms.clone(), windows.cloned().unwrap_or_default());
        self.trials.entry(terms.id).or_insert_with(fresh)
    }

    /// Puts a captured event in the place of what was promised.
    pub fn promise_captured(&mut self, hold_id: HoldId, event: &UsageEvent) {
        let key = (event.subscription_id, event.product_id, event.metric_key.clone());
        let promised = self.promises.get_mut(&key).and_then(|promises| promises.get_mut(&hold_id));
        if let Some(promised) = promised {
            *promised = Promised { event: event.clone(), is_captured: true };
        }
    }

    /// Forgets what is promised no more.
    pub fn forget_promise(&mut self, hold_id: HoldId, event: &UsageEvent) {
        let key = (event.subscription_id, event.product_id, event.metric_key.clone());
        if let Some(promises) = self.promises.get_mut(&key) {
            promises.remove(&hold_id);
        }
    }

    /// Takes the windows with what is promised of a metric on top. Whoever has counted a hold more gives them back with it.
    pub fn take_top(
        &mut self,
        key: &UsageKey,
        context: &Context,
        window_start: Instant,
        event: &UsageEvent,
    ) -> Result<Top> {
        if let Some(top) = self.tops.remove(key) {
            return Ok(top);
        }
        let windows = self.windows.get(&key.0).cloned().unwrap_or_default();
        let mut trial = Trial::from(self.catalog.clone(), context.terms.clone(), windows);
        for promised in self.promises.get(key).into_iter().flat_map(Promises::values) {
            let mut promise = promised.event.clone();
            // A hold that outlives its period will be captured in the present one.
            if !promised.is_captured && promise.timestamp < window_start {
                promise.timestamp = context.now;
            }
            if let Err(error) = trial.count(&promise) {
                tracing::warn!(hold.id = ?promise.hold_id, error = %error, "promised usage cannot be counted");
            }
        }
        let standing = trial.standing(window_start, event)?;
        Ok(Top { trial, standing })
    }

    /// Gives them back, with a hold that was placed.
    pub fn promise(&mut self, key: UsageKey, top: Top, hold_id: HoldId, event: UsageEvent) {
        let promised = Promised { event, is_captured: false };
        self.promises.entry(key.clone()).or_default().insert(hold_id, promised);
        self.tops.insert(key, top);
    }

    /// Tells of a reservation that places no hold; of holds the wallet tells.
    fn tell(&mut self, response: ReserveResponse) -> Result<ReserveResponse> {
        if response.status != ReserveStatus::Held {
            self.refusals.push(response.refusal()?);
        }
        Ok(response)
    }

    async fn write(self, scope: &Scope, tx: &mut Tx) -> Result<()> {
        self.wallets.write(tx, scope).await?;
        Reservation::insert_all(tx, scope, &self.reservations).await?;
        Capture::write_all(tx, scope, &self.captures).await?;
        Release::write_all(tx, scope, &self.releases).await?;
        outbox::put(tx, &self.records, scope.now()).await?;
        tx.emit_all(scope, &self.refusals).await
    }
}
