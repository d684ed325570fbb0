//! subscriptions.md 3.7: the state machine.

use serde_json::json;

use crate::fixture::{World, at};

/// S1, S2: a trial is free, then becomes ACTIVE with its event.
#[tokio::test]
async fn a_trial_is_free_and_ends_in_active() {
    let world = World::new("2026-03-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let trial = world.subscribe(plan, json!({"trial_duration_days": 14})).await.subscription;
    assert_eq!((trial.status.as_str(), trial.trial_ends_at), ("TRIALING", Some(at("2026-03-15"))));
    assert!(trial.current_phase_id.is_some());
    world.advance("2026-03-14").await;
    assert!(world.invoices(trial.id).await.is_empty());
    world.advance("2026-03-15").await;
    let active = world.subscription(trial.id).await.subscription;
    assert_eq!((active.status.as_str(), active.activated_at), ("ACTIVE", Some(at("2026-03-15"))));
    assert_eq!(active.next_billing_date, Some(at("2026-04-15")));
    let transitions: Vec<_> = active.allowed_transitions.iter().map(|status| status.as_str()).collect();
    assert_eq!(transitions, ["PAUSED", "DUNNING", "CANCELLED"]);
    assert_eq!(world.events(trial.id).await, ["subscription.created", "subscription.activated"]);
}

/// S11: PENDING until it starts, then TRIALING.
#[tokio::test]
async fn a_future_start_waits() {
    let world = World::new("2026-03-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let body = json!({"started_at": "2026-03-02T00:00:00Z", "trial_duration_days": 14});
    let pending = world.subscribe(plan, body).await.subscription;
    assert_eq!((pending.status.as_str(), pending.current_period_end), ("PENDING", None));
    world.advance("2026-03-02").await;
    assert_eq!(world.subscription(pending.id).await.subscription.status.as_str(), "TRIALING");
    world.advance("2026-03-16").await;
    assert_eq!(world.subscription(pending.id).await.subscription.status.as_str(), "ACTIVE");
}

/// S5: a trial cannot be paused. S6: nothing can be done with a closed subscription.
#[tokio::test]
async fn what_is_not_a_transition_is_refused() {
    let world = World::new("2026-03-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({"trial_duration_days": 14})).await.subscription.id;
    let mut tx = world.store.begin("pause").await.unwrap();
    let refused = world.billing.pause_subscription(&world.scope, &mut tx, id).await.unwrap_err();
    assert_eq!(refused.code(), "INVALID_TRANSITION");
    drop(tx);
    let cancelled = world.cancel(id, json!({})).await.unwrap().subscription;
    assert_eq!((cancelled.status.as_str(), cancelled.current_phase_id), ("CANCELLED", None));
    assert!(cancelled.allowed_transitions.is_empty());
    assert_eq!(world.cancel(id, json!({})).await.unwrap_err().code(), "INVALID_TRANSITION");
    world.advance("2026-06-01").await;
    assert!(world.invoices(id).await.is_empty(), "3.4 rule 3: no charge from TRIALING");
}

/// S7: a price in another currency is a hard error.
#[tokio::test]
async fn a_price_in_another_currency_is_refused() {
    let world = World::new("2026-03-01").await;
    let tiers = json!([{"tier_order": 1, "up_to": null, "unit_amount": "1", "flat_amount": "0"}]);
    let dollars = world.product_with("FIXED_CHARGE", "VOLUME", "USD", tiers).await;
    let plan = world.plan(&[(dollars, "0")]).await;
    let customer = world.customer().await;
    let refused = world.try_subscribe(customer, plan, json!({})).await.unwrap_err();
    assert_eq!(refused.code(), "CURRENCY_MISMATCH");
}

/// S8, S12: without renewal it stays ACTIVE after its term, and closing it ends in EXPIRED.
#[tokio::test]
async fn without_renewal_the_term_ends() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({"auto_renew": false})).await.subscription.id;
    world.advance("2026-04-01").await;
    let over = world.subscription(id).await.subscription;
    assert_eq!((over.status.as_str(), over.next_billing_date), ("ACTIVE", None));
    assert_eq!(over.allowed_transitions.last().map(|status| status.as_str()), Some("EXPIRED"));
    assert_eq!(world.bills(id).await.len(), 1, "no new period");
    assert_eq!(world.terms(id).await.ended_at, Some(at("2026-02-01")), "usage of later instants is refused");
    let closed = world.cancel(id, json!({})).await.unwrap().subscription;
    assert_eq!((closed.status.as_str(), closed.expired_at), ("EXPIRED", Some(at("2026-04-01"))));
    assert_eq!(closed.cancellation_reason.map(|reason| reason.as_str()), Some("TERM_ENDED"));
    assert_eq!(closed.ended_at, Some(at("2026-02-01")));
    assert_eq!(world.events(id).await.last().map(String::as_str), Some("subscription.expired"));
    world.advance("2026-05-01").await;
    assert_eq!(world.bills(id).await.len(), 1, "nothing is billed for it");
}

/// The only period of a one_time subscription does not end by itself: it is cancelled, not expired, as it says beforehand.
#[tokio::test]
async fn a_one_time_subscription_is_cancelled() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let once = world.subscribe(plan, json!({"billing_interval_unit": "one_time"})).await.subscription;
    assert_eq!(once.allowed_transitions.last().map(|status| status.as_str()), Some("CANCELLED"));
    let closed = world.cancel(once.id, json!({})).await.unwrap().subscription;
    assert_eq!(closed.status.as_str(), "CANCELLED");
}

/// 3.4 rules 1 and 3: a trial that is cancelled at its end stays free and ends in CANCELLED.
#[tokio::test]
async fn a_trial_can_be_cancelled_at_its_end() {
    let world = World::new("2026-03-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({"trial_duration_days": 14})).await.subscription.id;
    let waiting = world.cancel(id, json!({"cancel_at_period_end": true})).await.unwrap().subscription;
    assert_eq!((waiting.status.as_str(), waiting.cancel_at_period_end), ("TRIALING", true));
    world.advance("2026-05-01").await;
    let over = world.subscription(id).await.subscription;
    assert_eq!((over.status.as_str(), over.cancelled_at), ("CANCELLED", Some(at("2026-03-15"))));
    assert!(world.invoices(id).await.is_empty());
}

/// 3.4 rule 1: the flag waits for the period's end; rule 2 in arrears: a prorated last period (billing-cycles 3.3).
#[tokio::test]
async fn cancelling_bills_what_was_used() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let flagged = world.subscribe(plan, json!({})).await.subscription.id;
    let at_once = world.subscribe(plan, json!({"billing_timing": "IN_ARREARS"})).await.subscription.id;
    let prepaid = world.subscribe(plan, json!({})).await.subscription.id;
    world.advance("2026-01-11").await;
    let waiting = world.cancel(flagged, json!({"cancel_at_period_end": true})).await.unwrap().subscription;
    assert_eq!((waiting.status.as_str(), waiting.cancel_at_period_end), ("ACTIVE", true));
    assert_eq!(world.cancel(at_once, json!({})).await.unwrap().subscription.status.as_str(), "CANCELLED");
    world.cancel(prepaid, json!({})).await.unwrap();
    world.advance("2026-03-01").await;
    assert_eq!(world.subscription(flagged).await.subscription.status.as_str(), "CANCELLED");
    assert_eq!(world.bills(flagged).await.len(), 1);
    let bills = world.bills(at_once).await;
    assert_eq!(bills, [(at("2026-01-01"), "10.00 EUR".to_owned(), "finalized".to_owned())], "10 of 31 days");
    let refund: String = sqlx::query_scalar(
        "SELECT payload #>> '{amount,value}' FROM outbox WHERE event_type = 'subscription.refund_required' AND entity_id = $1",
    )
    .bind(prepaid)
    .fetch_one(world.store.pool())
    .await
    .unwrap();
    assert_eq!(refund, "21.00", "21 of 31 days were paid and not used");
}

/// Plans that are not published, products that are not of the plan, other clocks.
#[tokio::test]
async fn a_subscription_needs_a_published_plan_and_its_products() {
    let world = World::new("2026-01-01").await;
    let fee = world.product("FIXED_CHARGE", "31.00").await;
    let other = world.product("SEAT", "10.00").await;
    let plan = world.plan(&[(fee, "0")]).await;
    let customer = world.customer().await;
    let items = json!({"items": [{"product_id": other}]});
    assert_eq!(world.try_subscribe(customer, plan, items).await.unwrap_err().code(), "BUSINESS_RULE_VIOLATION");
    let clock = json!({"test_clock_id": uuid::Uuid::now_v7()});
    assert_eq!(world.try_subscribe(customer, plan, clock).await.unwrap_err().code(), "BUSINESS_RULE_VIOLATION");
    let version = json!({"plan_version": 7});
    assert_eq!(world.try_subscribe(customer, plan, version).await.unwrap_err().code(), "NOT_FOUND");
    sqlx::query("UPDATE plan SET status = 'archived'").execute(world.store.pool()).await.unwrap();
    assert_eq!(world.try_subscribe(customer, plan, json!({})).await.unwrap_err().code(), "BUSINESS_RULE_VIOLATION");
}

/// Seats are charged by the item's quantity; an own rate takes the place of the price.
#[tokio::test]
async fn seats_and_own_rates_are_charged() {
    let world = World::new("2026-01-01").await;
    let seats = world.product("SEAT", "10.00").await;
    let plan = world.plan(&[(seats, "0")]).await;
    let five = world.subscribe(plan, json!({"items": [{"product_id": seats, "quantity": "5"}]})).await.subscription.id;
    let own = json!({"items": [{"product_id": seats, "quantity": "5", "unit_amount": "8.5"}]});
    let own = world.subscribe(plan, own).await.subscription.id;
    world.settle().await;
    assert_eq!(world.bills(five).await[0].1, "50.00 EUR");
    assert_eq!(world.bills(own).await[0].1, "42.50 EUR");
}

/// A subscription that cannot be billed can be cancelled all the same, and nothing that it owes is lost: every period that
/// ended meanwhile has its invoice when the price is mended, the last one up to the cancellation.
#[tokio::test]
async fn a_subscription_whose_period_cannot_be_closed_can_be_cancelled() {
    for (timing, auto_finalize) in [("IN_ARREARS", "true"), ("IN_ARREARS", "false"), ("IN_ADVANCE", "true")] {
        let world = World::with("2026-01-01", "UTC", json!({"auto_finalize_invoices": auto_finalize})).await;
        let (fee, units) = (world.product("FIXED_CHARGE", "28.00").await, world.product("USAGE", "1").await);
        let plan = world.plan(&[(fee, "0"), (units, "0")]).await;
        let id = world.subscribe(plan, json!({"billing_timing": timing})).await.subscription.id;
        world.settle().await;
        let before = world.bills(id).await.len();
        world.db_usage(id, &[("2026-01-05", units, "3", None)]).await;
        world.db_usage(id, &[("2026-02-05", units, "4", None)]).await;
        world.db_usage(id, &[("2026-03-05", units, "5", None)]).await;
        world.db_catalog("UPDATE price SET status = 'draft'").await;
        world.try_advance("2026-02-01").await;
        assert_eq!(world.cancel(id, json!({})).await.unwrap_err().code(), "CONFLICT", "it is tried again");
        assert_eq!(world.pause(id).await.unwrap_err().code(), "CONFLICT");
        sqlx::query("UPDATE due_work SET attempts = 3 WHERE last_error IS NOT NULL")
            .execute(world.store.pool())
            .await
            .unwrap();
        world.try_advance("2026-03-15").await;
        let cancelled = world.cancel(id, json!({"proration_type": "NONE"})).await.unwrap().subscription;
        assert_eq!((cancelled.status.as_str(), cancelled.cancelled_at), ("CANCELLED", Some(at("2026-03-15"))));
        assert_eq!(world.terms(id).await.ended_at, Some(at("2026-03-15")));
        world.try_advance("2026-03-16").await;
        assert_eq!(world.bills(id).await.len(), before, "it still cannot be billed");
        world.db_catalog("UPDATE price SET status = 'active'").await;
        sqlx::query("UPDATE due_work SET retry_at = NULL").execute(world.store.pool()).await.unwrap();
        world.settle().await;
        world.advance("2026-03-17").await;
        let mut bills = world.bills(id).await;
        bills.sort();
        let expected = match timing {
            // 14 of the 31 days of March.
            "IN_ARREARS" => vec![("2026-01-01", "31.00 EUR"), ("2026-02-01", "32.00 EUR"), ("2026-03-01", "17.65 EUR")],
            _ => vec![
                ("2026-01-01", "28.00 EUR"),
                ("2026-02-01", "31.00 EUR"),
                ("2026-03-01", "32.00 EUR"),
                ("2026-03-01", "5.00 EUR"),
            ],
        };
        let status = if auto_finalize == "true" { "finalized" } else { "draft" };
        let expected: Vec<_> =
            expected.into_iter().map(|(start, total)| (at(start), total.to_owned(), status.to_owned())).collect();
        assert_eq!(bills, expected, "{timing}, {auto_finalize}");
        let open: Vec<String> =
            sqlx::query_scalar("SELECT kind FROM due_work").fetch_all(world.store.pool()).await.unwrap();
        assert_eq!(open, Vec::<String>::new());
    }
}
