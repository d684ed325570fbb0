//! Guards against a stop that answers 202 and leaves the event behind: after SIGTERM, everything acknowledged must be in
//! the checkpoint, not only in the log.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::Api;
use ingest::log::local::{LocalLog, LocalLogOptions};
use ingest::log::{EventLog, LogIdentity};

use crate::site::{Site, eventually};
use crate::tenant::Tenant;

/// Senders that the signal interrupts.
const SENDERS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains_and_checkpoints() {
    let site = Site::new().await;
    let mut server = site.server("server", &[]).await;
    let mut tenant = Tenant::create(&server, 12).await;
    // One try: what is not acknowledged at once is not acknowledged.
    let impatient = Api::new(tenant.api.base(), tenant.api.key()).expect("a client");
    tenant.api = impatient.with_patience(Duration::ZERO);
    let accepted = AtomicUsize::new(0);
    let stopping = async {
        let look = async || accepted.load(Ordering::Relaxed);
        eventually("some are accepted", look, |now| *now >= 2_000).await;
        server.stop().await.expect("an orderly stop with exit status 0");
    };
    let senders = (0..SENDERS).map(|sender| send_until_refused(&tenant, sender, &accepted));
    let (acknowledged, ()) = tokio::join!(futures::future::join_all(senders), stopping);

    let acknowledged: Vec<String> = acknowledged.into_iter().flatten().collect();
    assert!(acknowledged.len() >= 2_000);
    let missing: Vec<String> = sqlx::query_scalar(
        "SELECT key FROM unnest($1::text[]) AS t (key)
         WHERE NOT EXISTS (SELECT FROM usage_event WHERE idempotency_key = key)",
    )
    .bind(&acknowledged)
    .fetch_all(&site.database.pool())
    .await
    .expect("a comparison");
    assert!(missing.is_empty(), "{} acknowledged events are not in the checkpoint: {missing:?}", missing.len());
    totals_agree(&site).await;
    nothing_is_left_in_the_log(&site).await;
}

/// The keys that were acknowledged before the server went away.
async fn send_until_refused(tenant: &Tenant, sender: usize, accepted: &AtomicUsize) -> Vec<String> {
    let mut keys = Vec::new();
    // Each sender has numbers of its own.
    for batch in 0.. {
        let first = (batch * SENDERS + sender) * 20;
        if tenant.send_batch((first..first + 20).collect(), accepted).await.is_err() {
            break;
        }
        keys.extend((first..first + 20).map(|number| tenant.event(number).idempotency_key));
    }
    keys
}

/// States and rows are of the same events.
async fn totals_agree(site: &Site) {
    let rows = site.number("SELECT count(*) FROM usage_event").await;
    assert_eq!(site.number("SELECT sum(event_count)::bigint FROM usage_window").await, rows);
    assert_eq!(site.number("SELECT count(DISTINCT id) FROM usage_event").await, rows);
}

/// Each partition's checkpoint stands at the end of the log.
async fn nothing_is_left_in_the_log(site: &Site) {
    let (id, ordinal, partitions): (uuid::Uuid, i16, i32) =
        sqlx::query_as("SELECT id, ordinal, partitions FROM event_log").fetch_one(&site.database.pool()).await.unwrap();
    let identity = LogIdentity { id, ordinal: ordinal.unsigned_abs(), partitions: partitions.unsigned_abs() };
    let dir = site.dir.path().join("server/log");
    let log = LocalLog::open(&dir, identity, LocalLogOptions::default()).expect("the server gave the log back");
    let rows: Vec<(i32, i64)> = sqlx::query_as("SELECT partition, next_offset FROM partition_checkpoint")
        .fetch_all(&site.database.pool())
        .await
        .expect("checkpoints");
    assert_eq!(rows.len(), partitions as usize);
    for (partition, next_offset) in rows {
        let end = log.end(partition.unsigned_abs()).await.expect("an end");
        assert_eq!(next_offset.unsigned_abs(), end, "partition {partition}");
    }
    log.close().await;
}
