//! Costs as products show them (costs.md). Their operations belong to another tag.

use chrono::{DateTime, Utc};
use domain::input::{Field, FieldResult};
use domain::{Currency, OrganizationId, ProductId};
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

domain::wire_enum! {
    /// Whose cost it is.
    pub enum CostScope {
        /// One product's.
        Product = "PRODUCT",
        /// The organization's.
        Org = "ORG",
    }
}

domain::wire_enum! {
    /// State of a cost.
    pub enum CostStatus {
        /// Being edited.
        Draft = "draft",
        /// In effect.
        Active = "active",
        /// Withdrawn.
        Archived = "archived",
    }
}

domain::wire_enum! {
    /// How a cost is computed.
    pub enum CostExpressionType {
        /// Amount per line and period.
        Fixed = "FIXED",
        /// Amount times quantity.
        PerUnit = "PER_UNIT",
        /// Percentage of the line's revenue.
        Percentage = "PERCENTAGE",
        /// A formula over quantity and revenue.
        Formula = "FORMULA",
        /// Sum of the external costs of the rated events.
        External = "EXTERNAL",
    }
}

/// How a cost is computed.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct CostExpression {
    /// Which computation.
    pub r#type: CostExpressionType,
    /// Currency of `amount`.
    #[schema(value_type = Option<String>)]
    pub currency: Option<Currency>,
    /// Decimal string.
    #[schema(value_type = Option<String>)]
    pub amount: Option<Decimal>,
    /// Percentage as a decimal string.
    #[schema(value_type = Option<String>)]
    pub percentage: Option<Decimal>,
    /// Formula.
    pub expression: Option<String>,
}

/// A named cost.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Cost {
    /// Cost.
    pub id: Uuid,
    /// Owner.
    pub organization_id: OrganizationId,
    /// Its product; null for the organization's.
    #[schema(required)]
    pub product_id: Option<ProductId>,
    /// Stable name.
    pub key: String,
    /// For people.
    #[schema(required)]
    pub description: Option<String>,
    /// Whose it is.
    pub scope: CostScope,
    /// How it is computed.
    pub expression: CostExpression,
    /// State.
    pub status: CostStatus,
    /// Number of the active version.
    pub version: i32,
    /// The active version.
    #[schema(required)]
    pub head_version_id: Option<Uuid>,
    /// Timeline flag.
    pub requires_continuous_coverage: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
    /// When it was withdrawn.
    #[schema(required)]
    pub archived_at: Option<DateTime<Utc>>,
}

/// A cost in the body of a new product.
#[derive(Clone, Debug, PartialEq, ToSchema)]
pub struct CreateCostRequest {
    /// `[a-z0-9_]{1,64}`.
    pub key: String,
    /// For people.
    pub description: Option<String>,
    /// Refused where the path names the product.
    pub product_id: Option<ProductId>,
    /// How it is computed.
    pub expression: CostExpression,
    /// Timeline flag.
    pub requires_continuous_coverage: Option<bool>,
    /// Whether it stays a draft.
    pub save_as_draft: Option<bool>,
}

impl CreateCostRequest {
    /// Reads one entry.
    ///
    /// # Errors
    /// The bad fields.
    pub fn read(field: Field<'_>) -> FieldResult<Self> {
        field.object(|input| {
            let key = input.required("key", Field::key);
            let description = input.optional("description", |v| v.text(0, 2_000));
            let product_id = input.optional("product_id", Field::id);
            let expression = input.required("expression", read_expression);
            let requires_continuous_coverage = input.optional("requires_continuous_coverage", Field::boolean);
            let save_as_draft = input.optional("save_as_draft", Field::boolean);
            Some(Self {
                key: key?,
                description,
                product_id,
                expression: expression?,
                requires_continuous_coverage,
                save_as_draft,
            })
        })
    }
}

fn read_expression(field: Field<'_>) -> FieldResult<CostExpression> {
    field.object(|input| {
        let r#type = input.required("type", Field::word);
        let currency = input.optional("currency", Field::currency);
        let amount = input.optional("amount", Field::rate);
        let percentage = input.optional("percentage", Field::rate);
        let expression = input.optional("expression", |v| v.text(1, 2_000));
        Some(CostExpression { r#type: r#type?, currency, amount, percentage, expression })
    })
}
