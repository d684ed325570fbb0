//! Writes events as JSON with as little work as possible: the generator shares the machine with what it measures.

use chrono::{DateTime, Utc};
use client::sample::{Catalog, METRICS, Subscriber};

use crate::plan::Plan;

/// The constant parts of every customer's and metric's events, written once.
#[derive(Debug)]
pub struct Bodies {
    beginnings: Vec<[Box<str>; 3]>,
}

/// Text of the second of the last timestamp: the next one usually lies in the same.
#[derive(Debug, Default)]
pub struct Second {
    second: i64,
    text: String,
}

impl Bodies {
    /// For these subscribers.
    #[must_use]
    pub fn new(catalog: &Catalog, subscribers: &[Subscriber]) -> Self {
        let beginning = |subscriber: &Subscriber, metric: usize| {
            format!(
                r#"{{"customer_id":"{}","subscription_id":"{}","product_id":"{}","metric_key":"{}","quantity":""#,
                subscriber.customer_id, subscriber.subscription_id, catalog.products[metric], METRICS[metric],
            )
            .into_boxed_str()
        };
        let beginnings = subscribers.iter().map(|row| std::array::from_fn(|metric| beginning(row, metric))).collect();
        Self { beginnings }
    }

    /// Appends one event as a JSON object.
    pub fn write(&self, out: &mut Vec<u8>, plan: &Plan, event: u64, second: &mut Second) {
        let spec = plan.spec(event);
        out.extend_from_slice(self.beginnings[spec.customer][spec.metric].as_bytes());
        digits(out, spec.quantity);
        out.extend_from_slice(br#"","timestamp":""#);
        second.write(out, plan.timestamp(event));
        out.extend_from_slice(br#"","idempotency_key":""#);
        out.extend_from_slice(plan.run.as_bytes());
        out.push(b'-');
        digits(out, event);
        out.extend_from_slice(br#""}"#);
    }
}

impl Second {
    fn write(&mut self, out: &mut Vec<u8>, instant: DateTime<Utc>) {
        if self.second != instant.timestamp() || self.text.is_empty() {
            self.second = instant.timestamp();
            self.text = instant.format("%Y-%m-%dT%H:%M:%S.").to_string();
        }
        out.extend_from_slice(self.text.as_bytes());
        let mut micros = instant.timestamp_subsec_micros();
        let mut text = *b"000000Z";
        for place in text[..6].iter_mut().rev() {
            *place = b'0' + (micros % 10) as u8;
            micros /= 10;
        }
        out.extend_from_slice(&text);
    }
}

/// Appends a number in decimal.
pub fn digits(out: &mut Vec<u8>, mut number: u64) {
    let mut text = [0_u8; 20];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&text[at..]);
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_written_is_what_was_planned() {
        let catalog = Catalog {
            plan_id: Uuid::new_v4(),
            products: [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()],
            meters: [Uuid::nil(); 3],
            fee_product_id: Uuid::nil(),
        };
        let subscriber =
            || Subscriber { customer_id: Uuid::new_v4(), wallet_id: Uuid::nil(), subscription_id: Uuid::new_v4() };
        let subscribers = [subscriber(), subscriber()];
        let base = Utc.with_ymd_and_hms(2026, 1, 1, 0, 59, 59).unwrap() + chrono::TimeDelta::microseconds(999_990);
        let plan = Plan { seed: 3, run: "run".to_owned(), customers: 2, duplicates: 0, base };
        let bodies = Bodies::new(&catalog, &subscribers);
        let mut second = Second::default();
        for event in [0, 1, 2, 9, 10, 1_234_567] {
            let mut text = Vec::new();
            bodies.write(&mut text, &plan, event, &mut second);
            let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let spec = plan.spec(event);
            assert_eq!(json["quantity"], spec.quantity.to_string());
            assert_eq!(json["customer_id"], subscribers[spec.customer].customer_id.to_string());
            assert_eq!(json["subscription_id"], subscribers[spec.customer].subscription_id.to_string());
            assert_eq!(json["product_id"], catalog.products[spec.metric].to_string());
            assert_eq!(json["metric_key"], METRICS[spec.metric]);
            assert_eq!(json["idempotency_key"], format!("run-{event}"));
            let time: DateTime<Utc> = json["timestamp"].as_str().unwrap().parse().unwrap();
            assert_eq!(time, plan.timestamp(event));
        }
    }
}
