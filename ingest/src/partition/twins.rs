//! Rows that are taken back: before windows are sealed, ids that other partitions have counted, too (rule B5); whenever it
//! is asked for, events that were voided by hand (rule C5). And rows that are added: when a window is open again, what came late
//! while it was sealed.

use std::collections::{BTreeMap, HashMap};

use domain::period::Period;
use domain::{Position, SubscriptionId};
use tokio::sync::mpsc;

use super::batch::TermsOf;
use super::{Failure, Patience, State};
use crate::checkpoint::{RejectionWrite, WindowKey};
use crate::door::wire;
use crate::late;
use crate::record::{Control, ControlKind};
use crate::subscription::{Rebuilt, SubscriptionMsg};
use crate::twins::{Seal, take_back};
use crate::usage::CountedEvent;
use crate::void::{self, OpenVoid};

/// Rows of a window that are read at a time when it is counted anew.
const REPLAY_CHUNK: usize = 10_000;

impl State {
    /// Counts windows anew that lose rows: those that are about to be sealed, whose ids are compared before, and those of
    /// voids by hand. One that is open again gets its late rows. Rows that other customers have are kept as rejections. Whatever fails here is repeated from the
    /// checkpoint before the records.
    pub(super) async fn recount(&mut self, controls: &[(Position, Control)], terms: &TermsOf) -> Result<(), Failure> {
        let mut windows: HashMap<(SubscriptionId, domain::Instant), (Period, Seal)> = HashMap::new();
        let mut seals = Vec::new();
        for (position, control) in controls {
            let Control { kind, subscription_id, window_start, window_end, .. } = *control;
            let seal = Seal { subscription_id, window_start, position: *position };
            match kind {
                ControlKind::WindowSeal => seals.push(seal),
                ControlKind::WindowRecount | ControlKind::WindowReopen => {}
                ControlKind::PeriodEnd => continue,
            }
            windows.insert((subscription_id, window_start), (Period { start: window_start, end: window_end }, seal));
        }
        if windows.is_empty() {
            return Ok(());
        }
        self.checkpoint_before(controls).await?;
        let mut losing: BTreeMap<(SubscriptionId, domain::Instant), Vec<CountedEvent>> = BTreeMap::new();
        for row in self.compare(&seals).await? {
            losing.entry((row.event.subscription_id, row.window_start)).or_default().push(row);
        }
        let keys: Vec<_> = windows.keys().copied().collect();
        for OpenVoid { window, row } in self.open_voids(&keys).await? {
            losing.entry(window).or_default();
            self.pending.closed_voids.push(row);
        }
        for window in self.late_usage(&keys).await? {
            losing.entry(window).or_default();
            self.pending.mended.push(window);
        }
        for (window, twins) in losing {
            let Some((period, seal)) = windows.get(&window) else { continue };
            if !twins.is_empty() {
                tracing::warn!(subscription.id = %window.0, rows = twins.len(), "took usage events back: their keys count for other customers");
            }
            self.rebuild(*period, seal, terms).await?;
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

    /// Counts a window anew, without what is voided, up to its seal (rule C4).
    async fn rebuild(&mut self, window: Period, seal: &Seal, terms: &TermsOf) -> Result<(), Failure> {
        let Some(terms) = terms.get(&seal.subscription_id) else { return Ok(()) };
        let catalog = self.catalog_of(terms.workspace_id).await?;
        let mut rebuilt = Rebuilt::new(window);
        let mut after = Position::START;
        loop {
            let rows = self.replay(seal, after).await?;
            let Some(last) = rows.last() else { break };
            after = last.position;
            for row in rows {
                rebuilt.count(&catalog, terms, row)?;
            }
        }
        self.route(&[terms.id]).await?;
        let (reply, mut done) = mpsc::unbounded_channel();
        self.dirty.insert(terms.id, terms.workspace_id);
        self.tell(
            terms.id,
            SubscriptionMsg::Replace { catalog, terms: terms.clone(), rebuilt: Box::new(rebuilt), reply },
        )?;
        done.recv().await.ok_or(Failure::ActorLost)
    }

    async fn replay(&self, seal: &Seal, after: Position) -> Result<Vec<CountedEvent>, Failure> {
        let usage = &self.shared.usage;
        let mut patience = Patience::default();
        loop {
            let rows = usage.replay(seal.subscription_id, seal.window_start, after, seal.position, REPLAY_CHUNK);
            match rows.await {
                Ok(rows) => return Ok(rows),
                Err(error) => patience.wait(&self.given_up, "replaying a usage window", error).await?,
            }
        }
    }

    fn reject_taken_back(&mut self, row: &CountedEvent) {
        let event = &row.event;
        self.keep_rejection(RejectionWrite {
            event_id: event.id,
            workspace_id: event.workspace_id,
            code: "IDEMPOTENCY_CONFLICT",
            message: "the key was accepted for another customer; only that event counts".to_owned(),
            payload: wire::to_json(event),
            position: row.position,
            accepted_at: event.accepted_at,
        });
    }
}
