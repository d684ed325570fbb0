//! What counting goes on from: the windows of a subscription as the last checkpoint wrote them.

use std::collections::HashMap;

use catalog::compiled::{Snapshots, StoredWindow, WindowQuery, WindowStatus};
use domain::{Instant, Result, SubscriptionId};
use rust_decimal::Decimal;
use smallvec::SmallVec;
use sqlx::{PgConnection, Row};
use store::StoreError;

use super::{Rates, WindowSlot, Windows};

/// What a partition hands to a new actor.
#[derive(Clone, Debug, Default)]
pub struct Initial {
    /// Windows that are not sealed.
    pub slots: Vec<WindowSlot>,
    /// End of the last sealed window: an event before it is late.
    pub sealed_until: Option<Instant>,
}

impl Initial {
    /// Reads the windows of subscriptions; one without any is absent. Three statements, whatever their number.
    ///
    /// # Errors
    /// As every statement; `Internal` for a state that cannot be read.
    pub async fn load(
        conn: &mut PgConnection,
        snapshots: &Snapshots,
        ids: &[SubscriptionId],
    ) -> Result<HashMap<SubscriptionId, Self>> {
        let mut initial: HashMap<SubscriptionId, Self> = HashMap::with_capacity(ids.len());
        for window in StoredWindow::load(conn, snapshots, WindowQuery::Unsealed(ids)).await? {
            initial.entry(window.subscription_id).or_default().slots.push(window.into());
        }
        let sealed = sqlx::query(
            "SELECT subscription_id, max(window_end) AS sealed_until FROM usage_window
             WHERE subscription_id = ANY($1) AND status = 'sealed' GROUP BY subscription_id",
        )
        .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
        .context("loading sealed windows")?;
        for row in sealed {
            let id: SubscriptionId = row.try_get("subscription_id").context("loading sealed windows")?;
            let sealed_until: Option<Instant> = row.try_get("sealed_until").context("loading sealed windows")?;
            initial.entry(id).or_default().sealed_until = sealed_until;
        }
        Ok(initial)
    }
}

impl From<Initial> for Windows {
    fn from(initial: Initial) -> Self {
        Self { slots: initial.slots, sealed_until: initial.sealed_until, rates: Rates::new() }
    }
}

impl From<StoredWindow> for WindowSlot {
    fn from(window: StoredWindow) -> Self {
        let shown =
            |entry: &rating::Entry| entry.quantity(None).ok().and_then(|quantity| quantity.floored().to_decimal().ok());
        let whole = |quantity: Decimal| u128::try_from(quantity.ceil()).unwrap_or(u128::MAX);
        let quantities = window.state.entries().iter().map(|entry| shown(entry).map_or(u128::MAX, whole));
        let magnitude = quantities.fold(u128::from(window.event_count), u128::saturating_add);
        Self {
            magnitude,
            is_blocking: window.status != WindowStatus::Sealed && window.state.is_blocking(),
            window: window.window,
            status: window.status,
            position: window.position,
            event_count: window.event_count,
            state: window.state,
            allowed: SmallVec::new(),
            is_dirty: false,
            is_rebuilt: false,
        }
    }
}
