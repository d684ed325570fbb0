//! The table of logs: order of creation, one row per log, a number of partitions that never changes.

use chrono::{TimeZone, Utc};
use domain::Error;
use futures::future::join_all;
use ingest::log::registry::{LogKind, register};
use store::Store;

#[tokio::test]
async fn a5_a6_a_log_keeps_its_row_and_its_partitions_and_a_new_log_comes_after() {
    let database = engines::testing::database().await;
    let store = Store::connect(database.url(), 4).await.unwrap();
    let now = Utc.timestamp_opt(1_800_000_000, 0).unwrap();

    // Nodes that start at the same time agree.
    let nodes = (0..4).map(|_| register(&store, LogKind::Kafka, "cluster/usage-events", 16, now));
    let found: Vec<_> = join_all(nodes).await.into_iter().map(Result::unwrap).collect();
    assert!(found.iter().all(|identity| *identity == found[0]));
    assert_eq!(found[0].partitions, 16);

    let local = register(&store, LogKind::Local, "cluster/usage-events", 16, now).await.unwrap();
    assert!(local.ordinal > found[0].ordinal && local.id != found[0].id);
    assert!(local.position(0) > found[0].position(1 << 40), "positions compare by log first");

    match register(&store, LogKind::Kafka, "cluster/usage-events", 32, now).await {
        Err(Error::Conflict { code: "LOG_PARTITIONS", detail, .. }) => {
            assert!(detail.contains("was made with 16 partitions and is now to have 32"), "{detail}");
        }
        other => panic!("expected a refusal: {other:?}"),
    }
    assert_eq!(register(&store, LogKind::Kafka, "cluster/usage-events", 16, now).await.unwrap(), found[0]);
}
