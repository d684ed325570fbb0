//! Waits for the totals and compares every one; afterwards the invoices, when the run has a test clock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::sample::{CURRENCY, Subscriber};
use client::views::{Invoice, SubscriptionUsage, TestClock};
use client::{Api, ClientError};
use futures::stream::{self, StreamExt, TryStreamExt};
use rust_decimal::Decimal;
use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::failure::{Failure, failed};
use crate::metering::Meter;
use crate::plan::{Expected, Plan};

/// Subscriptions that tell when counting is done: those with the last events.
const LAST_SUBSCRIPTIONS: usize = 48;

/// Questions under way at once.
const CONNECTIONS: usize = 8;

/// Differences that are listed.
const LISTED: usize = 20;

/// What is compared.
#[derive(Clone, Debug)]
pub struct Books<'a> {
    /// The workspace.
    pub api: &'a Api,
    /// Its meters.
    pub meters: &'a [Meter],
    /// Its customers.
    pub subscribers: &'a [Subscriber],
    /// What each must have.
    pub expected: &'a [Expected],
    /// An instant of the counted period, when the customers live on a test clock.
    pub at: Option<String>,
    /// How long a total may stand still below its target.
    pub patience: Duration,
    /// Time between two questions about one total.
    pub pause: Duration,
}

impl Books<'_> {
    /// Waits until the subscriptions with the last events are right, which is when everything before is counted too, or
    /// until they stand still.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn wait(&self, plan: &Plan, positions: u64) -> Result<(), Failure> {
        let distinct = plan.distinct(positions);
        let mut last: Vec<usize> = Vec::new();
        for event in (0..distinct).rev().take(50 * LAST_SUBSCRIPTIONS) {
            let customer = plan.spec(event).customer;
            if last.len() < LAST_SUBSCRIPTIONS && !last.contains(&customer) {
                last.push(customer);
            }
        }
        self.differences(&last, self.patience).await.map(drop)
    }

    /// Compares every subscription. Returns what differs, for people.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn verify(&self) -> Result<Vec<String>, Failure> {
        let all: Vec<usize> = (0..self.subscribers.len()).collect();
        self.differences(&all, self.patience.min(Duration::from_secs(20))).await
    }

    async fn differences(&self, customers: &[usize], patience: Duration) -> Result<Vec<String>, Failure> {
        // Where one total stands still for all its time, the others have had theirs too.
        let gave_up = AtomicBool::new(false);
        let found: Vec<Option<String>> = stream::iter(customers)
            .map(|customer| self.until_right(*customer, patience, &gave_up))
            .buffer_unordered(CONNECTIONS)
            .try_collect()
            .await
            .map_err(failed("asking for usage"))?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn until_right(
        &self,
        customer: usize,
        patience: Duration,
        gave_up: &AtomicBool,
    ) -> Result<Option<String>, ClientError> {
        let id = self.subscribers[customer].subscription_id;
        let at = self.at.as_ref().map(|at| format!("?at={at}")).unwrap_or_default();
        let mut last_change = Instant::now();
        let mut seen = 0;
        loop {
            let usage: SubscriptionUsage = self.api.get(&format!("/v1/subscriptions/{id}/usage{at}")).await?;
            let Some(difference) = self.difference(customer, &usage) else { return Ok(None) };
            let counted: u64 = usage.metrics.iter().map(|metric| metric.event_count).sum();
            if counted != seen {
                (seen, last_change) = (counted, Instant::now());
            }
            if last_change.elapsed() > patience || gave_up.load(Ordering::Relaxed) {
                gave_up.store(true, Ordering::Relaxed);
                return Ok(Some(difference));
            }
            sleep(self.pause).await;
        }
    }

    fn difference(&self, customer: usize, usage: &SubscriptionUsage) -> Option<String> {
        let expected = &self.expected[customer];
        for (index, meter) in self.meters.iter().enumerate() {
            let metric = &meter.metric_key;
            let rows =
                usage.metrics.iter().filter(|row| row.product_id == meter.product_id && row.metric_key == *metric);
            let (mut quantity, mut events) = (Decimal::ZERO, 0);
            for row in rows {
                quantity += row.quantity;
                events += row.event_count;
            }
            if quantity != expected.quantities[index].into() || events != expected.events[index] {
                return Some(format!(
                    "customer {customer} {metric}: {quantity} in {events} events, must be {} in {}",
                    expected.quantities[index], expected.events[index]
                ));
            }
        }
        None
    }

    /// Advances the clock over the period's end and compares every invoice with the plain sum. Returns what differs.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn bill(&self, clock: Uuid, to: &str) -> Result<(usize, Vec<String>), Failure> {
        advance(self.api, clock, to).await?;
        let invoices: Vec<Invoice> = self.api.list("/v1/invoices").await.map_err(failed("listing invoices"))?;
        let mut of_customer: HashMap<Uuid, Vec<&Invoice>> = HashMap::new();
        for invoice in &invoices {
            of_customer.entry(invoice.customer_id).or_default().push(invoice);
        }
        let mut differences = Vec::new();
        let mut billed = Vec::new();
        for (customer, (subscriber, expected)) in self.subscribers.iter().zip(self.expected).enumerate() {
            let theirs = of_customer.get(&subscriber.customer_id).map_or(&[][..], Vec::as_slice);
            billed.extend(theirs.iter().copied());
            if let Some(text) = invoice_difference(theirs, expected) {
                differences.push(format!("customer {customer}: {text}"));
            }
        }
        differences.extend(number_difference(&billed));
        Ok((billed.len(), differences))
    }
}

fn invoice_difference(theirs: &[&Invoice], expected: &Expected) -> Option<String> {
    let [invoice] = theirs else { return Some(format!("{} invoices, must be one", theirs.len())) };
    if !matches!(invoice.status.as_str(), "finalized" | "paid") {
        return Some(format!("the invoice is {}, not final", invoice.status));
    }
    // Runs that bill have the three meters of the catalog.
    let Ok(quantities) = <&[u64; 3]>::try_from(expected.quantities.as_slice()) else {
        return Some(format!("{} meters, the plain sum knows three", expected.quantities.len()));
    };
    let cents = client::plain_sum::invoice_cents(quantities);
    let right =
        invoice.total.value == Decimal::from(cents) / Decimal::ONE_HUNDRED && invoice.total.currency == CURRENCY;
    (!right).then(|| format!("the invoice is over {}, the plain sum is {cents} cents", invoice.total))
}

/// The numbers of a run's invoices are consecutive: it is the only one in its workspace that bills.
fn number_difference(invoices: &[&Invoice]) -> Option<String> {
    let number = |invoice: &&Invoice| {
        invoice.invoice_number.as_ref()?.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().ok()
    };
    let mut numbers: Vec<u64> = invoices.iter().filter_map(number).collect();
    numbers.sort_unstable();
    let missing = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    if numbers.len() != invoices.len() {
        return Some(format!("{} of {} invoices have a number", numbers.len(), invoices.len()));
    }
    missing.map(|pair| format!("invoice numbers go from {} to {}", pair[0], pair[1]))
}

/// Creates a clock.
///
/// # Errors
/// When the server refuses.
pub async fn create_clock(api: &Api, at: &str) -> Result<Uuid, Failure> {
    let body = json!({"name": "Load", "frozen_at": at});
    let clock: TestClock = api.post("/v1/test-clocks", &body).await.map_err(failed("creating a test clock"))?;
    Ok(clock.id)
}

/// Moves a clock and waits until everything that was due is done, as long as it makes progress at all.
///
/// # Errors
/// When the server refuses or the clock does not arrive within the hour.
pub async fn advance(api: &Api, clock: Uuid, to: &str) -> Result<(), Failure> {
    let doing = "advancing the test clock";
    let path = format!("/v1/test-clocks/{clock}");
    let begun = Instant::now();
    let mut state: TestClock =
        api.post(&format!("{path}/advance"), &json!({"frozen_at": to})).await.map_err(failed(doing))?;
    while state.status == "advancing" {
        if begun.elapsed() > Duration::from_secs(3_600) {
            return Err(Failure::new("the test clock did not arrive within an hour"));
        }
        sleep(Duration::from_millis(200)).await;
        state = api.get(&path).await.map_err(failed(doing))?;
    }
    Ok(())
}

/// Prints the first differences.
pub fn list(differences: &[String]) {
    for line in differences.iter().take(LISTED) {
        println!("DIFFERENCE  {line}");
    }
    if differences.len() > LISTED {
        println!("and {} more differences", differences.len() - LISTED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Shape;

    fn invoice(number: Option<&str>, cents: u64) -> Invoice {
        let money = |cents: u64| json!({"value": format!("{}.{:02}", cents / 100, cents % 100), "currency": CURRENCY});
        serde_json::from_value(json!({
            "id": Uuid::nil(), "customer_id": Uuid::nil(), "subscription_id": null, "invoice_number": number,
            "status": "finalized", "subtotal": money(cents), "tax_amount": money(0), "total": money(cents),
            "amount_due": money(cents), "billing_period_start": null,
        }))
        .unwrap()
    }

    #[test]
    fn a_wrong_bill_is_seen() {
        let expected = Expected::none(Shape { meters: 3 });
        let right = client::plain_sum::invoice_cents(&[0; 3]);
        assert_eq!(invoice_difference(&[&invoice(Some("INV-000001"), right)], &expected), None);
        assert!(invoice_difference(&[&invoice(Some("INV-000001"), right + 1)], &expected).is_some());
        assert!(invoice_difference(&[], &expected).is_some());
    }

    #[test]
    fn a_missing_number_is_seen() {
        let (one, two, four) = (invoice(Some("INV-1"), 0), invoice(Some("INV-2"), 0), invoice(Some("INV-4"), 0));
        assert_eq!(number_difference(&[&two, &one]), None);
        assert!(number_difference(&[&one, &two, &four]).is_some());
        assert!(number_difference(&[&one, &one]).is_some());
        assert!(number_difference(&[&one, &invoice(None, 0)]).is_some());
    }
}
