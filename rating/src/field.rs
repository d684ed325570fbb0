//! Paths into a usage event: what a meter sums, what it counts once, what a filter looks at.

use std::fmt;

use domain::event::{VarValue, Vars};
use domain::{Quantity, UsageEvent};

use crate::error::{RatingError, Result};

/// A field of a usage event that filters and meters can name (meters.md 5, FilterTree).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldPath {
    /// `quantity`.
    Quantity,
    /// `price_key`.
    PriceKey,
    /// `external_cost_currency`.
    ExternalCostCurrency,
    /// `dimension_vars.<key>`.
    Dimension(String),
    /// `pricing_vars.<key>`.
    Pricing(String),
}

/// The value that an event has at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValue<'a> {
    /// true or false.
    Bool(bool),
    /// Exact number.
    Number(Quantity),
    /// Text.
    Text(&'a str),
}

/// What a path may look like, for error messages.
pub const ALLOWED_PATHS: &str =
    "must be quantity, price_key, external_cost_currency, dimension_vars.<key> or pricing_vars.<key>";

impl FieldPath {
    /// Reads a path; `None` for a field that events do not have.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let key = |key: &str| {
            let good = (1..=64).contains(&key.len())
                && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            good.then(|| key.to_owned())
        };
        match text {
            "quantity" => Some(Self::Quantity),
            "price_key" => Some(Self::PriceKey),
            "external_cost_currency" => Some(Self::ExternalCostCurrency),
            _ => match text.split_once('.')? {
                ("dimension_vars", rest) => key(rest).map(Self::Dimension),
                ("pricing_vars", rest) => key(rest).map(Self::Pricing),
                _ => None,
            },
        }
    }

    /// Whether a number can stand at this path.
    #[must_use]
    pub fn may_be_number(&self) -> bool {
        matches!(self, Self::Quantity | Self::Dimension(_) | Self::Pricing(_))
    }

    /// The value of an event; `None` when the event lacks the field.
    #[must_use]
    pub fn read<'e>(&self, event: &'e UsageEvent) -> Option<FieldValue<'e>> {
        match self {
            Self::Quantity => Some(FieldValue::Number(event.quantity)),
            Self::PriceKey => event.price_key.as_deref().map(FieldValue::Text),
            Self::ExternalCostCurrency => {
                event.external_cost.as_ref().map(|(_, currency)| FieldValue::Text(currency.as_str()))
            }
            Self::Dimension(key) => read_var(&event.dimension_vars, key),
            Self::Pricing(key) => read_var(&event.pricing_vars, key),
        }
    }

    /// The number of an event at this path. Decimal text counts as a number, since decimals travel as strings.
    ///
    /// # Errors
    /// `Value` when the field is missing or no number.
    pub fn number(&self, event: &UsageEvent) -> Result<Quantity> {
        if matches!(self, Self::Quantity) {
            return Ok(event.quantity);
        }
        let refuse = |reason| RatingError::Value { field: self.to_string(), reason };
        match self.read(event).ok_or_else(|| refuse("is missing"))? {
            FieldValue::Number(number) => Ok(number),
            FieldValue::Text(text) => Quantity::parse(text).map_err(|_| refuse("is not a number")),
            FieldValue::Bool(_) => Err(refuse("is not a number")),
        }
    }
}

fn read_var<'e>(vars: &'e Vars, key: &str) -> Option<FieldValue<'e>> {
    vars.get(key).map(|value| match value {
        VarValue::Bool(value) => FieldValue::Bool(*value),
        VarValue::Number(value) => FieldValue::Number(*value),
        VarValue::Text(value) => FieldValue::Text(value),
    })
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantity => f.write_str("quantity"),
            Self::PriceKey => f.write_str("price_key"),
            Self::ExternalCostCurrency => f.write_str("external_cost_currency"),
            Self::Dimension(key) => write!(f, "dimension_vars.{key}"),
            Self::Pricing(key) => write!(f, "pricing_vars.{key}"),
        }
    }
}
