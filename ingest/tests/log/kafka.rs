//! Apache Kafka: the topic, the group, foreign records. Without a broker these tests say so and pass, except in CI.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ingest::log::kafka::{KafkaLog, KafkaOptions, Seal};
use ingest::log::{Append, Assignment, EventLog, ForeignHeaders, LogError, LogIdentity, Origin};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;

use super::{Harness, PARTITIONS, PATIENCE, append_one, joined, record, take, text};

pub struct KafkaHarness {
    options: KafkaOptions,
}

impl KafkaHarness {
    /// A topic and a group of its own; `None` without a broker.
    pub async fn new() -> Option<Self> {
        let Some(servers) = engines::testing::kafka().await else {
            eprintln!("no Apache Kafka: not tested");
            return None;
        };
        let name = format!("conformance-{}", Uuid::new_v4());
        Some(Self { options: KafkaOptions::new(&servers, &name, &name, "node-1") })
    }

    async fn node(&self, instance: &str) -> Arc<KafkaLog> {
        let options = KafkaOptions { instance: instance.to_owned(), ..self.options.clone() };
        let name = KafkaLog::prepare(&options, PARTITIONS).await.unwrap();
        assert!(name.ends_with(&format!("/{}", options.topic)), "{name}");
        let identity = LogIdentity { id: Uuid::nil(), ordinal: 2, partitions: PARTITIONS };
        Arc::new(KafkaLog::open(options, identity, Seal::new([7; 16])).await.unwrap())
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.options.bootstrap_servers).create().unwrap()
    }
}

#[async_trait]
impl Harness for KafkaHarness {
    async fn open(&self) -> Arc<dyn EventLog> {
        self.node("node-1").await
    }
}

#[tokio::test]
async fn a5_a_topic_with_another_number_of_partitions_is_refused() {
    let Some(harness) = KafkaHarness::new().await else { return };
    let name = KafkaLog::prepare(&harness.options, PARTITIONS).await.unwrap();
    assert_eq!(KafkaLog::prepare(&harness.options, PARTITIONS).await.unwrap(), name);
    let refused = KafkaLog::prepare(&harness.options, PARTITIONS + 1).await.err().unwrap().to_string();
    assert!(refused.contains("has 3 partitions and the event log is configured with 4"), "{refused}");
}

/// Else: a node without its broker says that it is ready, and takes requests that it must refuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_a_broker_does_not_answer() {
    // Nobody listens on a port that was bound and let go.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = KafkaOptions::new(&nobody.to_string(), "usage-events", "kontorion", "node-1");
    let identity = LogIdentity { id: Uuid::nil(), ordinal: 2, partitions: PARTITIONS };
    let log = KafkaLog::open(options, identity, Seal::new([7; 16])).await.unwrap();
    assert!(matches!(log.ping().await, Err(LogError::Transient { .. })));
}

#[tokio::test]
async fn a_compacted_topic_is_refused() {
    let Some(harness) = KafkaHarness::new().await else { return };
    let topic = NewTopic::new(&harness.options.topic, PARTITIONS.cast_signed(), TopicReplication::Fixed(1))
        .set("cleanup.policy", "compact");
    harness.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let refused = KafkaLog::prepare(&harness.options, PARTITIONS).await.err().unwrap().to_string();
    assert!(refused.contains("is compacted"), "{refused}");
}

/// Else: a record that the broker dropped is skipped, and nobody ever knows that it was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a6_records_that_the_broker_dropped_stop_the_partition() {
    let Some(harness) = KafkaHarness::new().await else { return };
    let joined = joined(&harness).await;
    for number in 0..10 {
        append_one(&*joined.log, 0, &format!("r{number}")).await;
    }
    let mut dropped = TopicPartitionList::new();
    dropped.add_partition_offset(&harness.options.topic, 0, Offset::Offset(6)).unwrap();
    harness.admin().delete_records(&dropped, &AdminOptions::new()).await.unwrap();
    match joined.log.reader(0, 5).await.err() {
        Some(LogError::OutOfRange { partition: 0, wanted: 5, first: 6, end: 10 }) => {}
        other => panic!("expected out of range: {other:?}"),
    }
    let mut reader = joined.log.reader(0, 6).await.unwrap();
    assert_eq!(text(&take(&mut *reader, 4).await[0]), "r6");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a7_foreign_records_come_with_their_headers() {
    let Some(harness) = KafkaHarness::new().await else { return };
    let joined = joined(&harness).await;
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", &harness.options.bootstrap_servers).create().unwrap();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "kontorion-workspace", value: Some("w") })
        .insert(Header { key: "trace", value: Some("t") })
        .insert(Header { key: "kontorion-signature", value: Some("s") });
    let signed = FutureRecord::<(), str>::to(&harness.options.topic).partition(0).payload("{\"a\":1}").headers(headers);
    producer.send(signed, PATIENCE).await.unwrap();
    let bare = FutureRecord::<(), str>::to(&harness.options.topic).partition(0).payload("{}");
    producer.send(bare, PATIENCE).await.unwrap();
    let headers = OwnedHeaders::new().insert(Header { key: "kontorion-workspace", value: Some("w") });
    let spaced =
        FutureRecord::<(), str>::to(&harness.options.topic).partition(0).payload(" {\"a\":1}").headers(headers);
    producer.send(spaced, PATIENCE).await.unwrap();
    append_one(&*joined.log, 0, "ours").await;

    let mut reader = joined.log.reader(0, 0).await.unwrap();
    let records = take(&mut *reader, 4).await;
    let [Origin::Foreign(signed), Origin::Foreign(bare), Origin::Foreign(spaced), Origin::Own] =
        [0, 1, 2, 3].map(|index: usize| records[index].origin.clone())
    else {
        panic!("{records:?}")
    };
    assert_eq!((signed.workspace.as_deref(), signed.signature.as_deref()), (Some(&b"w"[..]), Some(&b"s"[..])));
    assert_eq!(records[0].payload, "{\"a\":1}");
    assert_eq!(bare, ForeignHeaders::default());
    assert_eq!(spaced.workspace.as_deref(), Some(&b"w"[..]));
    assert!(records.iter().all(|record| record.logged_at_ms.is_some()));
}

/// Else: whoever may write to the topic bills anybody's customer, or ends windows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a7_a_record_that_looks_like_ours_is_known_as_forged() {
    let Some(harness) = KafkaHarness::new().await else { return };
    let joined = joined(&harness).await;
    append_one(&*joined.log, 0, "ours").await;
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", &harness.options.bootstrap_servers).create().unwrap();
    let plain = FutureRecord::<(), str>::to(&harness.options.topic).partition(0).payload("\u{1}ours");
    producer.send(plain, PATIENCE).await.unwrap();
    // What was read from one partition is good for no other.
    let consumer: rdkafka::consumer::StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &harness.options.bootstrap_servers)
        .set("group.id", "spy")
        .create()
        .unwrap();
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&harness.options.topic, 0, Offset::Offset(0)).unwrap();
    consumer.assign(&place).unwrap();
    let sealed = timeout(PATIENCE, consumer.recv()).await.unwrap().unwrap().detach();
    let copy = FutureRecord::<(), [u8]>::to(&harness.options.topic).partition(1).payload(sealed.payload().unwrap());
    producer.send(copy, PATIENCE).await.unwrap();

    let mut reader = joined.log.reader(0, 0).await.unwrap();
    let records = take(&mut *reader, 2).await;
    assert_eq!((text(&records[0]).as_str(), &records[0].origin), ("ours", &Origin::Own));
    assert_eq!((text(&records[1]).as_str(), &records[1].origin), ("ours", &Origin::Forged));
    let mut reader = joined.log.reader(1, 0).await.unwrap();
    assert_eq!(take(&mut *reader, 1).await[0].origin, Origin::Forged);
}

/// Else: a node that the group has thrown out for good goes on answering `/readyz`, and counts nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_another_node_of_its_name_replaced_has_failed() {
    let Some(harness) = KafkaHarness::new().await else { return };
    let first = joined(&harness).await;
    let second = joined(&harness).await;
    let reason = timeout(PATIENCE, first.log.failed()).await.expect("the first one is fenced");
    assert!(reason.contains("cannot be in the consumer group"), "{reason}");
    assert!(timeout(Duration::from_millis(100), second.log.failed()).await.is_err(), "the second one works");
}

/// The end of a transaction takes an offset that no reader sees. Else: the partition waits for it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_are_missing_for_good_are_passed() {
    let Some(harness) = KafkaHarness::new().await else { return };
    let joined = joined(&harness).await;
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &harness.options.bootstrap_servers)
        .set("transactional.id", &harness.options.topic)
        .create()
        .unwrap();
    let producer = tokio::task::spawn_blocking(move || {
        producer.init_transactions(PATIENCE).unwrap();
        producer
    });
    let producer = producer.await.unwrap();
    for number in 0..3 {
        producer.begin_transaction().unwrap();
        let payload = format!("{{\"number\":{number}}}");
        let foreign = FutureRecord::<(), str>::to(&harness.options.topic).partition(0).payload(&payload);
        producer.send(foreign, PATIENCE).await.unwrap();
        producer.commit_transaction(PATIENCE).unwrap();
    }
    let mut reader = joined.log.reader(0, 0).await.unwrap();
    let offsets: Vec<u64> = take(&mut *reader, 3).await.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [0, 2, 4]);
}

/// Else: one partition that waits for PostgreSQL stops all the others, or the group takes the node for dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_a_partition_that_stands_still_stops_no_other() {
    let Some(harness) = KafkaHarness::new().await else { return };
    let joined = joined(&harness).await;
    // More than is fetched ahead of a reader.
    let large = Bytes::from(vec![1; 500_000]);
    for _ in 0..40 {
        joined.log.append(vec![Append { partition: 0, payload: large.clone() }]).await.remove(0).unwrap();
    }
    let mut still = joined.log.reader(0, 0).await.unwrap();
    assert_eq!(still.next(1).await.unwrap().len(), 1);
    let mut moving = joined.log.reader(1, 0).await.unwrap();
    for number in 0..20 {
        append_one(&*joined.log, 1, &format!("r{number}")).await;
        assert_eq!(take(&mut *moving, 1).await[0].offset, number);
    }
    let rest = take(&mut *still, 39).await;
    assert_eq!((rest[0].offset, rest[38].offset), (1, 39), "the one that stood still goes on where it was");
}

/// The partitions of a node, kept up to date as the group changes its mind.
struct Node {
    log: Arc<KafkaLog>,
    assignments: mpsc::Receiver<Assignment>,
    has: BTreeSet<u32>,
}

impl Node {
    async fn start(harness: &KafkaHarness, instance: &str) -> Self {
        let log = harness.node(instance).await;
        let assignments = log.join().await.unwrap();
        Self { log, assignments, has: BTreeSet::new() }
    }

    /// Takes in what the group says until it has been silent for a moment.
    async fn settle(&mut self) {
        while let Ok(Some(assignment)) = timeout(Duration::from_millis(200), self.assignments.recv()).await {
            match assignment {
                Assignment::Assigned(partition) => assert!(self.has.insert(partition), "taken twice"),
                Assignment::Revoked { partition, done } => {
                    assert!(self.has.remove(&partition), "given up without being had");
                    drop(done);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_two_nodes_share_the_partitions_and_one_takes_over_when_the_other_dies() {
    let Some(harness) = KafkaHarness::new().await else { return };
    let all: BTreeSet<u32> = (0..PARTITIONS).collect();
    let mut first = Node::start(&harness, "node-1").await;
    while first.has != all {
        first.settle().await;
    }
    for partition in 0..PARTITIONS {
        first.log.append(vec![record(partition, "one"), record(partition, "two")]).await.remove(1).unwrap();
    }
    let mut readers = Vec::new();
    for partition in 0..PARTITIONS {
        readers.push(first.log.reader(partition, 0).await.unwrap());
    }

    let mut second = Node::start(&harness, "node-2").await;
    while second.has.is_empty() || &first.has | &second.has != all {
        first.settle().await;
        second.settle().await;
    }
    assert!(first.has.is_disjoint(&second.has), "{:?} and {:?}", first.has, second.has);
    for (partition, reader) in (0..).zip(&mut readers) {
        match reader.next(1).await {
            Ok(records) => assert!(first.has.contains(&partition) && records[0].offset == 0),
            Err(LogError::Revoked(lost)) => assert!(lost == partition && second.has.contains(&partition)),
            Err(error) => panic!("{error}"),
        }
        let elsewhere = first.log.reader(partition, 0).await;
        assert_eq!(elsewhere.is_ok(), first.has.contains(&partition));
    }

    // A static member that goes away says nothing to the group: for the others it is dead.
    drop(readers);
    drop(first.assignments);
    first.log.close().await;
    let waited = tokio::time::Instant::now();
    while second.has != all {
        assert!(waited.elapsed() < PATIENCE, "the second node has {:?}", second.has);
        second.settle().await;
    }
    assert!(waited.elapsed() < Duration::from_secs(12), "taken over after {:?}", waited.elapsed());
    for partition in 0..PARTITIONS {
        let mut reader = second.log.reader(partition, 1).await.unwrap();
        assert_eq!(text(&take(&mut *reader, 1).await[0]), "two");
    }
    second.log.passed(0, 2).await;
}

/// Else: the group gives a static member back what it had, and the node waits for a topic that nobody assigns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_a_node_that_comes_back_with_another_topic_gets_its_partitions() {
    let Some(mut harness) = KafkaHarness::new().await else { return };
    let all: BTreeSet<u32> = (0..PARTITIONS).collect();
    for topic in [harness.options.topic.clone(), format!("{}-anew", harness.options.topic)] {
        harness.options.topic = topic;
        let mut node = Node::start(&harness, "node-1").await;
        let waited = tokio::time::Instant::now();
        while node.has != all {
            assert!(waited.elapsed() < PATIENCE, "the node has {:?}", node.has);
            node.settle().await;
        }
        drop(node.assignments);
        node.log.close().await;
    }
}

#[tokio::test]
async fn a6_one_insync_replica_is_enough_for_a_topic_with_one_copy() {
    let Some(harness) = KafkaHarness::new().await else { return };
    // One broker cannot hold two copies; the setting alone must not be refused, as one broker acknowledges for itself.
    KafkaLog::prepare(&harness.options, PARTITIONS).await.unwrap();
    let settings = AlterConfig::new(ResourceSpecifier::Topic(&harness.options.topic))
        .set("min.insync.replicas", "1")
        .set("message.timestamp.type", "LogAppendTime");
    harness.admin().alter_configs([&settings], &AdminOptions::new()).await.unwrap();
    KafkaLog::prepare(&harness.options, PARTITIONS).await.unwrap();
}

/// Else: a foreign producer chooses when his record was accepted, or the broker drops it before it is counted.
#[tokio::test]
async fn a6_a7_a_topic_keeps_records_and_their_times_itself() {
    let Some(harness) = KafkaHarness::new().await else { return };
    KafkaLog::prepare(&harness.options, PARTITIONS).await.unwrap();
    for (name, value, says) in [
        ("message.timestamp.type", "CreateTime", "message.timestamp.type to LogAppendTime"),
        ("retention.ms", "86400000", "retention.ms to a week"),
        ("retention.bytes", "1000000", "retention.bytes to -1"),
    ] {
        let topic = ResourceSpecifier::Topic(&harness.options.topic);
        let mut settings = AlterConfig::new(topic).set("message.timestamp.type", "LogAppendTime");
        settings.entries.insert(name, value);
        harness.admin().alter_configs([&settings], &AdminOptions::new()).await.unwrap();
        let refused = KafkaLog::prepare(&harness.options, PARTITIONS).await.err().unwrap().to_string();
        assert!(refused.contains(says), "{refused}");
    }
}
