//! Bodies of binding writes.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{BindingRole, Input, MeterId, Patch, Result};
use rating::{FilterTree, Threshold};
use rust_decimal::Decimal;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{FormulaBinding, FormulaBindings};
use crate::meter::Window;
use crate::version::EditControls;

/// Body of `POST /v1/products/{id}/meter-bindings`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreateProductMeterBindingRequest {
    /// The meter.
    pub meter_id: MeterId,
    /// Default `PRIMARY`.
    pub role: Option<BindingRole>,
    /// Required by `FORMULA_INPUT`.
    pub variable: Option<String>,
    /// Variable → source.
    pub formula_bindings: Option<FormulaBindings>,
    /// Further filter.
    pub filter: Option<FilterTree>,
    /// Default `"1"`.
    #[schema(value_type = Option<String>)]
    pub multiplier: Option<Decimal>,
    /// Overrides the meter's.
    pub window: Option<Window>,
    /// In addition to the meter's.
    pub thresholds: Option<Vec<Threshold>>,
    /// Start; default: since ever.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps it a draft; default false.
    pub save_as_draft: Option<bool>,
}

impl CreateProductMeterBindingRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let meter_id = i.required("meter_id", Field::id);
        let request = Self {
            meter_id: meter_id.unwrap_or(MeterId(Uuid::nil())), // `finish` refuses a missing one
            role: i.optional("role", Field::word),
            variable: i.optional("variable", Field::key),
            formula_bindings: i.optional("formula_bindings", read_formula_bindings),
            filter: i.optional("filter", FilterTree::read),
            multiplier: i.optional("multiplier", Field::rate),
            window: i.optional("window", Window::read),
            thresholds: i.optional("thresholds", Threshold::read_list),
            effective_at: i.optional("effective_at", Field::instant),
            save_as_draft: i.optional("save_as_draft", Field::boolean),
        };
        let is_input = request.role == Some(BindingRole::FormulaInput);
        if is_input && request.variable.is_none() && !i.has("variable") {
            i.error("variable", Code::Required, "is required by the role FORMULA_INPUT");
        } else if !is_input && request.variable.is_some() {
            i.error("variable", Code::NotAllowed, "is used by the role FORMULA_INPUT only");
        }
        input.finish()?;
        Ok(request)
    }
}

/// Body of `PUT /v1/bindings/{id}`: the members that are sent. Product and meter are fixed at creation.
#[derive(Clone, Debug, ToSchema)]
pub struct UpdateProductMeterBindingRequest {
    /// Billed, input of a formula, or only shown.
    pub role: Option<BindingRole>,
    /// Required by `FORMULA_INPUT`; another role has none.
    pub variable: Option<String>,
    /// Variable → source.
    pub formula_bindings: Option<FormulaBindings>,
    /// Further filter.
    #[schema(value_type = Option<FilterTree>)]
    pub filter: Patch<FilterTree>,
    /// Unit conversion before the tier walk.
    #[schema(value_type = Option<String>)]
    pub multiplier: Option<Decimal>,
    /// Overrides the meter's.
    #[schema(value_type = Option<Window>)]
    pub window: Patch<Window>,
    /// In addition to the meter's.
    pub thresholds: Option<Vec<Threshold>>,
    /// When the new version takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps the edit a draft.
    pub save_as_draft: Option<bool>,
    /// Refused when the binding is at another version.
    pub expected_version: Option<i64>,
    #[schema(ignore)]
    pub(super) controls: EditControls,
}

impl UpdateProductMeterBindingRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let controls = EditControls::read(i);
        let request = Self {
            role: i.optional("role", Field::word),
            variable: i.optional("variable", Field::key),
            formula_bindings: i.optional("formula_bindings", read_formula_bindings),
            filter: i.patch("filter", FilterTree::read),
            multiplier: i.optional("multiplier", Field::rate),
            window: i.patch("window", Window::read),
            thresholds: i.optional("thresholds", Threshold::read_list),
            effective_at: controls.effective_at,
            save_as_draft: Some(controls.save_as_draft),
            expected_version: controls.expected_version,
            controls,
        };
        input.finish()?;
        Ok(request)
    }
}

/// What was sent with `DELETE /v1/bindings/{id}`: the instant from which the binding is archived.
///
/// # Errors
/// `Validation` for another parameter, and for what is no timestamp.
pub(super) fn read_end(parameters: &[(String, String)]) -> Result<Option<domain::Instant>> {
    let object = parameters.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect();
    let body = Value::Object(object);
    let mut input = Input::new(&body)?;
    let at = input.optional("effective_at", Field::instant);
    input.finish()?;
    Ok(at)
}

fn read_formula_bindings(field: Field<'_>) -> FieldResult<FormulaBindings> {
    field.map_of(50, 64, |entry| {
        entry.object(|input| {
            let source = FormulaBinding {
                constant: input.optional("constant", |v| v.quantity().map(|number| number.to_string())),
                meter_key: input.optional("meter_key", Field::key),
                custom_field: input.optional("custom_field", |v| v.text(1, 64)),
            };
            let given = [source.constant.is_some(), source.meter_key.is_some(), source.custom_field.is_some()];
            if given.iter().filter(|given| **given).count() != 1 && !input.is_bad() {
                input.error("constant", Code::Required, "give one of constant, meter_key and custom_field");
            }
            Some(source)
        })
    })
}
