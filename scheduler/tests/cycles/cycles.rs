//! billing-cycles.md 3.5: which invoices a life of periods makes, and over how much.

use serde_json::{Value, json};

use crate::fixture::{World, at};

/// Start of the period and total of each invoice, after advancing the clock.
async fn life(
    start: &str,
    timezone: &str,
    body: Value,
    advances: &[&str],
) -> Vec<(chrono::DateTime<chrono::Utc>, String)> {
    let world = World::with(start, timezone, json!({})).await;
    let fee = world.product("FIXED_CHARGE", "31.00").await;
    let plan = world.plan(&[(fee, "0")]).await;
    let subscription = world.subscribe(plan, body).await.subscription;
    for to in advances {
        world.advance(to).await;
    }
    let bills = world.bills(subscription.id).await;
    assert!(bills.iter().all(|(_, _, status)| status == "finalized"), "{bills:?}");
    bills.into_iter().map(|(start, total, _)| (start, total)).collect()
}

/// C1 to C5, C7, C7b, C8, C9, C11, S4 in advance, and the same boundaries in arrears.
#[tokio::test]
async fn periods_are_billed_as_the_vectors_say() {
    for (name, start, timezone, body, advances, expected) in [
        (
            "C1",
            "2026-01-15",
            "UTC",
            json!({"billing_anchor_day": 15}),
            vec!["2026-03-16"],
            vec![("2026-01-15", "31.00"), ("2026-02-15", "31.00"), ("2026-03-15", "31.00")],
        ),
        (
            "C2",
            "2026-01-20",
            "UTC",
            json!({"billing_anchor_day": 1}),
            vec!["2026-03-02"],
            vec![("2026-01-20", "12.00"), ("2026-02-01", "31.00"), ("2026-03-01", "31.00")],
        ),
        (
            "C3, S4",
            "2026-01-01",
            "UTC",
            json!({"billing_anchor_day": 1, "billing_interval_count": 3}),
            vec!["2027-01-01"],
            vec![
                ("2026-01-01", "31.00"),
                ("2026-04-01", "31.00"),
                ("2026-07-01", "31.00"),
                ("2026-10-01", "31.00"),
                ("2027-01-01", "31.00"),
            ],
        ),
        (
            "C4",
            "2028-02-29",
            "UTC",
            json!({"billing_interval_unit": "yearly"}),
            vec!["2029-03-01"],
            vec![("2028-02-29", "31.00"), ("2029-02-28", "31.00")],
        ),
        (
            "C5",
            "2026-01-31",
            "UTC",
            json!({}),
            vec!["2026-03-01"],
            vec![("2026-01-31", "31.00"), ("2026-02-28", "31.00")],
        ),
        (
            "C7",
            "2026-03-01",
            "UTC",
            json!({"trial_duration_days": 14}),
            vec!["2026-03-14", "2026-03-15"],
            vec![("2026-03-15", "31.00")],
        ),
        (
            "C7b",
            "2026-03-01",
            "UTC",
            json!({"trial_duration_days": 14, "billing_anchor_day": 1}),
            vec!["2026-04-01"],
            vec![("2026-03-15", "17.00"), ("2026-04-01", "31.00")],
        ),
        (
            "C8",
            "2026-01-01",
            "UTC",
            json!({}),
            vec!["2026-04-01"],
            vec![("2026-01-01", "31.00"), ("2026-02-01", "31.00"), ("2026-03-01", "31.00"), ("2026-04-01", "31.00")],
        ),
        (
            "C9",
            "2026-02-28T23:00:00Z",
            "Europe/Berlin",
            json!({"billing_anchor_day": 1}),
            vec!["2026-03-31T22:00:00Z"],
            vec![("2026-02-28T23:00:00Z", "31.00"), ("2026-03-31T22:00:00Z", "31.00")],
        ),
        (
            "C11",
            "2025-01-31",
            "UTC",
            json!({"billing_anchor_day": 28}),
            vec!["2025-03-01"],
            vec![("2025-01-31", "28.00"), ("2025-02-28", "31.00")], // 28 of the 31 days from 01-28
        ),
        (
            "weekly",
            "2026-01-01",
            "UTC",
            json!({"billing_interval_unit": "weekly"}),
            vec!["2026-01-15"],
            vec![("2026-01-01", "31.00"), ("2026-01-08", "31.00"), ("2026-01-15", "31.00")],
        ),
        (
            "arrears",
            "2026-01-20",
            "UTC",
            json!({"billing_anchor_day": 1, "billing_timing": "IN_ARREARS"}),
            vec!["2026-01-31", "2026-03-01"],
            vec![("2026-01-20", "12.00"), ("2026-02-01", "31.00")],
        ),
        (
            "once",
            "2026-01-20",
            "UTC",
            json!({"billing_interval_unit": "one_time"}),
            vec!["2027-01-01"],
            vec![("2026-01-20", "31.00")],
        ),
    ] {
        let found = life(start, timezone, body, &advances).await;
        let expected: Vec<_> = expected.into_iter().map(|(start, total)| (at(start), format!("{total} EUR"))).collect();
        assert_eq!(found, expected, "{name}");
    }
}

/// C6 and S3: the anchor's range.
#[tokio::test]
async fn an_anchor_is_a_day_of_every_month() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "1.00").await, "0")]).await;
    for day in [0, 29, 31] {
        let customer = world.customer().await;
        let refused = world.try_subscribe(customer, plan, json!({"billing_anchor_day": day})).await.unwrap_err();
        assert_eq!(refused.code(), "VALIDATION", "{day}");
    }
}

/// C10: no invoice for a boundary that is passed while PAUSED; resuming charges a stub up to the anchor day.
#[tokio::test]
async fn a_boundary_in_a_pause_is_not_billed() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.advance("2026-01-10").await;
    let mut tx = world.store.begin("pause").await.unwrap();
    let paused = world.billing.pause_subscription(&world.scope, &mut tx, id).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(paused.subscription.status.as_str(), "PAUSED");
    world.advance("2026-03-16").await;
    assert_eq!(world.bills(id).await.len(), 1);
    let mut tx = world.store.begin("resume").await.unwrap();
    world.billing.resume_subscription(&world.scope, &mut tx, id).await.unwrap();
    tx.commit().await.unwrap();
    world.advance("2026-04-02").await;
    let bills: Vec<_> = world.bills(id).await.into_iter().map(|(start, total, _)| (start, total)).collect();
    let expected = [("2026-01-01", "31.00 EUR"), ("2026-03-16", "16.00 EUR"), ("2026-04-01", "31.00 EUR")];
    assert_eq!(bills, expected.map(|(start, total)| (at(start), total.to_owned())));
}

/// The list of periods, newest first, with their invoices; pages go on where the cursor says.
#[tokio::test]
async fn billing_periods_are_listed() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.advance("2026-03-15").await;
    let mut conn = world.store.pool().acquire().await.unwrap();
    let parameters = [("limit".to_owned(), "3".to_owned())];
    let first = billing::subscription::periods::list(&world.scope, &mut conn, id, &parameters).await.unwrap();
    let found: Vec<_> =
        first.data.iter().map(|p| (p.period_start, p.status.as_str(), p.invoice_id.is_some())).collect();
    assert_eq!(
        found,
        [(at("2026-04-01"), "next", false), (at("2026-03-01"), "current", true), (at("2026-02-01"), "past", true)]
    );
    let parameters = [("cursor".to_owned(), first.pagination.cursor.unwrap())];
    let second = billing::subscription::periods::list(&world.scope, &mut conn, id, &parameters).await.unwrap();
    assert_eq!(second.data.iter().map(|p| p.period_start).collect::<Vec<_>>(), [at("2026-01-01")]);
    assert!(!second.pagination.has_more);
}
