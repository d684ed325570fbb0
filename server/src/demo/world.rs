//! What the demo bills: a test clock at the start of the month, the sample catalog, customers with subscriptions on the
//! clock, and a filled wallet for the one who pays in advance.

use chrono::{DateTime, Datelike, Months, SecondsFormat, TimeDelta, TimeZone, Utc};
use client::sample::{self, CURRENCY, Catalog, Subscriber, SubscriberOptions};
use client::views::TestClock;
use client::{Api, ClientError};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};
use uuid::Uuid;

use super::trace::Request;
use crate::failure::Failure;

/// Credit of the prepaid customer, in euros.
const PREPAID_CREDIT: &str = "250.00";

/// Time after the period's end until its invoice is final: the default `usage_grace_period` and room for its work.
const GRACE: TimeDelta = TimeDelta::hours(2);

/// How long an advance of the clock may take.
const ADVANCE_LIMIT: Duration = Duration::from_secs(600);

/// A calendar month in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// First instant.
    pub start: DateTime<Utc>,
    /// First instant after it.
    pub end: DateTime<Utc>,
}

/// The month that holds every request.
///
/// # Errors
/// When they are spread over several months.
pub fn period_of(requests: &[Request]) -> Result<Period, Failure> {
    let times = || requests.iter().map(|request| request.timestamp);
    let (Some(first), Some(last)) = (times().min(), times().max()) else {
        return Err(Failure::usage("there is no request to bill"));
    };
    let start = Utc.with_ymd_and_hms(first.year(), first.month(), 1, 0, 0, 0).single();
    let period = start.and_then(|start| Some(Period { start, end: start.checked_add_months(Months::new(1))? }));
    match period {
        Some(period) if last < period.end => Ok(period),
        _ => Err(Failure::usage(format!("the requests must lie in one month (UTC); they go from {first} to {last}"))),
    }
}

/// Everything the demo created.
pub struct World {
    /// The sandbox, as a client.
    pub api: Api,
    /// What is sold.
    pub catalog: Catalog,
    /// To whom; the first one pays in advance.
    pub subscribers: Vec<Subscriber>,
    /// The billed month.
    pub period: Period,
    clock_id: Uuid,
}

impl World {
    /// Creates it all; the clock then stands at the last request, so that no event comes from the future.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn create(api: Api, requests: &[Request], customers: usize) -> Result<Self, Failure> {
        let period = period_of(requests)?;
        let made = Self::create_in(api, period, customers).await;
        let world = made.map_err(|error| Failure::work("creating the sample data", error))?;
        let last = requests.iter().map(|request| request.timestamp).max().unwrap_or(period.start);
        if last > period.start {
            world.advance(last).await?;
        }
        Ok(world)
    }

    async fn create_in(api: Api, period: Period, customers: usize) -> Result<Self, ClientError> {
        let clock = json!({"name": "Demo month", "frozen_at": wire(period.start)});
        let clock: TestClock = api.post("/v1/test-clocks", &clock).await?;
        let catalog = sample::create_catalog(&api, "demo").await?;
        let options = SubscriberOptions {
            prefix: "demo".to_owned(),
            test_clock_id: Some(clock.id),
            prepaid: 1,
            started_at: None,
            anchor_day: Some(1),
        };
        let subscribers = sample::create_subscribers(&api, &catalog, customers, &options, 8, || {}).await?;
        let world = Self { api, catalog, subscribers, period, clock_id: clock.id };
        let credit = json!({
            "amount": {"value": PREPAID_CREDIT, "currency": CURRENCY}, "source": "MANUAL",
            "description": "Paid in advance", "idempotency_key": "demo-credit",
        });
        let path = format!("/v1/wallets/{}/credit", world.prepaid().wallet_id);
        let _credited: Value = world.api.post(&path, &credit).await?;
        Ok(world)
    }

    /// The customer who pays in advance.
    #[must_use]
    pub fn prepaid(&self) -> &Subscriber {
        &self.subscribers[0]
    }

    /// Moves the clock past the period's end and its grace: the invoices are made and final when it returns.
    ///
    /// # Errors
    /// As [`World::advance`].
    pub async fn end_period(&self) -> Result<DateTime<Utc>, Failure> {
        let target = self.period.end + GRACE;
        self.advance(target).await?;
        Ok(target)
    }

    /// Moves the clock and waits until everything that was due is done.
    ///
    /// # Errors
    /// When the server refuses or takes too long.
    async fn advance(&self, to: DateTime<Utc>) -> Result<(), Failure> {
        let failed = |error| Failure::work("advancing the test clock", error);
        let path = format!("/v1/test-clocks/{}", self.clock_id);
        let mut clock: TestClock =
            self.api.post(&format!("{path}/advance"), &json!({"frozen_at": wire(to)})).await.map_err(failed)?;
        let give_up = Instant::now() + ADVANCE_LIMIT;
        while clock.status == "advancing" {
            if Instant::now() >= give_up {
                return Err(Failure::found(format!("the test clock did not arrive in {} s", ADVANCE_LIMIT.as_secs())));
            }
            sleep(Duration::from_millis(200)).await;
            clock = self.api.get(&path).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// An instant as the API takes it.
#[must_use]
pub fn wire(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(time: &str) -> Request {
        Request { timestamp: time.parse().unwrap(), input_tokens: 1, output_tokens: 1 }
    }

    #[test]
    fn the_period_is_the_month_of_the_requests() {
        let period = period_of(&[request("2023-12-16T18:00:00Z"), request("2023-12-31T23:59:59.999999Z")]).unwrap();
        assert_eq!(wire(period.start), "2023-12-01T00:00:00.000000Z");
        assert_eq!(wire(period.end), "2024-01-01T00:00:00.000000Z");
        assert!(period_of(&[request("2023-11-30T23:59:59Z"), request("2023-12-01T00:00:00Z")]).is_err());
        assert!(period_of(&[]).is_err());
    }
}
