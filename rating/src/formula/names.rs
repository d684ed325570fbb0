//! Names in expressions: what the engine supplies, what a formula declares, what an event brings.

use std::collections::HashMap;

use domain::FormulaVarType;
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{FormulaError, Place, Value};

/// Variables of one formula.
pub const VARIABLES_MAX: usize = 100;

/// A declared variable of a price formula, in the wire form of the API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FormulaVariable {
    /// As in the expression.
    pub name: String,
    /// What values it takes.
    #[serde(rename = "type")]
    pub var_type: FormulaVarType,
    /// Taken when nothing binds it: a decimal, a text or a truth, as its type says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Json>,
    /// Whether a product must bind it; by default a variable without a default.
    pub required: bool,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub description: Option<String>,
}

impl FormulaVariable {
    /// Reads one variable of a request. Whether names and defaults fit is checked when the formula is compiled.
    ///
    /// # Errors
    /// The bad fields.
    pub fn read(field: Field<'_>) -> FieldResult<Self> {
        field.object(|input| {
            let name = input.required("name", |v| v.text(1, 64));
            let var_type = input.required("type", Field::word);
            let default = input.optional("default", |v| match v.raw() {
                Json::Array(_) | Json::Object(_) => {
                    v.refuse(Code::InvalidFormat, "must be a string, a number or a boolean")
                }
                scalar => Ok(scalar.clone()),
            });
            let required = input.optional("required", Field::boolean);
            let description = input.optional("description", |v| v.text(0, 500));
            Some(Self {
                name: name?,
                var_type: var_type?,
                required: required.unwrap_or(default.is_none()),
                default,
                description,
            })
        })
    }

    /// Reads the member `variables` of a formula.
    ///
    /// # Errors
    /// The bad fields.
    pub fn read_list(field: Field<'_>) -> FieldResult<Vec<Self>> {
        field.list(0, VARIABLES_MAX, Self::read)
    }
}

/// What the engine supplies while it rates (price-formulas.md, Variables supplied); all are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supplied {
    /// The quantity that is priced, with what is included.
    Quantity,
    /// What is included.
    IncludedQuantity,
    /// What is left to be billed.
    BillableQuantity,
    /// Static rate of the tier.
    UnitAmount,
    /// Static fee of the tier.
    FlatAmount,
    /// Position of the tier.
    TierOrder,
    /// What the tier takes of the quantity.
    TierQuantity,
    /// Headline price; `base_price` as well.
    ListPrice,
    /// Length of the billing period.
    DaysInPeriod,
    /// Count of the billing interval.
    BillingIntervalCount,
}

const SUPPLIED: [(&str, Supplied); 11] = [
    ("quantity", Supplied::Quantity),
    ("included_quantity", Supplied::IncludedQuantity),
    ("billable_quantity", Supplied::BillableQuantity),
    ("unit_amount", Supplied::UnitAmount),
    ("flat_amount", Supplied::FlatAmount),
    ("tier_order", Supplied::TierOrder),
    ("tier_quantity", Supplied::TierQuantity),
    ("list_price", Supplied::ListPrice),
    ("base_price", Supplied::ListPrice),
    ("days_in_period", Supplied::DaysInPeriod),
    ("billing_interval_count", Supplied::BillingIntervalCount),
];

/// Words of the grammar.
pub(super) const KEYWORDS: [&str; 5] = ["true", "false", "and", "or", "not"];

/// Where the value of a name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The engine, and nobody else.
    Supplied(Supplied),
    /// In this order: `pricing_vars` of the event, bindings of the product-meter binding, the engine.
    Named(Option<Supplied>),
    /// `dimension_vars` of the event, by the name without `dim.`; always a text.
    Dimension,
    /// Amount of the event's external cost.
    CostAmount,
    /// Currency of the event's external cost.
    CostCurrency,
}

impl Source {
    /// Of a name, when a formula declares it or the place reads it from the event.
    fn of(name: &str) -> Option<Self> {
        match name {
            "cost.amount" => Some(Self::CostAmount),
            "cost.currency" => Some(Self::CostCurrency),
            _ => match name.split_once('.') {
                Some(("dim", key)) => is_key(key).then_some(Self::Dimension),
                Some(("cost", _)) => None,
                _ => Some(Self::Named(supplied(name))),
            },
        }
    }

    /// Whether an event can bring the value.
    #[must_use]
    pub fn is_of_event(self) -> bool {
        !matches!(self, Self::Supplied(_))
    }

    /// What the engine supplies for it.
    #[must_use]
    pub fn supplied(self) -> Option<Supplied> {
        match self {
            Self::Supplied(supplied) => Some(supplied),
            Self::Named(supplied) => supplied,
            Self::Dimension | Self::CostAmount | Self::CostCurrency => None,
        }
    }

    /// The only type that its values have; `None` when a declaration decides.
    fn fixed_type(self) -> Option<FormulaVarType> {
        match self {
            Self::Dimension | Self::CostCurrency => Some(FormulaVarType::String),
            Self::CostAmount | Self::Supplied(_) | Self::Named(Some(_)) => Some(FormulaVarType::Number),
            Self::Named(None) => None,
        }
    }
}

/// A name that an expression reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// As in the expression.
    pub name: String,
    /// Where its value comes from.
    pub source: Source,
    /// What values it takes.
    pub var_type: FormulaVarType,
    /// Taken when nothing binds it.
    pub default: Option<Value<'static>>,
}

impl Variable {
    /// The key in `dimension_vars` or `pricing_vars`.
    #[must_use]
    pub fn key(&self) -> &str {
        self.name.strip_prefix("dim.").unwrap_or(&self.name)
    }
}

/// The names that one expression may use.
pub(super) struct Names {
    place: Place,
    declared: HashMap<String, Variable>,
}

impl Names {
    /// Checks the declarations of a formula; wrong ones are noted and declared all the same, so that one mistake is
    /// reported once.
    pub(super) fn declare(place: Place, variables: &[FormulaVariable], errors: &mut Vec<FormulaError>) -> Self {
        let mut declared = HashMap::with_capacity(variables.len());
        for (index, variable) in variables.iter().enumerate() {
            let mut refuse = |message: String| {
                errors.push(FormulaError { position: 0, message, variable: Some(index) });
            };
            let name = &variable.name;
            let source = if is_name(name) { Source::of(name) } else { None };
            match source.map(Source::fixed_type) {
                None => refuse(format!("`{name}` cannot name a variable")),
                Some(Some(fixed)) if fixed != variable.var_type => refuse(format!("the type of `{name}` is {fixed}")),
                Some(_) => {}
            }
            let default = variable.default.as_ref().filter(|default| !default.is_null());
            let value = default.and_then(|d| Value::from_json(d)?.read_as(variable.var_type).map(Value::into_owned));
            if default.is_some() && value.is_none() {
                refuse(format!("the default of `{name}` is no {}", variable.var_type));
            }
            let entry = Variable {
                name: name.clone(),
                source: source.unwrap_or(Source::Named(None)),
                var_type: variable.var_type,
                default: value,
            };
            if declared.insert(name.clone(), entry).is_some() {
                refuse(format!("the variable `{name}` is declared twice"));
            }
        }
        Self { place, declared }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// What a name means here.
    pub(super) fn resolve(&self, name: &str) -> Result<Variable, String> {
        if let Some(variable) = self.declared.get(name) {
            return Ok(variable.clone());
        }
        let source = match Source::of(name) {
            Some(Source::Named(Some(supplied))) => Some(Source::Supplied(supplied)),
            other => other,
        };
        let source = source.filter(|source| match (self.place, source) {
            (Place::Price, Source::Named(_)) | (Place::Meter, _) => false,
            (Place::Tier, Source::Named(_)) => is_key(name),
            (Place::Cost, source) => *source == Source::Supplied(Supplied::Quantity) || name == "revenue",
            _ => true,
        });
        let source = source.ok_or_else(|| match self.place {
            Place::Price | Place::Meter => format!("the variable `{name}` is not declared"),
            Place::Tier => format!("`{name}` is no supplied variable and no key of pricing_vars"),
            Place::Cost => format!("`{name}` is not known here: a cost reads `quantity` and `revenue`"),
        })?;
        let var_type = source.fixed_type().unwrap_or(FormulaVarType::Number);
        Ok(Variable { name: name.to_owned(), source, var_type, default: None })
    }
}

fn supplied(name: &str) -> Option<Supplied> {
    SUPPLIED.iter().find(|(known, _)| *known == name).map(|(_, supplied)| *supplied)
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
        && !KEYWORDS.contains(&name)
}

/// A key of `pricing_vars` or `dimension_vars`, or the slug of a rate table.
pub(super) fn is_key(key: &str) -> bool {
    (1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
