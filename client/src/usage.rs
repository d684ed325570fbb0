//! Usage events in batches, sent until each one was accepted or refused for good.

use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant, sleep};
use uuid::Uuid;

use crate::error::Problem;
use crate::{Api, ClientError, Result};

/// Events of one request at most (usage.md, ingest).
pub const BATCH_MAX: usize = 1_000;

/// A usage event as it is sent.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Who consumed.
    pub customer_id: Uuid,
    /// Gives the billing period.
    pub subscription_id: Uuid,
    /// USAGE product.
    pub product_id: Uuid,
    /// Kind of consumption.
    pub metric_key: &'static str,
    /// Amount, a decimal string.
    pub quantity: String,
    /// RFC 3339.
    pub timestamp: String,
    /// Makes a repeat safe.
    pub idempotency_key: String,
}

#[derive(Serialize)]
struct Batch<'a> {
    events: &'a [&'a Event],
}

/// Answer of an ingest request.
#[derive(Clone, Debug, Deserialize)]
pub struct IngestAnswer {
    /// Taken, new or repeated alike.
    pub accepted: u64,
    /// Dropped by the product's own policy.
    pub dropped: u64,
    /// Refused.
    pub rejected: u64,
    /// One entry per event, in the order of the request.
    pub results: Vec<IngestResult>,
}

/// What became of one event.
#[derive(Clone, Debug, Deserialize)]
pub struct IngestResult {
    /// Position in the request.
    pub index: usize,
    /// `ACCEPTED`, `DROPPED`, `REJECTED`.
    pub status: String,
    /// Why it was refused.
    pub error: Option<Problem>,
}

/// Sends events, at most [`BATCH_MAX`], until each was accepted; an event that was refused because the log was full or
/// the limit reached is sent again, alone of its batch.
///
/// # Errors
/// The first refusal that will not pass, or the end of `patience`.
pub async fn send(api: &Api, events: &[&Event], patience: Duration) -> Result<()> {
    let give_up = Instant::now() + patience;
    let mut open: Vec<&Event> = events.to_vec();
    loop {
        let body = serde_json::to_string(&Batch { events: &open })
            .map_err(|error| unreadable(format!("the events cannot be written: {error}")))?;
        let answer: IngestAnswer = api.post_text("/v1/usage-events", body).await?;
        open = still_open(&open, answer)?;
        if open.is_empty() {
            return Ok(());
        }
        if Instant::now() >= give_up {
            return Err(unreadable(format!("{} events were not accepted in {patience:?}", open.len())));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The events to send again.
fn still_open<'a>(sent: &[&'a Event], answer: IngestAnswer) -> Result<Vec<&'a Event>> {
    if answer.results.len() != sent.len() {
        return Err(unreadable(format!("{} results for {} events", answer.results.len(), sent.len())));
    }
    let mut open = Vec::new();
    for result in answer.results {
        let event = sent.get(result.index).ok_or_else(|| unreadable(format!("no event has index {}", result.index)))?;
        match (result.status.as_str(), result.error) {
            ("ACCEPTED", _) => {}
            (_, Some(problem)) if problem.passes() => open.push(*event),
            (status, problem) => {
                let detail = problem.map_or_else(|| status.to_owned(), |problem| problem.to_string());
                return Err(unreadable(format!("event {}: {detail}", event.idempotency_key)));
            }
        }
    }
    Ok(open)
}

fn unreadable(detail: String) -> ClientError {
    ClientError::Unreadable { request: "POST /v1/usage-events".to_owned(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str) -> Event {
        Event {
            customer_id: Uuid::nil(),
            subscription_id: Uuid::nil(),
            product_id: Uuid::nil(),
            metric_key: "requests",
            quantity: "1".to_owned(),
            timestamp: "2023-11-16T00:00:00Z".to_owned(),
            idempotency_key: key.to_owned(),
        }
    }

    fn answer(text: &str) -> IngestAnswer {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_passes_is_sent_again_and_nothing_else() {
        let (a, b, c) = (event("a"), event("b"), event("c"));
        let open = still_open(
            &[&a, &b, &c],
            answer(
                r#"{"accepted":2,"dropped":0,"rejected":1,"results":[
                    {"index":0,"status":"ACCEPTED","id":"x"},
                    {"index":1,"status":"REJECTED","error":{"status":503,"code":"SERVICE_UNAVAILABLE"}},
                    {"index":2,"status":"ACCEPTED"}]}"#,
            ),
        );
        let keys: Vec<_> = open.unwrap().iter().map(|event| event.idempotency_key.clone()).collect();
        assert_eq!(keys, ["b"]);
    }

    #[test]
    fn a_refusal_for_good_ends_the_sending() {
        let a = event("a");
        let refused = answer(
            r#"{"accepted":0,"dropped":0,"rejected":1,"results":[
                {"index":0,"status":"REJECTED","error":{"status":404,"code":"NOT_FOUND","detail":"no such product"}}]}"#,
        );
        let error = still_open(&[&a], refused).unwrap_err().to_string();
        assert!(error.contains("event a: 404 NOT_FOUND: no such product"), "{error}");
        let short = answer(r#"{"accepted":0,"dropped":0,"rejected":0,"results":[]}"#);
        assert!(still_open(&[&a], short).is_err());
    }
}
