//! Reservations and captures at a rate of their own beside the load: each takes the next due pair, reserves a quantity from
//! a wallet, and captures it whole. Afterwards every wallet and total is compared with what was captured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::sample::{CURRENCY, Catalog, METRICS, Subscriber};
use client::views::{Money, SubscriptionUsage, Wallet};
use client::{Api, ClientError};
use futures::stream::{self, StreamExt, TryStreamExt};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::caller::Caller;
use crate::tally::{Due, Schedule, Tally};

/// Pairs under way at once, at most.
const CONNECTIONS: usize = 256;
/// Input tokens of one reservation: more than the plan includes, so that every pair moves money.
const QUANTITY: u64 = 60_000;
const _: () = assert!(QUANTITY > client::sample::INCLUDED[0]);
/// What each wallet has, in euros.
pub const CREDIT: u32 = 1_000_000;
/// Questions under way at once when totals are compared.
pub const QUESTIONS: usize = 8;

/// From whose wallets, where and how.
#[derive(Clone, Debug)]
pub struct Reserving {
    /// The workspace.
    pub api: Api,
    /// Where the server listens.
    pub address: SocketAddr,
    /// Its catalog.
    pub catalog: Catalog,
    /// Take part in nothing else: while a hold is active, every event of its metric must name it.
    pub holders: Arc<Vec<Subscriber>>,
    /// Begins the idempotency keys.
    pub run: String,
    /// How long one request is repeated.
    pub patience: Duration,
}

/// What happened.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// Reservations, latency from when they were due.
    pub reserve: Tally,
    /// Captures, latency from the answer to their reservation.
    pub capture: Tally,
    /// Pairs captured and euros charged, by the number of the wallet.
    charged: Vec<(u64, Decimal)>,
    /// From the first pair that was due to the last that was captured.
    pub elapsed: Duration,
}

#[derive(Deserialize)]
struct Held {
    hold_id: Option<Uuid>,
    #[serde(default)]
    blocked_reasons: Vec<String>,
}

#[derive(Deserialize)]
struct Envelope {
    data: Captured,
}

#[derive(Deserialize)]
struct Captured {
    captured_amount: Money,
}

impl Reserving {
    /// Puts money into every wallet.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn credit(&self) -> Result<(), ClientError> {
        let body = json!({"amount": {"value": CREDIT.to_string(), "currency": CURRENCY}});
        stream::iter(self.holders.iter())
            .map(async |holder| {
                let _credited: serde_json::Value =
                    self.api.post(&format!("/v1/wallets/{}/credit", holder.wallet_id), &body).await?;
                Ok(())
            })
            .buffer_unordered(QUESTIONS)
            .try_collect()
            .await
    }

    /// Reserves and captures what the schedule hands out.
    pub async fn run(self: Arc<Self>, schedule: Arc<Schedule>) -> Reserved {
        let begun = Instant::now();
        let pairs: Vec<_> =
            (0..CONNECTIONS).map(|_| tokio::spawn(Pair::new(self.clone()).run(schedule.clone()))).collect();
        let (reserve, capture) = (Tally::default(), Tally::default());
        let charged = vec![(0, Decimal::ZERO); self.holders.len()];
        let mut all = Reserved { reserve, capture, charged, elapsed: Duration::ZERO };
        for pair in pairs {
            match pair.await {
                Ok(one) => all.add(&one),
                Err(error) => all.reserve.problem(format!("a pair broke: {error}")),
            }
        }
        all.elapsed = all.capture.last.map_or(Duration::ZERO, |last| last - begun);
        all
    }

    /// Waits until every capture is counted, and compares wallets and totals. Returns what differs, for people.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn verify(&self, reserved: &Reserved) -> Result<Vec<String>, ClientError> {
        let found: Vec<Option<String>> = stream::iter(self.holders.iter().zip(&reserved.charged))
            .map(|(holder, charged)| self.until_right(holder, *charged))
            .buffer_unordered(QUESTIONS)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn until_right(&self, holder: &Subscriber, charged: (u64, Decimal)) -> Result<Option<String>, ClientError> {
        let give_up = Instant::now() + self.patience;
        loop {
            let difference = self.difference(holder, charged).await?;
            if difference.is_none() || Instant::now() >= give_up {
                return Ok(difference);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// What a holder has against what it must have: each capture counted once, and charged once, at the price of the total.
    async fn difference(
        &self,
        holder: &Subscriber,
        (pairs, euros): (u64, Decimal),
    ) -> Result<Option<String>, ClientError> {
        let path = format!("/v1/subscriptions/{}/usage", holder.subscription_id);
        let usage: SubscriptionUsage = self.api.get(&path).await?;
        let quantity: Decimal = usage.metrics.iter().map(|metric| metric.quantity).sum();
        let events: u64 = usage.metrics.iter().map(|metric| metric.event_count).sum();
        let priced: Decimal = usage.metrics.iter().map(|metric| metric.estimated_amount.value).sum();
        let wallet: Wallet = self.api.get(&format!("/v1/wallets/{}", holder.wallet_id)).await?;
        let expected = client::plain_sum::usage_cents(0, pairs * QUANTITY);
        let right = quantity == Decimal::from(pairs * QUANTITY)
            && events == pairs
            && priced == euros
            && euros == Decimal::from(expected) / Decimal::ONE_HUNDRED
            && wallet.cash_balance.value == Decimal::from(CREDIT) - euros
            && wallet.held_balance.value.is_zero()
            && wallet.accrued_balance.value.is_zero();
        Ok((!right).then(|| {
            format!(
                "wallet {}: {pairs} captures over {euros} (plain sum {expected} cents), counted {quantity} in {events} events \
                 at {priced}; cash {}, held {}, accrued {}",
                holder.wallet_id, wallet.cash_balance, wallet.held_balance, wallet.accrued_balance
            )
        }))
    }
}

impl Reserved {
    fn add(&mut self, other: &Self) {
        self.reserve.add(&other.reserve);
        self.capture.add(&other.capture);
        for (sum, one) in self.charged.iter_mut().zip(&other.charged) {
            *sum = (sum.0 + one.0, sum.1 + one.1);
        }
    }
}

/// One reservation and its capture, again and again.
struct Pair {
    of: Arc<Reserving>,
    caller: Caller,
    done: Reserved,
}

impl Pair {
    fn new(of: Arc<Reserving>) -> Self {
        let charged = vec![(0, Decimal::ZERO); of.holders.len()];
        let (reserve, capture) = (Tally::default(), Tally::default());
        let caller = Caller::new(of.address, of.api.key(), of.patience);
        Self { of, caller, done: Reserved { reserve, capture, charged, elapsed: Duration::ZERO } }
    }

    async fn run(mut self, schedule: Arc<Schedule>) -> Reserved {
        while let Some(due) = schedule.next() {
            sleep_until(due.at).await;
            let wallet = (due.first % self.of.holders.len() as u64) as usize;
            if let Err(problem) = self.pair(due, wallet).await {
                self.done.reserve.refused += 1;
                self.done.reserve.problem(problem);
            }
        }
        self.done.reserve.retries = self.caller.retries;
        self.done
    }

    async fn pair(&mut self, due: Due, wallet: usize) -> Result<(), String> {
        let holder = self.of.holders[wallet];
        let body = json!({
            "customer_id": holder.customer_id, "subscription_id": holder.subscription_id,
            "product_id": self.of.catalog.products[0], "metric_key": METRICS[0], "quantity": QUANTITY.to_string(),
            "idempotency_key": format!("{}-hold-{}", self.of.run, due.first),
        });
        let answer = self.caller.post("/v1/transaction/reserve", &body.to_string()).await?;
        let held: Held = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        let hold = held.hold_id.ok_or_else(|| format!("blocked: {}", held.blocked_reasons.join(", ")))?;
        self.done.reserve.acknowledged(1, &due);
        let reserved = Due { at: Instant::now(), ..due };
        let answer = self.caller.post(&format!("/v1/transaction/{hold}/capture"), "{}").await?;
        let captured: Envelope = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        self.done.capture.acknowledged(1, &reserved);
        let charged = &mut self.done.charged[wallet];
        *charged = (charged.0 + 1, charged.1 + captured.data.captured_amount.value);
        Ok(())
    }
}
