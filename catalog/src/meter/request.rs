//! Bodies of meter writes.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{Input, JsonMap, LateEventPolicy, MeterFunction, Patch, Result};
use rating::formula::EXPRESSION_MAX;
use rating::{FilterTree, Threshold};
use serde_json::Value;
use utoipa::ToSchema;

use super::formula::COMPONENTS_MAX;
use super::{MeterFormula, MeterFormulaVariable, Window};
use crate::texts::not_null;
use crate::version::{CopyAsDraftRequest, EditControls};

/// Dimension keys of one meter.
const DIMENSIONS_MAX: usize = 50;

/// Body of `POST /v1/meters`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreateMeterRequest {
    /// `^[a-z][a-z0-9_]{0,63}$`, unique in the workspace.
    pub key: String,
    /// Name, 1–120 characters.
    pub name: String,
    /// Metric of the events that it reads, 1–64 characters.
    pub metric_key: String,
    /// How events combine.
    pub function: MeterFunction,
    /// Path of the number to combine; default `quantity`.
    pub value_field: Option<String>,
    /// Path whose distinct values are counted.
    pub unique_by_field: Option<String>,
    /// Unit for people.
    pub unit_label: Option<String>,
    /// Path of the currency when the value is money.
    pub unit_currency_field: Option<String>,
    /// Dimension keys to split by.
    pub dimensions: Option<Vec<String>>,
    /// JSON Schema of its events.
    #[schema(value_type = Option<Object>)]
    pub event_schema: Option<JsonMap>,
    /// Path whose value deduplicates.
    pub dedup_key_path: Option<String>,
    /// Default false.
    pub negative_allowed: Option<bool>,
    /// Default `NEXT_PERIOD`.
    pub late_event_policy: Option<LateEventPolicy>,
    /// Default: the billing period.
    pub window: Option<Window>,
    /// Which events count.
    pub filter: Option<FilterTree>,
    /// Combination of other meters.
    pub formula: Option<MeterFormula>,
    /// Limits on the observed value.
    pub thresholds: Option<Vec<Threshold>>,
    /// Keeps it a draft; default false.
    pub save_as_draft: Option<bool>,
}

impl CreateMeterRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let (key, name) = (i.required("key", Field::key), i.required("name", |v| v.text(1, 120)));
        let (metric_key, function) = (i.required("metric_key", |v| v.text(1, 64)), i.required("function", Field::word));
        let request = Self {
            key: key.unwrap_or_default(), // `finish` refuses what is missing
            name: name.unwrap_or_default(),
            metric_key: metric_key.unwrap_or_default(),
            function: function.unwrap_or(MeterFunction::Count),
            value_field: i.optional("value_field", read_path),
            unique_by_field: i.optional("unique_by_field", read_path),
            unit_label: i.optional("unit_label", |v| v.text(1, 64)),
            unit_currency_field: i.optional("unit_currency_field", read_path),
            dimensions: i.optional("dimensions", read_dimensions),
            event_schema: i.optional("event_schema", Field::json_object),
            dedup_key_path: i.optional("dedup_key_path", read_path),
            negative_allowed: i.optional("negative_allowed", Field::boolean),
            late_event_policy: i.optional("late_event_policy", Field::word),
            window: i.optional("window", Window::read),
            filter: i.optional("filter", FilterTree::read),
            formula: i.optional("formula", read_formula),
            thresholds: i.optional("thresholds", Threshold::read_list),
            save_as_draft: i.optional("save_as_draft", Field::boolean),
        };
        input.finish()?;
        Ok(request)
    }
}

/// Body of `PUT /v1/meters/{id}`: the members that are sent. Key and metric are fixed at creation.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct UpdateMeterRequest {
    /// Name, 1–120 characters.
    pub name: Option<String>,
    /// How events combine.
    pub function: Option<MeterFunction>,
    /// Path of the number to combine.
    #[schema(value_type = Option<String>)]
    pub value_field: Patch<String>,
    /// Path whose distinct values are counted.
    #[schema(value_type = Option<String>)]
    pub unique_by_field: Patch<String>,
    /// Unit for people.
    #[schema(value_type = Option<String>)]
    pub unit_label: Patch<String>,
    /// Path of the currency when the value is money.
    #[schema(value_type = Option<String>)]
    pub unit_currency_field: Patch<String>,
    /// Dimension keys to split by.
    pub dimensions: Option<Vec<String>>,
    /// JSON Schema of its events.
    #[schema(value_type = Option<Object>)]
    pub event_schema: Patch<JsonMap>,
    /// Path whose value deduplicates.
    #[schema(value_type = Option<String>)]
    pub dedup_key_path: Patch<String>,
    /// Whether negative values are allowed.
    pub negative_allowed: Option<bool>,
    /// What happens to late events.
    pub late_event_policy: Option<LateEventPolicy>,
    /// Over which window.
    pub window: Option<Window>,
    /// Which events count.
    #[schema(value_type = Option<FilterTree>)]
    pub filter: Patch<FilterTree>,
    /// Combination of other meters.
    #[schema(value_type = Option<MeterFormula>)]
    pub formula: Patch<MeterFormula>,
    /// Limits on the observed value.
    pub thresholds: Option<Vec<Threshold>>,
    /// When the new version takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps the edit a draft.
    pub save_as_draft: Option<bool>,
    /// Refused when the meter is at another version.
    pub expected_version: Option<i64>,
    #[schema(ignore)]
    pub(super) controls: EditControls,
}

impl From<CopyAsDraftRequest> for UpdateMeterRequest {
    fn from(request: CopyAsDraftRequest) -> Self {
        Self { controls: request.into(), ..Self::default() }
    }
}

impl UpdateMeterRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let name = i.patch("name", |v| v.text(1, 120));
        let controls = EditControls::read(i);
        let request = Self {
            name: not_null(i, "name", name),
            function: i.optional("function", Field::word),
            value_field: i.patch("value_field", read_path),
            unique_by_field: i.patch("unique_by_field", read_path),
            unit_label: i.patch("unit_label", |v| v.text(1, 64)),
            unit_currency_field: i.patch("unit_currency_field", read_path),
            dimensions: i.optional("dimensions", read_dimensions),
            event_schema: i.patch("event_schema", Field::json_object),
            dedup_key_path: i.patch("dedup_key_path", read_path),
            negative_allowed: i.optional("negative_allowed", Field::boolean),
            late_event_policy: i.optional("late_event_policy", Field::word),
            window: i.optional("window", Window::read),
            filter: i.patch("filter", FilterTree::read),
            formula: i.patch("formula", read_formula),
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

fn read_path(field: Field<'_>) -> FieldResult<String> {
    field.text(1, 128)
}

fn read_dimensions(field: Field<'_>) -> FieldResult<Vec<String>> {
    field.list(0, DIMENSIONS_MAX, |v| {
        let good = |text: &str| {
            (1..=64).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        match v.raw().as_str() {
            Some(text) if good(text) => Ok(text.to_owned()),
            _ => v.refuse(Code::InvalidFormat, "must match ^[a-z0-9_]{1,64}$"),
        }
    })
}

fn read_formula(field: Field<'_>) -> FieldResult<MeterFormula> {
    field.object(|input| {
        let expression = input.required("expression", |v| v.text(1, EXPRESSION_MAX));
        let variables = input.required("variables", |v| {
            v.list(1, COMPONENTS_MAX, |entry| {
                entry.object(|input| {
                    let name = input.required("name", Field::key);
                    let meter_key = input.required("meter_key", Field::key);
                    Some(MeterFormulaVariable { name: name?, meter_key: meter_key? })
                })
            })
        });
        Some(MeterFormula { expression: expression?, variables: variables? })
    })
}
