//! Usage caps of a subscription (thresholds-and-alerts.md 1). They are set with a record for the home partition, whose next
//! checkpoint compares the running windows with them; reservations read them in their own transaction.

use catalog::compiled::{Snapshots, WorkspaceCatalog};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{
    BindingRole, Currency, CustomerId, Error, FieldError, Input, Money, ProductId, Quantity, Result, Scope,
    SubscriptionId, UsageCapAction,
};
use rating::CapLimit;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use store::{StoreError, Tx};

use crate::door::wire::METRIC_KEY_MAX;
use crate::outbox::{self, Outgoing};
use crate::record::{Control, ControlKind, Record};

/// Caps of one subscription.
const CAPS_MAX: usize = 100;
/// Amounts of caps lie below: breaches show them like quantities, with at most 15 integer digits.
const AMOUNT_END: Decimal = Decimal::from_parts(0xA4C6_8000, 0x0003_8D7E, 0, false, 0); // 10^15

/// How much of a product and metric a subscription may use in a billing period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UsageCap {
    /// USAGE product.
    pub product_id: ProductId,
    /// Metric that it is billed by.
    pub metric_key: String,
    /// Units of the metric, above zero; this or `limit_amount`.
    pub limit_quantity: Option<Quantity>,
    /// Net amount in the subscription's currency, above zero.
    pub limit_amount: Option<Money>,
    /// What happens when it is reached.
    pub action: UsageCapAction,
}

impl From<rating::UsageCap> for UsageCap {
    fn from(cap: rating::UsageCap) -> Self {
        let (limit_quantity, limit_amount) = match cap.limit {
            CapLimit::Quantity(quantity) => (Some(quantity), None),
            CapLimit::Amount(amount) => (None, Some(amount)),
        };
        let rating::UsageCap { product_id, metric_key, action, .. } = cap;
        Self { product_id, metric_key, limit_quantity, limit_amount, action }
    }
}

/// Caps of one subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UsageCaps {
    /// The subscription.
    pub subscription_id: SubscriptionId,
    /// As they were set.
    pub caps: Vec<UsageCap>,
}

impl UsageCaps {
    fn new(subscription_id: SubscriptionId, caps: Vec<rating::UsageCap>) -> Self {
        Self { subscription_id, caps: caps.into_iter().map(UsageCap::from).collect() }
    }
}

/// Body of `PUT /v1/subscriptions/{id}/usage-caps`.
#[derive(Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
pub struct SetUsageCapsRequest {
    /// All caps; those that are not named are gone. At most 100.
    #[schema(value_type = Vec<UsageCap>)]
    pub caps: Vec<rating::UsageCap>,
}

impl SetUsageCapsRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let caps = input.required("caps", |v| v.list(0, CAPS_MAX, read_cap)).unwrap_or_default();
        for (index, cap) in caps.iter().enumerate() {
            if caps[..index].contains(cap) {
                input.error(&format!("caps[{index}]"), Code::NotAllowed, "stands in the list before");
            }
        }
        input.finish()?;
        Ok(Self { caps })
    }
}

fn read_cap(field: Field<'_>) -> FieldResult<rating::UsageCap> {
    field.object(|input| {
        let product_id = input.required("product_id", Field::id);
        let metric_key = input.required("metric_key", |v| v.text(1, METRIC_KEY_MAX));
        let quantity = input.optional("limit_quantity", quantity_above_zero);
        let amount = input.optional("limit_amount", amount_above_zero);
        let action = input.required("action", Field::word);
        let limit = match (quantity, amount) {
            (Some(_), Some(_)) => {
                input.error("limit_amount", Code::NotAllowed, "must be absent beside limit_quantity");
                None
            }
            (Some(quantity), None) => Some(CapLimit::Quantity(quantity)),
            (None, Some(amount)) => Some(CapLimit::Amount(amount)),
            (None, None) if input.is_bad() => None,
            (None, None) => {
                input.error("limit_quantity", Code::Required, "is required, or limit_amount");
                None
            }
        };
        Some(rating::UsageCap { product_id: product_id?, metric_key: metric_key?, limit: limit?, action: action? })
    })
}

fn quantity_above_zero(field: Field<'_>) -> FieldResult<Quantity> {
    let refused = field.refuse(Code::OutOfRange, "must be above zero");
    let quantity = field.quantity_not_negative()?;
    if quantity.is_zero() { refused } else { Ok(quantity) }
}

fn amount_above_zero(field: Field<'_>) -> FieldResult<Money> {
    let refused = field.refuse(Code::OutOfRange, "must be above zero, with at most 15 integer digits");
    let amount = field.money()?;
    if amount.is_zero() || amount.is_negative() || amount.amount() >= AMOUNT_END { refused } else { Ok(amount) }
}

#[derive(FromRow)]
struct Row {
    customer_id: CustomerId,
    home_partition: i32,
    currency: Currency,
    usage_caps: Json<Vec<rating::UsageCap>>,
}

async fn row(scope: &Scope, conn: &mut PgConnection, id: SubscriptionId, sql: &'static str) -> Result<Row> {
    let row: Option<Row> = sqlx::query_as(sql)
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading the usage caps of a subscription")?;
    row.ok_or_else(|| Error::not_found("subscription", id))
}

/// The caps of a subscription.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: SubscriptionId) -> Result<UsageCaps> {
    const SQL: &str = "SELECT customer_id, home_partition, currency, usage_caps FROM subscription
                       WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL";
    Ok(UsageCaps::new(id, row(scope, conn, id, SQL).await?.usage_caps.0))
}

/// Replaces the caps of a subscription. A cap below what is used already is reached at once.
///
/// # Errors
/// `NotFound` for the subscription and for products; 422 for products and metrics that no meter bills, and for amounts in
/// another currency than the subscription's.
pub async fn set(
    scope: &Scope,
    tx: &mut Tx,
    snapshots: &Snapshots,
    id: SubscriptionId,
    request: SetUsageCapsRequest,
) -> Result<UsageCaps> {
    const SQL: &str = "SELECT customer_id, home_partition, currency, usage_caps FROM subscription
                       WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL FOR UPDATE";
    let row = row(scope, tx.conn(), id, SQL).await?;
    let applied = snapshots.revision();
    let mut checked = check(&*snapshots.workspace(scope.workspace_id).await?, row.currency, &request.caps);
    if checked.is_err() && snapshots.is_behind(applied).await? {
        checked = check(&*snapshots.workspace(scope.workspace_id).await?, row.currency, &request.caps);
    }
    checked?;
    sqlx::query("UPDATE subscription SET usage_caps = $2, updated_at = $3, version = version + 1 WHERE id = $1")
        .bind(id)
        .bind(Json(&request.caps))
        .bind(scope.now())
        .execute(tx.conn())
        .await
        .context("setting the usage caps of a subscription")?;
    tx.subscription_changed(scope.workspace_id, id);
    let control = Control {
        kind: ControlKind::LimitsChanged,
        workspace_id: scope.workspace_id,
        subscription_id: id,
        customer_id: row.customer_id,
        window_start: scope.now(),
        window_end: scope.now(),
        catalog_revision: snapshots.revision(),
    };
    let (home, record) = (row.home_partition.unsigned_abs(), Record::Control(control));
    outbox::put(tx, &[Outgoing { subscription_id: id, home, record }], scope.now()).await?;
    Ok(UsageCaps::new(id, request.caps))
}

/// What a cap is on must be there and be billed; all that is not is named.
fn check(catalog: &WorkspaceCatalog, currency: Currency, caps: &[rating::UsageCap]) -> Result<()> {
    let mut errors = Vec::new();
    for (index, cap) in caps.iter().enumerate() {
        let product = catalog.product(cap.product_id).filter(|product| product.is_live);
        let product = product.ok_or_else(|| Error::not_found("product", cap.product_id))?;
        let mut bad = |member: &str, message: String| {
            errors.push(FieldError { field: format!("caps[{index}].{member}"), code: Code::NotAllowed, message });
        };
        let is_billed = product
            .bindings
            .iter()
            .filter(|binding| binding.metric_key == cap.metric_key)
            .any(|binding| binding.versions.iter().any(|(_, _, version)| version.role == BindingRole::Primary));
        if !is_billed {
            bad("metric_key", format!("no meter bills product {} for metric {:?}", product.id, cap.metric_key));
        }
        if let CapLimit::Amount(amount) = cap.limit
            && amount.currency() != currency
        {
            bad("limit_amount.currency", format!("must be {currency}, the currency of the subscription"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::rule_of_fields("the usage caps cannot be evaluated", errors)) }
}
