//! Bodies of reservations (reserve.md 2). Amounts of usage are quantities: what they cost is found here, not sent.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::event::Vars;
use domain::input::{Field, FieldResult};
use domain::{Currency, CustomerId, Error, Input, JsonMap, ProductId, Quantity, Result, SubscriptionId};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;

use crate::door::wire::{METRIC_KEY_MAX, PRICE_KEY_MAX, read_var_map};
use domain::event::{DimensionVars, PricingVars};

/// `internal.reserve.ReserveRequest`.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ReserveRequest {
    /// Who will pay.
    pub customer_id: CustomerId,
    /// What is priced.
    pub product_id: ProductId,
    /// How much; above zero.
    pub quantity: Quantity,
    /// A repeat with the same key answers 200 with the first result.
    pub idempotency_key: String,
    /// Default: the customer's only running subscription that has the product.
    pub subscription_id: Option<SubscriptionId>,
    /// Default: the only metric that the product is billed by.
    pub metric_key: Option<String>,
    /// For keyed products.
    pub price_key: Option<String>,
    /// Default now + 15 minutes; 1 second to 30 days ahead.
    pub hold_expires_at: Option<DateTime<Utc>>,
    /// Default: the primary wallet.
    pub wallet_currency: Option<Currency>,
    /// Upstream cost.
    #[schema(value_type = Option<String>)]
    pub external_cost_amount: Option<Decimal>,
    /// Its currency.
    pub external_cost_currency: Option<Currency>,
    /// Read by formulas.
    #[schema(value_type = Option<PricingVars>)]
    pub pricing_vars: Vars,
    /// Read by filters and price resolution.
    #[schema(value_type = Option<DimensionVars>)]
    pub dimension_vars: Vars,
    /// The caller's own, kept with the movements of the wallet.
    #[schema(value_type = Option<Object>)]
    pub metadata: JsonMap,
}

impl ReserveRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let customer_id = input.required("customer_id", Field::id);
        let product_id = input.required("product_id", Field::id);
        let quantity = input.required("quantity", above_zero);
        let idempotency_key = input.required("idempotency_key", |v| v.text(1, 255));
        let subscription_id = input.optional("subscription_id", Field::id);
        let metric_key = input.optional("metric_key", |v| v.text(1, METRIC_KEY_MAX));
        let price_key = input.optional("price_key", |v| v.text(1, PRICE_KEY_MAX));
        let hold_expires_at = input.optional("hold_expires_at", Field::instant);
        let wallet_currency = input.optional("wallet_currency", Field::currency);
        let external_cost_amount = input.optional("external_cost_amount", Field::rate);
        let external_cost_currency = input.optional("external_cost_currency", Field::currency);
        match (external_cost_amount, external_cost_currency) {
            (Some(_), None) if !input.has("external_cost_currency") => {
                input.error("external_cost_currency", Code::Required, "is required beside external_cost_amount");
            }
            (None, Some(_)) if !input.has("external_cost_amount") => {
                input.error("external_cost_amount", Code::Required, "is required beside external_cost_currency");
            }
            _ => {}
        }
        let pricing_vars = input.optional("pricing_vars", read_var_map).unwrap_or_default();
        let dimension_vars = input.optional("dimension_vars", read_var_map).unwrap_or_default();
        let metadata = input.optional("metadata", Field::metadata).unwrap_or_default();
        input.finish()?;
        let all = || {
            Some(Self {
                customer_id: customer_id?,
                product_id: product_id?,
                quantity: quantity?,
                idempotency_key: idempotency_key?,
                subscription_id,
                metric_key,
                price_key,
                hold_expires_at,
                wallet_currency,
                external_cost_amount,
                external_cost_currency,
                pricing_vars,
                dimension_vars,
                metadata: metadata.into_iter().filter(|(_, value)| !value.is_null()).collect(),
            })
        };
        all().ok_or_else(|| Error::invariant("a required member passed unread"))
    }
}

fn above_zero(field: Field<'_>) -> FieldResult<Quantity> {
    let refused: FieldResult<Quantity> = field.refuse(Code::OutOfRange, "must be above zero");
    let quantity = field.quantity_not_negative()?;
    if quantity.is_zero() { refused } else { Ok(quantity) }
}

/// `ReleaseReservationRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, utoipa::ToSchema)]
pub struct ReleaseReservationRequest {
    /// Why it is given back; up to 500 characters.
    pub reason: Option<String>,
}

impl ReleaseReservationRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let reason = input.optional("reason", |v| v.text(1, 500));
        input.finish()?;
        Ok(Self { reason })
    }
}
