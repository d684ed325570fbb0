//! Guards that an event is judged by the versions of its own timestamp (meters.md 5, "Which version rates an event"): the
//! version that was scheduled takes effect for later events on every node, and what was cancelled or unscheduled never does.

mod common;

use catalog::binding::{self, Binding, UpdateProductMeterBindingRequest};
use catalog::compiled::Snapshots;
use catalog::meter::{Meter, UpdateMeterRequest};
use catalog::price::{Price, UpdatePriceRequest};
use catalog::version::{VersionRef, Versioned, edit};
use common::{World, at, period_start};
use domain::{BindingId, Error, Result, Scope};
use ingest::door::Entry;
use serde_json::{Value, json};
use store::Tx;
use uuid::Uuid;

/// When the edits are made, when they take effect, and events on both sides.
const MADE: &str = "2026-01-10T00:00:00Z";
const START: &str = "2026-01-20T00:00:00Z";
const BEFORE: &str = "2026-01-19T23:59:59.999999Z";

/// The world's only entity of a kind.
async fn only(world: &World, table: &'static str) -> Uuid {
    let sql = format!("SELECT id FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(world.store.pool()).await.expect("an entity")
}

/// Writes as of the instant at which the edits are made.
async fn write<T>(world: &World, operation: impl AsyncFnOnce(&Scope, &mut Tx) -> Result<T>) -> T {
    let mut tx = world.store.begin("a test's edit").await.expect("a transaction");
    let done = operation(&world.scope.at(at(MADE)), &mut tx).await.expect("an edit");
    tx.commit().await.expect("a commit");
    done
}

async fn schedule<E: Versioned>(
    world: &World,
    table: &'static str,
    read: fn(&Value) -> Result<E::Update>,
    body: Value,
) {
    let mut body = body;
    body["effective_at"] = json!(START);
    let (id, update) = (only(world, table).await, read(&body).expect("a good body"));
    write(world, async |scope, tx| edit::update::<E>(scope, tx, id, update).await.map(drop)).await;
}

/// 1,000 units before the start and 500 from it on.
async fn count(world: &World) -> (String, u64, String) {
    world.accept(&[world.event("before", "1000", BEFORE), world.event("from", "500", START)]).await;
    world.settle().await;
    world.totals(period_start()).await
}

fn totals(quantity: &str, events: u64, amount: &str) -> (String, u64, String) {
    (quantity.to_owned(), events, amount.to_owned())
}

/// 100 included: 900 at 0.10 and, in the second part of the window, 500 at 0.20.
#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_price_rates_what_happens_from_its_start() {
    let world = World::start().await;
    let tiers = json!([{"unit_amount": "0.20"}]);
    schedule::<Price>(&world, "price", UpdatePriceRequest::read, json!({"tiers": tiers})).await;
    assert_eq!(count(&world).await, totals("1500", 2, "190.00 EUR"));
}

/// 1,000 + 2 × 500 units, 100 included: 1,000 at 0.10 and 900 at 0.08.
#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_binding_multiplies_what_happens_from_its_start() {
    let world = World::start().await;
    let read = UpdateProductMeterBindingRequest::read;
    schedule::<Binding>(&world, "product_meter_binding", read, json!({"multiplier": "2"})).await;
    assert_eq!(count(&world).await, totals("2000", 2, "172.00 EUR"));
}

/// SUM before, COUNT from then on: 1,000 + 1 units, 100 included.
#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_meter_counts_what_happens_from_its_start() {
    let world = World::start().await;
    schedule::<Meter>(&world, "meter", UpdateMeterRequest::read, json!({"function": "COUNT"})).await;
    assert_eq!(count(&world).await, totals("1001", 2, "90.10 EUR"));
}

/// What was taken off the timeline rates nothing: 100 included, 1,000 at 0.10 and 400 at 0.08.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_or_unscheduled_version_rates_nothing() {
    let world = World::start().await;
    let price = only(&world, "price").await;
    for body in [json!({"tiers": [{"unit_amount": "0.20"}]}), json!({"tiers": [{"unit_amount": "0.30"}]})] {
        let kind = VersionRef::Number(if body["tiers"][0]["unit_amount"] == "0.20" { 2 } else { 3 });
        schedule::<Price>(&world, "price", UpdatePriceRequest::read, body).await;
        write(&world, async |scope, tx| match kind {
            VersionRef::Number(2) => edit::cancel::<Price>(scope, tx, price, kind).await,
            other => edit::unschedule::<Price>(scope, tx, price, other).await,
        })
        .await;
    }
    assert_eq!(count(&world).await, totals("1500", 2, "132.00 EUR"));
}

/// Another node that has read the catalog before learns of each write by its revision.
#[tokio::test(flavor = "multi_thread")]
async fn another_node_takes_the_version_of_the_timestamp() {
    let world = World::idle(json!({}), json!({})).await;
    let node = Snapshots::start(&world.store).await.expect("another node");
    let multipliers = async || {
        node.refresh().await.expect("a refresh");
        let catalog = node.workspace(world.scope.workspace_id).await.expect("a catalog");
        let product = catalog.product(world.product).expect("the product");
        [BEFORE, START].map(|instant| {
            let binding = catalog.bindings_of(product, "tokens", at(instant)).next().expect("a binding");
            binding.multiplier.to_string()
        })
    };
    assert_eq!(multipliers().await, ["1", "1"]);
    let read = UpdateProductMeterBindingRequest::read;
    schedule::<Binding>(&world, "product_meter_binding", read, json!({"multiplier": "2"})).await;
    assert_eq!(multipliers().await, ["1", "2"]);
    let binding = only(&world, "product_meter_binding").await;
    write(&world, async |scope, tx| edit::unschedule::<Binding>(scope, tx, binding, VersionRef::Number(2)).await).await;
    assert_eq!(multipliers().await, ["1", "1"]);
}

/// meter-bindings.md, rule 5: events from the end on are refused at the door, those before are counted. Else: a subscription
/// goes on and is billed for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_binding_ends_when_nobody_needs_it_and_the_door_refuses_from_there() {
    let world = World::start().await;
    let id = BindingId(only(&world, "product_meter_binding").await);
    let archive = async |scope: &Scope, tx: &mut Tx| {
        binding::archive(scope, tx, id, &[("effective_at".to_owned(), START.to_owned())]).await
    };
    let mut tx = world.store.begin("a test's edit").await.expect("a transaction");
    let refused = archive(&world.scope.at(at(MADE)), &mut tx).await;
    assert!(matches!(refused, Err(Error::Conflict { code: "CONFLICT", .. })), "{refused:?}");
    tx.rollback().await.expect("rolled back");
    world.execute("UPDATE subscription SET status = 'CANCELLED'").await;
    write(&world, archive).await;
    world.accept(&[world.event("before", "1000", BEFORE)]).await;
    let refused = world.send(&[world.event("from", "500", START)]).await;
    assert!(matches!(refused[..], [Entry::Rejected(_)]), "{refused:?}");
    world.settle().await;
    assert_eq!(world.totals(period_start()).await, totals("1000", 1, "90.00 EUR"));
}
