//! Rows of `usage_reservation`: the usage that a hold authorizes.

use std::collections::{BTreeMap, HashMap};

use domain::{
    Error, HoldId, Instant, Money, ProductId, Result, Scope, SubscriptionId, UsageEvent, WalletId, WalletTransactionId,
};
use rust_decimal::Decimal;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Row};
use store::{StoreError, Tx};

use super::Exchange;
use crate::record::Record;

/// A reservation as it is stored.
#[derive(Clone, Debug)]
pub(super) struct Reservation {
    pub hold_id: HoldId,
    pub wallet_id: WalletId,
    pub window_start: Instant,
    /// The usage event that it is for; from the capture on the one that the capture has written.
    pub event: UsageEvent,
    /// Running totals of the metric that it was priced on top of.
    pub basis: Vec<u8>,
    pub net: Money,
    pub tax: Money,
    pub tax_rate: Decimal,
    /// Where the wallet has another currency than the price.
    pub exchange: Option<Exchange>,
    pub wallet_transaction_id: Option<WalletTransactionId>,
}

/// What a capture adds.
#[derive(Clone, Debug)]
pub(super) struct Capture {
    pub hold_id: HoldId,
    pub event: UsageEvent,
    pub net: Money,
    pub tax: Money,
    /// What was taken from a wallet of another currency.
    pub charge: Option<Money>,
    pub wallet_transaction_id: Option<WalletTransactionId>,
}

/// What a release adds.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub hold_id: HoldId,
    pub wallet_transaction_id: Option<WalletTransactionId>,
    pub reason: Option<String>,
}

fn encoded(event: &UsageEvent) -> bytes::Bytes {
    crate::record::encode_usage(event)
}

fn decoded(bytes: &[u8]) -> Result<UsageEvent> {
    match Record::decode(bytes) {
        Ok(Record::Usage(event)) => Ok(*event),
        Ok(Record::Control(_) | Record::CatalogChange(_)) => {
            Err(Error::invariant("a reservation holds a control record"))
        }
        Err(error) => Err(Error::internal("reading the usage event of a reservation", error)),
    }
}

impl Reservation {
    /// Writes new ones.
    pub async fn insert_all(tx: &mut Tx, scope: &Scope, all: &[Self]) -> Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        let pin = |one: &Self| one.event.wallet_currency.map(|currency| currency.to_string()).unwrap_or_default();
        sqlx::query(
            "INSERT INTO usage_reservation (hold_id, workspace_id, subscription_id, product_id, metric_key, wallet_id,
                 wallet_currency, window_start, event, basis, net, tax, tax_rate, exchange)
             SELECT r.hold_id, $1, r.subscription_id, r.product_id, r.metric_key, r.wallet_id, r.wallet_currency,
                 r.window_start, r.event, r.basis, r.net, r.tax, r.tax_rate, r.exchange
             FROM unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::uuid[], $7::text[], $8::timestamptz[],
                 $9::bytea[], $10::bytea[], $11::numeric[], $12::numeric[], $13::numeric[], $14::jsonb[])
                 AS r (hold_id, subscription_id, product_id, metric_key, wallet_id, wallet_currency, window_start, event,
                     basis, net, tax, tax_rate, exchange)",
        )
        .bind(scope.workspace_id)
        .bind(all.iter().map(|one| one.hold_id.0).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.event.subscription_id.0).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.event.product_id.0).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.event.metric_key.as_str()).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.wallet_id.0).collect::<Vec<_>>())
        .bind(all.iter().map(pin).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.window_start).collect::<Vec<_>>())
        .bind(all.iter().map(|one| encoded(&one.event).to_vec()).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.basis.as_slice()).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.net.amount()).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.tax.amount()).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.tax_rate).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.exchange.as_ref().map(Json)).collect::<Vec<_>>())
        .execute(tx.conn())
        .await
        .context("writing reservations")?;
        Ok(())
    }

    /// The reservations of holds of the scope's workspace; others are absent.
    pub async fn load(scope: &Scope, conn: &mut PgConnection, ids: &[HoldId]) -> Result<HashMap<HoldId, Self>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = sqlx::query(
            "SELECT r.*, wallet.currency FROM usage_reservation r JOIN wallet ON wallet.id = r.wallet_id
             WHERE r.workspace_id = $1 AND r.hold_id = ANY($2)",
        )
        .bind(scope.workspace_id)
        .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
        .context("reading reservations")?;
        rows.iter().map(|row| Self::from_row(row).map(|one| (one.hold_id, one))).collect()
    }

    fn from_row(row: &PgRow) -> Result<Self> {
        let read = || -> sqlx::Result<_> {
            let own: domain::Currency = row.try_get("currency")?;
            let exchange: Option<Json<Exchange>> = row.try_get("exchange")?;
            let amounts: (Decimal, Decimal) = (row.try_get("net")?, row.try_get("tax")?);
            let event: Vec<u8> = row.try_get("event")?;
            let ids = (row.try_get("hold_id")?, row.try_get("wallet_id")?, row.try_get("wallet_transaction_id")?);
            Ok((own, exchange.map(|Json(exchange)| exchange), amounts, event, ids))
        };
        let (own, exchange, (net, tax), event, (hold_id, wallet_id, wallet_transaction_id)) =
            read().context("reading a reservation")?;
        let currency = exchange.as_ref().map_or(own, |exchange| exchange.fx.source_currency);
        Ok(Self {
            hold_id,
            wallet_id,
            window_start: row.try_get("window_start").context("reading a reservation")?,
            event: decoded(&event)?,
            basis: row.try_get("basis").context("reading a reservation")?,
            net: Money::new(net, currency)?,
            tax: Money::new(tax, currency)?,
            tax_rate: row.try_get("tax_rate").context("reading a reservation")?,
            exchange,
            wallet_transaction_id,
        })
    }
}

impl Capture {
    /// Puts captured events in the place of the reserved ones.
    pub async fn write_all(tx: &mut Tx, scope: &Scope, all: &[Self]) -> Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "UPDATE usage_reservation SET event = c.event, captured_net = c.net, captured_tax = c.tax,
                 captured_charge = c.charge, occurred_at = c.occurred_at, wallet_transaction_id = c.wallet_transaction_id
             FROM unnest($2::uuid[], $3::bytea[], $4::numeric[], $5::numeric[], $6::timestamptz[], $7::uuid[],
                 $8::numeric[]) AS c (hold_id, event, net, tax, occurred_at, wallet_transaction_id, charge)
             WHERE workspace_id = $1 AND usage_reservation.hold_id = c.hold_id",
        )
        .bind(scope.workspace_id)
        .bind(all.iter().map(|one| one.hold_id.0).collect::<Vec<_>>())
        .bind(all.iter().map(|one| encoded(&one.event).to_vec()).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.net.amount()).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.tax.amount()).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.event.timestamp).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.wallet_transaction_id.map(|id| id.0)).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.charge.map(|charge| charge.amount())).collect::<Vec<_>>())
        .execute(tx.conn())
        .await
        .context("writing captures")?;
        Ok(())
    }
}

impl Release {
    /// Notes why reservations were given back.
    pub async fn write_all(tx: &mut Tx, scope: &Scope, all: &[Self]) -> Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "UPDATE usage_reservation SET wallet_transaction_id = r.wallet_transaction_id, release_reason = r.reason
             FROM unnest($2::uuid[], $3::uuid[], $4::text[]) AS r (hold_id, wallet_transaction_id, reason)
             WHERE workspace_id = $1 AND usage_reservation.hold_id = r.hold_id",
        )
        .bind(scope.workspace_id)
        .bind(all.iter().map(|one| one.hold_id.0).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.wallet_transaction_id.map(|id| id.0)).collect::<Vec<_>>())
        .bind(all.iter().map(|one| one.reason.as_deref()).collect::<Vec<_>>())
        .execute(tx.conn())
        .await
        .context("noting releases")?;
        Ok(())
    }
}

/// Usage of one metric of one product in a subscription: what a reservation is priced on top of.
pub(super) type UsageKey = (SubscriptionId, ProductId, String);

/// Usage that is promised and not counted yet, in order of its holds.
pub(super) type Promises = BTreeMap<HoldId, Promised>;

#[derive(Clone, Debug)]
pub(super) struct Promised {
    pub event: UsageEvent,
    pub is_captured: bool,
}

#[derive(FromRow)]
struct PromisedRow {
    place: i64,
    hold_id: HoldId,
    event: Vec<u8>,
    is_captured: bool,
}

/// The events of the PENDING holds, as of an instant, and of the captures that are not counted yet (rule D1). The windows are
/// locked, so that no checkpoint counts one of them meanwhile. `OFFSET 0`: what is asked leads to the rows, however few the tables
/// have while the statement is planned.
pub(super) async fn promised(
    conn: &mut PgConnection,
    asked: &BTreeMap<UsageKey, Instant>,
) -> Result<HashMap<UsageKey, Promises>> {
    let mut promises = HashMap::new();
    if asked.is_empty() {
        return Ok(promises);
    }
    let rows: Vec<PromisedRow> = sqlx::query_as(
        "WITH asked AS (
             SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[])
                 AS asked (place, subscription_id, product_id, metric_key, now)
         )
         SELECT asked.place, held.hold_id, held.event, false AS is_captured
         FROM asked CROSS JOIN LATERAL (
             SELECT r.hold_id, r.event
             FROM wallet_hold h JOIN usage_reservation r ON r.hold_id = h.id AND r.product_id = asked.product_id
             WHERE h.subscription_id = asked.subscription_id AND h.metric_key = asked.metric_key
                 AND h.status = 'PENDING' AND h.expires_at > asked.now OFFSET 0) AS held
         UNION ALL
         SELECT asked.place, captured.hold_id, captured.event, true
         FROM asked CROSS JOIN LATERAL (
             SELECT r.hold_id, r.event FROM usage_reservation r
             WHERE r.subscription_id = asked.subscription_id AND r.product_id = asked.product_id
                 AND r.metric_key = asked.metric_key AND r.captured_net IS NOT NULL AND r.counted_in IS NULL
             OFFSET 0) AS captured",
    )
    .bind((0..).take(asked.len()).collect::<Vec<i64>>())
    .bind(asked.keys().map(|(subscription, _, _)| subscription.0).collect::<Vec<_>>())
    .bind(asked.keys().map(|(_, product, _)| product.0).collect::<Vec<_>>())
    .bind(asked.keys().map(|(_, _, metric)| metric.as_str()).collect::<Vec<_>>())
    .bind(asked.values().copied().collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .context("reading promised usage")?;
    let keys: Vec<&UsageKey> = asked.keys().collect();
    for row in rows {
        let key = usize::try_from(row.place).ok().and_then(|place| keys.get(place));
        let key = key.ok_or_else(|| Error::invariant("promised usage that nobody asked for"))?;
        let promised = Promised { event: decoded(&row.event)?, is_captured: row.is_captured };
        promises.entry((*key).clone()).or_insert_with(Promises::new).insert(row.hold_id, promised);
    }
    Ok(promises)
}
