//! A window that is counted anew from the usage store, after a row of it was taken back: every meter function can be, since
//! nothing is subtracted.

use catalog::compiled::{StoredWindow, SubscriptionTerms, WorkspaceCatalog};
use domain::period::Period;
use domain::{Error, Result};
use rating::WindowState;

use super::{Incoming, Judge, Rates, Verdict, Windows};
use crate::checkpoint::DROPPED;
use crate::usage::CountedEvent;

/// A window on its way: rows are counted by the same code as events that come from the log.
#[derive(Debug)]
pub struct Rebuilt {
    /// Only this window.
    windows: Windows,
}

impl Rebuilt {
    /// The window before its first event.
    #[must_use]
    pub fn new(window: Period) -> Self {
        let mut windows = Windows { slots: Vec::new(), sealed_until: None, rates: Rates::new() };
        windows.slot(window);
        Self { windows }
    }

    /// A stored window, to be counted on.
    #[must_use]
    pub fn on(window: StoredWindow) -> Self {
        Self { windows: Windows { slots: vec![window.into()], sealed_until: None, rates: Rates::new() } }
    }

    /// Running totals and counted events.
    ///
    /// # Errors
    /// `Internal` when the window is lost.
    pub fn into_totals(self) -> Result<(WindowState, u64)> {
        let slot = self.windows.slots.into_iter().next();
        slot.map(|slot| (slot.state, slot.event_count)).ok_or_else(|| Error::invariant("a window is at hand"))
    }

    /// Counts a row of the window. Thresholds that it crosses were announced when it came, so they are not told again.
    ///
    /// # Errors
    /// The row, with code and message, when the catalog has changed so that it cannot be billed any more.
    pub fn count(
        &mut self,
        catalog: &WorkspaceCatalog,
        terms: &SubscriptionTerms,
        counted: CountedEvent,
    ) -> Result<(), (Incoming, &'static str, String)> {
        let judge = Judge { catalog, terms };
        let CountedEvent { event, late, position, payload_hash, .. } = counted;
        let incoming = Incoming { event, position, payload_hash, is_foreign: false };
        let verdict = match judge.resolve(&incoming.event) {
            Ok(resolved) => self.windows.apply(&judge, &incoming, &resolved, 0, late),
            Err(verdict) => verdict,
        };
        match verdict {
            Verdict::Counted { .. } | Verdict::Correcting { .. } => Ok(()),
            Verdict::Rejected { code, message } => Err((incoming, code, message)),
            Verdict::Dropped { reason } => Err((incoming, DROPPED, reason.into_owned())),
        }
    }
}

impl Windows {
    /// Takes over what was counted anew; how far the window is closed stays.
    pub(super) fn replace(&mut self, judge: &Judge<'_>, rebuilt: Rebuilt) {
        for new in rebuilt.windows.slots {
            let index = self.slot(new.window);
            let slot = &mut self.slots[index];
            let old = std::mem::replace(&mut slot.state, new.state);
            // What was held before the window is no event of it.
            if let Err(error) = slot.state.inherit(&old, slot.window.start) {
                tracing::error!(subscription.id = %judge.terms.id, %error, "a held value cannot be carried over");
            }
            slot.state.supersede(&old);
            slot.state.remember(&old);
            slot.event_count = new.event_count;
            slot.magnitude = new.magnitude;
            (slot.is_dirty, slot.is_rebuilt) = (true, true);
        }
        self.carry_over(judge);
    }
}
