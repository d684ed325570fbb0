//! A tenant with the sample catalog and customers, usage whose totals are known from its numbers, and the comparison of
//! every total with them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{SecondsFormat, Utc};
use client::sample::{self, Catalog, FEE_CENTS, METRICS, Subscriber, SubscriberOptions};
use client::server::Organization;
use client::usage::{self, Event};
use client::views::SubscriptionUsage;
use client::{Api, ClientError, OwnServer, plain_sum};
use futures::stream::{self, StreamExt, TryStreamExt};
use rust_decimal::Decimal;

use crate::site::{PATIENCE, eventually};

/// Events that are sent between two looks whether it is over.
pub const ROUND: usize = 1_200;

/// New events of a request.
const BATCH: usize = 100;

/// One event of so many is sent again.
const AGAIN_EVERY: usize = 7;

/// Requests under way at once.
const CONNECTIONS: usize = 3;

/// Who uses what.
pub struct Tenant {
    pub organization: Organization,
    pub api: Api,
    pub catalog: Catalog,
    pub subscribers: Vec<Subscriber>,
    /// Instant of every event.
    at: String,
}

/// What a subscription must show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub quantities: [u64; 3],
    pub events: [u64; 3],
}

impl Tenant {
    /// Creates everything through a server with the role `api`.
    pub async fn create(server: &OwnServer, customers: usize) -> Self {
        let organization = server.create_organization("Test").await.expect("an organization");
        let api = Api::new(format!("http://{}", server.address), &organization.sandbox.key).expect("a client");
        let api = api.with_patience(PATIENCE);
        let catalog = sample::create_catalog(&api, "test").await.expect("a catalog");
        let options = SubscriberOptions {
            prefix: "test".to_owned(),
            test_clock_id: None,
            prepaid: 0,
            started_at: None,
            anchor_day: None,
        };
        let created = sample::create_subscribers(&api, &catalog, customers, &options, CONNECTIONS, || {}).await;
        let subscribers = created.expect("customers");
        #[allow(clippy::disallowed_methods, reason = "the server lives in the present, and so must what it is sent")]
        let at = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
        Self { organization, api, catalog, subscribers, at }
    }

    /// The event of a number: customers and metrics in turn.
    pub fn event(&self, number: usize) -> Event {
        let (subscriber, metric) = (&self.subscribers[number % self.subscribers.len()], self.metric(number));
        Event {
            customer_id: subscriber.customer_id,
            subscription_id: subscriber.subscription_id,
            product_id: self.catalog.products[metric],
            metric_key: METRICS[metric],
            quantity: quantity(number).to_string(),
            timestamp: self.at.clone(),
            idempotency_key: format!("event-{number}"),
        }
    }

    fn metric(&self, number: usize) -> usize {
        number / self.subscribers.len() % METRICS.len()
    }

    /// What each subscription must show when the events of these numbers are counted.
    pub fn used(&self, numbers: impl Iterator<Item = usize>) -> Vec<Used> {
        let mut all = vec![Used::default(); self.subscribers.len()];
        for number in numbers {
            let (used, metric) = (&mut all[number % self.subscribers.len()], self.metric(number));
            // Requests are counted, whatever their quantity.
            used.quantities[metric] += if METRICS[metric] == "requests" { 1 } else { quantity(number) };
            used.events[metric] += 1;
        }
        all
    }

    /// Sends the events of these numbers, some of them twice, and at the very end one for each subscription: when that is
    /// counted, so is everything that its partition was sent before. Adds what was accepted to `accepted`.
    pub async fn send(&self, numbers: Range<usize>, accepted: &AtomicUsize) -> Result<(), ClientError> {
        let last = numbers.end - self.subscribers.len();
        let batches = (numbers.start..last).step_by(BATCH).map(|first| {
            let again = (first.saturating_sub(BATCH).max(numbers.start)..first).step_by(AGAIN_EVERY);
            (first..last.min(first + BATCH)).chain(again).collect::<Vec<_>>()
        });
        let sending = stream::iter(batches).map(|batch| self.send_batch(batch, accepted));
        sending.buffer_unordered(CONNECTIONS).try_collect::<()>().await?;
        self.send_batch((last..numbers.end).collect(), accepted).await
    }

    /// Sends events from `first` on until it is over, and a round more; gives the number after the last.
    pub async fn send_until(
        &self,
        first: usize,
        is_over: impl Fn() -> bool,
        accepted: &AtomicUsize,
    ) -> Result<usize, ClientError> {
        let mut next = first;
        loop {
            let is_last = is_over();
            self.send(next..next + ROUND, accepted).await?;
            next += ROUND;
            if is_last {
                return Ok(next);
            }
        }
    }

    /// Sends one batch.
    pub async fn send_batch(&self, numbers: Vec<usize>, accepted: &AtomicUsize) -> Result<(), ClientError> {
        let events: Vec<Event> = numbers.into_iter().map(|number| self.event(number)).collect();
        usage::send(&self.api, &events.iter().collect::<Vec<_>>(), PATIENCE).await?;
        accepted.fetch_add(events.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Waits until every subscription shows exactly what it must, and what the plain sum makes of it.
    pub async fn await_totals(&self, expected: &[Used]) {
        for (subscriber, expected) in self.subscribers.iter().zip(expected) {
            let look = async || self.shown(subscriber).await;
            // More than was sent never becomes right again.
            let is_settled = |(shown, _): &(Used, Decimal)| {
                shown == expected || (0..METRICS.len()).any(|metric| shown.events[metric] > expected.events[metric])
            };
            let (shown, amount) = eventually("the totals of a subscription", look, is_settled).await;
            assert_eq!(shown, *expected, "the totals of subscription {}", subscriber.subscription_id);
            let cents = plain_sum::invoice_cents(&expected.quantities) - FEE_CENTS;
            assert_eq!(amount, Decimal::new(cents.try_into().expect("cents"), 2), "{expected:?}");
        }
    }

    /// What a subscription shows, and what it costs so far.
    async fn shown(&self, subscriber: &Subscriber) -> (Used, Decimal) {
        let path = format!("/v1/subscriptions/{}/usage", subscriber.subscription_id);
        let usage: SubscriptionUsage = self.api.get(&path).await.expect("the usage of a subscription");
        let (mut used, mut amount) = (Used::default(), Decimal::ZERO);
        for row in usage.metrics {
            let metric = self.catalog.products.iter().position(|product| *product == row.product_id);
            let Some(metric) = metric else { continue };
            used.quantities[metric] += u64::try_from(row.quantity).expect("a whole quantity");
            used.events[metric] += row.event_count;
            amount += row.estimated_amount.value;
        }
        (used, amount)
    }
}

/// From 1 to 499, so that two events are rarely alike.
fn quantity(number: usize) -> u64 {
    1 + number as u64 * 7_919 % 499
}
