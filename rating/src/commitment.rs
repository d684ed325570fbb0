//! Committed use (allowances.md 5.1 rules 8 and 9): of what the allowance leaves, a quantity per commitment period is charged
//! at a discounted rate, what exceeds it at the standard price, and what falls short of it all the same.
//!
//! A commitment period may span several windows. Each of them continues where the one before stopped: its amounts are
//! differences of totals over the commitment period, so that rounding adds up to that of the whole quantity.

use std::sync::Arc;

use domain::period::Period;
use domain::{CommittedUsePlanId, Currency, Money, PriceId, PricingModel, ProductId, Quantity, VersionId};
use rust_decimal::Decimal;
use uuid::Uuid;

use crate::error::{RatingError, Result};
use crate::exact::Exact;
use crate::pricing::{CompiledPrice, PriceDefinition, Tier, Walk, walk};

/// One commitment period of a committed use plan, as a window meets it.
#[derive(Clone, Debug, PartialEq)]
pub struct Commitment {
    /// The plan.
    pub plan_id: CommittedUsePlanId,
    /// The commitment period: it takes in the rating keys whose segment starts in it.
    pub period: Period,
    /// Least quantity of the period.
    pub committed: Quantity,
    /// The discounted rate, as a price of one open tier.
    pub rate: Arc<CompiledPrice>,
    /// Price beyond the commitment; `None`: the price of the rating key.
    pub overage: Option<Arc<CompiledPrice>>,
    /// What earlier windows of the period used, after their allowances.
    pub used: Quantity,
    /// What of it exceeded the commitment, by price version and wallet pin: the tiers go on from there.
    pub beyond: Vec<(VersionId, Option<Currency>, Quantity)>,
}

impl Commitment {
    /// The discounted rate per unit, as a price.
    ///
    /// # Errors
    /// `Definition` for a rate that is negative or has more than 15 integer and 12 fraction digits.
    pub fn compile_rate(product_id: ProductId, rate: Decimal, currency: Currency) -> Result<Arc<CompiledPrice>> {
        let definition = PriceDefinition {
            price_id: PriceId(Uuid::nil()),
            version_id: VersionId(Uuid::nil()),
            product_id,
            price_key: None,
            currency,
            model: PricingModel::Volume,
            tiers: vec![Tier { tier_order: 1, unit_amount: rate, ..Tier::default() }],
            list_price: None,
            formula: None,
        };
        CompiledPrice::compile(definition).map(Arc::new)
    }

    /// How much earlier windows exceeded the commitment at this price and wallet pin.
    pub(crate) fn beyond_of(&self, version: VersionId, wallet_currency: Option<Currency>) -> Exact {
        let same =
            |(known, pin, _): &&(VersionId, Option<Currency>, Quantity)| *known == version && *pin == wallet_currency;
        self.beyond.iter().find(same).map_or(Exact::ZERO, |(_, _, quantity)| (*quantity).into())
    }
}

/// What a commitment period fell short, `rate × (committed - used)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Shortfall {
    /// Committed and not used.
    pub quantity: Exact,
    /// The whole commitment at its rate.
    pub whole: Walk,
    /// What was used at this rate; it is taken off.
    pub covered: Walk,
    /// Net amount.
    pub amount: Money,
}

impl Shortfall {
    /// What is charged at the end of a commitment period for the quantity that was committed and not used; `None` when
    /// nothing falls short.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn of(rate: &CompiledPrice, committed: Quantity, used: Exact) -> Result<Option<Self>> {
        let committed = Exact::from(committed);
        let quantity = committed.checked_sub(used)?.floored();
        if quantity.is_zero() {
            return Ok(None);
        }
        let (whole, covered) = (walk(rate, committed)?, walk(rate, used)?);
        let amount = whole.total.sub(covered.total).map_err(|_| RatingError::Overflow("the amount"))?;
        Ok(Some(Self { quantity, whole, covered, amount }))
    }
}

/// Which part of a commitment an atom is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommittedPart {
    /// The plan.
    pub plan_id: CommittedUsePlanId,
    /// Start of the commitment period.
    pub period_start: domain::Instant,
    /// Within the commitment, at its rate; else beyond it.
    pub is_within: bool,
}
