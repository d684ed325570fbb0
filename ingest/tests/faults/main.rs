//! Guards promises 1 and 2 where something breaks between two steps: a connection after its COMMIT, a checkpoint, the usage
//! store, the log behind the door. Tests are named after the rule whose breaking sequence they play.

#[path = "../common/mod.rs"]
mod common;
mod gate;
mod proxy;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use common::{World, period_start};
use domain::{CustomerId, Error, SubscriptionId, UsageEventId};
use gate::Gate;
use ingest::door::{Door, Entry};
use ingest::partition::Shared;
use ingest::record::ControlKind;
use prometheus::IntCounterVec;
use proxy::{Loss, Proxy};
use serde_json::{Value, json};
use store::Store;
use usage::{Fault, Faulty};

const JANUARY: &str = "2026-01-15T12:00:00Z";

/// Else: what a COMMIT without an answer has written is written again, or the partition falls for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a1_a_lost_commit_answer_is_settled_by_the_row() {
    let mut world = World::idle(json!({}), json!({})).await;
    let proxy = Proxy::before(world.database_url()).await;
    // Nothing but checkpoints commits through it.
    let store = Store::connect(&proxy.url, 4).await.expect("the proxy answers");
    let shared = Arc::new(Shared { store, ..world.shared() });
    world.run_with(shared.clone()).await;
    let losses = [Loss::Answer, Loss::Commit, Loss::Answer, Loss::Answer, Loss::Commit, Loss::Commit];
    for (round, loss) in losses.into_iter().enumerate() {
        proxy.lose(loss);
        let events: Vec<Value> = (0..20).map(|i| world.event(&format!("{round}-{i}"), "1", JANUARY)).collect();
        world.accept(&events).await;
        world.settle().await;
        world.eventually("a COMMIT is lost", async || proxy.lost() as usize == round + 1).await;
    }
    // The row moves before its owner hears of it; the next checkpoint shows that the owner has settled all of them.
    world.accept(&[world.event("last", "1", JANUARY)]).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await, ("121".into(), 121, "2.10 EUR".into()));
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 121);
    assert_eq!(of_home(&world, &shared.metrics.reloads), 0, "no partition fell");
}

/// Else: one actor reloaded alone misses what it had counted since the checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a2_the_partition_is_the_unit_of_failure() {
    let (mut world, neighbour) = without_checkpoints().await;
    let shared = Arc::new(world.shared());
    world.run_with(shared.clone()).await;
    for round in 0..3 {
        world.accept(&usage_of(&world, neighbour, round)).await;
        counted(&world, &shared, (round + 1) * 20).await;
    }
    assert_eq!(world.count("SELECT sum(next_offset)::bigint FROM partition_checkpoint").await, 0);
    // The checkpoint fails for the sake of one of the two.
    world
        .execute(&format!(
            "CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a fault'; END $$;
             CREATE TRIGGER fault BEFORE INSERT OR UPDATE ON usage_window FOR EACH ROW
                 WHEN (NEW.subscription_id = '{}') EXECUTE FUNCTION fault()",
            world.subscription
        ))
        .await;
    force_checkpoint(&world).await;
    fallen(&world, &shared).await;
    world.execute("DROP TRIGGER fault ON usage_window").await;
    world.accept(&usage_of(&world, neighbour, 3)).await;
    force_checkpoint(&world).await;
    world.settle().await;
    assert_exact(&world, neighbour.1).await;
}

/// The same when the partition itself ends in a panic, after it had asked its actors to count.
#[tokio::test(flavor = "multi_thread")]
async fn a2_a_panic_drops_all_that_was_counted_since_the_checkpoint() {
    let (mut world, neighbour) = without_checkpoints().await;
    let usage = Faulty::before(world.usage.clone());
    let shared = Arc::new(Shared { usage: usage.clone(), ..world.shared() });
    world.run_with(shared.clone()).await;
    for round in 0..3 {
        world.accept(&usage_of(&world, neighbour, round)).await;
        counted(&world, &shared, (round + 1) * 20).await;
    }
    usage.set(Some(Fault::Panic));
    world.accept(&usage_of(&world, neighbour, 3)).await;
    force_checkpoint(&world).await;
    fallen(&world, &shared).await;
    assert_eq!(usage.met(), 1);
    force_checkpoint(&world).await;
    world.settle().await;
    assert_exact(&world, neighbour.1).await;
}

type Subscriber = (CustomerId, SubscriptionId);

/// A world whose partitions take a few records at a time and write a checkpoint only when they must, and a neighbour of its
/// first subscription.
async fn without_checkpoints() -> (World, Subscriber) {
    let mut world = World::idle(json!({}), json!({})).await;
    world.settings.checkpoint_interval = Duration::from_secs(3_600);
    world.settings.batch_records_max = 7;
    let neighbour = world.subscribe_beside().await;
    (world, neighbour)
}

/// Every control record does; the period goes on counting until it is sealed.
async fn force_checkpoint(world: &World) {
    world.control(ControlKind::PeriodEnd, "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z").await;
}

/// Ten events of the first subscription and ten of a neighbour's, in turn.
fn usage_of(world: &World, neighbour: Subscriber, round: u64) -> Vec<Value> {
    let both = (0..10).flat_map(|i| {
        let mine = world.event(&format!("{round}-{i}"), "1", JANUARY);
        let mut other = world.event(&format!("{round}-{i}-other"), "3", JANUARY);
        other["customer_id"] = json!(neighbour.0);
        other["subscription_id"] = json!(neighbour.1);
        [mine, other]
    });
    both.collect()
}

/// What [`usage_of`] four rounds must come to.
async fn assert_exact(world: &World, neighbour: SubscriptionId) {
    assert_eq!(world.totals(period_start()).await, ("40".into(), 40, "0.00 EUR".into()));
    assert_eq!(world.totals_of(neighbour, period_start()).await, ("120".into(), 40, "2.00 EUR".into()));
    assert_eq!(world.count("SELECT count(*) FROM usage_event").await, 80);
    assert_eq!(world.count("SELECT count(DISTINCT id) FROM usage_event").await, 80);
}

/// The counter of the first subscription's partition.
fn of_home(world: &World, metric: &IntCounterVec) -> u64 {
    metric.with_label_values(&[&world.home().to_string()]).get()
}

async fn counted(world: &World, shared: &Shared, events: u64) {
    world.eventually("events are counted", async || of_home(world, &shared.metrics.counted) >= events).await;
}

async fn fallen(world: &World, shared: &Shared) {
    world.eventually("the partition falls", async || of_home(world, &shared.metrics.reloads) > 0).await;
}

/// Rows are written by the checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn b1_no_checkpoint_passes_what_is_not_stored_in_postgres() {
    b1_no_checkpoint_passes_what_is_not_stored(World::idle(json!({}), json!({})).await).await;
}

/// Rows are written before the checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn b1_no_checkpoint_passes_what_is_not_stored_in_clickhouse() {
    let world = World::idle(json!({}), json!({})).await;
    let Some(world) = world.with_clickhouse().await else { return };
    b1_no_checkpoint_passes_what_is_not_stored(world).await;
}

/// Else: a checkpoint passes events that no row bears, or an index knows what no store does.
async fn b1_no_checkpoint_passes_what_is_not_stored(mut world: World) {
    let usage = Faulty::before(world.usage.clone());
    world.usage = usage.clone();
    world.run().await;

    // An append that fails is tried again.
    usage.set(Some(Fault::Refuse));
    let first = world.accept(&[world.event("a", "1", JANUARY), world.event("b", "2", JANUARY)]).await;
    world.eventually("the append is tried again", async || usage.met() >= 3).await;
    assert_not_passed(&world, 0).await;
    usage.set(None);
    world.settle().await;
    assert_stored(&world, &first, "3").await;

    // A crash while nothing is stored, and one when everything is, but nobody knows.
    for (fault, key, total) in [(Fault::Refuse, "c", "13"), (Fault::Stall, "d", "23")] {
        let passed = world.log.end(world.home()).await.expect("an end");
        usage.set(Some(fault));
        let ids = world.accept(&[world.event(key, "10", JANUARY)]).await;
        world.eventually("the append meets its fault", async || usage.met() >= 1).await;
        assert_not_passed(&world, passed).await;
        world.crash().await;
        world.reopen_log().await;
        let known = world.index_at(world.scope.now()).await.lookup(&ids).expect("the disk is well");
        assert_eq!(known, [None], "the index knows an id only when its row is stored");
        usage.set(None);
        world.run().await;
        world.accept(&[world.event(key, "10", JANUARY)]).await;
        world.settle().await;
        assert_stored(&world, &ids, total).await;
    }
    assert_eq!(world.totals(period_start()).await.1, 4);
}

async fn assert_not_passed(world: &World, offset: u64) {
    let next: i64 = sqlx::query_scalar("SELECT next_offset FROM partition_checkpoint WHERE partition = $1")
        .bind(world.home().cast_signed())
        .fetch_one(world.store.pool())
        .await
        .expect("a checkpoint");
    assert_eq!(next.unsigned_abs(), offset, "the checkpoint stays before what is not stored");
}

async fn assert_stored(world: &World, ids: &[UsageEventId], total: &str) {
    let found = world.usage.find(world.home(), ids).await.expect("the store answers");
    assert_eq!(found.len(), ids.len());
    assert_eq!(world.totals(period_start()).await.0, total);
}

/// Else: "nothing was accepted", although 6 of 11 were.
#[tokio::test(flavor = "multi_thread")]
async fn b7_a_batch_takes_its_room_whole_or_not_at_all() {
    let mut world = World::start().await;
    let gate = Gate::before(world.log.clone());
    world.door = Door::new(world.store.clone(), world.snapshots.clone(), gate.clone()).with_room(10);
    let batch = |name: &str, size: usize| -> Vec<Value> {
        (0..size).map(|i| world.event(&format!("{name}-{i}"), "1", JANUARY)).collect()
    };
    let (first, second, third) = (batch("first", 6), batch("second", 5), batch("third", 4));

    // Six are on their way: five more do not fit, four do.
    gate.open(false);
    let refusing = async {
        world.eventually("the first batch is on its way", async || gate.seen() == 6).await;
        let texts: Vec<String> = second.iter().map(Value::to_string).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        tokio::select! {
            answer = world.door.accept(&world.scope, &texts) => {
                let refused = answer.expect_err("there is no room");
                let is_whole = |detail: &str| detail.contains("nothing was accepted");
                assert!(matches!(&refused, Error::Unavailable { detail, .. } if is_whole(detail)), "{refused}");
            }
            () = world.eventually("a record is appended", async || gate.seen() > 6) => {}
        }
        assert_eq!(gate.seen(), 6, "not one record of it was appended");
    };
    let fitting = async {
        refusing.await;
        let opening = async {
            world.eventually("the third batch is on its way", async || gate.seen() == 10).await;
            gate.open(true);
        };
        tokio::join!(world.accept(&third), opening).0
    };
    let (accepted, fitted) = tokio::join!(world.accept(&first), fitting);
    assert_eq!((accepted.len(), fitted.len()), (6, 4));

    // What has its room and fails later is answered for itself, also when it is all of them; the room is free again.
    for lost in [vec![1, 3], vec![0, 1, 2, 3, 4]] {
        gate.lose(&lost);
        let entries = world.send(&second).await;
        for (place, entry) in entries.iter().enumerate() {
            match entry {
                Entry::Accepted(_) => assert!(!lost.contains(&place)),
                Entry::Rejected(error) => {
                    assert!(lost.contains(&place), "{error}");
                    assert!(error.retryable(), "{error}");
                    assert_eq!(error.code(), "SERVICE_UNAVAILABLE");
                }
                other => panic!("neither accepted nor refused: {other:?}"),
            }
        }
    }
    world.accept(&second).await;
    world.settle().await;
    assert_eq!(world.totals(period_start()).await, ("15".into(), 15, "0.00 EUR".into()));
}
