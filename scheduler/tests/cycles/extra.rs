//! Windows that are billed more than once: however often a threshold closes the usage so far, the customer pays what one
//! invoice would ask; and each of them is made once, whoever is killed.

use billing::due::{DueKind, plan_windows};
use domain::{Instant, SubscriptionId};
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::fixture::{World, at};

const START: &str = "2026-01-01";

/// What a checkpoint writes with a breach.
async fn ask(world: &World, kind: DueKind, id: SubscriptionId) {
    let mut conn = world.store.pool().acquire().await.unwrap();
    plan_windows(&mut conn, at(START), kind, "test", &[(id, at(START))]).await.unwrap();
}

/// Net of the invoices less that of the credit notes, and the number of both.
async fn charged(world: &World, id: SubscriptionId) -> (Decimal, usize, i64) {
    let invoices = world.invoices(id).await;
    let invoiced: Decimal = invoices.iter().map(|invoice| invoice.invoice.total.amount()).sum();
    let (credited, notes): (Decimal, i64) = sqlx::query_as(
        "SELECT coalesce(sum(note.total), 0), count(*) FROM credit_note note JOIN invoice ON invoice.id = note.invoice_id
         WHERE invoice.subscription_id = $1",
    )
    .bind(id)
    .fetch_one(world.store.pool())
    .await
    .unwrap();
    (invoiced - credited, invoices.len(), notes)
}

async fn number(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(world.store.pool()).await.unwrap()
}

async fn books_are_clean(world: &World) {
    let report = ledger::verify(&world.store, &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.differences);
    let wrong = "SELECT count(*) FROM invoice_line l WHERE l.amount < 0 OR l.amount <>
        (SELECT sum((atom -> 'net_amount' ->> 'value')::numeric) FROM jsonb_array_elements(l.atoms) atom)";
    assert_eq!(number(world, wrong).await, 0);
}

/// A small generator; the seed is in every message.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Rates fall and rise, fees and packages come in between.
fn tiers(dice: &mut Dice) -> Value {
    let mut bound = 0;
    let mut tiers: Vec<Value> = (1..=1 + dice.below(3))
        .map(|order| {
            bound += 1 + dice.below(60);
            let (unit, flat) = (format!("0.{:03}", dice.below(500)), if dice.below(3) == 0 { "1.25" } else { "0" });
            json!({"tier_order": order, "up_to": bound.to_string(), "unit_amount": unit, "flat_amount": flat})
        })
        .collect();
    if let Some(last) = tiers.last_mut() {
        last["up_to"] = Value::Null;
    }
    json!(tiers)
}

/// Interim invoices at random cuts and the period's own, over random tiers and allowances, also with two products and a wallet
/// pin: the same sum as one invoice, and credit notes only where a price falls with the volume.
#[tokio::test(flavor = "multi_thread")]
async fn interim_invoices_and_the_last_one_cost_what_one_would() {
    let world = World::new(START).await;
    let mut cases = Vec::new();
    for seed in 0..24 {
        let mut dice = Dice(seed);
        let model = ["STAIRCASE", "VOLUME"][dice.below(2) as usize];
        let one = world.product_with("USAGE", model, "EUR", tiers(&mut dice)).await;
        let two = world.product_with("USAGE", "STAIRCASE", "EUR", tiers(&mut dice)).await;
        let included = dice.below(80).to_string();
        let plan = world.plan(&[(one, &included), (two, "0")]).await;
        let amounts: Vec<(String, bool, bool)> = (0..8)
            .map(|_| (format!("{}.{}", dice.below(40), dice.below(1_000)), dice.below(3) == 0, dice.below(4) == 0))
            .collect();
        let event = |(quantity, is_second, is_pinned): &'static (String, bool, bool)| {
            let product = if *is_second { two } else { one };
            ("2026-01-05", product, quantity.as_str(), is_pinned.then_some(domain::Currency::EUR))
        };
        let events: Vec<_> = amounts.leak().iter().map(event).collect();
        let cut = world.subscribe(plan, json!({"billing_timing": "IN_ARREARS"})).await.subscription.id;
        let whole = world.subscribe(plan, json!({"billing_timing": "IN_ARREARS"})).await.subscription.id;
        for end in 1..=events.len() {
            world.db_usage(cut, &events[..end]).await;
            if dice.below(2) == 0 {
                ask(&world, DueKind::InterimInvoice, cut).await;
                world.settle().await;
            }
        }
        world.db_usage(whole, &events).await;
        cases.push((seed, model, cut, whole));
    }
    world.advance("2026-02-02").await;
    for (seed, model, cut, whole) in cases {
        let ((net, documents, notes), (expected, _, _)) = (charged(&world, cut).await, charged(&world, whole).await);
        assert_eq!(net, expected, "seed {seed}: {documents} invoices, {notes} credit notes");
        assert!(model == "VOLUME" || notes == 0, "seed {seed}");
    }
    books_are_clean(&world).await;
}

/// Killed while the interim invoice is booked, and asked for by two schedulers: there is one.
#[tokio::test(flavor = "multi_thread")]
async fn an_interim_invoice_is_made_once() {
    let world = World::new(START).await;
    let units = world.product("USAGE", "1").await;
    let plan = world.plan(&[(units, "0")]).await;
    let id = world.subscribe(plan, json!({"billing_timing": "IN_ARREARS"})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "3", None)]).await;
    ask(&world, DueKind::InterimInvoice, id).await;
    let execute = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(world.store.pool()).await.unwrap();
    };
    execute("ALTER TABLE ledger_entry RENAME TO away").await;
    assert_eq!(world.scheduler.run_due_once().await.unwrap().failed, 1);
    execute("ALTER TABLE away RENAME TO ledger_entry; UPDATE due_work SET retry_at = NULL").await;
    assert_eq!(number(&world, "SELECT count(*) FROM invoice").await, 0);
    // The same crossing is written again by whoever repeats a checkpoint: still one row, one invoice.
    ask(&world, DueKind::InterimInvoice, id).await;
    let (one, two) = tokio::join!(world.scheduler.run_due_once(), world.scheduler.run_due_once());
    assert_eq!(one.unwrap().done + two.unwrap().done, 1);
    ask(&world, DueKind::InterimInvoice, id).await;
    world.settle().await;
    let bills: Vec<_> =
        world.bills(id).await.into_iter().map(|(_, total, status)| format!("{total} {status}")).collect();
    assert_eq!(bills, ["3.00 EUR finalized"], "nothing is left to charge");
    // Asked for too late: the period's own invoice has everything.
    world.db_usage(id, &[("2026-01-05", units, "3", None), ("2026-01-06", units, "4", None)]).await;
    world.advance("2026-02-02").await;
    ask(&world, DueKind::InterimInvoice, id).await;
    world.settle().await;
    assert_eq!(charged(&world, id).await, (Decimal::new(700, 2), 2, 0));
    books_are_clean(&world).await;
}

/// A trial, and a pause behind the end of its period, are counted and never charged: not by an interim invoice either, nor by a
/// correction after they were sealed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_charged_has_no_further_invoice() {
    for pauses in [false, true] {
        let world = World::new(START).await;
        let units = world.product("USAGE", "1").await;
        let plan = world.plan(&[(units, "0")]).await;
        let body = if pauses { json!({}) } else { json!({"trial_duration_days": 10}) };
        let id = world.subscribe(plan, body).await.subscription.id;
        let (start, event): (Instant, &str) =
            if pauses { (at("2026-02-01"), "2026-02-05") } else { (at(START), "2026-01-05") };
        if pauses {
            world.pause(id).await.unwrap();
            world.advance("2026-02-05").await;
        }
        world.db_usage(id, &[(event, units, "3", None)]).await;
        let mut conn = world.store.pool().acquire().await.unwrap();
        plan_windows(&mut conn, at(START), DueKind::InterimInvoice, "test", &[(id, start)]).await.unwrap();
        world.settle().await;
        assert!(world.bills(id).await.iter().all(|(_, total, _)| total == "0.00 EUR"), "pauses: {pauses}");
        if pauses {
            world.resume(id).await.unwrap();
        }
        world.advance("2026-02-20").await;
        let late = "INSERT INTO usage_correction SELECT subscription_id, window_start, position FROM usage_window
                    WHERE uncharged AND billed AND window_start = $1";
        let noted = sqlx::query(late).bind(start).execute(world.store.pool()).await.unwrap();
        assert_eq!(noted.rows_affected(), 1, "pauses: {pauses}");
        plan_windows(&mut conn, at(START), DueKind::UsageCorrection, "test", &[(id, start)]).await.unwrap();
        world.settle().await;
        assert_eq!(number(&world, "SELECT count(*) FROM usage_correction").await, 0);
        assert!(world.bills(id).await.iter().all(|(_, total, _)| total == "0.00 EUR"), "pauses: {pauses}");
    }
}

/// Usage that came late while the finalization was on its way is corrected when the window is billed, and two schedulers make
/// one invoice of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_correction_waits_for_the_invoice_and_is_made_once() {
    let world = World::new(START).await;
    let units = world.product("USAGE", "1").await;
    let plan = world.plan(&[(units, "0")]).await;
    let id = world.subscribe(plan, json!({"billing_timing": "IN_ARREARS"})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "3", None)]).await;
    let late = "INSERT INTO usage_correction SELECT subscription_id, window_start, position FROM usage_window";
    sqlx::query(late).execute(world.store.pool()).await.unwrap();
    ask(&world, DueKind::UsageCorrection, id).await;
    world.settle().await;
    assert_eq!(number(&world, "SELECT count(*) FROM usage_correction").await, 1, "its window is not billed");
    assert_eq!(number(&world, "SELECT count(*) FROM due_work WHERE kind = 'usage_correction'").await, 0);
    world.advance("2026-02-02").await;
    assert_eq!(number(&world, "SELECT count(*) FROM usage_correction").await, 0, "the invoice has asked for it");
    assert_eq!(charged(&world, id).await.1, 1, "the totals are the same");
    // The double of the log answers the row's totals: here they hold what came late.
    world.db_usage(id, &[("2026-01-05", units, "3", None), ("2026-01-06", units, "4", None)]).await;
    sqlx::query(late).execute(world.store.pool()).await.unwrap();
    ask(&world, DueKind::UsageCorrection, id).await;
    let (one, two) = tokio::join!(world.scheduler.run_due_once(), world.scheduler.run_due_once());
    assert_eq!(one.unwrap().done + two.unwrap().done, 1);
    assert_eq!(charged(&world, id).await, (Decimal::new(700, 2), 2, 0));
    // Less than was charged: a credit note on the latest invoice, then on the one before.
    world.db_usage(id, &[("2026-01-05", units, "1", None)]).await;
    sqlx::query(late).execute(world.store.pool()).await.unwrap();
    ask(&world, DueKind::UsageCorrection, id).await;
    world.settle().await;
    assert_eq!(charged(&world, id).await, (Decimal::new(100, 2), 2, 2));
    let totals: Vec<Decimal> = sqlx::query_scalar("SELECT total FROM credit_note ORDER BY sequence_number")
        .fetch_all(world.store.pool())
        .await
        .unwrap();
    assert_eq!(totals, [Decimal::new(400, 2), Decimal::new(200, 2)]);
    books_are_clean(&world).await;
}
