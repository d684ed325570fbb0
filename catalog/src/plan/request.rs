//! Bodies of plan writes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{Input, JsonMap, OveragePolicy, Patch, PoolScope, ProductId, Quantity, Result, VersionId};
use serde_json::Value;
use utoipa::ToSchema;

use super::PlanStatus;
use crate::texts::{Translations, not_null, read_translations};
use crate::version::EditControls;

/// Products of one plan.
pub(super) const PRODUCTS_MAX: usize = 500;

/// Product → version that a snapshot takes of it.
pub type ProductVersionPins = BTreeMap<ProductId, VersionId>;

/// Allowance members of an attachment, as far as they are sent.
#[derive(Clone, Debug, Default)]
pub(super) struct AllowanceEdit {
    pub included_quantity: Option<Quantity>,
    pub included_quantity_per_unit: Option<bool>,
    pub rollover_enabled: Option<bool>,
    pub rollover_max_quantity: Patch<Quantity>,
    pub rollover_expiry_periods: Patch<i64>,
    pub overage_policy: Option<OveragePolicy>,
    pub pool_scope: Option<PoolScope>,
    pub sort_order: Option<i64>,
}

impl AllowanceEdit {
    fn read(input: &mut Input<'_>) -> Self {
        Self {
            included_quantity: input.optional("included_quantity", Field::quantity_not_negative),
            included_quantity_per_unit: input.optional("included_quantity_per_unit", Field::boolean),
            rollover_enabled: input.optional("rollover_enabled", Field::boolean),
            rollover_max_quantity: input.patch("rollover_max_quantity", Field::quantity_not_negative),
            rollover_expiry_periods: input.patch("rollover_expiry_periods", |v| v.integer(1, 10_000)),
            overage_policy: input.optional("overage_policy", Field::word),
            pool_scope: input.optional("pool_scope", Field::word),
            sort_order: input.optional("sort_order", |v| v.integer(0, i64::from(i32::MAX))),
        }
    }
}

/// Always fits: both numbers are read within the range.
fn narrow(number: i64) -> Option<i32> {
    i32::try_from(number).ok()
}

/// Body of `POST /v1/plans/{id}/products`.
#[derive(Clone, Debug, ToSchema)]
pub struct AddProductRequest {
    /// The product.
    pub product_id: ProductId,
    /// Default `"0"`.
    pub included_quantity: Option<Quantity>,
    /// Default false.
    pub included_quantity_per_unit: Option<bool>,
    /// Default false.
    pub rollover_enabled: Option<bool>,
    /// Default: no cap.
    pub rollover_max_quantity: Option<Quantity>,
    /// Default: for ever.
    pub rollover_expiry_periods: Option<i32>,
    /// Default `CHARGE`.
    pub overage_policy: Option<OveragePolicy>,
    /// Default `SUBSCRIPTION`.
    pub pool_scope: Option<PoolScope>,
    /// Default 0.
    pub sort_order: Option<i32>,
    #[schema(ignore)]
    pub(super) allowance: AllowanceEdit,
}

impl AddProductRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self::read_from(&mut input);
        input.finish()?;
        request.ok_or_else(|| domain::Error::field("product_id", Code::Required, "is required"))
    }

    fn read_from(input: &mut Input<'_>) -> Option<Self> {
        let product_id = input.required("product_id", Field::id);
        let allowance = AllowanceEdit::read(input);
        Some(Self {
            product_id: product_id?,
            included_quantity: allowance.included_quantity,
            included_quantity_per_unit: allowance.included_quantity_per_unit,
            rollover_enabled: allowance.rollover_enabled,
            rollover_max_quantity: allowance.rollover_max_quantity.clone().apply(None),
            rollover_expiry_periods: allowance.rollover_expiry_periods.clone().apply(None).and_then(narrow),
            overage_policy: allowance.overage_policy,
            pool_scope: allowance.pool_scope,
            sort_order: allowance.sort_order.and_then(narrow),
            allowance,
        })
    }

    fn read_entry(field: Field<'_>) -> FieldResult<Self> {
        field.object(Self::read_from)
    }
}

/// Body of `PUT /v1/plans/{id}/products/{productId}`: the members that are sent.
#[derive(Clone, Debug, ToSchema)]
pub struct UpdatePlanProductRequest {
    /// Quantity that the base price covers.
    pub included_quantity: Option<Quantity>,
    /// Whether it is multiplied by the subscription's quantity.
    pub included_quantity_per_unit: Option<bool>,
    /// Whether what is left is carried over.
    pub rollover_enabled: Option<bool>,
    /// Cap of what is carried.
    pub rollover_max_quantity: Option<Quantity>,
    /// Periods that a carried quantity lives.
    pub rollover_expiry_periods: Option<i32>,
    /// What happens beyond the allowance.
    pub overage_policy: Option<OveragePolicy>,
    /// Who shares the allowance.
    pub pool_scope: Option<PoolScope>,
    /// Position in lists of the plan.
    pub sort_order: Option<i32>,
    #[schema(ignore)]
    pub(super) allowance: AllowanceEdit,
}

impl UpdatePlanProductRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let allowance = AllowanceEdit::read(&mut input);
        input.finish()?;
        Ok(Self {
            included_quantity: allowance.included_quantity,
            included_quantity_per_unit: allowance.included_quantity_per_unit,
            rollover_enabled: allowance.rollover_enabled,
            rollover_max_quantity: allowance.rollover_max_quantity.clone().apply(None),
            rollover_expiry_periods: allowance.rollover_expiry_periods.clone().apply(None).and_then(narrow),
            overage_policy: allowance.overage_policy,
            pool_scope: allowance.pool_scope,
            sort_order: allowance.sort_order.and_then(narrow),
            allowance,
        })
    }
}

/// Body of `POST /v1/plans`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreatePlanRequest {
    /// Name, 1–255 characters.
    pub name: String,
    /// Internal text.
    pub description: Option<String>,
    /// Text for customers.
    pub public_description: Option<String>,
    /// Own code, unique in the workspace.
    pub external_id: Option<String>,
    /// Timeline flag.
    pub requires_continuous_coverage: Option<bool>,
    /// Products to attach.
    pub products: Option<Vec<AddProductRequest>>,
    /// Values of the organization's field definitions.
    #[schema(value_type = Option<Object>)]
    pub custom_fields: Option<JsonMap>,
    /// Free bag.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
    /// Texts by locale.
    pub translations: Option<Translations>,
}

impl CreatePlanRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`, also for a product that stands twice.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let name = i.required("name", |v| v.text(1, 255));
        let request = Self {
            name: name.unwrap_or_default(), // `finish` refuses a missing one
            description: i.optional("description", |v| v.text(0, 2_000)),
            public_description: i.optional("public_description", |v| v.text(0, 2_000)),
            external_id: i.optional("external_id", |v| v.text(1, 255)),
            requires_continuous_coverage: i.optional("requires_continuous_coverage", Field::boolean),
            products: i.optional("products", |v| v.list(0, PRODUCTS_MAX, AddProductRequest::read_entry)),
            custom_fields: i.optional("custom_fields", Field::json_object),
            metadata: i.optional("metadata", Field::metadata),
            translations: i.optional("translations", read_translations),
        };
        let products = request.products.iter().flatten().map(|product| product.product_id).collect::<Vec<_>>();
        for (index, id) in products.iter().enumerate() {
            if products[..index].contains(id) {
                i.error(&format!("products[{index}].product_id"), Code::NotAllowed, "stands twice");
            }
        }
        input.finish()?;
        Ok(request)
    }
}

/// Body of `PUT /v1/plans/{id}`: the members that are sent.
#[derive(Clone, Debug, ToSchema)]
pub struct UpdatePlanRequest {
    /// Name, 1–255 characters.
    pub name: Option<String>,
    /// Internal text.
    #[schema(value_type = Option<String>)]
    pub description: Patch<String>,
    /// Text for customers.
    #[schema(value_type = Option<String>)]
    pub public_description: Patch<String>,
    /// Own code.
    #[schema(value_type = Option<String>)]
    pub external_id: Patch<String>,
    /// Makes a transition.
    pub status: Option<PlanStatus>,
    /// Timeline flag.
    pub requires_continuous_coverage: Option<bool>,
    /// Product → version that the next snapshot takes of it.
    #[schema(value_type = Option<std::collections::HashMap<String, uuid::Uuid>>)]
    pub product_version_pins: Option<ProductVersionPins>,
    /// Values of the organization's field definitions.
    #[schema(value_type = Option<Object>)]
    pub custom_fields: Option<JsonMap>,
    /// Keys that are sent replace, null removes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
    /// Texts by locale.
    pub translations: Option<Translations>,
    /// When the new version takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps the edit a draft.
    pub save_as_draft: Option<bool>,
    /// Refused when the plan is at another version.
    pub expected_version: Option<i64>,
    /// Whether nothing but a transition was sent.
    #[schema(ignore)]
    pub(super) is_transition_only: bool,
    #[schema(ignore)]
    pub(super) controls: EditControls,
}

impl UpdatePlanRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let names = ["status", "expected_version"];
        let only = body.as_object().is_some_and(|sent| sent.keys().all(|name| names.contains(&name.as_str())));
        let name = i.patch("name", |v| v.text(1, 255));
        let controls = EditControls::read(i);
        let request = Self {
            name: not_null(i, "name", name),
            description: i.patch("description", |v| v.text(0, 2_000)),
            public_description: i.patch("public_description", |v| v.text(0, 2_000)),
            external_id: i.patch("external_id", |v| v.text(1, 255)),
            status: i.optional("status", Field::word),
            requires_continuous_coverage: i.optional("requires_continuous_coverage", Field::boolean),
            product_version_pins: i.optional("product_version_pins", read_pins),
            custom_fields: i.optional("custom_fields", Field::json_object),
            metadata: i.optional("metadata", Field::metadata),
            translations: i.optional("translations", read_translations),
            effective_at: controls.effective_at,
            save_as_draft: Some(controls.save_as_draft),
            expected_version: controls.expected_version,
            is_transition_only: only,
            controls,
        };
        input.finish()?;
        Ok(request)
    }
}

/// Body of `POST /v1/plans/{id}/publish`.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct PublishPlanRequest {
    /// When it takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Refused when the plan is at another version.
    pub expected_version: Option<i64>,
    /// Product → version that the snapshot takes of it.
    #[schema(value_type = Option<std::collections::HashMap<String, uuid::Uuid>>)]
    pub product_version_pins: Option<ProductVersionPins>,
}

impl PublishPlanRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self {
            effective_at: input.optional("effective_at", Field::instant),
            expected_version: input.optional("expected_version", |v| v.integer(0, i64::from(i32::MAX))),
            product_version_pins: input.optional("product_version_pins", read_pins),
        };
        input.finish()?;
        Ok(request)
    }
}

fn read_pins(field: Field<'_>) -> FieldResult<ProductVersionPins> {
    let map = field.map_of(PRODUCTS_MAX, 36, Field::id::<VersionId>)?;
    let mut pins = ProductVersionPins::new();
    for (key, version) in map {
        let Ok(product) = key.parse() else {
            let message = "keys must be product ids".to_owned();
            let field = format!("product_version_pins.{key}");
            return Err(vec![domain::FieldError { field, code: Code::InvalidFormat, message }]);
        };
        pins.insert(product, version);
    }
    Ok(pins)
}
