//! What providers tell by themselves (payment-gateways.md, Webhooks from the providers). A message is believed for its
//! signature, an event has its effect once, and what is not known is no error: the provider would send it for days.

use std::collections::BTreeMap;

use domain::error::FieldErrorCode as Code;
use domain::{Error, Instant, PaymentGatewayId, ProviderID, Result, Scope, TransactionId, WorkspaceId};
use serde_json::Value;
use store::{StoreError, Tx};
use utoipa::ToSchema;

use crate::charge::{Attempt, record};
use crate::method;
use crate::provider::Outcome;
use crate::provider::gocardless::{self, GocardlessHappening};
use crate::provider::stripe::{self, StripeHappening};
use crate::words::PaymentMethodStatus;
use crate::{Payments, gateway, refund, transaction};

/// An event of Stripe, in Stripe's spelling.
#[derive(Clone, Debug, ToSchema)]
pub struct StripeEvent {
    /// Stripe's id of it; a repeated one has no effect.
    pub id: String,
    /// What happened, e.g. `payment_intent.succeeded`.
    #[schema(rename = "type")]
    pub event_type: String,
    /// What it happened to, under `object`.
    #[schema(value_type = Object)]
    pub data: Value,
    /// When, in Unix seconds.
    pub created: Option<i64>,
    /// Whether real money is concerned.
    pub livemode: Option<bool>,
}

/// Events of GoCardless, in its spelling.
#[derive(Clone, Debug, ToSchema)]
pub struct GoCardlessEvents {
    /// In order.
    #[schema(value_type = Vec<Object>)]
    pub events: Vec<Value>,
}

const WRONG_SIGNATURE: Error = Error::InvalidSignature("the message is not signed with the secret of this gateway");

/// A gateway whose provider speaks.
struct Speaker {
    id: PaymentGatewayId,
    provider: ProviderID,
    scope: Scope,
}

impl Payments {
    /// `POST /v1/webhooks/stripe/{gateway_id}`. `signature` is the header `Stripe-Signature`, `now` the machine's time.
    ///
    /// # Errors
    /// `NotFound` for the gateway; `InvalidSignature`; `BadRequest` or `Validation` for a body that is no event.
    pub async fn receive_stripe(
        &self,
        id: PaymentGatewayId,
        signature: Option<&str>,
        body: &[u8],
        now: Instant,
    ) -> Result<()> {
        let (speaker, secret) = self.speaker(id, ProviderID::Stripe).await?;
        let is_good = |secret: &String| stripe::verify_signature(signature.unwrap_or_default(), body, secret, now);
        if !secret.as_ref().is_some_and(is_good) {
            return Err(WRONG_SIGNATURE);
        }
        let event = json_of(body)?;
        let (event_id, event_type) = (text(&event, "id")?, text(&event, "type")?);
        let happening = stripe::read_event(event_type, &event["data"]["object"]);
        self.once(&speaker, event_id, event_type, now, async |tx| speaker.stripe(tx, &happening).await).await
    }

    /// `POST /v1/webhooks/gocardless/{gateway_id}`. `signature` is the header `Webhook-Signature`.
    ///
    /// # Errors
    /// As [`Payments::receive_stripe`]. Events before the one that fails keep their effect.
    pub async fn receive_gocardless(
        &self,
        id: PaymentGatewayId,
        signature: Option<&str>,
        body: &[u8],
        now: Instant,
    ) -> Result<()> {
        let (speaker, secret) = self.speaker(id, ProviderID::Gocardless).await?;
        let is_good = |secret: &String| gocardless::verify_signature(signature.unwrap_or_default(), body, secret);
        if !secret.as_ref().is_some_and(is_good) {
            return Err(WRONG_SIGNATURE);
        }
        let message = json_of(body)?;
        let Some(events) = message["events"].as_array() else {
            return Err(Error::field("events", Code::Required, "must be the list of events"));
        };
        for event in events {
            let (event_id, action) = (text(event, "id")?, text(event, "action")?);
            let happening = gocardless::read_event(event);
            self.once(&speaker, event_id, action, now, async |tx| speaker.gocardless(tx, &happening).await).await?;
        }
        Ok(())
    }

    async fn speaker(&self, id: PaymentGatewayId, provider: ProviderID) -> Result<(Speaker, Option<String>)> {
        let mut conn = self.store.pool().acquire().await.context("waiting for a database connection")?;
        let workspace: Option<WorkspaceId> = sqlx::query_scalar(
            "SELECT workspace_id FROM payment_gateway WHERE id = $1 AND provider = $2 AND deleted_at IS NULL",
        )
        .bind(id)
        .bind(provider)
        .fetch_optional(&mut *conn)
        .await
        .context("reading a payment gateway")?;
        let workspace = workspace.ok_or_else(|| Error::not_found("payment_gateway", id))?;
        let mut secrets: BTreeMap<_, _> = gateway::secrets(&mut conn, &self.vault, id).await?;
        let scope = self.system_scope(workspace).await?;
        Ok((Speaker { id, provider, scope }, secrets.remove("webhook_secret")))
    }

    /// Runs the effect of an event in one transaction with the note that it was had.
    async fn once(
        &self,
        speaker: &Speaker,
        event_id: &str,
        event_type: &str,
        now: Instant,
        effect: impl AsyncFnOnce(&mut Tx) -> Result<()>,
    ) -> Result<()> {
        let mut tx = self.store.begin("receive_provider_event").await?;
        let noted = sqlx::query(
            "INSERT INTO payment_gateway_event (gateway_id, event_id, workspace_id, event_type, received_at)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        )
        .bind(speaker.id)
        .bind(event_id)
        .bind(speaker.scope.workspace_id)
        .bind(event_type)
        .bind(now)
        .execute(tx.conn())
        .await
        .context("noting an event of a provider");
        let done = match noted {
            Ok(noted) if noted.rows_affected() == 0 => Ok(()),
            Ok(_) => effect(&mut tx).await,
            Err(error) => Err(error),
        };
        tx.end(done).await
    }
}

impl Speaker {
    async fn stripe(&self, tx: &mut Tx, happening: &StripeHappening) -> Result<()> {
        let scope = &self.scope;
        match happening {
            StripeHappening::Payment { transaction_id, outcome } => {
                let named = match transaction_id {
                    Some(id) => self.ours(tx, TransactionId(*id)).await?,
                    None => None,
                };
                let id = match (named, reference_of(outcome)) {
                    (None, Some(reference)) => self.find(tx, reference).await?,
                    (named, _) => named,
                };
                self.outcome(tx, id, outcome).await
            }
            StripeHappening::Refunded { payment_intent, refunded } => {
                let Some(id) = self.find(tx, payment_intent).await? else { return Ok(()) };
                let currency = transaction::get(scope, tx.conn(), id).await?.amount.currency();
                match stripe::from_minor_units(*refunded, currency) {
                    Some(total) => refund::given_back(scope, tx, id, total).await,
                    None => Err(Error::field("data.object.amount_refunded", Code::OutOfRange, "cannot be booked")),
                }
            }
            StripeHappening::Disputed { payment_intent, reason } => match self.find(tx, payment_intent).await? {
                Some(id) => refund::contested(scope, tx, id, reason).await,
                None => Ok(()),
            },
            StripeHappening::MethodDetached { token } => {
                method::token_ended(scope, tx, self.provider, token, PaymentMethodStatus::Removed).await
            }
            StripeHappening::MethodUpdated { token, card } => {
                method::token_shown(scope, tx, self.provider, token, card).await
            }
            StripeHappening::Other => Ok(()),
        }
    }

    async fn gocardless(&self, tx: &mut Tx, happening: &GocardlessHappening) -> Result<()> {
        let scope = &self.scope;
        match happening {
            // References of charges and of refunds are one name space. Refunds of GoCardless' own site name nothing of ours.
            GocardlessHappening::Payment { reference, outcome } => {
                let id = self.find(tx, reference).await?;
                self.outcome(tx, id, outcome).await
            }
            GocardlessHappening::Other => Ok(()),
            GocardlessHappening::ChargedBack { reference, reason } => match self.find(tx, reference).await? {
                Some(id) => refund::charged_back(scope, tx, id, reason).await,
                None => Ok(()),
            },
            GocardlessHappening::MandateEnded { mandate, status } => {
                method::token_ended(scope, tx, self.provider, mandate, *status).await
            }
        }
    }

    async fn find(&self, tx: &mut Tx, reference: &str) -> Result<Option<TransactionId>> {
        transaction::by_reference(&self.scope, tx.conn(), self.id, reference).await
    }

    /// A transaction of this gateway; ids in metadata could be anybody's.
    async fn ours(&self, tx: &mut Tx, id: TransactionId) -> Result<Option<TransactionId>> {
        match transaction::get(&self.scope, tx.conn(), id).await {
            Ok(row) => Ok((row.gateway_id == Some(self.id)).then_some(id)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn outcome(&self, tx: &mut Tx, id: Option<TransactionId>, outcome: &Outcome) -> Result<()> {
        match id {
            Some(id) => record(&self.scope, tx, id, outcome, Attempt::Again).await.map(drop),
            None => Ok(()),
        }
    }
}

fn reference_of(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Succeeded { reference } | Outcome::Pending { reference } => Some(reference),
        Outcome::Declined(decline) => decline.reference.as_deref(),
        Outcome::NotSent { .. } | Outcome::Unknown { .. } => None,
    }
}

fn json_of(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body).map_err(|error| Error::BadRequest {
        code: "BAD_REQUEST",
        detail: format!("the body is not valid JSON: {error}"),
    })
}

fn text<'a>(event: &'a Value, name: &'static str) -> Result<&'a str> {
    match event[name].as_str().filter(|text| (1..=255).contains(&text.len()) && !text.contains('\0')) {
        Some(text) => Ok(text),
        None => Err(Error::field(name, Code::Required, "must be a string of 1 to 255 characters")),
    }
}
