//! A server that answers from a script and writes down what it was asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use chrono::TimeDelta;
use domain::{Clock, Currency, Money, PaymentMethodId, TransactionId};
use parking_lot::Mutex;
use payments::provider::http::Http;
use payments::provider::{ChargeOrder, RefundOrder};
use payments::words::PaymentMethodType;
use serde_json::Value;

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub line: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// One answer.
pub enum Reply {
    Json(u16, Value),
    /// The connection breaks before the answer is whole.
    Break,
}

#[derive(Default)]
struct Script {
    replies: Mutex<VecDeque<Reply>>,
    asked: Mutex<Vec<Asked>>,
}

pub struct Server {
    pub url: String,
    script: Arc<Script>,
}

impl Server {
    pub async fn answering(replies: impl IntoIterator<Item = Reply>) -> Self {
        let script = Arc::new(Script { replies: Mutex::new(replies.into_iter().collect()), ..Script::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(script.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, script }
    }

    pub fn asked(&self) -> Vec<Asked> {
        assert!(self.script.replies.lock().is_empty(), "every answer was asked for");
        self.script.asked.lock().clone()
    }
}

async fn answer(
    State(script): State<Arc<Script>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = String::from_utf8(body.to_vec()).unwrap();
    script.asked.lock().push(Asked { line: format!("{method} {uri}"), headers, body });
    let reply = script.replies.lock().pop_front().expect("a request that the script does not have");
    match reply {
        Reply::Json(status, body) => {
            let status = axum::http::StatusCode::from_u16(status).unwrap();
            (status, [("content-type", "application/json")], body.to_string()).into_response()
        }
        Reply::Break => {
            let broken = futures::stream::iter([Ok("{"), Err(std::io::Error::other("broken"))]);
            Response::builder().header("content-length", "100").body(Body::from_stream(broken)).unwrap()
        }
    }
}

/// HTTP that repeats twice without waiting.
pub fn http() -> Http {
    Http::with_pauses(&[Duration::ZERO, Duration::ZERO])
}

/// 12.34 EUR from a card, ordered so many hours ago.
pub fn order(method_type: PaymentMethodType, token: &str, hours_ago: i64) -> ChargeOrder {
    ChargeOrder {
        transaction_id: TransactionId(uuid::Uuid::from_u128(7)),
        ordered_at: Clock::System.now() - TimeDelta::hours(hours_ago),
        amount: Money::new(domain::money::parse_decimal("12.34").unwrap(), Currency::EUR).unwrap(),
        payment_method_id: PaymentMethodId(uuid::Uuid::from_u128(8)),
        method_type,
        token: token.to_owned(),
    }
}

/// An address where nobody listens.
pub async fn nowhere() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A refund of the whole order, ordered when that was.
pub fn refund_of(order: &ChargeOrder, charge_reference: &str) -> RefundOrder {
    RefundOrder {
        transaction_id: order.transaction_id,
        ordered_at: order.ordered_at,
        charge_reference: charge_reference.to_owned(),
        amount: order.amount,
        refunded_total: order.amount,
        payment_method_id: None,
    }
}
