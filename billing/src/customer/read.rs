//! Reads and the list.

use domain::{CustomerId, Error, Result, Scope};
use sqlx::PgConnection;
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError};

use super::model::Customer;

const CUSTOMERS: ListSpec = ListSpec {
    name: "customers",
    columns: "*",
    from: "customer",
    workspace_column: "workspace_id",
    condition: "deleted_at IS NULL",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("external_id", ListKind::Text),
        ListField::new("email", ListKind::Text).sortable(),
        ListField::new("name", ListKind::Text).sortable(),
        ListField::new("status", ListKind::Word(&["ACTIVE", "INACTIVE", "ARCHIVED", "MERGED"])),
        ListField::new("customer_type", ListKind::Word(&["BUSINESS", "CONSUMER", "UNKNOWN"])),
        ListField::new("billing_model", ListKind::Word(&["PREPAID", "POSTPAID", "HYBRID"])),
        ListField::new("mode", ListKind::Word(&["PREPAID", "POSTPAID"])),
        ListField::new("preferred_currency", ListKind::Text),
        ListField::new("test_clock_id", ListKind::Id),
        ListField::new(
            "vat_validation_status",
            ListKind::Word(&[
                "UNVALIDATED",
                "PENDING",
                "VALID",
                "INVALID",
                "UNAVAILABLE",
                "MANUAL_VALID",
                "MANUAL_INVALID",
            ]),
        ),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// `GET /v1/customers`, newest first.
///
/// `tags` and `tag` keep the customers that carry all of the tags that they name. No tag can be made yet, so that every
/// name is one that does not resolve, and the page is empty (customers.md).
///
/// # Errors
/// `Validation` and `INVALID_CURSOR` for the parameters.
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<Customer>> {
    let query = ListQuery::parse_with(&CUSTOMERS, parameters, &["tags", "tag"])?;
    let mut page = query.fetch(conn, scope).await?;
    if parameters.iter().any(|(name, value)| matches!(name.as_str(), "tags" | "tag") && !value.is_empty()) {
        page.data.clear();
        page.pagination.cursor = None;
        page.pagination.has_more = false;
    }
    Ok(page)
}

/// `GET /v1/customers/{id}`.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: CustomerId) -> Result<Customer> {
    sqlx::query_as("SELECT * FROM customer WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL")
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a customer")?
        .ok_or_else(|| Error::not_found("customer", id))
}

/// The same, locked for a change.
pub(super) async fn lock(scope: &Scope, conn: &mut PgConnection, id: CustomerId) -> Result<Customer> {
    sqlx::query_as("SELECT * FROM customer WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL FOR UPDATE")
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("locking a customer")?
        .ok_or_else(|| Error::not_found("customer", id))
}

/// `GET /v1/customers/by-external-id/{external_id}`.
///
/// # Errors
/// `NotFound`.
pub async fn get_by_external_id(scope: &Scope, conn: &mut PgConnection, external_id: &str) -> Result<Customer> {
    let found = find_by_external_id(scope, conn, external_id, false).await?;
    found.ok_or_else(|| Error::not_found("customer", external_id))
}

/// The customer with the caller's own id, locked when it is to be changed.
pub(super) async fn find_by_external_id(
    scope: &Scope,
    conn: &mut PgConnection,
    external_id: &str,
    locked: bool,
) -> Result<Option<Customer>> {
    let sql = match locked {
        true => "SELECT * FROM customer WHERE workspace_id = $1 AND external_id = $2 AND deleted_at IS NULL FOR UPDATE",
        false => "SELECT * FROM customer WHERE workspace_id = $1 AND external_id = $2 AND deleted_at IS NULL",
    };
    // PostgreSQL has no text with U+0000, and so has no customer with such an id.
    if external_id.contains('\0') {
        return Ok(None);
    }
    sqlx::query_as(sql)
        .bind(scope.workspace_id)
        .bind(external_id)
        .fetch_optional(conn)
        .await
        .context("looking for a customer by its external id")
}
