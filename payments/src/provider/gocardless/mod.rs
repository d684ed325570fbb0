//! GoCardless (https://developer.gocardless.com/api-reference): payments from mandates, refunds, and what became of either.
//!
//! A method's token is the mandate (`MD…`). GoCardless remembers idempotency keys for 30 days: a repeated one is refused with
//! the id of what the first call made, which is then asked for. An order that is older is looked for among the mandate's
//! payments, or the payment's refunds, and never sent again.

mod webhook;

use async_trait::async_trait;
use chrono::TimeDelta;
use domain::{Clock, Money, TransactionId};
use rust_decimal::Decimal;
use serde_json::{Value, json};

use super::http::{Answer, Call, CallError, Method, Server, in_path};
use super::{ChargeOrder, Gateway, Outcome, RefundOrder, Subject, is_forgotten};
use crate::gateway::ProviderSettings;
use crate::words::FailureCode;

pub(crate) use webhook::{GocardlessHappening, read_event, verify_signature};

/// The version whose shapes this adapter reads.
const API_VERSION: &str = "2015-07-06";
const REMEMBERED: TimeDelta = TimeDelta::days(30);

/// An account at GoCardless.
pub struct Gocardless {
    server: Server,
    access_token: String,
    settings: ProviderSettings,
}

impl Gocardless {
    /// With its access token.
    #[must_use]
    pub fn new(server: Server, access_token: String, settings: ProviderSettings) -> Self {
        Self { server, access_token, settings }
    }

    fn call(&self, method: Method, path: String, idempotency_key: Option<String>) -> Call {
        let mut headers = vec![
            ("authorization", format!("Bearer {}", self.access_token)),
            ("gocardless-version", API_VERSION.to_owned()),
        ];
        headers.extend(idempotency_key.map(|key| ("idempotency-key", key)));
        Call { method, path, headers }
    }

    async fn get(&self, path: String) -> Result<Answer, CallError> {
        self.server.call(self.call(Method::Get, path, None)).await
    }

    async fn create(&self, subject: Subject, body: Value, key: String) -> Outcome {
        let name = name_of(subject);
        let call = self.call(Method::Json(json!({ name: body })), format!("/{name}"), Some(key));
        let answer = match self.server.call(call).await {
            Ok(answer) => answer,
            Err(error) => return error.into(),
        };
        let conflicting = answer.body["error"]["errors"][0]["links"]["conflicting_resource_id"].as_str();
        match (answer.status, conflicting) {
            (200 | 201, _) => outcome_of(subject, &answer.body[name]),
            (409, Some(reference)) => self.status(subject, reference).await,
            _ => refused(&answer),
        }
    }

    /// What became of an order whose idempotency key GoCardless may have forgotten: `of` names what its kind is listed by.
    async fn find(&self, subject: Subject, of: &str, transaction_id: TransactionId) -> Outcome {
        let name = name_of(subject);
        let answer = match self.get(format!("/{name}?limit=500&{of}")).await {
            Ok(answer) if answer.status == 200 => answer,
            Ok(answer) => return Outcome::Unknown { detail: message_of(&answer) },
            Err(error) => return Outcome::Unknown { detail: error.to_string() },
        };
        let ours = |resource: &&Value| resource["metadata"]["transaction_id"] == transaction_id.to_string();
        match answer.body[name].as_array().into_iter().flatten().find(ours) {
            Some(resource) => outcome_of(subject, resource),
            None => Outcome::declined(FailureCode::NetworkError, "the order has not reached GoCardless", None),
        }
    }
}

#[async_trait]
impl Gateway for Gocardless {
    async fn charge(&self, order: &ChargeOrder) -> Outcome {
        if is_forgotten(order.ordered_at, Clock::System.now(), REMEMBERED) {
            let of = format!("mandate={}", in_path(&order.token));
            return self.find(Subject::Charge, &of, order.transaction_id).await;
        }
        let Some(amount) = minor_units(order.amount) else { return unrepresentable() };
        let mut body = json!({
            "amount": amount,
            "currency": order.amount.currency(),
            "links": {"mandate": order.token},
            "metadata": {"transaction_id": order.transaction_id},
        });
        if let Some(text) = &self.settings.statement_descriptor {
            body["description"] = json!(text);
        }
        if let Some(retry) = self.settings.retry_on_soft_decline {
            body["retry_if_possible"] = json!(retry);
        }
        self.create(Subject::Charge, body, order.transaction_id.to_string()).await
    }

    async fn refund(&self, order: &RefundOrder) -> Outcome {
        if is_forgotten(order.ordered_at, Clock::System.now(), REMEMBERED) {
            let of = format!("payment={}", in_path(&order.charge_reference));
            return self.find(Subject::Refund, &of, order.transaction_id).await;
        }
        let (Some(amount), Some(total)) = (minor_units(order.amount), minor_units(order.refunded_total)) else {
            return unrepresentable();
        };
        let body = json!({
            "amount": amount,
            "total_amount_confirmation": total,
            "links": {"payment": order.charge_reference},
            "metadata": {"transaction_id": order.transaction_id},
        });
        self.create(Subject::Refund, body, order.transaction_id.to_string()).await
    }

    async fn status(&self, subject: Subject, reference: &str) -> Outcome {
        let name = name_of(subject);
        match self.get(format!("/{name}/{}", in_path(reference))).await {
            Ok(answer) if answer.status == 200 => outcome_of(subject, &answer.body[name]),
            Ok(answer) => Outcome::Unknown { detail: message_of(&answer) },
            Err(error) => Outcome::Unknown { detail: error.to_string() },
        }
    }
}

fn name_of(subject: Subject) -> &'static str {
    match subject {
        Subject::Charge => "payments",
        Subject::Refund => "refunds",
    }
}

/// In the smallest unit; every currency that GoCardless knows has two decimals.
fn minor_units(amount: Money) -> Option<u64> {
    if amount.currency().exponent() != 2 {
        return None;
    }
    u64::try_from(amount.amount().checked_mul(Decimal::ONE_HUNDRED)?.normalize()).ok()
}

fn unrepresentable() -> Outcome {
    Outcome::declined(FailureCode::InvalidRequest, "GoCardless does not take this currency", None)
}

fn message_of(answer: &Answer) -> String {
    let error = &answer.body["error"];
    let text = error["message"].as_str().unwrap_or("no message");
    let reason = error["errors"][0]["reason"].as_str().or(error["errors"][0]["message"].as_str());
    format!("GoCardless answered {}: {text}{}", answer.status, reason.map(|r| format!(" ({r})")).unwrap_or_default())
}

/// An answer that is no success: a refusal for good, or trouble that leaves it open.
fn refused(answer: &Answer) -> Outcome {
    if answer.is_transient() || answer.status < 400 || answer.status == 409 {
        return Outcome::Unknown { detail: message_of(answer) };
    }
    let code = match answer.body["error"]["type"].as_str() {
        Some("invalid_state") => FailureCode::Decline,
        _ => FailureCode::InvalidRequest,
    };
    Outcome::declined(code, message_of(answer), None)
}

/// What a payment or a refund says.
fn outcome_of(subject: Subject, resource: &Value) -> Outcome {
    let Some(reference) = resource["id"].as_str().map(str::to_owned) else {
        return Outcome::Unknown { detail: "GoCardless answered without an id".to_owned() };
    };
    let status = resource["status"].as_str().unwrap_or_default();
    match (subject, status) {
        (Subject::Charge, "confirmed" | "paid_out") | (Subject::Refund, "paid") => Outcome::Succeeded { reference },
        (Subject::Charge, "failed" | "cancelled" | "customer_approval_denied" | "charged_back")
        | (Subject::Refund, "failed" | "cancelled" | "bounced" | "funds_returned") => {
            Outcome::declined(FailureCode::Decline, format!("the {status} state at GoCardless"), Some(reference))
        }
        (Subject::Charge, "pending_customer_approval" | "pending_submission" | "submitted")
        | (Subject::Refund, "created" | "pending_submission" | "submitted") => Outcome::Pending { reference },
        _ => Outcome::Unknown { detail: format!("{reference} has the status {status:?}") },
    }
}
