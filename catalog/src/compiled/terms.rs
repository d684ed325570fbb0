//! What a subscription adds to the catalog: who, under which plan version, in which currency, over which windows.

use domain::period::{Period, Schedule};
use domain::{
    Currency, CustomerId, Error, Instant, OrganizationId, PlanId, PriceId, ProductId, Quantity, Result, SubscriptionId,
    SubscriptionItemId, TestClockId, VersionId, WorkspaceId,
};
use rating::{PeriodFacts, UsageCap};
use rust_decimal::Decimal;
use sqlx::{PgConnection, Row};
use std::collections::HashMap;
use store::StoreError;

use super::carried::Carried;

/// An item of a subscription, as rating needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemTerms {
    /// The item.
    pub id: SubscriptionItemId,
    /// Product charged.
    pub product_id: ProductId,
    /// Fixed price instead of a resolved one.
    pub price_id: Option<PriceId>,
    /// Key on a keyed product.
    pub price_key: Option<String>,
    /// Seats, or 1.
    pub quantity: Quantity,
    /// Overrides the price's rate.
    pub unit_amount: Option<Decimal>,
    /// Overrides the plan's allowance.
    pub included_quantity: Option<Quantity>,
    /// From when it counts.
    pub added_at: Instant,
    /// Until when it counts, exclusive.
    pub removed_at: Option<Instant>,
}

/// A subscription, as the door, the actors and invoice assembly need it.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionTerms {
    /// The subscription.
    pub id: SubscriptionId,
    /// Tenant.
    pub organization_id: OrganizationId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Owner.
    pub customer_id: CustomerId,
    /// Home partition (rule A5).
    pub home_partition: u32,
    /// Plan.
    pub plan_id: PlanId,
    /// Pinned version of the plan.
    pub plan_version_id: VersionId,
    /// Every price must be in it.
    pub currency: Currency,
    /// Charged periods.
    pub schedule: Schedule,
    /// Start, with the trial.
    pub started_at: Instant,
    /// Events at or after it are refused.
    pub ended_at: Option<Instant>,
    /// Billing country of the customer.
    pub country: Option<String>,
    /// Simulated time.
    pub test_clock_id: Option<TestClockId>,
    /// Items, also removed ones.
    pub items: Vec<ItemTerms>,
    /// What earlier windows left, and what is granted and committed.
    pub carried: Carried,
    /// Its usage caps.
    pub caps: Vec<UsageCap>,
}

impl SubscriptionTerms {
    /// The metering window that contains an instant: the trial, or a charged period. `None` before the start.
    #[must_use]
    pub fn window_at(&self, instant: Instant) -> Option<Period> {
        if instant < self.started_at {
            return None;
        }
        if instant < self.schedule.first_start {
            return Some(Period { start: self.started_at, end: self.schedule.first_start });
        }
        self.schedule.containing(instant)
    }

    /// What a window supplies to the expressions of prices.
    #[must_use]
    pub fn period_facts(&self, window: Period) -> PeriodFacts {
        let days = (window.seconds() + 43_200) / 86_400; // a clock change makes a day an hour shorter or longer
        PeriodFacts { days: u32::try_from(days).unwrap_or(u32::MAX), interval_count: self.schedule.count }
    }

    /// Whether the window is the trial: counted, never charged.
    #[must_use]
    pub fn is_trial(&self, window_start: Instant) -> bool {
        window_start < self.schedule.first_start
    }

    /// The item of a product that is in effect at an instant.
    #[must_use]
    pub fn item_of(&self, product_id: ProductId, at: Instant) -> Option<&ItemTerms> {
        self.items.iter().find(|item| {
            item.product_id == product_id && item.added_at <= at && item.removed_at.is_none_or(|removed| at < removed)
        })
    }

    /// Where the commitment period begins, or a commitment has ended, that an instant of usage falls into: a segment of its own
    /// in the price context (rule C1).
    #[must_use]
    pub fn commitment_boundary(&self, product_id: ProductId, metric_key: &str, at: Instant) -> Option<Instant> {
        if self.carried.commitments.is_empty() {
            return None;
        }
        let commitments = self.carried.commitments_of(product_id, metric_key);
        commitments.filter_map(|one| one.boundary_before(at, self.schedule.timezone)).max()
    }

    /// The same terms with what the billed window that starts there had at its disposal.
    ///
    /// # Errors
    /// As every statement.
    pub async fn as_of_billed(&self, conn: &mut PgConnection, window_start: Instant) -> Result<Self> {
        let carried = Carried::load(conn, &[self.id.0], Some(window_start)).await?.remove(&self.id).unwrap_or_default();
        Ok(Self { carried, ..self.clone() })
    }

    /// Loads the terms of many subscriptions in a few statements (P5). Unknown ids are absent. No workspace is asked for:
    /// the caller compares `workspace_id` with its scope.
    ///
    /// # Errors
    /// As every statement; `Internal` for a stored time zone or interval that cannot be read.
    pub async fn load(conn: &mut PgConnection, ids: &[SubscriptionId]) -> Result<HashMap<SubscriptionId, Self>> {
        let ids: Vec<uuid::Uuid> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query(
            "SELECT s.id, s.organization_id, s.workspace_id, s.customer_id, s.home_partition, s.plan_id, s.plan_version_id,
                    s.currency, s.billing_interval_unit, s.billing_interval_count, s.billing_anchor_day,
                    s.anchor_is_explicit, s.schedule_restarts, s.timezone, s.started_at, s.first_period_start, s.ended_at, s.test_clock_id, s.usage_caps, c.billing_address ->> 'country' AS country
             FROM subscription s JOIN customer c ON c.id = s.customer_id
             WHERE s.id = ANY($1) AND s.deleted_at IS NULL",
        )
        .bind(&ids)
        .fetch_all(&mut *conn)
        .await
        .context("reading subscription terms")?;
        let mut terms = HashMap::with_capacity(rows.len());
        for row in rows {
            let one = Self::from_row(&row)?;
            terms.insert(one.id, one);
        }
        let items = sqlx::query(
            "SELECT id, subscription_id, product_id, price_id, price_key, quantity, unit_amount, included_quantity, added_at,
                    removed_at
             FROM subscription_item WHERE subscription_id = ANY($1) ORDER BY id",
        )
        .bind(&ids)
        .fetch_all(&mut *conn)
        .await
        .context("reading subscription items")?;
        for row in items {
            let subscription_id: SubscriptionId = row.try_get("subscription_id").context("reading an item")?;
            if let Some(owner) = terms.get_mut(&subscription_id) {
                owner.items.push(item_from_row(&row).context("reading an item")?);
            }
        }
        for (subscription_id, carried) in Carried::load(conn, &ids, None).await? {
            if let Some(owner) = terms.get_mut(&subscription_id) {
                owner.carried = carried;
            }
        }
        Ok(terms)
    }

    fn from_row(row: &sqlx::postgres::PgRow) -> Result<Self> {
        let read = || -> Result<(Self, String), sqlx::Error> {
            let count: i32 = row.try_get("billing_interval_count")?;
            let anchor: i32 = row.try_get("billing_anchor_day")?;
            let partition: i32 = row.try_get("home_partition")?;
            let terms = Self {
                id: row.try_get("id")?,
                organization_id: row.try_get("organization_id")?,
                workspace_id: row.try_get("workspace_id")?,
                customer_id: row.try_get("customer_id")?,
                home_partition: partition.unsigned_abs(),
                plan_id: row.try_get("plan_id")?,
                plan_version_id: row.try_get("plan_version_id")?,
                currency: row.try_get("currency")?,
                schedule: Schedule {
                    first_start: row.try_get("first_period_start")?,
                    unit: row.try_get("billing_interval_unit")?,
                    count: count.unsigned_abs(),
                    anchor_day: anchor.unsigned_abs(),
                    is_anchor_explicit: row.try_get("anchor_is_explicit")?,
                    restarts: row.try_get("schedule_restarts")?,
                    timezone: chrono_tz::Tz::UTC,
                },
                started_at: row.try_get("started_at")?,
                ended_at: row.try_get("ended_at")?,
                country: row.try_get("country")?,
                test_clock_id: row.try_get("test_clock_id")?,
                items: Vec::new(),
                carried: Carried::default(),
                caps: row.try_get::<sqlx::types::Json<_>, _>("usage_caps")?.0,
            };
            Ok((terms, row.try_get("timezone")?))
        };
        let (mut terms, timezone) = read().context("reading subscription terms")?;
        terms.schedule.timezone = timezone
            .parse()
            .map_err(|_| Error::invariant(format!("subscription {} has the unknown time zone {timezone}", terms.id)))?;
        Ok(terms)
    }
}

fn item_from_row(row: &sqlx::postgres::PgRow) -> Result<ItemTerms, sqlx::Error> {
    Ok(ItemTerms {
        id: row.try_get("id")?,
        product_id: row.try_get("product_id")?,
        price_id: row.try_get("price_id")?,
        price_key: row.try_get("price_key")?,
        quantity: row.try_get("quantity")?,
        unit_amount: row.try_get("unit_amount")?,
        included_quantity: row.try_get("included_quantity")?,
        added_at: row.try_get("added_at")?,
        removed_at: row.try_get("removed_at")?,
    })
}
