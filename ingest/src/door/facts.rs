//! What judging needs of the database beside the catalog: read for a whole batch, one statement for each kind of thing, and
//! only of things that an event of the batch asks about. Most batches ask about nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use catalog::compiled::SubscriptionTerms;
use domain::{
    Currency, CustomerId, Error, FastMap, HoldId, Instant, Result, Scope, SubscriptionId, TestClockId, WalletId,
};
use store::{Store, StoreError};
use uuid::Uuid;

use super::NewEvent;

/// Test clocks, wallets, holds and customers that the events of a batch name.
#[derive(Debug, Default)]
pub struct Facts {
    clocks: HashMap<TestClockId, Instant>,
    customers: HashSet<CustomerId>,
    wallets: HashMap<WalletId, (CustomerId, Currency)>,
    holds: HashMap<HoldId, (SubscriptionId, String)>,
}

impl Facts {
    /// What is known of a customer on a test clock, and of nothing else.
    #[must_use]
    pub fn of_clock(clock: Option<TestClockId>, now: Instant) -> Self {
        Self { clocks: clock.into_iter().map(|clock| (clock, now)).collect(), ..Self::default() }
    }

    /// Reads what these events ask about; `terms` are those of their subscriptions in the scope's workspace.
    ///
    /// # Errors
    /// As every statement.
    pub async fn load<'a>(
        scope: &Scope,
        store: &Store,
        terms: &FastMap<SubscriptionId, Arc<SubscriptionTerms>>,
        events: impl Iterator<Item = &'a NewEvent>,
    ) -> Result<Self> {
        let mut asked = Asked::default();
        for event in events {
            let terms = terms.get(&event.subscription_id);
            asked.clocks.extend(terms.and_then(|terms| terms.test_clock_id).map(|id| id.0));
            // Events of a subscription that is theirs do not ask for their customer: the subscription says that it is there.
            if terms.is_none_or(|terms| terms.customer_id != event.customer_id) {
                asked.customers.insert(event.customer_id.0);
            }
            asked.wallets.extend(event.wallet_id.map(|id| id.0));
            asked.holds.extend(event.hold_id.map(|id| id.0));
        }
        asked.read(scope, store).await
    }

    /// What time it is for customers on a test clock; where an advance is going counts as reached.
    pub(super) fn time_of(&self, clock: TestClockId) -> Result<Instant> {
        self.clocks.get(&clock).copied().ok_or_else(|| Error::invariant(format!("test clock {clock} was not read")))
    }

    pub(super) fn has_customer(&self, id: CustomerId) -> bool {
        self.customers.contains(&id)
    }

    /// Owner and currency.
    pub(super) fn wallet(&self, id: WalletId) -> Option<(CustomerId, Currency)> {
        self.wallets.get(&id).copied()
    }

    /// Whether it is an active hold of this subscription and metric.
    pub(super) fn is_held_for(&self, id: HoldId, subscription_id: SubscriptionId, metric_key: &str) -> bool {
        self.holds.get(&id).is_some_and(|(owner, metric)| *owner == subscription_id && metric == metric_key)
    }
}

/// Ids that a batch names.
#[derive(Default)]
struct Asked {
    clocks: HashSet<Uuid>,
    customers: HashSet<Uuid>,
    wallets: HashSet<Uuid>,
    holds: HashSet<Uuid>,
}

const CLOCKS: &str = "SELECT id, coalesce(target, frozen_at) FROM test_clock WHERE workspace_id = $1 AND id = ANY($2)";
const CUSTOMERS: &str = "SELECT id FROM customer WHERE workspace_id = $1 AND id = ANY($2) AND deleted_at IS NULL";
const WALLETS: &str = "SELECT id, customer_id, currency FROM wallet WHERE workspace_id = $1 AND id = ANY($2)";
const HOLDS: &str = "SELECT h.id, h.subscription_id, h.metric_key
    FROM wallet_hold h JOIN wallet w ON w.id = h.wallet_id JOIN customer c ON c.id = w.customer_id
    LEFT JOIN test_clock clock ON clock.id = c.test_clock_id
    WHERE h.workspace_id = $1 AND h.id = ANY($2) AND h.status = 'PENDING'
      AND h.subscription_id IS NOT NULL AND h.metric_key IS NOT NULL
      AND h.expires_at > coalesce(clock.frozen_at, clock_timestamp())";

impl Asked {
    async fn read(self, scope: &Scope, store: &Store) -> Result<Facts> {
        let customers: Vec<(CustomerId,)> = rows(scope, store, CUSTOMERS, self.customers).await?;
        let wallets: Vec<(WalletId, CustomerId, Currency)> = rows(scope, store, WALLETS, self.wallets).await?;
        let holds: Vec<(HoldId, SubscriptionId, String)> = rows(scope, store, HOLDS, self.holds).await?;
        Ok(Facts {
            clocks: rows(scope, store, CLOCKS, self.clocks).await?.into_iter().collect(),
            customers: customers.into_iter().map(|(id,)| id).collect(),
            wallets: wallets.into_iter().map(|(id, owner, currency)| (id, (owner, currency))).collect(),
            holds: holds.into_iter().map(|(id, owner, metric)| (id, (owner, metric))).collect(),
        })
    }
}

/// No statement when nothing is asked.
async fn rows<T>(scope: &Scope, store: &Store, sql: &'static str, ids: HashSet<Uuid>) -> Result<Vec<T>>
where
    T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
{
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as(sql)
        .bind(scope.workspace_id)
        .bind(ids.into_iter().collect::<Vec<_>>())
        .fetch_all(store.pool())
        .await
        .context("reading what events are compared with")
}
