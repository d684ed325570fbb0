//! Credits and debits of wallets at a rate of their own, each under its own key. Afterwards every balance is compared with what
//! was answered.

use std::sync::Arc;
use std::time::Duration;

use client::ClientError;
use client::sample::CURRENCY;
use client::views::Wallet;
use futures::stream::{self, StreamExt, TryStreamExt};
use rust_decimal::Decimal;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use crate::caller::Caller;
use crate::reserve::{CREDIT, QUESTIONS, Reserving};
use crate::tally::{Schedule, Tally};

/// Operations under way at once, at most.
const CONNECTIONS: usize = 512;
/// What is credited and debited in turns, in cents.
const CENTS: [(&str, i64); 2] = [("credit", 100), ("debit", 50)];

/// What happened.
#[derive(Clone, Debug)]
pub struct Moved {
    /// Operations, latency from when they were due.
    pub tally: Tally,
    /// Cents that came in less those that went out, by the number of the wallet.
    cents: Vec<i64>,
    /// From the first that was due to the last that was answered.
    pub elapsed: Duration,
}

/// Does what the schedule hands out, with the wallets of the reservations.
pub async fn run(of: Arc<Reserving>, schedule: Arc<Schedule>) -> Moved {
    let begun = Instant::now();
    let callers: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(one(of.clone(), schedule.clone()))).collect();
    let mut all = Moved { tally: Tally::default(), cents: vec![0; of.holders.len()], elapsed: Duration::ZERO };
    for caller in callers {
        match caller.await {
            Ok(moved) => {
                all.tally.add(&moved.tally);
                all.cents.iter_mut().zip(moved.cents).for_each(|(sum, cents)| *sum += cents);
            }
            Err(error) => all.tally.problem(format!("a caller broke: {error}")),
        }
    }
    all.elapsed = all.tally.last.map_or(Duration::ZERO, |last| last - begun);
    all
}

async fn one(of: Arc<Reserving>, schedule: Arc<Schedule>) -> Moved {
    let mut caller = Caller::new(of.address, of.api.key(), of.patience);
    let mut done = Moved { tally: Tally::default(), cents: vec![0; of.holders.len()], elapsed: Duration::ZERO };
    while let Some(due) = schedule.next() {
        sleep_until(due.at).await;
        let number = due.first;
        let wallet = (number % of.holders.len() as u64) as usize;
        let (operation, cents) = CENTS[(number / of.holders.len() as u64 % 2) as usize];
        let body = json!({
            "amount": {"value": Decimal::new(cents, 2).to_string(), "currency": CURRENCY},
            "idempotency_key": format!("{}-{number}", of.run),
        });
        let path = format!("/v1/wallets/{}/{operation}", of.holders[wallet].wallet_id);
        match caller.post(&path, &body.to_string()).await {
            Ok(_) => {
                done.tally.acknowledged(1, &due);
                done.cents[wallet] += if operation == "credit" { cents } else { -cents };
            }
            Err(problem) => {
                done.tally.refused += 1;
                done.tally.problem(problem);
            }
        }
    }
    done.tally.retries = caller.retries;
    done
}

/// Compares every wallet's cash with what was answered. Returns what differs, for people.
///
/// # Errors
/// When the server does not answer.
pub async fn verify(of: &Reserving, moved: &Moved) -> Result<Vec<String>, ClientError> {
    let found: Vec<Option<String>> = stream::iter(of.holders.iter().zip(&moved.cents))
        .map(async |(holder, cents)| {
            let wallet: Wallet = of.api.get(&format!("/v1/wallets/{}", holder.wallet_id)).await?;
            let expected = Decimal::from(CREDIT) + Decimal::new(*cents, 2);
            let differs = wallet.cash_balance.value != expected;
            Ok::<_, ClientError>(
                differs
                    .then(|| format!("wallet {}: {expected} expected, cash {}", holder.wallet_id, wallet.cash_balance)),
            )
        })
        .buffer_unordered(QUESTIONS)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}
