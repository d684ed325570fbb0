//! Stripe's own mock server, which holds every request against Stripe's OpenAPI document: what we send must be known there.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use payments::gateway::ProviderSettings;
use payments::provider::http::Http;
use payments::provider::stripe::Stripe;
use payments::provider::{Gateway, Outcome, Subject};
use payments::words::PaymentMethodType;

use crate::server::{order, refund_of};

struct Mock {
    process: Child,
    url: String,
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(program: &Path) -> Mock {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let process = Command::new(program)
        .args(["-http-port", &port.to_string(), "-strict-version-check=false"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("stripe-mock starts");
    Mock { process, url: format!("http://127.0.0.1:{port}") }
}

#[tokio::test]
async fn stripe_knows_what_we_send() {
    let Some(program) = engines::testing::stripe_mock() else { return };
    let mock = start(&program);
    // Repeated until it listens.
    let http = Http::with_pauses(&[Duration::from_millis(250); 40]);
    let settings = ProviderSettings {
        statement_descriptor: Some("A shop".to_owned()),
        capture_method: domain::wire::Word::from_wire("automatic"),
        ..ProviderSettings::default()
    };
    let stripe = Stripe::new(http.to(&mock.url), "sk_test_123".to_owned(), settings);
    for method in [PaymentMethodType::CreditCard, PaymentMethodType::SepaDirectDebit, PaymentMethodType::Paypal] {
        let outcome = stripe.charge(&order(method, "pm_1", 0)).await;
        // The mock answers with one fixed intent that waits for a method: what matters is that nothing was refused as unknown.
        let known = match &outcome {
            Outcome::Declined(decline) => decline.reference.is_some(),
            Outcome::Succeeded { .. } | Outcome::Pending { .. } => true,
            Outcome::NotSent { .. } | Outcome::Unknown { .. } => false,
        };
        assert!(known, "{method}: {outcome:?}");
    }
    let card = order(PaymentMethodType::CreditCard, "pm_1", 0);
    let back = refund_of(&card, "pi_1");
    let refunded = stripe.refund(&back).await;
    assert!(matches!(refunded, Outcome::Succeeded { .. } | Outcome::Pending { .. }), "{refunded:?}");
    let status = stripe.status(Subject::Charge, "pi_1").await;
    assert!(!matches!(status, Outcome::Unknown { .. } | Outcome::NotSent { .. }), "{status:?}");
    // 24 hours later the order is searched for.
    let found = stripe.charge(&order(PaymentMethodType::CreditCard, "pm_1", 30)).await;
    assert!(!matches!(found, Outcome::Unknown { .. } | Outcome::NotSent { .. }), "{found:?}");
}
