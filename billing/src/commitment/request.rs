//! Bodies of committed use plans.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{
    CommitmentPeriod, CustomerId, Error, Input, JsonMap, Patch, PriceId, ProductId, Quantity, Result, ShortfallPolicy,
    SubscriptionId,
};
use rust_decimal::Decimal;
use serde_json::Value;
use utoipa::ToSchema;

/// Longest term: fifty years.
const TERM_MONTHS_MAX: i64 = 600;

fn committed_quantity(field: Field<'_>) -> FieldResult<Quantity> {
    let (value, path) = (field.raw(), "committed_quantity");
    let quantity = field.quantity_not_negative()?;
    if quantity.is_zero() {
        return Err(vec![domain::FieldError {
            field: path.into(),
            code: Code::OutOfRange,
            message: format!("must be larger than 0, not {value}"),
        }]);
    }
    Ok(quantity)
}

fn term_months(field: Field<'_>) -> FieldResult<i32> {
    field.integer(1, TERM_MONTHS_MAX).map(|months| i32::try_from(months).unwrap_or(i32::MAX))
}

/// A term has whole commitment periods.
///
/// # Errors
/// `Validation`.
pub(super) fn check_term(term_months: i32, period: CommitmentPeriod) -> Result<()> {
    if term_months.unsigned_abs().is_multiple_of(period.months()) {
        return Ok(());
    }
    let message = format!("must be a multiple of the {} month(s) of a commitment period", period.months());
    Err(Error::field("term_months", Code::OutOfRange, message))
}

/// Body of `POST /v1/committed-use-plans`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreateCommittedUsePlanRequest {
    /// Customer that is bound.
    pub customer_id: CustomerId,
    /// One of its subscriptions.
    pub subscription_id: SubscriptionId,
    /// USAGE product.
    pub product_id: ProductId,
    /// One of its metrics.
    pub metric_key: String,
    /// Least quantity per commitment period, larger than 0.
    pub committed_quantity: Quantity,
    /// How long a commitment period is.
    pub commitment_period: CommitmentPeriod,
    /// Length of the term: whole commitment periods, at most 600 months.
    pub term_months: i32,
    /// Discounted rate per unit, in the currency of the subscription.
    #[schema(value_type = String)]
    pub committed_rate: Decimal,
    /// Price of what exceeds the commitment; default: the one that resolves.
    pub overage_price_id: Option<PriceId>,
    /// Start of the term, not in the past; or the start of the running billing period. Default: now.
    pub starts_at: Option<DateTime<Utc>>,
    /// Default `BILL_PERIOD`.
    pub shortfall_policy: Option<ShortfallPolicy>,
    /// Free bag.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
}

impl CreateCommittedUsePlanRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let customer_id = input.required("customer_id", Field::id);
        let subscription_id = input.required("subscription_id", Field::id);
        let product_id = input.required("product_id", Field::id);
        let metric_key = input.required("metric_key", Field::key);
        let quantity = input.required("committed_quantity", committed_quantity);
        let period = input.required("commitment_period", Field::word);
        let term = input.required("term_months", term_months);
        let rate = input.required("committed_rate", Field::rate);
        let overage_price_id = input.optional("overage_price_id", Field::id);
        let starts_at = input.optional("starts_at", Field::instant);
        let shortfall_policy = input.optional("shortfall_policy", Field::word);
        let metadata = input.optional("metadata", Field::metadata);
        input.finish()?;
        let read = || {
            Some(Self {
                customer_id: customer_id?,
                subscription_id: subscription_id?,
                product_id: product_id?,
                metric_key: metric_key?,
                committed_quantity: quantity?,
                commitment_period: period?,
                term_months: term?,
                committed_rate: rate?,
                overage_price_id,
                starts_at,
                shortfall_policy,
                metadata,
            })
        };
        let request = read().ok_or_else(|| Error::invariant("a required field was read"))?;
        check_term(request.term_months, request.commitment_period)?;
        Ok(request)
    }
}

/// Body of `PUT /v1/committed-use-plans/{id}`: the members that are sent.
#[derive(Clone, Debug, ToSchema)]
pub struct UpdateCommittedUsePlanRequest {
    /// Only of a DRAFT.
    pub committed_quantity: Option<Quantity>,
    /// Only of a DRAFT.
    pub commitment_period: Option<CommitmentPeriod>,
    /// Only of a DRAFT.
    pub term_months: Option<i32>,
    /// Only of a DRAFT.
    #[schema(value_type = Option<String>)]
    pub committed_rate: Option<Decimal>,
    /// Null: the price that resolves.
    #[schema(value_type = Option<PriceId>)]
    pub overage_price_id: Patch<PriceId>,
    /// Only of a DRAFT.
    pub starts_at: Option<DateTime<Utc>>,
    /// When what falls short is billed.
    pub shortfall_policy: Option<ShortfallPolicy>,
    /// Free bag; null removes a key.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
    /// Version that the caller knows.
    pub expected_version: Option<i64>,
}

impl UpdateCommittedUsePlanRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self {
            committed_quantity: input.optional("committed_quantity", committed_quantity),
            commitment_period: input.optional("commitment_period", Field::word),
            term_months: input.optional("term_months", term_months),
            committed_rate: input.optional("committed_rate", Field::rate),
            overage_price_id: input.patch("overage_price_id", Field::id),
            starts_at: input.optional("starts_at", Field::instant),
            shortfall_policy: input.optional("shortfall_policy", Field::word),
            metadata: input.optional("metadata", Field::metadata),
            expected_version: input.optional("expected_version", |v| v.integer(0, i64::from(i32::MAX))),
        };
        input.finish()?;
        Ok(request)
    }

    /// The members that are sent and fixed once the term has begun.
    pub(super) fn fixed_members(&self) -> Vec<&'static str> {
        let sent = [
            ("committed_quantity", self.committed_quantity.is_some()),
            ("commitment_period", self.commitment_period.is_some()),
            ("term_months", self.term_months.is_some()),
            ("committed_rate", self.committed_rate.is_some()),
            ("starts_at", self.starts_at.is_some()),
        ];
        sent.into_iter().filter_map(|(name, is_sent)| is_sent.then_some(name)).collect()
    }
}

/// Body of `POST /v1/committed-use-plans/{id}/cancel`.
#[derive(Clone, Debug, ToSchema)]
pub struct CancelCommittedUsePlanRequest {
    /// For people.
    pub reason: Option<String>,
    /// Now, or an instant ahead within the term. Default: now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Whether what the last commitment period falls short is billed. Default: true.
    pub bill_shortfall: Option<bool>,
}

impl CancelCommittedUsePlanRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self {
            reason: input.optional("reason", |v| v.text(0, 2_000)),
            effective_at: input.optional("effective_at", Field::instant),
            bill_shortfall: input.optional("bill_shortfall", Field::boolean),
        };
        input.finish()?;
        Ok(request)
    }
}
