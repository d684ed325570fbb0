//! Windows that are counted anew from the usage store: those that lose rows, and those that a change of the catalog touches
//! behind usage that was counted without it (rule B6).

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use catalog::compiled::SubscriptionTerms;
use domain::period::Period;
use domain::{Position, RejectionId, SubscriptionId};
use tokio::sync::mpsc;

use super::{Failure, Patience, State};
use crate::checkpoint::{WindowKey, rejection_id};
use crate::record::CatalogChange;
use crate::recount;
use crate::subscription::{Rebuilt, SubscriptionMsg};
use crate::usage::CountedEvent;

/// Rows of a window that are read at a time when it is counted anew.
const REPLAY_CHUNK: usize = 10_000;

/// Since which record the partition judges by which revision of the catalog, or a later one: (revision, position).
#[derive(Debug, Default)]
pub(super) struct Revisions(VecDeque<(i64, Position)>);

/// Revisions that are remembered; a change that is called for later touches a little more than it need to.
const REVISIONS_MAX: usize = 1_000;

impl Revisions {
    /// The next events, from this record on, know this revision.
    fn note(&mut self, revision: i64, from: Position) {
        if self.0.back().is_some_and(|(known, _)| *known >= revision) {
            return;
        }
        if self.0.len() == REVISIONS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((revision, from));
    }

    /// The first record from which on every event knew a revision; what this owner has not judged did not know it.
    fn known_from(&self, revision: i64) -> Option<Position> {
        self.0.iter().find(|(known, _)| *known >= revision).map(|(_, from)| *from)
    }
}

impl State {
    /// Remembers by which catalog the records of a batch are judged at least.
    pub(super) fn note_revision(&mut self, first: Position) {
        self.revisions.note(self.shared.snapshots.revision(), first);
    }

    /// Counts the windows anew that have usage which was judged before a change of the catalog was known here, and which the
    /// change may have a say in.
    pub(super) async fn recount_changed(&mut self, position: Position, change: CatalogChange) -> Result<(), Failure> {
        self.reach(change.catalog_revision).await?;
        self.checkpoint_up_to(position.offset()).await?;
        let before = self.revisions.known_from(change.catalog_revision).unwrap_or(position).min(position);
        let windows = self.touched(change, before).await?;
        if windows.is_empty() {
            return Ok(());
        }
        tracing::info!(
            partition = self.owner.partition,
            windows = windows.len(),
            "the catalog has changed for counted usage"
        );
        let ids: Vec<SubscriptionId> = windows.iter().map(|(id, _)| *id).collect();
        let terms = self.terms_of(&ids).await?;
        for (id, window) in windows {
            if let Some(terms) = terms.get(&id) {
                self.rebuild(window, position, terms).await?;
            }
        }
        Ok(())
    }

    async fn touched(&self, change: CatalogChange, before: Position) -> Result<Vec<(SubscriptionId, Period)>, Failure> {
        let (shared, partition) = (&self.shared, self.owner.partition);
        let mut patience = Patience::default();
        loop {
            let (usage, now) = ((change.workspace_id, before), shared.clock.now());
            match recount::touched(&shared.store, &shared.usage, partition, usage, now).await {
                Ok(windows) => return Ok(windows),
                Err(error) => patience.wait(&self.given_up, "looking for usage to count anew", error).await?,
            }
        }
    }

    /// Those of these windows that the catalog has changed for lately, perhaps while they were sealed.
    pub(super) async fn changed_meanwhile(&self, windows: &[WindowKey]) -> Result<Vec<WindowKey>, Failure> {
        let mut patience = Patience::default();
        loop {
            match recount::changed(&self.shared.store, windows).await {
                Ok(windows) => return Ok(windows),
                Err(error) => patience.wait(&self.given_up, "reading changes of the catalog", error).await?,
            }
        }
    }

    /// Counts a window anew, without what is voided, up to a record (rule C4). A row that the catalog of today cannot bill
    /// is kept as a rejection; it stays stored, and counts again when the catalog is mended and the window counted anew. Then
    /// its rejection is closed.
    pub(super) async fn rebuild(
        &mut self,
        window: Period,
        up_to: Position,
        terms: &Arc<SubscriptionTerms>,
    ) -> Result<(), Failure> {
        let catalog = self.catalog_of(terms.workspace_id).await?;
        let mut rebuilt = Rebuilt::new(window);
        let mut after = Position::START;
        let open = self.open_rejections(terms).await?;
        loop {
            let rows = self.replay((terms.id, window.start), after, up_to).await?;
            let Some(last) = rows.last() else { break };
            after = last.position;
            for row in rows {
                let place = (row.event.id, row.position);
                if let Err((refused, code, message)) = rebuilt.count(&catalog, terms, row) {
                    self.reject_event(&refused.event, refused.position, code, message);
                } else if !open.is_empty() {
                    let id = rejection_id(place.0, self.owner.partition, place.1);
                    self.pending.counted_again.extend(open.get(&id));
                }
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

    /// Rejections of a subscription that wait for an operator, or for the next checkpoint.
    async fn open_rejections(&self, terms: &SubscriptionTerms) -> Result<HashSet<RejectionId>, Failure> {
        let (partition, mut patience) = (self.owner.partition, Patience::default());
        let mut open = loop {
            match recount::open_rejections(&self.shared.store, partition, terms).await {
                Ok(ids) => break ids,
                Err(error) => patience.wait(&self.given_up, "reading rejections", error).await?,
            }
        };
        open.extend(self.pending.rejections.iter().map(|rejection| rejection.id(partition)));
        Ok(open)
    }

    async fn replay(&self, window: WindowKey, after: Position, up_to: Position) -> Result<Vec<CountedEvent>, Failure> {
        let usage = &self.shared.usage;
        let mut patience = Patience::default();
        loop {
            match usage.replay(window.0, window.1, after, up_to, REPLAY_CHUNK).await {
                Ok(rows) => return Ok(rows),
                Err(error) => patience.wait(&self.given_up, "replaying a usage window", error).await?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_known_from_the_first_batch_that_began_with_it() {
        let at = Position::from_i64;
        let mut revisions = Revisions::default();
        for (revision, from) in [(3, 10), (3, 20), (5, 30), (4, 35), (6, 40)] {
            revisions.note(revision, at(from));
        }
        let known: Vec<Option<Position>> = (2..8).map(|revision| revisions.known_from(revision)).collect();
        assert_eq!(known, [Some(10), Some(10), Some(30), Some(30), Some(40), None].map(|from| from.map(at)));
    }
}
