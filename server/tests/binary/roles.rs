//! Guards against usage that is lost or counted twice when each role runs in a process of its own and an `ingest` node goes
//! away while usage flows: killed, or stopped in order and back at once (rules A1, A5, B3).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant as Stopwatch;

use client::OwnServer;
use client::usage::BATCH_MAX;
use uuid::Uuid;

use crate::site::{Site, eventually, metric};
use crate::tenant::{ROUND, Tenant};

const CUSTOMERS: usize = 24;
const PARTITIONS: usize = 8;

/// One database, one topic, four processes.
struct Cluster {
    site: Site,
    api: OwnServer,
    _scheduler: OwnServer,
    /// The one that goes away, and the one that stays.
    ingest: [OwnServer; 2],
    tenant: Tenant,
    accepted: AtomicUsize,
}

impl Cluster {
    /// `None` without Apache Kafka.
    async fn start() -> Option<Self> {
        let brokers = engines::testing::kafka().await?;
        let site = Site::new().await;
        let topic = format!("roles-{}", Uuid::new_v4());
        let settings = |roles: &str| {
            ["log_kind=kafka".to_owned(), format!("kafka_brokers={brokers}"), format!("roles={roles}")]
                .into_iter()
                .chain([
                    format!("kafka_topic={topic}"),
                    format!("kafka_group={topic}"),
                    format!("partitions={PARTITIONS}"),
                ])
                .collect::<Vec<_>>()
        };
        let (api, scheduler) = (settings("api"), settings("scheduler"));
        let ingest = settings("ingest");
        let (api, scheduler, first, second) = tokio::join!(
            site.server("api", &api),
            site.server("scheduler", &scheduler),
            site.server("ingest-1", &ingest),
            site.server("ingest-2", &ingest),
        );
        let tenant = Tenant::create(&api, CUSTOMERS).await;
        Some(Self { site, api, _scheduler: scheduler, ingest: [first, second], tenant, accepted: AtomicUsize::new(0) })
    }

    /// Sends events while `harm` comes over the first node; gives their number.
    async fn send_while(&mut self, harm: impl AsyncFnOnce(&mut OwnServer)) -> usize {
        let (tenant, accepted, node) = (&self.tenant, &self.accepted, &mut self.ingest[0]);
        let is_over = AtomicBool::new(false);
        let flowing = tenant.send_until(0, || is_over.load(Ordering::Relaxed), accepted);
        let harming = async {
            let look = async || accepted.load(Ordering::Relaxed);
            eventually("usage flows", look, |now| *now >= 2 * ROUND).await;
            harm(node).await;
            is_over.store(true, Ordering::Relaxed);
        };
        let (sent, ()) = tokio::join!(flowing, harming);
        sent.expect("the door stays open")
    }

    /// Each node has half of the partitions.
    async fn await_share(&self) {
        for node in &self.ingest {
            let look = async || metric(node, "kontorion_ingest_lag_records").await.len();
            eventually("a node has its share", look, |partitions| *partitions == PARTITIONS / 2).await;
        }
    }

    /// Each node has counted since it was started.
    async fn both_count(&self) {
        for node in &self.ingest {
            assert!(metric(node, "kontorion_ingest_counted_events_total").await.iter().sum::<u64>() > 0);
            // One whose taking met a broker that was slow to answer is taken again.
            let reloads = metric(node, "kontorion_ingest_reloads_total").await;
            assert!(reloads.iter().all(|times| *times <= 1), "partitions fell again and again: {reloads:?}");
        }
    }

    async fn await_totals(&self, events: usize) {
        self.tenant.await_totals(&self.tenant.used(0..events)).await;
        assert_eq!(self.site.number("SELECT count(*) FROM usage_event").await, i64::try_from(events).unwrap());
        assert_eq!(self.site.number("SELECT count(*) FROM usage_rejection").await, 0);
        assert_eq!(self.site.number("SELECT count(*) FROM unattributed_record").await, 0);
    }

    /// Sends a round more, and again some of what both nodes counted before; compares everything.
    async fn finish(&self, sent: usize) {
        // Retries of what the other node counted meanwhile: the index of this one must learn of them first (rule B3).
        let again = (0..sent).step_by(11).take(BATCH_MAX).collect();
        self.tenant.send_batch(again, &self.accepted).await.expect("the door is open");
        self.tenant.send(sent..sent + ROUND, &self.accepted).await.expect("the door is open");
        self.await_totals(sent + ROUND).await;
        self.both_count().await;
        self.api.verify_ledger().await.expect("the books agree");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_in_separate_processes_and_the_death_of_one_ingest_node() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.await_share().await;
    let mut killed = Stopwatch::now();
    let kill = async |node: &mut OwnServer| {
        killed = Stopwatch::now();
        node.kill().await.expect("killed");
    };
    let sent = cluster.send_while(kill).await;
    // The other node alone.
    cluster.await_totals(sent).await;
    // A figure of docs/performance.md.
    println!("{:.1?} after the kill the other node had counted everything", killed.elapsed());
    cluster.ingest[0].start_again().await.expect("the node comes back");
    cluster.await_share().await;
    cluster.finish(sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_in_separate_processes_and_the_restart_of_one_ingest_node() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.await_share().await;
    let restart = async |node: &mut OwnServer| {
        node.stop().await.expect("an orderly stop");
        node.start_again().await.expect("the node comes back");
    };
    let sent = cluster.send_while(restart).await;
    cluster.await_totals(sent).await;
    cluster.await_share().await;
    cluster.finish(sent).await;
}
