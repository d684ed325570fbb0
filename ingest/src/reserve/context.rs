//! What reservations and captures know of customers and subscriptions, read in their transaction for all operations of a
//! group; and the locks of the windows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use catalog::compiled::{Snapshots, SubscriptionTerms, WorkspaceCatalog};
use domain::period::Period;
use domain::{BindingRole, Currency, CustomerId, Error, Instant, ProductId, Result, Scope, SubscriptionId, WalletId};
use rating::WindowState;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};
use store::{Patience, StoreError, Tx};

use super::answer::BlockedReason;
use super::request::ReserveRequest;

/// Whose usage it is, and what time it is there.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub terms: Arc<SubscriptionTerms>,
    /// The scope's instant, or that of the customer's test clock.
    pub now: Instant,
    subscription_status: String,
    customer_status: String,
    is_customer_deleted: bool,
}

#[derive(FromRow)]
struct ContextRow {
    id: SubscriptionId,
    subscription_status: String,
    customer_status: String,
    is_customer_deleted: bool,
    frozen_at: Option<Instant>,
}

impl Context {
    /// Reads subscriptions of the scope's workspace with their customers; others are absent. The terms are those of the
    /// revision that the snapshots have reached.
    ///
    /// # Errors
    /// As every statement.
    pub async fn load(
        scope: &Scope,
        conn: &mut PgConnection,
        snapshots: &Snapshots,
        ids: &HashSet<SubscriptionId>,
    ) -> Result<HashMap<SubscriptionId, Self>> {
        let rows: Vec<ContextRow> = sqlx::query_as(
            "SELECT s.id, s.status AS subscription_status, c.status AS customer_status,
                 c.deleted_at IS NOT NULL AS is_customer_deleted, clock.frozen_at
             FROM unnest($2::uuid[]) AS asked (id)
             CROSS JOIN LATERAL (SELECT * FROM subscription WHERE subscription.id = asked.id OFFSET 0) AS s
             JOIN customer c ON c.id = s.customer_id LEFT JOIN test_clock clock ON clock.id = c.test_clock_id
             WHERE s.workspace_id = $1 AND s.deleted_at IS NULL",
        )
        .bind(scope.workspace_id)
        .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
        .context("reading the subscriptions of reservations")?;
        let own: Vec<SubscriptionId> = rows.iter().map(|row| row.id).collect();
        let mut terms = snapshots.terms_of_many(&own).await?;
        let contexts = rows.into_iter().filter_map(|row| {
            let terms = terms.remove(&row.id)?;
            let now = row.frozen_at.unwrap_or_else(|| scope.now());
            let ContextRow { id, subscription_status, customer_status, is_customer_deleted, .. } = row;
            Some((id, Self { terms, now, subscription_status, customer_status, is_customer_deleted }))
        });
        Ok(contexts.collect())
    }

    /// What stands in the way before any price is looked for.
    pub fn blocked(&self) -> Vec<BlockedReason> {
        let mut reasons = Vec::new();
        if self.customer_status != "ACTIVE" {
            reasons.push(BlockedReason::CustomerInactive);
        }
        let is_over = self.terms.ended_at.is_some_and(|ended| ended <= self.now) || self.now < self.terms.started_at;
        match self.subscription_status.as_str() {
            "PAUSED" => reasons.push(BlockedReason::SubscriptionSuspended),
            "TRIALING" | "ACTIVE" | "DUNNING" if !is_over => {}
            _ => reasons.push(BlockedReason::SubscriptionNotActive),
        }
        reasons
    }
}

/// The subscription of a customer.
///
/// # Errors
/// `NotFound`; 422 when the subscription is another customer's.
pub(super) async fn of_customer<'a>(
    scope: &Scope,
    conn: &mut PgConnection,
    contexts: &'a HashMap<SubscriptionId, Context>,
    customer_id: CustomerId,
    id: SubscriptionId,
) -> Result<&'a Context> {
    let found = contexts.get(&id);
    if let Some(context) = found.filter(|one| one.terms.customer_id == customer_id && !one.is_customer_deleted) {
        return Ok(context);
    }
    check_customer(scope, conn, customer_id).await?;
    found.ok_or_else(|| Error::not_found("subscription", id))?;
    Err(Error::business_rule(format!("subscription {id} belongs to another customer")))
}

async fn check_customer(scope: &Scope, conn: &mut PgConnection, id: CustomerId) -> Result<()> {
    let is_known: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM customer WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL)",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(conn)
    .await
    .context("reading the customer of a reservation")?;
    if is_known { Ok(()) } else { Err(Error::not_found("customer", id)) }
}

/// For each request the subscription that it names, or the only running one of the customer that has the product.
///
/// # Errors
/// As every statement; for a single request `NotFound` for the customer, 422 `SUBSCRIPTION_REQUIRED` when there is no such
/// subscription, or more than one.
pub(super) async fn subscriptions_of(
    scope: &Scope,
    conn: &mut PgConnection,
    requests: &[(usize, &ReserveRequest)],
) -> Result<HashMap<usize, Result<SubscriptionId>>> {
    let mut chosen = HashMap::with_capacity(requests.len());
    let mut open = Vec::new();
    for (place, request) in requests {
        match request.subscription_id {
            Some(id) => drop(chosen.insert(*place, Ok(id))),
            None => open.push((*place, *request)),
        }
    }
    if open.is_empty() {
        return Ok(chosen);
    }
    let found: Vec<(i64, SubscriptionId)> = sqlx::query_as(
        "SELECT asked.place, chosen.id
         FROM unnest($2::bigint[], $3::uuid[], $4::uuid[]) AS asked (place, customer_id, product_id),
             LATERAL (SELECT s.id FROM subscription s
                      WHERE s.workspace_id = $1 AND s.customer_id = asked.customer_id AND s.deleted_at IS NULL
                        AND s.status IN ('TRIALING', 'ACTIVE', 'DUNNING')
                        AND EXISTS (SELECT FROM subscription_item i WHERE i.subscription_id = s.id
                                      AND i.product_id = asked.product_id AND i.removed_at IS NULL)
                      LIMIT 2) AS chosen",
    )
    .bind(scope.workspace_id)
    .bind((0..).take(open.len()).collect::<Vec<i64>>())
    .bind(open.iter().map(|(_, request)| request.customer_id.0).collect::<Vec<_>>())
    .bind(open.iter().map(|(_, request)| request.product_id.0).collect::<Vec<_>>())
    .fetch_all(&mut *conn)
    .await
    .context("looking for the subscriptions of reservations")?;
    for (at, (place, request)) in (0_i64..).zip(open) {
        let own: Vec<SubscriptionId> = found.iter().filter(|(asked, _)| *asked == at).map(|(_, id)| *id).collect();
        let choice = match own.as_slice() {
            [only] => Ok(*only),
            none_or_several => {
                let known = check_customer(scope, conn, request.customer_id).await;
                known.and_then(|()| Err(required(request, none_or_several.len())))
            }
        };
        chosen.insert(place, choice);
    }
    Ok(chosen)
}

fn required(request: &ReserveRequest, found: usize) -> Error {
    let (customer_id, product_id) = (request.customer_id, request.product_id);
    let detail = match found {
        0 => format!("no running subscription of customer {customer_id} has product {product_id}"),
        _ => format!("several subscriptions of customer {customer_id} have product {product_id}"),
    };
    Error::rule("SUBSCRIPTION_REQUIRED", format!("{detail}; give subscription_id"))
}

/// The only metric that a product is billed by.
///
/// # Errors
/// 400 for a product with several, 422 for one with none.
pub(super) fn only_metric(catalog: &WorkspaceCatalog, product_id: ProductId, at: Instant) -> Result<String> {
    let product = catalog.product(product_id).filter(|product| product.is_live);
    let product = product.ok_or_else(|| Error::not_found("product", product_id))?;
    let billed = product
        .bindings
        .iter()
        .filter(|binding| binding.at(at).is_some_and(|version| version.role == BindingRole::Primary));
    let mut metrics: Vec<&str> = billed.map(|binding| binding.metric_key.as_str()).collect();
    metrics.sort_unstable();
    metrics.dedup();
    match metrics.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(Error::business_rule(format!("no meter bills product {product_id}"))),
        several => {
            let message = format!("is required: the product is billed by {}", several.join(", "));
            Err(Error::field("metric_key", domain::error::FieldErrorCode::Required, message))
        }
    }
}

/// The wallets of some customers.
pub(super) struct Wallets(HashMap<CustomerId, Vec<WalletFacts>>);

#[derive(FromRow)]
struct WalletFacts {
    id: WalletId,
    customer_id: CustomerId,
    currency: Currency,
    is_primary: bool,
}

impl Wallets {
    /// Reads them.
    ///
    /// # Errors
    /// As every statement.
    pub async fn load(scope: &Scope, conn: &mut PgConnection, customers: &HashSet<CustomerId>) -> Result<Self> {
        let rows: Vec<WalletFacts> = sqlx::query_as(
            "SELECT id, customer_id, currency, is_primary FROM wallet
             WHERE workspace_id IS NOT DISTINCT FROM $1 AND customer_id = ANY($2)",
        )
        .bind(scope.workspace_id)
        .bind(customers.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
        .context("looking for the wallets of reservations")?;
        let mut wallets: HashMap<CustomerId, Vec<WalletFacts>> = HashMap::new();
        for row in rows {
            wallets.entry(row.customer_id).or_default().push(row);
        }
        Ok(Self(wallets))
    }

    /// The wallet in a currency, or the primary one (reserve.md V4).
    ///
    /// # Errors
    /// 422 `WALLET_NOT_FOUND`.
    pub fn of(&self, customer_id: CustomerId, currency: Option<Currency>) -> Result<(WalletId, Currency)> {
        let mut own = self.0.get(&customer_id).into_iter().flatten();
        let found = own.find(|wallet| currency.map_or(wallet.is_primary, |currency| wallet.currency == currency));
        found.map(|wallet| (wallet.id, wallet.currency)).ok_or_else(|| {
            let kind = currency.map_or_else(|| "primary wallet".to_owned(), |currency| format!("wallet in {currency}"));
            Error::rule("WALLET_NOT_FOUND", format!("customer {customer_id} has no {kind}"))
        })
    }
}

/// A window of a subscription.
pub(super) type WindowKey = (SubscriptionId, Instant);

/// Locks the rows of windows, all or those that are free, and makes those where nothing is counted yet: while one is locked no
/// checkpoint, no void and no invoice changes what the window holds (rules C5, D1, D3). The answer is what is locked.
///
/// # Errors
/// As every statement.
pub(super) async fn lock_windows(
    tx: &mut Tx,
    windows: &HashMap<WindowKey, (Arc<SubscriptionTerms>, Period)>,
    now: Instant,
    patience: Patience,
) -> Result<HashSet<WindowKey>> {
    let mut locked = lock_known(tx, windows.keys().copied().collect(), patience).await?;
    let missing: Vec<_> = windows.iter().filter(|(key, _)| !locked.contains(*key)).map(|(_, window)| window).collect();
    if missing.is_empty() {
        return Ok(locked);
    }
    let made: Vec<WindowKey> = sqlx::query_as(
        "INSERT INTO usage_window (subscription_id, window_start, window_end, workspace_id, customer_id, partition, status,
                                   position, event_count, state, updated_at)
         SELECT w.subscription_id, w.window_start, w.window_end, w.workspace_id, w.customer_id, w.partition, 'open', 0, 0,
             $7, $8
         FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::uuid[], $5::uuid[], $6::int[])
             AS w (subscription_id, window_start, window_end, workspace_id, customer_id, partition)
         ORDER BY w.subscription_id, w.window_start
         ON CONFLICT DO NOTHING RETURNING subscription_id, window_start",
    )
    .bind(missing.iter().map(|(terms, _)| terms.id.0).collect::<Vec<_>>())
    .bind(missing.iter().map(|(_, window)| window.start).collect::<Vec<_>>())
    .bind(missing.iter().map(|(_, window)| window.end).collect::<Vec<_>>())
    .bind(missing.iter().map(|(terms, _)| terms.workspace_id.0).collect::<Vec<_>>())
    .bind(missing.iter().map(|(terms, _)| terms.customer_id.0).collect::<Vec<_>>())
    .bind(missing.iter().map(|(terms, _)| terms.home_partition.cast_signed()).collect::<Vec<_>>())
    .bind(WindowState::new().encode())
    .bind(now)
    .fetch_all(tx.conn())
    .await
    .context("making usage windows")?;
    locked.extend(made);
    if patience == Patience::Wait && locked.len() < windows.len() {
        // Somebody else has made them meanwhile.
        let left = windows.keys().filter(|key| !locked.contains(*key)).copied().collect();
        locked.extend(lock_known(tx, left, patience).await?);
    }
    Ok(locked)
}

async fn lock_known(tx: &mut Tx, keys: Vec<WindowKey>, patience: Patience) -> Result<HashSet<WindowKey>> {
    let (ids, starts): (Vec<_>, Vec<_>) = keys.into_iter().map(|(id, start)| (id.0, start)).unzip();
    let sql = format!(
        "SELECT subscription_id, window_start
         FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
         JOIN usage_window USING (subscription_id, window_start)
         ORDER BY subscription_id, window_start {}",
        patience.clause()
    );
    let locked: Vec<WindowKey> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(ids)
        .bind(starts)
        .fetch_all(tx.conn())
        .await
        .context("locking usage windows")?;
    Ok(locked.into_iter().collect())
}
