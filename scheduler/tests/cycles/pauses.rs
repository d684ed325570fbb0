//! Pauses, and what a cancellation or a deletion may not leave unbilled (subscriptions.md 3.4, billing-cycles.md 3.4 rule 5).

use domain::{PlanId, ProductId};
use serde_json::json;

use crate::fixture::{World, at};

/// A fee of 31.00 and units of 0.01 each, finalized without a grace.
async fn world() -> (World, PlanId, ProductId) {
    let world = World::with("2026-01-01", "UTC", json!({"usage_grace_period": "0"})).await;
    let (fee, units) = (world.product("FIXED_CHARGE", "31.00").await, world.product("USAGE", "0.01").await);
    let plan = world.plan(&[(fee, "0"), (units, "0")]).await;
    (world, plan, units)
}

/// 3.4 rules 2 and 3: only PENDING and TRIALING are exempt, so that cancelling a pause bills what was used before it.
#[tokio::test]
async fn cancelling_a_pause_bills_open_usage() {
    let (world, plan, units) = world().await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "100", None)]).await;
    world.db_accrual(id, "2026-01-01").await;
    world.advance("2026-01-10").await;
    world.pause(id).await.unwrap();
    world.advance("2026-01-20").await;
    assert_eq!(world.cancel(id, json!({})).await.unwrap().subscription.status.as_str(), "CANCELLED");
    world.settle().await;
    let totals: Vec<_> = world.bills(id).await.into_iter().map(|(_, total, _)| total).collect();
    assert_eq!(totals, ["31.00 EUR", "1.00 EUR"]);
    assert!(world.open_accruals().await.is_empty());
}

/// 3.4 rule 1 holds for PAUSED, too: the flag waits for the period's end.
#[tokio::test]
async fn a_pause_can_be_cancelled_at_its_periods_end() {
    let (world, plan, units) = world().await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "100", None)]).await;
    world.advance("2026-01-10").await;
    world.pause(id).await.unwrap();
    let waiting = world.cancel(id, json!({"cancel_at_period_end": true})).await.unwrap().subscription;
    assert_eq!((waiting.status.as_str(), waiting.cancel_at_period_end), ("PAUSED", true));
    world.advance("2026-02-01").await;
    assert_eq!(world.subscription(id).await.subscription.status.as_str(), "CANCELLED");
    assert_eq!(world.bills(id).await.last().unwrap().1, "1.00 EUR");
}

/// Rule 5: boundaries that are passed while PAUSED make no invoice. Their windows are sealed all the same, and what they
/// accrued does not hold wallet money for ever; a resume ends the window that runs, and a cancellation does.
#[tokio::test]
async fn windows_of_a_pause_are_sealed_unbilled() {
    let (world, plan, units) = world().await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    let cancelled = world.subscribe(plan, json!({})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "100", None)]).await;
    world.advance("2026-01-10").await;
    world.pause(id).await.unwrap();
    world.pause(cancelled).await.unwrap();
    for start in ["2026-01-01", "2026-02-01", "2026-03-01"] {
        world.db_accrual(id, start).await;
        world.db_accrual(cancelled, start).await;
    }
    world.advance("2026-03-16").await;
    let now = at("2026-03-01");
    assert_eq!(world.open_accruals().await, [now, now], "those that run");
    let resumed = world.resume(id).await.unwrap().subscription;
    assert_eq!(
        (resumed.current_period_start, resumed.current_period_end),
        (Some(at("2026-03-16")), Some(at("2026-04-01")))
    );
    let closed = world.cancel(cancelled, json!({})).await.unwrap().subscription;
    assert_eq!((closed.status.as_str(), closed.ended_at), ("CANCELLED", Some(at("2026-03-16"))));
    world.settle().await;
    assert!(world.open_accruals().await.is_empty());
    let ends: Vec<_> = sqlx::query_scalar::<_, domain::Instant>(
        "SELECT window_end FROM usage_window WHERE subscription_id = $1 AND status = 'sealed' ORDER BY 1",
    )
    .bind(id)
    .fetch_all(world.store.pool())
    .await
    .unwrap();
    assert_eq!(ends, ["2026-02-01", "2026-03-01", "2026-03-16"].map(at));
    world.advance("2026-04-01").await;
    let bills: Vec<_> = world.bills(id).await.into_iter().map(|(start, total, _)| (start, total)).collect();
    let expected = [("2026-01-01", "31.00 EUR"), ("2026-03-16", "16.00 EUR"), ("2026-04-01", "31.00 EUR")];
    assert_eq!(bills, expected.map(|(start, total)| (at(start), total.to_owned())));
    assert_eq!(world.bills(cancelled).await.len(), 1);
}

/// A resume begins a new schedule; what was before keeps its windows: they are no trial, and a draft of before the pause
/// still finds its usage.
#[tokio::test]
async fn a_resume_leaves_earlier_windows_as_they_were() {
    let world = World::with("2026-01-01", "UTC", json!({"auto_finalize_invoices": "false"})).await;
    let (fee, units) = (world.product("FIXED_CHARGE", "31.00").await, world.product("USAGE", "0.01").await);
    let plan = world.plan(&[(fee, "0"), (units, "0")]).await;
    let id = world.subscribe(plan, json!({"billing_anchor_day": 15})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "100", None)]).await;
    world.advance("2026-01-20").await;
    world.pause(id).await.unwrap();
    world.advance("2026-03-18").await;
    world.resume(id).await.unwrap();
    let terms = world.terms(id).await;
    assert_eq!(terms.window_at(at("2026-01-05")).unwrap().start, at("2026-01-01"));
    assert_eq!(terms.window_at(at("2026-01-05")).unwrap().end, at("2026-01-15"));
    assert_eq!(terms.window_at(at("2026-03-20")).unwrap().start, at("2026-03-18"));
    assert!(!terms.is_trial(at("2026-01-01")));
    let renewal = world.invoices(id).await.into_iter().find(|i| i.invoice.billing_reason == "renewal").unwrap();
    let mut tx = world.store.begin("finalize").await.unwrap();
    let request = billing::invoice::FinalizeInvoiceRequest::default();
    let done = world.billing.finalize_invoice(&world.scope, &mut tx, renewal.invoice.id, &request).await.unwrap();
    assert_eq!(done.invoice.invoice.total.to_string(), "32.00 EUR");
}

/// A boundary that is passed and not worked off yet is not thrown away: the call is refused until it is.
#[tokio::test]
async fn nothing_overtakes_a_boundary() {
    let (world, plan, _) = world().await;
    let id = world.subscribe(plan, json!({"billing_timing": "IN_ARREARS"})).await.subscription.id;
    sqlx::query("UPDATE test_clock SET frozen_at = '2026-02-03Z'").execute(world.store.pool()).await.unwrap();
    assert_eq!(world.cancel(id, json!({})).await.unwrap_err().code(), "CONFLICT");
    assert_eq!(world.pause(id).await.unwrap_err().code(), "CONFLICT");
    world.settle().await;
    world.begin_advance("2026-02-11").await;
    assert_eq!(world.cancel(id, json!({})).await.unwrap_err().code(), "CONFLICT", "the clock is advancing");
    world.scheduler.run_clock(world.clock).await.unwrap();
    world.cancel(id, json!({})).await.unwrap();
    world.settle().await;
    let totals: Vec<_> = world.bills(id).await.into_iter().map(|(_, total, _)| total).collect();
    assert_eq!(totals, ["31.00 EUR", "11.07 EUR"], "10 of 28 days");
}

/// A subscription that is deleted takes nothing with it that is not billed.
#[tokio::test]
async fn a_cancelled_subscription_is_deleted_when_it_is_billed() {
    let world = World::new("2026-01-01").await;
    let units = world.product("USAGE", "0.01").await;
    let plan = world.plan(&[(units, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "100", None)]).await;
    world.advance("2026-01-10").await;
    world.cancel(id, json!({})).await.unwrap();
    assert_eq!(world.delete(id).await.unwrap_err().code(), "CONFLICT", "its last period is not closed");
    world.settle().await;
    assert_eq!(world.delete(id).await.unwrap_err().code(), "CONFLICT", "its last invoice is a draft");
    world.advance("2026-01-11").await;
    assert_eq!(world.bills(id).await, [(at("2026-01-01"), "1.00 EUR".to_owned(), "finalized".to_owned())]);
    world.delete(id).await.unwrap();
}
