//! The members of answers that the demo and the load generator read. Members they do not know are ignored, as every
//! client should.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

/// An exact number from a decimal string.
///
/// # Errors
/// When it is not one.
fn decimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Decimal, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    Decimal::from_str_exact(&text).map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
}

/// Any created thing.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Created {
    /// Its id.
    pub id: Uuid,
}

/// An amount in a currency.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Money {
    /// Exact amount.
    #[serde(deserialize_with = "decimal")]
    pub value: Decimal,
    /// ISO 4217.
    pub currency: String,
}

impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.value, self.currency)
    }
}

/// Answer of the creation of a customer.
#[derive(Clone, Debug, Deserialize)]
pub struct CreatedCustomer {
    /// Its id.
    pub id: Uuid,
    /// The primary wallet that came with it.
    pub wallet: Wallet,
}

/// A wallet.
#[derive(Clone, Debug, Deserialize)]
pub struct Wallet {
    /// Its id.
    pub id: Uuid,
    /// Real money.
    pub cash_balance: Money,
    /// Promised to active holds.
    pub held_balance: Money,
    /// Usage of open periods that it will pay.
    pub accrued_balance: Money,
    /// What can still be spent.
    pub available_balance: Money,
}

/// `GET /v1/subscriptions/{id}/usage`.
#[derive(Clone, Debug, Deserialize)]
pub struct SubscriptionUsage {
    /// Whose.
    pub subscription_id: Uuid,
    /// One row per product, metric, price key and wallet pin.
    pub metrics: Vec<UsageMetric>,
}

/// One row of a subscription's usage.
#[derive(Clone, Debug, Deserialize)]
pub struct UsageMetric {
    /// USAGE product.
    pub product_id: Uuid,
    /// Kind of consumption.
    pub metric_key: String,
    /// Counted so far.
    #[serde(deserialize_with = "decimal")]
    pub quantity: Decimal,
    /// Covered by the plan.
    #[serde(deserialize_with = "decimal")]
    pub included_quantity: Decimal,
    /// Priced.
    #[serde(deserialize_with = "decimal")]
    pub overage_quantity: Decimal,
    /// Events counted so far.
    pub event_count: u64,
    /// What it costs so far.
    pub estimated_amount: Money,
}

/// A threshold that was crossed.
#[derive(Clone, Debug, Deserialize)]
pub struct Breach {
    /// Whose usage.
    pub subscription_id: Uuid,
    /// Which meter.
    pub meter_key: String,
    /// Which threshold.
    pub threshold_name: String,
    /// Its limit.
    #[serde(deserialize_with = "decimal")]
    pub threshold_value: Decimal,
    /// What was seen.
    #[serde(deserialize_with = "decimal")]
    pub observed_value: Decimal,
    /// When it was seen.
    pub occurred_at: DateTime<Utc>,
}

/// A test clock.
#[derive(Clone, Debug, Deserialize)]
pub struct TestClock {
    /// Its id.
    pub id: Uuid,
    /// `active`, `advancing`, `completed`.
    pub status: String,
    /// Simulated present.
    pub frozen_at: DateTime<Utc>,
}

/// Head of an invoice.
#[derive(Clone, Debug, Deserialize)]
pub struct Invoice {
    /// Its id.
    pub id: Uuid,
    /// Whom it asks for money.
    pub customer_id: Uuid,
    /// What it is for.
    pub subscription_id: Option<Uuid>,
    /// Assigned when it is finalized.
    pub invoice_number: Option<String>,
    /// `draft`, `finalized`, `paid`, …
    pub status: String,
    /// Net.
    pub subtotal: Money,
    /// Tax.
    pub tax_amount: Money,
    /// Gross.
    pub total: Money,
    /// Still to pay.
    pub amount_due: Money,
    /// First instant of the billed period.
    pub billing_period_start: Option<DateTime<Utc>>,
}

/// An invoice with its lines.
#[derive(Clone, Debug, Deserialize)]
pub struct InvoiceWithLines {
    /// Its lines.
    pub lines: Vec<InvoiceLine>,
}

/// One line of an invoice.
#[derive(Clone, Debug, Deserialize)]
pub struct InvoiceLine {
    /// `RECURRING`, `USAGE`, …
    pub line_type: String,
    /// What is charged.
    pub product_id: Option<Uuid>,
    /// For people.
    pub description: String,
    /// How much of it.
    #[serde(deserialize_with = "decimal")]
    pub quantity: Decimal,
    /// Net.
    pub amount: Money,
}
