//! Bodies of price writes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{
    BillingIntervalUnit, Currency, CustomerId, Input, Instant, JsonMap, Patch, PlanId, ProductId, Quantity, Result,
};
use rust_decimal::Decimal;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{PriceKind, PriceTier};
use crate::version::{EditControls, check_span};

/// Units of one billing interval.
const INTERVAL_COUNT_MAX: i64 = 1_000;

/// One step of a new price.
#[derive(Clone, Debug, PartialEq, ToSchema)]
pub struct CreatePriceTierRequest {
    /// Default: position in the list, from 1.
    pub tier_order: Option<u32>,
    /// Inclusive upper bound; null on the last tier.
    pub up_to: Option<Quantity>,
    /// Default `"0"`.
    #[schema(value_type = Option<String>)]
    pub unit_amount: Option<Decimal>,
    /// Default `"0"`.
    #[schema(value_type = Option<String>)]
    pub flat_amount: Option<Decimal>,
    /// Formula in place of `unit_amount`.
    pub rate_expression: Option<String>,
}

impl CreatePriceTierRequest {
    fn read(field: Field<'_>) -> FieldResult<Self> {
        field.object(|input| {
            let tier_order = input.optional("tier_order", |v| v.integer(0, i64::from(u32::MAX)));
            Some(Self {
                tier_order: tier_order.and_then(|order| u32::try_from(order).ok()),
                up_to: input.optional("up_to", Field::quantity),
                unit_amount: input.optional("unit_amount", Field::rate),
                flat_amount: input.optional("flat_amount", Field::rate),
                rate_expression: input.optional("rate_expression", |v| v.text(1, 2_000)),
            })
        })
    }
}

/// The steps with their defaults.
pub(super) fn numbered(tiers: &[CreatePriceTierRequest]) -> Vec<PriceTier> {
    let numbered = tiers.iter().zip(1_u32..).map(|(tier, position)| PriceTier {
        tier_order: tier.tier_order.unwrap_or(position),
        up_to: tier.up_to,
        unit_amount: tier.unit_amount.unwrap_or_default(),
        flat_amount: tier.flat_amount.unwrap_or_default(),
        rate_expression: tier.rate_expression.clone(),
    });
    numbered.collect()
}

fn read_tiers(field: Field<'_>) -> FieldResult<Vec<CreatePriceTierRequest>> {
    field.list(1, rating::pricing::TIERS_MAX, CreatePriceTierRequest::read)
}

/// Body of `POST /v1/prices`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreatePriceRequest {
    /// What is priced.
    pub product_id: ProductId,
    /// ISO 4217, upper case.
    #[schema(value_type = String)]
    pub currency: Currency,
    /// Restricts it to a plan.
    pub plan_id: Option<PlanId>,
    /// Makes it a customer override.
    pub customer_id: Option<CustomerId>,
    /// Restricts it to a market.
    pub country_code: Option<String>,
    /// Required on keyed products, forbidden otherwise.
    pub price_key: Option<String>,
    /// Default `CUSTOMER_OVERRIDE` with a customer, else `BASE`.
    pub kind: Option<PriceKind>,
    /// Headline price; without tiers and formula it is the amount.
    #[schema(value_type = Option<String>)]
    pub list_price: Option<Decimal>,
    /// 1 to 100 steps; the last one is open.
    pub tiers: Option<Vec<CreatePriceTierRequest>>,
    /// Formula in place of tiers.
    pub formula_id: Option<Uuid>,
    /// Label for customers.
    pub display_name: Option<String>,
    /// Dimension → value, matched in resolution.
    pub custom_dimensions: Option<BTreeMap<String, String>>,
    /// Fits only subscriptions of this interval.
    pub billing_interval_unit: Option<BillingIntervalUnit>,
    /// Default 1.
    pub billing_interval_count: Option<i32>,
    /// Start of the first version; default: since ever.
    pub effective_from: Option<DateTime<Utc>>,
    /// End of the first version, exclusive.
    pub effective_to: Option<DateTime<Utc>>,
    /// Start of the price itself.
    pub valid_from: Option<DateTime<Utc>>,
    /// End of the price itself, exclusive.
    pub valid_to: Option<DateTime<Utc>>,
    /// Timeline flag.
    pub requires_continuous_coverage: Option<bool>,
    /// Free bag.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
    /// Keeps it a draft; default false.
    pub save_as_draft: Option<bool>,
}

impl CreatePriceRequest {
    /// Reads the body. The tiers are checked with the product's model when the price is created.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let product_id = i.required("product_id", Field::id);
        let currency = i.required("currency", Field::currency);
        let count = i.optional("billing_interval_count", |v| v.integer(1, INTERVAL_COUNT_MAX));
        let request = Self {
            product_id: product_id.unwrap_or(ProductId(Uuid::nil())), // `finish` refuses a missing one
            currency: currency.unwrap_or(Currency::EUR),
            plan_id: i.optional("plan_id", Field::id),
            customer_id: i.optional("customer_id", Field::id),
            country_code: i.optional("country_code", Field::country),
            price_key: i.optional("price_key", |v| v.text(1, 255)),
            kind: i.optional("kind", Field::word),
            list_price: i.optional("list_price", Field::rate),
            tiers: i.optional("tiers", read_tiers),
            formula_id: i.optional("formula_id", Field::id),
            display_name: i.optional("display_name", |v| v.text(1, 255)),
            custom_dimensions: i.optional("custom_dimensions", |v| v.map_of(50, 64, |value| value.text(0, 255))),
            billing_interval_unit: i.optional("billing_interval_unit", Field::word),
            billing_interval_count: count.and_then(|count| i32::try_from(count).ok()),
            effective_from: i.optional("effective_from", Field::instant),
            effective_to: i.optional("effective_to", Field::instant),
            valid_from: i.optional("valid_from", Field::instant),
            valid_to: i.optional("valid_to", Field::instant),
            requires_continuous_coverage: i.optional("requires_continuous_coverage", Field::boolean),
            metadata: i.optional("metadata", Field::metadata),
            save_as_draft: i.optional("save_as_draft", Field::boolean),
        };
        request.check(i, body.get("tiers").is_some_and(|tiers| !tiers.is_null()));
        input.finish()?;
        Ok(request)
    }

    fn check(&self, input: &mut Input<'_>, tiers_sent: bool) {
        if !tiers_sent && !input.is_bad() && self.list_price.is_none() && self.formula_id.is_none() {
            input.error("tiers", Code::Required, "is required without list_price and formula_id");
        }
        if self.billing_interval_count.is_some() && self.billing_interval_unit.is_none() {
            input.error("billing_interval_count", Code::NotAllowed, "needs billing_interval_unit");
        }
        let once = self.billing_interval_unit == Some(BillingIntervalUnit::OneTime);
        if once && self.billing_interval_count.is_some_and(|count| count != 1) {
            input.error("billing_interval_count", Code::OutOfRange, "must be 1 for one_time");
        }
        check_span(input, "effective_to", self.effective_from, self.effective_to);
        check_span(input, "valid_to", self.valid_from, self.valid_to);
    }
}

/// Body of `PUT /v1/prices/{id}`: the members that are sent. What and whom it prices is fixed at creation.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct UpdatePriceRequest {
    /// Headline price; the one step that was made of it follows it.
    #[schema(value_type = Option<String>)]
    pub list_price: Option<Decimal>,
    /// 1 to 100 steps; the last one is open.
    pub tiers: Option<Vec<CreatePriceTierRequest>>,
    /// Formula in place of tiers.
    #[schema(value_type = Option<Uuid>)]
    pub formula_id: Patch<Uuid>,
    /// Label for customers.
    #[schema(value_type = Option<String>)]
    pub display_name: Patch<String>,
    /// End of the version, exclusive; null: open.
    #[schema(value_type = Option<DateTime<Utc>>)]
    pub effective_to: Patch<Instant>,
    /// Start of the price itself, changed at once.
    #[schema(value_type = Option<DateTime<Utc>>)]
    pub valid_from: Patch<Instant>,
    /// End of the price itself, exclusive, changed at once.
    #[schema(value_type = Option<DateTime<Utc>>)]
    pub valid_to: Patch<Instant>,
    /// Timeline flag.
    pub requires_continuous_coverage: Option<bool>,
    /// Keys that are sent replace, null removes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
    /// When the new version takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps the edit a draft.
    pub save_as_draft: Option<bool>,
    /// Refused when the price is at another version.
    pub expected_version: Option<i64>,
    /// Whether nothing was sent that needs a new version.
    #[schema(ignore)]
    pub(super) is_live_edit: bool,
    #[schema(ignore)]
    pub(super) controls: EditControls,
}

impl UpdatePriceRequest {
    /// Reads the body. The tiers are checked with the product's model when the price is changed.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let live = ["valid_from", "valid_to", "expected_version"];
        let sent = body.as_object().into_iter().flat_map(JsonMap::keys);
        let controls = EditControls::read(i);
        let request = Self {
            list_price: i.optional("list_price", Field::rate),
            tiers: i.optional("tiers", read_tiers),
            formula_id: i.patch("formula_id", Field::id),
            display_name: i.patch("display_name", |v| v.text(1, 255)),
            effective_to: i.patch("effective_to", Field::instant),
            valid_from: i.patch("valid_from", Field::instant),
            valid_to: i.patch("valid_to", Field::instant),
            requires_continuous_coverage: i.optional("requires_continuous_coverage", Field::boolean),
            metadata: i.optional("metadata", Field::metadata),
            effective_at: controls.effective_at,
            save_as_draft: Some(controls.save_as_draft),
            expected_version: controls.expected_version,
            is_live_edit: sent.clone().count() > 0 && sent.clone().all(|name| live.contains(&name.as_str())),
            controls,
        };
        input.finish()?;
        Ok(request)
    }

    /// Whether the span of the price itself was sent.
    pub(super) fn has_window(&self) -> bool {
        self.valid_from.is_sent() || self.valid_to.is_sent()
    }
}

/// Body of `POST /v1/prices/{id}/versions/{vid}/copy-as-draft`.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct CopyPriceAsDraftRequest {
    /// When the draft shall take effect once it is published; default: at its publication.
    pub effective_at: Option<DateTime<Utc>>,
    /// Another headline price.
    #[schema(value_type = Option<String>)]
    pub list_price: Option<Decimal>,
    /// Other steps.
    pub tiers: Option<Vec<CreatePriceTierRequest>>,
}

impl CopyPriceAsDraftRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self {
            effective_at: input.optional("effective_at", Field::instant),
            list_price: input.optional("list_price", Field::rate),
            tiers: input.optional("tiers", read_tiers),
        };
        input.finish()?;
        Ok(request)
    }
}

impl From<CopyPriceAsDraftRequest> for UpdatePriceRequest {
    fn from(request: CopyPriceAsDraftRequest) -> Self {
        let controls = EditControls { effective_at: request.effective_at, ..EditControls::default() };
        Self { list_price: request.list_price, tiers: request.tiers, controls, ..Self::default() }
    }
}
