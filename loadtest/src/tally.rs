//! What happened while sending, kept by each sender alone and added up at the end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use crate::plan::Plan;

/// Latencies above this are counted as this, in microseconds: ten minutes.
const LATENCY_MAX: u64 = 600_000_000;

/// Hands out what is to be sent next: open loop, so that what is due does not wait for what was answered.
#[derive(Debug)]
pub struct Schedule {
    start: Instant,
    duration: Duration,
    /// Latencies count from here on.
    warm: Instant,
    /// Nanoseconds between two requests; 0 = as fast as they are taken.
    interval_nanos: u64,
    events_per_request: u64,
    next: AtomicU64,
}

/// One request to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// First position of the stream.
    pub first: u64,
    /// Number of positions.
    pub count: u64,
    /// When it is due.
    pub at: Instant,
    /// Whether its latency counts: not while things are met for the first time.
    pub is_measured: bool,
}

impl Schedule {
    /// `rate` events per second from `start` on, 0 = without pause; latencies count after `warm_up`.
    #[must_use]
    pub fn new(start: Instant, duration: Duration, warm_up: Duration, rate: u64, events_per_request: u64) -> Self {
        let interval_nanos = (events_per_request * 1_000_000_000).checked_div(rate).unwrap_or(0);
        Self { start, duration, warm: start + warm_up, interval_nanos, events_per_request, next: AtomicU64::new(0) }
    }

    /// The next request, or `None` when the time is over.
    pub fn next(&self) -> Option<Due> {
        let open = self.interval_nanos > 0;
        let now = Instant::now();
        if !open && now >= self.start + self.duration {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let offset = Duration::from_nanos(number.saturating_mul(self.interval_nanos));
        if open && offset >= self.duration {
            self.next.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let at = if open { self.start + offset } else { now };
        let first = number * self.events_per_request;
        Some(Due { first, count: self.events_per_request, at, is_measured: at >= self.warm })
    }

    /// Positions handed out.
    #[must_use]
    pub fn positions(&self) -> u64 {
        self.next.load(Ordering::Relaxed) * self.events_per_request
    }
}

/// What one sender, or all of them, did.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Events acknowledged, repeats included.
    pub accepted: u64,
    /// Events refused for good.
    pub refused: u64,
    /// Requests that were repeated after 429, 503 or a broken connection.
    pub retries: u64,
    /// The first refusal or failure, for people.
    pub first_problem: Option<String>,
    /// Microseconds from due to acknowledged, per request that is measured.
    pub latency: Histogram<u64>,
    /// The last acknowledgement.
    pub last: Option<Instant>,
}

impl Default for Tally {
    fn default() -> Self {
        // The bounds are constants that the library accepts.
        let latency = Histogram::new_with_max(LATENCY_MAX, 3).unwrap_or_else(|error| unreachable!("{error}"));
        Self { accepted: 0, refused: 0, retries: 0, first_problem: None, latency, last: None }
    }
}

impl Tally {
    /// Notes an acknowledged request.
    pub fn acknowledged(&mut self, events: u64, due: &Due) {
        let now = Instant::now();
        self.accepted += events;
        self.last = self.last.max(Some(now));
        if due.is_measured {
            let micros = u64::try_from((now - due.at).as_micros()).unwrap_or(LATENCY_MAX);
            self.latency.saturating_record(micros.clamp(1, LATENCY_MAX));
        }
    }

    /// Notes what went wrong; the first one is shown.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.first_problem.get_or_insert(text.into());
    }

    /// Adds another sender's.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.retries += other.retries;
        self.last = self.last.max(other.last);
        if let Some(problem) = &other.first_problem {
            self.problem(problem.clone());
        }
        // Both have the same bounds.
        let _ = self.latency.add(&other.latency);
    }
}

/// What all senders together did.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Added up.
    pub tally: Tally,
    /// Positions of the stream that were sent.
    pub positions: u64,
    /// From the start to the last acknowledgement.
    pub elapsed: Duration,
}

impl Sent {
    /// New events and repeats.
    #[must_use]
    pub fn split(&self, plan: &Plan) -> (u64, u64) {
        let distinct = plan.distinct(self.positions);
        (distinct, self.positions - distinct)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_loop_is_due_at_its_rate_whoever_is_late() {
        let start = Instant::now();
        let schedule = Schedule::new(start, Duration::from_secs(1), Duration::from_millis(500), 1_000, 100);
        let due: Vec<Due> = std::iter::from_fn(|| schedule.next()).collect();
        assert_eq!(due.len(), 10);
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(due[3], Due { first: 300, count: 100, at: at(300), is_measured: false });
        assert_eq!(due[5], Due { first: 500, count: 100, at: at(500), is_measured: true });
        assert_eq!(schedule.positions(), 1_000);
    }

    #[tokio::test]
    async fn without_a_rate_a_request_is_due_when_it_is_asked_for() {
        let schedule = Schedule::new(Instant::now(), Duration::from_millis(20), Duration::ZERO, 0, 1);
        let first = schedule.next().unwrap();
        assert!(first.at.elapsed() < Duration::from_millis(15));
        tokio::time::sleep(Duration::from_millis(25)).await;
        assert_eq!(schedule.next(), None);
        assert_eq!(schedule.positions(), 1);
    }

    #[test]
    fn latency_counts_from_due() {
        let mut tally = Tally::default();
        let due = Due { first: 0, count: 5, at: Instant::now() - Duration::from_millis(50), is_measured: true };
        tally.acknowledged(5, &due);
        tally.acknowledged(5, &Due { at: Instant::now() - Duration::from_secs(50), is_measured: false, ..due });
        let mut all = Tally::default();
        all.add(&tally);
        all.add(&Tally::default());
        assert!((49_000..1_000_000).contains(&all.latency.max()));
        assert_eq!((all.accepted, all.latency.len()), (10, 1));
    }
}
