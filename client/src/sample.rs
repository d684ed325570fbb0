//! The sample catalog: an LLM API with a platform fee, tokens in and out, and requests, each with an included quantity.
//!
//! The prices stand here as integers (thousand-millionths of a euro), so that a check can compute with them without the
//! engine's arithmetic.

use chrono::{DateTime, SecondsFormat, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::views::{Created, CreatedCustomer};
use crate::{Api, Result};

/// Currency of the catalog.
pub const CURRENCY: &str = "EUR";

/// Platform fee per period, in cents.
pub const FEE_CENTS: u64 = 4_900;

/// The three kinds of consumption, in the order used everywhere here.
pub const METRICS: [&str; 3] = ["input_tokens", "output_tokens", "requests"];

/// Included quantity of each metric.
pub const INCLUDED: [u64; 3] = [50_000, 5_000, 100];

/// Thresholds on the input tokens of a subscription.
pub const THRESHOLDS: [(&str, u64); 2] = [("a quarter of a million", 250_000), ("a million", 1_000_000)];

/// A tier of a staircase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Inclusive upper bound; `None` = open.
    pub up_to: Option<u64>,
    /// Thousand-millionths of a euro per unit.
    pub nanos_per_unit: u64,
}

const fn tier(up_to: Option<u64>, nanos_per_unit: u64) -> Tier {
    Tier { up_to, nanos_per_unit }
}

/// Staircase of the input tokens.
pub const INPUT_TIERS: [Tier; 5] = [
    tier(Some(25_000), 15_000),
    tier(Some(100_000), 12_500),
    tier(Some(300_000), 10_000),
    tier(Some(1_000_000), 7_500),
    tier(None, 4_250),
];

/// Staircase of the output tokens.
pub const OUTPUT_TIERS: [Tier; 5] = [
    tier(Some(10_000), 60_000),
    tier(Some(30_000), 52_500),
    tier(Some(60_000), 45_000),
    tier(Some(200_000), 37_500),
    tier(None, 22_125),
];

/// Requests come in packages of this size …
pub const PACKAGE_REQUESTS: u64 = 50;

/// … at this price, in cents.
pub const PACKAGE_CENTS: u64 = 25;

/// The created catalog.
#[derive(Clone, Copy, Debug)]
pub struct Catalog {
    /// The published plan.
    pub plan_id: Uuid,
    /// USAGE products, in the order of [`METRICS`].
    pub products: [Uuid; 3],
    /// Meters, in the order of [`METRICS`].
    pub meters: [Uuid; 3],
    /// The platform fee.
    pub fee_product_id: Uuid,
}

/// A customer with a subscription.
#[derive(Clone, Copy, Debug)]
pub struct Subscriber {
    /// Whom.
    pub customer_id: Uuid,
    /// The primary wallet.
    pub wallet_id: Uuid,
    /// To what.
    pub subscription_id: Uuid,
}

/// What differs between subscribers.
#[derive(Clone, Debug)]
pub struct SubscriberOptions {
    /// Makes names and external ids unique: `{prefix}-0`, `{prefix}-1`, …
    pub prefix: String,
    /// Simulated time to live on.
    pub test_clock_id: Option<Uuid>,
    /// Customers with smaller numbers pay in advance, from a wallet.
    pub prepaid: usize,
    /// First instant of the first period; `None`: now.
    pub started_at: Option<DateTime<Utc>>,
    /// Day on which periods begin; `None`: that of the start.
    pub anchor_day: Option<u32>,
}

/// Creates the catalog. `suffix` keeps the keys of several catalogs in one workspace apart.
///
/// # Errors
/// The first refusal.
pub async fn create_catalog(api: &Api, suffix: &str) -> Result<Catalog> {
    let mut products = [Uuid::nil(); 3];
    let mut meters = [Uuid::nil(); 3];
    for (index, (product, meter)) in products.iter_mut().zip(&mut meters).enumerate() {
        *meter = create(api, "/v1/meters", meter_body(index, suffix)).await?;
        *product = create(api, "/v1/products", product_body(index, suffix)).await?;
        create(api, "/v1/prices", price_body(*product, usage_tiers(index))).await?;
        let binding = json!({"meter_id": meter, "role": "PRIMARY"});
        create(api, &format!("/v1/products/{product}/meter-bindings"), binding).await?;
    }
    let fee = json!({
        "name": "Platform fee", "external_id": format!("platform-fee-{suffix}"),
        "type": "FIXED_CHARGE", "pricing_model": "VOLUME",
    });
    let fee_product_id = create(api, "/v1/products", fee).await?;
    let fee_tier = json!([{"up_to": null, "unit_amount": "0", "flat_amount": cents(FEE_CENTS)}]);
    create(api, "/v1/prices", price_body(fee_product_id, fee_tier)).await?;
    let plan_id = create_plan(api, suffix, fee_product_id, &products).await?;
    Ok(Catalog { plan_id, products, meters, fee_product_id })
}

async fn create_plan(api: &Api, suffix: &str, fee: Uuid, products: &[Uuid; 3]) -> Result<Uuid> {
    let mut attached = vec![json!({"product_id": fee})];
    for (product, included) in products.iter().zip(INCLUDED) {
        attached.push(json!({"product_id": product, "included_quantity": included.to_string()}));
    }
    let body = json!({"name": "LLM API", "external_id": format!("llm-api-{suffix}"), "products": attached});
    let plan = create(api, "/v1/plans", body).await?;
    let _version: Value = api.post(&format!("/v1/plans/{plan}/publish"), &json!({})).await?;
    Ok(plan)
}

/// Creates `count` customers, each with one subscription, `connections` at a time; in the order of their numbers.
/// `done` is called after each.
///
/// # Errors
/// The first refusal.
pub async fn create_subscribers(
    api: &Api,
    catalog: &Catalog,
    count: usize,
    options: &SubscriberOptions,
    connections: usize,
    done: impl Fn(),
) -> Result<Vec<Subscriber>> {
    stream::iter(0..count)
        .map(|number| create_subscriber(api, catalog, number, options))
        .buffered(connections.max(1))
        .inspect_ok(|_| done())
        .try_collect()
        .await
}

async fn create_subscriber(
    api: &Api,
    catalog: &Catalog,
    number: usize,
    options: &SubscriberOptions,
) -> Result<Subscriber> {
    let prefix = &options.prefix;
    let mut body = json!({
        "name": format!("Customer {number}"),
        "email": format!("billing-{number}@customer.example"),
        "external_id": format!("{prefix}-{number}"),
        "customer_type": "BUSINESS",
        "billing_model": if number < options.prepaid { "PREPAID" } else { "POSTPAID" },
        "preferred_currency": CURRENCY,
        "billing_address": {"country": "DE"},
        "auto_validate_vat": false,
    });
    if let Some(clock) = options.test_clock_id {
        body["test_clock_id"] = json!(clock);
    }
    let customer: CreatedCustomer = api.post("/v1/customers", &body).await?;
    let mut body = json!({
        "customer_id": customer.id, "plan_id": catalog.plan_id, "currency": CURRENCY,
        "billing_interval_unit": "monthly", "billing_interval_count": 1, "billing_timing": "IN_ARREARS",
    });
    if let Some(start) = options.started_at {
        body["started_at"] = json!(start.to_rfc3339_opts(SecondsFormat::Micros, true));
    }
    if let Some(day) = options.anchor_day {
        body["billing_anchor_day"] = json!(day);
    }
    let subscription_id = create(api, "/v1/subscriptions", body).await?;
    Ok(Subscriber { customer_id: customer.id, wallet_id: customer.wallet.id, subscription_id })
}

async fn create(api: &Api, path: &str, body: Value) -> Result<Uuid> {
    let created: Created = api.post(path, &body).await?;
    Ok(created.id)
}

fn meter_body(index: usize, suffix: &str) -> Value {
    let metric = METRICS[index];
    let function = if metric == "requests" { "COUNT" } else { "SUM" };
    let mut thresholds = Vec::new();
    if index == 0 {
        for (name, value) in THRESHOLDS {
            let action = json!({"kind": "WEBHOOK", "event_type": "meter.threshold_breached"});
            thresholds.push(json!({
                "name": name, "comparator": "GTE", "value": value.to_string(), "basis": "ABSOLUTE",
                "actions": [action], "rearm": false,
            }));
        }
    }
    json!({
        "key": format!("{metric}_{suffix}"), "name": title(index), "metric_key": metric, "function": function,
        "unit_label": if index == 2 { "requests" } else { "tokens" }, "thresholds": thresholds,
    })
}

fn product_body(index: usize, suffix: &str) -> Value {
    json!({
        "name": title(index), "external_id": format!("{}-{suffix}", METRICS[index]), "type": "USAGE",
        "pricing_model": if index == 2 { "PACKAGE" } else { "STAIRCASE" },
    })
}

fn price_body(product: Uuid, tiers: Value) -> Value {
    json!({"product_id": product, "currency": CURRENCY, "tiers": tiers})
}

fn usage_tiers(index: usize) -> Value {
    let staircase = |tiers: &[Tier]| {
        let wire = |tier: &Tier| {
            json!({
                "up_to": tier.up_to.map(|bound| bound.to_string()),
                "unit_amount": nanos(tier.nanos_per_unit), "flat_amount": "0",
            })
        };
        Value::Array(tiers.iter().map(wire).collect())
    };
    match index {
        0 => staircase(&INPUT_TIERS),
        1 => staircase(&OUTPUT_TIERS),
        // PACKAGE reads unit_amount as the size of a package and flat_amount as its price.
        _ => json!([{
            "up_to": null, "unit_amount": PACKAGE_REQUESTS.to_string(), "flat_amount": cents(PACKAGE_CENTS),
        }]),
    }
}

/// Name of a metric for people.
#[must_use]
pub fn title(index: usize) -> &'static str {
    ["Input tokens", "Output tokens", "Requests"][index]
}

fn nanos(value: u64) -> String {
    format!("{}.{:09}", value / 1_000_000_000, value % 1_000_000_000)
}

fn cents(value: u64) -> String {
    format!("{}.{:02}", value / 100, value % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_become_decimal_strings() {
        assert_eq!(nanos(15_000), "0.000015000");
        assert_eq!(nanos(1_234_567_890), "1.234567890");
        assert_eq!(cents(4_905), "49.05");
    }

    #[test]
    fn tiers_ascend_and_the_last_is_open() {
        for tiers in [&INPUT_TIERS, &OUTPUT_TIERS] {
            let bounds: Vec<u64> = tiers.iter().filter_map(|tier| tier.up_to).collect();
            assert_eq!(bounds.len(), tiers.len() - 1);
            assert!(bounds.is_sorted_by(|a, b| a < b));
            assert!(tiers[tiers.len() - 1].up_to.is_none());
        }
    }
}
