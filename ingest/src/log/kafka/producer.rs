//! Appending: an idempotent producer with `acks=all`, and bounds of our own on what is on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::oneshot;

use super::fatal::Fatal;
use super::seal::{Seal, TAG};
use super::{KafkaOptions, forward, kafka_error, transient};
use crate::log::{Append, LogError, Partition};

type Outcomes = Vec<Result<u64, LogError>>;

pub(super) struct LogProducer {
    inner: ThreadedProducer<Deliveries>,
    topic: String,
    partitions: u32,
    seal: Seal,
    in_flight: Arc<InFlight>,
    records_max: usize,
    bytes_max: usize,
}

/// What is on its way to the broker.
#[derive(Default)]
struct InFlight {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

/// Takes the broker's answers, on the producer's own thread.
pub(super) struct Deliveries {
    in_flight: Arc<InFlight>,
    fatal: Fatal,
}

/// One call of `append`.
struct Batch {
    state: Mutex<BatchState>,
}

struct BatchState {
    outcomes: Outcomes,
    left: usize,
    reply: Option<oneshot::Sender<Outcomes>>,
}

/// One record of a batch.
pub(super) struct Ticket {
    batch: Arc<Batch>,
    index: usize,
    bytes: usize,
}

impl Batch {
    fn set(&self, index: usize, outcome: Result<u64, LogError>) {
        let mut state = self.state.lock();
        state.outcomes[index] = outcome;
        state.left -= 1;
        if state.left == 0 {
            let outcomes = std::mem::take(&mut state.outcomes);
            if let Some(reply) = state.reply.take() {
                // Nobody waits any more: the records are in the log all the same.
                let _ = reply.send(outcomes);
            }
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        forward(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.fatal.note("the producer", &error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        self.in_flight.records.fetch_sub(1, Ordering::AcqRel);
        self.in_flight.bytes.fetch_sub(ticket.bytes, Ordering::AcqRel);
        let outcome = match result {
            Ok(message) => Ok(message.offset().cast_unsigned()),
            Err((error, _)) => {
                self.fatal.note("the producer", error, "appending");
                Err(kafka_error("appending", error.clone()))
            }
        };
        ticket.batch.set(ticket.index, outcome);
    }
}

impl LogProducer {
    pub fn new(options: &KafkaOptions, partitions: u32, seal: Seal, fatal: Fatal) -> Result<Self, LogError> {
        let in_flight = Arc::new(InFlight::default());
        let mut config = options.client();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            .set("message.timeout.ms", "30000")
            // Our own bounds come first: theirs would refuse a batch in its middle (rule B7).
            .set("queue.buffering.max.messages", options.in_flight_records_max.saturating_mul(2).to_string())
            .set("queue.buffering.max.kbytes", (options.in_flight_bytes_max / 512).clamp(1024, 2_097_151).to_string());
        let context = Deliveries { in_flight: in_flight.clone(), fatal };
        let inner = ThreadedProducer::from_config_and_context(&config, context)
            .map_err(|error| kafka_error("making the producer", error))?;
        Ok(Self {
            inner,
            topic: options.topic.clone(),
            partitions,
            seal,
            in_flight,
            records_max: options.in_flight_records_max,
            bytes_max: options.in_flight_bytes_max,
        })
    }

    pub fn client(&self) -> &Client<Deliveries> {
        self.inner.client()
    }

    pub fn client_producer(&self) -> &ThreadedProducer<Deliveries> {
        &self.inner
    }

    /// Appends a batch: refused whole when there is no room for it (rule B7), else answered record by record.
    pub async fn append(&self, records: Vec<Append>) -> Outcomes {
        let count = records.len();
        if count == 0 {
            return Vec::new();
        }
        let bytes = records.iter().map(|record| record.payload.len() + TAG).sum();
        if !self.reserve(count, bytes) {
            return (0..count).map(|_| Err(LogError::Full)).collect();
        }
        let (reply, outcomes) = oneshot::channel();
        let unknown = || Err(transient("appending", "the producer gave no answer"));
        let state = BatchState { outcomes: (0..count).map(|_| unknown()).collect(), left: count, reply: Some(reply) };
        let batch = Arc::new(Batch { state: Mutex::new(state) });
        let mut sealed = Vec::new();
        for (index, record) in records.into_iter().enumerate() {
            self.seal.seal(record.partition, &record.payload, &mut sealed);
            self.send(&batch, index, record.partition, &sealed);
        }
        drop(sealed);
        drop(batch);
        outcomes.await.unwrap_or_else(|_| (0..count).map(|_| unknown()).collect())
    }

    /// Takes room for a batch; one larger than the bounds gets in when nothing else is on its way.
    fn reserve(&self, count: usize, bytes: usize) -> bool {
        let records_before = self.in_flight.records.fetch_add(count, Ordering::AcqRel);
        let bytes_before = self.in_flight.bytes.fetch_add(bytes, Ordering::AcqRel);
        if records_before == 0 || (records_before + count <= self.records_max && bytes_before + bytes <= self.bytes_max)
        {
            return true;
        }
        self.in_flight.records.fetch_sub(count, Ordering::AcqRel);
        self.in_flight.bytes.fetch_sub(bytes, Ordering::AcqRel);
        false
    }

    fn send(&self, batch: &Arc<Batch>, index: usize, partition: Partition, sealed: &[u8]) {
        let ticket = Box::new(Ticket { batch: batch.clone(), index, bytes: sealed.len() });
        if partition >= self.partitions {
            return self.refused(*ticket, LogError::Unusable(format!("there is no partition {partition}")));
        }
        let record: BaseRecord<'_, (), [u8], Box<Ticket>> =
            BaseRecord::with_opaque_to(&self.topic, ticket).partition(partition.cast_signed()).payload(sealed);
        if let Err((error, record)) = self.inner.send(record) {
            self.refused(*record.delivery_opaque, kafka_error("appending", error));
        }
    }

    fn refused(&self, ticket: Ticket, error: LogError) {
        self.in_flight.records.fetch_sub(1, Ordering::AcqRel);
        self.in_flight.bytes.fetch_sub(ticket.bytes, Ordering::AcqRel);
        ticket.batch.set(ticket.index, Err(error));
    }
}
