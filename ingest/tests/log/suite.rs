//! What every event log does.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use ingest::log::{EventLog, LogError, Origin};
use tokio::time::timeout;

use super::{Harness, PARTITIONS, append_one, joined, record, take, text};

pub async fn an_open_log_answers(harness: &dyn Harness) {
    let log = harness.open().await;
    log.ping().await.unwrap();
    let joined = log.join().await.unwrap();
    log.ping().await.unwrap();
    drop(joined);
    log.close().await;
}

pub async fn records_of_a_partition_keep_their_order(harness: &dyn Harness) {
    let joined = joined(harness).await;
    for number in 0..50 {
        assert_eq!(append_one(&*joined.log, 1, &format!("r{number}")).await, number);
    }
    let mut reader = joined.log.reader(1, 0).await.unwrap();
    let records = take(&mut *reader, 50).await;
    for (number, found) in records.iter().enumerate() {
        assert_eq!((found.offset, text(found)), (number as u64, format!("r{number}")));
        assert_eq!(found.origin, Origin::Own);
    }
    assert_eq!(joined.log.end(1).await.unwrap(), 50);
    assert_eq!(joined.log.end(0).await.unwrap(), 0);
}

pub async fn a_batch_over_partitions_is_answered_record_by_record(harness: &dyn Harness) {
    let joined = joined(harness).await;
    let batch: Vec<_> = (0..30).map(|number| record(number % PARTITIONS, &format!("b{number}"))).collect();
    let outcomes = joined.log.append(batch).await;
    let offsets: Vec<u64> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(offsets, (0..30).map(|number| number / u64::from(PARTITIONS)).collect::<Vec<_>>());
    for partition in 0..PARTITIONS {
        let mut reader = joined.log.reader(partition, 0).await.unwrap();
        let texts: Vec<String> = take(&mut *reader, 10).await.iter().map(text).collect();
        assert_eq!(texts, (0..10).map(|n| format!("b{}", n * PARTITIONS + partition)).collect::<Vec<_>>());
    }
}

pub async fn concurrent_appenders_get_each_offset_once(harness: &dyn Harness) {
    let joined = joined(harness).await;
    let appenders = (0..20).map(|appender| {
        let log = joined.log.clone();
        tokio::spawn(async move {
            let mut mine = Vec::new();
            for number in 0..25 {
                let outcomes = log.append(vec![record(0, &format!("{appender}.{number}a")), record(0, "x")]).await;
                mine.push(*outcomes[0].as_ref().unwrap());
                mine.push(*outcomes[1].as_ref().unwrap());
            }
            assert!(mine.is_sorted(), "one appender's records keep their order: {mine:?}");
            mine
        })
    });
    let offsets: Vec<u64> = join_all(appenders).await.into_iter().flat_map(Result::unwrap).collect();
    let distinct: BTreeSet<u64> = offsets.iter().copied().collect();
    assert_eq!((offsets.len(), distinct.len(), distinct.last().copied()), (1000, 1000, Some(999)));
    let mut reader = joined.log.reader(0, 0).await.unwrap();
    let records = take(&mut *reader, 1000).await;
    assert!(records.iter().enumerate().all(|(index, found)| found.offset == index as u64));
}

pub async fn a_reader_waits_and_wakes(harness: &dyn Harness) {
    let joined = joined(harness).await;
    let mut reader = joined.log.reader(2, 0).await.unwrap();
    let waiting = tokio::spawn(async move { take(&mut *reader, 1).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    append_one(&*joined.log, 2, "late").await;
    assert_eq!(text(&waiting.await.unwrap()[0]), "late");
}

pub async fn a_new_reader_of_a_partition_replaces_the_one_before(harness: &dyn Harness) {
    let joined = joined(harness).await;
    for number in 0..20 {
        append_one(&*joined.log, 0, &format!("r{number}")).await;
    }
    let mut first = joined.log.reader(0, 0).await.unwrap();
    assert_eq!(take(&mut *first, 20).await.len(), 20);
    let waiting = tokio::spawn(async move { first.next(1).await });
    tokio::time::sleep(Duration::from_millis(20)).await;

    let mut second = joined.log.reader(0, 5).await.unwrap();
    let records = take(&mut *second, 15).await;
    assert_eq!((records[0].offset, text(&records[0])), (5, "r5".to_owned()));
    assert_eq!(records[14].offset, 19);
    assert!(matches!(waiting.await.unwrap(), Err(LogError::Revoked(0))), "the one before is told");

    // At the end there is nothing to read, which is no error.
    let mut third = joined.log.reader(0, 20).await.unwrap();
    assert!(timeout(Duration::from_millis(50), third.next(1)).await.is_err());
}

pub async fn an_abandoned_read_loses_no_record(harness: &dyn Harness) {
    let joined = joined(harness).await;
    let mut reader = joined.log.reader(0, 0).await.unwrap();
    let mut seen = Vec::new();
    for number in 0..40 {
        append_one(&*joined.log, 0, &format!("r{number}")).await;
        // Most of these are given up before they have an answer.
        if let Ok(records) = timeout(Duration::from_micros(200), reader.next(3)).await {
            seen.extend(records.unwrap());
        }
    }
    let left = 40 - seen.len();
    seen.extend(take(&mut *reader, left).await);
    assert!(seen.iter().enumerate().all(|(index, found)| found.offset == index as u64));
}

pub async fn records_outlive_the_process_that_appended_them(harness: &dyn Harness) {
    let log = harness.open().await;
    for number in 0..10 {
        append_one(&*log, 0, &format!("first {number}")).await;
    }
    log.close().await;
    drop(log);
    let joined = joined(harness).await;
    assert_eq!(append_one(&*joined.log, 0, "second").await, 10);
    let mut reader = joined.log.reader(0, 0).await.unwrap();
    let records = take(&mut *reader, 11).await;
    assert_eq!((text(&records[9]), text(&records[10])), ("first 9".to_owned(), "second".to_owned()));
}

/// Else: a topic that lost its records is read on from somewhere, and what was lost is never noticed.
pub async fn a6_offset_out_of_range_never_resets(harness: &dyn Harness) {
    let joined = joined(harness).await;
    for number in 0..3 {
        append_one(&*joined.log, 0, &format!("r{number}")).await;
    }
    match joined.log.reader(0, 4).await.err() {
        Some(LogError::OutOfRange { partition: 0, wanted: 4, first: 0, end: 3 }) => {}
        other => panic!("expected out of range: {other:?}"),
    }
    // The partition can still be read from where it is.
    let mut reader = joined.log.reader(0, 2).await.unwrap();
    assert_eq!(text(&take(&mut *reader, 1).await[0]), "r2");
}

pub async fn a_record_for_no_partition_is_refused(harness: &dyn Harness) {
    let log: std::sync::Arc<dyn EventLog> = harness.open().await;
    let outcomes = log.append(vec![record(0, "good"), record(PARTITIONS, "bad"), record(0, "good too")]).await;
    assert!(matches!(outcomes[..], [Ok(0), Err(LogError::Unusable(_)), Ok(1)]), "{outcomes:?}");
}
