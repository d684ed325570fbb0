//! Usage on trial: what the windows of a subscription would hold and cost with further events. Events are counted by the
//! code that counts those of the log, from the state that the last checkpoint wrote; nothing is stored. Simulations and
//! reservations ask it, so both tell the figures of the invoice (promise 5).

use std::collections::HashSet;
use std::sync::Arc;

use catalog::compiled::{Snapshots, StoredWindow, SubscriptionTerms, WindowStatus, WorkspaceCatalog};
use domain::period::Period;
use domain::{Error, Instant, Money, Position, ProductId, Result, UsageEvent};
use rating::{Breach, Exact, RatedLine, RatingInput, WindowRecord};
use sqlx::PgConnection;

use crate::subscription::{Incoming, Initial, Judge, Verdict, WindowSlot, Windows};

/// The windows of one subscription, to be counted on.
#[derive(Debug)]
pub struct Trial {
    catalog: Arc<WorkspaceCatalog>,
    terms: Arc<SubscriptionTerms>,
    windows: Windows,
}

impl Trial {
    /// Reads the windows that still count, as they are checkpointed.
    ///
    /// # Errors
    /// As every statement; `Internal` for a state that cannot be read.
    pub async fn load(
        conn: &mut PgConnection,
        snapshots: &Snapshots,
        catalog: Arc<WorkspaceCatalog>,
        terms: Arc<SubscriptionTerms>,
    ) -> Result<Self> {
        let initial = Initial::load(conn, snapshots, &[terms.id]).await?.remove(&terms.id);
        Ok(Self::from(catalog, terms, initial.unwrap_or_default()))
    }

    /// Windows that were read.
    #[must_use]
    pub fn from(catalog: Arc<WorkspaceCatalog>, terms: Arc<SubscriptionTerms>, initial: Initial) -> Self {
        Self { catalog, terms, windows: initial.into() }
    }

    /// A single open window over a state that [`Trial::encode_metric`] wrote.
    ///
    /// # Errors
    /// `Internal` for a state that cannot be read.
    pub fn over(
        catalog: Arc<WorkspaceCatalog>,
        terms: Arc<SubscriptionTerms>,
        window: Period,
        bytes: &[u8],
    ) -> Result<Self> {
        let record = WindowRecord::decode(bytes)
            .map_err(|error| Error::internal(format!("reading a state of subscription {}", terms.id), error))?;
        let stored = StoredWindow {
            subscription_id: terms.id,
            workspace_id: terms.workspace_id,
            customer_id: terms.customer_id,
            window,
            status: WindowStatus::Open,
            position: Position::START,
            event_count: 0,
            written_at: window.start,
            state: record.attach(&*catalog, [])?,
        };
        Ok(Self::from(catalog, terms, Initial { slots: vec![stored.into()], sealed_until: None }))
    }

    /// The running totals that usage of one metric changes in a window, and those that are rated with them, as bytes.
    #[must_use]
    pub fn encode_metric(&self, start: Instant, product_id: ProductId, metric_key: &str) -> Vec<u8> {
        let Some(slot) = self.windows.starting(start) else { return WindowRecord::default().encode() };
        // Usage of a meter that FORMULA meters name stands on their lines.
        let product = self.catalog.product(product_id);
        let timelines = product.iter().flat_map(|product| &product.bindings).filter(|t| t.metric_key == metric_key);
        let bindings = timelines.flat_map(|timeline| &timeline.versions).map(|(_, _, binding)| binding);
        let lines: HashSet<&str> = bindings.map(|binding| binding.meter.metric_key.as_str()).collect();
        let is_wanted = |entry: &rating::Entry| entry.product_id() == product_id && lines.contains(entry.metric_key());
        slot.state.record_of(is_wanted).encode()
    }

    /// Counts an event as its partition would; the answer is the start of the window that it went to, or `None` when a
    /// policy drops it or has a closed window corrected.
    ///
    /// # Errors
    /// 422 with the code under which the partition would keep it.
    pub fn count(&mut self, event: &UsageEvent) -> Result<Option<Instant>> {
        Ok(self.judge(event)?.map(|(window_start, _)| window_start))
    }

    /// The same, with the thresholds that the event crosses.
    fn judge(&mut self, event: &UsageEvent) -> Result<Option<(Instant, Vec<Breach>)>> {
        let judge = Judge { catalog: &self.catalog, terms: &self.terms };
        let incoming = Incoming {
            event: Box::new(event.clone()),
            position: Position::START,
            payload_hash: event.payload_hash(),
            is_foreign: false,
        };
        match self.windows.count(&judge, &incoming) {
            Verdict::Counted { window_start, breaches, .. } => Ok(Some((window_start, breaches))),
            // A window that is closed is corrected by a document of its own.
            Verdict::Dropped { .. } | Verdict::Correcting { .. } => Ok(None),
            Verdict::Rejected { code, message } => Err(Error::rule(code, message)),
        }
    }

    /// The window that starts there, in the form of a stored one.
    #[must_use]
    pub fn window(&self, start: Instant) -> Option<StoredWindow> {
        let WindowSlot { window, status, position, event_count, state, .. } = self.windows.starting(start)?;
        Some(StoredWindow {
            subscription_id: self.terms.id,
            workspace_id: self.terms.workspace_id,
            customer_id: self.terms.customer_id,
            window: *window,
            status: *status,
            position: *position,
            event_count: *event_count,
            written_at: start,
            state: state.clone(),
        })
    }

    /// The lines of a window, as the invoice would have them; none of a trial period, which is counted and never charged.
    ///
    /// # Errors
    /// 422 when an amount leaves its range.
    pub fn lines(&self, start: Instant) -> Result<Vec<RatedLine>> {
        if self.terms.is_trial(start) { Ok(Vec::new()) } else { self.rated(start) }
    }

    fn rated(&self, start: Instant) -> Result<Vec<RatedLine>> {
        let Some(slot) = self.windows.starting(start) else { return Ok(Vec::new()) };
        let terms = self.catalog.rating_terms(&self.terms, slot.window, &slot.state)?;
        let (until, period) = (Some(slot.window.end), self.terms.period_facts(slot.window));
        Ok(slot.state.rate(&RatingInput { terms: &terms, until, period })?.lines)
    }

    /// What a window costs, and what is used in it of an event's product and metric, all price keys and wallet pins together.
    ///
    /// # Errors
    /// 422 when an amount leaves its range.
    pub fn standing(&self, start: Instant, event: &UsageEvent) -> Result<Standing> {
        let none = Money::zero(self.terms.currency);
        let mut standing = Standing { quantity: Exact::ZERO, overage: Exact::ZERO, amount: none, total: none };
        let Some(slot) = self.windows.starting(start) else { return Ok(standing) };
        let allowance = self.catalog.allowance(&self.terms, event.product_id, &event.metric_key, slot.window)?;
        let pool = allowance.pool_of(event.price_key.as_deref());
        let is_free = self.terms.is_trial(start);
        for line in self.rated(start)? {
            let amount = if is_free { none } else { line.amount };
            standing.total = standing.total.add(amount)?;
            if line.product_id == event.product_id && line.metric_key == event.metric_key {
                standing.quantity = standing.quantity.checked_add(line.quantity)?;
                standing.amount = standing.amount.add(amount)?;
                if allowance.pool_of(line.price_key.as_deref()) == pool {
                    standing.overage = standing.overage.checked_add(line.billable_quantity)?;
                }
            }
        }
        Ok(standing)
    }

    /// Whether a threshold of the window refuses further usage of a product and metric at an instant.
    #[must_use]
    pub fn is_blocked(&self, start: Instant, event: &UsageEvent) -> bool {
        let Some(slot) = self.windows.starting(start) else { return false };
        let mut blocks = slot.state.blocks_of_thresholds(slot.window, self.terms.schedule.timezone);
        blocks.any(|block| block.refuses(event))
    }

    /// Counts one more event of a window; the answer is whether it goes past a threshold with BLOCK.
    ///
    /// # Errors
    /// 422 when the event cannot be billed, or is not of this window.
    pub fn add(&mut self, start: Instant, event: &UsageEvent) -> Result<bool> {
        match self.judge(event)? {
            Some((window_start, breaches)) if window_start == start => Ok(breaches.iter().any(Breach::refuses)),
            _ => Err(Error::rule("LATE_EVENT", "the window of the usage is billed")),
        }
    }
}

/// Where a window stands, and the usage of one product and metric in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Used of it, before the allowance.
    pub quantity: Exact,
    /// Beyond the allowance that the event draws.
    pub overage: Exact,
    /// Net amount of it; nothing in a trial.
    pub amount: Money,
    /// Net amount of the whole window; nothing in a trial.
    pub total: Money,
}

impl Standing {
    /// What the usage since an earlier standing costs: f(used + q) - f(used), and nothing where more usage makes the whole
    /// cheaper.
    ///
    /// # Errors
    /// 422 when an amount leaves its range.
    pub fn costs_since(&self, earlier: &Self) -> Result<Money> {
        let costs = self.total.sub(earlier.total)?;
        Ok(if costs.is_negative() { Money::zero(costs.currency()) } else { costs })
    }
}
