//! Bodies of cost writes.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{Input, Patch, ProductId, Result};
use rating::formula::{EXPRESSION_MAX, Place};
use rating::{Formula, FormulaError};
use serde_json::Value;
use utoipa::ToSchema;

use super::{CostExpression, CostExpressionType};
use crate::version::{CopyAsDraftRequest, EditControls};

/// Body of a new cost, also in the body of a new product.
#[derive(Clone, Debug, PartialEq, ToSchema)]
pub struct CreateCostRequest {
    /// `[a-z0-9_]{1,64}`, unique per product or in the organization's costs.
    pub key: String,
    /// For people.
    pub description: Option<String>,
    /// Refused: the path says whose cost it is.
    pub product_id: Option<ProductId>,
    /// How it is computed.
    pub expression: CostExpression,
    /// Timeline flag.
    pub requires_continuous_coverage: Option<bool>,
    /// Keeps it a draft; default false.
    pub save_as_draft: Option<bool>,
}

impl CreateCostRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let request = Self::read_members(&mut input);
        input.finish()?;
        request.ok_or_else(|| domain::Error::invariant("a cost was read without an error and without a value"))
    }

    /// Reads one entry of a list.
    ///
    /// # Errors
    /// The bad fields.
    pub fn read_entry(field: Field<'_>) -> FieldResult<Self> {
        field.object(Self::read_members)
    }

    fn read_members(input: &mut Input<'_>) -> Option<Self> {
        let key = input.required("key", read_key);
        let description = input.optional("description", |v| v.text(0, 2_000));
        let product_id = input.optional("product_id", Field::id);
        let expression = input.required("expression", read_expression);
        let requires_continuous_coverage = input.optional("requires_continuous_coverage", Field::boolean);
        let save_as_draft = input.optional("save_as_draft", Field::boolean);
        if product_id.is_some() {
            input.error(
                "product_id",
                Code::NotAllowed,
                "is said by the path: a product's costs are made under the product",
            );
        }
        Some(Self {
            key: key?,
            description,
            product_id,
            expression: expression?,
            requires_continuous_coverage,
            save_as_draft,
        })
    }
}

/// Body of `PUT /v1/costs/{id}`: the members that are sent. Key and product are fixed at creation.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct UpdateCostRequest {
    /// For people.
    #[schema(value_type = Option<String>)]
    pub description: Patch<String>,
    /// How it is computed.
    pub expression: Option<CostExpression>,
    /// Timeline flag.
    pub requires_continuous_coverage: Option<bool>,
    /// When the new version takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps the edit a draft.
    pub save_as_draft: Option<bool>,
    /// Refused when the cost is at another version.
    pub expected_version: Option<i64>,
    #[schema(ignore)]
    pub(super) controls: EditControls,
}

impl UpdateCostRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let controls = EditControls::read(i);
        let request = Self {
            description: i.patch("description", |v| v.text(0, 2_000)),
            expression: i.optional("expression", read_expression),
            requires_continuous_coverage: i.optional("requires_continuous_coverage", Field::boolean),
            effective_at: controls.effective_at,
            save_as_draft: Some(controls.save_as_draft),
            expected_version: controls.expected_version,
            controls,
        };
        input.finish()?;
        Ok(request)
    }
}

impl From<CopyAsDraftRequest> for UpdateCostRequest {
    fn from(request: CopyAsDraftRequest) -> Self {
        Self { controls: request.into(), ..Self::default() }
    }
}

/// Body of `POST /v1/costs/{id}/copy`.
#[derive(Clone, Debug, ToSchema)]
pub struct CopyCostRequest {
    /// `[a-z0-9_]{1,64}`.
    pub key: String,
    /// Whose the copy is; null: the organization's, left out: as the original.
    #[schema(value_type = Option<ProductId>)]
    pub product_id: Patch<ProductId>,
}

impl CopyCostRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let key = input.required("key", read_key);
        let product_id = input.patch("product_id", Field::id);
        input.finish()?;
        Ok(Self { key: key.unwrap_or_default(), product_id }) // `finish` has refused a missing key
    }
}

fn read_key(field: Field<'_>) -> FieldResult<String> {
    let good = |text: &str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    match field.raw().as_str() {
        Some(text) if good(text) => Ok(text.to_owned()),
        _ => field.refuse(Code::InvalidFormat, "must match ^[a-z0-9_]{1,64}$"),
    }
}

/// Reads an expression; members that its type does not have are refused.
fn read_expression(field: Field<'_>) -> FieldResult<CostExpression> {
    use CostExpressionType::{Fixed, Formula, PerUnit, Percentage};
    field.object(|input| {
        let r#type = input.required("type", Field::word::<CostExpressionType>);
        let currency = input.optional("currency", Field::currency);
        let amount = input.optional("amount", Field::rate);
        let percentage = input.optional("percentage", Field::rate);
        let expression = input.optional("expression", check_formula);
        let r#type = r#type?;
        let (is_amount, is_formula) = (matches!(r#type, Fixed | PerUnit), r#type == Formula);
        for (name, is_sent, needed, allowed) in [
            ("currency", currency.is_some(), is_amount, is_amount || is_formula),
            ("amount", amount.is_some(), is_amount, is_amount),
            ("percentage", percentage.is_some(), r#type == Percentage, r#type == Percentage),
            ("expression", expression.is_some(), is_formula, is_formula),
        ] {
            if needed && !is_sent && !input.is_bad() {
                input.error(name, Code::Required, format!("is required by {}", r#type));
            } else if is_sent && !allowed {
                input.error(name, Code::NotAllowed, format!("is not used by {}", r#type));
            }
        }
        Some(CostExpression { r#type, currency, amount, percentage, expression })
    })
}

/// Checks the formula of a cost: it compiles with the names that costs have.
///
/// # Errors
/// The bad field, with the place of each error in the text.
pub fn check_formula(field: Field<'_>) -> FieldResult<String> {
    let text = field.raw().as_str().unwrap_or_default();
    let errors = match Formula::compile(text, Place::Cost, &[]) {
        Err(errors) if (1..=EXPRESSION_MAX).contains(&text.chars().count()) => errors,
        _ => return field.text(1, EXPRESSION_MAX), // what is no text of that length is refused there
    };
    let message = |error: FormulaError| format!("{} (at position {})", error.message, error.position);
    field.refuse(Code::InvalidFormat, errors.into_iter().map(message).collect::<Vec<_>>().join("; "))
}
