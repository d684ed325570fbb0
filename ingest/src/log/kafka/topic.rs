//! The topic before anybody uses it: made when it is missing, refused when it would lose records.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::Metadata;

use super::{ANSWER_TIMEOUT, KafkaOptions, kafka_error, transient};
use crate::log::LogError;

/// A topic that we make keeps records this long: the week past the checkpoint of rule A6, and a week to be behind.
const RETENTION_MS: &str = "1209600000";
/// The shortest time for which a topic may keep its records (rule A6).
const WEEK_MS: i64 = 604_800_000;
/// Copies of a topic that we make, where there are brokers enough.
const REPLICATION: usize = 3;
/// How long a new topic may take to be known everywhere.
const NEW_TOPIC_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn prepare(options: &KafkaOptions, partitions: u32) -> Result<String, LogError> {
    let admin: AdminClient<DefaultClientContext> =
        options.client().create().map_err(|error| kafka_error("connecting", error))?;
    let admin = std::sync::Arc::new(admin);
    let known = describe(&admin, &options.topic).await?;
    let (cluster, copies) = match known.topic {
        Some(topic) => (known.cluster, check_partitions(options, topic, partitions)?),
        None => {
            create(&admin, options, partitions, known.brokers).await?;
            (known.cluster, await_topic(&admin, options, partitions).await?)
        }
    };
    check_durability(&admin, options, copies).await?;
    Ok(format!("{cluster}/{}", options.topic))
}

struct Known {
    cluster: String,
    brokers: usize,
    topic: Option<KnownTopic>,
}

struct KnownTopic {
    partitions: usize,
    /// Copies of its partitions, the fewest.
    copies: usize,
}

async fn describe(admin: &std::sync::Arc<AdminClient<DefaultClientContext>>, topic: &str) -> Result<Known, LogError> {
    let (admin, topic) = (admin.clone(), topic.to_owned());
    let asked = tokio::task::spawn_blocking(move || {
        let client = admin.inner();
        // Of all topics: to ask for one by name may make it.
        let metadata =
            client.fetch_metadata(None, ANSWER_TIMEOUT).map_err(|e| kafka_error("asking for the topic", e))?;
        let cluster = client
            .fetch_cluster_id(ANSWER_TIMEOUT)
            .ok_or_else(|| LogError::Unusable("the Kafka cluster has no id".to_owned()))?;
        Ok(Known { cluster, brokers: metadata.brokers().len(), topic: find(&metadata, &topic) })
    });
    asked.await.map_err(|error| transient("asking for the topic", error))?
}

fn find(metadata: &Metadata, topic: &str) -> Option<KnownTopic> {
    let found = metadata.topics().iter().find(|found| found.name() == topic && !found.partitions().is_empty())?;
    let copies = found.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or_default();
    Some(KnownTopic { partitions: found.partitions().len(), copies })
}

/// The copies of the topic, if it has the right number of partitions.
fn check_partitions(options: &KafkaOptions, topic: KnownTopic, partitions: u32) -> Result<usize, LogError> {
    if topic.partitions == partitions as usize {
        return Ok(topic.copies);
    }
    Err(LogError::Unusable(format!(
        "topic {} has {} partitions and the event log is configured with {partitions}; homes of subscriptions depend on \
         the number, so it can never change: configure {}, or name another topic",
        options.topic, topic.partitions, topic.partitions,
    )))
}

async fn create(
    admin: &AdminClient<DefaultClientContext>,
    options: &KafkaOptions,
    partitions: u32,
    brokers: usize,
) -> Result<(), LogError> {
    let copies = options.replication.map_or(REPLICATION.min(brokers), usize::from).max(1);
    let topic = NewTopic::new(&options.topic, partitions.cast_signed(), TopicReplication::Fixed(copies as i32))
        .set("cleanup.policy", "delete")
        .set("retention.ms", RETENTION_MS)
        .set("message.timestamp.type", "LogAppendTime")
        .set("min.insync.replicas", if copies > 1 { "2" } else { "1" });
    let made = admin
        .create_topics([&topic], &AdminOptions::new().operation_timeout(Some(ANSWER_TIMEOUT)))
        .await
        .map_err(|error| kafka_error("making the topic", error))?;
    match made.into_iter().next() {
        // Another node made it at the same time.
        None | Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((topic, code))) => Err(LogError::Unusable(format!("making topic {topic}: {code}"))),
    }
}

async fn await_topic(
    admin: &std::sync::Arc<AdminClient<DefaultClientContext>>,
    options: &KafkaOptions,
    partitions: u32,
) -> Result<usize, LogError> {
    let until = tokio::time::Instant::now() + NEW_TOPIC_TIMEOUT;
    loop {
        if let Some(topic) = describe(admin, &options.topic).await?.topic {
            return check_partitions(options, topic, partitions);
        }
        if tokio::time::Instant::now() > until {
            return Err(transient("making the topic", "it is not there yet"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Refuses a topic that acknowledges what one broker alone has, although others were to have it (rule A6), and one that
/// forgets all but the last record of a key.
async fn check_durability(
    admin: &AdminClient<DefaultClientContext>,
    options: &KafkaOptions,
    copies: usize,
) -> Result<(), LogError> {
    let described = admin
        .describe_configs([&ResourceSpecifier::Topic(&options.topic)], &AdminOptions::new())
        .await
        .map_err(|error| kafka_error("reading the topic's settings", error))?;
    let settings = match described.into_iter().next() {
        Some(Ok(settings)) => settings,
        Some(Err(code)) => return Err(transient("reading the topic's settings", code)),
        None => return Err(transient("reading the topic's settings", "no answer")),
    };
    let setting = |name: &str| settings.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
    if copies > 1 && setting("min.insync.replicas") == "1" {
        return Err(LogError::Unusable(format!(
            "topic {} has {copies} copies and min.insync.replicas = 1, so a record is acknowledged when one broker has it \
             and may be lost with that broker: set min.insync.replicas to 2",
            options.topic
        )));
    }
    if setting("cleanup.policy").contains("compact") {
        return Err(LogError::Unusable(format!(
            "topic {} is compacted, which drops records that were acknowledged: set cleanup.policy to delete",
            options.topic
        )));
    }
    if setting("message.timestamp.type") != "LogAppendTime" {
        return Err(LogError::Unusable(format!(
            "topic {} takes the time of a record from its producer, who could choose when it was accepted: set \
             message.timestamp.type to LogAppendTime",
            options.topic
        )));
    }
    let kept_ms = setting("retention.ms").parse().unwrap_or(-1_i64);
    if (0..WEEK_MS).contains(&kept_ms) || setting("retention.bytes").parse::<i64>().is_ok_and(|bytes| bytes >= 0) {
        return Err(LogError::Unusable(format!(
            "topic {} drops records that may not be counted yet: set retention.ms to a week ({WEEK_MS}) or more, and \
             retention.bytes to -1",
            options.topic
        )));
    }
    Ok(())
}
