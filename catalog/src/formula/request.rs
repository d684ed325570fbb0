//! Bodies of formula writes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::event::PricingVars;
use domain::input::{Field, FieldResult};
use domain::{Input, Result};
use rating::FormulaVariable;
use rating::formula::EXPRESSION_MAX;
use serde_json::Value;
use utoipa::ToSchema;

use crate::texts::not_null;
use crate::version::EditControls;

/// Bound variables of one validation.
const BINDINGS_MAX: usize = 50;

/// Body of `POST /v1/price-formulas`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreatePriceFormulaRequest {
    /// Name, 1–255 characters.
    pub name: String,
    /// The expression, at most 4,096 characters.
    pub expression: String,
    /// Its variables beside the supplied ones.
    pub variables: Option<Vec<FormulaVariable>>,
}

impl CreatePriceFormulaRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let name = input.required("name", |v| v.text(1, 255));
        let expression = input.required("expression", read_expression);
        let variables = input.optional("variables", FormulaVariable::read_list);
        input.finish()?;
        // `finish` refuses what is missing
        Ok(Self { name: name.unwrap_or_default(), expression: expression.unwrap_or_default(), variables })
    }
}

/// Body of `PUT /v1/price-formulas/{id}`: the members that are sent.
#[derive(Clone, Debug, ToSchema)]
pub struct UpdatePriceFormulaRequest {
    /// Name, 1–255 characters.
    pub name: Option<String>,
    /// The expression, at most 4,096 characters.
    pub expression: Option<String>,
    /// Its variables beside the supplied ones, all of them.
    pub variables: Option<Vec<FormulaVariable>>,
    /// When the new version takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps the edit a draft.
    pub save_as_draft: Option<bool>,
    /// Refused when the formula is at another version.
    pub expected_version: Option<i64>,
    #[schema(ignore)]
    pub(super) controls: EditControls,
}

impl UpdatePriceFormulaRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let (name, expression) = (i.patch("name", |v| v.text(1, 255)), i.patch("expression", read_expression));
        let variables = i.patch("variables", FormulaVariable::read_list);
        let controls = EditControls::read(i);
        let request = Self {
            name: not_null(i, "name", name),
            expression: not_null(i, "expression", expression),
            variables: not_null(i, "variables", variables),
            effective_at: controls.effective_at,
            save_as_draft: Some(controls.save_as_draft),
            expected_version: controls.expected_version,
            controls,
        };
        input.finish()?;
        Ok(request)
    }
}

/// Body of `POST /v1/price-formulas/validate`.
#[derive(Clone, Debug, ToSchema)]
pub struct ValidateFormulaRequest {
    /// The expression.
    pub expression: String,
    /// Its variables beside the supplied ones.
    pub variables: Option<Vec<FormulaVariable>>,
    /// Values of variables: declared and supplied ones, `dim.<key>`, `cost.amount` and `cost.currency` by their names.
    #[schema(value_type = Option<PricingVars>)]
    pub bindings: Option<BTreeMap<String, Value>>,
}

impl ValidateFormulaRequest {
    /// Reads the body. What is wrong with the expression is no error here: the answer lists it.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let expression = input.required("expression", |v| v.text(0, usize::MAX));
        let variables = input.optional("variables", FormulaVariable::read_list);
        let bindings = input.optional("bindings", |v| v.map_of(BINDINGS_MAX, 68, read_binding));
        input.finish()?;
        Ok(Self { expression: expression.unwrap_or_default(), variables, bindings })
    }
}

fn read_expression(field: Field<'_>) -> FieldResult<String> {
    field.text(1, EXPRESSION_MAX)
}

fn read_binding(field: Field<'_>) -> FieldResult<Value> {
    match field.raw() {
        Value::String(_) => field.text(0, 255).map(Value::String),
        Value::Number(_) => field.quantity().map(|number| Value::String(number.to_string())),
        Value::Bool(value) => Ok(Value::Bool(*value)),
        _ => field.refuse(Code::InvalidFormat, "must be a string, a number or a boolean"),
    }
}
