//! The meters of a run: those of the sample catalog, and further ones with metrics of their own.

use client::sample::{Catalog, METRICS};
use client::views::Created;
use client::{Api, ClientError};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::plan::Shape;

/// The region that filtered meters count …
pub const NEAR: &str = "eu";
/// … and the other one.
pub const FAR: &str = "us";

/// What an event of one meter names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meter {
    /// USAGE product.
    pub product_id: Uuid,
    /// Kind of consumption.
    pub metric_key: String,
}

/// Creates what the catalog lacks: further meters sum, and are bound to the products of the catalog in turn.
///
/// # Errors
/// The first refusal.
pub async fn create(api: &Api, catalog: &Catalog, run: &str, shape: Shape) -> Result<Vec<Meter>, ClientError> {
    let own = catalog.products.iter().zip(METRICS);
    let mut meters: Vec<Meter> =
        own.map(|(product_id, metric)| Meter { product_id: *product_id, metric_key: metric.to_owned() }).collect();
    for number in meters.len()..shape.meters {
        // Packages would make every event a cent: only the two staircases take more.
        let product_id = catalog.products[number % 2];
        let metric_key = format!("metric_{number}_{run}");
        let mut body = json!({"key": metric_key, "name": metric_key, "metric_key": metric_key, "function": "SUM"});
        if shape.is_filtered(number) {
            body["filter"] = filter();
        }
        let meter: Created = api.post("/v1/meters", &body).await?;
        let binding = json!({"meter_id": meter.id, "role": "PRIMARY"});
        let _binding: Created = api.post(&format!("/v1/products/{product_id}/meter-bindings"), &binding).await?;
        meters.push(Meter { product_id, metric_key });
    }
    Ok(meters)
}

/// Two leaves, of which one is always true.
fn filter() -> Value {
    json!({"root": {"op": "AND", "children": [
        {"field": "dimension_vars.region", "operator": "EQ", "value": NEAR},
        {"field": "quantity", "operator": "GT", "value": "0"},
    ]}})
}
