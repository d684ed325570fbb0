//! Guards against a producer that is not ours: what it signs is counted once, whatever it sends twice or to the wrong
//! partition; what it sends wrong is kept where its owner or the operator finds it, and stops no partition (rules A4, A5, A7).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use client::OwnServer;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::process::Command;
use uuid::Uuid;

use crate::site::{Site, eventually, metric};
use crate::tenant::{Tenant, Used};

const PARTITIONS: u32 = 4;
const CUSTOMERS: usize = 6;

/// kcat, a client that shares no code with us.
struct Producer {
    program: PathBuf,
    brokers: String,
    topic: String,
    workspace: String,
    secret: Vec<u8>,
    value_file: PathBuf,
}

/// What becomes of a record that is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kept {
    /// For its workspace, with this code.
    Rejected(&'static str),
    /// For the operator, with this code.
    Unattributed(&'static str),
}

impl Producer {
    fn sign(&self, value: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("a key");
        mac.update(value);
        hex::encode(mac.finalize().into_bytes())
    }

    /// One record, on a partition of kcat's choice, which is not that of Java clients and of us.
    async fn produce(&self, key: &str, headers: &[(&str, &str)], value: &[u8]) {
        std::fs::write(&self.value_file, value).expect("a file");
        let mut command = Command::new(&self.program);
        command.args(["-P", "-b", &self.brokers, "-t", &self.topic, "-k", key]);
        for (name, value) in headers {
            command.arg("-H").arg(format!("{name}={value}"));
        }
        let output = command.arg(&self.value_file).output().await.expect("kcat runs");
        assert!(output.status.success(), "kcat: {}", String::from_utf8_lossy(&output.stderr));
    }

    async fn produce_signed(&self, key: &str, value: &[u8]) {
        let signature = self.sign(value);
        let headers = [("kontorion-workspace", self.workspace.as_str()), ("kontorion-signature", signature.as_str())];
        self.produce(key, &headers, value).await;
    }

    /// Sum of the ends of all partitions.
    async fn end(&self) -> i64 {
        let mut command = Command::new(&self.program);
        command.args(["-Q", "-b", &self.brokers]);
        for partition in 0..PARTITIONS {
            command.arg("-t").arg(format!("{}:{partition}:-1", self.topic));
        }
        let output = command.output().await.expect("kcat runs");
        let text = String::from_utf8_lossy(&output.stdout);
        // `TOPIC [PARTITION] offset OFFSET`
        let ends = text.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<i64>().ok());
        let ends: Vec<i64> = ends.collect();
        assert_eq!(ends.len(), PARTITIONS as usize, "{text}");
        ends.iter().sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a7_a_foreign_producer_is_counted_once() {
    let Some(program) = engines::testing::kcat() else { return };
    let Some(brokers) = engines::testing::kafka().await else { return };
    let site = Site::new().await;
    let topic = format!("foreign-{}", Uuid::new_v4());
    let settings = [format!("kafka_brokers={brokers}"), format!("kafka_topic={topic}"), format!("kafka_group={topic}")]
        .into_iter()
        .chain(["log_kind=kafka".to_owned(), format!("partitions={PARTITIONS}")]);
    let server = site.server("server", &settings.collect::<Vec<_>>()).await;
    let tenant = Tenant::create(&server, CUSTOMERS).await;
    let workspace = &tenant.organization.sandbox;
    let producer = Producer {
        program,
        brokers,
        topic,
        workspace: workspace.workspace_id.clone(),
        secret: hex::decode(&workspace.ingest_secret).expect("hex"),
        value_file: site.dir.path().join("value"),
    };

    // Good ones, every third twice, with bad ones between them.
    let bad = bad_records(&tenant, &producer);
    let good = 3 * CUSTOMERS;
    for number in 0..good {
        produce_good(&producer, &tenant, number).await;
        if number % 3 == 0 {
            produce_good(&producer, &tenant, number).await;
        }
        if let Some(record) = bad.get(number) {
            record.produce(&producer).await;
        }
    }
    assert!(bad.len() <= good, "every bad record was sent");
    // A key of Kafka that is longer than most records, and repeats through the other door.
    let value = serde_json::to_vec(&tenant.event(good)).expect("JSON");
    producer.produce_signed(&"k".repeat(100_000), &value).await;
    tenant.send_batch((0..good).step_by(2).collect(), &AtomicUsize::new(0)).await.expect("the door is open");

    await_end_of_log(&site, &producer).await;
    tenant.await_totals(&tenant.used(0..=good)).await;
    kept_as_expected(&site, &server, &tenant, &bad).await;

    // Every partition goes on.
    for number in good + 1..good + 1 + CUSTOMERS {
        produce_good(&producer, &tenant, number).await;
    }
    let expected: Vec<Used> = tenant.used(0..good + 1 + CUSTOMERS);
    tenant.await_totals(&expected).await;
    assert_eq!(metric(&server, "kontorion_ingest_reloads_total").await, Vec::<u64>::new(), "no partition fell");
}

async fn produce_good(producer: &Producer, tenant: &Tenant, number: usize) {
    let event = tenant.event(number);
    let value = serde_json::to_vec(&event).expect("JSON");
    producer.produce_signed(&event.customer_id.to_string(), &value).await;
}

/// A record that must not be counted.
struct BadRecord {
    headers: Vec<(&'static str, String)>,
    value: Vec<u8>,
    kept: Kept,
}

impl BadRecord {
    async fn produce(&self, producer: &Producer) {
        let headers: Vec<(&str, &str)> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        producer.produce("bad", &headers, &self.value).await;
    }
}

fn bad_records(tenant: &Tenant, producer: &Producer) -> Vec<BadRecord> {
    let changed = |key: &str, member: &str, value: Value| {
        let mut event = serde_json::to_value(tenant.event(0)).expect("JSON");
        event["idempotency_key"] = json!(key);
        event[member] = value;
        event.to_string().into_bytes()
    };
    let workspace = || ("kontorion-workspace", producer.workspace.clone());
    let signature = |value: &[u8]| ("kontorion-signature", producer.sign(value));
    let stranger = tenant.organization.live.workspace_id.clone();
    let good = serde_json::to_vec(&tenant.event(1)).expect("JSON");
    let unattributed = |headers: Vec<(&'static str, String)>| BadRecord {
        headers,
        value: good.clone(),
        kept: Kept::Unattributed("UNAUTHORIZED"),
    };
    let rejected = |value: Vec<u8>, code: &'static str| BadRecord {
        headers: vec![workspace(), signature(&value)],
        value,
        kept: Kept::Rejected(code),
    };
    let mut conflict = serde_json::to_value(tenant.event(0)).expect("JSON");
    conflict["quantity"] = json!("500");
    vec![
        unattributed(vec![]),
        unattributed(vec![workspace()]),
        unattributed(vec![workspace(), signature(b"something else")]),
        unattributed(vec![workspace(), ("kontorion-signature", "not hex".to_owned())]),
        unattributed(vec![("kontorion-workspace", stranger), signature(&good)]),
        unattributed(vec![("kontorion-workspace", "nobody".to_owned()), signature(&good)]),
        BadRecord { headers: vec![], value: b"what is this?".to_vec(), kept: Kept::Unattributed("UNAUTHORIZED") },
        rejected(b"{\"customer_id\": \"".to_vec(), "BAD_REQUEST"),
        rejected(b"quantity=7".to_vec(), "BAD_REQUEST"),
        rejected(b"{\xff\xfe\x00}".to_vec(), "BAD_REQUEST"),
        rejected(changed("overflow", "quantity", json!("1000000000000000")), "VALIDATION"),
        rejected(changed("long", "idempotency_key", json!("k".repeat(100_000))), "VALIDATION"),
        // PostgreSQL keeps no such character in text.
        rejected(changed("nul in a value", "metric_key", json!("input\0tokens")), "VALIDATION"),
        rejected(changed("nul in a name", "a\0b", json!(1)), "VALIDATION"),
        rejected(changed("nobody", "subscription_id", json!(Uuid::nil())), "NOT_FOUND"),
        rejected(conflict.to_string().into_bytes(), "IDEMPOTENCY_CONFLICT"),
    ]
}

/// Waits until every record of the topic is in a checkpoint, those that were forwarded to their home too.
async fn await_end_of_log(site: &Site, producer: &Producer) {
    let look = async || {
        let counted = site.number("SELECT coalesce(sum(next_offset), 0)::bigint FROM partition_checkpoint").await;
        (counted, producer.end().await)
    };
    eventually("the topic is counted", look, |(counted, end)| counted == end).await;
}

/// Each bad record is kept once, and shown to whom it concerns.
async fn kept_as_expected(site: &Site, server: &OwnServer, tenant: &Tenant, bad: &[BadRecord]) {
    let mut expected: BTreeMap<Kept, usize> = BTreeMap::new();
    for record in bad {
        *expected.entry(record.kept).or_default() += 1;
    }
    let listed: Vec<Value> = tenant.api.list("/v1/usage-event-rejections").await.expect("rejections");
    let unattributed: Vec<String> = sqlx::query_scalar("SELECT code FROM unattributed_record")
        .fetch_all(&site.database.pool())
        .await
        .expect("unattributed records");
    let mut found: BTreeMap<Kept, usize> = BTreeMap::new();
    for row in &listed {
        assert!(row["message"].as_str().is_some_and(|reason| !reason.is_empty()), "{row}");
        *found.entry(Kept::Rejected(known_code(bad, row["code"].as_str()))).or_default() += 1;
    }
    for code in &unattributed {
        *found.entry(Kept::Unattributed(known_code(bad, Some(code)))).or_default() += 1;
    }
    assert_eq!(found, expected, "{listed:#?}");

    let (url, key) = (tenant.api.base(), tenant.api.key());
    let words = ["usage", "rejected", "list", "--url", url, "--api-key", key];
    let (status, printed, complaint) = server.command(&words).await.expect("the command runs");
    assert!(status.success(), "{complaint}");
    assert!(printed.ends_with(&format!("{} rejected events", listed.len())), "{printed}");
    for row in &listed {
        assert!(row["id"].as_str().is_some_and(|id| printed.contains(id)), "{row} is missing in {printed}");
    }
}

/// The code among those that are expected.
fn known_code(bad: &[BadRecord], code: Option<&str>) -> &'static str {
    let codes = bad.iter().map(|record| match record.kept {
        Kept::Rejected(code) | Kept::Unattributed(code) => code,
    });
    codes.into_iter().find(|known| Some(*known) == code).unwrap_or("UNEXPECTED")
}
