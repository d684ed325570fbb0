//! What an active subscription takes in memory: its actor with ten meters, and its terms in the cache. A passivated one
//! takes nothing, because its actor is gone; a known one that is not in the cache neither.
//!
//! `cargo test --release -p ingest --test memory -- --ignored --nocapture`; KONTORION_ACTORS sets how many.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use catalog::compiled::SubscriptionTerms;
use common::World;
use domain::event::VarValue;
use domain::{FastMap, Position, Quantity, SubscriptionId, UsageEvent, UsageEventId};
use ingest::subscription::{Incoming, Initial, SubscriptionActor, SubscriptionMsg, Verdict};
use ractor::{Actor, ActorRef};
use serde_json::json;
use tokio::sync::mpsc;

/// Largest that an active subscription with ten meters may take (sets excluded), in bytes.
const LIMIT: usize = 12 * 1_024;
const METERS: usize = 10;

/// Counts what is allocated and not freed.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: it came from `alloc` above with this layout.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocated bytes, and those that the process has resident.
fn memory() -> (usize, usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    (LIVE.load(Ordering::Relaxed), pages * 4_096)
}

fn metric(number: usize) -> String {
    if number == 0 { "tokens".into() } else { format!("metric_{number}") }
}

/// One event of each meter.
fn events(template: &UsageEvent, terms: &SubscriptionTerms) -> Vec<Incoming> {
    let incoming = |number: usize| {
        let mut event = template.clone();
        event.id = UsageEventId::generate();
        event.subscription_id = terms.id;
        event.metric_key = metric(number);
        event.dimension_vars = BTreeMap::from([("region".into(), VarValue::Text("eu".into()))]);
        let position = Position::new(1, number as u64 + 1);
        Incoming { payload_hash: event.payload_hash(), event: Box::new(event), position, is_foreign: false }
    };
    (0..METERS).map(incoming).collect()
}

/// A world with ten meters, half of them filtered, the terms of its subscription and an event.
async fn ten_meters() -> (World, Arc<SubscriptionTerms>, UsageEvent) {
    let world = World::idle(json!({}), json!({})).await;
    for number in 1..METERS {
        let filter = json!({"root": {"op": "AND", "children": [
            {"field": "dimension_vars.region", "operator": "EQ", "value": "eu"}]}});
        let members = if number % 2 == 1 { json!({"filter": filter}) } else { json!({}) };
        world.bind_meter(&metric(number), members).await;
    }
    let terms = world.snapshots.terms(world.scope.workspace_id, world.subscription).await.expect("terms");
    let now = common::period_start();
    let template = UsageEvent {
        id: UsageEventId::generate(),
        workspace_id: world.scope.workspace_id,
        customer_id: world.customer,
        subscription_id: world.subscription,
        product_id: world.product,
        metric_key: metric(0),
        quantity: Quantity::ONE,
        timestamp: now,
        idempotency_key: "key".into(),
        price_key: None,
        price_key_remapped: false,
        external_cost: None,
        wallet_currency: None,
        hold_id: None,
        dimension_vars: BTreeMap::new(),
        pricing_vars: BTreeMap::new(),
        accepted_at: now,
        catalog_revision: 0,
    };
    (world, terms.expect("a subscription"), template)
}

type Actors = FastMap<SubscriptionId, ActorRef<SubscriptionMsg>>;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn an_active_subscription_with_ten_meters() {
    let count: usize = std::env::var("KONTORION_ACTORS").ok().and_then(|number| number.parse().ok()).unwrap_or(100_000);
    let (world, terms, template) = ten_meters().await;
    let catalog = world.snapshots.workspace(world.scope.workspace_id).await.expect("a catalog");
    let mut cache: FastMap<SubscriptionId, Arc<SubscriptionTerms>> = FastMap::default();
    let mut actors = Actors::default();
    let at_first = memory();
    for _ in 0..count {
        let id = SubscriptionId::generate();
        cache.insert(id, Arc::new(SubscriptionTerms { id, ..(*terms).clone() }));
    }
    let with_terms = memory();
    for id in cache.keys() {
        let (actor, _) = Actor::spawn(None, SubscriptionActor, Initial::default()).await.expect("an actor");
        actors.insert(*id, actor);
    }
    let with_actors = memory();
    for batch in cache.values().collect::<Vec<_>>().chunks(1_000) {
        let (reply, mut answers) = mpsc::unbounded_channel();
        for terms in batch {
            let (catalog, terms, events) = (catalog.clone(), (*terms).clone(), events(&template, terms));
            let message = SubscriptionMsg::Count { catalog, terms, events, reply: reply.clone() };
            actors[&message_id(&message)].send_message(message).expect("a living actor");
        }
        for _ in batch {
            let answer = answers.recv().await.expect("an answer");
            assert_eq!(answer.verdicts.len(), METERS);
            assert!(answer.verdicts.iter().all(|(_, verdict)| matches!(verdict, Verdict::Counted { .. })));
        }
    }
    let with_totals = memory();
    for actor in std::mem::take(&mut actors).into_values() {
        actor.stop_and_wait(None, None).await.expect("an end");
    }
    let passivated = memory();
    let each = |from: (usize, usize), to: (usize, usize)| {
        let share = |from: usize, to: usize| to.saturating_sub(from) / count;
        (share(from.0, to.0), share(from.1, to.1))
    };
    println!("{count} subscriptions, bytes of each (allocated, resident):");
    for (what, bytes) in [
        ("terms in the cache", each(at_first, with_terms)),
        ("an actor without events", each(with_terms, with_actors)),
        ("what ten meters add", each(with_actors, with_totals)),
        ("active, all together", each(at_first, with_totals)),
        ("left of an actor when it is passivated", each(with_terms, passivated)),
    ] {
        println!("{:>8} {:>8}  {what}", bytes.0, bytes.1);
    }
    let active = each(at_first, with_totals).0;
    assert!(active <= LIMIT, "{active} bytes");
}

fn message_id(message: &SubscriptionMsg) -> SubscriptionId {
    match message {
        SubscriptionMsg::Count { terms, .. } => terms.id,
        _ => unreachable!("only counting is asked for"),
    }
}
