//! Guards promises 1 and 2: every accepted event is counted once, whatever is retried, killed, fenced or sealed, and what
//! cannot be billed is kept with its reason. Tests are named after the rule whose breaking sequence they play.

mod common;

use catalog::compiled::{StoredWindow, WindowQuery};
use chrono::TimeDelta;
use common::{World, at, period_start};
use domain::{Clock, Instant, Position, Quantity};
use ingest::checkpoint::{Checkpoint, Ownership, Written};
use ingest::door::{Entry, Facts, NewEvent};
use ingest::partition::Shared;
use ingest::record::{ControlKind, Record};
use serde_json::{Value, json};

const JANUARY: &str = "2026-01-15T12:00:00Z";
const FEBRUARY: &str = "2026-02-15T12:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn events_become_totals_rows_and_accruals() {
    let world = World::start().await;
    world
        .accept(&[world.event("a", "600", JANUARY), world.event("b", 500, JANUARY), world.event("c", "2.5", JANUARY)])
        .await;
    world.settle().await;
    // 1,102.5 - 100 included = 1,002.5: 1,000 at 0.10 and 2.5 at 0.08.
    assert_eq!(world.totals(period_start()).await, ("1102.5".into(), 3, "100.20 EUR".into()));
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 3);
    let accrued: rust_decimal::Decimal =
        sqlx::query_scalar("SELECT accrued FROM usage_accrual WHERE wallet_id IS NOT NULL")
            .fetch_one(world.store.pool())
            .await
            .expect("an accrual");
    assert_eq!(accrued.to_string(), "100.20");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_changes_nothing_whenever_it_comes() {
    let mut world = World::start().await;
    let events: Vec<Value> = (0..50).map(|i| world.event(&format!("k{i}"), "2", JANUARY)).collect();
    let first = world.accept(&events).await;
    let again = world.accept(&events).await;
    assert_eq!(first, again, "a replay has the same ids");
    world.accept(&[events[0].clone(), events[0].clone(), events[1].clone()]).await;
    world.settle().await;
    for gracefully in [true, false] {
        world.restart(gracefully).await;
        world.accept(&events).await;
        world.settle().await;
        assert_eq!(world.totals(period_start()).await, ("100".into(), 50, "0.00 EUR".into()));
    }
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 50);
    assert_eq!(world.count("SELECT count(*) FROM usage_rejection").await, 0);
}

/// Else: every orderly restart begins with counting again what was acknowledged before it.
#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_counts_everything_that_was_acknowledged() {
    let mut world = World::start().await;
    for round in 0..5 {
        let events: Vec<Value> = (0..200).map(|i| world.event(&format!("{round}-{i}"), "1", JANUARY)).collect();
        world.accept(&events).await;
    }
    world.ingest.take().expect("ingest runs").stop().await;
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_loses_and_doubles_nothing() {
    let mut world = World::start().await;
    for round in 0..6 {
        let events: Vec<Value> = (0..200).map(|i| world.event(&format!("{round}-{i}"), "1", JANUARY)).collect();
        world.accept(&events).await;
        world.restart(false).await; // no waiting: the kill meets every stage
    }
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.1, 1_200);
    assert_eq!(world.count("SELECT count(DISTINCT id) FROM usage_event").await, 1_200);
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 1_200);
}

/// Rule C6: the running totals of sub-windows are rows of their own; whoever takes the partition goes on with them. Daily
/// peaks are added up (meters.md 5, Window).
#[tokio::test(flavor = "multi_thread")]
async fn c6_sub_windows_survive_a_kill() {
    let meter = json!({"function": "MAX", "window": {"kind": "CALENDAR", "unit": "DAY"}});
    let mut world = World::idle(meter, json!({})).await;
    world.run().await;
    let (first, second) = (JANUARY, "2026-01-16T00:00:00Z");
    world.accept(&[world.event("a", "5", first), world.event("b", "7", second)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "12");
    for (key, quantity, day, peaks) in [("c", "8", first, "15"), ("d", "3", second, "15"), ("e", "9", second, "17")] {
        world.restart(false).await;
        world.accept(&[world.event(key, quantity, day)]).await;
        world.settle().await;
        assert_eq!(world.totals(period_start()).await.0, peaks, "{key}");
    }
    assert_eq!(world.count("SELECT count(*) FROM meter_member WHERE data IS NOT NULL").await, 2);
    assert_eq!(world.totals(period_start()).await.1, 5);
}

/// meters.md 5, MeterFormula: the totals of the meters that a formula combines are kept apart, and each day has its result.
#[tokio::test(flavor = "multi_thread")]
async fn c1_formulas_survive_a_kill() {
    let variables = json!([{"name": "s", "meter_key": "calls"}, {"name": "n", "meter_key": "seats"}]);
    let meter = json!({
        "function": "FORMULA", "formula": {"expression": "s / n", "variables": variables},
        "window": {"kind": "CALENDAR", "unit": "DAY"},
    });
    let mut world = World::idle(meter, json!({})).await;
    world.meter("calls", "SUM").await;
    world.meter("seats", "COUNT").await;
    world.run().await;
    let (first, second) = (JANUARY, "2026-01-16T00:00:00Z");
    for (key, metric, quantity, day, result) in [
        ("a", "calls", "6", first, "0"), // divided by zero
        ("b", "seats", "1", first, "6"),
        ("c", "seats", "1", first, "3"),
        ("d", "calls", "5", second, "3"),
        ("e", "seats", "1", second, "8"),
        ("f", "calls", "0.5", first, "8.25"),
    ] {
        world.restart(false).await;
        let mut event = world.event(key, quantity, day);
        event["metric_key"] = json!(metric);
        world.accept(&[event]).await;
        world.settle().await;
        assert_eq!(world.totals(period_start()).await.0, result, "{key}");
    }
    assert_eq!(world.count("SELECT count(*) FROM meter_member WHERE data IS NOT NULL").await, 4);
    assert_eq!(world.totals(period_start()).await.1, 6);
}

/// usage.md 5, Meter-level dedup, over a kill: the value counts once, and the repeat is kept without changing a total.
#[tokio::test(flavor = "multi_thread")]
async fn c6_dedup_keys_survive_a_kill() {
    let mut world = World::idle(json!({"dedup_key_path": "dimension_vars.request"}), json!({})).await;
    world.run().await;
    let with_request = |key: &str, request: &str| {
        let mut event = world.event(key, "10", JANUARY);
        event["dimension_vars"] = json!({ "request": request });
        event
    };
    let (first, repeat, other) = (with_request("a", "r1"), with_request("b", "r1"), with_request("c", "r2"));
    world.accept(&[first]).await;
    world.settle().await;
    world.restart(false).await;
    world.accept(&[repeat, other]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "20");
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 3);
}

/// Rule A1: a stalled owner wakes after another took the partition; its checkpoint must not pass.
#[tokio::test(flavor = "multi_thread")]
async fn a1_stalled_owner_is_fenced() {
    let world = World::idle(json!({}), json!({})).await;
    let now = period_start();
    let log = world.log.identity().clone();
    let mut stalled = Ownership::take(&world.store, &log, 0, now).await.expect("taken");
    let mut owner = Ownership::take(&world.store, &log, 0, now).await.expect("taken");
    let step = |next_offset| Checkpoint { next_offset, ..Checkpoint::default() };
    let written = owner.write(&world.store, &world.usage, &step(5), now).await;
    assert_eq!(written.expect("the database answers"), Written::Committed);
    let written = stalled.write(&world.store, &world.usage, &step(9), now).await;
    assert_eq!(written.expect("the database answers"), Written::Fenced);
    assert_eq!(world.count("SELECT next_offset FROM partition_checkpoint").await, 5);
    // Nor does an owner pass a checkpoint that it did not write itself.
    owner.next_offset = 4;
    let written = owner.write(&world.store, &world.usage, &step(6), now).await;
    assert_eq!(written.expect("the database answers"), Written::Fenced);
}

/// Rule A1 through the whole machine: a second ingest takes the partitions while the first one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a1_two_owners_count_once() {
    let world = World::start().await;
    world.accept(&[world.event("a", "1", JANUARY)]).await;
    world.settle().await;
    for partition in 0..common::PARTITIONS {
        let now = world.scope.now();
        Ownership::take(&world.store, world.log.identity(), partition, now).await.expect("taken by another node");
    }
    // The fenced partitions drop everything, take themselves back and go on from the checkpoint.
    world.accept(&[world.event("b", "2", JANUARY), world.event("a", "1", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await, ("3".into(), 2, "0.00 EUR".into()));
}

/// Rule A4: records that cannot be read or counted are kept, and never stop the partition.
#[tokio::test(flavor = "multi_thread")]
async fn a4_poison_is_kept_and_stops_nothing() {
    let world = World::start().await;
    for poison in [&b"\x01\x09junk"[..], b"\x07", b"", b"\x01\x00short"] {
        world.append_raw(world.home(), bytes::Bytes::copy_from_slice(poison)).await;
    }
    world.append_raw(world.home(), vec![0xff_u8; 300_000].into()).await;
    world.accept(&[world.event("good", "7", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "7");
    assert_eq!(world.count("SELECT count(*) FROM unattributed_record").await, 5);
}

/// Rule A5: a record that lies on another partition is forwarded to its home and counted there, once.
#[tokio::test(flavor = "multi_thread")]
async fn a5_a_record_of_another_home_is_forwarded() {
    let world = World::start().await;
    let json = world.event("stray", "5", JANUARY).to_string();
    let event = NewEvent::read(&json).expect("good");
    let terms =
        world.snapshots.terms(world.scope.workspace_id, world.subscription).await.expect("read").expect("exists");
    let catalog = world.snapshots.workspace(world.scope.workspace_id).await.expect("read");
    let verdict = ingest::door::judge(&world.scope, &catalog, Some(&terms), &Facts::default(), &event);
    let ingest::door::Judged::Good { event, home } = verdict.on(&world.scope, event, 1) else { panic!("must be good") };
    world.append(1 - home, Record::Usage(event)).await;
    world.accept(&[world.event("stray", "5", JANUARY)]).await;
    world.settle().await;
    world.settle().await; // what was forwarded has been counted, too
    assert_eq!(world.totals(period_start()).await, ("5".into(), 1, "0.00 EUR".into()));
}

/// Rule B2: only a counted event occupies its id; another content of a counted id is refused and kept.
#[tokio::test(flavor = "multi_thread")]
async fn b2_only_a_counted_event_occupies_its_id() {
    let world = World::start().await;
    world.accept(&[world.event("k", "1", JANUARY)]).await;
    world.settle().await;
    world.accept(&[world.event("k", "2", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "1");
    assert_eq!(world.count("SELECT count(*) FROM usage_rejection WHERE code = 'IDEMPOTENCY_CONFLICT'").await, 1);
    // An event that could not be counted leaves its id free for the mended one.
    let huge =
        json!({"tiers": [{"tier_order": 1, "up_to": null, "unit_amount": "999999999999999", "flat_amount": "0"}]});
    let world = World::idle(json!({}), huge).await;
    let mut world = world;
    world.run().await;
    world.accept(&[world.event("k", "999999999999999", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.count("SELECT count(*) FROM usage_rejection").await, 1);
    world.accept(&[world.event("k", "101", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "101");
}

/// Rule B2: the log is replayed, the rejection is written once.
#[tokio::test(flavor = "multi_thread")]
async fn b2_a_rejection_is_written_once() {
    let mut world = World::start().await;
    world.accept(&[world.event("k", "1", JANUARY)]).await;
    world.accept(&[world.event("k", "2", JANUARY)]).await;
    for _ in 0..3 {
        world.restart(false).await;
    }
    world.settle().await;
    assert_eq!(world.count("SELECT count(*) FROM usage_rejection").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM outbox WHERE event_type = 'usage_event.dropped'").await, 1);
}

/// Rule B6. Else: usage of what was created a moment ago, on this node or another, is refused for good.
#[tokio::test(flavor = "multi_thread")]
async fn b6_what_was_published_a_moment_ago_is_known_at_the_door() {
    let world = World::start().await;
    let set_status = async |status: &str| {
        let mut tx = world.store.begin("changing a product").await.expect("a transaction");
        let sql = "UPDATE product SET status = $1 WHERE id = $2";
        sqlx::query(sql).bind(status).bind(world.product).execute(tx.conn()).await.expect("changed");
        tx.catalog_changed(world.scope.workspace_id);
        tx.commit().await.expect("committed");
    };
    set_status("draft").await;
    let event = world.event("early", "1", JANUARY);
    assert!(matches!(world.send(std::slice::from_ref(&event)).await[..], [Entry::Rejected(_)]));
    set_status("published").await;
    world.accept(&[event]).await;
}

/// Rule B3: the index is gone (the partition comes back after another node owned it); repeats are not counted again.
#[tokio::test(flavor = "multi_thread")]
async fn b3_an_empty_index_is_filled_from_the_usage_store() {
    let mut world = World::start().await;
    let events: Vec<Value> = (0..300).map(|i| world.event(&format!("k{i}"), "1", JANUARY)).collect();
    world.accept(&events).await;
    world.settle().await;
    world.ingest.take().expect("ingest runs").stop().await;
    world.forget_indexes();
    world.reopen().await;
    world.accept(&events).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.1, 300);
}

/// Rule B4: the index has forgotten the id; the usage store has not. Else: day 41 counts twice.
#[tokio::test(flavor = "multi_thread")]
async fn b4_a_repeat_from_beyond_the_horizon_counts_once() {
    let mut world = World::idle(json!({}), json!({})).await;
    let old = world.event("old", "10", JANUARY);
    repeat_after_60_days(&mut world, &old).await;
    assert_eq!(world.totals(period_start()).await, ("11".into(), 2, "0.00 EUR".into()));
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 2);
}

/// Rule B4 on a test clock: its timestamps say nothing about when an event was counted, this one lies ahead of both days.
#[tokio::test(flavor = "multi_thread")]
async fn b4_on_a_test_clock_any_unknown_id_is_looked_up() {
    const JUNE: &str = "2026-06-15T12:00:00Z";
    let mut world = World::idle(json!({}), json!({})).await;
    world.live_on_a_test_clock(JUNE).await;
    let old = world.event("old", "10", JUNE);
    repeat_after_60_days(&mut world, &old).await;
    assert_eq!(world.totals(at(JUNE)).await, ("10".into(), 1, "0.00 EUR".into()));
    assert_eq!(world.totals(period_start()).await.0, "1");
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 2);
}

/// Counts an event in January, and what comes 60 days later: the same event again, and a new one.
async fn repeat_after_60_days(world: &mut World, event: &Value) {
    run_at(world, at(JANUARY)).await;
    let first = world.accept(std::slice::from_ref(event)).await;
    world.settle().await;
    world.ingest.take().expect("ingest runs").stop().await;
    world.reopen_log().await;
    let later = at(JANUARY) + TimeDelta::days(60);
    assert_eq!(
        world.index_at(later).await.lookup(&first).expect("the disk is well"),
        [None],
        "it has forgotten the id"
    );
    run_at(world, later).await;
    let again = world.accept(&[event.clone(), world.event("new", "1", JANUARY)]).await;
    assert_eq!(again[0], first[0]);
    world.settle().await;
}

async fn run_at(world: &mut World, now: Instant) {
    world.scope.clock = Clock::At(now);
    world.run_with(Shared { clock: Clock::At(now), ..world.shared() }).await;
}

/// Rule C2: after the seal an event of the window is late, before it never; both are a matter of order in the log.
#[tokio::test(flavor = "multi_thread")]
async fn c2_order_in_the_log_decides_what_is_late() {
    let world = World::start().await;
    let (january, february) = (("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"), "2026-02-01T00:00:00Z");
    world.accept(&[world.event("before", "10", JANUARY)]).await;
    world.control(ControlKind::PeriodEnd, january.0, january.1).await;
    world.accept(&[world.event("grace", "20", JANUARY), world.event("next", "1", FEBRUARY)]).await;
    world.control(ControlKind::WindowSeal, january.0, january.1).await;
    world.accept(&[world.event("late", "300", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "30");
    assert_eq!(world.totals(at(february)).await.0, "301", "late usage counts in the open window");
    assert_eq!(world.count("SELECT count(*) FROM usage_event WHERE late").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM usage_window WHERE status = 'sealed'").await, 1);
    // A finalization that failed takes its seal back.
    world.control(ControlKind::WindowReopen, january.0, january.1).await;
    world.accept(&[world.event("reopened", "5", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "35");
    assert_eq!(world.count("SELECT count(*) FROM usage_window WHERE status = 'ended'").await, 1);
}

/// Rule C2 after a restart: a new owner knows which windows are sealed.
#[tokio::test(flavor = "multi_thread")]
async fn c2_a_seal_outlives_its_owner() {
    let mut world = World::start().await;
    world.accept(&[world.event("a", "10", JANUARY)]).await;
    world.control(ControlKind::WindowSeal, "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z").await;
    world.settle().await;
    world.restart(false).await;
    world.accept(&[world.event("late", "5", JANUARY), world.event("a", "10", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "10");
    assert_eq!(world.totals(at(FEBRUARY)).await.0, "5");
}

/// usage.md 5, `CORRECT`: a late event is counted in its own window, whose row stays as it was sealed, and its correction is
/// asked for once, whoever is killed. Rule C4: what billing counts is the window with the late events, by position.
#[tokio::test(flavor = "multi_thread")]
async fn late_usage_that_is_corrected_is_counted_once_over_kills() {
    let mut world = World::idle(json!({"late_event_policy": "CORRECT"}), json!({})).await;
    world.run().await;
    world.accept(&[world.event("a", "1000", JANUARY)]).await;
    world.settle().await;
    let (start, end) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    world.control(ControlKind::WindowSeal, start, end).await;
    world.settle().await;
    world.execute("UPDATE usage_window SET billed = true").await;
    let sealed = "SELECT position + event_count * 1000000 FROM usage_window";
    let before = world.count(sealed).await;
    for round in 0..3 {
        let late = [world.event("late", "500", JANUARY), world.event(&format!("late {round}"), "1", JANUARY)];
        world.accept(&late).await;
        world.restart(round == 1).await; // the kill meets every stage
    }
    world.settle().await;
    assert_eq!(world.count("SELECT count(*) FROM usage_event WHERE late").await, 4);
    assert_eq!(world.count(sealed).await, before, "the row is a billed one");
    let asked = "SELECT count(*) FROM due_work WHERE kind = 'usage_correction'";
    assert!((1..=4).contains(&world.count(asked).await));
    let received = "SELECT count(*) FROM outbox WHERE event_type = 'usage_event.late_received'";
    assert_eq!(world.count(received).await, 4);
    let noted = Position::from_i64(world.count("SELECT position FROM usage_correction").await);
    let query = WindowQuery::Starting(&[(world.subscription, at(start))]);
    let mut conn = world.store.pool().acquire().await.expect("a connection");
    let row = StoredWindow::load(&mut conn, &world.snapshots, query).await.expect("readable").remove(0);
    let counted = ingest::late::count(&world.usage, &world.snapshots, row.clone(), noted).await.expect("countable");
    let quantity = |window: &StoredWindow| window.state.entries()[0].quantity(None).expect("in range").to_string();
    assert_eq!((quantity(&row), quantity(&counted)), ("1000".into(), "1503".into()));
    assert_eq!((counted.event_count, counted.position), (5, noted));
}

/// A finalization that fails after its seal gives the window back: what came late meanwhile is in time again.
#[tokio::test(flavor = "multi_thread")]
async fn late_usage_of_a_window_that_is_open_again_counts_in_it() {
    let mut world = World::idle(json!({"late_event_policy": "CORRECT"}), json!({})).await;
    world.run().await;
    let (start, end) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    world.accept(&[world.event("a", "1000", JANUARY)]).await;
    world.control(ControlKind::WindowSeal, start, end).await;
    world.accept(&[world.event("late", "500", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "1000");
    assert_eq!(world.count("SELECT count(*) FROM usage_correction").await, 1);
    world.control(ControlKind::WindowReopen, start, end).await;
    world.accept(&[world.event("b", "1", JANUARY)]).await;
    world.restart(false).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await, ("1501".into(), 3, "132.08 EUR".into()));
    assert_eq!(world.count("SELECT count(*) FROM usage_correction").await, 0);
    assert_eq!(world.count("SELECT count(*) FROM usage_event WHERE late").await, 1);
    world.control(ControlKind::WindowSeal, start, end).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "1501");
}

/// A period that was closed before anything was metered has no window: late usage that is corrected is not lost in it.
#[tokio::test(flavor = "multi_thread")]
async fn late_usage_of_a_period_without_a_window_is_kept_for_its_correction() {
    let mut world = World::idle(json!({"late_event_policy": "CORRECT"}), json!({})).await;
    world.run().await;
    world.control(ControlKind::WindowSeal, "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z").await;
    world.accept(&[world.event("late", "500", JANUARY), world.event("more", "5", JANUARY)]).await;
    world.settle().await;
    let closed = "SELECT count(*) FROM usage_correction JOIN usage_window w USING (subscription_id, window_start)
                  WHERE w.billed AND w.window_end = '2026-02-01' AND w.event_count = 0";
    assert_eq!(world.count(closed).await, 1);
    assert_eq!(world.count("SELECT count(*) FROM usage_event WHERE late").await, 2);
}

/// Rule C2: a subscription that was cancelled in mid-period has no window in which a late event could count. Else: after a
/// restart the event makes the sealed window anew, over the bill, or stops its partition.
#[tokio::test(flavor = "multi_thread")]
async fn c2_after_a_cancellation_a_late_event_is_refused_also_by_the_next_owner() {
    let mut world = World::start().await;
    world.accept(&[world.event("a", "10", JANUARY)]).await;
    world.settle().await;
    world.end("2026-01-20T00:00:00Z").await;
    world.control(ControlKind::WindowSeal, "2026-01-01T00:00:00Z", "2026-01-20T00:00:00Z").await;
    world.settle().await;
    world.restart(false).await;
    world.accept(&[world.event("late", "5", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "10");
    assert_eq!(world.count("SELECT count(*) FROM usage_window WHERE status = 'sealed'").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM usage_rejection WHERE code = 'LATE_EVENT'").await, 1);
}

/// Rule D3: a window whose invoice is final is opened by nobody. Else: a reopening that was given up by its sender, and is in
/// the log all the same, lets usage into a bill that was sent.
#[tokio::test(flavor = "multi_thread")]
async fn d3_a_billed_window_is_not_opened_again() {
    let world = World::start().await;
    let (start, end) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    world.accept(&[world.event("a", "110", JANUARY)]).await;
    world.control(ControlKind::WindowSeal, start, end).await;
    world.settle().await;
    world.execute("UPDATE usage_window SET billed = true; UPDATE usage_accrual SET closed = true").await;
    world.control(ControlKind::WindowReopen, start, end).await;
    world.accept(&[world.event("late", "5", JANUARY)]).await;
    world.control(ControlKind::WindowSeal, start, end).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await, ("110".into(), 1, "1.00 EUR".into()));
    assert_eq!(world.totals(at(FEBRUARY)).await.0, "5");
    assert_eq!(world.count("SELECT count(*) FROM usage_window WHERE status = 'sealed' AND billed").await, 1);
}

/// Rule A3: actors beyond the bound leave with a clean state and come back with it.
#[tokio::test(flavor = "multi_thread")]
async fn a3_passivated_subscriptions_go_on_where_they_stood() {
    let mut world = World::idle(json!({}), json!({})).await;
    world.settings.active_subscriptions_max = 1;
    world.run().await;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(world.subscribe().await);
    }
    for round in 0..10 {
        for (number, (customer, subscription)) in others.iter().enumerate() {
            let mut event = world.event(&format!("{round}-{number}"), "2", JANUARY);
            event["customer_id"] = json!(customer);
            event["subscription_id"] = json!(subscription);
            world.accept(&[event]).await;
        }
        world.settle().await;
    }
    for (_, subscription) in others {
        assert_eq!(world.totals_of(subscription, period_start()).await.0, "20");
    }
}

/// Rule A4: an allowance that cannot be computed refuses the events that need it. Else: the checkpoint fails for ever, and
/// with it the counting of everybody on the partition.
#[tokio::test(flavor = "multi_thread")]
async fn a4_an_allowance_out_of_range_stops_nobody_else() {
    let mut world = World::idle(json!({}), json!({})).await;
    world
        .execute(
            "UPDATE entity_version SET snapshot = jsonb_set(jsonb_set(snapshot, '{products,0,included_quantity}', '\"0.5\"'),
                 '{products,0,included_quantity_per_unit}', 'true') WHERE entity_type = 'plan';
             UPDATE subscription_item SET quantity = 0.000000000001",
        )
        .await;
    world.run().await;
    let (customer, subscription) = world.subscribe_beside().await;
    let mut good = world.event("good", "7", JANUARY);
    good["customer_id"] = json!(customer);
    good["subscription_id"] = json!(subscription);
    world.accept(&[world.event("bad", "3", JANUARY), good]).await;
    world.settle().await;
    assert_eq!(world.totals_of(subscription, period_start()).await.0, "7");
    assert_eq!(world.count("SELECT count(*) FROM usage_rejection").await, 1);
}

/// Rule B3: an id that was counted through the log before is known to the next one. Else: whoever moves to another log
/// counts every late repeat again.
#[tokio::test(flavor = "multi_thread")]
async fn b3_a_repeat_through_a_new_log_counts_once() {
    let mut world = World::start().await;
    world.accept(&[world.event("a", "10", JANUARY)]).await;
    world.settle().await;
    world.move_to_a_new_log().await;
    world.accept(&[world.event("a", "10", JANUARY), world.event("b", "1", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "11");
}

/// Promise 2: what a policy drops is announced.
#[tokio::test(flavor = "multi_thread")]
async fn usage_that_a_policy_drops_is_announced_once() {
    let mut world = World::idle(json!({"late_event_policy": "DROP"}), json!({})).await;
    world.run().await;
    world.accept(&[world.event("a", "10", JANUARY)]).await;
    world.control(ControlKind::WindowSeal, "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z").await;
    world.accept(&[world.event("late", "5", JANUARY)]).await;
    world.settle().await;
    world.restart(false).await;
    world.settle().await;
    assert_eq!(world.totals(at(FEBRUARY)).await.0, "0");
    assert_eq!(world.count("SELECT count(*) FROM outbox WHERE event_type = 'usage_event.dropped'").await, 1);
}

/// Rule C3: thresholds are evaluated after each event of a batch.
#[tokio::test(flavor = "multi_thread")]
async fn c3_each_event_of_a_batch_is_compared_with_the_thresholds() {
    let mut world = World::start().await;
    world
        .accept(&[world.event("a", "50", JANUARY), world.event("b", "35", JANUARY), world.event("c", "20", JANUARY)])
        .await;
    world.restart(false).await;
    world.settle().await;
    let breaches: Vec<(String, Quantity)> =
        sqlx::query_as("SELECT threshold_name, observed_value FROM meter_breach ORDER BY threshold_value")
            .fetch_all(world.store.pool())
            .await
            .expect("breaches");
    let found: Vec<_> = breaches.iter().map(|(name, observed)| (name.as_str(), observed.to_string())).collect();
    assert_eq!(found, [("80", "85".to_owned()), ("100", "105".to_owned())]);
    // Each is announced, once, although the batch was counted twice.
    assert_eq!(world.count("SELECT count(*) FROM outbox WHERE event_type = 'meter.threshold_breached'").await, 2);
}

/// An amount that leaves the range of money refuses the event that causes it, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn an_overflow_refuses_one_event() {
    let rate = json!({"tiers": [{"tier_order": 1, "up_to": null, "unit_amount": "100000", "flat_amount": "0"}]});
    let mut world = World::idle(json!({}), rate).await;
    world.run().await;
    let huge = "999999999999999";
    world
        .accept(&[world.event("a", huge, JANUARY), world.event("b", huge, JANUARY), world.event("c", "50", JANUARY)])
        .await;
    world.settle().await;
    let (quantity, events, _) = world.totals(period_start()).await;
    let refused = world.count("SELECT count(*) FROM usage_rejection WHERE code = 'BUSINESS_RULE_VIOLATION'").await;
    assert_eq!((quantity.as_str(), events, refused), ("1000000000000049", 2, 1));
}

/// What the door can see it refuses there, per event.
#[tokio::test(flavor = "multi_thread")]
async fn the_door_refuses_with_the_code_of_the_reference() {
    let world = World::start().await;
    let with = |name: &str, value: Value| {
        let mut event = world.event("k", "1", JANUARY);
        event[name] = value;
        event
    };
    let stranger = uuid::Uuid::now_v7().to_string();
    for (event, code) in [
        (with("subscription_id", json!(stranger)), "NOT_FOUND"),
        (with("customer_id", json!(stranger)), "NOT_FOUND"),
        (with("product_id", json!(stranger)), "NOT_FOUND"),
        (with("metric_key", json!("other")), "BUSINESS_RULE_VIOLATION"),
        (with("quantity", json!("-1")), "BUSINESS_RULE_VIOLATION"),
        (with("quantity", json!("x")), "VALIDATION"),
        (with("timestamp", json!("2999-01-01T00:00:00Z")), "VALIDATION"),
        (with("timestamp", json!("2025-12-31T23:59:59Z")), "BUSINESS_RULE_VIOLATION"),
        (with("price_key", json!("x")), "VALIDATION"),
        (with("hold_id", json!(stranger)), "BUSINESS_RULE_VIOLATION"),
        (with("wallet_id", json!(stranger)), "NOT_FOUND"),
        (json!("text"), "BAD_REQUEST"),
    ] {
        let entries = world.send(&[event.clone(), world.event("good", "1", JANUARY)]).await;
        let Entry::Rejected(error) = &entries[0] else { panic!("must be refused: {event}") };
        assert_eq!(error.code(), code, "{event}: {error}");
        assert!(matches!(entries[1], Entry::Accepted(_)), "the other event of the batch stands alone");
    }
    let entries = world.send(&[world.event("same", "1", JANUARY), world.event("same", "2", JANUARY)]).await;
    let Entry::Rejected(error) = &entries[1] else { panic!("must be refused") };
    assert_eq!(error.code(), "IDEMPOTENCY_CONFLICT");
}

/// Positions of one partition grow with its records.
#[test]
fn positions_compare_by_log_first() {
    assert!(Position::new(1, u64::from(u32::MAX)) < Position::new(2, 0));
    assert!(Position::new(2, 1) > Position::new(2, 0));
}

/// usage.md 5 and test-clocks.md 4: an event is compared with its customer's time, which may be ahead of the machine's or behind.
#[tokio::test(flavor = "multi_thread")]
async fn customers_on_a_test_clock_live_at_its_time() {
    let world = World::idle(json!({}), json!({})).await;
    let clock = uuid::Uuid::now_v7();
    world
        .execute(&format!(
            "INSERT INTO test_clock (id, workspace_id, frozen_at, status, created_at, updated_at)
             VALUES ('{clock}', '{}', '2400-01-01Z', 'active', now(), now());
             UPDATE subscription SET test_clock_id = '{clock}'",
            world.scope.workspace_id
        ))
        .await;
    let judge = async |timestamp: &str| match world.send(&[world.event("t", "1", timestamp)]).await.remove(0) {
        Entry::Accepted(_) => "accepted".to_owned(),
        Entry::Rejected(error) => error.to_string(),
        Entry::Dropped { .. } => "dropped".to_owned(),
    };
    assert_eq!(judge("2400-01-01T00:05:00Z").await, "accepted", "centuries ahead of the machine");
    let refused = judge("2400-01-01T00:05:01Z").await;
    assert!(refused.contains("timestamp"), "{refused}");
    world.execute("UPDATE test_clock SET frozen_at = '2026-01-10Z'").await;
    let refused = judge("2026-01-10T00:05:01Z").await;
    assert!(refused.contains("timestamp"), "past on the machine, future on the clock: {refused}");
    world.execute("UPDATE test_clock SET status = 'advancing', target = '2026-01-11Z'").await;
    assert_eq!(judge("2026-01-11T00:05:00Z").await, "accepted", "where an advance is going");
    // Without a clock, the machine's time.
    let (customer, subscription) = world.subscribe().await;
    let other = |timestamp: &str| {
        let mut event = world.event("o", "1", timestamp);
        (event["customer_id"], event["subscription_id"]) = (json!(customer), json!(subscription));
        event
    };
    let entries = world.send(&[other("2400-01-01T00:00:00Z"), other("2026-01-20T00:00:00Z")]).await;
    assert!(matches!(entries[..], [Entry::Rejected(_), Entry::Accepted(_)]), "{entries:?}");
}

/// What events name is read for the batch: each stands alone, and all of a kind cost one statement.
#[tokio::test(flavor = "multi_thread")]
async fn what_events_name_is_compared_for_each() {
    let world = World::start().await;
    let (other, _) = world.subscribe().await;
    let wallet_of = async |customer| -> String {
        let wallet: uuid::Uuid = sqlx::query_scalar("SELECT id FROM wallet WHERE customer_id = $1")
            .bind(customer)
            .fetch_one(world.store.pool())
            .await
            .expect("a wallet");
        wallet.to_string()
    };
    let (own, foreign) = (wallet_of(world.customer).await, wallet_of(other).await);
    let hold = uuid::Uuid::now_v7();
    world
        .execute(&format!(
            "INSERT INTO wallet_hold (id, organization_id, workspace_id, wallet_id, amount, currency, status, subscription_id,
                 metric_key, expires_at, created_at, updated_at)
             VALUES ('{hold}', '{}', '{}', '{own}', 1, 'EUR', 'PENDING', '{}', 'tokens', now() + '1 day', now(), now())",
            world.scope.organization_id, world.scope.workspace_id, world.subscription
        ))
        .await;
    let with = |key: &str, changes: serde_json::Value| {
        let mut event = world.event(key, "1", JANUARY);
        changes.as_object().expect("an object").iter().for_each(|(name, value)| event[name] = value.clone());
        event
    };
    let nobody = uuid::Uuid::now_v7();
    let entries = world
        .send(&[
            with("a", json!({"wallet_id": own, "hold_id": hold})),
            with("b", json!({"wallet_id": foreign})),
            with("c", json!({"wallet_id": nobody})),
            with("d", json!({"wallet_id": own, "wallet_currency": "USD"})),
            with("e", json!({"hold_id": hold})),
            with("f", json!({"hold_id": nobody})),
            with("g", json!({"customer_id": other})),
            with("h", json!({"customer_id": nobody})),
            with("i", json!({"subscription_id": nobody})),
            with("j", json!({"customer_id": nobody, "subscription_id": nobody})),
            with("k", json!({})), // while a hold is active, an event of its metric must name it (R7)
        ])
        .await;
    let found: Vec<String> = entries
        .into_iter()
        .map(|entry| match entry {
            Entry::Accepted(_) => "accepted".to_owned(),
            Entry::Rejected(domain::Error::NotFound { entity_type, .. }) => format!("no {entity_type}"),
            Entry::Rejected(error) => error.code().to_owned(),
            Entry::Dropped { .. } => "dropped".to_owned(),
        })
        .collect();
    let rule = "BUSINESS_RULE_VIOLATION";
    let expected = [
        "accepted",
        rule,
        "no wallet",
        "CURRENCY_MISMATCH",
        "accepted",
        rule,
        rule,
        "no customer",
        "no subscription",
        "no customer",
        rule,
    ];
    assert_eq!(found, expected);
}

/// Rule C3 and thresholds-and-alerts.md 4: what a window has told is part of its state, so that whoever goes on after a kill
/// refuses what was refused, and tells nothing again.
#[tokio::test(flavor = "multi_thread")]
async fn c3_blocks_and_alerts_survive_a_kill() {
    let meter = json!({"thresholds": [
        {"name": "cap", "comparator": "GTE", "value": "90", "basis": "ABSOLUTE", "rearm": false,
         "actions": [{"kind": "BLOCK"}, {"kind": "NOTIFY"}]},
    ]});
    let mut world = World::idle(meter, json!({})).await;
    let cap = json!([{"product_id": world.product, "metric_key": "tokens", "limit_quantity": "95", "action": "BLOCK"}]);
    world.execute(&format!("UPDATE subscription SET usage_caps = '{cap}' WHERE id = '{}'", world.subscription)).await;
    world.run().await;
    let first: Vec<Value> = (0..20).map(|i| world.event(&format!("a{i}"), "6", JANUARY)).collect();
    // All of it passes the door before the first checkpoint; behind the door nothing is refused (rule B6).
    world.accept(&first).await;
    for _ in 0..4 {
        world.restart(false).await; // no waiting: the kill meets every stage
    }
    world.settle().await;
    assert_eq!(world.totals(period_start()).await.0, "120");
    for _ in 0..2 {
        let refused = world.send(&[world.event("more", "1", JANUARY)]).await;
        let Entry::Rejected(error) = &refused[0] else { panic!("must be refused: {refused:?}") };
        assert_eq!(error.code(), "USAGE_CAP_REACHED");
        // Another month is another window.
        world.accept(&[world.event("next", "1", FEBRUARY)]).await;
        world.settle().await;
        world.restart(false).await;
    }
    assert_eq!(world.count("SELECT count(*) FROM usage_block").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 21);
    assert_eq!(world.count("SELECT count(*) FROM usage_rejection").await, 0);
    // The cap, and both actions of the threshold.
    assert_eq!(world.count("SELECT count(*) FROM meter_breach").await, 3);
    assert_eq!(world.count("SELECT count(*) FROM mail_outbox").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM outbox WHERE event_type LIKE 'allowance.%'").await, 3);
    // A seal ends it all.
    world.control(ControlKind::WindowSeal, "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z").await;
    world.settle().await;
    assert_eq!(world.count("SELECT count(*) FROM usage_block").await, 0);
}
