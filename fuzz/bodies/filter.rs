// The body of the target `filter`: any JSON is refused with its fields or compiles to a filter that matches any event
// without a panic, and that is the same filter when it is stored and read again.

use std::collections::BTreeMap;

use domain::event::VarValue;
use domain::{CustomerId, Instant, ProductId, Quantity, SubscriptionId, UsageEvent, UsageEventId, WorkspaceId};
use rating::FilterTree;
use uuid::Uuid;

fn event(data: &[u8]) -> UsageEvent {
    let number = data.iter().fold(0_i64, |sum, byte| sum.wrapping_mul(256).wrapping_add(i64::from(*byte)));
    let values = [
        ("a", VarValue::Number(Quantity::from_int(number % 1_000_000))),
        ("b", VarValue::Bool(number % 2 == 0)),
        ("c", VarValue::Text(String::from_utf8_lossy(data).into_owned())),
    ];
    let vars: BTreeMap<_, _> = values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    UsageEvent {
        id: UsageEventId(Uuid::nil()),
        workspace_id: WorkspaceId(Uuid::nil()),
        customer_id: CustomerId(Uuid::nil()),
        subscription_id: SubscriptionId(Uuid::nil()),
        product_id: ProductId(Uuid::nil()),
        metric_key: "m".into(),
        quantity: Quantity::from_int(number % 1_000),
        timestamp: Instant::UNIX_EPOCH,
        idempotency_key: "k".into(),
        price_key: (number % 3 == 0).then(|| "key".into()),
        price_key_remapped: false,
        external_cost: None,
        wallet_currency: None,
        hold_id: None,
        dimension_vars: vars.clone(),
        pricing_vars: vars,
        accepted_at: Instant::UNIX_EPOCH,
        catalog_revision: 1,
    }
}

pub fn run(data: &[u8]) {
    let (json, rest) = data.split_at(data.len() - data.len() / 8);
    let Ok(json) = serde_json::from_slice(json) else { return };
    match FilterTree::from_json(&json) {
        Err(fields) => assert!(!fields.is_empty(), "a refusal without a reason"),
        Ok(tree) => {
            let stored = serde_json::to_value(&tree).expect("a tree is JSON");
            let again = FilterTree::from_json(&stored).expect("what was accepted is accepted again");
            let event = event(rest);
            assert_eq!(tree.matches(&event), again.matches(&event), "{stored}");
        }
    }
}
