//! One batch: decode ▸ look up ▸ judge and count ▸ store ▸ remember (rule B1).
//!
//! Ids are looked up before the subscription actors judge, so that a repeat of a counted event is a silent duplicate even
//! when the catalog has moved on; only a counted event occupies its id (rule B2), so a mended one is judged anew.

use std::sync::Arc;

use catalog::compiled::SubscriptionTerms;
use domain::{
    BreachId, Error, FastMap, Position, Scope, SubscriptionId, ThresholdActionKind, UsageEvent, UsageEventId,
};
use tokio::sync::mpsc;
use tokio::time::Instant as Moment;
use uuid::Uuid;

use super::decode::{Decoded, id_of_unreadable};
use super::routing::Catalogs;
use super::{Failure, Patience, State};
use crate::checkpoint::{BreachWrite, Checkpoint, DROPPED, Dropped, RejectionWrite, UnattributedWrite, WindowKey};
use crate::door::{self, Facts, Judged, NewEvent, wire};
use crate::late::LateUsage;
use crate::log::Append;
use crate::record::{self, Control, ControlKind, RecordError};
use crate::subscription::{Answer, Incoming, SubscriptionMsg, Verdict};
use crate::usage::{CountedEvent, CountedId};

impl Checkpoint {
    /// Whether nothing waits to be written but states and the offset.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.windows.is_empty()
            && self.breaches.is_empty()
            && self.rejections.is_empty()
            && self.counted_again.is_empty()
            && self.dropped.is_empty()
            && self.unattributed.is_empty()
            && self.closed_voids.is_empty()
            && self.interims.is_empty()
            && self.corrections.is_empty()
            && self.mended.is_empty()
    }
}

/// Copies of one event inside a batch: what becomes of the first becomes of them.
type Copies = Vec<Incoming>;

impl State {
    /// Takes a batch through all steps; true when it held a control record, which forces a checkpoint (rule C2).
    pub(super) async fn process(&mut self, records: Vec<Decoded>) -> Result<bool, Failure> {
        let (Some(first), Some(last)) = (records.first(), records.last().map(Decoded::position)) else {
            return Ok(false);
        };
        self.note_revision(first.position());
        self.batches += 1;
        let mut events: Vec<Incoming> = Vec::with_capacity(records.len());
        let mut seen: FastMap<UsageEventId, u64> = FastMap::default();
        seen.reserve(records.len());
        self.is_behind = records.len() >= self.shared.settings.batch_records_max;
        let mut controls: Vec<(Position, Control)> = Vec::new();
        let mut is_forced = false;
        for record in records {
            let position = record.position();
            let incoming = match record {
                Decoded::Usage { position, payload_hash, event } => {
                    Some(Incoming { event, position, payload_hash, is_foreign: false })
                }
                Decoded::Foreign { .. } => self.admit(record).await?,
                Decoded::Control { control, .. } => {
                    self.count(std::mem::take(&mut events)).await?;
                    seen.clear();
                    controls.push((position, control));
                    is_forced = true;
                    None
                }
                Decoded::CatalogChange { change, .. } => {
                    self.count(std::mem::take(&mut events)).await?;
                    seen.clear();
                    self.apply_controls(std::mem::take(&mut controls)).await?;
                    self.recount_changed(position, change).await?;
                    is_forced = true;
                    None
                }
                Decoded::Bad { error, payload, .. } => {
                    let code = if error == RecordError::Forged { "UNAUTHORIZED" } else { "UNREADABLE" };
                    self.keep_unattributed(position, code, error.to_string(), &payload);
                    None
                }
            };
            let Some(incoming) = incoming else { continue };
            if !controls.is_empty() {
                self.apply_controls(std::mem::take(&mut controls)).await?;
            }
            // The same id with other content is judged after the first: only then it is known which of them counts.
            if seen.insert(incoming.event.id, incoming.payload_hash).is_some_and(|hash| hash != incoming.payload_hash) {
                self.count(std::mem::take(&mut events)).await?;
                seen.clear();
                seen.insert(incoming.event.id, incoming.payload_hash);
            }
            events.push(incoming);
        }
        self.count(events).await?;
        self.apply_controls(controls).await?;
        self.pending.next_offset = last.offset() + 1;
        self.waiting_since.get_or_insert_with(Moment::now);
        Ok(is_forced)
    }

    /// Counts events of which no two have one id and different content.
    async fn count(&mut self, events: Vec<Incoming>) -> Result<(), Failure> {
        if events.is_empty() {
            return Ok(());
        }
        self.reach(events.iter().map(|incoming| incoming.event.catalog_revision).max().unwrap_or(0)).await?;
        let terms = self.terms_of(&subscriptions_of(&events)).await?;
        let known = self.known(&events, &terms).await?;
        let (fresh, copies) = self.sort_out(events, &known);
        let groups = self.group(fresh, &terms).await?;
        let answers = self.ask(groups, &terms).await?;
        let rows = self.record(answers, copies);
        self.keep(rows).await
    }

    /// Waits for the catalog that the events were accepted under (rule B6).
    pub(super) async fn reach(&self, revision: i64) -> Result<(), Failure> {
        let mut patience = Patience::default();
        while let Err(error) = self.shared.snapshots.reach(revision).await {
            patience.wait(&self.given_up, "waiting for a catalog revision", error).await?;
        }
        Ok(())
    }

    /// Applies every change that is committed: a record from the outbox follows its change, and cannot name its revision.
    async fn refresh(&self) -> Result<(), Failure> {
        let mut patience = Patience::default();
        while let Err(error) = self.shared.snapshots.refresh().await {
            patience.wait(&self.given_up, "reading catalog changes", error).await?;
        }
        Ok(())
    }

    /// Leaves duplicates out, refuses conflicts, and sets copies inside the batch aside.
    fn sort_out(
        &mut self,
        events: Vec<Incoming>,
        known: &FastMap<UsageEventId, CountedId>,
    ) -> (Vec<Incoming>, FastMap<UsageEventId, Copies>) {
        let mut first: FastMap<UsageEventId, ()> = FastMap::default();
        first.reserve(events.len());
        let mut fresh = Vec::with_capacity(events.len());
        let mut copies: FastMap<UsageEventId, Copies> = FastMap::default();
        for incoming in events {
            let id = incoming.event.id;
            match known.get(&id).filter(|counted| counted.position < incoming.position) {
                Some(counted) if counted.payload_hash == incoming.payload_hash => self.metric_duplicate(),
                Some(_) => {
                    let message = "the key was accepted earlier with other content; the first event counts";
                    self.reject_event(&incoming.event, incoming.position, "IDEMPOTENCY_CONFLICT", message.into());
                }
                None if first.insert(id, ()).is_some() => copies.entry(id).or_default().push(incoming),
                None => fresh.push(incoming),
            }
        }
        (fresh, copies)
    }

    /// By subscription, in order; what belongs to no subscription is refused, what has another home goes there (rule A5).
    async fn group(&mut self, events: Vec<Incoming>, terms: &TermsOf) -> Result<Groups, Failure> {
        let mut groups = Groups::default();
        for incoming in events {
            groups.entry(incoming.event.subscription_id).or_default().push(incoming);
        }
        let ids: Vec<SubscriptionId> = groups.keys().copied().collect();
        let mut forwarded = Vec::new();
        for id in ids {
            match terms.get(&id) {
                Some(terms) if terms.home_partition == self.owner.partition => {}
                Some(terms) => {
                    let home = terms.home_partition;
                    for incoming in groups.remove(&id).unwrap_or_default() {
                        forwarded.push(Append { partition: home, payload: record::encode_usage(&incoming.event) });
                    }
                }
                None => {
                    for incoming in groups.remove(&id).unwrap_or_default() {
                        let message = format!("subscription {id} was not found");
                        self.reject_event(&incoming.event, incoming.position, "NOT_FOUND", message);
                    }
                }
            }
        }
        self.forward(forwarded).await?;
        Ok(groups)
    }

    /// Appends records to their home before the checkpoint passes them.
    async fn forward(&mut self, mut records: Vec<Append>) -> Result<(), Failure> {
        let mut patience = Patience::default();
        while !records.is_empty() {
            let outcomes = self.shared.log.append(records.clone()).await;
            let mut outcomes = outcomes.iter();
            records.retain(|_| outcomes.next().is_some_and(Result::is_err));
            if !records.is_empty() {
                let error = Error::Unavailable {
                    dependency: "event_log",
                    detail: "forwarding records to their home".into(),
                    retry_after_secs: 1,
                };
                patience.wait(&self.given_up, "forwarding records to their home", error).await?;
            }
        }
        Ok(())
    }

    /// One message per subscription, one answer each.
    async fn ask(&mut self, groups: Groups, terms: &TermsOf) -> Result<Vec<Answer>, Failure> {
        let ids: Vec<SubscriptionId> = groups.keys().copied().collect();
        self.route(&ids).await?;
        let (reply, mut answers) = mpsc::unbounded_channel();
        let asked = groups.len();
        let mut catalogs = Catalogs::default();
        for (id, events) in groups {
            let terms = terms.get(&id).ok_or(Failure::ActorLost)?.clone();
            let catalog = self.catalog_once(&mut catalogs, terms.workspace_id).await?;
            self.dirty.insert(id, terms.workspace_id);
            self.tell(id, SubscriptionMsg::Count { catalog, terms, events, reply: reply.clone() })?;
        }
        drop(reply);
        let mut all = Vec::with_capacity(asked);
        for _ in 0..asked {
            all.push(answers.recv().await.ok_or(Failure::ActorLost)?);
        }
        Ok(all)
    }

    /// Turns verdicts into what the checkpoint writes; the counted events are the answer, in order of position.
    fn record(&mut self, answers: Vec<Answer>, mut copies: FastMap<UsageEventId, Copies>) -> Vec<CountedEvent> {
        let mut rows = Vec::new();
        let (mut counted, mut dropped) = (0, 0);
        for Answer { verdicts, terms } in answers {
            for (incoming, verdict) in verdicts {
                let copies = copies.remove(&incoming.event.id).unwrap_or_default();
                match verdict {
                    Verdict::Counted { window_start, late, breaches } => {
                        counted += 1;
                        copies.iter().for_each(|_| self.metric_duplicate());
                        self.keep_breaches(&incoming.event, &terms, window_start, breaches);
                        rows.push(self.row(incoming, window_start, late));
                    }
                    Verdict::Correcting { window } => {
                        counted += 1;
                        copies.iter().for_each(|_| self.metric_duplicate());
                        self.pending.corrections.push(LateUsage::of(&terms, window, incoming.position));
                        rows.push(self.row(incoming, window.start, true));
                    }
                    Verdict::Rejected { code, message } => {
                        for refused in std::iter::once(&incoming).chain(&copies) {
                            self.reject_event(&refused.event, refused.position, code, message.clone());
                        }
                    }
                    Verdict::Dropped { reason } => {
                        dropped += 1;
                        let (workspace_id, event_id) = (incoming.event.workspace_id, incoming.event.id);
                        self.pending.dropped.push(Dropped { workspace_id, event_id, code: DROPPED, message: reason });
                    }
                }
            }
        }
        self.metrics.counted.inc_by(counted);
        self.metrics.dropped.inc_by(dropped);
        rows.sort_unstable_by_key(|row: &CountedEvent| row.position);
        rows
    }

    fn row(&self, incoming: Incoming, window_start: domain::Instant, late: bool) -> CountedEvent {
        CountedEvent {
            event: incoming.event,
            window_start,
            late,
            partition: self.owner.partition,
            position: incoming.position,
            payload_hash: incoming.payload_hash,
        }
    }

    fn keep_breaches(
        &mut self,
        event: &UsageEvent,
        terms: &SubscriptionTerms,
        window_start: domain::Instant,
        breaches: Vec<rating::Breach>,
    ) {
        for (index, breach) in breaches.into_iter().enumerate() {
            if breach.action.kind == ThresholdActionKind::Invoice {
                self.pending.interims.push((terms.id, window_start));
            }
            let name = format!("{}:{index}:{}", breach.binding.binding_id, breach.threshold_name);
            self.pending.breaches.push(BreachWrite {
                id: BreachId(Uuid::new_v5(&event.id.0, name.as_bytes())),
                organization_id: terms.organization_id,
                workspace_id: terms.workspace_id,
                breach,
                subscription_id: terms.id,
                occurred_at: Some(event.accepted_at),
            });
        }
    }

    fn metric_duplicate(&self) {
        self.metrics.duplicated.inc();
    }

    /// Keeps an event with its reason.
    pub(super) fn reject_event(&mut self, event: &UsageEvent, position: Position, code: &'static str, message: String) {
        self.keep_rejection(RejectionWrite {
            event_id: event.id,
            workspace_id: event.workspace_id,
            code,
            message,
            payload: wire::to_json(event),
            position,
            accepted_at: event.accepted_at,
        });
    }

    pub(super) fn keep_rejection(&mut self, rejection: RejectionWrite) {
        self.metrics.rejected.inc();
        let id = rejection.id(self.owner.partition);
        self.pending.counted_again.retain(|known| *known != id);
        self.pending.rejections.push(rejection);
    }

    fn keep_unattributed(&mut self, position: Position, code: &'static str, message: String, payload: &[u8]) {
        self.metrics.unattributed.inc();
        tracing::warn!(
            partition = self.owner.partition,
            offset = position.offset(),
            code,
            message,
            "kept an unreadable record"
        );
        self.pending.unattributed.push(UnattributedWrite {
            offset: position.offset(),
            code,
            message,
            value: payload.to_vec(),
        });
    }

    /// A foreign record passes the same checks as at the door (rule A7); `None` when it was refused and kept.
    async fn admit(&mut self, record: Decoded) -> Result<Option<Incoming>, Failure> {
        let Decoded::Foreign { position, accepted_at, headers, payload } = record else { return Ok(None) };
        let shared = self.shared.clone();
        let trust = shared.settings.trust_topic;
        let mut patience = Patience::default();
        let scope = loop {
            match shared.secrets.authenticate(&shared.store, &headers, &payload, trust, accepted_at).await {
                Ok(scope) => break scope,
                Err(Error::Unauthorized(why)) => {
                    self.keep_unattributed(position, "UNAUTHORIZED", why.to_owned(), &payload);
                    return Ok(None);
                }
                Err(error) => patience.wait(&self.given_up, "authenticating a foreign record", error).await?,
            }
        };
        let text = String::from_utf8_lossy(&payload);
        let error = match NewEvent::read(&text) {
            Ok(event) => match self.judge_foreign(&scope, event).await? {
                Judged::Good { event, .. } => {
                    let payload_hash = event.payload_hash();
                    return Ok(Some(Incoming { event, position, payload_hash, is_foreign: true }));
                }
                Judged::Dropped { id, reason } => {
                    let (workspace_id, message) = (scope.workspace_id, reason.into());
                    self.pending.dropped.push(Dropped { workspace_id, event_id: id, code: DROPPED, message });
                    return Ok(None);
                }
                Judged::Unmatched { error, .. } | Judged::Bad(error) => error,
            },
            Err(error) => error,
        };
        self.reject_foreign(&scope, position, &text, &error);
        Ok(None)
    }

    async fn judge_foreign(&self, scope: &Scope, event: NewEvent) -> Result<Judged, Failure> {
        let shared = &self.shared;
        let mut patience = Patience::default();
        loop {
            let revision = shared.snapshots.revision();
            let mut terms = self.terms_of(&[event.subscription_id]).await?;
            terms.retain(|_, terms| terms.workspace_id == scope.workspace_id);
            let catalog = self.catalog_of(scope.workspace_id).await?;
            let facts = match Facts::load(scope, &shared.store, &terms, std::iter::once(&event)).await {
                Ok(facts) => facts,
                Err(error) => {
                    patience.wait(&self.given_up, "judging a foreign record", error).await?;
                    continue;
                }
            };
            let terms = terms.get(&event.subscription_id);
            let verdict = door::judge(scope, &catalog, terms, &facts, &event);
            if verdict.is_certain() {
                return Ok(verdict.on(scope, event, revision));
            }
            match shared.snapshots.is_behind(revision).await {
                Ok(true) => {}
                Ok(false) => return Ok(verdict.on(scope, event, revision)),
                Err(error) => patience.wait(&self.given_up, "judging a foreign record", error).await?,
            }
        }
    }

    fn reject_foreign(&mut self, scope: &Scope, position: Position, text: &str, error: &Error) {
        let payload: serde_json::Value =
            serde_json::from_str(text).unwrap_or_else(|_| serde_json::json!({ "unreadable": text }));
        let key = payload.get("idempotency_key").and_then(serde_json::Value::as_str);
        let event_id = key.map_or_else(
            || id_of_unreadable(scope.workspace_id, self.owner.partition, position),
            |key| UsageEventId::of(scope.workspace_id, key),
        );
        self.keep_rejection(RejectionWrite {
            event_id,
            workspace_id: scope.workspace_id,
            code: error.code(),
            message: error.to_string(),
            payload,
            position,
            accepted_at: scope.now(),
        });
    }

    /// Ends, seals and reopens windows, in order (rule C2).
    async fn apply_controls(&mut self, controls: Vec<(Position, Control)>) -> Result<(), Failure> {
        if controls.is_empty() {
            return Ok(());
        }
        self.reach(controls.iter().map(|(_, control)| control.catalog_revision).max().unwrap_or(0)).await?;
        if controls.iter().any(|(_, control)| control.kind == ControlKind::LimitsChanged) {
            self.refresh().await?;
        }
        let ids: Vec<SubscriptionId> = controls.iter().map(|(_, control)| control.subscription_id).collect();
        let terms = self.terms_of(&ids).await?;
        let billed = self.reopen(&controls).await?;
        self.recount(&controls, &billed, &terms).await?;
        self.route(&ids).await?;
        let (reply, mut done) = mpsc::unbounded_channel();
        let (mut asked, mut catalogs) = (0, Catalogs::default());
        for (position, control) in controls {
            let Some(terms) = terms.get(&control.subscription_id).cloned() else { continue };
            if control.kind == ControlKind::WindowRecount {
                continue; // done above, and nothing is closed by it
            }
            let key = (control.subscription_id, control.window_start);
            if control.kind == ControlKind::WindowReopen && billed.contains(&key) {
                tracing::warn!(subscription.id = %key.0, window.start = %key.1, "a billed window is not opened again");
                continue;
            }
            self.dirty.insert(terms.id, terms.workspace_id);
            let (id, reply) = (terms.id, reply.clone());
            let catalog = self.catalog_once(&mut catalogs, terms.workspace_id).await?;
            self.tell(id, SubscriptionMsg::Control { catalog, terms, control, position, reply })?;
            asked += 1;
        }
        drop(reply);
        for _ in 0..asked {
            done.recv().await.ok_or(Failure::ActorLost)?;
        }
        Ok(())
    }

    /// A sealed window has left its actor: its row is opened and read again, unless it is billed; those are the answer.
    async fn reopen(&mut self, controls: &[(Position, Control)]) -> Result<Vec<WindowKey>, Failure> {
        let reopened = controls.iter().filter(|(_, control)| control.kind == ControlKind::WindowReopen);
        let keys: Vec<WindowKey> =
            reopened.map(|(_, control)| (control.subscription_id, control.window_start)).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        self.checkpoint_before(controls).await?;
        let mut patience = Patience::default();
        let billed = loop {
            match self.owner.reopen(&self.shared.store, &keys).await {
                Ok(billed) => break billed.ok_or(Failure::Fenced)?,
                Err(error) => patience.wait(&self.given_up, "reopening usage windows", error).await?,
            }
        };
        for (id, _) in &keys {
            self.forget_actor(*id);
        }
        Ok(billed)
    }

    /// Everything before the first of these records is counted, nothing after it is.
    pub(super) async fn checkpoint_before(&mut self, controls: &[(Position, Control)]) -> Result<(), Failure> {
        let first = controls.first().map_or(self.pending.next_offset, |(first, _)| first.offset());
        self.checkpoint_up_to(first).await
    }

    /// Everything before the record at this offset is counted, nothing after it is.
    pub(super) async fn checkpoint_up_to(&mut self, offset: u64) -> Result<(), Failure> {
        self.pending.next_offset = offset;
        self.checkpoint().await
    }
}

fn subscriptions_of(events: &[Incoming]) -> Vec<SubscriptionId> {
    let mut ids: Vec<SubscriptionId> = events.iter().map(|incoming| incoming.event.subscription_id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

type Groups = FastMap<SubscriptionId, Vec<Incoming>>;
pub(super) type TermsOf = FastMap<SubscriptionId, Arc<SubscriptionTerms>>;
