//! Guards promise 1 against one key under two customers (rule B5): their homes are two partitions, both count the id, and
//! when the windows are sealed exactly one of the two events stays, whatever meter counted it and whoever is sealed first.

mod common;

use common::{World, at, period_start};
use domain::{CustomerId, Instant, SubscriptionId, UsageEvent};
use ingest::door::{Facts, Judged, NewEvent};
use ingest::record::{ControlKind, Record};
use ingest::twins::{Seal, take_back};
use serde_json::{Value, json};

const JANUARY: &str = "2026-01-15T12:00:00Z";
const WINDOW: (&str, &str) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");

/// A world with a second customer at another home.
struct Pair {
    world: World,
    other: (CustomerId, SubscriptionId),
}

impl Pair {
    async fn of(world: World) -> Self {
        let mut world = world;
        world.run().await;
        let other = world.subscribe_elsewhere().await;
        Self { world, other }
    }

    async fn on_postgres(meter: Value) -> Self {
        Self::of(World::idle(meter, json!({})).await).await
    }

    async fn on_clickhouse(meter: Value) -> Option<Self> {
        Some(Self::of(World::idle(meter, json!({})).await.with_clickhouse().await?).await)
    }

    fn first(&self) -> (CustomerId, SubscriptionId) {
        (self.world.customer, self.world.subscription)
    }

    fn event_of(&self, (customer, subscription): (CustomerId, SubscriptionId), key: &str, quantity: &str) -> Value {
        let mut event = self.world.event(key, quantity, JANUARY);
        event["customer_id"] = json!(customer);
        event["subscription_id"] = json!(subscription);
        event
    }

    /// The first customer's events, then, accepted later, the other's; "shared" is a key of both.
    async fn count_both(&self) {
        let events = |whose, events: &[(&str, &str)]| -> Vec<Value> {
            events.iter().map(|(key, quantity)| self.event_of(whose, key, quantity)).collect()
        };
        self.world.accept(&events(self.first(), &[("shared", "50"), ("a", "7")])).await;
        let others = [("shared", "900"), ("b1", "10"), ("b2", "10"), ("b3", "20")];
        self.world.accept(&events(self.other, &others)).await;
        self.world.settle().await;
    }

    /// Past the door, so that it can be accepted at any time and lie anywhere in the log.
    async fn append(&self, whose: (CustomerId, SubscriptionId), key: &str, quantity: &str, accepted_at: Instant) {
        let world = &self.world;
        let new = NewEvent::read(&self.event_of(whose, key, quantity).to_string()).expect("good");
        let terms = world.snapshots.terms(world.scope.workspace_id, whose.1).await.expect("read").expect("exists");
        let catalog = world.snapshots.workspace(world.scope.workspace_id).await.expect("read");
        let verdict = ingest::door::judge(&world.scope, &catalog, Some(&terms), &Facts::default(), &new);
        let Judged::Good { event, home } = verdict.on(&world.scope, new, 1) else { panic!("must be good") };
        let event = Box::new(UsageEvent { accepted_at, ..*event });
        world.append(home, Record::Usage(event)).await;
    }

    async fn seal(&self, whose: (CustomerId, SubscriptionId)) {
        self.world.control_of(whose, ControlKind::WindowSeal, WINDOW.0, WINDOW.1).await;
    }

    async fn seal_both(&self) {
        self.seal(self.other).await;
        self.seal(self.first()).await;
        self.world.settle().await;
    }

    /// (quantity, events) of the first customer and of the other.
    async fn totals(&self) -> [(String, u64); 2] {
        let (first, other) = (self.first().1, self.other.1);
        let first = self.world.totals_of(first, period_start()).await;
        let other = self.world.totals_of(other, period_start()).await;
        [(first.0, first.1), (other.0, other.1)]
    }

    /// Customers of the rejections, each with its key.
    async fn taken_back(&self) -> Vec<(CustomerId, String)> {
        sqlx::query_as(
            "SELECT customer_id, payload ->> 'idempotency_key' FROM usage_rejection
             WHERE code = 'IDEMPOTENCY_CONFLICT' AND status = 'open' ORDER BY payload ->> 'idempotency_key'",
        )
        .fetch_all(self.world.store.pool())
        .await
        .expect("rejections")
    }

    /// Whose event stands for a key.
    async fn stands(&self, key: &str) -> CustomerId {
        let id = domain::UsageEventId::of(self.world.scope.workspace_id, key);
        let stored = self.world.usage.get(&self.world.scope, id).await.expect("read").expect("stored");
        assert_eq!(stored.voided_at, None);
        stored.counted.event.customer_id
    }
}

/// Quantity and events of both customers while both count "shared", and after it was taken back from the other.
type Figures = [(&'static str, u64); 2];

async fn assert_counts_once(pair: Pair, before: Figures, after: Figures) {
    let figures = |figures: Figures| figures.map(|(quantity, events)| (quantity.to_owned(), events));
    pair.count_both().await;
    assert_eq!(pair.totals().await, figures(before), "neither partition knows the other's ids");
    pair.seal_both().await;
    assert_eq!(pair.totals().await, figures(after));
    assert_eq!(pair.taken_back().await, [(pair.other.0, "shared".to_owned())], "listed, not lost");
    assert_eq!(pair.stands("shared").await, pair.world.customer);
    assert_eq!(pair.world.count("SELECT count(*) FROM usage_void").await, 1);
    let sealed = "SELECT count(*) FROM usage_window WHERE status = 'sealed'";
    assert_eq!(pair.world.count(sealed).await, 2);
    let announced = "SELECT count(*) FROM outbox WHERE event_type = 'usage_event.dropped'";
    assert_eq!(pair.world.count(announced).await, 1);
}

fn meter(function: &str) -> Value {
    json!({"function": function, "unique_by_field": (function == "UNIQUE_COUNT").then_some("quantity")})
}

const FUNCTIONS: [(&str, Figures, Figures); 3] = [
    ("SUM", [("57", 2), ("940", 4)], [("57", 2), ("40", 3)]),
    ("MAX", [("50", 2), ("900", 4)], [("50", 2), ("20", 3)]),
    ("UNIQUE_COUNT", [("2", 2), ("3", 4)], [("2", 2), ("2", 3)]),
];

#[tokio::test(flavor = "multi_thread")]
async fn b5_one_key_under_two_customers_counts_once() {
    for (function, before, after) in FUNCTIONS {
        assert_counts_once(Pair::on_postgres(meter(function)).await, before, after).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn b5_one_key_under_two_customers_counts_once_on_clickhouse() {
    for (function, before, after) in FUNCTIONS {
        let Some(pair) = Pair::on_clickhouse(meter(function)).await else { return };
        assert_counts_once(pair, before, after).await;
    }
}

/// The owner dies after the event was taken back and before the window without it was written.
#[tokio::test(flavor = "multi_thread")]
async fn b5_a_crash_between_taking_back_and_counting_anew_is_made_good() {
    let mut pair = Pair::on_postgres(meter("UNIQUE_COUNT")).await;
    pair.count_both().await;
    let world = &mut pair.world;
    world.ingest.take().expect("ingest runs").stop().await;
    world.reopen_log().await;
    let home = domain::home::partition(pair.other.0, common::PARTITIONS);
    let end = world.log.end(home).await.expect("an end");
    let seal = Seal {
        subscription_id: pair.other.1,
        window_start: period_start(),
        position: world.log.identity().position(end),
    };
    for _ in 0..2 {
        let now = world.scope.now();
        let rows = take_back(&world.store, &world.usage, home, &[seal], now).await.expect("compared");
        assert_eq!(rows.len(), 1, "also when it is repeated");
    }
    assert_eq!(pair.totals().await[1], ("3".into(), 4), "the window was not counted anew yet");
    pair.world.run().await;
    pair.seal_both().await;
    pair.world.restart(false).await;
    pair.world.settle().await;
    assert_eq!(pair.totals().await, [("2".into(), 2), ("2".into(), 3)]);
    assert_eq!(pair.taken_back().await, [(pair.other.0, "shared".to_owned())]);
    // What is gone from the window is gone from its members: the value counts as new when it comes again.
    pair.world.control_of(pair.other, ControlKind::WindowReopen, WINDOW.0, WINDOW.1).await;
    pair.world.accept(&[pair.event_of(pair.other, "b4", "900")]).await;
    pair.world.settle().await;
    assert_eq!(pair.totals().await[1], ("3".into(), 4));
}

/// Kills at any point of many seals: whatever was in flight, each key stays exactly once.
#[tokio::test(flavor = "multi_thread")]
async fn b5_kills_around_the_seals_leave_each_key_once() {
    let mut pair = Pair::on_postgres(json!({})).await;
    let keys: Vec<String> = (0..200).map(|n| format!("k{n}")).collect();
    let events = |whose| keys.iter().map(|key| pair.event_of(whose, key, "1")).collect::<Vec<_>>();
    let (first, other) = (events(pair.first()), events(pair.other));
    pair.world.accept(&first).await;
    pair.world.accept(&other).await;
    tokio::join!(pair.seal(pair.first()), pair.seal(pair.other));
    for pause in [0, 5, 10, 20, 40] {
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        pair.world.restart(false).await;
    }
    pair.world.settle().await;
    // Which of the two stays depends on whose rows were stored when the other's were compared.
    let [(_, first), (_, other)] = pair.totals().await;
    assert_eq!(first + other, 200);
    let keys_taken_back: std::collections::BTreeSet<_> =
        pair.taken_back().await.into_iter().map(|(_, key)| key).collect();
    assert_eq!(keys_taken_back.len(), 200);
    assert_eq!(pair.world.count("SELECT count(*) FROM usage_void").await, 200);
}

/// Billed is final: what was accepted earlier but is counted only after the other's seal is taken back itself.
#[tokio::test(flavor = "multi_thread")]
async fn b5_an_event_of_a_sealed_window_stays() {
    let pair = Pair::on_postgres(json!({})).await;
    pair.append(pair.other, "shared", "900", at("2026-01-16T00:00:00Z")).await;
    pair.seal(pair.other).await;
    pair.world.settle().await;
    assert_eq!(pair.totals().await[1], ("900".into(), 1));
    pair.append(pair.first(), "shared", "50", at("2026-01-15T00:00:00Z")).await;
    pair.append(pair.first(), "a", "7", at("2026-01-15T00:00:00Z")).await;
    pair.seal(pair.first()).await;
    pair.world.settle().await;
    assert_eq!(pair.totals().await, [("7".into(), 1), ("900".into(), 1)]);
    assert_eq!(pair.taken_back().await, [(pair.world.customer, "shared".to_owned())]);
    assert_eq!(pair.stands("shared").await, pair.other.0);
}

/// The order of the seals does not matter while nothing is billed: the event accepted first stays.
#[tokio::test(flavor = "multi_thread")]
async fn b5_the_first_accepted_stays_whoever_is_sealed_first() {
    for first_sealed_first in [true, false] {
        let pair = Pair::on_postgres(json!({})).await;
        pair.append(pair.other, "shared", "900", at("2026-01-15T12:00:01Z")).await;
        pair.append(pair.first(), "shared", "50", at("2026-01-15T12:00:00Z")).await;
        pair.world.settle().await;
        let order = if first_sealed_first { [pair.first(), pair.other] } else { [pair.other, pair.first()] };
        for whose in order {
            pair.seal(whose).await;
            pair.world.settle().await;
        }
        assert_eq!(pair.totals().await, [("50".into(), 1), ("0".into(), 0)]);
        assert_eq!(pair.taken_back().await, [(pair.other.0, "shared".to_owned())]);
        let accrued = "SELECT count(*) FROM usage_accrual WHERE accrued <> 0 OR net <> 0";
        assert_eq!(pair.world.count(accrued).await, 0, "50 are included, and nothing is left of 900");
    }
}
