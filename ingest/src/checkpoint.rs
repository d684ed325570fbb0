//! The fenced checkpoint (rules A1, D3; P6): one transaction writes what a partition has counted since the last one, and
//! only its owner's epoch can commit it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use billing::due::{DueKind, plan_windows};
use catalog::compiled::WindowStatus;
use currency::{FXPolicy, Pair};
use domain::period::Period;
use domain::{
    BreachId, Currency, CustomerId, Error, Instant, OrganizationId, Position, RejectionId, Result, SubscriptionId,
    UsageEventId, WorkspaceId,
};
use rating::MemberRow;
use rust_decimal::Decimal;
use sqlx::Row;
use store::{Store, StoreError, Tx};
use uuid::Uuid;

use crate::late::{self, LateUsage};
use crate::limits::{LimitsWrite, announce_allowances, write_blocks};
use crate::log::{LogIdentity, Partition};
use crate::reserve::captures;
use crate::usage::{CountedEvent, RowKey, UsageStore};
use crate::void;

/// The right to write checkpoints of a partition, until somebody else takes it.
#[derive(Clone, Debug)]
pub struct Ownership {
    /// The log.
    pub log: LogIdentity,
    /// The partition.
    pub partition: Partition,
    /// Raised by everyone who takes the partition.
    pub epoch: i64,
    /// First offset that is not counted yet.
    pub next_offset: u64,
}

/// Key of a window: whose, and where it starts.
pub type WindowKey = (SubscriptionId, Instant);

/// State of a window, as a checkpoint writes it.
#[derive(Clone, Debug)]
pub struct WindowWrite {
    /// Whose window.
    pub subscription_id: SubscriptionId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Owner of the subscription.
    pub customer_id: CustomerId,
    /// Start and end.
    pub window: Period,
    /// How far it is closed.
    pub status: WindowStatus,
    /// Position of the record that changed it last.
    pub position: Position,
    /// Counted events.
    pub event_count: u64,
    /// Encoded by `rating`.
    pub state: Vec<u8>,
    /// Rows of its state that changed.
    pub rows: Vec<MemberRow>,
    /// Running amount per wallet pin; empty for a trial.
    pub accruals: Vec<AccrualWrite>,
    /// Whether the window was counted anew: pins that are not in `accruals` have no amount any more.
    pub is_rebuilt: bool,
    /// What the limits of the subscription found in it.
    pub limits: LimitsWrite,
}

/// Running amount of a window for one wallet pin (rule D3).
#[derive(Clone, Copy, Debug)]
pub struct AccrualWrite {
    /// The pin; `None`: the customer's cascade.
    pub wallet_currency: Option<Currency>,
    /// Currency of the amount.
    pub currency: Currency,
    /// Net amount.
    pub net: Decimal,
}

/// A crossed threshold.
#[derive(Clone, Debug)]
pub struct BreachWrite {
    /// UUIDv5 of the event and the threshold's action, or of the window's position and the cap: a replay writes it once.
    pub id: BreachId,
    /// Tenant.
    pub organization_id: OrganizationId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// The crossing, as rating found it.
    pub breach: rating::Breach,
    /// Subscription in which it happened.
    pub subscription_id: SubscriptionId,
    /// When the event that crossed was accepted; of a cap, which no single event crosses: with the checkpoint.
    pub occurred_at: Option<Instant>,
}

/// A refused event, kept with its reason.
#[derive(Clone, Debug)]
pub struct RejectionWrite {
    /// Id that the event has or would have.
    pub event_id: UsageEventId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Stable code.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// The event as the API takes it.
    pub payload: serde_json::Value,
    /// Place of its record.
    pub position: Position,
    /// When it was accepted.
    pub accepted_at: Instant,
}

impl RejectionWrite {
    /// UUIDv5 of event, partition and position, so that a replay of the log writes it once (rule B2).
    #[must_use]
    pub fn id(&self, partition: Partition) -> RejectionId {
        rejection_id(self.event_id, partition, self.position)
    }
}

/// The id of the rejection of an event at its place.
#[must_use]
pub fn rejection_id(event_id: UsageEventId, partition: Partition, position: Position) -> RejectionId {
    let place = [&partition.to_be_bytes()[..], &position.as_i64().to_be_bytes()].concat();
    RejectionId(Uuid::new_v5(&event_id.0, &place))
}

/// A record that belongs to no workspace.
#[derive(Clone, Debug)]
pub struct UnattributedWrite {
    /// Its offset.
    pub offset: u64,
    /// Why it was refused.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// As it was.
    pub value: Vec<u8>,
}

/// Code of usage that a policy drops without refusing it.
pub const DROPPED: &str = "DROPPED";

/// Usage that is not billed because a policy says so.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Id that the event has or would have.
    pub event_id: UsageEventId,
    /// Stable code.
    pub code: &'static str,
    /// For people.
    pub message: Cow<'static, str>,
}

/// What a partition has done since its last checkpoint.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// First offset that is not counted with it.
    pub next_offset: u64,
    /// Counted events.
    pub events: Vec<CountedEvent>,
    /// Changed windows.
    pub windows: Vec<WindowWrite>,
    /// Crossed thresholds.
    pub breaches: Vec<BreachWrite>,
    /// Refused events.
    pub rejections: Vec<RejectionWrite>,
    /// Rejections of stored events that count again, because their windows were counted anew.
    pub counted_again: Vec<RejectionId>,
    /// Events that a policy dropped.
    pub dropped: Vec<Dropped>,
    /// Refused records without a workspace.
    pub unattributed: Vec<UnattributedWrite>,
    /// Voids whose windows were counted anew without them.
    pub closed_voids: Vec<RowKey>,
    /// Windows whose usage so far a threshold closes into an interim invoice.
    pub interims: Vec<WindowKey>,
    /// Late usage that was counted in its own, closed window.
    pub corrections: Vec<LateUsage>,
    /// Windows that are open again and were counted anew with their late usage.
    pub mended: Vec<WindowKey>,
}

/// How a checkpoint ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// It is in the database, and nobody else has counted in between.
    Committed,
    /// Somebody else owns the partition: drop everything, write nothing (rule A1).
    Fenced,
}

impl Ownership {
    /// Takes a partition: raises its epoch, then tells where to go on. Whoever owned it before is fenced from here on.
    ///
    /// # Errors
    /// As every statement.
    pub async fn take(store: &Store, log: &LogIdentity, partition: Partition, now: Instant) -> Result<Self> {
        let (epoch, next_offset): (i64, i64) = sqlx::query_as(
            "INSERT INTO partition_checkpoint (log_id, partition, epoch, next_offset, updated_at) VALUES ($1, $2, 1, 0, $3)
             ON CONFLICT (log_id, partition) DO UPDATE SET epoch = partition_checkpoint.epoch + 1, updated_at = $3
             RETURNING epoch, next_offset",
        )
        .bind(log.id)
        .bind(partition.cast_signed())
        .bind(now)
        .fetch_one(store.pool())
        .await
        .context("taking a partition")?;
        Ok(Self { log: log.clone(), partition, epoch, next_offset: next_offset.unsigned_abs() })
    }

    /// Everything up to this position is counted: of this log what lies before the next offset, of the logs before it all
    /// that ever will be.
    #[must_use]
    pub fn counted_up_to(&self) -> Position {
        self.log.position(self.next_offset).before()
    }

    /// Writes a checkpoint. A COMMIT whose answer was lost is settled by reading the row.
    ///
    /// # Errors
    /// As every statement; nothing is written then, and the same checkpoint can be tried again.
    pub async fn write(
        &mut self,
        store: &Store,
        usage: &Arc<dyn UsageStore>,
        checkpoint: &Checkpoint,
        now: Instant,
    ) -> Result<Written> {
        let mut tx = store.begin("checkpoint").await?;
        if !self.advance(&mut tx, checkpoint.next_offset, now).await? {
            return Ok(Written::Fenced);
        }
        // Before any window is locked: whoever works it off takes the locks in this order.
        let late: Vec<_> = checkpoint.corrections.iter().map(LateUsage::key).collect();
        plan_windows(tx.conn(), now, DueKind::InterimInvoice, "threshold", &checkpoint.interims).await?;
        plan_windows(tx.conn(), now, DueKind::UsageCorrection, "late", &late).await?;
        usage.append_in_checkpoint(&mut tx, &checkpoint.events).await?;
        write_windows(&mut tx, self.partition, &checkpoint.windows, now).await?;
        captures::note(&mut tx, &checkpoint.events, &checkpoint.rejections).await?;
        void::close(&mut tx, &checkpoint.closed_voids).await?;
        late::note(&mut tx, self.partition, &checkpoint.corrections, now).await?;
        late::close(&mut tx, &checkpoint.mended).await?;
        write_members(&mut tx, &checkpoint.windows).await?;
        clear_accruals(&mut tx, &checkpoint.windows).await?;
        write_accruals(&mut tx, &checkpoint.windows, now).await?;
        write_blocks(&mut tx, &checkpoint.windows, now).await?;
        let breaches = checkpoint.breaches.iter().chain(checkpoint.windows.iter().flat_map(|w| &w.limits.breaches));
        write_breaches(&mut tx, &breaches.collect::<Vec<_>>(), now).await?;
        announce_allowances(&mut tx, &checkpoint.windows, now).await?;
        write_rejections(&mut tx, self.partition, &checkpoint.rejections, now).await?;
        close_counted_again(&mut tx, &checkpoint.counted_again, now).await?;
        announce_dropped(&mut tx, &checkpoint.dropped, now).await?;
        late::announce(&mut tx, &checkpoint.events, now).await?;
        write_unattributed(&mut tx, self, &checkpoint.unattributed, now).await?;
        match tx.commit().await {
            Ok(()) => {}
            Err(error) => {
                if !self.was_committed(store, checkpoint.next_offset).await? {
                    return Err(error);
                }
            }
        }
        self.next_offset = checkpoint.next_offset;
        Ok(Written::Committed)
    }

    /// The fence: only the owner's epoch, and only from where it stood (rule A1).
    async fn advance(&self, tx: &mut Tx, next_offset: u64, now: Instant) -> Result<bool> {
        let moved = sqlx::query(
            "UPDATE partition_checkpoint SET next_offset = $4, updated_at = $6
             WHERE log_id = $1 AND partition = $2 AND epoch = $3 AND next_offset = $5",
        )
        .bind(self.log.id)
        .bind(self.partition.cast_signed())
        .bind(self.epoch)
        .bind(next_offset.cast_signed())
        .bind(self.next_offset.cast_signed())
        .bind(now)
        .execute(tx.conn())
        .await
        .context("moving the checkpoint")?;
        Ok(moved.rows_affected() == 1)
    }

    /// Opens sealed windows again, in a transaction that only the owner commits (rule A1). Windows that are billed stay as
    /// they are (rule D3): they are the answer. `None`: somebody else owns the partition.
    ///
    /// # Errors
    /// As every statement; it can be tried again.
    pub async fn reopen(&self, store: &Store, windows: &[WindowKey]) -> Result<Option<Vec<WindowKey>>> {
        const OPERATION: &str = "reopening usage windows";
        let mut tx = store.begin(OPERATION).await?;
        let mine: Option<i64> = sqlx::query_scalar(
            "SELECT epoch FROM partition_checkpoint
             WHERE log_id = $1 AND partition = $2 AND epoch = $3 AND next_offset = $4 FOR SHARE",
        )
        .bind(self.log.id)
        .bind(self.partition.cast_signed())
        .bind(self.epoch)
        .bind(self.next_offset.cast_signed())
        .fetch_optional(tx.conn())
        .await
        .context(OPERATION)?;
        if mine.is_none() {
            return Ok(None);
        }
        let billed: Vec<WindowKey> = sqlx::query_as(
            "WITH asked AS (
                 SELECT w.subscription_id, w.window_start, w.billed
                 FROM usage_window w JOIN unnest($1::uuid[], $2::timestamptz[]) AS a (subscription_id, window_start)
                      USING (subscription_id, window_start)
                 ORDER BY 1, 2 FOR UPDATE OF w),
                  opened AS (
                 UPDATE usage_window w SET status = 'ended', sealed_position = NULL FROM asked
                 WHERE w.subscription_id = asked.subscription_id AND w.window_start = asked.window_start
                   AND w.status = 'sealed' AND NOT asked.billed)
             SELECT subscription_id, window_start FROM asked WHERE billed",
        )
        .bind(windows.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
        .bind(windows.iter().map(|(_, start)| *start).collect::<Vec<_>>())
        .fetch_all(tx.conn())
        .await
        .context(OPERATION)?;
        tx.commit().await?;
        Ok(Some(billed))
    }

    async fn was_committed(&self, store: &Store, next_offset: u64) -> Result<bool> {
        let row =
            sqlx::query("SELECT epoch, next_offset FROM partition_checkpoint WHERE log_id = $1 AND partition = $2")
                .bind(self.log.id)
                .bind(self.partition.cast_signed())
                .fetch_one(store.pool())
                .await
                .context("settling a checkpoint without an answer")?;
        let epoch: i64 = row.try_get("epoch").context("settling a checkpoint")?;
        let stored: i64 = row.try_get("next_offset").context("settling a checkpoint")?;
        // A checkpoint without new records leaves the offset as it was: then only a repeat can tell, and it is harmless.
        Ok(epoch == self.epoch && stored.unsigned_abs() == next_offset && next_offset != self.next_offset)
    }
}

async fn write_windows(tx: &mut Tx, partition: Partition, windows: &[WindowWrite], now: Instant) -> Result<()> {
    if windows.is_empty() {
        return Ok(());
    }
    // Locked in the order of the key, as every writer of window rows does (rule D3).
    let mut sorted: Vec<_> = windows.iter().collect();
    sorted.sort_by_key(|write| (write.subscription_id, write.window.start));
    let written = sqlx::query(
        "INSERT INTO usage_window (subscription_id, window_start, window_end, workspace_id, customer_id, partition, status,
                                   position, event_count, state, updated_at)
         SELECT s, ws, we, w, c, $5, st, p, n, b, $11
         FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::uuid[], $6::uuid[], $7::text[], $8::bigint[],
                     $9::bigint[], $10::bytea[]) AS t (s, ws, we, w, c, st, p, n, b)
         ON CONFLICT (subscription_id, window_start) DO UPDATE SET window_end = EXCLUDED.window_end, status = EXCLUDED.status,
             position = EXCLUDED.position, event_count = EXCLUDED.event_count, state = EXCLUDED.state,
             sealed_position = CASE EXCLUDED.status WHEN 'sealed' THEN EXCLUDED.position END, updated_at = EXCLUDED.updated_at
         WHERE NOT usage_window.billed",
    )
    .bind(sorted.iter().map(|w| w.subscription_id.0).collect::<Vec<_>>())
    .bind(sorted.iter().map(|w| w.window.start).collect::<Vec<_>>())
    .bind(sorted.iter().map(|w| w.window.end).collect::<Vec<_>>())
    .bind(sorted.iter().map(|w| w.workspace_id.0).collect::<Vec<_>>())
    .bind(partition.cast_signed())
    .bind(sorted.iter().map(|w| w.customer_id.0).collect::<Vec<_>>())
    .bind(sorted.iter().map(|w| w.status.as_str()).collect::<Vec<_>>())
    .bind(sorted.iter().map(|w| w.position.as_i64()).collect::<Vec<_>>())
    .bind(sorted.iter().map(|w| w.event_count.cast_signed()).collect::<Vec<_>>())
    .bind(sorted.iter().map(|w| w.state.as_slice()).collect::<Vec<_>>())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("writing usage windows")?;
    if written.rows_affected() != windows.len() as u64 {
        return Err(Error::invariant("a checkpoint wanted to change a usage window that is billed"));
    }
    Ok(())
}

async fn write_members(tx: &mut Tx, windows: &[WindowWrite]) -> Result<()> {
    let rows: Vec<_> = windows.iter().flat_map(|w| w.rows.iter().map(move |member| (w, member))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO meter_member (subscription_id, window_start, meter_id, member, count, data)
         SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::uuid[], $5::bigint[], $6::bytea[])
         ON CONFLICT (subscription_id, window_start, meter_id, member)
         DO UPDATE SET count = EXCLUDED.count, data = EXCLUDED.data",
    )
    .bind(rows.iter().map(|(w, _)| w.subscription_id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|(w, _)| w.window.start).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, m)| m.meter_id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, m)| Uuid::from_u128(m.hash)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, m)| m.count.cast_signed()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, m)| m.data.as_deref()).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .context("writing meter members")?;
    Ok(())
}

/// What a window that was counted anew had accrued before; what it has now is written after it.
async fn clear_accruals(tx: &mut Tx, windows: &[WindowWrite]) -> Result<()> {
    let rebuilt: Vec<_> = windows.iter().filter(|write| write.is_rebuilt).collect();
    if rebuilt.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE usage_accrual a SET net = 0, accrued = 0 FROM unnest($1::uuid[], $2::timestamptz[]) AS t (s, ws)
         WHERE a.subscription_id = s AND a.window_start = ws AND NOT a.closed",
    )
    .bind(rebuilt.iter().map(|write| write.subscription_id.0).collect::<Vec<_>>())
    .bind(rebuilt.iter().map(|write| write.window.start).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .context("clearing usage accruals")?;
    Ok(())
}

/// Sets, never adds; a closed row is a fence: its window is billed, and nothing may change it (rule D3). What captures have
/// paid of the counted usage is not accrued any more, nor what interim invoices have charged. What is pinned to a wallet of
/// another currency counts there at the rate of now: the invoice takes that of its own moment.
async fn write_accruals(tx: &mut Tx, windows: &[WindowWrite], now: Instant) -> Result<()> {
    let mut rows: Vec<_> = windows.iter().flat_map(|w| w.accruals.iter().map(move |accrual| (w, accrual))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_by_key(|(w, accrual)| (w.subscription_id, w.window.start, accrual.wallet_currency));
    let rates = exchange_rates(tx, &rows, now).await?;
    let written = sqlx::query(
        "INSERT INTO usage_accrual AS a (subscription_id, window_start, wallet_currency, workspace_id, customer_id, wallet_id,
                                         currency, net, accrued, fx_rate)
         SELECT s, ws, pin, w, c, wallet.id, cur, net, greatest(net - captured.gross, 0), rate
         FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::uuid[], $5::uuid[], $6::text[], $7::numeric[], $8::numeric[])
              AS t (s, ws, pin, w, c, cur, net, rate)
         LEFT JOIN wallet ON wallet.customer_id = c AND wallet.currency = coalesce(nullif(pin, ''), cur) AND rate IS NOT NULL
         CROSS JOIN LATERAL (
             SELECT coalesce(sum(captured_net + captured_tax), 0) AS gross FROM usage_reservation r
             WHERE r.subscription_id = s AND r.counted_in = ws AND r.wallet_currency = pin AND r.settled_at IS NULL
         ) AS captured
         ON CONFLICT (subscription_id, window_start, wallet_currency) DO UPDATE SET net = EXCLUDED.net,
             accrued = greatest(EXCLUDED.accrued - a.invoiced, 0), wallet_id = EXCLUDED.wallet_id, customer_id = EXCLUDED.customer_id,
             fx_rate = EXCLUDED.fx_rate
         WHERE NOT a.closed",
    )
    .bind(rows.iter().map(|(w, _)| w.subscription_id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|(w, _)| w.window.start).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, a)| a.wallet_currency.map(|c| c.to_string()).unwrap_or_default()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(w, _)| w.workspace_id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|(w, _)| w.customer_id.0).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, a)| a.currency.to_string()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, a)| a.net).collect::<Vec<_>>())
    .bind(rates)
    .execute(tx.conn())
    .await
    .context("writing usage accruals")?;
    if written.rows_affected() != rows.len() as u64 {
        return Err(Error::invariant("a checkpoint wanted to change the accrual of a window that is billed"));
    }
    Ok(())
}

/// Units of the wallet's currency for one of the accrual's: 1 in nearly every row; none where no rate is known, or the
/// organization converts nothing.
async fn exchange_rates(
    tx: &mut Tx,
    rows: &[(&WindowWrite, &AccrualWrite)],
    now: Instant,
) -> Result<Vec<Option<Decimal>>> {
    let mut rates = vec![Some(Decimal::ONE); rows.len()];
    let mut asked: BTreeMap<WorkspaceId, Vec<(usize, Pair)>> = BTreeMap::new();
    for (index, (window, accrual)) in rows.iter().enumerate() {
        let target = accrual.wallet_currency.unwrap_or(accrual.currency);
        if target != accrual.currency {
            let pair = Pair { source: accrual.currency, target };
            asked.entry(window.workspace_id).or_default().push((index, pair));
        }
    }
    for (workspace, pairs) in asked {
        let converts = FXPolicy::of_workspace(tx.conn(), workspace).await? != FXPolicy::None;
        let questions: Vec<_> = pairs.iter().map(|(_, pair)| (*pair, now)).collect();
        let found = currency::rate::rates(tx.conn(), workspace, &questions).await?;
        for ((index, _), rate) in pairs.iter().zip(found) {
            rates[*index] = rate.filter(|_| converts).map(|rate| rate.rate);
        }
    }
    Ok(rates)
}

/// Breaches with the events and mails that announce them; a replay writes none of them again. A BLOCK is delivered with the row:
/// from here on it holds.
async fn write_breaches(tx: &mut Tx, breaches: &[&BreachWrite], now: Instant) -> Result<()> {
    if breaches.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH crossed AS (
             INSERT INTO meter_breach (id, organization_id, workspace_id, meter_id, product_id, subscription_id, meter_key,
                                       threshold_name, threshold_value, comparator, observed_value, window_start, window_end,
                                       occurred_at, action_kind, action_target, action_event_type, delivered_at)
             SELECT *, CASE kind WHEN 'BLOCK' THEN $18::timestamptz END FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::text[],
                                  $9::numeric[], $10::text[], $11::numeric[], $12::timestamptz[], $13::timestamptz[],
                                  $14::timestamptz[], $15::text[], $16::text[], $17::text[])
                  AS t (id, o, w, m, p, s, mk, name, value, cmp, seen, ws, we, at, kind, target, event_type)
             ON CONFLICT (id) DO NOTHING
             RETURNING *),
              mailed AS (
             INSERT INTO mail_outbox (id, workspace_id, template, recipient, entity_type, entity_id, payload, created_at)
             SELECT b.id, b.workspace_id, 'meter_breach', COALESCE(b.action_target, c.email), 'meter_breach', b.id,
                    jsonb_build_object('subscription_id', b.subscription_id, 'product_id', b.product_id, 'meter_key', b.meter_key,
                                       'threshold_name', b.threshold_name, 'threshold_value', b.threshold_value::text,
                                       'observed_value', b.observed_value::text, 'window_start', b.window_start,
                                       'window_end', b.window_end), $18
             FROM crossed b JOIN subscription s ON s.id = b.subscription_id JOIN customer c ON c.id = s.customer_id
             WHERE b.action_kind = 'NOTIFY')
         INSERT INTO outbox (id, workspace_id, event_type, entity_type, entity_id, payload, created_at)
         SELECT gen_random_uuid(), workspace_id, COALESCE(action_event_type, 'meter.threshold_breached'), 'meter_breach', id,
                jsonb_build_object('breach_id', id, 'meter_id', meter_id, 'subscription_id', subscription_id, 'threshold_name',
                                   threshold_name, 'threshold_value', threshold_value::text, 'observed_value',
                                   observed_value::text, 'target', action_target), $18
         FROM crossed WHERE action_kind = 'WEBHOOK'",
    )
    .bind(breaches.iter().map(|write| write.id.0).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.organization_id.0).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.workspace_id.0).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.binding.meter.meter_id.0).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.binding.product_id.0).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.subscription_id.0).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.binding.meter.key.as_str()).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.threshold_name.as_str()).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.threshold_value).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.comparator.as_str()).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.observed_value.shown()).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.window.start).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.window.end).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.occurred_at.unwrap_or(now)).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.action.kind.as_str()).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.action.target.clone()).collect::<Vec<_>>())
    .bind(breaches.iter().map(|write| write.breach.action.event_type.clone()).collect::<Vec<_>>())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("writing meter breaches")?;
    Ok(())
}

async fn write_rejections(
    tx: &mut Tx,
    partition: Partition,
    rejections: &[RejectionWrite],
    now: Instant,
) -> Result<()> {
    if rejections.is_empty() {
        return Ok(());
    }
    let member = |r: &RejectionWrite, name: &str| {
        r.payload.get(name).and_then(|v| v.as_str()).and_then(|text| Uuid::parse_str(text).ok())
    };
    let text = |r: &RejectionWrite, name: &str| {
        r.payload.get(name).and_then(|v| v.as_str()).map(|text| storable(text).into_owned())
    };
    // The event `usage_event.dropped` goes out once, with the row that is really new, or open again.
    sqlx::query(
        "WITH kept AS (
             INSERT INTO usage_rejection (id, organization_id, workspace_id, event_id, customer_id, subscription_id, product_id,
                                          metric_key, code, message, payload, partition, position, rejected_at)
             SELECT t.id, workspace.organization_id, w, e, cu, su, pr, mk, code, message, payload, $12, pos, at
             FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::text[],
                         $9::text[], $10::jsonb[], $11::bigint[], $13::timestamptz[])
                  AS t (id, w, e, cu, su, pr, mk, code, message, payload, pos, at)
             JOIN workspace ON workspace.id = t.w
             ON CONFLICT (id) DO UPDATE
                SET status = 'open', code = EXCLUDED.code, message = EXCLUDED.message, reason = NULL, resolved_at = NULL
                WHERE usage_rejection.status = 'replayed' AND usage_rejection.reason = $15
             RETURNING id, workspace_id, event_id, code, message)
         INSERT INTO outbox (id, workspace_id, event_type, entity_type, entity_id, payload, created_at)
         SELECT gen_random_uuid(), workspace_id, 'usage_event.dropped', 'usage_event', event_id,
                jsonb_build_object('rejection_id', id, 'code', code, 'message', message), $14
         FROM kept",
    )
    .bind(rejections.iter().map(|r| r.id(partition).0).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| r.workspace_id.0).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| r.event_id.0).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| member(r, "customer_id")).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| member(r, "subscription_id")).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| member(r, "product_id")).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| text(r, "metric_key")).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| r.code).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| storable(&r.message)).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| sqlx::types::Json(storable_json(&r.payload))).collect::<Vec<_>>())
    .bind(rejections.iter().map(|r| r.position.as_i64()).collect::<Vec<_>>())
    .bind(partition.cast_signed())
    .bind(rejections.iter().map(|r| r.accepted_at).collect::<Vec<_>>())
    .bind(now)
    .bind(COUNTED_AGAIN)
    .execute(tx.conn())
    .await
    .context("writing usage rejections")?;
    Ok(())
}

/// Why a rejection is closed that no operator has closed.
const COUNTED_AGAIN: &str = "counted when its window was counted anew";

async fn close_counted_again(tx: &mut Tx, ids: &[RejectionId], now: Instant) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE usage_rejection SET status = 'replayed', reason = $2, resolved_at = $3
         WHERE id = ANY($1) AND status = 'open'",
    )
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .bind(COUNTED_AGAIN)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("closing rejections of usage that counts again")?;
    Ok(())
}

/// Writes `usage_event.dropped` for each, in one statement.
///
/// # Errors
/// As every statement.
pub async fn announce_dropped(tx: &mut Tx, dropped: &[Dropped], now: Instant) -> Result<()> {
    if dropped.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO outbox (id, workspace_id, event_type, entity_type, entity_id, payload, created_at)
         SELECT gen_random_uuid(), workspace_id, 'usage_event.dropped', 'usage_event', id,
                jsonb_build_object('code', code, 'message', message), $5
         FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) AS d (workspace_id, id, code, message)",
    )
    .bind(dropped.iter().map(|one| one.workspace_id.0).collect::<Vec<_>>())
    .bind(dropped.iter().map(|one| one.event_id.0).collect::<Vec<_>>())
    .bind(dropped.iter().map(|one| one.code).collect::<Vec<_>>())
    .bind(dropped.iter().map(|one| storable(&one.message)).collect::<Vec<_>>())
    .bind(now)
    .execute(tx.conn())
    .await
    .context("announcing dropped usage")?;
    Ok(())
}

/// PostgreSQL stores no U+0000; a foreign record may hold one anywhere.
fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

/// The same for all texts of a document.
fn storable_json(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::String(text) => storable(text).into_owned().into(),
        serde_json::Value::Array(items) => items.iter().map(storable_json).collect(),
        serde_json::Value::Object(members) => {
            members.iter().map(|(name, value)| (storable(name).into_owned(), storable_json(value))).collect()
        }
        other => other.clone(),
    }
}

async fn write_unattributed(tx: &mut Tx, owner: &Ownership, records: &[UnattributedWrite], now: Instant) -> Result<()> {
    for record in records {
        sqlx::query(
            r#"INSERT INTO unattributed_record (log_ordinal, partition, "offset", code, message, value, rejected_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING"#,
        )
        .bind(i16::try_from(owner.log.ordinal).unwrap_or(i16::MAX))
        .bind(owner.partition.cast_signed())
        .bind(record.offset.cast_signed())
        .bind(record.code)
        .bind(storable(&record.message))
        .bind(&record.value)
        .bind(now)
        .execute(tx.conn())
        .await
        .context("keeping a record without a workspace")?;
    }
    Ok(())
}
