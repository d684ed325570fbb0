//! Guards against a usage store that loses, repeats, mixes up or rounds what was counted. One suite for both stores:
//! everything above them must not be able to tell which one is there (promise 5).

mod usage;

use std::collections::BTreeMap;

use chrono::{DurationRound, TimeDelta};
use domain::event::VarValue;
use domain::{Currency, HoldId, Instant, Position, Quantity, UsageEventId};
use ingest::usage::{
    AggregateBucket, AggregateQuery, CountedEvent, CountedId, EventCursor, EventFilter, GroupBy, StoredEvent,
    UsageAggregateBucketSize as Size, UsageAggregateMetric as Metric,
};
use rust_decimal::Decimal;
use usage::{Bed, PARTITION, counted, instant, position, quantity};

macro_rules! for_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod postgres {
            $(#[tokio::test] async fn $test() {
                if let Some(bed) = crate::Bed::postgres().await { super::$test(bed).await; }
            })+
        }
        mod clickhouse {
            $(#[tokio::test] async fn $test() {
                if let Some(bed) = crate::Bed::clickhouse().await { super::$test(bed).await; }
            })+
        }
    };
}

for_both_stores!(
    an_open_store_answers,
    every_member_comes_back,
    known_ids_are_found_with_their_position,
    rows_of_one_id_are_found_and_told_apart,
    ids_are_paged_by_position,
    c4_a_window_is_replayed_without_voids,
    c4_a_replay_goes_on_where_it_stopped,
    lists_agree_with_a_model,
    pages_neither_skip_nor_repeat_while_rows_come_in,
    sums_agree_with_a_model,
    weeks_begin_on_monday_and_bounds_are_half_open,
    a_stranger_sees_nothing,
    the_invoice_of_a_window_is_shown,
    an_empty_store_answers,
);

async fn an_open_store_answers(bed: Bed) {
    bed.usage.ping().await.unwrap();
}

/// Members of an event, all of them or only those that must be.
fn full_and_bare(bed: &Bed) -> [CountedEvent; 2] {
    let bare = bed.people.event(1, instant("2026-05-04T10:00:00.000001Z"));
    let mut full = bed.people.event(2, instant("2026-05-04T10:00:00.999999Z")).event;
    full.idempotency_key = "it's a \"key\"; DROP\nTABLE x --\t\\ \u{1F600} ?".into();
    full.id = UsageEventId::of(full.workspace_id, &full.idempotency_key);
    full.metric_key = "größe\u{2028}'\\'".into();
    full.quantity = quantity("-999999999999999.999999999999");
    full.price_key = Some("gold's".into());
    full.price_key_remapped = true;
    full.external_cost =
        Some((Decimal::from_i128_with_scale(-79_228_162_514_264_337_593_543_950_335, 9), Currency::USD));
    full.wallet_currency = Some(Currency::EUR);
    full.hold_id = Some(HoldId::generate());
    for (key, value) in [
        ("a", VarValue::Text("x\"y\\z\n\r\u{1}\u{7f}é\u{1F600}".into())),
        ("b", VarValue::Bool(false)),
        ("n", VarValue::Number(quantity("123456789012345.123456789012"))),
        ("t", VarValue::Text("2.5".into())),
    ] {
        full.dimension_vars.insert(key.into(), value.clone());
        full.pricing_vars.insert(format!("p_{key}"), value);
    }
    let mut full = counted(full, 2);
    full.late = true;
    full.window_start = instant("2026-06-01T00:00:00Z");
    full.payload_hash = u64::MAX;
    [bare, full]
}

async fn every_member_comes_back(bed: Bed) {
    let rows = full_and_bare(&bed);
    bed.write(&rows).await;
    let (listed, more) = bed.usage.list(&bed.people.scope, &EventFilter::default(), None, 10).await.unwrap();
    assert!(!more);
    let [bare, full] = &rows;
    assert_eq!(listed.iter().map(|event| &event.counted).collect::<Vec<_>>(), [full, bare]);
    for row in &rows {
        let stored = bed.usage.get(&bed.people.scope, row.event.id).await.unwrap().unwrap();
        assert_eq!(&stored.counted, row);
        assert_eq!((stored.organization_id, stored.voided_at), (bed.people.scope.organization_id, None));
        let replayed = replay(&bed, row.window_start, Position::START, position(9), 10).await;
        assert_eq!(replayed, std::slice::from_ref(row));
    }
    bed.void(bare, instant("2026-05-05T00:00:00.000007Z")).await;
    let voided = bed.usage.get(&bed.people.scope, bare.event.id).await.unwrap().unwrap();
    assert_eq!(voided.voided_at, Some(instant("2026-05-05T00:00:00.000007Z")));
}

async fn known_ids_are_found_with_their_position(bed: Bed) {
    let mut rows = bed.people.crowd(300);
    // The same id counted again at another place: the first one occupies it (rule B2).
    let mut twin = rows[4].clone();
    (twin.position, twin.payload_hash) = (position(1_000), 7);
    rows.push(twin);
    bed.write(&rows).await;
    let mut wanted: Vec<UsageEventId> = rows.iter().step_by(3).map(|row| row.event.id).collect();
    wanted.push(rows[4].event.id);
    wanted.extend((0..50).map(|n| UsageEventId::of(bed.people.scope.workspace_id, &format!("unknown {n}"))));
    let found = bed.usage.find(PARTITION, &wanted).await.unwrap();
    assert_eq!(found.len(), 101); // every third, and the one that has a twin
    for row in rows.iter().take(300).step_by(3).chain([&rows[4]]) {
        let known = CountedId { position: row.position, payload_hash: row.payload_hash };
        assert_eq!(found.get(&row.event.id), Some(&known));
    }
    assert!(bed.usage.find(PARTITION, &[]).await.unwrap().is_empty());
    let seen = bed.usage.get(&bed.people.scope, rows[4].event.id).await.unwrap().unwrap();
    assert_eq!(seen.counted.position, rows[4].position);
}

/// Rule B5: one id counted in several partitions. Voiding one of its rows leaves the others.
async fn rows_of_one_id_are_found_and_told_apart(bed: Bed) {
    let [other, third] = [PARTITION + 1, PARTITION + 2];
    let (may, june) = (instant("2026-05-01T00:00:00Z"), instant("2026-06-01T00:00:00Z"));
    let [mine, _, theirs, _] = bed.people.subscriptions;
    let rows: Vec<_> = (1..=400).map(|n| bed.people.event(n, may + TimeDelta::minutes(n as i64))).collect();
    bed.write(&rows).await;
    let everything = [(mine, may), (theirs, may), (theirs, june)];
    assert!(bed.twins(&everything, 1).await.is_empty(), "the usual case");
    // The same keys under the other customer, accepted later, at smaller positions; one of them earlier, in June.
    let twin = |of: &CountedEvent, partition: u32, offset: u64, seconds: i64| {
        let mut twin = of.clone();
        twin.event.customer_id = bed.people.customers[1];
        twin.event.subscription_id = theirs;
        twin.event.accepted_at += TimeDelta::seconds(seconds);
        (twin.partition, twin.position) = (partition, position(offset));
        twin.payload_hash = twin.event.payload_hash();
        twin
    };
    let mut early = twin(&rows[99], other, 3, -86_400);
    early.window_start = june;
    let twins = [twin(&rows[9], other, 1, 60), twin(&rows[49], other, 2, 60), early];
    let further = [twin(&rows[49], third, 2, 30)];
    for (partition, rows) in [(other, &twins[..]), (third, &further[..])] {
        bed.usage.taken(partition).await.unwrap();
        bed.write_to(partition, rows).await;
    }
    let mut expected = vec![&rows[9], &twins[0], &rows[49], &further[0], &twins[1], &twins[2], &rows[99]];
    expected.sort_by_key(|row| row.event.id); // stable: by precedence within an id
    for events in [1, 10_000_000] {
        let found = bed.twins(&[(mine, may)], events).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "asked at once, or in parts");
    }
    let of_june: Vec<_> = expected.iter().copied().filter(|row| row.event.id == rows[99].event.id).collect();
    assert_eq!(bed.twins(&[(theirs, june)], 1).await.iter().collect::<Vec<_>>(), of_june);
    assert!(bed.twins(&[(mine, june)], 1).await.is_empty());
    // Each partition knows its own rows.
    let known = |row: &CountedEvent| Some(CountedId { position: row.position, payload_hash: row.payload_hash });
    for (partition, row) in [(PARTITION, &rows[49]), (other, &twins[1]), (third, &further[0])] {
        let found = bed.usage.find(partition, &[row.event.id]).await.unwrap();
        assert_eq!(found.get(&row.event.id).copied(), known(row));
    }
    // The first stands until it is voided; voiding a row takes back that row only.
    let shown = async || bed.usage.get(&bed.people.scope, rows[49].event.id).await.unwrap().unwrap().counted;
    assert_eq!(shown().await, rows[49]);
    bed.void(&rows[49], june).await;
    bed.void(&further[0], june).await;
    assert_eq!(shown().await, twins[1]);
    assert_eq!(bed.twins(&[(mine, may)], 1).await.len(), 7, "voided rows are told, too");
    let replayed = bed.usage.replay(theirs, may, Position::START, position(400), 10).await.unwrap();
    assert_eq!(replayed, [twins[0].clone(), twins[1].clone()]);
    assert_eq!(replay(&bed, may, Position::START, position(400), 1_000).await.len(), 399);
    let query = aggregate(Size::Week, Metric::Count, GroupBy::None, "2026-04-27T00:00:00Z", "2026-05-04T00:00:00Z");
    let counts = bed.usage.aggregate(&bed.people.scope, &query).await.unwrap();
    assert_eq!(counts[0].value, Quantity::from_int(400 + 4 - 2));
    let filter = EventFilter { customer_ids: Some(vec![bed.people.customers[1]]), ..EventFilter::default() };
    let (page, _) = bed.usage.list(&bed.people.scope, &filter, None, 10).await.unwrap();
    let voided: Vec<_> = page.iter().filter(|event| event.voided_at.is_some()).map(|e| &e.counted).collect();
    assert_eq!((page.len(), voided), (4, vec![&further[0]]));
}

async fn ids_are_paged_by_position(bed: Bed) {
    let mut rows = bed.people.crowd(240);
    // Gaps: records that were not counted, a far jump, another log.
    for (n, row) in rows.iter_mut().enumerate() {
        let n = n as u64;
        row.position = match n {
            0..100 => position(n * 3 + 1),
            100..200 => position(1_000_000 + n),
            _ => Position::new(2, n),
        };
    }
    let mut elsewhere = bed.people.event(9_999, instant("2026-05-04T10:00:00Z"));
    elsewhere.partition = PARTITION + 1;
    bed.usage.taken(PARTITION + 1).await.unwrap();
    bed.write(&rows).await;
    bed.usage.append(PARTITION + 1, std::slice::from_ref(&elsewhere)).await.unwrap();
    let expected: Vec<(UsageEventId, CountedId)> = rows
        .iter()
        .map(|row| (row.event.id, CountedId { position: row.position, payload_hash: row.payload_hash }))
        .collect();
    let up_to = Position::new(2, 1_000);
    for limit in [1, 17, 240, 10_000] {
        let (mut pages, mut after) = (Vec::new(), Position::START);
        loop {
            let page = bed.usage.ids_between(PARTITION, after, up_to, limit).await.unwrap();
            let complete = page.len() < limit;
            pages.extend(page);
            if complete {
                break;
            }
            after = pages.last().unwrap().1.position;
        }
        assert_eq!(pages, expected, "limit {limit}");
    }
    // Exclusive below, inclusive above.
    let between = bed.usage.ids_between(PARTITION, position(1), position(7), 10).await.unwrap();
    assert_eq!(between, expected[1..3]);
    assert_eq!(bed.usage.largest_position(PARTITION).await.unwrap(), Some(rows[239].position));
    assert_eq!(bed.usage.largest_position(PARTITION + 7).await.unwrap(), None);
}

async fn replay(bed: &Bed, window_start: Instant, after: Position, up_to: Position, limit: usize) -> Vec<CountedEvent> {
    bed.usage.replay(bed.people.subscriptions[0], window_start, after, up_to, limit).await.unwrap()
}

async fn c4_a_window_is_replayed_without_voids(bed: Bed) {
    let (may, june) = (instant("2026-05-01T00:00:00Z"), instant("2026-06-01T00:00:00Z"));
    let mut rows = bed.people.crowd(400);
    // Late: a timestamp of April that counts in May.
    rows[200].event = bed.people.event(201, instant("2026-04-02T00:00:00Z")).event;
    (rows[200].late, rows[200].window_start) = (true, may);
    bed.write(&rows).await;
    let of_window = |start: Instant, up_to: u64| -> Vec<CountedEvent> {
        let wanted = |row: &&CountedEvent| {
            row.event.subscription_id == bed.people.subscriptions[0]
                && row.window_start == start
                && row.position <= position(up_to)
        };
        rows.iter().filter(wanted).cloned().collect()
    };
    let all = of_window(may, 400);
    assert!(all.len() > 50 && all.iter().any(|row| row.late));
    assert_eq!(replay(&bed, may, Position::START, position(400), 1_000).await, all);
    assert_eq!(replay(&bed, may, Position::START, position(250), 1_000).await, of_window(may, 250));
    assert_eq!(replay(&bed, june, Position::START, position(400), 1_000).await, of_window(june, 400));
    let voided = &all[3];
    bed.void(voided, june).await;
    let rest: Vec<_> = all.iter().filter(|row| row.event.id != voided.event.id).cloned().collect();
    assert_eq!(replay(&bed, may, Position::START, position(400), 1_000).await, rest);
    let nobody = domain::SubscriptionId::generate();
    assert!(bed.usage.replay(nobody, may, Position::START, position(400), 10).await.unwrap().is_empty());
}

async fn c4_a_replay_goes_on_where_it_stopped(bed: Bed) {
    let may = instant("2026-05-01T00:00:00Z");
    let rows: Vec<_> = (1..=100).map(|n| bed.people.event(n, may + TimeDelta::minutes(100 - n as i64))).collect();
    bed.write(&rows).await;
    for voided in [2, 3, 50] {
        bed.void(&rows[voided], may).await;
    }
    let rest: Vec<_> = (0..100).filter(|n| ![2, 3, 50].contains(n)).map(|n| rows[n].clone()).collect();
    let (mut seen, mut after) = (Vec::new(), Position::START);
    loop {
        let chunk = replay(&bed, may, after, position(100), 7).await;
        let Some(last) = chunk.last() else { break };
        after = last.position;
        seen.extend(chunk);
    }
    assert_eq!(seen, rest);
}

fn newest_first(a: &CountedEvent, b: &CountedEvent) -> std::cmp::Ordering {
    (b.event.timestamp, b.event.id).cmp(&(a.event.timestamp, a.event.id))
}

fn matches(filter: &EventFilter, row: &CountedEvent) -> bool {
    let event = &row.event;
    filter.ids.as_ref().is_none_or(|ids| ids.contains(&event.id))
        && filter.customer_ids.as_ref().is_none_or(|ids| ids.contains(&event.customer_id))
        && filter.product_ids.as_ref().is_none_or(|ids| ids.contains(&event.product_id))
        && filter.subscription_ids.as_ref().is_none_or(|ids| ids.contains(&event.subscription_id))
        && (filter.metric_keys.is_empty() || filter.metric_keys.contains(&event.metric_key))
        && filter.occurred_after.is_none_or(|after| event.timestamp >= after)
        && filter.occurred_before.is_none_or(|before| event.timestamp < before)
}

/// One filter of each kind, and some together.
fn filters(bed: &Bed, rows: &[CountedEvent]) -> Vec<EventFilter> {
    let people = &bed.people;
    let some = &rows[17].event;
    let none = EventFilter::default;
    vec![
        none(),
        EventFilter { customer_ids: Some(vec![people.customers[1]]), ..none() },
        EventFilter { product_ids: Some(vec![people.products[1]]), ..none() },
        EventFilter { subscription_ids: Some(vec![people.subscriptions[2]]), ..none() },
        EventFilter { customer_ids: Some(people.customers[..2].to_vec()), ..none() },
        EventFilter { product_ids: Some(people.products[..2].to_vec()), ..none() },
        EventFilter { subscription_ids: Some(people.subscriptions[1..3].to_vec()), ..none() },
        EventFilter { product_ids: Some(Vec::new()), ..none() },
        EventFilter { metric_keys: vec!["o'clock \"x\"".into()], ..none() },
        EventFilter { metric_keys: vec!["storage_gb".into(), "api_calls".into(), "no'ne".into()], ..none() },
        EventFilter { occurred_after: Some(some.timestamp), ..none() },
        EventFilter { occurred_before: Some(some.timestamp), ..none() },
        EventFilter {
            customer_ids: Some(vec![people.customers[0]]),
            product_ids: Some(vec![people.products[0]]),
            metric_keys: vec!["api_calls".into()],
            occurred_after: Some(instant("2026-05-01T00:00:00Z")),
            occurred_before: Some(instant("2026-05-20T00:00:00Z")),
            ..none()
        },
        // A subscription of somebody else, an unknown customer, an empty time.
        EventFilter {
            customer_ids: Some(vec![people.customers[0]]),
            subscription_ids: Some(vec![people.subscriptions[3]]),
            ..none()
        },
        EventFilter { customer_ids: Some(vec![domain::CustomerId::generate()]), ..none() },
        EventFilter { occurred_after: Some(some.timestamp), occurred_before: Some(some.timestamp), ..none() },
    ]
}

async fn all_pages(bed: &Bed, filter: &EventFilter, limit: u32) -> Vec<CountedEvent> {
    let (mut seen, mut after): (Vec<StoredEvent>, Option<EventCursor>) = (Vec::new(), None);
    loop {
        let (page, more) = bed.usage.list(&bed.people.scope, filter, after, limit).await.unwrap();
        assert!(page.len() <= limit as usize && (!more || page.len() == limit as usize));
        seen.extend(page);
        if !more {
            return seen.into_iter().map(|event| event.counted).collect();
        }
        after = seen.last().map(|event| (event.counted.event.timestamp, event.counted.event.id));
    }
}

async fn lists_agree_with_a_model(bed: Bed) {
    let rows = bed.people.crowd(500);
    let ties = rows.iter().filter(|row| row.event.timestamp == rows[17].event.timestamp).count();
    assert!(ties > 0);
    for chunk in rows.chunks(111) {
        bed.write(chunk).await;
    }
    let ids = Some((0..rows.len()).step_by(7).map(|n| rows[n].event.id).chain([UsageEventId::generate()]).collect());
    let by_id = [
        EventFilter { ids: ids.clone(), ..EventFilter::default() },
        EventFilter { ids: Some(Vec::new()), ..EventFilter::default() },
        EventFilter {
            ids,
            customer_ids: Some(vec![bed.people.customers[0]]),
            product_ids: Some(vec![bed.people.products[0]]),
            metric_keys: vec!["api_calls".into()],
            occurred_before: Some(rows[17].event.timestamp),
            ..EventFilter::default()
        },
    ];
    for filter in filters(&bed, &rows).into_iter().chain(by_id) {
        let mut expected: Vec<_> = rows.iter().filter(|row| matches(&filter, row)).cloned().collect();
        expected.sort_by(newest_first);
        for limit in [33, 100] {
            let seen = all_pages(&bed, &filter, limit).await;
            assert_eq!(positions(&seen), positions(&expected), "{filter:?}, limit {limit}");
            assert_eq!(seen, expected);
        }
    }
}

fn positions(rows: &[CountedEvent]) -> Vec<u64> {
    rows.iter().map(|row| row.position.offset()).collect()
}

async fn pages_neither_skip_nor_repeat_while_rows_come_in(bed: Bed) {
    // Many at one instant: only the id tells them apart.
    let at = instant("2026-05-04T10:00:00Z");
    let mut rows: Vec<_> = (1..=60).map(|n| bed.people.event(n, at + TimeDelta::seconds(n as i64 / 20))).collect();
    bed.write(&rows).await;
    rows.sort_by(newest_first);
    let (mut seen, mut after, mut next) = (Vec::new(), None, 1_000);
    loop {
        let (page, more) = bed.usage.list(&bed.people.scope, &EventFilter::default(), after, 7).await.unwrap();
        seen.extend(page.into_iter().map(|event| event.counted));
        if !more {
            break;
        }
        after = seen.last().map(|row| (row.event.timestamp, row.event.id));
        // Newer than everything, so no page after the first may show it.
        bed.write(&[bed.people.event(next, at + TimeDelta::days(1))]).await;
        next += 1;
    }
    assert_eq!(positions(&seen), positions(&rows));
}

fn aggregate(size: Size, metric: Metric, group_by: GroupBy, since: &str, until: &str) -> AggregateQuery {
    let filter = EventFilter::default();
    AggregateQuery { filter, bucket: size, metric, group_by, since: instant(since), until: instant(until) }
}

fn modelled(rows: &[CountedEvent], query: &AggregateQuery, voided: UsageEventId) -> Vec<AggregateBucket> {
    let mut buckets: BTreeMap<(Instant, Option<String>), Quantity> = BTreeMap::new();
    let in_range = |row: &&CountedEvent| {
        matches(&query.filter, row)
            && (query.since..query.until).contains(&row.event.timestamp)
            && row.event.id != voided
    };
    for row in rows.iter().filter(in_range) {
        let event = &row.event;
        let start = match query.bucket {
            Size::Hour => event.timestamp.duration_trunc(TimeDelta::hours(1)).unwrap(),
            Size::Day => event.timestamp.duration_trunc(TimeDelta::days(1)).unwrap(),
            Size::Week => {
                let day = event.timestamp.duration_trunc(TimeDelta::days(1)).unwrap();
                day - TimeDelta::days(i64::from(chrono::Datelike::weekday(&day).num_days_from_monday()))
            }
        };
        let group = match &query.group_by {
            GroupBy::None => None,
            GroupBy::MetricKey => Some(event.metric_key.clone()),
            GroupBy::Dimension(key) => Some(event.dimension_vars.get(key).map(ToString::to_string).unwrap_or_default()),
        };
        let value = match query.metric {
            Metric::Count => Quantity::ONE,
            Metric::SumQuantity => event.quantity,
        };
        let total = buckets.entry((start, group)).or_default();
        *total = total.checked_add(value).unwrap();
    }
    let bucket = |((bucket_start, group), value)| AggregateBucket { bucket_start, group, value };
    buckets.into_iter().map(bucket).collect()
}

async fn sums_agree_with_a_model(bed: Bed) {
    let mut rows = bed.people.crowd(600);
    for (n, value) in [
        (5, VarValue::Bool(true)),
        (6, VarValue::Number(quantity("123456789012345.123456789012"))),
        (7, VarValue::Number(quantity("-0.5"))),
        (8, VarValue::Text(String::new())),
        (9, VarValue::Text("\"region\":\"eu\"".into())),
    ] {
        rows[n].event.dimension_vars.insert("region".into(), value);
        rows[n].event.dimension_vars.insert("a".into(), VarValue::Text("\"region\":\"us\",".into()));
    }
    bed.write(&rows).await;
    let voided = rows[42].event.id;
    bed.void(&rows[42], instant("2026-06-01T00:00:00Z")).await;
    let groups =
        [GroupBy::None, GroupBy::MetricKey, GroupBy::Dimension("region".into()), GroupBy::Dimension("x'y".into())];
    for size in [Size::Hour, Size::Day, Size::Week] {
        for metric in [Metric::Count, Metric::SumQuantity] {
            for group_by in &groups {
                let query = aggregate(size, metric, group_by.clone(), "2026-05-04T00:00:00Z", "2026-05-27T13:10:00Z");
                let seen = bed.usage.aggregate(&bed.people.scope, &query).await.unwrap();
                assert_eq!(seen, modelled(&rows, &query, voided), "{query:?}");
            }
        }
    }
    for filter in filters(&bed, &rows) {
        let query = AggregateQuery {
            filter,
            ..aggregate(Size::Week, Metric::SumQuantity, GroupBy::None, "2026-04-27T00:00:00Z", "2026-06-29T00:00:00Z")
        };
        let seen = bed.usage.aggregate(&bed.people.scope, &query).await.unwrap();
        assert_eq!(seen, modelled(&rows, &query, voided), "{query:?}");
    }
}

async fn weeks_begin_on_monday_and_bounds_are_half_open(bed: Bed) {
    // 2026-05-04 is a Monday.
    let times =
        ["2026-05-03T23:59:59.999999Z", "2026-05-04T00:00:00Z", "2026-05-10T23:59:59.999999Z", "2026-05-11T00:00:00Z"];
    let rows: Vec<_> = (1..).zip(times).map(|(n, time)| bed.people.event(n, instant(time))).collect();
    bed.write(&rows).await;
    let query = aggregate(Size::Week, Metric::Count, GroupBy::None, "2026-05-04T00:00:00Z", "2026-05-11T00:00:00Z");
    let seen = bed.usage.aggregate(&bed.people.scope, &query).await.unwrap();
    let week =
        AggregateBucket { bucket_start: instant("2026-05-04T00:00:00Z"), group: None, value: Quantity::from_int(2) };
    assert_eq!(seen, [week]);
    let filter = EventFilter {
        occurred_after: Some(instant(times[1])),
        occurred_before: Some(instant(times[3])),
        ..EventFilter::default()
    };
    assert_eq!(positions(&all_pages(&bed, &filter, 10).await), [3, 2]);
}

async fn a_stranger_sees_nothing(bed: Bed) {
    let rows = bed.people.crowd(50);
    bed.write(&rows).await;
    let stranger = &bed.people.stranger;
    let all = EventFilter::default();
    assert_eq!(bed.usage.list(stranger, &all, None, 10).await.unwrap(), (vec![], false));
    for filter in [
        EventFilter { customer_ids: Some(vec![bed.people.customers[0]]), ..all.clone() },
        EventFilter { subscription_ids: Some(vec![bed.people.subscriptions[0]]), ..all },
    ] {
        assert_eq!(bed.usage.list(stranger, &filter, None, 10).await.unwrap(), (vec![], false));
    }
    assert_eq!(bed.usage.get(stranger, rows[0].event.id).await.unwrap(), None);
    let query = aggregate(Size::Week, Metric::Count, GroupBy::None, "2026-04-27T00:00:00Z", "2026-06-29T00:00:00Z");
    assert!(bed.usage.aggregate(stranger, &query).await.unwrap().is_empty());
    let foreign = AggregateQuery {
        filter: EventFilter { subscription_ids: Some(vec![bed.people.subscriptions[0]]), ..EventFilter::default() },
        ..query
    };
    assert!(bed.usage.aggregate(stranger, &foreign).await.unwrap().is_empty());
}

/// In advance the invoice that bills a window is that of the next period: only its usage lines tell.
async fn the_invoice_of_a_window_is_shown(bed: Bed) {
    let rows =
        [bed.people.event(1, instant("2026-05-04T10:00:00Z")), bed.people.event(2, instant("2026-06-04T10:00:00Z"))];
    bed.write(&rows).await;
    let may = "2026-05-01";
    let _own_fees = bed.invoice(may, Some(1), "RECURRING", may).await;
    let billed = bed.invoice("2026-06-01", Some(2), "USAGE", may).await;
    let _draft = bed.invoice("2026-07-01", None, "USAGE", "2026-06-01").await;
    let people = &bed.people;
    let (page, _) = bed.usage.list(&people.scope, &EventFilter::default(), None, 10).await.unwrap();
    let invoices: Vec<_> = page.iter().map(|event| event.invoice_id).collect();
    assert_eq!(invoices, [None, Some(billed)]);
    let one = bed.usage.get(&people.scope, rows[0].event.id).await.unwrap().unwrap();
    assert_eq!(one.invoice_id, Some(billed));
}

async fn an_empty_store_answers(bed: Bed) {
    bed.write(&[]).await;
    let scope = &bed.people.scope;
    assert_eq!(bed.usage.list(scope, &EventFilter::default(), None, 10).await.unwrap(), (vec![], false));
    assert_eq!(bed.usage.get(scope, UsageEventId::of(scope.workspace_id, "x")).await.unwrap(), None);
    assert!(bed.usage.ids_between(PARTITION, Position::START, position(9), 10).await.unwrap().is_empty());
    assert_eq!(bed.usage.largest_position(PARTITION).await.unwrap(), None);
    let query =
        aggregate(Size::Day, Metric::SumQuantity, GroupBy::MetricKey, "2026-04-27T00:00:00Z", "2026-06-29T00:00:00Z");
    assert!(bed.usage.aggregate(scope, &query).await.unwrap().is_empty());
}
