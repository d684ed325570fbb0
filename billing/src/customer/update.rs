//! Change and deletion.

use currency::Purpose;
use domain::{CustomerId, Error, Instant, Result, Scope};
use sqlx::types::Json;
use store::{StoreError, Tx, on_constraint};

use super::model::Customer;
use super::read::{find_by_external_id, lock};
use super::request::UpdateCustomerRequest;
use super::rules::apply;

/// `PATCH /v1/customers/{id}`: changes the members that were sent, null clears.
///
/// # Errors
/// `NotFound`; `DUPLICATE` for a taken `external_id`; `CURRENCY_NOT_ENABLED` for a currency that is new to it; a rule for a status or billing model that cannot be set so.
pub async fn update(scope: &Scope, tx: &mut Tx, id: CustomerId, request: UpdateCustomerRequest) -> Result<Customer> {
    let customer = lock(scope, tx.conn(), id).await?;
    update_locked(scope, tx, customer, request).await
}

pub(super) async fn update_locked(
    scope: &Scope,
    tx: &mut Tx,
    before: Customer,
    request: UpdateCustomerRequest,
) -> Result<Customer> {
    let mut customer = before.clone();
    apply(&mut customer, request)?;
    if customer == before {
        return Ok(before);
    }
    if let Some(external_id) = customer.external_id.as_deref().filter(|id| Some(*id) != before.external_id.as_deref())
        && let Some(existing) = find_by_external_id(scope, tx.conn(), external_id, false).await?
    {
        return Err(Error::duplicate("external_id", Some(existing.id.to_string())));
    }
    if let Some(currency) = customer.preferred_currency.filter(|new| Some(*new) != before.preferred_currency) {
        currency::require(scope, tx, currency, Purpose::Billing).await?;
    }
    customer.updated_at = now(scope, tx, &customer).await?;
    write(scope, tx, &customer).await?;
    tx.customer_changed(scope.workspace_id, customer.id);
    tx.emit(scope, "customer.updated", "customer", customer.id, store::payload(&customer)?).await?;
    Ok(customer)
}

/// The present instant of the customer, and never before its last change.
async fn now(scope: &Scope, tx: &mut Tx, customer: &Customer) -> Result<Instant> {
    let frozen: Option<Instant> = match (scope.clock, customer.test_clock_id) {
        (domain::Clock::System, Some(clock)) => {
            sqlx::query_scalar("SELECT frozen_at FROM test_clock WHERE id = $1 AND workspace_id = $2")
                .bind(clock)
                .bind(scope.workspace_id)
                .fetch_optional(tx.conn())
                .await
                .context("reading the clock of a customer")?
        }
        _ => None,
    };
    Ok(frozen.unwrap_or_else(|| scope.now()).max(customer.updated_at))
}

async fn write(scope: &Scope, tx: &mut Tx, customer: &Customer) -> Result<()> {
    let written = sqlx::query(
        "UPDATE customer SET external_id = n.external_id, email = n.email, name = n.name, billing_model = n.billing_model,
             status = n.status, billing_address = n.billing_address, tax_identifiers = n.tax_identifiers,
             preferred_currency = n.preferred_currency, locale = n.locale, payment_terms_days = n.payment_terms_days,
             peppol_id = n.peppol_id, einvoice_email = n.einvoice_email, prefer_einvoice = n.prefer_einvoice,
             preferred_provider = n.preferred_provider, disabled_providers = n.disabled_providers,
             default_auto_topup_enabled = n.default_auto_topup_enabled,
             default_auto_topup_amount = n.default_auto_topup_amount, default_credit_limit = n.default_credit_limit,
             default_low_balance_threshold = n.default_low_balance_threshold,
             default_max_balance = n.default_max_balance, default_max_single_credit = n.default_max_single_credit,
             vat_validation_disabled = n.vat_validation_disabled,
             vat_validation_disabled_reason = n.vat_validation_disabled_reason, custom_fields = n.custom_fields,
             metadata = n.metadata, updated_at = n.updated_at
         FROM jsonb_populate_record(NULL::customer, $1) n
         WHERE customer.id = n.id AND customer.workspace_id = $2",
    )
    .bind(Json(store::payload(customer)?))
    .bind(scope.workspace_id)
    .execute(tx.conn())
    .await;
    // Two changes at once that take the same id: the look-up before saw neither.
    on_constraint(written, "changing a customer", |constraint| match constraint {
        "customer_external_id" => Some(Error::duplicate("external_id", None)),
        _ => None,
    })?;
    Ok(())
}

/// `DELETE /v1/customers/{id}`: sets `deleted_at`.
///
/// # Errors
/// `NotFound`; `CUSTOMER_HAS_ACTIVE_SUBSCRIPTIONS` while a subscription is neither CANCELLED nor EXPIRED.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: CustomerId) -> Result<()> {
    let customer = lock(scope, tx.conn(), id).await?;
    let running: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM subscription WHERE workspace_id = $1 AND customer_id = $2 AND deleted_at IS NULL
             AND status NOT IN ('CANCELLED', 'EXPIRED')",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(tx.conn())
    .await
    .context("counting the subscriptions of a customer")?;
    if running > 0 {
        let detail = format!("the customer has {running} subscription(s) that are not cancelled or expired");
        return Err(Error::conflict("CUSTOMER_HAS_ACTIVE_SUBSCRIPTIONS", detail).with("subscriptions", running));
    }
    let now = now(scope, tx, &customer).await?;
    sqlx::query("UPDATE customer SET deleted_at = $3, updated_at = $3 WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .bind(now)
        .execute(tx.conn())
        .await
        .context("deleting a customer")?;
    tx.customer_changed(scope.workspace_id, id);
    Ok(())
}
