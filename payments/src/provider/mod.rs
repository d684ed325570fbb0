//! Outside processors behind one interface. A [`Gateway`] knows no database and no rules: it asks a provider and says what
//! the provider said.
//!
//! Every order carries the id of our transaction, which the provider gets as its idempotency key: asking twice moves money
//! once. What an answer means is an [`Outcome`]; in doubt it is [`Outcome::Unknown`], and whoever asked asks again.

pub mod gocardless;
pub mod http;
pub mod simulated;
pub mod stripe;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::TimeDelta;
use domain::{Instant, Money, PaymentMethodId, ProviderID, Result, TransactionId, WorkspaceMode};
use store::Store;

use crate::gateway::ProviderSettings;
use crate::words::{FailureCode, PaymentMethodType};

/// Money to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChargeOrder {
    /// Our transaction: the provider's idempotency key.
    pub transaction_id: TransactionId,
    /// When the transaction was written, in real time: how old the idempotency key is at most.
    pub ordered_at: Instant,
    /// What is taken.
    pub amount: Money,
    /// The instrument.
    pub payment_method_id: PaymentMethodId,
    /// Its kind.
    pub method_type: PaymentMethodType,
    /// The provider's token of it.
    pub token: String,
}

/// Money to be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefundOrder {
    /// Our transaction: the provider's idempotency key.
    pub transaction_id: TransactionId,
    /// When the transaction was written, in real time: how old the idempotency key is at most.
    pub ordered_at: Instant,
    /// The provider's reference of the charge.
    pub charge_reference: String,
    /// What is given back.
    pub amount: Money,
    /// What was given back of the charge before, and this.
    pub refunded_total: Money,
    /// The instrument that was charged, where it is known.
    pub payment_method_id: Option<PaymentMethodId>,
}

/// What a reference of a provider names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Money that was taken.
    Charge,
    /// Money that was given back.
    Refund,
}

/// Why a provider refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decline {
    /// In our words; says whether it may pass.
    pub code: FailureCode,
    /// In the provider's.
    pub message: String,
    /// The provider's name of the attempt, where it has one.
    pub reference: Option<String>,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The money has moved.
    Succeeded {
        /// The provider's name of it.
        reference: String,
    },
    /// The provider has taken the order and tells later.
    Pending {
        /// The provider's name of it.
        reference: String,
    },
    /// The money has not moved and will not.
    Declined(Decline),
    /// The order has not reached the provider: nothing was done.
    NotSent {
        /// For operators.
        detail: String,
    },
    /// The order may have reached the provider: nobody knows before it is asked again.
    Unknown {
        /// For operators.
        detail: String,
    },
}

impl Outcome {
    /// A refusal for good.
    pub(crate) fn declined(code: FailureCode, message: impl Into<String>, reference: Option<String>) -> Self {
        Self::Declined(Decline { code, message: message.into(), reference })
    }
}

impl From<http::CallError> for Outcome {
    fn from(error: http::CallError) -> Self {
        match error {
            http::CallError::NotSent(detail) => Self::NotSent { detail },
            http::CallError::Lost(detail) => Self::Unknown { detail },
        }
    }
}

/// One account at a provider.
#[async_trait]
pub trait Gateway: Send + Sync {
    /// Takes money, once for each transaction id however often it is asked. An order whose idempotency key the provider has
    /// forgotten is looked for, never sent again.
    async fn charge(&self, order: &ChargeOrder) -> Outcome;

    /// Gives money back, once for each transaction id however often it is asked; as [`Gateway::charge`].
    async fn refund(&self, order: &RefundOrder) -> Outcome;

    /// What became of an order that the provider has taken.
    async fn status(&self, subject: Subject, reference: &str) -> Outcome;
}

/// What is needed to talk to a provider.
#[derive(Clone)]
pub struct Account {
    /// The processor.
    pub provider: ProviderID,
    /// Live, or a sandbox where nothing real is asked.
    pub mode: WorkspaceMode,
    /// The provider's secrets by name; empty in a sandbox, which needs none.
    pub secrets: BTreeMap<String, String>,
    /// Options that are no secrets.
    pub settings: ProviderSettings,
}

/// Makes gateways: the real ones, or what tests put in their place.
pub trait Gateways: Send + Sync {
    /// Whether payments of a workspace of this mode can go through a provider.
    fn can_charge(&self, mode: WorkspaceMode, provider: ProviderID) -> bool;

    /// The gateway of an account.
    ///
    /// # Errors
    /// `Internal` for a provider that [`Gateways::can_charge`] does not name, and without an API key.
    fn open(&self, account: &Account) -> Result<Arc<dyn Gateway>>;
}

/// Where providers are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Stripe's API.
    pub stripe: String,
    /// GoCardless' API.
    pub gocardless: String,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self { stripe: "https://api.stripe.com".to_owned(), gocardless: "https://api.gocardless.com".to_owned() }
    }
}

/// The providers of this house: simulated in sandboxes, Stripe and GoCardless in live workspaces.
pub struct Adapters {
    store: Store,
    http: http::Http,
    endpoints: Endpoints,
}

impl Adapters {
    /// With a database for the simulations, and where the others are.
    #[must_use]
    pub fn new(store: Store, endpoints: Endpoints) -> Self {
        Self { store, http: http::Http::default(), endpoints }
    }

    /// The same, repeating calls after other pauses.
    #[must_use]
    pub fn with_http(mut self, http: http::Http) -> Self {
        self.http = http;
        self
    }
}

impl Gateways for Adapters {
    fn can_charge(&self, mode: WorkspaceMode, provider: ProviderID) -> bool {
        mode == WorkspaceMode::Sandbox || matches!(provider, ProviderID::Stripe | ProviderID::Gocardless)
    }

    fn open(&self, account: &Account) -> Result<Arc<dyn Gateway>> {
        if account.mode == WorkspaceMode::Sandbox {
            return Ok(Arc::new(simulated::Simulated::new(self.store.clone())));
        }
        let key = crate::gateway::api_key(&account.secrets)?;
        match account.provider {
            ProviderID::Stripe => {
                let http = self.http.to(&self.endpoints.stripe);
                Ok(Arc::new(stripe::Stripe::new(http, key, account.settings.clone())))
            }
            ProviderID::Gocardless => {
                let http = self.http.to(&self.endpoints.gocardless);
                Ok(Arc::new(gocardless::Gocardless::new(http, key, account.settings.clone())))
            }
            other => Err(domain::Error::invariant(format!("no adapter talks to {other}"))),
        }
    }
}

/// How long a provider remembers an idempotency key, less an hour for the clocks of both sides.
pub(crate) fn is_forgotten(ordered_at: Instant, now: Instant, remembered: TimeDelta) -> bool {
    now - ordered_at > remembered - TimeDelta::hours(1)
}
