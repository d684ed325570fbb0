//! Request bodies of subscriptions.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::{
    BillingIntervalUnit, BillingTiming, Currency, CustomerId, Input, Instant, JsonMap, PlanId, PriceId, ProductId,
    Quantity, Result, TestClockId,
};
use rust_decimal::Decimal;
use serde_json::Value;
use utoipa::ToSchema;

use super::words::{CancellationReason, ProrationType};

/// Longest trial and longest interval multiplier: ten years of days.
const DAYS_MAX: i64 = 3_650;

/// `domain.CreateSubscriptionRequest`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreateSubscriptionRequest {
    /// The owning customer.
    pub customer_id: CustomerId,
    /// A published plan.
    pub plan_id: PlanId,
    /// Authoritative for everything below it.
    pub currency: Currency,
    /// Unit of a period's length.
    pub billing_interval_unit: BillingIntervalUnit,
    /// Multiplier; default 1.
    #[schema(value_type = Option<i32>)]
    pub billing_interval_count: i32,
    /// 1 to 28; default the day of the first charged period.
    pub billing_anchor_day: Option<i32>,
    /// Default IN_ADVANCE.
    #[schema(value_type = Option<BillingTiming>)]
    pub billing_timing: BillingTiming,
    /// Default true.
    #[schema(value_type = Option<bool>)]
    pub auto_renew: bool,
    /// Default the head version.
    pub plan_version: Option<i32>,
    /// Default one item per product of the plan.
    pub items: Option<Vec<SubscriptionItemInput>>,
    /// Later phases; not available yet.
    #[schema(value_type = Option<Vec<Object>>)]
    pub phases: (),
    /// Length of a trial.
    pub trial_duration_days: Option<i32>,
    /// Default now; in the future the subscription is PENDING until then.
    pub started_at: Option<DateTime<Utc>>,
    /// Over those of customer and organization.
    pub payment_terms_days: Option<i32>,
    /// Promotions; not available yet.
    #[schema(value_type = Option<Vec<String>>)]
    pub promotion_codes: (),
    /// Label.
    pub name: Option<String>,
    /// For the team.
    pub description: Option<String>,
    /// For the customer.
    pub public_description: Option<String>,
    /// Must be the customer's clock.
    pub test_clock_id: Option<TestClockId>,
    /// Typed values.
    #[schema(value_type = Option<Object>)]
    pub custom_fields: JsonMap,
    /// Free values.
    #[schema(value_type = Option<Object>)]
    pub metadata: JsonMap,
}

/// `domain.SubscriptionItemInput`.
#[derive(Clone, Debug, PartialEq, ToSchema)]
pub struct SubscriptionItemInput {
    /// What is charged.
    pub product_id: ProductId,
    /// A fixed price; else it is resolved for each period.
    pub price_id: Option<PriceId>,
    /// Sibling of a keyed product.
    pub price_key: Option<String>,
    /// Default 1.
    #[schema(value_type = Option<String>)]
    pub quantity: Quantity,
    /// Own rate.
    #[schema(value_type = Option<String>)]
    pub unit_amount: Option<Decimal>,
    /// Own allowance.
    #[schema(value_type = Option<String>)]
    pub included_quantity: Option<Quantity>,
    /// Free values.
    #[schema(value_type = Option<Object>)]
    pub metadata: JsonMap,
}

impl SubscriptionItemInput {
    /// One item of quantity 1.
    #[must_use]
    pub fn of(product_id: ProductId) -> Self {
        Self {
            product_id,
            price_id: None,
            price_key: None,
            quantity: Quantity::ONE,
            unit_amount: None,
            included_quantity: None,
            metadata: JsonMap::new(),
        }
    }

    fn read(input: &mut Input<'_>) -> Option<Self> {
        let product_id = input.required("product_id", Field::id);
        let price_id = input.optional("price_id", Field::id);
        let price_key = input.optional("price_key", |v| v.text(1, 64));
        let quantity = input.optional("quantity", Field::quantity_not_negative);
        let unit_amount = input.optional("unit_amount", Field::rate);
        let included_quantity = input.optional("included_quantity", Field::quantity_not_negative);
        let metadata = input.optional("metadata", Field::metadata);
        Some(Self {
            product_id: product_id?,
            price_id,
            price_key,
            quantity: quantity.unwrap_or(Quantity::ONE),
            unit_amount,
            included_quantity,
            metadata: metadata.unwrap_or_default(),
        })
    }
}

fn whole(value: Option<i64>) -> Option<i32> {
    value.and_then(|value| i32::try_from(value).ok()) // bounded by the reader
}

impl CreateSubscriptionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// `Validation` with every field that is wrong.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let customer_id = input.required("customer_id", Field::id);
        let plan_id = input.required("plan_id", Field::id);
        let currency = input.required("currency", Field::currency);
        let unit = input.required("billing_interval_unit", Field::word);
        let count = input.optional("billing_interval_count", |v| v.integer(1, DAYS_MAX));
        let anchor = input.optional("billing_anchor_day", |v| v.integer(1, 28));
        let timing = input.optional("billing_timing", Field::word);
        let auto_renew = input.optional("auto_renew", Field::boolean);
        let plan_version = input.optional("plan_version", |v| v.integer(1, i64::from(i32::MAX)));
        let items = input.optional("items", |v| v.list(0, 100, |item| item.object(SubscriptionItemInput::read)));
        let nothing = "is not available yet; leave it out or send an empty list";
        input.optional("phases", |v| unavailable(v, nothing));
        let trial = input.optional("trial_duration_days", |v| v.integer(0, DAYS_MAX));
        let started_at = input.optional("started_at", Field::instant);
        let terms = input.optional("payment_terms_days", |v| v.integer(0, DAYS_MAX));
        input.optional("promotion_codes", |v| unavailable(v, nothing));
        let name = input.optional("name", |v| v.text(1, 255));
        let description = input.optional("description", |v| v.text(0, 2_000));
        let public_description = input.optional("public_description", |v| v.text(0, 2_000));
        let test_clock_id = input.optional("test_clock_id", Field::id);
        let custom_fields = input.optional("custom_fields", Field::json_object);
        let metadata = input.optional("metadata", Field::metadata);
        input.finish()?;
        // `finish` has refused what is required and missing.
        let missing = || domain::Error::invariant("a required field was read");
        Ok(Self {
            customer_id: customer_id.ok_or_else(missing)?,
            plan_id: plan_id.ok_or_else(missing)?,
            currency: currency.ok_or_else(missing)?,
            billing_interval_unit: unit.ok_or_else(missing)?,
            billing_interval_count: whole(count).unwrap_or(1),
            billing_anchor_day: whole(anchor),
            billing_timing: timing.unwrap_or(BillingTiming::InAdvance),
            auto_renew: auto_renew.unwrap_or(true),
            plan_version: whole(plan_version),
            items,
            phases: (),
            trial_duration_days: whole(trial),
            started_at,
            payment_terms_days: whole(terms),
            promotion_codes: (),
            name,
            description,
            public_description,
            test_clock_id,
            custom_fields: custom_fields.unwrap_or_default(),
            metadata: metadata.unwrap_or_default(),
        })
    }
}

fn unavailable(field: Field<'_>, message: &str) -> domain::input::FieldResult<()> {
    match field.raw() {
        Value::Array(entries) if entries.is_empty() => Ok(()),
        _ => field.refuse(Code::NotAllowed, message),
    }
}

/// `CancelSubscriptionRequest`.
#[derive(Clone, Debug, PartialEq, ToSchema)]
pub struct CancelSubscriptionRequest {
    /// Default CUSTOMER_REQUEST; TERM_ENDED after the term's end.
    pub cancellation_reason: Option<CancellationReason>,
    /// For the record.
    pub comment: Option<String>,
    /// Wait for the period's end.
    #[schema(value_type = Option<bool>)]
    pub cancel_at_period_end: bool,
    /// Default now; only now is available yet.
    pub effective_at: Option<DateTime<Utc>>,
    /// Default PRORATE.
    #[schema(value_type = Option<ProrationType>)]
    pub proration_type: ProrationType,
    /// Whether the closing invoice is finalized by itself; default true.
    #[schema(value_type = Option<bool>)]
    pub invoice_now: bool,
}

impl Default for CancelSubscriptionRequest {
    fn default() -> Self {
        Self {
            cancellation_reason: None,
            comment: None,
            cancel_at_period_end: false,
            effective_at: None,
            proration_type: ProrationType::Prorate,
            invoice_now: true,
        }
    }
}

impl CancelSubscriptionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// `Validation` with every field that is wrong.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let reason = input.optional("cancellation_reason", Field::word);
        let comment = input.optional("comment", |v| v.text(0, 2_000));
        let at_period_end = input.optional("cancel_at_period_end", Field::boolean);
        let effective_at: Option<Instant> = input.optional("effective_at", Field::instant);
        let proration_type = input.optional("proration_type", Field::word);
        let invoice_now = input.optional("invoice_now", Field::boolean);
        input.finish()?;
        Ok(Self {
            cancellation_reason: reason,
            comment,
            cancel_at_period_end: at_period_end.unwrap_or(false),
            effective_at,
            proration_type: proration_type.unwrap_or(ProrationType::Prorate),
            invoice_now: invoice_now.unwrap_or(true),
        })
    }
}

/// `PauseSubscriptionRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, ToSchema)]
pub struct PauseSubscriptionRequest {
    /// For the record.
    pub reason: Option<String>,
    /// Planned return; not available yet.
    #[schema(value_type = Option<DateTime<Utc>>)]
    pub resume_at: (),
    /// Default NONE; PRORATE is not available yet.
    #[schema(value_type = Option<ProrationType>)]
    pub proration_type: (),
}

impl PauseSubscriptionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// `Validation` with every field that is wrong.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let reason = input.optional("reason", |v| v.text(0, 2_000));
        input.optional("resume_at", |v| v.refuse::<()>(Code::NotAllowed, "is not available yet; call resume instead"));
        input.optional("proration_type", |v| match v.raw().as_str() {
            Some("NONE") => Ok(()),
            Some("PRORATE") => v.refuse(Code::NotAllowed, "only NONE is available yet"),
            _ => v.word::<ProrationType>().map(drop),
        });
        input.finish()?;
        Ok(Self { reason, resume_at: (), proration_type: () })
    }
}

/// `ResumeSubscriptionRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, ToSchema)]
pub struct ResumeSubscriptionRequest {
    /// Planned return; not available yet.
    #[schema(value_type = Option<DateTime<Utc>>)]
    pub resume_at: (),
    /// Whether the anchor moves to the present day; only false is available yet.
    #[schema(value_type = Option<bool>)]
    pub reset_anchor: (),
}

impl ResumeSubscriptionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// `Validation` with every field that is wrong.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        input.optional("resume_at", |v| v.refuse::<()>(Code::NotAllowed, "is not available yet; resuming is at once"));
        input.optional("reset_anchor", |v| match v.raw() {
            Value::Bool(true) => v.refuse(Code::NotAllowed, "only false is available yet"),
            _ => v.boolean().map(drop),
        });
        input.finish()?;
        Ok(Self::default())
    }
}
