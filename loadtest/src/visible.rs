//! From an event to the total that shows it: one customer beside the load sends an event, then asks for its usage until
//! the event is in it, and so on until the load ends.

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use client::sample::{Catalog, METRICS, Subscriber};
use client::usage::{self, Event};
use client::views::SubscriptionUsage;
use client::{Api, ClientError};
use hdrhistogram::Histogram;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Time between two questions: what is measured is at most this much too long.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest rest between two events.
const PHASE_MAX: Duration = Duration::from_millis(500);
/// How long one event may take before the measurement gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Latencies are kept in microseconds up to this one.
const LATENCY_MAX: u64 = 600_000_000;

/// The customer that watches its own total.
#[derive(Clone, Debug)]
pub struct Watcher {
    /// The workspace.
    pub api: Api,
    /// Its catalog.
    pub catalog: Catalog,
    /// Takes part in nothing else.
    pub subscriber: Subscriber,
    /// Begins its idempotency keys.
    pub run: String,
}

impl Watcher {
    /// Measures after `warm_up` and until `ended` says so; microseconds from the sending of an event to the answer that shows it.
    ///
    /// # Errors
    /// When the server refuses, or an event does not appear.
    pub async fn measure(self, warm_up: Duration, ended: watch::Receiver<bool>) -> Result<Histogram<u64>, ClientError> {
        // The bounds are constants that the library accepts.
        let mut seen = Histogram::new_with_max(LATENCY_MAX, 3).unwrap_or_else(|error| unreachable!("{error}"));
        let mut sent = 0;
        let started = Instant::now();
        while !*ended.borrow() {
            // At a moment of its own: right after the answer before would always be right after a checkpoint.
            sleep(rand::random_range(Duration::ZERO..PHASE_MAX)).await;
            sent += 1;
            let begun = Instant::now();
            usage::send(&self.api, &[&self.event(sent)], PATIENCE).await?;
            while self.counted().await? < sent && begun.elapsed() < PATIENCE {
                sleep(PAUSE).await;
            }
            if begun < started + warm_up {
                continue;
            }
            seen.saturating_record(u64::try_from(begun.elapsed().as_micros()).unwrap_or(LATENCY_MAX));
        }
        Ok(seen)
    }

    fn event(&self, number: u64) -> Event {
        #[allow(clippy::disallowed_methods, reason = "a load of the present: the generator stands above every clock")]
        let now = Utc::now();
        Event {
            customer_id: self.subscriber.customer_id,
            subscription_id: self.subscriber.subscription_id,
            product_id: self.catalog.products[0],
            metric_key: METRICS[0],
            quantity: "1".to_owned(),
            timestamp: now.to_rfc3339_opts(SecondsFormat::Micros, true),
            idempotency_key: format!("{}-watch-{number}", self.run),
        }
    }

    async fn counted(&self) -> Result<u64, ClientError> {
        let id = self.subscriber.subscription_id;
        let usage: SubscriptionUsage = self.api.get(&format!("/v1/subscriptions/{id}/usage")).await?;
        Ok(usage.metrics.iter().map(|metric| metric.event_count).sum())
    }
}
