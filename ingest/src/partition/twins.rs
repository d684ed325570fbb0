//! Before windows are sealed: ids that other partitions have counted, too, are taken back (rule B5).

use std::collections::{BTreeMap, HashMap};

use domain::period::Period;
use domain::{Position, SubscriptionId};
use tokio::sync::mpsc;

use super::batch::TermsOf;
use super::{Failure, Patience, State};
use crate::checkpoint::RejectionWrite;
use crate::door::wire;
use crate::record::{Control, ControlKind};
use crate::subscription::{Rebuilt, SubscriptionMsg};
use crate::twins::{Seal, take_back};
use crate::usage::CountedEvent;

/// Rows of a window that are read at a time when it is counted anew.
const REPLAY_CHUNK: usize = 10_000;

impl State {
    /// Compares the windows that are about to be sealed, and counts those anew that lose a row. The rows are kept as
    /// rejections. Whatever fails here is repeated from the checkpoint before the seals.
    pub(super) async fn take_back_twins(
        &mut self,
        controls: &[(Position, Control)],
        terms: &TermsOf,
    ) -> Result<(), Failure> {
        let mut windows: HashMap<(SubscriptionId, domain::Instant), (Period, Seal)> = HashMap::new();
        for (position, control) in controls.iter().filter(|(_, control)| control.kind == ControlKind::WindowSeal) {
            let Control { subscription_id, window_start, window_end, .. } = *control;
            let seal = Seal { subscription_id, window_start, position: *position };
            windows.insert((subscription_id, window_start), (Period { start: window_start, end: window_end }, seal));
        }
        if windows.is_empty() {
            return Ok(());
        }
        self.checkpoint_before(controls).await?;
        let seals: Vec<Seal> = windows.values().map(|(_, seal)| *seal).collect();
        let mut taken_back: BTreeMap<(SubscriptionId, domain::Instant), Vec<CountedEvent>> = BTreeMap::new();
        for row in self.compare(&seals).await? {
            taken_back.entry((row.event.subscription_id, row.window_start)).or_default().push(row);
        }
        for (window, rows) in taken_back {
            let Some((period, seal)) = windows.get(&window) else { continue };
            tracing::warn!(subscription.id = %window.0, rows = rows.len(), "took usage events back: their keys count for other customers");
            self.rebuild(*period, seal, terms).await?;
            rows.iter().for_each(|row| self.reject_taken_back(row));
        }
        Ok(())
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
