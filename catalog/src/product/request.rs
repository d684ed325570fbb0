//! Bodies of product writes.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::{
    Input, JsonMap, Patch, PricingModel, ProductId, ProductTaxCategory, ProductType, Result, SupplyType,
    UnmatchedPriceKeyPolicy,
};
use serde_json::Value;
use utoipa::ToSchema;

use crate::cost::CreateCostRequest;
use crate::texts::{Translations, not_null, read_translations};
use crate::version::EditControls;

/// Products that one product may require.
const REQUIRED_PRODUCTS_MAX: usize = 50;

/// Body of `POST /v1/products`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreateProductRequest {
    /// Name, 1–255 characters.
    pub name: String,
    /// Where its quantity comes from.
    pub r#type: ProductType,
    /// How tiers are walked; default `VOLUME`.
    pub pricing_model: Option<PricingModel>,
    /// Own code, unique in the workspace.
    pub external_id: Option<String>,
    /// Internal text.
    pub description: Option<String>,
    /// Text for customers.
    pub public_description: Option<String>,
    /// Default `DEFAULT`.
    pub tax_category: Option<ProductTaxCategory>,
    /// Default `SERVICES`.
    pub supply_type: Option<SupplyType>,
    /// Products that must be bought with it.
    pub requires_product_ids: Option<Vec<ProductId>>,
    /// Default false.
    pub invoiceable_standalone: Option<bool>,
    /// Default false.
    pub requires_continuous_coverage: Option<bool>,
    /// Makes the product keyed.
    pub price_key_label: Option<String>,
    /// Default `reject`.
    pub unmatched_price_key_policy: Option<UnmatchedPriceKeyPolicy>,
    /// Needed by `use_default`.
    pub default_price_key: Option<String>,
    /// Default false.
    pub tiers_on_total: Option<bool>,
    /// Inline costs.
    pub costs: Option<Vec<CreateCostRequest>>,
    /// Texts by locale.
    pub translations: Option<Translations>,
    /// Values of the organization's field definitions.
    #[schema(value_type = Option<Object>)]
    pub custom_fields: Option<JsonMap>,
    /// Free bag.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
    /// Keeps it a draft; default false: published with version 1.
    pub save_as_draft: Option<bool>,
}

impl CreateProductRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`, also for a type and model that do not go together.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let name = i.required("name", |v| v.text(1, 255));
        let r#type = i.required("type", Field::word::<ProductType>);
        let request = Self {
            name: name.unwrap_or_default(),
            r#type: r#type.unwrap_or(ProductType::FixedCharge), // `finish` refuses a missing one
            pricing_model: i.optional("pricing_model", Field::word),
            external_id: i.optional("external_id", |v| v.text(1, 255)),
            description: i.optional("description", |v| v.text(0, 2_000)),
            public_description: i.optional("public_description", |v| v.text(0, 2_000)),
            tax_category: i.optional("tax_category", Field::word),
            supply_type: i.optional("supply_type", Field::word),
            requires_product_ids: i.optional("requires_product_ids", |v| v.list(0, REQUIRED_PRODUCTS_MAX, Field::id)),
            invoiceable_standalone: i.optional("invoiceable_standalone", Field::boolean),
            requires_continuous_coverage: i.optional("requires_continuous_coverage", Field::boolean),
            price_key_label: i.optional("price_key_label", |v| v.text(1, 64)),
            unmatched_price_key_policy: i.optional("unmatched_price_key_policy", Field::word),
            default_price_key: i.optional("default_price_key", |v| v.text(1, 255)),
            tiers_on_total: i.optional("tiers_on_total", Field::boolean),
            costs: i.optional("costs", |v| v.list(0, 50, CreateCostRequest::read_entry)),
            translations: i.optional("translations", read_translations),
            custom_fields: i.optional("custom_fields", Field::json_object),
            metadata: i.optional("metadata", Field::metadata),
            save_as_draft: i.optional("save_as_draft", Field::boolean),
        };
        if r#type.is_some() {
            check_pair(i, request.r#type, request.pricing_model.unwrap_or(PricingModel::Volume));
        }
        if request.unmatched_price_key_policy == Some(UnmatchedPriceKeyPolicy::UseDefault)
            && request.default_price_key.is_none()
        {
            i.error("default_price_key", Code::Required, "is required by the policy use_default");
        }
        input.finish()?;
        Ok(request)
    }
}

/// Body of `PUT /v1/products/{id}`: the members that are sent.
#[derive(Clone, Debug, ToSchema)]
pub struct UpdateProductRequest {
    /// Name, 1–255 characters.
    pub name: Option<String>,
    /// How tiers are walked.
    pub pricing_model: Option<PricingModel>,
    /// Own code.
    #[schema(value_type = Option<String>)]
    pub external_id: Patch<String>,
    /// Internal text.
    #[schema(value_type = Option<String>)]
    pub description: Patch<String>,
    /// Text for customers.
    #[schema(value_type = Option<String>)]
    pub public_description: Patch<String>,
    /// Input of the tax determination.
    pub tax_category: Option<ProductTaxCategory>,
    /// Tax discriminator.
    pub supply_type: Option<SupplyType>,
    /// Products that must be bought with it.
    pub requires_product_ids: Option<Vec<ProductId>>,
    /// Changed live, without a new version.
    pub invoiceable_standalone: Option<bool>,
    /// Timeline flag.
    pub requires_continuous_coverage: Option<bool>,
    /// Label of the key dimension.
    #[schema(value_type = Option<String>)]
    pub price_key_label: Patch<String>,
    /// What happens to an event whose key has no price.
    pub unmatched_price_key_policy: Option<UnmatchedPriceKeyPolicy>,
    /// Key used by `use_default`.
    #[schema(value_type = Option<String>)]
    pub default_price_key: Patch<String>,
    /// Whether tiers are walked by total.
    pub tiers_on_total: Option<bool>,
    /// Texts by locale.
    pub translations: Option<Translations>,
    /// Values of the organization's field definitions.
    #[schema(value_type = Option<Object>)]
    pub custom_fields: Option<JsonMap>,
    /// Keys that are sent replace, null removes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
    /// When the new version takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps the edit a draft.
    pub save_as_draft: Option<bool>,
    /// Refused when the product is at another version.
    pub expected_version: Option<i64>,
    /// Whether only members were sent that need no new version.
    #[schema(ignore)]
    pub(super) is_live_edit: bool,
    #[schema(ignore)]
    pub(super) controls: EditControls,
}

impl UpdateProductRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let live = ["invoiceable_standalone", "expected_version"];
        let is_live_edit = body.as_object().is_some_and(|sent| sent.keys().all(|name| live.contains(&name.as_str())));
        let name = i.patch("name", |v| v.text(1, 255));
        let controls = EditControls::read(i);
        let request = Self {
            name: not_null(i, "name", name),
            pricing_model: i.optional("pricing_model", Field::word),
            external_id: i.patch("external_id", |v| v.text(1, 255)),
            description: i.patch("description", |v| v.text(0, 2_000)),
            public_description: i.patch("public_description", |v| v.text(0, 2_000)),
            tax_category: i.optional("tax_category", Field::word),
            supply_type: i.optional("supply_type", Field::word),
            requires_product_ids: i.optional("requires_product_ids", |v| v.list(0, REQUIRED_PRODUCTS_MAX, Field::id)),
            invoiceable_standalone: i.optional("invoiceable_standalone", Field::boolean),
            requires_continuous_coverage: i.optional("requires_continuous_coverage", Field::boolean),
            price_key_label: i.patch("price_key_label", |v| v.text(1, 64)),
            unmatched_price_key_policy: i.optional("unmatched_price_key_policy", Field::word),
            default_price_key: i.patch("default_price_key", |v| v.text(1, 255)),
            tiers_on_total: i.optional("tiers_on_total", Field::boolean),
            translations: i.optional("translations", read_translations),
            custom_fields: i.optional("custom_fields", Field::json_object),
            metadata: i.optional("metadata", Field::metadata),
            effective_at: controls.effective_at,
            save_as_draft: Some(controls.save_as_draft),
            expected_version: controls.expected_version,
            is_live_edit,
            controls,
        };
        input.finish()?;
        Ok(request)
    }
}

/// Notes a pair that products.md (rule 3) does not allow.
pub(super) fn check_pair(input: &mut Input<'_>, product_type: ProductType, model: PricingModel) {
    if !pair_is_allowed(product_type, model) {
        input.error("pricing_model", Code::NotAllowed, pair_message(product_type));
    }
}

/// The table of products.md, rule 3.
pub(super) fn pair_is_allowed(product_type: ProductType, model: PricingModel) -> bool {
    match product_type {
        ProductType::FixedCharge => model == PricingModel::Volume,
        ProductType::Seat => model != PricingModel::Package,
        ProductType::Usage => true,
    }
}

pub(super) fn pair_message(product_type: ProductType) -> &'static str {
    match product_type {
        ProductType::FixedCharge => "FIXED_CHARGE products are priced by VOLUME only",
        ProductType::Seat => "SEAT products are priced by VOLUME or STAIRCASE",
        ProductType::Usage => "USAGE products are priced by VOLUME, STAIRCASE or PACKAGE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::Error;
    use serde_json::json;

    #[test]
    fn the_nine_pairs_of_type_and_model() {
        for (product_type, allowed) in [
            ("FIXED_CHARGE", ["VOLUME"].as_slice()),
            ("SEAT", &["VOLUME", "STAIRCASE"]),
            ("USAGE", &["VOLUME", "STAIRCASE", "PACKAGE"]),
        ] {
            for model in ["VOLUME", "STAIRCASE", "PACKAGE"] {
                let body = json!({"name": "x", "type": product_type, "pricing_model": model});
                let read = CreateProductRequest::read(&body);
                match read {
                    Ok(_) => assert!(allowed.contains(&model), "{product_type} {model}"),
                    Err(Error::Validation(fields)) => {
                        assert!(!allowed.contains(&model), "{product_type} {model}");
                        assert_eq!(fields[0].field, "pricing_model");
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
}
