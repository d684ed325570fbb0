//! Random histories through door, log, partitions, store and checkpoints, compared with a naive model: events in any order,
//! duplicates, voids, late events, versions of price, meter and binding from any instant, and restarts, graceful or not; windows
//! that are billed, and windows that go on when they end. A difference is a bill or an alarm that depends on what happened in
//! which order.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use catalog::binding::{Binding, UpdateProductMeterBindingRequest};
use catalog::compiled::{StoredWindow, WindowQuery};
use catalog::meter::{Meter, UpdateMeterRequest};
use catalog::price::{Price, UpdatePriceRequest};
use catalog::version::{Versioned, edit};
use common::{World, at, period_start};
use domain::{BindingId, Instant, UsageEventId};
use ingest::outbox::Relay;
use ingest::record::ControlKind;
use ingest::void::{self, VoidUsageEventRequest};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rating::RatingInput;
use rust_decimal::{Decimal, RoundingStrategy};
use serde_json::{Value, json};
use tokio::sync::watch;

const JANUARY: (&str, &str) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
/// Histories of one run; more by `KONTORION_HISTORIES`.
const HISTORIES: u64 = 12;
const STEPS: usize = 25;

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    /// An event of this key; the content belongs to the key, so that a second one is a duplicate.
    Send(u8),
    /// Takes the event of a key out of billing.
    Void(u8),
    /// Ends January for good.
    Seal,
    /// A version of price, meter or binding, from an hour of the two months on.
    Version(Kind, u16, u8),
    /// The process ends and begins again.
    Restart { gracefully: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Price,
    Meter,
    Binding,
}

fn any_step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(vec![Kind::Price, Kind::Meter, Kind::Binding]);
    prop_oneof![
        12 => (0_u8..40).prop_map(Step::Send),
        3 => (0_u8..40).prop_map(Step::Void),
        1 => Just(Step::Seal),
        3 => (kind, 0_u16..1_400, 0_u8..3).prop_map(|(kind, hour, value)| Step::Version(kind, hour, value)),
        1 => any::<bool>().prop_map(|gracefully| Step::Restart { gracefully }),
    ]
}

fn hour(hour: u16) -> Instant {
    period_start() + chrono::TimeDelta::hours(hour.into())
}

/// Quantity and timestamp of a key's event.
fn content(key: u8) -> (Decimal, Instant) {
    let key = u16::from(key);
    (Decimal::from(key * 37 % 400 + 1), hour(key * 379 % 1_400) + chrono::TimeDelta::minutes(30))
}

/// Who a key's event is of: distinct value and dedup key.
fn user(key: u8) -> u8 {
    key % 7
}

/// Meters over windows that go on.
const WATCHED: [&str; 7] = ["sum", "max", "users", "count_once", "sum_once", "held", "ratio"];
const LASTS: &str = "LIFETIME";
const SLIDES: &str = "SLIDING";
/// Hours of a SLIDING window.
const SIZE: i64 = 240;

fn watched(kind: &str, name: &str) -> Value {
    let mut meter = match name {
        "sum" => json!({"function": "SUM"}),
        "max" => json!({"function": "MAX"}),
        "users" => json!({"function": "UNIQUE_COUNT", "unique_by_field": "dimension_vars.user"}),
        "count_once" => json!({"function": "COUNT", "dedup_key_path": "dimension_vars.user"}),
        "sum_once" => json!({"function": "SUM", "dedup_key_path": "dimension_vars.user"}),
        "held" => json!({"function": "TIME_WEIGHTED"}),
        _ => {
            let variable = |name: &str| json!({"name": name, "meter_key": key_of(kind, name)});
            json!({"function": "FORMULA", "formula": {
                "expression": "sum / users", "variables": [variable("sum"), variable("users")]}})
        }
    };
    meter["window"] =
        if kind == SLIDES { json!({"kind": kind, "size": format!("{SIZE}h")}) } else { json!({"kind": kind}) };
    meter
}

fn key_of(kind: &str, name: &str) -> String {
    format!("{}_{name}", kind.to_lowercase())
}

/// An event as the watched meters see it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    window: usize,
    quantity: Decimal,
    at: Instant,
    user: u8,
}

/// What a watched meter shows at the end of a window, of the events of this and earlier windows in the order of the log.
fn naive(kind: &str, name: &str, window: usize, events: &[Seen]) -> Decimal {
    let end = [at(JANUARY.1), at("2026-03-01T00:00:00Z")][window];
    let step = |seen: &Seen| {
        let length = SIZE * 10; // seconds: 1/360 of the size
        seen.at.timestamp().div_euclid(length) * length
    };
    let is_inside = |seen: &Seen| kind == LASTS || step(seen) > end.timestamp() - SIZE * 3_600;
    // Who counts once does so in the earliest window of a lifetime, and in the latest step of a window that slides.
    let once = |user: u8| {
        let own = events.iter().enumerate().filter(|(_, seen)| seen.user == user);
        let first = own.min_by_key(|(number, seen)| match kind {
            LASTS => (seen.window, 0, *number),
            _ => (0, -step(seen), seen.window * events.len() + number),
        });
        first.map(|(_, seen)| seen).filter(|seen| is_inside(seen))
    };
    let inside = || events.iter().filter(|seen| is_inside(seen));
    let users = Decimal::from((0..7).filter_map(once).count());
    let sum: Decimal = inside().map(|seen| seen.quantity).sum();
    match name {
        "sum" => sum,
        "max" => inside().map(|seen| seen.quantity).max().unwrap_or_default(),
        "users" | "count_once" => users,
        "sum_once" => (0..7).filter_map(once).map(|seen| seen.quantity).sum(),
        "held" if kind == SLIDES => {
            let reports = events.iter().map(|seen| (seen.at, seen.quantity)).collect();
            held(reports, end - chrono::TimeDelta::hours(SIZE), end)
        }
        "held" => held_for_life(window, events),
        _ => {
            sum.checked_div(users).unwrap_or_default().round_dp_with_strategy(12, RoundingStrategy::MidpointNearestEven)
        }
    }
}

/// Units × hours between two instants.
fn held(mut reports: Vec<(Instant, Decimal)>, from: Instant, to: Instant) -> Decimal {
    reports.sort_unstable();
    let ends = reports.iter().skip(1).map(|(at, _)| *at).chain([to]);
    let of = |((at, value), end): (&(Instant, Decimal), Instant)| {
        *value * Decimal::from((end.clamp(from, to) - (*at).clamp(from, to)).num_seconds())
    };
    let seconds: Decimal = reports.iter().zip(ends).map(of).sum();
    seconds / Decimal::from(3_600)
}

/// What January held goes on in February, where late reports of January begin.
fn held_for_life(window: usize, events: &[Seen]) -> Decimal {
    let of = |window| {
        let own = events.iter().filter(move |seen| seen.window == window);
        own.map(|seen| (seen.at, seen.quantity)).collect::<Vec<_>>()
    };
    let (january, mut february) = (of(0), of(1));
    let end = at(JANUARY.1);
    let total = held(january.clone(), period_start(), end);
    if window == 0 {
        return total;
    }
    if let Some((_, value)) = january.iter().max() {
        february.push((end, *value));
    }
    total + held(february, end, at("2026-03-01T00:00:00Z"))
}

const RATES: [&str; 3] = ["0.10", "0.25", "0.07"];
const FUNCTIONS: [&str; 3] = ["SUM", "COUNT", "SUM"];
const MULTIPLIERS: [&str; 3] = ["1", "2", "0.5"];

fn decimal(text: &str) -> Decimal {
    text.parse().expect("a number")
}

/// What a version is worth, since an instant (0 h: since ever), in the order in which they were made.
type Timeline = BTreeMap<Instant, (usize, u8)>;

/// What the engine must come to.
#[derive(Default)]
struct Model {
    /// By key: window (0: January), whether it is voided.
    events: BTreeMap<u8, (usize, bool)>,
    /// Keys in the order of the log.
    log: Vec<u8>,
    versions: BTreeMap<Kind, Timeline>,
    made: usize,
    /// Totals of January when it was sealed.
    sealed: Option<(String, u64, String)>,
}

impl Model {
    fn version(&self, kind: Kind, at: Instant) -> (Instant, usize, u8) {
        let found = self.versions.get(&kind).and_then(|timeline| timeline.range(..=at).next_back());
        found.map_or((Instant::UNIX_EPOCH, 0, 0), |(from, (made, value))| (*from, *made, *value))
    }

    /// Events that count in a window or an earlier one, in the order of the log.
    fn seen(&self, window: usize) -> Vec<Seen> {
        let seen = |key: &u8| {
            let (place, is_voided) = self.events[key];
            let (quantity, at) = content(*key);
            (place <= window && !is_voided).then_some(Seen { window: place, quantity, at, user: user(*key) })
        };
        self.log.iter().filter_map(seen).collect()
    }

    /// Quantity, events and amount of a window: 100 included; of what exceeds them the first 1,000 of each price version at
    /// its rate, the rest at half of it.
    fn totals(&self, window: usize) -> (String, u64, String) {
        if let (0, Some(sealed)) = (window, &self.sealed) {
            return sealed.clone();
        }
        let start = [period_start(), at(JANUARY.1)][window];
        let mut groups: BTreeMap<(Instant, usize), (u8, Decimal)> = BTreeMap::new();
        let mut count = 0;
        for (key, _) in self.events.iter().filter(|(_, (place, voided))| *place == window && !voided) {
            let (quantity, timestamp) = content(*key);
            let (from, made, rate) = self.version(Kind::Price, timestamp);
            let counts = FUNCTIONS[usize::from(self.version(Kind::Meter, timestamp).2)] == "COUNT";
            let multiplier = decimal(MULTIPLIERS[usize::from(self.version(Kind::Binding, timestamp).2)]);
            let group = groups.entry((from.max(start), made)).or_insert((rate, Decimal::ZERO));
            group.1 += multiplier * if counts { Decimal::ONE } else { quantity };
            count += 1;
        }
        let (mut allowance, mut total, mut amount) = (decimal("100"), Decimal::ZERO, Decimal::ZERO);
        for (rate, quantity) in groups.into_values() {
            let drawn = quantity.min(allowance);
            allowance -= drawn;
            total += quantity;
            let (rate, overage) = (decimal(RATES[usize::from(rate)]), quantity - drawn);
            let first = overage.min(decimal("1000"));
            let cents = |amount: Decimal| amount.round_dp_with_strategy(2, RoundingStrategy::MidpointAwayFromZero);
            amount += cents(first * rate) + cents((overage - first) * rate / Decimal::TWO);
        }
        (total.normalize().to_string(), count, format!("{amount:.2} EUR"))
    }
}

/// The engine under test, and what it must come to.
struct History {
    world: World,
    model: Model,
    ids: BTreeMap<u8, UsageEventId>,
    stop: watch::Sender<bool>,
    /// Kind of window and name of what is watched.
    watched: BTreeMap<BindingId, (&'static str, &'static str)>,
}

impl History {
    async fn start() -> Self {
        let mut world = World::idle(json!({}), json!({"tiers": tiers(0)})).await;
        let mut watched = BTreeMap::new();
        for (kind, name) in [LASTS, SLIDES].into_iter().flat_map(|kind| WATCHED.map(|name| (kind, name))) {
            watched.insert(world.watch(&key_of(kind, name), self::watched(kind, name)).await, (kind, name));
        }
        world.snapshots.refresh().await.expect("a catalog");
        world.run().await;
        let (model, ids, stop) = (Model::default(), BTreeMap::new(), watch::Sender::new(false));
        let history = Self { world, model, ids, stop, watched };
        history.relay();
        history
    }

    fn relay(&self) {
        let relay = Arc::new(Relay::new(self.world.store.clone(), self.world.log.clone()));
        tokio::spawn(relay.run(self.stop.subscribe()));
    }

    async fn take(&mut self, step: &Step) {
        match *step {
            Step::Send(key) => self.send(key).await,
            Step::Void(key) => self.void(key).await,
            Step::Seal => self.seal().await,
            Step::Version(kind, from, value) => self.version(kind, hour(from), value).await,
            Step::Restart { gracefully } => {
                self.stop.send_replace(true);
                self.world.restart(gracefully).await;
                self.stop = watch::Sender::new(false);
                self.relay();
            }
        }
    }

    async fn send(&mut self, key: u8) {
        let (quantity, timestamp) = content(key);
        let mut event = self.world.event(&format!("key-{key}"), quantity.to_string(), &timestamp.to_rfc3339());
        event["dimension_vars"] = json!({"user": user(key)});
        let id = self.world.accept(&[event]).await[0];
        self.ids.insert(key, id);
        let own = usize::from(timestamp >= at(JANUARY.1));
        let window = if self.model.sealed.is_some() { 1 } else { own };
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.model.events.entry(key) {
            vacant.insert((window, false));
            self.model.log.push(key);
        }
    }

    async fn void(&mut self, key: u8) {
        let (Some(id), Some((window, _))) = (self.ids.get(&key), self.model.events.get(&key).copied()) else { return };
        let (world, scope) = (&self.world, &self.world.scope);
        let event = void::find(scope, &world.store, &world.log, &world.usage, *id).await.expect("an accepted event");
        world.settle().await;
        let request = VoidUsageEventRequest { reason: "test".into(), idempotency_key: None };
        let mut tx = world.store.begin("a test's void").await.expect("a transaction");
        let outcome = void::void(scope, &mut tx, &world.snapshots, event, &request).await;
        let is_open = window == 1 || self.model.sealed.is_none();
        let was_voided = self.model.events[&key].1;
        assert_eq!(outcome.is_ok(), is_open || was_voided, "{outcome:?}");
        tx.end(outcome).await.ok();
        if is_open {
            self.model.events.insert(key, (window, true));
        }
    }

    /// As billing does: nothing is on its way when the seal is published, and its record is waited for. A change that comes in
    /// between may still have a say.
    async fn seal(&mut self) {
        if self.model.sealed.is_some() {
            return;
        }
        self.quiet().await;
        self.world.control(ControlKind::PeriodEnd, JANUARY.0, JANUARY.1).await;
        self.world.control(ControlKind::WindowSeal, JANUARY.0, JANUARY.1).await;
        self.world.settle().await;
        self.model.sealed = Some(self.model.totals(0));
    }

    /// Changes of the catalog and voids have come to the windows.
    async fn quiet(&self) {
        self.world.eventually("changes and voids are counted", async || {
            let sql = "SELECT (SELECT count(*) FROM catalog_recount WHERE done_at IS NULL) + (SELECT count(*) FROM usage_outbox)";
            self.world.count(sql).await == 0
        })
        .await;
    }

    async fn version(&mut self, kind: Kind, from: Instant, value: u8) {
        if self.model.versions.get(&kind).is_some_and(|timeline| timeline.contains_key(&from)) {
            return; // 409: another one starts there
        }
        let world = &self.world;
        let effective_at = from.to_rfc3339();
        let value_of = |values: [&str; 3]| json!(values[usize::from(value)]);
        match kind {
            Kind::Price => {
                let body = json!({"tiers": tiers(value), "effective_at": effective_at});
                publish::<Price>(world, "price", UpdatePriceRequest::read(&body)).await;
            }
            Kind::Meter => {
                let body = json!({"function": value_of(FUNCTIONS), "effective_at": effective_at});
                publish::<Meter>(world, "meter WHERE key = 'tokens'", UpdateMeterRequest::read(&body)).await;
            }
            Kind::Binding => {
                let body = json!({"multiplier": value_of(MULTIPLIERS), "effective_at": effective_at});
                let update = UpdateProductMeterBindingRequest::read(&body);
                publish::<Binding>(world, "product_meter_binding WHERE role = 'PRIMARY'", update).await;
            }
        }
        self.model.made += 1;
        self.model.versions.entry(kind).or_default().insert(from, (self.model.made, value));
    }

    async fn compare(&self, told: &str) {
        self.quiet().await;
        self.world.settle().await;
        for (window, instant) in [(0, period_start()), (1, at(JANUARY.1))] {
            assert_eq!(self.world.totals(instant).await, self.model.totals(window), "window {window} after {told}");
            assert_eq!(self.shown(instant).await, self.expected(window), "window {window} after {told}");
        }
    }

    /// What the meters over windows that go on show at the end of a window.
    async fn shown(&self, start: Instant) -> BTreeMap<(&'static str, &'static str), String> {
        let mut conn = self.world.store.pool().acquire().await.expect("a connection");
        let asked = [(self.world.subscription, start)];
        let stored = StoredWindow::load(&mut conn, &self.world.snapshots, WindowQuery::Starting(&asked)).await;
        let stored = stored.expect("a state that can be read");
        let mut shown: BTreeMap<_, _> = self.watched.values().map(|watched| (*watched, "0".to_owned())).collect();
        if let Some(window) = stored.first() {
            let input = RatingInput { until: Some(window.window.end), ..RatingInput::default() };
            for line in window.state.rate(&input).expect("in range").informational {
                shown.insert(self.watched[&line.binding_id], line.quantity.to_string());
            }
        }
        shown
    }

    fn expected(&self, window: usize) -> BTreeMap<(&'static str, &'static str), String> {
        let events = self.model.seen(window);
        let of = |(kind, name)| ((kind, name), naive(kind, name, window, &events).normalize().to_string());
        self.watched.values().copied().map(of).collect()
    }
}

fn tiers(rate: u8) -> Value {
    let rate = decimal(RATES[usize::from(rate)]);
    let half = (rate / Decimal::TWO).to_string();
    json!([
        {"tier_order": 1, "up_to": "1000", "unit_amount": rate.to_string(), "flat_amount": "0"},
        {"tier_order": 2, "up_to": null, "unit_amount": half, "flat_amount": "0"},
    ])
}

async fn publish<E: Versioned>(world: &World, table: &'static str, update: domain::Result<E::Update>) {
    let sql = format!("SELECT id FROM {table}");
    let id = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(world.store.pool()).await.expect("an entity");
    let mut tx = world.store.begin("a test's edit").await.expect("a transaction");
    // As of an instant in the middle: some versions lie behind it and some ahead.
    let scope = world.scope.at(at("2026-01-25T00:00:00Z"));
    edit::update::<E>(&scope, &mut tx, id, update.expect("a good body")).await.expect("an edit");
    tx.commit().await.expect("a commit");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_history_comes_to_the_totals_of_the_naive_model() {
    let asked = std::env::var("KONTORION_HISTORIES").ok().and_then(|number| number.parse().ok());
    for seed in 0..asked.unwrap_or(HISTORIES) {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let steps = prop::collection::vec(any_step(), STEPS).new_tree(&mut runner).expect("steps").current();
        let mut history = History::start().await;
        for step in &steps {
            history.take(step).await;
        }
        history.compare(&format!("history {seed}: {steps:?}")).await;
        history.stop.send_replace(true);
    }
}
