//! The provider of sandboxes: no money, no network; the newest simulation of the payment method decides
//! (test-payment-simulations.md).

use async_trait::async_trait;
use store::{Store, StoreError};

use super::{ChargeOrder, Gateway, Outcome, RefundOrder, Subject};
use crate::simulation;
use crate::words::FailureCode;

/// The simulated provider.
pub struct Simulated {
    store: Store,
}

impl Simulated {
    /// Over the database of the simulations.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Gateway for Simulated {
    async fn charge(&self, order: &ChargeOrder) -> Outcome {
        let simulated = async {
            let mut conn = self.store.pool().acquire().await.context("waiting for a database connection")?;
            simulation::outcome_of(&mut conn, order.payment_method_id).await
        };
        let reference = format!("sim_{}", order.transaction_id.0.simple());
        match simulated.await {
            Ok(outcome) => match outcome.failure() {
                None => Outcome::Succeeded { reference },
                Some(FailureCode::NetworkError) => Outcome::NotSent { detail: "simulated network error".to_owned() },
                Some(code) => {
                    let message = format!("simulated outcome {code}");
                    Outcome::declined(code, message, Some(reference))
                }
            },
            Err(error) => Outcome::Unknown { detail: error.to_string() },
        }
    }

    async fn refund(&self, order: &RefundOrder) -> Outcome {
        Outcome::Succeeded { reference: format!("sim_{}", order.transaction_id.0.simple()) }
    }

    async fn status(&self, _: Subject, reference: &str) -> Outcome {
        Outcome::Succeeded { reference: reference.to_owned() }
    }
}
