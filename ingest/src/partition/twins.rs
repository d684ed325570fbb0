//! Rows that are taken back: before windows are sealed, ids that other partitions have counted, too (rule B5); whenever it
//! is asked for, events that were voided by hand (rule C5). And rows that are added: when a window is open again, what came late
//! while it was sealed.

use std::collections::{BTreeMap, HashMap};

use domain::Position;
use domain::period::Period;

use super::batch::TermsOf;
use super::{Failure, Patience, State};
use crate::checkpoint::WindowKey;
use crate::late;
use crate::record::{Control, ControlKind};
use crate::twins::{Seal, take_back};
use crate::usage::CountedEvent;
use crate::void::{self, OpenVoid};

impl State {
    /// Counts windows anew that lose rows: those that are about to be sealed, whose ids are compared before, and those of
    /// voids by hand; and windows whose seal is taken back, if the catalog has changed since or late usage has come. Rows that
    /// other customers have are kept as rejections. Whatever fails here is repeated from the checkpoint before the records.
    pub(super) async fn recount(
        &mut self,
        controls: &[(Position, Control)],
        billed: &[WindowKey],
        terms: &TermsOf,
    ) -> Result<(), Failure> {
        let mut windows: HashMap<WindowKey, (Period, Seal)> = HashMap::new();
        let (mut seals, mut reopened) = (Vec::new(), Vec::new());
        for (position, control) in controls {
            let Control { kind, subscription_id, window_start, window_end, .. } = *control;
            let seal = Seal { subscription_id, window_start, position: *position };
            match kind {
                ControlKind::WindowSeal => seals.push(seal),
                ControlKind::WindowReopen if billed.contains(&(subscription_id, window_start)) => continue,
                ControlKind::WindowReopen => reopened.push((subscription_id, window_start)),
                ControlKind::WindowRecount => {}
                ControlKind::PeriodEnd | ControlKind::LimitsChanged => continue,
            }
            windows.insert((subscription_id, window_start), (Period { start: window_start, end: window_end }, seal));
        }
        if windows.is_empty() {
            return Ok(());
        }
        self.checkpoint_before(controls).await?;
        let mut losing: BTreeMap<WindowKey, Vec<CountedEvent>> = BTreeMap::new();
        for row in self.compare(&seals).await? {
            losing.entry((row.event.subscription_id, row.window_start)).or_default().push(row);
        }
        let keys: Vec<_> = windows.keys().copied().collect();
        for OpenVoid { window, row } in self.open_voids(&keys).await? {
            losing.entry(window).or_default();
            self.pending.closed_voids.push(row);
        }
        for window in self.changed_meanwhile(&reopened).await? {
            losing.entry(window).or_default();
        }
        for window in self.late_usage(&keys).await? {
            losing.entry(window).or_default();
            self.pending.mended.push(window);
        }
        for (window, twins) in losing {
            let (Some((period, seal)), Some(terms)) = (windows.get(&window), terms.get(&window.0)) else { continue };
            if !twins.is_empty() {
                tracing::warn!(subscription.id = %window.0, rows = twins.len(), "took usage events back: their keys count for other customers");
            }
            self.rebuild(*period, seal.position, terms).await?;
            twins.iter().for_each(|row| self.reject_taken_back(row));
        }
        Ok(())
    }

    /// Read before the windows are counted anew: what is voided meanwhile has a record of its own to come.
    async fn open_voids(&self, windows: &[WindowKey]) -> Result<Vec<OpenVoid>, Failure> {
        let mut patience = Patience::default();
        loop {
            match void::open(&self.shared.store, windows).await {
                Ok(voids) => return Ok(voids),
                Err(error) => patience.wait(&self.given_up, "reading voids", error).await?,
            }
        }
    }

    async fn late_usage(&self, windows: &[WindowKey]) -> Result<Vec<WindowKey>, Failure> {
        let mut patience = Patience::default();
        loop {
            match late::of_open(&self.shared.store, windows).await {
                Ok(windows) => return Ok(windows),
                Err(error) => patience.wait(&self.given_up, "reading late usage", error).await?,
            }
        }
    }

    async fn compare(&self, seals: &[Seal]) -> Result<Vec<CountedEvent>, Failure> {
        let shared = &self.shared;
        let mut patience = Patience::default();
        loop {
            let now = shared.clock.now();
            match take_back(&shared.store, &shared.usage, self.owner.partition, seals, now).await {
                Ok(taken_back) => return Ok(taken_back),
                Err(error) => patience.wait(&self.given_up, "comparing usage ids", error).await?,
            }
        }
    }

    fn reject_taken_back(&mut self, row: &CountedEvent) {
        let event = &row.event;
        let message = "the key was accepted for another customer; only that event counts";
        self.reject_event(event, row.position, "IDEMPOTENCY_CONFLICT", message.to_owned());
    }
}
