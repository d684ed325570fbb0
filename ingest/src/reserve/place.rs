//! `POST /v1/transaction/reserve`: the usage is priced on top of what is counted and promised, and held on the wallet.

use std::cmp::Ordering;
use std::collections::HashMap;

use catalog::compiled::{ResolvedPrice, Snapshots, Unpriced, WorkspaceCatalog};
use chrono::TimeDelta;
use currency::policy::Moments;
use currency::{FXPolicy, Pair};
use domain::error::FieldErrorCode as Code;
use domain::period::Period;
use domain::{
    Currency, Error, HoldId, Instant, Result, Scope, SubscriptionId, TransferId, UsageCapAction, UsageEvent,
    UsageEventId, WalletId, WalletMode,
};
use ledger::WalletBatch;
use ledger::wallet::{Details, ReservedFor, WalletTransactionSource};
use rating::UsageCap;
use store::Tx;

use super::answer::{BlockedReason, ReserveResponse, ReserveStatus};
use super::context::{Context, Wallets, WindowKey, of_customer, only_metric};
use super::desk::{Present, Top};
use super::request::ReserveRequest;
use super::stored::{Reservation, UsageKey};
use super::{Exchange, Gross, idempotency_key_of};
use crate::door::{Facts, Judged, NewEvent, Verdict, judge};
use crate::trial::Standing;

const LIFE_DEFAULT: TimeDelta = TimeDelta::minutes(15);
const LIFE_MIN: TimeDelta = TimeDelta::seconds(1);
const LIFE_MAX: TimeDelta = TimeDelta::days(30);

/// Usage that may be held, before anything is locked.
pub(super) struct Reserving<'a> {
    pub context: Context,
    /// The window of the present.
    pub window: Period,
    pub wallet_id: WalletId,
    wallet_currency: Currency,
    /// Where the wallet has another currency than the price; found by [`exchange`].
    exchange: Option<Exchange>,
    request: &'a ReserveRequest,
    event: UsageEvent,
    expires_at: Instant,
}

pub(super) enum Prepared<'a> {
    Ready(Box<Reserving<'a>>),
    /// Blocked or dropped before any price.
    Answered(Box<ReserveResponse>),
}

/// 15 minutes unless the request says otherwise (reserve.md 5).
fn expiry(request: &ReserveRequest, now: Instant) -> Result<Instant> {
    let Some(expires_at) = request.hold_expires_at else { return Ok(now + LIFE_DEFAULT) };
    if (now + LIFE_MIN..=now + LIFE_MAX).contains(&expires_at) {
        return Ok(expires_at);
    }
    Err(Error::field("hold_expires_at", Code::OutOfRange, "must be 1 second to 30 days ahead"))
}

/// The usage as the door would judge it.
enum Examined {
    Good(Box<UsageEvent>),
    Dropped,
    Blocked,
}

/// Compares the usage with the catalog as if it were an event that happens now. What is blocked anyway has to name a product
/// that exists, and no more.
async fn examine(
    scope: &Scope,
    snapshots: &Snapshots,
    context: &Context,
    request: &ReserveRequest,
    is_blocked: bool,
) -> Result<Examined> {
    let catalog = snapshots.workspace(scope.workspace_id).await?;
    if is_blocked {
        let product = catalog.product(request.product_id).filter(|product| product.is_live);
        return product.map(|_| Examined::Blocked).ok_or_else(|| Error::not_found("product", request.product_id));
    }
    let metric_key = match &request.metric_key {
        Some(metric) => metric.clone(),
        None => only_metric(&catalog, request.product_id, context.now)?,
    };
    let hold_id = HoldId::generate();
    let event = NewEvent {
        customer_id: request.customer_id,
        subscription_id: context.terms.id,
        product_id: request.product_id,
        metric_key,
        quantity: request.quantity,
        timestamp: context.now,
        idempotency_key: idempotency_key_of(hold_id),
        price_key: request.price_key.clone(),
        external_cost: request.external_cost_amount.zip(request.external_cost_currency),
        pricing_vars: request.pricing_vars.clone(),
        dimension_vars: request.dimension_vars.clone(),
        hold_id: None,
        wallet_id: None,
        wallet_currency: request.wallet_currency,
    };
    let facts = Facts::of_clock(context.terms.test_clock_id, context.now);
    let verdict = judge(scope, &catalog, Some(&context.terms), &facts, &event);
    if let Verdict::Bad(Error::Rule { .. }) = &verdict
        && catalog.product(request.product_id).is_some_and(|product| product.is_live && !product.is_keyed())
        && matches!(resolve(&catalog, context, &event), Err(Unpriced::NoPrice))
    {
        let detail = format!("no price of product {} applies", request.product_id);
        return Err(Error::rule("PRICE_NOT_FOUND", detail));
    }
    match verdict.on(scope, event, snapshots.stamp()) {
        Judged::Good { mut event, .. } => {
            (event.id, event.hold_id) = (UsageEventId::of_capture(hold_id), Some(hold_id));
            Ok(Examined::Good(event))
        }
        Judged::Dropped { .. } => Ok(Examined::Dropped),
        Judged::Unmatched { error, .. } | Judged::Bad(error) => Err(error),
    }
}

fn resolve<'a>(
    catalog: &'a WorkspaceCatalog,
    context: &Context,
    event: &NewEvent,
) -> Result<ResolvedPrice<'a>, Unpriced> {
    let (product, key) = (event.product_id, event.price_key.as_deref());
    catalog.resolve_for(&context.terms, product, key, &event.dimension_vars, event.timestamp)
}

/// What the usage costs.
struct Priced {
    gross: Gross,
    /// Running totals that it is priced on top of.
    basis: Vec<u8>,
    /// Limits that the usage would pass.
    limits: Vec<BlockedReason>,
}

impl<'a> Reserving<'a> {
    /// Judges the usage as the door would, and finds its wallet and window.
    pub async fn prepare(
        scope: &Scope,
        tx: &mut Tx,
        snapshots: &Snapshots,
        (contexts, wallets): (&HashMap<SubscriptionId, Context>, &Wallets),
        request: &'a ReserveRequest,
        subscription_id: SubscriptionId,
    ) -> Result<Prepared<'a>> {
        let customer_id = request.customer_id;
        let context = of_customer(scope, tx.conn(), contexts, customer_id, subscription_id).await?;
        let expires_at = expiry(request, context.now)?;
        let blocked = context.blocked();
        let without_hold =
            |status, reasons| Ok(Prepared::Answered(Box::new(ReserveResponse::without_hold(status, reasons))));
        let event = match examine(scope, snapshots, context, request, !blocked.is_empty()).await? {
            Examined::Good(event) if blocked.is_empty() => *event,
            Examined::Good(_) | Examined::Blocked => return without_hold(ReserveStatus::Blocked, blocked),
            Examined::Dropped => return without_hold(ReserveStatus::Dropped, Vec::new()),
        };
        let (wallet_id, wallet_currency) = wallets.of(customer_id, request.wallet_currency)?;
        let window = context.terms.window_at(context.now);
        let window = window.ok_or_else(|| Error::business_rule("the subscription has not begun"))?;
        let context = context.clone();
        let exchange = None;
        let reserving = Self { context, window, wallet_id, wallet_currency, exchange, request, event, expires_at };
        Ok(Prepared::Ready(Box::new(reserving)))
    }

    /// The currencies between which the amount is converted, if it is.
    fn pair(&self) -> Option<Pair> {
        let (source, target) = (self.context.terms.currency, self.wallet_currency);
        (source != target).then_some(Pair { source, target })
    }

    pub fn window_key(&self) -> WindowKey {
        (self.context.terms.id, self.window.start)
    }

    pub fn usage_key(&self) -> UsageKey {
        (self.event.subscription_id, self.event.product_id, self.event.metric_key.clone())
    }

    /// Prices the usage on what is counted and promised, and holds what it costs (rule D1).
    pub fn decide(self, present: &mut Present) -> Result<ReserveResponse> {
        let key = self.usage_key();
        let mut top = present.take_top(&key, &self.context, self.window.start, &self.event)?;
        let priced = self.price(&present.catalog, &mut top)?;
        let mut response = self.response(&present.catalog, &priced);
        response.blocked_reasons = self.refusals(&present.wallets, &priced)?;
        if response.blocked_reasons.is_empty() {
            let reservation = self.hold(present, priced, &mut response)?;
            present.promise(key, top, reservation.hold_id, self.event);
            present.reservations.push(reservation);
        }
        response.available_after = Some(present.wallets.wallet(self.wallet_id)?.available_balance);
        Ok(response)
    }

    /// Counts the usage on top.
    fn price(&self, catalog: &WorkspaceCatalog, top: &mut Top) -> Result<Priced> {
        let (product, metric, start) = (self.event.product_id, self.event.metric_key.as_str(), self.window.start);
        let basis = top.trial.encode_metric(start, product, metric);
        let is_blocked = top.trial.is_blocked(start, &self.event);
        let is_refused = top.trial.add(start, &self.event)?;
        let before = std::mem::replace(&mut top.standing, top.trial.standing(start, &self.event)?);
        let after = &top.standing;
        let terms = &self.context.terms;
        let mut limits = Vec::new();
        if !after.overage.is_zero() && catalog.products_ending_at_allowance(terms).any(|id| id == product) {
            limits.push(BlockedReason::AllowanceExhausted);
        }
        let mut caps = terms.caps.iter().filter(|cap| cap.is_on(product, metric));
        if is_blocked || is_refused || caps.any(|cap| is_passed(cap, &before, after)) {
            limits.push(BlockedReason::UsageCapReached);
        }
        Ok(Priced { gross: Gross::of(after.costs_since(&before)?)?, basis, limits })
    }

    fn hold(&self, present: &mut Present, priced: Priced, response: &mut ReserveResponse) -> Result<Reservation> {
        let hold_id = self.event.hold_id.ok_or_else(|| Error::invariant("reserved usage has a hold"))?;
        let subscription_id = self.event.subscription_id;
        let reserved_for = ReservedFor { subscription_id, metric_key: self.event.metric_key.clone() };
        let details = Details {
            idempotency_key: Some(self.request.idempotency_key.clone()),
            metadata: self.request.metadata.clone(),
            ..Details::of(WalletTransactionSource::Usage).reference("subscription", subscription_id)
        };
        let amount = priced.gross.in_wallet(self.exchange.as_ref())?;
        let (transfer_id, expires_at) = (TransferId(hold_id.0), Some(self.expires_at));
        present.wallets.hold(self.wallet_id, transfer_id, amount, expires_at, Some(reserved_for), &details)?;
        response.status = ReserveStatus::Held;
        response.can_proceed = true;
        response.hold_id = Some(hold_id);
        response.transaction_id = Some(hold_id.0);
        response.expires_at = expires_at;
        response.held_amount = Some(amount);
        Ok(Reservation {
            hold_id,
            wallet_id: self.wallet_id,
            window_start: self.window.start,
            event: self.event.clone(),
            basis: priced.basis,
            net: priced.gross.net,
            tax: priced.gross.tax,
            tax_rate: priced.gross.rate,
            exchange: self.exchange.clone(),
            wallet_transaction_id: None,
        })
    }

    fn response(&self, catalog: &WorkspaceCatalog, priced: &Priced) -> ReserveResponse {
        let (event, terms) = (&self.event, &self.context.terms);
        let key = event.price_key.as_deref();
        let price = catalog.resolve_for(terms, event.product_id, key, &event.dimension_vars, event.timestamp).ok();
        ReserveResponse {
            wallet_id: Some(self.wallet_id),
            resolved_currency: Some(terms.currency),
            price_id: price.as_ref().map(|price| price.price.price_id),
            price_version_id: price.as_ref().map(|price| price.price.version_id),
            net_amount: Some(priced.gross.net),
            tax_amount: Some(priced.gross.tax),
            tax_rate: Some(priced.gross.rate),
            fx_rate_id: self.exchange.as_ref().and_then(|exchange| exchange.fx.id),
            ..ReserveResponse::without_hold(ReserveStatus::Blocked, Vec::new())
        }
    }

    /// Why nothing is held: limits on usage, then the wallet. What costs nothing is never refused for money.
    fn refusals(&self, batch: &WalletBatch, priced: &Priced) -> Result<Vec<BlockedReason>> {
        let mut reasons = priced.limits.clone();
        let (wallet, amount) = (batch.wallet(self.wallet_id)?, priced.gross.in_wallet(self.exchange.as_ref())?);
        if !amount.is_zero() && amount.amount() > wallet.available_balance.amount() {
            reasons.push(match wallet.wallet.mode {
                WalletMode::Prepaid => BlockedReason::InsufficientFunds,
                WalletMode::Postpaid => BlockedReason::CreditLimitExceeded,
            });
        }
        Ok(reasons)
    }
}

/// Finds the rates of prices in another currency than the wallet's, of all reservations at once; those without one are
/// refused, in the order of their places.
///
/// # Errors
/// As every statement.
pub(super) async fn exchange(
    scope: &Scope,
    tx: &mut Tx,
    reserving: &mut Vec<(usize, Reserving<'_>)>,
) -> Result<Vec<(usize, Error)>> {
    if reserving.iter().all(|(_, one)| one.pair().is_none()) {
        return Ok(Vec::new());
    }
    let policy = FXPolicy::of_workspace(tx.conn(), scope.workspace_id).await?;
    let moment = |one: &Reserving<'_>| {
        let (issue, start) = (one.context.now, one.window.start);
        policy.choose(Moments { issue, period_start: start, segment_start: start })
    };
    let asked: Vec<_> = reserving.iter().filter_map(|(_, one)| one.pair().zip(moment(one))).collect();
    let mut rates = currency::rate::rates(tx.conn(), scope.workspace_id, &asked).await?.into_iter();
    let mut refused = Vec::new();
    reserving.retain_mut(|(place, one)| {
        let Some(pair) = one.pair() else { return true };
        let rate = match moment(one) {
            Some(at) => rates.next().flatten().ok_or_else(|| currency::rate::not_found(pair, at)),
            None => Err(unconverted(pair)),
        };
        match rate {
            Ok(rate) => one.exchange = Some(rate.into()),
            Err(error) => refused.push((*place, error)),
        }
        one.exchange.is_some()
    });
    Ok(refused)
}

/// The refusal where the organization's policy converts nothing.
fn unconverted(Pair { source, target }: Pair) -> Error {
    let detail = format!("the price is in {source}, the wallet in {target}, and the organization's fx_policy is none");
    Error::rule("FX_RATE_NOT_FOUND", detail)
}

/// Whether a cap refuses usage: it is reached already, or the usage would go past it.
fn is_passed(cap: &UsageCap, before: &Standing, after: &Standing) -> bool {
    let compare = |used: &Standing| cap.limit.compare(used.quantity, Some(used.amount));
    cap.action == UsageCapAction::Block
        && (compare(before).is_some_and(Ordering::is_ge) || compare(after).is_some_and(Ordering::is_gt))
}
