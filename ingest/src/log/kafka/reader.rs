//! Reading one partition of the topic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::group::{Membership, Slot};
use super::seal::Seal;
use super::{ANSWER_TIMEOUT, kafka_error, transient, watermarks};
use crate::log::{ForeignHeaders, LogError, LogRecord, Origin, Partition, PartitionReader};

/// How long a partition that was just assigned may take until it can be sought.
const SEEK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an end before the checkpoint may be that of a new leader that does not know its own yet.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// A reader looks for itself this often, in case it was not woken.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The reader in charge of a partition.
pub(super) struct KafkaReader {
    charge: Charge,
    seal: Seal,
    /// Offset from which on records were not handed out yet.
    next: u64,
    /// What came after records that were handed out.
    trouble: Option<KafkaError>,
    /// The record that came although `next` was expected: the partition is sought again before it is believed.
    gap: Option<u64>,
    /// The record that came again when the partition was sought at the offset before it.
    after_gap: Option<u64>,
}

/// A partition in the hands of one reader.
#[derive(Clone)]
struct Charge {
    slot: Arc<Slot>,
    membership: Arc<Membership>,
    number: u64,
}

impl Charge {
    fn check(&self) -> Result<(), LogError> {
        if self.slot.state.is_in_charge(self.number) { Ok(()) } else { Err(LogError::Revoked(self.slot.partition)) }
    }

    /// Seeks. Blocks.
    fn move_to(&self, offset: u64) -> Result<(), LogError> {
        let queue = self.slot.queue.lock();
        // Under the lock: whoever took over has sought under it, and what it waits for must not be thrown away.
        self.check()?;
        // What was fetched for the reader before, and its errors, which no seek would throw away.
        while queue.poll(Duration::ZERO).is_some() {}
        self.slot.state.set_right();
        let (consumer, topic) = (self.membership.consumer(), self.membership.topic());
        let partition = self.slot.partition.cast_signed();
        let until = Instant::now() + SEEK_TIMEOUT;
        // The fetcher of a new assignment may not have started yet.
        while let Err(error) = consumer.seek(topic, partition, Offset::Offset(offset.cast_signed()), ANSWER_TIMEOUT) {
            self.check()?;
            if Instant::now() > until {
                return Err(kafka_error("seeking", error));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut paused = TopicPartitionList::new();
        paused.add_partition(topic, partition);
        consumer.resume(&paused).map_err(|error| kafka_error("seeking", error))
    }
}

impl KafkaReader {
    /// Takes the partition over and seeks. Blocks.
    pub fn seek(membership: &Arc<Membership>, slot: Arc<Slot>, seal: Seal, from: u64) -> Result<Self, LogError> {
        let number = slot.state.replace_reader();
        check_range(membership, &slot, from)?;
        let charge = Charge { slot, membership: membership.clone(), number };
        charge.move_to(from)?;
        Ok(Self { charge, seal, next: from, trouble: None, gap: None, after_gap: None })
    }

    /// What is there, without waiting.
    fn take(&mut self, max: usize) -> Result<Vec<LogRecord>, LogError> {
        let queue = self.charge.slot.queue.lock();
        // Under the lock: a reader that takes over seeks under it.
        self.charge.check()?;
        if self.charge.slot.state.is_astray() {
            return Err(transient("reading", "records were missed: seek again"));
        }
        let mut records = Vec::new();
        while records.len() < max {
            match queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    let record = record(&self.seal, &message);
                    if record.offset > self.next && self.after_gap != Some(record.offset) {
                        self.gap = Some(record.offset);
                        break;
                    }
                    if record.offset >= self.next {
                        self.next = record.offset + 1;
                        records.push(record);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => {
                    self.trouble = Some(error);
                    break;
                }
            }
        }
        Ok(records)
    }

    /// Offsets may be missing for good: the end of a transaction of a foreign producer takes one. Then the same record
    /// comes again; one that was skipped comes now.
    async fn doubt(&mut self, gap: u64) -> Result<(), LogError> {
        tracing::warn!(
            log.partition = self.charge.slot.partition,
            expected = self.next,
            found = gap,
            "offsets are missing: seeking again"
        );
        let (charge, next) = (self.charge.clone(), self.next);
        let moved = tokio::task::spawn_blocking(move || charge.move_to(next)).await;
        moved.map_err(|error| transient("seeking", error))??;
        self.after_gap = Some(gap);
        self.gap = None;
        Ok(())
    }

    /// An offset that is gone stops the partition (rule A6); everything else passes.
    async fn trouble(&self, error: KafkaError) -> LogError {
        let is_range = matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::NoOffset)
        );
        if !is_range {
            return kafka_error("reading", error);
        }
        let (charge, next) = (self.charge.clone(), self.next);
        match tokio::task::spawn_blocking(move || check_range(&charge.membership, &charge.slot, next)).await {
            Ok(Ok(())) => kafka_error("reading", error),
            Ok(Err(error)) => error,
            Err(error) => transient("reading", error),
        }
    }
}

#[async_trait]
impl PartitionReader for KafkaReader {
    async fn next(&mut self, max: usize) -> Result<Vec<LogRecord>, LogError> {
        loop {
            if let Some(error) = self.trouble.take() {
                return Err(self.trouble(error).await);
            }
            if let Some(gap) = self.gap {
                self.doubt(gap).await?;
            }
            let slot = self.charge.slot.clone();
            let changed = slot.state.changed.notified();
            tokio::pin!(changed);
            // Before looking: what comes after the look wakes us.
            changed.as_mut().enable();
            let records = self.take(max.max(1))?;
            if !records.is_empty() {
                return Ok(records);
            }
            if self.trouble.is_none() && self.gap.is_none() {
                // Woken or not, the next round looks.
                let _ = tokio::time::timeout(LOOK_EVERY, changed).await;
            }
        }
    }
}

/// Refuses an offset that the log does not have, with an alarm. Blocks.
fn check_range(membership: &Membership, slot: &Slot, wanted: u64) -> Result<(), LogError> {
    let partition: Partition = slot.partition;
    let until = Instant::now() + END_TIMEOUT;
    loop {
        if !slot.is_assigned() {
            return Err(LogError::Revoked(partition));
        }
        let (first, end) = watermarks(membership.consumer().client(), membership.topic(), partition)?;
        if (first..=end).contains(&wanted) {
            return Ok(());
        }
        if wanted < first || Instant::now() > until {
            tracing::error!(
                log.partition = partition,
                wanted,
                first,
                end,
                "a partition stops: its offset is not in the log"
            );
            return Err(LogError::OutOfRange { partition, wanted, first, end });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn record(seal: &Seal, message: &BorrowedMessage<'_>) -> LogRecord {
    let value = message.payload().unwrap_or_default();
    let headers = foreign(message);
    // Ours have no headers. Whoever signs must be told what is wrong with his record, also when it is no JSON at all.
    let (payload, origin) = if value.first() == Some(&b'{') || headers != ForeignHeaders::default() {
        (value, Origin::Foreign(headers))
    } else {
        match seal.open(message.partition().cast_unsigned(), value) {
            Some(payload) => (payload, Origin::Own),
            None => (value, Origin::Forged),
        }
    };
    LogRecord {
        offset: message.offset().cast_unsigned(),
        payload: Bytes::copy_from_slice(payload),
        origin,
        logged_at_ms: message.timestamp().to_millis(),
    }
}

fn foreign(message: &BorrowedMessage<'_>) -> ForeignHeaders {
    let mut found = ForeignHeaders::default();
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        let value = header.value.map(Bytes::copy_from_slice);
        match header.key {
            "kontorion-workspace" => found.workspace = value,
            "kontorion-signature" => found.signature = value,
            _ => {}
        }
    }
    found
}
