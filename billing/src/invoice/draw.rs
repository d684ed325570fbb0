//! Wallet money on finalized invoices (rule D4): from the customer's wallet in the invoice's currency or, where the usage is
//! pinned to another one, from that at the rate that the organization's policy chooses (fx.md 4).
//!
//! Where that rate is not known, or the policy converts nothing, nothing is drawn: the invoice is finalized and stays to be
//! paid. Each movement pins the rate at which it was converted.

use std::collections::HashMap;

use currency::policy::Moments;
use currency::{FXPolicy, FxRate, Pair};
use domain::{Currency, CustomerId, Instant, Money, Result, Scope, TransferId, WalletId};
use ledger::WalletBatch;
use ledger::invoice::charge_transfer_id;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::captured::Captured;
use super::paid::Paid;
use super::save::Saved;

/// What is to be drawn of one invoice from one wallet.
struct Draw {
    /// Which invoice.
    invoice: usize,
    wallet: WalletId,
    transfer_id: TransferId,
    /// In the invoice's currency.
    amount: Money,
    /// Where the wallet has another.
    exchange: Option<(Pair, Instant)>,
}

/// Gives back what captures took too much, then draws what is open of each invoice, and adds it to what is paid of that.
///
/// # Errors
/// As every statement; a rule for an amount that leaves its range.
pub(super) async fn apply_wallets(
    scope: &Scope,
    tx: &mut Tx,
    saved: &[Saved<'_>],
    paid: &mut [Paid],
    returned: &[Captured],
    policy: FXPolicy,
) -> Result<()> {
    let draws = draws_of(scope, tx, saved, paid, policy).await?;
    let mut ids: Vec<_> = draws.iter().map(|draw| draw.wallet).collect();
    ids.extend(returned.iter().map(|captured| captured.wallet_id));
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(());
    }
    let asked: Vec<_> = draws.iter().filter_map(|draw| draw.exchange).collect();
    let mut rates = currency::rate::rates(tx.conn(), scope.workspace_id, &asked).await?.into_iter();
    let mut batch = ledger::lock_wallets(tx, scope, &ids).await?;
    for one in returned {
        batch.return_captured(one.wallet_id, one.return_id(), one.paid, one.subscription_id())?;
    }
    for draw in &draws {
        let rate = draw.exchange.and_then(|_| rates.next().flatten());
        let drawn = take(&mut batch, draw, rate.as_ref(), saved)?;
        paid[draw.invoice].draw(draw.wallet, drawn)?;
    }
    batch.write(tx, scope).await
}

fn take(batch: &mut WalletBatch, draw: &Draw, rate: Option<&FxRate>, saved: &[Saved<'_>]) -> Result<Money> {
    let Draw { wallet, transfer_id, amount, exchange, .. } = *draw;
    let invoice = saved[draw.invoice].id;
    match (exchange, rate) {
        (None, _) => batch.charge_for_invoice(wallet, transfer_id, amount, invoice),
        (Some(_), Some(rate)) => batch.charge_for_invoice_at(wallet, transfer_id, amount, rate, invoice),
        (Some(_), None) => Ok(Money::zero(amount.currency())),
    }
}

/// One draw per invoice that is owed; of an invoice in another currency than its wallet one per moment whose rate counts.
async fn draws_of(
    scope: &Scope,
    tx: &mut Tx,
    saved: &[Saved<'_>],
    paid: &[Paid],
    policy: FXPolicy,
) -> Result<Vec<Draw>> {
    let wallets = wallets_of(scope, tx, saved).await?;
    let mut draws = Vec::new();
    for (invoice, (one, paid)) in saved.iter().zip(paid).enumerate() {
        let settled = paid.settled.amount;
        let open = one.draft.totals.total.sub(settled)?;
        let target = one.draft.wallet_currency.unwrap_or(open.currency());
        let Some(wallet) = wallets.get(&(one.subscription.customer_id, target)).copied() else { continue };
        if open.is_zero() || open.is_negative() {
            continue;
        }
        let transfer_id = charge_transfer_id(one.id, wallet);
        if target == open.currency() {
            draws.push(Draw { invoice, wallet, transfer_id, amount: open, exchange: None });
            continue;
        }
        let pair = Pair { source: open.currency(), target };
        for (part, (at, amount)) in (0_u32..).zip(parts_of(one, settled, policy, scope.now())?) {
            let transfer_id = match part {
                0 => transfer_id,
                part => TransferId(Uuid::new_v5(&transfer_id.0, &part.to_be_bytes())),
            };
            draws.push(Draw { invoice, wallet, transfer_id, amount, exchange: Some((pair, at)) });
        }
    }
    Ok(draws)
}

/// What is open of the lines, by the moment whose rate counts for them; nothing where the policy converts nothing.
fn parts_of(one: &Saved<'_>, settled: Money, policy: FXPolicy, issue: Instant) -> Result<Vec<(Instant, Money)>> {
    let lines = &one.draft.lines;
    let period_start = lines.iter().map(|line| line.period.start).min().unwrap_or(issue);
    let mut parts: Vec<(Instant, Money)> = Vec::new();
    for line in lines {
        let Some(at) = policy.choose(Moments { issue, period_start, segment_start: line.period.start }) else {
            return Ok(Vec::new());
        };
        let total = line.amount.add(line.tax.amount)?;
        match parts.iter_mut().find(|(known, _)| *known == at) {
            Some((_, sum)) => *sum = sum.add(total)?,
            None => parts.push((at, total)),
        }
    }
    // What captures have paid comes off in order.
    let mut settled = settled;
    for (_, amount) in &mut parts {
        let off = if settled.amount() <= amount.amount() { settled } else { *amount };
        *amount = amount.sub(off)?;
        settled = settled.sub(off)?;
    }
    parts.retain(|(_, amount)| !amount.is_zero() && !amount.is_negative());
    Ok(parts)
}

async fn wallets_of(
    scope: &Scope,
    tx: &mut Tx,
    saved: &[Saved<'_>],
) -> Result<HashMap<(CustomerId, Currency), WalletId>> {
    let wallets: Vec<(WalletId, CustomerId, Currency)> = sqlx::query_as(
        "SELECT id, customer_id, currency FROM wallet WHERE workspace_id = $1 AND customer_id = ANY($2)",
    )
    .bind(scope.workspace_id)
    .bind(saved.iter().map(|one| one.subscription.customer_id.0).collect::<Vec<_>>())
    .fetch_all(tx.conn())
    .await
    .context("looking for wallets")?;
    Ok(wallets.into_iter().map(|(id, customer, currency)| ((customer, currency), id)).collect())
}
