//! Stripe's codes (https://docs.stripe.com/declines/codes, https://docs.stripe.com/error-codes) in ours.

use serde_json::Value;

use crate::provider::Decline;
use crate::words::FailureCode;

/// Reads an error object of an answer, or the `last_payment_error` of a PaymentIntent.
pub(super) fn of_error(error: &Value, reference: Option<String>) -> Decline {
    let text = |name: &str| error[name].as_str().unwrap_or_default();
    let (kind, code, decline_code) = (text("type"), text("code"), text("decline_code"));
    let named = [decline_code, code, kind].into_iter().find(|name| !name.is_empty()).unwrap_or("no code");
    let message = match text("message") {
        "" => named.to_owned(),
        message => format!("{message} ({named})"),
    };
    Decline { code: failure_of(kind, code, decline_code), message, reference }
}

fn failure_of(kind: &str, code: &str, decline_code: &str) -> FailureCode {
    match decline_code {
        "" => {}
        other => return of_decline_code(other),
    }
    match code {
        "expired_card" => FailureCode::ExpiredCard,
        "authentication_required" | "payment_intent_authentication_failure" => FailureCode::AuthenticationRequired,
        "processing_error" | "payment_method_provider_timeout" | "lock_timeout" => FailureCode::ProcessingError,
        "insufficient_funds" | "payment_method_bank_account_insufficient_funds" => FailureCode::InsufficientFunds,
        _ if kind == "card_error" => FailureCode::Decline,
        "payment_method_provider_decline" | "payment_method_customer_decline" | "bank_account_declined" => {
            FailureCode::Decline
        }
        _ => FailureCode::InvalidRequest,
    }
}

fn of_decline_code(decline_code: &str) -> FailureCode {
    match decline_code {
        "insufficient_funds" | "withdrawal_count_limit_exceeded" | "card_velocity_exceeded" => {
            FailureCode::InsufficientFunds
        }
        "expired_card" => FailureCode::ExpiredCard,
        "fraudulent" | "lost_card" | "stolen_card" | "pickup_card" | "merchant_blacklist" | "security_violation" => {
            FailureCode::Fraud
        }
        "authentication_required"
        | "offline_pin_required"
        | "online_or_offline_pin_required"
        | "mobile_device_authentication_required" => FailureCode::AuthenticationRequired,
        "processing_error" | "try_again_later" | "issuer_not_available" | "reenter_transaction" | "approve_with_id" => {
            FailureCode::ProcessingError
        }
        // call_issuer, card_not_supported, currency_not_supported, do_not_honor, do_not_try_again, duplicate_transaction,
        // generic_decline, incorrect_*, invalid_*, new_account_information_available, no_action_taken, not_permitted,
        // restricted_card, revocation_of_*, service_not_allowed, stop_payment_order, testmode_decline,
        // transaction_not_allowed, and what is new.
        _ => FailureCode::Decline,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documented_codes_have_their_meaning() {
        for (kind, code, decline_code, expected) in [
            ("card_error", "card_declined", "insufficient_funds", FailureCode::InsufficientFunds),
            ("card_error", "card_declined", "generic_decline", FailureCode::Decline),
            ("card_error", "card_declined", "do_not_honor", FailureCode::Decline),
            ("card_error", "card_declined", "stolen_card", FailureCode::Fraud),
            ("card_error", "card_declined", "fraudulent", FailureCode::Fraud),
            ("card_error", "card_declined", "try_again_later", FailureCode::ProcessingError),
            ("card_error", "authentication_required", "authentication_required", FailureCode::AuthenticationRequired),
            ("card_error", "authentication_required", "", FailureCode::AuthenticationRequired),
            ("card_error", "expired_card", "", FailureCode::ExpiredCard),
            ("card_error", "processing_error", "", FailureCode::ProcessingError),
            ("card_error", "incorrect_cvc", "", FailureCode::Decline),
            ("invalid_request_error", "amount_too_small", "", FailureCode::InvalidRequest),
            ("invalid_request_error", "resource_missing", "", FailureCode::InvalidRequest),
            ("invalid_request_error", "payment_method_provider_decline", "", FailureCode::Decline),
        ] {
            let error = json!({"type": kind, "code": code, "decline_code": decline_code, "message": "Text."});
            let decline = of_error(&error, None);
            assert_eq!(decline.code, expected, "{error}");
            let named = if decline_code.is_empty() { code } else { decline_code };
            assert_eq!(decline.message, format!("Text. ({named})"));
        }
        assert_eq!(of_error(&Value::Null, None).message, "no code");
    }
}
