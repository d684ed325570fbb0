//! Rows of `usage_reservation`: the usage that a hold authorizes.

use domain::{
    Error, HoldId, Instant, Money, ProductId, Result, Scope, SubscriptionId, UsageEvent, WalletId, WalletTransactionId,
};
use rust_decimal::Decimal;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use store::{StoreError, Tx};

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
    pub wallet_transaction_id: Option<WalletTransactionId>,
}

/// What a capture adds.
#[derive(Clone, Debug)]
pub(super) struct Capture<'a> {
    pub hold_id: HoldId,
    pub event: &'a UsageEvent,
    pub net: Money,
    pub tax: Money,
    pub wallet_transaction_id: Option<WalletTransactionId>,
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
    /// Writes a new one.
    pub async fn insert(&self, tx: &mut Tx, scope: &Scope) -> Result<()> {
        let event = &self.event;
        sqlx::query(
            "INSERT INTO usage_reservation (hold_id, workspace_id, subscription_id, product_id, metric_key, wallet_id,
                 wallet_currency, window_start, event, basis, net, tax, tax_rate)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        )
        .bind(self.hold_id)
        .bind(scope.workspace_id)
        .bind(event.subscription_id)
        .bind(event.product_id)
        .bind(&event.metric_key)
        .bind(self.wallet_id)
        .bind(event.wallet_currency.map(|currency| currency.to_string()).unwrap_or_default())
        .bind(self.window_start)
        .bind(encoded(event).as_ref())
        .bind(&self.basis)
        .bind(self.net.amount())
        .bind(self.tax.amount())
        .bind(self.tax_rate)
        .execute(tx.conn())
        .await
        .context("writing a reservation")?;
        Ok(())
    }

    /// The reservation of a hold of the scope's workspace.
    pub async fn get(scope: &Scope, conn: &mut PgConnection, id: HoldId) -> Result<Self> {
        let row = sqlx::query(
            "SELECT r.*, wallet.currency FROM usage_reservation r JOIN wallet ON wallet.id = r.wallet_id
             WHERE r.workspace_id = $1 AND r.hold_id = $2",
        )
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a reservation")?
        .ok_or_else(|| Error::not_found("reservation", id))?;
        Self::from_row(&row)
    }

    fn from_row(row: &PgRow) -> Result<Self> {
        let read = || -> sqlx::Result<_> {
            let currency: domain::Currency = row.try_get("currency")?;
            let amounts: (Decimal, Decimal) = (row.try_get("net")?, row.try_get("tax")?);
            let event: Vec<u8> = row.try_get("event")?;
            let ids = (row.try_get("hold_id")?, row.try_get("wallet_id")?, row.try_get("wallet_transaction_id")?);
            Ok((currency, amounts, event, ids))
        };
        let (currency, (net, tax), event, (hold_id, wallet_id, wallet_transaction_id)) =
            read().context("reading a reservation")?;
        Ok(Self {
            hold_id,
            wallet_id,
            window_start: row.try_get("window_start").context("reading a reservation")?,
            event: decoded(&event)?,
            basis: row.try_get("basis").context("reading a reservation")?,
            net: Money::new(net, currency)?,
            tax: Money::new(tax, currency)?,
            tax_rate: row.try_get("tax_rate").context("reading a reservation")?,
            wallet_transaction_id,
        })
    }
}

impl Capture<'_> {
    /// Puts the captured event in the place of the reserved one.
    pub async fn write(&self, tx: &mut Tx, scope: &Scope) -> Result<()> {
        sqlx::query(
            "UPDATE usage_reservation SET event = $3, captured_net = $4, captured_tax = $5, occurred_at = $6,
                 wallet_transaction_id = $7
             WHERE workspace_id = $1 AND hold_id = $2",
        )
        .bind(scope.workspace_id)
        .bind(self.hold_id)
        .bind(encoded(self.event).as_ref())
        .bind(self.net.amount())
        .bind(self.tax.amount())
        .bind(self.event.timestamp)
        .bind(self.wallet_transaction_id)
        .execute(tx.conn())
        .await
        .context("writing a capture")?;
        Ok(())
    }
}

/// Notes why a reservation was given back.
pub(super) async fn note_release(
    scope: &Scope,
    tx: &mut Tx,
    id: HoldId,
    movement: Option<WalletTransactionId>,
    reason: Option<&str>,
) -> Result<()> {
    sqlx::query(
        "UPDATE usage_reservation SET wallet_transaction_id = $3, release_reason = $4
         WHERE workspace_id = $1 AND hold_id = $2",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(movement)
    .bind(reason)
    .execute(tx.conn())
    .await
    .context("noting a release")?;
    Ok(())
}

/// Usage that is promised and not counted yet.
#[derive(Clone, Debug)]
pub(super) struct Promised {
    pub event: UsageEvent,
    pub is_captured: bool,
}

#[derive(FromRow)]
struct PromisedRow {
    event: Vec<u8>,
    is_captured: bool,
}

/// The events of the PENDING holds and of the captures that are not counted yet, of one metric, in order of their holds
/// (rule D1). The window is locked, so that no checkpoint counts one of them meanwhile.
pub(super) async fn promised(
    conn: &mut PgConnection,
    subscription_id: SubscriptionId,
    product_id: ProductId,
    metric_key: &str,
    now: Instant,
) -> Result<Vec<Promised>> {
    let rows: Vec<PromisedRow> = sqlx::query_as(
        "SELECT event, is_captured FROM (
             SELECT r.event, false AS is_captured, r.hold_id
             FROM wallet_hold h JOIN usage_reservation r ON r.hold_id = h.id
             WHERE h.subscription_id = $1 AND h.metric_key = $3 AND h.status = 'PENDING' AND h.expires_at > $4
               AND r.product_id = $2
             UNION ALL
             SELECT event, true, hold_id FROM usage_reservation
             WHERE subscription_id = $1 AND product_id = $2 AND metric_key = $3
               AND captured_net IS NOT NULL AND counted_in IS NULL) AS promised
         ORDER BY hold_id",
    )
    .bind(subscription_id)
    .bind(product_id)
    .bind(metric_key)
    .bind(now)
    .fetch_all(conn)
    .await
    .context("reading promised usage")?;
    let promised = |row: PromisedRow| Ok(Promised { event: decoded(&row.event)?, is_captured: row.is_captured });
    rows.into_iter().map(promised).collect()
}
