//! What PostgreSQL knows about counted events wherever they are stored: whose subscriptions are meant by a filter, which
//! events are voided, which invoice billed them. Each is one statement per page.

use std::collections::HashMap;

use domain::{Currency, Instant, InvoiceId, Position, Result, Scope, SubscriptionId, UsageEventId};
use store::{Store, StoreError};

use super::{CountedEvent, EventFilter, RowKey, StoredEvent};

/// The subscriptions that a filter allows; `None` when it names neither customer nor subscription.
///
/// A customer means all its subscriptions (P7): an event belongs to its subscription, also after customers were merged.
pub(super) async fn subscriptions(
    store: &Store,
    scope: &Scope,
    filter: &EventFilter,
) -> Result<Option<Vec<SubscriptionId>>> {
    let Some(customer_ids) = &filter.customer_ids else { return Ok(filter.subscription_ids.clone()) };
    let ids = sqlx::query_scalar(
        "SELECT id FROM subscription
         WHERE customer_id = ANY($1) AND workspace_id = $2 AND ($3::uuid[] IS NULL OR id = ANY($3))",
    )
    .bind(customer_ids)
    .bind(scope.workspace_id)
    .bind(&filter.subscription_ids)
    .fetch_all(store.pool())
    .await
    .context("reading the subscriptions of customers")?;
    Ok(Some(ids))
}

/// Completes a page with voids and invoices.
pub(super) async fn complete(store: &Store, scope: &Scope, events: Vec<CountedEvent>) -> Result<Vec<StoredEvent>> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let voids = voids(store, scope, &events).await?;
    let invoices = invoices(store, scope, &events).await?;
    let window = |counted: &CountedEvent| -> Window {
        (counted.event.subscription_id, counted.window_start, counted.event.wallet_currency)
    };
    let complete = |counted: CountedEvent| StoredEvent {
        organization_id: scope.organization_id,
        voided_at: voids.get(&counted.key()).copied(),
        invoice_id: invoice_of(invoices.get(&window(&counted)), counted.position),
        counted,
    };
    Ok(events.into_iter().map(complete).collect())
}

/// When each of these rows was voided; what is not voided is absent.
async fn voids(store: &Store, scope: &Scope, events: &[CountedEvent]) -> Result<HashMap<RowKey, Instant>> {
    let rows: Vec<(UsageEventId, i16, i64, Instant)> = sqlx::query_as(
        "SELECT event_id, partition, position, voided_at FROM usage_void WHERE event_id = ANY($1) AND workspace_id = $2",
    )
    .bind(events.iter().map(|counted| counted.event.id).collect::<Vec<_>>())
    .bind(scope.workspace_id)
    .fetch_all(store.pool())
    .await
    .context("reading voids")?;
    let key = |id, partition: i16, position| (id, u32::from(partition.unsigned_abs()), Position::from_i64(position));
    Ok(rows.into_iter().map(|(id, partition, position, at)| (key(id, partition, position), at)).collect())
}

/// The row that stands for an id among all rows of it: the first that is not voided.
pub(super) async fn standing(
    store: &Store,
    scope: &Scope,
    mut rows: Vec<CountedEvent>,
) -> Result<Option<CountedEvent>> {
    rows.sort_by_key(CountedEvent::precedence);
    if rows.len() > 1 {
        let voids = voids(store, scope, &rows).await?;
        rows.sort_by_key(|row| voids.contains_key(&row.key()));
    }
    Ok(rows.into_iter().next())
}

/// A subscription's window, and the wallet that usage in it is pinned to.
type Window = (SubscriptionId, Instant, Option<Currency>);

/// An invoice of a window, with the position up to which it charges usage.
type InvoiceRow = (SubscriptionId, Instant, Option<Currency>, Option<i64>, InvoiceId);

/// The first invoice that charges an event: it is counted up to the event's position, or was made before that was noted.
fn invoice_of(invoices: Option<&Vec<(Option<i64>, InvoiceId)>>, position: Position) -> Option<InvoiceId> {
    let mut invoices = invoices?.iter();
    let charges = |up_to: &Option<i64>| up_to.is_none_or(|up_to| position <= Position::from_i64(up_to));
    invoices.find(|(up_to, _)| charges(up_to)).map(|(_, invoice)| *invoice)
}

/// The invoices of a window, in their order: the numbered ones whose usage lines are over it, with how far they charge it.
/// Usually one; interim invoices come before it, corrections after it. In advance it is the invoice of the next period. A draft
/// bills nothing yet, a void invoice nothing any more, and usage that is pinned to a wallet has its own.
async fn invoices(
    store: &Store,
    scope: &Scope,
    events: &[CountedEvent],
) -> Result<HashMap<Window, Vec<(Option<i64>, InvoiceId)>>> {
    let mut windows: Vec<_> = events.iter().map(|c| (c.event.subscription_id, c.window_start)).collect();
    windows.sort_unstable();
    windows.dedup();
    let (subscriptions, starts): (Vec<_>, Vec<_>) = windows.into_iter().unzip();
    let rows: Vec<InvoiceRow> = sqlx::query_as(
        "SELECT DISTINCT ON (i.sequence_number, w.window_start, line.wallet_currency)
                w.subscription_id, w.window_start, line.wallet_currency, i.usage_position, i.id
         FROM unnest($1::uuid[], $2::timestamptz[]) AS w (subscription_id, window_start)
         JOIN invoice i ON i.subscription_id = w.subscription_id
         JOIN invoice_line line ON line.invoice_id = i.id AND line.charge_kind = 'USAGE' AND line.period_start = w.window_start
         WHERE i.workspace_id = $3 AND i.deleted_at IS NULL AND i.status <> 'void' AND i.invoice_number IS NOT NULL
         ORDER BY i.sequence_number, w.window_start, line.wallet_currency",
    )
    .bind(subscriptions)
    .bind(starts)
    .bind(scope.workspace_id)
    .fetch_all(store.pool())
    .await
    .context("reading the invoices of windows")?;
    let mut invoices: HashMap<Window, Vec<_>> = HashMap::new();
    for (subscription, start, pin, up_to, invoice) in rows {
        invoices.entry((subscription, start, pin)).or_default().push((up_to, invoice));
    }
    Ok(invoices)
}
