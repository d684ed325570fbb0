//! `POST /v1/transaction/reserve`: the usage is priced on top of what is counted and promised, and held on the wallet.

use std::cmp::Ordering;
use std::sync::Arc;

use catalog::compiled::{ResolvedPrice, Snapshots, Unpriced, WorkspaceCatalog};
use chrono::TimeDelta;
use domain::error::FieldErrorCode as Code;
use domain::{
    Error, HoldId, Instant, Result, Scope, TransferId, UsageCapAction, UsageEvent, UsageEventId, WalletId, WalletMode,
};
use ledger::wallet::{Details, ReservedFor, WalletTransactionSource, emit_outcome};
use ledger::{Outcome, WalletBatch, lock_wallets};
use rating::UsageCap;
use store::{BodyKey, Tx};

use super::answer::{BlockedReason, ReserveResponse, ReserveStatus};
use super::context::{Context, lock_window, only_metric, only_subscription, wallet};
use super::request::ReserveRequest;
use super::stored::{Reservation, promised};
use super::{Gross, idempotency_key_of};
use crate::door::{Facts, Judged, NewEvent, Verdict, judge};
use crate::trial::{Trial, Used};

const LIFE_DEFAULT: TimeDelta = TimeDelta::minutes(15);
const LIFE_MIN: TimeDelta = TimeDelta::seconds(1);
const LIFE_MAX: TimeDelta = TimeDelta::days(30);

/// Prices usage and holds what it costs. Nothing is held when it is blocked or dropped.
///
/// # Errors
/// `Validation`, `NotFound`; 422 `SUBSCRIPTION_REQUIRED`, `PRICE_NOT_FOUND`, `WALLET_NOT_FOUND`, `FX_RATE_NOT_FOUND` and as
/// for a usage event; `IDEMPOTENCY_CONFLICT`.
pub async fn reserve(
    scope: &Scope,
    tx: &mut Tx,
    snapshots: &Snapshots,
    request: &ReserveRequest,
) -> Result<Outcome<ReserveResponse>> {
    let key = BodyKey::new(scope, "transaction.reserve", scope.workspace_id, Some(&request.idempotency_key), request)?;
    if let Some(earlier) = key.claim(scope, tx).await? {
        return Ok(Outcome::replayed(earlier));
    }
    let response = decide(scope, tx, snapshots, request).await?;
    if response.status != ReserveStatus::Held {
        let outcome = if response.status == ReserveStatus::Dropped { "DROPPED" } else { "BLOCKED" };
        let amount = response.net_amount.zip(response.tax_amount);
        let amount = amount.map(|(net, tax)| net.add(tax)).transpose()?;
        emit_outcome(tx, scope, None, outcome, &response.reasons(), amount).await?;
    }
    key.complete(tx, &response).await?;
    Ok(Outcome::first(response))
}

async fn decide(
    scope: &Scope,
    tx: &mut Tx,
    snapshots: &Snapshots,
    request: &ReserveRequest,
) -> Result<ReserveResponse> {
    let subscription_id = match request.subscription_id {
        Some(id) => id,
        None => only_subscription(scope, tx.conn(), request.customer_id, request.product_id).await?,
    };
    let context = Context::load(scope, tx.conn(), request.customer_id, subscription_id).await?;
    let expires_at = expiry(request, context.now)?;
    let blocked = context.blocked();
    let applied = snapshots.revision();
    let mut found = examine(scope, snapshots, &context, request, !blocked.is_empty()).await;
    if !found.as_ref().is_ok_and(Examined::is_certain) && snapshots.is_behind(applied).await? {
        found = examine(scope, snapshots, &context, request, !blocked.is_empty()).await;
    }
    let (event, catalog) = match found? {
        Examined::Good { event, catalog, .. } if blocked.is_empty() => (event, catalog),
        Examined::Good { .. } | Examined::Blocked => {
            return Ok(ReserveResponse::without_hold(ReserveStatus::Blocked, blocked));
        }
        Examined::Dropped => return Ok(ReserveResponse::without_hold(ReserveStatus::Dropped, Vec::new())),
    };
    Desk { scope, snapshots, catalog, context, request, expires_at }.place(tx, *event).await
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
    Good { event: Box<UsageEvent>, catalog: Arc<WorkspaceCatalog>, is_certain: bool },
    Dropped,
    Blocked,
}

impl Examined {
    fn is_certain(&self) -> bool {
        matches!(self, Self::Good { is_certain: true, .. } | Self::Blocked)
    }
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
    let is_certain = verdict.is_certain();
    match verdict.on(scope, event, snapshots.stamp()) {
        Judged::Good { mut event, .. } => {
            (event.id, event.hold_id) = (UsageEventId::of_capture(hold_id), Some(hold_id));
            Ok(Examined::Good { event, catalog, is_certain })
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

/// Usage that may be held.
struct Desk<'a> {
    scope: &'a Scope,
    snapshots: &'a Snapshots,
    catalog: Arc<WorkspaceCatalog>,
    context: Context,
    request: &'a ReserveRequest,
    expires_at: Instant,
}

/// What the usage costs.
struct Priced {
    window_start: Instant,
    gross: Gross,
    /// Running totals that it is priced on top of.
    basis: Vec<u8>,
    /// Limits that the usage would pass.
    limits: Vec<BlockedReason>,
}

impl Desk<'_> {
    /// Locks the window, then the wallet (rule D1).
    async fn place(self, tx: &mut Tx, event: UsageEvent) -> Result<ReserveResponse> {
        let customer_id = self.request.customer_id;
        let (wallet_id, currency) = wallet(self.scope, tx.conn(), customer_id, self.request.wallet_currency).await?;
        let price_currency = self.context.terms.currency;
        if currency != price_currency {
            let detail = format!("there is no exchange rate from {price_currency} to {currency}");
            return Err(Error::rule("FX_RATE_NOT_FOUND", detail));
        }
        let priced = self.price(tx, &event).await?;
        let mut batch = lock_wallets(tx, self.scope, &[wallet_id]).await?;
        let mut response = self.response(&event, &priced, wallet_id);
        response.blocked_reasons = refusals(&batch, wallet_id, &priced)?;
        if response.blocked_reasons.is_empty() {
            self.hold(tx, &mut batch, &event, &priced, &mut response).await?;
        }
        response.available_after = Some(batch.wallet(wallet_id)?.available_balance);
        batch.write(tx, self.scope).await?;
        Ok(response)
    }

    /// Counts what is promised on top of what is checkpointed, then the usage on top of both.
    async fn price(&self, tx: &mut Tx, event: &UsageEvent) -> Result<Priced> {
        let Context { terms, now, .. } = &self.context;
        let window = terms.window_at(*now).ok_or_else(|| Error::business_rule("the subscription has not begun"))?;
        lock_window(tx, terms, window, self.scope.now()).await?;
        let (catalog, start) = (self.catalog.clone(), window.start);
        let mut trial = Trial::load(tx.conn(), self.snapshots, catalog, terms.clone()).await?;
        let (product, metric) = (event.product_id, event.metric_key.as_str());
        for mut promise in promised(tx.conn(), terms.id, product, metric, *now).await? {
            // A hold that outlives its period will be captured in the present one.
            if !promise.is_captured && promise.event.timestamp < start {
                promise.event.timestamp = *now;
            }
            if let Err(error) = trial.count(&promise.event) {
                tracing::warn!(hold.id = ?promise.event.hold_id, error = %error, "promised usage cannot be counted");
            }
        }
        let basis = trial.encode_metric(start, product, metric);
        let before = trial.used(start, product, metric)?;
        let is_blocked = trial.is_blocked(start, event);
        let marginal = trial.price(start, event)?;
        let after = trial.used(start, product, metric)?;
        let mut limits = Vec::new();
        let ends_at_allowance = self.catalog.products_ending_at_allowance(terms).any(|id| id == product);
        if ends_at_allowance && !trial.overage(start, event)?.is_zero() {
            limits.push(BlockedReason::AllowanceExhausted);
        }
        let mut caps = terms.caps.iter().filter(|cap| cap.is_on(product, metric));
        if is_blocked || marginal.is_refused || caps.any(|cap| is_passed(cap, &before, &after)) {
            limits.push(BlockedReason::UsageCapReached);
        }
        Ok(Priced { window_start: start, gross: Gross::of(marginal.net)?, basis, limits })
    }

    async fn hold(
        &self,
        tx: &mut Tx,
        batch: &mut WalletBatch,
        event: &UsageEvent,
        priced: &Priced,
        response: &mut ReserveResponse,
    ) -> Result<()> {
        let (Some(hold_id), Some(wallet_id)) = (event.hold_id, response.wallet_id) else {
            return Err(Error::invariant("reserved usage has a hold and a wallet"));
        };
        let reserved_for = ReservedFor { subscription_id: event.subscription_id, metric_key: event.metric_key.clone() };
        let details = Details {
            idempotency_key: Some(self.request.idempotency_key.clone()),
            metadata: self.request.metadata.clone(),
            ..Details::of(WalletTransactionSource::Usage).reference("subscription", event.subscription_id)
        };
        let amount = priced.gross.total()?;
        let transfer_id = TransferId(hold_id.0);
        batch.hold(wallet_id, transfer_id, amount, Some(self.expires_at), Some(reserved_for), &details)?;
        let reservation = Reservation {
            hold_id,
            wallet_id,
            window_start: priced.window_start,
            event: event.clone(),
            basis: priced.basis.clone(),
            net: priced.gross.net,
            tax: priced.gross.tax,
            tax_rate: priced.gross.rate,
            wallet_transaction_id: None,
        };
        reservation.insert(tx, self.scope).await?;
        response.status = ReserveStatus::Held;
        response.can_proceed = true;
        response.hold_id = Some(hold_id);
        response.transaction_id = Some(hold_id.0);
        response.expires_at = Some(self.expires_at);
        response.held_amount = Some(amount);
        Ok(())
    }

    fn response(&self, event: &UsageEvent, priced: &Priced, wallet_id: WalletId) -> ReserveResponse {
        let (product, key) = (event.product_id, event.price_key.as_deref());
        let terms = &self.context.terms;
        let price = self.catalog.resolve_for(terms, product, key, &event.dimension_vars, event.timestamp).ok();
        ReserveResponse {
            wallet_id: Some(wallet_id),
            resolved_currency: Some(terms.currency),
            price_id: price.as_ref().map(|price| price.price.price_id),
            price_version_id: price.as_ref().map(|price| price.price.version_id),
            net_amount: Some(priced.gross.net),
            tax_amount: Some(priced.gross.tax),
            tax_rate: Some(priced.gross.rate),
            ..ReserveResponse::without_hold(ReserveStatus::Blocked, Vec::new())
        }
    }
}

/// Whether a cap refuses usage: it is reached already, or the usage would go past it.
fn is_passed(cap: &UsageCap, before: &Used, after: &Used) -> bool {
    let compare = |used: &Used| cap.limit.compare(used.quantity, Some(used.amount));
    cap.action == UsageCapAction::Block
        && (compare(before).is_some_and(Ordering::is_ge) || compare(after).is_some_and(Ordering::is_gt))
}

/// Why nothing is held: limits on usage, then the wallet. What costs nothing is never refused for money.
fn refusals(batch: &WalletBatch, wallet_id: WalletId, priced: &Priced) -> Result<Vec<BlockedReason>> {
    let mut reasons = priced.limits.clone();
    let (wallet, amount) = (batch.wallet(wallet_id)?, priced.gross.total()?);
    if !amount.is_zero() && amount.amount() > wallet.available_balance.amount() {
        reasons.push(match wallet.wallet.mode {
            WalletMode::Prepaid => BlockedReason::InsufficientFunds,
            WalletMode::Postpaid => BlockedReason::CreditLimitExceeded,
        });
    }
    Ok(reasons)
}
