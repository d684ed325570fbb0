//! Stored metering windows, with their state attached to the compiled catalog.

use std::collections::HashMap;

use domain::period::Period;
use domain::{CustomerId, Error, Instant, MeterId, Position, Result, SubscriptionId, WorkspaceId};
use rating::{MemberRow, RatingError, WindowRecord, WindowState};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use store::StoreError;

use super::{Snapshots, WorkspaceCatalog};

domain::wire_enum! {
    /// How far the log has closed a window (rule C2).
    pub enum WindowStatus {
        /// Counting.
        Open = "open",
        /// `PeriodEnd` has passed: drafts are computed, events of the window still count.
        Ended = "ended",
        /// `WindowSeal` has passed: an event of the window is late.
        Sealed = "sealed",
    }
}

/// A row of `usage_window`.
#[derive(Clone, Debug)]
pub struct StoredWindow {
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
    /// When the row was written last: another instant means other totals, also when they were counted anew and the position
    /// stayed.
    pub written_at: Instant,
    /// Running totals.
    pub state: WindowState,
}

/// Which windows to read.
#[derive(Clone, Copy, Debug)]
pub enum WindowQuery<'a> {
    /// Every window that is not sealed of these subscriptions.
    Unsealed(&'a [SubscriptionId]),
    /// One window of each of these subscriptions, whatever its status.
    Starting(&'a [(SubscriptionId, Instant)]),
}

impl StoredWindow {
    /// Reads windows and attaches their states, members included; ordered by subscription and start. Two statements,
    /// whatever their number.
    ///
    /// # Errors
    /// As every statement; `Internal` for a state that cannot be read.
    pub async fn load(conn: &mut PgConnection, snapshots: &Snapshots, query: WindowQuery<'_>) -> Result<Vec<Self>> {
        let rows = fetch(conn, query).await?;
        let raw = rows.iter().map(RawWindow::from_row).collect::<Result<Vec<_>>>()?;
        let mut members = load_members(conn, &raw).await?;
        let mut windows = Vec::with_capacity(raw.len());
        for window in raw {
            let rows = members.remove(&(window.subscription_id, window.period.start)).unwrap_or_default();
            windows.push(window.attach(snapshots, rows).await?);
        }
        Ok(windows)
    }
}

async fn fetch(conn: &mut PgConnection, query: WindowQuery<'_>) -> Result<Vec<PgRow>> {
    let rows = match query {
        WindowQuery::Unsealed(ids) => {
            let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
            sqlx::query(
                "SELECT subscription_id, workspace_id, customer_id, window_start, window_end, status, position, event_count,
                        updated_at, state
                 FROM usage_window WHERE subscription_id = ANY($1) AND status <> 'sealed'
                 ORDER BY subscription_id, window_start",
            )
            .bind(ids)
            .fetch_all(conn)
            .await
        }
        WindowQuery::Starting(windows) => {
            let (ids, starts): (Vec<_>, Vec<_>) = windows.iter().map(|(id, start)| (id.0, *start)).unzip();
            sqlx::query(
                "SELECT subscription_id, workspace_id, customer_id, window_start, window_end, status, position, event_count,
                        updated_at, state
                 FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
                 JOIN usage_window USING (subscription_id, window_start)
                 ORDER BY subscription_id, window_start",
            )
            .bind(ids)
            .bind(starts)
            .fetch_all(conn)
            .await
        }
    };
    rows.context("reading usage windows")
}

/// A row before its versions are attached.
struct RawWindow {
    subscription_id: SubscriptionId,
    workspace_id: WorkspaceId,
    customer_id: CustomerId,
    period: Period,
    status: WindowStatus,
    position: Position,
    event_count: u64,
    written_at: Instant,
    record: WindowRecord,
}

impl RawWindow {
    fn from_row(row: &PgRow) -> Result<Self> {
        let read = || -> Result<(Self, Vec<u8>), sqlx::Error> {
            let event_count: i64 = row.try_get("event_count")?;
            let raw = Self {
                subscription_id: row.try_get("subscription_id")?,
                workspace_id: row.try_get("workspace_id")?,
                customer_id: row.try_get("customer_id")?,
                period: Period { start: row.try_get("window_start")?, end: row.try_get("window_end")? },
                status: row.try_get("status")?,
                position: Position::from_i64(row.try_get("position")?),
                event_count: event_count.unsigned_abs(),
                written_at: row.try_get("updated_at")?,
                record: WindowRecord::default(),
            };
            Ok((raw, row.try_get("state")?))
        };
        let (mut raw, bytes) = read().context("reading a usage window")?;
        raw.record = WindowRecord::decode(&bytes).map_err(|error| {
            Error::internal(format!("reading the state of subscription {}", raw.subscription_id), error)
        })?;
        Ok(raw)
    }

    /// A version that the snapshot lacks is newer than the snapshot: it is read again once.
    async fn attach(self, snapshots: &Snapshots, members: Vec<MemberRow>) -> Result<StoredWindow> {
        let catalog = snapshots.workspace(self.workspace_id).await?;
        let state = match self.attach_to(&catalog, members.clone()) {
            Err(RatingError::UnknownVersion { .. }) => {
                snapshots.refresh().await?;
                let catalog = snapshots.workspace(self.workspace_id).await?;
                self.attach_to(&catalog, members)?
            }
            other => other?,
        };
        Ok(StoredWindow {
            subscription_id: self.subscription_id,
            workspace_id: self.workspace_id,
            customer_id: self.customer_id,
            window: self.period,
            status: self.status,
            position: self.position,
            event_count: self.event_count,
            written_at: self.written_at,
            state,
        })
    }

    fn attach_to(&self, catalog: &WorkspaceCatalog, members: Vec<MemberRow>) -> Result<WindowState, RatingError> {
        self.record.clone().attach(catalog, members)
    }
}

type MembersOf = HashMap<(SubscriptionId, Instant), Vec<MemberRow>>;

async fn load_members(conn: &mut PgConnection, windows: &[RawWindow]) -> Result<MembersOf> {
    let mut members = MembersOf::new();
    let (ids, starts): (Vec<_>, Vec<_>) = windows
        .iter()
        .filter(|window| window.record.has_rows)
        .map(|window| (window.subscription_id.0, window.period.start))
        .unzip();
    if ids.is_empty() {
        return Ok(members);
    }
    let rows = sqlx::query(
        "SELECT subscription_id, window_start, meter_id, member, count, data
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
         JOIN meter_member USING (subscription_id, window_start)",
    )
    .bind(ids)
    .bind(starts)
    .fetch_all(conn)
    .await
    .context("reading meter members")?;
    for row in rows {
        let (key, member) = member_from_row(&row).context("reading a meter member")?;
        members.entry(key).or_default().push(member);
    }
    Ok(members)
}

fn member_from_row(row: &PgRow) -> Result<((SubscriptionId, Instant), MemberRow), sqlx::Error> {
    let member: uuid::Uuid = row.try_get("member")?;
    let count: i64 = row.try_get("count")?;
    let meter_id: MeterId = row.try_get("meter_id")?;
    let key = (row.try_get("subscription_id")?, row.try_get("window_start")?);
    Ok((key, MemberRow { meter_id, hash: member.as_u128(), count: count.unsigned_abs(), data: row.try_get("data")? }))
}
