//! Guards against usage of a price key that nobody knows: billed by the wrong price, refused in silence, or lost (usage.md R5
//! and R6, products.md rule 5; promise 2).

use client::views::Created;
use client::{Api, ClientError};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::site::{Site, eventually};
use crate::tenant::Tenant;

const ANNOUNCED: &str = "SELECT count(*) FROM outbox WHERE event_type = 'usage_event.dropped'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmatched_key_is_treated_by_the_policy_of_its_product() {
    let site = Site::new().await;
    let server = site.server("server", &[]).await;
    let tenant = Tenant::create(&server, 1).await;

    // Each product's 7 calls on "mars" match no price.
    let rejecting = Keyed::create(&tenant, "reject").await;
    let answer = rejecting.send_all().await;
    assert_eq!(outline(&answer), (2, 0, 1, vec!["ACCEPTED", "ACCEPTED", "REJECTED"]));
    let error = &answer["results"][2]["error"];
    assert_eq!((&error["status"], &error["code"]), (&json!(400), &json!("VALIDATION")), "{error}");
    assert_eq!(error["fields"][0]["field"], "price_key", "{error}");
    assert_eq!(site.number(ANNOUNCED).await, 1);
    // Alone it is the answer.
    assert_eq!(rejecting.refusal(&rejecting.event("mars", 7)).await, (400, "VALIDATION".to_owned()));
    assert_eq!(site.number(ANNOUNCED).await, 2);

    let dropping = Keyed::create(&tenant, "drop").await;
    let answer = dropping.send_all().await;
    assert_eq!(outline(&answer), (2, 1, 0, vec!["ACCEPTED", "ACCEPTED", "DROPPED"]));
    assert!(answer["results"][2]["reason"].as_str().is_some_and(|reason| reason.contains("price_key")), "{answer}");
    assert_eq!(site.number(ANNOUNCED).await, 3);

    let remapping = Keyed::create(&tenant, "use_default").await;
    let answer = remapping.send_all().await;
    assert_eq!(outline(&answer), (3, 0, 0, vec!["ACCEPTED", "ACCEPTED", "ACCEPTED"]));
    assert_eq!(remapping.send_all().await["results"], answer["results"], "a repeat has the same ids");
    assert_eq!(site.number(ANNOUNCED).await, 3);

    // 10 calls at 0.10 and 5 at 0.20; what was routed to the default key is in the same staircase as the key's own.
    let (eu, us) = (("eu", "10", 1, "1.00"), ("us", "5", 1, "1.00"));
    rejecting.await_usage(&[eu, us]).await;
    dropping.await_usage(&[eu, us]).await;
    remapping.await_usage(&[("eu", "17", 2, "1.70"), us]).await;
    assert_eq!(remapping.events().await, [("eu", "10", false), ("eu", "7", true), ("us", "5", false)].map(owned));
    assert_eq!(dropping.events().await, [("eu", "10", false), ("us", "5", false)].map(owned));

    // What was not counted has not taken its key: with a price it counts, once.
    rejecting.price("mars", "0.50").await;
    dropping.price("mars", "0.50").await;
    for product in [&rejecting, &dropping] {
        for _ in 0..2 {
            assert_eq!(outline(&product.send_all().await).0, 3);
        }
        product.await_usage(&[eu, ("mars", "7", 1, "3.50"), us]).await;
    }
    assert_eq!(site.number(ANNOUNCED).await, 3);
    assert_eq!(site.number("SELECT count(*) FROM usage_rejection").await, 0);

    // A keyed product needs a key whatever its policy, another one takes none.
    let mut keyless = remapping.event("mars", 1);
    keyless.as_object_mut().expect("an object").remove("price_key");
    assert_eq!(remapping.refusal(&keyless).await, (400, "VALIDATION".to_owned()));
    let mut keyed = serde_json::to_value(tenant.event(0)).expect("JSON");
    keyed["price_key"] = json!("eu");
    assert_eq!(remapping.refusal(&keyed).await, (400, "VALIDATION".to_owned()));
}

/// A product whose calls are priced by region: "eu" at 0.10, which is its default, and "us" at 0.20.
struct Keyed<'a> {
    api: &'a Api,
    tenant: &'a Tenant,
    policy: &'static str,
    product: Uuid,
}

impl<'a> Keyed<'a> {
    async fn create(tenant: &'a Tenant, policy: &'static str) -> Self {
        let api = &tenant.api;
        let mut product = json!({
            "name": policy, "external_id": policy, "type": "USAGE", "pricing_model": "STAIRCASE",
            "price_key_label": "region", "unmatched_price_key_policy": policy,
        });
        if policy == "use_default" {
            product["default_price_key"] = json!("eu");
        }
        let product: Created = api.post("/v1/products", &product).await.expect("a product");
        let meter = json!({"key": policy, "name": policy, "metric_key": "calls", "function": "SUM"});
        let meter: Created = api.post("/v1/meters", &meter).await.expect("a meter");
        let path = format!("/v1/products/{}/meter-bindings", product.id);
        let binding = json!({"meter_id": meter.id, "role": "PRIMARY"});
        let _: Created = api.post(&path, &binding).await.expect("a binding");
        let keyed = Self { api, tenant, policy, product: product.id };
        keyed.price("eu", "0.10").await;
        keyed.price("us", "0.20").await;
        keyed
    }

    async fn price(&self, key: &str, rate: &str) {
        let tiers = json!([{"up_to": null, "unit_amount": rate, "flat_amount": "0"}]);
        let price = json!({"product_id": self.product, "price_key": key, "currency": "EUR", "tiers": tiers});
        let _: Created = self.api.post("/v1/prices", &price).await.expect("a price");
    }

    fn event(&self, key: &str, quantity: u32) -> Value {
        let mut event = serde_json::to_value(self.tenant.event(0)).expect("JSON");
        event["product_id"] = json!(self.product);
        event["metric_key"] = json!("calls");
        event["price_key"] = json!(key);
        event["quantity"] = json!(quantity.to_string());
        event["idempotency_key"] = json!(format!("{}-{key}", self.policy));
        event
    }

    /// Sends an event per key in one batch.
    async fn send_all(&self) -> Value {
        let events = [self.event("eu", 10), self.event("us", 5), self.event("mars", 7)];
        self.api.post("/v1/usage-events", &json!({ "events": events })).await.expect("a batch is answered per event")
    }

    /// Status and code with which an event is refused.
    async fn refusal(&self, event: &Value) -> (u16, String) {
        let refused = self.api.post::<Value>("/v1/usage-events", event).await;
        let Err(ClientError::Refused { problem, .. }) = refused else { panic!("must be refused: {refused:?}") };
        (problem.status, problem.code)
    }

    /// Waits until the product's usage is this, by price key: quantity, events, amount.
    async fn await_usage(&self, expected: &[(&str, &str, u64, &str)]) {
        let expected = json!(expected);
        eventually("the usage by price key", async || json!(self.usage().await), |rows| *rows == expected).await;
    }

    /// The same of what is shown now, in order of price keys.
    async fn usage(&self) -> Vec<Value> {
        let path = format!("/v1/subscriptions/{}/usage", self.tenant.subscribers[0].subscription_id);
        let usage: Value = self.api.get(&path).await.expect("the usage of a subscription");
        let rows = usage["metrics"].as_array().expect("rows").iter();
        let mine = rows.filter(|row| row["product_id"] == json!(self.product));
        let shown = |row: &Value| {
            let amount = &row["estimated_amount"]["value"];
            json!([row["price_key"], row["quantity"], row["event_count"], amount])
        };
        let mut rows: Vec<Value> = mine.map(shown).collect();
        rows.sort_by_key(|row| row[0].to_string());
        rows
    }

    /// Price key, quantity and whether the key was remapped, of every stored event of the product.
    async fn events(&self) -> Vec<(String, String, bool)> {
        let path = format!("/v1/usage-events?product_id={}", self.product);
        let events: Vec<Value> = self.api.list(&path).await.expect("events");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut events: Vec<_> = events
            .iter()
            .map(|event| (text(&event["price_key"]), text(&event["quantity"]), event["price_key_remapped"] == true))
            .collect();
        events.sort();
        events
    }
}

fn owned((key, quantity, is_remapped): (&str, &str, bool)) -> (String, String, bool) {
    (key.to_owned(), quantity.to_owned(), is_remapped)
}

/// The numbers of accepted, dropped and rejected events, and the status of each.
fn outline(answer: &Value) -> (u64, u64, u64, Vec<&str>) {
    let number = |name: &str| answer[name].as_u64().expect("a number");
    let results = answer["results"].as_array().expect("results");
    let statuses = results.iter().map(|result| result["status"].as_str().expect("a status")).collect();
    (number("accepted"), number("dropped"), number("rejected"), statuses)
}
