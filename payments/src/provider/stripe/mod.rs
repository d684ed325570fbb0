//! Stripe (https://docs.stripe.com/api): PaymentIntents that are created and confirmed off-session in one call, refunds, and
//! what became of either.
//!
//! Stripe remembers idempotency keys for at least 24 hours, answers with whatever the first call got, and refuses a key with
//! other parameters. An order that is older, or whose parameters have changed since, is looked for by the transaction id in
//! its metadata and never sent again.

mod decline;
mod minor;
mod webhook;

use async_trait::async_trait;
use chrono::TimeDelta;
use domain::Clock;
use serde_json::Value;

use super::http::{Answer, Call, CallError, Method, Server, in_path};
use super::{ChargeOrder, Gateway, Outcome, RefundOrder, Subject, is_forgotten};
use crate::gateway::ProviderSettings;
use crate::words::{FailureCode, PaymentMethodType};

pub(crate) use minor::from_minor_units;
pub use minor::minor_units;
pub(crate) use webhook::{StripeHappening, read_event, verify_signature};

/// The version whose shapes this adapter reads.
const API_VERSION: &str = "2024-06-20";
/// Stripe prunes keys that are at least 24 hours old.
const REMEMBERED: TimeDelta = TimeDelta::hours(24);
/// Name of our transaction in Stripe's metadata.
const TRANSACTION: &str = "transaction_id";

/// An account at Stripe.
pub struct Stripe {
    server: Server,
    api_key: String,
    settings: ProviderSettings,
}

impl Stripe {
    /// With its secret key.
    #[must_use]
    pub fn new(server: Server, api_key: String, settings: ProviderSettings) -> Self {
        Self { server: server.repeating(is_repeated), api_key, settings }
    }

    fn call(&self, method: Method, path: impl Into<String>, idempotency_key: Option<String>) -> Call {
        let mut headers =
            vec![("authorization", format!("Bearer {}", self.api_key)), ("stripe-version", API_VERSION.to_owned())];
        headers.extend(idempotency_key.map(|key| ("idempotency-key", key)));
        Call { method, path: path.into(), headers }
    }

    async fn get(&self, path: impl Into<String>) -> Result<Answer, CallError> {
        self.server.call(self.call(Method::Get, path, None)).await
    }

    /// A saved method can be charged only with the customer of Stripe that it is attached to. One that Stripe does not show
    /// is tried without: should the charge have been made before, Stripe knows it by its key.
    async fn customer_of(&self, token: &str) -> Result<Option<String>, Outcome> {
        match self.get(format!("/v1/payment_methods/{}", in_path(token))).await {
            Ok(answer) if answer.is_transient() => Err(Outcome::NotSent { detail: message_of(&answer) }),
            Ok(answer) => Ok(answer.body["customer"].as_str().map(str::to_owned)),
            Err(error) => Err(Outcome::NotSent { detail: error.to_string() }),
        }
    }

    fn charge_form(&self, order: &ChargeOrder, amount: u64, customer: Option<String>) -> Vec<(String, String)> {
        let mut form = vec![
            ("amount", amount.to_string()),
            ("currency", order.amount.currency().as_str().to_ascii_lowercase()),
            ("payment_method", order.token.clone()),
            ("payment_method_types[0]", type_of(order.method_type).to_owned()),
            ("confirm", "true".to_owned()),
            ("off_session", "true".to_owned()),
            ("error_on_requires_action", "true".to_owned()),
            ("metadata[transaction_id]", order.transaction_id.to_string()),
        ];
        form.extend(customer.map(|customer| ("customer", customer)));
        form.extend(self.settings.capture_method.map(|method| ("capture_method", method.to_string())));
        // Cards take the account's descriptor and let only its end be chosen.
        let descriptor = match order.method_type {
            PaymentMethodType::CreditCard => "statement_descriptor_suffix",
            _ => "statement_descriptor",
        };
        form.extend(self.settings.statement_descriptor.clone().map(|text| (descriptor, text)));
        form.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What became of a refund whose idempotency key Stripe may have forgotten.
    async fn find_refund(&self, order: &RefundOrder) -> Outcome {
        let path = format!("/v1/refunds?limit=100&payment_intent={}", in_path(&order.charge_reference));
        let answer = match self.get(path).await {
            Ok(answer) if answer.status == 200 => answer,
            Ok(answer) => return Outcome::Unknown { detail: message_of(&answer) },
            Err(error) => return Outcome::Unknown { detail: error.to_string() },
        };
        let ours = |refund: &&Value| refund["metadata"][TRANSACTION] == order.transaction_id.to_string();
        match answer.body["data"].as_array().into_iter().flatten().find(ours) {
            Some(refund) => outcome_of_refund(refund),
            None if answer.body["has_more"] == true => {
                Outcome::Unknown { detail: "the payment has more refunds than Stripe lists at once".to_owned() }
            }
            None => Outcome::declined(FailureCode::NetworkError, "the order has not reached Stripe", None),
        }
    }

    /// The intent of a transaction that Stripe may have; `None` when it has none.
    async fn find(&self, order: &ChargeOrder) -> Result<Option<Outcome>, CallError> {
        let query = format!("metadata%5B%27{TRANSACTION}%27%5D%3A%27{}%27", order.transaction_id);
        let answer = self.get(format!("/v1/payment_intents/search?query={query}")).await?;
        match answer.status {
            200 => Ok(answer.body["data"].get(0).map(outcome_of_intent)),
            _ => Err(CallError::Lost(message_of(&answer))),
        }
    }
}

#[async_trait]
impl Gateway for Stripe {
    async fn charge(&self, order: &ChargeOrder) -> Outcome {
        if is_forgotten(order.ordered_at, Clock::System.now(), REMEMBERED) {
            return match self.find(order).await {
                Ok(Some(outcome)) => outcome,
                Ok(None) => Outcome::declined(FailureCode::NetworkError, "the order has not reached Stripe", None),
                Err(error) => Outcome::Unknown { detail: error.to_string() },
            };
        }
        let Some(amount) = minor_units(order.amount) else {
            return Outcome::declined(
                FailureCode::InvalidRequest,
                "Stripe cannot take an amount of so many decimals",
                None,
            );
        };
        let customer = match self.customer_of(&order.token).await {
            Ok(customer) => customer,
            Err(outcome) => return outcome,
        };
        let form = self.charge_form(order, amount, customer);
        let call = self.call(Method::Form(form), "/v1/payment_intents", Some(order.transaction_id.to_string()));
        match self.server.call(call).await {
            Ok(answer) if answer.body["error"]["type"] == "idempotency_error" => match self.find(order).await {
                Ok(Some(outcome)) => outcome,
                _ => Outcome::Unknown { detail: message_of(&answer) },
            },
            Ok(answer) if answer.status == 200 => outcome_of_intent(&answer.body),
            Ok(answer) => refused(&answer),
            Err(error) => error.into(),
        }
    }

    async fn refund(&self, order: &RefundOrder) -> Outcome {
        if is_forgotten(order.ordered_at, Clock::System.now(), REMEMBERED) {
            return self.find_refund(order).await;
        }
        let Some(amount) = minor_units(order.amount) else {
            return Outcome::declined(
                FailureCode::InvalidRequest,
                "Stripe cannot take an amount of so many decimals",
                None,
            );
        };
        let form = [
            ("payment_intent", order.charge_reference.clone()),
            ("amount", amount.to_string()),
            ("metadata[transaction_id]", order.transaction_id.to_string()),
        ];
        let form = form.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let call = self.call(Method::Form(form), "/v1/refunds", Some(order.transaction_id.to_string()));
        match self.server.call(call).await {
            Ok(answer) if answer.status == 200 => outcome_of_refund(&answer.body),
            Ok(answer) => refused(&answer),
            Err(error) => error.into(),
        }
    }

    async fn status(&self, subject: Subject, reference: &str) -> Outcome {
        let reference = in_path(reference);
        let (path, read): (_, fn(&Value) -> Outcome) = match subject {
            Subject::Charge => (format!("/v1/payment_intents/{reference}"), outcome_of_intent),
            Subject::Refund => (format!("/v1/refunds/{reference}"), outcome_of_refund),
        };
        match self.get(path).await {
            Ok(answer) if answer.status == 200 => read(&answer.body),
            Ok(answer) => Outcome::Unknown { detail: message_of(&answer) },
            Err(error) => Outcome::Unknown { detail: error.to_string() },
        }
    }
}

/// 409 says that the first call with this key is still being worked on.
fn is_repeated(answer: &Answer) -> bool {
    answer.status == 409 || answer.is_transient()
}

fn type_of(method: PaymentMethodType) -> &'static str {
    match method {
        PaymentMethodType::CreditCard | PaymentMethodType::External => "card",
        PaymentMethodType::SepaDirectDebit => "sepa_debit",
        PaymentMethodType::BankAccount => "us_bank_account",
        PaymentMethodType::Paypal => "paypal",
    }
}

fn message_of(answer: &Answer) -> String {
    let text = answer.body["error"]["message"].as_str().unwrap_or("no message");
    format!("Stripe answered {}: {text}", answer.status)
}

/// An answer that is no success: a refusal for good, or trouble that leaves it open.
fn refused(answer: &Answer) -> Outcome {
    if is_repeated(answer) || answer.status < 400 {
        return Outcome::Unknown { detail: message_of(answer) };
    }
    let reference = answer.body["error"]["payment_intent"]["id"].as_str().map(str::to_owned);
    Outcome::Declined(decline::of_error(&answer.body["error"], reference))
}

/// What a PaymentIntent says.
pub(crate) fn outcome_of_intent(intent: &Value) -> Outcome {
    let Some(reference) = intent["id"].as_str().map(str::to_owned) else {
        return Outcome::Unknown { detail: "a PaymentIntent without an id".to_owned() };
    };
    match intent["status"].as_str() {
        Some("succeeded") => Outcome::Succeeded { reference },
        Some("processing" | "requires_capture") => Outcome::Pending { reference },
        Some("requires_payment_method") => {
            Outcome::Declined(decline::of_error(&intent["last_payment_error"], Some(reference)))
        }
        Some("requires_action" | "requires_confirmation") => {
            let message = "the bank wants to hear from the customer";
            Outcome::declined(FailureCode::AuthenticationRequired, message, Some(reference))
        }
        Some("canceled") => {
            Outcome::declined(FailureCode::Decline, "the PaymentIntent was cancelled at Stripe", Some(reference))
        }
        other => Outcome::Unknown { detail: format!("PaymentIntent {reference} has the status {other:?}") },
    }
}

fn outcome_of_refund(refund: &Value) -> Outcome {
    let Some(reference) = refund["id"].as_str().map(str::to_owned) else {
        return Outcome::Unknown { detail: "a refund without an id".to_owned() };
    };
    match refund["status"].as_str() {
        Some("succeeded") => Outcome::Succeeded { reference },
        Some("pending" | "requires_action") => Outcome::Pending { reference },
        Some("failed" | "canceled") => {
            let message = refund["failure_reason"].as_str().unwrap_or("the refund was cancelled at Stripe");
            Outcome::declined(FailureCode::Decline, message, Some(reference))
        }
        other => Outcome::Unknown { detail: format!("refund {reference} has the status {other:?}") },
    }
}
