//! Guards against usage that ClickHouse stores twice or not at all when answers are lost, nodes take over or it is away
//! (rule C7).

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use domain::{Error, UsageEventId};
use ingest::usage::clickhouse::ClickHouseUsage;
use ingest::usage::{CountedEvent, UsageStore};

use super::proxy::Proxy;
use super::{Bed, PARTITION, instant, position};

const ROWS: &str = "SELECT count() FROM usage_event";
const ROWS_FINAL: &str = "SELECT count() FROM usage_event FINAL";

/// A bed whose store reaches ClickHouse through a proxy.
async fn behind_a_proxy() -> Option<(Bed, Proxy)> {
    let url = engines::testing::clickhouse().await?;
    let proxy = Proxy::before(&url).await;
    Some((Bed::clickhouse_at(&url, &proxy.url).await, proxy))
}

/// Events at offsets, accepted in turn in May and in June, so that a batch makes two inserts.
fn rows(bed: &Bed, offsets: std::ops::RangeInclusive<u64>) -> Vec<CountedEvent> {
    let may = instant("2026-05-31T12:00:00Z");
    let event = |n: u64| {
        let mut row = bed.people.event(n, may + TimeDelta::seconds(n as i64));
        row.event.accepted_at += TimeDelta::days((n % 2) as i64);
        row
    };
    offsets.map(event).collect()
}

async fn assert_stored_once(bed: &Bed, count: u64) {
    assert_eq!(bed.clickhouse_number(ROWS).await, count);
    assert_eq!(bed.clickhouse_number(ROWS_FINAL).await, count);
    let ids: Vec<UsageEventId> = rows(bed, 1..=count).iter().map(|row| row.event.id).collect();
    assert_eq!(bed.usage.find(PARTITION, &ids).await.unwrap().len() as u64, count);
}

#[tokio::test]
async fn c7_lost_answer_writes_no_row_twice() {
    let Some((bed, proxy)) = behind_a_proxy().await else { return };
    // Without ClickHouse's own memory of blocks: the look-up alone must do.
    let sql = "ALTER TABLE usage_event MODIFY SETTING non_replicated_deduplication_window = 0";
    bed.clickhouse_client().query(sql).execute().await.unwrap();
    for (batch, answers) in [1, 2, 3].into_iter().enumerate() {
        proxy.lose_answers(answers);
        let first = batch as u64 * 300 + 1;
        bed.usage.append(PARTITION, &rows(&bed, first..=first + 299)).await.unwrap();
        proxy.lose_answers(0);
        assert_stored_once(&bed, first + 299).await;
    }
    assert!(proxy.lost() >= 3, "{} answers were lost", proxy.lost());
}

#[tokio::test]
async fn a_store_that_is_away_does_not_answer() {
    let Some((bed, proxy)) = behind_a_proxy().await else { return };
    bed.usage.ping().await.unwrap();
    proxy.close(true);
    assert!(matches!(bed.usage.ping().await, Err(Error::Unavailable { .. })));
    proxy.close(false);
    bed.usage.ping().await.unwrap();
}

#[tokio::test]
async fn c7_an_insert_that_is_sent_again_unseen_is_dropped_by_its_content() {
    // The look-up can come before an insert that was given up takes effect. Then only ClickHouse itself can tell.
    let Some(bed) = Bed::clickhouse().await else { return };
    let client = bed.clickhouse_client();
    for _ in 0..3 {
        let mut insert = client.insert_formatted_with("INSERT INTO usage_event (position) FORMAT RowBinary");
        insert.send(7_i64.to_le_bytes().to_vec().into()).await.unwrap();
        insert.end().await.unwrap();
    }
    assert_eq!(bed.clickhouse_number(ROWS).await, 1);
}

#[tokio::test]
async fn c7_a_take_over_skips_what_is_stored() {
    let Some(bed) = Bed::clickhouse().await else { return };
    bed.usage.append(PARTITION, &rows(&bed, 1..=100)).await.unwrap();
    // The checkpoint did not pass them: the next owner reads the same records again.
    let next = ClickHouseUsage::connect(bed.clickhouse.as_ref().unwrap(), bed.store.clone()).await.unwrap();
    next.taken(PARTITION).await.unwrap();
    next.append(PARTITION, &rows(&bed, 41..=60)).await.unwrap();
    next.append(PARTITION, &rows(&bed, 61..=150)).await.unwrap();
    assert_stored_once(&bed, 150).await;
    // The same owner again, after its partition failed: it need not have taken it anew.
    next.append(PARTITION, &rows(&bed, 140..=160)).await.unwrap();
    assert_stored_once(&bed, 160).await;
    assert_eq!(next.largest_position(PARTITION).await.unwrap(), Some(position(160)));
}

#[tokio::test]
async fn a_partition_that_was_not_taken_takes_no_rows() {
    let Some(bed) = Bed::clickhouse().await else { return };
    let refused = bed.usage.append(PARTITION + 1, &rows(&bed, 1..=1)).await;
    assert!(matches!(refused, Err(Error::Internal { .. })));
    assert_eq!(bed.clickhouse_number(ROWS).await, 0);
}

#[tokio::test]
async fn what_cannot_be_written_waits_until_it_can() {
    let Some((bed, proxy)) = behind_a_proxy().await else { return };
    proxy.close(true);
    let usage: Arc<dyn UsageStore> = bed.usage.clone();
    let (first, second) = (rows(&bed, 1..=50), rows(&bed, 51..=80));
    let waiting = tokio::spawn(async move {
        let (one, two) = tokio::join!(usage.append(PARTITION, &first), usage.append(PARTITION, &second));
        one.and(two)
    });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!waiting.is_finished());
    assert!(matches!(
        bed.usage.find(PARTITION, &[rows(&bed, 1..=1)[0].event.id]).await,
        Err(Error::Unavailable { .. })
    ));
    proxy.close(false);
    waiting.await.unwrap().unwrap();
    assert_stored_once(&bed, 80).await;
}

#[tokio::test]
async fn an_append_that_was_given_up_and_comes_again_is_written_once() {
    let Some((bed, proxy)) = behind_a_proxy().await else { return };
    proxy.close(true);
    let rows_twice = rows(&bed, 1..=30);
    for _ in 0..3 {
        let given_up = bed.usage.append(PARTITION, &rows_twice);
        assert!(tokio::time::timeout(Duration::from_millis(50), given_up).await.is_err());
    }
    proxy.close(false);
    bed.usage.append(PARTITION, &rows_twice).await.unwrap();
    assert_stored_once(&bed, 30).await;
}
