//! Reads and writes of payment methods. Whoever may change a customer's default holds the lock of the customer's row: two of
//! them would otherwise meet at the index that allows one.

use domain::error::FieldErrorCode as Code;
use domain::{CustomerId, Error, FieldError, Instant, PaymentMethodId, Result, Scope};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError, Tx, on_constraint};

use super::model::{COLUMNS, FROM, PaymentMethod, STATUS};
use super::request::{CreatePaymentMethodRequest, UpdatePaymentMethodRequest};
use crate::gateway;
use crate::words::{PaymentMethodStatus, PaymentMethodType};

const METHODS: ListSpec = ListSpec {
    name: "payment_methods",
    columns: COLUMNS,
    from: FROM,
    workspace_column: "m.workspace_id",
    condition: "m.status <> 'REMOVED'",
    fields: &[
        ListField::new("id", ListKind::Id).column("m.id"),
        ListField::new("customer_id", ListKind::Id).column("m.customer_id"),
        ListField::new(
            "type",
            ListKind::Word(&["CREDIT_CARD", "BANK_ACCOUNT", "SEPA_DIRECT_DEBIT", "PAYPAL", "EXTERNAL"]),
        )
        .column("m.type"),
        ListField::new("provider", ListKind::Word(&["stripe", "gocardless", "mollie", "adyen", "external"]))
            .column("m.provider"),
        ListField::new("provider_id", ListKind::Text).column("m.provider_id"),
        ListField::new("status", ListKind::Word(&["ACTIVE", "PENDING", "EXPIRED", "FAILED", "REMOVED"])).column(STATUS),
        ListField::new("is_default", ListKind::Bool).column("m.is_default"),
        ListField::new("created_at", ListKind::Instant).column("m.created_at").sortable(),
        ListField::new("updated_at", ListKind::Instant).column("m.updated_at").sortable(),
    ],
    shorthands: &[],
    order: "m.created_at",
    id: "m.id",
};

/// `GET /v1/payment-methods`, newest first; those that were removed only with `include_removed=true`.
///
/// # Errors
/// `Validation` and `INVALID_CURSOR` for the parameters.
pub async fn list(
    scope: &Scope,
    conn: &mut PgConnection,
    parameters: &[(String, String)],
) -> Result<Page<PaymentMethod>> {
    let removed = parameters.iter().rev().find(|(name, _)| name == "include_removed").map(|(_, value)| value.as_str());
    let spec = match removed {
        None | Some("false") => METHODS,
        Some("true") => ListSpec { condition: "true", ..METHODS },
        Some(_) => return Err(Error::field("include_removed", Code::InvalidFormat, "must be true or false")),
    };
    ListQuery::parse_with(&spec, parameters, &["include_removed"])?.fetch(conn, scope).await
}

/// `GET /v1/payment-methods/{id}`, also of one that was removed.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: PaymentMethodId) -> Result<PaymentMethod> {
    let found = find(scope, conn, "m.id = $2", id).await?;
    found.ok_or_else(|| Error::not_found("payment_method", id))
}

async fn find(
    scope: &Scope,
    conn: &mut PgConnection,
    condition: &str,
    id: impl Into<uuid::Uuid>,
) -> Result<Option<PaymentMethod>> {
    let sql = format!("SELECT {COLUMNS} FROM {FROM} WHERE m.workspace_id = $1 AND {condition}");
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id.into())
        .fetch_optional(conn)
        .await
        .context("reading a payment method")
}

/// The method that a payment of a customer charges: the one that was named, or the default.
///
/// # Errors
/// `NotFound` for a method that is not the customer's; `NO_PAYMENT_METHOD` without a default; a rule for one that cannot be
/// charged.
pub(crate) async fn chargeable(
    scope: &Scope,
    conn: &mut PgConnection,
    customer: CustomerId,
    named: Option<PaymentMethodId>,
) -> Result<PaymentMethod> {
    let method = match named {
        Some(id) => get(scope, conn, id).await.and_then(|method| match method.customer_id == customer {
            true => Ok(method),
            false => Err(Error::not_found("payment_method", id)),
        })?,
        None => find(scope, conn, "m.customer_id = $2 AND m.is_default", customer).await?.ok_or_else(|| {
            Error::rule("NO_PAYMENT_METHOD", "the customer has no default payment method: add one, or name one")
        })?,
    };
    if method.method_type == PaymentMethodType::External {
        let detail = "payments of type EXTERNAL are recorded by hand: no gateway can charge this method";
        return Err(Error::business_rule(detail).with("payment_method_id", method.id));
    }
    if method.status != PaymentMethodStatus::Active {
        let detail = format!("the payment method is {}: only ACTIVE ones are charged", method.status);
        return Err(Error::business_rule(detail).with("payment_method_id", method.id));
    }
    Ok(method)
}

/// Locks the customer and says what time it is for it: a test clock stands in for the machine's.
async fn lock_customer(scope: &Scope, conn: &mut PgConnection, id: CustomerId) -> Result<Instant> {
    let found: Option<Option<Instant>> = sqlx::query_scalar(
        "SELECT (SELECT frozen_at FROM test_clock WHERE test_clock.id = customer.test_clock_id) FROM customer
         WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL FOR NO KEY UPDATE",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_optional(conn)
    .await
    .context("locking a customer")?;
    let frozen = found.ok_or_else(|| Error::not_found("customer", id))?;
    Ok(frozen.unwrap_or_else(|| scope.now()))
}

/// Locks the method's customer, then reads the method; one that was removed cannot change.
async fn lock(scope: &Scope, tx: &mut Tx, id: PaymentMethodId, to: &str) -> Result<(PaymentMethod, Instant)> {
    let customer = get(scope, tx.conn(), id).await?.customer_id;
    let now = lock_customer(scope, tx.conn(), customer).await?;
    let method = get(scope, tx.conn(), id).await?;
    if method.status == PaymentMethodStatus::Removed {
        return Err(Error::invalid_transition("payment_method", id, "REMOVED", to, &[]));
    }
    Ok((method, now))
}

/// `POST /v1/payment-methods`.
///
/// # Errors
/// `NotFound` for the customer; `GATEWAY_NOT_CONFIGURED`; `DUPLICATE` for a token that is stored already.
pub async fn create(scope: &Scope, tx: &mut Tx, request: &CreatePaymentMethodRequest) -> Result<PaymentMethod> {
    let now = lock_customer(scope, tx.conn(), request.customer_id).await?;
    let external = request.method_type == PaymentMethodType::External;
    if !external && !gateway::is_configured(scope, tx.conn(), request.provider).await? {
        let detail = format!("no gateway of {} is configured in the mode of this workspace", request.provider);
        return Err(Error::rule("GATEWAY_NOT_CONFIGURED", detail).with("provider", request.provider));
    }
    let id = PaymentMethodId::generate();
    if let Some(existing) = holder_of_token(scope, tx, request).await? {
        return Err(Error::duplicate("provider_id", Some(existing.to_string())));
    }
    let is_first = find(scope, tx.conn(), "m.customer_id = $2 AND m.status <> 'REMOVED' LIMIT 1", request.customer_id)
        .await?
        .is_none();
    let is_default = request.is_default || is_first;
    if is_default {
        clear_default(scope, tx, request.customer_id, now).await?;
    }
    let inserted = sqlx::query(
        "INSERT INTO payment_method (id, organization_id, workspace_id, customer_id, type, provider, provider_id, status,
             is_default, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'ACTIVE', $8, $9, $9)",
    )
    .bind(id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(request.customer_id)
    .bind(request.method_type)
    .bind(request.provider)
    .bind(&request.provider_id)
    .bind(is_default)
    .bind(now)
    .execute(tx.conn())
    .await;
    on_constraint(inserted, "making a payment method", |constraint| {
        (constraint == "payment_method_token").then(|| Error::duplicate("provider_id", None))
    })?;
    let method = get(scope, tx.conn(), id).await?;
    emit(&scope.at(now), tx, "payment_method.added", &method).await?;
    Ok(method)
}

async fn holder_of_token(
    scope: &Scope,
    tx: &mut Tx,
    request: &CreatePaymentMethodRequest,
) -> Result<Option<PaymentMethodId>> {
    sqlx::query_scalar(
        "SELECT id FROM payment_method WHERE workspace_id = $1 AND provider = $2 AND provider_id = $3 AND status <> 'REMOVED'",
    )
    .bind(scope.workspace_id)
    .bind(request.provider)
    .bind(&request.provider_id)
    .fetch_optional(tx.conn())
    .await
    .context("looking for a token")
}

async fn clear_default(scope: &Scope, tx: &mut Tx, customer: CustomerId, now: Instant) -> Result<()> {
    sqlx::query(
        "UPDATE payment_method SET is_default = false, updated_at = $3
         WHERE workspace_id = $1 AND customer_id = $2 AND is_default",
    )
    .bind(scope.workspace_id)
    .bind(customer)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("taking the default from other payment methods")?;
    Ok(())
}

/// `PATCH /v1/payment-methods/{id}`.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` of one that was removed; a rule for members of another kind of instrument, and for taking
/// the default from it without giving it to another.
pub async fn update(
    scope: &Scope,
    tx: &mut Tx,
    id: PaymentMethodId,
    request: &UpdatePaymentMethodRequest,
) -> Result<PaymentMethod> {
    let (mut method, now) = lock(scope, tx, id, "ACTIVE").await?;
    check_display(&method, request)?;
    if request.is_default == Some(false) && method.is_default {
        let detail = "make another payment method the default: a customer with methods that can be charged has one";
        return Err(Error::business_rule(detail));
    }
    let mut metadata = std::mem::take(&mut method.metadata);
    domain::input::merge_metadata(&mut metadata, request.metadata.clone().unwrap_or_default())?;
    if request.is_default == Some(true) && !method.is_default {
        clear_default(scope, tx, method.customer_id, now).await?;
    }
    sqlx::query(
        "UPDATE payment_method SET is_default = $2, status = coalesce($3, status), display_brand = $4, last4 = $5,
             exp_month = $6, exp_year = $7, bank_name = $8, account_last4 = $9, metadata = $10, updated_at = $11
         WHERE id = $1",
    )
    .bind(id)
    .bind(request.is_default.unwrap_or(method.is_default))
    .bind(request.status)
    .bind(request.display_brand.clone().apply(method.display_brand))
    .bind(request.last4.clone().apply(method.last4))
    .bind(request.exp_month.clone().apply(method.exp_month))
    .bind(request.exp_year.clone().apply(method.exp_year))
    .bind(request.bank_name.clone().apply(method.bank_name))
    .bind(request.account_last4.clone().apply(method.account_last4))
    .bind(Json(metadata))
    .bind(now)
    .execute(tx.conn())
    .await
    .context("changing a payment method")?;
    let changed = get(scope, tx.conn(), id).await?;
    if changed.status == PaymentMethodStatus::Expired && method.status != PaymentMethodStatus::Expired {
        emit(&scope.at(now), tx, "payment_method.expired", &changed).await?;
    }
    Ok(changed)
}

/// Cards have no bank, direct debit has no card.
fn check_display(method: &PaymentMethod, request: &UpdatePaymentMethodRequest) -> Result<()> {
    let is_card = method.method_type == PaymentMethodType::CreditCard;
    let foreign = request.sent_display().into_iter().filter(|(_, of_card, sent)| *sent && *of_card != is_card);
    let errors: Vec<_> = foreign
        .map(|(name, _, _)| FieldError {
            field: name.to_owned(),
            code: Code::NotAllowed,
            message: format!("a method of type {} has none", method.method_type),
        })
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(Error::rule_of_fields("of another kind of instrument", errors)) }
}

/// `POST /v1/payment-methods/{id}/default`.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` of one that was removed.
pub async fn set_default(scope: &Scope, tx: &mut Tx, id: PaymentMethodId) -> Result<PaymentMethod> {
    let request = UpdatePaymentMethodRequest { is_default: Some(true), ..UpdatePaymentMethodRequest::default() };
    update(scope, tx, id, &request).await
}

/// `DELETE /v1/payment-methods/{id}`: the row stays, as REMOVED. The default goes to the newest method that is active.
///
/// # Errors
/// `NotFound`; `INVALID_TRANSITION` of one that was removed.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: PaymentMethodId) -> Result<()> {
    let (method, now) = lock(scope, tx, id, "REMOVED").await?;
    remove(scope, tx, &method, now).await
}

/// Removes a method whose customer is locked.
pub(super) async fn remove(scope: &Scope, tx: &mut Tx, method: &PaymentMethod, now: Instant) -> Result<()> {
    sqlx::query(
        "UPDATE payment_method SET status = 'REMOVED', is_default = false, deleted_at = $2, updated_at = $2 WHERE id = $1",
    )
    .bind(method.id)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("removing a payment method")?;
    if method.is_default {
        promote(scope, tx, method.customer_id, now).await?;
    }
    let removed = get(scope, tx.conn(), method.id).await?;
    emit(&scope.at(now), tx, "payment_method.removed", &removed).await
}

async fn promote(scope: &Scope, tx: &mut Tx, customer: CustomerId, now: Instant) -> Result<()> {
    let sql = format!(
        "UPDATE payment_method SET is_default = true, updated_at = $3 WHERE id = (
             SELECT m.id FROM {FROM} WHERE m.workspace_id = $1 AND m.customer_id = $2 AND {STATUS} = 'ACTIVE'
             ORDER BY m.created_at DESC, m.id DESC LIMIT 1)"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(customer)
        .bind(now)
        .execute(tx.conn())
        .await
        .context("handing the default to another payment method")?;
    Ok(())
}

/// Locks the customer of a method that a payment or a provider speaks of; nothing for one that was removed.
pub(super) async fn lock_present(
    scope: &Scope,
    tx: &mut Tx,
    id: PaymentMethodId,
) -> Result<Option<(PaymentMethod, Instant)>> {
    match lock(scope, tx, id, "").await {
        Ok(found) => Ok(Some(found)),
        Err(Error::Conflict { .. } | Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn emit(scope: &Scope, tx: &mut Tx, event: &str, method: &PaymentMethod) -> Result<()> {
    tx.emit(scope, event, "payment_method", method.id, store::payload(method)?).await
}
