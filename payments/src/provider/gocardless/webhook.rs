//! What GoCardless tells by itself: signature and meaning of an event.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::provider::Outcome;
use crate::words::{FailureCode, PaymentMethodStatus};

/// Whether `header` (`Webhook-Signature`) is the hexadecimal HMAC-SHA256 of the body.
#[must_use]
pub(crate) fn verify_signature(header: &str, body: &[u8], secret: &str) -> bool {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return false };
    mac.update(body);
    hex::decode(header.trim()).is_ok_and(|signature| mac.verify_slice(&signature).is_ok())
}

/// What an event says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum GocardlessHappening {
    /// Of a payment or a refund.
    Payment { reference: String, outcome: Outcome },
    /// The bank took a payment back.
    ChargedBack { reference: String, reason: String },
    /// A mandate can no longer be charged.
    MandateEnded { mandate: String, status: PaymentMethodStatus },
    /// Nothing that concerns us.
    Other,
}

/// Reads an event; one that is not as documented is nothing that concerns us.
#[must_use]
pub(crate) fn read_event(event: &Value) -> GocardlessHappening {
    let name = format!(
        "{}.{}",
        event["resource_type"].as_str().unwrap_or_default(),
        event["action"].as_str().unwrap_or_default()
    );
    let link = |name: &str| event["links"][name].as_str().map(str::to_owned);
    let payment = |reference: String, outcome: fn(String, &Value) -> Outcome| {
        let outcome = outcome(reference.clone(), &event["details"]);
        GocardlessHappening::Payment { reference, outcome }
    };
    let read = || match name.as_str() {
        "payments.confirmed" | "payments.paid_out" => Some(payment(link("payment")?, succeeded)),
        "payments.failed" => Some(payment(link("payment")?, failed)),
        "refunds.paid" => Some(payment(link("refund")?, succeeded)),
        "payments.charged_back" => Some(GocardlessHappening::ChargedBack {
            reference: link("payment")?,
            reason: event["details"]["cause"].as_str().unwrap_or("charged_back").to_owned(),
        }),
        "mandates.cancelled" => {
            Some(GocardlessHappening::MandateEnded { mandate: link("mandate")?, status: PaymentMethodStatus::Failed })
        }
        "mandates.expired" => {
            Some(GocardlessHappening::MandateEnded { mandate: link("mandate")?, status: PaymentMethodStatus::Expired })
        }
        _ => None,
    };
    read().unwrap_or(GocardlessHappening::Other)
}

fn succeeded(reference: String, _: &Value) -> Outcome {
    Outcome::Succeeded { reference }
}

fn failed(reference: String, details: &Value) -> Outcome {
    let cause = details["cause"].as_str().unwrap_or("no cause");
    let code = match cause {
        "insufficient_funds" => FailureCode::InsufficientFunds,
        "test_failure" | "resource_failed" | "bank_error" => FailureCode::ProcessingError,
        // authorisation_disputed, other, refer_to_payer, bank_account_closed, bank_account_transferred, invalid_bank_details, mandate_cancelled, mandate_expired,
        // direct_debit_not_enabled, customer_approval_denied, and what is new.
        _ => FailureCode::Decline,
    };
    let message = format!("{} ({cause})", details["description"].as_str().unwrap_or("the payment failed"));
    Outcome::declined(code, message, Some(reference))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_signature_holds_for_its_secret_and_body() {
        let (body, secret) = (b"{\"events\":[]}".as_slice(), "secret");
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(body);
        let good = hex::encode(mac.finalize().into_bytes());
        assert!(verify_signature(&good, body, secret));
        for (header, body, secret) in
            [(good.as_str(), b"{}".as_slice(), secret), (&good, body, "other"), ("", body, secret)]
        {
            assert!(!verify_signature(header, body, secret));
        }
    }

    #[test]
    fn events_are_read_as_documented() {
        let event = json!({"id": "EV1", "resource_type": "payments", "action": "failed", "links": {"payment": "PM1"},
            "details": {"origin": "bank", "cause": "insufficient_funds", "description": "No money"}});
        let GocardlessHappening::Payment { outcome: Outcome::Declined(decline), .. } = read_event(&event) else {
            panic!("a failure")
        };
        assert_eq!(
            (decline.code, decline.message.as_str()),
            (FailureCode::InsufficientFunds, "No money (insufficient_funds)")
        );
        assert_eq!(read_event(&json!({"resource_type": "payments", "action": "failed"})), GocardlessHappening::Other);
        assert_eq!(read_event(&json!({"resource_type": "payouts", "action": "paid"})), GocardlessHappening::Other);
    }
}
