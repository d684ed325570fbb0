//! What Stripe tells by itself (https://docs.stripe.com/webhooks): signature and meaning of an event.

use chrono::TimeDelta;
use domain::Instant;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use super::outcome_of_intent;
use crate::method::CardDisplay;
use crate::provider::Outcome;

/// Largest distance between the signature's time and ours (payment-gateways.md 4).
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// Whether `header` (`Stripe-Signature: t=<unix>,v1=<hex>`, more than one `v1` while a secret is replaced) signs the body.
#[must_use]
pub(crate) fn verify_signature(header: &str, body: &[u8], secret: &str, now: Instant) -> bool {
    let pairs: Vec<_> = header.split(',').filter_map(|pair| pair.trim().split_once('=')).collect();
    let Some((_, time)) = pairs.iter().find(|(name, _)| *name == "t") else { return false };
    let signed_at = time.parse().ok().and_then(|secs| chrono::DateTime::from_timestamp(secs, 0));
    if signed_at.is_none_or(|at| (now - at).abs() > TOLERANCE) {
        return false;
    }
    pairs.iter().filter(|(name, _)| *name == "v1").any(|(_, signature)| {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return false };
        mac.update(time.as_bytes());
        mac.update(b".");
        mac.update(body);
        hex::decode(signature).is_ok_and(|signature| mac.verify_slice(&signature).is_ok())
    })
}

/// What an event says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StripeHappening {
    /// Of a PaymentIntent; with our transaction, where its metadata names one.
    Payment { transaction_id: Option<uuid::Uuid>, outcome: Outcome },
    /// So much of a charge was given back so far, in minor units.
    Refunded { payment_intent: String, refunded: u64 },
    /// A charge is contested.
    Disputed { payment_intent: String, reason: String },
    /// A token is gone.
    MethodDetached { token: String },
    /// A card looks otherwise.
    MethodUpdated { token: String, card: CardDisplay },
    /// Nothing that concerns us.
    Other,
}

/// Reads an event; one that is not as documented is nothing that concerns us.
#[must_use]
pub(crate) fn read_event(event_type: &str, object: &Value) -> StripeHappening {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let read = || match event_type {
        "payment_intent.succeeded" | "payment_intent.payment_failed" => {
            let named = object["metadata"][super::TRANSACTION].as_str();
            let transaction_id = named.and_then(|id| uuid::Uuid::parse_str(id).ok());
            Some(StripeHappening::Payment { transaction_id, outcome: outcome_of_intent(object) })
        }
        "charge.refunded" => Some(StripeHappening::Refunded {
            payment_intent: text(&object["payment_intent"])?,
            refunded: object["amount_refunded"].as_u64()?,
        }),
        "charge.dispute.created" => Some(StripeHappening::Disputed {
            payment_intent: text(&object["payment_intent"])?,
            reason: text(&object["reason"]).unwrap_or_else(|| "general".to_owned()),
        }),
        "payment_method.detached" => Some(StripeHappening::MethodDetached { token: text(&object["id"])? }),
        "payment_method.updated" => {
            let card = &object["card"];
            let number = |value: &Value| value.as_i64().and_then(|number| i32::try_from(number).ok());
            let card = CardDisplay {
                brand: text(&card["brand"]),
                last4: text(&card["last4"]),
                exp_month: number(&card["exp_month"]).filter(|month| (1..=12).contains(month)),
                exp_year: number(&card["exp_year"]).filter(|year| (2000..=9999).contains(year)),
            };
            Some(StripeHappening::MethodUpdated { token: text(&object["id"])?, card })
        }
        _ => None,
    };
    read().unwrap_or(StripeHappening::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(secret: &str, time: i64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(format!("{time}.").as_bytes());
        mac.update(body);
        hex::encode(mac.finalize().into_bytes())
    }

    #[test]
    fn a_signature_holds_for_its_secret_body_and_five_minutes() {
        let (secret, body, at) = ("whsec_1", b"{\"id\":\"evt_1\"}".as_slice(), 1_700_000_000);
        let good = sign(secret, at, body);
        let now = |secs| chrono::DateTime::from_timestamp(secs, 0).unwrap();
        let header = format!("t={at},v0=aa,v1={good}");
        for (header, body, secret, at_secs, expected) in [
            (header.as_str(), body, secret, at, true),
            (&header, body, secret, at + 300, true),
            (&header, body, secret, at + 301, false),
            (&header, body, secret, at - 301, false),
            (&header, b"{}".as_slice(), secret, at, false),
            (&header, body, "whsec_2", at, false),
            (&format!("t={at},v1={},v1={good}", "0".repeat(64)), body, secret, at, true),
            (&format!("t={},v1={good}", at + 1), body, secret, at, false),
            (&format!("v1={good}"), body, secret, at, false),
            (&format!("t={at},v1=zz"), body, secret, at, false),
            ("", body, secret, at, false),
        ] {
            assert_eq!(verify_signature(header, body, secret, now(at_secs)), expected, "{header} {at_secs}");
        }
    }
}
