//! Bodies of price resolution and computation.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::event::{DimensionVars, PricingVars, VarValue, Vars};
use domain::input::{Field, FieldResult};
use domain::{Currency, CustomerId, Input, PlanId, PriceId, ProductId, Quantity, Result, SubscriptionId};
use rust_decimal::Decimal;
use serde_json::Value;
use utoipa::ToSchema;

use crate::door::wire::read_var_map;

/// Body of `POST /v1/prices/resolve`.
#[derive(Clone, Debug, ToSchema)]
pub struct ResolvePriceRequest {
    /// What is priced.
    pub product_id: ProductId,
    /// Plan of the caller.
    pub plan_id: Option<PlanId>,
    /// Its version; default: the newest published one.
    pub plan_version: Option<i32>,
    /// Customer of the caller.
    pub customer_id: Option<CustomerId>,
    /// Takes plan, customer, country, currency and interval from a subscription.
    pub subscription_id: Option<SubscriptionId>,
    /// Default: the customer's billing country.
    pub country_code: Option<String>,
    /// For keyed products.
    pub price_key: Option<String>,
    /// The price must be in it.
    #[schema(value_type = Option<String>)]
    pub currency: Option<Currency>,
    /// Dimension → value.
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    pub custom_dimensions: Vars,
    /// Default: now.
    pub at_time: Option<DateTime<Utc>>,
}

impl ResolvePriceRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self::read_members(&mut input);
        input.finish()?;
        request.ok_or_else(|| domain::Error::field("product_id", Code::Required, "is required"))
    }

    fn read_members(input: &mut Input<'_>) -> Option<Self> {
        let product_id = input.required("product_id", Field::id);
        let plan_id = input.optional("plan_id", Field::id);
        let plan_version = input.optional("plan_version", |v| v.integer(1, i64::from(i32::MAX)));
        if plan_version.is_some() && plan_id.is_none() && !input.has("plan_id") {
            input.error("plan_version", Code::NotAllowed, "needs plan_id");
        }
        let customer_id = input.optional("customer_id", Field::id);
        let subscription_id = input.optional("subscription_id", Field::id);
        let country_code = input.optional("country_code", |v| v.text(2, 2));
        let price_key = input.optional("price_key", |v| v.text(1, 64));
        let currency = input.optional("currency", Field::currency);
        let custom_dimensions = input.optional("custom_dimensions", |v| v.map_of(50, 64, |value| value.text(0, 255)));
        let at_time = input.optional("at_time", Field::instant);
        let dimensions = custom_dimensions.unwrap_or_default().into_iter();
        Some(Self {
            product_id: product_id?,
            plan_id,
            plan_version: plan_version.and_then(|number| i32::try_from(number).ok()),
            customer_id,
            subscription_id,
            country_code,
            price_key,
            currency,
            custom_dimensions: dimensions
                .map(|(name, value): (String, String)| (name, VarValue::Text(value)))
                .collect(),
            at_time,
        })
    }

    fn read_nested(field: Field<'_>) -> FieldResult<Self> {
        field.object(Self::read_members)
    }
}

/// Body of `POST /v1/prices/compute`.
#[derive(Clone, Debug, ToSchema)]
pub struct ComputePriceRequest {
    /// A price; or `resolve`.
    pub price_id: Option<PriceId>,
    /// Finds the price that applies; or `price_id`.
    pub resolve: Option<ResolvePriceRequest>,
    /// What is priced.
    pub quantity: Quantity,
    /// Default: now.
    pub at_time: Option<DateTime<Utc>>,
    /// Read by expressions.
    #[schema(value_type = Option<PricingVars>)]
    pub pricing_vars: Vars,
    /// Read by expressions.
    #[schema(value_type = Option<DimensionVars>)]
    pub dimension_vars: Vars,
    /// Upstream cost.
    #[schema(value_type = Option<String>)]
    pub external_cost_amount: Option<Decimal>,
    /// Its currency.
    #[schema(value_type = Option<String>)]
    pub external_cost_currency: Option<Currency>,
}

impl ComputePriceRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let price_id = input.optional("price_id", Field::id);
        let resolve = input.optional("resolve", ResolvePriceRequest::read_nested);
        if price_id.is_some() == resolve.is_some() && !input.is_bad() {
            input.error("price_id", Code::Required, "give one of price_id and resolve");
        }
        let quantity = input.required("quantity", Field::quantity);
        let at_time = input.optional("at_time", Field::instant);
        let pricing_vars = input.optional("pricing_vars", read_var_map).unwrap_or_default();
        let dimension_vars = input.optional("dimension_vars", read_var_map).unwrap_or_default();
        let external_cost_amount = input.optional("external_cost_amount", Field::rate);
        let external_cost_currency = input.optional("external_cost_currency", Field::currency);
        if external_cost_amount.is_some() != external_cost_currency.is_some() && !input.is_bad() {
            input.error("external_cost_amount", Code::Required, "amount and currency of the cost belong together");
        }
        input.finish()?;
        Ok(Self {
            price_id,
            resolve,
            quantity: quantity.unwrap_or_default(), // `finish` refuses what is missing
            at_time,
            pricing_vars,
            dimension_vars,
            external_cost_amount,
            external_cost_currency,
        })
    }
}
