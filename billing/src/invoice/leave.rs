//! What a window leaves to later ones when it is finalized: unused allowance, what it drew of grants, what it used of
//! commitments (allowances.md 5.1 rules 1, 4, 8 and 10).
//!
//! It is written by the transaction that finalizes the window, under keys that make a repeat harmless, and raises the catalog
//! revision, so that everything that rates a later window reads it. A window that is finalized before an earlier one would
//! lack what that leaves: it is refused.

use catalog::compiled::AllowancePool;
use domain::period::Period;
use domain::{
    AllowanceGrantId, CommittedUsePlanId, Error, Instant, ProductId, Quantity, Result, Scope, SubscriptionId,
};
use rating::allowance::{Drawn, Lot, Rollover};
use rating::{Exact, Rated, RatedLine};
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::draft::Job;
use super::load::Loaded;
use super::run::RunReason;
use super::save::Computed;
use crate::control::WindowRef;
use crate::events::{self, Event};

/// Refuses to seal a window while an earlier one of the same subscription is not billed, where that changes the bill.
///
/// # Errors
/// `Conflict`.
pub(crate) async fn refuse_before_earlier(
    conn: &mut PgConnection,
    loaded: &Loaded,
    windows: &[WindowRef],
) -> Result<()> {
    let dependent: Vec<_> = windows.iter().filter(|window| loaded.depends_on_earlier(window.subscription_id)).collect();
    if dependent.is_empty() {
        return Ok(());
    }
    let earlier: Option<SubscriptionId> = sqlx::query_scalar(
        "SELECT w.subscription_id FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
         JOIN usage_window w ON w.subscription_id = asked.subscription_id AND w.window_start < asked.window_start
         WHERE NOT w.billed LIMIT 1",
    )
    .bind(dependent.iter().map(|window| window.subscription_id.0).collect::<Vec<_>>())
    .bind(dependent.iter().map(|window| window.window_start).collect::<Vec<_>>())
    .fetch_optional(conn)
    .await
    .context("looking for earlier windows that are not billed")?;
    match earlier {
        None => Ok(()),
        Some(id) => {
            let detail = "an earlier period is not finalized: what it leaves of its allowances belongs to this one";
            Err(Error::conflict("CONFLICT", detail).with("subscription_id", id))
        }
    }
}

#[derive(Serialize)]
struct LotRow<'a> {
    subscription_id: SubscriptionId,
    available_from: Instant,
    product_id: ProductId,
    metric_key: &'a str,
    /// The price key that has it for itself; empty: what all share.
    price_key: String,
    source_start: Instant,
    workspace_id: domain::WorkspaceId,
    quantity: Quantity,
    periods_lived: u32,
    expires_at: Option<Instant>,
}

#[derive(Serialize)]
struct DrawRow {
    grant_id: AllowanceGrantId,
    window_start: Instant,
    quantity: Quantity,
}

#[derive(Serialize)]
struct UseRow {
    plan_id: CommittedUsePlanId,
    window_start: Instant,
    period_start: Instant,
    price_version_id: domain::VersionId,
    wallet_currency: String,
    within: Quantity,
    beyond: Quantity,
}

#[derive(Default)]
struct Left<'a> {
    lots: Vec<LotRow<'a>>,
    draws: Vec<DrawRow>,
    uses: Vec<UseRow>,
    /// With the subscription and product that it tells of.
    events: Vec<(SubscriptionId, ProductId, Event)>,
}

/// Writes what the windows of these runs leave.
///
/// # Errors
/// 422 when a quantity leaves its range; as every statement.
pub(crate) async fn to_later_windows(
    scope: &Scope,
    tx: &mut Tx,
    loaded: &Loaded,
    computed: &[Computed<'_>],
) -> Result<()> {
    let mut left = Left::default();
    let dependent = || computed.iter().filter(|one| loaded.depends_on_earlier(one.run.subscription_id));
    for Computed { run, rated, .. } in dependent() {
        if let Some(window) = run.sealed_window().filter(|_| loaded.has_usage(run.subscription_id)) {
            left.add(scope, &loaded.job(*run)?, window, rated)?;
        }
    }
    if left.lots.is_empty() && left.draws.is_empty() && left.uses.is_empty() {
        return Ok(());
    }
    let written = write(tx.conn(), &left).await?;
    let is_written = |id: SubscriptionId, product: ProductId| written.contains(&(id.0, product.0));
    let events = left.events.into_iter().filter(|(id, product, _)| is_written(*id, *product));
    events::emit(tx.conn(), &events.map(|(_, _, event)| event).collect::<Vec<_>>()).await?;
    for one in dependent() {
        tx.subscription_changed(scope.workspace_id, one.run.subscription_id);
    }
    Ok(())
}

/// Answers the subscriptions and products of which something was carried just now.
async fn write(conn: &mut PgConnection, left: &Left<'_>) -> Result<Vec<(Uuid, Uuid)>> {
    let written = sqlx::query_as(
        "INSERT INTO allowance_lot (subscription_id, available_from, product_id, metric_key, price_key, source_start,
             workspace_id, quantity, periods_lived, expires_at)
         SELECT subscription_id, available_from, product_id, metric_key, price_key, source_start, workspace_id, quantity,
                periods_lived, expires_at FROM jsonb_populate_recordset(NULL::allowance_lot, $1)
         ON CONFLICT DO NOTHING RETURNING subscription_id, product_id",
    )
    .bind(Json(&left.lots))
    .fetch_all(&mut *conn)
    .await
    .context("carrying allowances on")?;
    sqlx::query(
        "INSERT INTO allowance_draw (grant_id, window_start, quantity)
         SELECT grant_id, window_start, quantity FROM jsonb_populate_recordset(NULL::allowance_draw, $1)
         ON CONFLICT DO NOTHING",
    )
    .bind(Json(&left.draws))
    .execute(&mut *conn)
    .await
    .context("drawing grants")?;
    sqlx::query(
        "INSERT INTO committed_use (plan_id, window_start, period_start, price_version_id, wallet_currency, within, beyond)
         SELECT plan_id, window_start, period_start, price_version_id, wallet_currency, within, beyond
         FROM jsonb_populate_recordset(NULL::committed_use, $1) ON CONFLICT DO NOTHING",
    )
    .bind(Json(&left.uses))
    .execute(conn)
    .await
    .context("noting what commitments used")?;
    Ok(written)
}

impl<'a> Left<'a> {
    fn add(&mut self, scope: &Scope, job: &Job<'a>, window: Period, rated: &Rated) -> Result<()> {
        match job.run.key.reason {
            // Nothing is charged in a pause: what was carried waits, and nothing is added to it.
            RunReason::Paused => self.keep_lots(job, window),
            // Nothing is carried out of a trial, nor out of an agreement that is over; what is billed beside the period's own
            // invoice leaves nothing of its own.
            RunReason::Trial
            | RunReason::Activation
            | RunReason::Manual
            | RunReason::Interim
            | RunReason::Correction => {}
            RunReason::Closing | RunReason::Renewal => {
                if job.run.key.reason == RunReason::Renewal {
                    self.carry(scope, job, window, rated)?;
                }
                self.draw_grants(job, window, rated)?;
                self.use_commitments(window, rated)?;
            }
        }
        Ok(())
    }

    fn keep_lots(&mut self, job: &Job<'a>, window: Period) {
        let terms = job.terms;
        for carried in terms.carried.lots.iter().filter(|carried| carried.available_from == window.start) {
            let of = (carried.product_id, carried.metric_key.as_str(), carried.price_key.clone());
            self.push_lot(job, of, window.end, carried.lot);
        }
    }

    fn push_lot(
        &mut self,
        job: &Job<'a>,
        (product_id, metric_key, price_key): (ProductId, &'a str, String),
        from: Instant,
        lot: Lot,
    ) {
        self.lots.push(LotRow {
            subscription_id: job.terms.id,
            available_from: from,
            product_id,
            metric_key,
            price_key,
            source_start: lot.source_start,
            workspace_id: job.terms.workspace_id,
            quantity: lot.quantity,
            periods_lived: lot.periods_lived,
            expires_at: lot.expires_at,
        });
    }

    /// Rule 4: what is left of included and carried quantities, for the next window.
    fn carry(&mut self, scope: &Scope, job: &Job<'a>, window: Period, rated: &Rated) -> Result<()> {
        let catalog = job.catalog;
        for (product_id, rollover) in catalog.rollovers(job.terms) {
            let first = self.lots.len();
            for metric_key in catalog.metrics_of(product_id, window) {
                let allowance = catalog.allowance(job.terms, product_id, metric_key, window)?;
                for (key, pool) in allowance.pools() {
                    let drawn = allowance.drawn((key, pool), lines_of(rated, product_id, metric_key))?;
                    for lot in carried(job, window, rollover, pool, &drawn)? {
                        let of = (product_id, metric_key, key.unwrap_or_default().to_owned());
                        self.push_lot(job, of, window.end, lot);
                    }
                }
            }
            let lots = &self.lots[first..];
            if !lots.is_empty() {
                let event = rolled_over(scope, job, window, product_id, lots)?;
                self.events.push((job.terms.id, product_id, event));
            }
        }
        Ok(())
    }

    /// Rule 10: what is drawn in one window is not there again in the next.
    fn draw_grants(&mut self, job: &Job<'_>, window: Period, rated: &Rated) -> Result<()> {
        let mut known: Vec<(ProductId, &str)> = Vec::new();
        for grant in &job.terms.carried.grants {
            let key = (grant.product_id, grant.metric_key.as_str());
            if known.contains(&key) {
                continue;
            }
            known.push(key);
            let allowance = job.catalog.allowance(job.terms, key.0, key.1, window)?;
            let shared = (None, &allowance.shared);
            let mut drawn = allowance.drawn(shared, lines_of(rated, key.0, key.1))?.from_granted;
            for grant in job.terms.carried.grants_of(key.0, key.1) {
                let taken = drawn.min(grant.left_in(window).into());
                drawn = drawn.checked_sub(taken)?;
                let quantity = taken.floor_to_quantity();
                if quantity > Quantity::ZERO {
                    self.draws.push(DrawRow { grant_id: grant.id, window_start: window.start, quantity });
                }
            }
        }
        Ok(())
    }

    fn use_commitments(&mut self, window: Period, rated: &Rated) -> Result<()> {
        let first = self.uses.len();
        for line in &rated.lines {
            for atom in &line.atoms {
                let Some(part) = atom.committed else { continue };
                let wallet_currency = line.wallet_currency.map(|pin| pin.to_string()).unwrap_or_default();
                let (period_start, price_version_id) = (part.period_start, atom.price.version_id);
                let same = |row: &UseRow| {
                    (row.plan_id, row.period_start, row.price_version_id)
                        == (part.plan_id, period_start, price_version_id)
                        && row.wallet_currency == wallet_currency
                };
                let index = self.uses[first..].iter().position(same).map_or(self.uses.len(), |index| first + index);
                if index == self.uses.len() {
                    self.uses.push(UseRow {
                        plan_id: part.plan_id,
                        window_start: window.start,
                        period_start,
                        price_version_id,
                        wallet_currency,
                        within: Quantity::ZERO,
                        beyond: Quantity::ZERO,
                    });
                }
                let row = &mut self.uses[index];
                let sum = if part.is_within { &mut row.within } else { &mut row.beyond };
                *sum = Exact::from(*sum).checked_add(atom.billable_quantity)?.floor_to_quantity();
            }
        }
        Ok(())
    }
}

fn lines_of<'r>(rated: &'r Rated, product_id: ProductId, metric_key: &'r str) -> impl Iterator<Item = &'r RatedLine> {
    rated.lines.iter().filter(move |line| line.product_id == product_id && line.metric_key == metric_key)
}

fn carried(job: &Job<'_>, window: Period, rollover: Rollover, pool: &AllowancePool, drawn: &Drawn) -> Result<Vec<Lot>> {
    // The end of the period that is so many periods ahead, the next one being the first.
    let expiry_of = |periods: u32| {
        let end = |at| job.terms.window_at(at).map_or(at, |next| next.end);
        (0..periods).fold(window.end, |at, _| end(at))
    };
    Ok(rollover.carry(window.start, &pool.lots, drawn, pool.sources.included, expiry_of)?)
}

fn rolled_over(
    scope: &Scope,
    job: &Job<'_>,
    window: Period,
    product_id: ProductId,
    lots: &[LotRow<'_>],
) -> Result<Event> {
    let sum = lots.iter().try_fold(Quantity::ZERO, |sum, lot| sum.checked_add(lot.quantity))?;
    let next = job.terms.window_at(window.end).unwrap_or(window);
    let expires_at = lots.iter().filter_map(|lot| lot.expires_at).min();
    let payload = json!({
        "subscription_id": job.terms.id,
        "product_id": product_id,
        "quantity": sum,
        "from_period": { "start": window.start, "end": window.end },
        "to_period": { "start": next.start, "end": next.end },
        "expires_at": expires_at,
    });
    let (workspace_id, id) = (job.terms.workspace_id, job.terms.id);
    Ok(Event::new(workspace_id, "allowance.rolled_over", "subscription", id, payload, scope.now()))
}
