//! Writes events as JSON with as little work as possible: the generator shares the machine with what it measures.

use chrono::{DateTime, Utc};
use client::sample::Subscriber;

use crate::metering::{self, Meter};
use crate::plan::Plan;

/// The constant parts of every customer's and metric's events, written once.
#[derive(Debug)]
pub struct Bodies {
    beginnings: Vec<Vec<Box<str>>>,
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
    pub fn new(meters: &[Meter], subscribers: &[Subscriber]) -> Self {
        let beginning = |subscriber: &Subscriber, meter: &Meter| {
            format!(
                r#"{{"customer_id":"{}","subscription_id":"{}","product_id":"{}","metric_key":"{}","quantity":""#,
                subscriber.customer_id, subscriber.subscription_id, meter.product_id, meter.metric_key,
            )
            .into_boxed_str()
        };
        let of = |row: &Subscriber| meters.iter().map(|meter| beginning(row, meter)).collect();
        let beginnings = subscribers.iter().map(of).collect();
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
        if plan.shape.has_regions() {
            let region = if spec.is_near { metering::NEAR } else { metering::FAR };
            out.extend_from_slice(br#"","dimension_vars":{"region":""#);
            out.extend_from_slice(region.as_bytes());
            out.extend_from_slice(br#""}}"#);
        } else {
            out.extend_from_slice(br#""}"#);
        }
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
    use crate::plan::Shape;

    #[test]
    fn what_is_written_is_what_was_planned() {
        let meter = |number: usize| Meter { product_id: Uuid::new_v4(), metric_key: format!("metric_{number}") };
        let meters: Vec<Meter> = (0..10).map(meter).collect();
        let subscriber =
            || Subscriber { customer_id: Uuid::new_v4(), wallet_id: Uuid::nil(), subscription_id: Uuid::new_v4() };
        let subscribers = [subscriber(), subscriber()];
        let base = Utc.with_ymd_and_hms(2026, 1, 1, 0, 59, 59).unwrap() + chrono::TimeDelta::microseconds(999_990);
        for (count, event) in [3, 10].into_iter().flat_map(|n| [0, 1, 2, 9, 10, 1_234_567].map(|event| (n, event))) {
            let shape = Shape { meters: count };
            let plan = Plan { seed: 3, run: "run".to_owned(), customers: 2, duplicates: 0, shape, base };
            let bodies = Bodies::new(&meters[..count], &subscribers);
            let mut second = Second::default();
            let mut text = Vec::new();
            bodies.write(&mut text, &plan, event, &mut second);
            let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let spec = plan.spec(event);
            assert_eq!(json["quantity"], spec.quantity.to_string());
            assert_eq!(json["customer_id"], subscribers[spec.customer].customer_id.to_string());
            assert_eq!(json["subscription_id"], subscribers[spec.customer].subscription_id.to_string());
            assert_eq!(json["product_id"], meters[spec.metric].product_id.to_string());
            assert_eq!(json["metric_key"], meters[spec.metric].metric_key);
            let region = (count > 3).then_some(if spec.is_near { metering::NEAR } else { metering::FAR });
            assert_eq!(json["dimension_vars"]["region"].as_str(), region);
            assert_eq!(json["idempotency_key"], format!("run-{event}"));
            let time: DateTime<Utc> = json["timestamp"].as_str().unwrap().parse().unwrap();
            assert_eq!(time, plan.timestamp(event));
        }
    }
}
