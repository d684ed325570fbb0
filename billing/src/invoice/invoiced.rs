//! What finalized invoices have charged of a usage window already: a window that is billed more than once is charged the
//! difference (usage.md 5, `CORRECT`; thresholds-and-alerts.md 4, `INVOICE`). It is read from the invoices themselves, less
//! what credit notes have taken back, so that there is no second account of it.

use domain::period::Period;
use domain::{
    Currency, Instant, InvoiceId, InvoiceLineId, Money, PriceId, ProductId, Result, SubscriptionId, SubscriptionItemId,
    SupplyType, TaxCategoryCode, VersionId,
};
use rust_decimal::Decimal;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};
use store::StoreError;

use super::line::InvoiceLineAtom;
use store::money;

/// What credit notes have taken back of an invoice line that is named `line`.
pub(crate) const CREDITED: &str = "
    SELECT coalesce(sum(c.amount), 0) AS net, coalesce(sum(c.tax_amount), 0) AS tax,
        coalesce(sum(c.amount) FILTER (WHERE note.refund_transaction_id IS NOT NULL), 0) AS refunded
    FROM credit_note_line c JOIN credit_note note ON note.id = c.credit_note_id
    WHERE c.invoice_line_id = line.id AND note.status NOT IN ('draft', 'void')";

/// A usage line of a finalized invoice.
#[derive(Clone, Debug)]
pub struct Invoiced {
    /// Its invoice.
    pub(crate) invoice_id: InvoiceId,
    /// The line.
    pub(crate) line_id: InvoiceLineId,
    /// Whose usage.
    pub(crate) subscription_id: SubscriptionId,
    /// First instant of the window.
    pub(crate) window_start: Instant,
    /// What it charged: from the start of the window on.
    pub(crate) period: Period,
    /// Product.
    pub(crate) product_id: ProductId,
    /// Metric.
    pub(crate) metric_key: Option<String>,
    /// Sibling of a keyed product.
    pub(crate) price_key: Option<String>,
    /// Wallet pin.
    pub(crate) wallet_currency: Option<Currency>,
    /// Price.
    pub(crate) price_id: PriceId,
    /// Its version.
    pub(crate) price_version_id: VersionId,
    /// Item of the subscription.
    pub(crate) subscription_item_id: Option<SubscriptionItemId>,
    /// For the customer.
    pub(crate) description: String,
    /// Units before an allowance.
    pub(crate) quantity: Decimal,
    /// Units that were priced.
    pub(crate) billable_quantity: Decimal,
    /// Rate of one unit.
    pub(crate) unit_amount: Decimal,
    /// Net.
    pub(crate) amount: Money,
    /// Net that credit notes have taken back.
    pub(crate) credited: Money,
    /// The part of it that went with refunds: the usage stays charged, its money was given back.
    pub(crate) refunded: Money,
    /// Tax of the line.
    pub(crate) tax_amount: Money,
    /// Tax that credit notes have taken back.
    pub(crate) tax_credited: Money,
    /// Percent.
    pub(crate) tax_rate: Decimal,
    /// EN 16931 category.
    pub(crate) tax_category: TaxCategoryCode,
    /// Goods or services.
    pub(crate) supply_type: SupplyType,
}

impl Invoiced {
    /// Net that stands after credit notes: what can still be taken back.
    pub(crate) fn standing(&self) -> Result<Money> {
        Ok(self.amount.sub(self.credited)?)
    }

    /// Net that is charged for the usage. Refunds do not lower it, or else the next difference would charge it again.
    pub(crate) fn charged(&self) -> Result<Money> {
        Ok(self.standing()?.add(self.refunded)?)
    }

    /// What the lines of these windows have charged, in the order of their invoices. A window that no invoice has charged
    /// yet costs one look at its row.
    ///
    /// # Errors
    /// As every statement.
    pub async fn load(conn: &mut PgConnection, windows: &[(SubscriptionId, Instant)]) -> Result<Vec<Self>> {
        let (ids, starts): (Vec<_>, Vec<_>) = windows.iter().map(|(id, start)| (id.0, *start)).unzip();
        let sql = format!(
            "SELECT line.invoice_id, line.id, invoice.subscription_id, line.period_start, line.period_end, line.product_id,
                    line.metric_key, line.price_key, line.wallet_currency, line.price_id, line.price_version_id,
                    line.subscription_item_id, line.description, line.quantity, line.unit_amount, line.amount, line.tax_amount,
                    line.tax_rate, line.tax_category_code, line.supply_type, line.atoms, invoice.currency,
                    credit.net AS credited, credit.tax AS tax_credited, credit.refunded
             FROM unnest($1::uuid[], $2::timestamptz[]) AS asked (subscription_id, window_start)
             JOIN usage_window w USING (subscription_id, window_start)
             JOIN invoice ON invoice.subscription_id = w.subscription_id AND invoice.deleted_at IS NULL
                  AND invoice.status <> 'void' AND invoice.invoice_number IS NOT NULL
             JOIN invoice_line line ON line.invoice_id = invoice.id AND line.charge_kind = 'USAGE'
                  AND line.line_type <> 'COMMIT_TRUE_UP'
                  AND line.period_start = w.window_start
             CROSS JOIN LATERAL ({CREDITED}) AS credit
             WHERE w.billed OR w.invoiced_position IS NOT NULL
             ORDER BY invoice.subscription_id, line.period_start, invoice.sequence_number, line.position"
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(ids)
            .bind(starts)
            .fetch_all(conn)
            .await
            .context("reading what invoices have charged")
    }
}

impl FromRow<'_, PgRow> for Invoiced {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        let window_start = row.try_get("period_start")?;
        let atoms: Json<Vec<InvoiceLineAtom>> = row.try_get("atoms")?;
        Ok(Self {
            invoice_id: row.try_get("invoice_id")?,
            line_id: row.try_get("id")?,
            subscription_id: row.try_get("subscription_id")?,
            window_start,
            period: Period { start: window_start, end: row.try_get("period_end")? },
            product_id: row.try_get("product_id")?,
            metric_key: row.try_get("metric_key")?,
            price_key: row.try_get("price_key")?,
            wallet_currency: row.try_get("wallet_currency")?,
            price_id: row.try_get("price_id")?,
            price_version_id: row.try_get("price_version_id")?,
            subscription_item_id: row.try_get("subscription_item_id")?,
            description: row.try_get("description")?,
            quantity: row.try_get("quantity")?,
            billable_quantity: atoms.0.iter().filter_map(|atom| atom.billable_quantity).sum(),
            unit_amount: row.try_get("unit_amount")?,
            amount: money(row, "amount", currency)?,
            credited: money(row, "credited", currency)?,
            refunded: money(row, "refunded", currency)?,
            tax_amount: money(row, "tax_amount", currency)?,
            tax_credited: money(row, "tax_credited", currency)?,
            tax_rate: row.try_get("tax_rate")?,
            tax_category: row.try_get("tax_category_code")?,
            supply_type: row.try_get("supply_type")?,
        })
    }
}
