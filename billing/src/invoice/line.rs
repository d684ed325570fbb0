//! Lines of an invoice and the atoms that explain them (invoices.md 3, usage.md 5).

use chrono::{DateTime, Utc};
use currency::FXPolicy;
use domain::{
    BillingTiming, BindingId, ChargeKind, Currency, InvoiceId, InvoiceLineId, JsonMap, MeterId, Money, PriceId,
    ProductId, SubscriptionItemId, SupplyType, TaxCategoryCode, TaxType, VersionId,
};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, Row};
use utoipa::ToSchema;
use uuid::Uuid;

use super::words::{AppliesAt, InvoiceLineType};
use store::money;

/// Columns of [`InvoiceLineDTO`], from `invoice_line line` joined with `invoice`.
pub(crate) const COLUMNS: &str = "line.id, line.invoice_id, line.position, line.line_type, line.charge_kind, \
     line.applies_at, line.billing_timing, line.product_id, line.price_id, line.price_version_id, line.plan_version_id, \
     line.subscription_item_id, line.description, line.quantity, line.unit_amount, line.amount, line.discount_amount, \
     line.total, line.period_start, line.period_end, line.tax_rate, line.tax_type, line.tax_amount, \
     line.tax_category_code, line.tax_exemption_code, line.tax_exemption_reason, line.supply_type, line.tax_rule_id, \
     line.reverse_charge, line.atoms, line.metadata, invoice.currency";

/// One typed charge.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct InvoiceLine {
    /// Identity.
    pub id: InvoiceLineId,
    /// Its invoice.
    pub invoice_id: InvoiceId,
    /// Order, from 1.
    pub position: i32,
    /// What it charges.
    pub line_type: InvoiceLineType,
    /// Every period, from usage, or once.
    pub charge_kind: ChargeKind,
    /// When the charge falls due.
    #[schema(required)]
    pub applies_at: Option<AppliesAt>,
    /// In advance or in arrears.
    #[schema(required)]
    pub billing_timing: Option<BillingTiming>,
    /// Product.
    #[schema(required)]
    pub product_id: Option<ProductId>,
    /// Price.
    #[schema(required)]
    pub price_id: Option<PriceId>,
    /// Its version: with the atoms it recomputes the amount years later.
    #[schema(required)]
    pub price_version_id: Option<VersionId>,
    /// Plan version.
    #[schema(required)]
    pub plan_version_id: Option<VersionId>,
    /// Item of the subscription.
    #[schema(required)]
    pub subscription_item_id: Option<SubscriptionItemId>,
    /// For the customer.
    pub description: String,
    /// Units before an allowance.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// Rate of one unit; where tiers had several, the amount over the quantity.
    #[schema(value_type = String)]
    pub unit_amount: Decimal,
    /// Net.
    pub amount: Money,
    /// Reduction in `amount`.
    pub discount_amount: Money,
    /// Gross.
    pub total: Money,
    /// First instant of what is charged.
    #[schema(required)]
    pub period_start: Option<DateTime<Utc>>,
    /// First instant after it.
    #[schema(required)]
    pub period_end: Option<DateTime<Utc>>,
    /// Percent.
    #[schema(value_type = String)]
    pub tax_rate: Decimal,
    /// Kind of tax.
    #[schema(required)]
    pub tax_type: Option<TaxType>,
    /// Share of the group's tax.
    pub tax_amount: Money,
    /// EN 16931 category.
    pub tax_category_code: TaxCategoryCode,
    /// Code of an exemption.
    #[schema(required)]
    pub tax_exemption_code: Option<String>,
    /// Text of an exemption.
    #[schema(required)]
    pub tax_exemption_reason: Option<String>,
    /// Goods or services.
    #[schema(required)]
    pub supply_type: Option<SupplyType>,
    /// Pinned rule.
    #[schema(required)]
    pub tax_rule_id: Option<Uuid>,
    /// The buyer owes the tax.
    pub reverse_charge: bool,
    /// Pinned exchange rate; null where nothing was converted.
    #[schema(required, value_type = Option<String>)]
    pub fx_rate: Option<Decimal>,
    /// Which rate was pinned.
    #[schema(required)]
    pub fx_policy: Option<FXPolicy>,
    /// Currency of the price, where it was converted.
    #[schema(required)]
    pub source_currency: Option<Currency>,
    /// Amount before the conversion.
    #[schema(required)]
    pub source_amount: Option<Money>,
    /// Promotion of a discount.
    #[schema(required)]
    pub promotion_id: Option<Uuid>,
    /// Record of a proration.
    #[schema(required)]
    pub proration_record_id: Option<Uuid>,
    /// Free values.
    #[schema(value_type = Object)]
    pub metadata: Json<JsonMap>,
}

/// A line with its atoms in short.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct InvoiceLineDTO {
    /// The line.
    #[serde(flatten)]
    pub line: InvoiceLine,
    /// What it is made of.
    pub atoms: Vec<InvoiceLineAtomDTO>,
}

/// A line with its atoms in full, as it is stored.
#[derive(Clone, Debug)]
pub struct StoredLine {
    /// The line.
    pub line: InvoiceLine,
    /// What it is made of.
    pub atoms: Vec<InvoiceLineAtom>,
}

impl From<StoredLine> for InvoiceLineDTO {
    fn from(stored: StoredLine) -> Self {
        Self { line: stored.line, atoms: stored.atoms.into_iter().map(InvoiceLineAtomDTO::from).collect() }
    }
}

impl FromRow<'_, PgRow> for StoredLine {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        let atoms: Json<Vec<InvoiceLineAtom>> = row.try_get("atoms")?;
        let line = InvoiceLine {
            id: row.try_get("id")?,
            invoice_id: row.try_get("invoice_id")?,
            position: row.try_get("position")?,
            line_type: row.try_get("line_type")?,
            charge_kind: row.try_get("charge_kind")?,
            applies_at: row.try_get("applies_at")?,
            billing_timing: row.try_get("billing_timing")?,
            product_id: row.try_get("product_id")?,
            price_id: row.try_get("price_id")?,
            price_version_id: row.try_get("price_version_id")?,
            plan_version_id: row.try_get("plan_version_id")?,
            subscription_item_id: row.try_get("subscription_item_id")?,
            description: row.try_get("description")?,
            quantity: row.try_get("quantity")?,
            unit_amount: row.try_get("unit_amount")?,
            amount: money(row, "amount", currency)?,
            discount_amount: money(row, "discount_amount", currency)?,
            total: money(row, "total", currency)?,
            period_start: row.try_get("period_start")?,
            period_end: row.try_get("period_end")?,
            tax_rate: row.try_get("tax_rate")?,
            tax_type: row.try_get("tax_type")?,
            tax_amount: money(row, "tax_amount", currency)?,
            tax_category_code: row.try_get("tax_category_code")?,
            tax_exemption_code: row.try_get("tax_exemption_code")?,
            tax_exemption_reason: row.try_get("tax_exemption_reason")?,
            supply_type: row.try_get("supply_type")?,
            tax_rule_id: row.try_get("tax_rule_id")?,
            reverse_charge: row.try_get("reverse_charge")?,
            fx_rate: None,
            fx_policy: None,
            source_currency: None,
            source_amount: None,
            promotion_id: None,
            proration_record_id: None,
            metadata: row.try_get("metadata")?,
        };
        Ok(Self { line, atoms: atoms.0 })
    }
}

/// The smallest homogeneous piece of a line: one price version in one segment of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceLineAtom {
    /// Identity.
    pub id: Uuid,
    /// Its line.
    pub line_id: InvoiceLineId,
    /// First instant.
    pub segment_start: DateTime<Utc>,
    /// First instant after it.
    pub segment_end: DateTime<Utc>,
    /// Units before an allowance.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// Rate of one unit; where tiers had several, the amount over the quantity.
    #[schema(value_type = String)]
    pub unit_amount: Decimal,
    /// Net.
    pub net_amount: Money,
    /// Seconds that are charged, where only a part of an interval is.
    #[schema(required)]
    pub proration_numerator: Option<i64>,
    /// Seconds of the interval.
    #[schema(required)]
    pub proration_denominator: Option<i64>,
    /// Price version.
    #[schema(required)]
    pub price_version_id: Option<VersionId>,
    /// Exchange rate, where it was converted.
    #[schema(required, value_type = Option<String>)]
    pub fx_rate: Option<Decimal>,
    /// The tier walk.
    pub tiers: Vec<InvoiceLineAtomTier>,
    /// Taxes on it.
    pub tax_components: Vec<InvoiceLineAtomTaxComponent>,
    /// Binding that counted.
    #[schema(required)]
    pub binding_id: Option<BindingId>,
    /// Meter that counted.
    #[schema(required)]
    pub meter_id: Option<MeterId>,
    /// Its version.
    #[schema(required)]
    pub meter_version_id: Option<VersionId>,
    /// Usage window.
    #[schema(required)]
    pub window_start: Option<DateTime<Utc>>,
    /// Its end.
    #[schema(required)]
    pub window_end: Option<DateTime<Utc>>,
    /// Units that an allowance covered.
    #[schema(required, value_type = Option<String>)]
    pub allowance_quantity: Option<Decimal>,
    /// Units that were priced.
    #[schema(required, value_type = Option<String>)]
    pub billable_quantity: Option<Decimal>,
    /// Events counted.
    #[schema(required)]
    pub event_count: Option<u64>,
}

/// One tier of a walk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceLineAtomTier {
    /// Position of the tier.
    pub tier_order: u32,
    /// Lower bound, exclusive.
    #[schema(value_type = String)]
    pub from: Decimal,
    /// Upper bound, inclusive; null = open.
    #[schema(required, value_type = Option<String>)]
    pub to: Option<Decimal>,
    /// Units that it took.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// As in the price.
    #[schema(value_type = String)]
    pub unit_amount: Decimal,
    /// As in the price.
    #[schema(value_type = String)]
    pub flat_amount: Decimal,
    /// Rounded contribution.
    pub amount: Money,
}

/// One tax on an atom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InvoiceLineAtomTaxComponent {
    /// Rule.
    #[schema(required)]
    pub tax_rule_id: Option<Uuid>,
    /// Kind.
    pub tax_type: TaxType,
    /// Percent.
    #[schema(value_type = String)]
    pub rate: Decimal,
    /// Order among the taxes.
    pub apply_order: i32,
    /// On the amount with the taxes before it.
    pub is_compound: bool,
    /// Within the price.
    pub inclusive: bool,
    /// What is taxed.
    pub taxable_amount: Money,
    /// Tax.
    pub tax_amount: Money,
    /// EN 16931 category.
    pub category_code: TaxCategoryCode,
}

/// An atom in short.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct InvoiceLineAtomDTO {
    /// Identity.
    pub id: Uuid,
    /// First instant.
    pub segment_start: DateTime<Utc>,
    /// First instant after it.
    pub segment_end: DateTime<Utc>,
    /// Units before an allowance.
    #[schema(value_type = String)]
    pub quantity: Decimal,
    /// Rate of one unit.
    #[schema(value_type = String)]
    pub unit_amount: Decimal,
    /// Net.
    pub net_amount: Money,
    /// Price version.
    #[schema(required)]
    pub price_version_id: Option<VersionId>,
    /// Meter that counted.
    #[schema(required)]
    pub meter_id: Option<MeterId>,
    /// Events counted.
    #[schema(required)]
    pub event_count: Option<u64>,
}

impl From<InvoiceLineAtom> for InvoiceLineAtomDTO {
    fn from(atom: InvoiceLineAtom) -> Self {
        Self {
            id: atom.id,
            segment_start: atom.segment_start,
            segment_end: atom.segment_end,
            quantity: atom.quantity,
            unit_amount: atom.unit_amount,
            net_amount: atom.net_amount,
            price_version_id: atom.price_version_id,
            meter_id: atom.meter_id,
            event_count: atom.event_count,
        }
    }
}
