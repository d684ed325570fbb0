//! Usage that was paid when it was captured (reserve.md, Captured usage on the invoice; rules D2, D3): the line shows
//! everything, what captures have taken settles it, and what they took too much goes back to the wallet.

use domain::{ChargeKind, Currency, Error, Instant, Money, Result, Scope, SubscriptionId, TransferId, WalletId};
use rust_decimal::Decimal;
use sqlx::{FromRow, PgConnection};
use store::StoreError;
use uuid::Uuid;

use super::draft::Draft;
use super::paid::Paid;
use super::save::Saved;
use crate::control::WindowRef;

/// What captures have taken for one window and wallet pin, less what invoices have used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    subscription_id: SubscriptionId,
    window_start: Instant,
    wallet_currency: Option<Currency>,
    /// The wallet that paid.
    pub(crate) wallet_id: WalletId,
    /// What is left of it, in the currency of the usage.
    pub(crate) rest: Money,
    /// What the wallet has paid for that, in its own currency.
    pub(crate) paid: Money,
    /// The first of the holds that were captured: each is settled once.
    first_hold: Uuid,
}

/// Refuses while something is on its way that changes these locked windows of a workspace: a capture that is not counted yet,
/// a void whose window still counts the event, a change of the catalog that counted usage does not know yet.
///
/// # Errors
/// `Unavailable` for `event_log`: it passes by itself.
pub(crate) async fn refuse_pending(conn: &mut PgConnection, windows: &[WindowRef]) -> Result<()> {
    let Some(workspace_id) = windows.first().map(|window| window.workspace_id) else { return Ok(()) };
    let is_pending: bool = sqlx::query_scalar(
        "WITH w AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[])
                                  AS w (subscription_id, window_start, window_end))
         SELECT EXISTS (SELECT FROM w JOIN usage_void v USING (subscription_id, window_start) WHERE v.open)
             OR EXISTS (SELECT FROM w JOIN usage_reservation r USING (subscription_id)
                        WHERE r.counted_in IS NULL AND r.captured_net IS NOT NULL AND r.occurred_at < w.window_end)
             OR EXISTS (SELECT FROM w JOIN catalog_recount c ON c.workspace_id = $4
                        WHERE c.done_at IS NULL AND coalesce(c.from_at < w.window_end, true))",
    )
    .bind(windows.iter().map(|window| window.subscription_id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.window_start).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.window_end).collect::<Vec<_>>())
    .bind(workspace_id)
    .fetch_one(conn)
    .await
    .context("looking for usage on its way")?;
    if !is_pending {
        return Ok(());
    }
    let detail = "captured or voided usage of the window, or a change of the catalog, is not counted yet".to_owned();
    Err(Error::Unavailable { dependency: "event_log", detail, retry_after_secs: 1 })
}

/// Takes what captures have paid in these windows; it is settled from here on.
///
/// # Errors
/// As every statement.
pub(crate) async fn take(conn: &mut PgConnection, scope: &Scope, windows: &[WindowRef]) -> Result<Vec<Captured>> {
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<TakenRow> = sqlx::query_as(
        "WITH taken AS (
             UPDATE usage_reservation r SET settled_at = $4
             FROM unnest($2::uuid[], $3::timestamptz[]) AS w (subscription_id, window_start)
             WHERE r.workspace_id = $1 AND r.subscription_id = w.subscription_id AND r.counted_in = w.window_start
               AND r.settled_at IS NULL
             RETURNING r.subscription_id, r.counted_in, r.wallet_currency, r.wallet_id, r.hold_id, r.exchange, r.captured_charge,
                 r.captured_net + r.captured_tax AS gross)
         SELECT subscription_id, counted_in AS window_start, wallet_currency, wallet_id, wallet.currency AS paid_currency,
             coalesce(exchange ->> 'source_currency', wallet.currency) AS currency, sum(gross) AS gross,
             sum(coalesce(captured_charge, gross)) AS paid, min(hold_id::text)::uuid AS first_hold
         FROM taken JOIN wallet ON wallet.id = wallet_id
         GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 6",
    )
    .bind(scope.workspace_id)
    .bind(windows.iter().map(|window| window.subscription_id.0).collect::<Vec<_>>())
    .bind(windows.iter().map(|window| window.window_start).collect::<Vec<_>>())
    .bind(scope.now())
    .fetch_all(conn)
    .await
    .context("settling captured usage")?;
    rows.into_iter().map(TakenRow::captured).collect()
}

#[derive(FromRow)]
struct TakenRow {
    subscription_id: SubscriptionId,
    window_start: Instant,
    wallet_currency: String,
    wallet_id: WalletId,
    currency: Currency,
    gross: Decimal,
    paid_currency: Currency,
    paid: Decimal,
    first_hold: Uuid,
}

impl TakenRow {
    fn captured(self) -> Result<Captured> {
        Ok(Captured {
            subscription_id: self.subscription_id,
            window_start: self.window_start,
            wallet_currency: Currency::parse(&self.wallet_currency),
            wallet_id: self.wallet_id,
            rest: Money::new(self.gross, self.currency)?,
            paid: Money::new(self.paid, self.paid_currency)?,
            first_hold: self.first_hold,
        })
    }
}

/// What of an invoice is paid already, at most its total; it is taken off the captures.
///
/// # Errors
/// `CURRENCY_MISMATCH`.
pub(crate) fn settle(invoice: &Saved<'_>, captured: &mut [Captured]) -> Result<Paid> {
    let draft = invoice.draft;
    let mut paid = Paid::nothing(draft.totals.total.currency());
    if draft.totals.total.is_negative() {
        return Ok(paid);
    }
    let pays = |one: &&mut Captured| {
        one.subscription_id == invoice.subscription.id
            && one.wallet_currency == draft.wallet_currency
            && has_usage_of(draft, one.window_start)
    };
    for one in captured.iter_mut().filter(pays) {
        let open = draft.totals.total.sub(paid.settled.amount)?;
        let part = if one.rest.amount() <= open.amount() { one.rest } else { open };
        let taken = one.paid_for(part)?;
        paid.settle(one.wallet_id, part, taken)?;
        (one.rest, one.paid) = (one.rest.sub(part)?, one.paid.sub(taken)?);
    }
    Ok(paid)
}

fn has_usage_of(draft: &Draft, window_start: Instant) -> bool {
    draft.lines.iter().any(|line| line.charge_kind == ChargeKind::Usage && line.period.start == window_start)
}

impl Captured {
    /// What of the wallet's money has paid a part of the rest: in proportion, so that the last part takes all that is left.
    fn paid_for(&self, part: Money) -> Result<Money> {
        if part == self.rest {
            return Ok(self.paid);
        }
        if self.rest.currency() == self.paid.currency() {
            return Ok(part);
        }
        let share = part.amount() / self.rest.amount();
        Ok(Money::round(self.paid.amount() * share, self.paid.currency())?)
    }

    /// Id of the transfer that gives the rest back: of the holds that are settled together.
    pub(crate) fn return_id(&self) -> TransferId {
        TransferId(Uuid::new_v5(&self.first_hold, b"captured too much"))
    }

    /// Whose usage it was.
    pub(crate) fn subscription_id(&self) -> SubscriptionId {
        self.subscription_id
    }
}
