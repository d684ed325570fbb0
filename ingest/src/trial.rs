//! Usage on trial: what the windows of a subscription would hold and cost with further events. Events are counted by the
//! code that counts those of the log, from the state that the last checkpoint wrote; nothing is stored. Simulations and
//! reservations ask it, so both tell the figures of the invoice (promise 5).

use std::sync::Arc;

use catalog::compiled::{Snapshots, StoredWindow, SubscriptionTerms, WorkspaceCatalog};
use domain::{Error, Instant, Money, Position, Result, UsageEvent};
use rating::{RatedLine, RatingInput};
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
        Ok(Self { catalog, terms, windows: initial.unwrap_or_default().into() })
    }

    /// Counts an event as its partition would; the answer is the start of the window that it went to, or `None` when a
    /// policy drops it.
    ///
    /// # Errors
    /// 422 with the code under which the partition would keep it.
    pub fn count(&mut self, event: &UsageEvent) -> Result<Option<Instant>> {
        let judge = Judge { catalog: &self.catalog, terms: &self.terms };
        let incoming = Incoming {
            event: Box::new(event.clone()),
            position: Position::START,
            payload_hash: event.payload_hash(),
            is_foreign: false,
        };
        match self.windows.count(&judge, &incoming) {
            Verdict::Counted { window_start, .. } => Ok(Some(window_start)),
            Verdict::Dropped { .. } => Ok(None),
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
        let Some(slot) = self.windows.starting(start).filter(|_| !self.terms.is_trial(start)) else {
            return Ok(Vec::new());
        };
        let terms = self.catalog.rating_terms(&self.terms, slot.window, &slot.state)?;
        Ok(slot.state.rate(&RatingInput { terms: &terms })?.lines)
    }

    /// What a window costs.
    ///
    /// # Errors
    /// 422 when an amount leaves its range.
    pub fn amount(&self, start: Instant) -> Result<Money> {
        let lines = self.lines(start)?;
        Ok(lines.iter().try_fold(Money::zero(self.terms.currency), |sum, line| sum.add(line.amount))?)
    }
}
