//! The fuzz target of this crate on stable Rust: the same body on pseudo-random and mutated inputs from a fixed seed. A
//! panic here would let one producer stop the door or a partition.

use domain::event::{VarValue, Vars};
use domain::{
    Currency, CustomerId, Instant, ProductId, Quantity, SubscriptionId, UsageEvent, UsageEventId, WorkspaceId,
};
use ingest::record::encode_usage;
use uuid::Uuid;

#[path = "../../fuzz/bodies/event.rs"]
mod event;
#[path = "../../fuzz/bodies/mutate.rs"]
mod mutate;

const SINGLE: &[u8] = br#"{"customer_id":"00000000-0000-0000-0000-000000000001",
"subscription_id":"00000000-0000-0000-0000-000000000002","product_id":"00000000-0000-0000-0000-000000000003",
"metric_key":"m","quantity":"12.5","timestamp":"2026-05-01T12:00:00.5Z","idempotency_key":"k-1","price_key":"p",
"external_cost_amount":"1.5","external_cost_currency":"EUR","dimension_vars":{"a":"x","b":true},"pricing_vars":{"n":1e2}}"#;

const CLOUD: &[u8] = br#"{"specversion":"1.0","id":"1","source":"s","type":"m","time":"2026-05-01T12:00:00Z",
"subject":"00000000-0000-0000-0000-000000000002","data":{"customer_id":"00000000-0000-0000-0000-000000000001",
"product_id":"00000000-0000-0000-0000-000000000003","quantity":1}}"#;

fn record() -> Vec<u8> {
    let vars: Vars =
        [("a", VarValue::Text("x".into())), ("b", VarValue::Bool(true)), ("c", VarValue::Number(Quantity::ONE))]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
    let event = UsageEvent {
        id: UsageEventId(Uuid::from_u128(1)),
        workspace_id: WorkspaceId(Uuid::from_u128(2)),
        customer_id: CustomerId(Uuid::from_u128(3)),
        subscription_id: SubscriptionId(Uuid::from_u128(4)),
        product_id: ProductId(Uuid::from_u128(5)),
        metric_key: "m".into(),
        quantity: Quantity::ONE,
        timestamp: Instant::UNIX_EPOCH,
        idempotency_key: "k".into(),
        price_key: Some("p".into()),
        price_key_remapped: true,
        external_cost: Some((rust_decimal::Decimal::ONE, Currency::EUR)),
        wallet_currency: Some(Currency::EUR),
        hold_id: None,
        dimension_vars: vars.clone(),
        pricing_vars: vars,
        accepted_at: Instant::UNIX_EPOCH,
        catalog_revision: 7,
    };
    encode_usage(&event).to_vec()
}

#[test]
fn events() {
    let batch = [br#"{"events":["#, SINGLE, b",", SINGLE, b"]}"].concat();
    let record = record();
    let seeds: &[&[u8]] = &[SINGLE, CLOUD, &batch, &record];
    mutate::drive(0x0E7E_2775, 200_000, seeds, event::run);
}
