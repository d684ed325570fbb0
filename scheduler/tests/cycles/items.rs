//! Which items a subscription may have (subscriptions.md 1.2, products.md rule 7).

use serde_json::json;

use crate::fixture::World;

/// A price that the items name must be for this subscription: it would be refused at each bill otherwise.
#[tokio::test]
async fn a_named_price_must_be_for_the_subscription() {
    let world = World::new("2026-01-01").await;
    let fee = world.product("FIXED_CHARGE", "1.00").await;
    let plan = world.plan(&[(fee, "0")]).await;
    let other_plan = world.plan(&[(fee, "0")]).await;
    let (customer, other) = (world.customer().await, world.customer().await);
    let tiers = json!([{"tier_order": 1, "up_to": null, "unit_amount": "0", "flat_amount": "2.00"}]);
    let price = world.db_price(fee, "EUR", tiers).await;
    let items = json!({"items": [{"product_id": fee, "price_id": price}]});
    for change in [
        "price_key = 'com'".to_owned(),
        format!("customer_id = '{other}'"),
        format!("plan_id = '{other_plan}'"),
        "billing_interval_unit = 'yearly', billing_interval_count = 1".to_owned(),
        "archived_at = '2025-06-01Z', status = 'archived'".to_owned(),
    ] {
        world
            .db_catalog(&format!(
                "CREATE TABLE kept AS SELECT * FROM price; UPDATE price SET {change} WHERE id = '{price}'"
            ))
            .await;
        let refused = world.try_subscribe(customer, plan, items.clone()).await.unwrap_err();
        assert_eq!(refused.code(), "BUSINESS_RULE_VIOLATION", "{change}");
        world.db_catalog("DELETE FROM price; INSERT INTO price SELECT * FROM kept; DROP TABLE kept").await;
    }
    let id = world.try_subscribe(customer, plan, items).await.unwrap().subscription.id;
    world.settle().await;
    assert_eq!(world.bills(id).await[0].1, "2.00 EUR");
}

/// products.md rule 7: what must be bought together is there; an archived product of a plan version is not sold.
#[tokio::test]
async fn required_products_are_among_the_items() {
    let world = World::new("2026-01-01").await;
    let (fee, seats) = (world.product("FIXED_CHARGE", "1.00").await, world.product("SEAT", "1.00").await);
    let plan = world.plan(&[(fee, "0"), (seats, "0")]).await;
    let customer = world.customer().await;
    world
        .db_catalog(&format!("UPDATE product SET requires_product_ids = ARRAY['{fee}'::uuid] WHERE id = '{seats}'"))
        .await;
    let alone = json!({"items": [{"product_id": seats}]});
    assert_eq!(world.try_subscribe(customer, plan, alone).await.unwrap_err().code(), "BUSINESS_RULE_VIOLATION");
    world.try_subscribe(customer, plan, json!({})).await.unwrap();
    world.db_catalog(&format!("UPDATE product SET status = 'archived' WHERE id = '{seats}'")).await;
    assert_eq!(world.try_subscribe(customer, plan, json!({})).await.unwrap_err().code(), "BUSINESS_RULE_VIOLATION");
}

/// Usage that is priced by dimensions only has its price once an event names them.
#[tokio::test]
async fn usage_may_be_priced_by_dimensions_only() {
    let world = World::new("2026-01-01").await;
    let units = world.product("USAGE", "0.01").await;
    let plan = world.plan(&[(units, "0")]).await;
    let customer = world.customer().await;
    world.db_catalog(r#"UPDATE price SET custom_dimensions = '{"region": "eu"}'"#).await;
    world.try_subscribe(customer, plan, json!({})).await.unwrap();
    world.db_catalog("UPDATE price SET currency = 'USD'").await;
    assert!(world.try_subscribe(customer, plan, json!({})).await.is_err());
}

/// plans.md: an archived plan takes nobody, and its subscribers keep billing from their version.
#[tokio::test]
async fn subscribers_of_an_archived_plan_keep_billing() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.db_catalog("UPDATE plan SET status = 'archived', archived_at = now()").await;
    world.advance("2026-02-01").await;
    assert_eq!(world.bills(id).await.len(), 2);
    let customer = world.customer().await;
    assert!(world.try_subscribe(customer, plan, json!({})).await.is_err());
}
