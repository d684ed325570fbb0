//! What earlier windows of a subscription leave to later ones, and what is granted and committed to it (allowances.md 5.1).
//! It changes when a window is finalized; every figure of a later window is computed with it.

use std::collections::HashMap;
use std::sync::Arc;

use domain::period::{Period, plus_months};
use domain::{
    AllowanceGrantId, CommitmentPeriod, CommittedUsePlanId, Currency, Instant, PriceId, ProductId, Quantity, Result,
    ShortfallPolicy, SubscriptionId, VersionId,
};
use rating::allowance::Lot;
use rating::{Commitment, CompiledPrice};
use rust_decimal::Decimal;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use store::StoreError;

/// What is carried, granted and committed; empty for most subscriptions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Carried {
    /// Unused quantities of earlier periods.
    pub lots: Vec<CarriedLot>,
    /// Granted quantities, in the order in which they are drawn: earliest expiry first.
    pub grants: Vec<Grant>,
    /// Committed use plans.
    pub commitments: Vec<CommittedUse>,
}

/// An unused quantity, and the window that may draw it.
#[derive(Clone, Debug, PartialEq)]
pub struct CarriedLot {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// The price key that had it for itself; empty: what all share.
    pub price_key: String,
    /// Start of the window.
    pub available_from: Instant,
    /// What there is.
    pub lot: Lot,
}

/// A quantity that was granted on top of the allowance (rule 10).
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// The grant.
    pub id: AllowanceGrantId,
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// What was granted.
    pub quantity: Quantity,
    /// From when it may be drawn.
    pub starts_at: Instant,
    /// When it lapses.
    pub expires_at: Option<Instant>,
    /// What windows drew, by their starts.
    pub drawn: Vec<(Instant, Quantity)>,
}

impl Grant {
    /// What a window may draw: what earlier ones left, when its period meets the validity.
    #[must_use]
    pub fn left_in(&self, window: Period) -> Quantity {
        if self.starts_at >= window.end || self.expires_at.is_some_and(|end| end <= window.start) {
            return Quantity::ZERO;
        }
        let earlier = self.drawn.iter().filter(|(start, _)| *start < window.start);
        earlier.fold(self.quantity, |left, (_, drawn)| left.saturating_less(*drawn))
    }
}

/// A committed use plan.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedUse {
    /// The plan.
    pub id: CommittedUsePlanId,
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// Least quantity per commitment period.
    pub committed: Quantity,
    /// How long one is.
    pub commitment_period: CommitmentPeriod,
    /// Discounted rate.
    pub committed_rate: Decimal,
    /// The same as a price.
    pub rate: Arc<CompiledPrice>,
    /// Price beyond; `None`: the one that resolves.
    pub overage_price_id: Option<PriceId>,
    /// When what falls short is billed.
    pub shortfall_policy: ShortfallPolicy,
    /// Start of the term.
    pub starts_at: Instant,
    /// End of the term, or of a cancelled plan.
    pub ends_at: Instant,
    /// Whether it was cancelled and what its last period falls short is not billed.
    pub is_waived: bool,
    /// What billed windows used.
    pub uses: Vec<CommittedUseRow>,
}

/// What a billed window used of a commitment period, by what charged it.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedUseRow {
    /// Start of the window.
    pub window_start: Instant,
    /// Start of the commitment period.
    pub period_start: Instant,
    /// Price of the rating key, or the one that stands in for it.
    pub price_version_id: VersionId,
    /// Wallet pin.
    pub wallet_currency: Option<Currency>,
    /// Charged at the discounted rate.
    pub within: Quantity,
    /// Charged at the standard price.
    pub beyond: Quantity,
}

impl CommittedUse {
    /// Commitment periods from the first to the last; the last is cut where the plan was cancelled.
    pub fn periods(&self, timezone: chrono_tz::Tz) -> impl Iterator<Item = Period> {
        let months = self.commitment_period.months();
        let start = move |index: u32| plus_months(self.starts_at, index.saturating_mul(months), timezone);
        (0..)
            .map(move |index| (start(index), start(index + 1)))
            .take_while(|(start, _)| *start < self.ends_at)
            .map(|(start, end)| Period { start, end: end.min(self.ends_at) })
    }

    /// The commitment periods whose shortfall the bill of a window has: those that end in it, or all when the term does.
    /// An agreement that ends before the term ends the commitment, and what falls short of its last period is billed.
    #[must_use]
    pub fn due_in(&self, window: Period, agreement_ends_at: Option<Instant>, timezone: chrono_tz::Tz) -> Vec<Period> {
        let ends_at = agreement_ends_at.map_or(self.ends_at, |end| end.min(self.ends_at));
        let ends_in_window = |end: Instant| window.start < end && end <= window.end;
        let periods = self.periods(timezone).take_while(|period| period.start < ends_at);
        let periods = periods.map(|period| Period { end: period.end.min(ends_at), ..period });
        match self.shortfall_policy {
            ShortfallPolicy::BillPeriod => {
                let is_waived = |period: &Period| self.is_waived && period.end == self.ends_at;
                periods.filter(|period| ends_in_window(period.end) && !is_waived(period)).collect()
            }
            ShortfallPolicy::BillTermEnd if ends_in_window(ends_at) && !self.is_waived => periods.collect(),
            ShortfallPolicy::BillTermEnd => Vec::new(),
        }
    }

    /// The last start of a period, or the end, that does not lie after an instant.
    #[must_use]
    pub fn boundary_before(&self, at: Instant, timezone: chrono_tz::Tz) -> Option<Instant> {
        if at >= self.ends_at {
            return Some(self.ends_at);
        }
        self.periods(timezone).map(|period| period.start).take_while(|start| *start <= at).last()
    }

    /// Used of a commitment period by windows before this instant.
    #[must_use]
    pub fn used_before(&self, period_start: Instant, window_start: Instant) -> Quantity {
        let rows = self.rows_before(period_start, window_start);
        // Sums of quantities that were rated: they are in the range.
        let sum = |sum: Quantity, row: &CommittedUseRow| {
            sum.checked_add(row.within).and_then(|sum| sum.checked_add(row.beyond)).unwrap_or(sum)
        };
        rows.fold(Quantity::ZERO, sum)
    }

    fn rows_before(&self, period_start: Instant, window_start: Instant) -> impl Iterator<Item = &CommittedUseRow> {
        self.uses.iter().filter(move |row| row.period_start == period_start && row.window_start < window_start)
    }

    /// One of its periods as the window that starts there meets it.
    pub(super) fn in_window(
        &self,
        period: Period,
        window_start: Instant,
        overage: Option<Arc<CompiledPrice>>,
    ) -> Commitment {
        let mut beyond: Vec<(VersionId, Option<Currency>, Quantity)> = Vec::new();
        for row in self.rows_before(period.start, window_start) {
            let key = (row.price_version_id, row.wallet_currency);
            match beyond.iter_mut().find(|(version, pin, _)| (*version, *pin) == key) {
                Some((_, _, sum)) => *sum = sum.checked_add(row.beyond).unwrap_or(*sum),
                None => beyond.push((key.0, key.1, row.beyond)),
            }
        }
        Commitment {
            plan_id: self.id,
            period,
            committed: self.committed,
            rate: self.rate.clone(),
            overage,
            used: self.used_before(period.start, window_start),
            beyond,
        }
    }
}

impl Carried {
    /// Lots of a product and metric that the window that starts there may draw, each with its price key.
    #[must_use]
    pub fn lots_of(&self, product_id: ProductId, metric_key: &str, start: Instant) -> Vec<(String, Lot)> {
        let of = |lot: &&CarriedLot| {
            lot.product_id == product_id && lot.metric_key == metric_key && lot.available_from == start
        };
        self.lots.iter().filter(of).map(|lot| (lot.price_key.clone(), lot.lot)).collect()
    }

    /// Grants of a product and metric, in the order in which they are drawn.
    pub fn grants_of(&self, product_id: ProductId, metric_key: &str) -> impl Iterator<Item = &Grant> {
        self.grants.iter().filter(move |grant| grant.product_id == product_id && grant.metric_key == metric_key)
    }

    /// Committed use plans of a product and metric.
    pub fn commitments_of(&self, product_id: ProductId, metric_key: &str) -> impl Iterator<Item = &CommittedUse> {
        self.commitments.iter().filter(move |one| one.product_id == product_id && one.metric_key == metric_key)
    }

    /// Reads what the windows of many subscriptions need that are not billed yet, or, with a start, the billed window that
    /// starts there. Four statements, whatever the number.
    pub(super) async fn load(
        conn: &mut PgConnection,
        ids: &[uuid::Uuid],
        billed: Option<Instant>,
    ) -> Result<HashMap<SubscriptionId, Self>> {
        let mut found: HashMap<SubscriptionId, Self> = HashMap::new();
        for row in lot_rows(conn, ids, billed).await? {
            let (id, lot) = lot_from_row(&row).context("reading a carried allowance")?;
            found.entry(id).or_default().lots.push(lot);
        }
        for row in grant_rows(conn, ids).await? {
            let (id, grant) = grant_from_row(&row).context("reading a granted allowance")?;
            found.entry(id).or_default().grants.push(grant);
        }
        let mut uses = use_rows(conn, ids).await?;
        for row in plan_rows(conn, ids).await? {
            let (id, currency, plan) = plan_from_row(&row).context("reading a committed use plan")?;
            let rate = Commitment::compile_rate(plan.product_id, plan.committed_rate, currency)?;
            let uses = uses.remove(&plan.id).unwrap_or_default();
            found.entry(id).or_default().commitments.push(plan.compiled(rate, uses));
        }
        Ok(found)
    }
}

async fn lot_rows(conn: &mut PgConnection, ids: &[uuid::Uuid], billed: Option<Instant>) -> Result<Vec<PgRow>> {
    sqlx::query(
        "SELECT subscription_id, product_id, metric_key, price_key, available_from, source_start, quantity, periods_lived,
                expires_at
         FROM allowance_lot lot
         WHERE subscription_id = ANY($1)
           AND CASE WHEN $2::timestamptz IS NULL
                    THEN NOT EXISTS (SELECT FROM usage_window w WHERE w.subscription_id = lot.subscription_id
                                        AND w.window_start = lot.available_from AND w.billed)
                    ELSE available_from = $2 END
         ORDER BY expires_at NULLS LAST, source_start",
    )
    .bind(ids)
    .bind(billed)
    .fetch_all(conn)
    .await
    .context("reading carried allowances")
}

fn lot_from_row(row: &PgRow) -> sqlx::Result<(SubscriptionId, CarriedLot)> {
    let periods_lived: i32 = row.try_get("periods_lived")?;
    let lot = Lot {
        source_start: row.try_get("source_start")?,
        quantity: row.try_get("quantity")?,
        periods_lived: periods_lived.unsigned_abs(),
        expires_at: row.try_get("expires_at")?,
    };
    let (product_id, metric_key) = (row.try_get("product_id")?, row.try_get("metric_key")?);
    let (price_key, available_from) = (row.try_get("price_key")?, row.try_get("available_from")?);
    Ok((row.try_get("subscription_id")?, CarriedLot { product_id, metric_key, price_key, available_from, lot }))
}

async fn grant_rows(conn: &mut PgConnection, ids: &[uuid::Uuid]) -> Result<Vec<PgRow>> {
    sqlx::query(
        "SELECT g.subscription_id, g.id, g.product_id, g.metric_key, g.quantity, g.starts_at, g.expires_at,
                coalesce(array_agg(d.window_start) FILTER (WHERE d.grant_id IS NOT NULL), '{}') AS starts,
                coalesce(array_agg(d.quantity) FILTER (WHERE d.grant_id IS NOT NULL), '{}') AS quantities
         FROM allowance_grant g LEFT JOIN allowance_draw d ON d.grant_id = g.id
         WHERE g.subscription_id = ANY($1)
         GROUP BY g.id ORDER BY g.expires_at NULLS LAST, g.id",
    )
    .bind(ids)
    .fetch_all(conn)
    .await
    .context("reading granted allowances")
}

fn grant_from_row(row: &PgRow) -> sqlx::Result<(SubscriptionId, Grant)> {
    let (starts, quantities): (Vec<Instant>, Vec<Quantity>) = (row.try_get("starts")?, row.try_get("quantities")?);
    let grant = Grant {
        id: row.try_get("id")?,
        product_id: row.try_get("product_id")?,
        metric_key: row.try_get("metric_key")?,
        quantity: row.try_get("quantity")?,
        starts_at: row.try_get("starts_at")?,
        expires_at: row.try_get("expires_at")?,
        drawn: starts.into_iter().zip(quantities).collect(),
    };
    Ok((row.try_get("subscription_id")?, grant))
}

async fn plan_rows(conn: &mut PgConnection, ids: &[uuid::Uuid]) -> Result<Vec<PgRow>> {
    sqlx::query(
        "SELECT id, subscription_id, product_id, metric_key, currency, committed_quantity, commitment_period, committed_rate,
                overage_price_id, shortfall_policy, starts_at, ends_at, cancelled_at, bill_shortfall
         FROM committed_use_plan
         WHERE subscription_id = ANY($1) AND (cancelled_at IS NULL OR cancelled_at > starts_at)
         ORDER BY starts_at, id",
    )
    .bind(ids)
    .fetch_all(conn)
    .await
    .context("reading committed use plans")
}

/// A plan before its rate is compiled.
struct PlanRow {
    id: CommittedUsePlanId,
    product_id: ProductId,
    metric_key: String,
    committed: Quantity,
    commitment_period: CommitmentPeriod,
    committed_rate: Decimal,
    overage_price_id: Option<PriceId>,
    shortfall_policy: ShortfallPolicy,
    starts_at: Instant,
    ends_at: Instant,
    is_waived: bool,
}

impl PlanRow {
    fn compiled(self, rate: Arc<CompiledPrice>, uses: Vec<CommittedUseRow>) -> CommittedUse {
        CommittedUse {
            id: self.id,
            product_id: self.product_id,
            metric_key: self.metric_key,
            committed: self.committed,
            commitment_period: self.commitment_period,
            committed_rate: self.committed_rate,
            rate,
            overage_price_id: self.overage_price_id,
            shortfall_policy: self.shortfall_policy,
            starts_at: self.starts_at,
            ends_at: self.ends_at,
            is_waived: self.is_waived,
            uses,
        }
    }
}

fn plan_from_row(row: &PgRow) -> sqlx::Result<(SubscriptionId, Currency, PlanRow)> {
    let (term_end, cancelled_at): (Instant, Option<Instant>) = (row.try_get("ends_at")?, row.try_get("cancelled_at")?);
    let bill_shortfall: bool = row.try_get("bill_shortfall")?;
    let plan = PlanRow {
        id: row.try_get("id")?,
        product_id: row.try_get("product_id")?,
        metric_key: row.try_get("metric_key")?,
        committed: row.try_get("committed_quantity")?,
        commitment_period: row.try_get("commitment_period")?,
        committed_rate: row.try_get("committed_rate")?,
        overage_price_id: row.try_get("overage_price_id")?,
        shortfall_policy: row.try_get("shortfall_policy")?,
        starts_at: row.try_get("starts_at")?,
        ends_at: cancelled_at.map_or(term_end, |cancelled| cancelled.min(term_end)),
        is_waived: cancelled_at.is_some() && !bill_shortfall,
    };
    Ok((row.try_get("subscription_id")?, row.try_get("currency")?, plan))
}

async fn use_rows(
    conn: &mut PgConnection,
    ids: &[uuid::Uuid],
) -> Result<HashMap<CommittedUsePlanId, Vec<CommittedUseRow>>> {
    let rows = sqlx::query(
        "SELECT u.plan_id, u.window_start, u.period_start, u.price_version_id, nullif(u.wallet_currency, '') AS pin,
                u.within, u.beyond
         FROM committed_use u JOIN committed_use_plan p ON p.id = u.plan_id WHERE p.subscription_id = ANY($1)",
    )
    .bind(ids)
    .fetch_all(conn)
    .await
    .context("reading what commitments used")?;
    let mut found: HashMap<CommittedUsePlanId, Vec<CommittedUseRow>> = HashMap::new();
    for row in rows {
        let read = |row: &PgRow| -> sqlx::Result<_> { Ok((row.try_get("plan_id")?, CommittedUseRow::from_row(row)?)) };
        let (id, row) = read(&row).context("reading what a commitment used")?;
        found.entry(id).or_default().push(row);
    }
    Ok(found)
}

impl FromRow<'_, PgRow> for CommittedUseRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            window_start: row.try_get("window_start")?,
            period_start: row.try_get("period_start")?,
            price_version_id: row.try_get("price_version_id")?,
            wallet_currency: row.try_get("pin")?,
            within: row.try_get("within")?,
            beyond: row.try_get("beyond")?,
        })
    }
}
