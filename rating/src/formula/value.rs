//! Values that formulas compute with.

use std::borrow::Cow;
use std::fmt;

use domain::event::VarValue;
use domain::{FormulaVarType, Quantity};
use serde_json::Value as Json;

use super::number::Number;

/// A number, a text or a truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'v> {
    /// NUMBER.
    Number(Number),
    /// STRING.
    Text(Cow<'v, str>),
    /// BOOLEAN.
    Boolean(bool),
}

impl Value<'_> {
    /// Its type.
    #[must_use]
    pub fn var_type(&self) -> FormulaVarType {
        match self {
            Self::Number(_) => FormulaVarType::Number,
            Self::Text(_) => FormulaVarType::String,
            Self::Boolean(_) => FormulaVarType::Boolean,
        }
    }

    /// For the wire: numbers are decimal strings.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match self {
            Self::Boolean(value) => Json::Bool(*value),
            other => Json::String(other.to_string()),
        }
    }

    /// Without what it borrows.
    #[must_use]
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Self::Number(number) => Value::Number(number),
            Self::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
            Self::Boolean(value) => Value::Boolean(value),
        }
    }
}

impl<'v> Value<'v> {
    /// Reads a string, a boolean or a number of at most 15 integer and 12 fraction digits; `None` for anything else.
    #[must_use]
    pub fn from_json(json: &'v Json) -> Option<Self> {
        match json {
            Json::Bool(value) => Some(Self::Boolean(*value)),
            Json::Number(number) => Quantity::parse(&number.to_string()).ok().map(|number| Self::Number(number.into())),
            Json::String(text) => Some(Self::Text(Cow::Borrowed(text))),
            Json::Null | Json::Array(_) | Json::Object(_) => None,
        }
    }

    /// As a value of a variable: decimals travel as strings, so decimal text is a NUMBER where one is expected, and a
    /// STRING takes the text of anything. `None` when the value has no such reading.
    #[must_use]
    pub fn read_as(self, expected: FormulaVarType) -> Option<Self> {
        match (self, expected) {
            (Self::Text(text), FormulaVarType::Number) => Number::parse(&text).map(Self::Number),
            (value @ (Self::Number(_) | Self::Boolean(_)), FormulaVarType::String) => {
                Some(Self::Text(Cow::Owned(value.to_string())))
            }
            (value, expected) => (value.var_type() == expected).then_some(value),
        }
    }
}

impl<'v> From<&'v VarValue> for Value<'v> {
    fn from(value: &'v VarValue) -> Self {
        match value {
            VarValue::Bool(value) => Self::Boolean(*value),
            VarValue::Number(number) => Self::Number((*number).into()),
            VarValue::Text(text) => Self::Text(Cow::Borrowed(text)),
        }
    }
}

impl From<Number> for Value<'_> {
    fn from(number: Number) -> Self {
        Self::Number(number)
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.pad(text),
            Self::Boolean(value) => value.fmt(f),
        }
    }
}
