//! Sends JSON records to the topic like a foreign producer: keyed by customer, with workspace and signature in headers.

use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use sha2::Sha256;
use tokio::time::Instant;

use crate::body::{Bodies, Second};
use crate::plan::Plan;
use crate::tally::{Due, Schedule, Sent, Tally};

/// Where and as whom records are produced.
#[derive(Debug)]
pub struct Target {
    /// Bootstrap addresses.
    pub brokers: String,
    /// Topic.
    pub topic: String,
    /// Value of the header `kontorion-workspace`.
    pub workspace: String,
    /// Key of the signature.
    pub secret: Vec<u8>,
    /// The stream.
    pub plan: Plan,
    /// Its texts.
    pub bodies: Bodies,
    /// Keys of the records: customer ids as text.
    pub customers: Vec<String>,
    /// How long records may be on their way.
    pub patience: Duration,
}

/// Receives the broker's acknowledgements, in the producer's own thread.
struct Acknowledgements(Arc<std::sync::Mutex<Tally>>);

impl rdkafka::ClientContext for Acknowledgements {}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<Due>;

    fn delivery(&self, result: &DeliveryResult<'_>, due: Box<Due>) {
        // A poisoned lock means that this callback panicked, which it cannot.
        let Ok(mut tally) = self.0.lock() else { return };
        match result {
            Ok(_) => tally.acknowledged(1, &due),
            Err((error, _)) => {
                tally.refused += 1;
                tally.problem(error.to_string());
            }
        }
    }
}

/// Sends everything that the schedule hands out, and waits for the acknowledgements.
///
/// # Errors
/// When the producer cannot be made or its records do not get through.
pub fn send(target: &Target, schedule: &Schedule) -> Result<Sent, KafkaError> {
    let begun = Instant::now();
    let tally = Arc::new(std::sync::Mutex::new(Tally::default()));
    let producer: ThreadedProducer<Acknowledgements> = ClientConfig::new()
        .set("bootstrap.servers", &target.brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "200000")
        .set("message.timeout.ms", target.patience.as_millis().to_string())
        // Kafka's own choice for Java producers, so that a customer's records meet the customer's home.
        .set("partitioner", "murmur2_random")
        .create_with_context(Acknowledgements(tally.clone()))?;
    let mut payload = Vec::with_capacity(512);
    let mut second = Second::default();
    while let Some(due) = schedule.next() {
        for position in due.first..due.first + due.count {
            let event = target.plan.event_at(position);
            payload.clear();
            target.bodies.write(&mut payload, &target.plan, event, &mut second);
            pace(due.at);
            let customer = target.plan.spec(event).customer;
            produce(&producer, target, &payload, customer, due)?;
        }
    }
    producer.flush(target.patience)?;
    let tally = tally.lock().map(|tally| tally.clone()).unwrap_or_default();
    let elapsed = tally.last.map_or(Duration::ZERO, |last| last - begun);
    Ok(Sent { tally, positions: schedule.positions(), elapsed })
}

/// Waits until something is due; short waits are gathered, since a record costs less than waking up.
fn pace(due: Instant) {
    let ahead = due.saturating_duration_since(Instant::now());
    if ahead > Duration::from_millis(1) {
        std::thread::sleep(ahead);
    }
}

fn produce(
    producer: &ThreadedProducer<Acknowledgements>,
    target: &Target,
    payload: &[u8],
    customer: usize,
    due: Due,
) -> Result<(), KafkaError> {
    let signature = sign(&target.secret, payload);
    let mut headers = Some(
        OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "kontorion-workspace", value: Some(&target.workspace) })
            .insert(Header { key: "kontorion-signature", value: Some(&signature) }),
    );
    let mut opaque = Box::new(due);
    loop {
        let mut record =
            BaseRecord::with_opaque_to(&target.topic, opaque).key(&target.customers[customer]).payload(payload);
        record.headers = headers.take();
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), record)) => {
                (opaque, headers) = (record.delivery_opaque, record.headers);
                std::thread::sleep(Duration::from_millis(2));
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Hex HMAC-SHA256 of the value under the workspace's ingest secret.
fn sign(secret: &[u8], payload: &[u8]) -> String {
    // HMAC takes keys of every length.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap_or_else(|error| unreachable!("{error}"));
    mac.update(payload);
    hex::encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test case 2 of RFC 4231.
    #[test]
    fn signs_as_rfc_4231() {
        assert_eq!(
            sign(b"Jefe", b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
