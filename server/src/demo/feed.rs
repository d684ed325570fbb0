//! Sends the usage, some of it twice, and waits until everything is counted.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use client::sample::METRICS;
use client::usage::{self, Event};
use client::views::{SubscriptionUsage, Wallet};
use client::{Api, ClientError};
use futures::stream::{self, StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Duration, sleep};

use super::trace::Request;
use super::used::Used;
use super::world::{World, wire};
use crate::failure::Failure;

/// New events of one request.
const BATCH: usize = 600;

/// Requests under way at once.
const CONNECTIONS: usize = 8;

/// One event of this many is sent again with a later batch.
const AGAIN_EVERY: usize = 20;

/// Time between two looks at the prepaid wallet while usage is sent and counted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks that are shown at most.
const LOOKS_MAX: usize = 8;

/// How long a total may stand still below its target before the wait is given up.
const STILL_LIMIT: Duration = Duration::from_secs(60);

/// Time in which one event must be accepted.
const PATIENCE: Duration = Duration::from_secs(120);

/// The prepaid wallet at one moment.
pub struct WalletLook {
    /// Events sent by then, repeats included.
    pub sent: usize,
    /// What it held.
    pub wallet: Wallet,
}

/// What the sending showed.
pub struct Fed {
    /// Distinct events.
    pub events: usize,
    /// Sent once more.
    pub repeats: usize,
    /// From the first request to the last acknowledgement.
    pub accepted_in: Duration,
    /// From the first request until every total was seen.
    pub counted_in: Duration,
    /// The prepaid wallet before, during and after.
    pub looks: Vec<WalletLook>,
    /// Every subscription as it was when its total was right, or when the wait was given up.
    pub usage: Vec<SubscriptionUsage>,
    /// Customers whose totals did not become right.
    pub wrong: Vec<usize>,
}

/// Three events for each request.
#[must_use]
pub fn events(world: &World, requests: &[Request]) -> Vec<Event> {
    let mut events = Vec::with_capacity(requests.len() * METRICS.len());
    for (index, request) in requests.iter().enumerate() {
        let subscriber = &world.subscribers[index % world.subscribers.len()];
        let timestamp = wire(request.timestamp);
        for (metric, quantity) in [request.input_tokens, request.output_tokens, 1].into_iter().enumerate() {
            events.push(Event {
                customer_id: subscriber.customer_id,
                subscription_id: subscriber.subscription_id,
                product_id: world.catalog.products[metric],
                metric_key: METRICS[metric],
                quantity: quantity.to_string(),
                timestamp: timestamp.clone(),
                idempotency_key: format!("demo-{index}-{}", METRICS[metric]),
            });
        }
    }
    events
}

/// Batches of new events, each with some of the batch before it once more.
fn batches(events: &[Event]) -> Vec<Vec<&Event>> {
    let chunks: Vec<&[Event]> = events.chunks(BATCH).collect();
    let again = |chunk: &'_ [Event]| (0..chunk.len()).filter(|index| index % AGAIN_EVERY == 7).collect::<Vec<_>>();
    let mut batches = Vec::with_capacity(chunks.len() + 1);
    for index in 0..=chunks.len() {
        let new = chunks.get(index).copied().unwrap_or_default().iter();
        let old = index.checked_sub(1).map_or(&[][..], |before| chunks[before]);
        batches.push(new.chain(again(old).into_iter().map(|at| &old[at])).collect());
    }
    batches.retain(|batch: &Vec<_>| !batch.is_empty());
    batches
}

/// Sends everything and waits for the totals.
///
/// # Errors
/// When an event is refused, or the server stops answering. Wrong totals are not an error here but in the answer.
pub async fn feed(world: &World, requests: &[Request], targets: &[Used]) -> Result<Fed, Failure> {
    let failed = |error: ClientError| Failure::work("sending usage", error);
    let events = events(world, requests);
    let batches = batches(&events);
    let total: usize = batches.iter().map(Vec::len).sum();
    let sent = AtomicUsize::new(0);
    let mut looks = vec![look(world, 0).await.map_err(failed)?];
    let begun = Instant::now();
    let feeding = async {
        send(world, &batches, &sent).await?;
        let accepted_in = begun.elapsed();
        Ok((accepted_in, wait(world, targets).await?, begun.elapsed()))
    };
    let (accepted_in, (usage, wrong), counted_in) = tokio::select! {
        fed = feeding => fed.map_err(failed)?,
        Err(error) = watch(world, &sent, &mut looks) => return Err(failed(error)),
    };
    looks.push(look(world, total).await.map_err(failed)?);
    let looks = thinned(looks);
    Ok(Fed { events: events.len(), repeats: total - events.len(), accepted_in, counted_in, looks, usage, wrong })
}

async fn send(world: &World, batches: &[Vec<&Event>], sent: &AtomicUsize) -> Result<(), ClientError> {
    let bar = progress(batches.iter().map(Vec::len).sum(), "events sent");
    stream::iter(batches)
        .map(async |batch| {
            usage::send(&world.api, batch, PATIENCE).await?;
            sent.fetch_add(batch.len(), Ordering::Relaxed);
            bar.inc(batch.len() as u64);
            Ok(())
        })
        .buffer_unordered(CONNECTIONS)
        .try_collect::<()>()
        .await?;
    bar.finish_and_clear();
    Ok(())
}

/// Keeps every state of the prepaid wallet that differs from the one before, until it is dropped.
async fn watch(world: &World, sent: &AtomicUsize, looks: &mut Vec<WalletLook>) -> Result<Infallible, ClientError> {
    loop {
        sleep(LOOK_EVERY).await;
        let now = look(world, sent.load(Ordering::Relaxed)).await?;
        if looks.last().is_none_or(|last| last.wallet.available_balance != now.wallet.available_balance) {
            looks.push(now);
        }
    }
}

/// The first, the last, and as many between them, evenly, as are shown.
fn thinned(looks: Vec<WalletLook>) -> Vec<WalletLook> {
    let last = looks.len() - 1;
    let shown: Vec<usize> =
        (0..LOOKS_MAX.min(looks.len())).map(|row| row * last / (LOOKS_MAX.min(last + 1) - 1).max(1)).collect();
    looks.into_iter().enumerate().filter(|(index, _)| shown.contains(index)).map(|(_, look)| look).collect()
}

async fn look(world: &World, sent: usize) -> Result<WalletLook, ClientError> {
    let wallet = world.api.get(&format!("/v1/wallets/{}", world.prepaid().wallet_id)).await?;
    Ok(WalletLook { sent, wallet })
}

/// Asks every subscription until its usage is what the plain sum says.
async fn wait(world: &World, targets: &[Used]) -> Result<(Vec<SubscriptionUsage>, Vec<usize>), ClientError> {
    let bar = progress(targets.len(), "customers counted");
    let usages: Vec<(SubscriptionUsage, bool)> = stream::iter(world.subscribers.iter().zip(targets))
        .map(async |(subscriber, target)| {
            let path = format!("/v1/subscriptions/{}/usage?at={}", subscriber.subscription_id, at(world));
            let outcome = until_right(&world.api, &path, world, target).await;
            bar.inc(1);
            outcome
        })
        .buffered(CONNECTIONS)
        .try_collect()
        .await?;
    bar.finish_and_clear();
    let wrong = usages.iter().enumerate().filter(|(_, (_, right))| !right).map(|(customer, _)| customer).collect();
    Ok((usages.into_iter().map(|(usage, _)| usage).collect(), wrong))
}

/// An instant of the billed month, whatever the machine's clock says.
fn at(world: &World) -> String {
    wire(world.period.start)
}

async fn until_right(
    api: &Api,
    path: &str,
    world: &World,
    target: &Used,
) -> Result<(SubscriptionUsage, bool), ClientError> {
    let mut last_change = Instant::now();
    let mut seen = 0;
    loop {
        let usage: SubscriptionUsage = api.get(path).await?;
        if is_right(&usage, world, target) {
            return Ok((usage, true));
        }
        let counted: u64 = usage.metrics.iter().map(|metric| metric.event_count).sum();
        if counted != seen {
            (seen, last_change) = (counted, Instant::now());
        }
        if last_change.elapsed() > STILL_LIMIT {
            return Ok((usage, false));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Quantity and number of events of each metric; a metric without an event may be missing.
fn is_right(usage: &SubscriptionUsage, world: &World, target: &Used) -> bool {
    (0..METRICS.len()).all(|index| {
        let mut rows = usage
            .metrics
            .iter()
            .filter(|row| row.product_id == world.catalog.products[index] && row.metric_key == METRICS[index]);
        match (rows.next(), rows.next()) {
            (None, _) => target.requests == 0,
            (Some(row), None) => row.quantity == target.quantities[index].into() && row.event_count == target.requests,
            // One price and no pin: a second row would be a total that was split.
            (Some(_), Some(_)) => false,
        }
    })
}

fn progress(length: usize, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("  {bar:40} {human_pos}/{human_len} {msg} ({per_sec:.0}, {elapsed})");
    let bar = ProgressBar::new(length as u64).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        // The template is a constant that the tests render.
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn event(number: usize) -> Event {
        Event {
            customer_id: Uuid::nil(),
            subscription_id: Uuid::nil(),
            product_id: Uuid::nil(),
            metric_key: METRICS[0],
            quantity: "1".to_owned(),
            timestamp: String::new(),
            idempotency_key: number.to_string(),
        }
    }

    #[test]
    fn every_event_is_sent_and_five_in_a_hundred_twice() {
        let events: Vec<Event> = (0..2_000).map(event).collect();
        let batches = batches(&events);
        let mut times = vec![0; events.len()];
        for event in batches.iter().flatten() {
            times[event.idempotency_key.parse::<usize>().unwrap()] += 1;
        }
        assert!(times.iter().all(|times| (1..=2).contains(times)));
        assert_eq!(times.iter().filter(|times| **times == 2).count(), 100);
        assert!(batches.iter().all(|batch| batch.len() <= usage::BATCH_MAX));
        assert!(super::batches(&[]).is_empty());
    }

    #[test]
    fn the_progress_template_is_valid() {
        assert!(
            ProgressStyle::with_template("  {bar:40} {human_pos}/{human_len} {msg} ({per_sec:.0}, {elapsed})").is_ok()
        );
    }
}
