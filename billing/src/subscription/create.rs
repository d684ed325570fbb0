//! Creating a subscription (subscriptions.md 1.2 and 3.1).

use catalog::compiled::{PriceQuery, ProductTerms, Unpriced, WorkspaceCatalog};
use chrono::Days;
use chrono_tz::Tz;
use currency::Purpose;
use domain::error::FieldErrorCode as Code;
use domain::event::{VarValue, Vars};
use domain::period::default_anchor_day;
use domain::{
    BillingIntervalUnit, BillingTiming, ChargeKind, CustomerId, Error, Instant, JsonMap, PhaseId, ProductId,
    ProductType, Result, Scope, SubscriptionId, SubscriptionItemId, TestClockId, VersionId,
};
use serde::Serialize;
use serde_json::json;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use store::{StoreError, Tx};

use super::model::{Subscription, SubscriptionDTO};
use super::read;
use super::request::{CreateSubscriptionRequest, SubscriptionItemInput};
use super::words::{SubscriptionStatus, VersionTrackMode};
use super::write::store_state;
use crate::billing::{Billing, clocked};
use crate::{due, events};

#[derive(FromRow)]
struct Customer {
    status: String,
    country: Option<String>,
    test_clock_id: Option<TestClockId>,
}

#[derive(FromRow)]
struct Plan {
    name: String,
    status: String,
    version_id: Option<VersionId>,
    version: Option<i32>,
}

/// What a new subscription is checked and built with.
struct Context<'a> {
    scope: Scope,
    request: &'a CreateSubscriptionRequest,
    catalog: &'a WorkspaceCatalog,
    country: Option<String>,
    plan_version: i32,
    plan_version_id: VersionId,
    plan_name: String,
    timezone: Tz,
    started_at: Instant,
    trial_ends_at: Option<Instant>,
    test_clock_id: Option<TestClockId>,
}

impl Billing {
    /// Creates a subscription with its items, its phase and the work that its first instants need. `partitions` is the
    /// number of partitions of the event log: it fixes the home of its usage for life (rule A5).
    ///
    /// # Errors
    /// `NotFound` for customer, plan or product; 422 for a plan that takes no subscriptions, a product that is not of the
    /// plan, is archived or lacks one that it requires, a price that is not for this subscription or does not resolve in
    /// its currency, another test clock than the customer's; `CURRENCY_NOT_ENABLED`.
    pub async fn create_subscription(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        request: &CreateSubscriptionRequest,
        partitions: u32,
    ) -> Result<SubscriptionDTO> {
        self.snapshots.refresh().await?;
        let catalog = self.snapshots.workspace(scope.workspace_id).await?;
        let context = Context::load(scope, tx.conn(), request, &catalog).await?;
        currency::require(scope, tx, request.currency, Purpose::Billing).await?;
        let items = context.items()?;
        check_requirements(scope, tx.conn(), &items).await?;
        let id = SubscriptionId::generate();
        let mut subscription = context.subscription(id, partitions);
        insert(tx.conn(), &subscription).await?;
        insert_items(tx.conn(), &context, &subscription, &items).await?;
        let now = context.scope.now();
        let mut consequences = if subscription.started_at > now {
            let kind = due::DueKind::SubscriptionStart;
            let work = vec![due::NewWork::on(&subscription, kind, subscription.started_at, due::Nothing {})];
            super::lifecycle::Consequences { work, ..Default::default() }
        } else {
            subscription.start()?
        };
        consequences.events.insert(0, subscription.event("subscription.created", now));
        store_state(tx.conn(), scope.workspace_id, now, &[&subscription]).await?;
        due::plan(tx.conn(), now, &consequences.work).await?;
        events::emit(tx.conn(), &consequences.events).await?;
        read::get(scope, tx.conn(), id).await
    }
}

impl<'a> Context<'a> {
    async fn load(
        scope: &Scope,
        conn: &mut PgConnection,
        request: &'a CreateSubscriptionRequest,
        catalog: &'a WorkspaceCatalog,
    ) -> Result<Self> {
        let customer = customer(scope, conn, request.customer_id).await?;
        if request.test_clock_id.is_some() && request.test_clock_id != customer.test_clock_id {
            return Err(Error::business_rule("test_clock_id must be the test clock of the customer"));
        }
        if let Some(key) = request.custom_fields.keys().next() {
            return Err(Error::business_rule(format!("the custom field {key} is not defined")));
        }
        let scope = clocked(scope, conn, customer.test_clock_id).await?;
        let (plan, version_id, version) = plan(&scope, conn, request).await?;
        let timezone: String = sqlx::query_scalar("SELECT timezone FROM organization WHERE id = $1")
            .bind(scope.organization_id)
            .fetch_one(conn)
            .await
            .context("reading the organization's time zone")?;
        let timezone: Tz = timezone
            .parse()
            .map_err(|_| Error::invariant(format!("unknown time zone {timezone} of the organization")))?;
        let started_at = request.started_at.unwrap_or_else(|| scope.now());
        let trial = request.trial_duration_days.filter(|days| *days > 0);
        let trial_ends_at = trial.map(|days| add_days(started_at, days, timezone)).transpose()?;
        Ok(Self {
            scope,
            request,
            catalog,
            country: customer.country,
            plan_version: version,
            plan_version_id: version_id,
            plan_name: plan,
            timezone,
            started_at,
            trial_ends_at,
            test_clock_id: customer.test_clock_id,
        })
    }

    fn first_period_start(&self) -> Instant {
        self.trial_ends_at.unwrap_or(self.started_at)
    }

    /// The items of the request, or one per product of the plan; each must have a price in the subscription's currency.
    fn items(&self) -> Result<Vec<(SubscriptionItemInput, ProductType)>> {
        let plan = self
            .catalog
            .plan_version(self.plan_version_id)
            .ok_or_else(|| Error::invariant(format!("plan version {} is not compiled", self.plan_version_id)))?;
        let planned: Vec<ProductId> = plan.products.iter().map(|product| product.product_id).collect();
        let inputs = match &self.request.items {
            Some(items) => items.clone(),
            None => planned.iter().map(|product_id| SubscriptionItemInput::of(*product_id)).collect(),
        };
        let mut items: Vec<(SubscriptionItemInput, ProductType)> = Vec::with_capacity(inputs.len());
        for (index, input) in inputs.into_iter().enumerate() {
            let product =
                self.catalog.product(input.product_id).ok_or_else(|| Error::not_found("product", input.product_id))?;
            let field = |name: &str| format!("items[{index}].{name}");
            if !product.is_live {
                return Err(Error::business_rule(format!("product {} is not published", product.id)));
            }
            if !planned.contains(&input.product_id) {
                let detail = format!("product {} is not a product of the plan {}", input.product_id, self.plan_name);
                return Err(Error::business_rule(detail));
            }
            if items
                .iter()
                .any(|(known, _)| (known.product_id, &known.price_key) == (input.product_id, &input.price_key))
            {
                return Err(Error::field(field("product_id"), Code::NotAllowed, "stands twice among the items"));
            }
            if product.kind == ProductType::Usage && input.unit_amount.is_some() {
                return Err(Error::field(field("unit_amount"), Code::NotAllowed, "usage is rated by its price"));
            }
            self.check_price(&input, product)?;
            items.push((input, product.kind));
        }
        Ok(items)
    }

    fn check_price(&self, input: &SubscriptionItemInput, product: &ProductTerms) -> Result<()> {
        let none = Vars::new();
        let query = self.price_query(input, &none);
        if let Some(price_id) = input.price_id {
            let price = product.prices.iter().find(|price| price.id == price_id);
            let price = price.ok_or_else(|| Error::not_found("price", price_id))?;
            if price.currency != self.request.currency {
                return Err(Unpriced::OtherCurrency(price.currency).into_error(input.product_id));
            }
            if !self.catalog.can_be_fixed(&query, price) {
                let detail = format!(
                    "price {price_id} is for another price_key, plan, customer or interval, or is not in effect"
                );
                return Err(Error::business_rule(detail));
            }
            return Ok(());
        }
        // Events of a keyed product choose the price by their own key.
        if product.kind == ProductType::Usage && product.is_keyed() && input.price_key.is_none() {
            return Ok(());
        }
        match self.catalog.resolve(&query) {
            Err(Unpriced::NoPrice) if product.kind == ProductType::Usage && self.has_dimensions(input, product) => {
                Ok(())
            }
            resolved => resolved.map(drop).map_err(|unpriced| unpriced.into_error(input.product_id)),
        }
    }

    /// Whether events with the right dimensions have a price.
    fn has_dimensions(&self, input: &SubscriptionItemInput, product: &ProductTerms) -> bool {
        product.prices.iter().any(|price| {
            let named = price.custom_dimensions.iter();
            let dimensions = named.map(|(name, value)| (name.clone(), VarValue::Text(value.clone()))).collect();
            self.catalog.resolve(&self.price_query(input, &dimensions)).is_ok()
        })
    }

    fn price_query<'q>(&'q self, input: &'q SubscriptionItemInput, dimensions: &'q Vars) -> PriceQuery<'q> {
        PriceQuery {
            product_id: input.product_id,
            price_key: input.price_key.as_deref(),
            plan_id: Some(self.request.plan_id),
            plan_version_id: Some(self.plan_version_id),
            customer_id: Some(self.request.customer_id),
            country: self.country.as_deref(),
            currency: Some(self.request.currency),
            interval: Some((self.request.billing_interval_unit, self.request.billing_interval_count.unsigned_abs())),
            dimensions,
            at: self.first_period_start(),
        }
    }

    fn subscription(&self, id: SubscriptionId, partitions: u32) -> Subscription {
        let (request, now) = (self.request, self.scope.now());
        let anchor = default_anchor_day(self.first_period_start(), self.timezone);
        let home = domain::home::partition(request.customer_id, partitions);
        Subscription {
            id,
            organization_id: self.scope.organization_id,
            workspace_id: self.scope.workspace_id,
            customer_id: request.customer_id,
            home_partition: i32::try_from(home).unwrap_or(0), // below the number of partitions, at most 1,024
            name: request.name.clone(),
            description: request.description.clone(),
            public_description: request.public_description.clone(),
            plan_id: request.plan_id,
            plan_version: self.plan_version,
            plan_version_id: self.plan_version_id,
            currency: request.currency,
            billing_interval_unit: request.billing_interval_unit,
            billing_interval_count: request.billing_interval_count,
            billing_anchor_day: request.billing_anchor_day.unwrap_or_else(|| i32::try_from(anchor).unwrap_or(1)),
            anchor_is_explicit: request.billing_anchor_day.is_some(),
            billing_timing: request.billing_timing,
            timezone: self.timezone.name().to_owned(),
            auto_renew: request.auto_renew && request.billing_interval_unit != BillingIntervalUnit::OneTime,
            trial_duration_days: request.trial_duration_days,
            trial_ends_at: self.trial_ends_at,
            started_at: self.started_at,
            first_period_start: self.first_period_start(),
            schedule_restarts: Vec::new(),
            activated_at: None,
            current_period_start: None,
            current_period_end: None,
            next_billing_date: None,
            ended_at: None,
            // What is due now is done by `start`.
            status: SubscriptionStatus::Pending,
            allowed_transitions: Vec::new(),
            cancel_at_period_end: false,
            cancelled_at: None,
            expired_at: None,
            cancellation_reason: None,
            paused_at: None,
            resumed_at: None,
            dunning_stage: None,
            current_phase_id: Some(PhaseId::generate()),
            payment_terms_days: request.payment_terms_days,
            version_track: VersionTrackMode::Pinned,
            test_clock_id: self.test_clock_id,
            version: 0,
            custom_fields: Json(JsonMap::new()),
            metadata: Json(request.metadata.clone()),
            created_at: now,
            updated_at: now,
            deleted_at: None,
        }
    }
}

/// Products that must be bought together with another are there (products.md rule 7).
async fn check_requirements(
    scope: &Scope,
    conn: &mut PgConnection,
    items: &[(SubscriptionItemInput, ProductType)],
) -> Result<()> {
    let ids: Vec<_> = items.iter().map(|(item, _)| item.product_id.0).collect();
    let missing: Option<(ProductId, ProductId)> = sqlx::query_as(
        "SELECT product.id, needed FROM product, unnest(requires_product_ids) AS needed
         WHERE workspace_id = $1 AND product.id = ANY($2) AND needed <> ALL($2) LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(ids)
    .fetch_optional(conn)
    .await
    .context("looking for required products")?;
    match missing {
        None => Ok(()),
        Some((product, needed)) => {
            let detail = format!("product {product} requires product {needed}, which is not among the items");
            Err(Error::business_rule(detail).with("product_id", product))
        }
    }
}

/// Calendar days in the organization's time zone, so that a trial that starts at midnight ends at midnight.
fn add_days(from: Instant, days: i32, timezone: Tz) -> Result<Instant> {
    let end = from.with_timezone(&timezone).checked_add_days(Days::new(u64::from(days.unsigned_abs())));
    end.map(|end| end.to_utc()).ok_or_else(|| Error::business_rule("the end of the trial is out of range"))
}

async fn customer(scope: &Scope, conn: &mut PgConnection, id: CustomerId) -> Result<Customer> {
    let customer: Option<Customer> = sqlx::query_as(
        "SELECT status, billing_address ->> 'country' AS country, test_clock_id
         FROM customer WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_optional(conn)
    .await
    .context("reading the customer")?;
    let customer = customer.ok_or_else(|| Error::not_found("customer", id))?;
    if matches!(customer.status.as_str(), "ARCHIVED" | "MERGED") {
        return Err(Error::business_rule(format!("a customer that is {} takes no subscriptions", customer.status)));
    }
    Ok(customer)
}

/// The plan's name, and id and number of the version that is pinned.
async fn plan(
    scope: &Scope,
    conn: &mut PgConnection,
    request: &CreateSubscriptionRequest,
) -> Result<(String, VersionId, i32)> {
    let plan: Option<Plan> = sqlx::query_as(
        "SELECT plan.name, plan.status, version.id AS version_id, version.version
         FROM plan LEFT JOIN entity_version version
              ON version.entity_type = 'plan' AND version.entity_id = plan.id AND version.status IN ('active', 'archived')
                 AND CASE WHEN $3::integer IS NULL THEN version.id = plan.head_version_id ELSE version.version = $3 END
         WHERE plan.workspace_id = $1 AND plan.id = $2 AND plan.deleted_at IS NULL",
    )
    .bind(scope.workspace_id)
    .bind(request.plan_id)
    .bind(request.plan_version)
    .fetch_optional(conn)
    .await
    .context("reading the plan")?;
    let plan = plan.ok_or_else(|| Error::not_found("plan", request.plan_id))?;
    if !matches!(plan.status.as_str(), "published" | "deprecated") {
        let detail =
            format!("the plan {} is {}; only a published plan takes new subscriptions", plan.name, plan.status);
        return Err(Error::business_rule(detail));
    }
    match (plan.version_id, plan.version) {
        (Some(id), Some(version)) => Ok((plan.name, id, version)),
        _ => Err(Error::not_found("plan_version", request.plan_version.unwrap_or_default())),
    }
}

async fn insert(conn: &mut PgConnection, subscription: &Subscription) -> Result<()> {
    let row = json!({
        "id": subscription.id,
        "organization_id": subscription.organization_id,
        "workspace_id": subscription.workspace_id,
        "customer_id": subscription.customer_id,
        "home_partition": subscription.home_partition,
        "name": subscription.name,
        "description": subscription.description,
        "public_description": subscription.public_description,
        "plan_id": subscription.plan_id,
        "plan_version": subscription.plan_version,
        "plan_version_id": subscription.plan_version_id,
        "currency": subscription.currency,
        "billing_interval_unit": subscription.billing_interval_unit,
        "billing_interval_count": subscription.billing_interval_count,
        "billing_anchor_day": subscription.billing_anchor_day,
        "anchor_is_explicit": subscription.anchor_is_explicit,
        "billing_timing": subscription.billing_timing,
        "timezone": subscription.timezone,
        "auto_renew": subscription.auto_renew,
        "trial_duration_days": subscription.trial_duration_days,
        "trial_ends_at": subscription.trial_ends_at,
        "started_at": subscription.started_at,
        "first_period_start": subscription.first_period_start,
        "schedule_restarts": subscription.schedule_restarts,
        "status": subscription.status,
        "cancel_at_period_end": false,
        "current_phase_id": subscription.current_phase_id,
        "payment_terms_days": subscription.payment_terms_days,
        "version_track": subscription.version_track,
        "test_clock_id": subscription.test_clock_id,
        "version": subscription.version,
        "custom_fields": subscription.custom_fields,
        "metadata": subscription.metadata,
        "usage_caps": [],
        "created_at": subscription.created_at,
        "updated_at": subscription.updated_at,
    });
    sqlx::query("INSERT INTO subscription SELECT * FROM jsonb_populate_record(NULL::subscription, $1)")
        .bind(Json(row))
        .execute(&mut *conn)
        .await
        .context("writing the subscription")?;
    sqlx::query(
        "INSERT INTO subscription_phase (id, workspace_id, subscription_id, kind, sequence, starts_at, created_at)
         VALUES ($1, $2, $3, $4, 1, $5, $6)",
    )
    .bind(subscription.current_phase_id)
    .bind(subscription.workspace_id)
    .bind(subscription.id)
    .bind("STANDARD")
    .bind(subscription.started_at)
    .bind(subscription.created_at)
    .execute(conn)
    .await
    .context("writing the first phase")?;
    Ok(())
}

#[derive(Serialize)]
struct ItemRow<'a> {
    id: SubscriptionItemId,
    workspace_id: domain::WorkspaceId,
    subscription_id: SubscriptionId,
    product_id: ProductId,
    price_id: Option<domain::PriceId>,
    price_key: Option<&'a str>,
    quantity: rust_decimal::Decimal,
    unit_amount: Option<rust_decimal::Decimal>,
    included_quantity: Option<rust_decimal::Decimal>,
    charge_kind: ChargeKind,
    billing_timing: BillingTiming,
    added_at: Instant,
    metadata: &'a JsonMap,
    created_at: Instant,
    updated_at: Instant,
}

async fn insert_items(
    conn: &mut PgConnection,
    context: &Context<'_>,
    subscription: &Subscription,
    items: &[(SubscriptionItemInput, ProductType)],
) -> Result<()> {
    let row = |(item, product_type): &'_ (SubscriptionItemInput, ProductType)| -> Result<_> {
        let (charge_kind, billing_timing) = match product_type {
            ProductType::Usage => (ChargeKind::Usage, BillingTiming::InArrears),
            _ if subscription.billing_interval_unit == BillingIntervalUnit::OneTime => {
                (ChargeKind::OneTime, BillingTiming::InAdvance)
            }
            _ => (ChargeKind::Recurring, subscription.billing_timing),
        };
        Ok(json!(ItemRow {
            id: SubscriptionItemId::generate(),
            workspace_id: subscription.workspace_id,
            subscription_id: subscription.id,
            product_id: item.product_id,
            price_id: item.price_id,
            price_key: item.price_key.as_deref(),
            quantity: item.quantity.to_decimal()?,
            unit_amount: item.unit_amount,
            included_quantity: item.included_quantity.map(|quantity| quantity.to_decimal()).transpose()?,
            charge_kind,
            billing_timing,
            added_at: context.started_at,
            metadata: &item.metadata,
            created_at: subscription.created_at,
            updated_at: subscription.created_at,
        }))
    };
    let rows = items.iter().map(row).collect::<Result<Vec<_>>>()?;
    sqlx::query(
        "INSERT INTO subscription_item (id, workspace_id, subscription_id, product_id, product_version_id, price_id, price_key,
                quantity, unit_amount, included_quantity, charge_kind, billing_timing, added_at, metadata, created_at, updated_at)
         SELECT new.id, new.workspace_id, new.subscription_id, new.product_id, product.head_version_id, new.price_id,
                new.price_key, new.quantity, new.unit_amount, new.included_quantity, new.charge_kind, new.billing_timing,
                new.added_at, new.metadata, new.created_at, new.updated_at
         FROM jsonb_populate_recordset(NULL::subscription_item, $1) AS new JOIN product ON product.id = new.product_id",
    )
    .bind(Json(rows))
    .execute(conn)
    .await
    .context("writing the items")?;
    Ok(())
}
