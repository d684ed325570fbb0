//! Rough rates of both stores: `cargo test -p ingest --test usage_conformance rates -- --ignored --nocapture`.
//! The tests' PostgreSQL does not sync, and code is built for tests; for figures that count see `benches`.

use std::time::Instant as Stopwatch;

use chrono::TimeDelta;
use domain::{CustomerId, Position, SubscriptionId};
use ingest::usage::{
    AggregateQuery, CountedEvent, EventFilter, GroupBy, UsageAggregateBucketSize, UsageAggregateMetric,
};
use uuid::Uuid;

use super::{Bed, PARTITION, counted, instant, subscribe};

const SUBSCRIPTIONS: u64 = 1_000;

fn rows(bed: &Bed, first: u64, count: u64) -> Vec<CountedEvent> {
    let begin = instant("2026-05-04T00:00:00Z");
    let row = |n: u64| {
        let mut event = bed.people.event(n, begin + TimeDelta::milliseconds(n as i64 * 10)).event;
        event.subscription_id = subscription(n * 7_919 % SUBSCRIPTIONS);
        event.dimension_vars.insert("region".into(), domain::event::VarValue::Text(format!("eu-{}", n % 4)));
        event.dimension_vars.insert("model".into(), domain::event::VarValue::Text(format!("model-{}", n % 20)));
        counted(event, n)
    };
    (first..first + count).map(row).collect()
}

fn subscription(n: u64) -> SubscriptionId {
    SubscriptionId(Uuid::new_v5(&Uuid::nil(), &n.to_le_bytes()))
}

async fn measure(name: &str, bed: Bed, batches: u64, batch: u64) {
    let ten = CustomerId::generate();
    for n in 0..10 {
        subscribe(&bed.store, bed.people.scope, ten, subscription(n)).await;
    }
    let (engine_before, own_before) = cpu_micros(&bed).await;
    let mut writing = std::time::Duration::ZERO;
    for n in 0..batches {
        let rows = rows(&bed, n * batch + 1, batch);
        let start = Stopwatch::now();
        bed.write(&rows).await;
        writing += start.elapsed();
    }
    let total = batches * batch;
    let (engine, own) = cpu_micros(&bed).await;
    println!(
        "{name}: {:.0} rows/s written in batches of {batch}; core-µs a row: engine {:.1}, this process {:.1}",
        total as f64 / writing.as_secs_f64(),
        (engine - engine_before) / total as f64,
        (own - own_before) / total as f64
    );
    sqlx::query("ANALYZE usage_event").execute(bed.store.pool()).await.unwrap();
    let (usage, scope) = (&bed.usage, &bed.people.scope);
    let ids: Vec<_> = rows(&bed, total - 1_000, 2_000).iter().map(|row| row.event.id).collect();
    let all = EventFilter::default();
    let cursor = Some((instant("2026-05-04T00:20:00Z"), ids[0]));
    let of_customer = EventFilter { customer_ids: Some(vec![ten]), ..all.clone() };
    let one = subscription(7);
    let window = instant("2026-05-01T00:00:00Z");
    let hours = AggregateQuery {
        filter: all.clone(),
        bucket: UsageAggregateBucketSize::Hour,
        metric: UsageAggregateMetric::SumQuantity,
        group_by: GroupBy::Dimension("region".into()),
        since: instant("2026-05-04T00:00:00Z"),
        until: instant("2026-05-05T00:00:00Z"),
    };
    for round in ["cold", "warm"] {
        let (found, a) = timed(usage.find(PARTITION, &ids)).await;
        let (page, b) = timed(usage.list(scope, &all, cursor, 100)).await;
        let (of_ten, c) = timed(usage.list(scope, &of_customer, cursor, 100)).await;
        let (replayed, d) = timed(usage.replay(one, window, Position::START, super::position(total), 10_000)).await;
        let middle = super::position(total / 2);
        let (listed, e) = timed(usage.ids_between(PARTITION, middle, super::position(total), 10_000)).await;
        let (buckets, f) = timed(usage.aggregate(scope, &hours)).await;
        let (one_event, g) = timed(usage.get(scope, ids[0])).await;
        let sealed: Vec<_> = (0..100).map(|n| (subscription(n), window)).collect();
        let start = Stopwatch::now();
        let twins = bed.twins(&sealed, total / SUBSCRIPTIONS).await;
        println!(
            "{name}, {round}: {} twins among {} events of 100 windows in {:.1} ms",
            twins.len(),
            total / SUBSCRIPTIONS * 100,
            start.elapsed().as_secs_f64() * 1_000.0
        );
        println!(
            "{name}, {round}, ms: find {} of 2,000 {a:.1}; page of workspace ({}) {b:.1}; page of ten subscriptions ({}) {c:.1}; \
             replay {} {d:.1}; ids_between {} {e:.1}; aggregate ({}) {f:.1}; get ({}) {g:.1}",
            found.len(),
            page.0.len(),
            of_ten.0.len(),
            replayed.len(),
            listed.len(),
            buckets.len(),
            one_event.is_some(),
        );
    }
}

/// CPU time so far, in microseconds: of the engine (of PostgreSQL only the database's own connections, of ClickHouse
/// everything it does, merges too) and of this process, which also makes the rows.
async fn cpu_micros(bed: &Bed) -> (f64, f64) {
    let engine = if bed.clickhouse.is_some() {
        let sql = "SELECT value FROM system.events WHERE event = 'OSCPUVirtualTimeMicroseconds'";
        bed.clickhouse_number(sql).await as f64
    } else {
        let pids: Vec<i32> = sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
            .fetch_all(bed.store.pool())
            .await
            .unwrap();
        pids.iter().map(|pid| process_micros(&pid.to_string())).sum()
    };
    (engine, process_micros("self"))
}

/// User and system time in ticks of 10 ms, behind the name in brackets.
fn process_micros(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields.iter().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10_000.0
}

async fn timed<T>(work: impl Future<Output = domain::Result<T>>) -> (T, f64) {
    let start = Stopwatch::now();
    let value = work.await.unwrap();
    (value, start.elapsed().as_secs_f64() * 1_000.0)
}

#[tokio::test]
#[ignore = "measures"]
async fn rates_of_postgres() {
    if let Some(bed) = Bed::postgres().await {
        measure("PostgreSQL", bed, 50, 10_000).await;
    }
}

#[tokio::test]
#[ignore = "measures"]
async fn rates_of_clickhouse() {
    if let Some(bed) = Bed::clickhouse().await {
        measure("ClickHouse", bed, 20, 50_000).await;
    }
}
